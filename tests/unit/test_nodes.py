"""The list of a model's nodes, in Python and as a command."""

import pytest
import torch

from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.networks.create import bare_model
from stitchkit.networks.families import steps_of
from stitchkit.networks.slices import Node
from tests.support import mostly_full


def nodes(model, example=None, **options):
    return steps_of(model).nodes(example, **options)


def test_nodes_have_shapes_and_say_where_they_are_clean():
    model, image = bare_model("resnet18")
    assert image.shape == (1, 3, 224, 224)
    listed = {node.name: node for node in nodes(model, image, inside=["layer3.0"])}
    assert listed["x"] == Node("x", "input", True, (1, 3, 224, 224))
    assert listed["layer2"] == Node("layer2", "Sequential", True, (1, 128, 28, 28))
    assert listed["layer3.0.conv1"] == Node("layer3.0.conv1", "Conv2d", False, (1, 256, 14, 14))
    assert listed["layer3.0.add"] == Node("layer3.0.add", "function", True, (1, 256, 14, 14))
    assert "layer2.0.conv1" not in listed
    assert "layer1.0.conv1" not in listed
    assert {node.shape for node in nodes(model)} == {None}


@pytest.mark.full
def test_clean_nodes_are_those_that_a_piece_may_end_with():
    model, image = bare_model("pvt_v2_b0")
    found = {True: 0, False: 0}
    for node in nodes(model, image)[1:25]:
        found[node.is_clean] += 1
        if node.is_clean:
            steps_of(model).between(None, node.name)
        else:
            with pytest.raises(InputError, match="goes through a connection"):
                steps_of(model).between(None, node.name)
    assert min(found.values()) > 5


def test_a_node_that_gives_several_tensors_is_not_clean():
    class Split(torch.nn.Module):
        def forward(self, x):
            return [x, x + 1]

    class Sum(torch.nn.Module):
        def forward(self, xs):
            return xs[0] + xs[1]

    model = torch.nn.Sequential(Split(), Sum())
    assert [node.is_clean for node in nodes(model, torch.ones(1, 4))] == [True, False, True]


def test_the_command_lists_them(capsys):
    assert main(["profile", "--nodes", "resnet18", "--inside", "layer3.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["*", "x", "input", "1x3x224x224"]
    assert ["*", "layer3.0.add", "function", "1x256x14x14"] in [line.split() for line in lines]
    assert ["layer3.0.bn2", "BatchNorm2d", "1x256x14x14"] in [line.split() for line in lines]
    assert lines[-1].startswith("* marks clean places")


@pytest.mark.parametrize(
    ("name", "backend"),
    mostly_full([("swin_t", "torchvision"), ("regnet_x_400mf", "pytorch")], quick=[("regnet_x_400mf", "pytorch")]),
)
def test_the_command_lists_those_of_torchvision_models(name, backend, capsys):
    assert main(["profile", "--nodes", name, "--backend", backend]) == 0
    listed = capsys.readouterr().out
    assert "1x3x224x224" in listed
    assert main(["profile", "--nodes", f"torchvision/{name}"]) == 0
    assert capsys.readouterr().out == listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet17"], "unknown timm model 'resnet17'; did you mean 'resnet1"),
        (["resnet17", "--backend", "torchvision"], "unknown torchvision model 'resnet17'; did you mean 'resnet18'?"),
        (["resnet18", "--inside", "layer9"], "unknown module 'layer9'; did you mean 'layer"),
        (["resnet18", "--inside", "conv1"], "'conv1' is one layer, a Conv2d, with no nodes inside; name a block"),
        (["resnet18", "--inside", ""], "unknown module ''"),
        (["twins_svt_small"], "Twins cannot be traced between its blocks"),
        (["resnet18", "--backend", "keras"], "unknown backend 'keras'; allowed: timm, torchvision, pytorch"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, capsys):
    assert main(["profile", "--nodes", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"stitchkit: error: {message}")
    assert error.count("\n") == 1
