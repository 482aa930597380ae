"""Which environment an error came from, by its traceback: one of training, or one that a callback plays with.

Not here: what is an error (`environments.py`, `numbers.py`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv


@dataclass(frozen=True)
class Origin:
    """
    :param vec_env: the vectorised environment that was at work, where one was
    :param index: of the environment in it, where that is known
    :param callback: that was at work, where one was
    :param single: whether an environment was at work that is in no vectorised one
    :param observations: that SB3 was about to store or put together: of that environment, or of all where none is known
    """

    vec_env: VecEnv | None = None
    index: int | None = None
    callback: BaseCallback | None = None
    single: bool = False
    observations: tuple[Any, ...] = ()

    def owner(self, training: VecEnv | None) -> str:
        """
        :param training: the environments of training, without wrappers
        :return: whose environment it is, as in "environment 0 of the callback EvalCallback"; empty for one of training
        """
        if self.callback is None:
            return ""
        if self.vec_env is not None and self.vec_env is training:
            return f", which the callback {type(self.callback).__name__} played with,"
        return f" of the callback {type(self.callback).__name__}"

    def note(self, training: VecEnv | None, timestep: int) -> str:
        """
        :param training: the environments of training, without wrappers
        :param timestep: of `learn`
        :return: a sentence on where it was raised; empty where no environment was at work
        """
        if self.index is None and self.vec_env is None and not self.single:
            return ""
        which = "an environment" if self.index is None else f"environment {self.index}"
        return f"Raised by {which}{self.owner(training)}, at timestep {timestep} of learn.".replace(",,", ",")


def origin_of(error: BaseException) -> Origin:
    """
    :param error: caught, with its traceback
    :return: the outermost environment that it passed: one may have others inside
    """
    traceback, callback, single, processes = error.__traceback__, None, False, None
    while traceback is not None:
        names = traceback.tb_frame.f_locals
        at_work = names.get("self")
        if isinstance(at_work, VecEnv) and "env_idx" in names:
            observations = (names["obs"],) if "obs" in names else ()
            return Origin(at_work, names["env_idx"], callback, observations=observations)
        if isinstance(at_work, SubprocVecEnv):
            processes = Origin(at_work, None, callback, observations=names.get("obs", ()))
        elif processes is not None and names.get("env") is processes.vec_env and "env_idx" in names:
            processes = Origin(processes.vec_env, names["env_idx"], callback)
        elif isinstance(at_work, BaseCallback):
            callback = at_work
        single = single or isinstance(at_work, gym.Env)
        traceback = traceback.tb_next
    return processes or Origin(callback=callback, single=single and callback is not None)


def environments_of(callback: object) -> list[VecEnv]:
    """
    :param callback: as given to `learn`: one, several or none
    :return: the environments that it keeps, EvalCallback's for example, without wrappers
    """
    found: dict[int, VecEnv] = {}
    for each in _callbacks(callback, set()):
        for value in vars(each).values():
            if isinstance(value, VecEnv):
                found[id(value.unwrapped)] = value.unwrapped
    return list(found.values())


def _callbacks(callback: object, seen: set[int]) -> Iterator[BaseCallback]:
    """It and those inside: of a CallbackList, or called at a new best evaluation."""
    if id(callback) in seen:
        return
    seen.add(id(callback))
    inside: Iterable[Any] = ()
    if isinstance(callback, BaseCallback):
        yield callback
        inside = list(vars(callback).values())
    elif isinstance(callback, list | tuple):
        inside = callback
    for each in inside:
        if isinstance(each, BaseCallback | list | tuple):
            yield from _callbacks(each, seen)
