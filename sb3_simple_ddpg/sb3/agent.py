"""What the rooms may know of the agent: its names, with their types.

Not here: anything that it does. `SimpleDDPG` is one; the rooms below never import it.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples, Schedule, TrainFreq

SelfAgent = TypeVar("SelfAgent", bound="Agent")


class Agent(OffPolicyAlgorithm):
    """An SB3 off-policy algorithm with an actor, one critic and their target networks."""

    policy: Any  # a policy of `policies.py`, which stands above the rooms
    actor: Any
    actor_target: Any
    critic: Any
    critic_target: Any
    critic_learning_rate: float | Schedule | None
    critic_lr_schedule: Schedule | None
    max_grad_norm: float | None
    compile_updates: bool | str
    on_non_finite: str

    # Of other rooms, and never saved.
    _networks: Any
    _compiled: Any
    _guard: Any
    #: In `learn`: the timestep at which the last rollout began or ended. A checkpoint at any other is refused.
    _boundary: int | None = None
    #: What the log of the next `learn` says first, once.
    _untold: Any = ()
    #: Until the environments' next reset, after which they are looked at: what `resume` did, and the newest checkpoint.
    _resumed: Any = None
    _saved: Path | None = None
    _said: frozenset[str] = frozenset()  # of what a checkpoint does not hold, in this process

    @property
    def _train_freq(self) -> TrainFreq:
        assert isinstance(self.train_freq, TrainFreq)  # SB3 converts it in _setup_model
        return self.train_freq

    def _update(self, batch: ReplayBufferSamples) -> th.Tensor:
        raise NotImplementedError

    def _gradient_step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, weights: list[th.Tensor]) -> None:
        raise NotImplementedError

    def _start_episodes(self) -> None:
        raise NotImplementedError

    def _store_step(
        self, replay_buffer: ReplayBuffer | None, action_noise: ActionNoise | None, log_interval: int | None = None
    ) -> int:
        raise NotImplementedError
