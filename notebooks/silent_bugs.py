"""The workbench of notebook 05: trains an agent by an update of yours, and checks that update against the package's.

Not here: the five versions with their bugs, and the solutions (05_silent_bugs.ipynb). The package does not know of it.
"""

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
from matplotlib import pyplot as plt
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger

from sb3_simple_ddpg import SimpleDDPG, presets
from sb3_simple_ddpg.policies import Actor, Critic

#: Largest difference from the package's weights that is put down to rounding.
TOLERANCE = 1e-6


class Batch(NamedTuple):
    """B transitions. Each field is a tensor with B rows."""

    observations: th.Tensor  # s, (B, O)
    actions: th.Tensor  # a, (B, A), in [-1, 1]
    rewards: th.Tensor  # r, (B, 1)
    next_observations: th.Tensor  # s', (B, O)
    terminated: th.Tensor  # (B, 1): 1 where the task was over
    truncated: th.Tensor  # (B, 1): 1 where a time limit cut the episode off


@dataclass
class Learner:
    """
    What an update works on.

    `critic_optimizer` holds the weights of both critics, as `Adam(self.parameters())` does in a module that contains
    both. It moves those that have a gradient. `actor_optimizer` holds the actor's.
    """

    actor: Actor
    critic: Critic
    actor_target: Actor
    critic_target: Critic
    actor_optimizer: th.optim.Optimizer
    critic_optimizer: th.optim.Optimizer
    gamma: float
    tau: float

    @classmethod
    def of(cls, model: SimpleDDPG, optimizer: type[th.optim.Optimizer] = th.optim.Adam) -> "Learner":
        """The four networks of a model, with optimizers of their own."""
        both = [*model.critic.parameters(), *model.critic_target.parameters()]
        return cls(
            model.actor, model.critic, model.actor_target, model.critic_target,
            optimizer(model.actor.parameters(), lr=model.learning_rate), optimizer(both, lr=model.learning_rate),
            model.gamma, model.tau,
        )  # fmt: skip


Update = Callable[[Learner, Batch], None]


class Transitions(ReplayBuffer):
    """A replay buffer that tells the two ends of an episode apart."""

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Batch:
        found = super()._get_samples(batch_inds, env)
        truncated = self.to_torch(self.timeouts[batch_inds, :1])
        return Batch(*found[:2], found.rewards, found.next_observations, found.dones, truncated)


# --- symptoms --------------------------------------------------------------------------------------------------------


def train(update: Update | None, timesteps: int, limit: int = 200) -> tuple[SimpleDDPG, pd.DataFrame]:
    """
    Algorithm 1 on Pendulum-v1, with `update` in the place of lines 8 to 11.

    :param update: moves the networks of a Learner by one batch; None for the package's own
    :param timesteps: of training
    :param limit: time limit of the environment, in timesteps
    :return: the model; and for every 200 timesteps the mean reward, and of one batch the mean Q(s, a), its standard
        deviation over the batch, and the share of actions mu(s) beyond 0.99
    """
    env = gym.make("Pendulum-v1", max_episode_steps=limit)
    model = SimpleDDPG("MlpPolicy", env, seed=0, **presets.PENDULUM)
    model.set_logger(Logger(None, []))
    learner, policy = Learner.of(model), model.policy
    buffer = model.replay_buffer
    if update is not None:
        buffer = Transitions(timesteps, model.observation_space, model.action_space)
    observation, _ = env.reset(seed=0)
    rows, rewards = [], []
    for timestep in range(1, timesteps + 1):
        learning = timestep > model.learning_starts
        action = model.predict(observation)[0] if learning else env.action_space.sample()
        action = np.clip(policy.scale_action(action) + model.action_noise()[0], -1, 1)
        next_observation, reward, terminated, truncated, _ = env.step(policy.unscale_action(action))
        over = terminated or truncated
        buffer.add(observation, next_observation, action, reward, over, [{"TimeLimit.truncated": truncated}])
        observation = env.reset()[0] if over else next_observation
        rewards.append(reward)
        if learning and update is None:
            model.train(gradient_steps=1, batch_size=model.batch_size)
        elif learning and update is not None:
            update(learner, buffer.sample(model.batch_size))
        if timestep % 200 == 0:
            batch = buffer.sample(model.batch_size)
            with th.no_grad():
                q_values = model.critic.q1_forward(batch.observations, batch.actions)
                saturated = (model.actor(batch.observations).abs() > 0.99).float()
            row = np.mean(rewards[-200:]), q_values.mean().item(), q_values.std().item(), saturated.mean().item()
            rows.append((timestep, *row))
    names = ["timesteps", "mean reward", "mean of Q", "spread of Q", "saturation"]
    return model, pd.DataFrame(rows, columns=names).set_index("timesteps")


def promised_and_got(model: SimpleDDPG, starts: int = 20, timesteps: int = 400) -> tuple[float, float]:
    """
    What the critic promises at the start, and what the actor then gets: without noise and without a time limit.

    :param model: a trained one
    :param starts: number of random starts
    :param timesteps: that each is followed for; what comes later counts less than gamma ** timesteps
    :return: the mean of Q(s, mu(s)), and the mean of the discounted returns
    """
    envs = [gym.make("Pendulum-v1", max_episode_steps=timesteps) for _ in range(starts)]
    observations = np.stack([env.reset(seed=1_000 + seed)[0] for seed, env in enumerate(envs)])
    with th.no_grad():
        start = th.as_tensor(observations)
        promised = model.critic.q1_forward(start, model.actor(start)).mean().item()
    got = 0.0
    for timestep in range(timesteps):
        actions = model.predict(observations, deterministic=True)[0]
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations = np.stack([step[0] for step in steps])
        got += model.gamma**timestep * float(np.mean([step[1] for step in steps]))
    return promised, got


def symptoms(update: Update, timesteps: int, limit: int = 200) -> pd.DataFrame:
    """
    Draw how an agent learns by this update, beside one that learns by the package's.

    :param update: moves the networks of a Learner by one batch
    :param timesteps: of training
    :param limit: time limit of the environment, in timesteps
    :return: for both what the critic promises at the start, and what the actor then gets
    """
    runs = {"the package": _of_the_package(timesteps, limit), "this version": train(update, timesteps, limit)}
    figure, panels = plt.subplots(1, 4, figsize=(12, 2.7), dpi=72, layout="constrained")
    for panel, column in zip(panels, runs["the package"][1].columns, strict=True):
        for (name, (_, log)), (stroke, shade) in zip(runs.items(), (("--", "0.5"), ("-", "black")), strict=True):
            panel.plot(log[column], stroke, color=shade, linewidth=2, label=name)
        panel.set(title=column, xlabel="timesteps")
        panel.grid(alpha=0.3)
    panels[1].axhline(0, color="0.35", linestyle=(0, (1, 3)))  # no return of Pendulum is above it
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    names = ["promised: Q(s, mu(s))", "got: discounted return"]
    return pd.DataFrame({name: promised_and_got(model) for name, (model, _) in runs.items()}, index=names).round(1)


@functools.cache
def _of_the_package(timesteps: int, limit: int) -> tuple[SimpleDDPG, pd.DataFrame]:
    return train(None, timesteps, limit)


# --- the check -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """
    What a check found.

    :param right: the weights are those of the package's update
    :param text: the same in words, with a hint where it is not so
    """

    right: bool
    text: str

    def __repr__(self) -> str:
        return self.text


def check(update: Update) -> Verdict:
    """
    Compare an update with the package's own, weight by weight.

    :param update: moves the networks of a Learner by one batch
    :return: right, or not yet and a hint
    """
    with _streams_kept():
        return _compared(update)


def _compared(update: Update) -> Verdict:
    try:
        found = _differences(update, Case())
        # Twice: what an update leaves behind, such as gradients, shows in the next one.
        again = _differences(update, Case(), updates=2)
        if max(*found.values(), *again.values()) <= TOLERANCE:
            return Verdict(True, f"Right: after one update and two, no weight differs by more than {TOLERANCE:g}.")
        off = "; ".join(f"{name} by {value:.2g}" for name, value in found.items() if value > TOLERANCE)
        off = off or "nothing after the first update, but something after the second"
        return Verdict(False, f"Not yet. Weights that differ from the package's: {off}.\nHint: {_hint(update, found)}")
    except Exception as error:  # whatever the reader's function raises is an answer too
        return Verdict(False, f"Not yet: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Case:
    """
    Transitions that an update is tried on.

    :param size: B
    :param terminated: share of transitions that terminate
    :param truncated: share of the others that a time limit cuts off
    :param satisfied: rewards are Q(s, a), so that a critic has nothing to learn where everything terminates
    :param gamma: discount factor
    :param tau: share of the main network in a soft update
    """

    size: int = 64
    terminated: float = 0.2
    truncated: float = 0.2
    satisfied: bool = False
    gamma: float = 0.9
    tau: float = 0.1

    def model(self) -> SimpleDDPG:
        """Fresh networks, always the same. Plain gradient descent: Adam would blow rounding up."""
        policy_kwargs = {"net_arch": [16, 16], "optimizer_class": th.optim.SGD}
        return SimpleDDPG(
            "MlpPolicy", "Pendulum-v1", learning_rate=0.01, buffer_size=self.size, gamma=self.gamma, tau=self.tau,
            policy_kwargs=policy_kwargs, seed=0,
        )  # fmt: skip

    def fill(self, buffer: ReplayBuffer) -> None:
        """Put the transitions into a buffer."""
        draw = np.random.default_rng(0)
        observations, following = draw.uniform(-1, 1, (2, self.size, 3)).astype(np.float32)
        actions = draw.uniform(-1, 1, (self.size, 1)).astype(np.float32)
        rewards = draw.normal(0, 3, self.size)
        if self.satisfied:
            with th.no_grad():
                values = self.model().critic.q1_forward(th.as_tensor(observations), th.as_tensor(actions))
            rewards = values.numpy().flatten()
        ends, cuts = draw.random(self.size) < self.terminated, draw.random(self.size) < self.truncated
        for i in range(self.size):
            cut = bool(cuts[i] and not ends[i])
            info = [{"TimeLimit.truncated": cut}]
            buffer.add(observations[i], following[i], actions[i], rewards[i], bool(ends[i]) or cut, info)

    def of_the_package(self, updates: int) -> SimpleDDPG:
        """The model after so many updates by `SimpleDDPG.train`."""
        model = self.model()
        model.set_logger(Logger(None, []))
        self.fill(model.replay_buffer)
        with _drawn_alike():
            model.train(gradient_steps=updates, batch_size=self.size)
        return model

    def of_the_reader(self, update: Update, updates: int) -> SimpleDDPG:
        """The model after so many updates by the reader's function, with the same batches."""
        model = self.model()
        learner = Learner.of(model, th.optim.SGD)
        buffer = Transitions(self.size, model.observation_space, model.action_space)
        self.fill(buffer)
        with _drawn_alike():
            batches = [buffer.sample(self.size) for _ in range(updates)]
        for batch in batches:
            update(learner, batch)
        return model


@contextmanager
def _streams_kept() -> Iterator[None]:
    """The global random streams are afterwards as they were: models with a seed set them all."""
    streams = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])


@contextmanager
def _drawn_alike() -> Iterator[None]:
    """Replay buffers draw from NumPy's global stream: here always the same rows."""
    with _streams_kept():
        np.random.seed(0)
        yield


NETWORKS = ("critic", "actor", "critic_target", "actor_target")


@functools.cache
def _reference(case: Case, updates: int) -> SimpleDDPG:
    return case.of_the_package(updates)


def _differences(update: Update, case: Case, updates: int = 1) -> dict[str, float]:
    """By network the largest difference of a weight from the package's."""
    ours, theirs = _reference(case, updates), case.of_the_reader(update, updates)
    found = {}
    for name in NETWORKS:
        pairs = zip(getattr(ours, name).parameters(), getattr(theirs, name).parameters(), strict=True)
        found[name] = max((one - other).abs().max().item() for one, other in pairs)
    return {name: float("inf") if np.isnan(value) else value for name, value in found.items()}


def _hint(update: Update, found: dict[str, float]) -> str:
    """Small experiments, from the most telling to the least: each leaves out one thing that could be at fault."""

    def right(case: Case, *networks: str) -> bool:
        differences = _differences(update, case)
        return all(differences[name] <= TOLERANCE for name in networks or NETWORKS)

    if max(found.values()) <= TOLERANCE:
        return "the first update is right, the second is not. What stays from one to the next?"
    endless = Case(terminated=0, truncated=0)
    if right(Case(size=1, terminated=0, truncated=0)) and not right(endless):
        return "with a batch of one transition your update is right, with more it is not. Print the shapes in line 9."
    if right(Case(truncated=0)):
        return "your update is right until a transition is truncated. What comes after a time limit?"
    largest = _largest_action(update)
    if largest > 1:
        return (
            f"the actions in the buffer lie in [-1, 1], and so does mu(s). Your critics were asked for {largest:.1f}. "
            "Who maps actions to the environment's range, and how often?"
        )
    if not right(Case(tau=0), "critic_target"):
        return "with tau = 0 a target network stays where it is. Yours moves. Who moves it, and with which gradient?"
    if not right(Case(terminated=1, satisfied=True), "critic"):
        return "a critic with nothing to learn, since r = Q(s, a) and all terminates, moves. Which gradients has it?"
    if not right(Case(gamma=0), "critic"):
        return "the critic is wrong even with gamma = 0, where y = r. Look at lines 8 and 9."
    if found["critic"] > TOLERANCE:
        return "with gamma = 0 the critic is right. Look at what follows after s', in line 8."
    if found["actor"] > TOLERANCE:
        return "the critic is right. The actor climbs the critic as it is after its own step: line 10 comes after 9."
    return "actor and critic are right, a target network is not. Look at line 11."


def _largest_action(update: Update) -> float:
    """Of all actions that the update hands to a critic."""
    case, seen = Case(), [0.0]
    model = case.model()
    learner = Learner.of(model, th.optim.SGD)
    with th.no_grad():  # mu(s) = +-1 almost, as of an actor that has learned
        for actor in (model.actor, model.actor_target):
            actor.mu[-2].weight.mul_(100)
    for critic in (model.critic, model.critic_target):
        asked = critic.q1_forward

        def spied(observations: th.Tensor, actions: th.Tensor, asked: Any = asked) -> th.Tensor:
            seen.append(actions.abs().max().item())
            return asked(observations, actions)

        critic.q1_forward = spied
    buffer = Transitions(case.size, model.observation_space, model.action_space)
    case.fill(buffer)
    update(learner, buffer.sample(case.size))
    return max(seen)
