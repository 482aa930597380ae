"""What SimpleDDPG writes: TensorBoard events read back, CSV, JSON, the console, and SB3's results_plotter.

Not here: callbacks (`test_callbacks.py`), though two of them write to the same loggers.
"""

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from stable_baselines3 import DDPG
from stable_baselines3.common import results_plotter
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.noise import NormalActionNoise
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_simple_ddpg import SimpleDDPG
from tests.environments import Chain
from tests.side_by_side import settings

# What SB3's DDPG writes, and what is added here.
SB3_TAGS = {
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "time/fps",
    "train/actor_loss",
    "train/critic_loss",
    "train/learning_rate",
}
OUR_TAGS = {"train/q_mean", "train/target_q_mean", "train/action_saturation", "train/noise_scale"}


def model_of(env: Any = None, **changes: Any) -> SimpleDDPG:
    return SimpleDDPG("MlpPolicy", env or Chain(), **settings(**changes))


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Each tag of the run in this folder with its (timestep, value) pairs."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


class RecordingLogger(Logger):
    """Keeps what stood in the log at each dump, and writes nowhere."""

    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self.dumps: list[dict[str, Any]] = []

    def dump(self, step: int = 0) -> None:
        self.dumps.append({**self.name_to_value, "step": step})
        super().dump(step)


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_holds_sb3s_tags_and_the_known_values(tmp_path):
    model = model_of(tensorboard_log=str(tmp_path)).learn(24)
    assert os.listdir(tmp_path) == ["SimpleDDPG_1"]
    events = read_events(tmp_path / "SimpleDDPG_1")
    assert model._n_updates == 14
    assert events.keys() >= SB3_TAGS | OUR_TAGS
    assert "train/n_updates" not in events  # as in SB3: the timestep is TensorBoard's axis
    # Episodes of 3 steps with reward 1 each, a dump every 4 episodes: timesteps 12 and 24.
    assert events["rollout/ep_rew_mean"] == [(12, 3.0), (24, 3.0)]
    assert events["rollout/ep_len_mean"] == [(12, 3.0), (24, 3.0)]
    assert events["train/learning_rate"] == [(12, pytest.approx(1e-3)), (24, pytest.approx(1e-3))]
    assert events["train/noise_scale"] == [(12, pytest.approx(0.1)), (24, pytest.approx(0.1))]
    for tag, points in events.items():
        assert [step for step, _ in points] == [12, 24], tag
        assert np.isfinite([value for _, value in points]).all(), tag
    assert all(value > 0 for _, value in events["time/fps"] + events["train/critic_loss"])


def test_tensorboard_tags_and_losses_are_those_of_sb3s_ddpg(tmp_path):
    noise = {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))}
    for algorithm in (SimpleDDPG, DDPG):
        algorithm("MlpPolicy", Chain(), **settings(tensorboard_log=str(tmp_path), **noise)).learn(24)
    ours, theirs = read_events(tmp_path / "SimpleDDPG_1"), read_events(tmp_path / "DDPG_1")
    assert theirs.keys() == SB3_TAGS
    assert ours.keys() >= SB3_TAGS | OUR_TAGS
    for tag in SB3_TAGS - {"time/fps"}:
        np.testing.assert_allclose(ours[tag], theirs[tag], rtol=0, atol=1e-5, err_msg=tag)


def test_each_run_has_a_folder_and_learning_on_stays_in_it(tmp_path):
    model = model_of(tensorboard_log=str(tmp_path))
    model.learn(12)
    model.learn(12)
    model.learn(12, reset_num_timesteps=False)
    model.learn(12, tb_log_name="other")
    assert sorted(os.listdir(tmp_path)) == ["SimpleDDPG_1", "SimpleDDPG_2", "other_1"]
    steps = [step for step, _ in read_events(tmp_path / "SimpleDDPG_2")["rollout/ep_rew_mean"]]
    assert steps == [12, 24]


def test_callbacks_write_to_tensorboard(tmp_path):
    class Record(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("mine/timesteps", 2 * self.num_timesteps)
            return True

    evaluation = EvalCallback(Monitor(Chain()), eval_freq=10, n_eval_episodes=1, verbose=0)
    model_of(tensorboard_log=str(tmp_path)).learn(24, callback=[Record(), evaluation])
    events = read_events(tmp_path / "SimpleDDPG_1")
    assert events["eval/mean_reward"] == [(10, 3.0), (20, 3.0)]
    assert events["mine/timesteps"] == [(10, 20.0), (12, 24.0), (20, 40.0), (24, 48.0)]


# --- CSV, JSON, console, loggers of the user's -----------------------------------------------------------------------


def test_csv_and_json_hold_the_same_known_numbers(tmp_path):
    model = model_of(gradient_steps=2)
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(24)
    model.logger.close()
    table = pd.read_csv(tmp_path / "progress.csv")
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert table["time/total_timesteps"].tolist() == [12, 24]
    assert table["time/episodes"].tolist() == [4, 8]
    assert table["rollout/ep_rew_mean"].tolist() == [3.0, 3.0]
    # Dumped before the update of its own step: after step 11, and after steps 11 to 23; two gradient steps each.
    assert table["train/n_updates"].tolist() == [2, 26]
    assert set(table) >= SB3_TAGS | OUR_TAGS | {"time/time_elapsed"}
    for tag in table:
        assert table[tag].tolist() == pytest.approx([line[tag] for line in lines]), tag


@pytest.mark.parametrize(("log_interval", "timesteps"), [(1, range(3, 25, 3)), (4, [12, 24]), (5, [15]), (None, [])])
def test_log_interval_counts_episodes(log_interval, timesteps):
    model, logger = model_of(), RecordingLogger()
    model.set_logger(logger)
    model.learn(24, log_interval=log_interval)
    assert [dump["step"] for dump in logger.dumps] == list(timesteps)
    assert model.logger is logger  # learn keeps a logger of the user's


def test_train_records_and_does_not_dump():
    model, logger = model_of(gradient_steps=0).learn(20), RecordingLogger()
    model.set_logger(logger)
    model.train(gradient_steps=3, batch_size=8)
    assert logger.dumps == []
    assert logger.name_to_value["train/n_updates"] == 3
    assert logger.name_to_value.keys() >= {tag for tag in SB3_TAGS | OUR_TAGS if tag.startswith("train/")}


def test_logged_losses_are_means_over_the_gradient_steps(monkeypatch):
    import sb3_simple_ddpg.simple_ddpg as module

    losses: dict[str, list[float]] = {"critic_loss": [], "actor_loss": []}

    def spied(name: str) -> Any:
        equation = getattr(module, name)

        def spy(*tensors: Any) -> Any:
            loss = equation(*tensors)
            losses[name].append(loss.item())
            return loss

        return spy

    model = model_of(gradient_steps=0).learn(20)
    for name in losses:
        monkeypatch.setattr(module, name, spied(name))
    model.train(gradient_steps=4, batch_size=8)
    for name, values in losses.items():
        assert len(values) == 4
        assert model.logger.name_to_value[f"train/{name}"] == pytest.approx(sum(values) / 4, rel=1e-5)


def test_console_is_silent_unless_asked(capsys):
    model_of().learn(24)
    assert capsys.readouterr().out == ""
    model_of(verbose=1).learn(24)
    out = capsys.readouterr().out
    assert "Using cpu device" in out
    assert out.count("ep_rew_mean") == 2  # one table every four episodes
    assert out.count("critic_loss") == 2


def test_learning_rate_of_the_log_follows_its_schedule():
    model, logger = model_of(learning_rate=lambda progress_remaining: progress_remaining), RecordingLogger()
    model.set_logger(logger)
    model.learn(24, log_interval=2)
    # Dumps at 6, 12, 18, 24; the newest update was one step before: 1 - 11/24, 1 - 17/24, 1 - 23/24.
    rates = [dump["train/learning_rate"] for dump in logger.dumps if "train/learning_rate" in dump]
    assert rates == pytest.approx([13 / 24, 7 / 24, 1 / 24])


# --- results_plotter -------------------------------------------------------------------------------------------------


@pytest.fixture
def monitored_run(tmp_path: Path) -> Path:
    env = Monitor(Chain(), str(tmp_path))
    model_of(env).learn(30)
    env.close()
    return tmp_path


def test_results_plotter_reads_the_returns(monitored_run):
    results = load_results(str(monitored_run))
    x, y = results_plotter.ts2xy(results, results_plotter.X_TIMESTEPS)
    assert x.tolist() == list(range(3, 31, 3))  # ten episodes of three steps
    assert y.tolist() == [3.0] * 10
    x, _ = results_plotter.ts2xy(results, results_plotter.X_EPISODES)
    assert x.tolist() == list(range(10))


@pytest.mark.parametrize("axis", results_plotter.POSSIBLE_X_AXES)
def test_results_plotter_draws_one_point_an_episode(monitored_run, axis):
    results_plotter.plot_results([str(monitored_run)], 21, axis, "Chain")
    figure = plt.gcf()
    axes = figure.axes[0]
    assert axes.get_title() == "Chain"
    assert axes.get_xlabel() == axis
    # Up to timestep 21: seven episodes.
    np.testing.assert_array_equal(axes.collections[0].get_offsets()[:, 1], [3.0] * 7)
    plt.close(figure)
