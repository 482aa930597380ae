"""What goes into a file: all that lies between the environment and the networks; the check that a file answers as
`predict` does.

Not here: the calls of users (`files.py`), and the files themselves (`onnx_file.py`, `policy_file.py`).

*Raw* is what the environment gives, before VecNormalize and before images are transposed. Wrappers that keep something
between steps (VecFrameStack, ...) are no part of a file: what they give out is its observation.
"""

import copy
import importlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
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
from stable_baselines3.common.running_mean_std import RunningMeanStd
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
from torch import nn

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
    :param moments: mean and variance of VecNormalize, float64, in the shape of the space; None: it is not normalized
    """

    name: str
    space: spaces.Space[Any]
    transpose: bool = False
    moments: tuple[Array, Array] | None = None


class RawPolicy(nn.Module):
    """
    Everything from raw observations to environment actions as one module: what a file is.

    :param actor: the networks
    :param inputs: what lies before them
    :param epsilon: of VecNormalize
    :param clip: of VecNormalize
    """

    def __init__(self, actor: Actor, inputs: tuple[Input, ...], epsilon: float = 0.0, clip: float = 0.0) -> None:
        super().__init__()
        assert isinstance(actor.action_space, spaces.Box)
        self.actor, self.inputs, self.epsilon, self.clip = actor, inputs, epsilon, clip
        self.is_dict, self.action_space = isinstance(actor.observation_space, spaces.Dict), actor.action_space
        low, high = self.action_space.low, self.action_space.high
        self.low, self.width = th.as_tensor(low), th.as_tensor(high - low)
        self.scales = [
            each.moments and (th.as_tensor(each.moments[0]), th.as_tensor(np.sqrt(each.moments[1] + epsilon)))
            for each in inputs
        ]

    def forward(self, observations: Sequence[th.Tensor]) -> th.Tensor:
        """
        :param observations: raw, in the order of the inputs, each of shape (B, ...)
        :return: actions, shape (B, ...), in the environment's range
        """
        prepared = {}
        for each, scale, values in zip(self.inputs, self.scales, observations, strict=True):
            if scale is not None:  # in double precision, as VecNormalize computes
                values = ((values.double() - scale[0]) / scale[1]).clamp(-self.clip, self.clip).float()
            prepared[each.name] = values.permute(0, 3, 1, 2) if each.transpose else values
        squashed = self.actor(prepared if self.is_dict else prepared[OBSERVATION])
        # As SB3's `unscale_action`, whose first two steps are in single precision for bounds of double precision too.
        shares = 0.5 * (squashed.reshape(-1, *self.low.shape) + 1.0)
        actions: th.Tensor = self.low + shares * self.width
        return actions

    def act(self, observations: Mapping[str, Array]) -> Array:
        """
        :param observations: raw, a batch by name
        :return: actions, shape (B, ...), in the environment's range
        """
        with th.no_grad():
            actions: Array = self([th.as_tensor(observations[each.name]) for each in self.inputs]).numpy()
        return actions


@dataclass(frozen=True)
class Source:
    """
    A model and everything between the environment and its networks.

    :param model: the model
    :param policy: a copy of what it does, on the CPU, for evaluation
    :param steps: what the wrappers do to observations on the way to the model, the innermost first
    """

    model: Agent
    policy: RawPolicy
    steps: Sequence[Callable[[Any], Any]]

    def predict(self, observations: dict[str, Array]) -> Array:
        """
        :param observations: raw, a batch by name
        :return: what the model does after the wrappers themselves, shape (B, ...)
        """
        prepared: Any = dict(observations) if self.policy.is_dict else observations[OBSERVATION]
        with np.errstate(all="ignore"):  # the largest numbers overflow, which the clip puts right
            for step in self.steps:
                prepared = step(prepared)
        # SB3's own `predict`, which gives NaN where numbers overflow; the policy's own refuses the whole batch then.
        actions, _ = BasePolicy.predict(self.model.policy, prepared, deterministic=True)
        return actions

    def rounding(self, observations: dict[str, Array]) -> Array:
        """
        How much of each action hangs on digits that single precision does not promise: the difference between weights
        that are 1e-5 of themselves too large or too small, at random. Rounding is as if they were off by less than that
        (backward error analysis; Higham 2002, section 3.1).

        :param observations: raw, a batch by name
        :return: shape (B, ...), NaN where numbers overflow
        """
        policy, generator = copy.deepcopy(self.policy), th.Generator().manual_seed(0)
        weights = [(weight, weight.detach().clone()) for weight in policy.parameters()]
        differences = []
        for _ in range(4):
            shares = [TOLERANCE * th.randn(weight.shape, generator=generator) for weight, _ in weights]
            either = []
            for sign in (1, -1):
                for (weight, original), share in zip(weights, shares, strict=True):
                    weight.data = original * (1 + sign * share)
                either.append(policy.act(observations))
            differences.append(np.abs(either[0] - either[1]))
        return np.asarray(np.max(differences, axis=0))


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
    inner: VecEnv | None = model.get_env() if env is None else model._wrap_env(env, verbose=0)
    seen: Any = model.observation_space
    raw, epsilon, clip = seen, 0.0, 0.0
    statistics: dict[str, RunningMeanStd] = {}
    transposed: set[str] = set()
    steps: list[Callable[[Any], Any]] = []
    if inner is not None:
        check_for_correct_spaces(inner, seen, model.action_space)
        while isinstance(inner, _FOLLOWED):
            if isinstance(inner, VecNormalize) and inner.norm_obs:
                if statistics:
                    raise ValueError("Observations must be normalized once, got a second VecNormalize: keep one.")
                epsilon, clip, rms = float(inner.epsilon), float(inner.clip_obs), inner.obs_rms
                statistics = rms if isinstance(rms, dict) else {OBSERVATION: rms}
                steps.insert(0, inner.normalize_obs)
            if isinstance(inner, VecTransposeImage) and not inner.skip:
                transposed.update(inner.image_space_keys if isinstance(seen, spaces.Dict) else [OBSERVATION])
                steps.insert(0, inner.transpose_observations)
            inner = inner.venv
        if unwrap_vec_normalize(inner) is not None:
            name = type(inner).__name__
            raise ValueError(
                f"VecNormalize lies below {name}, whose work is no part of a file: train with VecNormalize around it, "
                f"VecNormalize({name}(...))."
            )
        raw = inner.observation_space
    moments = {name: (each.mean, each.var) for name, each in statistics.items()}
    for name in transposed & moments.keys():
        # Around VecTransposeImage the statistics have channels first; a file normalizes what is raw.
        moments[name] = (np.moveaxis(moments[name][0], 0, -1), np.moveaxis(moments[name][1], 0, -1))
    # In the model's order, in which its features stand side by side; another environment may have another.
    parts = {name: raw[name] for name in seen.spaces} if isinstance(seen, spaces.Dict) else {OBSERVATION: raw}
    inputs = tuple(Input(name, part, name in transposed, moments.get(name)) for name, part in parts.items())
    actor: Actor = copy.deepcopy(model.actor, {id(model.actor.optimizer): object()})
    return Source(model, RawPolicy(actor.cpu(), inputs, epsilon, clip).eval(), steps)


#: Wrappers that leave observations alone, and the two whose work goes into a file.
_FOLLOWED = (VecNormalize, VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)


def probes(inputs: tuple[Input, ...], epsilon: float = 0.0) -> dict[str, Array]:
    """
    Observations to compare on: random ones first, then of a Box extreme ones (bounds, zeros, the largest numbers).

    :param inputs: what observations consist of
    :param epsilon: of VecNormalize
    :return: a batch of raw observations by name; the same ones at every call
    """
    rng = np.random.default_rng(0)
    found = {}
    for part in inputs:
        space = copy.deepcopy(part.space)  # drawing moves its generator
        space.seed(0)
        rows = [np.asarray(space.sample()) for _ in range(27)]
        if part.moments is not None:
            # An unbounded space draws around zero, which may lie far from anything that was ever seen.
            mean, deviation = part.moments[0], np.sqrt(part.moments[1] + epsilon)
            rows[8:16] = mean + deviation * rng.normal(scale=2.0, size=(8, *mean.shape))
        if isinstance(space, spaces.Box) and space.dtype != np.bool_:
            kind = np.finfo if np.issubdtype(space.dtype, np.floating) else np.iinfo
            least, most = (np.asarray(limit).item() for limit in (kind(space.dtype).min, kind(space.dtype).max))
            numbers = [min(max(number, least), most) for number in (0, 1e3, -1e3, 1e6, -1e6, 1e30, -1e30, most, least)]
            bounds = [np.where(np.isfinite(bound), bound, 0) for bound in (space.low, space.high)]
            rows[16:] = [*bounds, *(np.full(space.shape, number, space.dtype) for number in numbers)]
        with np.errstate(all="ignore"):
            found[part.name] = np.stack([row.astype(space.dtype) for row in rows])
    return found


def check(source: Source, answer: Callable[[dict[str, Array]], Array]) -> None:
    """
    Compare a file with `predict`: on random observations as a batch, on one of them and on extreme ones one by one.

    The difference may be 1e-5 of the action range, and more only where weights that differ by 1e-5 of themselves make
    more: huge numbers that cancel out leave no exact digits in single precision.

    :param source: the model
    :param answer: the file's: raw observations by name, a batch, to actions
    :raises ValueError: for a larger difference, another shape or dtype
    """
    observations = probes(source.policy.inputs, source.policy.epsilon)
    width = np.asarray(source.policy.action_space.high, np.float64) - source.policy.action_space.low
    for rows in (slice(0, 16), *(slice(row, row + 1) for row in (0, *range(16, 27)))):
        given = {name: values[rows] for name, values in observations.items()}
        expected, actions = source.predict(given), answer(given)
        if not np.array_equal(expected, source.predict(given), equal_nan=True):
            raise ValueError(f"predict gives two answers to the same observations: {CURE}")
        if actions.shape != expected.shape or actions.dtype != expected.dtype:
            raise ValueError(
                f"The file gives {actions.dtype} actions of shape {actions.shape}, predict {expected.dtype} of shape "
                f"{expected.shape}: {CURE}"
            )
        with np.errstate(all="ignore"):
            difference = np.abs(actions.astype(np.float64) - expected) / width
        if np.all(difference <= TOLERANCE):
            continue
        allowed = np.maximum(TOLERANCE, source.rounding(given) / width)
        wrong = ~(difference <= allowed) & np.isfinite(allowed)
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
