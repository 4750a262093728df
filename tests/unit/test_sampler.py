"""The sampler is a pure function of step, rank and seed."""

from stitchkit.training.task import Sampler


def test_the_same_step_draws_the_same_stitch():
    draws = [Sampler(range(71), seed=3).draw(step, 1) for step in range(50)]
    assert draws == [Sampler(range(71), seed=3).draw(step, 1) for step in range(50)]
    assert draws != [Sampler(range(71), seed=4).draw(step, 1) for step in range(50)]


def test_ranks_draw_their_own_or_share():
    own, shared = Sampler(range(71), seed=3), Sampler(range(71), seed=3, shared=True)
    assert [own.draw(step, 0) for step in range(20)] != [own.draw(step, 1) for step in range(20)]
    assert [shared.draw(step, 0) for step in range(20)] == [shared.draw(step, 5) for step in range(20)]


def test_draws_are_uniform():
    sampler = Sampler(range(5), seed=0)
    counts = [0] * 5
    for step in range(5000):
        counts[sampler.draw(step, 0)] += 1
    # Five standard deviations of a fair draw are about 141.
    assert all(abs(count - 1000) < 141 for count in counts)
