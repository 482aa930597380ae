"""Checkpoints that a run can be resumed from exactly: after `resume`, training goes on as if it had never stopped.

Not here: `save` and `load`, which are SB3's and keep neither buffer nor random streams. Method and limits:
docs/resume.md.

A checkpoint is a folder `step_<n>`: `model.zip` (what SB3's `save` writes: networks, optimizers, settings, counters,
episode statistics, noise), `replay_buffer.npz` (the filled rows, no pickle), `state.json` (random states, normalisers,
what environments give out of themselves) and, written last, `manifest.json` with a checksum of each. After the reset
that follows, `environment.json` says what the environments then hold, for `resume` to name what it could not restore.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_simple_ddpg.checkpoint import environment_state, folder_lock
from sb3_simple_ddpg.checkpoint.buffer import (
    CheckpointError,
    check_buffer,
    cut_episodes,
    decode,
    encode,
    read_buffer,
    write_buffer,
)

if TYPE_CHECKING:
    from sb3_simple_ddpg.sb3.agent import Agent

Model = TypeVar("Model", bound="Agent")

MODEL, BUFFER, STATE, MANIFEST = "model.zip", "replay_buffer.npz", "state.json", "manifest.json"
#: What the environments held after the reset that followed. Nothing is restored from it, so it may be missing.
AFTERWARDS = "environment.json"
#: Raised when a stored checkpoint would be read wrongly by older code. 2: streams by their places, given states.
FORMAT = 2


class ExactCheckpointCallback(BaseCallback):
    """
    Save a checkpoint every so many timesteps, between two rollouts. With a full disk training goes on.

    :param folder: of this run alone, made if need be
    :param every: timesteps, of all environments together, between two checkpoints
    :param keep_last: number of newest checkpoints to keep
    :param verbose: 1: log each checkpoint
    :raises ValueError: for fewer than one timestep or checkpoint; when learning starts, for a folder that another
        process or model writes to, or with checkpoints of a later timestep
    """

    def __init__(self, folder: str | Path, every: int, keep_last: int = 3, verbose: int = 0) -> None:
        super().__init__(verbose)
        _check_at_least_one("every", every)
        _check_at_least_one("keep_last", keep_last)
        self.folder, self.every, self.keep_last = Path(folder), every, keep_last

    def _on_training_start(self) -> None:
        with contextlib.suppress(OSError):  # training goes on where no checkpoint can be written
            folder_lock.claim(self.folder, self.model, learning=True)
        _refuse_later_checkpoints(self.folder, self.model.num_timesteps)
        self._last = self.model.num_timesteps
        self.logger.info(
            "Checkpoints hold no inside of an environment in mid-episode: every episode starts anew at each of them. "
            "What it holds beyond an episode (a counter over episodes, a curriculum) is in them where it offers "
            "get_state() and set_state(state); a resumed run names what differs."
        )

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps // self.every > self._last // self.every:
            self._last = self.model.num_timesteps
            self._save()

    def _on_training_end(self) -> None:
        self._on_rollout_start()  # the last rollout may have ended at a multiple of `every`

    def _on_step(self) -> bool:
        return True

    def _save(self) -> None:
        try:
            path = save_checkpoint(self.model, self.folder, self.keep_last)  # type: ignore[arg-type]  # a SimpleDDPG
        except OSError as error:
            newest = next(iter(_checkpoints(self.folder)), None)
            self.logger.warn(
                f"No checkpoint could be written at timestep {self.model.num_timesteps} ({error}); training goes on, "
                f"the newest checkpoint is {newest or 'still to come'}."
            )
            return
        if self.verbose:
            self.logger.info(f"Saved {path}.")


def save_checkpoint(model: "Agent", folder: str | Path, keep_last: int = 3) -> Path:
    """
    Write `folder/step_<n>`, n the number of timesteps, and remove all but the newest checkpoints.

    Every environment starts a new episode afterwards, since the inside of an environment cannot be stored; the last
    stored transition of each is marked as cut off (truncated).

    :param model: between two rollouts: at `on_rollout_start` of a callback, or outside `learn`
    :param folder: of this run alone, made if need be
    :param keep_last: number of newest checkpoints to keep
    :return: the checkpoint
    :raises ValueError: in the middle of a rollout; for fewer than one checkpoint to keep; for a replay buffer that
        holds more than is known how to store; for a folder that another process or model writes to, or with checkpoints
        of a later timestep
    :raises OSError: when it cannot be written; what lay in the folder is still there
    """
    folder = Path(folder)
    _check_at_least_one("keep_last", keep_last)
    if model._boundary not in (None, model.num_timesteps):
        raise ValueError(
            f"A checkpoint at timestep {model.num_timesteps} would lie in the middle of a rollout, whose last "
            "transition is not stored yet: save at on_rollout_start (ExactCheckpointCallback does) or after learn."
        )
    if model._boundary is None:
        model._store_step(model.replay_buffer, model.action_noise)  # of a copy that was made in a callback
    check_buffer(model.replay_buffer)
    is_new = folder_lock.claim(folder, model)
    try:
        _refuse_later_checkpoints(folder, model.num_timesteps)
    except CheckpointError:
        if is_new:
            folder_lock.let_go(model, folder)
        raise
    assert model.replay_buffer is not None
    cut_episodes(model.replay_buffer)
    if model.action_noise is not None:
        model.action_noise.reset()
    model._saved = None
    try:
        model._saved = path = _write(model, folder, keep_last)
    finally:
        if model._boundary is None or model.env is None:
            model._last_obs = None  # the next call of learn resets
        else:
            model._start_episodes()
            look_at_environments(model)
    return path


def resume(cls: type[Model], folder: str | Path, env: GymEnv | str, device: th.device | str | None = None) -> Model:
    """
    The model of the newest complete checkpoint, to go on with `learn(n, reset_num_timesteps=False)`.

    :param cls: class of the model
    :param folder: that `save_checkpoint` wrote to, or one checkpoint in it
    :param env: built as for training; neither stepped nor reset here. Stored statistics go into its VecNormalize,
        stored random states into the environments and the global generators of Python, NumPy and PyTorch, and what
        `get_state()` of an environment gave goes to its `set_state`. The next `learn` logs what else differs
    :param device: None: the one of the stored model, where there is one
    :return: the model
    :raises ValueError: when there is no complete checkpoint, or the environment is not as for training
    """
    checkpoint = newest_checkpoint(folder)
    state = decode(json.loads((checkpoint / STATE).read_text("utf-8")))
    vec_env = cls._wrap_env(gym.make(env) if isinstance(env, str) else env)
    if vec_env.num_envs != state["n_envs"]:
        raise ValueError(
            f"{checkpoint} was written with {state['n_envs']} environments, got {vec_env.num_envs}: build `env` as for "
            "training. (With another number, SimpleDDPG.load(checkpoint / 'model.zip', env) goes on, not exactly.)"
        )
    if device is None:
        device = "auto" if state["device"].startswith("cuda") and not th.cuda.is_available() else state["device"]
    normalizers = _wrappers(vec_env, VecNormalize)
    if len(normalizers) != len(state["normalizers"]):
        raise ValueError(
            f"{checkpoint} holds {len(state['normalizers'])} VecNormalize, the environment has {len(normalizers)}: "
            "build `env` as for training."
        )
    model: Model = cls.load(checkpoint / MODEL, env=vec_env, device=device)
    assert model.replay_buffer is not None
    assert model.env is not None
    read_buffer(model.replay_buffer, checkpoint / BUFFER)
    for normalizer, statistics in zip(normalizers, state["normalizers"], strict=True):
        _set_statistics(normalizer, statistics)
    for monitor, count in zip(_wrappers(model.env, VecMonitor), state["episode_counts"], strict=False):
        monitor.episode_count = count
    model.action_space = model.env.action_space  # one object, as after the constructor: it holds a random stream
    environment_state.give_back_states(model.env, state.get("given", []))
    lost = _set_random_states(model, state["random"])
    expected = None
    with contextlib.suppress(OSError, ValueError):  # the process ended before that reset
        expected = json.loads((checkpoint / AFTERWARDS).read_text("utf-8"))
    model._resumed = Resumed(lost, expected)
    folder_lock.may_follow(checkpoint.parent, model)
    return model


class Resumed(NamedTuple):
    """
    What the first `learn` after `resume` has to say.

    :param lost: places of random streams that found none
    :param expected: what the environments held after the reset that followed the checkpoint; None: nobody knows
    """

    lost: list[str]
    expected: dict[str, str] | None


def look_at_environments(model: "Agent") -> None:
    """
    :param model: whose environments have been reset for the first time after `resume` or `save_checkpoint`: what
        was not restored is named in the log; or they are what a later `resume` is compared with
    """
    assert model.env is not None
    resumed, checkpoint = model._resumed, model._saved
    model._resumed = model._saved = None
    if resumed is not None:
        sentence = "A resumed run may differ from the uninterrupted one: "
        if resumed.lost:
            model.logger.warn(f"{sentence}there is no place for the random streams {', '.join(resumed.lost)}.")
        now = environment_state.contents(model.env, model._last_obs) if resumed.expected else {}
        if found := environment_state.differences(now, resumed.expected or {}):
            model.logger.warn(
                f"{sentence}after the first reset the environments differ from those of the stopped run in {found} "
                "(places in model.env). Where the next episodes depend on that, give the environment the methods "
                "get_state() and set_state(state), which checkpoints use: docs/resume.md."
            )
    if checkpoint is not None:
        # The disk is full, or the checkpoint has been removed: it is complete without.
        with contextlib.suppress(OSError):
            text = json.dumps(environment_state.contents(model.env, model._last_obs))
            (checkpoint / f".{AFTERWARDS}").write_text(text, "utf-8")
            os.replace(checkpoint / f".{AFTERWARDS}", checkpoint / AFTERWARDS)


def newest_checkpoint(folder: str | Path) -> Path:
    """
    :param folder: that `save_checkpoint` wrote to, or one checkpoint in it
    :return: the newest checkpoint whose files are all there and unchanged; a warning names each that is passed over
    :raises CheckpointError: when there is none
    """
    folder = Path(folder)
    found = [folder] if (folder / MANIFEST).exists() else _checkpoints(folder)
    problems: list[str] = []
    for path in found:
        problem = _problem(path)
        if problem is None:
            for damaged in problems:
                warnings.warn(f"{damaged}: {path} is used instead.", RuntimeWarning, stacklevel=3)
            return path
        problems.append(f"The checkpoint {path} is damaged ({problem})")
    raise CheckpointError(
        "; ".join(problems) + "." if problems else f"{folder} holds no checkpoint: name the folder that was saved to."
    )


# --- folders -------------------------------------------------------------------------------------------------------


def _write(model: "Agent", folder: Path, keep_last: int) -> Path:
    """
    Atomic: a folder of another name, every file on the disk, then one rename. Nothing old goes before that.

    Killed between the two renames that replace a checkpoint of the same timestep, `.writing_step_<n>` is complete, and
    counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clean_up(folder)
    path = folder / f"step_{model.num_timesteps}"
    writing = folder / f".writing_{path.name}"
    try:
        writing.mkdir()
        zipped = io.BytesIO()
        model.save(zipped)
        (writing / MODEL).write_bytes(zipped.getbuffer())
        assert model.replay_buffer is not None
        write_buffer(model.replay_buffer, writing / BUFFER)
        (writing / STATE).write_text(json.dumps(encode(_state(model))), "utf-8")
        files = {}
        for name in (MODEL, BUFFER, STATE):
            files[name] = _checksum(writing / name)
            _to_disk(writing / name)
        manifest = {"format": FORMAT, "num_timesteps": model.num_timesteps, "sha256": files}
        (writing / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        _to_disk(writing / MANIFEST)
        _to_disk(writing)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)  # on a full disk it would take the space that is missing
        raise
    if path.exists():
        os.replace(path, folder / f".removing_{path.name}")
    os.replace(writing, path)
    _to_disk(folder)
    for old in _checkpoints(folder)[keep_last:]:
        os.replace(old, folder / f".removing_{old.name}")  # half removed it would look damaged
    _clean_up(folder)
    return path


def _clean_up(folder: Path) -> None:
    """What a killed process has left behind."""
    for path in folder.glob(".removing_step_*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".writing_step_*"):
        final = folder / path.name.removeprefix(".writing_")
        if not final.exists() and _problem(path) is None:
            os.replace(path, final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first, damaged ones too."""
    found = {}
    for path in folder.glob("*step_*"):
        match = re.fullmatch(r"(\.writing_)?step_(\d+)", path.name)
        if match and path.is_dir() and (match[1] is None or _problem(path) is None):
            found[path] = int(match[2]), match[1] is not None
    return sorted(found, key=found.__getitem__, reverse=True)


def _refuse_later_checkpoints(folder: Path, num_timesteps: int) -> None:
    for path in _checkpoints(folder):
        if int(path.name.rpartition("_")[2]) > num_timesteps and _problem(path) is None:
            raise CheckpointError(
                f"{folder} holds {path.name} of another run, and this one is at timestep {num_timesteps}: name another "
                "folder, or go on with SimpleDDPG.resume(folder, env) and learn(n, reset_num_timesteps=False)."
            )


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] > FORMAT:
            return "written by a newer version of sb3-simple-ddpg"
        for name, checksum in manifest["sha256"].items():
            if _checksum(path / name) != checksum:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """A file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does that by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- random states, normalisers ------------------------------------------------------------------------------------


def _state(model: "Agent") -> dict[str, Any]:
    assert model.env is not None
    return {
        "n_envs": model.n_envs,
        "device": str(model.device),
        "normalizers": [_statistics(normalizer) for normalizer in _wrappers(model.env, VecNormalize)],
        "episode_counts": [monitor.episode_count for monitor in _wrappers(model.env, VecMonitor)],
        "given": environment_state.given_states(model.env),
        "random": _random_states(model),
    }


Wrapper = TypeVar("Wrapper", bound=VecEnvWrapper)


def _wrappers(env: VecEnv, wrapper_class: type[Wrapper]) -> list[Wrapper]:
    return [layer for layer in _layers(env) if isinstance(layer, wrapper_class)]


def _statistics(normalizer: VecNormalize) -> dict[str, Any]:
    statistics = {"returns": normalizer.ret_rms}
    if normalizer.norm_obs:
        observations: Any = normalizer.obs_rms
        parts = observations if isinstance(observations, dict) else {"": observations}
        statistics |= {f"observations:{key}": value for key, value in parts.items()}
    return {key: [value.mean, value.var, value.count] for key, value in statistics.items()}


def _set_statistics(normalizer: VecNormalize, stored: dict[str, Any]) -> None:
    if stored.keys() != _statistics(normalizer).keys():
        raise ValueError(
            f"The stored VecNormalize has statistics of {', '.join(stored)}, the environment's of "
            f"{', '.join(_statistics(normalizer))}: build `env` as for training."
        )
    observations: Any = normalizer.obs_rms if normalizer.norm_obs else {}
    for key, values in stored.items():
        name = key.removeprefix("observations:")
        target = normalizer.ret_rms if key == "returns" else observations[name] if name else observations
        target.mean, target.var, target.count = values


def _random_states(model: "Agent") -> dict[str, Any]:
    assert model.env is not None
    environments = [_np_random_state(model.env, index) for index in range(model.env.num_envs)]
    unknown = [str(index) for index, state in enumerate(environments) if state is None]
    missing = "is not in the checkpoint, since it {}: a resumed run will not equal the uninterrupted one there."
    if unknown:
        names = ", ".join(unknown)
        _say_once(model, f"The random state of environment {names} {missing.format('has no np_random of Gymnasium')}")
    streams, stateless = environment_state.stored_streams(model.env)
    if stateless:
        _say_once(model, f"The random state of {', '.join(stateless)} {missing.format('cannot be read')}")
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in th.cuda.get_rng_state_all()] if model.device.type == "cuda" else [],
        "action_space": model.action_space.np_random.bit_generator.state,
        "environments": environments,
        "streams": streams,
        "seeds": [vars(layer).get("_seeds") for layer in _layers(model.env)],  # given, for the next reset
    }


def _set_random_states(model: "Agent", states: dict[str, Any]) -> list[str]:
    """The places of the streams that were not restored."""
    assert model.env is not None
    for index, state in enumerate(states["environments"]):
        if state is not None:
            _set_np_random(model.env, index, state)
    layers, lost = _layers(model.env), []
    if "generators" in states:  # format 1
        for name, generator in _generators_of_format_1(model.env).items():
            generator.bit_generator.state = states["generators"].get(name, generator.bit_generator.state)
        layers[-1]._seeds = states["seeds"]
    else:
        lost = environment_state.restore_streams(model.env, states["streams"])
        for layer, seeds in zip(layers, states["seeds"], strict=False):
            if seeds is not None:
                layer._seeds = seeds
    model.action_space.np_random.bit_generator.state = states["action_space"]
    if states["cuda"] and model.device.type == "cuda":
        th.cuda.set_rng_state_all([th.from_numpy(state) for state in states["cuda"]])
    th.set_rng_state(th.from_numpy(states["torch"]))
    np.random.set_state(tuple(states["numpy"]))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    return lost


def _layers(env: VecEnv) -> list[VecEnv]:
    """The vectorised environment and all in it, the outermost first; some wrappers hold what is not one of SB3's."""
    return [layer for _, layer in environment_state.layers(env) if isinstance(layer, VecEnv)]


def _set_np_random(env: VecEnv, index: int, state: dict[str, Any]) -> None:
    """In the generator that is there, which may have another name too, where it is in this process."""
    with contextlib.suppress(Exception):  # another algorithm, or no generator yet
        env.get_attr("np_random", indices=index)[0].bit_generator.state = state
    if _np_random_state(env, index) != state:
        generator = np.random.Generator(getattr(np.random, state["bit_generator"])())
        generator.bit_generator.state = state
        env.set_attr("np_random", generator, indices=index)


def _np_random_state(env: VecEnv, index: int) -> Any:  # noqa: ANN401 - whatever NumPy calls a state
    """None where there is none; VecEnvs of other makers raise or return what they like."""
    with contextlib.suppress(Exception):
        generator = env.get_attr("np_random", indices=index)[0]
        return generator.bit_generator.state if isinstance(generator, np.random.Generator) else None
    return None


def _generators_of_format_1(env: VecEnv) -> dict[str, np.random.Generator]:
    """What was stored of the environments of this process beside `np_random`: spaces, and generators as attributes."""
    envs: list[Any] = env.unwrapped.envs if isinstance(env.unwrapped, DummyVecEnv) else []
    found: dict[str, np.random.Generator] = {}
    for index, layer in enumerate(envs):
        depth = 0
        while layer is not None:
            for name, value in getattr(layer, "__dict__", {}).items():
                place = f"{index}.{depth}.{name}"
                if isinstance(value, np.random.Generator):
                    found[place] = value
                elif isinstance(value, gym.Space):
                    found |= {f"{place}.{i}": leaf.np_random for i, leaf in enumerate(_leaves(value))}
            layer, depth = layer.__dict__.get("env"), depth + 1  # a wrapper's inner environment
    return found


def _leaves(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    parts = getattr(space, "spaces", None)
    if parts is None:
        return [space]
    return [leaf for part in (parts.values() if isinstance(parts, dict) else parts) for leaf in _leaves(part)]


def _say_once(model: "Agent", sentence: str) -> None:
    if sentence not in model._said:
        model._said |= {sentence}
        model.logger.warn(sentence)


def _check_at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
