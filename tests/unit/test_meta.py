"""Networks without values."""

import pytest
import timm
import torch
from torch import nn

from stitchkit.networks.meta import without_values

NAMES = ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "levit_128s", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_meta_device(name):
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict(keep_vars=True)
    with without_values():
        tensors = timm.create_model(name).state_dict(keep_vars=True)
    assert {key: (type(value), value.dtype, value.shape, value.device) for key, value in tensors.items()} == {
        key: (type(value), value.dtype, value.shape, value.device) for key, value in expected.items()
    }


def test_only_parameters_without_values_stay_unfilled():
    with without_values():
        activation, weight = torch.empty(2, 3), nn.Parameter(torch.zeros(2, device="cpu"))
        with pytest.raises(RuntimeError, match="shape"):
            activation.add_(torch.empty(4))  # a forward pass runs every operation
        nn.init.constant_(weight, 2.0)
    assert weight.tolist() == [2.0, 2.0]
