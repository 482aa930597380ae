"""`SimpleDDPG.train` against an update worked out by hand, and the traps of the article's code.

Not here: equality with SB3's DDPG (test_parity.py).
"""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.equations import actor_loss
from tests.environments import Bandit, Chain

TINY = {"net_arch": [8]}


def fill(model: SimpleDDPG, transitions: int = 20, **values: float) -> None:
    """Put the same transition into the buffer until it makes no difference which one is drawn."""
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    observation = np.full((1, 1), values.get("observation", 1.0), np.float32)
    for _ in range(transitions):
        buffer.add(
            observation,
            np.full((1, 1), values.get("next_observation", 1.0), np.float32),
            np.full((1, 1), values.get("action", 0.5), np.float32),
            np.array([values.get("reward", 2.0)]),
            np.array([values.get("done", 0.0)]),
            [{}],
        )


def test_one_update_equals_the_numbers_worked_out_by_hand():
    """
    Linear networks with weights set by hand, plain gradient descent with a step of 0.1, tau 0.5, gamma 0.5.

    s = s' = 1, a = 0.5, r = 2, not terminated. mu(s) = tanh(w s) with w = 0; Q(s, a) = u s + v a with u = 1, v = 2.
    The target networks start equal to the main ones.

    y = 2 + 0.5 * Q'(1, tanh(0)) = 2 + 0.5 * 1 = 2.5
    Q(s, a) = 1 + 2 * 0.5 = 2, TD error y - Q = 0.5, loss 0.25
    critic: dL/du = -2 * 0.5 * s = -1 -> u = 1.1; dL/dv = -2 * 0.5 * a = -0.5 -> v = 2.05; bias: -1 -> 0.1
    actor: J = -Q(s, mu(s)); dJ/dw = -v * (1 - tanh(0)^2) * s = -2.05 -> w = 0.205, its bias likewise
        (v is the one after the critic's step); J = -(1.1 + 2.05 * 0 + 0.1) = -1.2
    target networks: halfway: u' = 1.05, v' = 2.025, bias 0.05; w' = 0.1025
    """
    policy_kwargs = {"net_arch": [], "optimizer_class": th.optim.SGD}
    model = SimpleDDPG(
        "MlpPolicy", Bandit(low=-1.0, high=1.0), 0.1, 100, tau=0.5, gamma=0.5, policy_kwargs=policy_kwargs
    )
    for actor, critic in ((model.actor, model.critic), (model.actor_target, model.critic_target)):
        for linear, weights in ((actor.mu[0], [[0.0]]), (critic.qf0[0], [[1.0, 2.0]])):
            assert isinstance(linear, nn.Linear)
            linear.weight.data = th.tensor(weights)
            linear.bias.data = th.zeros(1)
    fill(model)
    model.train(gradient_steps=1, batch_size=4)

    state = model.policy.state_dict()
    # float32 holds seven digits
    assert state["critic.qf0.0.weight"].tolist() == [pytest.approx([1.1, 2.05], abs=1e-6)]
    assert state["critic.qf0.0.bias"].tolist() == pytest.approx([0.1], abs=1e-6)
    assert state["actor.mu.0.weight"].tolist() == [pytest.approx([0.205], abs=1e-6)]
    assert state["actor.mu.0.bias"].tolist() == pytest.approx([0.205], abs=1e-6)
    assert state["critic_target.qf0.0.weight"].tolist() == [pytest.approx([1.05, 2.025], abs=1e-6)]
    assert state["critic_target.qf0.0.bias"].tolist() == pytest.approx([0.05], abs=1e-6)
    assert state["actor_target.mu.0.weight"].tolist() == [pytest.approx([0.1025], abs=1e-6)]

    logged = model.logger.name_to_value
    assert logged["train/critic_loss"] == pytest.approx(0.25)
    assert logged["train/actor_loss"] == pytest.approx(-1.2, abs=1e-6)
    assert logged["train/q_mean"] == pytest.approx(2.0)
    assert logged["train/target_q_mean"] == pytest.approx(2.5)
    assert logged["train/action_saturation"] == 0.0
    assert logged["train/noise_scale"] == 0.1
    assert logged["train/n_updates"] == 1
    assert logged["train/learning_rate"] == 0.1


def test_a_terminated_transition_does_not_bootstrap_in_train():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(model, reward=3.0, done=1.0)
    model.train(1, 4)
    assert model.logger.name_to_value["train/target_q_mean"] == 3.0


def test_actor_step_computes_no_critic_gradient():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(model)
    model.train(1, 4)
    after_the_critic_step = [parameter.grad.clone() for parameter in model.critic.parameters()]
    observations = th.ones(4, 1)
    model._gradient_step(
        model.actor.optimizer,
        actor_loss(model.critic.q1_forward(observations, model.actor(observations))),
        list(model.actor.parameters()),
    )
    for before, parameter in zip(after_the_critic_step, model.critic.parameters(), strict=True):
        assert th.equal(parameter.grad, before)


@pytest.mark.parametrize(("ends", "values"), [("terminated", [1.75, 1.5, 1.0]), ("truncated", [2.0, 2.0, 2.0])])
def test_time_limit_does_not_stop_bootstrapping_and_termination_does(ends: str, values: list[float]):
    """
    Reward 1 a step, gamma 0.5. Terminated after three: 1 + 1/2 + 1/4, 1 + 1/2, 1. With a time limit for ever: 2.

    The critic is fitted to a fixed point, so what is left is the noise of Adam: 0.05 is far from both alternatives.
    """
    model = SimpleDDPG(
        "MlpPolicy", Chain(ends), 3e-3, 1_000, 50, 32, gamma=0.5, tau=0.05, seed=0, policy_kwargs={"net_arch": [16]}
    )
    model.learn(800)
    assert model._n_updates == 750
    with th.no_grad():
        (q_values,) = model.critic(th.eye(3), th.zeros(3, 1))
    assert q_values.flatten().tolist() == pytest.approx(values, abs=0.05)


def test_bandit_with_asymmetric_bounds_is_solved():
    """The best action is 2.0 in [-1, 3]: 0.5 in [-1, 1]. five seeds came within 0.02; a missing shift is 1."""
    model = SimpleDDPG("MlpPolicy", Bandit(best=2.0), 3e-3, 1_000, 100, 64, seed=0, policy_kwargs={"net_arch": [16]})
    model.learn(1_500)
    action, _ = model.predict(np.zeros(1, np.float32))
    assert action.item() == pytest.approx(2.0, abs=0.1)


def test_train_before_learn_works_on_a_loaded_buffer(tmp_path):
    trained = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(trained)
    trained.save_replay_buffer(tmp_path / "buffer")
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    before = model.critic.qf0[0].weight.clone()
    model.load_replay_buffer(tmp_path / "buffer")
    model.train(3, 4)
    assert model._n_updates == 3
    assert not th.equal(model.critic.qf0[0].weight, before)


def test_train_on_an_empty_buffer_says_so():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    with pytest.raises(ValueError, match="replay buffer is empty: call learn"):
        model.train(1, 4)
    assert model._n_updates == 0


def test_no_gradient_steps_change_and_log_nothing():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(model)
    model.train(0, 4)
    assert model._n_updates == 0
    assert "train/critic_loss" not in model.logger.name_to_value


def test_gradient_norm_is_limited():
    """Gradient descent with step 1 and a limit of 0.01: no network's weights move by more than 0.01 in all."""
    policy_kwargs = {**TINY, "optimizer_class": th.optim.SGD}
    moved = {}
    for limit in (0.01, None):
        model = SimpleDDPG("MlpPolicy", Bandit(), 1.0, 100, max_grad_norm=limit, policy_kwargs=policy_kwargs, seed=1)
        fill(model, reward=100.0)
        before = th.nn.utils.parameters_to_vector(model.critic.parameters()).detach().clone()
        model.train(1, 4)
        after = th.nn.utils.parameters_to_vector(model.critic.parameters()).detach()
        moved[limit] = (after - before).norm().item()
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)  # clip_grad_norm_ divides by the norm plus 1e-6
    assert moved[None] > 1.0


def test_critic_follows_its_own_learning_rate_and_schedules_are_read_anew():
    model = SimpleDDPG(
        "MlpPolicy", Bandit(), 1e-4, 100, critic_learning_rate=lambda progress: progress * 1e-2, policy_kwargs=TINY
    )
    fill(model)
    model._current_progress_remaining = 0.5
    model.train(1, 4)
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert model.critic.optimizer.param_groups[0]["lr"] == 5e-3
    assert model.logger.name_to_value["train/critic_learning_rate"] == 5e-3
    assert model.logger.name_to_value["train/learning_rate"] == 1e-4


def test_tau_and_gamma_may_change_between_two_calls():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(model, reward=1.0)
    model.tau, model.gamma = 1.0, 0.0
    model.train(1, 4)
    assert th.equal(model.critic.qf0[0].weight, model.critic_target.qf0[0].weight)  # tau 1 copies
    assert model.logger.name_to_value["train/target_q_mean"] == 1.0  # gamma 0 leaves the reward


def test_n_step_buffer_discounts_with_the_gamma_of_now():
    model = SimpleDDPG("MlpPolicy", Chain(), 1e-3, 100, 10, 16, gamma=0.9, n_steps=3, seed=0, policy_kwargs=TINY)
    model.learn(20)
    model.gamma = 0.0
    model.train(1, 64)
    assert model.logger.name_to_value["train/target_q_mean"] == 1.0  # only the first of the three rewards of 1


def test_saturated_actions_are_counted():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs={"net_arch": []})
    fill(model)
    model.actor.mu[0].bias.data = th.tensor([5.0])  # tanh(5) = 0.9999
    model.train(1, 4)
    assert model.logger.name_to_value["train/action_saturation"] == 1.0


def test_a_loss_that_is_not_finite_stops_learning_and_says_where():
    model = SimpleDDPG("MlpPolicy", Bandit(), buffer_size=100, policy_kwargs=TINY)
    fill(model, reward=float("inf"))
    with pytest.raises(FloatingPointError, match="critic_loss is inf at timestep 0, gradient step 1"):
        model.train(1, 4)


def test_batch_norm_statistics_are_copied_to_the_targets_even_with_tau_zero():
    class NormedExtractor(th.nn.Module):
        def __init__(self, observation_space: gym.Space) -> None:
            super().__init__()
            self.features_dim = 1
            self.norm = nn.BatchNorm1d(1)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.norm(observations.flatten(1))

    model = SimpleDDPG(
        "MlpPolicy",
        Bandit(),
        buffer_size=100,
        tau=0.0,
        policy_kwargs={**TINY, "features_extractor_class": NormedExtractor},
    )
    fill(model, observation=4.0)
    model.train(2, 4)
    for main, target in ((model.actor, model.actor_target), (model.critic, model.critic_target)):
        assert main.features_extractor.norm.running_mean.item() > 0.5  # moving from 0 towards 4
        assert th.equal(main.features_extractor.norm.running_mean, target.features_extractor.norm.running_mean)
        assert not target.training


def test_two_environments_share_one_update_a_step():
    env = DummyVecEnv([Bandit, Bandit])
    model = SimpleDDPG("MlpPolicy", env, buffer_size=100, learning_starts=10, seed=0, policy_kwargs=TINY)
    model.learn(20)
    assert model.num_timesteps == 20
    assert model._n_updates == 5  # timesteps 12, 14, 16, 18, 20
