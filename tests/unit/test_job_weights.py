"""Checkpoints of jobs, ours and published ones, as starting points of a network or of one part."""

import pytest
import torch
from torchvision.models.vision_transformer import EncoderBlock

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.adapters import VisionTransformerBlock
from stitchkit.assembly.parts.network import build_network
from stitchkit.assembly.parts.part import Assembly
from stitchkit.assembly.parts.pretrained import Subnet, network_names
from stitchkit.assembly.train.checkpoint import load_weights
from stitchkit.errors import InputError
from tests.jobs import adapter, resnet
from tests.support import randomize

BLOCK = {"ResNetBasicBlock": {"in_channels": 16, "out_channels": 16}}
SWIN = {"SwinTransformerBlock": {"num_heads": 2, "window_size": 4}}
FRONT, BACK = resnet("x", "layer2"), resnet("layer3", "fc")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(job, num_classes=5, **options):
    """The network of a job in evaluation mode, with random weights unless parts name files."""
    torch.manual_seed(len(str(job)))
    config = JobConfig.parse({**job, "train_config": {"dataset": "digits", "epochs": 1}})
    size = {"num_classes": num_classes, "input_size": (3, 32, 32)}
    return build_network(config.network, **size, pretrained=False, **options).eval()


def model(*parts, **further):
    """The same parts as one model, as many published files have them."""
    return {"model": {"Assembly": {"parts": [*parts], **further}}}


def published(network, path, *, root=""):
    """A file with the weights of a network under the published names."""
    weights = {}
    for name, value in network.state_dict().items():
        old = name.removeprefix(root).replace(".layers.", ".adapter.", 1).replace(".block.", ".", 1)
        weights[name.removeprefix(root) if ".net." in name else old] = value
    torch.save({"model": weights, "optimizer": {}, "scheduler": {}, "epoch": 3, "config": {}}, path)
    return str(path)


@pytest.mark.parametrize("root", ["", "parts.0."])
def test_a_network_starts_from_a_published_checkpoint(root, tmp_path):
    parts = [FRONT, adapter(16, 16), BLOCK, SWIN]
    head = {"head": {"ClassifierHead": {}}}
    job = model(*parts, **head) if root else {"assembly": parts, **head}
    before = build(job)
    randomize(before)
    path = published(before, tmp_path / "checkpoint.pth", root=root)
    assert {"parts.1.adapter.0.weight", "parts.2.conv1.weight", "head.linear.weight"} <= torch.load(path)[
        "model"
    ].keys()
    after = build(job)
    assert not torch.equal(after(IMAGES), before(IMAGES))
    load_weights(after, path, strict=True)
    assert torch.equal(after(IMAGES), before(IMAGES))


def test_a_head_too_many_is_refused_unless_weights_may_be_missing(tmp_path):
    net = {"model": {"Net": {"model_name": "resnet18", **resnet("x", "fc")["Subnet"]}}}
    for key in ("block_input", "block_output"):
        del net["model"]["Net"][key]
    before = build(net)
    randomize(before)
    path = published(before, tmp_path / "net.pth", root="parts.0.")
    assert next(iter(torch.load(path)["model"])).startswith("net.")
    after = build(net)
    load_weights(after, path, strict=True)
    assert torch.equal(after(IMAGES), before(IMAGES))
    trunk = build({"assembly": [resnet("x", "layer4")], "head": {"ClassifierHead": {}}}, num_classes=7)
    with pytest.raises(InputError, match="set strict_load: false in the job to load only the weights that fit"):
        load_weights(trunk, path, strict=True)
    load_weights(trunk, path, strict=False)
    assert torch.equal(trunk.parts[0](IMAGES), before.parts[0].net.forward_features(IMAGES))


@pytest.mark.parametrize("is_published", [False, True])
def test_a_piece_starts_from_the_part_of_a_job_that_has_its_weights(is_published, tmp_path):
    before = build({"assembly": [FRONT, adapter(16, 16), BACK]}, num_classes=1000)
    randomize(before)
    path = str(tmp_path / "job.pth")
    if is_published:
        published(before, path)
    else:
        torch.save({"state_dict": before.state_dict(), "classes": [["a", "b"]]}, path)
    for number, piece in ((0, FRONT), (2, BACK)):
        part = Subnet(**piece["Subnet"], ckp_path=path)
        for name, value in before.parts[number].state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name
    words = r"no part of it holds all these weights: parts\.0 has no layer3\.0\.conv1\.weight; begin and end"
    with pytest.raises(InputError, match=words):
        Subnet(**resnet("layer2", "layer3")["Subnet"], ckp_path=path)


def test_no_pretrained_leaves_out_no_file_that_a_part_names(tmp_path):
    before = build({"assembly": [FRONT], "head": {"ClassifierHead": {}}})
    randomize(before)
    front = {"Subnet": {**FRONT["Subnet"], "ckp_path": published(before, tmp_path / "job.pth")}}
    after = build({"assembly": [front, adapter(16, 16)], "head": {"ClassifierHead": {}}})
    assert torch.equal(after.parts[0](IMAGES), before.parts[0](IMAGES))


def test_torchvisions_names_of_a_transformer_block_are_ours():
    torch.manual_seed(0)
    theirs = EncoderBlock(2, 8, 32, 0.0, 0.0).eval()
    ours = Assembly([VisionTransformerBlock(num_heads=2, embed_dim=8)], [torch.nn.Identity()]).eval()
    weights = {f"parts.0.{name}": value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(network_names(ours, weights))
    tokens = torch.rand(2, 5, 8)
    torch.testing.assert_close(ours(tokens), theirs(tokens))
