"""Law 10 for the zoo: every configuration builds, and costs what its file and the page say; the command lists them."""

import json
import re
import subprocess
import sys

import pytest
import timm

from docs.zoo_table import HEAD, PAGE, licence, measure, table, write_facts
from stitchkit.cli import main
from stitchkit.settings.names import short_names
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.stitch_recipe import RECIPE
from stitchkit.settings.zoo import facts_of, in_braces, zoo
from tests.commands import refused

CROSS = {"dinov2_l_siglip2_so400m"}
"""Of two kinds of backbone, whose images are prepared unlike: docs/cross_stitches.md says what to do."""
ZOO = zoo()
FILES = {name: path for name, path in short_names().items() if name in ZOO}


def one_of_each_module():
    """The configurations by the module of their first anchor, which has the code that is measured."""
    modules = {}
    for name in ("deit3_s_l", "resnet_a1_18_34", *FILES):
        anchor = ZOO[name].anchors[0].name
        modules.setdefault(timm.models.model_entrypoint(anchor.partition(".")[0]).__module__, name)
    return [*modules.values()]


# One module in three before a change lands; each takes about 10 s.
MARKS = dict.fromkeys(one_of_each_module()[::3], pytest.mark.full) | {"deit3_s_l": (), "resnet_a1_18_34": ()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.nightly)) for name in sorted(FILES)]
)
def test_law_10_a_configuration_of_the_zoo_costs_what_it_says(name):
    """The whole networks, on the meta device."""
    config = StitchConfig.load(FILES[name])
    assert measure(config) == facts_of(config)


def test_the_zoo_is_large():
    assert len(FILES) >= 45


def test_law_10_configurations_of_the_zoo_say_where_they_come_from_and_pin_their_weights():
    known, wrong = {*timm.list_models(pretrained=True)}, []
    for name, path in FILES.items():
        config = StitchConfig.load(path)
        if next(iter(json.loads(path.read_text()))) != "source" or not config.source:
            wrong.append(f"{name}: the first key says where it comes from")
        wrong += [f"{name}: {anchor.name}" for anchor in config.anchors if anchor.name not in known]
        wrong += [f"{name}: {anchor.name}" for anchor in config.anchors if "." not in anchor.name]
        prepared = [timm.models.get_pretrained_cfg(anchor.name) for anchor in config.anchors]
        if len({(cfg.mean, cfg.std) for cfg in prepared}) > 1 and name not in CROSS:
            wrong.append(f"{name}: anchors differ in normalisation")
        if licence(config) != facts_of(config).licence:
            wrong.append(f"{name}: licence")
        if config.recipe != RECIPE and path.parent.name == "zoo":  # others have a published recipe
            wrong.append(f"{name}: recipe")
    assert not wrong, "\n".join(wrong)


def test_the_page_is_that_of_the_script():
    assert PAGE.read_text().partition(HEAD)[2] == table().removeprefix(HEAD)


def test_the_script_writes_facts_into_a_file(tmp_path):
    path = tmp_path / "resnet.json"
    text = FILES["resnet_a1_18_34"].read_text()
    without = re.sub(r'  "zoo": \{.*?\},\n', "", text, flags=re.DOTALL)
    assert '"zoo"' not in without
    for given in (without, text.replace('"stitches": ', '"stitches": 9')):
        path.write_text(given)
        write_facts(path)
        assert path.read_text() == text


def lines(capsys, *flags):
    capsys.readouterr()
    assert main(["zoo", *flags]) == 0
    head, *rows, count = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "anchors", "stitches", "FLOPs", "classes", "image", "licence"]
    assert int(count.split()[0]) == len(rows)
    return rows


def test_the_command_lists_the_zoo_from_cheap_to_costly(capsys):
    rows = lines(capsys)
    assert {row.split()[0] for row in rows} == FILES.keys()
    low = [facts_of(config).flops[0] for config in zoo().values()]
    assert low == sorted(low)
    (row,) = (row for row in rows if row.startswith("deit3_s_m_b "))
    assert row.split() == [
        *("deit3_s_m_b", "deit3_{small,medium,base}_patch16_224", "71", "4.61G", "to", "18.9G"),
        *("1000", "224", "apache-2.0"),
    ]
    (row,) = (row for row in rows if row.startswith("dinov2_s_b_l_g "))
    assert "headless" in row


def test_the_command_chooses_by_cost_and_licence(capsys):
    cheap = {row.split()[0] for row in lines(capsys, "--max-flops", "2G")}
    assert cheap == {name for name, config in zoo().items() if facts_of(config).flops[0] <= 2e9}
    assert {"augreg_ti_s_b", "resnet_a1_18_34"} <= cheap < FILES.keys()
    mit = lines(capsys, "--licence", "mit")
    assert mit
    assert all(row.endswith(" mit") for row in mit)
    assert len(lines(capsys, "--licence", "mit", "--max-flops", "4.6G")) < len(mit)


def test_the_command_refuses_what_it_does_not_know(capsys):
    assert "unknown licence 'apache-2'; did you mean 'apache-2.0'?" in refused(capsys, "zoo", "--licence", "apache-2")
    assert "the cheapest takes" in refused(capsys, "zoo", "--max-flops", "1k")
    assert "error: --max-flops: '5X' is not a positive number, such as 5G" in refused(
        capsys, "zoo", "--max-flops", "5X"
    )


def test_the_zoo_is_listed_without_torch():
    code = "import sys; from stitchkit.cli import main; sys.exit(main(['zoo']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["deit3_small_patch16_224", "deit3_base_patch16_224"], "deit3_{small,base}_patch16_224"),
        (["convnextv2_atto", "convnextv2_pico"], "convnextv2_{atto,pico}"),
        (["resnet18", "resnet34"], "resnet18, resnet34"),
        (["vit_pe_tiny_16", "vit_pe_tiny_plus_16"], "vit_pe_tiny_{,plus}_16"),
    ],
)
def test_labels_are_abbreviated_by_words(labels, text):
    assert in_braces(labels) == text
