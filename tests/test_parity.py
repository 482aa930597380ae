"""SimpleDDPG and SB3's DDPG, from the same seeds: the same weights. Not here: distributions of returns after long runs.

Tolerances: both compute the same formulas, in another order of rounding (a fused optimizer, one call for the soft
update). SB3's DDPG against itself with `fused=True` drifts by 6e-8 after 10 updates and 4e-7 after 100 on the same
batches, and after about 30 updates through `learn` the environment begins to feed the difference back. A wrong formula
shows at 1e-3, the size of Adam's first step, so 1e-6 up to 10 updates and 1e-5 up to 100 tell the two apart.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_simple_ddpg import SimpleDDPG


def largest_difference(ours: SimpleDDPG, theirs: DDPG) -> float:
    """Over all weights of the four networks."""
    state, their_state = ours.policy.state_dict(), theirs.policy.state_dict()
    assert state.keys() == their_state.keys()
    return max((state[name] - their_state[name]).abs().max().item() for name in state)


def from_the_same_seed(*models: SimpleDDPG | DDPG) -> Iterator[SimpleDDPG | DDPG]:
    """One after the other, each with all random streams as they were for the first."""
    for model in models:
        model.set_random_seed(7)
        yield model


def make_pair(
    n_envs: int = 1, normalize: bool = False, time_limit: int | None = None, **settings: Any
) -> tuple[SimpleDDPG, DDPG]:
    def make_env() -> gym.Env:
        return gym.make("Pendulum-v1", max_episode_steps=time_limit) if time_limit else gym.make("Pendulum-v1")

    pair = []
    for algorithm in (SimpleDDPG, DDPG):
        env = DummyVecEnv([make_env] * n_envs)
        kwargs: dict[str, Any] = {"seed": 7, "policy_kwargs": {"net_arch": [32, 32]}, "buffer_size": 1_000, **settings}
        pair.append(algorithm("MlpPolicy", VecNormalize(env) if normalize else env, **kwargs))
    return pair[0], pair[1]


def test_one_seed_gives_sb3_s_weights():
    assert largest_difference(*make_pair(action_noise=None)) == 0.0


@pytest.mark.parametrize(("updates", "tolerance"), [(1, 1e-6), (10, 1e-6), (100, 1e-5)])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_updates_on_the_same_batches_give_sb3_s_weights(
    updates: int, tolerance: float, n_envs: int, n_steps: int, normalize: bool
):
    ours, theirs = make_pair(n_envs, normalize, action_noise=None, n_steps=n_steps, learning_starts=1_000)
    for model in from_the_same_seed(ours, theirs):
        model.learn(300)  # random actions of the same seed fill both buffers alike
        np.random.seed(3)
        model.train(updates, batch_size=64)
    assert ours._n_updates == theirs._n_updates == updates
    assert largest_difference(ours, theirs) < tolerance


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_thirty_updates_through_learn_give_sb3_s_weights(n_envs: int, n_steps: int, normalize: bool):
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    ours, theirs = make_pair(n_envs, normalize, action_noise=noise, n_steps=n_steps)
    for model in from_the_same_seed(ours, theirs):
        model.learn(100 + 30 * n_envs)
    assert ours._n_updates == theirs._n_updates == 30
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("n_envs", [1, 2])
def test_noise_as_a_number_draws_the_same_numbers_as_sb3_s_noise(n_envs: int):
    ours, _ = make_pair(n_envs, action_noise=0.1)
    _, theirs = make_pair(n_envs, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)))
    for model in from_the_same_seed(ours, theirs):
        model.learn(100 + 30 * n_envs)
    assert largest_difference(ours, theirs) < 1e-5


def test_ornstein_uhlenbeck_noise_is_sb3_s():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1))
    ours, theirs = make_pair(2, action_noise=noise)
    for model in from_the_same_seed(ours, theirs):
        model.learn(160)
    assert largest_difference(ours, theirs) < 1e-5


def test_a_time_limit_of_five_steps_gives_sb3_s_weights():
    """Every fifth transition is cut off by the time limit: taking one for a termination would change its target."""
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    ours, theirs = make_pair(time_limit=5, action_noise=noise)
    for model in from_the_same_seed(ours, theirs):
        model.learn(130)
    assert ours.replay_buffer.timeouts.sum() == 26  # 130 / 5
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("optimizer_class", [th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
def test_other_optimizers_give_sb3_s_weights(optimizer_class: type[th.optim.Optimizer]):
    settings = {"net_arch": [32, 32], "optimizer_class": optimizer_class, "optimizer_kwargs": {"weight_decay": 0.01}}
    ours, theirs = make_pair(action_noise=None, policy_kwargs=settings, learning_starts=1_000)
    for model in from_the_same_seed(ours, theirs):
        model.learn(100)
        np.random.seed(3)
        model.train(30, batch_size=64)
    assert largest_difference(ours, theirs) < 1e-5


def test_learning_rate_schedule_gives_sb3_s_weights():
    ours, theirs = make_pair(action_noise=None, learning_rate=lambda progress: progress * 1e-2)
    for model in from_the_same_seed(ours, theirs):
        model.learn(130)
    assert largest_difference(ours, theirs) < 1e-5
    assert ours.logger.name_to_value["train/learning_rate"] == theirs.logger.name_to_value["train/learning_rate"]


def test_logged_losses_are_sb3_s():
    ours, theirs = make_pair(action_noise=None, learning_starts=1_000)
    for model in from_the_same_seed(ours, theirs):
        model.learn(100)
        np.random.seed(3)
        model.train(5, batch_size=64)
    for name in ("train/critic_loss", "train/actor_loss", "train/n_updates"):
        assert ours.logger.name_to_value[name] == pytest.approx(theirs.logger.name_to_value[name], rel=1e-5)


def test_default_call_of_train_uses_sb3_s_batch_size():
    ours, theirs = make_pair(action_noise=None, learning_starts=1_000)
    for model in from_the_same_seed(ours, theirs):
        model.learn(100)
        np.random.seed(3)
        model.train(3)
    assert largest_difference(ours, theirs) < 1e-6
