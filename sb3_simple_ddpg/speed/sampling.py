"""Batches from Stable-Baselines3's (SB3) replay buffer, without its needless copies.

Not here: another replay buffer. The numbers drawn, and their order, are those of SB3's `ReplayBuffer.sample`; buffers
of any other class sample as they always do.
"""

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

#: Rows that are gathered at once when several gradient steps follow each other.
_ROWS_AT_ONCE = 4096


def sample_batches(
    replay_buffer: ReplayBuffer | None, count: int, batch_size: int, env: VecNormalize | None
) -> Iterable[ReplayBufferSamples]:
    """
    Random batches of transitions, one for each gradient step: a list where they are drawn together, otherwise each is
    drawn when it is asked for, since a buffer of the user's own may change between two gradient steps.

    :param replay_buffer: of any class
    :param count: number of batches
    :param batch_size: B
    :param env: normalizes observations and rewards, None for no normalization
    :return: observations (B, ...), actions (B, A), rewards and dones (B, 1), where dones are 0 after a time limit
    """
    assert replay_buffer is not None
    plain = _samples_as_in_sb3(replay_buffer) and not replay_buffer.optimize_memory_usage
    if not plain or env is not None or len(replay_buffer.observations.shape) != 3:
        return (replay_buffer.sample(batch_size, env=env) for _ in range(count))
    at_once = max(1, _ROWS_AT_ONCE // batch_size)
    if 0 < count <= at_once:
        return _gather(replay_buffer, count, batch_size)
    parts = (min(at_once, count - start) for start in range(0, count, at_once))
    return chain.from_iterable(_gather(replay_buffer, part, batch_size) for part in parts)


_METHODS = ("sample", "_get_samples", "_normalize_obs", "_normalize_reward", "to_torch")
_METHODS_OF = attrgetter(*_METHODS)
_IN_SB3 = _METHODS_OF(ReplayBuffer), BaseBuffer.sample


def _samples_as_in_sb3(replay_buffer: ReplayBuffer) -> bool:
    """Whether nobody has put a method in the place of one that `_gather` mirrors, on the object or in its class."""
    return (
        type(replay_buffer) is ReplayBuffer
        and vars(replay_buffer).keys().isdisjoint(_METHODS)
        and (_METHODS_OF(ReplayBuffer), BaseBuffer.sample) == _IN_SB3
    )


def _gather(replay_buffer: ReplayBuffer, count: int, batch_size: int) -> list[ReplayBufferSamples]:
    """Some batches of flat observations at once. Mirrors `ReplayBuffer.sample` and `_get_samples` of SB3 2.9.2."""
    n_envs, size = replay_buffer.n_envs, replay_buffer.buffer_size if replay_buffer.full else replay_buffer.pos
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
        return [ReplayBufferSamples(*tensors)]
    return list(map(ReplayBufferSamples, *[tensor.view(count, batch_size, -1).unbind() for tensor in tensors]))


def _take(array: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Rows of an array of shape (size, n_envs, ...), counted through both."""
    return array.reshape(-1, *array.shape[2:]).take(rows, axis=0)
