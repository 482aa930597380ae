"""SimpleDDPG: Deep Deterministic Policy Gradient inside Stable-Baselines3 (SB3). The update is `SimpleDDPG._update`.

Not here: the equations (`equations.py`), the networks (`policies.py`), the noise (`exploration.py`), the collecting of
experience (`sb3/collecting.py`: lines 4 to 6 of Algorithm 1).

Algorithm 1, Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, in the numbering that README.md prints.
"""

import io
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    ReplayBufferSamples,
    RolloutReturn,
    Schedule,
    TensorDict,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_simple_ddpg.checkpoint import folder_lock
from sb3_simple_ddpg.checkpoint.buffer import cut_episodes
from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target
from sb3_simple_ddpg.exploration import GaussianNoise, NoiseSetting, drawn, make_action_noise, noise_scale
from sb3_simple_ddpg.policies import Actor, CnnPolicy, Critic, DDPGPolicy, MlpPolicy, MultiInputPolicy, only
from sb3_simple_ddpg.safety import checks
from sb3_simple_ddpg.safety.environments import watched_environments
from sb3_simple_ddpg.safety.numbers import NonFiniteGuard, Update
from sb3_simple_ddpg.safety.origins import environments_of, origin_of
from sb3_simple_ddpg.sb3.collecting import Collecting
from sb3_simple_ddpg.sb3.vec_env import QuickDummyVecEnv, watched
from sb3_simple_ddpg.speed.layers import FastGradients
from sb3_simple_ddpg.speed.networks import Networks
from sb3_simple_ddpg.speed.optimizers import forget_gradients, with_those_held
from sb3_simple_ddpg.speed.sampling import sample_batches

if TYPE_CHECKING:
    from stable_baselines3 import DDPG

    from sb3_simple_ddpg.checkpoint.folder import Resumed
    from sb3_simple_ddpg.diagnosis.diagnosis import Finding
    from sb3_simple_ddpg.speed.compiled import CompiledUpdates

SelfSimpleDDPG = TypeVar("SelfSimpleDDPG", bound="SimpleDDPG")


class SimpleDDPG(Collecting):
    """
    Deep Deterministic Policy Gradient (DDPG), in its plainest form.

    The arguments up to `_init_setup_model` are SB3's, in its order, with its defaults. One default differs:
    `action_noise` is 0.1, SB3's is None, which stops exploring after the random steps.

    :param policy: "MlpPolicy", "CnnPolicy" (images), "MultiInputPolicy" (Dict observations) or a DDPGPolicy class;
        SB3's classes of these names are taken for ours
    :param env: the environment, or the name of a registered one
    :param learning_rate: of both networks; a number or a function of the progress remaining (1 to 0)
    :param buffer_size: number of transitions that the replay buffer keeps
    :param learning_starts: number of timesteps with uniformly random actions before learning starts; 0 or -1 for none
    :param batch_size: B, number of transitions in each gradient step
    :param tau: share of the main network in each soft update, in [0, 1]; the article's 0.999 is 0.001 here
    :param gamma: discount factor, in [0, 1]
    :param train_freq: timesteps between two calls of `train`; or (n, "step"), (n, "episode")
    :param gradient_steps: gradient steps in each call of `train`; -1: as many as timesteps were collected
    :param action_noise: standard deviation of Gaussian noise, where 1.0 is half the width of the action range, so 0.1
        is the same push in every environment; or a function of the progress remaining; `OrnsteinUhlenbeck(...)`; any
        SB3 `ActionNoise`; None for no noise
    :param replay_buffer_class: None: chosen by the observation space and `n_steps`
    :param replay_buffer_kwargs: arguments of the replay buffer
    :param optimize_memory_usage: store each observation once (SB3's memory-efficient variant)
    :param n_steps: length of n-step returns; 1 is the paper's
    :param tensorboard_log: folder for TensorBoard, None for none
    :param policy_kwargs: arguments of the policy, see `DDPGPolicy`
    :param verbose: 0 silent, 1 information and advice, 2 debug
    :param seed: of Python, NumPy, PyTorch, the environment and its action space
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: build networks and buffer now
    :param critic_learning_rate: of the critic, where it differs from `learning_rate`; a number or a schedule
    :param max_grad_norm: largest norm of each network's gradient; None: no limit
    :param stats_window_size: number of episodes in the logged means
    :param compile_updates: run the update as compiled code, about twice as fast for small networks; compiling takes 10
        to 30 seconds the first time and needs a C++ compiler (g++). It is compared with the plain update first; where
        it cannot be compiled, or gives other numbers, a `checks.CompileWarning` says why and the plain path goes on
    :param on_non_finite: "stop": the first NaN or infinity in an observation, reward, action, loss or gradient raises
        FloatingPointError, with the weights as they were before that call of `train`; "skip": a batch that gives one
        changes nothing, a transition that holds one is not stored, and the log counts them (`train/n_skipped`,
        `rollout/n_skipped`)
    :raises ValueError: for a value, space or combination that cannot work, with the cure
    :raises TypeError: for an argument of the wrong type, or of another algorithm, with the algorithm that has it
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DDPGPolicy
    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    #: What the log of the next `learn` says first, once.
    _untold: Sequence[str] = ()
    #: Until the environments' next reset, after which they are looked at: what `resume` did, and the newest checkpoint.
    _resumed: "Resumed | None" = None
    _saved: Path | None = None
    _said: frozenset[str] = frozenset()  # of what a checkpoint does not hold, in this process
    _last_end: tuple[int, int] = (0, 0)  # number of ended episodes, and the timestep at which it was first seen

    @checks.explain_foreign_arguments
    def __init__(
        self,
        policy: str | type[DDPGPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: NoiseSetting = 0.1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        critic_learning_rate: float | Schedule | None = None,
        max_grad_norm: float | None = None,
        stats_window_size: int = 100,
        compile_updates: bool = False,
        on_non_finite: str = "stop",
    ) -> None:
        checks.check_device(device)
        if env is None and _init_setup_model:
            raise TypeError("env must be an environment or the name of one, got None.")
        try:
            super().__init__(
                checks.check_policy(policy),
                env,
                learning_rate,
                buffer_size,
                learning_starts,
                batch_size,
                tau,
                gamma,
                train_freq,
                gradient_steps,
                action_noise,  # type: ignore[arg-type]  # the setter turns it into what SB3 expects
                replay_buffer_class,
                # SB3 writes into both dicts; the caller's stay as they are.
                dict(replay_buffer_kwargs or {}),
                optimize_memory_usage,
                n_steps,
                dict(policy_kwargs or {}),
                stats_window_size,
                tensorboard_log,
                verbose,
                device,
                support_multi_env=True,
                seed=seed,
                sde_support=False,
            )
        except gym.error.Error as error:
            raise ValueError(
                f"The environment {env!r} cannot be made: {error} "
                "Choose a name from gymnasium.registry, or import the package that registers it."
            ) from error
        self.critic_learning_rate = critic_learning_rate
        self.max_grad_norm = max_grad_norm
        self.compile_updates = compile_updates
        self.on_non_finite = on_non_finite
        if _init_setup_model:
            self._setup_model()
            checks.check_train_freq(self._train_freq, self.n_envs)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"Policy {policy_name} unknown: choose from {', '.join(self.policy_aliases)}. "
                "For recurrent policies use sb3_contrib.RecurrentPPO."
            )
        return super()._get_policy_from_name(policy_name)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        given_space = getattr(env, "observation_space", None)
        if isinstance(given_space, gym.spaces.Space):  # one of the old `gym` is converted first
            checks.check_observation_space(given_space)
        vec_env = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        checks.check_observation_space(vec_env.observation_space)
        checks.check_action_space(vec_env.action_space)
        checks.check_wrappers(vec_env)
        return vec_env if isinstance(env, VecEnv) else QuickDummyVecEnv.instead_of(vec_env)

    def _setup_model(self) -> None:
        # `load` comes here too, with values that an earlier call has already converted.
        checks.plain_settings(self)
        checks.check_hyperparameters(self)
        if not issubclass(self.policy_class, DDPGPolicy):
            raise ValueError(
                f"The policy must be {', '.join(self.policy_aliases)} or a sb3_simple_ddpg.DDPGPolicy, got "
                f"{self.policy_class}: for a model of SB3's DDPG use SimpleDDPG.from_sb3; TD3, SAC and others go "
                "on with the class that saved them."
            )
        checks.check_extractor(
            self.policy_kwargs.get("features_extractor_class") or self.policy_class.default_features_extractor_class,
            self.observation_space,
            self.policy_kwargs.get("normalize_images", True),
        )
        self.action_noise = self.action_noise  # through the setter, for the environments of now
        # SB3 writes the buffer that it chooses back into these two, and warns when it finds it there after `load`.
        given_class, given_kwargs = self.replay_buffer_class, self.replay_buffer_kwargs
        self.replay_buffer_kwargs = dict(given_kwargs)
        super()._setup_model()
        self.replay_buffer_class, self.replay_buffer_kwargs = given_class, given_kwargs

        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        if self.critic_lr_schedule is not None:  # SB3's policies are built with one rate
            self.critic.optimizer.defaults["lr"] = self.critic_lr_schedule(1)
            update_learning_rate(self.critic.optimizer, self.critic_lr_schedule(1))
        self._networks = Networks()
        self._compiled: CompiledUpdates | None = None
        self._guard = NonFiniteGuard()
        if not hasattr(self, "_logger"):
            self._logger = Logger(folder=None, output_formats=[])  # `train` may be called before `learn`

    @property
    def action_noise(self) -> ActionNoise | None:
        """The noise. Whatever the constructor takes may be set at any time; it is used from the next rollout on."""
        noise: ActionNoise | None = vars(self).get("action_noise")
        return noise

    @action_noise.setter
    def action_noise(self, setting: NoiseSetting) -> None:
        # `load` makes models without spaces, and writes past the setter; `_setup_model` comes here again.
        space = vars(self).get("action_space")
        noise = setting if space is None else make_action_noise(setting, space.shape, self.n_envs)
        if isinstance(noise, GaussianNoise):
            noise.update(self._current_progress_remaining)
        vars(self)["action_noise"] = noise  # under its own name, where SB3's `save` and `load` look for it

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        rate = self.critic_learning_rate
        self.critic_lr_schedule = None if rate is None else FloatSchedule(rate)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Lines 7 to 11 of Algorithm 1, once for each gradient step.

        :param gradient_steps: how often
        :param batch_size: B, number of transitions in each batch; `learn` gives the constructor's, 100 is SB3's default
        :raises ValueError: when the replay buffer is empty
        :raises FloatingPointError: when a loss or gradient is not finite; the weights are then as before
        """
        self._prepare_updates()
        choose = self._compiled_updates() if self.compile_updates else self._plain_update
        statistics: list[th.Tensor] = []
        # Line 7, for each gradient step: sample a random batch of B transitions (s, a, r, s', d).
        batches = sample_batches(self.replay_buffer, gradient_steps, batch_size, self._vec_normalize_env)
        with FastGradients():
            for batch, update in self._guard.watched(self, batches, gradient_steps, choose, statistics):
                statistics.append(update(batch))  # lines 8 to 11: `_update`, or the same as compiled code
        self._log_updates(statistics)

    def _update(self, batch: ReplayBufferSamples) -> th.Tensor:
        """
        Lines 8 to 11 of Algorithm 1: one gradient step of the critic, one of the actor, and the target networks follow.

        :param batch: B transitions (s, a, r, s', d); `batch.dones` is d, 0 where a time limit cut the episode off
        :return: what is logged of it
        """
        weights = self._networks.weights

        # Lines 8-9: fit the critic Q(s, a) to the target y.
        discounts = self.gamma if batch.discounts is None else batch.discounts
        with th.no_grad():
            next_actions = self.actor_target(batch.next_observations)
            next_q_values = only(self.critic_target(batch.next_observations, next_actions))
            targets = td_target(batch.rewards, batch.dones, discounts, next_q_values)
        q_values = only(self.critic(batch.observations, batch.actions))
        loss_q = critic_loss(q_values, targets)
        self._gradient_step(self.critic.optimizer, loss_q, weights["critic"])

        # Line 10: the actor learns: mu(s) moves to where Q(s, mu(s)) is larger. The critic's weights stay.
        actions = self.actor(batch.observations)
        loss_mu = actor_loss(self.critic.q1_forward(batch.observations, actions))
        self._gradient_step(self.actor.optimizer, loss_mu, weights["actor"])

        # Line 11: both target networks move a share tau of the way. Running statistics of batch norm are copied.
        soft_update(weights["critic"], weights["critic_target"], self.tau)
        soft_update(weights["actor"], weights["actor_target"], self.tau)
        soft_update(self._networks.statistics, self._networks.statistics_of_targets, 1.0)
        return _statistics(loss_q, loss_mu, q_values, targets, actions)

    def _plain_update(self, _batch: ReplayBufferSamples) -> Update:
        """What every batch gets where nothing is compiled: `_update`, with the networks of now listed."""
        self._networks.look(self)
        return self._update

    def _compiled_updates(self) -> Callable[[ReplayBufferSamples], Update]:
        if self._compiled is None:  # made at the first update: importing the compiler takes a second
            from sb3_simple_ddpg.speed.compiled import CompiledUpdates

            self._compiled = CompiledUpdates()
        return partial(self._compiled.choose, self)

    def _prepare_updates(self) -> None:
        """Training mode, current learning rates; the n-step buffer gets this gamma."""
        assert self.replay_buffer is not None
        if self.replay_buffer.size() == 0:
            raise ValueError("The replay buffer is empty: call learn(), or load_replay_buffer(), before train().")
        if isinstance(self.replay_buffer, NStepReplayBuffer):
            self.replay_buffer.gamma = self.gamma  # it discounts with a copy of its own
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        if self.critic_lr_schedule is not None:
            rate = self.critic_lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.critic.optimizer, rate)
            self.logger.record("train/critic_learning_rate", rate)

    def _gradient_step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, weights: list[th.Tensor]) -> None:
        """
        What `zero_grad(), loss.backward(), optimizer.step()` do, for these weights and what else the optimizer holds.
        So the critic gets no gradient when the actor learns, as with the article's `tape.gradient(loss, weights)`.
        Frozen weights have none.
        """
        forget_gradients(optimizer)
        learning = [weight for weight in with_those_held(weights, optimizer) if weight.requires_grad]
        if learning and loss.requires_grad:
            loss.backward(inputs=learning)  # type: ignore[no-untyped-call]  # PyTorch's
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(learning, self.max_grad_norm)
        optimizer.step()

    def _log_updates(self, statistics: list[th.Tensor]) -> None:
        """Record the mean of each statistic over the gradient steps, with one transfer from the device."""
        if not statistics:
            return
        rows, count = self._guard.read(self, statistics)
        record = self.logger.record
        self._n_updates += count
        means = rows[0] if count == 1 else [sum(values) / count for values in zip(*rows, strict=True)]
        for name, value in zip(_STATISTICS, means, strict=False):  # what the guard found stands behind them
            record(name, value)
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        scale = noise_scale(self.action_noise)
        if scale is not None:
            record("train/noise_scale", scale)

    def learn(
        self: SelfSimpleDDPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SimpleDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSimpleDDPG:
        """
        Algorithm 1: act, store, and learn by calling `train`.

        :param total_timesteps: number of timesteps in the environment
        :param callback: SB3 callbacks, called at every timestep
        :param log_interval: number of episodes between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: False goes on counting where an earlier call stopped
        :param progress_bar: show one
        :return: the algorithm itself
        :raises FloatingPointError: when an observation, reward, action, loss or gradient is not finite
        :raises DeadEnvironmentError: when the process of an environment has ended
        :raises ValueError: for an observation that is not of the environment's space
        """
        try:
            with watched_environments(self, callback), watched(self.env, *environments_of(callback)):
                return super().learn(
                    checks.whole_number(total_timesteps),
                    callback,
                    log_interval,
                    tb_log_name,
                    reset_num_timesteps,
                    progress_bar,
                )
        except checks.NonFiniteError as error:
            if error.reported:
                raise
            callback_at_work = origin_of(error).callback
            place = "" if callback_at_work is None else f", in the callback {type(callback_at_work).__name__}"
            raise self._guard.stop(self, f"{error} At timestep {self.num_timesteps}{place}", "") from error
        finally:
            self._leave_environment()
            folder_lock.let_go(self)

    def _start_episodes(self) -> None:
        super()._start_episodes()
        assert self._last_obs is not None
        self._guard.check_first(self, self._last_obs)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:  # noqa: ANN401 - SB3's arguments
        """Lines 4 to 6 of Algorithm 1, `train_freq` times: `Collecting`'s, with the noise of now."""
        noise: ActionNoise | None = kwargs.get("action_noise")
        set_lately = noise is self.action_noise and not isinstance(noise, VectorizedActionNoise)
        if noise is not None and set_lately and self.n_envs > 1:
            # SB3 would wrap it anew for each rollout, so that noise which wanders would always be at its start.
            kwargs["action_noise"] = self.action_noise = VectorizedActionNoise(noise, self.n_envs)
        return super().collect_rollouts(*args, **kwargs)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        checks.plain_settings(self)  # what was set since they were read
        self._convert_train_freq()
        checks.check_train_freq(self._train_freq, self.n_envs)
        self.action_noise = self.action_noise  # through the setter: it may have been changed in place
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        assert self._last_obs is not None
        self._guard.check_first(self, self._last_obs)
        if self._resumed is not None or self._saved is not None:
            from sb3_simple_ddpg.checkpoint.folder import look_at_environments

            look_at_environments(self)
        self._last_end = self._episode_num, self.num_timesteps
        if total_timesteps > 0:  # a second call of learn starts with the progress at which the first one ended
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
        if self.verbose >= 1:
            for sentence in [*self._untold, *checks.advice(self)]:
                self.logger.warn(sentence)
            self._untold = []
        return total_timesteps, callback

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Line 4 of Algorithm 1. Mirrors SB3 2.9.2, bit for bit, in fewer calls of NumPy."""
        shape = n_envs, *(self.action_space.shape or ())
        if self.num_timesteps < learning_starts or action_noise is None or self._last_obs is None:
            noise: Any = None if action_noise is None else partial(drawn, action_noise, shape)
            return super()._sample_action(learning_starts, noise, n_envs)
        unscaled_actions, _ = self.predict(self._last_obs, deterministic=False)  # as SB3 calls the user's own
        actions = self.policy.scale_action(unscaled_actions) + drawn(action_noise, shape)
        actions = np.minimum(np.maximum(actions, -1), 1)
        return self.policy.unscale_action(actions), actions

    def _on_step(self) -> None:
        """An error where an episode never ends and `train` waits for its end: it would wait for ever."""
        if self._train_freq.unit is not TrainFrequencyUnit.EPISODE:
            return
        if self._last_end[0] != self._episode_num:
            self._last_end = self._episode_num, self.num_timesteps
        waited = self.num_timesteps - self._last_end[1]
        if waited > max(_PATIENCE, 2 * self._total_timesteps):
            raise RuntimeError(
                f"No episode has ended for {waited} timesteps, and train_freq=({self._train_freq.frequency}, "
                "'episode') waits for that: use train_freq=(n, 'step'), or gymnasium.wrappers.TimeLimit."
            )

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: npt.NDArray[Any],
        new_obs: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Line 6 of Algorithm 1. Mirrors SB3 2.9.2, without deep copies where the buffer makes its own."""
        over = True in dones.tolist()
        if not self._guard.accepts(self, buffer_action, new_obs, reward, infos if over else None):
            self._skip_transition(replay_buffer, new_obs)
            return
        copies_itself = type(replay_buffer) in (ReplayBuffer, NStepReplayBuffer)
        if not copies_itself or self._vec_normalize_env is not None or over:
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
            return
        self._last_original_obs = self._last_obs
        replay_buffer.add(self._last_obs, new_obs, buffer_action, reward, dones, infos)  # type: ignore[arg-type]  # as SB3 does
        self._last_obs = new_obs

    def _skip_transition(
        self, replay_buffer: ReplayBuffer, new_obs: npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
    ) -> None:
        """With `on_non_finite="skip"`. Episodes are cut here, so that n-step returns and HER do not reach across."""
        cut_episodes(replay_buffer)
        normalizer = self._vec_normalize_env
        if normalizer is None:
            self._last_obs = self._guard.skip(new_obs)
        else:
            self._last_original_obs = self._guard.skip(normalizer.old_obs)
            self._last_obs = normalizer.normalize_obs(self._last_original_obs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        if isinstance(self.action_noise, GaussianNoise):
            self.action_noise.update(self._current_progress_remaining)

    @classmethod
    def from_sb3(
        cls: type[SelfSimpleDDPG],
        model_or_zip: "DDPG | str | Path | io.BufferedIOBase",
        env: GymEnv | None = None,
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfSimpleDDPG:
        """
        Take over a model of SB3's DDPG: weights, optimizer states, replay buffer, counters and settings.

        :param model_or_zip: the model, or the path or open file of its zip, of SB3 1.0 and later (a zip holds no replay
            buffer; `load_replay_buffer` takes SB3's)
        :param env: to learn on with, reset when learning goes on; None keeps the model's own as it stands
        :param custom_objects: attributes that take the place of the model's, such as `learning_rate`
        :return: the same agent as SimpleDDPG; the global random streams stay as they were
        :raises ValueError: for a model that is not SB3's DDPG, or a zip that cannot be read here
        """
        from sb3_simple_ddpg.checkpoint.convert import from_sb3

        return from_sb3(cls, model_or_zip, env, custom_objects)

    def save_checkpoint(self, folder: str | Path, keep_last: int = 3) -> Path:
        """
        Write all that `resume` needs to `folder/step_<n>`; every environment starts a new episode afterwards.

        :param folder: of this run alone, made if need be
        :param keep_last: number of newest checkpoints to keep
        :return: the checkpoint
        :raises ValueError: in the middle of a rollout, or for a replay buffer that cannot be stored
        :raises OSError: when it cannot be written; what lay in the folder is still there
        """
        from sb3_simple_ddpg.checkpoint.folder import save_checkpoint

        return save_checkpoint(self, folder, keep_last)

    @classmethod
    def resume(
        cls: type[SelfSimpleDDPG],
        folder: str | Path,
        env: GymEnv | str,
        device: th.device | str | None = None,
    ) -> SelfSimpleDDPG:
        """
        The model of the newest complete checkpoint; `learn(n, reset_num_timesteps=False)` goes on exactly.

        :param folder: that `save_checkpoint` wrote to, or one checkpoint in it
        :param env: built as for training; neither stepped nor reset here, but given its random states and statistics
        :param device: None: the one of the stored model, where there is one
        :return: the model
        :raises ValueError: when there is no complete checkpoint, or the environment is not as for training
        """
        from sb3_simple_ddpg.checkpoint.folder import resume

        return resume(cls, folder, env, device)

    def to_sb3(self) -> "DDPG":
        """
        Give the agent back to SB3: weights, optimizer states, replay buffer, counters and settings.

        :return: the same agent as SB3's DDPG; the global random streams stay as they were
        :raises ValueError: for what SB3's DDPG lacks: a learning rate or optimizer arguments of the critic's own, a
            gradient norm limit, a noise schedule, a policy class of the user's own
        """
        from sb3_simple_ddpg.checkpoint.convert import to_sb3

        return to_sb3(self)

    def diagnose(self) -> "list[Finding]":
        """
        What usually goes wrong, measured. Nothing is changed, played or drawn.

        :return: one finding for each fault, with its value and the cure; empty for a healthy agent. What only
            experience shows needs transitions in the replay buffer
        """
        from sb3_simple_ddpg.diagnosis.diagnosis import diagnose

        return diagnose(self)

    @property
    def _train_freq(self) -> TrainFreq:
        assert isinstance(self.train_freq, TrainFreq)  # SB3 converts it in _setup_model
        return self.train_freq

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load weights and optimizer states in place.

        :param load_path_or_dict: a saved model, or what `get_parameters` gave; stays as it is
        :param exact_match: False: a part of the parameters will do
        :param device: to load a file on
        :raises ValueError: for names that the agent does not have, or missing ones
        """
        parameters: Any = load_path_or_dict
        if not isinstance(parameters, dict):
            _, parameters, _ = load_from_zip_file(parameters, device=device, load_data=False)
        super().set_parameters(own_copy(self, parameters), exact_match, device)

    @classmethod
    def load(
        cls: type[SelfSimpleDDPG],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,  # noqa: ANN401 - the constructor's
    ) -> SelfSimpleDDPG:
        """
        SB3's `load`. Settings mean what they mean in the constructor, `policy_kwargs` too, which SB3 compares.

        :param path: of a zip that `save` wrote, or the open file
        :param env: to learn on with, None for the file's own, if it has one
        :param device: of the networks
        :param custom_objects: replaces attributes that cannot be read, by name
        :param print_system_info: of the machine that saved, and of this one
        :param force_reset: begin with a new episode
        :param kwargs: arguments of the constructor to change
        :return: the agent
        """
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = checks.plain_policy_kwargs(kwargs["policy_kwargs"])
        try:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "gym":
                raise
            raise ValueError(
                f"{path} was saved by SB3 before 2.0 with gym, which is not installed: for a model of SB3's DDPG use "
                "SimpleDDPG.from_sb3, which needs none."
            ) from error

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Take over a saved replay buffer, of SB3 before 2.0 too; mirrors SB3 2.9.2 but for the reading.

        :param path: that `save_replay_buffer` wrote, or the open file
        :param truncate_last_traj: of HER: the last episode in the buffer ended where it was saved
        :raises ValueError: for a file that holds no buffer, or one that cannot be read here
        """
        from sb3_simple_ddpg.checkpoint.sb3_files import read_replay_buffer

        self.replay_buffer = read_replay_buffer(path, self.verbose)
        if isinstance(self.replay_buffer, HerReplayBuffer):
            assert self.env is not None, "You must pass an environment at load time when using `HerReplayBuffer`"
            self.replay_buffer.set_env(self.env)
            if truncate_last_traj:
                self.replay_buffer.truncate_last_trajectory()
        self.replay_buffer.device = self.device

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "actor_target", "critic", "critic_target"]
        return [*super()._excluded_save_params(), *networks, "_networks", "_compiled", "_guard", *_OF_THIS_PROCESS]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []


def own_copy(model: OffPolicyAlgorithm, parameters: dict[str, Any]) -> dict[str, Any]:
    """
    A copy to load from: PyTorch's optimizers go on with the very tensors that they are given, and with their flags.

    :param model: the agent that is to load
    :param parameters: what `get_parameters` of an agent gave; stays as it is
    :return: a copy, with the flags of this agent's optimizers: how they compute a step, not which
    """
    parameters = deepcopy(parameters)
    for name in ("actor.optimizer", "critic.optimizer"):
        own_groups = recursive_getattr(model, name).param_groups
        for group, own in zip(parameters.get(name, {}).get("param_groups", []), own_groups, strict=False):
            group.update({flag: own[flag] for flag in _OPTIMIZER_FLAGS if flag in own})
    return parameters


_OF_THIS_PROCESS = ("_boundary", "_unstored", "_footprints", "_resumed", "_saved", "_said")  # and not of what is saved
_PATIENCE = 100_000  # timesteps of one episode, at least
_OPTIMIZER_FLAGS = ("fused", "foreach", "capturable", "differentiable")
_STATISTICS = (
    "train/critic_loss",
    "train/actor_loss",
    "train/q_mean",
    "train/target_q_mean",
    "train/action_saturation",
)


@th.no_grad()
def _statistics(
    loss_q: th.Tensor, loss_mu: th.Tensor, q_values: th.Tensor, targets: th.Tensor, actions: th.Tensor
) -> th.Tensor:
    """What is logged of one gradient step, in the order of `_STATISTICS`, still on the device: shape (5,)."""
    saturated = (actions.abs() > 0.99).float()
    return th.stack([loss_q, loss_mu, q_values.mean(), targets.mean(), saturated.mean()])
