"""The path that users type for `experiment/plotting.py`."""

from sb3_simple_ddpg.experiment.plotting import *  # noqa: F403 - the same names
