"""How far the search is, and the time left: on one line that changes, or on plain lines where nobody looks on.

Not here: the search (`search.py`); the confirmation, which is a comparison with a display of its own.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.tuning import study as studies
from sb3_simple_ddpg.tuning.pruner import CURVES

if TYPE_CHECKING:
    from rich.console import Console


class Display:
    """
    Shows trials done, stopped early, failed, the best one, and the time left.

    :param console: to print on
    :param live: False: plain lines in any case
    """

    def __init__(self, console: "Console", live: bool = True) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = console
        self.live = live and console.is_terminal
        self._lock = threading.Lock()
        self._waiting = 0
        self._progress = Progress(
            BarColumn(bar_width=30), TextColumn("{task.description}"), console=console, disable=not self.live
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the line on the terminal while the block runs."""
        with self._progress:
            yield

    def begin(self, trials: Sequence[FrozenTrial], places: int, at_a_time: int, seeds: int) -> None:
        """
        :param trials: of the study until now
        :param places: number of trials that it is to have
        :param at_a_time: number of trials at a time
        :param seeds: number of runs of each
        """
        self.places = places
        self._before = len(studies.ended(trials))
        self._began = time.monotonic()
        self._task = self._progress.add_task("", total=places, completed=self._before)
        if self._before >= places:
            self.console.print(f"All {places} trials are done already.")
            return
        before = f", {self._before} of them done before" if self._before else ""
        self.console.print(
            f"{places} trials of {seeds} seeds{before}, {at_a_time} at a time. Ctrl-C stops; --resume goes on."
        )

    def ended(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> None:
        """
        :param trial: that is over
        :param trials: of the study until now
        """
        said = ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                         for name, value in trial.params.items())  # fmt: skip
        with self._lock:
            self.console.print(f"Trial {trial.number} {outcome(trial)}. {said}", markup=False, highlight=False)
            self.update(trials)

    def waiting(self, trials: int) -> None:
        """
        :param trials: number of trials that other processes do, or did until they were killed
        """
        if trials != self._waiting:
            self.console.print(
                f"Waiting for {trials} trials of other processes; those of a process that is gone are taken over after "
                f"{studies.GRACE} s."
            )
        self._waiting = trials

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """
        :param trials: of the study until now
        """
        text = self.status(trials)
        if self.live:
            self._progress.update(self._task, completed=len(studies.ended(trials)), description=text)
        else:
            self.console.print(text, markup=False, highlight=False)

    def status(self, trials: Sequence[FrozenTrial]) -> str:
        """
        :param trials: of the study until now
        :return: how far it is
        """
        over = studies.ended(trials)
        stopped, failed = (
            len([trial for trial in over if trial.state is state]) for state in (TrialState.PRUNED, TrialState.FAIL)
        )
        text = f"{len(over)} of {self.places} trials done, {stopped} of them stopped early, {failed} failed"
        values = [(trial.values[0], trial.number) for trial in over if trial.state is TrialState.COMPLETE]
        if values:
            best, number = max(values)
            text += f", best {best:.{runs.digits_of([best])}f} (trial {number})"
        new = len(over) - self._before
        left = max(0, self.places - len(over))
        if new and left:
            text += f", about {duration(left * (time.monotonic() - self._began) / new)} of search left"
        return text


def outcome(trial: FrozenTrial) -> str:
    """
    :param trial: that is over
    :return: what became of it, in words
    """
    if trial.state is TrialState.FAIL:
        lines = str(trial.user_attrs[studies.ERROR]).strip().splitlines()
        return f"failed ({lines[0].partition(':')[0]}: {lines[-1]})"
    if trial.state is TrialState.PRUNED:
        stop = trial.user_attrs[studies.STOPPED]
        return f"stopped at {stop['at']:,} timesteps: worse than trial {stop['best']} (p = {stop['p']:.2g})"
    curves = trial.user_attrs[CURVES].values()
    finals = [curve[max(curve, key=int)] for curve in curves]
    digits = runs.digits_of(finals)
    return f"reached {trial.values[0]:.{digits}f} ({', '.join(f'{each:.{digits}f}' for each in finals)})"


def duration(seconds: float) -> str:
    """
    :param seconds: that something takes
    :return: the same to be read
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
