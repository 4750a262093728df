"""Short names of stitch configurations: found without a clone, weaker than files, and near misses."""

import json

import pytest

import stitchkit
from stitchkit.errors import InputError
from stitchkit.settings.flags import resolve
from stitchkit.settings.names import config_file, short_names
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import ROOT, pico_config, write_config


def test_every_configuration_at_the_top_and_of_the_zoo_has_a_name():
    paths = [*(ROOT / "configs").glob("*.json"), *(ROOT / "configs/zoo").glob("*.json")]
    assert {path.resolve() for path in short_names().values()} == set(paths)
    assert len(paths) == len({path.stem for path in paths}), "no two share a name"


def test_a_name_is_its_file_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = StitchConfig.load(ROOT / "configs/digits_vit.json")
    assert StitchConfig.load("digits_vit") == config
    assert len(stitchkit.create_snnet("digits_vit", checkpoints=False).space) == 35
    recipe, found = resolve({"stitch_config": "digits_vit", "data_dir": "data"})
    assert found == config
    assert recipe.folder.name == "digits_vit"


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "levit_192_256").mkdir()
    (tmp_path / "digits_vit").write_text(json.dumps(pico_config()))
    assert StitchConfig.load("digits_vit").anchors[0].label == "ti"
    assert StitchConfig.load("./digits_vit").anchors[0].kwargs["img_size"] == 16
    assert config_file("levit_192_256").parent.name == "configs"


@pytest.mark.parametrize("path", ["./deit_ti_s_b", "configs/deit_ti_s_b", "deit_ti_s_b.json"])
def test_what_has_a_folder_or_a_suffix_is_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        StitchConfig.load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_ti_s_d", "did you mean the stitch configuration 'deit_ti_s_b'"),
        ("convnxt_tiny", r"did you mean the model 'convnext_tiny' \(--anchors convnext_tiny"),
        ("tiny", r"the stitch configurations that begin so are 'tiny_vit'"),
        ("resnet50", "did you mean the model 'resnet50'"),
        ("zzzzz", "check the spelling"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(name, message):
    with pytest.raises(InputError, match=f"unknown stitch configuration '{name}'; .*{message}"):
        StitchConfig.load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "convnext_in12k",
            r"did you mean the stitch configuration 'convnext_in12k' \(--stitch-config convnext_in12k\)",
        ),
        ("torchvison/resnet50", r"did you mean 'torchvision/resnet50'\?$"),
        ("resnt50", r"did you mean 'resnet50'\?$"),
        ("zzzzz", "check the spelling"),
    ],
)
def test_a_misspelt_anchor_gets_the_nearest_wherever_it_is_named(name, message):
    for given in ({"config": {"anchors": ["resnet18", name]}}, {"anchors": ["resnet18", name]}):
        with pytest.raises(InputError, match=f"anchor '[^']+': unknown timm model '{name}'; .*{message}"):
            stitchkit.create_snnet(**given)


def test_the_folder_of_a_run_keeps_its_name_for_name_and_file(tmp_path):
    """Settings saved with one, and the other on the command line, are of the same network."""
    saved = tmp_path / "args.yaml"
    saved.write_text("stitch_config: digits_vit\nexperiment: mine\n")
    for given in ("digits_vit", str(ROOT / "configs/digits_vit.json")):
        assert resolve({"config": str(saved), "stitch_config": given, "data_dir": "x"})[0].folder.name == "mine"
    other = str(write_config(tmp_path / "pico.json"))
    assert resolve({"config": str(saved), "stitch_config": other, "data_dir": "x"})[0].folder.name == "pico"
