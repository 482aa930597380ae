"""Figures from the files that a run leaves: the return of each episode, with its moving mean.

Not here: how runs are made (`cli.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", "-.", ":")


def plot_returns(
    runs: list[Path], labels: list[str] | None = None, random_return: float | None = None, window: int = 10
) -> "Figure":
    """
    Return of each episode against the episode's number, with its moving mean, for one run or several.

    Lines differ in stroke as well as in colour, so that the figure can be read in grey.

    :param runs: folders that hold a `monitor.csv`, as SB3's Monitor writes it
    :param labels: of the runs; None: the folders' names
    :param random_return: mean return of random actions, drawn as a line for reference
    :param window: number of episodes in the moving mean, at least 1
    :return: the figure; write it with `figure.savefig(path)`
    :raises ValueError: for a folder without finished episodes
    """
    from matplotlib import pyplot as plt
    from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

    labels = labels or [run.name for run in runs]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        try:
            returns = load_results(str(run)).r.to_numpy()
        except LoadMonitorResultsError as error:
            raise ValueError(f"{run} holds no monitor.csv: pass the folder that `simple-ddpg train` wrote.") from error
        if not len(returns):
            raise ValueError(f"{run} holds no finished episode: train for longer.")
        episodes = np.arange(1, len(returns) + 1)
        means = [returns[max(0, end - window) : end].mean() for end in episodes]
        colour = f"C{number}"
        axes.plot(episodes, returns, ".", color=colour, alpha=0.4, markersize=5)
        stroke = _LINES[number % len(_LINES)]
        axes.plot(episodes, means, stroke, color=colour, linewidth=2, label=f"{label}: mean of {window} episodes")
    if random_return is not None:
        axes.axhline(random_return, color="0.35", linestyle=(0, (1, 3)), label="random actions, mean")
    axes.set(xlabel="episode", ylabel="return of the episode (sum of rewards)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
