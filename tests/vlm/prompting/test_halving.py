from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.prompting import halving


def test_fifty_candidates_cost_less_than_eight_passes():
    counts = halving.sizes(50, 160, 8)
    assert counts == [5, 10, 20, 40, 80, 160]
    # 49 others: 49, 25, 13, 7, 4, 2 in the rounds; and the present prompt in each of them
    asked = 50 * 5 + 26 * 5 + 14 * 10 + 8 * 20 + 5 * 40 + 3 * 80
    assert halving.cost(50, counts) == asked == 1120
    assert asked / 160 <= 8


@given(st.integers(2, 200), st.integers(2, 2000), st.integers(3, 20))
def test_the_rounds_double_up_to_all_samples_within_the_budget(candidates, samples, passes):
    try:
        counts = halving.sizes(candidates, samples, passes)
    except ValueError as error:
        assert f"{candidates} candidates need at least" in str(error)
        assert halving.cost(candidates, [1, samples]) > passes * samples or candidates > 4
        return
    assert counts[-1] == samples and len(counts) >= 2
    assert all(2 * before >= after for before, after in pairwise(counts))
    assert halving.cost(candidates, counts) <= passes * samples


def test_few_candidates_are_asked_about_half_of_the_samples_first():
    assert halving.sizes(2, 100, 8) == [50, 100]


def test_a_budget_that_is_too_small_says_what_would_do():
    with pytest.raises(ValueError, match=r"50 candidates need at least 2\.8 passes over 160 samples"):
        halving.sizes(50, 160, 2)


def losses(*means, noise=1.0, samples=40):
    """Losses of candidates with these means; the noise of a sample is its own, and mostly the same for all."""
    rng = np.random.default_rng(1)
    shared = rng.exponential(noise, samples)
    return {i: mean + shared + rng.normal(0, 0.1 * noise, samples) for i, mean in enumerate(means)}


def test_the_worse_half_is_dropped_and_the_present_prompt_stays():
    """The candidates differ by little on average, and by much on single samples, so no test tells them apart."""
    up, down = np.tile([0.0, 2.0], 5), np.tile([2.0, 0.0], 5)
    found = {0: down + 0.04, 1: up, 2: down + 0.01, 3: up + 0.02, 4: down + 0.03, 5: down + 0.05}
    found[3] = np.roll(up, 1) + 0.02
    verdict = halving.judge(found)
    assert verdict.best == 1
    assert verdict.dropped == {4: "in the worse half", 5: "in the worse half"}


def test_a_paired_test_finds_what_the_means_hide():
    """Candidate 2 is better than half of the others, but surely worse than the best: the samples' own noise cancels."""
    verdict = halving.judge(losses(1.0, 1.0, 1.5, 1.6, 1.7, 1.8))
    assert verdict.best in (0, 1)
    assert set(verdict.dropped) == {2, 3, 4, 5}
    assert verdict.dropped[2].startswith("worse than the best (p = ")


def test_equal_candidates_are_not_worse_and_the_first_is_the_best():
    same = np.array([0.5, 0.1, 2.0])
    assert halving.judge({0: same + 1, 1: same, 2: same}).best == 1
    assert halving.judge({0: same, 1: same, 2: same, 3: same}).dropped == {3: "in the worse half"}


def test_a_constant_difference_is_a_sure_one():
    same = np.array([0.5, 0.1, 2.0])
    assert halving.judge({0: same, 1: same + 1}).dropped == {1: "worse than the best (p = 0)"}


def test_one_sample_tests_nothing():
    assert halving.judge({0: np.array([1.0]), 1: np.array([5.0])}).dropped == {}
