"""Configuration files: YAML with `!include`, and the line at which something in them stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stitchkit.errors import InputError

_INCLUDE = "!include"
# How a message about a configuration begins: the place that it is about.
_PLACE = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")


class _Loader(yaml.SafeLoader):
    """Reads plain data alone; `1e-3` is a number, as in YAML 1.2.

    Args:
        path: The file; what it includes is found beside it.
        above: The files that led to it.
    """

    def __init__(self, path: Path, above: Sequence[Path] = ()):
        resolved = path.resolve()
        if resolved in above:
            chain = " -> ".join(file.name for file in [*above[above.index(resolved) :], resolved])
            raise InputError(f"'{path}' includes itself: {chain}; take one !include out")
        self.path = path
        self.above = (*above, resolved)
        try:
            super().__init__(path.read_text())
            self.name = str(path)  # marks of nodes know their file by it
        except (OSError, ValueError) as error:  # the latter of bytes and of names that no file has
            reason = error.strerror if isinstance(error, OSError) else "it is not text, or no file has such a name"
            raise InputError(f"configuration '{path}' cannot be read: {reason}; check the path") from error

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node of the file, or in the place of an `!include` the other file's; anchors are a file's own."""
        node = super().compose_node(parent, index)
        if node is None or node.tag != _INCLUDE:
            return node
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise InputError(f"'{self.path}', line {_line(node)}: write !include and the name of a file")
        return _compose(self.path.parent / node.value, self.above)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping, if no key stands in it twice; YAML would take the last one without a word."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value != "<<" and key.value in seen:
                raise InputError(f"'{self.path}', line {_line(key)}: {key.value} is there twice; take one out")
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _compose(path: Path, above: Sequence[Path] = ()) -> Any:
    """The tree of nodes that a file and its includes make; each node knows its file."""
    loader = _Loader(path, above)
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"configuration '{path}'{line}: {error.problem or error}; correct the YAML") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"configuration '{path}' is not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The content of a configuration file: plain data, with what it includes.

    Raises:
        InputError: If a file cannot be read, is no YAML, holds objects, includes itself, or has no keys.
    """
    node = _compose(Path(path))
    constructor = yaml.SafeLoader("")
    try:
        content = None if node is None else constructor.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"'{mark.name}', line {mark.line + 1}" if mark else f"'{path}'"
        raise InputError(f"configuration {place}: {error.problem}; plain data alone is read") from error
    except (ValueError, RecursionError) as error:  # of dates, numbers and depths that Python has not
        raise InputError(f"configuration '{path}' holds what cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"configuration '{path}' must hold settings as 'name: value' lines")
    return content


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let errors about a configuration begin with its file, and with the line of the place that they name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{_locate(Path(path), str(error))}: {error}") from error


def _locate(path: Path, message: str) -> str:
    """The file and line that a message is about, as far down as the file has what it names."""
    found = _PLACE.match(message)
    node = _compose(path)
    line = None
    for key in re.findall(r"\w+", found.group()) if found else ():
        child = _child(node, key)
        if child is None:
            break
        node, line = child
    return f"'{path}'" if line is None else f"'{line.start_mark.name}', line {_line(line)}"


def _child(node: yaml.Node, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """What stands under a key or number, and the node at whose line it begins."""
    if isinstance(node, yaml.MappingNode):
        return next(((value, name) for name, value in node.value if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
        return node.value[int(key)], node.value[int(key)]
    return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
