"""`make crash-test`: kill a training with SIGKILL at random moments, resume it each time, and compare it in the end.

Not here: what a checkpoint is made of (`test_checkpoint.py`). Each cycle is a process of its own, forked from one that
has imported everything, so that most kills hit training or saving, and not Python's imports. Linux and macOS only.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.checkpoint.buffer import CheckpointError
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback, newest_checkpoint

STEPS_PER_LIFE, STEPS_PER_KILL, EVERY, SHORTEST_LIFE = 300, 700, 50, 0.2


class Walk(gym.Env[Any, np.ndarray]):
    """A random walk of 33 steps; whatever is not restored shows in its observations."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.normal(size=4), 0
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = self.state + 0.3 * action + 0.1 * self.np_random.normal(size=4)
        self.steps += 1
        return self.state.copy(), -float(np.square(self.state).sum()), False, self.steps == 33, {}


def train(folder: Path, timesteps: int) -> None:
    """From the newest checkpoint, or from the start, to the end."""
    env = VecNormalize(DummyVecEnv([Walk, Walk]))
    checkpoints = folder / "checkpoints"
    try:
        model = SimpleDDPG.resume(checkpoints, env)
    except CheckpointError:
        model = SimpleDDPG(
            "MlpPolicy", env, policy_kwargs={"net_arch": [32, 32]}, buffer_size=2_000, batch_size=32, train_freq=4,
            n_steps=3, seed=0, device="cpu",
        )  # fmt: skip
    left = timesteps - model.num_timesteps
    if left > 0:
        model.learn(left, ExactCheckpointCallback(checkpoints, EVERY), reset_num_timesteps=model.num_timesteps == 0)
    model.save(folder / "model.zip")


def start(folder: Path, timesteps: int) -> int:
    """In a process of its own."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        warnings.simplefilter("error", RuntimeWarning)  # a damaged checkpoint
        train(folder, timesteps)
        status = 0
    finally:
        os._exit(status)


def newest(folder: Path) -> int:
    """Timestep of the newest checkpoint; a damaged one is an error."""
    with warnings.catch_warnings(action="error"):
        try:
            return int(newest_checkpoint(folder / "checkpoints").name.rpartition("_")[2])
        except CheckpointError:
            return 0


def crash_test(kills: int, seed: int) -> dict[str, Any]:
    """
    :param kills: number of SIGKILLs
    :param seed: of the moments
    :return: the figures
    """
    th.set_num_threads(1)
    moments, timesteps = random.Random(seed), max(kills, 20) * STEPS_PER_KILL
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        killed, straight = Path(root, "killed"), Path(root, "straight")
        life = time.perf_counter()
        os.waitpid(start(Path(root, "calibration"), STEPS_PER_LIFE), 0)
        life = time.perf_counter() - life  # on this machine, beside whatever else it does
        known = resumed = while_saving = 0
        lives, seen = [life], set[int]()
        for kill in range(kills):
            process = start(killed, timesteps)
            while known == 0 and newest(killed) == 0:  # the first kill comes when there is something to lose
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 2 * life))
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if not os.WIFSIGNALED(status):
                raise SystemExit(f"The training ended by itself (status {status}) before kill {kill + 1} of {kills}.")
            resumed += known > 0
            left_over = {path.stat().st_mtime_ns for path in (killed / "checkpoints").glob(".*")}
            while_saving += bool(left_over - seen)
            seen |= left_over
            if newest(killed) < known:
                raise SystemExit(f"Kill {kill + 1} lost checkpoint step_{known}; the newest is step_{newest(killed)}.")
            known = newest(killed)
            # Neither may the training end before the last kill, nor each life before its first checkpoint.
            too_fast = known > 0.8 * (kill + 1) * STEPS_PER_KILL
            life = max(SHORTEST_LIFE, 0.8 * life) if too_fast else 1.02 * life
            lives.append(life)
        for folder in (killed, straight):
            _, status = os.waitpid(start(folder, timesteps), 0)
            if status:
                raise SystemExit(f"The last cycle in {folder} failed with status {status}.")
        models = [SimpleDDPG.load(folder / "model.zip") for folder in (killed, straight)]
        weights = [th.utils._pytree.tree_leaves(model.get_parameters()) for model in models]
        equal = sum(
            th.equal(one, other) if isinstance(one, th.Tensor) else one == other
            for one, other in zip(*weights, strict=True)
        )
        return {
            "kills": kills,
            "kills_while_saving": while_saving,
            "resumptions_from_a_checkpoint": resumed + 1,
            "timestep_at_the_last_kill": known,
            "timesteps": models[0].num_timesteps,
            "updates": models[0]._n_updates,
            "checkpoints_lost": 0,
            "tensors_equal": f"{equal} of {len(weights[0])}",
            "equal": equal == len(weights[0]) and models[0]._n_updates == models[1]._n_updates > 0,
            "mean_life_seconds": round(sum(lives) / len(lives), 2),
            "seconds": round(time.perf_counter() - started),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = crash_test(options.kills, options.seed)
    print(json.dumps(figures, indent=2))
    raise SystemExit(0 if figures["equal"] else 1)
