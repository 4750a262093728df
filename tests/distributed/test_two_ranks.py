"""Law 9, the two-rank law, with real processes: two ranks equal one with twice the batch; every image counts once."""

import io
import json
import tarfile
import time
from contextlib import nullcontext
from datetime import timedelta
from itertools import accumulate, chain

import pytest
import torch
import torch.distributed as dist
import yaml
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

import stitchkit
from stitchkit.cli import main
from stitchkit.data.batches import DirectLoader, without_padding
from stitchkit.data.labelled_images import LabelledImages
from stitchkit.data.loader_processes import workers_for
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.data.unreadable import CheckedImages
from stitchkit.distributed import World, from_primary, gather_objects, gather_over_ranks, sum_over_ranks
from stitchkit.engine.gradients import GradientReducer
from stitchkit.errors import InputError
from stitchkit.measure.ledger import Ledger, read_rows
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.task import StitchTask
from tests import archives
from tests.distributed.ranks import in_two_processes, run_on_two_ranks
from tests.support import FLAGS, ROOT, launch, mostly_full, pico_snnet, weights, write_config, write_images

# Nothing random in the data, one stitch for all ranks, an optimizer that shows every error of a gradient.
EXACT = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "pico.json", nearest_stitching=False)


def run(ranks, *commands):
    """Commands on so many ranks; those on two share a pair of processes."""
    if ranks == 2:
        run_on_two_ranks(commands)
    else:
        assert [main([*map(str, command)]) for command in commands] == [0] * len(commands)


def training(images, config, folder, *flags):
    return ["train", images, "--stitch_config", config, *FLAGS, *EXACT, "--output", folder, *flags]


def train(ranks, *arguments):
    run(ranks, training(*arguments))


def test_law_9_two_ranks_equal_one_with_twice_the_batch(images, config, folder):
    flags = ["--grad-accum-steps", "3"]
    train(1, images, config, folder, "-b", "16", "--experiment", "one", *flags)
    train(2, images, config, folder, "-b", "8", "--experiment", "two", *flags)
    one, two = (weights(folder / count / "last.pth.tar") for count in ("one", "two"))
    start = weights(folder / "one/checkpoint-0.pth.tar")
    assert any((one[key] - start[key]).abs().max() > 1e-3 for key in one), "the second epoch moves the weights"
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_law_9_evaluation_counts_each_image_once(config, folder, tmp_path):
    """An odd number of images, which the ranks cannot share evenly, and more ranks than the last batch has images."""
    images = write_images(tmp_path / "odd", train=16, validation=4, classes=4)
    (images / "validation/class0/extra.png").write_bytes((images / "validation/class1/0.png").read_bytes())
    torch.save({"state_dict": pico_snnet(nearest_stitching=False).state_dict()}, tmp_path / "net.pth")
    rows = {}
    for ranks in (1, 2):
        arguments = ["--stitch_config", config, "--device", "cpu", "-j", "0", "-b", "3", "--eval"]
        arguments += ["--resume", tmp_path / "net.pth", "--output", folder, "--experiment", f"eval{ranks}"]
        run(ranks, ["train", images, *arguments])
        rows[ranks] = read_rows(folder / f"eval{ranks}" / "stitches_res.txt")
    assert len(rows[1]) == len(rows[2]) > 20
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one["images"] == two["images"] == 17
        assert one["acc1"] == two["acc1"]
        assert one["acc5"] == two["acc5"] == 100.0
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
        assert one["acc1"] * 17 / 100 == pytest.approx(round(one["acc1"] * 17 / 100))


def evaluate_with_a_slow_disk(rank, folder, settings):
    append = Ledger.append

    def slowly(self, *row):
        time.sleep(0.2)
        append(self, *row)

    Ledger.append = slowly
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    assert len(stitchkit.evaluate(**settings)) == 3
    dist.destroy_process_group()


def test_every_rank_reads_the_whole_ledger(images, config, tmp_path):
    torch.save({"state_dict": pico_snnet(nearest_stitching=False).state_dict()}, tmp_path / "net.pth")
    settings = {"data": images, "stitch_config": config, "resume": tmp_path / "net.pth", "output": tmp_path}
    settings |= {"eval_stitches": [0, 1, 2], "device": "cpu", "workers": 0}
    in_two_processes(evaluate_with_a_slow_disk, str(tmp_path), settings)


def work_alone(rank, folder):
    """A rank whose primary sums, gathers and reports while the other waits; no exchange may wait for ever."""
    group = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=20)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **group)
    images = CheckedImages(LabelledImages([("a.png", 0)], ("a",), "train"), num_classes=1, is_training=True)
    world = World(rank, 2, torch.device("cpu"))

    def make():
        images.report()
        own = torch.full((2,), rank + 5.0)
        return [sum_over_ranks(own).tolist(), gather_over_ranks(own).tolist(), gather_objects(rank)]

    def fail():
        raise InputError("a refusal")

    assert from_primary(world, make) == [[5.0, 5.0], [[5.0, 5.0]], [0]]
    images.report()  # of both ranks
    with pytest.raises(InputError, match="a refusal"):
        from_primary(world, fail)
    assert sum_over_ranks(torch.ones(1)).item() == 2
    assert gather_objects(rank) == [0, 1]
    dist.destroy_process_group()


def test_the_primary_rank_exchanges_nothing_while_the_others_wait_for_it(tmp_path):
    in_two_processes(work_alone, str(tmp_path))


@pytest.mark.full
def test_bad_input_under_the_launcher_is_one_line_and_status_2(images, config, folder):
    result = launch(2, images, "--stitch_config", config, *FLAGS, "--output", folder, "--resume", "missing.pth")
    assert result.returncode == 2
    assert result.stderr == f"stitchkit: error: checkpoint 'missing.pth' does not exist in '{ROOT}'; check the path\n"
    result = launch(1, images, "--stich_config", config)
    assert result.returncode == 2
    assert "unknown flag '--stich_config'; did you mean '--stitch_config'?" in result.stderr


def test_a_wrong_number_of_processes_is_explained():
    assert launch(0).returncode == 2  # and nothing was started
    assert "usage" in launch(0).stderr


def test_the_effective_settings_are_saved_beside_the_results(images, config, folder):
    train(1, images, config, folder, "--experiment", "saved", "--epochs", "1")
    saved = yaml.safe_load((folder / "saved/args.yaml").read_text())
    assert (saved["sampling"], saved["epochs"], saved["stitch_config"]) == ("shared", 1, str(config))
    assert json.loads(json.dumps(saved)) == saved


SPACES = {
    "window": ({}, (5, 12)),
    "two-way, of low rank": ({"rule": "two_way", "lora_r": 2}, (9, 16)),
    "two-way, of two layers": ({"rule": "two_way", "layer": "mlp"}, (8, 15)),
}
"""Spaces, and the stitches that two ranks draw in one step; they share only the middle anchor."""


def gradients(task, routes, reducer=None):
    """Gradients of one step of two batches: each a list of (images seed, stitch)."""
    labels = torch.tensor([0, 3])
    for number, cfg_id in enumerate(routes):
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(10 * cfg_id + number))
        with task.no_sync() if number == 0 else nullcontext():
            (task(x, labels, cfg_id)["loss"] / 2).backward()
    if reducer is not None:
        reducer.reduce()
    return {name.removeprefix("module."): p.grad for name, p in task.trainable_module.named_parameters()}


def one_of_two(rank, folder, ours, keys, routes):
    """A rank of two, which draws its own stitch for both batches of a step."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    task = StitchTask(pico_snnet(**keys).train(), Objective(Term(LabelLoss(torch.nn.CrossEntropyLoss()))))
    reducer = GradientReducer(task.trainable_module) if ours else None
    if not ours:
        task.prepare_distributed(find_unused_parameters=True)
    found = gradients(task, [routes[rank]] * 2, reducer)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("space", mostly_full(SPACES, quick=["window", "two-way, of low rank"]))
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
def test_law_9_ranks_with_their_own_stitches_average_their_gradients(ours, space, tmp_path):
    """The published sampling: what one rank did not use counts as zero, what no rank used has no gradient."""
    keys, routes = SPACES[space]
    in_two_processes(one_of_two, str(tmp_path), ours, keys, routes)
    found = torch.load(tmp_path / "found.pt")
    tasks = [
        StitchTask(pico_snnet(**keys).train(), Objective(Term(LabelLoss(torch.nn.CrossEntropyLoss())))) for _ in routes
    ]
    alone = [gradients(task, [cfg_id] * 2) for task, cfg_id in zip(tasks, routes, strict=True)]
    unused = 0
    for name, gradient in found.items():
        parts = [part[name] for part in alone if part[name] is not None]
        assert (gradient is None) == (not parts), name
        unused += not parts
        if parts:
            torch.testing.assert_close(gradient, torch.stack(parts).sum(0) / 2, rtol=1e-4, atol=1e-6)
    assert unused


def write_shard(file, paths):
    """A shard of a web dataset, whose labels are the numbers of class folders."""
    with tarfile.open(file, "w") as tar:
        for number, path in enumerate(paths):
            label = path.parent.name.removeprefix("class").encode()
            tar.add(path, f"{number:04d}.png")
            entry = tarfile.TarInfo(f"{number:04d}.cls")
            entry.size = len(label)
            tar.addfile(entry, io.BytesIO(label))


def labels_of_stream(rank, source, places):
    """Save the labels that a rank reads of the validation split of a stream, by 0, 1 and 2 loader processes."""
    dist.init_process_group("gloo", init_method=f"file://{places[0]}.group", rank=rank, world_size=2)
    world, labels = World(rank, 2, torch.device("cpu")), []
    for workers in (0, 1, 2):
        images = open_dataset(source, "validation", num_samples=5 if source.name != "wds/" else None)
        images.transform = to_tensor
        workers = workers_for(images, workers, world)
        images.set_loader_cfg(workers)
        loader = DirectLoader(DataLoader(images, 4, num_workers=workers), device=world.device, dtype=torch.float32)
        labels.append([label for _, batch in without_padding(loader, world) for label in batch.tolist()])
    torch.save(labels, places[rank])
    dist.destroy_process_group()


def assert_each_is_read_once(source, folder, wanted):
    places = [folder / f"labels{rank}.pt" for rank in range(2)]
    in_two_processes(labels_of_stream, source, places)
    for both in zip(*map(torch.load, places), strict=True):
        assert all(both), "each rank has a share"
        assert sorted(chain(*both)) == [*range(wanted)]


@pytest.mark.full
def test_law_9_each_image_of_a_stream_is_read_by_one_rank(tmp_path):
    """Whatever the lengths of its shards: timm would cut long ones and repeat images of short ones."""
    splits, number = {"name": "validation", "filenames": [], "shard_lengths": [10, 33, 57], "num_samples": 100}, 0
    for length in splits["shard_lengths"]:
        paths = [tmp_path / f"class{number + place}/0.png" for place in range(length)]
        for path in paths:
            archives.save(path, 2, 2, 3)
        splits["filenames"].append(f"{number}.tar")
        write_shard(tmp_path / f"{number}.tar", paths)
        number += length
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": splits}}))
    assert_each_is_read_once(Source("wds/", tmp_path), tmp_path, 100)


@pytest.mark.full
def test_law_9_each_image_of_a_stream_of_the_hub_is_read_by_one_rank(tmp_path):
    pytest.importorskip("datasets")
    for label in range(5):
        archives.save(tmp_path / f"hub/validation/{label}/0.png", 2, 2, 3)
    source = Source(f"hfids/{tmp_path / 'hub'}", tmp_path / "cache")
    open_dataset(source, "validation", num_samples=5)  # both ranks would write its description
    assert_each_is_read_once(source, tmp_path, 5)


@pytest.mark.full
def test_streamed_datasets_are_shared_out(images, config, folder, tmp_path):
    """Web datasets: ranks get different shards, of different lengths, and every image counts once."""
    for split, lengths in (("train", (16, 16, 16, 16)), ("validation", (2, 11, 1, 6))):
        paths = sorted((images / split).rglob("*.png"))
        starts = accumulate(lengths, initial=0)
        for shard, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            write_shard(tmp_path / f"{split}-{shard}.tar", paths[start : start + length])
    streamed = ["--dataset", "wds/", "--train-split", "train-{0..3}.tar", "--val-split", "validation-{0..3}.tar"]
    streamed += ["--train-num-samples", "64", "--val-num-samples", "20", "--num-classes", "4", "-j", "1"]
    train(2, tmp_path, config, folder, *streamed, "--experiment", "streamed", "--epochs", "1")
    rows = {}
    for ranks in (1, 2):
        arguments = [tmp_path, "--stitch_config", config, "--device", "cpu", *streamed, "-b", "2", "--eval"]
        arguments += ["--resume", folder / "streamed/last.pth.tar", "--output", folder]
        run(ranks, ["train", *arguments, "--experiment", f"streamed{ranks}"])
        rows[ranks] = read_rows(folder / f"streamed{ranks}/stitches_res.txt")[0]
    assert rows[1]["images"] == rows[2]["images"] == 20
    assert rows[1]["acc1"] == rows[2]["acc1"]
    assert rows[1]["loss"] == pytest.approx(rows[2]["loss"], rel=1e-6)
    assert not [*folder.glob("streamed*/*.hits")], "streamed images have no order"
