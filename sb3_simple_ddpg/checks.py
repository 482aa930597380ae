"""What is refused before any work, each with the value and the cure, and the advice that is given at verbose >= 1.

Not here: shape checks of the equations (`equations.py`) and checks of the noise (`exploration.py`).
"""

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_simple_ddpg.exploration import noise_scale

if TYPE_CHECKING:
    from sb3_simple_ddpg.policies import DDPGPolicy
    from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

P = ParamSpec("P")
T = TypeVar("T")


class UnsupportedError(ValueError, AssertionError):
    """A space or a combination that DDPG cannot use. Also an AssertionError, since that is what SB3 raises."""


class NonFiniteError(FloatingPointError, ValueError):
    """A number that is NaN or infinite. Also a ValueError, since RL Zoo's search gives a trial up at that one only."""

    #: Whether the message has timestep and ranges, and a diagnosis was written.
    reported = False


class CompileWarning(UserWarning):
    """`compile_updates=True` has no effect, and why. `warnings.simplefilter("ignore", CompileWarning)` silences it."""


_TD3 = "stable_baselines3.TD3 has it (twin critics, delayed updates, target smoothing)"
_SAC = "stable_baselines3.SAC has it (a stochastic policy)"
#: Arguments of other algorithms, and which one has them.
FOREIGN_ARGUMENTS = {
    "policy_delay": _TD3,
    "target_policy_noise": _TD3,
    "target_noise_clip": _TD3,
    "n_critics": _TD3,
    "ent_coef": _SAC,
    "target_update_interval": _SAC,
    "target_entropy": _SAC,
    "use_sde": _SAC,
    "sde_sample_freq": _SAC,
    "use_sde_at_warmup": _SAC,
    "top_quantiles_to_drop_per_net": "sb3_contrib.TQC has it (quantile critics)",
    "exploration_fraction": "stable_baselines3.DQN has it (discrete actions)",
}


def explain_foreign_arguments(init: Callable[P, T]) -> Callable[P, T]:
    """
    Let a constructor say which algorithm an argument belongs to, instead of only "unexpected keyword argument".

    :param init: the constructor
    :return: the same constructor, of the same signature
    """
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked_init(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs.keys() - set(known):
            if name in FOREIGN_ARGUMENTS:
                cure = f"{FOREIGN_ARGUMENTS[name]}; plain DDPG does not."
            else:
                cure = did_you_mean(name, known)
            raise TypeError(f"SimpleDDPG has no argument {name}={kwargs[name]!r}: {cure}")
        return init(*args, **kwargs)

    return checked_init


def did_you_mean(name: str, known: list[str]) -> str:
    """
    :param name: what the user wrote
    :param known: what exists
    :return: a sentence with the nearest names, or with all
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}."


def check_policy(policy: Any) -> Any:  # noqa: ANN401 - whatever the user gave
    """
    :param policy: name or class
    :return: the same; for one of SB3's three policy classes for DDPG and TD3, the name of ours
    :raises TypeError: for what is neither
    :raises ValueError: for a class derived from SB3's, with the way to derive it from ours
    """
    if isinstance(policy, str):
        return policy
    if not isinstance(policy, type):
        raise TypeError(f'policy must be a name or a class, got {policy!r}: "MlpPolicy" for example.')
    if policy.__module__ == _POLICIES_OF_SB3 and policy.__name__ in _NAMES_OF_SB3_S:
        return _NAMES_OF_SB3_S[policy.__name__]
    check_no_subclass_of_td3_policy(policy)
    return policy


def check_no_subclass_of_td3_policy(policy_class: type) -> None:
    """
    :param policy_class: of a new model, or of one that SB3 saved
    :raises ValueError: for a class of the user's derived from SB3's, with the way to derive it from ours
    """
    for base in policy_class.__mro__[1:]:
        if base.__module__ == _POLICIES_OF_SB3 and base.__name__ in _NAMES_OF_SB3_S:
            name, ours = policy_class.__name__, _NAMES_OF_SB3_S[base.__name__]
            raise ValueError(
                f"The policy {name} is derived from SB3's {base.__name__}: derive it from sb3_simple_ddpg.{ours}, "
                f"`class {name}({ours})`, which has the same arguments (n_critics is 1) and methods, actor_kwargs and "
                "critic_kwargs too; actors and critics of your own may go on being derived from SB3's. Weights of a "
                f'model that was saved with it: SimpleDDPG({name}, env, ...).set_parameters("model.zip").'
            )


_POLICIES_OF_SB3 = "stable_baselines3.td3.policies"
#: SB3's classes, and what ours are called.
_NAMES_OF_SB3_S = {"TD3Policy": "MlpPolicy", "CnnPolicy": "CnnPolicy", "MultiInputPolicy": "MultiInputPolicy"}


def check_action_space(action_space: spaces.Space[Any]) -> None:
    """
    :param action_space: the environment's
    :raises UnsupportedError: unless it is a Box of real numbers with finite bounds, low < high in each dimension
    """
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedError(
            f"The action space must be a Box, got {action_space}: DDPG needs continuous actions; for discrete ones use "
            "stable_baselines3.DQN or PPO. (The algorithm only supports spaces.Box as action spaces.)"
        )
    if not np.issubdtype(action_space.dtype, np.floating):
        raise UnsupportedError(
            f"The actions must be real numbers, got dtype {action_space.dtype} in {action_space}: "
            "wrap the environment so that it takes a float32 Box and rounds by itself."
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise UnsupportedError(
            f"Continuous action space must have a finite lower and upper bound, got low={action_space.low}, "
            f"high={action_space.high}: clip it with gymnasium.wrappers.RescaleAction or change the environment's Box."
        )
    if not (action_space.low < action_space.high).all():
        raise UnsupportedError(
            f"The lower bound must be below the upper one in each dimension of the action space, got "
            f"low={action_space.low}, high={action_space.high}: leave out dimensions that cannot vary."
        )


def check_extractor(
    extractor: type[BaseFeaturesExtractor], observation_space: spaces.Space[Any], normalize_images: bool
) -> None:
    """
    :param extractor: the features extractor's class
    :param observation_space: the environment's
    :param normalize_images: images have whole numbers in [0, 255]; False: any range
    :raises UnsupportedError: for one of SB3's extractors that cannot read these observations
    """
    if issubclass(extractor, CombinedExtractor) and not isinstance(observation_space, spaces.Dict):
        raise UnsupportedError(
            f"MultiInputPolicy needs Dict observations, got {observation_space}: use MlpPolicy, or CnnPolicy for "
            "images."
        )
    if issubclass(extractor, NatureCNN) and not is_image_space(
        observation_space, check_channels=False, normalized_image=not normalize_images
    ):
        raise UnsupportedError(
            f"CnnPolicy needs images (three axes, uint8 in [0, 255]), got {observation_space}: use MlpPolicy, or "
            "policy_kwargs=dict(normalize_images=False) for images in another range."
        )


def check_actions(policy: "DDPGPolicy", observation: object, actions: npt.NDArray[Any]) -> None:
    """
    :param policy: that gave the actions
    :param observation: s, one or a batch
    :param actions: for the environment
    :raises NonFiniteError: when an action is NaN, with what made it so
    """
    # The sum of squares in one fast call; actions have finite bounds, so only NaN can make it anything else.
    if math.isfinite(np.vdot(actions, actions)) or np.isfinite(actions).all():
        return
    for name, weight in policy.actor.named_parameters():
        if not th.isfinite(weight).all():
            raise NonFiniteError(
                f"The actor's weights are not finite ({name}), so it has no action: load an earlier model or "
                "checkpoint."
            )
    parts = observation.items() if isinstance(observation, Mapping) else [("", observation)]
    for key, values in parts:
        with np.errstate(over="ignore"):
            found = np.asarray(values, np.float32)  # what the network sees
        if not np.isfinite(found).all():
            raise NonFiniteError(
                f"The observation{f' {key!r}' if key else ''} is not finite in float32: {values}. The actor has no "
                "action for it."
            )
    raise NonFiniteError(f"The actor's action is {actions}, though weights and observation are finite: too large?")


def check_hyperparameters(model: "SimpleDDPG") -> None:
    """
    :param model: an algorithm whose constructor has stored its arguments
    :raises ValueError: for a number that cannot be meant, with the value and the cure
    :raises TypeError: for something that is not a number where one is needed
    """
    _check_range("tau", model.tau, 0, 1, "the share of the main network in a soft update, 0.005 for example")
    _check_range("gamma", model.gamma, 0, 1, "0.99 for example")
    for name in ("batch_size", "buffer_size", "n_steps"):
        _check_count(name, getattr(model, name), 1)
    _check_count("stats_window_size", model._stats_window_size, 1)
    _check_count("learning_starts", model.learning_starts, 0)
    _check_count("gradient_steps", model.gradient_steps, -1)
    for name in ("learning_rate", "critic_learning_rate"):
        rate = getattr(model, name)
        if callable(rate):
            rate = rate(1.0)
        if rate is not None or name == "learning_rate":
            _check_range(name, rate, 0, math.inf, "1e-3 for example")
    if model.max_grad_norm is not None:
        _check_range("max_grad_norm", model.max_grad_norm, 0, math.inf, "None for no clipping, 1.0 for example")
        if model.max_grad_norm == 0:
            raise ValueError(
                "max_grad_norm must be above 0, got 0: that would stop learning. Use None for no clipping."
            )
    if model.on_non_finite not in ("stop", "skip"):
        raise ValueError(f"on_non_finite must be 'stop' or 'skip', got {model.on_non_finite!r}.")
    if model.tensorboard_log is not None and not isinstance(model.tensorboard_log, str | os.PathLike):
        raise TypeError(f"tensorboard_log must be a folder or None, got {model.tensorboard_log!r}.")
    _check_net_arch(model.policy_kwargs.get("net_arch"))
    if isinstance(model.train_freq, tuple) and len(model.train_freq) != 2:
        raise ValueError(f"train_freq must be a number or (number, unit), got {model.train_freq}: (1, 'episode').")
    frequency = model.train_freq[0] if isinstance(model.train_freq, tuple) else model.train_freq
    if isinstance(frequency, int):  # SB3 itself refuses other types and unknown units
        _check_count("train_freq", frequency, 1)


def _check_net_arch(net_arch: object) -> None:
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch]
    if net_arch is None:
        return
    if isinstance(net_arch, dict) and net_arch.keys() != {"pi", "qf"}:
        raise UnsupportedError(f"net_arch must have the keys 'pi' (actor) and 'qf' (critic), got {net_arch}.")
    for layers in parts:
        if not isinstance(layers, list):
            raise UnsupportedError(
                f"The net_arch can only contain be a list of ints or a dict, got {net_arch!r}: [256, 256], for example."
            )
        for units in layers:
            _check_count("net_arch: the units of a layer", units, 1)


def check_device(device: object) -> None:
    """
    :param device: of the networks
    :raises ValueError: for one that PyTorch does not know
    """
    try:
        th.device("cpu" if device == "auto" else device)  # type: ignore[call-overload]  # that is the question
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or another of PyTorch's, got {device!r}: {error}"
        ) from None


def check_wrappers(env: VecEnv) -> None:
    """
    :param env: with all its wrappers
    :raises UnsupportedError: for a VecFrameStack around a VecNormalize, whose raw observations are not stacked
    """
    stacked = False
    while isinstance(env, VecEnvWrapper):
        if stacked and isinstance(env, VecNormalize):
            raise UnsupportedError(
                "VecFrameStack stands around VecNormalize, and the replay buffer keeps observations as they were "
                "before VecNormalize, which are not stacked there: write VecNormalize(VecFrameStack(env, n))."
            )
        stacked = stacked or isinstance(env, VecFrameStack)
        env = env.venv


def check_train_freq(train_freq: TrainFreq, n_envs: int) -> None:
    """
    :param train_freq: as SB3 holds it
    :param n_envs: number of environments
    :raises UnsupportedError: for episodes as the unit with several environments, which end at different times
    """
    if train_freq.unit == TrainFrequencyUnit.EPISODE and n_envs > 1:
        raise UnsupportedError(
            f"train_freq=({train_freq.frequency}, 'episode') needs one environment, got {n_envs}: "
            "You must use only one env when doing episodic training, or train_freq=(n, 'step')."
        )


def advice(model: "SimpleDDPG") -> list[str]:
    """
    What often goes wrong and can be seen before the first step.

    :param model: an algorithm that has an environment, reset or not
    :return: one sentence a finding, empty when there is nothing to say
    """
    found = []
    assert isinstance(model.action_space, spaces.Box)
    widest = float(max(abs(model.action_space.low).max(), abs(model.action_space.high).max()))
    if widest > 10:
        found.append(
            f"The action space reaches to {widest:g}; off-policy learning often stalls beyond +-10. "
            "Actions are mapped to [-1, 1] here, but rewards that grow with the action are not: "
            "consider gymnasium.wrappers.RescaleAction."
        )
    if noise_scale(model.action_noise) == 0.0:
        found.append("There is no action noise: after the random steps nothing explores. Try action_noise=0.1.")
    if model.batch_size > model.buffer_size:
        found.append(
            f"batch_size={model.batch_size} is larger than buffer_size={model.buffer_size}: each batch holds the same "
            "transitions several times."
        )
    widest_layer = max([0, *(layer.out_features for layer in model.actor.modules() if isinstance(layer, th.nn.Linear))])
    if model.device.type == "cpu" and th.get_num_threads() > 1 and widest_layer <= 256:
        found.append(
            f"PyTorch uses {th.get_num_threads()} threads; networks as small as these are faster with one: "
            "torch.set_num_threads(1)."
        )
    largest = _largest_observation(model)
    if largest > 100 and model.get_vec_normalize_env() is None:
        found.append(
            f"Observations reach {largest:g}: networks learn badly from numbers far from 1. "
            "Wrap the environment in VecNormalize."
        )
    return found


def _largest_observation(model: "SimpleDDPG") -> float:
    observations = model._last_obs
    if observations is None:
        return 0.0
    parts: Mapping[Any, Any] = observations if isinstance(observations, dict) else {None: observations}
    largest = 0.0
    for key, values in parts.items():
        space = model.observation_space
        if isinstance(space, spaces.Dict):
            space = space[key]
        if isinstance(space, spaces.Box) and not is_image_space(space) and values.size:
            largest = max(largest, float(np.abs(values).max()))
    return largest


def _check_range(name: str, value: object, low: float, high: float, example: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}: {example}.")
    if not low <= value <= high or math.isinf(value):
        limits = f"in [{low}, {high}]" if math.isfinite(high) else f"a finite number of at least {low}"
        raise ValueError(f"{name} must be {limits}, got {value}: {example}.")


def _check_count(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}: write {low if low > 0 else 1}, for example.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
