"""What is refused before any work, each with the value and the cure, and the advice that is given at verbose >= 1.

Not here: shape checks of the equations (`equations.py`) and checks of the noise (`exploration.py`).
"""

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_simple_ddpg.exploration import noise_scale, plain_number

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

P = ParamSpec("P")
T = TypeVar("T")


class UnsupportedError(ValueError, AssertionError, NotImplementedError):
    """A space or a combination that DDPG cannot use. Also the other two, since SB3 raises now one, now the other."""


class NonFiniteError(FloatingPointError, ValueError, AssertionError):
    """
    A number that is NaN or infinite.

    Also what searches over settings give a trial up at: RL Zoo's a ValueError, Optuna's example an AssertionError.
    """

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
            if name in _policy_arguments(args[0]):
                cure = f"it belongs to the policy, policy_kwargs=dict({name}={kwargs[name]!r})."
            elif name in FOREIGN_ARGUMENTS:
                cure = f"{FOREIGN_ARGUMENTS[name]}; plain DDPG does not."
            else:
                cure = did_you_mean(name, known)
            raise TypeError(f"SimpleDDPG has no argument {name}={kwargs[name]!r}: {cure}")
        return init(*args, **kwargs)

    return checked_init


def _policy_arguments(algorithm: Any) -> set[str]:  # noqa: ANN401 - its constructor is being called
    policy_class = algorithm.policy_aliases["MlpPolicy"]
    # The first three come from the algorithm; `n_critics` is taken only because settings for SB3's DDPG carry it.
    return set(list(inspect.signature(policy_class).parameters)[3:]) - {"n_critics"}


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
    :raises UnsupportedError: unless it is a Box of real numbers with bounds that mean something, low < high in each
        dimension
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
    shape, low, high = action_space.shape, action_space.low, action_space.high
    if action_space.dtype not in _REAL_DTYPES:
        raise UnsupportedError(
            f"PyTorch has no numbers like {action_space.dtype}, the dtype of the action space {action_space}: build "
            "the Box with dtype=np.float64 or np.float32."
        )
    if 0 in shape:
        raise UnsupportedError(f"The action space {action_space} has no dimension: there is nothing to learn.")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UnsupportedError(
            f"Continuous action space must have a finite lower and upper bound, got low={low}, high={high}: "
            f"{_bounded(shape)}"
        )
    with np.errstate(over="ignore"):
        narrow = np.isfinite(high - low).all()
    if not narrow or max(float(np.abs(low).max()), float(np.abs(high).max())) >= _LARGEST:
        raise UnsupportedError(
            "The action space reaches to the largest number of its dtype, which says no more than that there is no "
            f"bound: low={low}, high={high}. {_bounded(shape)}"
        )
    if not (low < high).all():
        raise UnsupportedError(
            f"The lower bound must be below the upper one in each dimension of the action space, got "
            f"low={low}, high={high}: leave out dimensions that cannot vary."
        )


#: Each side of what comes out of NatureCNN's three layers is at least 1.
_SMALLEST_IMAGE = 36
#: What PyTorch can hold.
_REAL_DTYPES = (np.float16, np.float32, np.float64)
_LARGEST = float(np.finfo(np.float32).max)


def _bounded(shape: tuple[int, ...]) -> str:
    return (
        "The actor's output, in [-1, 1], is stretched over this range, so it must be the one that the task needs: "
        "env = gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(-1.0, 1.0, "
        f"{shape})), with bounds of the task in the place of -1 and 1. (RescaleAction changes nothing here.)"
    )


def check_observation_space(space: spaces.Space[Any], name: str = "The observation space") -> None:
    """
    :param space: the environment's
    :param name: for the message
    :raises UnsupportedError: for one that SB3 cannot turn into a vector of fixed length, with a wrapper that can
    """
    flatten = 'gymnasium.wrappers.FlattenObservation(env) makes one vector of it, for "MlpPolicy".'
    if isinstance(space, spaces.Dict):
        if not space.spaces:
            raise UnsupportedError(f"{name} is a Dict without a key: {_NOTHING_TO_SEE}")
        for key, part in space.spaces.items():
            of_key = f"Key {key!r} of the observation space"
            if isinstance(part, spaces.Dict):
                raise UnsupportedError(
                    f"{of_key} is a Dict again. Nested observation spaces are not supported: {flatten}"
                )
            check_observation_space(part, of_key)
    elif isinstance(space, spaces.Box):
        if 0 in space.shape:
            cure = _NOTHING_TO_SEE if name == "The observation space" else "leave this key out."
            raise UnsupportedError(f"{name} holds no number, got {space}: {cure}")
        if not space.shape:
            raise UnsupportedError(f"{name} has no axis, got {space}: {flatten}")
        if np.issubdtype(space.dtype, np.floating) and space.dtype not in _REAL_DTYPES:
            raise UnsupportedError(
                f"PyTorch has no numbers like {space.dtype}: {name[0].lower()}{name[1:]} is {space}: build the Box "
                "with dtype=np.float64 or np.float32; the observations themselves may stay as they are."
            )
    elif isinstance(space, spaces.Discrete):
        if space.start != 0:
            raise UnsupportedError(f"{name} begins at {space.start}, SB3 counts from 0, got {space}: {flatten}")
    elif isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1 or np.any(space.start):
            raise UnsupportedError(
                f"{name} must have one axis and begin at 0, got {space} with start={space.start.tolist()}: {flatten}"
            )
        if not space.nvec.size:
            raise UnsupportedError(f"{name} holds no number, got {space}: {_NOTHING_TO_SEE}")
    elif isinstance(space, spaces.Sequence | spaces.Graph):
        raise UnsupportedError(
            f"{name} has no fixed size, got {space}: write it into a Box of fixed size, filled up with zeros: "
            "gymnasium.wrappers.TransformObservation(env, your_function, spaces.Box(...))."
        )
    elif not isinstance(space, spaces.MultiBinary):
        raise UnsupportedError(
            f"{name} must be a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these, got {space}: {flatten}"
        )


_NOTHING_TO_SEE = (
    "where there is nothing to see, show a zero: gymnasium.wrappers.TransformObservation(env, lambda _: "
    "np.zeros(1, np.float32), gymnasium.spaces.Box(0.0, 1.0, (1,)))."
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
    if issubclass(extractor, CombinedExtractor):
        if not isinstance(observation_space, spaces.Dict):
            raise UnsupportedError(
                f"MultiInputPolicy needs Dict observations, got {observation_space}: use MlpPolicy, or CnnPolicy for "
                "images."
            )
        _check_keys(list(observation_space))
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, part in parts.items() if extractor in (NatureCNN, CombinedExtractor) else ():
        if is_image_space(part) and part.shape is not None and min(part.shape[1:]) < _SMALLEST_IMAGE:
            raise UnsupportedError(
                f"SB3's CNN needs images of at least {_SMALLEST_IMAGE} x {_SMALLEST_IMAGE} pixels, got {part.shape}"
                f"{f' in key {key!r}' if key else ''}: gymnasium.wrappers.FlattenObservation(env) makes one vector of "
                'it, for "MlpPolicy"; or give an extractor of your own, '
                "policy_kwargs=dict(features_extractor_class=...)."
            )
    if issubclass(extractor, NatureCNN) and not is_image_space(
        observation_space, check_channels=False, normalized_image=not normalize_images
    ):
        raise UnsupportedError(
            f"CnnPolicy needs images (three axes, uint8 in [0, 255]), got {observation_space}: use MlpPolicy, or "
            "policy_kwargs=dict(normalize_images=False) for images in another range."
        )


def _check_keys(keys: list[Any]) -> None:
    """SB3's extractor keeps one layer a key, by its name; PyTorch has names of its own."""
    new_names: dict[Any, str] = {}
    for key in keys:
        try:
            th.nn.ModuleDict({key: th.nn.Identity()})
        except (KeyError, TypeError):
            new_names[key] = f"{str(key).replace('.', '_')}_"
            while new_names[key] in [*keys, *list(new_names.values())[:-1]]:
                new_names[key] += "_"
    if new_names:
        raise UnsupportedError(
            f"The observation space has the keys {keys}, of which PyTorch cannot name a layer after "
            f"{list(new_names)}: give them other names, in the environment or by rename = lambda parts: "
            f"{{{new_names}.get(key, key): part for key, part in parts.items()}}; env = gymnasium.wrappers."
            "TransformObservation(env, rename, gymnasium.spaces.Dict(rename(env.observation_space)))."
        )


def check_actions(policy: BasePolicy, observation: object, actions: npt.NDArray[Any]) -> None:
    """
    :param policy: that gave the actions
    :param observation: s, one or a batch
    :param actions: for the environment
    :raises NonFiniteError: when an action is NaN, with what made it so
    """
    # The sum of squares in one fast call; actions have finite bounds, so only NaN can make it anything else.
    if math.isfinite(np.vdot(actions, actions)) or np.isfinite(actions).all():
        return
    actor: Any = policy.actor
    for name, weight in actor.named_parameters():
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


def whole_number(value: Any) -> Any:  # noqa: ANN401 - whatever the user gave
    """
    :param value: anything
    :return: 10,000 for 1e4, Python's numbers for NumPy's and PyTorch's; anything else as it is
    """
    value = plain_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain_settings(model: "Agent") -> None:
    """
    Settings as people write them become Python's: 1e4, NumPy's and PyTorch's numbers, tuples and lists of whatever
    library. Only what belongs to the model is written to, and what cannot be meant is left for the checks.

    :param model: an algorithm whose constructor has stored its arguments
    """
    for name in (*_COUNTS, "seed"):
        setattr(model, name, whole_number(getattr(model, name)))
    for name in ("tau", "gamma", "max_grad_norm", "learning_rate", "critic_learning_rate"):
        setattr(model, name, plain_number(getattr(model, name)))
    given: Any = model.train_freq
    if not isinstance(given, TrainFreq):
        model.train_freq = tuple(map(whole_number, given)) if _is_sequence(given) else whole_number(given)
    if model.replay_buffer_kwargs is None:  # `load(replay_buffer_kwargs=None)`
        model.replay_buffer_kwargs = {}
    model.policy_kwargs = plain_policy_kwargs(model.policy_kwargs)


def plain_policy_kwargs(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    :param policy_kwargs: as the user gave them; stay as they are
    :return: the same as dicts and lists of our own
    """
    own = {name: dict(value) if isinstance(value, Mapping) else value for name, value in (policy_kwargs or {}).items()}
    if "net_arch" in own:
        own["net_arch"] = plain_net_arch(own["net_arch"])
    return own


def plain_net_arch(net_arch: Any) -> Any:  # noqa: ANN401 - whatever the user gave
    """
    :param net_arch: numbers of units, for both networks or by network, in sequences of any kind; stays as it is
    :return: the same in lists and dicts of our own, without the `vf` that other algorithms use; anything else as it is
    """
    if isinstance(net_arch, Mapping):
        unused = {"vf"} if "qf" in net_arch else set()
        return {name: plain_net_arch(layers) for name, layers in net_arch.items() if name not in unused}
    if not _is_sequence(net_arch):
        return net_arch
    layers = [whole_number(units) for units in net_arch]
    # SB3 before 1.8 had a list around the dict for some algorithms, and still takes it when it loads.
    return plain_net_arch(layers[0]) if len(layers) == 1 and isinstance(layers[0], Mapping) else layers


def check_hyperparameters(model: "Agent") -> None:
    """
    :param model: an algorithm of `plain_settings`
    :raises ValueError: for a number that cannot be meant, with the value and the cure
    :raises TypeError: for something that is not a number where one is needed
    """
    _check_range("tau", model.tau, 0, 1, "the share of the main network in a soft update, 0.005 for example")
    _check_range("gamma", model.gamma, 0, 1, "0.99 for example")
    for name, (low, example) in _COUNTS.items():
        _check_count(name.removeprefix("_"), getattr(model, name), low, example)
    for name in ("learning_rate", "critic_learning_rate"):
        rate = getattr(model, name)
        if callable(rate):
            rate = plain_number(rate(1.0))
            rate = rate.item() if isinstance(rate, th.Tensor) and rate.numel() == 1 else rate
        if rate is not None or name == "learning_rate":
            _check_range(name, rate, 0, math.inf, "1e-3 for example")
    if model.max_grad_norm is not None:
        _check_range("max_grad_norm", model.max_grad_norm, 0, math.inf, "None for no clipping, 1.0 for example")
        if model.max_grad_norm == 0:
            raise ValueError(
                "max_grad_norm must be above 0, got 0: that would stop learning. Use None for no clipping."
            )
    if not isinstance(model.compile_updates, bool) and model.compile_updates != "auto":
        raise ValueError(f"compile_updates must be True, False or 'auto', got {model.compile_updates!r}.")
    if model.on_non_finite not in ("stop", "skip"):
        raise ValueError(f"on_non_finite must be 'stop' or 'skip', got {model.on_non_finite!r}.")
    if model.tensorboard_log is not None and not isinstance(model.tensorboard_log, str | os.PathLike):
        raise TypeError(f"tensorboard_log must be a folder or None, got {model.tensorboard_log!r}.")
    check_net_arch(model.policy_kwargs.get("net_arch"))
    for name in ("optimizer_kwargs", "critic_optimizer_kwargs"):
        check_optimizer_kwargs(name, model.policy_kwargs.get(name))
    if isinstance(model.train_freq, tuple) and len(model.train_freq) != 2:
        raise ValueError(f"train_freq must be a number or (number, unit), got {model.train_freq}: (1, 'episode').")
    frequency = model.train_freq[0] if isinstance(model.train_freq, tuple) else model.train_freq
    _check_count("train_freq", frequency, 1, "1 or (1, 'episode')")


def check_net_arch(net_arch: object) -> None:
    """
    :param net_arch: of `plain_net_arch`, or None
    :raises UnsupportedError: for anything but lists of numbers of units, one or one for each network
    :raises TypeError: for a number of units that is none
    """
    if net_arch is None:
        return
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch]
    if isinstance(net_arch, dict) and net_arch.keys() != {"pi", "qf"}:
        cure = " DDPG's critic is Q(s, a): rename 'vf' to 'qf'." if "vf" in net_arch else ""
        raise UnsupportedError(f"net_arch must have the keys 'pi' (actor) and 'qf' (critic), got {net_arch}.{cure}")
    for layers in parts:
        if not isinstance(layers, list):
            raise UnsupportedError(
                f"The net_arch can only contain be a list of ints or a dict, got {net_arch!r}: [256, 256], for example."
            )
        for units in layers:
            _check_count("net_arch: the units of a layer", units, 1, "256")


def check_optimizer_kwargs(name: str, optimizer_kwargs: Mapping[str, Any] | None) -> None:
    """
    :param name: of the argument
    :param optimizer_kwargs: arguments of an optimizer
    :raises TypeError: for a learning rate among them, which is an argument of the algorithm
    """
    if optimizer_kwargs is not None and "lr" in optimizer_kwargs:
        argument = "critic_learning_rate" if name.startswith("critic") else "learning_rate"
        raise TypeError(
            f"{name} must not hold the learning rate, got lr={optimizer_kwargs['lr']!r}: write SimpleDDPG(..., "
            f"{argument}={optimizer_kwargs['lr']!r}), which may be a schedule too."
        )


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
    :raises UnsupportedError: for one around a VecNormalize that gives observations of another shape: the replay buffer
        keeps those of before VecNormalize
    """
    outside: list[VecEnvWrapper] = []
    normalizer = env
    while isinstance(normalizer, VecEnvWrapper) and not isinstance(normalizer, VecNormalize):
        outside.append(normalizer)
        normalizer = normalizer.venv
    if not isinstance(normalizer, VecNormalize):
        return
    kept = "and the replay buffer keeps observations as they were before VecNormalize, which are"
    if any(isinstance(wrapper, VecFrameStack) for wrapper in outside):
        raise UnsupportedError(
            f"VecFrameStack stands around VecNormalize, {kept} not stacked there: write "
            "VecNormalize(VecFrameStack(env, n))."
        )
    if any(isinstance(wrapper, VecTransposeImage) for wrapper in outside):
        settings = f"norm_obs_keys={normalizer.norm_obs_keys}" if normalizer.norm_obs else "norm_obs=False"
        raise UnsupportedError(
            f"Images with their channels last are transposed outside VecNormalize, {kept} not transposed there: write "
            f"VecNormalize(VecTransposeImage(env), {settings})."
        )
    inner, outer = _shapes(normalizer.observation_space), _shapes(env.observation_space)
    if inner != outer:
        names = ", ".join(type(wrapper).__name__ for wrapper in outside)
        raise UnsupportedError(
            f"{names} around VecNormalize makes observations of shape {outer} from {inner}, {kept} of the latter: put "
            f"VecNormalize around {names}."
        )


def _shapes(space: spaces.Space[Any]) -> object:
    return {key: part.shape for key, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


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


def advice(model: "Agent") -> list[str]:
    """
    What often goes wrong and can be seen before the first step.

    :param model: an algorithm that has an environment, reset or not
    :return: one sentence a finding, empty when there is nothing to say
    """
    found = []
    scale = noise_scale(model.action_noise)
    if scale == 0.0:
        found.append("There is no action noise: after the random steps nothing explores. Try action_noise=0.1.")
    if scale is not None and scale > 1.0:
        found.append(
            f"The action noise has a standard deviation of {scale:g}, and 1.0 is half the width of the action range in "
            "every environment: nearly every action ends at a bound. Try action_noise=0.1."
        )
    buffer = model.replay_buffer
    if buffer is not None and buffer.size() == 0 and model.num_timesteps > max(model.learning_starts, 0):
        found.append(
            f"The replay buffer is empty after {model.num_timesteps} timesteps, since no saved model holds one, and "
            "updates start at once, from a handful of transitions: load_replay_buffer(path), or a larger "
            "learning_starts."
        )
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


def _largest_observation(model: "Agent") -> float:
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


def _check_count(name: str, value: object, low: int, example: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}: write {example}, for example.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}: write {example}, for example.")


def _is_sequence(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


#: Attributes that count something: the least number, and one to write.
_COUNTS = {
    "batch_size": (1, "256"),
    "buffer_size": (1, "1_000_000"),
    "n_steps": (1, "1"),
    "_stats_window_size": (1, "100"),
    "learning_starts": (-1, "100"),  # -1: no random steps, as in SB3
    "gradient_steps": (-1, "1"),
}
