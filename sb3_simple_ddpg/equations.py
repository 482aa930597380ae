"""The four equations of DDPG as pure tensor functions. `SimpleDDPG._update` calls them in this order.

Not here: networks, optimizers, environments, replay buffers.

The lines are those of Algorithm 1 of Lillicrap et al. 2016, "Continuous control with deep reinforcement learning",
https://arxiv.org/abs/1509.02971, in the numbering of README.md and docs/theory.md. (4), (5) and (6) are the paper's own
numbers of its equations.

    s, s'      observations, and those that followed them
    a, r       actions, rewards
    mu, Q      the actor, the critic
    mu', Q'    their target networks: slow copies
    gamma      discount factor
    theta      the weights of a network; theta' those of its target network
    tau        share of the main network in a soft update

Three letters are ours. d is 1 where the episode *terminated*, and 0 where it went on or only a time limit cut it off;
the paper does not discuss the end of an episode. B is the number of transitions in a batch; the paper writes N. J is a
loss, so that an optimizer can minimise it; the paper maximises its J, which is -J here.
"""

from collections.abc import Iterable

import torch as th
from torch.nn import functional as F

from sb3_simple_ddpg.speed.torch_private import lerp_all


def td_target(
    rewards: th.Tensor, terminated: th.Tensor, discounts: float | th.Tensor, next_q_values: th.Tensor
) -> th.Tensor:
    """
    Line 8, Lillicrap et al. 2016, Eq. (5), there without d: y = r + gamma (1 - d) Q'(s', mu'(s')).

    The value that the critic is fitted to: the reward now, and what the target networks expect from then on. After a
    termination nothing follows. After a time limit the task would have gone on, so d is 0 there.

    :param rewards: r, shape (B, 1)
    :param terminated: d, shape (B, 1); 1.0 where s' is terminal, else 0.0
    :param discounts: gamma in [0, 1]; one number, or a tensor of shape (B, 1) with one for each transition
    :param next_q_values: Q'(s', mu'(s')), shape (B, 1), in the unit of a return
    :return: y, shape (B, 1)
    :raises ValueError: for any other shape
    """
    _check_columns(rewards=rewards, terminated=terminated, next_q_values=next_q_values, discounts=discounts)
    return rewards + discounts * (1 - terminated) * next_q_values


def critic_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Line 9, Lillicrap et al. 2016, Eq. (4): L = 1/B sum (y - Q(s, a))^2.

    The mean squared TD error. y is a constant here: compute it without gradients.

    :param q_values: Q(s, a), shape (B, 1)
    :param targets: y of line 8, shape (B, 1)
    :return: L, a scalar of shape (), in the squared unit of a return
    :raises ValueError: for any other shape
    """
    _check_columns(q_values=q_values, targets=targets)
    return F.mse_loss(q_values, targets)


def actor_loss(q_values: th.Tensor) -> th.Tensor:
    """
    Line 10, Lillicrap et al. 2016: J = -1/B sum Q(s, mu(s)). The paper gives its gradient, Eq. (6), there of -J.

    The gradient passes through the critic to the action, and on to the actor's weights (the chain rule). Only the
    actor's weights move; the critic's stay as they are. `SimpleDDPG._gradient_step` sees to that, not this function.

    :param q_values: Q(s, mu(s)), shape (B, 1)
    :return: J, a scalar of shape (), in the unit of a return
    :raises ValueError: for any other shape
    """
    _check_columns(q_values=q_values)
    return -q_values.mean()


@th.no_grad()
def soft_update(
    parameters: Iterable[th.Tensor], target_parameters: Iterable[th.Tensor], tau: float | th.Tensor
) -> None:
    """
    Line 11, Lillicrap et al. 2016, Algorithm 1: theta' <- tau theta + (1 - tau) theta', in place.

    tau is the share of the *main* network, as in the paper and in Stable-Baselines3, and small: 0.005. The article
    (README.md names it) writes the same step with the share of the target network: its tau of 0.999 is 0.001 here.

    :param parameters: theta, the tensors of the main network
    :param target_parameters: theta', those of its target network in the same order and shapes; overwritten
    :param tau: in [0, 1]; 0 leaves the target network alone, 1 copies the main network (a tensor is not checked)
    :raises ValueError: for a tau outside [0, 1], or when the two do not match tensor by tensor
    """
    main, target = _matching(parameters, target_parameters, tau)
    lerp_all(target, main, tau)  # theta' <- theta' + tau (theta - theta'), which is tau theta + (1 - tau) theta'


def _check_columns(discounts: float | th.Tensor = 1.0, **columns: th.Tensor) -> None:
    """Refuse whatever is not (B, 1): PyTorch would broadcast (B,) against (B, 1) to (B, B) without a word."""
    if isinstance(discounts, th.Tensor) and discounts.dim() > 0:  # otherwise one number for all
        columns["discounts"] = discounts
    first = next(iter(columns.values()))
    batch_size = len(first) if first.dim() > 0 else 1
    for name, tensor in columns.items():
        if tensor.shape != (batch_size, 1):
            cure = f"a flat vector would broadcast to ({batch_size}, {batch_size}). Use {name}.reshape(-1, 1)."
            if tensor.numel() != batch_size:
                cure = "each of the B transitions has one number."
            raise ValueError(f"{name} must have shape ({batch_size}, 1), got {tuple(tensor.shape)}: {cure}")


def _matching(
    parameters: Iterable[th.Tensor], target_parameters: Iterable[th.Tensor], tau: float | th.Tensor
) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """Both as lists; refuse two that do not match one by one, and a share that is none."""
    main, target = list(parameters), list(target_parameters)
    if not isinstance(tau, th.Tensor) and not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1], got {tau}: it is the share of the main network, 0.005 for example.")
    if len(main) != len(target):
        raise ValueError(
            f"parameters and target_parameters must match one by one, got {len(main)} and {len(target)} tensors: "
            "pass those of a network and of its own target network."
        )
    return main, target
