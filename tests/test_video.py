"""Films of a policy: frames of one whole episode, in a file that a viewer opens. Not here: how good the policy is."""

import shutil
import subprocess

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line.cli import main
from sb3_simple_ddpg.experiment.video import record_episode, write_video
from tests.environments import Bandit


class Slide(gym.Env):
    """Five steps an episode; frame t shows a white column at 4 t."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's way

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == 5, False, {}

    def render(self):
        frame = np.zeros((31, 41, 3), np.uint8)
        frame[:, 4 * self.time : 4 * self.time + 4] = 255
        return frame


gym.register("TestSlide-v0", Slide)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film") / "run"
    arguments = ["--env", "tests.test_video:TestSlide-v0", "--timesteps", "10", "--eval-episodes", "0", "--no-progress"]
    small = ["--set", "policy_kwargs.net_arch=[4]", "buffer_size=100"]
    assert main(["train", *arguments, *small, "--normalize", "--out", str(folder)]) == 0
    return folder


def test_each_frame_of_one_episode_is_recorded_in_order_and_none_of_the_next():
    model = SimpleDDPG("MlpPolicy", Slide("rgb_array"), policy_kwargs={"net_arch": [4]}, buffer_size=10)
    frames, fps = record_episode(model)
    assert fps == 10
    assert [int(frame[0, :, 0].argmax()) for frame in frames] == [0, 4, 8, 12, 16]


def test_evaluate_writes_a_gif_that_shows_the_episode_and_loops(run, tmp_path, capsys):
    path = tmp_path / "film.gif"
    assert main(["evaluate", str(run), "--episodes", "1", "--video", str(path)]) == 0
    assert f"Wrote {path}, 5 timesteps" in capsys.readouterr().out
    with Image.open(path) as film:
        assert (film.n_frames, film.size, film.info["loop"], film.info["duration"]) == (5, (41, 31), 0, 100)
        film.seek(3)
        assert np.asarray(film.convert("L"))[10].argmax() == 12


def test_a_policy_that_is_kept_alone_gives_the_film_of_its_model(run, tmp_path):
    films = [tmp_path / "of_model.gif", tmp_path / "of_policy.gif"]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "config.json", alone)
    assert main(["export", str(run), "--to", str(alone / "policy.safetensors")]) == 0
    for folder, film in zip((run, alone), films, strict=True):
        assert main(["evaluate", str(folder), "--episodes", "1", "--video", str(film)]) == 0
    assert films[0].read_bytes() == films[1].read_bytes()


def test_evaluate_writes_an_mp4_of_even_size(run, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    assert main(["evaluate", str(run), "--episodes", "1", "--video", str(path)]) == 0
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (5, 0.5)
    described = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True)
    assert ", 40x30" in described.stderr  # 41x31, without the odd row and column
    capsys.readouterr()


def test_gif_of_a_large_fast_film_is_scaled_and_thinned(tmp_path):
    frames = [np.zeros((400, 480, 3), np.uint8) for _ in range(100)]
    for number, frame in enumerate(frames):
        frame[:, 4 * number : 4 * number + 40] = 255
    write_video(frames, tmp_path / "film.gif", fps=50)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (240, 200)
        assert (film.n_frames, film.info["duration"]) == (50, 40)  # every other one of 50 frames a second


@pytest.mark.parametrize("name", ["film.avi", "missing/film.gif"])
def test_film_that_cannot_be_written_is_refused_before_any_episode(run, tmp_path, name, capsys):
    assert main(["evaluate", str(run), "--video", str(tmp_path / name)]) != 0
    printed = capsys.readouterr()
    assert "Evaluation" not in printed.out
    assert name.rpartition("/")[2].split(".")[1] in printed.err


def test_environment_that_cannot_be_drawn_is_refused():
    model = SimpleDDPG("MlpPolicy", Bandit(), policy_kwargs={"net_arch": [4]}, buffer_size=10)
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        record_episode(model)


def test_run_of_an_environment_that_cannot_be_drawn_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--env", "tests.environments:TestBandit-v0", "--timesteps", "5", "--eval-episodes", "0"]
    assert (
        main(["train", *arguments, "--set", "policy_kwargs.net_arch=[4]", "--no-progress", "--out", str(folder)]) == 0
    )
    assert main(["evaluate", str(folder), "--episodes", "1", "--video", str(tmp_path / "film.gif")]) != 0
    printed = capsys.readouterr()
    assert "cannot be drawn" in printed.err
    assert "Evaluation" not in printed.out
    assert not (tmp_path / "film.gif").exists()


@pytest.mark.parametrize(("frames", "fps"), [([], 30.0), ([np.zeros((4, 4, 3), np.uint8)], 0.0)])
def test_no_frames_and_no_speed_are_refused(frames, fps, tmp_path):
    with pytest.raises(ValueError, match=r"at least one frame|fps must be above 0"):
        write_video(frames, tmp_path / "film.gif", fps)
