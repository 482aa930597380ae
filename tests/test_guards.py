"""NaN and infinity: the first one stops learning, says what and where, and leaves the weights as they were.

Not here: environments that fail in other ways (`test_hostile_environments.py`).
"""

import json
import math
import re
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.safety.checks import NonFiniteError
from tests.side_by_side import DICT_SPACES, SMALL_COMBINED, VECTOR, Dummy, settings

NAN, INF = math.nan, math.inf


class Broken(Dummy):
    """Gives one number that is not finite at one step after the start, counted over episodes; -1: at a reset."""

    def __init__(self, what: str, value: float, at: int, space: spaces.Space[Any] = VECTOR) -> None:
        super().__init__(space)
        self.what, self.value, self.at, self.total = what, value, at, 0

    def _broken(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {**observation, "b": self._broken(observation["b"])}
        return np.where(np.arange(observation.size) == 1, self.value, observation).astype(observation.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        return (self._broken(observation) if self.at == -1 else observation), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == self.at:
            observation = self._broken(observation) if self.what == "observation" else observation
            reward = self.value if self.what == "reward" else reward
        return observation, reward, terminated, truncated, info


def snapshot(model: SimpleDDPG) -> list[Any]:
    leaves = th.utils._pytree.tree_leaves(model.get_parameters())
    return [leaf.clone() if isinstance(leaf, th.Tensor) else leaf for leaf in leaves]


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert th.equal(left, right) if isinstance(left, th.Tensor) else left == right


def learn_until_it_stops(model: SimpleDDPG, timesteps: int = 60) -> str:
    with pytest.raises(FloatingPointError) as stopped:
        model.learn(timesteps)
    assert isinstance(stopped.value, NonFiniteError)
    return str(stopped.value)


# --- what enters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [4, 30], ids=["random_steps", "learning"])
@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("observation", r"observation of environment 1 is {} at index \(1,\)"),
        ("reward", r"reward of environment 1 is {}"),
    ],
)
def test_first_number_that_is_not_finite_stops_learning_and_says_where(what, place, at, value):
    env = DummyVecEnv([lambda: Dummy(VECTOR), lambda: Broken(what, value, at)])
    model = SimpleDDPG("MlpPolicy", env, **settings())
    said = learn_until_it_stops(model, 100)
    assert re.search(place.format(value) + rf", at timestep {2 * at}\.", said), said
    assert model.num_timesteps == 2 * at
    assert model.replay_buffer.size() == at - 1  # what is not finite was not stored
    assert "Stored so far: observations -0." in said
    assert "rewards -" in said
    assert all(th.isfinite(weight).all() for weight in model.policy.parameters())


def test_reset_that_is_not_finite_stops_before_the_first_step():
    model = SimpleDDPG("MlpPolicy", Broken("observation", NAN, -1), **settings())
    said = learn_until_it_stops(model)
    assert "observation of environment 0 is nan at index (1,), at timestep 0. Stored so far: nothing." in said


def test_key_of_a_dict_is_named():
    env = Broken("observation", NAN, 5, DICT_SPACES["vectors"])
    model = SimpleDDPG("MultiInputPolicy", env, **settings(policy_kwargs=SMALL_COMBINED))
    assert "observation['b'] of environment 0 is nan at index (1,), at timestep 5." in learn_until_it_stops(model)


def test_last_observation_of_an_episode_is_checked():
    model = SimpleDDPG("MlpPolicy", Broken("observation", INF, 7), **settings())  # episodes of seven
    assert "terminal observation of environment 0 is inf at index (1,), at timestep 7" in learn_until_it_stops(model)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # VecNormalize's own
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_normaliser_neither_hides_nor_keeps_an_infinity(what):
    env = VecNormalize(DummyVecEnv([lambda: Broken(what, INF, 30)]))
    model = SimpleDDPG("MlpPolicy", env, **settings())
    assert f"{what} of environment 0 is inf" in learn_until_it_stops(model)
    for statistics in (env.obs_rms, env.ret_rms):
        assert np.isfinite(statistics.mean).all()
        assert np.isfinite(statistics.var).all()
    assert np.isfinite(env.returns).all()


def test_noise_that_is_not_finite_stops_learning():
    class Poison(ActionNoise):
        def __call__(self) -> np.ndarray:
            return np.array([0.1, NAN], np.float32)

    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(action_noise=Poison()))
    assert "action of environment 0 is nan at index (1,), at timestep 1." in learn_until_it_stops(model)


def test_large_numbers_and_integers_are_no_mistake():
    class Large(Dummy):
        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, *others = super().step(action)
            return observation, 3e30, *others

    SimpleDDPG("MlpPolicy", Large(VECTOR), **settings(learning_starts=1000)).learn(20)  # squares overflow float32
    SimpleDDPG("MlpPolicy", Dummy(spaces.MultiDiscrete([2, 3])), **settings()).learn(20)


# --- updates -------------------------------------------------------------------------------------------------------


class SuddenlyBroken(nn.Module):
    """The identity, whose value or gradient is NaN when told so."""

    value = gradient = False

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        outputs = inputs * (NAN if self.value else 1.0)
        if self.gradient and outputs.requires_grad:
            outputs.register_hook(lambda gradient: gradient * NAN)
        return outputs


def model_that_breaks(**changes: Any) -> SimpleDDPG:
    kwargs = {"net_arch": [8], "activation_fn": SuddenlyBroken, **changes.pop("policy_kwargs", {})}
    return SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs, **changes)).learn(20)


def breaking_layer(network: nn.Module) -> SuddenlyBroken:
    return next(layer for layer in network.modules() if isinstance(layer, SuddenlyBroken))


def break_at(model: SimpleDDPG, layer: SuddenlyBroken, attribute: str, batch: int) -> None:
    """From the n-th batch on; a class of its own, so that batches are drawn one by one."""
    drawn = 0

    def sample(self: ReplayBuffer, *args: Any, **kwargs: Any) -> Any:
        nonlocal drawn
        drawn += 1
        setattr(layer, attribute, drawn == batch)
        return ReplayBuffer.sample(self, *args, **kwargs)

    model.replay_buffer.__class__ = type("Watched", (ReplayBuffer,), {"sample": sample})


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD, th.optim.RMSprop])
@pytest.mark.parametrize(
    ("network", "attribute", "said"),
    [
        ("critic", "value", "critic_loss is nan at timestep 20, gradient step 13"),
        ("actor", "value", "actor_loss is nan at timestep 20, gradient step 13"),
        ("critic", "gradient", "the gradient of critic qf0.0.weight is not finite at timestep 20, gradient step 13"),
        ("actor", "gradient", "the gradient of actor mu.0.weight is not finite at timestep 20, gradient step 13"),
    ],
)
def test_weights_are_those_before_the_call_of_train_that_broke(network, attribute, said, optimizer):
    model = model_that_breaks(policy_kwargs={"optimizer_class": optimizer})
    before, n_updates = snapshot(model), model._n_updates
    assert n_updates == 10
    break_at(model, breaking_layer(getattr(model, network)), attribute, batch=3)
    with pytest.raises(FloatingPointError) as stopped:
        model.train(3, 8)
    assert said in str(stopped.value)
    assert_same(snapshot(model), before)
    assert model._n_updates == n_updates


def test_first_update_of_all_leaves_no_optimizer_state_behind():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(learning_starts=1000)).learn(20)
    model.replay_buffer.rewards[:] = INF
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match="the replay buffer holds inf in rewards, row 0, environment 0"):
        model.train(1, 8)
    assert_same(snapshot(model), before)
    assert not model.critic.optimizer.state


def test_learning_goes_on_after_a_stop_as_if_nothing_had_been():
    stopped, other = model_that_breaks(), model_that_breaks()
    layer = breaking_layer(stopped.critic)
    layer.value = True
    with pytest.raises(FloatingPointError):
        stopped.train(2, 8)
    layer.value = False
    for model in (stopped, other):
        np.random.seed(0)
        model.train(3, 8)
    assert_same(snapshot(stopped), snapshot(other))


@pytest.mark.slow
@pytest.mark.usefixtures("recorded_or_compiled")
def test_compiled_updates_are_guarded_too():
    small = settings(policy_kwargs={"net_arch": [32, 32]}, batch_size=64)
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1", **small, compile_updates=True).learn(20)
    assert model._compiled.failure is None
    before = snapshot(model)
    kept = model.replay_buffer.rewards.copy()
    model.replay_buffer.rewards[:] = INF
    with pytest.raises(FloatingPointError, match="critic_loss is inf"):
        model.train(1, 64)
    assert_same(snapshot(model), before)
    model.on_non_finite = "skip"
    model.train(3, 64)
    assert model.logger.name_to_value["train/n_skipped"] == 3
    assert_same(snapshot(model), before)
    model.replay_buffer.rewards[:] = kept
    model.train(1, 64)
    assert model._compiled.failure is None
    assert model._n_updates == 11


def test_guard_changes_no_weight_and_draws_no_number():
    # An update without any guard is in test_parity.py: the weights are those of SB3.
    models = []
    for each in ("stop", "skip"):
        models.append(SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(on_non_finite=each)).learn(60))
    assert_same(*map(snapshot, models))
    assert models[0]._n_updates == models[1]._n_updates == 50


# --- on_non_finite="skip" ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["value", "gradient"])
def test_skipped_batch_changes_nothing_and_is_counted(attribute):
    model, other = model_that_breaks(on_non_finite="skip"), model_that_breaks()
    break_at(model, breaking_layer(model.critic), attribute, batch=2)
    np.random.seed(0)
    model.train(3, 8)
    assert model.logger.name_to_value["train/n_skipped"] == 1
    assert model._n_updates == 10 + 2
    # The other model does the first and the third batch alone.
    np.random.seed(0)
    other.train(1, 8)
    other.replay_buffer.sample(8)
    other.train(1, 8)
    assert_same(snapshot(model), snapshot(other))


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("changes", [{}, {"n_steps": 3}], ids=["uniform", "n_step"])
def test_skipped_transition_is_not_stored_and_nothing_is_joined_over_it(what, changes):
    # Two environments, episodes of seven; step 10 of the second is broken. An observation takes the row of the step
    # that begins with it along.
    env = DummyVecEnv([lambda: Dummy(VECTOR), lambda: Broken(what, NAN, 10)])
    model = SimpleDDPG("MlpPolicy", env, **settings(on_non_finite="skip", **changes)).learn(60)
    missing = 2 if what == "observation" else 1
    assert model.num_timesteps == 60
    assert model.logger.name_to_value["rollout/n_skipped"] == missing
    buffer = model.replay_buffer
    assert buffer.size() == 30 - missing
    for name in ("observations", "next_observations", "rewards", "actions"):
        assert np.isfinite(getattr(buffer, name)[: buffer.size()]).all()
    # Row 6 ends the first episode; row 8 is the last before the gap.
    assert buffer.timeouts[:10].tolist() == [[0, 0]] * 6 + [[1, 1]] + [[0, 0]] + [[1, 1]] + [[0, 0]]
    assert all(th.isfinite(weight).all() for weight in model.policy.parameters())


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # VecNormalize's own
def test_normaliser_goes_on_as_if_the_skipped_transition_had_not_been():
    env = VecNormalize(DummyVecEnv([lambda: Broken("observation", INF, 20)]))
    model = SimpleDDPG("MlpPolicy", env, **settings(on_non_finite="skip")).learn(40)
    assert model.logger.name_to_value["rollout/n_skipped"] == 2
    assert np.isfinite(env.obs_rms.mean).all()
    # One count a step and a reset, but for the step that was skipped; the one after it was a fine observation, though
    # what was done there was not, and counts no more than the first.
    assert env.obs_rms.count == pytest.approx(1e-4 + 1 + 40 - 2)


# --- reports -------------------------------------------------------------------------------------------------------


def test_diagnosis_is_saved_in_the_folder_of_the_run(tmp_path):
    model = SimpleDDPG("MlpPolicy", Broken("reward", NAN, 30), **settings())
    model.set_logger(configure(str(tmp_path), []))
    said = learn_until_it_stops(model)
    assert said.endswith(f"Diagnosis: {tmp_path / 'diagnosis.json'}.")
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["what"] == "reward of environment 0 is nan, at timestep 30"
    assert (found["num_timesteps"], found["n_updates"], found["stored_transitions"]) == (30, 19, 29)
    low, high = found["ranges_of_stored_transitions"]["rewards"]
    assert low == pytest.approx(model.replay_buffer.rewards[:29].min())
    assert high == pytest.approx(model.replay_buffer.rewards[:29].max())
    assert found["learning_rates"] == {"actor": 1e-3, "critic": 1e-3}


def test_diagnosis_that_cannot_be_written_is_said_and_hides_nothing(tmp_path):
    model = SimpleDDPG("MlpPolicy", Broken("reward", NAN, 30), **settings())
    model.set_logger(configure(str(tmp_path), []))
    (tmp_path / "diagnosis.json").mkdir()
    said = learn_until_it_stops(model)
    assert "reward of environment 0 is nan" in said
    assert "No diagnosis could be written: [Errno 21]" in said


# --- prediction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (4,)], ids=["one", "batch"])
@pytest.mark.parametrize("space", ["box", "dict"])
def test_policy_with_weights_that_are_not_finite_refuses_to_predict(space, batch):
    observation_space = VECTOR if space == "box" else DICT_SPACES["vectors"]
    policy = "MlpPolicy" if space == "box" else "MultiInputPolicy"
    model = SimpleDDPG(policy, Dummy(observation_space), **settings())
    sample = observation_space.sample()
    observation = (
        {key: np.tile(value, (*batch, 1)) if batch else value for key, value in sample.items()}
        if (space == "dict")
        else (np.tile(sample, (*batch, 1)) if batch else sample)
    )
    assert np.isfinite(model.predict(observation)[0]).all()
    with th.no_grad():
        model.actor.mu[2].bias[0] = NAN
    with pytest.raises(FloatingPointError, match=r"The actor's weights are not finite \(mu.2.bias\)"):
        model.predict(observation)
    with pytest.raises(FloatingPointError, match=r"weights are not finite .* At timestep 10\. Stored so far"):
        model.learn(30)  # the random steps need no policy


@pytest.mark.parametrize(("value", "shown"), [(NAN, r"\[ 0\. nan\]"), (1e300, r"\[0\.e\+000 1\.e\+300\]")])
def test_observation_that_gives_no_action_is_named(value, shown):
    model = SimpleDDPG("MlpPolicy", Dummy(spaces.Box(-INF, INF, (2,), np.float64)), **settings())
    with pytest.raises(FloatingPointError, match=f"The observation is not finite in float32: {shown}"):
        model.predict(np.array([0.0, value]))


# --- the weights are those of before, whatever provokes the number ---------------------------------------------------


def provoke(model: SimpleDDPG, how: str) -> None:
    if how == "learning rate":
        model.lr_schedule = lambda _: 1e30  # finite weights of 1e30, whose Q-values are not
    elif how == "rewards":
        model.replay_buffer.rewards[:] = 1e38  # the square is more than float32 holds
    elif how == "weights":
        model.critic.qf0[2].bias.data.fill_(1e38)
    elif how == "nan weight":
        model.actor.mu[0].weight.data[0, 0] = NAN
    elif how == "gradient":
        model.critic.qf0[2].bias.data.fill_(1e19)  # Q - y = 1e19, its square 1e38; Adam squares a gradient of 2e19
    elif how == "nan in the buffer, no learning":
        model.lr_schedule = lambda _: 0.0
        model.replay_buffer.rewards[:] = NAN


PROVOCATIONS = ["learning rate", "rewards", "weights", "nan weight", "gradient", "nan in the buffer, no learning"]
OPTIMIZERS = {
    "Adam": {},
    "AdamW": {"optimizer_class": th.optim.AdamW},
    "Adam, amsgrad": {"optimizer_kwargs": {"amsgrad": True}},
    "SGD": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    "RMSprop": {"optimizer_class": th.optim.RMSprop},
}


def assert_stops_with_the_weights_of_before(model: SimpleDDPG, how: str, gradient_steps: int) -> None:
    provoke(model, how)
    before, n_updates = snapshot(model), model._n_updates
    rates = model.lr_schedule(1.0)
    with pytest.raises(NonFiniteError, match="The weights are those before this call of train"):
        # A huge learning rate breaks the second update, since the first one's weights are finite.
        model.train(max(gradient_steps, 1 + (rates == 1e30)), 8)
    after = snapshot(model)
    model._update_learning_rate([model.actor.optimizer, model.critic.optimizer])
    for left, right in zip(before, after, strict=True):
        if isinstance(left, th.Tensor):
            assert th.equal(left.nan_to_num(1.5), right.nan_to_num(1.5))
    assert model._n_updates == n_updates


#: SGD squares no gradient, so that nothing overflows there.
CASES = [(how, each) for how in PROVOCATIONS for each in OPTIMIZERS if (how, each) != ("gradient", "SGD")]


@pytest.mark.parametrize("gradient_steps", [1, 3])
@pytest.mark.parametrize(("how", "optimizer"), CASES)
def test_weights_and_moments_are_those_of_before_whatever_was_not_finite(how, optimizer, gradient_steps):
    kwargs = {"net_arch": [8], **OPTIMIZERS[optimizer]}
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs)).learn(20)
    assert_stops_with_the_weights_of_before(model, how, gradient_steps)


@pytest.mark.slow
@pytest.mark.usefixtures("recorded_or_compiled")
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_compiled_updates_leave_weights_and_moments_as_they_were_too(optimizer, compiled_calls):
    kwargs = {"net_arch": [8], **OPTIMIZERS[optimizer]}
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs, compile_updates=True)).learn(20)
    weights = deepcopy(model.get_parameters())
    rewards, schedule = model.replay_buffer.rewards.copy(), model.lr_schedule
    for how in [how for how, each in CASES if each == optimizer]:
        for gradient_steps in (1, 3):
            model.set_parameters(weights)
            model.replay_buffer.rewards[:], model.lr_schedule = rewards, schedule
            compiled_calls.clear()
            assert_stops_with_the_weights_of_before(model, how, gradient_steps)
            assert len(compiled_calls) == max(gradient_steps, 1 + (how == "learning rate"))
    model.set_parameters(weights)
    model.replay_buffer.rewards[:], model.lr_schedule = rewards, schedule
    model.train(2, 8)  # and nothing that is not finite is left anywhere
    assert all(th.isfinite(leaf).all() for leaf in snapshot(model) if isinstance(leaf, th.Tensor))


def test_nothing_is_copied_before_a_compiled_update_that_looks_itself(monkeypatch):
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings()).learn(20)

    def looks_itself(batch):
        return th.zeros(6)

    looks_itself.looks_itself = True
    monkeypatch.setattr(model._guard._memory, "take", None)  # would fail
    for _, update in model._guard.watched(model, [None], 1, lambda batch: looks_itself, []):
        assert update is looks_itself


def test_optimizer_states_of_any_kind_are_put_back():
    """Lists, numbers and tensors that are replaced at each step: what optimizers outside PyTorch do."""

    class Strange(th.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr, "count": 0})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                group["count"] += 1
                for weight in group["params"]:
                    state = self.state[weight]
                    state["history"] = [*state.get("history", []), 1]
                    state.setdefault("written", []).append(2)
                    state["average"] = state.get("average", 0.0) + weight.grad  # another tensor each time
                    weight.data.sub_(group["lr"] * weight.grad)

    kwargs = {"net_arch": [8], "optimizer_class": Strange}
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs)).learn(20)
    before = snapshot(model)
    model.replay_buffer.rewards[:] = 1e38
    with pytest.raises(NonFiniteError, match="The weights are those before"):
        model.train(2, 8)
    assert_same(snapshot(model), before)
    assert model.actor.optimizer.param_groups[0]["count"] == 10
    assert len(next(iter(model.critic.optimizer.state.values()))["written"]) == 10


class Scaling(nn.Module):
    """A ReLU times a number that learns, of shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(th.tensor(1.0))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.factor * th.relu(inputs)


@pytest.mark.parametrize("how", ["other memory", "copy", "number"])
def test_a_weight_that_is_not_finite_is_seen_wherever_it_lies(how: str):
    """SGD without momentum keeps no moments that would tell."""
    kwargs = {"net_arch": [8], "activation_fn": Scaling, "optimizer_class": th.optim.SGD}
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs)).learn(20)
    if how == "other memory":
        model.actor.load_from_vector(model.actor.parameters_to_vector())
    model = deepcopy(model) if how == "copy" else model
    weight = model.actor.mu[1].factor if how == "number" else model.actor.mu[0].weight
    before = snapshot(model)
    weight.register_hook(lambda gradient: gradient * NAN)
    with pytest.raises(NonFiniteError, match="The weights are those before"):
        model.train(1, 8)
    assert_same(snapshot(model), before)


# --- searches over settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("caught", [AssertionError, ValueError, FloatingPointError], ids=lambda error: error.__name__)
def test_a_search_gives_up_the_trial_that_gave_nan_and_goes_on(caught: type[Exception], what: str):
    """Optuna's example for SB3 catches AssertionError around `learn`, RL Zoo's search a ValueError too."""

    def trial(at: int) -> str:
        model = SimpleDDPG("MlpPolicy", DummyVecEnv([lambda: Broken(what, NAN, at)]), **settings())
        try:
            model.learn(40)
        except caught:
            return f"pruned at {model.num_timesteps}"
        return "complete"

    assert [trial(at) for at in (5, 1_000, 20)] == ["pruned at 5", "complete", "pruned at 20"]


def test_a_search_gives_up_the_trial_whose_weights_became_nan():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings()).learn(20)
    with th.no_grad():
        model.actor.mu[0].weight.fill_(NAN)
    for give_up in (lambda: model.predict(np.zeros(3, np.float32)), lambda: model.learn(20), lambda: model.train(1)):
        with pytest.raises(AssertionError):
            give_up()
