"""The algorithms of a comparison: from names and assignments, as typed, to classes and their arguments.

Not here: how they are run (`experiment.py`).
"""

import ast
import copy
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.exploration import ColoredNoise, OrnsteinUhlenbeck, make_action_noise
from sb3_simple_ddpg.safety import checks, mistakes
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

#: What `--algorithms` knows by name; any other is written name=module:Class.
ALGORITHMS: Final[dict[str, str]] = {
    "simple_ddpg": "sb3_simple_ddpg:SimpleDDPG",
    "ddpg": "stable_baselines3:DDPG",
    "td3": "stable_baselines3:TD3",
    "sac": "stable_baselines3:SAC",
    "tqc": "sb3_contrib:TQC",
    "crossq": "sb3_contrib:CrossQ",
}

#: Arguments that a comparison gives itself, and the option that says them.
RESERVED: Final[dict[str, str]] = {
    "env": "--env",
    "seed": "--seeds and --first-seed",
    "tensorboard_log": "the files that a comparison writes",
    "_init_setup_model": "nothing: it is not for users",
}

#: What a value may call: noise and schedules that are no literals.
CALLS: Final[dict[str, type[Any]]] = {each.__name__: each for each in (OrnsteinUhlenbeck, ColoredNoise, LinearSchedule)}

#: By the setting's name: what its value must be a kind of, and the modules whose classes need no path.
CLASSES: Final[dict[str, tuple[type[Any], tuple[str, ...]]]] = {
    "replay_buffer_class": (ReplayBuffer, ("stable_baselines3.common.buffers", "stable_baselines3")),
    "rollout_buffer_class": (RolloutBuffer, ("stable_baselines3.common.buffers",)),
    "features_extractor_class": (BaseFeaturesExtractor, ("stable_baselines3.common.torch_layers",)),
    "optimizer_class": (th.optim.Optimizer, ("torch.optim", "stable_baselines3.common.sb2_compat.rmsprop_tf_like")),
    "activation_fn": (th.nn.Module, ("torch.nn.modules.activation",)),
}

#: Classes in those modules that nothing can be made of, or not without arguments.
NOT_MEANT: Final = (
    "BaseFeaturesExtractor", "Module", "MultiheadAttention", "NonDynamicallyQuantizableLinear", "Optimizer",
    "Threshold",
)  # fmt: skip

#: In a setting's place: whoever takes part.
EVERYBODY: Final = "all"

#: Written into a table where an algorithm has no such argument.
LACKING: Final = "-"


@dataclass(frozen=True)
class Algorithm:
    """
    One side of a comparison.

    :param name: in tables, pictures and files
    :param cls: its class
    :param path: where the class comes from, "module:Class"
    """

    name: str
    cls: type[BaseAlgorithm]
    path: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Every argument of the constructor with its default; `inspect.Parameter.empty` where there is none."""
        return {name: default for name, default in runs.arguments_of(self.cls).items() if name not in RESERVED}


def find_algorithms(names: Iterable[str] | Mapping[str, str | type[BaseAlgorithm]]) -> list[Algorithm]:
    """
    :param names: "td3", "name=module:Class", ...; or classes (or "module:Class") by name
    :return: the algorithms, in that order
    :raises ValueError: for an unknown name, a name given twice, a class that cannot be imported or is no algorithm
    """
    if isinstance(names, Mapping):
        pairs = list(names.items())
    else:
        pairs = [(name, separator and path) for name, separator, path in (text.partition("=") for text in names)]
    if not pairs:
        raise ValueError(f"A comparison needs at least one algorithm: choose from {', '.join(ALGORITHMS)}.")
    found: list[Algorithm] = []
    for name, source in pairs:
        if not name or name == EVERYBODY or not all(letter.isalnum() or letter in "-_" for letter in name):
            raise ValueError(
                f"An algorithm's name must be made of letters, digits, - and _, and not be {EVERYBODY!r}, got {name!r}."
            )
        if name in [algorithm.name for algorithm in found]:
            raise ValueError(
                f"The algorithm {name!r} is given twice: the same algorithm under other settings needs a name of its "
                f"own, for example other={ALGORITHMS.get(name, 'module:Class')} --set other.gamma=0.98."
            )
        if isinstance(source, type):
            cls, path = source, f"{source.__module__}:{source.__qualname__}"
        else:
            if not source and name not in ALGORITHMS:
                raise ValueError(
                    f"There is no algorithm {name!r}: {checks.did_you_mean(name, list(ALGORITHMS))} "
                    "Any other class of SB3's kind is written name=module:Class."
                )
            path = source or ALGORITHMS[name]
            if ":" not in path:
                raise ValueError(f"A class is written module:Class, got {path!r}: stable_baselines3:TD3, for example.")
            cls = runs.import_object(path)
        if not (isinstance(cls, type) and issubclass(cls, BaseAlgorithm)):
            raise ValueError(f"{path} is no algorithm of Stable-Baselines3's kind, but {cls!r}.")
        found.append(Algorithm(name, cls, path))
    return found


def settings_from(
    algorithms: list[Algorithm], assignments: Iterable[str] = (), preset_names: Iterable[str] = (), env_id: str = ""
) -> dict[str, dict[str, Any]]:
    """
    Settings as typed, for one environment. What names an algorithm goes before what is for all.

    :param algorithms: of the comparison
    :param assignments: "algorithm.argument=value"; "all.argument=value" or "argument=value" for every algorithm
    :param preset_names: "algorithm=preset"; "preset" alone for every SimpleDDPG
    :param env_id: of the environment, for the preset rl-zoo
    :return: arguments by the algorithm's name
    :raises ValueError: for an algorithm, preset or argument that does not exist, with the nearest
    """
    known = {algorithm.name: algorithm for algorithm in algorithms}
    settings: dict[str, dict[str, Any]] = {name: {} for name in known}
    for text in preset_names:
        name, separator, preset = text.rpartition("=")
        if separator and name not in known:
            raise ValueError(
                f"--preset {text}: no algorithm {name!r} takes part, {checks.did_you_mean(name, [*known])}"
            )
        takers = [name] if separator else [name for name in known if issubclass(known[name].cls, SimpleDDPG)]
        if not takers:
            raise ValueError(
                f"--preset {text}: no SimpleDDPG takes part; write algorithm={text} for another algorithm."
            )
        for taker in takers:
            settings[taker] |= presets.choose_preset(preset, env_id)[1]
    for assignment in sorted(assignments, key=lambda each: each.partition("=")[0].partition(".")[0].strip() in known):
        left, separator, value = assignment.partition("=")
        owner, dot, rest = left.strip().partition(".")
        if not separator or not owner:
            raise ValueError(f"--set takes algorithm.name=value, got {assignment!r}: --set td3.gamma=0.98.")
        named = bool(dot) and owner in known
        keys = (rest if named or (dot and owner == EVERYBODY) else left.strip()).split(".")
        for taker in [owner] if named else known:
            _check_argument(known[taker], keys[0], owner if dot else None, [*known])
            assign(settings[taker], keys, value)
    return settings


def _check_argument(algorithm: Algorithm, argument: str, owner: str | None, known: list[str]) -> None:
    if argument in RESERVED:
        raise ValueError(f"--set {argument} cannot be given: use {RESERVED[argument]}.")
    arguments = [*algorithm.parameters, presets.NORMALIZE]
    if argument in arguments:
        return
    if owner == argument and owner not in (EVERYBODY, *known):  # sdc.gamma=0.9
        raise ValueError(
            f"{argument!r} is neither an algorithm of this comparison nor an argument of {algorithm.name}: "
            f"{checks.did_you_mean(argument, [*known, *algorithm.parameters])}"
        )
    raise ValueError(
        f"{algorithm.name} has no argument {argument!r}: {checks.did_you_mean(argument, arguments)} "
        "A setting for some algorithms only is written algorithm.name=value."
    )


def assign(arguments: dict[str, Any], keys: list[str], text: str) -> None:
    """
    Put a value into arguments, and copy the dictionaries on the way, which may be a preset's own.

    :param arguments: of a constructor
    :param keys: name of the argument, then keys within it
    :param text: the value, as typed
    """
    target, key = arguments, keys[0]
    for next_key in keys[1:]:
        target[key] = dict(target.get(key) or {})
        target, key = target[key], next_key
    target[key] = parse_value(key, text)


def parse_value(name: str, text: str) -> Any:  # noqa: ANN401 - whatever the argument takes
    """
    :param name: of the argument or key
    :param text: as typed
    :return: a Python literal, one of `CALLS` such as `ColoredNoise(...)`, an object where a class or function is
        expected ("module:Name", or the name alone of those in `CLASSES`), or the text itself
    :raises ValueError: for an import that fails, a class that is not of the setting's kind, or noise or a schedule that
        cannot be
    """
    value = runs.read_value(text)
    if not isinstance(value, str) or value != text:
        return value
    called = text.strip().partition("(")[0]
    if called in CALLS and "(" in text:
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not isinstance(call, ast.Call):
                raise ValueError("more than one call")
            values = [ast.literal_eval(value) for value in call.args]
            named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            return CALLS[called](*values, **named)
        except (SyntaxError, TypeError, ValueError) as error:
            example = "LinearSchedule(0.3, 0.05, 1.0)" if called == "LinearSchedule" else f"{called}(sigma=0.5)"
            raise ValueError(f"{name}={text} cannot be read ({error}): write {example}.") from error
    return _find_class(name, text.strip()) if name.endswith(("_class", "_fn")) else text


def _find_class(name: str, text: str) -> Any:  # noqa: ANN401 - a function may stand for a class
    kind, modules = CLASSES.get(name, (object, ()))
    named = {each: cls for module in modules for each, cls in vars(importlib.import_module(module)).items()}
    classes = (each for each in sorted(named) if isinstance(named[each], type) and issubclass(named[each], kind))
    short = {each: named[each] for each in classes if each not in NOT_MEANT}
    if ":" in text or "." in text:
        found = runs.import_object(text)
    elif text in short:
        found = short[text]
    else:
        known = f"{checks.did_you_mean(text, list(short))} " if short else ""
        raise ValueError(f"{name}={text}: there is no such name. {known}Any other is written {name}=module:Name.")
    if not callable(found) or (isinstance(found, type) and not issubclass(found, kind)):
        raise ValueError(
            f"{name}={text} is no {kind.__name__}, but {found!r}. Those known by name: {', '.join(short) or 'none'}."
        )
    return found


def build(
    algorithm: Algorithm, env: gym.Env[Any, Any], arguments: Mapping[str, Any], seed: int | None
) -> BaseAlgorithm:
    """
    :param algorithm: its class
    :param env: one environment
    :param arguments: of the constructor; copied, since SB3 writes into its dictionaries.
        `action_noise` may be a number, `OrnsteinUhlenbeck(...)` or `ColoredNoise(...)` for any algorithm: what SB3's
        own need is made of it.
        `normalize_observations=True` puts VecNormalize around the environment
    :param seed: of everything; None leaves all random streams as they are
    :return: the algorithm, ready to learn
    :raises TypeError: for `normalize_observations` that is neither True nor False, or noise that the algorithm lacks
    """
    given = copy.deepcopy({"policy": runs.policy_for(env.observation_space), **arguments})
    normalize = take_normalize(given)
    noise = given.get("action_noise")
    if not issubclass(algorithm.cls, SimpleDDPG) and noise is not None:
        shape = env.action_space.shape
        if not isinstance(env.action_space, gym.spaces.Box) or shape is None:
            raise ValueError(
                f"action_noise={noise} needs an environment whose actions are a Box, got {env.action_space}: leave it "
                f"out for {algorithm.name}."
            )
        if isinstance(noise, int | float) and not isinstance(noise, bool):
            make_action_noise(noise, shape, 1)  # refuses what cannot be a standard deviation
            given["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(noise)))
        elif isinstance(noise, OrnsteinUhlenbeck | ColoredNoise):
            given["action_noise"] = make_action_noise(noise, shape, 1)
        elif isinstance(noise, LinearSchedule):
            raise TypeError(f"action_noise={noise} is for SimpleDDPG alone: give a number such as 0.1.")
    model: BaseAlgorithm = algorithm.cls(env=_normalized(env) if normalize else env, seed=seed, **given)
    return model


def resume(env: gym.Env[Any, Any], arguments: Mapping[str, Any], checkpoints: Path) -> SimpleDDPG:
    """
    :param env: one environment, as it was given to `build`
    :param arguments: as they were given to `build`
    :param checkpoints: folder of `ExactCheckpointCallback`
    :return: the SimpleDDPG of the newest checkpoint, to go on with `learn(n, reset_num_timesteps=False)`
    :raises CheckpointError: when there is no checkpoint
    """
    return SimpleDDPG.resume(checkpoints, _normalized(env) if take_normalize(dict(arguments)) else env)


def _normalized(env: gym.Env[Any, Any]) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Monitor(env)]), norm_reward=False)


def take_normalize(arguments: dict[str, Any]) -> bool:
    """
    Take `normalize_observations` out of the arguments: it belongs to the environment, not to the constructor.

    :param arguments: of a preset or `--set`; changed
    :return: its value, False without it
    :raises TypeError: when it is neither True nor False
    """
    value = arguments.pop(presets.NORMALIZE, False)
    if not isinstance(value, bool):
        raise TypeError(f"{presets.NORMALIZE} must be True or False, got {value!r}.")
    return value


def env_kwargs_from(assignments: Iterable[str], env_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    Arguments of environments as typed. What names an environment goes before what is for all.

    :param assignments: "environment.name=value"; "name=value" for every environment
    :param env_ids: of the environments
    :return: arguments by environment
    :raises ValueError: for what is no assignment
    """
    found: dict[str, dict[str, Any]] = {env_id: {} for env_id in env_ids}
    owned = [(next((env_id for env_id in env_ids if each.startswith(f"{env_id}.")), ""), each) for each in assignments]
    for owner, assignment in sorted(owned, key=lambda each: each[0] != ""):
        name, separator, text = assignment.removeprefix(f"{owner}.").partition("=")
        name = name.strip()
        if not separator or not name.isidentifier():
            raise ValueError(
                f"--env-kwargs takes name=value, an argument of the environment, got {assignment!r}: --env-kwargs "
                f"max_episode_steps=500, for example{', or environment.name=value' if len(env_ids) > 1 else ''}."
            )
        for env_id in [owner] if owner else env_ids:
            found[env_id][name] = runs.read_value(text)
    return found


def effective_settings(
    algorithm: Algorithm, env_id: str, arguments: Mapping[str, Any], env_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    What an algorithm will run with. It is built once, so a mistake shows before any run.

    :param algorithm: its class
    :param env_id: name of the environment
    :param arguments: as given
    :param env_kwargs: arguments of the environment
    :return: every argument with its value; the layers as the policy has them, also where nobody named them
    :raises ValueError: when the algorithm cannot be built for this environment
    """
    env = runs.EnvSettings(env_id, kwargs=env_kwargs or {}).make_one()
    try:
        with th.random.fork_rng(devices=[]):
            model = build(algorithm, env, arguments, seed=None)
    except Exception as error:
        if not mistakes.is_about_settings(error, arguments):
            raise
        raise ValueError(f"{algorithm.name} ({algorithm.path}) cannot run in {env_id}: {error}") from error
    finally:
        env.close()
    settings = {name: arguments.get(name, default) for name, default in algorithm.parameters.items()}
    settings.pop("verbose", None)
    settings["policy"] = arguments.get("policy", runs.policy_for(env.observation_space))
    policy_kwargs = dict(settings.pop("policy_kwargs", None) or {})
    settings["net_arch"] = policy_kwargs.pop("net_arch", getattr(model.policy, "net_arch", LACKING))
    if presets.NORMALIZE in arguments:
        settings[presets.NORMALIZE] = arguments[presets.NORMALIZE]
    return settings | {f"policy_kwargs.{name}": value for name, value in policy_kwargs.items()}


def differing(settings: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """
    :param settings: by the algorithm's name, what `effective_settings` gave
    :param given: by the algorithm's name, the arguments that somebody set
    :return: each setting in which the algorithms differ, with its values by the algorithm's name. What some of them
        have no argument for belongs to the algorithms; it is listed only where it was set.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for values in settings.values() for name in values):
        has = {algorithm: values[name] for algorithm, values in settings.items() if name in values}
        if name == presets.NORMALIZE:
            has = {algorithm: values.get(name, False) for algorithm, values in settings.items()}
        was_set = any(name in arguments or "." in name for arguments in given.values())
        differs = any(repr(value) != repr(next(iter(has.values()))) for value in has.values())
        if differs or (was_set and len(has) < len(settings)):
            found[name] = {algorithm: has.get(algorithm, LACKING) for algorithm in settings}
    return found
