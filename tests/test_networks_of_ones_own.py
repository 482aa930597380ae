"""Whatever a user does to the networks, what SB3's DDPG does happens: the same predictions, the same weights.

Not here: what each fast way looks at (`test_fast_paths.py`), compiled updates (`test_compiled_follows.py`).
"""

import types
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.policies import Critic, DDPGPolicy
from tests.environments import Chain
from tests.side_by_side import VECTOR, Dummy, assert_same_agent, settings

ACTIONS = spaces.Box(-1.0, 3.0, (1,), np.float32)


def train_both(change: Callable[[Any], Any], total_timesteps: int = 30, **changes: Any) -> tuple[SimpleDDPG, DDPG]:
    """SimpleDDPG and SB3's DDPG, changed in the same way before they learn."""
    models = []
    for algorithm in (SimpleDDPG, DDPG):
        model = algorithm("MlpPolicy", Dummy(VECTOR, ACTIONS), **settings(**{"action_noise": None, **changes}))
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


# --- layers, weights and methods that are changed after the networks were built -------------------------------------

CHANGES: dict[str, Callable[[Any], Any]] = {}


def changing(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Each takes a model of either library, and makes the same change."""
    CHANGES[change.__name__] = change
    return change


def networks(model: Any) -> tuple[nn.Module, ...]:
    return model.actor, model.actor_target, model.critic, model.critic_target


def layers(model: Any) -> tuple[nn.Sequential, ...]:
    return model.actor.mu, model.actor_target.mu, model.critic.qf0, model.critic_target.qf0


def new_optimizers(model: Any) -> None:
    for network in (model.actor, model.critic):
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        network.optimizer = th.optim.Adam(learning, lr=1e-3)


class Half(nn.Module):
    """A parametrization."""

    def forward(self, weight: th.Tensor) -> th.Tensor:
        return 0.5 * weight


@changing
def parametrized(model: Any) -> None:
    for sequential in layers(model):
        nn.utils.parametrize.register_parametrization(sequential[2], "weight", Half())


@changing
def weight_norm(model: Any) -> None:
    for sequential in layers(model):
        nn.utils.parametrizations.weight_norm(sequential[2])
    new_optimizers(model)


@changing
def spectral_norm(model: Any) -> None:
    for sequential in layers(model):
        nn.utils.parametrizations.spectral_norm(sequential[2])


@changing
def pruned(model: Any) -> None:
    for sequential in layers(model):
        prune.l1_unstructured(sequential[2], "weight", 0.5)


class Doubling(nn.Linear):
    """The class that a layer is given."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return 2 * super().forward(inputs)


@changing
def layer_of_another_class(model: Any) -> None:
    for sequential in layers(model):
        sequential[2].__class__ = Doubling


@changing
def actor_of_another_class(model: Any) -> None:
    kind = type(model.actor)
    model.actor.__class__ = type("Own", (kind,), {"forward": lambda self, seen: 0.5 * kind.forward(self, seen)})


@changing
def policy_of_another_class(model: Any) -> None:
    kind = type(model.policy)

    def predict(self: Any, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:
        return 0.5 * kind._predict(self, observation, deterministic)

    model.policy.__class__ = type("Own", (kind,), {"_predict": predict})


@changing
def forward_of_a_layer(model: Any) -> None:
    forward = model.actor.mu[2].forward
    model.actor.mu[2].forward = lambda inputs: 2 * forward(inputs)


@changing
def forward_of_the_actor(model: Any) -> None:
    forward = model.actor.forward
    model.actor.forward = types.MethodType(lambda self, seen: 0.5 * forward(seen), model.actor)


@changing
def forward_of_a_target(model: Any) -> None:
    forward = model.critic_target.forward
    model.critic_target.forward = lambda *inputs: tuple(q_values + 1 for q_values in forward(*inputs))


@changing
def hooks_that_change_values(model: Any) -> None:
    model.actor.mu[2].register_forward_pre_hook(lambda _, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True)
    model.critic.register_forward_hook(lambda module, inputs, outputs: tuple(1.5 * each for each in outputs))
    model.critic_target.features_extractor.register_forward_hook(lambda module, inputs, outputs: th.sin(outputs))


@changing
def hooks_that_change_gradients(model: Any) -> None:
    factors = th.arange(8.0)

    def scale(weight: th.Tensor) -> None:
        weight.grad *= factors[:, None]

    model.actor.mu[2].register_full_backward_hook(lambda module, to_inputs, _: (to_inputs[0] * factors,))
    model.critic.qf0[2].register_full_backward_pre_hook(lambda module, of_outputs: (of_outputs[0] * factors,))
    model.critic.qf0[0].weight.register_hook(lambda gradient: gradient * factors[:, None])
    model.actor.mu[0].weight.register_post_accumulate_grad_hook(scale)


@changing
def some_weights_frozen(model: Any) -> None:
    model.actor.mu[0].requires_grad_(False)
    model.critic.qf0[2].bias.requires_grad_(False)


@changing
def targets_frozen(model: Any) -> None:
    model.actor_target.requires_grad_(False)
    model.critic_target.requires_grad_(False)


@changing
def weight_replaced_that_nobody_trains(model: Any) -> None:
    model.actor.mu[2].weight = nn.Parameter(0.5 * model.actor.mu[2].weight.detach())


@changing
def bias_taken_away(model: Any) -> None:
    for sequential in layers(model):
        sequential[2].bias = None
    new_optimizers(model)


@changing
def layers_added_and_deleted(model: Any) -> None:
    for network in (model.actor, model.actor_target):
        del network.mu[3]
        network.mu.insert(0, nn.LayerNorm(3))
    new_optimizers(model)


class LowRank(nn.Module):
    """A frozen layer with few weights beside it that learn, as LoRA has it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(0.1 * th.randn(layer.in_features, 2))
        self.up = nn.Parameter(th.full((2, layer.out_features), 0.1))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.layer(inputs) + inputs @ self.down @ self.up


@changing
def low_rank_weights_beside_frozen_ones(model: Any) -> None:
    for sequential in layers(model):
        sequential[2] = LowRank(sequential[2])
    new_optimizers(model)


class Encoder(nn.Module):
    """A features extractor with weights."""

    features_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations))


@changing
def extractors_replaced(model: Any) -> None:
    for network in networks(model):
        network.features_extractor = Encoder()
    new_optimizers(model)


@changing
def pretrained_extractors_frozen(model: Any) -> None:
    encoder = Encoder().requires_grad_(False)
    for network in networks(model):
        network.features_extractor = deepcopy(encoder)


@changing
def one_layer_in_both_networks(model: Any) -> None:
    model.critic.qf0[2] = model.actor.mu[2]
    new_optimizers(model)


@changing
def one_optimizer_for_both_networks(model: Any) -> None:
    both = th.optim.Adam([*model.actor.parameters(), *model.critic.parameters()], lr=1e-3)
    model.actor.optimizer = model.critic.optimizer = both


@changing
def a_layer_of_no_network_learns(model: Any) -> None:
    model.extra, forward = nn.Linear(3, 3), model.actor.forward
    model.actor.forward = lambda observations: forward(model.extra(observations))
    model.actor.optimizer.add_param_group({"params": list(model.extra.parameters())})


@changing
def a_weight_of_a_hook_learns(model: Any) -> None:
    model.extra = nn.Linear(1, 1, bias=False)
    weight = model.extra.weight
    model.critic.qf0[1].register_forward_hook(lambda module, inputs, outputs: outputs * (1 + weight[0]))
    model.critic.optimizer.add_param_group({"params": [weight]})


@changing
def action_space_of_the_policy(model: Any) -> None:
    model.policy.action_space = spaces.Box(-10, 10, (1,), np.float32)


@changing
def action_space_of_the_model(model: Any) -> None:
    model.action_space = spaces.Box(0, 4, (1,), np.float32, seed=5)


@changing
def scaling_of_the_policy(model: Any) -> None:
    scale, unscale = model.policy.scale_action, model.policy.unscale_action
    model.policy.scale_action = lambda actions: scale(2 * actions)
    model.policy.unscale_action = lambda actions: 0.5 * unscale(actions)


@changing
def no_squashing(model: Any) -> None:
    model.policy._squash_output = False


@changing
def features_of_the_actor(model: Any) -> None:
    model.actor.extract_features = lambda observations, extractor: 0.5 * observations


@changing
def tensors_of_observations(model: Any) -> None:
    to_tensor = model.policy.obs_to_tensor
    model.policy.obs_to_tensor = lambda observations: (0.5 * to_tensor(observations)[0], True)


@changing
def predict_of_the_policy(model: Any) -> None:
    model.policy.predict = lambda seen, state=None, start=None, deterministic=False: (
        np.full((len(seen), 1), 0.25 + deterministic, np.float32),
        state,
    )


@changing
def predict_of_the_model(model: Any) -> None:
    """SB3 asks for a stochastic action while it collects, whatever the default."""
    model.predict = lambda seen, state=None, episode_start=None, deterministic=True: (
        np.full((len(seen), 1), 0.25 * (1 + deterministic), np.float32),
        state,
    )


@changing
def training_mode_of_the_policy(model: Any) -> None:
    model.modes, set_training_mode = [], model.policy.set_training_mode
    model.policy.set_training_mode = lambda mode: model.modes.append(mode) or set_training_mode(mode)


@changing
def another_actor_in_the_policy(model: Any) -> None:
    """SB3 predicts with the policy's actor and trains the model's."""
    other = deepcopy(model.actor)
    nn.init.ones_(other.mu[0].weight)
    model.policy.actor = other


@changing
def another_actor_in_the_model(model: Any) -> None:
    model.actor = deepcopy(model.actor)
    new_optimizers(model)


@changing
def step_of_the_optimizer(model: Any) -> None:
    step = model.critic.optimizer.step

    def clipped() -> None:
        nn.utils.clip_grad_norm_(model.critic.parameters(), 0.1)
        step()

    model.critic.optimizer.step = clipped


def noisy() -> dict[str, Any]:
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    return {"policy_kwargs": {"net_arch": [8, 8]}, "action_noise": noise}


@cache
def unchanged_weights() -> dict[str, th.Tensor]:
    return train_both(lambda model: None, **noisy())[0].policy.state_dict()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_has_the_effect_that_it_has_in_sb3(change: Callable[[Any], None]):
    observations, predictions = np.eye(3, dtype=np.float32), []

    def changed(model: Any) -> None:
        change(model)
        predictions.append(model.predict(observations)[0])

    ours, theirs = train_both(changed, **noisy())
    np.testing.assert_allclose(*predictions, rtol=0, atol=1e-6)  # sums of 8 numbers, in another order
    assert_same_agent(ours, theirs, n_updates=20)
    for name in ("actor", "critic", "extra"):
        if hasattr(ours, name):
            both = getattr(ours, name).parameters(), getattr(theirs, name).parameters()
            assert all(th.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(*both, strict=True))
    assert getattr(ours, "modes", None) == getattr(theirs, "modes", None)
    # The change mattered: what no change gives is another agent.
    here, there = ours.policy.state_dict(), unchanged_weights()
    other_weights = here.keys() != there.keys() or any(not th.equal(here[name], there[name]) for name in here)
    assert other_weights or change in (targets_frozen, training_mode_of_the_policy, another_actor_in_the_model)


# --- cases from practice --------------------------------------------------------------------------------------------


def test_frozen_layers_stay_and_the_rest_learns():
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings())
    before = {name: weight.clone() for name, weight in model.actor.named_parameters()}
    for weight in model.actor.mu[0].parameters():
        weight.requires_grad = False
    model.learn(50)
    assert model._n_updates == 40
    stayed = {name for name, weight in model.actor.named_parameters() if th.equal(weight, before[name])}
    assert stayed == {"mu.0.weight", "mu.0.bias"}


def test_one_frozen_encoder_in_all_networks_stays_as_it_is():
    """SB3's soft update of a tensor to itself is (1 - tau)(1 + tau) times the tensor."""
    model, encoder = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings()), Encoder().requires_grad_(False)
    for network in networks(model):
        network.features_extractor = encoder
    before = deepcopy(encoder.state_dict())
    model.learn(30)
    assert model._n_updates == 20
    assert all(th.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_frozen_critic_still_teaches_the_actor():
    """In SB3 its loss without a gradient is an error."""
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings())
    model.critic.requires_grad_(False)
    actor, critic = deepcopy(model.actor.state_dict()), deepcopy(model.critic.state_dict())
    model.learn(30)
    assert all(th.equal(tensor, critic[name]) for name, tensor in model.critic.state_dict().items())
    assert not any(th.equal(tensor, actor[name]) for name, tensor in model.actor.state_dict().items())


def test_replaced_networks_with_new_optimizers_learn_and_their_targets_follow():
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings())
    mu = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1), nn.Tanh())
    qf0 = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    model.actor.mu, model.actor_target.mu = deepcopy(mu), deepcopy(mu)
    model.critic.qf0, model.critic_target.qf0 = deepcopy(qf0), deepcopy(qf0)
    new_optimizers(model)
    model.learn(50)
    for sequential, first in zip(layers(model), (mu, mu, qf0, qf0), strict=True):
        assert not th.equal(sequential[0].weight, first[0].weight)


def test_predict_of_an_overridden_policy_is_the_override_s_for_arrays_and_lists():
    class Still(DDPGPolicy):
        def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
            return th.zeros_like(super()._predict(observation, deterministic))

    model = SimpleDDPG(Still, Chain(), **settings())
    for observation in (np.array([0.5, 1.0, 0.0], np.float32), [0.5, 1.0, 0.0]):
        assert model.predict(observation)[0].tolist() == [0.0]


def test_a_hook_on_the_extractor_hears_of_every_prediction_and_one_on_a_weight_of_every_update():
    model, predictions, updates = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings()), [], []
    model.actor.features_extractor.register_forward_hook(lambda *_: predictions.append(1))
    model.predict(np.zeros(3, np.float32))
    assert len(predictions) == 1
    model.actor.mu[0].weight.register_post_accumulate_grad_hook(lambda weight: updates.append(1))
    model.learn(30)
    assert len(updates) == model._n_updates == 20


def test_a_policy_s_action_space_set_later_is_that_of_its_predictions():
    ours, theirs = (algorithm("MlpPolicy", Chain(), **settings()) for algorithm in (SimpleDDPG, DDPG))
    before = ours.predict(np.eye(3, dtype=np.float32))[0]
    for model in (ours, theirs):
        model.policy.action_space = spaces.Box(-10, 10, (1,), np.float32)
    after = ours.predict(np.eye(3, dtype=np.float32))[0]
    assert np.array_equal(after, theirs.predict(np.eye(3, dtype=np.float32))[0])
    assert after == pytest.approx(10 * before, abs=1e-5)  # from [-1, 1] to [-10, 10]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # PyTorch's, with SB3 too
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_on_all_modules_have_the_effect_that_they_have_in_sb3(kind: str):
    def halve(module: nn.Module, values: Any, *outputs: Any) -> Any:
        if type(module) is nn.ReLU:
            return 0.5 * outputs[0] if kind == "forward_hook" else tuple(0.5 * value for value in values)
        return None

    handle = getattr(nn.modules.module, f"register_module_{kind}")(halve)
    try:
        ours, theirs = train_both(lambda model: None)
    finally:
        handle.remove()
    assert_same_agent(ours, theirs, n_updates=20)


def test_a_zero_grad_of_the_user_s_own_is_called():
    model, calls = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings()), []

    class Counting(th.optim.Adam):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append("class")
            super().zero_grad(set_to_none)

    model.critic.optimizer = Counting(model.critic.parameters(), lr=1e-3)
    zero_grad = model.actor.optimizer.zero_grad
    model.actor.optimizer.zero_grad = lambda: calls.append("instance") or zero_grad()
    model.learn(12)
    assert calls == ["class", "instance"] * 2


def test_a_layer_of_no_network_goes_back_with_the_others_where_a_number_is_not_finite():
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), on_non_finite="skip", **settings())
    a_layer_of_no_network_learns(model)
    model.learn(20)
    before = model.extra.weight.clone()
    model.replay_buffer.rewards[:] = np.nan
    model.train(1, 8)
    assert th.equal(model.extra.weight, before)
    model.replay_buffer.rewards[:] = 1.0
    model.train(1, 8)
    assert not th.equal(model.extra.weight, before)
