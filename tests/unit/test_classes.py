"""One order of class folders everywhere, whatever the process, and the comparison of class names."""

import logging
import os
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image
from timm.utils.misc import natural_key

from stitchkit.assembly.parts.part import Assembly, ClassifierHead, ParallelPart
from stitchkit.assembly.parts.pretrained import WholeNetwork
from stitchkit.assembly.train.checkpoint import check_origins
from stitchkit.classes import check_classes, in_order, trained_classes
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.prepare import CollectionTask as Collected, prepare_one
from stitchkit.data.source import Source
from stitchkit.errors import InputError
from stitchkit.networks.create import load_model
from stitchkit.networks.layout import Layout
from stitchkit.networks.trained_with import TrainedWith, note, noted
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import open_datasets
from stitchnet import image_folder, load_hf_dataset
from stitchnet.compose import CompositionTask
from tests.support import ROOT

NAMES = ("A", "a", "01", "1", "2", "10", "B-side", "apple", "class2", "Class10", "class9", "zebra", "Zebu")
ORDERED = ["01", "1", "2", "10", "A", "a", "apple", "B-side", "class2", "class9", "Class10", "zebra", "Zebu"]


def write(folder, *splits, names=NAMES, copies=2):
    """Folders of images whose colour is the number of their class in our order."""
    for split in splits:
        for number, name in enumerate(in_order(names)):
            place = folder / split / name
            place.mkdir(parents=True)
            for copy in range(copies):
                Image.new("RGB", (4, 4), (number, 0, 0)).save(place / f"{copy}.png")
    return folder


def agree(images):
    """Whether images have the numbers that their colours tell, and all numbers are there."""
    pairs = {(image.getpixel((0, 0))[0], label) for image, label in images}
    return pairs == {(number, number) for number in range(len(NAMES))}


def test_the_order_is_timms_with_ties_by_name():
    assert in_order(NAMES) == ORDERED
    chosen = random.Random(0)
    for _ in range(50):
        names = {"".join(chosen.choices("aB1 0-_é٣", k=chosen.randint(1, 6))) for _ in range(30)}
        found = in_order(names)
        assert [natural_key(name) for name in found] == sorted(map(natural_key, names))
        assert found == in_order(sorted(names, reverse=True))
    assert in_order(["²", "x²", "1"]) == ["1", "x²", "²"], "digits that are no numbers are text"


def test_all_readers_of_folders_number_alike(tmp_path):
    write(tmp_path, "train", "validation")
    for flags in ({}, {"dataset": "torch/image_folder"}):
        found = open_datasets(make_recipe({"data_dir": str(tmp_path), "model": "resnet18"} | flags))
        assert found.classes == tuple(ORDERED)
        for split in (found.train, found.validation):
            split.transform = None
            assert agree(split)
    for name, root in ((str(tmp_path), None), ("torch/image_folder", tmp_path), ("", tmp_path)):
        for split in ("train", "validation"):
            images = open_dataset(Source(name, root), split)
            assert images.classes == tuple(ORDERED)
            assert agree(images)
    images = image_folder(tmp_path / "train", 4)
    assert images.classes == tuple(ORDERED)
    assert [label for _, label in images] == [label for _, label in images.dataset.reader.samples]
    assert torch.equal(images[0][0], CompositionTask.load(tmp_path, 4).train[0][0])


def test_an_evaluation_alone_numbers_alike(tmp_path):
    write(tmp_path, "train", "validation")
    settings = {"data_dir": str(tmp_path), "model": "resnet18", "eval": True, "recalibrate_bn": 0}
    found = open_datasets(make_recipe(settings))
    assert found.train is None
    assert found.classes == tuple(ORDERED)


def test_the_numbers_of_a_person_and_of_a_publisher_stay(tmp_path):
    write(tmp_path, "train", "validation")
    (tmp_path / "map.txt").write_text("\n".join(reversed(ORDERED)))
    given = {"data_dir": str(tmp_path), "model": "resnet18", "class_map": str(tmp_path / "map.txt")}
    assert open_datasets(make_recipe(given)).classes == tuple(reversed(ORDERED))
    write(tmp_path / "eurosat", "2750", copies=6)
    assert open_dataset(Source("eurosat", tmp_path), "train").classes == tuple(sorted(NAMES))


def test_local_folders_of_hugging_face_number_alike(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    write(tmp_path / "images", "train", "test")
    for found in load_hf_dataset(str(tmp_path / "images"), "train", "test", size=4):
        assert found.features["label"].names == ORDERED
        assert agree((row["image"], row["label"]) for row in found)
        assert sorted(row["label"] for row in found) == sorted([*range(len(NAMES))] * 2)


def test_a_prepared_collection_numbers_alike(tmp_path):
    write(tmp_path / "sources", "mine", copies=20)
    prepare_one(
        "mine", Collected(source="mine", classes=len(NAMES), images=20 * len(NAMES), by_hand="somewhere"), tmp_path
    )
    for split in ("train", "test"):
        images = open_dataset(Source("mine", tmp_path), split)
        assert images.classes == tuple(ORDERED)
        assert agree(images)


OPENED = """
import sys
from stitchkit.data.source import Source
from stitchkit.data.open_dataset import open_dataset
from stitchkit.training.data import open_datasets
from stitchkit.settings.by_name import make_recipe
from stitchnet import image_folder

found = open_datasets(make_recipe({"data_dir": sys.argv[1], "model": "resnet18"}))
print(found.classes, [label for _, label in found.train.reader.samples])
print(open_dataset(Source(sys.argv[1], None), "validation").classes, image_folder(sys.argv[1] + "/train").classes)
"""


@pytest.mark.full
def test_ties_are_numbered_alike_in_every_process(tmp_path):
    """timm's key calls these names equal, and the order of a set depends on the seed of hashes."""
    names = ("1", "01", "001", "A", "a", "b1", "B01", "b01", "B1")
    write(tmp_path, "train", "validation", names=names)
    said = set()
    for seed in "0", "2", "4":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", OPENED, str(tmp_path)]
        said.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    [said] = said
    expected = "('001', '01', '1', 'A', 'a', 'B01', 'B1', 'b01', 'b1')"
    assert said.startswith(expected)
    assert said.splitlines()[1] == f"{expected} {expected}"


def test_names_of_classes_are_read_and_nothing_else():
    assert trained_classes({"classes": ["a", "b"]}) == [["a", "b"]]
    assert trained_classes({"classes": [["a"], ["b", "c"]]}) == [["a"], ["b", "c"]]
    for value in (None, [], [[]], "ab", ("a",), [1], ["a", 1], [["a"], "b"], [["a"], []], {"a": 0}, torch.ones(2)):
        assert trained_classes({"classes": value}) == []
    assert trained_classes({}) == []


def test_classes_are_compared_task_by_task(caplog):
    one, two, three = ["a", "b"], ["c", "d"], ["x", "y", "z"]
    for trained, here in (([], [one]), ([one], [one]), ([one], [[]]), ([one, two], [one, two]), ([one, two], [two])):
        check_classes(trained, here, "f", strict=True)
    for strict in (True, False):
        with pytest.raises(
            InputError, match=r"'f' was trained on the same 2 classes in another order; .*'b' and is 'a'"
        ):
            check_classes([["b", "a"]], [one], "f", strict=strict)
    with pytest.raises(
        InputError, match="trained on 2 classes, the data have 3; the first that differs was 'a' and is 'x'"
    ):
        check_classes([one], [three], "f", strict=True)
    with pytest.raises(InputError, match="was 'a' and is 'c'"):
        check_classes([one, two], [two, one], "f", strict=True)
    with pytest.raises(InputError, match="was 'z' and is None"):
        check_classes([three], [three[:2]], "f", strict=True)
    with caplog.at_level(logging.WARNING):
        check_classes([one], [three], "f", strict=False)
        assert not caplog.messages, "another number: the classifier is re-initialised, or refused by its shape"
        check_classes([one], [two], "f", strict=False)
    [line] = caplog.messages
    assert "'f' was trained on as many classes, but different ones; the first that differs was 'a' and is 'c'" in line


VECTOR = Layout("vector")
PICO = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}


@pytest.fixture
def checkpoint(tmp_path):
    """Writes weights of a network with three classes."""

    def write_weights(**arguments):
        torch.manual_seed(0)
        name, backend = arguments.pop("model_name"), arguments.pop("backend", "timm")
        state = load_model(name, backend=backend, pretrained=False, num_classes=3, **arguments).state_dict()
        torch.save({"state_dict": state, "classes": ["x", "y", "z"]}, tmp_path / "w.pth")
        return str(tmp_path / "w.pth")

    return write_weights


@pytest.mark.parametrize("arguments", [PICO, {"model_name": "resnet18", "backend": "torchvision"}])
def test_a_network_knows_where_its_classifier_is_from_unless_it_is_reinitialised(checkpoint, arguments):
    path = checkpoint(**arguments)
    for number in (None, 3):
        trained = noted(WholeNetwork(**arguments, ckp_path=path, num_classes=number).net)
        assert (trained.path, trained.classes) == (path, [["x", "y", "z"]])
    assert noted(WholeNetwork(**arguments, ckp_path=path, num_classes=4).net).classes is None
    assert noted(WholeNetwork(**arguments, pretrained=False, num_classes=3).net) is None


def entries(count):
    return [torch.nn.Identity() for _ in range(count)]


def test_classifiers_of_parallel_parts_are_compared_each_with_its_task(checkpoint):
    net = WholeNetwork(**PICO, ckp_path=checkpoint(**PICO))
    head = ClassifierHead(num_classes=2, in_channels=3)
    both = Assembly([ParallelPart([head, net], entries(2), entries(2), agg="none", layout=VECTOR)], entries(1))
    check_origins(both, [["a", "b"], ["x", "y", "z"]], strict=True)
    with pytest.raises(InputError, match="'x' and is 'a'"):
        check_origins(both, [["x", "y", "z"], ["a", "b", "c"]], strict=True)
    mean = Assembly([ParallelPart([net, net], entries(2), entries(2), agg="avg", layout=VECTOR)], entries(1))
    with pytest.raises(InputError, match="in another order"):
        check_origins(mean, [["x", "z", "y"]], strict=False)
    joined = Assembly([ParallelPart([net, net], entries(2), entries(2), agg="concat", layout=VECTOR)], entries(1))
    check_origins(joined, [["a", "b", "c"]], strict=True)  # its logits are not those of the file
    nested = Assembly([head], entries(1), Assembly([net], entries(1)))
    with pytest.raises(InputError, match="in another order"):
        check_origins(nested, [["x", "z", "y"]], strict=True)
    note(nested, TrainedWith.read({}, "published.pth"))
    check_origins(nested, [["x", "z", "y"]], strict=True)


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_that_macos_spells_in_another_form_are_the_same_class(tmp_path, caplog):
    write(tmp_path, "train", names=["bar", NFC])
    write(tmp_path, "validation", names=["bar", NFD])
    (tmp_path / f"validation/{NFD}/._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "map.txt").write_text(f"{NFC}\nbar\n", encoding="utf-8")
    caplog.set_level(logging.INFO)
    for settings in ({}, {"eval": True}, {"class_map": str(tmp_path / "map.txt")}):
        found = open_datasets(make_recipe({"data_dir": str(tmp_path), "model": "resnet18", **settings}))
        assert sorted(found.classes) == ["bar", NFC]
        assert len(found.validation) == 4
    assert "validation: 4 images, 2 classes (bar, caf\u00e9); 1 file ignored (._ of macOS)" in caplog.messages
    check_classes([["bar", NFD]], [["bar", NFC]], "net.pth", strict=True)
    with pytest.raises(InputError, match="in another order"):
        check_classes([[NFD, "bar"]], [["bar", NFC]], "net.pth", strict=False)


def test_two_folders_whose_names_differ_only_in_their_form_are_refused(tmp_path):
    write(tmp_path, "train", names=["bar", NFC, NFD])
    with pytest.raises(
        InputError, match=r"look alike, 'cafe.u0301' and 'caf.xe9': one name is in .* merge the folders"
    ):
        open_dataset(Source("", tmp_path), "train")
