"""One noun, one meaning, one file."""

import ast
import re
from collections import defaultdict

from tests.source_code import FILES
from tests.support import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs/glossary.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| noun", "| ---"))
]


def test_every_noun_has_one_sentence_and_a_file_that_exists():
    assert len({noun for noun, *_ in ROWS}) == len(ROWS) > 20
    for noun, sentence, file in ROWS:
        assert (ROOT / file.strip("`")).is_file(), noun
        assert sentence, noun
        assert not re.search(r"\.\s", sentence), noun


def test_one_class_name_has_one_meaning():
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in twice.items())
