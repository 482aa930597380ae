"""SimpleDDPG: Deep Deterministic Policy Gradient inside Stable-Baselines3 (SB3). The update is `SimpleDDPG._update`.

Not here: the equations (`equations.py`), the networks (`policies.py`), the noise (`exploration.py`), the loop around
`train` (`sb3/collecting.py`: lines 4 to 6 of Algorithm 1), and what makes it a plugin of SB3 (`sb3/plugin.py`).

Algorithm 1, Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, in the numbering that README.md prints.
"""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_simple_ddpg.equations import actor_loss, critic_loss, soft_update, td_target
from sb3_simple_ddpg.exploration import NoiseSetting
from sb3_simple_ddpg.policies import Actor, CnnPolicy, Critic, DDPGPolicy, MlpPolicy, MultiInputPolicy, only
from sb3_simple_ddpg.safety import checks
from sb3_simple_ddpg.sb3.plugin import Plugin
from sb3_simple_ddpg.speed.layers import FastGradients
from sb3_simple_ddpg.speed.networks import Networks
from sb3_simple_ddpg.speed.optimizers import forget_gradients, with_those_held
from sb3_simple_ddpg.speed.sampling import sample_batches


class SimpleDDPG(Plugin):
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
        is the same push in every environment; or a function of the progress remaining; `OrnsteinUhlenbeck(...)`,
        `ColoredNoise(...)`; any SB3 `ActionNoise`; None for no noise
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
        it cannot be compiled, or gives other numbers, a `checks.CompileWarning` says why and the plain path goes on.
        "auto": in a `learn` that is long enough for it to pay, on the CPU; the log says so
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
        compile_updates: bool | str = "auto",
        on_non_finite: str = "stop",
    ) -> None:
        if env is None and _init_setup_model:
            raise TypeError("env must be an environment or the name of one, got None.")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
        )
        self.critic_learning_rate = critic_learning_rate
        self.max_grad_norm = max_grad_norm
        self.compile_updates = compile_updates
        self.on_non_finite = on_non_finite
        if _init_setup_model:
            self._setup_model()
            checks.check_train_freq(self._train_freq, self.n_envs)

    def _setup_model(self) -> None:
        super()._setup_model()  # checks, replay buffer, policy
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        if self.critic_lr_schedule is not None:  # SB3's policies are built with one rate
            self.critic.optimizer.defaults["lr"] = self.critic_lr_schedule(1)
            update_learning_rate(self.critic.optimizer, self.critic_lr_schedule(1))
        self._networks = Networks()

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Lines 7 to 11 of Algorithm 1, once for each gradient step.

        :param gradient_steps: how often
        :param batch_size: B, number of transitions in each batch; `learn` gives the constructor's, 100 is SB3's default
        :raises ValueError: when the replay buffer is empty
        :raises FloatingPointError: when a loss or gradient is not finite; the weights are then as before
        """
        self._prepare_updates()
        statistics: list[th.Tensor] = []
        # Line 7, for each gradient step: sample a random batch of B transitions (s, a, r, s', d).
        batches = sample_batches(self.replay_buffer, gradient_steps, batch_size, self._vec_normalize_env)
        with FastGradients():
            for batch, update in self._guard.watched(self, batches, gradient_steps, self._choice(), statistics):
                statistics.append(update(batch))  # lines 8 to 11: `_update`, or the same as compiled code
        self._log_updates(statistics)

    def _update(self, batch: ReplayBufferSamples) -> th.Tensor:
        """
        Lines 8 to 11 of Algorithm 1: one gradient step of the critic, one of the actor, and the target networks follow.

        :param batch: B transitions (s, a, r, s', d); `batch.dones` is d, 0 where a time limit cut the episode off
        :return: what is logged of it
        """
        # Line 8: the target y = r + gamma (1 - d) Q'(s', mu'(s')). A constant: nobody learns from it.
        with th.no_grad():
            next_actions = self.actor_target(batch.next_observations)
            next_q_values = only(self.critic_target(batch.next_observations, next_actions))
            targets = td_target(batch.rewards, batch.dones, self._discounts(batch), next_q_values)

        # Line 9: the critic learns: Q(s, a) moves towards y.
        q_values = only(self.critic(batch.observations, batch.actions))
        loss_q = critic_loss(q_values, targets)
        self._gradient_step(self.critic.optimizer, loss_q, self._weights("critic"))

        # Line 10: the actor learns: mu(s) moves to where Q(s, mu(s)) is larger. The critic's weights stay.
        actions = self.actor(batch.observations)
        loss_mu = actor_loss(self.critic.q1_forward(batch.observations, actions))
        self._gradient_step(self.actor.optimizer, loss_mu, self._weights("actor"))

        # Line 11: both target networks move a share tau of the way. Running statistics of batch norm are copied.
        soft_update(self._weights("critic"), self._weights("critic_target"), self.tau)
        soft_update(self._weights("actor"), self._weights("actor_target"), self.tau)
        soft_update(self._networks.statistics, self._networks.statistics_of_targets, 1.0)
        return _statistics(loss_q, loss_mu, q_values, targets, actions)

    def _discounts(self, batch: ReplayBufferSamples) -> float | th.Tensor:
        """gamma; with n-step returns the buffer gives gamma ** n for each transition."""
        return self.gamma if batch.discounts is None else batch.discounts

    def _weights(self, role: str) -> list[th.Tensor]:
        """All weights of one of the four networks, as they are listed now."""
        weights: list[th.Tensor] = self._networks.weights[role]
        return weights

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


@th.no_grad()
def _statistics(
    loss_q: th.Tensor, loss_mu: th.Tensor, q_values: th.Tensor, targets: th.Tensor, actions: th.Tensor
) -> th.Tensor:
    """What is logged of one gradient step, in the order of `plugin.STATISTICS`, still on the device: shape (5,)."""
    saturated = (actions.abs() > 0.99).float()
    return th.stack([loss_q, loss_mu, q_values.mean(), targets.mean(), saturated.mean()])
