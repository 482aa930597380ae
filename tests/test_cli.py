"""The commands as a user types them: what they write, print and refuse. Not here: how well DDPG learns (README.md)."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecNormalize

from sb3_simple_ddpg import SimpleDDPG, presets
from sb3_simple_ddpg.command_line import options
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.experiment import plotting, runs
from sb3_simple_ddpg.export import load_policy
from tests.environments import Bandit

# The module before the colon registers the environment, in subprocesses too.
SMALL = [
    "--env",
    "tests.environments:TestBandit-v0",
    "--set",
    "policy_kwargs.net_arch=[8]",
    "buffer_size=500",
    "batch_size=8",
]
SMALL += ["--eval-episodes", "5", "--no-progress"]


def train(*args: str) -> int:
    return main(["train", *SMALL, *args])


def test_train_writes_one_folder_and_says_where_everything_lies(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "30", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "Evaluation over 5 deterministic episodes: mean return" in printed
    assert f"Everything lies in {out}" in printed
    assert {path.name for path in out.iterdir()} == {
        "model.zip", "config.json", "monitor.csv", "progress.csv", "returns.png", "evaluation.json",
    }  # fmt: skip
    episodes = load_results(str(out))
    assert list(episodes.l) == [1] * 30  # an episode of the bandit is one step
    config = json.loads((out / "config.json").read_text())
    assert config["env"]["env_id"] == "tests.environments:TestBandit-v0"
    assert (config["seed"], config["timesteps"], config["preset"]) == (0, 30, "default")
    assert config["arguments"]["policy_kwargs"] == {"net_arch": [8]}
    assert config["arguments"]["tau"] == 0.005  # defaults are written too
    assert config["versions"].keys() == {
        "python",
        "sb3-simple-ddpg",
        "stable-baselines3",
        "torch",
        "gymnasium",
        "numpy",
    }
    assert SimpleDDPG.load(out / "model.zip").num_timesteps == 30
    assert (out / "returns.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train("--timesteps", "120", "--seed", seed, "--out", str(tmp_path / name)) == 0
    a, b, c = (load_results(str(tmp_path / name)).r.tolist() for name in "abc")
    assert a == b
    assert a != c


def test_train_stops_after_the_number_of_episodes(tmp_path):
    assert train("--episodes", "12", "--out", str(tmp_path / "run")) == 0
    assert len(load_results(str(tmp_path / "run"))) == 12


def test_episodes_are_counted_over_all_environments(tmp_path):
    assert train("--episodes", "12", "--n-envs", "4", "--out", str(tmp_path / "run")) == 0
    assert len(load_results(str(tmp_path / "run"))) == 12


@pytest.mark.slow
def test_train_in_subprocesses_with_progress_bar_and_tensorboard(tmp_path, capsys):
    out = tmp_path / "run"
    args = ["--timesteps", "200", "--n-envs", "2", "--vec-env", "subproc", "--progress", "--tensorboard"]
    with pytest.warns() as warned:  # tqdm calls its rich progress bar experimental
        assert train(*args, "--out", str(out)) == 0
    known = [warning for warning in warned if "inplace keyword in DataFrame" in str(warning.message)]  # SB3 2.9.0
    assert {type(warning.message).__name__ for warning in warned if warning not in known} == {"TqdmExperimentalWarning"}
    assert "mean return" in capsys.readouterr().out
    assert list(out.glob("events.out.tfevents*"))
    assert SimpleDDPG.load(out / "model.zip").n_envs == 2


def test_normalize_stores_the_statistics_and_evaluates_with_them(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "20", "--normalize", "--out", str(out)) == 0
    config = runs.read_config(out)
    normalizer = VecNormalize.load(str(out / "vecnormalize.pkl"), config["env"].make())
    assert normalizer.obs_rms.count > 20
    capsys.readouterr()
    assert main(["evaluate", str(out), "--episodes", "3"]) == 0
    assert "over 3 deterministic episodes" in capsys.readouterr().out


def test_a_run_that_keeps_its_policy_alone_plays_what_its_model_played(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "20", "--normalize", "--out", str(out)) == 0
    assert main(["export", str(out), "--to", str(out / "policy.safetensors")]) == 0
    capsys.readouterr()
    evaluate = ["evaluate", str(out), "--episodes", "3", "--env-kwargs", "best=0.7"]
    assert main(evaluate) == 0
    of_model = capsys.readouterr().out
    model = runs.load_run(out)
    for name in ("model.zip", "vecnormalize.pkl"):  # the statistics are in the policy
        (out / name).unlink()
    assert main(evaluate) == 0
    assert capsys.readouterr().out == of_model
    action = model.predict(model.env.normalize_obs(np.zeros(1, np.float32)))[0].item()
    assert f"mean return {1 - abs(action - 0.7):.3f}" in of_model
    # To go on from there needs a model; what is damaged is not played.
    assert main(["export", str(out), "--to", str(tmp_path / "other.onnx")]) == 2
    assert "holds policy.safetensors and no model.zip" in capsys.readouterr().err
    (out / "policy.safetensors").write_bytes(b"damaged")
    assert main(evaluate) == 2
    assert "policy.safetensors is refused" in capsys.readouterr().err
    # A training in its place leaves nothing of it.
    assert train("--timesteps", "20", "--out", str(out), "--overwrite") == 0
    assert not (out / "policy.safetensors").exists()


@pytest.mark.parametrize("options", [("--preset", "robust"), ("--set", "normalize_observations=True")])
def test_observations_alone_are_normalised_by_the_preset_or_by_set_and_a_run_goes_on_so(tmp_path, options):
    """What `Bandit` pays for an action stays what it is: the replay buffer's rewards are not scaled."""
    out = tmp_path / "run"
    assert train("--timesteps", "40", "--checkpoint-every", "20", *options, "--out", str(out)) == 0
    config = runs.read_config(out)
    assert (config["env"].normalize, config["env"].normalize_observations) == (False, True)
    assert "normalize_observations" not in config["arguments"]
    assert config["arguments"]["policy_kwargs"]["net_arch"] == [8]
    normalizer = runs.load_run(out).get_vec_normalize_env()
    assert normalizer is not None
    assert (normalizer.norm_obs, normalizer.norm_reward) == (True, False)
    assert main(["train", "--resume", str(out), "--eval-episodes", "0", "--no-progress"]) == 0
    assert runs.evaluate_run(out, 1, 0)


def bandit_return(model: SimpleDDPG, best: float) -> float:
    """1 - |a - best| for the one action that the model knows."""
    action, _ = model.predict(np.zeros(1, np.float32))
    return 1 - abs(action.item() - best)


def test_arguments_of_the_environment_are_those_of_training_resume_and_evaluation(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--env-kwargs", "best=0.5", "--env-kwargs", "low=-2.0", "high=2"]
    assert train("--timesteps", "40", *given, "--checkpoint-every", "20", "--out", str(out)) == 0
    settings = runs.read_config(out)["env"]
    assert settings.kwargs == {"best": 0.5, "low": -2.0, "high": 2}
    model = SimpleDDPG.load(out / "model.zip")
    assert (model.action_space.low.item(), model.action_space.high.item()) == (-2.0, 2.0)
    assert runs.evaluate_run(out, 1, 0) == pytest.approx([bandit_return(model, 0.5)], abs=1e-6)
    # Another one for an evaluation; the others stay.
    assert runs.evaluate_run(out, 1, 0, {"best": 1.0}) == pytest.approx([bandit_return(model, 1.0)], abs=1e-6)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "timesteps": 60}))
    assert main(["train", "--resume", str(out), "--eval-episodes", "1", "--no-progress"]) == 0
    model = SimpleDDPG.load(out / "model.zip")
    assert (model.num_timesteps, model.action_space.low.item()) == (60, -2.0)
    capsys.readouterr()
    assert main(["evaluate", str(out), "--episodes", "1", "--env-kwargs", "best=1.5"]) == 0
    assert f"mean return {bandit_return(model, 1.5):.3f}" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--env-kwargs", "bets=1.5"]) == 2
    assert "has no argument 'bets': did you mean best" in capsys.readouterr().err
    assert main(["diagnose", str(out), "--env-kwargs", "best=1.5"]) == 2
    assert "A run has its own settings: leave out --env-kwargs" in capsys.readouterr().err


def test_values_of_the_environment_s_arguments_come_back_as_they_were_typed(tmp_path):
    typed = ["a=(1, 2)", "b=None", "c=True", "d=fast", "e='1'", "f={'x': (3,)}", "g=-1e-3", "h=a=b"]
    kwargs = options.env_kwargs_of([tuple(typed)], "E-v0")
    assert kwargs == {
        "a": (1, 2), "b": None, "c": True, "d": "fast", "e": "1", "f": {"x": (3,)}, "g": -1e-3, "h": "a=b",
    }  # fmt: skip
    runs.write_config(tmp_path, runs.EnvSettings("E-v0", kwargs=kwargs), {})
    assert runs.read_config(tmp_path)["env"].kwargs == kwargs


def test_episodes_may_be_cut_where_the_environment_sets_no_limit(tmp_path):
    """`TestEndless-v0` ends after 3 steps of itself and is registered without a limit."""
    out = tmp_path / "run"
    env = ["--env", "tests.environments:TestEndless-v0", "--env-kwargs", "max_episode_steps=2"]
    assert train(*env, "--episodes", "5", "--eval-episodes", "0", "--out", str(out)) == 0
    assert load_results(str(out)).l.tolist() == [2] * 5


def test_a_diagnosis_is_of_the_environment_with_its_arguments(capsys):
    """An action range of 4e6 to one side is a finding; the default of the bandit's is none of that kind."""
    seen = []
    wide = ["diagnose", SMALL[1], "--env-kwargs", "low=-1.0", "high=4e6", *SMALL[2:6]]
    assert main(wide) in (0, 1)
    seen.append(capsys.readouterr().out)
    assert main(["diagnose", SMALL[1], *SMALL[2:6]]) in (0, 1)
    seen.append(capsys.readouterr().out)
    assert seen[0] != seen[1]


GOAL = "tests.environments:TestGoal-v0"


def test_success_is_shown_and_recorded_where_the_environment_tells(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--env", GOAL, "--timesteps", "40", "--out", str(out)) == 0
    # The one action is good in all episodes or in none.
    rate = float(bandit_return(SimpleDDPG.load(out / "model.zip"), 2.0) >= 0.5)
    assert f", success rate {rate:.2f}" in capsys.readouterr().out
    assert json.loads((out / "evaluation.json").read_text())["success_rate"] == rate
    best = SimpleDDPG.load(out / "model.zip").predict(np.zeros(1, np.float32))[0].item()
    for given, expected in ((best, "1.00"), (best - 2, "0.00")):
        assert main(["evaluate", str(out), "--episodes", "3", "--env-kwargs", f"best={given}"]) == 0
        assert f"success rate {expected}" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--episodes", "3", "--env-kwargs", "tells=False"]) == 0
    assert "success" not in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1e-2, 3e-4, -1e-6])
def test_small_returns_are_printed_with_digits_that_say_something(scale, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--env", GOAL, "--env-kwargs", f"scale={scale}", "--timesteps", "40"]
    assert train(*given, "--out", str(out)) == 0
    printed = float(re.search(r"mean return (\S+),", capsys.readouterr().out)[1])
    model = SimpleDDPG.load(out / "model.zip")
    assert printed == pytest.approx(scale * bandit_return(model, 2.0), rel=0.01)
    (returns,) = {*json.loads((out / "evaluation.json").read_text())["returns"]}
    assert returns == pytest.approx(scale * bandit_return(model, 2.0), rel=1e-5)


@pytest.mark.parametrize(
    ("returns", "shown"),
    [
        ([-152.31, -80.0], ["-152.3", "-80.0"]),
        ([3512.6, 2900.2], ["3512.6", "2900.2"]),
        ([-0.0123, -0.0099], ["-0.0123", "-0.0099"]),
        ([0.0, 0.0], ["0.0", "0.0"]),
        ([-0.0], ["0.0"]),
        ([5.25, 7.5], ["5.250", "7.500"]),
        # A portfolio near 1: half the difference is 1.5e-5.
        ([1.00002, 1.00005], ["1.000020", "1.000050"]),
        ([1000.01, 1000.05], ["1000.010", "1000.050"]),
        # Of what float32 rounds away no digit is shown.
        ([1000.0, 1000.00006], ["1000.0", "1000.0"]),
        ([-250.0, -0.01], ["-250.0", "0.0"]),
        ([2e-9], ["0.00000000200"]),
        ([float("inf"), 3.0], ["inf", "3.000"]),
        ([], []),
    ],
)
def test_digits_are_enough_for_the_size_and_for_the_differences(returns, shown):
    digits = runs.digits_of(returns)
    assert [f"{value:z.{digits}f}" for value in returns] == shown


def test_normalize_observations_is_true_or_false(tmp_path, capsys):
    assert train("--set", "normalize_observations=3", "--out", str(tmp_path / "run")) == 2
    assert "normalize_observations must be True or False, got 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrappers_are_applied_in_training_and_in_evaluation(tmp_path):
    out = tmp_path / "run"
    wrapper = "sb3_contrib.common.wrappers.TimeFeatureWrapper"
    assert train("--timesteps", "20", "--wrapper", wrapper, "--out", str(out)) == 0
    assert SimpleDDPG.load(out / "model.zip").observation_space.shape == (2,)  # one number and the time
    assert len(runs.evaluate_run(out, 2, 0)) == 2


def test_evaluation_is_that_of_the_stored_model(tmp_path):
    """The bandit's return is 1 - |a - 2| for the model's one action."""
    out = tmp_path / "run"
    assert train("--timesteps", "20", "--out", str(out)) == 0
    action, _ = SimpleDDPG.load(out / "model.zip").predict(np.zeros(1, np.float32))
    # VecMonitor rounds nothing; float32 against float64
    assert runs.evaluate_run(out, 3, 0) == pytest.approx([1 - abs(action.item() - 2)] * 3, abs=1e-6)


def test_set_takes_literals_classes_and_repeats(tmp_path):
    out = tmp_path / "run"
    more = ["--set", "gamma=0.5", "--set", "policy_kwargs.activation_fn=torch.nn.Tanh", "action_noise=None"]
    assert train("--timesteps", "20", *more, "--out", str(out)) == 0
    model = SimpleDDPG.load(out / "model.zip")
    assert (model.gamma, model.action_noise, model.buffer_size) == (0.5, None, 500)
    assert model.policy_kwargs["activation_fn"].__name__ == "Tanh"
    assert model.policy_kwargs["net_arch"] == [8]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("replay_buffer_class=HerReplayBuffer", HerReplayBuffer),
        ("replay_buffer_class=NStepReplayBuffer", NStepReplayBuffer),
        ("policy_kwargs.features_extractor_class=NatureCNN", NatureCNN),
        ("policy_kwargs.optimizer_class=AdamW", th.optim.AdamW),
        ("policy_kwargs.optimizer_class=RMSpropTFLike", RMSpropTFLike),
        ("policy_kwargs.activation_fn=ELU", th.nn.ELU),
        ("policy_kwargs.activation_fn=torch.nn:ELU", th.nn.ELU),
        ("policy_kwargs.activation_fn=torch.nn.ELU", th.nn.ELU),
        ("replay_buffer_class=None", None),
    ],
)
def test_a_class_is_set_by_module_and_name_or_where_it_is_known_by_its_name(typed, expected):
    arguments: dict = {}
    options.assign_setting(arguments, typed)
    (value,) = arguments.values()
    assert (next(iter(value.values())) if isinstance(value, dict) else value) is expected


def test_a_run_has_the_class_that_was_set_by_its_name(tmp_path):
    out = tmp_path / "run"
    classes = ["--set", "policy_kwargs.optimizer_class=SGD", "policy_kwargs.activation_fn=Tanh"]
    assert train("--timesteps", "20", *classes, "--eval-episodes", "0", "--out", str(out)) == 0
    model = SimpleDDPG.load(out / "model.zip")
    assert isinstance(model.critic.optimizer, th.optim.SGD)
    assert any(isinstance(layer, th.nn.Tanh) for layer in model.critic.modules())
    assert runs.read_config(out)["arguments"]["policy_kwargs"]["activation_fn"].endswith("activation.Tanh")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_help_names_every_preset(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert [name for name in [*presets.PRESETS, "rl-zoo"] if name not in printed] == []


def test_a_preset_is_taken_and_set_changes_it_without_touching_the_preset(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "5", "--preset", "fujimoto2018", "--out", str(out)) == 0
    assert "preset 'fujimoto2018'" in capsys.readouterr().out
    model = SimpleDDPG.load(out / "model.zip")
    assert (model.learning_starts, model.batch_size, model.policy.net_arch) == (1_000, 8, [8])
    assert presets.FUJIMOTO2018["policy_kwargs"] == {"net_arch": [400, 300]}


def test_a_run_of_random_timesteps_alone_says_that_nothing_was_learned(tmp_path, capsys):
    assert train("--timesteps", "5", "--preset", "layer-norm", "--out", str(tmp_path / "random")) == 0
    said = "Nothing was learned: learning begins after 10000 random timesteps, and this run had 5."
    assert said in capsys.readouterr().out
    cured = ["--timesteps", "105", "--preset", "layer-norm", "--set", "learning_starts=100"]
    assert train(*cured, "--out", str(tmp_path / "cured")) == 0
    assert "Nothing was learned" not in capsys.readouterr().out
    assert SimpleDDPG.load(tmp_path / "cured" / "model.zip")._n_updates == 5  # at 101 to 105


def test_a_folder_that_is_not_empty_is_left_alone_unless_told(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "5", "--normalize", "--out", str(out)) == 0
    (out / "mine.txt").write_text("mine")
    before = (out / "model.zip").read_bytes()
    assert train("--timesteps", "5", "--out", str(out)) == 2
    assert "not empty: name another folder, or add --overwrite" in capsys.readouterr().err
    assert (out / "model.zip").read_bytes() == before
    assert train("--timesteps", "5", "--out", str(out), "--overwrite") == 0
    assert (out / "mine.txt").read_text() == "mine"
    assert not (out / "vecnormalize.pkl").exists()  # of the earlier run; this one has no normalizer


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "Nope-v3"], "'Nope-v3' cannot be made"),
        (["--env", "Nope-v3", "--timesteps", "5"], "'Nope-v3' cannot be made"),
        (["--env", "CartPole-v1"], "must be a Box, got Discrete(2)"),
        (["--set", "gamma=2"], "gamma must be in [0, 1], got 2"),
        (["--set", "gama=0.9"], "no argument 'gama': did you mean gamma"),
        (["--set", "policy_delay=2"], "stable_baselines3.TD3 has it"),
        (["--set", "policy_kwargs.n_critics=2"], "n_critics must be 1, got 2"),
        (["--set", "gamma"], "--set takes name=value, got 'gamma'"),
        (["--set", "seed=1"], "use --seed 1"),
        (["--set", "tensorboard_log=logs"], "use --tensorboard"),
        (["--set", "policy_kwargs.activation_fn=torch.nn.Nope"], "'torch.nn.Nope' cannot be imported"),
        (["--set", "policy_kwargs.activation_fn=torch.nn:Nope"], "torch.nn has no 'Nope'; write package.module:Name"),
        (["--set", "policy_kwargs.activation_fn=Thanh"], "no such name. did you mean Tanh"),
        (["--set", "replay_buffer_class=HerBuffer"], "did you mean HerReplayBuffer"),
        (["--set", "policy_kwargs.optimizer_class=Adan"], "did you mean Adam"),
        (["--set", "replay_buffer_class=torch.optim:Adam"], "torch.optim:Adam is no ReplayBuffer"),
        (["--set", "policy_kwargs.features_extractor_class=math:pi"], "math:pi is no BaseFeaturesExtractor"),
        (["--set", "replay_buffer_class=nowhere:Buffer"], "'nowhere:Buffer' cannot be imported"),
        (["--set", "on_non_finite=jump"], "on_non_finite must be 'stop' or 'skip', got 'jump'"),
        (["--env-kwargs", "bst=1.0"], "has no argument 'bst': did you mean best"),
        (["--env-kwargs", "best"], "--env-kwargs takes name=value, an argument of the environment, got 'best'"),
        (["--env-kwargs", "render_mode=human"], "--video for a film"),
        (["--env", "tests.environments:TestRequired-v0"], "needs --env-kwargs best=VALUE"),
        (["--env", "tests.environments:TestRequired-v0", "--env-kwargs", "best=1", "lo=2"], "has no argument 'lo'"),
        (["--env", "MountainCarContinuous-v0", "--env-kwargs", "goal_speed=1"], "did you mean goal_velocity"),
        (["--env", "Pendulum-v1", "--env-kwargs", "gravity=9.8"], "choose from g, max_episode_steps"),
        (["--wrapper", "nowhere.Wrapper"], "'nowhere.Wrapper' cannot be imported"),
        (["--preset", "nope"], "no preset 'nope'"),
        (["--episodes", "3", "--timesteps", "3"], "not both"),
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["--timesteps", "0"], "--timesteps must be at least 1"),
        (["--n-envs", "0"], "--n-envs must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--eval-episodes", "-1"], "--eval-episodes must be at least 0"),
        (["--n-envs", "2", "--set", "train_freq=(1,'episode')"], "needs one environment, got 2"),
        (["--env", "tests.environments:TestEndless-v0"], "give --timesteps"),
        (["--vec-env", "subproc", "--env", "Nope-v3", "--timesteps", "5"], "'Nope-v3' cannot be made"),
    ],
)
def test_mistakes_are_refused_with_nothing_written(args: list[str], message: str, tmp_path, capsys):
    # The last --env counts.
    assert main(["train", "--env", SMALL[1], "--out", str(tmp_path / "run"), *args]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


SETTINGS_THAT_A_LIBRARY_REFUSES = {
    "policy_kwargs.foo=1": "unexpected keyword argument 'foo'",
    "replay_buffer_kwargs.foo=1": "unexpected keyword argument 'foo'",
    "policy_kwargs.optimizer_kwargs.foo=1": "unexpected keyword argument 'foo'",
    "policy_kwargs.features_extractor_kwargs.foo=1": "unexpected keyword argument 'foo'",
    "policy_kwargs.optimizer_kwargs.eps=-1": "Invalid epsilon value: -1",
    "replay_buffer_class=HerReplayBuffer": "must be used with Dict obs space only",
    "optimize_memory_usage=True": "does not support optimize_memory_usage = True",
}


@pytest.mark.parametrize("setting", SETTINGS_THAT_A_LIBRARY_REFUSES)
@pytest.mark.parametrize("command", ["train", "compare", "diagnose"])
def test_what_a_library_says_of_a_setting_is_a_sentence(command, setting, tmp_path, capsys):
    out = ["--timesteps", "300", "--out", str(tmp_path / "run")]
    arguments = [SMALL[1]] if command == "diagnose" else [*SMALL[:2], *out]
    assert main([command, *arguments, "--set", setting]) == 2
    said = capsys.readouterr().err
    assert SETTINGS_THAT_A_LIBRARY_REFUSES[setting] in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def none_plus_one(*_, **__):
    return None + 1  # a TypeError


def number_of_a_word(*_, **__):
    return int("a word")  # a ValueError


def says_so(*_, **__):
    raise ValueError("planted outside of the package")


def falls(*_, **__):
    raise KeyError("planted")


def opens(*_, **__):
    return open("/nowhere/data.csv").read()


BUGS = [none_plus_one, number_of_a_word, says_so, falls, opens]


PLACES = (
    "experiment.runs.EnvSettings.random_return", "experiment.runs.policy_for", "presets.choose_preset",
    "safety.checks.check_action_space", "sb3.plugin.make_action_noise", "safety.checks.advice",
    "experiment.runs.write_config",
)  # fmt: skip


@pytest.mark.parametrize(("place", "bug"), [*itertools.product(PLACES, BUGS[:2]), *itertools.product(PLACES[:1], BUGS)])
def test_a_bug_of_ours_has_its_traceback(place, bug, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(f"sb3_simple_ddpg.{place}", bug)
    assert train("--timesteps", "5", "--out", str(tmp_path / "run")) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert f", in {bug.__name__}" in said
    assert "error: " in said.splitlines()[-1]


@pytest.mark.parametrize("bug", BUGS[:2])
def test_a_bug_has_its_traceback_in_the_other_commands_too(bug, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert train("--timesteps", "5", "--eval-episodes", "0", "--out", str(out)) == 0
    compare = ["compare", *SMALL[:2], "--timesteps", "200", "--out", str(tmp_path / "compare")]
    for place, arguments in (
        ("experiment.runs.evaluate_policy", ["evaluate", str(out), "--episodes", "1"]),
        ("experiment.plotting.plot_returns", ["plot", str(out), "--out", str(tmp_path / "x.png")]),
        ("export.files.save_policy", ["export", str(out), "--to", str(tmp_path / "x.safetensors")]),
        ("diagnosis.diagnosis.diagnose", ["diagnose", str(out)]),
        ("diagnosis.diagnosis.diagnose", ["diagnose", SMALL[1], *SMALL[2:4]]),
        ("experiment.runs.EnvSettings.make", ["diagnose", SMALL[1], *SMALL[2:4]]),
        ("experiment.algorithms.build", compare),
        ("experiment.comparison.find_algorithms", compare),
    ):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(f"sb3_simple_ddpg.{place}", bug)
            assert main(arguments) == 1, arguments
        said = capsys.readouterr().err
        assert "Traceback" in said, arguments
        assert f", in {bug.__name__}" in said, arguments


class FailsToStart(Bandit):
    """An environment with a mistake in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.names = None + []


class FailsToReset(Bandit):
    """An environment that misses a file."""

    def reset(self, **kwargs):
        return open("/nowhere/prices.csv").read()


gym.register("TestFailsToStart-v0", FailsToStart, disable_env_checker=True)
gym.register("TestFailsToReset-v0", FailsToReset, max_episode_steps=10, disable_env_checker=True)


@pytest.mark.parametrize(("env", "function"), [("FailsToStart", "__init__"), ("FailsToReset", "reset")])
@pytest.mark.parametrize("command", ["train", "compare", "diagnose"])
def test_an_error_of_the_environment_has_its_traceback(command, env, function, tmp_path, capsys):
    env_id = f"tests.test_cli:Test{env}-v0"
    out = ["--timesteps", "300", "--out", str(tmp_path / "run")]
    assert main([command, *([env_id] if command == "diagnose" else ["--env", env_id, *out])]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert f", in {function}" in said


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("gymnasium.wrappers:TimeLimit", "cannot be called with the environment alone (missing a required argument"),
        ("math:pi", "cannot be called with the environment alone"),
        ("builtins:id", "makes no environment of Gymnasium's, but int"),
    ],
)
def test_what_is_no_wrapper_is_refused(wrapper, message, tmp_path, capsys):
    assert train("--timesteps", "5", "--wrapper", wrapper, "--out", str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_damaged_or_of_other_spaces_is_a_sentence(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "5", "--eval-episodes", "0", "--out", str(out)) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--env-kwargs", "low=0.0"]) == 2
    (out / "model.zip").write_bytes(b"half a file")
    assert main(["evaluate", str(out)]) == 2
    said = capsys.readouterr().err
    assert "Action spaces do not match" in said
    assert "wasn't a zip-file" in said
    assert "Traceback" not in said


def test_out_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train("--timesteps", "5", "--out", str(tmp_path / "file")) == 2
    assert "is a file: name a folder" in capsys.readouterr().err
    assert train("--timesteps", "5", "--out", str(tmp_path / "file" / "below")) == 2
    assert "cannot be written" in capsys.readouterr().err
    if os.geteuid() != 0:  # the administrator may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert train("--timesteps", "5", "--out", str(tmp_path / "locked" / "run")) == 2
        assert "is not writable" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_a_folder_without_a_run_is_refused(command: str, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    assert "pass the folder that `simple-ddpg train` wrote" in capsys.readouterr().err


def test_a_run_without_a_model_or_episodes_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("--timesteps", "5", "--eval-episodes", "0", "--out", str(out)) == 0
    assert main(["evaluate", str(out), "--episodes", "0"]) == 2
    (out / "model.zip").unlink()
    assert main(["evaluate", str(out)]) == 2
    (out / "monitor.csv").unlink()
    assert main(["plot", str(out), "--out", str(tmp_path / "x.png")]) == 2
    errors = capsys.readouterr().err
    assert "must be at least 1, got 0" in errors
    assert "holds no model.zip" in errors
    assert "holds no monitor.csv" in errors
    assert not (tmp_path / "x.png").exists()


def test_plot_draws_several_runs_into_one_picture(tmp_path, capsys):
    for name in ("a", "b"):
        assert train("--timesteps", "15", "--eval-episodes", "0", "--out", str(tmp_path / name)) == 0
    picture = tmp_path / "both.svg"
    assert main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(picture)]) == 0
    assert f"Wrote {picture}" in capsys.readouterr().out
    assert "<svg" in picture.read_text()
    assert main(["plot"]) == 2


def test_figure_shows_every_return_its_moving_mean_and_the_reference(tmp_path):
    (tmp_path / "monitor.csv").write_text('#{"t_start": 0.0}\nr,l,t\n1.0,1,1\n3.0,1,2\n8.0,1,3\n')
    figure = plotting.plot_returns([tmp_path], random_return=-5.0, window=2)
    points, mean, reference = figure.axes[0].lines
    assert points.get_xydata().tolist() == [[1, 1], [2, 3], [3, 8]]
    assert mean.get_ydata().tolist() == [1.0, 2.0, 5.5]  # 1; (1 + 3) / 2; (3 + 8) / 2
    assert list(reference.get_ydata()) == [-5.0, -5.0]


def test_figure_of_a_run_without_episodes_is_refused(tmp_path):
    (tmp_path / "monitor.csv").write_text('#{"t_start": 0.0}\nr,l,t\n')
    with pytest.raises(ValueError, match="holds no finished episode"):
        plotting.plot_returns([tmp_path])


def test_random_return_is_the_mean_over_finished_episodes():
    # Three rewards of 1 an episode; of 10 steps the first nine make three episodes.
    assert runs.EnvSettings("tests.environments:TestEndless-v0").random_return(0, episodes=5, max_steps=10) == 3.0
    assert runs.EnvSettings("tests.environments:TestEndless-v0").random_return(0, episodes=2, max_steps=100) == 3.0
    assert runs.EnvSettings("tests.environments:TestEndless-v0").random_return(0, max_steps=2) is None


@pytest.mark.slow
def test_ctrl_c_saves_what_there_is_and_says_so(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-X", "faulthandler", "-m", "sb3_simple_ddpg", "train", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--no-progress"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**without_coverage(), "PYTHONUNBUFFERED": "1"},
        # Whoever runs the tests in the background has had it ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        monitor = out / "monitor.csv"
        wait_for(lambda: monitor.exists() and len(monitor.read_text().splitlines()) > 3, 240)
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # the fault handler says where it hangs
            output, errors = process.communicate(timeout=60)
            pytest.fail(f"Ctrl-C did not end the process.\n{output}\n{errors}")
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Interrupted at timestep" in output
    assert f"Saved what there is in {out}" in output
    # Two episodes of Pendulum; the second row is written within timestep 400, which is counted after it.
    assert SimpleDDPG.load(out / "model.zip").num_timesteps >= 399
    assert (out / "returns.png").exists()


def without_coverage() -> dict[str, str]:
    """
    The environment of a process that gets a Ctrl-C: coverage 7.17 takes a lock that is never released where the
    KeyboardInterrupt comes a moment later, and the process waits for it for ever.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def normalized_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("normalized") / "run"
    assert train("--timesteps", "20", "--normalize", "--eval-episodes", "0", "--out", str(out)) == 0
    return out


def test_export_writes_the_policy_with_the_statistics_of_the_run(normalized_run, tmp_path, capsys):
    model = runs.load_run(normalized_run)
    raw = np.array([[0.5], [-1.0]], np.float32)
    expected, _ = model.predict(model.get_vec_normalize_env().normalize_obs(raw))
    for name in ("policy.onnx", "policy.safetensors"):
        capsys.readouterr()
        assert main(["export", str(normalized_run), "--to", str(tmp_path / name)]) == 0
        assert f"Wrote {tmp_path / name}" in capsys.readouterr().out
    actions, _ = load_policy(tmp_path / "policy.safetensors").predict(raw)
    np.testing.assert_array_equal(actions, expected)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    (actions,) = session.run(["action"], {"observation": raw})
    np.testing.assert_allclose(actions, expected, rtol=0, atol=4e-5)  # 1e-5 of the range [-1, 3]


def test_mistakes_in_export_are_refused_with_nothing_written(normalized_run, tmp_path, capsys, monkeypatch):
    for run, to, message in (
        (normalized_run, tmp_path / "policy.pt", "--to must end in .onnx or .safetensors"),
        (normalized_run, tmp_path / "missing" / "policy.onnx", "is not a folder that can be written to"),
        (tmp_path, tmp_path / "policy.onnx", "pass the folder that `simple-ddpg train` wrote"),
    ):
        assert main(["export", str(run), "--to", str(to)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(normalized_run), "--to", str(tmp_path / "policy.onnx")]) == 2
    assert 'pip install "sb3-simple-ddpg[export]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("simple-ddpg")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    for command in ("train", "evaluate", "plot", "export"):
        assert command in result.stdout
