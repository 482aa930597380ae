"""What code written for SB3's DDPG and for PyTorch finds: tracing, exporting, SB3's names for policies.

Not here: files of our own (`test_export.py`), conversion (`test_convert.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, ddpg, sac, td3
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from torch import nn

from sb3_simple_ddpg import SimpleDDPG
from tests.side_by_side import Dummy, assert_same_agent, settings

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


# --- policy classes ------------------------------------------------------------------------------------------------

STOCK = {
    "MlpPolicy": (ddpg.policies.MlpPolicy, td3.policies.MlpPolicy, td3.policies.TD3Policy, ddpg.MlpPolicy),
    "CnnPolicy": (ddpg.policies.CnnPolicy, td3.policies.CnnPolicy),
    "MultiInputPolicy": (ddpg.policies.MultiInputPolicy, td3.policies.MultiInputPolicy),
}
SPACES = {"MlpPolicy": VECTOR, "CnnPolicy": IMAGE, "MultiInputPolicy": spaces.Dict({"a": VECTOR})}
CASES = [(name, policy) for name, policies in STOCK.items() for policy in policies]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_sb3_s_policy_classes_are_taken_for_ours(name: str, policy: type[BasePolicy], tmp_path):
    model, expected = (
        SimpleDDPG(given, Dummy(SPACES[name], ACTIONS), **settings(policy_kwargs={"net_arch": [8]})).learn(15)
        for given in (policy, name)
    )
    assert model.policy_class is SimpleDDPG.policy_aliases[name] is type(model.policy)
    assert model._n_updates == 5
    state = model.policy.state_dict()
    assert all(th.equal(weight, state[key]) for key, weight in expected.policy.state_dict().items())
    model.save(tmp_path / "model.zip")
    assert type(SimpleDDPG.load(tmp_path / "model.zip").policy) is SimpleDDPG.policy_aliases[name]
    theirs = DDPG(policy, Dummy(SPACES[name], ACTIONS), **settings(policy_kwargs={"net_arch": [8]}))
    assert type(SimpleDDPG.from_sb3(theirs).policy) is SimpleDDPG.policy_aliases[name]


def own_policy(base: type[BasePolicy]) -> type[BasePolicy]:
    """As SB3's documentation writes policies with networks of one's own; only the base class is another."""

    class OwnActor(td3.policies.Actor):
        def forward(self, obs: th.Tensor) -> th.Tensor:
            return 0.5 * super().forward(obs)

    class OwnCritic(ContinuousCritic):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale = nn.Parameter(th.ones(1))

        def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
            return tuple(self.scale * q_values for q_values in super().forward(obs, actions))

    class Own(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, net_arch={"pi": [8], "qf": [6, 6]}, activation_fn=nn.Tanh, **kwargs)

        def make_actor(self, features_extractor: Any = None) -> OwnActor:
            return OwnActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

        def make_critic(self, features_extractor: Any = None) -> OwnCritic:
            return OwnCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    return Own


@pytest.mark.parametrize(("theirs", "name"), [(policies[0], name) for name, policies in STOCK.items()], ids=list(STOCK))
def test_a_subclass_of_sb3_s_policy_is_an_error_with_a_cure_that_works(theirs: Any, name: str, tmp_path):
    small = settings(action_noise=None, policy_kwargs={}, learning_starts=10)
    env = Dummy(SPACES[name], ACTIONS)
    old = own_policy(theirs)
    message = rf"policy Own is derived from SB3's \w+: derive it from sb3_simple_ddpg\.{name}, `class Own\({name}\)`"
    with pytest.raises(ValueError, match=message):
        SimpleDDPG(old, env, **small)
    model = DDPG(old, env, **small).learn(20)
    with pytest.raises(ValueError, match=message):
        SimpleDDPG.from_sb3(model)
    model.save(tmp_path / "model.zip")
    for load in (SimpleDDPG.load, SimpleDDPG.from_sb3):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "model.zip")

    # The cure: another base class, and no other change. It learns what SB3's learns, and takes its weights.
    ported = SimpleDDPG(own_policy(SimpleDDPG.policy_aliases[name]), Dummy(SPACES[name], ACTIONS), **small).learn(20)
    assert_same_agent(ported, model, n_updates=10)
    fresh = SimpleDDPG(own_policy(SimpleDDPG.policy_aliases[name]), Dummy(SPACES[name], ACTIONS), **small)
    fresh.set_parameters(str(tmp_path / "model.zip"))
    state = fresh.policy.state_dict()
    assert all(th.equal(weight, state[key]) for key, weight in model.policy.state_dict().items())


@pytest.mark.parametrize("policy", [None, 3, make])
def test_what_is_no_policy_is_refused_with_a_name(policy: Any):
    with pytest.raises(TypeError, match=r'policy must be a name or a class, got .*"MlpPolicy"'):
        SimpleDDPG(policy, Dummy(VECTOR, ACTIONS))


def test_a_policy_of_another_algorithm_is_refused_with_our_names():
    with pytest.raises(ValueError, match=r"must be MlpPolicy, CnnPolicy, MultiInputPolicy or a sb3_simple_ddpg\.DDPG"):
        SimpleDDPG(sac.MlpPolicy, Dummy(VECTOR, ACTIONS))
