"""Lines 4 to 6 of Algorithm 1: act, and store what the environment answers. Each stored row is one step of one episode.

Not here: networks and updates (`simple_ddpg.py`), and how it is noticed that somebody else moved the environment
(`footprints.py`).

It does what SB3's `OffPolicyAlgorithm` does, and differs where SB3 stores a row that never was, or loses one:

- when a callback stops training, or raises, the row of that step is stored all the same;
- a copy of the model that is made in a callback holds the row of that step, and stores it when it learns on;
- when somebody else has stepped or reset the environment, its episodes start anew instead of being joined;
- what a vectorised environment hands out is kept as a copy, so that it may write into its arrays.
"""

import contextlib
from collections.abc import Iterator
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_simple_ddpg.checkpoint.buffer import cut_episodes
from sb3_simple_ddpg.sb3.agent import Agent
from sb3_simple_ddpg.sb3.footprints import Footprints
from sb3_simple_ddpg.sb3.vec_env import QuickDummyVecEnv

#: Vectorised environments that hand out copies, so that nobody needs to make another.
_GIVE_COPIES = (QuickDummyVecEnv, DummyVecEnv, SubprocVecEnv)


@dataclass
class Step:
    """One step of all environments, until it is stored. Callbacks may write into its arrays, as with SB3."""

    actions: npt.NDArray[Any]
    new_observations: Any
    rewards: npt.NDArray[Any]
    dones: npt.NDArray[Any]
    infos: list[dict[str, Any]]
    originals: "Originals | None" = None


@dataclass
class Originals:
    """What VecNormalize was given at a step. It keeps that of its newest step alone, and its statistics move."""

    kept: Any  # by VecNormalize, as long as nobody else has stepped it
    observations: Any
    rewards: npt.NDArray[Any]
    last_observations: dict[int, Any]  # of episodes that ended, by environment


class Collecting(Agent):
    """An SB3 algorithm that stores each step of its environment, and none that never was."""

    #: The step at which a callback has been called, or that a copy of the model was made at. The next call of `learn`
    #: stores it if nobody else does.
    _unstored: Step | None = None
    _footprints: Footprints

    def __getstate__(self) -> dict[str, Any]:
        """A copy is never in the middle of `learn`, whenever it is made."""
        return {name: value for name, value in vars(self).items() if name != "_boundary"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for name in ("_footprints", "_guard"):  # a shallow copy of the model learns for itself
            if name in state:
                setattr(self, name, copy(state[name]))
        buffer = getattr(self, "replay_buffer", None)
        if isinstance(buffer, HerReplayBuffer) and buffer.env is None and self.env is not None:
            buffer.set_env(self.env)  # SB3 leaves it out of every copy

    def _setup_model(self) -> None:
        super()._setup_model()
        self._footprints = Footprints()
        self._unstored = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.env is not None, "You must set the environment before calling learn()"
        self._store_step(self.replay_buffer, self.action_noise)
        if not reset_num_timesteps and self._last_obs is not None and not self._footprints.are_those_of(self.env):
            self._say_that_others_moved_it()
            self._last_obs = None  # so that SB3 resets
        resets = reset_num_timesteps or self._last_obs is None
        if resets:
            self._cut_episodes()
            self._footprints.about_to_move(self.env)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resets:
            self._begin_with(self.env, self._last_obs)
        return result

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: to learn on with
        :param force_reset: False: go on from the last observation of the one before
        """
        super().set_env(env, force_reset)
        self._footprints = Footprints()

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Lines 4 to 6 of Algorithm 1, `train_freq` times. Mirrors SB3 2.9.2, with the differences named above.

        :param env: the training environment
        :param callback: called at the beginning, at each step before it is stored, and at the end
        :param train_freq: how many steps or episodes
        :param replay_buffer: to store in
        :param action_noise: added to the actor's actions
        :param learning_starts: number of timesteps with random actions
        :param log_interval: number of episodes between two dumps of the log
        :return: how many steps and episodes it were, and whether the callback wants more
        """
        self._boundary = self.num_timesteps
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)
        # Callbacks read these names.
        num_collected_steps, num_collected_episodes = 0, 0
        assert isinstance(env, VecEnv), "You must pass a VecEnv"
        assert train_freq.frequency > 0, "Should at least collect one step or episode."
        if env.num_envs > 1:
            assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
        alone = type(callback) is ConvertCallback and callback.callback is None  # nobody else can move the environment

        callback.on_rollout_start()
        continue_training = True
        while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
            if self._last_obs is None:  # a callback has saved a checkpoint before the first step
                self._start_episodes()
            elif not alone and not self._footprints.are_those_of(env):
                self._start_anew_after_others(action_noise)
            actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
            try:
                new_obs, rewards, dones, infos = self._step_environment(env, actions, alone)
                self.num_timesteps += env.num_envs
                num_collected_steps += 1
                self._unstored = self._hold(buffer_actions, new_obs, rewards, dones, infos)
                callback.update_locals(locals())
                go_on = callback.on_step()
                num_collected_episodes += self._store_step(replay_buffer, action_noise, log_interval)
            except BaseException:
                if self._unstored is None:
                    self._last_obs = None  # nobody knows where the environment is: the next call of learn resets it
                with contextlib.suppress(Exception):  # the callback raised, and the step is over
                    self._store_step(replay_buffer, action_noise)
                raise
            if not go_on:
                return self._end_of_rollout(num_collected_steps * env.num_envs, num_collected_episodes, False)
        callback.on_rollout_end()
        return self._end_of_rollout(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)

    def _end_of_rollout(self, steps: int, episodes: int, continue_training: bool) -> RolloutReturn:
        self._boundary = self.num_timesteps
        return RolloutReturn(steps, episodes, continue_training)

    def _step_environment(
        self, env: VecEnv, actions: npt.NDArray[Any], alone: bool
    ) -> tuple[Any, npt.NDArray[Any], npt.NDArray[Any], list[dict[str, Any]]]:
        """Line 5 of Algorithm 1. What comes back is the model's own, and an array where SB3 has one."""
        footprints = self._footprints
        if not footprints.settled:
            footprints.about_to_move(env)
            alone = False
        new_obs, rewards, dones, infos = env.step(actions)
        if type(env) not in _GIVE_COPIES:
            new_obs, rewards, dones = _kept(new_obs), np.array(rewards), np.array(dones)
            infos = [dict(info) for info in infos]
            for index in np.flatnonzero(dones):
                if "terminal_observation" in infos[index]:
                    infos[index]["terminal_observation"] = _kept(infos[index]["terminal_observation"])
        if not alone:
            footprints.take(env, by_step=True, episode_begins=True in dones.tolist())
        return new_obs, rewards, dones, infos

    def _hold(
        self,
        actions: npt.NDArray[Any],
        new_obs: Any,  # noqa: ANN401 - of any space
        rewards: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> Step:
        step = Step(actions, new_obs, rewards, dones, infos)
        normalizer = self._vec_normalize_env
        if normalizer is not None:
            over = [i for i, done in enumerate(dones.tolist()) if done and "terminal_observation" in infos[i]]
            ends = {i: normalizer.unnormalize_obs(infos[i]["terminal_observation"]) for i in over}
            old = normalizer.old_obs
            step.originals = Originals(old, _kept(old), np.array(normalizer.old_reward), ends)
        return step

    def _store_step(
        self, replay_buffer: ReplayBuffer | None, action_noise: ActionNoise | None, log_interval: int | None = None
    ) -> int:
        """
        Line 6 of Algorithm 1, and all that SB3 does after a step.

        :return: number of episodes that ended with it
        """
        step, self._unstored = self._unstored, None
        if step is None:
            return 0
        assert replay_buffer is not None
        self._update_info_buffer(step.infos, step.dones)
        row = step.actions, step.new_observations, step.rewards, step.dones, step.infos
        if step.originals is None:
            self._store_transition(replay_buffer, *row)
        else:
            with self._original(step, step.originals):
                self._store_transition(replay_buffer, *row)
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._on_step()
        ended = 0
        for index, done in enumerate(step.dones.tolist()):
            if done:
                ended += 1
                self._episode_num += 1
                if action_noise is not None:
                    action_noise.reset(**({"indices": [index]} if self.n_envs > 1 else {}))
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
        return ended

    @contextlib.contextmanager
    def _original(self, step: Step, originals: Originals) -> Iterator[None]:
        """SB3 asks VecNormalize for what it was given, which is of another step when somebody has stepped it since."""
        normalizer = self._vec_normalize_env
        if normalizer is None:  # the environment has been replaced since
            yield
            return
        # A normalizer that was set since has no observation yet.
        now: tuple[Any, Any] = getattr(normalizer, "old_obs", None), normalizer.old_reward
        if now[0] is not originals.kept:
            for index, end in originals.last_observations.items():
                step.infos[index]["terminal_observation"] = normalizer.normalize_obs(end)
        normalizer.old_obs, normalizer.old_reward = originals.observations, originals.rewards
        try:
            yield
        finally:
            normalizer.old_obs, normalizer.old_reward = now

    # --- where the environment is ------------------------------------------------------------------------------

    def _start_anew_after_others(self, action_noise: ActionNoise | None) -> None:
        self._say_that_others_moved_it()
        self._cut_episodes()
        if action_noise is not None:
            action_noise.reset()
        self._start_episodes()

    def _start_episodes(self) -> None:
        """Reset all environments, in the middle of their episodes or not."""
        assert self.env is not None
        self._begin_with(self.env, self.env.reset())

    def _begin_with(self, env: VecEnv, observations: Any) -> None:  # noqa: ANN401 - of any space
        self._last_obs = _kept(observations)
        self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()
        self._footprints.take(env, by_step=False, episode_begins=True)

    def _leave_environment(self) -> None:
        """At the end of `learn`: who moves the environment from here on is somebody else."""
        self._boundary = None
        if self.env is not None and self._last_obs is not None and self._footprints.settled:
            self._footprints.take(self.env, by_step=True, episode_begins=True)

    def _say_that_others_moved_it(self) -> None:
        if not self._footprints.said:
            self._footprints.said = True
            self.logger.warn(
                "Somebody else has stepped or reset the training environment, as evaluating on it in a callback does: "
                "its episodes are cut off there and start anew. Evaluate on an environment of its own."
            )

    def _cut_episodes(self) -> None:
        """Before a reset: n-step returns, HER and rows that share observations must not join what is on either side."""
        buffer = self.replay_buffer
        if buffer is not None and (
            type(buffer) not in (ReplayBuffer, DictReplayBuffer) or buffer.optimize_memory_usage
        ):
            cut_episodes(buffer)


def _kept(observations: Any) -> Any:  # noqa: ANN401 - of any space
    """A copy: whoever gave it may write into its array."""
    if isinstance(observations, np.ndarray):
        return np.array(observations)
    return deepcopy(observations)
