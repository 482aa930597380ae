"""Many runs, compared: algorithms, seeds and environments in; tables, intervals and pictures out."""

from sb3_simple_ddpg.experiment.experiment import run_experiment as run_experiment
