"""Dense layers, run with fewer calls than `nn.Sequential` makes: small networks spend more time in calls than in sums.

Not here: other mathematics. Readers of the algorithm may take `DenseLayers` for `nn.Sequential`.
"""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F


class DenseLayers(nn.Sequential):
    """`nn.Sequential` that calls the functions behind linear layers, ReLU and tanh itself where nobody could tell."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (B, features)
        :return: output of the last layer, shape (B, outputs)
        """
        values = inputs
        gradients = th.is_grad_enabled()
        ours = False  # what a function called here returned is known to nobody else, and may be overwritten
        for layer in self._modules.values():
            assert layer is not None
            kind = nn.Module if is_listened_to(layer) else type(layer)
            if kind is nn.Linear:
                linear = _linear if gradients else F.linear
                values = linear(values, layer._parameters["weight"], layer._parameters["bias"])  # type: ignore[arg-type]  # never None
            elif kind is nn.ReLU:
                values = th.relu_(values) if ours else th.relu(values)
            elif kind is nn.Tanh:
                values = th.tanh(values)
            else:
                values = layer(values)
            ours = kind is nn.Linear
        return values

    @property
    def device(self) -> th.device:
        """Where the first layer's weight is."""
        first: Any = self._modules["0"]
        weight = first._parameters.get("weight")
        return next(self.parameters()).device if weight is None else weight.device


def call(module: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the module takes and gives
    """
    `module(*inputs)`, without PyTorch's search for hooks where there are none.

    :param module: a network
    :param inputs: what its `forward` takes
    :return: what its `forward` returns
    """
    return module(*inputs) if is_listened_to(module) else module.forward(*inputs)


def is_listened_to(module: nn.Module) -> bool:
    """
    :param module: a layer or network
    :return: whether somebody has hooked a function to its forward or backward pass
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)


def _linear(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    `F.linear`, in a layout in which PyTorch's gradients are fast where there are few inputs.

    Products with a narrow matrix take 4 to 6 times as long in one layout as in the other, and PyTorch chooses the
    layout of a gradient by that of the value.
    """
    units, features = weight.shape
    if not (1 < features < 32 and units >= 128):
        return F.linear(inputs, weight, bias)
    if inputs.requires_grad:
        inputs = inputs.t().contiguous().t()
    return th.addmm(bias, inputs, weight.t().contiguous())
