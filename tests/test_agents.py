"""The trained agents in `agents/`: each solves its task as its page says, and one command makes them anew.

Not here: how good the settings are over many seeds.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import make
from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.export import load_policy

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in make.FOLDER.glob(f"*/{runs.CONFIG}"))
#: Returns at which a task counts as solved: Gymnasium's, and for Pendulum the customary one.
SOLVED = {"Pendulum-v1": -200.0, "MountainCarContinuous-v0": 90.0, "LunarLanderContinuous-v3": 200.0}
SOLVED |= {"InvertedPendulum-v5": 950.0}
#: Tasks without such a return, or one that takes more timesteps: `test_mujoco.py` compares those agents with records.
RECORDED = {"HalfCheetah-v5", "Reacher-v5"}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / runs.CONFIG).read_text())


def test_every_agent_was_made_by_the_command_that_makes_it_now():
    commands = {agent.env_id: shlex.join(["simple-ddpg", *agent.command]) for agent in make.AGENTS}
    assert FOLDERS
    for folder in FOLDERS:
        assert config_of(folder)["command"] == commands[folder.name]


def test_the_page_is_what_the_files_say():
    assert (make.FOLDER / "README.md").read_text() == make.page(make.FOLDER)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_agent_is_small_and_does_what_its_page_says(folder: Path):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    measured = config_of(folder)["evaluation"]
    assert folder.name in RECORDED or measured["mean"] >= SOLVED[folder.name]
    # Ten episodes more: their mean is within four of its standard errors, and a little for other processors' rounding.
    returns = runs.evaluate_run(folder, 10, seed=77)
    assert abs(np.mean(returns) - measured["mean"]) < 4 * measured["std"] / np.sqrt(10) + 0.01 * abs(measured["mean"])


@pytest.mark.parametrize("policy_alone", [False, True])
def test_make_writes_an_agent_that_evaluate_gives_the_same_returns_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy_alone: bool
):
    settings = ("--set", "policy_kwargs.net_arch=[8]", "buffer_size=500", "batch_size=8", "normalize_observations=True")
    agent = make.Agent("tests.environments:TestBandit-v0", 150, settings, policy_alone=policy_alone)
    make.make(agent, tmp_path)
    folder = tmp_path / "TestBandit-v0"
    kept = {"policy.safetensors"} if policy_alone else {"model.zip", "vecnormalize.pkl"}
    assert {path.name for path in folder.iterdir()} == {"config.json", "monitor.csv", *kept}
    if policy_alone:
        assert load_policy(folder / "policy.safetensors").source["timesteps"] == 150
    else:
        assert SimpleDDPG.load(folder / "model.zip").num_timesteps == 150
    begun = tmp_path / "begun-beside-it"
    begun.mkdir()
    (begun / "config.json").write_text("{}")  # has no evaluation yet
    row = make.page(tmp_path).splitlines()[-3]
    mean, deviation = re.findall(r"\| (-?[\d.]+) ", row)[:2]
    assert f"`simple-ddpg train --env {agent.env_id} --timesteps 150 --seed 0 --set 'policy_kwargs.net_arch=[8]'" in row
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"Evaluation over 100 deterministic episodes: mean return {mean}, standard deviation {deviation}\n"
    )
    with pytest.raises(RuntimeError, match="Training on Nope-v0 failed"):
        make.make(make.Agent("Nope-v0", 150), tmp_path)
