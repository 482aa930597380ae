"""Reading what the DDPG of Stable-Baselines3 (SB3) has saved, in versions before 2.0 too, with spaces of gym.

Not here: writing, and what becomes of the agent (`convert.py`).

SB3 pickles its spaces, and before version 2.0 they were of the module `gym`. Here a pickle gets Gymnasium's spaces in
their place, whether gym is installed or not.
"""

import base64
import inspect
import io
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.ddpg import DDPG
from stable_baselines3.her import HerReplayBuffer

from sb3_simple_ddpg.safety.checks import UnsupportedError

#: Without these the agent learns on, with a default.
_WITH_DEFAULT = frozenset({"learning_rate", "action_noise"})
#: Without these it would be another agent. What else SB3 has pickled is of the environment, the log, or other versions.
_NEEDED = (
    {*inspect.signature(DDPG).parameters} | {"policy_class", "observation_space", "action_space"}
) - _WITH_DEFAULT


@dataclass(frozen=True)
class SavedAgent:
    """
    :param attributes: of the algorithm, by name
    :param parameters: state dicts of `policy`, `actor.optimizer` and `critic.optimizer`
    :param missing: `learning_rate` and `action_noise` where the file's cannot be read, with the error
    """

    attributes: dict[str, Any]
    parameters: dict[str, Any]
    missing: dict[str, str]


def read_agent(path: str | Path | io.BufferedIOBase, custom_objects: dict[str, Any] | None = None) -> SavedAgent:
    """
    :param path: of a zip that SB3 has written, or the open file
    :param custom_objects: attributes that take the place of the file's, which are then not read
    :return: what the zip holds, its spaces those of Gymnasium
    :raises ValueError: for a file that is no such zip, or an attribute that is needed and cannot be read
    """
    custom_objects = custom_objects or {}
    objects: dict[str, Any] = {}
    missing: dict[str, str] = {}
    pickled_attributes, python = _pickled_attributes(path)
    for name, pickled in pickled_attributes.items():
        if name in custom_objects:
            continue
        try:
            objects[name] = _load(io.BytesIO(pickled), python)
        except Exception as error:  # whatever a pickle of other versions, or of the user's own classes, may raise
            objects[name] = None
            missing[name] = f"{type(error).__name__}: {error}"
            if name in _NEEDED:
                raise ValueError(
                    f"{path} holds {name}, which cannot be read here ({missing[name]}). {_cure(error)}"
                    f"SimpleDDPG.from_sb3(path, custom_objects={{{name!r}: ...}}) takes yours instead."
                ) from error
    # SB3 reads the rest; what it would unpickle is here already.
    attributes, parameters, _ = load_from_zip_file(path, custom_objects={**objects, **custom_objects})
    if attributes is None:
        raise ValueError(f"{path} holds no settings: write it with DDPG.save.")
    attributes.update(custom_objects)
    for name in ("policy_class", "policy_kwargs", "observation_space", "action_space"):
        if name not in attributes:
            raise ValueError(
                f"{path} holds no {name}: save without `exclude`, or SimpleDDPG.from_sb3(path, "
                f"custom_objects={{{name!r}: ...}})."
            )
    for name in missing.keys() | {"lr_schedule"}:  # as in SB3's `load`, the schedule is made of `learning_rate`
        attributes.pop(name, None)
    return SavedAgent(attributes, parameters, {name: missing[name] for name in missing.keys() & _WITH_DEFAULT})


def read_replay_buffer(path: str | Path | io.BufferedIOBase, verbose: int = 0) -> ReplayBuffer:
    """
    :param path: that `save_replay_buffer` of SB3 or of this package has written, or the open file
    :param verbose: 2: say where it was looked for
    :return: the buffer, its spaces those of Gymnasium
    :raises ValueError: for what is no replay buffer, a HER buffer of SB3 before 1.8, or classes that are missing here
    """
    file = open_path(path, "r", verbose=verbose, suffix="pkl")
    try:
        replay_buffer = _load(file)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} cannot be read here ({error}). {_cure(error)}") from error
    finally:
        if isinstance(path, str | Path):
            file.close()
    if not isinstance(replay_buffer, ReplayBuffer):
        raise UnsupportedError(
            f"{path} must hold a replay buffer, got {type(replay_buffer).__name__}: write it with "
            "save_replay_buffer. (The replay buffer must inherit from ReplayBuffer class.)"
        )
    if isinstance(replay_buffer, HerReplayBuffer) and not hasattr(replay_buffer, "ep_start"):
        raise ValueError(
            f"{path} holds a HER buffer of SB3 before 1.8, whose rows are kept otherwise: begin with an empty one."
        )
    if not hasattr(replay_buffer, "handle_timeout_termination"):  # before SB3 1.1; what SB3 itself does then
        replay_buffer.handle_timeout_termination = False
        replay_buffer.timeouts = np.zeros_like(replay_buffer.dones)
    return replay_buffer


def old_defaults(policy_kwargs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """
    Before SB3 1.6 policies for images had no hidden layers and one extractor for both networks where nothing was said.

    :param policy_kwargs: of the file; stay as they are
    :param parameters: of the file
    :return: the same, with what the weights say where `policy_kwargs` say nothing
    """
    weights: dict[str, th.Tensor] = parameters.get("policy", {})
    said = dict(policy_kwargs)
    layers = {"pi": _hidden_units(weights, "actor.mu."), "qf": _hidden_units(weights, "critic.qf0.")}
    if said.get("net_arch") is None and layers["pi"] == layers["qf"] == []:
        said["net_arch"] = []
    extractor = [name for name in weights if name.startswith("actor.features_extractor.")]
    # Two extractors begin with other weights, and learn from other losses.
    of_critic = [weights.get(name.replace("actor", "critic", 1)) for name in extractor]
    pairs = zip(extractor, of_critic, strict=True)
    same = [other is not None and th.equal(weights[name], other) for name, other in pairs]
    if same and all(same):
        said.setdefault("share_features_extractor", True)
    return said


def _hidden_units(weights: dict[str, th.Tensor], prefix: str) -> list[int]:
    layers = [tensor for name, tensor in weights.items() if name.startswith(prefix) and name.endswith(".weight")]
    return [tensor.shape[0] for tensor in layers if tensor.dim() == 2][:-1]


def _pickled_attributes(path: str | Path | io.BufferedIOBase) -> tuple[dict[str, bytes], str | None]:
    """
    :param path: of a zip
    :return: those attributes that SB3 has pickled, since JSON has no word for them, and the version of Python that did
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if "data" not in archive.namelist():
                return {}, None
            attributes = json.loads(archive.read("data"))
            # Since SB3 1.3.
            system = archive.read("system_info.txt").decode() if "system_info.txt" in archive.namelist() else ""
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} wasn't a zip-file: write it with DDPG.save.") from error
    finally:
        if isinstance(path, str | Path):
            file.close()
    pickled = {
        name: base64.b64decode(value[":serialized:"])
        for name, value in attributes.items()
        if isinstance(value, dict) and ":serialized:" in value
    }
    python = re.search(r"Python: (\d+\.\d+)", system)
    return pickled, None if python is None else python.group(1)


def _cure(error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    module = error.name.partition(".")[0]
    if module == "gym":
        return "Install gym for it (pip install gym), or read and save it once with SB3 and gym where both are. "
    return f"Import or install what defines {module!r} first. "


def _load(file: Any, python: str | None = None) -> Any:  # noqa: ANN401 - as pickle.load
    with warnings.catch_warnings():
        for category in (DeprecationWarning, np.exceptions.VisibleDeprecationWarning):
            warnings.simplefilter("ignore", category)  # NumPy's remarks on how old the file is
        return _Unpickler(file, python).load()


class _Unpickler(pickle.Unpickler):
    """
    Python's, which finds Gymnasium's spaces where gym's were.

    :param file: to read from
    :param python: version of Python that wrote it, such as "3.8"; None: not known
    """

    def __init__(self, file: Any, python: str | None) -> None:  # noqa: ANN401 - as Python's
        super().__init__(file)
        self.python = python

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class or a function
        if module.startswith("gym.spaces") and name in _SPACES:
            return _SPACES[name]
        if module == "gym.utils.seeding":
            return _Forgotten
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if name in _FUNCTIONS and module.startswith("cloudpickle") and self.python not in (None, here):
            # It could be made, and would end the process when it is called.
            raise pickle.UnpicklingError(f"a function that Python {self.python} has compiled does not run in {here}")
        return super().find_class(module, name)


#: With which cloudpickle makes functions that no module has, such as a lambda.
_FUNCTIONS = frozenset({"_make_function", "_make_skel_func"})


class _Forgotten:
    """The random generator of a space: a new one is drawn from when it is needed."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


#: What becomes of what gym keeps in a space, which differs by version.
_BUILD: dict[str, Callable[[Any], spaces.Space[Any]]] = {
    "Box": lambda state: spaces.Box(state["low"], state["high"], np.shape(state["low"]), np.dtype(state["dtype"]).type),
    "Discrete": lambda state: spaces.Discrete(int(state["n"]), start=int(state.get("start", 0))),
    "MultiDiscrete": lambda state: spaces.MultiDiscrete(
        np.asarray(state["nvec"]), np.dtype(state.get("dtype") or np.int64)
    ),
    "MultiBinary": lambda state: spaces.MultiBinary(state["n"]),
    "Dict": lambda state: spaces.Dict(OrderedDict(state["spaces"])),
    "Tuple": lambda state: spaces.Tuple(state["spaces"]),
}


def _becomes(build: Callable[[Any], spaces.Space[Any]]) -> Callable[[Any, Any], None]:
    def setstate(unpickled: Any, state: Any) -> None:  # noqa: ANN401 - its class is changed
        space = build(state)
        vars(unpickled).update(vars(space))
        unpickled.__class__ = type(space)

    return setstate


#: Of each name a class that a pickle can fill, and that is Gymnasium's afterwards.
_SPACES: dict[str, type] = {
    name: type(name, (getattr(spaces, name),), {"__setstate__": _becomes(build)}) for name, build in _BUILD.items()
}
