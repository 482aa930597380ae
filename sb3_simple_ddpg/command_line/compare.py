"""`simple-ddpg compare`. Not here: what is compared, and how (`experiment/comparison.py`)."""

import itertools
from pathlib import Path
from typing import Literal

import tyro

from sb3_simple_ddpg.command_line import options
from sb3_simple_ddpg.command_line.options import Assignments


def compare(
    env: tuple[str, ...] = (),
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    algorithms: tuple[str, ...] = (),
    seeds: int | None = None,
    first_seed: int | None = None,
    timesteps: int | None = None,
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    preset: tuple[str, ...] = (),
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    threshold: tuple[str, ...] = (),
    margin: tuple[str, ...] = (),
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """
    Compare algorithms honestly: many seeds, the same budget, evaluation apart from training, intervals.

    :param env: environments, each for all algorithms; Pendulum-v1 without it
    :param env_kwargs: an argument of every environment, as for train, or environment.name=value; may be repeated
    :param algorithms: simple_ddpg, ddpg, td3, sac, tqc, crossq, or name=module:Class; simple_ddpg ddpg without it. The
        others are compared with the first
    :param seeds: number of runs of each algorithm in each environment, at least 2; 10 without it
    :param first_seed: seeds count from here; 0 without it
    :param timesteps: of each run; 20000 without it
    :param set: an argument of an algorithm, such as td3.gamma=0.98, or of all, such as all.action_noise=0.1 or
        "action_noise=OrnsteinUhlenbeck(0.5)"; may be repeated
    :param preset: of every SimpleDDPG, or algorithm=preset: default, article, lillicrap2015, fujimoto2018, pendulum,
        robust, layer-norm, rl-zoo, or a file that tune wrote; without it each algorithm's own defaults
    :param eval_every: timesteps between evaluations; a twentieth of a run without it
    :param eval_episodes: deterministic episodes in each evaluation; 10 without it
    :param threads: PyTorch's threads in each run; 1 without it
    :param engine: processes of this machine, or a Ray cluster
    :param jobs: runs at a time; as many as there are cores without it
    :param ray_address: of a running Ray cluster; without it one is started here
    :param threshold: the return that solves the environment, or environment=return; without it Gymnasium's
    :param margin: means closer than this share of the distance from random actions to the threshold are equivalent,
        or closer than environment=return; 0.1 without it
    :param out: folder to write; runs/compare-<date-time> without it
    :param resume: go on with the comparison in --out and its settings; seeds, algorithms, environments may be added
    :param overwrite: replace the comparison in a folder that is not empty
    :param progress: show a display that changes, where there is a terminal
    :return: exit status: 1 when a run failed
    """
    from sb3_simple_ddpg.experiment import comparison
    from sb3_simple_ddpg.experiment import folder as experiment_folder
    from sb3_simple_ddpg.experiment import report as comparison_report

    if resume and (out is None or overwrite):
        raise ValueError("--resume needs --out, the folder that a comparison was begun in, and no --overwrite.")
    folder = out if resume and out is not None else options.choose_folder(out, "compare", overwrite)
    request = comparison.Request(
        env, tuple(itertools.chain(*env_kwargs)), algorithms, seeds, first_seed, timesteps,
        tuple(itertools.chain(*set)), preset, eval_every, eval_episodes, threads, threshold, margin,
    )  # fmt: skip
    if overwrite and folder.is_dir():
        with experiment_folder.locked(folder):
            experiment_folder.clear(folder, comparison_report.FILES)
    console = options.console()
    status = comparison.compare(
        request, folder, console, resume=resume, engine=engine, jobs=jobs, ray_address=ray_address, live=progress
    )
    print(f"Everything lies in {folder}; the page to read is {folder / 'summary.md'}.")
    return status
