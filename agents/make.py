"""Trains and evaluates the agents of this folder and writes README.md: `make agents`, or `make agents ENV=Pendulum-v1`.

Not here: an algorithm or a setting that the command line does not have. Each agent is one `simple-ddpg train`.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import runs

FOLDER: Final = Path(__file__).parent
#: Those of `simple-ddpg evaluate RUN`, which so gives the numbers of the table again.
EPISODES, EVALUATION_SEED = 100, 10_000
#: What stays of a run's folder; the picture is drawn again by `simple-ddpg plot`.
KEPT: Final = {runs.MODEL, runs.CONFIG, runs.MONITOR, runs.NORMALIZER}
#: The statistics of a normalizer are in the policy's file.
KEPT_TO_PLAY: Final = {runs.POLICY, runs.CONFIG, runs.MONITOR}

HEAD: Final = """# Trained agents

```
simple-ddpg evaluate agents/Pendulum-v1
```

plays 100 deterministic episodes and prints the numbers of the table. HalfCheetah, InvertedPendulum and
Reacher need `pip install ".[mujoco]"`. `SimpleDDPG.load("agents/Pendulum-v1/model.zip")` goes on from there; like any
zip of SB3 it may run code when it is loaded, so take it from this repository alone. Where networks are large there is
`policy.safetensors` instead, which [plays](../docs/export.md) and cannot run code. `config.json` has every setting,
`monitor.csv` the training's returns.

One agent each, from one `simple-ddpg train`: seed 0, and with the preset `layer-norm` the seed in the middle of ten, by
[its records](../docs/mujoco/summary.md#final-100k). What to expect over many seeds is told by those and by
[the study](../docs/study.md), not by this table. `make agents` trains and evaluates them anew, and writes this page.

"""


@dataclass(frozen=True)
class Agent:
    """
    One agent, in the folder of its environment's name.

    :param env_id: name of the environment
    :param timesteps: of training
    :param options: of `simple-ddpg train`
    :param seed: of training; that of a run in docs/mujoco gives the agent of that run
    :param policy_alone: the policy is kept and the model is not, which with large networks takes megabytes
    """

    env_id: str
    timesteps: int
    options: tuple[str, ...] = ()
    seed: int = 0
    policy_alone: bool = False

    @property
    def command(self) -> list[str]:
        """What trains it, but for the folder."""
        return [
            "train",
            "--env",
            self.env_id,
            "--timesteps",
            str(self.timesteps),
            "--seed",
            str(self.seed),
            *self.options,
        ]


SMALL: Final = ("--set", "policy_kwargs.net_arch=[64,64]", "compile_updates=True")
ROBUST: Final = ("--preset", "robust", *SMALL)
#: As in docs/mujoco, whose records say which seed is in the middle.
LAYER_NORM: Final = ("--preset", "layer-norm", "--set", "compile_updates=True")
AGENTS: Final = (
    Agent("Pendulum-v1", 20_000, ("--preset", "pendulum", *SMALL)),
    Agent("MountainCarContinuous-v0", 50_000, (*ROBUST, "action_noise=OrnsteinUhlenbeck(sigma=0.5)")),
    Agent("LunarLanderContinuous-v3", 300_000, ROBUST),
    Agent("InvertedPendulum-v5", 40_000, SMALL),
    Agent("HalfCheetah-v5", 100_000, LAYER_NORM, seed=1, policy_alone=True),
    Agent("Reacher-v5", 100_000, LAYER_NORM, seed=5, policy_alone=True),
)


def make(agent: Agent, folder: Path) -> None:
    """
    Train into `folder/<environment>`, in the place of the agent that is there, and evaluate.

    :param agent: to be trained
    :param folder: of all agents
    :raises RuntimeError: when training fails
    """
    out = folder / agent.env_id.rpartition(":")[2].replace("/", "-")
    options = ["--out", str(out), "--overwrite", "--eval-episodes", "0", "--no-progress"]
    if cli.main([*agent.command, *options]) != 0:
        raise RuntimeError(f"Training on {agent.env_id} failed.")
    if agent.policy_alone and cli.main(["export", str(out), "--to", str(out / runs.POLICY)]) != 0:
        raise RuntimeError(f"The policy for {agent.env_id} could not be exported.")
    for path in out.iterdir():
        if path.name not in (KEPT_TO_PLAY if agent.policy_alone else KEPT):
            path.unlink()
    returns = runs.evaluate_run(out, EPISODES, EVALUATION_SEED)
    config = json.loads((out / runs.CONFIG).read_text())
    config["command"] = shlex.join(["simple-ddpg", *agent.command])
    config["evaluation"] = {
        "episodes": EPISODES, "seed": EVALUATION_SEED, "mean": float(np.mean(returns)), "std": float(np.std(returns)),
        "digits": runs.digits_of(returns),
    }  # fmt: skip
    (out / runs.CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def page(folder: Path) -> str:
    """
    :param folder: of all agents
    :return: README.md
    """
    lines = ["| environment | mean return | standard deviation | timesteps | seed | made by |", "| " + "--- | " * 6]
    versions: dict[str, Any] = {}
    for path in sorted(folder.glob(f"*/{runs.CONFIG}")):
        config = json.loads(path.read_text())
        if "evaluation" not in config:  # one that is being made beside this one
            continue
        measured = config["evaluation"]
        digits = measured.get("digits", 1)
        versions |= {f"{name} {number}": None for name, number in config["versions"].items()}
        lines.append(
            f"| [{config['env']['env_id']}]({path.parent.name}) | {measured['mean']:z.{digits}f} | "
            f"{measured['std']:.{digits}f} | "
            f"{config['timesteps']:,} | {config['seed']} | `{config['command']}` |"
        )
    table = "\n".join(line.strip() for line in lines)
    return f"{HEAD}{table}\n\nMean and standard deviation over {EPISODES} episodes. Made with {', '.join(versions)}.\n"


def main() -> None:
    """Make all agents, or those of the environments that the command line names."""
    known = [agent.env_id for agent in AGENTS]
    wanted = sys.argv[1:] or known
    for env_id in wanted:
        if env_id not in known:
            sys.exit(f"There is no agent for {env_id!r}: choose from {', '.join(known)}.")
    for agent in AGENTS:
        if agent.env_id in wanted:
            make(agent, FOLDER)
    (FOLDER / "README.md").write_text(page(FOLDER))


if __name__ == "__main__":
    main()
