"""Jobs from the command line: a pico assembly on a small image folder."""

import copy
import hashlib
import json
import logging
import sys

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.part import Assembly
from stitchkit.assembly.train.data import TrainingLoader, open_data
from stitchkit.assembly.train.run import run_job
from stitchkit.assembly.train.task import Captured, JobTask, TaskLoss, WeightedLoss, scale_losses
from stitchkit.cli import main
from stitchkit.data.loader_processes import usable_cores
from stitchkit.display import count, quantity
from stitchkit.distributed import World
from stitchkit.errors import InputError
from tests import archives
from tests.commands import refused
from tests.jobs import JOBS, job_config, write_job
from tests.support import mostly_full, weights, write_images

CPU = World(0, 1, torch.device("cpu"))


def run(path, out, *flags):
    """Run a job and give its result."""
    assert main(["job", "-c", str(path), "-o", str(out), "--no-pretrained", *map(str, flags)]) == 0
    return pd.read_pickle(out / "result.pkl")


def refusal(capsys, path, out, *flags):
    """The one line that a job ends with."""
    return refused(capsys, "job", "-c", path, "-o", out, "--no-pretrained", *flags)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def digest(state, prefix):
    """SHA-256 of the weights under a prefix, without the statistics of batch norms."""
    found = hashlib.sha256()
    names = sorted(name for name in state if name.startswith(prefix) and not name.endswith(STATISTICS))
    assert names
    for name in names:
        found.update(state[name].numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A job with checkpoints, and what it wrote."""
    folder = tmp_path_factory.mktemp("job")
    path = write_job(folder, job_config(images) | {"checkpoint_initial_model": True})
    return path, folder / "out", run(path, folder / "out", "--save-checkpoints")


def test_a_job_trains_and_writes_the_published_columns(trained, images):
    _, out, result = trained
    name = images.name
    assert list(result["Epoch"]) == [0, 1, 2, 3]
    assert list(result["Step"]) == list(result.index) == [0, 4, 8, 12]
    published = ["Epoch", "Step", "LR", "Loss", "Time/Data", "Time/Step", "Time/Img Per Sec", "Time/Total"]
    published += ["Time/Per Epoch", "Proc Mem", f"{name}/Accuracy", "Overall/Train Loss"]
    published += [f"Overall/Train {name}/Accuracy", f"Overall/{name}/Test Accuracy"]
    assert set(result.columns) == set(published)
    assert list(result.columns[:10]) == published[:10]
    assert result["Overall/Train Loss"].iloc[-1] < 0.7 * result["Overall/Train Loss"].iloc[1]
    assert result[f"Overall/Train {name}/Accuracy"].iloc[-1] > 0.5
    assert result["Overall/Train Loss"].isna().tolist() == [True, False, False, False]
    assert ((result[f"Overall/{name}/Test Accuracy"] * 20) % 1).abs().max() == pytest.approx(0, abs=1e-9)
    assert result["Time/Total"].iloc[1:].is_monotonic_increasing
    assert result["Proc Mem"].iloc[-1] > 50
    table = pd.read_csv(out / "result.csv")
    pd.testing.assert_frame_equal(table, result.reset_index(drop=True), check_dtype=False)


def test_settings_and_metadata_are_beside_the_result(trained):
    path, out, _ = trained
    # Where it wrote is not among them: they may be given to another job.
    assert JobConfig.load(out / "config.yml") == JobConfig.load(path, save_checkpoints=True, pretrained=False)
    metadata = yaml.safe_load((out / "metadata.yml").read_text())
    assert 0 < metadata["num_trainable_params"] < metadata["num_params"]
    assert metadata["num_flops"] > 0
    assert metadata["num_classes"] == 4
    assert all(isinstance(value, str | int) for value in metadata.values()), "the published scripts hash them"


def test_figures_of_a_job_are_of_one_set_of_images(tmp_path, capsys):
    """Neither a resumed job nor another seed is judged on images that have changed since."""
    images = write_images(tmp_path / "images", train=4, validation=2)
    path = write_job(tmp_path, job_config(images, epochs=1))
    out = tmp_path / "out"
    command = ["job", "-c", path, "-o", out, "--save-checkpoints", "--no-pretrained"]
    assert main([*map(str, command)]) == 0
    picture = next(images.glob("validation/*/0.png"))
    Image.new("RGB", (16, 16)).save(picture)
    seed = ["-c", out / "config.yml", "-o", out / "result-2", "--metrics-output", out / "result-2.pkl"]  # as in a sweep
    for further in (["--epochs", "2", "--resume", "auto"], seed):
        assert main([*map(str, [*command, *further])]) == 2
        assert "has figures of other test images: they have changed since" in capsys.readouterr().err


def test_of_frozen_parts_only_statistics_move(trained):
    _, out, _ = trained
    first, last = (weights(out / name) for name in ("model-0.pth", "checkpoint.pth"))
    assert digest(first, "parts.0.") == digest(last, "parts.0.")
    statistics = [name for name in first if name.startswith("parts.0.") and name.endswith(STATISTICS)]
    assert statistics
    assert not any(torch.equal(first[name], last[name]) for name in statistics)
    assert digest(first, "parts.1.") != digest(last, "parts.1.")
    assert digest(first, "head.") != digest(last, "head.")


@pytest.mark.parametrize(
    ("frozen", "words"),
    mostly_full([(True, "9 of 9"), ("statistics", "2 of 9")], quick=[("statistics", "2 of 9")]),
)
def test_the_log_says_how_many_batch_norms_learn_statistics(frozen, words, images, tmp_path, caplog):
    config = job_config(images, epochs=1, max_batches=1)
    config["assembly"][0]["Subnet"]["frozen"] = frozen
    with caplog.at_level("INFO"):
        result = run(write_job(tmp_path, config), tmp_path / "out")
    accuracy = result[f"Overall/{images.name}/Test Accuracy"].iloc[-1]
    assert f"epoch 1/1  {images.name}/Test Accuracy {100 * accuracy:.2f} %" in caplog.text, "the table has shares"
    assert f"parameters train, {words} batch norms learn statistics" in caplog.text
    assert "1 epoch of 1 step, " in caplog.text


def test_unfrozen_trains_everything(trained, tmp_path):
    path, out, _ = trained
    run(path, tmp_path / "out", "--save-checkpoints", "--unfrozen", "--epochs", "1")
    first, last = weights(out / "model-0.pth"), weights(tmp_path / "out/checkpoint.pth")
    assert digest(first, "parts.0.") != digest(last, "parts.0.")


@pytest.mark.parametrize("cadence", mostly_full(["epochs", "steps"], quick=["steps"]))
def test_law_8_a_resumed_job_ends_bitwise_like_an_unbroken_one(images, tmp_path, cadence):
    parts = [{"lr_scheduler": "LinearLR", "lr_scheduler_args": {"total_iters": 2}}, {"lr_scheduler": "ConstantLR"}]
    schedule = {"cadence": cadence, "milestones": [3], "schedulers": parts}
    config = job_config(images, lr_scheduler="SequentialLR", lr_scheduler_args=schedule, data_augmentation=True)
    path = write_job(tmp_path, config)
    whole = run(path, tmp_path / "whole", "--save-checkpoints")
    run(path, tmp_path / "half", "--save-checkpoints", "--epochs", "2")
    resumed = run(path, tmp_path / "half", "--save-checkpoints", "--resume-from", tmp_path / "half/checkpoint.pth")
    one, two = (torch.load(tmp_path / name / "checkpoint.pth") for name in ("whole", "half"))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    assert one["scheduler"] == two["scheduler"]
    same = [name for name in whole.columns if not name.startswith(("Time", "Proc"))]
    pd.testing.assert_frame_equal(whole[same], resumed[same])


def test_a_finished_job_has_nothing_left_to_resume(trained, tmp_path, caplog, capsys):
    path, *_ = trained
    run(path, tmp_path / "out", "--epochs", "1")
    before = (tmp_path / "out/result.pkl").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        run(path, tmp_path / "out", "--epochs", "1", "--resume", "auto")
    assert caplog.messages[-1] == f"nothing is left to train; the result is {tmp_path}/out/result.pkl"
    assert (tmp_path / "out/result.pkl").stat().st_mtime_ns == before
    assert "exists, so this job is done" in refusal(capsys, path, tmp_path / "out", "--epochs", "2", "--resume", "auto")


def test_no_job_resumes_within_an_epoch_that_max_steps_ended(trained, tmp_path, capsys):
    path, newest = trained[0], tmp_path / "cut/checkpoint.pth"
    cut = run(path, tmp_path / "cut", "--save-checkpoints", "--max-steps", "6")
    assert list(cut["Step"]) == [0, 4, 6], "within an epoch"
    for flags in ((), ("--max-steps", "7")):
        line = refusal(capsys, path, tmp_path / "on", "--resume-from", newest, *flags)
        assert "max_steps ended it after 6 steps, within epoch 2, and only whole epochs can be resumed" in line
    same = run(path, tmp_path / "on", "--resume-from", newest, "--max-steps", "6")
    assert same["Step"].tolist() == cut["Step"].tolist() == [0, 4, 6]


@pytest.mark.full
def test_a_job_that_max_steps_ended_with_an_epoch_resumes(trained, tmp_path):
    path = trained[0]
    run(path, tmp_path / "whole", "--save-checkpoints", "--max-steps", "4")
    on = run(path, tmp_path / "whole", "--resume-from", tmp_path / "whole/checkpoint.pth", "--max-steps", "6")
    assert on["Step"].tolist() == [0, 4, 6]


def test_a_job_resumes_with_the_settings_it_began_with(trained, tmp_path, capsys, caplog):
    path, out, _ = trained
    newest = out / "checkpoint.pth"
    for flags, words in (
        (("--lr", "0.5"), "train_config.optimizer_args.lr 0.01, not 0.5"),
        (("--unfrozen",), "unfrozen False, not True"),
    ):
        line = refusal(capsys, path, tmp_path / "on", "--resume-from", newest, *flags)
        assert f"was trained with {words}; use the same, or start from its weights with --load-from" in line
    config = yaml.safe_load(path.read_text())
    config["assembly"][1]["SimpleAdapter"]["nonlinearity"] = False
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "on", "--resume-from", newest)
    assert "assembly[1].SimpleAdapter.nonlinearity unset, not False" in line
    with caplog.at_level(logging.INFO):
        longer = run(path, tmp_path / "on", "--resume-from", newest, "--epochs", "4", "--print-freq", "1")
    told = [message for message in caplog.messages if " -> " in message]
    assert told == ["the job resumes with other settings: train_config.epochs 3 -> 4"]
    assert list(longer["Epoch"]) == [0, 1, 2, 3, 4]


def test_a_checkpoint_of_another_format_starts_a_job_but_does_not_resume_it(trained, tmp_path, capsys):
    path, out, _ = trained
    before = tmp_path / "before.pth"
    torch.save(torch.load(out / "checkpoint.pth") | {"format": "stitchkit job 1"}, before)
    line = refusal(capsys, path, tmp_path / "on", "--resume-from", before)
    assert "contains no state of a job of this version; start from its weights with --load-from" in line
    run(path, tmp_path / "tested", "--test-only", "--load-from", before)


def test_weights_alone_and_test_only(trained, tmp_path, images):
    path, out, result = trained
    tested = run(path, tmp_path / "out", "--test-only", "--load-from", out / "checkpoint.pth")
    assert list(tested["Epoch"]) == [0]
    column = f"Overall/{images.name}/Test Accuracy"
    assert tested[column].iloc[0] == result[column].iloc[-1]
    fresh = run(path, tmp_path / "on", "--epochs", "1", "--load-from", out / "checkpoint.pth")
    assert list(fresh["Epoch"]) == [0, 1]
    assert fresh[column].iloc[0] == result[column].iloc[-1]


def test_the_part_of_a_job_starts_another_job_and_can_be_tested(trained, tmp_path):
    path, out, _ = trained
    config = yaml.safe_load(path.read_text())
    config["assembly"][0]["Subnet"]["ckp_path"] = str(out / "checkpoint.pth")
    chained = write_job(tmp_path, config | {"save_checkpoints": True, "checkpoint_initial_model": True})
    run(chained, tmp_path / "out", "--epochs", "0")
    begun, before = weights(tmp_path / "out/checkpoint.pth"), weights(out / "checkpoint.pth")
    assert all(torch.equal(begun[name], before[name]) for name in begun if name.startswith("parts.0."))
    run(chained, tmp_path / "tested", "--test-only")


def test_an_average_starts_from_the_weights_of_the_file(trained, tmp_path, images):
    path, out, _ = trained
    result = run(
        path, tmp_path, "--load-from", out / "checkpoint.pth", "--model-ema", "--epochs", "0", "--save-checkpoints"
    )
    begun = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert begun["state_dict_ema"].keys() == begun["state_dict"].keys()
    assert all(torch.equal(begun["state_dict_ema"][name], value) for name, value in begun["state_dict"].items())
    column = f"Overall/{images.name}/Test {{}}Accuracy"
    assert result[column.format("EMA ")].iloc[0] == result[column.format("")].iloc[0]


def test_weights_that_fit_in_part(trained, tmp_path, capsys):
    path, out, _ = trained
    partial = {name: value for name, value in weights(out / "checkpoint.pth").items() if not name.startswith("head")}
    torch.save({"model": partial}, tmp_path / "part.pth")
    assert "is missing" in refusal(capsys, path, tmp_path / "out", "--load-from", tmp_path / "part.pth")
    loose = write_job(tmp_path, yaml.safe_load(path.read_text()) | {"strict_load": False})
    run(loose, tmp_path / "out", "--load-from", tmp_path / "part.pth", "--epochs", "0", "--save-checkpoints")
    begun = weights(tmp_path / "out/checkpoint.pth")
    assert all(torch.equal(begun[name], value) for name, value in partial.items())


def test_a_smoke_run_is_short_and_does_not_stop_the_real_one(trained, tmp_path):
    for _ in range(2):
        flags = ["--st", "--metrics-output", str(tmp_path / "real.pkl")]
        assert main(["job", "-c", str(trained[0]), "-o", str(tmp_path / "out"), "--no-pretrained", *flags]) == 0
    assert list(pd.read_pickle(tmp_path / "out/smoke/result.pkl")["Step"]) == [0, 3]
    assert (tmp_path / "out/smoke/checkpoint.pth").exists()
    assert [place.name for place in (*tmp_path.iterdir(), *(tmp_path / "out").iterdir())] == ["out", "smoke"]
    run(trained[0], tmp_path / "out", "--epochs", "1")


def test_a_dry_run_says_what_a_job_comes_to_and_writes_nothing(trained, images, tmp_path, capsys):
    _, out, _ = trained
    config = job_config(images, batch_size=8)
    config["assembly"][0]["Subnet"]["block_input"] = ["x"]  # as in published files
    path, place = write_job(tmp_path, config), tmp_path / "out"
    assert main(["job", "-c", str(path), "-o", str(place), "--dry-run"]) == 0
    said = capsys.readouterr().out
    known = yaml.safe_load((out / "metadata.yml").read_text())
    total = next(line for line in said.splitlines() if line.split()[:1] == ["total"]).split()
    cost = [known["num_params"], known["num_trainable_params"]]
    assert total[1:3] == [quantity(number) for number in cost]
    assert 0.9 * known["num_flops"] < count(total[3]) <= known["num_flops"]  # which includes norms
    assert "parts.0  Subnet resnet18 x to layer2  img [8, 4, 4]" in said
    assert f"data: {images}, 4 classes, batches of 8 images: 8 to train, 3 to test" in said
    assert f"nothing was trained or written; the folder would be {place}" in said
    assert [file.name for file in tmp_path.iterdir()] == ["job.yml"]


def test_a_dry_run_needs_neither_data_nor_weights_and_finds_mistakes(tmp_path, capsys):
    config = job_config(tmp_path / "absent")
    config["assembly"][0]["Subnet"]["ckp_path"] = "absent.pth"
    path = write_job(tmp_path, config)
    assert main(["job", "-c", str(path), "--dry-run", "--load-from", "gone.pth"]) == 0
    said = capsys.readouterr().out
    assert f"missing: train_config.dataset: data folder '{tmp_path / 'absent'}' does not exist" in said
    assert "missing: 'absent.pth', a file of weights" in said
    assert "missing: 'gone.pth'" in said
    config["assembly"][1]["SimpleAdapter"] |= {"in_channels": 9, "frozen": True}
    assert "assembly[1].SimpleAdapter: it gets img [8, 4, 4]" in refusal(
        capsys, write_job(tmp_path, config), "out", "--dry-run"
    )
    config["assembly"][1]["SimpleAdapter"]["in_channels"] = 8
    config["head"]["ClassifierHead"]["frozen"] = True
    assert "every part is frozen" in refusal(capsys, write_job(tmp_path, config), "out", "--dry-run")


def test_a_dry_run_takes_only_absent_data_for_missing(images, tmp_path, capsys):
    path = write_job(tmp_path, job_config(images, val_split="held_out"))
    assert "has no held_out/ folder" in refusal(capsys, path, "out", "--dry-run")
    path = write_job(tmp_path, job_config("nowhere"))
    assert "unknown data set 'nowhere'" in refusal(capsys, path, "out", "--dry-run")
    absent = {"cifar10": "give --data the folder", "aid": "has no train/", "hfds/nobody/nothing": "cannot be opened"}
    for name, words in absent.items():
        path = write_job(tmp_path, job_config(name))
        assert main(["job", "-c", str(path), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "missing: train_config.dataset: data set" in said
        assert words in said


def test_max_batches_takes_a_random_part_of_both_splits(images):
    config = JobConfig.parse(job_config(images, max_batches=1))
    [data] = open_data(config, CPU)
    assert (len(data.train.dataset), len(data.test.dataset)) == (16, 16)
    indices = data.train.dataset.indices
    assert indices != sorted(indices)
    assert open_data(config, CPU)[0].train.dataset.indices == indices
    other = JobConfig.parse(job_config(images, max_batches=1, seed=5))
    assert open_data(other, CPU)[0].train.dataset.indices != indices


def test_gradients_are_cut_to_their_norm(images, tmp_path):
    config = job_config(images, optimizer="SGD", optimizer_args={"lr": 1.0}, max_grad_norm=1e-3, max_steps=1)
    run(write_job(tmp_path, config | {"checkpoint_initial_model": True}), tmp_path, "--save-checkpoints")
    before, after = weights(tmp_path / "model-0.pth"), weights(tmp_path / "model-1.pth")
    names = [name for name in before if not name.endswith(STATISTICS)]
    moved = torch.stack([(after[name] - before[name]).norm() for name in names]).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_job_without_a_schedule_keeps_its_rate(trained):
    assert trained[2]["LR"].iloc[1:].tolist() == [0.01] * 3


def test_the_rate_is_that_of_the_last_step(images, tmp_path):
    settings = {"lr_scheduler": "ExponentialLR", "lr_scheduler_args": {"gamma": 0.5, "cadence": "steps"}}
    result = run(write_job(tmp_path, job_config(images, epochs=2, **settings)), tmp_path / "out")
    assert result["LR"].iloc[1:].tolist() == pytest.approx([0.01 * 0.5**3, 0.01 * 0.5**7])


def test_the_total_loss_is_the_weighted_mean():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Linear(4, 4))
    loss = torch.nn.functional.cross_entropy
    aux = WeightedLoss(Captured(network, "1", "aux", training=True), loss, 3.0)
    task = JobTask(network, [TaskLoss(loss, (aux,))], device=CPU.device)
    images, labels = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    inner = network[1](network[0](images))
    expected = (loss(network[2](inner), labels) + 3 * loss(inner, labels)) / 4
    torch.testing.assert_close(task(images, (labels,))["loss"], expected)


def test_hits_are_counted_on_the_device(monkeypatch):
    """A tensor of a list is copied from the host, and the host waits for the GPU in each step."""
    task = JobTask(torch.nn.Identity(), [TaskLoss(torch.nn.functional.cross_entropy)] * 2, device=CPU.device)
    logits, labels = torch.eye(3)[[0, 1, 2, 0, 0]], (torch.tensor([0, 1, 0]), torch.tensor([0, 0]))
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a tensor comes from the host"))
    task(logits, labels)
    assert task.last["accuracy"].tolist() == pytest.approx([2 / 3, 1])
    assert task.accuracies() == pytest.approx([2 / 3, 1])


def test_an_auxiliary_loss_judges_what_its_submodule_gave_though_the_next_works_in_place():
    network = torch.nn.Sequential(torch.nn.Linear(12, 4), torch.nn.ReLU(inplace=True))
    captured = Captured(network, "0", "aux", training=True)
    images = torch.randn(6, 12)
    network(images)
    value = captured.take()
    assert (value < 0).any()
    assert torch.equal(value, network[0](images))
    value.sum().backward()
    assert network[0].bias.grad.tolist() == [6.0] * 4


def test_an_auxiliary_loss_trains_a_job(images, tmp_path, capsys):
    config = job_config(images, epochs=1)
    config["assembly"].append({"ClassifierHead": {"num_classes": 4}})
    del config["head"]
    config["train_config"]["aux_losses"] = [{"output": "parts.2", "loss_fn": "cross_entropy", "weight": 0.5}]
    with_aux = run(write_job(tmp_path, config), tmp_path / "aux")
    del config["train_config"]["aux_losses"]
    without = run(write_job(tmp_path, config), tmp_path / "none")
    # the head's own output twice: the weighted mean is the loss itself
    assert with_aux["Overall/Train Loss"].iloc[-1] == pytest.approx(without["Overall/Train Loss"].iloc[-1], rel=1e-5)
    config["train_config"]["aux_losses"] = [{"output": "part.2"}]
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "wrong")
    assert "train_config.aux_losses[0].output: unknown submodule 'part.2'; did you mean 'parts.2'?" in line


def test_metrics_of_the_network_and_of_a_submodule(images, tmp_path):
    config = job_config(images, epochs=1)
    config["metrics"] = [{"metric_fn": "topk_accuracy", "metric_fn_args": {"topk": [1, 3, 9]}},
                         {"metric_fn": "accuracy", "output": "head"}, {"metric_fn": "cross_entropy"},
                         {"metric_fn": "mse_loss"}, {"metric_fn": "cosine_similarity"}]  # fmt: skip
    row = run(write_job(tmp_path, config), tmp_path / "out").iloc[-1]
    prefix = f"Overall/{images.name}/Test"
    assert row[f"{prefix} Top-1 Accuracy"] <= row[f"{prefix} Top-3 Accuracy"] <= row[f"{prefix} Top-9 Accuracy"] == 1
    assert row[f"{prefix} Top-1 Accuracy"] == row[f"{prefix} head Accuracy"]
    assert row[[f"{prefix} {name}" for name in ("cross_entropy", "mse_loss", "cosine_similarity")]].notna().all()


def test_without_metrics_no_test_image_is_read(images, tmp_path, monkeypatch):
    monkeypatch.setattr("stitchkit.assembly.train.testing.batches_of", lambda *_, **__: pytest.fail("a test runs"))
    result = run(write_job(tmp_path, job_config(images) | {"metrics": []}), tmp_path / "out", "--epochs", "1")
    assert not [name for name in result.columns if "Test" in name]


def two_tasks(images, **train):
    """A job of two tasks with a head each, of which the first has an auxiliary loss."""
    aux = {"output": "parts.2.parts.1", "loss_fn": "multi_margin_loss", "weight": 0.5}
    tasks = [
        {"dataset": str(images), "max_batches": 3, "aux_losses": [aux]},
        {"dataset": "digits", "max_batches": 2, "batch_size": 8},
    ]
    config = job_config(images, tasks=tasks, **train)
    del config["train_config"]["dataset"], config["head"]
    heads = [{"ClassifierHead": {"num_classes": count}} for count in (4, 10)]
    config["assembly"].append({"ParallelPart": {"agg": "none", "parts": heads}})
    return config


def test_each_task_needs_an_output_with_its_classes(images, tmp_path, capsys):
    config = two_tasks(images)
    config["train_config"]["tasks"][0]["aux_losses"] = []
    heads = config["assembly"][-1]["ParallelPart"]
    few = [heads["parts"][0]] * 2
    for heads["parts"], words in (
        (few[:1], "1 output for 2 data sets"),
        (few, "the network has 4 logits, but the data have 10 classes; end it with a ClassifierHead"),
    ):
        assert words in refusal(capsys, write_job(tmp_path, config), tmp_path / "out")


def test_law_8_each_task_has_its_batches_losses_and_columns_and_resumes_within_an_epoch(images, tmp_path, caplog):
    path = write_job(tmp_path, two_tasks(images, epochs=2))
    with caplog.at_level("INFO"):
        whole = run(path, tmp_path / "whole", "--save-checkpoints", "--checkpoint-interval", "2")
    assert "losses are divided by their start: " in caplog.text
    assert list(whole["Step"]) == [0, 3, 6]  # three batches of the first task, the second starts over
    ours, digits = images.name, "digits"
    columns = [f"{ours}/Main Loss", f"{ours}/Aux Loss 1", f"{digits}/Main Loss"]
    assert whole[[*columns, *(f"Overall/Train {name}" for name in columns)]].iloc[1:].notna().all(axis=None)
    saved = torch.load(tmp_path / "whole" / "model-6.pth", weights_only=True)
    assert 0.2 < whole["Loss"].iloc[1] / 2 < 1.5, "each of the two losses begins at 1"
    previous = tmp_path / "whole" / "previous.pth"
    assert torch.load(previous, weights_only=True)["within"]["ranks"][0]["position"]["done"] == 2
    resumed = run(path, tmp_path / "part", "--save-checkpoints", "--resume-from", previous)
    again = torch.load(tmp_path / "part" / "model-6.pth", weights_only=True)
    assert again["loss_scales"] == saved["loss_scales"]
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in saved["state_dict"].items())
    same = [name for name in whole.columns if not name.startswith(("Time", "Proc"))]
    pd.testing.assert_frame_equal(whole[same], resumed[same])


def test_losses_of_tasks_are_divided_by_their_start():
    torch.manual_seed(0)
    network, loss = torch.nn.Linear(4, 3), torch.nn.functional.cross_entropy
    task = JobTask(network, [TaskLoss(loss), TaskLoss(lambda *pair: 10 * loss(*pair))], device=CPU.device)
    images, labels = torch.randn(6, 4), (torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1]))
    scale_losses(task, [(images, labels)])
    start = loss(network(images[:3]), labels[0]).item(), 10 * loss(network(images[3:]), labels[1]).item()
    assert task.scales.tolist() == pytest.approx(start)
    assert task(images, labels)["loss"].item() == pytest.approx(2)
    assert task.mean_losses() == pytest.approx(start)


def test_a_job_trains_and_tests_at_a_height_and_a_width(images, tmp_path):
    seen = set()

    def note(module, inputs):
        if isinstance(module, Assembly) and not inputs[0].is_meta:
            seen.add(tuple(map(int, inputs[0].shape[1:])))  # FLOPs are traced, where sizes are tensors

    path = write_job(tmp_path, job_config(images, epochs=1))
    with register_module_forward_pre_hook(note):
        result = run(path, tmp_path / "out", "--image-size", "32,48")
    assert seen == {(3, 32, 48)}
    assert result["Overall/Train Loss"].iloc[-1] > 0


def test_an_epoch_of_tasks_ends_with_the_longest(images):
    config = JobConfig.parse(
        job_config(images, dataset=None, tasks=[{"dataset": str(images)}, {"dataset": "digits", "batch_size": 500}])
    )
    loader = TrainingLoader([data.train for data in open_data(config, CPU)])
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert [len(labels) for labels in batches[3][1]] == [16, 500], "the digits have begun again"
    assert batches[0][0].shape == (516, 3, 32, 32)
    assert loader.images == sum(len(images) for images, _ in batches)


def test_a_lone_last_image_makes_no_batch(images):
    [data] = open_data(JobConfig.parse(job_config(images, batch_size=21)), CPU)
    assert [len(labels) for _, labels in data.train] == [21] * 3
    assert sum(len(labels) for _, labels in data.test) == 20


@pytest.fixture
def spoilt(tmp_path):
    """102 images to train and 102 to test, one of each spoilt, beside what macOS writes on foreign disks."""
    folder = write_images(tmp_path / "spoilt", train=51, validation=51, classes=2)
    (folder / "train/class1/7.png").write_bytes(b"no image")
    Image.new("1", (1, 20_000)).save(folder / "validation/class1/7.png")  # resized to 224 pixels, it would be 3 GB
    for split in ("train", "validation"):
        (folder / split / "class1/._7.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("workers", mostly_full([0, 1], quick=[1]))
def test_a_job_skips_images_that_cannot_be_read(spoilt, tmp_path, caplog, workers):
    path = write_job(tmp_path, job_config(spoilt, epochs=1) | {"workers": workers})
    result = run(path, tmp_path / "out")
    for split in ("train", "validation"):
        assert f"1 of 102 images of the {split} split cannot be read or have no class: 'class1/7.png'" in caplog.text
    hits = 101 * result[f"Overall/{spoilt.name}/Test Accuracy"].iloc[-1]
    assert hits == pytest.approx(round(hits)), "the image that cannot be read is not counted"


@pytest.mark.full
def test_a_job_of_streamed_data(tmp_path):
    archives.write_shards(tmp_path)
    config = job_config("wds/images", num_classes=2, batch_size=2) | {"data_path": str(tmp_path), "workers": 1}
    result = run(write_job(tmp_path, config), tmp_path / "out")
    assert list(result["Step"]) == [0, 3, 6, 9]
    assert result["Overall/images/Test Accuracy"].iloc[-1] == 1, "they have one label"


def test_bad_jobs_end_in_one_line(trained, images, tmp_path, capsys):
    path, out, _ = trained
    assert "exists, so this job is done; choose another -o" in refusal(capsys, path, out)
    assert "epochs is -1" in refusal(capsys, path, tmp_path, "--epochs", "-1")
    assert "--lr is -1.0" in refusal(capsys, path, tmp_path, "--lr", "-1")
    assert "must end with .pkl" in refusal(capsys, path, tmp_path, "--metrics-output", "x.csv")
    assert "gone.pth' does not exist" in refusal(capsys, path, tmp_path, "--load-from", "gone.pth")
    torch.save({"model": weights(out / "checkpoint.pth")}, tmp_path / "published.pth")
    line = refusal(capsys, path, tmp_path, "--resume-from", tmp_path / "published.pth")
    assert "start from its weights with --load-from" in line
    assert "test_only needs trained weights, but pretrained is false and no file is named; set load_from" in refusal(
        capsys, path, tmp_path, "--test-only"
    )
    config = yaml.safe_load(path.read_text())
    changes = {
        ": train_config.dataset: unknown data set 'nowhere'": {
            "train_config": config["train_config"] | {"dataset": "nowhere"}
        },
        "every part is frozen": {"assembly": config["assembly"][:1], "head": {"ClassifierHead": {"frozen": True}}},
        "the network has 3 logits": {"head": {"ClassifierHead": {"num_classes": 3}}},
        "assembly[1]": {"assembly": [config["assembly"][0], {"SimpleAdapter": {"in_channels": 9, "out_channels": 9}}]},
    }
    for words, change in changes.items():
        line = refusal(capsys, write_job(tmp_path, config | change), tmp_path)
        assert words in line
        assert f"'{tmp_path}/job.yml'" in line
    assert not (tmp_path / "result.pkl").exists()


def test_a_wrong_part_is_reported_before_missing_data(images, tmp_path, capsys):
    config = job_config(images, dataset="cifar10") | {"data_path": str(tmp_path / "none")}
    assert "none' does not exist; it must contain cifar-10-batches-py/" in refusal(
        capsys, write_job(tmp_path, config), tmp_path / "out"
    )
    config["assembly"][1]["SimpleAdapter"]["in_channels"] = 9
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "out")
    assert "assembly[1].SimpleAdapter" in line
    assert "cifar10" not in line


def test_no_data_are_opened_for_a_misspelt_part(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stitchkit.assembly.train.job.open_data", lambda *_: pytest.fail("the data are opened"))
    config = job_config(images)
    config["assembly"][1] = {"SimpelAdapter": {}}
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "out")
    assert "did you mean 'SimpleAdapter'" in line


@pytest.mark.parametrize(
    ("key", "name"), [("optimizer", "AdamX"), ("loss_fn", "crossentropy"), ("lr_scheduler", "Cosin")]
)
def test_a_job_run_from_python_refuses_unknown_names_before_data_are_opened(key, name, images, tmp_path, monkeypatch):
    monkeypatch.setattr("stitchkit.assembly.train.job.open_data", lambda *_: pytest.fail("the data are opened"))
    path = write_job(tmp_path, job_config(images, **{key: name}))
    with pytest.raises(InputError, match=rf"train_config\.{key}: unknown .* '{name}'"):
        run_job(JobConfig.load(path, save_dir=str(tmp_path / "out")), path)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_job_says_how_to_resume_it(images, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stitchkit.assembly.train.job.open_data", interrupt)
    path = write_job(tmp_path, job_config(images))
    assert main(["job", "-c", str(path), "-o", str(tmp_path / "out"), "--no-pretrained"]) == 130
    assert "stopped; continue from the newest checkpoint with --resume auto" in capsys.readouterr().err


def test_settings_included_from_elsewhere_are_quoted_once_they_are_known_to_be_settings(tmp_path, capsys):
    (tmp_path / "train.yml").write_text(yaml.safe_dump(job_config("nowhere")["train_config"]))
    (tmp_path / "mine").mkdir()
    path = write_job(tmp_path / "mine", job_config("nowhere") | {"train_config": {}})
    path.write_text(path.read_text().replace("train_config: {}", "train_config: !include ../train.yml"))
    line = refusal(capsys, path, tmp_path / "out")
    assert "unknown data set 'nowhere'" in line


def test_there_are_no_more_loader_processes_than_cores(images):
    # torch's warning of too many would be an error here
    [data] = open_data(JobConfig.parse(job_config(images) | {"workers": 16 * usable_cores()}), CPU)
    loaders = (data.train._loader, data.test._loader)
    assert {loader.num_workers for loader in loaders} == {usable_cores()}


def test_a_loss_that_does_not_fit_ends_in_one_line(images, tmp_path, capsys):
    line = refusal(
        capsys, write_job(tmp_path, job_config(images, loss_fn="binary_cross_entropy_with_logits")), tmp_path
    )
    assert "train_config: a loss rejects outputs and labels" in line
    assert "correct the loss_fn and loss_fn_args of the task" in line


def test_what_is_not_finite_is_not_saved(images, tmp_path, capsys):
    config = job_config(images, optimizer="SGD", optimizer_args={"lr": 1e38, "weight_decay": 1e30})
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "out", "--save-checkpoints")
    assert "the loss is nan" in line
    assert line.endswith("stopped. Lower --lr, or set or lower train_config.max_grad_norm"), "what a job has"
    line = refusal(capsys, write_job(tmp_path, config), tmp_path / "out", "--save-checkpoints", "--max-steps", "1")
    assert "validation loss are not finite after epoch 1; stopped" in line
    assert not list((tmp_path / "out").glob("*.p*"))


@pytest.mark.full
def test_results_of_several_seeds_share_a_folder(trained, tmp_path):
    config = write_job(tmp_path, yaml.safe_load(trained[0].read_text()), "config.yml")
    before = config.read_bytes()
    (tmp_path / "metadata.yml").write_text("arch: pico\n")
    for seed in (1, 2):
        flags = ["--seed", str(seed), "--epochs", "1", "--metrics-output", str(tmp_path / f"result-{seed}.pkl")]
        assert main(["job", "-c", str(config), "-o", str(tmp_path / f"run{seed}"), "--no-pretrained", *flags]) == 0
    one, two = (pd.read_pickle(tmp_path / f"result-{seed}.pkl") for seed in (1, 2))
    assert one["Loss"].iloc[-1] != two["Loss"].iloc[-1]
    assert config.read_bytes() == before
    assert yaml.safe_load((tmp_path / "result-2.yml").read_text())["train_config"]["seed"] == 2
    assert yaml.safe_load((tmp_path / "metadata.yml").read_text())["arch"] == "pico"


def test_a_missing_pandas_is_one_line(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "pip install 'stitchkit[jobs]'" in refusal(capsys, trained[0], tmp_path / "out")


def test_deterministic_algorithms_are_used_and_then_no_more(trained, tmp_path):
    run(trained[0], tmp_path / "out", "--deterministic", "--epochs", "1")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_project_is_logged(trained, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows, options = [], {}

    class Run:
        def log(self, row, step):
            rows.append(copy.deepcopy(row) | {"at": step})

        def finish(self):
            rows.append("finished")

    monkeypatch.setattr(wandb, "init", lambda **given: options.update(given) or Run())
    config = yaml.safe_load(trained[0].read_text()) | {"project": "p", "group": "g"}
    run(write_job(tmp_path, config), tmp_path / "out", "--epochs", "1")
    assert (options["project"], options["group"], options["name"]) == ("p", "g", "out")
    assert json.dumps(options["config"])
    assert [row["at"] for row in rows[:-1]] == [0, 4]
    assert rows[-1] == "finished"


@pytest.mark.parametrize("kind", mostly_full(JOBS, quick=["own blocks"]))
def test_a_smoke_run_of_every_kind_of_job(kind, images, tmp_path):
    side = 64 if kind == "network compressed" else 32
    train = job_config(images)["train_config"] | {"data_preprocessing": {"image_size": side}}
    config = {"assembly": JOBS[kind], "workers": 0, "device": "cpu", "train_config": train}
    short = ["--epochs", "1", "--max-batches", "3", "--save-checkpoints"]
    result = run(write_job(tmp_path, config | {"checkpoint_initial_model": True}), tmp_path / "out", *short)
    assert result["Overall/Train Loss"].iloc[-1] > 0
    before, after = weights(tmp_path / "out/model-0.pth"), weights(tmp_path / "out/checkpoint.pth")
    for number, part in enumerate(JOBS[kind]):
        prefix = f"parts.{number}."
        if not any(name.startswith(prefix) for name in before):
            continue  # a function has no weights
        [arguments] = part.values() if isinstance(part, dict) else [{}]
        same = digest(before, prefix) == digest(after, prefix)
        assert same == arguments.get("frozen", False), part
