"""Hands SimpleDDPG to RL Zoo: importing this file makes `--algo ddpg` mean SimpleDDPG in all of the zoo's scripts.

Not here: hyperparameters; the zoo's own are used, or this repository's: `-conf hyperparams/simple_ddpg.yml`.

    python -m rl_zoo3.train --algo ddpg --env Pendulum-v1 --gym-packages sb3_simple_ddpg.zoo
    python -m rl_zoo3.enjoy --algo ddpg --env Pendulum-v1 --gym-packages sb3_simple_ddpg.zoo -f logs

Agents that the zoo trained with SB3's DDPG go on being replayed without `--gym-packages sb3_simple_ddpg.zoo`; to replay
one with it, or to train it further, convert its zip once: `SimpleDDPG.from_sb3(path).save(path)`.
"""

try:
    from rl_zoo3 import ALGOS
except ImportError as error:
    raise ImportError(
        f'RL Zoo is missing or incomplete ({error}): install it with pip install "sb3-simple-ddpg[zoo]".'
    ) from error

from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

# In place: the scripts have read the names of the algorithms before they import this file, and all share this dict.
ALGOS["ddpg"] = SimpleDDPG
