"""`make soak`: a long training with everything on; memory and open files must stay flat, and no process be left.

Not here: how fast it is (`simple-ddpg benchmark`). Reads /proc: Linux only.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback

N_ENVS, SAMPLES, WARM_UP = 8, 40, 10  # the first quarter fills the buffer and loads what is loaded on first use


def resources() -> dict[str, int]:
    """Of this process: resident memory, open files, child processes."""
    pid = os.getpid()
    memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"kib": int(memory.split()[1]), "files": len(os.listdir("/proc/self/fd")), "children": len(children)}


class Sample(BaseCallback):
    """Writes the resources down at equal distances, between two rollouts."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.samples = every, list[dict[str, int]]()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.every * (len(self.samples) + 1):
            self.samples.append({"timestep": self.num_timesteps, **resources()})


def train(timesteps: int, folder: Path) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """The training; whatever it opened is closed, or forgotten when this returns."""
    env = VecNormalize(make_vec_env("Pendulum-v1", N_ENVS, seed=0, vec_env_cls=SubprocVecEnv))
    evaluation = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=1), training=False, norm_reward=False)
    model = SimpleDDPG(
        "MlpPolicy", env, policy_kwargs={"net_arch": [64, 64]}, buffer_size=timesteps // 10, seed=0, device="cpu"
    )
    model.set_logger(configure(str(folder / "log"), ["csv", "tensorboard"]))
    checkpoints = folder / "checkpoints"
    sample = Sample(timesteps // SAMPLES)
    evaluate = EvalCallback(evaluation, n_eval_episodes=2, eval_freq=timesteps // N_ENVS // SAMPLES, verbose=0)
    save = ExactCheckpointCallback(checkpoints, timesteps // SAMPLES)
    model.learn(timesteps, CallbackList([save, evaluate, sample]))
    for each in (env, evaluation, model.logger):
        each.close()
    figures = {
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "evaluations": evaluate.n_calls // evaluate.eval_freq,
        "checkpoints_written": SAMPLES,
        "checkpoints_kept": sorted(path.name for path in checkpoints.iterdir()),
    }
    return figures, sample.samples


def soak(timesteps: int) -> dict[str, Any]:
    """
    :param timesteps: of all environments together
    :return: the figures
    """
    th.set_num_threads(1)
    started = time.perf_counter()
    # The fork server and the tracker of multiprocessing stay, whatever is closed: they are there before we count.
    make_vec_env("Pendulum-v1", 1, vec_env_cls=SubprocVecEnv).close()
    gc.collect()
    before = resources()
    with tempfile.TemporaryDirectory() as root:
        figures, samples = train(timesteps, Path(root))
    gc.collect()
    after = resources()
    settled = samples[WARM_UP:]
    memory = [each["kib"] / 1024 for each in settled]
    files, children = ({each[name] for each in settled} for name in ("files", "children"))
    return {
        **figures,
        "memory_mib_after_a_quarter": round(memory[0], 1),
        "memory_mib_at_the_end": round(memory[-1], 1),
        "memory_mib_largest": round(max(memory), 1),
        "open_files_while_training": sorted(files),
        "open_files_before_and_after": [before["files"], after["files"]],
        "processes_before_and_after": [before["children"], after["children"]],
        "flat": max(memory) - memory[0] < 0.03 * memory[0]
        and len(files) == len(children) == 1
        and after["files"] <= before["files"]
        and after["children"] <= before["children"],
        "seconds": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=200_000)
    figures = soak(parser.parse_args().timesteps)
    print(json.dumps(figures, indent=2))
    raise SystemExit(0 if figures["flat"] else 1)
