"""Tests of `zoo.py`: RL Zoo's real commands train, replay and tune SimpleDDPG.

Not here: how well it learns; each command runs for a few hundred timesteps.
"""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_simple_ddpg import MlpPolicy, SimpleDDPG

ZOO_IS_MISSING = any(importlib.util.find_spec(name) is None for name in ("rl_zoo3", "requests"))
SHORT = ("learning_starts:100", "buffer_size:1000")

# The second environment that the zoo makes, that of the first trial, gives no number for a reward.
BROKEN_PENDULUM = """
import itertools
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

numbers = itertools.count()

class BrokenPendulum(PendulumEnv):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.broken = next(numbers) == 1

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("nan") if self.broken else reward, terminated, truncated, info

gym.register("BrokenPendulum-v1", BrokenPendulum, max_episode_steps=200)
"""

runs_the_zoo = pytest.mark.skipif(ZOO_IS_MISSING, reason='needs pip install "sb3-simple-ddpg[zoo]"')


def zoo(folder: Path, script: str, *arguments: str, plugin: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m rl_zoo3.<script> --algo ddpg --env Pendulum-v1 --gym-packages sb3_simple_ddpg.zoo ...`."""
    command = [sys.executable, "-m", f"rl_zoo3.{script}", "--algo", "ddpg", "--env", "Pendulum-v1", "-f", "logs"]
    command += ["--gym-packages", "sb3_simple_ddpg.zoo"] if plugin else []
    command += ["--device", "cpu", "--num-threads", "1", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def printed_returns(process: subprocess.CompletedProcess[str]) -> list[str]:
    assert process.returncode == 0, process.stderr
    return re.findall(r"Episode Reward: (\S+)", process.stdout)


def returns_of(model: SimpleDDPG, n_episodes: int) -> list[str]:
    """What `rl_zoo3.enjoy` prints: the environment is seeded once, with 0."""
    env = gym.make("Pendulum-v1")
    returns = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            over = terminated or truncated
        returns.append(f"{total:.2f}")
    return returns


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the zoo has trained for 500 timesteps, 400 of them with updates."""
    folder = tmp_path_factory.mktemp("zoo")
    settings = ["-n", "500", "--eval-freq", "250", "--eval-episodes", "1", "--save-freq", "250", "--seed", "1"]
    process = zoo(folder, "train", *settings, "--hyperparams", *SHORT)
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr
    return folder


def test_missing_zoo_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match=re.escape('pip install "sb3-simple-ddpg[zoo]"')):
        runpy.run_module("sb3_simple_ddpg.zoo")


def test_import_replaces_ddpg_in_the_table_that_the_scripts_share(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithms = {"ddpg": object, "td3": object}
    monkeypatch.setitem(sys.modules, "rl_zoo3", SimpleNamespace(ALGOS=algorithms))
    runpy.run_module("sb3_simple_ddpg.zoo")
    assert algorithms == {"ddpg": SimpleDDPG, "td3": object}


@pytest.mark.long
@runs_the_zoo
def test_train_makes_a_simple_ddpg_with_the_hyperparameters_of_the_zoo(trained: Path) -> None:
    path = trained / "logs/ddpg/Pendulum-v1_1/Pendulum-v1.zip"
    data, _, _ = load_from_zip_file(path)
    assert data is not None
    assert data["policy_class"] is MlpPolicy

    model = SimpleDDPG.load(path)
    # From ddpg.yml of the zoo; the first and the last differ from the defaults of SimpleDDPG.
    assert model.gamma == 0.98
    assert model.lr_schedule(1.0) == 1e-3
    assert model.train_freq == TrainFreq(1, TrainFrequencyUnit.STEP)
    assert model.gradient_steps == 1
    assert model.policy.net_arch == [400, 300]
    noise = model.action_noise
    noise = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
    assert isinstance(noise, NormalActionNoise)
    np.testing.assert_array_equal(noise._sigma, [0.1])
    # From the command line.
    assert (model.learning_starts, model.buffer_size, model.seed) == (100, 1000, 1)
    # Updates begin once 100 timesteps are over: at the 101st.
    assert (model.num_timesteps, model._n_updates) == (500, 400)


@pytest.mark.long
@runs_the_zoo
@pytest.mark.parametrize(
    ("option", "file"),
    [([], "Pendulum-v1"), (["--load-best"], "best_model"), (["--load-checkpoint", "250"], "rl_model_250_steps")],
    ids=["last", "best", "checkpoint"],
)
def test_enjoy_replays_the_saved_policy(trained: Path, option: list[str], file: str) -> None:
    process = zoo(trained, "enjoy", "-n", "400", "--no-render", *option)
    model = SimpleDDPG.load(trained / f"logs/ddpg/Pendulum-v1_1/{file}.zip", device="cpu")
    assert printed_returns(process) == returns_of(model, n_episodes=2)
    assert "Warning" not in process.stderr


@pytest.mark.long
@runs_the_zoo
def test_training_goes_on_from_a_saved_agent(trained: Path, tmp_path: Path) -> None:
    agent = trained / "logs/ddpg/Pendulum-v1_1/rl_model_250_steps.zip"
    process = zoo(tmp_path, "train", "-i", str(agent), "-n", "300", "--eval-freq", "-1", "--hyperparams", *SHORT)
    assert process.returncode == 0, process.stderr
    before, after = SimpleDDPG.load(agent), SimpleDDPG.load(tmp_path / "logs/ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    # `learn` counts timesteps anew, updates it does not: 150 and 200 more, save that `before` was written in the middle
    # of a timestep, ahead of its update.
    assert (before._n_updates, after._n_updates) == (149, 349)
    assert any(not th.equal(*pair) for pair in zip(before.actor.parameters(), after.actor.parameters(), strict=True))


@pytest.mark.long
@runs_the_zoo
def test_other_settings_of_the_zoo_reach_the_model(tmp_path: Path) -> None:
    settings = ["n_envs:2", "normalize:True", "noise_type:'ornstein-uhlenbeck'", "learning_rate:'lin_1e-3'"]
    settings += ["gradient_steps:-1", "policy_kwargs:dict(net_arch=[16])", *SHORT]
    process = zoo(tmp_path, "train", "-n", "400", "--eval-freq", "-1", "--hyperparams", *settings)
    assert process.returncode == 0, process.stderr

    model = SimpleDDPG.load(tmp_path / "logs/ddpg/Pendulum-v1_1/Pendulum-v1.zip")
    assert isinstance(model.action_noise, VectorizedActionNoise | OrnsteinUhlenbeckActionNoise)
    assert "OrnsteinUhlenbeckActionNoise" in repr(model.action_noise)
    assert model.policy.net_arch == [16]
    assert model.lr_schedule(0.5) == 0.5e-3
    # 100 timesteps without an update, then two updates for the two timesteps of each step.
    assert (model.num_timesteps, model._n_updates) == (400, 300)
    # The normaliser is stored beside the agent, and applied again.
    process = zoo(tmp_path, "enjoy", "-n", "200", "--no-render")
    assert len(printed_returns(process)) == 1
    assert "Loading running average" in process.stdout


@pytest.mark.long
@runs_the_zoo
def test_optimize_searches_with_simple_ddpg(tmp_path: Path) -> None:
    settings = ["-n", "300", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--seed", "1"]
    settings += ["--pruner", "none", "--no-optim-plots", "--optimization-log-path", "trials"]
    process = zoo(tmp_path, "train", "-optimize", *settings, "--hyperparams", *SHORT)
    assert process.returncode == 0, process.stderr

    (report,) = (tmp_path / "logs/ddpg").glob("report_Pendulum-v1_2-trials-*.csv")
    trials = pd.read_csv(report)
    assert trials["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert np.isfinite(trials["value"]).all()
    for number, trial in trials.iterrows():
        model = SimpleDDPG.load(tmp_path / f"trials/trial_{number}/best_model.zip")
        assert model.gamma == pytest.approx(1 - trial["params_one_minus_gamma"])  # printed in decimals
        assert model.batch_size == 2 ** trial["params_batch_size_pow"]
        assert model.tau == pytest.approx(trial["params_tau"])
        assert model._n_updates > 0


@pytest.mark.long
@runs_the_zoo
def test_optimize_gives_up_a_trial_that_diverges_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_PENDULUM)
    settings = ["-n", "300", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--seed", "1"]
    settings += ["--pruner", "none", "--no-optim-plots", "--env", "BrokenPendulum-v1"]
    settings += ["--gym-packages", "broken", "sb3_simple_ddpg.zoo"]
    process = zoo(tmp_path, "train", "-optimize", *settings, "--hyperparams", *SHORT, plugin=False)
    assert process.returncode == 0, process.stderr
    assert "reward of environment 0 is nan" in process.stdout
    (report,) = (tmp_path / "logs/ddpg").glob("report_BrokenPendulum-v1_2-trials-*.csv")
    assert pd.read_csv(report)["state"].tolist() == ["PRUNED", "COMPLETE"]


@pytest.mark.long
@runs_the_zoo
def test_agent_of_sb3_is_refused_with_the_cure_and_replayed_once_converted(tmp_path: Path) -> None:
    process = zoo(tmp_path, "train", "-n", "200", "--eval-freq", "-1", "--hyperparams", *SHORT, plugin=False)
    assert process.returncode == 0, process.stderr
    sb3_returns = printed_returns(zoo(tmp_path, "enjoy", "-n", "200", "--no-render", plugin=False))
    assert len(sb3_returns) == 1

    refused = zoo(tmp_path, "enjoy", "-n", "200", "--no-render")
    assert refused.returncode != 0
    last_line = refused.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ValueError")
    assert "SimpleDDPG.from_sb3" in last_line

    path = tmp_path / "logs/ddpg/Pendulum-v1_1/Pendulum-v1.zip"
    SimpleDDPG.from_sb3(path).save(path)
    assert printed_returns(zoo(tmp_path, "enjoy", "-n", "200", "--no-render")) == sb3_returns
