"""The policy as an ONNX file: PyTorch's exporter traces it from raw observation to environment action.

Not here: what a raw observation is, and the comparison with `predict` (`source.py`, where the public call is too).
"""

import json
import logging
import math
import warnings
from importlib import metadata
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.export.source import Array, Source

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
    for part in source.policy.inputs:
        if part.name in ("", OUTPUT):
            raise ValueError(
                f"No key of the observations may be called {part.name!r} in ONNX, where {OUTPUT!r} is the output: "
                "rename it in the environment, or use save_policy."
            )
    program = _trace(source)
    _rename(program.model, [part.name for part in source.policy.inputs])
    notes = {
        "observation_space": {part.name: describe_space(part.space) for part in source.policy.inputs},
        "action_space": describe_space(source.model.action_space),
        "source": export.provenance(source.model),
    }
    program.model.metadata_props.update({name: json.dumps(note) for name, note in notes.items()})
    program.model.producer_name = "sb3-simple-ddpg"
    program.model.producer_version = metadata.version("sb3-simple-ddpg")
    model = program.model_proto
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


def _trace(source: Source) -> th.onnx.ONNXProgram:
    # Two rows: PyTorch would take a batch of one for a constant.
    rows = export.probes(source.policy.inputs, source.policy.epsilon)
    examples = tuple(th.as_tensor(rows[part.name][:2]) for part in source.policy.inputs)
    shapes = (tuple({0: th.export.Dim("batch")} for _ in examples),)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        # PyTorch's exporter logs that torchvision is not there, and calls deprecated functions of its own.
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), th.no_grad():  # as in predict: with gradients, layers choose another layout
            warnings.simplefilter("ignore")
            traced = th.export.export(source.policy, (examples,), dynamic_shapes=shapes, strict=False)
            program = th.onnx.export(traced, dynamo=True, verbose=False)
    except Exception as error:  # whatever the user's modules raise, and a dozen classes of PyTorch's own
        extractor = type(source.model.actor.features_extractor).__name__
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"The actor with features extractor {extractor} cannot be traced for ONNX ({reason}): {export.CURE}"
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program


def _rename(model: Any, inputs: list[str]) -> None:  # noqa: ANN401 - onnx_ir.Model
    """
    Give inputs and output the names that the user knows, and what lies between names that cannot collide. Take out the
    exporter's notes, which hold paths and source lines of this machine.
    """
    passes = export.optional_library("onnx_ir.passes.common")
    for value, name in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, OUTPUT), strict=True):
        value.name = name
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    passes.ClearMetadataAndDocStringPass()(model)
    passes.NameFixPass()(model)


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
