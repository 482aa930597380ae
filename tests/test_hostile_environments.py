"""Environments that break their promises: each ends in an error that says what, which and when, in bounded time.

Not here: NaN and infinity in general (`test_guards.py`), and environments that `check_env` would accept.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.safety.checks import NonFiniteError
from sb3_simple_ddpg.safety.environments import DeadEnvironmentError
from sb3_simple_ddpg.sb3 import plugin
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
    "another_axis": (
        VECTOR, lambda _, o: o[:, None], ValueError, r"shape \(3, 1\), .* return np.reshape\(observation, \(3,\)\)",
    ),
    "too_long": (VECTOR, lambda _, o: np.tile(o, 2), ValueError, r"shape \(6,\), its observation_space has \(3,\)"),
    "nothing": (VECTOR, lambda *_: None, ValueError, r"shape \(\), its observation_space has \(3,\)"),
    "words": (VECTOR, lambda *_: np.array(["a", "b", "c"]), ValueError, "dtype <U1, its obs.* holds float32"),
    "objects": (VECTOR, lambda *_: np.array([None] * 3), ValueError, "dtype object"),
    "some_objects": (VECTOR, lambda *_: np.array([1.0, None, 2], dtype=object), ValueError, r"None, 2\], dtype=object"),
    "words_in_objects": (VECTOR, lambda *_: np.array(["1"] * 3, dtype=object), ValueError, "dtype object"),
    "one_number_for_all": (VECTOR, lambda *_: 0.5, ValueError, r"shape \(\), its observation_space has \(3,\)"),
    "complex": (VECTOR, lambda _, o: o.astype(complex), ValueError, "dtype complex128"),
    "ragged": (VECTOR, lambda *_: [[1.0], [2.0, 3.0], []], ValueError, "inhomogeneous shape"),
    "image_in_zero_to_one": (
        CHANNEL_LAST, lambda _, o: o / 255, ValueError, "dtype float64, its .* holds uint8, which would lose",
    ),
    "part_of_a_class": (spaces.Discrete(3), lambda *_: 1.5, ValueError, "dtype float64, .* holds int64, .* lose"),
    "no_class": (spaces.Discrete(3), lambda *_: np.nan, ValueError, "values from nan to nan"),
    "class_too_high": (spaces.Discrete(3), lambda *_: 3, ValueError, r"the observation 3, .* not in .*Discrete\(3\)"),
    "class_below_zero": (spaces.Discrete(3), lambda *_: np.array([-1]), ValueError, "is not in its space"),
    "two_bits": (spaces.MultiBinary(2), lambda *_: [0, 300], ValueError, "int64, .* holds int8, .*from 0 to 300"),
    "brighter_than_white": (
        CHANNEL_LAST, lambda _, o: o.astype(int) + 256, ValueError, "dtype int64, .* holds uint8, which would lose",
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


class Counting(gym.Env[Any, np.ndarray]):
    """Episodes of five steps; the observation is the step, written down by `write`."""

    def __init__(self, space: spaces.Space[Any], write: Any) -> None:
        self.observation_space, self.write = space, write
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.write(0), {}

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return self.write(self.steps), 0.0, False, self.steps == 5, {}


TWO = spaces.Box(-100, 100, (2,), np.float32)
ONE = spaces.Box(-100, 100, (1,), np.float32)
#: Space, what the environment returns at step t, and what is stored then.
MANNERS: dict[str, tuple[spaces.Space[Any], Any, Any]] = {
    "objects": (TWO, lambda t: np.array([0.5, t], dtype=object), lambda t: [0.5, t]),
    "objects_of_many_kinds": (TWO, lambda t: np.array([Fraction(1, 2), np.float32(t)], object), lambda t: [0.5, t]),
    "decimals": (TWO, lambda t: [Decimal("0.5"), t], lambda t: [0.5, t]),
    "arrays_in_objects": (TWO, lambda t: np.array([0.5, np.full((), t)], dtype=object), lambda t: [0.5, t]),
    "row": (TWO, lambda t: np.array([[0.5, t]]), lambda t: [0.5, t]),
    "row_of_a_row": (TWO, lambda t: np.array([[[0.5, t]]], dtype=object), lambda t: [0.5, t]),
    "list": (TWO, lambda t: [0.5, t], lambda t: [0.5, t]),
    "tuple": (TWO, lambda t: (0.5, t), lambda t: [0.5, t]),
    "tensor": (TWO, lambda t: th.tensor([0.5, t]), lambda t: [0.5, t]),
    "less_axes": (spaces.Box(-100, 100, (1, 2)), lambda t: np.array([0.5, t]), lambda t: [[0.5, t]]),
    "scalar": (ONE, lambda t: np.float64(t), lambda t: [t]),
    "python_number": (ONE, lambda t: t, lambda t: [t]),
    "truth": (ONE, lambda t: t > 2, lambda t: [float(t > 2)]),
    "bits_as_truths": (spaces.MultiBinary(2), lambda t: [True, t > 2], lambda t: [1, int(t > 2)]),
    "bits_as_numbers": (spaces.MultiBinary(2), lambda t: np.array([1.0, t > 2]), lambda t: [1, int(t > 2)]),
    "class_as_float": (spaces.Discrete(6), lambda t: float(t), lambda t: [t]),
    "class_as_array": (spaces.Discrete(6), lambda t: np.array([t]), lambda t: [t]),
    "class_as_object": (spaces.Discrete(6), lambda t: np.array(t, dtype=object), lambda t: [t]),
    "class_as_truth": (spaces.Discrete(2), lambda t: t > 2, lambda t: [int(t > 2)]),
    "classes_as_list": (spaces.MultiDiscrete([2, 6]), lambda t: [1.0, float(t)], lambda t: [1, t]),
    "bytes_as_integers": (spaces.Box(0, 255, (2,), np.uint8), lambda t: np.array([255, t]), lambda t: [255, t]),
    "bytes_as_floats": (spaces.Box(0, 255, (2,), np.uint8), lambda t: np.array([255.0, t]), lambda t: [255, t]),
}


@pytest.mark.parametrize("keyed", [False, True], ids=["alone", "key"])
@pytest.mark.parametrize(
    ("manner", "kind"),
    [(manner, "dummy") for manner in MANNERS]
    + [(manner, "single") for manner in ("objects", "row", "class_as_array")]
    + [(manner, "subprocesses") for manner in ("objects", "row", "class_as_float", "bytes_as_integers")],
)
def test_what_says_the_same_in_another_form_is_stored_as_the_space_says(manner, kind, keyed):
    if kind == "subprocesses" and os.name == "nt":
        pytest.skip("forked")
    space, write, expected = MANNERS[manner]

    def make() -> gym.Env[Any, Any]:
        if not keyed:
            return Counting(space, write)
        return Counting(
            spaces.Dict({"a": space, "b": TWO}), lambda t: {"a": write(t), "b": np.array([0.5, t], np.float32)}
        )

    env: Any = make()
    if kind != "single":
        env = DummyVecEnv([make] * 2) if kind == "dummy" else SubprocVecEnv([make] * 2, start_method="fork")
    model = SimpleDDPG("MultiInputPolicy" if keyed else "MlpPolicy", env, **settings(learning_starts=4)).learn(24)
    assert model._n_updates > 0
    buffer = model.replay_buffer
    stored, following = (each["a"] if keyed else each for each in (buffer.observations, buffer.next_observations))
    assert stored.dtype == space.dtype
    for row in range(24 // model.n_envs):
        for index in range(model.n_envs):  # after the fifth step the next episode begins
            np.testing.assert_array_equal(stored[row, index], expected(row % 5))
            np.testing.assert_array_equal(following[row, index], expected(row % 5 + 1))
    env.close()


@pytest.mark.parametrize("write", [lambda t: np.ones(1), lambda t: "abc", lambda t: None, lambda t: np.ones((2, 1))])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_the_last_observation_of_an_episode_is_looked_at_too(vec_env, normalize, write):
    """It comes in the info, and one number would be spread over both places of the next observation in silence."""
    if os.name == "nt":
        pytest.skip("forked")
    right = lambda t: np.array([0.5, t], np.float32)  # noqa: E731
    makers = [lambda: Counting(TWO, right), lambda: Counting(TWO, lambda t: write(t) if t == 5 else right(t))]
    env = vec_env(makers) if vec_env is DummyVecEnv else SubprocVecEnv(makers, start_method="fork")
    model = SimpleDDPG("MlpPolicy", VecNormalize(env) if normalize else env, **settings())
    with pytest.raises(ValueError, match=r"^Environment 1, at the end of an episode, gave an observation of"):
        model.learn(20)
    assert model.num_timesteps == 8
    env.close()


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
    monkeypatch.setattr(plugin, "_PATIENCE", 60)
    model = make_model(DummyVecEnv([lambda: Endless(VECTOR)]), VECTOR, train_freq=(1, "episode"))
    with pytest.raises(RuntimeError, match=r"No episode has ended for 61 timesteps.*use train_freq=\(n, 'step'\)"):
        model.learn(20)


def test_many_short_episodes_are_waited_for_however_long_that_is(monkeypatch):
    monkeypatch.setattr(plugin, "_PATIENCE", 8)
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


def late_short() -> Dummy:
    return Hostile(lambda _, observation: observation[:1], VECTOR)


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
    with pytest.raises(ValueError, match=r"Environment 0 gave an observation of shape \(1,\), its"):
        make_model(env, VECTOR).learn(100)
    env.close()


def test_connection_error_of_something_else_is_passed_on():
    class Lost(BaseCallback):
        def _on_step(self) -> bool:
            raise ConnectionResetError("the logging server")

    with pytest.raises(ConnectionResetError, match="the logging server"):
        make_model(DummyVecEnv([mild]), VECTOR).learn(10, Lost())


# --- environments of callbacks -------------------------------------------------------------------------------------


class Playing(BaseCallback):
    """Plays with an environment of its own, without a vectorised one around, from the tenth timestep on."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__()
        self.env = env

    def _on_step(self) -> bool:
        if self.num_timesteps == 10:
            self.env.reset(seed=0)
            for _ in range(30):
                self.env.step(np.zeros(2, np.float32))
        return True


class PlayingWithTheSame(BaseCallback):
    """Evaluates on the training environment."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 10:
            evaluate_policy(self.model, self.training_env, 10, warn=False)
        return True


def evaluated_on(env: Any) -> EvalCallback:
    return EvalCallback(env, eval_freq=5, n_eval_episodes=20, verbose=0, warn=False)


def learn_until_it_fails(env: VecEnv, callback: Any) -> pytest.ExceptionInfo[Exception]:
    model = make_model(env, VECTOR)
    with pytest.raises(Exception, match=r".") as raised:  # which one, the caller looks at
        model.learn(100, callback)
    return raised


def two(deed: Any, in_reset: bool = False) -> DummyVecEnv:
    return DummyVecEnv([lambda: Dummy(VECTOR), lambda: Hostile(deed, VECTOR, in_reset)])


@pytest.mark.parametrize("in_reset", [False, True], ids=["step", "reset"])
@pytest.mark.parametrize("wrapped", [lambda callback: callback, lambda callback: [callback, Never()], lambda callback:
                                     EveryNTimesteps(5, callback)], ids=["alone", "list", "event"])  # fmt: skip
@pytest.mark.parametrize(
    ("deed", "error"), [(explode, ZeroDivisionError), (lambda _, o: o[:1], ValueError), (lambda *_: None, ValueError)]
)
def test_error_of_an_evaluation_environment_is_not_blamed_on_training(deed, error, wrapped, in_reset):
    evaluation = evaluated_on(two(deed, in_reset))
    evaluation.eval_freq = 1 if isinstance(wrapped(evaluation), EveryNTimesteps) else 5
    raised = learn_until_it_fails(DummyVecEnv([mild]), wrapped(evaluation))
    assert raised.type is error
    assert raised.value.__notes__ == ["Raised by environment 1 of the callback EvalCallback, at timestep 5 of learn."]


class Never(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_error_in_training_is_not_blamed_on_the_callback():
    raised = learn_until_it_fails(two(explode), [evaluated_on(DummyVecEnv([mild])), Never()])
    assert raised.value.__notes__ == ["Raised by environment 1, at timestep 38 of learn."]


def test_error_of_an_environment_that_a_callback_made_itself_is_named():
    raised = learn_until_it_fails(DummyVecEnv([mild]), Playing(Hostile(explode)))
    assert raised.value.__notes__ == ["Raised by an environment of the callback Playing, at timestep 10 of learn."]


def test_error_of_the_training_environment_in_a_callback_says_both():
    # The evaluation takes the tenth step further, to the twentieth.
    raised = learn_until_it_fails(DummyVecEnv([lambda: Hostile(explode)]), PlayingWithTheSame())
    (note,) = raised.value.__notes__
    assert note == (
        "Raised by environment 0, which the callback PlayingWithTheSame played with, at timestep 10 of learn."
    )


def test_an_environment_inside_an_environment_is_not_the_one_that_is_named():
    class Imagining(Dummy):
        """Steps a vectorised environment of its own, as planners do."""

        def __init__(self, inside: DummyVecEnv) -> None:
            super().__init__(VECTOR)
            self.inside = inside
            inside.reset()

        def step(self, action: np.ndarray) -> Any:
            self.inside.step(np.zeros((2, 2), np.float32))
            return super().step(action)

    env = DummyVecEnv([mild, mild, lambda: Imagining(DummyVecEnv([lambda: Hostile(explode), mild]))])
    raised = learn_until_it_fails(env, None)
    assert raised.value.__notes__ == ["Raised by environment 2, at timestep 57 of learn."]


def test_error_of_a_callback_itself_is_blamed_on_no_environment():
    class Failing(BaseCallback):
        def _on_step(self) -> bool:
            raise ZeroDivisionError("a plot")

    raised = learn_until_it_fails(DummyVecEnv([mild]), Failing())
    assert not hasattr(raised.value, "__notes__")


def test_numbers_that_are_not_finite_in_an_evaluation_are_not_blamed_on_training():
    evaluation = evaluated_on(two(lambda _, o: o * np.float32("nan")))
    raised = learn_until_it_fails(DummyVecEnv([mild]), evaluation)
    assert raised.type is NonFiniteError
    assert "At timestep 5, in the callback EvalCallback. Stored so far" in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no SIGKILL")
@pytest.mark.parametrize(("maker", "code"), [(killed, -9), (exploding, 1)])
@pytest.mark.parametrize("training", [DummyVecEnv, SubprocVecEnv])
def test_a_process_of_an_evaluation_that_dies_is_named_and_training_is_left_alone(training, maker, code):
    before = multiprocessing.active_children(), threading.active_count()
    env = DummyVecEnv([mild] * 2) if training is DummyVecEnv else SubprocVecEnv([mild] * 2, start_method="fork")
    # Forked: waiting for the dead one would be for ever, unless somebody looks.
    evaluation = evaluated_on(SubprocVecEnv([mild, maker, mild], start_method="fork"))
    model = make_model(env, VECTOR)
    named = rf"^Environment 1 of the callback EvalCallback \(process \d+\) .* exit code {code} at timestep 10\."
    other_type = pytest.warns(UserWarning, match="same type") if training is DummyVecEnv else contextlib.nullcontext()
    with other_type, pytest.raises(DeadEnvironmentError, match=named):
        model.learn(100, evaluation)
    evaluation.eval_env.close()
    assert model.learn(10, reset_num_timesteps=False).num_timesteps == 20
    env.close()
    assert (multiprocessing.active_children(), threading.active_count()) == before


@pytest.mark.skipif(os.name == "nt", reason="forked")
@pytest.mark.parametrize("in_callback", [False, True], ids=["training", "evaluation"])
def test_observations_that_processes_send_and_nobody_can_stack_name_the_environment(in_callback):
    env = SubprocVecEnv([mild, late_short], start_method="fork")
    training = SubprocVecEnv([mild, mild], start_method="fork") if in_callback else env
    raised = learn_until_it_fails(training, evaluated_on(env) if in_callback else None)
    assert raised.type is ValueError
    assert str(raised.value).startswith("Environment 1 gave an observation of shape (1,), its observation_space has")
    place = ["1 of the callback EvalCallback, at timestep 10", "1, at timestep 38"][not in_callback]
    assert raised.value.__notes__ == [f"Raised by environment {place} of learn."]
    for each in {env, training}:
        each.close()


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
    monkeypatch.setattr("sb3_simple_ddpg.experiment.runs.LONGEST_EPISODE", 30)
    gym.register("TestForever-v0", lambda: Endless(VECTOR))
    out = tmp_path / "run"
    small = ["--set", "policy_kwargs.net_arch=[8]", "learning_starts=20", "batch_size=8", "buffer_size=500"]
    assert cli.main(["train", "--env", "TestForever-v0", "--timesteps", "40", *small, "--out", str(out)]) == 2
    assert "No episode has ended for 30 timesteps: evaluate with a time limit" in capsys.readouterr().err
    assert (out / "model.zip").exists()
