"""One update of two copies of a model: plain, to see what it does beside moving weights; compiled, to compare the two.

Not here: tolerances of tests. Here a formula is to be told from another one, not rounding from rounding.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_simple_ddpg.speed.networks import ROLES, Networks
from sb3_simple_ddpg.speed.torch_private import tree_map

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

#: Of the largest change of a tensor. A formula that lacks a term is off by more; rounding by less than a tenth of it.
OF_CHANGE = 1e-3
#: Of the largest number in all tensors of its kind: some roundings of float32, which is exact to 6e-8.
OF_LARGEST = 3e-6
#: Adam divides by the gradient's size and its eps. With a small one, rounding where the true gradient is 0 becomes a
#: step of full size, in another direction on each path.
SMALLEST_EPS = 1e-3


class Unsuitable(Exception):
    """An update that compiled code cannot repeat, with the layer's name."""


class Disagreement(Unsuitable):
    """The compiled update did not give what the plain one gave."""


class NotFinite(Exception):
    """The batch gives no finite update, so there is nothing to compare."""


class Rehearsal:
    """
    Make a plain update of a copy. The model, the batch and all random streams stay as they are.

    `fast` is a second copy, `learning` has the names of the weights that got a gradient, of actor and critic.

    :param model: the algorithm
    :param batch: B transitions
    :raises Unsuitable: when the update draws random numbers, or moves anything but weights, or when a layer of the
        user's own holds a list, an array or the like
    :raises NotFinite: when it gives no finite numbers
    """

    def __init__(self, model: "Agent", batch: ReplayBufferSamples) -> None:
        self._model, self._batch = model, batch
        changeable = model._networks.changeable()
        if changeable:
            raise Unsuitable(f"{changeable} could change without becoming another object, and would not be followed")
        self.plain, self.fast = _copy(model), _copy(model)
        networks = self.plain._networks
        before = networks.structure
        buffers = {networks.name_of(tensor): tensor.clone() for tensor in networks.buffers}
        self.learning: list[list[str]] = [[], []]
        with self.streams_kept(), self._learning_noted():
            states = _random_states()
            statistics = self.plain._update(self.batch())
            drawn = not _are_equal(states, _random_states())
        self._statistics = statistics.tolist()
        if drawn:
            raise Unsuitable(f"{self._who_draws()} draws random numbers")
        networks.look_closely(self.plain)
        for name, kept in buffers.items():
            now = next((tensor for tensor in networks.buffers if networks.name_of(tensor) == name), None)
            if now is None or not th.equal(now, kept):
                raise Unsuitable(f"{name} changes in an update: its layer may behave differently in training")
        if networks.structure is not before:
            raise Unsuitable(f"{networks.changed or 'a layer'} changes an attribute in an update")
        if not np.isfinite(self._statistics).all() or not all(
            bool(th.isfinite(tensor).all()) for tensor in _tensors_of(self.plain)["weights"].values()
        ):
            raise NotFinite

    def batch(self) -> ReplayBufferSamples:
        """
        :return: a copy of the batch
        """
        copy: ReplayBufferSamples = tree_map(
            lambda field: field.clone() if isinstance(field, th.Tensor) else field, self._batch
        )
        return copy

    @contextmanager
    def _learning_noted(self) -> Iterator[None]:
        """Which weights have a gradient in their own network's step: a shared extractor in the actor's alone."""
        plain, gradient_step = self.plain, self.plain._gradient_step
        networks = [plain.actor, plain.critic]

        def noted(optimizer: th.optim.Optimizer, *others: Any) -> None:  # noqa: ANN401 - a loss and weights
            gradient_step(optimizer, *others)
            for network, names in zip(networks, self.learning, strict=True):
                if network.optimizer is optimizer:
                    names += [name for name, weight in network.named_parameters() if weight.grad is not None]

        plain._gradient_step = noted  # type: ignore[method-assign,assignment]  # of this copy
        try:
            yield
        finally:
            del plain._gradient_step

    @contextmanager
    def streams_kept(self) -> Iterator[None]:
        """The random streams are afterwards as they were."""
        python, numpy, torch = _random_states()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            th.set_rng_state(torch)

    def compare(self, statistics: th.Tensor) -> None:
        """
        :param statistics: of the update of `fast`
        :raises Disagreement: when it is another than that of the plain copy, with the tensor that differs most
        """
        before, plain, fast = _tensors_of(self._model), _tensors_of(self.plain), _tensors_of(self.fast)
        for kind, tensors in plain.items():
            if tensors.keys() != fast[kind].keys():
                raise Disagreement(f"the compiled update gave other {kind} than the plain one")
            largest = max((float(tensor.abs().max()) for tensor in tensors.values() if tensor.numel()), default=0.0)
            for name, tensor in tensors.items():
                old = before.get(kind, {}).get(name)
                change = float((tensor - old if old is not None else tensor).abs().max()) if tensor.numel() else 0.0
                difference = float((tensor - fast[kind][name]).abs().max()) if tensor.numel() else 0.0
                if not difference <= OF_CHANGE * change + OF_LARGEST * largest:
                    raise Disagreement(
                        f"the compiled update gave other numbers than the plain one in {name} (the largest differs by "
                        f"{difference:.2g}, where the update changed it by {change:.2g})"
                    )
        *means, saturation = self._statistics
        *fast_means, fast_saturation = statistics.tolist()[: len(self._statistics)]
        for expected, value in zip(means, fast_means, strict=True):
            if not abs(expected - value) <= OF_CHANGE * (abs(expected) + 0.01):
                raise Disagreement(f"the compiled update measured {value} where the plain one measured {expected}")
        if not abs(saturation - fast_saturation) <= 0.05:  # an action may stand on the border
            raise Disagreement(f"the compiled update saw {fast_saturation} of the actions saturated, not {saturation}")

    def _who_draws(self) -> str:
        """The layer whose forward pass moves a random stream."""
        found: list[str] = []
        copy = _copy(self._model)
        started: list[Any] = []
        for name, module in copy._networks.modules.items():
            module.register_forward_pre_hook(lambda *_: started.append(_random_states()))

            def look(*_: Any, name: str = name) -> None:  # noqa: ANN401 - the module, its inputs and output
                if not _are_equal(started.pop(), _random_states()):
                    found.append(name)

            module.register_forward_hook(look)
        with self.streams_kept():
            copy._update(self.batch())
        return found[0] if found else "the update"  # the innermost one ends first


def _copy(model: "Agent") -> "Agent":
    """Networks and optimizers of its own; all else is the model's and is only read."""
    copy = object.__new__(type(model))
    policy, *networks = deepcopy((model.policy, *(getattr(model, role) for role in ROLES)))
    copy.__dict__.update(vars(model), policy=policy, _networks=Networks(), **dict(zip(ROLES, networks, strict=True)))
    for optimizer in (copy.actor.optimizer, copy.critic.optimizer):
        for group in optimizer.param_groups:
            if isinstance(group.get("eps"), float):
                group["eps"] = max(group["eps"], SMALLEST_EPS)
    copy._networks.look_closely(copy)
    return copy


def _tensors_of(model: "Agent") -> dict[str, dict[str, th.Tensor]]:
    """All tensors that an update may move, by kind and name."""
    found: dict[str, dict[str, th.Tensor]] = {"weights": {}}
    for role in ROLES:
        network = getattr(model, role)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            found["weights"][f"{role}.{name}"] = tensor.detach()
        if role not in ("actor", "critic"):
            continue
        for name, weight in network.named_parameters():
            for part, value in network.optimizer.state.get(weight, {}).items():
                if isinstance(value, th.Tensor):
                    kind = f"{part} of the {role}'s optimizer"
                    found.setdefault(kind, {})[f"{part} of {role}.{name}"] = value.detach()
    return found


def _random_states() -> tuple[Any, Any, th.Tensor]:
    return random.getstate(), np.random.get_state(), th.get_rng_state()


def _are_equal(some: tuple[Any, Any, th.Tensor], others: tuple[Any, Any, th.Tensor]) -> bool:
    numpy_equal = some[1][2:] == others[1][2:] and np.array_equal(some[1][1], others[1][1])
    return some[0] == others[0] and bool(numpy_equal) and th.equal(some[2], others[2])
