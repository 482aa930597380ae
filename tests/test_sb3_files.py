"""Agents and replay buffers that SB3 1.x has saved, with spaces of gym: read with gym and without.

Not here: files of today's SB3 (test_convert.py). The files are made here: SB3's own of today, with what 1.x had in
their place. The classes of gym are stand-ins that pickle under gym's names, with what gym 0.17 and 0.26 kept.
"""

import copy
import io
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.save_util import load_from_zip_file, save_to_pkl, save_to_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.checkpoint.sb3_files import read_replay_buffer
from sb3_simple_ddpg.safety.checks import UnsupportedError
from tests.environments import Bandit, Chain

SMALL: dict[str, Any] = {"learning_starts": 5, "batch_size": 8, "buffer_size": 200, "seed": 0}
TINY = {"net_arch": [8, 6]}
#: What an agent of SB3 1.0 has not got, and what it has got besides.
NEWER = ("n_steps", "replay_buffer_class", "replay_buffer_kwargs", "_stats_window_size", "_num_timesteps_at_start")
OLDER = {"eval_env": None, "remove_time_limit_termination": False, "_last_dones": np.array([False]), "start_time": 1.5}


class _Generator:
    """gym 0.22 and later: a space's random generator has a class of gym's."""

    def __reduce__(self) -> Any:
        return _Generator._generator_ctor, ("PCG64",), {"state": 1}

    @staticmethod
    def _generator_ctor(name: str) -> Any:
        return _Generator()


class _Space:
    def __init__(self, version: str, **state: Any) -> None:
        random = np.random.RandomState(0) if version == "0.17" else _Generator()
        shape_name, random_name = ("shape", "np_random") if version == "0.17" else ("_shape", "_np_random")
        vars(self).update({shape_name: state.pop("shape", None), random_name: random, **state})


MODULES = {
    "Box": "box", "Discrete": "discrete", "MultiDiscrete": "multi_discrete", "MultiBinary": "multi_binary",
    "Dict": "dict", "Tuple": "tuple", "Text": "text",
}  # fmt: skip
KINDS = {name: type(name, (_Space,), {"__module__": f"gym.spaces.{module}"}) for name, module in MODULES.items()}


@contextmanager
def gym_installed() -> Iterator[None]:
    """gym can be imported inside, and is gone afterwards."""
    modules = {name: types.ModuleType(name) for name in ("gym", "gym.spaces", "gym.utils", "gym.utils.seeding")}
    modules["gym"].__version__ = "0.26"  # SB3 writes it in the zip
    modules["gym"].Env, modules["gym"].Space = type("Env", (), {}), _Space
    for name, module in MODULES.items():
        modules[f"gym.spaces.{module}"] = types.ModuleType(f"gym.spaces.{module}")
        setattr(modules[f"gym.spaces.{module}"], name, KINDS[name])
    modules["gym.utils.seeding"].RandomNumberGenerator = _Generator
    own_name = _Generator.__module__, _Generator.__qualname__
    _Generator.__module__, _Generator.__qualname__ = "gym.utils.seeding", "RandomNumberGenerator"
    _Generator._generator_ctor.__module__ = "gym.utils.seeding"
    _Generator._generator_ctor.__qualname__ = "RandomNumberGenerator._generator_ctor"
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            yield
    finally:
        _Generator.__module__, _Generator.__qualname__ = own_name


def gym_space(space: spaces.Space, version: str) -> Any:
    """The same space as gym has it."""
    kind = type(space).__name__
    if isinstance(space, spaces.Dict):
        state: dict[str, Any] = {"spaces": OrderedDict((key, gym_space(part, version)) for key, part in space.items())}
    elif isinstance(space, spaces.Tuple):
        state = {"spaces": [gym_space(part, version) for part in space]}
    else:
        names = ("low", "high", "dtype", "shape", "n", "nvec", "bounded_below", "bounded_above")
        state = {name: getattr(space, name) for name in names if hasattr(space, name)}
        if version != "0.17" and isinstance(space, spaces.Discrete):
            state["start"] = space.start
    return KINDS[kind](version, **state)


def without_dtype(noise: Any) -> Any:
    for each in [noise, *getattr(noise, "noises", []), getattr(noise, "base_noise", noise)]:
        vars(each).pop("_dtype", None)
    return noise


def save_as_sb3_1(model: DDPG, path: Path, version: str = "0.26", **changes: Any) -> None:
    """The zip that SB3 1.0 would have written of this agent."""
    data = {name: value for name, value in vars(model).items() if name not in model._excluded_save_params()}
    for name in (*NEWER, "policy", "actor", "critic", "actor_target", "critic_target"):
        data.pop(name, None)
    for name in ("observation_space", "action_space"):
        data[name] = gym_space(data[name], version)
    parameters = copy.deepcopy(model.get_parameters())
    for name in ("actor.optimizer", "critic.optimizer"):  # as PyTorch 1.8 had them
        for moments in parameters[name]["state"].values():
            moments["step"] = int(moments["step"])
        for group in parameters[name]["param_groups"]:
            for later in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
                group.pop(later, None)
    data = {**data, **OLDER, **changes}
    with gym_installed():
        save_to_zip_file(path, {name: value for name, value in data.items() if value is not ...}, parameters)


@pytest.fixture(params=["without gym", "with gym"])
def gym_or_not(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "with gym":
        with gym_installed():
            yield
    else:
        assert "gym" not in sys.modules
        yield


def largest_difference(model: Any, other: Any) -> float:
    mine, others = model.policy.state_dict(), other.policy.state_dict()
    assert mine.keys() == others.keys()
    return max(float((mine[name] - others[name]).abs().max()) for name in mine)


@pytest.mark.parametrize("version", ["0.17", "0.26"])
def test_agent_of_sb3_1_learns_on_as_in_sb3_s_ddpg(gym_or_not: None, version: str, tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    theirs = DDPG("MlpPolicy", Chain(), action_noise=noise, policy_kwargs=dict(TINY), **SMALL).learn(40)
    save_as_sb3_1(theirs, tmp_path / "old", version, action_noise=without_dtype(noise))
    theirs.save_replay_buffer(tmp_path / "buffer")
    ours = SimpleDDPG.from_sb3(tmp_path / "old", Chain())
    assert largest_difference(ours, theirs) == 0
    assert type(ours.observation_space) is type(ours.action_space) is spaces.Box
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert (ours.num_timesteps, ours._n_updates, ours.gamma, ours.n_steps) == (40, 35, 0.99, 1)
    ours.load_replay_buffer(tmp_path / "buffer")
    for model in (theirs, ours):
        np.random.seed(5)
        model.train(10, batch_size=16)
    assert largest_difference(ours, theirs) < 1e-6  # moments and steps too, or Adam would go elsewhere
    ours.learn(20, reset_num_timesteps=False)
    assert (ours.num_timesteps, ours._n_updates, ours.replay_buffer.size()) == (60, 65, 60)
    assert type(ours.action_noise) is NormalActionNoise


SPACES = {
    "box": spaces.Box(np.float32([-1, 0]), np.float32([5, np.inf]), dtype=np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(4),
    "two axes": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict(
        OrderedDict(z=spaces.Box(-1, 1, (2,), np.float32), d=spaces.Discrete(3), m=spaces.MultiBinary(2))
    ),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("version", ["0.17", "0.26"])
def test_every_space_becomes_gymnasium_s(space: spaces.Space, version: str, gym_or_not: None, tmp_path: Path) -> None:
    env = Bandit()
    env.observation_space = space
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    theirs = DDPG(policy, env, policy_kwargs=dict(TINY), **SMALL)
    save_as_sb3_1(theirs, tmp_path / "old", version)
    ours = SimpleDDPG.from_sb3(tmp_path / "old", env)
    assert ours.observation_space == space
    assert type(ours.observation_space) is type(space)
    assert repr(ours.observation_space) == repr(space)
    if isinstance(space, spaces.Dict):
        assert list(ours.observation_space) == list(space)
    ours.observation_space.seed(0)
    observation = ours.observation_space.sample()
    assert np.array_equal(ours.predict(observation)[0], theirs.predict(observation)[0])


def test_spaces_that_ddpg_itself_has_no_use_for_are_read_too() -> None:
    given = {"tuple": spaces.Tuple((spaces.Discrete(2), SPACES["box"])), "start": spaces.Discrete(3, start=2)}
    with gym_installed():
        pickled = pickle.dumps({name: gym_space(space, "0.26") for name, space in given.items()})
    from sb3_simple_ddpg.checkpoint.sb3_files import _Unpickler

    read = _Unpickler(io.BytesIO(pickled), None).load()
    assert read == given
    assert all(space.contains(space.sample()) for space in read.values())


NOISES: dict[str, Callable[[], ActionNoise]] = {
    "normal": lambda: NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)),
    "wandering": lambda: OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1)),
    "one for each of two": lambda: VectorizedActionNoise(NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), 2),
    "wandering in each of two": lambda: VectorizedActionNoise(
        OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1)), 2
    ),
}


@pytest.mark.parametrize("make", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("n_envs", [1, 2])
def test_noise_of_before_sb3_1_8_learns_on(make: Callable[[], ActionNoise], n_envs: int, tmp_path: Path) -> None:
    saved_with = 2 if isinstance(make(), VectorizedActionNoise) else 1
    env = DummyVecEnv([Chain] * saved_with)
    theirs = DDPG("MlpPolicy", env, action_noise=make(), policy_kwargs=dict(TINY), **SMALL).learn(20)
    save_as_sb3_1(theirs, tmp_path / "old", action_noise=without_dtype(make()))
    ours = SimpleDDPG.from_sb3(tmp_path / "old", DummyVecEnv([Chain] * n_envs))
    ours.learn(20, reset_num_timesteps=False)
    assert ours.num_timesteps == 40
    draw = ours.action_noise().reshape(-1, 1)
    assert draw.shape == (n_envs, 1)
    assert draw.dtype == np.float32


def test_images_of_before_sb3_1_6_had_one_extractor_and_no_hidden_layers(tmp_path: Path) -> None:
    """SB3 1.6 changed both defaults; its own `load` fails for such an agent."""
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)
    settings = {**SMALL, "learning_starts": 1, "buffer_size": 20}
    theirs = DDPG("CnnPolicy", env, policy_kwargs={"net_arch": [], "share_features_extractor": True}, **settings)
    theirs.learn(3)
    save_as_sb3_1(theirs, tmp_path / "old", policy_kwargs={"n_critics": 1}, buffer_size=20)
    ours = SimpleDDPG.from_sb3(tmp_path / "old", env)
    assert largest_difference(ours, theirs) == 0
    assert ours.critic.features_extractor is ours.actor.features_extractor
    ours.learn(3, reset_num_timesteps=False)
    assert ours._n_updates > theirs._n_updates


@pytest.mark.parametrize("without", [(), ("handle_timeout_termination", "timeouts")])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_replay_buffer_of_sb3_1_is_read(
    policy: str, without: tuple[str, ...], gym_or_not: None, tmp_path: Path
) -> None:
    def make_env() -> gymnasium.Env:
        if policy == "MlpPolicy":
            return Chain("truncated")
        space = spaces.Dict({"o": Chain().observation_space})
        return gymnasium.wrappers.TransformObservation(
            Chain("truncated"), lambda observation: {"o": observation}, space
        )

    theirs, ours = (
        algorithm(policy, make_env(), policy_kwargs=dict(TINY), **SMALL) for algorithm in (DDPG, SimpleDDPG)
    )
    theirs.learn(30)
    expected = theirs.replay_buffer.observations
    old = theirs.replay_buffer
    for name in ("observation_space", "action_space"):
        setattr(old, name, gym_space(getattr(old, name), "0.26"))
    for name in without:
        delattr(old, name)
    old.device = "cpu"
    with gym_installed():
        save_to_pkl(tmp_path / "buffer", old)
    ours.load_replay_buffer(tmp_path / "buffer")
    buffer = ours.replay_buffer
    assert (buffer.size(), buffer.device) == (30, ours.device)
    assert buffer.observation_space == ours.observation_space
    assert np.array_equal(*[rows["o"] if isinstance(rows, dict) else rows for rows in (buffer.observations, expected)])
    # Before SB3 1.1 a time limit was an end like any other, and such a buffer stays one, as in SB3.
    dones = buffer._get_samples(np.arange(30)).dones
    assert dones.sum() == (10 if without else 0)
    assert buffer.handle_timeout_termination is not bool(without)
    ours.set_logger(configure(None, []))
    ours.train(5)
    ours.learn(10)
    assert buffer.size() == 40


def test_memory_saving_buffer_of_sb3_1_is_read(tmp_path: Path) -> None:
    settings = {**SMALL, "optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    theirs, ours = (
        algorithm("MlpPolicy", Chain(), policy_kwargs=dict(TINY), **settings) for algorithm in (DDPG, SimpleDDPG)
    )
    theirs.learn(30)
    theirs.replay_buffer.observation_space = gym_space(Chain().observation_space, "0.17")
    with gym_installed():
        theirs.save_replay_buffer(tmp_path / "buffer")
    ours.load_replay_buffer(tmp_path / "buffer")
    batch = ours.replay_buffer._get_samples(np.arange(29))
    assert th.equal(
        batch.next_observations[:-1][batch.dones[:-1, 0] == 0], batch.observations[1:][batch.dones[:-1, 0] == 0]
    )


def test_her_buffer_of_before_sb3_1_8_is_refused(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True)
    model = DDPG("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, policy_kwargs=dict(TINY), **SMALL)
    del model.replay_buffer.ep_start
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"HER buffer of SB3 before 1.8.*begin with an empty one"):
        read_replay_buffer(tmp_path / "buffer")


def test_what_is_no_replay_buffer_is_refused(tmp_path: Path) -> None:
    save_to_pkl(tmp_path / "buffer", {"rows": 1})
    with pytest.raises(UnsupportedError, match="must hold a replay buffer, got dict: write it with save_replay_buffer"):
        SimpleDDPG("MlpPolicy", Chain(), policy_kwargs=TINY).load_replay_buffer(tmp_path / "buffer")


class _OfAnotherPython:
    """Unpickling raises what a function of an older Python raises."""

    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise TypeError("code() argument 13 must be str, not int")


def small_agent(**settings: Any) -> DDPG:
    return DDPG("MlpPolicy", Chain(), policy_kwargs=dict(TINY), **{**SMALL, **settings})


def test_schedule_of_an_older_python_is_made_anew_without_a_word(tmp_path: Path) -> None:
    """As in SB3's `load`, what the optimizers follow is made of `learning_rate`; SB3 warns of the old one."""
    save_as_sb3_1(small_agent(learning_rate=3e-4), tmp_path / "old", lr_schedule=_OfAnotherPython())
    ours = SimpleDDPG.from_sb3(tmp_path / "old")
    assert ours.lr_schedule(0.5) == 3e-4
    assert ours._untold == []


@pytest.mark.parametrize(("python", "readable"), [("3.8.10", False), (sys.version.split()[0], True), (None, True)])
def test_function_that_another_python_has_compiled_is_never_called(
    python: str | None, readable: bool, tmp_path: Path
) -> None:
    """It may be made and end the process when it is called."""
    save_as_sb3_1(small_agent(), tmp_path / "new.zip", learning_rate=lambda progress: 0.5 * progress)
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in new.namelist():
            if name != "system_info.txt":
                old.writestr(name, new.read(name))
        if python is not None:
            old.writestr("system_info.txt", f"OS: Linux\nPython: {python}\nStable-Baselines3: 1.5.0\n")
    if readable:
        assert SimpleDDPG.from_sb3(tmp_path / "old.zip").lr_schedule(1) == 0.5
    else:
        with pytest.warns(
            UserWarning, match=r"learning_rate that can be read here .*function that Python 3\.8 has comp"
        ):
            ours = SimpleDDPG.from_sb3(tmp_path / "old.zip")
        assert ours.lr_schedule(1) == 1e-3


@pytest.mark.parametrize(("name", "default", "given"), [("learning_rate", 1e-3, 2e-4), ("action_noise", 0.1, 0.3)])
def test_what_cannot_be_read_is_warned_of_said_in_the_log_and_replaced(
    name: str, default: float, given: float, tmp_path: Path
) -> None:
    def used(model: SimpleDDPG) -> float:
        return model.lr_schedule(1) if name == "learning_rate" else model.action_noise.scale

    save_as_sb3_1(small_agent(), tmp_path / "old", **{name: _OfAnotherPython()})
    sentence = (
        rf"holds no {name} that can be read here \(TypeError: code\(\) .*\): {name}={default}, the default, is used"
    )
    with pytest.warns(UserWarning, match=f"{sentence}.*custom_objects={{'{name}'"):
        ours = SimpleDDPG.from_sb3(tmp_path / "old", Chain())
    assert used(ours) == default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replaced = SimpleDDPG.from_sb3(tmp_path / "old", Chain(), custom_objects={name: given})
    assert used(replaced) == given
    assert replaced._untold == []


@pytest.mark.parametrize(("verbose", "count"), [(0, 0), (1, 1)])
def test_what_a_zip_does_not_hold_is_said_once_in_the_log(verbose: int, count: int, tmp_path: Path) -> None:
    theirs = small_agent(verbose=verbose).learn(20)
    theirs.save(tmp_path / "model", exclude=["learning_rate", "action_noise"])
    ours = SimpleDDPG.from_sb3(tmp_path / "model", Chain())
    ours.set_logger(configure(str(tmp_path), ["log"]))
    for _ in range(2):
        ours.learn(5, reset_num_timesteps=False)
    ours.logger.close()
    told = (tmp_path / "log.txt").read_text()
    assert told.count("The zip holds no learning_rate: learning_rate=0.001, the default, is used.") == count
    assert told.count("The zip holds no action_noise: action_noise=0.1, the default, is used.") == count
    assert told.count("The replay buffer is empty after 20 timesteps") == count


def test_an_empty_buffer_is_no_fault_where_learning_starts_anew_or_one_is_loaded(tmp_path: Path) -> None:
    theirs = small_agent(verbose=1).learn(20)
    theirs.save(tmp_path / "model")
    theirs.save_replay_buffer(tmp_path / "buffer")
    for way in ("anew", "loaded"):
        ours = SimpleDDPG.from_sb3(tmp_path / "model", Chain())
        ours.set_logger(configure(str(tmp_path / way), ["log"]))
        if way == "loaded":
            ours.load_replay_buffer(tmp_path / "buffer")
        ours.learn(5, reset_num_timesteps=way == "anew")
        ours.logger.close()
        assert "buffer is empty" not in (tmp_path / way / "log.txt").read_text()


def test_custom_objects_take_the_place_of_what_the_file_or_the_model_holds(tmp_path: Path) -> None:
    theirs = small_agent()
    save_as_sb3_1(theirs, tmp_path / "old", gamma=0.9)
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0, "gamma": 0.5}
    for given in (tmp_path / "old", theirs):
        ours = SimpleDDPG.from_sb3(given, custom_objects=custom)
        assert (ours.lr_schedule(1), ours.gamma) == (0.0, 0.5)
    assert theirs.gamma == 0.99


def test_what_the_agent_is_made_of_and_cannot_be_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    save_as_sb3_1(small_agent(), tmp_path / "old", policy_kwargs={"x": _OfAnotherPython()})
    with pytest.raises(ValueError, match=r"holds policy_kwargs, which cannot be read.*custom_objects={'policy_kwargs'"):
        SimpleDDPG.from_sb3(tmp_path / "old")
    ours = SimpleDDPG.from_sb3(tmp_path / "old", custom_objects={"policy_kwargs": {**TINY, "n_critics": 1}})
    assert ours.policy.net_arch == TINY["net_arch"]


@pytest.mark.parametrize("name", ["policy_class", "policy_kwargs", "observation_space", "action_space"])
def test_zip_without_what_the_agent_is_made_of_is_refused_and_taken_with_it(name: str, tmp_path: Path) -> None:
    theirs = small_agent()
    save_as_sb3_1(theirs, tmp_path / "old", **{name: ...})
    with pytest.raises(ValueError, match=f"holds no {name}: .*custom_objects={{'{name}'"):
        SimpleDDPG.from_sb3(tmp_path / "old")
    ours = SimpleDDPG.from_sb3(tmp_path / "old", custom_objects={name: getattr(theirs, name)})
    assert largest_difference(ours, theirs) == 0


def test_where_gym_itself_is_needed_the_error_says_so(tmp_path: Path) -> None:
    with gym_installed():
        text = KINDS["Text"]("0.26", max_length=3)
        save_to_zip_file(tmp_path / "old", {"observation_space": text, "policy_kwargs": {}}, {})
        save_to_pkl(tmp_path / "buffer", text)
    with pytest.raises(
        ValueError, match=r"holds observation_space.*No module named 'gym'.*pip install gym.*custom_obj"
    ):
        SimpleDDPG.from_sb3(tmp_path / "old")
    with pytest.raises(ValueError, match=r"cannot be read here \(No module named 'gym'\).*pip install gym"):
        SimpleDDPG("MlpPolicy", Chain(), policy_kwargs=TINY).load_replay_buffer(tmp_path / "buffer")


def test_load_of_an_agent_of_sb3_1_names_from_sb3_without_gym(tmp_path: Path) -> None:
    save_as_sb3_1(small_agent(), tmp_path / "old")
    with pytest.raises(ValueError, match=r"saved by SB3 before 2.0 with gym.*SimpleDDPG\.from_sb3, which needs none"):
        SimpleDDPG.load(tmp_path / "old")


def test_td3_of_sb3_1_is_refused_as_td3(tmp_path: Path) -> None:
    save_as_sb3_1(TD3("MlpPolicy", Chain(), **SMALL), tmp_path / "old")
    with pytest.raises(ValueError, match=r"n_critics must be 1, got 2: .* stable_baselines3.TD3"):
        SimpleDDPG.from_sb3(tmp_path / "old")


def test_open_file_is_read_as_its_path(tmp_path: Path) -> None:
    theirs = small_agent().learn(10)
    save_as_sb3_1(theirs, tmp_path / "old.zip")
    with (tmp_path / "old.zip").open("rb") as file:
        assert largest_difference(SimpleDDPG.from_sb3(file), theirs) == 0
    theirs.save_replay_buffer(tmp_path / "buffer.pkl")
    with (tmp_path / "buffer.pkl").open("rb") as file:
        assert read_replay_buffer(file).size() == 10
        assert not file.closed


def test_converted_agent_is_saved_without_a_trace_of_gym(tmp_path: Path) -> None:
    save_as_sb3_1(small_agent(), tmp_path / "old")
    SimpleDDPG.from_sb3(tmp_path / "old").save(tmp_path / "new")
    data, _, _ = load_from_zip_file(tmp_path / "new")
    assert type(data["observation_space"]) is spaces.Box
    code = f"import sys; from sb3_simple_ddpg import SimpleDDPG; SimpleDDPG.load({str(tmp_path / 'new')!r}); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('gym' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
