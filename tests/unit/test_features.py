"""Learning from features: the target, the distance, what has gradients, and what a run without labels refuses."""

import copy

import pytest
import torch
from torch.nn import functional as F

from stitchkit.data.unreadable import NO_CLASS
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.combinations import check
from stitchkit.training.features import FeatureLoss, held_out_loss, judged_routes
from stitchkit.training.objective import RouteOutputs, StepBatch
from stitchkit.training.preserve import freeze, say_frozen, trainable_stitches
from stitchkit.training.samplers import create_sampler
from stitchkit.training.task import create_task
from tests.support import SPACES, family_snnet, mostly_full, pico_images, pico_snnet, randomize

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 3])
CUT = 5
"""A stitch with a joint."""


def settings(**changes):
    return make_recipe({"smoothing": 0.0, "loss": "features", **changes})


def task_of(model, **changes):
    """A task in training mode, and its loss of features."""
    recipe = settings(**changes)
    freeze(model, recipe.stitch)
    costs = Profiler(model)
    routes, anchors = trainable_stitches(model), range(model.space.num_anchors)
    sampler = create_sampler(routes, lambda cfg_id: costs.cost(cfg_id).flops, recipe.stitch, 0, anchors)
    features = FeatureLoss(model, recipe.stitch) if recipe.stitch.uses_features else None
    sizes = {"sides": model.input_size[1:], "mean": (0.5,) * 3, "std": (0.5,) * 3}
    task = create_task(model, recipe, CPU, **sizes, sampler=sampler, features=features and features.term)
    task.train()
    return task, features


def loss_of(features, x, feature, cfg_id):
    """The loss of a final feature."""
    return features(cfg_id, RouteOutputs(x, (), feature), StepBatch(x, LABELS))


def end_of(model, cfg_id):
    """The network in which a route ends."""
    return model.views[model.space[cfg_id].segments[-1].anchor].model


@torch.no_grad()
def target_of(net, x):
    """What timm's own code gives before its pooling: of a ViT, the tokens after the final normalisation."""
    found = copy.deepcopy(net).eval().forward_features(x)
    assert not torch.equal(found, net.blocks(net._pos_embed(net.patch_embed(x))))
    return found


@pytest.mark.parametrize("family", mostly_full(SPACES, quick=["vit", "headless resnet to swin", "headless levit"]))
@torch.no_grad()
def test_the_final_feature_is_what_enters_the_head(family):
    model = family_snnet(family)
    x = pico_images(size=model.input_size[-1])
    loss = FeatureLoss(model, settings().stitch)
    for cfg_id in (*range(len(model.views)), model.space.ids[-1]):
        output, feature = model(x, cfg_id, with_feature=True)
        assert torch.equal(output, model(x, cfg_id))
        assert torch.equal(output, model.module_of(model.steps(cfg_id)[-1])(feature))
        found = loss_of(loss, x, feature, cfg_id)
        assert found.item() == 0 if model.space[cfg_id].is_anchor else found.item() > 0.01


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_the_distance_is_that_of_what_enters_timms_head(distance):
    model = pico_snnet()
    x, target = pico_images(), target_of(end_of(model, CUT), pico_images())
    task, _ = task_of(model, feature_distance=distance)
    feature = end_of(model, CUT).norm(model(x, CUT, with_feature=True)[1])
    wanted = {
        "mse": ((feature - target) ** 2).sum() / (target**2).sum(),
        "cosine": 1 - ((feature * target).sum(2) / feature.norm(dim=2) / target.norm(dim=2)).mean(),
    }[distance]
    assert wanted > 0.01
    torch.testing.assert_close(task(x, LABELS, CUT)["loss"], wanted)
    unlabelled = task(x, torch.full((2,), NO_CLASS), CUT)
    torch.testing.assert_close(unlabelled["loss"], wanted)
    assert unlabelled["output"].shape == (2, 4)


def test_cosine_compares_the_channels_of_maps():
    model = family_snnet("headless resnet to swin")
    x, cfg_id = pico_images(size=64), model.space.ids[0]
    loss = FeatureLoss(model, settings(feature_distance="cosine").stitch)
    with torch.no_grad():
        feature = model(x, cfg_id, with_feature=True)[1]
        other = feature + 0.1 * torch.randn_like(feature)
    assert feature.shape[1] == 32 > feature.shape[2]
    torch.testing.assert_close(loss_of(loss, x, other, cfg_id), 1 - F.cosine_similarity(other, feature, dim=1).mean())


def test_labels_are_added():
    model = pico_snnet()
    task, features = task_of(model, loss="features+task")
    x = pico_images()
    logits, feature = model(x, CUT, with_feature=True)
    expected = loss_of(features, x, feature, CUT) + F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(task(x, LABELS, CUT)["loss"], expected)


@pytest.mark.parametrize(("preserve", "trained"), [(None, {"stitch_layers"}), ("lora", {"stitch_layers", "updates"})])
def test_gradients_reach_joints_only(preserve, trained):
    model = pico_snnet(anchor_lora_r=2 if preserve else 0)
    task, features = task_of(model, **({"preserve": preserve} if preserve else {}))
    task(pico_images(), LABELS, CUT)["loss"].backward()
    given = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert {name.partition(".")[0] for name in given} == trained
    (joint,) = model.space[CUT].joints
    assert all(weight.grad.abs().sum() > 0 for weight in model.layer(joint).parameters())
    assert features.copies is None


def test_anchors_that_are_trained_learn_from_copies():
    model = pico_snnet()
    x, wanted = pico_images(), target_of(end_of(model, CUT), pico_images())
    task, features = task_of(model, preserve="none")
    randomize(model)  # as a training changes it
    feature = end_of(model, CUT).norm(model(x, CUT, with_feature=True)[1])
    loss = task(x, LABELS, CUT)["loss"]
    torch.testing.assert_close(loss, F.mse_loss(feature, wanted) / wanted.square().mean())
    loss.backward()
    assert end_of(model, CUT).blocks[-1].mlp.fc1.weight.grad is not None
    assert end_of(model, CUT).norm.weight.grad is not None
    assert end_of(model, CUT).head.weight.grad is None, "the classifier learns nothing"
    assert all(weight.grad is None and not weight.requires_grad for weight in features.copies.parameters())
    assert not any(name.startswith("trainable_module.copies") for name in task.state_dict())


def test_targets_are_of_evaluation_mode_and_leave_no_trace():
    model = family_snnet("headless levit")
    task, features = task_of(model, preserve="none")
    task.train()
    x = pico_images(size=64)
    modes = {part: part.training for part in features.copies.modules()}
    before = {name: value.clone() for name, value in features.copies.state_dict().items()}
    first = task(x, LABELS, CUT)["loss"]
    assert {part: part.training for part in features.copies.modules()} == modes
    assert not any(modes.values())
    for name, value in features.copies.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert first > 0.01


def test_the_loss_of_held_out_images_does_not_depend_on_their_batches():
    model = pico_snnet()
    loss, x = FeatureLoss(model, settings().stitch), pico_images(7)
    routes = judged_routes(model.space)
    assert len(routes) == 5
    assert not any(model.space[cfg_id].is_anchor for cfg_id in routes)
    assert judged_routes(family_snnet("headless levit").space) != [], "also of few stitches"
    model.train()
    parts = [
        held_out_loss(model, loss, routes, [(part, part) for part in x.split(count)], device=CPU) for count in (7, 3, 1)
    ]
    assert parts[1:] == pytest.approx([parts[0]] * 2, rel=1e-6)
    assert model.training
    model.eval()
    with torch.no_grad():
        plain = [loss_of(loss, x, model(x, cfg_id, with_feature=True)[1], cfg_id).item() for cfg_id in routes]
    assert parts[0] == pytest.approx(sum(plain) / 5, rel=1e-5)


def test_frozen_is_the_default_with_features_only():
    ways = [settings(**given).stitch.way_to_preserve for given in ({}, {"preserve": "none"}, {"loss": "features+task"})]
    assert ways == ["frozen", "none", "frozen"]
    assert make_recipe({}).stitch.way_to_preserve == "none"
    model = pico_snnet()
    assert say_frozen(model, settings(preserve="none").stitch) == ""
    freeze(model, settings().stitch)
    assert say_frozen(model, settings().stitch) == "1.38k of 63.4k parameters are trained"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mixup": 0.8, "cutmix": 1.0},
            r"so --mixup, --cutmix would .*omit it \(--mixup 0 --cutmix 0\)",
        ),
        (
            {"cutmix_minmax": [0.2, 0.8]},
            r"--cutmix-minmax would have no effect; omit it, or give --loss features\+task",
        ),
        ({"distillation_type": "soft", "teacher_model": "resnet18"}, r"omit it \(--distillation-type none\)"),
        ({"jsd_loss": True, "aug_splits": 2}, "so --jsd-loss would have no effect"),
        ({"bce_loss": True}, "so --bce-loss would have no effect"),
        ({"fulltune": False}, "--no-fulltune and --preserve frozen both decide"),
        ({"stitch_lr_scale": 0.0}, "--preserve frozen with --stitch-lr-scale 0 would train nothing"),
        ({"stitch_config": None, "model": "resnet18"}, "--loss features requires an SN-Net"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        check(settings(**{"stitch_config": "x", "data_dir": "y", **given}))


def test_what_labels_are_for_stays_allowed_with_them_and_in_an_evaluation():
    common = {"stitch_config": "x", "data_dir": "y", "mixup": 0.8}
    check(settings(**common, loss="features+task", distillation_type="soft", teacher_model="resnet18"))
    check(settings(**common, eval=True, resume="last.pth.tar"))
