"""What a machine with a GPU has to show, and how fast it is there. It needs PyTorch and what this package needs alone.

Not here: the CPU, for which the tests and `simple-ddpg benchmark` are.

    make gpu-check            # or: python -m tests.long.gpu_check --device cuda

Each claim prints one line; the exit status is 1 if one does not hold. `--device cpu` tries the program itself.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DDPG

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.safety.checks import CompileWarning

#: Adam divides a gradient by its own size, so with its own eps rounding grows into steps; as in tests/test_compiled.py.
LARGE_EPS: dict[str, Any] = {"optimizer_kwargs": {"eps": 1e-3}}


def made(cls: Any, device: str, net_arch: list[int], **settings: Any) -> Any:
    """A model that has collected 300 timesteps of Pendulum and learned nothing yet."""
    kwargs = {"net_arch": net_arch, **LARGE_EPS}
    model = cls(
        "MlpPolicy", "Pendulum-v1", learning_starts=300, seed=0, device=device, policy_kwargs=kwargs, **settings
    )
    return model.learn(300)


def train(model: Any, updates: int, batch_size: int = 256) -> None:
    """Always with the same batches."""
    np.random.seed(1)
    model.train(updates, batch_size)


def difference(one: Any, other: Any) -> float:
    """The largest difference between two weights, as a share of the largest weight of that tensor."""
    mine, others = one.policy.state_dict(), other.policy.state_dict()
    return max(
        ((mine[name].cpu() - others[name].cpu()).abs().max() / others[name].cpu().abs().max().clamp(min=1e-3)).item()
        for name in mine
    )


def parity(device: str) -> tuple[bool, str]:
    """30 plain updates give the weights of SB3's DDPG on this device."""
    ours, theirs = made(SimpleDDPG, device, [64, 64], compile_updates=False), made(DDPG, device, [64, 64])
    ours.replay_buffer = theirs.replay_buffer
    for model in (ours, theirs):
        train(model, 30)
    return (found := difference(ours, theirs)) < 1e-5, f"largest difference {found:.1e}, at most 1e-5"


def compiled(device: str) -> tuple[bool, str]:
    """30 compiled updates give the plain path's weights."""
    plain, fast = (made(SimpleDDPG, device, [64, 64], compile_updates=each) for each in (False, True))
    fast.replay_buffer = plain.replay_buffer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in (plain, fast):
            train(model, 30)
    said = [str(each.message) for each in caught if issubclass(each.category, CompileWarning)]
    found = difference(plain, fast)
    return not said and found < 1e-4, said[0] if said else f"largest difference {found:.1e}, at most 1e-4"


def guard(device: str) -> tuple[bool, str]:
    """A reward that is not finite stops training, and the weights stay as they were, plain and compiled."""
    for compile_updates in (False, True):
        model = made(SimpleDDPG, device, [64, 64], compile_updates=compile_updates)
        train(model, 3)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.replay_buffer.rewards[:] = np.nan
        try:
            train(model, 2)
        except FloatingPointError:
            pass
        else:
            return False, f"compile_updates={compile_updates}: nothing was raised"
        if not all(before[name].equal(value) for name, value in model.policy.state_dict().items()):
            return False, f"compile_updates={compile_updates}: weights have moved"
    return True, "FloatingPointError, weights as before"


def resume(device: str) -> tuple[bool, str]:
    """A training that goes on from a checkpoint ends where one that was not stopped ends."""
    with tempfile.TemporaryDirectory() as folder:
        model = made(SimpleDDPG, device, [64, 64], compile_updates=False)
        model.save_checkpoint(folder)
        model.learn(60, reset_num_timesteps=False)
        resumed = SimpleDDPG.resume(folder, "Pendulum-v1")
        resumed.learn(60, reset_num_timesteps=False)
    found = difference(model, resumed)
    return found < 1e-5 and resumed.device.type == th.device(
        device
    ).type, f"largest difference {found:.1e}, at most 1e-5"


def predict(device: str) -> tuple[bool, str]:
    """Actions are those of the same model on the CPU, and a saved model goes from one to the other."""
    model = made(SimpleDDPG, device, [64, 64])
    observations = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        on_cpu = SimpleDDPG.load(Path(folder) / "model", device="cpu")
    found = float(np.abs(model.predict(observations)[0] - on_cpu.predict(observations)[0]).max())
    return found < 1e-5, f"largest difference {found:.1e}, at most 1e-5"


def transfers(device: str) -> tuple[bool, str]:
    """One transfer from the device in each call of `train`, plain and compiled."""
    counts = []
    for compile_updates in (False, True):
        model = made(SimpleDDPG, device, [64, 64], compile_updates=compile_updates)
        train(model, 3)
        names = ("tolist", "item", "cpu", "numpy", "__bool__", "__float__")
        kept = {name: getattr(th.Tensor, name) for name in names}
        calls: list[str] = []

        def counted(name: str, itself: Callable[..., Any], calls: list[str] = calls) -> Callable[..., Any]:
            return lambda tensor, *args, **kwargs: (
                (calls.append(name) if tensor.device.type == th.device(device).type else None),
                itself(tensor, *args, **kwargs),
            )[1]

        try:
            for name, itself in kept.items():
                setattr(th.Tensor, name, counted(name, itself))
            model.train(8, 256)
        finally:
            for name, itself in kept.items():
                setattr(th.Tensor, name, itself)
        counts.append(len(calls))
    return counts == [1, 1], f"{counts[0]} plain, {counts[1]} compiled"


CLAIMS = (parity, compiled, guard, resume, predict, transfers)


def speed(device: str, updates: int, repeats: int, sizes: list[list[int]]) -> None:
    """
    Print milliseconds of an update, batches of 256, and how many times as fast as SB3's DDPG.

    :param device: of the networks
    :param updates: in each repeat
    :param repeats: in which the three take turns
    :param sizes: hidden layers
    """
    print(
        "| hidden layers | SB3 DDPG, ms | plain, ms | compiled, ms | plain, times | compiled, times |\n|" + " --- |" * 6
    )
    for size in sizes:
        models = [made(DDPG, device, size)]
        models += [made(SimpleDDPG, device, size, compile_updates=each) for each in (False, True)]
        for model in models:
            train(model, 10)
        rows = []
        for _ in range(repeats):
            row = []
            for model in models:
                start = time.perf_counter()
                model.train(updates, 256)  # ends with a transfer, so the device is waited for
                row.append(1e3 * (time.perf_counter() - start) / updates)
            rows.append(row)
        sb3, plain, fast = (median(column) for column in zip(*rows, strict=True))
        gains = [median(row[0] / row[at] for row in rows) for at in (1, 2)]
        print(f"| {size} | {sb3:.2f} | {plain:.2f} | {fast:.2f} | {gains[0]:.2f} | {gains[1]:.2f} |", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """
    :param arguments: None: of the command line
    :return: 1 if a claim does not hold
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-speed", action="store_true")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not th.cuda.is_available():
        print(f"PyTorch {th.__version__} finds no GPU here: `--device cpu` tries the program itself.", file=sys.stderr)
        return 2
    name = th.cuda.get_device_name(given.device) if given.device.startswith("cuda") else given.device
    print(f"PyTorch {th.__version__}, {name}")
    failed = 0
    for claim in CLAIMS:
        try:
            holds, found = claim(given.device)
        except Exception as error:  # the other claims are tried too
            holds, found = False, f"{type(error).__name__}: {error}"
        failed += not holds
        print(f"{'holds ' if holds else 'FAILS '} {claim.__doc__.splitlines()[0]} {found}.", flush=True)
    if not given.no_speed:
        speed(given.device, given.updates, given.repeats, [[64, 64], [256, 256], [400, 300]])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
