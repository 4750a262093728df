"""The plug-ins of studies/samplers, and the focus of studies/evidence."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stitchkit.measure.profile import Profiler
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.network import sampler_of
from stitchkit.training.samplers import SAMPLERS, Uniform
from stitchkit.training.task import create_task
from studies.evidence.focus import FocusedBins, worth_training
from studies.samplers.plug_in import plugged_in
from studies.samplers.replay import Replay
from studies.samplers.sandwich import Sandwich
from tests.support import pico_images, pico_snnet, randomize

LABELS = torch.tensor([0, 3])


def task_of(name, *, replay=False, **settings):
    model, recipe = pico_snnet(), make_recipe({"sampler": name, "smoothing": 0.0, "flops_gap": 1e-4, **settings})
    with plugged_in(name, Replay(model, recipe.stitch) if replay else None):
        return create_task(
            model, recipe, torch.device("cpu"), sides=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3,
            sampler=sampler_of(model, recipe),
        )  # fmt: skip


def test_the_costliest_of_a_sandwich_teaches_the_others():
    task = task_of("sandwich")
    model, x, routes = task.network, pico_images(), task.draw(5, 0)
    flops = {cfg_id: Profiler(model).cost(cfg_id).flops for cfg_id in model.space.ids}
    costliest, cheapest, *_ = routes
    assert costliest == model.space.num_anchors - 1
    assert flops[costliest] < max(flops.values()), "an anchor, though a stitch costs more"
    assert flops[cheapest] == min(flops.values())
    assert {3, 4} <= {len(task.draw(step, 0)) for step in range(40)} <= {2, 3, 4}, "what is drawn twice is trained once"
    found = task(x, LABELS, *routes)
    wanted = model(x, costliest).detach().softmax(1)  # the teacher does not learn from its pupils
    taught = [(wanted * (wanted.log() - model(x, cfg_id).log_softmax(1))).sum(1).mean() for cfg_id in routes[1:]]
    torch.testing.assert_close(found["loss"], F.cross_entropy(model(x, costliest), LABELS) + sum(taught))


def test_without_trained_anchors_the_costliest_route_teaches():
    sampler = Sandwich((1, 2, 4), lambda cfg_id: cfg_id, StitchRecipe(), 3, (0, 8))
    assert sampler.ends == (4, 1)


def test_an_anchor_that_a_sandwich_teaches_learns_from_its_copy():
    task = task_of("sandwich", replay=True)
    model, x = task.network, pico_images()
    copy = model.views["ti"].model(x).detach()
    randomize(model)
    logits = [model(x, cfg_id) for cfg_id in (5, 0)]
    taught = F.kl_div(logits[1].log_softmax(1), copy.log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(task(x, LABELS, 5, 0)["loss"], F.cross_entropy(logits[0], LABELS) + taught)


def test_replay_draws_anchors_almost_twice_as_often():
    model = pico_snnet()
    sampler, replay = Uniform(model.space.ids, lambda _: 0, StitchRecipe(), 3, ()), Replay(model, StitchRecipe())
    steps = range(4000)
    drawn = [replay.draw(sampler.draw, step, 1) for step in steps]
    assert drawn == [replay.draw(sampler.draw, step, 1) for step in steps], "a pure function of the step"
    share = len(model.views) / len(model.space)
    found = sum(cfg_id in replay.anchors for cfg_id in drawn) / len(steps)
    assert found == pytest.approx(2 * share - share**2, abs=0.03)
    assert {*drawn} == {*model.space.ids}


def test_an_anchor_learns_from_its_copy_and_a_stitch_does_not():
    task = task_of("cost_bins", replay=True, distillation_alpha=0.3, distillation_tau=2.0)
    model, x = task.network, pico_images()
    before = [view.model(x).detach() for view in model.views.values()]
    randomize(model)  # as a training changes it
    task.train()
    assert not any(module.training for module in task.replay.modules())
    assert {0, 1, 2} <= {task.draw(step, 0)[0] for step in range(200)}
    for cfg_id, wanted in enumerate(before):
        logits = model(x, cfg_id)
        p, q = torch.softmax(wanted / 2, 1), torch.softmax(logits / 2, 1)
        taught = (p * (p / q).log()).sum(1).mean() * 4
        assert taught > 0.01
        found = task(x, LABELS, cfg_id)["loss"]
        torch.testing.assert_close(found, 0.7 * F.cross_entropy(logits, LABELS) + 0.3 * taught)
    torch.testing.assert_close(task(x, LABELS, 5)["loss"], F.cross_entropy(model(x, 5), LABELS))
    task(x, LABELS, 0)["loss"].backward()
    assert all(weight.grad is None for weight in task.replay.parameters())


def test_the_best_of_a_bin_is_trained_and_the_search_leaves_no_trace():
    task = task_of("best_of")
    model, x = task.network.train(), pico_images()
    drawn = next(routes for routes in (task.draw(step, 0) for step in range(40)) if len(routes) == 3)
    losses = {cfg_id: F.cross_entropy(model(x, cfg_id), LABELS) for cfg_id in drawn}
    best = min(losses, key=losses.__getitem__)
    assert task.best(drawn, x, LABELS) == best
    torch.testing.assert_close(task(x, LABELS, *drawn)["loss"], losses[best])
    assert model.training


def test_the_product_has_no_plug_in_afterwards():
    before = dict(SAMPLERS)
    with plugged_in("sandwich"):
        assert SAMPLERS.keys() - before.keys() == {"sandwich", "best_of"}
    assert before == SAMPLERS


def bits(*rights, images=400):
    """Networks with these numbers of right answers, on images of their own as far as there are any."""
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(np.arange(images) < right) for right in rights])


def test_what_is_clearly_beaten_is_dropped_unless_it_always_stays():
    right = bits(200, 120, 300, 180)
    assert worth_training(right, [1, 2, 3, 4]) == [0, 2]
    assert worth_training(right, [1, 2, 3, 4], always=[3]) == [0, 2, 3]
    assert worth_training(right, [4, 3, 2, 1]) == [2, 3], "the costs decide who beats whom"
    assert worth_training(bits(200, 204, 199), [1, 2, 3]) == [0, 1, 2], "not told apart"


def test_a_focus_draws_from_what_is_left():
    sampler = FocusedBins((0, 1, 2, 4, 5), lambda cfg_id: 100 * cfg_id**2, StitchRecipe(flops_gap=1e-8), 3, (0, 5))
    whole = [sampler.draw(step, 0) for step in range(200)]
    sampler.drop([])
    assert [sampler.draw(step, 0) for step in range(200)] == whole
    sampler.drop([1, 4])
    assert {sampler.draw(step, 0) for step in range(200)} == {0, 2, 5} == {*sampler.cfg_ids}
