"""Bad input is refused before any work, with the value and the cure; advice goes to the log.

Not here: the command line's own mistakes (test_cli.py).
"""

import inspect
import types
import warnings
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.policies import MlpPolicy
from sb3_simple_ddpg.safety import checks
from tests.environments import Bandit, Chain

TINY = {"net_arch": [8]}


def test_constructor_has_sb3_s_arguments_in_sb3_s_order_with_sb3_s_defaults():
    ours = inspect.signature(SimpleDDPG).parameters
    theirs = inspect.signature(DDPG).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    defaults = {name: parameter.default for name, parameter in ours.items() if name in theirs}
    expected = {name: parameter.default for name, parameter in theirs.items()}
    assert defaults == {**expected, "action_noise": 0.1}
    assert all(parameter.kind == parameter.KEYWORD_ONLY for parameter in list(ours.values())[len(theirs) :])


def test_learn_has_sb3_s_arguments_and_its_own_name_in_the_log():
    ours = inspect.signature(SimpleDDPG.learn).parameters
    theirs = inspect.signature(DDPG.learn).parameters
    assert list(ours) == list(theirs)
    assert ours["tb_log_name"].default == "SimpleDDPG"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": -1e-3}, "learning_rate must be a finite number of at least 0, got -0.001: 1e-3"),
        ({"learning_rate": lambda progress: -progress}, "learning_rate must be .*, got -1.0"),
        ({"critic_learning_rate": float("nan")}, "critic_learning_rate must be .*, got nan"),
        ({"gamma": 1.01}, r"gamma must be in \[0, 1\], got 1.01: 0.99"),
        ({"tau": -0.1}, r"tau must be in \[0, 1\], got -0.1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"buffer_size": -5}, "buffer_size must be at least 1, got -5"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"learning_starts": -2}, "learning_starts must be at least -1, got -2"),
        ({"gradient_steps": -2}, "gradient_steps must be at least -1, got -2"),
        ({"train_freq": 0}, "train_freq must be at least 1, got 0"),
        ({"train_freq": (0, "episode")}, "train_freq must be at least 1, got 0"),
        ({"train_freq": (1, "epoch")}, "train_freq"),
        ({"action_noise": -0.1}, "action_noise must be a finite number of at least 0, got -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, got 0.*None"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be .*, got -1.0"),
        ({"on_non_finite": "ignore"}, "on_non_finite must be 'stop' or 'skip', got 'ignore'"),
        ({"policy_kwargs": {"n_critics": 2}}, "n_critics must be 1, got 2.*TD3"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}}}, "'pi' .* and 'qf'.*got .*vf.*rename 'vf' to 'qf'"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "q": [8]}}}, "must have the keys 'pi' .* and 'qf'"),
        ({"policy_kwargs": {"net_arch": "64"}}, r"got '64': \[256, 256\]"),
        ({"policy_kwargs": {"net_arch": 64}}, r"got 64: \[256, 256\]"),
        ({"policy": "MlpLstmPolicy"}, "MlpLstmPolicy unknown: choose from MlpPolicy.*RecurrentPPO"),
        ({"policy": SACPolicy}, "SACPolicy.*from_sb3"),
    ],
)
def test_impossible_values_are_refused_with_value_and_cure(setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SimpleDDPG(**{"policy": "MlpPolicy", "env": Bandit(), **setting})


def test_no_environment_is_refused_when_the_model_is_made():
    with pytest.raises(TypeError, match="env must be an environment or the name of one, got None"):
        SimpleDDPG("MlpPolicy", None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gamma": "0.9"}, "gamma must be a number, got '0.9'"),
        ({"batch_size": 32.5}, "batch_size must be a whole number, got 32.5: write 256, for example"),
        ({"learning_starts": 2.5}, "learning_starts must be a whole number, got 2.5: write 100, for example"),
        ({"buffer_size": float("inf")}, "buffer_size must be a whole number, got inf"),
        ({"train_freq": "step"}, r"train_freq must be a whole number, got 'step': write 1 or \(1, 'episode'\)"),
        ({"train_freq": 1.5}, "train_freq must be a whole number, got 1.5"),
        ({"policy_kwargs": {"net_arch": [64.5]}}, "units of a layer must be a whole number, got 64.5: write 256"),
        ({"policy_kwargs": {"net_arch": ["64"]}}, "units of a layer must be a whole number, got '64'"),
        (
            {"policy_kwargs": {"optimizer_kwargs": {"lr": 0.1}}},
            r"got lr=0.1: write SimpleDDPG\(..., learning_rate=0.1\)",
        ),
        ({"policy_kwargs": {"critic_optimizer_kwargs": {"lr": 0.1}}}, r"got lr=0.1.* critic_learning_rate=0.1\)"),
        ({"net_arch": [8]}, r"no argument net_arch=\[8\]: .*policy_kwargs=dict\(net_arch=\[8\]\)"),
        ({"learning_starts": True}, "learning_starts must be a whole number, got True"),
        ({"learning_rate": [1e-3]}, "learning_rate must be a number"),
        ({"policy_delay": 2}, "no argument policy_delay=2: stable_baselines3.TD3 has it"),
        ({"target_policy_noise": 0.2}, "stable_baselines3.TD3 has it"),
        ({"n_critics": 2}, "stable_baselines3.TD3 has it"),
        ({"ent_coef": "auto"}, "no argument ent_coef='auto': stable_baselines3.SAC has it"),
        ({"use_sde": True}, "stable_baselines3.SAC has it"),
        ({"learning_rat": 1e-3}, "no argument learning_rat=0.001: did you mean learning_rate"),
        ({"zzz": 1}, "no argument zzz=1: choose from policy, env, learning_rate"),
    ],
)
def test_wrong_types_and_other_algorithms_arguments_are_refused_by_name(setting: dict, message: str):
    with pytest.raises(TypeError, match=message):
        SimpleDDPG("MlpPolicy", Bandit(), **setting)


class ListOfALibrary(Sequence):
    """What OmegaConf's ListConfig is to us: a sequence that is neither list nor tuple."""

    def __init__(self, *entries: object) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("learning_starts", 6.0, 6),
        ("learning_starts", -1, -1),
        ("learning_starts", -1.0, -1),
        ("buffer_size", 1e3, 1000),
        ("batch_size", 8.0, 8),
        ("batch_size", np.float32(8), 8),
        ("batch_size", np.int64(8), 8),
        ("batch_size", th.tensor(8), 8),
        ("gradient_steps", 2.0, 2),
        ("gradient_steps", -1.0, -1),
        ("n_steps", 3.0, 3),
        ("seed", np.int64(3), 3),
        ("seed", 3.0, 3),
        ("tau", np.float32(0.5), 0.5),
        ("gamma", np.array(0.5), 0.5),
        ("max_grad_norm", th.tensor(0.5), 0.5),
        ("learning_rate", np.float32(0.5), 0.5),
        ("critic_learning_rate", th.tensor(0.5), 0.5),
        ("train_freq", 2.0, (2, "step")),
        ("train_freq", np.int64(2), (2, "step")),
        ("train_freq", (1.0, "episode"), (1, "episode")),
        ("train_freq", [1, "episode"], (1, "episode")),
        ("train_freq", ListOfALibrary(1, "episode"), (1, "episode")),
    ],
)
@pytest.mark.parametrize("when", ["built", "later", "loaded"])
def test_settings_are_taken_as_people_write_them(name: str, given: object, held: object, when: str, tmp_path):
    settings = {"policy_kwargs": TINY, "learning_starts": 5, "buffer_size": 100, "batch_size": 4}
    model = SimpleDDPG("MlpPolicy", Bandit(), **{**settings, **({name: given} if when == "built" else {})})
    if when == "later":
        setattr(model, name, given)
    elif when == "loaded":
        model.save(tmp_path / "model")
        model = SimpleDDPG.load(tmp_path / "model", env=Bandit(), **{name: given})
    model.learn(10)
    value = getattr(model, name)
    if name == "train_freq":
        value = value.frequency, value.unit.value
    assert value == held
    assert str(value) == str(held)  # of Python's own types
    assert model._n_updates > 0


def test_minus_one_random_steps_are_none_as_in_sb3():
    updates = [
        algorithm("MlpPolicy", Bandit(), learning_starts=-1, buffer_size=50, policy_kwargs={"net_arch": [8]})
        .learn(7)
        ._n_updates
        for algorithm in (SimpleDDPG, DDPG)
    ]
    assert updates == [7, 7]


@pytest.mark.parametrize("total_timesteps", [1e1, np.float64(10), np.int32(10), th.tensor(10)])
def test_length_of_training_may_be_written_as_1e1(total_timesteps: float):
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=50, policy_kwargs=TINY).learn(total_timesteps)
    assert (model.num_timesteps, model._total_timesteps, type(model._total_timesteps)) == (10, 10, int)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda progress: th.tensor(0.5), 0.5),
        (lambda progress: th.tensor([0.5]), 0.5),
        (lambda progress: np.float32(0.5), 0.5),
        (lambda progress: np.array(0.5), 0.5),
    ],
)
def test_a_schedule_may_give_what_counts_as_a_number(rate: object, expected: float):
    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_rate=rate, critic_learning_rate=rate, learning_starts=1, buffer_size=50,
        policy_kwargs=TINY,
    )  # fmt: skip
    model.learn(3)
    rates = {group["lr"] for network in (model.actor, model.critic) for group in network.optimizer.param_groups}
    assert rates == {expected}
    assert {type(rate) for rate in rates} == {float}


@pytest.mark.parametrize("rate", [1e-2, lambda progress: 1e-2 * progress])
def test_a_new_critic_has_its_own_learning_rate_from_the_start(rate: object):
    model = SimpleDDPG("MlpPolicy", Bandit(), 1e-3, critic_learning_rate=rate, buffer_size=50, policy_kwargs=TINY)
    rates = [group["lr"] for network in (model.actor, model.critic) for group in network.optimizer.param_groups]
    assert rates == [1e-3, 1e-2]
    assert [network.optimizer.defaults["lr"] for network in (model.actor, model.critic)] == [1e-3, 1e-2]


@pytest.mark.parametrize(
    ("net_arch", "held"),
    [
        ((6, 5), [6, 5]),
        (ListOfALibrary(6, 5), [6, 5]),
        ([6.0, np.int64(5)], [6, 5]),
        (np.array([6, 5]), [6, 5]),
        ((), []),
        ({"pi": (6,), "qf": ListOfALibrary(5)}, {"pi": [6], "qf": [5]}),
        (types.MappingProxyType({"pi": [6], "qf": (5,)}), {"pi": [6], "qf": [5]}),
        ({"pi": [6], "qf": [5], "vf": [4]}, {"pi": [6], "qf": [5]}),
        ([{"pi": [6], "qf": [5]}], {"pi": [6], "qf": [5]}),
    ],
)
def test_layers_are_taken_as_people_write_them(net_arch: object, held: object, tmp_path):
    policy_kwargs = {"net_arch": net_arch}
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=50, policy_kwargs=policy_kwargs)
    assert policy_kwargs["net_arch"] is net_arch
    assert model.policy.net_arch == model.policy_kwargs["net_arch"] == held
    actor_units, critic_units = (
        [layer.out_features for layer in network if isinstance(layer, th.nn.Linear)][:-1]
        for network in (model.actor.mu, model.critic.qf0)
    )
    assert (actor_units, critic_units) == ((held["pi"], held["qf"]) if isinstance(held, dict) else (held, held))
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", policy_kwargs=policy_kwargs)  # SB3 compares them
    assert loaded.policy.net_arch == held
    assert model.to_sb3().policy.net_arch == held


@pytest.mark.parametrize("name", ["optimizer_kwargs", "critic_optimizer_kwargs"])
def test_policy_built_alone_refuses_a_learning_rate_among_the_optimizer_s_arguments(name: str):
    env = Bandit()
    with pytest.raises(TypeError, match=f"^{name} must not hold the learning rate, got lr=0.1"):
        MlpPolicy(env.observation_space, env.action_space, lambda progress: 1e-3, **{name: {"lr": 0.1}})


def test_lists_of_the_caller_are_not_those_of_the_model():
    policy_kwargs = {"net_arch": {"pi": [8], "qf": [8]}, "critic_optimizer_kwargs": {"weight_decay": 0.0}}
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=50, policy_kwargs=policy_kwargs)
    model.policy_kwargs["net_arch"]["pi"].append(8)
    model.policy.net_arch["qf"].append(8)
    model.policy_kwargs["critic_optimizer_kwargs"]["weight_decay"] = 1.0
    assert policy_kwargs == {"net_arch": {"pi": [8], "qf": [8]}, "critic_optimizer_kwargs": {"weight_decay": 0.0}}


def test_no_arguments_for_the_buffer_may_be_said_at_load(tmp_path):
    SimpleDDPG("MlpPolicy", Bandit(), buffer_size=50, policy_kwargs=TINY).save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=Bandit(), replay_buffer_kwargs=None)
    assert loaded.learn(5).replay_buffer.size() == 5


class SpaceEnv(gym.Env):
    """Never stepped: it only declares an action space."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = action_space


def box_with(low: float, high: float) -> spaces.Box:
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    space.low[1], space.high[1] = low, high  # Gymnasium refuses some of these at construction
    return space


@pytest.mark.parametrize(
    ("action_space", "message"),
    [
        (spaces.Discrete(3), r"must be a Box, got Discrete\(3\).*DQN"),
        (spaces.MultiBinary(2), "must be a Box"),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), "must have a finite lower and upper bound"),
        (box_with(-np.inf, 1.0), "must have a finite lower and upper bound"),
        (box_with(np.nan, 1.0), "must have a finite lower and upper bound"),
        (box_with(1.0, 1.0), "lower bound must be below the upper one"),
        (box_with(2.0, 1.0), "lower bound must be below the upper one"),
        (spaces.Box(0, 5, (1,), np.int64), "must be real numbers, got dtype int64"),
    ],
)
@pytest.mark.parametrize("sb3_s_error", [ValueError, AssertionError])
def test_action_spaces_that_cannot_work_are_refused(
    action_space: spaces.Space, message: str, sb3_s_error: type[Exception]
):
    with pytest.raises(sb3_s_error, match=message):
        SimpleDDPG("MlpPolicy", SpaceEnv(action_space))


def test_unknown_environment_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"'Pendulm-v1' cannot be made.*Did you mean: `Pendulum`"):
        SimpleDDPG("MlpPolicy", "Pendulm-v1")


def test_episodic_training_needs_one_environment():
    env = DummyVecEnv([Bandit, Bandit])
    with pytest.raises(ValueError, match=r"train_freq=\(1, 'episode'\) needs one environment, got 2"):
        SimpleDDPG("MlpPolicy", env, train_freq=(1, "episode"))


def test_a_model_for_episodes_loads_with_several_environments_but_does_not_learn(tmp_path):
    SimpleDDPG("MlpPolicy", Bandit(), train_freq=(1, "episode"), buffer_size=100, policy_kwargs=TINY).save(
        tmp_path / "m"
    )
    loaded = SimpleDDPG.load(tmp_path / "m", env=DummyVecEnv([Bandit, Bandit]))
    assert loaded.predict(np.zeros((2, 1), np.float32))[0].shape == (2, 1)
    with pytest.raises(AssertionError, match="only one env when doing episodic training"):
        loaded.learn(10)


def test_the_caller_s_dictionaries_stay_as_they_are():
    policy_kwargs, buffer_kwargs = {"net_arch": [8]}, {"handle_timeout_termination": True}
    SimpleDDPG("MlpPolicy", Chain(), n_steps=3, policy_kwargs=policy_kwargs, replay_buffer_kwargs=buffer_kwargs)
    assert policy_kwargs == {"net_arch": [8]}
    assert buffer_kwargs == {"handle_timeout_termination": True}


def test_constructing_and_learning_by_default_warns_of_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SimpleDDPG("MlpPolicy", "Pendulum-v1", batch_size=8).learn(110)
    assert [str(warning.message) for warning in caught] == []


def test_importing_the_package_loads_no_optional_library():
    import subprocess
    import sys

    code = "import sys, sb3_simple_ddpg; print([m for m in ('matplotlib', 'onnx', 'ray', 'tyro') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def advice_of(env: gym.Env | VecNormalize, **settings: object) -> list[str]:
    settings = {"buffer_size": 1_000, "policy_kwargs": TINY, **settings}
    model = SimpleDDPG("MlpPolicy", env, **settings)
    model.learn(1)
    return checks.advice(model)


def test_a_healthy_setting_gets_no_advice():
    assert advice_of(gym.make("Pendulum-v1")) == []


def test_wide_action_bounds_get_no_advice_since_networks_never_see_them():
    assert advice_of(Bandit(low=-50.0, high=3.0)) == []
    assert advice_of(Bandit(low=295.0, high=302.0)) == []


def test_noise_in_the_environment_s_unit_gets_advice():
    (sentence,) = advice_of(Bandit(low=-50.0, high=50.0), action_noise=NormalActionNoise(np.zeros(1), 5 * np.ones(1)))
    assert "standard deviation of 5" in sentence
    assert advice_of(Bandit(low=-50.0, high=50.0), action_noise=0.1) == []


@pytest.mark.parametrize(("threads", "units", "expected"), [(2, 64, 1), (2, 400, 0), (1, 64, 0)])
def test_several_threads_for_small_networks_get_advice(threads: int, units: int, expected: int):
    th.set_num_threads(threads)
    try:
        found = advice_of(Bandit(), policy_kwargs={"net_arch": [units]})
    finally:
        th.set_num_threads(1)
    assert len(found) == expected
    assert all("torch.set_num_threads(1)" in sentence for sentence in found)


def test_no_noise_gets_advice():
    (sentence,) = advice_of(Bandit(), action_noise=None)
    assert "no action noise" in sentence


def test_a_batch_larger_than_the_buffer_gets_advice():
    (sentence,) = advice_of(Bandit(), buffer_size=100, batch_size=256)
    assert "batch_size=256 is larger than buffer_size=100" in sentence


def test_huge_observations_get_advice_unless_they_are_normalized():
    def make_huge() -> gym.Env:
        space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        return gym.wrappers.TransformObservation(Bandit(), lambda observation: observation + 5_000, space)

    (sentence,) = advice_of(make_huge())
    assert "Observations reach 5000" in sentence
    assert advice_of(VecNormalize(DummyVecEnv([make_huge]))) == []


@pytest.mark.parametrize(("verbose", "expected"), [(0, 0), (1, 1)])
def test_advice_goes_to_the_log_at_verbose_one(verbose: int, expected: int, tmp_path):
    model = SimpleDDPG("MlpPolicy", Bandit(), action_noise=None, buffer_size=300, policy_kwargs=TINY, verbose=verbose)
    model.set_logger(configure(str(tmp_path), ["log"]))
    model.learn(1)
    model.logger.close()
    assert (tmp_path / "log.txt").read_text().count("There is no action noise") == expected


def test_model_has_a_silent_logger_before_it_learns():
    model = SimpleDDPG("MlpPolicy", Bandit(), policy_kwargs=TINY)
    assert isinstance(model.logger, Logger)
    assert model.logger.output_formats == []


def test_save_and_load_twice_keeps_settings_and_predictions(tmp_path):
    settings = {
        "critic_learning_rate": 2e-3, "max_grad_norm": 1.0, "action_noise": 0.3, "n_steps": 3, "stats_window_size": 7,
        "buffer_size": 200, "learning_starts": 5, "batch_size": 8,
        "policy_kwargs": {**TINY, "last_layer_init": 3e-3},
    }  # fmt: skip
    model = SimpleDDPG("MlpPolicy", Chain(), 1e-3, seed=0, **settings).learn(20)
    expected, _ = model.predict(np.eye(3, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # SB3 would warn that n_steps is ignored
        for path in (tmp_path / "once", tmp_path / "twice"):
            model.save(path)
            model = SimpleDDPG.load(path, env=Chain())
    assert model.predict(np.eye(3, dtype=np.float32))[0].tolist() == expected.tolist()
    assert (model.critic_lr_schedule(1.0), model.max_grad_norm, model.n_steps) == (2e-3, 1.0, 3)
    assert model.replay_buffer.n_steps == 3
    assert model.action_noise.scale == 0.3
    assert model.policy_kwargs == settings["policy_kwargs"]
    updates = model._n_updates
    model.learn(10, reset_num_timesteps=False)
    assert model._n_updates == updates + 10


def test_saved_files_hold_no_network_twice(tmp_path):
    """What `save` pickles must not contain tensors: they belong to the weights, and `load` would restore old ones."""
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    excluded = set(model._excluded_save_params())
    for name, value in vars(model).items():
        if name not in excluded:
            assert not isinstance(value, th.Tensor | th.nn.Module | th.optim.Optimizer), name
            assert not (isinstance(value, list) and value and isinstance(value[0], th.Tensor)), name
