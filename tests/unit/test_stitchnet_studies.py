"""The experiments with composed networks, their pictures, and the flags of the commands, on pico networks."""

import csv
import errno
import math
import os
import random
import re
import signal
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

import stitchnet
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchnet import generate, image_folder, stitching_images
from stitchnet.compose import CompositionTask
from stitchnet.data import in_memory
from stitchnet.journal import Journal
from stitchnet.settings import ComposeSettings
from studies.stitchnet import experiments, tuning
from studies.stitchnet.__main__ import main as study_main
from studies.stitchnet.tuning import LabelledPairs, checkpoints, head_of, num_outputs, replace_head
from tests.composing import FLAGS, convnet, write_colours, write_pico_nets
from tests.support import LOADER_DIES, ROOT

NOTHING = "no composition passes (0 tried, 0 pruned, 0 found); lower --threshold or --total-threshold"


@pytest.fixture(scope="module")
def beans(tmp_path_factory):
    """21 images to train on."""
    return write_colours(tmp_path_factory.mktemp("beans"), train=7, validation=5)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_pico_nets(tmp_path_factory.mktemp("config"))


def study(name, beans, config, output, *flags):
    return study_main([*map(str, (name, "--data", beans, "--nets", config, *FLAGS, "-o", output, *flags))])


def compose(beans, config, output, *flags):
    return main(["compose", *map(str, ("--data", beans, "--nets", config, *FLAGS, "-o", output, *flags))])


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small(monkeypatch):
    """Experiments that take seconds."""
    monkeypatch.setattr(experiments, "_COUNTS", (2, 8, 32, 64))
    monkeypatch.setattr(experiments, "_SEEDS", 2)
    monkeypatch.setattr(tuning, "EPOCHS", 2)


@pytest.mark.full
@pytest.mark.parametrize("name", ["samples", "front", "ensembles", "finetune"])
def test_an_experiment_writes_its_table_and_picture(beans, config, tmp_path, small, name, capsys):
    assert study(name, beans, config, tmp_path, "--top", 3, "--format", "pdf") == 0
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    rows = table(tmp_path / f"{name}.csv")
    committed = (
        (ROOT / f"{'results' if name == 'front' else 'studies'}/stitchnet/{name}.csv").read_text().partition("\n")[0]
    )
    assert ",".join(rows[0]) == committed
    assert b"\r" not in (tmp_path / f"{name}.csv").read_bytes()
    assert len(rows) == {"samples": 2 * 2 * 5, "front": 5, "ensembles": 3 + 3 + 3 + 1, "finetune": 5 * 3}[name]
    assert all(0 <= float(row["acc1"]) <= 100 for row in rows)
    printed = capsys.readouterr().out
    assert ("left out: 32, 64 stitching images; there are 21 for training" in printed) == (name == "samples")
    if name == "samples":
        assert {row["images"] for row in rows} == {"2", "8"}
    if name == "ensembles":
        single = [row for row in rows if row["size"] == "1"]
        assert all(float(row["acc1"]) == pytest.approx(float(row["best_acc1"])) for row in single)
    if name == "finetune":
        before, after = ([float(row["acc1"]) for row in rows if row["epoch"] == epoch] for epoch in "02")
        assert sum(after) > sum(before)
    assert study(name, beans, config, tmp_path, "--top", 2) == 2
    assert "was started with --top 3, but now it is 2; repeat the original command" in capsys.readouterr().err
    (tmp_path / f"{name}.jsonl").unlink()
    assert study(name, beans, config, tmp_path) == 2
    assert f"{name}.csv' exists" in capsys.readouterr().err


def test_limits_are_kept_when_an_experiment_changes_other_settings():
    settings = ComposeSettings(data="beans", max_macs="3G", max_params="30M")
    assert replace(settings, seed=1) == ComposeSettings(data="beans", max_macs=3e9, max_params=3e7, seed=1)


@pytest.mark.full
def test_random_parents_follow_the_seed_and_are_the_same_for_all_numbers_of_images(beans, config, tmp_path, small):
    ledgers = []
    for number, seed in enumerate((5, 5, 6)):
        torch.rand(number + 1)
        assert compose(beans, config, tmp_path / f"{number}", "--seed", seed, "--top", 2) == 0
        ledgers.append(read_rows(tmp_path / f"{number}/stitches_res.txt"))
    assert ledgers[0] == ledgers[1] != ledgers[2]
    assert study("samples", beans, config, tmp_path, "--seed", 5, "--top", 2) == 0
    for place in (0, 1):
        alone = {row["acc1"] for row in table(tmp_path / "samples.csv") if row["cfg_id"] == str(place)}
        assert alone == {str(ledgers[0][place]["acc1"])}


def broken(monkeypatch, is_broken):
    """Let some searches find nothing."""
    begin_search, find_best, begun = experiments.begin_search, experiments.find_best, {}

    def begin(task, settings, journal):
        search = begin_search(task, settings, journal)
        begun[search] = settings
        return search

    def find(search, top):
        if is_broken(begun[search]):
            raise InputError(NOTHING)
        return find_best(search, top)

    monkeypatch.setattr(experiments, "begin_search", begin)
    monkeypatch.setattr(experiments, "find_best", find)


@pytest.mark.full
def test_a_number_of_images_with_which_nothing_is_found_is_reported_and_skipped(
    beans, config, tmp_path, small, monkeypatch, capsys
):
    broken(monkeypatch, lambda settings: settings.num_images == 2 or settings.seed == 1)
    assert study("samples", beans, config, tmp_path, "--top", 2) == 0
    rows = table(tmp_path / "samples.csv")
    assert {(row["images"], row["seed"]) for row in rows} == {("8", "0")}
    printed = capsys.readouterr().out
    for count, seed in ((2, 0), (2, 1), (8, 1)):
        assert f"{count} images, seed {seed}: {NOTHING}" in printed
    assert (tmp_path / "samples.png").exists()


def test_flags_of_fine_tuning_are_for_that_alone(beans, config, tmp_path, capsys):
    assert study("front", beans, config, tmp_path / "out", "--head", "new") == 2
    assert "--head is only for the experiment finetune; remove it for front" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_at_all_is_an_error_and_leaves_nothing(beans, config, tmp_path, small, monkeypatch, capsys):
    broken(monkeypatch, lambda _: True)
    monkeypatch.setattr(experiments, "_COUNTS", (2,))
    monkeypatch.setattr(experiments, "_SEEDS", 1)
    assert study("samples", beans, config, tmp_path / "out") == 2
    assert NOTHING in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_what_was_measured_before_a_stop_is_kept(beans, config, tmp_path, small, monkeypatch):
    def stop(settings):
        if settings.num_images == 8:
            raise KeyboardInterrupt
        return False

    broken(monkeypatch, stop)
    assert study("samples", beans, config, tmp_path, "--top", 2) == 130
    assert {row["images"] for row in table(tmp_path / "samples.csv")} == {"2"}


def test_too_few_images_to_train_on(tmp_path):
    with pytest.raises(InputError, match="only 1 training images to draw from; at least 2"):
        next(
            experiments.samples(
                CompositionTask(LabelledPairs([0]), LabelledPairs([0])),
                ComposeSettings("a"),
                Journal(tmp_path / "samples.jsonl"),
            )
        )


def test_every_dot_of_a_picture_is_seen(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(experiments, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [
        {"images": count, "seed": seed, "acc1": 90.0, "parents_acc1": 95.0} for count in (2, 32) for seed in range(3)
    ]
    experiments.draw_samples(rows, tmp_path / "samples.png")
    (figure,) = drawn
    (axes,) = figure.axes
    (cloud,) = axes.collections
    figure.draw_without_rendering()
    places = axes.transData.transform(cloud.get_offsets())
    gaps = [abs(one[0] - other[0]) for one, other in combinations(places, 2)]
    assert min(gaps) > 0.98 * experiments._DOT * figure.dpi / 72, "dots of one number of images lie side by side"
    assert [round(float(x)) for x, _ in cloud.get_offsets()] == [2, 2, 2, 32, 33, 31]
    assert not figure.legends[0].get_window_extent().overlaps(axes.bbox)


def test_curves_of_fine_tuning_are_seen_where_they_coincide(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(experiments, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [{"stitch": name, "samples": 10 * n, "acc1": 90.0 + n} for name in ("a", "b", "a > b") for n in range(3)]
    experiments.draw_finetune(rows, tmp_path / "finetune.png")
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    dots = [axes.transData.transform(cloud.get_offsets()) for cloud in axes.collections]
    step = 0.98 * experiments._DOT * drawn[0].dpi / 72
    assert all(np.linalg.norm(one - other, axis=1).min() > step for one, other in combinations(dots, 2))
    heights = {line.get_linestyle(): line.zorder for line in axes.lines}
    assert heights["--"] > heights["-"]


@pytest.mark.parametrize(("count", "sizes"), [(3, [3, 3, 1]), (6, [6, 15, 20, 15, 6, 1]), (25, [25, *[20] * 23, 1])])
def test_many_networks_give_some_of_their_ensembles(count, sizes):
    draw = random.Random(0)
    for size, expected in enumerate(sizes, start=1):
        some = [tuple(one) for one in experiments._drawn(list(range(count)), size, draw)]
        assert len(some) == expected
        assert all(len(set(one)) == size for one in some)


def fine_tuned(net, images, folder, **options):
    """Accuracies in fine-tuning by their number, which for each is also that of the epochs before it."""
    found = {}

    def record(measured):
        found[measured.number] = measured.acc1

    task = CompositionTask(LabelledPairs(images), LabelledPairs(images))
    tuning.train_and_record(net, task, record, seed=0, files=checkpoints(folder), **options)
    return found


@pytest.fixture
def tuned(beans, tmp_path, monkeypatch):
    """Fine-tunes a network of random weights in a folder; the accuracies after each epoch."""
    folder = in_memory(image_folder(beans / "train", 32))
    monkeypatch.setattr(tuning, "EPOCHS", 3)

    def run(num_recorded=0):
        torch.manual_seed(0)
        _, net = generate(stitching_images(folder, 5), 0, 0, sample=True, nets={"a": convnet(6, 8, classes=3)})
        return fine_tuned(net, folder, tmp_path, num_recorded=num_recorded)

    return run


def test_fine_tuning_of_a_damaged_checkpoint_resumes_from_the_one_before(tuned, tmp_path):
    expected = tuned()
    (tmp_path / "finetune.pth").write_bytes(b"damaged")
    assert tuned(num_recorded=4) == {epoch: expected[epoch] for epoch in (2, 3)}
    for path in checkpoints(tmp_path).candidates():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="none of the 2 checkpoints"):
        tuned(num_recorded=4)


@pytest.mark.parametrize(("num_recorded", "first"), [(4, 3), (3, 3), (2, 0)])
def test_fine_tuning_records_what_a_power_cut_took_from_the_journal(tuned, num_recorded, first):
    expected = tuned()
    assert tuned(num_recorded) == {epoch: accuracy for epoch, accuracy in expected.items() if epoch >= first}


def test_fine_tuning_ends_at_a_loss_that_is_not_finite(tuned, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", lambda _, outputs, __: outputs.sum() * math.nan)
    with pytest.raises(InputError, match=r"'a.*': the loss is nan at step 0 .*; train only its head"):
        tuned()
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_advises_what_it_has_if_it_breaks_a_network(tuned, monkeypatch):
    monkeypatch.setattr(tuning, "_LR", math.inf)
    with pytest.raises(InputError) as caught:
        tuned()
    assert "weights or statistics of norms are not finite after epoch 1; train only its head" in str(caught.value)


@LOADER_DIES
def test_fine_tuning_advises_what_it_has_if_a_loader_process_dies(beans, tmp_path, monkeypatch):
    folder = image_folder(beans / "train", 32)
    net, _ = drawn_net(folder, 3)
    inner = LabelledPairs.__getitem__

    def read(pairs, index):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(pairs, index)

    monkeypatch.setattr(LabelledPairs, "__getitem__", read)
    with pytest.raises(InputError, match=r"a loader process died .*; free some memory and try again$"):
        fine_tuned(net, folder, tmp_path)


def test_a_full_disk_ends_fine_tuning_and_keeps_the_checkpoint_before(tuned, monkeypatch, tmp_path):
    expected, save, count = tuned(), torch.save, []
    for path in tmp_path.iterdir():
        path.unlink()

    def full(*arguments):
        count.append(1)
        if len(count) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"finetune.pth' cannot be written: No space left.*The previous one is kept"):
        tuned()
    assert tuned(num_recorded=2) == {epoch: expected[epoch] for epoch in (1, 2, 3)}


def drawn_net(folder, classes):
    """A network of random weights."""
    torch.manual_seed(0)
    nets = {"a": convnet(6, 8, classes=classes)}
    return generate(stitching_images(folder, 5), 0, 0, sample=True, nets=nets)[1], nets


def test_fine_tuning_of_its_own_head_needs_an_output_for_each_class(beans, tmp_path):
    folder = image_folder(beans / "train", 32)
    net, _ = drawn_net(folder, 2)
    with pytest.raises(InputError, match="has 2 outputs and the images have more classes; train a new head"):
        fine_tuned(net, folder, tmp_path, head="own", trains="head")
    assert net.train().training, "a network whose training failed is not frozen"
    assert all(one.requires_grad for one in net.parameters())


@pytest.mark.parametrize("trains", ["head", "all"])
def test_a_new_head_learns_the_classes_of_the_images(beans, tmp_path, monkeypatch, trains):
    monkeypatch.setattr(tuning, "_BATCH", 7)
    folder = in_memory(image_folder(beans / "train", 32))
    net, nets = drawn_net(folder, 1000)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = tuning.finetune(net, folder, folder, trains=trains)
    assert [one.samples for one in found] == [21 * epoch for epoch in range(tuning.EPOCHS + 1)]
    assert found[-1].acc1 > found[0].acc1
    assert num_outputs(net) == net.num_classes == 3
    assert found[-1].acc1 == 100 * net.evaluate_dataset(folder)["accuracy"]
    after, head = net.state_dict(), {f"{head_of(net)[0]}.{name}" for name in ("weight", "bias")}
    changed = {name for name in after if name not in head and not torch.equal(after[name], before[name])}
    assert bool(changed) == (trains == "all")  # statistics of norms are also kept
    assert all(one.requires_grad for one in net.parameters())
    assert stitchnet.load(net.save(tmp_path / "net"), nets).evaluate_dataset(folder) == net.evaluate_dataset(folder)
    for wrong, words in (({"head": "old"}, "unknown head 'old'"), ({"every": 0}, "every is 0; it must be at least")):
        with pytest.raises(InputError, match=words):
            tuning.finetune(net, folder, folder, **wrong)


def test_accuracies_are_measured_every_few_steps_of_any_number_of_loader_processes(beans, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_BATCH", 8)
    monkeypatch.setattr(tuning, "EPOCHS", 2)
    folder = image_folder(beans / "train", 32)  # 21 images, so 3 steps an epoch
    found = []
    for images in (folder, in_memory(folder)):
        measured = []
        task, files = CompositionTask(LabelledPairs(images), LabelledPairs(images)), checkpoints(tmp_path)
        tuning.train_and_record(drawn_net(folder, 3)[0], task, measured.append, seed=0, files=files, every=2)
        files.clear()
        for path in files.candidates():
            path.unlink()
        found.append(measured)
    assert found[0] == found[1]
    assert [(one.number, one.epoch, one.samples) for one in found[0]] == [(0, 0, 0), (1, 0, 16), (2, 1, 29), (3, 2, 42)]


def test_a_network_without_one_linear_layer_at_its_end_gets_no_new_head():
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3)
    net = generate(torch.rand(3, 3, 16, 16), 0, 0, sample=True, nets={"a": torch.nn.Sequential(*layers)})[1]
    with pytest.raises(InputError, match="has no linear layer, so it has no head to train"):
        replace_head(net, 3)


def test_a_network_that_gets_no_new_head_stays_as_it_is(beans):
    """Its outputs are those of two layers, of which the head is one."""
    folder = in_memory(image_folder(beans / "train", 32))
    net = drawn_net(folder, 3)[0].fit(folder)
    images, classifier = torch.stack([image for image, _ in folder]), net.classifier
    inner, before = type(net).forward, net.predict(images)
    net.forward = lambda x: torch.cat(2 * [inner(net, x)], 1)
    with pytest.raises(InputError, match="does not end in one linear layer"):
        replace_head(net, 4)
    del net.forward
    assert net.classifier is classifier
    assert net.predict(images) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-k", 0), "-k is 0; it must be at least 1"),
        (("--max-depth", 1), "--max-depth is 1; it must be at least 2"),
        (("--num-images", 0), "--num-images is 0; it must be at least 1"),
    ],
)
def test_a_number_that_is_too_small_names_its_flag(beans, config, tmp_path, capsys, flags, words):
    assert compose(beans, config, tmp_path / "out", *flags) == 2
    assert capsys.readouterr().err == f"stitchkit: error: {words}\n"


@pytest.mark.parametrize(("program", "arguments", "top"), [(main, ["compose"], 20), (study_main, [], 10)])
def test_help_names_each_default(program, arguments, top, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        program([*arguments, "--help"])
    lines = re.sub(r"\n {10,}", " ", capsys.readouterr().out)
    for flag, default in {
        "--threshold FLOAT": 0.8, "--total-threshold FLOAT": 0.8, "--max-depth INT": 10, "-k INT": 2, "--top INT": top,
        "--order {depth,best}": "best", "--score {cka,r2}": "cka", "--num-images INT": 32,
        "--img-size INT": 224, "--classifier {knn,max,sum,argmax}": "knn", "--seed INT": 0,
    }.items():  # fmt: skip
        assert re.search(rf"^  {re.escape(flag)} .*\({default}\)$", lines, re.MULTILINE), flag


def test_the_readme_says_what_was_measured():
    """Its figures of composed networks stand in the pages of their results."""
    section = (ROOT / "README.md").read_text().partition("## Networks composed without training")[2]
    pages = "".join((ROOT / folder / "stitchnet/README.md").read_text() for folder in ("results", "studies"))
    figures = re.findall(r"\d+\.\d+", section.partition("\n## ")[0])
    assert [figure for figure in figures if figure not in pages] == []
