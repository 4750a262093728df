"""The command line: finds the commands, runs one, and answers bad input with one line and status 2."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TextIO

from stitchkit._version import __version__
from stitchkit.display import PrintableFormatter
from stitchkit.errors import InputError, Stopped, printable
from stitchkit.files import DISK_FULL
from stitchkit.parser import Command, Parser, add_commands, unknown_flag, usage_of
from stitchkit.restarts import LIMIT_IS_NEAR, requeue

# Libraries that log what no user asked for: each request, and the absence of a compiler.
_QUIET = ("httpx", "httpx2", "torch.utils.cpp_extension")

_RENAMED = {
    "nodes": "stitchkit profile --nodes MODEL",
    "sweep-report": "stitchkit sweep --report DIR",
    "scenes": "stitchkit demo-data scenes DIR",
    "glyphs": "python -m studies.typefaces DIR, in a clone of the repository",
    "evidence": "python -m studies.evidence, in a clone of the repository",
    "compose-study": "python -m studies.stitchnet, in a clone of the repository",
}
"""Commands of earlier versions, and what runs them now."""


class _Lines(logging.StreamHandler[TextIO]):
    """Log lines on the output; a closed pipe ends the command instead of printing a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise  # logging calls this while it handles the error
        super().handleError(record)


def main(arguments: Sequence[str] | None = None, parser: Parser | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; by default that of the process.
        parser: The parser of a program beside `stitchkit`; by default that of the registered command in use.

    Returns:
        The exit status: 0; 2 for bad input; 130 after Ctrl-C; 130, 138 or 143 after a signal that saved a run; 141 if
        the reader of the output has ended, as after `| head`.
    """
    try:
        try:
            return _run(arguments, parser)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, which would fail on the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as in shells


def _run(arguments: Sequence[str] | None, program: Parser | None) -> int:
    """Run a command, or report in one line why it cannot run."""
    # Threads of a small network's step meet every few microseconds. Unless set before torch is loaded, OpenMP lets them
    # spin while they wait, and one thread without a core of its own stalls all others: minutes instead of seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    is_primary = os.environ.get("RANK", "0") == "0"
    lines = _Lines(sys.stdout)
    lines.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.INFO if is_primary else logging.ERROR, handlers=[lines])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself
    command: Command | None = None
    try:
        words = sys.argv[1:] if arguments is None else arguments
        first = words[0].split("=")[0] if words else ""
        whole = program or _parser(first)
        if first.startswith("-") and first not in whole._option_string_actions:
            raise unknown_flag(whole, first)  # argparse would only miss the command
        flags, rest = whole.parse_known_args(words)
        command, parser = (vars(flags).pop(name) for name in ("command", "parser"))
        if rest and rest[0].startswith("-"):
            raise unknown_flag(parser, rest[0].split("=")[0])
        if rest:
            parser.error(f"unexpected argument '{rest[0]}'; usage: {usage_of(parser)}")
        command(flags)
    except InputError as error:
        _report(error)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:  # not from the system: some library's, and perhaps our own mistake
            raise
        # The file if it is known, the cause, and what to do; an error of a write does not name the file.
        where = f"'{error.filename}': " if error.filename else ""
        advice = "check the disk, the network and the file systems that the command reads and writes"
        if error.errno in DISK_FULL:
            advice = "make room, or write to another disk"
        elif where:
            advice = "check the path, its permissions and the disk"
        _report(InputError(f"{where}{error.strerror}; {advice}"))
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        number, how = (stop.number, f" by a signal; {stop}") if isinstance(stop, Stopped) else (signal.SIGINT, "")
        if is_primary:
            advice = f"; {command.resumes}" if command is not None and command.resumes else ""
            print(f"stitchkit: stopped{how}{advice}", file=sys.stderr, flush=True)
            if number == LIMIT_IS_NEAR:  # all is saved and closed, and Slurm may end this process at once
                print(f"stitchkit: {printable(requeue())}", file=sys.stderr)
        return 128 + number
    return 0


def _report(error: InputError) -> None:
    """Print the error once: the ranks of a launcher hand it theirs, and it prints the first."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        print(f"stitchkit: error: {error}", file=sys.stderr)


def _parser(name: str = "") -> Parser:
    """The parser of the command with this name; of all commands, without their flags, if there is none."""
    about = "Stitch pretrained vision networks: every trade-off between cost and accuracy."
    parser = Parser(prog="stitchkit", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"stitchkit {__version__}")
    entries = entry_points(group="stitchkit.commands")
    if not entries:  # never installed, or installed before commands were registered
        raise InputError("no command is registered; install the project again: pip install -e .")
    if name in entries.names:
        add_commands(parser, {name: entries[name].load()})
        return parser
    if name in _RENAMED:
        raise InputError(f"'{name}' was renamed; use {_RENAMED[name]}")
    commands: dict[str, Command] = {entry.name: entry.load() for entry in sorted(entries)}
    add_commands(parser, {name: command._replace(add_flags=lambda _: None) for name, command in commands.items()})
    return parser
