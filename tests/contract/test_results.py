"""What is committed under results/ holds what the documents say of it."""

import csv
import re
from itertools import product

import pytest

from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.kinds.gaps import find_shapes
from stitchkit.cli import main
from stitchkit.measure.intervals import add_intervals, compared_beside
from stitchkit.measure.ledger import Ledger, read_rows
from stitchkit.measure.pareto import is_anchor, pareto_front
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.profile import Profiler
from stitchkit.model.create import create_snnet
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import ROOT, mostly_full

DIGITS = ROOT / "results/digits_vit"


def alone(label):
    with (DIGITS / f"anchor_{label}.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["eval_model_acc1"])


def test_the_digits_ledger_is_of_the_shipped_configuration():
    model = create_snnet(StitchConfig.load(ROOT / "configs/digits_vit.json"), checkpoints=False)
    ledger = Ledger(DIGITS / "stitches_res.txt", model.space, Profiler(model).cost)
    assert not ledger.missing
    assert all(row["images"] == 600 for row in ledger.rows)


def test_the_demo_is_worth_looking_at():
    rows = read_rows(DIGITS / "stitches_res.txt")
    inside = {row["stitch"].split("[")[0]: row["acc1"] for row in rows if is_anchor(row)}
    apart = {label: alone(label) for label in inside}
    assert max(apart.values()) - min(apart.values()) >= 5
    assert all(abs(inside[label] - apart[label]) <= 2 for label in inside)
    assert sum(not is_anchor(row) for row in pareto_front(rows)) >= 4


def test_the_readme_shows_the_committed_table(capsys):
    assert main(["pareto", str(DIGITS / "stitches_res.txt")]) == 0
    table = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(r"```\n(   cfg_id.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    header, *rows = shown.splitlines()
    assert table[0].startswith(header)
    assert len(rows) == 6
    assert not [row for row in rows if not any(line.startswith(f"{row} ") for line in table)]
    document = (DIGITS / "README.md").read_text()
    for row in read_rows(DIGITS / "stitches_res.txt"):
        if is_anchor(row):
            label = row["stitch"].split("[")[0]
            assert f"| {label} | {alone(label):.2f} | {row['acc1']:.2f} |" in document


FAMILIES = ROOT / "results/digits_families"
LEDGERS = {
    "digits_swin": "stitching_swin",
    "digits_resnet": "stitching_resnet_swin",
    "digits_resnet_recalibrated": "stitching_resnet_swin",
    "digits_resnet_swin": "stitching_resnet_swin",
    "digits_levit": "stitching_levit",
    "digits_levit_recalibrated": "stitching_levit",
}


@pytest.mark.parametrize("name", mostly_full(LEDGERS, quick=["digits_resnet"]))
def test_the_readme_of_a_family_shows_its_committed_ledger(name):
    model = create_snnet(
        StitchConfig.load(ROOT / f"configs/{name.removesuffix('_recalibrated')}.json"), checkpoints=False
    )
    ledger = Ledger(FAMILIES / f"{name}.txt", model.space, Profiler(model).cost)
    assert not ledger.missing
    assert all(row["images"] == 600 for row in ledger.rows)
    anchors = " / ".join(f"{row['acc1']:.2f}" for row in ledger.rows if is_anchor(row))
    stitches = [row["acc1"] for row in ledger.rows if not is_anchor(row)]
    shown = f"{anchors}; {min(stitches):.2f} to {max(stitches):.2f} |"
    assert shown in (ROOT / LEDGERS[name] / "README.md").read_text()


def test_the_digits_sweep_is_of_the_shipped_configuration_and_holds_what_its_page_says():
    with (ROOT / "results/digits_sweep/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = {row["job"]: row for row in rows}
    uncut = {row["uncut"]: float(row["test_accuracy"]) for row in last.values() if row["uncut"]}
    bridged = [float(row["test_accuracy"]) for row in last.values() if not row["uncut"]]
    page = (ROOT / "results/digits_sweep/README.md").read_text()
    assert f"({uncut['source']:.1f} % alone)" in page
    assert f"({uncut['destination']:.1f} % alone)" in page
    assert f"recover up to {max(bridged):.1f} %" in page
    config = read_settings_file(ROOT / "configs/across-scales/digits.yml")
    assert len(bridged) == len(config["gaps"]) * len(config["stitchers"]) == 20
    assert {row["epoch"] for row in last.values() if not row["uncut"]} == {str(config["train_config"]["epochs"])}


def test_adapters_of_the_digits_sweep_differ_in_how_they_down_sample_only_where_the_source_is_larger():
    with (ROOT / "results/digits_sweep/results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gap"]]
    found = {(row["gap"], row["adapter"], row["epoch"]): float(row["test_accuracy"] or "nan") for row in rows}
    epochs = sorted({epoch for _, _, epoch in found}, key=int)

    def curve(gap, adapter):
        return [found[gap, adapter, epoch] for epoch in epochs[1:]]

    config = read_settings_file(ROOT / "configs/across-scales/digits.yml")
    source, destination = (
        find_shapes([PartSpec.parse(piece, key) for piece in config[key]], (32, 32))
        for key in ("src_stages", "dest_stages")
    )
    pairs = [("linear_no_downsample", "downsample_then_linear"), ("downsample_then_3x3conv", "conv3x3_with_downsample")]
    for gap, (one, other) in product(config["gaps"], pairs):
        first, last = gap["blocks_to_drop"]
        name, before, after = f"{first},{last}", source[first - 1].gives, destination[last + 1].takes
        assert (curve(name, one) == curve(name, other)) == (before.grid == after.grid)
    resized, strided = (curve("1,1", adapter)[-1] for adapter in pairs[1])
    assert (
        f"{resized:.1f} %, one with a stride {strided:.1f} %" in (ROOT / "results/digits_sweep/README.md").read_text()
    )


def test_the_page_of_heads_by_encoders_has_the_measured_figures():
    folder = ROOT / "results/scenes_heads"
    with (folder / "summary.csv").open() as file:
        cells = {(row["head_dataset"], row["encoder_dataset"]): row for row in csv.DictReader(file)}
    page = (folder / "README.md").read_text()
    for head, words, key in (("segmentation", "masks, mean IoU", "miou"), ("depth", "depths, delta1", "delta1")):
        encoders = ("base", "scenes-depth", "scenes-segmentation")
        figures = [float(cells[f"scenes-{head}", encoder][f"test_{key}"]) for encoder in encoders]
        assert f"| {words} (%) | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |" in page


SCENES = ROOT / "results/scenes"


def test_the_ledger_of_scenes_is_of_the_shipped_configuration_and_its_intervals_of_its_sums():
    model = create_snnet(StitchConfig.load(ROOT / "configs/scenes_resnet.json"), checkpoints=False, num_classes=10)
    ledger = Ledger(SCENES / "stitches_res.txt", model.space, Profiler(model).cost)
    assert not ledger.missing
    sums = PerImage.read(SCENES / "stitches_res.sums")
    assert sums.names == tuple(f"{number:04d}.png" for number in range(200))
    again = [{key: row[key] for key in ("cfg_id", "stitch", "flops", "miou")} for row in ledger.rows]
    add_intervals(again, compared_beside(SCENES / "stitches_res.txt", "miou"))
    for row, other in zip(ledger.rows, again, strict=True):
        assert sums.figures(row["cfg_id"]) == {key: row[key] for key in ("miou", "pixel_acc", "images")}
        assert {key: row[key] for key in other} == other


@pytest.mark.parametrize("path", sorted([*ROOT.glob("results/*/*.hits"), *ROOT.glob("results/*/*.sums")]), ids=str)
def test_committed_files_of_images_are_written_as_they_are_read(path, tmp_path):
    images = PerImage.read(path)
    images.write(tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    for row in read_rows(path.with_name("stitches_res.txt")):
        figures = images.figures(row["cfg_id"])
        assert figures == {key: row[key] for key in figures}


def test_the_page_of_scenes_shows_its_ledger(capsys):
    assert main(["pareto", str(SCENES / "stitches_res.txt")]) == 0
    assert capsys.readouterr().out in (SCENES / "README.md").read_text()
    rows = read_rows(SCENES / "stitches_res.txt")
    assert all(20 < row["miou"] < 100 for row in rows)
    assert len(pareto_front(rows)) == 7
