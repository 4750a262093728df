"""The network that a recipe means: overrides, classifiers, batch norms, precision, compilation."""

import pytest
import torch
from timm.layers import DropBlock2d, DropPath, LayerNorm
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch._dynamo import register_backend

import stitchkit
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.network import (
    check_device,
    check_names,
    create_network,
    input_size,
    place_network,
    suit_training,
    uncompiled,
)
from stitchkit.training.run import kind_of
from tests.support import (
    SPACES,
    family_snnet,
    mostly_full,
    pico_anchor,
    pico_config,
    pico_images,
    pico_snnet,
    randomize,
)

# torch looks at gradients where there are none while it compiles.
COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
ALONE = World(0, 1, torch.device("cpu"))
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "num_classes": 4}


def snnet(anchors=None, **settings):
    config = pico_config() | ({"anchors": anchors} if anchors else {})
    recipe = make_recipe({"pretrained": False, "stitch_config": "x"} | settings)
    return create_network(recipe, StitchConfig.parse(config), None), recipe


def resnet(**settings):
    recipe = make_recipe({"pretrained": False, "model": "resnet18", "model_kwargs": RESNET} | settings)
    return create_network(recipe, None, None), recipe


def test_pooling_is_that_of_all_anchors():
    model, _ = snnet(gp="avg")
    assert [anchor.global_pool for anchor in model.anchors] == ["avg"] * 3
    assert {anchor.global_pool for anchor in snnet()[0].anchors} == {"token"}


def test_channels_and_size_are_those_of_all_anchors():
    model, recipe = snnet(input_size=[1, 16, 24])
    assert input_size(model, recipe) == model.input_size == (1, 16, 24)
    assert model(torch.zeros(2, 1, 16, 24), 4).shape == (2, 4)
    assert snnet(in_chans=5)[0].input_size == (5, 16, 16)
    plain, recipe = resnet(input_size=[2, 32, 48])
    assert input_size(plain, recipe) == (2, 32, 48)
    assert plain.conv1.in_channels == 2
    assert input_size(*resnet(in_chans=1, img_size=32)) == (1, 32, 32)
    with pytest.raises(InputError, match="needs images with 1 channels; set --in-chans 1"):
        resnet(model_kwargs=RESNET | {"in_chans": 1})


def test_pretrained_weights_from_a_file(tmp_path):
    entry = pico_anchor("a", 8)
    model = stitchkit.create_model(entry["name"], **entry["kwargs"])
    randomize(model)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    settings = {"model": entry["name"], "model_kwargs": entry["kwargs"], "pretrained_path": str(tmp_path / "a.pth")}
    for pretrained in (True, False):
        recipe = make_recipe(settings | {"pretrained": pretrained})
        loaded = create_network(recipe, None, None).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items()) == pretrained


def test_files_of_anchors_are_loaded_without_pretrained_weights(tmp_path):
    """`--no-pretrained` fetches nothing; what the configuration names is not fetched."""
    anchors = [pico_anchor("a", 8), pico_anchor("b", 16)]
    model = stitchkit.create_model(anchors[1]["name"], **anchors[1]["kwargs"])
    randomize(model)
    torch.save(model.state_dict(), tmp_path / "b.pth")
    anchors[1]["checkpoint"] = str(tmp_path / "b.pth")
    made = snnet(anchors)[0].anchors[1].state_dict()
    assert all(torch.equal(made[key], value) for key, value in model.state_dict().items())
    (tmp_path / "b.pth").unlink()
    with pytest.raises(InputError, match=r"anchor 'b': checkpoint '.*b\.pth' does not exist"):
        snnet(anchors)
    snnet(anchors, resume="last.pth.tar")  # which holds all weights


@pytest.mark.parametrize("create", [stitchkit.create_snnet, stitchkit.HubSNNet])
def test_files_of_anchors_are_loaded_in_python_too(create, tmp_path):
    """Downloads are off by default; what the configuration names is no download."""
    anchors = [pico_anchor("a", 8), pico_anchor("b", 16)]
    model = stitchkit.create_model(anchors[1]["name"], **anchors[1]["kwargs"])
    randomize(model)
    torch.save(model.state_dict(), tmp_path / "b.pth")
    anchors[1]["checkpoint"] = str(tmp_path / "b.pth")
    config = pico_config() | {"anchors": anchors}
    made = create(config).anchors[1].state_dict()
    assert all(torch.equal(made[key], value) for key, value in model.state_dict().items())
    (tmp_path / "b.pth").unlink()
    with pytest.raises(InputError, match=r"anchor 'b': checkpoint '.*b\.pth' does not exist"):
        create(config)
    stitchkit.create_snnet(config, checkpoints=False)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"mean": [0.1, 0.2]}, r"'mean' of images is \[0.1, 0.2\], which is not valid for images of 3 channels"),
        ({"interpolation": "foo"}, "recipe.interpolation: unknown value 'foo'; allowed: nearest, bilinear"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(recipe, message):
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(pico_config() | {"recipe": recipe})


def test_anchors_that_descend_are_reported(caplog):
    snnet([pico_anchor("b", 16), pico_anchor("a", 8)])
    assert "their parameters do not ascend: b " in caplog.text
    caplog.clear()
    snnet()
    assert "cheap" not in caplog.text


def test_the_order_of_planned_anchors_is_not_reported(caplog):
    """It is that of their FLOPs, which need not be that of their parameters."""
    recipe = make_recipe({"pretrained": False, "anchors": ["b", "a"]})
    config = StitchConfig.parse({"anchors": [pico_anchor("b", 16), pico_anchor("a", 8)]})
    create_network(recipe, config, None)
    assert "cheap" not in caplog.text


def test_classifiers_start_as_asked():
    heads = [anchor.head for anchor in snnet(head_init_bias=-2.0)[0].anchors]
    assert all((head.bias == -2).all() for head in heads)
    torch.manual_seed(0)
    plain = snnet()[0]
    torch.manual_seed(0)
    scaled = snnet(head_init_scale=0.5)[0]
    for one, half in zip(plain.anchors, scaled.anchors, strict=True):
        assert torch.equal(one.head.weight * 0.5, half.head.weight)
        assert torch.equal(one.blocks[0].attn.qkv.weight, half.blocks[0].attn.qkv.weight)


def test_both_classifiers_of_a_distilled_network():
    kwargs = {**pico_anchor("a", 8)["kwargs"]}
    recipe = make_recipe(
        {"model": "deit_tiny_distilled_patch16_224", "model_kwargs": kwargs, "pretrained": False, "head_init_bias": 3.0}
    )
    model = create_network(recipe, None, None)
    assert (model.head.bias == 3).all()
    assert (model.head_dist.bias == 3).all()


def test_batch_norms_as_asked():
    norms = [part for part in resnet(bn_momentum=0.37, bn_eps=0.02)[0].modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) > 8
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.37, 0.02)}
    assert {(norm.momentum, norm.eps) for norm in resnet()[0].modules() if isinstance(norm, nn.BatchNorm2d)} == {
        (0.1, 1e-5)
    }


def test_drop_block_reaches_convolutions_and_no_others():
    rates = {part.drop_prob for part in resnet(drop_block=0.3)[0].modules() if isinstance(part, DropBlock2d)}
    assert rates == {0.3}
    with pytest.raises(InputError, match="drop_block_rate"):
        snnet(drop_block=0.3)


def test_the_older_name_of_drop_path():
    model, _ = snnet(drop_connect=0.4)
    assert model.anchors[0].blocks[-1].drop_path1.drop_prob == pytest.approx(0.4)


def test_fast_norms_keep_low_precision():
    for fast in (True, False):
        model, _ = snnet([pico_anchor("a", 8, norm_layer="layernorm"), pico_anchor("b", 16)], fast_norm=fast)
        norms = [part for part in model.modules() if isinstance(part, LayerNorm)]
        assert norms
        with torch.autocast("cpu", torch.bfloat16):
            assert norms[0](torch.ones(2, 8)).dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(("splits", "parts"), [(0, 2), (3, 3)])
def test_each_split_has_batch_norms_of_its_own(splits, parts):
    model, recipe = resnet(split_bn=True, resplit=True, aug_splits=splits)
    names = set(model.state_dict())
    suit_training(model, recipe, ALONE)
    norms = [part for part in model.modules() if isinstance(part, SplitBatchNorm2d)]
    assert len(norms) > 8
    assert {norm.num_splits for norm in norms} == {parts}
    assert {name for name in model.state_dict() if ".aux_bn." not in name} == names
    x = torch.randn(2 * parts, 3, 32, 32)
    model.train()(x)
    assert not torch.equal(model.bn1.running_mean, model.bn1.aux_bn[0].running_mean)


def test_an_evaluation_has_no_further_batch_norms():
    model, recipe = resnet(split_bn=True, resplit=True, eval=True, resume="x")
    kind_of(recipe).suit(model, recipe, ALONE)
    assert not [part for part in model.modules() if isinstance(part, SplitBatchNorm2d)]


def test_batch_norms_of_vectors_cannot_be_split():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match="this network has BatchNorm1d; omit it"):
        suit_training(model, make_recipe({"split_bn": True, "resplit": True}), ALONE)


def test_synchronised_batch_norms_are_for_gpus():
    recipe = make_recipe({"sync_bn": True})
    with pytest.raises(InputError, match="--sync-bn needs GPUs, but the device is cpu; use --dist-bn reduce"):
        check_device(recipe, ALONE)
    check_device(recipe, World(0, 1, torch.device("cuda")))
    for world, expected in ((ALONE, False), (World(0, 2, torch.device("cpu")), True)):
        model = resnet(sync_bn=True)[0]
        suit_training(model, recipe, world)
        assert isinstance(model.bn1, nn.SyncBatchNorm) == expected
        assert not expected or not [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]


def test_precision_of_weights():
    model, recipe = snnet(model_dtype="bfloat16")
    place_network(model, recipe, ALONE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(pico_images().bfloat16(), 4).dtype == torch.bfloat16


class Backend:
    """A compiler that counts what it is given and runs it as it is."""

    def __init__(self):
        self.count = 0
        self.name = f"counting{id(self)}"
        register_backend(self, name=self.name)

    def __call__(self, graph, inputs, **options):
        self.count += 1
        self.options = options
        return graph.forward


@pytest.mark.full
@COMPILES
def test_routes_share_what_is_compiled():
    """Each block is compiled once for training and once for evaluation; no route compiles anything more."""
    backend = Backend()
    plain, model = pico_snnet(), pico_snnet()
    place_network(model, make_recipe({"stitch_config": "x", "torchcompile": backend.name}), ALONE)
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = pico_images()
    for train in (False, True):
        before = backend.count
        for cfg_id in model.space.ids:
            logits = model.train(train)(x, cfg_id)
            torch.testing.assert_close(logits, plain.train(train)(x, cfg_id))
            logits.sum().backward()
        assert 0 < backend.count - before <= 9


@COMPILES
@pytest.mark.parametrize(
    "family",
    mostly_full(["vit", "resnet", "NCHW, batch norm", "NLC, 5 prefix tokens"], quick=["vit"]),
)
def test_blocks_that_were_seen_once_are_compiled_for_all_stitches(family):
    """Training: the anchors show every block, then every stitch runs forward and backward."""
    backend, model = Backend(), family_snnet(family).train()
    place_network(model, make_recipe({"stitch_config": "x", "torchcompile": backend.name}), ALONE)
    x = pico_images(size=model.input_size[1])
    for cfg_id in range(len(model.views)):
        model(x, cfg_id).sum().backward()
    seen = backend.count
    assert seen > 0
    for cfg_id in model.space.ids:
        model(x, cfg_id).sum().backward()
    assert backend.count == seen


@pytest.mark.full
@COMPILES
def test_many_blocks_are_all_compiled():
    """Stochastic depth makes every block another one; torch's limit of eight is for one function."""
    backend = Backend()
    model, recipe = snnet(drop_path=0.2, torchcompile=backend.name)
    place_network(model, recipe, ALONE)
    for cfg_id in range(3):
        model.train()(pico_images(), cfg_id)
    assert backend.count == 9


@COMPILES
def test_a_compiled_network_can_be_taken_apart_and_measured():
    backend = Backend()
    plain, model = pico_snnet(), pico_snnet()
    place_network(model, make_recipe({"stitch_config": "x", "torchcompile": backend.name}), ALONE)
    network = model.extract(7)
    torch.testing.assert_close(network(pico_images()), plain(pico_images(), 7))
    assert backend.count == 0, "what is extracted is as it was before"
    with uncompiled(model):
        assert Profiler(model).cost(7) == Profiler(plain).cost(7)
        assert backend.count == 0
    model(pico_images(), 7)
    assert backend.count > 0, "and it is compiled again"


@COMPILES
def test_a_plain_model_is_compiled_whole():
    backend = Backend()
    model, recipe = resnet(torchcompile=backend.name)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    place_network(model, recipe, ALONE)
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert backend.count == 1
    assert model.state_dict().keys() == plain.keys()


def test_the_mode_of_the_compiler_is_handed_on(monkeypatch):
    seen = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: seen.append(options))
    place_network(pico_snnet(), make_recipe({"torchcompile": "inductor", "torchcompile_mode": "max-autotune"}), ALONE)
    assert seen == [{"backend": "inductor", "mode": "max-autotune"}] * 9


@pytest.mark.parametrize(("backend", "mode"), [("nonsense", None), ("inductor", "nonsense")])
def test_a_compiler_that_is_not_there_is_named(backend, mode):
    recipe = make_recipe({"torchcompile": backend, "torchcompile_mode": mode})
    with pytest.raises(InputError, match=r"nonsense.*list_backends"):
        place_network(pico_snnet(), recipe, ALONE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"interpolation": "bicubik"}, "interpolation: unknown value 'bicubik'; did you mean 'bicubic'"),
        ({"train_crop_mode": "foo"}, "train_crop_mode: unknown value 'foo'; allowed: rrc, rkrc, rkrr, src"),
        ({"mean": [0.1, 0.2]}, r"--mean is \[0.1, 0.2\]; set one value, or one for each of 3 channels"),
        ({"torchcompile": "nonsense"}, "cannot compile with backend 'nonsense'"),
    ],
)
def test_values_that_do_not_fit_are_found_before_the_data_are_opened(settings, said):
    with pytest.raises(InputError, match=said):
        check_names(make_recipe({"model": "resnet18", **settings}), None)


def rates(anchor):
    return [part.drop_prob for part in anchor.model.modules() if isinstance(part, DropPath)]


@pytest.mark.parametrize(
    "family", mostly_full(["vit", "swin", "NCHW, layer norm", "NLC, class token"], quick=["vit", "NLC, class token"])
)
def test_each_anchor_has_one_rate_of_drop_path_in_all_blocks(family):
    """timm's rate grows from 0 at the first block; in DeiT-3 and SN-Netv2 it is constant."""
    config = StitchConfig.parse(SPACES[family])
    given = [0.05, 0.4, 0.0][: len(config.anchors)]
    model = create_network(make_recipe({"pretrained": False, "anchor_drop_path": given}), config, None)
    plain = create_network(make_recipe({"pretrained": False}), config, None)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    x = pico_images(8, model.input_size[-1])
    for cfg_id, (rate, anchor) in enumerate(zip(given, model.views.values(), strict=True)):
        assert set(rates(anchor)) == {rate}
        assert len(rates(anchor)) >= sum(anchor.depths), "the first block too"
        assert torch.equal(model.eval()(x, cfg_id), plain.eval()(x, cfg_id))
    randomize(model)
    assert not torch.equal(model.train()(x, 1), model.eval()(x, 1)), "it drops paths when it trains"


def test_rates_of_drop_path_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"--anchor-drop-path is \[0.1\]; give one rate for each of ti, s, b"):
        snnet(anchor_drop_path=[0.1])
    resnets = [{"name": "torchvision/resnet18", "label": label} for label in "ab"]
    with pytest.raises(InputError, match="anchor 'b' has no drop path; set its rate in --anchor-drop-path to 0"):
        snnet(resnets, anchor_drop_path=[0.0, 0.1], img_size=32)


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path"])
def test_no_argument_of_a_created_model_names_its_weights(key):
    with pytest.raises(InputError, match=f"sets {key}; choose weights by checkpoint"):
        stitchkit.create_model("resnet10t", **{key: {"url": "https://host/x.pth"}})


@pytest.mark.parametrize("is_stitched", [True, False])
def test_a_border_that_patches_do_not_cover_is_said(is_stitched, caplog):
    """Patches of 14 pixels see 308 of 320, and classification lost the rest without a word."""
    if is_stitched:
        snnet(img_size=20)
    else:
        kwargs = pico_anchor("vit", 8)["kwargs"] | {"img_size": 20}
        create_network(
            make_recipe({"model": "vit_tiny_patch16_224", "pretrained": False, "model_kwargs": kwargs}), None, None
        )
    names = "ti, s, b see" if is_stitched else "vit_tiny_patch16_224 sees"
    message = (
        f"{names} whole patches of 8 x 8 pixels, and not the last 4 rows and 4 columns of images of 20 x 20; choose "
        "the size (--img-size) 16 x 16 or 24 x 24"
    )
    assert [text for text in caplog.messages if "patches" in text] == [message]
