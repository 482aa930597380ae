"""Every callback of SB3 during SimpleDDPG's training, and SB3's helpers: evaluate_policy, check_env, Monitor.

Not here: what the loggers write (`test_logging.py`).
"""

import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_simple_ddpg import SimpleDDPG
from tests.environments import Bandit, Chain
from tests.side_by_side import VECTOR, Dummy, assert_same_agent, settings, train_side_by_side


def model_of(env: Any, **changes: Any) -> SimpleDDPG:
    return SimpleDDPG("MlpPolicy", env, **settings(**changes))


def monitored(env: gym.Env[Any, Any]) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(env)])


class Counter(BaseCallback):
    """Notes each event, and the number of timesteps, updates and stored transitions at that moment; may say stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.seen: list[tuple[int, int, int]] = []

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.seen.append((self.num_timesteps, self.model._n_updates, self.model.replay_buffer.size()))
        return self.stop_at is None or self.num_timesteps < self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


# --- the order of events ---------------------------------------------------------------------------------------------


def test_events_come_in_sb3s_order_with_one_step_for_each_env_step():
    counters = [Counter(), Counter()]
    for algorithm, counter in zip((SimpleDDPG, DDPG), counters, strict=True):
        algorithm("MlpPolicy", Chain(), **settings(train_freq=4)).learn(24, callback=counter)
    ours, theirs = counters
    assert ours.events == theirs.events
    rollout = ["rollout_start", *["step"] * 4, "rollout_end"]
    assert ours.events == ["training_start", *rollout * 6, "training_end"]
    assert ours.n_calls == 24
    assert ours.seen == theirs.seen


def test_on_step_fires_before_its_transition_is_stored_and_before_the_update():
    counter = Counter()
    model_of(Chain(), learning_starts=2).learn(5, callback=counter)
    # (timesteps, updates, stored): the transition of this step is not in the buffer yet, its update not made yet.
    assert counter.seen == [(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 1, 3), (5, 2, 4)]


def test_callback_in_several_environments_is_called_once_for_all():
    counter = Counter()
    model = model_of(DummyVecEnv([Chain] * 3), learning_starts=6).learn(15, callback=counter)
    assert [timesteps for timesteps, _, _ in counter.seen] == [3, 6, 9, 12, 15]
    assert model._n_updates == 3  # after 9, 12, 15


@pytest.mark.parametrize("stop_at", [1, 10, 17])
def test_callback_that_says_stop_stops(stop_at):
    counter = Counter(stop_at)
    model = model_of(Chain()).learn(40, callback=counter)
    assert model.num_timesteps == stop_at
    assert model._n_updates == max(stop_at - 1 - 10, 0)  # the update that would have followed the last step is not made
    assert counter.events[-2:] == ["step", "training_end"]


def test_a_list_and_a_function_are_callbacks_and_one_stop_is_enough():
    first, last, calls = Counter(), Counter(), []

    def function(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        calls.append(locals_["self"].num_timesteps)
        return len(calls) < 13

    model = model_of(Chain()).learn(40, callback=[first, CallbackList([last]), Counter(stop_at=20)])
    assert model.num_timesteps == first.n_calls == last.n_calls == 20
    model = model_of(Chain()).learn(40, callback=function)
    assert model.num_timesteps == 13
    assert calls == list(range(1, 14))


# --- local variables -------------------------------------------------------------------------------------------------


class Reader(BaseCallback):
    """Keeps the local variables that SB3's callbacks and those of its users read by name."""

    NAMES = ("new_obs", "rewards", "dones", "infos", "env", "total_timesteps", "buffer_actions", "actions")

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.steps.append({name: self.locals[name] for name in self.NAMES})
        assert self.globals
        return True


def test_locals_hold_what_this_step_brought():
    reader = Reader()
    model = model_of(DummyVecEnv([Chain, Chain])).learn(12, callback=reader)
    buffer = model.replay_buffer
    assert len(reader.steps) == 6
    for index, step in enumerate(reader.steps):
        np.testing.assert_array_equal(step["buffer_actions"], buffer.actions[index])
        np.testing.assert_array_equal(step["rewards"], [1.0, 1.0])
        np.testing.assert_array_equal(step["dones"], [index % 3 == 2] * 2)  # episodes of three steps
        np.testing.assert_array_equal(step["new_obs"].argmax(axis=1), [(index + 1) % 3] * 2)
        assert step["env"] is model.get_env()
        assert step["total_timesteps"] == 12
        assert [sorted(info) for info in step["infos"]] == [
            ["TimeLimit.truncated", "terminal_observation"] if index % 3 == 2 else ["TimeLimit.truncated"]
        ] * 2


def test_locals_have_at_least_the_names_that_sb3s_ddpg_gives():
    names = []
    for algorithm in (DDPG, SimpleDDPG):

        class Names(BaseCallback):
            def _on_step(self) -> bool:
                names.append(set(self.locals))  # one list for both
                return False

        algorithm("MlpPolicy", Chain(), **settings()).learn(5, callback=Names())
    theirs, ours = names
    assert theirs <= ours


# --- settings changed while it trains --------------------------------------------------------------------------------


class Change(BaseCallback):
    """Sets attributes of the model at a timestep."""

    def __init__(self, at: int, **values: Any) -> None:
        super().__init__()
        self.at = at
        self.values = values

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            for name, value in self.values.items():
                setattr(self.model, name, value)
        return True


@pytest.mark.parametrize(
    "values",
    [
        {"tau": 1.0},
        {"gamma": 0.1},
        {"batch_size": 3},
        {"lr_schedule": lambda progress_remaining: 0.1},
        {"gradient_steps": 2},
        {"learning_starts": 25},
    ],
    ids=lambda values: next(iter(values)),
)
def test_setting_changed_by_a_callback_works_from_then_on_as_in_sb3(values):
    models = []
    unchanged, _ = train_side_by_side(lambda: Dummy(VECTOR))
    for algorithm in (SimpleDDPG, DDPG):
        model = algorithm("MlpPolicy", Dummy(VECTOR), **settings(action_noise=None))
        models.append(model.learn(30, callback=Change(20, **values)))
    # 9 updates, after steps 11 to 19, then the change; 11 calls of train follow, or 5 from step 26 on.
    n_updates = {"gradient_steps": 9 + 11 * 2, "learning_starts": 9 + 5}.get(next(iter(values)), 9 + 11)
    assert_same_agent(models[0], models[1], n_updates)
    assert not th.equal(models[0].critic_target.qf0[0].weight, unchanged.critic_target.qf0[0].weight)


# --- EvalCallback and the stop conditions ----------------------------------------------------------------------------


def test_eval_callback_keeps_the_best_model_and_writes_evaluations(tmp_path):
    callback = EvalCallback(
        monitored(Bandit()),
        eval_freq=10,
        n_eval_episodes=3,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = model_of(monitored(Bandit()), learning_rate=0.02).learn(60, callback=callback)
    assert model._n_updates == 50
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [10, 20, 30, 40, 50, 60]
    assert evaluations["results"].shape == (6, 3)
    assert evaluations["ep_lengths"].tolist() == [[1, 1, 1]] * 6  # episodes of one step
    means = evaluations["results"].mean(axis=1)
    assert callback.best_mean_reward == pytest.approx(means.max())
    assert callback.last_mean_reward == pytest.approx(means[-1])
    assert means.max() > means[0]  # it learned
    # The bandit pays 1 - |a - 2|: the file's action earns the best mean.
    best = SimpleDDPG.load(tmp_path / "best_model")
    action, _ = best.predict(np.zeros(1, np.float32))
    assert 1 - abs(float(action[0]) - 2.0) == pytest.approx(means.max())


def test_eval_callback_does_not_change_the_training():
    plain = model_of(monitored(Chain())).learn(30)
    callback = EvalCallback(monitored(Chain()), eval_freq=5, n_eval_episodes=2, verbose=0)
    evaluated = model_of(monitored(Chain())).learn(30, callback=callback)
    assert callback.last_mean_reward == 3.0  # three steps of reward 1
    assert_same_agent(evaluated, plain, n_updates=20)


def test_eval_callback_syncs_the_normaliser_of_the_evaluation_environment():
    train_env = VecNormalize(monitored(Chain()))
    eval_env = VecNormalize(monitored(Chain()), training=False, norm_reward=False)
    callback = EvalCallback(eval_env, eval_freq=30, n_eval_episodes=1, verbose=0)
    model_of(train_env).learn(30, callback=callback)
    np.testing.assert_array_equal(eval_env.obs_rms.mean, train_env.obs_rms.mean)
    assert eval_env.obs_rms.count > 30
    assert callback.last_mean_reward == 3.0  # raw rewards


@pytest.mark.parametrize(("threshold", "stops_at"), [(2.0, 10), (3.5, 40)])
def test_reward_threshold_stops_training(threshold, stops_at):
    stop = StopTrainingOnRewardThreshold(reward_threshold=threshold)
    callback = EvalCallback(monitored(Chain()), callback_on_new_best=stop, eval_freq=10, n_eval_episodes=1, verbose=0)
    model = model_of(monitored(Chain())).learn(40, callback=callback)
    assert model.num_timesteps == stops_at  # every episode earns 3


@pytest.mark.parametrize(("patience", "min_evals", "stops_at"), [(1, 0, 15), (2, 0, 20), (1, 3, 25)])
def test_no_improvement_stops_training(patience, min_evals, stops_at):
    # Each evaluation earns 3: only the first is a new best. More than `patience` without one are needed; evaluations
    # up to `min_evals` do not count: 1 + patience + 1 = 3rd, 4th; and min_evals + patience + 1 = 5th.
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=patience, min_evals=min_evals)
    callback = EvalCallback(monitored(Chain()), callback_after_eval=stop, eval_freq=5, n_eval_episodes=1, verbose=0)
    model = model_of(monitored(Chain())).learn(60, callback=callback)
    assert model.num_timesteps == stops_at


@pytest.mark.parametrize("n_envs", [1, 2])
def test_max_episodes_stop_training(n_envs):
    model = model_of(DummyVecEnv([Chain] * n_envs))
    model.learn(100, callback=StopTrainingOnMaxEpisodes(max_episodes=5))
    # 5 episodes of 3 steps in each environment.
    assert model.num_timesteps == 15 * n_envs
    assert model._n_updates > 0


# --- checkpoints, events, progress bar -------------------------------------------------------------------------------


def test_checkpoint_callback_saves_model_buffer_and_normaliser(tmp_path):
    env = VecNormalize(monitored(Chain()))
    callback = CheckpointCallback(
        10, str(tmp_path), name_prefix="agent", save_replay_buffer=True, save_vecnormalize=True
    )
    model = model_of(env).learn(30, callback=callback)
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"agent_{kind}{steps}_steps.{extension}"
        for steps in (10, 20, 30)
        for kind, extension in (("", "zip"), ("replay_buffer_", "pkl"), ("vecnormalize_", "pkl"))
    )
    normaliser = VecNormalize.load(str(tmp_path / "agent_vecnormalize_20_steps.pkl"), monitored(Chain()))
    loaded = SimpleDDPG.load(tmp_path / "agent_20_steps", env=normaliser)
    loaded.load_replay_buffer(tmp_path / "agent_replay_buffer_20_steps")
    # Saved inside the 20th step: 19 transitions are stored, 9 updates were made.
    assert (loaded.num_timesteps, loaded._n_updates, loaded.replay_buffer.size()) == (20, 9, 19)
    assert normaliser.obs_rms.count == pytest.approx(1e-4 + 1 + 20)  # the reset and 20 steps
    np.testing.assert_array_equal(loaded.replay_buffer.rewards[:19], model.replay_buffer.rewards[:19])
    loaded.learn(10, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._n_updates) == (30, 19)


def test_every_n_timesteps_fires_by_timesteps_not_by_calls():
    counter = Counter()
    model_of(DummyVecEnv([Chain] * 3)).learn(30, callback=EveryNTimesteps(n_steps=7, callback=counter))
    # Steps of 3 timesteps: 9 is the first with at least 7 more than 0, then 18, then 27.
    assert [timesteps for timesteps, _, _ in counter.seen] == [9, 18, 27]


def test_every_n_timesteps_passes_a_stop_on():
    model = model_of(Chain()).learn(40, callback=EveryNTimesteps(n_steps=8, callback=Counter(stop_at=16)))
    assert model.num_timesteps == 16


def test_log_every_n_timesteps_dumps_that_often():
    dumped = []

    class Log(Logger):
        def dump(self, step: int = 0) -> None:
            dumped.append((step, self.name_to_value["time/total_timesteps"]))
            super().dump(step)

    model = model_of(Chain())
    model.set_logger(Log(folder=None, output_formats=[]))
    model.learn(30, callback=LogEveryNTimesteps(n_steps=10), log_interval=None)
    assert dumped == [(10, 10), (20, 20), (30, 30)]


@pytest.mark.parametrize("by", ["argument", "callback"])
def test_progress_bar_reaches_its_end(by, capsys):
    model = model_of(DummyVecEnv([Chain] * 2))
    if by == "argument":
        model.learn(30, progress_bar=True)
        assert "30/30" in capsys.readouterr().out.replace(" ", "")
    else:
        callback = ProgressBarCallback()
        model.learn(30, callback=callback)
        assert (callback.pbar.n, callback.pbar.total) == (30, 30)
    assert model._n_updates == 10  # after 12, 14, ... 30


# --- helpers ---------------------------------------------------------------------------------------------------------


def test_evaluate_policy_gives_the_known_returns():
    model = model_of(Monitor(Bandit()))
    th.nn.init.zeros_(model.actor.mu[-2].weight)
    th.nn.init.zeros_(model.actor.mu[-2].bias)
    # tanh(0) = 0 is the middle of [-1, 3], 1; the best is 2: reward 1 - |1 - 2| = 0, with or without "deterministic".
    assert evaluate_policy(model, Monitor(Bandit()), n_eval_episodes=4) == (0.0, 0.0)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=4, deterministic=False) == (0.0, 0.0)
    easier = Monitor(Bandit(best=1.0))
    returns_and_lengths = evaluate_policy(model, easier, n_eval_episodes=3, return_episode_rewards=True)
    assert returns_and_lengths == ([1.0] * 3, [1] * 3)
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(model, Monitor(Bandit()), n_eval_episodes=2, reward_threshold=0.5)


def test_evaluate_policy_takes_the_policy_alone_and_many_environments():
    model = model_of(DummyVecEnv([Chain] * 2))
    env = DummyVecEnv([lambda: Monitor(Chain())] * 4)
    for predictor in (model, model.policy, model.actor):
        assert evaluate_policy(predictor, env, n_eval_episodes=8) == (3.0, 0.0)


def test_identity_task_is_learned_in_400_steps_without_noise():
    env = DummyVecEnv([lambda: Monitor(IdentityEnvBox(eps=0.5))])
    # SB3's own trial of every algorithm: 100 steps an episode, 1 for an answer within 0.5. A random answer earns 44:
    # |x - y| < 1/2 for two uniform numbers of [-1, 1] has probability 7/16.
    model = SimpleDDPG("MlpPolicy", env, action_noise=None, seed=0, policy_kwargs={"net_arch": [64, 64]})
    model.learn(400)
    assert model._n_updates == 300
    mean, _ = evaluate_policy(model, env, n_eval_episodes=10)
    assert mean >= 90


def test_environment_that_check_env_accepts_is_accepted_here():
    class Plain(Dummy):
        """Symmetric actions in [-1, 1] and a vector: nothing for check_env to warn of."""

    check_env(Plain(VECTOR))  # warnings are errors here
    assert model_of(Plain(VECTOR)).learn(20)._n_updates == 10


@pytest.mark.parametrize(
    "space", [spaces.Box(0.0, 2.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float64)], ids=["range", "dtype"]
)
def test_environment_that_check_env_only_warns_of_trains_without_a_warning(space):
    with pytest.warns(UserWarning, match="action space"):
        check_env(Dummy(VECTOR, space))
    assert model_of(Dummy(VECTOR, space)).learn(20)._n_updates == 10


def test_monitor_writes_one_line_an_episode(tmp_path):
    env = Monitor(Chain(), str(tmp_path / "chain"), info_keywords=())
    model = model_of(env).learn(30)
    env.close()
    results = load_results(str(tmp_path))
    assert results["r"].tolist() == [3.0] * 10
    assert results["l"].tolist() == [3] * 10
    assert env.get_total_steps() == 30
    assert env.get_episode_rewards() == [info["r"] for info in model.ep_info_buffer]


def test_monitor_is_added_once():
    model = model_of(Chain())
    inner = model.get_env().envs[0]
    assert isinstance(inner, Monitor)
    assert isinstance(inner.env, Chain)
    wrapped = Monitor(Chain())
    assert model_of(wrapped).get_env().envs[0] is wrapped


@pytest.mark.parametrize("window", [4, 100])
def test_statistics_are_kept_for_the_newest_episodes(window):
    model = model_of(Chain(), stats_window_size=window).learn(30)
    assert len(model.ep_info_buffer) == min(window, 10)
