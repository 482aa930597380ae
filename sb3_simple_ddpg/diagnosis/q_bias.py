"""What the critic promised and what came true: Q(s0, mu(s0)) minus the discounted return of the newest episodes.

Not here: whether that is too much (`diagnosis.py`).

Everything is read from the replay buffer: nothing is played, drawn or changed. The returns are those of the agent that
explored, one to a few episodes ago, so noise makes them lower and quick progress makes Q higher; a bias that stays, or
exceeds the returns themselves, is the critic's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

Array: TypeAlias = npt.NDArray[Any]
Observations: TypeAlias = Array | dict[str, Array]

#: Rows of the buffer that are looked at, the newest: enough for whole episodes of 1,000 timesteps.
_ROWS: Final = 5_000
_FEWEST_ROWS: Final = 1_100


@dataclass(frozen=True)
class QBias:
    """
    Means over episodes, in the unit of the reward that the critic sees.

    :param q_start: Q(s0, mu(s0)), where s0 is the first observation of an episode
    :param discounted_return: what the episode brought; where a time limit cut it, Q(s, mu(s)) of its end is added,
        discounted, since the critic is taught to expect what would have followed
    :param typical: root of the mean square of the discounted returns
    :param length: of an episode, in timesteps
    :param episodes: number of episodes
    """

    q_start: float
    discounted_return: float
    typical: float
    length: float
    episodes: int

    @property
    def bias(self) -> float:
        """Positive: the critic promises too much."""
        return self.q_start - self.discounted_return


def measure_q_bias(model: "Agent", episodes: int = 10) -> QBias | None:
    """
    Eq. (1) of Lillicrap et al. 2016 says what Q stands for, the expected discounted return; here is the difference.

    :param model: whose replay buffer holds what it played
    :param episodes: number of newest whole episodes, at most
    :return: the bias, or None where no whole episode is in the buffer
    """
    buffer = model.replay_buffer
    if not readable(buffer):
        return None
    rows = newest_rows(buffer)
    normalizer = model._vec_normalize_env
    rewards = np.asarray(buffer._normalize_reward(buffer.rewards[rows], normalizer), np.float64)
    joined = _joined(buffer, rows)
    known_start = not buffer.full and len(rows) == buffer.pos
    found = [
        (env, start, end)
        for env in range(buffer.n_envs)
        for start, end in _whole_episodes(buffer.dones[rows, env], joined[:, env], known_start)
    ]
    found = sorted(found, key=lambda each: each[2])[-episodes:]
    if not found:
        return None
    envs, starts, ends = (np.array(each) for each in zip(*found, strict=True))
    with evaluation_mode(model):
        q_starts = q_of_actor(model, pick(buffer.observations, rows[starts], envs))
        q_ends = np.zeros(len(found))
        cut = np.array([bool(buffer.timeouts[rows[end], env]) for env, _, end in found])
        if cut.any():
            q_ends[cut] = q_of_actor(model, pick(buffer.next_observations, rows[ends[cut]], envs[cut]))
    returns = np.array([
        np.append(rewards[start : end + 1, env], q_end) @ model.gamma ** np.arange(end - start + 2)
        for (env, start, end), q_end in zip(found, q_ends, strict=True)
    ])  # fmt: skip
    typical = float(np.sqrt((returns**2).mean()))
    return QBias(float(q_starts.mean()), float(returns.mean()), typical, float((ends - starts + 1).mean()), len(found))


class QBiasCallback(BaseCallback):
    """
    Logs `rollout/q_bias`, Q(s0, mu(s0)) minus the discounted return of the newest episodes, and `rollout/q_start`.

    :param every: number of timesteps between two measurements
    :param episodes: number of newest episodes that each looks at
    :raises ValueError: for a number below 1
    """

    model: "Agent"

    def __init__(self, every: int = 1_000, episodes: int = 10) -> None:
        super().__init__()
        for name, value in (("every", every), ("episodes", episodes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.every = every
        self.episodes = episodes
        self._next = 0

    def _on_training_start(self) -> None:
        # At whole multiples, so that a resumed run measures where the one that was never stopped does.
        self._next = (self.num_timesteps // self.every + 1) * self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._on_training_start()
        measured = measure_q_bias(self.model, self.episodes)
        if measured is not None:
            self.logger.record("rollout/q_bias", measured.bias)
            self.logger.record("rollout/q_start", measured.q_start)


def readable(buffer: ReplayBuffer | None) -> TypeGuard[ReplayBuffer]:
    """
    :param buffer: of a model
    :return: whether it holds transitions, stored as SB3's buffers store them
    """
    names = ("observations", "actions", "rewards", "dones", "timeouts")
    return buffer is not None and buffer.size() > 0 and all(hasattr(buffer, name) for name in names)


def newest_rows(buffer: ReplayBuffer) -> Array:
    """
    :param buffer: that holds something
    :return: indices of the newest rows, one for each timestep of all environments, in the order of time
    """
    count = min(buffer.size(), max(_FEWEST_ROWS, _ROWS // buffer.n_envs))
    return np.arange(buffer.pos - count, buffer.pos) % buffer.buffer_size


def pick(stored: Observations, rows: Array, envs: Array) -> Observations:
    """
    :param stored: observations of a buffer, shape (rows, environments, ...); or several by key
    :param rows: indices
    :param envs: indices, as many
    :return: the observations there, a batch
    """
    if isinstance(stored, dict):
        return {key: values[rows, envs] for key, values in stored.items()}
    return stored[rows, envs]


def tensors(model: "Agent", observations: Observations) -> Any:  # noqa: ANN401 - a tensor, or several by key
    """
    :param model: whose normaliser is used, unchanged
    :param observations: as the buffer stores them, a batch
    :return: as the networks take them
    """
    seen: Any = ReplayBuffer._normalize_obs(observations, model._vec_normalize_env)
    if isinstance(seen, dict):
        return {key: th.as_tensor(values, device=model.device) for key, values in seen.items()}
    return th.as_tensor(seen, device=model.device)


def q_of_actor(model: "Agent", observations: Observations) -> Array:
    """
    :param model: in evaluation mode
    :param observations: s, a batch of B as the buffer stores them
    :return: Q(s, mu(s)), shape (B,)
    """
    seen = tensors(model, observations)
    values: Array = model.critic.q1_forward(seen, model.actor(seen)).cpu().numpy().astype(np.float64)[:, 0]
    return values


@contextmanager
def evaluation_mode(model: "Agent") -> Iterator[None]:
    """
    Batch norm and dropout as when acting, no gradients; afterwards every layer is in the mode in which it was.

    :param model: whose networks are used
    """
    modes = [(module, module.training) for module in model.policy.modules()]
    model.policy.set_training_mode(False)
    try:
        with th.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _joined(buffer: ReplayBuffer, rows: Array) -> Array:
    """Whether the next row goes on where this one ended, shape (rows - 1, environments): a new `learn` does not."""
    joined = np.ones((len(rows) - 1, buffer.n_envs), bool)
    if not hasattr(buffer, "next_observations"):  # a buffer that saves memory keeps only the one
        return joined
    stored, following = (
        {"": each} if isinstance(each, np.ndarray) else each for each in (buffer.observations, buffer.next_observations)
    )
    for key, observations in stored.items():
        same = following[key][rows[:-1]] == observations[rows[1:]]
        joined &= same.reshape(*same.shape[:2], -1).all(axis=2)
    return joined


def _whole_episodes(dones: Array, joined: Array, known_start: bool) -> Iterator[tuple[int, int]]:
    """First and last row of each episode that is over and whose beginning is there."""
    start = 0 if known_start else None
    for row, done in enumerate(dones):
        if row > 0 and (dones[row - 1] or not joined[row - 1]):
            start = row
        if done and start is not None:
            yield start, row
