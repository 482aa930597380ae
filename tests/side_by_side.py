"""SimpleDDPG and SB3's DDPG trained side by side, and compared; what several test files need for it.

Not here: tests.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_simple_ddpg import SimpleDDPG

# Fused and plain Adam differ in the last bits; 30 updates at most let that grow to less than this.
WEIGHT_TOLERANCE = 1e-5


def settings(**changes: Any) -> dict[str, Any]:
    """Small and fast: one hidden layer of 16, a buffer of 200; what is given replaces or adds to it."""
    small = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "seed": 3, "device": "cpu"}
    return {**small, "policy_kwargs": {"net_arch": [16]}, **changes}


def train_side_by_side(
    make_env: Callable[[], Any], policy: str = "MlpPolicy", total_timesteps: int = 30, **changes: Any
) -> tuple[SimpleDDPG, DDPG]:
    """Train both algorithms on an environment of their own, with the same seed and the same noise."""
    models = []
    for algorithm in (SimpleDDPG, DDPG):
        np.random.seed(0)  # some environments draw from the global generator while they are built
        env = make_env()
        shape = env.action_space.shape
        noise = NormalActionNoise(np.zeros(shape), 0.1 * np.ones(shape))
        model = algorithm(policy, env, **settings(**deepcopy({"action_noise": noise, **changes})))
        models.append(model.learn(total_timesteps))
    return models[0], models[1]


def assert_same_agent(ours: OffPolicyAlgorithm, theirs: OffPolicyAlgorithm, n_updates: int) -> None:
    """Both made this many updates, hold the same weights, and stored the same transitions."""
    assert ours._n_updates == theirs._n_updates == n_updates > 0
    assert ours.num_timesteps == theirs.num_timesteps
    our_weights, their_weights = ours.policy.state_dict(), theirs.policy.state_dict()
    assert our_weights.keys() == their_weights.keys()
    for name, tensor in our_weights.items():
        th.testing.assert_close(tensor, their_weights[name], rtol=0, atol=WEIGHT_TOLERANCE, msg=lambda m, n=name: n + m)
    assert_same_buffer(ours, theirs)


def assert_same_buffer(ours: OffPolicyAlgorithm, theirs: OffPolicyAlgorithm) -> None:
    """Equal to the last bit during the random steps, later as close as the weights are."""
    buffer, expected = ours.replay_buffer, theirs.replay_buffer
    assert (type(buffer), buffer.pos, buffer.full) == (type(expected), expected.pos, expected.full)
    warm_up = 0 if buffer.full else ours.learning_starts // ours.n_envs
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        if not hasattr(expected, name):
            continue
        stored, wanted = getattr(buffer, name), getattr(expected, name)
        if not isinstance(wanted, dict):
            stored, wanted = {"": stored}, {"": wanted}
        assert stored.keys() == wanted.keys()
        for key in wanted:
            assert (stored[key].dtype, stored[key].shape) == (wanted[key].dtype, wanted[key].shape), name
            np.testing.assert_array_equal(stored[key][:warm_up], wanted[key][:warm_up], err_msg=name)
            np.testing.assert_allclose(stored[key], wanted[key], rtol=0, atol=1e-4, err_msg=name)


class Dummy(gym.Env[Any, np.ndarray]):
    """Random observations of any space; the reward is minus the mean square of the action; seven steps an episode."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> None:
        # A space of its own: two environments that share one would draw from one stream.
        self.observation_space = deepcopy(observation_space)
        self.action_space = deepcopy(action_space or spaces.Box(-1.0, 1.0, (2,), np.float32))
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.steps += 1
        reward = -float(np.mean(np.square(action)))
        return self.observation_space.sample(), reward, False, self.steps == 7, {}


VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
CHANNEL_FIRST = spaces.Box(0, 255, (1, 36, 36), np.uint8)
CHANNEL_LAST = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DICT_SPACES = {
    "vectors": spaces.Dict({"a": VECTOR, "b": spaces.Box(0.0, 1.0, (2,), np.float64)}),
    "all_kinds": spaces.Dict(
        {
            "binary": spaces.MultiBinary(2),
            "discrete": spaces.Discrete(3),
            "image": CHANNEL_LAST,
            "multi": spaces.MultiDiscrete([2, 3]),
            "vector": VECTOR,
        }
    ),
    "channel_first": spaces.Dict({"image": CHANNEL_FIRST, "vector": VECTOR}),
}
SMALL_COMBINED = {"net_arch": [16], "features_extractor_kwargs": {"cnn_output_dim": 8}}
SMALL_CNN = {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 8}}
