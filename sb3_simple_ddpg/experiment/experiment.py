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
    """Hears of every run. This one keeps quiet; `comparison.Display` shows them."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """
        :param plan: of the experiment, when everything was accepted and before any run
        """

    def begin(self, jobs: Sequence[Job], finished: int, parallel: int) -> None:
        """
        :param jobs: still to be done
        :param finished: number of runs that an earlier process has finished
        :param parallel: number of runs at a time
        """

    def started(self, job: Job) -> None:
        """
        :param job: that starts now; called from any thread
        """

    def ended(self, job: Job, record: Mapping[str, Any]) -> None:
        """
        :param job: that is over
        :param record: with `error` where it failed
        """


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
    _check_numbers(list(env_ids), seeds, timesteps, eval_every, eval_episodes, threads, jobs)
    if ray_address is not None and engine != "ray":
        raise ValueError(f"--ray-address {ray_address} is for --engine ray, got --engine {engine}.")
    of_env = {env_id: dict((env_kwargs or {}).get(env_id, {})) for env_id in env_ids}
    for env_id in env_kwargs or {}:
        if env_id not in of_env:
            near = checks.did_you_mean(env_id, [*of_env])
            raise ValueError(f"env_kwargs name {env_id!r}, which takes no part: {near}")
    given = _given_settings(chosen, env_ids, settings)
    effective = {
        env_id: {
            each.name: effective_settings(each, env_id, given[env_id][each.name], of_env[env_id]) for each in chosen
        }
        for env_id in env_ids
    }
    for env_id, by_name in effective.items():
        for name, values in by_name.items():
            starts = values.get("learning_starts", 0)
            if isinstance(starts, int) and starts >= timesteps:
                raise ValueError(
                    f"{name} would not learn in {env_id}: learning_starts={starts} is not below --timesteps "
                    f"{timesteps}. Give more timesteps, or --set {name}.learning_starts=100."
                )
    random_returns = {env_id: _random_return(env_id, of_env[env_id]) for env_id in env_ids}
    plan: dict[str, Any] = {
        "algorithms": {algorithm.name: algorithm.path for algorithm in chosen},
        "env_ids": list(env_ids),
        "env_kwargs": of_env,
        "seeds": seeds,
        "timesteps": timesteps,
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "threads": threads,
        "settings": effective,
        "random_returns": random_returns,
        "differing": {env_id: differing(effective[env_id], given[env_id]) for env_id in env_ids},
        "engine": engine,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(),
    }
    plan |= notes(plan) if notes is not None else {}
    plan = json.loads(json.dumps(plan, default=runs.describe))  # as it will be read again
    todo = [
        Job(
            algorithm,
            given[env_id][algorithm.name],
            env_id,
            seed,
            timesteps,
            eval_every,
            eval_episodes,
            threads,
            of_env[env_id],
        )
        # Algorithms take turns, so that a change in the machine's load meets them all.
        for seed in seeds
        for env_id in env_ids
        for algorithm in chosen
    ]
    runner = _engine(engine, ray_address, jobs, threads)  # a cluster that is not there shows before anything is written
    try:
        with experiment_folder.locked(folder) if folder is not None else contextlib.nullcontext():
            finished = [] if folder is None else _prepare(folder, resume, plan)
            if folder is not None:
                experiment_folder.write_whole(folder / experiment_folder.PLAN, json.dumps(plan, indent=2) + "\n")
            return _run(todo, finished, plan, folder, runner, watcher or Watcher())
    finally:
        runner.stop()


def _run(
    todo: list[Job],
    finished: list[dict[str, Any]],
    plan: dict[str, Any],
    folder: Path | None,
    engine: Engine,
    watcher: Watcher,
) -> Experiment:
    wanted = {job.key for job in todo}
    records = [record for record in finished if _key(record) in wanted]
    done = {_key(record) for record in records}
    todo = [job for job in todo if job.key not in done]
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


def _key(record: Mapping[str, Any]) -> tuple[str, str, int]:
    return record["algorithm"], record["env_id"], record["seed"]


def _prepare(folder: Path, resume: bool, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is finished already."""
    if resume:
        experiment_folder.check_same_plan(experiment_folder.read_plan(folder), plan)
    elif (folder / experiment_folder.PLAN).exists() or experiment_folder.read_records(folder):
        raise ValueError(
            f"{folder} holds a comparison already: go on with --resume, or name another folder with --out."
        )
    return experiment_folder.read_records(folder)


def _given_settings(
    algorithms: list[Algorithm],
    env_ids: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | Callable[[list[Algorithm], str], Mapping[str, Any]] | None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """The constructor's arguments by environment and algorithm."""
    names = [algorithm.name for algorithm in algorithms]
    found = {}
    for env_id in env_ids:
        by_name = settings(algorithms, env_id) if callable(settings) else settings or {}
        for name in by_name:
            if name not in names:
                raise ValueError(f"settings name {name!r}, which takes no part: {checks.did_you_mean(name, names)}")
        found[env_id] = {name: dict(by_name.get(name, {})) for name in names}
    return found


def _random_return(env_id: str, env_kwargs: Mapping[str, Any]) -> float | None:
    """Mean return of random actions; None where no episode of theirs ended."""
    env = runs.EnvSettings(env_id, kwargs=env_kwargs)
    found = env.random_return(seed=0)
    if found is None:
        one = env.make_one()
        spec = one.spec
        one.close()
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(
                f"{env_id} sets no limit to an episode and no episode of random actions ended within 5,000 timesteps, "
                "so evaluation might never end: --env-kwargs max_episode_steps=1000, for example."
            )
    return found


def _check_numbers(
    env_ids: list[str],
    seeds: list[int],
    timesteps: int,
    eval_every: int,
    eval_episodes: int,
    threads: int,
    jobs: int | None,
) -> None:
    if not env_ids:
        raise ValueError("A comparison needs at least one environment: --env Pendulum-v1, for example.")
    given: list[tuple[str, list[Any]]] = [("environment", env_ids), ("seed", seeds)]
    for name, values in given:
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"The {name} {twice[0]!r} is given twice: each run must differ from all others.")
    if not seeds:
        raise ValueError("A comparison needs at least one seed, got none.")
    if min(seeds) < 0:
        raise ValueError(f"A seed must be at least 0, got {min(seeds)}.")
    for name, value in (
        ("timesteps", timesteps),
        ("eval-every", eval_every),
        ("eval-episodes", eval_episodes),
        ("threads", threads),
        ("jobs", 1 if jobs is None else jobs),
    ):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if eval_every > timesteps:
        raise ValueError(f"--eval-every must be at most --timesteps ({timesteps}), got {eval_every}: lower it.")


def read_experiment(folder: Path) -> Experiment:
    """
    :param folder: of an experiment, finished or not
    :return: what it holds
    :raises ValueError: when it holds none
    """
    plan = experiment_folder.read_plan(folder)
    return _tidy(
        experiment_folder.read_records(folder),
        experiment_folder.read_records(folder, experiment_folder.FAILED),
        plan,
    )


def _tidy(records: list[dict[str, Any]], failures: list[dict[str, Any]], plan: dict[str, Any]) -> Experiment:
    order = (
        {key: place for place, key in enumerate(plan["env_ids"])},
        {key: n for n, key in enumerate(plan["algorithms"])},
    )
    records = sorted(records, key=lambda each: (order[0][each["env_id"]], order[1][each["algorithm"]], each["seed"]))
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
