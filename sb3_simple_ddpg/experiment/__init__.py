"""Runs, one or many: algorithms, seeds and environments in; folders, tables, intervals, pictures and films out."""

from sb3_simple_ddpg.experiment.experiment import run_experiment as run_experiment
