"""Nothing in a file is executed: a hostile file against every reader; and no reader that could is in the code."""

import ast
import io
import json
import math
import os
import pickle
import signal
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import stitchkit
import stitchnet
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.train import result
from stitchkit.cli import main
from stitchkit.data.dense.pairs import open_pairs
from stitchkit.data.folders import open_images
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.scenes import write_scenes
from stitchkit.data.source import Source
from stitchkit.data.timm_readers import open_timm
from stitchkit.engine.lock import is_held, locked
from stitchkit.errors import InputError
from stitchkit.files import opened, read_table
from stitchkit.measure.answers import Accuracy
from stitchkit.measure.evaluate import Unfinished
from stitchkit.measure.intervals import compared_beside
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.ledger_origin import read_origin
from stitchkit.measure.statistics_file import load_statistics
from stitchkit.networks.weights import read_checkpoint
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.report import read_ledgers
from stitchkit.training.summary import cut_summaries
from stitchnet.classifier import OutputMap
from stitchnet.compose import JudgedNetwork
from stitchnet.data import read_image
from stitchnet.journal import Journal
from stitchnet.search import Ranking
from tests.commands import refused
from tests.hostile import Hostile, hostile_yaml
from tests.jobs import job_config, write_job
from tests.source_code import FILES, name_of
from tests.support import (
    FLAGS,
    ROOT,
    mostly_full,
    pico_anchor,
    pico_config,
    pico_snnet,
    write_config,
    write_images,
    write_sweep,
)

# Calls that may run what is in a file.
UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle", "pandas.read_pickle", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "marshal.load", "marshal.loads", "dill.load"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
}


def unsafe_calls(text):
    """Calls in a program that may run what is in a file."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        is_plain = name == "torch.load" and given.get("weights_only") is not True
        if name in UNSAFE or is_plain or given.get("allow_pickle") or given.get("trust_remote_code") is True:
            yield f"line {node.lineno}: {name}"


def test_no_reader_runs_what_it_reads():
    found = [f"{path.relative_to(ROOT)}, {call}" for path in FILES for call in unsafe_calls(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "pickle.load(x)"]
)
def test_such_a_reader_would_be_found(text):
    assert len(list(unsafe_calls(text))) == 1


def test_nothing_is_downloaded_or_run_unless_asked():
    data = Recipe().data
    assert not data.dataset_download


@pytest.fixture
def made(tmp_path):
    """The folder that hostile files would make; that they would is seen at once."""
    place = tmp_path / "made"
    pickle.loads(pickle.dumps(Hostile(place)))
    assert place.exists()
    place.rmdir()
    yield place
    assert not place.exists(), "a hostile file was executed"


CHECKPOINTS = {
    "resume": ["--resume", "BAD"],
    "auto": ["--resume", "auto"],
    "weights of a run": ["--resume", "BAD", "--no-resume-opt"],
    "eval": ["--eval", "--resume", "BAD"],
    "start": ["--initial-checkpoint", "BAD"],
    "teacher": ["--distillation-type", "soft", "--teacher-model", "vit_tiny_patch16_224", "--teacher-path", "BAD"],
    "anchor": ["--stitch_config", "ANCHOR"],
    "plain model": ["--model", "vit_tiny_patch16_224", "--pretrained-path", "BAD"],
}


KINDS = [(name, kind) for name in CHECKPOINTS for kind in ("zip", "legacy", "bare")]
# All flags read through one function, which meets each kind of file.
QUICK = [(name, kind) for name, kind in KINDS if kind == "zip" or name == "start"]


@pytest.mark.parametrize(("name", "kind"), mostly_full(KINDS, quick=QUICK))
def test_hostile_checkpoints(name, kind, images, made, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    bad = folder / "last.pth.tar"
    content = {"format": "stitchkit 1", "state_dict": {}, "args": Hostile(made)}
    if kind == "bare":
        bad.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, bad, _use_new_zipfile_serialization=kind == "zip")
    config = write_config(tmp_path / "pico.json")
    anchors = [pico_anchor("ti", 8) | {"checkpoint": str(bad)}, pico_anchor("s", 16)]
    poisoned = write_config(tmp_path / "anchor.json", anchors=anchors)
    given = [{"BAD": bad, "ANCHOR": poisoned}.get(flag, flag) for flag in CHECKPOINTS[name]]
    flags = [flag for flag in FLAGS if flag != "--no-pretrained" or name not in ("anchor", "plain model")]
    experiment = "run" if name in ("resume", "auto", "eval") else "fresh"
    subject = [] if name == "plain model" else ["--stitch_config", config]
    command = ["train", images, *subject, *flags, "--output", tmp_path, "--experiment", experiment]
    assert main([*map(str, [*command, *given])]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "refused" in line or "it is truncated, or not a checkpoint" in line or "can be read" in line, line


def test_hostile_files_of_other_commands(images, made, tmp_path, capsys):
    bad, text = tmp_path / "bad.pth", tmp_path / "bad.yaml"
    torch.save({"model": {}, "args": Hostile(made)}, bad)
    text.write_text(hostile_yaml(made))
    pickled = tmp_path / "bad.pkl"
    pickled.write_bytes(pickle.dumps(Hostile(made)))
    config, job = write_config(tmp_path / "pico.json"), write_job(tmp_path, job_config(images))
    commands = [
        ["convert", bad, tmp_path / "out.safetensors", "--stitch_config", config],
        ["export", "--stitch_config", config, "--resume", bad, "--cfg_id", "0", "-o", tmp_path / "net.safetensors"],
        ["pareto", pickled],
        ["train", images, "-c", text],
        ["train", images, "-c", pickled],
        ["train", images, "--stitch_config", pickled],
        ["job", "-c", text, "-o", tmp_path / "out"],
        ["job", "-c", job, "-o", tmp_path / "out", "--no-pretrained", "--load-from", bad],
        ["job", "-c", job, "-o", tmp_path / "out", "--no-pretrained", "--resume-from", bad],
    ]
    for command in commands:
        refused(capsys, *command)


def test_hostile_files_beside_a_ledger(images, made, tmp_path, capsys):
    config = write_config(tmp_path / "pico.json")
    command = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path]
    folder, weights = tmp_path / "pico", tmp_path / "net.pth"
    folder.mkdir()
    torch.save({"state_dict": pico_snnet().state_dict()}, weights)
    evaluate = [*map(str, [*command, "--eval", "--resume", weights, "--eval-stitches", "0"])]
    for name in ("stitches_res.txt.part0", "per_class.csv"):
        (folder / name).write_bytes(pickle.dumps(Hostile(made)))
    assert main(evaluate) == 0, "sums that cannot be read are computed again"
    hits = (folder / "stitches_res.hits").read_bytes()
    (folder / "stitches_res.hits").write_bytes(pickle.dumps(Hostile(made)))
    refused(capsys, "pareto", folder / "stitches_res.txt")
    (folder / "stitches_res.hits").write_bytes(hits)
    for content in (hostile_yaml(made).encode(), pickle.dumps(Hostile(made)), b"3"):
        (folder / "stitches_res.yaml").write_bytes(content)
        assert main(evaluate) == 2
        assert "cannot be read" in capsys.readouterr().err
    (folder / "stitches_res.txt").write_bytes(pickle.dumps(Hostile(made)) + b"\n")
    assert main(evaluate) == 2


def test_hostile_files_of_dense_prediction(made, tmp_path, capsys):
    """Depth maps that are pickles, also within a file of arrays, and sums beside a ledger."""
    write_scenes(tmp_path / "scenes", {"train": 2, "validation": 1, "test": 1}, side=32)
    depth = tmp_path / "scenes/validation/depths/0000.npy"
    depth.with_suffix(".png").unlink()
    header = io.BytesIO()
    np.save(header, np.array([Hostile(made)], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Hostile(made)), header.getvalue()):
        depth.write_bytes(content)
        with pytest.raises(InputError, match=r"0000\.npy' cannot be read"):
            _ = open_pairs(tmp_path / "scenes", "validation", "depth")[0]
    ledger = tmp_path / "stitches_res.txt"
    ledger.write_text('{"cfg_id": 0, "flops": 1, "miou": 50.0}\n')
    ledger.with_suffix(".sums").write_bytes(pickle.dumps(Hostile(made)))
    refused(capsys, "pareto", ledger)


def test_hostile_files_that_pages_and_exports_read(images, made, tmp_path, capsys):
    """All that lies beside a ledger in the folder of a run."""
    config = write_config(tmp_path / "pico.json")
    weights, ledger = tmp_path / "net.pth", tmp_path / "ledger.txt"
    torch.save({"state_dict": pico_snnet().state_dict()}, weights)
    ledger.write_text('{"cfg_id": 0, "flops": 1, "acc1": 2}\n')
    export = ["export", "--stitch_config", config, "--resume", weights, "-o", tmp_path / "net.safetensors"]
    report = ["report", ledger, "-o", tmp_path / "page.html"]
    for name, command in (
        ("ledger.yaml", [*export, "--ledger", ledger]),
        ("ledger.yaml", report),
        ("args.yaml", report),
        ("eval_args.yaml", report),
        ("eval_args.yaml", [*export, "--cfg_id", "0", "-c", tmp_path / "eval_args.yaml"]),
        ("summary.csv", report),
        ("losses.csv", report),
    ):
        for content in (hostile_yaml(made).encode(), pickle.dumps(Hostile(made))):
            (tmp_path / name).write_bytes(content + b"\n")  # an unfinished line would be dropped
            assert main([*map(str, command)]) == 2, (name, content)
            assert capsys.readouterr().err.splitlines()[-1].startswith("stitchkit: error: "), name
        (tmp_path / name).unlink()


def test_a_hostile_summary_does_not_stop_a_run_that_resumes(images, made, tmp_path):
    config = write_config(tmp_path / "pico.json")
    command = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--resume", "auto"]
    assert main([*map(str, [*command, "--epochs", "1"])]) == 0
    (tmp_path / "pico/summary.csv").write_bytes(pickle.dumps(Hostile(made)))
    assert main([*map(str, [*command, "--epochs", "2"])]) == 0


def test_hostile_files_of_a_sweep(images, made, tmp_path, capsys):
    """Its results are pickled for people, and not read."""
    config = write_sweep(tmp_path, images)
    sweep = [*map(str, ["sweep", "-c", config, "-o", tmp_path / "out", "--device", "cpu"])]
    (tmp_path / "out/test-pico-uncut-source").mkdir(parents=True)
    about = tmp_path / "out/test-pico-uncut-source/metadata.yml"
    for content in (hostile_yaml(made).encode(), pickle.dumps(Hostile(made))):
        about.write_bytes(content)
        assert main(sweep) == 2
        assert "metadata.yml', which describes a job, is damaged" in capsys.readouterr().err
    about.write_text(
        "{arch: a, adapter: linear, first_deleted_block: 1, last_deleted_block: 1, num_downsamples: 0, "
        "num_trainable_params: 1}"
    )
    result = about.with_name("result-3.csv")
    for content in (pickle.dumps(Hostile(made)), b""):
        result.write_bytes(content)
        assert main(["sweep", "--report", str(tmp_path / "out")]) == 2
        assert "is not a table of results" in capsys.readouterr().err
    result.write_text("Epoch,Overall/digits/Test Accuracy\n0,0.5\n")
    result.with_suffix(".pkl").write_bytes(pickle.dumps(Hostile(made)))
    assert main(["sweep", "--report", str(tmp_path / "out")]) == 0


def test_hostile_files_of_a_composed_network(made, tmp_path):
    for name in ("net.json", "net.safetensors"):
        (tmp_path / "net.json").write_text("{}")
        (tmp_path / name).write_bytes(pickle.dumps(Hostile(made)))
        with pytest.raises(InputError, match="contains no readable composed network"):
            stitchnet.load(tmp_path)


def test_a_hostile_journal_of_a_composition(made, tmp_path):
    for content in (
        pickle.dumps(Hostile(made)) + b"\n",
        b'[["ranking", "a[0:1]"], {"output": "x", "scores": {"a": 1}}]\n',
    ):
        (tmp_path / "compose.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=r"is not (an entry of a journal|JSON)|is damaged"):
            Journal(tmp_path / "compose.jsonl").find(Ranking, "ranking", "a[0:1]")
    figures = {"stitch": "a", "flops": 1, "params": 1, "score": 1.0, "acc1": 50.0}
    less = {name: value for name, value in figures.items() if name != "acc1"}
    for row in ({**figures, "acc1": "high"}, {**figures, "acc1": math.inf}, {**figures, "flops": "1"}, less, 3):
        (tmp_path / "compose.jsonl").write_text(json.dumps([["row", "a"], row]) + "\n")
        with pytest.raises(InputError, match="is damaged: its entry"):
            Journal(tmp_path / "compose.jsonl").find(JudgedNetwork, "row", "a")


def test_hostile_files_of_a_hub_folder(made, tmp_path):
    model = stitchkit.HubSNNet(pico_config())
    for name in ("config.json", "model.safetensors", "stitches_res.txt"):
        model.save_pretrained(tmp_path / name)
        torch.save([Hostile(made)], tmp_path / name / name)
        with pytest.raises(InputError):
            stitchkit.HubSNNet.from_pretrained(tmp_path / name)
    bad = tmp_path / "config.json"
    model.save_pretrained(bad)
    for name in ("pytorch_model.bin", "custom.py", "model.pkl"):
        (bad / name).write_bytes(pickle.dumps(Hostile(made)))
    assert stitchkit.HubSNNet.from_pretrained(bad).num_classes == 4, "a file that is not ours is not opened"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hostile_weights_in_the_cache_of_the_hub(made, tmp_path, monkeypatch, name):
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    for place in ("refs", f"snapshots/{'0' * 40}"):
        (folder / place).mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    torch.save({"weights": Hostile(made)}, folder / "snapshots" / ("0" * 40) / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"pretrained 'resnet10t[.]c3_in1k' cannot be loaded"):
        stitchkit.create_model("resnet10t.c3_in1k", pretrained=True)


def test_a_hostile_export(made, tmp_path):
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"weights": Hostile(made)}, tmp_path / "net.safetensors")
        with pytest.raises(InputError, match="not a safetensors file"):
            stitchkit.load_stitch(tmp_path / "net.safetensors")


def test_a_hostile_card_of_a_data_set(made, tmp_path):
    for content in (f"---\n{hostile_yaml(made)}---\n".encode(), b"---\n[[[\n---\n", pickle.dumps(Hostile(made))):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(InputError):
            open_timm(f"hfds/{tmp_path}", root=None, split="train")


def test_a_hostile_output_map(made, tmp_path):
    (tmp_path / "map.yaml").write_text(hostile_yaml(made))
    (tmp_path / "map.json").write_bytes(pickle.dumps(Hostile(made)))
    for path in tmp_path.iterdir():
        with pytest.raises(InputError):
            OutputMap.read(path, "max")


def test_a_hostile_journal_of_a_search(made, tmp_path):
    write_job(tmp_path, job_config("unused"), "base.yml")
    parameters = {"lr": {"values": [0.1, 0.2]}}
    content = {"method": "random", "metric": {"name": "Train Loss"}, "parameters": parameters, "job": "base.yml"}
    sweep = load_sweep(write_job(tmp_path, content, "search.yml"))
    for damage in (
        hostile_yaml(made).encode(),
        pickle.dumps(Hostile(made)) + b"\n",
        b"[[[[\n{}\n",
        b'{"op_code": 99}\n{}\n',
    ):
        (tmp_path / "search.journal").write_bytes(damage)
        with pytest.raises(InputError, match=r"the journal of the search, (is damaged|line 1 is not JSON)"):
            next(sweep.rounds(tmp_path, None))


def test_postscript_under_another_name(made, tmp_path, monkeypatch):
    """Pillow goes by the content of a file, and would start Ghostscript."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\nmkdir {made}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    page = tmp_path / "train/a/page.png"
    page.parent.mkdir(parents=True)
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(page, (16, 16))
    with pytest.raises(OSError, match="Ghostscript"):
        open_images(tmp_path / "train")[0]


# Calls that read data which somebody else may have written.
READING = {
    *("torch.load", "torch.export.load", "load_file", "safe_open", "snapshot_download", "np.load", "np.memmap"),
    *("yaml.safe_load", "yaml.SafeLoader", "json.load", "json.loads", "csv.reader", "csv.DictReader", "pd.read_csv"),
    "metadata_load",
}


# Every file of the house with such a call, and the test that gives it a hostile file.
def test_hostile_statistics_beside_a_ledger(made, tmp_path):
    (tmp_path / "stitches_res.statistics.safetensors").write_bytes(pickle.dumps(Hostile(made)))
    with pytest.raises(InputError, match="statistics"):
        load_statistics(pico_snnet(), tmp_path / "stitches_res.txt")


READERS = {
    "stitchkit/files.py": test_hostile_files_that_pages_and_exports_read,
    "stitchkit/settings/files.py": test_hostile_files_of_other_commands,
    "stitchkit/assembly/train/result.py": test_hostile_files_of_a_sweep,
    "stitchkit/measure/per_image.py": test_hostile_files_beside_a_ledger,
    "stitchkit/measure/statistics_file.py": test_hostile_statistics_beside_a_ledger,
    "stitchkit/data/dense/maps.py": test_hostile_files_of_dense_prediction,
    "stitchkit/networks/weights.py": test_hostile_checkpoints,
    "stitchkit/networks/hub_weights.py": test_hostile_weights_in_the_cache_of_the_hub,
    "stitchkit/ship/stitch_files.py": test_a_hostile_export,
    "stitchkit/ship/hub.py": test_hostile_files_of_a_hub_folder,
    "stitchkit/data/timm_readers.py": test_a_hostile_card_of_a_data_set,
    "stitchkit/training/summary.py": test_a_hostile_summary_does_not_stop_a_run_that_resumes,
    "stitchnet/net.py": test_hostile_files_of_a_composed_network,
}


def read_part(path):
    assert Unfinished(path, {}).restore(Accuracy(), [0]) is None
    raise InputError(f"'{path}' is not a file")


PIPES = {
    "stitches_res.txt": read_rows,
    "stitches_res.hits": lambda path: compared_beside(path.with_suffix(".txt"), "acc1"),
    "stitches_res.sums": lambda path: compared_beside(path.with_suffix(".txt"), "miou"),
    "stitches_res.txt.part0": read_part,
    "stitches_res.yaml": lambda path: read_origin(path.with_suffix(".txt"), advice="move it"),
    "summary.csv": lambda path: cut_summaries(path.parent, 1),
    "log.txt": lambda path: opened(path, "a"),
    ".train.lock": is_held,
    ".eval.lock": lambda path: ExitStack().enter_context(locked(path)),
    "result.csv": lambda path: result.read_figures(path),
    "per_class.csv": read_table,
    "compose.jsonl": Journal,
    "net.json": lambda path: stitchnet.load(path.parent),
    "last.pth.tar": read_checkpoint,
}


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_a_folder_does_not_make_a_reader_wait(name, tmp_path):
    os.mkfifo(tmp_path / name)
    signal.alarm(20)  # ends the tests, instead of waiting for a writer
    try:
        with pytest.raises(InputError, match="is not a file"):
            PIPES[name](tmp_path / name)
    finally:
        signal.alarm(0)


def test_a_ledger_that_links_to_itself_is_refused(tmp_path):
    (tmp_path / "stitches_res.txt").symlink_to(tmp_path / "stitches_res.txt")
    with pytest.raises(InputError, match="does not exist"):
        read_ledgers([tmp_path / "stitches_res.txt"])


def test_a_pipe_among_images_is_refused(tmp_path):
    folder = write_images(tmp_path)
    os.mkfifo(next(folder.glob("validation/*")) / "pipe.png")
    with pytest.raises(InputError, match=r"pipe.png' cannot be read \(a pipe or device, not a file\)"):
        open_dataset(Source("", folder), "validation")


def reads(text):
    """Whether a program reads data; what it has just written out as JSON itself does not count."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and name_of(node.func) in READING:
            first = node.args[0] if node.args else None
            if not (isinstance(first, ast.Call) and name_of(first.func) == "json.dumps"):
                return True
    return False


def test_every_reader_has_met_a_hostile_file():
    found = {str(path.relative_to(ROOT)) for path in FILES if reads(path.read_text())}
    assert {path for path in found if not path.startswith(("tests/", "benchmarks/", "studies/"))} == READERS.keys()
