"""`stitchkit serve`: what it predicts, and what a person does with its page in a real browser."""

import html
import itertools
import json
import re
import socket
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from PIL import Image

import stitchkit
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.ship.predict import described_classes
from stitchkit.ship.serve import Demonstration
from stitchkit.ship.trained_snnet import Trained, calibrate, open_trained
from tests.browser import open_page, serving
from tests.results import pareto_like
from tests.support import FAMILIES, family_snnet, pico_anchor, pico_config, pico_snnet, write_config


@pytest.fixture(scope="module")
def demonstration():
    model = pico_snnet()
    trained = Trained(model, StitchConfig.parse(pico_config()), Recipe(), ("ant", "<bee>", "cat", "dog"))
    rows = pareto_like(model, latency_ms=1.5)
    rows[0] |= {"latency_reliable": False}
    return Demonstration(trained, rows)


def picture(size=40):
    return Image.linear_gradient("L").resize((size, size))


def test_the_best_stitch_within_the_budget_predicts(demonstration):
    model, rows = demonstration._model, sorted(pareto_like(demonstration._model), key=lambda row: row["flops"])
    assert (demonstration.cheapest, demonstration.costliest) == (rows[0]["flops"], rows[-1]["flops"])
    for wanted in (rows[0], rows[7], rows[-1]):
        shares, text = demonstration.run(picture(), wanted["flops"] + 0.5)
        assert f"<dt>cfg_id</dt><dd>{wanted['cfg_id']}</dd>" in text
        assert ("<dd>1.50 ms (unreliable)</dd>" in text) == (wanted["cfg_id"] == 0)
        assert re.search(r"<dt>latency here</dt><dd>\d+\.\d\d ms an image on cpu", text)
        assert 'class="route"' in text
        x = demonstration._transform(picture().convert("RGB"))[None]
        expected = model.extract(wanted["cfg_id"])(x)[0].softmax(0)
        names = dict(zip(("ant", "<bee>", "cat", "dog"), expected.tolist(), strict=True))
        assert shares == pytest.approx(names, abs=1e-5)
    assert demonstration.run(None, rows[0]["flops"] + 0.5)[0] is None
    with pytest.raises(InputError, match="the nearest miss is cfg_id 0"):
        demonstration.run(None, 1.0)


def test_a_ledger_of_another_network_is_refused():
    model = pico_snnet()
    trained = Trained(model, StitchConfig.parse(pico_config()), Recipe(), ())
    with pytest.raises(InputError, match="another SN-Net"):
        Demonstration(trained, [row | {"stitch": "x[0:1]"} for row in pareto_like(model)])
    with pytest.raises(InputError, match="has no 'acc1'"):
        Demonstration(trained, [{"cfg_id": 0}])


def test_classes_have_names_where_they_are_known():
    trained = Trained(pico_snnet(), StitchConfig.parse(pico_config()), Recipe(), ())
    shares, _ = Demonstration(trained, pareto_like(trained.model)).run(picture(), 1e9)
    assert shares.keys() == {f"class {number}" for number in range(4)}


def test_the_log_says_what_was_done_to_an_image(demonstration, tmp_path, caplog):
    """Of a decoded TIFF, Pillow has forgotten both."""
    caplog.set_level("INFO")
    pages = {"save_all": True, "append_images": [picture()]}
    picture().save(tmp_path / "a.tif", **pages)
    turned = Image.Exif()
    turned[0x112] = 6
    picture().save(tmp_path / "b.tif", exif=turned)
    for name in ("a.tif", "b.tif"):
        demonstration.run(str(tmp_path / name), 1e9)
    assert [text for text in caplog.messages if text.startswith("of 1 image: ")] == [
        "of 1 image: 1 with several frames (only the first is used)",
        "of 1 image: 1 turned by EXIF orientation",
    ]


def test_synsets_are_described():
    names = ("n01440764", "n01443537", "n01484850", "n01491361")
    assert described_classes(names, 4)[:2] == [
        "tench, Tinca tinca (0)",
        "goldfish, Carassius auratus (1)",
    ]
    assert described_classes((*names[:3], "n00000000"), 4) == [*names[:3], "n00000000"]


@pytest.mark.full
def test_a_ledger_of_recalibrated_stitches_is_shown_with_their_statistics(images, tmp_path):
    config, weights, model = tmp_path / "resnet.json", tmp_path / "net.pth", family_snnet("resnet")
    config.write_text(json.dumps(FAMILIES["resnet"] | {"recipe": {"batch_size": 8, "workers": 0}}))
    torch.save({"state_dict": model.state_dict()}, weights)
    given = {"stitch_config": str(config), "resume": str(weights), "data_dir": str(images), "recalibrate_bn": 2}
    trained = open_trained(given)
    assert trained.classes == ("class0", "class1", "class2", "class3")
    shown = Demonstration(trained, pareto_like(model))
    shares, _ = shown.run(picture(), 1e12)
    cfg_id = max(shown._rows.values(), key=lambda row: row["acc1"])["cfg_id"]
    again = open_trained(given)
    calibrate(again, cfg_id)
    net = again.model.extract(cfg_id)
    expected = net(shown._transform(picture().convert("RGB"))[None])[0].softmax(0).tolist()
    assert shares == pytest.approx(dict(zip(trained.classes, expected, strict=True)), abs=1e-5)


@pytest.fixture
def files(tmp_path):
    """Configuration, checkpoint and ledger of a network, as flags."""
    config, weights, ledger = write_config(tmp_path / "pico.json"), tmp_path / "net.pth", tmp_path / "ledger.txt"
    model = pico_snnet()
    torch.save({"state_dict": model.state_dict(), "classes": ["ant", "<bee>", "cat", "dog"]}, weights)
    ledger.write_text("".join(json.dumps(row) + "\n" for row in pareto_like(model)))
    return {"--stitch_config": config, "--resume": weights, "--ledger": ledger, "--device": "cpu"}


def refused(capsys, flags):
    assert main(["serve", *(str(part) for pair in flags.items() for part in pair if part != "")]) == 2
    return capsys.readouterr().err


def test_the_command_says_what_is_wrong(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))  # takes seconds to import, and is not used
    assert "--port is 70000; it must be from 1 to 65535" in refused(capsys, files | {"--port": 70000})
    assert "gone.pth' does not exist" in refused(capsys, files | {"--resume": "gone.pth"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is unavailable: Address already in use; choose another --port" in refused(
            capsys, files | {"--port": taken.getsockname()[1]}
        )
    assert "belongs to another configuration" in refused(capsys, files | {"--num-classes": 7})
    assert "holds no moving average" in refused(capsys, files | {"--model-ema": ""})
    files["--ledger"].with_suffix(".yaml").write_text("weights_sha256: '00'")
    line = refused(capsys, files)
    assert "was measured with other weights than" in line
    assert line.endswith("; give the checkpoint it was measured with, or give the --ledger of this checkpoint\n")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'stitchkit[serve]'" in refused(capsys, files | {"--resume": "gone.pth"})


def test_a_checkpoint_that_knows_no_classes_takes_their_names_from_the_data(files, images, monkeypatch):
    """As a released one; the number of classes is given as for an export."""
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    anchors = [pico_anchor("ti", 8, num_classes=9), pico_anchor("s", 16, num_classes=9)]
    config = write_config(files["--stitch_config"], anchors=anchors)
    model = stitchkit.create_snnet(config, num_classes=4)
    torch.save({"state_dict": model.state_dict()}, files["--resume"])
    files["--ledger"].write_text("".join(json.dumps(row) + "\n" for row in pareto_like(model)))
    shown = []
    monkeypatch.setattr("stitchkit.ship.serve.serve", lambda demonstration, **_: shown.append(demonstration))
    flags = files | {"--num-classes": 4, "--data": images}
    assert main(["serve", *(str(part) for pair in flags.items() for part in pair)]) == 0
    assert shown[0].run(picture(), 1e9)[0].keys() == {f"class{number}" for number in range(4)}


@pytest.mark.full
def test_a_ledger_of_one_stitch_has_a_page(files, tmp_path):
    client = pytest.importorskip("gradio_client", reason="gradio is not installed")
    row = read_rows(files["--ledger"])[3]
    (tmp_path / "one.txt").write_text(json.dumps(row) + "\n")
    with serving(itertools.chain(*(files | {"--ledger": tmp_path / "one.txt"}).items())) as address:
        _, text = client.Client(address, verbose=False).predict(None, row["flops"] / 1e3 + 1e-3, api_name="/run")
        assert row["stitch"] in html.unescape(text)


def test_a_ledger_by_agreement_is_shown(demonstration):
    rows = [{**row, "agree": row["acc1"]} for row in pareto_like(demonstration._model)]
    for row in rows:
        del row["acc1"]
    _, text = Demonstration(demonstration._trained, rows).run(None, 1e9)
    assert "answers equal to the end anchor" in text


@pytest.mark.full
def test_a_program_uploads_what_is_no_image(files, tmp_path):
    client = pytest.importorskip("gradio_client", reason="gradio is not installed")
    content = {
        "narrow.png": b"",
        "many.png": b"",
        "empty.png": b"",
        "text.png": b"text",
        "page.png": b"%!PS-Adobe-3.0 EPSF",
    }
    for name, size in {"narrow.png": (1, 20_000), "many.png": (12_000, 12_000)}.items():
        Image.new("1", size).save(tmp_path / name)
        content[name] = (tmp_path / name).read_bytes()
    picture(200).save(tmp_path / "good.png")
    content["cut.png"] = (tmp_path / "good.png").read_bytes()[:200]
    most = max(row["flops"] for row in read_rows(files["--ledger"])) / 1e3
    with serving(itertools.chain(*files.items())) as address:
        page = client.Client(address, verbose=False)
        for name, text in content.items():
            (tmp_path / name).write_bytes(text)
            with pytest.raises(client.exceptions.AppError, match="cannot be read"):
                page.predict(client.handle_file(tmp_path / name), most, api_name="/run")
        for outside in ("/etc/hostname", str(files["--resume"])):
            with pytest.raises(client.exceptions.AppError):
                page.predict({"path": outside, "meta": {"_type": "gradio.FileData"}}, most, api_name="/run")
        with pytest.raises(client.exceptions.AppError, match="stitches has at most"):
            page.predict(None, 1e-6, api_name="/run")
        found, _ = page.predict(client.handle_file(tmp_path / "good.png"), most, api_name="/run")
        assert found["label"]


@pytest.mark.full
def test_a_person_uploads_an_image_and_moves_the_budget(files, tmp_path):
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    picture(200).save(tmp_path / "gradient.png")
    rows = sorted(read_rows(files["--ledger"]), key=lambda row: row["flops"])
    with serving(itertools.chain(*files.items())) as address, open_page(address) as (page, wrong):
        page.locator(".stitch", has_text=rows[-1]["stitch"]).wait_for()
        page.locator("input[type=file]").set_input_files(tmp_path / "gradient.png")
        page.get_by_text("<bee>").first.wait_for()
        slider = page.locator("input[type=range]")
        slider.fill(slider.get_attribute("min"))
        page.locator(".stitch", has_text=rows[0]["stitch"]).wait_for()
        assert f"{rows[0]['acc1']:.2f} %" in page.locator(".stitch-figures").inner_text()
        assert page.locator("svg.route").get_attribute("aria-label") == rows[0]["stitch"]
        Image.new("1", (1, 20_000)).save(tmp_path / "narrow.png")  # resized by its shorter side, it would fill 5 GB
        page.get_by_label("Remove Image").click()
        page.locator("input[type=file]").set_input_files(tmp_path / "narrow.png")
        page.get_by_text("it is 1 x 20,000 pixels; at most 100 to 1 is allowed").wait_for()
        assert wrong == []
