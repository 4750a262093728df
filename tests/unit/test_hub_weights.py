"""Weights that are unavailable or cannot fit are refused at once, in one line that says what to do."""

import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

import stitchkit
from stitchkit.networks.hub_weights import check_fit, check_reachable
from stitchnet.networks import load_networks
from tests.support import ROOT, mostly_full, pico_anchor, pico_config

NAME = "resnet10t.c3_in1k"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No host has an address, and nothing was ever downloaded."""

    def unknown_host(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_without_a_connection_downloads_are_refused_at_once(caplog):
    start = time.monotonic()
    with pytest.raises(stitchkit.InputError) as refused:
        stitchkit.create_model(NAME, pretrained=True)
    assert time.monotonic() - start < 5
    message = str(refused.value)
    assert message.startswith(f"pretrained '{NAME}' cannot be downloaded: https://huggingface.co does not answer")
    assert message.endswith("give a local checkpoint, or start from random weights (--no-pretrained)")
    assert "\n" not in message
    assert not caplog.records
    with pytest.raises(stitchkit.InputError, match="'hf-hub:timm/none' cannot be downloaded"):
        stitchkit.create_model("hf-hub:timm/none")


def test_a_folder_of_the_hub_is_refused_at_once_too():
    start = time.monotonic()
    with pytest.raises(stitchkit.InputError, match="'user/net': it cannot be downloaded: https"):
        stitchkit.HubSNNet.from_pretrained("user/net")
    assert time.monotonic() - start < 5


def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(stitchkit.InputError, match=r"does not answer .*offline mode is enabled"):
        check_reachable(NAME)


def test_only_weights_in_the_cache_need_no_connection(tmp_path):
    folder = tmp_path / "cache/models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    with pytest.raises(stitchkit.InputError, match="does not answer"):  # as after an interrupted download
        check_reachable(NAME)
    (snapshot / "model.safetensors").write_text("")
    check_reachable(NAME)


class NotFound(BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_GET(self):
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """The address of a hub that answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


def test_a_hub_that_answers_is_asked_by_timm(hub, monkeypatch):
    """Whatever it answers."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", hub)]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub[1]}")
    check_reachable(NAME)


@pytest.mark.full
@pytest.mark.parametrize("state", mostly_full(["answers", "offline", "closed"], quick=["answers"]))
def test_libraries_print_nothing_of_their_own_when_weights_are_unavailable(state, hub, tmp_path):
    """In a process of its own, whose loggers are real."""
    port = 9 if state == "closed" else hub[1]
    environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    environment |= {"HF_HUB_OFFLINE": "1"} if state == "offline" else {}
    command = [sys.executable, "-m", "stitchkit", "profile", "--anchors", "hf-hub:timm/none,hf-hub:timm/none2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("stitchkit: error: anchor 'timm_none': ")


@pytest.mark.parametrize("create", [lambda: load_networks("resnet50,vgg166"), lambda: load_networks("resnet18,vgg166")])
def test_a_wrong_second_network_is_refused_before_the_first_is_fetched(create):
    with pytest.raises(stitchkit.InputError, match="unknown network 'vgg166'; did you mean 'vgg16'"):
        create()


def test_a_wrong_second_anchor_is_refused_before_the_first_is_fetched():
    config = {"anchors": ["deit_tiny_patch16_224", "deit_smal_patch16_224"]}
    with pytest.raises(stitchkit.InputError, match="did you mean 'deit_small_patch16_224'"):
        stitchkit.create_snnet(config, pretrained=True)


def test_nothing_is_said_of_arguments_that_were_not_given():
    with pytest.raises(stitchkit.InputError, match=r"torchvision's 'resnet50' cannot be loaded: URLError") as refused:
        load_networks("resnet50")
    assert "{}" not in str(refused.value)


def test_anchors_of_another_architecture_than_the_published_are_refused_before_a_download():
    message = (
        r"anchor 'ti': pretrained 'vit_tiny_patch16_224' does not fit the kwargs embed_dim, depth, num_heads: "
        r".* is \[.*\], in timm's weights \[.*\]; give a local checkpoint, or start from random weights"
    )
    with pytest.raises(stitchkit.InputError, match=message):
        stitchkit.create_snnet(pico_config(), pretrained=True)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 7, "img_size": 96, "patch_size": 8, "in_chans": 1, "drop_rate": 0.1}),
        ("vit_tiny_patch16_224", {"depth": 12}),
        ("resnet18", {"global_pool": "max"}),
        ("resnet18", {"img_size": 64, "global_pool": "max", "num_classes": None}),
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "img_size": 128}),
    ],
)
def test_arguments_that_timm_adapts_weights_to_are_not_refused(name, kwargs):
    check_fit(name, kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "fault"),
    [
        ("vit_tiny_patch16_224", {"depth": 6}, r"depth: blocks\.6\.\S+ is absent, in timm's weights \[192\]"),
        ("vit_tiny_patch16_224", {"depth": 14}, r"depth: blocks\.12\.\S+ is \[192\], in timm's weights absent"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "global_pool: fc_norm"),
    ],
)
def test_more_or_fewer_weights_than_the_published_are_refused_before_a_download(name, kwargs, fault):
    with pytest.raises(stitchkit.InputError, match=fault):
        stitchkit.create_model(name, pretrained=True, **kwargs)
    stitchkit.create_model(name, **kwargs)


def test_weights_that_do_not_fit_a_model_of_any_size_and_arguments_that_it_lacks_are_refused():
    """The size of images is known to stitchkit, not to such a model."""
    with pytest.raises(stitchkit.InputError, match=r"'resnet18' does not fit the kwargs layers: layer1\.1\."):
        check_fit("resnet18", {"img_size": 64, "layers": [1, 1, 1, 1]})
    with pytest.raises(stitchkit.InputError, match="unknown resnet18 argument 'depht'; allowed: "):
        check_fit("resnet18", {"depht": 3})
    with pytest.raises(stitchkit.InputError, match=r"timm cannot build 'resnet18' with \{'layers': 3\}: "):
        check_fit("resnet18", {"layers": 3})


def test_the_arguments_of_torchvision_anchors_do_not_keep_weights_from_fitting():
    check_fit("torchvision/resnet18", {"zero_init_residual": True})


def test_an_argument_that_torchvision_lacks_is_named_without_advice_on_weights():
    anchors = ["torchvision/resnet18", "torchvision/resnet34"]
    message = r"^anchor '\S+': unknown torchvision/resnet18 argument 'drop_rate'; allowed: .*norm_layer"
    with pytest.raises(stitchkit.InputError, match=message):
        stitchkit.create_snnet({"anchors": anchors}, drop_rate=0.1)
    with pytest.raises(stitchkit.InputError, match=r"torchvision cannot build 'resnet18' with .*norm_layer.*: ") as no:
        stitchkit.create_snnet({"anchors": anchors}, norm_layer=3)
    assert "pretrained" not in str(no.value)


def test_a_torchvision_name_is_no_model_of_timm():
    with pytest.raises(stitchkit.InputError, match="'torchvision/resnet18' is not a timm model; only"):
        stitchkit.create_model("torchvision/resnet18")


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_misspelt_argument_is_named_with_the_nearest_one(pretrained):
    anchors = [pico_anchor("a", 8), pico_anchor("b", 16, embed_dm=3)]
    with pytest.raises(
        stitchkit.InputError,
        match="anchor 'b': unknown vit_tiny_patch16_224 argument 'embed_dm'; did you mean 'embed_dim'",
    ):
        stitchkit.create_snnet({"anchors": anchors}, pretrained=False)
    with pytest.raises(stitchkit.InputError, match="unknown levit_128s argument 'num_head'; did you mean 'num_heads'"):
        stitchkit.create_model("levit_128s", pretrained=pretrained, num_head=4)
