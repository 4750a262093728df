"""What is said about the version and the package: the same everywhere."""

import re
from importlib.metadata import metadata

import yaml

from stitchkit import __version__
from tests.support import ROOT


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == __version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert {"Stitchable Neural Networks"} < {paper["title"] for paper in citation["references"]}
    assert all({"type", "title", "authors", "year"} <= paper.keys() for paper in citation["references"])


def test_the_newest_entry_of_the_changes_is_this_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1].strip(",") == __version__ == metadata("stitchkit")["Version"]


def test_every_package_says_that_it_is_typed():
    packages = [path.parent for path in ROOT.glob("stitch*/__init__.py")]
    assert len(packages) == 6
    assert all((package / "py.typed").is_file() for package in packages)
