"""The vectorised environment that Stable-Baselines3 (SB3) puts around a single one, with cheaper copies.

Not here: another way to step. What the copies hold is what `deepcopy` would give.
"""

from copy import deepcopy
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from stable_baselines3.common.vec_env.util import dict_to_obs

#: Values that a copy may share.
_IMMUTABLE = frozenset({bool, int, float, str, type(None)})


class QuickDummyVecEnv(DummyVecEnv):
    """SB3's `DummyVecEnv`, which spends more on copying observations and infos than a simple environment on a step."""

    @classmethod
    def take_over(cls, env: VecEnv) -> None:
        """
        :param env: becomes one of this class; nobody else may know it yet
        """
        if type(env) is DummyVecEnv:
            env.__class__ = cls
            env.buf_infos = _Infos(env.buf_infos)

    def _obs_from_buf(self) -> VecEnvObs:
        if self.keys == [None]:  # neither Dict nor Tuple
            observations: VecEnvObs = self.buf_obs[None].copy()  # type: ignore[index]  # SB3 says str, and means None too
            return observations
        return dict_to_obs(self.observation_space, {key: values.copy() for key, values in self.buf_obs.items()})


class _Infos(list[dict[str, Any]]):
    """The infos of all environments; `step_wait` of SB3 2.9.2 returns a deep copy of them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> list[dict[str, Any]]:
        return [
            info.copy() if _IMMUTABLE.issuperset(map(type, info.values())) else deepcopy(info, memo) for info in self
        ]
