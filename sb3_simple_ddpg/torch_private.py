"""The private names of PyTorch that this package uses, each with the version it was seen in and what happens when it is
missing.

Not here: what is done with them.

What a call of a module does besides its `forward`, seen in 2.8 and 2.13; where one of these is missing, every module
counts as listened to, and is called in PyTorch's own way:
- `Module._forward_hooks`, `_forward_pre_hooks`, `_backward_hooks`, `_backward_pre_hooks`: hooked to one module;
- the same in `torch.nn.modules.module`, with `_global` in front: hooked to all modules;
- `Module._compiled_call_impl`: what `module.compile()` sets; `Module._wrapped_call_impl`: what `Module.__call__` is.

What a module consists of, seen in 2.8 and 2.13; where it is missing, `nn.Sequential` cannot work either:
- `Module._modules`, `Module._parameters`.
"""

from torch import nn
from torch.nn.modules import module as _of_all

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
