"""Laws 1, 2 and 6: anchors, self-stitches and extracted networks equal what they stand for."""

import copy
import pickle

import pytest
import timm
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.measure.profile import FlopCountAnalysis, Profiler, measure
from stitchkit.model.anchor import VIEWS, view
from stitchkit.model.snnet import SNNet
from stitchkit.routes import PairedWindow, StitchSpace
from tests.support import pico_config, pico_images, pico_snnet, randomize

PICO = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4}

VARIANTS = {
    "class token": {},
    "average pooling with fc_norm": {"global_pool": "avg", "class_token": False},
    "average pooling without fc_norm": {"global_pool": "avg", "fc_norm": False},
    "maximum pooling": {"global_pool": "max"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "register tokens": {"reg_tokens": 2},
    "no position for prefix tokens": {"no_embed_class": True, "reg_tokens": 1},
    "norm_pre": {"pre_norm": True},
    "layer scale and qk norm": {"init_values": 0.1, "qk_norm": True},
    "dynamic size": {"dynamic_img_size": True},
    "no final norm": {"final_norm": False},
    "no position embedding": {"pos_embed": "none"},
}


def run_steps(anchor, x):
    for step in anchor.steps:
        x = step(x)
    return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_law_1_anchor_equals_the_timm_model(variant):
    model = timm.create_model("vit_tiny_patch16_224", **PICO, **VARIANTS[variant]).eval()
    randomize(model)
    x = pico_images()
    assert torch.equal(run_steps(view(model, label="vit"), x), model(x))


def test_law_1_anchor_equals_the_distilled_model():
    model = timm.create_model("deit_tiny_distilled_patch16_224", **PICO).eval()
    randomize(model)
    x = pico_images()
    assert torch.equal(run_steps(view(model, label="vit"), x), model(x))


def plain_vits():
    """timm's models of the registered classes, by name; built on the meta device, where that costs nothing."""
    modules = {"vision_transformer", "deit"}
    return [name for module in sorted(modules) for name in timm.list_models(module=module)]


def test_law_1_every_timm_vit_is_an_anchor():
    """Every variant that timm builds with a registered class, narrow and shallow but otherwise as it is."""
    seen = 0
    for name in plain_vits():
        small = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
        with torch.device("meta"):
            whole = timm.create_model(name, **small)
        if f"{type(whole).__module__}.{type(whole).__qualname__}" not in VIEWS:
            continue
        side = 2 * whole.patch_embed.patch_size[0]
        model = timm.create_model(name, **small, img_size=side).eval()
        anchor = view(model, label=name)
        x = torch.randn(1, *anchor.input_size)
        with torch.no_grad():
            features = anchor.features(x)
            assert torch.equal(run_steps(anchor, x), model(x)), name
        assert features[0].shape[1:] == (*anchor.stages[0].positions, anchor.stages[0].width), name
        seen += 1
    assert seen > 150


def test_a_class_without_a_view_is_refused():
    model = timm.create_model("resnet18", num_classes=2)
    with pytest.raises(InputError, match="ResNet; stitchkit can stitch"):
        view(model, label="r")


@pytest.mark.parametrize("final_norm", [True, False])
def test_law_2_self_stitch_equals_the_anchor(final_norm):
    first = timm.create_model("vit_tiny_patch16_224", **PICO).eval()
    randomize(first)
    if not final_norm:
        first.norm = torch.nn.Identity()
    anchors = [view(first, label="a"), view(copy.deepcopy(first), label="b")]
    model = SNNet(anchors, StitchSpace.build(anchors, PairedWindow()), stitched_final_norm=final_norm).eval()
    for joint in model.space.layers:
        model.layer(joint).set_map(torch.cat([torch.eye(16), torch.zeros(1, 16)]))
    x = pico_images()
    straight = [stitch for stitch in model.space if all(j.front_block + 1 == j.end_block for j in stitch.joints)]
    assert len(straight) == 2 + 2
    for stitch in straight:
        torch.testing.assert_close(model(x, stitch), first(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("final_norm", [True, False])
def test_law_6_extract_equals_the_stitch(nearest, final_norm):
    model = pico_snnet(nearest_stitching=nearest, stitched_final_norm=final_norm)
    profiler = Profiler(model)
    x = pico_images()
    outputs = []
    for cfg_id, stitch in enumerate(model.space):
        net = model.extract(cfg_id)
        outputs.append(net(x))
        assert torch.equal(outputs[-1], model(x, stitch))
        cost = profiler.cost(stitch)
        assert cost == measure(net, x[:1])
        assert cost.params == sum(parameter.numel() for parameter in net.parameters())
    # The routes are really different ones.
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(model.space)


def test_law_6_flops_are_those_of_fvcore():
    model = pico_snnet()
    net = model.extract(7)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    count = FlopCountAnalysis(net, pico_images(1)).unsupported_ops_warnings(False).total()
    assert Profiler(model).cost(7).flops == count


def test_an_extracted_network_is_independent_plain_and_minimal():
    model = pico_snnet()
    net = model.extract(8)
    x = pico_images()
    before = net(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(net(x), before)
    assert not any(isinstance(module, SNNet) for module in net.modules())
    restored = pickle.loads(pickle.dumps(net))
    assert torch.equal(restored(x), before)


def test_the_default_stitch():
    model = pico_snnet()
    x = pico_images()
    assert torch.equal(model(x), model(x, 0))
    model.reset_stitch_id(5)
    assert torch.equal(model(x), model(x, 5))
    assert torch.equal(model.extract()(x), model(x, 5))
    with pytest.raises(InputError, match="does not exist"):
        model.reset_stitch_id(len(model.space))
    with pytest.raises(InputError, match="not in this space"):
        model(x, stitchkit.Stitch.parse("ti[0:1] > b[1:3]"))


def test_gradients_reach_the_route_and_nothing_else():
    model = pico_snnet().train()
    stitch = stitchkit.Stitch.parse("ti[0:1] > s[1:3]")
    model(pico_images(), stitch).sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in used} == {"anchors", "stitch_layers"}
    assert "anchors.0.blocks.0.attn.qkv.weight" in used
    assert "anchors.1.blocks.2.attn.qkv.weight" in used
    assert not any(
        name.startswith(("anchors.0.blocks.1", "anchors.1.blocks.0", "anchors.2", "anchors.0.head")) for name in used
    )


def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = pico_snnet().train(), pico_snnet().train()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(pico_images(), 6).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad)


def test_a_copy_of_a_model_runs_on_its_own_weights():
    model = pico_snnet()
    twin = copy.deepcopy(model)
    x = pico_images()
    before = model(x, 6)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x, 6), before)
    assert twin(x, 6).abs().max() == 0


def test_drop_path_follows_the_mode():
    model = stitchkit.create_snnet(pico_config(), drop_path_rate=0.9)
    randomize(model)
    x = pico_images(8)
    model.train()
    assert not torch.equal(model(x, 2), model(x, 2))
    model.eval()
    assert torch.equal(model(x, 2), model(x, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 32}, "input_size"),
        ({"patch_size": 4}, "positions"),
        ({"class_token": False, "global_pool": "avg"}, "positions"),
        ({"num_classes": 7}, "num_classes"),
        ({"depth": 4}, "equal depth"),
    ],
)
def test_anchors_that_cannot_be_stitched_are_refused(change, message):
    config = pico_config()
    config["anchors"][1]["kwargs"] |= change
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(config)
