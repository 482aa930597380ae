"""Batches from Stable-Baselines3's (SB3) replay buffer, without its needless copies.

Not here: another replay buffer. The numbers drawn, and their order, are those of SB3's `ReplayBuffer.sample`; buffers
of any other class sample as they always do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


def sample(replay_buffer: ReplayBuffer | None, batch_size: int, env: VecNormalize | None) -> ReplayBufferSamples:
    """
    A random batch of transitions. Mirrors `ReplayBuffer.sample` and `_get_samples` of SB3 2.9.2.

    :param replay_buffer: of any class
    :param batch_size: B
    :param env: normalizes observations and rewards, None for no normalization
    :return: observations (B, ...), actions (B, A), rewards and dones (B, 1), where dones are 0 after a time limit
    """
    assert replay_buffer is not None
    if type(replay_buffer) is not ReplayBuffer or replay_buffer.optimize_memory_usage or env is not None:
        return replay_buffer.sample(batch_size, env=env)
    rows = np.random.randint(0, replay_buffer.size(), size=batch_size)
    # SB3 draws the environment of each row, also where there is only one.
    columns = np.random.randint(0, high=replay_buffer.n_envs, size=(batch_size,))
    places = rows * replay_buffer.n_envs + columns

    def gather(array: npt.NDArray[Any], *shape: int) -> th.Tensor:
        values = array.reshape(-1, *array.shape[2:]).take(places, axis=0)
        return th.as_tensor(values.reshape(batch_size, *shape) if shape else values, device=replay_buffer.device)

    terminated = gather(replay_buffer.dones, 1) * (1 - gather(replay_buffer.timeouts, 1))
    return ReplayBufferSamples(
        observations=gather(replay_buffer.observations),
        actions=gather(replay_buffer.actions),
        next_observations=gather(replay_buffer.next_observations),
        dones=terminated,
        rewards=gather(replay_buffer.rewards, 1),
    )
