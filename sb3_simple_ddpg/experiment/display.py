"""Runs done, running, failed, and the time left: on one line that changes, or on plain lines where nobody looks on.

Not here: the runs (`experiment.py`).
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.experiment import Watcher
from sb3_simple_ddpg.experiment.worker import Job

if TYPE_CHECKING:
    from rich.columns import Columns
    from rich.console import Console


class Display(Watcher):
    """
    Shows runs done, running, failed, and the time left: one line that changes, or plain lines without a terminal.

    :param console: to print on
    :param live: False: plain lines in any case
    """

    def __init__(self, console: "Console", live: bool = True) -> None:
        self.console = console
        self.live = live and console.is_terminal
        self._say = partial(console.print, markup=False, highlight=False)
        self._running: set[tuple[str, str, int]] = set()
        self.before = self.done = self.failed = self.total = 0
        self._begun, self._end = time.monotonic(), 0.0

    def shown(self) -> AbstractContextManager[Any]:
        """Keep the line on the terminal while the block runs."""
        from rich.live import Live

        if not self.live:
            return nullcontext()
        return Live(console=self.console, get_renderable=self._line, refresh_per_second=1)

    def _line(self) -> "Columns":
        from rich.columns import Columns
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        return Columns([ProgressBar(self.total or None, self.done, width=30), Text(self.status())])

    def planned(self, plan: Mapping[str, Any]) -> None:
        if len(plan["algorithms"]) == 1:
            return
        for env_id, differing in plan["differing"].items():
            how = "these settings differ:" if differing else "all settings are identical, noise included."
            self._say(f"{env_id}: {how}")
            for name, values in differing.items():
                self._say(f"    {name}: {', '.join(f'{each} {value}' for each, value in values.items())}")
        for env_id, margin in plan.get("margins", {}).items():
            if margin is None:
                self._say(
                    f"{env_id}: no margin given, so equivalence will not be judged. --threshold {env_id}=RETURN gives "
                    f"one, or --margin {env_id}=RETURN."
                )

    def begin(self, jobs: Sequence[Job], finished: int, parallel: int) -> None:
        self._begun = time.monotonic()
        self.before, self.done, self.total = finished, finished, len(jobs) + finished
        if not jobs:
            self.console.print(f"All {self.total} runs are finished already.")
            return
        before = f", {finished} of them finished before" if finished else ""
        self.console.print(f"{self.total} runs{before}, {parallel} at a time. Ctrl-C stops; --resume goes on.")

    def started(self, job: Job) -> None:
        self._running.add(job.key)

    def ended(self, job: Job, record: Mapping[str, Any]) -> None:
        self._running.discard(job.key)
        self.done += 1
        self.failed += "error" in record
        half, now = len(self._running) / 2, time.monotonic()  # what is going on counts as half done
        share = (self.total - self.done - half) / (self.done - self.before + half)
        self._end = now + share * (now - self._begun)
        if "error" in record:
            self.console.print(f"FAILED: {job.title}\n{record['error'].rstrip()}", style="red", markup=False)
        elif not self.live:
            returns = record["evaluations"][-1][2]
            final = f"{np.mean(returns):z.{runs.digits_of(returns)}f}"
            self.console.print(f"{job.title}: return {final}, {record['wall_time_s']:.0f} s. {self.status()}")

    def status(self) -> str:
        """
        :return: how far the comparison is; the time left is that of the rest going on as it went
        """
        text = f"{self.done} of {self.total} runs done, {len(self._running)} running, {self.failed} failed"
        left = timedelta(seconds=max(0, round(self._end - time.monotonic())))
        return f"{text}, about {left} left" if self.before < self.done < self.total else text
