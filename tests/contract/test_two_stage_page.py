"""The table of two-stage evaluation is what its command prints, and what it simulates is what the page says."""

import numpy as np
import pytest

from docs.two_stage_table import DISAGREEMENT, HEAD, correlation, main, measure, read_space, regrets, run, simulated
from stitchkit.measure.hits import hits_beside
from stitchkit.measure.ledger import read_rows, write_rows
from tests.support import ROOT

DIGITS = ROOT / "results/digits_vit/stitches_res.txt"


GLYPHS = ROOT / "results/evidence/two_way/seed0/validation.txt"


def test_the_rows_of_digits_and_glyphs_are_those_of_the_page(capsys):
    main([str(DIGITS), str(GLYPHS)])
    printed = capsys.readouterr().out
    assert printed in (ROOT / "docs/front.md").read_text()
    assert printed.startswith(HEAD)


@pytest.mark.full
def test_a_simulated_row_is_that_of_the_page(shared):
    space = read_space(str(shared / "published/swin_ti_s_b.jsonl"))
    row = f"| `swin_ti_s_b` | simulated | {' | '.join(measure(space, 0.1, 0.2))} |\n"
    assert row in (ROOT / "docs/front.md").read_text()


def test_simulated_hits_have_the_accuracies_and_neighbours_disagree_as_stitches_do():
    shares = [0.70, 0.72, 0.78, 0.79, 0.80]
    right = simulated(shares, correlation(shares), seed=1)
    assert right.mean(axis=1) == pytest.approx(shares, abs=0.006)
    assert (right[1:] != right[:-1]).mean() == pytest.approx(DISAGREEMENT, abs=0.005)


def test_regret_is_what_a_choice_loses_at_the_budgets_of_the_true_front():
    flops, truth = np.array([1, 2, 3, 4]), np.array([70.0, 75.0, 74.0, 80.0])
    assert regrets(truth, truth, flops) == (0, 0)
    assert regrets(truth, np.array([70.0, 60.0, 74.0, 80.0]), flops) == (pytest.approx(5 / 3), 5)
    assert regrets(truth, np.array([9.0, 8, 7, 6]), flops) == (pytest.approx(5), 10)


def test_two_stages_with_room_for_all_lose_nothing_and_cost_all(tmp_path):
    space = read_space(str(DIGITS))
    hits = hits_beside(DIGITS)
    assert (len(space.flops), len(space.labels), space.is_simulated) == (35, 600, False)
    assert len(space.anchors) == 3
    right = space.right(0)
    assert right.mean() == hits.right.mean()
    assert run(space, right, 0.1, 100, seed=0) == (pytest.approx(1), 35, 0, 0)
    cost, finished, *_ = run(space, right, 0.1, 0, seed=0)
    assert 0.1 < cost < 1
    assert 3 <= finished < 35
    rows = [{key: row[key] for key in ("cfg_id", "flops", "acc1")} for row in read_rows(DIGITS)]
    write_rows(tmp_path / "published.jsonl", rows)
    published = read_space(str(tmp_path / "published.jsonl"))
    named = read_space(f"ours={tmp_path / 'published.jsonl'}")
    assert (named.name, named.cfg_ids, named.flops) == ("ours", published.cfg_ids, published.flops)
    assert (published.name, published.is_simulated, published.anchors) == ("published", True, [])
