"""The command line: its version, faults of the system in one line, and what it advises after Ctrl-C."""

import argparse
import errno
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from itertools import chain

import pytest

from stitchkit import __version__, cli
from stitchkit.cli import main
from stitchkit.parser import Command, Parser, add_commands
from tests.commands import commands_of, refused


@pytest.fixture
def runs(monkeypatch):
    """Let the program have one command, which raises an error."""

    def one(error, **options):
        def fail(_):
            raise error

        parser = Parser(prog="stitchkit")
        add_commands(parser, {"fail": Command(fail, "fail", **options)})
        monkeypatch.setattr(cli, "_parser", lambda _: parser)

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


COMMANDS = sorted(entry_points(group="stitchkit.commands").names)


def test_the_help_of_each_flag_says_its_default_once():
    wrong = []
    for parser in chain.from_iterable(commands_of(cli._parser(name)) for name in COMMANDS):
        parser.first_flags = ()  # so that the help shows all
        entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", parser.format_help())[1:]]
        for action in parser._actions:
            is_unsaid = action.nargs == 0 or action.default in (None, "", [], argparse.SUPPRESS)
            if is_unsaid or action.help == argparse.SUPPRESS:
                continue
            (said,) = [entry for entry in entries if re.match(rf"{action.option_strings[0]}[ ,]", entry)]
            if said.count(f"({action.default})") + said.count("by default") != 1:
                wrong.append(f"{parser.prog}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("job", "images per step and rank (32)"),
        ("sweep", "loader processes of each rank (4)"),
        ("train", "fit the stitching layers by least squares before training (on)"),
        ("train", "area of the crop (0.08 1)"),
    ],
)
def test_the_help_says_defaults_that_files_may_replace(command, line, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help-all" if command == "train" else "--help"])
    assert line in " ".join(capsys.readouterr().out.split())


def test_the_help_of_train_begins_with_twenty_flags_and_says_how_to_see_all(capsys):
    helps = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            main(["train", flag])
        helps.append(capsys.readouterr().out)
    short, whole = ({*re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", text, re.M)} for text in helps)
    assert len(short) == 20
    assert short < whole
    assert "--help-all shows all flags" in helps[0]
    assert len(whole) > 150


def test_only_the_command_in_use_is_built():
    """Without torch and timm, which take seconds to import."""
    for words, lines in ((["pick", "--help"], 1), (["--help"], len(COMMANDS))):
        code = (
            "import sys\nfrom stitchkit import cli\n"
            f"try: cli.main({words})\nexcept SystemExit: pass\n"
            "print(*({'torch', 'timm'} & {*sys.modules}), file=sys.stderr)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stderr == "\n", "nothing of them is loaded"
        assert len([*cli._parser(words[0])._subparsers._group_actions[0].choices]) == lines
    assert [action.dest for action in next(commands_of(cli._parser()))._actions] == ["help"], "no flags without a name"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nodes", "stitchkit profile --nodes MODEL"),
        ("sweep-report", "stitchkit sweep --report DIR"),
        ("scenes", "stitchkit demo-data scenes DIR"),
    ],
)
def test_an_old_name_of_a_command_is_answered_by_the_new_one(old, new, capsys):
    assert refused(capsys, old, "x") == f"stitchkit: error: '{old}' was renamed; use {new}"
    assert "unknown kind 'data/digits'; did you mean 'digits'" in refused(capsys, "demo-data", "data/digits")


def test_what_profile_and_sweep_do_instead_takes_no_other_flags(capsys):
    assert "--latency has no effect on --nodes" in refused(capsys, "profile", "--nodes", "resnet18", "--latency")
    assert "--backend and --inside require --nodes" in refused(capsys, "profile", "--anchors", "a,b", "--inside", "x")
    assert "--jobs has no effect with --report" in refused(capsys, "sweep", "--report", "x", "--jobs", "2")
    assert "one of the arguments -c/--config --report is required" in refused(capsys, "sweep")


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--batchsize=3", "unknown flag '--batchsize'; did you mean '--batch-size'?"),
        ("--lrr", "unknown flag '--lrr'; did you mean '--lr'?"),
        ("--quiet", "unknown flag '--quiet'; see stitchkit train --help"),
        ("--xyz", "unknown flag '--xyz'; see stitchkit train --help"),
    ],
)
def test_an_unknown_flag_is_answered_by_one_that_looks_like_it(flag, hint, capsys):
    assert refused(capsys, "train", flag) == f"stitchkit: error: {hint}"
    assert refused(capsys, "--verison") == "stitchkit: error: unknown flag '--verison'; did you mean '--version'?"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--img-size", "0"], "--img-size: it is 0; it must be at least 1"),
        (["--num-classes", "-1"], "--num-classes: it is -1; it must be at least 0"),
        (["--num-classes", "ten"], "error: --num-classes: 'ten' is not a whole number"),
        (["--anchors", "resnet18,"], "--anchors: a name is missing in 'resnet18,'"),
        (["--anchors", "resnet18,,resnet34"], "--anchors: a name is missing in 'resnet18,,resnet34'"),
    ],
)
def test_flags_of_networks_are_refused_by_name(flags, says, capsys):
    assert says in refused(capsys, "profile", *flags)
    if "--anchors" in flags:
        assert says in refused(capsys, "train", *flags)
