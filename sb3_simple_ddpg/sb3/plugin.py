"""What makes DDPG a plugin of Stable-Baselines3 (SB3): checks, the guard, saving and loading, progress, conversions.

Not here: the algorithm (`simple_ddpg.py`), and the loop that acts, stores and calls `train` (`sb3/collecting.py`).

Methods whose work lives in another room import it when they are called, and are a few lines long.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    ReplayBufferSamples,
    RolloutReturn,
    TensorDict,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_simple_ddpg.checkpoint import folder_lock
from sb3_simple_ddpg.checkpoint.buffer import cut_episodes
from sb3_simple_ddpg.exploration import GaussianNoise, NoiseSetting, drawn, make_action_noise, noise_scale
from sb3_simple_ddpg.policies import DDPGPolicy
from sb3_simple_ddpg.safety import checks
from sb3_simple_ddpg.safety.environments import explained_errors
from sb3_simple_ddpg.safety.mistakes import environments_of, origin_of
from sb3_simple_ddpg.safety.numbers import NonFiniteGuard, Update
from sb3_simple_ddpg.sb3.collecting import Collecting
from sb3_simple_ddpg.sb3.vec_env import QuickDummyVecEnv, watched
from sb3_simple_ddpg.speed import auto, products
from sb3_simple_ddpg.speed.optimizers import own_copy

if TYPE_CHECKING:
    from stable_baselines3 import DDPG

    from sb3_simple_ddpg.diagnosis.diagnosis import Finding
    from sb3_simple_ddpg.speed.compiled import CompiledUpdates

SelfPlugin = TypeVar("SelfPlugin", bound="Plugin")


STATISTICS = (
    "train/critic_loss",
    "train/actor_loss",
    "train/q_mean",
    "train/target_q_mean",
    "train/action_saturation",
)


class Plugin(Collecting):
    """An off-policy algorithm with an actor and one critic, as SB3's callers, files and wrappers expect it."""

    _compiles = False  # what "auto" means for `compile_updates` in this training
    _products: products.Measured | None = None  # how much faster oneDNN was when this training began
    _last_end: tuple[int, int] = (0, 0)  # number of ended episodes, and the timestep at which it was first seen

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        replay_buffer_kwargs: dict[str, Any] | None,
        policy_kwargs: dict[str, Any] | None,
        device: th.device | str,
        **settings: Any,  # noqa: ANN401 - of SB3's constructor, by name
    ) -> None:
        checks.check_device(device)
        try:
            super().__init__(
                checks.check_policy(policy),
                env,  # type: ignore[arg-type]  # None until `load` gives one, as in SB3
                # SB3 writes into both dicts; the caller's stay as they are.
                replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
                policy_kwargs=dict(policy_kwargs or {}),
                device=device,
                support_multi_env=True,
                sde_support=False,
                **settings,
            )
        except gym.error.Error as error:
            raise ValueError(
                f"The environment {env!r} cannot be made: {error} "
                "Choose a name from gymnasium.registry, or import the package that registers it."
            ) from error

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

    # --- updates -----------------------------------------------------------------------------------------------

    def _choice(self) -> Callable[[ReplayBufferSamples], Update]:
        """What gives each batch its update: `_update`, or the same as compiled code."""
        if not self._is_compiling():
            return self._plain_update
        if self._compiled is None:  # made at the first update: importing the compiler takes a second
            from sb3_simple_ddpg.speed.compiled import CompiledUpdates

            self._compiled = CompiledUpdates()
        return partial(self._compiled.choose, self)

    def _is_compiling(self) -> bool:
        return self._compiles if self.compile_updates == "auto" else bool(self.compile_updates)

    def _plain_update(self, _batch: ReplayBufferSamples) -> Update:
        """What every batch gets where nothing is compiled: `_update`, with the networks of now listed."""
        self._networks.look(self)
        return self._update

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

    def _log_updates(self, statistics: list[th.Tensor]) -> None:
        """Record the mean of each statistic over the gradient steps, with one transfer from the device."""
        if not statistics:
            return
        rows, count = self._guard.read(self, statistics)
        record = self.logger.record
        self._n_updates += count
        means = rows[0] if count == 1 else [sum(values) / count for values in zip(*rows, strict=True)]
        for name, value in zip(STATISTICS, means, strict=False):  # what the guard found stands behind them
            record(name, value)
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        scale = noise_scale(self.action_noise)
        if scale is not None:
            record("train/noise_scale", scale)

    # --- learning ----------------------------------------------------------------------------------------------

    def learn(
        self: SelfPlugin,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SimpleDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPlugin:
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
            with explained_errors(self), watched(self.env, *environments_of(callback)):
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
        # A training that goes on, from a checkpoint for example, stays with what it began with.
        compiles, sentence = auto.decide(self)
        self._compiles = compiles or (self._compiles and not reset_num_timesteps)
        if self.compile_updates == "auto" and sentence:
            self.logger.info(sentence)
        known = None if reset_num_timesteps else self._products
        self._products, sentence = products.prepare(self, known or [], self._is_compiling())
        if sentence:
            self.logger.info(sentence)
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

    # --- other rooms -------------------------------------------------------------------------------------------

    @classmethod
    def from_sb3(
        cls: type[SelfPlugin],
        model_or_zip: "DDPG | str | Path | io.BufferedIOBase",
        env: GymEnv | None = None,
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfPlugin:
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

    def to_sb3(self) -> "DDPG":
        """
        Give the agent back to SB3: weights, optimizer states, replay buffer, counters and settings.

        :return: the same agent as SB3's DDPG; the global random streams stay as they were
        :raises ValueError: for what SB3's DDPG lacks: a learning rate or optimizer arguments of the critic's own, a
            gradient norm limit, a noise schedule, a policy class of the user's own
        """
        from sb3_simple_ddpg.checkpoint.convert import to_sb3

        return to_sb3(self)

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
        cls: type[SelfPlugin],
        folder: str | Path,
        env: GymEnv | str,
        device: th.device | str | None = None,
    ) -> SelfPlugin:
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

    def diagnose(self) -> "list[Finding]":
        """
        What usually goes wrong, measured. Nothing is changed, played or drawn.

        :return: one finding for each fault, with its value and the cure; empty for a healthy agent. What only
            experience shows needs transitions in the replay buffer
        """
        from sb3_simple_ddpg.diagnosis.diagnosis import diagnose

        return diagnose(self)

    # --- files -------------------------------------------------------------------------------------------------

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
        cls: type[SelfPlugin],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,  # noqa: ANN401 - the constructor's
    ) -> SelfPlugin:
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


_OF_THIS_PROCESS = ("_boundary", "_unstored", "_footprints", "_resumed", "_saved", "_said")  # and not of what is saved
_PATIENCE = 100_000  # timesteps of one episode, at least
