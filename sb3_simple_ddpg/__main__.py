"""`python -m sb3_simple_ddpg` is `simple-ddpg`. Not here: anything else."""

from sb3_simple_ddpg.command_line.cli import run

if __name__ == "__main__":
    run()
