"""Conversion between SB3's DDPG and SimpleDDPG: `from_sb3`, `to_sb3`, and replay buffers that SB3 has saved.

Not here: whether both train alike from the start (`test_update.py`). Expected values are those of SB3's DDPG.
"""

import io
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_simple_ddpg import DDPGPolicy, MultiInputPolicy, SimpleDDPG


class Swing(gym.Wrapper):
    """Pendulum in episodes of 17 timesteps, seen as numbers, as a Dict or as an image of 36 x 36 pixels."""

    def __init__(self, view: str = "box") -> None:
        super().__init__(gym.make("Pendulum-v1", max_episode_steps=17))
        self.view = view
        box = self.env.observation_space
        if view == "dict":
            parts = {"direction": spaces.Box(-1, 1, (2,)), "speed": spaces.Box(-8, 8, (1,))}
            self.observation_space = spaces.Dict(parts)
        elif view == "image":
            self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
        else:
            self.observation_space = box

    def _seen(self, observation: Any) -> Any:
        if self.view == "dict":
            return {"direction": observation[:2], "speed": observation[2:]}
        if self.view == "image":
            return np.resize((observation * 15 + 120).astype(np.uint8), (1, 36, 36))
        return observation

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return self._seen(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return self._seen(observation), *rest


class BatchNorm(BaseFeaturesExtractor):
    """Running statistics in front of each network; its constructor draws from every global random stream."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, observation_space.shape[0])
        self.norm = nn.BatchNorm1d(observation_space.shape[0])
        nn.init.constant_(self.norm.weight, random.random() + np.random.random() + float(th.rand(1)))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(observations)


class FilledBuffer(ReplayBuffer):
    """A user's buffer whose unused rows are not zero."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rewards[:] = -1.0


@dataclass
class Case:
    """One way to train: the policy's name, how to make the environment, settings beside the common ones."""

    policy: str = "MlpPolicy"
    make_env: Callable[[], gym.Env] = Swing
    n_envs: int = 1
    normalize: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    policy_kwargs: dict[str, Any] = field(default_factory=dict)

    def env(self) -> VecEnv:
        env = DummyVecEnv([lambda: Monitor(self.make_env())] * self.n_envs)
        return VecNormalize(env) if self.normalize else env

    def model(self, algorithm: Callable[..., Any], **settings: Any) -> Any:
        common = {"learning_starts": 20, "batch_size": 8, "buffer_size": 500, "seed": 3, "device": "cpu"}
        noise = NormalActionNoise(np.zeros(1), np.full(1, 0.2)) if self.make_env is Swing else None
        return algorithm(
            self.policy,
            self.env(),
            policy_kwargs={"net_arch": [12], **deepcopy(self.policy_kwargs)},
            **{**common, "action_noise": noise, **deepcopy(self.settings), **settings},
        )


CNN = {"features_extractor_kwargs": {"features_dim": 8}, "share_features_extractor": True}
CASES = {
    "plain": Case(),
    "linear learning rate": Case(settings={"learning_rate": LinearSchedule(1e-2, 1e-3, 1.0)}),
    "buffer that is full": Case(settings={"buffer_size": 40}),
    "memory-efficient buffer": Case(
        settings={
            "optimize_memory_usage": True,
            "buffer_size": 50,
            "replay_buffer_kwargs": {"handle_timeout_termination": False},
        }
    ),
    "two environments": Case(n_envs=2),
    "OU noise in two environments": Case(
        n_envs=2, settings={"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.3))}
    ),
    "n-step": Case(n_envs=2, settings={"n_steps": 3}),
    "VecNormalize": Case(n_envs=2, normalize=True),
    "shared CNN": Case("CnnPolicy", lambda: Swing("image"), policy_kwargs=CNN),
    "shared extractor, Dict": Case(
        "MultiInputPolicy", lambda: Swing("dict"), policy_kwargs={"share_features_extractor": True}
    ),
    "batch norm": Case(policy_kwargs={"features_extractor_class": BatchNorm}),
    "AdamW": Case(policy_kwargs={"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}),
    "SGD with momentum": Case(policy_kwargs={"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}),
    "Dict": Case("MultiInputPolicy", lambda: Swing("dict"), policy_kwargs={"activation_fn": nn.Tanh}),
    "HER": Case(
        "MultiInputPolicy",
        lambda: BitFlippingEnv(n_bits=3, continuous=True),
        n_envs=2,
        settings={"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}},
    ),
}
SLOW = {"shared CNN": pytest.mark.long}  # a third of all cases together
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=SLOW.get(name, ())) for name, case in CASES.items()]
)
PLAIN = CASES["plain"]


def go_on(model: Any) -> Any:
    n_updates = model._n_updates
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates > n_updates
    return model


def largest_difference(first: OffPolicyAlgorithm, second: OffPolicyAlgorithm) -> float:
    """Over all weights and running statistics of the four networks."""
    ours, theirs = first.policy.state_dict(), second.policy.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def optimizer_tensors(model: Any) -> list[th.Tensor]:
    states = [optimizer.state_dict()["state"] for optimizer in (model.actor.optimizer, model.critic.optimizer)]
    found = [value for state in states for moments in state.values() for value in moments.values()]
    return [value.clone() for value in found if isinstance(value, th.Tensor)]


def random_streams(model: Any) -> list[Any]:
    """Everything that a draw or a seed would move."""
    action_spaces = [model.action_space, *model.env.get_attr("action_space")]
    return [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2:],
        th.get_rng_state().tolist(),
        [generator.bit_generator.state for generator in model.env.get_attr("np_random")],
        [space.np_random.bit_generator.state for space in action_spaces],
        list(model.env.unwrapped._seeds),
    ]


# What training without conversion gives. SB3's Adam and the fused one round differently: at most 1e-6 after 30 steps.


@every_case
def test_sb3_model_learns_on_as_without_conversion(case: Case) -> None:
    uninterrupted = go_on(case.model(DDPG).learn(48))
    converted = go_on(SimpleDDPG.from_sb3(case.model(DDPG).learn(48)))
    assert (converted.num_timesteps, converted._n_updates, converted._episode_num) == (
        uninterrupted.num_timesteps,
        uninterrupted._n_updates,
        uninterrupted._episode_num,
    )
    assert largest_difference(converted, uninterrupted) < 1e-6


@every_case
def test_our_model_learns_on_in_sb3_as_without_conversion(case: Case) -> None:
    uninterrupted = go_on(case.model(SimpleDDPG).learn(48))
    converted = go_on(case.model(SimpleDDPG).learn(48).to_sb3())
    assert type(converted) is DDPG
    assert largest_difference(converted, uninterrupted) < 1e-6


@every_case
def test_there_and_back_sb3_learns_on_to_the_same_bits(case: Case) -> None:
    uninterrupted = go_on(case.model(DDPG).learn(48))
    returned = go_on(SimpleDDPG.from_sb3(case.model(DDPG).learn(48)).to_sb3())
    assert largest_difference(returned, uninterrupted) == 0


@every_case
def test_train_on_the_same_buffer_gives_the_same_weights(case: Case) -> None:
    theirs = case.model(DDPG).learn(48)
    ours = SimpleDDPG.from_sb3(theirs)
    for model in (theirs, ours):
        np.random.seed(5)
        model.train(10, batch_size=16)
    assert ours._n_updates == theirs._n_updates
    assert largest_difference(ours, theirs) < 1e-6


# What is taken over.


@every_case
def test_weights_moments_and_actions_are_equal_to_the_last_bit(case: Case) -> None:
    theirs = case.model(DDPG).learn(48)
    ours = SimpleDDPG.from_sb3(theirs)
    observations = [theirs._last_obs] * 2  # of the normaliser, where there is one
    if not isinstance(theirs.observation_space, spaces.Dict):
        observations[1] = np.stack([theirs.observation_space.sample() for _ in range(20)])
    for converted in (ours, ours.to_sb3()):
        assert largest_difference(converted, theirs) == 0
        for observation in observations:
            np.testing.assert_array_equal(converted.predict(observation)[0], theirs.predict(observation)[0])
        moments, expected = optimizer_tensors(converted), optimizer_tensors(theirs)
        assert len(expected) > 0
        assert all(th.equal(ours, theirs) for ours, theirs in zip(moments, expected, strict=True))


@every_case
def test_global_random_streams_stay_as_they_were(case: Case) -> None:
    theirs = case.model(DDPG).learn(25)
    before = random_streams(theirs)
    ours = SimpleDDPG.from_sb3(theirs)
    assert random_streams(theirs) == before
    ours.to_sb3()
    assert random_streams(theirs) == before
    zipped = io.BytesIO()
    theirs.save(zipped)
    SimpleDDPG.from_sb3(zipped, theirs.env)  # with the seed 3, which SB3's load would apply to all of them
    assert random_streams(theirs) == before


def test_settings_and_counters_come_along_in_both_directions(tmp_path: Path) -> None:
    case = Case(n_envs=2, normalize=True)
    theirs = case.model(
        DDPG,
        learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        tau=0.01,
        gamma=0.9,
        train_freq=(3, "step"),
        gradient_steps=-1,
        action_noise=None,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        tensorboard_log=str(tmp_path),
        verbose=2,
    )
    theirs._stats_window_size = 7
    theirs.set_logger(configure(str(tmp_path), ["csv"]))
    theirs.learn(48)
    ours = SimpleDDPG.from_sb3(theirs)
    different = {"policy", "policy_class", "actor", "actor_target", "critic", "critic_target", "policy_kwargs"}
    different |= {"replay_buffer"}  # copied: compared in its own test
    different |= {name for name in vars(theirs) if name.startswith(("target_", "policy_delay"))}
    different |= {name for name in vars(theirs) if "batch_norm_stats" in name}
    for converted in (ours, ours.to_sb3()):
        for name in vars(theirs).keys() - different:
            np.testing.assert_equal(getattr(converted, name), getattr(theirs, name), err_msg=name)
    assert ours.policy_kwargs == {"net_arch": [12]}
    assert vars(ours.to_sb3()).keys() == vars(theirs).keys()
    assert ours.to_sb3().policy_kwargs == theirs.policy_kwargs
    assert (ours.num_timesteps, ours._n_updates, ours.seed) == (48, theirs._n_updates, 3)
    assert ours.logger is theirs.logger
    theirs.logger.close()
    assert ours.get_vec_normalize_env() is theirs.get_vec_normalize_env() is ours.env


def test_every_constructor_argument_of_sb3_survives_the_round_trip() -> None:
    theirs = CASES["n-step"].model(DDPG)
    ours = SimpleDDPG.from_sb3(theirs)
    # What SB3 wrote in by itself is left out, so that our model can be saved and loaded without SB3's warning.
    assert (ours.n_steps, ours.replay_buffer_class, ours.replay_buffer_kwargs) == (3, None, {})
    returned = ours.to_sb3()
    assert (returned.n_steps, returned.replay_buffer_class) == (3, NStepReplayBuffer)
    assert returned.replay_buffer_kwargs == theirs.replay_buffer_kwargs == {"n_steps": 3, "gamma": 0.99}


def test_changed_gamma_reaches_the_n_step_buffer_of_sb3() -> None:
    ours = CASES["n-step"].model(SimpleDDPG)
    ours.gamma = 0.5
    returned = ours.to_sb3()
    assert (returned.gamma, returned.replay_buffer.gamma, ours.replay_buffer.gamma) == (0.5, 0.5, 0.99)


def test_changed_learning_rate_schedule_comes_along() -> None:
    theirs = PLAIN.model(DDPG)
    theirs.lr_schedule = FloatSchedule(0.25)
    ours = SimpleDDPG.from_sb3(theirs)
    assert ours.lr_schedule(1.0) == ours.to_sb3().lr_schedule(1.0) == 0.25


def test_each_side_keeps_the_flags_of_its_own_optimizers() -> None:
    ours = SimpleDDPG.from_sb3(PLAIN.model(DDPG).learn(30))
    returned = ours.to_sb3()
    for optimizer in ("actor", "critic"):
        assert getattr(ours, optimizer).optimizer.param_groups[0]["fused"] is True
        assert getattr(returned, optimizer).optimizer.param_groups[0]["fused"] is None


def test_optimizer_flags_that_the_user_chose_are_kept() -> None:
    chosen = Case(policy_kwargs={"optimizer_kwargs": {"foreach": False}})
    ours = SimpleDDPG.from_sb3(chosen.model(DDPG).learn(30))
    for model in (ours, ours.to_sb3()):
        group = model.critic.optimizer.param_groups[0]
        assert (group["foreach"], group["fused"]) == (False, None)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_step_counters_stand_on_the_device_that_each_optimizer_wants() -> None:
    ours = SimpleDDPG.from_sb3(PLAIN.model(DDPG, device="cuda").learn(48))
    returned = go_on(ours).to_sb3()
    for model, device in ((ours, "cuda"), (go_on(returned), "cpu")):
        steps = {state["step"].device.type for state in model.critic.optimizer.state.values()}
        assert (model.device.type, steps) == ("cuda", {device})


# What stays as it was.


@every_case
def test_learning_on_does_not_touch_the_other_agent(case: Case) -> None:
    theirs = case.model(DDPG).learn(48)
    ours = SimpleDDPG.from_sb3(theirs)
    returned = ours.to_sb3()
    agents = [theirs, returned]
    weights = [deepcopy(agent.policy.state_dict()) for agent in agents]
    moments = [optimizer_tensors(agent) for agent in agents]
    rewards = [agent.replay_buffer.rewards.copy() for agent in agents]
    episodes = [list(agent.ep_info_buffer) for agent in agents]
    go_on(ours)
    for i, agent in enumerate(agents):
        assert all(th.equal(weights[i][name], value) for name, value in agent.policy.state_dict().items())
        assert all(th.equal(*pair) for pair in zip(moments[i], optimizer_tensors(agent), strict=True))
        np.testing.assert_array_equal(agent.replay_buffer.rewards, rewards[i])
        assert list(agent.ep_info_buffer) == episodes[i]


def test_settings_of_the_given_model_are_not_modified() -> None:
    case = CASES["shared CNN"]
    theirs = case.model(DDPG, replay_buffer_kwargs={"handle_timeout_termination": False})
    before = deepcopy((theirs.policy_kwargs, theirs.replay_buffer_kwargs))
    ours = SimpleDDPG.from_sb3(theirs)
    ours_before = deepcopy((ours.policy_kwargs, ours.replay_buffer_kwargs))
    returned = ours.to_sb3()
    returned.policy_kwargs["features_extractor_kwargs"]["features_dim"] = 99
    returned.replay_buffer_kwargs["more"] = 1
    assert (theirs.policy_kwargs, theirs.replay_buffer_kwargs) == before
    assert (ours.policy_kwargs, ours.replay_buffer_kwargs) == ours_before


def test_buffer_is_copied_row_by_row_and_goes_on_where_it_was() -> None:
    cases = {name: CASES[name] for name in ("plain", "buffer that is full", "memory-efficient buffer", "Dict", "HER")}
    cases["class of the user's"] = Case(settings={"replay_buffer_class": FilledBuffer})
    for name, case in cases.items():
        model = case.model(DDPG).learn(45)  # the memory-efficient buffer of 50 rows is not full: row 45 is in use too
        theirs, ours = model.replay_buffer, SimpleDDPG.from_sb3(model).replay_buffer
        assert type(ours) is type(theirs)
        assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
        assert vars(ours).keys() == vars(theirs).keys()
        for part in vars(theirs).keys() - {"env", "observation_space", "action_space"}:
            np.testing.assert_equal(getattr(ours, part), getattr(theirs, part), err_msg=f"{name}: {part}")


def test_untouched_rows_of_a_large_buffer_cost_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("memory in use is read the Linux way")
    # 4 million rows of 3 + 3 + 1 + 3 float32 numbers are 160 MB, of which the pages of 30 rows are in use.
    theirs = PLAIN.model(DDPG, buffer_size=4_000_000).learn(30)
    before = resident_bytes()
    ours = SimpleDDPG.from_sb3(theirs)
    assert ours.replay_buffer.observations.shape == (4_000_000, 1, 3)
    assert resident_bytes() - before < 40e6


# Zips and environments.


@pytest.mark.parametrize("as_given", ["path", "str", "file", "str without .zip"])
def test_zip_gives_the_agent_with_an_empty_buffer(as_given: str, tmp_path: Path) -> None:
    theirs = PLAIN.model(DDPG).learn(48)
    path = tmp_path / "model.zip"
    theirs.save(path)
    given = {"path": path, "str": str(path), "file": path.open("rb"), "str without .zip": str(tmp_path / "model")}
    ours = SimpleDDPG.from_sb3(given[as_given])
    assert largest_difference(ours, theirs) == 0
    assert (ours.num_timesteps, ours._n_updates, ours.seed, ours.env) == (48, theirs._n_updates, 3, None)
    assert ours.replay_buffer.size() == 0
    assert all(th.equal(*pair) for pair in zip(optimizer_tensors(ours), optimizer_tensors(theirs), strict=True))
    given["file"].close()


def test_zip_with_its_buffer_loaded_trains_on_as_sb3(tmp_path: Path) -> None:
    theirs = PLAIN.model(DDPG).learn(48)
    theirs.save(tmp_path / "model")
    theirs.save_replay_buffer(tmp_path / "buffer")
    ours = SimpleDDPG.from_sb3(tmp_path / "model", PLAIN.env())
    ours.load_replay_buffer(tmp_path / "buffer")
    for model in (theirs, ours):
        np.random.seed(5)
        model.train(10, batch_size=16)
    assert largest_difference(ours, theirs) < 1e-6


def test_zip_learns_on_with_another_number_of_environments(tmp_path: Path) -> None:
    CASES["OU noise in two environments"].model(DDPG).learn(30).save(tmp_path / "model")
    ours = SimpleDDPG.from_sb3(tmp_path / "model", PLAIN.env())
    ours.learn(30, reset_num_timesteps=False)
    assert (ours.n_envs, ours.num_timesteps, ours.replay_buffer.size()) == (1, 60, 30)


def test_given_environment_is_reset_when_learning_goes_on() -> None:
    theirs = PLAIN.model(DDPG).learn(30)
    ours = SimpleDDPG.from_sb3(theirs, Swing())
    assert ours.env is not theirs.env
    assert ours._last_obs is None
    assert ours.replay_buffer.size() == 30
    ours.learn(10, reset_num_timesteps=False)
    assert (ours.num_timesteps, theirs.num_timesteps) == (40, 30)


def test_her_buffer_uses_the_environment_of_its_own_agent() -> None:
    case = CASES["HER"]
    theirs = case.model(DDPG).learn(30)
    kept, moved = SimpleDDPG.from_sb3(theirs), SimpleDDPG.from_sb3(theirs, case.env())
    assert kept.replay_buffer.env is theirs.replay_buffer.env is theirs.env
    assert moved.replay_buffer.env is moved.env is not theirs.env


def test_converted_agents_are_saved_and_loaded_by_their_own_library(tmp_path: Path) -> None:
    theirs = PLAIN.model(DDPG).learn(30)
    ours = SimpleDDPG.from_sb3(theirs)
    ours.save(tmp_path / "ours")
    ours.to_sb3().save(tmp_path / "theirs")
    for loaded in (SimpleDDPG.load(tmp_path / "ours"), DDPG.load(tmp_path / "theirs")):
        assert largest_difference(loaded, theirs) == 0
        assert loaded.num_timesteps == 30


def test_subclass_gets_its_own_kind() -> None:
    class Mine(SimpleDDPG):
        pass

    assert type(Mine.from_sb3(PLAIN.model(DDPG))) is Mine


def test_untrained_agent_without_buffer_is_converted() -> None:
    theirs = PLAIN.model(DDPG)
    theirs.replay_buffer = None  # some do this to save memory
    ours = SimpleDDPG.from_sb3(theirs)
    assert ours.replay_buffer.size() == 0
    assert largest_difference(ours, theirs) == 0


# Noise.


def test_constant_gaussian_noise_becomes_sb3s_with_the_same_numbers() -> None:
    ours = Case(n_envs=2).model(SimpleDDPG, action_noise=0.3)
    theirs = ours.to_sb3()
    assert isinstance(theirs.action_noise, NormalActionNoise)
    np.random.seed(5)
    expected = VectorizedActionNoise(theirs.action_noise, 2)()  # as SB3's learn wraps it
    np.random.seed(5)
    np.testing.assert_array_equal(ours.action_noise(), expected)
    assert expected.shape == (2, 1)


@pytest.mark.parametrize("noise", [0.0, None, "set later"])
def test_other_noise_without_schedule_is_converted(noise: Any) -> None:
    ours = PLAIN.model(SimpleDDPG, action_noise=None if noise == "set later" else noise)
    if noise == "set later":
        ours.action_noise = 0.2
    theirs = ours.to_sb3()
    if noise is None:
        assert theirs.action_noise is None
    else:
        np.testing.assert_array_equal(theirs.action_noise._sigma, [0.0 if noise == 0 else 0.2])


# What is refused.


@pytest.mark.parametrize(
    ("settings", "policy_kwargs", "told"),
    [
        ({"critic_learning_rate": 1e-4}, {}, "critic_learning_rate, got 0.0001"),
        ({"max_grad_norm": 1.0}, {}, "max_grad_norm, got 1.0"),
        (
            {},
            {"critic_optimizer_kwargs": {"weight_decay": 0.01}},
            "critic_optimizer_kwargs, got {'weight_decay': 0.01}",
        ),
        ({}, {"layers": {"qf": "layer_norm"}}, "no layers, got {'qf': 'layer_norm'}: go on in SimpleDDPG"),
        ({"action_noise": LinearSchedule(0.4, 0.1, 1.0)}, {}, "LinearSchedule.*set model.action_noise = 0.4"),
    ],
)
def test_to_sb3_refuses_what_sb3_lacks(settings: dict[str, Any], policy_kwargs: dict[str, Any], told: str) -> None:
    ours = Case(policy_kwargs=policy_kwargs).model(SimpleDDPG, **settings)
    with pytest.raises(ValueError, match=told):
        ours.to_sb3()


def test_to_sb3_drops_what_matters_only_at_construction() -> None:
    kwargs = {
        "last_layer_init": 3e-3, "critic_optimizer_kwargs": {}, "features_extractor_class": None, "n_critics": 1,
        "layers": {"pi": "dense"},
    }  # fmt: skip
    ours = Case("MultiInputPolicy", lambda: Swing("dict"), policy_kwargs=kwargs).model(SimpleDDPG)
    theirs = ours.to_sb3()
    assert theirs.policy_kwargs == {"net_arch": [12], "n_critics": 1}
    assert largest_difference(theirs, ours) == 0


def test_policies_of_the_users_own_are_refused_on_both_sides() -> None:
    class TheirPolicy(TD3Policy):
        pass

    class OurPolicy(DDPGPolicy):
        pass

    with pytest.raises(ValueError, match="TheirPolicy is derived from SB3's TD3Policy: derive it from"):
        SimpleDDPG.from_sb3(DDPG(TheirPolicy, Swing(), buffer_size=1))
    with pytest.raises(
        ValueError, match=r"one of SimpleDDPG's MlpPolicy, CnnPolicy, MultiInputPolicy, got .*OurPolicy"
    ):
        SimpleDDPG(OurPolicy, Swing(), buffer_size=1).to_sb3()


@pytest.mark.parametrize("algorithm", [TD3, SAC, PPO, SimpleDDPG])
def test_models_of_other_algorithms_are_refused(algorithm: Any, tmp_path: Path) -> None:
    other = algorithm("MlpPolicy", Swing())
    with pytest.raises(ValueError, match=f"must be SB3's DDPG, got {algorithm.__name__}: go on with"):
        SimpleDDPG.from_sb3(other)
    other.save(tmp_path / "other")
    told = "n_critics must be 1, got 2: .* stable_baselines3.TD3" if algorithm is TD3 else "go on with the algorithm"
    with pytest.raises(ValueError, match=told):
        SimpleDDPG.from_sb3(tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policy_kwargs": {"n_critics": 1}}, "policy_delay must be 1, got 2"),
        ({"policy_kwargs": {"n_critics": 1}, "policy_delay": 1}, "target_noise_clip must be 0, got 0.5"),
    ],
)
def test_zip_of_td3_with_one_critic_is_refused(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    TD3("MlpPolicy", Swing(), **settings).save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{told}: .* stable_baselines3.TD3"):
        SimpleDDPG.from_sb3(tmp_path / "model")


def test_twin_critics_are_refused() -> None:
    theirs = DDPG("MlpPolicy", Swing(), policy_kwargs={"n_critics": 2})
    with pytest.raises(ValueError, match=r"n_critics must be 1, got 2: .* stable_baselines3.TD3"):
        SimpleDDPG.from_sb3(theirs)


def test_environment_of_another_shape_is_refused(tmp_path: Path) -> None:
    theirs = PLAIN.model(DDPG)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        SimpleDDPG.from_sb3(theirs, Swing("dict"))
    with pytest.raises(ValueError, match=r"must hold 1 environments.*got 2: save the model and convert its zip"):
        SimpleDDPG.from_sb3(theirs, CASES["two environments"].env())


def test_integer_actions_that_sb3_accepts_are_refused() -> None:
    env = Swing()
    env.action_space = spaces.Box(-2, 2, (1,), np.int32)
    with pytest.raises(ValueError, match="must be real numbers, got dtype int32"):
        SimpleDDPG.from_sb3(DDPG("MlpPolicy", env))


def test_load_of_an_sb3_zip_names_from_sb3_and_promises_nothing_for_td3(tmp_path: Path) -> None:
    for algorithm in (DDPG, TD3):
        algorithm("MlpPolicy", Swing()).save(tmp_path / algorithm.__name__)
        with pytest.raises(ValueError, match=r"for a model of SB3's DDPG use SimpleDDPG\.from_sb3"):
            SimpleDDPG.load(tmp_path / algorithm.__name__)
    assert SimpleDDPG.from_sb3(tmp_path / "DDPG").num_timesteps == 0
    with pytest.raises(ValueError, match="not DDPG; for TD3 go on with"):
        SimpleDDPG.from_sb3(tmp_path / "TD3")


def test_file_without_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        SimpleDDPG.from_sb3(tmp_path / "text.zip")
    theirs = PLAIN.model(DDPG)
    save_to_zip_file(tmp_path / "weights", params=theirs.get_parameters())
    with pytest.raises(ValueError, match="holds no settings"):
        SimpleDDPG.from_sb3(tmp_path / "weights")


# Replay buffers that SB3 has saved.


@pytest.mark.parametrize("algorithm", [DDPG, TD3, SAC])
def test_buffer_saved_by_sb3_trains_as_in_sb3s_ddpg(algorithm: Any, tmp_path: Path) -> None:
    source = PLAIN.model(algorithm, learning_starts=40).learn(40)
    source.save_replay_buffer(tmp_path / "buffer")
    theirs, ours = PLAIN.model(DDPG), PLAIN.model(SimpleDDPG)
    theirs.set_logger(configure(None, []))
    for model in (theirs, ours):
        model.load_replay_buffer(tmp_path / "buffer")
        np.random.seed(5)
        model.train(10, batch_size=16)
    assert (ours.replay_buffer.size(), ours._n_updates) == (40, 10)
    assert largest_difference(ours, theirs) < 1e-6


def test_policy_names_are_told_apart() -> None:
    ours = SimpleDDPG.from_sb3(CASES["Dict"].model(DDPG))
    assert ours.policy_class is MultiInputPolicy
    assert ours.to_sb3().policy_class is DDPG.policy_aliases["MultiInputPolicy"]
