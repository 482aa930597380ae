"""Where a training of the command line is logged; a full disk does not end it."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger, SeqWriter, configure
from stable_baselines3.common.monitor import ResultsWriter

from sb3_simple_ddpg.experiment import runs


def make_logger(folder: Path, progress: bool, tensorboard: bool) -> Logger:
    """SB3's, whose progress.csv goes on where there is one already."""
    path = folder / runs.PROGRESS
    already = path.read_text("utf-8") if path.exists() else ""
    logger = configure(str(folder), [*(["tensorboard"] if tensorboard else []), *([] if progress else ["stdout"])])
    csv = _PatientCSV(str(path))
    logger.output_formats.append(csv)
    if already:
        csv.file.write(already)
        csv.keys = already.splitlines()[0].split(",")
    if progress:
        logger.output_formats.append(_Messages())
    return logger


class _Messages(SeqWriter, KVWriter):
    """What the logger says in words, such as a checkpoint that could not be written, beside the progress bar."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Numbers are in progress.csv."""

    def write_sequence(self, sequence: list[str]) -> None:
        print(*sequence, file=sys.stderr)

    def close(self) -> None:
        """Standard error stays open."""


class _PatientCSV(CSVOutputFormat):
    """A full disk must not end a training: SB3's progress.csv, which loses a row then."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        with contextlib.suppress(OSError):
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class PatientResults(ResultsWriter):
    """The same for SB3's monitor.csv."""

    def write_row(self, epinfo: dict[str, float]) -> None:
        with contextlib.suppress(OSError):
            super().write_row(epinfo)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class ReturnsProgressBar(ProgressBarCallback):
    """SB3's progress bar with the mean return of the last episodes beside it."""

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or []]
        if returns:
            newest = returns[-10:]
            self.pbar.set_description(f"mean return {np.mean(newest):z.{runs.digits_of(newest)}f}", refresh=False)
