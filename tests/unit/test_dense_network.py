"""Networks for dense prediction: every route through one head."""

from functools import partial

import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler, measure
from stitchkit.model.coverage import check_coverage
from stitchkit.model.create import create_snnet
from stitchkit.model.heads.heads import HEADS
from stitchkit.model.heads.route_head import LevelHead
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import create_anchor
from stitchkit.routes.levels import default_blocks
from stitchkit.settings.stitch_config import AnchorSpec
from tests.support import family_snnet, mostly_full, pico_config, randomize

PICO = {
    "linear": HEADS["linear"],
    "setr": partial(HEADS["setr"], channels=8),
    "dpt": partial(HEADS["dpt"], widths=(4, 8, 8, 16), channels=8),
}
WAYS = [
    ("vit", "setr"),
    ("vits, two-way, of low rank", "dpt"),
    ("swin", "setr"),
    ("resnet", "linear"),
    ("resnets and swins, two-way, of two layers", "setr"),
    ("NLC, 5 prefix tokens", "linear"),
    ("headless vit", "linear"),
]


def dense(family, head):
    plain = family_snnet(family)
    torch.manual_seed(4)
    anchors = [*plain.views.values()]
    model = SNNet(
        anchors,
        plain.space,
        head=partial(LevelHead, make=partial(PICO[head], num_outputs=5)),
        levels=default_blocks(anchors[-1].depths),
        updates=2 if len(plain.updates) else 0,
    )
    randomize(model)
    return model.eval(), torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("family", "head"), mostly_full(WAYS, quick=WAYS[:2]))
@torch.no_grad()
def test_law_7_all_routes_in_one_pass_are_as_one_by_one(family, head):
    model, x = dense(family, head)
    found = model.forward_all(x)
    assert [*found] == [*model.space.ids]
    for cfg_id, output in found.items():
        assert output.shape[:2] == (2, 5)
        assert torch.equal(output, model(x, cfg_id))
    (one,) = OnePass(model, [1]).outputs([x])
    assert one[0] == 1
    for cfg_id, output in OnePass(model).outputs(x.split(1)):
        assert torch.equal(output, torch.cat([model(part, cfg_id) for part in x.split(1)]))


@torch.no_grad()
def test_the_common_part_of_routes_runs_once():
    model, x = dense("vits, two-way, of low rank", "setr")
    calls = []
    for label, view in model.views.items():
        for number, block in enumerate(view.block_modules):
            block.register_forward_hook(lambda *_, key=(label, number): calls.append(key))
    [*OnePass(model).outputs([x])]
    prefixes = set()
    for cfg_id in model.space.ids:
        steps = [step for step in model.steps(cfg_id) if step.kind not in ("level", "head")]
        prefixes |= {tuple(steps[:place]) for place in range(1, len(steps) + 1) if steps[place - 1].kind == "block"}
    assert len(calls) == len(prefixes)


@pytest.mark.parametrize(("family", "head"), mostly_full(WAYS, quick=WAYS[:3]))
@torch.no_grad()
def test_law_6_an_extracted_network_gives_and_costs_the_same(family, head):
    model, x = dense(family, head)
    costs = Profiler(model)
    for cfg_id in (0, model.space.ids[-1]):
        net = model.extract(cfg_id)
        torch.testing.assert_close(net(x), model(x, cfg_id))
        assert measure(net, x[:1]) == costs.cost(cfg_id)
        assert net.num_classes == model.num_classes == model.pretrained_cfg["num_classes"] == 5


def test_training_has_auxiliary_outputs():
    model, x = dense("vit", "setr")
    main, *auxiliary = model.train()(x, 3)
    assert len(auxiliary) == len(model.backbone.level_infos) - 1
    sum(output.square().mean() for output in (main, *auxiliary)).backward()
    used = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert used == {"anchors", "stitch_layers", "level_layers", "head"}


def test_a_pass_in_training_mode_is_refused():
    model, x = dense("vit", "linear")
    with pytest.raises(InputError, match="evaluation mode"):
        [*OnePass(model.train()).outputs([x])]


def test_a_limit_to_the_memory_of_all_routes_is_refused():
    model, x = dense("vit", "linear")
    with pytest.raises(InputError, match=r"memory is 1048576, but .* remove the limit, or give fewer images"):
        model.forward_all(x, memory=2**20)


VIT = {"patch_size": 8, "embed_dim": 8, "depth": 4, "num_heads": 2}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}


@pytest.mark.parametrize(
    ("name", "options", "side", "said"),
    [
        (
            "vit_tiny_patch16_224",
            VIT,
            20,
            "sees whole patches of 8 x 8 pixels, and not the last 4 rows and 4 columns of images of",
        ),
        ("vit_tiny_patch16_224", VIT, 20, "images of 20 x 20; choose the size (--img-size) 16 x 16 or 24 x 24"),
        ("vit_tiny_patch16_224", VIT, (16, 28), "(--img-size) 16 x 24 or 24 x 32"),
        ("vit_tiny_patch16_224", VIT, 7 * 8, ""),
        ("convnext_atto", CONVNEXT, 80, "sees whole patches of 32 x 32 pixels"),
        ("convnext_atto", CONVNEXT, 80, "64 x 64 or 96 x 96"),
        ("convnext_atto", CONVNEXT, 96, ""),
        ("resnet18", RESNET, 75, ""),
        ("pvt_v2_b0", {}, 80, ""),
    ],
)
def test_images_of_no_whole_number_of_patches_are_refused(name, options, side, said):
    """Also further down; but not where convolutions overlap, or where only the attention cuts patches."""
    with torch.device("meta"):
        anchor = create_anchor(AnchorSpec(name, "a", options), img_size=side, pretrained=False, checkpoints=False)
    if not said:
        check_coverage(anchor)
        return
    with pytest.raises(InputError) as refusal:
        check_coverage(anchor)
    assert said in str(refusal.value)


def test_a_network_for_images_of_no_whole_number_of_patches_is_refused():
    dense = {"task": "segmentation", "head": "linear"}
    with pytest.raises(InputError, match=r"anchor 'ti' sees whole patches of .* images of 13 x 13"):
        create_snnet(pico_config(), dense=dense, num_classes=5, img_size=13)
    create_snnet(pico_config(), dense=dense, num_classes=5, img_size=16)
