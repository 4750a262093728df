"""`stitchkit report`: what is on the page, and what a person does with it in a real browser."""

import csv
import json
import re
import shlex
import shutil
import sys

import pytest
import torch

from stitchkit.cli import main
from stitchkit.measure.ledger import read_rows
from stitchkit.model.create import create_snnet
from stitchkit.routes import Stitch
from stitchkit.ship.route_drawing import depths_of, draw_route
from tests.browser import open_page, running_browser
from tests.support import ROOT, mostly_full

pytest.importorskip("plotly", reason="plotly is not installed")
LEDGER = ROOT / "results/digits_vit/stitches_res.txt"
CONFIG = ROOT / "configs/digits_vit.json"
LEVIT = [ROOT / f"results/digits_families/digits_levit{suffix}.txt" for suffix in ("", "_recalibrated")]


def report(*arguments):
    return main(["report", *map(str, arguments)])


def data_of(path):
    """What the page's script reads."""
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', path.read_text())[1])


def write_ledger(path, *rows):
    path.write_text("".join(json.dumps({"cfg_id": number, **row}) + "\n" for number, row in enumerate(rows)))
    return path


def refused(capsys, *arguments):
    assert report(*arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert report(LEDGER, "--stitch_config", CONFIG, "-o", path) == 0
    return path


@pytest.fixture(scope="module")
def browser():
    """One for all tests of this file."""
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(page_file, browser):
    """The page in a browser, and the errors in it so far."""
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        yield page, wrong


@pytest.fixture
def shown(opened):
    """The page as another test may have left it, but without its filters, costs and order; and errors."""
    page, _ = opened
    page.emulate_media(color_scheme="light")
    page.locator("#clear").click()
    page.locator("#axis").select_option("flops")
    page.locator("#head button").first.click()
    return opened


def test_the_page_holds_every_row_and_the_curves(page_file):
    content = data_of(page_file)
    (ledger,) = content["ledgers"]
    found, by_cost = read_rows(LEDGER), ("p_front", "tied_with")
    for row, shown in zip(found, ledger["rows"], strict=True):
        assert {key: row[key] for key in row if key not in by_cost} == {
            key: shown[key] for key in shown if key not in ("anchor", "front", "command", "by_cost", *by_cost)
        }
        assert shown["by_cost"]["flops"] == {key: row[key] for key in by_cost}
    assert [row["stitch"] for row in ledger["rows"] if row["anchor"]] == ["ti[0:6]", "s[0:6]", "b[0:6]"]
    assert ledger["routes"].keys() == {row["stitch"] for row in found}
    assert ledger["rows"][3]["command"] == (
        f"stitchkit export --stitch-config {CONFIG} --resume CHECKPOINT --cfg-id {found[3]['cfg_id']} "
        f"-o stitch{found[3]['cfg_id']}.onnx"
    )
    (training,) = content["training"]
    curves = training["curves"]
    assert len(curves["epoch"]) == len((ROOT / "results/digits_vit/summary.csv").read_text().splitlines()) - 1
    assert curves["epoch"][0] == 1, "for people; the file counts from 0"
    assert curves["eval_ti_acc1"][0] is None, "an epoch without validation"
    assert curves["train_loss"][0] == pytest.approx(1.457, abs=1e-3)


def test_nothing_is_fetched(page_file):
    text = page_file.read_text()
    assert "<script src" not in text
    assert "<link" not in text.split("<script")[0]
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "family",
    mostly_full(
        ["deit_ti_s_b", "swin_ti_s_b", "resnet18_resnet50", "resnet18_swin_ti", "levit_192_256"],
        quick=["levit_192_256"],
    ),
)
def test_published_ledgers_get_their_stitches_from_the_configuration(family, shared, tmp_path):
    ledger, page = shared / f"published/{family}.jsonl", tmp_path / "page.html"
    assert report(ledger, "-o", page) == 0
    assert data_of(page)["ledgers"][0]["routes"] == {}
    assert report(ledger, "--stitch_config", ROOT / f"configs/{family}.json", "-o", page) == 0
    (found,) = data_of(page)["ledgers"]
    assert len(found["routes"]) == len(found["rows"]) == len(read_rows(ledger))
    first = found["rows"][0]
    assert (first["anchor"], first["acc1"]) == (True, read_rows(ledger)[0]["acc1"])


@pytest.mark.full
def test_names_need_no_weights(tmp_path, monkeypatch):
    devices = []

    def create(config, **options):
        devices.append(torch.get_default_device().type)
        return create_snnet(config, **options)

    monkeypatch.setattr("stitchkit.ship.report.create_snnet", create)
    assert report(LEDGER, "--stitch_config", CONFIG, "-o", tmp_path / "page.html") == 0
    assert devices == ["meta"]


@pytest.mark.full
def test_losses_of_stitches_are_a_picture(tmp_path, browser):
    ledger = shutil.copy(LEDGER, tmp_path)
    lines = [
        "epoch,cfg_id,stitch,loss,steps",
        "0,16,ti[0:5] > s[5:6],1.5,2",
        "1,0,ti[0:6],1.25,1",
        "1,16,ti[0:5] > s[5:6],nan,2",
    ]
    (tmp_path / "losses.csv").write_text("\n".join(lines))
    assert report(ledger, "-o", tmp_path / "page.html") == 0
    (training,) = data_of(tmp_path / "page.html")["training"]
    assert training["losses"] == {
        "epochs": [1, 2],
        "stitches": ["ti[0:6]", "ti[0:5] > s[5:6]"],
        "means": [[None, 1.25], [1.5, None]],
    }
    with open_page((tmp_path / "page.html").as_uri(), browser) as (page, wrong):
        page.locator("#curves .heat .heatmaplayer image").wait_for()
        assert page.locator("#curves > div").count() == 1
        assert wrong == []


def test_the_files_of_a_run_complete_the_command(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    ledger = shutil.copy(LEDGER, folder)
    (folder / "last.pth.tar").touch()
    end = " --cfg-id 0 -o stitch0.onnx"
    assert report(ledger, "-o", tmp_path / "page.html") == 0
    command = data_of(tmp_path / "page.html")["ledgers"][0]["rows"][0]["command"]
    assert command == f"stitchkit export --stitch-config CONFIG.json --resume '{folder / 'last.pth.tar'}'" + end
    settings = folder / "eval_args.yaml"
    settings.write_text(f"stitch_config: {CONFIG}\nresume: best.pth\n")
    assert report(ledger, "-o", tmp_path / "page.html") == 0
    command = data_of(tmp_path / "page.html")["ledgers"][0]["rows"][0]["command"]
    assert command == f"stitchkit export -c '{settings}'" + end
    assert report(ledger, "-o", tmp_path / "page.html", "--stitch_config", CONFIG) == 0
    command = data_of(tmp_path / "page.html")["ledgers"][0]["rows"][0]["command"]
    assert command == f"stitchkit export -c '{settings}' --stitch-config {CONFIG}" + end


def test_pictures_for_papers(tmp_path):
    from PIL import Image

    for name, ledgers in (("one.png", LEVIT[:1]), ("two.png", LEVIT)):
        assert report(*ledgers, "-o", tmp_path / "page.html", "--plot", tmp_path / name, "--title", "LeViT") == 0
    pictures = []
    for name in ("one.png", "two.png"):
        with Image.open(tmp_path / name) as picture:
            pictures.append(picture.convert("RGB"))
    assert pictures[0].size == pictures[1].size == (1200, 750)
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_a_report_replaces_its_predecessor_but_no_other_file(tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>mine</title>")
    assert "page.html' exists and is not a report of stitchkit; choose another file" in refused(
        capsys, LEDGER, "-o", page
    )
    assert page.read_text() == "<!doctype html><title>mine</title>"
    page.unlink()
    for title in ("first", "second"):
        assert report(LEDGER, "-o", page, "--title", title) == 0
        assert f"<h1>{title}</h1>" in page.read_text()


@pytest.mark.full
def test_composed_networks_are_called_networks(tmp_path, capsys, browser):
    ledger, page_file = ROOT / "results/stitchnet/stitches_res.txt", tmp_path / "page.html"
    assert report(ledger, "-o", page_file) == 0
    assert main(["pareto", str(ledger)]) == 0
    assert main(["pick", str(ledger)]) == 0
    said = capsys.readouterr().out
    assert "page.html shows 23 networks; open it" in said
    assert "of 23 networks; * marks parents" in said
    assert "is the most accurate of 23 networks" in said
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        shown = page.locator("body").inner_text()
        assert "Networks of stitchnet" in shown
        assert "23 networks of" in shown
        assert page.locator(".badge.anchor").first.inner_text() == "parent"
        page.locator("#min-metric").fill("100")
        assert page.locator("#details").inner_text() == "No network is within the budget."
        assert "stitch " not in page.locator("main").inner_text()
        assert wrong == []


def test_what_cannot_be_shown(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.html"
    assert "give a name that ends with .html" in refused(capsys, LEDGER, "-o", tmp_path / "page.txt")
    assert "does not exist; create it" in refused(capsys, LEDGER, "-o", tmp_path / "gone/page.html")
    assert "given twice; give each once" in refused(capsys, LEDGER, LEDGER, "-o", page)
    assert "is not of the 8 stitches of --stitch-config: its cfg_id 0 has stitch ti[0:6], but" in refused(
        capsys, LEDGER, "-o", page, "--stitch_config", ROOT / "configs/levit_192_256.json"
    )
    unnamed = write_ledger(tmp_path / "unnamed.txt", {"flops": 4e9, "acc1": 80.0})
    assert "its cfg_id 0 has flops 4000000000.0, but " in refused(
        capsys, unnamed, "-o", page, "--stitch_config", CONFIG
    )
    assert "no format '.mp4'; choose .png, .svg or .pdf" in refused(capsys, LEDGER, "-o", page, "--plot", "a.mp4")
    assert "folder 'gone' does not exist" in refused(capsys, LEDGER, "-o", page, "--plot", "gone/a.png")
    (tmp_path / "eval_args.yaml").write_text("- ]")
    good = write_ledger(tmp_path / "good.txt", {"flops": 1, "acc1": 2})
    assert "eval_args.yaml', line 1: invalid YAML" in refused(capsys, good, "-o", page)
    (tmp_path / "eval_args.yaml").unlink()
    costs = write_ledger(tmp_path / "costs.txt", {"flops": 1})
    assert "has no 'acc1'; use a ledger made by --eval" in refused(capsys, costs, "-o", page)
    (tmp_path / "summary.csv").write_text("a,b\n1,2\n")
    assert "summary.csv' has no column 'epoch'; move it away" in refused(capsys, good, "-o", page)
    long = write_ledger(tmp_path / "long.txt", {"flops": 1, "acc1": 2, "stitch": "ti[0:999999999]"})
    assert "at most 1000 are drawn" in refused(capsys, long, "-o", page)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert "pip install 'stitchkit[report]'" in refused(capsys, LEDGER, "-o", page)
    assert not page.exists()


def test_a_route_is_drawn_as_it_runs():
    stitches = [Stitch.parse(name) for name in ("ti[0:4]", "s[0:6]", "ti[0:3] > s[2:6]")]
    picture = draw_route(stitches[2], depths_of(stitches))
    filled = [line for line in picture.split("<") if line.startswith("rect") and "stroke" not in line]
    assert picture.count("<rect") == 10
    assert len(filled) == 3 + 4
    assert picture.count("<line") == 1
    assert picture.count("<line") == draw_route(stitches[2], {"ti": 4, "s": 6}).count("<line")
    assert "<line" not in draw_route(stitches[0], depths_of(stitches))
    assert 'aria-label="ti[0:3] &gt; s[2:6]"' in picture


EVIL = "</script><img src=x onerror=window.hacked=1>"


def test_texts_of_a_ledger_are_shown_not_run(tmp_path, browser):
    rows = [{"flops": 1e6, "latency_ms": 2.0 * n, "acc1": 50.0 + n, "note": EVIL, "loss": float("nan")} for n in (1, 2)]
    rows.append({"flops": 0, "acc1": 1.0})  # no place on a logarithmic axis
    folder = tmp_path / "a<b>"
    folder.mkdir()
    ledger = write_ledger(folder / "<img src=x onerror=hacked=1>.txt", *rows)
    (folder / "summary.csv").write_text('epoch,train_loss,"eval_<img src=x onerror=hacked=1>_acc1"\n0,1,2\n1,inf,\n')
    other = write_ledger(tmp_path / "other.txt", *rows)
    page_file = tmp_path / "page.html"
    assert report(ledger, other, "-o", page_file, "--title", EVIL) == 0
    assert EVIL not in page_file.read_text()
    assert data_of(page_file)["ledgers"][0]["rows"][0]["note"] == EVIL
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        page.locator("#table tbody tr").first.click()
        page.locator("#axis").select_option("latency_ms")
        page.locator("#max-latency_ms").fill("3")
        assert page.locator("#count").inner_text() == "2 of 6 shown"
        assert "51.00 %" in page.locator("#details").inner_text()
        assert page.locator("h1").inner_text() == EVIL
        assert page.locator("img").count() == 0
        assert page.evaluate("window.hacked") is None
        assert wrong == []


def column(page, number):
    return page.locator(f"#table tbody td:nth-child({number})").all_inner_texts()


def test_a_person_sorts_filters_and_chooses(shown):
    page, wrong = shown
    assert len(column(page, 1)) == 35
    page.get_by_role("button", name="top-1").click()
    best_first = [float(text.rstrip(" %")) for text in column(page, 6)]
    assert best_first == sorted((row["acc1"] for row in map(rounded, read_rows(LEDGER))), reverse=True)
    page.get_by_role("button", name="top-1").click()
    assert column(page, 6)[0] == "91.50 %"

    page.locator("#max-flops").fill("300k")
    cheap = [row for row in read_rows(LEDGER) if row["flops"] <= 3e5]
    assert sorted(map(int, column(page, 1))) == sorted(row["cfg_id"] for row in cheap)
    assert page.locator("#count").inner_text() == "8 of 35 shown"
    assert page.locator("#details .stitch").inner_text() == "ti[0:4] > s[3:6]", "the best within the budget"
    assert "--cfg-id 12 -o stitch12.onnx" in page.locator("#command").inner_text()
    page.locator("#max-flops").fill("many")
    assert "bad" in page.locator("#max-flops").get_attribute("class")
    page.locator("#clear").click()
    page.locator("#search").fill("> b[")
    page.locator("#front-only").check()
    assert all("b[" in text and "front" in text for text in column(page, 2))
    assert len(column(page, 2)) == 6
    page.locator("#min-metric").fill("99")
    assert "No stitch is within the budget" in page.locator("#details").inner_text()
    assert not page.locator("#command").is_visible()
    page.locator("#clear").click()
    assert len(column(page, 1)) == 35
    assert page.evaluate("document.getElementById('pareto').layout.xaxis.title.text").startswith("FLOPs")
    page.locator("#axis").select_option("params")
    assert page.evaluate("document.getElementById('pareto').layout.xaxis.title.text") == "parameters"
    assert "latency_ms" not in page.locator("#axis").inner_html()
    assert not page.locator("#max-latency_ms").is_visible()
    assert wrong == []


def test_the_table_is_saved_as_shown_and_examples_are_of_these_stitches(shown):
    page, wrong = shown
    page.get_by_role("button", name="top-1").click()
    page.locator("#max-flops").fill("300k")
    with page.expect_download() as saved:
        page.locator("#csv").click()
    with open(saved.value.path(), newline="") as file:
        table = list(csv.DictReader(file))
    assert saved.value.suggested_filename == "stitches.csv"
    assert [row["cfg_id"] for row in table] == column(page, 1)
    by_id = {row["cfg_id"]: row for row in read_rows(LEDGER)}
    figures = {"flops", "params", "activations", "acc1", "balanced_acc1", "acc5", "loss"}
    intervals = {"acc1_low", "acc1_high", "p_front", "tied_with"}
    assert table[0].keys() == {"cfg_id", "stitch", *figures, *intervals}
    assert all(float(row["acc1"]) == by_id[int(row["cfg_id"])]["acc1"] for row in table), "with all digits"
    page.locator("#clear").click()
    example = {name: page.locator(f"#{name}").get_attribute("placeholder") for name in ("max-flops", "max-params")}
    assert example == {"max-flops": "700k", "max-params": "40k"}
    for name in ("max-flops", "min-metric", "search"):
        page.locator(f"#{name}").fill(page.locator(f"#{name}").get_attribute("placeholder"))
        shown = int(page.locator("#count").inner_text().split()[0])
        assert 0 < shown < 35, name
        page.locator("#clear").click()
    assert wrong == []


def test_a_dark_page_has_dark_plots_and_no_legend_lies_under_their_icons(shown):
    grounds = """[document.querySelector(".card"), ...document.querySelectorAll(".main-svg[style*=background]")].map(
      (one) => getComputedStyle(one).backgroundColor)"""
    boxes = (
        """[".legend", ".modebar"].map((name) => by("curves").lastChild.querySelector(name).getBoundingClientRect())"""
    )
    page, wrong = shown
    page.locator("#curves .legend").wait_for()
    assert page.evaluate(grounds) == ["rgb(255, 255, 255)"] * 4
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    assert page.evaluate(grounds) == ["rgb(27, 33, 42)"] * 4
    legend, icons = page.evaluate(boxes)
    assert legend["top"] > icons["bottom"]
    assert wrong == []


@pytest.mark.full
def test_settings_and_the_batch_of_a_latency(tmp_path, browser):
    measured = {"latency_batch_size": 8, "latency_device": "cpu", "latency_threads": 2, "latency_precision": "float32"}
    rows = [{"flops": 1e6 * n, "acc1": 50.0 + n, "latency_ms": 2.0 * n, **measured} for n in (1, 2)]
    ledger = write_ledger(tmp_path / "stitches_res.txt", *rows)
    (tmp_path / "args.yaml").write_text(f"lr: 0.25\nopt: adamw\nepochs: 300\ndata_dir: '{EVIL}'\nday: 2001\n")
    (tmp_path / "stitches_res.yaml").write_text("crop_pct: 0.75\n")
    page_file = tmp_path / "page.html"
    assert report(ledger, "-o", page_file) == 0
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        for summary in page.locator("#settings summary").all():
            summary.click()
        training, evaluation = page.locator("#settings details").all_inner_texts()
        assert training.split() == [
            "training,",
            "args.yaml",
            *f"lr 0.25 opt adamw data_dir {EVIL} day 2001".split(),
        ]
        assert evaluation.split() == ["evaluation,", "stitches_res.yaml", "crop_pct", "0.75"]
        page.locator("#axis").select_option("latency_ms")
        title = page.evaluate("document.getElementById('pareto').layout.xaxis.title.text")
        assert title == "latency of a batch of 8 (ms)"
        assert "latency of batches of 8 on cpu, 2 CPU threads" in page.locator("#summary").inner_text()
        assert "latency (batch of 8)" in page.locator("#details").inner_text()
        assert wrong == []


def rounded(row):
    return {**row, "acc1": round(row["acc1"], 2)}


def point(page, name):
    """The middle of a point of the plot, by its cfg_id or name, in pixels."""
    page.wait_for_timeout(300)  # plotly takes a tenth of a second to fill its place
    return page.evaluate(
        """(name) => {
          const place = document.getElementById("pareto"), box = place.getBoundingClientRect();
          const rows = place.data.flatMap(({ customdata }) => customdata ?? []);
          const row = rows.find((row) => (row.cfg_id ?? row.name) === name);
          const { xaxis, yaxis } = place._fullLayout;
          return [box.x + xaxis._offset + xaxis.d2p(row.flops), box.y + yaxis._offset + yaxis.d2p(row.acc1)];
        }""",
        name,
    )


@pytest.mark.full
def test_a_point_shows_its_stitch_and_copies_its_command(page_file, browser):
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        assert not page.locator("#tip").is_visible()
        page.mouse.move(*point(page, 28))
        tip = page.locator("#tip")
        tip.wait_for()
        assert tip.locator(".stitch").inner_text() == "s[0:4] > b[3:6]"
        assert "97.67 %" in tip.inner_text()
        assert tip.locator("svg.route").get_attribute("aria-label") == "s[0:4] > b[3:6]"
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.mouse.click(*point(page, 28))
        page.get_by_text("copied", exact=True).wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == f"stitchkit export --stitch-config {CONFIG} --resume CHECKPOINT --cfg-id 28 -o stitch28.onnx"
        assert page.locator("#command").inner_text() == copied
        assert page.locator("tr.chosen .name").inner_text() == "s[0:4] > b[3:6]"
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as by plain http
        page.evaluate("by('copied').textContent = ''")
        page.locator("#copy").click()
        page.get_by_text("copied", exact=True).wait_for()
        page.mouse.move(5, 5)
        tip.wait_for(state="hidden")
        assert page.locator("#curves .main-svg").count() > 1
        shares = page.eval_on_selector_all(".modebar-btn", "all => all.map((one) => one.dataset.title)")
        assert shares
        assert not any("hare" in title or "loud" in title for title in shares), "nothing leaves the page"
        assert wrong == []


@pytest.mark.full
def test_before_and_after(tmp_path, browser):
    page_file = tmp_path / "page.html"
    assert report(*LEVIT, "-o", page_file) == 0
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        assert page.locator("#count").inner_text() == "12 of 12 shown"
        assert page.locator("#details .from").inner_text() == "cfg_id 3 of digits_levit_recalibrated"
        assert "+4.33 vs digits_levit" in page.locator("#details .figures").inner_text()
        assert page.evaluate("document.getElementById('pareto').data.length") == 7, (
            "two bands, fronts and clouds, the best"
        )
        page.get_by_label("digits_levit_recalibrated").uncheck()
        assert set(column(page, 1)) == {"digits_levit"}
        page.locator("#body tr").first.click()
        page.get_by_label("digits_levit_recalibrated").check()
        assert page.locator("tr.chosen").count() == 1, "ledgers are compared for a chosen stitch"
        page.locator("#search").fill("s")
        assert page.locator("tr.chosen").count() == 0
        page.locator("#clear").click()
        page.get_by_label("digits_levit_recalibrated").uncheck()
        assert "vs" not in page.locator("#details .figures").inner_text()
        assert wrong == []


@pytest.mark.full
def test_other_models_are_crosses_with_names_and_a_verdict(tmp_path, capsys, browser):
    other, page_file = tmp_path / "other.csv", tmp_path / "page.html"
    other.write_text(f"name,flops,acc1\nrival.tag,300e3,97.5\n{EVIL},2e6,95\nhuge,9e9,99\nfree,,99\n")
    assert report(LEDGER, "-o", page_file, "--plot", tmp_path / "p.svg", "--overlay", other) == 0
    said = capsys.readouterr().out
    assert "machines; left out 1 of 4 models, which lack an accuracy or FLOPs or parameters)" in said
    verdict = "of 15 stitches on the front are beaten by a single model; by most: at 300k FLOPs, rival.tag has 97.50 %"
    assert verdict in said
    assert ">rival</text>" in (tmp_path / "p.svg").read_text()
    with open_page(page_file.as_uri(), browser) as (page, wrong):
        assert verdict in page.locator("#verdict").inner_text()
        assert "other.csv; measured elsewhere, perhaps on other images" in page.locator("#others h2").inner_text()
        crosses = "by('pareto').data[0].customdata.map((model) => model.name)"
        page.wait_for_timeout(300)
        assert page.evaluate(crosses) == ["rival.tag", EVIL], "one is far from all stitches, one has no FLOPs"
        page.mouse.move(*point(page, "rival.tag"))
        page.locator("#tip").wait_for()
        assert " ".join(page.locator("#tip").inner_text().split()) == "rival.tag another model FLOPs 300k top-1 97.50 %"
        page.mouse.click(*point(page, "rival.tag"))
        assert page.locator("tr.chosen").count() == 0, "no stitch"
        page.locator("#axis").select_option("params")
        assert page.locator("#verdict").inner_text() == "They have no such cost."
        assert page.evaluate(crosses) == []
        page.locator("#axis").select_option("flops")
        page.get_by_label("other models").uncheck()
        assert page.evaluate(crosses) == []
        assert page.locator("img").count() == 0
        assert wrong == []


def test_other_models_beside_several_ledgers(tmp_path, capsys):
    other, page_file = tmp_path / "other.csv", tmp_path / "page.html"
    other.write_text("name,gmacs,acc1\nrival,0.001,99\n")
    assert report(*LEVIT, "-o", page_file, "--plot", tmp_path / "p.png", "--overlay", other) == 0
    said = capsys.readouterr().out
    assert re.search(r"\ndigits_levit: 1 of 1 stitch on .* is beaten .* · digits_levit_recalibrated: \d of", said)
    assert data_of(page_file)["overlay"]["models"] == [
        {"name": "rival", "flops": 1e6, "acc1": 99.0, "near": ["flops"], "front": ["flops"]}
    ]


def test_the_commands_of_the_page_about_it(tmp_path, monkeypatch):
    """Those that write reports run as they stand; that all have the flags they use is tested with the other pages."""
    for name in ("results", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = [
        line for line in (ROOT / "docs/report.md").read_text().splitlines() if line.startswith("stitchkit report")
    ]
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"report.html", "pareto.png", "levit.html"}
