"""The policy as a safetensors file: numbers and a description in JSON, to be read without trusting who wrote it.

Not here: what a raw observation is, and the comparison with `predict` (`source.py`, where the public calls are too).

Reading goes from cheap to dear, and nothing is allocated that the file's own length does not pay for: the header, at
most a mebibyte, is parsed as strict JSON; the description in it is a closed list of words and sizes; from these follow
names, types and shapes of all tensors, which must be those of the header, which must fill the file exactly. Only then
the numbers are read. No name in the file is imported, executed or opened. The checksum tells accidents, not attacks.
"""

import hashlib
import itertools
import json
import math
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn
from torch.nn import functional as F

from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.export.source import Array

FORMAT, VERSION = "sb3-simple-ddpg policy", 1
MAX_HEADER_BYTES, MAX_LAYERS, MAX_INPUTS, MAX_AXES = 2**20, 64, 256, 8
#: The layers between linear ones that a file may name, all without arguments.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Mish, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus)
}
#: Safetensors' names of NumPy's types.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "I8": "int8", "I16": "int16",
    "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_CODES = {name: code for code, name in _DTYPES.items()}
#: Number of filters, width and stride of NatureCNN's three convolutions.
_CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


@dataclass(frozen=True)
class Part:
    """
    One observation, or one key of a Dict, as the description has it.

    :param name: of the key
    :param kind: name of the space's class
    :param shape: of the space, each axis at least 1
    :param dtype: of the space, NumPy's name
    :param counts: number of values of each discrete number; empty for Box and MultiBinary
    :param normalize: by VecNormalize
    :param transpose: channels, the last axis, go first
    :param divide_by_255: as SB3 does with images
    :param cnn: number of features of a NatureCNN; 0: flattened
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    counts: tuple[int, ...]
    normalize: bool
    transpose: bool
    divide_by_255: bool
    cnn: int

    def __post_init__(self) -> None:
        _demand(self.kind in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"), f"unknown space {self.kind!r}")
        _demand(self.dtype in _CODES, f"unknown type {self.dtype!r}")
        _demand(len(self.shape) <= MAX_AXES and all(axis >= 1 for axis in self.shape), f"shape {self.shape}")
        _demand(all(count >= 1 for count in self.counts), "a discrete observation without values")
        wanted = {"Discrete": ((), 1), "MultiDiscrete": ((len(self.counts),), max(1, len(self.counts)))}
        shape, count = wanted.get(self.kind, (self.shape, 0))
        _demand(self.shape == shape and len(self.counts) == count, "numbers of values")
        _demand(self.shape != () or self.kind == "Discrete", f"a {self.kind} without an axis, which nothing flattens")
        _demand(self.kind == "Box" or not (self.normalize or self.transpose or self.cnn), f"a {self.kind} as an image")
        _demand(self.cnn >= 0 and (len(self.shape) == 3 or not (self.transpose or self.cnn)), "an image without 3 axes")

    @property
    def features(self) -> int:
        """How many numbers the first layer gets from it."""
        return self.cnn or (sum(self.counts) if self.counts else math.prod(self.shape))

    def tensors(self, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """
        :param prefix: of their names
        :return: type and shape of each tensor
        """
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        if self.kind == "Box":
            found = {f"{prefix}.{bound}": (_CODES[self.dtype], self.shape) for bound in ("low", "high")}
        if self.normalize:
            found |= {f"{prefix}.{moment}": ("F64", self.shape) for moment in ("mean", "variance")}
        if self.cnn:
            channels, *sides = (self.shape[2], *self.shape[:2]) if self.transpose else self.shape
            for index, (filters, width, stride) in enumerate(_CONVOLUTIONS):
                found |= _layer(f"{prefix}.cnn.{2 * index}", filters, channels, width, width)
                sides = [(side - width) // stride + 1 for side in sides]
                channels = filters
            _demand(min(sides) >= 1, f"an image of {self.shape} is too small for NatureCNN")
            found |= _layer(f"{prefix}.linear.0", self.cnn, channels * math.prod(sides))
        return found


@dataclass(frozen=True)
class Description:
    """
    All that is not a number of the network.

    :param parts: of the observations
    :param is_dict: observations have keys
    :param hidden: units of each hidden layer
    :param activation: one of ACTIVATIONS
    :param action_shape: of the action space
    :param action_dtype: of the action space, NumPy's name
    :param source: where the policy comes from, for people
    """

    parts: tuple[Part, ...]
    is_dict: bool
    hidden: tuple[int, ...]
    activation: str
    action_shape: tuple[int, ...]
    action_dtype: str
    source: dict[str, Any]

    def __post_init__(self) -> None:
        _demand(1 <= len(self.parts) <= MAX_INPUTS, f"{len(self.parts)} observations")
        names = {part.name for part in self.parts}
        _demand(len(names) == len(self.parts), "two observations of one name")
        _demand(self.is_dict or names == {export.OBSERVATION}, f"names {sorted(names)} without a Dict")
        _demand(len(self.hidden) < MAX_LAYERS and all(units >= 1 for units in self.hidden), f"layers {self.hidden}")
        _demand(self.activation in ACTIVATIONS, f"unknown activation {self.activation!r}")
        _demand(self.action_dtype in ("float16", "float32", "float64"), f"actions of type {self.action_dtype!r}")
        _demand(len(self.action_shape) <= MAX_AXES and all(axis >= 1 for axis in self.action_shape), "shape of actions")

    @property
    def normalize(self) -> bool:
        """Some observation goes through VecNormalize."""
        return any(part.normalize for part in self.parts)

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """
        :return: type and shape of each tensor that a file of this description holds
        """
        found = {f"action.{bound}": (_CODES[self.action_dtype], self.action_shape) for bound in ("low", "high")}
        if self.normalize:
            found["normalizer"] = ("F64", (2,))  # epsilon and clip, which may be infinite
        for index, part in enumerate(self.parts):
            found |= part.tensors(f"observation.{index}")
        sizes = [sum(part.features for part in self.parts), *self.hidden, math.prod(self.action_shape)]
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            found |= _layer(f"mu.{2 * index}", outputs, inputs)
        return found


class LoadedPolicy:
    """
    A policy to act with, from raw observations to environment actions; `load_policy` makes it.

    :param description: checked
    :param tensors: checked, of the names, types and shapes that the description asks for
    """

    def __init__(self, description: Description, tensors: dict[str, Array]) -> None:
        self.description = description
        self.source = description.source
        # PyTorch's own memory, not the file's: its kernels round alike only where tensors are aligned alike.
        self._weights = {name: th.from_numpy(values).clone() for name, values in tensors.items() if _is_weight(name)}
        self._numbers = {name: values for name, values in tensors.items() if not _is_weight(name)}
        self._activation = ACTIVATIONS[description.activation]()
        self._epsilon, self._clip = self._numbers.get("normalizer", np.zeros(2)).tolist()
        self._spaces = {
            part.name: self._space(f"observation.{index}", part) for index, part in enumerate(description.parts)
        }
        self.observation_space: spaces.Space[Any] = (
            spaces.Dict(self._spaces) if description.is_dict else self._spaces[export.OBSERVATION]
        )
        low, high = self._numbers["action.low"], self._numbers["action.high"]
        self.action_space = spaces.Box(low, high, description.action_shape, low.dtype.type)

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """
        The action for one observation or a batch of B, with the arguments of SB3's `predict`.

        :param observation: raw: as the environment gives it, not normalized, images not transposed
        :param state: of recurrent policies; passed through
        :param episode_start: of recurrent policies; not used
        :param deterministic: of no effect: the policy is deterministic
        :return: the action, in the environment's range (with B in front for a batch), and `state`
        :raises ValueError: for an observation of another shape, or other keys
        """
        observations: Any = observation if self.description.is_dict else {export.OBSERVATION: observation}
        if not isinstance(observations, dict) or observations.keys() != self._spaces.keys():
            raise ValueError(f"The observation must be a dict with the keys {', '.join(self._spaces)}.")
        arrays = {name: np.asarray(values) for name, values in observations.items()}
        is_batch = all(array.ndim > len(self._spaces[name].shape or ()) for name, array in arrays.items())
        for name, space in self._spaces.items():
            shape = arrays[name].shape[1:] if is_batch else arrays[name].shape
            if shape != space.shape:
                raise ValueError(
                    f"The observation {name} must have shape {space.shape}, or (B, *{space.shape}) for a batch, got "
                    f"{arrays[name].shape}: pass what the environment gives."
                )
            if not is_batch:
                arrays[name] = arrays[name][None]
        if len({len(array) for array in arrays.values()}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"The observations must be equally many for each key, got {shapes}.")
        with th.no_grad():
            squashed = self._run(arrays).numpy().reshape(-1, *self.description.action_shape)
        low, high = self._numbers["action.low"], self._numbers["action.high"]
        actions = low + (0.5 * (squashed + 1.0) * (high - low))
        return actions if is_batch else actions.squeeze(axis=0), state

    def _run(self, arrays: dict[str, Array]) -> th.Tensor:
        parts = enumerate(self.description.parts)
        values = th.cat([self._features(f"observation.{index}", part, arrays[part.name]) for index, part in parts], 1)
        for index in range(len(self.description.hidden)):
            values = self._activation(self._linear(f"mu.{2 * index}", values))
        return th.tanh(self._linear(f"mu.{2 * len(self.description.hidden)}", values))

    def _features(self, prefix: str, part: Part, array: Array) -> th.Tensor:
        if part.normalize:
            # In double precision, as VecNormalize computes.
            mean, variance = self._numbers[f"{prefix}.mean"], self._numbers[f"{prefix}.variance"]
            with np.errstate(all="ignore"):  # the largest numbers overflow, which the clip puts right
                array = (array - mean) / np.sqrt(variance + self._epsilon)
            array = np.clip(array, -self._clip, self._clip).astype(np.float32)
        if part.transpose:
            array = VecTransposeImage.transpose_image(array)
        tensor = preprocess_obs(th.as_tensor(array), self._spaces[part.name], normalize_images=False)
        assert isinstance(tensor, th.Tensor)
        if part.divide_by_255:
            tensor = tensor / 255.0
        if part.cnn:
            for index, (_, _, stride) in enumerate(_CONVOLUTIONS):
                name = f"{prefix}.cnn.{2 * index}"
                weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
                tensor = F.relu(F.conv2d(tensor, weight, bias, stride))
            tensor = F.relu(self._linear(f"{prefix}.linear.0", tensor.flatten(1)))
        return tensor.flatten(1)

    def _linear(self, name: str, values: th.Tensor) -> th.Tensor:
        return F.linear(values, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _space(self, prefix: str, part: Part) -> spaces.Space[Any]:
        if part.kind == "Box":
            low, high = self._numbers[f"{prefix}.low"], self._numbers[f"{prefix}.high"]
            return spaces.Box(low, high, part.shape, low.dtype.type)
        if part.kind == "Discrete":
            return spaces.Discrete(part.counts[0])
        if part.kind == "MultiDiscrete":
            return spaces.MultiDiscrete(list(part.counts))
        return spaces.MultiBinary(part.shape[0] if len(part.shape) == 1 else part.shape)


def load(path: Path) -> LoadedPolicy:
    """
    :param path: of the file
    :return: the policy in it
    :raises ValueError: for a file that `build` cannot have made
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a file: pass what save_policy wrote.")
    with open(path, "rb") as file:
        try:
            return parse(file, os.fstat(file.fileno()).st_size)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is refused ({error}): it is damaged, or save_policy did not write it.") from error


def parse(file: IO[bytes], size: int) -> LoadedPolicy:
    length = int.from_bytes(file.read(8), "little")
    _demand(2 <= length <= min(MAX_HEADER_BYTES, size - 8), f"{length} bytes of header in a file of {size}")
    header = _strict_json(file.read(length))
    metadata = header.pop("__metadata__", None)
    _demand(type(metadata) is dict and metadata.keys() == {"description", "sha256"}, "unknown metadata")
    text = metadata["description"]
    _demand(type(text) is str, "no description")
    described = _strict_json(text.encode())
    form, version = described.pop("format", None), described.pop("version", None)
    _demand(form == FORMAT, f"the format {form!r}, not {FORMAT!r}")
    _demand(type(version) is int and version == VERSION, f"version {version!r}, where {VERSION} is known")
    description = _typed(described, Description)

    expected, stored = description.tensors(), {name: _entry(entry) for name, entry in header.items()}
    unequal = sorted(expected.keys() ^ stored.keys())
    _demand(not unequal, f"missing or unexpected tensors: {', '.join(unequal[:3])}")
    position = 0
    for name, (code, shape, begin, end) in sorted(stored.items(), key=lambda item: item[1][2:]):
        _demand((code, shape) == expected[name], f"{name} has type {code} and shape {shape}")
        nbytes = math.prod(shape) * np.dtype(_DTYPES[code]).itemsize
        _demand(begin == position and end == begin + nbytes, f"{name} does not lie where it should")
        position = end
    _demand(position == size - 8 - length, f"{position} bytes of numbers in {size - 8 - length}")

    content = file.read(position)
    _demand(len(content) == position, "the file is shorter than it was")
    tensors = {
        name: np.frombuffer(content, _DTYPES[code], math.prod(shape), begin).reshape(shape).copy()
        for name, (code, shape, begin, end) in stored.items()
    }
    _demand(metadata["sha256"] == checksum(text, tensors), "the checksum differs")
    _check_numbers(description, tensors)
    return LoadedPolicy(description, tensors)


def _check_numbers(description: Description, tensors: dict[str, Array]) -> None:
    for name, values in tensors.items():
        may_be_infinite = name == "normalizer" or name.endswith((".low", ".high"))
        valid = ~np.isnan(values) if may_be_infinite else np.isfinite(values)
        _demand(bool(valid.all()), f"{name} holds NaN or infinity")
    low, high = tensors["action.low"], tensors["action.high"]
    _demand(bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()), "bounds of the actions")
    epsilon, clip = tensors.get("normalizer", np.ones(2)).tolist()
    _demand(0 <= epsilon < math.inf and clip > 0, f"epsilon {epsilon} and clip {clip}")
    for index, part in enumerate(description.parts):
        prefix = f"observation.{index}"
        if part.kind == "Box":
            _demand(bool((tensors[f"{prefix}.low"] <= tensors[f"{prefix}.high"]).all()), f"bounds of {part.name!r}")
        if part.normalize:
            variance = tensors[f"{prefix}.variance"]
            _demand(bool((variance >= 0).all() and (variance + epsilon > 0).all()), f"variance of {part.name!r}")


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _strict_json(text: bytes) -> dict[str, Any]:
    """An object in which no key stands twice and every number is one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _demand(len(dict(pairs)) == len(pairs), "a key stands twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    values = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    _demand(type(values) is dict, "no object")
    return values  # type: ignore[no-any-return]  # checked above


def _entry(entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, begin and end of a tensor in the header."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor is described otherwise than in safetensors")
    offsets = _typed(entry["data_offsets"], tuple[int, ...])
    _demand(
        len(offsets) == 2 and type(entry["dtype"]) is str and entry["dtype"] in _DTYPES, "type or place of a tensor"
    )
    return entry["dtype"], _typed(entry["shape"], tuple[int, ...]), *offsets


def _typed(value: Any, kind: Any) -> Any:  # noqa: ANN401 - whatever JSON holds, and what it should be
    """A value of JSON as the annotation of a dataclass wants it, which is no check of its size."""
    if kind == tuple[int, ...]:
        _demand(type(value) is list and len(value) <= MAX_HEADER_BYTES, "no list of whole numbers")
        return tuple(_typed(each, int) for each in value)
    if kind == tuple[Part, ...]:
        _demand(type(value) is list, "no list of observations")
        return tuple(_typed(each, Part) for each in value)
    if kind in (Part, Description):
        annotations = {field.name: field.type for field in fields(kind)}
        _demand(type(value) is dict and value.keys() == annotations.keys(), f"no {kind.__name__}")
        return kind(**{name: _typed(value[name], annotation) for name, annotation in annotations.items()})
    _demand(type(value) is (dict if kind == dict[str, Any] else kind), f"{kind.__name__} expected")
    _demand(kind is not int or 0 <= value < 2**48, f"a size that cannot be meant: {value}")
    return value


def checksum(text: str, tensors: dict[str, Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _is_weight(name: str) -> bool:
    return name.endswith((".weight", ".bias"))


def _layer(name: str, outputs: int, *inputs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{name}.weight": ("F32", (outputs, *inputs)), f"{name}.bias": ("F32", (outputs,))}
