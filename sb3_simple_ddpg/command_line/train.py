"""`simple-ddpg train`: a run from its options to its folder, and one that goes on.

Not here: a run's files (`experiment/runs.py`), checkpoints (`checkpoint/folder.py`) and learning (`simple_ddpg.py`).
"""

import contextlib
import json
import math
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch as th
import tyro
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import VecNormalize

from sb3_simple_ddpg.checkpoint import folder_lock
from sb3_simple_ddpg.checkpoint.buffer import CheckpointError
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.command_line import options
from sb3_simple_ddpg.command_line.evaluate import print_evaluation, save_figure
from sb3_simple_ddpg.command_line.logs import PatientResults, ReturnsProgressBar, make_logger
from sb3_simple_ddpg.command_line.options import Assignments, at_least_one
from sb3_simple_ddpg.diagnosis.q_bias import QBiasCallback
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.safety import checks, mistakes
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG


def train(
    env: str = "Pendulum-v1",
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    episodes: int | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    preset: str | None = None,
    n_envs: int = 1,
    vec_env: Literal["dummy", "subproc"] = "dummy",
    wrapper: tuple[str, ...] = (),
    normalize: bool = False,
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    threads: int = 1,
    eval_episodes: int = 100,
    progress: bool = True,
    tensorboard: bool = False,
    checkpoint_every: int | None = None,
    resume: Path | None = None,
) -> int:
    """
    Train on an environment, then evaluate; by default DDPG on Pendulum-v1 for 100 episodes.

    :param env: name of a registered environment; package.module:Name-v0 imports the module first
    :param env_kwargs: an argument of the environment's constructor, such as goal_velocity=0.1, or
        max_episode_steps=500; may be repeated
    :param episodes: number of episodes in all environments together; 100 where no timesteps are given
    :param timesteps: number of timesteps, instead of episodes
    :param seed: of everything that is random
    :param preset: default, article, lillicrap2015, fujimoto2018, pendulum, robust, layer-norm, rl-zoo, or a file that
        tune wrote; without it the environment's own, where there is one
    :param n_envs: number of environments side by side
    :param vec_env: all environments in this process, or each in its own
    :param wrapper: wrappers of each environment, module:Name, the innermost first
    :param normalize: wrap the environments in VecNormalize
    :param set: an argument of SimpleDDPG, such as gamma=0.98, policy_kwargs.net_arch=[64,64] or
        replay_buffer_class=HerReplayBuffer (a class of your own: module:Name), or normalize_observations=True, which is
        --normalize for observations alone; may be repeated
    :param out: folder to write; runs/<env>-<date-time> without it
    :param overwrite: replace the run in a folder that is not empty
    :param device: auto, cpu, cuda
    :param threads: PyTorch's threads; one is fastest for small networks
    :param eval_episodes: number of deterministic episodes after training, 0 for none
    :param progress: show a progress bar; without it the log is printed as a table
    :param tensorboard: write a log for TensorBoard too
    :param checkpoint_every: number of timesteps between two checkpoints, at each of which every episode starts anew
    :param resume: folder of a run with checkpoints, to go on with; its settings are used
    :return: exit status
    """
    given = locals()
    if resume is not None:
        allowed = ("resume", "eval_episodes", "progress")
        options.refuse_others(train, given, allowed, "--resume goes on with the settings of the run")
        return _resume(resume, eval_episodes, progress)
    preset_name, arguments, settings = options.choose_settings(
        env, env_kwargs, preset, n_envs, vec_env == "subproc", wrapper, normalize, set, threads
    )
    timesteps, max_episodes = _budget(settings, episodes, timesteps)
    if eval_episodes < 0:
        raise ValueError(f"--eval-episodes must be at least 0, got {eval_episodes}.")
    if checkpoint_every is not None:
        at_least_one("checkpoint-every", checkpoint_every)
    folder = options.choose_folder(out, env, overwrite)

    monitor = settings.make()
    training_env = settings.normalized(monitor, arguments.get("gamma", 0.99))
    arguments = {"policy": runs.policy_for(training_env.observation_space), **arguments, "seed": seed, "device": device}
    with mistakes.settings_refused(arguments):
        model = SimpleDDPG(env=training_env, **arguments)

    random_return = settings.random_return(seed)

    # Every setting is accepted; from here on files are written.
    try:
        folder_lock.claim(folder, model)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error}.") from error
    options.prepare_folder(folder)
    runs.write_config(
        folder,
        settings,
        arguments,
        preset=preset_name,
        seed=seed,
        episodes=max_episodes,
        timesteps=timesteps,
        threads=threads,
        random_return=random_return,
        tensorboard=tensorboard,
        checkpoint_every=checkpoint_every,
    )
    budget = f"{max_episodes} episodes" if max_episodes else f"{timesteps} timesteps"
    print(f"Training on {env} for {budget}, seed {seed}, preset {preset_name!r}. Ctrl-C saves and stops.")
    for sentence in checks.advice(model):
        print(f"Advice: {sentence}")

    model.set_logger(make_logger(folder, progress, tensorboard))
    monitor.results_writer = PatientResults(
        str(folder / runs.MONITOR), header={"t_start": monitor.t_start, "env_id": env}
    )
    return _learn(model, folder, timesteps, progress, eval_episodes)


def _resume(folder: Path, eval_episodes: int, progress: bool) -> int:
    config = runs.read_config(folder)
    th.set_num_threads(config["threads"])
    settings: runs.EnvSettings = config["env"]
    monitor = settings.make()
    training_env = settings.normalized(monitor, config["arguments"]["gamma"])
    try:
        model = SimpleDDPG.resume(folder / runs.CHECKPOINTS, training_env)
    except CheckpointError as error:
        raise ValueError(f"{error} Checkpoints are written by `simple-ddpg train --checkpoint-every N`.") from error
    folder_lock.claim(folder, model)
    runs.keep_until(folder, model._episode_num, model.num_timesteps)
    for name in (runs.ERROR, runs.DIAGNOSIS, runs.EVALUATION):
        (folder / name).unlink(missing_ok=True)
    monitor.results_writer = PatientResults(str(folder / runs.MONITOR), override_existing=False)
    with (folder / runs.MONITOR).open() as file:
        monitor.t_start = json.loads(file.readline()[1:])["t_start"]
    model.set_logger(make_logger(folder, progress, config["tensorboard"]))
    print(f"Going on at timestep {model.num_timesteps} of {config['timesteps']}. Ctrl-C saves and stops.")
    return _learn(model, folder, config["timesteps"], progress, eval_episodes)


def _learn(model: SimpleDDPG, folder: Path, timesteps: int, progress: bool, eval_episodes: int) -> int:
    """Up to this timestep; then, whatever happens, save; then evaluate."""
    config = runs.read_config(folder)
    settings: runs.EnvSettings = config["env"]
    callbacks: list[BaseCallback] = [QBiasCallback(), *([ReturnsProgressBar()] if progress else [])]
    finished = model.num_timesteps >= timesteps
    if config["episodes"]:
        # SB3 counts episodes per environment.
        stop = StopTrainingOnMaxEpisodes(math.ceil(config["episodes"] / settings.n_envs))
        stop.n_episodes = model._episode_num
        callbacks.append(stop)
        finished = finished or model._episode_num >= stop.max_episodes * settings.n_envs
    if config["checkpoint_every"]:
        callbacks.append(ExactCheckpointCallback(folder / runs.CHECKPOINTS, config["checkpoint_every"]))
    interrupted, failure = False, None
    try:
        if not finished:
            model.learn(timesteps - model.num_timesteps, callbacks, reset_num_timesteps=model.num_timesteps == 0)
    except KeyboardInterrupt:
        interrupted = True
        print(f"\nInterrupted at timestep {model.num_timesteps}.")
    except Exception as error:  # of the environment, most likely: what was learned is saved all the same
        failure = error
        (folder / runs.ERROR).write_text("".join(traceback.format_exception(error)), "utf-8")
    training_env = model.env
    assert training_env is not None
    model.save(folder / runs.MODEL)
    if isinstance(training_env, VecNormalize):
        training_env.save(str(folder / runs.NORMALIZER))
    training_env.close()
    model.logger.close()
    folder_lock.let_go(model, folder)
    if model._episode_num:
        try:
            save_figure([folder], [settings.env_id], folder / runs.PICTURE, config["random_return"])
        except Exception as error:  # on a full disk there are no returns to draw, or no place for them
            if not mistakes.is_said_to_user(error):
                traceback.print_exception(error)
            print(f"No picture could be drawn: {error}", file=sys.stderr)
    if interrupted or failure:
        print(f"Saved what there is in {folder}.")
        if config["checkpoint_every"]:
            print(f"To go on from the newest checkpoint: simple-ddpg train --resume {folder}")
    if failure:
        if not mistakes.is_said_to_user(failure):
            traceback.print_exception(failure)
        notes = " ".join(getattr(failure, "__notes__", []))
        print(f"error: {type(failure).__name__}: {failure} {notes}", file=sys.stderr)
        return 1
    if interrupted:
        return 130
    if model.num_timesteps <= model.learning_starts:
        print(
            f"Nothing was learned: learning begins after {model.learning_starts} random timesteps, and this run had "
            f"{model.num_timesteps}. Give more --timesteps, or --set learning_starts=100."
        )
    if eval_episodes:
        returns = runs.evaluate_run(folder, eval_episodes, config["seed"] + 10_000)
        print_evaluation(returns)
        found = {"mean_return": float(np.mean(returns)), "success_rate": returns.success_rate, "returns": returns}
        with contextlib.suppress(OSError):  # on a full disk it was printed, at least
            (folder / runs.EVALUATION).write_text(json.dumps(found) + "\n", "utf-8")
    print(f"Everything lies in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _budget(env: runs.EnvSettings, episodes: int | None, timesteps: int | None) -> tuple[int, int | None]:
    """Number of timesteps, and the number of episodes where that was what the user gave."""
    if episodes is not None and timesteps is not None:
        raise ValueError(f"Give --episodes or --timesteps, not both (got {episodes} and {timesteps}).")
    if timesteps is not None:
        return at_least_one("timesteps", timesteps), None
    episodes = at_least_one("episodes", 100 if episodes is None else episodes)
    one = replace(env, wrappers=()).make_one()  # wrappers may hide what was registered
    spec = one.spec
    one.close()
    if spec is None or spec.max_episode_steps is None:
        raise ValueError(f"{env.env_id} sets no limit to an episode, so episodes cannot be planned: give --timesteps.")
    return episodes * spec.max_episode_steps, episodes
