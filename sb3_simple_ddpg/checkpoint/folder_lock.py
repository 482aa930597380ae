"""One writer at a time in a folder: the model that saves there, in whichever process.

Not here: reading, which is free at any time. The lock is the operating system's and goes with the process, however that
ends. Neither model nor callback holds it, so both can be copied and pickled; a forked process does not inherit it.

On POSIX the folder itself is locked (flock), and nothing is written into it. On Windows, and on NFS, which locks no
folders, a file `.lock` in it is; on NFS that keeps out processes of other machines as well.
"""

import gc
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sb3_simple_ddpg.checkpoint.buffer import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for below


@dataclass
class _Claim:
    """
    A folder that a model of this process writes to.

    :param owner: the model
    :param learning: until the model's `learn` ends, and not as long as the model is there
    :param lock: of the folder
    """

    owner: "weakref.ref[Any]"
    learning: bool
    lock: "_Lock"


@dataclass
class _Lock:
    """
    :param is_there: the folder that was locked still has its name
    :param free: give the lock back
    """

    is_there: Callable[[], bool]
    free: Callable[[], None]


_claims: dict[Path, _Claim] = {}
_descriptors: set[int] = set()
_heirs: "weakref.WeakKeyDictionary[Any, set[Path]]" = weakref.WeakKeyDictionary()


def claim(folder: Path, model: object, learning: bool = False) -> bool:
    """
    Keep all others out, of this process and of others; a model that was resumed from the folder follows the one before.

    :param folder: made if need be
    :param model: that is going to write there
    :param learning: until `let_go(model)`; otherwise as long as the model exists
    :return: the folder was not the model's before
    :raises CheckpointError: when it is another's
    :raises OSError: when it cannot be made
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    held = _claims.get(place)
    if held is not None and not held.lock.is_there():  # removed and made anew since
        _free(place)
        held = None
    if held is not None and held.owner() is not model:
        gc.collect()  # models and their environments hold each other
        held = _claims.get(place)
    if held is not None:
        if held.owner() is model:
            return False
        if held.learning or place not in _heirs.get(model, ()):
            raise CheckpointError(
                f"Another model of this process writes into {folder}: name another folder, go on with that model, or "
                "with SimpleDDPG.resume(folder, env)."
            )
        _free(place)
    lock = _lock(place)
    if lock is None:
        raise CheckpointError(
            f"Another process writes into {folder}: wait until it has ended, or name another folder. "
            "SimpleDDPG.resume(folder, env) may read there at any time."
        )
    _claims[place] = _Claim(weakref.ref(model, lambda _: _free_unowned()), learning, lock)
    return True


def let_go(model: object, folder: Path | None = None) -> None:
    """
    :param model: that writes no more
    :param folder: where; None: wherever it claimed a folder for the time of learning, which has ended
    """
    for place, held in list(_claims.items()):
        if held.owner() is model and (held.learning if folder is None else place == folder.resolve()):
            _free(place)


def may_follow(folder: Path, model: object) -> None:
    """
    :param folder: that the model was resumed from
    :param model: takes the place of the one that wrote there, once that does not learn
    """
    _heirs.setdefault(model, set()).add(folder.resolve())


def _free(place: Path) -> None:
    if (held := _claims.pop(place, None)) is not None:
        held.lock.free()


def _free_unowned() -> None:
    for place, held in list(_claims.items()):
        if held.owner() is None:
            _free(place)


def _lock(place: Path) -> _Lock | None:
    """None when another holds it."""
    if fcntl is not None:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # NFS, which locks no folders
            os.close(descriptor)
        else:
            _descriptors.add(descriptor)
            return _Lock(lambda: _is_at(descriptor, place), lambda: _close(descriptor))
    lock = FileLock(place / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError):  # a file system without locks, or read-only: saving will say
        return _Lock(lambda: True, lambda: None)
    return _Lock((place / ".lock").exists, lock.release)


def _is_at(descriptor: int, place: Path) -> bool:
    locked = os.fstat(descriptor)
    return locked.st_nlink > 0 and os.path.samestat(locked, place.stat())


def _close(descriptor: int) -> None:
    if descriptor in _descriptors:  # not in a process that was forked since
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """In a forked process, which shares the lock until its own descriptor is closed; the parent keeps it."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
