"""Files that nobody meant: good ones with odd values, broken texts, and random bytes."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from stitchkit.settings.files import settings_text
from tests.damage import places

Dump = Callable[[Any], str]
"""Writes plain data as the text of a file."""


class Seed(NamedTuple):
    """The good content of a file: plain data that can be written in several ways, or its bytes."""

    content: Any
    dumps: Sequence[Dump] = ()


def in_lines(rows: Any) -> str:
    """JSON, one line for each row."""
    return "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)


def in_yaml(content: object) -> str:
    """YAML; what has no place in it, such as lone surrogates, as JSON."""
    try:
        return settings_text(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return json.dumps(content, default=str)


def _nested(depth: int) -> object:
    found: object = 1
    for _ in range(depth):
        found = [found]
    return found


_NUMBERS: list[object] = [
    0, -1, 1, 2, 3, 7, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, -(10**400), 0.5, -0.0, 1e-300, 1e308,
    float("inf"), -float("inf"), float("nan"), True, False, None,
]  # fmt: skip
_TEXTS: list[object] = [
    "", " ", "\0", "a\nb", "\x1b[31mred", "\ud800", "\ufeff", "x" * 5000, "9" * 400, "null", "~", "nan", "-inf",
    "1e999",
    "1_000", "0x1f", "2026-02-30", "!include x.yml", "/dev/zero", "../../x", "http://x/y", "pipe:true", "%s{0}{x}",
    "a[0:1]", "a[0:999999999999] > b[1:2]", "\u202e\u0661\u0662", "٣", "img", "auto", "blocks.99", "avg", "none",
]  # fmt: skip
_OTHERS: list[object] = [
    [], {}, [[]], [None], [1, "a"], {"a": 1}, {"": {}}, {"a": {"b": [1]}}, [1] * 20_000,
    {str(n): n for n in range(20_000)},
    _nested(60), [0, 0], [32, 32], [10**9, 10**9], ["img", [3, 10**9, 10**9]], datetime.date(2026, 2, 3),
    {1: 2}, {None: 1}, {"a" * 3000: 1}, {"\n": 1}, {"\ud800": "\ud800"},
]  # fmt: skip
odd_values = st.sampled_from([*_NUMBERS, *_TEXTS, *_OTHERS]).map(copy.deepcopy)
"""Values of the wrong type, beyond every range, or meant for another reader."""

_LAUGHS = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12))
_SNIPPETS = [
    "\0", "\ufeff", "\ud800", "\r", "\t", "\n", "\n\n", "\x1b[2J", "\x7f", "\x85", "\u2028", "'",
    '"', "\\", ",", ";", "#",
    "[" * 10_000, "{" * 10_000, '{"a":' * 10_000, "[" * 150 + "]" * 150, "{a: " * 500, "- " * 5000, "? " * 3000,
    "x0: &x0 [1]\n" + _LAUGHS, "&a [*a]", "a: &a {b: *a}\n", "*nothing", "<<: [1]\n", "<<: {a: 1}\n",
    "<<: &m {<<: *m}\n",
    "!include", "!include\n", "a: !include\n", "a: !include fuzzed.yml\n", "a: !include fuzzed.json\n",
    "a: !include .\n",
    "a: !include /dev/zero\n", "a: !include ../none.yml\n", "!include /etc/hostname\n", "a: !include [x]\n",
    "!!python/object:os.x {}", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!binary =", "!!timestamp x", "!!int x",
    "!!float x", "!!bool x", "!!null x", "!!map []", "!!seq {}", "!!str {}", "!!int ''", "!!float ''", "!!timestamp ''",
    "2026-13-45", "2026-01-01T25:61:61Z", "0001-01-01T00:00:00+23:59", ".inf", "-.INF", ".nan", "9" * 5000,
    "1" * 400 + ".5", "0x" + "f" * 5000, "1e" + "9" * 400, "-" * 3000, "1:60:60", "0o777", "NaN", "Infinity",
    "-Infinity",
    "1e999", "{}{}", "? [a]: b\n", "? {a: b}\n: c\n", "a: 1\na: 2\n", '{"a": 1, "a": 2}', "---\n", "...\n",
    "%YAML 9.9\n",
    "%TAG ! x\n", "cfg_id", '"cfg_id": true', "null", "true", "[]", "{}", "-1", "5G", "1e400G", "5ms", "0-999999999999",
    "99999999999-0",
]  # fmt: skip


@st.composite
def _odd_content(draw: DrawFn, seed: Seed) -> bytes:
    """Good data with something else at one to three places."""
    content = json.loads(json.dumps(seed.content))  # tuples as lists
    for _ in range(draw(st.integers(1, 3))):
        found = [place for place, _ in places(content)]
        if not found:
            break
        *above, key = draw(st.sampled_from(found))
        inner: Any = content
        for step in above:
            inner = inner[step]
        match draw(st.sampled_from(["another", "another", "another", "missing", "further"])):
            case "missing":
                del inner[key]
            case "further" if isinstance(inner, dict):
                names = st.sampled_from([str(name) for *_, name in found])
                inner[draw(names | st.text(max_size=5))] = draw(odd_values)
            case _:
                inner[key] = draw(odd_values)
    dump = draw(st.sampled_from(list(seed.dumps)))
    try:
        text = dump(content)
    except (TypeError, ValueError):  # JSON has no dates, and only text as keys
        text = json.dumps(json.loads(json.dumps(content, default=str, skipkeys=True)))
    return text.encode(errors="surrogatepass")


@st.composite
def _odd_text(draw: DrawFn, seed: Seed) -> bytes:
    """A good file with something inserted, repeated or cut out."""
    content = seed.content
    if seed.dumps:
        content = draw(st.sampled_from(list(seed.dumps)))(content).encode(errors="surrogatepass")
    assert isinstance(content, bytes)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(len(content), begin + 40)))
        middle: bytes = draw(
            st.one_of(_snippet, _snippet, _snippet, st.binary(max_size=8), st.just(content[begin:end] * 2))
        )
        content = content[:begin] + middle + content[draw(st.sampled_from([begin, end])) :]
    return content


_snippet = st.sampled_from(_SNIPPETS).map(lambda text: text.encode(errors="surrogatepass"))


@st.composite
def files(draw: DrawFn, seeds: Sequence[Seed]) -> bytes:
    """The content of a file: one of the good ones with faults, or nothing of it."""
    seed = draw(st.sampled_from(list(seeds)))
    changed = [_odd_text(seed), *(2 * [_odd_content(seed)] if seed.dumps else [])]
    content: bytes = draw(st.one_of(*changed, _snippet, st.binary(max_size=60)))
    return content
