"""Which library multiplies: the numbers stay SB3's, nobody else's products are touched. Not here: how fast it is."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.speed import layers, products, torch_private
from sb3_simple_ddpg.speed.layers import DenseLayers, FastGradients
from tests.differential import (
    Setting,
    check_plain_against_compiled,
    check_plain_against_sb3,
    drawn_settings,
    make,
    train,
)

pytestmark = pytest.mark.skipif(torch_private.onednn_product is None, reason="this PyTorch has no oneDNN")
OURS = torch_private.onednn_product
DRAWN = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
SMALL = Setting(
    "vector", (2,), {"learning_rate": 1e-3}, {"net_arch": [16, 16], "optimizer_kwargs": {"eps": 1e-3}}, batch_size=32
)


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known yet, three turns have to do, and the smallest product is large enough."""
    monkeypatch.setattr(products, "_gains", {})
    monkeypatch.setattr(products, "PROBE", 0.0)
    monkeypatch.setattr(products, "SMALLEST", 1)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN has multiplied for the plain path: (rows, inner, columns); the probes' are left out."""
    shapes: list[tuple[int, ...]] = []
    apply = layers._OneDNNLinear.apply

    def noted(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        shapes.append((*inputs.shape, len(weight)))
        return apply(inputs, weight, bias)

    monkeypatch.setattr(layers._OneDNNLinear, "apply", noted)
    return shapes


class Every(dict[tuple[int, int, int], float]):
    """Every shape is in it."""

    def __bool__(self) -> bool:
        return True

    def __contains__(self, shape: object) -> bool:
        return 0 not in shape

    def get(self, shape: object, default: float = 0.0) -> float:
        return np.inf


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of every size is oneDNN's, also of batches that nobody has announced."""
    monkeypatch.setenv(products.VARIABLE, "onednn")
    monkeypatch.setattr(layers, "of_the_plain_path", Every)


def gains(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """OneDNN is so many times as fast with everything."""
    monkeypatch.setattr(products, "_measured", lambda *_: gain)


def announced(setting: Setting, algorithm: type[Any] = SimpleDDPG) -> Any:
    """A model that knows the size of its batches when it begins to learn."""
    return make(setting, algorithm, batch_size=setting.batch_size)


@pytest.mark.usefixtures("everywhere")
@settings(max_examples=30, **DRAWN)
@given(setting=drawn_settings(for_sb3=True))
def test_plain_updates_by_onednn_give_sb3_s_weights_in_any_drawn_setting(
    setting: Setting, called: list[tuple[int, ...]]
):
    called.clear()
    check_plain_against_sb3(setting)
    assert called


@pytest.mark.slow
@pytest.mark.usefixtures("everywhere", "recorded_or_compiled")
@settings(max_examples=6, **DRAWN)
@given(setting=drawn_settings())
def test_compiled_updates_by_onednn_give_the_plain_path_s_weights(setting: Setting, compiled_calls: list[str]):
    check_plain_against_compiled(setting, compiled_calls)


@pytest.mark.long
@pytest.mark.usefixtures("everywhere", "compiler_itself")
def test_compiled_code_multiplies_by_onednn(capfd: pytest.CaptureFixture[str]):
    """What runs is told by oneDNN itself, in a line for each product."""
    model = make(SMALL, compile_updates=True)
    train(SMALL, model)
    assert model._compiled.failure is None
    before = [weight.clone() for weight in model.policy.parameters()]
    with th.backends.mkldnn.verbose(th.backends.mkldnn.VERBOSE_ON):
        model.train(1, 32)
    ctypes.CDLL(None).fflush(None)  # C's own buffer
    lines = [line for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    # Of hidden layers (16, 16) with 32 rows, the other way round since they are narrow: forward 5, back to inputs 3.
    assert sum("mb16ic16oc32" in line for line in lines) >= 8
    assert all("src:f32" in line and "wei:f32" in line and "fpmath" not in line for line in lines)
    assert any(not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


@settings(max_examples=60, **DRAWN)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    order=st.sampled_from([lambda each: each, lambda each: each.t().contiguous().t(), lambda each: each.repeat(1, 2)]),
    seed=st.integers(0, 1000),
)
def test_a_layer_and_its_gradients_are_those_of_pytorch(
    shape: tuple[int, int, int], order: Callable[[th.Tensor], th.Tensor], seed: int
):
    """Inputs, weights and gradients in any order in memory: by rows, by columns, as a part of something wider."""
    rows, inner, columns = shape
    th.manual_seed(seed)
    inputs = order(th.randn(rows, inner))[:, :inner].requires_grad_()
    weight = order(th.randn(columns, inner))[:, :inner].requires_grad_()
    bias, slope = th.randn(columns, requires_grad=True), order(th.randn(rows, columns))[:, :columns]
    expected = nn.functional.linear(inputs, weight, bias)
    outputs = layers._OneDNNLinear.apply(inputs, weight, bias)
    assert th.allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    ours = th.autograd.grad(outputs, (inputs, weight, bias), slope)
    theirs = th.autograd.grad(expected, (inputs, weight, bias), slope)
    for one, other in zip(ours, theirs, strict=True):
        assert th.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("everywhere")
def test_gradients_of_gradients_are_there():
    """A penalty on the critic's gradient, in an update of the user's own, goes through layers twice."""
    tensors = [th.randn(*shape, requires_grad=True) for shape in ((5, 4), (3, 4), (3,))]
    found = []
    for linear in (layers._OneDNNLinear.apply, nn.functional.linear):
        (slope,) = th.autograd.grad(linear(*tensors).pow(2).sum(), tensors[:1], create_graph=True)
        found.append([slope, *th.autograd.grad(slope.pow(2).sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        assert th.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("everywhere")
def test_transforms_of_torch_func_go_pytorch_s_way(called: list[tuple[int, ...]]):
    network, inputs = DenseLayers(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), th.randn(5, 4)
    weights = dict(network.named_parameters())

    def loss(weights: dict[str, th.Tensor], row: th.Tensor) -> th.Tensor:
        return th.func.functional_call(network, weights, (row[None],)).sum()

    with FastGradients():
        each = th.func.vmap(th.func.grad(loss), in_dims=(None, 0))(weights, inputs)
        assert not called
        network(inputs).sum().backward()
    # Two layers, for each its product and its weight's gradient, and what the second gives back to the first.
    assert sorted(called) == [(1, 5, 6), (5, 1, 6), (5, 4, 6), (5, 6, 1), (6, 5, 4)]
    for name, weight in weights.items():
        assert th.allclose(each[name].sum(0), weight.grad, atol=1e-5)


@pytest.mark.usefixtures("everywhere")
def test_only_our_own_updates_are_multiplied_by_onednn(called: list[tuple[int, ...]]):
    before = th.get_float32_matmul_precision(), th.backends.mkldnn.enabled, th.get_rng_state()
    theirs, ours = make(SMALL, DDPG), make(SMALL)
    called.clear()
    train(SMALL, theirs)
    ours.predict(np.zeros((64, 3), np.float32))
    ours.policy(th.zeros(64, 3))
    assert not called
    th.set_rng_state(before[2])
    train(SMALL, ours)
    assert called
    assert (th.get_float32_matmul_precision(), th.backends.mkldnn.enabled) == before[:2]
    assert th.equal(th.get_rng_state(), before[2])  # the probes draw from a stream of their own


def bfloat16(left: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    assert bias is None
    return (left.bfloat16() @ weight.t().bfloat16()).float()


def without_a_way(*_: th.Tensor) -> th.Tensor:
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize("said", ["", "onednn"])
@pytest.mark.parametrize("product", [bfloat16, without_a_way])
def test_a_library_that_rounds_to_bfloat16_or_fails_is_not_taken(
    said: str, product: Any, called: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(products.VARIABLE, said)
    monkeypatch.setattr(torch_private, "onednn_product", product)
    assert products._measured(64, 64, 64) == 0.0
    train(SMALL, announced(SMALL))
    assert not called


def choose_precision() -> Callable[[], None]:
    th.set_float32_matmul_precision("high")
    return lambda: th.set_float32_matmul_precision("highest")


def turn_off() -> Callable[[], None]:
    th.backends.mkldnn.set_flags(False)
    return lambda: th.backends.mkldnn.set_flags(True)


@pytest.mark.parametrize("decide", [choose_precision, turn_off])
def test_who_has_decided_is_obeyed_also_between_two_calls_of_train(
    decide: Callable[[], Callable[[], None]], called: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
):
    gains(monkeypatch, 2.0)
    model = announced(SMALL)
    model.train(1, 32)
    assert called
    undo = decide()
    try:
        called.clear()
        model.train(1, 32)
        assert not called
    finally:
        undo()
    model.train(1, 32)
    assert called
    called.clear()
    monkeypatch.setenv(products.VARIABLE, "mkl")
    model.train(1, 32)
    assert not called


@pytest.mark.parametrize(
    ("gain", "layers_by_onednn", "gradients_of_weights"), [(1.2, False, False), (1.3, True, False), (1.6, True, True)]
)
def test_the_plain_path_takes_it_where_it_is_clearly_faster(
    gain: float,
    layers_by_onednn: bool,
    gradients_of_weights: bool,
    called: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
):
    """A quarter faster for a layer; half as fast again for the gradient of its weight, which takes a copy."""
    gains(monkeypatch, gain)
    train(SMALL, announced(SMALL))
    assert ((32, 16, 16) in called) is layers_by_onednn
    assert ((16, 32, 16) in called) is gradients_of_weights


def test_train_tries_nothing_itself(called: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch):
    model = announced(SMALL)
    monkeypatch.setattr(products, "_measured", lambda *_: pytest.fail("tried"))
    model.train(1, 33)
    assert not [shape for shape in called if 33 in shape]


@pytest.mark.parametrize(
    ("processor", "needed"), [("AuthenticAMD 25 17 AVX512", 0.9), ("AuthenticAMD 25 1 AVX2", 1.25)]
)
def test_compiled_code_takes_it_on_amd_s_wide_units_unless_it_is_slower(
    processor: str, needed: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(products, "_processor", lambda: processor)
    assert products.needed_in_compiled_code() == needed
    for gain in (0.89, 0.91, 1.24, 1.26):
        monkeypatch.setattr(products, "_gains", {})
        gains(monkeypatch, gain)
        assert products.by_onednn(8, 8, 8, products.needed_in_compiled_code()) is (gain >= needed)


def test_small_products_are_not_even_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "SMALLEST", 2_000_000)
    with monkeypatch.context() as no_probe:
        no_probe.setattr(products, "_measured", lambda *_: pytest.fail("tried"))
        assert not products.by_onednn(256, 64, 64, 0.0)
    monkeypatch.setenv(products.VARIABLE, "onednn")  # whoever says so gets it for these too
    assert products.by_onednn(256, 64, 64, 2.0)
    assert not products.by_onednn(0, 64, 64, 2.0)


def test_the_log_says_it_once_a_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    gains(monkeypatch, 1.75)
    model = make(SMALL, verbose=1)
    expected = "oneDNN, in float32: 14 of the 14 that are large enough, 1.75 times as fast here as by MKL"
    assert capsys.readouterr().out.count(expected) == 1
    monkeypatch.setenv(products.VARIABLE, "mkl")
    model.learn(80, reset_num_timesteps=False)
    assert "oneDNN" not in capsys.readouterr().out


def test_a_training_that_goes_on_multiplies_as_it_began(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """It is to give the same weights; what another process would measure may differ where both are as fast."""
    gains(monkeypatch, 1.3)
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1", learning_starts=20, policy_kwargs={"net_arch": [16, 16]}, seed=0)
    model.learn(30)
    model.save_checkpoint(tmp_path)
    monkeypatch.setattr(products, "_gains", {})
    gains(monkeypatch, 1.2)
    SimpleDDPG.resume(tmp_path, "Pendulum-v1").learn(10, reset_num_timesteps=False)
    assert set(products._gains.values()) == {1.3}
    monkeypatch.setattr(products, "_gains", {})
    SimpleDDPG.resume(tmp_path, "Pendulum-v1").learn(10)  # a training of its own
    assert set(products._gains.values()) == {1.2}


def test_another_name_in_the_environment_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(products.VARIABLE, "openblas")
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="SIMPLE_DDPG_PRODUCTS must be mkl or onednn, got 'openblas'"):
        model.learn(10)
    assert model.num_timesteps == 0
