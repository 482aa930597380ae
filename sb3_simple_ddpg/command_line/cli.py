"""The command line: `simple-ddpg train`, `evaluate`, `plot`, `benchmark`, `export`, `compare`, `tune` and
`diagnose`.

Not here: the commands, each in a file of its own.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import tyro

from sb3_simple_ddpg.command_line.benchmark import benchmark
from sb3_simple_ddpg.command_line.compare import compare
from sb3_simple_ddpg.command_line.diagnose import diagnose
from sb3_simple_ddpg.command_line.evaluate import evaluate, plot
from sb3_simple_ddpg.command_line.export import export
from sb3_simple_ddpg.command_line.train import train
from sb3_simple_ddpg.command_line.tune import tune
from sb3_simple_ddpg.safety import mistakes


def main(args: list[str] | None = None) -> int:
    """
    :param args: of the command line; None takes the process's own
    :return: exit status: 0 for success, 1 when a diagnosis found something or anything failed that is no mistake in the
        options, 2 for such a mistake, 130 after Ctrl-C
    """
    commands: tuple[Callable[..., Any], ...] = (train, evaluate, plot, benchmark, export, compare, tune, diagnose)
    try:
        status: int = tyro.extras.subcommand_cli_from_dict(
            {command.__name__: command for command in commands},
            prog="simple-ddpg",
            description="Deep Deterministic Policy Gradient, to run and to read.",
            args=args,
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if mistakes.is_said_to_user(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        traceback.print_exception(error)
        print(f"error: {type(error).__name__}: {error} {_BUG}", file=sys.stderr)
        return 1
    return status


_BUG = "No option is to blame: the traceback says whether the environment is, or a class of yours, or sb3-simple-ddpg."


def run() -> None:
    """The console script."""
    warnings.filterwarnings("ignore", module="tqdm.*")
    sys.path.append(os.getcwd())  # environments and algorithms of the user's own
    sys.exit(main())
