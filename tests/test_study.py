"""The study in docs/study: what it tries, that it runs, and that its page says what the records say.

Not here: the formulas (`test_statistics.py`) and the runs (`test_experiment.py`).
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cloudpickle
import numpy as np
import pytest

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.experiment import engines
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment.worker import execute_or_explain

FOLDER = Path(__file__).parent.parent / "docs" / "study"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_run", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(study):
    assert (FOLDER / "summary.md").read_text("utf-8") == study.page(study.finished())


def test_what_is_written_by_hand_says_what_the_records_say(study):
    written = (FOLDER.parent / "study.md").read_text("utf-8")
    table = study.final_tables(study.finished()["final"]).partition("\n\n")[0]
    assert table.count("\n") == 6
    assert table in written
    fallen = {"base": 4, "n3-one-rate": 8, "combined-n3": 0, "n3-slower": 0}
    for stage, names in (("networks", ("base", "n3-one-rate")), ("networks-slower", ("combined-n3", "n3-slower"))):
        for name in names:
            pendulum, inverted = (
                study.returns_of(FOLDER / f"{stage}-{task}", name) for task in ("pendulum", "inverted-pendulum")
            )
            # Under the largest force the pole of InvertedPendulum falls at the second timestep.
            assert (inverted == 2).sum() == fallen[name]
            cells = f"| {(inverted >= 950).sum()} of 10 | {fallen[name]} | {(pendulum >= -200).sum()} of 10 |"
            assert f"(`{name}`) {cells}" in written


def test_the_final_comparison_and_what_it_was_chosen_by_share_no_seed(study):
    chosen_by = {
        seed for each in study.ROUNDS.values() for seed in range(each.first_seed, each.first_seed + each.seeds)
    }
    assert all(set(range(task.seeds)).isdisjoint(chosen_by) for task in study.TASKS)
    assert all(task.seeds >= 10 for task in study.TASKS)


def test_an_arm_that_is_the_base_of_a_task_is_not_run_twice(study):
    for task in study.TASKS:
        arguments = study.screening(task)
        assert ("noise-ou=sb3_simple_ddpg:SimpleDDPG" in arguments) is (task.folder != "mountain-car")
        assert ("noise-0_1=sb3_simple_ddpg:SimpleDDPG" in arguments) is (task.folder == "mountain-car")


@pytest.mark.long
def test_a_small_study_runs_from_commands_to_tables(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison_report, "draw", lambda *_: {})
    monkeypatch.setattr(engines, "usable_cores", lambda: 1)
    monkeypatch.setattr(engines.LocalEngine, "run", lambda _, job: execute_or_explain(cloudpickle.dumps(job)))
    monkeypatch.setitem(presets.PRESETS, "robust", {"learning_rate": 3e-4})
    small = {"screened": 150, "timesteps": 200, "baseline": None, "compared_at": None, "seeds": 2}
    small["options"] = ("--eval-episodes", "1", "--threshold", "-200")
    monkeypatch.setattr(study, "HERE", tmp_path / "study")
    monkeypatch.setattr(study, "TASKS", [replace(task, **small) for task in study.TASKS[:2]])
    changes = {
        "screening": ("base", "noise-0_1", "noise-schedule"),
        "combinations": ("n3-tau-0_01",),
        "reliability": ("base",),
        "networks": ("base",),
        "networks-slower": ("n3-slower",),
    }
    rounds = {name: replace(study.ROUNDS[name], changes=each, seeds=2) for name, each in changes.items()}
    rounds["reliability"] = replace(rounds["reliability"], options=("--eval-every", "150", "--eval-episodes", "2"))
    monkeypatch.setattr(study, "ROUNDS", rounds)
    monkeypatch.setattr(study, "FAST", ())
    final = study.final
    monkeypatch.setattr(study, "final", lambda task: [each for each in final(task) if "compile_updates" not in each])
    monkeypatch.setattr(sys, "argv", ["run.py", "--work", str(tmp_path / "work")])
    study.main()
    page = (tmp_path / "study" / "summary.md").read_text("utf-8")
    first, second = study.TASKS
    own, their = (
        [study.returns_of(tmp_path / "study" / f"final-{task.folder}", name) for task in (first, second)]
        for name in ("robust", "ddpg")
    )
    wins = [np.mean([[float(a > b) for b in other] for a in mine]) for mine, other in zip(own, their, strict=True)]
    assert f"All 2 environments: a run of `robust` beats one of SB3's DDPG with probability {np.mean(wins):.2f}" in page
    assert "| noise-schedule | " in page
    assert "| n3-tau-0_01 | " in page
    failed = study.returns_of(tmp_path / "study" / "reliability-pendulum", "base")
    assert max(failed) < -200  # after 150 timesteps nobody has learned it
    assert f"| {min(failed):.1f} | 0 of 2 |" in page
    assert not (tmp_path / "study" / "reliability-scaled-pendulum").exists()
    capsys.readouterr()
    monkeypatch.setattr(study.cli, "main", lambda _: pytest.fail("what is finished was run again"))
    study.main()
