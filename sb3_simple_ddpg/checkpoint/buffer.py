"""Replay buffers and plain values as files without any pickle, readable across versions of NumPy.

Not here: which files a checkpoint is made of, and that none is ever half written (`folder.py`).
"""

import base64
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

_ROWS_AT_ONCE = 4096  # compared at once, so that a buffer of images is not copied as a whole


class CheckpointError(ValueError):
    """No checkpoint can be written to, or read from, a folder."""


_SETTINGS = frozenset(
    {"buffer_size", "observation_space", "action_space", "obs_shape", "action_dim", "device", "n_envs", "n_steps"}
    | {"optimize_memory_usage", "handle_timeout_termination", "gamma", "env", "copy_info_dict", "n_sampled_goal"}
    | {"goal_selection_strategy", "her_ratio"}
)
_ROWS = ("actions", "rewards", "dones", "timeouts", "ep_start", "ep_length")
_STORED = frozenset({"pos", "full", "observations", "next_observations", "infos", "_current_ep_start", *_ROWS})


def cut_episodes(replay_buffer: ReplayBuffer) -> None:
    """
    Mark the last stored transition of each environment as the one at which a time limit struck.

    :param replay_buffer: of SB3; one that does not tell time limits from terminal states takes this as it takes those
    """
    if replay_buffer.size() == 0:
        return
    if isinstance(replay_buffer, HerReplayBuffer):
        with warnings.catch_warnings(action="ignore"):  # it tells the user to do what is done here on purpose
            replay_buffer.truncate_last_trajectory()
    last = replay_buffer.pos - 1  # -1 is the last row of a buffer that is full
    going_on = replay_buffer.dones[last] == 0
    replay_buffer.dones[last, going_on] = 1
    if replay_buffer.handle_timeout_termination:
        replay_buffer.timeouts[last, going_on] = 1


def check_buffer(replay_buffer: ReplayBuffer | None) -> None:
    """
    :param replay_buffer: of SB3, or a subclass that only samples in another way
    :raises CheckpointError: when it holds more than is known how to store
    """
    more = sorted(vars(replay_buffer).keys() - _SETTINGS - _STORED)
    if more:
        raise CheckpointError(
            f"Checkpoints store the replay buffers of SB3; {type(replay_buffer).__name__} also holds "
            f"{', '.join(more)}: use model.save and model.save_replay_buffer, which resume less exactly."
        )


def write_buffer(replay_buffer: ReplayBuffer, path: Path) -> None:
    """
    :param replay_buffer: one that `check_buffer` accepts
    :param path: of the npz file to write
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in _arrays(replay_buffer):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _arrays(replay_buffer: ReplayBuffer) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The filled rows; of the next observations only those that are not the observation of the next row."""
    rows = replay_buffer.size()
    yield "place", np.array([replay_buffer.pos, replay_buffer.full], np.int64)
    for name in _ROWS:
        if hasattr(replay_buffer, name):
            yield name, getattr(replay_buffer, name)[:rows]
    if isinstance(replay_buffer, HerReplayBuffer):
        yield "current_ep_start", replay_buffer._current_ep_start
        if replay_buffer.copy_info_dict:
            infos = json.dumps(encode(replay_buffer.infos[:rows].tolist()))
            yield "infos", np.frombuffer(infos.encode(), np.uint8)
    for key, observations in _parts(replay_buffer.observations):
        if replay_buffer.optimize_memory_usage:
            yield f"observations{key}", observations[: rows + 1]  # one more: the last row's next observation
            continue
        next_observations = dict(_parts(replay_buffer.next_observations))[key]
        differs = _differs(observations[:rows], next_observations[:rows])
        yield f"observations{key}", observations[:rows]
        yield f"differs{key}", np.packbits(differs)
        yield f"next_observations{key}", next_observations[:rows][differs]


def read_buffer(replay_buffer: ReplayBuffer, path: Path) -> None:
    """
    :param replay_buffer: of the same settings as the one that was written
    :param path: of the npz file
    """
    with np.load(path, allow_pickle=False) as arrays:
        replay_buffer.pos, replay_buffer.full = int(arrays["place"][0]), bool(arrays["place"][1])
        rows = replay_buffer.size()
        for name in _ROWS:
            if hasattr(replay_buffer, name):
                getattr(replay_buffer, name)[:rows] = arrays[name]
        if isinstance(replay_buffer, HerReplayBuffer):
            replay_buffer._current_ep_start = arrays["current_ep_start"]
            if replay_buffer.copy_info_dict:
                for row, infos in enumerate(decode(json.loads(arrays["infos"].tobytes()))):
                    replay_buffer.infos[row] = infos
        for key, observations in _parts(replay_buffer.observations):
            stored = arrays[f"observations{key}"]
            observations[: len(stored)] = stored
            if replay_buffer.optimize_memory_usage:
                continue
            next_observations = dict(_parts(replay_buffer.next_observations))[key]
            differs = np.unpackbits(arrays[f"differs{key}"], count=rows * replay_buffer.n_envs).astype(bool)
            next_observations[:rows] = np.roll(stored, -1, axis=0)
            next_observations[:rows][differs.reshape(rows, replay_buffer.n_envs)] = arrays[f"next_observations{key}"]


def _parts(observations: npt.NDArray[Any] | dict[str, npt.NDArray[Any]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """A Dict's keys with a colon before each; the empty name for anything else."""
    if isinstance(observations, dict):
        yield from ((f":{key}", values) for key, values in observations.items())
    else:
        yield "", observations


def _differs(observations: npt.NDArray[Any], next_observations: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which next observations are not, byte for byte, the observation of the row below; the first follows the last."""
    rows, n_envs = observations.shape[:2]
    differs = np.ones((rows, n_envs), bool)
    for start in range(0, rows, _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        below = observations[np.arange(rows)[here] - rows + 1]  # -1 + 1 is the first
        bits = [
            np.ascontiguousarray(part).reshape(len(below), n_envs, -1).view(np.uint8)
            for part in (below, next_observations[here])
        ]
        differs[here] = (bits[0] != bits[1]).any(axis=-1)
    return differs


def encode(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can be made to hold
    """
    Numbers keep every bit: JSON's floats are written in full, arrays as their bytes.

    :param value: numbers, strings, arrays, lists, tuples (which become lists), dicts of strings, None
    :return: the same, for `json.dumps`
    :raises CheckpointError: for anything else
    """
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__": content, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"Checkpoints hold numbers, strings, arrays, lists and dicts, got {value!r} of {type(value)}: keep it out of "
        "the infos that HerReplayBuffer(copy_info_dict=True) stores."
    )


def decode(value: Any) -> Any:  # noqa: ANN401 - as above
    """
    :param value: from `json.loads`
    :return: what `encode` was given
    """
    if isinstance(value, dict):
        if "__array__" in value:
            flat = np.frombuffer(base64.b64decode(value["__array__"]), np.dtype(value["dtype"]))
            array = flat.reshape(value["shape"]).copy()
            return array if value["shape"] else array[()]
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value
