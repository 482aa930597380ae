"""`simple-ddpg`: the commands."""

from sb3_simple_ddpg.command_line.cli import run as run
