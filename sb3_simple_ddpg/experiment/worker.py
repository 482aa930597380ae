"""One run of a comparison, and the process that it has to itself: `python -m sb3_simple_ddpg.experiment.worker FOLDER`.

Not here: which runs there are (`experiment.py`) and who starts the processes (`engines.py`).
"""

import contextlib
import json
import os
import platform
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_simple_ddpg.checkpoint.buffer import CheckpointError
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.algorithms import Algorithm, build, resume
from sb3_simple_ddpg.experiment.folder import write_whole
from sb3_simple_ddpg.speed.torch_private import end_compile_workers

#: Seeds of evaluation environments begin here, far from those of training; ten thousand for each run.
EVALUATION_SEEDS = 10_000_000

JOB, RESULT = "job.pkl", "result.json"
#: Beside the checkpoints of a run: what its record will hold, so far.
NOTED = "noted.json"


@dataclass(frozen=True)
class Job:
    """
    One run that is to be done.

    :param algorithm: who
    :param arguments: of its constructor
    :param env_id: where
    :param seed: of everything that is random in training
    :param timesteps: how long
    :param eval_every: timesteps between two evaluations; the first stands before training, the last at its end
    :param eval_episodes: number of deterministic episodes in each evaluation
    :param threads: of PyTorch
    :param env_kwargs: arguments of the environment
    :param after_evaluation: called where the run is done, with its seed and each evaluation as the record has it; False
        ends the run there. It travels to the run's process, so it must be pickled
    :param checkpoints: folder of this run alone, for SimpleDDPG: a run that was stopped goes on from the newest
        checkpoint there, exactly; None: it begins anew
    :param checkpoint_every: timesteps between two of them, a multiple of `eval_every`
    """

    algorithm: Algorithm
    arguments: dict[str, Any]
    env_id: str
    seed: int
    timesteps: int
    eval_every: int
    eval_episodes: int
    threads: int = 1
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    after_evaluation: Callable[[int, list[Any]], bool] | None = None
    checkpoints: Path | None = None
    checkpoint_every: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """Algorithm, environment and seed, which no two runs of a comparison share."""
        return self.algorithm.name, self.env_id, self.seed

    @property
    def title(self) -> str:
        """The same, to be read."""
        return f"{self.algorithm.name} on {self.env_id}, seed {self.seed}"


def execute(job: Job) -> dict[str, Any]:
    """
    Train and evaluate in this process, whose number of threads and random streams are set.

    :param job: the run
    :return: the record, as JSON knows it, without the job's key: `episodes` holds [timestep, return, seconds] of each
        training episode, `evaluations` [timestep, seconds, [returns], success rate or null]. Seconds are wall-clock
        seconds of training, evaluations left out; `cpu_time_s` is the processor's time for the same, in this process
        and in those that it started, such as compilers.
    :raises FloatingPointError: for an evaluation whose return is not a finite number
    """
    th.set_num_threads(job.threads)
    started = datetime.now(UTC)
    settings = runs.EnvSettings(job.env_id, kwargs=job.env_kwargs)
    eval_env = settings.make(n_envs=min(10, job.eval_episodes))
    env = settings.make_one()
    observer = _Observer(job, eval_env)
    try:
        model = _begin(job, env)
        if model.get_vec_normalize_env() is not None:
            observer.eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
        observer.begun = _now()
        observer.go_on(model.num_timesteps)
        callbacks: list[BaseCallback] = [observer]
        if job.checkpoints is not None:
            callbacks.append(ExactCheckpointCallback(job.checkpoints, job.checkpoint_every, keep_last=1))
        if model.num_timesteps < job.timesteps:
            left = job.timesteps - model.num_timesteps
            model.learn(left, callbacks, reset_num_timesteps=model.num_timesteps == 0)
        wall_time_s = observer.clock()[0]
        end_compile_workers()  # of which the processor's time is known when they have ended
        cpu_time_s = observer.clock()[1]
    finally:
        env.close()
        eval_env.close()
    return {
        "timesteps": job.timesteps,
        "wall_time_s": wall_time_s,
        "cpu_time_s": cpu_time_s,
        "evaluation_time_s": observer.evaluation_s[0],
        "started_at": started.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "threads": job.threads,
        "python": platform.python_version(),
        "torch": th.__version__,
        "episodes": observer.episodes,
        "evaluations": observer.evaluations,
    }


def _begin(job: Job, env: gym.Env[Any, Any]) -> BaseAlgorithm:
    if job.checkpoints is not None:
        with contextlib.suppress(CheckpointError):  # it was stopped before there was one
            return resume(env, job.arguments, job.checkpoints)
    return build(job.algorithm, env, job.arguments, job.seed)


class _Observer(BaseCallback):
    """Notes the return of each training episode, and stops the clock while it evaluates."""

    def __init__(self, job: Job, eval_env: VecEnv) -> None:
        super().__init__()
        self.job = job
        self.eval_env = eval_env
        self.episodes: list[list[float]] = []
        self.evaluations: list[list[Any]] = []
        self.begun, self.evaluation_s = _now(), np.zeros(2)

    def clock(self) -> npt.NDArray[np.float64]:
        """Seconds of training until now, on the wall's clock and on the processor's."""
        return _now() - self.begun - self.evaluation_s

    def go_on(self, timestep: int) -> None:
        """Take up what was noted until a checkpoint at that timestep, which a run that begins anew has none of."""
        if timestep:
            assert self.job.checkpoints is not None
            noted = json.loads((self.job.checkpoints / NOTED).read_text("utf-8"))
            self.episodes, self.evaluations = (
                [each for each in noted[name] if each[0] <= timestep] for name in ("episodes", "evaluations")
            )
            self.begun = self.begun - self.evaluations[-1][1]  # the processor's are not noted: one thread has as many

    def _on_training_start(self) -> None:
        if not self.evaluations:
            self._evaluate(0)

    def _on_step(self) -> bool:
        timestep = self.num_timesteps
        if timestep > self.job.timesteps:
            return True  # an algorithm that learns in rounds may overshoot; the budget is the same for all
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append([timestep, float(info["episode"]["r"]), round(self.clock()[0], 4)])
        if timestep % self.job.eval_every == 0 or timestep == self.job.timesteps:
            self._evaluate(timestep)
            if self.job.after_evaluation is not None:
                return self.job.after_evaluation(self.job.seed, self.evaluations[-1])
        return True

    def _evaluate(self, timestep: int) -> None:
        training_s, begin = round(self.clock()[0], 4), _now()
        # Algorithms draw nothing for deterministic actions; an environment may use the global streams all the same.
        streams = random.getstate(), np.random.get_state()
        if isinstance(self.eval_env, VecNormalize):
            sync_envs_normalization(self.training_env, self.eval_env)
        self.eval_env.seed(EVALUATION_SEEDS + 10_000 * self.job.seed)  # the same starts for every algorithm
        with th.random.fork_rng(devices=[]):
            returns = runs.play(self.model, self.eval_env, self.job.eval_episodes)
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        if not np.isfinite(returns).all():
            raise FloatingPointError(f"An evaluation at timestep {timestep} gave the returns {returns}.")
        self.evaluations.append([timestep, training_s, [*returns], returns.success_rate])
        if self.job.checkpoints is not None:
            noted = {"episodes": self.episodes, "evaluations": self.evaluations}
            write_whole(self.job.checkpoints / NOTED, json.dumps(noted))
        self.evaluation_s += _now() - begin


def _now() -> npt.NDArray[np.float64]:
    """Seconds on the wall's clock; and those of processors, on all threads and on processes that have ended."""
    spent = os.times()
    return np.array([time.perf_counter(), time.process_time() + spent.children_user + spent.children_system])


def execute_or_explain(payload: bytes) -> dict[str, Any]:
    """
    :param payload: a pickled Job
    :return: the record; or, when anything went wrong, {"error": traceback}
    """
    try:
        job: Job = cloudpickle.loads(payload)
        return execute(job)
    except BaseException:  # whatever it is, the other runs go on and somebody will want to read it
        return {"error": traceback.format_exc()}


def main() -> None:
    """Read a Job from the folder that the command line names, and write its record there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    (folder / RESULT).write_text(json.dumps(execute_or_explain((folder / JOB).read_bytes())))


def _end_with_parent() -> None:
    """The pipe closes when the process that holds its other end is gone, however it went."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock would be held when this process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
