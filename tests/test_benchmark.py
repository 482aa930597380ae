"""The benchmark's logic: order, numbers, files, refusals. Not here: how fast anything is, which is a command."""

import json
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch as th
from rich.console import Console

from sb3_simple_ddpg.benchmark import benchmark
from sb3_simple_ddpg.benchmark import report as benchmark_report
from sb3_simple_ddpg.benchmark import worker as benchmark_worker
from sb3_simple_ddpg.benchmark.benchmark import Measurement, Settings, Workload
from sb3_simple_ddpg.benchmark.worker import COMPILED, EAGER, FLOOR, SB3, SBX, Competitor, WorkerProcess
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.command_line.cli import main
from tests.long import cold_start, gpu_check, scaling

TINY = Workload("tiny", "Tiny", "tests.environments:TestEndless-v0", (5, 7), 4, buffer_size=300, learning_starts=5)
HERE = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def anywhere(monkeypatch):
    """A competitor keeps its process on one core; here that process is pytest's."""
    monkeypatch.setattr(benchmark_worker, "_pin", lambda threads: None)


def job(kind: str, **changes) -> dict:
    return {**benchmark.asdict(benchmark.replace(TINY, **changes)), "kind": kind}


def fabricated(*seconds: float, update_ms: float | None = None) -> Measurement:
    """Repeats of 10 steps and, where updates are wanted, 10 updates."""
    updates = {"train_s": 0.0, "gradient_steps": 0}
    if update_ms is not None:
        updates = {"train_s": update_ms / 100, "gradient_steps": 10}
    return Measurement([{"s": s, "count": 10, **updates} for s in seconds])


def some_results() -> dict[str, Measurement]:
    return {
        EAGER: fabricated(1.0, 2.0, 4.0, update_ms=6.0),
        COMPILED: Measurement(missing="NotImplementedError: later"),
        SB3: fabricated(3.0, 5.0, 4.0, update_ms=12.0),
        FLOOR: fabricated(0.02, 0.03, 0.04),
    }


def test_ratios_are_taken_repeat_by_repeat():
    rows = benchmark.summarize(some_results())
    # 3/1, 5/2, 4/4 = 3, 2.5, 1: median 2.5, where the ratio of the medians would be 4/2 = 2
    assert rows[EAGER]["ratio"] == pytest.approx([2.5, 1.0, 3.0])
    assert rows[SB3]["ratio"] == [1.0, 1.0, 1.0]
    assert rows[EAGER]["rate"] == pytest.approx([5.0, 2.5, 10.0])  # 10 steps in 1, 2, 4 s
    assert rows[EAGER]["update_ms"] == pytest.approx([6.0] * 3)
    assert rows[EAGER]["floor_ms"] == pytest.approx([3.0, 2.0, 4.0])  # 10 in 0.02 s are 2 ms each
    assert rows[EAGER]["update_over_floor"] == pytest.approx([2.0, 1.5, 3.0])  # 6/3, 6/4, 6/2
    assert rows[COMPILED]["rate"] is None
    assert rows[COMPILED]["missing"] == "NotImplementedError: later"
    assert FLOOR not in rows
    assert rows[EAGER]["ratio_to_sbx"] is None
    rows = benchmark.summarize({**some_results(), SBX: fabricated(2.0, 2.0, 2.0)})
    assert rows[EAGER]["ratio_to_sbx"] == pytest.approx([1.0, 0.5, 2.0])  # 2/1, 2/2, 2/4


def test_without_updates_a_step_is_compared_with_the_environment():
    rows = benchmark.summarize({SB3: fabricated(0.5), FLOOR: fabricated(0.1)})
    assert rows[SB3]["update_ms"] is None
    assert rows[SB3]["cost_ms"] == pytest.approx([50.0] * 3)
    assert rows[SB3]["update_over_floor"] == pytest.approx([5.0] * 3)


def test_table_says_numbers_ranges_and_why_one_is_missing():
    eager, compiled, sb3 = benchmark_report.cells("Tiny", benchmark.summarize(some_results()))
    assert eager[:4] == ["Tiny", EAGER, "5 (2-10)", "2.50 (1.00-3.00)"]
    assert eager[4:] == ["-", "6.00 (6.00-6.00)", "3", "2.00 (1.50-3.00)", "-", "-"]
    assert compiled[:3] == ["Tiny", COMPILED, "missing: NotImplementedError: later"]
    assert len(eager) == len(compiled) == len(sb3) == len(benchmark_report.COLUMNS)
    done = fabricated(1.0, update_ms=1.0)
    done.compile_s, done.cached_compile_s, done.peak_mib = 21.04, 4.06, 333.3
    (line,) = benchmark_report.cells("Tiny", benchmark.summarize({COMPILED: done}))
    assert line[-2:] == ["21.0, cached 4.1", "333"]


def test_markdown_is_a_table_that_a_bar_does_not_break():
    text = benchmark_report.markdown(("a", "b"), [["1|2", "3"]], ["first", "second"])
    assert text == "| a | b |\n| --- | --- |\n| 1/2 | 3 |\n\n- first\n- second\n"


class Script:
    """Stands in for the competitors' processes: writes down who is asked what."""

    def __init__(self, failing: dict[str, str] | None = None) -> None:
        self.log: list[tuple] = []
        self.failing = failing or {}
        self.caches: list[tuple[str, str | None]] = []

    def start(self, python: str, job: dict, cache: str | None):
        self.caches.append((job["kind"], cache))
        return _ScriptedWorker(self, job["kind"])


class _ScriptedWorker:
    def __init__(self, script: Script, name: str) -> None:
        self.script, self.name = script, name

    def ask(self, command: str, **arguments):
        self.script.log.append((command, self.name, *arguments.values()))
        if self.script.failing.get(self.name) == command:
            raise RuntimeError(f"no {command}")
        return {
            "prepare": {"compile_s": 9.0, "versions": {"torch": "1"}},
            "measure": {"s": 0.25, "count": arguments.get("amount"), "train_s": 0.2, "gradient_steps": 4},
            "memory": {"peak_mib": 100.0},
        }[command]

    def close(self) -> None:
        self.script.log.append(("close", self.name))


def test_all_are_warm_before_the_first_repeat_and_take_turns_in_each():
    script = Script()
    competitors = (EAGER, SB3)
    results = benchmark.measure(TINY, Settings(steps=3, compile_times=False), competitors, script.start)
    names = [EAGER, SB3, FLOOR]
    turns = [("measure", names[(repeat + turn) % 3], 3) for repeat in range(7) for turn in range(3)]
    assert script.log[:3] == [("prepare", name) for name in names]
    assert script.log[3 : 3 + 21] == turns
    assert script.log[24:27] == [("memory", name) for name in names]
    assert script.log[27:] == [("close", name) for name in names]
    assert all(len(result.repeats) == 7 and result.peak_mib == 100.0 for result in results.values())
    assert results[SB3].versions == {"torch": "1"}


def test_a_repeat_is_as_many_steps_as_sb3_does_in_the_time():
    script = Script()
    workload = benchmark.replace(TINY, n_envs=8)
    benchmark.measure(workload, Settings(compile_times=False), (EAGER, SB3), script.start)
    measured = [entry for entry in script.log if entry[0] == "measure"]
    # The probe: 20 rounds of 8 environments, 160 steps in 0.25 s; in 2 s that makes 1,280.
    assert measured[0] == ("measure", SB3, 160)
    assert {entry[2] for entry in measured[1:]} == {1280}


def test_compiling_is_timed_with_an_empty_cache_and_again():
    script = Script()
    results = benchmark.measure(TINY, Settings(steps=1), (EAGER, COMPILED, SB3), script.start)
    (cold, again) = [cache for name, cache in script.caches if name == COMPILED]
    assert cold == again is not None
    assert not Path(cold).exists()  # it was a temporary folder
    assert results[COMPILED].cached_compile_s == 9.0
    assert {cache for name, cache in script.caches if name != COMPILED} == {None}


@pytest.mark.parametrize("command", ["prepare", "measure", "memory"])
def test_a_competitor_that_fails_is_missing_and_the_others_go_on(command):
    script = Script(failing={EAGER: command})
    results = benchmark.measure(TINY, Settings(steps=1, compile_times=False), (EAGER, SB3, SBX), script.start)
    assert results[EAGER].missing == f"no {command}"
    assert "--sbx-python" in results[SBX].missing  # none was named
    assert len(results[SB3].repeats) == 7
    assert script.log.count(("close", EAGER)) == script.log.count(("close", SB3)) == 1
    line, *_ = benchmark_report.cells("Tiny", benchmark.summarize(results))
    assert line[2] == f"missing: no {command}"


def test_floor_is_ten_products_of_each_pair_of_hidden_layers(monkeypatch):
    linear = th.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(th.ops.mkldnn, "_linear_pointwise", lambda *args: (time.sleep(0.002), linear(*args)))
    floor = Competitor(job(FLOOR, net_arch=(5, 7, 3), warm_up=1))
    assert floor.prepare()["compile_s"] is None
    shapes: list[tuple[int, ...]] = []
    multiply = th.mm
    monkeypatch.setattr(th, "mm", lambda a, b, out: (shapes.append((*a.shape, *b.shape)), multiply(a, b, out=out)))
    answer = floor.measure(2)
    assert (answer["count"], answer["gradient_steps"]) == (2, 0)
    # Batch 4: (4, 5) times (5, 7) and (4, 7) times (7, 3), ten times each, for two updates.
    assert shapes == 2 * (10 * [(4, 5, 5, 7)] + 10 * [(4, 7, 7, 3)])


@pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="needs PyTorch with oneDNN")
@pytest.mark.parametrize("slow", ["mm", "_linear_pointwise"])
def test_floor_takes_the_library_that_is_faster(slow: str, monkeypatch):
    names = {"mm": th, "_linear_pointwise": th.ops.mkldnn}
    calls = []

    def watched(name, itself, *args, **kwargs):
        calls.append(name)
        time.sleep(0.002 if name == slow else 0)
        return itself(*args, **kwargs)

    for name, module in names.items():
        monkeypatch.setattr(module, name, partial(watched, name, getattr(module, name)))
    product = benchmark_worker._faster_product(4, 5, 7)
    calls.clear()
    assert product().shape == (4, 7)
    assert calls == [name for name in names if name != slow]


def test_floor_without_updates_is_the_environments_alone():
    floor = Competitor(job(FLOOR, gradient_steps=0, n_envs=3))
    floor.prepare()
    assert floor.measure(7)["count"] == 9  # three rounds of three environments


@pytest.mark.parametrize("kind", [EAGER, SB3])
def test_a_repeat_counts_steps_and_updates(kind):
    competitor = Competitor(job(kind, n_envs=2, gradient_steps=-1))
    assert competitor.prepare()["compile_s"] is not None
    answer = competitor.measure(6)
    assert (answer["count"], answer["gradient_steps"]) == (6, 6)
    assert 0 < answer["train_s"] < answer["s"]
    assert competitor.model.num_timesteps == 5 + 1 + 20 * 2 + 6  # 5 random ones are 6 for two environments
    assert competitor.memory()["peak_mib"] > 50  # PyTorch alone is larger


@pytest.mark.parametrize(
    ("compiled", "reason"), [(None, "no update"), (SimpleNamespace(failure="no compiler"), "no compiler")]
)
def test_the_plain_paths_speed_is_not_shown_as_the_compiled_ones(compiled, reason, monkeypatch):
    competitor = Competitor(job(COMPILED))
    build = Competitor(job(EAGER))

    def build_plain():
        build.env = competitor.env
        model = build._build()
        model._compiled = compiled  # as after a failed compile
        return model

    monkeypatch.setattr(competitor, "_build", build_plain)
    with pytest.raises(RuntimeError, match=f"nothing was compiled: {reason}"):
        competitor.prepare()


def test_predict_and_collecting_make_no_update():
    competitor = Competitor(job(EAGER, gradient_steps=0, measures="predict"))
    assert competitor.prepare()["compile_s"] is None
    calls = []
    competitor.model.predict = lambda observation, deterministic: calls.append(observation.shape)
    assert competitor.measure(4)["count"] == 4
    assert calls == [(3,)] * 4  # one observation, no batch
    assert competitor.model._n_updates == 0


def test_a_filled_buffer_is_full_of_different_transitions():
    competitor = Competitor(job(EAGER, filled=True))
    competitor.prepare()
    buffer = competitor.model.replay_buffer
    assert buffer.size() == 300
    assert len({float(value) for value in buffer.observations[100:200, 0, 0]}) == 100


def test_pictures_show_ratios_and_costs():
    rows = {"Tiny, [64, 64], more": benchmark.summarize(some_results())}
    figure = benchmark_report.draw_table(rows)
    speed, cost = figure.axes
    assert [bar.get_height() for bar in speed.patches] == [2.5, 1.0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [EAGER, SB3]
    assert [label.get_text() for label in cost.get_xticklabels()] == ["Tiny,\n[64, 64],\nmore"]


def test_table_leaves_out_what_cannot_run_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda workload, settings: some_results())
    workloads = [TINY, benchmark.replace(TINY, title="Huge", threads=4096)]
    benchmark.run_table(workloads, Settings(), tmp_path, Console(quiet=True))
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert [workload["title"] for workload in content["workloads"]] == ["Tiny"]
    assert content["workloads"][0]["competitors"][EAGER]["ratio"] == pytest.approx([2.5, 1.0, 3.0])
    assert len(content["workloads"][0]["repeats"][FLOOR]) == 3
    assert content["machine"]["cores"] >= 1
    assert content["note"] is None
    assert "Huge was skipped: 4096 threads need as many cores" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_halfcheetah_without_mujoco_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    (workload,) = benchmark.choose_workloads(("halfcheetah-256",))
    assert workload.obstacle() == 'HalfCheetah-v5 needs MuJoCo: pip install "gymnasium[mujoco]".'


def test_the_help_names_every_workload():
    text = " ".join(cli.benchmark.__doc__.split())
    assert ", ".join(workload.name for workload in benchmark.WORKLOADS) in text


def test_threads_replace_each_workloads_own():
    assert {workload.threads for workload in benchmark.choose_workloads(())} == {1, 2}
    assert {workload.threads for workload in benchmark.choose_workloads((), threads=3)} == {3}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workloads", "nope"], "no workload 'nope': choose from pendulum-64, "),
        (["--repeats", "4"], "--repeats must be at least 5, got 4"),
        (["--quick", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--sbx-python", "/nowhere/python"], "--sbx-python /nowhere/python cannot be run"),
        (["--sbx-python", sys.executable], "has no SBX: run"),
    ],
)
def test_mistakes_are_refused_with_nothing_written(args, message, tmp_path, capsys):
    assert main(["benchmark", "--out", str(tmp_path / "out"), *args]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["benchmark", "--quick", "--out", str(tmp_path)]) == 2
    assert "not empty: name another folder, or add --overwrite" in capsys.readouterr().err


def test_a_process_answers_and_its_end_is_explained():
    worker = WorkerProcess(sys.executable, job(EAGER))
    try:
        assert worker.ask("memory")["peak_mib"] < 100  # nothing is imported before it is needed
        with pytest.raises(RuntimeError, match="AttributeError: 'Competitor' object has no attribute 'nope'"):
            worker.ask("nope")
    finally:
        worker.close()
    worker = WorkerProcess(sys.executable, {"threads": 1, "kind": EAGER})
    worker._process.kill()
    with pytest.raises(RuntimeError, match="its process ended: no message"):
        worker.ask("prepare")
    worker.close()
    assert worker._process.returncode is not None


def test_the_worker_needs_nothing_of_this_package():
    source = (
        f"import runpy, sys; runpy.run_path({benchmark_worker.__file__!r}); "
        "sys.exit(any(name.startswith(('sb3_simple_ddpg', 'torch', 'stable_baselines3')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", source], check=False).returncode == 0


@pytest.fixture
def plain_only(monkeypatch):
    """Compiling takes half a minute; its own tests do it."""
    monkeypatch.chdir(HERE)  # the workers find tests.environments
    monkeypatch.setattr(benchmark, "WORKLOADS", (TINY,))
    monkeypatch.setattr(Workload, "competitors", (EAGER, SB3, SBX))


@pytest.mark.long
def test_a_quick_run_writes_every_file_and_marks_it(plain_only, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "find_sbx", lambda python: None)
    args = ["--quick", "--repeats", "1", "--steps", "4", "--out", str(tmp_path)]
    assert main(["benchmark", *args]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.md", "benchmark.png"}
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["note"] == benchmark.QUICK
    assert benchmark.QUICK in (tmp_path / "benchmark.md").read_text()
    assert benchmark.QUICK in capsys.readouterr().out
    (workload,) = content["workloads"]
    for name in (EAGER, SB3):
        (repeat,) = workload["repeats"][name]
        assert (repeat["count"], repeat["gradient_steps"]) == (4, 4)
        assert workload["competitors"][name]["peak_mib"] > 50
        assert workload["competitors"][name]["versions"]["torch"] == version("torch")
    assert "--sbx-python" in workload["competitors"][SBX]["missing"]


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_says_that_there_is_no_gpu(capsys):
    assert gpu_check.main([]) == 2
    assert "finds no GPU here" in capsys.readouterr().err


@pytest.mark.long
def test_what_gpu_check_claims_holds_on_the_cpu(capsys):
    assert gpu_check.main(["--device", "cpu", "--no-speed"]) == 0
    assert capsys.readouterr().out.count("holds ") == len(gpu_check.CLAIMS)


def test_gpu_check_tells_a_claim_that_does_not_hold(capsys, monkeypatch):
    def broken(device: str) -> tuple[bool, str]:
        """It breaks."""
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_check, "CLAIMS", (broken,))
    assert gpu_check.main(["--device", "cpu", "--no-speed"]) == 1
    assert "FAILS  It breaks. RuntimeError: out of memory." in capsys.readouterr().out


def test_cold_start_counts_the_runs_that_reached_the_return():
    runs = [(30.0, 4000, -150.0), (50.0, 6000, -199.0), (99.0, 30_000, -900.0)]
    table = cold_start.lines({"a": runs, "b": runs[2:]})
    assert table == [["a", "40 (30-50)", "5,000", "2 of 3"], ["b", "-", "-", "0 of 1"]]


def test_scaling_draws_costs_against_the_floor():
    rows = benchmark.summarize(some_results())
    points = [{"axis": "width", "size": size, "competitors": rows} for size in (64, 128)]
    panel = scaling.draw_scaling(points, "quick").axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in panel.lines} == {
        EAGER: pytest.approx([6.0, 6.0]),
        SB3: pytest.approx([12.0, 12.0]),
        "floor: ten products": pytest.approx([3.0, 3.0]),
    }


def test_scaling_writes_every_size_of_every_axis(tmp_path, monkeypatch):
    measured = []

    def measure(workload, settings, competitors):
        measured.append((workload, competitors))
        return some_results()

    monkeypatch.setattr(benchmark, "measure", measure)
    scaling.run(Settings(), tmp_path, Console(quiet=True))
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert [(point["axis"], point["size"]) for point in points][-1] == ("width", 1024)
    assert len(points) == len(measured) == 8 + 5 + 4 + 5
    assert {workload.batch_size for workload, _ in measured} == {32, 64, 128, 256, 512, 1024, 2048, 4096}
    assert max(workload.buffer_size for workload, _ in measured if workload.filled) == 1_000_000
    assert {workload.n_envs for workload, _ in measured if workload.gradient_steps == 0} == {1, 4, 16, 64}
    assert all(SBX not in competitors for _, competitors in measured)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.json", "scaling.md", "scaling.png"}
