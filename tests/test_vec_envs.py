"""Vectorised environments, SB3's wrappers for them, Gymnasium's wrappers and sb3-contrib's, under SimpleDDPG.

Not here: spaces (`test_spaces.py`), HER in vectorised environments (`test_replay_buffers.py`).
"""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    is_vecenv_wrapped,
)

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.exploration import OrnsteinUhlenbeck
from tests.environments import Chain
from tests.side_by_side import (
    CHANNEL_LAST,
    DICT_SPACES,
    SMALL_CNN,
    SMALL_COMBINED,
    VECTOR,
    Dummy,
    assert_same_agent,
    settings,
    train_side_by_side,
)


def vector_env(n_envs: int = 2, space: spaces.Space[Any] = VECTOR) -> DummyVecEnv:
    return DummyVecEnv([lambda: Dummy(space)] * n_envs)


# --- numbers of environments and of gradient steps -------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 2, 5, 16])
def test_vectorised_environments_train_like_sb3(n_envs):
    ours, theirs = train_side_by_side(
        lambda: vector_env(n_envs), total_timesteps=30 * n_envs, learning_starts=10 * n_envs, buffer_size=200 * n_envs
    )
    assert ours.n_envs == n_envs
    assert ours.replay_buffer.actions.shape == (200, n_envs, 2)
    # One update a step of all environments; 30 steps, 10 of them random.
    assert_same_agent(ours, theirs, n_updates=20)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_default_noise_draws_the_numbers_of_sb3s_normal_noise(n_envs):
    ours, theirs = train_side_by_side(lambda: vector_env(n_envs), total_timesteps=30 * n_envs)
    default = SimpleDDPG("MlpPolicy", vector_env(n_envs), **settings()).learn(30 * n_envs)  # action_noise=0.1
    np.testing.assert_array_equal(default.replay_buffer.actions, ours.replay_buffer.actions)
    assert_same_agent(default, theirs, n_updates=ours._n_updates)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_wandering_noise_starts_anew_in_each_environment_as_in_sb3(n_envs):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.5 * np.ones(2), theta=0.01, dt=1.0)
    make_env = lambda: vector_env(n_envs)  # noqa: E731
    ours, theirs = train_side_by_side(make_env, total_timesteps=30 * n_envs, action_noise=noise)
    assert_same_agent(ours, theirs, n_updates=ours._n_updates)
    described = OrnsteinUhlenbeck(sigma=0.5, theta=0.01, dt=1.0)
    model = SimpleDDPG("MlpPolicy", make_env(), **settings(action_noise=described)).learn(30 * n_envs)
    np.testing.assert_array_equal(model.replay_buffer.actions, ours.replay_buffer.actions)


def test_each_environment_gets_noise_of_its_own():
    model = SimpleDDPG("MlpPolicy", vector_env(3), **settings(action_noise=0.3, gradient_steps=0, learning_starts=0))
    th.nn.init.zeros_(model.actor.mu[-2].weight)
    th.nn.init.zeros_(model.actor.mu[-2].bias)  # the actor answers 0, so the buffer holds the noise
    model.learn(600)
    noise = model.replay_buffer.actions[-60:].reshape(-1, 3 * 2)  # buffer_size 200 // 3 environments = 66 rows
    # 60 draws of each of 6 numbers: standard error of a standard deviation 0.3 / sqrt(120) = 0.027, of a correlation
    # 1 / sqrt(60) = 0.13; margins of 4 of them.
    np.testing.assert_allclose(noise.std(axis=0), 0.3, atol=0.11)
    correlations = np.corrcoef(noise.T)[~np.eye(6, dtype=bool)]
    assert np.abs(correlations).max() < 0.52


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "gradient_steps", "n_updates"),
    [
        # learning starts when more than 16 timesteps are there; 48 in all.
        (1, 1, 1, 32),  # after timesteps 17 ... 48
        (4, 1, 1, 8),  # after 20, 24, ... 48
        (4, 1, -1, 8 * 4),  # each time as many as were collected
        (4, (2, "step"), -1, 4 * 8),  # after 24, 32, 40, 48; 2 steps of 4 environments
        (2, (4, "step"), 3, 4 * 3),  # after 24, 32, 40, 48
        (1, 8, -1, 4 * 8),  # after 24, 32, 40, 48
        (1, 12, 2, 3 * 2),  # after 24, 36, 48
    ],
)
def test_number_of_updates_follows_train_freq_and_gradient_steps(n_envs, train_freq, gradient_steps, n_updates):
    ours, theirs = train_side_by_side(
        lambda: vector_env(n_envs),
        total_timesteps=48,
        learning_starts=16,
        train_freq=train_freq,
        gradient_steps=gradient_steps,
    )
    assert_same_agent(ours, theirs, n_updates)


def test_zero_gradient_steps_only_collect():
    model = SimpleDDPG("MlpPolicy", vector_env(), **settings(gradient_steps=0))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(40)
    assert model._n_updates == 0
    assert model.replay_buffer.pos == 20  # 40 timesteps of 2 environments
    assert all(th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())


@pytest.mark.parametrize(("episodes", "gradient_steps", "n_updates"), [(1, -1, 5 * 3), (2, -1, 3 * 6), (2, 4, 3 * 4)])
def test_episodic_training_waits_for_whole_episodes(episodes, gradient_steps, n_updates):
    # Episodes of 3 steps. 24 timesteps; learning after more than 9 or 6: (1) at 12, 15, ... 24; (2) at 12, 18, 24.
    ours, theirs = train_side_by_side(
        Chain,
        total_timesteps=24,
        learning_starts=9 if episodes == 1 else 6,
        train_freq=(episodes, "episode"),
        gradient_steps=gradient_steps,
    )
    assert_same_agent(ours, theirs, n_updates)


def test_episodic_training_of_two_environments_is_refused():
    with pytest.raises(ValueError, match="episode"):
        SimpleDDPG("MlpPolicy", vector_env(2), **settings(train_freq=(1, "episode")))
    with pytest.raises(AssertionError, match="You must use only one env"):
        SimpleDDPG("MlpPolicy", vector_env(2), **settings(train_freq=(1, "episode")))


def test_train_freq_of_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="hours"):
        SimpleDDPG("MlpPolicy", Chain(), **settings(train_freq=(1, "hours")))


def test_make_vec_env_and_an_environments_name_work():
    by_name = SimpleDDPG("MlpPolicy", "Pendulum-v1", **settings()).learn(20)
    made = SimpleDDPG("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=1), **settings()).learn(20)
    assert by_name._n_updates == made._n_updates == 10
    np.testing.assert_array_equal(by_name.replay_buffer.observations, made.replay_buffer.observations)
    with pytest.raises(ValueError, match="NoSuchEnvironment"):
        SimpleDDPG("MlpPolicy", "NoSuchEnvironment-v0")


def test_defaults_learn_without_a_python_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = SimpleDDPG("MlpPolicy", "Pendulum-v1").learn(103)  # learning_starts=100: 3 updates
    assert model._n_updates == 3
    assert [str(warning.message) for warning in caught] == []


# Python 3.12 warns of every fork beside threads; PyTorch has threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start_method", ["fork", pytest.param(None, marks=pytest.mark.slow)])
def test_subprocesses_give_the_same_training_as_one_process(start_method):
    one_process = SimpleDDPG("MlpPolicy", DummyVecEnv([Chain, Chain]), **settings()).learn(40)
    env = SubprocVecEnv([Chain, Chain], start_method=start_method)
    try:
        model = SimpleDDPG("MlpPolicy", env, **settings()).learn(40)
        assert_same_agent(model, one_process, n_updates=15)  # after timesteps 12, 14, ... 40
        for ours, theirs in zip(model.policy.parameters(), one_process.policy.parameters(), strict=True):
            assert th.equal(ours, theirs)
    finally:
        env.close()


# --- SB3's wrappers of vectorised environments -----------------------------------------------------------------------


class FarObservations(Dummy):
    """Observations around 100 with a spread of 5, rewards around -50: without normalisation nothing is learned."""

    def __init__(self, seed_shift: int = 0) -> None:
        super().__init__(spaces.Box(90.0, 110.0, (3,), np.float32))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 100.0 * reward, terminated, truncated, info


def far_env(n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([FarObservations] * n_envs)


@pytest.mark.parametrize("norm_reward", [True, False])
@pytest.mark.parametrize("norm_obs", [True, False])
def test_vec_normalize_trains_like_sb3_and_the_buffer_keeps_raw_numbers(norm_obs, norm_reward):
    ours, theirs = train_side_by_side(
        lambda: VecNormalize(far_env(), norm_obs=norm_obs, norm_reward=norm_reward), total_timesteps=40
    )
    assert_same_agent(ours, theirs, n_updates=15)
    buffer = ours.replay_buffer
    assert (buffer.observations[:20] >= 90).all()  # the environment's own range, end of episode included
    assert (buffer.next_observations[:20] >= 90).all()
    assert buffer.rewards[:20].min() < -15  # -100 x mean square; normalised ones are clipped at -10
    batch = buffer.sample(64, env=ours.get_vec_normalize_env())
    assert (batch.observations.abs().max() < 10) == norm_obs
    assert (batch.rewards.min() >= -10) == norm_reward


def test_vec_normalize_of_some_keys_of_a_dict_trains_like_sb3():
    ours, theirs = train_side_by_side(
        lambda: VecNormalize(vector_env(2, DICT_SPACES["vectors"]), norm_obs_keys=["a"]),
        "MultiInputPolicy",
        total_timesteps=40,
    )
    assert_same_agent(ours, theirs, n_updates=15)
    assert ours.get_vec_normalize_env().obs_rms.keys() == {"a"}


def test_normaliser_swapped_by_set_env_is_the_one_that_batches_are_sampled_with():
    def swap_and_learn(algorithm: type[SimpleDDPG] | type[DDPG]) -> tuple[Any, VecNormalize]:
        first, second = VecNormalize(far_env()), VecNormalize(far_env(), clip_obs=0.5)
        model = algorithm("MlpPolicy", first, **settings(action_noise=None)).learn(20)
        second.seed(5)
        model.set_env(second)
        assert model.get_vec_normalize_env() is second
        sampled_with = []
        sample = model.replay_buffer.sample

        def spy(batch_size: int, env: VecNormalize | None = None) -> Any:
            sampled_with.append(env)
            return sample(batch_size, env=env)

        model.replay_buffer.sample = spy
        model.learn(20, reset_num_timesteps=False)
        del model.replay_buffer.sample
        assert len(sampled_with) == 10  # 20 timesteps of 2 environments, one update each step
        assert all(env is second for env in sampled_with)
        return model, second

    ours, normaliser = swap_and_learn(SimpleDDPG)
    theirs, _ = swap_and_learn(DDPG)
    assert ours.replay_buffer.sample(50, env=normaliser).observations.abs().max() <= 0.5
    assert_same_agent(ours, theirs, n_updates=15)  # after 12, ... 20, then after each of 22, ... 40


def test_taking_the_normaliser_away_by_set_env_samples_raw_observations():
    model = SimpleDDPG("MlpPolicy", VecNormalize(far_env()), **settings()).learn(20)
    model.set_env(far_env())
    assert model.get_vec_normalize_env() is None
    model.learn(10, reset_num_timesteps=False)
    assert model._n_updates == 5 + 5
    assert model.replay_buffer.observations[10:15].min() >= 90


def test_stacked_frames_train_like_sb3():
    ours, theirs = train_side_by_side(lambda: VecFrameStack(vector_env(), n_stack=4), total_timesteps=40)
    assert ours.actor.mu[0].in_features == 4 * 3
    assert_same_agent(ours, theirs, n_updates=15)
    stored = ours.replay_buffer.observations[:, 0]
    # The newest frame stands last; one step later it stands last but one.
    np.testing.assert_array_equal(stored[3, 6:9], stored[2, 9:12])


def test_stacked_images_train_like_sb3():
    ours, theirs = train_side_by_side(
        lambda: VecFrameStack(vector_env(2, CHANNEL_LAST), n_stack=2, channels_order="last"),
        "CnnPolicy",
        total_timesteps=16,
        policy_kwargs=SMALL_CNN,
    )
    assert ours.observation_space.shape == (2 * 3, 36, 36)
    assert_same_agent(ours, theirs, n_updates=3)


def test_images_are_transposed_once_whether_the_user_or_sb3_wraps_them():
    kwargs = {"policy_kwargs": SMALL_CNN}
    ours, theirs = train_side_by_side(
        lambda: VecTransposeImage(vector_env(2, CHANNEL_LAST)), "CnnPolicy", total_timesteps=16, **kwargs
    )
    by_sb3 = SimpleDDPG("CnnPolicy", vector_env(2, CHANNEL_LAST), **settings(**kwargs)).learn(16)
    for model in (ours, by_sb3):
        assert is_vecenv_wrapped(model.get_env(), VecTransposeImage)
        assert not is_vecenv_wrapped(model.get_env().venv, VecTransposeImage)
        assert model.observation_space.shape == (3, 36, 36)
    np.testing.assert_array_equal(ours.replay_buffer.observations, by_sb3.replay_buffer.observations)
    assert_same_agent(ours, theirs, n_updates=3)
    image = CHANNEL_LAST.sample()
    np.testing.assert_array_equal(ours.predict(image)[0], ours.predict(np.transpose(image, (2, 0, 1)))[0])


def test_vec_monitor_fills_the_episode_statistics(tmp_path):
    env = VecMonitor(DummyVecEnv([Chain, Chain]), str(tmp_path / "monitor.csv"))
    model = SimpleDDPG("MlpPolicy", env, **settings()).learn(30)
    env.close()
    assert model._n_updates == 10  # after 12, 14, ... 30
    # 15 steps of each environment, episodes of 3 steps with reward 1 each.
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer] == [(3.0, 3)] * 10
    assert load_results(str(tmp_path))["r"].tolist() == [3.0] * 10


def test_vec_check_nan_changes_nothing_and_stops_at_a_nan():
    ours, theirs = train_side_by_side(lambda: VecCheckNan(vector_env(), raise_exception=True), total_timesteps=40)
    plain = train_side_by_side(vector_env, total_timesteps=40)[0]
    assert_same_agent(ours, theirs, n_updates=15)
    np.testing.assert_array_equal(ours.replay_buffer.observations, plain.replay_buffer.observations)

    class Broken(Dummy):
        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, float("nan") if len(self.actions) == 13 else 0.0, terminated, truncated, info

    env = VecCheckNan(DummyVecEnv([lambda: Broken(VECTOR)]), raise_exception=True)
    model = SimpleDDPG("MlpPolicy", env, **settings())
    with pytest.raises(ValueError, match="found nan in rewards"):
        model.learn(40)
    assert model.num_timesteps == 12


def test_one_key_of_a_dict_can_be_extracted():
    ours, theirs = train_side_by_side(
        lambda: VecExtractDictObs(vector_env(2, DICT_SPACES["vectors"]), "b"), total_timesteps=30
    )
    assert ours.observation_space.shape == (2,)
    assert_same_agent(ours, theirs, n_updates=10)


def test_video_recorder_writes_a_film_and_changes_nothing(tmp_path):
    def pendulum() -> DummyVecEnv:
        return DummyVecEnv([lambda: gym.make("Pendulum-v1", render_mode="rgb_array")])

    plain = SimpleDDPG("MlpPolicy", pendulum(), **settings()).learn(20)
    env = VecVideoRecorder(pendulum(), str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=5)
    try:
        model = SimpleDDPG("MlpPolicy", env, **settings()).learn(20)
    finally:
        env.close()
    film = tmp_path / "rl-video-step-0-to-step-5.mp4"
    assert film.read_bytes()[4:8] == b"ftyp"  # the first box of an MP4 file
    assert_same_agent(model, plain, n_updates=10)


def test_several_wrappers_on_top_of_each_other_train_like_sb3():
    ours, theirs = train_side_by_side(
        lambda: VecNormalize(VecFrameStack(VecCheckNan(VecMonitor(far_env())), n_stack=2)), total_timesteps=40
    )
    assert len(ours.ep_info_buffer) == 4  # 20 steps of 2 environments, episodes of 7 steps
    assert_same_agent(ours, theirs, n_updates=15)


# --- wrappers of single environments ---------------------------------------------------------------------------------


def pendulum(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", **kwargs)


# Wrapped environment, and the shape of observations by hand.
WRAPPED = {
    "ClipAction": (lambda: wrappers.ClipAction(pendulum()), None),
    "RescaleAction": (lambda: wrappers.RescaleAction(pendulum(), np.float32(-0.5), np.float32(1.0)), (3,)),
    "RescaleObservation": (lambda: wrappers.RescaleObservation(pendulum(), np.float32(-1.0), np.float32(1.0)), (3,)),
    "TimeLimit": (lambda: wrappers.TimeLimit(pendulum(), 8), (3,)),
    "TimeAwareObservation": (lambda: wrappers.TimeAwareObservation(pendulum()), (4,)),
    "FlattenObservation": (lambda: wrappers.FlattenObservation(Dummy(DICT_SPACES["vectors"])), (5,)),
    "FrameStackObservation": (lambda: wrappers.FrameStackObservation(pendulum(), 2), (2, 3)),
    "DelayObservation": (lambda: wrappers.DelayObservation(pendulum(), 2), (3,)),
    "NormalizeObservation": (lambda: wrappers.NormalizeObservation(pendulum()), (3,)),
    "NormalizeReward": (lambda: wrappers.NormalizeReward(pendulum()), (3,)),
    "TransformReward": (lambda: wrappers.TransformReward(pendulum(), lambda reward: 0.1 * reward), (3,)),
    "RecordEpisodeStatistics": (lambda: wrappers.RecordEpisodeStatistics(pendulum()), (3,)),
    "StickyAction": (lambda: wrappers.StickyAction(pendulum(), 0.5), (3,)),
    "TimeFeatureWrapper": (lambda: TimeFeatureWrapper(pendulum()), (4,)),
}


@pytest.mark.parametrize("name", [name for name in WRAPPED if name != "ClipAction"])
def test_wrapper_of_one_environment_trains_like_sb3(name):
    make_env, shape = WRAPPED[name]
    ours, theirs = train_side_by_side(make_env)
    assert ours.observation_space.shape == shape
    assert_same_agent(ours, theirs, n_updates=20)


def test_clip_action_makes_the_space_unbounded_and_is_refused():
    make_env, _ = WRAPPED["ClipAction"]
    with pytest.raises(ValueError, match="finite lower and upper bound"):
        SimpleDDPG("MlpPolicy", make_env(), **settings())


def test_filtered_dict_trains_like_sb3():
    ours, theirs = train_side_by_side(
        lambda: wrappers.FilterObservation(Dummy(DICT_SPACES["all_kinds"]), ["vector", "binary"]),
        "MultiInputPolicy",
        policy_kwargs=SMALL_COMBINED,
    )
    assert ours.actor.mu[0].in_features == 3 + 2
    assert_same_agent(ours, theirs, n_updates=20)


def test_rescaled_actions_reach_the_inner_environment_in_its_own_range():
    inner = Dummy(VECTOR, spaces.Box(-2.0, 2.0, (1,), np.float32))
    env = wrappers.RescaleAction(inner, np.float32(0.0), np.float32(1.0))
    model = SimpleDDPG("MlpPolicy", env, **settings(action_noise=1.0)).learn(30)
    stored = model.replay_buffer.actions[:30, 0]
    # Two maps, [-1, 1] to [0, 1] to [-2, 2], are one: doubling.
    np.testing.assert_allclose(np.stack(inner.actions), 2.0 * stored, rtol=0, atol=1e-6)


def test_time_feature_counts_down_in_the_stored_observations():
    env = TimeFeatureWrapper(wrappers.TimeLimit(Dummy(VECTOR), 100), max_steps=100)
    model = SimpleDDPG("MlpPolicy", env, **settings()).learn(14)
    assert model._n_updates == 4
    # Episodes of 7 steps: what remains is 1 - step / 100.
    expected = [1 - step / 100 for step in range(7)] * 2
    np.testing.assert_allclose(model.replay_buffer.observations[:14, 0, -1], expected, rtol=0, atol=1e-6)
    assert model.replay_buffer.next_observations[6, 0, -1] == pytest.approx(0.93)  # the last one, not the new first


def test_episode_statistics_of_sb3s_monitor_are_kept_under_gymnasiums_wrappers():
    model = SimpleDDPG("MlpPolicy", wrappers.TimeLimit(Chain(), 2), **settings()).learn(12)
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer] == [(2.0, 2)] * 6  # cut off after 2 of 3 steps
    assert model.replay_buffer.timeouts[:4, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_set_env_with_another_number_of_environments_is_refused():
    model = SimpleDDPG("MlpPolicy", vector_env(2), **settings())
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(vector_env(3))
