"""Statistics of runs: worked out by hand, and by simulation where the truth is known. Not here: runs and pictures."""

import math

import numpy as np
import pytest
from scipy import stats

from sb3_simple_ddpg.experiment import statistics
from sb3_simple_ddpg.experiment.statistics import Interval


def test_interquartile_mean_leaves_out_the_lowest_and_the_highest_quarter():
    # Eight runs: 0 and 1 go, 100 and 90 go; the mean of 2, 3, 4, 5 is 3.5.
    assert statistics.iqm([100, 3, 0, 2, 5, 4, 1, 90]) == 3.5
    # Five runs: floor(5 / 4) = 1 at each end; the mean of 1, 2, 3.
    assert statistics.iqm([2, 0, 50, 1, 3]) == 2.0


def test_statistics_over_tasks_pool_runs_but_the_median_goes_over_tasks():
    easy, hard = [1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 10.0, 10.0]
    assert statistics.mean(easy, hard) == 4.0  # 32 / 8
    assert statistics.iqm(easy, hard) == 3.0  # 0 0 | 1 2 3 6 | 10 10
    assert statistics.median(easy) == 2.5
    assert statistics.median(easy, hard, [9.0, 9.0]) == 5.0  # of the means 3, 5, 9


def test_optimality_gap_counts_only_what_is_missing():
    assert statistics.optimality_gap([0.5, 1.5], [1.0, 0.0]) == 0.375  # (0.5 + 0 + 0 + 1) / 4
    assert statistics.optimality_gap([3.0, 5.0], target=4.0) == 0.5


def test_interval_resamples_within_each_task():
    """Both tasks are constant, so resampling within a task changes nothing, while pooling both would."""
    assert statistics.interval([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]], statistics.mean) == Interval(3.0, 3.0, 3.0)


def test_interval_is_wider_for_few_runs_as_hesterberg_says():
    # n = 2, one degree of freedom: t = 12.706, z = sqrt(2) t = 17.97: the whole range.
    assert statistics.interval([[0.0, 1.0]], statistics.mean) == Interval(0.5, 0.0, 1.0)
    # n = 10: z = sqrt(10 / 9) * 2.2622 = 2.3846, twice the normal tail below it is 0.01710.
    assert statistics._widened(0.95, [10]) == pytest.approx(1 - 0.01710, abs=1e-5)
    # A thousand runs: the plain percentile interval.
    assert statistics._widened(0.95, [1000]) == pytest.approx(0.95, abs=1e-3)


def test_interval_goes_over_further_axes_one_by_one():
    returns = np.random.default_rng(0).normal(size=(10, 3))
    band = statistics.interval([returns], seed=1)
    assert band.estimate.shape == band.low.shape == (3,)
    assert band.estimate == pytest.approx([statistics.iqm(column) for column in returns.T])
    assert (band.low < band.estimate).all()
    assert (band.estimate < band.high).all()


@pytest.mark.parametrize("sample", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_samples_that_allow_no_interval_are_refused(sample):
    with pytest.raises(ValueError, match=r"at least two runs|must be finite"):
        statistics.interval([sample])


def test_a_confidence_that_is_none_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        statistics.interval([[1.0, 2.0]], confidence=95)


def test_probability_of_improvement_counts_wins_and_half_of_the_ties():
    # 3 beats 1 and 2, ties with 3; 0 beats none: (1 + 1 + 0.5) of 6 pairs.
    found = statistics.probability_of_improvement([[3.0, 0.0]], [[1.0, 2.0, 3.0]])
    assert found.estimate == pytest.approx(2.5 / 6)
    u = stats.mannwhitneyu([3.0, 0.0], [1.0, 2.0, 3.0]).statistic
    assert found.estimate == pytest.approx(u / 6)
    # Over two tasks: the mean of 1 and 0.5.
    assert statistics.probability_of_improvement([[3, 4], [0, 0]], [[1, 2], [0, 0]]).estimate == 0.75


def test_probability_of_improvement_of_separated_runs_is_not_certain():
    """Bootstrap alone would say 1 to 1. Newcombe's bound p solves p^2 = z^2 p (1 - p) (...) / (n m), 0.357 for 5, 5."""
    high, low = [6.0, 7.0, 8.0, 9.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0]
    found = statistics.probability_of_improvement([high], [low])
    assert (found.estimate, found.high) == (1.0, 1.0)
    p, z = 1 - found.low, 1.959964
    # At the bound: variance with (n + m) / 2 - 1 = 4.
    assert p**2 == pytest.approx(z**2 * p * (1 - p) * (1 + 4 * ((1 - p) / (2 - p) + p / (1 + p))) / 25, rel=1e-6)
    assert 0.3 < p < 0.4
    mirrored = statistics.probability_of_improvement([low], [high])
    assert (mirrored.low, mirrored.high) == pytest.approx((0.0, p))


def test_probability_of_improvement_needs_the_same_tasks():
    with pytest.raises(ValueError, match="same tasks, got 2 samples and 1"):
        statistics.probability_of_improvement([[1, 2], [1, 2]], [[1, 2]])


def test_performance_profile_is_the_share_of_runs_above():
    profile = statistics.performance_profile([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 9.0]], [0.0, 2.0, 5.0])
    assert profile.estimate == pytest.approx([1.0, (0.5 + 0.25) / 2, (0.0 + 0.25) / 2])
    assert profile.low[0] == profile.high[0] == 1.0
    assert ((profile.low <= profile.estimate) & (profile.estimate <= profile.high)).all()


def test_area_under_curve_is_the_mean_height_of_the_line():
    # From 0 to 10: the line from 0 to 4 has area 20; from 10 to 40 at 4: 120. Together 140 / 40.
    assert statistics.area_under_curve([0, 10, 40], [0.0, 4.0, 4.0]) == 3.5
    with pytest.raises(ValueError, match="at least two evaluations, got 1"):
        statistics.area_under_curve([0], [1.0])


def test_time_to_threshold_counts_runs_that_never_got_there_as_later_than_all():
    assert statistics.first_reached([0, 10, 20, 30], [0.0, 5.0, 3.0, 9.0], 5.0) == 10.0
    assert statistics.first_reached([0, 10], [0.0, 1.0], 5.0) == math.inf
    assert statistics.median_time([10, 30, math.inf]).estimate == 30.0  # not 20, the mean of those that did
    assert statistics.median_time([10, 20, 30, math.inf]).estimate == 25.0
    assert statistics.median_time([10, math.inf, math.inf]).estimate == math.inf
    assert statistics.median_time([10, 20, math.inf, math.inf]).estimate == math.inf  # between 20 and never


def test_interval_of_a_median_time_has_no_bound_where_the_runs_give_none():
    # Ten runs: the 2nd to the 9th, 97.9 % (binomial: 2 * (1 + 10) / 1024 lie outside); the 9th never got there.
    found = statistics.median_time([1, 2, 3, 4, 5, 6, 7, 8, math.inf, math.inf])
    assert (found.estimate, found.low, found.high) == (5.5, 2.0, math.inf)
    # Three runs: no pair of them bounds the median with 95 %.
    assert statistics.median_time([1.0, 2.0, 3.0]) == Interval(2.0, 0.0, math.inf)


def test_fraction_solved_has_wilson_s_interval():
    found = statistics.fraction_solved([95.0, 90.0, 0.0, 91.0], threshold=90.0)
    # Wilson for 3 of 4, z = 1.96: centre (3 + 1.9207) / (4 + 3.8415), half 1.96 sqrt(0.75 + 0.9604) / 7.8415.
    assert found.estimate == 0.75
    assert (found.low, found.high) == pytest.approx((0.6275 - 0.3269, 0.6275 + 0.3269), abs=2e-4)


def test_speed_ratio_is_that_of_geometric_means():
    found = statistics.speed_ratio([1.0, 4.0], [8.0, 2.0])  # 4 / 2
    assert found.estimate == pytest.approx(2.0)
    assert found.low < 1 < found.high
    slower = statistics.speed_ratio([10.0, 10.0], [5.0, 5.0])
    assert (slower.low, slower.high) == pytest.approx((0.5, 0.5))


def test_normalised_returns_are_0_for_random_actions_and_1_at_the_threshold():
    assert statistics.normalise([-1200.0, -700.0, -200.0], -1200.0, -200.0).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="between 5 and 5"):
        statistics.normalise([1.0], 5, 5)


@pytest.mark.parametrize(("runs", "smallest"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_smallest_possible_p_is_that_of_separated_runs(runs: int, smallest: float):
    assert statistics.smallest_p_value(runs, runs) == pytest.approx(smallest)
    found = statistics.difference(np.arange(runs) + 100.0, np.arange(runs))
    assert found.p_value == pytest.approx(smallest)
    assert found.verdict() == ("too few runs" if runs < 4 else "better")


def test_difference_says_better_worse_and_nothing_shown():
    low, high = np.arange(10.0), np.arange(10.0) + 20
    assert statistics.difference(high, low).verdict() == "better"
    assert statistics.difference(low, high).verdict() == "worse"
    assert statistics.difference(low, low + 0.5).verdict() == "no difference shown"
    assert statistics.difference([3.0] * 5, [3.0] * 5).p_value == 1.0


def test_difference_with_ties_and_few_runs_is_tested_by_permutations():
    # 4 against 4, one tie across the groups at 5: of the 70 splits of 1 2 3 5 5 6 7 8 those as extreme as U = 15.5
    # of 16: splits that give 15.5 or 16 (5 is in both: two of them), and their mirror images: 4 of 70.
    found = statistics.difference([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 5.0])
    assert found.p_value == pytest.approx(4 / 70, abs=0.01)


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 20), rng.normal(0, 1, 20)
    found = statistics.difference(one, other, margin=2.0)
    assert found.verdict() == "equivalent"
    # By hand, from the means and Welch's standard error: the nearer margin decides.
    error = math.sqrt(one.var(ddof=1) / 20 + other.var(ddof=1) / 20)
    distance = 2.0 - abs(one.mean() - other.mean())
    freedom = error**4 * 19 * 400 / (one.var(ddof=1) ** 2 + other.var(ddof=1) ** 2)
    assert found.equivalence_p_value == pytest.approx(stats.t.sf(distance / error, freedom))
    assert statistics.difference(one, other, margin=0.1).verdict() == "no difference shown"
    assert statistics.difference([1.0] * 5, [1.5, 1.5, 1.5, 0.5, 0.5], margin=1.0).verdict() == "equivalent"
    # Two runs each cannot show a difference, so they cannot show that there is none.
    assert statistics.difference([1.0, 1.0], [1.0, 1.0], margin=1.0).verdict() == "too few runs"
    with pytest.raises(ValueError, match="margin of equivalence must be above 0"):
        statistics.difference(one, other, margin=0.0)


def test_holm_raises_the_smallest_p_most():
    # 0.01 * 3; then 0.02 * 2 = 0.04; then 0.03 * 1, but not below 0.04.
    assert statistics.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


# Simulations. Of S = 300 intervals that each cover with probability 0.95, the number that do is binomial: standard
# deviation sqrt(300 * 0.95 * 0.05) = 3.8, so 273.7 to 296.3 at three of them, that is 0.912 to 0.988. The seeds are
# fixed; the band is what a correct 95 % interval would miss once in 370.
SIMULATIONS = 300
COVERED = (0.912, 0.988)


def skewed(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Most runs near the best return, some far below it, as in reinforcement learning."""
    return -rng.exponential(size=runs)


@pytest.mark.long
@pytest.mark.parametrize("runs", [10, 20])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, runs: rng.normal(size=runs), 0.0),
        # Interquartile mean of the exponential: of quantiles -log(1 - u), u from 1/4 to 3/4, the mean is
        # 2 * [(1 - u) log(1 - u) + u] from 1/4 to 3/4 = 2 * (1/4 log 1/4 + 3/4 - 3/4 log 3/4 - 1/4) = 0.738376.
        (skewed, -0.738376),
    ],
    ids=["normal", "skewed"],
)
def test_an_interval_of_the_interquartile_mean_covers_the_truth_95_times_in_100(draw, truth: float, runs: int):
    rng = np.random.default_rng(0)
    hits = [statistics.interval([draw(rng, runs)], resamples=500).holds(truth) for _ in range(SIMULATIONS)]
    assert COVERED[0] <= np.mean(hits) <= COVERED[1]


@pytest.mark.long
def test_an_interval_over_three_tasks_covers_the_truth_95_times_in_100():
    """The interquartile mean of equal parts N(0, 1), N(10, 1) and N(20, 1) is 10, by symmetry."""
    rng = np.random.default_rng(0)
    hits = [
        statistics.interval([rng.normal(height, 1, 8) for height in (0, 10, 20)], resamples=500).holds(10.0)
        for _ in range(SIMULATIONS)
    ]
    assert COVERED[0] <= np.mean(hits) <= COVERED[1]


@pytest.mark.long
@pytest.mark.parametrize("runs", [5, 10, 20])
def test_for_equal_algorithms_the_probability_of_improvement_holds_one_half_95_times_in_100(runs: int):
    rng = np.random.default_rng(0)
    hits = [
        statistics.probability_of_improvement([skewed(rng, runs)], [skewed(rng, runs)], resamples=500).holds(0.5)
        for _ in range(SIMULATIONS)
    ]
    assert COVERED[0] <= np.mean(hits) <= COVERED[1]


@pytest.mark.long
def test_equal_algorithms_are_called_different_at_most_5_times_in_100():
    rng = np.random.default_rng(0)
    verdicts = [statistics.difference(skewed(rng, 10), skewed(rng, 10)).verdict() for _ in range(SIMULATIONS)]
    # Three standard deviations above 0.05: 0.05 + 3 * sqrt(0.05 * 0.95 / 300) = 0.088.
    assert np.mean([verdict in ("better", "worse") for verdict in verdicts]) <= 0.088
