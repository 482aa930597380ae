"""`simple-ddpg compare` as a user types it, and what its summary says. Not here: runs (test_experiment.py)."""

import inspect
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.experiment import comparison, experiment, plotting
from sb3_simple_ddpg.experiment import display as experiment_display
from sb3_simple_ddpg.experiment import folder as experiment_folder
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment.algorithms import find_algorithms
from sb3_simple_ddpg.experiment.experiment import Experiment
from sb3_simple_ddpg.experiment.statistics import Interval
from sb3_simple_ddpg.experiment.worker import Job
from tests.test_cli import wait_for, without_coverage
from tests.test_experiment import BANDIT, HereEngine

SMALL = ["--env", BANDIT, "--timesteps", "40", "--eval-every", "20", "--eval-episodes", "2", "--jobs", "1"]
SMALL += ["--set", "policy_kwargs.net_arch=[8]", "buffer_size=500", "batch_size=8", "learning_starts=10"]


@pytest.fixture
def with_pictures(monkeypatch) -> HereEngine:
    engine = HereEngine()
    monkeypatch.setattr(experiment, "_engine", lambda *_: engine)
    return engine


@pytest.fixture
def here(with_pictures, monkeypatch) -> HereEngine:
    """Without pictures, which take most of the time of a short comparison."""
    monkeypatch.setattr(comparison_report, "draw", lambda *_: {})
    return with_pictures


def compare(*args: str) -> int:
    return main(["compare", *SMALL, *args])


def test_compare_writes_its_files_and_ends_with_the_table(with_pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare("--seeds", "2", "--set", "all.action_noise=0.1", "--threshold", "0", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 runs done, 0 running, 0 failed" in printed
    assert "IQM of final return" in printed
    assert "too few seeds to tell simple_ddpg from ddpg" in printed
    assert f"Everything lies in {out}" in printed
    assert {path.name for path in out.iterdir()} == {
        ".lock", "config.json", "results", *comparison_report.FILES,
    }  # fmt: skip
    header, *rows = (out / "runs.csv").read_text().splitlines()
    assert header == "algorithm,env_id,seed,timestep,episode_return,wall_time_s"
    assert len(rows) == 160  # an episode of the bandit is one step
    assert len((out / "evaluations.csv").read_text().splitlines()) == 1 + 4 * 3
    summary = json.loads((out / "summary.json").read_text())
    table = summary["environments"][BANDIT]
    assert (table["threshold"], table["threshold_source"], table["reference"]) == (0.0, "--threshold", "simple_ddpg")
    assert table["algorithms"]["ddpg"]["runs"] == 2
    page = (out / "summary.md").read_text()
    for part in (
        " all.action_noise=0.1 --eval-every 20 ",
        "identical settings, noise included",
        "torch 2",
        "cores:",
        "seeds (0, 1)",
    ):
        assert part in page
    for picture in comparison_report.PICTURES:
        assert f"({picture}.png)" in page
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{picture}.svg").read_text()


def test_settings_in_which_algorithms_differ_are_printed_and_stored(here, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--algorithms", "simple_ddpg", "slow=sb3_simple_ddpg:SimpleDDPG", "--set", "slow.learning_rate=1e-5"]
    assert compare("--seeds", "2", *args, "--out", str(out)) == 0
    assert "learning_rate: simple_ddpg 0.001, slow 1e-05" in capsys.readouterr().out
    assert "| learning_rate | 0.001 | 1e-05 |" in (out / "summary.md").read_text()
    stored = json.loads((out / "summary.json").read_text())["plan"]["differing"][BANDIT]
    assert stored == {"learning_rate": {"simple_ddpg": 0.001, "slow": 1e-05}}


def test_resume_takes_the_stored_settings_and_first_seed_gives_fresh_seeds(here, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert compare("--seeds", "2", "--first-seed", "5", *out) == 0
    assert [job.seed for job in here.done] == [5, 5, 6, 6]
    here.done.clear()
    assert main(["compare", "--resume", "--seeds", "3", *out]) == 0
    assert sorted(job.key for job in here.done) == [("ddpg", BANDIT, 7), ("simple_ddpg", BANDIT, 7)]
    assert here.done[0].timesteps == 40
    here.done.clear()
    assert main(["compare", "--resume", *out, "--set", "gamma=0.5"]) == 2
    assert "gamma was 0.99 and is now 0.5" in capsys.readouterr().err
    assert compare("--seeds", "2", *out) == 2
    assert "is not empty: name another folder, or add --overwrite" in capsys.readouterr().err
    assert here.done == []
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert compare("--seeds", "2", *out, "--overwrite") == 0
    assert [job.seed for job in here.done] == [0, 0, 1, 1]
    assert (tmp_path / "out" / "mine.txt").exists()
    assert len(list((tmp_path / "out" / "results").iterdir())) == 4


def test_arguments_of_environments_are_given_to_all_or_to_one_and_used_again(here, tmp_path, capsys):
    out = tmp_path / "out"
    of_env = ["max_episode_steps=4", f"{BANDIT}.best=0.5", "Pendulum-v1.g=5"]
    envs = ["--env", BANDIT, "Pendulum-v1", "--env-kwargs", *of_env]
    expected = {BANDIT: {"max_episode_steps": 4, "best": 0.5}, "Pendulum-v1": {"max_episode_steps": 4, "g": 5}}
    assert compare("--seeds", "2", *envs, "--algorithms", "simple_ddpg", "--out", str(out)) == 0
    assert {job.env_id: job.env_kwargs for job in here.done} == expected
    page = (out / "summary.md").read_text()
    assert "Pendulum-v1 is made with `max_episode_steps=4`, `g=5`." in page
    assert f"--env-kwargs max_episode_steps=4 {BANDIT}.best=0.5 Pendulum-v1.g=5 " in page
    here.done.clear()
    assert main(["compare", "--resume", "--seeds", "3", "--out", str(out)]) == 0
    assert {job.env_id: job.env_kwargs for job in here.done} == expected
    here.done.clear()
    assert main(["compare", "--resume", "--env-kwargs", "Pendulum-v1.g=9", "--out", str(out)]) == 2
    assert "env_kwargs of Pendulum-v1 was" in capsys.readouterr().err
    assert here.done == []


def test_the_table_has_success_where_the_environment_tells(here, tmp_path, capsys):
    out = tmp_path / "out"
    env = "tests.environments:TestGoal-v0"
    # Tiny rewards: 1e-4 of the bandit's, at most 1e-4.
    assert compare("--env", env, "--env-kwargs", "scale=1e-4", "--seeds", "2", "--out", str(out)) == 0
    assert "success rate" in capsys.readouterr().out
    row = json.loads((out / "summary.json").read_text())["environments"][env]["algorithms"]["ddpg"]
    evaluations = pd.read_csv(out / "evaluations.csv")
    last = evaluations[(evaluations.algorithm == "ddpg") & (evaluations.timestep == 40)]
    assert row["success_rate"][0] == pytest.approx(last.success_rate.mean())
    head, _, *rows = (out / "summary.md").read_text().partition("## tests")[2].splitlines()[2:6]
    place = head.split(" | ").index("mean")
    shown = [float(each.split(" | ")[place].split(" ")[0]) for each in rows]
    means = [
        evaluations[(evaluations.algorithm == name) & (evaluations.timestep == 40)].mean_return.mean()
        for name in ("simple_ddpg", "ddpg")
    ]
    # At least three digits of the largest.
    assert shown == pytest.approx(means, abs=0.005 * max(map(abs, means)))
    capsys.readouterr()
    assert compare("--seeds", "2", "--out", str(tmp_path / "silent")) == 0
    assert "success rate" not in capsys.readouterr().out


def test_a_failed_run_is_in_the_summary_and_in_the_exit_status(here, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--algorithms", "simple_ddpg", "broken=tests.test_experiment:Fails", "--seeds", "3", "--out", str(out)]
    assert compare(*args) == 1
    printed = capsys.readouterr().out
    assert f"FAILED: broken on {BANDIT}, seed 1" in printed
    assert "ZeroDivisionError: seed 1 does not work" in printed
    assert "broken has 2 of 3 runs; the others failed" in printed
    assert "--resume runs them again" in printed
    assert "ZeroDivisionError" in (out / "summary.md").read_text()


def test_when_every_run_of_an_algorithm_fails_the_rest_is_still_summarised(with_pictures, tmp_path):
    out = tmp_path / "out"
    args = ["--algorithms", "simple_ddpg", "broken=tests.test_experiment:AlwaysFails", "--seeds", "2"]
    assert compare(*args, "--out", str(out)) == 1
    table = json.loads((out / "summary.json").read_text())["environments"][BANDIT]
    assert table["algorithms"]["broken"] == {"runs": 0}
    assert len(table["algorithms"]["simple_ddpg"]["iqm"]) == 3
    assert table["against"] == {}
    assert (out / "learning_curves.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--seeds", "0"], "--seeds must be at least 2, got 0"),
        (["--algorithms", "simple_dpg"], "did you mean simple_ddpg"),
        (["--algorithms", "ddpg", "ddpg"], "is given twice"),
        (["--env", "Pendulum-v9"], "'Pendulum-v9' cannot be made"),
        (["--env", "CartPole-v1"], "must be a Box"),
        (["--env-kwargs", "bst=1"], "has no argument 'bst': did you mean best"),
        (["--env-kwargs", "=1"], "--env-kwargs takes name=value"),
        (["--threshold", "high"], "--threshold takes a return, or environment=return, got 'high'"),
        (["--threshold", "nan"], "must be a finite return"),
        (["--threshold", "Ant-v5=3"], "'Ant-v5' takes no part"),
        (["--margin", "0"], "--margin must be above 0 (0.1 for example), got 0"),
        (["--margin", "inf"], "--margin must be above 0 (0.1 for example), got inf"),
        (["--margin", "small"], "--margin takes a share, or environment=return, got 'small'"),
        (["--margin", "Ant-v5=3"], "'Ant-v5' takes no part"),
        (["--eval-every", "41"], "--eval-every must be at most"),
        (["--ray-address", "auto"], "is for --engine ray"),
        (["--resume"], "--resume needs --out"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_mistakes_are_refused_with_nothing_run_or_written(args, message, here, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare(*args) == 2
    assert message in capsys.readouterr().err
    assert here.done == []
    assert list(tmp_path.iterdir()) == []


def test_resume_in_a_folder_without_a_comparison_is_refused(tmp_path, capsys):
    assert main(["compare", "--resume", "--out", str(tmp_path)]) == 2
    assert "holds no comparison that could be resumed" in capsys.readouterr().err


@pytest.mark.long
def test_the_page_on_comparing_names_options_that_exist_and_its_python_runs(here, capsys):
    page = (Path(__file__).parent.parent / "docs" / "compare.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", page))
    assert len(options) > 10
    known = set(inspect.signature(cli.compare).parameters)
    assert {option[2:].replace("-", "_") for option in options} <= known
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block.replace("20_000", "110").replace("seeds=10", "seeds=2"), {})  # less of it: the claim is that it runs
    assert len(here.done) == 4
    assert "simple_ddpg" in capsys.readouterr().out


def test_thresholds_come_from_the_option_the_registry_or_the_table():
    request = comparison.Request(
        env=("Pendulum-v1", "MountainCarContinuous-v0", BANDIT), threshold=("MountainCarContinuous-v0=50",)
    )
    found = comparison._thresholds(request)
    assert found["Pendulum-v1"][0] == -200
    assert found["MountainCarContinuous-v0"] == (50.0, "--threshold")
    assert found[BANDIT][0] is None
    registered = comparison._thresholds(comparison.Request(env=("MountainCarContinuous-v0",)))
    assert registered == {"MountainCarContinuous-v0": (90.0, "Gymnasium's registry")}
    typed = comparison.Request(env=("Pendulum-v1", BANDIT), threshold=(f"{BANDIT}=2", "5"))
    assert comparison._thresholds(typed) == {"Pendulum-v1": (5.0, "--threshold"), BANDIT: (2.0, "--threshold")}


def made_up(finals: dict[str, list[float]], env_ids=("Pendulum-v1",), seconds=(10.0, 20.0)) -> Experiment:
    """An experiment with the given final returns; each run goes from -1000 to it in a straight line, 0 to 100."""
    runs, evaluations = [], []
    for env_id in env_ids:
        for number, (name, values) in enumerate(finals.items()):
            for seed, final in enumerate(values):
                spent = seconds[number % len(seconds)] + 0.1 * seed
                runs.append([name, env_id, seed, 100, final, spent, spent])
                evaluations += [
                    [name, env_id, seed, step, -1000 + (final + 1000) * step / 100, 5, spent * step / 100]
                    for step in range(0, 101, 10)
                ]
    plan = {
        "algorithms": dict.fromkeys(finals, "x:X"), "env_ids": list(env_ids),
        "seeds": list(range(max(map(len, finals.values())))), "timesteps": 100, "eval_every": 10, "eval_episodes": 5,
        "threads": 1, "settings": {env_id: {name: {} for name in finals} for env_id in env_ids},
        "differing": {env_id: {} for env_id in env_ids}, "engine": "local", "versions": {"torch": "2"},
        "machine": {"processor": "P", "cores": 1, "system": "S"}, "command": "simple-ddpg compare",
        "random_returns": dict.fromkeys(env_ids, -1200.0),
    }  # fmt: skip
    columns = ["algorithm", "env_id", "seed"]
    return Experiment(
        pd.DataFrame([], columns=[*columns, "timestep", "episode_return", "wall_time_s"]),
        pd.DataFrame(evaluations, columns=[*columns, "timestep", "mean_return", "episodes", "wall_time_s"]),
        pd.DataFrame(runs, columns=[*columns, "timesteps", "final_return", "wall_time_s", "cpu_time_s"]),
        [],
        plan,
    )


PENDULUM = {"Pendulum-v1": (-200.0, "x")}


def test_summary_holds_the_numbers_of_each_algorithm():
    one = [-100.0, -150.0, -250.0, -300.0]
    summary = comparison.summarise(made_up({"a": one, "b": [-700.0] * 4}), PENDULUM)
    table = summary["environments"]["Pendulum-v1"]
    row = table["algorithms"]["a"]
    assert row["iqm"].estimate == -200.0  # of -150 and -250
    assert row["mean"].estimate == row["median"].estimate == -200.0
    # Normalised (1000 from random actions to the threshold): 1.1, 1.05, 0.95, 0.9; the gap (0 + 0 + 0.05 + 0.1) / 4.
    assert row["optimality_gap"].estimate == pytest.approx(0.0375)
    assert row["solved"].estimate == 0.5
    # Straight lines from -1000: the area is the middle between start and end; IQM of -550, -575, -625, -650.
    assert row["area_under_curve"].estimate == pytest.approx(-600.0)
    # To -200: after 800 / 900 and 800 / 850 of the way, so at 90 and 100; two never: the median lies beyond.
    assert row["reached"] == 2
    assert row["timesteps_to_threshold"].estimate == math.inf
    assert table["against"]["b"]["improvement"].estimate == 1.0
    assert table["against"]["b"]["margin"] == pytest.approx(100.0)
    assert table["against"]["b"]["speed_ratio"].estimate == pytest.approx(2.0, rel=0.02)


def sentences(finals: dict[str, list[float]], **kwargs) -> str:
    return "\n".join(comparison.summarise(made_up(finals, **kwargs), PENDULUM)["sentences"])


def test_summary_says_plainly_who_won_who_lost_and_what_cannot_be_told():
    good = list(np.linspace(-160, -140, 10))
    bad = list(np.linspace(-400, -300, 10))
    noisy = list(np.linspace(-1000, -100, 10))
    assert "a is better than b (p = " in sentences({"a": good, "b": bad})
    assert "a is worse than b (p = " in sentences({"a": bad, "b": good})
    same = sentences({"a": good, "b": [value + 1 for value in good]})
    assert "a and b are statistically the same" in same
    assert "differ by less than 100" in same
    shifted = sentences({"a": noisy, "b": [value + 40 for value in noisy]})
    assert "no difference between a and b is shown" in shifted
    assert "is not shown either" in shifted
    few = sentences({"a": good[:3], "b": bad[:3]})
    assert "too few seeds to tell a from b: whatever the returns, p cannot fall below 0.1" in few
    assert "3 runs span the true median only 75 times in 100" in few  # 1 - 2 / 2^3
    assert "too few seeds to call it faster or slower" in few
    assert "With 8 seeds the intervals are rough" in sentences({"a": good[:8], "b": bad[:8]})
    close = sentences({"a": good, "b": [value - 30 for value in good]})
    assert "a is better than b" in close
    assert "though their means differ by less than 100" in close
    assert "a trains 1.96 times as fast as b" in sentences({"a": good, "b": bad})
    assert "a trains 0.51 times as fast as b" in sentences({"a": good, "b": bad}, seconds=(20.0, 10.0))


def test_the_margin_of_equivalence_is_not_chosen_from_the_data():
    """Without a threshold nobody has said which differences matter, however well the best of the runs does."""
    good = list(np.linspace(-160, -140, 10))
    made = made_up({"a": good, "b": [value + 1 for value in good]})
    found = comparison.summarise(made, {"Pendulum-v1": (None, "none")})
    row = found["environments"]["Pendulum-v1"]["against"]["b"]
    assert (row["margin"], row["equivalence_p_value"], row["equivalent"]) == (None, None, False)
    assert row["verdict"] == "no difference shown"
    assert "No margin given: equivalence not judged." in "\n".join(found["sentences"])
    page = comparison_report.page(made, found, [])
    assert "Pendulum-v1 none given, equivalence not judged" in page
    # A margin of the plan counts, whatever the threshold.
    made.plan["margins"] = {"Pendulum-v1": 40.0}
    for thresholds in (PENDULUM, {"Pendulum-v1": (None, "none")}):
        found = comparison.summarise(made, thresholds)
        assert found["environments"]["Pendulum-v1"]["against"]["b"]["margin"] == 40.0
        assert "differ by less than 40" in "\n".join(found["sentences"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        # Random actions score -1200: a tenth of the 1000 to -200, of the 1210 to 10; none without a threshold.
        ((), {"Pendulum-v1": 100.0, "A-v0": 121.0, "B-v0": None}),
        (("0.05",), {"Pendulum-v1": 50.0, "A-v0": 60.5, "B-v0": None}),
        (("B-v0=7",), {"Pendulum-v1": 100.0, "A-v0": 121.0, "B-v0": 7.0}),
        (("0.2", "A-v0=1e-3"), {"Pendulum-v1": 200.0, "A-v0": 0.001, "B-v0": None}),
    ],
)
def test_a_margin_is_a_share_of_what_can_be_learned_or_a_return(typed, expected):
    request = comparison.Request(env=("Pendulum-v1", "A-v0", "B-v0"), margin=typed)
    thresholds = {"Pendulum-v1": (-200.0, ""), "A-v0": (10.0, ""), "B-v0": (None, "none")}
    random_returns = dict.fromkeys(thresholds, -1200.0)
    assert comparison._margins(request, thresholds, random_returns) == pytest.approx(expected)
    # Not where random actions do as well as the threshold, or nobody knows how well they do.
    assert comparison._margins(request, thresholds, {**random_returns, "Pendulum-v1": -200.0})["Pendulum-v1"] is None
    assert comparison._margins(request, thresholds, {**random_returns, "Pendulum-v1": None})["Pendulum-v1"] is None


def test_the_margin_is_recorded_before_the_runs_and_stays(here, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare("--seeds", "2", "--margin", f"{BANDIT}=0.25", "--out", str(out)) == 0
    plan = json.loads((out / "config.json").read_text())
    assert plan["margins"] == {BANDIT: 0.25}
    assert f"--margin {BANDIT}=0.25" in plan["command"]
    resume = ["compare", "--resume", "--out", str(out)]
    here.done.clear()
    for changed in (["--margin", "0.2", f"{BANDIT}=0.5"], ["--margin", f"{BANDIT}=1"]):
        capsys.readouterr()
        assert main([*resume, "--seeds", "3", *changed]) == 2
        assert "was 0.25 when the comparison was begun and is now" in capsys.readouterr().err
    assert here.done == []
    # A threshold says who solves the task, and nothing about the margin.
    assert main([*resume, "--seeds", "3", "--threshold", "0"]) == 0
    assert json.loads((out / "summary.json").read_text())["margins"] == {BANDIT: 0.25}
    assert json.loads((out / "config.json").read_text())["margins"] == {BANDIT: 0.25}
    # Another environment may come with a margin of its own.
    more = ["--env", BANDIT, "Pendulum-v1", "--margin", "Pendulum-v1=3"]
    more += ["--env-kwargs", "Pendulum-v1.max_episode_steps=4"]
    assert main([*resume, *more]) == 0
    assert json.loads((out / "config.json").read_text())["margins"] == {BANDIT: 0.25, "Pendulum-v1": 3.0}


def test_without_a_margin_it_is_said_before_the_runs_and_after(here, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare("--seeds", "2", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert f"{BANDIT}: no margin given, so equivalence will not be judged." in said
    assert json.loads((out / "config.json").read_text())["margins"] == {BANDIT: None}
    # A threshold that comes after the runs makes no margin.
    assert main(["compare", "--resume", "--threshold", "1", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["margins"] == {BANDIT: None}


def test_a_folder_of_before_margins_were_recorded_is_read_and_goes_on(here, tmp_path):
    """Its share was a number, and its threshold was known before the runs."""
    out = tmp_path / "out"
    assert compare("--seeds", "2", "--threshold", "1", "--margin", "0.2", "--out", str(out)) == 0
    plan = json.loads((out / "config.json").read_text())
    (margin,) = plan.pop("margins").values()
    assert margin == pytest.approx(0.2 * (1 - plan["random_returns"][BANDIT]))
    plan["request"]["margin"] = 0.2
    del plan["request"]["env_kwargs"], plan["env_kwargs"]
    (out / "config.json").write_text(json.dumps(plan))
    assert main(["compare", "--resume", "--seeds", "3", "--threshold", "0.5", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["margins"] == {BANDIT: margin}
    plan["request"]["of_the_future"] = 1
    (out / "config.json").write_text(json.dumps(plan))
    assert main(["compare", "--resume", "--out", str(out)]) == 2


def test_several_algorithms_are_compared_with_the_first_and_p_is_corrected():
    finals = {name: list(np.linspace(low, low + 20, 5)) for name, low in (("a", -160), ("b", -400), ("c", -500))}
    against = comparison.summarise(made_up(finals), PENDULUM)["environments"]["Pendulum-v1"]["against"]
    assert list(against) == ["b", "c"]
    # Separated: p = 2 / 252 twice; Holm: the first times 2, the second not below it.
    assert [row["p_value_holm"] for row in against.values()] == pytest.approx([4 / 252, 4 / 252])


def test_a_difference_that_the_correction_takes_away_is_not_claimed():
    """Four against four, separated: p = 0.029 alone, 0.057 when it is one of two tests."""
    highest = [-100.0, -200.0, -300.0, -400.0]
    finals = {"a": highest, "b": [value - 500 for value in highest], "c": [value - 400 for value in highest]}
    against = comparison.summarise(made_up(finals), PENDULUM)["environments"]["Pendulum-v1"]["against"]
    assert against["b"]["p_value"] == pytest.approx(2 / 70)
    assert against["b"]["verdict"] == "too few runs"  # 2 tests at 2 / 70 each: no return could have done it


def test_several_environments_have_an_aggregate_of_normalised_returns(tmp_path):
    envs = ("Pendulum-v1", "Other-v0")
    made = made_up({"a": [-200.0, -200.0, -200.0], "b": [-700.0, -700.0, -700.0]}, env_ids=envs)
    summary = comparison.summarise(made, {**PENDULUM, "Other-v0": (None, "none")})
    # Pendulum: 1 and 0.5 (threshold -200); the other the same, the best mean being -200.
    rows = summary["aggregate"]["algorithms"]
    assert rows["a"]["iqm"] == Interval(1.0, 1.0, 1.0)
    assert rows["b"]["optimality_gap"] == Interval(0.5, 0.5, 0.5)
    assert summary["aggregate"]["improvement"]["b"].estimate == 1.0
    comparison_report.write_summary(tmp_path, made, summary)
    page = (tmp_path / "summary.md").read_text()
    assert "## All environments" in page
    assert "the best algorithm's mean" in page
    assert "Infinity" not in (tmp_path / "summary.json").read_text()


def test_pictures_show_the_numbers_and_can_be_told_apart_in_grey():
    made = made_up({"a": [-200.0, -100.0, -300.0], "b": [-700.0, -600.0, -650.0]})
    figures = comparison_report.draw(made, comparison.summarise(made, PENDULUM))
    assert list(figures) == list(comparison_report.PICTURES)
    by_steps, by_seconds = figures["learning_curves"].axes
    lines = {line.get_label(): line for line in by_steps.lines}
    assert lines["a"].get_ydata()[[0, -1]].tolist() == [-1000, -200]
    assert lines["a"].get_linestyle() != lines["b"].get_linestyle()
    assert lines["a"].get_marker() != lines["b"].get_marker()
    assert lines["threshold"].get_ydata()[0] == -200
    # Against seconds up to the end of the shortest run: 10 s of a, 20 s of b.
    assert [line.get_xdata()[-1] for line in by_seconds.lines[:2]] == [10.0, 20.0]
    assert "timesteps" in by_steps.get_xlabel()
    assert "seconds" in by_seconds.get_xlabel()
    profile = figures["performance_profile"].axes[0].lines[0].get_xydata()
    share = profile[np.searchsorted(profile[:, 0], -150.0), 1]
    assert share == pytest.approx(1 / 3)  # only -100 lies above -150
    assert "a against b" in [
        text.get_text() for text in figures["probability_of_improvement"].axes[0].get_yticklabels()
    ]


def test_the_legend_names_an_algorithm_that_has_no_run_on_the_first_environment():
    made = made_up({"a": [-200.0], "b": [-700.0]}, env_ids=("Pendulum-v1", "Other-v0"))
    evaluations = made.evaluations[(made.evaluations.env_id != "Pendulum-v1") | (made.evaluations.algorithm != "a")]
    (legend,) = plotting.plot_learning_curves(evaluations).legends
    assert sorted(text.get_text() for text in legend.texts) == ["a", "b"]


def test_the_looks_differ_in_lightness():
    """In grey only lightness is left; neighbours differ by a tenth of the scale at least."""
    rgb = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in plotting._COLOURS]
    lightness = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in rgb]
    assert min(abs(one - other) for one, other in itertools.pairwise(lightness)) > 0.1


def test_display_counts_and_estimates_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(experiment_display.time, "monotonic", lambda: now[0])
    output = io.StringIO()
    display = experiment_display.Display(Console(file=output, width=200), live=False)
    algorithm = find_algorithms(["ddpg"])[0]
    jobs = [Job(algorithm, {}, "E-v0", seed, 10, 5, 1) for seed in range(4)]
    display.begin(jobs, finished=1, parallel=2)
    display.started(jobs[0])
    display.started(jobs[1])
    assert display.status() == "1 of 5 runs done, 2 running, 0 failed"
    now[0] = 60.0
    display.ended(jobs[0], {"evaluations": [[10, 50.0, [1.0]]], "wall_time_s": 50.0})
    # One run is done and one is going on, which counts as half: 1.5 in 60 s; 2.5 are left.
    assert display.status() == "2 of 5 runs done, 1 running, 0 failed, about 0:01:40 left"
    now[0] = 70.0
    assert display.status().endswith("about 0:01:30 left")
    display.ended(jobs[1], {"error": "why"})
    # Two in 70 s, two are left.
    assert display.status() == "3 of 5 runs done, 0 running, 1 failed, about 0:01:10 left"
    assert "FAILED: ddpg on E-v0, seed 1\nwhy" in output.getvalue()


def test_display_on_a_terminal_is_one_line_that_changes():
    output = io.StringIO()
    display = experiment_display.Display(Console(file=output, width=120, force_terminal=True))
    job = Job(find_algorithms(["ddpg"])[0], {}, "E-v0", 0, 10, 5, 1)
    with display.shown():
        display.begin([job], finished=0, parallel=1)
        display.started(job)
        display.ended(job, {"evaluations": [[10, 50.0, [1.0]]], "wall_time_s": 50.0})
    assert "1 of 1 runs done, 0 running, 0 failed" in output.getvalue()


@pytest.mark.long
def test_a_killed_comparison_goes_on_repeats_nothing_and_loses_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", *SMALL, "--seeds", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_simple_ddpg", *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    try:
        wait_for(lambda: len(list(out.glob("results/*.json"))) == 1, 120)
        # Meanwhile nobody else may write there.
        assert main(["compare", "--resume", "--out", str(out)]) == 2
        assert "Another process writes into" in capsys.readouterr().err
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("results/*.json")}
    assert 1 <= len(finished) < 4
    assert main(["compare", "--resume", "--out", str(out)]) == 0
    assert f"{len(finished)} of them finished before" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished
    assert len(list(out.glob("results/*.json"))) == 4
    assert len(experiment.read_experiment(out).runs) == 4
    assert (out / "summary.md").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_and_keeps_the_folder_for_resume(tmp_path):
    out = tmp_path / "out"
    args = ["--env", "Pendulum-v1", "--seeds", "2", "--timesteps", "100000", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_simple_ddpg", "compare", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=without_coverage(),
        start_new_session=True,
        # Whoever runs the tests in the background has had it ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for(lambda: (out / "config.json").exists(), 180)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # nothing of the group is left
        wait_for(lambda: bool(os.killpg(process.pid, 0)), 60)
    with experiment_folder.locked(Path(out)):
        pass
