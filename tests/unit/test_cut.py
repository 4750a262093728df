"""Pieces of a model: what they give, what they hold, and what is refused."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.cut.trace import trace
from stitchkit.networks.families import steps_of
from stitchkit.networks.steps import Steps
from tests.support import pico_images, randomize


def cut(model, *, block_input=None, block_output=None):
    return steps_of(model).between(block_input, block_output)


def randomized(model):
    torch.manual_seed(0)
    randomize(model)
    return model.eval()


@pytest.fixture
def resnet():
    return randomized(timm.create_model("resnet18", layers=(1, 2, 2, 1), channels=(8, 16, 16, 32), num_classes=4))


@pytest.fixture
def vit():
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 4}
    rates = {"drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.5}
    return randomized(timm.create_model("vit_tiny_patch16_224", **size, **rates))


class Blocks(nn.Module):
    """Blocks with whatever a forward may do."""

    def __init__(self, **blocks):
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.scale = nn.Parameter(torch.full((4,), 2.0))


class Dropping(Blocks):
    def forward(self, x):
        x = self.first(x) * self.scale
        x = nn.functional.dropout(x, 0.5, self.training)
        return self.last(x + self.shift) if self.training else self.last(x)


class Forked(Blocks):
    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        left, right = self.left(x), self.right(x)
        return self.last(left + right)


class Constant(Blocks):
    def forward(self, x):
        return self.last(self.first(x) + torch.arange(4.0))


class Twice(Blocks):
    def forward(self, x):
        return self.block(self.block(x))


class Unrolled(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class InPlace(Blocks):
    def forward(self, x):
        x = self.first(x)
        x.mul_(2)
        return self.last(x)


class Counting(nn.Module):
    """Keeps what it sees, as LeViT's attention does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen = {}

    def forward(self, x):
        self.seen["x"] = x
        return self.layer(x)


def linears(*names):
    torch.manual_seed(0)
    return {name: nn.Linear(4, 4) for name in names}


def rejoin(model, x, *places):
    for begin, end in places:
        x = cut(model, block_input=begin, block_output=end)(x)
    return x


@pytest.mark.parametrize(
    "places",
    [
        [(None, "layer1"), ("layer2", "layer3.0"), ("layer3.1", None)],
        [("x", "maxpool"), ("layer1", "layer1"), ("layer2.0", None)],
        [(None, "layer2.0"), ("layer2.1", "layer2.1"), ("layer3", "fc")],
        [(None, "layer2.0.add"), ("layer2.0.act2", "layer4"), ("global_pool", "global_pool"), ("fc", None)],
    ],
)
def test_pieces_of_a_resnet_rejoin_exactly(resnet, places):
    x = pico_images(size=64)
    assert torch.equal(rejoin(resnet, x, *places), resnet(x))


def test_a_piece_gives_what_the_model_has_at_the_node(resnet):
    seen = {}
    for name in ("layer1", "layer3.0"):
        resnet.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    x = pico_images(size=64)
    resnet(x)
    assert torch.equal(cut(resnet, block_output="layer3.0")(x), seen["layer3.0"])
    middle = cut(resnet, block_input="layer2", block_output="layer3.0")
    assert torch.equal(middle(seen["layer1"]), seen["layer3.0"])


def test_the_stem_of_a_vit_has_its_class_token_and_positions(vit):
    x = pico_images()
    stem = cut(vit, block_output="blocks.1")
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(stem.state_dict())
    assert stem(x).shape == (2, 5, 32)
    end = cut(vit, block_input="blocks.2")
    assert torch.equal(end(stem(x)), vit(x))
    assert not {"cls_token", "pos_embed"} & set(end.state_dict())


def test_a_vit_can_be_cut_inside_a_block(vit):
    x = pico_images()
    whole = rejoin(vit, x, (None, "blocks.1.add"), ("blocks.1.norm2", "blocks.2"), ("blocks.3", None))
    assert torch.equal(whole, vit(x))


def test_a_part_of_a_branch_stands_alone(resnet):
    piece = cut(resnet, block_input="layer2.0.bn1", block_output="layer2.0.conv2")
    assert {name.rpartition(".")[0] for name in piece.state_dict()} == {"layer2.0.bn1", "layer2.0.conv2"}
    block, x = resnet.layer2[0], torch.randn(2, 16, 8, 8)
    assert torch.equal(piece(x), block.conv2(block.act1(block.bn1(x))))


def test_a_module_stands_alone_though_a_skip_connection_passes_by(resnet, vit):
    branch = cut(resnet, block_input="layer2.0.downsample", block_output="layer2.0.downsample")
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(branch(x), resnet.layer2[0].downsample(x))
    attention = cut(vit, block_input="blocks.1.attn", block_output="blocks.1.attn")
    tokens = torch.randn(2, 5, 32)
    assert torch.equal(attention(tokens), vit.blocks[1].attn(tokens))


def test_a_piece_can_be_cut_again(resnet):
    x = pico_images(size=64)
    piece = cut(resnet, block_output="layer2")
    assert torch.equal(rejoin(piece, x, (None, "layer1"), ("layer2", None)), piece(x))


def test_a_piece_can_be_exported(resnet):
    x = pico_images(size=64)
    piece = cut(resnet, block_output="layer2")
    assert torch.equal(torch.export.export(piece, (x,)).module()(x), piece(x))


def test_of_several_values_the_one_that_is_used_leaves():
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 32, num_classes=4).eval()
    attention = "encoder.layers.encoder_layer_1.self_attention"
    norm = cut(model, block_output=["encoder.layers.encoder_layer_1.ln_1", attention])
    normed, attended = norm(pico_images(size=32))
    expected, _ = model.get_submodule(attention)(normed, normed, normed, need_weights=False)
    assert torch.equal(attended, expected)
    with pytest.raises(InputError, match="takes several values from"):
        cut(model, block_input="encoder.layers.encoder_layer_1.getitem")


def test_several_outputs(resnet):
    x = pico_images(size=64)
    one, two = cut(resnet, block_output=["layer1", "layer2.0.conv1"])(x)
    assert torch.equal(one, cut(resnet, block_output="layer1")(x))
    assert torch.equal(two, resnet.layer2[0].conv1(one))


@pytest.mark.parametrize("training", [True, False])
def test_a_listed_output_is_what_the_model_has_there_though_the_next_layer_works_in_place(resnet, training):
    assert resnet.act1.inplace
    model, x = resnet.train(training), pico_images(size=64)
    normed = model.bn1(model.conv1(x))
    layer1, bn1 = cut(model, block_output=["layer1", "bn1"])(x)
    assert (bn1 < 0).any()
    assert torch.equal(bn1, normed)
    assert torch.equal(layer1, cut(model, block_output="layer1")(x))
    (bn1.square().sum() + layer1.sum()).backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_a_piece_that_begins_with_a_layer_that_works_in_place_leaves_its_input_alone(resnet):
    x = torch.randn(2, resnet.conv1.out_channels, 32, 32)
    before = x.clone()
    piece = cut(resnet.eval(), block_input="act1", block_output="layer1")
    assert torch.equal(piece(x), resnet.layer1(resnet.maxpool(before.relu())))
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_drop_path_follow_the_mode(vit, training):
    x = pico_images()
    model = vit.train(training)
    pieces = [cut(model, block_output="blocks.1"), cut(model, block_input="blocks.2")]
    torch.manual_seed(3)
    whole = model(x)
    torch.manual_seed(3)
    assert torch.equal(pieces[1](pieces[0](x)), whole)
    assert torch.equal(pieces[0](x), pieces[0](x)) is not training


def test_a_mode_in_the_models_own_forward_is_followed_after_the_cut():
    model = Dropping(**linears("first", "last"))
    end = cut(model.eval(), block_input="last")
    x = torch.ones(2, 4)
    assert torch.equal(end(x), model.last(x))
    whole = cut(model)
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    assert torch.equal(whole.train()(x), expected)
    assert torch.equal(whole.eval()(x), model.eval()(x))


def test_the_mode_of_the_model_after_the_cut_reaches_its_modules_and_that_of_the_piece_all():
    model = Dropping(first=nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), last=nn.Linear(4, 4)).eval()
    piece, end = cut(model), cut(model, block_input="last")
    x = torch.ones(2, 4)
    model.train()
    assert piece.first.training
    assert not piece.training
    assert torch.equal(end(x), model.last(x))  # no dropout by a function
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(piece.train()(x), expected)


def test_batch_norms_train_as_in_the_model(resnet):
    twin, x = copy.deepcopy(resnet), pico_images(size=64)
    pieces = [cut(resnet, block_output="layer2"), cut(resnet, block_input="layer3")]
    for piece in pieces:
        piece.train()
    assert torch.equal(pieces[1](pieces[0](x)), twin.train()(x))
    for name, value in resnet.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert resnet.bn1.num_batches_tracked == 1


def test_pieces_share_parameters_and_leave_out_the_others(resnet):
    piece = cut(resnet, block_input="layer2", block_output="layer3.0")
    own = dict(resnet.named_parameters())
    assert all(parameter is own[name] for name, parameter in piece.named_parameters())
    inside = ("layer2.", "layer3.0.")
    assert set(piece.state_dict()) == {name for name in resnet.state_dict() if name.startswith(inside)}


def test_gradients_flow(resnet):
    piece = cut(resnet, block_input="layer2", block_output="layer3.0").train()
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    piece(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in piece.parameters())
    assert resnet.layer1[0].conv1.weight.grad is None


def test_a_deep_copy_is_independent_and_takes_a_state_dict(resnet):
    x = pico_images(size=64)
    piece = cut(resnet, block_output="layer2")
    before, twin = piece(x), copy.deepcopy(piece)
    twin.load_state_dict(piece.state_dict())
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        resnet.conv1.weight.zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(piece(x), before)


def test_buffers_and_constants_are_stored_as_in_the_model():
    model = Dropping(**linears("first", "last")).train()
    assert set(cut(model, block_output="mul").state_dict()) == {"first.weight", "first.bias", "scale"}
    whole = cut(model)
    assert set(whole.state_dict()) == set(model.state_dict())
    assert "shift" in dict(whole.named_buffers())
    with_constant = Constant(**linears("first", "last"))
    piece, x = cut(with_constant, block_input="add"), torch.randn(2, 4)
    assert torch.equal(piece(x), with_constant.last(x + torch.arange(4.0)))
    assert set(piece.state_dict()) == {"last.weight", "last.bias"}
    assert not hasattr(with_constant, "_tensor_constant0")


def test_cutting_leaves_the_model_as_it_is():
    model = nn.Sequential(Counting(), Counting()).train()
    model[1].eval()
    cut(model, block_input="0.layer", block_output="0.layer")
    assert model[0].seen == {}
    assert [module.training for module in model] == [True, False]


def test_a_model_that_keeps_what_it_saw_can_be_cut_after_it_ran():
    """timm's LeViT keeps biases from evaluation; a piece has the parameters, so that they train."""
    size = {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 2, 2), "num_classes": 4}
    model, x = randomized(timm.create_model("levit_128s", **size)), pico_images(size=64)
    model(x)
    attention = "stages.1.blocks.0.attn"
    piece = cut(model, block_input=attention, block_output=attention)
    tokens = torch.randn(2, 4, 24)
    assert torch.equal(piece(tokens), model.get_submodule(attention)(tokens))
    piece(tokens).sum().backward()
    assert model.get_parameter(f"{attention}.attention_biases").grad is not None


def test_a_second_call_has_a_name_of_its_own():
    model = Twice(block=nn.Linear(4, 4))
    x = torch.randn(2, 4)
    assert torch.equal(rejoin(model, x, (None, "block"), ("block_1", None)), model(x))
    assert torch.equal(cut(model, block_output="block")(x), model.block(x))


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [
        ("layer9", None, "unknown node 'layer9'; did you mean 'layer"),
        (None, "layer2.0.conv7", "unknown node 'layer2.0.conv7'; did you mean 'layer2.0.conv"),
        (None, "layer2.0.ad", "unknown node 'layer2.0.ad'; did you mean 'layer2.0.add'"),
        (None, "conv1.weight", "unknown node 'conv1.weight'; did you mean 'conv1'"),
        ("layer3", "layer2", "block_output 'layer2' ends before block_input 'layer3' begins"),
        ("layer3", ["layer4", "layer1"], "block_output 'layer1' ends before block_input 'layer3' begins"),
        ("", None, "unknown node ''"),
        (None, [], "block_output is an empty list; name at least one node, or drop the key"),
        (None, "x", "block_output 'x' ends before block_input 'x' begins"),
        (
            "layer2.0.bn1",
            "layer2",
            "a cut before 'layer2.0.bn1' goes through a connection: 'layer2.0.conv1' and 'layer2.0.downsample' cross "
            "it; clean places are before 'layer2' and 'layer2.0.act2'",
        ),
        (
            "layer2.0.add",
            None,
            "a cut before 'layer2.0.add' goes through a connection: 'layer2.0.bn2' and 'layer2.0.downsample' cross it; "
            "clean places are before 'layer2' and 'layer2.1'",
        ),
        (
            None,
            "layer2.0.conv1",
            "a cut after 'layer2.0.conv1' goes through a connection: 'layer1' and 'layer2.0.conv1' cross it; clean "
            "places are after 'layer1' and 'layer2.0.add'; or give a list",
        ),
        ("layer2", "layer2.0.conv1", "a cut after 'layer2.0.conv1' goes through a connection"),
    ],
)
def test_what_cannot_be_cut_is_named(resnet, begin, end, message):
    with pytest.raises(InputError) as error:
        cut(resnet, block_input=begin, block_output=end)
    assert str(error.value).startswith(message)


def test_an_output_that_does_not_depend_on_the_input_is_refused():
    model = Forked(left=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), **linears("right", "last", "unused"))
    with pytest.raises(InputError, match=r"'right' does not depend on block_input 'left\.1'"):
        cut(model, block_input="left.1", block_output="right")
    with pytest.raises(InputError, match="output does not depend on 'unused', a Linear"):
        cut(model, block_output="unused")


def test_a_place_that_only_one_mode_has_is_refused_with_the_mode():
    model = Dropping(**linears("first", "last"))
    with pytest.raises(InputError, match="unknown node 'add'"):
        cut(model, block_input="add")


def test_what_cannot_be_traced_is_said():
    with pytest.raises(InputError, match="Unrolled cannot be traced between its blocks: TraceError"):
        cut(Unrolled())
    model, x = nn.Sequential(nn.Linear(4, 4), Unrolled(), nn.Linear(4, 4)), torch.randn(2, 4)
    assert torch.equal(rejoin(model, x, (None, "1"), ("2", None)), model(x))
    with pytest.raises(InputError, match="'1' cannot be traced into: TraceError"):
        cut(model, block_output="1.add")
    with pytest.raises(InputError, match="changes a tensor in place by mul_"):
        cut(InPlace(**linears("first", "last")))


def test_steps_run_one_after_the_other_are_the_model(resnet):
    pieces = Steps(resnet)
    x = values = pico_images(size=64)
    kept = [x]
    for piece in pieces:
        kept.append(piece(kept[-1]))
        values = piece(values.clone())
    assert torch.equal(kept[-1], resnet(x))
    assert torch.equal(kept[-1], values)  # no step changed what it was given
    assert [sorted(dict(piece.named_children())) for piece in pieces][:3] == [["conv1"], ["act1", "bn1"], ["maxpool"]]
    assert sum(len(list(piece.parameters())) for piece in pieces) == len(list(resnet.parameters()))


@pytest.mark.parametrize(
    ("name", "fragments"),
    [("alexnet", 8), ("densenet121", 5), ("mobilenet_v3_small", 13), ("resnet50", 6), ("vgg16", 16)],
)
def test_clean_places_are_the_published_fragments(name, fragments):
    """StitchNet's: only before ungrouped convolutions and linear layers, and not before the first."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    flow = Flow(trace(model, deep=True))

    def is_weighted(node):
        layer = model.get_submodule(node.target) if node.op == "call_module" else None
        return isinstance(layer, nn.Conv2d | nn.Linear)

    candidates = [node for node in flow.nodes if is_weighted(node)][1:]
    candidates = [node for node in candidates if getattr(model.get_submodule(node.target), "groups", 1) == 1]
    inputs = {flow.before(node)[0] for node in candidates}
    kept = [node for node in inputs if node in flow.clean and all(map(is_weighted, flow.after(node)))]
    assert len(kept) + 1 == fragments
