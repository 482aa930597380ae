"""Whether somebody else has stepped or reset the environment since the model's last step in it.

Not here: what is done about it (`collecting.py`).

People evaluate on the training environment inside a callback, let another model learn on it, or play in it between two
calls of `learn`. A row that is stored afterwards would go from an observation of one episode to one of another. No
method of anybody's environment is replaced to notice it. Instead, what a step or a reset leaves behind is remembered:

- SB3's vectorised environments put other objects into their attributes at every step and reset;
- environments of this process, which somebody may hold without their vectorised wrapper, count timesteps or hold
  positions: of their numbers and small arrays, those that the first step has changed are compared.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

_SMALL = 4096  # bytes of an array, at most, that are compared
_OPAQUE = object()


class Footprints:
    """What the model's last step or reset has left behind. Empty, it takes every environment for one that stands."""

    def __init__(self) -> None:
        self.said = False  # in the log, that somebody else moved the environment
        self._env: VecEnv | None = None
        self._objects: list[Any] | None = None
        self._names: list[list[str]] = []
        self._values: list[list[Any]] = []
        self._settled = False
        self._all_before: list[dict[str, Any]] | None = None
        self._episode_begins = False
        self._of_single_ones = True

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_env": None}  # whoever copies a model need not be able to copy its environment

    @property
    def settled(self) -> bool:
        """Whether it is known what a step changes."""
        return self._settled

    def about_to_move(self, env: VecEnv) -> None:
        """
        :param env: that the model steps or resets next; needed until it is `settled`
        """
        self._all_before = _everything(env)

    def take(self, env: VecEnv, by_step: bool, episode_begins: bool) -> None:
        """
        :param env: that the model has stepped or reset a moment ago
        :param by_step: whether it was a step
        :param episode_begins: whether an episode of some environment begins here
        """
        if self._all_before is not None:
            self._names = [
                [name for name, value in now.items() if value is not _OPAQUE and before.get(name, _OPAQUE) != value]
                for before, now in zip(self._all_before, _everything(env), strict=False)
            ]
            self._all_before = None
            self._settled = by_step
        self._env, self._episode_begins = env, episode_begins
        self._of_single_ones = isinstance(env.unwrapped, DummyVecEnv)
        self._objects = _objects(env)
        self._values = self._values_of_now(env)

    def are_those_of(self, env: VecEnv) -> bool:
        """
        :param env: as it is now
        :return: False when somebody else has stepped or reset it
        """
        if self._objects is None or (self._env is not None and self._env is not env):
            return True  # nothing is known of this one
        *steps, seeds, options = _objects(env)
        *own_steps, own_seeds, own_options = self._objects
        if any(now is not own for now, own in zip(steps, own_steps, strict=True)):
            return False
        # A reset leaves other lists, and empty ones; `seed` and `set_options` leave what they were given.
        is_reset = seeds is not own_seeds and options is not own_options
        if is_reset and all(seed is None for seed in seeds) and not any(options):
            return False
        for values, before in zip(self._values_of_now(env), self._values, strict=False):
            if values == before:
                continue
            changed = sum(now != was for now, was in zip(values, before, strict=True))
            # A callback may have set one of them, or a method that it called. Where the model's own episode begins, all
            # but one may be the same after somebody else's reset, and so may they in a vectorised environment.
            if changed and (self._episode_begins or 2 * changed >= len(before) or not self._of_single_ones):
                return False
        return True

    def _values_of_now(self, env: VecEnv) -> list[list[Any]]:
        pairs = zip(_layers(env), self._names, strict=False)
        return [[_frozen(layer.get(name, _OPAQUE)) for name in names] for layer, names in pairs]


def _objects(env: VecEnv) -> list[Any]:
    """What a step replaces, then what a reset replaces."""
    held = vars(env.unwrapped)
    reset_infos = held.get("reset_infos")  # of SubprocVecEnv a new tuple, of others a list that stays
    reset_infos = reset_infos if type(reset_infos) is tuple else None
    return [held.get("actions"), held.get("_actions"), reset_infos, held.get("_seeds"), held.get("_options")]


def _layers(env: VecEnv) -> list[dict[str, Any]]:
    """Attributes of each environment of this process and of each wrapper around it."""
    inner = env.unwrapped
    if isinstance(inner, SubprocVecEnv):
        return []
    if not isinstance(inner, DummyVecEnv):
        return [vars(inner)]
    layers: list[dict[str, Any]] = []
    for one in inner.envs:
        layer: Any = one
        while layer is not None:
            layers.append(getattr(layer, "__dict__", {}))
            layer = layers[-1].get("env")
    return layers


def _everything(env: VecEnv) -> list[dict[str, Any]]:
    return [{name: _frozen(value) for name, value in layer.items()} for layer in _layers(env)]


def _frozen(value: Any) -> Any:  # noqa: ANN401 - whatever an environment holds
    """What can be compared later, also when the object is written into."""
    kind = type(value)
    if kind is int or kind is float or kind is bool or value is None:
        return value if value == value else "NaN"  # which is not equal to itself
    if isinstance(value, np.ndarray | np.number):
        return value.tobytes() if value.nbytes <= _SMALL and not value.dtype.hasobject else _OPAQUE
    if kind in (list, tuple) and len(value) <= 16 and all(type(part) in (int, float, bool) for part in value):
        return tuple(map(_frozen, value))
    return _OPAQUE
