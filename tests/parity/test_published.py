"""Laws 3, 4 and 5 for the published configurations: their spaces, FLOPs and logits."""

import argparse
import importlib.util
import json
import re
from functools import cached_property

import pytest
import torch
from timm.layers import convert_splitbn_model

import stitchkit
from docs.anchors_table import WithoutInitialisation
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.profile import Profiler
from stitchkit.networks.create import create_model
from stitchkit.networks.weights import load_content, read_checkpoint
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import ROOT, mostly_full

PUBLISHED = {
    **{"deit_ti_s_b": 71, "swin_ti_s_b": 41, "resnet18_resnet50": 10, "resnet18_swin_ti": 8, "levit_192_256": 8},
    "deit3_s_l": 134,
}
SMALL = ("resnet18_swin_ti", "levit_192_256")
"""One of each published way to write an SN-Net; the others share its code."""


class Reference:
    """What the released code gave for one configuration."""

    def __init__(self, name, shared):
        self.name = name
        self.config = ROOT / f"configs/{name}.json"
        version = "snnetv2_" if name.startswith("deit3") else ""
        self.file = shared / f"golden/{version}{name}.json"
        self.content = json.loads(self.file.read_text())
        self.ledger = read_rows(shared / f"published/{version}{name}.jsonl")
        spec = importlib.util.spec_from_file_location("fill", shared / "golden/fill.py")
        self.fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)

    @cached_property
    def state_dict(self):
        return self.fill.state_dict(self.file)

    def state_dict_of_blocks(self, blocks, monkeypatch):
        """The weights, with zeros in the other blocks of the second anchor: filling all takes long."""
        fill = self.fill._tensor

        def fill_some(key, shape, seed):
            block = re.match(r"anchors\.1\.blocks\.(\d+)\.", key)
            return torch.zeros(shape) if block and int(block[1]) not in blocks else fill(key, shape, seed)

        monkeypatch.setattr(self.fill, "_tensor", fill_some)
        return self.fill.state_dict(self.file)


@pytest.fixture(params=mostly_full(PUBLISHED, quick=SMALL), scope="module")
def reference(request, shared):
    return Reference(request.param, shared)


@pytest.fixture(scope="module")
def model(reference):
    with torch.no_grad(), WithoutInitialisation():  # a file replaces the weights
        return stitchkit.create_snnet(reference.config).eval()


@pytest.fixture(scope="module")
def released(reference, tmp_path_factory):
    """A file as the authors released them."""
    path = tmp_path_factory.mktemp("released") / f"{reference.name}.pth"
    weights = {f"module.{key}": value for key, value in reference.state_dict.items()}
    torch.save({"model": weights, "optimizer": {}, "epoch": 49, "args": argparse.Namespace(lr=1.0)}, path)
    return path


def test_law_3_published_space(model, reference):
    labels, stitches = list(model.views), reference.content["stitch_configs"]
    assert len(model.space) == PUBLISHED[reference.name]
    assert [*model.space.ids] == reference.content.get("all_cfgs", [*range(len(stitches))])
    for cfg_id, stitch in model.space.stitches.items():
        expected = stitches[str(cfg_id)]
        assert [labels.index(segment.anchor) for segment in stitch.segments] == expected["comb_id"]
        blocks, layers = [], []
        for joint in stitch.joints:
            stage = expected.get("stage_id", 0)
            skipped = [sum(model.views[label].depths[:stage]) for label in (joint.front, joint.end)]
            blocks.append([joint.front_block - skipped[0], joint.end_block - skipped[1]])
            layers.append(model.space.layers[joint][-1])
        # SN-Netv2 names them otherwise, and ends the list with the layer after the last part, which does nothing.
        numbers = expected.get("stitch_layers", expected.get("stitch_layer_ids", [])[:-1])
        assert (blocks, layers) == (expected.get("stitch_cfgs", []), numbers)


@pytest.mark.parametrize("reference", mostly_full(PUBLISHED, quick=["deit_ti_s_b", *SMALL]), indirect=True)
def test_law_4_published_flops(reference, tmp_path):
    out = tmp_path / "costs.txt"
    assert main(["profile", "--stitch_config", str(reference.config), "--output", str(out)]) == 0
    ours = read_rows(out)
    assert [row["flops"] for row in ours] == [row["flops"] for row in reference.ledger]
    assert len(ours) == PUBLISHED[reference.name]
    assert list(ours[0]) == ["cfg_id", "stitch", "flops", "params", "activations"]


@pytest.mark.parametrize("reference", mostly_full([*PUBLISHED][:-1], quick=["levit_192_256"]), indirect=True)
def test_law_5_published_weights_give_the_published_logits(model, reference, released):
    assert stitchkit.load_checkpoint(model, released)["epoch"] == 49
    x = reference.fill.images()
    with torch.inference_mode():
        for cfg_id, published in reference.content["logits"].items():
            model.reset_stitch_id(int(cfg_id))
            torch.testing.assert_close(model(x)[:, :8], torch.tensor(published), rtol=1e-3, atol=1e-3)


def assert_published_logits(model, reference, cfg_ids):
    """In one pass, which shares the work of the routes, of one image."""
    published = {cfg_id: torch.tensor(reference.content["logits"][str(cfg_id)]) for cfg_id in cfg_ids}
    with torch.inference_mode():
        logits = model.forward_all(reference.fill.images()[:1], cfg_ids)
    assert logits.keys() == published.keys()
    for cfg_id, found in logits.items():
        torch.testing.assert_close(found[:, :8], published[cfg_id], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reference", ["deit3_s_l"], indirect=True)
def test_law_5_some_published_logits_of_snnetv2(model, reference, monkeypatch):
    """The small anchor and a route of each kind, through few blocks of the large one."""
    cfg_ids = [0, 12, 14, 34, 80]
    _, large = model.views
    parts = [part for cfg_id in cfg_ids for part in model.space[cfg_id].segments]
    assert {len(model.space[cfg_id].segments) for cfg_id in cfg_ids} == {1, 2, 3}
    blocks = {block for part in parts if part.anchor == large for block in range(part.start, part.stop)}
    load_content(model, {"model": reference.state_dict_of_blocks(blocks, monkeypatch)}, "released")
    assert_published_logits(model, reference, cfg_ids)


@pytest.mark.full
@pytest.mark.parametrize("reference", ["deit3_s_l"], indirect=True)
def test_law_5_published_logits_of_snnetv2(model, reference, released):
    stitchkit.load_checkpoint(model, released)
    assert_published_logits(model, reference, model.space.ids)


def test_released_names_and_shapes_become_ours(model, reference, released):
    stitchkit.load_checkpoint(model, released)
    kept = set(reference.content["kept_buffers"])
    theirs = [shape for key, shape, _ in reference.content["keys"] if key not in kept]
    assert sorted(map(list, (value.shape for value in model.state_dict().values()))) == sorted(theirs)
    layers = {key: shape for key, shape, _ in reference.content["keys"] if key.startswith("stitch_layers.")}
    assert layers == {
        key: list(value.shape) for key, value in model.state_dict().items() if key.startswith("stitch_layers.")
    }


@pytest.mark.parametrize("reference", mostly_full(PUBLISHED, quick=["levit_192_256"]), indirect=True)
def test_convert_rewrites_a_released_file(model, reference, released, tmp_path, capsys):
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(released), str(out), "--stitch_config", str(reference.config)]) == 0
    assert str(out) in capsys.readouterr().out
    stitchkit.load_checkpoint(model, released)
    converted = read_checkpoint(out)
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18_resnet50", "resnet18_swin_ti"])
def test_split_batch_norms_come_and_go(name, shared):
    """A file may hold the further norms of `--split-bn` or not, and so may the network that it is loaded into."""
    reference = Reference(name, shared)
    with torch.no_grad(), WithoutInitialisation():
        plain, split = (stitchkit.create_snnet(reference.config) for _ in range(2))
    convert_splitbn_model(split, 2)
    load_content(split, {"model": reference.state_dict}, "released")
    weights = split.state_dict()
    further = [name for name in weights if ".aux_bn.0." in name]
    assert further
    assert all(torch.equal(weights[name], weights[name.replace(".aux_bn.0", "")]) for name in further)
    load_content(plain, {"state_dict": weights}, "split")
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("reference", mostly_full(PUBLISHED, quick=["levit_192_256"]), indirect=True)
def test_an_original_file_of_an_anchor_becomes_a_timm_model(reference, tmp_path):
    """What the authors of the anchors released, which SN-Net started from, is a checkpoint for an anchor."""
    name = StitchConfig.load(reference.config).anchors[-1].name
    number = len(StitchConfig.load(reference.config).anchors) - 1
    prefix = f"anchors.{number}."
    weights = {key.removeprefix(prefix): value for key, value in reference.state_dict.items() if prefix in key}
    torch.save({"model": weights}, tmp_path / "anchor.pth")
    model = create_model(name, checkpoint=tmp_path / "anchor.pth")
    assert model.num_classes == 1000
    assert create_model(name, checkpoint=tmp_path / "anchor.pth", num_classes=7).num_classes == 7


def test_published_params_of_deit_stitches_leave_some_parameters_out(shared):
    """Ours count every parameter of the extracted network; the published figures of stitches are described here."""
    with torch.no_grad(), WithoutInitialisation():
        model = stitchkit.create_snnet(ROOT / "configs/deit_ti_s_b.json")
    profiler = Profiler(model)
    for row in read_rows(shared / "published/deit_ti_s_b.jsonl"):
        stitch = model.space[row["cfg_id"]]
        front, end = (model.views[stitch.segments[i].anchor].model for i in (0, -1))
        ours = profiler.cost(stitch).params
        if not stitch.is_anchor:
            ours -= front.pos_embed.numel() + front.cls_token.numel()  # published: left out
            ours += sum(parameter.numel() for parameter in end.norm.parameters())  # published: counted, never run
        assert ours == row["params"]


@pytest.mark.full
def test_published_params_of_swin_stitches_leave_the_front_merging_out(shared):
    with torch.no_grad(), WithoutInitialisation():
        model = stitchkit.create_snnet(ROOT / "configs/swin_ti_s_b.json")
    profiler = Profiler(model)
    for row in read_rows(shared / "published/swin_ti_s_b.jsonl"):
        stitch = model.space[row["cfg_id"]]
        ours = profiler.cost(stitch).params
        if not stitch.is_anchor:
            front = model.views[stitch.segments[0].anchor]
            blocks, stages = stitch.segments[0].stop, front.model.layers
            entered = [number for number in range(1, 4) if sum(front.depths[:number]) < blocks]
            ours -= sum(p.numel() for number in entered for p in stages[number].downsample.parameters())
        assert ours == row["params"]
