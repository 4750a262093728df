"""Batch-norm statistics of single routes: found by an evaluation, kept beside its ledger, used by all that open it."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import stitchkit
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.recalibrate import best, candidates, num_images, penalties, renewed
from stitchkit.measure.statistics_file import read_statistics, statistics_file
from stitchkit.model.statistics import weights_digest
from stitchkit.ship.trained_snnet import open_trained, sample_images
from tests.support import FAMILIES, FLAGS, family_snnet, headless, pico_images, write_config

LABELS = torch.arange(4).repeat_interleave(5)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A folder with the checkpoint of pico ResNets, a ledger whose statistics are all renewed, and the command."""
    folder = tmp_path_factory.mktemp("statistics")
    config = write_config(folder / "resnet.json", anchors=FAMILIES["resnet"]["anchors"])
    command = ["train", str(images), "--stitch_config", str(config), *FLAGS, "--output", str(folder)]
    assert main([*command, "--epochs", "1"]) == 0
    command += ["--eval", "--resume", str(folder / "resnet/last.pth.tar")]
    assert main([*command, "--recalibrate-bn", "2"]) == 0
    return folder, config, command


def opened(run):
    """The network in Python, the prepared validation images, and the losses in its ledger."""
    folder, config, command = run
    model = stitchkit.create_snnet(config).eval()
    stitchkit.load_checkpoint(model, folder / "resnet/last.pth.tar")
    settings = {"stitch_config": str(config), "resume": command[-1], "data_dir": command[1]}
    x, _ = sample_images(open_trained(settings), 20)
    return model, x, {row["cfg_id"]: row["loss"] for row in read_rows(folder / "resnet/stitches_res.txt")}


def losses(run_stitch, x, cfg_ids):
    with torch.inference_mode():
        return {
            cfg_id: pytest.approx(cross_entropy(run_stitch(cfg_id)(x), LABELS).item(), rel=1e-4) for cfg_id in cfg_ids
        }


def test_law_12_networks_in_python_have_the_figures_of_their_ledger(run):
    model, x, ledger = opened(run)
    assert ledger == losses(model.extract, x, ledger)
    assert ledger == losses(lambda cfg_id: lambda x: model(x, cfg_id), x, ledger)
    every = model.forward_all(x)
    assert ledger == losses(lambda cfg_id: lambda _: every[cfg_id], x, ledger)
    model.drop_statistics()
    assert ledger[3] != losses(model.extract, x, [3])[3], "the shared statistics are others"


def test_law_12_so_has_a_budgeted_model(run):
    model, x, _ = opened(run)
    model.drop_statistics()
    budgeted = stitchkit.BudgetedModel(model, run[0] / "resnet/stitches_res.txt")
    for row in budgeted.rows:
        assert cross_entropy(budgeted.model(x, row["cfg_id"]), LABELS).item() == pytest.approx(row["loss"], rel=1e-4)


def test_law_12_so_has_a_folder_of_the_hub(run, tmp_path):
    folder, config, command = run
    _, x, ledger = opened(run)
    model = stitchkit.HubSNNet.from_run(stitch_config=str(config), resume=command[-1])
    by_settings = stitchkit.HubSNNet.from_run(config=str(folder / "resnet/eval_args.yaml"))
    assert {*by_settings.statistics} == {*model.statistics} == {2, 3, 4, 5, 6}
    model.ledger = read_rows(folder / "resnet/stitches_res.txt")
    model.save_pretrained(tmp_path / "hub")
    again = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub").eval()
    assert ledger == losses(again.extract, x, ledger)
    assert "stitches_res.statistics.safetensors" in (tmp_path / "hub/README.md").read_text()


@pytest.mark.full
def test_law_12_so_has_an_exported_file_which_needs_no_images(run, tmp_path):
    folder, config, command = run
    _, x, _ = opened(run)
    flags = ["--stitch_config", str(config), "--resume", command[-1], "-o", str(tmp_path / "net.safetensors")]
    best_row = max(read_rows(folder / "resnet/stitches_res.txt"), key=lambda row: (row["acc1"], -row["flops"]))
    assert main(["export", *flags, "--ledger", str(folder / "resnet/stitches_res.txt")]) == 0
    net = stitchkit.load_stitch(tmp_path / "net.safetensors")
    assert net.about["cfg_id"] == best_row["cfg_id"]
    assert losses(lambda _: net, x, [0])[0] == best_row["loss"]


def test_a_ledger_without_its_statistics_is_refused(run, tmp_path, capsys):
    folder, config, command = run
    for name in ("stitches_res.txt", "stitches_res.yaml"):
        (tmp_path / name).write_bytes((folder / "resnet" / name).read_bytes())
    ledger = tmp_path / "stitches_res.txt"
    flags = ["--stitch_config", str(config), "--resume", command[-1], "--ledger", str(ledger)]
    assert main(["export", *flags, "-o", str(tmp_path / "net.onnx")]) == 2
    assert f"but '{statistics_file(ledger)}' does not exist; copy it" in capsys.readouterr().err


def test_without_statistics_there_is_one_warning(run, tmp_path):
    folder, config, _ = run
    checkpoint = tmp_path / "last.pth.tar"
    checkpoint.write_bytes((folder / "resnet/last.pth.tar").read_bytes())
    model, x = stitchkit.create_snnet(config).eval(), pico_images(4, 64)
    stitchkit.load_checkpoint(model, checkpoint)
    model(x, 0)
    with pytest.warns(UserWarning, match=r"call stitchkit\.recalibrate\(model, images\)"):
        model.extract(3)
    model(x, 4)
    stitchkit.load_checkpoint(model, checkpoint, ledger=folder / "resnet/stitches_res.txt")
    model(x, 3)


def test_law_12_statistics_of_another_evaluation_are_left_aside(run, tmp_path):
    folder, *_ = run
    model, *_ = opened(run)
    assert model.statistics
    for name in ("stitches_res.txt", "stitches_res.yaml", "stitches_res.statistics.safetensors"):
        (tmp_path / name).write_bytes((folder / "resnet" / name).read_bytes())
    origin, ledger = tmp_path / "stitches_res.yaml", tmp_path / "stitches_res.txt"
    origin.write_text(origin.read_text().replace("seed: 42", "seed: 7"))
    assert read_statistics(statistics_file(ledger), model) is not None, "they are of the same weights"
    budgeted = stitchkit.BudgetedModel(model, ledger)
    assert not model.statistics, "those of the ledger beside the checkpoint do not give these figures"
    with pytest.warns(UserWarning, match="batch-norm statistics that all routes shared"):
        budgeted.model(pico_images(2, 64), 3)


def test_every_way_to_run_without_statistics_warns():
    weights, x = family_snnet("resnet").state_dict(), pico_images(2, 64)
    ways = [lambda model: model.extract(3), lambda model: model(x, 3), lambda model: model.forward_all(x)]
    for run_stitch in ways:
        model = family_snnet("resnet")
        model.load_state_dict(weights)
        with pytest.warns(UserWarning, match=r"call stitchkit\.recalibrate\(model, images\)"):
            run_stitch(model)
        run_stitch(model)


def test_statistics_end_where_an_optimizer_changes_the_weights():
    model, x = family_snnet("resnet"), pico_images(4, 64)
    model.statistics = dict(renewed(model, [3], [x]))
    twin = copy.deepcopy(model)
    model(x, 3).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.warns(UserWarning, match="batch-norm statistics that all routes shared"):
        model.extract(3)
    assert not model.statistics
    assert twin.statistics, "its weights are as they were"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_network_of_half_precision_knows_its_statistics(run, dtype):
    folder, config, _ = run
    model = stitchkit.create_snnet(config).to(dtype)
    stitchkit.load_checkpoint(model, folder / "resnet/last.pth.tar")
    assert {value.dtype for value in model.statistics[3].values()} == {dtype}
    model.eval()(pico_images(2, 64).to(dtype), 3)


def test_images_that_do_not_fit_leave_a_network_as_it_is():
    model = family_snnet("resnet")
    model.statistics = dict(renewed(model, [3], [pico_images(4, 64)]))
    norms = [norm for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    before = [(norm.momentum, norm.training) for norm in norms]
    model.lacks_statistics = True
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        stitchkit.recalibrate(model, torch.zeros(8, 4, 64, 64))
    assert [(norm.momentum, norm.training) for norm in norms] == before
    assert model.has_statistics(3)
    assert model.lacks_statistics, "the other routes still deserve the warning"


@pytest.mark.parametrize(
    "changes", [{"recipe": {"recalibrate_bn": 0}}, {"frozen_anchors": True}, {"preserve": "frozen"}]
)
def test_published_results_and_frozen_anchors_need_none(changes, tmp_path):
    recipe = {"recipe": changes["recipe"]} if "recipe" in changes else {}
    model = stitchkit.create_snnet({"anchors": FAMILIES["resnet"]["anchors"], **recipe}).eval()
    torch.save({"state_dict": model.state_dict(), **changes}, tmp_path / "last.pth.tar")
    stitchkit.load_checkpoint(model, tmp_path / "last.pth.tar")
    model(pico_images(2, 64), 3)


def test_statistics_follow_the_network_and_go_with_its_weights():
    model, x = family_snnet("resnet"), pico_images(8, 64)
    own = renewed(model, [3], [x])
    model.statistics = dict(own)
    twin, before = copy.deepcopy(model).double(), model.state_dict()
    assert torch.allclose(twin(x.double(), 3).float(), model(x, 3), atol=1e-3)
    assert not torch.allclose(model(x, 3), model(x, 4))
    assert weights_digest(before) == weights_digest(copy.deepcopy(before))
    model.load_state_dict(before)
    assert not model.statistics
    twin.train()
    assert not twin.statistics


def test_a_damaged_file_is_refused_and_one_of_other_weights_left_aside(run, tmp_path):
    model, *_ = opened(run)
    path = statistics_file(run[0] / "resnet/stitches_res.txt")
    kept = read_statistics(path, model)
    assert sorted(kept) == [2, 3, 4, 5, 6]
    assert read_statistics(path, family_snnet("resnet")) is None
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-8])
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    name = next(name for name in tensors if name.endswith("running_var"))
    save_file({**tensors, name: -tensors[name]}, tmp_path / "negative", about)
    save_file({**tensors, name: tensors[name][:1]}, tmp_path / "short", about)
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "gap", about)
    for file in ("cut", "negative", "short", "gap"):
        with pytest.raises(InputError, match="has the batch-norm statistics of stitches, cannot be read"):
            read_statistics(tmp_path / file, model)


def test_neither_batch_size_decides(run):
    """Images are shared out in portions of their own, whether statistics compete or are all renewed."""
    folder, _, command = run
    some = [*command, "--eval-stitches", "3,6"]
    assert main([*some, "--experiment", "eight"]) == 0
    assert main([*some, "-b", "4", "-vb", "5", "--experiment", "five"]) == 0
    assert main([*some, "--recalibrate-bn", "2", "-vb", "1", "--experiment", "one"]) == 0
    for name, other in (("five", "eight"), ("one", "resnet")):
        rows, every = (read_rows(folder / each / "stitches_res.txt") for each in (name, other))
        first = [row for row in every if row["cfg_id"] in (3, 6)]
        assert [row["acc1"] for row in rows] == [row["acc1"] for row in first]
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in first], rel=1e-4)
        assert [row.get("bn_loss") for row in rows] == [row.get("bn_loss") for row in first]


def test_batches_of_one_image_suit_a_norm_after_pooling(images, tmp_path):
    config = write_config(tmp_path / "levit.json", anchors=FAMILIES["levit"]["anchors"])
    torch.save({"state_dict": family_snnet("levit").state_dict()}, tmp_path / "levit.pth")
    flags = ["--eval", "--resume", str(tmp_path / "levit.pth"), "-vb", "1", "--output", str(tmp_path)]
    assert main(["train", str(images), "--stitch_config", str(config), *FLAGS, *flags, "--eval-stitches", "2"]) == 0
    assert read_rows(tmp_path / "levit/stitches_res.txt")[0]["bn"] in ("given", "blended", "renewed")


def test_images_are_shared_out_in_whole_portions():
    assert num_images(64, None) == (32, 32)
    assert num_images(5000, None) == (320, 320)
    assert num_images(5000, 3) == (96, 0)
    assert num_images(65, 3) == (64, 0), "one image alone would count like 32"
    assert num_images(5, None) == (2, 3)
    with pytest.raises(InputError, match="need at least 4 training images, not 3"):
        num_images(3, None)


def test_the_best_statistics_win_and_given_ones_a_tie():
    model, x = family_snnet("resnet"), pico_images(16, 64)
    labels = torch.arange(16) % 4
    tried = candidates(model, renewed(model, [2, 3], [x]))
    found, figure = penalties(model, tried, [(x[:8], labels[:8]), (x[8:], labels[8:])])
    assert figure == "bn_loss"
    for cfg_id in (2, 3):
        for kind, statistics in tried[cfg_id].items():
            model.statistics = {cfg_id: statistics}
            assert found[cfg_id, kind] == pytest.approx(cross_entropy(model(x, cfg_id), labels).item(), rel=1e-4)
    chosen = best(tried, found, figure)
    assert all(
        chosen[cfg_id].figures["bn_loss"] == min(found[cfg_id, kind] for kind in tried[cfg_id]) for cfg_id in (2, 3)
    )
    tie = best(tried, dict.fromkeys(found, 1.0), figure)
    assert all(each.figures["bn"] == "given" and not each.statistics and not each.is_worse for each in tie.values())


@pytest.mark.parametrize("config", [FAMILIES["resnet"], headless(FAMILIES["resnet"])], ids=["classes", "features"])
def test_without_labels_agreement_with_the_end_decides(config):
    torch.manual_seed(0)
    model, x = stitchkit.create_snnet(config).eval(), pico_images(16, 64)
    tried = candidates(model, renewed(model, [2], [x]))
    found, figure = penalties(model, tried, [(x, torch.full((16,), -1))])
    assert figure == "bn_agreement"
    assert all(-100.001 <= penalty <= 100 for penalty in found.values())


def test_recalibrate_gives_a_network_what_its_images_say():
    model, x = family_snnet("resnet"), pico_images(32, 64)
    weights = weights_digest(model.state_dict())
    kinds = stitchkit.recalibrate(model, [x[:20], x[20:]], torch.arange(32) % 4)
    assert {*kinds} == {2, 3, 4, 5, 6} == {*model.statistics}
    assert all((kind == "given") != model.has_statistics(cfg_id) for cfg_id, kind in kinds.items())
    assert weights_digest(model.state_dict()) == weights
    assert model.training is False
    with pytest.raises(InputError, match="there are 3 labels for 32 images"):
        stitchkit.recalibrate(model, x, torch.zeros(3))


def test_frozen_anchors_keep_their_statistics(images, tmp_path):
    config = write_config(tmp_path / "resnet.json", anchors=FAMILIES["resnet"]["anchors"])
    command = ["train", str(images), "--stitch_config", str(config), *FLAGS, "--output", str(tmp_path)]
    assert main([*command, "--epochs", "1", "--preserve", "frozen"]) == 0
    checkpoint = str(tmp_path / "resnet/last.pth.tar")
    command[1] = str(tmp_path / "without training images")
    Path(command[1]).mkdir()
    (Path(command[1]) / "validation").symlink_to(images / "validation")
    assert main([*command, "--eval", "--resume", checkpoint, "--eval-stitches", "3"]) == 0
    assert not any("bn" in row for row in read_rows(tmp_path / "resnet/stitches_res.txt"))
    assert not (tmp_path / "resnet/stitches_res.statistics.safetensors").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = stitchkit.create_snnet(config).eval()
        stitchkit.load_checkpoint(model, checkpoint)
        model.extract(3)


def test_an_evaluation_in_parts_keeps_the_statistics_of_all(run):
    folder, config, command = run
    for stitches in ("0,4", "3"):
        assert main([*command, "--recalibrate-bn", "2", "--experiment", "parts", "--eval-stitches", stitches]) == 0
    model = stitchkit.create_snnet(config).eval()
    stitchkit.load_checkpoint(model, command[-1], ledger=folder / "parts/stitches_res.txt")
    assert sorted(model.statistics) == [3, 4]
