"""Parts alone: what each gives, where its weights come from, and what frozen means."""

import inspect
import re

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from stitchkit.assembly.parts.adapters import SwinTransformerBlock
from stitchkit.assembly.parts.flow import PassingTensor
from stitchkit.assembly.parts.network import combined
from stitchkit.assembly.parts.part import BaseBlock, ClassifierHead, Function, combine
from stitchkit.assembly.parts.pretrained import Subnet, WholeNetwork
from stitchkit.assembly.parts.registry import PARTS, PartFile
from stitchkit.errors import InputError
from stitchkit.networks.create import load_model
from stitchkit.networks.layout import NAMES
from stitchkit.settings.schema import parse

PICO = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet(**arguments):
    torch.manual_seed(0)
    return timm.create_model("resnet18", **PICO, **arguments).eval()


def saved(model, path, prefix=""):
    """A checkpoint of a model, with all names behind a prefix."""
    torch.save({"state_dict": {prefix + name: value for name, value in model.state_dict().items()}}, path)
    return str(path)


def saved_weights(content, path):
    """A file with a content."""
    torch.save(content, path)
    return str(path)


def check(value):
    """Check a part as the reader of files does."""
    parse(PartFile, value, "head")


def test_all_published_parts_are_found_by_name():
    published = (
        "Subnet Net ClassifierHead BaseBlock Function Assembly ParallelPart SimpleAdapter ResNetBasicBlock "
        "ResNetBottleneck VisionTransformerBlock SwinTransformerBlock"
    )
    ours = {"SegmentationHead", "DepthHead"}
    assert sorted(PARTS) == sorted({*published.split(), *ours})


def test_models_are_pretrained_and_from_timm_by_default():
    for part in (Subnet, WholeNetwork):
        defaults = {name: p.default for name, p in inspect.signature(part).parameters.items()}
        assert defaults["backend"] == "timm"
        assert defaults["pretrained"] is True
        assert defaults["ckp_path"] is None
    assert inspect.signature(ClassifierHead).parameters["pooled_size"].default == (1, 1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SimpleAdapter", {"in_channels": 4, "out_chanels": 4}, "out_chanels'; did you mean 'out_channels'"),
        ("SimpleAdapter", {"in_channels": 4}, "out_channels is missing"),
        ("SimpleAdapter", {"in_channels": "4", "out_channels": 4}, "in_channels is '4'; it must be a whole number"),
        ("SimpleAdapter", {"in_channels": 4, "out_channels": True}, "out_channels is True; it must be a whole number"),
        (
            "ResNetBasicBlock",
            {"in_channels": 4, "out_channels": 4, "norm_type": "batch"},
            "unknown value 'batch'; allowed: bn, gn",
        ),
        ("BaseBlock", {}, "channels is missing"),
        ("ClassifierHead", {"in_channels": None}, "in_channels is None; it must be a whole number"),
        ("Assembly", {"part": []}, "unknown key 'part'; did you mean 'parts'"),
        ("Assembly", {"parts": []}, "parts is []; its length must be at least 1"),
        ("Assembly", {"parts": [{"Subnet": {"model_name": 18}}]}, "parts[0].Subnet.model_name is 18"),
        ("ParallelPart", {"agg": "avg"}, "parts is missing"),
        ("Subnet", {"model_name": "resnet18", "block_ouput": "fc"}, "did you mean 'block_output'"),
        ("Subnet", {"block_output": "fc"}, "model_name is missing"),
        ("Subnet", {"model_name": "resnet18", "block_input": ["x", "fc"]}, "its length must be at most 1"),
        ("SwinTransformerBlock", {"num_heads": 2, "window_size": [7, 0]}, "window_size[1] is 0; it must be at least 1"),
        ("Subnet", {"model_name": "resnet18", "ckp_path": "pipe:ls"}, "ckp_path is 'pipe:ls', which begins with"),
        ("Net", {"model_name": "resnet18", "frozen": "yes"}, "unknown value 'yes'; allowed: statistics, true or false"),
        ("Net", {"model_name": "resnet18", "in_format": ["img", 3]}, "in_format: size 3 does not suit img"),
        ("Function", "relu", "is 'relu'; it must be settings by name"),
    ],
)
def test_arguments_are_checked_by_the_schema_of_a_part(name, arguments, message):
    with pytest.raises(InputError, match=rf"^head\.{name}\b.*{re.escape(message)}"):
        check({name: arguments})


@pytest.mark.parametrize("value", [{}, 3, None, [], {"Net": {}, "Subnet": {}}])
def test_what_is_no_part_is_refused(value):
    with pytest.raises(InputError, match="is not a part; write one class name with its arguments"):
        check(value)


def test_models_take_further_arguments_and_every_part_the_common_ones():
    common = {"frozen": True, "in_format": "img", "out_format": ["img", [3, 8, 8]]}
    check({"Subnet": {"model_name": "resnet18", "drop_path_rate": 0.1, "img_size": 64, **common}})
    check({"ClassifierHead": common})
    check({"ClassifierHead": None})
    check("ClassifierHead")
    check({"Assembly": {"parts": ["ClassifierHead"], "head": None, "input_shape": [3, 224, 224], **common}})


@pytest.mark.parametrize("size", [1, (1, 1), 2, [2, 3]])
def test_a_classifier_head_pools_and_classifies(size):
    head = ClassifierHead(num_classes=5, in_channels=4, pooled_size=size)
    x = torch.rand(2, 4, 6, 6)
    assert head(x).shape == (2, 5)
    height, width = (size, size) if isinstance(size, int) else size
    assert head.linear.in_features == 4 * height * width
    pooled = x.unfold(2, 6 // height, 6 // height).unfold(3, 6 // width, 6 // width).mean((-1, -2)).flatten(1)
    torch.testing.assert_close(head(x), head.linear(pooled))


def test_a_base_block_is_the_stem_of_a_resnet():
    block = BaseBlock(channels=8, in_channels=3).eval()
    x = F.conv2d(IMAGES, block.conv.weight, stride=2, padding=3)
    x = F.batch_norm(x, torch.zeros(8), torch.ones(8)).relu()
    torch.testing.assert_close(block(IMAGES), F.max_pool2d(x, 3, stride=2, padding=1))
    assert block(IMAGES).shape == (2, 8, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "relu"}, lambda x: x.relu()),
        ({"name": "torch.nn.functional.leaky_relu", "negative_slope": 0.3}, lambda x: torch.where(x > 0, x, 0.3 * x)),
        ({"name": "torch.flatten", "start_dim": 1}, lambda x: x.reshape(len(x), -1)),
        ({"name": "mean", "dim": [2, 3]}, lambda x: x.mean((2, 3))),
        ({"name": "view", "size": [2, 48]}, lambda x: x.reshape(2, 48)),
        ({"name": "max_pool2d", "kernel_size": 2}, lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))),
        ({"name": "gelu"}, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ({"name": "double"}, lambda x: x.to(torch.float64)),
    ],
)
def test_a_function_is_one_of_torch(arguments, expected):
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Function(**arguments)(x), expected(x))


def test_functions_that_depend_on_the_mode_follow_it():
    dropout, x = Function(name="dropout", p=0.5), torch.ones(1, 1000)
    assert torch.equal(dropout.eval()(x), x)
    assert set(dropout.train()(x).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", ["reluu", "torch.save", "torch.hub.load", "os.system", "__class__", "math", ""])
def test_a_function_of_elsewhere_is_refused(name):
    with pytest.raises(InputError, match=f"unknown function '{name}'"):
        Function(name=name)


@pytest.mark.parametrize(
    "name",
    ["importlib", "Callable", "numpy", "tolist", "backward", "boolean_dispatch", "handle_torch_function", "item"],
)
def test_a_function_that_gives_no_tensor_is_refused_and_not_proposed(name):
    with pytest.raises(InputError, match=f"unknown function '{name}'") as error:
        Function(name=name)
    assert f"did you mean '{name}'" not in str(error.value)


def test_several_outputs_are_averaged_or_concatenated():
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(combine([a, b], "avg", NAMES["img"]), (a + b) / 2)
    for name in ("concat", "concat_channels"):
        assert torch.equal(combine([a, b], name, NAMES["img"]), torch.cat([a, b], dim=1))
        assert torch.equal(combine([a, b], name, NAMES["bhwc"]), torch.cat([a, b], dim=3))
    x, y = torch.rand(2, 5, 3), torch.rand(2, 7, 3)
    assert torch.equal(combine([x, y], "concat_sequence", NAMES["token"]), torch.cat([x, y], dim=1))
    assert combine([x, x], "concat", NAMES["token"]).shape == (2, 5, 6)


@pytest.mark.parametrize(
    ("agg", "kind", "shapes", "message"),
    [
        ("avg", "img", [(2, 3, 4, 4), (2, 3, 2, 2)], r"img \[3, 4, 4\], img \[3, 2, 2\], of different sizes"),
        ("concat", "img", [(2, 3, 4, 4), (2, 5, 2, 2)], "of different sizes; declare a size in out_format"),
        ("avg", "img", [(2, 3, 4, 4), (2, 5, 4, 4)], "avg needs the same number of channels from all"),
        ("concat_sequence", "token", [(2, 4, 3), (2, 4, 5)], "concat_sequence needs the same number"),
        ("concat_sequence", "bert", [(2, 5, 3), (2, 5, 3)], "concat_sequence joins sequences, not bert"),
    ],
)
def test_outputs_that_do_not_fit_together_are_an_error(agg, kind, shapes, message):
    with pytest.raises(InputError, match=message):
        combined([PassingTensor(torch.rand(shape), NAMES[kind]) for shape in shapes], agg, NAMES[kind])


def test_published_spellings_of_a_block_and_of_a_window():
    written = {"Subnet": {"model_name": "resnet18", "block_input": ["layer3"], "block_output": "layer3", **PICO}}
    check(written)
    check({"SwinTransformerBlock": {"num_heads": 2, "window_size": [7, 7]}})
    assert Subnet(**written["Subnet"], pretrained=False)(torch.rand(2, 16, 4, 4)).shape == (2, 16, 2, 2)
    arguments = {"num_heads": 2, "embed_dim": 8, "do_shift": True}
    one, two = (SwinTransformerBlock(**arguments, window_size=size).eval() for size in (4, [4, 4]))
    two.load_state_dict(one.state_dict())
    x = torch.rand(1, 8, 8, 8)
    assert torch.equal(one(x), two(x))


def test_a_piece_has_the_weights_of_its_checkpoint(tmp_path):
    model = resnet()
    path = saved(model, tmp_path / "resnet.pth")
    front = Subnet(model_name="resnet18", block_output="layer2", ckp_path=path, **PICO).eval()
    back = Subnet(model_name="resnet18", block_input="layer3", block_output="fc", ckp_path=path, **PICO).eval()
    assert torch.equal(back(front(IMAGES)), model(IMAGES))
    assert torch.equal(WholeNetwork(model_name="resnet18", ckp_path=path, **PICO).eval()(IMAGES), model(IMAGES))
    names = {name.removeprefix("net.") for name, _ in front.named_parameters()}
    assert names == {
        name for name, _ in model.named_parameters() if name.startswith(("conv1", "bn1", "layer1", "layer2"))
    }


def test_several_outputs_of_a_piece_can_be_asked_for(tmp_path):
    model = resnet()
    path = saved(model, tmp_path / "resnet.pth")
    piece = Subnet(model_name="resnet18", block_output=["layer1", "layer2"], ckp_path=path, **PICO).eval()
    first, second = piece(IMAGES)
    assert first.shape == (2, 8, 8, 8)
    assert torch.equal(model.layer2(first), second)


def test_a_linear_layer_goes_by_the_published_name_of_its_function():
    arguments = {"model_name": "mobilenetv3_small_050", "block_input": "conv_head", "pretrained": False}
    ours, theirs = (Subnet(**arguments, block_output=name) for name in ("classifier", "classifier.linear"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, ours.net.state_dict()["conv_head.weight"].shape[1], 1, 1)
    assert torch.equal(theirs.eval()(x), ours.eval()(x))


def test_the_checkpoint_of_a_job_that_trained_a_whole_model_gives_pieces(tmp_path):
    model = resnet(num_classes=7)
    path = saved(model, tmp_path / "job.pth", prefix="parts.0.net.")
    piece = Subnet(model_name="resnet18", block_input="layer2", block_output="layer3", ckp_path=path, **PICO).eval()
    x = torch.rand(2, 8, 8, 8)
    assert torch.equal(piece(x), model.layer3(model.layer2(x)))
    net = WholeNetwork(model_name="resnet18", ckp_path=path, num_classes=7, **PICO).eval()
    assert torch.equal(net(IMAGES), model(IMAGES))


def test_a_classifier_of_another_number_of_classes_is_reinitialised(tmp_path):
    ours = saved(resnet(num_classes=7), tmp_path / "timm.pth")
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    theirs = saved(model, tmp_path / "torchvision.pth")
    assert WholeNetwork(model_name="resnet18", ckp_path=ours, num_classes=4, **PICO)(IMAGES).shape == (2, 4)
    net = WholeNetwork(model_name="mobilenet_v3_small", backend="pytorch", ckp_path=theirs, num_classes=4).eval()
    assert net(IMAGES).shape == (2, 4)
    assert torch.equal(net.net.features(IMAGES), model.features(IMAGES))
    kept = WholeNetwork(model_name="mobilenet_v3_small", backend="pytorch", ckp_path=theirs).eval()
    assert torch.equal(kept(IMAGES), model(IMAGES))


@pytest.mark.parametrize("backend", ["pytorch", "torchvision"])
def test_pieces_of_torchvision_models_are_the_models(backend, tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small().eval()
    arguments = {"model_name": "mobilenet_v3_small", "backend": backend}
    path = saved(model, tmp_path / "mobilenet.pth")
    front = Subnet(**arguments, block_output="features.4", ckp_path=path).eval()
    back = Subnet(**arguments, block_input="features.5", block_output="classifier", ckp_path=path).eval()
    assert torch.equal(back(front(IMAGES)), model(IMAGES))
    assert load_model("squeezenet1_0", backend=backend, pretrained=False).classifier  # it has no linear layer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "resnet17"}, "unknown timm model 'resnet17'"),
        ({"model_name": "swim_t", "backend": "pytorch"}, "unknown torchvision model 'swim_t'; did you mean 'swin_t'"),
        ({"model_name": "fcn_resnet50", "backend": "pytorch"}, "unknown torchvision model 'fcn_resnet50'"),
        ({"model_name": "retinanet_resnet50_fpn", "backend": "torchvision"}, "unknown torchvision model 'retinanet"),
        ({"model_name": "resnet18", "backend": "torch"}, "unknown backend 'torch'; did you mean 'pytorch'"),
        ({"model_name": "resnet18", "size": 3}, "unknown resnet18 argument 'size'"),
        (
            {"model_name": "resnet18", "block_input": ["x"]},
            r"block_input is \['x'\], but Net is a whole model; use Subnet for a slice of it",
        ),
        ({"model_name": "resnet18", "backend": "pytorch", "size": 3}, "unknown torchvision/resnet18 argument 'size'"),
        ({"model_name": "resnet18", "ckp_path": "nowhere.pth"}, "checkpoint 'nowhere.pth' does not exist"),
    ],
)
def test_models_that_cannot_be_loaded_say_why(arguments, message):
    with pytest.raises(InputError, match=message):
        WholeNetwork(**{"pretrained": False, **arguments})


def test_a_checkpoint_of_another_model_or_with_code_in_it_is_refused(tmp_path):
    other = saved(timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[8, 16, 16, 24]), tmp_path / "other.pth")
    with pytest.raises(InputError, match="belongs to another configuration"):
        Subnet(model_name="resnet18", block_output="layer2", ckp_path=other, **PICO)
    torch.save(resnet(), tmp_path / "pickled.pth")
    with pytest.raises(InputError, match="refused"):
        Subnet(model_name="resnet18", block_output="layer2", ckp_path=str(tmp_path / "pickled.pth"), **PICO)


def test_a_part_with_frozen_statistics_stays_in_evaluation_mode_and_others_do_not():
    frozen, free = BaseBlock(channels=8, in_channels=3), BaseBlock(channels=8, in_channels=3)
    frozen.freeze(statistics=True)
    both = nn.Sequential(frozen, free)
    for module in (both, frozen):
        module.train()
        assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in free.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = frozen.norm.running_mean.clone()
    frozen(IMAGES)
    assert torch.equal(frozen.norm.running_mean, before)


# Names of weights of the published ConvNet(num_blocks=2, num_filters=[4, 6], num_conv_per_block=[1, 2]).
CONVNET = {
    "encoder.block1.conv0.weight": (4, 3, 3, 3), "encoder.block1.conv0.bias": (4,),
    "encoder.block1.norm0.weight": (4,), "encoder.block1.norm0.bias": (4,),
    "encoder.block2.conv0.weight": (6, 4, 3, 3), "encoder.block2.conv0.bias": (6,),
    "encoder.block2.norm0.weight": (6,), "encoder.block2.norm0.bias": (6,),
    "encoder.block2.conv1.weight": (6, 6, 3, 3), "encoder.block2.conv1.bias": (6,),
    "encoder.block2.norm1.weight": (6,), "encoder.block2.norm1.bias": (6,),
}  # fmt: skip
SMALL = {"model_name": "convnet", "num_blocks": 2, "num_filters": [4, 6], "num_conv_per_block": [1, 2]}


def test_a_convnet_has_the_published_weights_and_can_be_cut(tmp_path):
    torch.manual_seed(0)
    weights = {name: torch.rand(shape) for name, shape in CONVNET.items()}
    path = saved_weights({"model": weights}, tmp_path / "plain.pth")
    job = {"model": {f"parts.0.net.{name}": value for name, value in weights.items()}}
    job["model"]["head.linear.weight"] = torch.rand(5, 6)
    whole = WholeNetwork(**SMALL, ckp_path=path).eval()
    assert dict(whole.net.state_dict()).keys() == CONVNET.keys()
    features = whole(IMAGES)
    assert features.shape == (len(IMAGES), 6, IMAGES.shape[2] // 4, IMAGES.shape[3] // 4)
    for file in (path, saved_weights(job, tmp_path / "job.pth")):
        first = Subnet(**SMALL, block_input="x", block_output="encoder.block1.pool", ckp_path=file).eval()
        last = Subnet(**SMALL, block_input="encoder.block2", block_output="encoder.block2", ckp_path=file).eval()
        assert torch.equal(last(first(IMAGES)), features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; it must be at least 1"),
        ({"kernel_size": [3, 3, 3]}, "kernel_size has 3 values for 2 blocks"),
        ({"norm_type": "bm"}, "unknown norm_type 'bm'; did you mean 'bn'"),
        ({"num_classes": 7}, "num_classes is 7, but a convnet has no classifier; remove it and add a head"),
        ({"backend": "satlas"}, "backend 'satlas' is not available here; .* set backend: torchvision"),
    ],
)
def test_a_convnet_that_cannot_be_built_says_why(arguments, message):
    with pytest.raises(InputError, match=message):
        WholeNetwork(**{"model_name": "convnet", "num_blocks": 2, **arguments})


def test_a_convnet_of_one_block_pairs_and_no_pooling():
    (encoder,) = WholeNetwork(model_name="convnet", num_blocks=1, norm_type="gn", pool_size=0).net.children()
    assert [name for name, _ in encoder.named_children()] == ["conv0", "norm0", "relu0"]
    wide = WholeNetwork(
        model_name="convnet", num_blocks=2, kernel_size=[1, 3], padding=[[0, 1], [0, 1]], norm_type=None
    )
    assert wide(torch.rand(1, 3, 32, 32)).shape == (1, 64, 8, 8)
