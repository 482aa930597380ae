"""A run on disk: the folder that `simple-ddpg train` writes, how its environment is built, how it is read again.

Not here: the command line (`command_line/cli.py`) and the figures (`plotting.py`).
"""

import ast
import importlib
import inspect
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_simple_ddpg.export.files import load_policy
from sb3_simple_ddpg.export.policy_file import LoadedPolicy
from sb3_simple_ddpg.safety.checks import did_you_mean
from sb3_simple_ddpg.safety.mistakes import settings_refused
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

MODEL, CONFIG, MONITOR, PROGRESS = "model.zip", "config.json", "monitor.csv", "progress.csv"
PICTURE, NORMALIZER = "returns.png", "vecnormalize.pkl"
CHECKPOINTS, ERROR, DIAGNOSIS = "checkpoints", "error.txt", "diagnosis.json"
EVALUATION = "evaluation.json"
POLICY = "policy.safetensors"  # in the place of a model, where a run is kept for playing alone
FILES = (MODEL, CONFIG, MONITOR, PROGRESS, PICTURE, NORMALIZER, ERROR, DIAGNOSIS, EVALUATION, POLICY)
SAMPLE = 5_000  # timesteps that a diagnosis plays, at most
LONGEST_EPISODE = 100_000  # that an evaluation waits for


@dataclass(frozen=True)
class EnvSettings:
    """
    Everything that is needed to build an environment again.

    :param env_id: name of a registered environment
    :param wrappers: import paths of wrappers, the innermost first
    :param n_envs: number of environments
    :param subproc: each environment in a process of its own
    :param normalize: observations and rewards go through VecNormalize
    :param normalize_observations: observations alone do
    :param kwargs: of the environment's constructor, or of `gymnasium.make`, such as max_episode_steps
    """

    env_id: str
    wrappers: tuple[str, ...] = ()
    n_envs: int = 1
    subproc: bool = False
    normalize: bool = False
    normalize_observations: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make_one(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """
        :param render_mode: "rgb_array" for frames, None for none
        :return: one environment with its wrappers
        :raises ValueError: for an unknown environment, argument or wrapper, or one that cannot be drawn
        """
        if "render_mode" in self.kwargs or "id" in self.kwargs:
            raise ValueError("--env-kwargs takes neither id nor render_mode: use --env, and --video for a film.")
        try:
            env = gym.make(self.env_id, **self.kwargs)
            if render_mode is not None:
                env.close()
                if render_mode not in (env.metadata.get("render_modes") or ()):
                    raise ValueError(f"The environment {self.env_id!r} cannot be drawn: it has no {render_mode!r}.")
                env = gym.make(self.env_id, render_mode=render_mode, **self.kwargs)
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"The environment {self.env_id!r} cannot be made: {error}") from error
        except TypeError as error:
            known = _arguments_of(self.env_id)
            wrong = _UNEXPECTED.search(str(error))
            if wrong is not None and wrong[1] in self.kwargs:
                cure = did_you_mean(wrong[1], [*(name for name in known if name != "render_mode"), "max_episode_steps"])
                raise ValueError(f"The environment {self.env_id!r} has no argument {wrong[1]!r}: {cure}") from error
            empty = inspect.Parameter.empty
            missing = [name for name, default in known.items() if default is empty and name not in self.kwargs]
            if not missing:
                raise
            options = " ".join(f"{name}=VALUE" for name in missing)
            raise ValueError(f"The environment {self.env_id!r} needs --env-kwargs {options}: {error}") from error
        for path in self.wrappers:
            env = _wrapped(env, path)
        return env

    def make(self, n_envs: int | None = None, render_mode: str | None = None) -> VecMonitor:
        """
        :param n_envs: another number of environments than the stored one
        :param render_mode: "rgb_array" for frames, None for none
        :return: the environments, monitored; without VecNormalize, which belongs around them
        :raises ValueError: for an unknown environment or wrapper
        """
        makers = [partial(self.make_one, render_mode)] * (n_envs or self.n_envs)
        if self.subproc and n_envs is None:
            self.make_one().close()  # an error here has a readable traceback; one in a subprocess has not
            vec_env: VecEnv = SubprocVecEnv([_ignore_ctrl_c(maker) for maker in makers])
        else:
            vec_env = DummyVecEnv(list(makers))
        return VecMonitor(vec_env)

    def normalized(self, env: VecEnv, gamma: float) -> VecEnv:
        """
        :param env: the environments
        :param gamma: discount factor, by which VecNormalize judges the size of rewards
        :return: the environments as the settings ask for them, in VecNormalize or as they are
        """
        if not (self.normalize or self.normalize_observations):
            return env
        return VecNormalize(env, norm_reward=self.normalize, gamma=gamma)

    def random_return(self, seed: int, episodes: int = 20, max_steps: int = 5_000) -> float | None:
        """
        :param seed: of the environment and of the actions
        :param episodes: number of episodes to play
        :param max_steps: stop here, however many episodes are over
        :return: mean return of uniformly random actions, None when no episode ended
        """
        env = self.make_one()
        env.action_space.seed(seed)
        env.reset(seed=seed)
        returns, so_far = [], 0.0
        for _ in range(max_steps):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            so_far += float(reward)
            if terminated or truncated:
                returns.append(so_far)
                if len(returns) == episodes:
                    break
                so_far = 0.0
                env.reset()
        env.close()
        return float(np.mean(returns)) if returns else None


def _wrapped(env: gym.Env[Any, Any], path: str) -> gym.Env[Any, Any]:
    wrapper = import_object(path)
    try:
        inspect.signature(wrapper).bind(env)
    except TypeError as error:
        raise ValueError(
            f"--wrapper {path} cannot be called with the environment alone ({error}): write a class of your own that "
            "gives it the rest."
        ) from error
    wrapped = wrapper(env)
    if not isinstance(wrapped, gym.Env):
        raise TypeError(f"--wrapper {path} makes no environment of Gymnasium's, but {type(wrapped).__name__}.")
    return wrapped


#: What Python says of an argument that a function does not have.
_UNEXPECTED: Final = re.compile(r"unexpected keyword argument '(\w+)'")


def _arguments_of(env_id: str) -> dict[str, Any]:
    """Arguments that the constructor of a registered environment has, with their defaults."""
    spec = gym.spec(env_id.partition(":")[2] or env_id)
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    return {name: spec.kwargs.get(name, default) for name, default in arguments_of(creator).items()}


def arguments_of(creator: Callable[..., Any]) -> dict[str, Any]:
    """
    :param creator: a class, or a function
    :return: every argument that can be given by its name, with its default; `inspect.Parameter.empty` where there is
        none
    """
    found: dict[str, Any] = {}
    # The constructor of a subclass may pass **kwargs on.
    classes = creator.__mro__ if isinstance(creator, type) else [None]
    for cls in classes:
        function = creator if cls is None else vars(cls).get("__init__", object.__init__)
        parameters = inspect.signature(function).parameters.values()
        found |= {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in found
        }
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {name: default for name, default in found.items() if name != "self"}


def policy_for(observation_space: spaces.Space[Any]) -> str:
    """
    :param observation_space: of the environment
    :return: name of the policy that takes it
    """
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def write_config(folder: Path, env: EnvSettings, arguments: dict[str, Any], **others: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """
    Write every setting, seed and version to `config.json`.

    :param folder: of the run
    :param env: how the environment is built
    :param arguments: given to the constructor; its defaults are filled in
    :param others: more entries
    """
    known = arguments_of(SimpleDDPG).items()
    defaults = {name: default for name, default in known if default is not inspect.Parameter.empty and name[0] != "_"}
    packages = ("sb3-simple-ddpg", "stable-baselines3", "torch", "gymnasium", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    # As text, since JSON would make lists of tuples.
    settings = {**asdict(env), "kwargs": {name: repr(value) for name, value in env.kwargs.items()}}
    config = {"env": settings, **others, "arguments": {**defaults, **arguments}, "versions": versions}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, default=describe) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """
    :param folder: of a run
    :return: what `write_config` wrote, with `env` as EnvSettings
    :raises ValueError: when the folder holds no readable config.json
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        settings = config["env"]
        kwargs = {name: read_value(text) for name, text in settings.pop("kwargs", {}).items()}
        config["env"] = EnvSettings(**{**settings, "wrappers": tuple(settings["wrappers"]), "kwargs": kwargs})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no readable {CONFIG} ({error}): pass the folder that `simple-ddpg train` wrote."
        ) from error
    return config


def _with_kwargs(settings: EnvSettings, env_kwargs: Mapping[str, Any] | None) -> EnvSettings:
    return replace(settings, kwargs={**settings.kwargs, **(env_kwargs or {})})


def load_run(
    folder: Path,
    n_envs: int = 1,
    seed: int | None = None,
    render_mode: str | None = None,
    buffer_size: int = 1,
    env_kwargs: Mapping[str, Any] | None = None,
) -> SimpleDDPG:
    """
    :param folder: of a run
    :param n_envs: number of environments
    :param seed: of the environments; None: unseeded
    :param render_mode: "rgb_array" for frames, None for none
    :param buffer_size: of the replay buffer, which is empty
    :param env_kwargs: arguments of the environment, beside or in place of those of the run
    :return: the stored model, on the CPU, with its environments, which are wrapped as in training; the statistics of
        VecNormalize stay as they are
    :raises ValueError: when the folder holds no run
    """
    config = read_config(folder)
    if not (folder / MODEL).exists():
        if (folder / POLICY).exists():
            raise ValueError(f"{folder} holds {POLICY} and no {MODEL}: `simple-ddpg evaluate` takes it, nothing else.")
        raise ValueError(f"{folder} holds no {MODEL}: the run was stopped before it could save one.")
    settings = _with_kwargs(config["env"], env_kwargs)
    env: VecEnv = settings.make(n_envs, render_mode)
    if settings.normalize or settings.normalize_observations:
        normalizer = VecNormalize.load(str(folder / NORMALIZER), env)
        normalizer.training = False
        env = normalizer
    env.seed(seed)
    with settings_refused({}):
        return SimpleDDPG.load(folder / MODEL, env=env, device="cpu", seed=seed, buffer_size=buffer_size)


def load_player(
    folder: Path,
    n_envs: int = 1,
    seed: int | None = None,
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> tuple[SimpleDDPG | LoadedPolicy, VecEnv]:
    """
    As `load_run`, to play with: a folder without a model may hold its policy, as `simple-ddpg export` writes it.

    :param folder: of a run
    :param n_envs: number of environments
    :param seed: of the environments; None: unseeded
    :param render_mode: "rgb_array" for frames, None for none
    :param env_kwargs: arguments of the environment, beside or in place of those of the run
    :return: the stored model, and the environments whose observations it takes
    :raises ValueError: when the folder holds neither, or a policy that is damaged
    """
    if (folder / MODEL).exists() or not (folder / POLICY).exists():
        model = load_run(folder, n_envs, seed, render_mode, env_kwargs=env_kwargs)
        env = model.get_env()
        assert env is not None
        return model, env
    policy = load_policy(folder / POLICY)
    # VecNormalize is in the policy: it takes what the environment gives.
    raw = _with_kwargs(read_config(folder)["env"], env_kwargs).make(n_envs, render_mode)
    raw.seed(seed)
    return policy, raw


class Returns(list[float]):
    """The return of each episode of an evaluation, and the share of those that succeeded."""

    #: Of the episodes whose last info had `is_success`; None where none had.
    success_rate: float | None = None


def evaluate_run(folder: Path, episodes: int, seed: int, env_kwargs: Mapping[str, Any] | None = None) -> Returns:
    """
    Play deterministic episodes with the stored model, as raw returns: VecNormalize does not touch them.

    :param folder: of a run
    :param episodes: number of episodes
    :param seed: of the environments
    :param env_kwargs: arguments of the environment, beside or in place of those of the run
    :return: the return of each episode
    :raises ValueError: when the folder holds nothing to play with, for fewer episodes than one, or when none ends
    """
    if episodes < 1:
        raise ValueError(f"The number of evaluation episodes must be at least 1, got {episodes}.")
    model, env = load_player(folder, min(10, episodes), seed, env_kwargs=env_kwargs)

    def be_patient(of_evaluation: dict[str, Any], _: dict[str, Any]) -> None:
        if of_evaluation["current_lengths"].max() >= LONGEST_EPISODE:
            raise ValueError(
                f"No episode has ended for {LONGEST_EPISODE} timesteps: evaluate with a time limit, "
                "--env-kwargs max_episode_steps=1000 for example, or not at all, --eval-episodes 0."
            )

    try:
        return play(model, env, episodes, be_patient)
    finally:
        env.close()


def play(
    model: PolicyPredictor,
    env: VecEnv,
    episodes: int,
    at_each_step: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> Returns:
    """
    Play deterministic episodes.

    :param model: that plays
    :param env: where
    :param episodes: number of episodes
    :param at_each_step: called with the local and global variables of SB3's `evaluate_policy`
    :return: the return of each episode
    """
    successes: list[float] = []

    def note(of_evaluation: dict[str, Any], others: dict[str, Any]) -> None:
        if of_evaluation["done"] and (success := of_evaluation["info"].get("is_success")) is not None:
            successes.append(float(success))  # as SB3's EvalCallback does
        if at_each_step is not None:
            at_each_step(of_evaluation, others)

    found, _ = evaluate_policy(model, env, n_eval_episodes=episodes, return_episode_rewards=True, callback=note)
    assert isinstance(found, list)
    returns = Returns(map(float, found))
    returns.success_rate = float(np.mean(successes)) if successes else None
    return returns


def digits_of(returns: Iterable[float]) -> int:
    """
    :param returns: of one task
    :return: how many digits after the decimal point can be read: enough for the largest, and for how much they differ
    """
    numbers = [float(value) for value in returns if math.isfinite(value)]
    size = max(map(abs, numbers), default=0.0)
    if size == 0:
        return 1
    digits = 1 if size >= 10 else max(3, 2 - math.floor(math.log10(size)))
    spread = float(np.std(numbers))
    if spread > 1e-6 * size:  # below it lies what float32 rounds away
        digits = max(digits, 1 - math.floor(math.log10(spread)))
    return digits


def fill_buffer(model: SimpleDDPG, timesteps: int, episodes: int, random: bool = False) -> None:
    """
    Play, for `model.diagnose()` to have something to look at. Nothing is learned, and no setting is another afterwards.

    :param model: with an environment of its own and an empty replay buffer
    :param timesteps: at most
    :param episodes: whole ones at most, of each environment
    :param random: uniformly random actions; otherwise the actor's own, without noise
    """
    names = ("learning_starts", "gradient_steps", "action_noise", "num_timesteps", "_episode_num", "_n_updates")
    kept = {name: getattr(model, name) for name in names}
    model.learning_starts, model.gradient_steps, model.action_noise = timesteps if random else 0, 0, None
    model.learn(timesteps, StopTrainingOnMaxEpisodes(episodes + 1), log_interval=sys.maxsize)
    for name, value in kept.items():
        setattr(model, name, value)


def logged_last(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """
    :param folder: of a run
    :param names: of logged numbers, such as `train/q_mean`
    :return: the last value of each that `progress.csv` holds
    """
    try:
        logged = pd.read_csv(folder / PROGRESS)
    except (OSError, ValueError):  # none was written, or nothing is in it
        return {}
    return {
        name: float(values.iloc[-1]) for name in names if name in logged and len(values := logged[name].dropna()) > 0
    }


def keep_until(folder: Path, episodes: int, timesteps: int) -> None:
    """
    Take out of the logs of a run what came after a checkpoint, since that will happen again.

    :param folder: of the run
    :param episodes: number of episodes that were over at the checkpoint
    :param timesteps: of the checkpoint
    """
    monitor, progress = folder / MONITOR, folder / PROGRESS
    if monitor.exists():
        lines = monitor.read_text("utf-8").splitlines(keepends=True)
        monitor.write_text("".join(lines[: 2 + episodes]), "utf-8")  # two lines of header
    if progress.exists():
        header, *rows = progress.read_text("utf-8").splitlines(keepends=True) or [""]
        if "time/total_timesteps" in header:
            column = header.strip().split(",").index("time/total_timesteps")
            rows = [row for row in rows if row.endswith("\n") and int(float(row.split(",")[column])) <= timesteps]
        progress.write_text("".join([header, *rows]), "utf-8")


def read_value(text: str) -> Any:  # noqa: ANN401 - whatever was typed
    """
    :param text: as typed
    :return: the Python literal that it is, or the text itself
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def import_object(path: str) -> Any:  # noqa: ANN401 - a class or a function, whatever the user names
    """
    :param path: "package.module:Name", or "package.module.Name"
    :return: the object of that name
    :raises ValueError: when there is none
    """
    separator = ":" if ":" in path else "."
    module, _, name = path.rpartition(separator)
    if not module or not name:
        raise ValueError(f"{path!r} cannot be imported: write package.module:Name.")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{path!r} cannot be imported ({error}): write package.module:Name.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{path!r} cannot be imported: {module} has no {name!r}; write package.module:Name.")
        found = getattr(found, part)
    return found


def _ignore_ctrl_c(maker: Any) -> Any:  # noqa: ANN401 - SB3 types its makers so
    def make() -> gym.Env[Any, Any]:
        import signal

        # Ctrl-C reaches every process of the terminal; the main one decides what to do about it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        env: gym.Env[Any, Any] = maker()
        return env

    return make


def describe(value: object) -> object:
    """
    :param value: what JSON does not know
    :return: the same in words or numbers
    """
    if isinstance(value, FloatSchedule):
        return describe(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
