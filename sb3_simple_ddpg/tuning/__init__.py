"""A search for settings that respects seeds: trials of several runs each, and a verdict on fresh seeds."""

try:
    import optuna as optuna
except ImportError as error:
    raise ImportError('The search needs Optuna: pip install "sb3-simple-ddpg[tune]".') from error

from sb3_simple_ddpg.tuning.tuning import tune as tune
