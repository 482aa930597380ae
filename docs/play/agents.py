"""Trains the agents that swing the pendulum of docs/play.md, and writes them to `_static/play/agents.js`.

`python -m docs.play.agents`, a minute or two on one core. Not here: the pendulum and the drawing (`_static/play/`).
"""

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch as th

from sb3_simple_ddpg import SimpleDDPG, presets

#: What the page loads with a <script>, which works from file:// too.
AGENTS: Final = Path(__file__).parent.parent / "_static" / "play" / "agents.js"

#: After how many timesteps of one training run an agent is kept; 0 has the weights that training begins with.
KEPT: Final = (0, 2_000, 5_000, 20_000)

#: Those of `simple-ddpg train`, but with 32 units a layer: a quarter of the weights, so that the page stays small.
SETTINGS: Final[dict[str, Any]] = {**presets.PENDULUM, "policy_kwargs": {"net_arch": [32, 32]}, "seed": 0}


def layers(network: th.nn.Module) -> list[str]:
    """
    :param network: of `Linear` layers, with ReLU between them
    :return: weight and bias of each layer in turn, as float32 (little-endian, row after row) in base64
    """
    tensors = (tensor.detach().cpu().numpy().astype("<f4") for tensor in network.state_dict().values())
    return [base64.b64encode(tensor.tobytes()).decode() for tensor in tensors]


def weights_of(model: SimpleDDPG) -> dict[str, list[str]]:
    """
    :param model: an agent for Pendulum-v1
    :return: what the page needs of it
    """
    return {"actor": layers(model.actor.mu), "critic": layers(model.critic.qf0)}


def train(kept: Sequence[int] = KEPT) -> dict[int, dict[str, list[str]]]:
    """
    :param kept: numbers of timesteps, growing
    :return: by number of timesteps the weights after so many
    """
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1", **SETTINGS)
    found = {}
    for timesteps in kept:
        if timesteps > model.num_timesteps:
            model.learn(timesteps - model.num_timesteps, reset_num_timesteps=False)
        found[timesteps] = weights_of(model)
    return found


def write(agents: Mapping[int, Mapping[str, Sequence[str]]], path: Path = AGENTS) -> None:
    """
    :param agents: weights by number of timesteps
    :param path: the file to write
    """
    text = json.dumps({str(timesteps): agent for timesteps, agent in agents.items()}, separators=(",", ":"))
    path.write_text(f"// Written by `python -m docs.play.agents`.\nglobalThis.DDPG_AGENTS={text};\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line; None for those that were typed
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=AGENTS, help="the file to write")
    write(train(), parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
