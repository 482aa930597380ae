"""Returns of many runs to numbers with intervals, so that two algorithms can be compared honestly. On scipy and numpy.

Not here: how the runs are made (`experiment.py`), tables (`comparison.py`) and pictures (`plotting.py`).

Sources, by the names used below:

- Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
  https://arxiv.org/abs/2108.13264: which numbers to show, and the stratified bootstrap.
- Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 371-386, Section
  5.3: the plain percentile interval is too narrow for few runs (of ten, 90 % coverage instead of 95); it is widened.
- Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2",
  Statistics in Medicine 25(4), 559-573, method 5: where every run of one algorithm beats every run of the other.

A *task* is an environment; a *sample* holds one number for each run of one algorithm on one task, shape (N,): N runs.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import integrate, optimize, stats

Array: TypeAlias = npt.NDArray[np.float64]
#: Takes one sample for each task and an axis; gives the statistic along that axis.
Statistic: TypeAlias = Callable[..., Any]

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Interval:
    """
    :param estimate: of the runs that there are
    :param low: lower end of the confidence interval; -inf or inf where the runs cannot bound it
    :param high: upper end
    """

    estimate: Any
    low: Any
    high: Any

    def holds(self, value: float) -> bool:
        """
        :param value: a number
        :return: whether it lies in the interval, ends included
        """
        return bool(self.low <= value <= self.high)


def mean(*samples: npt.ArrayLike, axis: int = -1) -> Any:  # noqa: ANN401 - a number or an array of them
    """
    Mean over all runs of all tasks. Agarwal et al. 2021, Section 4.

    :param samples: one for each task
    :param axis: along which the runs lie
    :return: the mean
    """
    return np.mean(_pool(samples, axis), axis=axis)


def median(*samples: npt.ArrayLike, axis: int = -1) -> Any:  # noqa: ANN401
    """
    Median: for one task, the middle run. For several, the median over tasks of each task's mean, which is what Agarwal
    et al. 2021, Section 4, and most papers call the median.

    :param samples: one for each task
    :param axis: along which the runs lie
    :return: the median
    """
    if len(samples) == 1:
        return np.median(np.asarray(samples[0], float), axis=axis)
    return np.median([np.mean(np.asarray(sample, float), axis=axis) for sample in samples], axis=0)


def iqm(*samples: npt.ArrayLike, axis: int = -1) -> Any:  # noqa: ANN401
    """
    Interquartile mean: the mean without the lowest and the highest quarter, floor(n / 4) at each end, of all runs of
    all tasks. Agarwal et al. 2021, Section 4.3.

    :param samples: one for each task
    :param axis: along which the runs lie
    :return: the interquartile mean
    """
    return stats.trim_mean(_pool(samples, axis), 0.25, axis=axis)


def optimality_gap(*samples: npt.ArrayLike, axis: int = -1, target: float = 1.0) -> Any:  # noqa: ANN401
    """
    How far the runs stay below the target: mean of max(target - x, 0). Agarwal et al. 2021, Section 4.3.

    :param samples: one for each task, normalised so that the target means the same in each
    :param axis: along which the runs lie
    :param target: the score that is good enough
    :return: the gap; 0 is best
    """
    return np.mean(np.maximum(target - _pool(samples, axis), 0.0), axis=axis)


def interval(
    samples: Sequence[npt.ArrayLike],
    statistic: Statistic = iqm,
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """
    A statistic with its stratified-bootstrap interval: runs are drawn again with replacement, within each task. Agarwal
    et al. 2021, Section 4.2 and Appendix; `scipy.stats.bootstrap`, percentile method, at Hesterberg's widened level

        1 - 2 Phi(-sqrt(n / (n - 1)) t),  t the (1 + confidence) / 2 quantile of Student's t,

    n the runs of the smallest sample, degrees of freedom the number of runs less the number of samples. In simulations
    (tests/test_statistics.py) it covers the truth in 92 to 97 of 100 cases from ten runs on; the mean of very skewed
    returns needs more runs: 88 of 100 with ten.

    :param samples: one for each task, runs along the first axis; further axes, alike in all, are done one by one
    :param statistic: `iqm`, `mean`, `median`, `optimality_gap` or another of their form
    :param confidence: 0.95: about 95 of 100 such intervals hold the true value
    :param resamples: number of bootstrap resamples
    :param seed: of the resampling
    :return: estimate and interval
    :raises ValueError: for a sample of fewer than two runs, or a number that is not finite
    """
    arrays = [_check_sample(sample) for sample in samples]
    estimate = statistic(*arrays, axis=0)
    bounds = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=resamples,
        batch=250,
        vectorized=True,
        axis=0,
        confidence_level=_widened(confidence, [len(array) for array in arrays]),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    found = (estimate, bounds.low, bounds.high)
    return Interval(*(float(each) if np.ndim(each) == 0 else np.asarray(each) for each in found))


def probability_of_improvement(
    samples: Sequence[npt.ArrayLike],
    others: Sequence[npt.ArrayLike],
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """
    How probable it is that a run of X beats a run of Y: P(X > Y) + P(X = Y) / 2, Mann and Whitney's U / (n m), mean
    over tasks. Agarwal et al. 2021, Section 4.3. 0.5 means no difference.

    Where all runs of one beat all of the other, resamples do not differ; the interval is then Newcombe's, for the
    smallest samples.

    :param samples: of X, one for each task
    :param others: of Y, for the same tasks
    :param confidence: of the interval
    :param resamples: number of bootstrap resamples
    :param seed: of the resampling
    :return: the probability, with the interval of `interval`
    :raises ValueError: for another number of tasks, fewer than two runs, or a number that is not finite
    """
    if len(samples) != len(others):
        raise ValueError(f"Both must have the same tasks, got {len(samples)} samples and {len(others)}.")
    found = interval([*samples, *others], _improvement, confidence, resamples, seed)
    if found.low == found.high and found.estimate in (0.0, 1.0):
        runs, other_runs = (min(len(np.asarray(sample)) for sample in group) for group in (samples, others))
        bound = _newcombe_bound(runs, other_runs, confidence)
        return Interval(1.0, 1 - bound, 1.0) if found.estimate == 1.0 else Interval(0.0, 0.0, bound)
    return found


def _improvement(*samples: Array, axis: int = -1) -> Any:  # noqa: ANN401
    half = len(samples) // 2
    shares = []
    for sample, other in zip(samples[:half], samples[half:], strict=True):
        own = np.expand_dims(np.moveaxis(sample, axis, -1), -1)
        their = np.expand_dims(np.moveaxis(other, axis, -1), -2)
        shares.append(((own > their) + 0.5 * (own == their)).mean((-2, -1)))
    return np.mean(shares, axis=0)


def _newcombe_bound(runs: int, other_runs: int, confidence: float) -> float:
    """Largest p whose distance to an estimate of 0 is z standard errors, both as p itself gives them."""
    z = stats.norm.ppf((1 + confidence) / 2)
    size = (runs + other_runs) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + size * ((1 - p) / (2 - p) + p / (1 + p))) / (runs * other_runs)
        return float(p * p - z * z * variance)

    return float(optimize.brentq(excess, 1e-9, 1 - 1e-9))


def performance_profile(
    samples: Sequence[npt.ArrayLike], thresholds: npt.ArrayLike, confidence: float = CONFIDENCE, resamples: int = 1_000
) -> Interval:
    """
    Share of runs above each threshold, mean over tasks, with a pointwise interval. Agarwal et al. 2021, Section 4.1.

    :param samples: one for each task, normalised where there are several
    :param thresholds: T scores, shape (T,)
    :param confidence: of the interval
    :param resamples: number of bootstrap resamples
    :return: three arrays of shape (T,), each in [0, 1]
    """
    levels = np.asarray(thresholds, float)
    above = [(_check_sample(sample)[:, None] > levels).astype(float) for sample in samples]
    return interval(above, lambda *own, axis: np.mean([task.mean(axis) for task in own], axis=0), confidence, resamples)


def area_under_curve(timesteps: npt.ArrayLike, returns: npt.ArrayLike) -> float:
    """
    Area under a learning curve by the trapezoidal rule, through its length: the mean return over training, in the unit
    of the return. It rewards learning early as well as ending high.

    :param timesteps: T of them, rising
    :param returns: at those timesteps, shape (T,)
    :return: the area through (last timestep - first)
    :raises ValueError: for fewer than two points
    """
    x = np.asarray(timesteps, float)
    if len(x) < 2:
        raise ValueError(f"A learning curve needs at least two evaluations, got {len(x)}: lower eval_every.")
    return float(integrate.trapezoid(np.asarray(returns, float), x) / (x[-1] - x[0]))


def first_reached(at: npt.ArrayLike, returns: npt.ArrayLike, threshold: float) -> float:
    """
    When a run first reached a threshold. A run that never did is *censored*: later than the end, and nobody knows when.

    :param at: timesteps or seconds of the evaluations, rising, shape (T,)
    :param returns: mean return of each evaluation, shape (T,)
    :param threshold: to be reached, the number itself included
    :return: the first of `at` with a return of at least the threshold; inf for none
    """
    reached = np.flatnonzero(np.asarray(returns, float) >= threshold)
    return float(np.asarray(at, float)[reached[0]]) if len(reached) else math.inf


def median_time(times: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """
    Median time to a threshold over runs, censored ones (inf) counted as later than all others, so that they are neither
    left out nor given a time. The interval is the order statistics' (`scipy.stats.quantile_test`; Conover 1999, Section
    3.2): exact, and without a bound where the runs are too few or too often censored.

    :param times: what `first_reached` gave for each run
    :param confidence: of the interval
    :return: median and interval, inf where it lies beyond the end of the runs
    """
    array = np.asarray(times, float)
    bounds = stats.quantile_test(array, p=0.5).confidence_interval(confidence)
    low = 0.0 if np.isnan(bounds.low) else float(bounds.low)
    high = math.inf if np.isnan(bounds.high) else float(bounds.high)
    return Interval(float(np.median(array)), low, high)


def fraction_solved(returns: npt.ArrayLike, threshold: float, confidence: float = CONFIDENCE) -> Interval:
    """
    Share of runs that end at or above a threshold, with Wilson's interval (`scipy.stats.binomtest`; Wilson 1927).

    :param returns: at the end, one for each run
    :param threshold: above which the task is solved
    :param confidence: of the interval
    :return: share and interval, in [0, 1]
    """
    solved = np.asarray(returns, float) >= threshold
    bounds = stats.binomtest(int(solved.sum()), len(solved)).proportion_ci(confidence, method="wilson")
    return Interval(float(solved.mean()), float(bounds.low), float(bounds.high))


def speed_ratio(seconds: npt.ArrayLike, reference_seconds: npt.ArrayLike) -> Interval:
    """
    How many times as fast: geometric mean of the reference's seconds through that of the own ones, exp(mean(log y) -
    mean(log x)), with the interval of `interval`.

    :param seconds: of each run
    :param reference_seconds: of each run of the reference
    :return: above 1: faster than the reference
    """
    logs = [np.log(np.asarray(each, float)) for each in (seconds, reference_seconds)]
    found = interval(logs, lambda own, reference, axis: reference.mean(axis) - own.mean(axis))
    return Interval(math.exp(found.estimate), math.exp(found.low), math.exp(found.high))


def normalise(returns: npt.ArrayLike, low: float, high: float) -> Array:
    """
    :param returns: of one task
    :param low: the return that counts as 0, that of random actions
    :param high: the return that counts as 1
    :return: (returns - low) / (high - low)
    :raises ValueError: unless low < high
    """
    if not low < high:
        raise ValueError(f"Scores cannot be normalised between {low} and {high}: the second must be higher.")
    return (np.asarray(returns, float) - low) / (high - low)


@dataclass(frozen=True)
class Difference:
    """
    What two samples X and Y say about the difference of their algorithms.

    :param improvement: probability that a run of X beats one of Y
    :param p_value: of the two-sided Mann-Whitney test: how often equal algorithms would differ as much
    :param smallest_p_value: that the test could give at all with so many runs
    :param equivalence_p_value: of the two one-sided tests; small: the means differ by less than the margin
    :param margin: in the unit of the returns; None: equivalence was not asked
    """

    improvement: Interval
    p_value: float
    smallest_p_value: float
    equivalence_p_value: float | None
    margin: float | None

    @property
    def equivalent(self) -> bool:
        """Whether the means are shown to differ by less than the margin."""
        return self.equivalence_p_value is not None and self.equivalence_p_value <= SIGNIFICANCE

    def verdict(self, tests: int = 1, p_value: float | None = None) -> str:
        """
        :param tests: number of tests that this is one of
        :param p_value: corrected for that number, see `holm`; None: as it is
        :return: "better", "worse", "equivalent", "no difference shown" or "too few runs"
        """
        if (self.p_value if p_value is None else p_value) <= SIGNIFICANCE:
            return "better" if self.improvement.estimate > 0.5 else "worse"
        if tests * self.smallest_p_value > SIGNIFICANCE:
            return "too few runs"  # who could not have seen a difference cannot claim that there is none
        return "equivalent" if self.equivalent else "no difference shown"


def difference(sample: npt.ArrayLike, other: npt.ArrayLike, margin: float | None = None) -> Difference:
    """
    Whether two algorithms differ on one task: Mann and Whitney's test (`scipy.stats.mannwhitneyu`; exact for few runs
    without ties, by permutations for few runs with ties), and whether their means are equivalent: two one-sided Welch
    tests against the margin (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680).

    :param sample: X, shape (N,)
    :param other: Y, shape (M,)
    :param margin: differences of the means below it do not matter; None: do not ask
    :return: probabilities and verdict
    :raises ValueError: for fewer than two runs, a number that is not finite, or a margin that is not above 0
    """
    own, their = _check_sample(sample), _check_sample(other)
    if margin is not None and not margin > 0:
        raise ValueError(f"The margin of equivalence must be above 0, got {margin}.")
    few = min(len(own), len(their)) <= 8
    ties = len(np.unique([*own, *their])) < len(own) + len(their)
    method: Any = "auto"
    if few and ties:
        method = stats.PermutationMethod(n_resamples=9_999, rng=np.random.default_rng(0))
    same = np.ptp([*own, *their]) == 0
    return Difference(
        probability_of_improvement([own], [their]),
        1.0 if same else float(stats.mannwhitneyu(own, their, method=method).pvalue),
        smallest_p_value(len(own), len(their)),
        None if margin is None else _equivalence_p_value(own, their, margin),
        margin,
    )


def smallest_p_value(runs: int, other_runs: int) -> float:
    """
    Two-sided p of Mann and Whitney's exact test when every run of one beats every run of the other: 2 / (n + m over n).

    :param runs: n
    :param other_runs: m
    :return: the smallest p that the test can give; 0.1 for three runs against three
    """
    return min(1.0, 2 / math.comb(runs + other_runs, runs))


def _equivalence_p_value(own: Array, their: Array, margin: float) -> float:
    if np.ptp(own) == 0 and np.ptp(their) == 0:  # no spread, nothing to test
        return 0.0 if abs(own[0] - their[0]) < margin else 1.0
    with warnings.catch_warnings():
        # scipy warns of runs that are all alike; Welch's test takes a spread of 0 in one of the samples.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        above = stats.ttest_ind(own + margin, their, equal_var=False, alternative="greater").pvalue
        below = stats.ttest_ind(own - margin, their, equal_var=False, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    p of several tests, raised so that all of them together are wrong in at most 5 of 100 comparisons of equal
    algorithms. Holm 1979, Scandinavian Journal of Statistics 6, 65-70: the k-th smallest of m times (m - k + 1), never
    falling.

    :param p_values: of the tests
    :return: adjusted, in the same order
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1)))
    return [float(adjusted[place]) for place in np.argsort(order, kind="stable")]


def _pool(samples: tuple[npt.ArrayLike, ...], axis: int) -> Array:
    return np.concatenate([np.asarray(sample, float) for sample in samples], axis=axis)


def _check_sample(sample: npt.ArrayLike) -> Array:
    array = np.asarray(sample, float)
    if array.ndim == 0 or len(array) < 2:
        raise ValueError(f"An interval needs at least two runs, got {array.size}: run more seeds.")
    if not np.isfinite(array).all():
        raise ValueError(f"Returns must be finite to be compared, got {array[~np.isfinite(array)][0]}.")
    return array


def _widened(confidence: float, runs: list[int]) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}: 0.95 for example.")
    freedom = sum(runs) - len(runs)
    z = math.sqrt(min(runs) / (min(runs) - 1)) * stats.t.ppf((1 + confidence) / 2, freedom)
    return float(1 - 2 * stats.norm.sf(z))
