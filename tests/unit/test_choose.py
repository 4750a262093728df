"""Choosers: known cases of each score, the choice by FLOPs, and the correlation with accuracies."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from torch.nn import functional as F

import stitchkit
from stitchkit.choose.choice import candidates, keep
from stitchkit.choose.choose import check_choosers, choose, closest_pair
from stitchkit.choose.chooser import joint_routes
from stitchkit.choose.choosers import CHOOSERS
from stitchkit.choose.klas import anchor_thetas, theta, train_probes
from stitchkit.choose.scores_file import correlate, read_scores, write_scores
from stitchkit.data.unreadable import NO_CLASS
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.model.similarity import linear_cka
from stitchkit.model.solve import fit_stitching_layers
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


@pytest.mark.parametrize("name", ["klas", "klas-label-free"])
@pytest.mark.parametrize("classes", [4, 0])
def test_equal_networks_score_0_where_no_block_is_repeated_or_skipped(name, classes):
    model = twins(num_classes=classes)
    scores = CHOOSERS[name].score(model, batches(), seed=0)
    assert scores.keys() == set(model.space.layers)
    for joint, score in scores.items():
        assert (score == 0) == (joint.end_block == joint.front_block + 1), joint


@pytest.mark.parametrize("name", ["cka", "residual"])
def test_equal_networks_have_equal_features_where_they_match(name):
    """Windows of one block would share no layer with other joints; the fit of a shared layer is a mean."""
    model = twins()
    joint = Joint("a", 0, "b", 1)
    model.space = model.space.through([joint])
    assert CHOOSERS[name].score(model, batches(), seed=0) == {joint: pytest.approx(0, abs=1e-6)}


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


@pytest.mark.parametrize(("name", "classes"), [("klas", 4), ("klas-label-free", 4), ("klas-label-free", 0)])
def test_gamma_is_the_quotient_of_two_thetas(name, classes):
    """From predictions that are computed here once more, with probes of the features as they are in the network."""
    model, images = pico_snnet() if classes else headless_snnet(), batches()
    scores = CHOOSERS[name].score(model, images, seed=3)
    every, labels = torch.cat([x for x, _ in images]), torch.cat([y for _, y in images])
    held_out = torch.arange(32) % 4 == 0
    features, outputs = {}, {}
    with torch.no_grad():
        for cfg_id, label in enumerate(["ti", "s", "b"]):
            features |= {(label, j): x.mean(1) for j, x in enumerate(model.views[label].features(every))}
            outputs[label] = model(every, cfg_id)
    if name == "klas":
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


def test_cka_of_one_batch_is_that_of_its_rows():
    model = pico_snnet()
    ((images, labels),) = batches(8)
    scores = CHOOSERS["cka"].score(model, [(images, labels)], seed=0)
    with torch.no_grad():
        x = model.views["ti"].features(images)[1].reshape(-1, 8)
        y = model.views["s"].features(images)[1].reshape(-1, 16)
    assert scores[Joint("ti", 0, "s", 1)] == pytest.approx(1 - linear_cka(x, y), rel=1e-4)


def test_the_task_loss_is_that_of_the_fitted_stitch_on_the_other_half():
    model, images = pico_snnet(), batches()
    scores = CHOOSERS["task-loss"].score(model, images, seed=0)
    other = pico_snnet()
    fit_stitching_layers(other, [x for x, _ in images[:2]])
    x, y = (torch.cat(parts) for parts in zip(*images[2:], strict=True))
    for joint, cfg_id in joint_routes(other).items():
        with torch.no_grad():
            assert scores[joint] == pytest.approx(F.cross_entropy(other(x, cfg_id), y).item(), rel=1e-4)


_OTHERS = ["resnet and vit, both ways", "vits of other grids and tokens, both ways"]


@pytest.mark.parametrize(
    ("name", "family"), mostly_full(product(CHOOSERS, _OTHERS), quick=[("klas", _OTHERS[0]), ("cka", _OTHERS[1])])
)
def test_choosers_score_every_joint_of_any_layouts_alike_twice(family, name):
    size = FAMILIES[family]["anchors"][-1]["kwargs"]["img_size"]
    first, again = (CHOOSERS[name].score(family_snnet(family), batches(8, 4, size), seed=1) for _ in range(2))
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
    monkeypatch.setitem(CHOOSERS, "cka", CHOOSERS["cka"]._replace(score=lambda model, batches, seed: {}))
    with pytest.raises(InputError, match=r"the score of ti\[0\] > s\[0\] is nan, not a finite number from 0"):
        choose(pico_snnet(), lambda _: batches(), ["cka"])


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


def test_the_correlation_is_spearmans(tmp_path):
    model = pico_snnet()
    given = candidates(model, 2)
    random = np.random.default_rng(0)
    scores = {name: {one.joint: float(random.integers(5)) for one in given} for name in ("a", "b")}
    write_scores(tmp_path / "x.scores.csv", given, scores, [given[0].joint])
    rows = [{"cfg_id": n, "stitch": one.stitch, "acc1": float(random.integers(9))} for n, one in enumerate(given[:-2])]
    found = correlate(read_scores(tmp_path / "x.scores.csv"), [*rows, {"cfg_id": 99, "stitch": "ti[0:3]", "acc1": 1.0}])
    accuracies = [row["acc1"] for row in rows]
    for one in found:
        values = [scores[one.score][other.joint] for other in given[:-2]]
        assert one.stitches == len(given) - 2
        assert one.spearman == pytest.approx(spearmanr(values, accuracies).statistic)
        parts = {}
        for other, value, accuracy in zip(given[:-2], values, accuracies, strict=True):
            parts.setdefault((other.joint.front, other.bucket), []).append((value, accuracy))
        within = [(len(part), spearmanr(part).statistic) for part in parts.values() if len(part) >= 3]
        expected = np.average([value for _, value in within], weights=[count for count, _ in within])
        assert one.in_buckets == pytest.approx(expected)
    with pytest.raises(InputError, match="the ledger has 2 of the 14 scored stitches, and a correlation needs 3"):
        correlate(read_scores(tmp_path / "x.scores.csv"), rows[:2])


def test_equal_scores_have_no_correlation(tmp_path):
    given = candidates(pico_snnet(), 2)
    write_scores(tmp_path / "x.scores.csv", given, {"a": {one.joint: 1.0 for one in given}}, [])
    rows = [{"cfg_id": n, "stitch": one.stitch, "acc1": float(n)} for n, one in enumerate(given)]
    (found,) = correlate(read_scores(tmp_path / "x.scores.csv"), rows)
    assert math.isnan(found.spearman)
    assert math.isnan(found.in_buckets)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InputError, match="unknown chooser 'klass'; did you mean 'klas'"):
        check_choosers(["klass"], has_labels=True)
    with pytest.raises(InputError, match=r"klas needs labels, .* or choose by klas-label-free, cka, residual"):
        check_choosers(["cka", "klas"], has_labels=False)
    bare = stitchkit.create_snnet(headless(pico_config())).eval()
    with pytest.raises(InputError, match="task-loss needs classifiers, which these anchors do not have"):
        CHOOSERS["task-loss"].score(bare, batches(), seed=0)
    beyond = [(images, labels + 1) for images, labels in batches()]
    with pytest.raises(InputError, match="label 4 is beyond the 4 classes of the anchors"):
        CHOOSERS["task-loss"].score(pico_snnet(), beyond, seed=0)
    with pytest.raises(InputError, match="klas needs at least 8 images, but there are 4"):
        CHOOSERS["klas"].score(pico_snnet(), batches(4), seed=0)


def test_images_without_labels_are_enough_for_the_others():
    unlabelled = [(images, torch.full_like(labels, NO_CLASS)) for images, labels in batches()]
    free = [name for name, chooser in CHOOSERS.items() if not chooser.needs_labels]
    assert free == ["klas-label-free", "cka", "residual"]
    choice = choose(pico_snnet(), lambda _: unlabelled, free, buckets=3)
    assert set(choice.scores) == set(free)
    assert 2 <= len(choice.kept) < len(choice.candidates)
    assert str(choice.kept[0]) in choice.table
