"""Whose mistake an error is: the user's, who wants a sentence; or it is a bug, ours or another's, and has a traceback.

Not here: the checks themselves (`checks.py` and wherever something is refused) and what is printed
(`command_line/cli.py`).

What this package refuses, it refuses with a `raise` that says the cure. Anything else that goes wrong in it, such as
adding None to 1, is raised by no `raise` of ours: where the traceback ends tells the two apart.
"""

import dis
import re
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import gymnasium as gym
import sb3_contrib
import stable_baselines3
import torch as th


def _folder(file: str | None) -> str:
    return str(Path(file or "").parent)


#: The whole package; this file lies in one of its rooms.
_OURS: Final = str(Path(__file__).parent.parent)
#: Who says to the user of a constructor what is wrong with its arguments.
_LIBRARIES: Final = tuple(_folder(module.__file__) for module in (stable_baselines3, sb3_contrib, th, gym))
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


def _steps(error: BaseException) -> list[TracebackType]:
    steps, step = [], error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    return steps


def _lies_in(folders: tuple[str, ...], step: TracebackType) -> bool:
    return step.tb_frame.f_code.co_filename.startswith(folders)


def _was_raised_in(folders: tuple[str, ...], error: BaseException) -> bool:
    """By a `raise`, or, where the code is not ours, by an `assert`."""
    steps = _steps(error)
    if not steps or not _lies_in(folders, steps[-1]):
        return False
    if type(error) is AssertionError and folders == (_OURS,):
        return False
    instruction = steps[-1].tb_frame.f_code.co_code[steps[-1].tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def _names(settings: Mapping[str, Any]) -> set[str]:
    within = [value for value in settings.values() if isinstance(value, Mapping)]
    return set(settings).union(*map(_names, within))
