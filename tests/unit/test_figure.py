"""Pictures for papers: text in vector files, labels and points that do not hide each other."""

import logging
from itertools import combinations

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text

from stitchkit.measure.pareto import plot

# The anchors lie in a crowd, at the edges, and one beside the other.
ROWS = [
    *({"cfg_id": n, "stitch": "a[0:2] > b[2:4]", "flops": 1e6 * 1.02**n, "acc1": 70 + n % 9} for n in range(60)),
    {"cfg_id": 60, "stitch": "tiny[0:4]", "flops": 1e6, "acc1": 70.0},
    {"cfg_id": 61, "stitch": "small_patch16[0:4]", "flops": 1.6e6, "acc1": 74.0},
    {"cfg_id": 62, "stitch": "small_patch32[0:4]", "flops": 1.61e6, "acc1": 74.1},
    {"cfg_id": 63, "stitch": "base[0:4]", "flops": 3.3e6, "acc1": 78.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    seen = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *given, **named: seen.append(self) or save(self, *given, **named),
    )
    return seen


def test_vector_files_hold_text_as_text_and_are_the_same_each_time(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for kind in ("svg", "PDF"):
        for name in ("one", "two"):
            plot(ROWS, tmp_path / f"{name}.{kind}", title="sixty stitches")
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert ">sixty stitches</text>" in (tmp_path / "one.svg").read_text()
    assert caplog.text == "", "nothing about fonts"
    paper = (tmp_path / "one.PDF").read_bytes()
    assert b"/FontFile2" in paper, "embedded"
    assert b"/Subtype /Type3" not in paper, "a printer's outlines, which no reader can search"


def test_the_axis_of_a_latency_says_its_batch_and_whether_it_is_reliable(tmp_path, drawn):
    for reliable, end in ((True, "(ms)"), (False, "(ms, unreliable)")):
        measured = {"latency_ms": 2.5, "latency_batch_size": 8, "latency_reliable": reliable}
        plot([{**row, **measured} for row in ROWS[-2:]], tmp_path / "front.svg", cost="latency_ms")
        assert drawn[-1].axes[0].get_xlabel() == f"latency of a batch of 8 {end}; areas show parameters"


def test_labels_of_anchors_hide_nothing(tmp_path, drawn):
    plot(ROWS, tmp_path / "front.png")
    (figure,) = drawn
    (axes,) = figure.axes
    figure.draw_without_rendering()
    labels = {text.get_text(): text for text in axes.texts}
    assert labels.keys() == {"tiny", "small_patch16", "small_patch32", "base"}
    boxes = {name: Text.get_window_extent(text) for name, text in labels.items()}  # without its line
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    places = axes.transData.transform([(row["flops"], row["acc1"]) for row in ROWS])
    for name, box in boxes.items():
        assert axes.bbox.containsx(box.x0)
        assert axes.bbox.containsx(box.x1)
        assert np.linalg.norm(places - places.clip(box.min, box.max), axis=1).min() > 6, "clear of the areas of points"
        for line in axes.lines:
            path = line.get_transform().transform_path(line.get_path())
            assert not path.intersects_bbox(box, filled=False), name
        own = axes.transData.transform(labels[name].xy)
        assert np.linalg.norm(own - own.clip(box.min, box.max)) < 110, "near its point"
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.bbox), "no stitch lies under the legend"


def test_ledgers_share_one_line_in_the_legend(tmp_path, drawn):
    plot({"before": ROWS, "after": ROWS[30:]}, tmp_path / "both.svg")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["before", "after", "Pareto front"]
    assert len(drawn[0].axes[0].lines) == 2
