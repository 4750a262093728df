"""Law 11, the house law: imports point one way, files and functions stay small."""

import ast
import json
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import entry_points

from setuptools import find_packages

from stitchkit import cli
from stitchkit.parser import Command, resolved
from tests.commands import commands_of
from tests.source_code import FAMILIES, FILES, PACKAGES, imports
from tests.support import ROOT

# A file may import from lower floors and from its own. The command line stands low: it finds the commands by their
# entry points, and imports no wing.
FLOORS = {
    "stitchkit/errors.py": 0,
    "stitchkit/_version.py": 0,
    "stitchkit/files.py": 0,
    "stitchkit/__init__.py": 1,
    "stitchkit/display.py": 1,
    "stitchkit/optional.py": 1,
    "stitchkit/paths.py": 1,
    "stitchkit/classes.py": 1,
    "stitchkit/parser.py": 1,
    "stitchkit/cli.py": 1,
    "stitchkit/__main__.py": 1,
    "stitchkit/restarts.py": 1,
    "stitchkit/distributed.py": 1,
    "stitchkit/progress.py": 1,
    "stitchkit/routes": 1,
    "stitchkit/settings": 2,
    "stitchkit/networks": 3,
    "stitchkit/model": 4,
    "stitchkit/data": 4,
    "stitchkit/measure": 5,
    "stitchkit/tasks": 6,
    "stitchkit/choose": 6,
    "stitchkit/engine": 6,
    "stitchkit/training": 7,
    "stitchkit/ship": 8,
    "stitchkit/assembly/__init__.py": 9,
    "stitchkit/assembly/parts": 9,
    "stitchkit/assembly/config": 10,
    "stitchkit/assembly/train": 11,
    "stitchkit/assembly/sweep": 12,
    "stitchkit/assembly/commands.py": 13,
    "stitchnet": 9,
    "benchmarks": 14,
    "studies": 14,
}


def floor(path: str) -> int:
    return next(number for place, number in FLOORS.items() if path == place or path.startswith(place + "/"))


def test_law_11_the_page_names_the_wings_in_their_order():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`(\w+)`", page.partition("stand in this order")[2].partition("No file")[0])
    ours = {place.split("/")[1]: number for place, number in FLOORS.items() if place.startswith("stitchkit/")}
    wings = {name: number for name, number in ours.items() if (ROOT / "stitchkit" / name).is_dir()}
    assert set(named) == set(wings)
    assert named == sorted(named, key=wings.__getitem__)


def own_file(module: str) -> str | None:
    """The file or folder of ours that a module is."""
    place = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES:
        return None
    if place.with_suffix(".py").is_file():
        return str(place.with_suffix(".py").relative_to(ROOT))
    return str((place / "__init__.py").relative_to(ROOT)) if place.is_dir() else None


def arrows() -> Iterator[tuple[str, str]]:
    """Every import of a file of ours by another one: `(importing, imported)`."""
    for path in FILES:
        here = str(path.relative_to(ROOT))
        for module in imports(path):
            there = own_file(module)
            if there is not None and there != here:
                yield here, there


def test_law_11_imports_point_one_way():
    up = []
    for here, there in arrows():
        if here.startswith(FAMILIES):
            allowed = ("stitchkit/networks", "stitchkit/routes", here.split("/")[0])
            if not there.startswith(allowed) and there != "stitchkit/errors.py":
                up.append(f"{here} imports {there}, which families do not")
        elif there.startswith(FAMILIES):
            up.append(f"{here} names the family {there}")
        elif floor(there) > floor(here):
            up.append(f"{here} imports {there} from a higher floor")
    assert not up, "\n".join(up)


def test_law_11_every_command_and_schema_is_declared_in_its_wing_and_registered():
    registered = [entry for group in ("commands", "schemas") for entry in entry_points(group=f"stitchkit.{group}")]
    assert all(callable(entry.load()) for entry in registered)
    declared = set()
    for path in FILES:
        if path.name == "commands.py":
            module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
            names = [name for name, value in vars(import_module(module)).items() if isinstance(value, Command)]
            declared |= {(module, name) for name in names}
    assert declared == {(entry.module, entry.attr) for entry in registered if entry.group == "stitchkit.commands"}
    assert len(declared) > 15


def test_law_11_what_commands_name_can_be_called():
    names = entry_points(group="stitchkit.commands").names
    commands = [own.get_default("command") for name in names for own in commands_of(cli._parser(name))]
    assert len(commands) > len(names)
    assert all(
        callable(resolved(function)) for command in commands for function in (command.run, command.check or print)
    )


# Packages that take a second to import, or that only some commands need.
HEAVY = {
    *("datasets", "huggingface_hub", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "optuna", "pandas", "sklearn"),
    *("submitit", "timm", "torch", "torchvision", "wandb"),
}
# What these import is ours, and needs a package that the rest of the file does not.
NEED_HEAVY = {"stitchkit.ship.int8": "onnxruntime", "stitchkit.measure.costs": "torch, which a ledger alone does not"}


def test_law_11_imports_inside_functions_save_a_heavy_package():
    inside = []
    for path in FILES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in {node for function in nodes for node in ast.walk(function)}:
            if isinstance(node, ast.ImportFrom):
                inside.append((path.relative_to(ROOT), node.module))
            elif isinstance(node, ast.Import):
                inside += [(path.relative_to(ROOT), alias.name) for alias in node.names]
    inside = [(path, name) for path, name in inside if path.parts[0] not in ("benchmarks", "studies")]
    light = [
        f"{path} imports {name} in a function; import it at the top"
        for path, name in inside
        if name.split(".")[0] not in HEAVY and name not in NEED_HEAVY
    ]
    assert not light, "\n".join(light)
    assert {name for _, name in inside} >= NEED_HEAVY.keys()


def test_law_11_the_wheel_neither_has_studies_nor_needs_them():
    text = (ROOT / "pyproject.toml").read_text()
    (include,) = re.findall(r"^\[tool.setuptools.packages.find\]\ninclude = (.*)", text, re.MULTILINE)
    wheel = {name.split(".")[0] for name in find_packages(str(ROOT), include=json.loads(include))}
    assert wheel == {"stitchkit", "stitchnet", *FAMILIES}
    needed = [(here, there) for here, there in arrows() if here.split("/")[0] in wheel and there.startswith("studies/")]
    assert not needed, needed


def test_law_11_no_files_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for here, there in arrows():
        if not there.endswith("__init__.py"):  # a folder's front, which names what is in it
            graph.setdefault(here, set()).add(there)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def test_law_11_assembly_and_stitchnet_do_not_know_each_other():
    for path in FILES:
        here = str(path.relative_to(ROOT))
        others = {"stitchkit/assembly": "stitchnet", "stitchnet": "stitchkit.assembly"}
        for place, other in others.items():
            if here.startswith(place):
                assert not any(module.startswith(other) for module in imports(path)), path


def test_law_11_routes_know_no_torch():
    for path in (ROOT / "stitchkit/routes").glob("*.py"):
        assert not {"torch", "timm", "numpy"} & {module.split(".")[0] for module in imports(path)}, path


def test_law_11_the_library_imports_no_training():
    for name in ("networks", "model", "data", "measure", "routes", "settings", "engine"):
        for path in (ROOT / "stitchkit" / name).rglob("*.py"):
            assert not any(module.startswith("stitchkit.training") for module in imports(path)), path


def test_law_11_the_engine_knows_no_recipes_networks_of_stitches_or_jobs():
    known = re.compile(r"stitch|cfg_id|SN-?Net|recipe", re.IGNORECASE)
    for path in (ROOT / "stitchkit/engine").glob("*.py"):
        assert not known.search(path.read_text().replace("stitchkit", "")), path


def test_law_11_files_and_functions_stay_small():
    large = []
    for path in [*FILES, *(ROOT / "docs").glob("*.py")]:
        text, here = path.read_text(), path.relative_to(ROOT)
        large += [f"{here}: {text.count(chr(10))} lines"] if text.count("\n") > 400 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 70:
                large.append(f"{here}: {node.name}")
    assert not large, "\n".join(large)


def test_law_11_the_core_names_families_in_one_table_only():
    core = [path for path in FILES if path.is_relative_to(ROOT / "stitchkit")]
    family = re.compile(r"stitching_(deit|swin|resnet_swin|levit)")
    assert [path.name for path in core if family.search(path.read_text())] == ["families.py"]
