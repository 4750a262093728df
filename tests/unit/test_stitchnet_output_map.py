"""Own classes from ImageNet's outputs: the forms of a map, its scores, what is refused, and the command."""

import json

import numpy as np
import pytest
import torch

import stitchnet
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchnet import generate
from stitchnet.classifier import OutputMap
from tests.composing import FLAGS, convnet, write_colours, write_pico_nets

CATS, DOGS = [281, 282, 283, 284, 285], list(range(151, 251))
"""As the authors of StitchNet count ImageNet's classes for cats and dogs."""
PETS = {"cat": ["tabby", "tiger_cat", "Persian cat", "n02123597", 285], "dog": "151-250"}


def test_scores_are_those_of_the_published_notebooks_and_of_plain_probabilities():
    outputs = np.random.default_rng(0).normal(0, 4, (200, 1000)).astype(np.float32)
    outputs[:150, [*CATS, *DOGS]] += 9
    outputs[100:150, CATS] += 4
    highest = outputs.argmax(1)
    published = np.select([np.isin(highest, CATS), np.isin(highest, DOGS)], [0, 1], -1)
    assert set(published) == {-1, 0, 1}
    chances = torch.from_numpy(outputs).double().softmax(1).numpy()
    each = [chances[:, group] for group in (CATS, DOGS)]
    expected = {
        "argmax": published,
        "max": np.stack([one.max(1) for one in each], 1).argmax(1),
        "sum": np.stack([one.sum(1) for one in each], 1).argmax(1),
    }
    assert (expected["max"] != expected["sum"]).any()
    for kind, labels in expected.items():
        found = OutputMap.read(PETS, kind)
        scores = found.scores(outputs)
        assert np.array_equal(found.classes[scores.argmax(1)], labels), kind
        assert np.allclose(scores.sum(1), 1)


def test_a_map_is_the_same_in_each_format(tmp_path):
    texts = {"a.json": json.dumps(PETS)}
    texts["a.yaml"] = "cat: [tabby, tiger cat, 283, 284, n02124075]\ndog: 151-250\n"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert OutputMap.read(tmp_path / name, "max") == OutputMap("max", (tuple(CATS), tuple(DOGS)), 1000)
    order = OutputMap.read({"b10": 1, "b9": range(2)[:1]}, "sum")
    assert order.groups == ((0,), (1,))  # class 9 before class 10, and no network of ImageNet is needed
    assert OutputMap.read({"a": 1, "b": 0}, "sum", ("b", "a")).groups == ((0,), (1,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cat": ["taby"]}, "unknown class of ImageNet 'taby'; did you mean 'tabby'"),
        ({"cat": ["crane"]}, "'crane' is the name of the outputs 134 and 517; use the number"),
        ({"cat": 1, "dog": [1]}, "gives output 1 to 'cat' and 'dog'; choose one"),
        ({"cat": []}, "has no output for class 'cat'; name at least one"),
        ({"cat": [1.5]}, "class 'cat': 1.5 is not an output; use numbers, names or synsets"),
        ({"cat": True}, "True is not an output"),
        ({"cat": "0-999999999"}, "output 999999999 is too large"),
    ],
)
def test_maps_that_cannot_be_used(content, words):
    with pytest.raises(InputError, match=words):
        OutputMap.read(content, "max")


def test_classes_and_files_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="unknown class in the output map: 'bird'"):
        OutputMap.read({"bird": 1}, "max", ("cat", "dog"))
    with pytest.raises(InputError, match="has no output for class 'dog'"):
        OutputMap.read({"cat": 1}, "max", ("cat", "dog"))
    with pytest.raises(InputError, match=r"none.yml' cannot be read in .*: No such file or directory; check the path"):
        OutputMap.read("none.yml", "max")
    (tmp_path / "endless.yml").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"endless.yml' is not a file"):
        OutputMap.read(tmp_path / "endless.yml", "max")
    for needed, content in ((1000, {"cat": "tabby"}), ("at least 5", {"cat": 4})):
        with pytest.raises(InputError, match=f"has 4 outputs, but the output map needs {needed}"):
            OutputMap.read(content, "max").scores(np.zeros((1, 4)))


def test_a_network_classifies_by_a_map_and_keeps_it(tmp_path):
    images = torch.rand(6, 3, 16, 16)
    nets = {"a": convnet(6, 8, classes=5)}
    _, net = generate(images, 0, 0, sample=True, nets=nets)
    found = net.map_outputs({"low": [0, 1], "high": "2-4"}, kind="sum", classes=("low", "high")).predict(images)
    high = net(images).softmax(1)[:, 2:].sum(1) > 0.5
    assert [one["label"] for one in found] == high.int().tolist()
    again = stitchnet.load(net.save(tmp_path / "net"), nets)
    assert again.predict(images) == found
    assert net.evaluate_dataset((images, high.int().numpy())) == {"accuracy": 1}


@pytest.mark.full
def test_the_command_evaluates_parents_and_composed_networks_by_a_map(tmp_path, capsys):
    images = write_colours(tmp_path / "images", train=3, validation=3)
    (tmp_path / "map.json").write_text(json.dumps({"class0": 0, "class1": [1, 2], "class2": 3}))
    nets = write_pico_nets(tmp_path)
    flags = ["compose", "--data", images, "--nets", nets, *FLAGS, "--top", 1, "-o", tmp_path / "out"]
    for wrong, words in (
        (["--output-map", tmp_path / "map.json"], "--output-map is not for --classifier knn; choose max, sum or"),
        (["--classifier", "max"], "--classifier max needs --output-map; name the file"),
    ):
        assert main([*map(str, (*flags, *wrong))]) == 2
        assert words in capsys.readouterr().err
    flags += ["--classifier", "max", "--output-map", tmp_path / "map.json"]
    assert main([*map(str, flags)]) == 0
    assert "all are evaluated by --classifier max" in capsys.readouterr().out
    rows = read_rows(tmp_path / "out/stitches_res.txt")
    for row in rows:
        net = stitchnet.load(tmp_path / f"out/{row['cfg_id']:03d}")
        outputs, labels = net.outputs(stitchnet.image_folder(images / "validation", 32))
        expected = np.array([0, 1, 1, 2])[outputs.argmax(1)]
        assert row["acc1"] == pytest.approx(100 * (expected == labels).mean())
    (tmp_path / "map.json").write_text(json.dumps({"class0": 0, "class1": [1, 3], "class2": 2}))
    assert main([*map(str, flags)]) == 2
    assert "out' was started with another version of the output map; restore" in capsys.readouterr().err
