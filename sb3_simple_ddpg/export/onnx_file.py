"""The policy as an ONNX file: PyTorch's exporter traces it from raw observation to environment action.

Not here: what a raw observation is, and the comparison with `predict` (`source.py`, where the public call is too).
"""

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.export.source import Array, Input, Source
from sb3_simple_ddpg.policies import Actor

OUTPUT = "action"


def build(source: Source) -> bytes:
    """
    :param source: from `export.describe`
    :return: the file's content, checked with onnxruntime
    :raises ValueError: for what cannot be traced, or answers otherwise than `predict`
    :raises ImportError: without onnx, onnxscript or onnxruntime
    """
    onnx, onnxruntime = export.optional_library("onnx"), export.optional_library("onnxruntime")
    export.optional_library("onnxscript")  # PyTorch's exporter imports it, and says less where it is missing
    for part in source.inputs:
        if part.name in ("", OUTPUT):
            raise ValueError(
                f"No key of the observations may be called {part.name!r} in ONNX, where {OUTPUT!r} is the output: "
                "rename it in the environment, or use save_policy."
            )
    model = _trace(source)
    _rename(model.graph, [part.name for part in source.inputs])
    _strip(model)
    onnx.helper.set_model_props(
        model,
        {
            "observation_space": json.dumps({part.name: describe_space(part.space) for part in source.inputs}),
            "action_space": json.dumps(describe_space(source.action_space)),
            "source": json.dumps(export.provenance(source.model)),
        },
    )
    model.producer_name, model.producer_version = "sb3-simple-ddpg", metadata.version("sb3-simple-ddpg")
    content: bytes = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has classes of its own for this
        raise ValueError(f"onnxruntime cannot run the policy ({error}): {export.CURE}") from error
    export.check(source, lambda observations: session.run([OUTPUT], observations)[0])
    return content


class RawPolicy(nn.Module):
    """
    Everything from raw observations to environment actions as one module, for tracing.

    :param actor: the networks
    :param source: what lies before and behind them
    """

    def __init__(self, actor: Actor, source: Source) -> None:
        super().__init__()
        self.actor = actor
        self.inputs, self.is_dict, self.clip = source.inputs, source.is_dict, source.clip
        self.action_shape = source.action_space.shape
        low, high = source.action_space.low, source.action_space.high
        self.register_buffer("low", th.as_tensor(low))
        self.register_buffer("width", th.as_tensor(high - low))
        for index, part in enumerate(self.inputs):
            if part.mean is not None and part.variance is not None:
                self.register_buffer(f"mean_{index}", th.as_tensor(part.mean))
                self.register_buffer(f"std_{index}", th.as_tensor(np.sqrt(part.variance + source.epsilon)))

    def forward(self, observations: tuple[th.Tensor, ...]) -> th.Tensor:
        """
        :param observations: raw, in the order of the inputs, each of shape (B, ...)
        :return: actions, shape (B, ...), in the environment's range
        """
        prepared = {
            part.name: self._prepare(index, part, observation)
            for index, (part, observation) in enumerate(zip(self.inputs, observations, strict=True))
        }
        squashed = self.actor(prepared if self.is_dict else prepared[export.OBSERVATION])
        # As SB3's `unscale_action`, whose first two steps are in single precision for bounds of double precision too.
        shares = 0.5 * (squashed.reshape(-1, *self.action_shape) + 1.0)
        actions: th.Tensor = self.low + shares * self.width
        return actions

    def _prepare(self, index: int, part: Input, observation: th.Tensor) -> th.Tensor:
        if part.mean is not None:
            # In double precision, as VecNormalize computes.
            mean, std = getattr(self, f"mean_{index}"), getattr(self, f"std_{index}")
            observation = ((observation.double() - mean) / std).clamp(-self.clip, self.clip).float()
        return observation.permute(0, 3, 1, 2) if part.transpose else observation


def _trace(source: Source) -> Any:  # noqa: ANN401 - onnx.ModelProto, which is imported later
    policy = RawPolicy(export.bare_actor(source.model), source).eval()
    # Two rows: PyTorch would take a batch of one for a constant.
    rows = export.probes(source.inputs, source.epsilon)
    examples = tuple(th.as_tensor(rows[part.name][:2]) for part in source.inputs)
    batch = th.export.Dim("batch")
    try:
        with _silence(), th.no_grad():  # as in predict: with gradients, layers choose another layout
            program = th.export.export(
                policy, (examples,), dynamic_shapes=(tuple({0: batch} for _ in examples),), strict=False
            )
            exported = th.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # whatever the user's modules raise, and a dozen classes of PyTorch's own
        extractor = type(source.model.actor.features_extractor).__name__
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"The actor with features extractor {extractor} cannot be traced for ONNX ({reason}): {export.CURE}"
        ) from error
    assert exported is not None
    return copy.deepcopy(exported.model_proto)


@contextmanager
def _silence() -> Iterator[None]:
    """PyTorch's exporter logs that torchvision is not there, and calls deprecated functions of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _rename(graph: Any, inputs: list[str]) -> None:  # noqa: ANN401 - onnx.GraphProto
    """Give inputs and output the names that the user knows, and everything between them names that cannot collide."""
    names: dict[str, str] = dict(zip([value.name for value in graph.input], inputs, strict=True))
    names[graph.output[0].name] = OUTPUT
    taken = {*inputs, OUTPUT}

    def renamed(name: str) -> str:
        if not name:  # an optional argument that is left out
            return name
        if name not in names:
            names[name] = name
            while names[name] in taken:
                names[name] = f"_{names[name]}"
            taken.add(names[name])
        return names[name]

    for each in _with_branches(graph):
        for node in each.node:
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
        for value in (*each.input, *each.output, *each.initializer):
            value.name = renamed(value.name)
    del graph.value_info[:]  # shapes of what lies between, which every runtime infers


def _strip(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Take out the exporter's notes, which hold paths and source lines of this machine."""
    model.doc_string = ""
    for graph in _with_branches(model.graph):
        for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            noted.doc_string = ""
            del noted.metadata_props[:]


def _with_branches(graph: Any) -> Iterator[Any]:  # noqa: ANN401 - onnx.GraphProto
    """The graph, and those that stand in its nodes: what `torch.cond` becomes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_branches(attribute.g)


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: the same for JSON; one number stands for bounds that are all equal, others are listed row by row; "inf" is
        a text
    """
    shape, dtype = list(space.shape or ()), str(space.dtype)
    described: dict[str, Any] = {"type": type(space).__name__, "shape": shape, "dtype": dtype}
    if isinstance(space, spaces.Box):
        described |= {"low": _numbers(space.low), "high": _numbers(space.high)}
    elif isinstance(space, spaces.Discrete):
        described |= {"n": int(space.n)}
    elif isinstance(space, spaces.MultiDiscrete):
        described |= {"nvec": space.nvec.tolist()}
    return described


def _numbers(bounds: Array) -> Any:  # noqa: ANN401 - a number, a text, or a list of them
    numbers = [number if math.isfinite(number) else str(number) for number in bounds.ravel().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers
