"""A copy of everything that a gradient step moves, to go back to: weights, buffers and optimizer states.

Not here: when to take it and when to go back (`numbers.py`).
"""

import operator
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_simple_ddpg.speed import torch_private

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent


class Snapshot:
    """Empty, and false, until it is taken. The memory is used again as long as the tensors are the same."""

    def __init__(self) -> None:
        self._taken = False
        self._values: list[Any] = []
        self._tensors: list[th.Tensor] = []
        self._addresses: list[int] = []
        self._parts: list[tuple[list[th.Tensor], th.Tensor]] = []
        self._others: list[tuple[th.Tensor, th.Tensor]] = []
        self._tensors_alone = True
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._states: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._looked_at: list[Any] = []
        self._kinds: list[list[th.Tensor]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, ()  # the views in it would be of other memory than a copy's weights

    def __bool__(self) -> bool:
        return self._taken

    def forget(self) -> None:
        """Somebody may have moved the weights since it was taken."""
        self._taken = False

    def take(self, model: "Agent") -> None:
        """
        :param model: whose networks have been looked at
        """
        networks, optimizers = model._networks, (model.actor.optimizer, model.critic.optimizer)
        values = [*chain.from_iterable(networks.weights.values()), *networks.buffers, *_state_values(optimizers)]
        for group in optimizers[0].param_groups + optimizers[1].param_groups:  # may hold what is in no network
            values += group["params"]
        if not (
            len(values) == len(self._values)
            and all(map(operator.is_, values, self._values))
            and list(map(th.Tensor.data_ptr, self._tensors)) == self._addresses
        ):
            self._list(values)
        for tensors, copy in self._parts:
            th.cat(tensors, out=copy)
        for tensor, copy in self._others:
            copy.copy_(tensor)
        self._groups = [(group, dict(group)) for optimizer in optimizers for group in optimizer.param_groups]
        # The tensors in a state are copied above; all else in it, numbers for example, is kept here.
        own = dict if self._tensors_alone else _own
        self._states = [(o.state, {key: own(state) for key, state in o.state.items()}) for o in optimizers]
        self._taken = True

    def _list(self, values: list[Any]) -> None:
        """All of one kind are copied into one piece of memory by one call; what does not lie in one piece, alone."""
        self._values = values
        tensors = [value for value in values if isinstance(value, th.Tensor)]
        self._tensors_alone = len(tensors) == len(values)
        self._tensors = list(dict.fromkeys(tensors))  # some may be shared
        self._addresses = list(map(th.Tensor.data_ptr, self._tensors))
        flat: dict[object, list[th.Tensor]] = {}
        self._others = []
        for tensor in self._tensors:
            if tensor.is_contiguous():
                flat.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach().view(-1))
            else:
                self._others.append((tensor.detach(), tensor.detach().clone()))
        self._parts = [(part, th.empty_like(th.cat(part))) for part in flat.values()]

    def restore(self) -> None:
        """Every tensor, number and state is as when it was taken; states that were created since are gone."""
        for tensors, copy in self._parts:
            torch_private.copy_all(tensors, th.split(copy, [tensor.numel() for tensor in tensors]))
        for tensor, copy in self._others:
            tensor.copy_(copy)
        for group, before in self._groups:
            group.clear()
            group.update(before)
        for states, all_before in self._states:
            for key in states.keys() - all_before.keys():
                del states[key]
            for key, state in all_before.items():
                if isinstance(state, dict):
                    states[key].clear()
                    states[key].update(state)
                else:
                    states[key] = state

    @th.no_grad()
    def found(self, model: "Agent") -> th.Tensor:
        """
        :param model: whose weights have moved
        :return: 1 if a weight of actor or critic, or a number in an optimizer's state, is not finite, else 0; of shape
            (1,), on the device
        """
        weights, optimizers = model._networks.weights, (model.actor.optimizer, model.critic.optimizer)
        values = [*weights["critic"], *weights["actor"], *_state_values(optimizers)]
        if len(values) != len(self._looked_at) or not all(map(operator.is_, values, self._looked_at)):
            self._looked_at = values
            # The tensors themselves: `weight.data = ...` gives them other memory. Some may be shared.
            tensors = dict.fromkeys(value for value in values if isinstance(value, th.Tensor))
            floats = [each for each in tensors if each.is_floating_point() and each.device == model.device]
            kinds = dict.fromkeys(tensor.dtype for tensor in floats)
            self._kinds = [[tensor for tensor in floats if tensor.dtype == kind] for kind in kinds]
        return torch_private.found_non_finite(self._kinds, model.device)


def _state_values(optimizers: tuple[th.optim.Optimizer, th.optim.Optimizer]) -> list[Any]:
    states = chain(optimizers[0].state.values(), optimizers[1].state.values())
    return [*chain.from_iterable(state.values() if isinstance(state, dict) else (state,) for state in states)]


def _own(state: Any) -> Any:  # noqa: ANN401 - whatever an optimizer keeps
    """The same tensors, which are copied apart, and copies of all else that could be written into."""
    if not isinstance(state, dict):
        return state if isinstance(state, th.Tensor) else deepcopy(state)
    plain = (th.Tensor, int, float, type(None))
    return {name: value if isinstance(value, plain) else deepcopy(value) for name, value in state.items()}
