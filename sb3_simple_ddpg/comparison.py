"""A comparison from its settings to its summary: `simple-ddpg compare`.

Not here: the runs (`experiment.py`), the formulas (`statistics.py`), the drawing (`plotting.py`) and the command line.
"""

import json
import math
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import gymnasium as gym
import numpy as np
import pandas as pd

from sb3_simple_ddpg import experiment_folder, statistics
from sb3_simple_ddpg.algorithms import find_algorithms, settings_from
from sb3_simple_ddpg.benchmark_report import markdown
from sb3_simple_ddpg.experiment import Experiment, Watcher, run_experiment
from sb3_simple_ddpg.experiment_worker import Job
from sb3_simple_ddpg.statistics import Array, Interval

if TYPE_CHECKING:
    from rich.console import Console

#: Where Gymnasium registers no return at which a task counts as solved: a customary one, and where it comes from.
THRESHOLDS: Final[dict[str, tuple[float, str]]] = {
    "Pendulum-v1": (-200.0, "customary; a pendulum that is swung up and held scores -100 to -200 (RL Zoo: -152)"),
}
PICTURES = ("learning_curves", "performance_profile", "probability_of_improvement", "intervals")
FILES = (
    "runs.csv", "evaluations.csv", "summary.json", "summary.md",
    *(f"{picture}.{ending}" for picture in PICTURES for ending in ("png", "svg")),
)  # fmt: skip
COLUMNS = ["algorithm", "env_id", "seed", "timestep", "episode_return", "wall_time_s"]


@dataclass(frozen=True)
class Request:
    """
    What somebody typed. None and () stand for what was not typed: the stored request's, or else the defaults.

    The options are those of `simple-ddpg compare`, which explains them.
    """

    env: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    seeds: int | None = None
    first_seed: int | None = None
    timesteps: int | None = None
    settings: tuple[str, ...] = ()
    preset: tuple[str, ...] = ()
    eval_every: int | None = None
    eval_episodes: int | None = None
    threads: int | None = None
    threshold: tuple[str, ...] = ()
    margin: float | None = None

    def over(self, other: "Request") -> "Request":
        """
        :param other: an earlier request, or the defaults
        :return: this one, with the other's where this one says nothing
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Request(
            **{name: getattr(other, name) if value in (None, ()) else value for name, value in values.items()}
        )


DEFAULTS = Request(
    env=("Pendulum-v1",),
    algorithms=("simple_ddpg", "ddpg"),
    seeds=10,
    first_seed=0,
    timesteps=20_000,
    eval_episodes=10,
    threads=1,
    margin=0.1,
)


def compare(
    request: Request,
    folder: Path,
    console: "Console",
    *,
    resume: bool = False,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    live: bool = True,
) -> int:
    """
    Run what is missing, then write the summary and print its table.

    :param request: what is compared
    :param folder: to write
    :param console: to print on
    :param resume: go on with what is in the folder
    :param engine: "local" or "ray"
    :param jobs: number of runs at a time; None: as many as there are cores for
    :param ray_address: of a running Ray cluster
    :param live: show a display that changes, where the console can
    :return: exit status: 0, or 1 when a run failed
    :raises ValueError: for anything that cannot work, before any run starts
    """
    if resume:
        request = request.over(Request(**_tuples(experiment_folder.read_plan(folder).get("request", {}))))
    request = request.over(DEFAULTS)
    assert request.seeds is not None
    assert request.first_seed is not None
    assert request.timesteps is not None
    assert request.eval_episodes is not None
    assert request.threads is not None
    assert request.margin is not None
    if request.seeds < 2:
        raise ValueError(
            f"--seeds must be at least 2, got {request.seeds}: one run says nothing about the spread, so there is no "
            "interval. Ten is a good number."
        )
    if not 0 < request.margin < math.inf:
        raise ValueError(f"--margin must be above 0, got {request.margin}: 0.1 for example.")
    thresholds = _thresholds(request)
    find_algorithms(request.algorithms)  # a mistake in a name shows before the environments are made

    display = Display(console, live)
    with display.shown():
        experiment = run_experiment(
            request.algorithms,
            request.env,
            range(request.first_seed, request.first_seed + request.seeds),
            request.timesteps,
            settings=lambda algorithms, env_id: settings_from(algorithms, request.settings, request.preset, env_id),
            eval_every=request.eval_every,
            eval_episodes=request.eval_episodes,
            threads=request.threads,
            engine=engine,
            jobs=jobs,
            ray_address=ray_address,
            folder=folder,
            resume=resume,
            notes={"request": asdict(request), "command": _command()},
            watcher=display,
        )
    with experiment_folder.locked(folder):
        summary = summarise(experiment, thresholds, request.margin)
        write_summary(folder, experiment, summary)
    _print_summary(console, summary, experiment)
    for failure in experiment.failures:
        console.print(
            f"Failed: {failure['algorithm']} on {failure['env_id']}, seed {failure['seed']}.", style="bold red"
        )
    if experiment.failures:
        console.print(f"Their tracebacks are in {folder / experiment_folder.FAILED}; --resume runs them again.")
    return 1 if experiment.failures else 0


def _tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _command() -> str:
    """As it can be typed again; folders of the user's own are nobody's business."""
    words = [word if not word.startswith(os.sep) else Path(word).name for word in sys.argv[1:]]
    return shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "simple-ddpg"), *words])


def _thresholds(request: Request) -> dict[str, tuple[float | None, str]]:
    """For each environment the return at which it counts as solved, and where that number comes from."""
    found: dict[str, tuple[float | None, str]] = {}
    typed: dict[str, float] = {}
    for text in request.threshold:
        env_id, separator, number = text.rpartition("=")
        if separator and env_id not in request.env:
            raise ValueError(f"--threshold {text}: {env_id!r} takes no part in this comparison.")
        try:
            value = float(number)
        except ValueError as error:
            raise ValueError(f"--threshold takes a return, or environment=return, got {text!r}.") from error
        if not math.isfinite(value):
            raise ValueError(f"--threshold must be a finite return, got {text!r}.")
        typed |= {env_id: value} if separator else dict.fromkeys(request.env, value)
    for env_id in request.env:
        if env_id in typed:
            found[env_id] = typed[env_id], "--threshold"
            continue
        try:
            registered = gym.spec(env_id.partition(":")[2] or env_id).reward_threshold
        except gym.error.Error:
            registered = None  # `run_experiment` says what is wrong with it
        found[env_id] = THRESHOLDS.get(env_id, (registered, "Gymnasium's registry")) if registered is None else (
            float(registered), "Gymnasium's registry",
        )  # fmt: skip
    return found


class Display(Watcher):
    """
    Shows runs done, running, failed, and the time left: one line that changes, or plain lines where there is no terminal.

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

    def begin(self, jobs: Sequence[Job], finished: int, parallel: int) -> None:
        self.total, self.done, self.parallel = len(jobs) + finished, finished, parallel
        self._todo = {job.key: job.algorithm.name for job in jobs}
        self._task = self._progress.add_task(self.status(), total=self.total, completed=finished)
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
            final = np.mean(record["evaluations"][-1][2])
            self.console.print(f"{job.title}: return {final:.1f}, {record['wall_time_s']:.0f} s. {self.status()}")
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


def summarise(
    experiment: Experiment, thresholds: Mapping[str, tuple[float | None, str]], margin: float = 0.1
) -> dict[str, Any]:
    """
    :param experiment: its records
    :param thresholds: by environment, the return at which it counts as solved, or None, and its source
    :param margin: differences of the mean below this share of the range between random actions and the threshold count
        as equivalent
    :return: `environments`, `aggregate`, `sentences`, ...: everything that the summary says
    """
    environments = {}
    samples: dict[str, dict[str, Array]] = {}  # normalised, of the environments that can be
    for env_id in experiment.plan["env_ids"]:
        table, normalised = _summarise_environment(experiment, env_id, *thresholds.get(env_id, (None, "none")), margin)
        environments[env_id] = table
        if normalised is not None:
            samples[env_id] = normalised
    aggregate = _aggregate(samples, list(experiment.plan["algorithms"])) if len(environments) > 1 else None
    summary = {
        "environments": environments,
        "aggregate": aggregate,
        "margin": margin,
        "failed": len(experiment.failures),
    }
    return {**summary, "sentences": _sentences(experiment, environments, aggregate)}


def _summarise_environment(
    experiment: Experiment, env_id: str, threshold: float | None, source: str, margin: float
) -> tuple[dict[str, Any], dict[str, Array] | None]:
    runs, evaluations = (frame[frame.env_id == env_id] for frame in (experiment.runs, experiment.evaluations))
    names = list(experiment.plan["algorithms"])
    finals = {name: runs[runs.algorithm == name].sort_values("seed").final_return.to_numpy(float) for name in names}
    random_return = experiment.plan["random_returns"].get(env_id)
    best = max((float(values.mean()) for values in finals.values() if len(values)), default=-math.inf)
    high, high_source = (best, "the best algorithm's mean") if threshold is None else (threshold, source)
    can_normalise = random_return is not None and random_return < high < math.inf
    normalised = (
        {name: statistics.normalise(values, random_return, high) for name, values in finals.items()}
        if can_normalise
        else None
    )
    rows = {}
    for name in names:
        own = runs[runs.algorithm == name].sort_values("seed")
        curves = [
            curve.sort_values("timestep") for _, curve in evaluations[evaluations.algorithm == name].groupby("seed")
        ]
        rows[name] = _numbers(finals[name], None if normalised is None else normalised[name], own, curves, threshold)
    first = names[0]
    against = {}
    for name in names[1:]:
        if min(len(finals[first]), len(finals[name])) < 2:
            continue
        absolute = margin * (high - random_return) if can_normalise else None
        found = statistics.difference(finals[first], finals[name], absolute)
        seconds = [runs[runs.algorithm == each].wall_time_s.to_numpy(float) for each in (first, name)]
        against[name] = {**asdict(found), "speed_ratio": statistics.speed_ratio(*seconds), "verdict": found.verdict}
    for row, p_value in zip(
        against.values(), statistics.holm([row["p_value"] for row in against.values()]), strict=True
    ):
        row["p_value_holm"] = p_value
        if row["verdict"] in ("better", "worse") and p_value > statistics.SIGNIFICANCE:
            row["verdict"] = "no difference shown"
    table = {
        "random_return": random_return,
        "threshold": threshold,
        "threshold_source": source if threshold is not None else "none",
        "normalised_between": [random_return, high] if can_normalise else None,
        "normalised_source": high_source,
        "algorithms": rows,
        "reference": first,
        "against": against,
    }
    return table, normalised if normalised and all(len(values) > 1 for values in normalised.values()) else None


def _numbers(
    finals: Array,
    normalised: Array | None,
    own: pd.DataFrame,
    curves: list[pd.DataFrame],
    threshold: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(finals)}
    if len(finals) < 2:
        return row
    for name, statistic in _STATISTICS.items():
        row[name] = statistics.interval([finals], statistic)
    if normalised is not None:
        row["optimality_gap"] = statistics.interval([normalised], statistics.optimality_gap)
    row["area_under_curve"] = statistics.interval(
        [np.array([statistics.area_under_curve(curve.timestep, curve.mean_return) for curve in curves])]
    )
    row["wall_time_s"] = statistics.interval([own.wall_time_s.to_numpy(float)], statistics.median)
    row["cpu_time_s"] = statistics.interval([own.cpu_time_s.to_numpy(float)], statistics.median)
    if threshold is not None:
        row["solved"] = statistics.fraction_solved(finals, threshold)
        for name, column in (("timesteps_to_threshold", "timestep"), ("seconds_to_threshold", "wall_time_s")):
            times = [statistics.first_reached(curve[column], curve.mean_return, threshold) for curve in curves]
            row[name] = statistics.median_time(times)
            row["reached"] = sum(map(math.isfinite, times))
    return row


_STATISTICS: Final = {"iqm": statistics.iqm, "mean": statistics.mean, "median": statistics.median}


def _aggregate(samples: dict[str, dict[str, Array]], names: list[str]) -> dict[str, Any] | None:
    """Over the environments whose returns can be normalised; None for fewer than two of them."""
    if len(samples) < 2:
        return None
    tasks = {name: [sample[name] for sample in samples.values()] for name in names}
    rows = {
        name: {label: statistics.interval(tasks[name], statistic) for label, statistic in _STATISTICS.items()}
        | {"optimality_gap": statistics.interval(tasks[name], statistics.optimality_gap)}
        for name in names
    }
    against = {name: statistics.probability_of_improvement(tasks[names[0]], tasks[name]) for name in names[1:]}
    return {"env_ids": list(samples), "algorithms": rows, "improvement": against, "samples": tasks}


def _sentences(
    experiment: Experiment, environments: Mapping[str, Any], aggregate: Mapping[str, Any] | None
) -> list[str]:
    """Who won and who lost, in words."""
    found = []
    for env_id, table in environments.items():
        first = table["reference"]
        for name, row in table["against"].items():
            found.append(f"{env_id}: {_verdict(first, name, row)}")
            ratio: Interval = row["speed_ratio"]
            how = (
                "faster"
                if ratio.low > 1
                else "slower"
                if ratio.high < 1
                else "neither faster nor slower, as far as shown"
            )
            found.append(
                f"{env_id}: {first} trains {ratio.estimate:.2f} times as fast as {name} (95 %: {ratio.low:.2f} to "
                f"{ratio.high:.2f}, seconds of training): {how}."
            )
        for name, row in table["algorithms"].items():
            if row["runs"] < len(experiment.plan["seeds"]):
                found.append(
                    f"{env_id}: {name} has {row['runs']} of {len(experiment.plan['seeds'])} runs; the others failed."
                )
    runs = min(len(experiment.plan["seeds"]), *(row["runs"] for table in environments.values() for row in table["algorithms"].values()))  # fmt: skip
    if runs < 5:
        reach = 100 * (1 - 2.0 ** (1 - runs)) if runs > 1 else 0
        found.append(
            f"Too few seeds for intervals: {runs} runs span the true median only {reach:.0f} times in 100, however the "
            "interval is made. Use ten."
        )
    elif runs < 10:
        found.append(f"With {runs} seeds the intervals are rough; ten or more are better.")
    if aggregate is not None:
        for name, improvement in aggregate["improvement"].items():
            found.append(
                f"All environments: a run of {next(iter(aggregate['algorithms']))} beats one of {name} with probability "
                f"{_text(improvement, 2)}."
            )
    return found


def _verdict(first: str, name: str, row: Mapping[str, Any]) -> str:
    p = f"p = {row['p_value_holm']:.3g}"
    if row["verdict"] == "better":
        return f"{first} is better than {name} ({p})."
    if row["verdict"] == "worse":
        return f"{first} is worse than {name} ({p})."
    if row["verdict"] == "equivalent":
        return (
            f"{first} and {name} are statistically the same: no difference ({p}), and their means differ by less than "
            f"{row['margin']:.3g} (two one-sided tests, p = {row['equivalence_p_value']:.2g})."
        )
    if row["verdict"] == "too few runs":
        return (
            f"too few seeds to tell {first} from {name}: whatever the returns, p cannot fall below "
            f"{row['smallest_p_value']:.2g}. Use more seeds."
        )
    more = "" if row["margin"] is None else f" That they are the same within {row['margin']:.3g} is not shown either."
    return f"no difference between {first} and {name} is shown ({p}).{more}"


def write_summary(folder: Path, experiment: Experiment, summary: Mapping[str, Any]) -> None:
    """
    Write `FILES`: records as CSV, the summary as JSON and as a page, the pictures.

    :param folder: to write
    :param experiment: its records
    :param summary: what `summarise` gave
    :raises OSError: when the folder cannot be written
    """

    def write(name: str, content: str | bytes) -> None:
        experiment_folder.write_whole(folder / name, content)

    write("runs.csv", experiment.episodes.to_csv(index=False, columns=COLUMNS))
    write("evaluations.csv", experiment.evaluations.to_csv(index=False))
    plan = {name: value for name, value in experiment.plan.items() if name != "request"}
    shown = {**summary, "aggregate": _without(summary["aggregate"], "samples"), "plan": plan}
    write("summary.json", json.dumps(_jsonable(shown), indent=2) + "\n")
    write("summary.md", page(experiment, summary))
    for name, figure in _figures(experiment, summary).items():
        for ending in ("png", "svg"):
            picture = BytesIO()
            with warnings.catch_warnings():
                figure.savefig(picture, format=ending, dpi=130)
            write(f"{name}.{ending}", picture.getvalue())


def _figures(experiment: Experiment, summary: Mapping[str, Any]) -> dict[str, Any]:
    from sb3_simple_ddpg import plotting

    tables = summary["environments"]
    full = {env_id: table for env_id, table in tables.items() if all(row["runs"] > 1 for row in table["algorithms"].values())}  # fmt: skip
    references = {
        env_id: {"random actions": table["random_return"], "threshold": table["threshold"]}
        for env_id, table in tables.items()
    }
    figures = {}
    if len(experiment.evaluations):
        figures["learning_curves"] = plotting.plot_learning_curves(experiment.evaluations, references)
    if not full:
        return figures
    if summary["aggregate"] is not None:
        samples = summary["aggregate"]["samples"]
        figures["performance_profile"] = plotting.plot_performance_profile(
            samples, "final return, normalised (0: random actions, 1: threshold)"
        )
    else:
        env_id = next(iter(full))
        runs = experiment.runs[experiment.runs.env_id == env_id]
        samples = {name: [runs[runs.algorithm == name].final_return] for name in full[env_id]["algorithms"]}
        label = f"final return on {env_id} (mean of {experiment.plan['eval_episodes']} episodes)"
        figures["performance_profile"] = plotting.plot_performance_profile(samples, label)
    rows = [
        (f"{table['reference']} against {name}" + (f"\n{env_id}" if len(tables) > 1 else ""), row["improvement"])
        for env_id, table in tables.items()
        for name, row in table["against"].items()
    ]
    if rows:
        rows = [(label, _interval(found)) for label, found in rows]
        figures["probability_of_improvement"] = plotting.plot_improvement(rows)
    titles = {
        "iqm": "interquartile mean", "mean": "mean", "median": "median",
        "optimality_gap": "optimality gap\n(normalised; 0 is best)",
    }  # fmt: skip
    figures["intervals"] = plotting.plot_intervals(
        {
            env_id: {
                title: {name: row.get(key) for name, row in table["algorithms"].items()}
                for key, title in titles.items()
                if any(key in row for row in table["algorithms"].values())
            }
            for env_id, table in full.items()
        }
    )
    return figures


def _interval(found: Interval | Mapping[str, float]) -> Interval:
    return found if isinstance(found, Interval) else Interval(**found)


def _without(values: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if values is None else {key: value for key, value in values.items() if key != name}


def _jsonable(value: Any) -> Any:  # noqa: ANN401 - whatever is within
    """Intervals as [estimate, low, high]; what has no bound as null, since JSON knows no infinity."""
    if isinstance(value, Interval):
        return _jsonable([value.estimate, value.low, value.high])
    if isinstance(value, Mapping):
        if value.keys() == {"estimate", "low", "high"}:
            return _jsonable(list(value.values()))
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(found: Interval | Mapping[str, float] | None, digits: int = 1) -> str:
    """An estimate with its interval."""
    if found is None:
        return "-"
    found = _interval(found)
    if math.isinf(found.estimate):
        return "never by most" if math.isinf(found.low) else f"never by most (from {found.low:,.{digits}f})"
    high = "no bound" if math.isinf(found.high) else f"{found.high:,.{digits}f}"
    return f"{found.estimate:,.{digits}f} ({found.low:,.{digits}f} to {high})"


def _digits(table: Mapping[str, Any]) -> int:
    """Enough digits for returns of this size."""
    sizes = [abs(row["mean"].estimate) for row in table["algorithms"].values() if "mean" in row]
    return 1 if not sizes or max(sizes) >= 10 else 3


def main_table(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """
    :param table: of one environment
    :return: heads and rows of the table that the terminal shows too
    """
    first, digits = table["reference"], _digits(table)
    heads = [
        "algorithm",
        "runs",
        "IQM of final return",
        "mean",
        "solved",
        f"{first} better with p.",
        "p",
        "training, s",
    ]
    rows = []
    for name, row in table["algorithms"].items():
        against = table["against"].get(name)
        solved = "-" if "solved" not in row else f"{round(row['solved'].estimate * row['runs'])} of {row['runs']}"
        rows.append([
            name, str(row["runs"]), _text(row.get("iqm"), digits), _text(row.get("mean"), digits), solved,
            "-" if against is None else _text(against["improvement"], 2),
            "-" if against is None else f"{against['p_value_holm']:.3g}",
            _text(row.get("wall_time_s"), 1),
        ])  # fmt: skip
    return heads, rows


def _print_summary(console: "Console", summary: Mapping[str, Any], experiment: Experiment) -> None:
    from rich.table import Table

    for env_id, table in summary["environments"].items():
        heads, rows = main_table(table)
        shown = Table(title=f"{env_id}, {experiment.plan['timesteps']:,} timesteps; 95 % intervals in brackets")
        for head in heads:
            shown.add_column(head)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for sentence in summary["sentences"]:
        console.print(f"- {sentence}", markup=False, highlight=False)


def page(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """
    :param experiment: its records
    :param summary: what `summarise` gave
    :return: `summary.md`
    """
    plan = experiment.plan
    names, seeds = list(plan["algorithms"]), plan["seeds"]
    title = f"# {', '.join(names)} on {', '.join(plan['env_ids'])}"
    parts = [
        title, "## Result", "\n".join(f"- {sentence}" for sentence in summary["sentences"]) or "Nothing can be said.",
    ]  # fmt: skip
    for env_id, table in summary["environments"].items():
        digits = _digits(table)
        parts += [f"## {env_id}", _table(*main_table(table)), _more_numbers(table, digits, plan["timesteps"])]
        if table["against"]:
            parts += [_against(table)]
    if summary["aggregate"] is not None:
        parts += ["## All environments", _aggregate_table(summary["aggregate"])]
    parts += ["## Pictures"]
    pictures = _figures(experiment, summary)
    parts += [f"![{name.replace('_', ' ')}]({name}.png)" for name in PICTURES if name in pictures]
    parts += ["## Settings", _settings(plan)]
    parts += ["## How it was done", _protocol(plan, summary, seeds)]
    if experiment.failures:
        failed = [f"- {each['algorithm']}, {each['env_id']}, seed {each['seed']}:\n\n```\n{each['error'].rstrip()}\n```" for each in experiment.failures]  # fmt: skip
        parts += ["## Failed runs", "\n".join(failed)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return markdown(tuple(heads), rows, []).strip()


def _more_numbers(table: Mapping[str, Any], digits: int, timesteps: int) -> str:
    heads = [
        "algorithm", "median", "optimality gap", "area under curve", "solved, share", "reached", "timesteps to threshold",
        "seconds to threshold", "processor, s",
    ]  # fmt: skip
    rows = [
        [
            name, _text(row.get("median"), digits), _text(row.get("optimality_gap"), 3),
            _text(row.get("area_under_curve"), digits), _text(row.get("solved"), 2),
            "-" if "reached" not in row else f"{row['reached']} of {row['runs']}",
            _text(row.get("timesteps_to_threshold"), 0), _text(row.get("seconds_to_threshold"), 1),
            _text(row.get("cpu_time_s"), 1),
        ]
        for name, row in table["algorithms"].items()
    ]  # fmt: skip
    threshold = table["threshold"]
    said = (
        "There is no threshold: give one with --threshold to see who solves the task."
        if threshold is None
        else f"Solved: at or above {threshold:g} at the end ({table['threshold_source']}); reached: in any evaluation."
    )
    between = table["normalised_between"]
    gap = (
        "Returns are not normalised here: random actions do as well as the threshold, or no episode of theirs ended."
        if between is None
        else f"The optimality gap is that of returns normalised to 0 at {between[0]:.1f} (random actions) and 1 at "
        f"{between[1]:.1f} ({table['normalised_source']})."
    )
    return (
        f"{_table(heads, rows)}\n\n{said} Times are medians over runs; a run that never got there counts as later than "
        f"the end ({timesteps:,} timesteps). {gap}"
    )


def _against(table: Mapping[str, Any]) -> str:
    first = table["reference"]
    heads = [
        "",
        "probability of improvement",
        "p",
        "p, Holm",
        "smallest p possible",
        "p of equivalence",
        "times as fast",
    ]
    rows = [
        [
            f"{first} against {name}", _text(row["improvement"], 2), f"{row['p_value']:.3g}", f"{row['p_value_holm']:.3g}",
            f"{row['smallest_p_value']:.2g}",
            "-" if row["equivalence_p_value"] is None else f"{row['equivalence_p_value']:.2g} (within {row['margin']:.3g})",
            _text(row["speed_ratio"], 2),
        ]
        for name, row in table["against"].items()
    ]  # fmt: skip
    return _table(heads, rows)


def _aggregate_table(aggregate: Mapping[str, Any]) -> str:
    heads = [
        "algorithm",
        "IQM",
        "mean",
        "median over environments",
        "optimality gap",
        "probability of improvement on it",
    ]
    rows = [
        [
            name, *(_text(row[key], 3) for key in ("iqm", "mean", "median", "optimality_gap")),
            _text(aggregate["improvement"].get(name), 2),
        ]
        for name, row in aggregate["algorithms"].items()
    ]  # fmt: skip
    return (
        f"Normalised returns of {', '.join(aggregate['env_ids'])}; bootstrap resamples runs within each environment.\n\n"
        + _table(heads, rows)
    )


def _settings(plan: Mapping[str, Any]) -> str:
    parts = []
    for env_id in plan["env_ids"]:
        different = plan["differing"][env_id]
        if different:
            rows = [
                [name, *(_value(values[each]) for each in plan["algorithms"])] for name, values in different.items()
            ]
            parts += [
                f"In {env_id} the algorithms differ in these settings:",
                _table(["setting", *plan["algorithms"]], rows),
            ]
        else:
            parts += [f"In {env_id} the algorithms have identical settings, noise included."]
        for name, settings in plan["settings"][env_id].items():
            said = ", ".join(f"`{key}={_value(value)}`" for key, value in settings.items())
            parts += [f"<details><summary>{name} in {env_id}, all settings</summary>\n\n{said}\n\n</details>"]
    return "\n\n".join(parts)


def _value(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    return value if isinstance(value, str) else str(value)


def _protocol(plan: Mapping[str, Any], summary: Mapping[str, Any], seeds: list[int]) -> str:
    machine = plan["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
    said = ", ".join(map(str, seeds))
    return f"""```
{plan["command"]}
```

- {len(seeds)} seeds ({said}), {plan["timesteps"]:,} timesteps each; every run alone in a fresh process with
  {plan["threads"]} PyTorch thread(s); engine {plan["engine"]}.
- Evaluation before training, every {plan["eval_every"]:,} timesteps and at the end, with {plan["eval_episodes"]} deterministic
  episodes in an environment of its own, whose seeds are alike for all algorithms. The final return of a run is the mean
  of its last evaluation.
- Seconds are wall-clock seconds of training, compilation included, evaluation and start of the process left out; runs
  side by side share the machine. Processor seconds depend less on that.
- Intervals: 95 %, stratified bootstrap over runs (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264), widened for few
  runs (Hesterberg 2015); shares: Wilson; median times: order statistics. IQM: interquartile mean. p: two-sided Mann-Whitney
  test on the final returns against the first algorithm, Holm-corrected; equivalence: two one-sided Welch tests with a
  margin of {summary["margin"]:g} of the distance between random actions and the threshold.
- {machine["processor"]}, cores: {machine["cores"]}, {machine["system"]}; {versions}.
"""
