"""docs/samplers.md: its sampler of one's own trains, and is short; its table and numbers are those of the code."""

import csv
import re

import pytest

from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training import samplers
from stitchkit.training.samplers import SAMPLERS
from tests.support import ROOT, demo_folder

TEXT = (ROOT / "docs/samplers.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_page_names_every_sampler_and_its_numbers():
    assert re.findall(r"^\| `(\w+)`", TEXT, re.M) == [*SAMPLERS]
    help_text = StitchRecipe.__pydantic_fields__["sampler"].description
    assert all(name in help_text for name in SAMPLERS)
    assert f"The default is `{StitchRecipe().sampler}`." in TEXT
    assert f"{samplers._PARTS}th of the difference" in TEXT


@pytest.mark.full
def test_a_sampler_of_ones_own_trains(tmp_path, monkeypatch):
    assert EXAMPLE.count("\n") < 40
    monkeypatch.chdir(demo_folder(tmp_path))
    monkeypatch.setattr("stitchkit.training.samplers.SAMPLERS", dict(SAMPLERS))
    names = {}
    exec(EXAMPLE, names)
    with (names["run"].folder / "losses.csv").open(newline="") as file:
        steps = {row["cfg_id"]: int(row["steps"]) for row in csv.DictReader(file)}
    assert len(steps) > 20
    assert max(steps.values()) - min(steps.values()) <= 1, "each route as often"
