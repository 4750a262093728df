"""The page of anchors holds a row for every model, and the rows are what is measured."""

import re

import pytest
import timm
from timm.models import model_entrypoint

from docs.anchors_table import PAGE, all_names, measure, rows
from tests.support import mostly_full

NAMES = timm.list_models()
ONE_OF_EACH = list({model_entrypoint(name).__module__: name for name in reversed(NAMES)}.values())
QUICK = ["convnext_atto", "vit_small_patch16_dinov3", "tiny_vit_5m_224", "repvgg_a0"]


def test_the_page_has_a_row_for_every_model():
    assert list(rows()) == all_names()


def test_models_can_be_anchors_exactly_or_have_a_reason():
    found = rows().values()
    exact = [row for row in found if "| yes |" in row]
    assert sum("torchvision/" not in row for row in exact) >= 1200
    assert sum("torchvision/" in row for row in exact) >= 40
    assert not [row for row in found if row not in exact and row.endswith("|  |")]


@pytest.mark.parametrize("name", mostly_full(ONE_OF_EACH + QUICK, quick=QUICK))
def test_rows_of_the_page_are_measured_again(name):
    assert str(measure(name)) == rows()[name]


def test_the_python_of_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(code, {})
