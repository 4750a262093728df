"""Law 9, the two-rank law, with real processes: two ranks equal one with twice the batch; every image counts once."""

import json

import pytest
import torch

from stitchkit.measure.ledger import read_rows
from tests.support import FLAGS, launch, weights, write_config, write_images

# Nothing random in the data, one stitch for all ranks, an optimizer that shows every error of a gradient.
EXACT = ["--no-aug", "--smoothing", "0", "--sampling", "shared", "--opt", "sgd", "--lr", "0.05", "--sched", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "pico.json", nearest_stitching=False)


def train(ranks, images, config, folder, *flags):
    result = launch(ranks, images, "--stitch_config", config, *FLAGS, *EXACT, "--output", folder, *flags)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize("flags", [(), ("--grad-accum-steps", "2")], ids=["plain", "accumulated"])
def test_law_9_two_ranks_equal_one_with_twice_the_batch(flags, images, config, folder):
    name = "accumulated" if flags else "plain"
    train(1, images, config, folder, "-b", "16", "--experiment", f"one-{name}", *flags)
    train(2, images, config, folder, "-b", "8", "--experiment", f"two-{name}", *flags)
    one, two = (weights(folder / f"{count}-{name}" / "last.pth.tar") for count in ("one", "two"))
    start = max((one[key] - torch.zeros(())).abs().max() for key in one)
    assert start > 0
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_law_9_evaluation_counts_each_image_once(config, folder, tmp_path):
    """An odd number of images, which the ranks cannot share evenly, and more ranks than the last batch has images."""
    images = write_images(tmp_path / "odd", train=16, validation=4, classes=4)
    (images / "validation/class0/extra.png").write_bytes((images / "validation/class1/0.png").read_bytes())
    train(1, images, config, folder, "--experiment", "odd", "--epochs", "1")
    rows = {}
    for ranks in (1, 2):
        arguments = ["--stitch_config", config, "--device", "cpu", "-j", "0", "-b", "3", "--eval"]
        arguments += ["--resume", folder / "odd/last.pth.tar", "--output", folder, "--experiment", f"eval{ranks}"]
        result = launch(ranks, images, *arguments)
        assert result.returncode == 0, result.stderr
        rows[ranks] = read_rows(folder / f"eval{ranks}" / "stitches_res.txt")
    assert len(rows[1]) == len(rows[2]) > 20
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one["images"] == two["images"] == 17
        assert one["acc1"] == two["acc1"]
        assert one["acc5"] == two["acc5"] == 100.0
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
        assert one["acc1"] * 17 / 100 == pytest.approx(round(one["acc1"] * 17 / 100))


def test_two_ranks_draw_their_own_stitches_and_stay_equal(images, config, folder):
    """The published sampling: ranks use different parameters in a step, and their weights must still agree."""
    for flags in ((), ("--amp",), ("--model-ema", "--grad-checkpointing", "--clip-grad", "1")):
        name = "own" + "".join(flags).replace("--", "-")
        train(2, images, config, folder, "--sampling", "per_rank", "--experiment", name, *flags)
        assert all(value.isfinite().all() for value in weights(folder / name / "last.pth.tar").values())
    assert "state_dict_ema" in torch.load(folder / "own-model-ema-grad-checkpointing-clip-grad1/last.pth.tar")


def test_bad_input_under_the_launcher_is_one_line_and_status_2(images, config, folder):
    result = launch(2, images, "--stitch_config", config, *FLAGS, "--output", folder, "--resume", "missing.pth")
    assert result.returncode == 2
    assert result.stderr == "stitchkit: error: checkpoint 'missing.pth' does not exist; check the path\n"
    result = launch(2, images, "--stich_config", config)
    assert result.returncode == 2
    assert "unknown flag '--stich_config'; did you mean '--stitch_config'?" in result.stderr


def test_a_wrong_number_of_processes_is_explained():
    assert launch(0).returncode == 2  # and nothing was started
    assert "usage" in launch(0).stderr


def test_the_effective_settings_are_saved_beside_the_results(images, config, folder):
    import yaml

    train(1, images, config, folder, "--experiment", "saved", "--epochs", "1")
    saved = yaml.safe_load((folder / "saved/args.yaml").read_text())
    assert (saved["sampling"], saved["epochs"], saved["stitch_config"]) == ("shared", 1, str(config))
    assert json.loads(json.dumps(saved)) == saved
