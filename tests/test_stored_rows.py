"""Every row in the replay buffer is one step of one episode, whatever callbacks and environments do meanwhile.

Not here: copies of models and environments (`test_copies.py`), numbers that are not finite (`test_guards.py`).
"""

import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_simple_ddpg import SimpleDDPG
from tests.environments import Clock

SMALL: dict[str, Any] = {
    "learning_starts": 20, "batch_size": 16, "buffer_size": 2000, "policy_kwargs": {"net_arch": [8]}, "seed": 0,
    "device": "cpu",
}  # fmt: skip


def make_model(env: Any, **changes: Any) -> SimpleDDPG:
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return SimpleDDPG(policy, env, **SMALL | changes)


def clocks(model: SimpleDDPG) -> tuple[np.ndarray, np.ndarray]:
    """The time before and after each stored row, one column for each environment."""
    buffer, rows = model.replay_buffer, model.replay_buffer.size()
    if isinstance(buffer.observations, dict):
        return buffer.observations["clock"][:rows, :, -1], buffer.next_observations["clock"][:rows, :, -1]
    return buffer.observations[:rows, :, -1], buffer.next_observations[:rows, :, -1]


def assert_each_row_is_one_step(model: SimpleDDPG, rows: int) -> None:
    """`rows` of all environments together are stored; the clock goes one further in each."""
    before, after = clocks(model)
    assert before.size == rows
    np.testing.assert_array_equal(after, before + 1)


class Do(BaseCallback):
    """Does something at the timesteps of some calls; goes on unless told otherwise."""

    def __init__(self, deed: Any, at: int | tuple[int, ...] = 30) -> None:
        super().__init__()
        self.deed, self.at, self.done = deed, (at,) if isinstance(at, int) else at, []

    def _on_step(self) -> bool:
        if self.n_calls not in self.at:
            return True
        self.done.append(self.deed(self))
        return self.done[-1] is not False


class Goal(Clock):
    """Ends at the fifth step, with reward 1."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *_ = super().step(action)
        return observation, float(self.t == 5), self.t == 5, False, {}


# --- callbacks that stop -------------------------------------------------------------------------------------------


def test_the_last_row_of_an_episode_at_which_a_callback_stops_is_stored():
    model = make_model(Goal(), gradient_steps=0)
    for episodes in range(1, 5):
        model.learn(10_000, StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
        assert (model.num_timesteps, model._episode_num) == (5 * episodes, episodes)
        assert len(model.ep_info_buffer) == episodes
    buffer = model.replay_buffer
    assert buffer.dones[:20, 0].tolist() == [0, 0, 0, 0, 1] * 4
    assert buffer.rewards[:20, 0].tolist() == [0, 0, 0, 0, 1] * 4
    assert_each_row_is_one_step(model, 20)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("at", [1, 7, 20, 33])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("train_freq", [1, 4])
def test_rows_and_timesteps_agree_wherever_a_callback_stops(n_envs, at, reset, train_freq):
    model = make_model(DummyVecEnv([Clock] * n_envs), train_freq=train_freq)
    model.learn(10_000, Do(lambda _: False, at))
    assert model.num_timesteps == at * n_envs
    assert_each_row_is_one_step(model, at * n_envs)
    model.learn(10 * n_envs * train_freq, reset_num_timesteps=reset)
    assert_each_row_is_one_step(model, (at + 10 * train_freq) * n_envs)
    before, _ = clocks(model)
    # Without a reset the episode goes on where it was.
    assert before[at].tolist() == [0 if reset else at % 20] * n_envs


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_callback_costs_no_row(error):
    def fail(_: Do) -> None:
        raise error("stop")

    model = make_model(Clock())
    with pytest.raises(error, match="stop"):
        model.learn(60, Do(fail, 33))
    assert model.num_timesteps == 33
    assert_each_row_is_one_step(model, 33)
    model.learn(30, reset_num_timesteps=False)
    assert_each_row_is_one_step(model, 63)
    assert clocks(model)[0][33] == 13


def test_after_an_exception_of_the_environment_its_episode_is_not_gone_on_with():
    class Breaks(Clock):
        total = 0

        def step(self, action: np.ndarray) -> Any:
            answer = super().step(action)
            self.total += 1
            if self.total == 27:  # the clock has moved on
                raise ZeroDivisionError
            return answer

    model = make_model(DummyVecEnv([Clock, Breaks]))
    with pytest.raises(ZeroDivisionError):
        model.learn(80)
    assert_each_row_is_one_step(model, 52)
    model.learn(20, reset_num_timesteps=False)
    assert_each_row_is_one_step(model, 72)
    assert clocks(model)[0][26].tolist() == [0, 0]


def test_a_callback_sees_sb3_s_moment_and_may_write_into_the_rewards():
    """SB3 calls it before the row is stored; intrinsic rewards are added there."""
    seen: dict[type, Any] = {}
    for algorithm in (SimpleDDPG, DDPG):

        def look(callback: Do, algorithm: type = algorithm) -> None:
            rows = callback.model.replay_buffer.size()
            same = callback.locals["replay_buffer"] is callback.model.replay_buffer
            seen.setdefault(algorithm, []).append((rows, callback.num_timesteps, callback.model._episode_num, same))
            callback.locals["rewards"][:] = 7.0

        model = algorithm("MlpPolicy", Clock(), **SMALL)
        model.learn(60, Do(look, (1, 20, 21, 60)))
        assert model.replay_buffer.rewards[[0, 19, 20, 59], 0].tolist() == [7.0] * 4
        assert (model.replay_buffer.rewards[:60] == 7.0).sum() == 4
    assert seen[SimpleDDPG] == seen[DDPG] == [(0, 1, 0, True), (19, 20, 0, True), (20, 21, 1, True), (59, 60, 2, True)]


def test_callbacks_find_all_names_that_sb3_gives_them():
    names: dict[type, set[str]] = {}
    for algorithm in (SimpleDDPG, DDPG):
        callback = Do(lambda callback, name=algorithm: names.setdefault(name, set(callback.locals)))
        algorithm("MlpPolicy", Clock(), **SMALL).learn(40, callback)
    assert names[SimpleDDPG] >= names[DDPG] - {"idx", "done", "kwargs"}  # of an inner loop


# --- n-step returns and HER ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["learn_anew", "stop_then_anew", "other_environment", "evaluated"])
def test_n_step_returns_do_not_reach_into_the_next_episode(how):
    """Reward -1 in each step of the first part, -100 later: a return of three steps holds one kind alone."""

    class Priced(Clock):
        price = 1.0

        def step(self, action: np.ndarray) -> Any:
            observation, _, *others = super().step(action)
            return observation, -self.price, *others

    env = Priced()
    model = make_model(env, n_steps=3, gamma=1.0)
    if how == "evaluated":

        def evaluate(_: Do) -> None:
            evaluate_policy(model, model.get_env(), 1, warn=False)
            env.price = 100.0

        model.learn(40, Do(evaluate, 33))
    else:
        model.learn(33, Do(lambda _: False, 33) if how == "stop_then_anew" else None)
        env.price = 100.0
        if how == "other_environment":
            env = Priced()
            env.price = 100.0
            model.set_env(env)
        model.learn(7, reset_num_timesteps=how != "other_environment")
    rows = np.arange(40).repeat(2)
    batch = model.replay_buffer._get_samples(rows)
    returns = batch.rewards.numpy().ravel()
    # Three steps, fewer at the end of the episode (row 19), of the first part (row 32) and of all (row 39).
    steps = np.minimum.reduce([np.full(80, 3), np.where(rows < 20, 20, np.where(rows < 33, 33, 40)) - rows])
    assert returns.tolist() == (-steps * np.where(rows < 33, 1.0, 100.0)).tolist()
    # It was cut off, not over: the value goes on.
    assert batch.dones.numpy().sum() == 0


@pytest.mark.parametrize("how", ["learn_anew", "evaluated"])
def test_hindsight_goals_are_of_the_same_episode(how):
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=10)
    model = SimpleDDPG("MultiInputPolicy", env, **SMALL | {"learning_starts": 50}, replay_buffer_class=HerReplayBuffer)
    if how == "evaluated":
        model.learn(40, Do(lambda c: evaluate_policy(c.model, c.training_env, 1, warn=False), 5))
    else:
        model.learn(5).learn(35)
    buffer = model.replay_buffer
    ends = np.flatnonzero(buffer.dones[:40, 0])
    starts = [0, *(ends[:-1] + 1)]
    assert 4 in ends  # the fifth row
    for start, end in zip(starts, ends, strict=True):
        assert set(buffer.ep_start[start : end + 1, 0]) == {start}
        assert set(buffer.ep_length[start : end + 1, 0]) == {end - start + 1}


# --- arrays that are used again ------------------------------------------------------------------------------------


class InPlace(gym.Env[Any, np.ndarray]):
    """Episodes of five steps; the observation is one array for ever, alone or in a dictionary that is one for ever."""

    def __init__(self, keyed: bool = False, terminated: bool = False) -> None:
        self.clock = np.zeros(2, np.float32)
        self.other = np.zeros(1, np.float32)
        box = spaces.Box(-100, 100, (2,), np.float32)
        self.observation_space = spaces.Dict({"clock": box, "other": spaces.Box(-1, 1, (1,))}) if keyed else box
        self.observation: Any = {"clock": self.clock, "other": self.other} if keyed else self.clock
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.terminated, self.info = terminated, {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock[:] = 0
        return self.observation, self.info

    def step(self, action: np.ndarray) -> Any:
        self.clock += [0.1 * action[0], 1]
        over = bool(self.clock[1] >= 5)
        return self.observation, float(self.clock[1]), over and self.terminated, over and not self.terminated, self.info


class Buffers(VecEnv):
    """A vectorised environment of the user's own, whose arrays are the same in every step."""

    def __init__(self, n_envs: int, as_lists: Any = None, last_is_kept: bool = True) -> None:
        self.clock, self.prices = np.zeros((n_envs, 2), np.float32), np.zeros(n_envs, np.float32)
        self.over, self.infos = np.zeros(n_envs, bool), [{} for _ in range(n_envs)]
        self.as_lists = as_lists
        super().__init__(n_envs, spaces.Box(-100, 100, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32))

    def reset(self) -> Any:
        self.clock[:] = 0
        return self.clock

    def step_async(self, actions: np.ndarray) -> None:
        self.pushes = 0.1 * actions[:, 0]

    def step_wait(self) -> Any:
        self.clock[:, 0] += self.pushes
        self.clock[:, 1] += 1
        self.prices[:] = self.clock[:, 1]
        for index, info in enumerate(self.infos):
            info.clear()
            self.over[index] = self.clock[index, 1] >= 5 + index
            if self.over[index]:
                info["terminal_observation"] = self.clock[index].copy()
                info["TimeLimit.truncated"] = True
                self.clock[index] = 0
        if self.as_lists is None:
            return self.clock, self.prices, self.over, self.infos
        return self.clock, self.as_lists(self.prices.tolist()), self.as_lists(self.over.tolist()), tuple(self.infos)

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class OwnBuffer(DummyVecEnv):
    """A subclass of the user's, which hands out its array itself."""

    def _obs_from_buf(self) -> Any:
        return self.buf_obs[None]


REUSED: dict[str, Any] = {
    "single": InPlace,
    "single_dict": lambda: InPlace(keyed=True),
    "dummy": lambda: DummyVecEnv([InPlace, InPlace]),
    "dummy_dict": lambda: DummyVecEnv([lambda: InPlace(keyed=True)] * 2),
    "normalized": lambda: VecNormalize(DummyVecEnv([InPlace, InPlace])),
    "normalized_dict": lambda: VecNormalize(DummyVecEnv([lambda: InPlace(keyed=True)]), norm_obs_keys=["other"]),
    "monitored": lambda: VecMonitor(DummyVecEnv([InPlace, InPlace])),
    "own_buffer": lambda: OwnBuffer([InPlace, InPlace]),
    "own": lambda: Buffers(2),
    "own_normalized": lambda: VecNormalize(Buffers(2)),
    "own_monitored": lambda: VecMonitor(Buffers(2)),
}


@pytest.mark.parametrize("kind", REUSED)
@pytest.mark.parametrize("evaluated", [False, True])
def test_arrays_that_an_environment_writes_into_again_are_stored_as_they_were(kind, evaluated):
    env = REUSED[kind]()
    model = make_model(env)
    callback = Do(lambda c: c.training_env.reset(), (7, 15, 28)) if evaluated else None
    model.learn(30 * model.n_envs, callback)
    before, after = clocks(model)
    assert before.size == 30 * model.n_envs
    # VecNormalize gives the last observation of an episode back with an error of rounding.
    tolerance = 1e-4 if "normalized" in kind else 0.0
    np.testing.assert_allclose(after, before + 1, rtol=0, atol=tolerance)
    np.testing.assert_allclose(model.replay_buffer.rewards[:30], after, rtol=0, atol=1e-4)
    if not evaluated:
        assert before[:6, 0].tolist() == [0, 1, 2, 3, 4, 0]


def test_a_terminal_observation_is_a_copy_and_the_info_says_so():
    model = make_model(InPlace(terminated=True))
    env = model.get_env()
    env.reset()
    *_, infos = [env.step(np.zeros((1, 1)))[-1] for _ in range(5)]
    env.step(np.zeros((1, 1)))
    assert infos[0]["terminal_observation"].tolist() == [0, 5]


# --- lists ---------------------------------------------------------------------------------------------------------


class Lists(VecEnvWrapper):
    """Gives dones and rewards as Python's own, and infos as a tuple."""

    kind: Any = list

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, self.kind(rewards.tolist()), self.kind(dones.tolist()), tuple(infos)


class Tuples(Lists):
    kind = tuple


@pytest.mark.parametrize("wrapper", [Lists, Tuples])
@pytest.mark.parametrize("monitored", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_dones_and_rewards_may_be_lists(wrapper, monitored, n_envs):
    env = wrapper(DummyVecEnv([Clock] * n_envs))
    model = make_model(VecMonitor(env) if monitored else env).learn(60 * n_envs)
    # From timestep 21 on, one update for each step of all environments.
    assert model._n_updates == 60 - 20 // n_envs
    assert_each_row_is_one_step(model, 60 * n_envs)
    assert model.replay_buffer.dones[:60].sum() == 3 * n_envs
    assert model._episode_num == 3 * n_envs


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_vectorised_environment_of_the_user_s_own_may_give_lists(kind):
    model = make_model(Buffers(2, kind)).learn(60)
    assert_each_row_is_one_step(model, 60)
    assert model.replay_buffer.rewards[:6, 0].tolist() == [1, 2, 3, 4, 5, 1]


# --- environments that somebody else moves -------------------------------------------------------------------------


def forked(makers: list[Any]) -> SubprocVecEnv:
    return SubprocVecEnv(makers, start_method="fork")


class Bare(Buffers):
    """Of the user's own, and nothing like SB3's: no attribute is another object after a step."""

    def step_async(self, actions: np.ndarray) -> None:
        self.clock[:, 0] += 0.1 * actions[:, 0]
        self.pushes = 0.0


TRAINED_ON: dict[str, Any] = {
    "single": Clock,
    "limited": lambda: gym.wrappers.TimeLimit(Clock(), 15),
    "in_place": InPlace,
    "dummy": lambda: DummyVecEnv([Clock]),
    "dummies": lambda: DummyVecEnv([Clock] * 3),
    "subprocesses": lambda: forked([Clock] * 2),
    "normalized": lambda: VecNormalize(DummyVecEnv([Clock] * 2)),
    "normalized_subprocesses": lambda: VecNormalize(forked([Clock] * 2)),
    "monitored": lambda: VecMonitor(DummyVecEnv([Clock] * 2)),
    "stacked": lambda: VecFrameStack(DummyVecEnv([Clock] * 2), 2),
    "own": lambda: Buffers(2),
    "bare": lambda: Bare(2),
}


def evaluate(env: VecEnv, model: SimpleDDPG) -> None:
    evaluate_policy(model, env, 2, warn=False)


def step_twice(env: VecEnv, model: SimpleDDPG) -> None:
    for _ in range(2):
        env.step(np.ones((env.num_envs, 1), np.float32))


def reset(env: VecEnv, model: SimpleDDPG) -> None:
    env.reset()


def learn_with_another(env: VecEnv, model: SimpleDDPG) -> None:
    make_model(env).learn(26)


MOVES = [evaluate, step_twice, reset, learn_with_another]


def assert_nothing_is_joined(model: SimpleDDPG, kind: str, rows: int) -> None:
    before, after = clocks(model)
    assert before.size == rows
    # VecNormalize gives the last observation of an episode back with an error of rounding.
    np.testing.assert_allclose(after, before + 1, rtol=0, atol=1e-3 if "normalized" in kind else 0.0)


@pytest.mark.parametrize("kind", TRAINED_ON)
@pytest.mark.parametrize("move", MOVES)
def test_what_others_do_in_a_callback_spoils_no_row(kind, move):
    if "subprocesses" in kind and os.name == "nt":
        pytest.skip("forked")
    model = make_model(TRAINED_ON[kind](), gradient_steps=0)
    # In the middle of an episode, and at the end of one (the 20th step).
    model.learn(70 * model.n_envs, Do(lambda c: move(c.training_env, model), (8, 20, 33, 34)))
    assert_nothing_is_joined(model, kind, 70 * model.n_envs)
    assert model.num_timesteps == 70 * model.n_envs
    model.get_env().close()


@pytest.mark.parametrize("kind", TRAINED_ON)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "callback"])
def test_what_others_do_between_two_calls_of_learn_spoils_no_row(kind, move, watched):
    if "subprocesses" in kind and os.name == "nt":
        pytest.skip("forked")
    model = make_model(TRAINED_ON[kind](), gradient_steps=0)
    for _ in range(3):
        model.learn(13 * model.n_envs, Do(None, ()) if watched else None, reset_num_timesteps=False)
        move(model.get_env(), model)
    assert_nothing_is_joined(model, kind, 39 * model.n_envs)
    model.get_env().close()


@pytest.mark.parametrize("moment", ["_on_training_start", "_on_rollout_start", "_on_rollout_end"])
def test_others_may_move_it_at_any_moment(moment):
    class Moves(BaseCallback):
        def _on_step(self) -> bool:
            return True

    setattr(Moves, moment, lambda callback: evaluate(callback.training_env, callback.model))
    model = make_model(Clock(), train_freq=7).learn(70, Moves())
    assert_each_row_is_one_step(model, 70)


@pytest.mark.parametrize("make", [Clock, InPlace, lambda: gym.wrappers.TimeLimit(Clock(), 15)])
@pytest.mark.parametrize("when", ["callback", "EvalCallback", "between"])
def test_the_single_environment_may_be_evaluated_on_without_its_vectorised_wrapper(make, when):
    """The same object in another DummyVecEnv: people give it to EvalCallback."""
    env = make()
    model = make_model(env)
    if when == "between":
        for _ in range(5):
            model.learn(14, reset_num_timesteps=False)
            evaluate_policy(model, env, 1, warn=False)
    elif when == "callback":
        model.learn(70, Do(lambda _: evaluate_policy(model, env, 1, warn=False), (8, 20, 33, 34)))
    else:
        model.learn(
            70, EvalCallback(DummyVecEnv([lambda: env]), n_eval_episodes=1, eval_freq=11, warn=False, verbose=0)
        )
    assert_each_row_is_one_step(model, 70)


def test_an_environment_that_nobody_else_moves_is_not_reset():
    """As without callbacks, and as SB3: setting its attributes, seeding and looking at it is no move."""

    class Adjustable(Clock):
        looks, difficulty, highest = 0, 1.0, 0.0

        def step(self, action: np.ndarray) -> Any:
            self.highest = self.t / 1e3
            return super().step(action)

        def look(self) -> None:
            self.looks, self.highest = self.looks + 1, 1.0

    def touch(callback: Do) -> None:
        env = callback.training_env
        env.set_attr("difficulty", callback.n_calls)
        if callback.n_calls % 20:  # where an episode begins, one number that has changed is taken for a reset
            env.env_method("look")
        env.get_attr("t")
        env.set_options({"level": callback.n_calls})
        callback.model.set_random_seed(callback.n_calls)

    for make in (Adjustable, lambda: DummyVecEnv([Adjustable] * 2)):
        model = make_model(make())
        model.learn(70 * model.n_envs, Do(touch, tuple(range(1, 70))))
        assert clocks(model)[0].tolist() == [[row % 20] * model.n_envs for row in range(70)]
        model.set_random_seed(5)
        model.get_env().set_attr("difficulty", 2.0)
        model.learn(10 * model.n_envs, reset_num_timesteps=False)
        assert clocks(model)[0][70:].tolist() == [[10 + row] * model.n_envs for row in range(10)]
        assert not model._footprints.said


def test_the_log_says_once_that_somebody_else_moved_the_environment(capsys):
    model = make_model(Clock(), verbose=1)
    model.learn(70, Do(lambda c: c.training_env.reset(), (8, 20, 33)))
    assert capsys.readouterr().out.count("Somebody else has stepped or reset the training environment") == 1
    model = make_model(Clock(), verbose=1)
    model.learn(70, Do(lambda _: None, (8, 20, 33)))
    assert "Somebody else" not in capsys.readouterr().out


def test_normalisation_of_others_steps_does_not_get_into_the_row():
    """The row of the step at which a callback steps on: SB3 stores what VecNormalize was given last."""
    plain, moved = (
        make_model(VecNormalize(DummyVecEnv([Clock] * 2)), learning_starts=1000, action_noise=None) for _ in range(2)
    )
    plain.learn(40)
    # The 20th step ends the episodes, so that VecNormalize has normalised its last observations.
    moved.learn(40, Do(lambda c: step_twice(c.training_env, moved), 20))
    for name in ("observations", "next_observations", "rewards", "actions", "dones"):
        ours, expected = (getattr(model.replay_buffer, name)[:20] for model in (moved, plain))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4, err_msg=name)
