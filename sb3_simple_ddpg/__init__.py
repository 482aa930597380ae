"""DDPG as a Stable-Baselines3 plugin: `SimpleDDPG("MlpPolicy", env).learn(20_000)`.

Not here: anything but names. Start reading at `equations.py`, then `SimpleDDPG.train` in `simple_ddpg.py`.
"""

from sb3_simple_ddpg.policies import CnnPolicy, DDPGPolicy, MlpPolicy, MultiInputPolicy
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

__version__ = "0.1.0"

__all__ = ["CnnPolicy", "DDPGPolicy", "MlpPolicy", "MultiInputPolicy", "SimpleDDPG", "__version__"]
