"""What is done with fewer calls is really taken, and gives SB3's numbers bit for bit.

Not here: how much faster it is (`simple-ddpg benchmark`).
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.layers import DenseLayers
from sb3_simple_ddpg.sampling import sample_batches
from sb3_simple_ddpg.vec_env import QuickDummyVecEnv
from tests.environments import Chain
from tests.side_by_side import Dummy


def make_model(n_envs: int = 1, **settings: Any) -> SimpleDDPG:
    env = DummyVecEnv([lambda: Chain("truncated")] * n_envs)
    settings = {"buffer_size": 200, "learning_starts": 30, "policy_kwargs": {"net_arch": [8]}, "seed": 0, **settings}
    return SimpleDDPG("MlpPolicy", env, **settings)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ELU])
@pytest.mark.parametrize("hook", [False, True])
def test_dense_layers_give_the_bits_of_a_sequential(activation: type[nn.Module], hook: bool):
    layers = [nn.Linear(3, 8), activation(), nn.Linear(8, 2), nn.Tanh()]
    if hook:
        layers[0].register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    dense, sequential = DenseLayers(*layers), nn.Sequential(*layers)
    inputs = th.randn(5, 3, requires_grad=True)
    assert th.equal(dense(inputs), sequential(inputs))
    weights = [inputs, *dense.parameters()]
    ours, theirs = (th.autograd.grad(network(inputs).sum(), weights) for network in (dense, sequential))
    assert all(map(th.equal, ours, theirs))
    assert dense.state_dict().keys() == sequential.state_dict().keys()


@pytest.mark.parametrize("inputs_learn", [False, True])
def test_few_inputs_and_many_units_give_a_sequential_s_gradients(inputs_learn: bool):
    th.manual_seed(0)
    dense = DenseLayers(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 1))
    inputs = th.randn(64, 4, requires_grad=inputs_learn)
    weights = [*([inputs] if inputs_learn else []), *dense.parameters()]
    ours = th.autograd.grad(dense(inputs).sum(), weights)
    theirs = th.autograd.grad(nn.Sequential.forward(dense, inputs).sum(), weights)
    for gradient, expected in zip(ours, theirs, strict=True):
        # Sums of 64 or 128 numbers of about 1 in another order.
        assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # The fast layout was taken: PyTorch passes it on to the gradient.
    assert ours[int(inputs_learn)].stride() == (1, 128)
    assert dense[0].weight.stride() == (4, 1)


def test_what_a_hook_has_seen_is_not_overwritten():
    seen = []
    dense = DenseLayers(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    nn.init.constant_(dense[0].weight, -1.0)
    nn.init.zeros_(dense[0].bias)
    dense[0].register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    dense(th.ones(1, 1))
    assert seen[0].tolist() == [[-1.0, -1.0]]  # before the ReLU
    first_is_relu, inputs = DenseLayers(nn.ReLU()), th.tensor([[-1.0]])
    assert first_is_relu(inputs).item() == 0.0
    assert inputs.item() == -1.0


@pytest.mark.parametrize("network", ["actor", "critic", "actor.mu", "critic.qf0"])
def test_hooks_on_whole_networks_are_called(network: str):
    model = make_model().learn(40)
    calls = []
    model.policy.get_submodule(network).register_forward_hook(lambda *_: calls.append(1))
    model.train(1, 8)
    if network.startswith("actor"):
        assert len(calls) == 1
        model.predict(np.zeros(3, np.float32))
    assert len(calls) == 2  # the critic judges the batch, then the actor's actions


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_batches_are_sb3_s_bit_for_bit_with_the_same_random_numbers(n_envs: int, count: int):
    model = make_model(n_envs).learn(150)
    np.random.seed(5)
    expected = [model.replay_buffer.sample(16) for _ in range(count)]
    state = np.random.get_state()[1:3]
    np.random.seed(5)
    batches = list(sample_batches(model.replay_buffer, count, 16, None))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(np.random.get_state()[1:3], state, strict=True))
    for batch, theirs in zip(batches, expected, strict=True):
        for name in ("observations", "actions", "next_observations", "dones", "rewards"):
            assert th.equal(getattr(batch, name), getattr(theirs, name)), name
            assert getattr(batch, name).dtype == getattr(theirs, name).dtype


def test_several_gradient_steps_gather_once_and_others_ask_the_buffer(monkeypatch):
    calls = []
    sample = ReplayBuffer.sample
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *args, **kwargs: calls.append(1) or sample(*args, **kwargs))
    model = make_model().learn(60)
    model.train(8, 16)
    assert calls == []
    n_step = make_model(n_steps=3).learn(60)
    calls.clear()
    n_step.train(8, 16)
    assert len(calls) == 8


def test_a_batch_keeps_its_values_when_the_buffer_changes():
    model = make_model().learn(60)
    (batch,) = sample_batches(model.replay_buffer, 1, 16, None)
    before = batch.observations.clone()
    model.replay_buffer.observations[:] = 9.0
    assert th.equal(batch.observations, before)


@pytest.mark.parametrize("batch", [False, True])
def test_predict_gives_sb3_s_bits_without_sb3_s_general_way(batch: bool, monkeypatch):
    model = make_model().learn(60)
    observation = np.random.default_rng(0).normal(size=(4, 3) if batch else 3).astype(np.float32)
    expected, _ = BasePolicy.predict(model.policy, observation)
    monkeypatch.setattr(BasePolicy, "predict", None)  # the general way would fail
    action, _ = model.predict(observation)
    assert np.array_equal(action, expected)
    assert action.shape == expected.shape
    assert action.dtype == expected.dtype


@pytest.mark.parametrize("layers", [nn.Sequential, DenseLayers])
def test_layers_of_the_user_s_own_predict(layers: type[nn.Sequential]):
    model = make_model()
    model.actor.mu = layers(nn.Identity(), nn.Linear(3, 1), nn.Tanh())
    observation = np.eye(3, dtype=np.float32)
    expected = model.actor.mu(th.as_tensor(observation)).detach().numpy()
    # The action range is [-1, 1], so the map changes the last bit at most.
    assert model.predict(observation)[0] == pytest.approx(expected, abs=1e-6)
    assert model.actor.device == th.device("cpu")


@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 1, 3)])
def test_predict_of_a_wrong_shape_gives_sb3_s_error(shape: tuple[int, ...]):
    model = make_model()
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_collecting_stores_sb3_s_bits(n_envs: int):
    """No updates: actions, stored transitions and the random stream afterwards are equal to the last bit."""
    ours = make_model(n_envs, gradient_steps=0, learning_starts=10)
    env = DummyVecEnv([lambda: Chain("truncated")] * n_envs)
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    theirs = DDPG(
        "MlpPolicy", env, buffer_size=200, learning_starts=10, seed=0, gradient_steps=0, action_noise=noise,
        policy_kwargs={"net_arch": [8]},
    )  # fmt: skip
    states = []
    for model in (ours, theirs):
        model.set_random_seed(1)
        model.learn(90)
        states.append(np.random.get_state()[1:3])
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(ours.replay_buffer, name), getattr(theirs.replay_buffer, name)), name
    assert np.array_equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
    assert np.array_equal(ours._last_obs, theirs._last_obs)


def test_scaling_gives_sb3_s_bits_for_bounds_of_any_kind():
    low, high = np.array([-3.0, 0.1, 1e-3], np.float32), np.array([7.0, 0.3, 1e3], np.float32)
    policy = SimpleDDPG("MlpPolicy", Dummy(spaces.Box(-1, 1, (2,)), spaces.Box(low, high))).policy
    actions = np.random.default_rng(0).uniform(low, high, (1000, 3)).astype(np.float32)
    scaled = BasePolicy.scale_action(policy, actions)
    assert np.array_equal(policy.scale_action(actions), scaled)
    assert np.array_equal(policy.unscale_action(scaled), BasePolicy.unscale_action(policy, scaled))


@pytest.mark.parametrize("observation", ["reversed", "read-only"])
def test_predict_takes_arrays_that_pytorch_cannot_share(observation: str):
    model = make_model()
    rows = np.eye(3, dtype=np.float32)
    expected, _ = model.predict(rows)
    if observation == "reversed":
        assert np.array_equal(model.predict(rows[::-1])[0], expected[::-1])
    else:
        rows.flags.writeable = False
        assert np.array_equal(model.predict(rows)[0], expected)


def test_a_single_environment_is_copied_without_deepcopy(monkeypatch):
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), policy_kwargs={"net_arch": [8]}, seed=0)
    env = model.get_env()
    assert type(env) is QuickDummyVecEnv
    env.reset()
    monkeypatch.setattr("sb3_simple_ddpg.vec_env.deepcopy", None)
    first, *_, infos = env.step(np.zeros((1, 1), np.float32))
    before = first.copy()
    infos[0]["mine"] = 1
    _, _, _, later_infos = env.step(np.zeros((1, 1), np.float32))
    assert np.array_equal(first, before)
    assert later_infos == [{"TimeLimit.truncated": False}]


def test_infos_that_hold_arrays_are_copied_deeply():
    class Telling(Chain):
        def step(self, action):
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, self.info

    inner = Telling("truncated")
    inner.info = {"place": np.zeros(2)}
    env = SimpleDDPG("MlpPolicy", inner, policy_kwargs={"net_arch": [8]}).get_env()
    env.reset()
    infos = env.step(np.zeros((1, 1), np.float32))[-1]
    inner.info["place"][:] = 5.0
    assert infos[0]["place"].tolist() == [0.0, 0.0]


def test_vectorised_environments_of_the_user_stay_as_they_are():
    env = DummyVecEnv([lambda: Chain("truncated")])
    assert type(SimpleDDPG("MlpPolicy", env, policy_kwargs={"net_arch": [8]}).get_env()) is DummyVecEnv
    assert type(env.buf_infos) is list


def test_no_layer_is_visited_when_none_depends_on_the_mode(monkeypatch):
    model = make_model()
    assert not model.policy.depends_on_mode
    monkeypatch.setattr(nn.Module, "train", None)  # a walk over the modules would fail
    model.learn(40)
    assert model._n_updates == 10
    model.policy.set_training_mode(True)
    assert (model.policy.training, model.actor.training, model.critic.training) == (True, True, True)


def test_a_layer_that_is_not_known_counts_as_depending_on_the_mode():
    class Own(nn.ReLU):
        pass

    assert make_model(policy_kwargs={"net_arch": [8], "activation_fn": Own}).policy.depends_on_mode


def test_one_transfer_from_the_device_in_each_call_of_train(monkeypatch):
    transfers = []
    tolist = th.Tensor.tolist
    monkeypatch.setattr(th.Tensor, "tolist", lambda tensor: transfers.append(1) or tolist(tensor))
    monkeypatch.setattr(th.Tensor, "item", None)
    model = make_model().learn(60)
    transfers.clear()
    model.train(8, 16)
    assert len(transfers) == 1
