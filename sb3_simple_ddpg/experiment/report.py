"""A comparison's summary as files: tables, a page to read, pictures.

Not here: the numbers (`comparison.py`).
"""

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_simple_ddpg.benchmark.report import markdown
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.experiment import Experiment
from sb3_simple_ddpg.experiment.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

PICTURES = ("learning_curves", "performance_profile", "probability_of_improvement", "intervals")
FILES = (
    "runs.csv", "evaluations.csv", "summary.json", "summary.md",
    *(f"{picture}.{ending}" for picture in PICTURES for ending in ("png", "svg")),
)  # fmt: skip
COLUMNS = ["algorithm", "env_id", "seed", "timestep", "episode_return", "wall_time_s"]


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
    figures = draw(experiment, summary)
    write("summary.md", page(experiment, summary, list(figures)))
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            picture = BytesIO()
            figure.savefig(picture, format=ending, dpi=130)
            write(f"{name}.{ending}", picture.getvalue())


def draw(experiment: Experiment, summary: Mapping[str, Any]) -> dict[str, "Figure"]:
    """
    :param experiment: its records
    :param summary: what `summarise` gave
    :return: figures by the names in PICTURES; those that the runs are too few for are left out
    """
    from sb3_simple_ddpg.experiment import plotting

    tables = summary["environments"]
    full = {
        env_id: table
        for env_id, table in tables.items()
        if all(row["runs"] > 1 for row in table["algorithms"].values())
    }
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


def _without(values: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if values is None else {key: value for key, value in values.items() if key != name}


def _jsonable(value: Any) -> Any:  # noqa: ANN401 - whatever is within
    """Intervals as [estimate, low, high]; what has no bound as null, since JSON knows no infinity."""
    if isinstance(value, Interval):
        return _jsonable([value.estimate, value.low, value.high])
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(found: Interval | None, digits: int = 1) -> str:
    """
    :param found: estimate and interval, or None
    :param digits: after the decimal point
    :return: both, to be read
    """
    if found is None:
        return "-"
    if math.isinf(found.estimate):
        return "never by most" if math.isinf(found.low) else f"never by most (from {found.low:z,.{digits}f})"
    high = "no bound" if math.isinf(found.high) else f"{found.high:z,.{digits}f}"
    return f"{found.estimate:z,.{digits}f} ({found.low:z,.{digits}f} to {high})"


def _digits(table: Mapping[str, Any]) -> int:
    rows = [row[name] for row in table["algorithms"].values() for name in ("iqm", "mean") if name in row]
    return runs.digits_of(number for found in rows for number in (found.estimate, found.low, found.high))


def main_table(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """
    :param table: of one environment
    :return: heads and rows of the table that the terminal shows too
    """
    first, digits = table["reference"], _digits(table)
    tells = any("success_rate" in row for row in table["algorithms"].values())
    heads = [
        "algorithm", "runs", "IQM of final return", "mean", "solved", *(["success rate"] if tells else []),
        f"{first} better with p.", "p", "training, s",
    ]  # fmt: skip
    rows = []
    for name, row in table["algorithms"].items():
        against = table["against"].get(name)
        solved = "-" if "solved" not in row else f"{round(row['solved'].estimate * row['runs'])} of {row['runs']}"
        rows.append([
            name, str(row["runs"]), text(row.get("iqm"), digits), text(row.get("mean"), digits), solved,
            *([text(row.get("success_rate"), 2)] if tells else []),
            "-" if against is None else text(against["improvement"], 2),
            "-" if against is None else f"{against['p_value_holm']:.3g}",
            text(row.get("wall_time_s"), 1),
        ])  # fmt: skip
    return heads, rows


def print_summary(console: "Console", summary: Mapping[str, Any], experiment: Experiment) -> None:
    """
    :param console: to print on
    :param summary: what `summarise` gave
    :param experiment: its records
    """
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


def page(experiment: Experiment, summary: Mapping[str, Any], pictures: list[str]) -> str:
    """
    :param experiment: its records
    :param summary: what `summarise` gave
    :param pictures: names of those that lie beside it
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
    parts += [f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures]
    parts += ["## Settings", _settings(plan)]
    parts += ["## How it was done", _protocol(plan, summary, seeds)]
    if experiment.failures:
        failed = [
            f"- {each['algorithm']}, {each['env_id']}, seed {each['seed']}:\n\n```\n{each['error'].rstrip()}\n```"
            for each in experiment.failures
        ]
        parts += ["## Failed runs", "\n".join(failed)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return markdown(tuple(heads), rows, []).strip()


def _more_numbers(table: Mapping[str, Any], digits: int, timesteps: int) -> str:
    heads = [
        "algorithm", "median", "optimality gap", "area under curve", "solved, share", "reached",
        "timesteps to threshold", "seconds to threshold", "processor, s",
    ]  # fmt: skip
    rows = [
        [
            name, text(row.get("median"), digits), text(row.get("optimality_gap"), 3),
            text(row.get("area_under_curve"), digits), text(row.get("solved"), 2),
            "-" if "reached" not in row else f"{row['reached']} of {row['runs']}",
            text(row.get("timesteps_to_threshold"), 0), text(row.get("seconds_to_threshold"), 1),
            text(row.get("cpu_time_s"), 1),
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
        else f"The optimality gap is that of returns normalised to 0 at {between[0]:z.{digits}f} (random actions) and "
        f"1 at {between[1]:z.{digits}f} ({table['normalised_source']})."
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
        "by processor seconds",
    ]
    rows = [
        [
            f"{first} against {name}", text(row["improvement"], 2), f"{row['p_value']:.3g}",
            f"{row['p_value_holm']:.3g}", f"{row['smallest_p_value']:.2g}",
            "-" if row["margin"] is None else f"{row['equivalence_p_value']:.2g} (within {row['margin']:.3g})",
            text(row["speed_ratio"], 2), text(row["processor_ratio"], 2),
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
            name, *(text(row[key], 3) for key in ("iqm", "mean", "median", "optimality_gap")),
            text(aggregate["improvement"].get(name), 2),
        ]
        for name, row in aggregate["algorithms"].items()
    ]  # fmt: skip
    return (
        f"Normalised returns of {', '.join(aggregate['env_ids'])}; runs are resampled within each environment.\n\n"
        + _table(heads, rows)
    )


def _settings(plan: Mapping[str, Any]) -> str:
    parts = []
    for env_id in plan["env_ids"]:
        if of_env := plan.get("env_kwargs", {}).get(env_id):
            said = ", ".join(f"`{name}={_value(value)}`" for name, value in of_env.items())
            parts += [f"{env_id} is made with {said}."]
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
    margins = ", ".join(
        f"{env_id} {'none given, equivalence not judged' if margin is None else f'{margin:.4g}'}"
        for env_id, margin in summary["margins"].items()
    )
    return f"""```
{plan["command"]}
```

- {len(seeds)} seeds ({said}), {plan["timesteps"]:,} timesteps each; every run alone in a fresh process with
  {plan["threads"]} PyTorch thread(s); engine {plan["engine"]}.
- Evaluation before training, every {plan["eval_every"]:,} timesteps and at the end: {plan["eval_episodes"]}
  deterministic episodes in an environment of its own, whose seeds are alike for all algorithms. The final return of a
  run is the mean of its last evaluation.
- Seconds are wall-clock seconds of training, compilation included, evaluation and start of the process left out; runs
  side by side share the machine. Processor seconds depend less on that.
- Intervals: 95 %, stratified bootstrap over runs (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264), widened for
  few runs (Hesterberg 2015); shares: Wilson; median times: order statistics. IQM: interquartile mean. p: two-sided
  Mann-Whitney test on the final returns against the first algorithm, Holm-corrected; equivalence: two one-sided Welch
  tests. Margins, fixed before the runs: {margins}.
- {machine["processor"]}, cores: {machine["cores"]}, {machine["system"]}; {versions}.
"""
