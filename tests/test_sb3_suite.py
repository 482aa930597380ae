"""Tests of the plugin behind `make sb3-suite`, on a small folder of tests made here.

Not here: SB3's own tests; they need a checkout of SB3 and run with `make sb3-suite SB3_REPO=path`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN_FOLDER = Path(__file__).parent / "sb3_suite"
FILE = """
import pytest
from stable_baselines3 import DDPG, PPO, TD3
from sb3_simple_ddpg import SimpleDDPG

TABLE = {"ppo": (PPO, "CartPole-v1"), "td3": (TD3, "Pendulum-v1")}

@pytest.mark.parametrize("model_class", [PPO, TD3, DDPG])
def test_class(model_class):
    kwargs = dict(policy_delay=1) if model_class == TD3 else {}
    assert isinstance(model_class("MlpPolicy", "Pendulum-v1", buffer_size=10, **kwargs), SimpleDDPG)

@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    model_class, env_id = TABLE[name]
    assert isinstance(model_class("MlpPolicy", env_id, buffer_size=10), SimpleDDPG)

def test_direct():
    assert issubclass(TD3, SimpleDDPG)

def test_other():
    assert False, "does not reach a stand-in"
"""


def run_suite(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pytest", "-p", "stand_in", "--import-mode=importlib"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), "-v", str(folder / "tests")]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN_FOLDER)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def write(folder: Path, text: str) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "test_file.py").write_text(text)


@pytest.mark.long
def test_suite_keeps_the_cases_that_reach_a_stand_in_and_counts_them(tmp_path: Path) -> None:
    write(tmp_path, FILE)
    (tmp_path / "tests" / "test_atari.py").write_text("import a_package_that_is_not_there")
    process = run_suite(tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    # Left: two classes, one name in the table, one direct use. Out: PPO twice and the test of neither.
    assert "4 passed, 3 deselected" in process.stdout
    assert "The constructor of SimpleDDPG ran in 3 of 4 cases" in process.stdout
    assert "not in tests/test_file.py::test_direct" in process.stdout


@pytest.mark.long
def test_suite_fails_when_no_test_constructs_a_simple_ddpg(tmp_path: Path) -> None:
    write(tmp_path, "from stable_baselines3 import TD3\n\ndef test_nothing():\n    assert TD3 is not None\n")
    process = run_suite(tmp_path)
    assert "1 passed" in process.stdout
    assert "The constructor of SimpleDDPG ran in 0 of 1 cases" in process.stdout
    assert process.returncode == 1
