"""RL Zoo's files of hyperparameters (YAML): an entry of one to arguments of SimpleDDPG, and arguments to an entry.

Not here: RL Zoo itself (`zoo.py`), and what the settings are worth (`presets.py`).

One file is for three: `simple-ddpg train --preset FILE`, `simple-ddpg compare --preset name=FILE`, and RL Zoo's
`-conf FILE`. Nothing in it is executed: RL Zoo calls `eval`; here `dict(...)` is read as the data that it is.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch as th
import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_simple_ddpg.exploration import OrnsteinUhlenbeck

ENDINGS: Final = (".yml", ".yaml")

#: What belongs to RL Zoo's run and not to the algorithm, and what says the same here.
_OF_THE_RUN: Final = {
    "n_envs": "--n-envs", "env_wrapper": "--wrapper", "vec_env_wrapper": "--wrapper", "frame_stack": "--wrapper",
    "callback": "the Python interface", "env_kwargs": "--env-kwargs", "monitor_kwargs": "the Python interface",
    "replay_buffer_class": "--set replay_buffer_class=NAME",
}  # fmt: skip

_NOISES: Final = {"normal": float, "ornstein-uhlenbeck": OrnsteinUhlenbeck}
_OBSERVATIONS_ALONE: Final = {"norm_obs": True, "norm_reward": False}


def read(path: Path, env_id: str) -> tuple[dict[str, Any], bool]:
    """
    :param path: of a file in RL Zoo's form
    :param env_id: whose entry is wanted; without one, `default`, as in RL Zoo
    :return: arguments of the constructor, and whether observations are normalised. `n_timesteps` is left out: the
        budget belongs to the command
    :raises ValueError: for a file that cannot be read, that has no such entry, or that asks for what only RL Zoo has
    """
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The preset {path} cannot be read: {error}") from error
    names = [env_id, env_id.partition(":")[2] or env_id, "default"]
    found = [entries[name] for name in names if name in entries] if isinstance(entries, dict) else []
    if not found or not isinstance(found[0], dict):
        known = ", ".join(map(str, entries)) if isinstance(entries, dict) else "none"
        raise ValueError(f"The preset {path} has no entry for {env_id}, nor a default: it has {known}.")
    entry = dict(found[0])
    entry.pop("n_timesteps", None)
    if entry.get("n_envs") == 1:
        del entry["n_envs"]
    for name, instead in _OF_THE_RUN.items():
        if name in entry:
            raise ValueError(f"The preset {path} sets {name}={entry[name]!r}: leave it out, and use {instead}.")
    try:
        arguments = {name: _value(value) for name, value in entry.items()}
        return _arguments(arguments)
    except (ValueError, TypeError, SyntaxError, KeyError) as error:
        raise ValueError(f"The entry of {env_id} in the preset {path} cannot be read: {error}") from error


def _arguments(entry: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    normalize = entry.pop("normalize", False)
    if normalize not in (False, _OBSERVATIONS_ALONE):
        raise ValueError(
            f'normalize={normalize!r} would normalise rewards too: write normalize: "dict(norm_obs=True, '
            'norm_reward=False)", or leave it out and use `simple-ddpg train --normalize`.'
        )
    noise = entry.pop("noise_type", None)
    size = entry.pop("noise_std", 0.0)
    if noise is not None:
        if noise not in _NOISES:
            raise ValueError(f"noise_type={noise!r} is unknown: write {' or '.join(_NOISES)}.")
        entry["action_noise"] = _NOISES[noise](size)
    if isinstance(rate := entry.get("learning_rate"), str):
        # YAML reads 1e-3 as a word; lin_1e-3 is RL Zoo's for a rate that falls to 0.
        start = float(rate.removeprefix("lin_"))
        entry["learning_rate"] = LinearSchedule(start, 0.0, 1.0) if rate.startswith("lin_") else start
    if isinstance(entry.get("train_freq"), list):
        entry["train_freq"] = tuple(entry["train_freq"])
    return entry, bool(normalize)


def _value(value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """RL Zoo writes dictionaries as the Python that makes them."""
    if not isinstance(value, str) or not value.strip().startswith(("dict(", "{")):
        return value
    return _literal(ast.parse(value.strip(), mode="eval").body)


def _literal(node: ast.expr) -> Any:  # noqa: ANN401 - a literal of Python
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(word.arg): _literal(word.value) for word in node.keywords}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
        layer = getattr(th.nn, node.attr, None)
        if not isinstance(layer, type):
            raise ValueError(f"PyTorch has no layer nn.{node.attr}.")
        return layer
    return ast.literal_eval(node)


def entry(arguments: Mapping[str, Any], normalize: bool, timesteps: int, policy: str = "MlpPolicy") -> dict[str, Any]:
    """
    :param arguments: of the constructor
    :param normalize: whether observations are normalised
    :param timesteps: of a run
    :param policy: its name
    :return: the same in RL Zoo's form
    :raises ValueError: for a value that such a file cannot hold
    """
    found: dict[str, Any] = {"n_timesteps": timesteps, "policy": policy}
    if normalize:
        found["normalize"] = _written("normalize", _OBSERVATIONS_ALONE)
    for name, value in arguments.items():
        if name == "action_noise" and isinstance(value, OrnsteinUhlenbeck) and value == OrnsteinUhlenbeck(value.sigma):
            found |= {"noise_type": "ornstein-uhlenbeck", "noise_std": value.sigma}
        elif name == "action_noise" and isinstance(value, int | float) and not isinstance(value, bool):
            found |= {"noise_type": "normal", "noise_std": value}
        elif name in ("policy_kwargs", "replay_buffer_kwargs"):
            found[name] = _written(name, value)
        elif isinstance(value, tuple) and name == "train_freq":
            found[name] = list(value)
        else:
            _check(name, value)
            found[name] = value
    return found


def _written(name: str, value: Any) -> str:  # noqa: ANN401 - whatever is within
    """As Python that `eval` in RL Zoo, and `_literal` here, make it of."""
    if isinstance(value, Mapping):
        words = [f"{key}={_written(f'{name}.{key}', each)}" for key, each in value.items()]
        return f"dict({', '.join(words)})"
    if isinstance(value, type):
        for layer, known in vars(th.nn).items():
            if known is value:
                return f"nn.{layer}"
    _check(name, value)
    return repr(value)


def _check(name: str, value: Any) -> None:  # noqa: ANN401 - whatever is within
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(
            f"{name}={value!r} cannot be written to a file of RL Zoo's form, which holds numbers, words, lists, "
            "OrnsteinUhlenbeck(sigma) and activation functions of torch.nn."
        ) from error


def write(path: Path, env_id: str, found: Mapping[str, Any], comments: Iterable[str]) -> None:
    """
    :param path: of the file
    :param env_id: whose entry it is
    :param found: the entry
    :param comments: lines above it: what its evidence is
    """
    lines = [f"# {line}".rstrip() for line in comments]
    text = yaml.safe_dump({env_id.partition(":")[2] or env_id: dict(found)}, sort_keys=False, width=1_000)
    path.write_text("\n".join([*lines, text]), "utf-8")
