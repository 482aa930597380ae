"""Copies and pickles of a model and of its environment, made at any moment, learn on; so does the original.

Not here: what a saved model keeps (`test_persistence.py`), copies of networks (`test_policies.py`).
"""

import copy
import inspect
import pickle
from collections.abc import Callable
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from tests.environments import Clock
from tests.side_by_side import DICT_SPACES, SMALL_COMBINED, Dummy
from tests.test_stored_rows import SMALL, Do, assert_each_row_is_one_step, clocks, make_model

DEEP: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle_2": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}
ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    "single": Clock,
    "dummy": lambda: DummyVecEnv([Clock]),
    "dummies": lambda: DummyVecEnv([Clock] * 3),
}
#: SB3's wrappers cannot be copied: they keep a table of their class, which Python does not copy.
WRAPPED: dict[str, Callable[[], Any]] = ENVIRONMENTS | {
    "subprocesses": lambda: SubprocVecEnv([Clock] * 2),
    "monitored": lambda: VecMonitor(DummyVecEnv([Clock] * 2)),
    "normalized": lambda: VecNormalize(DummyVecEnv([Clock] * 2), norm_obs=False),
    "stacked": lambda: VecFrameStack(DummyVecEnv([Clock] * 2), 2),
}


def times_of_three_steps(env: VecEnv) -> list[list[float]]:
    return [env.step(np.ones((env.num_envs, 1)))[0][:, -1].tolist() for _ in range(3)]


# --- environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", DEEP)
@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_copy_of_the_environment_steps_by_itself_at_any_moment(kind, way):
    found: dict[int, Any] = {}
    model = make_model(ENVIRONMENTS[kind]())

    def step_copy(callback: Do) -> None:
        found[callback.n_calls] = times_of_three_steps(DEEP[way](callback.training_env))

    # Before learning, in the first step, in mid-episode, at the end of an episode, and afterwards.
    model.learn(60 * model.n_envs, Do(step_copy, (1, 30, 40)))
    later = times_of_three_steps(DEEP[way](model.get_env()))
    ones = [1.0] * model.n_envs
    times = {n: [[time * one for one in ones] for time in range(n % 20 + 1, n % 20 + 4)] for n in (1, 30, 40)}
    assert found == times
    assert later == times[40]
    assert_each_row_is_one_step(model, 60 * model.n_envs)
    assert clocks(model)[0].tolist() == [[row % 20 * one for one in ones] for row in range(60)]
    assert not model._footprints.said


@pytest.mark.parametrize("way", DEEP)
def test_a_copy_of_a_watched_environment_is_a_plain_one(way):
    """It knows nothing of this package, and is as SB3 would have made it."""
    expected = DummyVecEnv([Clock] * 2)
    copies = []
    callback = Do(lambda c: copies.append(DEEP[way](c.training_env)))
    make_model(DummyVecEnv([Clock] * 2)).learn(80, callback)
    (copied,) = copies
    assert type(copied) is DummyVecEnv
    assert vars(copied).keys() == vars(expected).keys() | {"actions"}
    for name, value in vars(expected).items():
        assert type(vars(copied)[name]) is type(value), name
    assert type(copied.buf_obs[None]) is np.ndarray
    assert [type(info) for info in copied.buf_infos] == [dict, dict]
    if way != "deepcopy":
        assert b"sb3_simple_ddpg" not in pickle.dumps(copied)


@pytest.mark.parametrize("kind", ["single", "dummies"])
def test_a_shallow_copy_of_the_environment_is_the_same_environment(kind):
    """As with SB3: it shares the environments, so the model notices that they were moved."""
    model = make_model(ENVIRONMENTS[kind]())
    callback = Do(lambda c: times_of_three_steps(copy.copy(c.training_env)))
    model.learn(60 * model.n_envs, callback)
    assert callback.done == [[[time] * model.n_envs for time in (11, 12, 13)]]
    assert_each_row_is_one_step(model, 60 * model.n_envs)
    assert clocks(model)[0][30].tolist() == [0] * model.n_envs


def test_dict_observations_are_copied_too():
    found = []
    space = DICT_SPACES["vectors"]
    env = DummyVecEnv([lambda: Dummy(space)] * 2)

    def step_copy(callback: Do) -> None:
        copied = copy.deepcopy(callback.training_env)
        copied.reset()
        before = {key: values.copy() for key, values in callback.training_env.buf_obs.items()}
        found.append(copied.step(np.zeros((2, 2)))[0])
        for key, values in callback.training_env.buf_obs.items():
            assert np.array_equal(values, before[key])
        assert all(not np.array_equal(found[-1][key], before[key]) for key in before)

    model = SimpleDDPG("MultiInputPolicy", env, **SMALL | {"policy_kwargs": SMALL_COMBINED})
    model.learn(80, Do(step_copy))
    assert len(found) == 1


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", DEEP)
@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_copy_of_the_model_learns_on_at_any_moment_and_the_original_as_if_nothing_had_been(kind, way):
    def learn(copying: bool) -> tuple[SimpleDDPG, list[SimpleDDPG]]:
        model = make_model(ENVIRONMENTS[kind]())
        copies: list[SimpleDDPG] = []
        callback = Do(lambda c: copies.append(DEEP[way](c.model)), (1, 30, 40)) if copying else None
        return model.learn(60 * model.n_envs, callback), copies

    (model, copies), (expected, _) = learn(True), learn(False)
    assert_same(model, expected)
    n_envs = model.n_envs
    for copied, at in zip(copies, (1, 30, 40), strict=True):
        assert copied.num_timesteps == at * n_envs
        copied.learn(25 * n_envs, reset_num_timesteps=False)
        assert_each_row_is_one_step(copied, (at + 25) * n_envs)  # that of the callback's step too
        assert clocks(copied)[0][:, 0].tolist() == [row % 20 for row in range(at + 25)]
        assert not copied._footprints.said
    assert_same(model, expected)  # not changed by its copies
    copied = DEEP[way](model)
    copied.learn(25 * n_envs, reset_num_timesteps=False)
    assert clocks(copied)[0][60:, 0].tolist() == [row % 20 for row in range(25)]
    assert_same(model, expected)
    model.learn(25 * n_envs, reset_num_timesteps=False)
    assert clocks(model)[0][60:, 0].tolist() == [row % 20 for row in range(25)]


def assert_same(model: SimpleDDPG, expected: SimpleDDPG) -> None:
    assert (model.num_timesteps, model._n_updates) == (expected.num_timesteps, expected._n_updates)
    for name, weight in expected.policy.state_dict().items():
        assert th.equal(model.policy.state_dict()[name], weight), name
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        assert np.array_equal(getattr(model.replay_buffer, name), getattr(expected.replay_buffer, name)), name


@pytest.mark.parametrize("way", DEEP)
def test_a_copy_goes_on_exactly_as_the_original(way):
    """Weights to the last bit, when both get the same random numbers."""
    model = make_model(Clock()).learn(53)
    copied = DEEP[way](model)
    for each in (model, copied):
        np.random.seed(1)
        each.learn(60, reset_num_timesteps=False)
    assert_same(copied, model)


def test_a_shallow_copy_shares_networks_and_environment_and_no_row_is_joined():
    model = make_model(Clock()).learn(33)
    other = copy.copy(model)
    other.learn(12, reset_num_timesteps=False)
    assert other.num_timesteps == 45
    assert model.num_timesteps == 33
    assert other.actor is model.actor
    model.learn(12, reset_num_timesteps=False)  # the environment has been moved
    other.learn(12, reset_num_timesteps=False)
    assert_each_row_is_one_step(model, 33 + 3 * 12)


def test_a_shallow_copy_s_guard_is_its_own():
    """Errors and counters speak of the model that learns."""
    model = make_model(Clock(), on_non_finite="skip").learn(33)
    other = copy.copy(model)
    other.on_non_finite = "stop"
    other.num_timesteps = 1000
    other._last_obs = np.full_like(other._last_obs, np.nan)
    with pytest.raises(FloatingPointError, match="at timestep 1000"):
        other.learn(12, reset_num_timesteps=False)
    other._guard.skipped_transitions = 5
    assert model._guard.skipped_transitions == 0


def test_hindsight_replay_goes_on_in_a_copy():
    """SB3 leaves the environment out of every copy of its buffer, and then cannot sample."""
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=10)
    model = SimpleDDPG("MultiInputPolicy", env, **SMALL | {"learning_starts": 30}, replay_buffer_class=HerReplayBuffer)
    copies: list[SimpleDDPG] = []
    model.learn(60, Do(lambda c: copies.extend(way(c.model) for way in DEEP.values()), 45))
    assert model._n_updates == 30
    for copied in copies:
        updates = copied._n_updates
        copied.learn(20, reset_num_timesteps=False)
        assert copied._n_updates == updates + 20
        assert copied.replay_buffer.env is copied.get_env() is not model.get_env()
        assert copied.replay_buffer.size() == 65


def test_a_checkpoint_of_a_copy_made_in_a_callback_holds_its_row(tmp_path):
    copies: list[SimpleDDPG] = []
    make_model(Clock()).learn(60, Do(lambda c: copies.append(copy.deepcopy(c.model)), 33))
    copies[0].save_checkpoint(tmp_path)
    resumed = SimpleDDPG.resume(tmp_path, Clock())
    resumed.learn(20, reset_num_timesteps=False)
    assert_each_row_is_one_step(resumed, 53)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_copy_that_learns_in_the_callback_does_not_disturb_the_original(n_steps):
    model = make_model(Clock(), n_steps=n_steps)
    copies: list[SimpleDDPG] = []

    def learn(callback: Do) -> None:
        copies.append(copy.deepcopy(callback.model))
        state = np.random.get_state()
        copies[0].learn(25, reset_num_timesteps=False)
        np.random.set_state(state)

    model.learn(60, Do(learn))
    assert_same(model, make_model(Clock(), n_steps=n_steps).learn(60))
    assert_each_row_is_one_step(copies[0], 55)


# --- learning in a callback ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("depth", [1, 2])
def test_another_model_may_learn_on_the_environment_in_a_callback(kind, depth):
    model = make_model(WRAPPED[kind]())
    others: list[SimpleDDPG] = []

    def learn(callback: BaseCallback) -> None:
        others.append(make_model(callback.training_env))
        others[-1].learn(25 * model.n_envs, Do(learn, 7) if len(others) < depth else None)

    model.learn(60 * model.n_envs, Do(learn))
    assert len(others) == depth
    for each, rows in [(model, 60), *((other, 25) for other in others)]:
        assert each.num_timesteps == rows * model.n_envs
        assert_each_row_is_one_step(each, rows * model.n_envs)
    model.get_env().close()


def test_the_model_itself_may_learn_in_its_callback():
    model = make_model(Clock())
    model.learn(60, Do(lambda _: model.learn(10, reset_num_timesteps=False)))
    assert_each_row_is_one_step(model, model.num_timesteps)


# --- nothing of anybody's is replaced ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRAPPED)
def test_no_method_is_kept_on_an_object(kind):
    """A function or bound method among the attributes of an object is the original's in each of its copies."""
    model = make_model(WRAPPED[kind]())
    kinds = (FunctionType, MethodType, BuiltinMethodType)
    found: list[str] = []

    def look(_: Do) -> None:
        layer: Any = model.get_env()
        layers = [model, model.policy, model.actor, model.critic, model.replay_buffer, model._guard, model._footprints]
        while layer is not None:
            layers.append(layer)
            layer = getattr(layer, "venv", None)
        for each in layers:
            methods = dict(inspect.getmembers(type(each), callable))
            found.extend(name for name in vars(each) if name in methods)
            if each is not model.policy:  # which SB3 gives a schedule
                found.extend(name for name, value in vars(each).items() if type(value) in kinds)

    model.learn(60 * model.n_envs, Do(look, (1, 30, 60)))
    look(None)
    assert found == []
    model.get_env().close()


class Telling(DummyVecEnv):
    """A subclass of the user's with methods of its own in every place."""

    calls: list[str]

    def _save_obs(self, env_idx: int, obs: Any) -> None:
        self.calls.append("save")
        super()._save_obs(env_idx, obs)

    def step_wait(self) -> Any:
        self.calls.append("step")
        return super().step_wait()

    def reset(self) -> Any:
        self.calls.append("reset")
        return super().reset()


def test_methods_of_the_user_s_own_are_called():
    env = Telling([Clock] * 2)
    env.calls = []
    found = []
    model = make_model(env).learn(60, Do(lambda c: found.append((type(c.training_env), set(vars(env))))))
    # A reset and 30 steps of two environments each.
    assert env.calls == ["reset", "save", "save"] + ["step", "save", "save"] * 30
    assert found == [(Telling, set(vars(env)))]
    assert_each_row_is_one_step(model, 60)


def test_a_user_s_environment_is_as_it_was_after_learning():
    env = DummyVecEnv([Clock] * 2)
    rows, infos = env.buf_obs[None], env.buf_infos
    model = make_model(env)
    model.learn(60, Do(lambda c: make_model(c.training_env).learn(10)))
    assert env.buf_obs[None] is rows
    assert env.buf_infos is infos
    assert [type(info) for info in infos] == [dict, dict]
    assert type(env) is DummyVecEnv
