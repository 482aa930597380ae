"""Presets: they are what their source says, and the constructor takes them. Not here: what they achieve (README.md)."""

import copy
import re
from pathlib import Path

import pytest
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

from sb3_simple_ddpg import SimpleDDPG, presets
from tests.environments import Bandit


@pytest.mark.parametrize("name", [*presets.PRESETS, *presets.RL_ZOO])
def test_every_preset_is_taken_by_the_constructor_and_stays_as_it_is(name: str):
    preset = presets.PRESETS.get(name) or presets.RL_ZOO.get(name, {})
    given = copy.deepcopy(preset)
    model = SimpleDDPG("MlpPolicy", Bandit(), **preset)
    assert str(preset) == str(given)
    assert model.gamma == preset.get("gamma", 0.99)
    assert model.policy.net_arch == preset.get("policy_kwargs", {}).get("net_arch", [400, 300])


def test_article_is_the_article_s_code():
    model = SimpleDDPG("MlpPolicy", Bandit(), **presets.ARTICLE)
    assert [layer.out_features for layer in model.actor.mu if hasattr(layer, "out_features")] == [1000, 500, 200, 1]
    assert [layer.out_features for layer in model.critic.qf0 if hasattr(layer, "out_features")] == [400, 200, 1]
    assert (model.batch_size, model.tau, model.learning_starts, model.gradient_steps) == (32, 0.01, 1_000, -1)
    assert model.train_freq.unit.value == "episode"


def test_lillicrap2015_has_two_learning_rates_weight_decay_and_wandering_noise():
    model = SimpleDDPG("MlpPolicy", Bandit(), **presets.LILLICRAP2015)
    assert model.lr_schedule(1.0) == 1e-4
    assert model.critic_lr_schedule(1.0) == 1e-3
    assert model.actor.optimizer.defaults["weight_decay"] == 0
    assert model.critic.optimizer.defaults["weight_decay"] == 1e-2
    assert isinstance(model.action_noise, OrnsteinUhlenbeckActionNoise)
    assert (model.action_noise._theta, model.action_noise._sigma.item()) == (0.15, 0.2)
    assert model.actor.mu[-2].weight.abs().max() <= 3e-3


def test_fujimoto2018_is_our_ddpg():
    model = SimpleDDPG("MlpPolicy", Bandit(), **presets.FUJIMOTO2018)
    assert (model.batch_size, model.tau, model.action_noise.scale) == (100, 0.005, 0.1)


def test_layer_norm_has_it_in_both_networks_and_a_learning_rate_that_falls():
    model, default = SimpleDDPG("MlpPolicy", Bandit(), **presets.LAYER_NORM), SimpleDDPG("MlpPolicy", Bandit())
    for layers in (model.actor.mu, model.critic.qf0):
        kinds = [type(layer).__name__ for layer in layers]
        assert kinds[:6] == ["Linear", "LayerNorm", "ReLU"] * 2
    assert [model.lr_schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert (model.batch_size, model.learning_starts) == (100, 10_000)
    for name in ("gamma", "tau", "n_steps", "buffer_size"):
        assert getattr(model, name) == getattr(default, name)
    assert model.action_noise.scale == default.action_noise.scale


def test_rl_zoo_s_hardcore_schedule_falls_from_its_start_to_zero():
    model = SimpleDDPG("MlpPolicy", Bandit(), **presets.RL_ZOO["BipedalWalkerHardcore-v3"])
    assert [model.lr_schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([7e-4, 3.5e-4, 0.0])


def test_pendulum_has_a_preset_of_its_own_and_others_the_defaults():
    assert presets.choose_preset(None, "Pendulum-v1") == ("pendulum", presets.PENDULUM)
    assert presets.choose_preset(None, "LunarLanderContinuous-v3") == ("default", {})
    assert presets.choose_preset("rl-zoo", "Pendulum-v1") == ("rl-zoo", presets.RL_ZOO["Pendulum-v1"])


def test_robust_comes_with_normalised_observations_on_the_command_line():
    assert presets.choose_preset("robust", "Pendulum-v1") == (
        "robust",
        {**presets.ROBUST, "normalize_observations": True},
    )


@pytest.mark.parametrize("name", [*presets.PRESETS, "rl-zoo"])
@pytest.mark.parametrize("way", ["chosen", "built"])
def test_whatever_a_caller_changes_the_presets_stay_as_they_are(name: str, way: str):
    before = repr((presets.PRESETS, presets.RL_ZOO["Pendulum-v1"]))  # SB3's schedules are equal to themselves alone
    settings = presets.choose_preset(name, "Pendulum-v1")[1]
    if way == "built":  # the preset itself, as in README.md, and what the model made of it
        preset = presets.RL_ZOO["Pendulum-v1"] if name == "rl-zoo" else presets.PRESETS[name]
        settings = vars(SimpleDDPG("MlpPolicy", Bandit(), **preset))
    kwargs = settings.setdefault("policy_kwargs", {})
    for layers in kwargs["net_arch"].values() if isinstance(kwargs.get("net_arch"), dict) else [kwargs.get("net_arch")]:
        if layers is not None:
            layers.append(8)
    kwargs.setdefault("critic_optimizer_kwargs", {})["weight_decay"] = 0.5
    kwargs["last_layer_init"] = 0.5
    settings["gamma"] = 0.5
    assert before == repr((presets.PRESETS, presets.RL_ZOO["Pendulum-v1"]))


@pytest.mark.parametrize(
    ("name", "env_id", "message"),
    [("robst", "Pendulum-v1", "no preset 'robst': choose from default"), ("rl-zoo", "Nope-v0", "no DDPG settings for")],
)
def test_unknown_presets_are_refused_with_the_known_ones(name: str, env_id: str, message: str):
    with pytest.raises(ValueError, match=message):
        presets.choose_preset(name, env_id)


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "default"])
def test_every_preset_says_where_its_settings_are_from(name: str):
    """A publication, or runs of our own: over how many seeds, or the study's records in this repository."""
    source = Path(presets.__file__).read_text("utf-8")
    comment = re.search(rf"((?:^#: .+\n)+){name.upper().replace('-', '_')}: Final", source, re.MULTILINE)
    assert comment is not None
    assert re.search(r"https://|published code|docs/(?:results|study|mujoco)/\S+|over (\w+) seeds", comment.group(1))
    for path in re.findall(r"docs/(?:results|study|mujoco)/[\w/.-]*\w", comment.group(1)):
        assert (Path(__file__).parent.parent / path).exists(), path
