"""How commands start: quickly, and with threads that do not wait by spinning."""

import subprocess
import sys

import pytest

import stitchkit
import stitchnet
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
