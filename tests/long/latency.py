"""How long one action takes: SB3's `predict`, ours, and the two kinds of exported file, on one core, one observation.

Not here: the speed of learning (`sb3_simple_ddpg/benchmark`), whose settings, turns and tables these are.

All four hold the same weights and answer the same observation, from raw observation to environment action: where
VecNormalize is used, `predict` comes after `normalize_obs`. Before anything counts, the answers are compared.

    python -m tests.long.latency --out runs/latency
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rich.console import Console
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_simple_ddpg.benchmark import benchmark as bench
from sb3_simple_ddpg.benchmark import report
from sb3_simple_ddpg.benchmark.benchmark import Settings
from sb3_simple_ddpg.export.files import export_onnx, load_policy, save_policy
from sb3_simple_ddpg.export.source import Array, optional_library
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

FILES = ("latency.json", "latency.md")
SB3, OURS, LOADED, ONNX = "SB3 predict", "SimpleDDPG predict", "load_policy", "ONNX file, onnxruntime"
COLUMNS = ("policy", "who answers", "microseconds", "times as fast as SB3")
Answer = Callable[[], Array]


@dataclass(frozen=True)
class Policy:
    """
    :param title: for the table
    :param net_arch: units of each hidden layer
    :param normalize: observations go through VecNormalize
    """

    title: str
    net_arch: tuple[int, ...]
    normalize: bool = False


POLICIES = (
    Policy("Pendulum, [64, 64]", (64, 64)),
    Policy("Pendulum, [64, 64], VecNormalize", (64, 64), normalize=True),
    Policy("Pendulum, [256, 256]", (256, 256)),
    Policy("Pendulum, [400, 300]", (400, 300)),
)


def answers(policy: Policy, folder: Path) -> dict[str, Answer]:
    """
    :param policy: what all of them are
    :param folder: for the two files
    :return: by name, a function that answers one and the same raw observation
    :raises ImportError: without the libraries of the extra `export`
    """
    onnxruntime = optional_library("onnxruntime")
    env: Any = make_vec_env("Pendulum-v1", seed=0)
    normalize: Callable[[Array], Any] = lambda observation: observation  # noqa: E731 - or that of VecNormalize
    if policy.normalize:
        env = VecNormalize(env)
        normalize = env.normalize_obs
        env.reset()
    theirs = DDPG(
        "MlpPolicy", env, policy_kwargs={"net_arch": list(policy.net_arch)}, buffer_size=10, seed=0, device="cpu"
    )
    ours = SimpleDDPG.from_sb3(theirs)
    export_onnx(ours, folder / "policy.onnx")
    save_policy(ours, folder / "policy.safetensors")
    loaded = load_policy(folder / "policy.safetensors")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options, providers=["CPUExecutionProvider"])
    observation = np.array([0.6, 0.8, -1.0], np.float32)

    def run_session() -> Array:
        actions: Array = session.run(["action"], {"observation": observation[None]})[0][0]
        return actions

    return {
        SB3: lambda: theirs.predict(normalize(observation), deterministic=True)[0],
        OURS: lambda: ours.predict(normalize(observation), deterministic=True)[0],
        LOADED: lambda: loaded.predict(observation)[0],
        ONNX: run_session,
    }


def measure(by_name: dict[str, Answer], settings: Settings) -> dict[str, list[float]]:
    """
    :param by_name: from `answers`
    :param settings: how often
    :return: microseconds of one call, for each repeat
    """
    for answer in by_name.values():
        np.testing.assert_allclose(answer(), by_name[SB3](), rtol=0, atol=4e-5)  # 1e-5 of Pendulum's range
        _time(answer, 20)
    calls = settings.steps or max(20, round(1e6 * settings.target_s / 4 / _time(by_name[SB3], 100)))
    found: dict[str, list[float]] = {name: [] for name in by_name}
    for repeat in range(settings.repeats):
        for name in bench.rotate(list(by_name), repeat):
            found[name].append(_time(by_name[name], calls))
    return found


def _time(answer: Answer, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        answer()
    return 1e6 * (time.perf_counter() - start) / calls


def run_latency(settings: Settings, folder: Path, console: Console) -> None:
    """
    Measure, print, and write latency.json and latency.md.

    :param settings: of the run
    :param folder: to write, which exists
    :param console: to print on
    """
    optional_library("onnxruntime")
    records: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    threads = th.get_num_threads()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    th.set_num_threads(1)
    _keep_on(cores[-1:])
    try:
        for policy in POLICIES:
            console.print(f"Measuring {policy.title} ...")
            with tempfile.TemporaryDirectory() as temporary:
                found = measure(answers(policy, Path(temporary)), settings)
            rows = {name: _row(values, found[SB3]) for name, values in found.items()}
            records.append({**asdict(policy), "rows": rows})
            for name, row in rows.items():
                lines.append([policy.title, name, report._text(row["microseconds"], 1), report._text(row["ratio"], 2)])
    finally:
        th.set_num_threads(threads)
        _keep_on(cores)
    bench._write_json(folder / FILES[0], settings, {"policies": records})
    versions = {"all": {name: optional_library(name).__version__ for name in _LIBRARIES}}
    notes = ["One observation a call, one thread, one core; from raw observation to environment action."]
    notes += [note for note in bench._notes(settings, versions, {}) if not note.startswith("One thread unless")]
    bench._tell("latency", COLUMNS, lines, notes, folder, console)


_LIBRARIES = ("stable_baselines3", "torch", "numpy", "onnxruntime")


def _row(values: list[float], reference: list[float]) -> dict[str, list[float] | None]:
    ratios = [theirs / own for own, theirs in zip(values, reference, strict=True)]
    return {"microseconds": bench._spread(values), "ratio": bench._spread(ratios), "repeats": values}


def _keep_on(cores: list[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    run_latency(Settings(chosen.repeats), chosen.out, Console(width=200))
