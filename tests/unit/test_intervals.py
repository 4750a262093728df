"""Intervals of accuracies and differences, and P(on the front): against enumeration, exact tests, bootstraps."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from stitchkit.errors import InputError
from stitchkit.measure.comparison import Paired
from stitchkit.measure.formulas import accuracy_interval, share_on_front
from stitchkit.measure.intervals import add_intervals, told_apart_note
from stitchkit.measure.ledger import read_rows, write_rows
from stitchkit.measure.pareto import pareto_front


def pair(wins, losses, images, *, both=0):
    """Two networks: the first alone is right on some images, the second alone on others, and both on a few."""
    right = np.zeros((2, images), bool)
    right[0, :wins] = right[1, wins : wins + losses] = True
    right[:, wins + losses : wins + losses + both] = True
    return right


def of_all(right):
    return right, np.ones_like(right)


def paired_intervals(right, seen):
    return Paired(tuple(range(len(right))), "acc1", right, seen).paired_intervals()


def correlated(networks, images, seed=0):
    """Answers of networks to images that are hard or easy for all of them; the later ones are the better."""
    generator = np.random.default_rng(seed)
    ease = generator.normal(size=images) + 0.4 * generator.normal(size=(networks, images))
    return ease + np.linspace(0.9, 1.1, networks)[:, None] > 0


@pytest.mark.parametrize("images", [1, 10, 600])
def test_the_interval_of_an_accuracy_is_wilsons(images):
    for right in {0, 1, images // 3, images - 1, images}:
        expected = binomtest(right, images).proportion_ci(method="wilson")
        assert accuracy_interval(right, images) == pytest.approx([100 * expected.low, 100 * expected.high], abs=1e-9)
    assert accuracy_interval(0, images)[0] == pytest.approx(0)
    assert accuracy_interval(images, images)[1] == pytest.approx(100)
    assert accuracy_interval(images, images)[0] < 100, "a network without mistakes makes some on other images"


@pytest.mark.parametrize("images", [20, 100, 600])
def test_the_interval_of_an_accuracy_covers_it_in_95_of_100_cases(images):
    """Counted over all outcomes of all accuracies in steps of 0.5 %."""
    truths = np.arange(0.5, 100, 0.5)
    intervals = np.array([accuracy_interval(right, images) for right in range(images + 1)])
    covered = (intervals[:, :1] <= truths) & (truths <= intervals[:, 1:])
    chances = binom.pmf(np.arange(images + 1)[:, None], images, truths / 100)
    coverage = (covered * chances).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.83, "the exact one of Clopper and Pearson is wider everywhere, to be never below 0.95"


def told_and_chances(images, most):
    """Of all outcomes with at most so many wins, and losses: whether they are told apart, and McNemar's p-values.

    Wins are counted from the first image on, losses from the last one.
    """
    counts = np.arange(most + 1)
    wins = np.arange(images) < counts[:, None]
    low, high = (
        ends[: most + 1, most + 1 :] for ends in paired_intervals(*of_all(np.concatenate([wins, wins[:, ::-1]])))
    )
    apart = counts[:, None] + counts
    chances = np.minimum(2 * binom.cdf(np.minimum(counts[:, None], counts), apart, 0.5), 1)
    possible = apart <= images
    return ((low > 0) | (high < 0))[possible], chances[possible], apart[possible]


@pytest.mark.parametrize(
    ("images", "highest"),
    [
        *((4, 0.125), (8, 0.125), (19, 0.0923), (20, 0.0768), (21, 0.0784), (40, 0.0784), (60, 0.0708), (90, 0.0674)),
        *((91, 0.066), (165, 0.066), (198, 0.0654), (199, 0.0652), (300, 0.0639), (5000, 0.0639)),
    ],
)
def test_a_difference_is_told_as_the_exact_binomial_test_tells_it(images, highest):
    """McNemar's: of the images that tell two networks apart, as many should fall to either if they are equal."""
    told, chances, apart = told_and_chances(images, min(images, 300))
    assert told[chances <= 0.05].all(), "what the test finds is never missed"
    assert chances[told].max() == pytest.approx(highest, abs=5e-5), "as the page and the docstring say"
    if images >= 199:
        assert (told == (chances <= 0.05))[apart <= 13].all()


def test_few_images_tell_a_little_more_apart_than_the_exact_test():
    """The one image on either side weighs less on few images."""
    for images, is_told in ((198, True), (199, False)):
        _, high = paired_intervals(*of_all(pair(2, 9, images)))
        assert (high[0, 1] < 0) == is_told, "p = 0.0654"
    assert binomtest(2, 11).pvalue == pytest.approx(0.0654, abs=5e-5)


@pytest.mark.parametrize("images", [20, 60])
def test_the_interval_of_a_difference_covers_it_in_95_of_100_cases(images):
    """Counted over all outcomes; the adjustment errs on the wide side where the networks are nearly the same."""
    cells = [
        (wins, losses, images - wins - losses) for wins in range(images + 1) for losses in range(images + 1 - wins)
    ]
    ends = [paired_intervals(*of_all(pair(wins, losses, images))) for wins, losses, _ in cells]
    low, high = (np.array([end[side][0, 1] for end in ends]) for side in (0, 1))
    found = []
    for win, lose in product((0.01, 0.05, 0.1, 0.2, 0.4), repeat=2):
        chances = multinomial.pmf(cells, images, [win, lose, 1 - win - lose])
        truth = 100 * (win - lose)
        found.append(chances[(low <= truth) & (truth <= high)].sum())
    assert min(found) > 0.94
    assert 0.95 < np.mean(found) < 0.975


def test_the_interval_of_a_difference_is_that_of_a_direct_bootstrap():
    right = correlated(3, 2000)
    generator = np.random.default_rng(1)
    drawn = generator.integers(2000, size=(4000, 2000))
    low, high = paired_intervals(*of_all(right))
    for one, other in ((0, 1), (0, 2), (2, 1)):
        gains = (right[one].astype(int) - right[other])[drawn].mean(axis=1)
        assert [low[one, other], high[one, other]] == pytest.approx(100 * np.percentile(gains, [2.5, 97.5]), abs=0.12)
        assert [low[other, one], high[other, one]] == pytest.approx([-high[one, other], -low[one, other]])
    wide = np.subtract(*reversed(accuracy_interval(right[0].sum(), 2000)))
    assert high[0, 1] - low[0, 1] < 0.9 * wide, "without pairs it would be wider than either by a factor of 1.4"


def test_networks_are_compared_on_the_images_that_both_have_seen():
    right, seen = of_all(correlated(2, 800))
    apart = seen.copy()
    apart[0, 300:] = False
    found = paired_intervals(right & apart, apart)
    expected = paired_intervals(right[:, :300], seen[:, :300])
    assert found[0][0, 1] == expected[0][0, 1]
    assert found[1][0, 1] == expected[1][0, 1]
    nothing = np.array([[True, False], [False, True]])
    low, high = paired_intervals(nothing, nothing)
    assert (low[0, 1], high[0, 1]) == (-100, 100), "no image in common, so nothing is known"


def test_p_on_the_front_is_that_of_a_direct_bootstrap():
    """Each set of images has its `pareto_front`; some costs and accuracies are equal."""
    right, costs = correlated(6, 40), [2, 1, 3, 3, 4, 5]
    generator, times = np.random.default_rng(3), np.zeros(6)
    for _ in range(130):
        accuracies = right[:, generator.integers(40, size=40)].mean(axis=1)
        rows = [
            {"cfg_id": number, "flops": cost, "acc1": accuracy}
            for number, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True))
        ]
        times[[row["cfg_id"] for row in pareto_front(rows)]] += 1
    assert share_on_front(right, costs, samples=130, seed=3) == (times / 130).tolist()
    assert 0 < times[5] < 130


def test_p_on_the_front_of_alike_networks_is_known():
    third = np.repeat(np.eye(3, dtype=bool), 30, axis=1)
    shares = share_on_front(third, [1, 1, 1], samples=4000)
    assert sum(shares) == pytest.approx(1), "of three at the same cost, one is on the front"
    assert shares == pytest.approx([1 / 3] * 3, abs=0.06), "chances are alike, but for equal accuracies"
    assert shares == sorted(shares, reverse=True), "of which the first is taken"
    # The difference of two networks is a walk: each image drawn is a step up, a step down, or neither.
    right = pair(8, 8, 50, both=30)
    steps = np.array([8, 34, 8]) / 50
    walk = np.ones(1)
    for _ in range(50):
        walk = np.convolve(walk, steps)
    expected = walk[51:].sum()
    assert share_on_front(right, [1, 2], samples=4000) == [1.0, pytest.approx(expected, abs=0.025)]
    assert share_on_front(right, [1, 2]) == share_on_front(right, [1, 2]), "seeded"
    assert share_on_front(right[[0, 0]], [2, 1]) == [0.0, 1.0], "of equals, the cheaper"
    assert share_on_front(right[[0, 0]], [1, 1]) == [1.0, 0.0], "of equals, the first"


def evaluated(right, *, images=None):
    """Rows and hits of one evaluation; a later network is the costlier."""
    right, seen = of_all(right)
    hits = Paired(tuple(range(10, 10 + len(right))), "acc1", right, seen)
    rows = [
        {"cfg_id": cfg_id, "flops": 5 + place, "params": 50 - place, "acc1": 100 * float(bits.mean())}
        | {"images": images or len(bits)}
        for place, (cfg_id, bits) in enumerate(zip(hits.cfg_ids, right, strict=True))
    ]
    return rows, hits


def test_rows_get_their_intervals_and_lose_stale_ones(tmp_path):
    rows, hits = evaluated(pair(3, 4, 50, both=40))
    stale = {"acc1_low": 1.0, "acc1_high": 2.0, "p_front": 0.5, "tied_with": [3]}
    rows.append({"cfg_id": 3, "flops": 9, "acc1": 20.0, **stale})
    add_intervals(rows, hits)
    assert rows[2] == {"cfg_id": 3, "flops": 9, "acc1": 20.0}
    assert [row["tied_with"] for row in rows[:2]] == [[], [10]]
    assert rows[0]["p_front"] == 1
    assert 0.5 < rows[1]["p_front"] < 0.8
    assert (rows[0]["acc1_low"], rows[0]["acc1_high"]) == pytest.approx(accuracy_interval(43, 50), abs=1e-4)
    write_rows(tmp_path / "r.txt", rows)
    assert read_rows(tmp_path / "r.txt") == rows
    add_intervals(rows, hits, cost="params")
    assert [row.get("tied_with") for row in rows] == [[11], [], None], "the second has fewer parameters"
    add_intervals(rows, None)
    assert rows[0].keys() == {"cfg_id", "flops", "params", "acc1", "images", "acc1_low", "acc1_high"}
    add_intervals(rows, hits, cost="latency_ms")
    assert "p_front" not in rows[0], "no row has such a cost"
    published = [{key: row[key] for key in ("cfg_id", "flops", "acc1")} for row in rows]
    add_intervals(published, None)
    assert "acc1_low" not in published[0], "on how many images, nobody knows"
    add_intervals(published, hits)
    assert published[0]["acc1_low"] == rows[0]["acc1_low"]
    unseen = Paired((10,), "acc1", np.zeros((1, 4), bool), np.zeros((1, 4), bool))
    add_intervals(published, unseen)
    assert published[0].keys() == {"cfg_id", "flops", "acc1"}


def test_ties_cost_at_most_as_much_and_are_not_surely_better_or_worse():
    same, better, worse = np.zeros((3, 400), bool)
    same[:200] = better[:300] = worse[:100] = True
    rows, hits = evaluated(np.stack([same, same, better, worse, same]))
    for row, cost in zip(rows, [5, 3, 1, 2, 5], strict=True):
        row["flops"] = cost
    add_intervals(rows, hits)
    assert [row["tied_with"] for row in rows] == [[11, 14], [], [], [], [11, 10]], "the cheapest first"


def test_a_network_that_saw_an_easy_part_is_compared_with_none():
    """On the part all are better than on the whole, so that a bad one would seem to be on the front."""
    images, part = 400, 100
    right = np.zeros((4, images), bool)
    right[:3, :part] = right[3, 2:part] = True  # the costliest is the worst on the part, and was dropped after it
    right[0, part : part + 80] = right[1, part : part + 140] = right[2, part : part + 150] = True
    rows, hits = evaluated(right)
    hits.seen[3, part:] = False
    rows[3] |= {"acc1": 98.0, "images": part}
    add_intervals(rows, hits)
    assert ["p_front" in row for row in rows] == ["tied_with" in row for row in rows] == [True, True, True, False]
    assert (rows[3]["acc1_low"], rows[3]["acc1_high"]) == pytest.approx(accuracy_interval(98, part), abs=1e-4)
    without, of_three = evaluated(right[:3])
    add_intervals(without, of_three)
    assert rows[:3] == without, "it changes nothing for the others"
    alone = [rows[3] | {"cfg_id": 13}]
    add_intervals(alone, hits)
    assert alone[0]["p_front"] == 1, "of a ledger with no other, the part is all that was seen"


def test_images_that_nobody_has_seen_are_not_drawn():
    right = correlated(3, 200)
    rows, hits = evaluated(right)
    add_intervals(rows, hits)
    wide = np.concatenate([right, np.zeros((3, 50), bool)], axis=1)
    unknown = np.repeat([0, -1], [200, 50])
    again = [{**row} for row in rows]
    add_intervals(again, Paired(hits.cfg_ids, "acc1", wide, np.tile(unknown >= 0, (3, 1))))
    assert again == rows


def test_what_is_no_accuracy_has_no_interval(tmp_path):
    rows = [
        {"cfg_id": 0, "flops": 1, **odd} for odd in ({"acc1": 150.0, "images": 5}, {"acc1": 5.0, "images": 0.5}, {})
    ]
    add_intervals(rows, None)
    assert not any("acc1_low" in row for row in rows)
    (tmp_path / "r.txt").write_text('{"cfg_id": 1, "acc1_low": 3}\n')
    with pytest.raises(InputError, match="line 1 has one end of the interval of acc1 without the other; remove"):
        read_rows(tmp_path / "r.txt")


def test_the_note_on_a_front_counts_its_points_or_says_what_is_missing():
    rows, hits = evaluated(np.arange(600) < np.array([300, 302, 304, 306, 311, 312])[:, None])
    # Six images tell two apart, from the last one that counts.
    for points, told, which in ((4, 2, "10, 13"), (5, 2, "10, 13"), (6, 3, "10, 13, 15")):
        said = f"{told} of {points} points of the front are told apart by a paired 95 % interval: {which}"
        assert told_apart_note(rows[:points], hits) == said
    none = "no point of the front is told apart from the cheapest by a paired 95 % interval"
    assert told_apart_note(rows[:3], hits) == none
    more = [*rows, {"cfg_id": 3, "flops": 20, "acc1": 70.0}]
    assert told_apart_note(more, hits).endswith(" 15; 1 point of the front has no hits")
    assert told_apart_note(rows[:1], hits).startswith("the front has 1 point with hits, so that there is nothing")
    assert told_apart_note(rows, None).startswith("no intervals: the ledger has no hits, and does not say")
    add_intervals(rows, None)
    assert (
        told_apart_note(rows, None) == "no ties and no P(front) without hits, which --eval writes beside a new ledger"
    )


def test_hits_of_another_evaluation_are_refused():
    rows, hits = evaluated(pair(3, 4, 50, both=40))
    rows[1]["acc1"] += 2
    with pytest.raises(
        InputError, match=r"cfg_id 11 has acc1 90.00 .* and 44 of 50 images right by the .hits file; delete"
    ):
        add_intervals(rows, hits)


@pytest.mark.parametrize("tied", ["3", '["3"]', "[true]", "[-1]", "[1.5]"])
def test_ties_of_a_ledger_are_numbers_of_stitches(tied, tmp_path):
    (tmp_path / "r.txt").write_text(f'{{"cfg_id": 1, "tied_with": {tied}}}\n')
    with pytest.raises(InputError, match=r"line 1 has tied_with .*, not a list of cfg_ids; remove the line"):
        read_rows(tmp_path / "r.txt")
