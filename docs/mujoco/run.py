"""Plain DDPG on today's MuJoCo tasks, with records: `make study-mujoco` runs what is missing and writes the tables.

Not here: which runs (`rounds.py`), and a run, an evaluation or a formula of its own. Each run is a `Job` of
`sb3_simple_ddpg.experiment` in a process of its own; what is said over several comes from `experiment/statistics.py`.

A record is the evaluations of one finished run, a few lines of `<round>/<task>.csv`. Whoever stops this program loses
no record, and of the runs that are under way what came after their last checkpoints.
"""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from rounds import EVAL_EPISODES, ROUNDS, SEVEN, THE_BEST

from sb3_simple_ddpg.benchmark.report import markdown
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import plotting, runs, statistics
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment.algorithms import find_algorithms, settings_from
from sb3_simple_ddpg.experiment.engines import LocalEngine, run_all
from sb3_simple_ddpg.experiment.statistics import Array
from sb3_simple_ddpg.experiment.worker import Job

HERE: Final = Path(__file__).parent
#: In each round's folder: what its arms ran with, and its picture.
SETTINGS, CURVES = "settings.json", "curves.png"
#: Of a record. Nothing but the seconds depends on how busy the machine was.
COLUMNS: Final = ("algorithm", "seed", "timestep", "mean_return", "wall_time_s")


@dataclass(frozen=True)
class Run:
    """
    One run of the study.

    :param round: its name in `ROUNDS`
    :param task: name of the environment
    :param arm: its name there
    :param seed: of everything that is random
    """

    round: str
    task: str
    arm: str
    seed: int

    @property
    def path(self) -> Path:
        """The file that its record belongs to."""
        return HERE / self.round / f"{self.task}.csv"

    def job(self, work: Path) -> Job:
        """
        :param work: folder of what is not finished
        :return: what a process is to do
        :raises ValueError: for settings that its algorithm does not have
        """
        of_round, arm = ROUNDS[self.round], ROUNDS[self.round].arms[self.arm]
        algorithms = find_algorithms({self.arm: arm.algorithm})
        arguments = settings_from(algorithms, arm.settings, [arm.preset] if arm.preset else (), self.task)[self.arm]
        every = of_round.checkpoint_every
        return Job(
            algorithms[0], arguments, self.task, self.seed, of_round.timesteps, of_round.eval_every, EVAL_EPISODES,
            checkpoints=self.checkpoints(work) if every else None, checkpoint_every=every,
        )  # fmt: skip

    def checkpoints(self, work: Path) -> Path:
        """
        :param work: folder of what is not finished
        :return: the folder of this run's checkpoints
        """
        return work.absolute() / f"{self.round}-{self.task}-{self.arm}-{self.seed}"


def planned() -> list[Run]:
    """All runs, round after round; within one the first seed of everything, then the second, so that any part of it
    makes a table."""
    return [
        Run(name, task, arm, seed)
        for name, each in ROUNDS.items()
        for seed in range(each.first_seed, each.first_seed + each.seeds)
        for task in each.tasks
        for arm in each.arms
        if seed in each.seeds_of(arm, task)
    ]


def lines_of(path: Path) -> list[str]:
    """
    :param path: of records
    :return: its lines without the first, which names the columns
    """
    return path.read_text("utf-8").splitlines()[1:] if path.exists() else []


def is_finished(run: Run) -> bool:
    """
    :param run: of the study
    :return: whether its record is there
    """
    return any(line.startswith(f"{run.arm},{run.seed},") for line in lines_of(run.path))


def save(run: Run, record: dict[str, Any]) -> None:
    """
    Add the record to its file, in one step; all others keep their bytes.

    :param run: that has finished
    :param record: of `experiment/worker.py`
    """
    new = [
        f"{run.arm},{run.seed},{timestep},{np.mean(returns):.4f},{seconds:.1f}"
        for timestep, seconds, returns, _ in record["evaluations"]
    ]
    lines = sorted([*lines_of(run.path), *new], key=lambda line: [line.split(",")[0], *map(int, line.split(",")[1:3])])
    experiment_folder.write_whole(run.path, "\n".join([",".join(COLUMNS), *lines]) + "\n")


def check_settings(todo: Sequence[Run], work: Path) -> None:
    """
    Note what the arms run with, before the first of their runs; later ones must have the same.

    :param todo: runs to be done
    :param work: folder of what is not finished
    :raises ValueError: when an arm has other settings than those that its records were made with
    """
    for name, arm in dict.fromkeys((run.round, run.arm) for run in todo):
        path = HERE / name / SETTINGS
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
        job = next(run for run in todo if (run.round, run.arm) == (name, arm)).job(work)
        now = {
            "algorithm": job.algorithm.path, **job.arguments, "timesteps": job.timesteps, "eval_every": job.eval_every,
            "eval_episodes": job.eval_episodes,
        }  # fmt: skip
        now = json.loads(json.dumps(now, default=runs.describe))
        if stored.get(arm, now) != now:
            raise ValueError(
                f"The records of {arm} in {path.parent} were made with {stored[arm]}, and it is now {now}: give what "
                "is new a name of its own, or remove those records and that entry."
            )
        experiment_folder.write_whole(path, json.dumps(dict(sorted({**stored, arm: now}.items())), indent=1) + "\n")


def execute(todo: Sequence[Run], work: Path, jobs: int) -> int:
    """
    :param todo: runs of one round, to be done in this order
    :param work: folder of what is not finished
    :param jobs: number of runs at a time
    :return: number of runs that failed; they have no record, so the next call tries them again
    """
    by_key = {(run.arm, run.task, run.seed): run for run in todo}
    failed = 0
    running = run_all([run.job(work) for run in todo], LocalEngine(jobs), lambda job: say(f"Begun: {job.title}."))
    for number, (job, record) in enumerate(running, 1):
        if "error" in record:
            failed += 1
            say(f"FAILED: {job.title}.\n{record['error']}")
            continue
        save(by_key[job.key], record)
        shutil.rmtree(by_key[job.key].checkpoints(work), ignore_errors=True)
        (HERE / "summary.md").write_text(page(), "utf-8")
        last = np.mean(record["evaluations"][-1][2])
        say(f"{number} of {len(todo)}: {job.title}: {last:.1f}, {record['wall_time_s']:.0f} s of training.")
    return failed


def say(text: str) -> None:
    """
    :param text: for whoever looks on
    """
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def records_of(name: str) -> pd.DataFrame:
    """
    :param name: of a round
    :return: its evaluations, the columns of `COLUMNS` and `env_id`; tasks and arms in the round's order
    """
    tasks, arms = ROUNDS[name].tasks, list(ROUNDS[name].arms)
    found = [pd.read_csv(path).assign(env_id=task) for task in tasks if (path := HERE / name / f"{task}.csv").exists()]
    records = pd.concat(found) if found else pd.DataFrame(columns=[*COLUMNS, "env_id"])
    return records[records.algorithm.isin(arms)].sort_values(
        "algorithm", key=lambda names: names.map(arms.index), kind="stable"
    ).sort_values("env_id", key=lambda names: names.map(tasks.index), kind="stable")  # fmt: skip


def scores(records: pd.DataFrame, task: str, arm: str, best: bool = False) -> Array:
    """
    :param records: of a round
    :param task: name of the environment
    :param arm: its name
    :param best: the highest evaluation of each run; else the last
    :return: one return for each finished run, by seed
    """
    own = records[(records.env_id == task) & (records.algorithm == arm)].sort_values(["seed", "timestep"])
    of_run = own.groupby("seed").mean_return
    return np.array(of_run.max() if best else of_run.last(), float)


def median_seed(records: pd.DataFrame, task: str, arm: str) -> int:
    """
    :param records: of a round
    :param task: name of the environment
    :param arm: its name
    :return: seed of the run in the middle by its last evaluation, the lower one of two
    """
    own = records[(records.env_id == task) & (records.algorithm == arm)].sort_values(["seed", "timestep"])
    by_return = own.groupby("seed").mean_return.last().sort_values(kind="stable")
    return int(by_return.index[(len(by_return) - 1) // 2])


def with_interval(returns: Array) -> str:
    """
    :param returns: one for each run
    :return: their mean, with its interval where there are runs enough
    """
    digits = runs.digits_of(returns)
    if len(returns) < 2:
        return f"{returns.mean():z,.{digits}f}"
    return comparison_report.text(statistics.interval([returns], statistics.mean), digits)


def extremes(returns: Array) -> str:
    """
    :param returns: one for each run
    :return: of the lowest and of the highest run, where there is more than one
    """
    digits = runs.digits_of(returns)
    return f"{returns.min():z,.{digits}f}, {returns.max():z,.{digits}f}" if len(returns) > 1 else ""


def pairs_of(
    records: pd.DataFrame, tasks: Iterable[str], arm: str, others: Sequence[str]
) -> dict[str, tuple[Array, Array]]:
    """
    :param records: of a round
    :param tasks: names of environments
    :param arm: its name
    :param others: whom it is compared with on each task: the first of them that has two runs there
    :return: last returns of both by task, where both have two runs or more; nothing for an arm and itself
    """
    pairs = {}
    for task in tasks if arm not in others else ():
        own, theirs = scores(records, task, arm), [scores(records, task, other) for other in others]
        their = next((each for each in theirs if len(each) > 1), None)
        if len(own) > 1 and their is not None:
            pairs[task] = own, their
    return pairs


def above(pairs: Iterable[tuple[Array, Array]]) -> str:
    """
    :param pairs: returns of an arm and of another, by task
    :return: probability that a run of the arm ends higher, with p where it is about one task; "" where there is no pair
    """
    pairs = list(pairs)
    if not pairs:
        return ""
    if len(pairs) > 1:
        owns, theirs = zip(*pairs, strict=True)
        return comparison_report.text(statistics.probability_of_improvement(owns, theirs), 2)
    found = statistics.difference(*pairs[0])
    return f"{comparison_report.text(found.improvement, 2)}, p {found.p_value:.2g}"


def table(name: str, records: pd.DataFrame) -> str:
    """
    :param name: of a round
    :param records: its evaluations
    :return: a row for each task and arm; then, for each pair of arms, what is said over all their tasks
    """
    of_round, rows, sentences = ROUNDS[name], [], []
    for task, arm in dict.fromkeys(zip(records.env_id, records.algorithm, strict=True)):
        last, best = scores(records, task, arm), scores(records, task, arm, best=True)
        rows.append([
            task, arm, f"{len(last)} of {len(of_round.seeds_of(arm, task))}", with_interval(last), extremes(last),
            with_interval(best),
            *(above(pairs_of(records, [task], arm, [other]).values()) for other in of_round.against),
        ])  # fmt: skip
    heads = (
        "task",
        "arm",
        "seeds",
        "last evaluation",
        "lowest and highest last",
        "best evaluation",
        *(f"above {each}" for each in of_round.against),
    )
    for arm in of_round.arms:
        for others in dict.fromkeys([*((each,) for each in of_round.against), of_round.against]):
            pairs = pairs_of(records, of_round.tasks, arm, others)
            if len(pairs) > 1:
                sentences.append(
                    f"- Over {', '.join(pairs)}: a run of `{arm}` ends above one of "
                    f"{', or where it has too few runs '.join(f'`{each}`' for each in others)} with probability "
                    f"{above(pairs.values())}."
                )
    for arm in THE_BEST.keys() & set(records.algorithm):
        seeds = [
            f"{task} {median_seed(records, task, arm)}" for task in of_round.tasks if len(scores(records, task, arm))
        ]
        sentences.append(f"- Seeds of the runs of `{arm}` in the middle: {', '.join(seeds)}.")
    return "\n\n".join([markdown(heads, rows, []).strip(), "\n".join(sentences)]).strip()


def screening_table(name: str, records: pd.DataFrame) -> str:
    """
    :param name: of a round with a base
    :param records: its evaluations
    :return: a row for each arm: what its runs reach on each task, and how far it is from the base over the tasks and
        seeds that both have
    """
    of_round, arms = ROUNDS[name], [arm for arm in ROUNDS[name].arms if arm in set(records.algorithm)]
    gains, cells = [], {}
    for task in of_round.tasks:
        measured = pd.DataFrame([
            {"algorithm": arm, "seed": seed} | measures(curve, of_round.timesteps)
            for (arm, seed), curve in records[records.env_id == task].groupby(["algorithm", "seed"])
        ])  # fmt: skip
        if measured.empty:
            continue
        for arm, own in measured.sort_values("seed").groupby("algorithm"):
            digits = runs.digits_of(own["last"])
            cells[task, arm] = " / ".join(
                ", ".join(f"{each:z,.{digits}f}" for each in own[metric]) for metric in ("last", "half")
            )
        measured = measured.set_index(["algorithm", "seed"])
        means = measured.groupby("algorithm").mean()
        if (means.nunique() > 1).all():  # else nothing differs
            scaled = pd.DataFrame({
                metric: statistics.normalise(measured[metric], means[metric].min(), means[metric].max())
                for metric in means
            }, measured.index)  # fmt: skip
            of_base = scaled[scaled.index.get_level_values("algorithm") == of_round.base].droplevel("algorithm")
            gains.append(scaled.sub(of_base, level="seed").dropna().groupby("algorithm").mean())
    rows = []
    for arm in arms:
        found = [of_task.loc[arm] for of_task in gains if arm in of_task.index]
        said = [""] * 3 if arm == of_round.base or not found else [f"{gain:+.2f}" for gain in np.mean(found, 0)]
        rows.append([arm, *(cells.get((task, arm), "") for task in of_round.tasks), *said])
    heads = ("change", *of_round.tasks, *(f"{each}, from {of_round.base}" for each in ("last", "second half", "area")))
    return f"{markdown(heads, rows, []).strip()}\n\n{SCREENED}"


def measures(curve: pd.DataFrame, timesteps: int) -> dict[str, float]:
    """
    :param curve: evaluations of one run
    :param timesteps: of the run
    :return: its last evaluation, and the areas under its second half and under all of it
    """
    curve = curve.sort_values("timestep")
    half = curve[2 * curve.timestep >= timesteps]
    areas = [statistics.area_under_curve(each.timestep, each.mean_return) for each in (half, curve)]
    return {"last": curve.mean_return.iloc[-1], "half": areas[0], "area": areas[1]}


SCREENED: Final = """Cells: the last evaluations / the mean returns over the second half of training, each with a
figure for each seed. The last three columns are means over tasks, with the seeds that both have, of normalised
returns: 0 is the lowest arm of the task, 1 its highest. *Area* is the mean return over training. There is no interval:
so few seeds show what is large, and nothing else."""


#: Published results of plain DDPG, with what they are; a cell may be empty. "a / b" are two figures that the row's
#: name explains.
PUBLISHED: Final = (
    ("Fujimoto et al. 2018, \"Our DDPG\": v1, 1M, 10 seeds, best / last ten evaluations",
     "8,577 / 8,401", "1,860 / 1,062", "3,098 / 2,362", "889 / 564", "-4.0", "1,000", "8,370"),
    ("PFRL: v2, 1M, 10 seeds, best / last ten evaluations",
     "10,263 / 9,751", "3,521 / 1,577", "3,933 / 2,098", "1,532 / 753", "-3.0 / -5.6", "1,000 / 844", "6,558 / 6,465"),
    ("Tianshou: v3, 1M, 10 seeds, best evaluation", "11,719", "2,197", "1,401", "990", "-3.3", "1,000", "8,364"),
    ("CleanRL: v4, 1M, 3 seeds, last 100 training episodes", "10,374", "1,577", "1,240", "", "", "643", ""),
    ("Spinning Up: v3, 10 seeds, at 100,000 / 1M, read from its plots",
     "4,339 / 10,110", "641 / 1,736", "111 / 1,921", "-180 / 700", "", "", ""),
)  # fmt: skip

HEAD: Final = """`make study-mujoco` runs what is missing of the rounds below and writes this page from the records
beside it; how it is done: [MuJoCo](../mujoco.md). A cell is the mean over seeds with its 95 % bootstrap interval, one
run has none. *Last* is the last evaluation of each run, *best* its highest; each is the mean of ten deterministic
episodes. *Above*: the probability that a run of the arm ends above one of the other, by the last evaluation, with p of
the two-sided Mann-Whitney test."""


def page() -> str:
    """
    :return: summary.md, from the records that there are
    """
    parts = ["# MuJoCo: tables", HEAD]
    for name, of_round in ROUNDS.items():
        records = records_of(name)
        if len(records):
            make_table = table if of_round.base is None else screening_table
            picture = [f"![learning curves]({name}/{CURVES})"] if of_round.base is None else []
            parts += [
                f"## {name}",
                f"{of_round.timesteps:,} timesteps, evaluated before training and every {of_round.eval_every:,}; "
                f"seeds {of_round.first_seed} to {of_round.first_seed + of_round.seeds - 1} when all is done.",
                make_table(name, records), *picture, arms_of(name),
            ]  # fmt: skip
    parts += [
        "## Published results of plain DDPG",
        "Statistics and versions of the tasks differ: read the protocol before comparing.",
        markdown(
            ("source and protocol", *(task.partition("-")[0] for task in SEVEN)), [[*row] for row in PUBLISHED], []
        ),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def arms_of(name: str) -> str:
    """
    :param name: of a round
    :return: a table of what its arms ran with
    """
    stored = json.loads((HERE / name / SETTINGS).read_text("utf-8"))
    hidden = ("algorithm", "timesteps", "eval_every", "eval_episodes")
    rows = [
        [arm, f"`{stored[arm]['algorithm']}`",
         ", ".join(f"`{key}={value}`" for key, value in stored[arm].items() if key not in hidden) or "none"]
        for arm in ROUNDS[name].arms if arm in stored
    ]  # fmt: skip
    return markdown(("arm", "class", "settings beside its defaults"), rows, []).strip()


def draw(name: str) -> None:
    """
    :param name: of a round with records; its picture is written
    """
    # Without seconds: some of them were measured on other processors, beside other work.
    records, picture = records_of(name).drop(columns="wall_time_s"), BytesIO()
    plotting.plot_learning_curves(records).savefig(picture, format="png", dpi=80)
    experiment_folder.write_whole(HERE / name / CURVES, picture.getvalue())


def main() -> int:
    """
    Run what is missing, then write page and pictures, also when stopped.

    :return: exit status: 0, or 1 when a run failed
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--rounds", nargs="+", choices=[*ROUNDS], help="all without it")
    parser.add_argument("--tasks", nargs="+", choices=sorted({run.task for run in planned()}), help="all without it")
    parser.add_argument("--arms", nargs="+", choices=sorted({run.arm for run in planned()}), help="all without it")
    parser.add_argument("--seeds", nargs="+", type=int, help="such as 0 1 2; all without it")
    parser.add_argument("--page", action="store_true", help="run nothing, write page and pictures")
    parser.add_argument("--work", type=Path, default=Path("runs/mujoco"), help="folder of what is not finished")
    given = parser.parse_args()
    todo = [
        run
        for run in ([] if given.page else planned())
        if given.rounds is None or run.round in given.rounds
        if given.tasks is None or run.task in given.tasks
        if given.arms is None or run.arm in given.arms
        if given.seeds is None or run.seed in given.seeds
        if not is_finished(run)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops like Ctrl-C
    failed = 0
    try:
        if todo:
            with experiment_folder.locked(given.work):
                check_settings(todo, given.work)
                for name in dict.fromkeys(run.round for run in todo):
                    failed += execute([run for run in todo if run.round == name], given.work, given.jobs)
    except KeyboardInterrupt:
        say("Stopped; the same command goes on.")
        failed += 1
    for name, of_round in ROUNDS.items():
        if of_round.base is None and len(records_of(name)):
            draw(name)
    (HERE / "summary.md").write_text(page(), "utf-8")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
