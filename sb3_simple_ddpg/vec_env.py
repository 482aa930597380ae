"""The vectorised environments of this process: each observation is looked at, and what is handed out is a copy.

Not here: another way to step, and what the checks say (`failures.py`).

Environments that are given to the model one by one get a class of our own. A `DummyVecEnv` of the user's keeps its
class and its methods: while it is `watched`, two of its containers look at what is put in. Copies of them, by `copy`
or `pickle`, are plain ones, so a copy of such an environment knows nothing of us.
"""

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_simple_ddpg.failures import check_action_space, check_observation

Info = dict[str, Any]
#: Values that a copy may share.
_IMMUTABLE = frozenset({bool, int, float, str, type(None)})


class QuickDummyVecEnv(DummyVecEnv):
    """SB3's `DummyVecEnv`, which spends more on copying observations and infos than a simple environment on a step."""

    @classmethod
    def instead_of(cls, vec_env: VecEnv) -> VecEnv:
        """
        :param vec_env: that SB3 has just made around a single environment
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
                info["terminal_observation"] = deepcopy(obs)  # reset may write into the same array
                obs, self.reset_infos[env_idx] = self.envs[env_idx].reset()
            self._save_obs(env_idx, obs)
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), [*map(_copied, self.buf_infos)]

    def _save_obs(self, env_idx: int, obs: Any) -> None:  # noqa: ANN401 - may be anything
        space = self.observation_space
        if type(obs) is not np.ndarray or obs.shape != space.shape or obs.dtype != space.dtype:
            check_observation(f"Environment {env_idx}", obs, space)
        check_action_space(env_idx, self.envs[env_idx], self.action_space)
        super()._save_obs(env_idx, obs)

    def _obs_from_buf(self) -> VecEnvObs:
        if self.keys == [None]:  # neither Dict nor Tuple
            observations: VecEnvObs = self.buf_obs[None].copy()  # type: ignore[index]  # SB3 says str, and means None too
            return observations
        return dict_to_obs(self.observation_space, {key: values.copy() for key, values in self.buf_obs.items()})


def _copied(info: Info) -> Info:
    return dict(info) if _IMMUTABLE.issuperset(map(type, info.values())) else deepcopy(info)


@contextlib.contextmanager
def watched(env: VecEnv | None) -> Iterator[None]:
    """
    While it lasts, a `DummyVecEnv` of the user's, which would spread a wrong shape over its arrays and cut a wrong
    dtype off in silence, looks at what its environments give, and copies the last observation before a reset.

    :param env: any; for others than `DummyVecEnv`, and for one that is watched already, nothing happens
    """
    inner = None if env is None else env.unwrapped
    if not isinstance(inner, DummyVecEnv) or isinstance(inner, QuickDummyVecEnv):
        yield
        return
    look = _Look(inner)
    rows, infos = dict(inner.buf_obs), inner.buf_infos
    watched_rows = {
        key: _WatchedRows.around(array, look, key) for key, array in rows.items() if type(array) is np.ndarray
    }
    inner.buf_obs.update(watched_rows)
    watched_infos = _WatchedInfos(infos) if type(infos) is list else infos
    inner.buf_infos = watched_infos
    try:
        yield
    finally:  # what somebody else has put there meanwhile stays
        for key, array in watched_rows.items():
            if inner.buf_obs.get(key) is array:
                inner.buf_obs[key] = rows[key]
        if inner.buf_infos is watched_infos and watched_infos is not infos:
            infos[:] = map(dict, watched_infos)
            inner.buf_infos = infos


class _Look:
    """Looks at an observation that an environment of `DummyVecEnv` has given."""

    def __init__(self, env: DummyVecEnv) -> None:
        self.env = env
        self.action_spaces = [one.action_space for one in env.envs]

    def __call__(self, env_idx: int, key: Any, observation: Any) -> None:  # noqa: ANN401 - may be anything
        space: Any = self.env.observation_space
        name = f"Environment {env_idx}"
        if isinstance(space, spaces.Dict):
            name, space = f"{name}, key {key!r},", space[key]
        if type(observation) is not np.ndarray or observation.shape != space.shape or observation.dtype != space.dtype:
            check_observation(name, observation, space)
        check_action_space(env_idx, self.env.envs[env_idx], self.action_spaces[env_idx])


class _WatchedRows(np.ndarray[Any, Any]):
    """The array that `DummyVecEnv` collects observations in, over the same memory. What is made of it is plain."""

    _look: _Look | None = None  # parts of it, which are of this class too, have none
    _key: Any = None  # of a Dict

    @classmethod
    def around(cls, array: npt.NDArray[Any], look: _Look, key: Any) -> "_WatchedRows":  # noqa: ANN401 - of a Dict, or None
        rows = array.view(cls)
        rows._look, rows._key = look, key
        return rows

    def __setitem__(self, index: Any, value: Any) -> None:  # noqa: ANN401 - as NumPy's
        if self._look is not None and type(index) is int:
            self._look(index, self._key, value)
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

    def __setitem__(self, index: Any, info: Any) -> None:  # noqa: ANN401 - as list's
        super().__setitem__(index, _WatchedInfo(info) if type(info) is dict else info)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Info]:
        return [*map(_copied, self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as list's
        return list, ([*map(dict, self)],)


class _WatchedInfo(Info):
    """An info in which the last observation of an episode is a copy: reset may write into the same array."""

    def __setitem__(self, key: str, value: Any) -> None:  # noqa: ANN401 - may be anything
        super().__setitem__(key, deepcopy(value) if key == "terminal_observation" else value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Info:
        return deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as dict's
        return dict, (dict(self),)
