"""The report of a sweep: its table, and what its pictures show."""

from itertools import pairwise
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import yaml

from stitchkit.assembly.sweep.launch import write_folders
from stitchkit.assembly.sweep.plan import PlannedJob
from stitchkit.assembly.sweep.report.tables import collect, sweep_report
from stitchkit.cli import main
from stitchkit.errors import InputError
from tests.distributed.forks import hold_lock
from tests.jobs import job_config
from tests.results import about, write_result
from tests.support import mostly_full


def write_swept(folder):
    """Two gaps, two adapters, one of them with two seeds, one combination missing, and the uncut networks."""
    write_result(folder, "one", about(1, 1, "linear_no_downsample"), [0.2, 0.5], seed=1)
    write_result(folder, "one", about(1, 1, "linear_no_downsample"), [0.3, 0.7], seed=2)
    write_result(folder, "two", about(1, 2, "linear_no_downsample"), [0.1, 0.4])
    write_result(folder, "three", about(1, 1, "finetune", 10_000), [0.6, 0.8])
    write_result(folder, "uncut", {"arch": "a-b", "uncut": "source"}, [0.9], epochs=[0])
    write_result(folder, "uncut too", {"arch": "a-b", "uncut": "destination"}, [0.95], epochs=[0])
    return folder


@pytest.fixture
def swept(tmp_path):
    return write_swept(tmp_path)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in their order; they are laid out, and not painted, which takes longest."""
    seen = []

    def keep(figure, path, **options):
        seen.append(figure)
        figure.draw_without_rendering()
        Path(path).touch()

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return seen


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The files of a report and their figures."""
    seen, save = [], matplotlib.figure.Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            matplotlib.figure.Figure,
            "savefig",
            lambda figure, *to, **how: seen.append(figure) or save(figure, *to, **how),
        )
        return sweep_report(write_swept(tmp_path_factory.mktemp("swept"))), seen


def test_all_results_become_one_tidy_table(swept):
    table = collect(swept)
    assert len(table) == 4 * 2 + 2
    assert table.loc[(table["job"] == "one") & (table["seed"] == 2), "test_accuracy"].tolist() == [30, 70]
    assert set(table["gap"]) == {"1,1", "1,2", ""}
    assert "num_classes" not in table


@pytest.mark.usefixtures("figures")
def test_two_processes_do_not_write_a_report_at_once(swept):
    """Two sweeps may share a folder, and end together."""
    with hold_lock(swept / ".report.lock"), pytest.raises(InputError, match=f"another run writes to '{swept}'"):
        sweep_report(swept)
    assert not (swept / "results.csv").exists()
    sweep_report(swept)
    assert not (swept / ".report.lock").exists()


def test_the_files_of_a_report(report, figures):
    files, _ = report
    assert [file.name for file in files] == [
        "results.csv", "results.parquet", "summary.csv", "a-b-heatmap.png", "a-b-parameters.png", "a-b-curves.png"
    ]  # fmt: skip
    assert len(pd.read_csv(files[0])) == len(pd.read_parquet(files[1])) == 10
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[3:])
    assert sweep_report(files[0].parent) == files  # its own files are not results
    assert len(figures) == 3


def test_a_finished_job_without_its_figures_is_in_the_table_but_not_in_pictures(swept, figures):
    """Somebody removed them to save space; the sweep ends with a report all the same."""
    (swept / "two/result-1.csv").unlink()
    files = sweep_report(swept)
    table = pd.read_csv(files[0])
    assert table.loc[table["job"] == "two", ["state", "epoch"]].isna().to_numpy().tolist() == [[False, True]]
    assert pd.read_csv(files[2], index_col="job").index.tolist() == ["one", "three", "uncut", "uncut too"]
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["1"]


def test_a_sweep_whose_figures_are_all_gone_has_no_pictures(swept):
    for file in swept.glob("*/result-*.csv"):
        file.unlink()
    assert [file.name for file in sweep_report(swept)] == ["results.csv", "results.parquet", "summary.csv"]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_heat_map_shows_last_epochs_and_the_uncut_networks(report):
    heat_map = report[1][0]
    assert texts(heat_map) == ["80.0", "–", "60.0\n± 14.1", "40.0"]  # of two seeds mean and spread
    axes, bar = heat_map.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "no adapter, all slices trained",
        "linear, no down-sampling",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "1–2"]
    [above] = axes.child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["0", "1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("gap (slices left out)", "adapter")
    assert above.get_xlabel() == "down-samplings in the gap,\nas configured"
    assert [line.get_ydata()[0] for line in bar.lines] == [90, 95]
    assert heat_map.get_suptitle() == (
        "a-b\nmean ± standard deviation of up to 2 seeds\n"
        "red lines on the colour bar: the whole networks,\nuncut source 90.0 %, uncut destination 95.0 %"
    )


def titles(figures):
    return figures[0].get_suptitle(), figures[1].axes[0].get_title("left"), figures[2].get_suptitle()


def test_titles_say_what_the_spread_is(report):
    assert all("a-b\nmean ± standard deviation of up to 2 seeds" in title for title in titles(report[1]))


def ends(bars):
    """Where the bar of a point's spread ends; nothing without a spread."""
    return [float(end) for line in bars[2] for part in line.get_segments() if len(part) for end in part[:, 1]]


def test_accuracy_over_trained_parameters(report):
    [axes] = report[1][1].axes
    points = {bars[0].get_xydata().tolist()[0][1]: bars for bars in axes.containers}
    assert points.keys() == {40, 60, 80}
    assert points[80][0].get_xdata() == pytest.approx([10_000])
    assert ends(points[60]) == pytest.approx([60 - 14.142, 60 + 14.142], abs=1e-3)
    assert ends(points[40]) == []
    assert axes.get_xscale() == "log"


def test_every_count_of_down_samplings_has_a_marker(tmp_path, figures):
    for count in range(8):
        write_result(tmp_path, str(count), about(1, 1 + count, "finetune"), [0.5])
    sweep_report(tmp_path)
    assert len(figures[1].axes[0].containers) == 8


def test_learning_curves_have_a_panel_for_each_gap(report):
    panels = [axes for axes in report[1][2].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["gap 1", "gap 1–2"]
    assert [list(line.get_ydata()) for line in panels[0].lines] == [[90, 90], [95, 95], [60, 80], [25, 60]]


def test_a_band_shows_the_spread_of_the_seeds(report):
    curves = report[1][2].axes[0]
    [band] = [band for band in curves.collections if np.isfinite(band.get_datalim(band.axes.transData).y0)]
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((25 - 7.071, 60 + 14.142), abs=1e-3)


def test_the_summary_has_mean_and_spread_of_the_seeds(report):
    summary = pd.read_csv(report[0][2], index_col="job")
    assert summary.loc["one", ["num_seeds", "test_accuracy", "test_accuracy_std"]].tolist() == pytest.approx(
        [2, 60, 14.142], abs=1e-3
    )
    assert np.isnan(summary.loc["two", "test_accuracy_std"])
    assert summary.index.tolist() == ["one", "three", "two", "uncut", "uncut too"]


def middles(axes):
    """The place of each point in pixels."""
    points = [bars[0].get_xydata()[0] for bars in axes.containers]
    return axes.transData.transform(points)


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_equal_jobs_are_both_seen(tmp_path, figures, num_epochs):
    for name in ("downsample_then_3x3conv", "conv3x3_with_downsample"):
        write_result(tmp_path, name, about(1, 1, name), [0.4, 0.5][:num_epochs])
    sweep_report(tmp_path)
    _, parameters, curves = figures
    one, other = middles(parameters.axes[0])
    assert 10 < abs(one - other).max() < 20
    if num_epochs == 1:
        one, other = middles(curves.axes[0])
        assert 10 < abs(one - other).max() < 20
    else:
        dashes = [line._dash_pattern for line in curves.axes[0].lines]
        assert dashes[0] != dashes[1]
        assert all(lengths[0] == lengths[1] for _, lengths in dashes), "each leaves room for the other"


@pytest.mark.parametrize(
    "accuracies", mostly_full([[0.5, 0.507, 0.514], [0.5, 0.514, 0.507]], quick=[[0.5, 0.514, 0.507]])
)
def test_curves_coincide_in_any_order(tmp_path, figures, accuracies):
    """The first and the last touch only the one between them."""
    names = ("linear_no_downsample", "downsample_then_linear", "downsample_then_3x3conv")
    for name, accuracy in zip(names, accuracies, strict=True):
        write_result(tmp_path, name, about(1, 1, name), [0.4, accuracy])
    sweep_report(tmp_path)
    dashes = [line._dash_pattern for line in figures[2].axes[0].lines]
    assert all(lengths is not None and lengths[1] == 2 * lengths[0] for _, lengths in dashes)


def test_a_sweep_without_gaps_has_learning_curves(tmp_path, figures):
    """A line for each job, with a band for its seeds; a job of one epoch is a point."""
    for seed, last in ((1, 0.5), (2, 0.9)):
        write_result(tmp_path, "digits", {"arch": "sets", "dataset": "digits"}, [0.2, last], seed=seed)
    write_result(tmp_path, "mine", {"arch": "sets", "dataset": "mine"}, [0.4], epochs=[0])
    assert [file.name for file in sweep_report(tmp_path)][3:] == ["sets-curves.png"]
    [figure] = figures
    [axes] = figure.axes
    lines = {len(line.get_xdata()): line.get_ydata().tolist() for line in axes.get_lines()}
    assert lines[2] == pytest.approx([20, 70])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["digits", "mine"]
    assert "mean ± standard deviation of up to 2 seeds" in figure.get_suptitle()


def test_each_figure_of_merit_has_learning_curves(tmp_path, figures):
    write_result(tmp_path, "classes", {"arch": "sets", "dataset": "digits"}, [0.2, 0.5])
    write_result(tmp_path, "masks", {"arch": "sets", "dataset": "scenes"}, [0.1, 0.3], figure="mIoU")
    names = [file.name for file in sweep_report(tmp_path)][3:]
    assert names == ["sets-curves.png", "sets-curves-miou.png"]
    drawn = {figure.get_supylabel(): figure.axes[0].get_lines() for figure in figures}
    heights = {label: line.get_ydata().tolist() for label, [line] in drawn.items()}
    assert heights == {"test accuracy (%)": [20, 50], "test mIoU (%)": [10, 30]}


def test_pictures_in_a_vector_format(swept):
    assert main(["sweep", "--report", str(swept), "--format", "svg"]) == 0
    assert ">gap (slices left out)</text>" in (swept / "a-b-heatmap.svg").read_text()
    assert not list(swept.glob("*.png"))


def test_labels_do_not_overlap(report):
    for figure in report[1]:
        figure.draw_without_rendering()
        for axes in figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
                assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_jobs_that_are_not_done_are_counted_and_not_drawn(tmp_path, figures, caplog):
    """Their last epoch is not that of the others."""
    caplog.set_level("INFO")
    write_result(tmp_path, "done", about(1, 1, "finetune"), [0.2, 0.5])
    write_result(tmp_path, "both", about(1, 1, "linear_no_downsample"), [0.6, 0.8], seed=1)
    for name, job in (("both", about(1, 1, "linear_no_downsample")), ("half", about(1, 2, "finetune"))):
        write_result(tmp_path, name, job, [0.1], seed=2)
        (tmp_path / name / "result-2.pkl").unlink()
    (tmp_path / "half/result-2.failed").write_text("out of luck\n")
    (tmp_path / "both/result-2").mkdir()
    (tmp_path / "idle/result-2").mkdir(parents=True)
    (tmp_path / "idle/metadata.yml").write_text(yaml.safe_dump(about(1, 2, "linear_no_downsample")))
    with hold_lock(tmp_path / "both/result-2/.train.lock") as running:
        table = pd.read_csv(sweep_report(tmp_path)[0])
        running.kill()
    assert "a-b: 5 jobs: 2 done, 1 running, 1 failed, 1 waiting" in caplog.text
    states = table.groupby(["job", "seed"])["state"].first().to_dict()
    assert states == {
        ("done", 1): "done", ("both", 1): "done", ("both", 2): "running", ("half", 2): "failed", ("idle", 2): "waiting"
    }  # fmt: skip
    [idle] = table[table["job"] == "idle"].to_dict("records")
    assert (idle["gap"], pd.isna(idle["epoch"]), pd.isna(idle["test_accuracy"])) == ("1,2", True, True)
    assert texts(figures[0]) == ["50.0", "80.0"]
    summary = pd.read_csv(tmp_path / "summary.csv", index_col="job")
    assert summary["num_seeds"].to_dict() == {"both": 1, "done": 1}
    title = "a-b\n5 jobs: 2 done, 1 running, 1 failed, 1 waiting"
    assert titles(figures) == (title,) * 3


@pytest.mark.usefixtures("figures")
def test_seeds_that_have_not_begun_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    job = job_config("digits")
    write_folders([PlannedJob("one", about(1, 1, "finetune"), job)], tmp_path, [1, 2])
    [table, *_] = sweep_report(tmp_path)
    assert "a-b: 2 jobs: 0 done, 0 running, 0 failed, 2 waiting" in caplog.text
    assert pd.read_csv(table)["seed"].tolist() == [1, 2]
    write_result(tmp_path, "one", about(1, 1, "finetune"), [0.5], seed=2)
    sweep_report(tmp_path)
    assert "a-b: 2 jobs: 1 done, 0 running, 0 failed, 1 waiting" in caplog.text


def test_a_sweep_without_its_uncut_networks(tmp_path, figures):
    write_result(tmp_path, "one", about(1, 1, "linear_no_downsample"), [0.2, 0.5])
    sweep_report(tmp_path)
    assert figures[0].get_suptitle() == "a-b"


def test_a_single_gap_and_adapter_have_a_cell_with_a_size(tmp_path, figures):
    write_result(tmp_path, "one", about(1, 1, "linear_no_downsample"), [0.2, 0.5])
    sweep_report(tmp_path)
    [mesh] = figures[0].axes[0].collections
    assert mesh.get_coordinates()[0, 0].tolist() == [-0.5, -0.5]
    assert mesh.get_coordinates()[-1, -1].tolist() == [0.5, 0.5]


@pytest.mark.usefixtures("figures")
def test_a_sweep_is_drawn_once_a_stitched_job_has_a_result(tmp_path):
    write_result(tmp_path, "uncut", {"arch": "a-b", "uncut": "source"}, [0.9], epochs=[0])
    assert [file.name for file in sweep_report(tmp_path)] == ["results.csv", "results.parquet", "summary.csv"]
    write_result(tmp_path, "other", about(1, 1, "finetune") | {"arch": "c-d"}, [0.5])
    assert {file.name[:3] for file in sweep_report(tmp_path)[3:]} == {"c-d"}


def test_jobs_that_belong_to_no_sweep_are_skipped(swept):
    before = len(collect(swept))
    write_result(swept, "plain job", {"num_params": 5}, [0.9])
    assert len(collect(swept)) == before
    plain = swept / "other"
    write_result(plain, "plain job", {"num_params": 5}, [0.9])
    with pytest.raises(InputError, match="contains no jobs of a sweep"):
        sweep_report(plain)


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="contains no jobs of a sweep"):
        collect(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        collect(tmp_path / "nowhere")


@pytest.mark.usefixtures("figures")
def test_a_report_says_that_images_changed_between_jobs(tmp_path, caplog):
    for number, digests in enumerate(("pets 1a, cars 2b", "cars 2b", "pets 1a, cars 3c")):
        write_result(tmp_path, f"job{number}", {"arch": "a", "images_sha256": digests}, [0.5])
    sweep_report(tmp_path)
    assert "the test images of 'cars' changed between the jobs 'job0' and 'job2'" in caplog.text
    assert "images_sha256" not in (tmp_path / "results.csv").read_text()
