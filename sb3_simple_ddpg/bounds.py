"""Bounds on every number of an update, to tell when none can overflow.

Not here: what is done where one can (`guards.py`).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_simple_ddpg.layers import DenseLayers
from sb3_simple_ddpg.optimizers import FusedAdam, FusedAdamW
from sb3_simple_ddpg.policies import Actor, Critic

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


class Bounds:
    """
    Tells when no number of an update can overflow: then it cannot go wrong, and nothing needs to be remembered.

    To copy all weights and optimizer states costs 6 % of a compiled update, more by what it drives out of the caches
    than by itself. The bounds hold for dense layers, whose outputs are at most inputs times units times largest weight,
    and for Adam, which moves no weight by more than a multiple of its learning rate (`adam_step`).

    :param model: the algorithm, set up
    """

    #: Updates between two looks at the weights.
    LASTS = 200
    #: Of float32, squared: Adam squares gradients, the critic's loss its errors.
    LARGEST = 1e18

    def __init__(self, model: "SimpleDDPG") -> None:
        self.model = model
        policy = model.policy
        self.networks = [(policy.critic, policy.critic_target), (policy.actor, policy.actor_target)]
        self.optimizers = [network.optimizer for network, _ in self.networks]
        self.left = 0
        self.key: object = None
        self.states: tuple[Any, ...] = ()  # kept, so that no other can have their identity
        self.largest_square = -1.0  # of all inputs together; none is small enough

    def exclude_overflow(self, batches: Sequence[ReplayBufferSamples]) -> bool:
        """
        :param batches: of the next updates
        :return: whether every number in them, and every new weight, is certain to be finite
        """
        if len(batches) > self.LASTS:
            return False
        critic, actor = self.optimizers
        states = critic.state, actor.state  # set_parameters replaces them
        rates = critic.param_groups[0]["lr"], actor.param_groups[0]["lr"]
        key = (*map(id, states), *map(len, states), *rates)
        if self.left < len(batches) or key != self.key:
            self.left, self.key, self.states = self.LASTS, key, states
            self.largest_square = self._largest_square()
        self.left -= len(batches)
        if self.largest_square < 0:
            return False
        square = 0.0
        for batch in batches:
            for values in (batch.observations.numpy(), batch.next_observations.numpy(), batch.rewards.numpy()):
                square += float(np.vdot(values, values))  # a sum of float32 would warn of its overflow
        return square <= self.largest_square  # not so for NaN

    def _largest_square(self) -> float:
        """Of inputs, for which nothing can overflow; -1 where no bound is known."""
        layers = [_dense_layers(network) for network, _ in self.networks]
        plain = all(
            type(optimizer) in (FusedAdam, FusedAdamW) and optimizer.state and len(optimizer.param_groups) == 1
            for optimizer in self.optimizers
        )
        if not plain or None in layers or self.model.device.type != "cpu":
            return -1.0
        sizes = []
        for network, target, optimizer in zip(*zip(*self.networks, strict=True), self.optimizers, strict=True):
            group = optimizer.param_groups[0]
            step = adam_step(group["lr"], *group["betas"])
            weights = [*network.parameters(), *target.parameters()]
            norms = [float(weight.detach().abs().max()) for weight in weights]
            largest = max(norms) + self.LASTS * step
            sizes.append([(layer.in_features, layer.out_features, largest) for layer in _dense_layers(network) or []])
        critic, actor = sizes
        squares = [10.0**exponent for exponent in range(24, -1, -1)]
        return next((square for square in squares if largest_number(critic, actor, square) < self.LARGEST), -1.0)


def _dense_layers(network: th.nn.Module) -> list[th.nn.Linear] | None:
    """The linear layers of an actor or critic; None where anything but them, ReLU and tanh is in it."""
    layers = [layer for layer in network.modules() if not isinstance(layer, Actor | Critic | DenseLayers)]
    known = {th.nn.Linear, th.nn.ReLU, th.nn.Tanh, th.nn.Flatten, FlattenExtractor}
    space: Any = network.observation_space
    flat = type(space) is spaces.Box and len(space.shape) == 1 and space.dtype.kind == "f"
    if not flat or any(type(layer) not in known for layer in layers):
        return None
    return [layer for layer in layers if isinstance(layer, th.nn.Linear)]


def largest_number(critic: list[tuple[int, int, float]], actor: list[tuple[int, int, float]], square: float) -> float:
    """
    A bound for every value, error and gradient of one update.

    :param critic: inputs, outputs and largest weight of each layer
    :param actor: likewise
    :param square: of all observations and rewards together
    :return: in no unit: the largest of what has any
    """
    largest_input = max(1.0, math.sqrt(square))

    def outputs(layers: list[tuple[int, int, float]]) -> list[float]:
        values = [largest_input]
        for inputs, _, weight in layers:
            values.append((inputs * values[-1] + 1) * weight)
        return values

    def gradients(layers: list[tuple[int, int, float]], values: list[float], error: float) -> tuple[float, float]:
        largest = error
        for (_, units, weight), value in zip(reversed(layers), reversed(values[:-1]), strict=True):
            largest = max(largest, error * max(1.0, value))
            error *= units * weight
        return max(largest, error), error

    q_values, actions = outputs(critic), outputs(actor)
    # The derivative of the mean squared error, where |Q - y| <= 2 |Q| + |r|; and that of -Q, into the actions.
    of_critic, _ = gradients(critic, q_values, 2 * (2 * q_values[-1] + largest_input))
    _, into_actions = gradients(critic, q_values, 1.0)
    of_actor, _ = gradients(actor, actions, into_actions)
    return max(*q_values, *actions, of_critic, of_actor)


def adam_step(learning_rate: float, beta1: float, beta2: float) -> float:
    """
    The most by which Adam moves a weight in one update: lr max(1, r) / sqrt(1 - beta1^2 / beta2), where
    r = (1 - beta1) / sqrt(1 - beta2).

    By Cauchy and Schwarz |m| / sqrt(v) <= r / sqrt(1 - beta1^2 / beta2) for any gradients, m and v being sums of
    beta1^i g and beta2^i g^2 (Kingma & Ba 2015, Algorithm 1); the bias correction multiplies by at most 1 / r or 1.

    :param learning_rate: lr
    :param beta1: of the first moment
    :param beta2: of the second moment
    :return: in the unit of a weight; infinite where there is no bound
    """
    if not beta1**2 < beta2 < 1:
        return math.inf
    return learning_rate * max(1.0, (1 - beta1) / math.sqrt(1 - beta2)) / math.sqrt(1 - beta1**2 / beta2)
