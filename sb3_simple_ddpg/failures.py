"""When an environment fails: the error says which one and when, and nobody waits for a process that is dead.

Not here: numbers that are not finite (`guards.py`). An exception of the environment's own keeps its type and
traceback; a note is added to it.
"""

import contextlib
import math
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from multiprocessing import Pipe, connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_simple_ddpg.origins import environments_of, origin_of

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


class DeadEnvironmentError(RuntimeError):
    """The process of an environment has ended."""


@contextlib.contextmanager
def watched_environments(model: "SimpleDDPG", callback: object = None) -> Iterator[None]:
    """
    While it lasts, observations are checked and dead processes noticed.

    :param model: with an environment or without
    :param callback: whose environments are watched too
    :raises DeadEnvironmentError: when the process of an environment has ended; the others are ended too
    :raises ValueError: for an observation that is not of the space that the environment promised
    """
    env = None if model.env is None else model.env.unwrapped
    others = [other for other in environments_of(callback) if other is not env]
    try:
        with contextlib.ExitStack() as watch:
            for each in [env, *others]:
                if isinstance(each, DummyVecEnv):
                    watch.enter_context(_checked(each))
                if isinstance(each, SubprocVecEnv):
                    watch.enter_context(_noticed(each))
                    watch.enter_context(_checked_together(each))
            yield
    except (EOFError, ConnectionError) as error:
        origin = origin_of(error)
        dead = ""
        if isinstance(origin.vec_env, SubprocVecEnv):
            dead = _end(origin.vec_env, origin.owner(env))
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
    for index, observation in enumerate(origin.observations):
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


def check_together(observations: Any, space: spaces.Space[Any]) -> Any:  # noqa: ANN401 - of any space
    """
    :param observations: of all environments, stacked
    :param space: of one
    :return: the same, or the same numbers in the shape of the space
    :raises ValueError: as `check_observation`
    """
    if isinstance(space, spaces.Dict):
        parts = {key: _together(f", key {key!r},", observations[key], part) for key, part in space.spaces.items()}
        return {**observations, **parts}
    return _together("", observations, space)


def _together(of_key: str, observations: npt.NDArray[Any], space: spaces.Space[Any]) -> npt.NDArray[Any]:
    kinds = observations.dtype.kind, np.dtype(space.dtype).kind
    if observations.shape[1:] == space.shape and (observations.dtype == space.dtype or kinds == ("f", "f")):
        return observations
    rows = [check_observation(f"Environment {index}{of_key}", row, space) for index, row in enumerate(observations)]
    return np.stack(rows)


def check_last_observation(name: str, info: dict[str, Any], space: spaces.Space[Any]) -> None:
    """
    The last observation of an episode comes in the info: SB3 stores it without a look.

    :param name: of the environment, for the message
    :param info: of a step; what it holds may be replaced by the same numbers in the shape of the space
    :param space: that the environment promised
    :raises ValueError: as `check_observation`
    """
    if "terminal_observation" in info:
        last = check_observation(f"{name}, at the end of an episode,", info["terminal_observation"], space)
        if last is not info["terminal_observation"]:
            info["terminal_observation"] = last


@contextlib.contextmanager
def _checked(env: DummyVecEnv) -> Iterator[None]:
    """DummyVecEnv would spread a wrong shape over its arrays, and cut a wrong dtype off, in silence."""
    save, action_spaces = env._save_obs, [one.action_space for one in env.envs]
    # What nearly every step passes: to ask wrappers for their space goes through each of them.
    shape, dtype = env.observation_space.shape, env.observation_space.dtype
    innermost = [(one.unwrapped, one.unwrapped.action_space) for one in env.envs]

    def save_checked(env_idx: int, obs: Any) -> None:  # noqa: ANN401 - may be anything
        if type(obs) is not np.ndarray or obs.shape != shape or obs.dtype != dtype:
            obs = check_observation(f"Environment {env_idx}", obs, env.observation_space)
        if env.buf_dones[env_idx]:
            check_last_observation(f"Environment {env_idx}", env.buf_infos[env_idx], env.observation_space)
        one, action_space = innermost[env_idx]
        if one.action_space is action_space and not env.buf_dones[env_idx]:
            save(env_idx, obs)
            return
        now = env.envs[env_idx].action_space
        if now is not action_spaces[env_idx] and now != action_spaces[env_idx]:
            raise ValueError(
                f"Environment {env_idx} has changed its action space from {action_spaces[env_idx]} to {now}: it may "
                "not, since the networks are built for the first one."
            )
        save(env_idx, obs)

    env._save_obs = save_checked  # type: ignore[method-assign]  # of this object, for as long as it learns
    try:
        yield
    finally:
        del env._save_obs


@contextlib.contextmanager
def _checked_together(env: SubprocVecEnv) -> Iterator[None]:
    """All observations have come as one array."""
    step_wait, reset = env.step_wait, env.reset

    def step_wait_checked() -> Any:  # noqa: ANN401 - as SB3's
        observations, rewards, dones, infos = step_wait()
        for index in np.flatnonzero(dones):
            check_last_observation(f"Environment {index}", infos[index], env.observation_space)
        return check_together(observations, env.observation_space), rewards, dones, infos

    env.step_wait = step_wait_checked  # type: ignore[method-assign]  # of this object, for as long as it learns
    env.reset = lambda: check_together(reset(), env.observation_space)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del env.step_wait, env.reset


@contextlib.contextmanager
def _noticed(env: SubprocVecEnv) -> Iterator[None]:
    """
    Close our end of the pipe to a process when that ends.

    Otherwise one may wait for ever: forked processes hold the other ends of each other's pipes open.
    """
    if os.name == "nt":  # no forks there
        yield
        return
    stopped, stop = Pipe(duplex=False)

    def watch() -> None:
        ready = connection.wait([stopped, *(process.sentinel for process in env.processes)])
        for process, remote in zip(env.processes, env.remotes, strict=True):
            if process.sentinel in ready and stopped not in ready:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(remote.fileno())) as pipe:
                    pipe.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.close()
        watcher.join()
        stopped.close()


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
