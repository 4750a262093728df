"""Errors for people: the bad value, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Longest message in characters; only a message that quotes a file's content is longer.
_LONGEST = 3000


def printable(words: str) -> str:
    """Words with line ends and escapes spelled out, so that quoted content cannot forge a message of ours."""
    if words.isprintable():
        return words
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


class InputError(ValueError):
    """A value that a user gave is invalid.

    The message is one complete sentence, whose text is one printable line, whatever it quotes. Commands print it
    without a traceback, and exit with status 2.
    """

    def __str__(self) -> str:
        words = printable(super().__str__())
        return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 4]} ..."


class NotFinite(InputError):
    """A loss, or the weights or outputs of a network, that are not finite."""


class Stopped(Exception):
    """A run was stopped by the signal of this number, and `saved` its state, in words; the status is 128 more."""

    def __init__(self, number: int, saved: str):
        super().__init__(saved)
        self.number = number


def unknown(kind: str, value: object, allowed: Iterable[str], *, otherwise: str = "") -> InputError:
    """The error for a name that is not `allowed`: it names the nearest, or says `otherwise`, or lists all of them."""
    names = [name for name in allowed if name]  # an empty text is a default, which nobody types
    # Without dashes, which make all flags alike.
    bare = {name.lstrip("-"): name for name in names}
    close = difflib.get_close_matches(str(value).lstrip("-"), bare, n=1, cutoff=0.7 if otherwise else 0.5)
    if close:
        hint = f"did you mean '{bare[close[0]]}'?"
    elif otherwise:
        hint = otherwise
    elif len(names) <= 40:
        hint = f"allowed: {', '.join(names)}"
    else:
        hint = f"none of the {len(names)} allowed names is close; check the spelling"
    return InputError(f"unknown {kind} '{value}'; {hint}")


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Begin the messages of errors with a prefix, such as `teacher: `."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{prefix}{error}") from error


def one_line(error: BaseException) -> str:
    """The class and message of a library's exception on one line, cut short, for our own message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(".")
