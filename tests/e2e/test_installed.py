"""`pip install .` and away from the clone: what is installed is enough for the commands."""

import os
import subprocess
import sys

import pytest

from stitchkit.measure.ledger import read_rows
from stitchkit.settings.names import short_names
from tests.support import ROOT, write_images

pytestmark = pytest.mark.full  # it builds a wheel

# The interpreter of the tests also knows the clone; the installed packages must come before it, and be all there.
PLACES = """
import importlib.util
for name in ("stitchkit", "stitchnet", "stitching_deit", "stitching_levit", "stitching_resnet_swin", "stitching_swin"):
    print(importlib.util.find_spec(name).origin)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the packages of a wheel that is built from the files git knows."""
    place = tmp_path_factory.mktemp("installed")
    copy, packages = place / "copy", place / "packages"
    copy.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    packed = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=tracked, stdout=-1, check=True).stdout
    subprocess.run(["tar", "-x", "-C", copy], input=packed, check=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", copy, "--no-deps", "--no-build-isolation", "-w", place], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", wheel, "--no-deps", "--target", packages], check=True)
    return packages


@pytest.fixture
def run(installed, tmp_path):
    """Run Python in an empty folder, where only the installed packages are."""

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        ran = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_the_packages_and_all_configurations_are_installed(installed, run):
    origins = run("-c", PLACES).split()
    assert len(origins) == 6
    assert all(origin.startswith(str(installed)) for origin in origins)
    found = {str(path.relative_to(installed / "stitchkit")) for path in (installed / "stitchkit/configs").rglob("*")}
    expected = {str(path.resolve().relative_to(ROOT)) for path in short_names().values()}
    assert found == expected | {"configs/zoo"}


def test_configurations_are_listed_and_profiled(run):
    listed = run("-m", "stitchkit", "zoo")
    assert all(path.stem in listed for path in short_names().values() if path.parent.name == "zoo")
    assert "10 stitches, 1.82G to 3.67G FLOPs" in run(
        "-m", "stitchkit", "profile", "--stitch_config", "resnet_a1_18_34"
    )


def test_anchors_are_trained(run, tmp_path):
    images = write_images(tmp_path / "images")
    small = ["--img-size", "32", "-b", "4", "-j", "0", "--epochs", "1", "--stitch-init-bs", "8", "--device", "cpu"]
    train = ["-m", "stitchkit", "train", images, "--anchors", "convnext_atto,convnext_femto", "--no-pretrained", *small]
    run(*train, "--output", "results")
    place = tmp_path / "results/convnext_atto+convnext_femto"
    run("-m", "stitchkit", "train", "-c", place / "args.yaml", "--eval", "--resume", place / "last.pth.tar")
    assert len(read_rows(place / "stitches_res.txt")) == 9
