"""A comparison on disk: one file for each finished run, written whole or not at all, by one process at a time.

Not here: what is in the records (`worker.py`) and in the summary (`comparison.py`).

    config.json               the plan: settings, seeds, versions, machine
    results/<run>.json        one for each finished run
    failed/<run>.json         one for each failed run, with its traceback; --resume runs it again
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

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
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # the folder is gone or cannot be written: nothing is left to tidy
            beside.unlink(missing_ok=True)
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
        for part in folder.rglob(".*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def save_record(folder: Path, record: Mapping[str, Any]) -> None:
    """
    :param folder: of a comparison
    :param record: of a run, finished or failed
    """
    name = _file_name(record)
    failed = "error" in record
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
            record = _read_entries(path, ("algorithm", "env_id", "seed", *_ENTRIES[kind]))
        except ValueError as error:
            raise ValueError(f"{path} holds no record of a run: delete it and go on with --resume.") from error
        records.append(record)
    return records


def read_plan(folder: Path) -> dict[str, Any]:
    """
    :param folder: of a comparison
    :return: its plan
    :raises ValueError: when there is none
    """
    try:
        plan = _read_entries(folder / PLAN, _ENTRIES[PLAN])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no comparison that could be resumed (no readable {PLAN}): leave out --resume, or name the "
            "folder that `simple-ddpg compare` wrote."
        ) from error
    return plan


def _read_entries(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8"))
    missing = [name for name in names if name not in found] if isinstance(found, dict) else list(names)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    entries: dict[str, Any] = found
    return entries


def check_same_plan(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """
    What is resumed must be what was begun; seeds, algorithms and environments may be added.

    :param stored: the plan in the folder
    :param plan: the plan that is to go on there
    :raises ValueError: with every difference
    """
    found = [
        f"{name} was {stored[name]!r} and is now {plan[name]!r}"
        for name in ("timesteps", "eval_every", "eval_episodes", "threads")
        if stored[name] != plan[name]
    ]
    for name in ("seeds", "env_ids", "algorithms"):
        missing = [str(item) for item in stored[name] if item not in plan[name]]
        if missing:
            found.append(f"{name} lacks {', '.join(missing)}, which may be added to but not left out")
    for env_id, before in stored.get("env_kwargs", {key: {} for key in stored["env_ids"]}).items():
        now = plan.get("env_kwargs", {}).get(env_id, before)
        if before != now:
            found.append(f"the arguments of {env_id} were {before} and are now {now}")
    for env_id, by_algorithm in stored["settings"].items():
        for algorithm, before in by_algorithm.items():
            now = plan["settings"].get(env_id, {}).get(algorithm)
            if now is not None:
                found += [
                    f"{algorithm}.{name} was {before.get(name)!r} and is now {now.get(name)!r} ({env_id})"
                    for name in sorted(before.keys() | now.keys())
                    if before.get(name) != now.get(name)
                ]
            if now is not None and stored["algorithms"][algorithm] != plan["algorithms"][algorithm]:
                found.append(
                    f"{algorithm} was {stored['algorithms'][algorithm]} and is now {plan['algorithms'][algorithm]}"
                )
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
    for path in [folder / PLAN, *(folder / name for name in names)]:
        path.unlink(missing_ok=True)
    for kind in (RESULTS, FAILED):
        for path in (folder / kind).glob("*.json"):
            path.unlink()


def _file_name(record: Mapping[str, Any]) -> str:
    env_id = re.sub(r"[^A-Za-z0-9_.-]", "-", record["env_id"])
    return f"{record['algorithm']}--{env_id}--seed{record['seed']}.json"
