"""The code of the house, as the tests of its laws read it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support import ROOT

FAMILIES = ("stitching_deit", "stitching_levit", "stitching_resnet_swin", "stitching_swin")
PACKAGES = ("stitchkit", *FAMILIES, "stitchnet", "benchmarks", "studies")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def name_of(node: ast.expr) -> str:
    """A dotted name such as `torch.load`, with `?` for what is not a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([getattr(node, "id", "?"), *reversed(parts)])
