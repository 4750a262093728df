"""Samplers: draws are pure functions of seed, step and rank."""

from collections import Counter

import numpy as np
import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.flags import resolve
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.run import TrainRun
from stitchkit.training.samplers import SAMPLERS, check_sampler, cost_bins, create_sampler, gap_between
from tests.support import ROOT, pico_config, write_config

LABELS = torch.tensor([0, 3])
IDS = (0, 1, 2, 4, 5, 6, 7, 8)
"""Numbers with a hole."""


def sampler_of(name, *, seed=3, cfg_ids=IDS, cost=lambda cfg_id: 100 * cfg_id**2, anchors=(0, 8), **settings):
    return create_sampler(cfg_ids, cost, StitchRecipe(sampler=name, **settings), seed, anchors)


def draws(sampler, rank=0, steps=range(40)):
    return [sampler.draw(step, rank) for step in steps]


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_pure_and_those_of_ranks_are_shared_or_not(name):
    first = draws(sampler_of(name))
    assert first == draws(sampler_of(name))
    assert first[20:] == draws(sampler_of(name), steps=range(20, 40)), "no draw depends on earlier ones"
    assert first != draws(sampler_of(name, seed=4))
    assert first != draws(sampler_of(name), rank=1)
    shared = sampler_of(name, sampling="shared")
    assert draws(shared) == draws(shared, rank=5) == first
    assert {*first} <= {*IDS}
    assert len({*first}) > len(IDS) // 2


def test_uniform_draws_as_it_always_did():
    """A run of before resumes with the same stitches; and all are as likely."""
    sampler = sampler_of("uniform", cfg_ids=range(71), seed=42)
    assert draws(sampler, rank=1, steps=range(6)) == [
        int(np.random.default_rng((42, step, 1)).integers(71)) for step in range(6)
    ]
    counts = Counter(draws(sampler_of("uniform", cfg_ids=range(5)), steps=range(5000)))
    # Five standard deviations of a fair draw are about 141.
    assert all(abs(counts[cfg_id] - 1000) < 141 for cfg_id in range(5))


def test_uniform_measures_no_costs():
    def cost(_):
        raise AssertionError("a cost is measured")

    assert draws(sampler_of("uniform", cost=cost))


def test_published_bins_of_sn_net_v2(shared):
    costs = {row["cfg_id"]: row["flops"] for row in read_rows(shared / "published/snnetv2_deit3_s_l.jsonl")}
    bins = cost_bins(costs, lambda _: 1e9)
    assert [len(members) for members in bins] == [1, *[12] * 11, 1]
    by_default = sampler_of("cost_bins", cfg_ids=tuple(costs), cost=costs.__getitem__, anchors=(0, 1))
    assert by_default.bins == bins
    assert bins[0] == (0,)
    assert bins[-1] == (1,)
    assert sorted(cfg_id for members in bins for cfg_id in members) == sorted(costs)


@pytest.mark.parametrize(
    ("costs", "bins"),
    [
        ([5, 6, 7, 8], [(0, 1), (2, 3)]),  # a bin spans the gap, but no more
        ([8, 5, 7, 6], [(1, 3), (2, 0)]),
        ([1, 2, 3], [(0,), (1, 2)]),  # what costs no more than the gap is in a bin that begins at 0
        ([0.5, 9], [(0,), (1,)]),
        ([3, 3, 3], [(0, 1, 2)]),
    ],
)
def test_a_bin_spans_at_most_the_gap(costs, bins):
    assert cost_bins(dict(enumerate(costs)), lambda _: 1) == bins


def test_the_gap_by_default_follows_the_anchors_around_it():
    """So a cheap pair of anchors has as many bins as a costly one, and no anchor is lost in a wide bin."""
    gap = gap_between([320, 0, 32])
    assert [gap(start) for start in (-5, 0, 31, 32, 100, 320, 900)] == [2, 2, 2, 18, 18, 18, 18]
    assert gap_between([5, 5])(5) == 0, "routes of one cost"
    costs = {0: 0, 1: 32, 2: 320} | {number: 4 * number for number in range(3, 8)} | {8: 33, 9: 51}
    sampler = sampler_of("cost_bins", cfg_ids=tuple(costs), cost=costs.__getitem__, anchors=(0, 1, 2))
    assert sampler.bins == [(0,), (3,), (4,), (5,), (6,), (7,), (1, 8), (9,), (2,)]


def test_each_bin_is_as_likely_or_the_costlier_the_likelier(caplog):
    caplog.set_level("INFO")
    costs = {0: 1, 1: 5, 2: 5, 3: 5, 4: 9}
    even = sampler_of("cost_bins", cfg_ids=tuple(costs), cost=lambda cfg_id: costs[cfg_id] * 10**9, flops_gap=1.0)
    assert even.bins == [(0,), (1, 2, 3), (4,)]
    assert "cost bins: 3, of 1 to 3 routes each" in caplog.text
    counts = Counter(draws(even, steps=range(9000)))
    assert counts[0] == pytest.approx(3000, abs=230)
    assert counts[2] == pytest.approx(1000, abs=150)
    assert counts[4] == pytest.approx(3000, abs=230)
    rising = sampler_of("cost_bins", flops_sampling_k=4.0, cfg_ids=tuple(costs), cost=costs.__getitem__, anchors=(0, 4))
    assert len(rising.bins) == 3
    wanted = np.array([0 / 4 + 1 / 3, 1 / 4 + 1 / 3, 2 / 4 + 1 / 3])
    np.testing.assert_allclose(rising.shares, wanted / wanted.sum())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "resnet18", "stitch_config": None, "preserve": "frozen"},
            "--preserve requires an SN-Net",
        ),
        (
            {"sampler": "sandwich"},
            r"--sampler sandwich was removed \(studies/samplers has it\); choose from uniform, cost_bins",
        ),
        ({"sampler": "importance"}, r"--sampler importance was removed \(it was never measured\); choose"),
        ({"flops_gap": 0.0}, "--flops-gap is 0.0; it must be at least 1e-09"),
        ({"sampler": "cost-bins"}, "--sampler: unknown value 'cost-bins'; did you mean 'cost_bins'"),
    ],
)
def test_settings_of_other_samplers_are_refused(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        TrainRun().check(
            resolve({"data_dir": "d", "stitch_config": str(write_config(tmp_path / "c.json")), **flags})[0]
        )


def test_a_gap_of_a_file_is_told_that_its_sampler_has_none(caplog):
    check_sampler(StitchRecipe(sampler="uniform", flops_gap=1.0))
    assert "--flops-gap has no effect with --sampler uniform; choose from cost_bins" in caplog.text


def test_the_default_is_published_measured_here_or_every_cost_alike():
    measured = [*(ROOT / "configs").glob("digits_*.json"), *(ROOT / "results/digits_zoo").glob("digits_*.json")]
    published = ("deit_ti_s_b", "swin_ti_s_b", "resnet18_resnet50", "resnet18_swin_ti", "levit_192_256")
    assert len(measured) == 8
    for place in [*measured, *published]:
        assert StitchConfig.load(place).recipe["sampler"] == "uniform", place
    assert StitchRecipe().sampler == "cost_bins"
    first = {**pico_config(), "data_set": "IMNET"}
    assert StitchConfig.parse(first).recipe["sampler"] == "uniform"
    recipe = StitchConfig.parse({**pico_config(), "flops_gap": 1, "flops_sampling_k": 5}).recipe
    assert "sampler" not in recipe
    assert (recipe["flops_gap"], recipe["flops_sampling_k"]) == (1, 5)
