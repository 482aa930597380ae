"""When an environment fails: the error says which one and when.

Not here: numbers that are not finite (`numbers.py`), and how a dead process is noticed (`sb3/vec_env.py`). An
exception of the environment's own keeps its type and traceback; a note is added to it.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_simple_ddpg.safety.mistakes import origin_of

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent


class DeadEnvironmentError(RuntimeError):
    """The process of an environment has ended."""


@contextlib.contextmanager
def explained_errors(model: "Agent") -> Iterator[None]:
    """
    While it lasts, an error of an environment says of which one and when.

    :param model: with an environment or without
    :raises DeadEnvironmentError: when the process of an environment has ended; the others are ended too
    """
    env = None if model.env is None else model.env.unwrapped
    try:
        yield
    except (EOFError, ConnectionError) as error:
        origin = origin_of(error)
        dead = _end(origin.vec_env, origin.owner(env)) if isinstance(origin.vec_env, SubprocVecEnv) else ""
        if not dead:
            raise
        raise DeadEnvironmentError(
            f"{dead} at timestep {model.num_timesteps}. Whatever it raised stands in the output of that process; to "
            "see it here, use DummyVecEnv. All processes of these environments have been ended."
        ) from error
    except Exception as error:
        _explain(error, env, model.num_timesteps)
        raise


def _explain(error: Exception, training: VecEnv | None, timestep: int) -> None:
    """
    Note where an error was raised.

    :raises ValueError: from it, when it came of an observation that is not of the space that was promised
    """
    origin = origin_of(error)
    # Here SB3 stores what fits; only these errors come before it has looked at the observation.
    refused = origin.index is None or isinstance(error, KeyError | IndexError | TypeError)
    for place, observation in enumerate(origin.observations if refused else ()):
        index = place if origin.index is None else origin.index
        assert origin.vec_env is not None
        try:
            check_observation(f"Environment {index}", observation, origin.vec_env.observation_space)
        except ValueError as explained:
            explained.add_note(replace(origin, index=index).note(training, timestep))
            raise explained from error
    note = origin.note(training, timestep)
    if note:
        error.add_note(note)


def check_observation(name: str, observation: Any, space: spaces.Space[Any]) -> Any:  # noqa: ANN401 - may be anything
    """
    SB3 casts what it stores to the shape and dtype of the space; so does this, but only where nothing is lost.

    :param name: of the environment, for the message
    :param observation: as an environment gave it
    :param space: that it promised
    :return: the observation, or the same numbers in the shape of the space
    :raises ValueError: for another shape, a missing key, or numbers that the space cannot hold
    """
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(observation, dict) or key not in observation:
                raise ValueError(f"{name} gave an observation without the key {key!r} of its space: {observation!r}.")
        parts = {
            key: check_observation(f"{name}, key {key!r},", observation[key], part)
            for key, part in space.spaces.items()
        }
        same = all(parts[key] is observation[key] for key in parts)
        return observation if same else {**observation, **parts}
    shape, dtype = space.shape, space.dtype
    if type(observation) is np.ndarray and observation.dtype == dtype and observation.shape == shape:
        return observation
    array = observation if isinstance(observation, np.ndarray) else np.asarray(observation)
    assert shape is not None
    assert dtype is not None
    if array.shape != shape and _without_leading_ones(array.shape) != _without_leading_ones(shape):
        cure = "change the one or the other. (An environment may not change its spaces.)"
        if array.size == math.prod(shape):
            cure = f"return np.reshape(observation, {shape})."
        raise ValueError(
            f"{name} gave an observation of shape {array.shape}, its observation_space has {shape}: {cure}"
        )
    numbers = _numbers_of(array) if array.dtype.kind == "O" else array
    if numbers is None or numbers.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} gave an observation of dtype {array.dtype}, its observation_space holds {dtype}, which would lose "
            f"what it says: return numbers, got {observation!r}."
        )
    if dtype.kind != "f" and numbers.dtype != dtype:
        with np.errstate(invalid="ignore"):
            whole = numbers.astype(dtype)
        if not (whole == numbers).all():
            raise ValueError(
                f"{name} gave an observation of dtype {array.dtype}, its observation_space holds {dtype}, which would "
                f"lose what it says (values from {numbers.min()} to {numbers.max()}): give the space dtype=np.float32, "
                "or return what it can hold."
            )
        numbers = whole
    if isinstance(space, spaces.Discrete) and not 0 <= numbers.item() - space.start < space.n:
        raise ValueError(f"{name} gave the observation {observation!r}, which is not in its space, {space}.")
    return numbers if numbers.shape == shape else numbers.reshape(shape)


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What is left of a shape when it is stored: axes of length 1 in front come and go in silence, and lose nothing."""
    return shape[next((axis for axis, length in enumerate(shape) if length != 1), len(shape)) :]


def _numbers_of(objects: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """The real numbers in an array of objects (None and words are none, though NumPy makes some of them); else None."""
    values = [item if isinstance(item, Decimal | Fraction) else np.asarray(item) for item in objects.flat]
    if not all(not isinstance(item, np.ndarray) or (item.size == 1 and item.dtype.kind in "biuf") for item in values):
        return None
    numbers = [item.item() if isinstance(item, np.ndarray) else float(item) for item in values]
    return np.array(numbers).reshape(objects.shape)


def check_action_space(name: str, env: gym.Env[Any, Any], promised: spaces.Space[Any]) -> None:
    """
    :param name: of the environment, for the message
    :param env: as it is now
    :param promised: its action space when the networks were built
    :raises ValueError: when its action space is another now
    """
    now = env.action_space
    if now is not promised and now != promised:
        raise ValueError(
            f"{name} has changed its action space from {promised} to {now}: it may not, since the networks are built "
            "for the first one."
        )


def _end(env: SubprocVecEnv, owner: str) -> str:
    """End what is left of the processes, and say which one had ended by itself; "" for none."""
    for process in env.processes:
        process.join(timeout=1.0 if not process.is_alive() else 0.1)
    dead = [
        f"Environment {index}{owner} (process {process.pid}) ended with exit code {process.exitcode}"
        for index, process in enumerate(env.processes)
        if not process.is_alive()
    ]
    if dead:
        for process, remote in zip(env.processes, env.remotes, strict=True):
            process.terminate()
            process.join()
            remote.close()
        env.waiting, env.closed = False, True  # so that closing it, which the user will do, does not wait
    return "; ".join(dead)
