"""Law 1 for every timm model that has a view, and how an SN-Net behaves as a module."""

import copy

import pytest
import timm
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.networks.create import create_model
from stitchkit.networks.families import VIEWS, anchor_of
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
    for step in anchor:
        x = step(x)
    return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_law_1_anchor_equals_the_timm_model(variant):
    model = timm.create_model("vit_tiny_patch16_224", **PICO, **VARIANTS[variant]).eval()
    randomize(model)
    x = pico_images()
    assert torch.equal(run_steps(anchor_of(model, label="vit"), x), model(x))


def test_law_1_anchor_equals_the_distilled_model():
    model = timm.create_model("deit_tiny_distilled_patch16_224", **PICO).eval()
    randomize(model)
    x = pico_images()
    assert torch.equal(run_steps(anchor_of(model, label="vit"), x), model(x))


@torch.no_grad()
def check_anchor(anchor):
    """Its steps are the model, and its stages are what they say."""
    x = torch.randn(1, *anchor.input_size)
    assert torch.equal(run_steps(anchor, x), anchor.model(x)), anchor.label
    for feature, place in zip(anchor.features(x), anchor.boundaries, strict=True):
        assert place.layout.sized(feature) == place.layout, anchor.label


SMALL = {
    "vision_transformer": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "deit": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "swin_transformer": {"embed_dim": 8, "num_heads": (1, 2, 2, 4)},
    "levit": {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "img_size": 64},
    "resnet": {"channels": (32, 64, 64, 128)},
    **{module: {} for module in ("res2net", "resnest", "sknet")},  # their blocks need their widths
}
"""timm's modules with registered classes, and arguments that make any of their models narrow."""
ANY_SIZE = ("resnet", "res2net", "resnest", "sknet")
"""Those whose models take images of any size."""


def small_model(name, module):
    """One of timm's models, narrow but otherwise as it is; None if its class is not registered."""
    small = SMALL[module] if "pruned" not in name else {}  # pruned networks have a width for every layer
    if module not in ANY_SIZE:
        with torch.device("meta"):
            whole = timm.create_model(name, num_classes=3, **small)
        if not is_registered(whole):
            return None
        if hasattr(whole, "patch_embed") and module != "swin_transformer":
            small = small | {"img_size": 2 * whole.patch_embed.patch_size[0]}
    model = timm.create_model(name, num_classes=3, **small).eval()
    return model if is_registered(model) else None


def is_registered(model):
    return f"{type(model).__module__}.{type(model).__qualname__}" in VIEWS


def anchors_among(names, module):
    """How many of these models are of a registered class; each of them is seen to be an anchor."""
    seen = 0
    for name in names:
        model = small_model(name, module)
        if model is None:
            continue
        if module in ANY_SIZE:
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 96, 64)}
        check_anchor(anchor_of(model, label=name))
        seen += 1
    return seen


LEAST = {
    "vision_transformer": 150,
    "deit": 10,
    "swin_transformer": 9,
    "levit": 20,
    "resnet": 81,
    "res2net": 9,
    "resnest": 8,
    "sknet": 5,
}


@pytest.mark.full
@pytest.mark.parametrize("module", LEAST)
def test_law_1_every_timm_model_of_a_registered_class_is_an_anchor(module):
    """Every variant that timm builds with a registered class, on small images."""
    assert anchors_among(timm.list_models(module=module), module) >= LEAST[module]


def test_law_1_one_timm_model_in_so_many_is_an_anchor():
    assert all(anchors_among(timm.list_models(module=module)[::25], module) for module in LEAST)


@pytest.mark.parametrize("name", ["resnet18", "resnet26d", "resnet26t"])
def test_law_1_of_images_whose_size_no_stride_divides(name):
    check_anchor(anchor_of(create_model(name, img_size=(75, 43), num_classes=3).eval(), label=name))


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
        ({"num_classes": 7}, "num_classes"),
        ({"depth": 4}, "equal depth"),
    ],
)
def test_anchors_that_cannot_be_stitched_are_refused(change, message):
    config = pico_config()
    config["anchors"][1]["kwargs"] |= change
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(config)
