"""Jobs with dense tasks beside classification: heads on one stitched trunk, against plain torch."""

import shutil
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import build_network
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.launch import write_folders
from stitchkit.assembly.train.data import TrainingLoader, open_data
from stitchkit.assembly.train.metrics import planned_columns
from stitchkit.assembly.train.testing import _of_pixels
from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.errors import InputError
from tests.commands import refused
from tests.jobs import adapter, job_config, resnet, vit, write_job
from tests.support import mostly_full, weights, write_images, write_scene_pairs

CPU = World(0, 1, torch.device("cpu"))
TRUNK = [resnet("x", "layer2", in_format="img", out_format="img", frozen="statistics"), adapter(16, 8)]
KINDS = ("classification", "segmentation", "depth")
HEADS = {"classification": "ClassifierHead", "segmentation": "SegmentationHead", "depth": "DepthHead"}
RATE = 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An image folder, and one of images with masks and depth maps."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "images", train=4)
    write_scene_pairs(folder / "scenes")
    return folder


def tail(head):
    """The end of a ViT, and a head."""
    piece = vit("blocks.1", "norm", in_format=["bert", 16], out_format="bert")
    return {"Assembly": {"parts": [piece, head]}}


def job(data, *heads, kinds=KINDS, **train):
    """A job with a head for each kind of task on one trunk."""
    names = {"classification": "images"}
    tasks = [{"dataset": str(data / names.get(kind, "scenes")), "task": kind} for kind in kinds]
    train = {"optimizer": "SGD", "optimizer_args": {"lr": RATE}, "epochs": 1, **train}
    config = job_config(data, tasks=tasks, **train)
    how = {"image_size": 32} | ({"random_resize_scale": [1, 1]} if "classification" in kinds else {})
    config["train_config"] |= {"dataset": None, "data_preprocessing": how}
    heads = heads or [HEADS[kind] for kind in kinds]
    last = {"ParallelPart": {"agg": "none", "parts": [*heads]}}
    return config | {"head": None, "assembly": [*TRUNK, last], "save_checkpoints": True}


def run(config, folder, *flags):
    """Run a job and give its result."""
    path = write_job(folder, config, f"{len([*folder.iterdir()])}.yml")
    out = folder / path.stem
    assert main(["job", "-c", str(path), "-o", str(out), "--no-pretrained", *map(str, flags)]) == 0
    return out, pd.read_pickle(out / "result.pkl")


def outputs(network, images, *, tails):
    """What the network gives, by its modules alone: the conversions between them are written anew."""
    found, features = [], network.parts[1](network.parts[0](images))
    for number, head in enumerate(network.parts[2].parts):
        x = features
        if tails and number < 2:
            tokens = x.flatten(2).transpose(1, 2)
            slice_, head = head.parts
            tokens = slice_(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1))
            places = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
            x = torch.cat([places, tokens[:, 0, :, None, None].expand_as(places)], dim=1)
        if number == 0:
            found.append(F.linear(x.mean((2, 3)), head.linear.weight, head.linear.bias))
        else:
            conv = torch.einsum("bchw,oc->bohw", x, head.conv.weight[..., 0, 0]) + head.conv.bias[:, None, None]
            found.append(conv if number == 1 else conv.clamp(min=0) + 1e-3)
    return found


def losses(network, images, labels, *, tails):
    """The losses of classification, segmentation and, warm as in the first steps, depth."""
    rows = [out[part] for out, part in zip(outputs(network, images, tails=tails), parts_of(labels), strict=True)]
    large = [F.interpolate(out, size=(32, 32), mode="bilinear") for out in rows[1:]]
    known = labels[1] != 255
    chosen = large[0].log_softmax(1).gather(1, labels[1].where(known, 0)[:, None])[:, 0]
    ratio = (large[1][:, 0] + 1e-3).log() - (labels[2] + 1e-3).log()
    depth = 0.15**0.5 * ratio[labels[2] > 0].mean().abs()
    return [F.cross_entropy(rows[0], labels[0]), -(chosen * known).sum() / known.numel(), depth], ratio


def parts_of(labels):
    """The places of each task's images in a batch."""
    return [slice(start, end) for start, end in pairwise(np.cumsum([0, *map(len, labels)]))]


def rebuilt(out, checkpoint):
    """The network of a job with its weights of then, and the batches of its data."""
    config = JobConfig.load(out / "config.yml")
    data = open_data(config, CPU)
    counts = [len(each.classes) for each in data]
    network = build_network(config.network, num_classes=config.wanted(counts), input_size=(3, 32, 32), pretrained=False)
    network.load_state_dict(weights(out / checkpoint))
    return network, data


@pytest.mark.parametrize("tails", mostly_full([False, True], quick=[True]))
def test_a_step_of_three_tasks_on_one_trunk_is_that_of_a_direct_computation(tails, data, tmp_path):
    heads = [tail("ClassifierHead"), tail("SegmentationHead"), "DepthHead"] if tails else []
    config = job(data, *heads, batch_size=16) | {"checkpoint_initial_model": True}
    out, result = run(config, tmp_path)
    network, opened = rebuilt(out, "model-0.pth")
    [(images, labels)] = TrainingLoader([each.train for each in opened])
    with torch.no_grad():
        (first, second, depth), ratio = losses(network.eval(), images, labels, tails=tails)
    scales = [first.item(), second.item(), torch.sqrt(ratio[labels[2] > 0].var() + depth**2).item()]
    (classes, masks, depth), _ = losses(network.train(), images, labels, tails=tails)
    total = classes / scales[0] + masks / scales[1] + depth / scales[2]
    row = result.iloc[-1]
    names = ("images", "scenes-segmentation", "scenes-depth")
    assert [row[f"{name}/Main Loss"] for name in names] == pytest.approx([classes.item(), masks.item(), depth.item()])
    assert row["Loss"] == row["Overall/Train Loss"] == pytest.approx(total.item(), rel=1e-5)
    saved = torch.load(out / "checkpoint.pth", weights_only=True)
    assert saved["loss_scales"] == pytest.approx(scales, rel=1e-5)
    total.backward()
    for name, weight in network.named_parameters():
        step = 0 if weight.grad is None or name.startswith("parts.0.") else RATE * weight.grad
        torch.testing.assert_close(saved["state_dict"][name], (weight - step).detach(), rtol=1e-4, atol=1e-6)
    assert all(weight.grad.abs().max() > 0 for weight in network.parts[1].parameters()), "all tasks train it"


@torch.no_grad()
def confusion(network, pairs, choose):
    """How many known pixels of each class, in rows, are taken for each class, in columns."""
    hits = np.zeros((4, 4))
    for image, mask in pairs:
        logits = F.interpolate(choose(network(image[None])), size=(32, 32), mode="bilinear")[0]
        np.add.at(hits, (mask.clamp(max=3).flatten(), logits.argmax(0).flatten()), 1)
    return hits[:3, :3]


def mean_iou(hits):
    """Over the classes that occur."""
    union = hits.sum(0) + hits.sum(1) - hits.diagonal()
    return (hits.diagonal() / union)[union > 0].mean()


def test_metrics_are_those_of_a_direct_computation(data, tmp_path):
    config = job(data)
    config["metrics"] = [{"metric_fn": "topk_accuracy", "metric_fn_args": {"topk": [1, 2]}}]
    config["train_config"]["tasks"][2]["metrics"] = [{"metric_fn": "rmse"}, {"metric_fn": "abs_rel"}]
    out, result = run(config, tmp_path)
    assert [*result.columns[:4]] == ["Epoch", "Step", "LR", "Loss"]
    assert {*planned_columns(JobConfig.load(out / "config.yml"))} - {"GPU Mem"} == {*result.columns}
    assert [name for name in result.columns if "/Test " in name] == [
        *(f"Overall/images/Test Top-{k} Accuracy" for k in (1, 2)),
        *(f"Overall/scenes-segmentation/Test {name}" for name in ("mIoU", "Pixel Accuracy")),
        *(f"Overall/scenes-depth/Test {name}" for name in ("RMSE", "AbsRel")),
    ]
    network, opened = rebuilt(out, "checkpoint.pth")
    network.eval()
    row, each = result.iloc[-1], []
    hits = confusion(network, opened[1].test.dataset, lambda outputs: outputs[1])
    with torch.no_grad():
        for image, truth in opened[2].test.dataset:
            found, known = F.interpolate(network(image[None])[2], size=(32, 32), mode="bilinear")[0, 0], truth > 0
            error = (found - truth)[known].double()
            each.append([error.square().mean().sqrt(), (error.abs() / truth[known]).mean()])
    assert row["Overall/scenes-segmentation/Test mIoU"] == pytest.approx(mean_iou(hits))
    assert row["Overall/scenes-segmentation/Test Pixel Accuracy"] == pytest.approx(hits.trace() / hits.sum())
    assert [row[f"Overall/scenes-depth/Test {name}"] for name in ("RMSE", "AbsRel")] == pytest.approx(
        np.mean(each, axis=0), rel=1e-5
    )
    again = run(config | {"load_from": str(out / "checkpoint.pth")}, tmp_path, "--test-only")[1].iloc[-1]
    tests = [name for name in result.columns if "/Test " in name]
    assert again[tests].tolist() == pytest.approx(row[tests].tolist())


def test_law_7_windows_of_a_job_run_in_portions(data):
    """Not all of a batch of images at once; the figures are the same."""
    config = job(data, kinds=("depth",), batch_size=4)
    config["train_config"]["data_preprocessing"]["image_size"] = 16  # nine windows in an image
    config = JobConfig.parse(config)
    (opened,), figures = open_data(config, CPU), []
    head = torch.nn.Conv2d(3, 1, 3, padding=1)
    for portion in (4, 1000):
        sizes, opened.test.batch_size = [], portion
        head.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.append(len(given[0])))
        run = (head, lambda x: {None: head(x)}, lambda: None)
        figures += _of_pixels(opened, {(None, "RMSE"): "rmse"}, CPU, nullcontext, *run)[0]
        assert max(sizes) == min(portion, 9 * len(opened.test.own))
    assert figures[0] == pytest.approx(figures[1])


@pytest.mark.full  # tasks of classification do, in the tests of jobs; the loader of pairs, in those of dense training
def test_law_8_dense_tasks_resume_bitwise_within_an_epoch(data, tmp_path):
    config = job(data, tail("ClassifierHead"), tail("SegmentationHead"), "DepthHead", batch_size=4, epochs=2)
    config["train_config"] |= {"data_augmentation": "default"}
    config["train_config"]["tasks"][1]["aux_losses"] = [{"output": "parts.2.parts.1", "weight": 0.5}]  # of the output
    out, whole = run(config, tmp_path, "--checkpoint-interval", "3")
    main_loss, aux_loss = (whole[f"scenes-segmentation/{name}"].iloc[1:] for name in ("Main Loss", "Aux Loss 1"))
    assert aux_loss.tolist() == pytest.approx((main_loss / 2).tolist())
    previous = out / "previous.pth"
    assert torch.load(previous, weights_only=True)["within"]["ranks"][0]["position"]["done"] == 3
    again, resumed = run(config, tmp_path, "--resume-from", previous)
    one, two = (torch.load(place / "checkpoint.pth", weights_only=True) for place in (out, again))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    same = [name for name in whole.columns if not name.startswith(("Time", "Proc"))]
    pd.testing.assert_frame_equal(whole[same], resumed[same])


def test_one_head_and_one_dense_data_set(data, tmp_path):
    config = job(data, kinds=("segmentation",), epochs=8, batch_size=4) | {"head": {"SegmentationHead": {}}}
    config["train_config"] |= {"optimizer": "AdamW", "optimizer_args": {"lr": 0.02}}
    _, result = run(config | {"assembly": TRUNK}, tmp_path)
    assert result["Overall/scenes-segmentation/Test Pixel Accuracy"].iloc[-1] > 0.6, "it learns; chance is a third"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "pose"}, "tasks[0].task"),
        ({"loss_fn": "nll_loss"}, "tasks[0].loss_fn is for classification; segmentation has its own loss"),
        ({"metrics": [{"metric_fn": "mIoU"}]}, "metrics[0].metric_fn: unknown metric of segmentation 'mIoU'; did you"),
        ({"metrics": [{"metric_fn": "rmse"}]}, "unknown metric of segmentation 'rmse'"),
        ({"task": "classification", "metrics": [{"metric_fn": "miou"}]}, "is miou, a figure of segmentation; list it"),
        ({"task": "depth"}, "depths are positive, and the logits of a SegmentationHead are not; end with a DepthHead"),
        ({"dataset": "nowhere"}, "nowhere"),
        ({"num_classes": 4}, "the network outputs 3 channels, but the data have 4 classes; end it with a Segmentation"),
        ({"max_depth": 5}, "tasks[0].max_depth is for depth, and has no effect on segmentation; remove it"),
        (
            {"task": "depth", "num_classes": 3},
            "tasks[0].num_classes is for classification and segmentation, and has no",
        ),
        ({"val_num_samples": 3}, "tasks[0].val_num_samples is for classification, and has no effect on segmentation"),
        (
            {"data_preprocessing": {"image_size": 32, "interpolation": "bilinear"}},
            "tasks[0].data_preprocessing.interpolation is for classification, and has no effect on segmentation",
        ),
        ({"num_classes": 2}, "png' has the class number 2; the data set has 2 classes, numbered from 0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_dense_task_is_one_line(change, words, data, tmp_path, capsys):
    config = job(data, {"SegmentationHead": {"num_classes": 3}}, kinds=("segmentation",))
    config["train_config"]["tasks"][0] |= change
    line = refused(capsys, "job", "-c", write_job(tmp_path, config), "-o", tmp_path / "out", "--no-pretrained")
    assert words in line


def test_more_outputs_than_classes(data, tmp_path, capsys):
    config = job(data, {"SegmentationHead": {"num_classes": 4}}, kinds=("segmentation",))
    config["train_config"]["tasks"][0]["num_classes"] = 3
    line = refused(capsys, "job", "-c", write_job(tmp_path, config), "-o", tmp_path / "out", "--no-pretrained")
    assert "returns [4, 4, 4] per image, but data set 'scenes-segmentation' has 3 classes; end" in line


def test_depths_that_are_all_too_far_are_no_figures(data, tmp_path, capsys):
    config = job(data, "DepthHead", kinds=("depth",))
    config["train_config"]["tasks"][0] |= {"max_depth": 0.5}
    line = refused(capsys, "job", "-c", write_job(tmp_path, config), "-o", tmp_path / "out", "--no-pretrained")
    assert "no pixel of 5 images has a depth from 0.001 to 0.5 m; check the unit of the depth maps" in line


def test_a_job_that_diverges_is_told_how_to_go_on(data, tmp_path, capsys):
    """The only step of the epoch has a finite loss. A test of such weights has other advice than a training."""
    said = "the outputs of the network for 'scenes-segmentation' are not finite; "
    config = job(data, "SegmentationHead", kinds=("segmentation",), batch_size=16)
    diverging = config | {"train_config": config["train_config"] | {"optimizer_args": {"lr": 1e38}}}
    line = refused(capsys, "job", "-c", write_job(tmp_path, diverging), "-o", tmp_path / "out", "--no-pretrained")
    assert f"{said}stopped. Lower --lr, or set or lower train_config.max_grad_norm" in line
    path = run(config, tmp_path)[0] / "checkpoint.pth"
    saved = torch.load(path, weights_only=True)
    for name, weight in saved["state_dict"].items():
        if not name.startswith("parts.0") and weight.is_floating_point():
            weight.fill_(3e38)  # files with weights that are not finite are refused
    torch.save(saved, path)
    test = write_job(tmp_path, config | {"load_from": str(path)}, "test.yml")
    line = refused(capsys, "job", "-c", test, "-o", tmp_path / "tested", "--no-pretrained", "--test-only")
    assert f"{said}the weights may have diverged, so evaluate those of an earlier epoch" in line


def test_depths_need_a_head_whose_outputs_are_positive(data, tmp_path, capsys):
    """The loss takes their logarithm. Of a head that is known, the plan says it; of others, a run on blank images."""
    two = job(data, "SegmentationHead", "SegmentationHead", kinds=KINDS[1:])
    for flags in ([], ["--dry-run"]):
        path = write_job(tmp_path, two)
        line = refused(capsys, "job", "-c", path, "-o", tmp_path / "out", "--no-pretrained", *flags)
        assert "depths are positive, and the logits of a SegmentationHead are not; end with a DepthHead" in line
    negative = {"Assembly": {"parts": ["DepthHead", {"Function": {"name": "neg"}}]}}
    path = write_job(tmp_path, job(data, negative, kinds=["depth"]))
    line = refused(capsys, "job", "-c", path, "-o", tmp_path / "out", "--no-pretrained")
    assert "returns depths down to -" in line
    assert "'scenes-depth' needs positive ones; end it with a DepthHead" in line


def test_each_task_needs_a_head_of_its_kind(data, tmp_path, capsys):
    for heads, words in (
        (["SegmentationHead", "ClassifierHead"], "the last part returns [1, 4, 4], not a vector of logits"),
        (["ClassifierHead", "ClassifierHead"], "not a map; end with a SegmentationHead or a DepthHead"),
        (["ClassifierHead"] * 3, "the network has 3 outputs for 2 data sets"),
    ):
        config = job(data, *heads, kinds=KINDS[:2])
        line = refused(capsys, "job", "-c", write_job(tmp_path, config), "-o", tmp_path / "out", "--no-pretrained")
        assert words in line


def test_transforms_of_a_list_would_not_change_masks(data):
    config = job(data)
    config["train_config"]["tasks"][1]["data_augmentation"] = ["RandomHorizontalFlip"]
    with pytest.raises(InputError, match=r"tasks\[1\].data_augmentation is a list, whose transforms would not change"):
        JobConfig.parse(yaml.safe_load(yaml.safe_dump(config)))


def test_a_bad_pair_is_found_when_the_data_are_opened(data, tmp_path):
    scenes = shutil.copytree(data / "scenes", tmp_path / "scenes")
    Image.new("L", (32, 20)).save(scenes / "validation/masks/4.png")
    config = job(tmp_path, kinds=("segmentation",))
    with pytest.raises(
        InputError, match=r"^train_config.tasks\[0\].dataset: image .* has 32 x 32 pixels, but its mask"
    ):
        open_data(JobConfig.parse(config), CPU)
    Image.new("L", (32, 32), 77).save(scenes / "validation/masks/4.png")
    with pytest.raises(InputError, match=r"^train_config.tasks\[0\].dataset: mask .*4\.png' has the class number 77"):
        open_data(JobConfig.parse(config), CPU)


def test_tasks_share_settings_that_one_of_them_uses(data):
    """Of the training, such as how images of classes are resized; unless none does."""
    config = job(data)
    config["train_config"] |= {"max_depth": 5, "train_num_samples": 9}
    depth = JobConfig.parse(config).train_config.resolved_tasks[2]
    assert (depth.max_depth, depth.data_preprocessing.random_resize_scale) == (5, (1, 1))
    config["train_config"]["tasks"].pop(0)
    for key in ("train_num_samples", "data_preprocessing.random_resize_scale"):
        with pytest.raises(InputError, match=rf"^train_config.{key} is for classification, and has no effect on segm"):
            JobConfig.parse(config)
        config["train_config"].pop("train_num_samples", None)


@pytest.mark.full  # the plan and the report of a cross are quick in the tests of sweeps
def test_heads_of_both_kinds_on_the_encoders_of_both(data, tmp_path):
    """Each cell is what its two halves give together. The jobs run here, because processes take long to start."""
    trained = {}
    for kind in KINDS[:2]:
        learning = {"optimizer": "AdamW", "optimizer_args": {"lr": 0.02}, "batch_size": 4, "epochs": 6}
        config = job(data, kinds=[kind], **learning) | {"assembly": TRUNK, "head": {HEADS[kind]: {}}}
        trained[kind] = run(config, tmp_path)
    (one, classes), (two, masks) = trained.values()
    path = write_job(tmp_path, {"ft_configs": [str(place / "config.yml") for place in (one, two)]}, "cross.yml")
    sweep = load_sweep(path, pretrained=False)
    for each in write_folders(sweep.jobs, tmp_path / "cross", sweep.seeds):
        each._run(is_primary=True)
    assert main(["sweep", "--report", str(tmp_path / "cross")]) == 0
    assert (tmp_path / "cross/cross-heatmap.png").stat().st_size > 10_000
    assert not [*(tmp_path / "cross").glob("*curves*")], "nothing was trained"
    table = pd.read_csv(tmp_path / "cross/summary.csv")
    cells = table.pivot(index="head_dataset", columns="encoder_dataset", values=["test_accuracy", "test_miou"])
    names, heads = ["base", "images", "scenes-segmentation"], ["images", "scenes-segmentation"]
    assert cells["test_accuracy"].notna().to_numpy().tolist() == [[True] * 3, [False] * 3]
    assert cells["test_miou"].notna().to_numpy().tolist() == [[False] * 3, [True] * 3]
    assert [[*cells["test_accuracy"]], [*cells.index]] == [names, heads]
    assert cells.loc["images", "test_accuracy"].nunique() > 1
    assert cells.loc["scenes-segmentation", "test_miou"].nunique() == 3, "encoders differ"
    own = 100 * classes["Overall/images/Test Accuracy"].iloc[-1]
    assert cells.loc["images", ("test_accuracy", "images")] == pytest.approx(own)
    own = 100 * masks["Overall/scenes-segmentation/Test mIoU"].iloc[-1]
    assert cells.loc["scenes-segmentation", ("test_miou", "scenes-segmentation")] == pytest.approx(own)
    network, [opened] = rebuilt(two, "checkpoint.pth")
    state = weights(one / "checkpoint.pth")
    network.load_state_dict({key: value for key, value in state.items() if "head." not in key}, strict=False)
    hits = confusion(network.eval(), opened.test.dataset, lambda outputs: outputs)
    assert cells.loc["scenes-segmentation", ("test_miou", "images")] == pytest.approx(100 * mean_iou(hits))
