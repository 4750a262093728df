"""Stitching layers of low rank and of two layers."""

import copy

import pytest
import torch

import stitchkit
from stitchkit.model.layer import LowRank, StitchLayer, transform_of
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.networks.layout import Layout
from tests.support import pico_config, pico_images

NLC, NCHW, NHWC = (
    Layout("NLC", 6, (4,)),
    Layout("NCHW", 6, (2, 2)),
    Layout("NHWC", 6, (2, 2)),
)
INPUTS = {"NLC": (2, 4, 6), "NCHW": (2, 6, 2, 2), "NHWC": (2, 2, 2, 6)}


def to(layout, width):
    return Layout(layout.kind, width, layout.positions)


def layer_of(kind, layout, width=5):
    torch.manual_seed(0)
    return StitchLayer(layout, to(layout, width), transform_of(kind, 2))


def updated(layer):
    """A layer whose update of low rank has been trained."""
    if isinstance(layer.transform, LowRank):
        torch.nn.init.normal_(layer.transform.lora_B)
    return layer


@pytest.mark.parametrize("layout", [NLC, NCHW, NHWC], ids=str)
@pytest.mark.parametrize("kind", ["lowrank", "mlp"])
def test_every_kind_becomes_a_given_linear_map(kind, layout):
    linear, other = layer_of("linear", layout), updated(layer_of(kind, layout))
    matrix = torch.randn(7, 5)
    for layer in (linear, other):
        layer.set_map(matrix)
    x = torch.randn(INPUTS[layout.kind])
    for mode in (True, False):
        torch.testing.assert_close(other.train(mode)(x), linear(x))


@pytest.mark.parametrize("layout", [NLC, NCHW, NHWC], ids=str)
def test_an_update_is_folded_into_one_linear_map(layout):
    layer = updated(layer_of("lowrank", layout)).eval()
    folded, x = layer.folded(), torch.randn(INPUTS[layout.kind])
    assert {name for name, _ in folded.named_parameters()} == {"transform.weight", "transform.bias"}
    assert all(parameter.requires_grad for parameter in folded.parameters())
    torch.testing.assert_close(folded(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer).train()(x), layer(x))
    assert layer_of("mlp", layout).folded().transform.fc1.weight.shape == (12, 6)


def test_only_bias_and_update_are_trained_and_the_map_stays():
    layer = updated(layer_of("lowrank", NLC)).train()
    before = layer.transform.weight.clone()
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    layer(torch.randn(2, 4, 6)).square().sum().backward()
    optimizer.step()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {
        *("transform.bias", "transform.lora_A", "transform.lora_B"),
    }
    assert torch.equal(layer.transform.weight, before)


def test_the_update_has_the_published_scale():
    layer = updated(layer_of("lowrank", NLC)).eval()
    part, x = layer.transform, torch.randn(2, 4, 6)
    expected = x @ part.weight.T + part.bias + (x @ part.lora_A.T) @ part.lora_B.T / 2
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("keys", [{"lora_r": 2}, {"layer": "mlp"}], ids=str)
def test_the_closed_form_is_the_same_for_every_kind(keys):
    images = pico_images(6)
    models = [stitchkit.create_snnet(pico_config(**some)).eval() for some in ({}, keys)]
    models[1].anchors.load_state_dict(models[0].anchors.state_dict())
    residuals = [fit_stitching_layers(model, [images]) for model in models]
    assert residuals[0] == pytest.approx(residuals[1])
    for cfg_id in (3, 10, 16):
        torch.testing.assert_close(models[1](images, cfg_id), models[0](images, cfg_id), rtol=1e-4, atol=1e-5)
