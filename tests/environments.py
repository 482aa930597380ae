"""Three tiny environments whose answers are known by hand. Not here: tests."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Observation = npt.NDArray[np.float32]


class Bandit(gym.Env[Observation, npt.NDArray[Any]]):
    """
    One step an episode: reward 1 - |a - best|, then the end. The best action is known, and so is its value, 1.

    The range of actions is [-1, 3] unless told otherwise: not symmetric, so a missing shift shows.
    """

    def __init__(
        self, best: float = 2.0, low: float = -1.0, high: float = 3.0, dtype: type[np.floating[Any]] = np.float32
    ) -> None:
        self.best = best
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(low, high, (1,), dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(float(action[0]) - self.best)
        return np.zeros(1, np.float32), reward, True, False, {}


class Chain(gym.Env[Observation, npt.NDArray[Any]]):
    """
    Three states 0, 1, 2 in a row, reward 1 a step whatever the action; after state 2 the episode is over.

    With `ends="terminated"` the values are 1 + gamma + gamma^2, 1 + gamma and 1; with `ends="truncated"` (a time limit,
    the next observation is state 0 again) the task goes on for ever and each value is 1 / (1 - gamma).
    """

    def __init__(self, ends: str = "terminated") -> None:
        self.ends = ends
        self.observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.state = 0

    def _observation(self) -> Observation:
        return np.eye(3, dtype=np.float32)[self.state]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self._observation(), {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        over = self.state == 2
        self.state = (self.state + 1) % 3
        return self._observation(), 1.0, over and self.ends == "terminated", over and self.ends == "truncated", {}


class Goal(Bandit):
    """The bandit, whose info says whether the action was within 0.5 of the best one; rewards are times `scale`."""

    def __init__(self, best: float = 2.0, scale: float = 1.0, tells: bool = True) -> None:
        super().__init__(best)
        self.scale = scale
        self.tells = tells

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        success = {"is_success": reward >= 0.5} if self.tells else {}
        return observation, self.scale * reward, terminated, truncated, {**info, **success}


gym.register("TestBandit-v0", Bandit, max_episode_steps=10)
gym.register("TestEndless-v0", Chain)
gym.register("TestGoal-v0", Goal, max_episode_steps=10)
gym.register("TestRequired-v0", lambda best, **kwargs: Bandit(best, **kwargs), max_episode_steps=10)


class Clock(gym.Env[Observation, npt.NDArray[Any]]):
    """A place that the action moves, and the time: 20 steps an episode, and in every step the time goes one further."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-100, 100, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _observation(self) -> Observation:
        return np.array([self.x, self.t], np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1, 1)), 0
        return self._observation(), {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.x, self.t = float(np.clip(self.x + 0.1 * np.ravel(action)[0], -5, 5)), self.t + 1
        return self._observation(), -abs(self.x), False, self.t >= 20, {}
