"""The private names of PyTorch that this package uses, each with the version it was seen in and what happens when it is
missing.

Not here: what is done with them.

All tensors in one call, seen in 2.8 and 2.13; where one is missing, each tensor has a call of its own:
- `_foreach_copy_`; `_foreach_lerp_`; `_amp_foreach_non_finite_check_and_unscale_`, which GradScaler uses.
- `_fused_adam_` and `_fused_adamw_`: where they are missing, PyTorch's optimizers take their own way.
- `torch._C._dynamo.guards.TensorGuards`, which tells whether the layout of some tensors is that of before.

The compiler, seen in 2.13; whatever is missing raises, and the plain path goes on with that reason:
- `torch.fx.experimental.proxy_tensor.make_fx`, `torch.utils._pytree`, `torch._inductor.compile_fx`,
  `torch._functorch.config`; `CompiledFxGraph.current_callable`: where it is missing, PyTorch's longer way is taken.

Who listens to optimizers and to all modules, seen in 2.8 and 2.13; where one is missing, nobody can:
- `_global_optimizer_pre_hooks` and `_post_hooks` in torch.optim.optimizer, `_global_forward_hooks` and its three
  relatives in torch.nn.modules.module;
- `RemovableHandle.next_id`, a count of all registered hooks: where it is missing, they are looked for every time.

What a call of a module does besides its `forward`, seen in 2.8 and 2.13; where one of these is missing, every module
counts as listened to, and is called in PyTorch's own way:
- `Module._forward_hooks`, `_forward_pre_hooks`, `_backward_hooks`, `_backward_pre_hooks`: hooked to one module;
- the same in `torch.nn.modules.module`, with `_global` in front: hooked to all modules;
- `Module._compiled_call_impl`: what `module.compile()` sets; `Module._wrapped_call_impl`: what `Module.__call__` is.

oneDNN by its own name; where one is missing, MKL multiplies:
- `torch.ops.mkldnn._linear_pointwise`, seen in 2.13;
- within the compiler `register_lowering` in torch._inductor.lowering, `LinearUnary` and `_create_output_node` in
  torch._inductor.mkldnn_ir, `FixedLayout` and `TensorBox` in torch._inductor.ir, seen in 2.13;
- `torch._C._functorch.peek_interpreter_stack`, which tells whether `torch.func` is transforming, seen in 2.8 and 2.13.

What a module consists of, seen in 2.8 and 2.13; where it is missing, `nn.Sequential` cannot work either:
- `Module._modules`, `Module._parameters`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules import module as _of_all
from torch.optim import optimizer as _of_optimizers
from torch.utils._pytree import TreeSpec as TreeSpec
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_structure as tree_structure
from torch.utils._pytree import tree_unflatten as tree_unflatten
from torch.utils.hooks import RemovableHandle

_foreach_copy_: Any = getattr(th, "_foreach_copy_", None)
_foreach_lerp_: Any = getattr(th, "_foreach_lerp_", None)
fused_adam_: Any = getattr(th, "_fused_adam_", None)
fused_adamw_: Any = getattr(th, "_fused_adamw_", None)
# What PyTorch's GradScaler uses: one pass over all tensors, times one, without waiting for the device.
_check_and_unscale: Any = getattr(th, "_amp_foreach_non_finite_check_and_unscale_", None)

_linear_pointwise: Any = getattr(th.ops.mkldnn, "_linear_pointwise", None)
_peek_interpreter_stack: Any = getattr(getattr(th._C, "_functorch", None), "peek_interpreter_stack", None)

# What guards the code that `torch.compile` makes.
_Guards: Any = getattr(getattr(getattr(th._C, "_dynamo", None), "guards", None), "TensorGuards", None)


def _onednn_product(left: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    :param left: shape (rows, inner)
    :param weight: shape (columns, inner), in any order in memory
    :param bias: shape (columns,)
    :return: left weight' + bias, shape (rows, columns), without a gradient
    """
    product: th.Tensor = _linear_pointwise(left, weight, bias, "none", [], "")
    return product


#: None where PyTorch has none.
onednn_product = _onednn_product if _linear_pointwise is not None and th._C._has_mkldnn else None


@cache
def product_in_compiled_code() -> Any:  # noqa: ANN401 - an operator
    """
    `onednn_product` without a bias as an operator for PyTorch's compiler, whose own one takes constant weights alone.

    :return: the operator; None where a part of the compiler that it needs is missing
    """
    if onednn_product is None:
        return None
    try:
        from torch._inductor.ir import FixedLayout, TensorBox
        from torch._inductor.lowering import register_lowering
        from torch._inductor.mkldnn_ir import LinearUnary, _create_output_node
    except ImportError:
        return None
    # PyTorch's cache of compiled code goes by the name alone: another lowering needs another name.
    _ours.define("product(Tensor left, Tensor weight) -> Tensor")
    _ours.impl("product", onednn_product, "CPU")
    th.library.register_fake(
        "sb3_simple_ddpg::product", lambda left, weight: left.new_empty(len(left), len(weight)), lib=_ours
    )
    operator = th.ops.sb3_simple_ddpg.product.default

    def lower(left: Any, weight: Any) -> Any:  # noqa: ANN401 - the compiler's own
        left = LinearUnary.require_contiguous(LinearUnary.realize_input(left))
        weight = LinearUnary.realize_input(weight)  # in any order
        layout = FixedLayout(left.get_device(), left.get_dtype(), [left.get_size()[0], weight.get_size()[0]])
        product = LinearUnary(layout, [left, weight], [None, "none", [-1], ""])
        return TensorBox.create(_create_output_node(product))  # type: ignore[no-untyped-call]  # PyTorch's

    register_lowering(operator, type_promotion_kind=None)(lower)
    return operator


_ours: Any = th.library.Library("sb3_simple_ddpg", "DEF")  # type: ignore[no-untyped-call]  # PyTorch's


def transforms_are_at_work() -> bool:
    """
    :return: whether `torch.func` is transforming a function, or nobody can know
    """
    return _peek_interpreter_stack is None or _peek_interpreter_stack() is not None


def copy_all(destinations: Sequence[th.Tensor], sources: Sequence[th.Tensor]) -> None:
    """
    :param destinations: overwritten, one by one
    :param sources: in the same order and shapes
    """
    if _foreach_copy_ is not None and destinations:
        _foreach_copy_(destinations, sources)
        return
    for destination, source in zip(destinations, sources, strict=True):
        destination.copy_(source)


def lerp_all(destinations: Sequence[th.Tensor], ends: Sequence[th.Tensor], share: float | th.Tensor) -> None:
    """
    :param destinations: each goes the share of the way to its end
    :param ends: in the same order and shapes
    :param share: in [0, 1]
    """
    if _foreach_lerp_ is not None and destinations and not isinstance(share, th.Tensor):
        _foreach_lerp_(destinations, ends, share)
        return
    for destination, end in zip(destinations, ends, strict=True):
        destination.lerp_(end, share)


def found_non_finite(parts: Sequence[Sequence[th.Tensor]], device: th.device) -> th.Tensor:
    """
    :param parts: tensors on one device, each part of one dtype
    :param device: theirs
    :return: 1 if a number in them is not finite, else 0; shape (1,)
    """
    found = th.zeros(1, device=device)
    for tensors in parts:
        if _check_and_unscale is not None and tensors[0].dtype in (th.float32, th.float64):
            _check_and_unscale(tensors, found, th.ones(1, device=device))
        else:
            for tensor in tensors:
                found += (~th.isfinite(tensor)).any()
    return found


def record(
    function: Callable[..., Any], inputs: Sequence[th.Tensor], wordings: dict[Any, Callable[..., Any]]
) -> th.fx.GraphModule:
    """
    :param function: of tensors
    :param inputs: of the layout that all later ones will have; the function gets stand-ins
    :param wordings: how some operations are to be said
    :return: the operations that the function calls
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imported here: it takes a second

    return make_fx(function, wordings, tracing_mode="fake")(*[tensor.detach() for tensor in inputs])


def compile_graph(graph: th.fx.GraphModule, inputs: list[th.Tensor]) -> Callable[[list[th.Tensor]], Any]:
    """
    :param graph: a function of tensors, recorded
    :param inputs: tensors of the layout that all later ones will have
    :return: the function of a list of such tensors, compiled
    """
    from torch._functorch import config as functorch_config  # imported here: it takes a second
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    inputs = [tensor.detach() for tensor in inputs]
    # The pattern matcher of PyTorch 2.13 drops what its patterns do not name: `alpha` of a sum behind a product, the
    # dimension of a softmax in attention.
    options = {"pattern_matcher": False}
    if inputs[0].device.type != "cpu":
        on_device: Any = compile_fx(graph, inputs, config_patches={**options, "triton.cudagraphs": True})
        return lambda tensors: on_device(*tensors)
    parts: list[Any] = []

    def compile_part(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the compiler's own
        parts.append(compile_fx_inner(*args, **kwargs))
        return parts[-1]

    # To check the layout of 70 tensors takes as long as a product of a small network; the caller has checked it.
    options |= {"cpp_wrapper": True, "cpp_wrapper_build_separate": True, "memory_planning": True, "size_asserts": False}
    # The processor says which instructions it has. PyTorch would compile and load a program for each first.
    # A compiler that does not know them fails a little later, and the plain path goes on.
    options |= {"cpp.vec_isa_ok": True}
    # To prepare PyTorch's headers for two kinds of files takes longer than to read them for the two files there are.
    options |= {"cpp_cache_precompile_headers": False}
    with functorch_config.patch(enable_autograd_cache=False):  # it would keep the parts from being seen
        whole: Any = compile_fx(graph, inputs, inner_compile=compile_part, config_patches=options)
    # What PyTorch puts around the compiled code is for gradients and for inputs that share memory: we have neither.
    short = getattr(parts[0], "current_callable", None) if len(parts) == 1 else None
    if short is None:
        return lambda tensors: whole(*tensors)
    return lambda tensors: short([*tensors])  # it empties the list


def end_compile_workers() -> None:
    """End the processes that PyTorch's compiler keeps for its next work; it starts others when there is some."""
    compiler: Any = sys.modules.get("torch._inductor.async_compile")
    if hasattr(compiler, "shutdown_compile_workers"):
        compiler.shutdown_compile_workers()


def layout_check(tensors: Sequence[th.Tensor]) -> Callable[[], bool]:
    """
    :param tensors: some
    :return: tells whether shape, strides, dtype and `requires_grad` of each are still those of now
    """

    def layouts() -> list[object]:
        return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad) for tensor in tensors]

    if _Guards is None:
        known = layouts()
        return lambda: layouts() == known
    check = _Guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    return lambda: check(*tensors)


def optimizer_is_listened_to(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: of PyTorch
    :return: whether somebody has hooked a function to its steps, or to those of all optimizers
    """
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or any(_OF_ALL_OPTIMIZERS))


def count_of_hooks() -> int:
    """
    :return: of all hooks that have been registered in this process, on anything; -1 where PyTorch does not count
    """
    return getattr(RemovableHandle, "next_id", -1)


def why_python_is_needed(device: th.device) -> str | None:
    """
    :param device: of the networks
    :return: what the user has switched on for all modules and all of autograd, and compiled code would pass over
    """
    if any(_OF_ALL_MODULES):
        return "there are hooks on all modules"
    if th.is_autocast_enabled(device.type):
        return "autocast is on"
    return "autograd's anomaly detection is on" if th.is_anomaly_enabled() else None


_OF_ALL_MODULES = [
    getattr(_of_all, f"_global_{name}_hooks", {}) for name in ("forward", "forward_pre", "backward", "backward_pre")
]
_OF_ALL_OPTIMIZERS = [getattr(_of_optimizers, f"_global_optimizer_{name}_hooks", {}) for name in ("pre", "post")]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_IMPLEMENTATIONS = ("_compiled_call_impl", "_wrapped_call_impl")
_HOOKS_ON_ALL = tuple(f"_global{name}" for name in _HOOKS)


def names_are_there() -> bool:
    """
    :return: whether this PyTorch has all the names that `is_listened_to` looks at
    """
    module = nn.Module()
    return (
        all(name in vars(module) for name in _HOOKS)
        and all(hasattr(module, name) for name in _IMPLEMENTATIONS)
        and all(hasattr(_of_all, name) for name in _HOOKS_ON_ALL)
    )


_NAMES_ARE_THERE = names_are_there()


def is_listened_to(*modules: nn.Module) -> bool:
    """
    :param modules: some layers or networks
    :return: whether calling one of them may do anything else than call the `forward` of its class: somebody has hooked
        a function to it or to all modules, has compiled it, or has put another `forward` or `__call__` in their place
    """
    if (
        not _NAMES_ARE_THERE
        or _of_all._global_forward_hooks
        or _of_all._global_forward_pre_hooks
        or _of_all._global_backward_hooks
        or _of_all._global_backward_pre_hooks
    ):
        return True
    call = nn.Module._wrapped_call_impl
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_compiled_call_impl" in own
            or type(module).__call__ is not call
        ):
            return True
    return False
