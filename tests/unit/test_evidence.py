"""The study at pico size: every row runs, spends its budget, and is judged as its page says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stitchkit.errors import InputError
from studies.evidence.__main__ import main
from studies.evidence.curve import by_typeface, lines
from studies.evidence.entrants import cascade, plain
from studies.evidence.images import Split, TrainingBatches, normalised
from studies.evidence.networks import SlicedNetwork, create_network, narrowed
from studies.evidence.record import budgets, chosen, judge
from studies.evidence.rows import ROWS, run_row
from studies.evidence.run import read_study, run_study
from studies.evidence.size import Size
from studies.evidence.study import Study
from studies.evidence.table import table
from studies.evidence.train import flop_counter, steps_within

PICO = Size(
    widths=(8, 12, 16), depths=(1, 2, 2, 1), side=32, images={"train": 4, "validation": 1, "test": 2}, pretraining=1,
    budget=4e8, batch_size=16, lr=1e-3, lr_scratch=3e-3, rank=4,
)  # fmt: skip
CPU = torch.device("cpu")


def _split(per_class: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(62).repeat_interleave(per_class)
    images = torch.randint(256, (len(labels), 1, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, labels, torch.randint(3, (len(labels),), generator=generator))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    splits = {name: _split(count, seed) for seed, (name, count) in enumerate(PICO.images.items())}
    study = Study(PICO, splits, tmp_path_factory.mktemp("cache"), CPU)
    study.pretrain()
    return study


def _weights(study: Study, number: int) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in study.anchor(number).state_dict().values()])


# The record of `anchors` and `cost_bins` is below; these train as another row does, with another sampler or a teacher.
LIKE_OTHERS = ("anchors", "cost_bins", "uniform", "best_of", "two_way_taught")


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in ROWS if name not in LIKE_OTHERS])
def test_a_row_spends_its_budget_and_offers_networks_between_the_anchors(study: Study, name: str) -> None:
    before = [_weights(study, number) for number in (0, 1)]
    entrants, spent = run_row(name, study, 0)
    # Less than a step of each training is left.
    assert 0.7 * PICO.budget < spent.flops <= 1.01 * PICO.budget
    rows, right = judge(entrants, range(len(entrants.names)), study.splits["validation"], CPU)
    cheap, costly = (row["flops"] for row in rows[:2])
    assert [row["name"] for row in rows[:2]] == ["cheap anchor, as given", "costly anchor, as given"]
    assert len(rows) > 2
    assert all(cheap <= row["flops"] <= 1.2 * (cheap + costly) for row in rows)
    assert [row["acc1"] for row in rows] == pytest.approx(100 * right.mean(1))
    assert all(torch.equal(was, _weights(study, number)) for number, was in enumerate(before)), (
        "all rows are given them"
    )


@pytest.mark.full
def test_a_seed_gives_the_same_row_again(study: Study) -> None:
    pair = [run_row("cost_bins", study, 1)[0] for _ in range(2)]
    answers = [judge(one, range(len(one.names)), study.splits["test"], CPU)[1] for one in pair]
    assert np.array_equal(*answers)


def test_steps_stop_before_the_budget_is_exceeded() -> None:
    costs = {0: 3.0, 1: 5.0}
    assert steps_within(20, lambda routes: costs[routes[0]], lambda step, _: (step % 2,)) == 5
    assert steps_within(1, lambda routes: costs[routes[0]], lambda *_: (1,)) == 1, "one step at least"


def test_a_training_step_costs_three_forward_passes() -> None:
    # The stem needs no gradient of its images, so that it costs less; grouped convolutions are counted as they are.
    network = create_network(PICO, 16)
    images = torch.randn(2, 1, 32, 32)
    with flop_counter() as forward:
        network(images)
    with flop_counter() as both:
        network(images).sum().backward()
    with FlopCounterMode(display=False) as torchs:
        network(images).sum().backward()
    assert 2.9 < both.get_total_flops() / forward.get_total_flops() < 3
    assert torchs.get_total_flops() > 1.5 * both.get_total_flops(), "torch has learnt to count them: drop our formula"


def test_a_narrower_network_is_the_slice_that_the_wide_one_runs() -> None:
    wide = create_network(PICO, 16).eval()
    sliced = SlicedNetwork(wide, PICO)
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for number, width in enumerate(PICO.widths):
            assert torch.allclose(sliced(images, number), narrowed(wide, PICO, width).eval()(images), atol=1e-5)
        assert torch.allclose(sliced(images, 2), wide(images), atol=1e-6)
    sliced(images, 0).sum().backward()
    gradient = wide.get_parameter("stages.2.blocks.0.mlp.fc1.weight").grad
    assert gradient is not None
    assert gradient[:64, :16].abs().sum() > 0
    assert not gradient[64:].any(), "the narrow network trains its own part only"


def test_a_cascade_asks_the_costly_network_where_the_cheap_one_is_unsure() -> None:
    small, large = (create_network(PICO, width).eval() for width in PICO.anchors)
    images = torch.randn(8, 1, 32, 32)
    with torch.no_grad():
        sure = small(images).softmax(1).amax(1)
        median = sure.median().item()
        answers = cascade(small, large, [0.0, median, 2.0], PICO).answer(images, [0, 1, 2])
        both = plain({"small": small, "large": large}, PICO).answer(images, [0, 1])
    assert torch.equal(answers.classes[0], both.classes[0])
    assert torch.equal(answers.classes[2], both.classes[1])
    assert torch.equal(answers.classes[1], both.classes.gather(0, (sure < median).long()[None])[0])
    cheap, costly = both.flops[:, 0].tolist()
    assert answers.flops.tolist() == [[cheap] * 8, (cheap + (sure < median) * costly).tolist(), [cheap + costly] * 8]


def test_images_are_their_contrast_to_the_ground() -> None:
    dark = torch.full((1, 1, 32, 32), 200, dtype=torch.uint8)
    dark[..., 10:20, 10:20] = 50
    light = 250 - dark
    assert torch.allclose(normalised(dark), normalised(light))
    assert normalised(dark).mean().abs() < 1e-5


def test_an_epoch_of_training_batches_passes_over_the_split_again_and_again() -> None:
    split = _split(1, 0)
    seen = torch.cat([labels for _, labels in TrainingBatches(split, 31, 4, CPU)])
    assert sorted(seen[:62].tolist()) == sorted(seen[62:].tolist()) == [*range(62)]


def test_each_budget_gets_the_best_within_it() -> None:
    rows = [
        {"cfg_id": number, "flops": flops, "acc1": acc1}
        for number, (flops, acc1) in enumerate([(10, 50.0), (100, 80.0), (40, 70.0), (30, 70.0), (60, 60.0)])
    ]
    assert chosen(rows, [10, 29, 30, 60, 99.9, 100]) == [0, 0, 3, 3, 3, 1]
    limits = budgets(10, 100)
    assert (len(limits), limits[0], limits[-1]) == (20, pytest.approx(10), pytest.approx(100))
    assert np.allclose(np.diff(np.log(limits)), np.log(10) / 19)


@pytest.fixture(scope="module")
def output(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of two rows, of two seeds."""
    output = tmp_path_factory.mktemp("evidence")
    run_study(replace(study, typefaces="whose"), output, rows=["anchors", "cost_bins"], seeds=[0])
    for path in output.glob("*/seed0.json"):  # a second seed, as if it had come to the same
        record = json.loads(path.read_text())
        (path.parent / "seed1.json").write_text(json.dumps(record | {"seed": 1}))
    return output


@pytest.mark.full
def test_a_record_holds_what_its_networks_answer(study: Study, output: Path) -> None:
    records = read_study(output)
    assert [(name, len(found)) for name, found in records.items()] == [("anchors", 2), ("cost_bins", 2)]
    record = records["cost_bins"][0]
    assert {row["cfg_id"] for row in record.tested} == {0, 1, *record.chosen(), *record.chosen("worst_flops")}, (
        "others have not seen the test images"
    )
    accuracies = {row["cfg_id"]: 100 * sum(row["right"]) / len(study.splits["test"]) for row in record.tested}
    found = by_typeface(record)
    counts = np.bincount(study.splits["test"].typefaces.numpy())
    assert found @ counts / counts.sum() == pytest.approx([accuracies[cfg_id] for cfg_id in record.chosen()])
    assert record.about["size"]["widths"] == [*PICO.widths]
    # Less than a step of each training is left.
    assert 0.7 * PICO.budget < record.spent.flops <= 1.01 * PICO.budget
    assert len(record.networks) > 2


@pytest.mark.full
def test_a_folder_says_of_which_typefaces_it_is(output: Path) -> None:
    assert (output / "typefaces.json").read_text() == "whose"


@pytest.mark.full
@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("networks", []),
        ("networks", [{"cfg_id": number, "flops": 1, "acc1": 2.0} for number in (0, 1)]),
        ("networks", "none"),
        ("tested", []),
        ("tested", [{"cfg_id": 0, "flops": 1, "right": ["many"]}]),
        ("test_images", [1]),
        ("spent", {"flops": "many"}),
        ("seed", None),
    ],
)
def test_a_damaged_record_is_named(key: str, content: object, output: Path, tmp_path: Path) -> None:
    record = json.loads((output / "cost_bins/seed0.json").read_text())
    (tmp_path / "cost_bins").mkdir()
    (tmp_path / "cost_bins/seed0.json").write_text(json.dumps({**record, key: content}))
    with pytest.raises(InputError, match=r"cost_bins/seed0\.json' cannot be read: .*; remove it to measure its row"):
        table(read_study(tmp_path))


@pytest.mark.full
def test_an_sn_net_may_be_taught_as_distilled_networks_are(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("studies.evidence.rows.train", lambda *_, **options: seen.append(options))
    for name in ("taught", "two_way_taught", "distilled", "cost_bins"):
        run_row(name, study, 0)
    taught = [options for options in seen if options.get("teacher") is not None]
    assert len(taught) == 2 + len(PICO.between), "all but the last row"
    kinds = {(one["settings"].distillation_type, one["settings"].distillation_tau) for one in taught}
    assert kinds == {("soft", 2.0)}


@pytest.mark.full
def test_the_worst_case_of_a_cascade_is_both_networks(study: Study) -> None:
    entrants, _ = run_row("cascade", study, 0)
    rows, _ = judge(entrants, range(len(entrants.names)), study.splits["validation"], CPU)
    cheap, costly = (row["flops"] for row in rows[:2])
    assert [row["worst_flops"] for row in rows[2:4]] == [cheap, costly], "each of the two can answer alone"
    assert {row["worst_flops"] for row in rows[4:]} <= {cheap, cheap + costly}
    assert rows[-1]["worst_flops"] == cheap + costly
    limits = budgets(cheap, costly)
    within = {row["cfg_id"] for row in rows if row["worst_flops"] <= costly}
    assert {*chosen(rows, limits, "worst_flops")} <= within


@pytest.mark.full
def test_finished_rows_are_not_run_again(study: Study, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr("studies.evidence.run.run_row", None)
    run_study(study, output, rows=["anchors", "cost_bins"], seeds=[0, 1])
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.full
def test_records_of_another_size_or_of_other_images_are_refused(study: Study, output: Path) -> None:
    with pytest.raises(InputError, match="another size or with other images"):
        run_study(replace(study, size=replace(PICO, budget=1e9)), output, rows=["anchors"], seeds=[0])
    splits = {**study.splits, "test": _split(2, 9)}
    with pytest.raises(InputError, match="another size or with other images"):
        run_study(replace(study, splits=splits), output, rows=["anchors"], seeds=[0])


@pytest.mark.full
def test_rows_of_other_anchors_are_not_added(study: Study, output: Path, tmp_path: Path) -> None:
    moved = replace(study, cache=tmp_path)
    run_study(moved, output, rows=["anchors"], seeds=[0, 1])  # nothing is left to run
    with pytest.raises(InputError, match="has records, but the weights of the anchors that their rows were given are"):
        run_study(moved, output, rows=["anchors"], seeds=[0, 1, 2])


@pytest.mark.full
def test_every_record_of_a_folder_must_be_of_these_images(study: Study, output: Path) -> None:
    splits = {**study.splits, "test": _split(2, seed=9)}
    with pytest.raises(InputError, match="at another size or with other images"):
        run_study(replace(study, splits=splits), output, rows=["uniform"], seeds=[7])


def test_weights_of_another_size_are_not_taken_for_these(study: Study) -> None:
    with pytest.raises(InputError, match="another size or on other images"):
        replace(study, size=replace(PICO, pretraining=2)).pretrain()


@pytest.mark.full
def test_lines_agree_with_the_records(output: Path) -> None:
    records = read_study(output)
    found = lines(records, "cost_bins")
    line = found["anchors"]
    accuracies = []
    for record in records["anchors"]:
        alone = {row["cfg_id"]: 100 * sum(row["right"]) / sum(record.test_images) for row in record.tested}
        accuracies.append(np.mean([alone[cfg_id] for cfg_id in record.chosen()]))
    assert line.seeds == pytest.approx(accuracies)
    assert line.accuracy == pytest.approx(np.mean(accuracies))
    assert line.interval[0] <= line.accuracy <= line.interval[1]
    assert found["cost_bins"].difference == (0, 0, 0)
    assert line.difference[0] == pytest.approx(line.accuracy - found["cost_bins"].accuracy)
    assert min(one.regret[0] for one in found.values()) >= 0
    assert all(one.regret[1] >= one.regret[0] for one in found.values())


@pytest.mark.full
def test_the_table_marks_what_is_not_measured(output: Path, tmp_path: Path) -> None:
    text = table(read_study(output))
    assert not [line for line in text.splitlines() if line.startswith("| `sandwich`")]
    assert "Not measured: `distilled`, " in text
    assert " `best_of`, `sandwich`." in text
    assert f"{lines(read_study(output), 'cost_bins')['anchors'].accuracy:.2f}" in text
    with pytest.raises(InputError, match="has no records of the study; measure some rows first, or check -o"):
        table(read_study(tmp_path))


@pytest.mark.full
def test_a_table_without_the_reference_compares_nothing(output: Path) -> None:
    text = table({"anchors": read_study(output)["anchors"]})
    (row,) = [line for line in text.splitlines() if line.startswith("| `anchors`")]
    assert "+" not in row


@pytest.mark.full
def test_a_table_has_the_seeds_of_all_rows(output: Path) -> None:
    records = read_study(output)
    assert "seeds 0, 1." in table(records)
    assert "seeds 1." in table({**records, "anchors": records["anchors"][1:]})


@pytest.mark.full
def test_records_of_two_studies_are_not_one(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "anchors", tmp_path / "anchors")
    about = tmp_path / "anchors/seed0.json"
    about.write_text(about.read_text().replace('"images": "', '"images": "other '))
    with pytest.raises(InputError, match="2 sizes or sets of images"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "sandwiches"], "did you mean 'sandwich'"),
        (["--size", "cpus"], "did you mean 'cpu'"),
        (["--rows", "uniform,sandwiches"], "did you mean 'sandwich'"),
        (["--seeds", "-1"], "--seeds has -1; give numbers from 0"),
        (["--seeds", "99999999999999999999"], "give numbers from 0, below 2147483648"),
        (["--table", "--seeds", "0"], "--table shows all that is measured in -o; leave --seeds out"),
        (["--table", "--fonts", "."], "--table shows all that is measured in -o; leave --fonts out"),
        (["--table"], "has no records of the study; measure some rows first, or check -o"),
        (["--fonts", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_bad_request_is_one_line(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-o", str(tmp_path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.full
def test_the_table_of_what_is_measured_is_printed(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(output), "--table"]) == 0
    assert capsys.readouterr().out == table(read_study(output)) + "\n"
