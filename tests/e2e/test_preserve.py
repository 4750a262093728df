"""`--preserve`: what stays of the anchors, what a checkpoint holds, and what the log says of them."""

import csv

import pytest
import torch

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.ship.stitch_files import load_stitch
from tests.support import FLAGS, weights, write_config

MODES = ("frozen", "lora")


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of each mode, with the weights at its start."""
    folder = tmp_path_factory.mktemp("preserve")
    config, ranked = write_config(folder / "pico.json"), write_config(folder / "ranked.json", anchor_lora_r=2)
    for mode in MODES:
        flags = ["--preserve", mode, "--lr", "1e-2", "--output", folder, "--experiment", mode]
        flags += ["--stitch_config", ranked if mode == "lora" else config]
        assert main([*map(str, ["train", images, *FLAGS, *flags])]) == 0
    return folder


def changed(folder, mode):
    """The tensors that a run has changed after its first epoch, by their first name."""
    first, last = (weights(folder / mode / f"checkpoint-{epoch}.pth.tar") for epoch in (0, 1))
    return {name for name in last if not torch.equal(first[name], last[name])}


def test_only_what_a_mode_trains_changes(trained):
    parts = {mode: {name.partition(".")[0] for name in changed(trained, mode)} for mode in MODES}
    assert parts == {"frozen": {"stitch_layers"}, "lora": {"stitch_layers", "updates"}}


def test_checkpoints_keep_the_anchors_as_they_were(trained):
    contents = {mode: torch.load(trained / mode / "last.pth.tar", weights_only=True) for mode in MODES}
    assert contents["lora"]["stitch_config"]["anchor_lora_r"] == 2
    anchors = {
        mode: {k: v for k, v in contents[mode]["state_dict"].items() if k.startswith("anchors")} for mode in MODES
    }
    for key, value in anchors["lora"].items():
        assert torch.equal(value, anchors["frozen"][key])
    assert all(set(content["alone"]) == {"ti", "s", "b"} for content in contents.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_summary_shows_each_anchors_change(trained, mode):
    alone = torch.load(trained / mode / "last.pth.tar", weights_only=True)["alone"]
    with (trained / mode / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        for label in ("ti", "s", "b"):
            assert float(row[f"eval_{label}_change"]) == float(row[f"eval_{label}_acc1"]) - alone[label]
            assert float(row[f"eval_{label}_change"]) == 0
    log = (trained / mode / "log.txt").read_text()
    said = "  ".join(f"{label} {float(rows[1][f'eval_{label}_change']):+.2f}" for label in ("ti", "s", "b"))
    assert f"change since before training  {said}\n" in log


@pytest.mark.full
def test_a_checkpoint_with_updates_is_evaluated_exported_and_shared(images, trained, tmp_path):
    folder = trained / "lora"
    assert main(["train", "-c", str(folder / "args.yaml"), "--eval", "--resume", str(folder / "last.pth.tar")]) == 0
    rows = {row["cfg_id"]: row for row in read_rows(folder / "stitches_res.txt")}
    file = tmp_path / "net.safetensors"
    common = ["--config", str(folder / "eval_args.yaml"), "--resume", str(folder / "last.pth.tar")]
    assert main(["export", *common, "--cfg-id", "4", "-o", str(file)]) == 0
    net = load_stitch(file)
    model = stitchkit.HubSNNet.from_run(config=str(folder / "eval_args.yaml"), resume=str(folder / "last.pth.tar"))
    x = torch.randn(2, *model.input_size)
    torch.testing.assert_close(net(x), model(x, 4))
    assert rows[4]["params"] == sum(weight.numel() for weight in net.parameters())
    model.save_pretrained(tmp_path / "hub")
    again = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub").eval()
    assert torch.equal(again(x, 4), model(x, 4))


def test_a_checkpoint_with_updates_says_what_it_needs(images, trained, capsys):
    flags = ["--stitch_config", trained / "pico.json", *FLAGS, "--eval", "--resume", trained / "lora/last.pth.tar"]
    assert main([*map(str, ["train", images, *flags, "--output", trained, "--experiment", "other"])]) != 0
    advice = "use the settings of its run (-c RUN/args.yaml)"
    assert f"anchor_lora_r is None here, but 2 in the checkpoint; {advice}" in capsys.readouterr().err
    flags[1] = trained / "ranked.json"
    assert main([*map(str, ["train", images, *flags, "--output", trained, "--experiment", "other"])]) == 0
