"""What the four networks are made of now: the one place that decides whether anything is another object than before.

Not here: what is done with them (`simple_ddpg.py`, `safety/numbers.py`, `compiled.py`).

PyTorch lets everybody replace layers, weights and attributes at any moment. So lists of weights are kept only together
with the very objects that they were made from, and compared with these, by identity, at every update: about 5 us.
"""

import gc
import operator
from collections.abc import Iterator
from itertools import chain, compress, starmap
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_simple_ddpg.speed import torch_private
from sb3_simple_ddpg.speed.layers import DenseLayers

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

ROLES = ("actor", "critic", "actor_target", "critic_target")
#: What computes: a function put in the place of one of these, on a layer or in its class, is another layer.
_METHODS = ("forward", "q1_forward", "extract_features")
#: Layers whose result depends on their weights and hooks alone, whatever is written into their attributes.
_WITHOUT_SETTINGS = frozenset({nn.Linear, nn.ReLU, nn.Tanh, nn.Sequential, DenseLayers, FlattenExtractor})


class Networks:
    """
    Weights of a model's four networks, listed anew whenever they are others. It keeps nothing of the model itself, so a
    copy of a model starts with an empty list of its own.

    `weights[role]` are a network's parameters, `statistics` the running statistics of batch norm in the main networks
    (what SB3 copies to the targets: tensors with "running_" in their name), `buffers` all tensors that are not learned.
    """

    def __init__(self) -> None:
        self.weights: dict[str, list[th.Tensor]] = {}
        self.statistics: list[th.Tensor] = []
        self.statistics_of_targets: list[th.Tensor] = []
        self.buffers: list[th.Tensor] = []
        #: Layers by name, as in "actor.mu.0".
        self.modules: dict[str, nn.Module] = {}
        #: Another object whenever a layer, a weight or (after `look_closely`) an attribute is another.
        self.version: object = None
        #: Another object whenever what the networks compute may be another function of their weights.
        self.structure: object = None
        #: The layer that made `structure` another.
        self.changed = ""
        self._all: list[nn.Module] = []
        self._main_weights: list[th.Tensor] = []
        self._other_forward = ""
        self._hooks_seen, self._hooked = -1, ""
        self._roots: list[nn.Module] = []
        self._all_attributes: list[dict[str, Any]] = []
        self._holders: tuple[object, ...] = ()
        self._held: list[object] = []
        self._closely_held_by: tuple[object, ...] = ()
        self._closely_held: list[object] = []
        self._plain_attributes: list[dict[str, Any]] = []
        self._count = 0
        self._methods: list[tuple[type[nn.Module], str, None]] = []
        self._functions: list[object] = []
        self._description: dict[str, list[object]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Networks":
        return Networks()

    def __reduce__(self) -> tuple[Any, ...]:
        return Networks, ()

    def look(self, model: "Agent") -> "Networks":
        """
        :param model: with its networks of now
        :return: itself, with the lists of now
        """
        actor, critic, actor_target, critic_target = self._roots or (None, None, None, None)
        if not (
            model.actor is actor
            and model.critic is critic
            and model.actor_target is actor_target
            and model.critic_target is critic_target
            and _are_the_same(gc.get_referents(*self._holders), self._held)
        ):
            self._list(model)
        return self

    def look_closely(self, model: "Agent") -> "Networks":
        """
        Whether code that was made from these networks still computes what they do: classes and attributes too.

        :param model: with its networks of now
        :return: itself, with the lists of now
        """
        self.look(model)
        if not (
            _are_equal(gc.get_referents(*self._closely_held_by), self._closely_held)
            and sum(map(len, self._plain_attributes)) == self._count
            and list(starmap(getattr, self._methods)) == self._functions
        ):
            self._list(model)
        return self

    def hooked(self) -> str:
        """
        :return: name of a layer or learning weight that somebody listens to, or of a layer that has been given another
            `forward`; empty when there is none
        """
        count = torch_private.count_of_hooks()
        if count != self._hooks_seen or self._hooked or count < 0:
            self._hooks_seen, self._hooked = count, ""
            if any(chain.from_iterable(map(_hooks, self._all_attributes))):
                self._hooked = next(name for name, module in self.modules.items() if any(_hooks(vars(module))))
            elif any(chain.from_iterable(map(_gradient_hooks, self._main_weights))):
                self._hooked = next(self.name_of(each) for each in self._main_weights if any(_gradient_hooks(each)))
        return self._hooked or self._other_forward

    def changeable(self) -> str:
        """
        :return: name of an attribute that a class of the user's own may read and that can change inside, such as a
            list or an array: that it is the same object does not tell; empty when there is none
        """
        for name, module in self.modules.items():
            own_code = any(kind.__module__.split(".")[0] not in _KNOWN_PACKAGES for kind in type(module).__mro__)
            for attribute, value in vars(module).items() if own_code else ():
                if attribute not in _OF_BASE_CLASSES and not _is_unchangeable(value):
                    return f"{name}.{attribute}"
        return ""

    def name_of(self, tensor: th.Tensor) -> str:
        """
        :param tensor: a weight or buffer
        :return: its name, as in "actor.mu.0.weight"
        """
        for role, root in zip(ROLES, self._roots, strict=True):
            for name, own in chain(root.named_parameters(), root.named_buffers()):
                if own is tensor:
                    return f"{role}.{name}"
        return "a tensor of no network"

    def _list(self, model: "Agent") -> None:
        self._roots = [getattr(model, role) for role in ROLES]
        named = zip(ROLES, self._roots, strict=True)
        self.modules = {
            f"{role}.{name}".rstrip("."): module for role, root in named for name, module in root.named_modules()
        }
        modules = self._all = list(self.modules.values())
        self._holders = *(module._modules for module in modules), *(module._parameters for module in modules)
        self._holders += tuple(module._buffers for module in modules)
        self._held = gc.get_referents(*self._holders)
        self._all_attributes = list(map(vars, modules))
        # A module refers to its class. What plain layers hold decides nothing, unless there is more than before.
        plain = [type(module) in _WITHOUT_SETTINGS for module in modules]
        self._plain_attributes = list(compress(self._all_attributes, plain))
        self._count = sum(map(len, self._plain_attributes))
        self._closely_held_by = *modules, *compress(self._all_attributes, map(operator.not_, plain))
        self._closely_held = gc.get_referents(*self._closely_held_by)
        kinds = dict.fromkeys(map(type, modules))
        self._methods = [(kind, method, None) for kind in kinds for method in _METHODS if hasattr(kind, method)]
        self._functions = list(starmap(getattr, self._methods))
        for role, root in zip(ROLES, self._roots, strict=True):
            self.weights[role] = list(root.parameters())
        actor, critic, actor_target, critic_target = self._roots
        self.statistics = [*_running(critic), *_running(actor)]
        self.statistics_of_targets = [*_running(critic_target), *_running(actor_target)]
        self.buffers = [tensor for root in self._roots for tensor in root.buffers()]
        self._main_weights = [*self.weights["actor"], *self.weights["critic"]]
        own = (name for name, module in self.modules.items() if not vars(module).keys().isdisjoint(_METHODS))
        self._other_forward = next(own, "")
        self.version = object()
        self._hooks_seen = -1
        description = {name: list(_describe(module)) for name, module in self.modules.items()}
        others = [name for name, each in description.items() if not _are_same(each, self._description.get(name, []))]
        if others or len(description) != len(self._description):
            self.changed = others[-1] if others else ""
            self._description, self.structure = description, object()


_KNOWN_PACKAGES = frozenset({"torch", "stable_baselines3", "sb3_simple_ddpg", "builtins", "abc", "typing"})
_UNCHANGEABLE = (int, float, complex, str, bytes, type, type(None), th.dtype, th.device, FunctionType)
#: What PyTorch's, SB3's and our base classes keep, and no forward pass reads.
_OF_BASE_CLASSES = frozenset(vars(nn.Module())) | {
    "optimizer", "optimizer_class", "optimizer_kwargs", "features_extractor_class", "features_extractor_kwargs",
    "net_arch", "observation_space", "action_space", "_observation_space",
}  # fmt: skip
_hooks = operator.itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_gradient_hooks = operator.attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
#: Attributes that do not tell what a layer computes: hooks are looked at by themselves.
_NO_SETTINGS = frozenset({"optimizer", "_modules", "_parameters", "_buffers"})


def _is_unchangeable(value: object) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_unchangeable, value))
    return isinstance(value, _UNCHANGEABLE)


def _are_the_same(some: list[object], others: list[object]) -> bool:
    """Whether these are the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _are_equal(some: list[object], others: list[object]) -> bool:
    """Whether these are the very same objects, or equal: faster than to find out that they are the very same."""
    try:
        return some == others
    except Exception:  # arrays and tensors are not equal or unequal as a whole
        return False


def _running(network: nn.Module) -> list[th.Tensor]:
    tensors = chain(network.named_parameters(), network.named_buffers())
    return [tensor for name, tensor in tensors if "running_" in name]


def _describe(module: nn.Module) -> Iterator[object]:
    """All of a layer but its weights and hooks: what decides which function it computes."""
    yield module
    yield type(module)
    yield from [getattr(type(module), method) for method in _METHODS if hasattr(type(module), method)]
    yield from [name for name, weight in module._parameters.items() if weight is not None]
    yield from [name for name, buffer in module._buffers.items() if buffer is not None]
    yield from [layer for layer in module._modules.values() if layer is not None]
    for name, value in vars(module).items():
        if name not in _NO_SETTINGS and (type(module) not in _WITHOUT_SETTINGS or name in _METHODS):
            yield name
            yield value


def _are_same(some: list[object], others: list[object]) -> bool:
    return len(some) == len(others) and all(
        one is other or (type(one) is str and one == other) for one, other in zip(some, others, strict=True)
    )
