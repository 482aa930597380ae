"""Pendulum-v1 with observations times 1,000, to see what their scale does: importing this file registers it.

Not here: another task. Actions, rewards and the 200 timesteps of an episode are Pendulum-v1's.

    simple-ddpg compare --env sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1 --threshold -200
"""

from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import TransformObservation

SCALE: Final = 1_000.0
ENV_ID: Final = "SimpleDDPG/PendulumScaled-v1"


def make(**kwargs: Any) -> gym.Env[Any, Any]:  # noqa: ANN401 - the environment's own
    """
    :param kwargs: of Gymnasium's PendulumEnv
    :return: the environment, whose observations are cos, sin and angular velocity times `SCALE`
    """
    env = PendulumEnv(**kwargs)
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    scaled = spaces.Box(space.low * np.float32(SCALE), space.high * np.float32(SCALE), dtype=np.float32)
    return TransformObservation(env, lambda observation: observation * np.float32(SCALE), scaled)


gym.register(ENV_ID, make, max_episode_steps=200)
