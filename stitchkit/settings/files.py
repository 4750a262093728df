"""Settings files: JSON, and YAML with `!include`; their content, and the line of each value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stitchkit.errors import InputError

_INCLUDE = "!include"
# A message about a file begins with the place that it is about.
_PLACE = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")
# A few lines of aliases of aliases expand to billions of values.
_MOST_VALUES = 100_000
_MOST_FILES = 100


class _Loader(yaml.SafeLoader):
    """Reads only plain data; knows the files `above`, which include this one, and all those `opened` so far."""

    def __init__(self, path: Path, above: Sequence[Path], opened: list[Path]):
        resolved = path.resolve()
        if resolved in above:
            chain = " -> ".join(file.name for file in [*above[above.index(resolved) :], resolved])
            raise InputError(f"'{path}' includes itself: {chain}; remove one !include")
        opened.append(resolved)
        if len(opened) > _MOST_FILES:
            raise InputError(f"'{path}' is the {len(opened)}th !include; at most {_MOST_FILES} files are read")
        self.path = path
        self.above = (*above, resolved)
        self.opened = opened
        text = path.read_text(encoding="utf-8-sig")
        if _is_json(path):  # JSON allows tabs between values and DEL in texts; YAML forbids both
            text = self.NON_PRINTABLE.sub(" ", text.replace("\t", " "))
        super().__init__(text)
        self.name = str(path)  # nodes carry this name in their marks, and messages quote it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node of the file or, for an `!include`, of the other file; anchors do not cross files."""
        node = super().compose_node(parent, index)
        if node is None or node.tag != _INCLUDE:
            return node
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise InputError(f"'{self.path}', line {_line(node)}: write !include and the name of a file")
        return _compose(self.path.parent / node.value, self.above, self.opened)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """A mapping without duplicate keys, of which YAML and JSON would silently take the last."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"'{self.path}', line {_line(key)}: a key must be text, not a list or a mapping")
            if key.value != "<<" and key.value in seen:
                raise InputError(f"'{self.path}', line {_line(key)}: duplicate key {key.value}; remove one of the two")
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes every value out, so that a list used in two parts is not an alias; `_Loader` reads the same back."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Never write aliases."""
        return True


# Floats as in YAML 1.2 and JSON: `1e-3` is a number; the same characters as text need quotes.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_settings_file(path: str | Path) -> dict[str, object]:
    """The content of a settings file as plain data, with that of the files it includes; JSON by its suffix, or YAML.

    `$schema`, which is for editors, is left out.
    """
    path = Path(path)
    with _refusing(path):
        content: object = None
        if _is_json(path):
            content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_finite, parse_float=_finite)
        node = _compose(path)  # refuses duplicate keys and names their lines, which Python's JSON parser does not
        if not _is_json(path) and node is not None:
            # A fresh loader: the nodes are from several files, whose own loaders are gone.
            content = yaml.SafeLoader("").construct_document(node)
    if not isinstance(content, dict):
        what = "a JSON object" if _is_json(path) else "'name: value' lines"
        found = "no settings" if content is None else type(content).__name__
        raise InputError(f"'{path}' holds {found}; settings are {what}")
    content.pop("$schema", None)
    return content


def settings_text(content: object) -> str:
    """The text of a YAML file that reads back as these settings."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Prefix errors about a settings file with its name and the line of the place that they name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{_locate(Path(path), str(error))}: {error}") from error


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"it contains {number}; JSON allows only finite numbers")
    return value


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Make one line, with the place in the file, of whatever the parsers raise."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    except json.JSONDecodeError as error:
        raise InputError(f"'{path}', line {error.lineno} is not JSON: {error.msg}; correct it there") from error
    except yaml.MarkedYAMLError as error:
        place = f"'{mark.name}', line {mark.line + 1}" if (mark := error.problem_mark) else f"'{path}'"
        raise InputError(f"{place} is not YAML of plain data: {error.problem or error}; correct it there") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # Bytes that are not text, characters that YAML forbids; dates, numbers and depths that Python cannot hold.
        kind, reason = "JSON" if _is_json(path) else "YAML", " ".join(str(error).split())
        raise InputError(f"'{path}' cannot be read as {kind}: {reason}; correct it") from error


def _compose(path: Path, above: Sequence[Path] = (), opened: list[Path] | None = None) -> yaml.Node | None:
    """The tree of nodes of a file and its includes; each node knows its file."""
    with _refusing(path):
        loader = _Loader(path, above, [] if opened is None else opened)
        node: yaml.Node | None = loader.get_single_node()
        loader.dispose()
        if node is not None and not above:
            _check_size(node, path)
        return node


def _check_size(root: yaml.Node, path: Path) -> None:
    """Refuse aliases that contain themselves, or that multiply the values of a file beyond any size of settings."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = None
            pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
            sizes[id(node)] = 1 + sum(size(item) for pair in pairs for item in pair)
        found = sizes[id(node)]
        if found is None:
            raise InputError(f"'{path}', line {_line(node)}: an alias contains itself; write the value out")
        return found

    if size(root) > _MOST_VALUES:
        raise InputError(f"'{path}' has more than {_MOST_VALUES} values with its aliases written out; use fewer")


def _locate(path: Path, message: str) -> str:
    """The file and line that a message is about, as deep as the file contains the named keys."""
    # Errors carry the place as text, `train_config.tasks[0]`: most are raised where no file is known.
    found = _PLACE.match(message)
    node, begin = _compose(path), None
    for key in re.findall(r"\w+", found.group()) if found else ():
        entries = _entries(node)
        if key not in entries:
            break
        begin, node = entries[key]
    return f"'{path}'" if begin is None else f"'{begin.start_mark.name}', line {_line(begin)}"


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The nodes where the values in a node begin, and those of the values themselves, by key or index."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key, value) for key, value in node.value}
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    return {str(number): (item, item) for number, item in enumerate(items)}


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
