"""Networks of parts: what they compute, what is found before anything is fetched, and what frozen parts keep."""

import copy
import hashlib

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import stitchkit.networks.create
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network, own_arguments
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.errors import InputError
from stitchkit.measure.profile import measure
from tests.jobs import JOBS, RESNET, VIT, adapter, resnet, swin, vit
from tests.support import mostly_full

SIZE = (3, 32, 32)


def spec(parts, head=None, **options):
    """The network of a job of these parts, checked as its file is."""
    train = {"dataset": "digits", "epochs": 1}
    return JobConfig.parse({"assembly": parts, "head": head, **options, "train_config": train}).network


def build(parts, head=None, *, num_classes=5, input_size=SIZE, pretrained=False, **options):
    torch.manual_seed(0)
    options = {"num_classes": num_classes, "input_size": input_size, "pretrained": pretrained}, options
    return build_network(spec(parts, head, **options[1]), **options[0])


def images(count=2, size=SIZE):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(0))


def digest(module):
    """A hash of all bytes of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


KINDS = ["CNN to ViT", "Swin to CNN, by a block", "network expanded", "own blocks"]


@pytest.mark.parametrize("job", mostly_full(JOBS, quick=KINDS))
def test_every_kind_of_job_builds_and_gives_logits_that_train_what_is_not_frozen(job):
    size = (3, 64, 64) if job == "network compressed" else SIZE
    network = build(JOBS[job], input_size=size)
    logits = network.train()(images(size=size))
    assert logits.shape in ((2, 5), (2, 1000))
    logits.sum().backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_conversions_are_those_of_the_formats_and_parts_are_pieces_of_the_models(tmp_path):
    """A ViT's map is its tokens and its class token side by side, resized to what the ResNet was trained for."""
    front = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    end = timm.create_model("resnet18", **RESNET).eval()
    paths = [str(tmp_path / name) for name in ("vit.pth", "resnet.pth")]
    for path, model in zip(paths, (front, end), strict=True):
        torch.save(model.state_dict(), path)
    parts = copy.deepcopy(JOBS["ViT to CNN"])
    parts[0]["Subnet"]["ckp_path"], parts[2]["Subnet"]["ckp_path"] = paths
    network = build(parts, pretrained=True).eval()
    with torch.no_grad():
        x = front.blocks[0](front.norm_pre(front.patch_drop(front._pos_embed(front.patch_embed(images())))))
        tokens, token = x[:, 1:].transpose(1, 2).reshape(2, 8, 4, 4), x[:, 0, :, None, None].expand(2, 8, 4, 4)
        x = network.parts[1](torch.cat([tokens, token], dim=1))
        x = F.interpolate(x, (8, 8), mode="bilinear", align_corners=False)
        expected = end.fc(end.global_pool(end.layer4(end.layer3(x))))
        assert torch.equal(network(images()), expected)


def test_defect_a_sequence_becomes_a_map_of_its_own_size():
    network = build([vit("x", "blocks.0", out_format="bert"), adapter(16, 4)], "ClassifierHead")
    seen = []
    network.parts[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(images())
    assert seen == [(2, 16, 4, 4)]  # not 16 x 16


def test_an_end_piece_runs_at_the_size_it_declares_or_at_that_which_comes():
    """Position embeddings are in the stem, so any number of tokens will do."""
    lengths = []
    for size in (["bert", 49], "bert"):
        network = build([resnet("x", "layer1"), vit("blocks.1", "head", in_format=size, out_format="vector")])
        network.parts[1].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        network(images())
    assert lengths == [50, 65]


def test_a_declared_size_holds_for_images_of_any_size():
    network = build([resnet("x", "layer1"), resnet("layer2", "layer4", in_format=["img", [8, 8]])], "ClassifierHead")
    sizes = []
    network.parts[1].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    for side in (32, 64):
        network(images(size=(3, side, side)))
    assert sizes == [(8, 8), (8, 8)]


@pytest.mark.parametrize(("name", "value"), [("zeros", 0.0), ("ones", 1.0), ("avg", None), ("mean", None), (None, 0.0)])
def test_the_class_token_is_what_reformat_options_say(name, value):
    parts = [resnet("x", "layer2"), adapter(16, 8), vit("blocks.1", "head", in_format="bert", out_format="vector")]
    network = build(parts, reformat_options={} if name is None else {"class_token": name})
    seen = []
    network.parts[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images())
    expected = seen[0][:, 1:].mean(1) if value is None else torch.full((2, 8), value)
    torch.testing.assert_close(seen[0][:, 0], expected)


def test_a_nested_assembly_may_have_its_own_class_token():
    inner = {"parts": [vit("blocks.1", "head", in_format="bert")], "reformat_options": {"class_token": "ones"}}
    network = build([resnet("x", "layer1"), {"Assembly": inner}], reformat_options={"class_token": "avg"})
    seen = []
    network.parts[1].parts[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images())
    assert torch.equal(seen[0][:, 0], torch.ones(2, 8))


def test_the_head_is_built_to_what_the_trunk_gives():
    network = build([resnet("x", "layer4")], {"ClassifierHead": {"pooled_size": [1, 1]}}, num_classes=7)
    assert network.head.linear.in_features == 32
    assert network(images()).shape == (2, 7)
    tokens = build([vit("x", "blocks.2", out_format="bert")], "ClassifierHead")
    assert tokens.head.linear.in_features == 16


def test_one_model_may_be_an_assembly_with_its_own_head():
    arguments = {"input_shape": list(SIZE), "parts": [resnet("x", "layer4")], "head": {"ClassifierHead": {}}}
    model = NetworkSpec((PartSpec.parse({"Assembly": arguments}, "model"),))
    network = build_network(model, num_classes=5, input_size=SIZE, pretrained=False)
    assert network(images()).shape == (2, 5)
    with pytest.raises(
        InputError, match=r"^model\.Assembly: input_shape is \[3, 32, 32\], but it gets img \[3, 64, 64\]"
    ):
        build_network(model, num_classes=5, input_size=(3, 64, 64), pretrained=False)


def test_submodules_have_names_and_can_be_listened_to():
    network = build(JOBS["CNN to ViT"])
    seen = []
    network.get_submodule("parts.0.net.layer1.0").register_forward_hook(lambda *_: seen.append("layer1.0"))
    network.get_submodule("parts.1").register_forward_hook(lambda _, __, y: seen.append(y.shape))
    network(images())
    assert seen == ["layer1.0", (2, 8, 4, 4)]
    assert {name.split(".")[0] for name in network.state_dict()} == {"parts"}


ONE = adapter(8, 4, kernel_size=1)
TWO = {"Assembly": {"parts": [adapter(8, 8), resnet("layer2", "layer2", in_format=["img", [8, 8, 8]])]}}


def parallel(*parts, **arguments):
    return {"ParallelPart": {"parts": list(parts), **arguments}}


def outputs(agg, parts, **arguments):
    """What parallel parts on a small stem give, and what each of them gives."""
    network = build([resnet("x", "layer1"), parallel(*parts, agg=agg, **arguments)], "ClassifierHead").eval()
    seen = []
    for part in (network.parts[1], *network.parts[1].parts):
        part.register_forward_hook(lambda _, __, y: seen.append(y))
    network(images())
    return seen[-1], seen[:-1]


def test_parallel_parts_are_resized_and_concatenated():
    for agg in ("concat", "concat_channels"):
        together, (one, two) = outputs(agg, [ONE, TWO], out_format=["img", [20, 8, 8]])
        assert two.shape == (2, 16, 4, 4)
        two = F.interpolate(two, (8, 8), mode="bilinear", align_corners=False)
        assert torch.equal(together, torch.cat([one, two], dim=1))


def test_parallel_parts_are_averaged():
    together, (one, two) = outputs("avg", [ONE, ONE], out_format=["img", [4, 8, 8]])
    torch.testing.assert_close(together, (one + two) / 2)
    assert not torch.equal(one, two)


def test_parallel_parts_of_several_formats_meet_in_one():
    block = {"SwinTransformerBlock": {"num_heads": 2, "window_size": 4}}
    together, (one, two) = outputs("concat", [block, ONE], out_format=["bhwc", [12, 8, 8]])
    assert torch.equal(together, torch.cat([one, two.permute(0, 2, 3, 1)], dim=-1))
    together, (one, two) = outputs("concat", [ONE, ONE])  # that of the first, where nothing is declared
    assert torch.equal(together, torch.cat([one, two], dim=1))


@pytest.mark.parametrize(("agg", "shape"), [("concat_channels", (2, 64, 8)), ("concat_sequence", (2, 128, 4))])
def test_parallel_parts_of_sequences(agg, shape):
    linear = {"SimpleAdapter": {"num_fc": 1, "in_channels": 8, "out_channels": 4}}
    formats = {"in_format": ["token", [8, 64]], "out_format": ["token", [shape[2], shape[1]]]}
    parts = [resnet("x", "layer1"), parallel(linear, linear, agg=agg, **formats)]
    parts += [{"VisionTransformerBlock": {"num_heads": 2, "in_format": ["token", [shape[2], shape[1]]]}}]
    network = build([*parts, {"Function": {"name": "mean", "dim": 1}}], num_classes=4)
    seen = []
    network.parts[1].register_forward_hook(lambda _, __, y: seen.append(y.shape))
    network(images())
    assert seen == [shape]


def test_several_heads_give_a_list_of_logits():
    heads = ["ClassifierHead", {"ClassifierHead": {"num_classes": 7, "pooled_size": 2}}]
    network = build([resnet("x", "layer2"), parallel(*heads, agg="none")])
    assert [logits.shape for logits in network(images())] == [(2, 5), (2, 7)]


def test_a_part_that_works_in_place_leaves_what_others_read():
    stem = resnet("x", "bn1")
    plain = {"Assembly": {"parts": [{"Function": {"name": "clone"}}]}}
    network = build([stem, parallel(resnet("act1", "act1"), plain, agg="concat")], "ClassifierHead").eval()
    seen = []
    for part in (network.parts[0], *network.parts[1].parts):
        part.register_forward_hook(lambda _, __, y: seen.append(y.clone()))
    network(images())
    assert torch.equal(seen[1], seen[0].relu())
    assert torch.equal(seen[2], seen[0])
    assert seen[0].min() < 0


ERRORS = {
    "argument of a convnet": (
        [{"Net": {"model_name": "convnet", "num_bloks": 2}}],
        r"assembly\[0\].Net: it cannot be built with its arguments: .*num_bloks",
    ),
    "classes of a convnet": (
        [{"Net": {"model_name": "convnet", "num_classes": 7}}],
        r"assembly\[0\].Net: num_classes is 7, but a convnet has no classifier",
    ),
    "unknown part": (
        [resnet("x", "layer1"), {"SimpleAdaptor": {}}],
        r"^assembly\[1\]\.SimpleAdaptor: unknown key .* 'SimpleAdapter'",
    ),
    "unknown argument": (
        [adapter(3, 8, kernel=3)],
        r"^assembly\[0\]\.SimpleAdapter\.kernel: unknown key 'kernel'; did you mean 'kernel_size'",
    ),
    "unknown model": ([{"Net": {"model_name": "resnet19"}}], r"^assembly\[0\]\.Net: unknown timm model 'resnet19'"),
    "unknown block": ([resnet("x", "layer7")], r"^assembly\[0\]\.Subnet: .*'layer7'; did you mean"),
    "unknown format": (
        [resnet("x", "fc", in_format="image")],
        r"^assembly\[0\]\.Subnet\.in_format: unknown format 'image'; did",
    ),
    "channels": (
        [resnet("x", "layer1"), adapter(40, 8)],
        r"^assembly\[1\]\.SimpleAdapter: it gets img \[8, 8, 8\], but accepts img \[40\]: .* has 8 channels",
    ),
    "declared channels": (
        [resnet("x", "layer1"), resnet("layer2", "fc", in_format=["img", [64, 8, 8]])],
        r"^assembly\[1\]\.Subnet: it gets img \[8, 8, 8\], but accepts img \[64, 8, 8\]",
    ),
    "channels of a piece": (
        [resnet("x", "layer2"), resnet("layer2", "fc")],
        r"^assembly\[1\]\.Subnet: it gets img \[16, 4, 4\] and fails on it in Conv2d\(8, 16, .*: .*; declare its "
        r"in_format, or insert a part before it, such as a SimpleAdapter$",
    ),
    "channels of a piece of another image size": (
        [resnet("x", "layer2"), adapter(16, 32), swin("layers.2", "head", in_format=["bhwc", [4, 4]])],
        r"^assembly\[2\]\.Subnet: it gets bhwc \[32, 4, 4\] and fails on it in LayerNorm\(\(64,\).*; declare",
    ),
    "axes of a piece": (
        [resnet("x", "layer2", out_format="img"), vit("blocks.1", "head")],
        r"^assembly\[1\]\.Subnet: it gets img \[16, 4, 4\] and .*; declare its in_format",
    ),
    "channels of a sequence": (
        [resnet("x", "layer2"), vit("blocks.1", "head", in_format="bert")],
        r"^assembly\[1\]\.Subnet: it gets bert \[16, 16\] and fails on it in LayerNorm\(\(8,\), .*; declare",
    ),
    "class token": (
        [vit("x", "blocks.0", out_format="bert"), adapter(8, 16)],
        r"^assembly\[1\]\.SimpleAdapter: .*its class token beside every position; img \[8\] takes 8",
    ),
    "no square": (
        [vit("x", "blocks.0", out_format="token"), adapter(8, 16)],
        r"^assembly\[1\]\.SimpleAdapter: .*token \[8, 17\] has 17 tokens, which is not a perfect square",
    ),
    "image size": (
        [{"Net": {"model_name": "vit_tiny_patch16_224"}}],
        r"^assembly\[0\]\.Net: it gets img \[3, 32, 32\], but its model takes images of \[224, 224\]; "
        r"set image_size in train_config\.data_preprocessing to \[224, 224\], or img_size in this part to \[32, 32\]$",
    ),
    "map for a ViT block": (
        [resnet("x", "layer1"), {"VisionTransformerBlock": {"num_heads": 2}}],
        r"^assembly\[1\]\.VisionTransformerBlock: it gets img \[8, 8, 8\], but accepts bert or token; declare",
    ),
    "map for linear layers": (
        [resnet("x", "layer1"), {"SimpleAdapter": {"num_fc": 1, "in_channels": 8, "out_channels": 8}}],
        r"^assembly\[1\]\.SimpleAdapter: it gets img \[8, 8, 8\], but accepts bhwc or token",
    ),
    "unknown source": (
        [vit("x", "blocks.0"), adapter(16, 8)],
        r"^assembly\[1\]\.SimpleAdapter: it gets a tensor \[17, 8\] of unknown format, .* of the part before",
    ),
    "wrong out_format": (
        [vit("x", "blocks.0", out_format="img")],
        r"^assembly\[0\]\.Subnet: it returns \[17, 8\], but out_format is img \[B, C, H, W\]",
    ),
    "wrong out channels": (
        [resnet("x", "layer1", out_format=["img", [16, 8, 8]])],
        r"^assembly\[0\]\.Subnet: it returns img \[8, 8, 8\], but out_format is img \[16, 8, 8\]",
    ),
    "concatenated channels": (
        [resnet("x", "layer1"), parallel(ONE, TWO, agg="concat", out_format=["img", [24, 8, 8]])],
        r"^assembly\[1\]\.ParallelPart: its parts return img \[4, 8, 8\], img \[16, 8, 8\], together img \[20, ",
    ),
    "concatenated sequences": (
        [
            vit("x", "blocks.0", out_format="bert"),
            parallel({"Function": {"name": "relu"}}, agg="concat_sequence", out_format=["token", [16, 99]]),
        ],
        r"together token \[16, 16\], but out_format is token \[16, 99\]",
    ),
    "averaged channels": (
        [resnet("x", "layer1"), parallel(ONE, TWO, agg="avg", out_format=["img", [4, 8, 8]])],
        r"^assembly\[1\]\.ParallelPart: .* avg needs the same number of channels from all",
    ),
    "sizes": (
        [resnet("x", "layer1"), parallel(ONE, TWO, agg="concat")],
        r"^assembly\[1\]\.ParallelPart: .* of different sizes; declare a size in out_format",
    ),
    "aggregation": (
        [parallel("ClassifierHead", agg="mean")],
        r"^assembly\[0\]\.ParallelPart\.agg: unknown value 'mean'",
    ),
    "no parts": (
        [{"Assembly": {"parts": []}}],
        r"^assembly\[0\]\.Assembly\.parts is \[\]; its length must be at least 1",
    ),
    "nested": (
        [resnet("x", "layer1"), parallel(ONE, {"Assembly": {"parts": [adapter(8, 8), adapter(9, 8)]}}, agg="avg")],
        r"^assembly\[1\]\.ParallelPart\.parts\[1\]\.Assembly\.parts\[1\]\.SimpleAdapter: it gets img \[8, 8, 8\], but",
    ),
    "nested head": (
        [{"Assembly": {"parts": [resnet("x", "layer1")], "head": {"ClassifierHed": {}}}}],
        r"^assembly\[0\]\.Assembly\.head\.ClassifierHed: unknown key 'ClassifierHed'; did you mean 'ClassifierHead'",
    ),
    "several outputs": (
        [resnet("x", ["layer1", "layer2"]), adapter(8, 8)],
        r"^assembly\[1\]\.SimpleAdapter: it gets 2 tensors instead of one",
    ),
    "wrong type": ([adapter("three", 8)], r"^assembly\[0\]\.SimpleAdapter\.in_channels is 'three'; it must be a whole"),
    "wrong range": ([adapter(3, 8, num_fc=1)], r"^assembly\[0\]\.SimpleAdapter: num_fc is 1 and num_conv 1"),
    "options": (
        [adapter(3, 8)],
        r"^reformat_options.class_token: unknown value 'median'",
        {"reformat_options": {"class_token": "median"}},
    ),
    "key of options": ([adapter(3, 8)], r"did you mean 'class_token'", {"reformat_options": {"classtoken": "avg"}}),
    "missing file": (
        [resnet("x", "layer1", ckp_path="nowhere.pth")],
        r"^assembly\[0\]\.Subnet: ckp_path 'nowhere.pth' is not a file",
    ),
    "no logits": ([resnet("x", "layer1")], r"the last part returns \[8, 8, 8\], not a vector of logits; add `head"),
    "too few logits": (
        [resnet("x", "layer1"), {"ClassifierHead": {"num_classes": 4}}],
        r"the network has 4 logits, but the data have 5 classes",
    ),
}


def test_an_unknown_part_of_a_network_built_in_python():
    with pytest.raises(InputError, match=r"^part: unknown part 'ClassifierHed'; did you mean 'ClassifierHead'"):
        build_network(NetworkSpec((PartSpec("ClassifierHed"),)), num_classes=2)


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_are_found_before_anything_is_fetched_and_named_by_their_place(case, monkeypatch):
    parts, message, *options = ERRORS[case]
    fetched = []
    backends = {
        name: lambda *args, make=make, **kwargs: fetched.append(kwargs["pretrained"]) or make(*args, **kwargs)
        for name, make in stitchkit.networks.create.LIBRARIES.items()
    }
    monkeypatch.setattr(stitchkit.networks.create, "LIBRARIES", backends)
    with pytest.raises(InputError, match=message) as error:
        build(parts, pretrained=True, **(options[0] if options else {}))
    assert not any(fetched)
    assert "\n" not in str(error.value)


def test_weights_are_fetched_only_where_a_part_is_pretrained_and_all_fits(monkeypatch):
    calls = []

    def make(name, *, pretrained, checkpoint, **arguments):
        calls.append((name, pretrained, torch.get_default_device().type))
        return timm.create_model(name, **{key: value for key, value in arguments.items() if value is not None})

    monkeypatch.setitem(stitchkit.networks.create.LIBRARIES, "timm", make)
    parts = [resnet("x", "layer2"), adapter(16, 8), vit("blocks.1", "head", in_format="bert", pretrained=False)]
    build(parts, pretrained=True)
    names = ("resnet18", "vit_tiny_patch16_224")
    assert calls == [*((name, False, "meta") for name in names), (names[0], True, "cpu"), (names[1], False, "cpu")]


def test_a_convnet_has_no_published_weights_and_takes_no_classes_from_the_data():
    convnet = {"Net": {"model_name": "convnet", "pretrained": True, "out_format": "img"}}
    assert build([convnet], "ClassifierHead", pretrained=True)(images()).shape == (2, 5)
    assert not own_arguments(PartSpec.parse(convnet, "model"), pretrained=True, replaced=False)["pretrained"]


def test_files_of_weights_are_not_asked_for_where_none_are_loaded():
    """A job that is resumed has its weights from its own checkpoint."""
    parts = spec([resnet("x", "layer4", ckp_path="nowhere.pth")], "ClassifierHead")
    assert build_network(parts, num_classes=5, input_size=SIZE, replaced=True)(images()).shape == (2, 5)
    with pytest.raises(InputError, match=r"ckp_path 'nowhere\.pth' is not a file"):
        build_network(parts, num_classes=5, input_size=SIZE, pretrained=False)


def train(network, steps=3):
    """Some steps of training on random images."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    network.train()
    for step in range(steps):
        labels = torch.arange(4) % 5
        optimizer.zero_grad()
        F.cross_entropy(network(images(4) + step), labels).backward()
        optimizer.step()


FROZEN = [
    resnet("x", "layer2", frozen="statistics"),
    adapter(16, 8, frozen=False),
    vit("blocks.1", "blocks.1", in_format="bert", out_format="bert", frozen="statistics", drop_path_rate=0.9),
    {"Assembly": {"parts": [adapter(16, 8)], "frozen": "statistics"}},
]


def test_parts_with_frozen_statistics_keep_every_byte_and_the_others_do_not():
    network = build(FROZEN, "ClassifierHead")
    before = [digest(part) for part in (*network.parts, network.head)]
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.parts[0].modules())
    train(network)
    after = [digest(part) for part in (*network.parts, network.head)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, True, False]
    assert [part.training for part in network.parts] == [False, True, False, False]


def test_batch_norms_of_frozen_parts_learn_statistics_as_published():
    inner = {"Assembly": {"parts": [adapter(16, 16, frozen="statistics")], "frozen": True}}
    network = build([resnet("x", "layer2", frozen=True), inner], "ClassifierHead")
    before = copy.deepcopy(network.state_dict())
    train(network)
    same = {name: torch.equal(value, before[name]) for name, value in network.state_dict().items()}
    statistics = {name for name, _ in network.named_buffers()}
    assert {name for name in same if not same[name]} == {
        *(name for name in statistics if name.startswith("parts.0.")),
        *(name for name in same if name.startswith("head.")),
    }
    assert len(statistics) > 12


def test_unfrozen_trains_all_parts_and_starts_from_the_weights_of_a_frozen_job():
    frozen = build(FROZEN, "ClassifierHead")
    train(frozen)
    network = build(FROZEN, "ClassifierHead", unfrozen=True)
    network.load_state_dict(frozen.state_dict())
    assert torch.equal(network.eval()(images()), frozen.eval()(images()))
    assert all(parameter.requires_grad for parameter in network.parameters())
    before = [digest(part) for part in network.parts]
    train(network)
    assert not set(before) & {digest(part) for part in network.parts}


def test_a_copy_of_a_network_is_a_network_of_its_own():
    """As moving averages of weights need it."""
    network = build(FROZEN, "ClassifierHead")
    twin = copy.deepcopy(network)
    assert torch.equal(twin.eval()(images()), network.eval()(images()))
    train(twin)
    assert not torch.equal(twin.eval()(images()), network.eval()(images()))
    assert not twin.parts[0].training


def test_building_runs_no_part_on_its_weights():
    network = build(JOBS["block replaced"])
    assert {int(norm.num_batches_tracked) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)} == {0}
    assert network.training
    assert network.parts[1].training


def test_a_published_part_may_be_verbose():
    assert build([{"Net": {"model_name": "resnet18", "verbose": True, **RESNET}}])


def test_a_frozen_model_keeps_its_classifier_and_another_gets_one_for_the_data():
    net = {"model_name": "resnet18", **RESNET}
    assert build([{"Net": net}])(images()).shape == (2, 5)
    assert build([{"Net": {**net, "num_classes": 9}}])(images()).shape == (2, 9)
    assert build([{"Net": {**net, "frozen": True}}])(images()).shape == (2, 1000)


@pytest.mark.parametrize("agg", ["avg", "concat", "none"])
def test_parallel_parts_can_be_traced_so_that_a_job_can_count_their_flops(agg):
    branches = {"ParallelPart": {"parts": [adapter(16, 4), adapter(16, 4, kernel_size=1)], "agg": agg}}
    after = [] if agg == "none" else [adapter(8 if agg == "concat" else 4, 4)]
    parts = [resnet("x", "layer2"), branches, *after]
    if agg == "none":
        parts[1]["ParallelPart"]["parts"] = [
            {"Assembly": {"parts": [part, "ClassifierHead"]}} for part in (adapter(16, 4),) * 2
        ]
    network = build(parts, None if agg == "none" else "ClassifierHead")
    assert measure(network, torch.zeros(1, *SIZE)).flops > 0


def test_a_network_of_more_classes_than_the_data_is_reported(caplog):
    build([resnet("x", "fc", out_format="vector")])
    assert "has 1000 logits, but the data have 5 classes" in caplog.text
