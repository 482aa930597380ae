"""SimpleDDPG with the article's order, actor before critic: deviation 12 of docs/deviations.md, measured.

Not here: a way to train. It differs from `SimpleDDPG._update` in the order of lines 9 and 10 alone.

    simple-ddpg compare --algorithms simple_ddpg actor_first=tests.long.actor_first:ActorFirst \
        --preset simple_ddpg=pendulum actor_first=pendulum --seeds 20 --timesteps 10000 --eval-every 2500
"""

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target
from sb3_simple_ddpg.policies import only
from sb3_simple_ddpg.simple_ddpg import _statistics


class ActorFirst(SimpleDDPG):
    """The actor learns from the critic of the update before."""

    def _update(self, batch: ReplayBufferSamples) -> th.Tensor:
        with th.no_grad():
            next_q_values = only(
                self.critic_target(batch.next_observations, self.actor_target(batch.next_observations))
            )
            targets = td_target(batch.rewards, batch.dones, self._discounts(batch), next_q_values)

        actions = self.actor(batch.observations)
        loss_mu = actor_loss(self.critic.q1_forward(batch.observations, actions))
        self._gradient_step(self.actor.optimizer, loss_mu, self._weights("actor"))

        q_values = only(self.critic(batch.observations, batch.actions))
        loss_q = critic_loss(q_values, targets)
        self._gradient_step(self.critic.optimizer, loss_q, self._weights("critic"))

        soft_update(self._weights("critic"), self._weights("critic_target"), self.tau)
        soft_update(self._weights("actor"), self._weights("actor_target"), self.tau)
        return _statistics(loss_q, loss_mu, q_values, targets, actions)
