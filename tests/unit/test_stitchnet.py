"""Fragments, joints, search and the composed network, on pico networks."""

import copy
import json
import math
import xml.etree.ElementTree as ET
from contextlib import contextmanager

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import adapt_to_chs
from timm.layers import Conv2dSame, Linear
from torch import nn
from torch.nn.utils import prune, spectral_norm

import stitchnet
from stitchkit.errors import InputError
from stitchkit.measure.profile import FlopCountAnalysis, measure
from stitchkit.model.similarity import MEASURES, linear_cka, measure_by_name
from stitchkit.networks.create import create_model
from stitchkit.networks.layout import Layout
from stitchnet.activations import Activation, Scores, run
from stitchnet.composition import Composition, Outputs, Pool
from stitchnet.fragments import Fragment, _is_plain, fragments
from stitchnet.joint import JointLayer, fit_joint, layer
from stitchnet.networks import load_networks
from stitchnet.search import Search
from stitchnet.settings import PUBLISHED
from tests.composing import RESNET, VIT, convnet
from tests.support import mostly_full

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
SPECS = {
    "resnet": {"name": "resnet18", "kwargs": RESNET},
    "vit": {"name": "vit_tiny_patch16_224", "kwargs": VIT},
    "swin": {"name": "swin_tiny_patch4_window7_224", "kwargs": SWIN},
    "mobilenet": {"name": "mobilenetv3_small_050", "kwargs": {"num_classes": 4}},
}


def pico_nets():
    torch.manual_seed(0)
    nets = {label: timm.create_model(spec["name"], **spec["kwargs"]) for label, spec in SPECS.items()}
    for net in nets.values():  # batch norms that do something
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return nets


@pytest.fixture(scope="module")
def nets():
    return pico_nets()


@pytest.fixture(scope="module")
def cut(nets):
    """The fragments of each network."""
    return {label: fragments(label, net.eval(), images(2)) for label, net in nets.items()}


@pytest.fixture(scope="module")
def convnets():
    torch.manual_seed(0)
    return {"small": convnet(6, 8), "large": convnet(5, 10, 12)}


def images(count=12, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


POOLS = {}


def search(nets, **options):
    """A search; the pool of the same networks is made once."""
    if id(nets) not in POOLS:
        POOLS[id(nets)] = nets, Pool(images(), nets, pretrained=False)
    return Search(
        POOLS[id(nets)][1], **{"threshold": 0.0, "total_threshold": 0.0, "width": 2, "max_depth": 5} | options
    )


@contextmanager
def folding(*, is_on):
    """Joints folded into layers or, where these refuse them, as layers of their own."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_on:
            patch.setattr(Fragment, "readers", lambda *_: [])
        yield


# Fragments


COUNTS = list(zip(PUBLISHED, (8, 5, 13, 6, 16), strict=True))


@pytest.mark.parametrize(("name", "count"), mostly_full(COUNTS, quick=[("resnet50", 6)]))
def test_the_published_networks_have_the_published_fragments(name, count):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None).eval()
        found = fragments(name, model, torch.empty(1, 3, 224, 224))
    assert len(found) == count
    assert found[0].is_start
    assert found[-1].is_end
    assert not any(fragment.is_start or fragment.is_end for fragment in found[1:-1])


@pytest.mark.parametrize("label", mostly_full(SPECS, quick=["vit"]))
def test_fragments_one_after_the_other_are_the_network(nets, cut, label):
    x, y = images(2), images(2)
    found = cut[label]
    assert len(found) > 3
    with torch.no_grad():
        for fragment in found:
            y = fragment.module(y)
        assert torch.equal(y, nets[label](x))
    assert {id(p) for f in found for p in f.module.parameters()} <= {id(p) for p in nets[label].parameters()}


def test_transformers_are_cut_between_blocks(cut):
    found = cut["vit"]
    assert [fragment.layout.kind for fragment in found] == ["NLC", "NLC", "NLC", "vector", "vector"]
    assert found[1].layout.num_prefix_tokens == 1
    assert "NHWC" in {fragment.layout.kind for fragment in cut["swin"]}


def test_a_network_without_a_place_to_cut_is_refused():
    with pytest.raises(InputError, match="network 'a' has no place"):
        Search(images(), nets={"a": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())})


# Layouts and joints


SPLIT = [(is_folded, label) for is_folded in (True, False) for label in SPECS]
QUICK = [(True, "resnet"), (False, "vit"), (True, "swin")]


@pytest.mark.parametrize(("is_folded", "label"), mostly_full(SPLIT, quick=QUICK))
def test_a_network_split_and_joined_again_reproduces_itself(nets, cut, label, is_folded):
    x = images(40)
    model, parts = nets[label].eval(), cut[label]
    with torch.no_grad():
        expected = model(x)
        for place, fragment in enumerate(parts[1:], start=1):
            front = x
            for part in parts[:place]:
                front = part.module(front)
            activation = Activation(front, parts[place - 1].layout)
            with folding(is_on=is_folded):
                joined = layer(fragment, fit_joint(activation, activation))
            result = joined(front)
            for part in parts[place + 1 :]:
                result = part.module(result)
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


CASES = [
    ((10, 3, 6, 6), (10, 4, 6, 6)),
    ((10, 3, 9, 9), (10, 4, 6, 6)),
    ((10, 3, 3, 3), (10, 4, 7, 7)),  # enlarged
    ((2, 30, 3, 3), (2, 4, 3, 3)),  # fewer rows than features
    ((2, 30, 2, 2), (2, 4, 5, 5)),
    ((10, 3, 5, 5), (10, 6)),
    ((10, 3), (10, 6)),
    ((4, 40), (4, 50)),  # in two factors
]


@pytest.mark.parametrize(("first", "second"), CASES)
def test_a_joint_is_the_least_squares_map_of_minimum_norm(first, second):
    torch.manual_seed(0)
    x, y = torch.randn(first), torch.randn(second)
    layouts = [Layout("vector" if value.ndim == 2 else "NCHW") for value in (x, y)]
    joint = fit_joint(Activation(x, layouts[0]), Activation(y, layouts[1]))
    if y.ndim == 4:
        before = nn.functional.interpolate(x, second[2:], mode="bilinear", align_corners=True)
        a, b = (value.movedim(1, -1).flatten(0, 2).double() for value in (before, y))
    else:
        a, b = (x.mean((2, 3)) if x.ndim == 4 else x).double(), y.double()
    expected = torch.linalg.pinv(a, rtol=1e-6) @ b
    found = torch.linalg.multi_dot([torch.eye(first[1]), *(weight.T for weight in joint.maps)]).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert joint(x).shape == y.shape


def test_a_wide_map_is_kept_in_two_factors():
    x, y = (Activation(torch.randn(4, width), Layout("vector")) for width in (400, 500))
    joint = fit_joint(x, y)
    assert [tuple(weight.shape) for weight in joint.maps] == [(4, 400), (500, 4)]
    torch.testing.assert_close(joint(x.tensor), y.tensor, atol=1e-3, rtol=1e-3)


def test_large_activations_wait_in_a_file(monkeypatch):
    monkeypatch.setattr("stitchnet.activations._SHELVED_BYTES", 0)
    x = torch.randn(5, 4, 3, 3)
    activation = Activation(x.clone(), Layout("NCHW"))
    activation.shelve()
    for _ in range(2):
        assert torch.equal(activation.value, x)
        activation.forget()
    assert activation.key == Activation(x, activation.layout).key


# Scores


def test_activations_stay_in_memory_where_no_file_can_be_written(monkeypatch, caplog):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stitchnet.activations._SHELVED_BYTES", 1)
    monkeypatch.setattr("stitchnet.activations.tempfile.TemporaryFile", full)
    activation = Activation(images(2), Layout("NCHW"))
    activation.shelve()
    assert "No space left on device" in caplog.text
    assert torch.equal(activation.value, images(2))


def test_scores_are_computed_once_and_shared_by_content(monkeypatch):
    layout = Layout("NCHW")
    x, y = Activation(torch.randn(4, 3, 6, 6), layout), Activation(torch.randn(4, 5, 3, 3), layout)
    scores = Scores()
    calls = []
    real = stitchnet.activations.hsic
    monkeypatch.setattr("stitchnet.activations.hsic", lambda a, b: calls.append(1) or real(a, b))
    first = scores(x, y)
    assert len(calls) == 3
    assert scores(Activation(y.tensor.clone(), layout), x) == first  # the other way round, by content
    assert len(calls) == 3
    scores(x, Activation(torch.randn(4, 2, 3, 3), layout))
    assert len(calls) == 5  # what depends on x only is known


@pytest.mark.parametrize("name", ["cka", "r2"])
def test_cached_scores_are_the_plain_ones(name):
    layout = Layout("NCHW")
    x, y = torch.randn(4, 3, 6, 6), torch.randn(4, 5, 3, 3)
    for rows in (None, 2):
        scores = Scores(name, rows_per_channel=rows, seed=1)
        plain = measure_by_name(name)(x, y, rows_per_channel=rows, seed=1)
        assert scores(Activation(x, layout), Activation(y, layout)) == plain


# The search


def plain_search(search, *, drops_used_last=False):
    """Algorithm 1 as it is written: a recursion that computes all anew."""
    x, pool = search.pool.images, search.pool
    inputs, output = {}, x
    for fragment in pool.fragments:
        before = x if fragment.is_start else output
        output = run(fragment.module, before)
        inputs[fragment] = before, output

    def extend(path, output, layout, total):
        scored = []
        for fragment in pool.followers:
            before = pool.fragments[pool.fragments.index(fragment) - 1]
            if (len(path) >= search.max_depth - 1 and not fragment.is_end) or (
                layout.is_vector and not before.layout.is_vector
            ):
                continue
            if fragment in path and not drops_used_last:
                continue
            y = before.layout.maps(inputs[fragment][0])
            scored.append((linear_cka(layout.maps(output), y), fragment))
        scored = sorted(scored, key=lambda pair: -pair[0])[: search.width]
        for score, fragment in scored:
            if fragment in path or score <= search.threshold or total * score < search.total_threshold:
                continue
            name = [*path, fragment]
            if fragment.is_end:
                yield total * score, [part.name for part in name]
                continue
            own = pool.input_of(fragment)
            joint = fit_joint(Activation(output, layout), own)
            same = output.shape == own.tensor.shape and torch.equal(output, own.tensor)
            module = fragment.module if same else nn.Sequential(joint, fragment.module)
            yield from extend(name, run(module, output), fragment.layout, total * score)

    for start in pool.starts:
        yield from extend([start], inputs[start][1], start.layout, 1.0)


@pytest.mark.parametrize("drops_used_last", [False, True])
def test_the_same_compositions_in_the_same_order_as_the_plain_recursion(convnets, drops_used_last):
    ours = search(convnets, width=3, threshold=0.2, total_threshold=0.15, drops_used_last=drops_used_last)
    expected = list(plain_search(ours, drops_used_last=drops_used_last))
    found = [(one.score, [fragment.name for fragment in one.fragments]) for one in ours.compositions()]
    assert len(found) > 5
    assert [name for _, name in found] == [name for _, name in expected]
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=1e-5)


@pytest.mark.full
def test_thresholds_depth_and_no_fragment_twice(nets):
    ours = search(nets, width=3, threshold=0.3, total_threshold=0.4)
    found = list(ours.compositions())
    assert len(found) > 10
    for one in found:
        assert len(set(one.fragments)) == len(one.fragments) <= 5
        assert all(step.own_score > 0.3 for step in one.path)
        assert one.score >= 0.4
        assert one.score == pytest.approx(math.prod(step.own_score for step in one.path))
        assert one.fragments[0].is_start
        assert one.fragments[-1].is_end
    assert ours.counts.found == len(found)
    assert ours.counts.pruned > 0
    assert ours.counts.tried > len(found)
    assert set(ours.counts.skipped) == {"a vector cannot become a map"}
    assert "found, " in str(ours.counts)
    assert "skipped: a vector cannot become a map" in str(ours.counts)


def test_the_published_order_of_dropping_can_leave_fewer(convnets):
    kept, dropped = (search(convnets, width=1, drops_used_last=flag) for flag in (False, True))
    first, used = (one for one in kept.pool.fragments if one.name in ("large[0]", "large[1]"))
    path = Composition(used, parent=Composition(first))
    for ours in (kept, dropped):
        ours.scores = lambda x, y: 1.0 if y is kept.pool.input_of(used) else 0.5
    assert dropped.ranked(path) == []
    [(score, fragment)] = kept.ranked(path)
    assert score == 0.5
    assert fragment is not used


def test_best_first_gives_the_same_from_high_to_low(convnets):
    options = {"width": 3, "threshold": 0.2, "total_threshold": 0.15}
    deep = sorted((one.score for one in search(convnets, **options).compositions()), reverse=True)
    best = [one.score for one in search(convnets, **options, order="best").compositions()]
    assert best == pytest.approx(deep)
    assert len(best) > 5


def test_a_net_stitched_from_itself_scores_one_and_is_the_net(convnets):
    twin = {"a": convnets["small"], "b": copy.deepcopy(convnets["small"])}
    x = images()
    score, net = next(iter(search(twin, threshold=0.999, total_threshold=0.999)))
    assert score == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(net(x), convnets["small"](x), atol=1e-4, rtol=1e-4)


@pytest.mark.full
def test_memory_holds_few_outputs_and_the_others_are_recomputed(nets):
    roomy = search(nets, threshold=0.4)
    expected = [(one, roomy.build(one)) for one in roomy.compositions()][::9]
    assert len(roomy._outputs) > 10
    tight = search(nets, threshold=0.4)
    tight._outputs = Outputs(tight.pool, budget=0)
    found = []
    for one in tight.compositions():
        assert len(tight._outputs) <= 2
        found.append(one)
    assert len(found[::9]) == len(expected) > 3
    for one, (same, net) in zip(found[::9], expected, strict=True):
        assert (one.name, one.score) == (same.name, same.score)
        assert torch.equal(tight.build(one)(images(2)), net(images(2)))


@pytest.mark.full
@pytest.mark.parametrize("is_folded", [True, False])
def test_costs_are_known_before_a_net_is_built(nets, is_folded):
    ours = search(nets, threshold=0.3, max_depth=4)
    found = list(ours.compositions())
    for one in found[:: max(1, len(found) // 5)]:
        with folding(is_on=is_folded):
            found = ours.build(one).get_macs_params()
            assert (found["macs"], found["params"]) == ours._costs.of(one)


@pytest.mark.parametrize("is_folded", mostly_full([True, False], quick=[True]))
def test_costs_know_that_twins_need_no_joint(convnets, is_folded):
    twins = {"a": convnets["small"], "b": copy.deepcopy(convnets["small"]), "c": convnets["large"]}
    ours = search(twins, width=None, max_depth=4)
    found = [one for one in ours.compositions() if len({part.network for part in one.fragments}) > 1]
    from_twin_to_twin = [one for one in found if [part.network for part in one.fragments[:2]] == ["a", "b"]]
    assert len(from_twin_to_twin) > 3
    for one in (*from_twin_to_twin[:3], *found[::40]):
        with folding(is_on=is_folded):
            cost = ours.build(one).get_macs_params()
            assert (cost["macs"], cost["params"]) == ours._costs.of(one)


@pytest.mark.full
def test_a_budget_leaves_out_what_costs_more(nets):
    every = search(nets, threshold=0.3)
    costs = sorted(every._costs.of(one) for one in every.compositions())
    limit = costs[len(costs) // 2][0]
    within = search(nets, threshold=0.3, max_macs=limit)
    found = [within._costs.of(one) for one in within.compositions()]
    assert sorted(found) == [cost for cost in costs if cost[0] <= limit]
    assert within.counts.pruned > 0
    assert not list(search(nets, max_macs=0).compositions())
    few = search(nets, threshold=0.3, max_params=30_000)
    assert all(few._costs.of(one)[1] <= 30_000 for one in few.compositions())


@pytest.mark.full
def test_other_scores_find_other_compositions(nets):
    names = {
        name: [str(one.name) for one in search(nets, scores=stitchnet.Scores(name)).compositions()] for name in MEASURES
    }
    assert all(names.values())
    assert names["cka"] != names["r2"]
    with pytest.raises(InputError, match="a pool has its own networks"):
        stitchnet.generate(search(nets).pool, nets=nets)


def test_what_is_drawn_follows_the_seed(nets):
    drawn = [search(nets, seed=seed).draw().name for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_a_draw_that_cannot_end_says_so(nets):
    with pytest.raises(InputError, match=r"none reached an end \(.*tried"):
        stitchnet.generate(search(nets).pool, threshold=0.9999999, totalThreshold=1, maxDepth=2, K=1, sample=True)


def test_a_constant_activation_is_the_lowest_with_a_warning(convnets):
    dead = copy.deepcopy(convnets["small"])
    nn.init.constant_(dead[4].weight, 0)  # the second convolution gives the same everywhere
    ours = search({"dead": dead, "alive": convnets["large"]}, width=None, threshold=-1)
    with pytest.warns(RuntimeWarning, match="constant"):
        ranked = {fragment.name: score for score, fragment in ours.ranked(Composition(ours.pool.starts[1]))}
    assert ranked["dead[2]"] == 0 == min(ranked.values())
    assert ranked["alive[1]"] == pytest.approx(1)
    with pytest.warns(RuntimeWarning, match="constant"):
        assert all(one.score > 0 for one in search({"dead": dead}).compositions())


def test_a_map_that_cannot_be_computed_is_counted(convnets, monkeypatch):
    def fail(x, y):
        raise torch.linalg.LinAlgError("no")

    monkeypatch.setattr("stitchnet.composition.fit_joint", fail)
    ours = search(convnets)
    found = list(ours.compositions())
    assert all(one.is_uncut or one.score == pytest.approx(1) for one in found)
    assert ours.counts.skipped["the map of a joint cannot be computed"] > 0


# The net


def compose(nets, *slices, is_folded=True):
    """A composed network of slices `(network, first, stop)` of the fragments."""
    ours = search(nets)
    composition = None
    for network, first, stop in slices:
        for fragment in ours.pool.fragments:
            if fragment.network == network and first <= fragment.index < stop:
                composition = Composition(fragment, parent=composition)
    with folding(is_on=is_folded):
        return ours.build(composition)


MIXED = {
    "smaller maps": [("resnet", 0, 2), ("mobilenet", 3, 11)],
    "larger maps": [("mobilenet", 0, 5), ("resnet", 3, 6)],
    "class token": [("resnet", 0, 3), ("vit", 1, 5)],
    "channels last": [("vit", 0, 2), ("swin", 5, 9)],
    "vectors": [("mobilenet", 0, 10), ("resnet", 5, 6)],
}
"""Networks with joints of all kinds: folded ones and, before transformer blocks, maps of their own."""


@pytest.fixture(scope="module")
def composed(nets):
    """A network with a joint of its own, where the kind of joint does not matter."""
    return compose(nets, *MIXED["class token"])


@pytest.fixture(scope="module", params=mostly_full([*MIXED, "two factors"], quick=["class token", "two factors"]))
def mixed(nets, request):
    """A network with fragments of two others."""
    if request.param == "two factors":
        return compose(nets, *MIXED["vectors"], is_folded=False)
    return compose(nets, *MIXED[request.param])


def test_joints_are_of_all_kinds(nets):
    made = {kind: compose(nets, *slices) for kind, slices in MIXED.items()}
    made["two factors"] = compose(nets, *MIXED["vectors"], is_folded=False)
    joints = {kind: [one for one in net.modules() if isinstance(one, JointLayer)] for kind, net in made.items()}
    maps = {kind: len(found[0].maps) for kind, found in joints.items()}
    folded = dict.fromkeys(("smaller maps", "larger maps", "vectors"), 0)
    assert maps == {**folded, "class token": 1, "channels last": 1, "two factors": 2}


def test_macs_and_params_are_those_of_the_profile_and_of_fvcore(mixed):
    found = mixed.get_macs_params()
    assert found["params"] == sum(parameter.numel() for parameter in mixed.parameters())
    assert found["macs"] == measure(mixed, images(1)).flops == sum(found["macs_by_operator"].values())
    assert sum(step.macs for step in mixed.steps()) == found["macs"]
    if "vit" not in mixed.specs:  # fvcore does not see inside fused attention
        plain = FlopCountAnalysis(mixed, images(1)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert found["macs"] == plain.total()
        assert found["macs_by_operator"] == dict(plain.by_operator())


@pytest.mark.full
def test_what_standardises_its_weight_keeps_the_joint_before_it():
    torch.manual_seed(0)
    nets = {
        "bit": timm.create_model("resnetv2_50x1_bit", num_classes=4),
        "small": convnet(6, 8),
    }
    folded, own = (compose(nets, ("small", 0, 1), ("bit", 3, 18), is_folded=flag) for flag in (True, False))
    x = images(3)
    torch.testing.assert_close(folded(x), own(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", mostly_full([prune.identity, spectral_norm], quick=[prune.identity]))
def test_weights_that_hooks_compute_keep_the_joint_before_them(change):
    torch.manual_seed(0)
    nets = {"small": convnet(6, 8), "large": convnet(5, 10, 12)}
    change(nets["large"][4], "weight")
    folded, own = (compose(nets, ("small", 0, 1), ("large", 1, 5), is_folded=flag) for flag in (True, False))
    torch.testing.assert_close(folded(images(2)), own(images(2)), atol=1e-4, rtol=1e-3)


@pytest.mark.full
def test_layers_of_timm_that_only_multiply_take_the_joint_before_them():
    """The network's classifier is timm's own linear layer; convolutions that pad as TensorFlow's do are plain too."""
    assert _is_plain(Conv2dSame(3, 4, 3, stride=2))
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=4).eval()
    followers = fragments("tf", model, images(1))[1:]
    kinds = [{type(reader) for reader in fragment.readers(fragment.module)} for fragment in followers]
    assert all(kinds)
    assert {Linear, nn.Conv2d} <= set.union(*kinds)


def test_folding_changes_no_output(nets):
    ours = search(nets, threshold=0.3)
    for one in list(ours.compositions())[::5]:
        with folding(is_on=False):
            own = ours.build(one)
        folded, x = ours.build(one), images(3)
        torch.testing.assert_close(folded(x), own(x), atol=1e-4, rtol=1e-3)
        assert any(list(layer[0].maps) for layer in own.layers if len(layer) > 1) or len(own.specs) == 1


def test_a_net_has_weights_of_its_own(composed, nets):
    given = {parameter.data_ptr() for net in nets.values() for parameter in net.parameters()}
    assert not given & {parameter.data_ptr() for parameter in composed.parameters()}


@pytest.mark.full
@pytest.mark.parametrize("mixed", ["larger maps", "class token", "channels last"], indirect=True)
def test_onnx_gives_the_same_for_any_number_of_images(mixed, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = mixed.save_onnx(tmp_path / "_data" / "net")
    assert path == tmp_path / "_data" / "net.onnx"
    assert any(weight.requires_grad for weight in mixed.parameters()), "what is written is a copy"
    session = runtime.InferenceSession(str(path))
    for count in (1, 3):
        x = images(count)
        [found] = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(found, mixed(x).detach().numpy(), atol=1e-4, rtol=1e-4)


def test_a_drawing_shows_fragments_scores_and_costs(composed, tmp_path):
    path = composed.draw_svg(tmp_path / "net")
    assert path.name == "net.svg"
    words = " ".join(ET.parse(path).getroot().itertext())
    for step in composed.steps():
        assert f"{step.network}[{step.index}] of {step.count} fragments" in words
    for score in composed.scores[1:]:
        assert f"score {score:.3f}" in words
    assert "MACs" in words


@pytest.mark.parametrize("mixed", mostly_full([*MIXED, "two factors"], quick=["class token"]), indirect=["mixed"])
def test_a_fitted_net_is_the_same_after_save_and_load(mixed, nets, tmp_path):
    x, labels = images(12), np.arange(12) % 3 + 5
    mixed.fit((x, labels))
    folder = mixed.save(tmp_path / "net")
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    again = stitchnet.load(folder, nets)
    torch.testing.assert_close(again(x), mixed(x))
    for found, expected in zip(again.predict(x), mixed.predict(x), strict=True):
        assert found["label"] == expected["label"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-3)
    assert again.evaluate_dataset((x, labels)) == mixed.evaluate_dataset((x, labels))
    assert again.get_macs_params() == mixed.get_macs_params()
    assert str(again) == mixed.name
    (folder / "net.json").write_text((folder / "net.json").read_text().replace('"knn"', '"linear"'))
    with pytest.warns(UserWarning, match="was removed; fit the network again"):
        assert stitchnet.load(folder, nets).classifier is None


def test_a_net_of_names_is_loaded_without_modules(tmp_path):
    specs = [{"label": label, **SPECS[label]} for label in ("resnet", "vit")]
    score, net = next((score, net) for score, net in search(specs, threshold=0.3) if len(net.specs) > 1)
    again = stitchnet.load(net.save(tmp_path / "net"))
    torch.testing.assert_close(again(images()), net(images()))
    assert again.score == score


@pytest.mark.parametrize("name", ["hf-hub:some/body", "local-dir:/tmp", "some/body"])
def test_nothing_is_fetched_on_the_word_of_a_file(composed, nets, tmp_path, name):
    folder = composed.save(tmp_path / "net")
    about = json.loads((folder / "net.json").read_text())
    about["networks"] = {label: {"name": name, "label": label} for label in about["networks"]}
    (folder / "net.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="files must not cause downloads"):
        stitchnet.load(folder)
    (folder / "net.json").write_text(json.dumps({**about, "networks": None}))
    with pytest.raises(InputError, match="contains no readable composed network:"):
        stitchnet.load(folder)


def test_no_network_is_an_error():
    with pytest.raises(InputError, match="no networks are named"):
        stitchnet.generate(images(), sample=True, nets={})


def test_a_net_of_checkpoints_is_loaded_without_them(tmp_path):
    spec = {"name": "resnet18", "kwargs": {**RESNET, "num_classes": 7}}
    torch.save(timm.create_model(spec["name"], **spec["kwargs"]).state_dict(), tmp_path / "weights.pth")
    kwargs = {name: value for name, value in RESNET.items() if name != "num_classes"}
    nets = [{"label": "a", "name": "resnet18", "kwargs": kwargs, "checkpoint": str(tmp_path / "weights.pth")}]
    _, net = stitchnet.generate(images(), 0, 0, sample=True, nets=nets)
    net.save(tmp_path / "net")
    (tmp_path / "weights.pth").unlink()
    again = stitchnet.load(tmp_path / "net")
    assert again(images()).shape == (12, 7)
    torch.testing.assert_close(again(images()), net(images()))


def test_a_net_of_modules_needs_them_again(composed, tmp_path):
    folder = composed.save(tmp_path / "net")
    with pytest.raises(InputError, match="was a module of the search; pass it as"):
        stitchnet.load(folder)
    with pytest.raises(InputError, match="contains no readable composed network"):
        stitchnet.load(tmp_path)


def test_classifiers_refuse_what_they_cannot_use(composed):
    composed.classifier = None
    with pytest.raises(InputError, match="call fit"):
        composed.predict(images(1))
    with pytest.raises(InputError, match="label 'cat' is not a class number"):
        composed.fit([(image, "cat") for image in images(4)])
    with pytest.raises(InputError, match=r"images are \[3, 40, 40\], but the network was composed for \[3, 32, 32\]"):
        composed.fit((images(4, 40), [0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"of torch\.uint8; they must be prepared images"):
        composed.fit(((images(4) * 50).byte(), [0, 1, 0, 1]))
    composed.fit([images(4), [0, 1, 0, 1]])
    with pytest.raises(InputError, match=r"images are \[32, 32, 3\]"):
        composed.predict(np.zeros((2, 32, 32, 3), np.float32))
    assert composed.predict(images(2).double().numpy()) == composed.predict(images(2))
    assert composed.predict([]) == []
    with pytest.raises(InputError, match="as floats"):
        composed.predict(images(2).byte())
    with pytest.raises(InputError, match="not an array"):
        composed.predict(list(images(2)))


# Networks by name


def test_names_of_both_libraries_and_checkpoints(tmp_path):
    model = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = load_networks(
        [f"mobilenet_v3_small={tmp_path / 'weights.pth'}", "resnet10t", "regnet_y_400mf"], pretrained=False
    )
    assert [type(model).__module__.split(".")[0] for model, _ in found.values()] == [
        "torchvision",
        "timm",
        "torchvision",
    ]
    loaded = found["mobilenet_v3_small"][0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        pytest.param("vit_tiny_patch16_224.augreg_in21k_ft_in1k", VIT, marks=pytest.mark.full),
        # its weights are standardised
        pytest.param("resnetv2_50x1_bit", {"num_classes": 4}, marks=pytest.mark.full),
        pytest.param("tf_mobilenetv3_small_minimal_100", {"num_classes": 4}, marks=pytest.mark.full),
        pytest.param("vit_tiny_patch16_224", {**VIT, "in_chans": 1}, marks=pytest.mark.full),
    ],
)
def test_networks_used_to_another_normalisation_take_imagenets(name, kwargs):
    torch.manual_seed(0)
    plain = timm.create_model(name, **kwargs).eval()
    torch.manual_seed(0)
    ((ours, _),) = load_networks([{"name": name, "kwargs": kwargs}], pretrained=False).values()
    pixels = torch.rand(2, kwargs.get("in_chans", 3), 32, 32, generator=torch.Generator().manual_seed(0))
    for_plain, for_ours = (
        (pixels - torch.tensor(adapt_to_chs(mean, pixels.shape[1]))[:, None, None])
        / torch.tensor(adapt_to_chs(std, pixels.shape[1]))[:, None, None]
        for mean, std in (((0.5,) * 3, (0.5,) * 3), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(for_ours), plain(for_plain), atol=1e-5, rtol=1e-4)
    # What normalises is not a fragment of its own.
    starts = [fragments("it", model, for_ours)[0] for model in (plain, ours)]
    assert [sum(weight.numel() for weight in start.module.parameters()) > 0 for start in starts] == [True, True]
    assert starts[0].stop == starts[1].stop


def test_a_network_that_cannot_be_given_its_normalisation_is_named(caplog, monkeypatch):
    load_networks([{"name": "tresnet_m", "kwargs": {"num_classes": 4}}], pretrained=False)
    assert "tresnet_m expects images of mean (0.0, 0.0, 0.0)" in caplog.text
    caplog.clear()

    def create(*arguments, **options):
        model = create_model(*arguments, **options)
        model.pretrained_cfg = {**model.pretrained_cfg, "first_conv": None}  # as of a model of the hub
        return model

    monkeypatch.setattr("stitchnet.networks.create_model", create)
    load_networks([{"name": "vit_tiny_patch16_224", "kwargs": VIT}], pretrained=False)
    assert "vit_tiny_patch16_224 expects images of mean (0.5, 0.5, 0.5)" in caplog.text


@pytest.mark.full
def test_transformers_are_made_for_the_size_of_the_images(tmp_path):
    specs = [{"name": SPECS[label]["name"], "kwargs": {**SPECS[label]["kwargs"]}} for label in ("vit", "swin")]
    for spec in specs:
        del spec["kwargs"]["img_size"]
    ours = Search(torch.randn(2, 3, 64, 64), nets=specs, pretrained=False, threshold=0, total_threshold=0, width=1)
    net = ours.build(next(one for one in ours.compositions() if not one.is_uncut))
    assert str(stitchnet.load(net.save(tmp_path / "net"))) == str(net)


@pytest.mark.full
def test_what_weights_decide_is_kept(monkeypatch, tmp_path):
    """A network that was made with weights is made again without them."""
    arguments = {"num_classes": 4, "aux_logits": False, "transform_input": True, "init_weights": False}
    made = torchvision.models.googlenet(**arguments)
    monkeypatch.setattr("stitchnet.networks.create_torchvision", lambda name, arguments, weights: copy.deepcopy(made))
    ((model, spec),) = load_networks(["googlenet"], pretrained=False).values()
    assert spec.kwargs["transform_input"] is True
    assert spec.kwargs["aux_logits"] is False
    assert fragments("it", model, images(1))[0].stop.before != "conv1.conv"


@pytest.mark.full
def test_places_with_tokens_of_unknown_order_are_left_out():
    hiera = timm.create_model("hiera_tiny_224", img_size=64, num_classes=4).eval()
    parts = fragments("hiera", hiera, torch.randn(1, 3, 64, 64))
    assert all(part.layout.is_vector for part in parts[1:])
    vit = timm.create_model("vit_tiny_patch16_224", **VIT | {"img_size": (32, 64)}).eval()
    assert {part.layout.kind for part in fragments("vit", vit, torch.randn(1, 3, 32, 64))} == {"vector"}


@pytest.mark.full
def test_channels_are_found_in_images_that_are_not_square():
    swin = torchvision.models.swin_t(num_classes=4).eval()
    x = torch.randn(1, 3, 64, 96)
    parts = fragments("swin", swin, x)
    assert {part.layout.kind for part in parts} == {"NHWC", "vector"}
    for part in parts[:-1]:
        x = part.module(x)
        if not part.layout.is_vector:
            assert x.shape[1] / x.shape[2] == 64 / 96
    resnet = timm.create_model("resnet18", **RESNET).eval()
    assert {part.layout.kind for part in fragments("r", resnet, torch.randn(1, 3, 64, 96))} == {"NCHW", "vector"}


@pytest.mark.parametrize(
    ("nets", "words"),
    [
        (["resnet500"], "did you mean"),
        ([], "no network"),
        (["resnet18", "resnet18"], "two networks are called 'resnet18'"),
        ([nn.Linear(2, 2)], "modules need labels"),
        ([{"name": "resnet18", "kwarg": {}}], "did you mean 'kwargs'"),
        (["resnet18.a1_in1kk"], "did you mean 'a1_in1k'"),
        ({"a": "resnet18"}, "network 'a' is 'resnet18', not a module"),
        ("resnet18, resnet500", "unknown network 'resnet500'"),
    ],
)
def test_networks_that_cannot_be_used(nets, words):
    with pytest.raises(InputError, match=words):
        load_networks(nets, pretrained=False)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (np.zeros((3, 32, 32), np.float32), {}, "they must be prepared images"),
        (np.zeros((2, 3, 32, 32), np.uint8), {}, "as floats"),
        (np.full((2, 3, 32, 32), np.nan, np.float32), {}, "not finite"),
        (np.zeros((2, 4, 32, 32), np.float32), {}, "rejects images"),
        (np.zeros((2, 3, 32, 32), np.float32), {"order": "bets"}, "did you mean 'best'"),
        (np.zeros((2, 3, 32, 32), np.float32), {"maxDepth": 1}, "at least 2"),
        (np.zeros((2, 3, 32, 32), np.float32), {"K": 0}, "at least 2 and 1"),
        (np.zeros((2, 3, 32, 32), np.float32), {"treshold": 0}, "did you mean 'threshold'"),
        (np.zeros((2, 3, 32, 32), np.float32), {"width": 1}, "is called 'K' in `generate`"),
        (np.zeros((2, 3, 32, 32), np.float32), {"scores": "r3"}, "did you mean 'r2'"),
        ([{"image": 1}], {}, "stitching images are list, not an array"),
    ],
)
def test_images_and_options_that_cannot_be_used(convnets, data, options, words):
    with pytest.raises(InputError, match=words):
        stitchnet.generate(data, nets=convnets, **options)
