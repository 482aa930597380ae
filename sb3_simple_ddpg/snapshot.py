"""A copy of everything that a gradient step moves, to go back to: weights, buffers and optimizer states.

Not here: when to take it and when to go back (`guards.py`).
"""

import operator
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_simple_ddpg import torch_private

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


class Snapshot:
    """Empty, and false, until it is taken. The copies' memory is used again as long as the tensors are the same."""

    def __init__(self) -> None:
        self._taken = False
        self._networks: object = None
        self._values: list[Any] = []
        self._tensors: list[th.Tensor] = []
        self._copies: list[th.Tensor] = []
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._states: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._looked_at: list[th.Tensor] = []
        self._parts: list[list[th.Tensor]] = []

    def __bool__(self) -> bool:
        return self._taken

    def forget(self) -> None:
        """Somebody may have moved the weights since it was taken."""
        self._taken = False

    @th.no_grad()
    def take(self, model: "SimpleDDPG") -> None:
        """
        :param model: with its networks and optimizers of now
        """
        networks = model._networks.look(model)
        optimizers = model.actor.optimizer, model.critic.optimizer
        values = [*chain.from_iterable(networks.weights.values()), *networks.buffers, *_state_values(model)]
        if len(values) == len(self._values) and all(map(operator.is_, values, self._values)):
            torch_private.copy_all(self._copies, self._tensors)
        else:
            self._values = values
            self._tensors = [value for value in values if isinstance(value, th.Tensor)]
            self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._groups = [(group, dict(group)) for optimizer in optimizers for group in optimizer.param_groups]
        # The tensors in a state are copied above; all else in it, numbers for example, is kept here.
        self._states = [(o.state, {key: _own(state) for key, state in o.state.items()}) for o in optimizers]
        self._taken = True

    @th.no_grad()
    def restore(self) -> None:
        """Every tensor, number and state is as when it was taken; states that were created since are gone."""
        torch_private.copy_all(self._tensors, self._copies)
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
    def found(self, model: "SimpleDDPG") -> th.Tensor:
        """
        :param model: whose weights have just moved
        :return: 1 if a weight of actor or critic, or a number in an optimizer's state, is not finite, else 0; of shape
            (1,), on the device
        """
        weights = model._networks.look(model).weights
        values = [*weights["critic"], *weights["actor"], *_state_values(model)]
        if len(values) != len(self._looked_at) or not all(map(operator.is_, values, self._looked_at)):
            self._looked_at = values
            tensors = dict.fromkeys(value for value in values if isinstance(value, th.Tensor))  # some may be shared
            floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.device == model.device]
            kinds = dict.fromkeys(tensor.dtype for tensor in floats)
            self._parts = [[tensor for tensor in floats if tensor.dtype == kind] for kind in kinds]
        return torch_private.found_non_finite(self._parts, model.device)


def _state_values(model: "SimpleDDPG") -> list[Any]:
    states = chain(model.actor.optimizer.state.values(), model.critic.optimizer.state.values())
    return [*chain.from_iterable(state.values() if isinstance(state, dict) else (state,) for state in states)]


def _own(state: Any) -> Any:  # noqa: ANN401 - whatever an optimizer keeps
    """The same tensors, which are copied apart, and copies of all else that could be written into."""
    if not isinstance(state, dict):
        return state if isinstance(state, th.Tensor) else deepcopy(state)
    plain = (th.Tensor, int, float, type(None))
    return {name: value if isinstance(value, plain) else deepcopy(value) for name, value in state.items()}
