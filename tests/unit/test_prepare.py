"""Collections of data sets laid out as image folders."""

import errno
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torchvision.datasets
import yaml
from PIL import Image

import stitchkit.data.prepare as prepare_module
from stitchkit.cli import main
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.prepare import COLLECTIONS, CollectionTask, prepare, prepare_one, read_collection
from stitchkit.data.source import Source
from stitchkit.errors import InputError
from stitchkit.files import filling
from tests import archives
from tests.support import ROOT

MERGING, GEOSPATIAL = read_collection("merging"), read_collection("geospatial")


def eurosat(root, count=20):
    """Its miniature source, and what is known of it."""
    archives.write_eurosat(root / "sources", count=count)
    return replace(MERGING["eurosat"], classes=3, images=3 * count)


def laid_out(folder):
    """The contents of the files of each split, by class."""
    return {
        split: {
            place.name: sorted(file.read_bytes() for file in place.iterdir())
            for place in sorted((folder / split).iterdir())
        }
        for split in ("train", "val", "test")
    }


def everything(split):
    return [content for files in split.values() for content in files]


def test_splits_are_disjoint_complete_and_the_same_each_time(tmp_path):
    task = eurosat(tmp_path)
    assert prepare_one("eurosat", task, tmp_path) == "43 train, 5 val, 12 test images of 3 classes"
    splits = laid_out(tmp_path / "eurosat")
    assert all(sorted(split) == ["Forest", "Highway", "River"] for split in splits.values())
    assert all(files for split in splits.values() for files in split.values())
    written = [content for split in splits.values() for content in everything(split)]
    source = [file.read_bytes() for file in (tmp_path / "sources").rglob("*.jpg")]
    assert sorted(written) == sorted(source)
    assert len(set(written)) == 60
    (tmp_path / "eurosat").rename(tmp_path / "before")
    prepare_one("eurosat", task, tmp_path)
    assert laid_out(tmp_path / "eurosat") == laid_out(tmp_path / "before")


def test_the_test_images_are_those_of_the_name(tmp_path):
    task = eurosat(tmp_path)
    by_name = open_dataset(Source("eurosat", tmp_path / "sources"), "test")
    images = {image.tobytes() for image, _ in by_name}
    prepare_one("eurosat", task, tmp_path)
    folder = open_dataset(Source("eurosat", tmp_path), "test")
    assert {image.tobytes() for image, _ in folder} == images
    assert len(open_dataset(Source("eurosat", tmp_path), "train")) == 43


KILLED = """
import os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
from stitchkit.data.prepare import prepare_one, read_collection

copy, left = shutil.copyfile, 25

def copy_some(*places):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    copy(*places)

shutil.copyfile = copy_some
task = replace(read_collection("merging")["eurosat"], classes=3, images=60)
prepare_one("eurosat", task, Path(sys.argv[1]))
"""


def fill(folder):
    with filling(folder) as unfinished:
        (unfinished / "image.png").touch()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_not_kept_full(tmp_path):
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "data")
    assert not [*tmp_path.iterdir()]


@pytest.mark.full
def test_killed_half_way_it_begins_again_and_ends_equal(tmp_path):
    task = eurosat(tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed"], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    left = list((tmp_path / "killed/eurosat.unfinished").rglob("*.jpg"))
    assert len(left) == 24
    assert not (tmp_path / "killed/eurosat").exists()
    (tmp_path / "killed/eurosat.unfinished/train/Forest/stray.jpg").touch()
    prepare_one("eurosat", task, tmp_path / "killed")
    assert not (tmp_path / "killed/eurosat.unfinished").exists()
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed/sources").rename(tmp_path / "whole/sources")
    prepare_one("eurosat", task, tmp_path / "whole")
    assert laid_out(tmp_path / "killed/eurosat") == laid_out(tmp_path / "whole/eurosat")


def test_what_is_complete_is_counted_and_left_alone(tmp_path, monkeypatch):
    task = eurosat(tmp_path)
    found = prepare_one("eurosat", task, tmp_path)
    monkeypatch.setattr(prepare_module, "_open", lambda *_: pytest.fail("read again"))
    assert prepare_one("eurosat", task, tmp_path) == found
    next((tmp_path / "eurosat/train/River").iterdir()).unlink()
    with pytest.raises(InputError, match=r"has 59 images and must have 60; remove it"):
        prepare_one("eurosat", task, tmp_path)
    for file in (tmp_path / "eurosat/val/River").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"val' has images of 2 classes and must have 3; remove"):
        prepare_one("eurosat", task, tmp_path)


def test_a_source_that_is_not_complete_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 60 images of 3 classes instead of 61 of 3"):
        prepare_one("eurosat", replace(eurosat(tmp_path), images=61), tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["sources"]


def test_arrays_become_files_with_the_same_pixels(tmp_path, monkeypatch):
    svhn = torchvision.datasets.SVHN
    archives.write_svhn(tmp_path / "sources", train=200, test=20)
    listed = {key: [*row[:2], None] for key, row in svhn.split_list.items()}
    monkeypatch.setattr(svhn, "split_list", listed)
    found = prepare_one("svhn", replace(MERGING["svhn"], images=220), tmp_path)
    assert found == "180 train, 20 val, 20 test images of 10 classes"
    by_name = open_dataset(Source("svhn", tmp_path / "sources"), "test")
    folder = open_dataset(Source("svhn", tmp_path), "test")
    pixels = [sorted((label, image.tobytes()) for image, label in part) for part in (by_name, folder)]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gtsrb", "43 train, 43 val, 43 test images of 43 classes"),
        ("dtd", "10 train, 10 val, 10 test images of 2 classes"),
        ("mnist", "10 train, 10 val, 10 test images of 10 classes"),
    ],
)
def test_torchvision_sets(tmp_path, monkeypatch, name, found):
    # Miniatures have too few images for one in ten of each class.
    monkeypatch.setattr(prepare_module, "VALIDATION_SHARE", 0.5)
    archives.write_gtsrb(tmp_path / "sources")
    archives.write_dtd(tmp_path / "sources/dtd/dtd", classes=2, count=5)
    archives.write_mnist(tmp_path / "sources")
    classes, images = (int(found.split()[-2]), 129 if name == "gtsrb" else 30)
    assert prepare_one(name, replace(MERGING[name], classes=classes, images=images), tmp_path) == found


def test_sets_of_hugging_face(tmp_path):
    pytest.importorskip("datasets")
    source = archives.write_folder(tmp_path / "hub", "train", "validation", "test", count=10)
    task = replace(MERGING["resisc45"], source=f"hfds/{source}", classes=2, images=60)
    assert prepare_one("resisc45", task, tmp_path) == "36 train, 4 val, 20 test images of 2 classes"
    tested = laid_out(tmp_path / "resisc45")["test"]
    assert sorted(everything(tested)) == sorted(file.read_bytes() for file in source.glob("test/*/*.png"))


def test_a_single_pool_of_hugging_face_is_divided_and_tiff_becomes_png(tmp_path):
    pytest.importorskip("datasets")
    source = archives.write_folder(tmp_path / "hub", "train", count=20, suffix="tif")
    task = replace(GEOSPATIAL["uc_merced"], source=f"hfds/{source}", classes=2, images=40)
    assert prepare_one("uc_merced", task, tmp_path) == "28 train, 4 val, 8 test images of 2 classes"
    files = [file for file in (tmp_path / "uc_merced").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".png"}
    before = {Image.open(file).tobytes() for file in source.rglob("*.tif")}
    assert {Image.open(file).tobytes() for file in files} == before


def test_a_set_that_a_person_fetches(tmp_path):
    task = replace(GEOSPATIAL["aid"], classes=2, images=40)
    with pytest.raises(
        InputError, match=r"AID.zip from .*2 class folders, with 40 images in total, are in '.*sources/AID'"
    ):
        prepare_one("aid", task, tmp_path)
    archives.write_folder(tmp_path / "sources/AID", "", count=20)
    assert prepare_one("aid", task, tmp_path) == "28 train, 4 val, 8 test images of 2 classes"


def test_names_with_a_slash_are_one_folder(tmp_path, monkeypatch):
    archives.write_cars(tmp_path / "sources")
    monkeypatch.setattr(prepare_module, "VALIDATION_SHARE", 0.5)
    prepare_one("cars", CollectionTask(source="stanfordcars", classes=2, images=8), tmp_path)
    assert sorted(place.name for place in (tmp_path / "cars/train").iterdir()) == ["Audi A5", "Ram C_V Van 2012"]


def own_collection(folder, **changes):
    """A person's own collection, of a set that must be fetched by hand and a miniature."""
    archives.write_eurosat(folder / "sources", count=20)
    aid = {"source": "AID", "classes": 30, "images": 10_000, "by_hand": "get AID.zip"}
    sets = {"aid": aid, "eurosat": {"source": "eurosat", "classes": 3, "images": 60}}
    path = folder / "mine.yml"
    path.write_text(yaml.safe_dump({"datasets": sets | changes}))
    return path


def test_the_command_prepares_the_other_sets_of_a_persons_own_collection(tmp_path, capsys):
    command = ["datasets", "prepare", str(own_collection(tmp_path)), "--data", str(tmp_path)]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "aid: it cannot be downloaded: get AID.zip" in printed.out
    assert "eurosat: 43 train" in printed.out
    assert printed.err.splitlines() == [
        "stitchkit: error: still missing: aid; follow the advice above, then run the command again"
    ]
    command[3] = "--root"  # its older name
    assert main([*command, "--only", "eurosat"]) == 0
    assert main([*command, "--only", "eurosta"]) == 2
    assert "did you mean 'eurosat'" in capsys.readouterr().err


def test_the_list_names_everything(capsys):
    assert main(["datasets", "list"]) == 0
    printed = capsys.readouterr().out
    assert "cifar10         download  cifar-10-batches-py/" in printed
    assert "imagenet        by hand " in printed
    for collection in COLLECTIONS:
        assert f"collection {collection}: {', '.join(read_collection(collection))}" in printed


def test_the_documentation_has_every_set_and_commands_that_parse(monkeypatch):
    text = (ROOT / "docs/datasets.md").read_text()
    for collection in COLLECTIONS:
        for name, task in read_collection(collection).items():
            assert f"| {name} | `{task.source}` | {task.images:,} | {task.classes} |" in text
    asked = []
    monkeypatch.setattr(prepare_module, "prepare", lambda *settings: asked.append(settings))
    for line in text.splitlines():
        if line.startswith("stitchkit datasets "):
            assert main(line.split()[1:]) == 0, line
    assert asked == [
        ("merging", Path("data"), ["mnist", "dtd"]), ("geospatial", Path("data"), []),
        ("my-collection.yml", Path("data"), []),
    ]  # fmt: skip


def test_the_collection_in_the_documentation_is_one(tmp_path):
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yml").write_text(block)
    assert read_collection(str(tmp_path / "mine.yml"))["pets"].splits == ("train", "test")


def test_a_wrong_collection(tmp_path):
    with pytest.raises(InputError, match="unknown data set of merging 'aid'"):
        prepare("merging", tmp_path, ["aid"])
    with pytest.raises(InputError, match="unknown collection 'merge'; did you mean 'merging'"):
        prepare("merge", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": {"source": "mnist", "classes": 10}}, "datasets.x.images is missing; add it"),
        ({"x": {"source": "mnist", "clases": 1}}, "datasets.x.clases: unknown key 'clases'; did you mean 'classes'"),
        ({"x": {"source": "mnist", "classes": 0, "images": 1}}, "datasets.x.classes is 0; it must be at least 1"),
        ({"x": {"source": "pipe:rm", "classes": 1, "images": 1}}, "datasets.x.source is 'pipe:rm', which begins with"),
        (
            {"../x": {"source": "mnist", "classes": 1, "images": 1}},
            "datasets.../x: '../x' cannot be the name of its folder",
        ),
        ({"sources": {"source": "mnist", "classes": 1, "images": 1}}, "'sources' cannot be the name of its folder"),
        ({"x": {"source": "../y", "classes": 1, "images": 1, "by_hand": "take it"}}, "name a folder inside sources/"),
    ],
)
def test_a_wrong_file_of_a_collection_ends_with_its_line(tmp_path, changes, message):
    path = own_collection(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        read_collection(str(path))
    assert message in str(error.value)
    assert f"'{path}', line " in str(error.value)
