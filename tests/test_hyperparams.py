"""`hyperparams/simple_ddpg.yml`: RL Zoo builds a SimpleDDPG of every entry, and every entry says where it is from.

Not here: how well they learn; the zoo's commands (`test_zoo.py`).
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from sb3_simple_ddpg import presets

ROOT = Path(__file__).parent.parent
FILE = ROOT / "hyperparams" / "simple_ddpg.yml"
ALL: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())
ENTRIES = {name: entry for name, entry in ALL.items() if not name.startswith(".")}

# What `rl_zoo3.train` does with `--algo ddpg --gym-packages sb3_simple_ddpg.zoo -conf FILE`, up to the first timestep.
BUILD = """
import argparse, json, sys
import gymnasium as gym
import sb3_simple_ddpg.zoo
from rl_zoo3.exp_manager import ExperimentManager

file, *env_ids = sys.argv[1:]
found = {}
for env_id in env_ids:
    manager = ExperimentManager(argparse.Namespace(), "ddpg", env_id, "logs", config=file, verbose=0, device="cpu")
    model, _ = manager.setup_experiment()
    noise = getattr(model.action_noise, "base_noise", model.action_noise)
    found[env_id] = {
        "class": type(model).__name__, "n_timesteps": manager.n_timesteps, "noise": type(noise).__name__,
        "noise_std": float(noise._sigma.max()), "layers": model.policy.net_arch, "rate": model.lr_schedule(1.0),
        "critic_rate": (model.critic_lr_schedule or model.lr_schedule)(1.0),
        "normalised": model.get_vec_normalize_env() is not None,
        **{name: getattr(model, name) for name in ("gamma", "batch_size", "buffer_size", "learning_starts", "n_steps")},
    }
    model.env.close()
print(json.dumps(found))
"""


def test_every_continuous_task_of_the_three_families_has_an_entry_but_car_racing():
    def latest(name: str) -> str:
        versions = [spec.version for spec in gym.registry.values() if spec.name == name and spec.version is not None]
        return f"{name}-v{max(versions)}"

    families = re.compile(r"classic_control|box2d|mujoco")
    discrete = {"CartPole", "MountainCar", "Acrobot", "LunarLander"}
    names = {spec.name for spec in gym.registry.values() if families.search(str(spec.entry_point))} - discrete
    assert {latest(name) for name in names} - {"CarRacing-v3"} == ENTRIES.keys() - {"default"}


def test_every_entry_says_what_its_evidence_is():
    text = FILE.read_text()
    for env_id in ENTRIES:
        above = re.search(rf"^# (.+)\n{env_id}:", text, re.MULTILINE)
        assert above is not None, env_id
        assert re.match(r"(own runs|carried over|untried): \S", above.group(1)), env_id


def test_what_is_carried_over_is_what_rl_zoo_has():
    (path,) = (file for file in importlib.metadata.files("rl_zoo3") or [] if str(file).endswith("hyperparams/ddpg.yml"))
    theirs = yaml.safe_load(Path(str(path.locate())).read_text())
    carried = re.findall(r"^# carried over: (\S+) of ddpg.yml.*\n(\S+):", FILE.read_text(), re.MULTILINE)
    assert carried
    for source, env_id in carried:
        assert ENTRIES[env_id] == theirs[source], env_id


def test_the_entry_that_others_start_from_is_the_preset_robust():
    entry = dict(ALL[".robust"])
    assert eval(entry["normalize"]) == {"norm_obs": True, "norm_reward": False}
    assert entry["learning_rate"] == 1e-3  # the constructor's default
    assert {
        "n_steps": entry["n_steps"],
        "action_noise": entry["noise_std"],
        "policy_kwargs": eval(entry["policy_kwargs"]),
    } == presets.ROBUST


def test_the_entry_of_the_mujoco_tasks_is_the_preset_layer_norm():
    found = presets.choose_preset(str(FILE), "HalfCheetah-v5")[1]
    assert ALL["HalfCheetah-v5"] == ALL[".layer-norm"]
    # As printed: SB3's schedules are equal to themselves alone.
    assert {name: repr(found.pop(name)) for name in presets.LAYER_NORM} == {
        name: repr(value) for name, value in presets.LAYER_NORM.items()
    }
    assert found == {"policy": "MlpPolicy", "train_freq": 1, "gradient_steps": 1}  # what there is without it too


@pytest.mark.long
def test_rl_zoo_builds_a_simple_ddpg_of_every_entry(tmp_path: Path):
    env_ids = [env_id for env_id in ENTRIES if env_id != "default"]
    command = [sys.executable, "-c", BUILD, str(FILE), *env_ids]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert list(found) == env_ids
    noises = {"normal": "NormalActionNoise", "ornstein-uhlenbeck": "OrnsteinUhlenbeckActionNoise"}
    for env_id, entry in ((env_id, ENTRIES[env_id]) for env_id in env_ids):
        rate = entry["learning_rate"]
        assert found[env_id] == {
            "class": "SimpleDDPG",
            "n_timesteps": entry["n_timesteps"],
            "noise": noises[entry["noise_type"]],
            "noise_std": entry["noise_std"],
            "layers": eval(entry["policy_kwargs"])["net_arch"],
            "rate": float(rate.removeprefix("lin_")) if isinstance(rate, str) else rate,
            "critic_rate": entry.get("critic_learning_rate", float(str(rate).removeprefix("lin_"))),
            "normalised": "normalize" in entry,
            "n_steps": entry.get("n_steps", 1),
            "gamma": entry.get("gamma", 0.99),
            "batch_size": entry.get("batch_size", 256),
            "buffer_size": entry.get("buffer_size", 1_000_000),
            "learning_starts": entry.get("learning_starts", 100),
        }, env_id
