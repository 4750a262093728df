"""Law 10, the config law: every shipped file loads and builds, at reduced size."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml

import stitchkit
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.cli import main
from stitchkit.settings.commands import kinds, schema_text
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.flags import add_flags, resolve
from stitchkit.settings.stitch_config import StitchConfig
from stitchnet.fragments import fragments
from stitchnet.networks import create
from tests.support import ROOT, mostly_full

JSON = sorted((ROOT / "configs").glob("*.json"))
YAML = sorted((ROOT / "configs").glob("*.yaml"))
ZOO = sorted((ROOT / "configs/zoo").glob("*.json"))
COMPOSED = sorted((ROOT / "configs/compose").glob("*.json"))
JOBS = sorted((ROOT / "configs/assembly").glob("*.yml"))
DENSE_JOBS = [ROOT / f"configs/scenes/{task}.yml" for task in ("segmentation", "depth")]
SWEEPS = sorted([
    ROOT / "configs/scenes/heads.yml",
    *(path for name in ("across-scales", "sweeps") for path in (ROOT / f"configs/{name}").glob("*.yml")
      if path.stem != "train"),
])  # fmt: skip
SCHEMAS = ROOT / "stitchkit/settings/schemas"


BUILT_QUICKLY = ("deit_ti_s_b", "deit3_s_l", "resnet18_swin_ti", "levit_192_256", "ade20k_deit3_b_l", "digits_vit")
"""One of each family, version and task; the others are built in the full tests."""


@pytest.mark.parametrize(
    "path", mostly_full(JSON, quick=[path for path in JSON if path.stem in BUILT_QUICKLY]), ids=lambda path: path.name
)
def test_law_10_stitch_configurations_load_and_build(path):
    config = StitchConfig.load(path)
    with torch.device("meta"):  # whole, without the memory
        model = stitchkit.create_snnet(config, checkpoints=False)
    assert len(model.space) > len(config.anchors)
    assert config.source, "the first key says where it comes from"
    assert next(iter(json.loads(path.read_text()))) == "source"


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.name)
def test_law_10_recipes_resolve(path):
    recipe, config = resolve({"stitch_config": str(path), "data_dir": "data"})
    assert config is not None
    assert recipe.schedule.epochs == config.recipe["epochs"]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_law_10_settings_files_resolve(path):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    recipe, _ = resolve(vars(parser.parse_args(["data", "-c", str(path), "--model", "any"])))
    assert recipe.flat().items() >= yaml.safe_load(path.read_text()).items()


def test_the_published_deit_configuration():
    config = StitchConfig.load(ROOT / "configs/deit_ti_s_b.json")
    assert [anchor.name for anchor in config.anchors] == [
        f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")
    ]
    assert not config.stitched_final_norm
    assert config.recipe["distillation_type"] == "hard"


@pytest.mark.full
@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_law_10_networks_to_compose_load_and_build(path):
    config = StitchConfig.load(path)
    for anchor in config.anchors:
        untrained = replace(anchor, checkpoint=None)  # the demo that trains it need not have run
        assert len(fragments(anchor.label, create(untrained, pretrained=False), torch.zeros(1, 3, 32, 32))) >= 5
    assert next(iter(json.loads(path.read_text()))) == "source"


@pytest.mark.parametrize(
    "path",
    mostly_full(JOBS, quick=[path for path in JOBS if path.stem in ("vit-to-cnn", "block-replaced", "from-scratch")]),
    ids=lambda path: path.stem,
)
def test_law_10_jobs_load_and_build(path):
    with torch.device("meta"):
        network = build_network(JobConfig.load(path).network, num_classes=1000, pretrained=False)
    assert any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("path", DENSE_JOBS, ids=lambda path: path.stem)
def test_law_10_dense_jobs_load_and_build(path):
    config, outputs = JobConfig.load(path), {"segmentation": 10, "depth": 1}[path.stem]
    with torch.device("meta"):
        network = build_network(
            config.network, num_classes=config.wanted([outputs]), input_size=(3, 64, 64), pretrained=False
        )
        found = network(torch.zeros(2, 3, 64, 64))
    assert found.shape == (2, outputs, 8, 8)


def test_law_10_heads_on_encoders_of_scenes_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in DENSE_JOBS:
        out = tmp_path / f"outputs/scenes_{path.stem}"
        out.mkdir(parents=True)
        (out / "checkpoint.pth").touch()
        (out / "config.yml").write_text(yaml.safe_dump(read_settings_file(path)))
    jobs = load_sweep(ROOT / "configs/scenes/heads.yml").jobs
    names = ["scenes-segmentation", "scenes-depth"]
    assert [(job.columns["head"], job.columns["encoder"]) for job in jobs] == [
        (head, encoder) for head in names for encoder in ("base", *names)
    ]


def test_law_10_sweeps_load_and_their_jobs_build(tmp_path, monkeypatch):
    """Those over gaps are in the tests of sweeps. The heads by encoders are of the trials of the search."""
    sweeps, out = ROOT / "configs/sweeps", tmp_path / "outputs/sweep_search"
    monkeypatch.chdir(tmp_path)
    for name in ("datasets", "search", "heads-by-encoders"):
        jobs = load_sweep(sweeps / f"{name}.yml").jobs
        for job in jobs:
            with torch.device("meta"):
                build_network(job.parsed.network, num_classes=10, input_size=(3, 16, 16), pretrained=False)
            if name == "search":
                (job.write(out) / "checkpoint.pth").touch()
    assert [job.columns["encoder"] for job in jobs] == ["base", "digits-1", "digits-2"] * 2


def test_law_10_there_is_a_job_of_each_published_kind():
    assert {path.stem for path in JOBS} == {
        *("resnet-to-resnet", "cnn-to-vit", "vit-to-cnn", "cnn-to-swin"),
        *("block-replaced", "network-expanded", "network-compressed", "from-scratch"),
    }


@pytest.mark.parametrize("kind", kinds())
def test_the_schemas_are_what_the_command_prints(kind, capsys):
    """After a change: `python -c "from stitchkit.settings.commands import write_schemas; write_schemas()"`."""
    assert main(["schema", kind]) == 0
    assert (SCHEMAS / f"{kind}.json").read_text() == capsys.readouterr().out == schema_text(kind)


def test_the_schemas_are_printed_without_torch():
    code = "import sys; from stitchkit.cli import main; main(['schema', 'job']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_configuration_names_the_schema_of_its_kind():
    kinds = {"stitch-config": [*JSON, *ZOO, *COMPOSED], "recipe": YAML, "job": [*JOBS, *DENSE_JOBS], "sweep": SWEEPS}
    for kind, paths in kinds.items():
        for path in paths:
            text = path.read_text()
            found = json.loads(text)["$schema"] if path.suffix == ".json" else re.search(r"\$schema=(\S+)", text)[1]
            assert (path.parent / found).resolve() == SCHEMAS / f"{kind}.json", path


def test_the_schemas_know_every_key_of_the_configurations():
    """As an editor would complete and check them."""
    for kind, paths in {
        "stitch-config": [*JSON, *ZOO, *COMPOSED],
        "job": [*JOBS, *DENSE_JOBS],
        "sweep": SWEEPS,
    }.items():
        schema = json.loads(schema_text(kind))
        for path in paths:
            content = read_settings_file(path)
            assert content.keys() <= schema["properties"].keys(), path
            recipe = schema["properties"].get("recipe", {}).get("properties", {})
            assert content.get("recipe", {}).keys() <= recipe.keys(), path
    job = json.loads(schema_text("job"))
    assert all(value["description"] for value in job["properties"].values()), "docstrings say what each is"
    for name, kind in job["$defs"]["PartFile"]["anyOf"][1]["properties"].items():
        arguments = job["$defs"][kind["$ref"].rpartition("/")[2]]["properties"]
        assert all(value["description"] for value in arguments.values()), name
    assert "kernel_size" in job["$defs"]["SimpleAdapter"]["properties"]
