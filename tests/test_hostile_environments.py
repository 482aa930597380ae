"""Environments that break their promises: each ends in an error that says what, which and when, in bounded time.

Not here: NaN and infinity in general (`test_guards.py`), and environments that `check_env` would accept.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from sb3_simple_ddpg import SimpleDDPG, cli, simple_ddpg
from sb3_simple_ddpg.failures import DeadEnvironmentError
from tests.environments import Bandit
from tests.side_by_side import CHANNEL_LAST, DICT_SPACES, SMALL_CNN, SMALL_COMBINED, VECTOR, Dummy, settings


class Hostile(Dummy):
    """Behaves for 20 steps, counted over episodes, then does what it is told to."""

    def __init__(self, deed: Any = None, space: spaces.Space[Any] = VECTOR, in_reset: bool = False) -> None:
        super().__init__(space)
        self.deed, self.in_reset, self.total = deed, in_reset, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        if self.in_reset and self.total >= 20:
            observation = self.deed(self, observation)
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *others = super().step(action)
        self.total += 1
        if self.total >= 20 and not self.in_reset:
            observation = self.deed(self, observation)
        return observation, *others


def explode(*_: Any) -> None:
    raise ZeroDivisionError("the simulator fell over")


def change_observation_space(env: Hostile, _: Any) -> np.ndarray:
    env.observation_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
    return env.observation_space.sample()


def change_action_space(env: Hostile, observation: np.ndarray) -> np.ndarray:
    env.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
    return observation


def without_a_key(_: Hostile, observation: dict[str, Any]) -> dict[str, Any]:
    return {"a": observation["a"]}


DEEDS: dict[str, tuple[spaces.Space[Any], Any, type[Exception], str]] = {
    "one_number": (VECTOR, lambda _, o: o[:1], ValueError, r"shape \(1,\), its observation_space has \(3,\)"),
    "another_axis": (VECTOR, lambda _, o: o[None], ValueError, r"shape \(1, 3\), its observation_space has \(3,\)"),
    "too_long": (VECTOR, lambda _, o: np.tile(o, 2), ValueError, r"shape \(6,\), its observation_space has \(3,\)"),
    "nothing": (VECTOR, lambda *_: None, ValueError, r"shape \(\), its observation_space has \(3,\)"),
    "words": (VECTOR, lambda *_: np.array(["a", "b", "c"]), ValueError, "dtype <U1, its obs.* holds float32"),
    "objects": (VECTOR, lambda *_: np.array([None] * 3), ValueError, "dtype object"),
    "complex": (VECTOR, lambda _, o: o.astype(complex), ValueError, "dtype complex128"),
    "ragged": (VECTOR, lambda *_: [[1.0], [2.0, 3.0], []], ValueError, "inhomogeneous shape"),
    "image_in_zero_to_one": (
        CHANNEL_LAST, lambda _, o: o / 255, ValueError, "dtype float64, its .* holds uint8, which would lose",
    ),
    "missing_key": (DICT_SPACES["vectors"], without_a_key, ValueError, "without the key 'b'"),
    "no_dict": (DICT_SPACES["vectors"], lambda _, o: o["a"], ValueError, "without the key 'a'"),
    "key_of_another_shape": (
        DICT_SPACES["vectors"], lambda _, o: {**o, "b": o["a"]}, ValueError, r"key 'b', gave .* of shape \(3,\)",
    ),
    "exception": (VECTOR, explode, ZeroDivisionError, "the simulator fell over"),
    "changed_observation_space": (VECTOR, change_observation_space, ValueError, r"shape \(5,\).*may not change"),
    "changed_action_space": (VECTOR, change_action_space, ValueError, r"action space from Box\(-1.*to Box\(-2"),
}  # fmt: skip


def make_model(env: VecEnv, space: spaces.Space[Any], **changes: Any) -> SimpleDDPG:
    if isinstance(space, spaces.Dict):
        return SimpleDDPG("MultiInputPolicy", env, **settings(policy_kwargs=SMALL_COMBINED, **changes))
    if space is CHANNEL_LAST:
        return SimpleDDPG("CnnPolicy", env, **settings(policy_kwargs=SMALL_CNN, **changes))
    return SimpleDDPG("MlpPolicy", env, **settings(**changes))


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("in_reset", [False, True], ids=["step", "reset"])
def test_error_says_what_is_wrong_where_and_when(deed, in_reset):
    space, action, error, said = DEEDS[deed]
    env = DummyVecEnv([lambda: Dummy(space), lambda: Hostile(action, space, in_reset)])
    model = make_model(env, space)
    with pytest.raises(error, match=said) as raised:
        model.learn(100)
    # The twentieth step; or the reset after the third episode of seven.
    before = 40 if in_reset else 38
    assert raised.value.__notes__ == [f"Raised by environment 1, at timestep {before} of learn."]
    assert model.num_timesteps == before
    assert model.replay_buffer.size() == before // 2
    # What was learned is there, and learning can go on in an environment that keeps its promises.
    model.set_env(DummyVecEnv([lambda: Dummy(space)] * 2))
    assert model.learn(10, reset_num_timesteps=False).num_timesteps == before + 10


def test_traceback_of_the_environment_is_kept():
    with pytest.raises(ZeroDivisionError) as raised:
        make_model(DummyVecEnv([lambda: Hostile(explode)]), VECTOR).learn(100)
    assert raised.traceback[-1].name == "explode"


def test_environment_is_as_it_was_after_learning():
    env = DummyVecEnv([lambda: Dummy(VECTOR)])
    model = make_model(env, VECTOR).learn(10)
    before = set(vars(env))
    model.learn(10)
    assert set(vars(env)) == before


@pytest.mark.parametrize("reward", [None, np.nan, "much", [1.0, 2.0]])
def test_rewards_that_are_no_numbers_end_learning(reward):
    class Odd(Dummy):
        def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            observation, _, *others = super().step(action)
            return observation, reward, *others

    with pytest.raises((ValueError, TypeError, FloatingPointError)):
        make_model(DummyVecEnv([lambda: Odd(VECTOR)]), VECTOR).learn(20)


# --- episodes ------------------------------------------------------------------------------------------------------


class Endless(Dummy):
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


def test_episodes_that_never_end_are_learned_from():
    model = make_model(DummyVecEnv([lambda: Endless(VECTOR)]), VECTOR).learn(50)
    assert (model.num_timesteps, model._episode_num, model._n_updates) == (50, 0, 40)


def test_waiting_for_an_episode_that_never_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(simple_ddpg, "_PATIENCE", 60)
    model = make_model(DummyVecEnv([lambda: Endless(VECTOR)]), VECTOR, train_freq=(1, "episode"))
    with pytest.raises(RuntimeError, match=r"No episode has ended for 61 timesteps.*use train_freq=\(n, 'step'\)"):
        model.learn(20)


def test_many_short_episodes_are_waited_for_however_long_that_is(monkeypatch):
    monkeypatch.setattr(simple_ddpg, "_PATIENCE", 8)
    model = make_model(DummyVecEnv([lambda: Dummy(VECTOR)]), VECTOR, train_freq=(30, "episode"))
    assert model.learn(4)._episode_num == 30  # of seven steps each


def test_episodes_that_end_at_once_are_learned_from():
    model = SimpleDDPG("MlpPolicy", Bandit(), **settings()).learn(50)
    assert (model._episode_num, model._n_updates) == (50, 40)
    assert model.replay_buffer.dones[:50].all()


# --- subprocesses --------------------------------------------------------------------------------------------------


class Killed(Dummy):
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Exploding(Dummy):
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == 5:
            raise ZeroDivisionError("the simulator fell over")
        return super().step(action)


def mild() -> Dummy:
    return Dummy(VECTOR)


def killed() -> Dummy:
    return Killed(VECTOR)


def exploding() -> Dummy:
    return Exploding(VECTOR)


def short() -> Dummy:
    return Hostile(lambda _, observation: observation[:1])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no SIGKILL")
@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize(("maker", "code"), [(killed, -9), (exploding, 1)])
def test_a_process_that_dies_is_named_and_none_is_left_behind(where, maker, code):
    before = multiprocessing.active_children(), threading.active_count()
    makers = [mild, mild, mild]
    makers[where] = maker
    # Forked: each process holds the pipes of the others open, so that waiting for the dead would be for ever.
    env = VecMonitor(SubprocVecEnv(makers, start_method="fork"))
    model = make_model(env, VECTOR)
    started = time.monotonic()
    with pytest.raises(DeadEnvironmentError, match=rf"^Environment {where} \(process \d+\) .* exit code {code} at"):
        model.learn(100)
    assert time.monotonic() - started < 20
    assert model.replay_buffer.size() == 5
    env.close()
    assert (multiprocessing.active_children(), threading.active_count()) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_that_died_before_learning_is_named():
    env = SubprocVecEnv([mild, mild], start_method="fork")
    model = make_model(env, VECTOR)
    os.kill(env.processes[1].pid, signal.SIGKILL)
    env.processes[1].join()
    with pytest.raises(DeadEnvironmentError, match=r"Environment 1 .* exit code -9"):
        model.learn(100)


@pytest.mark.skipif(os.name == "nt", reason="forked")
def test_wrong_shapes_from_subprocesses_are_refused():
    env = SubprocVecEnv([short, short], start_method="fork")
    with pytest.raises(ValueError, match=r"An environment gave an observation of shape \(1,\), its"):
        make_model(env, VECTOR).learn(100)
    env.close()


def test_connection_error_of_something_else_is_passed_on():
    class Lost(BaseCallback):
        def _on_step(self) -> bool:
            raise ConnectionResetError("the logging server")

    with pytest.raises(ConnectionResetError, match="the logging server"):
        make_model(DummyVecEnv([mild]), VECTOR).learn(10, Lost())


# --- a run on disk -------------------------------------------------------------------------------------------------


class FallsOver(gym.Wrapper[Any, Any, Any, Any]):
    """Raises at the 300th step of all, in training and not before."""

    steps = 0

    def step(self, action: np.ndarray) -> Any:
        FallsOver.steps += 1
        if FallsOver.steps == 300:
            raise ZeroDivisionError("the simulator fell over")
        return super().step(action)


@pytest.fixture
def fresh_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # Random play before training takes up to 20 episodes of 10 steps, each of which ends at once.
    monkeypatch.setattr(FallsOver, "steps", 0)


@pytest.mark.usefixtures("fresh_count")
def test_what_was_learned_is_saved_when_the_environment_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    wrapper = ["--wrapper", "tests.test_hostile_environments.FallsOver"]
    arguments = ["--env", "TestBandit-v0", "--timesteps", "1000", *wrapper, *small, "--no-progress"]
    status = cli.main(["train", *arguments, "--checkpoint-every", "50", "--out", str(out)])
    said = capsys.readouterr()
    assert status == 1
    assert "error: ZeroDivisionError: the simulator fell over" in said.err
    assert "Raised by environment 0, at timestep 279 of learn." in said.err
    assert "Traceback" in said.err
    assert ", in step" in said.err  # where in the environment
    assert "the simulator fell over" in (out / "error.txt").read_text()
    assert "Traceback" in (out / "error.txt").read_text()
    assert SimpleDDPG.load(out / "model.zip").num_timesteps == 279
    assert json.loads((out / "checkpoints" / "step_250" / "manifest.json").read_text())["num_timesteps"] == 250
    # The environment repaired (its 300th step is past), the run goes on from the newest checkpoint.
    assert cli.main(["train", "--resume", str(out), "--no-progress", "--eval-episodes", "1"]) == 0
    assert SimpleDDPG.load(out / "model.zip").num_timesteps == 1000
    assert not (out / "error.txt").exists()


def test_evaluation_of_episodes_that_never_end_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sb3_simple_ddpg.runs.LONGEST_EPISODE", 30)
    gym.register("TestForever-v0", lambda: Endless(VECTOR))
    out = tmp_path / "run"
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    assert cli.main(["train", "--env", "TestForever-v0", "--timesteps", "40", *small, "--out", str(out)]) == 2
    assert "No episode has ended for 30 timesteps: evaluate with a time limit" in capsys.readouterr().err
    assert (out / "model.zip").exists()
