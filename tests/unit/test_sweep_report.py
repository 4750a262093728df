"""The report of a sweep: its table, and what its pictures show."""

from itertools import pairwise

import matplotlib.figure
import pandas as pd
import pytest

from stitchkit.assembly.sweep.report import collect, sweep_report
from stitchkit.errors import InputError
from tests.results import about, write_result


@pytest.fixture
def swept(tmp_path):
    """Two gaps, two adapters, one of them with two seeds, one combination missing, and the uncut networks."""
    write_result(tmp_path, "one", about(1, 1, "linear_no_downsample"), [0.2, 0.5], seed=1)
    write_result(tmp_path, "one", about(1, 1, "linear_no_downsample"), [0.3, 0.7], seed=2)
    write_result(tmp_path, "two", about(1, 2, "linear_no_downsample"), [0.1, 0.4])
    write_result(tmp_path, "three", about(1, 1, "finetune", 10_000), [0.6, 0.8])
    write_result(tmp_path, "uncut", {"arch": "a-b", "uncut": "source"}, [0.9], epochs=[0])
    write_result(tmp_path, "uncut too", {"arch": "a-b", "uncut": "destination"}, [0.95], epochs=[0])
    return tmp_path


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in their order."""
    seen = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, path, **options):
        seen.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return seen


def test_all_results_become_one_tidy_table(swept):
    table = collect(swept)
    assert len(table) == 4 * 2 + 2
    assert table.loc[(table["job"] == "one") & (table["seed"] == 2), "test_accuracy"].tolist() == [30, 70]
    assert set(table["gap"]) == {"1,1", "1,2", ""}
    assert "num_classes" not in table


def test_the_files_of_a_report(swept):
    files = sweep_report(swept)
    assert [file.name for file in files] == [
        "results.csv", "results.parquet", "a-b-heatmap.png", "a-b-parameters.png", "a-b-curves.png"
    ]  # fmt: skip
    assert len(pd.read_csv(files[0])) == len(pd.read_parquet(files[1])) == 10
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[2:])
    assert sweep_report(swept) == files  # its own files are not results


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_heat_map_shows_last_epochs_and_the_uncut_networks(swept, figures):
    sweep_report(swept)
    heat_map = figures[0]
    assert texts(heat_map) == ["80.0", "–", "60.0", "40.0"]  # of two seeds the mean
    axes, bar = heat_map.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["finetune", "linear no downsample"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n↓0", "1–2\n↓1"]
    assert [line.get_ydata()[0] for line in bar.lines] == [90, 95]
    assert "uncut source 90.0 %, uncut destination 95.0 %" in heat_map.get_suptitle()


def test_accuracy_over_trained_parameters(swept, figures):
    sweep_report(swept)
    [axes] = figures[1].axes
    points = sorted(tuple(point) for group in axes.collections for point in group.get_offsets().tolist())
    assert points == [(100, 40), (100, 60), (10_000, 80)]
    assert axes.get_xscale() == "log"


def test_every_count_of_down_samplings_has_a_marker(tmp_path, figures):
    for count in range(8):
        write_result(tmp_path, str(count), about(1, 1 + count, "finetune"), [0.5])
    sweep_report(tmp_path)
    assert sum(len(group.get_offsets()) for group in figures[1].axes[0].collections) == 8


def test_learning_curves_have_a_panel_for_each_gap(swept, figures):
    sweep_report(swept)
    panels = [axes for axes in figures[2].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["gap 1–1", "gap 1–2"]
    curves = {line.get_label(): list(line.get_ydata()) for line in panels[0].lines if "uncut" not in line.get_label()}
    assert curves["linear no downsample"] == [25, 60]
    assert curves["finetune"] == [60, 80]


def test_labels_do_not_overlap(swept, figures):
    sweep_report(swept)
    for figure in figures:
        figure.draw_without_rendering()
        for axes in figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
                assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_a_sweep_without_its_uncut_networks(tmp_path, figures):
    write_result(tmp_path, "one", about(1, 1, "linear_no_downsample"), [0.2, 0.5])
    sweep_report(tmp_path)
    assert figures[0].get_suptitle() == "a-b"


def test_a_sweep_is_drawn_once_a_stitched_job_has_a_result(tmp_path):
    write_result(tmp_path, "uncut", {"arch": "a-b", "uncut": "source"}, [0.9], epochs=[0])
    assert [file.name for file in sweep_report(tmp_path)] == ["results.csv", "results.parquet"]
    write_result(tmp_path, "other", about(1, 1, "finetune") | {"arch": "c-d"}, [0.5])
    assert {file.name[:3] for file in sweep_report(tmp_path)[2:]} == {"c-d"}


def test_jobs_that_belong_to_no_sweep_are_skipped(swept):
    before = len(collect(swept))
    write_result(swept, "plain job", {"num_params": 5}, [0.9])
    assert len(collect(swept)) == before
    plain = swept / "other"
    write_result(plain, "plain job", {"num_params": 5}, [0.9])
    with pytest.raises(InputError, match="contains no results of a sweep"):
        sweep_report(plain)


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="contains no results of a sweep"):
        collect(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        collect(tmp_path / "nowhere")
