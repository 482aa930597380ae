"""What several commands take: an environment's arguments, settings, a folder to write."""

import inspect
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch as th
import tyro

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.algorithms import assign, env_kwargs_from, take_normalize
from sb3_simple_ddpg.safety import checks
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

if TYPE_CHECKING:
    from rich.console import Console

#: What may follow one `--set`, which may be given several times.
Assignments = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]


def env_kwargs_of(typed: Iterable[tuple[str, ...]], env_id: str) -> dict[str, Any]:
    return env_kwargs_from(itertools.chain(*typed), [env_id])[env_id]


def choose_settings(
    env_id: str, env_kwargs: Iterable[tuple[str, ...]], preset: str | None, n_envs: int, subprocesses: bool,
    wrappers: tuple[str, ...], normalize: bool, assignments: Iterable[tuple[str, ...]], threads: int,
) -> tuple[str, dict[str, Any], runs.EnvSettings]:  # fmt: skip
    """The preset's name, the arguments of SimpleDDPG, and the environments, as `train` and `diagnose` are told."""
    th.set_num_threads(at_least_one("threads", threads))
    preset_name, arguments = presets.choose_preset(preset, env_id)
    for assignment in itertools.chain(*assignments):
        assign_setting(arguments, assignment)
    settings = runs.EnvSettings(
        env_id, wrappers, at_least_one("n-envs", n_envs), subprocesses, normalize, take_normalize(arguments),
        env_kwargs_of(env_kwargs, env_id),
    )  # fmt: skip
    return preset_name, arguments, settings


def refuse_others(command: Callable[..., int], given: dict[str, Any], allowed: tuple[str, ...], why: str) -> None:
    """Options that a run has settled already."""
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in allowed and given[name] != parameter.default:
            raise ValueError(f"{why}: leave out --{name.replace('_', '-')}.")


def console() -> "Console":
    """Of this terminal; of a width that breaks no table where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


def assign_setting(arguments: dict[str, Any], assignment: str) -> None:
    """Put `name=value`, or `name.key=value`, into the arguments, without touching a preset's own dictionaries."""
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"--set takes name=value, got {assignment!r}: --set gamma=0.98, for example.")
    name, *keys = name.strip().split(".")
    known = [known for known in inspect.signature(SimpleDDPG).parameters if known not in ("env", "_init_setup_model")]
    options = {"seed": f"--seed {text}", "device": f"--device {text}", "tensorboard_log": "--tensorboard"}
    if name in options:
        raise ValueError(f"--set {name} would say it twice: use {options[name]}.")
    known = [*(argument for argument in known if argument not in options), presets.NORMALIZE]
    if name not in known and name not in checks.FOREIGN_ARGUMENTS:
        raise ValueError(f"SimpleDDPG has no argument {name!r}: {checks.did_you_mean(name, known)}")
    assign(arguments, [name, *keys], text)


def choose_folder(out: Path | None, env_id: str, overwrite: bool) -> Path:
    if out is None:
        stem = f"{env_id.replace('/', '-').replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        out = Path("runs") / stem
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} is not empty: name another folder, or add --overwrite.")
    existing = next(path for path in [out, *out.absolute().parents] if path.exists())
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: {existing} is not writable.")
    return out


def prepare_folder(folder: Path, names: tuple[str, ...] = runs.FILES) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:  # of an earlier run; other files in the folder are not ours
            (folder / name).unlink(missing_ok=True)
        if runs.CONFIG in names:
            shutil.rmtree(folder / runs.CHECKPOINTS, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error}.") from error


def at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"--{name} must be at least 1, got {value}.")
    return value
