"""Each fault in an environment made to have it, healthy environments without any, and nothing changed by looking.

Not here: the numbers that the other tests of the logger check (`test_logging.py`).
"""

import random
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation, TransformReward
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.diagnosis import diagnosis
from sb3_simple_ddpg.diagnosis.diagnosis import FAULTS, Finding
from sb3_simple_ddpg.diagnosis.q_bias import QBiasCallback, measure_q_bias
from tests.environments import Bandit, Chain

PAGE = (Path(__file__).parent.parent / "docs" / "diagnose.md").read_text("utf-8")
GAMMA = 0.99


def model_of(env: Any, **settings: Any) -> SimpleDDPG:
    small = {"buffer_size": 5_000, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}, "seed": 0}
    return SimpleDDPG("MlpPolicy", env, **{**small, **settings})


def faults_of(model: SimpleDDPG) -> list[str]:
    return [finding.fault for finding in model.diagnose()]


def the_finding(model: SimpleDDPG) -> Finding:
    (finding,) = model.diagnose()
    return finding


def the_finding_of(fault: str, model: SimpleDDPG) -> Finding:
    """Beside others, which the same mistake brings along: far observations saturate an actor."""
    (finding,) = (finding for finding in model.diagnose() if finding.fault == fault)
    return finding


def shifted(env: gym.Env[Any, Any], factor: float, shift: float = 0.0) -> gym.Env[Any, Any]:
    space = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    return TransformObservation(env, lambda observation: np.float32(factor) * observation + np.float32(shift), space)


def constant(network: nn.Sequential, value: float) -> None:
    """Let the last linear layer give this number, whatever comes in."""
    last = [layer for layer in network if isinstance(layer, nn.Linear)][-1]
    with th.no_grad():
        last.weight.zero_()
        last.bias.fill_(value)


# Silent where nothing is wrong.


@pytest.mark.parametrize(
    "env_id",
    [
        "Pendulum-v1", pytest.param("MountainCarContinuous-v0", marks=pytest.mark.long),
        pytest.param("LunarLanderContinuous-v3", marks=pytest.mark.long),
        pytest.param("InvertedPendulum-v5", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_healthy_environments_get_no_finding_while_an_agent_learns(env_id: str):
    model = SimpleDDPG("MlpPolicy", env_id, policy_kwargs={"net_arch": [64, 64]}, seed=0)
    assert model.diagnose() == []
    model.learn(800)
    assert model._n_updates == 700
    assert model.diagnose() == []


@pytest.mark.parametrize("ends", ["terminated", pytest.param("truncated", marks=pytest.mark.long)])
def test_a_trained_agent_gets_no_finding(ends: str):
    """Far enough for the critic to be judged: 3 timesteps to look ahead, by shares of 0.02, are 150 gradient steps."""
    model = model_of(gym.wrappers.TimeLimit(Chain(ends), 10), tau=0.02, gamma=0.9).learn(1_500)
    assert faults_of(model) == []


# Faults, one by one.


@pytest.mark.parametrize(
    ("noise", "value"), [(None, 0.0), (0.001, 0.001), (NormalActionNoise(np.zeros(1), np.zeros(1)), 0.0)]
)
def test_no_exploration_is_found(noise: Any, value: float):
    finding = the_finding(model_of(Bandit(), action_noise=noise))
    assert (finding.fault, finding.value, finding.cure) == ("no exploration", value, "action_noise=0.1")
    assert str(finding) == (
        f"no exploration: The action noise has a standard deviation of {value:g} (1.0 is half the action range). After "
        "the 100 random timesteps the agent sees only what its own actions lead to. Cure: action_noise=0.1"
    )


def test_noise_that_fades_explores_also_at_its_end():
    model = model_of(Bandit(), action_noise=LinearSchedule(0.2, 0.0, 1.0)).learn(120)
    assert model.action_noise.scale == pytest.approx(0, abs=0.01)
    assert faults_of(model) == []


def test_noise_that_drowns_every_action_is_found_and_cured():
    """A standard deviation of a tenth of the bound, 5, in the environment's unit: 5 times half the range here."""
    noise = NormalActionNoise(np.zeros(1), 5 * np.ones(1))
    finding = the_finding(model_of(Bandit(low=-50.0, high=50.0), action_noise=noise))
    assert (finding.fault, finding.value, finding.cure) == ("too much noise", 5.0, "action_noise=0.1")
    assert faults_of(model_of(Bandit(low=-50.0, high=50.0), action_noise=0.1)) == []
    assert faults_of(model_of(Bandit(), action_noise=1.0)) == []
    fading = model_of(Bandit(), action_noise=LinearSchedule(2.0, 0.0, 1.0))  # comes down to what a task may need
    assert faults_of(fading) == []


@pytest.mark.parametrize(("low", "high"), [(-50.0, 30.0), (295.0, 302.0), (-1e-6, 1e-6), (0.0, 1e9), (1e4, 1e4 + 10)])
def test_bounds_that_the_dtype_can_tell_apart_are_no_fault_wherever_they_lie(low: float, high: float):
    assert faults_of(model_of(Bandit(low=low, high=high))) == []


def test_wide_and_far_bounds_give_the_same_weights_to_the_last_bit():
    """So the width of the range is nothing to be cured: the networks see [-1, 1] in any case."""

    class Stretched(gym.ActionWrapper[Any, Any, Any]):
        """[-1, 3] stretched to [-1024, 3072]: by a power of 2, so that nothing is rounded."""

        def __init__(self) -> None:
            super().__init__(Bandit())
            self.action_space = spaces.Box(-1024.0, 3072.0, (1,), np.float32)

        def action(self, action: Any) -> Any:
            return action / 1024

    one, other = (model_of(env).learn(300).policy.state_dict() for env in (Bandit(), Stretched()))
    assert all(th.equal(weight, other[name]) for name, weight in one.items())


def test_bounds_so_far_out_that_few_numbers_lie_between_are_found_and_cured():
    env = Bandit(low=2.0**24, high=2.0**24 + 8)
    finding = the_finding(model_of(env))
    # From 2^24 on, every second whole number is a float32: 8 / 2 = 4 from one bound to the other.
    assert (finding.fault, finding.value, finding.unit) == ("action bounds", 4.0, "different actions")
    names = {"gymnasium": gym, "np": np, "env": env}
    exec(finding.cure.partition(", where")[0], names)
    model = model_of(names["env"])
    assert faults_of(model) == []
    actions = model.policy.unscale_action(np.linspace(-1, 1, 101)[:, None])
    assert len(np.unique(actions)) == 101
    assert model.learn(120)._n_updates == 20


def cured(finding: Finding, env: Any, **settings: Any) -> SimpleDDPG:
    """The same agent in what the cure makes of its environment."""
    names = {each.__name__: each for each in (VecNormalize, VecTransposeImage, DummyVecEnv)} | {"env": env}
    exec(finding.cure.partition(", or --")[0], names)
    is_dict = isinstance(names["env"].observation_space, spaces.Dict)
    small = {"buffer_size": 5_000, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}, "seed": 0, **settings}
    return SimpleDDPG("MultiInputPolicy" if is_dict else "MlpPolicy", names["env"], **small)


class Numbers(gym.Env[Any, Any]):
    """Random observations: each dimension has a mean and a standard deviation of its own. The reward is `size`."""

    def __init__(self, means: Any, deviations: Any, size: float = 1.0) -> None:
        self.means, self.deviations, self.size = np.array(means), np.array(deviations), size
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (len(means),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def observe(self) -> Any:
        return self.np_random.normal(self.means, self.deviations).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), self.size * float(1 - action[0] ** 2), False, self.steps == 10, {}


@pytest.mark.parametrize(("mean", "deviation", "value"), [(5_000.0, 0.0, 5_000.0), (0.0, 1e-3, 1e-3)])
def test_observations_far_from_one_are_found(mean: float, deviation: float, value: float):
    finding = the_finding_of("observation scale", model_of(Numbers([mean], [deviation])).learn(100))
    assert finding.value == pytest.approx(value, rel=0.3)  # of 100 draws
    line = "env = VecNormalize(DummyVecEnv([lambda: env]), norm_reward=False)"
    assert finding.cure == f"{line}, or --set normalize_observations=True for simple-ddpg train."
    assert faults_of(cured(finding, Numbers([mean], [deviation])).learn(100)) == []


@pytest.mark.parametrize("place", [0, 3, 39])
@pytest.mark.parametrize(
    ("mean", "deviation", "said"),
    [
        (0.0, 200.0, "a root mean square above 30, up to "), (300.0, 1.0, "a root mean square above 30, up to 300"),
        (0.0, 3e-6, "a standard deviation below 0.0001, down to "),
        (1.0, 3e-5, "a standard deviation below 0.0001, down to "),
    ],
)  # fmt: skip
def test_every_dimension_of_the_observations_is_looked_at(mean: float, deviation: float, said: str, place: int):
    means, deviations = np.zeros(40), np.ones(40)
    means[place], deviations[place] = mean, deviation
    finding = the_finding_of("observation scale", model_of(Numbers(means, deviations), learning_starts=300).learn(300))
    assert f"1 of 40 dimensions of the observations ({place}) have {said}" in finding.measured
    after = cured(finding, Numbers(means, deviations), learning_starts=300).learn(300)
    assert faults_of(after) == []


def test_many_dimensions_are_counted_and_five_are_named():
    means = np.where(np.arange(12) % 2, 1e4, 0)
    finding = the_finding_of("observation scale", model_of(Numbers(means, np.ones(12)), learning_starts=200).learn(200))
    assert "6 of 12 dimensions of the observations (1, 3, 5, 7, 9, ...) have" in finding.measured


@pytest.mark.parametrize("constant", [0.0, 1.0, 29.0, 0.1, 1e-3])
def test_dimensions_that_never_change_are_no_fault(constant: float):
    """Padding, a goal that is the same in every episode, and what is the same but for rounding."""
    env = Numbers([constant, 0.0], [constant * 1e-8, 1.0])
    assert faults_of(model_of(env, learning_starts=200).learn(200)) == []


class Keyed(Numbers):
    """The numbers under a key, beside an image and a class that VecNormalize does not take."""

    def __init__(self, means: Any, deviations: Any) -> None:
        super().__init__(means, deviations)
        image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self.observation_space = spaces.Dict({
            "class": spaces.Discrete(3), "image": image, "numbers": self.observation_space,
        })  # fmt: skip

    def observe(self) -> Any:
        return {"class": 2, "image": np.full((36, 36, 3), 255, np.uint8), "numbers": super().observe()}


def test_the_cure_fits_observations_with_images_and_classes():
    settings = {"policy_kwargs": {"net_arch": [16], "features_extractor_kwargs": {"cnn_output_dim": 8}}}
    settings |= {"buffer_size": 200, "learning_starts": 100}
    model = SimpleDDPG("MultiInputPolicy", Keyed([0, 500], [1, 1]), batch_size=32, seed=0, **settings).learn(100)
    finding = the_finding_of("observation scale", model)
    assert "1 of 2 dimensions of the observations ('numbers' 1) have" in finding.measured
    after = cured(finding, Keyed([0, 500], [1, 1]), **settings).learn(110)
    assert (after._n_updates, faults_of(after)) == (10, [])


def test_one_large_key_of_a_dict_is_found():
    class Two(Bandit):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict(
                {"far": spaces.Box(-1e4, 1e4, (2,), np.float32), "near": spaces.Box(-1, 1, (1,), np.float32)}
            )

        def _both(self) -> dict[str, Any]:
            return {"far": np.array([300, 400], np.float32), "near": np.ones(1, np.float32)}

        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)
            return self._both(), {}

        def step(self, action: Any) -> Any:
            return self._both(), *super().step(action)[1:]

    model = SimpleDDPG("MultiInputPolicy", Two(), buffer_size=100, batch_size=8, seed=0).learn(50)
    assert the_finding_of("observation scale", model).value == 400  # the largest dimension


def test_observations_are_judged_as_the_networks_see_them():
    """A learned normaliser cures what is found without it."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1")]))
    model = model_of(env, learning_starts=400).learn(400)
    assert faults_of(model) == []
    model._vec_normalize_env = None
    assert "observation scale" in faults_of(model)


def test_an_actor_that_is_stuck_at_a_bound_is_found():
    """The best action lies far beyond the bound: from every observation the way is up, until the tanh is flat."""
    model = model_of(Bandit(best=3.0, low=-1.0, high=1.0), learning_rate=1e-2).learn(700)
    finding = the_finding_of("saturation", model)
    assert (finding.value, finding.unit) == (1.0, "of the states")
    assert "1 of 1 dimensions" in finding.measured


def test_an_actor_that_uses_both_bounds_is_not_stuck():
    """Bang-bang control is a policy like others: Pendulum's actor here pushes fully, to the left or to the right."""
    model = model_of("Pendulum-v1", learning_starts=300).learn(300)
    with th.no_grad():
        for layer in (layer for layer in model.actor.mu if isinstance(layer, nn.Linear)):
            layer.weight.mul_(100)
    states = model.replay_buffer.observations[:300, 0]
    actions = model.actor(th.as_tensor(states)).detach().numpy()
    assert (np.abs(actions) > 0.99).mean() > 0.95
    assert 0.02 < (actions > 0).mean() < 0.98
    assert faults_of(model) == []


def test_a_critic_that_promises_too_much_is_found():
    model = model_of(gym.wrappers.TimeLimit(Chain(), 10), tau=0.02).learn(900)
    assert faults_of(model) == []
    with th.no_grad():
        model.critic.qf0[-1].bias += 20
    finding = the_finding(model)
    # Each episode brings 1 + 0.99 + 0.9801; Q(s0) is that, as learned, and the 20 that were added.
    assert (finding.fault, finding.value) == ("Q bias", pytest.approx(20, abs=1))
    assert "brought a discounted return of 2.97." in finding.measured

    model._n_updates = 149  # 3 timesteps / tau: with fewer gradient steps the critic could not know better
    assert faults_of(model) == []
    model._n_updates = 800
    with th.no_grad():
        model.critic.qf0[-1].bias += 1_000
    finding = the_finding(model)
    # Rewards of 1 cannot sum to more than 1 / (1 - 0.99).
    assert "cannot give a discounted return above 100" in finding.measured
    assert finding.value == pytest.approx(1_022, abs=5)


@pytest.mark.parametrize(
    ("factor", "cure"),
    [(1e4, "multiply the rewards by 0.0001,"), (1e-6, "multiply the rewards by 1e+06,"), (0.0, "OrnsteinUhlenbeck(")],
)
def test_rewards_far_from_one_are_found(factor: float, cure: str):
    model = model_of(TransformReward(Chain(), lambda reward: factor * reward), learning_starts=600).learn(600)
    finding = the_finding(model)
    assert (finding.fault, finding.value) == ("reward scale", pytest.approx(factor))
    assert cure in finding.cure


def test_few_rewards_of_zero_are_no_finding():
    model = model_of(TransformReward(Chain(), lambda _: 0.0)).learn(150)
    assert faults_of(model) == []


def test_rewards_are_judged_as_the_critic_sees_them():
    env = VecNormalize(DummyVecEnv([lambda: TransformReward(Chain(), lambda reward: 1e4 * reward)]), norm_obs=False)
    model = model_of(env, learning_starts=100).learn(100)
    assert model.replay_buffer.rewards.max() == 1e4
    assert faults_of(model) == []


@pytest.mark.parametrize(("starts", "expected"), [(7, ["learning starts"]), (8, []), (100, [])])
def test_learning_that_starts_before_a_batch_can_be_filled_is_found(starts: int, expected: list[str]):
    """From less than a quarter of the batch of 32: the defaults, 100 random timesteps for batches of 256, pass."""
    assert faults_of(model_of(Bandit(), learning_starts=starts)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.125), ({"gradient_steps": 2}, 0.25), ({"train_freq": 2, "gradient_steps": 4}, 0.25),
        ({"gradient_steps": -1}, None), ({"gradient_steps": 4}, None),
    ],
)  # fmt: skip
def test_few_updates_for_many_environments_are_found(settings: dict[str, Any], expected: float | None):
    model = model_of(make_vec_env(Bandit, 8), **settings)
    findings = [(finding.fault, finding.value) for finding in model.diagnose()]
    assert findings == ([] if expected is None else [("updates per step", expected)])


def test_updates_after_each_episode_are_not_judged_by_its_unknown_length():
    assert faults_of(model_of(Bandit(), train_freq=(1, "episode"))) == []


def test_a_buffer_larger_than_half_of_the_memory_is_found(monkeypatch: pytest.MonkeyPatch):
    model = model_of(Bandit(), buffer_size=1_000)
    # float32: observation, next observation, action, reward, done, timeout, 4 bytes each, 1,000 times.
    monkeypatch.setattr(diagnosis, "_memory_bytes", lambda: 47_999)
    finding = the_finding(model)
    assert (finding.fault, finding.value, finding.unit) == ("buffer memory", pytest.approx(24e-6), "GB")
    assert "buffer_size=999" in finding.cure
    monkeypatch.setattr(diagnosis, "_memory_bytes", lambda: 48_000)
    assert faults_of(model) == []
    # Of training, where the model is loaded with a small one.
    assert [found.value for found in diagnosis.diagnose(model, buffer_size=10_000)] == [pytest.approx(240e-6)]
    monkeypatch.setattr(diagnosis, "_memory_bytes", lambda: None)  # a system that does not say
    assert faults_of(model) == []


def test_threads_that_wait_for_each_other_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 2)
    small, large = model_of(Bandit()), model_of(Bandit(), policy_kwargs={"net_arch": [400]})
    found = []
    for threads in (1, 2, 3):
        th.set_num_threads(threads)
        try:
            found.append([[finding.cure for finding in model.diagnose()] for model in (small, large)])
        finally:
            th.set_num_threads(1)
    one, two = ["torch.set_num_threads(1)"], ["torch.set_num_threads(2)"]
    assert found == [[[], []], [one, []], [one, two]]


# What to cure first.


class Portfolio(gym.Env[Any, Any]):
    """Prices, cash and shares as they are; the reward is what the portfolio gained, in the currency."""

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit
        self.observation_space = spaces.Box(-np.inf, np.inf, (7,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def observe(self) -> Any:
        return np.concatenate([[self.cash], self.prices, self.shares]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.cash, self.prices, self.shares, self.steps = 1e6, self.np_random.uniform(20, 200, 3), np.zeros(3), 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        before = self.cash + self.prices @ self.shares
        bought = np.maximum(np.round(100 * action), -self.shares)
        self.shares, self.cash = self.shares + bought, self.cash - bought @ self.prices
        self.prices = self.prices * np.exp(self.np_random.normal(0.0, 0.05, 3))
        self.steps += 1
        gain = float(self.cash + self.prices @ self.shares - before)
        return self.observe(), self.unit * gain, False, self.steps == 50, {}


SATURATION_CURE = {
    "policy_kwargs": {"net_arch": [16], "last_layer_init": 3e-3}, "learning_rate": 3e-4, "critic_learning_rate": 1e-3,
}  # fmt: skip


def test_what_others_follow_from_is_to_be_cured_first():
    findings = model_of(Portfolio()).learn(400).diagnose()
    assert [finding.fault for finding in findings] == ["observation scale", "reward scale", "saturation"]
    assert [finding.after for finding in findings] == [(), (), ("observation scale", "reward scale")]
    assert str(findings[2]).endswith(" Cure first: observation scale and reward scale.")
    assert diagnosis.cure_first(findings) == (
        "Cure first: observation scale and reward scale. Then look again: saturation may well be gone."
    )
    # The cure of saturation alone removes none of the three; that of the first one all.
    assert "last_layer_init=3e-3" in findings[2].cure
    assert faults_of(model_of(Portfolio(), **SATURATION_CURE).learn(400)) == [
        "observation scale", "reward scale", "saturation",
    ]  # fmt: skip
    assert findings[0].cure.startswith("env = VecNormalize(DummyVecEnv([lambda: env])), or --normalize")
    assert faults_of(cured(findings[0], Portfolio()).learn(400)) == []


def test_rewards_of_a_good_size_are_left_as_they_are():
    finding = the_finding_of("observation scale", model_of(Portfolio(1e-3)).learn(400))
    assert "norm_reward=False" in finding.cure
    assert "observation scale" not in faults_of(cured(finding, Portfolio(1e-3)).learn(400))


def test_saturation_by_itself_is_cured_by_what_its_finding_says():
    env = Numbers([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    finding = the_finding(model_of(env, learning_rate=0.3).learn(500))
    assert (finding.fault, finding.after) == ("saturation", ())
    for setting in ("last_layer_init=3e-3", "learning_rate=3e-4", "critic_learning_rate=1e-3"):
        assert setting in finding.cure
    assert faults_of(model_of(env, **SATURATION_CURE).learn(500)) == []


def test_faults_that_do_not_follow_from_each_other_are_cured_from_the_top():
    findings = model_of(Bandit(), action_noise=None, learning_starts=1).diagnose()
    assert [finding.fault for finding in findings] == ["no exploration", "learning starts"]
    assert diagnosis.cure_first(findings) == "Cure them from the top down, no exploration first."
    assert [diagnosis.cure_first(findings[:1]), diagnosis.cure_first([])] == ["", ""]
    order = list(FAULTS)
    for fault, causes in diagnosis.CAUSES.items():
        assert all(order.index(cause) < order.index(fault) for cause in causes)


def test_rewards_by_the_given_factor_are_no_fault_any_more():
    finding = the_finding(model_of(Numbers([0.0], [1.0], size=3e4), learning_starts=200).learn(200))
    factor = float(re.search(r"multiply the rewards by ([^,]+),", finding.cure)[1])
    env = TransformReward(Numbers([0.0], [1.0], size=3e4), lambda reward: factor * reward)
    assert faults_of(model_of(env, learning_starts=200).learn(200)) == []


# Q bias, worked out by hand.


def with_constant_critic(env: Any, value: float, timesteps: int, **settings: Any) -> SimpleDDPG:
    """The critic says the same of everything, so the bias is what the environment's rewards make it."""
    model = model_of(env, learning_starts=10_000, gamma=GAMMA, **settings).learn(timesteps)
    constant(model.critic.qf0, value)
    return model


@pytest.mark.parametrize("memory", [False, True])
def test_q_bias_is_the_promise_minus_what_came(memory: bool):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = with_constant_critic(Chain(), 7.0, 11, **(kwargs if memory else {}))
    measured = measure_q_bias(model)
    # Three whole episodes of three timesteps, and two timesteps of a fourth.
    assert (measured.episodes, measured.length, measured.q_start) == (3, 3, pytest.approx(7))
    assert measured.discounted_return == pytest.approx(1 + GAMMA + GAMMA**2)
    assert measured.typical == pytest.approx(1 + GAMMA + GAMMA**2)
    assert measured.bias == pytest.approx(7 - 1 - GAMMA - GAMMA**2)


def test_where_a_time_limit_cut_the_critic_s_own_value_follows():
    model = with_constant_critic(Chain("truncated"), 100.0, 9)
    # 1 / (1 - 0.99) = 100 is the truth of a task that goes on for ever.
    assert measure_q_bias(model).bias == pytest.approx(0, abs=1e-4)


def test_a_full_buffer_gives_its_newest_episodes_only():
    class Growing(Bandit):
        """The n-th episode has n timesteps, and rewards of n."""

        episode, timestep = 0, 0

        def reset(self, **kwargs: Any) -> Any:
            self.episode, self.timestep = self.episode + 1, 0
            return super().reset(**kwargs)

        def step(self, action: Any) -> Any:
            self.timestep += 1
            observation, *_ = super().step(action)
            return observation, float(self.episode), self.timestep == self.episode, False, {}

    # Episodes 1 to 5 take 15 timesteps; of them the buffer has the newest 10: the last of 3, those of 4, those of 5.
    model = with_constant_critic(Growing(), 0.0, 15, buffer_size=10)
    four, five = (n * sum(GAMMA**i for i in range(n)) for n in (4, 5))
    measured = measure_q_bias(model)
    assert (measured.episodes, measured.discounted_return) == (2, pytest.approx((four + five) / 2))
    assert measure_q_bias(model, episodes=1).discounted_return == pytest.approx(five)


def test_an_episode_that_a_second_call_of_learn_broke_off_is_left_out():
    model = with_constant_critic(Chain(), 7.0, 5)
    model.learn(3)  # begins anew: timesteps 4 and 5 had no end
    assert (measure_q_bias(model).episodes, measure_q_bias(model).length) == (2, 3)


def test_environments_side_by_side_have_episodes_of_their_own():
    model = with_constant_critic(make_vec_env(Chain, 2), 7.0, 14)  # 7 timesteps each
    measured = measure_q_bias(model)
    assert (measured.episodes, measured.bias) == (4, pytest.approx(7 - 1 - GAMMA - GAMMA**2))


def test_without_a_whole_episode_there_is_no_bias():
    assert measure_q_bias(model_of(Chain())) is None
    assert measure_q_bias(with_constant_critic(Chain(), 7.0, 2)) is None


def test_q_bias_is_in_the_unit_of_the_normalised_reward():
    env = VecNormalize(DummyVecEnv([Chain]), norm_obs=False)
    model = with_constant_critic(env, 0.0, 9)
    scale = np.sqrt(env.ret_rms.var + env.epsilon)
    assert measure_q_bias(model).discounted_return == pytest.approx((1 + GAMMA + GAMMA**2) / scale)


def test_callback_logs_the_bias_at_the_given_distance():
    class Spy(BaseCallback):
        def _on_step(self) -> bool:
            bias = self.logger.name_to_value.get("rollout/q_bias")
            if bias is not None:
                seen.append((self.num_timesteps, bias, self.logger.name_to_value["rollout/q_start"]))
                self.logger.name_to_value.clear()
            return True

    seen: list[tuple[int, float, float]] = []
    model = model_of(Chain(), learning_starts=10_000, gamma=GAMMA)
    constant(model.critic.qf0, 7.0)
    model.learn(5, [QBiasCallback(every=9), Spy()], log_interval=1_000)
    model.learn(16, [QBiasCallback(every=9), Spy()], log_interval=1_000, reset_num_timesteps=False)  # goes on
    # Logged at the end of timesteps 9 and 18, so first seen in the next one.
    assert [timestep for timestep, _, _ in seen] == [10, 19]
    assert [bias for _, bias, _ in seen] == pytest.approx([7 - 1 - GAMMA - GAMMA**2] * 2)
    assert [q_start for _, _, q_start in seen] == pytest.approx([7, 7])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        QBiasCallback(every=0)


# Looking changes nothing.


class BatchNorm(BaseFeaturesExtractor):
    """A layer whose statistics move whenever it is used in training mode."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 3)
        self.layer = nn.BatchNorm1d(3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


def test_learning_goes_on_to_the_same_bits_after_a_diagnosis():
    def learned(look: bool) -> tuple[dict[str, th.Tensor], VecNormalize]:
        env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0), gamma=0.98)
        kwargs = {"net_arch": [16], "features_extractor_class": BatchNorm}
        model = model_of(env, policy_kwargs=kwargs, gradient_steps=-1, learning_starts=50)
        for _ in range(3):
            if look:
                before = random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()
                modes = [module.training for module in model.policy.modules()]
                model.diagnose()
                assert before == (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist())
                assert modes == [module.training for module in model.policy.modules()]
            model.learn(150, reset_num_timesteps=False)
        return model.policy.state_dict(), env

    (one, env), (two, other) = learned(True), learned(False)
    assert all(th.equal(weight, two[name]) for name, weight in one.items())
    assert (env.obs_rms.count, env.ret_rms.mean) == (other.obs_rms.count, other.ret_rms.mean)


# The command.

TINY = ["--set", "policy_kwargs.net_arch=[8]", "batch_size=32"]


def test_command_finds_nothing_in_a_healthy_environment(capsys: pytest.CaptureFixture[str]):
    assert main(["diagnose", "Pendulum-v1", *TINY]) == 0
    assert capsys.readouterr().out == "Nothing wrong was found with Pendulum-v1 in 2200 timesteps.\n"


def test_command_prints_faults_of_an_environment_with_the_cure(capsys: pytest.CaptureFixture[str]):
    scaled = "sb3_simple_ddpg.scaled_pendulum:SimpleDDPG/PendulumScaled-v1"
    assert main(["diagnose", scaled, *TINY, "action_noise=None", "--n-envs", "4"]) == 1
    printed = capsys.readouterr().out
    for name in ("no exploration", "observation scale", "updates per step"):
        assert name in printed
    assert printed.endswith("Cure them from the top down, observation scale first.\n")
    assert main(["diagnose", scaled, *TINY, "--normalize"]) == 0
    assert "normalize_observations=True" in printed
    capsys.readouterr()
    assert main(["diagnose", scaled, *TINY, "normalize_observations=True"]) == 0


def test_command_diagnoses_a_run_with_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "run")
    options = ["--timesteps", "1700", "--n-envs", "4", "--no-progress", "--eval-episodes", "0", "--out", out]
    assert main(["train", "--env", "Pendulum-v1", *options, *TINY, "action_noise=None"]) == 0
    capsys.readouterr()
    assert main(["diagnose", out]) == 1
    printed = capsys.readouterr().out
    assert "no exploration" in printed
    assert "1 gradient steps for every 4 timesteps" in printed
    assert "Logged at the end of training: rollout/q_bias" in printed
    assert main(["diagnose", out, "--n-envs", "2"]) == 2
    assert "A run has its own settings: leave out --n-envs." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["Nope-v1"], "'Nope-v1' is neither the folder of a run nor an environment."),
        (["CartPole-v1"], "must be a Box"),
        (["Pendulum-v1", "--set", "gama=1"], "did you mean gamma"),
        (["Pendulum-v1", "--preset", "robst"], "no preset 'robst'"),
        (["."], "holds no readable config.json"),
    ],
)
def test_command_refuses_what_it_cannot_diagnose(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["diagnose", *args]) == 2
    assert message in capsys.readouterr().err


# The page.


def test_page_has_each_fault_with_its_limit():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(FAULTS)
    limits = {
        "no exploration": [diagnosis.SMALLEST_NOISE], "action bounds": [diagnosis.FEWEST_ACTIONS],
        "too much noise": [diagnosis.LARGEST_NOISE],
        "observation scale": [diagnosis.SMALLEST_OBSERVATION, diagnosis.LARGEST_OBSERVATION, diagnosis.SMALLEST_CHANGE],
        "saturation": [diagnosis.BOUND, 100 * diagnosis.STUCK_SHARE], "Q bias": [diagnosis.YOUNG],
        "reward scale": [diagnosis.SMALLEST_REWARD, diagnosis.LARGEST_REWARD],
        "learning starts": [diagnosis.REPEATED], "updates per step": [diagnosis.FEWEST_UPDATES],
        "buffer memory": [100 * diagnosis.BUFFER_SHARE], "threads": [diagnosis.SMALL_LAYER],
    }  # fmt: skip
    for row in rows[2:]:
        for limit in limits[row.split("|")[1].strip()]:
            assert f" {limit:g}" in row, (limit, row)


def test_python_on_the_page_runs_and_finds_the_missing_noise(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block.replace("2_000", "300").replace("every=500", "every=100"), names)
    assert capsys.readouterr().out.startswith("no exploration 0.0 half the action range\nno exploration: The action")
    assert names["model"].num_timesteps == 300
