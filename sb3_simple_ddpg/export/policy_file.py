"""The policy as a safetensors file: numbers and a description in JSON, to be read without trusting who wrote it.

Not here: what a raw observation is, and the comparison with `predict` (`source.py`).

The safetensors library holds the header to the length of the file. Names in the description are looked up in closed
lists: nothing of the file is imported, executed or opened. The networks are SB3's and ours, built on PyTorch's meta
device, where a size costs nothing; their weights are the file's, which must fit exactly. What was built is described
again: a file that says anything else is refused. The checksum tells accidents, not attacks.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import safe_open
from safetensors.numpy import save_file
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sb3_simple_ddpg.blocks import DENSE, ResidualBlock
from sb3_simple_ddpg.blocks import KINDS as KINDS_OF_LAYERS
from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.export.source import OBSERVATION, Array, Input, RawPolicy, Source
from sb3_simple_ddpg.policies import Actor

FORMAT, VERSION = "sb3-simple-ddpg policy", 1
MAX_HEADER_BYTES, MAX_LAYERS = 2**20, 64
KINDS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
#: The layers between linear ones that a file may name, all without arguments.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Mish, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus)
}


class LoadedPolicy:
    """
    A policy to act with, from raw observations to environment actions; `load_policy` makes it.

    :param policy: what it does
    :param source: where it comes from, for people
    """

    def __init__(self, policy: RawPolicy, source: dict[str, Any]) -> None:
        self.source = source
        self._policy = policy
        self._spaces = {part.name: part.space for part in policy.inputs}
        self.observation_space = spaces.Dict(self._spaces) if policy.is_dict else self._spaces[OBSERVATION]
        self.action_space = policy.action_space

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
        observations: Any = observation if self._policy.is_dict else {OBSERVATION: observation}
        if not isinstance(observations, dict) or observations.keys() != self._spaces.keys():
            raise ValueError(f"The observation must be a dict with the keys {', '.join(self._spaces)}.")
        arrays = {name: np.asarray(values) for name, values in observations.items()}
        is_batch = all(array.ndim > len(self._spaces[name].shape or ()) for name, array in arrays.items())
        for name, array in arrays.items():
            shape = self._spaces[name].shape
            if array.shape[is_batch:] != shape:
                raise ValueError(
                    f"The observation {name} must have shape {shape}, or (B, *{shape}) for a batch, got {array.shape}: "
                    "pass what the environment gives."
                )
        if is_batch and len({len(array) for array in arrays.values()}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"The observations must be equally many for each key, got {shapes}.")
        actions = self._policy.act(arrays if is_batch else {name: array[None] for name, array in arrays.items()})
        return actions if is_batch else actions.squeeze(axis=0), state


def build(source: Source) -> bytes:
    """
    :param source: from `export.describe`
    :return: the file's content, loaded again and compared
    :raises ValueError: for a policy that the file has no words for
    """
    policy = source.policy
    description = _describe(policy, export.provenance(source.model))
    layers = _layers(policy.actor)
    known = _layers(_without_weights(description, policy.inputs, policy.action_space))
    for name in layers | known:
        if layers.get(name) != known.get(name):
            raise ValueError(
                f"save_policy has no words for {name or 'the actor'} {layers.get(name, 'missing')}, only for "
                f"FlattenExtractor, NatureCNN, CombinedExtractor, dense layers with {', '.join(ACTIVATIONS)}, and what "
                "blocks.py makes of them: use export_onnx, which takes any layer."
            )

    tensors = {"action.low": policy.action_space.low, "action.high": policy.action_space.high}
    for index, part in enumerate(policy.inputs):
        prefix = f"observation.{index}"
        if isinstance(part.space, spaces.Box):
            tensors |= {f"{prefix}.low": part.space.low, f"{prefix}.high": part.space.high}
        if part.moments is not None:
            tensors["normalizer"] = np.array([policy.epsilon, policy.clip])
            tensors |= {f"{prefix}.mean": part.moments[0], f"{prefix}.variance": part.moments[1]}
    weights = policy.actor.state_dict()
    tensors |= {in_file: weights[name].numpy() for name, in_file in _names(policy.actor, policy.inputs).items()}
    tensors = {name: np.array(values, order="C") for name, values in tensors.items()}
    text = json.dumps(description)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.safetensors"
        save_file(tensors, path, {"description": text, "sha256": _checksum(text, tensors)})
        loaded = load(path)
        content = path.read_bytes()
    export.check(source, lambda rows: loaded.predict(rows if policy.is_dict else rows[OBSERVATION])[0])
    return content


def load(path: Path) -> LoadedPolicy:
    """
    :param path: of the file
    :return: the policy in it
    :raises ValueError: for a file that `build` cannot have made
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: pass what save_policy wrote.")
    with open(path, "rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            _demand(length <= MAX_HEADER_BYTES, f"{length} bytes of header")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            _demand(metadata.keys() == {"description", "sha256"}, "unknown metadata")
            for entry in header.values():
                _demand(entry.keys() == {"dtype", "shape", "data_offsets"}, f"a tensor described by {list(entry)}")
            with safe_open(path, "pt") as checked:
                # PyTorch's own memory, not the file's: its kernels round alike only where tensors are aligned alike.
                tensors = {name: checked.get_tensor(name).clone() for name in header}
            numbers = {name: tensor.numpy() for name, tensor in tensors.items()}
            _demand(metadata["sha256"] == _checksum(metadata["description"], numbers), "the checksum differs")
            return _read(json.loads(metadata["description"]), tensors)
        except Exception as error:  # whatever a library says to what a stranger wrote
            raise ValueError(f"{path} is refused ({error}): it is damaged, or save_policy did not write it.") from error


def _read(description: dict[str, Any], left: dict[str, th.Tensor]) -> LoadedPolicy:
    form, version = description["format"], description["version"]
    _demand((form, version) == (FORMAT, VERSION), f"{form!r}, version {version!r}, where {VERSION} is known")
    action_space = _box("action", left)
    bounds = np.array([action_space.low, action_space.high])
    _demand(bool(np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()), "bounds of the actions")
    inputs = tuple(_input(f"observation.{index}", part, left) for index, part in enumerate(description["parts"]))
    variances = [part.moments[1] for part in inputs if part.moments is not None]
    epsilon, clip = _taken("normalizer", left, may_be_infinite=True).tolist() if variances else (0.0, 1.0)
    _demand(0 <= epsilon < np.inf and clip > 0, f"epsilon {epsilon} and clip {clip}")
    _demand(all(bool((each >= 0).all() and (each + epsilon > 0).all()) for each in variances), "a variance")
    actor = _without_weights(description, inputs, action_space)
    weights = {name: _taken(in_file, left) for name, in_file in _names(actor, inputs).items()}
    _demand(not left, f"unexpected tensors: {', '.join(sorted(left)[:3])}")
    _demand({values.dtype for values in weights.values()} == {th.float32}, "weights of another type")
    actor.load_state_dict(weights, assign=True)

    policy = RawPolicy(actor, inputs, epsilon, clip)
    again = _describe(policy, dict(description["source"]))
    for key in description | again:
        said, meant = (json.dumps(each.get(key), sort_keys=True) for each in (description, again))
        _demand(said == meant, f"{key} {said:.200}, where the tensors are those of {meant:.200}")
    policy.act({part.name: np.zeros((1, *(part.space.shape or ())), part.space.dtype) for part in inputs})
    return LoadedPolicy(policy, description["source"])


def _describe(policy: RawPolicy, source: dict[str, Any]) -> dict[str, Any]:
    """All that is not a number of the network."""
    actor, parts = policy.actor, []
    for part in policy.inputs:
        space, seen = part.space, actor.observation_space
        extractor: Any = actor.features_extractor
        if type(extractor) is CombinedExtractor:
            extractor = extractor.extractors[part.name]
        if isinstance(seen, spaces.Dict):
            seen = seen[part.name]
        counts = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []
        described = {
            "name": part.name,
            "kind": next(kind.__name__ for kind in KINDS if isinstance(space, kind)),
            "shape": list(space.shape or ()),
            "dtype": str(space.dtype),
            "counts": [int(space.n)] if isinstance(space, spaces.Discrete) else counts,
            "normalize": part.moments is not None,
            "transpose": part.transpose,
            "divide_by_255": bool(actor.normalize_images and is_image_space(seen)),
            "cnn": int(extractor.features_dim) if isinstance(extractor, NatureCNN) else 0,
        }
        parts.append(described)
    # The hidden layers of a kind, and the first of what lies between them: whatever does not fit is found by `_layers`.
    hidden = [_units(layer) for layer in actor.mu.children() if isinstance(layer, nn.Linear | ResidualBlock)][:-1]
    between = [type(layer).__name__ for layer in actor.mu.modules() if not isinstance(layer, _NO_ACTIVATIONS)]
    activation = between[0] if hidden else ""
    return {
        "format": FORMAT,
        "version": VERSION,
        "parts": parts,
        "is_dict": policy.is_dict,
        "hidden": hidden,
        "activation": activation if activation in ACTIVATIONS else "ReLU",
        # Files of dense layers are those of earlier versions.
        **({} if actor.layer_kind == DENSE else {"layers": actor.layer_kind}),
        "action_shape": list(policy.low.shape),
        "action_dtype": str(actor.action_space.dtype),
        "source": source,
    }


_NO_ACTIVATIONS = (nn.Sequential, nn.Linear, nn.LayerNorm, ResidualBlock)


def _units(layer: nn.Linear | ResidualBlock) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.units


def _without_weights(description: dict[str, Any], inputs: tuple[Input, ...], action_space: spaces.Box) -> Actor:
    """The actor of a description, on the device without memory."""
    hidden = description["hidden"]
    _demand(len(hidden) < MAX_LAYERS and all(units > 0 for units in hidden), f"hidden layers {hidden!s:.200}")
    _demand(len(inputs) > 0, "no observation")
    layers = description.get("layers", DENSE)
    _demand(layers in KINDS_OF_LAYERS, f"layers {layers!s:.200}")
    seen: dict[str, Any] = {}
    for part in inputs:
        _demand(part.name not in seen, "two observations of one name")
        space: Any = part.space
        seen[part.name] = space = VecTransposeImage.transpose_space(space) if part.transpose else space
        if part.moments is not None:
            seen[part.name] = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    images = [part for part in description["parts"] if part["cnn"]]
    with th.device("meta"), _Sizes():
        extractor: BaseFeaturesExtractor
        if description["is_dict"]:
            space = spaces.Dict(list(seen.items()))
            all_divided = all(part["divide_by_255"] for part in images)
            extractor = CombinedExtractor(space, images[0]["cnn"] if images else 1, normalized_image=not all_divided)
        else:
            (space,) = seen.values()
            extractor = NatureCNN(space, images[0]["cnn"], True) if images else FlattenExtractor(space)
        return Actor(
            space,
            action_space,
            hidden,
            extractor,
            extractor.features_dim,
            ACTIVATIONS.get(description["activation"], nn.ReLU),
            normalize_images=any(part["divide_by_255"] for part in description["parts"]),
            layers=layers,
        ).eval()


class _Sizes(TorchFunctionMode):
    """SB3 runs an image through a CNN to learn its size, for which the meta device would import PyTorch's compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if function is F.conv2d:
            image, weight, _, (stride, _), *_ = args
            sides = [(side - weight.shape[-1]) // stride + 1 for side in image.shape[2:]]
            return image.new_empty((len(image), len(weight), *sides))
        return args[0] if function is F.relu else function(*args, **(kwargs or {}))


def _names(actor: Actor, inputs: tuple[Input, ...]) -> dict[str, str]:
    """By the name of a weight in the actor, the one in the file."""
    names = {name: name for name in actor.state_dict()}
    for index, part in enumerate(inputs):
        is_dict = isinstance(actor.observation_space, spaces.Dict)
        prefix = f"features_extractor.extractors.{part.name}." if is_dict else "features_extractor."
        names = {name: in_file.replace(prefix, f"observation.{index}.") for name, in_file in names.items()}
    return names


def _layers(actor: Actor) -> dict[str, str]:
    """By what they print: an activation with other arguments prints them."""
    found = {}
    for name, layer in actor.named_modules(remove_duplicate=False):
        types = {f"of {weights.dtype}" for weights in layer.parameters(recurse=False)}
        found[name] = " ".join([f"{type(layer).__name__}({layer.extra_repr()})", *types])
    return found


def _input(prefix: str, part: dict[str, Any], left: dict[str, th.Tensor]) -> Input:
    kind, counts = part["kind"], part["counts"]
    _demand(all(0 < count < 2**31 for count in counts), f"{prefix}: numbers of values {counts}")
    # Gymnasium before 1.3 has no other type of Discrete.
    dtype = {} if part["dtype"] == "int64" else {"dtype": part["dtype"]}
    space: spaces.Space[Any]
    if kind == "Box":
        space = _box(prefix, left)
    elif kind == "Discrete":
        space = spaces.Discrete(counts[0], **dtype)
    elif kind == "MultiDiscrete":
        space = spaces.MultiDiscrete(counts, **dtype)
    else:
        _demand(kind == "MultiBinary", f"unknown space {kind!r}")
        space = spaces.MultiBinary(part["shape"][0] if len(part["shape"]) == 1 else part["shape"])
    moments = None
    if part["normalize"]:
        moments = (_taken(f"{prefix}.mean", left).numpy(), _taken(f"{prefix}.variance", left).numpy())
        _demand({(each.dtype.name, each.shape) for each in moments} == {("float64", space.shape)}, f"{prefix}.mean")
    return Input(part["name"], space, bool(part["transpose"]), moments)


def _box(prefix: str, left: dict[str, th.Tensor]) -> spaces.Box:
    low, high = (_taken(f"{prefix}.{bound}", left, may_be_infinite=True).numpy() for bound in ("low", "high"))
    _demand(low.dtype == high.dtype, f"types of {prefix}")
    return spaces.Box(low, high, low.shape, low.dtype.type)


def _taken(name: str, left: dict[str, th.Tensor], may_be_infinite: bool = False) -> th.Tensor:
    """What is left in the end is too much."""
    _demand(name in left, f"missing tensor: {name}")
    tensor = left.pop(name)
    valid = ~tensor.isnan() if may_be_infinite else tensor.isfinite()
    _demand(bool(tensor.numel() and valid.all()), f"{name} is empty or holds NaN or infinity")
    return tensor


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _checksum(text: str, tensors: dict[str, Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
