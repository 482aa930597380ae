"""Makes the records behind docs/knobs.md: what four settings do on Pendulum-v1.

`python -m docs.play.knobs`, half an hour on one core, runs `simple-ddpg compare` twice and writes
`_static/play/records.js`.

Not here: a run, an evaluation or an equation of its own; and the drawing (`_static/play/knobs.js`).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.command_line import cli

#: What the page loads with a <script>, which works from file:// too.
RECORDS: Final = Path(__file__).parent.parent / "_static" / "play" / "records.js"

#: The numbers of the log that are shown beside the returns (docs/metrics.md defines them).
LOGGED: Final = {"q": "train/q_mean", "saturation": "train/action_saturation"}


class LoggedDDPG(SimpleDDPG):
    """
    SimpleDDPG whose log is kept, one row for each episode: a comparison keeps returns alone.

    :param log_folder: where; each seed gets a folder of its own in it
    """

    def __init__(self, *args: Any, log_folder: str, **kwargs: Any) -> None:  # noqa: ANN401 - SimpleDDPG's
        super().__init__(*args, **kwargs)
        self.log_folder = log_folder

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, **kwargs: Any) -> "LoggedDDPG":  # noqa: ANN401
        """Like `SimpleDDPG.learn`, logged after every episode."""
        self.set_logger(configure(f"{self.log_folder}/{self.seed}", ["csv"]))
        try:
            return super().learn(total_timesteps, callback, **{**kwargs, "log_interval": 1})
        finally:
            self.logger.close()


@dataclass(frozen=True)
class Knob:
    """
    One setting that the page's slider moves.

    :param title: as the page calls it
    :param values: for each variant the label at the slider, and the name of its runs
    :param limit: time limit of the environment in timesteps
    """

    title: str
    values: dict[str, str]
    limit: int = 200


#: By the name of its runs: what a variant changes in the preset `pendulum`.
CHANGES: Final[dict[int, dict[str, tuple[str, ...]]]] = {
    200: {
        "base": (),
        "tau-1": ("tau=1.0",),
        "tau-10th": ("tau=0.1",),
        "tau-2000th": ("tau=0.0005",),
        "noise-0": ("action_noise=None",),
        "noise-half": ("action_noise=0.5",),
        "critic-slow": ("critic_learning_rate=1e-4",),
        "critic-fast": ("critic_learning_rate=1e-2",),
    },
    50: {
        "limit": (),
        "limit-terminal": ("replay_buffer_kwargs={'handle_timeout_termination': False}",),
    },
}

#: Of all variants, beside the preset: the same numbers sooner.
SHARED: Final = ("all.compile_updates=True",)

KNOBS: Final = {
    "tau": Knob("tau", {"1": "tau-1", "0.1": "tau-10th", "0.005": "base", "0.0005": "tau-2000th"}),
    "noise": Knob("Exploration noise", {"0": "noise-0", "0.1": "base", "0.5": "noise-half"}),
    "limit": Knob("Time limit", {"not terminal": "limit", "terminal": "limit-terminal"}, limit=50),
    "critic": Knob(
        "Learning rate of the critic", {"0.0001": "critic-slow", "0.001": "base", "0.01": "critic-fast"}
    ),
}  # fmt: skip


def command(limit: int, seeds: int, timesteps: int) -> list[str]:
    """
    :param limit: time limit of Pendulum-v1, in timesteps
    :param seeds: number of runs of each variant
    :param timesteps: of each run
    :return: the arguments of `simple-ddpg compare`, without the folders
    """
    changes = CHANGES[limit]
    algorithms = [f"{name}=docs.play.knobs:LoggedDDPG" for name in changes]
    settings = [f"{name}.{change}" for name, each in changes.items() for change in each]
    return [
        "compare", "--env", "Pendulum-v1", "--env-kwargs", f"max_episode_steps={limit}", "--preset", "pendulum",
        "--algorithms", *algorithms, "--set", *SHARED, *settings, "--seeds", str(seeds),
        "--timesteps", str(timesteps), "--eval-every", str(timesteps // 20), "--eval-episodes", "5", "--jobs", "1",
    ]  # fmt: skip


def compare(limit: int, seeds: int, timesteps: int, folder: Path) -> None:
    """
    Run one comparison.

    :param limit: time limit, in timesteps
    :param seeds: number of runs of each variant
    :param timesteps: of each run
    :param folder: of an earlier call, which is gone on with, or a new one
    :raises RuntimeError: when a run failed
    """
    logs = [f"{name}.log_folder={folder / 'logs' / name}" for name in CHANGES[limit]]
    arguments = [*command(limit, seeds, timesteps), "--set", *logs, "--out", str(folder / "compared"), "--no-progress"]
    if cli.main([*arguments, *(["--resume"] if (folder / "compared").exists() else [])]):
        raise RuntimeError(f"a run failed: see {folder / 'compared' / 'summary.md'}")


def read(folder: Path) -> dict[str, Any]:
    """
    :param folder: of a comparison
    :return: by variant the number of seeds, and by measure a table: timesteps, then mean, lowest and highest over the
        seeds; nothing of runs that are not finished
    """
    if not (folder / "compared" / "evaluations.csv").exists():
        return {}
    evaluations = pd.read_csv(folder / "compared" / "evaluations.csv")
    found: dict[str, Any] = {}
    for name, those in evaluations.groupby("algorithm"):
        returns = those.pivot(index="timestep", columns="seed", values="mean_return")
        found[name] = {"seeds": len(returns.columns), "return": _table(returns, 1)}
        files = [folder / "logs" / name / str(seed) / "progress.csv" for seed in returns.columns]
        logged = [pd.read_csv(path).set_index("time/total_timesteps") for path in files]
        for measure, column in LOGGED.items():
            runs = pd.concat([log[column].dropna() for log in logged], axis=1)
            every = max(1, len(runs) // 25)  # the picture is 300 pixels wide
            found[name][measure] = _table(runs.iloc[::-every][::-1], 3 if measure == "saturation" else 1)
    return found


def _table(runs: pd.DataFrame, digits: int) -> list[list[float]]:
    columns = [runs.mean(axis=1), runs.min(axis=1), runs.max(axis=1)]
    return [[int(timestep) for timestep in runs.index], *(np.round(each, digits).tolist() for each in columns)]


def write(variants: dict[str, Any], timesteps: int, path: Path = RECORDS) -> None:
    """
    Write the knobs whose variants are all there.

    :param variants: what `read` gave
    :param timesteps: of each run
    :param path: the file to write
    """
    knobs = {
        name: {"title": knob.title, "limit": knob.limit, "values": [*knob.values], "variants": [*knob.values.values()]}
        for name, knob in KNOBS.items()
        if variants.keys() >= {*knob.values.values()}
    }
    shown = {name for knob in knobs.values() for name in knob["variants"]}
    page = {"timesteps": timesteps, "knobs": knobs, "variants": {name: variants[name] for name in sorted(shown)}}
    text = json.dumps(page, separators=(",", ":"))
    path.write_text(f"// Written by `python -m docs.play.knobs`.\nglobalThis.KNOB_RECORDS={text};\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line; None for those that were typed
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each variant, at least 2")
    parser.add_argument("--timesteps", type=int, default=8_000, help="of each run")
    parser.add_argument("--folder", type=Path, help="keep the comparisons there, and go on with those that it has")
    parser.add_argument("--so-far", action="store_true", help="run nothing: write the knobs that the folder has whole")
    parser.add_argument("--out", type=Path, default=RECORDS, help="the file to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        variants: dict[str, Any] = {}
        for limit in CHANGES:
            if not options.so_far:
                compare(limit, options.seeds, options.timesteps, folder / str(limit))
            variants |= read(folder / str(limit))
    write(variants, options.timesteps, options.out)


if __name__ == "__main__":
    main()
