"""A file answers as the model does: raw observation in, environment action out, in ONNX and in safetensors.

Not here: files that are damaged or hostile (`test_policy_file.py`), and how fast files answer (`test_latency.py`).
"""

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from torch import nn

from sb3_simple_ddpg import DDPGPolicy, SimpleDDPG
from sb3_simple_ddpg.export import export_onnx, load_policy, save_policy
from sb3_simple_ddpg.export import source as export
from sb3_simple_ddpg.policies import Actor
from tests.environments import Bandit
from tests.side_by_side import CHANNEL_FIRST, CHANNEL_LAST, DICT_SPACES, SMALL_CNN, SMALL_COMBINED, VECTOR, Dummy

# A range that is not symmetric, other in each dimension.
ASYMMETRIC = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32))
FLAT, CNN, COMBINED = {"net_arch": [16, 8]}, SMALL_CNN, SMALL_COMBINED


def trained(
    observation_space: spaces.Space[Any],
    action_space: spaces.Box = ASYMMETRIC,
    policy: str = "MlpPolicy",
    kwargs: dict[str, Any] = FLAT,
    normalize: dict[str, Any] | None = None,
) -> SimpleDDPG:
    """A model after 20 timesteps, the last ten with updates, so that statistics and weights have moved."""
    env: Any = DummyVecEnv([lambda: Dummy(observation_space, action_space)])
    if normalize is not None:
        # SB3 wants this order: around VecNormalize, VecTransposeImage would turn what is stored not at all.
        env = VecNormalize(SimpleDDPG._wrap_env(env), **normalize)
    model = SimpleDDPG(
        policy, env, learning_starts=10, batch_size=8, buffer_size=50, seed=3, policy_kwargs=kwargs, device="cpu"
    )
    return model.learn(20)


WIDE = spaces.Box(np.array([-1e3, 5.0, 0.0], np.float32), np.array([1e3, 6.0, 1e-3], np.float32))
FLOATS_IN_DICT = {"norm_obs_keys": ["a", "b"]}
CASES: dict[str, dict[str, Any]] = {
    "box": {"observation_space": VECTOR},
    "box_normalized": {"observation_space": WIDE, "normalize": {}},
    "box_normalized_with_clip_and_epsilon": {
        "observation_space": WIDE,
        "normalize": {"clip_obs": 0.5, "epsilon": 1e-2},
    },
    "rewards_normalized_only": {"observation_space": WIDE, "normalize": {"norm_obs": False}},
    "box_of_two_axes": {"observation_space": spaces.Box(-1.0, 1.0, (3, 2), np.float32)},
    "box_float64": {"observation_space": spaces.Box(-1.0, 1.0, (3,), np.float64), "normalize": {}},
    "box_float16": {"observation_space": spaces.Box(-1.0, 1.0, (3,), np.float16)},
    "box_unbounded": {"observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32)},
    "box_of_integers": {"observation_space": spaces.Box(0, 9, (3,), np.int64), "normalize": {}},
    "box_of_truth_values": {"observation_space": spaces.Box(0, 1, (3,), np.bool_)},
    "discrete": {"observation_space": spaces.Discrete(5)},
    "multi_discrete": {"observation_space": spaces.MultiDiscrete([2, 4])},
    "multi_binary": {"observation_space": spaces.MultiBinary(4)},
    "multi_binary_of_two_axes": {"observation_space": spaces.MultiBinary([2, 3])},
    "actions_float64": {
        "observation_space": VECTOR,
        "action_space": spaces.Box(np.array([-1e6, 0.1]), np.array([3.0, 0.2]), dtype=np.float64),
    },
    "actions_of_two_axes": {"observation_space": VECTOR, "action_space": spaces.Box(-2.0, 1.0, (2, 3), np.float32)},
    "actions_without_axes": {"observation_space": VECTOR, "action_space": spaces.Box(-2.0, 1.0, (), np.float32)},
    "no_hidden_layer": {"observation_space": VECTOR, "kwargs": {"net_arch": []}},
    "other_activation": {"observation_space": VECTOR, "kwargs": {**FLAT, "activation_fn": nn.ELU}},
    "shared_extractor": {"observation_space": VECTOR, "kwargs": {**FLAT, "share_features_extractor": True}},
    "image_channel_first": {"observation_space": CHANNEL_FIRST, "policy": "CnnPolicy", "kwargs": CNN},
    "image_channel_last": {"observation_space": CHANNEL_LAST, "policy": "CnnPolicy", "kwargs": CNN},
    "image_as_vector": {"observation_space": CHANNEL_LAST},
    "image_in_zero_to_one": {
        "observation_space": spaces.Box(0.0, 1.0, (1, 36, 36), np.float32),
        "policy": "CnnPolicy",
        "kwargs": {"net_arch": [16], "normalize_images": False,
                   "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}},
    },
    "image_normalized": {
        "observation_space": CHANNEL_LAST,
        "policy": "CnnPolicy",
        "kwargs": {"net_arch": [16], "normalize_images": False,
                   "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}},
        "normalize": {},
    },
    "dict": {
        "observation_space": DICT_SPACES["vectors"], "policy": "MultiInputPolicy", "kwargs": COMBINED, "normalize": {},
    },
    "dict_normalized_in_part": {
        "observation_space": DICT_SPACES["all_kinds"], "policy": "MultiInputPolicy", "kwargs": COMBINED,
        "normalize": {"norm_obs_keys": ["vector"]},
    },
    "dict_with_image_channel_first": {
        "observation_space": DICT_SPACES["channel_first"], "policy": "MultiInputPolicy", "kwargs": COMBINED,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, SimpleDDPG]:
    """Each case is trained once, when a test first asks for it."""
    return {}


def model_of(models: dict[str, SimpleDDPG], case: str) -> SimpleDDPG:
    if case not in models:
        models[case] = trained(**CASES[case])
    return models[case]


def base_space(model: SimpleDDPG) -> spaces.Space[Any]:
    env = model.get_env()
    assert env is not None
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env.observation_space


def draw(space: spaces.Space[Any], count: int) -> Any:
    """A batch of observations, as a vectorised environment stacks them."""
    if isinstance(space, spaces.Dict):
        return {name: draw(part, count) for name, part in space.items()}
    space.seed(11)
    return np.stack([np.asarray(space.sample(), space.dtype) for _ in range(count)])


def through_wrappers(model: SimpleDDPG, raw: Any) -> Any:
    """What the model's own wrappers make of a raw batch, the innermost wrapper first."""
    env, wrappers = model.get_env(), []
    while isinstance(env, VecEnvWrapper):
        wrappers.insert(0, env)
        env = env.venv
    for wrapper in wrappers:
        if isinstance(wrapper, VecNormalize):
            raw = wrapper.normalize_obs(raw)
        elif hasattr(wrapper, "transpose_observations"):
            raw = wrapper.transpose_observations(raw)
    return raw


def run_onnx(path: Path, observations: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    named = observations if isinstance(observations, dict) else {"observation": observations}
    return session.run(["action"], named)[0]


#: A second an export: what is the same for the tracer as another case is left to the other file.
NOT_IN_ONNX = {"rewards_normalized_only", "box_of_two_axes", "box_float16", "box_of_truth_values", "no_hidden_layer"}
NOT_IN_ONNX |= {"multi_binary_of_two_axes", "shared_extractor", "image_as_vector"}


#: One of each kind of observation goes through the tracer in `make test`, the others in `make test-long`.
OFTEN = {"box_normalized", "image_normalized", "dict_normalized_in_part"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in OFTEN else pytest.mark.long) for case in CASES if case not in NOT_IN_ONNX],
)
def test_onnx_file_takes_raw_observations_and_gives_the_actions_of_predict(case: str, models, tmp_path):
    model = model_of(models, case)
    raw = draw(base_space(model), 6)
    expected, _ = model.predict(through_wrappers(model, raw), deterministic=True)
    path = tmp_path / "policy.onnx"
    export_onnx(model, path)
    actions = run_onnx(path, raw)
    assert (actions.dtype, actions.shape) == (model.action_space.dtype, (6, *model.action_space.shape))
    width = model.action_space.high - model.action_space.low
    assert np.all(np.abs(actions - expected) <= 1e-5 * width)
    assert np.ptp(expected, axis=0).max() > 0  # the observations make a difference
    one = {name: part[:1] for name, part in raw.items()} if isinstance(raw, dict) else raw[:1]
    np.testing.assert_allclose(run_onnx(path, one), actions[:1], rtol=0, atol=1e-5 * width.max())
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]


@pytest.mark.parametrize("case", CASES)
def test_loaded_policy_gives_the_bits_of_predict(case: str, models, tmp_path):
    model = model_of(models, case)
    raw = draw(base_space(model), 6)
    prepared = through_wrappers(model, raw)
    expected, _ = model.predict(prepared, deterministic=True)
    save_policy(model, tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    actions, state = policy.predict(raw, deterministic=True)
    # A convolution rounds by how its input lies in memory, which depends on what was last done to it.
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6 if case == "image_normalized" else 0)
    assert (actions.dtype, state) == (expected.dtype, None)
    assert policy.action_space == model.action_space
    assert policy.observation_space == base_space(model)
    first = {name: part[2] for name, part in raw.items()} if isinstance(raw, dict) else raw[2]
    single, _ = policy.predict(first)
    assert single.shape == model.action_space.shape
    np.testing.assert_allclose(single, expected[2], rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.fixture(scope="module")
def by_hand() -> SimpleDDPG:
    """
    Bandit, actions in [-1, 3], one layer: tanh(0.5 x + 0.25) of x = clip((o - 2) / 2, -3, 3), o the observation.
    """
    env = VecNormalize(DummyVecEnv([Bandit]), clip_obs=3.0, epsilon=1.0)
    env.obs_rms.mean, env.obs_rms.var = np.array([2.0]), np.array([3.0])  # sqrt(3 + epsilon) = 2
    model = SimpleDDPG("MlpPolicy", env, policy_kwargs={"net_arch": []}, buffer_size=10, device="cpu")
    with th.no_grad():
        model.actor.mu[0].weight.fill_(0.5)
        model.actor.mu[0].bias.fill_(0.25)
    return model


# o = 4: x = 1, tanh(0.75) = 0.635149, -1 + 2 (1 + 0.635149) = 2.270298; o = 2: x = 0, tanh(0.25) = 0.244919, 1.489837;
# o = 1e30: x = 3, tanh(1.75) = 0.941376, 2.882751; o = -1e30: x = -3, tanh(-1.25) = -0.848284, -0.696567.
KNOWN = {4.0: 2.270298, 2.0: 1.489837, 1e30: 2.882751, -1e30: -0.696567}


def test_both_files_give_the_actions_worked_out_by_hand(by_hand, tmp_path):
    observations = np.array(list(KNOWN), np.float32)[:, None]
    expected = np.array(list(KNOWN.values()))[:, None]
    export_onnx(by_hand, tmp_path / "policy.onnx")
    save_policy(by_hand, str(tmp_path / "policy.safetensors"))
    policy = load_policy(str(tmp_path / "policy.safetensors"))
    # Six digits are written above.
    np.testing.assert_allclose(run_onnx(tmp_path / "policy.onnx", observations), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(policy.predict(observations)[0], expected, rtol=0, atol=1e-6)


def test_loaded_policy_plays_without_wrappers_what_the_model_plays_with_them(models, tmp_path):
    """Returns of Dummy depend on the actions alone, so equal returns mean equal actions."""
    model = model_of(models, "box_normalized")
    save_policy(model, tmp_path / "policy.safetensors")
    returns = []
    for player, normalize in ((model, True), (load_policy(tmp_path / "policy.safetensors"), False)):
        env: Any = VecMonitor(DummyVecEnv([lambda: Dummy(WIDE, ASYMMETRIC)]))
        if normalize:
            env = VecNormalize(env, training=False, norm_reward=False)
            env.obs_rms = model.get_vec_normalize_env().obs_rms
        env.seed(5)
        returns.append(evaluate_policy(player, env, n_eval_episodes=3, return_episode_rewards=True)[0])
    assert returns[0] == returns[1]
    assert len(set(returns[0])) == 3


def test_exporting_leaves_model_normaliser_and_random_streams_as_they_were(tmp_path):
    model = trained(**CASES["box_normalized"])
    normalizer = model.get_vec_normalize_env()
    weights = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    before = (np.random.get_state()[1].tolist(), th.get_rng_state().tolist(), normalizer.obs_rms.mean.tolist())
    drawn = model.observation_space.np_random.bit_generator.state
    export_onnx(model, tmp_path / "policy.onnx")
    save_policy(model, tmp_path / "policy.safetensors")
    load_policy(tmp_path / "policy.safetensors").predict(np.zeros(3, np.float32))
    after = (np.random.get_state()[1].tolist(), th.get_rng_state().tolist(), normalizer.obs_rms.mean.tolist())
    assert before == after
    assert drawn == model.observation_space.np_random.bit_generator.state
    assert all(th.equal(tensor, weights[name]) for name, tensor in model.policy.state_dict().items())
    model.learn(10, reset_num_timesteps=False)
    assert not th.equal(model.actor.mu[0].weight, weights["actor.mu.0.weight"])


def test_files_say_where_they_come_from_and_name_no_path_of_this_machine(models, tmp_path):
    model = model_of(models, "box_normalized")
    export_onnx(model, tmp_path / "policy.onnx")
    save_policy(model, tmp_path / "policy.safetensors")
    written = onnx.load(tmp_path / "policy.onnx")
    notes = {entry.key: json.loads(entry.value) for entry in written.metadata_props}
    assert notes["observation_space"]["observation"]["low"] == [-1e3, 5.0, 0.0]
    assert notes["action_space"] == {
        "type": "Box", "shape": [2], "dtype": "float32", "low": [-1.0, 0.0], "high": [3.0, 0.5],
    }  # fmt: skip
    assert notes["source"]["algorithm"] == "SimpleDDPG"
    assert notes["source"]["timesteps"] == 20
    assert notes["source"]["versions"]["torch"] == version("torch")
    assert load_policy(tmp_path / "policy.safetensors").source == notes["source"]
    for file in tmp_path.iterdir():
        assert b".py" not in file.read_bytes()
        assert str(Path.home()).encode() not in file.read_bytes()
    assert not any(node.metadata_props or node.doc_string for node in written.graph.node)
    assert {node.domain for node in written.graph.node} == {""}  # standard operators only
    assert [opset.version for opset in written.opset_import] == [20]
    batch, features = written.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param  # any number of rows
    assert features.dim_value == 3


def test_safetensors_file_is_one_that_the_library_reads(models, tmp_path):
    model = model_of(models, "box")
    save_policy(model, tmp_path / "policy.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(tensors["mu.0.weight"], model.actor.mu[0].weight.detach().numpy())
    np.testing.assert_array_equal(tensors["action.high"], ASYMMETRIC.high)


def test_model_without_an_environment_takes_statistics_and_layout_from_the_one_given(models, tmp_path):
    model = model_of(models, "image_normalized")
    model.save(tmp_path / "model.zip")
    loaded = SimpleDDPG.load(tmp_path / "model.zip", device="cpu")
    save_policy(loaded, tmp_path / "policy.safetensors", env=model.get_env())
    raw = draw(CHANNEL_LAST, 3)
    actions, _ = load_policy(tmp_path / "policy.safetensors").predict(raw)
    np.testing.assert_allclose(actions, model.predict(through_wrappers(model, raw))[0], rtol=0, atol=1e-6)
    # Without one, what the networks see is all that is known: channels first, normalized.
    save_policy(loaded, tmp_path / "bare.safetensors")
    bare = load_policy(tmp_path / "bare.safetensors")
    assert bare.observation_space.shape == (3, 36, 36)
    np.testing.assert_allclose(bare.predict(through_wrappers(model, raw))[0], actions, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        save_policy(loaded, tmp_path / "other.safetensors", env=Bandit())


def test_stacked_frames_are_what_the_file_takes(tmp_path):
    env = VecFrameStack(DummyVecEnv([lambda: Dummy(VECTOR)]), 2)
    model = SimpleDDPG("MlpPolicy", env, policy_kwargs=FLAT, buffer_size=10, device="cpu")
    save_policy(model, tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    assert policy.observation_space.shape == (6,)
    stacked = np.arange(6, dtype=np.float32) / 6
    np.testing.assert_array_equal(policy.predict(stacked)[0], model.predict(stacked)[0])


class Twice(VecEnvWrapper):
    """Shows twice what it is shown."""

    def reset(self):
        return 2 * self.venv.reset()

    def step_wait(self):
        observations, *others = self.venv.step_wait()
        return 2 * observations, *others


def test_normaliser_below_another_wrapper_is_refused(tmp_path):
    env = Twice(VecNormalize(DummyVecEnv([lambda: Dummy(VECTOR)])))
    model = SimpleDDPG("MlpPolicy", env, policy_kwargs=FLAT, buffer_size=10)
    with pytest.raises(ValueError, match=r"VecNormalize lies below Twice.*VecNormalize\(Twice"):
        save_policy(model, tmp_path / "policy.safetensors")
    env = VecNormalize(VecNormalize(DummyVecEnv([lambda: Dummy(VECTOR)])))
    model = SimpleDDPG("MlpPolicy", env, policy_kwargs=FLAT, buffer_size=10)
    with pytest.raises(ValueError, match="normalized once, got a second VecNormalize"):
        save_policy(model, tmp_path / "policy.safetensors")
    assert list(tmp_path.iterdir()) == []


class Squares(BaseFeaturesExtractor):
    """A features extractor of the user's own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.square()


class Branching(Squares):
    """Decides by what it sees, which no graph can hold."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations if observations.sum() > 0 else -observations


class Counting(Squares):
    """Keeps a number between calls, which a trace takes for a constant."""

    calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.calls += 1
        return observations + self.calls


class Conditional(Squares):
    """Decides by what it sees, in a way that a graph can hold; its branches are graphs of their own."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        doubled, shifted = (lambda values: values * 2), (lambda values: values - 1)
        return th.cond(observations.sum() > 0, doubled, shifted, (observations,))


class SinglePrecision(Squares):
    """Knows single precision only."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.float().square()


class BatchNormed(BaseFeaturesExtractor):
    """Does otherwise in training than in evaluation."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


class Pretending(Squares):
    """Does otherwise while it is traced."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations * (1.001 if th.compiler.is_exporting() else 1.0)


class Halved(Actor):
    """An actor class of the user's own: what it does is no longer what its layers say."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) / 2


class HalvedPolicy(DDPGPolicy):
    """A policy with that actor."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        return Halved(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


class WithKeys(BaseFeaturesExtractor):
    """Looks at one key of two."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, features_dim=3)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return observations["val_0"]


def with_extractor(extractor: type[BaseFeaturesExtractor], **changes: Any) -> SimpleDDPG:
    kwargs = {**FLAT, "features_extractor_class": extractor}
    settings = {"observation_space": VECTOR, "policy": "MlpPolicy", **changes}
    env = Dummy(settings.pop("observation_space"), ASYMMETRIC)
    return SimpleDDPG(env=env, buffer_size=10, policy_kwargs=kwargs, device="cpu", **settings)


@pytest.mark.parametrize(
    "extractor",
    [Squares, BatchNormed, *(pytest.param(each, marks=pytest.mark.long) for each in (Conditional, SinglePrecision))],
)
def test_extractor_of_the_users_own_goes_into_onnx_and_is_refused_by_name_in_safetensors(extractor, tmp_path):
    model = with_extractor(extractor)
    model.policy.set_training_mode(True)  # a file is for acting, whatever the model was doing
    export_onnx(model, tmp_path / "policy.onnx")
    raw = draw(VECTOR, 5)
    np.testing.assert_allclose(run_onnx(tmp_path / "policy.onnx", raw), model.predict(raw)[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=rf"no words for features_extractor {extractor.__name__}\(.*use export_onnx"):
        save_policy(model, tmp_path / "policy.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]


def test_actor_of_the_users_own_goes_into_onnx_as_it_acts_and_is_refused_by_name_in_safetensors(tmp_path):
    model = SimpleDDPG(HalvedPolicy, Dummy(VECTOR, ASYMMETRIC), buffer_size=10, policy_kwargs=FLAT, device="cpu")
    export_onnx(model, tmp_path / "policy.onnx")
    raw = draw(VECTOR, 5)
    np.testing.assert_allclose(run_onnx(tmp_path / "policy.onnx", raw), model.predict(raw)[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no words for the actor Halved"):
        save_policy(model, tmp_path / "policy.safetensors")


def test_layers_that_safetensors_has_no_words_for_are_refused(tmp_path):
    model = trained(VECTOR, kwargs={"net_arch": [4]})
    for layers, what in (
        (nn.Sequential(*model.actor.mu), "mu Sequential"),
        (type(model.actor.mu)(nn.Linear(3, 4), nn.LeakyReLU(0.5), nn.Linear(4, 2), nn.Tanh()), "LeakyReLU"),
        (type(model.actor.mu)(nn.Linear(3, 4), nn.Hardtanh(), nn.Linear(4, 2), nn.Tanh()), "Hardtanh"),
        (type(model.actor.mu)(nn.Linear(3, 4).double(), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), "torch.float64"),
        (type(model.actor.mu)(nn.Linear(3, 2), nn.Sigmoid()), "mu.1 Sigmoid"),
    ):
        model.actor.mu = layers
        with pytest.raises(ValueError, match=f"no words for .*{what}.*export_onnx"):
            save_policy(model, tmp_path / "policy.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced_is_refused_by_name_with_nothing_written(tmp_path):
    with pytest.raises(ValueError, match=r"features extractor Branching cannot be traced.*use model\.save"):
        export_onnx(with_extractor(Branching), tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_file_that_would_answer_otherwise_is_not_written_and_the_old_one_stays(tmp_path):
    (tmp_path / "policy.onnx").write_bytes(b"old")
    for extractor, message in (
        (Counting, "predict gives two answers to the same observations: .*keep numbers between calls"),
        (Pretending, "differ from those of predict by .* of the action range, more than 1e-05"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(with_extractor(extractor), tmp_path / "policy.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("policy.onnx", b"old")]


def test_every_small_difference_shape_and_type_is_noticed(by_hand):
    source = export.describe(by_hand)

    def off(share: float, dtype: type = np.float32):
        def answer(observations: dict[str, np.ndarray]) -> np.ndarray:
            return (source.predict(observations) + share * 4.0).astype(dtype)  # the range is 4 wide

        return answer

    export.check(source, off(0.5e-5))
    for wrong in (off(2e-5), off(-2e-5), off(np.nan), off(0.0, np.float64), lambda _: np.zeros(1, np.float32)):
        with pytest.raises(ValueError, match=r"^The file"):
            export.check(source, wrong)


def test_rounding_of_predict_itself_is_no_difference():
    """Two inputs of 1e30 that cancel: in single precision nothing exact is left, so no file could agree."""
    model = trained(spaces.Box(-np.inf, np.inf, (2,), np.float32), kwargs={"net_arch": []})
    with th.no_grad():
        model.actor.mu[0].weight.copy_(th.tensor([[1.0, -1.0 - 1e-7], [0.1, 0.1]]))
    source = export.describe(model)
    observations = {"observation": np.array([[0.3, 0.2], [1e30, 1e30]], np.float32)}
    rounding = source.rounding(observations)
    # The range is 4 wide. Weights of up to 1.2, 1e-5 of themselves off either way, move tanh by 1e-4 at the very most.
    assert 0 < rounding[0, 0] < 4e-4
    # 1e30 (1 + a) - 1e30 (1 + b) is huge, with the sign of a - b, which turns with the sign of both: -1 or 3.
    assert rounding[1, 0] == 4
    # 1e30 (0.1 + 0.1) is huge and positive, whatever the last digits.
    assert rounding[1, 1] == 0
    flipped = source.predict(observations)
    flipped[1, 0] = 2.0 - flipped[1, 0]
    export.check(source, source.predict)
    assert np.all(np.abs(flipped - source.predict(observations)) <= rounding)


def test_rounding_overflows_to_what_is_not_compared():
    model = trained(spaces.Box(-np.inf, np.inf, (1,), np.float32), kwargs={"net_arch": [2]})
    with th.no_grad():
        model.actor.mu[0].weight.fill_(1e30)
        model.actor.mu[2].weight.copy_(th.tensor([[1e30, -1e30], [0.0, 0.0]]))
    rounding = export.describe(model).rounding({"observation": np.array([[1.0]], np.float32)})
    assert np.isnan(rounding[0, 0])  # infinity minus infinity


def test_probes_are_random_and_extreme():
    probes = export.probes((export.Input("x", VECTOR),))["x"]
    for extreme in (0.0, 1.0, -1.0, 1e6, -1e6, np.finfo(np.float32).max):
        assert (probes == np.float32(extreme)).all(axis=1).any(), extreme
    assert len(np.unique(probes[:16])) == 48
    image = export.probes((export.Input("x", CHANNEL_LAST),))["x"]
    assert (image.min(), image.max(), image.dtype) == (0, 255, np.uint8)
    far = export.Input("x", spaces.Box(-np.inf, np.inf, (1,)), moments=(np.array([500.0]), np.array([1.0])))
    assert np.sum(np.abs(export.probes((far,))["x"] - 500) < 10) >= 6  # around what was seen


def test_keys_keep_their_names_whatever_the_tracer_calls_its_own(tmp_path):
    space = spaces.Dict({"val_0": VECTOR, "a key/of: mine": VECTOR})
    model = with_extractor(WithKeys, observation_space=space, policy="MultiInputPolicy")
    export_onnx(model, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert {given.name for given in session.get_inputs()} == {"val_0", "a key/of: mine"}
    raw = draw(space, 4)
    np.testing.assert_allclose(run_onnx(tmp_path / "policy.onnx", raw), model.predict(raw)[0], rtol=0, atol=1e-5)


def test_a_key_called_like_the_output_is_refused_in_onnx_and_kept_in_safetensors(tmp_path):
    model = trained(spaces.Dict({"action": VECTOR}), policy="MultiInputPolicy", kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match=r"may be called 'action' in ONNX.*use save_policy"):
        export_onnx(model, tmp_path / "policy.onnx")
    save_policy(model, tmp_path / "policy.safetensors")
    assert load_policy(tmp_path / "policy.safetensors").predict({"action": np.zeros(3)})[0].shape == (2,)


def test_other_models_and_places_are_refused_before_any_work(by_hand, tmp_path, monkeypatch):
    for function in (export_onnx, save_policy):
        with pytest.raises(TypeError, match=r"must be a SimpleDDPG, got DDPG: see SimpleDDPG\.from_sb3"):
            function(DDPG("MlpPolicy", "Pendulum-v1", buffer_size=10), tmp_path / "policy")
        with pytest.raises(ValueError, match="is a folder: name a file in it"):
            function(by_hand, tmp_path)
        with pytest.raises(ValueError, match="missing is not a folder that can be written to"):
            function(by_hand, tmp_path / "missing" / "policy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "library"),
    [
        (export_onnx, "onnx"),
        (export_onnx, "onnxruntime"),
        (export_onnx, "onnxscript"),
    ],
)
def test_missing_library_is_named_with_the_cure(function, library, by_hand, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'{library} is missing.*pip install "sb3-simple-ddpg\[export\]"'):
        function(by_hand, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export.write_whole(tmp_path / "policy", b"content")
    assert list(tmp_path.iterdir()) == []


def test_loaded_policy_says_which_observation_does_not_fit(models, tmp_path):
    save_policy(model_of(models, "dict"), tmp_path / "policy.safetensors")
    policy = load_policy(tmp_path / "policy.safetensors")
    good = {"a": np.zeros(3, np.float32), "b": np.zeros(2)}
    assert policy.predict(good, state=(np.ones(1),))[1] is not None  # passed through
    for wrong in (np.zeros(3), {"a": good["a"]}, {**good, "c": good["a"]}):
        with pytest.raises(ValueError, match="must be a dict with the keys a, b"):
            policy.predict(wrong)
    for wrong in ({**good, "a": np.zeros(4)}, {**good, "a": np.zeros((2, 3))}, {**good, "a": np.zeros((1, 1, 3))}):
        with pytest.raises(ValueError, match=r"must have shape \(\d,\), or \(B,"):
            policy.predict(wrong)
    with pytest.raises(ValueError, match=r"equally many for each key, got a \(2, 3\), b \(1, 2\)"):
        policy.predict({"a": np.zeros((2, 3)), "b": np.zeros((1, 2))})


def test_keys_in_another_order_are_the_same_observations(tmp_path):
    """The model's features stand in the order that it was built with, whatever the environment's is now."""
    first, second = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (3,))
    model = trained(spaces.Dict([("b", second), ("a", first)]), policy="MultiInputPolicy", kwargs={"net_arch": [4]})
    save_policy(model, tmp_path / "policy.safetensors", env=Dummy(spaces.Dict(a=first, b=second), ASYMMETRIC))
    raw = {"a": np.array([0.1, 0.2], np.float32), "b": np.array([0.3, 0.4, 0.5], np.float32)}
    actions, _ = load_policy(tmp_path / "policy.safetensors").predict(raw)
    np.testing.assert_array_equal(actions, model.predict(raw)[0])


def test_the_python_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    results: list[dict[str, Any]] = [{}, {}]
    for block, names in zip(blocks, results, strict=True):
        exec(block.replace("20_000", "150"), names)  # fewer timesteps: the claim is that it runs
    np.testing.assert_allclose(results[0]["action"], results[1]["action"], rtol=0, atol=4e-5)  # 1e-5 of the range
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (Path(__file__).parent.parent / "docs" / link).exists()
