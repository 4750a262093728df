"""The ledger: resumable, checked; and the Pareto front."""

import json

import pytest

from stitchkit.cli import main
from stitchkit.display import counted, quantity
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Ledger, read_rows, write_rows
from stitchkit.measure.pareto import pareto_front, plot, table
from stitchkit.measure.profile import Cost, Profiler
from tests.commands import refused
from tests.support import pico_snnet

FIGURES = {"acc1": 50.0, "acc5": 100.0, "loss": 1.0, "images": 20}


@pytest.fixture(scope="module")
def model():
    return pico_snnet()


def open_ledger(path, model):
    return Ledger(path, model.space, Profiler(model).cost)


def test_rows_hold_what_was_measured_in_the_named_order(tmp_path, model):
    ledger = open_ledger(tmp_path / "r.txt", model)
    ledger.append(0, FIGURES)
    (row,) = read_rows(tmp_path / "r.txt")
    assert list(row) == ["cfg_id", "stitch", "flops", "params", "activations", "acc1", "acc5", "loss", "images"]
    assert row["stitch"] == "ti[0:3]"


def test_a_rerun_resumes_where_it_stopped(tmp_path, model):
    path = tmp_path / "r.txt"
    first = open_ledger(path, model)
    for cfg_id in (0, 1, 4):
        first.append(cfg_id, FIGURES)
    second = open_ledger(path, model)
    assert second.missing == [i for i in model.space.ids if i not in (0, 1, 4)]


def test_a_last_line_without_its_end_is_kept(tmp_path, model):
    path = tmp_path / "r.txt"
    open_ledger(path, model).append(0, FIGURES)
    path.write_text(path.read_text().rstrip("\n"))
    open_ledger(path, model).append(1, FIGURES)
    assert [row["cfg_id"] for row in read_rows(path)] == [0, 1]


def test_a_row_is_appended_to_what_others_wrote(tmp_path, model):
    path = tmp_path / "r.txt"
    ledger = open_ledger(path, model)
    ledger.append(0, FIGURES)
    theirs = path.read_text().replace(", ", ",") + json.dumps({"cfg_id": 5}) + "\n"
    path.write_text(theirs)
    ledger.append(1, FIGURES)
    assert path.read_text().startswith(theirs)
    assert [row["cfg_id"] for row in read_rows(path)] == [0, 5, 1]


def test_an_unfinished_last_line_is_dropped(tmp_path, model, caplog):
    path = tmp_path / "r.txt"
    open_ledger(path, model).append(0, FIGURES)
    with path.open("a") as file:
        file.write('{"cfg_id": 1, "sti')
    ledger = open_ledger(path, model)
    assert 1 in ledger.missing
    assert caplog.messages == [f"the last line of '{path}' is dropped: an interrupted program left it unfinished"]
    ledger.append(1, FIGURES)
    assert [row["cfg_id"] for row in read_rows(path)] == [0, 1]
    path.write_bytes(path.read_bytes() + b"\0\0\xff")  # as after a power cut
    assert [row["cfg_id"] for row in read_rows(path)] == [0, 1]
    path.write_text(path.read_text(errors="replace").splitlines()[0])
    assert [row["cfg_id"] for row in read_rows(path)] == [0], "a published ledger may lack the last line end"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"flops": 7}, "flops 7"), ({"stitch": "x[0:3]"}, "stitch x"), ({"cfg_id": 99}, "cfg_id 99")],
)
def test_a_file_from_another_configuration_is_refused_and_kept(change, message, tmp_path, model):
    path = tmp_path / "r.txt"
    ledger = open_ledger(path, model)
    ledger.append(0, FIGURES)
    path.write_text(json.dumps(ledger.rows[0] | change) + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        open_ledger(path, model)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        *(("nonsense", "is not JSON"), ("[]", "has no 'cfg_id'"), ('{"flops": 1}', "has no 'cfg_id'")),
        *(('{"cfg_id": "1"}', "has no 'cfg_id'"), ('{"cfg_id": true}', "has no 'cfg_id'")),
        ('{"cfg_id": 1, "acc1": null}', "acc1 None, not a number"),
        ('{"cfg_id": 1, "flops": true}', "flops True, not a number"),
        ('{"cfg_id": 1, "latency_reliable": 1}', "latency_reliable 1, not true or false"),
        ('{"cfg_id": 1, "stitch": 1}', "stitch 1, not text"),
        (
            '{"cfg_id": 1, "part": true}',
            "part true: --eval-images of an earlier version measured it on a part of the images",
        ),
        ('{"cfg_id": 1, "params": -4}', "params -4, a negative number"),
        ('{"cfg_id": 1, "acc1": 1, "acc1": 2}', "duplicate key 'acc1'"),
        ('{"cfg_id": 1, "params": %s}' % (5000 * "9"), "Exceeds the limit"),
    ],
)
def test_what_is_not_a_ledger_is_named(line, fault, tmp_path):
    path = tmp_path / "r.txt"
    path.write_text(line + "\n")
    with pytest.raises(
        InputError, match=f"line 1:? .*{fault}.*; (.* or )?remove the line and evaluate the stitch again$"
    ):
        read_rows(path)


@pytest.mark.parametrize("line", ['{"cfg_id": 1, "acc1": NaN}', '{"cfg_id": 1, "flops": Infinity}', '{"cfg_id": 0}'])
def test_rows_that_would_win_unfairly_are_named(line, tmp_path):
    path = tmp_path / "r.txt"
    path.write_text(f'{{"cfg_id": 0, "loss": NaN}}\n{line}\n')
    with pytest.raises(InputError, match=r"(line 2 has (acc1 nan|flops inf)|line 2: duplicate cfg_id 0 .line 1.)"):
        read_rows(path)


def test_a_missing_ledger_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing.txt' does not exist; check the path$"):
        read_rows(tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"is a folder; give the stitches_res\.txt in it"):
        read_rows(tmp_path)
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"picture\.txt', line 1 is not JSON"):
        read_rows(tmp_path / "picture.txt")


def test_writing_replaces_at_once(tmp_path):
    path = tmp_path / "new" / "r.txt"
    write_rows(path, [{"cfg_id": 0}])
    write_rows(path, [{"cfg_id": 1}])
    assert read_rows(path) == [{"cfg_id": 1}]
    assert list(path.parent.iterdir()) == [path]


ROWS = [
    {"cfg_id": 0, "stitch": "a[0:3]", "flops": 10, "params": 5, "acc1": 50.0},
    {"cfg_id": 1, "stitch": "b[0:3]", "flops": 40, "params": 9, "acc1": 80.0},
    {"cfg_id": 2, "stitch": "a[0:1] > b[1:3]", "flops": 30, "params": 7, "acc1": 70.0},
    {"cfg_id": 3, "stitch": "a[0:2] > b[2:3]", "flops": 35, "params": 7, "acc1": 60.0},
    {"cfg_id": 4, "stitch": "a[0:1] > b[2:3]", "flops": 30, "params": 7, "acc1": 65.0},
]


def test_the_front_is_what_no_row_beats():
    assert [row["cfg_id"] for row in pareto_front(ROWS)] == [0, 2, 1]


def test_a_front_over_another_cost(tmp_path, capsys):
    rows = [row | {"latency_ms": ms} for row, ms in zip(ROWS, (3.0, 2.0, 4.0, 1.0, 5.0), strict=True)]
    write_rows(tmp_path / "r.txt", rows)
    for cost, front in {"flops": [0, 2, 1], "params": [0, 2, 1], "latency": [3, 1]}.items():
        assert main(["pareto", str(tmp_path / "r.txt"), "--cost", cost, "--plot", str(tmp_path / "p.svg")]) == 0
        lines = capsys.readouterr().out.splitlines()[1 : 1 + len(front)]
        assert [int(line.removeprefix("*").split()[0]) for line in lines] == front
    for name in ("p.txt", "p.gif", "p"):
        assert "choose .png, .svg or .pdf" in refused(capsys, "pareto", tmp_path / "r.txt", "--plot", tmp_path / name)
    write_rows(tmp_path / "r.txt", [{key: value for key, value in row.items() if key != "flops"} for row in rows])
    assert main(["pareto", str(tmp_path / "r.txt"), "--cost", "params"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["a[0:3]", "-"], "the stitch and its FLOPs"
    write_rows(tmp_path / "r.txt", [row | {"latency_reliable": False} for row in rows])
    assert "are unreliable" in refused(capsys, "pareto", tmp_path / "r.txt", "--cost", "latency")
    assert main(["pareto", str(tmp_path / "r.txt"), "--cost", "latency", "--allow-unreliable"]) == 0
    write_rows(tmp_path / "r.txt", [{"cfg_id": 0, "flops": 1, "acc1": 5.0}])
    line = refused(capsys, "pareto", tmp_path / "r.txt", "--cost", "latency")
    assert "has no 'latency_ms'; an evaluation with --latency adds it" in line


def test_the_front_of_equal_rows_is_the_first():
    assert [row["cfg_id"] for row in pareto_front([ROWS[0], ROWS[0] | {"cfg_id": 9}])] == [0]


def test_the_table_marks_anchors_and_leaves_unmeasured_figures_out():
    lines = table([*ROWS, {**ROWS[0], "cfg_id": 9, "loss": 0.5}]).splitlines()
    assert "latency_ms" not in lines[0], "a figure that no row has is no column"
    assert lines[1].startswith("*")
    assert not lines[3].startswith("*")
    assert lines[1].split()[-1] == "-"
    balanced = table([ROWS[0] | {"balanced_acc1": 61.25}]).splitlines()
    assert balanced[0].split()[-2:] == ["acc1", "balanced_acc1"]
    assert balanced[1].split()[-1] == "61.25"
    assert "network" in table([ROWS[0] | {"score": 1.0}]).splitlines()[0]


@pytest.mark.parametrize(("rows", "message"), [([], "no rows"), ([{"cfg_id": 3, "flops": 1}], "no 'acc1'")])
def test_a_ledger_without_figures_has_no_front(rows, message):
    with pytest.raises(InputError, match=message):
        pareto_front(rows)


def test_the_plot_is_a_picture(tmp_path):
    plot(ROWS, tmp_path / "p.png", title="five")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="cannot be written"):
        plot(ROWS, tmp_path / "p.nonsense")


def test_published_rows_without_names_can_be_drawn(tmp_path):
    plot([{"cfg_id": 0, "flops": 1, "acc1": 2.0}], tmp_path / "p.svg")
    assert "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize(
    ("things", "text"), [((1, "stitch"), "1 stitch"), ((2, "class"), "2 classes"), ((1300, "stitch"), "1,300 stitches")]
)
def test_things_are_counted(things, text):
    assert counted(*things) == text
    assert counted(0, "epoch") == "0 epochs"


@pytest.mark.parametrize(
    ("value", "text"), [(2e12, "2T"), (4608338304, "4.61G"), (5717416, "5.72M"), (1500, "1.5k"), (12, "12")]
)
def test_quantities_have_units(value, text):
    assert quantity(value) == text


def test_costs_add_up():
    assert Cost(1, 2, 3) + Cost(3, 4, 5) == Cost(4, 6, 8)
