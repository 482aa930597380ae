"""What code written for SB3's DDPG and for PyTorch finds: tracing, exporting, SB3's names for policies.

Not here: files of our own (`test_export.py`), conversion (`test_convert.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from tests.side_by_side import Dummy

ACTIONS = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))
VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)


def make(policy: str = "MlpPolicy", space: spaces.Space[Any] = VECTOR, **policy_kwargs: Any) -> SimpleDDPG:
    return SimpleDDPG(policy, Dummy(space, ACTIONS), buffer_size=100, seed=0, policy_kwargs=policy_kwargs)


# --- tracing and exporting -----------------------------------------------------------------------------------------


def traced(network: nn.Module, inputs: tuple[th.Tensor, ...]) -> Callable[..., Any]:
    return th.jit.trace(network, inputs)  # which compares with the network, and the graphs of two calls


def frozen(network: nn.Module, inputs: tuple[th.Tensor, ...]) -> Callable[..., Any]:
    return th.jit.freeze(th.jit.trace(network, inputs))


def exported(network: nn.Module, inputs: tuple[th.Tensor, ...]) -> Callable[..., Any]:
    return th.export.export(network, inputs).module()


def exported_for_any_batch(network: nn.Module, inputs: tuple[th.Tensor, ...]) -> Callable[..., Any]:
    batch = th.export.Dim("batch", min=1, max=64)
    inputs = tuple(th.cat([tensor, tensor]) for tensor in inputs)
    return th.export.export(network, inputs, dynamic_shapes=[{0: batch}] * len(inputs)).module()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch would rather have torch.export
@pytest.mark.parametrize("way", [traced, frozen, exported, exported_for_any_batch])
@pytest.mark.parametrize("part", ["", "actor", "actor_target", "critic"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_traced_or_exported_network_gives_the_very_numbers(way: Callable[..., Any], part: str, trained: bool):
    model = make()  # 400 and 300 units: wide enough for gradients of a layout of their own
    if trained:
        model.learn(110)
    network = model.policy.get_submodule(part).eval()
    th.manual_seed(0)
    rows = 5 if way is exported_for_any_batch else 1
    example, inputs = ((th.randn(n, 3), th.randn(n, 2))[: 2 if part == "critic" else 1] for n in (1, rows))
    answer, expected = way(network, example)(*inputs), network(*inputs)
    if part == "critic":
        (answer,), (expected,) = answer, expected
    assert answer.shape == (rows, 1 if part == "critic" else 2)
    assert th.equal(answer, expected)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # as above
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # SB3 asks whether an image is one, by its bounds
@pytest.mark.parametrize("way", [traced, exported])
def test_a_traced_or_exported_policy_of_images_gives_the_very_numbers(way: Callable[..., Any]):
    policy = make("CnnPolicy", IMAGE, net_arch=[8]).policy.eval()
    images = th.randint(0, 255, (2, 1, 36, 36), dtype=th.uint8)
    assert th.equal(way(policy, (images,))(images), policy(images))
