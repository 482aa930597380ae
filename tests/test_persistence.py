"""save, load and everything between: parts, parameters, environments, devices, buffers, learning on, module modes.

Not here: conversion from and to SB3's DDPG, and the exact resume from a checkpoint.
"""

import io
import json
import zipfile
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.exploration import ColoredNoise, OrnsteinUhlenbeck
from tests.environments import Chain
from tests.side_by_side import (
    CHANNEL_LAST,
    SMALL_CNN,
    VECTOR,
    Dummy,
    assert_same_agent,
    settings,
    train_side_by_side,
)

OBSERVATIONS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def trained(**changes: Any) -> SimpleDDPG:
    """30 timesteps, 20 updates."""
    return SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(**changes)).learn(30)


def vector_env(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Dummy(VECTOR)] * n_envs)


def assert_equal_state(ours: Any, theirs: Any) -> None:
    """Two nested state dicts hold the same numbers to the last bit."""
    if isinstance(ours, th.Tensor):
        assert th.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal_state(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal_state(one, other)
    else:
        assert ours == theirs


def _saved(model: SimpleDDPG, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    model.save(file, **kwargs)
    return file.getvalue()


# --- save and load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["str", "path", "file"])
def test_loaded_model_equals_the_saved_one(where, tmp_path):
    model = trained()
    target: Any = {"str": str(tmp_path / "model"), "path": tmp_path / "model", "file": io.BytesIO()}[where]
    model.save(target)
    if where == "file":
        target.seek(0)
    loaded = SimpleDDPG.load(target)
    assert_equal_state(loaded.get_parameters(), model.get_parameters())  # networks, targets, optimizer states
    assert loaded.get_parameters()["actor.optimizer"]["state"]
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])
    assert (loaded.num_timesteps, loaded._n_updates, loaded._episode_num) == (30, 20, 4)
    assert loaded.actor is loaded.policy.actor
    assert loaded.critic_target is loaded.policy.critic_target


def test_every_setting_survives_saving(tmp_path):
    given = {
        "learning_rate": 0.004,
        "critic_learning_rate": 0.003,
        "max_grad_norm": 0.7,
        "buffer_size": 90,
        "learning_starts": 11,
        "batch_size": 7,
        "tau": 0.02,
        "gamma": 0.9,
        "gradient_steps": 2,
        "n_steps": 2,
        "optimize_memory_usage": False,
        "stats_window_size": 5,
        "policy_kwargs": {"net_arch": {"pi": [4], "qf": [6]}, "activation_fn": th.nn.Tanh, "last_layer_init": 0.01},
        "seed": 8,
    }
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), train_freq=(3, "step"), device="cpu", **given).learn(15)
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=Dummy(VECTOR))
    for name, value in given.items():
        assert getattr(loaded, "_stats_window_size" if name == "stats_window_size" else name) == value, name
    assert loaded.train_freq == model.train_freq
    assert loaded.actor.mu[0].out_features == 4
    assert loaded.critic.qf0[0].out_features == 6
    assert isinstance(loaded.actor.mu[1], th.nn.Tanh)
    assert loaded.replay_buffer.buffer_size == 90
    assert loaded.critic_lr_schedule(1.0) == 0.003
    before = loaded._n_updates
    loaded.learn(15)
    assert loaded._n_updates == before + 4  # after timesteps 12 and 15, two gradient steps each


def test_model_can_be_saved_and_loaded_again_and_again(tmp_path):
    model = trained(train_freq=(3, "step"), n_steps=3)
    expected, _ = model.predict(OBSERVATIONS)
    for _ in range(3):
        model.save(tmp_path / "model")
        model = SimpleDDPG.load(tmp_path / "model", env=Dummy(VECTOR))
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], expected)
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (3, "step")
    assert (model.n_steps, model.replay_buffer.n_steps) == (3, 3)


def test_untrained_model_is_saved_and_loaded(tmp_path):
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings())
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model", env=Dummy(VECTOR))
    assert_equal_state(loaded.get_parameters(), model.get_parameters())
    assert loaded.learn(20)._n_updates == 10


def test_saved_and_loaded_twins_go_on_like_sb3(tmp_path):
    models = []
    for name, model in zip(
        ("ours", "theirs"), train_side_by_side(lambda: Dummy(VECTOR), total_timesteps=25), strict=True
    ):
        model.save(tmp_path / name)
        model.save_replay_buffer(tmp_path / f"{name}_buffer")
        loaded = type(model).load(tmp_path / name, env=Dummy(VECTOR))
        loaded.load_replay_buffer(tmp_path / f"{name}_buffer")
        assert loaded.replay_buffer.size() == 25
        models.append(loaded.learn(15, reset_num_timesteps=False))
    assert_same_agent(models[0], models[1], n_updates=30)


def test_zip_holds_sb3s_files_and_no_network_outside_them(tmp_path):
    archives = []
    for name, model in zip(("ours", "theirs"), train_side_by_side(lambda: Dummy(VECTOR)), strict=True):
        model.save(tmp_path / name)
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            archives.append((set(archive.namelist()), json.loads(archive.read("data")).keys()))
    (our_files, our_names), (their_files, _) = archives
    assert our_files == their_files
    excluded = {"policy", "env", "replay_buffer", "_logger", "actor", "actor_target", "critic", "critic_target"}
    assert not excluded & our_names


def test_nothing_that_save_pickles_is_a_tensor_a_network_or_an_optimizer():
    model = trained()
    pickled = model.__dict__.keys() - set(model._excluded_save_params())
    assert "batch_size" in pickled
    for name in pickled:
        value = getattr(model, name)
        for part in value if isinstance(value, list | tuple) else [value]:
            assert not isinstance(part, th.Tensor | th.nn.Module | th.optim.Optimizer), name


def test_saved_parts_are_those_of_sb3():
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR))
    assert ours._get_torch_save_params() == (["policy", "actor.optimizer", "critic.optimizer"], [])
    assert ours._get_torch_save_params() == theirs._get_torch_save_params()
    assert ours.get_parameters()["policy"].keys() == theirs.get_parameters()["policy"].keys()


def test_exclude_leaves_out_and_include_takes_in():
    model = trained()
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model, exclude=["ep_info_buffer", "seed"])))
    assert loaded.ep_info_buffer is None
    assert loaded.seed is None
    assert loaded.replay_buffer.size() == 0
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model, include=["replay_buffer"])), env=Dummy(VECTOR))
    assert loaded.replay_buffer.size() == 30
    np.testing.assert_array_equal(loaded.replay_buffer.actions, model.replay_buffer.actions)
    loaded.train(gradient_steps=2, batch_size=8)
    assert loaded._n_updates == 22


def test_custom_objects_replace_what_was_saved():
    data = _saved(trained(learning_rate=lambda progress_remaining: 0.5))
    loaded = SimpleDDPG.load(
        io.BytesIO(data), env=Dummy(VECTOR), custom_objects={"learning_rate": 0.02, "lr_schedule": None, "tau": 0.3}
    )
    assert loaded.tau == 0.3
    loaded.learn(20)
    assert loaded._n_updates == 30
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 0.02
    assert loaded.critic.optimizer.param_groups[0]["lr"] == 0.02


def test_arguments_of_load_replace_what_was_saved():
    data = _saved(trained())
    loaded = SimpleDDPG.load(
        io.BytesIO(data), env=Dummy(VECTOR), gamma=0.5, batch_size=3, learning_rate=0.02, action_noise=0.4, verbose=0
    )
    assert (loaded.gamma, loaded.batch_size) == (0.5, 3)
    loaded.learn(20)
    assert loaded.action_noise.scale == 0.4
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 0.02


def test_load_with_other_policy_kwargs_is_refused():
    data = _saved(trained())
    assert SimpleDDPG.load(io.BytesIO(data), policy_kwargs={"net_arch": [16]}).actor.mu[0].out_features == 16
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        SimpleDDPG.load(io.BytesIO(data), policy_kwargs={"net_arch": [8]})


def test_learning_rate_schedule_is_pickled_and_goes_on():
    model = trained(learning_rate=lambda progress_remaining: 0.01 * progress_remaining)
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=Dummy(VECTOR))
    assert loaded.lr_schedule(0.5) == 0.005
    loaded.learn(40)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 0.0  # nothing remains at the last update


def test_load_seeds_everything_again():
    data = _saved(trained(seed=3))
    np.random.seed(99)
    th.manual_seed(99)
    loaded = SimpleDDPG.load(io.BytesIO(data), env=Dummy(VECTOR))
    assert np.random.random() == np.random.RandomState(3).random_sample()
    twin, fresh = SimpleDDPG.load(io.BytesIO(data), env=Dummy(VECTOR)), spaces.Box(-1.0, 1.0, (2,), np.float32, seed=3)
    np.testing.assert_array_equal(twin.action_space.sample(), fresh.sample())
    # The environment too: two loaded models see the same first observation.
    np.testing.assert_array_equal(loaded.get_env().reset(), twin.get_env().reset())


# --- what the caller passed, construction ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 3])
def test_dicts_of_the_caller_are_never_written_to(n_steps):
    policy_kwargs = {
        "net_arch": [16],
        "features_extractor_kwargs": {},
        "optimizer_kwargs": {"weight_decay": 0.0},
        "critic_optimizer_kwargs": {},
    }
    replay_buffer_kwargs = {"handle_timeout_termination": True}
    before = deepcopy((policy_kwargs, replay_buffer_kwargs))
    model = SimpleDDPG(
        "MlpPolicy",
        Dummy(VECTOR),
        **settings(policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs, n_steps=n_steps),
    ).learn(20)
    assert (policy_kwargs, replay_buffer_kwargs) == before
    assert model.policy_kwargs is not policy_kwargs  # nor does the model follow what the caller writes later
    assert model.replay_buffer_kwargs is not replay_buffer_kwargs
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=Dummy(VECTOR), policy_kwargs=policy_kwargs)
    assert loaded.learn(20)._n_updates == 20
    assert (policy_kwargs, replay_buffer_kwargs) == before


def test_cnn_policy_leaves_the_callers_dicts_alone():
    policy_kwargs = {"net_arch": [16], "normalize_images": False, "features_extractor_kwargs": {"features_dim": 8}}
    before = deepcopy(policy_kwargs)
    space = spaces.Box(0.0, 1.0, (1, 36, 36), np.float32)
    model = SimpleDDPG("CnnPolicy", Dummy(space), **settings(policy_kwargs=policy_kwargs)).learn(12)
    assert model._n_updates == 2
    assert policy_kwargs == before  # SB3 writes `normalized_image` into the inner dict


def test_model_is_built_later_when_asked():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(_init_setup_model=False))
    assert model.replay_buffer is None
    assert not hasattr(model, "actor")
    model._setup_model()
    assert model.learn(20)._n_updates == 10


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["dict", "file"])
def test_set_parameters_takes_a_dict_or_a_file_in_place(source, tmp_path):
    other = trained()
    other.save(tmp_path / "model")
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(seed=11))
    policy, actor = model.policy, model.actor
    model.set_parameters(other.get_parameters() if source == "dict" else str(tmp_path / "model"))
    assert model.policy is policy
    assert model.actor is actor
    assert_equal_state(model.get_parameters(), other.get_parameters())
    # The optimizers still hold these networks: an update moves them.
    before = model.actor.mu[0].weight.clone()
    model.learn(12)
    assert model._n_updates == 2
    assert not th.equal(model.actor.mu[0].weight, before)


def test_training_goes_on_from_parameters_set_in_place_as_in_sb3():
    models = []
    for model in train_side_by_side(lambda: Dummy(VECTOR), total_timesteps=15):
        parameters = deepcopy(model.get_parameters())
        np.random.seed(7)  # both draw their batches from the one global generator
        model.learn(5, reset_num_timesteps=False)
        model.set_parameters(parameters)  # back to where update 5 was
        models.append(model.learn(10, reset_num_timesteps=False))
    assert_same_agent(models[0], models[1], n_updates=20)


def test_parameters_taken_from_a_model_are_not_shared_with_it():
    source = trained()
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings())
    before = deepcopy(source.get_parameters())
    model.set_parameters(source.get_parameters())
    model.learn(15)
    assert model._n_updates == 5
    assert_equal_state(source.get_parameters(), before)  # weights and the state of both optimizers


def test_set_parameters_names_what_does_not_fit():
    model, parameters = trained(), trained().get_parameters()
    with pytest.raises(ValueError, match="nonsense is an invalid object name"):
        model.set_parameters({**parameters, "nonsense": {}})
    with pytest.raises(ValueError, match="do not match agents' parameters"):
        model.set_parameters({"policy": parameters["policy"]})
    incomplete = {name: tensor for name, tensor in parameters["policy"].items() if name != "actor.mu.0.weight"}
    with pytest.raises(RuntimeError, match=r"actor\.mu\.0\.weight"):
        model.set_parameters({**parameters, "policy": incomplete})
    other_shape = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs={"net_arch": [8]}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(other_shape.get_parameters())


def test_set_parameters_takes_a_part_when_not_exact():
    model = trained()
    critic = model.critic.qf0[0].weight.clone()
    bias = th.full_like(model.actor.mu[0].bias, 0.25)
    model.set_parameters({"policy": {"actor.mu.0.bias": bias}}, exact_match=False)
    assert th.equal(model.actor.mu[0].bias, bias)
    assert th.equal(model.critic.qf0[0].weight, critic)


@pytest.mark.parametrize("optimizer_kwargs", [{}, {"foreach": True}], ids=["default", "chosen_by_the_user"])
def test_parameters_of_sb3_leave_the_optimizers_flags_as_they_were(optimizer_kwargs):
    kwargs = {"net_arch": [16], "optimizer_kwargs": optimizer_kwargs}
    _, theirs = train_side_by_side(lambda: Dummy(VECTOR))
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(policy_kwargs=kwargs))
    before = [_kernel_flags(optimizer) for optimizer in (model.actor.optimizer, model.critic.optimizer)]
    model.set_parameters(theirs.get_parameters())
    after = [_kernel_flags(optimizer) for optimizer in (model.actor.optimizer, model.critic.optimizer)]
    assert after == before
    assert model.learn(15)._n_updates == 5


def _kernel_flags(optimizer: th.optim.Optimizer) -> tuple[Any, Any]:
    return optimizer.param_groups[0]["fused"], optimizer.param_groups[0]["foreach"]


# --- environments ----------------------------------------------------------------------------------------------------


def test_set_env_goes_on_in_the_new_environment():
    model, env = trained(), Dummy(VECTOR)
    model.set_env(env)
    assert model.get_env().envs[0].unwrapped is env
    model.learn(10, reset_num_timesteps=False)
    assert len(env.actions) == 10
    assert (model.num_timesteps, model._n_updates) == (40, 30)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Dummy(spaces.Box(-1.0, 1.0, (4,), np.float32)), "Observation spaces do not match"),
        (Dummy(VECTOR, spaces.Box(-1.0, 1.0, (3,), np.float32)), "Action spaces do not match"),
        (Dummy(VECTOR, spaces.Box(-2.0, 2.0, (2,), np.float32)), "Action spaces do not match"),
    ],
    ids=["observations", "action_shape", "action_range"],
)
def test_environment_with_other_spaces_is_refused(env, words):
    model = trained()
    with pytest.raises(ValueError, match=words):
        model.set_env(env)
    with pytest.raises(ValueError, match=words):
        SimpleDDPG.load(io.BytesIO(_saved(model)), env=env)


@pytest.mark.parametrize("force_reset", [True, False])
def test_force_reset_decides_whether_learning_on_resets(force_reset):
    model = SimpleDDPG("MlpPolicy", Chain(), **settings()).learn(10)  # stands in state 1
    model.set_env(model.get_env(), force_reset=force_reset)
    assert (model._last_obs is None) == force_reset
    model.learn(1, reset_num_timesteps=False)
    assert model.replay_buffer.observations[10, 0].argmax() == (0 if force_reset else 1)


NOISES = {
    "number": lambda: 0.2,
    "schedule": lambda: lambda progress_remaining: 0.2 * progress_remaining,
    "normal": lambda: NormalActionNoise(np.zeros(2), 0.2 * np.ones(2)),
    "ou": lambda: OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.2 * np.ones(2)),
    "ou_description": lambda: OrnsteinUhlenbeck(0.2),
    "colored": lambda: ColoredNoise(0.2),
    "vectorized": lambda: VectorizedActionNoise(NormalActionNoise(np.zeros(2), 0.2 * np.ones(2)), 2),
    "none": lambda: None,
}


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4), (4, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("noise", NOISES)
def test_model_is_loaded_with_another_number_of_environments(noise, before, after):
    model = SimpleDDPG("MlpPolicy", vector_env(before), **settings(action_noise=NOISES[noise]()))
    model.learn(20)
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=vector_env(after))
    assert loaded.n_envs == loaded.replay_buffer.n_envs == after
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])
    loaded.learn(24)
    # Learning starts after timestep 10: after 11, ... 24; 12, 14, ... 24; 12, 16, 20, 24.
    assert loaded._n_updates - model._n_updates == {1: 14, 2: 7, 4: 4}[after]
    assert loaded.replay_buffer.actions.shape[1:] == (after, 2)
    if loaded.action_noise is not None and after > 1:
        assert loaded.action_noise().shape == (after, 2)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_loaded_noise_draws_what_new_noise_draws(n_envs):
    model = SimpleDDPG("MlpPolicy", vector_env(2), **settings(action_noise=0.2, learning_starts=0)).learn(8)
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=vector_env(n_envs), gradient_steps=0)
    fresh = SimpleDDPG(
        "MlpPolicy", vector_env(n_envs), **settings(action_noise=0.2, learning_starts=0, gradient_steps=0)
    )
    fresh.policy.load_state_dict(loaded.policy.state_dict())
    for each in (loaded, fresh):
        np.random.seed(4)
        each.learn(6 * n_envs)
    np.testing.assert_array_equal(loaded.replay_buffer.actions, fresh.replay_buffer.actions)


def test_model_without_an_environment_predicts_and_says_what_learning_needs(tmp_path):
    model = trained()
    model.save(tmp_path / "model")
    loaded = SimpleDDPG.load(tmp_path / "model")
    assert loaded.get_env() is None
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])
    with pytest.raises(AssertionError, match="environment"):
        loaded.learn(10)
    loaded.set_env(Dummy(VECTOR))
    loaded.learn(20)
    assert loaded._n_updates == 20 + 10


def test_normaliser_is_saved_beside_the_model(tmp_path):
    env = VecNormalize(vector_env(2))
    model = SimpleDDPG("MlpPolicy", env, **settings()).learn(20)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normaliser.pkl"))
    loaded_env = VecNormalize.load(str(tmp_path / "normaliser.pkl"), vector_env(2))
    loaded = SimpleDDPG.load(tmp_path / "model", env=loaded_env)
    assert loaded.get_vec_normalize_env() is loaded_env
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, env.obs_rms.mean)
    loaded.learn(20)
    assert loaded._n_updates == 10


# --- parts alone, devices, buffer_size -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["mlp", "cnn", "shared"])
@pytest.mark.parametrize("part", ["policy", "actor", "actor_target"])
def test_policy_and_actors_are_saved_and_loaded_alone(part, make, tmp_path):
    model, observation = _model_for_parts(make)
    network = getattr(model, part)
    network.save(tmp_path / part)
    loaded = type(network).load(tmp_path / part)
    assert_equal_state(loaded.state_dict(), network.state_dict())
    np.testing.assert_array_equal(loaded.predict(observation)[0], network.predict(observation)[0])


@pytest.mark.parametrize("make", ["mlp", "cnn", "shared"])
@pytest.mark.parametrize("part", ["critic", "critic_target"])
def test_critics_are_saved_and_loaded_alone(part, make, tmp_path):
    model, _ = _model_for_parts(make)
    network = getattr(model, part)
    network.save(tmp_path / part)
    loaded = type(network).load(tmp_path / part)
    assert_equal_state(loaded.state_dict(), network.state_dict())
    observations = th.as_tensor(np.stack([model.observation_space.sample()] * 2))
    actions = th.tensor([[0.1, -0.2], [1.0, 0.0]])
    with th.no_grad():
        assert th.equal(*loaded(observations, actions), *network(observations, actions))


def _model_for_parts(make: str) -> tuple[SimpleDDPG, np.ndarray]:
    policy, space, kwargs = {
        "mlp": ("MlpPolicy", VECTOR, {"net_arch": {"pi": [4], "qf": [6]}, "activation_fn": th.nn.Tanh}),
        "cnn": ("CnnPolicy", CHANNEL_LAST, SMALL_CNN),
        "shared": ("MlpPolicy", VECTOR, {"net_arch": [4], "share_features_extractor": True}),
    }[make]
    model = SimpleDDPG(policy, Dummy(space), **settings(policy_kwargs=kwargs)).learn(13)
    assert model._n_updates == 3
    return model, space.sample()


def test_policy_loaded_alone_keeps_its_settings(tmp_path):
    kwargs = {
        "net_arch": [4],
        "optimizer_class": th.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.5},
        "share_features_extractor": True,
    }
    model = trained(policy_kwargs=kwargs)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    for name, value in kwargs.items():
        assert getattr(loaded, name) == value
    assert loaded.critic.features_extractor is loaded.actor.features_extractor


@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu")])
def test_model_is_loaded_on_another_device(device):
    data = _saved(trained())
    loaded = SimpleDDPG.load(io.BytesIO(data), env=Dummy(VECTOR), device=device)
    wanted = "cuda" if device == "auto" and th.cuda.is_available() else "cpu"
    assert loaded.device.type == loaded.policy.device.type == loaded.replay_buffer.device.type == wanted
    loaded.learn(20)
    state = loaded.actor.optimizer.state_dict()["state"][0]
    assert state["exp_avg"].device.type == wanted
    assert loaded._n_updates == 30


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_model_goes_to_cuda_and_back():
    on_cpu = trained()
    on_cuda = SimpleDDPG.load(io.BytesIO(_saved(on_cpu)), env=Dummy(VECTOR), device="cuda").learn(20)
    assert on_cuda.actor.mu[0].weight.is_cuda
    back = SimpleDDPG.load(io.BytesIO(_saved(on_cuda)), env=Dummy(VECTOR), device="cpu")
    assert not back.actor.mu[0].weight.is_cuda
    # Matrix products differ between the devices in the last bits.
    np.testing.assert_allclose(back.predict(OBSERVATIONS)[0], on_cuda.predict(OBSERVATIONS)[0], rtol=0, atol=1e-5)
    assert back.learn(20)._n_updates == 40


@pytest.mark.parametrize("by", ["argument", "custom_objects"])
def test_model_is_loaded_with_a_buffer_of_one_to_save_memory(by):
    model = trained()
    kwargs = {"buffer_size": 1} if by == "argument" else {"custom_objects": {"buffer_size": 1}}
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=Dummy(VECTOR), **kwargs)
    assert loaded.replay_buffer.buffer_size == 1
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])


def test_load_replay_buffer_keeps_transitions_and_settings(tmp_path):
    model = trained()
    model.save_replay_buffer(tmp_path / "buffer")
    other = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(buffer_size=50))
    other.load_replay_buffer(tmp_path / "buffer")
    assert (other.replay_buffer.pos, other.replay_buffer.buffer_size) == (30, 200)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(other.replay_buffer, name), getattr(model.replay_buffer, name))
    file = io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    other.load_replay_buffer(file)
    other.learn(20)
    assert (other._n_updates, other.replay_buffer.pos) == (10, 50)


# --- learning on -----------------------------------------------------------------------------------------------------


def test_learning_on_equals_sb3s_learning_on():
    models = []
    for model in train_side_by_side(lambda: Dummy(VECTOR), total_timesteps=20):
        np.random.seed(7)  # both draw their batches and noise from the one global generator
        model.learn(12, reset_num_timesteps=False)
        models.append(model.learn(8, reset_num_timesteps=False))
    assert models[0].num_timesteps == 40
    assert models[0]._episode_num == 5  # 40 timesteps, episodes of 7: the environment was not reset in between
    assert_same_agent(models[0], models[1], n_updates=30)


def test_two_calls_of_learn_equal_one():
    whole = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings()).learn(40)
    parts = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings()).learn(17).learn(23, reset_num_timesteps=False)
    assert whole._n_updates == parts._n_updates == 30
    assert_equal_state(parts.get_parameters(), whole.get_parameters())
    np.testing.assert_array_equal(parts.replay_buffer.actions, whole.replay_buffer.actions)


def test_learning_anew_counts_from_zero_and_keeps_the_weights():
    model = trained()
    weight = model.actor.mu[0].weight.clone()
    model.learn(8)  # all random steps again: no update
    assert (model.num_timesteps, model._n_updates) == (8, 20)
    assert model.replay_buffer.size() == 38
    assert th.equal(model.actor.mu[0].weight, weight)


# --- batch norm and dropout ------------------------------------------------------------------------------------------


class Normalised(FlattenExtractor):
    """Batch norm and, if asked, dropout in front of the network; notes the mode and batch size of each call."""

    def __init__(self, observation_space: spaces.Space[Any], dropout: float = 0.0) -> None:
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)
        self.dropout = th.nn.Dropout(dropout)
        self.calls: list[tuple[bool, int]] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.calls.append((self.training, len(observations)))
        return self.dropout(self.norm(super().forward(observations)))


def normalised(dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
    extractor = {"features_extractor_class": Normalised, "features_extractor_kwargs": {"dropout": dropout}}
    return {"policy_kwargs": {"net_arch": [16], **extractor, **changes}}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.005])
def test_batch_norm_trains_like_sb3(tau, shared):
    ours, theirs = train_side_by_side(lambda: Dummy(VECTOR), tau=tau, **normalised(share_features_extractor=shared))
    assert int(ours.actor.features_extractor.norm.num_batches_tracked) > 0
    assert_same_agent(ours, theirs, n_updates=20)


def test_running_statistics_are_copied_to_the_targets_even_with_tau_zero():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(tau=0.0, **normalised()))
    weight = model.actor_target.mu[0].weight.clone()
    model.learn(20)
    for network in ("actor", "critic"):
        norm = getattr(model, network).features_extractor.norm
        target_norm = getattr(model, f"{network}_target").features_extractor.norm
        assert not th.equal(norm.running_mean, th.zeros(3))
        assert th.equal(target_norm.running_mean, norm.running_mean)
        assert th.equal(target_norm.running_var, norm.running_var)
    assert th.equal(model.actor_target.mu[0].weight, weight)  # weights stay: tau is 0


def test_batch_norm_and_dropout_collect_in_evaluation_mode_and_train_in_training_mode():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(**normalised(dropout=0.5))).learn(20)
    batch, one = 8, 1
    # The actor answers once for each of 10 steps after the random ones, and once in each of 10 updates.
    actor_calls = model.actor.features_extractor.calls
    assert [training for training, size in actor_calls if size == one] == [False] * 10
    assert [training for training, size in actor_calls if size == batch] == [True] * 10
    # The critic is asked twice in an update: for its own loss, and for the actor's.
    assert model.critic.features_extractor.calls == [(True, batch)] * 20
    for target in (model.actor_target, model.critic_target):
        assert target.features_extractor.calls == [(False, batch)] * 10
        assert not any(module.training for module in target.modules())


def test_prediction_does_not_drop_and_does_not_move_the_statistics():
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(**normalised(dropout=0.5))).learn(20)
    mean = model.actor.features_extractor.norm.running_mean.clone()
    first, _ = model.predict(OBSERVATIONS)
    second, _ = model.predict(OBSERVATIONS)
    np.testing.assert_array_equal(first, second)
    assert th.equal(model.actor.features_extractor.norm.running_mean, mean)


def test_set_training_mode_never_reaches_the_targets():
    policy = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(**normalised())).policy
    for mode in (True, False):
        policy.set_training_mode(mode)
        assert policy.training == policy.actor.training == policy.critic.training == mode
        assert not policy.actor_target.training
        assert not policy.critic_target.training


def test_batch_norm_statistics_are_saved_and_go_on_after_loading(tmp_path):
    model = SimpleDDPG("MlpPolicy", Dummy(VECTOR), **settings(**normalised())).learn(20)
    loaded = SimpleDDPG.load(io.BytesIO(_saved(model)), env=Dummy(VECTOR))
    assert_equal_state(loaded.policy.state_dict(), model.policy.state_dict())
    loaded.learn(20)
    # The lists of statistics belong to the loaded networks, not to the ones that load threw away.
    norm, target_norm = (each.features_extractor.norm for each in (loaded.actor, loaded.actor_target))
    assert int(norm.num_batches_tracked) == 20
    assert th.equal(target_norm.running_mean, norm.running_mean)
