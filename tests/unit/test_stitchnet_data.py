"""The published example line by line, data from folders and arrays, and the command; all offline."""

import json
import math
import re
import shlex
import shutil
import warnings
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import stitchnet
from stitchkit import AnchorSpec, StitchConfig
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import is_anchor, pareto_front
from stitchnet import (
    Search,
    generate,
    get_cache_folder,
    image_folder,
    load_hf_dataset,
    set_device,
    stitching_images,
)
from stitchnet.compose import CompositionTask, against_parents, judged
from stitchnet.composition import Pool
from stitchnet.data import batches, in_memory, read_image
from stitchnet.networks import create
from studies.stitchnet.tuning import LabelledPairs
from tests.composing import FLAGS, RESNET, VIT, convnet, write_colours, write_pico_nets
from tests.support import ROOT


@pytest.fixture(scope="module")
def beans(tmp_path_factory):
    """36 images to train on."""
    return write_colours(tmp_path_factory.mktemp("beans"), train=12, validation=12, test=4)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The library of data sets neither asks the hub nor leaves files behind."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def convnets():
    torch.manual_seed(0)
    return {"a": convnet(6, 8), "b": convnet(5, 10, 12)}


def pico_nets():
    return {**convnets(), "vit": timm.create_model("vit_tiny_patch16_224", **VIT)}


@pytest.mark.full
def test_the_published_example_runs_line_by_line(beans, offline, tmp_path):
    dataset_train, dataset_val = load_hf_dataset(
        str(beans), train_split="validation", val_split="test", label_column="label", seed=47, size=32
    )
    assert len(dataset_train) == 36
    stitching_dataset = np.vstack([x["pixel_values"] for x in dataset_train.select(range(32))])
    assert stitching_dataset.shape == (32, 3, 32, 32)
    nets = pico_nets()
    score, net = generate(stitching_dataset, threshold=0, totalThreshold=0, maxDepth=10, K=2, sample=True, nets=nets)
    assert 0 < score <= 1
    generator = generate(
        stitching_dataset, threshold=0.8, totalThreshold=0.8, maxDepth=10, K=2, sample=False, nets=nets
    )
    found = [(score, str(net)) for score, net in generator]
    assert len(found) > 2
    assert all(score >= 0.8 for score, _ in found)
    assert net.get_macs_params().keys() == {"macs", "params", "macs_by_operator"}
    net.save_onnx(str(tmp_path / "_data/net"))
    net.draw_svg(str(tmp_path / "_data/net"))
    assert {path.name for path in (tmp_path / "_data").iterdir()} >= {"net.onnx", "net.svg"}
    net.fit(dataset_train, label_column="label")
    file = beans / "test/class1/0.png"
    [predicted] = net.predict_files([str(file)])
    assert sum(predicted["score"]) == pytest.approx(1)
    assert predicted["label"] == int(np.argmax(predicted["score"]))
    result = net.evaluate_dataset(dataset_val, label_column="label")
    assert result["accuracy"] > 0.5
    folder = image_folder(beans / "test", 32)
    assert net.evaluate_dataset(folder) == result  # the same images, without the library


def test_a_streamed_data_set_serves_as_a_downloaded_one(beans, offline, tmp_path):
    shutil.copytree(beans / "test", tmp_path / "beans/test")
    for one, name in ((1, "class10"), (0, "class9")):  # which sort as text in another order than ours
        (tmp_path / f"beans/test/class{one}").rename(tmp_path / f"beans/test/{name}")
    load = partial(load_hf_dataset, str(tmp_path / "beans"), "test", "test", "label", 47, size=32)
    (stream, again), (dataset, _) = load(True), load()
    stitching_dataset = np.vstack([x["pixel_values"] for x in stream.take(5)])
    assert torch.equal(stitching_images(stream, 5), torch.from_numpy(stitching_dataset))
    score, net = generate(stitching_dataset, 0, 0, 10, True, 2, nets=pico_nets())
    assert 0 < score <= 1
    net.fit(stream, label_column="label")
    result = net.evaluate_dataset(again, label_column="label")
    assert result == net.evaluate_dataset(dataset, label_column="label")
    assert sorted(row["label"] for row in stream) == sorted(dataset["label"])
    assert {tuple(row["pixel_values"].ravel()[:9]): row["label"] for row in stream} == {
        tuple(row["pixel_values"].ravel()[:9]): row["label"] for row in dataset
    }
    with pytest.raises(InputError, match="did you mean 'label'"):
        load_hf_dataset(str(beans), label_column="labels", streaming=True)


def test_a_device_is_set_for_later_compositions():
    elsewhere = torch.zeros(2, 3, 32, 32, device="meta")  # a device that every machine has
    with pytest.raises(InputError, match="device 'tpu' is not supported"):
        set_device("tpu")
    try:
        set_device("cpu")
        with pytest.raises(NotImplementedError, match="copy out of meta"):
            Pool(elsewhere, convnets())
    finally:
        set_device(None)
    assert Pool(elsewhere.new_zeros(elsewhere.shape, device="cpu"), convnets()).images.device.type == "cpu"


def test_weights_of_the_published_networks_are_kept_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SN_HOME", raising=False)
    before = torch.hub.get_dir()
    assert get_cache_folder() == before
    monkeypatch.setenv("SN_HOME", str(tmp_path))
    assert get_cache_folder() == str(tmp_path)
    net = torchvision.models.mobilenet_v3_small()
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints/mobilenet_v3_small-047dcff4.pth")
    made = create(AnchorSpec("mobilenet_v3_small"), pretrained=True)
    assert torch.equal(made.classifier[-1].weight, net.classifier[-1].weight)
    assert torch.hub.get_dir() == before


@pytest.mark.full
def test_the_example_of_the_page_runs(beans, offline, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/stitchnet.md").read_text(), re.DOTALL)
    (tmp_path / "beans").symlink_to(beans)
    shutil.copy(beans / "test/class1/0.png", tmp_path / "leaf.jpg")
    monkeypatch.chdir(tmp_path)

    def load(name, *, label_column, **options):
        both = load_hf_dataset(name, label_column="label", size=32, **options)  # as folders call it
        return tuple(dataset.rename_column("label", label_column) for dataset in both)

    monkeypatch.setattr(stitchnet, "load_hf_dataset", load)
    monkeypatch.setattr(stitchnet, "generate", partial(generate, nets=pico_nets()))
    names = {}
    exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    assert eval(printed[-1])["accuracy"] > 0.5
    assert eval(printed[-2])[0].keys() == {"score", "label"}
    assert sum(" > " in line for line in printed) > 2
    assert stitchnet.load("_data/net", pico_nets()).name == names["net"].name


def test_splits_are_shuffled_by_the_seed(beans, offline):
    orders = [load_hf_dataset(str(beans), label_column="label", seed=seed, size=8)[0]["label"] for seed in (1, 1, 2)]
    assert list(orders[0]) == list(orders[1]) != list(orders[2])


def test_data_sets_that_cannot_be_used(beans, offline):
    with pytest.raises(InputError, match="did you mean 'label'"):
        load_hf_dataset(str(beans), label_column="labels", size=8)
    with pytest.raises(InputError, match="splits 'validatio' and 'test' cannot be loaded"):
        load_hf_dataset(str(beans), train_split="validatio", label_column="label", size=8)
    dataset, _ = load_hf_dataset(str(beans), label_column="label", size=8)
    with pytest.raises(InputError, match="needs label_column"):
        next(batches(dataset))
    with pytest.raises(InputError, match="did you mean 'label'"):
        next(batches(dataset, "labels"))


def test_arrays_and_folders(beans):
    with pytest.raises(InputError, match="the numbers must be equal"):
        next(batches((np.zeros((3, 3, 8, 8)), [1, 2])))
    with pytest.raises(InputError, match="no image"):
        next(batches([]))
    with pytest.raises(InputError, match="one folder of images for each class"):
        image_folder(beans / "nowhere")
    folder = image_folder(beans / "train", 16)
    images = stitching_images(folder, 5, seed=1)
    assert images.shape == (5, 3, 16, 16)
    assert torch.equal(images, stitching_images(folder, 5, seed=1))
    assert not torch.equal(images, stitching_images(folder, 5, seed=2))
    assert len(stitching_images(folder, 1000)) == len(folder)


def test_a_local_folder_has_its_labels_under_their_name(beans, offline):
    first, _ = load_hf_dataset(str(beans), size=16)
    assert {row["label"] for row in first.select(range(20))} <= {0, 1, 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_unreadable_images_of_a_local_folder_have_no_class(beans, offline, tmp_path, streaming, caplog):
    shutil.copytree(beans, tmp_path / "beans")
    bad = tmp_path / "beans/test/class1/2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    load = partial(load_hf_dataset, str(tmp_path / "beans"), "test", "test", size=16, streaming=streaming)
    first, second = load()
    assert sorted(row["label"] for row in first) == [-1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert "class1/2.png' of the test split is skipped" in caplog.text
    renamed = second.rename_column("label", "kind")
    assert sum(len(labels) for _, labels in batches(renamed, "kind")) == 11
    for file in bad.parent.parent.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="6 of 12 images of the test split cannot be read"):
        next(iter(load()[0]))


@pytest.mark.parametrize("kind", ["names", "int64", "string"])
def test_the_classes_of_a_dataset_are_counted_without_its_images(beans, offline, kind, monkeypatch):
    from datasets import Value

    dataset, _ = load_hf_dataset(str(beans), size=16)
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("an image was read"))
    if kind != "names":
        dataset = dataset.cast_column("label", Value(kind))
    assert LabelledPairs(dataset, "label").num_classes == 3


def test_images_of_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(tmp_path / "usual.png")
    deep, usual = (read_image(tmp_path / f"{name}.png", (16, 16)) for name in ("deep", "usual"))
    assert torch.equal(deep, usual)
    assert usual.std() > 0.5


def test_files_that_are_not_images(beans, tmp_path):
    _, net = generate(stitching_images(image_folder(beans / "train", 32)), 0, 0, sample=True, nets=convnets())
    net.fit(image_folder(beans / "train", 32))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png' cannot be read"):
        net.predict_files([tmp_path / "text.png"])
    assert net.predict_files([]) == []


def run(*arguments):
    return main(["compose", *map(str, arguments)])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_pico_nets(tmp_path_factory.mktemp("config"))


@pytest.mark.full
@pytest.mark.parametrize("order", ["best", "depth"])
def test_the_command_writes_a_ledger_drawings_and_networks(beans, config, tmp_path, monkeypatch, capsys, order):
    output = tmp_path / "out"
    assert run("--data", beans, "--nets", config, *FLAGS, "--top", 2, "--order", order, "-o", output) == 0
    printed = capsys.readouterr().out
    assert "tried" in printed
    assert "pruned" in printed
    assert "found" in printed
    rows = read_rows(output / "stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == [0, 1, 2, 3]
    assert [is_anchor(row) for row in rows] == [True, True, False, False]
    scores = [row["score"] for row in rows[2:]]
    assert scores == sorted(scores, reverse=True)
    alone = {row["stitch"].split("[")[0]: row["acc1"] for row in rows[:2]}
    for row in rows[2:]:
        parents = {part.split("[")[0] for part in row["stitch"].split(" > ")}
        assert row["parents_acc1"] == pytest.approx(np.mean([alone[parent] for parent in parents]))
    better = sum(row["acc1"] > row["parents_acc1"] for row in rows[2:])
    assert (f"{better} of 2 composed networks beat" if better else "no composed network beats") in printed
    assert pareto_front(rows)
    for row in rows:
        folder = output / f"{row['cfg_id']:03d}"
        assert "<svg" in (folder / "net.svg").read_text()
        net = stitchnet.load(folder)
        assert str(net) == row["stitch"]
        cost = net.get_macs_params()
        assert (cost["macs"], cost["params"]) == (row["flops"], row["params"])
        accuracy = net.evaluate_dataset(image_folder(beans / "validation", 32))["accuracy"]
        assert 100 * accuracy == pytest.approx(row["acc1"])
    assert main(["report", str(output / "stitches_res.txt"), "-o", str(tmp_path / "report.html")]) == 0
    report = (tmp_path / "report.html").read_text()
    assert '"composition, compose.yaml"' in report
    assert f'"order": "{order}"' in report
    assert main(["pareto", str(output / "stitches_res.txt")]) == 0
    assert main(["pick", str(output / "stitches_res.txt"), "--max-flops", "1G"]) == 0
    found = capsys.readouterr().out.partition("next, export it: ")[2]
    monkeypatch.chdir(tmp_path)
    python, flag, code = shlex.split(found)
    assert (python, flag) == ("python", "-c")
    exec(code)
    assert len(list(tmp_path.glob("net*.onnx"))) == 1
    assert main(["report", str(output / "stitches_res.txt"), "-o", "page.html"]) == 0
    assert json.dumps(found.strip()) in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--threshold", 1.5), "--threshold is 1.5; it must be at most 1"),
        (("--total-threshold", -0.1), "--total-threshold is -0.1; it must be at least 0"),
        (("--top", 0), "--top is 0"),
        (("--device", "tpu"), "device 'tpu' is not supported"),
        pytest.param(("--max-macs", "1k"), "no composition passes", marks=pytest.mark.full),
        (("--max-params", "few"), "'few' is not a positive number, such as 5G"),
        (("--nets", "resnet500"), "unknown network 'resnet500'"),
        (("--data", "nowhere"), "unknown data set 'nowhere'"),
        (("--max-depht", 3), "did you mean '--max-depth'"),
    ],
)
def test_bad_input_is_reported_in_one_line(beans, config, tmp_path, capsys, flags, words):
    assert run("--data", beans, "--nets", config, *FLAGS, "-o", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("stitchkit: error: ")
    assert error.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("vg16", "unknown network 'vg16'; did you mean 'vgg16'?"),
        ("resnet18.a1_in2k", "unknown tag of resnet18 'a1_in2k'; did you mean 'a1_in1k'"),
        ("vgg16=none.pth", "checkpoint 'none.pth' does not exist in '"),
    ],
)
def test_all_networks_are_checked_before_one_is_made_or_an_image_read(
    beans, tmp_path, monkeypatch, capsys, wrong, words
):
    monkeypatch.setattr("stitchnet.networks.create", lambda *_, **__: pytest.fail("a network is made"))
    monkeypatch.setattr("stitchnet.compose.open_split", lambda *_: pytest.fail("images are read"))
    assert run("--data", beans, "--nets", f"resnet50,{wrong}", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"stitchkit: error: {words}")


def test_a_warning_is_a_line_without_our_source_code(beans, tmp_path, caplog):
    net = timm.create_model("resnet18", **RESNET)
    for value in net.parameters():
        value.data.fill_(0)
    torch.save(net.state_dict(), tmp_path / "zero.pth")
    spec = {
        "name": "resnet18",
        "kwargs": {**RESNET, "layers": list(RESNET["layers"])},
        "checkpoint": str(tmp_path / "zero.pth"),
    }
    (tmp_path / "nets.json").write_text(json.dumps({"anchors": [spec, {**spec, "label": "twin"}]}))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run("--data", beans, "--nets", tmp_path / "nets.json", *FLAGS, "--top", 1, "-o", tmp_path / "out")
    assert "an activation is constant or not a number; its score is 0, the lowest" in caplog.messages


def test_a_ledger_without_a_journal_is_left_alone(beans, config, tmp_path, capsys):
    (tmp_path / "stitches_res.txt").write_text("another's")
    assert run("--data", beans, "--nets", config, *FLAGS, "-o", tmp_path) == 2
    assert "stitches_res.txt' exists, without a journal to resume it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stitches_res.txt"]


def test_images_are_kept_in_memory_if_they_are_few(beans, monkeypatch):
    folder = image_folder(beans / "test", 16)
    kept = in_memory(folder)
    assert isinstance(kept, list)
    assert all(torch.equal(kept[number][0], folder[number][0]) for number in range(len(folder)))
    monkeypatch.setattr("stitchnet.data._KEPT_BYTES", 100)
    assert in_memory(folder) is folder


def test_a_composed_network_that_gives_no_numbers_is_left_out_and_counted(beans, config, monkeypatch):
    task = CompositionTask.load(beans, 32)
    images = stitching_images(task.train, 8, seed=0)
    search = Search(
        images, nets=list(StitchConfig.load(config).anchors), pretrained=False, threshold=0, total_threshold=0
    )
    composed = list(islice((one for one in search.compositions() if not one.is_uncut), 3))
    build = search.build

    def broken(composition):
        net = build(composition)
        if composition is composed[1]:
            next(net.parameters()).data.fill_(math.nan)
        return net

    monkeypatch.setattr(search, "build", broken)
    rows = [row for row, _ in judged(search, composed, task)]
    assert [row["cfg_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["stitch"] for row in rows[2:]] == [composed[0].name, composed[2].name]
    assert search.counts.skipped["its outputs are not finite"] == 1


def test_a_search_that_finds_nothing_reports_how_far_it_is():
    search = Search(torch.randn(4, 3, 32, 32), nets=convnets(), threshold=2)
    steps = []
    search.on_step = lambda counts: steps.append(counts.tried)
    assert list(search.compositions()) == []
    assert len(steps) == len(search.pool.starts)
    assert 0 < steps[0] < steps[-1] == search.counts.tried


def test_the_table_says_so_if_no_composed_network_is_better():
    parent = {"cfg_id": 0, "stitch": "a[0:3]", "flops": 10, "params": 10, "score": 1.0, "acc1": 90.0}
    worse = parent | {"cfg_id": 1, "stitch": "a[0:1] > b[2:3]", "acc1": 80.0, "parents_acc1": 80.0}
    better = worse | {"cfg_id": 2, "acc1": 85.0}
    assert against_parents([parent, worse]).endswith("no composed network beats the average of its parents")
    assert against_parents([parent, worse, better]).endswith(
        "1 of 2 composed networks beat the average of their parents, without training; the most accurate is 2: "
        "85.00 against 80.00 %"
    )


def test_classes_that_differ_between_the_splits_are_refused(beans, config, tmp_path, capsys):
    folder = tmp_path / "beans"
    shutil.copytree(beans, folder)
    shutil.rmtree(folder / "validation/class1")
    assert run("--data", folder, "--nets", config, *FLAGS, "-o", tmp_path / "out") == 2
    assert "lacks 1 class folder: class1; labels would not agree" in capsys.readouterr().err


def test_too_many_images_that_cannot_be_read_end_a_composition(beans, config, tmp_path, capsys):
    folder = tmp_path / "beans"
    shutil.copytree(beans, folder)
    for path in sorted((folder / "validation/class1").iterdir())[:6]:
        path.write_bytes(b"no image")
    assert run("--data", folder, "--nets", config, *FLAGS, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "6 of 36 images of the validation split cannot be read or have no class, such as 'class1/0.png'" in error
    assert error.endswith("more than 1 %, and more than 5. Repair or remove them")


def test_some_images_that_cannot_be_read_are_skipped_and_counted(tmp_path, caplog):
    folder = write_colours(tmp_path / "many", train=34, validation=34)
    for split in ("train", "validation"):
        (folder / split / "class1/0.png").write_bytes(b"no image")
    task = CompositionTask.load(folder, 16)
    assert [len(images) for images in (task.train, task.validation)] == [101, 101]
    for split in ("train", "validation"):
        assert f"1 of 102 images of the {split} split cannot be read or have no class: 'class1/0.png'" in caplog.text
    images = image_folder(folder / "train", 16)
    assert sum(len(labels) for _, labels in batches(images)) == 101
    (folder / "train/class1/0.png").unlink()
    assert torch.equal(torch.cat([found for found, _ in batches(image_folder(folder / "train", 16))]),
                       torch.stack([image for image, _ in task.train]))  # fmt: skip


def test_images_without_a_class_are_left_out():
    found = [labels.tolist() for _, labels in batches((np.zeros((3, 3, 8, 8)), [1, -1, 2]))]
    assert found == [[1, 2]]
    with pytest.raises(InputError, match="no image of the dataset has a class"):
        list(batches((np.zeros((2, 3, 8, 8)), [-1, -1])))


def test_data_sets_of_a_composition_have_names(beans):
    assert len(CompositionTask.load("digits", 8).validation) == 600
    for name, words in (("nowhere", "unknown data set 'nowhere'"), (beans / "test", "has no train/ folder")):
        with pytest.raises(InputError, match=words):
            CompositionTask.load(name, 8)


def test_images_are_drawn_from_arrays():
    images, labels = np.random.default_rng(0).random((5, 3, 8, 8), np.float32), np.arange(5)
    assert stitchnet.stitching_images((images, labels), 3).shape == (3, 3, 8, 8)
