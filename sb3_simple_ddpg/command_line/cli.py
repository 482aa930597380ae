"""The command line: `simple-ddpg train`, `evaluate`, `plot`, `benchmark`, `export`, `compare` and `diagnose`.

Not here: what the commands do to files (`experiment/runs.py`, `export/files.py`), to figures (`experiment/plotting.py`)
and to networks (`simple_ddpg.py`), and what is measured (`benchmark/benchmark.py`) and compared
(`experiment/comparison.py`).
"""

import contextlib
import inspect
import itertools
import json
import math
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch as th
import tyro
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger, SeqWriter, configure
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_simple_ddpg import presets
from sb3_simple_ddpg.checkpoint import folder_lock
from sb3_simple_ddpg.checkpoint.buffer import CheckpointError
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.diagnosis.q_bias import QBiasCallback
from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.experiment.algorithms import assign, env_kwargs_from, take_normalize
from sb3_simple_ddpg.safety import checks, mistakes
from sb3_simple_ddpg.simple_ddpg import SimpleDDPG

if TYPE_CHECKING:
    from sb3_simple_ddpg.diagnosis.diagnosis import Finding

#: What may follow one `--set`, which may be given several times.
Assignments = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]


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
    :param preset: default, article, lillicrap2015, fujimoto2018, pendulum, robust or rl-zoo; without it the
        environment's own, where there is one
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
    if resume is not None:
        _refuse_other_options(train, locals(), ("resume", "eval_episodes", "progress"))
        return _resume(resume, eval_episodes, progress)
    th.set_num_threads(_at_least_one("threads", threads))
    preset_name, arguments = presets.choose_preset(preset, env)
    for assignment in itertools.chain(*set):
        _assign(arguments, assignment)
    observations = take_normalize(arguments)
    settings = runs.EnvSettings(
        env, wrapper, _at_least_one("n-envs", n_envs), vec_env == "subproc", normalize, observations,
        _env_kwargs(env_kwargs, env),
    )  # fmt: skip
    timesteps, max_episodes = _budget(settings, episodes, timesteps)
    if eval_episodes < 0:
        raise ValueError(f"--eval-episodes must be at least 0, got {eval_episodes}.")
    if checkpoint_every is not None:
        _at_least_one("checkpoint-every", checkpoint_every)
    folder = _choose_folder(out, env, overwrite)

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
    _prepare_folder(folder)
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

    model.set_logger(_logger(folder, progress, tensorboard))
    monitor.results_writer = _PatientResults(
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
    monitor.results_writer = _PatientResults(str(folder / runs.MONITOR), override_existing=False)
    with (folder / runs.MONITOR).open() as file:
        monitor.t_start = json.loads(file.readline()[1:])["t_start"]
    model.set_logger(_logger(folder, progress, config["tensorboard"]))
    print(f"Going on at timestep {model.num_timesteps} of {config['timesteps']}. Ctrl-C saves and stops.")
    return _learn(model, folder, config["timesteps"], progress, eval_episodes)


def _learn(model: SimpleDDPG, folder: Path, timesteps: int, progress: bool, eval_episodes: int) -> int:
    """Up to this timestep; then, whatever happens, save; then evaluate."""
    config = runs.read_config(folder)
    settings: runs.EnvSettings = config["env"]
    callbacks: list[BaseCallback] = [QBiasCallback(), *([_ReturnsProgressBar()] if progress else [])]
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
            _save_figure([folder], [settings.env_id], folder / runs.PICTURE, config["random_return"])
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
    if eval_episodes:
        returns = runs.evaluate_run(folder, eval_episodes, config["seed"] + 10_000)
        _print_evaluation(returns)
        found = {"mean_return": float(np.mean(returns)), "success_rate": returns.success_rate, "returns": returns}
        with contextlib.suppress(OSError):  # on a full disk it was printed, at least
            (folder / runs.EVALUATION).write_text(json.dumps(found) + "\n", "utf-8")
    print(f"Everything lies in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def evaluate(
    run: tyro.conf.Positional[Path],
    episodes: int = 100,
    seed: int = 10_000,
    video: Path | None = None,
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
) -> int:
    """
    Play deterministic episodes with the model of a run.

    :param run: folder that `simple-ddpg train` wrote
    :param episodes: number of episodes
    :param seed: of the environments
    :param video: film of the first episode to write, .gif or .mp4; no display is needed
    :param env_kwargs: an argument of the environment, where it shall be another than in training; may be repeated
    :return: exit status
    """
    of_env = _env_kwargs(env_kwargs, runs.read_config(run)["env"].env_id)
    if video is not None:
        from sb3_simple_ddpg.experiment.video import film_run

        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a display, also where none is needed
        frames = film_run(run, video, seed, of_env)
        print(f"Wrote {video}, {frames} timesteps, {video.stat().st_size} bytes.")
    _print_evaluation(runs.evaluate_run(run, episodes, seed, of_env))
    return 0


def plot(run: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path(runs.PICTURE)) -> int:
    """
    Draw the returns of one run or several into one picture.

    :param run: folders that `simple-ddpg train` wrote
    :param out: picture to write; its ending chooses the format (png, svg, pdf)
    :return: exit status
    """
    if not run:
        raise ValueError("plot needs at least one run: pass a folder that `simple-ddpg train` wrote.")
    configs = [runs.read_config(folder) for folder in run]
    labels = [f"{config['env'].env_id}, {folder.name}" for config, folder in zip(configs, run, strict=True)]
    same_env = len({config["env"].env_id for config in configs}) == 1
    _save_figure(list(run), labels, out, configs[0]["random_return"] if same_env else None)
    print(f"Wrote {out}.")
    return 0


def benchmark(
    workloads: tuple[str, ...] = (),
    repeats: int | None = None,
    steps: int | None = None,
    threads: int | None = None,
    sbx_python: Path | None = None,
    compile_times: bool = True,
    quick: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> int:
    """
    Measure the speed of SimpleDDPG beside SB3's DDPG and SBX's DDPG, interleaved in one run.

    :param workloads: names; none for all: pendulum-64, pendulum-256, pendulum-400, pendulum-400-2-threads,
        halfcheetah-256, pendulum-8-envs, collect, predict
    :param repeats: number of counted repeats, at least 5; 7 without it
    :param steps: environment steps in each repeat; without it about two seconds of SB3's DDPG
    :param threads: of every workload, instead of its own number
    :param sbx_python: interpreter of an environment that holds SBX, where this one does not
    :param compile_times: compile with an empty cache, and again from what that left
    :param quick: everything small, to see that it runs; the numbers mean nothing
    :param out: folder to write; runs/benchmark-<date-time> without it
    :param overwrite: replace the files of an earlier benchmark in a folder that is not empty
    :return: exit status
    """
    from rich.console import Console

    from sb3_simple_ddpg.benchmark import benchmark as bench

    chosen = bench.choose_workloads(workloads, threads, quick)
    settings = bench.Settings(
        repeats=(2 if quick else 7) if repeats is None else repeats,
        steps=steps,
        target_s=0.1 if quick else 2.0,
        sbx_python=bench.find_sbx(sbx_python),
        compile_times=compile_times and not quick,
        quick=quick,
    )
    folder = _choose_folder(out, "benchmark", overwrite)
    _prepare_folder(folder, bench.FILES)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    bench.run_table(chosen, settings, folder, console)
    print(f"Everything lies in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def export(run: tyro.conf.Positional[Path], to: Path) -> int:
    """
    Write the policy of a run as one file that takes raw observations and gives actions of the environment.

    :param run: folder that `simple-ddpg train` wrote
    :param to: file to write, or to replace: .onnx for any runtime, .safetensors for load_policy
    :return: exit status
    """
    from sb3_simple_ddpg.export.files import export_onnx, save_policy
    from sb3_simple_ddpg.export.source import checked_target

    writers = {".onnx": export_onnx, ".safetensors": save_policy}
    if to.suffix not in writers:
        raise ValueError(f"--to must end in {' or '.join(writers)}, got {to}.")
    checked_target(to)
    model = runs.load_run(run)
    writers[to.suffix](model, to)
    env = model.get_env()
    assert env is not None
    env.close()
    print(f"Wrote {to}, {to.stat().st_size} bytes, checked against predict.")
    return 0


def compare(
    env: tuple[str, ...] = (),
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    algorithms: tuple[str, ...] = (),
    seeds: int | None = None,
    first_seed: int | None = None,
    timesteps: int | None = None,
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    preset: tuple[str, ...] = (),
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    threshold: tuple[str, ...] = (),
    margin: tuple[str, ...] = (),
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """
    Compare algorithms honestly: many seeds, the same budget, evaluation apart from training, intervals.

    :param env: environments, each for all algorithms; Pendulum-v1 without it
    :param env_kwargs: an argument of every environment, as for train, or environment.name=value; may be repeated
    :param algorithms: simple_ddpg, ddpg, td3, sac, tqc, crossq, or name=module:Class; simple_ddpg ddpg without it. The
        others are compared with the first
    :param seeds: number of runs of each algorithm in each environment, at least 2; 10 without it
    :param first_seed: seeds count from here; 0 without it
    :param timesteps: of each run; 20000 without it
    :param set: an argument of an algorithm, such as td3.gamma=0.98, or of all, such as all.action_noise=0.1 or
        "action_noise=OrnsteinUhlenbeck(0.5)"; may be repeated
    :param preset: of every SimpleDDPG, or algorithm=preset: default, article, lillicrap2015, fujimoto2018, pendulum,
        robust or rl-zoo; without it each algorithm's own defaults
    :param eval_every: timesteps between evaluations; a twentieth of a run without it
    :param eval_episodes: deterministic episodes in each evaluation; 10 without it
    :param threads: PyTorch's threads in each run; 1 without it
    :param engine: processes of this machine, or a Ray cluster
    :param jobs: runs at a time; as many as there are cores without it
    :param ray_address: of a running Ray cluster; without it one is started here
    :param threshold: the return that solves the environment, or environment=return; without it Gymnasium's
    :param margin: means closer than this share of the distance from random actions to the threshold are equivalent,
        or closer than environment=return; 0.1 without it
    :param out: folder to write; runs/compare-<date-time> without it
    :param resume: go on with the comparison in --out and its settings; seeds, algorithms, environments may be added
    :param overwrite: replace the comparison in a folder that is not empty
    :param progress: show a display that changes, where there is a terminal
    :return: exit status: 1 when a run failed
    """
    from rich.console import Console

    from sb3_simple_ddpg.experiment import comparison
    from sb3_simple_ddpg.experiment import folder as experiment_folder
    from sb3_simple_ddpg.experiment import report as comparison_report

    if resume and (out is None or overwrite):
        raise ValueError("--resume needs --out, the folder that a comparison was begun in, and no --overwrite.")
    folder = out if resume and out is not None else _choose_folder(out, "compare", overwrite)
    request = comparison.Request(
        env, tuple(itertools.chain(*env_kwargs)), algorithms, seeds, first_seed, timesteps,
        tuple(itertools.chain(*set)), preset, eval_every, eval_episodes, threads, threshold, margin,
    )  # fmt: skip
    if overwrite and folder.is_dir():
        with experiment_folder.locked(folder):
            experiment_folder.clear(folder, comparison_report.FILES)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    status = comparison.compare(
        request, folder, console, resume=resume, engine=engine, jobs=jobs, ray_address=ray_address, live=progress
    )
    print(f"Everything lies in {folder}; the page to read is {folder / 'summary.md'}.")
    return status


def diagnose(
    what: tyro.conf.Positional[str],
    env_kwargs: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    preset: str | None = None,
    n_envs: int = 1,
    wrapper: tuple[str, ...] = (),
    normalize: bool = False,
    set: tyro.conf.UseAppendAction[tuple[Assignments, ...]] = (),
    threads: int = 1,
    seed: int = 20_000,
) -> int:
    """
    What is likely to keep an agent from learning: a table of what was measured, why it matters, and the cure.

    :param what: folder that `simple-ddpg train` wrote, whose agent plays; or the name of an environment, in which an
        agent that is yet to be trained takes random actions
    :param env_kwargs: an argument of the environment, as for train
    :param preset: of the agent to be trained, as for train
    :param n_envs: number of environments side by side, as for train
    :param wrapper: of each environment, as for train
    :param normalize: wrap the environments in VecNormalize, as for train
    :param set: an argument of SimpleDDPG, as for train
    :param threads: PyTorch's threads, as for train
    :param seed: of the environments
    :return: exit status: 1 when there is a finding
    """
    from sb3_simple_ddpg.diagnosis.diagnosis import diagnose as find_faults

    given, folder = locals(), Path(what)
    logged: dict[str, float] = {}
    if folder.is_dir():
        for name, parameter in inspect.signature(diagnose).parameters.items():
            if name not in ("what", "seed") and given[name] != parameter.default:
                raise ValueError(f"A run has its own settings: leave out --{name.replace('_', '-')}.")
        config = runs.read_config(folder)
        arguments = config["arguments"]
        th.set_num_threads(config["threads"])
        model = runs.load_run(folder, config["env"].n_envs, seed, buffer_size=runs.SAMPLE)
        logged = runs.logged_last(folder, ("train/action_saturation", "train/q_mean", "rollout/q_bias"))
    else:
        th.set_num_threads(_at_least_one("threads", threads))
        _, arguments = presets.choose_preset(preset, what)
        for assignment in itertools.chain(*set):
            _assign(arguments, assignment)
        try:
            settings = runs.EnvSettings(
                what, wrapper, _at_least_one("n-envs", n_envs), False, normalize, take_normalize(arguments),
                _env_kwargs(env_kwargs, what),
            )  # fmt: skip
            env: VecEnv = settings.make()
        except ValueError as error:
            if not mistakes.is_said_to_user(error):
                raise
            raise ValueError(f"{what!r} is neither the folder of a run nor an environment. {error}") from error
        env = settings.normalized(env, arguments.get("gamma", 0.99))
        arguments = {"policy": runs.policy_for(env.observation_space), **arguments}
        with mistakes.settings_refused(arguments):
            model = SimpleDDPG(env=env, **{**arguments, "seed": seed, "device": "cpu", "buffer_size": runs.SAMPLE})
    runs.fill_buffer(model, runs.SAMPLE, episodes=10, random=not folder.is_dir())
    findings = find_faults(model, arguments.get("buffer_size", 1_000_000))
    assert model.env is not None
    model.env.close()
    _print_findings(findings, what, model.replay_buffer.size() * model.n_envs if model.replay_buffer else 0)
    for name, value in logged.items():
        print(f"Logged at the end of training: {name} {value:.3g}")
    return 1 if findings else 0


def main(args: list[str] | None = None) -> int:
    """
    :param args: of the command line; None takes the process's own
    :return: exit status: 0 for success, 1 when a diagnosis found something or anything failed that is no mistake in the
        options, 2 for such a mistake, 130 after Ctrl-C
    """
    commands: dict[str, Callable[..., Any]] = {
        "train": train,
        "evaluate": evaluate,
        "plot": plot,
        "benchmark": benchmark,
        "export": export,
        "compare": compare,
        "diagnose": diagnose,
    }
    try:
        status: int = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="simple-ddpg",
            description="Deep Deterministic Policy Gradient, to run and to read.",
            args=args,
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if mistakes.is_said_to_user(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        traceback.print_exception(error)
        print(f"error: {type(error).__name__}: {error} {_BUG}", file=sys.stderr)
        return 1
    return status


_BUG = "No option is to blame: the traceback says whether the environment is, or a class of yours, or sb3-simple-ddpg."


def _refuse_other_options(command: Callable[..., int], given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Those that a run to go on with has settled already."""
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in allowed and given[name] != parameter.default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"--resume goes on with the settings of the run: leave out {option}.")


class _Messages(SeqWriter, KVWriter):
    """What the logger says in words, such as a checkpoint that could not be written, beside the progress bar."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Numbers are in progress.csv."""

    def write_sequence(self, sequence: list[str]) -> None:
        print(*sequence, file=sys.stderr)

    def close(self) -> None:
        """Standard error stays open."""


class _PatientCSV(CSVOutputFormat):
    """A full disk must not end a training: SB3's progress.csv, which loses a row then."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        with contextlib.suppress(OSError):
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _PatientResults(ResultsWriter):
    """The same for SB3's monitor.csv."""

    def write_row(self, epinfo: dict[str, float]) -> None:
        with contextlib.suppress(OSError):
            super().write_row(epinfo)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _logger(folder: Path, progress: bool, tensorboard: bool) -> Logger:
    """SB3's, whose progress.csv goes on where there is one already."""
    path = folder / runs.PROGRESS
    already = path.read_text("utf-8") if path.exists() else ""
    logger = configure(str(folder), [*(["tensorboard"] if tensorboard else []), *([] if progress else ["stdout"])])
    csv = _PatientCSV(str(path))
    logger.output_formats.append(csv)
    if already:
        csv.file.write(already)
        csv.keys = already.splitlines()[0].split(",")
    if progress:
        logger.output_formats.append(_Messages())
    return logger


class _ReturnsProgressBar(ProgressBarCallback):
    """SB3's progress bar with the mean return of the last episodes beside it."""

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or []]
        if returns:
            newest = returns[-10:]
            self.pbar.set_description(f"mean return {np.mean(newest):z.{runs.digits_of(newest)}f}", refresh=False)


def _budget(env: runs.EnvSettings, episodes: int | None, timesteps: int | None) -> tuple[int, int | None]:
    """Number of timesteps, and the number of episodes where that was what the user gave."""
    if episodes is not None and timesteps is not None:
        raise ValueError(f"Give --episodes or --timesteps, not both (got {episodes} and {timesteps}).")
    if timesteps is not None:
        return _at_least_one("timesteps", timesteps), None
    episodes = _at_least_one("episodes", 100 if episodes is None else episodes)
    one = replace(env, wrappers=()).make_one()  # wrappers may hide what was registered
    spec = one.spec
    one.close()
    if spec is None or spec.max_episode_steps is None:
        raise ValueError(f"{env.env_id} sets no limit to an episode, so episodes cannot be planned: give --timesteps.")
    return episodes * spec.max_episode_steps, episodes


def _env_kwargs(typed: Iterable[tuple[str, ...]], env_id: str) -> dict[str, Any]:
    return env_kwargs_from(itertools.chain(*typed), [env_id])[env_id]


def _assign(arguments: dict[str, Any], assignment: str) -> None:
    """Put `name=value`, or `name.key=value`, into the arguments, without touching a preset's own dictionaries."""
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"--set takes name=value, got {assignment!r}: --set gamma=0.98, for example.")
    name, *keys = name.strip().split(".")
    known = [known for known in inspect.signature(SimpleDDPG).parameters if known not in ("env", "_init_setup_model")]
    options = {"seed": f"--seed {text}", "device": f"--device {text}", "tensorboard_log": "--tensorboard"}
    if name in options:
        raise ValueError(f"--set {name} would say it twice: use {options[name]}.")
    known = [*(argument for argument in known if argument not in options), presets.NORMALIZE]
    if name not in known and name not in checks.FOREIGN_ARGUMENTS:
        raise ValueError(f"SimpleDDPG has no argument {name!r}: {checks.did_you_mean(name, known)}")
    assign(arguments, [name, *keys], text)


def _choose_folder(out: Path | None, env_id: str, overwrite: bool) -> Path:
    if out is None:
        stem = f"{env_id.replace('/', '-').replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        out = Path("runs") / stem
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} is not empty: name another folder, or add --overwrite.")
    existing = next(path for path in [out, *out.absolute().parents] if path.exists())
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: {existing} is not writable.")
    return out


def _prepare_folder(folder: Path, names: tuple[str, ...] = runs.FILES) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:  # of an earlier run; other files in the folder are not ours
            (folder / name).unlink(missing_ok=True)
        if runs.CONFIG in names:
            shutil.rmtree(folder / runs.CHECKPOINTS, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error}.") from error


def _save_figure(folders: list[Path], labels: list[str], path: Path, random_return: float | None) -> None:
    import matplotlib

    from sb3_simple_ddpg.experiment.plotting import plot_returns

    matplotlib.use("Agg")  # no display needed
    figure = plot_returns(folders, labels, random_return)
    figure.savefig(path, dpi=150)
    matplotlib.pyplot.close(figure)


def _print_evaluation(returns: runs.Returns) -> None:
    digits = runs.digits_of(returns)
    rate = returns.success_rate
    print(
        f"Evaluation over {len(returns)} deterministic episodes: mean return {np.mean(returns):z.{digits}f}, "
        f"standard deviation {np.std(returns):.{digits}f}" + ("" if rate is None else f", success rate {rate:.2f}")
    )


def _print_findings(findings: "list[Finding]", what: str, timesteps: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from sb3_simple_ddpg.diagnosis.diagnosis import cure_first

    if not findings:
        print(f"Nothing wrong was found with {what} in {timesteps} timesteps.")
        return
    table = Table(title=f"{what}, {timesteps} timesteps played", show_lines=True)
    for head in ("fault", "measured", "why it matters", "cure"):
        table.add_column(head)
    for finding in findings:
        table.add_row(finding.fault, finding.measured, finding.why, finding.cure)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table, markup=False, highlight=False)
    if first := cure_first(findings):
        print(first)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"--{name} must be at least 1, got {value}.")
    return value


def run() -> None:
    """The console script."""
    warnings.filterwarnings("ignore", module="tqdm.*")
    sys.path.append(os.getcwd())  # environments and algorithms of the user's own
    sys.exit(main())
