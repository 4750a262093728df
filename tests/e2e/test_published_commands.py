"""The published commands, word for word but for the path, the epochs, the batch and the number of processes.

timm fetches pretrained weights from the hub; here a cache of the hub with random weights stands in for its network.
"""

import shlex

import pytest
import timm
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from stitchkit.measure.ledger import read_rows
from tests.support import launch, write_images

PUBLISHED = (
    "-b {batch} --stitch_config configs/{name}.json --sched cosine --epochs 1 --lr 0.05 --amp --remode pixel "
    "--reprob 0.6 --aa rand-m9-mstd0.5-inc1 --resplit --split-bn -j 10 --dist-bn reduce"
)
ANCHORS = ("resnet18.tv_in1k", "resnet50.a1_in1k", "swin_tiny_patch4_window7_224.ms_in1k")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What the hub's client finds in its cache, under the names that timm asks for."""
    home = tmp_path_factory.mktemp("hub")
    for name in ANCHORS:
        folder = home / "hub" / f"models--{get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        save_file(timm.create_model(name).state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("few"), train=4, validation=1)


@pytest.mark.parametrize(("name", "stitches"), [("resnet18_swin_ti", 8), ("resnet18_resnet50", 10)])
def test_a_published_command_trains_and_evaluates(name, stitches, few_images, hub, tmp_path):
    command = shlex.split(PUBLISHED.format(name=name, batch=4))
    trained = launch(2, few_images, *command, "--output", tmp_path, **hub)
    assert trained.returncode == 0, trained.stderr
    assert "teacher 'regnety_160.deit_in1k' knows 1000 classes, the data have 4" in trained.stdout
    weights = tmp_path / name / "last.pth.tar"
    evaluated = launch(1, few_images, *command, "--output", tmp_path, "--resume", weights, "--eval", **hub)
    assert evaluated.returncode == 0, evaluated.stderr
    rows = read_rows(tmp_path / name / "stitches_res.txt")
    assert [row["cfg_id"] for row in rows] == list(range(stitches))
    assert {row["images"] for row in rows} == {4}
