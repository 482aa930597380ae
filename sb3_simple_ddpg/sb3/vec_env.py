"""The vectorised environments of this process: each observation is looked at, and what is handed out is a copy.

Not here: another way to step, and what the checks say (`safety/environments.py`).

Environments that are given to the model one by one get a class of our own. A `DummyVecEnv` or `SubprocVecEnv` of the
user's keeps its class and its methods: while it is `watched`, its containers look at what is put in. Copies of them, by
`copy` or `pickle`, are plain ones, so a copy of such an environment knows nothing of us.
"""

import contextlib
import select
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_simple_ddpg.safety.environments import check_action_space, check_observation

Info = dict[str, Any]
#: The last observation of an episode comes in the info: SB3 stores it without a look.
_AT_THE_END = ", at the end of an episode,"
#: Values that a copy may share.
_IMMUTABLE = frozenset({bool, int, float, str, type(None)})


class QuickDummyVecEnv(DummyVecEnv):
    """SB3's `DummyVecEnv`, which spends more on copying observations and infos than a simple environment on a step."""

    @classmethod
    def instead_of(cls, vec_env: VecEnv) -> VecEnv:
        """
        :param vec_env: that SB3 has made around a single environment
        :return: the same with one of this class inside
        """
        dummy = vec_env.unwrapped
        if type(dummy) is not DummyVecEnv:
            return vec_env
        own = cls([lambda: dummy.envs[0]])
        if not isinstance(vec_env, VecEnvWrapper):
            return own
        vec_env.venv = own  # SB3 puts one wrapper around at most, for images
        return vec_env

    def step_wait(self) -> VecEnvStepReturn:
        """Mirrors SB3 2.9.2, but for the copies."""
        for env_idx in range(self.num_envs):
            obs, self.buf_rews[env_idx], terminated, truncated, info = self.envs[env_idx].step(self.actions[env_idx])
            self.buf_dones[env_idx] = over = terminated or truncated
            self.buf_infos[env_idx] = info
            info["TimeLimit.truncated"] = truncated and not terminated
            if over:
                last = check_observation(f"Environment {env_idx}{_AT_THE_END}", obs, self.observation_space)
                info["terminal_observation"] = deepcopy(last)  # reset may write into the same array
                obs, self.reset_infos[env_idx] = self.envs[env_idx].reset()
            self._save_obs(env_idx, obs)
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), [*map(_copied, self.buf_infos)]

    def _save_obs(self, env_idx: int, obs: Any) -> None:  # noqa: ANN401 - may be anything
        space = self.observation_space
        if type(obs) is not np.ndarray or obs.dtype != space.dtype or obs.shape != space.shape:
            obs = check_observation(f"Environment {env_idx}", obs, space)
        if self.envs[env_idx].action_space is not self.action_space:
            check_action_space(f"Environment {env_idx}", self.envs[env_idx], self.action_space)
        super()._save_obs(env_idx, obs)

    def _obs_from_buf(self) -> VecEnvObs:
        if self.keys == [None]:  # neither Dict nor Tuple
            observations: VecEnvObs = self.buf_obs[None].copy()  # type: ignore[index]  # SB3 says str, and means None too
            return observations
        return dict_to_obs(self.observation_space, {key: values.copy() for key, values in self.buf_obs.items()})


def _copied(info: Info) -> Info:
    return dict(info) if _IMMUTABLE.issuperset(map(type, info.values())) else deepcopy(info)


@contextlib.contextmanager
def watched(*envs: VecEnv | None) -> Iterator[None]:
    """
    While it lasts, vectorised environments of the user's look at what their environments give.

    `DummyVecEnv` would spread a wrong shape over its arrays and cut a wrong dtype off in silence; it also keeps the
    last observation of an episode where a reset may write into it.

    :param envs: any; for other kinds, and for one that is watched already, nothing happens
    """
    with contextlib.ExitStack() as watch:
        for env in envs:
            inner = None if env is None else env.unwrapped
            if isinstance(inner, DummyVecEnv) and not isinstance(inner, QuickDummyVecEnv):
                watch.enter_context(_watched_here(inner))
            elif isinstance(inner, SubprocVecEnv) and not isinstance(inner.remotes[0], _WatchedRemote):
                remotes = inner.remotes
                watched_remotes = tuple(_WatchedRemote(inner, index) for index in range(len(remotes)))
                inner.remotes = watched_remotes
                watch.callback(_put_back, inner, watched_remotes, remotes)
        yield


def _put_back(env: SubprocVecEnv, watched_remotes: Any, remotes: Any) -> None:  # noqa: ANN401 - tuples
    if env.remotes is watched_remotes:
        env.remotes = remotes


@contextlib.contextmanager
def _watched_here(env: DummyVecEnv) -> Iterator[None]:
    action_spaces = [one.action_space for one in env.envs]
    rows, infos = dict(env.buf_obs), env.buf_infos
    watched_rows: dict[Any, _WatchedRows] = {}
    for key, array in rows.items():
        if type(array) is np.ndarray:  # not watched already
            watched_rows[key] = array.view(_WatchedRows)
            watched_rows[key]._watched = env, key, action_spaces
    env.buf_obs.update(watched_rows)
    watched_infos = _WatchedInfos(infos, env.observation_space) if type(infos) is list else infos
    env.buf_infos = watched_infos
    try:
        yield
    finally:  # what somebody else has put there meanwhile stays
        for key, watched_array in watched_rows.items():
            if env.buf_obs.get(key) is watched_array:
                env.buf_obs[key] = rows[key]
        if env.buf_infos is watched_infos and watched_infos is not infos:
            infos[:] = map(dict, watched_infos)
            env.buf_infos = infos


class _WatchedRows(np.ndarray[Any, Any]):
    """The array that `DummyVecEnv` collects observations in, over the same memory. What is made of it is plain."""

    #: Environment, key of a Dict, action spaces. Views of it, which are of this class too, have none.
    _watched: tuple[DummyVecEnv, Any, list[spaces.Space[Any]]] | None = None

    def __setitem__(self, index: Any, value: Any) -> None:  # noqa: ANN401 - as NumPy's
        if self._watched is not None and type(index) is int:
            env, key, action_spaces = self._watched
            if type(value) is not np.ndarray or value.dtype != self.dtype or value.shape != self.shape[1:]:
                name, space = f"Environment {index}", env.observation_space
                if isinstance(space, spaces.Dict):
                    name, space = f"{name}, key {key!r},", space[key]
                value = check_observation(name, value, space)
            if env.envs[index].action_space is not action_spaces[index]:
                check_action_space(f"Environment {index}", env.envs[index], action_spaces[index])
        super().__setitem__(index, value)

    def __copy__(self) -> Any:  # noqa: ANN401 - a plain array
        return np.array(self)

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> Any:  # noqa: ANN401 - a plain array
        return np.array(self)

    def __reduce__(self) -> Any:  # noqa: ANN401 - as NumPy's
        return np.array(self).__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as NumPy's
        return np.array(self).__reduce_ex__(protocol)


class _WatchedInfos(list[Info]):
    """What `DummyVecEnv` collects infos in."""

    def __init__(self, infos: list[Info], space: spaces.Space[Any]) -> None:
        super().__init__(infos)
        self._space = space

    def __setitem__(self, index: Any, info: Any) -> None:  # noqa: ANN401 - as list's
        if type(info) is dict:
            info = _WatchedInfo(info)
            info.watched = f"Environment {index}", self._space
        super().__setitem__(index, info)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Info]:
        return [*map(_copied, self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as list's
        return list, ([*map(dict, self)],)


class _WatchedInfo(Info):
    """An info in which the last observation of an episode is a copy: reset may write into the same array."""

    watched: tuple[str, spaces.Space[Any]]

    def __setitem__(self, key: str, value: Any) -> None:  # noqa: ANN401 - may be anything
        if key == "terminal_observation":
            value = deepcopy(check_observation(f"{self.watched[0]}{_AT_THE_END}", value, self.watched[1]))
        super().__setitem__(key, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Info:
        return deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as dict's
        return dict, (dict(self),)


class _WatchedRemote:
    """
    The pipe to one process of `SubprocVecEnv`, which looks at what comes.

    Nobody waits for a process that is dead: forked ones hold the other ends of each other's pipes open, so that the
    pipe alone would not tell.
    """

    def __init__(self, env: SubprocVecEnv, index: int) -> None:
        self._env, self._index, self._remote = env, index, env.remotes[index]
        self._poll: Any = None
        if hasattr(select, "poll"):  # not on Windows, where nothing is forked
            self._poll = select.poll()
            self._poll.register(env.processes[index].sentinel, select.POLLIN)
            self._poll.register(self._remote.fileno(), select.POLLIN)
        self._command: str | None = None
        self._error: ValueError | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the pipe's
        return getattr(vars(self)["_remote"], name)

    def send(self, message: tuple[str, Any]) -> None:
        self._command = message[0]
        self._remote.send(message)

    def recv(self) -> Any:  # noqa: ANN401 - whatever the process answers
        if self._poll is not None and self._remote.fileno() not in dict(self._poll.poll()):
            raise EOFError("the process has ended")
        answer, command, self._command = self._remote.recv(), self._command, None
        if command not in ("step", "reset"):
            return answer
        env, env_idx = self._env, self._index  # `safety/mistakes.py` looks for these two names
        name, space = f"Environment {env_idx}", env.observation_space
        try:
            answer = check_observation(name, answer[0], space), *answer[1:]
            if command == "step" and answer[2] and "terminal_observation" in answer[3]:
                last = check_observation(f"{name}{_AT_THE_END}", answer[3]["terminal_observation"], space)
                answer[3]["terminal_observation"] = last
        except ValueError as error:
            self._error = error
        self._raise_when_all_have_answered()
        return answer

    def _raise_when_all_have_answered(self) -> None:
        """What stays in a pipe would be taken for the next answer."""
        remotes: Any = self._env.remotes
        if self._index == len(remotes) - 1:
            errors = [remote._error for remote in remotes if remote._error is not None]
            for remote in remotes:
                remote._error = None
            if errors:
                self._env.waiting = False
                raise errors[0]
