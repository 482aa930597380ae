"""What is done with fewer calls is really taken, and gives SB3's numbers bit for bit.

Not here: how much faster it is (`simple-ddpg benchmark`).
"""

import collections
import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn.utils import prune

from sb3_simple_ddpg import DDPGPolicy, SimpleDDPG
from sb3_simple_ddpg.sb3.vec_env import QuickDummyVecEnv
from sb3_simple_ddpg.speed import layers, sampling, torch_private
from sb3_simple_ddpg.speed.layers import DenseLayers, FastGradients
from sb3_simple_ddpg.speed.sampling import sample_batches
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
    with FastGradients():
        ours = th.autograd.grad(dense(inputs).sum(), weights)
    theirs = th.autograd.grad(nn.Sequential.forward(dense, inputs).sum(), weights)
    for gradient, expected in zip(ours, theirs, strict=True):
        # Sums of 64 or 128 numbers of about 1 in another order.
        assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # The fast layout was taken: PyTorch passes it on to the gradient.
    assert ours[int(inputs_learn)].stride() == (1, 128)
    assert dense[0].weight.stride() == (4, 1)
    elsewhere = th.autograd.grad(dense(inputs).sum(), weights)
    assert all(map(th.equal, elsewhere, theirs))
    assert elsewhere[int(inputs_learn)].stride() == (4, 1)


def test_gradients_are_laid_out_for_speed_in_train_alone_and_in_its_thread(monkeypatch):
    model = make_model().learn(40)
    seen: list[tuple[str, bool]] = []

    def look(where: str) -> None:
        seen.append((where, layers._here.gradients_follow))

    def update(batch: Any) -> th.Tensor:
        look("train")
        thread = threading.Thread(target=look, args=("another thread",))
        thread.start()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        model.train(1, 8)
    look("afterwards")
    assert seen == [("train", True), ("another thread", False), ("afterwards", False)]


def test_layers_without_bias_and_batches_of_batches_give_a_sequential_s_bits():
    dense = DenseLayers(nn.Linear(4, 128, bias=False), nn.ReLU(inplace=True), nn.Linear(128, 2))
    wide = DenseLayers(nn.Linear(4, 128))  # of a layout of its own
    with FastGradients():
        for inputs in (th.randn(5, 4), th.randn(2, 5, 4), th.randn(4)):
            assert th.equal(dense(inputs), nn.Sequential.forward(dense, inputs))
        with th.no_grad():
            assert th.equal(dense(inputs), nn.Sequential.forward(dense, inputs))
        assert wide(th.randn(2, 5, 4)).shape == (2, 5, 128)
    inputs = th.tensor([-1.0])
    DenseLayers(nn.ReLU(inplace=True))(inputs)
    assert inputs.item() == 0.0  # as in a Sequential


def wrap(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda inputs: 2 * forward(inputs)


def put_by_hand(layer: nn.Module) -> None:
    weight = 2 * layer.weight.detach()
    del layer.weight
    layer.weight = weight


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # PyTorch would rather have the new one
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
        wrap,
        put_by_hand,
        lambda layer: layer.__dict__.update(bias=th.ones(8)),
    ],
)
def test_changed_layers_predict_as_in_a_sequential(change: Any):
    model = make_model()
    observation = np.ones(3, np.float32)
    plain, _ = model.predict(observation)
    change(model.actor.mu[0])
    with th.no_grad():
        model.policy.set_training_mode(False)
        expected = nn.Sequential.forward(model.actor.mu, th.ones(1, 3)).numpy()
    unchanged = change is nn.utils.weight_norm or change is nn.utils.parametrizations.weight_norm
    assert unchanged or not np.allclose(expected[0], plain)
    assert np.array_equal(model.predict(observation)[0], BasePolicy.unscale_action(model.policy, expected)[0])
    assert model.actor.device == model.policy.device == th.device("cpu")


def test_a_forward_of_the_layer_s_own_is_obeyed_until_it_is_taken_away():
    dense, inputs = DenseLayers(nn.Linear(2, 2), nn.Tanh()), th.ones(1, 2)
    plain = dense(inputs)
    dense[1].forward = lambda values: 0 * values
    assert dense(inputs).tolist() == [[0.0, 0.0]]
    del dense[1].forward
    assert th.equal(dense(inputs), plain)


@pytest.mark.parametrize(
    "register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_on_all_modules_are_called_as_in_a_sequential(register: str):
    dense = DenseLayers(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.Tanh())
    calls: list[type] = []
    inputs = th.ones(1, 2, requires_grad=True)
    handle = getattr(nn.modules.module, f"register_module_{register}")(lambda module, *_: calls.append(type(module)))
    try:
        dense(inputs).sum().backward()
        ours = calls.copy()
        calls.clear()
        nn.Sequential(*dense)(inputs).sum().backward()
    finally:
        handle.remove()
    assert len(ours) == 5
    assert sorted(map(str, ours)) == sorted(str(DenseLayers) if kind is nn.Sequential else str(kind) for kind in calls)
    dense(inputs)
    assert len(calls) == 5


def test_a_compiled_call_is_taken():
    model = make_model()
    expected, _ = model.predict(np.ones(3, np.float32))
    for module in (model.actor, model.actor.mu, model.actor.mu[0], model.actor.features_extractor):
        calls = []
        module._compiled_call_impl = lambda *args, module=module, calls=calls: (
            calls.append(1) or module._call_impl(*args)
        )
        assert np.array_equal(model.predict(np.ones(3, np.float32))[0], expected)
        assert calls == [1]
        module._compiled_call_impl = None


@pytest.mark.parametrize("kind", [nn.Linear, nn.Tanh, nn.Flatten, FlattenExtractor])
def test_a_class_that_is_changed_in_place_is_obeyed(kind: type[nn.Module], monkeypatch):
    model = make_model()
    calls, forward = [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: calls.append(1) or forward(*args))
    model.predict(np.zeros(3, np.float32))
    assert len(calls) == (2 if kind is nn.Linear else 1)
    monkeypatch.undo()
    monkeypatch.setattr(nn.Module, "__call__", lambda *args: calls.append(1) or nn.Module._wrapped_call_impl(*args))
    calls.clear()
    model.predict(np.zeros(3, np.float32))
    assert len(calls) == 8  # actor, extractor, flatten, mu and its four layers


def test_without_pytorch_s_private_names_every_call_is_pytorch_s_own(monkeypatch):
    assert torch_private.names_are_there()
    monkeypatch.delattr(nn.modules.module, "_global_forward_hooks")
    assert not torch_private.names_are_there()
    monkeypatch.undo()
    monkeypatch.setattr(torch_private, "_NAMES_ARE_THERE", False)
    dense, calls = DenseLayers(nn.Linear(1, 1)), []
    monkeypatch.setattr(nn.Sequential, "forward", lambda *args: calls.append(1))
    dense(th.ones(1, 1))
    assert calls == [1]


@pytest.mark.parametrize("part", ["features_extractor", "features_extractor.flatten"])
@pytest.mark.parametrize("network", ["actor", "critic"])
def test_hooks_on_a_features_extractor_are_called(network: str, part: str):
    model = make_model().learn(40)
    calls = []
    handle = model.policy.get_submodule(f"{network}.{part}").register_forward_hook(lambda *_: calls.append(1))
    model.train(1, 8)
    assert len(calls) == (1 if network == "actor" else 2)
    calls.clear()
    model.predict(np.zeros(3, np.float32))
    assert len(calls) == (1 if network == "actor" else 0)
    handle.remove()
    calls.clear()
    model.predict(np.zeros(3, np.float32))
    assert calls == []


@pytest.mark.parametrize("how", ["extractor", "flatten", "forward", "extract_features", "class"])
def test_features_of_the_user_s_own_are_taken(how: str, monkeypatch):
    """In each case the actor sees zeros, so that it answers as for zeros."""
    model = make_model()
    expected, _ = model.predict(np.zeros(3, np.float32))
    assert not np.array_equal(model.predict(np.ones(3, np.float32))[0], expected)

    class Zeros(nn.Flatten):
        def forward(self, observations):
            return 0 * observations

    if how == "extractor":
        model.actor.features_extractor = Zeros()
    elif how == "flatten":
        model.actor.features_extractor.flatten = Zeros()
    elif how == "forward":
        model.actor.features_extractor.forward = lambda observations: 0 * observations
    elif how == "extract_features":
        model.actor.extract_features = lambda observations, extractor: 0 * observations
    else:
        monkeypatch.setattr(BaseModel, "extract_features", lambda self, observations, extractor: 0 * observations)
    assert np.array_equal(model.predict(np.ones(3, np.float32))[0], expected)


def test_what_a_user_s_policy_overrides_is_called():
    class Still(DDPGPolicy):
        def _predict(self, observation, deterministic=False):
            return th.zeros_like(super()._predict(observation, deterministic))

    class Blind(DDPGPolicy):
        def obs_to_tensor(self, observation):
            observations, batch = super().obs_to_tensor(observation)
            return 0 * observations, batch

    class Louder(DDPGPolicy):
        def unscale_action(self, scaled_action):
            return 2 * super().unscale_action(scaled_action)

    env = DummyVecEnv([lambda: Chain("truncated")])
    settings = {"policy_kwargs": {"net_arch": [8]}, "seed": 0}
    plain = SimpleDDPG("MlpPolicy", env, **settings)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    for observation in (ones, ones.tolist(), np.stack([ones, zeros])):
        assert not SimpleDDPG(Still, env, **settings).predict(observation)[0].any()
    assert np.array_equal(SimpleDDPG(Blind, env, **settings).predict(ones)[0], plain.predict(zeros)[0])
    assert np.array_equal(SimpleDDPG(Louder, env, **settings).predict(ones)[0], 2 * plain.predict(ones)[0])
    plain.actor.forward = lambda observations: th.zeros(len(observations), 1)
    assert not plain.predict(ones)[0].any()
    plain.policy._predict = lambda observation, deterministic: th.full((1, 1), float(deterministic))
    assert plain.predict(ones, deterministic=True)[0].tolist() == [1.0]
    assert plain.predict(ones)[0].tolist() == [0.0]


def test_who_keeps_or_changes_the_actor_s_input_does_not_hold_the_caller_s_array():
    model, seen = make_model(), []
    model.actor.mu[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].add_(1)))
    observation = np.zeros((2, 3), np.float32)
    model.predict(observation)
    assert not observation.any()
    observation[:] = 5.0
    assert seen[0].tolist() == [[1.0] * 3] * 2


def test_an_actor_of_another_class_predicts():
    class Constant(nn.Module):
        def forward(self, observations):
            return th.full((len(observations), 1), 0.25)

        def set_training_mode(self, mode):
            self.train(mode)

    model = make_model()
    model.policy.actor = Constant()
    assert model.predict(np.zeros((2, 3), np.float32))[0].tolist() == [[0.25], [0.25]]
    assert not model.policy.actor.training


@pytest.mark.parametrize("mu", [nn.Sequential(nn.Identity()), DenseLayers(), DenseLayers(nn.Tanh(), nn.Linear(3, 1))])
def test_the_device_is_found_without_a_first_weight(mu: nn.Module):
    model = make_model()
    model.actor.mu = mu
    assert model.actor.device == th.device("cpu")
    assert model.policy.device == th.device("cpu")
    named = make_model()
    named.actor.mu = DenseLayers(collections.OrderedDict(first=nn.Linear(3, 1), last=nn.Tanh()))
    assert named.actor.device == th.device("cpu")
    assert named.predict(np.zeros(3, np.float32))[0].shape == (1,)

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
    # The critic's layers judge the batch, then the actor's actions; SB3 calls q1_forward for these, not the critic.
    assert len(calls) == (1 if network == "critic" else 2)


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
    gathered = []
    gather = sampling._gather
    monkeypatch.setattr(sampling, "_gather", lambda *args: gathered.append(args[1:]) or gather(*args))
    make_model().learn(60).train(8, 16)
    assert gathered[-1] == (8, 16)
    n_step = make_model(n_steps=3).learn(60)
    gathered.clear()
    n_step.train(8, 16)
    assert gathered == []
    assert n_step._n_updates == 30 + 8


@pytest.mark.parametrize("name", ["sample", "_get_samples", "_normalize_obs", "_normalize_reward", "to_torch"])
@pytest.mark.parametrize("of_class", [False, True])
def test_a_method_that_is_put_in_the_place_of_the_buffer_s_is_called(name: str, of_class: bool, monkeypatch):
    model = make_model().learn(60)
    original, calls = getattr(model.replay_buffer, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    if of_class:
        monkeypatch.setattr(ReplayBuffer, name, staticmethod(counted))  # `original` knows its buffer
    else:
        setattr(model.replay_buffer, name, counted)
    model.train(4, 16)
    # Observations twice; five tensors of each batch.
    assert len(calls) == 4 * {"_normalize_obs": 2, "to_torch": 5}.get(name, 1)
    assert model._n_updates == 34


def test_a_buffer_s_own_size_is_not_what_sb3_draws_from():
    model = make_model().learn(60)
    np.random.seed(5)
    expected = model.replay_buffer.sample(16)
    model.replay_buffer.size = lambda: 1
    np.random.seed(5)
    (batch,) = sample_batches(model.replay_buffer, 1, 16, None)
    assert th.equal(batch.observations, expected.observations)


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
    model.policy.set_training_mode(False)
    with th.no_grad():
        tensor, _ = BaseModel.obs_to_tensor(model.policy, observation)
        squashed = nn.Sequential.forward(model.actor.mu, tensor).numpy()
    expected = BasePolicy.unscale_action(model.policy, squashed)
    expected = expected if batch else expected[0]
    # SB3's ways would fail.
    monkeypatch.setattr(BaseModel, "obs_to_tensor", None)
    monkeypatch.setattr(BaseModel, "set_training_mode", None)
    monkeypatch.setattr(nn.Sequential, "forward", None)
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", None)
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


def test_spaces_that_are_changed_later_are_the_ones_that_count():
    policy = SimpleDDPG("MlpPolicy", Dummy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)))).policy
    policy._predict = lambda observation, deterministic: th.tensor([[0.5, -0.5]])
    assert policy.predict(np.zeros(2, np.float32))[0].tolist() == [0.5, -0.5]
    policy.action_space = spaces.Box(0, 4, (2,))
    # 0 + (0.5 + 1) / 2 * 4 = 3; (-0.5 + 1) / 2 * 4 = 1
    assert policy.predict(np.zeros(2, np.float32))[0].tolist() == [3.0, 1.0]
    assert policy.scale_action(np.array([3.0, 1.0], np.float32)).tolist() == [0.5, -0.5]
    policy.action_space.high[:] = 8.0
    assert policy.predict(np.zeros(2, np.float32))[0].tolist() == [6.0, 2.0]
    policy.action_space = spaces.Box(0, 4, (1, 2))
    assert policy.predict(np.zeros((1, 2), np.float32))[0].tolist() == [[[3.0, 1.0]]]
    policy._squash_output = False  # SB3 clips then
    policy.action_space = spaces.Box(-0.25, 0.25, (2,))
    assert policy.predict(np.zeros(2, np.float32))[0].tolist() == [0.25, -0.25]
    policy.observation_space = spaces.Box(-1, 1, (3,))
    assert policy.predict(np.zeros(3, np.float32))[0].shape == (2,)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.predict(np.zeros(2, np.float32))


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
    monkeypatch.setattr("sb3_simple_ddpg.sb3.vec_env.deepcopy", None)
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


def test_layers_that_are_put_in_late_follow_the_mode():
    model = make_model()
    policy, observation = model.policy, np.ones(3, np.float32)
    expected, _ = model.predict(observation)
    model.actor.mu[1] = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    assert policy.depends_on_mode
    assert model.predict(observation)[0].tolist() == expected.tolist()  # no unit is dropped in evaluation
    policy.set_training_mode(True)
    assert model.actor.mu[1][1].training
    assert not any(layer.training for layer in (*policy.actor_target.modules(), *policy.critic_target.modules()))
    policy.set_training_mode(False)
    assert not any(layer.training for layer in policy.modules())
    model.actor.mu[1] = nn.ReLU()
    assert not policy.depends_on_mode
    assert model.actor.mu[1].training  # as PyTorch makes them
    policy.set_training_mode(False)
    assert not any(layer.training for layer in policy.modules())
    model.critic.qf0 = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    assert policy.depends_on_mode


@pytest.mark.parametrize("how", ["append", "delete", "deep", "class", "parametrized", "actor"])
def test_every_way_to_another_layer_is_seen(how: str):
    model = make_model()
    assert not model.policy.depends_on_mode
    mu = model.actor.mu
    if how == "append":
        mu.append(nn.Dropout(0.5))
    elif how == "delete":
        del mu[1]  # PyTorch makes a new dictionary here
        assert not model.policy.depends_on_mode
        mu.append(nn.Dropout(0.5))
    elif how == "deep":
        mu[0].add_module("inner", nn.Dropout(0.5))
    elif how == "class":
        mu[1].__class__ = nn.RReLU
    elif how == "parametrized":
        nn.utils.parametrizations.spectral_norm(mu[0])
    else:
        other = make_model().actor
        other.mu[1] = nn.Dropout(0.5)
        model.policy.actor = other
    assert model.policy.depends_on_mode


def test_a_mode_that_was_set_by_hand_is_set_back():
    model = make_model()
    model.predict(np.zeros(3, np.float32))
    model.actor.train()
    model.predict(np.zeros(3, np.float32))
    assert not any(layer.training for layer in model.actor.modules())
    modes = []
    model.actor.set_training_mode = modes.append
    model.predict(np.zeros(3, np.float32))
    assert modes == [False]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_copy_looks_at_its_own_layers(way: Any):
    policy = make_model().policy
    policy.set_training_mode(True)
    copied = way(policy)
    assert "_layers" not in vars(copied)
    assert not copied.depends_on_mode
    copied.set_training_mode(False)
    if way is not copy.copy:
        assert policy.actor.mu[1].training
    assert not copied.actor.mu[1].training
    copied.actor.mu[1] = nn.Dropout(0.5)
    assert copied.depends_on_mode
    assert policy.depends_on_mode is (way is copy.copy)  # a shallow copy has the very networks


@pytest.mark.parametrize(
    "layer",
    [nn.PReLU(), nn.Hardtanh(), nn.GLU(), nn.Softmax(1), nn.Threshold(0.1, 0.0), nn.RMSNorm(8), nn.Hardswish()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_ignore_the_mode_are_known(layer: nn.Module):
    model = make_model()
    model.actor.mu[1] = layer
    assert not model.policy.depends_on_mode
    values = th.randn(4, 8)
    assert th.equal(layer.train()(values), layer.eval()(values))


@pytest.mark.usefixtures("recorded_or_compiled")
@pytest.mark.parametrize("compile_updates", [False, True])
def test_one_transfer_from_the_device_in_each_call_of_train(monkeypatch, compile_updates):
    model = make_model(compile_updates=compile_updates).learn(60)
    transfers = []
    tolist = th.Tensor.tolist
    monkeypatch.setattr(th.Tensor, "tolist", lambda tensor: transfers.append(1) or tolist(tensor))
    for name in ("item", "cpu", "numpy", "__bool__", "__float__"):
        monkeypatch.setattr(th.Tensor, name, None)
    model.train(8, 16)
    assert len(transfers) == 1
    assert (model._compiled is not None) is compile_updates
