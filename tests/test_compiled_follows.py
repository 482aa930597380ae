"""Compiled updates follow whatever a user changes between two of them, as the plain path does.

Not here: drawn settings (`test_differential.py`), and what is compiled (`test_compiled.py`).
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.policies import Critic, DDPGPolicy
from sb3_simple_ddpg.safety.checks import CompileWarning
from sb3_simple_ddpg.speed import compiled
from sb3_simple_ddpg.speed.layers import DenseLayers
from tests.differential import no_waiting

# Coverage would look at each call within PyTorch's recorder too, and double the time; `test_compiled.py` is covered.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("recorded_or_compiled")]

#: Of weights of about 1, after a few updates on the same batches: two orders of rounding.
CLOSE = 2e-6


@pytest.fixture(autouse=True)
def without_waiting() -> Iterator[None]:
    """A second function is compiled at once."""
    with no_waiting():
        yield


def make(compile_updates: bool, **changes: Any) -> SimpleDDPG:
    kwargs = {"net_arch": [16], **changes.pop("policy_kwargs", {})}  # recording takes a second, of two layers two
    model = SimpleDDPG(
        changes.pop("policy", "MlpPolicy"), "Pendulum-v1", seed=3, buffer_size=500, learning_starts=200, device="cpu",
        batch_size=64, policy_kwargs=kwargs, compile_updates=compile_updates, **changes,
    ).learn(200)  # fmt: skip
    train(model, 2)
    return model


def train(model: SimpleDDPG, updates: int, batch_size: int = 64) -> None:
    np.random.seed(updates)
    model.train(updates, batch_size)


def largest_difference(one: SimpleDDPG, other: SimpleDDPG) -> float:
    state, theirs = one.policy.state_dict(), other.policy.state_dict()
    return max((state[name] - theirs[name]).abs().max().item() for name in state)


def change_both(change: Callable[[SimpleDDPG], Any], **settings: Any) -> tuple[SimpleDDPG, SimpleDDPG]:
    """A plain and a compiled model, changed after two updates, and trained on."""
    plain, fast = make(False, **settings), make(True, **settings)
    for model in (plain, fast):
        change(model)
        train(model, 4)
    return plain, fast


# --- learning rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["both", "critic"])
def test_a_learning_rate_of_zero_moves_no_weight_and_the_moments_go_on(who: str, compiled_calls: list[str]):
    rates = {"learning_rate": 0.0} if who == "both" else {"critic_learning_rate": 0.0}
    model = make(True, **rates)
    weights = [weight.clone() for weight in model.critic.parameters()]
    moments = [state["exp_avg"].clone() for state in model.critic.optimizer.state.values()]
    compiled_calls.clear()
    train(model, 3)
    assert len(compiled_calls) == 3
    assert all(map(th.equal, weights, model.critic.parameters()))
    now = [state["exp_avg"] for state in model.critic.optimizer.state.values()]
    assert not any(map(th.equal, moments, now))
    assert {state["step"].item() for state in model.critic.optimizer.state.values()} == {5.0}


def test_a_schedule_that_ends_at_zero_ends_with_finite_weights():
    model = SimpleDDPG(
        "MlpPolicy", "Pendulum-v1", seed=0, learning_rate=lambda left: 1e-3 * left, compile_updates=True,
        policy_kwargs={"net_arch": [32, 32]}, batch_size=64, device="cpu",
    ).learn(150)  # fmt: skip
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.0
    assert model._n_updates == 50
    assert all(th.isfinite(weight).all() for weight in model.policy.parameters())


@pytest.mark.parametrize("rate", [1e-39, 1e-30])
def test_a_rate_below_float32_s_normal_numbers_is_no_other_path(rate: float):
    plain, fast = change_both(lambda model: setattr(model, "lr_schedule", lambda _: rate))
    assert largest_difference(plain, fast) < CLOSE


def test_weight_decay_of_adam_gives_sb3_s_weights():
    kwargs = {"net_arch": [32, 32], "optimizer_class": th.optim.Adam}
    kwargs["optimizer_kwargs"] = {"weight_decay": 1e-2, "eps": 1e-3}
    models = []
    for algorithm, more in ((DDPG, {}), (SimpleDDPG, {"action_noise": None, "compile_updates": True})):
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=deepcopy(kwargs), device="cpu", **more)
        models.append(model.learn(120))
    theirs, ours = models
    assert ours._compiled.failure is None
    assert len(ours._compiled._functions) == 1
    largest = max(weight.abs().max().item() for weight in theirs.policy.parameters())
    assert largest_difference(ours, theirs) < 1e-4 * largest


def test_adam_s_settings_are_followed_without_compiling_again(compiled_calls: list[str]):
    def change(model: SimpleDDPG) -> None:
        for optimizer in (model.actor.optimizer, model.critic.optimizer):
            optimizer.param_groups[0].update(weight_decay=0.1, betas=(0.5, 0.9), eps=1e-2, maximize=True)

    plain, fast = change_both(change)
    assert largest_difference(plain, fast) < CLOSE
    assert len(fast._compiled._functions) == 1
    assert len(compiled_calls) == 1 + 4  # in the first update the optimizers create their states


def test_groups_of_weights_have_rates_of_their_own():
    def change(model: SimpleDDPG) -> None:
        weights = list(model.actor.parameters())
        groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": 1e-2, "weight_decay": 0.1}]
        model.actor.optimizer = th.optim.Adam(groups, lr=1e-3, eps=1e-3)
        model._update_learning_rate = lambda *_: None  # SB3 gives all groups one rate

    plain, fast = change_both(change)
    assert fast._compiled.failure is None
    assert largest_difference(plain, fast) < CLOSE


# --- hooks and frozen weights --------------------------------------------------------------------------------------


def test_a_gradient_hook_is_called_at_every_update_and_obeyed():
    model, calls = make(True), []
    before = model.actor.mu[0].weight.clone()
    # Adam has moments of two updates; its first weight would move on without any gradient.
    model.actor.optimizer.state.clear()
    handle = model.actor.mu[0].weight.register_hook(lambda gradient: calls.append(1) or gradient * 0)
    with pytest.warns(CompileWarning, match="somebody listens to actor.mu.0.weight"):
        train(model, 5)
    assert len(calls) == 5
    assert th.equal(model.actor.mu[0].weight, before)
    handle.remove()
    train(model, 2)
    assert model._compiled.failure is None
    assert not th.equal(model.actor.mu[0].weight, before)


@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (lambda model, hook: model.critic.qf0[2].register_forward_hook(hook), 2),  # it judges twice in an update
        (lambda model, hook: model.actor_target.mu.register_forward_pre_hook(hook), 1),
        (lambda model, hook: model.actor.mu[2].register_full_backward_hook(hook), 1),
        (lambda model, hook: model.actor.mu[2].weight.register_post_accumulate_grad_hook(hook), 1),
        (lambda model, hook: model.critic.optimizer.register_step_post_hook(hook), 1),
        (lambda model, hook: nn.modules.module.register_module_forward_hook(hook), None),
    ],
    ids=["forward", "forward pre", "full backward", "post accumulate", "optimizer", "all modules"],
)
def test_every_kind_of_hook_is_called(register: Callable[..., Any], expected: int | None):
    model, calls = make(True), []
    handle = register(model, lambda *_: calls.append(1))
    try:
        train(model, 3)
    finally:
        handle.remove()
    assert len(calls) == 3 * expected if expected is not None else len(calls) > 3
    calls.clear()
    train(model, 1)
    assert calls == []


@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
@pytest.mark.parametrize("what", ["layer", "class", "forward"])
def test_a_layer_changed_in_place_is_followed(what: str):
    class Doubling(DenseLayers):
        def forward(self, inputs: th.Tensor) -> th.Tensor:
            return 2 * super().forward(inputs)

    def change(model: SimpleDDPG) -> None:
        if what == "layer":
            th.manual_seed(0)
            model.critic.qf0[2] = nn.Linear(16, 1)
            model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3, eps=1e-3)
        elif what == "class":
            model.critic.qf0.__class__ = Doubling
        else:
            own = model.critic.qf0[0].forward
            model.critic.qf0[0].forward = lambda inputs: 2 * own(inputs)

    plain, fast = change_both(change)
    assert largest_difference(plain, fast) < CLOSE
    assert largest_difference(fast, make(False)) > 1e-4  # the change mattered


class Activation(nn.Module):
    """A layer whose class is changed in place."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return th.relu(inputs)


@pytest.mark.parametrize("what", ["forward", "q1_forward", "q1_forward of one", "extract_features of one"])
@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
def test_a_method_put_in_another_s_place_is_followed(what: str, monkeypatch):
    def judge(critic: Critic, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return -(actions**2)

    def change(model: SimpleDDPG, patch: pytest.MonkeyPatch) -> None:
        if what == "forward":
            patch.setattr(Activation, "forward", lambda self, inputs: th.tanh(inputs))
        elif what == "q1_forward":
            patch.setattr(Critic, "q1_forward", judge)
        elif what == "q1_forward of one":
            model.critic.q1_forward = judge.__get__(model.critic)
        else:
            model.actor.extract_features = lambda observations, extractor: 0.5 * observations

    kwargs = {"policy_kwargs": {"net_arch": [16], "activation_fn": Activation}}
    models = []
    for compile_updates in (False, True):
        model = make(compile_updates, **kwargs)
        before = deepcopy(model)
        train(before, 4)
        with monkeypatch.context() as patch:
            change(model, patch)
            train(model, 4)
        models.append(model)
    assert largest_difference(*models) < CLOSE
    assert largest_difference(models[0], before) > 1e-4  # the change mattered


class Scaling(nn.Module):
    """A layer with an attribute that its result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.scale * th.relu(inputs)


def test_an_attribute_of_a_layer_is_followed(compiled_calls: list[str]):
    def change(model: SimpleDDPG) -> None:
        for network in (model.actor, model.critic, model.actor_target, model.critic_target):
            for layer in network.modules():
                if isinstance(layer, Scaling):
                    layer.scale = 0.5

    plain, fast = change_both(change, policy_kwargs={"net_arch": [16], "activation_fn": Scaling})
    assert fast._compiled.failure is None
    assert len(compiled_calls) == 1 + 4
    assert largest_difference(plain, fast) < CLOSE


def test_a_layer_that_changes_all_the_time_goes_plainly_and_is_named(monkeypatch):
    monkeypatch.setattr(compiled, "MOST_KINDS", 2)
    model = make(True, policy_kwargs={"net_arch": [16], "activation_fn": Scaling})
    for scale in (0.9, 0.8):
        model.actor.mu[1].scale = scale
        with warnings.catch_warnings(action="ignore", category=CompileWarning):
            train(model, 1)
    model._compiled._told.clear()
    model.actor.mu[1].scale = 0.7
    with pytest.warns(CompileWarning, match="layers change again and again, actor.mu.1 among them"):
        train(model, 1)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        pytest.param(layer, settings, marks=[] if row == column else pytest.mark.long)
        for row, layer in enumerate(["actor.mu.0", "critic.qf0.2", "actor.mu"])
        for column, settings in enumerate([{}, {"max_grad_norm": 0.1}, {"on_non_finite": "skip"}])
    ],
    ids=str,
)
def test_frozen_weights_stay_and_the_rest_learns(layer: str, settings: dict[str, Any], compiled_calls: list[str]):
    before = {}

    def freeze(model: SimpleDDPG) -> None:
        model.policy.get_submodule(layer).requires_grad_(False)
        before.update({name: weight.clone() for name, weight in model.policy.named_parameters()})

    plain, fast = change_both(freeze, **settings)
    stayed = {name for name, weight in fast.policy.named_parameters() if th.equal(weight, before[name])}
    assert stayed == {f"{layer}.{name}" for name, _ in fast.policy.get_submodule(layer).named_parameters()}
    assert largest_difference(plain, fast) < CLOSE
    assert len(compiled_calls) == 1 + 4  # in the first update the optimizers create their states
    for model in (plain, fast):  # thawed, with step counters that differ by then
        model.policy.get_submodule(layer).requires_grad_(True)
        train(model, 4)
    assert largest_difference(plain, fast) < CLOSE
    assert len(compiled_calls) == 1 + 8


def test_weights_frozen_from_the_start_have_no_state_and_need_none(compiled_calls: list[str]):
    kwargs = {"net_arch": [32, 32]}
    models = []
    for compile_updates in (False, True):
        model = SimpleDDPG(
            "MlpPolicy", "Pendulum-v1", seed=3, learning_starts=200, compile_updates=compile_updates,
            policy_kwargs=kwargs, device="cpu",
        )  # fmt: skip
        model.critic.qf0[0].requires_grad_(False)
        model.learn(200)
        train(model, 5)
        models.append(model)
    assert len(models[1].critic.optimizer.state) == 4
    assert len(compiled_calls) == 4
    assert largest_difference(*models) < CLOSE


@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
@pytest.mark.parametrize("what", ["one optimizer", "zero_grad"])
def test_optimizers_that_compiled_code_cannot_repeat_go_plainly(what: str, compiled_calls: list[str]):
    def change(model: SimpleDDPG) -> None:
        if what == "one optimizer":
            both = th.optim.Adam([*model.actor.parameters(), *model.critic.parameters()], lr=1e-3, eps=1e-3)
            model.actor.optimizer = model.critic.optimizer = both
        else:
            model.critic.optimizer.zero_grad = lambda: None  # gradients add up, from here on
            for weight in model.critic.parameters():
                weight.grad = None
        compiled_calls.clear()

    plain, fast = change_both(change)
    assert compiled_calls == []
    reason = "moves weights of another network" if what == "one optimizer" else "has a zero_grad of its own"
    assert reason in fast._compiled.failure
    assert largest_difference(plain, fast) < CLOSE


# --- weights and states that are others ----------------------------------------------------------------------------


def clear_states(model: SimpleDDPG) -> None:
    model.actor.optimizer.state.clear()
    model.critic.optimizer.state.clear()


def new_optimizers(model: SimpleDDPG) -> None:
    for network in (model.actor, model.critic):
        network.optimizer = th.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1, eps=1e-3)


def new_parameter(model: SimpleDDPG) -> None:
    model.critic.qf0[2].weight = nn.Parameter(model.critic.qf0[2].weight.detach() * 0.5)
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3, eps=1e-3)


def new_parameter_that_nobody_trains(model: SimpleDDPG) -> None:
    model.critic.qf0[2].weight = nn.Parameter(model.critic.qf0[2].weight.detach() * 0.5)


def loaded_again_and_again(model: SimpleDDPG) -> None:
    parameters = deepcopy(model.get_parameters())
    for _ in range(5):
        train(model, 2)
        model.set_parameters(parameters)


def transposed_in_place(model: SimpleDDPG) -> None:
    """The same memory and the same shape, read the other way."""
    hidden = model.critic.qf0[2].weight
    assert hidden.shape == (16, 16)
    hidden.data = hidden.data.t()


def shared_layer(model: SimpleDDPG) -> None:
    """Two layers of one network, and one of two networks, in the same memory."""
    model.actor.mu[2].weight.data = model.critic.qf0[2].weight.data


def shared_target(model: SimpleDDPG) -> None:
    model.actor_target.mu = model.actor.mu


@pytest.mark.parametrize(
    "change",
    [
        clear_states, new_optimizers, new_parameter, new_parameter_that_nobody_trains, loaded_again_and_again,
        transposed_in_place,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_other_weights_and_states_are_followed(change: Callable[[SimpleDDPG], None], compiled_calls: list[str]):
    settings = {"policy_kwargs": {"net_arch": [16, 16]}} if change is transposed_in_place else {}
    plain, fast = change_both(change, **settings)
    assert fast._compiled.failure is None
    assert compiled_calls[-3:] == compiled_calls[-1:] * 3  # the last three of four, at least
    assert largest_difference(plain, fast) < CLOSE


@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
@pytest.mark.parametrize("change", [shared_layer, shared_target])
def test_weights_that_share_memory_from_now_on_go_plainly(change: Callable[[SimpleDDPG], None]):
    plain, fast = change_both(change)
    assert "share memory" in fast._compiled.failure
    assert largest_difference(plain, fast) < CLOSE


def test_moments_that_are_nan_are_forgotten_with_the_parameters_that_had_them():
    model = make(True)
    parameters = deepcopy(model.get_parameters())
    for _ in range(3):
        model.replay_buffer.rewards[0] = np.nan
        with pytest.raises(FloatingPointError):
            train(model, 20)
        model.replay_buffer.rewards[0] = -1.0
        model.set_parameters(parameters)
        train(model, 2)
    states = [*model.actor.optimizer.state.values(), *model.critic.optimizer.state.values()]
    assert all(th.isfinite(state["exp_avg_sq"]).all() for state in states)


def test_a_copy_of_a_model_learns_on_by_itself():
    fast, plain = make(True), make(False)
    copy = deepcopy(fast)
    before = [weight.clone() for weight in fast.policy.parameters()]
    for model in (copy, plain):
        train(model, 4)
    assert all(map(th.equal, before, fast.policy.parameters()))
    assert largest_difference(copy, plain) < CLOSE


def test_no_gradient_of_an_earlier_update_is_left_to_be_taken_for_one_of_now():
    model = make(True)
    assert all(weight.grad is None for weight in model.actor.parameters())


# --- classes of the user's own -------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """An extractor with weights, sums with `alpha`, and an activation that the package does not know."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__()
        self.features_dim = 8
        self.first, self.second = nn.Linear(3, 8, bias=False), nn.Linear(3, 8, bias=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        values = th.add(self.first(observations), self.second(observations).cos(), alpha=0.25)
        return nn.functional.hardtanh(values).add(observations[:, :1].expand(-1, 8), alpha=3.0)


class DoubledCritic(Critic):
    def forward(self, observations: Any, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(2.0 * q_values for q_values in super().forward(observations, actions))

    def q1_forward(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        return 2.0 * super().q1_forward(observations, actions)


class OwnPolicy(DDPGPolicy):
    def make_critic(self, features_extractor: Any = None) -> Critic:
        return DoubledCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor))


@pytest.mark.parametrize(
    "settings",
    [
        {"policy_kwargs": {"net_arch": [16], "features_extractor_class": Encoder}},
        {"policy": OwnPolicy, "policy_kwargs": {"net_arch": [16]}},
    ],
    ids=["extractor", "critic"],
)
def test_classes_of_the_user_s_own_are_compiled(settings: dict[str, Any], compiled_calls: list[str]):
    plain, fast = change_both(lambda model: None, **settings)
    assert len(compiled_calls) == 1 + 4
    assert largest_difference(plain, fast) < CLOSE


class ScalingByAList(nn.Module):
    """A layer whose attribute stays the same object when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [1.0]

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.scale[0] * th.relu(inputs)


@pytest.mark.filterwarnings("ignore::sb3_simple_ddpg.safety.checks.CompileWarning")
def test_a_layer_that_can_change_without_being_another_object_goes_plainly():
    def change(model: SimpleDDPG) -> None:
        for layer in model.policy.modules():
            if isinstance(layer, ScalingByAList):
                layer.scale[0] = 0.5

    plain, fast = change_both(change, policy_kwargs={"net_arch": [16], "activation_fn": ScalingByAList})
    assert fast._compiled.failure.startswith("actor.mu.1.scale could change without becoming another object")
    assert largest_difference(plain, fast) == 0.0


def test_an_update_of_the_user_s_own_is_made_instead():
    class Own(SimpleDDPG):
        updates = 0

        def _update(self, batch: Any) -> th.Tensor:
            self.updates += 1
            return super()._update(batch)

    model = Own("MlpPolicy", "Pendulum-v1", learning_starts=20, compile_updates=True, policy_kwargs={"net_arch": [4]})
    with pytest.warns(CompileWarning, match=r"Own._update is not SimpleDDPG's"):
        model.learn(30)
    assert model.updates == 10


# --- what else -----------------------------------------------------------------------------------------------------


def test_a_second_batch_size_goes_plainly_until_compiling_pays(monkeypatch, compiled_calls: list[str]):
    monkeypatch.setattr(compiled, "PATIENCE", 3)
    model = make(True)
    assert len(compiled_calls) == 1
    for done in range(5):
        assert len(compiled_calls) == 1 + max(0, done - 3)
        train(model, 1, batch_size=16)
    train(model, 1)
    assert len(compiled_calls) == 1 + 2 + 1


def test_a_model_keeps_few_functions_and_forgets_the_oldest(monkeypatch, compiled_calls: list[str]):
    monkeypatch.setattr(compiled, "MOST_FUNCTIONS", 2)
    model = make(True)
    for batch_size in (16, 17, 64):
        train(model, 1, batch_size)
        assert len(model._compiled._functions) <= 2
    assert len(compiled_calls) == 1 + 3


def test_no_setting_of_a_thread_is_changed():
    """Denormal numbers were flushed to zero while compiled code ran, and in threads that began meanwhile for ever."""
    model, seen = make(True), []
    sample = model.replay_buffer.sample

    def sample_in_a_thread(*args: Any, **kwargs: Any) -> Any:
        thread = threading.Thread(target=lambda: seen.append(np.float32(1e-39) * np.float32(1.0)))
        thread.start()
        thread.join()
        return sample(*args, **kwargs)

    model.replay_buffer.sample = sample_in_a_thread
    train(model, 2)
    assert len(seen) == 2
    assert all(value > 0 for value in seen)


def test_averages_of_a_unit_that_died_end_at_zero_and_not_at_the_smallest_number():
    model = make(True)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        for state in optimizer.state.values():
            state["exp_avg"].mul_(1e-38)
            state["exp_avg_sq"].mul_(1e-38)
    with th.no_grad():  # every unit of the first hidden layer is off, so nothing has a gradient but the last bias
        for network in (model.actor.mu, model.critic.qf0):
            network[0].bias.fill_(-1e3)
    train(model, 3)
    moments = model.critic.optimizer.state[model.critic.qf0[0].weight]
    assert moments["exp_avg"].abs().max() == 0.0
    assert moments["exp_avg_sq"].abs().max() == 0.0


def test_a_warning_at_verbose_zero_can_be_silenced():
    with th.autograd.set_detect_anomaly(True, check_nan=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=CompileWarning)
        model = make(False)
        model.compile_updates = True
        with pytest.raises(CompileWarning, match="autograd's anomaly detection is on"):
            train(model, 1)
        warnings.simplefilter("ignore", CompileWarning)
        train(model, 1)
    assert model._n_updates == 3
