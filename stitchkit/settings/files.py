"""Settings files: JSON, and YAML with `!include`; their content, and the line of each value."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.cyaml import CParser  # type: ignore[attr-defined] # it exports only loaders
from yaml.reader import Reader
from yaml.resolver import Resolver

from stitchkit.errors import InputError, one_line
from stitchkit.files import check_regular, drop_unfinished, say_unfinished
from stitchkit.paths import asked, paths_from_file
from stitchkit.settings.schema import join

_INCLUDE = "!include"
_NOT_QUOTED = "it is included from outside the folder of the settings, so its content is not shown"
# A message about a file begins with the place that it is about.
_PLACE = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML takes 010 for 8 and 1:30:00 for 5400, as YAML 1.1 did.
_YAML_1_1 = re.compile(r"[-+]?(0[0-9_]+(\.[0-9_]*)?|[0-9][0-9_.]*(:[0-9_.]+)+)")
_SURROGATE = re.compile(r"(\\u)[dD](?=[89a-fA-F])")
# A few lines of aliases of aliases expand to billions of values. A wrong job of this many is refused in a second.
_MOST_VALUES = 25_000
_MOST_FILES = 100
_MOST_BYTES = 1 << 20


class _Loader(Composer, CParser, Resolver):
    """Composes the nodes of a file; knows the files `above`, which include this one, and all those `opened` so far.

    PyYAML's own parser is twenty times slower than libyaml.
    """

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
        self.is_quoted = _is_quoted(path, above)
        self.opened = opened
        self.place: list[object] = []  # keys and indices that lead to the node being read
        text = plain_text(path)
        if _is_json(path):  # JSON allows tabs between values and DEL in texts; YAML forbids both
            text = Reader.NON_PRINTABLE.sub(" ", text.replace("\t", " "))
            text = _SURROGATE.sub(r"\1e", text)  # libyaml refuses pairs of surrogates
        stream = StringIO(text)
        stream.name = str(path)  # type: ignore[misc] # nodes carry it in their marks, and messages quote it
        CParser.__init__(self, stream)
        Composer.__init__(self)
        Resolver.__init__(self)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node of the file or, for an `!include`, of the other file; anchors do not cross files."""
        self.place.append(getattr(index, "value", index))  # in a mapping, the index is the node of the key
        node = super().compose_node(parent, index)
        self.place.pop()
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _YAML_1_1.fullmatch(node.value):
            raise InputError(
                f"'{self.path}', line {_line(node)}: {node.value:.40} is another number in YAML 1.1 than in 1.2; write "
                "it without leading zeros and colons, or in quotes if it is text"
            )
        if node is None or node.tag != _INCLUDE:
            return node
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise InputError(f"'{self.path}', line {_line(node)}: write !include and the name of a file")
        included = _compose(self.path.parent / node.value, self.above, self.opened)
        if isinstance(included, yaml.ScalarNode):  # somebody's secret is a single value too
            raise InputError(f"'{self.path}', line {_line(node)}: '{node.value}' holds a single value; write it here")
        return included

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """A mapping without duplicate keys; YAML and JSON would silently take the last one."""
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"'{self.path}', line {_line(key)}: a key must be text, not a list or a mapping")
            if key.value in seen:
                full = reduce(join, [*filter(lambda part: part is not None, self.place), key.value], "")
                name = f" {full}, which is also in line {seen[key.value]}" if self.is_quoted else ""
                raise InputError(f"'{self.path}', line {_line(key)}: duplicate key{name}; remove one of the two")
            seen[key.value] = _line(key)
        return node


class _Constructor(yaml.SafeLoader):
    """Makes plain data of the nodes of several files; the paths in a node are relative to its file."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002
        """A mapping with everything in it."""
        return paths_from_file(super().construct_mapping(node, deep=True), Path(node.start_mark.name))


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

    Paths in it are relative to the file that names them if they exist there, and otherwise to the working folder.
    `$schema`, which is for editors, is left out.
    """
    path = Path(path)
    with _refusing(path):
        content: object = None
        if _is_json(path):
            content = json.loads(
                plain_text(path), parse_constant=_finite, parse_float=_finite,
                object_pairs_hook=lambda pairs: paths_from_file(dict(pairs), path),
            )  # fmt: skip
        node = _compose(path)  # refuses duplicate keys and names their lines, which Python's JSON parser does not
        if not _is_json(path) and node is not None:
            content = _Constructor("").construct_document(node)
        # Lone surrogates, which can be neither stored nor printed, are errors here.
        json.dumps(content, ensure_ascii=False, default=str, skipkeys=True).encode()
    if not isinstance(content, dict):
        allowed = "a JSON object" if _is_json(path) else "'name: value' lines"
        kind = "no settings" if content is None else type(content).__name__
        raise InputError(f"'{path}' holds {kind}; settings are {allowed}")
    content.pop("$schema", None)
    return content


def unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """The `object_pairs_hook` of `json.loads` without duplicate keys; it would silently take the last one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"duplicate key {next(key for key in counts if counts[key] > 1)!r}; remove one of the two")
    return values


def json_lines(path: Path, name: str, advice: str, *, cuts: bool = False) -> list[tuple[int, str, object]]:
    """The number, text and content of each line of a file that grows by lines of JSON.

    A last line that a killed program left unfinished is dropped.

    Args:
        name: Names the file in messages.
        advice: What to do about a damaged line.
        cuts: Cut an unfinished line off the file, because lines will be added.
    """
    check_regular(path)
    rows: list[tuple[int, str, object]] = []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, rest] if rest and not cuts else lines, start=1):
        text = line.decode(errors="replace").strip()
        try:
            rows.append((number, text, json.loads(line.decode(), object_pairs_hook=unique_keys)))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            if number > len(lines):
                say_unfinished(path)
                break
            raise InputError(f"{name}, line {number} is not JSON: {text[:80]!r}; {advice}") from error
        except ValueError as error:  # a key twice, or a number of too many digits
            raise InputError(f"{name}, line {number}: {str(error).rpartition('; ')[0]}; {advice}") from error
    if cuts:
        drop_unfinished(path)
    return rows


def settings_text(content: object) -> str:
    """The text of a YAML file that reads back as these settings."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


@contextmanager
def naming(path: str | Path, *, is_parsed: bool = False) -> Iterator[None]:
    """Prefix errors about a settings file with its name and the line of the place that they name.

    They quote values. What a file includes from outside its folder is its author's choice, and is not shown to whoever
    reads the error, until it `is_parsed`, and so known to hold settings.
    """
    try:
        yield
    except InputError as error:
        begin, node = _locate(_compose(Path(path)), str(error))
        where = f"'{path}'" if begin is None else f"'{begin.start_mark.name}', line {_line(begin)}"
        # Nothing in the node may come from outside the folder of the settings.
        is_shown = is_parsed or all(_is_quoted(file, [Path(path)]) for file in _files_of(node))
        raise InputError(f"{where}: {error if is_shown else f'a value is not valid; {_NOT_QUOTED}'}") from error


def plain_text(path: Path) -> str:
    """The text of a file; a device such as `/dev/zero`, or something else of endless size, is not read."""
    check_regular(path)
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"'{path}' has {path.stat().st_size:,} bytes; settings have at most {_MOST_BYTES:,}")
    return path.read_text(encoding="utf-8-sig")


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"it contains {number}; JSON allows only finite numbers")
    return value


def _is_quoted(path: str | Path, above: Sequence[Path]) -> bool:
    """Whether messages may show the content of a file: that of the user, or one in its folder."""
    return not above or Path(path).resolve().is_relative_to(above[0].resolve().parent)


@contextmanager
def _refusing(path: Path, *, is_quoted: bool = True) -> Iterator[None]:
    """Make one line, with the place in the file, of whatever the parsers raise; their reasons quote the file."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"'{path}' cannot be read{asked(path)}: {error.strerror}; check the path") from error
    except json.JSONDecodeError as error:
        line = min(error.lineno, error.doc.rstrip().count("\n") + 1)  # not the line after the last
        raise InputError(f"'{path}', line {line}: invalid JSON: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        where = f"'{path}'"
        if mark := error.problem_mark:
            where = f"'{mark.name}', line {min(mark.line + 1, len(plain_text(Path(mark.name)).splitlines()))}"
        what = "not plain data" if isinstance(error, yaml.constructor.ConstructorError) else "invalid YAML"
        reason = f": {error.problem or error}" if is_quoted else f"; {_NOT_QUOTED}"
        raise InputError(f"{where}: {what}{reason}") from error
    except Exception as error:
        # Bytes that are not text, characters that YAML forbids; dates, numbers and depths that Python cannot hold; and
        # PyYAML raises even an IndexError, for `!!int ''`.
        reason = f": {one_line(error)}" if is_quoted else f"; {_NOT_QUOTED}"
        raise InputError(f"'{path}': invalid {'JSON' if _is_json(path) else 'YAML'}{reason}") from error


def _compose(path: Path, above: Sequence[Path] = (), opened: list[Path] | None = None) -> yaml.Node | None:
    """The tree of nodes of a file and its includes; each node knows its file."""
    with _refusing(path, is_quoted=_is_quoted(path, above)):
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
        if (total := sizes[id(node)]) is None:
            raise InputError(f"'{path}', line {_line(node)}: an alias contains itself; write the value out")
        return total

    if size(root) > _MOST_VALUES:
        raise InputError(f"'{path}' has more than {_MOST_VALUES} values with its aliases written out; use fewer")


def _locate(root: yaml.Node | None, message: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Where the value that a message is about begins, as deep as the file has the named keys, and the value."""
    # Errors carry the place as text, `train_config.tasks[0]`: most are raised where no file is known.
    match = _PLACE.match(message)
    begin, node = None, root
    for key in re.findall(r"\w+", match.group()) if match else ():
        if key not in (entries := _entries(node)):
            break
        begin, node = entries[key]
    return begin, node


def _files_of(node: yaml.Node | None) -> set[str]:
    """The names of the files that the nodes in a node are from."""
    files, waiting = set(), [node]
    while waiting:
        if (node := waiting.pop()) is not None:
            files.add(node.start_mark.name)
            waiting += (item for _, item in _entries(node).values())
    return files


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The nodes where the values in a node begin, and those of the values themselves, by key or index."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key, value) for key, value in node.value}
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    return {str(number): (item, item) for number, item in enumerate(items)}


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
