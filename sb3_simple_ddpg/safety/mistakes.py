"""Where an error came from, by its traceback: whose mistake it is, and which environment was at work.

Not here: what is an error (`checks.py`, `numbers.py`, `environments.py`) and what is printed (`command_line/cli.py`).

A user's mistake wants a sentence; a bug, ours or another's, has a traceback. What this package refuses, it refuses with
a `raise` that says the cure. Anything else that goes wrong in it, such as adding None to 1, is raised by no `raise` of
ours: where the traceback ends tells the two apart.
"""

import dis
import re
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

#: The whole package; this file lies in one of its rooms.
_OURS: Final = str(Path(__file__).parent.parent)
#: Who says to the user of a constructor what is wrong with its arguments.
_LIBRARIES: Final = tuple(
    str(Path(spec.origin).parent)
    for spec in map(find_spec, ("stable_baselines3", "sb3_contrib", "torch", "gymnasium"))
    if spec is not None and spec.origin is not None
)
#: Whatever is installed, and Python itself.
_INSTALLED: Final = (
    _OURS, "<", *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)  # fmt: skip
_UNEXPECTED: Final = re.compile(r"unexpected keyword argument '(\w+)'")


def is_said_to_user(error: BaseException) -> bool:
    """
    :param error: that was caught
    :return: whether its message is for the user: a `raise` of this package says what is wrong; or the disk does, or an
        environment that cannot be drawn without a library that is missing
    """
    if isinstance(error, gym.error.DependencyNotInstalled):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return all(_lies_in(_INSTALLED, step) for step in _steps(error))
    return _was_raised_in((_OURS,), error)


def is_about_settings(error: BaseException, settings: Mapping[str, Any]) -> bool:
    """
    :param error: that a constructor raised
    :param settings: that the constructor was given
    :return: whether its message is for the user: this package or a library refuses the settings
    """
    if is_said_to_user(error) or _was_raised_in(_LIBRARIES, error):
        return True
    unexpected = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    return unexpected is not None and unexpected[1] in _names(settings)


@contextmanager
def settings_refused(settings: Mapping[str, Any]) -> Iterator[None]:
    """
    While it lasts, what a library says of the settings is a ValueError of this package.

    :param settings: that a constructor is given
    :raises ValueError: for settings that a library refuses
    """
    try:
        yield
    except Exception as error:
        if is_said_to_user(error) or not is_about_settings(error, settings):
            raise
        raise ValueError(str(error)) from error


def _steps(error: BaseException) -> Iterator[TracebackType]:
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def _lies_in(folders: tuple[str, ...], step: TracebackType) -> bool:
    return step.tb_frame.f_code.co_filename.startswith(folders)


def _was_raised_in(folders: tuple[str, ...], error: BaseException) -> bool:
    """By a `raise`, or, where the code is not ours, by an `assert`."""
    steps = [*_steps(error)]
    if not steps or not _lies_in(folders, steps[-1]):
        return False
    if type(error) is AssertionError and folders == (_OURS,):
        return False
    instruction = steps[-1].tb_frame.f_code.co_code[steps[-1].tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def _names(settings: Mapping[str, Any]) -> set[str]:
    within = [value for value in settings.values() if isinstance(value, Mapping)]
    return set(settings).union(*map(_names, within))


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
    callback, single, processes = None, False, None
    for step in _steps(error):
        names = step.tb_frame.f_locals
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
    return processes or Origin(callback=callback, single=single and callback is not None)


def environments_of(callback: object) -> list[VecEnv]:
    """
    :param callback: as given to `learn`: one, several or none
    :return: the environments that it keeps, EvalCallback's for example, without wrappers; and those of callbacks inside
    """
    found: dict[int, VecEnv] = {}
    todo, seen = [callback], set[int]()
    while todo:
        each = todo.pop()
        if isinstance(each, VecEnv):
            found[id(each.unwrapped)] = each.unwrapped
        elif isinstance(each, BaseCallback | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            todo += vars(each).values() if isinstance(each, BaseCallback) else each
    return list(found.values())
