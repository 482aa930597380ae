"""Batches from Stable-Baselines3's (SB3) replay buffer, without its needless copies.

Not here: another replay buffer. The numbers drawn, and their order, are those of SB3's `ReplayBuffer.sample`; buffers
of any other class sample as they always do.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

#: Rows that are gathered at once when several gradient steps follow each other.
_ROWS_AT_ONCE = 4096


def sample_batches(
    replay_buffer: ReplayBuffer | None, count: int, batch_size: int, env: VecNormalize | None
) -> Iterator[ReplayBufferSamples]:
    """
    Random batches of transitions, one for each gradient step.

    :param replay_buffer: of any class
    :param count: number of batches
    :param batch_size: B
    :param env: normalizes observations and rewards, None for no normalization
    :return: observations (B, ...), actions (B, A), rewards and dones (B, 1), where dones are 0 after a time limit
    """
    assert replay_buffer is not None
    plain = type(replay_buffer) is ReplayBuffer and not replay_buffer.optimize_memory_usage
    if not plain or env is not None or len(replay_buffer.observations.shape) != 3:
        for _ in range(count):
            yield replay_buffer.sample(batch_size, env=env)
        return
    at_once = max(1, _ROWS_AT_ONCE // batch_size)
    for start in range(0, count, at_once):
        yield from _gather(replay_buffer, min(at_once, count - start), batch_size)


def _gather(replay_buffer: ReplayBuffer, count: int, batch_size: int) -> Iterator[ReplayBufferSamples]:
    """Some batches of flat observations at once. Mirrors `ReplayBuffer.sample` and `_get_samples` of SB3 2.9.2."""
    n_envs, size = replay_buffer.n_envs, replay_buffer.size()
    places = []
    for _ in range(count):
        place = np.random.randint(0, size, size=batch_size)
        if n_envs > 1:  # of one environment SB3 draws too, which takes no random number
            place *= n_envs
            place += np.random.randint(0, high=n_envs, size=(batch_size,))
        places.append(place)
    rows = places[0] if count == 1 else np.concatenate(places)
    dones = _take(replay_buffer.dones, rows)
    dones *= 1 - _take(replay_buffer.timeouts, rows)
    fields = (
        _take(replay_buffer.observations, rows),
        _take(replay_buffer.actions, rows),
        _take(replay_buffer.next_observations, rows),
        dones[:, np.newaxis],
        _take(replay_buffer.rewards, rows)[:, np.newaxis],
    )
    tensors = [th.from_numpy(field) for field in fields]
    if replay_buffer.device.type != "cpu":
        tensors = [tensor.to(replay_buffer.device) for tensor in tensors]
    if count == 1:
        yield ReplayBufferSamples(*tensors)
        return
    yield from map(ReplayBufferSamples, *[tensor.view(count, batch_size, -1).unbind() for tensor in tensors])


def _take(array: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Rows of an array of shape (size, n_envs, ...), counted through both."""
    return array.reshape(-1, *array.shape[2:]).take(rows, axis=0)
