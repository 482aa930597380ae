"""`simple-ddpg tune`. Not here: what is searched, and how (`tuning/tuning.py`)."""

import itertools
import sys
from pathlib import Path
from typing import Literal

import tyro

from sb3_simple_ddpg.command_line.options import Assignments, choose_folder, env_kwargs_of


def tune(
    env: str | None = None,
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    trials: int | None = None,
    seeds: int | None = None,
    timesteps: int | None = None,
    space: tuple[str, ...] = (),
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    threads: int | None = None,
    confidence: float | None = None,
    confirm: int | None = None,
    threshold: tuple[str, ...] = (),
    margin: tuple[str, ...] = (),
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    storage: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> int:
    """
    Search for settings of SimpleDDPG, several seeds a trial, and confirm the best few on fresh seeds.

    :param env: name of a registered environment; Pendulum-v1 without it
    :param env_kwargs: an argument of the environment, as for train; may be repeated
    :param trials: number of trials; 30 without it
    :param seeds: runs of each trial, with the same seeds in all of them, at least 2; 3 without it
    :param timesteps: of each run; 10000 without it
    :param space: what may be tried: default, a file (YAML), name=low..high or "name=a|b|c"; a later one goes before an
        earlier; default without it
    :param set: an argument of SimpleDDPG in every run, those with the default settings included; may be repeated
    :param eval_every: timesteps between evaluations, at each of which a trial may be stopped; a tenth of a run without
        it
    :param eval_episodes: deterministic episodes in each evaluation; 10 without it
    :param threads: PyTorch's threads in each run; 1 without it
    :param confidence: of all settings as good as the best one, this share at least is not stopped; 0.95 without it
    :param confirm: fresh seeds for the best few and the default; 0 for none; 10 without it
    :param threshold: for the confirmation, as for compare
    :param margin: for the confirmation, as for compare
    :param engine: processes of this machine, or a Ray cluster
    :param jobs: runs at a time; without it the seeds of a trial side by side, as many trials as there are cores for
    :param ray_address: of a running Ray cluster; without it one is started here
    :param storage: URL of a database that several machines share, such as postgresql://user@host/name; without it an
        SQLite file in the folder
    :param out: folder to write, whose name is the study's; runs/tune-<date-time> without it
    :param resume: go on with the study in --out, or share it with the process that began it
    :param progress: show a display that changes, where there is a terminal
    :return: exit status: 1 when every trial or a run of the confirmation failed
    """
    from rich.console import Console

    try:
        from sb3_simple_ddpg import tuning
    except ImportError as error:
        raise ValueError(str(error)) from error

    if resume and out is None:
        raise ValueError("--resume needs --out, the folder that a search was begun in.")
    folder = choose_folder(None, "tune", overwrite=False) if out is None else out
    found = tuning.tune(
        env,
        folder,
        trials=trials,
        seeds=seeds,
        timesteps=timesteps,
        space=space,
        settings=tuple(itertools.chain(*set)),
        env_kwargs=env_kwargs_of(env_kwargs, env or "") if env_kwargs else None,
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        threads=threads,
        confidence=confidence,
        confirm=confirm,
        threshold=threshold,
        margin=margin,
        engine=engine,
        jobs=jobs,
        ray_address=ray_address,
        storage=storage,
        resume=resume,
        console=Console() if sys.stdout.isatty() else Console(width=200),
        live=progress,
    )
    if found.preset is not None:
        print(f"Everything lies in {folder}; the page to read is {folder / 'summary.md'}, the settings {found.preset}.")
    else:
        print(f"Everything lies in {folder}. {' '.join(found.sentences)}")
    return found.status
