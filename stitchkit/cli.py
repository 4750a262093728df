"""The commands. Each reads its flags, checks them and runs; bad input ends with one line and status 2."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from stitchkit.errors import InputError, Stopped, unknown
from stitchkit.parser import Commands, Parser, flags_of

# What a write to a full disk ends with; such an error names no file.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_LONGEST = 3000
"""Most characters of a message; more are somebody's data."""

_PIPE_CLOSED = 141
"""The exit status, as shells have it, of what ends because nobody reads its output: 128 + SIGPIPE."""


def _shown(words: str) -> str:
    """Words without line ends and escapes: what a file holds could say something else in our name."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


class _Lines(logging.StreamHandler[TextIO]):
    """Prints log lines; a pipe that nobody reads ends the command, where logging would print a traceback a line."""

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
        The exit status: 0, 2 for bad input, 130 after Ctrl-C, 128 + its number after a signal that a run was
        saved for: 130 or 143, or 141 where nobody reads the output any more, as after `| head`.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it exits; that must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED


def _run(arguments: Sequence[str] | None) -> int:
    """Run a command, or say in one line why not."""
    # Threads of a small network's step meet every few microseconds. Where they wait by spinning, as torch's OpenMP does
    # unless told before it is loaded, one that has to share its core lets all others spin: minutes for seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if is_primary else logging.ERROR, format="%(message)s", handlers=[_Lines(sys.stdout)]
    )
    try:
        flags, rest = _parser().parse_known_args(arguments)
        settings = vars(flags)
        command: Callable[[dict[str, Any]], None] = settings.pop("command")
        allowed = flags_of(settings.pop("parser"))
        if rest:
            is_flag = rest[0].startswith("-")
            raise (
                unknown("flag", rest[0].split("=")[0], allowed)
                if is_flag
                else InputError(
                    f"'{rest[0]}' is an unexpected argument; give one DATA folder, and a value after each flag"
                )
            )
        command(settings)
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
    except Stopped as stop:
        if is_primary:
            advice = "run the command again to resume, a training or a job with --resume auto"
            print(f"stitchkit: stopped by a signal; {stop}; {advice}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        if is_primary:
            print(
                "stitchkit: stopped; an evaluation, a sweep or a composition resumes when the command is run again, a "
                "training run or a job from its newest checkpoint with --resume auto",
                file=sys.stderr,
            )
        return 130
    return 0


def _report(error: InputError) -> None:
    """Say what was wrong, once: under a launcher each rank hands its error over, and the launcher prints the first."""
    words = str(error) if len(str(error)) <= _LONGEST else f"{str(error)[:_LONGEST]} ..."
    error = InputError(_shown(words))
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        print(f"stitchkit: error: {error}", file=sys.stderr)


def _parser() -> Parser:
    """The parser of all commands; the packages that have some are named here alone."""
    from stitchkit.assembly.commands import add_commands as add_assembly
    from stitchkit.commands import add_commands as add_core
    from stitchkit.schema_command import add_commands as add_schema
    from stitchkit.ship.commands import add_commands as add_ship
    from stitchkit.ship.page_commands import add_commands as add_pages
    from stitchnet.commands import add_commands as add_stitchnet

    about = "Stitch pretrained vision networks: every trade-off between cost and accuracy."
    parser = Parser(prog="stitchkit", description=about, allow_abbrev=False)
    commands = Commands(parser)
    for add_commands in (add_core, add_schema, add_ship, add_pages, add_assembly, add_stitchnet):
        add_commands(commands)
    return parser
