"""What docs/reliability.md promises has tests, and what it names exists."""

import re

from stitchkit.settings.by_name import make_recipe
from stitchkit.training.checkpoint import LAST, PREVIOUS
from tests.support import ROOT

TEXT = (ROOT / "docs/reliability.md").read_text()
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}
PROMISES = TEXT.split("## Promises")[1].split("##")[0]


def test_every_promise_is_held_by_tests_that_exist():
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    held = {row: set(re.findall(r"`(test_\w+)`", row)) for row in rows}
    assert not [row for row, named in held.items() if not named]
    assert set().union(*held.values()) <= TESTS


def test_files_and_settings_are_as_the_page_says():
    assert f"| `{LAST}` |" in TEXT
    assert f"| `{PREVIOUS}` |" in TEXT
    assert make_recipe({}).data.max_unreadable == 0.01
    assert "`--max-unreadable` (1 %)" in TEXT
