"""Many runs to tidy records: every algorithm in every environment with every seed, the same budget, evaluated apart.

Not here: one run (`worker.py`), processes and clusters (`engines.py`), files (`folder.py`), and
what the records say (`statistics.py`, `comparison.py`).
"""

import contextlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_simple_ddpg.benchmark.report import machine
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.algorithms import Algorithm, differing, effective_settings, find_algorithms
from sb3_simple_ddpg.experiment.engines import Engine, LocalEngine, RayEngine, run_all
from sb3_simple_ddpg.experiment.worker import Job
from sb3_simple_ddpg.safety import checks

PACKAGES = ("sb3-simple-ddpg", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy", "scipy")


@dataclass
class Experiment:
    """
    Tidy records: one row for each thing that was observed.

    :param episodes: of training: algorithm, env_id, seed, timestep (at its end), episode_return, wall_time_s
    :param evaluations: algorithm, env_id, seed, timestep, mean_return, episodes, wall_time_s, success_rate (NaN where
        the environment does not tell)
    :param runs: algorithm, env_id, seed, timesteps, final_return, final_success_rate, wall_time_s, cpu_time_s, ...
        Seconds are those of training; evaluations are left out.
    :param failures: algorithm, env_id, seed, error (a traceback)
    :param plan: settings, versions, machine, and for each environment the return of random actions
    """

    episodes: pd.DataFrame
    evaluations: pd.DataFrame
    runs: pd.DataFrame
    failures: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)


class Watcher:
    """
    Hears of every run. This one keeps quiet; `display.Display` shows them.

    `planned` gets the plan when everything was accepted, before any run. `begin` gets what is still to be done, the
    number of runs that an earlier process has finished, and how many run at a time. `started` (from any thread) and
    `ended` get each run, the latter with its record, which holds `error` where it failed.
    """

    def planned(self, plan: Mapping[str, Any]) -> None: ...
    def begin(self, jobs: Sequence[Job], finished: int, parallel: int) -> None: ...
    def started(self, job: Job) -> None: ...
    def ended(self, job: Job, record: Mapping[str, Any]) -> None: ...


def run_experiment(
    algorithms: Sequence[str] | Mapping[str, str | type[BaseAlgorithm]],
    env_ids: Sequence[str],
    seeds: int | Iterable[int],
    timesteps: int,
    *,
    settings: Mapping[str, Mapping[str, Any]] | Callable[[list[Algorithm], str], Mapping[str, Any]] | None = None,
    env_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    eval_every: int | None = None,
    eval_episodes: int = 10,
    threads: int = 1,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    folder: Path | None = None,
    resume: bool = False,
    notes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    watcher: Watcher | None = None,
) -> Experiment:
    """
    Run every algorithm in every environment with every seed. A run that fails is reported and the others go on.

    :param algorithms: names ("simple_ddpg", "ddpg", "td3", "sac", "tqc", "crossq" or "name=module:Class"), or classes
        by name
    :param env_ids: names of registered environments
    :param seeds: of the runs; a number n stands for 0 to n - 1
    :param timesteps: of each run
    :param settings: constructor's arguments by the algorithm's name; `action_noise` may be a number or
        `OrnsteinUhlenbeck(...)` for any algorithm. Or a function of the algorithms and the environment's name that
        gives them. The dictionaries are copied for each run
    :param env_kwargs: arguments of the environments by their names; training and evaluation have the same
    :param eval_every: timesteps between two evaluations; None: a twentieth of the run
    :param eval_episodes: number of deterministic episodes in each evaluation
    :param threads: of PyTorch in each run
    :param engine: "local": processes of this machine; "ray": a Ray cluster
    :param jobs: number of runs at a time; None: as many as there are cores for
    :param ray_address: of a running cluster; None: one is started on this machine
    :param folder: where each run's record is written as it ends, one process at a time; None: nothing is written
    :param resume: go on in a folder that holds a part of this experiment; nothing that is finished is run again
    :param notes: a function of the plan that gives more entries for it, before any run
    :param watcher: hears of every run
    :return: the records
    :raises ValueError: for anything that cannot work, before any run starts
    :raises OSError: when the folder cannot be written; finished runs are kept
    """
    chosen = find_algorithms(algorithms)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    eval_every = max(1, timesteps // 20) if eval_every is None else eval_every
    numbers = {"timesteps": timesteps, "eval_every": eval_every, "eval_episodes": eval_episodes, "threads": threads}
    _check_numbers(list(env_ids), seeds, **numbers, jobs=1 if jobs is None else jobs)
    if ray_address is not None and engine != "ray":
        raise ValueError(f"--ray-address {ray_address} is for --engine ray, got --engine {engine}.")
    _check_names("env_kwargs", env_kwargs or {}, env_ids)
    of_env = {env_id: dict((env_kwargs or {}).get(env_id, {})) for env_id in env_ids}
    given: dict[str, dict[str, dict[str, Any]]] = {}
    effective: dict[str, dict[str, dict[str, Any]]] = {}
    for env_id in env_ids:
        by_name = settings(chosen, env_id) if callable(settings) else settings or {}
        _check_names("settings", by_name, [each.name for each in chosen])
        given[env_id] = {each.name: dict(by_name.get(each.name, {})) for each in chosen}
        effective[env_id] = {
            each.name: effective_settings(each, env_id, given[env_id][each.name], of_env[env_id]) for each in chosen
        }
        for name, values in effective[env_id].items():
            starts = values.get("learning_starts", 0)
            if isinstance(starts, int) and starts >= timesteps:
                raise ValueError(
                    f"{name} would not learn in {env_id}: learning_starts={starts} is not below --timesteps "
                    f"{timesteps}. Give more timesteps, or --set {name}.learning_starts=100."
                )
    plan: dict[str, Any] = {
        "algorithms": {algorithm.name: algorithm.path for algorithm in chosen},
        "env_ids": list(env_ids),
        "env_kwargs": of_env,
        "seeds": seeds,
        **numbers,
        "settings": effective,
        "random_returns": {env_id: _random_return(env_id, of_env[env_id]) for env_id in env_ids},
        "differing": {env_id: differing(effective[env_id], given[env_id]) for env_id in env_ids},
        "engine": engine,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(),
    }
    plan |= notes(plan) if notes is not None else {}
    plan = json.loads(json.dumps(plan, default=runs.describe))  # as it will be read again
    todo = [
        Job(each, given[env_id][each.name], env_id, seed, timesteps, eval_every, eval_episodes, threads, of_env[env_id])
        # Algorithms take turns, so that a change in the machine's load meets them all.
        for seed in seeds
        for env_id in env_ids
        for each in chosen
    ]
    runner = _engine(engine, ray_address, jobs, threads)  # a cluster that is not there shows before anything is written
    try:
        with experiment_folder.locked(folder) if folder is not None else contextlib.nullcontext():
            return _run(todo, plan, folder, resume, runner, watcher or Watcher())
    finally:
        runner.stop()


def _run(
    todo: list[Job], plan: dict[str, Any], folder: Path | None, resume: bool, engine: Engine, watcher: Watcher
) -> Experiment:
    finished: dict[tuple[str, str, int], dict[str, Any]] = {}
    if folder is not None:
        records = experiment_folder.read_records(folder)
        if resume:
            experiment_folder.check_same_plan(experiment_folder.read_plan(folder), plan)
        elif records or (folder / experiment_folder.PLAN).exists():
            raise ValueError(
                f"{folder} holds a comparison already: go on with --resume, or name another folder with --out."
            )
        finished = {(each["algorithm"], each["env_id"], each["seed"]): each for each in records}
        experiment_folder.write_whole(folder / experiment_folder.PLAN, json.dumps(plan, indent=2) + "\n")
    records = [finished[job.key] for job in todo if job.key in finished]
    todo = [job for job in todo if job.key not in finished]
    failures: list[dict[str, Any]] = []
    watcher.planned(plan)
    watcher.begin(todo, len(records), min(engine.jobs, len(todo)))
    for job, record in run_all(todo, engine, watcher.started):
        record = {"algorithm": job.algorithm.name, "env_id": job.env_id, "seed": job.seed, **record}
        if folder is not None:
            experiment_folder.save_record(folder, record)
        (failures if "error" in record else records).append(record)
        watcher.ended(job, record)
    return _tidy(records, failures, plan)


def _engine(name: str, address: str | None, jobs: int | None, threads: int) -> Engine:
    return RayEngine(address, jobs, threads) if name == "ray" else LocalEngine(jobs, threads)


def _check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{what} name {name!r}, which takes no part: {checks.did_you_mean(name, [*known])}")


def _random_return(env_id: str, env_kwargs: Mapping[str, Any]) -> float | None:
    """Mean return of random actions; None where no episode of theirs ended."""
    env = runs.EnvSettings(env_id, kwargs=env_kwargs)
    found = env.random_return(seed=0)
    if found is None:
        with contextlib.closing(env.make_one()) as one:
            spec = one.spec
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(
                f"{env_id} sets no limit to an episode and no episode of random actions ended within 5,000 timesteps, "
                "so evaluation might never end: --env-kwargs max_episode_steps=1000, for example."
            )
    return found


def _check_numbers(env_ids: list[str], seeds: list[int], **numbers: int) -> None:
    if not env_ids:
        raise ValueError("A comparison needs at least one environment: --env Pendulum-v1, for example.")
    if not seeds:
        raise ValueError("A comparison needs at least one seed, got none.")
    given: list[tuple[str, list[Any]]] = [("environment", env_ids), ("seed", seeds)]
    for name, values in given:
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"The {name} {twice[0]!r} is given twice: each run must differ from all others.")
    if min(seeds) < 0:
        raise ValueError(f"A seed must be at least 0, got {min(seeds)}.")
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if (every := numbers["eval_every"]) > (timesteps := numbers["timesteps"]):
        raise ValueError(f"--eval-every must be at most --timesteps ({timesteps}), got {every}: lower it.")


def read_experiment(folder: Path) -> Experiment:
    """
    :param folder: of an experiment, finished or not
    :return: what it holds
    :raises ValueError: when it holds none
    """
    plan = experiment_folder.read_plan(folder)
    failures = experiment_folder.read_records(folder, experiment_folder.FAILED)
    return _tidy(experiment_folder.read_records(folder), failures, plan)


def _tidy(records: list[dict[str, Any]], failures: list[dict[str, Any]], plan: dict[str, Any]) -> Experiment:
    order = [*plan["env_ids"]], [*plan["algorithms"]]
    records.sort(key=lambda each: (order[0].index(each["env_id"]), order[1].index(each["algorithm"]), each["seed"]))
    columns = ["algorithm", "env_id", "seed"]
    episodes, evaluations, rows = [], [], []
    for record in records:
        key = [record[name] for name in columns]
        episodes += [[*key, *episode] for episode in record["episodes"]]
        evaluations += [
            [*key, timestep, sum(returns) / len(returns), len(returns), seconds, *(success or [None])]
            # Older folders say nothing of success.
            for timestep, seconds, returns, *success in record["evaluations"]
        ]
        rows.append(
            {name: value for name, value in record.items() if name not in ("episodes", "evaluations")}
            | {"final_return": evaluations[-1][4], "final_success_rate": evaluations[-1][7]}
        )
    return Experiment(
        pd.DataFrame(episodes, columns=[*columns, "timestep", "episode_return", "wall_time_s"]),
        pd.DataFrame(
            evaluations, columns=[*columns, "timestep", "mean_return", "episodes", "wall_time_s", "success_rate"]
        ).astype({"success_rate": float}),
        pd.DataFrame(rows, columns=None if rows else [*columns, "final_return", "final_success_rate", "wall_time_s"]),
        failures,
        plan,
    )
