"""Nothing in a file is executed: a hostile file against every reader; and no reader that could is in the code."""

import ast
import os
import pickle

import pytest
import torch

from stitchkit.cli import main
from stitchkit.train.recipe import Recipe
from tests.contract.test_house import FILES
from tests.e2e.test_job import job_config, write
from tests.support import FLAGS, ROOT, pico_anchor, write_config

# Calls that may run what is in a file.
UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle", "pandas.read_pickle", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "marshal.load", "marshal.loads", "dill.load"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
}


def name_of(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([getattr(node, "id", "?"), *reversed(parts)])


def unsafe_calls(text):
    """Calls in a program that may run what is in a file."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        is_plain = name == "torch.load" and given.get("weights_only") is not True
        if name in UNSAFE or is_plain or given.get("allow_pickle") or given.get("trust_remote_code") is True:
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_reader_runs_what_it_reads(path):
    assert not list(unsafe_calls(path.read_text()))


@pytest.mark.parametrize(
    "text", ["torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "pickle.load(x)"]
)
def test_such_a_reader_would_be_found(text):
    assert len(list(unsafe_calls(text))) == 1


def test_nothing_is_downloaded_or_run_unless_asked():
    data = Recipe().data
    assert not data.dataset_download
    assert not data.dataset_trust_remote_code


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture
def made(tmp_path):
    """The folder that hostile files would make; that they would is seen at once."""
    place = tmp_path / "made"
    pickle.loads(pickle.dumps(Hostile(place)))
    assert place.exists()
    place.rmdir()
    yield place
    assert not place.exists(), "a hostile file was executed"


def hostile_yaml(place):
    return f"!!python/object/apply:os.mkdir ['{place}']\n"


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


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("name", CHECKPOINTS)
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
    assert "refused" in line or "is truncated or not a checkpoint" in line or "can be read" in line, line


def test_hostile_files_of_other_commands(images, made, tmp_path, capsys):
    bad, text = tmp_path / "bad.pth", tmp_path / "bad.yaml"
    torch.save({"model": {}, "args": Hostile(made)}, bad)
    text.write_text(hostile_yaml(made))
    pickled = tmp_path / "bad.pkl"
    pickled.write_bytes(pickle.dumps(Hostile(made)))
    config, job = write_config(tmp_path / "pico.json"), write(tmp_path, job_config(images))
    commands = [
        ["convert", bad, tmp_path / "out.safetensors", "--stitch_config", config],
        ["pareto", pickled],
        ["train", images, "-c", text],
        ["train", images, "-c", pickled],
        ["train", images, "--stitch_config", pickled],
        ["job", "-c", text, "-o", tmp_path / "out"],
        ["job", "-c", job, "-o", tmp_path / "out", "--no-pretrained", "--load-from", bad],
        ["job", "-c", job, "-o", tmp_path / "out", "--no-pretrained", "--resume-from", bad],
    ]
    for command in commands:
        assert main([*map(str, command)]) == 2, command
        assert capsys.readouterr().err.startswith("stitchkit: error: "), command


def test_hostile_files_beside_a_ledger(images, made, tmp_path, capsys):
    config = write_config(tmp_path / "pico.json")
    command = ["train", images, "--stitch_config", config, *FLAGS, "--epochs", "1", "--output", tmp_path]
    assert main([*map(str, command)]) == 0
    folder = tmp_path / "pico"
    evaluate = [*map(str, [*command, "--eval", "--resume", folder / "last.pth.tar", "--eval-stitches", "0"])]
    (folder / "stitches_res.txt.part0").write_bytes(pickle.dumps(Hostile(made)))
    assert main(evaluate) == 0, "sums that are none are made anew"
    for content in (hostile_yaml(made).encode(), pickle.dumps(Hostile(made)), b"3"):
        (folder / "stitches_res.yaml").write_bytes(content)
        assert main(evaluate) == 2
        assert "cannot be read" in capsys.readouterr().err
    (folder / "stitches_res.txt").write_bytes(pickle.dumps(Hostile(made)) + b"\n")
    assert main(evaluate) == 2
