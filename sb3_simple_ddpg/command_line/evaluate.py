"""`simple-ddpg evaluate` and `plot`: what a run has learned.

Not here: the episodes (`experiment/runs.py`) and the figure (`experiment/plotting.py`).
"""

import os
from pathlib import Path

import numpy as np
import tyro

from sb3_simple_ddpg.command_line.options import Assignments, env_kwargs_of
from sb3_simple_ddpg.experiment import runs


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
    of_env = env_kwargs_of(env_kwargs, runs.read_config(run)["env"].env_id)
    if video is not None:
        from sb3_simple_ddpg.experiment.video import film_run

        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a display, also where none is needed
        frames = film_run(run, video, seed, of_env)
        print(f"Wrote {video}, {frames} timesteps, {video.stat().st_size} bytes.")
    print_evaluation(runs.evaluate_run(run, episodes, seed, of_env))
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
    save_figure(list(run), labels, out, configs[0]["random_return"] if same_env else None)
    print(f"Wrote {out}.")
    return 0


def save_figure(folders: list[Path], labels: list[str], path: Path, random_return: float | None) -> None:
    import matplotlib

    from sb3_simple_ddpg.experiment.plotting import plot_returns

    matplotlib.use("Agg")  # no display needed
    figure = plot_returns(folders, labels, random_return)
    figure.savefig(path, dpi=150)
    matplotlib.pyplot.close(figure)


def print_evaluation(returns: runs.Returns) -> None:
    digits = runs.digits_of(returns)
    rate = returns.success_rate
    print(
        f"Evaluation over {len(returns)} deterministic episodes: mean return {np.mean(returns):z.{digits}f}, "
        f"standard deviation {np.std(returns):.{digits}f}" + ("" if rate is None else f", success rate {rate:.2f}")
    )
