"""Law 11, the house law: imports point one way, files and functions stay small."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

FLOORS = {
    # A file may import from lower floors and from its own.
    "stitchkit/errors.py": 0,
    "stitchkit/_version.py": 0,
    "stitchkit/files.py": 0,
    "stitchkit/paths.py": 1,
    "stitchkit/classes.py": 1,
    "stitchkit/routes": 1,
    "stitchkit/config.py": 2,
    "stitchkit/distributed.py": 2,
    "stitchkit/model": 3,
    "stitchkit/measure": 4,
    "stitchkit/train": 5,
    "stitchkit/ship": 6,
    "stitchkit/parser.py": 1,
    "stitchkit/__init__.py": 7,
    "stitchkit/commands.py": 7,
    "assembly/__init__.py": 8,
    "assembly/parts": 8,
    "assembly/config": 9,
    "assembly/datasets": 9,
    "assembly/train": 10,
    "assembly/sweep": 11,
    "assembly/commands.py": 12,
    "stitchnet": 8,
    "stitchkit/cli.py": 13,
    "stitchkit/__main__.py": 14,
    "benchmarks": 15,
}
FAMILIES = ("stitching_deit", "stitching_levit", "stitching_resnet_swin", "stitching_swin")
PACKAGES = ("stitchkit", *FAMILIES, "assembly", "stitchnet", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def floor(path: str) -> int:
    return next(number for place, number in FLOORS.items() if path == place or path.startswith(place + "/"))


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


def own_file(module: str) -> str | None:
    """The file or folder of ours that a module is."""
    place = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES:
        return None
    if place.with_suffix(".py").is_file():
        return str(place.with_suffix(".py").relative_to(ROOT))
    return str((place / "__init__.py").relative_to(ROOT)) if place.is_dir() else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_law_11_imports_point_one_way(path):
    here = str(path.relative_to(ROOT))
    for module in imports(path):
        there = own_file(module)
        if there is None:
            continue
        if here.startswith(FAMILIES):
            family = here.split("/")[0]
            allowed = ("stitchkit/model", "stitchkit/routes", family)
            assert there.startswith(allowed) or there == "stitchkit/errors.py", f"{here} imports {module}"
        else:
            assert not there.startswith(FAMILIES), f"{here} names the family {module}"
            assert floor(there) <= floor(here), f"{here} imports {module} from a higher floor"


def test_law_11_assembly_and_stitchnet_do_not_know_each_other():
    for path in FILES:
        here = path.relative_to(ROOT).parts[0]
        other = {"assembly": "stitchnet", "stitchnet": "assembly"}.get(here)
        assert other not in {module.split(".")[0] for module in imports(path)}, path


def test_law_11_routes_know_no_torch():
    for path in (ROOT / "stitchkit/routes").glob("*.py"):
        assert not {"torch", "timm", "numpy"} & {module.split(".")[0] for module in imports(path)}, path


def test_law_11_the_library_imports_no_training():
    for name in ("model", "measure", "routes"):
        for path in (ROOT / "stitchkit" / name).rglob("*.py"):
            assert not any(module.startswith("stitchkit.train") for module in imports(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_law_11_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, node.name


def test_law_11_the_core_names_families_in_one_table_only():
    core = [path for path in FILES if path.is_relative_to(ROOT / "stitchkit")]
    family = re.compile(r"stitching_(deit|swin|resnet_swin|levit)")
    assert [path.name for path in core if family.search(path.read_text())] == ["anchor.py"]
