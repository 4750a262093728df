"""How commands start: quickly, and with threads that do not wait by spinning."""

import json
import subprocess
import sys

import pytest

import stitchkit
import stitchnet
from stitchkit.errors import InputError
from stitchkit.training.inputs import read_run
from tests.support import ROOT


def python(code, **environment):
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_help_needs_no_torch():
    code = """
import sys
from stitchkit.cli import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    assert python(code)[-1] == "False"


def test_a_ledger_is_read_without_torch(tmp_path):
    ledger = tmp_path / "r.txt"
    ledger.write_text('{"cfg_id": 0, "flops": 1, "acc1": 5.0}\n')
    code = """
import sys
from stitchkit.cli import main
for command in ("pick", "pareto"):
    assert main([command, %r]) == 0
    print("torch" in sys.modules)
"""
    assert "True" not in python(code % str(ledger))


def test_mistakes_in_a_training_that_only_files_show_need_no_torch(tmp_path):
    anchors = ["vit_tiny_patch16_224", {"name": "vit_small_patch16_224", "checkpoint": "a.pth"}]
    (tmp_path / "stitch.json").write_text(json.dumps({"anchors": anchors}))
    teacher = ["--teacher-model", "x", "--teacher-path", "t.pth", "--distillation-type", "hard"]
    anchored = ["--stitch_config", str(tmp_path / "stitch.json")]
    mistakes = {
        "did you mean 'cosine'?": ["nowhere", "--model", "x", "--sched", "cosin"],
        "data folder 'nowhere' does not exist in": ["nowhere", "--model", "x"],
        "must contain cifar-10-batches-py/": ["nowhere", "--dataset", "cifar10", "--model", "x"],
        f"checkpoint 'r.pth' does not exist in '{ROOT}'; check the path": [".", "--model", "x", "--resume", "r.pth"],
        "checkpoint '.' is not a file": [".", "--model", "x", "--resume", ".", "--eval"],
        "checkpoint 'i.pth' does not exist": [".", *anchored, "--initial-checkpoint", "i.pth", "--dry-run"],
        "checkpoint 'p.pth' does not exist": [".", "--model", "x", "--pretrained", "--pretrained-path", "p.pth"],
        "anchor 'vit_small_patch16_224': checkpoint 'a.pth' does not exist": [".", *anchored],
        "teacher: checkpoint 't.pth' does not exist": [".", "--model", "x", *teacher],
    }
    code = f"""
import sys
from stitchkit.cli import main
sys.stderr = sys.stdout
for flags in {[*mistakes.values()]}:
    assert main(["train", *flags]) == 2
print("torch" in sys.modules)
"""
    *lines, loaded = python(code)
    for said, line in zip(mistakes, lines, strict=True):
        assert said in line
    assert loaded == "False"


def test_restarted_ranks_need_no_checkpoint_of_the_flags(monkeypatch, tmp_path):
    """They resume from their own, and the run may have removed that of the flags since."""
    flags = {"data_dir": str(tmp_path), "model": "x", "resume": str(tmp_path / "checkpoint-0.pth.tar")}
    with pytest.raises(InputError, match="does not exist"):
        read_run(flags)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert read_run(flags)[0].run.resume == flags["resume"]


@pytest.mark.full
def test_a_command_that_shares_its_cores_does_not_spin():
    """As far as a person has not said otherwise, before torch is loaded."""
    code = (
        "import os, sys\nfrom stitchkit.cli import main\nmain(['pareto', 'none'])\nprint(os.environ['OMP_WAIT_POLICY'])"
    )
    assert python(code)[-1] == "passive"
    assert python(code, OMP_WAIT_POLICY="active")[-1] == "active"


def test_everything_public_is_there():
    for package in (stitchkit, stitchnet):
        assert all(hasattr(package, name) for name in package.__all__)
        assert len(package.__all__) > 5


@pytest.mark.parametrize("flags", [["-o", "net.onx"], ["-o", "net.pt2", "--int8"], ["-o", "nowhere/net.onnx"]])
def test_an_export_that_cannot_be_written_is_refused_without_torch(flags):
    code = f"import sys\nfrom stitchkit.cli import main\nprint(main(['export', *{flags}]), 'torch' in sys.modules)"
    assert python(code)[-1] == "2 False"


@pytest.mark.full
def test_commands_do_not_report_a_compiler_that_nobody_asked_for():
    code = """
import sys
from stitchkit.cli import main
main(["pareto", "none"])
sys.stderr = sys.stdout
import torch.utils.cpp_extension
"""
    assert python(code, CUDA_HOME="/usr/local") == []
