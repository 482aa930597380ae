"""Hidden layers of other kinds than DDPG's: with layer norm, or in residual blocks. `policy_kwargs=dict(layers=...)`.

Not here: actor and critic, which are made of them (`policies.py`). DDPG itself needs "dense" alone.

One critic is DDPG's, whatever it is made of. Layer norm bounds what the last layer sees, so that Q(s, a) cannot grow
without limit where no data is: Ball et al. 2023, https://arxiv.org/abs/2302.02948, Section 4.2. Residual blocks are
SimBa's: Lee et al. 2024, https://arxiv.org/abs/2410.09754, Section 4. B is the batch size.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_simple_ddpg.safety.checks import did_you_mean
from sb3_simple_ddpg.speed.layers import DenseLayers

#: One kind for both networks, or by network: `dict(pi=..., qf=...)`; one that is not named has dense layers.
Layers: TypeAlias = str | Mapping[str, str]

DENSE: Final = "dense"
KINDS: Final = (DENSE, "layer_norm", "residual")


class ResidualBlock(nn.Module):
    """
    x + W2 f(W1 LN(x) + b1) + b2: what the block adds starts small beside x, which goes through as it is.

    :param width: numbers in x
    :param units: of the layer between W1 and W2; SimBa has four times the width
    :param activation_fn: f
    """

    def __init__(self, width: int, units: int, activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.units = units
        self.change = DenseLayers(
            nn.LayerNorm(width), nn.Linear(width, units), activation_fn(), nn.Linear(units, width)
        )

    def forward(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: x, shape (B, width)
        :return: shape (B, width)
        """
        changes: th.Tensor = self.change(values)
        return values + changes


def make_layers(
    kind: str,
    inputs: int,
    outputs: int,
    net_arch: list[int],
    activation_fn: type[nn.Module],
    squash_output: bool = False,
) -> list[nn.Module]:
    """
    - "dense": Linear, f, ..., Linear: SB3's layers, in its order.
    - "layer_norm": Linear, LayerNorm, f, ..., Linear.
    - "residual": Linear, ResidualBlock, ..., LayerNorm, Linear. The first number of `net_arch` is the width of what
      goes through all blocks, each other one the units within one block: [128, 512] is the actor of SimBa.

    Weights start as PyTorch's do in all three; SimBa's own start orthogonal and by He's rule.

    :param kind: one of `KINDS`
    :param inputs: numbers that go in
    :param outputs: numbers that come out
    :param net_arch: units of each hidden layer; may be empty, which is one linear layer of any kind
    :param activation_fn: f
    :param squash_output: end with tanh
    :return: the layers
    :raises ValueError: for a layer norm over one number
    """
    normalised = {DENSE: [], "layer_norm": net_arch, "residual": net_arch[:1]}[kind]
    if 1 in normalised:
        raise ValueError(
            f"net_arch={net_arch} with layers={kind!r} has a layer norm over one number, which is 0 whatever goes in: "
            "use 2 units or more there."
        )
    if kind != "residual" or not net_arch:
        norm: list[type[nn.Module]] = [nn.LayerNorm] if kind == "layer_norm" else []
        return create_mlp(inputs, outputs, net_arch, activation_fn, squash_output, post_linear_modules=norm)
    width, *blocks = net_arch
    return [
        nn.Linear(inputs, width),
        *(ResidualBlock(width, units, activation_fn) for units in blocks),
        nn.LayerNorm(width),
        nn.Linear(width, outputs),
        *([nn.Tanh()] if squash_output else []),
    ]


def kinds_of(layers: Layers) -> tuple[str, str]:
    """
    :param layers: as the user gave them
    :return: the kinds of the actor's and of the critic's layers
    :raises ValueError: for another network than "pi" and "qf", or another kind than those of `KINDS`
    """
    by_network = layers if isinstance(layers, Mapping) else {"pi": layers, "qf": layers}
    for name, kind in by_network.items():
        if name not in ("pi", "qf"):
            raise ValueError(f"layers must have the keys 'pi' (actor) and 'qf' (critic), got {name!r}: {layers}.")
        if kind not in KINDS:
            raise ValueError(
                f"layers must be one of {', '.join(KINDS)}, or dict(pi=..., qf=...), got {kind!r}: "
                f"{did_you_mean(str(kind), list(KINDS))}"
            )
    return by_network.get("pi", DENSE), by_network.get("qf", DENSE)
