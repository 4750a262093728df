"""Which images come first, and which networks are left after them."""

from collections import Counter

import pytest

from stitchkit.measure.two_stage import stratified_part, survivors


def test_a_part_has_the_class_shares_of_all_by_largest_remainders():
    labels = [0] * 50 + [1] * 30 + [2] * 15 + [3] * 5
    part = stratified_part(labels, 13, seed=0)  # exact shares 6.5, 3.9, 1.95 and 0.65
    assert Counter(labels[number] for number in part) == {0: 6, 1: 4, 2: 2, 3: 1}
    assert part == sorted({*part})


def test_equal_remainders_go_to_the_first_classes():
    labels = [5, 5, 3, 3, 4, 4]
    assert Counter(labels[number] for number in stratified_part(labels, 4, seed=1)) == {3: 2, 4: 1, 5: 1}


def test_the_seed_decides_which_images_are_drawn():
    labels = [number % 4 for number in range(100)]
    assert stratified_part(labels, 20, seed=1) == stratified_part(labels, 20, seed=1)
    assert stratified_part(labels, 20, seed=1) != stratified_part(labels, 20, seed=2)
    drawn = Counter(number for seed in range(400) for number in stratified_part(labels, 20, seed))
    assert len(drawn) == 100  # each image has its chance
    assert max(drawn.values()) < 2 * min(drawn.values())


@pytest.mark.parametrize("count", [7, 8, 1000])
def test_a_part_of_all_images_is_all_of_them(count):
    assert stratified_part([1, 0, 0, 1, 2, 2, 2], count, seed=3) == [0, 1, 2, 3, 4, 5, 6]


def test_a_network_is_out_if_one_that_costs_no_more_is_more_accurate_by_more_than_the_points():
    # On 1,000 images, 0.2 points are 2 images.
    right, costs = [700, 699, 698, 697, 720, 718, 717, 800], [1, 2, 2, 2, 3, 3, 3, 9]
    assert survivors(right, 1000, costs, 0.2) == [0, 1, 2, 4, 5, 7]


def test_one_of_equal_cost_beats_a_network_whatever_their_order():
    assert survivors([690, 700], 1000, [1, 1], 0.2) == [1]
    assert survivors([700, 690], 1000, [1, 1], 0.2) == [0]


def test_costlier_networks_do_not_put_a_cheaper_one_out():
    assert survivors([100, 900], 1000, [1, 2], 0) == [0, 1]


def test_some_stay_in_any_case():
    assert survivors([900, 1, 2, 3], 1000, [1, 2, 3, 4], 0.2, always=[2]) == [0, 2]


def test_the_limit_itself_is_within():
    for seen in (10, 600, 5000, 50_000):
        for points in (0.1, 0.2, 0.3, 0.7, 1.1):
            gap = points * seen / 100
            if abs(gap - round(gap)) < 1e-9:
                assert survivors([round(gap), 0], seen, [1, 2], points) == [0, 1], (seen, points)
