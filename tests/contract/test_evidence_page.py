"""studies/evidence: its page has the table of the committed records, each of one row and seed of one study."""

import pytest

from studies.evidence.rows import ROWS
from studies.evidence.run import read_study
from studies.evidence.table import table
from tests.support import ROOT

STUDY = ROOT / "studies/evidence"
FOLDERS = [STUDY / "records", STUDY / "records_taught"]
TAUGHT = {"taught", "two_way_taught"}
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def records(request):
    return read_study(request.param)


def test_every_row_is_measured_with_three_seeds():
    first, second = map(read_study, FOLDERS)
    assert {*first} == {*ROWS} - TAUGHT
    assert {*second} >= {*TAUGHT, "cost_bins", "distilled"}, "with those that they are compared with"
    assert all([record.about["seed"] for record in some] == SEEDS for some in (*first.values(), *second.values()))


def test_the_page_has_the_measured_table(records):
    page = (STUDY / "README.md").read_text()
    assert " ".join(table(records).split()) in " ".join(page.split()), "apart from where its lines end"


def test_all_rows_spent_one_budget_on_the_same_images_and_networks(records):
    every = [record for some in records.values() for record in some]
    assert len({(record.about["images"], str(record.about["size"])) for record in every}) == 1
    for record in every:
        limit = record.about["size"]["budget"]
        # The focus was measured before its last part of the steps was cut to the budget; the page says so.
        most = 1.1 if record.about["row"] == "focus" else 1.01
        assert 0.97 < record.spent.flops / limit < most, record.about["row"]
        assert record.networks[:2] == every[0].networks[:2], "the given anchors"
