"""Every observation and action space that SB3's DDPG takes, trained for real updates and compared with SB3's DDPG.

Not here: vectorised environments (`test_vec_envs.py`) and the kinds of replay buffers (`test_replay_buffers.py`).
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvBox, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecExtractDictObs,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_simple_ddpg import SimpleDDPG
from tests.side_by_side import (
    CHANNEL_FIRST,
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

# Space, and the number of features that the networks see, by hand (one-hot for Discrete and each of MultiDiscrete).
FLAT_SPACES = {
    "box": (VECTOR, 3),
    "box_of_two_axes": (spaces.Box(-1.0, 1.0, (3, 2), np.float32), 6),
    "box_float64": (spaces.Box(-1.0, 1.0, (3,), np.float64), 3),
    "box_unbounded": (spaces.Box(-np.inf, np.inf, (3,), np.float32), 3),
    "box_of_integers": (spaces.Box(0, 9, (3,), np.int64), 3),
    "discrete": (spaces.Discrete(5), 5),
    "multi_discrete": (spaces.MultiDiscrete([2, 4]), 6),
    "multi_binary": (spaces.MultiBinary(4), 4),
    "multi_binary_of_two_axes": (spaces.MultiBinary([2, 3]), 6),
    "image_as_vector": (CHANNEL_FIRST, 1 * 36 * 36),
}


@pytest.mark.parametrize("name", FLAT_SPACES)
def test_flat_observation_space_trains_like_sb3(name):
    space, n_features = FLAT_SPACES[name]
    ours, theirs = train_side_by_side(lambda: Dummy(space))
    assert ours.actor.mu[0].in_features == n_features
    assert ours.critic.qf0[0].in_features == n_features + 2  # state and action enter together
    assert_same_agent(ours, theirs, n_updates=20)  # 30 timesteps, 10 of them random


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", DICT_SPACES)
def test_dict_observation_space_trains_like_sb3(name, shared):
    kwargs = {**SMALL_COMBINED, "share_features_extractor": shared}
    ours, theirs = train_side_by_side(
        lambda: Dummy(DICT_SPACES[name]), "MultiInputPolicy", total_timesteps=16, policy_kwargs=kwargs
    )
    assert (ours.critic.features_extractor is ours.actor.features_extractor) == shared
    assert_same_agent(ours, theirs, n_updates=6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("space", [CHANNEL_FIRST, CHANNEL_LAST], ids=["channel_first", "channel_last"])
def test_cnn_policy_trains_like_sb3_and_moves_its_extractors(space, shared):
    kwargs = {**SMALL_CNN, "share_features_extractor": shared}
    make_env = lambda: Dummy(space)  # noqa: E731
    ours, theirs = train_side_by_side(make_env, "CnnPolicy", total_timesteps=16, policy_kwargs=kwargs)
    untrained = SimpleDDPG("CnnPolicy", make_env(), **settings(policy_kwargs=kwargs))
    for network in ("actor", "critic", "actor_target", "critic_target"):
        extractor = getattr(ours, network).features_extractor
        assert isinstance(extractor, NatureCNN)
        before = getattr(untrained, network).features_extractor.state_dict()
        assert not th.equal(extractor.state_dict()["cnn.0.weight"], before["cnn.0.weight"]), network
    assert_same_agent(ours, theirs, n_updates=6)


@pytest.mark.parametrize("channel_first", [False, True])
def test_images_of_sb3s_fake_environment_train_like_sb3(channel_first):
    def make_env() -> gym.Env[Any, Any]:
        env = FakeImageEnv(screen_height=40, screen_width=36, n_channels=2, discrete=False, channel_first=channel_first)
        env.observation_space.seed(0)
        return env

    ours, theirs = train_side_by_side(make_env, "CnnPolicy", total_timesteps=14, policy_kwargs=SMALL_CNN)
    assert ours.observation_space.shape == (2, 40, 36)  # a channel-last image is transposed on the way in
    assert_same_agent(ours, theirs, n_updates=4)


@pytest.mark.parametrize("channel_last", [False, True])
def test_grid_world_of_images_and_vectors_trains_like_sb3(channel_last):
    ours, theirs = train_side_by_side(
        lambda: SimpleMultiObsEnv(discrete_actions=False, channel_last=channel_last),
        "MultiInputPolicy",
        total_timesteps=14,
        policy_kwargs=SMALL_COMBINED,
    )
    assert ours.replay_buffer.observations["img"].shape == (200, 1, 1, 64, 64)
    assert ours.replay_buffer.observations["vec"].dtype == np.float64
    assert_same_agent(ours, theirs, n_updates=4)


def test_images_already_in_zero_to_one_are_not_divided_again():
    space = spaces.Box(0.0, 1.0, (1, 36, 36), np.float32)
    kwargs = {
        "net_arch": [16],
        "normalize_images": False,
        "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True},
    }
    ours, theirs = train_side_by_side(lambda: Dummy(space), "CnnPolicy", total_timesteps=14, policy_kwargs=kwargs)
    assert_same_agent(ours, theirs, n_updates=4)


def test_images_are_divided_by_255_and_nothing_else_is():
    model = SimpleDDPG("MlpPolicy", Dummy(CHANNEL_FIRST), **settings(policy_kwargs={"net_arch": []}))
    white = th.full((1, 1, 36, 36), 255, dtype=th.uint8)
    features = model.actor.extract_features(white, model.actor.features_extractor)
    assert th.equal(features, th.ones(1, 36 * 36))  # 255 / 255 = 1 in each pixel
    model = SimpleDDPG("MlpPolicy", Dummy(spaces.Box(0, 255, (3,), np.uint8)), **settings())
    features = model.actor.extract_features(th.full((1, 3), 255, dtype=th.uint8), model.actor.features_extractor)
    assert th.equal(features, th.full((1, 3), 255.0))  # three numbers are no image


class OneKey(gym.ObservationWrapper[Any, Any, Any]):
    """The same observation under the key "x"."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"x": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": observation}


def test_flat_box_and_one_key_dict_give_the_same_training():
    flat = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings()).learn(30)
    keyed = SimpleDDPG("MultiInputPolicy", OneKey(Dummy(VECTOR)), **settings()).learn(30)
    assert flat._n_updates == keyed._n_updates == 20
    np.testing.assert_array_equal(flat.replay_buffer.observations, keyed.replay_buffer.observations["x"])
    for ours, theirs in zip(flat.policy.parameters(), keyed.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


# --- action spaces ---------------------------------------------------------------------------------------------------

ASYMMETRIC = spaces.Box(np.array([-1.0, 0.0, -10.0], np.float32), np.array([3.0, 1.0, -8.0], np.float32))
ACTION_SPACES = {
    "scalar": spaces.Box(-2.0, 2.0, (), np.float32),
    "one": spaces.Box(-1.0, 1.0, (1,), np.float32),
    "matrix": spaces.Box(-1.0, 2.0, (2, 3), np.float32),
    "three_axes": spaces.Box(0.0, 1.0, (2, 1, 2), np.float32),
    "float64": spaces.Box(-1.0, 2.0, (2,), np.float64),
    "asymmetric": ASYMMETRIC,
    "asymmetric_float64": spaces.Box(ASYMMETRIC.low.astype(float), ASYMMETRIC.high.astype(float), dtype=np.float64),
}


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_box_action_space_trains_like_sb3(name):
    # SB3's noise cannot draw scalars: compared without noise there (ours can, see the next test).
    changes = {"action_noise": None} if name == "scalar" else {}
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR, ACTION_SPACES[name]), **changes)
    assert_same_agent(ours, theirs, n_updates=20)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_environment_gets_what_the_buffer_stores_mapped_to_its_range(name):
    space = ACTION_SPACES[name]
    env = Dummy(VECTOR, space)
    model = SimpleDDPG("MlpPolicy", env, **settings(action_noise=1.0)).learn(
        30
    )  # noise at its rail, both parts clipped
    assert model._n_updates == 20
    stored = model.replay_buffer.actions[:30, 0]
    assert stored.dtype == np.float32
    assert np.abs(stored).max() <= 1.0
    assert np.abs(stored[10:]).max() == 1.0  # the noise reached the bound, and was clipped there
    for action, scaled in zip(env.actions, stored, strict=True):
        assert action.shape == space.shape
        assert (action >= space.low - 1e-6).all()
        assert (action <= space.high + 1e-6).all()
        # low + (high - low) (a + 1) / 2; single precision at a magnitude of 10
        expected = space.low + 0.5 * (scaled.reshape(space.shape) + 1.0) * (space.high - space.low)
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 0.5493061443340549, 100.0], ids=["middle", "three_quarters", "high"])
def test_predict_maps_each_dimension_once_to_its_own_range(bias):
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR, ASYMMETRIC), **settings())
    last = model.actor.mu[-2]
    th.nn.init.zeros_(last.weight)
    th.nn.init.constant_(last.bias, bias)  # tanh: 0, 1/2 (its inverse is 0.5493), 1
    expected = {
        0.0: [1.0, 0.5, -9.0],  # low + 1/2 (high - low)
        100.0: [3.0, 1.0, -8.0],  # low + 1 (high - low)
    }.get(bias, [2.0, 0.75, -8.5])  # low + 3/4 (high - low)
    action, state = model.predict(np.zeros(3, np.float32))
    assert state is None
    np.testing.assert_allclose(action, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_predict_keeps_shape_and_dtype_of_the_action_space(name):
    space = ACTION_SPACES[name]
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR, space), **settings(action_noise=0.5))
    reference = DDPG("MlpPolicy", Dummy(VECTOR, space), **settings())
    observations = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    one, _ = model.predict(observations[0])
    batch, _ = model.predict(observations)
    assert np.shape(one) == space.shape
    assert batch.shape == (4, *space.shape)
    assert batch.dtype == one.dtype == space.dtype
    assert space.contains(np.asarray(one))
    # One matrix product for a batch, another for a single row: equal up to the last bits.
    np.testing.assert_allclose(one, batch[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(batch, reference.predict(observations)[0])


def test_predict_adds_no_noise():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(action_noise=1.0))
    observation = np.full(3, 0.5, np.float32)
    first, _ = model.predict(observation, deterministic=False)
    second, _ = model.predict(observation, deterministic=False)
    third, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize(
    "make_env",
    [lambda: Dummy(DICT_SPACES["all_kinds"]), lambda: Dummy(CHANNEL_LAST), lambda: Dummy(spaces.Discrete(5))],
    ids=["dict", "image", "discrete"],
)
def test_predict_takes_one_observation_or_a_batch_as_the_environment_gives_it(make_env):
    env = make_env()
    policy, kwargs = "MlpPolicy", {"net_arch": [16]}
    if isinstance(env.observation_space, spaces.Dict):
        policy, kwargs = "MultiInputPolicy", SMALL_COMBINED
    model = SimpleDDPG(policy, env, **settings(policy_kwargs=kwargs))
    reference = DDPG(policy, make_env(), **settings(policy_kwargs=kwargs))
    one = env.observation_space.sample()
    batch = {k: np.stack([v, v]) for k, v in one.items()} if isinstance(one, dict) else np.stack([one, one])
    assert model.predict(one)[0].shape == (2,)
    assert model.predict(batch)[0].shape == (2, 2)
    np.testing.assert_array_equal(model.predict(one)[0], reference.predict(one)[0])
    np.testing.assert_array_equal(model.predict(batch)[0], reference.predict(batch)[0])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(3), "DQN"),
        (spaces.MultiDiscrete([2, 2]), "Box"),
        (spaces.MultiBinary(2), "Box"),
        (spaces.Box(0, 5, (2,), np.int64), "real numbers"),
        (spaces.Box(-np.inf, 1.0, (2,), np.float32), "finite lower and upper bound"),
        (spaces.Box(-1.0, 1.0, (2,), np.longdouble), "dtype=np.float64"),
        (spaces.Box(-1.0, 1.0, (0,), np.float32), "nothing to learn"),
        (spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float64), "below the upper one"),
    ],
    ids=["discrete", "multi_discrete", "multi_binary", "integers", "unbounded", "longdouble", "empty", "no_width"],
)
@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_action_space_that_ddpg_cannot_use_is_refused(space, words, error):
    with pytest.raises(error, match=words):
        SimpleDDPG("MlpPolicy", Dummy(VECTOR, space), **settings())


@pytest.mark.parametrize(
    ("space", "policy", "error"),
    [
        (spaces.Dict({"inner": spaces.Dict({"x": VECTOR})}), "MultiInputPolicy", NotImplementedError),
        (spaces.Tuple((VECTOR, VECTOR)), "MlpPolicy", NotImplementedError),
        (spaces.Dict({"x": VECTOR}), "MlpPolicy", ValueError),
        (spaces.Dict({"x": VECTOR}), "CnnPolicy", ValueError),
    ],
    ids=["nested_dict", "tuple", "dict_for_mlp", "dict_for_cnn"],
)
def test_observation_space_that_sb3_refuses_is_refused_with_the_same_error(space, policy, error):
    for algorithm in (SimpleDDPG, DDPG):
        with pytest.raises(error):
            algorithm(policy, Dummy(space), **settings())


def cure_of(refused: pytest.ExceptionInfo[Exception], begin: str) -> str:
    """The line of code in a message that begins so: up to the bracket that closes it."""
    text = str(refused.value)
    text = text[text.index(begin) :]
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign in ")]}":
            return text[: place + 1]
    raise ValueError(text)


HUGE = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-HUGE, HUGE, np.float32), (0.0, HUGE, np.float32), (-0.7 * HUGE, 0.7 * HUGE, np.float32),
        (-np.inf, np.inf, np.float32), (-1e300, 1e300, np.float64), (-1.7e308, 1.7e308, np.float64),
        (-65504.0, 65504.0, np.float16), (-1.0, np.inf, np.float64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_action_bounds_that_say_nothing_are_refused_with_a_wrapper_that_trains(low, high, dtype, shape):
    class Recorder(Dummy):
        def step(self, action: np.ndarray) -> Any:
            seen.append(action)
            return super().step(action)

    seen: list[np.ndarray] = []
    env = Recorder(VECTOR, spaces.Box(low, high, shape, dtype))
    with pytest.raises(ValueError, match=r"(?s)low=\[.*high=\[.*the one that the task needs") as refused:
        SimpleDDPG("MlpPolicy", env, **settings())
    assert f"low={env.action_space.low}, high={env.action_space.high}" in str(refused.value)
    cured = eval(cure_of(refused, "gymnasium.wrappers.TransformAction("), {"gymnasium": gym, "env": env})
    model = SimpleDDPG("MlpPolicy", cured, **settings()).learn(30)
    assert model._n_updates == 20
    assert len(seen) == 30
    assert all(action.shape == shape and np.abs(action).max() <= 1 for action in seen)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Box(295, 302, (1,), np.float32),
     spaces.Box(-1.0, 1.0, (2,), np.float16), spaces.Box(1e-8, 2e-8, (1,), np.float32)],
)  # fmt: skip
def test_action_bounds_that_mean_something_are_taken_however_far_they_are(space):
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR, space), **settings()).learn(11)
    assert model._n_updates == 1
    action = model.predict(np.zeros(3, np.float32))[0]
    assert (space.low <= action).all()
    assert (action <= space.high).all()


FLATTENED = {
    "discrete_from_one": (spaces.Discrete(3, start=1), 3),
    "discrete_from_minus_one": (spaces.Discrete(3, start=-1), 3),
    "multi_discrete_with_start": (spaces.MultiDiscrete([2, 3], start=[1, 0]), 5),
    "multi_discrete_of_two_axes": (spaces.MultiDiscrete([[2, 3], [4, 5]]), 14),
    "multi_discrete_of_two_axes_with_start": (spaces.MultiDiscrete([[2, 3]], start=[[1, -4]]), 5),
    "scalar": (spaces.Box(-1.0, 1.0, (), np.float32), 1),
    "tuple": (spaces.Tuple((VECTOR, spaces.Discrete(2))), 5),
    "text": (spaces.Text(4), 4),
    "one_of": (spaces.OneOf((VECTOR, spaces.Discrete(2))), 4),
    "key_with_start": (spaces.Dict({"a": spaces.Discrete(3, start=1), "b": VECTOR}), 6),
    "key_of_two_axes": (spaces.Dict({"a": spaces.MultiDiscrete([[2, 3]])}), 5),
    "key_that_is_a_scalar": (spaces.Dict({"a": spaces.Box(-1.0, 1.0, (), np.float64), "b": VECTOR}), 4),
    "key_that_is_a_tuple": (spaces.Dict({"a": spaces.Tuple((VECTOR, VECTOR))}), 6),
    "key_that_is_text": (spaces.Dict({"a": spaces.Text(3), "b": VECTOR}), 6),
    "nested_dict": (spaces.Dict({"inner": spaces.Dict({"x": VECTOR, "y": spaces.Discrete(2)})}), 5),
}


@pytest.mark.parametrize("name", FLATTENED)
def test_observation_space_that_sb3_cannot_encode_is_refused_with_a_wrapper_that_trains(name):
    space, n_features = FLATTENED[name]
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match="makes one vector of it") as refused:
        SimpleDDPG(policy, Dummy(space), **settings())
    env = eval(cure_of(refused, "gymnasium.wrappers."), {"gymnasium": gym, "env": Dummy(space)})
    model = SimpleDDPG("MlpPolicy", env, **settings()).learn(30)
    assert model._n_updates == 20
    assert model.actor.mu[0].in_features == n_features


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Sequence(VECTOR), "no fixed size"), (spaces.Graph(VECTOR, None), "no fixed size"),
        (spaces.Dict({"a": spaces.Sequence(VECTOR)}), "Key 'a' of the observation space has no fixed size"),
        (spaces.Dict({"a": VECTOR, "b": spaces.Box(0, 1, (0,))}), "Key 'b' of .* holds no number.* leave this key out"),
        (spaces.Box(-1, 1, (3,), np.longdouble), "no numbers like float128.* build the Box with dtype=np.float64"),
    ],
)  # fmt: skip
def test_observation_space_without_a_size_or_dtype_is_refused(space, words):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=words):
        SimpleDDPG(policy, Dummy(space), **settings())


class Longer(Dummy):
    """Observations of more digits than its space has."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0].astype(np.longdouble), {}

    def step(self, action: np.ndarray) -> Any:
        observation, *others = super().step(action)
        return observation.astype(np.longdouble), *others


def test_long_doubles_are_taken_where_the_space_says_float64():
    model = SimpleDDPG("MlpPolicy", Longer(spaces.Box(-1, 1, (3,), np.float64)), **settings()).learn(20)
    assert model._n_updates == 10


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 1, (0,)), spaces.Box(0, 1, (0, 3)), spaces.Dict({}), spaces.MultiDiscrete([])]
)
def test_nothing_to_see_is_refused_with_a_wrapper_that_trains(space):
    env = Dummy(space)
    with pytest.raises(ValueError, match="where there is nothing to see, show a zero") as refused:
        SimpleDDPG("MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", env, **settings())
    cured = eval(cure_of(refused, "gymnasium.wrappers."), {"gymnasium": gym, "np": np, "env": env})
    model = SimpleDDPG("MlpPolicy", cured, **settings()).learn(20)
    assert model._n_updates == 10
    assert not model.replay_buffer.observations.any()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a.b"], ["a_b_"]), (["type", "x"], ["type_", "x"]), (["training"], ["training_"]),
        (["forward"], ["forward_"]), ([""], ["_"]), (["a.b", "a_b_"], ["a_b_", "a_b__"]),
        (["keys", "to", "parameters"], ["keys_", "parameters_", "to_"]),
        (["a.b", "a_b"], ["a_b", "a_b_"]), (["type", "type_"], ["type_", "type__"]),
    ],
)  # fmt: skip
def test_keys_that_pytorch_cannot_name_a_layer_after_are_refused_with_a_wrapper_that_trains(keys, expected):
    env = Dummy(spaces.Dict(dict.fromkeys(keys, VECTOR)))
    with pytest.raises(ValueError, match="give them other names") as refused:
        SimpleDDPG("MultiInputPolicy", env, **settings())
    names: dict[str, Any] = {"gymnasium": gym, "env": env}
    text = str(refused.value)
    for line in text[text.index("rename = lambda") :].rstrip(".").split("; "):
        exec(line, names)
    model = SimpleDDPG("MultiInputPolicy", names["env"], **settings()).learn(20)
    assert model._n_updates == 10
    assert sorted(model.replay_buffer.observations) == expected


def test_an_extractor_of_the_user_s_own_may_read_any_key():
    class Own(FlattenExtractor):
        def __init__(self, observation_space: spaces.Dict) -> None:
            super().__init__(observation_space["a.b"])

        def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
            return super().forward(observations["a.b"])

    kwargs = {"net_arch": [16], "features_extractor_class": Own}
    env = Dummy(spaces.Dict({"a.b": VECTOR, "type": VECTOR}))
    assert SimpleDDPG("MultiInputPolicy", env, **settings(policy_kwargs=kwargs)).learn(20)._n_updates == 10


@pytest.mark.parametrize(("side", "fits"), [(35, False), (36, True)])
@pytest.mark.parametrize("keyed", [False, True])
def test_images_too_small_for_the_cnn_are_refused_with_a_wrapper_that_trains(side, fits, keyed):
    image = spaces.Box(0, 255, (side, 40, 3), np.uint8)
    policy, space = ("MultiInputPolicy", spaces.Dict({"image": image})) if keyed else ("CnnPolicy", image)
    small = settings(policy_kwargs=SMALL_COMBINED if keyed else SMALL_CNN)
    if fits:
        assert SimpleDDPG(policy, Dummy(space), **small).learn(12)._n_updates == 2
        return
    with pytest.raises(ValueError, match=r"at least 36 x 36 pixels, got \(3, 35, 40\)") as refused:
        SimpleDDPG(policy, Dummy(space), **small)
    env = eval(cure_of(refused, "gymnasium.wrappers."), {"gymnasium": gym, "env": Dummy(space)})
    assert SimpleDDPG("MlpPolicy", env, **settings()).learn(12)._n_updates == 2


IMAGE_AND_VECTOR = spaces.Dict({"image": CHANNEL_LAST, "vector": VECTOR})


@pytest.mark.parametrize(
    ("space", "normalize"), [(CHANNEL_LAST, {"norm_obs": False}), (IMAGE_AND_VECTOR, {"norm_obs_keys": ["vector"]}),
                             (IMAGE_AND_VECTOR, {"norm_obs": False})],
)  # fmt: skip
def test_images_transposed_outside_vec_normalize_are_refused_with_the_order_that_trains(space, normalize):
    policy, kwargs = ("CnnPolicy", SMALL_CNN) if space is CHANNEL_LAST else ("MultiInputPolicy", SMALL_COMBINED)
    small = settings(policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="transposed outside VecNormalize") as refused:
        SimpleDDPG(policy, VecNormalize(DummyVecEnv([lambda: Dummy(space)]), **normalize), **small)
    names = {"VecNormalize": VecNormalize, "VecTransposeImage": VecTransposeImage}
    env = eval(cure_of(refused, "VecNormalize(VecT"), {**names, "env": DummyVecEnv([lambda: Dummy(space)])})
    model = SimpleDDPG(policy, env, **small).learn(14)
    assert model._n_updates == 4
    stored = model.replay_buffer.observations
    assert (stored["image"] if isinstance(stored, dict) else stored).shape == (200, 1, 3, 36, 36)
    assert (env.norm_obs, env.norm_obs_keys) == (normalize.get("norm_obs", True), normalize.get("norm_obs_keys"))


def test_any_wrapper_around_vec_normalize_that_changes_shapes_is_refused():
    env = VecNormalize(DummyVecEnv([lambda: Dummy(spaces.Dict({"a": VECTOR}))]))
    with pytest.raises(ValueError, match="put VecNormalize around VecExtractDictObs"):
        SimpleDDPG("MlpPolicy", VecExtractDictObs(env, "a"), **settings())
    inner = VecExtractDictObs(DummyVecEnv([lambda: Dummy(spaces.Dict({"a": VECTOR}))]), "a")
    assert SimpleDDPG("MlpPolicy", VecNormalize(inner), **settings()).learn(20)._n_updates == 10
    assert SimpleDDPG("MlpPolicy", VecMonitor(VecNormalize(inner)), **settings()).learn(20)._n_updates == 10


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_cnn_policy_refuses_what_is_no_image(error):
    with pytest.raises(error, match="CnnPolicy"):
        SimpleDDPG("CnnPolicy", Dummy(VECTOR), **settings())


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_multi_input_policy_refuses_what_is_no_dict(error):
    with pytest.raises(error, match="MlpPolicy"):
        SimpleDDPG("MultiInputPolicy", Dummy(VECTOR), **settings())


def test_two_critics_are_refused_and_one_is_accepted():
    ours, theirs = train_side_by_side(IdentityEnvBox, policy_kwargs={"net_arch": [16], "n_critics": 1})
    assert_same_agent(ours, theirs, n_updates=20)
    with pytest.raises(ValueError, match="TD3"):
        SimpleDDPG("MlpPolicy", IdentityEnvBox(), **settings(policy_kwargs={"n_critics": 2}))


# --- networks and optimizers on top of the spaces --------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": {"pi": [8], "qf": [16, 8]}},
        {"net_arch": [16], "activation_fn": th.nn.Tanh},
        {"net_arch": [16], "features_extractor_class": FlattenExtractor, "share_features_extractor": True},
        {"net_arch": [16], "optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
        {"net_arch": [16], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"net_arch": [16], "optimizer_class": th.optim.RMSprop},
        {"net_arch": [16], "optimizer_kwargs": {"foreach": True}},
    ],
    ids=["no_layer", "apart", "tanh", "shared_flatten", "adamw", "sgd", "rmsprop", "foreach"],
)
def test_policy_kwargs_train_like_sb3(policy_kwargs):
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR), policy_kwargs=policy_kwargs)
    assert isinstance(ours.actor.optimizer, type(theirs.actor.optimizer))
    assert_same_agent(ours, theirs, n_updates=20)


def test_no_hidden_layer_leaves_two_linear_maps():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs={"net_arch": []}))
    assert [type(layer) for layer in model.actor.mu] == [th.nn.Linear, th.nn.Tanh]
    assert [type(layer) for layer in model.critic.qf0] == [th.nn.Linear]
    # actor 3 x 2 + 2, critic (3 + 2) x 1 + 1
    assert sum(p.numel() for p in model.actor.parameters()) == 8
    assert sum(p.numel() for p in model.critic.parameters()) == 6


@pytest.mark.parametrize("schedule", [0.02, lambda progress_remaining: 0.02 * progress_remaining])
def test_learning_rate_is_a_number_or_a_schedule(schedule):
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR), learning_rate=schedule, total_timesteps=40)
    # The last update of a schedule runs at timestep 40 of 40, where nothing remains.
    expected = 0.0 if callable(schedule) else 0.02
    for optimizer in (ours.actor.optimizer, ours.critic.optimizer, theirs.actor.optimizer):
        assert optimizer.param_groups[0]["lr"] == expected
    assert_same_agent(ours, theirs, n_updates=30)


class LinearExtractor(FlattenExtractor):
    """One linear layer; its weights show which loss moved them."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(super().forward(observations))


def shared_model(**changes: Any) -> SimpleDDPG:
    kwargs = {"net_arch": [16], "features_extractor_class": LinearExtractor, "share_features_extractor": True}
    return SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs, gradient_steps=0, **changes))


def test_shared_extractor_learns_from_the_actor_loss_alone():
    model = shared_model(learning_rate=0.0, critic_learning_rate=0.01).learn(20)  # the actor stands still
    weight, head = model.actor.features_extractor.linear.weight, model.critic.qf0[0].weight
    before, head_before = weight.clone(), head.clone()
    model.train(gradient_steps=5, batch_size=8)
    assert th.equal(weight, before)
    assert not th.equal(head, head_before)
    model = shared_model(learning_rate=0.01, critic_learning_rate=0.0).learn(20)  # the critic stands still
    weight = model.actor.features_extractor.linear.weight
    before = weight.clone()
    model.train(gradient_steps=5, batch_size=8)
    assert not th.equal(weight, before)


def test_shared_target_extractor_moves_twice_a_step():
    model = shared_model(tau=0.25).learn(20)
    extractor, target = model.actor.features_extractor, model.actor_target.features_extractor
    assert model.critic_target.features_extractor is target
    old_target = target.linear.weight.clone()
    model.train(gradient_steps=1, batch_size=8)
    # Two moves of 1/4: what is left of the old target is 3/4 x 3/4 = 9/16.
    expected = 9 / 16 * old_target + 7 / 16 * extractor.linear.weight
    th.testing.assert_close(target.linear.weight, expected, rtol=0, atol=1e-6)


def test_critic_optimizer_holds_the_shared_extractor_as_in_sb3():
    kwargs = {"net_arch": [16], "features_extractor_class": LinearExtractor, "share_features_extractor": True}
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR), policy_kwargs=kwargs)
    held = {id(parameter) for parameter in ours.critic.optimizer.param_groups[0]["params"]}
    assert id(ours.actor.features_extractor.linear.weight) in held
    assert len(ours.critic.optimizer.state_dict()["state"]) == len(theirs.critic.optimizer.state_dict()["state"])
    assert_same_agent(ours, theirs, n_updates=20)
