"""The laws of steps: a view and the tracer agree, and all systems run slices of one object."""

import copy

import pytest
import timm
import torch

import stitchkit
from stitchkit.assembly.parts.pretrained import Subnet
from stitchkit.errors import InputError
from stitchkit.measure.profile import Cost, Profiler, measure
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.families import steps_of
from stitchkit.networks.layout import Layout
from stitchkit.networks.slices import Boundary, Slice, extract
from stitchkit.networks.steps import Steps
from stitchnet.fragments import fragments
from tests.support import FAMILIES, mostly_full, pico_images, pico_snnet, randomize

SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 2, 4)}
LEVIT = {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (2, 2, 1)}
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
RESNET = {"layers": (1, 2, 2, 1), "channels": (8, 16, 16, 32)}
MODELS = {
    "vit_tiny_patch16_224": (VIT, 16),
    "deit_tiny_distilled_patch16_224": (VIT, 16),
    "swin_tiny_patch4_window7_224": (SWIN, 64),
    "resnet50": (RESNET, 64),
    "levit_128s": (LEVIT, 64),
    "levit_conv_128s": (LEVIT, 64),
}


# The others are a ViT with another token, and LeViTs, whose routes tests/contract/test_family_laws.py cuts.
QUICK = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet50")


@pytest.fixture(params=mostly_full(MODELS, quick=QUICK))
def network(request):
    arguments, size = MODELS[request.param]
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=4, **arguments)
    if request.param == "resnet50":  # its view knows the size of images from there
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
    randomize(model)
    return model.eval(), pico_images(size=size)


def called(piece, x):
    """Names of the childless modules that a pass calls."""
    names, found = {module: name for name, module in piece.named_modules()}, set()
    hooks = [
        module.register_forward_hook(lambda module, *_: found.add(names[module]))
        for module in names if not list(module.children())
    ]  # fmt: skip
    piece(x)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def test_a_view_and_the_tracer_give_equal_slices_under_the_same_names(network):
    model, x = network
    view, traced = steps_of(model), Steps(model, x)
    assert isinstance(view, Anchor)
    known = {name: boundary for boundary in traced.boundaries for name in boundary.after}
    values = [view[0](x)]
    for number, boundary in enumerate(view.boundaries, start=1):
        other = next(known[name] for name in boundary.after if name in known)
        assert other.layout == boundary.layout == boundary.layout.sized(values[-1])
        for name in {boundary.after[0], boundary.after[-1]}:
            assert view.between(None, name).stop is boundary
            its = traced.between(None, name)
            assert torch.equal(its(x), values[-1])
            assert called(its, x) == called(view.between(None, name), x), "hooks fire in both"
        for name in {boundary.before[0], boundary.before[-1]}:
            mine, its = view.between(name), traced.between(name)
            assert mine.start is boundary
            assert torch.equal(mine(values[-1]), its(values[-1]))
            assert mine.state_dict().keys() == its.state_dict().keys()
        values.append(view[number](values[-1]))
    assert torch.equal(values[-1], model(x))


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_every_slice_between_two_boundaries_is_the_same_of_view_and_tracer(network, training):
    model, x = network
    model.train(training)
    view, traced = steps_of(model), Steps(model)
    for first in range(0, len(view), 3):
        start = view.boundaries[first - 1].before[-1] if first else None
        for last in {first + 1, len(view)}:
            stop = view.boundaries[last - 1].after[-1] if last < len(view) else None
            torch.manual_seed(1)
            x_here = view[:first](x) if first else x
            pair = [copy.deepcopy(piece) for piece in (view[first:last], traced.between(start, stop))]
            outputs = [(torch.manual_seed(2), piece(x_here))[1] for piece in pair]
            assert torch.equal(*outputs), (start, stop)
            states = [sorted(piece.state_dict().items()) for piece in pair]
            assert all(torch.equal(mine, its) for (_, mine), (_, its) in zip(*states, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_traced_steps_one_after_the_other_are_the_network(name):
    arguments, size = MODELS.get(name, ({}, 64))
    model = timm.create_model(name, num_classes=4, **arguments).eval()
    randomize(model)
    x = y = pico_images(size=size)
    steps = Steps(model, x)
    assert isinstance(steps_of(model), Steps if name == "convnext_atto" else Anchor)
    for step, boundary in zip(steps, (*steps.boundaries, None), strict=True):
        assert step.stop is boundary
        y = step(y)
        assert boundary is None or boundary.layout.sized(y) == boundary.layout
    assert torch.equal(y, model(x))
    assert torch.equal(steps[3:](steps[:3](x)), y)
    assert len(steps) == len(steps.boundaries) + 1


def test_the_slices_of_all_systems_are_of_one_class():
    arguments, size = MODELS["vit_tiny_patch16_224"]
    model = pico_snnet()
    stem, *_, head = map(model.module_of, model.steps(0))
    part = Subnet(model_name="vit_tiny_patch16_224", block_input="blocks.1", pretrained=False, **arguments)
    inner = Subnet(model_name="vit_tiny_patch16_224", block_output="blocks.1.add", pretrained=False, **arguments)
    net = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    some = fragments("vit", net, pico_images(size=size))
    assert all(isinstance(piece, Slice) for piece in (stem, head, part.net, inner.net, *(one.module for one in some)))
    assert part.net.start.before == ("blocks.1",)
    assert [one.module.start for one in some[1:]] == [one.module.stop for one in some[:-1]]


@torch.no_grad()
def test_extraction_and_cost_of_a_slice_are_those_of_the_route(network):
    model, x = network
    steps = steps_of(model)
    whole, halves = extract(steps[:]), [steps[:3], steps[3:]]
    costs = [measure(halves[0], x[:1]), measure(halves[1], halves[0](x[:1]))]
    assert measure(whole, x[:1]) == measure(model, x[:1]) == costs[0] + costs[1]
    before = whole(x)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(whole(x), before)


@pytest.mark.parametrize("family", ["vit", "swin to resnet", "levit"])
@torch.no_grad()
def test_a_route_is_slices_of_its_anchors_and_layers(family):
    torch.manual_seed(0)
    model = stitchkit.create_snnet(FAMILIES[family]).eval()
    x = pico_images(1, size=model.input_size[-1])
    stitch = next(stitch for stitch in model.space if stitch.joints)
    (joint,) = stitch.joints
    front, end = model.views[joint.front], model.views[joint.end]
    pieces = [front[: joint.front_block + 2], model.layer(joint), end[joint.end_block + 1 :]]
    y, cost = x, Cost(0, 0, 0)
    for piece in pieces:
        cost += measure(piece, y)
        y = piece(y)
    assert torch.equal(y, model(x, stitch))
    assert cost == Profiler(model).cost(stitch) == measure(model.extract(stitch), x)


def test_an_extracted_slice_keeps_every_mode(network):
    steps = steps_of(network[0].train())
    network[0].get_submodule(steps.boundaries[1].after[0]).eval()
    modes = [module.training for module in steps[1:3].modules()]
    assert {True, False} == set(modes)
    assert [module.training for module in extract(steps[1:3]).modules()] == modes


def test_what_is_no_run_of_steps_is_refused(network):
    steps = steps_of(network[0])
    for index in (slice(2, 2), slice(None, None, 2)):
        with pytest.raises(InputError, match="consecutive steps"):
            steps[index]
    with pytest.raises(InputError, match="ends before block_input"):
        steps.between(steps.boundaries[1].before[0], steps.boundaries[0].after[0])


def test_a_boundary_without_an_example_has_no_layout():
    steps = Steps(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
    assert steps.boundaries == (Boundary(("1",), ("0",), ("1",)),)
    with pytest.raises(InputError, match="the layout of the tensor from '0' to '1' is unknown"):
        _ = steps.boundaries[0].layout
    assert Boundary(("1",), ("0",), found=Layout("vector", 4)).layout.width == 4
