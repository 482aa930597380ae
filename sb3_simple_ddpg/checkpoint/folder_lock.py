"""One writer at a time in a folder: the model that saves there, in whichever process.

Not here: reading, which is free at any time. A file `.lock` in the folder is locked, by the operating system: the lock
goes with the process, however that ends. Neither model nor callback holds it, so both can be copied and pickled; a
forked process does not inherit it.
"""

import contextlib
import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sb3_simple_ddpg.checkpoint.buffer import CheckpointError

LOCK = ".lock"


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
    lock: FileLock


_claims: dict[Path, _Claim] = {}
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
    if held is not None and held.owner() is not model:
        gc.collect()  # models and their environments hold each other
        held = _claims.get(place)
    if held is not None and held.lock.is_locked and (place / LOCK).exists():
        if held.owner() is model:
            return False
        if held.learning or place not in _heirs.get(model, ()):
            raise CheckpointError(
                f"Another model of this process writes into {folder}: name another folder, go on with that model, or "
                "with SimpleDDPG.resume(folder, env)."
            )
    _free(place)  # also where the folder has been removed and made anew, and in a process that was forked since
    lock = FileLock(place / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(
            f"Another process writes into {folder}: wait until it has ended, or name another folder. "
            "SimpleDDPG.resume(folder, env) may read there at any time."
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks, or read-only: saving will say
        pass
    _claims[place] = _Claim(weakref.ref(model, _free_unowned), learning, lock)
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
    held = _claims.pop(place, None)
    if held is not None and held.lock.is_locked:
        with contextlib.suppress(OSError):  # Windows removes it when it is unlocked, and not before
            (place / LOCK).unlink()
        held.lock.release()


def _free_unowned(_: object) -> None:
    for place, held in list(_claims.items()):
        if held.owner() is None:
            _free(place)
