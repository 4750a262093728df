"""Law 14: modes are objects. A mode is asked about where its object is made, and nowhere else."""

import ast
import re
from typing import get_args

import numpy as np

from stitchkit.data.dense.layouts import _LAYOUTS
from stitchkit.data.dense.targets import TARGETS
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.settings.tasks import DENSE, DenseName, TaskName
from stitchkit.tasks.table import TASKS
from tests.source_code import FAMILIES, FILES
from tests.support import ROOT

NETWORKS = {"SNNet", "DenseHead"}
"""Classes of networks: what differs between them is a method."""
NAMES = {*get_args(TaskName), "features"}
"""Names of tasks: what differs between them is in the task's object."""
OF_A_TASK = {"SegmentationScore", "DepthScore", "PairLoader", "ImagePairs"}
"""Classes that stand for a task where they are asked about."""

MOST = {"run": 11, "network": 8, "task": 45, "objective": 12}
"""The most questions of each kind; a change may only lower them."""


def questions(tree):
    """The kind and line of each question about a mode in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "eval" and ast.unparse(node.value).endswith("run"):
            yield "run", node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in ("uses_labels", "uses_features"):
            yield "objective", node.lineno
        elif isinstance(node, ast.Attribute) and node.attr == "is_dense":
            yield "task", node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            names = {*re.findall(r"\w+", ast.unparse(node.args[1]))}
            if names & NETWORKS:
                yield "network", node.lineno
            elif names & OF_A_TASK:
                yield "task", node.lineno
        elif isinstance(node, ast.If | ast.IfExp) and of_dense(node.test):
            yield "task", node.lineno
        elif isinstance(node, ast.BoolOp):
            yield from (("task", node.lineno) for value in node.values if of_dense(value))
        elif isinstance(node, ast.Compare):
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
            if constants & NAMES or re.search(r"\bdense is (not )?None\b|\bin DENSE$", ast.unparse(node)):
                yield "task", node.lineno


def of_dense(node):
    """Whether a condition is that a task is dense."""
    while isinstance(node, ast.UnaryOp | ast.NamedExpr):
        node = node.operand if isinstance(node, ast.UnaryOp) else node.value
    return re.search(r"\b(dense|facts)$", ast.unparse(node)) is not None


def asked():
    """The places of all questions by kind, outside the objects that answer."""
    places = {kind: [] for kind in MOST}
    for path in FILES:
        place = str(path.relative_to(ROOT))
        if place.startswith(("stitchkit/", "stitchnet/", *FAMILIES)) and not place.startswith("stitchkit/tasks/"):
            for kind, line in questions(ast.parse(path.read_text())):
                places[kind].append(f"{place}:{line}")
    return places


def test_law_14_modes_are_objects():
    places = asked()
    counts = {kind: len(lines) for kind, lines in places.items()}
    more = {kind: places[kind] for kind in MOST if counts[kind] > MOST[kind]}
    assert not more, f"a mode is asked about again; let its object answer: {more}"
    assert counts == MOST, "fewer questions are left: lower MOST"


def test_every_task_has_all_its_objects():
    assert {*get_args(DenseName)} == DENSE.keys() == TASKS.keys() == TARGETS.keys() == _LAYOUTS.keys()
    assert {*get_args(TaskName)} == {"classification", *DENSE}
    for name, facts in DENSE.items():
        score = TASKS[name].score(DenseRecipe(task=name), 3)
        assert score.figures(np.ones(score.own + score.truth)).keys() == facts.figures.keys()
        assert facts.has_classes == TARGETS[name].is_balanced


def test_questions_are_counted():
    source = """
if recipe.run.eval or run.eval: pass
isinstance(model, SNNet); isinstance(model, (nn.Linear, DenseHead)); isinstance(model, nn.Linear)
settings.task == "depth"; task in ("segmentation", "depth"); config.dense is None; name == "depths"
stitch.uses_labels
if wanted.dense: pass
if facts and not facts.has_classes: pass
task in DENSE
"""
    kinds = [kind for kind, _ in questions(ast.parse(source))]
    assert sorted(kinds) == ["network"] * 2 + ["objective"] + ["run"] * 2 + ["task"] * 6
