"""The fused optimizers take PyTorch's step bit for bit, the short way where it can and PyTorch's own elsewhere."""

from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.speed import optimizers
from sb3_simple_ddpg.speed.optimizers import FusedAdam, FusedAdamW, FusedSGD
from tests.environments import Bandit

PAIRS = [(FusedAdam, th.optim.Adam), (FusedAdamW, th.optim.AdamW)]


def make_network() -> nn.Sequential:
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 1))


def take_steps(network: nn.Sequential, optimizer: th.optim.Optimizer, count: int) -> None:
    inputs = th.linspace(-1, 1, 12).reshape(4, 3)
    for _ in range(count):
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each step that took the short way."""
    taken: list[int] = []
    short_step = optimizers._ShortStep._short_step
    monkeypatch.setattr(optimizers._ShortStep, "_short_step", lambda self: taken.append(1) or short_step(self))
    return taken


@pytest.mark.parametrize(("fused", "plain"), PAIRS)
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}])
def test_steps_and_states_equal_pytorch_s_fused_kernel_bit_for_bit(fused, plain, settings, short_steps):
    networks = make_network(), make_network()
    pair = [kind(net.parameters(), lr=0.01, fused=True, **settings) for kind, net in zip((fused, plain), networks)]  # noqa: B905
    for network, optimizer in zip(networks, pair, strict=True):
        take_steps(network, optimizer, 4)
        optimizer.param_groups[0]["lr"] = 0.1  # follows a schedule
        take_steps(network, optimizer, 4)
    assert all(map(th.equal, networks[0].parameters(), networks[1].parameters()))
    states = [optimizer.state_dict()["state"] for optimizer in pair]
    for index, state in states[1].items():
        assert all(th.equal(states[0][index][name], value) for name, value in state.items())
    assert len(short_steps) == 7  # all but the first, in which PyTorch creates the state


def test_state_goes_to_and_fro_between_ours_and_pytorch_s(short_steps):
    network = make_network()
    ours, theirs = FusedAdam(network.parameters(), fused=True), th.optim.Adam(network.parameters(), fused=True)
    take_steps(network, theirs, 3)
    ours.load_state_dict(theirs.state_dict())
    take_steps(network, ours, 2)
    assert len(short_steps) == 2
    assert {state["step"].item() for state in ours.state.values()} == {5.0}


@pytest.mark.parametrize("variant", ["amsgrad", "maximize", "two groups", "float64", "no gradient", "closure"])
def test_what_the_short_way_does_not_know_goes_pytorch_s(variant: str, short_steps):
    networks = make_network(), make_network()
    for network, kind in zip(networks, (FusedAdam, th.optim.Adam), strict=True):
        if variant == "float64":
            network.double()
        weights: Any = list(network.parameters())
        if variant == "two groups":
            weights = [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.1}]
        flags = {variant: True} if variant in ("amsgrad", "maximize") else {}
        optimizer = kind(weights, fused=True, **flags)
        for _ in range(3):
            network(th.ones(1, 3, dtype=network[0].weight.dtype)).sum().backward()
            if variant == "no gradient":
                network[0].bias.grad = None
            optimizer.step((lambda: 1.0) if variant == "closure" else None)
    assert all(map(th.equal, networks[0].parameters(), networks[1].parameters()))
    assert short_steps == []


@pytest.mark.parametrize("patched", [False, True])
def test_hooks_are_called_once_a_step(patched: bool, monkeypatch, short_steps):
    # PyTorch wraps Adam.step when the first Adam of the process is made: before or after, it must not matter.
    monkeypatch.setattr(th.optim.Adam, "step", getattr(th.optim.Adam.step, "__wrapped__", th.optim.Adam.step))
    network = make_network()
    if patched:
        th.optim.Adam(network.parameters())
    optimizer = FusedAdam(network.parameters(), fused=True)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    take_steps(network, optimizer, 2)
    assert calls == ["before", "after"] * 2
    assert short_steps == []


def test_learning_rate_schedulers_of_pytorch_work():
    network = make_network()
    optimizer = FusedAdam(network.parameters(), lr=1.0, fused=True)
    scheduler = th.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    take_steps(network, optimizer, 1)
    scheduler.step()  # would warn if it had not seen the step
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(("fused", "plain"), PAIRS)
def test_they_are_what_the_policy_makes_of_adam_unless_the_user_chose(fused, plain, short_steps):
    kwargs = {"net_arch": [4], "optimizer_class": plain}
    model = SimpleDDPG("MlpPolicy", Bandit(), learning_starts=4, batch_size=4, policy_kwargs=kwargs).learn(10)
    assert type(model.actor.optimizer) is type(model.critic.optimizer) is fused
    assert model._n_updates == 6
    assert len(short_steps) == 2 * (6 - 1)
    kwargs["optimizer_kwargs"] = {"foreach": True}
    assert type(SimpleDDPG("MlpPolicy", Bandit(), policy_kwargs=kwargs).actor.optimizer) is plain


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_weights_that_lie_in_another_order_get_the_step_of_the_unfused_optimizer(kind: str):
    """The fused kernels of PyTorch 2.13 mix up the numbers of a weight whose `data` was transposed in memory."""
    results = []
    ours = {"Adam": FusedAdam, "AdamW": FusedAdamW, "SGD": FusedSGD}[kind]
    for optimizer_class, fused in ((getattr(th.optim, kind), False), (ours, True)):
        th.manual_seed(0)
        weight = nn.Parameter(th.randn(4, 3))
        momentum = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = optimizer_class([weight], lr=0.1, fused=fused, **momentum)
        for update in range(4):
            if update == 2:
                weight.data = weight.data.t().contiguous().t()
            weight.grad = None
            (weight * th.arange(12.0).reshape(4, 3)).sin().sum().backward()
            optimizer.step()
        results.append(weight.detach().clone())
        assert optimizer.param_groups[0]["fused"] is fused
    # Four steps in another order of roundings.
    assert results[1] == pytest.approx(results[0], abs=1e-6)
