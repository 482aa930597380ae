"""Why does it not learn? What usually goes wrong with DDPG, each with the measured value and the cure.

Not here: what is refused before any work (`safety/checks.py`), and numbers that are not finite (`safety/numbers.py`).

Read from settings, networks and the replay buffer. Nothing is played, drawn, counted or changed: learning goes on to
the same bits. The limits are far from what healthy training shows, so that a healthy run gets no finding: the table is
in docs/diagnose.md.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecTransposeImage, is_vecenv_wrapped

from sb3_simple_ddpg.diagnosis.q_bias import (
    Array,
    evaluation_mode,
    measure_q_bias,
    newest_rows,
    pick,
    q_of_actor,
    readable,
    tensors,
)
from sb3_simple_ddpg.exploration import GaussianNoise, noise_scale
from sb3_simple_ddpg.sb3.vec_env import QuickDummyVecEnv
from sb3_simple_ddpg.speed.cores import usable_cores

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

#: Less noise than this share of half the action range explores next to nothing.
SMALLEST_NOISE: Final = 0.01
#: More noise than this, half the range, ends at the bounds nearly always: it was given in the environment's unit.
LARGEST_NOISE: Final = 1.0
#: Different actions that the dtype of the action space can hold between the bounds. Where the bounds lie makes no
#: difference otherwise: networks and noise work in [-1, 1], and weights come out the same to the last bit.
FEWEST_ACTIONS: Final = 1_000
#: Root mean square of an observation's dimension, as the networks see it. The velocities of Pendulum have 4.
LARGEST_OBSERVATION: Final = 30.0
#: The same, of the largest dimension.
SMALLEST_OBSERVATION: Final = 0.01
#: Standard deviation of a dimension that is not constant. The velocity of MountainCarContinuous has 0.005.
SMALLEST_CHANGE: Final = 1e-4
#: What varies less than this, or than this share of its mean, is constant but for rounding.
_ROUNDING: Final = (1e-8, 1e-6)
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
    :param after: other faults that were found and may well be the cause of this one: cure them first, and look again
    """

    fault: str
    value: float
    unit: str
    measured: str
    why: str
    cure: str
    after: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f" Cure first: {' and '.join(self.after)}." if self.after else ""
        return f"{self.fault}: {self.measured} {self.why} Cure: {self.cure}{first}"


def diagnose(model: "Agent", buffer_size: int | None = None) -> list[Finding]:
    """
    :param model: learning, trained or new. What only experience shows (the scale of observations and rewards,
        saturation, Q bias) needs transitions in its replay buffer: call `learn` first, or `simple-ddpg diagnose`
    :param buffer_size: of training, where the model was loaded with another one
    :return: one finding for each fault, in the order in which to cure them; empty for a healthy agent
    """
    patient = _Patient(model, buffer_size)
    findings = [finding for find in FAULTS.values() if (finding := find(patient)) is not None]
    found = [finding.fault for finding in findings]
    return [
        replace(finding, after=tuple(cause for cause in found if cause in CAUSES.get(finding.fault, ())))
        for finding in findings
    ]


def cure_first(findings: list[Finding]) -> str:
    """
    :param findings: of `diagnose`
    :return: a sentence on what to cure first; empty where there is no choice
    """
    if len(findings) < 2:
        return ""
    followers = [finding for finding in findings if finding.after]
    if not followers:
        return f"Cure them from the top down, {findings[0].fault} first."
    causes = list(dict.fromkeys(cause for finding in followers for cause in finding.after))
    names = " and ".join(finding.fault for finding in followers)
    return f"Cure first: {' and '.join(causes)}. Then look again: {names} may well be gone."


@dataclass(frozen=True)
class _Patient:
    """A model with what is asked of it more than once."""

    model: "Agent"
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


def _noise(patient: _Patient, little: bool) -> Finding | None:
    noise = patient.model.action_noise
    scale = noise_scale(noise)
    if isinstance(noise, GaussianNoise):  # a schedule may well end at 0, or begin high
        scale = (max if little else min)(noise.schedule(remaining) for remaining in (1.0, 0.75, 0.5, 0.25))
    if scale is None or (scale >= SMALLEST_NOISE if little else scale <= LARGEST_NOISE):
        return None
    why = "Nearly every action is at a bound, whatever the actor says; the unit is the same in every environment."
    if little:
        starts = patient.model.learning_starts
        why = f"After the {starts} random timesteps the agent sees only what its own actions lead to."
    measured = f"The action noise has a standard deviation of {scale:g} (1.0 is half the action range)."
    fault = "no exploration" if little else "too much noise"
    return Finding(fault, scale, "half the action range", measured, why, "action_noise=0.1")


def _action_bounds(patient: _Patient) -> Finding | None:
    space = patient.model.action_space
    assert isinstance(space, spaces.Box)
    with np.errstate(over="ignore"):
        steps = (space.high - space.low) / np.spacing(np.maximum(np.abs(space.low), np.abs(space.high)))
    fewest = float(steps.min())
    if fewest >= FEWEST_ACTIONS:
        return None
    index = int(steps.argmin())
    low, high = float(space.low.flat[index]), float(space.high.flat[index])
    return Finding(
        "action bounds", fewest, "different actions",
        f"Between {low!r} and {high!r}, the bounds of dimension {index}, {space.dtype} has {fewest:g} numbers.",
        "The environment gets one of these few actions, whatever the actor says.",
        "env = gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box("
        "env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64), dtype=np.float64)), where "
        "the environment keeps float64; or actions that begin at 0, to which the environment adds the lower bound.",
    )  # fmt: skip


def _observation_scale(patient: _Patient) -> Finding | None:
    states = patient.states()
    if states is None:
        return None
    names, size, change = _dimensions(patient, states)
    largest = float(size.max(initial=0.0))
    normalizer = patient.model._vec_normalize_env
    judged = change if normalizer is None or not normalizer.norm_obs else np.zeros(len(change))
    large, faint = size > LARGEST_OBSERVATION, (judged > 0) & (judged < SMALLEST_CHANGE)
    if large.any():
        value, of, unit = largest, large, "as the networks see it"
        measured = f"a root mean square above {LARGEST_OBSERVATION:g}, up to {largest:.3g}"
        why = "Networks are built for numbers near 1: first layers start saturated."
    elif largest < SMALLEST_OBSERVATION and change.any():  # what never changes has nothing to say, on purpose
        value, of, unit = largest, size > 0, "as the networks see it"
        measured = f"a root mean square of at most {largest:.3g}"
        why = "Networks are built for numbers near 1: they can hardly tell one state from another."
    elif faint.any():
        value, of, unit = float(judged[faint].min()), faint, "standard deviation"
        measured = f"a standard deviation below {SMALLEST_CHANGE:g}, down to {value:.3g}"
        why = "Networks are built for changes near 1: they can hardly tell what these say."
    else:
        return None
    which = [name for name, chosen in zip(names, of, strict=True) if chosen]
    shown = ", ".join(which[:5]) + (", ..." if len(which) > 5 else "")
    rewards = _reward_scale(patient)
    return Finding(
        "observation scale", value, unit,
        f"{len(which)} of {len(names)} dimensions of the observations ({shown}) have {measured}.", why,
        _normalized(patient, scale_rewards=rewards is not None and rewards.value > LARGEST_REWARD),
    )  # fmt: skip


def _dimensions(patient: _Patient, states: Any) -> tuple[list[str], Array, Array]:  # noqa: ANN401 - of any space
    """
    Of every dimension that is a number, as the networks see it: its name, root mean square, and standard deviation (0
    for what is constant but for rounding).
    """
    seen = tensors(patient.model, states)
    names, columns = [], []
    for key in _keys_of_numbers(patient.model.observation_space):
        part = (seen if key is None else seen[key]).cpu().numpy().astype(np.float64)
        part = part.reshape(len(part), -1)
        names += [f"{index}" if key is None else f"{key!r} {index}" for index in range(part.shape[1])]
        columns.append(part)
    numbers = np.hstack(columns or [np.zeros((1, 0))])
    deviation, (least, share) = numbers.std(axis=0), _ROUNDING
    varies = deviation > np.maximum(least, share * np.abs(numbers.mean(axis=0)))
    return names, np.sqrt((numbers**2).mean(axis=0)), np.where(varies, deviation, 0.0)


def _keys_of_numbers(space: spaces.Space[Any]) -> list[str | None]:
    """Keys of what is neither an image nor one-hot; None for an observation without keys."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    return [key for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)]


def _normalized(patient: _Patient, scale_rewards: bool) -> str:
    """The line that puts VecNormalize around the environments."""
    model = patient.model
    env, arguments = "env", [] if scale_rewards else ["norm_reward=False"]
    if model.env is not None and isinstance(model.env.unwrapped, QuickDummyVecEnv):
        env = "DummyVecEnv([lambda: env])"
    if isinstance(model.observation_space, spaces.Dict):
        arguments.append(f"norm_obs_keys={_keys_of_numbers(model.observation_space)}")
        if model.env is not None and is_vecenv_wrapped(model.env, VecTransposeImage):
            env = f"VecTransposeImage({env})"
    option = "--normalize" if scale_rewards else "--set normalize_observations=True"
    line = f"env = VecNormalize({', '.join([env, *arguments])}), or {option} for simple-ddpg train"
    return f"{line}; rewards are scaled by it too." if scale_rewards else f"{line}."


def _saturation(patient: _Patient) -> Finding | None:
    model, states = patient.model, patient.states()
    if states is None:
        return None
    with evaluation_mode(model):
        actions = model.actor(tensors(model, states)).cpu().numpy()
    share = np.maximum((actions > BOUND).mean(axis=0), (actions < -BOUND).mean(axis=0))
    stuck = int((share >= STUCK_SHARE).sum())
    if stuck == 0 or len(actions) < 10:
        return None
    return Finding(
        "saturation", float(share.max()), "of the states",
        f"In {stuck} of {len(share)} dimensions the actor gives one and the same bound in {100 * share.max():.0f} % of "
        "the states.",
        "There the tanh is flat and passes no gradient, so the actor stays as it is.",
        "train anew with policy_kwargs=dict(last_layer_init=3e-3) and a smaller learning_rate for the actor: "
        "learning_rate=3e-4, critic_learning_rate=1e-3. Where the bound is the best action everywhere, it is no fault.",
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
    usual = max(measured.typical, float(np.abs(rewards).max()))
    if model._n_updates < horizon / model.tau or abs(measured.bias) <= usual:
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
    stored = [each for kept in vars(buffer).values() for each in (kept.values() if isinstance(kept, dict) else [kept])]
    size = float(sum(each.nbytes for each in stored if isinstance(each, np.ndarray)))
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


def _memory_bytes() -> int | None:
    """That this process may use; None where the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


#: What is looked for, by name, in the order in which to cure: what others follow from comes before them.
FAULTS: Final[dict[str, Callable[[_Patient], Finding | None]]] = {
    "observation scale": _observation_scale,
    "reward scale": _reward_scale,
    "no exploration": partial(_noise, little=True),
    "too much noise": partial(_noise, little=False),
    "action bounds": _action_bounds,
    "learning starts": _learning_starts,
    "updates per step": _updates,
    "saturation": _saturation,
    "Q bias": _q_bias,
    "buffer memory": _buffer_memory,
    "threads": _threads,
}
#: Faults that follow from others: to cure these alone seldom helps.
CAUSES: Final = dict.fromkeys(("saturation", "Q bias"), ("observation scale", "reward scale"))
