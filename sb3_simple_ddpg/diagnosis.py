"""Why does it not learn? What usually goes wrong with DDPG, each with the measured value and the cure.

Not here: what is refused before any work (`checks.py`), and numbers that are not finite (`guards.py`).

Read from settings, networks and the replay buffer. Nothing is played, drawn, counted or changed: learning goes on to
the same bits. The limits are far from what healthy training shows, so that a healthy run gets no finding: the table is
in docs/diagnose.md.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_simple_ddpg.engines import usable_cores
from sb3_simple_ddpg.exploration import GaussianNoise, noise_scale
from sb3_simple_ddpg.q_bias import (
    Array,
    evaluation_mode,
    measure_q_bias,
    newest_rows,
    pick,
    q_of_actor,
    readable,
    tensors,
)

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

#: Less noise than this share of half the action range explores next to nothing.
SMALLEST_NOISE: Final = 0.01
#: Bounds beyond this are seldom what a task needs; Gymnasium's own tasks stay below 3.
WIDEST_BOUND: Final = 10.0
#: Root mean square of an observation's dimension, as the networks see it. The velocities of Pendulum have 4.
LARGEST_OBSERVATION: Final = 30.0
SMALLEST_OBSERVATION: Final = 0.01
#: Beyond this the tanh has a slope below 0.0002. In the first thousand updates healthy actors often stand at 0.99 for a
#: while, in nearly every state, and come back; one that is stuck stands closer to 1, with no state left to turn it.
BOUND: Final = 0.9999
STUCK_SHARE: Final = 0.99
#: Root mean square of the rewards that the critic sees. Pendulum has 8.
LARGEST_REWARD: Final = 100.0
SMALLEST_REWARD: Final = 1e-3
#: Each transition stands in the first batches this often, at the least.
REPEATED: Final = 4
#: Gradient steps for each timestep of one environment.
FEWEST_UPDATES: Final = 0.5
#: Share of the machine's memory.
BUFFER_SHARE: Final = 0.5
#: Layers up to this size are fastest with one thread.
SMALL_LAYER: Final = 256
#: A critic of fewer gradient steps has had no time to be wrong, nor an agent of fewer timesteps to find a reward.
YOUNG: Final = 500
#: Observations that networks are tried on.
_STATES: Final = 1_000


@dataclass(frozen=True)
class Finding:
    """
    One thing that is likely to keep an agent from learning.

    :param fault: its name, one of `FAULTS`
    :param value: what was measured
    :param unit: of the value
    :param measured: the same in words
    :param why: it matters
    :param cure: the argument or line to change
    """

    fault: str
    value: float
    unit: str
    measured: str
    why: str
    cure: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.measured} {self.why} Cure: {self.cure}"


def diagnose(model: "SimpleDDPG", buffer_size: int | None = None) -> list[Finding]:
    """
    :param model: learning, trained or new. What only experience shows (the scale of observations and rewards,
        saturation, Q bias) needs transitions in its replay buffer: call `learn` first, or `simple-ddpg diagnose`
    :param buffer_size: of training, where the model was loaded with another one
    :return: one finding for each fault, empty for a healthy agent
    """
    patient = _Patient(model, buffer_size)
    return [finding for find in FAULTS.values() if (finding := find(patient)) is not None]


@dataclass(frozen=True)
class _Patient:
    """A model with what is asked of it more than once."""

    model: "SimpleDDPG"
    buffer_size: int | None = None

    def states(self) -> Any:  # noqa: ANN401 - an array, or several by key
        """Newest observations as the buffer stores them, evenly spaced; None where there are none."""
        buffer = self.model.replay_buffer
        if not readable(buffer):
            return None
        rows = newest_rows(buffer)
        chosen = np.unique(np.linspace(0, len(rows) * buffer.n_envs - 1, _STATES).astype(int))
        return pick(buffer.observations, rows[chosen // buffer.n_envs], chosen % buffer.n_envs)

    def rewards(self) -> Array | None:
        """All that are stored, as the critic sees them."""
        buffer = self.model.replay_buffer
        if not readable(buffer):
            return None
        stored = buffer.rewards[: buffer.size()]
        return np.asarray(buffer._normalize_reward(stored, self.model._vec_normalize_env), np.float64)


def _no_exploration(patient: _Patient) -> Finding | None:
    noise = patient.model.action_noise
    if isinstance(noise, GaussianNoise):  # a schedule may well end at 0
        scale: float | None = max(noise.schedule(remaining) for remaining in (1.0, 0.75, 0.5, 0.25))
    else:
        scale = noise_scale(noise)
    if scale is None or scale >= SMALLEST_NOISE:
        return None
    return Finding(
        "no exploration", scale, "half the action range",
        f"The action noise has a standard deviation of {scale:g} (1.0 is half the action range).",
        f"After the {patient.model.learning_starts} random timesteps the agent sees only what its own actions lead to.",
        "action_noise=0.1",
    )  # fmt: skip


def _action_bounds(patient: _Patient) -> Finding | None:
    space = patient.model.action_space
    assert isinstance(space, spaces.Box)
    reach = float(max(np.abs(space.low).max(), np.abs(space.high).max()))
    if reach <= WIDEST_BOUND:
        return None
    half = float((space.high - space.low).max()) / 2
    return Finding(
        "action bounds", reach, "the environment's unit",
        f"The action space reaches to {reach:g}, far from [-1, 1].",
        f"A noise of 0.1 is a push of {0.1 * half:g} here, and actions that are useful may fill a corner of the range.",
        "give the environment's action space the bounds that the task needs; where they are right and only the unit is "
        "large, lower action_noise.",
    )  # fmt: skip


def _observation_scale(patient: _Patient) -> Finding | None:
    model, states = patient.model, patient.states()
    if states is None:
        return None
    seen = tensors(model, states)
    largest = -1.0
    whole = model.observation_space
    parts = seen if isinstance(seen, dict) else {"": seen}
    for key, values in parts.items():
        space = whole[key] if isinstance(whole, spaces.Dict) else whole
        if isinstance(space, spaces.Box) and not is_image_space(space):
            numbers = values.cpu().numpy().astype(np.float64).reshape(len(values), -1)
            largest = max(largest, float(np.sqrt((numbers**2).mean(axis=0)).max(initial=0.0)))
    if largest <= 0 or SMALLEST_OBSERVATION <= largest <= LARGEST_OBSERVATION:  # 0: there is nothing to see, on purpose
        return None
    what = "first layers start saturated" if largest > 1 else "the networks can hardly tell one state from another"
    return Finding(
        "observation scale", largest, "as the networks see it",
        f"The largest dimension of the observations has a root mean square of {largest:.3g}.",
        f"Networks are built for numbers near 1: {what}.",
        "env = VecNormalize(env, norm_reward=False), or --normalize for simple-ddpg train.",
    )  # fmt: skip


def _saturation(patient: _Patient) -> Finding | None:
    model, states = patient.model, patient.states()
    if states is None:
        return None
    with evaluation_mode(model):
        actions = model.actor(tensors(model, states)).cpu().numpy()
    if len(actions) < 10:
        return None
    share = np.maximum((actions > BOUND).mean(axis=0), (actions < -BOUND).mean(axis=0))
    stuck = int((share >= STUCK_SHARE).sum())
    if stuck == 0:
        return None
    return Finding(
        "saturation", float(share.max()), "of the states",
        f"In {stuck} of {len(share)} dimensions the actor gives one and the same bound in {100 * share.max():.0f} % of "
        "the states.",
        "There the tanh is flat and passes no gradient, so the actor stays as it is.",
        "train anew with policy_kwargs=dict(last_layer_init=3e-3) and a smaller learning_rate for the actor: "
        "learning_rate=3e-4, critic_learning_rate=1e-3.",
    )  # fmt: skip


def _q_bias(patient: _Patient) -> Finding | None:
    model, states, rewards = patient.model, patient.states(), patient.rewards()
    if states is None or rewards is None or model._n_updates < YOUNG or _root_mean_square(rewards) < SMALLEST_REWARD:
        return None
    with evaluation_mode(model):
        size = float(np.abs(q_of_actor(model, states)).mean())
    possible = float(np.abs(rewards).max()) / (1 - model.gamma) if model.gamma < 1 else math.inf
    cure = (
        "a smaller critic_learning_rate (3e-4) or tau (0.001), max_grad_norm=1.0, or TD3, whose two critics are there "
        "for it."
    )
    if 0 < 1.5 * possible < size:
        return Finding(
            "Q bias", size, "of the rewards' unit",
            f"The mean |Q(s, mu(s))| is {size:.3g}, while rewards up to {np.abs(rewards).max():.3g} cannot give a "
            f"discounted return above {possible:.3g}.",
            "The critic diverges: it promises what cannot be.", cure,
        )  # fmt: skip
    measured = measure_q_bias(model)
    if measured is None or measured.episodes < 3 or model.tau == 0:
        return None
    # So many gradient steps it takes until the targets have followed, by a share of tau, through the critic's horizon.
    horizon = measured.length if model.gamma == 1 else min(measured.length, 1 / (1 - model.gamma))
    if model._n_updates < horizon / model.tau:
        return None
    if abs(measured.bias) <= max(measured.typical, float(np.abs(rewards).max())):
        return None
    return Finding(
        "Q bias", measured.bias, "of the rewards' unit",
        f"Q(s0, mu(s0)) is {measured.q_start:.3g}; the last {measured.episodes} episodes brought a discounted return "
        f"of {measured.discounted_return:.3g}.",
        "The critic is off by more than the returns themselves, and the actor climbs what the critic says.", cure,
    )  # fmt: skip


def _reward_scale(patient: _Patient) -> Finding | None:
    rewards = patient.rewards()
    if rewards is None:
        return None
    size = _root_mean_square(rewards)
    if SMALLEST_REWARD <= size <= LARGEST_REWARD or (size == 0 and rewards.size < YOUNG):
        return None
    if size == 0:
        measured, factor = f"All of {rewards.size} rewards are 0.", ""
    else:
        measured = f"The rewards have a root mean square of {size:.3g}."
        factor = f"multiply the rewards by {10.0 ** -round(math.log10(size)):g}, gymnasium.wrappers.TransformReward"
    if size > 1:
        why, cure = "The critic starts near 0 and has too far to go at its learning rate.", factor
    else:
        why = "Differences between actions are lost beside the values that the critic starts with."
        cure = "where the agent has yet to find rewards, learning_starts=10_000 and "
        cure += "action_noise=OrnsteinUhlenbeck(sigma=0.5)"
        cure += f"; where they are that small, {factor}" if factor else ""
    return Finding("reward scale", size, "root mean square", measured, why, cure)


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _learning_starts(patient: _Patient) -> Finding | None:
    model = patient.model
    if REPEATED * model.learning_starts >= model.batch_size:
        return None
    return Finding(
        "learning starts", float(model.learning_starts), "timesteps",
        f"learning_starts={model.learning_starts} is below batch_size={model.batch_size}.",
        "The first batches hold each of a few transitions many times, and the networks learn those by heart.",
        f"learning_starts={model.batch_size}, or more",
    )  # fmt: skip


def _updates(patient: _Patient) -> Finding | None:
    model = patient.model
    if model._train_freq.unit is not TrainFrequencyUnit.STEP or model.gradient_steps < 0:
        return None
    collected = model._train_freq.frequency * model.n_envs
    ratio = model.gradient_steps / collected
    if ratio >= FEWEST_UPDATES:
        return None
    return Finding(
        "updates per step", ratio, "gradient steps a timestep",
        f"{model.gradient_steps} gradient steps for every {collected} timesteps of {model.n_envs} environments.",
        "Timesteps count all environments, so the same number of timesteps teaches less.",
        "gradient_steps=-1, as many as timesteps were collected; or train for more timesteps.",
    )  # fmt: skip


def _buffer_memory(patient: _Patient) -> Finding | None:
    buffer, memory = patient.model.replay_buffer, _memory_bytes()
    if buffer is None or memory is None:
        return None
    size = float(_bytes(vars(buffer).values()))
    if patient.buffer_size is not None:
        size *= patient.buffer_size / (buffer.buffer_size * buffer.n_envs)
    if size <= BUFFER_SHARE * memory:
        return None
    fits = int((patient.buffer_size or patient.model.buffer_size) * BUFFER_SHARE * memory / size)
    return Finding(
        "buffer memory", size / 1e9, "GB",
        f"A full replay buffer takes {size / 1e9:.3g} GB of this machine's {memory / 1e9:.3g} GB.",
        "It is filled as training goes on, which ends when the memory does.",
        f"buffer_size={fits}, or optimize_memory_usage=True with "
        "replay_buffer_kwargs=dict(handle_timeout_termination=False)",
    )  # fmt: skip


def _threads(patient: _Patient) -> Finding | None:
    model, threads, cores = patient.model, th.get_num_threads(), usable_cores()
    if model.device.type != "cpu":
        return None
    widest = max([0, *(layer.out_features for layer in model.actor.modules() if isinstance(layer, th.nn.Linear))])
    if threads <= cores and (threads == 1 or widest > SMALL_LAYER):
        return None
    wanted = 1 if widest <= SMALL_LAYER else cores
    return Finding(
        "threads", float(threads), "threads",
        f"PyTorch uses {threads} threads on {cores} cores for layers of at most {widest} units.",
        "They wait for each other longer than they work.",
        f"torch.set_num_threads({wanted})",
    )  # fmt: skip


def _bytes(values: Iterable[Any]) -> int:
    """Of all arrays, those in dictionaries too."""
    return sum(
        value.nbytes if isinstance(value, np.ndarray) else _bytes(value.values()) if isinstance(value, dict) else 0
        for value in values
    )


def _memory_bytes() -> int | None:
    """That this process may use; None where the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


#: What is looked for, by name, in the order of the report.
FAULTS: Final[dict[str, Callable[[_Patient], Finding | None]]] = {
    "no exploration": _no_exploration,
    "action bounds": _action_bounds,
    "observation scale": _observation_scale,
    "saturation": _saturation,
    "Q bias": _q_bias,
    "reward scale": _reward_scale,
    "learning starts": _learning_starts,
    "updates per step": _updates,
    "buffer memory": _buffer_memory,
    "threads": _threads,
}
