"""PyTorch's Adam and AdamW in their fused form, with fewer calls before the kernel: most of a small network's step.

Not here: another formula. The kernel, the state and its format are PyTorch's, and whatever the short way does not know
goes PyTorch's own way.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


class _ShortStep(th.optim.Adam):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - the closure's
        """
        :param closure: computes the loss anew
        :return: what the closure returned
        """
        if closure is None and self._is_plain():
            return self._short_step()
        # PyTorch wraps the method when it makes the first optimizer of a class, so that it calls hooks.
        step: Any = th.optim.Adam.step
        if not getattr(step, "hooked", False):
            step = th.optim.Optimizer.profile_hook_step(step)
        return step(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # not to be wrapped: the wrapper costs as much as the kernel

    def _is_plain(self) -> bool:
        """One group of weights on the CPU, with gradients and state; no variant chosen, nobody listening."""
        group = self.param_groups[0]
        return (
            len(self.param_groups) == 1
            and group["fused"]
            and not (group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"])
            and not (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks)
            and not (_global_optimizer_pre_hooks or _global_optimizer_post_hooks)
            and all(
                weight.grad is not None and weight.is_cpu and weight.dtype is th.float32 and weight in self.state
                for weight in group["params"]
            )
        )

    @th.no_grad()
    def _short_step(self) -> None:
        """What `torch.optim.Adam.step` of PyTorch 2.13 comes to."""
        group = self.param_groups[0]
        weights = group["params"]
        states = [self.state[weight] for weight in weights]
        steps = [state["step"] for state in states]
        for step in steps:
            step += 1
        beta1, beta2 = group["betas"]
        kernel = th._fused_adamw_ if group["decoupled_weight_decay"] else th._fused_adam_
        kernel(
            weights,
            [weight.grad for weight in weights],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
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


class FusedAdam(_ShortStep):
    """`torch.optim.Adam(..., fused=True)`."""


class FusedAdamW(_ShortStep, th.optim.AdamW):
    """`torch.optim.AdamW(..., fused=True)`."""
