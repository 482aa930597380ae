"""The four equations of DDPG as pure tensor functions; every other file of the package calls these.

Not here: networks, optimizers, environments, replay buffers. This file imports PyTorch and nothing else.

Letters follow Algorithm 1 of the paper: s, s' are observations, a actions, r rewards, mu the actor, Q the critic,
a prime (mu', Q') marks a target network, d is 1 where the episode *terminated* (0 where it was only cut off by a time
limit), B is the number of transitions in a batch.

Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", https://arxiv.org/abs/1509.02971
"""

from collections.abc import Iterable

import torch as th
from torch.nn import functional as F

from sb3_simple_ddpg.torch_private import lerp_all


def td_target(
    rewards: th.Tensor, terminated: th.Tensor, discounts: float | th.Tensor, next_q_values: th.Tensor
) -> th.Tensor:
    """
    Eq. (1), Lillicrap et al. 2016, Algorithm 1: y = r + gamma (1 - d) Q'(s', mu'(s')).

    The value that the critic is fitted to: the reward now, and what the target networks expect from then on. After a
    termination nothing follows; after a time limit the task would have gone on, so d is 0 there.

    :param rewards: r, shape (B, 1); the sum of n discounted rewards when n-step returns are used
    :param terminated: d, shape (B, 1); 1.0 where s' is terminal, else 0.0
    :param discounts: gamma in [0, 1], or a tensor of shape (B, 1) holding gamma ** n of each n-step return
    :param next_q_values: Q'(s', mu'(s')), shape (B, 1), in the unit of a return
    :return: y, shape (B, 1)
    :raises ValueError: for any other shape
    """
    batch_size = len(rewards) if rewards.dim() > 0 else 1
    _check_column("rewards", rewards, batch_size)
    _check_column("terminated", terminated, batch_size)
    _check_column("next_q_values", next_q_values, batch_size)
    if isinstance(discounts, th.Tensor) and discounts.dim() > 0:
        _check_column("discounts", discounts, batch_size)
    return rewards + (1 - terminated) * discounts * next_q_values


def critic_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Eq. (2), Lillicrap et al. 2016, Algorithm 1: L = 1/B sum (y - Q(s, a))^2.

    The mean squared TD error. The targets y are constants: compute them without gradients.

    :param q_values: Q(s, a), shape (B, 1)
    :param targets: y of Eq. (1), shape (B, 1)
    :return: L, a scalar of shape (), in the squared unit of a return
    :raises ValueError: for any other shape
    """
    batch_size = len(targets) if targets.dim() > 0 else 1
    _check_column("targets", targets, batch_size)
    _check_column("q_values", q_values, batch_size)
    return F.mse_loss(q_values, targets)


def actor_loss(q_values: th.Tensor) -> th.Tensor:
    """
    Eq. (3), Lillicrap et al. 2016, Algorithm 1: J = -1/B sum Q(s, mu(s)).

    Its gradient with respect to the actor is minus the deterministic policy gradient: the chain rule goes through the
    critic into the action. Only the actor follows it; the critic is constant meanwhile.

    :param q_values: Q(s, mu(s)), shape (B, 1)
    :return: J, a scalar of shape (), in the unit of a return
    :raises ValueError: for any other shape
    """
    _check_column("q_values", q_values, len(q_values) if q_values.dim() > 0 else 1)
    return -q_values.mean()


@th.no_grad()
def soft_update(
    parameters: Iterable[th.Tensor], target_parameters: Iterable[th.Tensor], tau: float | th.Tensor
) -> None:
    """
    Eq. (4), Lillicrap et al. 2016, Algorithm 1: theta' <- tau theta + (1 - tau) theta', in place.

    tau is the share of the *main* network, as in the paper and in Stable-Baselines3, and small: 0.005. The article
    writes the same step with the share of the target network, so its tau of 0.999 is 0.001 here.

    :param parameters: theta, the tensors of the main network
    :param target_parameters: theta', those of the target network in the same order and shapes; overwritten
    :param tau: in [0, 1]; 0 leaves the target alone, 1 copies the main network; a tensor of shape () is taken as it is
    :raises ValueError: for a tau outside [0, 1], or when the two do not match tensor by tensor
    """
    parameters, target_parameters = list(parameters), list(target_parameters)
    if not isinstance(tau, th.Tensor) and not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1], got {tau}: it is the share of the main network, 0.005 for example.")
    if len(parameters) != len(target_parameters):
        raise ValueError(
            f"parameters and target_parameters must match one by one, got {len(parameters)} and "
            f"{len(target_parameters)} tensors: pass those of a network and of its own target network."
        )
    lerp_all(target_parameters, parameters, tau)  # theta' <- theta' + tau (theta - theta')


def _check_column(name: str, tensor: th.Tensor, batch_size: int) -> None:
    """Refuse whatever is not (B, 1): PyTorch would broadcast (B,) against (B, 1) to (B, B) without a word."""
    if tensor.shape != (batch_size, 1):
        raise ValueError(
            f"{name} must have shape ({batch_size}, 1), got {tuple(tensor.shape)}: "
            f"a flat vector would broadcast to ({batch_size}, {batch_size}). Use {name}.reshape(-1, 1)."
        )
