"""The plan of anchors that come without a configuration: order, rule, stages, labels, and what is refused."""

import logging
from types import SimpleNamespace

import pytest
import timm
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.model.anchor_sources import anchor_source
from stitchkit.model.plan import choose_rule, plan_anchors
from stitchkit.routes import Proportional, SlidingWindow
from stitchkit.settings.names import read_anchor
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from tests.support import FAMILIES, mostly_full, pico_anchor, pico_images


def shapes(*depths, stages=(0, 1, 2)):
    """Anchors as rules see them; of one stage if their depth is a number."""
    lists = [(depth,) if isinstance(depth, int) else depth for depth in depths]
    return [
        SimpleNamespace(label=f"a{number}", depths=tuple(found), stitched_stages=stages if len(found) > 1 else (0,))
        for number, found in enumerate(lists)
    ]


def chosen(*depths, build=lambda space: None, stages=(0, 1, 2)):
    return choose_rule(shapes(*depths, stages=stages), build)


USUAL = "stage 3 is left out: it is not among the stages where all anchors are usually stitched"


@pytest.mark.parametrize(
    ("depths", "rule"),
    [
        ((12, 12, 12), SlidingWindow()),
        ((12, 24), Proportional()),
        ((24, 12), Proportional()),
        (((2, 2, 6, 2), (2, 2, 18, 2)), SlidingWindow(stages=(0, 1, 2))),
        (((2, 2, 8, 2), (3, 3, 9, 3), (3, 3, 27, 3)), SlidingWindow(stages=(0, 1, 2))),
        (((2, 5, 13, 1), (2, 4, 10, 1)), Proportional(stages=(0, 1, 2))),
        (((1, 1, 1, 1), (1, 1, 1, 1)), Proportional(stages=(0, 1, 2))),
    ],
)
def test_windows_wherever_they_fit_and_else_the_proportional_rule(depths, rule):
    stages = len(depths[0]) if isinstance(depths[0], tuple) else 1
    found, lines = chosen(*depths)
    assert found == rule
    assert [line for line in lines if not line.startswith("no windows: ")] == ([USUAL] if stages > 1 else [])


def test_a_stage_without_joints_is_left_out_with_the_reason():
    rule, (first, second, last) = chosen((1, 1, 3, 1), (1, 1, 9, 1))
    assert rule == SlidingWindow(stages=(2,))
    assert first.startswith("stage 0 is left out: nothing can be joined in stage 0")
    assert second.startswith("stage 1 is left out")
    assert last == USUAL


def test_a_stage_whose_tensors_do_not_fit_is_left_out_with_the_reason():
    def build(space):
        if any(joint.end_block < 2 for joint in space.layers):
            raise InputError("no way")

    assert chosen((2, 2, 6, 2), (2, 2, 18, 2), build=build) == (
        SlidingWindow(stages=(1, 2)),
        ["stage 0 is left out: no way", USUAL],
    )


def test_the_stages_are_those_that_all_families_are_stitched_at():
    anchors = shapes((2, 2, 6, 2), (2, 2, 6, 2))
    anchors[0].stitched_stages, anchors[1].stitched_stages = (1, 2), (0, 1)
    assert choose_rule(anchors, lambda space: None)[0].stages == (1,)
    anchors[1].stitched_stages = (0,)
    with pytest.raises(InputError, match="no usually stitched stage in common"):
        choose_rule(anchors, lambda space: None)


def refuse(space):
    raise InputError("no way")


@pytest.mark.parametrize(
    ("depths", "build", "message"),
    [
        ((12, (2, 2, 6, 2)), print, 'with one stage and with several.*a0 12, a1 2\\+2\\+6\\+2.*"stages": \\[0\\]'),
        (((2, 2, 6, 2), (2, 2, 18, 2)), refuse, "^no way$"),
        ((12, 12), refuse, "^no way$"),
    ],
)
def test_anchors_that_nothing_joins_are_refused(depths, build, message):
    with pytest.raises(InputError, match=message):
        chosen(*depths, build=build)


# Routes over every pair of anchors, and those of another rule, are only for those who ask for them.
PLAIN = [name for name, config in FAMILIES.items() if not {"nearest_stitching", "rule"} & config.keys()]


@pytest.mark.parametrize("family", mostly_full(PLAIN, quick=["resnet"]))
def test_the_plan_of_a_familys_anchors_is_the_published_space(family):
    config = StitchConfig.parse(FAMILIES[family])
    planned = plan_anchors(config.anchors).config
    same_order = [anchor.label for anchor in planned.anchors] == [anchor.label for anchor in config.anchors]
    spaces = [stitchkit.create_snnet(found).space for found in (config, planned)]
    assert not same_order or spaces[0] == spaces[1]


def test_anchors_are_ordered_by_cost_and_the_plan_says_where_they_join():
    costly, cheap = (AnchorSpec.parse(pico_anchor(label, width)) for label, width in (("b", 32), ("ti", 8)))
    plan = plan_anchors([costly, cheap])
    assert [*plan.sources] == ["ti", "b"]
    assert plan.lines == (
        "blocks of the anchors, from cheap to costly: ti 3, b 3; they were given in another order",
        "rule: window, 9 stitches",
        "stage 0, ti > b: 7 joints after blocks 0 to 2 and before blocks 0 to 2, bert [8, 4] to bert [32, 4]",
    )
    again = plan_anchors([cheap, costly])
    assert again.config == plan.config
    assert again.lines[0].endswith("ti 3, b 3")


def test_create_snnet_takes_anchors_in_place_of_a_configuration(caplog):
    caplog.set_level(logging.INFO, "stitchkit")
    model = stitchkit.create_snnet(anchors=[pico_anchor("deep", 16, depth=6), pico_anchor("ti", 8)], num_classes=7)
    assert "rule: proportional, 4 stitches" in caplog.text
    assert model.eval()(pico_images(), 2).shape == (2, 7)
    for arguments in ({}, {"config": FAMILIES["vit"], "anchors": ["resnet18", "resnet50"]}):
        with pytest.raises(InputError, match="give either a configuration or anchors"):
            stitchkit.create_snnet(**arguments)


def test_networks_of_ones_own_keep_their_weights_and_are_labelled_by_class():
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "num_heads": 2, "num_classes": 4}
    own = [timm.create_model("vit_tiny_patch16_224", embed_dim=width, depth=3, **options) for width in (16, 8)]
    model = stitchkit.create_snnet(anchors=own).eval()
    assert [*model.views] == ["VisionTransformer", "VisionTransformer_2"]
    x = pico_images()
    for cfg_id, network in enumerate(reversed(own)):
        assert torch.equal(model(x, cfg_id), network.eval()(x))


class Own(torch.nn.Module):
    """A network that no library knows."""

    def __init__(self, width, channels=3):
        super().__init__()
        self.stem = torch.nn.Conv2d(channels, width, 4, 4)
        self.blocks = torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Conv2d(width, width, 1), torch.nn.ReLU()) for _ in range(3))
        )
        self.head = torch.nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_networks_without_a_view_are_traced_at_the_given_size():
    own = [Own(16), Own(8)]
    model = stitchkit.create_snnet(anchors=own, img_size=16).eval()
    assert model.input_size == (3, 16, 16)
    x = pico_images()
    for cfg_id, network in enumerate(reversed(own)):
        assert torch.equal(model(x, cfg_id), network.eval()(x))
    assert model(x, len(model.space) - 1).shape == (2, 4)


def test_anchors_whose_head_attends_from_a_learned_query_are_ordered_too():
    """torch's counter of FLOPs fails on a module whose input is a parameter, unless gradients are on."""
    assert list(stitchkit.create_snnet(anchors=["test_vit3", "test_vit2"]).views) == ["test_vit2", "test_vit3"]


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 8), ("test_vit2", 20)])
def test_images_that_patches_do_not_fill_are_refused(name, size):
    with pytest.raises(InputError, match=rf"anchor '{name}': images of \({size}, {size}\) cannot be cut into patches"):
        stitchkit.create_snnet(anchors=[name, "vit_small_patch16_224"], img_size=size)


def test_own_networks_and_names_may_be_mixed():
    own = timm.create_model("resnet34")
    model = stitchkit.create_snnet(anchors=["resnet18", own])
    assert [*model.views] == ["resnet18", "ResNet"]


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (["resnet18"], "at least two anchors, but got 1"),
        (["resnet18", "resnet18"], "'resnet18' is given twice"),
        (["resnet18", "resnt50"], "unknown timm model 'resnt50'; did you mean 'resnet50'\\?$"),
        (["resnet18", "torchvison/resnet50"], "did you mean 'torchvision/resnet50'\\?$"),
        ("resnet18, resnet34", r"is the text 'resnet18, resnet34'.*write anchors=\['resnet18', 'resnet34'\]"),
        (["resnet18", "deit_ti_s_b"], "did you mean the stitch configuration 'deit_ti_s_b' \\(--stitch-config"),
        (["resnet18", "resnet50.a1_in2k"], "unknown tag of resnet50 'a1_in2k'; did you mean 'a1_in1k'"),
        (["resnet18", "nowhere.pth"], "checkpoint 'nowhere.pth' does not exist"),
        (["resnet18", "resnet50=nowhere"], "checkpoint 'nowhere' does not exist"),
        (["vit_tiny_patch16_224", "vit_tiny_patch16_384"], "differ in input_size.*--img-size"),
        (["resnet18", "deit_tiny_patch16_224"], "one stage and with several"),
        (
            [42, "resnet18"],
            "^an anchor is 42, of type int; give a name, the file of a checkpoint, a specification or a net",
        ),
        (["resnet18", None], "^an anchor is None, of type NoneType; give a name"),
        (["resnet18", ["resnet34"]], r"^an anchor is \['resnet34'\], of type list; give a name"),
    ],
)
def test_bad_anchors_are_refused_in_a_line(anchors, message):
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(anchors=anchors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 0}, "sets img_size to 0; it must be at least 1"),
        ({"img_size": (64, 0)}, r"sets img_size to \(64, 0\); it must be at least 1"),
        ({"in_chans": 0}, "sets in_chans to 0; it must be at least 1"),
        ({"num_classes": -1}, "sets num_classes to -1; it must be at least 0"),
        ({"img_size": "large"}, "sets img_size to 'large'; it must be at least 1"),
    ],
)
@pytest.mark.parametrize("anchors", [("resnet18", "resnet34"), ("torchvision/resnet18", "torchvision/resnet34"), None])
def test_sizes_that_no_image_has_are_refused(options, message, anchors):
    """Zero is not the same as no size."""
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(anchors=anchors or [Own(16), Own(8)], **options)


def test_own_networks_heed_channels_without_a_size():
    own = [Own(16, channels=1), Own(8, channels=1)]
    assert stitchkit.create_snnet(anchors=own, in_chans=1).input_size == (1, 224, 224)
    assert stitchkit.create_snnet(anchors=own, in_chans=1, img_size=(16, 24)).input_size == (1, 16, 24)


def test_own_networks_refuse_options_that_they_cannot_heed():
    own = [Own(16), Own(8)]
    message = "anchor 'Own' is already a network, so drop_rate, global_pool cannot apply; build it with them"
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(anchors=own, drop_rate=0.1, global_pool="max")
    assert stitchkit.create_snnet(anchors=own, drop_rate=None, pretrained=True, checkpoints=False).num_classes == 4


def test_images_that_a_network_does_not_take_are_answered_by_what_to_do():
    own, what = [Own(16, channels=1), Own(8, channels=1)], "choose a larger img_size, or the in_chans that it takes"
    for options in ({}, {"in_chans": 1, "img_size": 2}):
        with pytest.raises(InputError, match=f"rejects images of .*; if the images are at fault, {what}$"):
            stitchkit.create_snnet(anchors=own, **options)


def test_own_networks_of_other_kinds_get_no_advice_that_needs_a_file():
    """A configuration cannot hold them."""
    with pytest.raises(InputError, match=r"one stage and with several.*; choose anchors of one kind$"):
        stitchkit.create_snnet(anchors=["resnet18", Own(8)])


def test_a_plan_without_windows_says_why():
    (line,) = chosen(12, 24)[1]
    assert line == "no windows: they join anchors of one stage only at equal depth, but the blocks are: a0 12, a1 24"
    line, *_ = chosen((2, 5, 13, 1), (2, 4, 10, 1))[1]
    assert line == (
        "no windows: nothing can be joined in stage 1 of a0 2+5+13+1, a1 2+4+10+1 with stitch_kernel_size 2: a stitch "
        "enters at a later block than the one it leaves, so a stage and a window need two blocks, and an end needs at "
        "least as many as its front"
    )
    line, *_ = chosen((1, 1, 1, 1), (1, 1, 1, 1))[1]
    assert line.startswith("no windows: nothing can be joined in stage 0 of a0 1+1+1+1")


def test_anchors_that_expect_other_images_are_pointed_out(caplog):
    own = [Own(8), Own(16)]
    own[1].pretrained_cfg = {"input_size": (3, 16, 16), "mean": [0.5] * 3, "std": [0.5] * 3}
    stitchkit.create_snnet(anchors=[own[0], Own(16)], img_size=16)
    assert "different mean and std" not in caplog.text
    stitchkit.create_snnet(anchors=own, img_size=16)
    message = (
        "anchors expect images with different mean and std (Own (0.485, 0.456, 0.406) (0.229, 0.224, 0.225); Own_2 "
        "(0.5, 0.5, 0.5) (0.5, 0.5, 0.5)); those of Own_2 are used for all, unless stitchkit train gets --mean and "
        "--std"
    )
    assert caplog.messages == [message]


def test_channels_are_averaged_without_a_line_of_timm(caplog):
    own = [Own(16, channels=1), Own(8, channels=1)]
    model = stitchkit.create_snnet(anchors=own, in_chans=1, img_size=16)
    assert model.pretrained_cfg["mean"] == pytest.approx([0.449], abs=1e-3)
    assert not caplog.messages


def test_anchors_of_other_classes_get_the_flag_that_makes_them_agree():
    with pytest.raises(InputError, match=r"differ in num_classes: .*--num-classes"):
        plan_anchors([AnchorSpec.parse(pico_anchor(f"a{number}", 8 * number, num_classes=number)) for number in (1, 2)])


@pytest.mark.parametrize(
    ("text", "name", "file", "label"),
    [
        ("resnet18.a1_in1k", "resnet18.a1_in1k", "", "resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "", "timm_resnet18"),
        ("resnet18=x/my weights.v2.pth", "resnet18", "x/my weights.v2.pth", "my_weights"),
        ("outputs/mine/last.pth.tar", "", "outputs/mine/last.pth.tar", "mine"),
        ("outputs/mine/checkpoint-3.pth.tar", "", "outputs/mine/checkpoint-3.pth.tar", "mine"),
    ],
)
def test_the_text_of_an_anchor(text, name, file, label):
    assert read_anchor(text) == (name, file)
    assert read_anchor(text).label == label


def test_a_name_without_a_tag_is_pinned_to_the_one_it_has_today():
    assert anchor_source("resnet18").name == timm.get_pretrained_cfg("resnet18").architecture + ".a1_in1k"
    assert anchor_source("resnet18").label == "resnet18"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "does not name its timm model; write NAME=FILE"),
        ({"arch": "nothing"}, "does not name its timm model"),
        ({"arch": "resnet18", "stitch_config": {"anchors": []}}, "an SN-Net, not a model"),
        ({"arch": "resnet18", "model_kwargs": {"layers": torch.zeros(2)}}, "not plain data"),
    ],
)
def test_a_checkpoint_that_does_not_say_its_model_is_refused(content, message, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, **content}, path)
    with pytest.raises(InputError, match=f"anchor '{path}': .*{message}"):
        anchor_source(str(path))
