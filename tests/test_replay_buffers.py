"""Every replay buffer of SB3 under SimpleDDPG: uniform, Dict, HER, n-step, memory-saving, and classes of the user's.

Not here: buffers that another algorithm saved (conversion) and the exact resume from a checkpoint.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, IdentityEnvBox
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_simple_ddpg import SimpleDDPG
from tests.environments import Chain
from tests.side_by_side import (
    DICT_SPACES,
    SMALL_COMBINED,
    VECTOR,
    Dummy,
    assert_same_agent,
    settings,
    train_side_by_side,
)


def states(observations: th.Tensor) -> list[int]:
    """Which of the chain's three states each row of a batch is."""
    return observations.argmax(dim=1).tolist()


# --- uniform ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "make_env", "n_steps", "buffer_class"),
    [
        ("MlpPolicy", Chain, 1, ReplayBuffer),
        ("MlpPolicy", Chain, 3, NStepReplayBuffer),
        ("MultiInputPolicy", lambda: Dummy(DICT_SPACES["vectors"]), 1, DictReplayBuffer),
    ],
    ids=["uniform", "n_step", "dict"],
)
def test_buffer_class_is_chosen_by_observation_space_and_n_steps(policy, make_env, n_steps, buffer_class):
    model = SimpleDDPG(policy, make_env(), **settings(n_steps=n_steps))
    assert type(model.replay_buffer) is buffer_class


@pytest.mark.parametrize("n_envs", [1, 3])
def test_full_buffer_overwrites_its_oldest_transitions_like_sb3(n_envs):
    ours, theirs = train_side_by_side(
        lambda: DummyVecEnv([lambda: Dummy(VECTOR)] * n_envs), total_timesteps=30 * n_envs, buffer_size=12 * n_envs
    )
    assert ours.replay_buffer.full
    assert ours.replay_buffer.pos == 30 - 2 * 12
    assert_same_agent(ours, theirs, n_updates=ours._n_updates)


@pytest.mark.parametrize(
    ("ends", "handle_timeouts", "done"),
    [("terminated", True, 1.0), ("truncated", True, 0.0), ("truncated", False, 1.0)],
)
def test_time_limit_is_no_terminal_state_in_a_batch(ends, handle_timeouts, done):
    kwargs = {"handle_timeout_termination": handle_timeouts}
    ours, theirs = train_side_by_side(lambda: Chain(ends), replay_buffer_kwargs=kwargs)
    batch = ours.replay_buffer.sample(100)
    at_the_end = batch.observations.argmax(dim=1, keepdim=True) == 2
    # Only what follows state 2 is an end, and only a terminal state counts as one.
    assert th.equal(batch.dones, done * at_the_end.float())
    # The next observation is that of the old episode: state 0 after state 2, before any reset.
    assert th.equal(
        batch.next_observations.argmax(dim=1, keepdim=True)[at_the_end], th.zeros(int(at_the_end.sum()), dtype=th.long)
    )
    assert_same_agent(ours, theirs, n_updates=20)


@pytest.mark.parametrize(("ends", "weight_of_next"), [("terminated", 0.0), ("truncated", 0.5)])
def test_time_limit_does_not_stop_bootstrapping(ends, weight_of_next, monkeypatch):
    import sb3_simple_ddpg.simple_ddpg as module

    seen = []
    critic_loss = module.critic_loss
    monkeypatch.setattr(module, "critic_loss", lambda q, targets: seen.append(targets) or critic_loss(q, targets))
    model = SimpleDDPG("MlpPolicy", Chain(ends), **settings(gamma=0.5, gradient_steps=0)).learn(30)
    for network in (model.critic, model.critic_target):
        th.nn.init.zeros_(network.qf0[-1].weight)
        th.nn.init.constant_(network.qf0[-1].bias, 10.0)  # Q' is 10 everywhere
    model.train(gradient_steps=1, batch_size=200)
    # y = 1 + 0.5 x 10 = 6; after state 2 it is 1 + 0 x 10 or, at a time limit, again 6.
    assert set(seen[0].flatten().tolist()) == {6.0, 1.0 + weight_of_next * 10.0}


# --- n-step returns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_n_step_returns_train_like_sb3(n_steps, n_envs):
    ours, theirs = train_side_by_side(
        lambda: DummyVecEnv([lambda: Dummy(VECTOR)] * n_envs), total_timesteps=30 * n_envs, n_steps=n_steps, gamma=0.7
    )
    assert ours.replay_buffer.n_steps == n_steps
    assert ours.replay_buffer.sample(4).discounts is not None
    assert_same_agent(ours, theirs, n_updates=ours._n_updates)


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_three_step_returns_of_the_chain_are_the_known_ones(ends):
    model = SimpleDDPG("MlpPolicy", Chain(ends), **settings(n_steps=3, gamma=0.5)).learn(30)
    batch = model.replay_buffer.sample(200)
    # Reward 1 a step, gamma 1/2: 1 + 1/2 + 1/4, 1 + 1/2, 1; the rest is discounted by (1/2)^3, (1/2)^2, 1/2.
    returns, discounts = [1.75, 1.5, 1.0], [0.125, 0.25, 0.5]
    assert batch.rewards.flatten().tolist() == [returns[state] for state in states(batch.observations)]
    assert batch.discounts.flatten().tolist() == [discounts[state] for state in states(batch.observations)]
    # All three steps end the episode; a time limit is no terminal state.
    assert batch.dones.unique().tolist() == [1.0 if ends == "terminated" else 0.0]


@pytest.mark.parametrize("by", ["attribute", "load"])
def test_n_step_buffer_discounts_with_the_gamma_of_the_model(by, tmp_path):
    expected = SimpleDDPG("MlpPolicy", Chain(), **settings(n_steps=3, gamma=0.5, gradient_steps=0)).learn(30)
    model = SimpleDDPG("MlpPolicy", Chain(), **settings(n_steps=3, gamma=0.9, gradient_steps=0)).learn(30)
    if by == "attribute":
        model.gamma = 0.5
    else:
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        model = SimpleDDPG.load(tmp_path / "model", env=Chain(), gamma=0.5)
        model.load_replay_buffer(tmp_path / "buffer")
    for each in (expected, model):
        np.random.seed(1)
        each.train(gradient_steps=5, batch_size=8)
    assert model.replay_buffer.gamma == 0.5
    assert set(model.replay_buffer.sample(100).rewards.flatten().tolist()) == {1.75, 1.5, 1.0}
    for ours, theirs in zip(model.policy.parameters(), expected.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_n_step_model_is_loaded_without_a_warning_and_stays_n_step(tmp_path):
    model = SimpleDDPG("MlpPolicy", Chain(), **settings(n_steps=3)).learn(20)
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=Chain())  # warnings are errors here
    assert (type(loaded.replay_buffer), loaded.replay_buffer.n_steps) == (NStepReplayBuffer, 3)
    loaded.learn(20)
    assert loaded._n_updates == model._n_updates + 10


@pytest.mark.parametrize("algorithm", [SimpleDDPG, DDPG])
def test_n_step_is_refused_where_sb3_refuses_it(algorithm):
    with pytest.raises(AssertionError, match="Dict observation spaces"):
        algorithm("MultiInputPolicy", Dummy(DICT_SPACES["vectors"]), **settings(n_steps=3))
    kwargs = {"handle_timeout_termination": False}
    with pytest.raises(NotImplementedError, match="optimize_memory_usage"):
        algorithm("MlpPolicy", Chain(), **settings(n_steps=3, optimize_memory_usage=True, replay_buffer_kwargs=kwargs))


# --- optimize_memory_usage -------------------------------------------------------------------------------------------

SAVE_MEMORY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}


@pytest.mark.parametrize("buffer_size", [200, 12])
def test_memory_saving_buffer_trains_like_sb3_and_stores_each_observation_once(buffer_size):
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR), buffer_size=buffer_size, **SAVE_MEMORY)
    assert not hasattr(ours.replay_buffer, "next_observations")
    assert_same_agent(ours, theirs, n_updates=20)


def test_memory_saving_buffer_gives_the_next_observation():
    model = SimpleDDPG("MlpPolicy", Chain("truncated"), **settings(**SAVE_MEMORY)).learn(20)
    batch = model.replay_buffer.sample(100)
    assert states(batch.next_observations) == [(state + 1) % 3 for state in states(batch.observations)]


@pytest.mark.parametrize("algorithm", [SimpleDDPG, DDPG])
def test_second_learn_with_a_memory_saving_buffer_warns_as_in_sb3(algorithm):
    model = algorithm("MlpPolicy", Chain(), **settings(**SAVE_MEMORY)).learn(20)
    model.learn(5, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="The last trajectory in the replay buffer will be truncated"):
        model.learn(15)
    assert model.replay_buffer.dones[24] == 1.0
    assert model._n_updates == 10 + 5 + 5


@pytest.mark.parametrize("algorithm", [SimpleDDPG, DDPG])
def test_memory_saving_is_refused_where_sb3_refuses_it(algorithm):
    with pytest.raises(ValueError, match="handle_timeout_termination = True"):
        algorithm("MlpPolicy", Chain(), **settings(optimize_memory_usage=True))
    with pytest.raises(AssertionError, match="DictReplayBuffer does not support optimize_memory_usage"):
        algorithm("MultiInputPolicy", Dummy(DICT_SPACES["vectors"]), **settings(optimize_memory_usage=True))


# --- classes of the user's -------------------------------------------------------------------------------------------


class Recorder(ReplayBuffer):
    """Counts what is asked of it, and scales rewards."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale
        self.batches: list[tuple[int, VecNormalize | None]] = []
        self.added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.added += 1
        super().add(*args, **kwargs)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        self.batches.append((batch_size, env))
        batch = super().sample(batch_size, env=env)
        return batch._replace(rewards=self.scale * batch.rewards)


class RecorderNStep(NStepReplayBuffer):
    """An n-step buffer under another name."""


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_custom_buffer_class_and_its_arguments_are_used(scale):
    kwargs = {"scale": scale}
    ours, theirs = train_side_by_side(
        lambda: Dummy(VECTOR), replay_buffer_class=Recorder, replay_buffer_kwargs=kwargs, gradient_steps=2
    )
    assert kwargs == {"scale": scale}  # what the caller passed stays as it was
    assert ours.replay_buffer.added == 30
    assert ours.replay_buffer.batches == [(8, None)] * 40  # 20 calls of train, two steps each, batch_size=8
    assert ours.replay_buffer.scale == scale
    assert_same_agent(ours, theirs, n_updates=40)


def test_custom_n_step_buffer_takes_its_settings_from_its_own_arguments():
    ours, theirs = train_side_by_side(
        lambda: Dummy(VECTOR),
        replay_buffer_class=RecorderNStep,
        replay_buffer_kwargs={"n_steps": 4, "gamma": 0.99},
    )
    assert ours.replay_buffer.n_steps == 4
    assert_same_agent(ours, theirs, n_updates=20)


def test_batches_are_sampled_with_the_normaliser_of_the_environment():
    env = VecNormalize(DummyVecEnv([Chain]))
    model = SimpleDDPG("MlpPolicy", env, **settings(replay_buffer_class=Recorder)).learn(30)
    assert model.replay_buffer.batches == [(8, env)] * 20


def test_train_has_sb3s_default_batch_size():
    model = SimpleDDPG("MlpPolicy", Chain(), **settings(replay_buffer_class=Recorder, gradient_steps=0)).learn(20)
    model.train(2)
    assert model.replay_buffer.batches == [(100, None)] * 2
    assert model._n_updates == 2


# --- hindsight experience replay -------------------------------------------------------------------------------------


def bits(**kwargs: Any) -> BitFlippingEnv:
    return BitFlippingEnv(**{"n_bits": 4, "continuous": True, **kwargs})


def her(**kwargs: Any) -> dict[str, Any]:
    """HER's settings; episodes have at most 4 steps, so the 10 random steps hold whole ones."""
    return {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": kwargs}


@pytest.mark.parametrize("n_envs", [1, 2, 4])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_her_trains_like_sb3(strategy, n_envs):
    ours, theirs = train_side_by_side(
        lambda: DummyVecEnv([bits] * n_envs),
        "MultiInputPolicy",
        total_timesteps=30 * n_envs,
        learning_starts=10 * n_envs,
        **her(goal_selection_strategy=strategy, n_sampled_goal=2),
    )
    assert_same_agent(ours, theirs, n_updates=20)


@pytest.mark.parametrize(
    ("env_kwargs", "policy_kwargs"),
    [
        ({"discrete_obs_space": True}, {"net_arch": [16]}),
        ({"image_obs_space": True}, SMALL_COMBINED),
        ({"image_obs_space": True, "channel_first": False}, SMALL_COMBINED),
    ],
    ids=["discrete", "channel_first", "channel_last"],
)
def test_her_of_other_observation_spaces_trains_like_sb3(env_kwargs, policy_kwargs):
    ours, theirs = train_side_by_side(
        lambda: bits(**env_kwargs), "MultiInputPolicy", total_timesteps=16, policy_kwargs=policy_kwargs, **her()
    )
    assert_same_agent(ours, theirs, n_updates=6)


def test_her_with_a_normaliser_and_stored_infos_trains_like_sb3():
    ours, theirs = train_side_by_side(
        lambda: VecNormalize(DummyVecEnv([bits, bits]), norm_obs=False),
        "MultiInputPolicy",
        total_timesteps=40,
        **her(copy_info_dict=True),
    )
    assert_same_agent(ours, theirs, n_updates=15)
    assert "is_success" in ours.replay_buffer.infos[0][0]


def test_her_replaces_goals_and_computes_the_reward_anew():
    model = SimpleDDPG("MultiInputPolicy", bits(), **settings(**her(n_sampled_goal=4))).learn(60)
    assert model._n_updates == 50
    batch = model.replay_buffer.sample(100)
    goals = batch.observations["desired_goal"]
    of_the_environment = (goals == 1).all(dim=1)
    # The environment asks for all ones. 4 goals of 5 are replaced: 80 of 100, at least 20 are as they were.
    assert 20 <= int(of_the_environment.sum()) < 100
    assert th.equal(goals, batch.next_observations["desired_goal"])
    reached = (batch.next_observations["achieved_goal"] == goals).all(dim=1, keepdim=True)
    assert th.equal(batch.rewards, reached.float() - 1.0)  # 0 at the goal, else -1
    assert bool(reached.any())


# Python 3.12 warns of every fork beside threads; PyTorch has threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_her_in_subprocesses_gives_the_same_training_as_in_one_process():
    one_process = SimpleDDPG("MultiInputPolicy", DummyVecEnv([bits, bits]), **settings(**her())).learn(40)
    env = SubprocVecEnv([bits, bits], start_method="fork")
    try:
        model = SimpleDDPG("MultiInputPolicy", env, **settings(**her())).learn(40)
        assert_same_agent(model, one_process, n_updates=15)  # after timesteps 12, 14, ... 40
    finally:
        env.close()


def test_her_model_and_buffer_are_saved_and_loaded(tmp_path):
    models = []
    for algorithm in (SimpleDDPG, DDPG):
        # Without noise on both sides: 18 steps, so the last episode is cut after 2 of 4 steps unless solved earlier.
        model = algorithm("MultiInputPolicy", bits(), **settings(action_noise=None, **her())).learn(18)
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        with pytest.raises(AssertionError, match="You must pass an environment"):
            algorithm.load(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=bits())
        assert loaded.replay_buffer.size() == 0
        with pytest.warns(UserWarning, match="The last trajectory in the replay buffer will be truncated"):
            loaded.load_replay_buffer(tmp_path / "buffer")  # SB3's advice about the half episode
        assert loaded.replay_buffer.size() == 18
        assert loaded.replay_buffer.env is loaded.get_env()
        models.append(loaded.learn(20, reset_num_timesteps=False))
    ours, theirs = models
    assert ours.num_timesteps == 38
    np.testing.assert_array_equal(ours.replay_buffer.ep_length, theirs.replay_buffer.ep_length)
    assert_same_agent(ours, theirs, n_updates=8 + 20)


def test_her_before_the_end_of_the_first_episode_is_an_error_as_in_sb3():
    for algorithm in (SimpleDDPG, DDPG):
        model = algorithm("MultiInputPolicy", bits(), **settings(learning_starts=0, **her()))
        with pytest.raises(RuntimeError, match="learning_starts"):
            model.learn(5)


# --- training from a loaded buffer -----------------------------------------------------------------------------------


def test_train_before_learn_says_that_the_buffer_is_empty():
    model = SimpleDDPG("MlpPolicy", IdentityEnvBox(), **settings())
    with pytest.raises(ValueError, match="replay buffer is empty"):
        model.train(1)


def test_train_before_learn_works_once_a_buffer_is_loaded(tmp_path):
    source = SimpleDDPG("MlpPolicy", IdentityEnvBox(), **settings()).learn(30)
    source.save_replay_buffer(tmp_path / "buffer")
    model = SimpleDDPG("MlpPolicy", IdentityEnvBox(), **settings())
    before = model.actor.mu[0].weight.clone()
    model.load_replay_buffer(tmp_path / "buffer")
    model.train(gradient_steps=3, batch_size=8)
    assert model._n_updates == 3
    assert not th.equal(model.actor.mu[0].weight, before)
    np.testing.assert_array_equal(model.replay_buffer.actions, source.replay_buffer.actions)
