"""Dense layers, run with fewer calls than `nn.Sequential` makes: small networks spend more time in calls than in sums.

Not here: other mathematics. Readers of the algorithm may take `DenseLayers` for `nn.Sequential`.
"""

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
        for layer in self:
            listened_to = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
            kind = nn.Module if listened_to else type(layer)
            if kind is nn.Linear:
                parameters = layer._parameters
                values = F.linear(values, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]  # never None
            elif kind is nn.ReLU:
                values = F.relu(values)
            elif kind is nn.Tanh:
                values = th.tanh(values)
            else:
                values = layer(values)
        return values

    @property
    def device(self) -> th.device:
        """Where the first layer's weight is."""
        weight = next(iter(self._modules.values()))._parameters.get("weight")
        return next(self.parameters()).device if weight is None else weight.device
