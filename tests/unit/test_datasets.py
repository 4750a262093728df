"""Data sets by name, read by the real readers from miniature archives."""

import hashlib
import re
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import torchvision.datasets
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.data import TrainingLoader, open_data
from stitchkit.cli import main
from stitchkit.data.batches import without_padding
from stitchkit.data.demo import write_digits
from stitchkit.data.folders import FolderReader
from stitchkit.data.loader_processes import workers_for
from stitchkit.data.open_dataset import open_dataset as open_source
from stitchkit.data.source import SOURCES, Source
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.settings.flags import make_recipe
from stitchkit.training.data import open_datasets
from stitchnet.compose import CompositionTask
from tests import archives, composing
from tests.jobs import job_config, write_job
from tests.support import FLAGS, ROOT, mostly_full, write_config

CPU = World(0, 1, torch.device("cpu"))
TO_TENSOR = v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def open_dataset(name, *, root, split, transform=None, download=False):
    dataset = open_source(Source(name, root, download), split)
    dataset.transform = transform
    return dataset


def both(name, root):
    """Both splits, every image read."""
    splits = [open_dataset(name, root=root, split=split, transform=TO_TENSOR) for split in ("train", "validation")]
    for dataset in splits:
        images, labels = next(iter(DataLoader(dataset, batch_size=len(dataset))))
        assert images.shape == (len(dataset), 3, 8, 8)
        assert int(labels.max()) < len(dataset.classes)
    assert splits[0].classes == splits[1].classes
    return splits


def labels_of(dataset):
    return [label for _, label in dataset]


@pytest.fixture
def no_checksums(monkeypatch):
    """Miniatures have other checksums than what is published."""
    cifar, svhn = torchvision.datasets.CIFAR10, torchvision.datasets.SVHN
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, name, [[file, None] for file, _ in getattr(cifar, name)])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    monkeypatch.setattr(svhn, "split_list", {key: [*row[:2], None] for key, row in svhn.split_list.items()})


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR-10", "cifar10", "torch/cifar10"])
def test_cifar10_in_all_spellings(tmp_path, no_checksums, name):
    archives.write_cifar10(tmp_path)
    train, test = both(name, tmp_path)
    assert (labels_of(train), labels_of(test)) == (list(range(10)), [3, 1, 0, 9])
    assert train.classes[3] == "class 3"


def test_grey_images_become_colour(tmp_path):
    archives.write_mnist(tmp_path)
    train, test = both("mnist", tmp_path)
    assert (len(train), len(test), len(train.classes)) == (20, 10, 10)
    image, _ = open_dataset("mnist", root=tmp_path, split="train")[0]
    assert image.mode == "RGB"


def test_svhn(tmp_path, no_checksums):
    archives.write_svhn(tmp_path)
    train, test = both("svhn", tmp_path)
    assert (len(train), len(test)) == (30, 10)
    assert train.classes == tuple("0123456789")
    assert train[9][1] == 0


def test_gtsrb(tmp_path):
    archives.write_gtsrb(tmp_path)
    train, test = both("gtsrb", tmp_path)
    assert (len(train), len(test), len(train.classes)) == (86, 43, 43)
    assert labels_of(test) == list(range(43))


def test_cars_by_its_short_name(tmp_path):
    archives.write_cars(tmp_path)
    train, test = both("cars", tmp_path)
    assert labels_of(train) == [0, 1, 0, 1]
    assert test.classes == ("Ram C/V Van 2012", "Audi A5")


def test_dtd_trains_on_all_that_is_not_for_testing(tmp_path):
    archives.write_dtd(tmp_path / "dtd/dtd")
    train, test = both("dtd", tmp_path)
    assert (len(train), len(test)) == (12, 6)


def test_eurosat_has_a_split_of_its_own_that_is_always_the_same(tmp_path):
    archives.write_eurosat(tmp_path)
    train, test = both("eurosat", tmp_path)
    parts = [split.samples.datasets[0] for split in (train, test)]
    paths = [[part.dataset.samples[number][0] for number in part.indices] for part in parts]
    assert (len(paths[0]), len(paths[1])) == (24, 6)
    assert not set(paths[0]) & set(paths[1])
    assert sorted(labels_of(test)) == [0, 0, 1, 1, 2, 2]
    assert open_dataset("eurosat", root=tmp_path, split="test").samples.datasets[0].indices == parts[1].indices


def test_too_few_images_to_divide(tmp_path):
    archives.write_eurosat(tmp_path, count=1)
    with pytest.raises(InputError, match="3 images are too few to split"):
        open_dataset("eurosat", root=tmp_path, split="train")


@pytest.fixture
def served(tmp_path):
    """The address of a server on this machine that has the files of the test's folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def published(tmp_path, monkeypatch, served):
    """A miniature of DTD where torchvision looks for the set."""
    archives.write_dtd(tmp_path / "made/dtd")
    archive = tmp_path / "dtd-r1.0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made/dtd", "dtd")
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{served}/{archive.name}")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())


def test_a_download_happens_when_asked_for_alone(tmp_path, published):
    root = tmp_path / "root"
    with pytest.raises(InputError, match="does not exist; it must contain dtd/dtd/; check the path, or add --download"):
        open_dataset("dtd", root=root, split="test")
    assert not root.exists()
    root.mkdir()
    with pytest.raises(InputError, match="needs dtd/dtd/; put the files there, or add --download"):
        open_dataset("dtd", root=root, split="test")
    assert not list(root.iterdir())
    assert len(open_dataset("dtd", root=root, split="test", download=True)) == 6
    assert len(open_dataset("dtd", root=root, split="test")) == 6


def _train(root, folder):
    config = write_config(folder / "pico.json")
    data = ("--data", root, "--dataset", "dtd", "--download", "--epochs", 1)
    return main(["train", *map(str, ("--stitch_config", config, *FLAGS, *data, "--output", folder / "out"))])


def _job(root, folder):
    path = write_job(folder, job_config(root, dataset="dtd", epochs=1))
    return main(["job", *map(str, ("-c", path, "--data", root, "--download", "--no-pretrained", "-o", folder / "out"))])


def _sweep(root, folder):
    path = write_job(folder, job_config(root, dataset="dtd", epochs=1))
    flags = ("-c", path, "--data", root, "--download", "--no-pretrained", "--smoke", "-o", folder / "out")
    return main(["sweep", *map(str, flags)])


def _compose(root, folder):
    flags = ("--data", root / "dtd", "--nets", composing.write_pico_nets(folder), *composing.FLAGS)
    return main(["compose", *map(str, (*flags, "--download", "-o", folder / "out"))])


@pytest.mark.parametrize("command", mostly_full([_train, _job, _sweep, _compose], quick=[_train]))
def test_every_command_downloads_when_asked(command, tmp_path, published):
    assert command(tmp_path / "root", tmp_path) == 0
    for split, count in (("train", 12), ("test", 6)):
        assert len(open_dataset("dtd", root=tmp_path / "root", split=split)) == count


NAMES = {
    "emnist": ("emnist-digits-train", 10),
    "EMNIST-balanced": ("emnist-balanced-train", 47),
    "emnist-letters": ("emnist-letters-train", 27),
}


@pytest.mark.parametrize(("name", "there"), NAMES.items())
def test_the_parts_of_emnist_have_names(tmp_path, name, there):
    """The published jobs mean its digits."""
    files, classes = there
    archives.write_idx(tmp_path / "EMNIST/raw", files, 5)
    images = open_dataset(name, root=tmp_path, split="train")
    assert (len(images), len(images.classes)) == (5, classes)


PLACES = {"imagenet-1k": "imagenet", "aid": "AID", "UCM": "UCMerced_LandUse", "eurosat": "eurosat/splits"}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_the_folders_of_the_published_jobs(tmp_path, name, place):
    archives.write_folder(tmp_path / place, "train", "test")
    assert both(name, tmp_path)[0].classes == ("cat", "dog")


def test_the_folder_of_svhn_in_the_published_jobs(tmp_path, no_checksums):
    archives.write_svhn(tmp_path / "svhn")
    assert [len(split) for split in both("svhn", tmp_path)] == [30, 10]
    assert len(open_dataset(str(tmp_path / "svhn"), root=None, split="test")) == 10


@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_any_image_folder(tmp_path, split):
    archives.write_folder(tmp_path / "pets of mine", "train", split)
    for name, root in (("pets of mine", tmp_path), (str(tmp_path / "pets of mine"), None)):
        train, test = both(name, root)
        assert train.classes == ("cat", "dog")
        assert labels_of(test) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("where", "split"), [("", "val"), ("imagenet", "val"), ("", "validation")])
def test_imagenet_in_the_folder_that_is_given_or_under_it(tmp_path, where, split):
    archives.write_folder(tmp_path / where, "train", split)
    train, test = both("imagenet", tmp_path)
    assert train.classes == ("cat", "dog")
    assert labels_of(test) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="'cars' cannot be read"):
        open_dataset("cars", root=tmp_path, split="train")  # no other name takes the folder


def test_imagenet_that_is_not_there_says_both_ways(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="needs train/ and val/ with one folder per class in each, or ILSVRC2012_img"):
        open_dataset("imagenet", root=tmp_path, split="train")


def test_a_test_folder_without_classes_is_skipped(tmp_path):
    archives.write_folder(tmp_path, "train", "val", count=2)
    archives.save(tmp_path / "test/unknown.png")
    assert len(open_dataset(str(tmp_path), root=None, split="validation")) == 4


def test_folders_that_cannot_be_used(tmp_path):
    for name, message in ((str(tmp_path), "no train/ folder"), ("no/such", "does not exist")):
        with pytest.raises(InputError, match=message):
            open_dataset(name, root=None, split="train")
    archives.write_folder(tmp_path, "train")
    with pytest.raises(InputError, match=r"has no validation/ folder with class folders in it; it needs train/ and"):
        open_dataset(str(tmp_path), root=None, split="validation")
    (tmp_path / "val/cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val' has no images in class folders; files must end with \.jpg"):
        open_dataset(str(tmp_path), root=None, split="validation")


def test_digits_need_no_files_and_equal_the_written_ones(tmp_path):
    train, test = both("digits", None)
    assert (len(train), len(test), len(train.classes)) == (1197, 600, 10)
    write_digits(tmp_path / "written")
    written = open_dataset(str(tmp_path / "written"), root=None, split="validation")
    assert sorted(labels_of(test)) == labels_of(written)
    assert {image.tobytes() for image, _ in open_dataset("digits", root=None, split="test")} == {
        image.tobytes() for image, _ in written
    }


def test_hugging_face_sets_through_timm(tmp_path):
    pytest.importorskip("datasets")
    source = archives.write_folder(tmp_path / "source", "train", "test")
    train, test = both(f"hfds/{source}", tmp_path / "cache")
    assert train.classes == ("cat", "dog")
    assert labels_of(test) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "train", "test", "classes"),
    [
        ("int64", [0, 2, 1], [0], 3),
        ("uint8", [0, 1], [3], 2),
        ("int64", [None], [1], 0),
        ("int64", [0, -1], [1], 0),
        ("int64", [0, 1_700_000_000], [1], 0),
    ],
)
def test_labels_without_names_are_counted_where_they_are_numbers(tmp_path, kind, train, test, classes):
    name = archives.write_labels(tmp_path, kind, train, test)
    found = open_dataset(name, root=tmp_path / "cache", split="train")
    assert found.classes == tuple(map(str, range(classes)))


def data_of_job(dataset, root, **settings):
    train = {"epochs": 1, "batch_size": 2, "optimizer_args": {"lr": 0.1}, "data_preprocessing": {"image_size": 8}}
    job = {"workers": 0, "data_path": str(root), "train_config": {**train, "dataset": dataset, **settings}}
    return open_data(JobConfig.parse({"model": {"Net": {"model_name": "resnet18"}}, **job}), CPU)


def test_a_job_knows_how_many_classes_its_data_have(tmp_path):
    name = archives.write_labels(tmp_path, "int64", [0, 1, 2], [0, 3])
    [data] = data_of_job(name, tmp_path / "cache")
    assert data.classes == ("0", "1", "2", "3")
    name = archives.write_labels(tmp_path / "other", "float32", [0.5], [1.5])
    with pytest.raises(InputError, match=r"train_config.dataset: the classes of 'hfds/.*' are not known; a job needs"):
        data_of_job(name, tmp_path / "cache")


def test_a_job_opens_what_the_page_names(tmp_path, no_checksums):
    """Of `hfds/` a local set, so that no server is asked."""
    page = (ROOT / "docs/datasets.md").read_text()
    table = next(part for part in page.split("\n\n") if part.startswith("| name |"))
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row) if not name.endswith("/")]  # no streams
    assert {"data/pets", "digits", "cifar10", "torch/cifar10", "hfds/timm/resisc45"} <= set(named)
    archives.write_folder(tmp_path / "data/pets", "train", "val")
    archives.write_cifar10(tmp_path)
    archives.write_svhn(tmp_path)
    archives.write_eurosat(tmp_path)
    hub = archives.write_folder(tmp_path / "hub", "train", "test")
    for name in named:
        assert data_of_job(f"hfds/{hub}" if name.startswith("hfds/") else name, tmp_path)[0].classes


def test_a_job_takes_streamed_data(tmp_path):
    """How many batches there are follows from the number of samples."""
    archives.write_shards(tmp_path)
    with pytest.raises(InputError, match=r"the classes of 'wds/images' are not known; .* or num_classes"):
        data_of_job("wds/images", tmp_path)
    [data] = data_of_job("wds/images", tmp_path, num_classes=2)
    assert (data.classes, len(data.train), len(data.test)) == (("0", "1"), 3, 2)
    loader = TrainingLoader([data.train])
    assert [len(labels) for _, (labels,) in loader] == [2, 2, 2]
    assert sum(len(labels) for _, labels in without_padding(data.test, CPU)) == 3
    [data] = data_of_job("wds/images", tmp_path, num_classes=2, max_batches=1)
    assert (len(data.train), len(list(data.train)), len(list(data.test))) == (1, 1, 1)


def test_the_shards_of_the_page_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archives.write_folder(tmp_path / "data/digits", "train", "validation", count=8)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)
    exec(compile(code, "datasets.md", "exec"), {})
    for name, flags in {"_info.json": {}, "braces": {"split": "train-{0..7}.tar", "num_samples": 16}}.items():
        stream = open_source(Source("wds/", "data/shards"), flags.pop("split", "train"), **flags)
        labels = [label for _, label in DataLoader(stream, batch_size=None)]
        assert sorted(labels) == [0] * 8 + [1] * 8, name
        (tmp_path / "data/shards/_info.json").unlink(missing_ok=True)


def test_a_stream_without_images_ends_a_job(tmp_path):
    """Its loader, which starts over at its end, would do so for ever."""
    archives.write_shards(tmp_path)
    with tarfile.open(tmp_path / "train-0.tar", "w"):
        pass
    [data] = data_of_job("wds/images", tmp_path, num_classes=2)
    with pytest.raises(InputError, match="no image that can be read"):
        next(iter(TrainingLoader([data.train])))


def test_a_job_takes_streams_of_hugging_face(tmp_path):
    """Of a local folder, whose images nobody has counted."""
    pytest.importorskip("datasets")
    name = f"hfids/{archives.write_folder(tmp_path / 'hub', 'train', 'validation')}"
    with pytest.raises(InputError, match="Dataset length is unknown"):
        data_of_job(name, tmp_path / "cache")
    [data] = data_of_job(name, tmp_path / "cache", num_classes=2, train_num_samples=6, val_num_samples=6)
    assert [len(labels) for _, labels in data.train] == [2, 2, 2]
    assert workers_for(data.train.dataset, 4, CPU) == 1, "its files are one shard"
    assert torch.cat([labels for _, labels in data.test]).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_job_refuses_another_number_of_classes_than_its_data_have(tmp_path):
    archives.write_folder(tmp_path / "pets", "train", "val")
    with pytest.raises(InputError, match=r"num_classes is 3, but 'pets' has 2 classes; remove it"):
        data_of_job("pets", tmp_path, num_classes=3)


SPLITS = [
    (("validation", "val", "test"), "validation", "validation"),
    (("val", "test"), "validation", "val"),
    (("val", "valid"), "validation", "val"),
    (("dev", "test"), "validation", "dev"),
    (("test",), "validation", "test"),
    (("validation", "val", "test"), "test", "test"),
    (("validation", "val"), "val", "val"),
    (("test", "testing"), "testing", "testing"),
]


@pytest.mark.parametrize(("there", "asked", "judged"), SPLITS)
def test_all_systems_judge_the_same_split(there, asked, judged, tmp_path, caplog):
    """Training, jobs and compositions; the log says which it is."""
    archives.write_folder(tmp_path / "pets", "train", *there)
    caplog.set_level("INFO")
    of_train = {"data_dir": str(tmp_path / "pets"), "model": "resnet18", "val_split": asked}
    assert open_datasets(make_recipe(of_train)).validation.split == judged
    assert f"evaluating on the {judged} images of '{tmp_path / 'pets'}'" in caplog.text
    assert data_of_job("pets", tmp_path, val_split=asked)[0].test.dataset.split == judged
    if asked == "validation":
        caplog.clear()
        CompositionTask.load(tmp_path / "pets", 8)
        assert f"evaluating on the {judged} images of '{tmp_path / 'pets'}'" in caplog.text


def test_no_split_is_a_command(tmp_path):
    archives.write_folder(tmp_path / "pets", "train", "val")
    archives.write_shards(tmp_path)
    for name in ("pets", "wds/images", "digits"):
        with pytest.raises(InputError, match="split is 'pipe:touch made; cat ', which begins with a scheme"):
            data_of_job(name, tmp_path, val_split="pipe:touch made; cat ", num_classes=2)


LACKS = r"the val split of '.*pets' lacks 1 class folder: bird; labels would not"


def test_the_splits_of_country211_are_those_of_torchvision_though_they_are_folders_of_classes(tmp_path):
    for split, count in (("train", 3), ("valid", 2), ("test", 4)):
        archives.write_folder(tmp_path / "country211", split, count=count)
    train, judged = both("country211", tmp_path)
    assert (len(train), len(judged)) == (len(train.classes) * 5, len(train.classes) * 4)


def test_a_folder_counts_once_in_a_class_however_many_links_lead_to_it(tmp_path):
    names = [f"class{number}" for number in range(6)]
    for name in names:
        archives.save(tmp_path / name / "1.png")
    for name in names:
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other, target_is_directory=True)
    found = FolderReader(tmp_path)
    assert len(found.samples) == 6 * 6
    assert found.nested == "class0/class1"


def test_all_systems_have_the_same_classes(tmp_path, caplog):
    """A class is a direct child with an image at any depth; what is hidden, empty or beside the classes is none."""
    caplog.set_level("INFO")
    folder = archives.write_folder(tmp_path / "pets", "train", "val", count=2, suffix="PNG")
    archives.write_folder(folder / "train/cat", "", count=2)
    for place in ("train/bird", "train/.ipynb_checkpoints/x", "val/.cache", "val/fish/.cache"):
        (folder / place).mkdir(parents=True)
    hidden = ("train/.ipynb_checkpoints/x/1", "val/.cache/1", "val/fish/.cache/1", "val/cat/._1")
    for place in (*hidden, "train/1"):
        archives.save(folder / f"{place}.png")
    for name in ("webp", "gif", "bmp"):
        archives.save(folder / f"train/dog/of_another_kind.{name}")
    for name in ("notes.txt", "dog/README", "dog/a.pdf", "dog/film.mpg", ".DS_Store"):
        (folder / "train" / name).touch()
    (folder / "val/notes.txt").touch()
    for link in ("cat/all", "dog/again"):
        (folder / "train" / link).symlink_to(folder / "train", target_is_directory=True)
    for is_evaluation in (True, False):
        settings = {"data_dir": str(folder), "model": "resnet18", "eval": is_evaluation}
        found = open_datasets(make_recipe(settings))
        assert (found.classes, len(found.validation)) == (("cat", "dog"), 4)
    assert len(found.train) == 11
    assert "val: 4 images, 2 classes (cat, dog); 2 files ignored (._ of macOS, .txt)" in caplog.messages
    assert (
        "train: 11 images, 2 classes (cat, dog); 5 files ignored (.mpg, .pdf, .png beside the class folders, .txt, "
        "without suffix); images in folders within a class, such as 'cat/" in caplog.text
    )
    [data] = data_of_job("pets", tmp_path)
    assert (data.classes, len(data.train.dataset), len(data.test.dataset)) == (("cat", "dog"), 11, 4)
    task = CompositionTask.load(folder, 8)
    assert (len(task.train), len(task.validation)) == (11, 4)
    archives.save(folder / "train/bird/deep/down/1.png")
    for is_evaluation in (True, False):
        with pytest.raises(InputError, match=LACKS):
            open_datasets(make_recipe({**settings, "eval": is_evaluation}))
    for opened in (lambda: data_of_job("pets", tmp_path), lambda: CompositionTask.load(folder, 8)):
        with pytest.raises(InputError, match=LACKS):
            opened()


def test_the_order_of_usual_folders_is_timms(tmp_path):
    """Runs that began with timm's order resume bit for bit."""
    for number in (1, 2, 10, 11):
        for name in (f"n{number:08d}_{number}.JPEG", f"n{number:08d}_1{number}.JPEG", f"b{number}.jpg"):
            archives.save(tmp_path / f"n{number:08d}" / name)
    samples, numbers = find_images_and_targets(str(tmp_path))
    reader = FolderReader(tmp_path)
    assert (reader.samples, reader.class_to_idx) == (samples, numbers)


def test_names_in_the_log_cannot_forge_a_line(tmp_path, caplog):
    caplog.set_level("INFO")
    archives.save(tmp_path / "pets/train/a\nepoch 9/1.png")
    archives.write_folder(tmp_path / "pets", "val")
    open_dataset("pets", root=tmp_path, split="train")
    assert r"train: 1 image, 1 class ('a\nepoch 9')" in caplog.text


def test_training_takes_the_names_that_jobs_take(tmp_path, no_checksums):
    archives.write_cifar10(tmp_path)
    for name, count in (("cifar10", 10), ("digits", 1197)):
        found = open_datasets(make_recipe({"dataset": name, "data_dir": str(tmp_path), "model": "resnet18"}))
        assert (len(found.train), len(found.classes)) == (count, 10)


def test_images_without_labels_are_skipped(tmp_path):
    datasets = pytest.importorskip("datasets")
    archives.save(tmp_path / "image.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split, label in (("train", 0), ("validation", 1), ("test", -1)):
        rows = {"image": [str(tmp_path / "image.png")], "label": [label]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"hub/{split}.parquet")
    _, test = both(f"hfds/{tmp_path / 'hub'}", tmp_path / "cache")
    assert labels_of(test) == [1]


def test_no_server_is_asked_unless_a_download_is(tmp_path):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(InputError, match="check its name and folder, or add --download"):
        open_dataset("hfds/nobody/nothing", root=tmp_path, split="train")
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("stitchkit.optional.find_spec", lambda _: None)
    for name in ("hfds/nobody/nothing", "wds/images"):
        with pytest.raises(InputError, match=r"pip install 'stitchkit\[data\]'"):
            open_dataset(name, root=tmp_path, split="train")


def test_streams_through_timm(tmp_path):
    archives.write_shards(tmp_path)
    stream = open_dataset("wds/images", root=tmp_path, split="validation", transform=TO_TENSOR)
    assert stream.classes == ()
    samples = list(DataLoader(stream, batch_size=None, num_workers=1))
    assert [tuple(image.shape) for image, _ in samples] == [(3, 8, 8)] * 3


@pytest.mark.parametrize("key", SOURCES)
def test_every_row_of_the_table_is_one_that_torchvision_knows(tmp_path, key):
    for split in ("train", "test"):
        with pytest.raises(InputError) as error:
            open_dataset(key, root=tmp_path, split=split)
        assert SOURCES[key].needs in str(error.value)
        assert "\n" not in str(error.value)
        assert not isinstance(error.value.__cause__, TypeError | AttributeError)
        assert "Unknown value" not in str(error.value)


def test_names_that_do_not_exist():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        open_dataset("cifra10", root=None, split="train")
    with pytest.raises(
        InputError, match="'fmow' belongs to WILDS, which is not supported; write it as an image folder"
    ):
        open_dataset("fmow", root=None, split="train")
    with pytest.raises(
        InputError, match="'RESISC45' is an image folder, and 'resisc45' has no train/; put it there, or w"
    ):
        open_dataset("RESISC45", root=None, split="train")
    with pytest.raises(InputError, match="give --data the folder with eurosat/2750/"):
        open_dataset("EuroSAT", root=None, split="train")
