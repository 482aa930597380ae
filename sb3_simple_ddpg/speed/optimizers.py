"""PyTorch's Adam, AdamW and SGD in their fused form, with fewer calls before Adam's kernel: most of a small one's step.

Not here: another formula. The kernels, the states and their format are PyTorch's, and whatever the short way does not
know goes PyTorch's own way.
"""

import operator
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_simple_ddpg.speed.torch_private import fused_adam_, fused_adamw_, optimizer_is_listened_to


def forget_gradients(optimizer: th.optim.Optimizer) -> None:
    """
    What `optimizer.zero_grad()` does, in fewer calls; one of the user's own is called.

    :param optimizer: of any class
    """
    if has_its_own_zero_grad(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = None


def has_its_own_zero_grad(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: of any class
    :return: whether `zero_grad` is not PyTorch's
    """
    return type(optimizer).zero_grad is not _ZERO_GRAD or "zero_grad" in vars(optimizer)


def with_those_held(weights: list[th.Tensor], optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """
    :param weights: of a network
    :param optimizer: of the network
    :return: the same, and what else the optimizer moves: layers that are called and belong to no network, for example
    """
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    if len(held) == len(weights) and all(map(operator.is_, held, weights)):
        return weights
    return list({id(weight): weight for weight in [*weights, *held]}.values())


_ZERO_GRAD = th.optim.Optimizer.zero_grad


class _Fused(th.optim.Optimizer):
    """Fused where that is right: PyTorch 2.13's kernels walk over memory, and mix up what lies in another order."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - the closure's
        """
        :param closure: computes the loss anew
        :return: what the closure returned
        """
        if closure is None and self._is_plain() and self._short_step():
            return None
        # PyTorch wraps the method when it makes the first optimizer of a class, so that it calls hooks.
        step: Any = self._of_pytorch.step
        if not getattr(step, "hooked", False):
            step = th.optim.Optimizer.profile_hook_step(step)
        if closure is None and self._lie_alike():
            return step(self, closure)
        flags = [{name: group[name] for name in ("fused", "foreach")} for group in self.param_groups]
        for group in self.param_groups:  # a closure may give gradients of any kind
            group.update(fused=False, foreach=False)
        try:
            return step(self, closure)
        finally:
            for group, own in zip(self.param_groups, flags, strict=True):
                group.update(own)

    step.hooked = True  # type: ignore[attr-defined]  # not to be wrapped: the wrapper costs as much as the kernel

    _of_pytorch: type[th.optim.Optimizer]

    def _is_plain(self) -> bool:
        return False

    def _short_step(self) -> bool:
        return False

    def _lie_alike(self) -> bool:
        """Whether each weight, its gradient and its state lie in memory in one order."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        states = [self.state.get(weight, _NO_STATE) for weight in weights]
        tensors = [*weights, *gradients, *chain.from_iterable(map(dict.values, states))]
        if all(map(_lies_in_rows, tensors)):
            return True
        return all(
            each.stride() == weight.stride()
            for weight, gradient, state in zip(weights, gradients, states, strict=True)
            for each in (gradient, *state.values())
            if isinstance(each, th.Tensor) and each.dim()
        )


def _lies_in_rows(value: object) -> bool:
    return not isinstance(value, th.Tensor) or value.is_contiguous()


_NO_STATE: dict[str, Any] = {}


class _ShortStep(_Fused):
    _of_pytorch = th.optim.Adam  # AdamW's step too

    def _is_plain(self) -> bool:
        """One group of weights on the CPU, with gradients and state; no variant chosen, nobody listening."""
        group = self.param_groups[0]
        return (
            len(self.param_groups) == 1
            and group["fused"]
            and not (group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"])
            and not optimizer_is_listened_to(self)
            and all(
                weight.grad is not None and weight.is_cpu and weight.dtype is th.float32 and weight in self.state
                for weight in group["params"]
            )
        )

    @th.no_grad()
    def _short_step(self) -> bool:
        """What `torch.optim.Adam.step` of PyTorch 2.13 comes to, where all lies in memory row by row."""
        group = self.param_groups[0]
        weights = group["params"]
        gradients = [weight.grad for weight in weights]
        states = [self.state[weight] for weight in weights]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        if not all(map(th.Tensor.is_contiguous, chain(weights, gradients, means, squares))):
            return False
        kernel = fused_adamw_ if group["decoupled_weight_decay"] else fused_adam_
        if kernel is None:
            return False
        steps = [state["step"] for state in states]
        for step in steps:
            step += 1
        beta1, beta2 = group["betas"]
        kernel(
            weights,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        return True


class FusedAdam(_ShortStep, th.optim.Adam):
    """`torch.optim.Adam(..., fused=True)`."""


class FusedAdamW(_ShortStep, th.optim.AdamW):
    """`torch.optim.AdamW(..., fused=True)`."""


class FusedSGD(_Fused, th.optim.SGD):
    """`torch.optim.SGD(..., fused=True)`."""

    _of_pytorch = th.optim.SGD


def own_copy(model: BaseAlgorithm, parameters: dict[str, Any]) -> dict[str, Any]:
    """
    A copy to load from: PyTorch's optimizers go on with the very tensors that they are given, and with their flags.

    :param model: the agent that is to load
    :param parameters: what `get_parameters` of an agent gave; stays as it is
    :return: a copy, with the flags of this agent's optimizers: how they compute a step, not which
    """
    parameters = deepcopy(parameters)
    for name in ("actor.optimizer", "critic.optimizer"):
        own_groups = recursive_getattr(model, name).param_groups
        for group, own in zip(parameters.get(name, {}).get("param_groups", []), own_groups, strict=False):
            group.update({flag: own[flag] for flag in _OPTIMIZER_FLAGS if flag in own})
    return parameters


_OPTIMIZER_FLAGS = ("fused", "foreach", "capturable", "differentiable")
