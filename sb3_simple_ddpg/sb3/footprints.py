"""Whether somebody else has stepped or reset the environment since the model's last step in it.

Not here: what is done about it (`collecting.py`).

People evaluate on the training environment inside a callback, let another model learn on it, or play in it between two
calls of `learn`. A row that is stored afterwards would go from an observation of one episode to one of another. No
method of anybody's environment is replaced to notice it. Instead, what a step or a reset leaves behind is remembered:

- SB3's vectorised environments put other objects into their attributes at every step and reset;
- environments of this process, which somebody may hold without their vectorised wrapper, count timesteps or hold
  positions: of their numbers and small arrays, those that both of the first steps have changed are compared.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

_SMALL = 4096  # bytes of an array, at most, that are compared
#: What may be written into; anything else is another object when its value is another.
_WRITABLE = frozenset({np.ndarray, list})


class Footprints:
    """What the model's last step or reset has left behind. Empty, it takes every environment for one that stands."""

    def __init__(self) -> None:
        self.said = False  # in the log, that somebody else moved the environment
        self._steps_seen = 0
        self._all_before: list[dict[str, Any]] = []
        self._names: list[list[str]] = []  # of what moves in each layer
        self._env: VecEnv | None = None
        self._envs: list[Any] = []
        self._getters: list[tuple[Callable[[str], Any], str]] = []
        self._left: list[Any] = []  # objects that lie there
        self._contents: list[Any] = []
        self._episode_begins = False

    def __getstate__(self) -> dict[str, Any]:
        # Whoever copies a model need not be able to copy its environment.
        return vars(self) | {"_env": None, "_envs": [], "_getters": []}

    @property
    def settled(self) -> bool:
        """Whether it is known what a step changes."""
        return self._steps_seen >= 2

    def about_to_move(self, env: VecEnv) -> None:
        """
        :param env: that the model steps or resets next; needed until it is `settled`
        """
        if not self.settled:
            self._all_before = [_all_contents(layer) for layer in _layers(env)]

    def take(self, env: VecEnv, by_step: bool, episode_begins: bool) -> None:
        """
        :param env: after the model's step or reset
        :param by_step: whether it was a step
        :param episode_begins: whether an episode of some environment begins here
        """
        if not self.settled:
            self._learn_names(env, by_step)
        left = self._left = self._left_now(env)
        self._env, self._episode_begins = env, episode_begins
        self._contents = _written(left)

    def are_those_of(self, env: VecEnv) -> bool:
        """
        :param env: as it is now
        :return: False when somebody else has stepped or reset it
        """
        before = self._left
        if not before or (self._env is not None and self._env is not env):
            return True  # nothing is known of this one
        left = self._left_now(env)
        if len(left) == len(before) and all(map(operator.is_, left, before)) and _written(left) == self._contents:
            return True  # nearly always
        actions, more_actions, reset_infos, seeds, options = left[:_OF_VEC_ENV]
        own_actions, own_more_actions, own_reset_infos, own_seeds, own_options = before[:_OF_VEC_ENV]
        if actions is not own_actions or more_actions is not own_more_actions:
            return False
        # Of SubprocVecEnv a step leaves a new tuple; others keep a list.
        if type(reset_infos) is tuple and reset_infos is not own_reset_infos:
            return False
        # A reset leaves other lists, and empty ones; `seed` and `set_options` leave what they were given.
        is_reset = seeds is not own_seeds and options is not own_options
        if is_reset and all(seed is None for seed in seeds) and not any(options):
            return False
        if len(left) != len(before):
            return True  # other wrappers: nothing can be said
        return not self._have_moved(env, left[_OF_VEC_ENV:])

    def _have_moved(self, env: VecEnv, values: list[Any]) -> bool:
        contents = iter(self._contents)
        # What can be written into was remembered by its content.
        values_before = self._left[_OF_VEC_ENV:]
        before = [next(contents) if type(value) in _WRITABLE else _content(value) for value in values_before]
        differ = [_content(now) != was for now, was in zip(values, before, strict=True)]
        if self._episode_begins or not isinstance(env.unwrapped, DummyVecEnv):
            return any(differ)
        # In the middle of an episode a callback may have set one of them, or a method that it called.
        for names in self._names:
            of_layer, differ = differ[: len(names)], differ[len(names) :]
            if names and 2 * sum(of_layer) >= len(names):
                return True
        return False

    def _learn_names(self, env: VecEnv, by_step: bool) -> None:
        changed = []
        for layer, before in zip(_layers(env), self._all_before, strict=False):
            now = _all_contents(layer)
            changed.append([name for name, content in now.items() if before.get(name) != content])
        if by_step and self._steps_seen == 1:
            changed = [
                [name for name in names if name in first] for names, first in zip(changed, self._names, strict=False)
            ]
        self._steps_seen += by_step
        self._names, self._env = changed, None

    def _left_now(self, env: VecEnv) -> list[Any]:
        """What a step of the vectorised environment replaces, what its reset replaces, and values of environments."""
        inner = env.unwrapped
        envs = getattr(inner, "envs", [])
        if self._env is not env or envs != self._envs:
            self._envs = list(envs)
            pairs = zip(_layers(env), self._names, strict=False)
            self._getters = [(layer.get, name) for layer, names in pairs for name in names]
        get = vars(inner).get
        held = [get("actions"), get("_actions"), get("reset_infos"), get("_seeds"), get("_options")]
        return held + [get(name) for get, name in self._getters]


_OF_VEC_ENV = 5


def _written(left: list[Any]) -> list[Any]:
    """Contents of the environments' values that can be written into."""
    return [_content(value) for value in left[_OF_VEC_ENV:] if type(value) in _WRITABLE]


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
            attributes = getattr(layer, "__dict__", {})
            if type(layer) is not Monitor:  # which counts what the objects above tell already
                layers.append(attributes)
            layer = attributes.get("env")
    return layers


def _all_contents(layer: dict[str, Any]) -> dict[str, Any]:
    contents = ((name, _content(value)) for name, value in layer.items())
    return {name: content for name, content in contents if content is not None}


def _content(value: Any) -> Any:  # noqa: ANN401 - whatever an environment holds
    """What can be compared later, also when the object is written into; None for what cannot."""
    kind = type(value)
    if kind is int or kind is float or kind is bool:
        return value if value == value else "NaN"  # which is not equal to itself
    if isinstance(value, np.ndarray | np.number):
        return value.tobytes() if value.nbytes <= _SMALL and not value.dtype.hasobject else None
    if kind in (list, tuple) and len(value) <= 16 and all(type(part) in (int, float, bool) for part in value):
        return tuple(map(_content, value))
    return None
