"""Where the runs of a comparison are done: processes of this machine, or a Ray cluster. joblib is the one interface.

Not here: what a run is (`worker.py`), and what becomes of its record (`experiment.py`).

joblib hands the jobs to threads that only wait: for a process each, or for Ray, which places each run on a free core of
any node. So a process that dies takes no other run along.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import joblib

from sb3_simple_ddpg.experiment.worker import JOB, RESULT, Job, execute_or_explain
from sb3_simple_ddpg.speed.cores import usable_cores

Record = dict[str, Any]


class Engine(Protocol):
    """Who does the runs: `jobs` of them at a time."""

    jobs: int

    def run(self, job: Job) -> Record:
        """
        :param job: a run
        :return: its record, or {"error": text}, when it has ended
        """

    def stop(self) -> None:
        """End what runs, for good."""


def run_all(jobs: Sequence[Job], engine: Engine, started: Callable[[Job], None]) -> Iterator[tuple[Job, Record]]:
    """
    :param jobs: the runs
    :param engine: who does them
    :param started: called, from any thread, when a run starts
    :return: each job with its record, in the order in which they end
    """

    def work(job: Job) -> tuple[Job, Record]:
        started(job)
        return job, engine.run(job)

    parallel = joblib.Parallel(
        n_jobs=max(1, min(engine.jobs, len(jobs))), backend="threading", batch_size=1, return_as="generator_unordered"
    )
    try:
        yield from parallel(joblib.delayed(work)(job) for job in jobs)
    finally:
        engine.stop()


class LocalEngine:
    """
    One fresh process for each run, so that no run inherits threads, caches or random streams.

    :param jobs: number of processes at a time; None: as many as cores, through the threads of each
    :param threads: of PyTorch, OpenMP and BLAS in each
    """

    def __init__(self, jobs: int | None = None, threads: int = 1) -> None:
        self.jobs = jobs or max(1, usable_cores() // threads)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, job: Job) -> Record:
        """
        :param job: the run
        :return: its record, or {"error": text}
        """
        with tempfile.TemporaryDirectory(prefix="simple-ddpg-") as name:
            folder = Path(name)
            (folder / JOB).write_bytes(cloudpickle.dumps(job))
            log, result = folder / "log.txt", folder / RESULT
            with log.open("wb") as output, self._start(job, folder, output) as process:
                status = process.wait()
                self._running.discard(process)
            if status == 0 and result.exists():
                record: Record = json.loads(result.read_text())
                return record
            return {"error": _explain(status, log.read_text(errors="replace"))}

    def _start(self, job: Job, folder: Path, output: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - an open file
        threads = {f"{name}_NUM_THREADS": str(job.threads) for name in ("OMP", "MKL", "OPENBLAS")}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with self._lock:  # `stop` sees every process, or the process is not started
            if self._stopped:
                raise RuntimeError("The comparison was stopped.")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sb3_simple_ddpg.experiment.worker", str(folder)],
                stdin=subprocess.PIPE,  # nothing is written: the process ends itself when this one is gone
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, "PYTHONPATH": path},
            )
            self._running.add(process)
        return process

    def stop(self) -> None:
        """End the processes that are running."""
        with self._lock:
            self._stopped = True
            for process in list(self._running):
                process.kill()


def _explain(status: int, log: str) -> str:
    how = f"ended with status {status} and without a result."
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}."
        how += " Out of memory is the usual cause: lower --jobs or buffer_size." if -status == signal.SIGKILL else ""
    return "\n".join([f"The process of the run {how}", *log.splitlines()[-30:]])


class RayEngine:
    """
    Each run is a Ray task in a fresh worker process, on whatever node has a core free. Records come back to this
    process, so the nodes need no common file system; they need this package and the environments in the same versions.

    :param address: of a cluster ("host:port", "auto", "ray://..."); None: start one on this machine, and end it again
    :param jobs: number of runs at a time; None: as many as the cluster has CPUs for
    :param threads: of PyTorch in each, and as many CPUs of Ray's
    :raises ValueError: without Ray, when the cluster cannot be reached, or has no CPU for a run
    """

    def __init__(self, address: str | None = None, jobs: int | None = None, threads: int = 1) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a comparison tells nobody
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                'The engine ray needs Ray: pip install "sb3-simple-ddpg[ray]", or use the engine local.'
            ) from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address is None:
                quiet |= {"include_dashboard": False, "num_cpus": (jobs or usable_cores() // threads or 1) * threads}
            host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
            try:
                if separator:  # does anybody listen there? Ray itself would try for many minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=address or "local", **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"--ray-address {address} cannot be reached ({error}). Start a cluster with `ray start --head`, or "
                    "leave --ray-address out to start one on this machine."
                ) from error
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < threads:
            self.stop()
            raise ValueError(f"The Ray cluster has {cpus} CPUs, and each run needs {threads}: add nodes.")
        self.jobs = min(jobs or cpus, max(1, cpus // threads))
        # One task a worker process; tried once more where a node is lost.
        self._task = ray.remote(num_cpus=threads, max_calls=1, max_retries=1)(_execute_on_node)

    def run(self, job: Job) -> Record:
        """
        :param job: the run
        :return: its record with the `node` that did it, or {"error": text}
        """
        try:
            record: Record = self._ray.get(self._task.remote(cloudpickle.dumps(job)))
        except self._ray.exceptions.RayError as error:
            return {"error": f"Ray could not finish the run: {type(error).__name__}: {error}"}
        return record

    def stop(self) -> None:
        """Leave the cluster, which ends what is running; one that was started here ends too."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()


def _execute_on_node(payload: bytes) -> Record:
    import ray

    return {**execute_or_explain(payload), "node": ray.get_runtime_context().get_node_id()}
