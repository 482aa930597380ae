"""When a setting is stopped: where its seeds are worse than those of the best trial, timestep for timestep.

Not here: who runs the seeds (`search.py`), and what is said at the end (`verdict.py`).
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

#: A trial's attribute: by seed, by timestep, the mean return of an evaluation. Keys are text, as in JSON.
CURVES: Final = "curves"
Curves: TypeAlias = Mapping[str, Mapping[str, float]]


class PairedSeedsPruner(optuna.pruners.BasePruner):
    """
    Stops a trial that is worse than the best one so far at the same timestep, on the same seeds.

    With x_i the return of the trial's seed i in an evaluation at timestep t, and b_i that of the best finished trial's
    run with the same seed at the same t, i = 1 ... K, a one-sided paired t-test ("Student" 1908, Biometrika 6, 1-25)
    asks whether the differences d_i = x_i - b_i have a mean below 0:

        t = mean(d) / (sd(d) / sqrt(K)),   p = P(T_{K-1} <= t).

    It looks after each of the L evaluations between the beginning and the end, and stops where p <= (1 - confidence) /
    L. By Bonferroni's inequality all L looks together stop a setting that is as good as the best in at most
    1 - confidence of all cases, however the looks depend on each other. Racing settings against the best with paired
    tests goes back to Maron and Moore 1994 (Hoeffding races) and Birattari et al. 2002 (F-Race); the paired t-test is
    an option of irace (Lopez-Ibanez et al. 2016, Operations Research Perspectives 3, 43-58).

    What it does not say: returns are not normal, so for few seeds the level is about right and no more; the best trial
    was chosen for its runs on these seeds, which flatters it; and a setting that would have risen late is stopped
    early. Optuna's WilcoxonPruner asks the same with ranks, whose p cannot fall below 1 / 2^K: 0.125 for three seeds.

    :param confidence: 0.95: at most 5 of 100 settings as good as the best are stopped
    :param looks: L, number of evaluations at which a trial may be stopped
    """

    def __init__(self, confidence: float, looks: int) -> None:
        self.confidence = confidence
        self.looks = looks

    @property
    def level(self) -> float:
        """The p at which a single look stops a trial."""
        return (1 - self.confidence) / max(1, self.looks)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """
        :param study: with the trials so far
        :param trial: with `CURVES`, of which the last reported timestep is looked at
        :return: whether to stop it
        """
        rival = best_of(study)
        if rival is None or trial.last_step is None:
            return False
        return p_worse(trial.user_attrs[CURVES], rival.user_attrs[CURVES], trial.last_step) <= self.level


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """
    :param study: with the trials so far
    :return: the best of those that came to their end; None without one
    """
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE]
    return max(finished, key=lambda trial: trial.values[0], default=None)


def p_worse(own: Curves, best: Curves, timestep: int) -> float:
    """
    :param own: curves of a trial
    :param best: curves of the best one, with the same seeds
    :param timestep: at which both were evaluated
    :return: p of the one-sided paired t-test that the trial is as good or better; 1.0 for fewer than two pairs
    """
    at = str(timestep)
    pairs = [(own[seed][at], best[seed][at]) for seed in own if at in own[seed] and at in best.get(seed, {})]
    if len(pairs) < 2:
        return 1.0
    differences = np.subtract(*np.transpose(pairs))
    if np.ptp(differences) == 0:  # no spread, nothing to test
        return 0.0 if differences[0] < 0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="less").pvalue)
