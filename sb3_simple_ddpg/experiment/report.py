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

    write("runs.csv", experiment.episodes.to_csv(index=False))
    write("evaluations.csv", experiment.evaluations.to_csv(index=False))
    plan = {name: value for name, value in experiment.plan.items() if name != "request"}
    shown = {**{name: value for name, value in summary.items() if name != "samples"}, "plan": plan}
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
    figures = {}
    if len(experiment.evaluations):
        references = {
            env_id: {"random actions": table["random_return"], "threshold": table["threshold"]}
            for env_id, table in tables.items()
        }
        figures["learning_curves"] = plotting.plot_learning_curves(experiment.evaluations, references)
    full = {
        env_id: table
        for env_id, table in tables.items()
        if all(row["runs"] > 1 for row in table["algorithms"].values())
    }
    if not full:
        return figures
    samples, label = summary["samples"], "final return, normalised (0: random actions, 1: threshold)"
    if samples is None:
        env_id = next(iter(full))
        of_env = experiment.runs[experiment.runs.env_id == env_id].groupby("algorithm", sort=False).final_return
        samples = {name: [returns] for name, returns in of_env}
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


def main_table(table: Mapping[str, Any]) -> list[dict[str, str]]:
    """
    :param table: of one environment
    :return: the rows, by their heads, of the table that the terminal shows too
    """
    first, digits = table["reference"], _digits(table)
    tells = any("success_rate" in row for row in table["algorithms"].values())
    rows = []
    for name, row in table["algorithms"].items():
        against = table["against"].get(name)
        solved = "-" if "solved" not in row else f"{round(row['solved'].estimate * row['runs'])} of {row['runs']}"
        rows.append({
            "algorithm": name, "runs": str(row["runs"]), "IQM of final return": text(row.get("iqm"), digits),
            "mean": text(row.get("mean"), digits), "solved": solved,
            **({"success rate": text(row.get("success_rate"), 2)} if tells else {}),
            f"{first} better with p.": text(against and against["improvement"], 2),
            "p": f"{against['p_value_holm']:.3g}" if against else "-",
            "training, s": text(row.get("wall_time_s"), 1),
        })  # fmt: skip
    return rows


def print_summary(console: "Console", summary: Mapping[str, Any], experiment: Experiment) -> None:
    """
    :param console: to print on
    :param summary: what `summarise` gave
    :param experiment: its records
    """
    from rich.table import Table

    timesteps = experiment.plan["timesteps"]
    for env_id, table in summary["environments"].items():
        rows = main_table(table)
        shown = Table(*rows[0], title=f"{env_id}, {timesteps:,} timesteps; 95 % intervals in brackets")
        for row in rows:
            shown.add_row(*row.values())
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
    parts = [f"# {', '.join(plan['algorithms'])} on {', '.join(plan['env_ids'])}", "## Result"]
    parts += ["\n".join(f"- {sentence}" for sentence in summary["sentences"]) or "Nothing can be said."]
    for env_id, table in summary["environments"].items():
        parts += [f"## {env_id}", _table(main_table(table)), _more_numbers(table, plan["timesteps"])]
        if table["against"]:
            parts += [_against(table)]
    if summary["aggregate"] is not None:
        parts += ["## All environments", _aggregate_table(summary["aggregate"])]
    parts += ["## Pictures"]
    parts += [f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures]
    parts += ["## Settings", _settings(plan)]
    parts += ["## How it was done", _protocol(plan, summary)]
    if experiment.failures:
        failed = [
            f"- {each['algorithm']}, {each['env_id']}, seed {each['seed']}:\n\n```\n{each['error'].rstrip()}\n```"
            for each in experiment.failures
        ]
        parts += ["## Failed runs", "\n".join(failed)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: list[dict[str, str]]) -> str:
    return markdown(tuple(rows[0]), [[*row.values()] for row in rows], []).strip()


def _more_numbers(table: Mapping[str, Any], timesteps: int) -> str:
    digits = _digits(table)
    rows = [
        {
            "algorithm": name, "median": text(row.get("median"), digits),
            "optimality gap": text(row.get("optimality_gap"), 3),
            "area under curve": text(row.get("area_under_curve"), digits),
            "solved, share": text(row.get("solved"), 2),
            "reached": "-" if "reached" not in row else f"{row['reached']} of {row['runs']}",
            "timesteps to threshold": text(row.get("timesteps_to_threshold"), 0),
            "seconds to threshold": text(row.get("seconds_to_threshold"), 1),
            "processor, s": text(row.get("cpu_time_s"), 1),
        }
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
        f"{_table(rows)}\n\n{said} Times are medians over runs; a run that never got there counts as later than "
        f"the end ({timesteps:,} timesteps). {gap}"
    )


def _against(table: Mapping[str, Any]) -> str:
    return _table([
        {
            "": f"{table['reference']} against {name}", "probability of improvement": text(row["improvement"], 2),
            "p": f"{row['p_value']:.3g}", "p, Holm": f"{row['p_value_holm']:.3g}",
            "smallest p possible": f"{row['smallest_p_value']:.2g}",
            "p of equivalence": "-" if row["margin"] is None
            else f"{row['equivalence_p_value']:.2g} (within {row['margin']:.3g})",
            "times as fast": text(row["speed_ratio"], 2), "by processor seconds": text(row["processor_ratio"], 2),
        }
        for name, row in table["against"].items()
    ])  # fmt: skip


def _aggregate_table(aggregate: Mapping[str, Any]) -> str:
    rows = [
        {
            "algorithm": name, "IQM": text(row["iqm"], 3), "mean": text(row["mean"], 3),
            "median over environments": text(row["median"], 3), "optimality gap": text(row["optimality_gap"], 3),
            "probability of improvement on it": text(aggregate["improvement"].get(name), 2),
        }
        for name, row in aggregate["algorithms"].items()
    ]  # fmt: skip
    environments = ", ".join(aggregate["env_ids"])
    return f"Normalised returns of {environments}; runs are resampled within each environment.\n\n{_table(rows)}"


def _settings(plan: Mapping[str, Any]) -> str:
    parts = []
    for env_id in plan["env_ids"]:
        if of_env := plan.get("env_kwargs", {}).get(env_id):
            parts += [f"{env_id} is made with {', '.join(f'`{name}={value}`' for name, value in of_env.items())}."]
        if different := plan["differing"][env_id]:
            names = list(plan["algorithms"])
            rows = [[name, *(str(values[each]) for each in names)] for name, values in different.items()]
            table = markdown(("setting", *names), rows, [])
            parts += [f"In {env_id} the algorithms differ in these settings:", table.strip()]
        else:
            parts += [f"In {env_id} the algorithms have identical settings, noise included."]
        for name, settings in plan["settings"][env_id].items():
            said = ", ".join(f"`{key}={value}`" for key, value in settings.items())
            parts += [f"<details><summary>{name} in {env_id}, all settings</summary>\n\n{said}\n\n</details>"]
    return "\n\n".join(parts)


def _protocol(plan: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    machine, seeds = plan["machine"], plan["seeds"]
    said = ", ".join(map(str, seeds))
    versions = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
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
