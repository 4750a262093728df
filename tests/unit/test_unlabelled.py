"""Images without labels: what they are, which of them are held out, and what is refused."""

import itertools
import random
import re
import shutil

import pytest
import torch
import torch.distributed as dist

from stitchkit.data.decoding import Decoding
from stitchkit.data.labelled_images import image_names
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source, is_unlabelled
from stitchkit.data.unlabelled import has_labels, hold_out
from stitchkit.data.unreadable import NO_CLASS
from stitchkit.distributed import init_world
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.ship.trained_snnet import open_trained, sample_images
from stitchkit.training.data import check_labels, create_loaders, open_datasets
from stitchkit.training.inputs import read_run
from stitchkit.training.network import create_network
from tests import archives
from tests.commands import refused
from tests.support import FLAGS, pico_snnet, write_config

MODEL = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
PHOTOS = [f"{year}/{number}.png" for year in ("2024", "2025") for number in range(20)] + ["cover.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """41 photos in folders, and one directly in the folder."""
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        archives.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def world():
    yield init_world("cpu")
    dist.destroy_process_group()


def both(place, **options):
    """The names of the training part and of what is held out."""
    parts = [open_dataset(Source("", place, needs_labels=False, **options), split) for split in ("train", "validation")]
    assert [part.split for part in parts] == ["train", "validation"]
    assert not any(has_labels(part) or part.classes for part in parts)
    return [[part.reader.filename(number) for number in range(len(part))] for part in parts]


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def recipe_of(place, **settings):
    given = {"data_dir": str(place), "stitch_config": "x.json", "loss": "features", "batch_size": 8, "workers": 0}
    return make_recipe(given | settings)


def loaders_of(place, world, *, num_classes=0, **settings):
    recipe = recipe_of(place, **settings)
    shape = {"input_size": (3, 16, 16), "model_config": MODEL, "num_classes": num_classes}
    return create_loaders(open_datasets(recipe), recipe, world, **shape)


@pytest.mark.parametrize("count", [2, 19, 20, 21, 41, 99_999, 100_000, 100_001, 1_281_167])
def test_every_twentieth_is_held_out_and_at_most_five_thousand(count):
    names = [f"{number:07d}" for number in range(count)]
    trained, held_out = hold_out(names)
    assert sorted(trained + held_out) == names
    assert trained
    if count <= 100_000:
        assert held_out == names[::20]
    places = [int(name) for name in held_out]
    steps = {second - first for first, second in itertools.pairwise(places)}
    assert len(steps) <= 1, "evenly spaced"
    assert count - places[-1] <= max(20, *steps, 0), "up to the last"
    assert 0.9 * min(5000, count / 20) <= len(held_out) <= 5000


def test_what_is_held_out_follows_from_the_names_alone(photos, tmp_path):
    """Not from where the images lie, in which order they were written, or whether a folder or a list names them."""
    trained, held_out = both(photos)
    assert held_out == [sorted(PHOTOS)[place] for place in (0, 20, 40)]
    assert sorted(trained + held_out) == sorted(PHOTOS)
    shuffled = random.Random(0).sample(PHOTOS, len(PHOTOS))
    for name in shuffled:
        place = tmp_path / "moved/here" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, place)
    assert both(tmp_path / "moved/here") == [trained, held_out]
    assert both(write_list(tmp_path / "moved/here/list.txt", shuffled)) == [trained, held_out]


def test_all_images_count_at_any_depth_but_for_hidden_ones_and_links_in_circles(tmp_path, caplog):
    """Folders beside loose images are no classes."""
    caplog.set_level("INFO")
    archives.write_folder(tmp_path, "", count=2)  # cat/ and dog/
    for name in ("1.png", "deep/down/1.jpg", ".hidden/1.png", "cat/.1.png"):
        archives.save(tmp_path / name)
    for name in ("notes.txt", "photo.heic", "photo2.heic"):
        (tmp_path / name).touch()
    (tmp_path / "deep/again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked.png").symlink_to(tmp_path / "1.png")
    trained, held_out = both(tmp_path)
    found = sorted(trained + held_out)
    in_folders = ["cat/image_0.png", "cat/image_1.png", "deep/down/1.jpg", "dog/image_0.png", "dog/image_1.png"]
    assert found == ["1.png", *in_folders, "linked.png"]
    assert held_out == ["1.png"]
    assert "train: 6 images without labels, and 1 held out; 3 files ignored (.heic, .txt)" in caplog.messages
    assert f"evaluating on the validation images of '{tmp_path}'" in caplog.text


def test_a_folder_with_a_split_has_labels_whatever_lies_beside_it(images, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    archives.save(tmp_path / "data/cover.png")
    source = Source("", tmp_path / "data", needs_labels=False)
    assert not is_unlabelled(source)
    assert len(open_dataset(source, "train").classes) == 4
    assert is_unlabelled(Source("", tmp_path / "data/train")), "class folders are labels only within a split"
    shutil.rmtree(tmp_path / "data/train")
    with pytest.raises(InputError, match="has no train/ folder with class folders in it"):
        open_dataset(source, "train")
    assert len(open_dataset(source, "validation").classes) == 4
    (tmp_path / "data/validation").rename(tmp_path / "data/judged")
    assert len(open_dataset(source, "judged").classes) == 4, "a name of one's own means labels"


def test_splits_without_class_folders_are_used(tmp_path, caplog):
    """They were taken as one pile, so that images of the validation split were trained on."""
    caplog.set_level("INFO")
    for name in (
        "train/1.png",
        "train/2.png",
        "train/.thumbnails/1.png",
        "val/3.png",
        "test/4.png",
        "more/5.png",
        "6.png",
    ):
        archives.save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    for split, names in {
        "train": ["1.png", "2.png"],
        "validation": ["3.png"],
        "val": ["3.png"],
        "test": ["4.png"],
    }.items():
        images = open_dataset(Source("", tmp_path, needs_labels=False), split)
        assert [*image_names(images)] == names
        assert not has_labels(images)
        assert images.split == {"validation": "val"}.get(split, split)
    assert "train: 2 images without labels; not used: 6.png, more/" in caplog.messages
    assert "val: 1 image without labels" in caplog.messages
    recipe = recipe_of(tmp_path, eval=True)
    check_labels(recipe)


def test_a_training_split_alone_is_held_out_of(tmp_path, caplog):
    caplog.set_level("INFO")
    for number in range(21):
        archives.save(tmp_path / f"train/{number:02d}.png")
    held_out = both(tmp_path)[1]
    assert held_out == ["train/00.png", "train/20.png"]
    assert "train: 19 images without labels, and 2 held out" in caplog.messages


def test_images_of_a_validation_split_alone_are_not_trained_on(tmp_path):
    source = Source("", tmp_path, needs_labels=False)
    archives.save(tmp_path / "val/1.png")
    assert len(open_dataset(source, "validation")) == 1
    with pytest.raises(InputError, match=r"has val/ and no train/; add train/, or rename val/"):
        open_dataset(source, "train")
    archives.save(tmp_path / "train/1.png")
    with pytest.raises(InputError, match="has val/ and no test/; choose another split"):
        open_dataset(source, "test")


@pytest.mark.parametrize(("whole", "flat"), [("train", "validation"), ("validation", "train")])
def test_all_splits_have_class_folders_or_none(whole, flat, tmp_path):
    archives.save(tmp_path / whole / "cat/1.png")
    archives.save(tmp_path / flat / "1.png")
    with pytest.raises(InputError, match=f"'.*/{flat}' has no class folders, but '.*/{whole}' has; give all"):
        open_dataset(Source("", tmp_path, needs_labels=False), flat)


def test_a_list_is_read_as_people_write_it(photos, tmp_path, caplog):
    """Relative to the list, or absolute; with repeated and empty lines, and line ends of other systems."""
    caplog.set_level("INFO")
    folder = tmp_path / "lists"
    for name in ("a.png", ".b.png", "c d.photo", "é.png"):
        archives.save(folder / "photo.png")
        (folder / "photo.png").rename(folder / name)
    lines = ["a.png", "", "./a.png", ".b.png", "c d.photo", "  ", "é.png", str(photos / "cover.png"), "a.png"]
    (folder / "list.TXT").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    trained, held_out = both(folder / "list.TXT")
    assert held_out == [".b.png"]
    assert [name.rpartition("/")[2] for name in trained] == ["cover.png", "a.png", "c d.photo", "é.png"]
    assert "train: 4 images without labels, and 1 held out; 2 lines ignored (repeated)" in caplog.messages
    assert "validation: 1 image without labels, held out of 5; 2 lines ignored (repeated)" in caplog.messages
    images = open_dataset(Source("", folder / "list.TXT", needs_labels=False), "train")
    images.decoding = Decoding("L")
    assert images[0][0].mode == "L"
    assert images[0][1] == NO_CLASS
    options = (("input_key", ".photo;.PNG"),)
    assert sum(map(len, both(folder / "list.TXT", options=options))) == 5
    options = (("input_key", ".png"),)
    assert sum(map(len, both(folder / "list.TXT", options=options))) == 4
    assert (
        "train: 3 images without labels, and 1 held out; 3 lines ignored (repeated or of another suffix)"
        in caplog.messages
    )
    assert sum(map(len, both(photos, options=options))) == len(PHOTOS)


REFUSED = {
    "an empty list": ([], "names no image; write the path of one on each line, relative to the list"),
    "a list of empty lines": (["", " "], "names no image"),
    "a missing file": (
        ["a.png", "b.png", "c.png"],
        "names 2 files that cannot be found, such as 'b.png'; write the path of one image on each line",
    ),
    "a folder": (["a.png", "inner"], "names 1 file that cannot be found, such as 'inner'"),
    "labels": (["a.png 0", "a.png 1"], "names 2 files that cannot be found, such as 'a.png 0'"),
    "a device": (["a.png", "/dev/zero"], "names 1 file that cannot be found, such as '/dev/zero'"),
    "one image": (["a.png"], "has 1 image; one in 20 is held out for validation, so give at least 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_list_is_one_message(name, tmp_path):
    lines, message = REFUSED[name]
    archives.save(tmp_path / "a.png")
    (tmp_path / "inner").mkdir()
    with pytest.raises(InputError, match=re.escape(message)):
        both(write_list(tmp_path / "list.txt", lines))


def test_other_bad_places_are_one_message(photos, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    (tmp_path / "class_map.txt").write_text("a\n")
    for place, message in {
        tmp_path / "binary.txt": "is not text in UTF-8; write the path of one image on each line",
        tmp_path / "empty": "has no images; files must end with .jpg, .png or another image suffix",
        tmp_path / "none": "one folder per class in each, or be a folder or a .txt list of images without labels",
        tmp_path / "none.txt": "one folder per class in each, or be a folder or a .txt list of images without labels",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            both(place)
    with pytest.raises(InputError, match=r"class map 'm.txt' numbers class folders, but '.*' has none; omit it"):
        both(photos, class_map="m.txt")
    source = Source("", photos, needs_labels=False)
    with pytest.raises(InputError, match="has no mine/ folder with class folders in it"):
        open_dataset(source, "mine")


def opened(flags):
    recipe, _ = read_run(flags)
    check_labels(recipe)
    return open_datasets(recipe)


def test_where_labels_are_needed_the_message_says_so(photos, tmp_path, capsys):
    """Before anything is written; for jobs and others, nothing has changed."""
    (tmp_path / "empty").mkdir()
    config, listed = write_config(tmp_path / "pico.json"), write_list(tmp_path / "list.txt", ["a.png"])
    stitched = {"stitch_config": str(config), "pretrained": False}
    without = "without labels, which --loss task needs; give a folder with train/ and validation/"
    for place, message in {
        photos: f"data folder '{photos}' has no train/ folder with class folders in it, so its images are {without}",
        tmp_path / "empty": f"data folder '{tmp_path / 'empty'}' has no train/ folder with class folders in it",
        listed: f"list '{listed}' names images {without}",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            opened({"data_dir": str(place), **stitched})
        assert str(caught.value).endswith("one folder per class in each, or train without labels by --loss features")
    with pytest.raises(InputError, match=re.escape("which --loss features+task needs; give")):
        opened({"data_dir": str(photos), **stitched, "loss": "features+task"})
    for more in ({}, {"eval": True, "pretrained": True}):
        with pytest.raises(InputError, match=r"which --model needs; give .* one folder per class in each$"):
            opened({"data_dir": str(photos), "model": "resnet18", **more})
    line = refused(capsys, "train", photos, "--stitch_config", config, *FLAGS, "--output", tmp_path / "out")
    assert "or train without labels by --loss features" in line
    assert not (tmp_path / "out").exists()
    assert len(opened({"data_dir": str(photos), **stitched, "loss": "features"}).train) == 38
    with pytest.raises(InputError, match="has no train/ folder with class folders in it"):
        open_dataset(Source(str(photos)), "train")


def test_images_are_augmented_as_with_labels(photos, images, world):
    """And have no class, which is no fault of theirs, whatever the number of classes."""
    loaders, labelled = (loaders_of(place, world, num_classes=4) for place in (photos, images))
    for name in ("train", "validation"):
        ours, theirs = (getattr(found, name).dataset for found in (loaders, labelled))
        assert str(ours.transform) == str(theirs.transform)
    assert isinstance(loaders.validation.sampler, type(labelled.validation.sampler))
    for loader, count in ((loaders.train, 32), (loaders.validation, 3)):
        batches = [*loader]
        assert sum(len(x) for x, _ in batches) == count
        assert all((labels == NO_CLASS).all() for _, labels in batches)
        loader.dataset.report()  # no image is bad
    (first,), (again,) = ([x for x, _ in loaders.validation] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("broken", ["train", "validation"])
def test_unreadable_files_are_replaced_and_named(broken, photos, world, tmp_path, caplog):
    shutil.copytree(photos, tmp_path / "photos")
    name = both(photos)[broken == "validation"][1]
    (tmp_path / "photos" / name).write_bytes(b"no image")
    loader = getattr(loaders_of(tmp_path / "photos", world), broken)
    checked = loader.dataset
    assert [checked[number][1] for number in range(len(checked))] == [NO_CLASS] * len(checked)
    assert (checked[1][0] == checked[2][0]).all() or broken == "train", "the next image takes its place"
    assert f"'{name}' of the {broken} split is skipped" in caplog.text
    checked.report()
    assert f"1 of {len(checked)} images of the {broken} split cannot be read" in caplog.text
    assert "other images took their places" in caplog.text
    with pytest.raises(InputError, match=r"more than --max-unreadable 0. Repair or remove them"):
        [*getattr(loaders_of(tmp_path / "photos", world, max_unreadable=0.0), broken)]


def test_anchors_keep_their_classifiers(photos, tmp_path):
    """The number of classes is unknown."""
    config = StitchConfig.load(write_config(tmp_path / "pico.json"))
    recipe = recipe_of(photos, pretrained=False)
    datasets = open_datasets(recipe)
    assert datasets.classes == ()
    assert create_network(recipe, config, datasets.classes).num_classes == 4


def test_an_export_is_compared_on_them(photos, tmp_path):
    """On what was held out, and calibrated on what was trained."""
    torch.save({"state_dict": pico_snnet().state_dict()}, tmp_path / "pico.pth")
    config = write_config(tmp_path / "pico.json")
    settings = {"stitch_config": config, "resume": tmp_path / "pico.pth", "data_dir": photos}
    trained = open_trained({key: str(path) for key, path in settings.items()})
    found, where = sample_images(trained, 8)
    assert found.shape == (3, 3, 16, 16)
    assert where == f"images from the validation split of '{photos}'"
    assert len(sample_images(trained, 8, train=True)[0]) == 8


@pytest.mark.parametrize(
    "places",
    [
        "Train Validation",
        "data/train data/val",
        "train2017 val2017",
        "a/b/c/trainset a/b/c/testset",
        "train val_images",
    ],
)
def test_folders_that_look_like_splits_are_not_one_pile(places, tmp_path):
    """Their validation images were trained on, as those of COCO."""
    for folder in places.split():
        for number in range(3):
            archives.save(tmp_path / folder / f"{number}.png")
    with pytest.raises(InputError, match="look like splits, which must be named train/ and validation/"):
        open_dataset(Source("", tmp_path, needs_labels=False), "train")


def test_photos_of_trains_and_valleys_are_one_pile(tmp_path):
    for name in ("trains", "valleys", "train", "tests"):
        archives.save(tmp_path / f"photos/{name}/1.png")
    assert sum(map(len, both(tmp_path))) == 4
