"""Writes the policy as a safetensors file of the format that `policy_file.py` describes and reads.

Not here: the format, and the comparison with `predict` (`source.py`, where the public call is too).
"""

import io
import json
from dataclasses import asdict

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_simple_ddpg.export import policy_file
from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.export.policy_file import ACTIVATIONS, Description, Part
from sb3_simple_ddpg.export.source import Array, Input, Source
from sb3_simple_ddpg.policies import Actor
from sb3_simple_ddpg.speed.layers import DenseLayers


def build(source: Source) -> bytes:
    """
    :param source: from `export.describe`
    :return: the file's content, loaded again and compared
    :raises ValueError: for a policy that the file has no words for
    :raises ImportError: without safetensors
    """
    safetensors = export.optional_library("safetensors.numpy")
    actor = export.bare_actor(source.model)
    if type(actor) is not Actor:
        raise _unknown(f"the actor {type(actor).__name__}")
    extractor = actor.features_extractor
    by_name = dict(extractor.extractors.items()) if type(extractor) is CombinedExtractor else {}
    parts, tensors = [], {"action.low": source.action_space.low, "action.high": source.action_space.high}
    for index, each in enumerate(source.inputs):
        module = by_name.get(each.name, extractor)
        parts.append(_describe(each, module, source))
        tensors |= _numbers_of(f"observation.{index}", each, module)
    hidden, activation = _dense_layers(actor.mu)
    tensors |= {f"mu.{name}": _array(weights) for name, weights in actor.mu.state_dict().items()}
    if any(part.normalize for part in parts):
        tensors["normalizer"] = np.array([source.epsilon, source.clip])
    shape, dtype = source.action_space.shape, str(source.action_space.dtype)
    provenance = export.provenance(source.model)
    description = Description(tuple(parts), source.is_dict, hidden, activation, shape, dtype, provenance)

    text = json.dumps({"format": policy_file.FORMAT, "version": policy_file.VERSION, **asdict(description)})
    tensors = {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in tensors.items()}
    metadata = {"description": text, "sha256": policy_file.checksum(text, tensors)}
    content: bytes = safetensors.save(tensors, metadata)
    policy = policy_file.parse(io.BytesIO(content), len(content))

    def answer(observations: dict[str, Array]) -> Array:
        return policy.predict(observations if source.is_dict else observations[export.OBSERVATION])[0]

    export.check(source, answer)
    return content


def _unknown(what: str) -> ValueError:
    known = f"FlattenExtractor, NatureCNN, CombinedExtractor, dense layers with {', '.join(ACTIVATIONS)}"
    return ValueError(f"save_policy has no words for {what}, only for {known}: use export_onnx, which takes any layer.")


def _describe(each: Input, module: nn.Module, source: Source) -> Part:
    if type(module) not in (FlattenExtractor, nn.Flatten, NatureCNN):
        raise _unknown(f"the features extractor {type(module).__name__}")
    space, seen = each.space, source.model.observation_space
    counts: tuple[int, ...] = ()
    if isinstance(space, spaces.Discrete):
        counts = (int(space.n),)
    elif isinstance(space, spaces.MultiDiscrete):
        counts = tuple(space.nvec.tolist())
    seen = seen[each.name] if isinstance(seen, spaces.Dict) else seen
    return Part(
        each.name,
        type(space).__name__,
        space.shape or (),
        str(space.dtype),
        counts,
        normalize=each.mean is not None,
        transpose=each.transpose,
        divide_by_255=bool(source.model.policy.normalize_images and is_image_space(seen)),
        cnn=module.features_dim if isinstance(module, NatureCNN) else 0,
    )


def _numbers_of(prefix: str, each: Input, module: nn.Module) -> dict[str, Array]:
    found: dict[str, Array] = {}
    if isinstance(each.space, spaces.Box):
        found = {f"{prefix}.low": each.space.low, f"{prefix}.high": each.space.high}
    if each.mean is not None and each.variance is not None:
        found |= {f"{prefix}.mean": each.mean, f"{prefix}.variance": each.variance}
    return found | {f"{prefix}.{name}": _array(weights) for name, weights in module.state_dict().items()}


def _dense_layers(mu: nn.Module) -> tuple[tuple[int, ...], str]:
    """Units of the hidden layers, and the name of the activation between them."""
    if type(mu) is not DenseLayers:
        raise _unknown(f"layers in a {type(mu).__name__}")
    linear, between, units = list(mu)[:-1:2], list(mu)[1:-1:2], []
    name = type(between[0]).__name__ if between else "ReLU"
    for layer in linear:
        if type(layer) is not nn.Linear:
            raise _unknown(f"a layer {layer}")
        units.append(layer.out_features)
    for layer in between:
        # By what they print: an activation with other arguments prints them.
        if name not in ACTIVATIONS or type(layer) is not ACTIVATIONS[name] or repr(layer) != repr(ACTIVATIONS[name]()):
            raise _unknown(f"a layer {layer}")
    if type(mu[-1]) is not nn.Tanh:
        raise _unknown(f"a last layer {mu[-1]}")
    return tuple(units[:-1]), name


def _array(weights: th.Tensor) -> Array:
    if weights.dtype != th.float32:
        raise _unknown(f"weights of {weights.dtype}")
    array: Array = weights.detach().cpu().numpy()
    return array
