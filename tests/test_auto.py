"""`compile_updates="auto"`: when updates are compiled without being asked for. Not here: what they give."""

import warnings
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.checkpoint.folder import ExactCheckpointCallback
from sb3_simple_ddpg.speed import auto
from tests.environments import Bandit

TINY = {"net_arch": [8]}


class Asked(BaseCallback):
    """What is decided at the start of `learn`."""

    def _on_training_start(self) -> None:
        self.ahead = auto.updates_ahead(self.model)
        self.decided, self.sentence = auto.decide(self.model)

    def _on_step(self) -> bool:
        return True


def make(n_envs: int = 1, **changes: Any) -> SimpleDDPG:
    settings = {"learning_starts": 20, "buffer_size": 200, "batch_size": 64, "policy_kwargs": TINY, "seed": 0}
    return SimpleDDPG("MlpPolicy", DummyVecEnv([Bandit] * n_envs), **{**settings, **changes})


@pytest.fixture
def cheap_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pays from 72 updates of these networks on: each saves 0.7 ms and more."""
    monkeypatch.setattr(auto, "COST", 0.05)


@pytest.mark.parametrize(
    ("settings", "n_envs", "expected"),
    [
        ({}, 1, 100),  # after timesteps 21 to 120
        ({"train_freq": 4, "gradient_steps": 2}, 1, 50),  # after 24, 28, ... 120: two each
        ({"train_freq": 5}, 2, 10),  # after 30, 40, ... 120
        ({"train_freq": 5, "gradient_steps": -1}, 2, 100),  # as many as timesteps
        ({"learning_starts": 0}, 1, 120),
        ({"learning_starts": 500}, 1, 0),
        ({"train_freq": (1, "episode")}, 1, 0),  # how many episodes there will be, nobody knows
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, 1, 100),
    ],
)
def test_updates_ahead_are_those_that_are_made(settings: dict[str, Any], n_envs: int, expected: int):
    asked = Asked()
    model = make(n_envs, **settings).learn(120, asked)
    assert asked.ahead == expected
    if expected:
        assert model._n_updates == expected


def test_the_networks_of_the_paper_are_compiled_for_twenty_thousand_timesteps_and_small_ones_are_not():
    """Of [400, 300] an update saves about 2.2 ms, 44 s in all; of [64, 64] 0.8 ms, 15 s: less than compiling takes."""
    for net_arch, timesteps, expected in (
        ([400, 300], 20_000, True),
        ([400, 300], 5_000, False),
        ([64, 64], 20_000, False),
        ([64, 64], 100_000, True),
    ):
        model = SimpleDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": net_arch}, buffer_size=100)
        model._total_timesteps = timesteps
        model._convert_train_freq()
        decided, sentence = auto.decide(model)
        assert decided is expected
        assert ("seconds the first time" in sentence) is expected


@pytest.mark.usefixtures("cheap_compiler", "recorded_or_compiled")
def test_a_long_training_is_compiled_and_says_so_once(compiled_calls: list[str], capsys: pytest.CaptureFixture[str]):
    make(verbose=1, learning_starts=0).learn(100)
    assert len(compiled_calls) > 90  # all but the first, which makes the optimizers' states
    assert capsys.readouterr().out.count("compile_updates='auto'") == 1


@pytest.mark.usefixtures("cheap_compiler", "recorded_or_compiled")
@pytest.mark.parametrize(
    ("settings", "timesteps"),
    [({"compile_updates": False}, 100), ({}, 60), ({}, 30)],
)
def test_what_is_short_or_not_wanted_is_not_compiled(
    settings: dict[str, Any], timesteps: int, compiled_calls: list[str], capsys: pytest.CaptureFixture[str]
):
    model = make(verbose=1, **settings).learn(timesteps)
    model.train(3, 64)  # by hand
    assert not compiled_calls
    assert "compile" not in capsys.readouterr().out


@pytest.mark.usefixtures("cheap_compiler", "recorded_or_compiled")
def test_without_a_compiler_the_plain_path_goes_on_and_the_log_says_what_is_missed(
    compiled_calls: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    make(verbose=1, learning_starts=0).learn(100)
    assert not compiled_calls
    assert "No C++ compiler (g++) is there" in capsys.readouterr().out


@pytest.mark.usefixtures("cheap_compiler")
def test_what_cannot_be_compiled_is_said_in_the_log_alone(capsys: pytest.CaptureFixture[str]):
    """Nobody has asked for it, so nobody is warned."""
    model = make(verbose=1, learning_starts=0)
    model._gradient_step = model._gradient_step  # somebody's own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(100)
    assert model._n_updates == 100
    said = capsys.readouterr().out
    assert said.count("Updates are not compiled, the plain path goes on: SimpleDDPG._gradient_step is not") == 1


@pytest.mark.usefixtures("cheap_compiler", "recorded_or_compiled")
def test_a_training_that_goes_on_stays_with_what_it_began_with(compiled_calls: list[str], tmp_path):
    model = make(learning_starts=0).learn(100, ExactCheckpointCallback(tmp_path / "run", 50))
    resumed = SimpleDDPG.resume(tmp_path / "run" / "step_50", DummyVecEnv([Bandit]))
    compiled_calls.clear()
    resumed.learn(50, reset_num_timesteps=False)  # short, and yet compiled
    assert len(compiled_calls) == 50
    for mine, other in zip(resumed.policy.parameters(), model.policy.parameters(), strict=True):
        assert mine.equal(other)
    compiled_calls.clear()
    resumed.learn(30)  # another training
    assert not compiled_calls


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="compile_updates must be True, False or 'auto', got 'yes'"):
        make(compile_updates="yes")
