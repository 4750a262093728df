"""Folders of the Hugging Face Hub, without a network."""

import copy
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from timm.data import resolve_model_data_config

import stitchkit
from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.pareto import pareto_front, table
from stitchkit.ship.trained_snnet import open_trained
from tests.hostile import Hostile
from tests.results import pareto_like
from tests.support import FAMILIES, FLAGS, mostly_full, pico_config, pico_images, randomize, write_config


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A network with a ledger, and its folder."""
    made, folder = stitchkit.HubSNNet(pico_config()).eval(), tmp_path_factory.mktemp("original") / "hub"
    randomize(made)
    made.ledger = pareto_like(made)
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture
def model(original):
    return copy.deepcopy(original[0])


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original[1], tmp_path / "hub"))


def test_a_folder_gives_back_weights_configuration_and_ledger(model, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "stitches_res.txt",
    ]
    found = stitchkit.HubSNNet.from_pretrained(folder).eval()
    for cfg_id in (0, 9, 16):
        assert torch.equal(found(pico_images(), cfg_id), model(pico_images(), cfg_id))
    assert [stitch.name for stitch in found.space] == [stitch.name for stitch in model.space]
    assert found.ledger == model.ledger == read_rows(folder / "stitches_res.txt")
    assert (
        stitchkit.BudgetedModel(found, found.ledger).choose("1G")
        == max(model.ledger, key=lambda r: r["acc1"])["cfg_id"]
    )
    found.save_pretrained(folder.parent / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (folder.parent / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_card_says_that_stitches_have_batch_norm_statistics_of_their_own(model):
    said = "Some stitches have batch-norm statistics of their own, which are in `stitches_res.statistics.safetensors`"
    assert said not in str(model.generate_model_card())
    model.statistics = {5: {"anchors.0.norm.running_mean": torch.zeros(1)}}
    assert said in str(model.generate_model_card())
    model.drop_statistics()


FAMILY_OF_EACH_KIND = ["swin", "resnet", "resnet to swin", "levit", "vit without final norm, all pairs"]


@pytest.mark.parametrize("family", mostly_full(FAMILY_OF_EACH_KIND, quick=["resnet to swin"]))
def test_every_family_goes_there_and_back(family, tmp_path):
    model = stitchkit.HubSNNet(FAMILIES[family], num_classes=3).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "hub")
    found = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub").eval()
    images, last = torch.rand(2, *model.input_size), model.space.ids[-1]
    assert torch.equal(found(images, last), model(images, last))
    assert found(images, 0).shape == (2, 3)
    assert found.ledger == []


def test_a_checkpoint_is_loaded_and_saved_as_a_folder(model, tmp_path):
    """The way of the documentation, with classes, channels and a size of its own."""
    options = {"num_classes": 7, "img_size": 32, "in_chans": 1}
    trained = stitchkit.create_snnet(pico_config(), **options).eval()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "last.pth.tar")
    made = stitchkit.HubSNNet(write_config(tmp_path / "pico.json"), **options).eval()
    stitchkit.load_checkpoint(made, tmp_path / "last.pth.tar")
    made.save_pretrained(tmp_path / "hub")
    found = stitchkit.HubSNNet.from_pretrained(str(tmp_path / "hub")).eval()
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(found(images, 8), trained(images, 8))


def test_how_images_are_prepared_is_kept(tmp_path):
    recipe = {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0, "epochs": 3}
    stitchkit.HubSNNet(pico_config(recipe=recipe)).save_pretrained(tmp_path / "hub")
    kept = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub").config.recipe
    assert kept == {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}


def test_class_names_and_settings_of_images_come_back(tmp_path):
    image = {"mean": [0.1, 0.2, 0.3], "std": [0.4], "crop_pct": 0.8, "interpolation": "bilinear"}
    decoding = {"input_img_mode": "HSV", "background": "black", "exif": False}
    names = ["ant", "bee", "cat", "dog"]
    stitchkit.HubSNNet(pico_config(), classes=names, image=image | decoding).save_pretrained(tmp_path / "hub")
    found = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub")
    assert found.classes == names
    assert found.image == image | decoding | {"std": [0.4] * 3, "crop_mode": "center"}
    prepared = resolve_model_data_config(found)
    assert {key: prepared[key] for key in image} == {
        **image, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.4, 0.4)
    }  # fmt: skip
    assert prepared["input_size"] == (3, 16, 16)


def test_what_is_not_given_is_the_last_anchors():
    model = stitchkit.HubSNNet(pico_config(), in_chans=1)
    assert (model.image["mean"], model.image["crop_pct"]) == ([0.5], model.views["b"].pretrained_cfg["crop_pct"])
    assert model.classes == []
    assert resolve_model_data_config(model)["input_size"] == (1, 16, 16)


def test_a_run_becomes_a_folder(images, tmp_path):
    """With all that its flags and its data say."""
    config, folder = write_config(tmp_path / "pico.json"), tmp_path / "hub"
    flags = ["--mean", "0.2", "0.3", "0.4", "--crop-pct", "0.9", "--gp", "avg", "--epochs", "1", "--output", tmp_path]
    assert main([*map(str, ["train", images, "--stitch_config", config, *FLAGS, *flags])]) == 0
    given = {"config": str(tmp_path / "pico/args.yaml"), "resume": str(tmp_path / "pico/last.pth.tar")}
    made = stitchkit.HubSNNet.from_run(**given)
    made.save_pretrained(folder)
    found, expected = stitchkit.HubSNNet.from_pretrained(folder).eval(), open_trained(given)
    assert torch.equal(found(pico_images(), 9), expected.model(pico_images(), 9))
    assert found.classes == [f"class{number}" for number in range(4)]
    assert (found.image["mean"], found.image["crop_pct"]) == ([0.2, 0.3, 0.4], 0.9)
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    with pytest.raises(stitchkit.InputError, match="--bn-eps cannot be stored in a folder"):
        stitchkit.HubSNNet.from_run(**given, bn_eps=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["ant"]}, "1 class names for 4 logits"),
        ({"classes": "abcd"}, "'classes' is 'abcd'"),
        ({"classes": [1, 2, 3, 4]}, "give the names of the classes"),
        ({"image": {"mean": "0.5"}}, "'mean' of images is '0.5'"),
        ({"image": {"std": [1, 2]}}, "is not valid for images of 3 channels"),
        ({"image": {"crop_pct": "0.9"}}, "'crop_pct' of images is '0.9'"),
        ({"image": {"crop_pct": math.nan}}, "it contains NaN"),
        ({"image": {"men": [0.5]}}, "did you mean 'mean'?"),
    ],
)
def test_names_and_settings_of_another_network_are_refused(folder, change, message):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(stitchkit.InputError, match=message.replace("?", r"\?")):
        stitchkit.HubSNNet.from_pretrained(folder)


def test_a_folder_from_before_names_and_settings_were_kept(model, folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"stitch_config": content["stitch_config"]}))
    found = stitchkit.HubSNNet.from_pretrained(folder)
    assert (found.classes, found.image) == ([], model.image)


def test_no_path_of_the_machine_is_in_a_folder(tmp_path):
    config = pico_config()
    anchor = config["anchors"][0]
    torch.save(stitchkit.create_model(anchor["name"], **anchor["kwargs"]).state_dict(), tmp_path / "secret.pth")
    anchor["checkpoint"] = str(tmp_path / "secret.pth")
    stitchkit.HubSNNet(write_config(tmp_path / "pico.json", anchors=config["anchors"])).save_pretrained(
        tmp_path / "hub"
    )
    for path in (tmp_path / "hub").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_card_has_the_pareto_front_and_is_valid(model, folder):
    card = ModelCard.load(folder / "README.md")
    assert table(pareto_front(model.ledger)) in card.text
    assert card.data.library_name == "stitchkit"
    assert card.data.pipeline_tag == "image-classification"
    assert "17 networks" in card.text


def test_the_python_of_the_card_runs(model, folder, monkeypatch):
    text = (folder / "README.md").read_text().replace("FOLDER_OR_REPOSITORY", str(folder))
    names = {"images": pico_images()}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert torch.equal(names["logits"], names["net"](names["images"]))


def test_a_card_without_a_ledger_shows_no_front(tmp_path):
    stitchkit.HubSNNet(pico_config()).save_pretrained(tmp_path / "hub")
    assert "Pareto" not in (tmp_path / "hub/README.md").read_text()


def test_a_card_that_a_person_wrote_stays(model, folder):
    (folder / "README.md").write_text("mine")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_pushing_uploads_what_saving_writes(model, folder, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            uploaded["repo"] = repo_id
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path, **_):
            uploaded["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("user/pico") == "done"
    assert uploaded["repo"] == "user/pico"
    saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    saved["README.md"] = saved["README.md"].replace(b"FOLDER_OR_REPOSITORY", b"user/pico")
    assert b"user/pico" in saved["README.md"]
    assert uploaded["files"] == saved


def change_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content["stitch_config"])
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config["anchors"][0].update(name="hf-hub:somebody/model"),
            "names a model on the Hub",
        ),
        (lambda config: config["anchors"][0].update(checkpoint="weights.pth"), "'weights.pth'; refused"),
        (lambda config: config["anchors"][1]["kwargs"].update(embed_dim=24), "belongs to another configuration"),
        (lambda config: config.update(stitch_strid=1), "did you mean 'stitch_stride'?"),
        (lambda config: config.pop("anchors"), "anchors is missing"),
    ],
)
def test_a_configuration_that_says_something_odd_is_refused(folder, change, message):
    change_config(folder, change)
    with pytest.raises(stitchkit.InputError, match=message.replace("?", r"\?")):
        stitchkit.HubSNNet.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"stitch_config": 3}', '{"num_classes": 3}'])
def test_a_damaged_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(stitchkit.InputError, match=str(folder)):
        stitchkit.HubSNNet.from_pretrained(folder)


@pytest.mark.parametrize("key", ["classes", "anchors"])
def test_a_configuration_with_a_key_twice_is_refused(folder, key):
    path = folder / "config.json"
    text = path.read_text()
    start = text.index(f'"{key}"')
    path.write_text(f'{text[:start]}"{key}": null, {text[start:]}')
    with pytest.raises(stitchkit.InputError, match=f"duplicate key .*{key}"):
        stitchkit.HubSNNet.from_pretrained(folder)


def test_a_pickle_in_a_folder_is_never_opened(model, folder):
    trap = folder.parent / "trap"
    (folder / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "x": Hostile(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(stitchkit.InputError, match=r"has no model.safetensors; weights of another kind are not read"):
        stitchkit.HubSNNet.from_pretrained(folder)
    os.rename(folder / "pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(stitchkit.InputError, match="not a checkpoint"):
        stitchkit.HubSNNet.from_pretrained(folder)
    torch.save([Hostile(trap)], folder / "stitches_res.txt")
    with pytest.raises(stitchkit.InputError):
        stitchkit.HubSNNet.from_pretrained(folder)
    assert not trap.exists()


def test_what_is_neither_folder_nor_repository_is_refused_with_one_sentence(tmp_path):
    with pytest.raises(stitchkit.InputError, match="neither a folder nor user/name of a repository"):
        stitchkit.HubSNNet.from_pretrained(tmp_path / "no/such/folder")
    with pytest.raises(stitchkit.InputError, match=r"cannot be loaded: .*; check folder, name and network"):
        stitchkit.HubSNNet.from_pretrained("user/pico", local_files_only=True, cache_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(stitchkit.InputError, match="has no 'stitch_config'"):
        stitchkit.HubSNNet.from_pretrained(tmp_path / "empty")


def test_an_unknown_option_is_refused(folder):
    with pytest.raises(stitchkit.InputError, match="unknown option 'revisio'; did you mean 'revision'"):
        stitchkit.HubSNNet.from_pretrained(folder, revisio="main")
