"""The benchmark: whole `learn()` of SimpleDDPG, SB3's DDPG and SBX's DDPG, side by side in one run.

Not here: the competitors (`worker.py`; each one runs in a process of its own), tables and pictures
(`report.py`), and how well the competitors learn.

What is measured, in each repeat, one competitor after the other and each repeat beginning with another one:
steps per second: environment steps (of all environments together) through the seconds of `learn(steps)`, after warm-up;
update: seconds inside `train`, as `learn` calls it, through the number of gradient steps; the rest of `learn` collects;
floor: the ten products of the hidden layers that an update cannot do without, (B, h1) times (h1, h2), on as many
threads, each by the library that is faster with it on this machine (MKL or oneDNN). Where nothing is updated, the floor
is the environments alone, through the number of their steps;
ratio: steps per second through those of SB3's (SBX's) DDPG in the same repeat; then median, smallest and largest;
compile: seconds inside `train` while warming up, less those of as many median calls: with an empty cache, and again in
a second process that finds what the first one left (--no-compile-times: once, with whatever PyTorch's cache holds);
memory: the largest resident memory of the competitor's process, compiler included, the compiler's own processes not.
"""

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sb3_simple_ddpg.benchmark import report
from sb3_simple_ddpg.benchmark.worker import COMPILED, EAGER, FLOOR, SB3, SB3_ONEDNN, SBX, WorkerProcess
from sb3_simple_ddpg.speed.cores import usable_cores

if TYPE_CHECKING:
    from rich.console import Console

QUICK = "quick, not for publication"
FILES = tuple(f"benchmark.{ending}" for ending in ("json", "md", "png"))


@dataclass(frozen=True)
class Workload:
    """
    What every competitor does alike. All other settings are SB3's defaults for DDPG, noise N(0, 0.1).

    :param name: for `--workloads`
    :param title: for tables
    :param env_id: name of a registered environment
    :param net_arch: units of each hidden layer, of both networks
    :param batch_size: B, number of transitions in each gradient step
    :param n_envs: number of environments
    :param gradient_steps: in each call of `train`; -1: as many as environments; 0: none
    :param threads: of PyTorch or XLA; the process is kept on as many cores
    :param measures: "learn" (environment steps) or "predict" (calls, with one observation)
    :param buffer_size: number of transitions that the replay buffer keeps
    :param filled: begin with a full buffer, of random transitions
    :param learning_starts: number of random steps
    :param warm_up: number of rounds of collecting and updating before anything counts
    """

    name: str
    title: str
    env_id: str = "Pendulum-v1"
    net_arch: tuple[int, ...] = (64, 64)
    batch_size: int = 256
    n_envs: int = 1
    gradient_steps: int = 1
    threads: int = 1
    measures: str = "learn"
    buffer_size: int = 1_000_000
    filled: bool = False
    learning_starts: int = 100
    warm_up: int = 20

    @property
    def competitors(self) -> tuple[str, ...]:
        """Who takes part; where nothing is updated, nothing is compiled."""
        return (EAGER, SB3, SBX) if self.gradient_steps == 0 else (EAGER, COMPILED, SB3, SB3_ONEDNN, SBX)

    def obstacle(self) -> str | None:
        """
        :return: why this machine cannot run it, with the cure; None where it can
        """
        if self.env_id.startswith("HalfCheetah") and importlib.util.find_spec("mujoco") is None:
            return f'{self.env_id} needs MuJoCo: pip install "gymnasium[mujoco]".'
        if self.threads > usable_cores():
            return f"{self.threads} threads need as many cores, this process may use {usable_cores()}."
        return None


WORKLOADS = (
    Workload("pendulum-64", "Pendulum, [64, 64]"),
    Workload("pendulum-256", "Pendulum, [256, 256]", net_arch=(256, 256)),
    Workload("pendulum-400", "Pendulum, [400, 300]", net_arch=(400, 300)),
    Workload("pendulum-400-2-threads", "Pendulum, [400, 300], 2 threads", net_arch=(400, 300), threads=2),
    Workload("halfcheetah-256", "HalfCheetah, [256, 256]", "HalfCheetah-v5", (256, 256)),
    Workload("pendulum-8-envs", "Pendulum, [64, 64], 8 environments, 8 updates", n_envs=8, gradient_steps=-1),
    Workload("collect", "Pendulum, [64, 64], collecting alone", gradient_steps=0),
    Workload("predict", "Pendulum, [64, 64], predict (calls)", gradient_steps=0, measures="predict"),
)


@dataclass
class Measurement:
    """
    What one competitor did on one workload.

    :param repeats: the answers of `Competitor.measure`
    :param missing: why there is none
    :param compile_s: seconds that compiling took
    :param cached_compile_s: the same in a second process, which finds what the first one has compiled
    :param peak_mib: largest resident memory in MiB
    :param versions: of the libraries in its environment
    :param products: which of them are not multiplied by MKL, as SimpleDDPG's log says it
    """

    repeats: list[dict[str, Any]] = field(default_factory=list)
    missing: str | None = None
    compile_s: float | None = None
    cached_compile_s: float | None = None
    peak_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    products: str = ""

    @property
    def rates(self) -> list[float]:
        """Steps, calls or products per second, of each repeat."""
        return [repeat["count"] / repeat["s"] for repeat in self.repeats]

    @property
    def updates_ms(self) -> list[float]:
        """Milliseconds of an update, of each repeat; empty where nothing is updated."""
        return [1e3 * each["train_s"] / each["gradient_steps"] for each in self.repeats if each["gradient_steps"]]


@dataclass(frozen=True)
class Settings:
    """
    How a benchmark is run.

    :param repeats: number of counted repeats
    :param steps: of each repeat; None: as many as SB3's DDPG does in `target_s`
    :param target_s: seconds
    :param sbx_python: interpreter that has SBX; None: SBX does not take part
    :param compile_times: compile with an empty cache, then again in a second process
    :param quick: everything small, to see that it runs
    :raises ValueError: for a value that cannot work, with the cure
    """

    repeats: int = 7
    steps: int | None = None
    target_s: float = 2.0
    sbx_python: str | None = None
    compile_times: bool = True
    quick: bool = False

    def __post_init__(self) -> None:
        least = 1 if self.quick else 5
        if self.repeats < least:
            raise ValueError(
                f"--repeats must be at least {least}, got {self.repeats}: fewer say nothing (see --quick)."
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}.")


def choose_workloads(names: tuple[str, ...], threads: int | None = None, quick: bool = False) -> list[Workload]:
    """
    :param names: of workloads; none: all
    :param threads: of each workload, instead of its own number
    :param quick: less warm-up
    :return: the workloads
    :raises ValueError: for an unknown name, or no thread
    """
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            raise ValueError(f"There is no workload {name!r}: choose from {', '.join(known)}.")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}.")
    changes: dict[str, Any] = ({"warm_up": 5} if quick else {}) | ({} if threads is None else {"threads": threads})
    return [replace(known[name], **changes) for name in names or known]


def find_sbx(python: Path | None) -> str | None:
    """
    :param python: interpreter of an environment with SBX; None: this one
    :return: the interpreter; None when none was named and SBX is not here
    :raises ValueError: when the one that was named is none, or lacks SBX
    """
    if python is None:
        return sys.executable if importlib.util.find_spec("sbx") else None
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sbx') is None)"
    try:
        found = subprocess.run([str(python), "-c", look], capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise ValueError(f"--sbx-python {python} cannot be run ({error}): name a Python interpreter.") from error
    if not found:
        raise ValueError(f"--sbx-python {python} has no SBX: run `{python} -m pip install sbx-rl`.")
    return str(python)


def measure(
    workload: Workload,
    settings: Settings,
    competitors: tuple[str, ...] | None = None,
    start: Callable[..., WorkerProcess] = WorkerProcess,
) -> dict[str, Measurement]:
    """
    One workload: all competitors warm up, then take turns, then show their memory.

    :param workload: what they do
    :param settings: how often
    :param competitors: who takes part; None: all that the workload has
    :param start: takes an interpreter, a job and a cache folder, gives a competitor that answers
    :return: a measurement of each competitor, and of the floor
    """
    names = [*(competitors or workload.competitors)] + ([] if workload.measures == "predict" else [FLOOR])
    results = {name: Measurement() for name in names}
    workers: dict[str, WorkerProcess] = {}

    def ask(name: str, command: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
        try:
            return workers[name].ask(command, **arguments)
        except RuntimeError as error:
            results[name].missing = str(error)
            workers.pop(name).close()
            return {}

    def enter(name: str, cache: str | None) -> dict[str, Any]:
        python = settings.sbx_python if name == SBX else sys.executable
        if python is None:
            results[name].missing = "not installed here: name an interpreter that has it with --sbx-python."
            return {}
        workers[name] = start(python, {**asdict(workload), "kind": name}, cache)
        return ask(name, "prepare")

    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in names:
                answer = enter(name, folder if name == COMPILED and settings.compile_times else None)
                results[name].compile_s = answer.get("compile_s")
                results[name].versions = answer.get("versions", {})
                results[name].products = answer.get("products", "")
            reference = SB3 if SB3 in workers else next(iter(workers), None)
            steps = settings.steps
            if steps is None and reference is not None:
                probe = ask(reference, "measure", amount=20 * workload.n_envs)
                steps = math.ceil(settings.target_s * probe["count"] / probe["s"]) if probe else 1
            steps = -(-(steps or 1) // workload.n_envs) * workload.n_envs
            for repeat in range(settings.repeats):
                for name in rotate(names, repeat):
                    if name in workers and (answer := ask(name, "measure", amount=steps)):
                        results[name].repeats.append(answer)
                    if workload.threads > 1:
                        time.sleep(0.2)  # idle threads of OpenMP spin for a while
            for name in list(workers):
                results[name].peak_mib = ask(name, "memory").get("peak_mib")
            if settings.compile_times and COMPILED in workers:
                workers.pop(COMPILED).close()
                results[COMPILED].cached_compile_s = enter(COMPILED, folder).get("compile_s")
        finally:
            for worker in workers.values():
                worker.close()
    return results


def rotate(names: list[str], repeat: int) -> list[str]:
    """
    :param names: in any order
    :param repeat: number of the repeat, from 0
    :return: the same, beginning with another one in each repeat, so that nobody always follows the same load
    """
    start = repeat % len(names)
    return names[start:] + names[:start]


def summarize(results: dict[str, Measurement]) -> dict[str, dict[str, Any]]:
    """
    :param results: what `measure` gave for one workload
    :return: for each competitor `rate` (per second), `ratio` (to SB3's DDPG), `ratio_to_sbx`, `update_ms`, `floor_ms`,
        `cost_ms` (of an update, or of a step where nothing is updated) and `update_over_floor`, each as median,
        smallest and largest over the repeats or None; and its Measurement without the repeats
    """
    rates = {name: result.rates for name, result in results.items()}
    floors_ms = [1e3 / rate for rate in rates.get(FLOOR, [])]
    rows = {}
    for name, result in results.items():
        if name == FLOOR:
            continue
        # Where nothing is updated, a step is compared with the environment's own.
        costs_ms = result.updates_ms or [1e3 / rate for rate in result.rates]
        rows[name] = {
            "rate": _spread(result.rates),
            "ratio": _ratio(result.rates, rates.get(SB3, [])),
            "ratio_to_sbx": _ratio(result.rates, rates.get(SBX, [])),
            "update_ms": _spread(result.updates_ms),
            "cost_ms": _spread(costs_ms),
            "floor_ms": _spread(floors_ms),
            "update_over_floor": _ratio(costs_ms, floors_ms),
            **{key: value for key, value in asdict(result).items() if key != "repeats"},
        }
    return rows


def _ratio(values: list[float], others: list[float]) -> list[float] | None:
    """Repeat by repeat; a competitor that failed has fewer of them."""
    return _spread([own / other for own, other in zip(values, others, strict=False)])


def _spread(values: list[float]) -> list[float] | None:
    return [median(values), min(values), max(values)] if values else None


def run_table(workloads: list[Workload], settings: Settings, folder: Path, console: "Console") -> None:
    """
    Measure, print, and write benchmark.json, benchmark.md and benchmark.png.

    :param workloads: from `choose_workloads`
    :param settings: of the run
    :param folder: to write, which exists
    :param console: to print on
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    records: list[dict[str, Any]] = []
    skipped = {each.title: obstacle for each in workloads if (obstacle := each.obstacle()) is not None}
    versions: dict[str, dict[str, str]] = {}
    _write_json(folder / "benchmark.json", settings, {"workloads": records, "skipped": skipped})
    for workload in workloads:
        if workload.title in skipped:
            continue
        console.print(f"Measuring {workload.title} ...")
        results = measure(workload, settings)
        rows[workload.title] = summarize(results)
        versions |= {name: result.versions for name, result in results.items() if result.versions and name != FLOOR}
        raw = {name: result.repeats for name, result in results.items()}
        records.append({**asdict(workload), "competitors": rows[workload.title], "repeats": raw})
        # After each workload, so that a run that is stopped leaves what it has.
        _write_json(folder / "benchmark.json", settings, {"workloads": records, "skipped": skipped})
    lines = [line for title, competitors in rows.items() for line in report.cells(title, competitors)]
    notes = _notes(settings, versions, skipped)
    notes += [
        f"{title}, {name}: {row['products']}"
        for title, competitors in rows.items()
        for name, row in competitors.items()
        if row["products"]
    ]
    _tell("benchmark", report.COLUMNS, lines, notes, folder, console)
    if rows:
        report.draw_table(rows, QUICK if settings.quick else None).savefig(folder / "benchmark.png", dpi=150)


def _tell(
    name: str, columns: tuple[str, ...], lines: list[list[str]], notes: list[str], folder: Path, console: "Console"
) -> None:
    from rich.table import Table

    table = Table(*columns, title=name)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    (folder / f"{name}.md").write_text(report.markdown(columns, lines, notes))


def _write_json(path: Path, settings: Settings, content: dict[str, Any]) -> None:
    described = {name: value for name, value in asdict(settings).items() if name != "sbx_python"}
    head = {"note": QUICK if settings.quick else None, "settings": described, "machine": report.machine()}
    path.write_text(json.dumps({**head, **content}, indent=2) + "\n")


def _notes(settings: Settings, versions: dict[str, dict[str, str]], skipped: dict[str, str]) -> list[str]:
    """What a reader of the numbers must know."""
    here = report.machine()
    texts = [QUICK] if settings.quick else []
    texts.append(f"Median (smallest-largest) of {settings.repeats} interleaved repeats; ratios repeat by repeat.")
    texts.append(f"{here['processor']}, cores: {here['cores']}, {here['system']}; command: `{here['command']}`.")
    texts.append("One thread unless the workload says otherwise; each process is kept on as many cores (XLA too).")
    described = {name: ", ".join(map(" ".join, found.items())) for name, found in versions.items()}
    for text in dict.fromkeys(described.values()):
        texts.append(f"{', '.join(name for name in described if described[name] == text)}: {text}.")
    return texts + [f"{title} was skipped: {reason}" for title, reason in skipped.items()]
