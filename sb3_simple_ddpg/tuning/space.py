"""What may be tried: a space of settings as text, from a file or as typed, to Optuna's distributions and back.

Not here: who draws from it (`search.py`). A setting stays text until a model is built, so that what a trial ran with,
what is confirmed and what is written to a file are the same to the last digit.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.experiment.algorithms import Algorithm, effective_settings, find_algorithms, settings_from
from sb3_simple_ddpg.experiment.runs import read_value
from sb3_simple_ddpg.sb3 import zoo_file

#: By the name of a setting.
Space: TypeAlias = dict[str, BaseDistribution]

#: Names of spaces, and their files.
SPACES: Final = {"default": Path(__file__).with_name("default.yml")}

#: The one algorithm that is tuned.
ALGORITHM: Final = "simple_ddpg"

_RANGE: Final = re.compile(r"(.+?)\.\.(.+)")


def simple_ddpg() -> Algorithm:
    """
    :return: the algorithm that is tuned
    """
    return find_algorithms([ALGORITHM])[0]


def read_space(items: Iterable[str]) -> dict[str, str]:
    """
    :param items: names of spaces, files (YAML) of `name: range`, and `name=range`; a later one goes before an earlier
    :return: the range of each setting, as text
    :raises ValueError: for a file that cannot be read, or what is neither
    """
    found: dict[str, str] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if separator:
            found[name.strip()] = text.strip()
            continue
        if item not in SPACES and not item.endswith(zoo_file.ENDINGS):
            raise ValueError(
                f"--space {item}: no space of that name. Write {', '.join(SPACES)}, a file (NAME.yml), name=low..high "
                'or "name=a|b|c".'
            )
        path = SPACES.get(item, Path(item))
        try:
            entries = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"--space {path} cannot be read: {error}") from error
        if not isinstance(entries, dict):
            raise ValueError(f"--space {path} must hold lines of the form `name: low..high`, got {entries!r}.")
        found |= {str(name): str(text).strip() for name, text in entries.items()}
    return found


def distributions(ranges: Mapping[str, str]) -> Space:
    """
    :param ranges: by the setting's name, as text
    :return: the same for Optuna. Choices are text, which any storage can hold
    :raises ValueError: for a range that holds nothing
    """
    if not ranges:
        raise ValueError("There is nothing to search: --space default, or name=low..high.")
    return {name: _distribution(name, text) for name, text in ranges.items()}


def _distribution(name: str, text: str) -> BaseDistribution:
    found = _RANGE.fullmatch(text)
    if found is None:
        choices = [each.strip() for each in text.split("|")]
        if "" in choices or len(set(choices)) < len(choices):
            raise ValueError(f'--space {name}={text}: each choice must be there once: "{name}=a|b|c", for example.')
        return CategoricalDistribution(choices)
    low, high = (read_value(end.strip()) for end in found.groups())
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise ValueError(f"--space {name}={text}: {end!r} is no number: {name}=0.001..0.01, for example.")
    if not low < high:
        raise ValueError(f"--space {name}={text}: the first number must be lower than the second.")
    log = low > 0 and high / low > 10 * (1 - 1e-9)  # 3e-3 / 3e-4 is not quite 10
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def draw(trial: Trial, space: Space) -> dict[str, str]:
    """
    :param trial: that begins
    :param space: to draw from
    :return: the setting of each name, as text
    """
    drawn = {}
    for name, each in space.items():
        if isinstance(each, FloatDistribution):
            value: Any = trial.suggest_float(name, each.low, each.high, log=each.log)
        elif isinstance(each, IntDistribution):
            value = trial.suggest_int(name, each.low, each.high, log=each.log)
        else:
            assert isinstance(each, CategoricalDistribution)
            value = trial.suggest_categorical(name, each.choices)
        drawn[name] = as_text(value, each)
    return drawn


def as_text(value: Any, distribution: BaseDistribution) -> str:  # noqa: ANN401 - whatever the distribution gives
    """
    :param value: that was drawn
    :param distribution: of which
    :return: as it is typed: numbers with four digits, which nobody could tell from the rest, and within the range
    """
    if isinstance(distribution, FloatDistribution):
        return repr(min(max(float(f"{value:.4g}"), distribution.low), distribution.high))
    return str(value)


def assignments(texts: Mapping[str, str]) -> list[str]:
    """
    :param texts: by the setting's name
    :return: as `--set` takes them
    """
    return [f"{name}={text}" for name, text in texts.items()]


def arguments(fixed: Iterable[str], texts: Mapping[str, str], env_id: str) -> dict[str, Any]:
    """
    :param fixed: assignments for every run
    :param texts: by the setting's name, which go before
    :param env_id: of the environment
    :return: arguments of the constructor, and `normalize_observations`
    :raises ValueError: for a setting that does not exist
    """
    return settings_from([simple_ddpg()], [*fixed, *assignments(texts)], env_id=env_id)[ALGORITHM]


def check(space: Space, fixed: Iterable[str], env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """
    Build a model at each end of each range, and with each choice, so that a mistake shows before any run.

    :param space: to be searched
    :param fixed: assignments for every run
    :param env_id: of the environment
    :param env_kwargs: its arguments
    :raises ValueError: for a setting that does not exist, that the algorithm refuses, or that no preset file can hold
    """
    fixed = list(fixed)
    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            ends = [str(choice) for choice in each.choices]
        else:
            assert isinstance(each, IntDistribution | FloatDistribution)
            ends = [repr(each.low), repr(each.high)]
        for end in ends:
            given = arguments(fixed, {name: end}, env_id)
            effective_settings(simple_ddpg(), env_id, given, env_kwargs)
            zoo_file.entry(given, False, 1)


def defaults(
    space: Space, fixed: Iterable[str], env_id: str, env_kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """
    :param space: to be searched
    :param fixed: assignments for every run
    :param env_id: of the environment
    :param env_kwargs: its arguments
    :return: what the default has for each name of the space, where the space holds it, as Optuna takes it; and whether
        that is so for all of them
    """
    settings = effective_settings(simple_ddpg(), env_id, arguments(fixed, {}, env_id), env_kwargs)
    found: dict[str, Any] = {}
    for name, each in space.items():
        value = settings.get("net_arch" if name == "policy_kwargs.net_arch" else name)
        if name == "critic_learning_rate" and value is None:
            value = settings["learning_rate"]
        if name == presets.NORMALIZE:
            value = bool(value)
        if isinstance(each, CategoricalDistribution):
            same = [choice for choice in each.choices if read_value(str(choice)) == value]
            found |= {name: same[0]} if same else {}
        else:
            assert isinstance(each, IntDistribution | FloatDistribution)
            if isinstance(value, int | float) and not isinstance(value, bool) and each.low <= value <= each.high:
                found[name] = value
    return found, found.keys() == space.keys()
