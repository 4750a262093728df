"""Rejoined pieces are the whole model, over families of timm and torchvision."""

import copy
import re

import pytest
import timm
import torch
import torchvision

from stitchkit.networks.families import steps_of
from tests.support import ROOT, mostly_full, randomize

VIT = {"img_size": 64, "embed_dim": 32, "depth": 4, "num_heads": 2}
TIMM = {
    "resnet18": ({}, "layer1", "layer2", "layer3.0", "layer3.1"),
    "convnext_atto": ({}, "stages.1", "stages.2", "stages.2.blocks.1", "stages.2.blocks.2"),
    "efficientnet_b0": ({}, "blocks.1", "blocks.2", "blocks.3.1", "blocks.3.2"),
    "densenet121": ({}, "features.transition1", "features.denseblock2", "features.denseblock3", "features.transition3"),
    "vit_tiny_patch16_224": (VIT, "blocks.0", "blocks.1", "blocks.2.add", "blocks.2.norm2"),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "num_heads": (1, 2, 2, 4)},
        *("layers.0", "layers.1", "layers.2.blocks.1", "layers.2.blocks.2"),
    ),
    "levit_128s": ({"img_size": 64}, "stages.0", "stages.1", "stages.1.blocks.0", "stages.1.blocks.1"),
}
TORCHVISION = {
    "swin_t": ({}, "features.1", "features.2", "features.3.0", "features.3.1"),
    "mobilenet_v3_small": ({}, "features.3", "features.4", "features.7", "features.8"),
    "densenet121": ({}, "features.denseblock1", "features.transition1", "features", "relu"),
    "vit_b_16": (
        {"image_size": 64},
        *("encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2"),
        *("encoder.layers.encoder_layer_7.add", "encoder.layers.encoder_layer_7.ln_2"),
    ),
}
"""Arguments, then the end of the beginning, both ends of the middle, and the begin of the end.

Models of other modules are cut between all of their blocks where the page of anchors is measured again.
"""


def check(model, first, second, third, fourth):
    randomize(model)
    places = [(None, first), (second, third), (fourth, None)]
    pieces = [steps_of(model).between(begin, end) for begin, end in places]
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        whole = copy.deepcopy(model).train(training)
        torch.manual_seed(1)
        with torch.no_grad():
            expected = whole(images)
        torch.manual_seed(1)
        x = images
        with torch.no_grad():
            for piece in pieces:
                x = piece.train(training)(x)
        assert torch.equal(x, expected), training
    names = [set(piece.state_dict()) for piece in pieces]
    assert set.union(*names) == set(model.state_dict())
    assert sum(map(len, names)) == len(model.state_dict())


@pytest.mark.parametrize("name", mostly_full(TIMM, quick=["resnet18", "vit_tiny_patch16_224", "levit_128s"]))
def test_pieces_of_timm_models_rejoin(name):
    arguments, *places = TIMM[name]
    torch.manual_seed(0)
    check(timm.create_model(name, num_classes=4, **arguments), *places)


@pytest.mark.parametrize("name", mostly_full(TORCHVISION, quick=["mobilenet_v3_small"]))
def test_pieces_of_torchvision_models_rejoin(name):
    arguments, *places = TORCHVISION[name]
    torch.manual_seed(0)
    check(torchvision.models.get_model(name, weights=None, num_classes=4, **arguments), *places)


def test_the_python_of_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cut.md").read_text(), re.S)
    exec(code.replace("224", "64"), {})
