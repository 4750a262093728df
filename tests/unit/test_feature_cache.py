"""Features of frozen anchors on disk: the same training without computing them again, and which folders are refused."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.combinations import check
from stitchkit.training import feature_cache
from stitchkit.training.features import FeatureLoss
from tests.commands import refused
from tests.support import FLAGS, SPACES, mostly_full, weights

ONCE = ["--loss", "features", "--no-aug", "--lr", "1e-2", "--epochs", "3", "--val-interval", "9"]


def command(data, folder, name, *flags, family="headless vit"):
    config = folder / "config.json"
    config.write_text(json.dumps(SPACES[family]))
    place = ["--output", folder, "--experiment", name]
    return [*map(str, ["train", data, "--stitch_config", config, *FLAGS, *ONCE, *place, *flags])]


def kept(folder):
    return ["--cache-features", str(folder / "kept")]


@pytest.fixture
def computed(monkeypatch):
    """Counts the batches of each size that anchors are run on for targets of training, and the image of the plan."""
    calls, create = Counter(), FeatureLoss.__init__

    def counted(self, *arguments):
        create(self, *arguments)
        for number, body in enumerate(self.bodies):
            body.register_forward_hook(lambda _, given, __, number=number: calls.update([(number, len(given[0]))]))

    monkeypatch.setattr(FeatureLoss, "__init__", counted)
    monkeypatch.setattr("stitchkit.training.validation.held_out_loss", lambda *_, **__: 0.5)
    return calls


def assert_same(folder, one, other):
    first, second = (torch.load(folder / name / "last.pth.tar", weights_only=True) for name in (one, other))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    assert (folder / one / "summary.csv").read_text() == (folder / other / "summary.csv").read_text()


RUNS = {
    "by each": ([], "headless vit"),
    "sandwich": (["--sampler", "sandwich"], "headless vit"),
    "best of": (["--sampler", "best_of"], "headless vit"),
    "cosine, no prefetcher": (["--feature-distance", "cosine", "--no-prefetcher"], "headless vit"),
    "loader processes": (["-j", "2"], "headless vit"),
    "accumulated": (["--grad-accum-steps", "2", "--aug-repeats", "2"], "headless vit"),
    "batch norms": ([], "headless levit"),
    "both precisions": (["--amp", "--amp-dtype", "bfloat16"], "headless vit"),
    "low precision": (["--model-dtype", "bfloat16"], "headless vit"),
    "in other memory": (["--num-classes", "0", "--channels-last"], "NCHW, layer norm"),
}


@pytest.mark.parametrize("name", mostly_full(RUNS, quick=["by each", "sandwich"]))
def test_the_run_is_the_same_and_later_epochs_compute_no_features(name, images, tmp_path, computed):
    flags, family = RUNS[name]
    assert main(command(images, tmp_path, "plain", *flags, family=family)) == 0
    assert sum(computed.values()) >= 24
    computed.clear()
    assert main(command(images, tmp_path, "cached", *flags, *kept(tmp_path), family=family)) == 0
    assert_same(tmp_path, "plain", "cached")
    first = weights(tmp_path / "cached/checkpoint-0.pth.tar")
    assert any(not torch.equal(value, first[key]) for key, value in weights(tmp_path / "cached/last.pth.tar").items())
    ends = {end for end, _ in computed}
    if name != "accumulated":  # with repeats, an epoch lacks some images
        assert computed == {(end, count): calls for end in ends for count, calls in ((1, 1), (8, 8))}
    computed.clear()
    assert main(command(images, tmp_path, "again", *flags, *kept(tmp_path), family=family)) == 0
    assert_same(tmp_path, "plain", "again")
    assert name == "accumulated" or computed == {(end, 1): 1 for end in ends}


def test_images_that_an_epoch_leaves_out_come_later(images, tmp_path, computed):
    """64 images fill five batches of 12."""
    assert main(command(images, tmp_path, "plain", "-b", "12")) == 0
    computed.clear()
    assert main(command(images, tmp_path, "cached", "-b", "12", *kept(tmp_path))) == 0
    assert_same(tmp_path, "plain", "cached")
    assert {count for _, count in computed} == {1, 12}
    for end, count in computed:
        assert count == 1 or 5 < computed[end, count] < 15


def test_what_is_kept_is_said_before_and_is_that(images, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(command(images, tmp_path, "run", *kept(tmp_path), "--dry-run")) == 0
    said = f"features of anchors s, b are kept in {tmp_path / 'kept'}: 61.6kB"
    assert caplog.messages.count(said) == 1
    assert not (tmp_path / "kept").exists()
    assert main(command(images, tmp_path, "run", *kept(tmp_path), "--epochs", "1")) == 0
    assert caplog.messages.count(said) == 2
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "kept").iterdir()}
    del sizes["cache.json"]
    assert sizes == {"s.features": 64 * 5 * 16 * 4, "b.features": 64 * 5 * 32 * 4, "s.found": 64, "b.found": 64}
    assert sum(sizes.values()) == 61_568
    assert main(command(images, tmp_path, "other", *kept(tmp_path), "--dry-run")) == 0, "also of what exists"


def test_an_image_that_takes_the_place_of_another_keeps_its_number(tmp_path):
    """So that nothing wrong is kept if a disk fails for a moment."""
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    opened = open_dataset(Source("", tmp_path, needs_labels=False), "train")  # all but the first
    images = CheckedImages(opened, num_classes=0, is_training=True, is_numbered=True)
    found = [images[index] for index in range(4)]
    assert [number for _, number in found] == [0, 2, 2, 3]
    assert [image.getpixel((0, 0))[0] for image, _ in found] == [1, 3, 3, 4]
    assert images.names() == [f"'{number}.png'" for number in range(1, 5)]


OTHER = {
    "anchors": ["--seed", "1"],
    "images": [],
    "preparation": ["--mean", "0.4"],
    "precision": ["--amp", "--amp-dtype", "bfloat16"],
    "preparation and precision": ["--interpolation", "nearest", "--amp", "--amp-dtype", "bfloat16"],
}


def test_features_of_something_else_are_refused(images, tmp_path, capsys):
    assert main(command(images, tmp_path, "run", *kept(tmp_path), "--epochs", "1")) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    data = tmp_path / "data"
    shutil.copytree(images, data)
    place = kept(tmp_path)[1]
    for what, flags in OTHER.items():
        given = images
        if what == "images":
            given = data
            next((data / "train/class0").iterdir()).rename(data / "train/class0/another.png")
        said = refused(capsys, *command(given, tmp_path, "other", *kept(tmp_path), *flags))
        wanted = f"features in '{place}' are of other {what}; remove the folder, or give another as --cache-features"
        assert said.endswith(wanted), what
        assert not (tmp_path / "other/args.yaml").exists()
    assert {file: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == before
    (tmp_path / "kept/s.features").write_bytes(b"x")
    said = refused(capsys, *command(images, tmp_path, "other", *kept(tmp_path)))
    assert "s.features' has 1 bytes, not 20,480; remove the folder, or give another" in said
    (tmp_path / "kept/s.features").unlink()
    (tmp_path / "kept/s.features").symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in refused(capsys, *command(images, tmp_path, "other", *kept(tmp_path)))
    (tmp_path / "kept/cache.json").write_text("[")
    assert "cache.json" in refused(capsys, *command(images, tmp_path, "other", *kept(tmp_path)))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_nothing_is_written_where_there_is_something_else_or_no_room(dry, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/s.features").write_text("mine")
    for place in ("full", "full/s.features"):
        said = refused(capsys, *command(images, tmp_path, "run", "--cache-features", tmp_path / place, *dry))
        assert "is not empty, and has no features; give a new folder as --cache-features" in said
    assert [*(tmp_path / "full").iterdir()] == [tmp_path / "full/s.features"]
    assert (tmp_path / "full/s.features").read_text() == "mine"
    asked = []

    def usage(place):
        asked.append(place)
        return SimpleNamespace(free=61_567)

    monkeypatch.setattr(feature_cache.shutil, "disk_usage", usage)
    said = refused(capsys, *command(images, tmp_path, "run", "--cache-features", tmp_path / "a/b", *dry))
    assert f"kept in {tmp_path}/a/b: 61.6kB, but the disk has 61.6kB left; give a folder on another disk" in said
    assert asked == [tmp_path]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss": "task"},
            "--cache-features is for training without labels, not for --loss task; give --loss features",
        ),
        ({"loss": "features+task"}, r"not for --loss features\+task; give --loss features, or leave it out"),
        ({"preserve": "none"}, "--preserve none trains them; give --preserve frozen or lora, or leave it out"),
        ({"no_aug": False}, "--cache-features needs the same images in every epoch; add --no-aug, or leave it out"),
        ({"cache_features": "pipe:x"}, "begins with a scheme"),
    ],
)
def test_settings_that_change_features_are_refused(given, message):
    common = {"stitch_config": "x", "data_dir": "y", "loss": "features", "no_aug": True, "cache_features": "kept"}
    check(make_recipe(common))
    check(make_recipe(common | {"preserve": "lora"}))
    check(make_recipe(common | {"no_aug": False, "eval": True, "resume": "last.pth.tar"}))
    with pytest.raises(InputError, match=message):
        check(make_recipe(common | given))


def test_ranks_of_several_machines_are_refused(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feature_cache, "gather_objects", lambda _: ["one", "two"])
    said = refused(capsys, *command(images, tmp_path, "run", *kept(tmp_path)))
    assert "--cache-features is for the ranks of one machine; leave it out" in said
    assert not (tmp_path / "kept").exists()
