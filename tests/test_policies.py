"""The networks: shapes, ranges, initial weights, and what they leave alone.

Not here: how they learn (test_update.py).
"""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_simple_ddpg import CnnPolicy, DDPGPolicy, MlpPolicy, MultiInputPolicy
from sb3_simple_ddpg.policies import Actor

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))
IMAGES = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def make_policy(**settings: object) -> DDPGPolicy:
    return DDPGPolicy(OBSERVATIONS, ACTIONS, lambda progress: 1e-3, **{"net_arch": [16], **settings})


def test_actor_s_outputs_lie_in_minus_one_to_one_and_critic_gives_one_column():
    policy = make_policy()
    observations = 100 * th.randn(5, 3)
    actions = policy.actor(observations)
    assert actions.shape == (5, 2)
    assert actions.abs().max() <= 1
    assert policy.critic(observations, actions)[0].shape == (5, 1)


def test_predict_maps_to_the_action_range_once_per_dimension():
    policy = make_policy(net_arch=[])
    policy.actor.mu[0].weight.data.zero_()
    policy.actor.mu[0].bias.data = th.tensor([0.5, -0.5]).atanh()
    action, _ = policy.predict(np.zeros(3, np.float32))
    # -1 + (0.5 + 1) / 2 * 4 = 2; 0 + (-0.5 + 1) / 2 * 10 = 2.5
    assert action.tolist() == pytest.approx([2.0, 2.5], abs=1e-6)
    alone, _ = policy.actor.predict(np.zeros(3, np.float32))
    assert alone.tolist() == action.tolist()


def test_state_and_action_enter_the_critic_together_at_its_input():
    first_layer = make_policy().critic.qf0[0]
    assert first_layer.in_features == 3 + 2


def test_layers_are_dense_with_relu_and_tanh_at_the_end():
    policy = make_policy(net_arch=[7, 5])
    assert [type(layer) for layer in policy.actor.mu] == [
        nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.Tanh,
    ]  # fmt: skip
    assert [type(layer) for layer in policy.critic.qf0] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_targets_start_equal_to_the_main_networks_and_in_evaluation_mode():
    policy = make_policy(last_layer_init=3e-3)
    policy.set_training_mode(True)
    for main, target in ((policy.actor, policy.actor_target), (policy.critic, policy.critic_target)):
        assert main.training
        assert not target.training
        for weight, target_weight in zip(main.parameters(), target.parameters(), strict=True):
            assert th.equal(weight, target_weight)
            assert weight is not target_weight


def test_net_arch_may_differ_between_actor_and_critic():
    policy = make_policy(net_arch={"pi": [4], "qf": [6, 6]})
    assert [layer.out_features for layer in policy.actor.mu if isinstance(layer, nn.Linear)] == [4, 2]
    assert [layer.out_features for layer in policy.critic.qf0 if isinstance(layer, nn.Linear)] == [6, 6, 1]


@pytest.mark.parametrize(
    ("policy_class", "observation_space", "expected"),
    [(MlpPolicy, OBSERVATIONS, [400, 300]), (CnnPolicy, IMAGES, [256, 256])],
)
def test_default_layers_are_sb3_s(policy_class: type[DDPGPolicy], observation_space: spaces.Box, expected: list[int]):
    assert policy_class(observation_space, ACTIONS, lambda progress: 1e-3).net_arch == expected


def test_the_three_policies_differ_by_their_extractor_alone():
    for policy_class in (CnnPolicy, MultiInputPolicy):
        own = [name for name in vars(policy_class) if not name.startswith("_")]
        assert own == ["default_features_extractor_class"]
    assert MlpPolicy is DDPGPolicy


def test_last_layers_start_in_the_given_range_and_hidden_ones_as_before():
    th.manual_seed(0)
    plain = make_policy()
    th.manual_seed(0)
    small = make_policy(last_layer_init=3e-3)
    for network in (small.actor.mu, small.critic.qf0):
        last = [layer for layer in network if isinstance(layer, nn.Linear)][-1]
        for tensor in (last.weight, last.bias):
            assert 0 < tensor.abs().max() <= 3e-3
    assert th.equal(plain.actor.mu[0].weight, small.actor.mu[0].weight)
    assert th.equal(plain.critic.qf0[0].weight, small.critic.qf0[0].weight)


def test_critic_s_optimizer_takes_arguments_of_its_own():
    policy = make_policy(optimizer_kwargs={"eps": 1e-5}, critic_optimizer_kwargs={"weight_decay": 1e-2})
    assert policy.actor.optimizer.defaults["weight_decay"] == 0
    assert policy.critic.optimizer.defaults["weight_decay"] == 1e-2
    assert policy.actor.optimizer.defaults["eps"] == policy.critic.optimizer.defaults["eps"] == 1e-5


@pytest.mark.parametrize(
    ("settings", "fused"),
    [({}, True), ({"optimizer_kwargs": {"foreach": True}}, None), ({"optimizer_kwargs": {"fused": False}}, False)],
)
def test_pytorch_s_fused_kernel_is_used_unless_the_user_chose(settings: dict, fused: bool | None):
    assert make_policy(**settings).actor.optimizer.defaults["fused"] is fused


def test_an_optimizer_of_the_user_s_gets_no_flag_of_adam_s():
    class Own(th.optim.Adam):
        pass

    assert make_policy(optimizer_class=Own).actor.optimizer.defaults["fused"] is None
    assert "fused" not in make_policy(optimizer_class=th.optim.RMSprop).actor.optimizer.defaults


def test_the_caller_s_dictionaries_stay_as_they_are():
    settings = {
        "features_extractor_kwargs": {"features_dim": 8},
        "optimizer_kwargs": {"eps": 1e-5},
        "critic_optimizer_kwargs": {"weight_decay": 0.1},
        "net_arch": {"pi": [4], "qf": [4]},
    }
    given = copy.deepcopy(settings)
    images = spaces.Box(0.0, 1.0, (3, 36, 36), np.float32)
    # SB3 writes normalized_image=True into the extractor's arguments in this case.
    CnnPolicy(images, ACTIONS, lambda progress: 1e-3, normalize_images=False, **settings)
    assert settings == given


@pytest.mark.parametrize("share", [False, True])
def test_a_shared_extractor_is_one_object_and_learns_from_the_actor_alone(share: bool):
    policy = CnnPolicy(IMAGES, ACTIONS, lambda progress: 1e-3, net_arch=[8], share_features_extractor=share)
    assert isinstance(policy.actor.features_extractor, NatureCNN)
    assert (policy.critic.features_extractor is policy.actor.features_extractor) is share
    assert (policy.critic_target.features_extractor is policy.actor_target.features_extractor) is share
    images = th.randint(0, 255, (2, 3, 36, 36), dtype=th.uint8)
    policy.critic(images, th.zeros(2, 2))[0].sum().backward()
    extractor_learns = next(policy.critic.features_extractor.parameters()).grad is not None
    assert extractor_learns is not share


def test_more_than_one_critic_is_td3_s():
    assert make_policy(n_critics=1).critic is not None
    with pytest.raises(ValueError, match=r"n_critics must be 1, got 2: .*TD3"):
        make_policy(n_critics=2)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_negative_last_layer_range_is_refused(wrong: float):
    with pytest.raises(ValueError, match="last_layer_init must be None or at least 0"):
        make_policy(last_layer_init=wrong)


def test_policy_and_actor_alone_can_be_saved_and_loaded(tmp_path):
    policy = make_policy(last_layer_init=3e-3, activation_fn=nn.Tanh, critic_optimizer_kwargs={"weight_decay": 0.1})
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    expected, _ = policy.predict(observation)
    policy.save(tmp_path / "policy.pt")
    loaded = DDPGPolicy.load(tmp_path / "policy.pt")
    assert loaded.predict(observation)[0].tolist() == expected.tolist()
    assert loaded.critic_optimizer_kwargs == {"weight_decay": 0.1}
    assert loaded.last_layer_init == 3e-3
    policy.actor.save(tmp_path / "actor.pt")
    actor = Actor.load(tmp_path / "actor.pt")
    assert isinstance(actor, BasePolicy)
    assert actor.predict(observation)[0].tolist() == expected.tolist()
