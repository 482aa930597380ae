"""Which cheap choices make plain DDPG learn more reliably? `make study` runs the comparisons and writes summary.md.

Not here: a run, an evaluation or a formula of its own. Every comparison is one `simple-ddpg compare`, which goes on
where it was stopped; what is pooled over them comes from `experiment/statistics.py`.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sb3_simple_ddpg.benchmark.report import markdown
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment import statistics
from sb3_simple_ddpg.experiment.statistics import Array

HERE: Final = Path(__file__).parent
#: What stays of a comparison: not each training episode, and each picture once. The last one says that all is there.
KEPT: Final = (
    *(f"{picture}.png" for picture in comparison_report.PICTURES), "evaluations.csv", "summary.md", "summary.json",
)  # fmt: skip

#: One change each of the base: SB3's defaults with compiled updates, net_arch=[64, 64] and the task's noise.
ARMS: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "last-layer": ("policy_kwargs.last_layer_init=3e-3",),
    "critic-rate": ("learning_rate=3e-4", "critic_learning_rate=1e-3"),
    "noise-none": ("action_noise=None",),
    "noise-0_1": ("action_noise=0.1",),
    "noise-0_2": ("action_noise=0.2",),
    "noise-schedule": ("action_noise=LinearSchedule(0.5,0.05,1.0)",),
    "noise-ou": ("action_noise=OrnsteinUhlenbeck(sigma=0.5)",),
    "n-steps-3": ("n_steps=3",),
    "n-steps-5": ("n_steps=5",),
    "tau-0_01": ("tau=0.01",),
    "clip-1": ("max_grad_norm=1.0",),
    "normalized": ("normalize_observations=True",),
}
RATES: Final = ARMS["critic-rate"]
START: Final = (*ARMS["last-layer"], *ARMS["normalized"])
#: What helped, together; the first two were tried with the single changes, the rest once those were known.
COMBINED: Final = {"combined": (*START, *RATES), "combined-n3": (*START, *RATES, "n_steps=3")}
COMBINED_LATER: Final = {
    "n3-one-rate": (*START, "n_steps=3"),
    "n5-one-rate": (*START, "n_steps=5"),
    "combined-n5": (*START, *RATES, "n_steps=5"),
    "n3-tau-0_01": (*START, *RATES, "n_steps=3", "tau=0.01"),
}
#: For larger networks alone.
SLOWER: Final = {"n3-slower": (*START, "learning_rate=3e-4", "n_steps=3")}
CHANGES: Final = {**ARMS, **COMBINED, **COMBINED_LATER, **SLOWER}


@dataclass(frozen=True)
class Round:
    """
    Changes that are compared on the same seeds.

    :param changes: names in `CHANGES`
    :param seeds: number of seeds
    :param first_seed: fresh ones for what is decided anew; the final comparison has those from 0
    :param folders: of the tasks that take part; None: all
    :param options: more options of `simple-ddpg compare`
    :param net_arch: widths of the hidden layers of both networks
    """

    changes: tuple[str, ...]
    seeds: int = 3
    first_seed: int = 1_000
    folders: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()
    net_arch: str = "[64,64]"


ROUNDS: Final = {
    "screening": Round((*ARMS, *COMBINED)),
    "combinations": Round(tuple(COMBINED_LATER)),
    # How often a run fails shows in many runs alone, and over many episodes.
    "reliability": Round(
        ("combined-n3", "base", "n3-one-rate", "n3-tau-0_01"), 20, 2_000, ("pendulum",),
        options=("--eval-every", "5000", "--eval-episodes", "100"),
    ),
    # Does what was chosen with small networks hold for SB3's own? Elsewhere two cores would take hours. The actors of
    # the second round are slower, since most of the first one's stood still at a bound.
    "networks": Round(
        ("base", "n3-one-rate"), 10, 3_000, ("pendulum", "inverted-pendulum"), net_arch="[400,300]",
    ),
    "networks-slower": Round(
        ("combined-n3", "n3-slower"), 10, 3_000, ("pendulum", "inverted-pendulum"), net_arch="[400,300]",
    ),
}  # fmt: skip
FAST: Final = ("all.compile_updates=True",)
STAGES: Final = (*ROUNDS, "final")


@dataclass(frozen=True)
class Task:
    """
    One environment.

    :param folder: of its comparisons
    :param env_id: its name
    :param screened: timesteps of each run of the screening
    :param timesteps: of each run of the final comparison
    :param noise: of the base, and of both sides of the final comparison
    :param seeds: of the final comparison
    :param baseline: folder in docs/results that holds SB3's DDPG with the same noise, networks and seeds; None: it runs
        beside the preset
    :param compared_at: timestep at which both are compared; None: the last
    :param options: more options of `simple-ddpg compare`
    :param eval_every: timesteps between evaluations of the final comparison; None: a twentieth of it
    """

    folder: str
    env_id: str
    screened: int
    timesteps: int
    noise: str = "0.1"
    seeds: int = 10
    baseline: str | None = None
    compared_at: int | None = None
    options: tuple[str, ...] = ()
    eval_every: int | None = None


SCALED: Final = "sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1"
OU: Final = "OrnsteinUhlenbeck(sigma=0.5)"
TASKS: Final = (
    Task("pendulum", "Pendulum-v1", 10_000, 10_000, seeds=20, baseline="pendulum-identical"),
    Task("scaled-pendulum", SCALED, 10_000, 10_000, options=("--threshold", "-200")),
    Task(
        "inverted-pendulum", "InvertedPendulum-v5", 10_000, 20_000, options=("--eval-episodes", "5"), eval_every=2_000,
    ),
    Task(
        "mountain-car", "MountainCarContinuous-v0", 30_000, 100_000, OU,
        baseline="mountain-car-identical",
    ),
    Task(
        "lunar-lander", "LunarLanderContinuous-v3", 40_000, 300_000,
        baseline="lunar-lander-identical", compared_at=100_000, eval_every=20_000,
    ),
)  # fmt: skip


def screening(task: Task, name: str = "screening") -> list[str]:
    """
    :param task: environment
    :param name: of a round of `ROUNDS`
    :return: the arguments of `simple-ddpg` that run each change of the round
    """
    chosen = ROUNDS[name]
    arms = {change: CHANGES[change] for change in chosen.changes if f"action_noise={task.noise}" not in CHANGES[change]}
    return [
        "compare", "--env", task.env_id, "--algorithms", *(f"{each}=sb3_simple_ddpg:SimpleDDPG" for each in arms),
        "--seeds", str(chosen.seeds), "--first-seed", str(chosen.first_seed), "--timesteps", str(task.screened),
        *(chosen.options or ("--eval-every", str(task.screened // 10), *task.options)),
        "--set", f"all.policy_kwargs.net_arch={chosen.net_arch}", *FAST, f"all.action_noise={task.noise}",
        *(f"{each}.{change}" for each, changes in arms.items() for change in changes),
    ]  # fmt: skip


def final(task: Task) -> list[str]:
    """
    :param task: environment
    :return: the arguments that run the preset `robust`, beside SB3's DDPG where nothing holds that yet, with one noise
    """
    algorithms = ["robust=sb3_simple_ddpg:SimpleDDPG", *(["ddpg"] if task.baseline is None else [])]
    settings = [f"all.action_noise={task.noise}", "all.policy_kwargs.net_arch=[64,64]", "robust.compile_updates=True"]
    return [
        "compare", "--env", task.env_id, "--algorithms", *algorithms, "--preset", "robust=robust",
        "--seeds", str(task.seeds), "--timesteps", str(task.timesteps), *task.options,
        *(["--eval-every", str(task.eval_every)] if task.eval_every else []),
        "--set", *settings,
    ]  # fmt: skip


def run(arguments: list[str], folder: Path, kept: Path, jobs: int) -> None:
    """
    Begin a comparison or go on with it; then keep what `KEPT` names.

    :param arguments: of `simple-ddpg`
    :param folder: of the comparison
    :param kept: where its results are kept; nothing is run when they are there
    :param jobs: runs at a time
    :raises RuntimeError: when a run failed
    """
    if (kept / KEPT[-1]).exists():
        return
    others = ["--jobs", str(jobs), "--out", str(folder), "--no-progress"]
    begun = (folder / experiment_folder.PLAN).exists()
    if cli.main([*(["compare", "--resume"] if begun else arguments), *others]) != 0:
        raise RuntimeError(f"{folder} was not finished; the lines above say why.")
    kept.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (folder / name).exists():
            shutil.copy(folder / name, kept / name)


def returns_of(kept: Path, algorithm: str, timestep: int | None = None) -> Array:
    """
    :param kept: folder of a comparison's results, of one environment
    :param algorithm: its name there
    :param timestep: of the evaluation; None: the last
    :return: mean return of each run, by seed
    """
    found = pd.read_csv(kept / "evaluations.csv")
    found = found[found.algorithm == algorithm]
    found = found[found.timestep == (timestep or found.timestep.max())]
    return np.array(found.sort_values("seed").mean_return, float)


def areas_of(kept: Path, algorithm: str) -> Array:
    """
    :param kept: folder of a comparison's results, of one environment
    :param algorithm: its name there
    :return: area under the learning curve of each run, by seed: its mean return over the timesteps
    """
    found = pd.read_csv(kept / "evaluations.csv")
    curves = found[found.algorithm == algorithm].sort_values("timestep").groupby("seed")
    return np.array([statistics.area_under_curve(curve.timestep, curve.mean_return) for _, curve in curves])


def screening_tables(results: Mapping[Task, list[Path]]) -> str:
    """
    :param results: by environment, the folders of its rounds, which have the same seeds
    :return: two tables, a row for each arm, a column for each environment, and the mean difference from the base
    """
    parts = []
    for title, measure in (("Final return", returns_of), ("Area under the learning curve", areas_of)):
        scores: dict[str, dict[str, Array]] = {}
        for task, folders in results.items():
            for kept in folders:
                table = json.loads((kept / "summary.json").read_text())["environments"][task.env_id]
                for arm in table["algorithms"]:
                    normalised = statistics.normalise(measure(kept, arm), *table["normalised_between"])
                    scores.setdefault(arm, {})[task.folder] = normalised
        rows = []
        for arm, found in sorted(scores.items(), key=lambda each: list(CHANGES).index(each[0])):
            gains = [values.mean() - scores["base"][name].mean() for name, values in found.items()]
            cells = [
                f"{found[task.folder].mean():.2f} ({found[task.folder].min():.2f} to {found[task.folder].max():.2f})"
                if task.folder in found
                else ("the base" if f"action_noise={task.noise}" in CHANGES[arm] else "not run")
                for task in results
            ]
            rows.append([arm, *cells, "" if arm == "base" else f"{np.mean(gains):+.2f}"])
        heads = ("change", *(task.folder for task in results), "mean difference from the base")
        parts += [
            f"### {title[0].upper()}{title[1:]}, normalised: mean (lowest to highest run)",
            markdown(heads, rows, []),
        ]
    return "\n\n".join(part.strip() for part in parts)


def final_tables(results: Mapping[Task, Path]) -> str:
    """
    :param results: by environment, the folder of its final comparison
    :return: a row for each environment, and all of them together
    """
    rows, samples, others = [], [], []
    for task, kept in results.items():
        at = task.compared_at or task.timesteps
        own = returns_of(kept, "robust", at)
        their = returns_of(kept if task.baseline is None else HERE.parent / "results" / task.baseline, "ddpg", at)
        samples.append(own)
        others.append(their)
        found = statistics.difference(own, their)
        means = [statistics.interval([each], statistics.mean) for each in (own, their)]
        rows.append([
            task.folder, f"{at:,}", f"{len(own)} and {len(their)}", *(comparison_report.text(each) for each in means),
            comparison_report.text(found.improvement, 2), f"{found.p_value:.2g}",
        ])  # fmt: skip
    heads = ("environment", "timesteps", "seeds", "robust, mean", "SB3's DDPG, mean", "robust better with p.", "p")
    pooled = statistics.probability_of_improvement(samples, others)
    return (
        markdown(heads, rows, []).strip()
        + f"\n\nAll {len(rows)} environments: a run of `robust` beats one of SB3's DDPG with probability "
        f"{comparison_report.text(pooled, 2)}."
    )


def reliability_table(task: Task, folders: Sequence[Path]) -> str:
    """
    :param task: environment
    :param folders: of rounds on the same seeds
    :return: a row for each change: its mean, its worst run, and how many runs solve the task
    """
    rows, threshold = [], 0.0
    for kept in folders:
        table = json.loads((kept / "summary.json").read_text())["environments"][task.env_id]
        threshold = table["normalised_between"][1]
        for change in table["algorithms"]:
            found = returns_of(kept, change)
            mean = comparison_report.text(statistics.interval([found], statistics.mean))
            rows.append([change, mean, f"{found.min():.1f}", f"{(found >= threshold).sum()} of {len(found)}"])
    return markdown(("change", "mean", "worst run", f"at least {threshold:g}"), rows, [])


def page(folders: Mapping[str, Mapping[Task, Path]]) -> str:
    """
    :param folders: by stage and environment, of what is finished
    :return: summary.md
    """
    changes = [[name, ", ".join(f"`{each}`" for each in settings) or "none"] for name, settings in CHANGES.items()]
    rounds = ("screening", "combinations")  # of the same seeds
    screened = {
        task: [folders[name][task] for name in rounds if task in folders[name]] for task in folders["screening"]
    }
    parts = [
        "# The study: tables", HEAD, "## What was tried", markdown(("change", "settings"), changes, []),
        f"## Screening, {ROUNDS['screening'].seeds} seeds", screening_tables(screened),
    ]  # fmt: skip
    for titles, names in (("", ("reliability",)), (" with larger networks", ("networks", "networks-slower"))):
        chosen = ROUNDS[names[0]]
        for task in TASKS:
            found = [folders[name][task] for name in names if task in folders[name]]
            if found:
                heading = f"How often a run fails{titles}: {task.folder}, `{chosen.net_arch}`, {chosen.seeds} seeds"
                parts += [f"## {heading}", reliability_table(task, found)]
    if folders["final"]:
        parts += [
            "## The preset robust against SB3's DDPG, the same noise, fresh seeds",
            final_tables(folders["final"]),
        ]
    every = [kept for stage in folders.values() for kept in stage.values()]
    commands = [json.loads((kept / "summary.json").read_text())["plan"]["command"] for kept in every]
    pages = [f"- [{kept.name}]({kept.name}/summary.md)" for kept in every]
    parts += ["## Commands", "```\n" + "\n".join(commands) + "\n```", "\n".join(pages)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


HEAD: Final = """`make study` runs every comparison below and writes this page; what follows from it:
[the study](../study.md). Base: the defaults of SB3's DDPG with `net_arch=[64, 64]`, compiled updates and a noise of
0.1, in MountainCar `OrnsteinUhlenbeck(sigma=0.5)`. Returns are normalised: 0 is what random actions get, 1 what solves
the task."""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", help="folders to run, such as screening-pendulum; all without it")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of unfinished comparisons")
    given = parser.parse_args()
    for stage in STAGES:
        for task in TASKS:
            name = f"{stage}-{task.folder}"
            folders = ROUNDS[stage].folders if stage in ROUNDS else None
            if (folders is None or task.folder in folders) and (given.only is None or name in given.only):
                arguments = final(task) if stage == "final" else screening(task, stage)
                run(arguments, given.work / name, HERE / name, given.jobs)
    (HERE / "summary.md").write_text(page(finished()), "utf-8")


def finished() -> dict[str, dict[Task, Path]]:
    """By stage and environment, the folder of each comparison that is finished."""
    return {
        stage: {task: kept for task in TASKS if ((kept := HERE / f"{stage}-{task.folder}") / KEPT[-1]).exists()}
        for stage in STAGES
    }


if __name__ == "__main__":
    main()
