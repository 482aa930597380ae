"""What holds for any constructor argument, space, stack of wrappers and command line: it works, or says why not.

Not here: single values with the errors that they give (`test_checks.py`, `test_cli.py`). Hypothesis draws the same
examples each time.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line import cli
from tests.environments import Bandit
from tests.side_by_side import Dummy
from tests.side_by_side import settings as small_settings
from tests.test_checkpoint import Walk, assert_equal_runs, scramble

#: What a mistake of the user's may raise. UnsupportedError is a ValueError too.
DOCUMENTED = (ValueError, TypeError)


def each(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# --- constructor ---------------------------------------------------------------------------------------------------

JUNK = st.sampled_from(
    [None, True, "0.1", "", "step", math.nan, math.inf, -math.inf, -1, 0, 1, [], {}, (), object(), b"1"]
)
NUMBERS = st.one_of(st.floats(-2, 2), st.integers(-3, 50), JUNK)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["learning_rate", "critic_learning_rate", "tau", "gamma"], NUMBERS),
    **dict.fromkeys(["action_noise", "max_grad_norm", "stats_window_size"], NUMBERS),
    **dict.fromkeys(["buffer_size", "learning_starts", "batch_size", "gradient_steps", "n_steps"], NUMBERS),
    "train_freq": st.one_of(NUMBERS, st.tuples(NUMBERS, st.sampled_from(["step", "episode", "year", 3]))),
    "optimize_memory_usage": JUNK,
    "replay_buffer_kwargs": st.one_of(
        JUNK, st.dictionaries(st.sampled_from(["handle_timeout_termination", "colour"]), st.booleans())
    ),
    "policy_kwargs": st.one_of(
        JUNK,
        st.fixed_dictionaries(
            {}, optional={"net_arch": st.one_of(JUNK, st.lists(st.integers(-1, 8), max_size=2)), "n_critics": NUMBERS}
        ),
    ),
    "on_non_finite": st.one_of(JUNK, st.sampled_from(["stop", "skip"])),
    "verbose": st.just(0),
    "seed": st.one_of(st.none(), st.integers(0, 2**32 - 1), st.integers(-3, 0)),
    "device": st.sampled_from(["cpu", "auto", "toaster"]),
}


@each(120)
@given(st.fixed_dictionaries({}, optional=ARGUMENTS).map(lambda drawn: dict(list(drawn.items())[:4])))
def test_any_constructor_arguments_work_or_are_refused_before_learning(arguments: dict[str, Any]):
    try:
        model = SimpleDDPG("MlpPolicy", Bandit(), **{**small_settings(), **arguments})
    except DOCUMENTED as error:
        said = str(error)
    else:
        said = f"learned for {model.learn(25).num_timesteps} timesteps"
    assert len(said) > 20, arguments  # a sentence


# --- spaces --------------------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
bounds = st.tuples(st.sampled_from([-math.inf, -5.0, -1.0, 0.0]), st.sampled_from([math.inf, 0.5, 1.0, 3.0]))


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    low, high = draw(bounds)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]))
    if dtype is not np.float32 and dtype is not np.float64:
        low, high = 0, 3
    return spaces.Box(low, high, draw(shapes), dtype)


flat_spaces = st.one_of(
    boxes(),
    st.integers(1, 4).map(spaces.Discrete),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 3).map(spaces.MultiBinary),
)
any_space = st.one_of(
    flat_spaces,
    st.dictionaries(st.sampled_from(["a", "b.c", "observation", "d/e"]), flat_spaces, min_size=1).map(spaces.Dict),
    st.tuples(flat_spaces).map(spaces.Tuple),
)


@each(80)
@given(
    any_space, st.one_of(boxes(), boxes(), flat_spaces), st.sampled_from(["MlpPolicy", "MultiInputPolicy", "CnnPolicy"])
)
def test_any_spaces_work_or_are_refused_at_the_start(observation_space, action_space, policy):
    if isinstance(observation_space, spaces.Dict) and policy == "MlpPolicy":
        policy = "MultiInputPolicy"
    try:
        model = SimpleDDPG(policy, Dummy(observation_space, action_space), **small_settings())
    except (*DOCUMENTED, AssertionError, NotImplementedError):  # the last two are SB3's own, for Tuples
        return
    model.learn(15)
    action, _ = model.predict(observation_space.sample())
    assert action_space.contains(action), (action, action_space)


# --- wrappers ------------------------------------------------------------------------------------------------------

ONE: list[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = [
    Monitor,
    lambda env: wrappers.TimeLimit(env, 5),
    lambda env: wrappers.RescaleAction(env, np.float32(-3), np.float32(2)),
    lambda env: wrappers.FrameStackObservation(env, 2),
    wrappers.TimeAwareObservation,
    wrappers.RecordEpisodeStatistics,
    lambda env: wrappers.StickyAction(env, 0.3),
    lambda env: wrappers.TransformReward(env, lambda reward: reward / 2),
    wrappers.FlattenObservation,
]
ALL: list[Callable[[VecEnv], VecEnv]] = [
    VecNormalize,
    lambda env: VecFrameStack(env, 2),
    VecCheckNan,
    VecMonitor,
]


@each(25)
@pytest.mark.filterwarnings("ignore:.*already wrapped with a `Monitor` wrapper")  # SB3: two counters, no harm
@given(st.lists(st.sampled_from(ONE), max_size=3), st.lists(st.sampled_from(ALL), max_size=3), st.integers(1, 3))
def test_any_stack_of_wrappers_is_learned_in_and_resumed_exactly(one, together, n_envs):
    def make_one() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = Walk()
        for wrapper in one:
            env = wrapper(env)
        return env

    def make() -> VecEnv:
        env: VecEnv = DummyVecEnv([make_one] * n_envs)
        for wrapper in together:
            env = wrapper(env)
        return env

    counters = [wrapper for wrapper in one if wrapper in (Monitor, wrappers.RecordEpisodeStatistics)]
    assume(len(counters) < 2)  # Gymnasium: both fill info["episode"]
    try:
        env = make()
    except (ValueError, TypeError, AssertionError):  # Gymnasium or SB3 refuses the stack
        return
    if VecNormalize in together and ALL[1] in together[together.index(VecNormalize) :]:
        with pytest.raises(ValueError, match=r"write VecNormalize\(VecFrameStack\(env, n\)\)"):
            SimpleDDPG("MlpPolicy", env, **small_settings())
        return
    live = SimpleDDPG("MlpPolicy", env, **small_settings()).learn(12 * n_envs)
    with tempfile.TemporaryDirectory() as folder:
        live.save_checkpoint(folder)
        live.learn(10 * n_envs, reset_num_timesteps=False)
        scramble()
        resumed = SimpleDDPG.resume(folder, make()).learn(10 * n_envs, reset_num_timesteps=False)
    assert live._n_updates > 0
    assert_equal_runs(resumed, live)


# --- command line --------------------------------------------------------------------------------------------------

words = st.one_of(
    st.sampled_from(["0", "1", "-1", "3", "2.5", "nan", "None", "", "x=1", "=", "gamma=", "gamma=2", "tau=0.1"]),
    st.sampled_from(["policy_kwargs.net_arch=[4]", "policy_kwargs.net_arch", "policy_kwargs.nonsense=1", "env=3"]),
    st.sampled_from(["tests.environments.Bandit", "tests.nothing", "json.loads", "Pendulum-v9", "/dev/null/x", "[1,2"]),
    st.sampled_from(["auto", "article", "default"]),
    st.text(st.characters(codec="ascii", exclude_characters="-"), max_size=6),
)
options = st.sampled_from(
    [
        *("--episodes", "--seed", "--preset", "--n-envs", "--wrapper", "--set", "--eval-episodes"),
        *("--checkpoint-every", "--resume", "--device", "--threads", "--vec-env", "--colour"),
    ]
)
flags = st.sampled_from(["--normalize", "--tensorboard", "--overwrite"])


@each(50)
@given(st.lists(st.tuples(options, words), max_size=3), flags)
def test_any_command_line_ends_with_a_status_and_never_a_traceback(drawn, flag):
    few = ["--set", "policy_kwargs.net_arch=[4]", "buffer_size=50", "batch_size=4", "learning_starts=5"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "--env", "TestBandit-v0", "--timesteps", "8", *few, "--no-progress", flag]
        arguments += ["--eval-episodes", "0", "--out", str(Path(folder, "run"))]
        try:
            status = cli.main([*arguments, *(word for pair in drawn for word in pair)])
        except SystemExit as ended:  # tyro has written what it does not understand
            status = ended.code
    assert status in (0, 2), drawn


@each(40)
@given(st.sampled_from(["evaluate", "plot", "train", "benchmark", "fly"]), st.lists(words, max_size=2))
def test_any_words_end_with_a_status(command, drawn):
    if command == "train" and not drawn:
        return
    try:
        status = cli.main([command, *drawn, "--out", ""] if command == "benchmark" else [command, *drawn])
    except SystemExit as ended:
        status = ended.code
    assert status in (0, 2), drawn
