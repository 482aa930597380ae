"""A comparison, from what somebody typed to numbers and sentences: `simple-ddpg compare`.

Not here: the runs (`experiment.py`), the formulas (`statistics.py`), tables and pictures (`report.py`).
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gymnasium as gym
import pandas as pd

from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import report, statistics
from sb3_simple_ddpg.experiment.algorithms import env_kwargs_from, find_algorithms, settings_from
from sb3_simple_ddpg.experiment.display import Display
from sb3_simple_ddpg.experiment.experiment import Experiment, run_experiment
from sb3_simple_ddpg.experiment.statistics import Array, Interval

if TYPE_CHECKING:
    from rich.console import Console

THRESHOLDS: Final[dict[str, tuple[float, str]]] = {
    "Pendulum-v1": (-200.0, "customary; a pendulum that is swung up and held scores -100 to -200 (RL Zoo: -152)"),
}


#: Where no `--margin` was typed: of the distance from random actions to the threshold.
SHARE: Final = 0.1


@dataclass(frozen=True)
class Request:
    """
    What somebody typed. None and () stand for what was not typed: the stored request's, or else the defaults.

    The options are those of `simple-ddpg compare`, which explains them.
    """

    env: tuple[str, ...] = ()
    env_kwargs: tuple[str, ...] = ()
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
    margin: tuple[str, ...] = ()

    def over(self, other: "Request") -> "Request":
        """
        :param other: an earlier request, or the defaults
        :return: this one, with the other's where this one says nothing; settings, presets, margins and
            arguments of the environment follow the other's
        """
        said: dict[str, Any] = {name: value for name, value in vars(self).items() if value not in (None, ())}
        for name in ("settings", "preset", "env_kwargs", "margin"):
            said[name] = tuple(dict.fromkeys([*getattr(other, name), *said.get(name, ())]))
        return replace(other, **said)


DEFAULTS = Request(
    env=("Pendulum-v1",), algorithms=("simple_ddpg", "ddpg"), seeds=10, first_seed=0, timesteps=20_000,
    eval_episodes=10, threads=1,
)  # fmt: skip


def compare(
    request: Request,
    folder: Path,
    console: "Console",
    *,
    resume: bool = False,
    live: bool = True,
    **where: Any,  # noqa: ANN401 - `run_experiment` says what
) -> int:
    """
    Run what is missing, then write the summary and print its table.

    :param request: what is compared
    :param folder: to write
    :param console: to print on
    :param resume: go on with what is in the folder
    :param live: show a display that changes, where the console can
    :param where: `engine`, `jobs` and `ray_address` of `run_experiment`
    :return: exit status: 0, or 1 when a run failed
    :raises ValueError: for anything that cannot work, before any run starts
    """
    stored = experiment_folder.read_plan(folder) if resume else {}
    begun = _read_request(folder, stored).over(DEFAULTS)
    request = request.over(begun)
    assert request.seeds is not None
    assert request.first_seed is not None
    assert request.timesteps is not None
    assert request.eval_episodes is not None
    assert request.threads is not None
    if request.seeds < 2:
        raise ValueError(
            f"--seeds must be at least 2, got {request.seeds}: one run says nothing about the spread, so there is no "
            "interval. Ten is a good number."
        )
    thresholds = _thresholds(request)
    _margins(request, thresholds, {})  # a mistake shows before the environments are made
    find_algorithms(request.algorithms)  # so does a mistake in a name

    command = _command(request, folder, **{name: value for name, value in where.items() if value != "local"})
    display = Display(console, live)

    def notes(plan: Mapping[str, Any]) -> dict[str, Any]:
        margins = _margins(request, thresholds, plan["random_returns"])
        if stored:
            margins |= _margins_as_begun(stored, begun, request)
        return {"request": asdict(request), "command": command, "margins": margins}

    with display.shown():
        experiment = run_experiment(
            request.algorithms,
            request.env,
            range(request.first_seed, request.first_seed + request.seeds),
            request.timesteps,
            settings=lambda algorithms, env_id: settings_from(algorithms, request.settings, request.preset, env_id),
            env_kwargs=env_kwargs_from(request.env_kwargs, request.env),
            eval_every=request.eval_every,
            eval_episodes=request.eval_episodes,
            threads=request.threads,
            folder=folder,
            resume=resume,
            notes=notes,
            watcher=display,
            **where,
        )
    with experiment_folder.locked(folder):
        summary = summarise(experiment, thresholds)
        report.write_summary(folder, experiment, summary)
    report.print_summary(console, summary, experiment)
    for failure in experiment.failures:
        console.print(
            f"Failed: {failure['algorithm']} on {failure['env_id']}, seed {failure['seed']}.", style="bold red"
        )
    if experiment.failures:
        console.print(f"Their tracebacks are in {folder / experiment_folder.FAILED}; --resume runs them again.")
    return 1 if experiment.failures else 0


def _read_request(folder: Path, plan: Mapping[str, Any]) -> Request:
    """What was typed when a comparison was begun."""
    typed = plan.get("request", {}).items()
    stored: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in typed}
    if isinstance(stored.get("margin"), int | float):  # of before a margin could be a return
        stored["margin"] = (str(stored["margin"]),)
    try:
        return Request(**stored)
    except TypeError as error:
        raise ValueError(f"{folder} was begun by another version of this package ({error}): use that one.") from error


def _command(request: Request, folder: Path, **others: object) -> str:
    """The whole comparison as one command, also where it was resumed; the user's own folders are nobody's business."""
    values = {name.replace("settings", "set"): value for name, value in vars(request).items()}
    words = ["simple-ddpg", "compare"]
    for name, value in {**values, **others, "out": folder.name}.items():
        if value not in (None, ()):
            words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def _thresholds(request: Request) -> dict[str, tuple[float | None, str]]:
    """For each environment the return at which it counts as solved, and where that number comes from."""
    found: dict[str, tuple[float | None, str]] = {}
    for_all, typed = _typed("threshold", request.threshold, request.env, "a return", "a finite return", -math.inf)
    for env_id in request.env:
        if (value := typed.get(env_id, for_all)) is not None:
            found[env_id] = value, "--threshold"
            continue
        try:
            registered = gym.spec(env_id.partition(":")[2] or env_id).reward_threshold
        except gym.error.Error:
            registered = None  # `run_experiment` says what is wrong with it
        known = THRESHOLDS.get(env_id, (None, "none"))
        found[env_id] = known if registered is None else (float(registered), "Gymnasium's registry")
    return found


def _typed(
    option: str, texts: tuple[str, ...], env_ids: tuple[str, ...], what: str, must: str, above: float
) -> tuple[float | None, dict[str, float]]:
    """Numbers as typed: the one for all environments, and those of single environments."""
    found: dict[str, float] = {}
    for text in texts:
        env_id, separator, number = text.rpartition("=")
        if separator and env_id not in env_ids:
            raise ValueError(f"--{option} {text}: {env_id!r} takes no part in this comparison.")
        try:
            found[env_id] = float(number)
        except ValueError as error:
            raise ValueError(f"--{option} takes {what}, or environment=return, got {text!r}.") from error
        if not above < found[env_id] < math.inf:
            raise ValueError(f"--{option} must be {must}, got {text}.")
    return found.pop("", None), found


def _margins(
    request: Request, thresholds: Mapping[str, tuple[float | None, str]], random_returns: Mapping[str, float | None]
) -> dict[str, float | None]:
    """
    For each environment the difference of means that does not matter, in the unit of its returns; None: nobody said.

    It depends on nothing that the runs will give: a margin chosen from the data would show whatever one likes.
    """
    share, typed = _typed("margin", request.margin, request.env, "a share", "above 0 (0.1 for example)", 0.0)
    margins: dict[str, float | None] = dict.fromkeys(request.env)
    for env_id in request.env:
        low, high = random_returns.get(env_id), thresholds.get(env_id, (None, ""))[0]
        if low is not None and high is not None and low < high:
            margins[env_id] = (share or SHARE) * (high - low)
    return margins | typed


def _margins_as_begun(stored: Mapping[str, Any], begun: Request, request: Request) -> dict[str, float | None]:
    """The margins that a comparison was begun with; another one is a ValueError."""
    both = _thresholds(begun), stored.get("random_returns", {})
    then = {**_margins(begun, *both), **stored.get("margins", {})}  # older folders have none recorded
    if request.margin != begun.margin:
        now = _margins(request, *both)
        for env_id, margin in then.items():
            if now.get(env_id) != margin:
                raise ValueError(
                    f"The margin of {env_id} was {margin} when the comparison was begun and is now {now.get(env_id)}: "
                    "it must be fixed before the runs. Leave out --margin, or begin another comparison with --out."
                )
    return then


def summarise(experiment: Experiment, thresholds: Mapping[str, tuple[float | None, str]]) -> dict[str, Any]:
    """
    :param experiment: its records; `margins` in its plan are, by environment, differences of the mean that count as
        none, or None. A plan without them gets a tenth of the distance between random actions and the threshold
    :param thresholds: by environment, the return at which it counts as solved, or None, and its source
    :return: `environments`, `aggregate`, `sentences`, ...: everything that the summary says
    """
    plan = experiment.plan
    margins = plan.get("margins")
    if margins is None:
        margins = _margins(Request(env=tuple(plan["env_ids"])), thresholds, plan["random_returns"])
    environments = {}
    samples: dict[str, dict[str, Array]] = {}  # normalised, of the environments that can be
    for env_id in plan["env_ids"]:
        table, normalised = _summarise_environment(
            experiment, env_id, *thresholds.get(env_id, (None, "none")), margins.get(env_id)
        )
        environments[env_id] = table
        if normalised and all(len(values) > 1 for values in normalised.values()):
            samples[env_id] = normalised
    # Over the environments whose returns can be normalised, where there are two of them at least.
    tasks = {name: [sample[name] for sample in samples.values()] for name in plan["algorithms"]}
    aggregate = _aggregate(list(samples), tasks) if len(samples) > 1 else None
    return {
        "environments": environments,
        "aggregate": aggregate,
        "margins": margins,
        "failed": len(experiment.failures),
        "sentences": _sentences(experiment, environments, aggregate),
        "samples": tasks if aggregate is not None else None,
    }


def _summarise_environment(
    experiment: Experiment, env_id: str, threshold: float | None, source: str, margin: float | None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The table, and the normalised returns where they can be normalised."""
    runs, evaluations = (frame[frame.env_id == env_id] for frame in (experiment.runs, experiment.evaluations))
    names = list(experiment.plan["algorithms"])
    own = {name: runs[runs.algorithm == name].sort_values("seed") for name in names}
    finals = {name: own[name].final_return.to_numpy(float) for name in names}
    low = experiment.plan["random_returns"].get(env_id)
    best = max((float(values.mean()) for values in finals.values() if len(values)), default=-math.inf)
    high, high_source = (best, "the best algorithm's mean") if threshold is None else (threshold, source)
    between = [low, high] if low is not None and low < high < math.inf else None
    normalised = {name: statistics.normalise(finals[name], *between) for name in names} if between else {}
    rows = {}
    for name in names:
        by_seed = evaluations[evaluations.algorithm == name].sort_values("timestep").groupby("seed")
        curves = [curve for _, curve in by_seed]
        rows[name] = _numbers(finals[name], normalised.get(name), own[name], curves, threshold)
    first = names[0]
    differences = {
        name: statistics.difference(finals[first], finals[name], margin)
        for name in names[1:]
        if min(len(finals[first]), len(finals[name])) > 1
    }
    corrected = statistics.holm([found.p_value for found in differences.values()])
    against = {}
    for (name, found), p_value in zip(differences.items(), corrected, strict=True):
        wall, processor = (
            statistics.speed_ratio(own[first][column], own[name][column]) for column in ("wall_time_s", "cpu_time_s")
        )
        against[name] = {
            **{each.name: getattr(found, each.name) for each in fields(found)},
            "p_value_holm": p_value,
            "verdict": found.verdict(len(differences), p_value),
            "equivalent": found.equivalent,
            "speed_ratio": wall,
            "processor_ratio": processor,
        }
    table = {
        "random_return": low,
        "threshold": threshold,
        "threshold_source": source if threshold is not None else "none",
        "normalised_between": between,
        "normalised_source": high_source,
        "algorithms": rows,
        "reference": first,
        "against": against,
    }
    return table, normalised


_STATISTICS: Final = {name: getattr(statistics, name) for name in ("iqm", "mean", "median", "optimality_gap")}


def _numbers(
    finals: Array, normalised: Array | None, own: pd.DataFrame, curves: list[pd.DataFrame], threshold: float | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(finals)}
    if len(finals) < 2:
        return row
    for name, statistic in _STATISTICS.items():
        sample = finals if name != "optimality_gap" else normalised
        if sample is not None:
            row[name] = statistics.interval([sample], statistic)
    areas = [statistics.area_under_curve(curve.timestep, curve.mean_return) for curve in curves]
    row["area_under_curve"] = statistics.interval([areas])
    if "final_success_rate" in own and own.final_success_rate.notna().all():
        row["success_rate"] = statistics.interval([own.final_success_rate], statistics.mean)
    for name in ("wall_time_s", "cpu_time_s"):
        row[name] = statistics.interval([own[name]], statistics.median)
    if threshold is not None:
        row["solved"] = statistics.fraction_solved(finals, threshold)
        for name, column in (("timesteps_to_threshold", "timestep"), ("seconds_to_threshold", "wall_time_s")):
            times = [statistics.first_reached(curve[column], curve.mean_return, threshold) for curve in curves]
            row[name] = statistics.median_time(times)
            row["reached"] = sum(map(math.isfinite, times))
    return row


def _aggregate(env_ids: list[str], tasks: dict[str, list[Array]]) -> dict[str, Any]:
    rows = {
        name: {label: statistics.interval(samples, statistic) for label, statistic in _STATISTICS.items()}
        for name, samples in tasks.items()
    }
    first, *others = tasks
    against = {name: statistics.probability_of_improvement(tasks[first], tasks[name]) for name in others}
    return {"env_ids": env_ids, "algorithms": rows, "improvement": against}


def _sentences(
    experiment: Experiment, environments: Mapping[str, Any], aggregate: Mapping[str, Any] | None
) -> list[str]:
    """Who won and who lost, in words."""
    found = []
    seeds, fewest = len(experiment.plan["seeds"]), len(experiment.plan["seeds"])
    for env_id, table in environments.items():
        first, algorithms = table["reference"], table["algorithms"]
        for name, row in table["against"].items():
            found.append(f"{env_id}: {_verdict(first, name, row)}")
            ratio: Interval = row["speed_ratio"]
            if min(algorithms[each]["runs"] for each in (first, name)) < 5:
                how = "too few seeds to call it faster or slower"
            elif ratio.holds(1.0):
                how = "neither faster nor slower, as far as shown"
            else:
                how = "faster" if ratio.low > 1 else "slower"
            found.append(
                f"{env_id}: {first} trains {ratio.estimate:.2f} times as fast as {name} (95 %: {ratio.low:.2f} to "
                f"{ratio.high:.2f}, seconds of training): {how}."
            )
        for name, row in algorithms.items():
            fewest = min(fewest, row["runs"])
            if row["runs"] < seeds:
                found.append(f"{env_id}: {name} has {row['runs']} of {seeds} runs; the others failed.")
    if fewest < 5:
        reach = 100 * (1 - 2.0 ** (1 - fewest)) if fewest > 1 else 0
        found.append(
            f"Too few seeds for intervals: {fewest} runs span the true median only {reach:.0f} times in 100, however "
            "the interval is made. Use ten."
        )
    elif fewest < 10:
        found.append(f"With {fewest} seeds the intervals are rough; ten or more are better.")
    for column in ("torch", "python", "host"):
        if column in experiment.runs and experiment.runs[column].nunique() > 1:
            found.append(
                f"Mind that the runs differ in {column}: {', '.join(sorted(experiment.runs[column].unique()))}. "
                "Seconds of different machines and versions cannot be compared."
            )
    for name, improvement in (aggregate or {"improvement": {}})["improvement"].items():
        found.append(
            f"All environments: a run of {next(iter(experiment.plan['algorithms']))} beats one of {name} with "
            f"probability {report.text(improvement, 2)}."
        )
    return found


def _verdict(first: str, name: str, row: Mapping[str, Any]) -> str:
    p = f"p = {row['p_value_holm']:.3g}"
    if row["verdict"] in ("better", "worse"):
        small = f", though their means differ by less than {row['margin']:.3g}" if row["equivalent"] else ""
        return f"{first} is {row['verdict']} than {name} ({p}){small}."
    if row["verdict"] == "equivalent":
        return (
            f"{first} and {name} are statistically the same: no difference ({p}), and their means differ by less than "
            f"{row['margin']:.3g} (two one-sided tests, p = {row['equivalence_p_value']:.2g})."
        )
    if row["verdict"] == "too few runs":
        return (
            f"too few seeds to tell {first} from {name}: whatever the returns, p cannot fall below "
            f"{row['smallest_p_value']:.2g} in one test. Use more seeds."
        )
    more = f"That they are the same within {row['margin']:.3g} is not shown either." if row["margin"] else ""
    more = more or "No margin given: equivalence not judged."
    return f"no difference between {first} and {name} is shown ({p}). {more}"
