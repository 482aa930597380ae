"""Seconds from the start of a process until Pendulum-v1 is solved: imports, compiling and evaluations included.

Not here: speed per timestep (`sb3_simple_ddpg/benchmark`).

Each competitor is what a user of that library would type first. Every 500 timesteps ten episodes are played without
noise. A run ends when their mean return reaches -200, or after 30,000 timesteps. Each run is a fresh process with an
empty cache of compiled code and a seed of its own. The competitors take turns.

    python -m tests.long.cold_start --repeats 5 --sbx-python path --out runs/cold_start
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from sb3_simple_ddpg.benchmark import report
from sb3_simple_ddpg.benchmark.benchmark import find_sbx, rotate

OURS, TRAIN, SB3, SBX = (
    "SimpleDDPG, defaults",
    "simple-ddpg train, its preset",
    "SB3 DDPG, defaults",
    "SBX DDPG, defaults",
)
#: How each library is told; `seed` is given, and `model` is what comes out.
PROGRAMS = {
    OURS: """
from sb3_simple_ddpg import SimpleDDPG
model = SimpleDDPG("MlpPolicy", "Pendulum-v1", seed=seed)
""",
    TRAIN: """
from sb3_simple_ddpg import SimpleDDPG, presets
model = SimpleDDPG("MlpPolicy", "Pendulum-v1", seed=seed, **presets.PENDULUM)
""",
    SB3: """
from stable_baselines3 import DDPG
model = DDPG("MlpPolicy", "Pendulum-v1", seed=seed)
""",
    SBX: """
from sbx import DDPG
model = DDPG("MlpPolicy", "Pendulum-v1", seed=seed)
""",
}
RUN = """
import json, sys, time
import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor
stop = StopTrainingOnRewardThreshold(-200)
env = Monitor(gym.make("Pendulum-v1"))
callback = EvalCallback(env, callback_on_new_best=stop, eval_freq=500, n_eval_episodes=10, verbose=0)
model.learn({timesteps}, callback)
print(json.dumps([time.time(), model.num_timesteps, callback.best_mean_reward]))
"""


def solve(name: str, python: str, seed: int, timesteps: int) -> tuple[float, int, float]:
    """
    :param name: of a competitor
    :param python: interpreter whose environment holds it
    :param seed: of the run
    :param timesteps: after which it is given up
    :return: seconds, timesteps, and the best mean return
    """
    source = f"seed = {seed}\n{PROGRAMS[name]}\n{RUN.replace('{timesteps}', str(timesteps))}"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache, "JAX_PLATFORMS": "cpu"}
        start = time.time()
        done = subprocess.run(
            [python, "-W", "ignore", "-c", source], env=environment, capture_output=True, text=True, check=True
        )
    end, steps, best = json.loads(done.stdout.splitlines()[-1])
    return end - start, steps, best


def lines(found: dict[str, list[tuple[float, int, float]]]) -> list[list[str]]:
    """
    :param found: the runs of each competitor
    :return: a line of the table for each
    """
    table = []
    for name, runs in found.items():
        solved = [run for run in runs if run[2] >= -200]
        if solved:
            seconds, steps = [run[0] for run in solved], [run[1] for run in solved]
            cells = [f"{median(seconds):.0f} ({min(seconds):.0f}-{max(seconds):.0f})", f"{median(steps):,.0f}"]
        else:
            cells = ["-", "-"]
        table.append([name, *cells, f"{len(solved)} of {len(runs)}"])
    return table


def main(arguments: list[str] | None = None) -> None:
    """
    Run, print, and write the table.

    :param arguments: None: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timesteps", type=int, default=30_000)
    parser.add_argument("--only", nargs="*", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--sbx-python", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cold_start"))
    given = parser.parse_args(arguments)
    pythons = dict.fromkeys(PROGRAMS, sys.executable) | {SBX: find_sbx(given.sbx_python)}
    names = [name for name in given.only if pythons[name] is not None]
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in names}
    given.out.mkdir(parents=True, exist_ok=True)
    for repeat in range(given.repeats):
        for name in rotate(names, repeat):
            found[name].append(solve(name, str(pythons[name]), repeat, given.timesteps))
            print(f"{name}, seed {repeat}: {found[name][-1][0]:.0f} s, {found[name][-1][1]} timesteps", flush=True)
            columns = ("who", "seconds until -200, of the runs that reached it", "timesteps", "reached it")
            notes = [
                f"{report.machine()['processor']}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}."
            ]
            (given.out / "cold_start.json").write_text(json.dumps(found, indent=2) + "\n")
            (given.out / "cold_start.md").write_text(report.markdown(columns, lines(found), notes))


if __name__ == "__main__":
    main()
