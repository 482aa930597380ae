"""When an environment fails: the error says which one and when, and nobody waits for a process that is dead.

Not here: numbers that are not finite (`guards.py`). An exception of the environment's own keeps its type and
traceback; a note is added to it.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from multiprocessing import Pipe, connection
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


class DeadEnvironmentError(RuntimeError):
    """The process of an environment has ended."""


@contextlib.contextmanager
def watched_environments(model: "SimpleDDPG") -> Iterator[None]:
    """
    While it lasts, dead processes are noticed, and an error of an environment says of which one and when.

    :param model: with an environment or without
    :raises DeadEnvironmentError: when the process of an environment has ended; the others are ended too
    """
    env = None if model.env is None else model.env.unwrapped
    try:
        with contextlib.ExitStack() as watch:
            if isinstance(env, SubprocVecEnv):
                watch.enter_context(_noticed(env))
            yield
    except (EOFError, ConnectionError) as error:
        dead = _end(env) if isinstance(env, SubprocVecEnv) else ""
        if not dead:
            raise
        raise DeadEnvironmentError(
            f"{dead} at timestep {model.num_timesteps}. Whatever it raised stands in the output of that process; to "
            "see it here, use DummyVecEnv. All processes of these environments have been ended."
        ) from error
    except Exception as error:
        place = _place_of(error)
        if place is None:
            raise
        note = f"Raised by environment {place['env_idx']}, at timestep {model.num_timesteps} of learn."
        if isinstance(error, KeyError | IndexError | TypeError) and "obs" in place:
            try:  # SB3 did not get as far as to store the observation
                check_observation(f"Environment {place['env_idx']}", place["obs"], place["self"].observation_space)
            except ValueError as explained:
                explained.add_note(note)
                raise explained from error
        error.add_note(note)
        raise


def check_observation(name: str, observation: Any, space: spaces.Space[Any]) -> None:  # noqa: ANN401 - may be anything
    """
    :param name: of the environment, for the message
    :param observation: as an environment gave it
    :param space: that it promised
    :raises ValueError: for another shape, a missing key, or numbers that the space cannot hold
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            if not isinstance(observation, dict) or key not in observation:
                raise ValueError(f"{name} gave an observation without the key {key!r} of its space: {observation!r}.")
            check_observation(f"{name}, key {key!r},", observation[key], part)
        return
    array = observation if isinstance(observation, np.ndarray) else np.asarray(observation)
    if array.shape != space.shape:
        raise ValueError(
            f"{name} gave an observation of shape {array.shape}, its observation_space has {space.shape}: change the "
            "one or the other. (An environment may not change its spaces.)"
        )
    numbers = "biuf" if np.issubdtype(space.dtype, np.floating) else "biu"
    if array.dtype.kind not in numbers:
        raise ValueError(
            f"{name} gave an observation of dtype {array.dtype}, its observation_space holds {space.dtype}, which "
            "would lose what it says: change the one or the other."
        )


def check_action_space(index: int, env: gym.Env[Any, Any], promised: spaces.Space[Any]) -> None:
    """
    :param index: of the environment, for the message
    :param env: as it is now
    :param promised: its action space when the networks were built
    :raises ValueError: when its action space is another now
    """
    now = env.action_space
    if now is not promised and now != promised:
        raise ValueError(
            f"Environment {index} has changed its action space from {promised} to {now}: it may not, since the "
            "networks are built for the first one."
        )


def check_together(observations: Any, space: spaces.Space[Any]) -> None:  # noqa: ANN401 - may be anything
    """
    All observations have come as one array: one look at the first will do.

    :param observations: of all environments
    :param space: of one
    :raises ValueError: as `check_observation`
    """
    first = {key: part[0] for key, part in observations.items()} if isinstance(observations, dict) else observations[0]
    check_observation("An environment", first, space)


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


def _end(env: SubprocVecEnv) -> str:
    """End what is left of the processes, and say which one had ended by itself; "" for none."""
    for process in env.processes:
        process.join(timeout=1.0 if not process.is_alive() else 0.1)
    dead = [
        f"Environment {index} (process {process.pid}) ended with exit code {process.exitcode}"
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


def _place_of(error: BaseException) -> dict[str, Any] | None:
    """The local variables of DummyVecEnv where it was at an environment, by the traceback."""
    traceback, found = error.__traceback__, None
    while traceback is not None:
        names = traceback.tb_frame.f_locals
        if isinstance(names.get("self"), VecEnv) and "env_idx" in names:
            found = names
        traceback = traceback.tb_next
    return found
