"""The declaration of commands, and the parser of their flags, whose errors are one line.

A wing declares its commands in its own `commands.py`, and `pyproject.toml` registers each as an entry point for
`stitchkit.cli`. It names what a command runs, which is imported only then: torch takes seconds to import.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn

from stitchkit.errors import InputError, prefixed, unknown
from stitchkit.files import check_folder_of

DATA_FLAGS = ("--data", "--data-dir", "--data_dir", "--data-path", "--data_path")
"""The flag of the folder of the data sets in every command: timm's and the published tools' names are aliases."""


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"a name is missing in '{text}'; write one comma between two names")
    return names


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag whose value is a whole number with a limit."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"it is {int(text)}; it must be at least {least}")
        return int(text)

    return number


ANCHORS_FLAG: dict[str, Any] = {"nargs": None, "type": _names, "metavar": "A,B"}
"""How argparse takes `--anchors`."""


def with_default(action: argparse.Action, default: object) -> str | None:
    """The help of a flag with its default, `side of the images (224)`, unless the text or plain sense says it."""
    is_switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)  # off unless given
    is_plain = default is None or default is False or default in ("", (), [], {}, argparse.SUPPRESS)
    if not action.help or is_switch or is_plain or "by default" in action.help:
        return action.help
    values = ["on"] if default is True else default if isinstance(default, list | tuple) else [default]
    return f"{action.help} ({' '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in values)})"


class _Help(argparse.HelpFormatter):
    """Shows the defaults of flags."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return with_default(action, action.default)


class Parser(argparse.ArgumentParser):
    """A parser that raises errors instead of printing them; if it has `first_flags`, `--help` shows only these."""

    first_flags: Sequence[str] = ()

    def format_help(self) -> str:
        """The help of the first flags and how to see the others, or of all."""
        if not self.first_flags:
            return super().format_help()
        actions = {action.dest: action for action in self._actions}
        formatter = self._get_formatter()
        formatter.add_usage(usage_of(self), [], [])
        formatter.add_text(self.description)
        formatter.start_section("main flags")
        formatter.add_arguments([actions[name] for name in self.first_flags])
        formatter.end_section()
        formatter.add_text("--help-all shows all flags, by subject.")
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Raise `message` as bad input; it begins with the flag, as messages about settings do."""
        message = re.sub(r"^argument (?:-\w/)?([^/:]+)[^:]*: ", r"\1: ", message)  # argparse has all its spellings
        raise InputError(f"{message}; see {self.prog} --help")

    def _get_value(self, action: argparse.Action, text: str) -> object:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError as error:
            if isinstance(cause := error.__context__, ValueError):  # argparse would show the name of the type
                kind = "a number" if action.type is float else "a whole number"
                error.message = str(cause) if isinstance(cause, InputError) else f"'{text}' is not {kind}"
            raise

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a value that is not among the choices of an argument; argparse itself names no nearest one."""
        if action.choices is None or value in action.choices:
            return
        flag = next((f"{name}: " for name in action.option_strings if name.startswith("--")), "")
        kind = "value" if flag else str(action.metavar or action.dest).lower()
        with prefixed(flag):
            raise unknown(kind, value, map(str, action.choices))


class Command(NamedTuple):
    """A command of `stitchkit`, or a subcommand; called with its flags, it runs.

    A function may be given by its name, `module:function`, which is imported when the command runs.
    """

    run: Callable[..., str | None] | str  # takes the flags, or what `check` returns; a text that it returns is printed
    about: str  # its line in `--help`
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda _: None
    resumes: str = ""  # how to resume after Ctrl-C; empty if the command starts over
    first_flags: Sequence[str] = ()  # settings whose flags `--help` shows, and `--help-all` all; by default all
    check: Callable[[argparse.Namespace], tuple[object, ...] | None] | str = lambda _: None  # before torch is loaded

    def __call__(self, flags: argparse.Namespace) -> None:
        """Check the flags and run the command."""
        given = resolved(self.check)(flags) or (flags,)
        if text := resolved(self.run)(*given):
            print(text)


def resolved(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function that may be given by its name."""
    return resolve_name(function) if isinstance(function, str) else function


class _HelpAll(argparse.Action):
    """Show the help of all flags."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, Parser)
        parser.first_flags = ()
        parser.print_help()
        parser.exit()


REPEAT = "run the same command again to resume"
"""`Command.resumes` of a command that continues what it finds."""


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Command], metavar: str = "COMMAND") -> None:
    """Add commands by name to the parser of the program, or of a command."""
    choices = parser.add_subparsers(required=True, metavar=metavar)
    for name, command in commands.items():
        _set_up(choices.add_parser(name, help=command.about, description=command.about, allow_abbrev=False), command)


def parser_of(prog: str, command: Command) -> Parser:
    """The parser of a program with a single command."""
    parser = Parser(prog=prog, description=command.about, allow_abbrev=False)
    _set_up(parser, command)
    return parser


def _set_up(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.formatter_class = _Help
    parser.set_defaults(command=command, parser=parser)
    if command.first_flags and isinstance(parser, Parser):
        parser.first_flags = command.first_flags
        parser.add_argument("--help-all", nargs=0, action=_HelpAll, default=argparse.SUPPRESS, help="show all flags")
    command.add_flags(parser)


def add_network_flags(parser: argparse.ArgumentParser, *, required: bool = False, config: str = "") -> None:
    """Add the flags that define the SN-Net and its images; `config` is the help of its configuration."""
    about = config or "stitch configuration: a file, or a short name such as deit_ti_s_b"
    parser.add_argument("--stitch-config", "--stitch_config", required=required, metavar="CONFIG", help=about)
    parser.add_argument("--num-classes", type=at_least(0), metavar="N", help="classes; by default as in the models")
    parser.add_argument("--img-size", type=at_least(1), metavar="N", help="side of images; by default as in the models")


_SHARED: dict[str, dict[str, Any]] = {
    "--anchors": {**ANCHORS_FLAG, "help": "in place of --stitch-config, as in stitchkit train"},
    "--device": {"metavar": "DEVICE", "help": "cpu, cuda or cuda:N; by default cuda if available"},
    "--format": {"choices": ("png", "pdf", "svg"), "default": "png", "help": "format of pictures"},
    "--allow-unreliable": {"action": "store_true", "help": "use latencies even if they are unreliable"},
    "--overlay": {"nargs": "+", "metavar": "FILE", "help": "other models to compare with, in CSV files such as timm's"},
}


def add_shared(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add flags that several commands have."""
    for flag in flags:
        parser.add_argument(flag, **_SHARED[flag])


def unknown_flag(parser: argparse.ArgumentParser, flag: str) -> InputError:
    """The error for a flag that a command does not have."""
    known = (name for action in parser._actions for name in action.option_strings)
    # Spellings with underscores are for those who use them.
    names = [name for name in known if "_" in flag or "_" not in name]
    return unknown("flag", flag, names, otherwise=f"see {parser.prog} --help")


def usage_of(parser: argparse.ArgumentParser) -> str:
    """A command with its arguments, without the names of its flags."""
    arguments = [action for action in parser._actions if not action.option_strings]
    words = [f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar) for action in arguments]
    return " ".join([parser.prog, *words, "[FLAG ...]"])


def new_file(path: str) -> Path:
    """The place of a file that a command will write."""
    if os.path.lexists(path):  # also a dangling link, which would lead elsewhere
        kind = "folder" if os.path.isdir(path) else "file"
        raise InputError(f"'{path}' exists; choose another {kind} or remove it")
    check_folder_of(Path(path))
    return Path(path)
