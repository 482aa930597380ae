"""The path that users type for `experiment/statistics.py`."""

from sb3_simple_ddpg.experiment.statistics import *  # noqa: F403 - the same names
