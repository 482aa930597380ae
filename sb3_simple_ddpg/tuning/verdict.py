"""The verdict on a search: its best trials and the default again on fresh seeds, and what that says.

Not here: the runs, their tables and their pictures (`experiment/comparison.py`), and the formulas
(`experiment/statistics.py`).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_simple_ddpg.benchmark.report import markdown
from sb3_simple_ddpg.experiment import report, statistics
from sb3_simple_ddpg.experiment.experiment import Experiment
from sb3_simple_ddpg.experiment.folder import write_whole
from sb3_simple_ddpg.experiment.runs import digits_of
from sb3_simple_ddpg.experiment.statistics import Difference, Interval
from sb3_simple_ddpg.tuning import study as studies
from sb3_simple_ddpg.tuning.display import outcome

#: How many of the best trials are confirmed.
FEW: Final = 3

DEFAULT: Final = "default"

PICTURES: Final = ("history", "importance", "parallel_coordinates")
PAGE, PRESET, TRIALS = "summary.md", "preset.yml", "trials.csv"


def name_of(trial: FrozenTrial) -> str:
    """
    :param trial: of a study
    :return: its name in the confirmation
    """
    return f"trial-{trial.number}"


def best_few(trials: Sequence[FrozenTrial], default: Mapping[str, Any] | None) -> list[FrozenTrial]:
    """
    :param trials: of a study
    :param default: parameters of the trial that has the default's settings, where the space holds them
    :return: the best of those that came to their end, the best first; the default is confirmed anyway
    """
    whole = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.params != default]
    return sorted(whole, key=lambda trial: -trial.values[0])[:FEW]


@dataclass(frozen=True)
class Confirmed:
    """
    What fresh seeds say of one trial.

    :param name: of the trial
    :param promised: mean final return in the search
    :param mean: final return on the fresh seeds
    :param found: its runs against those of the default
    :param p_value: corrected for the number of trials that are confirmed
    :param verdict: "better", "worse", "equivalent", "no difference shown" or "too few runs"
    """

    name: str
    promised: float
    mean: Interval
    found: Difference
    p_value: float
    verdict: str

    @property
    def said(self) -> str:
        """The verdict in the words of the page."""
        words = {"equivalent": "the same", "better": "better", "worse": "worse"}
        return words.get(self.verdict, "not to be told")

    def sentence(self) -> str:
        """
        :return: the verdict, with its numbers
        """
        p = f"p = {self.p_value:.3g}"
        beats = f"a run of it beats one of the default with probability {report.text(self.found.improvement, 2)}"
        if self.verdict in ("better", "worse"):
            return f"{self.name} is {self.verdict} than the default ({p}): {beats}."
        if self.verdict == "equivalent":
            return (
                f"{self.name} and the default are the same: no difference ({p}), and their means differ by less than "
                f"{self.found.margin:.3g} (two one-sided tests, p = {self.found.equivalence_p_value:.2g})."
            )
        if self.verdict == "too few runs":
            return f"Whether {self.name} is better than the default is not to be told: too few seeds for any p of 0.05."
        more = (
            "no margin was given"
            if self.found.margin is None
            else f"nor are they the same within {self.found.margin:.3g}"
        )
        return f"Whether {self.name} is better than the default is not to be told ({p}): {beats}; {more}."


def confirm(experiment: Experiment, promised: Mapping[str, float]) -> list[Confirmed]:
    """
    :param experiment: records of the confirmation
    :param promised: mean final return in the search, by name of the trial
    :return: what it says of each trial with two runs at least, the best first
    """
    (env_id,) = experiment.plan["env_ids"]
    margin = experiment.plan["margins"][env_id]
    finals = {
        name: experiment.runs[experiment.runs.algorithm == name].sort_values("seed").final_return.to_numpy(float)
        for name in [DEFAULT, *promised]
    }
    whole = [name for name in promised if min(len(finals[name]), len(finals[DEFAULT])) > 1]
    differences = [statistics.difference(finals[name], finals[DEFAULT], margin) for name in whole]
    corrected = statistics.holm([found.p_value for found in differences])
    confirmed = [
        Confirmed(
            name, promised[name], statistics.interval([finals[name]], statistics.mean), found, p_value,
            found.verdict(len(whole), p_value),
        )
        for name, found, p_value in zip(whole, differences, corrected, strict=True)
    ]  # fmt: skip
    return sorted(confirmed, key=lambda each: -each.mean.estimate)


def sentences(confirmed: Sequence[Confirmed], seeds: int) -> list[str]:
    """
    :param confirmed: what fresh seeds say
    :param seeds: number of them
    :return: the result, in words
    """
    if not confirmed:
        return [NOBODY]
    better = [each for each in confirmed if each.verdict == "better"]
    head = (
        f"**Better than the default: {better[0].name}**, shown on {seeds} fresh seeds."
        if better
        else f"**Not better than the default**, as far as {seeds} fresh seeds show."
    )
    first = max(confirmed, key=lambda each: each.promised)
    digits = digits_of([first.promised, first.mean.estimate])
    fallen = first.promised - first.mean.estimate
    optimism = (
        f"Optimism of the search: its best trial, {first.name}, reached {first.promised:z.{digits}f} on the seeds it "
        f"was chosen by and {report.text(first.mean, digits)} on fresh ones, "
        + (f"{fallen:.{digits}f} less." if fallen > 0 else "no less.")
    )
    return [head, *(each.sentence() for each in confirmed), optimism]


BROKEN: Final = "Nothing can be said: too many runs of the confirmation failed. --resume runs them again."

NOBODY: Final = (
    "**Not better than the default**: no other setting came to its end, so there was nothing to confirm. More trials, "
    "more timesteps or another space may tell."
)


def winner(confirmed: Sequence[Confirmed]) -> Confirmed | None:
    """
    :param confirmed: what fresh seeds say, the best first
    :return: the best of those that are better than the default; where none is, the best; None for none
    """
    return next((each for each in confirmed if each.verdict == "better"), confirmed[0] if confirmed else None)


def draw(study: optuna.Study, folder: Path) -> list[str]:
    """
    :param study: to be drawn
    :param folder: where the pictures go
    :return: names of those that there is enough for
    """
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from optuna.visualization import matplotlib as pictures

    drawn = []
    functions: tuple[Callable[..., Axes], ...] = (
        pictures.plot_optimization_history, pictures.plot_param_importances, pictures.plot_parallel_coordinate,
    )  # fmt: skip
    values = {trial.values[0] for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE}
    for name, function in zip(PICTURES, functions, strict=True):
        if not values or (name == "importance" and len(values) < 2):
            continue
        with warnings.catch_warnings(), plt.rc_context():  # they set a style for all pictures of the process
            warnings.simplefilter("ignore")  # Optuna's pictures are experimental, and warn of their own layout
            axes = function(study, target_name="mean final return")
            figure = axes.get_figure(root=True)
            assert figure is not None
            figure.set_size_inches((11, 5) if name == "parallel_coordinates" else (8, 4.5))
            picture = BytesIO()
            figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
            plt.close(figure)
        write_whole(folder / f"{name}.png", picture.getvalue())
        drawn.append(name)
    return drawn


def page(
    title: str, sentences: Sequence[str], confirmed: Sequence[Confirmed], settings: Mapping[str, Mapping[str, str]],
    trials: Sequence[FrozenTrial], pictures: Sequence[str], protocol: str, default: Interval | None,
) -> str:  # fmt: skip
    """
    :param title: of the page
    :param sentences: the result, in words
    :param confirmed: what fresh seeds say
    :param settings: by name of the trial, what it sets, as text
    :param trials: of the study
    :param pictures: names of those that lie beside it
    :param protocol: how it was done
    :param default: its final return on the fresh seeds
    :return: `summary.md`
    """
    parts = [f"# {title}", "## Result", "\n".join(f"- {sentence}" for sentence in sentences)]
    if confirmed and default is not None:
        digits = digits_of([default.estimate, *(each.mean.estimate for each in confirmed)])
        heads = ("setting", "in the search", "on fresh seeds, mean", "better than the default with p.", "p", "verdict")
        rows = [[DEFAULT, "-", report.text(default, digits), "-", "-", "-"]]
        rows += [
            [
                each.name, f"{each.promised:z.{digits}f}", report.text(each.mean, digits),
                report.text(each.found.improvement, 2), f"{each.p_value:.3g}", each.said,
            ]
            for each in confirmed
        ]  # fmt: skip
        parts += ["## Confirmed on fresh seeds", markdown(heads, rows, [])]
        parts += ["Runs, tables and pictures of the confirmation: [confirmation/summary.md](confirmation/summary.md)."]
        names = list(dict.fromkeys(name for each in settings.values() for name in each))
        rows = [[name, *(each.get(name, "") for each in settings.values())] for name in names]
        parts += ["## Settings", markdown(("setting", *settings), rows, [])]
    over = studies.ended(trials)
    counts = [
        (len([trial for trial in over if trial.state is state]), word)
        for state, word in (
            (TrialState.COMPLETE, "came to their end"),
            (TrialState.PRUNED, "were stopped early"),
            (TrialState.FAIL, "failed"),
        )
    ]
    minutes = sum(trial.duration.total_seconds() for trial in over if trial.duration is not None) / 60
    said = ", ".join(f"{count} {word}" for count, word in counts)
    parts += ["## The search", f"{len(over)} trials: {said}. One after the other they take {minutes:.0f} min."]
    parts += ["\n".join(f"- Trial {trial.number} {outcome(trial)}." for trial in over)]
    parts += [f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures]
    parts += ["## How it was done", protocol]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def mean_of_default(experiment: Experiment) -> Interval | None:
    """
    :param experiment: records of the confirmation
    :return: mean final return of the default; None for fewer than two runs
    """
    finals = experiment.runs[experiment.runs.algorithm == DEFAULT].final_return
    return statistics.interval([np.asarray(finals, float)], statistics.mean) if len(finals) > 1 else None
