"""The classifier of an anchor without timm's interface: another number of classes, none at all, another start."""

import pytest
import torch
import torchvision
from torch import nn

import stitchkit
from stitchkit.assembly.parts.network import build_network
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.errors import InputError
from stitchkit.networks.create import create_anchor
from stitchkit.networks.timm_model import classifier_of
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from stitchkit.training.network import create_network
from tests.support import mostly_full, pico_images

WIDTHS = {
    "squeezenet1_0": 512,
    "resnet18": 512,
    "mobilenet_v3_small": 1024,
    "alexnet": 4096,
    "vit_b_32": 768,
    "mnasnet0_5": 1280,
    "maxvit_t": 512,
}


def anchor(name, **kwargs):
    return create_anchor(AnchorSpec(name=f"torchvision/{name}", kwargs=kwargs), pretrained=False)


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_full(WIDTHS, quick=["squeezenet1_0", "mobilenet_v3_small"]))
def test_a_torchvision_anchor_without_classes_gives_the_feature_before_its_classifier(name):
    found = anchor(name, num_classes=0)
    assert found.num_classes == 0
    model = found.model.eval()
    whole = torchvision.models.get_model(name, num_classes=7).eval()
    layer = whole.get_submodule(classifier_of(whole))
    missing = whole.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert {key.rpartition(".")[0] for key in missing} == {classifier_of(whole)}
    given = []
    layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    x = pico_images(size=224)
    whole(x)
    feature = model(x)
    assert feature.shape == (2, WIDTHS[name])
    expected = given[0] if given[0].ndim == 2 else given[0].relu().mean((2, 3))
    torch.testing.assert_close(feature, expected)


@pytest.mark.full
def test_torchvision_anchors_without_classes_are_stitched():
    pair = ["torchvision/mobilenet_v3_small", "torchvision/mobilenet_v3_large"]
    model = stitchkit.create_snnet(anchors=pair, num_classes=0, img_size=64).eval()
    assert model.num_classes == 0
    assert model(pico_images(size=64), len(model.space) - 1).shape == (2, 1280)


@pytest.mark.parametrize(
    "name",
    mostly_full(["squeezenet1_0", "mobilenet_v3_small", "vit_b_32"], quick=["squeezenet1_0", "mobilenet_v3_small"]),
)
def test_a_file_of_other_classes_or_none_is_loaded(name, tmp_path):
    arguments = {"image_size": 32} if name == "vit_b_32" else {}
    files = {count: tmp_path / f"{count}.pth" for count in (7, 0)}
    whole = torchvision.models.get_model(name, num_classes=7, **arguments)
    torch.save(whole.state_dict(), files[7])
    layer = classifier_of(whole)
    torch.save({key: x for key, x in whole.state_dict().items() if not key.startswith(layer)}, files[0])
    for classes, path in ((0, files[7]), (0, files[0]), (5, files[7])):
        spec = AnchorSpec(name=f"torchvision/{name}", kwargs=arguments | {"num_classes": classes}, checkpoint=str(path))
        found = create_anchor(spec, img_size=32 if arguments else 64)
        assert found.num_classes == classes
        assert classifier_of(found.model) == (layer if classes else "")
        own, theirs = next(found.model.parameters()), next(whole.parameters())
        assert torch.equal(own, theirs)


def test_a_classifier_that_starts_anew_is_said(tmp_path, caplog):
    whole = stitchkit.create_model("resnet18", num_classes=7, channels=(8, 8, 8, 8), layers=(1, 1, 1, 1))
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    spec = {"name": "resnet18", "kwargs": {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}}
    pair = [{**spec, "checkpoint": str(tmp_path / "w.pth"), "label": "a"}, {**spec, "label": "b"}]
    words = "w.pth' is re-initialised, and random until it is trained: 7 classes -> 5"
    for classes, count in ((7, 0), (0, 0), (5, 1)):
        caplog.clear()
        stitchkit.create_snnet({"anchors": pair, "rule": "proportional"}, num_classes=classes, img_size=32)
        assert caplog.text.count(words) == count, classes
    caplog.clear()
    job = {"model_name": "resnet18", **spec["kwargs"], "ckp_path": str(tmp_path / "w.pth")}
    build_network(NetworkSpec((PartSpec("Net", job),)), num_classes=5)
    assert caplog.text.count(words) == 1


class Own(nn.Module):
    """A network of one's own, with or without a classifier."""

    def __init__(self, width, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()) for _ in range(3)))
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_own_networks_with_a_classifier_do_not_pass_for_networks_of_features():
    with pytest.raises(InputError, match=r"anchor 'Own': .*ends in its classifier 'head'.*torch\.nn\.Identity\(\)"):
        stitchkit.create_snnet(anchors=[Own(8, 4), Own(16, 4)], img_size=16, num_classes=0)
    resnets = [torchvision.models.resnet18(num_classes=4), torchvision.models.resnet34(num_classes=4)]
    with pytest.raises(InputError, match=r"anchor 'ResNet': .*ends in its classifier 'fc'"):
        stitchkit.create_snnet(anchors=resnets, img_size=64, num_classes=0)
    projections = [Own(8, 4), Own(16, 4)]
    for network in projections:
        network.num_classes = 0
    assert stitchkit.create_snnet(anchors=projections, img_size=16).num_classes == 0
    told = Own(8, 4)
    told.num_classes = 4
    with pytest.raises(InputError, match=r"has 4 classes, not 0; .*Identity\(\) and its num_classes by 0"):
        stitchkit.create_snnet(anchors=[told, Own(16, 0)], img_size=16, num_classes=0)


def test_own_networks_of_features_are_stitched_and_told_how():
    with pytest.raises(InputError, match=r"differ in num_classes: Own 8, Own_2 16; .*num_classes=0.* features"):
        stitchkit.create_snnet(anchors=[Own(8, 0), Own(16, 0)], img_size=16)
    model = stitchkit.create_snnet(anchors=[Own(8, 0), Own(16, 0)], img_size=16, num_classes=0)
    assert model.num_classes == 0
    assert model.eval()(pico_images(), len(model.space) - 1).shape == (2, 16)


def test_classifiers_of_torchvision_anchors_start_as_asked():
    anchors = [{"name": f"torchvision/{name}", "kwargs": {"num_classes": 4}} for name in ("resnet18", "resnet34")]
    recipe = make_recipe({"pretrained": False, "stitch_config": "x", "img_size": 64, "head_init_bias": -2.0})
    model = create_network(recipe, StitchConfig.parse({"anchors": anchors, "rule": "proportional"}), None)
    for network in model.anchors:
        assert (network.fc.bias == -2).all()
