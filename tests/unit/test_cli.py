"""The command line: its version, faults of the system in one line, and what it advises after Ctrl-C."""

import errno
import os

import pytest

from stitchkit import __version__, cli
from stitchkit.cli import main
from stitchkit.parser import Command, Parser, add_commands
from tests.commands import refused


@pytest.fixture
def runs(monkeypatch):
    """Let the program have one command, which raises an error."""

    def one(error, **options):
        def fail(_):
            raise error

        parser = Parser(prog="stitchkit")
        add_commands(parser, {"fail": Command(fail, "fail", **options)})
        monkeypatch.setattr(cli, "_parser", lambda: parser)

    return one


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"stitchkit {__version__}\n"


@pytest.mark.parametrize(
    ("number", "file", "says"),
    [
        (errno.EIO, None, "Input/output error; check the disk, the network and the file systems"),
        (errno.ESTALE, None, f"{os.strerror(errno.ESTALE)}; check the disk, the network"),
        (errno.EIO, "x.png", "'x.png': Input/output error; check the path"),
        (errno.ENOSPC, None, "No space left on device; make room"),
    ],
)
def test_a_fault_of_the_system_ends_in_one_line_that_names_it(number, file, says, runs, capsys):
    runs(OSError(number, os.strerror(number), file))
    line = refused(capsys, "fail")
    assert says in line
    assert ("make room" in line) == (number == errno.ENOSPC)


def test_an_error_that_the_system_did_not_report_keeps_its_traceback(runs):
    runs(OSError("could not get source code"))
    with pytest.raises(OSError, match="source code"):
        main(["fail"])


@pytest.mark.parametrize(
    ("resumes", "says"), [("continue with --resume auto", "; continue with --resume auto"), ("", "")]
)
def test_after_ctrl_c_the_advice_is_that_of_the_command(resumes, says, runs, capsys):
    runs(KeyboardInterrupt(), resumes=resumes)
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == f"stitchkit: stopped{says}\n"
