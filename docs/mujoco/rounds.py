"""The rounds of the MuJoCo study: which arms, tasks, seeds and timesteps. Not here: how they are run (`run.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Arm:
    """
    One side of a comparison.

    :param settings: as after `--set` of `simple-ddpg compare`
    :param preset: one of `presets.PRESETS`, under the settings
    :param algorithm: a name that `--algorithms` knows
    :param seeds: with how many of the round's seeds it runs, by task; a task that is not named has none. None: with
        all of them, everywhere
    """

    settings: tuple[str, ...] = ()
    preset: str | None = None
    algorithm: str = "sb3_simple_ddpg:SimpleDDPG"
    seeds: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Round:
    """
    Arms that are compared on the same tasks and seeds.

    :param tasks: names of environments
    :param arms: by their names in tables
    :param against: arms that the others are compared with
    :param timesteps: of each run
    :param eval_every: timesteps between two evaluations
    :param seeds: number of seeds; an arm may have fewer
    :param first_seed: fresh ones for each round that decides something
    :param checkpoint_every: timesteps between two checkpoints, for runs of hours, of SimpleDDPG alone; 0: none, a run
        that is stopped begins anew. An episode ends at each checkpoint
    :param base: in a screening, the arm that the others change; few seeds have a table of their own
    """

    tasks: tuple[str, ...]
    arms: dict[str, Arm]
    against: tuple[str, ...]
    timesteps: int
    eval_every: int
    seeds: int
    first_seed: int = 0
    checkpoint_every: int = 0
    base: str | None = None

    def seeds_of(self, arm: str, task: str) -> range:
        """
        :param arm: its name
        :param task: name of the environment
        :return: the seeds of its runs on that task
        """
        fewer = self.arms[arm].seeds
        return range(self.first_seed, self.first_seed + (self.seeds if fewer is None else fewer.get(task, 0)))


EVAL_EPISODES: Final = 10
FAST: Final = "compile_updates=True"
#: The preset that the screenings chose.
THE_BEST: Final = {"layer-norm": Arm((FAST,), "layer-norm")}

SEVEN: Final = (
    "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Reacher-v5", "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
)  # fmt: skip

#: One change each of the base, and what SimBa is beside its layers; then what helped, together.
BASE: Final = (FAST, "policy_kwargs.net_arch=[256,256]")
#: 128 numbers go through a block of 256 units: as many multiplications as between two layers of 256.
RESIDUAL: Final = ("policy_kwargs.layers=residual", "policy_kwargs.net_arch=[128,256]")
DECAY: Final = ("policy_kwargs.optimizer_class=AdamW", "policy_kwargs.optimizer_kwargs.weight_decay=1e-2")
CHANGES: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "norm-critic": ("policy_kwargs.layers.qf=layer_norm",),
    "norm-both": ("policy_kwargs.layers=layer_norm",),
    "residual-critic": (
        "policy_kwargs.layers.qf=residual", "policy_kwargs.net_arch={'pi': [256, 256], 'qf': [128, 256]}",
    ),
    "residual-both": RESIDUAL,
    "decay": DECAY,
    "normalized": ("normalize_observations=True",),
    "n-steps-3": ("n_steps=3",),
    "slow-actor": ("learning_rate=3e-4", "critic_learning_rate=1e-3"),
    "pink": ("action_noise=ColoredNoise(sigma=0.1)",),
    "simba": (*RESIDUAL, *DECAY, "normalize_observations=True"),
}  # fmt: skip
#: What stood out with the screening's seed, alone and together.
COMBINED: Final[dict[str, tuple[str, ...]]] = {
    **{name: CHANGES[name] for name in ("base", "norm-both", "residual-both", "normalized")},
    "norm-normalized": (*CHANGES["norm-both"], *CHANGES["normalized"]),
    "norm-normalized-slow": (*CHANGES["norm-both"], *CHANGES["normalized"], *CHANGES["slow-actor"]),
    "norm-normalized-slow-3": tuple(
        setting for name in ("norm-both", "normalized", "slow-actor", "n-steps-3") for setting in CHANGES[name]
    ),
    "residual-normalized": (*RESIDUAL, *CHANGES["normalized"]),
}
#: What may keep a long training steady, alone and together: of layer norm in both, which 25,000 timesteps chose.
SLOW, WARM_UP = ("learning_rate=3e-4",), ("learning_starts=10_000",)
SLOWER: Final = ("learning_rate=1e-4",)  # SimBa's own
FALLING: Final = ("learning_rate=LinearSchedule(start=1e-3, end=1e-4, end_fraction=1.0)",)
TO_ZERO: Final = ("learning_rate=LinearSchedule(start=1e-3, end=0.0, end_fraction=1.0)",)  # RL Zoo's lin_1e-3
STEADIER: Final[dict[str, tuple[str, ...]]] = {
    "norm": CHANGES["norm-both"],
    "norm-warm-up": (*CHANGES["norm-both"], *WARM_UP),
    "norm-slow": (*CHANGES["norm-both"], *SLOW),
    "norm-slow-warm-up": (*CHANGES["norm-both"], *SLOW, *WARM_UP),
    "norm-slow-actor-warm-up": (*CHANGES["norm-both"], *CHANGES["slow-actor"], *WARM_UP),
    "norm-slow-warm-up-3": (*CHANGES["norm-both"], *SLOW, *WARM_UP, "n_steps=3"),
    "norm-slow-warm-up-batch-100": (*CHANGES["norm-both"], *SLOW, *WARM_UP, "batch_size=100"),
    "norm-normalized-slow-warm-up": (*CHANGES["norm-both"], *CHANGES["normalized"], *SLOW, *WARM_UP),
    "simba-slower-warm-up": (*CHANGES["simba"], *SLOWER, *WARM_UP),
    "norm-slower-warm-up": (*CHANGES["norm-both"], *SLOWER, *WARM_UP),
    "norm-decay-normalized-slower-warm-up": (
        *CHANGES["norm-both"],
        *DECAY,
        *CHANGES["normalized"],
        *SLOWER,
        *WARM_UP,
    ),
    "norm-slow-batch-100": (*CHANGES["norm-both"], *SLOW, "batch_size=100"),
    "norm-warm-up-batch-100": (*CHANGES["norm-both"], *WARM_UP, "batch_size=100"),
    "norm-falling-warm-up-batch-100": (*CHANGES["norm-both"], *FALLING, *WARM_UP, "batch_size=100"),
    "norm-to-zero-warm-up-batch-100": (*CHANGES["norm-both"], *TO_ZERO, *WARM_UP, "batch_size=100"),
}
LANDER: Final = "LunarLanderContinuous-v3"
#: None of them in the final rounds.
FOUR: Final = ("Pusher-v5", LANDER, "Swimmer-v5", "BipedalWalker-v3")
#: Seeds of those of STEADIER that have more than one of LunarLander, or other tasks. On Pusher and Swimmer nothing
#: falls: what counts there is how fast an arm learns.
FAST_TASKS: Final = {"Pusher-v5": 1, "Swimmer-v5": 1}
MORE: Final[dict[str, dict[str, int]]] = {
    "norm": {LANDER: 2, "Humanoid-v5": 1, **FAST_TASKS},
    "norm-slow": {LANDER: 2},
    "norm-slow-warm-up": {LANDER: 2, "Humanoid-v5": 1},
    "norm-slower-warm-up": {LANDER: 2, "Humanoid-v5": 1},
    "simba-slower-warm-up": {LANDER: 2, "Humanoid-v5": 1},
    "norm-slow-warm-up-batch-100": {LANDER: 2, **FAST_TASKS},
    "norm-slow-batch-100": FAST_TASKS,
    "norm-warm-up-batch-100": {LANDER: 2, **FAST_TASKS},
    "norm-falling-warm-up-batch-100": {LANDER: 2, **FAST_TASKS},
    "norm-to-zero-warm-up-batch-100": {LANDER: 2},
}

FINAL: Final = {
    **THE_BEST,
    # What the first screenings chose; it was stopped when it went up and down on the tasks where something falls.
    "norm": Arm(
        ("action_noise=0.1", *BASE, *CHANGES["norm-both"]), seeds={**dict.fromkeys(SEVEN, 1), "HalfCheetah-v5": 2}
    ),
    "default": Arm((FAST,)),
    "ddpg": Arm(
        ("action_noise=0.1",),
        algorithm="stable_baselines3:DDPG",
        seeds=dict.fromkeys(("HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5"), 10),
    ),
}

ROUNDS: Final = {
    "screening": Round(
        FOUR, {name: Arm((*BASE, *changes)) for name, changes in CHANGES.items()}, (), 25_000, 2_500, seeds=1,
        first_seed=1_000, base="base",
    ),
    # Without BipedalWalker, which no change learned in so few timesteps.
    "combinations": Round(
        FOUR[:3],
        {name: Arm((*BASE, *changes), seeds=dict.fromkeys(FOUR[:3], 1) if "slow" in name else None)
         for name, changes in COMBINED.items()},
        (), 25_000, 2_500, seeds=2, first_seed=1_001, base="base",
    ),
    # As long as the final rounds, on tasks whose episodes end by a fall, and two others.
    "steadier": Round(
        (LANDER, "Humanoid-v5", *FAST_TASKS),
        {name: Arm((*BASE, *changes), seeds=MORE.get(name, {LANDER: 1})) for name, changes in STEADIER.items()},
        (), 100_000, 5_000, seeds=2, first_seed=1_003, base="norm",
    ),
    # Nothing learns to walk in so few timesteps either, so there is no base: its scale would be noise.
    "walker": Round(
        FOUR[3:], {name: Arm((*BASE, *STEADIER[name])) for name in ("norm", "norm-slow")}, (), 100_000, 5_000, seeds=1,
        first_seed=1_003,
    ),
    "final-100k": Round(SEVEN, FINAL, ("ddpg", "default"), 100_000, 5_000, seeds=10),
    # Once the rest stands, and about an hour and a half each.
    "final-1m": Round(SEVEN[:3], THE_BEST, (), 1_000_000, 10_000, seeds=5, checkpoint_every=50_000),
}  # fmt: skip
