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
from sb3_simple_ddpg.exploration import (
    ColoredActionNoise,
    ColoredNoise,
    GaussianNoise,
    OrnsteinUhlenbeck,
    make_action_noise,
    noise_scale,
)
from tests.environments import Bandit

TINY = {"net_arch": [8]}


class ThreeActions(Bandit):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)


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


def test_colored_noise_of_four_timesteps_equals_the_numbers_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch):
    """
    Four timesteps have the frequencies 0 (taken for 1/4), 1/4, 1/2 and -1/4. With beta = 2 the factors 1 / f are 4, 4,
    2, 4, and sqrt((16 + 16 + 4 + 16) / 4) = sqrt(13) makes the variance that of white noise again. One push of 1
    has the same share in each frequency: w(t) = 1/4 (4 + 4 * 2 cos(pi t / 2) + 2 cos(pi t)) / sqrt(13).
    """
    monkeypatch.setattr(np.random, "normal", lambda size: np.broadcast_to([1.0, 0.0, 0.0, 0.0], size))
    noise = make_action_noise(ColoredNoise(sigma=0.5, beta=2.0, length=4), (2,), 1)
    drawn = np.stack([noise() for _ in range(4)])
    expected = 0.5 * np.array([14.0, 2.0, -2.0, 2.0]) / 4 / np.sqrt(13)
    np.testing.assert_allclose(drawn, np.stack([expected, expected], axis=1), rtol=1e-6)


def test_an_exponent_of_any_size_gives_finite_noise():
    noise = make_action_noise(ColoredNoise(sigma=0.3, beta=1e4), (2,), 1)
    assert np.isfinite(np.stack([noise() for _ in range(1000)])).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_the_power_of_colored_noise_falls_with_the_frequency_as_it_says(beta: float):
    noise = make_action_noise(ColoredNoise(sigma=0.3, beta=beta, length=256), (400,), 1)
    np.random.seed(0)
    draws = np.stack([noise() for _ in range(256)])  # 400 sequences, one in each dimension
    power = (np.abs(np.fft.rfft(draws, axis=0)) ** 2).mean(axis=1)[1:-1]
    slope = np.polyfit(np.log(np.fft.rfftfreq(256)[1:-1]), np.log(power), 1)[0]
    # The mean of 400 exponentially distributed powers has a deviation of 0.05: that of the slope is below 0.01.
    assert slope == pytest.approx(-beta, abs=0.04)
    # Of each sequence the mean square varies; slow noise has few waves, and so the deviation of the mean is up to 4 %.
    assert np.sqrt(np.mean(draws**2)) == pytest.approx(0.3, rel=0.1)


def test_colored_noise_begins_anew_with_an_episode_in_that_environment_alone():
    base = make_action_noise(ColoredNoise(sigma=0.3, length=10), (1,), 2)
    assert isinstance(base, ColoredActionNoise)
    noise = VectorizedActionNoise(base, 2)  # what SB3 makes of it
    np.random.seed(3)
    first = np.stack([noise() for _ in range(5)])
    assert not np.allclose(first[:, 0], first[:, 1])
    ahead = [each._ahead.copy() for each in noise.noises]
    noise.reset([0])
    now = noise()
    assert now[1] == ahead[1][0]
    assert now[0] != ahead[0][0]
    np.random.seed(3)
    again = VectorizedActionNoise(make_action_noise(ColoredNoise(sigma=0.3, length=10), (1,), 2), 2)
    assert np.array_equal(np.stack([again() for _ in range(5)]), first)
    assert len([again() for _ in range(20)]) == 20  # a longer episode goes on


def test_impossible_colored_noise_is_refused():
    with pytest.raises(ValueError, match="beta must be a finite number of at least 0, got -1"):
        ColoredNoise(beta=-1)
    with pytest.raises(ValueError, match="length must be a whole number of at least 2, got 1: the timesteps"):
        ColoredNoise(length=1)


@pytest.mark.parametrize(
    "setting",
    [0.2, NormalActionNoise(np.zeros(1), 0.2 * np.ones(1)), OrnsteinUhlenbeck(0.2), ColoredNoise(0.2)],
)
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


class SetNoise(BaseCallback):
    """Sets the noise at the fifth call, and remembers what the model holds at every later one."""

    def __init__(self, setting: Any) -> None:
        super().__init__()
        self.setting, self.held = setting, []

    def _on_step(self) -> bool:
        if self.n_calls == 5:
            self.model.action_noise = self.setting
        if self.n_calls > 5:
            self.held.append(self.model.action_noise)
        return True


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("setting", "scale"),
    [
        (0.05, 0.05),
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.array(0.25), 0.25),
        (th.tensor(0.5), 0.5),
        (lambda progress: 0.5, 0.5),
        (None, 0.0),
        (NormalActionNoise(np.zeros(1), 0.3 * np.ones(1)), 0.3),
        (OrnsteinUhlenbeck(sigma=0.4), 0.4),
        (ColoredNoise(sigma=0.4), 0.4),
        (OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.7 * np.ones(1)), 0.7),
    ],
)
def test_noise_set_in_a_callback_means_what_it_means_in_the_constructor(setting: Any, scale: float, n_envs: int):
    settings = {"learning_starts": 0, "buffer_size": 100, "batch_size": 4, "policy_kwargs": TINY}
    callback = SetNoise(setting)
    model = SimpleDDPG("MlpPolicy", DummyVecEnv([Bandit] * n_envs), **settings).learn(10 * n_envs, callback)
    built = SimpleDDPG("MlpPolicy", DummyVecEnv([Bandit] * n_envs), action_noise=setting, **settings).learn(1)
    assert len(callback.held) == 5
    assert all(noise is model.action_noise for noise in callback.held)  # kept, so that it can wander
    assert model._n_updates == 10
    assert type(model.action_noise) is type(built.action_noise)
    assert noise_scale(model.action_noise) == noise_scale(built.action_noise) == pytest.approx(scale)
    if scale:
        assert model.action_noise().reshape(-1, 1).shape == (n_envs, 1)


def test_a_schedule_set_in_a_callback_starts_at_the_progress_of_now():
    callback = SetNoise(lambda progress: progress)
    scales = []
    callback._on_rollout_start = lambda: scales.append(callback.model.action_noise.scale)
    SimpleDDPG("MlpPolicy", Bandit(), learning_starts=0, buffer_size=100, batch_size=4, policy_kwargs=TINY).learn(
        10, callback
    )
    assert scales == pytest.approx([0.1] * 5 + [0.5, 0.4, 0.3, 0.2, 0.1])  # set at the fifth of ten timesteps


def test_impossible_noise_set_later_is_refused_there_and_the_old_one_stays():
    model = SimpleDDPG("MlpPolicy", Bandit(), policy_kwargs=TINY)
    for wrong, error in ((-0.1, ValueError), ("0.1", TypeError), (np.bool_(True), TypeError)):
        with pytest.raises(error, match="action_noise must be"):
            model.action_noise = wrong
    assert model.action_noise.scale == 0.1


@pytest.mark.parametrize("n_envs", [1, 2])
def test_noise_set_on_an_object_is_that_object_as_in_sb3(n_envs: int):
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(1), np.ones(1)), n_envs)
    model = SimpleDDPG("MlpPolicy", DummyVecEnv([Bandit] * n_envs), policy_kwargs=TINY)
    model.action_noise = noise
    assert model.action_noise is noise


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


def normal(*shape: int) -> NormalActionNoise:
    return NormalActionNoise(np.zeros(shape), 0.1 * np.ones(shape))


class OfTheUser(ActionNoise):
    def __call__(self) -> np.ndarray:
        return np.full((1,), 0.25, np.float32)


@pytest.mark.parametrize(
    "noise",
    [
        normal(1),
        normal(2),
        NormalActionNoise(np.zeros(3), np.ones(2)),
        VectorizedActionNoise(normal(1), 1),
        OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)),
        OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(3)),  # one number a draw, three times as large or small
        OfTheUser(),
        VectorizedActionNoise(OfTheUser(), 1),
    ],
)
@pytest.mark.parametrize("when", ["built", "later", "load"])
def test_one_number_for_all_three_dimensions_is_refused(noise: ActionNoise, when: str, tmp_path):
    """SB3 adds the same number to all three."""
    settings = {"policy_kwargs": TINY, "buffer_size": 100}

    def learn() -> None:
        model = SimpleDDPG(
            "MlpPolicy", ThreeActions(), **settings, **({"action_noise": noise} if when == "built" else {})
        )
        if when == "later":
            model.action_noise = noise
        elif when == "load":
            model.save(tmp_path / "model")
            model = SimpleDDPG.load(tmp_path / "model", env=ThreeActions(), action_noise=noise)
        model.learn(1)  # a class of the user's is asked at the first timestep, not before

    with pytest.raises(ValueError, match=r"shape of one action, \(3,\), got .*NormalActionNoise\(np.zeros\(\(3,\)\)"):
        learn()


@pytest.mark.parametrize(
    "noise",
    [
        normal(3),
        NormalActionNoise(np.zeros(3), 0.1),
        NormalActionNoise(np.zeros(1), np.ones(3)),  # NumPy draws three numbers
        OrnsteinUhlenbeckActionNoise(np.zeros(3), np.ones(3)),
        OrnsteinUhlenbeckActionNoise(np.zeros(3), np.ones(1)),
        VectorizedActionNoise(normal(3), 1),
    ],
)
def test_one_number_for_each_dimension_is_taken(noise: ActionNoise):
    model = SimpleDDPG("MlpPolicy", ThreeActions(), action_noise=noise, learning_starts=0, policy_kwargs=TINY)
    model.gradient_steps = 0
    model.learn(2)
    deviations = model.replay_buffer.actions[1].flatten() - model.replay_buffer.actions[0].flatten()
    assert len({round(float(deviation), 6) for deviation in deviations}) == 3


def test_shape_is_checked_without_a_draw_or_a_copy():
    noise = OfTheUser()
    np.random.seed(4)
    expected = np.random.get_state()[1].tolist()
    assert make_action_noise(normal(3), (3,), 1)._mu.shape == (3,)
    assert make_action_noise(noise, (3,), 1) is noise
    assert np.random.get_state()[1].tolist() == expected


def without_dtype(noise: Any) -> Any:
    """As SB3 pickled it before version 1.8."""
    for each in [noise, *getattr(noise, "noises", []), getattr(noise, "base_noise", noise)]:
        vars(each).pop("_dtype", None)
    return noise


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: normal(1),
        lambda: OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)),
        lambda: VectorizedActionNoise(normal(1), 2),
        lambda: VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)), 2),
    ],
)
def test_noise_of_before_sb3_1_8_draws_what_it_draws_today(make: Any, n_envs: int):
    draws = []
    for noise in (make(), without_dtype(make())):
        model = SimpleDDPG(
            "MlpPolicy", DummyVecEnv([Bandit] * n_envs), action_noise=noise, learning_starts=0, buffer_size=100,
            batch_size=4, seed=0, policy_kwargs=TINY,
        )  # fmt: skip
        model.learn(20)
        draws.append(model.replay_buffer.actions.copy())
    assert np.array_equal(*draws)


def test_wandering_noise_of_before_sb3_1_8_goes_on_where_it_was_and_the_caller_s_stays_as_it_is():
    noise = without_dtype(VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)), 2))
    noise.noises[1].noise_prev = np.array([0.7])
    taken = make_action_noise(noise, (1,), 2)
    assert taken.noises[1].noise_prev.tolist() == [0.7]
    assert not hasattr(noise.noises[1], "_dtype")


def test_noise_for_actions_of_any_shape():
    space = spaces.Box(-1, 1, (2, 2), np.float32)
    assert make_action_noise(0.1, space.shape, 3)().shape == (3, 2, 2)
