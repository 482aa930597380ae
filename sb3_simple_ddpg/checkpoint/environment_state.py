"""What an environment holds beyond an episode: random streams, states that it gives out itself, and all else in it.

Not here: files (`folder.py`), and the statistics of VecNormalize, which are of training and not of the environment.

Objects are found by going through attributes, dicts, lists, closures and bound methods, from the vectorised environment
inwards. A place is the list of steps to an object, each as Python writes it: `[".venv", ".envs", "[0]", ".env"]`.
"""

import ast
import contextlib
import csv
import functools
import hashlib
import inspect
import io
import random
import re
import sys
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers.utils import RunningMeanStd as GymRunningMeanStd
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_simple_ddpg.checkpoint.buffer import CheckpointError, decode, encode

Place = tuple[str, ...]

_MOST_OBJECTS = 20_000  # looked at: an environment that holds a whole database is looked at from the outside in
_MOST_PLACES = 16  # of one object that are told apart
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
_SEQUENCES = (list, tuple, deque)
#: Packages whose modules and classes hold no state of the user's.
_LIBRARIES = sys.stdlib_module_names | {"gymnasium", "numpy", "sb3_simple_ddpg", "stable_baselines3", "torch"}
#: What these hold beside the environment in them tells nothing about its next episode.
_BOOKKEEPING = (Monitor, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, RecordVideo)
_INWARDS = ("env", "venv", "envs")


# --- what is in an object ------------------------------------------------------------------------------------------


def _top_package(module: str) -> str:
    return module.partition(".")[0]


def _attributes(thing: object) -> dict[str, Any]:
    """Of the object, and those of its class that the user's code put there."""
    found: dict[str, Any] = {}
    for one_class in reversed(type(thing).__mro__):
        if _top_package(one_class.__module__) in _LIBRARIES:
            continue
        for name, value in vars(one_class).items():
            if isinstance(value, types.MemberDescriptorType):  # a slot
                if hasattr(thing, name):
                    found[name] = getattr(thing, name)
            elif not name.startswith("__") and not callable(value) and not hasattr(type(value), "__get__"):
                found[name] = value
    return {**found, **getattr(thing, "__dict__", {})}


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of any class
    """Each object in an object, by the step that leads to it; in an order that does not depend on how it came there."""
    if isinstance(thing, gym.Space):
        yield ".np_random", thing.np_random
        inner = {name: value for name, value in vars(thing).items() if isinstance(value, gym.Space | dict | tuple)}
        yield from ((f".{name}", inner[name]) for name in sorted(inner))
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", thing[key]) for key in sorted(thing, key=repr))
    elif isinstance(thing, _SEQUENCES):
        yield from ((f"[{index}]", value) for index, value in enumerate(thing))
    elif isinstance(thing, set | frozenset):
        yield from (("{}", value) for value in sorted(thing, key=repr))
    elif isinstance(thing, types.FunctionType):
        for index, cell in enumerate(thing.__closure__ or ()):
            if cell != types.CellType():  # one that is not filled yet
                yield f".__closure__[{index}]", cell.cell_contents
        yield ".__defaults__", thing.__defaults__
        yield ".__kwdefaults__", thing.__kwdefaults__
    elif isinstance(thing, types.MethodType | types.BuiltinMethodType):
        yield ".__self__", thing.__self__
    elif isinstance(thing, functools.partial):
        yield from ((f".{name}", getattr(thing, name)) for name in ("func", "args", "keywords"))
    elif isinstance(thing, types.GeneratorType):
        if thing.gi_frame is not None:
            yield ".gi_frame.f_lasti", thing.gi_frame.f_lasti
            yield ".gi_frame.f_locals", dict(thing.gi_frame.f_locals)
    elif isinstance(thing, Iterator) and type(thing).__module__ in ("builtins", "itertools"):
        with contextlib.suppress(TypeError):  # of those that newer versions of Python do not pickle
            yield ".__reduce__()", thing.__reduce__()[1:]  # what is left of it
    elif not (
        isinstance(thing, type | types.ModuleType | np.ndarray | th.Tensor)
        or _top_package(type(thing).__module__) in sys.stdlib_module_names | {"pandas"}
    ) or isinstance(thing, types.SimpleNamespace):
        attributes = _attributes(thing)
        yield from ((f".{name}", attributes[name]) for name in sorted(attributes))


class _Found(NamedTuple):
    """
    :param thing: an object
    :param places: how to get there, the shortest way first
    """

    thing: Any
    places: list[Place]


def _objects(root: object, parts: Callable[[Any], Iterator[tuple[str, Any]]] = _parts) -> list[_Found]:
    """
    :param root: where to begin
    :param parts: what is in an object
    :return: all objects in it, each once, nearest first
    """
    found = {id(root): _Found(root, [()])}  # holds them, so that no two have one id
    todo = deque([found[id(root)]])
    modules: dict[str, types.ModuleType] = {}

    def look_into(place: Place, inner: Iterable[tuple[str, Any]]) -> None:
        for step, value in inner:
            if isinstance(value, _PLAIN):
                continue
            if id(value) not in found:
                found[id(value)] = _Found(value, [])
                todo.append(found[id(value)])
            if len(found[id(value)].places) < _MOST_PLACES:
                found[id(value)].places.append((*place, step))

    while todo and len(found) < _MOST_OBJECTS:
        thing, (nearest, *_) = todo.popleft()
        if not isinstance(thing, _STREAMS):
            look_into(nearest, parts(thing))
        name = type(thing).__module__
        if name in sys.modules and _top_package(name) not in _LIBRARIES:
            modules[name] = sys.modules[name]
    for name in sorted(modules):
        held = {key: value for key, value in vars(modules[name]).items() if isinstance(value, _STREAMS)}
        look_into((), ((f"sys.modules[{name!r}].{key}", value) for key, value in held.items()))
    return list(found.values())


def _at(root: object, place: Place) -> Any:  # noqa: ANN401 - an object of any class
    """What is there; None where nothing is."""
    thing: Any = root
    try:
        for step in place:
            if step.startswith("sys.modules["):
                name, _, attribute = step.removeprefix("sys.modules[").rpartition("].")
                thing = vars(sys.modules[ast.literal_eval(name)])[attribute]
            else:
                thing = dict(_parts(thing))[step]
    except LookupError:
        return None
    return thing


# --- random streams, running statistics ----------------------------------------------------------------------------


def _state_of_bits(bits: np.random.BitGenerator) -> dict[str, Any]:
    sequence = getattr(bits, "seed_seq", None)  # how many streams were spawned from it is a state as well
    spawned = {**sequence.state} if type(sequence) is np.random.SeedSequence else None
    return {"bits": bits.state, "seed_sequence": spawned}


def _set_bits(bits: np.random.BitGenerator, state: dict[str, Any]) -> None:
    bits.state = state["bits"]
    if state["seed_sequence"] is not None:
        bits.__setstate__((state["bits"], np.random.SeedSequence(**state["seed_sequence"])))  # type: ignore[attr-defined]  # since NumPy 1.26


def _new_bits(algorithm: str) -> np.random.BitGenerator:
    bits: np.random.BitGenerator = getattr(np.random, algorithm)()
    return bits


class _Kind(NamedTuple):
    """How the state of a stream of one class is read and written, and how one is made where none is yet."""

    of: type | tuple[type, ...]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    make: Callable[[Any], Any] | None


_KINDS = {
    "Generator": _Kind(
        np.random.Generator,
        lambda stream: _state_of_bits(stream.bit_generator),
        lambda stream, state: _set_bits(stream.bit_generator, state),
        lambda state: np.random.Generator(_new_bits(state["bits"]["bit_generator"])),
    ),
    "RandomState": _Kind(
        np.random.RandomState,
        lambda stream: stream.get_state(legacy=False),
        lambda stream, state: stream.set_state(state),
        lambda state: np.random.RandomState(_new_bits(state["bit_generator"])),
    ),
    "BitGenerator": _Kind(
        np.random.BitGenerator, _state_of_bits, _set_bits, lambda state: _new_bits(state["bits"]["bit_generator"])
    ),
    "Random": _Kind(
        random.Random,
        lambda stream: stream.getstate(),
        lambda stream, state: stream.setstate((state[0], tuple(state[1]), state[2])),
        lambda _: random.Random(),
    ),
    "torch": _Kind(
        th.Generator,
        lambda stream: stream.get_state().numpy(),
        lambda stream, state: stream.set_state(th.from_numpy(state)),
        lambda _: th.Generator(),
    ),
    "moments": _Kind(
        (GymRunningMeanStd, RunningMeanStd),
        lambda moments: [moments.mean, moments.var, moments.count],
        lambda moments, state: vars(moments).update(mean=state[0], var=state[1], count=state[2]),
        None,
    ),
}
_STREAMS = tuple(kind.of for kind in _KINDS.values())


def _kind(stream: object) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(stream, kind.of))


def stored_streams(env: VecEnv) -> tuple[list[dict[str, Any]], list[str]]:
    """
    :param env: in this process; of environments in others nothing is found
    :return: a record of each random stream and running statistic in it, and the places of those that have no state
    """
    records, unknown = [], []
    for thing, places in _objects(env):
        if isinstance(thing, _STREAMS):
            kind = _kind(thing)
            try:
                state = _KINDS[kind].read(thing)
            except Exception:  # random.SystemRandom, and whatever a subclass does
                unknown.append(written(places[0]))
                continue
            records.append({"kind": kind, "state": state, "places": [list(place) for place in places]})
    return records, unknown


def restore_streams(env: VecEnv, records: list[dict[str, Any]]) -> list[str]:
    """
    :param env: built as the one whose records they are
    :param records: of `stored_streams`
    :return: the places of those that found no place here
    """
    lost = []
    for record in records:
        kind, state = _KINDS[record["kind"]], record["state"]
        found = {tuple(place): _at(env, tuple(place)) for place in record["places"]}
        streams = [each for each in found.values() if isinstance(each, kind.of) and _write(kind, each, state)]
        restored = bool(streams)
        if not restored and kind.make is not None:
            with contextlib.suppress(Exception):  # a bit generator that is not NumPy's
                streams = [each for each in [kind.make(state)] if _write(kind, each, state)]
        # What a reset with a seed made, before the first reset of this one.
        put = [_put(env, place, streams[0]) for place, each in found.items() if each is None] if streams else []
        if not (restored or any(put)):
            lost.append(written(next(iter(found))))
    return lost


def _write(kind: _Kind, stream: object, state: Any) -> bool:  # noqa: ANN401 - of any kind
    try:
        kind.write(stream, state)
    except Exception:  # a stream of the same class and of another algorithm
        return False
    return True


def _put(root: object, place: Place, value: object) -> bool:
    """An attribute or the entry of a dict."""
    *before, step = place
    parent = _at(root, tuple(before))
    try:
        if isinstance(parent, dict):
            parent[ast.literal_eval(step[1:-1])] = value
        elif step.startswith(".") and step[1:].isidentifier() and not isinstance(parent, gym.Space):
            setattr(parent, step[1:], value)
        else:
            return False
    except Exception:  # whatever the user's class does with that; or there is no parent
        return False
    return True


def written(place: Place) -> str:
    """
    :param place: of an object in a vectorised environment
    :return: as Python writes it, without the dot in front
    """
    return "".join(place).removeprefix(".")


# --- states that an environment gives out itself -------------------------------------------------------------------


def layers(env: VecEnv) -> list[tuple[Place, Any]]:
    """
    :param env: with all its wrappers
    :return: each vectorised wrapper, environment and wrapper of this process, the outermost first, with its place
    """
    found: list[tuple[Place, Any]] = []
    todo: deque[tuple[Place, Any]] = deque([((), env)])
    while todo:
        place, layer = todo.popleft()
        if any(layer is other for _, other in found):
            continue
        found.append((place, layer))
        for name in _INWARDS:
            inner = getattr(layer, "__dict__", {}).get(name)
            if isinstance(inner, list | tuple):
                todo.extend(((*place, f".{name}", f"[{index}]"), one) for index, one in enumerate(inner))
            elif inner is not None:
                todo.append(((*place, f".{name}"), inner))
    return found


def _offers_state(layer: object) -> bool:
    """Methods of its own, not of what it wraps, that take what they are given here."""
    for name, arguments in (("get_state", ()), ("set_state", (None,))):
        if inspect.getattr_static(layer, name, None) is None:
            return False
        try:
            inspect.signature(getattr(layer, name)).bind(*arguments)
        except (TypeError, ValueError):  # as MujocoEnv.set_state(qpos, qvel)
            return False
    return True


def _in_processes(env: VecEnv) -> list[int]:
    """The environments in processes of their own that offer their state."""
    if not isinstance(env.unwrapped, SubprocVecEnv) or "has_attr" not in vars(SubprocVecEnv):
        return []
    everywhere = all(env.unwrapped.has_attr(name) for name in ("get_state", "set_state"))
    return list(range(env.num_envs)) if everywhere else []


def given_states(env: VecEnv) -> list[dict[str, Any]]:
    """
    :param env: whose environments and wrappers may have the methods `get_state()` and `set_state(state)`
    :return: a record of what each gives, for `give_back_states`
    :raises CheckpointError: when one gives what is neither number, string, array, list, dict of strings nor None
    """
    records = [
        {"place": list(place), "state": _encodable(type(layer).__name__, place, layer.get_state())}
        for place, layer in layers(env)
        if _offers_state(layer)
    ]
    for index in _in_processes(env):
        state = env.unwrapped.env_method("get_state", indices=index)[0]
        records.append({"process": index, "state": _encodable("The environment", (f"[{index}]",), state)})
    return records


def _encodable(name: str, place: Place, state: Any) -> Any:  # noqa: ANN401 - whatever the user's method gives
    try:
        return encode(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}.get_state() of model.env{''.join(place)} must return numbers, strings, arrays, None, or lists and "
            f"dicts (with strings as keys) of these, got {state!r}: checkpoints hold no pickles."
        ) from error


def give_back_states(env: VecEnv, records: list[dict[str, Any]]) -> None:
    """
    :param env: built as the one whose records they are, and not reset yet
    :param records: of `given_states`
    :raises CheckpointError: when there is nobody to give one to
    """
    offering = {place: layer for place, layer in layers(env) if _offers_state(layer)}
    for record in records:
        state = decode(record["state"])
        if "process" in record:
            env.unwrapped.env_method("set_state", state, indices=record["process"])
            continue
        place = tuple(record["place"])
        if place not in offering:
            raise CheckpointError(
                f"The checkpoint holds what get_state() of model.env{''.join(place)} gave, and there is no set_state "
                "there: build `env` as for training."
            )
        offering[place].set_state(state)


# --- what else is in it --------------------------------------------------------------------------------------------

_READER = type(csv.reader(()))
_MOST_BYTES = 2**24  # of an array that are compared
_NAMED = 8
_INDEX = r"(\[[^\[\]]*\])+$"


def _compared(thing: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of any class
    """What may differ from one run to another, and matter to the next episode."""
    of_sb3 = isinstance(thing, VecEnv) and _top_package(type(thing).__module__) in _LIBRARIES
    for step, value in _parts(thing):
        if of_sb3 or isinstance(thing, _BOOKKEEPING):
            if step[1:] in _INWARDS:
                yield step, value
        elif step != "._np_random_seed":  # Gymnasium's, and -1 for a generator that was put there
            yield step, value


def _fingerprint(value: Any) -> str | None:  # noqa: ANN401 - of any class
    """Of what is compared as a whole; None for what is looked into, or cannot be."""
    if isinstance(value, _PLAIN):
        return _short(repr(value))
    if isinstance(value, _STREAMS):
        with contextlib.suppress(Exception):  # one without a state
            return _short(repr(encode(_KINDS[_kind(value)].read(value))))
        return None
    if isinstance(value, list | tuple | set | frozenset | dict | deque):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        if not all(isinstance(item, _PLAIN) for item in items):
            return None
        return _short(repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value))
    if isinstance(value, io.IOBase):
        with contextlib.suppress(Exception):  # it is closed, or nobody can tell
            return f"at {getattr(value, 'buffer', value).tell()}" if value.readable() and value.seekable() else None
    if isinstance(value, _READER):
        return f"line {value.line_num}"
    if isinstance(value, np.ndarray | th.Tensor) or type(value).__module__.startswith("jax"):
        with contextlib.suppress(Exception):  # a type that NumPy lacks
            array = np.asarray(value.detach().cpu() if isinstance(value, th.Tensor) else value)
            if array.dtype.hasobject:
                return _short(repr(array.tolist()))
            array = array[:: 1 + array.nbytes // _MOST_BYTES] if array.ndim else array
            content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return f"{array.dtype} {array.shape} {content[:16]}"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:16]


def contents(env: VecEnv, observations: Any) -> dict[str, str]:  # noqa: ANN401 - an array, or a dict of them
    """
    :param env: reset a moment ago; of environments in other processes the observations alone are seen
    :param observations: that it gave, of all environments
    :return: a fingerprint of each value in it, by its place
    """
    found: dict[str, str | None] = {}
    for key, values in observations.items() if isinstance(observations, dict) else [("", observations)]:
        name = f" of {key!r}" if key else ""
        found |= {f"the first observation{name} of environment {i}": _fingerprint(one) for i, one in enumerate(values)}
    for thing, places in _objects(env, _compared):
        if _fingerprint(thing) is None:
            found |= {written((*places[0], step)): _fingerprint(value) for step, value in _compared(thing)}
    return {place: value for place, value in found.items() if value is not None}


def differences(now: dict[str, str], expected: dict[str, str]) -> str:
    """
    :param now: contents of one environment
    :param expected: of another
    :return: the places where they differ, in words; "" for none
    """
    differing = [place for place in {**expected, **now} if now.get(place) != expected.get(place)]
    lists = Counter(re.sub(_INDEX, "", place) for place in differing)
    # Several entries of one list are one thing to the reader.
    shorter = (re.sub(_INDEX, "", place) for place in differing)
    places = list(dict.fromkeys(s if lists[s] > 1 else place for s, place in zip(shorter, differing, strict=True)))
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ", ".join(places[:_NAMED]) + more
