"""Runs done, running, failed, and the time left: on one line that changes, or on plain lines where nobody looks on.

Not here: the runs (`experiment.py`).
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.experiment import Watcher
from sb3_simple_ddpg.experiment.worker import Job

if TYPE_CHECKING:
    from rich.console import Console


class Display(Watcher):
    """
    Shows runs done, running, failed, and the time left: one line that changes, or plain lines without a terminal.

    :param console: to print on
    :param live: False: plain lines in any case
    """

    def __init__(self, console: "Console", live: bool = True) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = console
        self.live = live and console.is_terminal
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str, int], float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._todo: dict[tuple[str, str, int], str] = {}
        self.failed = 0
        self.done = 0
        self.total = 0
        self.parallel = 1
        self._progress = Progress(
            BarColumn(bar_width=30), TextColumn("{task.description}"), console=console, disable=not self.live
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the line on the terminal while the block runs."""
        stop = threading.Event()

        def refresh() -> None:
            while not stop.wait(1.0):
                self._update()

        with self._progress:
            ticking = threading.Thread(target=refresh, daemon=True)
            if self.live:
                ticking.start()
            try:
                yield
            finally:
                stop.set()

    def planned(self, plan: Mapping[str, Any]) -> None:
        for env_id, differing in plan["differing"].items():
            if len(plan["algorithms"]) > 1:
                how = "these settings differ:" if differing else "all settings are identical, noise included."
                self.console.print(f"{env_id}: {how}", markup=False, highlight=False)
            for name, values in differing.items():
                said = ", ".join(f"{algorithm} {value}" for algorithm, value in values.items())
                self.console.print(f"    {name}: {said}", markup=False, highlight=False)
        for env_id, margin in plan.get("margins", {}).items():
            if margin is None and len(plan["algorithms"]) > 1:
                self.console.print(
                    f"{env_id}: no margin given, so equivalence will not be judged. --threshold {env_id}=RETURN gives "
                    f"one, or --margin {env_id}=RETURN.",
                    markup=False, highlight=False,
                )  # fmt: skip

    def begin(self, jobs: Sequence[Job], finished: int, parallel: int) -> None:
        self.total, self.done, self.parallel = len(jobs) + finished, finished, parallel
        self._todo = {job.key: job.algorithm.name for job in jobs}
        self._task = self._progress.add_task(self.status(), total=self.total, completed=finished)
        if not jobs:
            self.console.print(f"All {self.total} runs are finished already.")
            return
        before = f", {finished} of them finished before" if finished else ""
        self.console.print(f"{self.total} runs{before}, {parallel} at a time. Ctrl-C stops; --resume goes on.")

    def started(self, job: Job) -> None:
        with self._lock:
            self._running[job.key] = time.monotonic()
        self._update()

    def ended(self, job: Job, record: Mapping[str, Any]) -> None:
        with self._lock:
            begun = self._running.pop(job.key)
            del self._todo[job.key]
            self.done += 1
            if "error" in record:
                self.failed += 1
            else:
                self._seconds.setdefault(job.algorithm.name, []).append(time.monotonic() - begun)
        if "error" in record:
            self.console.print(f"FAILED: {job.title}\n{record['error'].rstrip()}", style="red", markup=False)
        elif not self.live:
            returns = record["evaluations"][-1][2]
            final = f"{np.mean(returns):z.{runs.digits_of(returns)}f}"
            self.console.print(f"{job.title}: return {final}, {record['wall_time_s']:.0f} s. {self.status()}")
        self._update()

    def status(self) -> str:
        """
        :return: how far the comparison is
        """
        left = self.seconds_left()
        text = f"{self.done} of {self.total} runs done, {len(self._running)} running, {self.failed} failed"
        return text if left is None else f"{text}, about {_duration(left)} left"

    def seconds_left(self) -> float | None:
        """
        :return: seconds that the rest will take if it goes on as it went; None while nothing has ended
        """
        with self._lock:
            known = {name: float(np.mean(seconds)) for name, seconds in self._seconds.items()}
            if not known:
                return None
            usual = float(np.mean(list(known.values())))
            now = time.monotonic()
            left = sum(
                max(0.0, known.get(name, usual) - (now - self._running.get(key, now)))
                for key, name in self._todo.items()
            )
        return left / self.parallel

    def _update(self) -> None:
        if self.live and self.total:
            self._progress.update(self._task, completed=self.done, description=self.status())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
