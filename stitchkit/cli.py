"""The command line: finds the commands, runs one, and answers bad input with one line and status 2."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TextIO

from stitchkit.errors import InputError, Stopped, unknown
from stitchkit.parser import Parser, add_commands, flags_of, usage_of

# Errors of a write to a full disk do not name the file.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# Longest message in characters; a longer one quotes somebody's data.
_LONGEST = 3000


def _shown(words: str) -> str:
    """Words without line ends and escapes, with which the content of a file could forge a message of ours."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


class _Lines(logging.StreamHandler[TextIO]):
    """Log lines on the output; a closed pipe ends the command instead of printing a traceback for each line."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(_shown, super().format(record).split("\n")))

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise  # logging calls this while it handles the error
        super().handleError(record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0; 2 for bad input; 130 after Ctrl-C; 130 or 143 after a signal on which a run was saved;
        141 if nobody reads the output any more, as after `| head`.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, which would fail on the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as in shells


def _run(arguments: Sequence[str] | None) -> int:
    """Run a command, or report in one line why it cannot run."""
    # Threads of a small network's step meet every few microseconds. Unless set before torch is loaded, OpenMP lets them
    # spin while they wait, and one thread without a core of its own stalls all others: minutes instead of seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if is_primary else logging.ERROR, format="%(message)s", handlers=[_Lines(sys.stdout)]
    )
    try:
        flags, rest = _parser().parse_known_args(arguments)
        command, parser = (vars(flags).pop(name) for name in ("command", "parser"))
        if rest and rest[0].startswith("-"):
            raise unknown("flag", rest[0].split("=")[0], flags_of(parser))
        if rest:
            raise InputError(f"unexpected argument '{rest[0]}'; write {usage_of(parser)}, and a value after each flag")
        command(flags)
    except InputError as error:
        _report(error)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_FULL:
            raise
        where = f"'{error.filename}': " if error.filename else ""
        _report(InputError(f"{where}{error.strerror}; check the path, its permissions and the disk"))
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        number, how = (stop.number, f" by a signal; {stop}") if isinstance(stop, Stopped) else (signal.SIGINT, "")
        if is_primary:
            advice = "a training run or a job resumes from its newest checkpoint with --resume auto"
            print(f"stitchkit: stopped{how}; run the command again to resume; {advice}", file=sys.stderr)
        return 128 + number
    return 0


def _report(error: InputError) -> None:
    """Print the error once: the ranks of a launcher hand it theirs, and it prints the first."""
    words = str(error) if len(str(error)) <= _LONGEST else f"{str(error)[:_LONGEST]} ..."
    error = InputError(_shown(words))
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        print(f"stitchkit: error: {error}", file=sys.stderr)


def _parser() -> Parser:
    """The parser of all registered commands."""
    about = "Stitch pretrained vision networks: every trade-off between cost and accuracy."
    parser = Parser(prog="stitchkit", description=about, allow_abbrev=False)
    commands = {entry.name: entry.load() for entry in sorted(entry_points(group="stitchkit.commands"))}
    if not commands:  # never installed, or installed before commands were registered
        raise InputError("no command is registered; install the project again: pip install -e .")
    add_commands(parser, commands)
    return parser
