"""The trials of a search: each trains several seeds side by side, and is stopped where they are worse than the best's.

Not here: which trials there are (`study.py`), when one is stopped (`pruner.py`), processes and clusters
(`experiment/engines.py`), and the verdict (`verdict.py`).
"""

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_simple_ddpg.experiment.engines import Engine, RayEngine, Record, run_all
from sb3_simple_ddpg.experiment.post import LocalPost, Post, RayPost
from sb3_simple_ddpg.experiment.worker import Job
from sb3_simple_ddpg.tuning import space as spaces
from sb3_simple_ddpg.tuning import study as studies
from sb3_simple_ddpg.tuning.pruner import CURVES, PairedSeedsPruner, best_of, p_worse

#: Seeds of the search begin here; those of the confirmation, from 0, are fresh.
FIRST_SEED: Final = 1_000

#: Seconds between two looks at what has arrived.
POLL: Final = 0.2


@dataclass(frozen=True)
class Plan:
    """
    What every trial of a study has in common, whoever does it.

    :param env_id: name of the environment
    :param env_kwargs: its arguments
    :param space: ranges by the setting's name, as text
    :param settings: assignments for every run
    :param seeds: number of runs of each trial
    :param timesteps: of each run
    :param eval_every: timesteps between two evaluations
    :param eval_episodes: number of episodes in each
    :param threads: of PyTorch in each run
    :param confidence: with which a trial is stopped
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    space: Mapping[str, str]
    settings: tuple[str, ...]
    seeds: int
    timesteps: int
    eval_every: int
    eval_episodes: int
    threads: int
    confidence: float

    @property
    def looks(self) -> int:
        """Number of evaluations between the beginning and the end."""
        return (self.timesteps - 1) // self.eval_every

    def pruner(self) -> PairedSeedsPruner:
        """
        :return: what stops a trial
        """
        return PairedSeedsPruner(self.confidence, self.looks)


class TrialEnded(Exception):
    """A trial ended without a value; what became of it stands in its attributes."""


@dataclass
class Search:
    """
    Trials until the study has enough of them.

    :param plan: of the study
    :param name: of the study
    :param storage: that holds it
    :param engine: who does the runs
    :param jobs: number of runs at a time; None: whole trials side by side, as many as there are cores for
    :param ended: hears of each trial of this process that is over
    """

    plan: Plan
    name: str
    storage: optuna.storages.RDBStorage
    engine: Engine
    jobs: int | None
    ended: Callable[[FrozenTrial], None]
    _stopped: bool = field(default=False, init=False)
    _asked: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def at_a_time(self) -> int:
        """Number of trials at a time."""
        return max(1, (self.jobs or self.engine.jobs) // self.plan.seeds)

    def study(self) -> optuna.Study:
        """
        :return: the study, for one thread
        """
        return studies.load(self.name, self.storage, self.plan.pruner())

    def run(self, places: int, patient: bool, waiting: Callable[[int], None]) -> None:
        """
        Do trials until all places are taken.

        :param places: number of trials that the study is to have
        :param patient: wait until the trials of other processes are over too
        :param waiting: called while it waits, with the number of those trials
        """
        study = self.study()
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self.at_a_time, "trial") as pool:
            try:
                while True:
                    studies.put_back(study)
                    while len(running) < self.at_a_time and self._is_room(study, places):
                        self._asked += 1
                        running.add(pool.submit(self._one, places))
                    if not running:
                        left = places - len(studies.ended(study.get_trials(deepcopy=False)))
                        if left <= 0 or not patient:
                            return
                        waiting(left)
                        time.sleep(1.0)
                        continue
                    over, running = wait(running, timeout=5.0, return_when=FIRST_COMPLETED)
                    for future in over:
                        future.result()
            except BaseException:
                self._stopped = True
                self.engine.stop()
                raise

    def _is_room(self, study: optuna.Study, places: int) -> bool:
        begun = [each for each in studies.counting(study.get_trials(deepcopy=False)) if not _waits(each)]
        return len(begun) + self._asked < places

    def _one(self, places: int) -> None:
        study = self.study()
        numbers: list[int] = []

        def objective(trial: optuna.Trial) -> float:
            numbers.append(trial.number)
            with self._lock:
                self._asked -= 1
            if studies.is_surplus(trial.number, study.get_trials(deepcopy=False), places):
                trial.set_user_attr(studies.SURPLUS, True)
                raise TrialEnded
            trial.set_user_attr(studies.BEGUN, True)
            return self._try(trial)

        try:
            study.optimize(objective, n_trials=1, catch=(TrialEnded,))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # Another process may have taken the trial over, since nobody had heard of this one for a minute.
            if not any(map(studies.is_interrupted, self._trials(study, numbers))):
                raise
        for trial in studies.ended(self._trials(study, numbers)):
            self.ended(trial)

    @staticmethod
    def _trials(study: optuna.Study, numbers: list[int]) -> list[FrozenTrial]:
        return [trial for trial in study.get_trials(deepcopy=False) if trial.number in numbers]

    def _try(self, trial: optuna.Trial) -> float:
        plan = self.plan
        texts = spaces.draw(trial, spaces.distributions(plan.space))
        arguments = spaces.arguments(plan.settings, texts, plan.env_id)
        runs = _Runs(plan, trial)
        with _post(self.engine) as post:
            jobs = [
                Job(
                    spaces.simple_ddpg(), arguments, plan.env_id, seed, plan.timesteps, plan.eval_every,
                    plan.eval_episodes, plan.threads, plan.env_kwargs, post,
                )
                for seed in range(FIRST_SEED, FIRST_SEED + plan.seeds)
                if not runs.is_whole(seed)
            ]  # fmt: skip
            self._referee(trial, runs, jobs, post)
        if self._stopped:
            raise TrialEnded  # without an error: it is put back
        trial.set_user_attr(CURVES, runs.curves)
        if runs.error is not None:
            trial.set_user_attr(studies.ERROR, runs.error)
            raise TrialEnded
        if not all(map(runs.is_whole, range(FIRST_SEED, FIRST_SEED + plan.seeds))):
            raise optuna.TrialPruned
        return runs.mean_at(plan.timesteps)

    def _referee(self, trial: optuna.Trial, runs: "_Runs", jobs: list[Job], post: Post) -> None:
        """Let the runs go on side by side, and stop them when the pruner says so or one of them fails."""
        records: queue.SimpleQueue[tuple[Job, Record]] = queue.SimpleQueue()
        lent = _Lent(self.engine, min(len(jobs), self.jobs or len(jobs)))

        def work() -> None:
            for each in run_all(jobs, lent, lambda job: None):
                records.put(each)

        with ThreadPoolExecutor(1, "runs") as helper:
            working = helper.submit(work)
            try:
                over = not jobs
                while not over:
                    over = bool(wait([working], timeout=POLL).done)
                    for seed, evaluation in post.take():
                        runs.note(seed, evaluation)
                    while not records.empty():
                        job, record = records.get()
                        runs.keep(job.seed, record)
                    if self._stopped or runs.error is not None or (not over and self._is_worse(trial, runs)):
                        post.stop()
            except BaseException:
                post.stop()
                raise
            working.result()

    def _is_worse(self, trial: optuna.Trial, runs: "_Runs") -> bool:
        for timestep in runs.unreported():
            trial.set_user_attr(CURVES, runs.curves)
            trial.report(runs.mean_at(timestep), timestep)
            if timestep < self.plan.timesteps and studies.STOPPED not in trial.user_attrs and trial.should_prune():
                rival = best_of(trial.study)
                assert rival is not None
                p = p_worse(runs.curves, rival.user_attrs[CURVES], timestep)
                trial.set_user_attr(studies.STOPPED, {"at": timestep, "best": rival.number, "p": p})
        return studies.STOPPED in trial.user_attrs


def _waits(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.WAITING


class _Runs:
    """What is known of the runs of one trial."""

    def __init__(self, plan: Plan, trial: optuna.Trial) -> None:
        self.plan = plan
        self.trial = trial
        self.error: str | None = None
        self.curves: dict[str, dict[str, float]] = {
            str(seed): {} for seed in range(FIRST_SEED, FIRST_SEED + plan.seeds)
        }
        self._reported: set[int] = set()
        for name, record in trial.user_attrs.items():  # of the process that began this trial, and is gone
            if name.startswith(studies.RUN):
                for evaluation in record["evaluations"]:
                    self.note(int(name.removeprefix(studies.RUN)), evaluation)

    def note(self, seed: int, evaluation: list[Any]) -> None:
        self.curves[str(seed)][str(evaluation[0])] = float(np.mean(evaluation[2]))

    def is_whole(self, seed: int) -> bool:
        return str(self.plan.timesteps) in self.curves[str(seed)]

    def keep(self, seed: int, record: Record) -> None:
        if "error" in record:
            self.error = self.error or f"seed {seed}: {record['error']}"
            return
        for evaluation in record["evaluations"]:
            self.note(seed, evaluation)
        if self.is_whole(seed):
            kept = {name: record.get(name) for name in ("evaluations", "wall_time_s", "host", "node")}
            self.trial.set_user_attr(f"{studies.RUN}{seed}", kept)

    def unreported(self) -> list[int]:
        """Timesteps that all seeds have reached since the last call."""
        reached = set.intersection(*(set(map(int, curve)) for curve in self.curves.values()))
        new = sorted(reached - self._reported - {0})
        self._reported |= set(new)
        return new

    def mean_at(self, timestep: int) -> float:
        return float(np.mean([curve[str(timestep)] for curve in self.curves.values()]))


@dataclass
class _Lent:
    """An engine for one trial; the end of a trial does not end it."""

    engine: Engine
    jobs: int

    def run(self, job: Job) -> Record:
        return self.engine.run(job)

    def stop(self) -> None:
        pass


@contextlib.contextmanager
def _post(engine: Engine) -> Iterator[Post]:
    if isinstance(engine, RayEngine):
        post = RayPost()
        try:
            yield post
        finally:
            with contextlib.suppress(Exception):  # the cluster may be gone
                post.close()
    else:
        with tempfile.TemporaryDirectory(prefix="simple-ddpg-", ignore_cleanup_errors=True) as folder:
            yield LocalPost(Path(folder))
