"""Levels of routes: where they lie, and the features that they give."""

from math import ceil
from typing import NamedTuple

import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler, measure
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.routes import Proportional, SlidingWindow, Stitch, StitchSpace, TwoWay
from stitchkit.routes.levels import Levels, default_blocks
from tests.support import SPACES, family_snnet, mostly_full

STAGES_DIFFER = "resnet and vit, both ways"
QUICK = ["vit", "vits, two-way, of low rank", "vits of other grids and tokens, both ways", "NHWC"]
FAMILY = pytest.mark.parametrize(
    "family", mostly_full([family for family in SPACES if family != STAGES_DIFFER], quick=QUICK)
)


class Blocks(NamedTuple):
    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0,)


def pair(small, large):
    return Blocks("s", small, (*range(len(small)),)), Blocks("l", large, (*range(len(large)),))


def test_the_published_levels():
    for chosen, of_small in (((9, 14, 19, 23), (4, 7, 9, 11)), ((4, 11, 17, 23), (2, 5, 8, 11))):
        levels = Levels.of(pair((12,), (24,)), chosen)
        assert levels.blocks == {"s": of_small, "l": chosen}


def test_by_default_the_ends_of_stages_or_quarters():
    assert default_blocks((24,)) == (5, 11, 17, 23)
    assert default_blocks((12,)) == (2, 5, 8, 11)
    assert default_blocks((3,)) == (0, 1, 2)
    assert default_blocks((2, 2, 18, 2)) == (1, 3, 21, 23)


DEPTHS = [((12,), (24,)), ((12,), (12,)), ((12,), (27,)), ((14,), (12,)), ((24,), (40,)), ((2, 2, 6, 2), (2, 3, 18, 2))]


@pytest.mark.parametrize("depths", DEPTHS, ids=str)
def test_a_two_way_route_has_each_level_once_after_a_block_that_it_runs(depths):
    """Whichever blocks are chosen: what is published for some of depths that are multiples holds for all."""
    anchors = small, large = pair(*depths)
    space = StitchSpace.build(anchors, TwoWay())
    for block in range(sum(large.depths)):
        levels = Levels.of(anchors, [block])
        taken = {"s": levels.blocks["s"][0], "l": block}
        for stitch in space:
            ran = {(part.anchor, number) for part in stitch.segments for number in range(part.start, part.stop)}
            assert len(ran & {*taken.items()}) == 1, (stitch, block)
            (step,) = [step for step in levels.steps(stitch) if step.kind == "level"]
            if (step.anchor, step.index - 1) not in ran:  # the route itself goes through the layer of the level
                assert step.joint is None
                assert levels.joints["s"][0] in stitch.joints
    assert small.depths != large.depths or levels.blocks["s"] == levels.blocks["l"]


@pytest.mark.parametrize("rule", [SlidingWindow(4, 2), SlidingWindow(nearest=False), Proportional("both")], ids=str)
def test_every_route_has_each_level_once_and_in_order(rule):
    depths = [(12,)] * 3 if isinstance(rule, SlidingWindow) else [(9,), (12,), (20,)]
    anchors = [Blocks(label, depth) for label, depth in zip("sml", depths, strict=True)]
    levels = Levels.of(anchors)
    for stitch in StitchSpace.build(anchors, rule):
        steps = [*levels.steps(stitch)]
        assert [step.level for step in steps if step.kind == "level"] == [*levels.chosen]
        assert steps[-1].kind == "level", "the rest is not needed"


def test_a_route_that_skips_the_block_takes_what_enters_the_next():
    steps = [*Levels.of(pair((4,), (4,)), [2]).steps(Stitch.parse("s[0:1] > l[3:4]"))]
    assert [(step.kind, step.anchor, step.index) for step in steps[-2:]] == [("layer", "s", 1), ("level", "l", 3)]


def test_a_route_that_repeats_a_block_takes_it_where_it_runs_last():
    repeating = Stitch.parse("s[0:3] > l[1:4]")
    levels = [step for step in Levels.of(pair((4,), (4,)), [0, 1, 3]).steps(repeating) if step.kind == "level"]
    assert [(step.anchor, step.index) for step in levels] == [("s", 1), ("l", 2), ("l", 4)]


@pytest.mark.parametrize("blocks", [[], [3, 2], [2, 2], [-1], [24]])
def test_levels_that_do_not_exist_are_refused(blocks):
    with pytest.raises(InputError, match=r"give blocks of 'l' in ascending order, from 0 to 23, such as \[5, 11"):
        Levels.of(pair((12,), (24,)), blocks)


def with_levels(family):
    plain = family_snnet(family)
    views = [*plain.views.values()]
    torch.manual_seed(3)
    updates = 2 if len(plain.updates) else 0
    model = SNNet(views, plain.space, levels=default_blocks(views[-1].depths), updates=updates).eval()
    return model, torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(5))


def as_map(x, view, reduction):
    """The positions of a tensor of a network between blocks as rows and columns, written anew."""
    _, height, width = view.input_size
    rows, columns = ceil(height / reduction), ceil(width / reduction)
    if x.ndim == 3:
        return x[:, x.shape[1] - rows * columns :].transpose(1, 2).reshape(len(x), -1, rows, columns)
    return x if x.shape[2:] == (rows, columns) else x.permute(0, 3, 1, 2)


@FAMILY
@torch.no_grad()
def test_law_1_levels_of_the_last_anchor_are_timms(family):
    """By `forward_intermediates` at the same blocks or stages, without the final normalisation."""
    model, x = with_levels(family)
    number, view = model.space.num_anchors - 1, [*model.views.values()][-1]
    found = model.features(x, number)
    infos = model.backbone.level_infos
    indices = [*range(len(view.depths))] if len(view.depths) > 1 else [level.block for level in infos]
    if len(view.depths) > 1 and len(view.model.feature_info) > len(view.depths):
        indices = [index + 1 for index in indices]  # timm counts the stem of some
    given = view.model.forward_intermediates(x, indices=indices, intermediates_only=True, output_fmt="NCHW")
    assert len(found) == len(given)
    last = len(found) - (family == "NCHW, no norm")  # of which timm's last is that of a further convolution
    for one, other in zip(found[:last], given[:last], strict=True):
        assert torch.equal(one, other)


@FAMILY
@torch.no_grad()
def test_levels_are_the_outputs_of_blocks_through_layers(family):
    """Of every route: what hooks see in the blocks of the whole network, through the layer of the anchor's level."""
    model, x = with_levels(family)
    *_, last = model.views
    levels = Levels.of([*model.views.values()])
    seen, compared = {}, 0
    for label, view in model.views.items():
        for block, path in enumerate(view.block_modules):
            path.register_forward_hook(lambda _, __, y, key=(label, block): seen.__setitem__(key, y))
    if any(len(view.block_modules) != sum(view.depths) for view in model.views.values()):
        pytest.skip("a block is several modules")
    for cfg_id in model.space.ids[:20]:
        seen.clear()
        model(x, cfg_id)
        for number, (found, info) in enumerate(zip(model.features(x, cfg_id), model.backbone.level_infos, strict=True)):
            ran = [
                part.anchor
                for part in model.space[cfg_id].segments
                if part.start <= levels.blocks[part.anchor][number] < part.stop
            ]
            if not ran:  # it skips the block
                continue
            expected = seen[ran[-1], levels.blocks[ran[-1]][number]]
            if ran[-1] != last:
                joint = levels.joints[ran[-1]][number]
                shared = joint in model.space.layers
                layer = model.layer(joint) if shared else model.level_layers.of(ran[-1], info.block)
                expected = layer(expected)
            torch.testing.assert_close(found, as_map(expected, model.views[last], info.reduction))
            compared += 1
    assert compared > 10


@FAMILY
@torch.no_grad()
def test_law_6_extracted_features(family):
    """They equal those of the network, and cost what their steps cost; timm's `feature_info` says their channels."""
    model, x = with_levels(family)
    costs = Profiler(model)
    for cfg_id in (0, model.space.ids[-1]):
        net = model.extract(cfg_id, features=True)
        found = net(x)
        for one, other in zip(found, model.features(x, cfg_id), strict=True):
            torch.testing.assert_close(one, other)
        assert net.feature_info.channels() == [len(one[0]) for one in found]
        heights = [ceil(x.shape[2] / reduction) for reduction in net.feature_info.reduction()]
        assert heights == [one.shape[2] for one in found]
        assert measure(net, x[:1]) == costs.of_steps(model.backbone.level_steps(model.space[cfg_id]))


@torch.no_grad()
def test_layers_of_levels_are_fitted():
    """A level of an anchor that is the last one's twin becomes the last one's own."""
    views = [*family_snnet("vit").views.values()]
    twin = type(views[0])(views[0].model, label="twin")
    model = SNNet([twin, views[0]], StitchSpace.build([twin, views[0]], SlidingWindow()), levels=[0, 2]).eval()
    assert [str(joint) for joint in model.level_layers.joined] == ["twin[2] > ti[3]"], "the window has the other"
    images = torch.randn(64, *model.input_size, generator=torch.Generator().manual_seed(6))
    before, last = (model.features(images, cfg_id)[1] for cfg_id in (0, 1))
    assert (before - last).norm() > 0.1 * last.norm()
    assert fit_stitching_layers(model, [images], method="exact").keys() == model.space.layers.keys()
    torch.testing.assert_close(model.features(images, 0)[1], last)


def test_without_its_own_layers_a_network_says_what_it_lacks():
    model = family_snnet("vit")
    x = torch.zeros(1, *model.input_size)
    with pytest.raises(InputError, match="no layer maps the features of 'ti' to those of 'b' after block 0; create"):
        model.features(x, 0)
    assert len(model.features(x, model.space.num_anchors - 1)) == 3


def test_anchors_of_other_stages_have_no_levels():
    model = family_snnet(STAGES_DIFFER)
    with pytest.raises(InputError, match="anchors with 4 and 1 stages have no levels in common"):
        model.features(torch.zeros(1, *model.input_size), 0)
