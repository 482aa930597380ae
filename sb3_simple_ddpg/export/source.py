"""What goes into a file: all that lies between the environment and the networks; the check that a file answers as
`predict` does.

Not here: the calls of users (`files.py`), and how the files are written (`onnx_file.py`, `policy_writer.py`) and read
(`policy_file.py`).

*Raw* is what the environment gives, before VecNormalize and before images are transposed. Wrappers that keep something
between steps (VecFrameStack, ...) are no part of a file: what they give out is its observation.
"""

import copy
import importlib
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    unwrap_vec_normalize,
)

from sb3_simple_ddpg.policies import Actor
from sb3_simple_ddpg.sb3.agent import Agent

Array = npt.NDArray[Any]
#: Name of the one input where observations are no Dict.
OBSERVATION = "observation"
#: Largest difference to `predict`, in parts of the width of the action range.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Input:
    """
    One observation, or one key of a Dict, and what happens to it before the networks.

    :param name: of the key; `observation` where there are none
    :param space: the environment's
    :param transpose: an image whose last axis, the channels, comes first for the networks
    :param mean: of VecNormalize, float64, in the shape of the space; None where it is not normalized
    :param variance: likewise
    """

    name: str
    space: spaces.Space[Any]
    transpose: bool = False
    mean: Array | None = None
    variance: Array | None = None


@dataclass(frozen=True)
class Source:
    """
    A model and everything between the environment and its networks.

    :param model: the model
    :param inputs: in the order of the observation space
    :param wrappers: what changes observations on the way to the model, the innermost first
    :param epsilon: of VecNormalize
    :param clip: of VecNormalize
    """

    model: Agent
    inputs: tuple[Input, ...]
    wrappers: tuple[VecNormalize | VecTransposeImage, ...] = ()
    epsilon: float = 0.0
    clip: float = 0.0

    @property
    def is_dict(self) -> bool:
        """Observations have keys."""
        return isinstance(self.model.observation_space, spaces.Dict)

    @property
    def action_space(self) -> spaces.Box:
        """The environment's."""
        assert isinstance(self.model.action_space, spaces.Box)
        return self.model.action_space

    def prepare(self, observations: dict[str, Array]) -> Array | dict[str, Array]:
        """
        :param observations: raw, a batch by name
        :return: as the model is given them, made by the wrappers themselves
        """
        prepared: Any = dict(observations) if self.is_dict else observations[OBSERVATION]
        with np.errstate(all="ignore"):  # the largest numbers overflow, which the clip puts right
            for wrapper in self.wrappers:
                if isinstance(wrapper, VecNormalize):
                    prepared = wrapper.normalize_obs(prepared)
                else:
                    prepared = wrapper.transpose_observations(prepared)
        return prepared  # type: ignore[no-any-return]  # SB3's wrappers give back what they are given

    def predict(self, observations: dict[str, Array]) -> Array:
        """
        :param observations: raw, a batch by name
        :return: what the model does, shape (B, ...)
        """
        # SB3's own `predict`, which gives NaN where numbers overflow; the policy's own refuses the whole batch then.
        actions, _ = BasePolicy.predict(self.model.policy, self.prepare(observations), deterministic=True)
        return actions

    def rounding(self, observations: dict[str, Array], actions: Array) -> Array:
        """
        How much `predict` itself owes to rounding: its difference to the same networks in double precision.

        :param observations: raw, a batch by name
        :param actions: what `predict` does
        :return: shape (B, ...), infinite where `predict` overflows. Where it cannot be told, for an actor class of the
            user's own or networks that know single precision only: infinite for numbers beyond 100, zero for others
        """
        policy = self.model.policy
        tensors, _ = policy.obs_to_tensor(self.prepare(observations))
        prepared: Any = preprocess_obs(tensors, policy.observation_space, policy.normalize_images)
        parts = prepared if self.is_dict else {OBSERVATION: prepared}
        parts = {name: part.cpu().double() for name, part in parts.items()}
        unknown = np.zeros_like(actions)
        for part in parts.values():
            unknown[(part.flatten(1).abs() > 100).any(dim=1).numpy()] = np.inf
        actor = bare_actor(self.model).double()
        if type(actor) is not Actor:
            return unknown
        try:
            with th.no_grad():
                features = actor.features_extractor(parts if self.is_dict else parts[OBSERVATION])
                exact = actor.mu(features).numpy().reshape(actions.shape)
        except RuntimeError:
            return unknown
        with np.errstate(all="ignore"):
            rounding = np.abs(policy.unscale_action(exact) - actions)
        return np.where(np.isfinite(rounding), rounding, np.inf)


def describe(model: Agent, env: GymEnv | None = None) -> Source:
    """
    :param model: to export
    :param env: as in `export_onnx`
    :return: the model and what lies between environment and networks
    :raises TypeError: for a model that is not a SimpleDDPG
    :raises ValueError: for an environment of other spaces, or wrappers that cannot be followed
    """
    if not isinstance(model, Agent):
        raise TypeError(f"The model must be a SimpleDDPG, got {type(model).__name__}: see SimpleDDPG.from_sb3.")
    if env is None:
        inner: VecEnv | None = model.get_env()
    else:
        inner = model._wrap_env(env, verbose=0)
    if inner is None:
        return Source(model, _inputs(model.observation_space, model))
    check_for_correct_spaces(inner, model.observation_space, model.action_space)

    wrappers: list[VecNormalize | VecTransposeImage] = []
    while isinstance(inner, _FOLLOWED):
        if isinstance(inner, VecNormalize) and inner.norm_obs:
            wrappers.insert(0, inner)
        if isinstance(inner, VecTransposeImage) and not inner.skip:
            wrappers.insert(0, inner)
        inner = inner.venv
    if unwrap_vec_normalize(inner) is not None:
        name = type(inner).__name__
        raise ValueError(
            f"VecNormalize lies below {name}, whose work is no part of a file: train with VecNormalize around it, "
            f"VecNormalize({name}(...))."
        )
    normalizers = [wrapper for wrapper in wrappers if isinstance(wrapper, VecNormalize)]
    if len(normalizers) > 1:
        raise ValueError(f"Observations must be normalized once, got {len(normalizers)} VecNormalize: keep one.")

    is_dict = isinstance(inner.observation_space, spaces.Dict)
    transposed: set[str] = set()
    moments: dict[str, tuple[Array, Array]] = {}
    for wrapper in wrappers:
        if isinstance(wrapper, VecTransposeImage):
            transposed.update(wrapper.image_space_keys if is_dict else [OBSERVATION])
            continue
        statistics = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {OBSERVATION: wrapper.obs_rms}
        for name, each in statistics.items():
            # Around VecTransposeImage the statistics have channels first; a file normalizes what is raw.
            pair = (np.moveaxis(each.mean, 0, -1), np.moveaxis(each.var, 0, -1)) if name in transposed else None
            moments[name] = pair or (each.mean, each.var)
    epsilon, clip = (normalizers[0].epsilon, normalizers[0].clip_obs) if normalizers else (0.0, 0.0)
    inputs = _inputs(inner.observation_space, model, transposed, moments)
    return Source(model, inputs, tuple(wrappers), float(epsilon), float(clip))


#: Wrappers that leave observations alone, and the two whose work goes into a file.
_FOLLOWED = (VecNormalize, VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)


def _inputs(
    space: spaces.Space[Any],
    model: Agent,
    transposed: Collection[str] = (),
    moments: Mapping[str, tuple[Array, Array]] | None = None,
) -> tuple[Input, ...]:
    parts = {OBSERVATION: space}
    if isinstance(space, spaces.Dict) and isinstance(model.observation_space, spaces.Dict):
        # In the model's order, in which its features stand side by side; another environment may have another.
        parts = {name: space[name] for name in model.observation_space.spaces}
    moments = moments or {}
    return tuple(
        Input(name, part, name in transposed, *moments.get(name, (None, None))) for name, part in parts.items()
    )


def bare_actor(model: Agent) -> Actor:
    """
    :param model: stays as it is
    :return: a copy of its actor, for evaluation, on the CPU, without the optimizer
    """
    actor: Actor = copy.deepcopy(model.actor, {id(model.actor.optimizer): object()})
    return actor.cpu().eval()


def probes(inputs: tuple[Input, ...], epsilon: float = 0.0) -> dict[str, Array]:
    """
    Observations to compare on: random ones first, then extreme ones (zeros, bounds, the largest numbers).

    :param inputs: what observations consist of
    :param epsilon: of VecNormalize
    :return: a batch of raw observations by name; the same ones at every call
    """
    rng = np.random.default_rng(0)
    return {each.name: np.stack([*_random(each, epsilon, rng), *_extreme(each.space)]) for each in inputs}


_RANDOM = 16


def _random(part: Input, epsilon: float, rng: np.random.Generator) -> list[Array]:
    space = copy.deepcopy(part.space)  # drawing moves its generator
    space.seed(0)
    drawn = [np.asarray(space.sample(), space.dtype) for _ in range(_RANDOM)]
    if part.mean is None or part.variance is None:
        return drawn
    # An unbounded space draws around zero, which may lie far from anything that was ever seen.
    likely = [
        part.mean + np.sqrt(part.variance + epsilon) * rng.normal(scale=2.0, size=part.mean.shape)
        for _ in range(_RANDOM // 2)
    ]
    with np.errstate(all="ignore"):
        return [*drawn[_RANDOM // 2 :], *[np.asarray(each).astype(space.dtype) for each in likely]]


def _extreme(space: spaces.Space[Any]) -> list[Array]:
    if isinstance(space, spaces.Box) and space.dtype != np.bool_:
        kind = np.finfo if np.issubdtype(space.dtype, np.floating) else np.iinfo
        least, most = (np.asarray(limit).item() for limit in (kind(space.dtype).min, kind(space.dtype).max))
        numbers = [0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30, most, least]
        filled = [np.full(space.shape, min(max(number, least), most), space.dtype) for number in numbers]
        bounds = [np.where(np.isfinite(bound), bound, 0).astype(space.dtype) for bound in (space.low, space.high)]
        return [*bounds, *filled]
    if isinstance(space, spaces.Discrete):
        values: list[Any] = [0, space.n - 1]
    elif isinstance(space, spaces.MultiDiscrete):
        values = [np.zeros_like(space.nvec), space.nvec - 1]
    else:
        values = [np.zeros(space.shape or ()), np.ones(space.shape or ())]
    return [np.asarray(values[turn % 2], space.dtype) for turn in range(_EXTREME)]


_EXTREME = 11


def check(source: Source, answer: Callable[[dict[str, Array]], Array]) -> None:
    """
    Compare a file with `predict`, as a batch and one by one.

    The difference may be 1e-5 of the action range, and more only where `predict` itself is off by as much: huge numbers
    that cancel out leave no exact digits in single precision.

    :param source: the model
    :param answer: the file's: raw observations by name, a batch, to actions
    :raises ValueError: for a larger difference, another shape or dtype
    """
    observations = probes(source.inputs, source.epsilon)
    expected = source.predict(observations)
    if not np.array_equal(expected, source.predict(observations), equal_nan=True):
        raise ValueError(f"predict gives two answers to the same observations: {CURE}")
    width = np.asarray(source.action_space.high, np.float64) - source.action_space.low
    allowed = np.maximum(TOLERANCE, 4 * source.rounding(observations, expected) / width)
    count = len(expected)
    for rows in (slice(0, count), *(slice(row, row + 1) for row in (0, 1, count - 1))):
        actions = answer({name: values[rows] for name, values in observations.items()})
        if actions.shape != expected[rows].shape or actions.dtype != expected.dtype:
            raise ValueError(
                f"The file gives {actions.dtype} actions of shape {actions.shape}, predict {expected.dtype} of shape "
                f"{expected[rows].shape}: {CURE}"
            )
        with np.errstate(all="ignore"):
            difference = np.abs(actions.astype(np.float64) - expected[rows]) / width
        wrong = ~(difference <= allowed[rows]) & np.isfinite(allowed[rows])
        if wrong.any():
            raise ValueError(
                f"The file's actions differ from those of predict by {difference[wrong].max():.1e} of the action "
                f"range, more than {TOLERANCE:g}: {CURE}"
            )


CURE = (
    "look for layers or a features extractor of your own that keep numbers between calls, draw random ones, or decide "
    "by values in Python (torch.cond does so in a graph); to ship such a policy use model.save and SimpleDDPG.load."
)


def checked_target(path: str | Path) -> Path:
    """
    :param path: to write
    :return: the same
    :raises ValueError: where no file can be written
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target} is a folder: name a file in it, {target / 'policy'}.onnx or .safetensors.")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ValueError(f"{target} cannot be written: {target.parent} is not a folder that can be written to.")
    return target


def write_whole(path: Path, content: bytes) -> None:
    """
    :param path: of the file, which holds all of the content afterwards, or what it held before
    :param content: to write
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def optional_library(name: str) -> ModuleType:
    """
    :param name: of the module
    :return: the module
    :raises ImportError: where it is not installed, with the command that installs it
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name} is missing or incomplete ({error}): install it with pip install "sb3-simple-ddpg[export]".'
        ) from error


def provenance(model: Agent) -> dict[str, Any]:
    """
    :param model: that is exported
    :return: where a file comes from, for JSON: algorithm, timesteps, versions of the libraries
    """
    packages = ("sb3-simple-ddpg", "stable-baselines3", "torch", "gymnasium", "numpy")
    return {
        "algorithm": type(model).__name__,
        "timesteps": model.num_timesteps,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
    }
