"""The study in docs/mujoco: it goes on where it was stopped, and its page says what the records say.

Not here: the formulas (`test_statistics.py`) and the runs (`test_experiment.py`).
"""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cloudpickle
import numpy as np
import pytest
import torch as th

from agents import make
from docs.mujoco.rounds import Arm, Round
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import engines, runs, worker
from sb3_simple_ddpg.experiment.algorithms import effective_settings, find_algorithms
from sb3_simple_ddpg.experiment.worker import execute_or_explain
from tests.test_agents import RECORDED

FOLDER = Path(__file__).parent.parent / "docs" / "mujoco"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))  # for `rounds.py` beside it
    spec = importlib.util.spec_from_file_location("mujoco_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mujoco_run", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Two tasks of Pendulum, two arms, one of them on one task alone, two seeds: six runs of 150 timesteps."""
    arms = {
        "default": Arm(("policy_kwargs.net_arch=[8]",)),
        "ddpg": Arm(
            ("policy_kwargs.net_arch=[8]", "action_noise=0.1"), None, "stable_baselines3:DDPG", {"Pendulum-v1": 2}
        ),
    }
    tasks = "Pendulum-v1", "sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1"
    monkeypatch.setattr(study, "ROUNDS", {"final": Round(tasks, arms, ("ddpg",), 150, 75, seeds=2)})
    monkeypatch.setattr(study, "EVAL_EPISODES", 1)
    monkeypatch.setattr(engines.LocalEngine, "run", lambda _, job: execute_or_explain(cloudpickle.dumps(job)))
    return study


def call(study: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> int:
    """The program, with its records in that folder."""
    monkeypatch.setattr(study, "HERE", folder)
    monkeypatch.setattr(sys, "argv", ["run.py", "--jobs", "1", "--work", str(folder / "work"), *options])
    return study.main()


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "work" not in path.parts}


def without_seconds(folder: Path) -> dict[str, str]:
    return {path.name: re.sub(r",[^,\n]*$", "", path.read_text(), flags=re.MULTILINE) for path in folder.rglob("*.csv")}


def test_the_page_is_what_the_records_say(study):
    assert (FOLDER / "summary.md").read_text("utf-8") == study.page()


def test_a_stopped_study_goes_on_and_ends_with_the_same_records(small, tmp_path, monkeypatch, capsys):
    assert call(small, monkeypatch, tmp_path / "at-once") == 0
    begun = []
    run = engines.LocalEngine.run

    def stopped_at_the_fourth(engine, job):
        begun.append(job.key)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return run(engine, job)

    monkeypatch.setattr(engines.LocalEngine, "run", stopped_at_the_fourth)
    assert call(small, monkeypatch, tmp_path / "stopped") == 1
    kept = sum(len(small.lines_of(path)) for path in (tmp_path / "stopped").rglob("*.csv"))
    assert kept == 9  # three runs, each evaluated at 0, 75 and 150
    assert call(small, monkeypatch, tmp_path / "stopped") == 0
    assert len(begun) == 7  # six, and the one that was stopped
    assert len(set(begun)) == 6
    # The first seed of everything comes before the second of anything.
    assert [seed for _, _, seed in begun] == [0, 0, 0, 1, 1, 1, 1]
    assert without_seconds(tmp_path / "stopped") == without_seconds(tmp_path / "at-once")


def test_finished_records_are_left_as_they_are(small, tmp_path, monkeypatch, capsys):
    assert call(small, monkeypatch, tmp_path, "--tasks", "Pendulum-v1") == 0
    before = everything(tmp_path)
    assert set(before) == {"Pendulum-v1.csv", "settings.json", "curves.png", "summary.md"}
    monkeypatch.setattr(engines.LocalEngine, "run", lambda *_: pytest.fail("what is finished was run again"))
    assert call(small, monkeypatch, tmp_path, "--tasks", "Pendulum-v1") == 0
    assert everything(tmp_path) == before


def test_a_long_run_goes_on_from_its_checkpoint_which_goes_when_it_has_ended(small, tmp_path, monkeypatch, capsys):
    rounds = {"final": replace(small.ROUNDS["final"], checkpoint_every=75)}
    monkeypatch.setattr(small, "ROUNDS", rounds)
    only = "--tasks", "Pendulum-v1", "--arms", "default", "--seeds", "0"
    assert call(small, monkeypatch, tmp_path / "at-once", *only) == 0
    play, evaluated = worker.runs.play, []

    def stopped_at_150(model, env, episodes):
        evaluated.append(model.num_timesteps)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return play(model, env, episodes)

    monkeypatch.setattr(worker.runs, "play", stopped_at_150)
    monkeypatch.setattr(engines.LocalEngine, "run", lambda _, job: worker.execute(job))
    assert call(small, monkeypatch, tmp_path / "stopped", *only) == 1
    folder = tmp_path / "stopped" / "work" / "final-Pendulum-v1-default-0"
    assert (folder / "step_75").is_dir()
    assert call(small, monkeypatch, tmp_path / "stopped", *only) == 0
    assert evaluated == [0, 75, 150, 150]
    assert not folder.exists()
    assert without_seconds(tmp_path / "stopped") == without_seconds(tmp_path / "at-once")


def test_curves_are_drawn_by_timesteps_alone(small, tmp_path, monkeypatch, capsys):
    drawn, plot = [], small.plotting.plot_learning_curves
    monkeypatch.setattr(small.plotting, "plot_learning_curves", lambda records: drawn.append(plot(records)) or drawn[0])
    assert call(small, monkeypatch, tmp_path, "--tasks", "Pendulum-v1", "--seeds", "0", "--arms", "default") == 0
    assert [panel.get_xlabel() for panel in drawn[0].axes] == ["timesteps of training"]


def test_a_run_that_fails_has_no_record_and_is_tried_again(small, tmp_path, monkeypatch, capsys):
    run = engines.LocalEngine.run

    def failing(engine, job):
        return {"error": "out of memory"} if job.key == ("default", "Pendulum-v1", 0) else run(engine, job)

    only = "--tasks", "Pendulum-v1", "--seeds", "0"
    monkeypatch.setattr(engines.LocalEngine, "run", failing)
    assert call(small, monkeypatch, tmp_path, *only) == 1
    assert "FAILED: default on Pendulum-v1, seed 0.\nout of memory" in capsys.readouterr().out
    assert [line.partition(",")[0] for line in small.lines_of(tmp_path / "final" / "Pendulum-v1.csv")] == ["ddpg"] * 3
    monkeypatch.setattr(engines.LocalEngine, "run", run)
    assert call(small, monkeypatch, tmp_path, *only) == 0
    names = [line.partition(",")[0] for line in small.lines_of(tmp_path / "final" / "Pendulum-v1.csv")]
    assert names == ["ddpg"] * 3 + ["default"] * 3


def test_other_settings_under_the_same_name_are_refused_before_any_run(small, tmp_path, monkeypatch, capsys):
    assert call(small, monkeypatch, tmp_path, "--seeds", "0", "--arms", "default") == 0
    arms = small.ROUNDS["final"].arms
    monkeypatch.setitem(arms, "default", replace(arms["default"], settings=("gamma=0.9",)))
    monkeypatch.setattr(engines.LocalEngine, "run", lambda *_: pytest.fail("a run began"))
    with pytest.raises(ValueError, match=r"The records of default .*'gamma': 0\.9.*a name of its own"):
        call(small, monkeypatch, tmp_path, "--arms", "default")


def test_the_table_says_last_and_best_and_who_ends_above_whom(study, tmp_path, monkeypatch):
    arms = {"default": Arm(), "ddpg": Arm()}
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "ROUNDS", {"final": Round(("Hopper-v5",), arms, ("ddpg",), 20, 10, seeds=3)})
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "settings.json").write_text(json.dumps({name: {"algorithm": "a:B"} for name in arms}))
    # By seed and timestep. default ends at 30 and 10, its best are 50 and 20; ddpg ends at 20, its only run.
    rows = ["default,0,0,5,0", "default,0,10,50,1", "default,0,20,30,2", "default,1,0,20,0", "default,1,20,10,2"]
    (tmp_path / "final" / "Hopper-v5.csv").write_text(
        "\n".join([",".join(study.COLUMNS), *rows, "ddpg,0,0,1,0", "ddpg,0,20,20,2"]) + "\n"
    )
    records = study.records_of("final")
    np.testing.assert_array_equal(study.scores(records, "Hopper-v5", "default"), [30, 10])
    np.testing.assert_array_equal(study.scores(records, "Hopper-v5", "default", best=True), [50, 20])
    page = study.page()
    interval = r"\(\S+ to \S+\)"
    ends = rf"\| Hopper-v5 \| default \| 2 of 3 \| 20\.0 {interval} \| 10\.0, 30\.0 \| 35\.0 {interval} \|  \|"
    assert re.search(ends, page)
    assert "| Hopper-v5 | ddpg | 1 of 3 | 20.0 |  | 20.0 |  |" in page  # one run has no interval and beats nobody
    assert study.median_seed(records, "Hopper-v5", "default") == 1  # of 30 and 10 the lower one
    with (tmp_path / "final" / "Hopper-v5.csv").open("a") as file:
        file.write("ddpg,1,0,1,0\nddpg,1,20,5,2\nddpg,2,20,90,2\n")
    # 30 is above 20 and 5, 10 above 5 alone: three of six.
    assert "| 0.50 (" in study.page()
    assert study.median_seed(study.records_of("final"), "Hopper-v5", "ddpg") == 0


def test_over_the_tasks_without_one_opponent_the_next_stands_in(study, tmp_path, monkeypatch):
    arms = {"new": Arm(), "default": Arm(), "ddpg": Arm(seeds={"Hopper-v5": 2})}
    of_round = Round(("Hopper-v5", "Ant-v5"), arms, ("ddpg", "default"), 20, 10, seeds=2)
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "ROUNDS", {"final": of_round})
    (tmp_path / "final").mkdir()
    # Two runs each. Hopper: new is above both of ddpg, below both of default. Ant: above one of default's two: 1/2.
    ends = {
        "Hopper-v5": {"new": (20, 20), "default": (30, 30), "ddpg": (10, 10)},
        "Ant-v5": {"new": (2, 2), "default": (1, 3)},
    }
    for task, of_arms in ends.items():
        lines = [f"{arm},{seed},20,{end},0" for arm, both in of_arms.items() for seed, end in enumerate(both)]
        (tmp_path / "final" / f"{task}.csv").write_text("\n".join([",".join(study.COLUMNS), *lines]) + "\n")
    table = study.table("final", study.records_of("final"))
    over = "- Over Hopper-v5, Ant-v5: a run of `new` ends above one of"
    assert f"{over} `default` with probability 0.25 (" in table  # mean of 0 and 1/2
    assert f"{over} `ddpg`, or where it has too few runs `default` with probability 0.75 (" in table  # of 1 and 1/2
    assert f"{over} `ddpg` with" not in table  # one task


def test_a_screening_says_how_far_each_change_is_from_the_base(study, tmp_path, monkeypatch):
    arms = {"base": Arm(), "good": Arm(), "bad": Arm()}
    of_round = Round(("Hopper-v5", "Ant-v5"), arms, (), 20, 10, seeds=2, base="base")
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "ROUNDS", {"screening": of_round})
    (tmp_path / "screening").mkdir()
    # Hopper: bad ends at 10, base at 60, good at 110, so 100 is one; base's seed 0 alone has 50.
    # Second halves: 10, 47.5 and 60, so 50 is one; base's seed 0 has 40. Areas: 10, 35 and 35; 25 is one; 30.
    # Ant: base ends at 40, good at 20: 1, 0, and so do the areas. bad has not run there.
    rows = {
        "Hopper-v5": [
            "bad,0,0,10",
            "bad,0,10,10",
            "bad,0,20,10",
            "base,0,0,10",
            "base,0,10,30",
            "base,0,20,50",
            "base,1,0,10",
            "base,1,10,40",
            "base,1,20,70",
            "good,0,0,10",
            "good,0,10,10",
            "good,0,20,110",
        ],
        "Ant-v5": ["base,0,0,0", "base,0,10,20", "base,0,20,40", "good,0,0,0", "good,0,10,10", "good,0,20,20"],
    }
    for task, lines in rows.items():
        text = "\n".join([",".join(study.COLUMNS), *(f"{line},0" for line in lines)])
        (tmp_path / "screening" / f"{task}.csv").write_text(f"{text}\n")
    found = study.screening_table("screening", study.records_of("screening"))
    assert "| base | 50.0, 70.0 / 40.0, 55.0 | 40.0 / 30.0 |  |  |  |" in found
    # Of the seed that both have: (110 - 50) / 100 and -1; (60 - 40) / 50 and -1; (35 - 30) / 25 and -1.
    assert "| good | 110.0 / 60.0 | 20.0 / 15.0 | -0.20 | -0.30 | -0.40 |" in found
    # Hopper alone: (10 - 50) / 100; (10 - 40) / 50; (10 - 30) / 25.
    assert "| bad | 10.0 / 10.0 |  | -0.40 | -0.60 | -0.80 |" in found


def test_the_evidence_in_rl_zoos_file_is_what_the_records_say(study):
    evidence = r"^# own runs: seeds 0 to (\d): mean ([-\d.]+), lowest ([-\d.]+), after 100,000 timesteps .*\n(\S+):"
    lines = (FOLDER.parent.parent / "hyperparams" / "simple_ddpg.yml").read_text("utf-8")
    found = re.findall(evidence, lines, re.MULTILINE)
    assert len(found) == lines.count("(docs/mujoco.md)") > 0
    records = study.records_of("final-100k")
    for last_seed, mean, lowest, task in found:
        ends = study.scores(records, task, "layer-norm")
        assert len(ends) == int(last_seed) + 1, task
        for said, recorded in ((mean, ends.mean()), (lowest, ends.min())):
            assert float(said) == round(recorded, len(said.partition(".")[2])), task


def test_an_agent_with_the_preset_is_the_run_in_the_middle_and_plays_like_one(study):
    records, ours = study.records_of("final-100k"), [each for each in make.AGENTS if "layer-norm" in each.options]
    assert {each.env_id for each in ours} >= RECORDED
    for agent in ours:
        assert (agent.seed, agent.timesteps) == (study.median_seed(records, agent.env_id, "layer-norm"), 100_000)
        measured = json.loads((make.FOLDER / agent.env_id / runs.CONFIG).read_text())["evaluation"]["mean"]
        ends = study.scores(records, agent.env_id, "layer-norm")
        assert ends.min() <= measured <= ends.max(), agent.env_id


@pytest.mark.parametrize("normalize", [False, True])
def test_train_with_the_seed_of_a_record_gives_the_agent_of_that_record(normalize, tmp_path, monkeypatch, capsys):
    models, begin = [], worker._begin
    monkeypatch.setattr(worker, "_begin", lambda *given: models.append(begin(*given)) or models[0])
    arguments = {"policy_kwargs": {"net_arch": [16]}, "normalize_observations": normalize}
    worker.execute(worker.Job(find_algorithms(["simple_ddpg"])[0], arguments, "Pendulum-v1", 5, 400, 100, 3))
    command = ["train", "--env", "Pendulum-v1", "--preset", "default", "--timesteps", "400", "--seed", "5"]
    others = ["--eval-episodes", "0", "--no-progress", "--out", str(tmp_path / "run")]
    settings = ["policy_kwargs.net_arch=[16]", f"normalize_observations={normalize}"]
    assert cli.main([*command, *others, "--set", *settings]) == 0
    of_record, of_train = (each.policy.state_dict() for each in (models[0], runs.load_run(tmp_path / "run")))
    assert models[0]._n_updates == 300
    assert [name for name in of_record if not th.equal(of_record[name], of_train[name])] == []


def test_every_arm_of_the_study_can_be_built(study, tmp_path):
    for name, of_round in study.ROUNDS.items():
        for arm in of_round.arms:
            task = next(each for each in of_round.tasks if of_round.seeds_of(arm, each))
            job = study.Run(name, task, arm, of_round.first_seed).job(tmp_path)
            assert job.timesteps % of_round.eval_every == 0
            assert of_round.checkpoint_every % of_round.eval_every == 0
            assert job.algorithm.name == arm
            assert effective_settings(job.algorithm, task, job.arguments)["policy"] == "MlpPolicy"  # it is built
