"""What `action_noise` may be, and what becomes of it.

Not here: equality with SB3's noise through `learn` (test_parity.py).
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.exploration import GaussianNoise, OrnsteinUhlenbeck, make_action_noise, noise_scale
from tests.environments import Bandit

TINY = {"net_arch": [8]}


def test_a_number_is_the_standard_deviation_of_independent_draws():
    noise = make_action_noise(0.5, (3,), 4)
    np.random.seed(0)
    draws = np.stack([noise() for _ in range(2_000)])
    assert draws.shape == (2_000, 4, 3)
    # 24,000 draws: the standard error of the mean is 0.003, that of the deviation 0.002
    assert draws.mean() == pytest.approx(0.0, abs=0.015)
    assert draws.std() == pytest.approx(0.5, abs=0.01)


def test_one_draw_serves_all_environments_with_the_numbers_of_sb3_s_noise():
    ours = make_action_noise(0.3, (2,), 3)
    theirs = VectorizedActionNoise(NormalActionNoise(np.zeros(2), 0.3 * np.ones(2)), 3)
    np.random.seed(1)
    expected = theirs()
    np.random.seed(1)
    assert np.array_equal(ours(), expected)
    assert ours().dtype == expected.dtype


def test_noise_of_one_means_half_the_action_range():
    """In [-1, 3], half the range is 2: the environment sees pushes twice as large as the noise in [-1, 1]."""
    pushes = []

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            pushes.append(self.locals["actions"].item() - 2.0 * self.locals["buffer_actions"].item())
            return True

    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=0, action_noise=0.01, buffer_size=100, policy_kwargs=TINY)
    model.learn(20, Recorder())
    assert pushes == pytest.approx([1.0] * 20, abs=1e-6)  # the middle of [-1, 3]


def test_the_default_run_explores():
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=10, buffer_size=100, seed=0, policy_kwargs=TINY)
    model.learn(11)
    model.gradient_steps = 0
    model.learn(60, reset_num_timesteps=False)
    actor_s_action = model.actor(model.policy.obs_to_tensor(np.zeros((1, 1), np.float32))[0]).item()
    taken = model.replay_buffer.actions[12:71].flatten()
    deviations = taken - actor_s_action
    # 59 draws of N(0, 0.1^2): the standard error of the deviation is 0.01; four of them are a safe margin
    assert deviations.std() == pytest.approx(0.1, abs=0.04)


def test_without_noise_the_actor_s_own_actions_are_taken():
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=5, action_noise=None, buffer_size=100, policy_kwargs=TINY)
    model.gradient_steps = 0
    model.learn(15)
    assert len(set(model.replay_buffer.actions[5:15].flatten())) == 1
    assert noise_scale(model.action_noise) == 0.0


def test_a_schedule_follows_the_progress_of_training():
    scales = []

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            scales.append(self.model.action_noise.scale)
            return True

    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_starts=0, action_noise=lambda progress: progress, buffer_size=100,
        batch_size=4, policy_kwargs=TINY,
    )  # fmt: skip
    model.learn(4, Recorder())
    assert scales == [1.0, 0.75, 0.5, 0.25]
    assert model.logger.name_to_value["train/noise_scale"] == 0.0
    scales.clear()
    model.learn(4, Recorder(), reset_num_timesteps=False)
    assert scales == [0.5, 0.375, 0.25, 0.125]  # 4 of 8 timesteps are done


def test_a_schedule_that_turns_negative_is_an_error():
    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_starts=0, action_noise=lambda progress: progress - 0.6, buffer_size=100,
        policy_kwargs=TINY,
    )  # fmt: skip
    with pytest.raises(ValueError, match="action_noise must be a finite number of at least 0"):
        model.learn(10)


def test_ornstein_uhlenbeck_takes_the_shape_of_the_action_space():
    noise = make_action_noise(OrnsteinUhlenbeck(sigma=0.5, theta=0.1), (2, 3), 1)
    assert isinstance(noise, OrnsteinUhlenbeckActionNoise)
    assert noise().shape == (2, 3)
    assert noise._theta == 0.1
    assert noise_scale(noise) == 0.5


@pytest.mark.parametrize("setting", [0.2, NormalActionNoise(np.zeros(1), 0.2 * np.ones(1)), OrnsteinUhlenbeck(0.2)])
def test_setting_up_twice_changes_nothing(setting: object):
    once = make_action_noise(setting, (1,), 2)
    assert make_action_noise(once, (1,), 2) is once
    assert noise_scale(once) == pytest.approx(0.2)


def test_noise_for_two_environments_becomes_noise_for_four():
    gaussian = make_action_noise(make_action_noise(0.2, (1,), 2), (1,), 4)
    assert isinstance(gaussian, GaussianNoise)
    assert gaussian().shape == (4, 1)
    base = NormalActionNoise(np.zeros(1), 0.2 * np.ones(1))
    assert make_action_noise(VectorizedActionNoise(base, 2), (1,), 4) is base


@pytest.mark.parametrize("noise", [0.1, NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), OrnsteinUhlenbeck(0.3)])
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1), (1, 2)])
def test_number_of_environments_changes_on_load_with_noise_on(noise: object, before: int, after: int, tmp_path):
    settings = {"learning_starts": 4, "buffer_size": 100, "batch_size": 4, "action_noise": noise, "policy_kwargs": TINY}
    model = SimpleDDPG("MlpPolicy", DummyVecEnv([Bandit] * before), **settings).learn(12)
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=DummyVecEnv([Bandit] * after))
    loaded.learn(12)
    assert loaded.action_noise().reshape(-1, 1).shape == (after, 1)
    assert loaded._n_updates > model._n_updates
    assert noise_scale(loaded.action_noise) == noise_scale(model.action_noise)


def test_noise_may_be_replaced_after_construction():
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=0, buffer_size=100, batch_size=4, policy_kwargs=TINY)
    model.action_noise = 0.7
    model.learn(3)
    assert model.logger.name_to_value["train/noise_scale"] == 0.7


def test_a_class_of_the_user_s_is_used_and_its_unknown_scale_not_logged():
    class Constant(ActionNoise):
        def __call__(self) -> np.ndarray:
            return np.full((1,), 0.25, np.float32)

    model = SimpleDDPG(
        "MlpPolicy", Bandit(), learning_starts=0, buffer_size=100, batch_size=4, action_noise=Constant(),
        policy_kwargs=TINY,
    )  # fmt: skip
    before = model.actor(model.policy.obs_to_tensor(np.zeros((1, 1), np.float32))[0]).item()
    model.learn(1)
    assert model.replay_buffer.actions[0].item() == pytest.approx(before + 0.25, abs=1e-6)
    assert "train/noise_scale" not in model.logger.name_to_value


@pytest.mark.parametrize("wrong", [-0.1, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(wrong: float):
    with pytest.raises(ValueError, match=f"action_noise must be a finite number of at least 0, got {wrong}"):
        SimpleDDPG("MlpPolicy", Bandit(), action_noise=wrong)


@pytest.mark.parametrize("wrong", ["0.1", True, [0.1]])
def test_what_is_no_noise_is_refused(wrong: object):
    with pytest.raises(TypeError, match="action_noise must be a standard deviation"):
        SimpleDDPG("MlpPolicy", Bandit(), action_noise=wrong)


@pytest.mark.parametrize(
    "nothing", [-0.0, np.float32(-0.0), np.float64(-0.0), lambda progress: -0.0, OrnsteinUhlenbeck(-0.0)]
)
def test_minus_zero_is_zero(nothing: object):
    noise = make_action_noise(nothing, (2,), 1)
    assert not noise().any()
    assert str(noise_scale(noise)) == "0.0"


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.array(0.5), th.tensor(0.5)])
def test_numbers_of_numpy_and_pytorch_become_python_s(number: Any):
    noise = make_action_noise(lambda progress: number, (2,), 1)
    assert type(noise.scale) is float
    assert noise.scale == 0.5
    assert type(OrnsteinUhlenbeck(number).sigma) is float
    assert OrnsteinUhlenbeck(number) == OrnsteinUhlenbeck(0.5)
    if isinstance(number, np.floating):
        assert make_action_noise(number, (2,), 1).scale == 0.5
        assert make_action_noise(np.int64(1), (2,), 1).scale == 1.0


def test_negative_description_is_refused():
    with pytest.raises(ValueError, match="theta must be a finite number of at least 0, got -1"):
        OrnsteinUhlenbeck(theta=-1)


def test_noise_of_another_shape_is_refused_before_training():
    with pytest.raises(ValueError, match=r"shape of one action, \(1,\), got \(3,\)"):
        SimpleDDPG("MlpPolicy", Bandit(), action_noise=NormalActionNoise(np.zeros(3), np.ones(3)))


def test_noise_for_actions_of_any_shape():
    space = spaces.Box(-1, 1, (2, 2), np.float32)
    assert make_action_noise(0.1, space.shape, 3)().shape == (3, 2, 2)
