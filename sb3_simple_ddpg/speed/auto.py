"""Whether compiled updates pay: what `compile_updates="auto"` means.

Not here: how they are made (`compiled.py`), nor any clock: a training that is repeated decides alike.
"""

import os
import shutil
from typing import TYPE_CHECKING

from stable_baselines3.common.type_aliases import TrainFrequencyUnit

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

#: Seconds that compiling takes the first time, on a busy machine; a few when PyTorch's cache on disk has the code.
COST = 30
#: Milliseconds that a compiled update saves, and more of them for each 100,000 weights: measured on AMD processors with
#: batches of 256 (docs/speed.md), where [64, 64] saves 0.8, [256, 256] 1.5 and [400, 300] 2.2.
SAVED, SAVED_BY_WEIGHTS = 0.7, 0.6


def updates_ahead(model: "Agent") -> int:
    """
    :param model: at the start of `learn`
    :return: gradient steps until its end; 0 where nobody can know, since a number of them follows each episode
    """
    first = max(model.num_timesteps, model.learning_starts)
    timesteps = max(model._total_timesteps - first, 0)
    if model.gradient_steps < 0:
        return timesteps
    if model._train_freq.unit is TrainFrequencyUnit.EPISODE:
        return 0
    return timesteps // (model._train_freq.frequency * model.n_envs) * model.gradient_steps


def decide(model: "Agent") -> tuple[bool, str]:
    """
    :param model: at the start of `learn`
    :return: whether compiled updates pay, and a sentence for the log; it is empty where there is nothing to tell
    """
    weights = [weight for network in (model.actor, model.critic) for weight in network.parameters()]
    convolutions = any(weight.dim() > 2 for weight in weights)
    if model.device.type != "cpu" or convolutions:
        return False, ""  # not measured
    updates, size = updates_ahead(model), sum(weight.numel() for weight in weights)
    seconds = updates * (SAVED + SAVED_BY_WEIGHTS * size / 100_000) / 1000
    if seconds <= COST:
        return False, ""
    if not _compiler_is_there():
        return False, (
            f"No C++ compiler (g++) is there: with one, these {updates:,} updates would take about {seconds:.0f} "
            "seconds less."
        )
    return True, (
        f"compile_updates='auto': about {seconds:.0f} seconds less for {updates:,} updates. Compiling takes 10 to 30 "
        "seconds the first time, then a few."
    )


def _compiler_is_there() -> bool:
    """Where PyTorch looks for it."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))
