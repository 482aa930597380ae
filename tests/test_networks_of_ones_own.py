"""Whatever a user does to the networks, what SB3's DDPG does happens: the same predictions, the same weights.

Not here: what each fast way looks at (`test_fast_paths.py`), compiled updates (`test_compiled_follows.py`).
"""

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from torch.nn import functional as F

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.policies import Critic, DDPGPolicy
from tests.environments import Chain
from tests.side_by_side import assert_same_agent, settings


def train_both(change: Callable[[Any], Any], total_timesteps: int = 30, **changes: Any) -> tuple[SimpleDDPG, DDPG]:
    """SimpleDDPG and SB3's DDPG, changed in the same way before they learn."""
    models = []
    for algorithm in (SimpleDDPG, DDPG):
        model = algorithm("MlpPolicy", Chain("truncated"), **settings(action_noise=None, **changes))
        th.manual_seed(7)  # for what the change draws
        change(model)
        models.append(model.learn(total_timesteps))
    return models[0], models[1]


# --- the critic's interface ----------------------------------------------------------------------------------------


def test_a_critic_gives_sb3_s_tuple_and_q1_forward_its_tensor():
    models = [algorithm("MlpPolicy", Chain(), **settings()) for algorithm in (SimpleDDPG, DDPG)]
    observations, actions = th.rand(6, 3), th.rand(6, 1)
    (ours, our_q1), (theirs, their_q1) = (
        (model.critic(observations, actions), model.critic.q1_forward(observations, actions)) for model in models
    )
    assert isinstance(ours, tuple)
    assert len(ours) == len(theirs) == 1
    assert th.equal(ours[0], theirs[0])
    assert th.equal(our_q1, their_q1)
    assert our_q1.shape == ours[0].shape == (6, 1)
    ours_layers, their_layers = (model.critic.q_networks for model in models)
    assert len(ours_layers) == len(their_layers) == models[0].critic.n_critics == models[1].critic.n_critics == 1
    assert ours_layers[0] is models[0].critic.qf0
    with pytest.raises(TypeError):
        models[0].critic.q_networks[0] = their_layers[0]  # would have no effect
    # What code written for SB3's critics does with it: targets of 0, so the loss is the mean square.
    loss = sum(F.mse_loss(q_values, th.zeros(6, 1)) for q_values in ours)
    assert loss.item() == pytest.approx((theirs[0] ** 2).mean().item())


def with_critic(forward: Callable[..., Any]) -> SimpleDDPG:
    class Own(Critic):
        pass

    class Policy(DDPGPolicy):
        def make_critic(self, features_extractor: Any = None) -> Critic:
            return Own(**self._update_features_extractor(self.critic_kwargs, features_extractor))

    Own.forward = forward
    return SimpleDDPG(Policy, Chain(), **settings())


@pytest.mark.parametrize("how", ["class", "instance"])
def test_a_critic_of_the_user_s_own_that_gives_a_bare_tensor_is_an_error_with_the_cure(how: str):
    def bare(self: Critic, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.q1_forward(observations, actions)

    if how == "class":
        model = with_critic(bare)
    else:
        model = SimpleDDPG("MlpPolicy", Chain(), **settings())
        model.critic.forward = types.MethodType(bare, model.critic)
    message = r"must give a tuple of one tensor, as in SB3, got Tensor: .*return \(q_values,\)"
    with pytest.raises(TypeError, match=message):
        model.learn(12)

    def cured(self: Critic, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return (self.q1_forward(observations, actions),)

    assert with_critic(cured).learn(12)._n_updates == 2


def test_a_critic_of_the_user_s_own_that_gives_two_is_td3_s():
    def twins(self: Critic, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return (self.q1_forward(observations, actions),) * 2

    with pytest.raises(ValueError, match=r"a tuple of one tensor, got 2: .*stable_baselines3\.TD3"):
        with_critic(twins).learn(12)


def critic_judges_less(model: Any) -> None:
    """SB3 fits the critic by its forward and the actor by q1_forward."""
    forward = model.critic.forward
    model.critic.forward = lambda *inputs: tuple(q_values - inputs[1] for q_values in forward(*inputs))


def actor_is_told_something_else(model: Any) -> None:
    q1_forward = model.critic.q1_forward
    model.critic.q1_forward = lambda observations, actions: q1_forward(observations, actions) - 3 * actions**2


@pytest.mark.parametrize("change", [critic_judges_less, actor_is_told_something_else])
def test_forward_and_q1_forward_are_called_where_sb3_calls_them(change: Callable[[Any], None]):
    ours, theirs = train_both(change)
    assert_same_agent(ours, theirs, n_updates=20)
    plain, _ = train_both(lambda model: None)
    assert not np.allclose(ours.actor.mu[0].weight.detach(), plain.actor.mu[0].weight.detach(), atol=1e-4)


@pytest.mark.parametrize("part", ["critic", "critic_target", "actor", "actor_target", "critic.qf0", "actor.mu"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_called_as_often_as_in_sb3(part: str, register: str):
    counts: list[int] = []

    def listen(model: Any) -> None:
        counts.append(0)
        place = len(counts) - 1

        def count(*_: Any) -> None:
            counts[place] += 1

        getattr(model.policy.get_submodule(part), register)(count)

    train_both(listen)
    assert counts[0] == counts[1] > 0
