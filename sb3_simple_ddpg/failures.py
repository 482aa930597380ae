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

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

if TYPE_CHECKING:
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


class DeadEnvironmentError(RuntimeError):
    """The process of an environment has ended."""


@contextlib.contextmanager
def watched_environments(model: "SimpleDDPG") -> Iterator[None]:
    """
    While it lasts, observations are checked and dead processes noticed.

    :param model: with an environment or without
    :raises DeadEnvironmentError: when the process of an environment has ended; the others are ended too
    :raises ValueError: for an observation that is not of the space that the environment promised
    """
    env = None if model.env is None else model.env.unwrapped
    try:
        with contextlib.ExitStack() as watch:
            if isinstance(env, DummyVecEnv):
                watch.enter_context(_checked(env))
            if isinstance(env, SubprocVecEnv):
                watch.enter_context(_noticed(env))
                watch.enter_context(_checked_together(env))
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
        place = _environment_of(error)
        if place is not None:
            error.add_note(f"Raised by environment {place}, at timestep {model.num_timesteps} of learn.")
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


@contextlib.contextmanager
def _checked(env: DummyVecEnv) -> Iterator[None]:
    """DummyVecEnv would spread a wrong shape over its arrays, and cut a wrong dtype off, in silence."""
    save, action_spaces = env._save_obs, [one.action_space for one in env.envs]
    # What nearly every step passes: to ask wrappers for their space goes through each of them.
    shape, dtype = env.observation_space.shape, env.observation_space.dtype
    innermost = [(one.unwrapped, one.unwrapped.action_space) for one in env.envs]

    def save_checked(env_idx: int, obs: Any) -> None:  # noqa: ANN401 - may be anything
        if type(obs) is not np.ndarray or obs.shape != shape or obs.dtype != dtype:
            check_observation(f"Environment {env_idx}", obs, env.observation_space)
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
    """All observations have come as one array: one look at the first will do."""
    step_wait, reset = env.step_wait, env.reset

    def checked(observations: Any) -> Any:  # noqa: ANN401 - of any space
        first = (
            {key: part[0] for key, part in observations.items()} if isinstance(observations, dict) else observations[0]
        )
        check_observation("An environment", first, env.observation_space)
        return observations

    def step_wait_checked() -> Any:  # noqa: ANN401 - as SB3's
        observations, *others = step_wait()
        return checked(observations), *others

    env.step_wait = step_wait_checked  # type: ignore[method-assign]  # of this object, for as long as it learns
    env.reset = lambda: checked(reset())  # type: ignore[method-assign]
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


def _environment_of(error: BaseException) -> int | None:
    """The environment that DummyVecEnv was at, by the traceback."""
    traceback, found = error.__traceback__, None
    while traceback is not None:
        frame = traceback.tb_frame
        if isinstance(frame.f_locals.get("self"), VecEnv) and "env_idx" in frame.f_locals:
            found = frame.f_locals["env_idx"]
        traceback = traceback.tb_next
    return found
