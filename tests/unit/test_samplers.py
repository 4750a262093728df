"""Samplers: draws are pure functions of seed, step, rank and what checkpoints keep; each trains what it says."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.profile import Profiler
from stitchkit.settings.flags import resolve
from stitchkit.settings.schema import parse
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.network import check_names
from stitchkit.training.samplers import SAMPLERS, check_sampler, create_sampler
from stitchkit.training.samplers.cost_bins import budget_bins, cost_bins, gap_between
from stitchkit.training.samplers.sandwich import adaptive_divergence
from stitchkit.training.task import StitchTask
from tests.support import ROOT, family_snnet, pico_config, pico_images, pico_snnet, write_config

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
    drawn = {cfg_id for routes in first for cfg_id in routes}
    assert drawn <= {*IDS}
    assert len(drawn) > len(IDS) // 2
    assert all(len({*routes}) == len(routes) > 0 for routes in first)


def test_uniform_draws_as_it_always_did():
    """A run of before resumes with the same stitches; and all are as likely."""
    sampler = sampler_of("uniform", cfg_ids=range(71), seed=42)
    assert draws(sampler, rank=1, steps=range(6)) == [
        (int(np.random.default_rng((42, step, 1)).integers(71)),) for step in range(6)
    ]
    counts = Counter(draws(sampler_of("uniform", cfg_ids=range(5)), steps=range(5000)))
    # Five standard deviations of a fair draw are about 141.
    assert all(abs(counts[(cfg_id,)] - 1000) < 141 for cfg_id in range(5))


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
    assert budget_bins(costs, gap, [32, 51]) == [(1,), (8, 9)], "a bin below an anchor follows the pair below it"
    sampler = sampler_of("cost_bins", cfg_ids=tuple(costs), cost=costs.__getitem__, anchors=(0, 1, 2))
    assert sampler.bins == [(0,), (3,), (4,), (5,), (6,), (7,), (1, 8), (9,), (2,)]


def test_each_bin_is_as_likely_or_the_costlier_the_likelier(caplog):
    caplog.set_level("INFO")
    costs = {0: 1, 1: 5, 2: 5, 3: 5, 4: 9}
    even = sampler_of("cost_bins", cfg_ids=tuple(costs), cost=lambda cfg_id: costs[cfg_id] * 10**9, flops_gap=1.0)
    assert even.bins == [(0,), (1, 2, 3), (4,)]
    assert "cost bins: 3, of 1 to 3 routes each" in caplog.text
    counts = Counter(routes[0] for routes in draws(even, steps=range(9000)))
    assert counts[0] == pytest.approx(3000, abs=230)
    assert counts[2] == pytest.approx(1000, abs=150)
    assert counts[4] == pytest.approx(3000, abs=230)
    rising = sampler_of("cost_bins", flops_sampling_k=4.0, cfg_ids=tuple(costs), cost=costs.__getitem__, anchors=(0, 4))
    assert len(rising.bins) == 3
    wanted = np.array([0 / 4 + 1 / 3, 1 / 4 + 1 / 3, 2 / 4 + 1 / 3])
    np.testing.assert_allclose(rising.shares, wanted / wanted.sum())


@pytest.mark.parametrize("name", ["cost_bins", "best_of", "importance"])
def test_budgets_take_all_draws(name, caplog):
    caplog.set_level("INFO")
    sampler = sampler_of(name, cost=lambda cfg_id: cfg_id * 10**9, flops_gap=1.0, budgets="2.5G,7G")
    assert sampler.bins == [(1, 2), (6, 7)]
    assert "bins at the budgets: 2, of 2 routes each" in caplog.text
    counts = Counter(cfg_id for routes in draws(sampler, steps=range(400)) for cfg_id in routes)
    assert counts.keys() == {1, 2, 6, 7}
    total = sum(counts.values())
    assert counts[1] + counts[2] == pytest.approx(total / 2, rel=0.3)
    assert budget_bins({0: 3, 1: 5}, lambda _: 0, [9]) == [(1,)]
    with pytest.raises(InputError, match="no route costs 500M FLOPs or less; the cheapest costs 2G"):
        budget_bins({0: 2e9}, lambda _: 1e9, [3e9, 5e8])


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("2G,x", "budgets is '2G,x', which does not list FLOPs such as 2G,5G: 'x' is not a positive number"),
        ("", "'' is not a positive number"),
        ("0", "holds a budget of 0"),
        ("8ms", "is a latency"),
    ],
)
def test_odd_budgets_are_refused(budgets, message):
    with pytest.raises(InputError, match=message):
        parse(StitchRecipe, {"budgets": budgets})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "resnet18", "stitch_config": None, "preserve": "frozen"},
            "--preserve keeps the anchors of an SN-Net",
        ),
        (
            {"sampler": "uniform", "budgets": "2G"},
            "--sampler uniform; choose from cost_bins, sandwich, best_of, imp",
        ),
        (
            {"sampler_routes": 2},
            "--sampler-routes has no effect with .* choose from sandwich, best_of",
        ),
        ({"sandwich_divergence": "adaptive"}, "--sandwich-divergence has no effect with --sampler cost_bins"),
        (
            {"sampler": "sandwhich", "sampler_routes": 3},
            "'sandwhich'; did you mean 'sandwich'",
        ),
        ({"flops_gap": 0.0}, "--flops-gap is 0.0; it must be at least 1e-09"),
        ({"sampler": "cost-bins"}, "unknown value of --sampler 'cost-bins'; did you mean 'cost_bins'"),
    ],
)
def test_settings_of_other_samplers_are_refused(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        check_names(*resolve({"data_dir": "d", "stitch_config": str(write_config(tmp_path / "c.json")), **flags}))


def test_a_gap_of_a_file_is_told_that_its_sampler_has_none(caplog):
    check_sampler(StitchRecipe(sampler="uniform", flops_gap=1.0))
    assert "--flops-gap has no effect with --sampler uniform; choose from cost_bins, sandwich, " in caplog.text


def test_absurd_numbers_are_refused():
    with pytest.raises(InputError, match="--budgets: 9G FLOPs allow the same routes as another budget"):
        sampler_of("cost_bins", cost=lambda cfg_id: cfg_id * 10**9, flops_gap=1.0, budgets="8G,9G")
    with pytest.raises(InputError, match="--sampler-routes is 9, but only 8 routes are drawn"):
        sampler_of("sandwich", sampler_routes=9)


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


def task_of(name, model=None, **settings):
    model = pico_snnet() if model is None else model
    costs = Profiler(model)
    recipe = StitchRecipe(sampler=name, **settings)
    anchors = range(model.space.num_anchors)
    sampler = create_sampler(model.trainable_stitches(), lambda cfg_id: costs.cost(cfg_id).flops, recipe, 0, anchors)
    return StitchTask(model, nn.CrossEntropyLoss(), sampler=sampler, settings=recipe)


def test_the_costliest_of_a_sandwich_teaches_the_others():
    task = task_of("sandwich", sampler_routes=3)
    model, x, routes = task.network, pico_images(), task.draw(5, 0)
    flops = {cfg_id: Profiler(model).cost(cfg_id).flops for cfg_id in model.space.ids}
    costliest, cheapest, *others = routes
    assert costliest == model.space.num_anchors - 1
    assert flops[costliest] < max(flops.values()), "an anchor, though a stitch costs more"
    assert flops[cheapest] == min(flops.values())
    assert 1 <= len(others) <= 3
    assert {len(task.draw(step, 0)) for step in range(40)} == {3, 4, 5}, "what is drawn twice is trained once"
    result = task(x, LABELS, *routes)
    wanted = model(x, costliest).detach().softmax(1)  # the teacher does not learn from its pupils
    taught = [(wanted * (wanted.log() - model(x, cfg_id).log_softmax(1))).sum(1).mean() for cfg_id in routes[1:]]
    reference = F.cross_entropy(model(x, costliest), LABELS) + sum(taught)
    torch.testing.assert_close(result["loss"], reference)
    assert torch.equal(result["output"], model(x, costliest))
    weights = [*model.parameters()]
    for found, given in zip(
        torch.autograd.grad(result["loss"], weights, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(reference, weights, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(found, given, rtol=1e-4, atol=1e-5)


def test_a_sandwich_keeps_to_the_budgets_and_to_what_is_trained():
    given = {"cost": lambda cfg_id: cfg_id * 10**9, "flops_gap": 1.0, "anchors": (0, 5)}
    assert sampler_of("sandwich", **given).ends == (5, 0)
    assert sampler_of("sandwich", **given | {"anchors": ()}).ends == (8, 0)
    budgets = sampler_of("sandwich", **given, budgets="7G,2.5G")
    assert budgets.ends == (7, 1)
    assert {cfg_id for routes in draws(budgets) for cfg_id in routes} == {1, 2, 6, 7}


def test_the_adaptive_divergence_has_the_gradient_of_the_larger_one():
    """Against autograd, on logits so close that nothing is clipped; then on some that are not."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(16, 5, generator=generator, dtype=torch.float32)
    given = (wanted + 0.3 * torch.randn(16, 5, generator=generator)).requires_grad_()
    p, q = wanted.softmax(1), given.softmax(1)
    over, under = (q * (q / p - 1) / 2).sum(1), (p * (p / q).log()).sum(1)
    assert 0 < (over > under).sum() < 16
    (reference,) = torch.autograd.grad(torch.maximum(over, under).mean(), given)
    (found,) = torch.autograd.grad(adaptive_divergence(given, wanted), given)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)
    far = torch.tensor([[200.0, -200.0]], requires_grad=True)
    (found,) = torch.autograd.grad(adaptive_divergence(far, -far.detach()), far)
    assert found.isfinite().all()
    task = task_of("sandwich", sandwich_divergence="adaptive")
    torch.testing.assert_close(task.sampler.divergence(given, wanted), adaptive_divergence(given, wanted))


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_best_of_a_bin_is_trained_and_the_search_leaves_no_trace(family):
    """Also in networks with batch norms, which are compared by the statistics of the batch."""
    model = family_snnet(family).train()
    model.views[next(iter(model.views))].model.eval()  # a part that does not learn
    task = task_of("best_of", model, sampler_routes=2)
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(0))
    seen = set()
    for step in range(12):
        drawn = task.draw(step, 0)
        losses = {cfg_id: F.cross_entropy(model(x, cfg_id), LABELS).item() for cfg_id in drawn}
        model.load_state_dict(state)  # what the line above left in the batch norms
        assert task.choose(drawn, x, LABELS) == (min(losses, key=losses.__getitem__),)
        seen.add(len(drawn))
    assert 2 in seen
    assert modes == [part.training for part in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_importance_is_a_running_mean_and_shifts_the_draws():
    sampler = sampler_of("importance", cost=lambda _: 7)
    assert sampler.bins == [IDS]
    np.testing.assert_allclose(sampler.shares_within(IDS), 1 / 8)
    for cfg_id, value in ((4, 1.0), (4, 3.0), (6, 0.5), (6, float("inf"))):
        sampler.observe([cfg_id, cfg_id], lambda _, value=value: torch.tensor(value))
    assert sampler.scores() == pytest.approx({4: (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.9**2), 6: 0.5})
    shares = dict(zip(IDS, sampler.shares_within(IDS), strict=True))
    weights = {4: np.e, 6: 1 / np.e}  # of two scores, each is one deviation from the mean, and others are at it
    total = sum(weights.values()) + 6
    assert shares == pytest.approx({cfg_id: 0.8 * weights.get(cfg_id, 1) / total + 0.2 / 8 for cfg_id in IDS})
    counts = Counter(draws(sampler, steps=range(4000)))
    assert counts[(4,)] == pytest.approx(4000 * shares[4], rel=0.15)
    again = sampler_of("importance", cost=lambda _: 7)
    assert draws(again) != draws(sampler)
    for name, value in again.kept().items():
        value.copy_(sampler.kept()[name])
    assert draws(again) == draws(sampler), "nothing else decides"


def test_importance_is_the_mean_of_gradient_times_weight():
    task = task_of("importance")
    (route,) = task.draw(0, 0)
    task(pico_images(), LABELS, route)["loss"].backward()
    task.observe(0, 1)
    parts = [(w.detach() * w.grad).abs().reshape(-1) for w in task.network.parameters() if w.grad is not None]
    assert task.sampler.scores() == {route: pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)}
