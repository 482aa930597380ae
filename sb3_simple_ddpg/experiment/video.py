"""A film of a trained policy: frames of one episode, drawn without a display, written as .gif or .mp4.

Not here: how a run is built and read again (`experiment/runs.py`), and pictures of numbers (`experiment/plotting.py`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_simple_ddpg.experiment import runs
from sb3_simple_ddpg.export.policy_file import LoadedPolicy
from sb3_simple_ddpg.export.source import checked_target

Frame = npt.NDArray[np.uint8]

ENDINGS = (".gif", ".mp4")
_GIF_WIDTH = 240  # pixels: a GIF of full size takes megabytes
_GIF_FPS = 25  # browsers slow down anything above 50


def check_path(path: str | Path) -> Path:
    """
    :param path: of a film that is to be written
    :return: the same
    :raises ValueError: for another ending than .gif or .mp4, or a folder that cannot be written to
    :raises ImportError: for .mp4 without imageio-ffmpeg
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"A film's name must end in {' or '.join(ENDINGS)}, got {path}.")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401 - is it there?
        except ImportError as error:
            raise ImportError(
                f'An .mp4 needs imageio-ffmpeg ({error}): pip install "sb3-simple-ddpg[video]", or name a .gif.'
            ) from error
    return checked_target(path)


def film_run(folder: Path, path: str | Path, seed: int, env_kwargs: Mapping[str, Any] | None = None) -> int:
    """
    Write a film of one deterministic episode of a run.

    :param folder: that `simple-ddpg train` wrote
    :param path: ends in .gif or .mp4
    :param seed: of the environment
    :param env_kwargs: arguments of the environment, beside or in place of those of the run
    :return: number of timesteps of the episode
    :raises ValueError: when the folder holds no run, the environment cannot be drawn, or the path not be written
    """
    path = check_path(path)
    model, env = runs.load_player(folder, seed=seed, render_mode="rgb_array", env_kwargs=env_kwargs)
    with contextlib.closing(env):
        frames, fps = record_episode(model, env=env)
    write_video(frames, path, fps)
    return len(frames)


def record_episode(
    model: BaseAlgorithm | LoadedPolicy, max_frames: int = 10_000, env: VecEnv | None = None
) -> tuple[list[Frame], float]:
    """
    Play one deterministic episode in the first of the environments.

    :param model: that plays
    :param max_frames: stop here, however long the episode is
    :param env: made with `render_mode="rgb_array"`; None: the model's own
    :return: one frame a timestep, each of shape (height, width, 3), and frames a second
    :raises ValueError: when the environment cannot be drawn
    """
    if env is None and isinstance(model, BaseAlgorithm):
        env = model.get_env()
    if env is None or env.render_mode != "rgb_array":
        raise ValueError(
            "Frames need an environment made with render_mode='rgb_array', "
            f"got {'none' if env is None else repr(env.render_mode)}."
        )
    fps = float((env.get_attr("metadata", 0)[0] or {}).get("render_fps") or 30)
    frames: list[Frame] = []
    observations: Any = env.reset()
    while len(frames) < max_frames:
        frame = env.get_images()[0]
        if frame is None or np.ndim(frame) != 3:
            raise ValueError("The environment draws no frames: its render() must return an array (height, width, 3).")
        frames.append(np.asarray(frame, np.uint8))
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, _ = env.step(actions)
        if dones[0]:
            break
    return frames, fps


def write_video(frames: Sequence[Frame], path: str | Path, fps: float = 30.0) -> None:
    """
    :param frames: each of shape (height, width, 3), 0 to 255
    :param path: ends in .gif (at most 240 pixels wide, 25 frames a second) or .mp4 (as large as the frames; needs
        imageio-ffmpeg)
    :param fps: frames a second
    :raises ValueError: for no frames, or another ending
    :raises ImportError: for .mp4 without imageio-ffmpeg
    """
    path = check_path(path)
    if not frames:
        raise ValueError("A film needs at least one frame, got none.")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}: 30 for example.")
    height, width = frames[0].shape[:2]
    if path.suffix == ".mp4":
        import imageio_ffmpeg

        height, width = height - height % 2, width - width % 2  # H.264 wants even numbers
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2)
        writer.send(None)
        with contextlib.closing(writer):
            for frame in frames:
                writer.send(np.ascontiguousarray(frame[:height, :width]))
        return
    from PIL import Image

    every = max(1, round(fps / _GIF_FPS))
    size = min(width, _GIF_WIDTH), round(height * min(1.0, _GIF_WIDTH / width))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames[::every]]
    # One palette for all frames: with one each, what stands still flickers and every frame is stored as a whole.
    palette = images[len(images) // 2].quantize(32)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    first.save(path, save_all=True, append_images=others, duration=round(1000 * every / fps), loop=0, optimize=False)
