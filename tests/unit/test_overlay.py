"""Other models' published results: how their files are read, and which stitches they beat."""

import json
import re

import pytest

from stitchkit.cli import main
from stitchkit.measure.ledger import write_rows
from stitchkit.measure.overlay import beaten, read_overlay, verdict
from stitchkit.measure.pareto import in_view
from tests.commands import refused

ROWS = [{"cfg_id": n, "stitch": f"a[0:{n + 1}]", "flops": (n + 1) * 1e9, "acc1": 60.0 + 10 * n} for n in range(3)]
RESULTS = """model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation
mid.fb_in1k,224,75.500,24.500,92,8,"1,014.45",0.9,bicubic
mid.fb_in22k,288,76.000,24.000,92,8,10.00,1.0,bicubic
gone.a,224,90.000,10.000,99,1,5.00,1.0,bicubic
"""
BENCHMARK = """model,infer_img_size,infer_samples_per_sec,infer_batch_size,param_count,infer_gmacs,infer_macts
mid,224,1000.0,1024,1014.0,2.00,0.48
mid,288,900.0,1024,10.0,3.30,0.6
gone,224,800.0,1024,5.0,,
"""


@pytest.fixture
def file(tmp_path):
    """Write a file; its path."""

    def write(text, name="other.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_published_accuracies_and_costs_are_joined_by_architecture_and_image_size(file):
    files = [file(RESULTS, "results-imagenet.csv"), file(BENCHMARK, "benchmark-infer.csv")]
    for order in (files, files[::-1]):
        overlay = read_overlay(order, ["flops"])
        assert overlay.models == [
            {"name": "mid.fb_in1k", "acc1": 75.5, "params": 1.01445e9, "flops": 2e9},
            {"name": "mid.fb_in22k", "acc1": 76.0, "params": 1e7, "flops": 3.3e9},
        ]
        assert overlay.source == ", ".join(path.name for path in order)
        assert overlay.left_out == "left out 1 of 3 models, which lack an accuracy or FLOPs"


def test_one_file_may_have_everything_in_any_of_its_names(file):
    expected = {"name": "m", "acc1": 80.0, "flops": 4.5e9}
    for text in (
        "name,flops,acc1\nm,4.5e9,80\n",
        "Model,GMACs,accuracy\nm,4.5,80\n",
        "model,infer_gmacs,top1\nm,4.5,80",
    ):
        assert read_overlay([file(text)], ["flops"]).models == [expected]
    assert read_overlay([file(RESULTS)], ["params"]).models[2] == {"name": "gone.a", "acc1": 90.0, "params": 5e6}
    measured = read_overlay([file("name,latency_ms,acc1\nm,2.5,80\nn,,80\n")], ["latency_ms", "flops"])
    assert measured.models == [{"name": "m", "acc1": 80.0, "latency_ms": 2.5}]


def test_without_image_sizes_costs_are_joined_by_name(file):
    accuracies = file("name,acc1\na.tag,70\nb,80\nc,90\n")
    costs = file("name,gmacs\na,1\nb.tag,2\nb,3\n", "costs.csv")
    assert [(row["name"], row["flops"]) for row in read_overlay([accuracies, costs], ["flops"]).models] == [
        ("a.tag", 1e9),
        ("b", 3e9),
    ]
    sizes = file("name,img_size,gmacs\na,224,1\na,288,2\nb,224,3\n", "costs.csv")
    found = read_overlay([accuracies, sizes], ["flops"]).models
    assert [row["name"] for row in found] == ["b"], "which of the sizes of `a` was evaluated is not known"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'name' or 'model' of models; it has no columns"),
        ("modle,acc1\nm,80\n", "of models; it has the columns modle, acc1"),
        ("name,flops\nm,5e9\n", "needs top-1 accuracies in percent: a column 'acc1' or 'top1' or 'accuracy';"),
        ("name,acc1\nm,80\n", "needs FLOPs: a column 'flops' or 'gmacs' or 'infer_gmacs'; it has the columns name"),
        ("name,flops,acc1\nm,5e9,\n,5e9,80\n", "none of 1 model of --overlay has both an accuracy and FLOPs"),
        ("name,flops,acc1\nm,5e9,high\n", "line 2 has acc1 'high', which is not a number from 0 to 100; correct it"),
        ("name,flops,acc1\nm,5e9,101\n", "line 2 has acc1 '101', which is not a number from 0 to 100"),
        ("name,flops,acc1\nn,5e9,80\nm,-1,80\n", "line 3 has flops '-1', which is not a number from 0"),
        ("name,flops,acc1\nm,inf,80\n", "line 2 has flops 'inf', which is not a number from 0"),
        ("name,flops,acc1\nm,5e9,0.8\nn,6e9,1\n", "has accuracies of at most 1; give percent, such as 80 for 0.8"),
        ("name,gmacs,acc1\nm,2e9,80\n", "has 2e+09 in its column 'gmacs'; give billions of multiply-adds, or na"),
        ("name,flops,acc1,param_count\nm,2e9,80,5e6\n", "has 5e+06 in its column 'param_count'; give millions, or na"),
        ("name,Flops,acc1,flops\nm,2e9,80,3e9\n", "has the columns 'Flops' and 'flops', which mean the same; remove o"),
        ("name,acc1, acc1,flops\nm,2e9,80,3e9\n", "has the columns 'acc1' and ' acc1', which mean the same; remove o"),
        ("name,flops,acc1\nm,17.6,80\n", "has at most 17.6 in its column 'flops'; give single FLOPs, or na"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why(text, message, file, tmp_path, capsys):
    write_rows(tmp_path / "r.txt", ROWS)
    assert message in refused(capsys, "pareto", tmp_path / "r.txt", "--overlay", file(text))


def test_a_model_beats_what_is_less_accurate_at_the_same_or_a_higher_cost():
    models = [
        {"name": "cheap", "flops": 0.5e9, "acc1": 55.0},
        {"name": "rounded", "flops": 2.01e9, "acc1": 72.0},
        {"name": "costly", "flops": 4e9, "acc1": 99.0},
        {"name": "unknown", "acc1": 99.0},
        {"name": "equal", "flops": 1e9, "acc1": 60.0},
    ]
    assert [(row["cfg_id"], model["name"]) for row, model in beaten(ROWS, models, "flops")] == [(1, "rounded")]
    assert beaten(ROWS, models, "latency_ms") == []


def test_the_verdict_names_the_widest_gap():
    models = [{"name": "mid", "flops": 2e9, "acc1": 83.1}, {"name": "low", "flops": 1e9, "acc1": 61.0}]
    assert verdict(ROWS, models, "flops") == (
        "3 of 3 stitches on the front are beaten by a single model; by most: at 2G FLOPs, mid has 83.10 %, "
        "13.10 points more than cfg_id 1 (a[0:2]) at 2G FLOPs"
    )
    assert verdict(ROWS, models[1:], "flops").startswith("1 of 3 stitches on the front is beaten by a single model;")
    assert verdict(ROWS, [{"name": "low", "flops": 1e9, "acc1": 5.0}], "flops") == (
        "none of 3 stitches on the front is beaten by a single model of the same or a lower cost in FLOPs"
    )


def test_only_models_near_the_stitches_are_shown_and_those_on_the_front_of_all_named():
    figures = {
        "far": (0.1, 65.0),
        "weak": (2.0, 10.0),
        "front": (1.5, 75.0),
        "behind": (1.6, 70.0),
        "huge": (90.0, 99.0),
    }
    models = [{"name": name, "flops": cost * 1e9, "acc1": acc1} for name, (cost, acc1) in figures.items()]
    near, front = in_view([*models, {"name": "unknown", "acc1": 99.0}], ROWS, "flops")
    assert [model["name"] for model in near] == ["front", "behind"]
    assert [model["name"] for model in front] == ["front"]


def test_pareto_says_where_a_single_model_beats_the_stitches(file, tmp_path, capsys):
    write_rows(tmp_path / "r.txt", ROWS)
    other = file("name,flops,acc1\nm$i$d.tag,2e9,83.1\nbehind,2.1e9,70\n")
    command = ["pareto", str(tmp_path / "r.txt"), "--overlay", str(other)]
    assert main([*command, "--plot", str(tmp_path / "p.svg")]) == 0
    said = capsys.readouterr().out.splitlines()[-2]
    assert said.startswith("2 of 3 stitches on the front are beaten by a single model; by most: at 2G FLOPs, m$i$d.tag")
    assert said.endswith("at 2G FLOPs (other.csv; measured elsewhere, perhaps on other images or machines)")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "p.svg").read_text())
    assert "other models: other.csv; measured elsewhere, perhaps on other images or machines" in texts
    assert {"m$i$d", "other models"} < {*texts}
    assert "behind" not in texts
    write_rows(tmp_path / "r.txt", [{**row, "params": 5} for row in ROWS])
    assert "needs parameters: a column 'params' or 'param_count'" in refused(capsys, *command, "--cost", "params")


def test_pick_warns_of_a_single_model_within_the_same_budget(file, tmp_path, capsys):
    write_rows(tmp_path / "r.txt", ROWS)
    other = file("name,gmacs,acc1\nmid,2.4,71.5\nhuge,90,99\n")
    pick = ["pick", str(tmp_path / "r.txt"), "--overlay", str(other)]
    assert main([*pick, "--max-flops", "2.5G"]) == 0
    said = capsys.readouterr().out
    assert (
        "a single model is better: mid with 2.4G FLOPs has 71.50 %, 1.50 points more "
        "(other.csv; measured elsewhere, perhaps on other images or machines)" in said
    )
    assert main([*pick, "--max-flops", "2.5G", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["better_single_model"]["name"] == "mid"
    for budget in (["--max-flops", "1.5G"], [], ["--min-acc1", "65"]):
        assert main([*pick, *budget, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["better_single_model"] is None, (
            "without a limit on its cost, a model may cost as much as the stitch"
        )
    write_rows(tmp_path / "r.txt", [{**row, "params": 5} for row in ROWS])
    limits = ["--max-flops", "2.5G", "--max-params", "7"]
    assert "needs parameters: a column 'params' or 'param_count'" in refused(capsys, *pick, *limits)
    file("name,gmacs,acc1,param_count\nmid,2.4,99,\nsmall,2.4,75,0.000006\n")
    assert main([*pick, *limits]) == 0
    said = capsys.readouterr().out
    assert "small with 2.4G FLOPs and 6 parameters has 75.00 %" in said
    assert "left out 1 of 2 models, which lack an accuracy or FLOPs and parameters" in said
