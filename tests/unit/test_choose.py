"""KLAS: known cases of its score, and the choice by FLOPs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

import stitchkit
from stitchkit.choose.choose import candidates, check_way, choose, closest_pair, keep
from stitchkit.choose.klas import anchor_thetas, joint_routes, klas, theta, train_probes
from stitchkit.data.unreadable import NO_CLASS
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.routes import Joint
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import (
    FAMILIES,
    family_snnet,
    headless,
    mostly_full,
    pico_anchor,
    pico_config,
    pico_images,
    pico_snnet,
    randomize,
)


def batches(count=32, size=8, image=16):
    """Batches of pico images with labels."""
    labels = torch.arange(count) % 4
    return [*zip(pico_images(count, image).split(size), labels.split(size), strict=True)]


def twins(**kwargs):
    """An SN-Net of two equal anchors."""
    torch.manual_seed(0)
    model = stitchkit.create_snnet({"anchors": [pico_anchor("a", 8, **kwargs), pico_anchor("b", 8, **kwargs)]})
    randomize(model)
    model.anchors[1].load_state_dict(model.anchors[0].state_dict())
    return model.eval()


def headless_snnet():
    """An SN-Net of pico anchors without classifiers."""
    torch.manual_seed(0)
    model = stitchkit.create_snnet(headless(pico_config()))
    randomize(model)
    return model.eval()


@pytest.mark.parametrize("from_labels", [True, False])
@pytest.mark.parametrize("classes", [4, 0])
def test_equal_networks_score_0_where_no_block_is_repeated_or_skipped(from_labels, classes):
    model = twins(num_classes=classes)
    scores = klas(model, batches(), seed=0, from_labels=from_labels)
    assert scores.keys() == set(model.space.layers)
    for joint, score in scores.items():
        assert (score == 0) == (joint.end_block == joint.front_block + 1), joint


def test_theta_is_the_mean_divergence():
    p, q = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(1) for seed in (0, 1))
    expected = (p.exp() * (p - q)).sum() / 5
    assert theta(p, q) == pytest.approx(expected.item(), rel=1e-5)
    assert theta(p, p) == 0


def test_probes_learn_what_a_linear_probe_can():
    """From features in four clusters they tell held-out images apart; from noise they do not."""
    labels = torch.arange(64) % 4
    generator = torch.Generator().manual_seed(0)
    near = F.one_hot(labels, 8).float() * 5 + torch.randn(64, 8, generator=generator)
    noise = torch.randn(64, 8, generator=generator)
    held_out = torch.arange(64) % 5 == 0
    features = {("a", 0): noise, ("a", 1): near}
    predicted = train_probes(features, {"a": F.one_hot(labels).float()}, held_out, seed=0)
    assert features["a", 1] is near, "the caller's features stay as they are"
    right = {place: (found.argmax(1) == labels[held_out]).float().mean() for place, found in predicted.items()}
    assert right["a", 1] == 1
    assert right["a", 0] < 0.7
    assert predicted["a", 1].exp().sum(1) == pytest.approx(np.ones(13))


@pytest.mark.parametrize(("from_labels", "classes"), [(True, 4), (False, 4), (False, 0)])
def test_gamma_is_the_quotient_of_two_thetas(from_labels, classes):
    """From predictions that are computed here once more, with probes of the features as they are in the network."""
    model, images = pico_snnet() if classes else headless_snnet(), batches()
    scores = klas(model, images, seed=3, from_labels=from_labels)
    every, labels = torch.cat([x for x, _ in images]), torch.cat([y for _, y in images])
    held_out = torch.arange(32) % 4 == 0
    features, outputs = {}, {}
    with torch.no_grad():
        for cfg_id, label in enumerate(["ti", "s", "b"]):
            features |= {(label, j): x.mean(1) for j, x in enumerate(model.views[label].features(every))}
            outputs[label] = model(every, cfg_id)
    if from_labels:
        targets = dict.fromkeys(outputs, F.one_hot(labels).float())
    elif classes:
        targets = {label: logits.softmax(1) for label, logits in outputs.items()}
    else:
        codes = KMeans(3, n_init=1, random_state=3).fit(outputs["b"][~held_out]).predict(outputs["b"])
        targets = dict.fromkeys(outputs, F.one_hot(torch.from_numpy(codes).long()).float())
    predicted = train_probes(features, targets, held_out, seed=3)
    for joint in (Joint("ti", 0, "s", 1), Joint("s", 1, "b", 2)):
        before, after = (predicted[joint.end, joint.end_block + run] for run in (0, 1))
        apart = theta(predicted[joint.front, joint.front_block + 1], before)
        assert scores[joint] == pytest.approx(apart / theta(before, after), rel=1e-3)


_OTHERS = ["resnet and vit, both ways", "vits of other grids and tokens, both ways"]


@pytest.mark.parametrize("family", mostly_full(_OTHERS, quick=_OTHERS[:1]))
def test_every_joint_of_any_layouts_has_the_same_score_twice(family):
    size = FAMILIES[family]["anchors"][-1]["kwargs"]["img_size"]
    first, again = (klas(family_snnet(family), batches(8, 4, size), seed=1) for _ in range(2))
    assert first == again
    assert first.keys() == set(joint_routes(family_snnet(family)))
    assert all(0 <= score < math.inf for score in first.values())


@pytest.fixture(scope="module")
def windows():
    """An SN-Net of many joints, and the FLOPs of its stitches."""
    model = pico_snnet(stitch_kernel_size=3)
    profiler = Profiler(model)
    return model, {cfg_id: profiler.cost(cfg_id).flops for cfg_id in model.space.ids}


@pytest.mark.parametrize(("buckets", "tau"), [(1, 0.05), (1, 1e9), (3, 0.0), (3, 0.5), (20, 0.05)])
def test_the_kept_set_is_that_of_the_definition(windows, buckets, tau):
    model, cost = windows
    random = np.random.default_rng(0)
    given = candidates(model, buckets)
    scores = {one.joint: float(random.uniform(1, 2)) for one in given}
    kept = set()
    for front, end in (("ti", "s"), ("s", "b")):
        low, high = (cost[["ti", "s", "b"].index(label)] for label in (front, end))
        edges = [low + (high - low) * number / buckets for number in range(buckets + 1)]
        edges[0], edges[-1] = -math.inf, math.inf
        for lower, upper in pairwise(edges):
            inside = {}
            for joint, cfg_id in joint_routes(model).items():
                if (joint.front, joint.end) == (front, end) and lower <= cost[cfg_id] < upper:
                    inside[joint] = scores[joint]
            kept |= {joint for joint, score in inside.items() if score <= (1 + tau) * min(inside.values())}
    assert set(keep(given, scores, tau)) == kept
    assert (len(kept) == len(given)) == (tau == 1e9)


def test_a_score_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setattr("stitchkit.choose.choose.klas", lambda *_, **__: {})
    with pytest.raises(InputError, match=r"the score of ti\[0\] > s\[0\] is nan, not finite and at least 0"):
        choose(pico_snnet(), batches())


def test_the_pair_is_that_of_the_smallest_theta():
    config, model = StitchConfig.parse(pico_config()), pico_snnet()
    thetas = anchor_thetas(model, batches())
    images = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        p, q = (model(images, cfg_id).double().log_softmax(1) for cfg_id in (0, 2))
    assert thetas["ti", "b"] == pytest.approx(theta(p, q), rel=1e-4)
    chosen, table = closest_pair(config, model, batches())
    best = min(thetas, key=thetas.get)
    assert tuple(anchor.label for anchor in chosen.anchors) == best
    assert [line.split()[1:4] for line in table.splitlines() if line.startswith("*")] == [[best[0], ">", best[1]]]
    with pytest.raises(InputError, match="--pair chooses two of several anchors, but the configuration has 2 anchors"):
        closest_pair(chosen, model, batches())
    bare = stitchkit.create_snnet(headless(pico_config())).eval()
    with pytest.raises(InputError, match="without classifiers"):
        closest_pair(config, bare, batches())


def test_equal_anchors_have_a_theta_of_0():
    assert anchor_thetas(twins(), batches()) == {("a", "b"): 0}


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InputError, match=r"klas needs labels, .* or choose by klas-label-free"):
        check_way("klas", has_labels=False)
    check_way("klas-label-free", has_labels=False)
    with pytest.raises(InputError, match="klas needs at least 8 images, but there are 4"):
        klas(pico_snnet(), batches(4), seed=0)


def test_images_without_labels_are_enough_for_probes_of_predictions():
    unlabelled = [(images, torch.full_like(labels, NO_CLASS)) for images, labels in batches()]
    choice = choose(pico_snnet(), unlabelled, "klas-label-free", buckets=3)
    assert choice.way == "klas-label-free"
    assert 2 <= len(choice.kept) < len(choice.candidates)
    assert str(choice.kept[0]) in choice.table
