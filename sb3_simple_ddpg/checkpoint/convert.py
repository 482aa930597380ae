"""Conversion of a trained agent between the DDPG of Stable-Baselines3 (SB3) and SimpleDDPG, both ways.

Not here: files. A zip is only read; saving and loading are SB3's own `save` and `load`.

Both algorithms keep their state under SB3's names. So `_rebuild` makes a bare counterpart, fills in every attribute
that its constructor knows, lets it build its networks, and loads weights and optimizer states. What differs is changed
on the way: the policy class, `policy_kwargs`, the noise, and the flags of the optimizers.
"""

import inspect
import io
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule, check_for_correct_spaces, get_device
from stable_baselines3.ddpg import DDPG
from stable_baselines3.her import HerReplayBuffer

from sb3_simple_ddpg.blocks import DENSE, kinds_of
from sb3_simple_ddpg.checkpoint.sb3_files import SavedAgent, old_defaults, read_agent
from sb3_simple_ddpg.exploration import GaussianNoise, make_action_noise
from sb3_simple_ddpg.safety import checks
from sb3_simple_ddpg.sb3.agent import Agent, SelfAgent
from sb3_simple_ddpg.speed.optimizers import own_copy

Algorithm = TypeVar("Algorithm", bound=OffPolicyAlgorithm)

# Attributes that appear after the constructor, or only with an environment.
_LATER = {"observation_space", "action_space", "n_envs", "lr_schedule", "_logger"}
# What is not copied: what lies outside the agent, and schedules that a callback may steer.
_SHARED = ("env", "_vec_normalize_env", "_logger", "observation_space", "action_space", "learning_rate", "lr_schedule")


def from_sb3(
    cls: type[SelfAgent],
    model_or_zip: DDPG | str | Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    custom_objects: dict[str, Any] | None = None,
) -> SelfAgent:
    """
    Take over a model of SB3's DDPG: weights, optimizer states, replay buffer, counters and settings.

    Environment, normaliser, spaces, logger and learning rate schedule are shared with the model; all else is copied,
    of SB3's replay buffers only the rows in use. The model stays as it was.

    :param cls: SimpleDDPG or a subclass
    :param model_or_zip: the model, or the path or open file of its zip; a zip holds no replay buffer: it starts empty
    :param env: to learn on with, reset when learning goes on; None keeps the model's own, if it has one, as it stands
    :param custom_objects: attributes that take the place of the model's; those of a zip are then not read
    :return: the same agent; no random stream has moved and nothing was seeded
    :raises ValueError: for a model that is not SB3's DDPG, or an environment of other spaces
    """
    state: dict[str, Any]
    parameters: dict[str, Any]
    untold: list[str] = []
    if not isinstance(model_or_zip, BaseAlgorithm):
        saved = read_agent(model_or_zip, custom_objects)
        state, parameters = saved.attributes, saved.parameters
        untold = [_default_instead(cls, name, saved) for name in ("learning_rate", "action_noise") if name not in state]
        state["policy_kwargs"] = old_defaults(state["policy_kwargs"], parameters)
    elif isinstance(model_or_zip, DDPG):
        state, parameters = {**vars(model_or_zip), **(custom_objects or {})}, model_or_zip.get_parameters()
    else:
        name = type(model_or_zip).__name__
        raise ValueError(f"The model must be SB3's DDPG, got {name}: go on with {name}.")

    policy_class = _policy_class(DDPG, cls, state.get("policy_class"))
    policy_kwargs = dict(state["policy_kwargs"])
    # A zip does not say which algorithm wrote it; TD3's holds the same names with other values.
    for name, value, needed in (
        ("n_critics", policy_kwargs.pop("n_critics", 2), 1),
        ("policy_delay", state.get("policy_delay"), 1),
        ("target_noise_clip", state.get("target_noise_clip"), 0),
    ):
        if value != needed:
            raise ValueError(
                f"{name} must be {needed}, got {value}: not DDPG; for TD3 go on with stable_baselines3.TD3."
            )
    state = {**state, "policy_class": policy_class, "policy_kwargs": policy_kwargs}
    if state.get("n_steps", 1) > 1 and state["replay_buffer_class"] is NStepReplayBuffer:
        # SB3 has written its own choice into the settings, and would warn when it finds it there.
        chosen = {"n_steps", "gamma"}
        kept = {key: value for key, value in state["replay_buffer_kwargs"].items() if key not in chosen}
        state |= {"replay_buffer_class": None, "replay_buffer_kwargs": kept}
    if env is not None:
        env = cls._wrap_env(env, state.get("verbose", 0))
        check_for_correct_spaces(env, state["observation_space"], state["action_space"])
        if state.get("replay_buffer") is not None and env.num_envs != state["n_envs"]:
            raise ValueError(
                f"env must hold {state['n_envs']} environments, as the model's replay buffer does, got {env.num_envs}: "
                "save the model and convert its zip, which starts an empty buffer."
            )
        state |= {"env": env, "n_envs": env.num_envs, "_last_obs": None}
    converted = _rebuild(cls, state, parameters)
    converted._untold = untold
    return converted


def _default_instead(cls: type[Agent], name: str, saved: SavedAgent) -> str:
    """A sentence for the log on what the zip does not hold; of what cannot be read it warns at once, too."""
    default = inspect.signature(cls).parameters[name].default
    unreadable = f" that can be read here ({saved.missing[name]})" if name in saved.missing else ""
    sentence = (
        f"The zip holds no {name}{unreadable}: {name}={default}, the default, is used. "
        f"SimpleDDPG.from_sb3(path, custom_objects={{{name!r}: ...}}) takes yours instead."
    )
    if unreadable:
        warnings.warn(sentence, UserWarning, stacklevel=4)
    return sentence


def to_sb3(model: Agent) -> DDPG:
    """
    Give an agent back to SB3: weights, optimizer states, replay buffer, counters and settings.

    Shared and copied as by `from_sb3`. What only matters here is dropped (`last_layer_init`, `compile_updates`,
    `on_non_finite`).

    :param model: the agent; it stays as it was
    :return: the same agent as SB3's DDPG; no random stream has moved and nothing was seeded
    :raises ValueError: for what SB3's DDPG lacks: a learning rate or optimizer arguments of the critic's own, layers
        that are not dense, a gradient norm limit, a noise schedule, a policy class of the user's own
    """
    policy_kwargs = {key: value for key, value in model.policy_kwargs.items() if key != "last_layer_init"}
    layers = policy_kwargs.pop("layers", DENSE)
    for name, value in (
        ("critic_learning_rate", model.critic_learning_rate),
        ("max_grad_norm", model.max_grad_norm),
        ("critic_optimizer_kwargs", policy_kwargs.pop("critic_optimizer_kwargs", None) or None),
        ("layers", layers if set(kinds_of(layers)) != {DENSE} else None),
    ):
        if value is not None:
            raise ValueError(f"SB3's DDPG has no {name}, got {value}: go on in SimpleDDPG, or train without it.")
    if policy_kwargs.get("features_extractor_class", ...) is None:
        del policy_kwargs["features_extractor_class"]  # the policy's default, which SB3 takes by silence only
    shape = model.action_space.shape
    assert shape is not None
    noise = make_action_noise(model.action_noise, shape, model.n_envs)
    if isinstance(noise, GaussianNoise):
        if not isinstance(noise.schedule.value_schedule, ConstantSchedule):
            raise ValueError(
                f"SB3's DDPG has no noise schedule, got action_noise={noise.schedule.value_schedule}: set "
                f"model.action_noise = {noise.scale}, its value of now, or go on in SimpleDDPG."
            )
        noise = NormalActionNoise(np.zeros(shape), np.full(shape, noise.scale))
    changes = {
        "policy_class": _policy_class(type(model), DDPG, model.policy_class),
        "policy_kwargs": {**policy_kwargs, "n_critics": 1},
        "action_noise": noise,
    }
    return _rebuild(DDPG, {**vars(model), **changes}, model.get_parameters())


def _policy_class(source: type[BaseAlgorithm], target: type[BaseAlgorithm], policy_class: object) -> type[BasePolicy]:
    """The policy class of the same name ("MlpPolicy", ...) in the other library."""
    for name, known in source.policy_aliases.items():
        if known is policy_class:
            return target.policy_aliases[name]
    if isinstance(policy_class, type):
        checks.check_no_subclass_of_td3_policy(policy_class)
    raise ValueError(
        f"The policy must be one of {source.__name__}'s {', '.join(source.policy_aliases)}, got {policy_class}: "
        "go on with the algorithm that made it."
    )


def _rebuild(algorithm: type[Algorithm], state: dict[str, Any], parameters: dict[str, Any]) -> Algorithm:
    """
    :param algorithm: the class to convert to
    :param state: attributes of the agent by name; those that the class does not have are left out
    :param parameters: state dicts of `policy`, `actor.optimizer` and `critic.optimizer`
    :return: the same agent in that class
    """
    device = get_device(state.get("device", "auto"))
    with _random_streams_kept(device):
        settings: dict[str, Any] = {"policy": state["policy_class"], "env": state.get("env"), "device": device}
        # mypy: both algorithms have the last argument, their base class does not
        converted = algorithm(**settings, _init_setup_model=False)  # type: ignore[call-arg]
        names = (vars(converted).keys() | _LATER) & state.keys() - {"env", "_vec_normalize_env", "device"}
        memo = {id(state.get(name)): state.get(name) for name in _SHARED} | _copied_rows(state.get("replay_buffer"))
        attributes = deepcopy({name: state[name] for name in names}, memo)
        vars(converted).update(attributes, seed=None)  # with a seed, `_setup_model` would seed everything
        converted._setup_model()
    converted.seed = state.get("seed")
    converted.lr_schedule = attributes.get("lr_schedule", converted.lr_schedule)
    buffer = converted.replay_buffer
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = converted.env  # HER's copies are without
    elif isinstance(buffer, NStepReplayBuffer):
        buffer.gamma = converted.gamma  # the buffer's own, which only SimpleDDPG.train keeps up to date

    # Without a copy both agents would move the same moments.
    parameters = own_copy(converted, parameters)
    for name in ("actor.optimizer", "critic.optimizer"):
        for moments in parameters[name]["state"].values():
            if isinstance(moments.get("step"), th.Tensor):
                moments["step"] = moments["step"].cpu()  # a fused optimizer takes it to the device by itself
    converted.set_parameters(parameters)
    return converted


def _copied_rows(buffer: ReplayBuffer | None) -> dict[int, Any]:
    """
    Copies of a buffer's large arrays, by id, for `deepcopy`: of a million rows only those in use cost memory.

    Other classes than SB3's may keep something in the other rows and are copied whole.
    """
    copies: dict[int, Any] = {}
    if buffer is None or not type(buffer).__module__.startswith("stable_baselines3."):
        return copies
    # The row at `pos` too: with `optimize_memory_usage` the next observation is there already.
    n_rows = buffer.buffer_size if buffer.full else buffer.pos + 1
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        storage = getattr(buffer, name, {})
        for rows in storage.values() if isinstance(storage, dict) else [storage]:
            copies[id(rows)] = np.zeros(rows.shape, rows.dtype)
            copies[id(rows)][:n_rows] = rows[:n_rows]
    return copies


@contextmanager
def _random_streams_kept(device: th.device) -> Iterator[None]:
    """Put Python's, NumPy's and PyTorch's generators back: new networks draw weights, though they are replaced."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
