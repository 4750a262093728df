"""The journal of a composition or a study, for resuming it: one JSON array per line for each completed item."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from stitchkit.engine.lock import locked, made
from stitchkit.errors import InputError
from stitchkit.files import DISK_FULL, opened, refuse_link
from stitchkit.settings.files import json_lines

Entry = TypeVar("Entry")
Key = tuple[str | int, ...]

_LINE = TypeAdapter(tuple[Key, object])


class Journal:
    """Entries by key, each appended to a file, which need not exist yet. A file of another kind is left as it is."""

    def __init__(self, path: Path):
        refuse_link(path)
        self.path = path
        self._scope: Key = ()
        self._entries: dict[Key, object] = {}
        advice = "choose another folder, or remove the file to start over"
        for number, _, content in json_lines(path, f"'{path}'", advice, cuts=True) if path.exists() else ():
            try:
                key, value = _LINE.validate_python(content)
            except ValueError as error:
                raise InputError(f"'{path}', line {number} is not an entry of a journal; {advice}") from error
            self._entries[key] = value

    def scope(self, *key: str | int) -> Journal:
        """The same journal with `key` before every key, for one of several searches."""
        scoped = copy.copy(self)
        scoped._scope = (*self._scope, *key)
        return scoped

    def find(self, kind: type[Entry], *key: str | int) -> Entry | None:
        """The entry of a key, checked to be of a type; None if there is none."""
        full = (*self._scope, *key)
        if full not in self._entries:
            return None
        try:
            return TypeAdapter(kind).validate_python(self._entries[full], strict=True)
        except ValidationError as error:
            raise self.damaged(json.dumps(full)) from error

    def damaged(self, name: str) -> InputError:
        """The error for an entry that this program cannot have written."""
        return InputError(f"'{self.path}' is damaged: its entry {name} is unusable; remove the file to start over")

    def add(self, value: object, *key: str | int) -> None:
        """Append an entry.

        It is not synced: a SIGKILL does not lose data that the system has accepted, and a power cut at worst shortens
        the file, so that some work is repeated. Syncing each of thousands of scores would cost more than the scores.
        """
        full = (*self._scope, *key)
        self._entries[full] = value
        with opened(self.path, "a") as file:
            file.write(json.dumps([full, value]) + "\n")

    def agree_on_settings(self, settings: Mapping[str, object], *, growing: str = "") -> None:
        """Check that the results in the folder depend on the same settings, by flag, as new ones.

        The whole number of the flag `growing` may be larger than before: it only adds results.
        """
        folder, before = self.path.parent, self._started_with("settings", settings)
        for flag, value in settings.items():
            old = before.get(flag)
            has_grown = flag == growing and isinstance(old, int) and isinstance(value, int) and old < value
            if old != value and not has_grown:
                raise InputError(
                    f"'{folder}' was started with {flag} {old}, but now it is {value}; repeat the original command to "
                    "resume it, or choose another folder"
                )
        if growing and before[growing] != settings[growing]:
            self.add(dict(settings), "settings")

    def agree_on_content(self, content: Mapping[str, str | None]) -> None:
        """Check that the results in the folder depend on the same content, by its name in messages, as new ones."""
        before = self._started_with("pool", content)
        for name, value in content.items():
            if before.get(name) != value:
                raise InputError(
                    f"'{self.path.parent}' was started with another version of the {name}; restore that version to "
                    "resume it, or choose another folder"
                )

    def _started_with(self, name: str, values: Mapping[str, object]) -> dict[str, object]:
        """The values that the first command kept under a name; this one keeps its own if it is the first."""
        if (before := self.find(dict[str, object], name)) is not None:
            return before
        if any(key[: len(self._scope)] == self._scope and key != ("settings",) for key in self._entries):
            raise self.damaged(json.dumps((*self._scope, name)))
        self.add(dict(values), name)
        return dict(values)


@contextmanager
def resumable(
    folder: Path, name: str, settings: Mapping[str, object], results: Sequence[str], *, growing: str = ""
) -> Iterator[Journal]:
    """The journal `NAME.jsonl` of a command in its folder, which is created if necessary and locked against others.

    `settings` and `growing` are as in `Journal.agree_on_settings`; `results` names the files that the command will
    write. A command without results leaves the folder as it was.
    """
    with made(folder, "-o"), locked(folder / f".{name}.lock"):
        path = folder / f"{name}.jsonl"
        is_new = not path.exists()
        for file in (folder / result for result in results if is_new):
            if os.path.lexists(file):
                raise InputError(f"'{file}' exists, without a journal to resume it; choose another folder or remove it")
        journal = Journal(path)
        journal.agree_on_settings(settings, growing=growing)
        try:
            yield journal
        except InputError:
            # The advice is mostly to change a setting, which a remaining journal would refuse.
            is_judged = any("row" in key for key in journal._entries)
            if is_new and not is_judged and not any((folder / result).exists() for result in results):
                path.unlink()
            raise
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"'{error.filename or folder}' cannot be written: {error.strerror}; make room, then repeat the "
                "command to resume it"
            ) from error
