"""Figures: the return of each episode of a run, with its moving mean; and what a comparison of many runs shows.

Not here: how runs are made (`command_line/cli.py`, `experiment.py`) and how numbers come from them (`statistics.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sb3_simple_ddpg.experiment import statistics
from sb3_simple_ddpg.experiment.statistics import Array, Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
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
        colour, stroke = f"C{number}", _LINES[number % len(_LINES)]
        axes.plot(episodes, returns, ".", color=colour, alpha=0.4, markersize=5)
        axes.plot(episodes, means, stroke, color=colour, linewidth=2, label=f"{label}: mean of {window} episodes")
    if random_return is not None:
        axes.axhline(random_return, color="0.35", linestyle=(0, (1, 3)), label="random actions, mean")
    axes.set(xlabel="episode", ylabel="return of the episode (sum of rewards)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which the colour-blind can tell apart, ordered so that
#: neighbours differ in lightness too; each algorithm has a stroke and a mark of its own besides, for print in grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def _look(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKS[number % len(_MARKS)],
    }


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # without pyplot: no display, no global state


def plot_learning_curves(
    evaluations: "pd.DataFrame", references: Mapping[str, Mapping[str, float | None]] | None = None
) -> "Figure":
    """
    Interquartile mean of the evaluations over runs with its 95 % bootstrap band, against timesteps (left) and against
    seconds of training (right), a row for each environment. Seconds differ between runs, so each run's curve is read at
    the same seconds, by straight lines between its evaluations, until the first of the algorithm's runs ends.

    :param evaluations: of `experiment.Experiment`; without the column `wall_time_s` timesteps alone are drawn
    :param references: by environment, names and heights of lines for reference, None for those that are unknown
    :return: the figure
    """
    env_ids = list(dict.fromkeys(evaluations.env_id))
    names = list(dict.fromkeys(evaluations.algorithm))
    units = {"timestep": "timesteps of training", "wall_time_s": "seconds of training (wall clock)"}
    units = {column: unit for column, unit in units.items() if column in evaluations}
    figure = _new_figure(0.6 + 5.2 * len(units), 0.6 + 3.9 * len(env_ids))
    panels = figure.subplots(len(env_ids), len(units), squeeze=False, sharey="row")
    for row, env_id in zip(panels, env_ids, strict=True):
        for number, name in enumerate(names):
            of_pair = evaluations[(evaluations.env_id == env_id) & (evaluations.algorithm == name)]
            curves = [curve.sort_values("timestep") for _, curve in of_pair.groupby("seed")]
            if not curves:
                continue
            timesteps = curves[0].timestep.to_numpy(float)
            returns = np.stack([curve.mean_return.to_numpy(float) for curve in curves])
            _draw_curve(row[0], timesteps, returns, name, number)
            for panel in row[1:]:
                seconds = np.linspace(0, min(curve.wall_time_s.max() for curve in curves), 41)
                at_seconds = [np.interp(seconds, curve.wall_time_s, curve.mean_return) for curve in curves]
                _draw_curve(panel, seconds, np.stack(at_seconds), name, number)
        for panel, unit in zip(row, units.values(), strict=True):
            for stroke, (label, height) in zip(
                ((0, (1, 3)), (0, (5, 5))), (references or {}).get(env_id, {}).items(), strict=False
            ):
                if height is not None:
                    panel.axhline(height, color="0.35", linestyle=stroke, linewidth=1, label=label, zorder=1)
            panel.set(xlabel=unit, title=env_id.rpartition(":")[2])  # without the module that registers it
            panel.grid(alpha=0.3)
            panel.set_xlim(left=0)
        row[0].set_ylabel("return of an evaluation episode\n(interquartile mean, 95 % band)")
        row[0].xaxis.set_major_formatter("{x:,.0f}")
    # From all panels: on the first environment an algorithm may have no run.
    handles: dict[str, Artist] = {}
    for panel in panels.flat:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    labels = sorted(handles, key=lambda label: names.index(label) if label in names else len(names))
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside upper center", ncols=min(len(labels), 6),
        frameon=False,
    )  # fmt: skip
    return figure


def _draw_curve(panel: "Axes", at: Array, curves: Array, name: str, number: int) -> None:
    look = _look(number)
    every = max(1, len(at) // 10)
    places = (number * every // 3, every)
    middle = statistics.iqm(curves, axis=0)
    panel.plot(at, middle, label=name, linewidth=1.8, markersize=5, markevery=places, **look)
    if len(curves) > 1:
        band = statistics.interval([curves], resamples=1_000)
        panel.fill_between(at, band.low, band.high, color=look["color"], alpha=0.18, linewidth=0)


def plot_performance_profile(samples: Mapping[str, Sequence[npt.ArrayLike]], xlabel: str) -> "Figure":
    """
    Share of runs above each score, with its pointwise 95 % band: an algorithm whose line is above another's everywhere
    is better whatever the threshold. Agarwal et al. 2021, Section 4.1.

    :param samples: by algorithm, one sample for each task
    :param xlabel: what the score is, with its unit
    :return: the figure
    """
    figure = _new_figure(7, 4.5)
    panel = figure.subplots()
    pooled = np.concatenate([np.asarray(sample, float) for tasks in samples.values() for sample in tasks])
    margin = 0.05 * (np.ptp(pooled) or 1.0)
    levels = np.linspace(pooled.min() - margin, pooled.max() + margin, 201)
    for number, (name, tasks) in enumerate(samples.items()):
        profile = statistics.performance_profile(tasks, levels)
        look = _look(number)
        panel.plot(
            levels, profile.estimate, label=name, markevery=(7 * number, 25), markersize=5, linewidth=1.8, **look
        )
        panel.fill_between(levels, profile.low, profile.high, color=look["color"], alpha=0.15, linewidth=0)
    panel.set(xlabel=xlabel, ylabel="share of runs above that score", ylim=(-0.03, 1.03), xlim=(levels[0], levels[-1]))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure


def plot_improvement(rows: Sequence[tuple[str, Interval]]) -> "Figure":
    """
    Probability of improvement with 95 % intervals. Agarwal et al. 2021, Section 4.3.

    :param rows: what is compared, and the probability that it is the better one
    :return: the figure
    """
    figure = _new_figure(8, 1.3 + 0.5 * len(rows))
    panel = figure.subplots()
    for place, (_, found) in enumerate(rows):
        _draw_interval(panel, place, found, 0)
        panel.annotate(
            f"{found.estimate:.2f}", (found.estimate, place), (0, 7), textcoords="offset points", ha="center", size=9
        )
    panel.axvline(0.5, color="0.35", linestyle="--", linewidth=1)
    panel.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.6))
    panel.set_yticks(range(len(rows)), [label for label, _ in rows])
    panel.set_xlabel("probability that a run of the first beats one of the second (dashed: no difference)")
    panel.grid(alpha=0.3, axis="x")
    return figure


def plot_intervals(tables: Mapping[str, Mapping[str, Mapping[str, Interval | None]]]) -> "Figure":
    """
    Statistics of the final return with their 95 % intervals, a panel each, a row of panels for each environment.

    :param tables: by environment, statistic and algorithm; None: nothing to draw
    :return: the figure
    """
    columns = list(dict.fromkeys(statistic for table in tables.values() for statistic in table))
    names = list(dict.fromkeys(name for table in tables.values() for column in table.values() for name in column))
    figure = _new_figure(3.1 * len(columns) + 0.6, (0.9 + 0.42 * len(names)) * len(tables) + 0.3)
    panels = figure.subplots(len(tables), len(columns), squeeze=False, sharey=True)
    for row, (title, table) in zip(panels, tables.items(), strict=True):
        for panel, column in zip(row, columns, strict=True):
            found = table.get(column, {})
            for place, name in enumerate(names):
                if (interval := found.get(name)) is not None:
                    _draw_interval(panel, place, interval, place)
            panel.set_title(f"{title.rpartition(':')[2]}: {column}" if len(tables) > 1 else column, size=9)
            panel.grid(alpha=0.3, axis="x")
            panel.locator_params(axis="x", nbins=4)
            panel.tick_params(labelsize=8)
        row[0].set_yticks(range(len(names)), names)
        row[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("estimate (mark) and 95 % bootstrap interval (line)", size=9)
    return figure


def _draw_interval(panel: "Axes", place: int, found: Interval, number: int) -> None:
    look = _look(number)
    panel.plot([found.low, found.high], [place, place], color=look["color"], linewidth=3, solid_capstyle="butt")
    panel.plot(found.estimate, place, look["marker"], color=look["color"], markeredgecolor="black", markersize=8)
