"""The statistics of a study: what intervals cover, how often a test is wrong, what a choice adds to its winner's score.

Simulations draw logits: of the method, its seeds, its problems, and seeds with problems. Their tolerances are three and
a half binomial (or standard) errors beyond what is claimed: 1 in 2,000 for a simulation with another seed.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy import stats

from trainer.study.inference import Difference, interval, paired_difference
from trainer.study.marks import Marks, marks
from trainer.study.selection import select, select_split
from trainer.study.student_t import quantile, two_sided

ERRORS = 3.5
HERMITE_X, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(101)


@functools.cache
def centre(mean: float, deviation: float) -> float:
    """The logit whose pass@1 is ``mean`` over normal effects: what an interval has to cover is known exactly."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        got = HERMITE_WEIGHTS @ (1 / (1 + np.exp(-middle - deviation * HERMITE_X))) / HERMITE_WEIGHTS.sum()
        low, high = (middle, high) if got < mean else (low, middle)
    return low


def drawn(generator, shape, mean, answers, seeds_vary=0.0, problems_vary=2.0, both_vary=0.5, methods=None):
    """Scores of shape ([methods,] seeds, problems); methods share the problems and half of the variance of seeds."""
    seeds, problems = shape
    deviation = math.hypot(seeds_vary, problems_vary, both_vary)
    shared, own = (seeds_vary * math.sqrt(0.5) * generator.standard_normal((n, seeds, 1)) for n in (1, methods or 1))
    logits = centre(mean, deviation) + shared + own + problems_vary * generator.standard_normal((1, 1, problems))
    logits = logits + both_vary * generator.standard_normal((methods or 1, seeds, problems))
    scores = generator.binomial(answers, 1 / (1 + np.exp(-logits))) / answers
    return scores if methods else scores[0]


def beyond(share: float, times: int) -> float:
    return ERRORS * math.sqrt(share * (1 - share) / times)


def symmetric(scores):
    """Normal, over the problems alone."""
    per_problem = scores.mean(0)
    deviation = per_problem.std() / math.sqrt(len(per_problem))
    return per_problem.mean() - 1.96 * deviation, per_problem.mean() + 1.96 * deviation


COVERED = [
    (1, 100, 0.05, 1, 0.0, 2.0),
    (1, 100, 0.95, 8, 0.0, 2.0),
    (1, 2000, 0.5, 4, 0.0, 0.5),
    (5, 100, 0.05, 1, 0.0, 2.0),
    (5, 100, 0.5, 4, 0.1, 0.5),
    (5, 400, 0.5, 8, 0.5, 2.0),
    (5, 400, 0.95, 4, 0.25, 2.0),
    (10, 100, 0.05, 8, 0.1, 2.0),
    (10, 400, 0.5, 1, 0.25, 0.5),
]


@pytest.mark.parametrize(("seeds", "problems", "mean", "answers", "seeds_vary", "problems_vary"), COVERED)
def test_the_interval_covers_95_of_100(seeds, problems, mean, answers, seeds_vary, problems_vary):
    """95% ± 2, at 1,000 simulations."""
    generator, times = np.random.default_rng(1), 1000
    got = [
        interval(drawn(generator, (seeds, problems), mean, answers, seeds_vary, problems_vary)) for _ in range(times)
    ]
    covered = np.mean([i.low <= mean <= i.high for i in got])
    assert 0.93 - beyond(0.93, times) < covered < 0.97 + beyond(0.97, times)


@pytest.mark.parametrize("case", [COVERED[0], COVERED[5]])
def test_a_symmetric_interval_over_problems_alone_would_be_caught(case):
    """Near 0, and with several seeds: the simulations above can fail."""
    seeds, problems, mean, answers, *vary = case
    generator, times = np.random.default_rng(2), 1000
    got = [symmetric(drawn(generator, (seeds, problems), mean, answers, *vary)) for _ in range(times)]
    assert np.mean([low <= mean <= high for low, high in got]) < 0.93 - beyond(0.93, times)


NULLS = [
    (1, 100, 0.05, 1, 0.0),
    (1, 400, 0.5, 8, 0.0),
    (3, 200, 0.5, 4, 0.25),
    (5, 100, 0.05, 4, 0.0),
    (5, 400, 0.5, 8, 0.5),
    (10, 100, 0.9, 1, 0.1),
]


@pytest.mark.parametrize(("seeds", "problems", "mean", "answers", "seeds_vary"), NULLS)
def test_equal_methods_differ_in_5_of_100(seeds, problems, mean, answers, seeds_vary):
    """5% ± 2, at 1,000 simulations; one seed with no seed effect, for its test is of two runs."""
    generator, times = np.random.default_rng(3), 1000
    pairs = (drawn(generator, (seeds, problems), mean, answers, seeds_vary, methods=2) for _ in range(times))
    wrong = np.mean([paired_difference(a, b).p_value < 0.05 for a, b in pairs])
    assert 0.03 - beyond(0.03, times) < wrong < 0.07 + beyond(0.07, times)


def test_a_test_over_problems_alone_would_be_caught():
    generator, times = np.random.default_rng(4), 500
    pairs = (drawn(generator, (5, 400), 0.5, 8, 0.5, methods=2) for _ in range(times))
    wrong = np.mean([paired_difference(a.mean(0), b.mean(0)).p_value < 0.05 for a, b in pairs])
    assert wrong > 0.07 + beyond(0.07, times)


def test_a_suite_is_covered_too():
    """Two benchmarks share their seeds' luck: a sum of their variances would miss the covariance."""
    generator, times, mean = np.random.default_rng(5), 1000, 0.3
    covered = 0
    for _ in range(times):
        scores = drawn(generator, (5, 500), mean, 4, 0.5)
        found = interval({"a": scores[:, :400], "b": scores[:, 400:]})
        covered += found.low <= mean <= found.high
    assert 0.93 - beyond(0.93, times) < covered / times < 0.97 + beyond(0.97, times)


def test_the_winner_is_lucky_on_the_problems_that_chose_it():
    """Eight equal members: the paper's way is above their mean, the split is not, within the simulation's errors."""
    generator, times, mean = np.random.default_rng(6), 500, 0.4
    same, split = [], []
    for i in range(times):
        scores = drawn(generator, (8, 100), mean, 2)
        family = {f"m{member}": {20: {"a": scores[member]}} for member in range(8)}
        same.append(select(family).mean - mean)
        split.append(select_split(family, seed=i, splits=2).mean - mean)
    errors = [np.std(biases, ddof=1) / math.sqrt(times) for biases in (same, split)]
    assert np.mean(same) > ERRORS * errors[0] and np.mean(same) > 0.02
    assert abs(np.mean(split)) < ERRORS * errors[1]


def test_one_seed_of_single_answers_is_wilson():
    """Its variance over problems is m (1 - m) / (P - 1): Wilson's interval of P - 1 answers with t for z."""
    scores, t = np.arange(40) % 4 == 0, stats.t.ppf(0.975, 39)
    found = interval(scores)
    half = t * math.sqrt(0.25 * 0.75 / 39 + t * t / (4 * 39**2)) / (1 + t * t / 39)
    middle = (0.25 + t * t / 78) / (1 + t * t / 39)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), rel=1e-9)
    assert (found.mean, found.spread, found.over, found.seeds, found.problems) == (0.25, None, "problems", 1, 40)
    assert interval(scores[None]) == found


def test_seeds_and_problems_by_hand():
    """Seeds' means 1/4, 3/4; problems' means 1/4, 3/4; rest 0. Mean squares: seeds 1/4, problems 1/4.

    The variance is (1/4 + 1/4 - 0) / 4 = 1/8, its degrees of freedom (1/2)² / ((1/4)² + (1/4)²) = 2.
    """
    found = interval([[0.0, 0.5], [0.5, 1.0]])
    t, ratio = stats.t.ppf(0.975, 2), 0.5
    half = t * math.sqrt(1 / 8 + t * t * ratio**2 / 4) / (1 + t * t * ratio)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-9)
    assert found.spread == pytest.approx(math.sqrt(0.125)) and found.over == "seeds and problems"


def test_all_wrong_and_all_right_are_not_certain():
    nothing, everything = interval(np.zeros((3, 50))), interval({"a": np.ones(50), "b": np.ones(50)})
    t, t_one = stats.t.ppf(0.975, 2), stats.t.ppf(0.975, 49)
    assert (nothing.low, nothing.high) == (0, pytest.approx(t * t / (50 + t * t)))
    assert (everything.low, everything.high) == (pytest.approx(100 / (100 + t_one**2)), 1)


def test_one_seed_is_the_paired_t_test_over_problems():
    a, b = drawn(np.random.default_rng(7), (1, 60), 0.4, 8, methods=2)
    found, expected = paired_difference(a, b), stats.ttest_rel(a[0], b[0])
    limits = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), rel=1e-9)
    assert found.mean == pytest.approx((a - b).mean()) and found.over == "problems"
    turned = paired_difference(b, a)
    assert (turned.mean, turned.low, turned.p_value) == pytest.approx((-found.mean, -found.high, found.p_value))


def test_seeds_alone_are_the_paired_t_test_over_seeds():
    """Where every problem says the same, problems are no reason for doubt: three seeds are three differences."""
    a = np.repeat([[0.5], [0.75], [1.0]], 20, 1)
    b = np.repeat([[0.25], [0.625], [0.5]], 20, 1)
    found, expected = paired_difference(a, b), stats.ttest_1samp([0.25, 0.125, 0.5], 0)
    assert (found.mean, found.p_value) == pytest.approx((0.875 / 3, expected.pvalue), rel=1e-9)


def test_the_interval_excludes_0_where_p_is_below_5_percent():
    generator = np.random.default_rng(8)
    found = [paired_difference(*drawn(generator, (3, 30), 0.4, 2, 0.5, methods=2)) for _ in range(200)]
    assert [d.p_value < 0.05 for d in found] == [not d.low <= 0 <= d.high for d in found]
    assert {d.p_value < 0.05 for d in found} == {True, False}


def test_methods_that_are_the_same_tie():
    a = np.full((2, 5), 0.3)
    assert paired_difference(a, a) == Difference(0.0, 0.0, 0.0, 1.0, 2, 5)
    assert paired_difference(a + 0.5, a).p_value == 0


@pytest.mark.parametrize("df", [1, 1.5, 2, 3.7, 9, 99, 1999, 2e5])
def test_student_t_is_scipys(df):
    for t in (0.0, 0.1, 1.0, 2.5, 12.0, 100.0, 1e6, math.inf):
        assert two_sided(t, df) == pytest.approx(2 * stats.t.sf(t, df), abs=1e-9 if df >= 2 else 1e-6)
    for confidence in (0.5, 0.95, 0.99):
        assert quantile(confidence, df) == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-6)


FAMILY = {
    "b": {20: {"x": [0.5, 0.5], "y": [1.0, 0.0, 0.5]}, 40: {"x": [1.0, 0.5], "y": [0.5, 0.5, 0.5]}},
    "a": {40: {"x": [1.0, 0.5], "y": [0.5, 0.5, 0.5]}, 60: {"x": [1.0, 0.5], "y": [0.5, 0.5, 0.5]}},
}


def test_the_best_of_a_family_is_the_earliest_of_equals():
    """Means 0.5 for b at 20, 0.625 for the three others: x counts as much as y, whatever their numbers of problems."""
    found = select(FAMILY)
    assert (found.name, found.step, found.mean, found.scores) == ("a", 40, 0.625, {"x": 0.75, "y": 0.5})
    seeds = {"a": {1: {"x": [[0.0, 0.5], [1.0, 0.5]]}}, "b": {0: {"x": [0.5, 0.25]}}}
    assert (select(seeds).name, select(seeds).mean) == ("a", 0.5)


def test_a_split_reports_what_it_did_not_choose_by():
    """Each member right on one of two problems: whoever wins on one problem fails on the other."""
    found = select_split({"a": {1: {"x": [1.0, 0.0]}}, "b": {1: {"x": [0.0, 1.0]}}}, splits=1)
    assert (found.mean, found.scores, found.chosen) == (0.0, {"x": 0.0}, {("a", 1): 0.5, ("b", 1): 0.5})
    found = select_split({"a": {1: {"x": [0.25] * 9, "y": [0.75] * 4}}, "b": {1: {"x": [0.0] * 9, "y": [0.5] * 4}}})
    assert (found.mean, found.scores, found.chosen) == (0.5, {"x": 0.25, "y": 0.75}, {("a", 1): 1.0})


def test_a_split_is_fixed_by_its_seed():
    scores = drawn(np.random.default_rng(9), (4, 51), 0.5, 1)
    family = {str(member): {1: {"x": scores[member]}} for member in range(4)}
    assert select_split(family, seed=3) == select_split(family, seed=3) != select_split(family, seed=4)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ({("a", "b"): 0.01, ("c", "a"): 0.01, ("b", "c"): 0.01}, Marks(("b",), ("a",))),
        ({("a", "b"): 0.05, ("c", "b"): 0.01}, Marks(("b", "a"), ("c",))),
        ({("a", "b"): 0.01, ("c", "b"): 0.01, ("a", "c"): 0.5}, Marks(("b",), ("a", "c"))),
        ({("a", "b"): 0.01, ("c", "b"): 0.5}, Marks(("b", "c"), ("a",))),
        ({("a", "b"): 0.5, ("b", "c"): 1.0}, Marks(("b", "a", "c"), ())),
    ],
)
def test_ties_share_a_mark(p_values, expected):
    assert marks({"a": 0.5, "b": 0.6, "c": 0.4}, p_values) == expected
    assert marks({"b": 0.6}, {}) == Marks(("b",), ())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: interval([]), r"scores: got shape \(0,\); allowed: \[problems\] or \[seeds, problems\]"),
        (lambda: interval(np.zeros((0, 5))), r"scores: got shape \(0, 5\)"),
        (lambda: interval([0.5]), r"got shape \(1,\); .* two problems or more"),
        (lambda: interval(np.zeros((2, 2, 2))), r"got shape \(2, 2, 2\)"),
        (lambda: interval([0.5, math.nan]), "scores: got nan; allowed: 0 to 1"),
        (lambda: interval([0.5, 1.01]), "scores: got 1.01; allowed: 0 to 1"),
        (lambda: interval({"x": [0.5, -0.1]}), r"scores\['x'\]: got -0.1"),
        (lambda: interval([[0.5, 0.5], [0.5]]), "scores: got list; allowed: an array of numbers"),
        (lambda: interval({}), r"scores: got \[\] seeds; allowed: a benchmark or more"),
        (lambda: interval({"x": [0, 1], "y": [[0, 1], [1, 0]]}), r"scores: got \[1, 2\] seeds; .* the same seeds"),
        (lambda: paired_difference([0, 1, 1], [0, 1]), "b: got shapes .*2.*; allowed: those of a, .*3"),
        (lambda: paired_difference({"x": [0, 1]}, {"y": [0, 1]}), "b: got shapes .*y.*; allowed: .*x"),
        (lambda: paired_difference([0, 2], [0, 1]), "a: got 2.0"),
        (lambda: select({}), "family: got no member; allowed: a member or more"),
        (lambda: select({"a": {}}), "family: got member 'a' without checkpoints"),
        (lambda: select({"a": {20: {"x": [0.5, math.nan]}}}), r"family\['a'\]\[20\]\['x'\]: got nan"),
        (
            lambda: select({"a": {1: {"x": [0, 1]}}, "b": {1: {"x": [0, 1, 1]}}}),
            r"family\['b'\]\[1\]: got problems .*3",
        ),
        (lambda: select_split(FAMILY, splits=0), "splits: got 0; allowed: 1 or more"),
        (lambda: marks({}, {}), "means: got {}; allowed: a member or more"),
        (lambda: marks({"a": math.nan}, {}), "means: got .*nan.*; allowed: .*finite"),
        (lambda: marks({"a": 1, "b": 0}, {}), r"p_values: got None for \('a', 'b'\)"),
        (lambda: marks({"a": 1, "b": 0}, {("b", "a"): math.nan}), "p_values: got nan"),
        (lambda: marks({"a": 1}, {}, level=1), "level: got 1; allowed: above 0, below 1"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(call, says):
    with pytest.raises(ValueError, match=says):
        call()
