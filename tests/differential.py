"""Drawn settings, and updates of two models on the same batches: what several test files and `make fuzz` need.

Not here: tests. Plain against compiled: `test_differential.py`; plain against SB3's DDPG there too.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.optim import Adam, AdamW

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.safety.checks import CompileWarning, NonFiniteError
from tests.side_by_side import CHANNEL_FIRST, DICT_SPACES, Dummy

#: Of the largest weight (or number in a state): the same updates in another order of sums.
TOLERANCE = 1e-4
#: Where rounding grows faster than that, as with Adam's own eps of 1e-8, two models may differ by so many times what
#: one differs from itself when its weights are multiplied by 1 + 1e-7 at the start.
TIMES_ITSELF = 30.0
UPDATES = 12

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "one number": spaces.Box(-1.0, 1.0, (1,), np.float32),
    "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "wide vector": spaces.Box(-1.0, 1.0, (17,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (4,), np.float64),
    "discrete": spaces.Discrete(5),
    "dict": DICT_SPACES["vectors"],
    "image": CHANNEL_FIRST,
}
ARCHITECTURES: list[Any] = [
    [], [1], [16], [33, 31, 5], [128], [64, 64], [7, 130], {"pi": [16], "qf": [64, 64]}, {"pi": [40, 3], "qf": []},
]  # fmt: skip
ACTIVATIONS = [
    nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Mish,
    nn.Hardtanh, nn.PReLU, nn.CELU, nn.ReLU6, nn.Hardswish, nn.Softsign,
]  # fmt: skip


@dataclass
class Setting:
    """One drawn setting; `repr` of it is what a failure prints."""

    observations: str
    actions: tuple[int, ...]
    arguments: dict[str, Any]
    policy_kwargs: dict[str, Any]
    batch_size: int
    gradient_steps: int = 1
    frozen: tuple[str, ...] = ()
    n_envs: int = 1
    reward_scale: float = 1.0
    seed: int = 0
    schedule: bool = False

    @property
    def policy(self) -> str:
        """The policy's name for these observations."""
        names = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}
        return names.get(self.observations, "MlpPolicy")


@st.composite
def optimizers(draw: st.DrawFn, for_sb3: bool) -> dict[str, Any]:
    """Class and arguments; one in three has Adam's own eps. Adam and AdamW alone are compiled."""
    kinds = (
        ["Adam", "Adam", "AdamW", "SGD", "RMSprop", "Adamax", "NAdam"] if for_sb3 else ["Adam", "AdamW"] * 8 + ["SGD"]
    )
    kind = draw(st.sampled_from(kinds))
    kwargs: dict[str, Any] = {"weight_decay": draw(st.sampled_from([0.0, 0.0, 1e-4, 1e-2, 0.1]))}
    if kind != "SGD" and draw(st.integers(0, 2)):
        kwargs["eps"] = 1e-3
    if kind in ("Adam", "AdamW"):
        kwargs["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.95)]))
        kwargs["amsgrad"] = draw(st.sampled_from([False] * (3 if for_sb3 else 15) + [True]))
        kwargs["maximize"] = draw(st.sampled_from([False, False, False, True]))
        flag = draw(st.sampled_from(["none", "none", "foreach", "fused", "plain"]))
        if flag != "none":
            kwargs[flag.replace("plain", "fused")] = flag != "plain"
    if kind == "SGD":
        kwargs["momentum"] = draw(st.sampled_from([0.0, 0.9]))
        kwargs["nesterov"] = kwargs["momentum"] > 0 and draw(st.booleans())
    if kind == "RMSprop":
        kwargs["centered"] = draw(st.booleans())
        kwargs["momentum"] = draw(st.sampled_from([0.0, 0.5]))
    if kind == "Adam" and not draw(st.integers(0, 3)):
        return {}  # SB3's default, as it is
    return {"optimizer_class": getattr(th.optim, kind), "optimizer_kwargs": kwargs}


@st.composite
def drawn_settings(draw: st.DrawFn, for_sb3: bool = False) -> Setting:
    """
    :param for_sb3: only what SB3's DDPG has too
    """
    observations = draw(st.sampled_from([*list(OBSERVATIONS)[:-1] * 3, "image"]))
    shape = draw(st.sampled_from([(1,), (1,), (2,), (3,), (6,), (31,), (40,), (2, 2)]))
    policy_kwargs: dict[str, Any] = {
        "net_arch": deepcopy(draw(st.sampled_from(ARCHITECTURES))),
        "activation_fn": draw(st.sampled_from([nn.ReLU, *ACTIVATIONS])),
        **draw(optimizers(for_sb3)),
    }
    if observations in ("dict", "image") or not draw(st.integers(0, 5)):
        policy_kwargs["share_features_extractor"] = draw(st.booleans())
    if observations == "image":
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": 8}
        policy_kwargs["net_arch"] = [8]
    rates = st.sampled_from([0.0, 1e-4, 1e-3, 1e-3, 1e-2])
    arguments: dict[str, Any] = {
        "learning_rate": draw(rates),
        "tau": draw(st.sampled_from([0.0, 0.005, 0.005, 0.3, 1.0])),
        "gamma": draw(st.sampled_from([0.0, 0.99, 0.99, 1.0])),
        "n_steps": 1 if observations == "dict" else draw(st.sampled_from([1, 1, 1, 3])),  # SB3 has none for Dicts
    }
    frozen: tuple[str, ...] = ()
    if not for_sb3:
        arguments["critic_learning_rate"] = draw(st.one_of(st.none(), rates))
        arguments["max_grad_norm"] = draw(st.sampled_from([None, None, None, 0.1, 10.0]))
        arguments["on_non_finite"] = draw(st.sampled_from(["stop", "skip"]))
        policy_kwargs["last_layer_init"] = draw(st.sampled_from([None, None, 3e-3]))
        kinds = [
            "dense",
            "dense",
            "layer_norm",
            "residual",
            {"qf": "layer_norm"},
            {"pi": "layer_norm", "qf": "residual"},
        ]
        if policy_kwargs["net_arch"] != [1]:  # of one number a layer norm is refused
            policy_kwargs["layers"] = draw(st.sampled_from(kinds))
        policy_kwargs["critic_optimizer_kwargs"] = draw(st.sampled_from([{}, {}, {"weight_decay": 0.03}]))
        frozen = draw(st.sampled_from([(), (), (), ("actor.0.weight",), ("critic.0",), ("critic.-1.bias",)]))
    return Setting(
        observations, shape, arguments, policy_kwargs,
        batch_size=draw(st.sampled_from([1, 2, 5, 32, 64, 256])),
        gradient_steps=draw(st.sampled_from([1, 1, 3])),
        frozen=frozen,
        n_envs=draw(st.sampled_from([1, 1, 2])),
        reward_scale=draw(st.sampled_from([1.0, 1.0, 100.0, 0.01])),
        seed=draw(st.integers(0, 2**16)),
        schedule=draw(st.booleans()),
    )  # fmt: skip


def make(setting: Setting, algorithm: type[OffPolicyAlgorithm] = SimpleDDPG, **more: Any) -> OffPolicyAlgorithm:
    """A model that has only collected: 40 timesteps of random actions in each environment."""
    actions = spaces.Box(-1.0, 1.0, setting.actions, np.float32)
    env = DummyVecEnv([lambda: Dummy(OBSERVATIONS[setting.observations], actions) for _ in range(setting.n_envs)])
    arguments = deepcopy({**setting.arguments, "policy_kwargs": setting.policy_kwargs})
    rate = arguments["learning_rate"]
    if setting.schedule:  # the share of training that is left goes from 1 to exactly 0
        arguments["learning_rate"] = lambda progress: rate * progress
    steps = 40 * setting.n_envs
    more = {"action_noise": None, **more}  # it would draw numbers, and SB3 has none by default
    model = algorithm(
        setting.policy, env, buffer_size=60 * setting.n_envs, learning_starts=10_000, seed=setting.seed, device="cpu",
        **arguments, **more,
    ).learn(steps)  # fmt: skip
    model.replay_buffer.rewards *= setting.reward_scale
    for name in setting.frozen:
        freeze(model, name)
    return model


def freeze(model: OffPolicyAlgorithm, name: str) -> None:
    """`critic.0.weight` is the weight of the first linear layer of the critic, `critic.0` all of that layer."""
    role, index, *rest = name.split(".")
    layers = model.actor.mu if role == "actor" else model.critic.qf0
    layer = [each for each in layers if isinstance(each, nn.Linear)][int(index)]
    for parameter in [getattr(layer, rest[0])] if rest else layer.parameters():
        parameter.requires_grad_(False)


def disturb(model: OffPolicyAlgorithm, seed: int) -> None:
    """Multiply every weight by 1 + 1e-7 or 1 - 1e-7: rounding, of another kind."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for weight in model.policy.parameters():
            weight *= 1 + 1e-7 * (2.0 * th.randint(0, 2, weight.shape, generator=generator) - 1)


def train(setting: Setting, model: OffPolicyAlgorithm) -> dict[str, float]:
    """The updates; the same batches for each model of a setting. Returns the means of what was logged."""
    np.random.seed(setting.seed % 2**32)
    logged: dict[str, float] = {}
    done = 0
    while done < UPDATES:
        model._current_progress_remaining = max(0.0, 1.0 - done / (UPDATES - setting.gradient_steps))
        model.train(setting.gradient_steps, setting.batch_size)
        done += setting.gradient_steps
        for name in ("critic_loss", "actor_loss", "q_mean", "target_q_mean"):
            value = model.logger.name_to_value.get(f"train/{name}")
            if value is not None:
                logged[name] = logged.get(name, 0.0) + float(value)
    return logged


def tensors_of(model: OffPolicyAlgorithm) -> dict[str, dict[str, th.Tensor]]:
    """Weights and buffers of the four networks, and the optimizers' states, by kind and name."""
    found: dict[str, dict[str, th.Tensor]] = {"weights": dict(model.policy.state_dict())}
    for role in ("actor", "critic"):
        network = getattr(model, role)
        for name, weight in network.named_parameters():
            for part, value in network.optimizer.state.get(weight, {}).items():
                if isinstance(value, th.Tensor):
                    found.setdefault(f"{role} {part}", {})[name] = value
    return found


def largest_differences(ours: OffPolicyAlgorithm, theirs: OffPolicyAlgorithm) -> dict[str, float]:
    """By kind, in shares of the largest number of that kind; infinite where one has what the other lacks."""
    differences = {}
    one, other = tensors_of(ours), tensors_of(theirs)
    assert one.keys() == other.keys()
    for kind, tensors in one.items():
        assert tensors.keys() == other[kind].keys()
        largest = max((float(tensor.abs().max()) for tensor in other[kind].values() if tensor.numel()), default=0.0)
        difference = max(
            (float((t - other[kind][name]).abs().max()) for name, t in tensors.items() if t.numel()), default=0.0
        )
        differences[kind] = difference / largest if largest else difference
    return differences


@contextmanager
def no_waiting() -> Iterator[None]:
    """A second function is compiled at once."""
    from sb3_simple_ddpg.speed import compiled

    patience, compiled.PATIENCE = compiled.PATIENCE, 0
    try:
        yield
    finally:
        compiled.PATIENCE = patience


def check_plain_against_compiled(setting: Setting, calls: list[str]) -> str:
    """
    :param setting: drawn
    :param calls: grows with each call of a compiled function
    :return: "well" where the tolerance was kept, "itself" where a model had to be compared with itself, "stopped" where
        both came to a number that is not finite, "plainly" where nothing is compiled: another optimizer, or one CNN for
        both networks
    :raises AssertionError: where plain and compiled updates differ
    """
    plain, fast = make(setting), make(setting, compile_updates=True)
    calls.clear()
    try:
        logged = train(setting, plain)
    except NonFiniteError:  # too large a learning rate: then both stop, at the same update
        with no_waiting(), pytest.raises(NonFiniteError):
            train(setting, fast)
        assert fast._n_updates == plain._n_updates
        compare_as_with_itself(setting, plain, fast)
        return "stopped"
    kwargs = setting.policy_kwargs.get("optimizer_kwargs", {})
    shared = setting.observations == "image" and setting.policy_kwargs["share_features_extractor"]
    if setting.policy_kwargs.get("optimizer_class", Adam) not in (Adam, AdamW) or kwargs.get("amsgrad") or shared:
        with no_waiting(), pytest.warns(CompileWarning, match="is not compiled|share memory"):
            train(setting, fast)
        assert not calls
        assert max(largest_differences(plain, fast).values()) == 0.0
        return "plainly"
    with no_waiting():
        fast_logged = train(setting, fast)
    assert fast._compiled.failure is None, fast._compiled.failure
    # All but the first, in which the optimizers create their states; without states all.
    assert len(calls) >= plain._n_updates - 1 > 0, (len(calls), plain._n_updates)
    assert fast._n_updates == plain._n_updates
    for name, value in logged.items():
        fast_value = fast_logged[name]
        assert abs(value - fast_value) <= 0.01 * (abs(value) + 0.01), (name, value, fast_value)
    return compare_as_with_itself(setting, plain, fast)


def check_plain_against_sb3(setting: Setting) -> str:
    """
    :param setting: drawn, with what SB3's DDPG has too
    :return: as above
    :raises AssertionError: where the weights differ
    """
    theirs, ours = make(setting, DDPG), make(setting)
    train(setting, theirs)
    try:
        train(setting, ours)
    except NonFiniteError:
        assert not all(bool(th.isfinite(weight).all()) for weight in theirs.policy.parameters())
        return "stopped"
    assert ours._n_updates == theirs._n_updates > 0
    return compare_as_with_itself(setting, theirs, ours)


def compare_as_with_itself(setting: Setting, expected: OffPolicyAlgorithm, model: OffPolicyAlgorithm) -> str:
    """
    :param setting: of both
    :param expected: trained
    :param model: trained on the same batches
    :return: "well" where the tolerance was kept, "itself" where a model had to be compared with itself
    :raises AssertionError: where they differ by more
    """
    differences = largest_differences(expected, model)
    if max(differences.values()) <= TOLERANCE:
        return "well"
    limits = dict.fromkeys(differences, TOLERANCE)
    for seed in range(3):
        itself = make(setting, type(expected))
        disturb(itself, seed)
        with suppress(NonFiniteError):
            train(setting, itself)
        for kind, difference in largest_differences(expected, itself).items():
            limits[kind] = max(limits[kind], TIMES_ITSELF * difference)
    too_large = {kind: (value, limits[kind]) for kind, value in differences.items() if not value <= limits[kind]}
    assert not too_large, too_large
    return "itself"
