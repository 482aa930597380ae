"""Hidden layers with layer norm and in residual blocks: what they compute, and that all else works with them.

Not here: compiled updates (`test_compiled.py`, `test_differential.py`), and SB3, which has no such layers
(`test_convert.py`).
"""

import copy
import json
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sb3_simple_ddpg import DDPGPolicy, SimpleDDPG
from sb3_simple_ddpg.blocks import KINDS, ResidualBlock, make_layers
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.command_line import cli
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.algorithms import effective_settings, find_algorithms, settings_from
from sb3_simple_ddpg.export import export_onnx, load_policy, save_policy
from sb3_simple_ddpg.policies import Actor
from tests.side_by_side import Dummy

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
OTHERS = pytest.mark.parametrize("layers", ["layer_norm", "residual", {"qf": "residual", "pi": "layer_norm"}])


def make_policy(**kwargs: Any) -> DDPGPolicy:
    return DDPGPolicy(OBSERVATIONS, ACTIONS, lambda progress: 1e-3, **{"net_arch": [16, 8], **kwargs})


def make_model(layers: Any, **kwargs: Any) -> SimpleDDPG:
    kwargs["policy_kwargs"] = {"net_arch": [16, 8], "layers": layers}
    env = Dummy(OBSERVATIONS, ACTIONS)
    return SimpleDDPG("MlpPolicy", env, buffer_size=500, batch_size=16, learning_starts=20, seed=1, **kwargs)


def norm(values: th.Tensor, layer: nn.LayerNorm) -> th.Tensor:
    """Each row less its mean, through the root of its mean square; 1e-5 is PyTorch's."""
    centred = values - values.mean(1, keepdim=True)
    root = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return layer.weight * centred / root + layer.bias


def product(values: th.Tensor, layer: nn.Linear) -> th.Tensor:
    return values @ layer.weight.t() + layer.bias


def by_hand(kind: str, layers: list[nn.Module], values: th.Tensor) -> th.Tensor:
    """The layers' output without tanh at the end, from their weights alone."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    norms = [layer for layer in layers if isinstance(layer, nn.LayerNorm)]
    if kind == "residual":
        values = product(values, linear[0])
        for block in (layer for layer in layers if isinstance(layer, ResidualBlock)):
            before, up, _, down = block.change
            values = values + product(F.elu(product(norm(values, before), up)), down)
        values = norm(values, norms[0]) if norms else values
        return product(values, linear[1]) if norms else values
    for place, layer in enumerate(linear[:-1]):
        values = product(values, layer)
        values = F.elu(norm(values, norms[place]) if kind == "layer_norm" else values)
    return product(values, linear[-1])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(KINDS),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 4),
    net_arch=st.lists(st.integers(2, 40), max_size=4),
    squash_output=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_compute_what_their_docstring_says(kind, inputs, outputs, net_arch, squash_output, seed):
    th.manual_seed(seed)
    layers = make_layers(kind, inputs, outputs, net_arch, nn.ELU, squash_output)
    for weight in nn.Sequential(*layers).parameters():
        nn.init.normal_(weight)  # those of layer norm start at 1 and 0, which would hide what they do
    values = th.randn(5, inputs)
    expected = by_hand(kind, layers, values)
    expected = expected.tanh() if squash_output else expected
    # 1e-4 of the largest number: sums in another order.
    found = nn.Sequential(*layers)(values)
    assert found.shape == (5, outputs)
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.detach().abs().max()))


def test_the_kinds_are_these_layers_in_this_order():
    def names(kind: str, net_arch: list[int]) -> list[str]:
        return [str(layer).partition("(")[0] for layer in make_layers(kind, 3, 2, net_arch, nn.ReLU)]

    assert names("dense", [8, 4]) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert names("layer_norm", [8, 4]) == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert names("residual", [8, 4, 32]) == ["Linear", "ResidualBlock", "ResidualBlock", "LayerNorm", "Linear"]
    assert all(names(kind, []) == ["Linear"] for kind in KINDS)
    # [8, 4, 32]: 8 numbers go through both blocks, which have 4 and 32 units.
    blocks = make_layers("residual", 3, 2, [8, 4, 32], nn.ReLU)[1:3]
    assert [[tuple(weight.shape) for weight in block.parameters() if weight.dim() == 2] for block in blocks] == [
        [(4, 8), (8, 4)], [(32, 8), (8, 32)],
    ]  # fmt: skip


def test_networks_have_the_layers_that_were_asked_for_and_dense_ones_otherwise():
    def kinds(layers: Any) -> tuple[str, str]:
        policy = make_policy(layers=layers)
        networks = (policy.actor, policy.critic), (policy.actor_target, policy.critic_target)
        main, target = (tuple(network.layer_kind for network in pair) for pair in networks)
        assert main == target
        for network in (policy.actor.mu, policy.critic.qf0):
            found = {type(layer) for layer in network}
            kind = "residual" if ResidualBlock in found else "layer_norm" if nn.LayerNorm in found else "dense"
            assert kind == main[network is policy.critic.qf0]
        return main

    assert kinds("dense") == ("dense", "dense")
    assert kinds("residual") == ("residual", "residual")
    assert kinds({"qf": "layer_norm"}) == ("dense", "layer_norm")
    assert kinds({"pi": "residual", "qf": "layer_norm"}) == ("residual", "layer_norm")


def test_one_seed_gives_the_actor_of_dense_layers_whatever_the_critic_is_made_of():
    actors = []
    for layers in ("dense", {"qf": "residual"}):
        th.manual_seed(4)
        actors.append(make_policy(layers=layers).actor.state_dict())
    assert all(th.equal(actors[0][name], actors[1][name]) for name in actors[0].keys() | actors[1].keys())


@OTHERS
def test_targets_start_equal_and_last_layers_small(layers):
    policy = make_policy(layers=layers, last_layer_init=3e-3)
    for main, target in ((policy.actor, policy.actor_target), (policy.critic, policy.critic_target)):
        assert all(map(th.equal, main.state_dict().values(), target.state_dict().values()))
    last = policy.actor.mu[-2], policy.critic.qf0[-1]
    assert [layer.out_features for layer in last] == [2, 1]
    assert all(0 < weight.abs().max() <= 3e-3 for layer in last for weight in layer.parameters())


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (
            "residul",
            r"one of dense, layer_norm, residual, or dict\(pi=..., qf=...\), got 'residul': did you mean resid",
        ),
        ({"qf": "norm"}, "got 'norm': did you mean layer_norm"),
        ({"vf": "residual"}, "keys 'pi' .actor. and 'qf' .critic., got 'vf'"),
        (None, "got None: choose from dense, layer_norm, residual"),
    ],
)
def test_unknown_layers_are_refused_with_the_nearest(layers, told):
    with pytest.raises(ValueError, match=told):
        make_model(layers)


@pytest.mark.parametrize(("kind", "net_arch"), [("layer_norm", [16, 1]), ("residual", [1, 16])])
def test_a_layer_norm_over_one_number_is_refused_since_it_is_0_whatever_goes_in(kind, net_arch):
    assert nn.LayerNorm(1)(th.tensor([[7.0]])).item() == 0.0
    with pytest.raises(ValueError, match=r"has a layer norm over one number.*use 2 units or more"):
        make_layers(kind, 3, 1, net_arch, nn.ReLU)
    make_layers(kind, 3, 1, [2, 2], nn.ReLU)


@OTHERS
def test_training_moves_every_weight_of_every_layer(layers):
    model = make_model(layers)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(60)
    assert model._n_updates == 40
    after = model.policy.state_dict()
    assert [name for name in before if th.equal(before[name], after[name])] == []
    assert not model.policy.depends_on_mode


@OTHERS
def test_a_saved_model_its_policy_and_its_actor_are_read_again_as_they_were(layers, tmp_path):
    model = make_model(layers).learn(40)
    observations = np.random.default_rng(0).uniform(-1, 1, (5, *model.observation_space.shape)).astype(np.float32)
    expected = model.predict(observations)[0]
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.actor.save(tmp_path / "actor")
    loaded = SimpleDDPG.load(tmp_path / "model", device="cpu"), DDPGPolicy.load(tmp_path / "policy", device="cpu")
    for each in (*loaded, Actor.load(tmp_path / "actor", device="cpu"), copy.deepcopy(model)):
        np.testing.assert_array_equal(each.predict(observations)[0], expected)
    assert loaded[1].layers == layers
    assert loaded[1].critic.layer_kind == model.critic.layer_kind


@OTHERS
def test_a_resumed_run_equals_the_uninterrupted_one(layers, tmp_path):
    def callback(folder: str) -> ExactCheckpointCallback:
        return ExactCheckpointCallback(tmp_path / folder, 30)

    whole = make_model(layers).learn(60, callback("whole"))
    make_model(layers).learn(30, callback("stopped"))
    resumed = SimpleDDPG.resume(tmp_path / "stopped", Dummy(OBSERVATIONS, ACTIONS))
    resumed.learn(30, callback("stopped"), reset_num_timesteps=False)
    assert resumed._n_updates == whole._n_updates == 40
    expected, found = whole.policy.state_dict(), resumed.policy.state_dict()
    assert [name for name in expected if not th.equal(expected[name], found[name])] == []


@OTHERS
def test_both_files_act_as_the_model_does(layers, tmp_path):
    model = make_model(layers).learn(40)
    save_policy(model, tmp_path / "policy.safetensors")
    export_onnx(model, tmp_path / "policy.onnx")
    observations = np.random.default_rng(0).uniform(-1, 1, (5, *model.observation_space.shape)).astype(np.float32)
    expected = model.predict(observations)[0]
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    answers = [
        load_policy(tmp_path / "policy.safetensors").predict(observations)[0],
        session.run(["action"], {"observation": observations})[0],
    ]
    for actions in answers:
        np.testing.assert_allclose(actions, expected, atol=1e-5)  # of a range of 2


@pytest.mark.parametrize("net_arch", [[], [8], [8, 4, 32]])
@pytest.mark.parametrize("layers", KINDS)
def test_a_policy_file_knows_any_number_of_layers_and_its_dense_ones_are_those_of_before(layers, net_arch, tmp_path):
    model = SimpleDDPG(
        "MlpPolicy", Dummy(OBSERVATIONS, ACTIONS), policy_kwargs={"net_arch": net_arch, "layers": layers}, buffer_size=1
    )
    save_policy(model, tmp_path / "policy.safetensors")
    loaded = load_policy(tmp_path / "policy.safetensors")
    observation = model.observation_space.sample()
    np.testing.assert_allclose(loaded.predict(observation)[0], model.predict(observation)[0], atol=1e-5)
    content = (tmp_path / "policy.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description = json.loads(header["__metadata__"]["description"])
    assert description.get("layers", "none") == ("none" if layers == "dense" else layers)
    assert description["hidden"] == net_arch


def test_a_policy_file_with_a_layer_of_one_s_own_in_a_block_is_refused_with_nothing_written(tmp_path):
    model = make_model("residual")
    model.actor.mu[1].change[2] = nn.Hardtanh()
    with pytest.raises(ValueError, match=r"no words for mu\.1\.change\.2 Hardtanh.*use export_onnx"):
        save_policy(model, tmp_path / "policy.safetensors")
    assert list(tmp_path.iterdir()) == []


@OTHERS
def test_diagnose_sees_an_actor_of_these_layers_stand_still_at_a_bound(layers):
    model = make_model(layers).learn(100)
    assert "saturation" not in [finding.fault for finding in model.diagnose()]
    model.actor.mu[-2].bias.data.fill_(30.0)
    assert "saturation" in [finding.fault for finding in model.diagnose()]


def test_the_commands_take_layers_by_name_and_by_network(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--timesteps", "210", "--eval-episodes", "1", "--out", str(out), "--no-progress"]
    chosen = ["policy_kwargs.net_arch=[8,8]", "policy_kwargs.layers.qf=residual"]
    assert cli.main(["train", "--env", "Pendulum-v1", "--preset", "default", *options, "--set", *chosen]) == 0
    model = runs.load_run(out)
    assert (model.actor.layer_kind, model.critic.layer_kind) == ("dense", "residual")
    assert isinstance(model.critic.qf0[1], ResidualBlock)
    algorithms = find_algorithms(["simple_ddpg", "other=sb3_simple_ddpg:SimpleDDPG"])
    found = settings_from(algorithms, ["other.policy_kwargs.layers=layer_norm"])
    assert found == {"simple_ddpg": {}, "other": {"policy_kwargs": {"layers": "layer_norm"}}}
    # What `compare` prints and stores.
    shown = effective_settings(algorithms[1], "Pendulum-v1", found["other"])
    assert shown["policy_kwargs.layers"] == "layer_norm"
