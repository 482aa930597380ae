"""Exact resume: a run that was stopped and resumed equals the run that was not, and no checkpoint is ever lost.

Not here: 200 kills in a row (`make crash-test`) and SB3's `save` and `load` (`test_persistence.py`).
"""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas
import pytest
import torch as th
from filelock import FileLock
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.checkpoint import folder as checkpoint
from sb3_simple_ddpg.checkpoint import folder_lock
from sb3_simple_ddpg.checkpoint.buffer import CheckpointError, decode, encode, read_buffer
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.exploration import ColoredNoise
from tests.environments import Bandit, Chain
from tests.side_by_side import CHANNEL_LAST, DICT_SPACES, SMALL_CNN, SMALL_COMBINED, Dummy, settings

ROOT = Path(__file__).parent.parent


class Walk(gym.Env[Any, np.ndarray]):
    """A random walk of 9 steps that draws from `np_random`: two runs agree only if its random state does."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.normal(size=2), 0
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = self.state + 0.3 * action + 0.1 * self.np_random.normal(size=2)
        self.steps += 1
        return self.state.copy(), -float(np.square(self.state).sum()), False, self.steps == 9, {}


gym.register("TestWalk-v0", Walk, max_episode_steps=10)


def walks(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Walk())] * n_envs)


def subprocesses() -> SubprocVecEnv:
    return SubprocVecEnv([Walk, Walk], start_method="fork")


def flips(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(BitFlippingEnv(3, continuous=True))] * n_envs)


HER = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20, "policy_kwargs": SMALL_COMBINED}
CASES: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "one_environment": ("MlpPolicy", Walk, {}),
    "three_environments": ("MlpPolicy", lambda: walks(3), {"gradient_steps": -1}),
    "subprocesses": ("MlpPolicy", subprocesses, {}),
    "full_buffer": ("MlpPolicy", lambda: walks(2), {"buffer_size": 26}),
    "n_step": ("MlpPolicy", lambda: walks(2), {"n_steps": 3, "buffer_size": 34}),
    "her": ("MultiInputPolicy", lambda: flips(1), HER),
    "her_full": ("MultiInputPolicy", lambda: flips(2), {**HER, "buffer_size": 36}),
    "her_infos": ("MultiInputPolicy", lambda: flips(2), {**HER, "replay_buffer_kwargs": {"copy_info_dict": True}}),
    "memory_saving": (
        "MlpPolicy",
        lambda: walks(2),
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ),
    "memory_saving_full": (
        "MlpPolicy",
        lambda: walks(2),
        {
            "optimize_memory_usage": True,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
            "buffer_size": 22,
        },
    ),
    "dict": ("MultiInputPolicy", lambda: Dummy(DICT_SPACES["vectors"]), {"policy_kwargs": SMALL_COMBINED}),
    "images": ("CnnPolicy", lambda: Dummy(CHANNEL_LAST), {"policy_kwargs": SMALL_CNN, "batch_size": 4}),
    "normalized": ("MlpPolicy", lambda: VecNormalize(VecMonitor(DummyVecEnv([Walk] * 2)), clip_obs=5.0), {}),
    "normalized_dict": (
        "MultiInputPolicy",
        lambda: VecNormalize(DummyVecEnv([lambda: Dummy(DICT_SPACES["vectors"])]), norm_obs_keys=["a"]),
        {"policy_kwargs": SMALL_COMBINED},
    ),
    "stacked_frames": ("MlpPolicy", lambda: VecFrameStack(walks(2), 3), {}),
    "wandering_noise": (
        "MlpPolicy",
        lambda: walks(2),
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.5 * np.ones(2), dt=1.0)},
    ),
    "colored_noise": ("MlpPolicy", lambda: walks(2), {"action_noise": ColoredNoise(sigma=0.5)}),
    "schedules": (
        "MlpPolicy",
        Walk,
        {"action_noise": lambda left: 0.5 * left, "learning_rate": lambda left: 1e-3 * left},
    ),
    "dropout": ("MlpPolicy", Walk, {"policy_kwargs": {"net_arch": [16], "activation_fn": lambda: th.nn.Dropout(0.3)}}),
    "warm_up_only": ("MlpPolicy", lambda: walks(2), {"learning_starts": 1000}),
    "every_9_timesteps": ("MlpPolicy", Walk, {"train_freq": 9, "gradient_steps": 3}),
    "whole_episodes": ("MlpPolicy", Walk, {"train_freq": (1, "episode"), "gradient_steps": -1}),
    "sgd": ("MlpPolicy", Walk, {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.SGD}}),
    "no_timeouts": ("MlpPolicy", Walk, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    "no_seed": ("MlpPolicy", lambda: walks(2), {"seed": None}),
}


class Stop(BaseCallback):
    """What a kill does, as far as files go: nothing after this timestep happens."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise KeyboardInterrupt
        return True


def random_streams() -> list[Any]:
    return [random.random(), np.random.rand(), th.rand(1).item()]


def scramble() -> None:
    """Another process would not have the streams where this one has them."""
    random.seed(99)
    np.random.seed(99)
    th.manual_seed(99)


def stored_rows(buffer: ReplayBuffer) -> dict[str, Any]:
    """Everything in the buffer that was ever written, and where it goes on."""
    found: dict[str, Any] = {"pos": buffer.pos, "full": buffer.full}
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "ep_start"):
        value = getattr(buffer, name, {})
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}{key}": part[: buffer.size()] for key, part in parts.items()}
    if isinstance(buffer, HerReplayBuffer):
        found |= {"length": buffer.ep_length[: buffer.size()], "start": buffer._current_ep_start}
        # Without the wall time of Monitor.
        found["successes"] = [[info.get("is_success") for info in row] for row in buffer.infos[: buffer.size()]]
    return found


def assert_equal_runs(resumed: SimpleDDPG, expected: SimpleDDPG) -> None:
    """To the last bit: weights, optimizer states, buffer, counters, statistics."""
    for name, parameters in expected.get_parameters().items():
        found = resumed.get_parameters()[name]
        flat, wanted = th.utils._pytree.tree_leaves(found), th.utils._pytree.tree_leaves(parameters)
        assert len(flat) == len(wanted)
        for one, other in zip(flat, wanted, strict=True):
            assert th.equal(one, other) if isinstance(one, th.Tensor) else one == other, name
    rows, wanted_rows = stored_rows(resumed.replay_buffer), stored_rows(expected.replay_buffer)
    assert rows.keys() == wanted_rows.keys()
    for name, wanted in wanted_rows.items():
        np.testing.assert_array_equal(rows[name], wanted, err_msg=name)
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "_current_progress_remaining"):
        assert getattr(resumed, name) == getattr(expected, name), name
    statistics = [[(e["r"], e["l"]) for e in model.ep_info_buffer] for model in (resumed, expected)]
    assert statistics[0] == statistics[1]
    for one, other in zip(
        *[checkpoint._wrappers(model.env, VecNormalize) for model in (resumed, expected)], strict=True
    ):
        assert str(checkpoint._statistics(one)) == str(checkpoint._statistics(other))


def train_both_ways(
    policy: str, make_env: Callable[[], Any], changes: dict[str, Any], folder: Path, total: int = 96, every: int = 40
) -> tuple[SimpleDDPG, SimpleDDPG, list[list[Any]]]:
    """The run that was stopped and resumed, the one that was not, and where each left the random streams."""
    models = []
    for _ in range(2):
        scramble()
        models.append(SimpleDDPG(policy, make_env(), **settings(**changes)))
    expected, stopped = models
    # One after the other: each starts with the streams that one seed gives.
    expected.set_random_seed(3)
    expected.learn(total, ExactCheckpointCallback(folder / "uninterrupted", every))
    streams = [random_streams()]
    stopped.set_random_seed(3)
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(total, CallbackList([ExactCheckpointCallback(folder / "stopped", every), Stop(every + 30)]))
    stopped.env.close()
    scramble()
    resumed = SimpleDDPG.resume(folder / "stopped", make_env())
    done = resumed.num_timesteps
    assert every <= done < every + 30
    resumed.learn(total - done, ExactCheckpointCallback(folder / "stopped", every), reset_num_timesteps=False)
    streams.append(random_streams())
    return resumed, expected, streams


@pytest.fixture
def closed_environments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Subprocesses end with the test."""
    made: list[VecEnv] = []
    real = SubprocVecEnv.__init__

    def remember(self: SubprocVecEnv, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(SubprocVecEnv, "__init__", remember)
    yield
    for env in made:
        env.close()


# --- resumed equals uninterrupted ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("closed_environments")
@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_uninterrupted_run(case, tmp_path):
    policy, make_env, changes = CASES[case]
    resumed, expected, streams = train_both_ways(policy, make_env, changes, tmp_path)
    assert case == "warm_up_only" or expected._n_updates > 0
    assert_equal_runs(resumed, expected)
    assert streams[0] == streams[1]


def refuse_to_move(model_or_env: Any) -> None:
    raise AssertionError("the environment was moved")


def test_resume_neither_steps_nor_resets_the_environment(tmp_path, monkeypatch):
    SimpleDDPG("MlpPolicy", walks(2), **settings()).learn(20).save_checkpoint(tmp_path)
    env = VecMonitor(DummyVecEnv([Walk] * 2))
    for name in ("reset", "step_async", "step_wait"):
        monkeypatch.setattr(env, name, refuse_to_move)
        monkeypatch.setattr(env.venv, name, refuse_to_move)
    resumed = SimpleDDPG.resume(tmp_path, env)
    assert resumed.num_timesteps == 20
    assert resumed.replay_buffer.size() == 10


def test_checkpoint_after_learn_goes_on_like_the_live_model(tmp_path):
    live = SimpleDDPG("MlpPolicy", walks(2), **settings()).learn(40)
    path = live.save_checkpoint(tmp_path)
    assert path == tmp_path / "step_40"
    live.learn(40, reset_num_timesteps=False)
    streams = random_streams()
    scramble()
    resumed = SimpleDDPG.resume(tmp_path, walks(2)).learn(40, reset_num_timesteps=False)
    assert_equal_runs(resumed, live)
    assert random_streams() == streams


def test_a_model_that_has_not_learned_yet_can_be_resumed(tmp_path):
    fresh = SimpleDDPG("MlpPolicy", Walk(), **settings())
    fresh.save_checkpoint(tmp_path)
    fresh.learn(40)
    scramble()
    assert_equal_runs(SimpleDDPG.resume(tmp_path, Walk()).learn(40), fresh)


@pytest.mark.long
def test_compiled_run_is_resumed_exactly_and_compiled(tmp_path):
    # Networks, batch and environment of test_compiled.py: what was compiled there is found in the cache.
    changes = {"compile_updates": True, "policy_kwargs": {"net_arch": [32, 32]}, "batch_size": 64}
    resumed, expected, streams = train_both_ways("MlpPolicy", lambda: gym.make("Pendulum-v1"), changes, tmp_path)
    assert resumed._compiled.failure is None
    assert resumed._compiled.seconds > 0
    assert_equal_runs(resumed, expected)
    assert streams[0] == streams[1]


def test_random_numbers_of_spaces_and_generators_inside_the_environment_go_on(tmp_path):
    class Drawing(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.generator = np.random.default_rng()

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + self.generator.normal(size=2) + self.action_space.sample(), *others

    live = SimpleDDPG("MlpPolicy", Drawing(), **settings()).learn(20)
    live.save_checkpoint(tmp_path)
    live.learn(30, reset_num_timesteps=False)
    resumed = SimpleDDPG.resume(tmp_path, Drawing()).learn(30, reset_num_timesteps=False)
    assert_equal_runs(resumed, live)


class Helper:
    """Holds a stream in one of several ways, one object deeper than the environment."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream


class Slotted:
    __slots__ = ("stream",)

    def __init__(self, stream: Any) -> None:
        self.stream = stream


def drawing(hold: Callable[[], tuple[Any, Callable[[Any], float]]]) -> type[Walk]:
    """A walk pushed by one number a step from what `hold` gives, which is made in the constructor."""

    class Drawing(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.draw = hold()

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + self.draw(self.held), *others

    return Drawing


def closed_over() -> tuple[Any, Callable[[Any], float]]:
    stream = np.random.default_rng()
    return None, lambda _: stream.normal()


STREAMS: dict[str, Callable[[], tuple[Any, Callable[[Any], float]]]] = {
    "random_state": lambda: (np.random.RandomState(), lambda held: held.normal()),
    "python": lambda: (random.Random(), lambda held: held.gauss(0, 1)),
    "torch": lambda: (th.Generator().manual_seed(th.seed() % 2**32), lambda held: th.rand(1, generator=held).item()),
    "generator_of_another_kind": lambda: (np.random.Generator(np.random.SFC64()), lambda held: held.normal()),
    "one_object_deeper": lambda: (Helper(np.random.default_rng()), lambda held: held.stream.normal()),
    "two_objects_deeper": lambda: (Helper(Helper(random.Random())), lambda held: held.stream.stream.random()),
    "in_slots": lambda: (Slotted(np.random.RandomState()), lambda held: held.stream.rand()),
    "in_a_dict": lambda: ({"a": {3: np.random.default_rng()}}, lambda held: held["a"][3].normal()),
    "in_a_list_in_a_tuple": lambda: (([np.random.RandomState()],), lambda held: held[0][0].rand()),
    "a_bound_method": lambda: (np.random.default_rng().normal, lambda held: held()),
    "closed_over": closed_over,
    "spawning": lambda: (np.random.default_rng(), lambda held: held.spawn(1)[0].normal()),
    "the_bits_alone": lambda: (np.random.PCG64(), lambda held: np.random.Generator(held).normal()),
    "a_space_deeper": lambda: ([spaces.Box(-1, 1, (1,), np.float64)], lambda held: held[0].sample().item()),
    "a_dict_space": lambda: (
        spaces.Dict({"a": spaces.Tuple([spaces.Box(-1, 1, (1,), np.float64)])}),
        lambda held: held.sample()["a"][0].item(),
    ),
}


def go_on_both_ways(
    make_env: Callable[[], Any], folder: Path, callback: bool = False, **changes: Any
) -> tuple[SimpleDDPG, SimpleDDPG]:
    """The model that was resumed, in an environment of its own, and the one that went on."""
    live = SimpleDDPG("MlpPolicy", make_env(), **settings(**changes))
    # 23 of 25 timesteps: in mid-episode. With a callback, from inside `learn`.
    live.learn(23, ExactCheckpointCallback(folder, 23) if callback else None)
    if not callback:
        live.save_checkpoint(folder)
    live.learn(30, reset_num_timesteps=False)
    scramble()
    return SimpleDDPG.resume(folder, make_env()).learn(30, reset_num_timesteps=False), live


@pytest.mark.parametrize("stream", STREAMS)
def test_random_streams_that_the_environment_holds_go_on(stream, tmp_path):
    assert_equal_runs(*go_on_both_ways(drawing(STREAMS[stream]), tmp_path))


@pytest.mark.parametrize("make", [np.random.RandomState, random.Random], ids=["numpy", "python"])
def test_random_streams_of_wrappers_go_on(make, tmp_path):
    class Shaken(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self, env: gym.Env[Any, Any]) -> None:
            super().__init__(env)
            self.stream = make()

        def observation(self, observation: Any) -> Any:
            return observation + self.stream.uniform(0, 1)

    class ShakenTogether(VecEnvWrapper):
        def __init__(self, venv: VecEnv) -> None:
            super().__init__(venv)
            self.stream = make()

        def reset(self) -> Any:
            return self.venv.reset() + self.stream.uniform(0, 1)

        def step_wait(self) -> Any:
            observations, *others = self.venv.step_wait()
            return observations + self.stream.uniform(0, 1), *others

    assert_equal_runs(*go_on_both_ways(lambda: Monitor(Shaken(Walk())), tmp_path / "inside"))
    together = go_on_both_ways(lambda: ShakenTogether(DummyVecEnv([lambda: Shaken(Walk())] * 2)), tmp_path / "outside")
    assert_equal_runs(*together)


def test_a_stream_that_a_reset_with_a_seed_makes_goes_on(tmp_path):
    class Old(Walk):
        """As environments of the old Gym: one stream, made anew where a seed is given."""

        stream: Any = None

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None or self.stream is None:
                self.stream = np.random.RandomState(seed)
                self.same = self.stream
            return self.state + self.stream.normal(), {}

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + self.same.normal(), *others

    assert_equal_runs(*go_on_both_ways(Old, tmp_path))


def test_two_names_of_np_random_stay_one_stream(tmp_path):
    class TwoNames(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.stream = self.np_random

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + self.stream.normal(), *others

    resumed, live = go_on_both_ways(TwoNames, tmp_path, seed=None)
    assert_equal_runs(resumed, live)
    inner = resumed.env.envs[0].unwrapped
    assert inner.stream is inner.np_random


MODULE_STREAM = np.random.default_rng(5)


def test_streams_of_the_class_and_of_its_module_go_on(tmp_path):
    class OfTheClass(Walk):
        stream = random.Random(4)

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + self.stream.random() + MODULE_STREAM.normal(), *others

    live = SimpleDDPG("MlpPolicy", OfTheClass(), **settings()).learn(23)
    live.save_checkpoint(tmp_path)
    live.learn(30, reset_num_timesteps=False)
    # Both runs draw from the one stream; what the first drew is taken back.
    resumed = SimpleDDPG.resume(tmp_path, OfTheClass()).learn(30, reset_num_timesteps=False)
    assert_equal_runs(resumed, live)


def test_running_statistics_of_gymnasium_wrappers_go_on(tmp_path):
    def env() -> gym.Env[Any, Any]:
        return gym.wrappers.NormalizeObservation(Walk())

    assert_equal_runs(*go_on_both_ways(env, tmp_path))


class Counter(Walk):
    """Each episode is longer than the one before, up to 9 steps: a curriculum."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Helper(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.course.stream += 1
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or self.steps > self.course.stream, info


@pytest.mark.parametrize("callback", [True, False], ids=["in_learn", "by_hand"])
def test_resume_names_what_it_cannot_restore(callback, tmp_path, capsys):
    go_on_both_ways(Counter, tmp_path, callback, verbose=1)
    said = capsys.readouterr().out
    assert said.count("A resumed run may differ from the uninterrupted one") == 1
    assert "stopped run in envs[0].env.course.stream (places in model.env)" in said
    assert "get_state() and set_state(state)" in said


def test_resume_names_a_file_that_was_read_from(tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text("0.5\n" * 1000)

    class Reading(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.file = data.open(encoding="utf-8")

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, *others = super().step(action)
            return observation + float(self.file.readline()), *others

    for model in go_on_both_ways(Reading, tmp_path / "run", True, verbose=1):
        model.env.envs[0].unwrapped.file.close()
    assert "in envs[0].env.file (places" in capsys.readouterr().out


@pytest.mark.usefixtures("closed_environments")
def test_resume_names_environments_of_other_processes_whose_first_observation_differs(tmp_path, capsys):
    env = drawing(STREAMS["python"])

    class FromTheStart(env):  # type: ignore[misc,valid-type]
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            observation, info = super().reset(seed=seed)
            return observation + self.held.random(), info

    go_on_both_ways(lambda: SubprocVecEnv([Walk, FromTheStart], start_method="fork"), tmp_path, True, verbose=1)
    assert "stopped run in the first observation of environment 1 (places" in capsys.readouterr().out


@pytest.mark.usefixtures("closed_environments")
@pytest.mark.parametrize("case", [*CASES, "pendulum", "wrapped"])
def test_resume_names_nothing_more_where_all_is_restored(case, tmp_path, capsys):
    more: dict[str, Any] = {
        "pendulum": ("MlpPolicy", lambda: gym.make("Pendulum-v1"), {}),
        "wrapped": (
            "MlpPolicy",
            lambda: gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(gym.make("TestWalk-v0"), 5)),
            {},
        ),
    }
    policy, make_env, changes = {**CASES, **more}[case]
    model = SimpleDDPG(policy, make_env(), **settings(**changes)).learn(20, ExactCheckpointCallback(tmp_path, 18))
    assert (next(tmp_path.glob("step_*")) / checkpoint.AFTERWARDS).exists()
    resumed = SimpleDDPG.resume(tmp_path, make_env())
    assert resumed._resumed.expected
    assert resumed._resumed.lost == []
    resumed.verbose = 1
    resumed.learn(20, reset_num_timesteps=False)
    said = capsys.readouterr().out
    if isinstance(unwrapped := vars(model.env.unwrapped).get("envs", [Walk()])[0].unwrapped, Dummy):
        assert re.search(
            r"stopped run in (venv\.)?envs\[0\](\.env)?\.actions \(places", said
        )  # it keeps all that it was ever given
        assert len(unwrapped.actions) > 0
    else:
        assert "resumed run" not in said


class Offering(Counter):
    def get_state(self) -> Any:
        return {"course": self.course.stream, "pair": (np.float32(0.1), None)}

    def set_state(self, state: Any) -> None:
        assert state["pair"] == [np.float32(0.1), None]  # tuples become lists
        self.course.stream = state["course"]


@pytest.mark.usefixtures("closed_environments")
@pytest.mark.parametrize("where", ["environment", "under_wrappers", "wrapper", "vec_env_wrapper", "process"])
def test_what_an_environment_gives_out_of_itself_is_restored(where, tmp_path, capsys):
    class Longer(gym.Wrapper[Any, Any, Any, Any]):
        number = 0

        def reset(self, **arguments: Any) -> Any:
            self.number += 1
            observation, info = super().reset(**arguments)
            return observation + self.number, info

        def get_state(self) -> Any:
            return self.number

        def set_state(self, state: Any) -> None:
            self.number = state

    class LongerTogether(VecEnvWrapper):
        number = 0

        def reset(self) -> Any:
            self.number += 1
            return self.venv.reset() + self.number

        def step_wait(self) -> Any:
            return self.venv.step_wait()

        get_state, set_state = Longer.get_state, Longer.set_state

    make_env: Callable[[], Any] = {
        "environment": Offering,
        "under_wrappers": lambda: Monitor(gym.wrappers.TimeLimit(Offering(), 8)),
        "wrapper": lambda: gym.wrappers.TimeLimit(Longer(Offering()), 8),
        "vec_env_wrapper": lambda: LongerTogether(VecNormalize(DummyVecEnv([Offering, lambda: Longer(Walk())]))),
        "process": lambda: SubprocVecEnv([Offering, Offering], start_method="fork"),
    }[where]
    assert_equal_runs(*go_on_both_ways(make_env, tmp_path, True, verbose=1))
    assert "A resumed run may" not in capsys.readouterr().out


def test_a_state_that_cannot_be_stored_is_refused_with_the_cure(tmp_path):
    class Odd(Offering):
        def get_state(self) -> Any:
            return {"course": self.course}

    model = SimpleDDPG("MlpPolicy", Odd(), **settings()).learn(20)
    with pytest.raises(
        ValueError, match=r"Odd\.get_state\(\) of model\.env\.envs\[0\]\.env must return numbers, strings"
    ):
        model.save_checkpoint(tmp_path)


def test_methods_of_other_arguments_are_not_taken_for_the_hooks(tmp_path):
    class Mujoco(Counter):
        def get_state(self) -> Any:
            raise AssertionError("not called")

        def set_state(self, positions: Any, velocities: Any) -> None:
            raise AssertionError("not called")

    go_on_both_ways(Mujoco, tmp_path)


def test_an_environment_that_takes_no_state_is_refused_where_one_is_stored(tmp_path):
    SimpleDDPG("MlpPolicy", Offering(), **settings()).learn(20).save_checkpoint(tmp_path)
    with pytest.raises(
        ValueError, match=r"what get_state\(\) of model\.env\.envs\[0\]\.env gave.*build `env` as for t"
    ):
        SimpleDDPG.resume(tmp_path, Counter())


def test_a_stream_without_a_state_is_named_once(tmp_path, capsys):
    env = drawing(lambda: (random.SystemRandom(), lambda held: held.random()))
    SimpleDDPG("MlpPolicy", env(), **settings(verbose=1)).learn(40, ExactCheckpointCallback(tmp_path, 10))
    said = capsys.readouterr().out
    assert said.count("The random state of envs[0].env.held is not in the checkpoint, since it cannot be read") == 1


def test_environment_without_a_random_state_is_named_in_the_log(tmp_path, capsys):
    class Opaque(Walk):
        np_random = None  # type: ignore[assignment]

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            self.state, self.steps = np.zeros(2), 0
            return self.state, {}

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.state, 0.0, False, False, {}

    model = SimpleDDPG("MlpPolicy", Opaque(), **settings(verbose=1))
    model.learn(20, ExactCheckpointCallback(tmp_path, 10))
    said = capsys.readouterr().out
    assert "The random state of environment 0 is not in the checkpoint" in said
    assert "no inside of an environment in mid-episode" in said


# --- the boundary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("handles", "timeout"), [(True, 1.0), (False, 0.0)])
def test_last_row_of_every_environment_is_marked_as_cut_off(tmp_path, handles, timeout):
    model = SimpleDDPG(
        "MlpPolicy", walks(2), **settings(replay_buffer_kwargs={"handle_timeout_termination": handles})
    ).learn(10)  # 5 rows of episodes of 9
    assert not model.replay_buffer.dones[:5].any()
    model.save_checkpoint(tmp_path)
    assert model.replay_buffer.dones[:5].tolist() == [[0, 0]] * 4 + [[1, 1]]
    assert model.replay_buffer.timeouts[:5].tolist() == [[0, 0]] * 4 + [[timeout, timeout]]
    assert model._last_obs is None  # the next learn resets


def test_n_step_returns_do_not_reach_over_a_checkpoint(tmp_path):
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings(n_steps=3, gamma=0.5, learning_starts=50))
    model.learn(8, ExactCheckpointCallback(tmp_path, 4))
    # Rewards are 1; the chain is cut after states 0 1 2 | 0 || and starts anew: 0 1 2 | 0.
    sums = [model.replay_buffer._get_samples(np.array([row])).rewards.item() for row in range(7)]
    assert sums == [1.75, 1.5, 1.0, 1.0, 1.75, 1.5, 1.0]
    discounts = [model.replay_buffer._get_samples(np.array([row])).discounts.item() for row in range(7)]
    assert discounts == [0.125, 0.25, 0.5, 0.5, 0.125, 0.25, 0.5]


def test_a_terminal_state_stays_one(tmp_path):
    model = SimpleDDPG("MlpPolicy", Bandit(), **settings()).learn(12)  # each step is an episode
    model.save_checkpoint(tmp_path)
    assert model.replay_buffer.dones[:12].all()
    assert not model.replay_buffer.timeouts.any()


@pytest.mark.parametrize("event", ["on_step", "on_rollout_end"])
def test_checkpoint_in_the_middle_of_a_rollout_is_refused(tmp_path, event):
    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if event == "on_step":
                self.model.save_checkpoint(tmp_path)
            return True

        def _on_rollout_end(self) -> None:
            self.model.save_checkpoint(tmp_path)

    with pytest.raises(ValueError, match=r"timestep 1 would lie in the middle of a rollout.*on_rollout_start"):
        SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(12, Save())
    assert list(tmp_path.iterdir()) == []


def test_callback_saves_every_so_many_timesteps_and_keeps_the_last(tmp_path):
    saved = []

    class Watch(ExactCheckpointCallback):
        def _save(self) -> None:
            super()._save()
            saved.append(self.model.num_timesteps)

    model = SimpleDDPG("MlpPolicy", walks(3), **settings())
    model.learn(60, Watch(tmp_path, 14, keep_last=2))
    # The first multiples of 3 at or beyond 14, 28, 42 and 56; 60 is where learning ends.
    assert saved == [15, 30, 42, 57]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_42", "step_57"]


def test_callback_saves_at_the_end_of_learning_where_one_is_due(tmp_path):
    SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(40, ExactCheckpointCallback(tmp_path, 20, keep_last=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_20", "step_40"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"every": 0}, "every"), ({"every": 10, "keep_last": 0}, "keep_last"), ({"every": 2.5}, "every")],
)
def test_callback_refuses_numbers_that_cannot_be_meant(tmp_path, arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        ExactCheckpointCallback(tmp_path, **arguments)


# --- files ---------------------------------------------------------------------------------------------------------


def test_buffer_file_holds_the_filled_rows_once_and_no_pickle(tmp_path):
    model = SimpleDDPG("MlpPolicy", walks(2), **settings(buffer_size=10_000)).learn(40)
    path = model.save_checkpoint(tmp_path) / checkpoint.BUFFER
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["observations"].shape == (20, 2, 2)
        # Each environment has episodes of 9: ends at rows 9, 18 and, cut off by the checkpoint, 20.
        assert arrays["next_observations"].shape == (3 * 2, 2)
        assert not any(arrays[name].dtype.hasobject for name in arrays.files)


def halfcheetah_model(n_transitions: int) -> SimpleDDPG:
    """A buffer of transitions shaped like HalfCheetah's, episodes of 1,000, numbers that no compression helps with."""

    class Shape(Walk):
        def __init__(self) -> None:
            self.observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float64)
            self.action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

    model = SimpleDDPG("MlpPolicy", Shape(), **settings(buffer_size=n_transitions + 1))
    observations = np.random.default_rng(0).normal(size=(n_transitions + 1, 1, 17))
    actions = np.random.default_rng(1).uniform(-1, 1, size=(n_transitions, 1, 6)).astype(np.float32)
    for row in range(n_transitions):
        over = row % 1000 == 999
        model.replay_buffer.add(
            observations[row],
            observations[row + 1] + over,
            actions[row],
            observations[row, 0, :1],
            np.array([over]),
            [{"TimeLimit.truncated": over}],
        )
    return model


def test_ten_thousand_transitions_of_halfcheetah_take_less_than_two_megabytes(tmp_path):
    model = halfcheetah_model(10_000)
    path = model.save_checkpoint(tmp_path) / checkpoint.BUFFER
    assert path.stat().st_size < 2_000_000
    other = halfcheetah_model(10_000)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        getattr(other.replay_buffer, name)[:] = -1
    read_buffer(other.replay_buffer, path)
    wanted = stored_rows(model.replay_buffer)
    for name, rows in stored_rows(other.replay_buffer).items():
        np.testing.assert_array_equal(rows, wanted[name], err_msg=name)


def test_replay_buffer_with_more_in_it_is_refused_with_the_alternative(tmp_path):
    class Weighted(ReplayBuffer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.weights = np.ones(self.buffer_size)

    model = SimpleDDPG("MlpPolicy", Walk(), **settings(replay_buffer_class=Weighted)).learn(5)
    with pytest.raises(ValueError, match=r"Weighted also holds weights: use model\.save and model\.save_"):
        model.save_checkpoint(tmp_path)


def test_replay_buffer_that_only_samples_otherwise_is_stored(tmp_path):
    model = SimpleDDPG("MlpPolicy", Walk(), **settings(replay_buffer_class=type("Mine", (ReplayBuffer,), {}))).learn(5)
    model.save_checkpoint(tmp_path)
    assert SimpleDDPG.resume(tmp_path, Walk()).replay_buffer.size() == 5


def test_infos_that_cannot_be_stored_are_refused(tmp_path):
    model = SimpleDDPG("MultiInputPolicy", flips(1), **settings(**CASES["her_infos"][2])).learn(10)
    model.replay_buffer.infos[3, 0] = {"what": object()}
    with pytest.raises(ValueError, match=r"got <object object .* keep it out of the infos"):
        model.save_checkpoint(tmp_path)
    assert list(tmp_path.glob("*step_*")) == []


# --- damage, full disks --------------------------------------------------------------------------------------------


def three_checkpoints(folder: Path) -> SimpleDDPG:
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    return model.learn(36, ExactCheckpointCallback(folder, 12))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.BUFFER, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink], ids=["short", "bit", "missing"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, name, damage):
    three_checkpoints(tmp_path)
    damage(tmp_path / "step_36" / name)
    with pytest.warns(RuntimeWarning, match=r"step_36 is damaged \(.*step_24 is used instead"):
        resumed = SimpleDDPG.resume(tmp_path, Walk())
    assert resumed.num_timesteps == 24
    # Going on replaces the damaged one.
    resumed.learn(12, ExactCheckpointCallback(tmp_path, 12), reset_num_timesteps=False)
    assert SimpleDDPG.resume(tmp_path, Walk()).num_timesteps == 36


def test_without_a_complete_checkpoint_the_error_names_each(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        SimpleDDPG.resume(tmp_path / "nothing", Walk())
    three_checkpoints(tmp_path)
    for path in tmp_path.iterdir():
        cut_short(path / checkpoint.STATE)
    with pytest.raises(CheckpointError, match=r"step_36 is damaged.*step_24 is damaged.*step_12 is damaged"):
        SimpleDDPG.resume(tmp_path, Walk())


def test_one_checkpoint_can_be_chosen(tmp_path):
    three_checkpoints(tmp_path)
    assert SimpleDDPG.resume(tmp_path / "step_12", Walk()).num_timesteps == 12


def test_files_of_a_newer_version_are_not_read(tmp_path):
    SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(5).save_checkpoint(tmp_path)
    manifest = tmp_path / "step_5" / checkpoint.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": checkpoint.FORMAT + 1}))
    with pytest.raises(CheckpointError, match="newer version"):
        SimpleDDPG.resume(tmp_path, Walk())


def test_checkpoints_of_format_1_are_resumed(tmp_path):
    """They held generators by the number of wrappers around them, and the seeds of the innermost VecEnv alone."""
    env = drawing(lambda: (np.random.default_rng(), lambda held: held.normal()))
    live = SimpleDDPG("MlpPolicy", Monitor(env()), **settings()).learn(23)
    path = live.save_checkpoint(tmp_path)
    inner = live.env.envs[0].unwrapped
    state = decode(json.loads((path / checkpoint.STATE).read_text()))
    del state["given"], state["random"]["streams"]
    state["random"]["generators"] = {
        "0.1.held": inner.held.bit_generator.state,
        "0.1.observation_space.0": inner.observation_space.np_random.bit_generator.state,
    }
    state["random"]["seeds"] = [None]
    (path / checkpoint.STATE).write_text(json.dumps(encode(state)))
    (path / checkpoint.AFTERWARDS).unlink(missing_ok=True)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["format"] = 1
    manifest["sha256"][checkpoint.STATE] = checkpoint._checksum(path / checkpoint.STATE)
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    live.learn(30, reset_num_timesteps=False)
    resumed = SimpleDDPG.resume(tmp_path, Monitor(env())).learn(30, reset_num_timesteps=False)
    assert_equal_runs(resumed, live)


# --- vectorised environments of other makers -----------------------------------------------------------------------


class OwnVecEnv(VecEnv):
    """Two walks, by somebody who left out `super().__init__()` and all that nobody had ever asked for."""

    def __init__(self) -> None:
        self.walks = [Walk(), Walk()]
        self.num_envs = 2
        self.observation_space, self.action_space = self.walks[0].observation_space, self.walks[0].action_space
        self.render_mode = None

    def reset(self) -> Any:
        return np.stack([walk.reset()[0] for walk in self.walks])

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = np.zeros((2, 2)), np.zeros(2), np.zeros(2, bool), [{}, {}]
        for index, walk in enumerate(self.walks):
            observations[index], rewards[index], _, dones[index], _ = walk.step(self.actions[index])
            if dones[index]:
                infos[index] = {"terminal_observation": observations[index].copy(), "TimeLimit.truncated": True}
                observations[index] = walk.reset()[0]
        return observations, rewards, dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        raise NotImplementedError

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return [False] * 2


class OverGymnasium(VecEnvWrapper):
    """As SuperSuit's: around a vectorised environment of Gymnasium, without `super().__init__()`."""

    def __init__(self) -> None:
        self.venv = gym.vector.SyncVectorEnv([Walk, Walk], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)  # type: ignore[assignment]
        self.num_envs = 2
        self.observation_space, self.action_space = self.venv.single_observation_space, self.venv.single_action_space
        self.render_mode = None

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return self.venv.reset()[0]

    def seed(self, seed: int | None = None) -> Any:
        return [None] * 2

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, given = self.venv.step(self.actions)
        infos: list[dict[str, Any]] = [{}, {}]
        for index in np.flatnonzero(truncated):
            infos[index] = {"terminal_observation": given["final_obs"][index], "TimeLimit.truncated": True}
        return observations, rewards, terminated | truncated, infos

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return [False] * 2

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        return [self.venv.get_attr(attr_name)] * self.num_envs

    def getattr_recursive(self, name: str) -> Any:
        raise AttributeError(name)

    def getattr_depth_check(self, name: str, already_found: bool) -> Any:
        return None


@pytest.mark.parametrize("make_env", [OwnVecEnv, OverGymnasium, lambda: VecNormalize(VecMonitor(OverGymnasium()))])
@pytest.mark.parametrize("callback", [True, False], ids=["in_learn", "by_hand"])
@pytest.mark.parametrize("seed", [None, 3])
def test_vectorised_environments_that_lack_what_sb3_sets_are_resumed_exactly(make_env, callback, seed, tmp_path):
    resumed, live = go_on_both_ways(make_env, tmp_path, callback, seed=seed)
    assert_equal_runs(resumed, live)


def test_seeds_that_were_given_are_used_after_resuming(tmp_path):
    live = SimpleDDPG("MlpPolicy", VecNormalize(walks(2)), **settings())
    live.learn(20)
    live.env.seed(77)
    live.save_checkpoint(tmp_path)
    resumed = SimpleDDPG.resume(tmp_path, VecNormalize(walks(2)))
    assert resumed.env.unwrapped._seeds == [77, 78]
    live.learn(30, reset_num_timesteps=False)
    resumed = SimpleDDPG.resume(tmp_path, VecNormalize(walks(2))).learn(30, reset_num_timesteps=False)
    assert_equal_runs(resumed, live)


def test_another_run_in_the_same_folder_is_refused_before_it_starts(tmp_path):
    three_checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"holds step_36 of another run.*name another folder"):
        three_checkpoints(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[str]:
    """The process 'ends' at the n-th file operation that a checkpoint is made of: nothing after it happens."""
    calls: list[str] = []

    def dying(module: Any, name: str) -> None:
        real = getattr(module, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) >= call:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, operation)

    for module, name in [(os, "fsync"), (os, "replace"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "write_text")]:
        dying(module, name)
    return calls


@pytest.mark.long
@pytest.mark.parametrize("again", [False, True], ids=["new", "same_timestep"])
def test_dying_at_any_file_operation_loses_no_checkpoint(tmp_path, monkeypatch, again):
    newest, survived = set(), False
    call = 0
    while not survived:
        call += 1
        folder = tmp_path / str(call)
        model = three_checkpoints(folder)
        if not again:
            model.learn(12, reset_num_timesteps=False)
        with monkeypatch.context() as context:
            stop_at(context, call)
            try:
                model.save_checkpoint(folder)
                survived = True
            except KeyboardInterrupt:
                pass
        resumed = SimpleDDPG.resume(folder, Walk())
        newest.add(resumed.num_timesteps)
        resumed.save_checkpoint(folder)  # clears away what was left
        assert all(path.name.startswith(("step_", ".lock")) for path in folder.iterdir())
        assert SimpleDDPG.resume(folder, Walk()).num_timesteps == resumed.num_timesteps
    assert call > 12  # that many places to die at
    assert newest == ({36} if again else {36, 48})


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_when_the_disk_is_full(tmp_path, monkeypatch, capsys):
    class FillUp(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 20:
                monkeypatch.setattr(os, "fsync", full_disk)
            return True

    model = SimpleDDPG("MlpPolicy", Walk(), **settings(verbose=1))
    model.learn(50, CallbackList([ExactCheckpointCallback(tmp_path, 12, keep_last=1), FillUp()]))
    assert model.num_timesteps == 50
    assert [path.name for path in tmp_path.iterdir()] == ["step_12"]
    said = capsys.readouterr().out
    assert "No checkpoint could be written at timestep 24 ([Errno 28] No space left on device)" in said
    assert "step_12" in said
    with pytest.raises(OSError, match="No space left"):  # asked for by hand, it is the caller's to handle
        model.save_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_real_limit_on_file_size_leaves_the_old_checkpoint(tmp_path):
    import resource

    model = three_checkpoints(tmp_path)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))
    try:
        model.learn(24, ExactCheckpointCallback(tmp_path, 12), reset_num_timesteps=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert model.num_timesteps == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_12", "step_24", "step_36"]
    assert SimpleDDPG.resume(tmp_path, Walk()).num_timesteps == 36


def test_run_goes_on_when_its_logs_find_the_disk_full(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CSVOutputFormat, "write", full_disk)
    monkeypatch.setattr(ResultsWriter, "write_row", full_disk)
    monkeypatch.setattr(os, "fsync", full_disk)
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    train = ["train", "--env", "TestWalk-v0", "--timesteps", "60", *small, "--eval-episodes", "0"]
    assert cli.main([*train, "--checkpoint-every", "20", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.count("No checkpoint could be written at timestep") == 3
    assert SimpleDDPG.load(tmp_path / "run" / "model.zip").num_timesteps == 60


# --- two that write into one folder --------------------------------------------------------------------------------


def second(folder: Path, what: str) -> None:
    """What another process does with the folder."""
    model = SimpleDDPG.resume(folder, Walk()) if what == "resume" else SimpleDDPG("MlpPolicy", Walk(), **settings())
    if what == "save":
        model.save_checkpoint(folder)
    if what == "learn":
        model.learn(30, ExactCheckpointCallback(folder, 10))
    if what == "wait":
        model.save_checkpoint(folder)
        sys.stdout.write("saved\n")
        sys.stdout.flush()
        sys.stdin.read()
    sys.stdout.write(f"timestep {model.num_timesteps}\n")


def second_told(folder: Path, what: str, said: Path) -> None:
    with said.open("w") as file, contextlib.redirect_stdout(file):
        try:
            second(folder, what)
        except Exception:
            traceback.print_exc(file=file)


def in_another_process(folder: Path, what: str) -> str:
    said = folder.parent / f"said_of_{folder.name}"
    process = multiprocessing.get_context("forkserver").Process(target=second_told, args=(folder, what, said))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    return said.read_text()


class Ask(BaseCallback):
    """At this timestep, do something and keep what it gives."""

    def __init__(self, at: int, what: Callable[[], Any]) -> None:
        super().__init__()
        self.at, self.what, self.answer = at, what, None

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            self.answer = self.what()
        return True


@pytest.mark.long
def test_a_second_process_is_refused_before_it_learns_and_may_read(tmp_path):
    questions = [Ask(at, lambda what=what: in_another_process(tmp_path, what)) for at, what in QUESTIONS]
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    model.learn(30, CallbackList([ExactCheckpointCallback(tmp_path, 10), *questions]))
    for question in questions[:2]:
        assert f"CheckpointError: Another process writes into {tmp_path}: wait until it has ended" in question.answer
        assert "timestep" not in question.answer
    assert questions[2].answer == "timestep 10\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_20", "step_30"]
    # Learning has ended, and so has the claim.
    assert "CheckpointError" in in_another_process(tmp_path, "save")  # step_30 of another run
    shutil.rmtree(tmp_path)
    assert in_another_process(tmp_path, "learn") == "timestep 30\n"


QUESTIONS = [(12, "learn"), (13, "save"), (14, "resume")]


def test_a_folder_saved_to_by_hand_stays_the_models_as_long_as_it_lives(tmp_path):
    model = SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(10)
    model.save_checkpoint(tmp_path)
    assert "Another process writes into" in in_another_process(tmp_path, "save")
    model.learn(10, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path)
    other = SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(50)
    with pytest.raises(
        ValueError, match=r"Another model of this process writes into .*: name another folder, go on with"
    ):
        other.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="Another model of this process"):
        other.learn(10, ExactCheckpointCallback(tmp_path, 5))
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_10", "step_20"]
    del model
    other.num_timesteps = 50  # which the refused call of learn has set back
    assert other.save_checkpoint(tmp_path).name == "step_50"


def test_a_resumed_model_takes_the_place_of_the_one_before(tmp_path):
    first = SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(10)
    first.save_checkpoint(tmp_path)
    second = SimpleDDPG.resume(tmp_path, Walk())
    second.learn(20, ExactCheckpointCallback(tmp_path, 10), reset_num_timesteps=False)
    second.save_checkpoint(tmp_path)
    first.learn(50, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="Another model of this process writes into"):
        first.save_checkpoint(tmp_path)


def test_nobody_takes_the_place_of_a_model_that_learns(tmp_path):
    def steal() -> Any:
        thief = SimpleDDPG.resume(tmp_path, Walk())
        with pytest.raises(ValueError, match="Another model of this process writes into"):
            thief.learn(10, ExactCheckpointCallback(tmp_path, 5), reset_num_timesteps=False)
        return True

    ask = Ask(15, steal)
    SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(30, CallbackList([ExactCheckpointCallback(tmp_path, 10), ask]))
    assert ask.answer is True
    assert SimpleDDPG.resume(tmp_path, Walk()).num_timesteps == 30


def test_a_run_that_was_interrupted_lets_go_of_its_folder(tmp_path):
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    with pytest.raises(KeyboardInterrupt):
        model.learn(30, CallbackList([ExactCheckpointCallback(tmp_path, 10), Stop(15)]))
    assert in_another_process(tmp_path, "resume") == "timestep 10\n"
    resumed = SimpleDDPG.resume(tmp_path, Walk())
    resumed.learn(20, ExactCheckpointCallback(tmp_path, 10), reset_num_timesteps=False)
    assert resumed.num_timesteps == 30


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills")
def test_a_killed_process_leaves_no_lock_behind_nor_does_a_child_of_it(tmp_path):
    program = "import sys, pathlib; from tests.test_checkpoint import second; second(pathlib.Path(sys.argv[1]), 'wait')"
    command = [sys.executable, "-c", program, str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "saved\n"
    assert "Another process writes into" in in_another_process(tmp_path, "save")
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    model.save_checkpoint(tmp_path)
    # A forked process, such as an environment's, outlives its parent here.
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    assert "Another process writes into" in in_another_process(tmp_path, "save")
    folder_lock.let_go(model, tmp_path)
    assert "timestep 0" in in_another_process(tmp_path, "save")
    os.close(writing)
    os.waitpid(child, 0)


def test_models_and_callbacks_with_a_claim_are_copied_and_pickled(tmp_path):
    callback = ExactCheckpointCallback(tmp_path / "checkpoints", 10)
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    model.learn(30, callback)
    model.save_checkpoint(tmp_path / "by_hand")
    callback.locals, callback.globals = {}, {}  # SB3's, which hold modules
    assert deepcopy(callback).folder == pickle.loads(pickle.dumps(callback)).folder == callback.folder
    copied = deepcopy(model)
    with pytest.raises(ValueError, match="Another model of this process writes into"):
        copied.save_checkpoint(tmp_path / "by_hand")
    assert model.save_checkpoint(tmp_path / "by_hand").name == "step_30"


def test_a_folder_that_was_removed_and_made_anew_is_claimed_anew(tmp_path):
    folder = tmp_path / "checkpoints"
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    model.save_checkpoint(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    model.save_checkpoint(folder)
    assert "Another process writes into" in in_another_process(folder, "save")


def test_the_lock_is_a_file_in_the_folder_and_goes_with_the_claim(tmp_path):
    model = SimpleDDPG("MlpPolicy", Walk(), **settings())
    model.save_checkpoint(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step_0", ".lock"}
    folder_lock.let_go(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0"]
    with FileLock(tmp_path / ".lock").acquire(timeout=0):
        other = SimpleDDPG("MlpPolicy", Walk(), **settings())
        with pytest.raises(ValueError, match="Another process writes into"):
            other.save_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_0"]


def test_where_files_cannot_be_locked_training_goes_on_without(tmp_path, monkeypatch):
    def no_locks(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    SimpleDDPG("MlpPolicy", Walk(), **settings()).learn(30, ExactCheckpointCallback(tmp_path, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_20", "step_30"]


# --- an environment that is not as for training --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (lambda: walks(3), "with 2 environments, got 3"),
        (lambda: VecNormalize(walks(2)), "holds 0 VecNormalize, the environment has 1"),
        (lambda: VecFrameStack(walks(2), 2), "Observation spaces do not match"),
    ],
)
def test_environment_that_is_not_as_for_training_is_refused(tmp_path, env, complaint):
    SimpleDDPG("MlpPolicy", walks(2), **settings()).learn(10).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        SimpleDDPG.resume(tmp_path, env())


def test_normaliser_of_other_keys_is_refused(tmp_path):
    def env(keys: list[str]) -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Dummy(DICT_SPACES["vectors"])]), norm_obs_keys=keys)

    SimpleDDPG("MultiInputPolicy", env(["a"]), **settings(policy_kwargs=SMALL_COMBINED)).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="has statistics of returns, observations:a, the environment's of returns, o"):
        SimpleDDPG.resume(tmp_path, env(["b"]))


# --- command line --------------------------------------------------------------------------------------------------


class CtrlC(gym.Wrapper[Any, Any, Any, Any]):
    """Ctrl-C at one step, counted over all environments."""

    at, steps = 0, 0

    def step(self, action: np.ndarray) -> Any:
        CtrlC.steps += 1
        if CtrlC.steps == CtrlC.at:
            raise KeyboardInterrupt
        return super().step(action)


def logs(folder: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Without times, which no two runs share."""
    monitor = pandas.read_csv(folder / "monitor.csv", skiprows=1).drop(columns="t")
    progress = pandas.read_csv(folder / "progress.csv").drop(columns=["time/fps", "time/time_elapsed"])
    return monitor, progress[sorted(progress.columns)]


@pytest.mark.parametrize("budget", [["--episodes", "34"], ["--timesteps", "340"]], ids=["episodes", "timesteps"])
def test_command_line_resumes_a_run_exactly(tmp_path, monkeypatch, capsys, budget):
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    wrapper = ["--wrapper", "tests.test_checkpoint.CtrlC", "--n-envs", "2", "--normalize"]
    train = ["train", "--env", "TestWalk-v0", *budget, *wrapper, *small, "--eval-episodes", "1"]
    train += ["--checkpoint-every", "100", "--out"]
    assert cli.main([*train, str(tmp_path / "uninterrupted")]) == 0
    # Random play before training takes 20 episodes of 9 steps.
    for name, value in (("steps", 0), ("at", 180 + 277)):
        monkeypatch.setattr(CtrlC, name, value)
    folder = tmp_path / "interrupted"
    assert cli.main([*train, str(folder)]) == 130
    assert f"simple-ddpg train --resume {folder}" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_100", "step_200"]
    scramble()
    assert cli.main(["train", "--resume", str(folder), "--eval-episodes", "1"]) == 0
    assert "Going on at timestep 200 of 340" in capsys.readouterr().out
    models = [SimpleDDPG.load(tmp_path / name / "model.zip") for name in ("interrupted", "uninterrupted")]
    assert models[0].num_timesteps == models[1].num_timesteps
    for resumed, expected in zip(*[model.policy.state_dict().values() for model in models], strict=True):
        assert th.equal(resumed, expected)
    for resumed, expected in zip(*[logs(tmp_path / name) for name in ("interrupted", "uninterrupted")], strict=True):
        pandas.testing.assert_frame_equal(resumed, expected)
    assert (folder / "vecnormalize.pkl").exists()
    # Resumed once more, it does what came after its newest checkpoint again, and nothing is logged twice.
    assert cli.main(["train", "--resume", str(folder), "--eval-episodes", "1"]) == 0
    for resumed, expected in zip(*[logs(tmp_path / name) for name in ("interrupted", "uninterrupted")], strict=True):
        pandas.testing.assert_frame_equal(resumed, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--env", "TestBandit-v0"], "leave out --env"),
        (["--timesteps", "10"], "leave out --timesteps"),
        (["--checkpoint-every", "10"], "leave out --checkpoint-every"),
        ([], "holds no readable config.json"),
    ],
)
def test_resume_refuses_other_settings_and_folders_without_a_run(tmp_path, capsys, arguments, complaint):
    assert cli.main(["train", "--resume", str(tmp_path), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_resume_of_a_run_without_checkpoints_says_how_to_get_them(tmp_path, capsys):
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    out = str(tmp_path / "run")
    train = ["train", "--env", "TestBandit-v0", "--timesteps", "30", *small, "--eval-episodes", "0", "--out", out]
    assert cli.main(train) == 0
    assert cli.main(["train", "--resume", out]) == 2
    assert (
        "holds no checkpoint: name the folder that was saved to. Checkpoints are written by" in capsys.readouterr().err
    )
    assert cli.main([*train, "--overwrite", "--checkpoint-every", "0"]) == 2
    assert "--checkpoint-every must be at least 1, got 0" in capsys.readouterr().err


def test_code_of_the_documentation_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "resume.md").read_text("utf-8")
    code, _methods = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"env": Walk()}
    code = code.replace("20_000", "120").replace("1_000", "50")
    exec(code.replace('checkpoints")  # by hand', 'by_hand")  # by hand'), names)
    assert names["model"].num_timesteps == 120
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["step_100", "step_50"]


# --- at random, for long -------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize(("script", "arguments"), [("crash_test", ["--kills", "3"]), ("soak", ["--timesteps", "8000"])])
def test_short_crash_test_and_soak_pass(script, arguments):
    command = [sys.executable, "-m", f"tests.long.{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["updates"] > 0
    assert figures["equal" if script == "crash_test" else "flat"] is True


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_checkpoints_every_thousand_steps_cost_less_than_three_percent(tmp_path):
    model = SimpleDDPG(
        "MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [256, 256]}, learning_starts=20_000, device="cpu"
    ).learn(20_000)
    started = time.perf_counter()
    model.train(100, model.batch_size)
    training = 10 * (time.perf_counter() - started)  # a thousand updates alone, collecting not counted
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        model.save_checkpoint(tmp_path)
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[2] < 0.03 * training, (seconds, training)
