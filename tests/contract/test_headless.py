"""Headless anchors: a stitch gives the pooled feature of the anchor it ends in, wherever it goes."""

import copy
import json

import onnxruntime
import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch.compiler import is_exporting

import stitchkit
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.measure.profile import Profiler
from stitchkit.model.route_network import RouteNetwork
from stitchkit.networks.create import create_model
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.export import export
from stitchkit.ship.predictors import open_predictor
from stitchkit.ship.serve import Demonstration
from stitchkit.ship.stitch_files import FORMATS, open_exported
from stitchkit.ship.trained_snnet import Trained, describe
from tests.results import pareto_like
from tests.support import (
    DEPTH,
    FAMILIES,
    FLAGS,
    SPACES,
    family_snnet,
    mostly_full,
    pico_config,
    pico_images,
    pico_snnet,
)

HEADLESS = [family for family in SPACES if family.startswith("headless")]

pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.mark.parametrize("family", HEADLESS)
@torch.no_grad()
def test_the_output_is_the_pooled_feature_of_the_end_anchor(family):
    model = family_snnet(family)
    x = pico_images(size=model.input_size[-1])
    assert model.num_classes == model.pretrained_cfg["num_classes"] == 0
    for cfg_id, anchor in enumerate(model.views.values()):
        network = anchor.model
        assert torch.equal(model(x, cfg_id), network.forward_head(network.forward_features(x), pre_logits=True))
    widths = {label: anchor.model.num_features for label, anchor in model.views.items()}
    assert len(set(widths.values())) > 1, "routes differ in width"
    ends = {cfg_id: stitch.segments[-1].anchor for cfg_id, stitch in model.space.stitches.items()}
    assert {cfg_id: found.shape for cfg_id, found in model.forward_all(x).items()} == {
        cfg_id: (2, widths[end]) for cfg_id, end in ends.items()
    }


def test_networks_that_timm_has_without_a_head_need_no_flag():
    size = {"img_size": 28, "embed_dim": 32, "depth": DEPTH, "num_heads": 2}
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    anchors = [{"name": name, "label": label, "kwargs": size} for label in "ab"]
    assert stitchkit.create_snnet({"anchors": anchors}).num_classes == 0
    assert stitchkit.create_snnet({"anchors": anchors}, num_classes=5).num_classes == 5


def test_anchors_with_and_without_a_head_do_not_agree():
    config = pico_config()
    config["anchors"][0]["kwargs"]["num_classes"] = 0
    with pytest.raises(InputError, match=r"num_classes: ti 0, s 4, b 4; .* give all one by --num-classes"):
        stitchkit.create_snnet(config)
    assert stitchkit.create_snnet(config, num_classes=0).num_classes == 0


def test_a_checkpoint_there_and_back(tmp_path):
    model = family_snnet("headless vit")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    (tmp_path / "vit.json").write_text(json.dumps(FAMILIES["vit"]))
    output = tmp_path / "ours.safetensors"
    flags = ["--stitch_config", str(tmp_path / "vit.json"), "--num-classes", "0"]
    assert main(["convert", str(tmp_path / "last.pth.tar"), str(output), *flags]) == 0
    found = stitchkit.create_snnet(FAMILIES["vit"], num_classes=0).eval()
    stitchkit.load_checkpoint(found, output)
    assert torch.equal(found(pico_images(), 9), model(pico_images(), 9))


def test_the_weights_of_an_anchor_may_have_a_head_or_not(tmp_path):
    spec = pico_config()["anchors"][0]
    sizes = spec["kwargs"] | {"num_classes": 0}
    whole, bare = timm.create_model(spec["name"], **spec["kwargs"]), timm.create_model(spec["name"], **sizes)
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("head")})
    for name, network in {"whole": whole, "bare": bare}.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        for classes in (0, 7):
            made = create_model(
                spec["name"], checkpoint=tmp_path / f"{name}.pth", **spec["kwargs"] | {"num_classes": classes}
            )
            assert made.num_classes == classes
            x = pico_images()
            assert torch.equal(made.eval().forward_features(x), whole.eval().forward_features(x))
    with pytest.raises(InputError, match=r"head\.bias is missing"):
        create_model(spec["name"], checkpoint=tmp_path / "bare.pth", **{**spec["kwargs"], "num_classes": None})


def trained(family):
    return Trained(family_snnet(family), stitchkit.StitchConfig.parse(SPACES[family]), Recipe(), ())


EXPORTS = [(family, suffix) for family in HEADLESS for suffix in (".safetensors", ".onnx")]


@pytest.mark.parametrize(("family", "suffix"), mostly_full(EXPORTS, quick=[(HEADLESS[0], ".safetensors")]))
def test_an_exported_stitch_gives_its_features_and_says_so(family, suffix, tmp_path):
    subject = trained(family)
    model, cfg_id, path = subject.model, len(subject.model.space) - 1, tmp_path / f"net{suffix}"
    images = torch.randn(5, *model.input_size, generator=torch.Generator().manual_seed(3))
    about = describe(subject, cfg_id)
    report = export(model, cfg_id, path, images, about)
    assert [*report.differences] == ["pooled", "tokens"]
    assert report.same_top1 is None
    tokens = model.extract(cfg_id).forward_features(images)
    expected = {"pooled": model(images, cfg_id), "tokens": tokens}
    assert (about["output"]["name"], about["output"]["width"]) == ("pooled", expected["pooled"].shape[1])
    assert about["output"]["tokens"]["shape"] == list(tokens.shape[1:])
    torch.testing.assert_close(FORMATS[suffix].read(path)(images), expected, atol=1e-4, rtol=0)
    if suffix != ".pt2":
        assert open_exported(path)[1]["output"] == about["output"]
        with pytest.raises(InputError, match=r"net.* gives features, not classes; give a network that was trained for"):
            open_predictor(str(path))


@pytest.mark.full
def test_a_file_for_onnx_names_its_outputs_and_takes_any_batch(tmp_path):
    """As somebody without stitchkit uses it."""
    subject = trained("headless vit")
    about, model = describe(subject, 5), subject.model
    assert about["output"] == {
        "name": "pooled", "width": 16, "tokens": {"shape": [5, 16], "layout": "NLC", "num_prefix_tokens": 1}
    }  # fmt: skip
    images = torch.randn(7, *model.input_size, generator=torch.Generator().manual_seed(4))
    export(model, 5, tmp_path / "net.onnx", images, about)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [output.name for output in session.get_outputs()] == ["pooled", "tokens"]
    pooled, tokens = session.run(["pooled", "tokens"], {"images": images.numpy()})
    net = model.extract(5)
    torch.testing.assert_close(torch.from_numpy(pooled), net(images).detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(tokens), net.forward_features(images).detach(), atol=1e-4, rtol=0)
    told = json.loads(session.get_modelmeta().custom_metadata_map["stitchkit"])
    assert told["input"]["mean"] == list(resolve_model_data_config(net)["mean"])


def test_a_file_whose_tokens_differ_does_not_appear(tmp_path, monkeypatch):
    """The pooled feature of a class token does not show what happens to the others."""
    subject = trained("headless vit")
    whole = RouteNetwork.forward_features

    def damaged(net, x):
        tokens = whole(net, x)
        return tokens + 1e-2 * is_exporting() * (torch.arange(tokens.shape[1]) > 0).unsqueeze(1)

    monkeypatch.setattr(RouteNetwork, "forward_features", damaged)
    images = torch.randn(5, *subject.model.input_size)
    with pytest.raises(InputError, match=r"its output 'tokens' differs from the SN-Net's by 0\.01"):
        export(subject.model, 9, tmp_path / "net.pt2", images, describe(subject, 9))
    assert not [*tmp_path.iterdir()]


def test_logits_are_described_too():
    model = pico_snnet()
    subject = Trained(model, stitchkit.StitchConfig.parse(pico_config()), Recipe(), ())
    assert describe(subject, 5)["output"] == {"name": "logits", "width": 4}


def test_a_folder_of_the_hub_there_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    model = stitchkit.HubSNNet(FAMILIES["resnet to swin"], num_classes=0).eval()
    model.ledger = pareto_like(model)
    model.save_pretrained(tmp_path / "hub")
    found = stitchkit.HubSNNet.from_pretrained(tmp_path / "hub").eval()
    x = pico_images(size=64)
    for cfg_id in (0, model.space.ids[-1]):
        assert torch.equal(found(x, cfg_id), model(x, cfg_id))
    net = found.extract(model.space.ids[-1])
    tokens = net.forward_features(x)
    assert tokens.shape == (2, 2, 2, net.num_features)
    assert torch.equal(net.forward_head(tokens), model(x, model.space.ids[-1]))
    assert resolve_model_data_config(net)["mean"] == tuple(found.image["mean"])
    card = (tmp_path / "hub/README.md").read_text()
    assert "features = model(images" in card
    assert "tokens = net.forward_features(images)" in card
    assert "pipeline_tag: image-feature-extraction" in card
    assert "image-classification" not in card
    other = stitchkit.HubSNNet(pico_config())
    other.save_pretrained(tmp_path / "classes")
    assert "forward_features" not in (tmp_path / "classes/README.md").read_text()
    assert "pipeline_tag: image-classification" in (tmp_path / "classes/README.md").read_text()


def test_costs_are_those_without_the_classifier(capsys, tmp_path):
    (tmp_path / "vit.json").write_text(json.dumps(pico_config()))
    assert main(["profile", "--stitch_config", str(tmp_path / "vit.json"), "--num-classes", "0"]) == 0
    whole, bare = Profiler(pico_snnet()), Profiler(stitchkit.create_snnet(pico_config(), num_classes=0))
    assert whole.cost(2).flops - bare.cost(2).flops == 32 * 4
    assert whole.cost(2).params - bare.cost(2).params == 32 * 4 + 4
    assert f"{bare.cost(2).flops}"[:3] in capsys.readouterr().out.replace(".", "")


def test_what_needs_classes_refuses_in_one_line(images, tmp_path, capsys):
    config, weights = tmp_path / "vit.json", tmp_path / "last.pth.tar"
    config.write_text(json.dumps(FAMILIES["headless vit"]))
    model = family_snnet("headless vit")
    torch.save({"state_dict": model.state_dict()}, weights)
    common = ["--stitch_config", str(config), "--resume", str(weights)]

    def refusal(*arguments):
        assert main([*map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        return line

    training = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path / "out"]
    assert "4 classes, but the network has 0 outputs; omit --num-classes" in refusal(*training, "--num-classes", 0)
    predicted = ["predict", images, *common, "--cfg_id", 4, "-o", tmp_path / "p.csv"]
    assert "the SN-Net gives features, not classes; give a network that was trained" in refusal(*predicted)
    with pytest.raises(InputError, match="the SN-Net gives features, not classes"):
        Demonstration(trained("headless vit"), copy.deepcopy(pareto_like(model)))


def test_a_stitch_is_exported_on_images_of_any_label(images, tmp_path, capsys):
    config, weights, path = tmp_path / "vit.json", tmp_path / "last.pth.tar", tmp_path / "net.safetensors"
    config.write_text(json.dumps(FAMILIES["headless vit"]))
    torch.save({"state_dict": family_snnet("headless vit").state_dict()}, weights)
    flags = ["--stitch_config", str(config), "--resume", str(weights), "--data", str(images), "--cfg_id", "9"]
    assert main(["export", *flags, "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert "compared on 20 images from the validation split" in said
    assert "of pooled up to" in said
    assert "of tokens up to" in said
    assert "top-1" not in said
