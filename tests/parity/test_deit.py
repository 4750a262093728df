"""Laws 3, 4 and 5 for DeiT-Ti/S/B: the published space, FLOPs and logits."""

import argparse
import importlib.util
import json

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from tests.support import ROOT

CONFIG = ROOT / "configs/deit_ti_s_b.json"


@pytest.fixture(scope="module")
def model():
    return stitchkit.create_snnet(CONFIG).eval()


def fill(shared):
    """The module that rebuilds the reference weights and images."""
    spec = importlib.util.spec_from_file_location("fill", shared / "golden/fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_law_3_published_space(model, shared):
    reference = json.loads((shared / "golden/deit_ti_s_b.json").read_text())
    labels = list(model.views)
    assert len(model.space) == reference["num_stitches"] == 71
    for cfg_id, expected in reference["stitch_configs"].items():
        stitch = model.space[int(cfg_id)]
        assert [labels.index(segment.anchor) for segment in stitch.segments] == expected["comb_id"]
        assert [[joint.front_block, joint.end_block] for joint in stitch.joints] == expected["stitch_cfgs"]
        assert [model.space.layers[joint][-1] for joint in stitch.joints] == expected["stitch_layers"]


def test_law_4_published_flops(shared, tmp_path, capsys):
    out = tmp_path / "costs.txt"
    assert main(["profile", "--stitch_config", str(CONFIG), "--output", str(out)]) == 0
    published = read_rows(shared / "published/deit_ti_s_b.jsonl")
    ours = read_rows(out)
    assert [row["flops"] for row in ours] == [row["flops"] for row in published]
    assert len(ours) == 71
    assert list(ours[0]) == ["cfg_id", "stitch", "flops", "params"]


def test_published_params_of_stitches_leave_some_parameters_out(model, shared):
    """Ours count every parameter of the extracted network; the published figures of stitches are described here."""
    from stitchkit.measure.profile import Profiler

    profiler = Profiler(model)
    for row in read_rows(shared / "published/deit_ti_s_b.jsonl"):
        stitch = model.space[row["cfg_id"]]
        front, end = (model.views[stitch.segments[i].anchor].model for i in (0, -1))
        ours = profiler.cost(stitch).params
        if not stitch.is_anchor:
            ours -= front.pos_embed.numel() + front.cls_token.numel()  # published: left out
            ours += sum(parameter.numel() for parameter in end.norm.parameters())  # published: counted, never run
        assert ours == row["params"]


@pytest.mark.parametrize("wrapper", ["released", "timm"])
def test_law_5_published_weights(model, shared, tmp_path, wrapper):
    path = shared / "golden/deit_ti_s_b.json"
    reference = json.loads(path.read_text())
    tools = fill(shared)
    weights = tools.state_dict(str(path), seed=0)
    if wrapper == "released":
        content = {"model": weights, "epoch": 49, "args": argparse.Namespace(lr=5e-5, data_set="IMNET")}
        wanted = range(71)
    else:
        content = {"state_dict": {f"module.{key}": value for key, value in weights.items()}}
        wanted = [24]
    torch.save(content, tmp_path / "released.pth")
    stitchkit.load_checkpoint(model, tmp_path / "released.pth")
    images = tools.images(seed=0)
    for cfg_id in wanted:
        model.reset_stitch_id(cfg_id)
        with torch.no_grad():
            logits = model(images)[:, :8]
        torch.testing.assert_close(logits, torch.tensor(reference["logits"][str(cfg_id)]), atol=1e-3, rtol=1e-3)
