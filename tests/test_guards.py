"""NaN and infinity: the first one stops learning, says what and where, and leaves the weights as they were.

Not here: environments that fail in other ways (`test_hostile_environments.py`).
"""

import json
import math
import re
from contextlib import nullcontext
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

from sb3_simple_ddpg import SimpleDDPG, bounds
from sb3_simple_ddpg.checks import NonFiniteError
from tests.environments import Bandit
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
def test_compiled_updates_are_guarded_too():
    # Networks, batch and environment of test_compiled.py: what was compiled there is found in the cache.
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


# --- when nothing needs to be remembered ---------------------------------------------------------------------------


def test_the_bound_of_all_numbers_of_an_update_is_the_one_worked_out_by_hand():
    """
    Inputs of at most 2, one layer each. Q <= (2 * 2 + 1) * 3 = 15, action <= (1 * 2 + 1) * 2 = 6.

    Error of the critic <= 2 (2 * 15 + 2) = 64, times its inputs 128, into them 64 * 3 = 192, the largest. Into the
    action -Q has 1 * 3, times the actor's inputs 6.
    """
    assert bounds.largest_number([(2, 1, 3.0)], [(1, 1, 2.0)], square=4.0) == 192.0


@pytest.mark.parametrize("seed", range(5))
def test_no_number_of_an_update_is_larger_than_its_bound(seed: int):
    th.manual_seed(seed)
    settings = {"policy_kwargs": {"net_arch": [20, 10]}, "learning_starts": 10, "seed": seed, "batch_size": 16}
    model = SimpleDDPG("MlpPolicy", Bandit(), **settings).learn(12)
    for weight in model.policy.parameters():
        weight.data.normal_(std=3.0)
    layers = [
        [
            (layer.in_features, layer.out_features, max(weight.abs().max().item() for weight in network.parameters()))
            for layer in network.modules()
            if isinstance(layer, th.nn.Linear)
        ]
        for network in (model.critic, model.actor)
    ]
    batch = model.replay_buffer.sample(16)
    batch = batch._replace(observations=th.randn(16, 1) * 5, rewards=th.randn(16, 1) * 5)
    inputs = (batch.observations, batch.next_observations, batch.rewards)
    bound = bounds.largest_number(*layers, sum(values.square().sum().item() for values in inputs))
    q_values = model.critic(batch.observations, batch.actions)
    targets = batch.rewards + model.critic(batch.next_observations, model.actor(batch.next_observations)).detach()
    loss = (q_values - targets).square().mean()
    numbers = [q_values, *th.autograd.grad(loss, list(model.critic.parameters()))]
    loss = -model.critic(batch.observations, model.actor(batch.observations)).mean()
    numbers += th.autograd.grad(loss, list(model.actor.parameters()))
    assert max(values.abs().max().item() for values in numbers) <= bound


def test_nothing_is_copied_while_the_bounds_exclude_an_overflow():
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=4, batch_size=4, policy_kwargs={"net_arch": [4]}).learn(5)
    assert model._guard._remembered  # the first update, in which Adam creates its state, is remembered
    model.learn(20, reset_num_timesteps=False)
    assert not model._guard._remembered


def test_all_batches_of_a_call_are_looked_at_before_the_first_is_learned_from():
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=4, batch_size=4, policy_kwargs={"net_arch": [4]}).learn(9)
    model.train(8, 4)
    assert not model._guard._remembered
    model.train(201, 4)  # more steps than the bounds hold for
    assert model._guard._remembered
    before = [weight.clone() for weight in model.policy.parameters()]
    model.replay_buffer.rewards[3] = 1e20  # its square is more than float32 holds; some batch of eight has it
    with pytest.raises(NonFiniteError, match="The weights are those before"):
        model.train(8, 4)
    assert all(map(th.equal, model.policy.parameters(), before))


@pytest.mark.parametrize("why", ["weights", "rewards", "nan", "learning rate", "layer"])
def test_weights_are_remembered_where_the_bounds_exclude_nothing(why: str):
    kwargs = {"net_arch": [4], "activation_fn": th.nn.ELU if why == "layer" else th.nn.ReLU}
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=4, batch_size=4, policy_kwargs=kwargs).learn(20)
    assert model._guard._remembered == (why == "layer")
    if why == "weights":
        model.critic.qf0[0].weight.data[0, 0] = 1e19
        model._guard._bounds.left = 0  # as after 200 updates
    if why == "learning rate":
        model.lr_schedule = lambda _: 1e3  # weights of 1e3 would still do, 200 such steps would not
    if why in ("rewards", "nan"):
        model.replay_buffer.rewards[:] = 1e20 if why == "rewards" else np.nan
    before = [weight.clone() for weight in model.policy.parameters()]
    breaks = why in ("rewards", "nan")  # (1e20)^2 is more than float32 holds
    with pytest.raises(NonFiniteError, match="The weights are those before") if breaks else nullcontext():
        model.train(1, 4)
    assert model._guard._remembered
    if breaks:
        assert all(map(th.equal, model.policy.parameters(), before))


def test_adam_moves_no_weight_further_than_its_bound_and_nearly_as_far():
    """Gradients that grow by beta2 / beta1 are the worst, where Cauchy and Schwarz's inequality is an equality."""
    bound = bounds.adam_step(0.1, 0.9, 0.999)
    # r = 0.1 / sqrt(0.001) = 3.1623 and sqrt(1 - 0.81 / 0.999) = 0.43499, so 0.1 * 3.1623 / 0.43499 = 0.72697
    assert bound == pytest.approx(0.72697, rel=1e-4)
    weight = th.zeros(1, dtype=th.float64, requires_grad=True)
    optimizer = th.optim.Adam([weight], lr=0.1, betas=(0.9, 0.999))
    moves = []
    for update in range(300):
        before = weight.item()
        weight.grad = th.full_like(weight, (0.999 / 0.9) ** update)
        optimizer.step()
        moves.append(abs(weight.item() - before))
    # After 300 updates the bias correction has come to sqrt(1 - 0.999 ** 300) = 0.509.
    assert 0.5 * bound < max(moves) <= bound
    assert bounds.adam_step(0.1, 0.9, 0.5) == math.inf  # moments that forget at such rates have no bound
