"""A comparison on disk: one file for each finished run, written whole or not at all, by one process at a time.

Not here: what is in the records (`worker.py`) and in the summary (`comparison.py`).

    config.json               the plan: settings, seeds, versions, machine
    results/<run>.json        one for each finished run
    failed/<run>.json         one for each failed run, with its traceback; --resume runs it again
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from sb3_simple_ddpg.export import source

PLAN, LOCK = "config.json", ".lock"
RESULTS, FAILED = "results", "failed"

#: What is read of each kind of file, whoever has written it.
_ENTRIES: Final[dict[str, tuple[str, ...]]] = {
    PLAN: ("settings", "seeds", "env_ids", "algorithms", "timesteps", "eval_every", "eval_episodes", "threads"),
    RESULTS: ("episodes", "evaluations"),
    FAILED: ("error",),
}


def write_whole(path: Path, content: str | bytes) -> None:
    """
    Write a file so that nobody ever sees half of it: beside it first, then in its place.

    :param path: of the file; its folder is made
    :param content: of the file
    :raises OSError: when the disk is full or the folder cannot be written; nothing is left behind
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        source.write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): free space there or make the folder writable, then "
            "go on with --resume. What is finished is kept."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Keep other processes out of a folder; a process that dies, however, gives it free.

    :param folder: of a comparison; made where it is missing
    :raises ValueError: when another process writes there
    :raises OSError: when the folder cannot be written
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"Another process writes into {folder}: wait for it, or name another folder with --out."
        ) from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror or error}): name another folder.") from error
    try:
        for part in folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def save_record(folder: Path, record: Mapping[str, Any]) -> None:
    """
    :param folder: of a comparison
    :param record: of a run, finished or failed
    """
    env_id = re.sub(r"[^A-Za-z0-9_.-]", "-", record["env_id"])
    name, failed = f"{record['algorithm']}--{env_id}--seed{record['seed']}.json", "error" in record
    write_whole(folder / (FAILED if failed else RESULTS) / name, json.dumps(record) + "\n")
    if not failed:
        (folder / FAILED / name).unlink(missing_ok=True)


def read_records(folder: Path, kind: str = RESULTS) -> list[dict[str, Any]]:
    """
    :param folder: of a comparison
    :param kind: `RESULTS` or `FAILED`
    :return: the records, in no order that means anything
    :raises ValueError: for a file that is no record, by its name
    """
    records = []
    for path in sorted((folder / kind).glob("*.json")):
        try:
            records.append(_read_entries(path, ("algorithm", "env_id", "seed", *_ENTRIES[kind])))
        except ValueError as error:
            raise ValueError(f"{path} holds no record of a run: delete it and go on with --resume.") from error
    return records


def read_plan(folder: Path) -> dict[str, Any]:
    """
    :param folder: of a comparison
    :return: its plan
    :raises ValueError: when there is none
    """
    try:
        return _read_entries(folder / PLAN, _ENTRIES[PLAN])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no comparison that could be resumed (no readable {PLAN}): leave out --resume, or name the "
            "folder that `simple-ddpg compare` wrote."
        ) from error


def _read_entries(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or not found.keys() >= set(names):
        raise ValueError(f"{path} lacks some of {', '.join(names)}.")
    return found


def check_same_plan(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """
    What is resumed must be what was begun; seeds, algorithms and environments may be added.

    :param stored: the plan in the folder
    :param plan: the plan that is to go on there
    :raises ValueError: with every difference
    """
    found = []
    for name in ("seeds", "env_ids", "algorithms"):
        if missing := [str(item) for item in stored[name] if item not in plan[name]]:
            found.append(f"{name} lacks {', '.join(missing)}, which may be added to but not left out")
    # Each with what it was and what it is now; what is left out was said above.
    pairs = [(name, stored[name], plan[name]) for name in ("timesteps", "eval_every", "eval_episodes", "threads")]
    for env_id, before in stored.get("env_kwargs", {key: {} for key in stored["env_ids"]}).items():
        pairs.append((f"env_kwargs of {env_id}", before, plan["env_kwargs"].get(env_id, before)))
    for algorithm, path in stored["algorithms"].items():
        pairs.append((algorithm, path, plan["algorithms"].get(algorithm, path)))
    for env_id, by_algorithm in stored["settings"].items():
        for algorithm, before in by_algorithm.items():
            now = plan["settings"].get(env_id, {}).get(algorithm, before)
            names = sorted(before.keys() | now.keys())
            pairs += [(f"{algorithm}.{name}", before.get(name), now.get(name)) for name in names]
    found += [f"{name} was {before!r} and is now {now!r}" for name, before, now in pairs if before != now]
    if found:
        raise ValueError(
            "The stored comparison was begun with other settings: "
            + "; ".join(dict.fromkeys(found))
            + ". Resume with those, or name another folder with --out."
        )


def clear(folder: Path, names: Iterable[str]) -> None:
    """
    Remove an earlier comparison, and nothing else.

    :param folder: of the comparison
    :param names: of its summary's files
    """
    written = [path for kind in (RESULTS, FAILED) for path in (folder / kind).glob("*.json")]
    for path in [folder / PLAN, *(folder / name for name in names), *written]:
        path.unlink(missing_ok=True)
