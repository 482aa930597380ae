"""Settings with their sources, to be passed on: `SimpleDDPG("MlpPolicy", env, **presets.ARTICLE)`.

Not here: settings that nobody published or measured, and the number of timesteps, which belongs to `learn`.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, Final, TypeAlias

from stable_baselines3.common.utils import LinearSchedule

from sb3_simple_ddpg.exploration import OrnsteinUhlenbeck
from sb3_simple_ddpg.sb3 import zoo_file

Preset: TypeAlias = dict[str, Any]

#: A setting of the run and not of the constructor, which the commands know beside those: VecNormalize around the
#: environment, for observations alone. Evaluation uses the statistics of training, and does not change them.
NORMALIZE: Final = "normalize_observations"

#: The constructor's defaults: those of SB3's DDPG, with noise.
DEFAULT: Final[Preset] = {}

#: "Deep Deterministic Policy Gradient (DDPG): Theory and Implementation", the published code. Two things differ: our
#: update moves the critic before the actor, as Algorithm 1 does and the article's code does not; and the noise is 0.1,
#: as in the article's text (its code runs with 0). Its tau of 0.99 is the share of the target network: 0.01 here.
ARTICLE: Final[Preset] = {
    "learning_rate": 1e-3,
    "buffer_size": 1_000_000,
    "learning_starts": 1_000,
    "batch_size": 32,
    "tau": 0.01,
    "gamma": 0.99,
    "train_freq": (1, "episode"),
    "gradient_steps": -1,
    "action_noise": 0.1,
    "policy_kwargs": {"net_arch": {"pi": [1000, 500, 200], "qf": [400, 200]}},
}

#: Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, Section 7, for low-dimensional observations. Their critic
#: takes the action in its second layer and has batch norm; ours takes it at the input and has none.
LILLICRAP2015: Final[Preset] = {
    "learning_rate": 1e-4,
    "critic_learning_rate": 1e-3,
    "buffer_size": 1_000_000,
    "batch_size": 64,
    "tau": 0.001,
    "gamma": 0.99,
    "action_noise": OrnsteinUhlenbeck(sigma=0.2, theta=0.15),
    "policy_kwargs": {
        "net_arch": [400, 300],
        "last_layer_init": 3e-3,
        "critic_optimizer_kwargs": {"weight_decay": 1e-2},
    },
}

#: "Our DDPG" of Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477, Appendix; 1,000 random steps as for the smaller
#: tasks there: use learning_starts=10_000 for HalfCheetah and Ant.
FUJIMOTO2018: Final[Preset] = {
    "learning_rate": 1e-3,
    "buffer_size": 1_000_000,
    "learning_starts": 1_000,
    "batch_size": 100,
    "tau": 0.005,
    "gamma": 0.99,
    "action_noise": 0.1,
    "policy_kwargs": {"net_arch": [400, 300]},
}

#: What `simple-ddpg train` uses on Pendulum-v1: small networks, so that 20,000 timesteps take about a minute on one
#: core. Chosen over five seeds (0 to 4): its means over 100 evaluation episodes were -140 to -150. A discount of 0.99
#: (-139 to -151), last layers started in +-3e-3 (-137 to -150), 1,000 random steps (-137 to -154) did as well; this
#: is the one closest to RL Zoo's settings and to the constructor's defaults.
PENDULUM: Final[Preset] = {
    "gamma": 0.98,
    "batch_size": 128,
    "action_noise": 0.1,
    "policy_kwargs": {"net_arch": [64, 64]},
}

#: One for all environments, with normalised observations: `VecNormalize(env, norm_reward=False)`, which the commands
#: add of themselves. Chosen among 18 changes of the defaults in five environments (docs/study/summary.md): three-step
#: returns helped in four, normalisation is all that helps where observations are large. Ten fresh seeds and more:
#: LunarLander 248 at 300,000 timesteps, MountainCar 93.7, Pendulum solved by 20 of 20 within 10,000. A timestep takes
#: 1.2 to 1.4 times as long. It holds for small networks: with [400, 300] most actors of InvertedPendulum stand still at
#: a bound, unless `learning_rate=3e-4, critic_learning_rate=1e-3`. Where rewards are rare, as in MountainCar, use
#: `action_noise=OrnsteinUhlenbeck(sigma=0.5)`. docs/study.md says what was refuted.
ROBUST: Final[Preset] = {
    "n_steps": 3,
    "action_noise": 0.1,
    "policy_kwargs": {"net_arch": [64, 64], "last_layer_init": 3e-3},
}

#: Layer norm in actor and critic, two hidden layers of 256, a learning rate that falls to 0; batches and random
#: timesteps of Fujimoto et al. 2018. Chosen in screenings on Pusher, LunarLander, Swimmer and Humanoid with one to
#: three seeds (docs/mujoco/summary.md): layer norm among ten changes of the networks, the learning rate for 100,000
#: timesteps, where a constant 1e-3 goes up and down to the end. What it reaches on seven other tasks: docs/mujoco.md.
LAYER_NORM: Final[Preset] = {
    "learning_rate": LinearSchedule(start=1e-3, end=0.0, end_fraction=1.0),
    "learning_starts": 10_000,
    "batch_size": 100,
    "action_noise": 0.1,
    "policy_kwargs": {"net_arch": [256, 256], "layers": "layer_norm"},
}

_ZOO: Final[Preset] = {"learning_rate": 1e-3, "action_noise": 0.1, "policy_kwargs": {"net_arch": [400, 300]}}
_ZOO_CLASSIC: Final[Preset] = {**_ZOO, "gamma": 0.98, "buffer_size": 200_000, "learning_starts": 10_000}
_ZOO_MUJOCO: Final[Preset] = {**_ZOO, "learning_starts": 10_000, "batch_size": 256}

#: RL Zoo 2.9, https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/ddpg.yml, for the environments that Gymnasium
#: has; the zoo's MuJoCo entries are for version 4 of those tasks.
RL_ZOO: Final[dict[str, Preset]] = {
    "MountainCarContinuous-v0": {**_ZOO, "action_noise": OrnsteinUhlenbeck(sigma=0.5), "batch_size": 256},
    "Pendulum-v1": _ZOO_CLASSIC,
    "LunarLanderContinuous-v3": _ZOO_CLASSIC,
    "BipedalWalker-v3": _ZOO_CLASSIC,
    "BipedalWalkerHardcore-v3": {
        **_ZOO_CLASSIC,
        "gamma": 0.99,
        "buffer_size": 1_000_000,
        "batch_size": 256,
        "learning_rate": LinearSchedule(start=7e-4, end=0.0, end_fraction=1.0),
    },
    "HalfCheetah-v4": _ZOO_MUJOCO,
    "Ant-v4": _ZOO_MUJOCO,
    "Hopper-v4": _ZOO_MUJOCO,
    "Walker2d-v4": _ZOO_MUJOCO,
    "Humanoid-v4": _ZOO_MUJOCO,
    "Swimmer-v4": {**_ZOO_MUJOCO, "gamma": 0.9999},
}

#: By the names that `simple-ddpg train --preset` knows; "rl-zoo" stands for the entry of the environment in `RL_ZOO`.
PRESETS: Final[dict[str, Preset]] = {
    "default": DEFAULT,
    "article": ARTICLE,
    "lillicrap2015": LILLICRAP2015,
    "fujimoto2018": FUJIMOTO2018,
    "pendulum": PENDULUM,
    "robust": ROBUST,
    "layer-norm": LAYER_NORM,
}

#: Presets whose evidence is for normalised observations; with these names the commands set `NORMALIZE` too.
NORMALIZED: Final = frozenset({"robust"})

#: What `simple-ddpg train` takes where no preset is named; any other environment gets "default".
OF_ENVIRONMENT: Final[dict[str, str]] = {"Pendulum-v1": "pendulum"}


def choose_preset(name: str | None, env_id: str) -> tuple[str, Preset]:
    """
    :param name: of a preset, "rl-zoo", a file of RL Zoo's form such as `preset.yml`, or None for the environment's own
    :param env_id: name of the environment
    :return: the preset's name, and its settings, safe to change, with `NORMALIZE` where it belongs to them
    :raises ValueError: for an unknown name, a file that cannot be read, or an environment without settings
    """
    if name is None:
        name = OF_ENVIRONMENT.get(env_id, "default")
    if name == "rl-zoo":
        if env_id not in RL_ZOO:
            raise ValueError(f"RL Zoo has no DDPG settings for {env_id!r}: choose from {', '.join(RL_ZOO)}.")
        return name, deepcopy(RL_ZOO[env_id])
    if name.endswith(zoo_file.ENDINGS):
        found, normalize = zoo_file.read(Path(name), env_id)
        return name, found | ({NORMALIZE: True} if normalize else {})
    if name not in PRESETS:
        known = ", ".join([*PRESETS, "rl-zoo"])
        raise ValueError(f"There is no preset {name!r}: choose from {known}, or name a file ({zoo_file.ENDINGS[0]}).")
    return name, deepcopy(PRESETS[name]) | ({NORMALIZE: True} if name in NORMALIZED else {})
