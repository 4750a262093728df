"""Checkpoints are read safely and completely, or refused with a reason."""

import argparse
import collections
import hashlib
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

import stitchkit
from stitchkit.errors import InputError
from stitchkit.networks.weights import damage, read_checkpoint, read_hashed
from tests.support import pico_config, pico_snnet


@pytest.fixture(scope="module")
def source():
    return pico_snnet()


WRAPPERS = {
    "plain": lambda weights: weights,
    "released": lambda weights: {"model": weights, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=1)},
    "timm": lambda weights: {"state_dict": weights, "arch": "snnet"},
    "module prefix": lambda weights: {"model": {f"module.{key}": value for key, value in weights.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_is_opened(wrapper, source, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(WRAPPERS[wrapper](source.state_dict()), path)
    model = stitchkit.create_snnet(pico_config())
    stitchkit.load_checkpoint(model, path)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_safetensors(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = stitchkit.create_snnet(pico_config())
    stitchkit.load_checkpoint(model, tmp_path / "w.safetensors")
    assert torch.equal(model.stitch_layers["0"]["0"].transform.weight, source.stitch_layers["0"]["0"].transform.weight)


def test_the_moving_average_is_loaded_on_request(source, tmp_path):
    average = {key: value + 1 for key, value in source.state_dict().items()}
    torch.save({"state_dict": source.state_dict(), "state_dict_ema": average}, tmp_path / "w.pth")
    model = stitchkit.create_snnet(pico_config())
    stitchkit.load_checkpoint(model, tmp_path / "w.pth", ema=True)
    assert torch.equal(model.state_dict()["anchors.0.cls_token"], average["anchors.0.cls_token"])
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no moving average"):
        stitchkit.load_checkpoint(model, tmp_path / "w.pth", ema=True)


def test_a_small_file_that_unpacks_to_much_is_not_unpacked(tmp_path, monkeypatch):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"weight": torch.zeros(2**20)}, plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for member in archive.infolist():
            other.writestr(member.filename, archive.read(member))
    assert packed.stat().st_size * 100 < plain.stat().st_size
    assert read_checkpoint(packed)["weight"].shape == (2**20,), "a few megabytes are always read"
    monkeypatch.setattr("stitchkit.networks.weights._ALWAYS_READ", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(
        InputError, match=r"packed.pth' is damaged \(it would unpack to 4,\d+,\d+ bytes, more than 10 times"
    ):
        read_checkpoint(packed)


@pytest.mark.parametrize("size", [0, 10, 2000])
def test_a_truncated_file_is_named(size, source, tmp_path):
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[:size])
    with pytest.raises(InputError, match=r"damaged|truncated|not a checkpoint"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_flipped_byte_of_a_tensor_is_refused(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[len(data) // 2] ^= 0x10
    (tmp_path / "w.pth").write_bytes(data)
    torch.load(tmp_path / "w.pth", weights_only=True)  # torch says nothing
    with pytest.raises(InputError, match=r"w.pth' is damaged \(the checksum of w/data/\d+ is wrong\)"):
        stitchkit.load_checkpoint(source, tmp_path / "w.pth")


def test_a_long_refusal_ends_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"x")
    told = "the file in archive is not in a subdirectory. " + "Then some advice. " * 20

    def load(*_, **__):
        raise RuntimeError(told)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(InputError, match=r"\(the file in archive is not in a subdirectory\.\); download"):
        read_checkpoint(tmp_path / "w.pth")
    told = "word " * 100
    with pytest.raises(InputError, match=r"word \.\.\.\); download"):
        read_checkpoint(tmp_path / "w.pth")


def test_older_files_and_those_without_checksums_are_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    try:
        torch.serialization.set_crc32_options(compute_crc32=False)
        torch.save({"a": torch.ones(3)}, tmp_path / "bare.pth")
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    for name in ("old.pth", "bare.pth"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a"], torch.ones(3))


def test_no_flipped_bit_is_read_as_another_number(tmp_path):
    """Headers and directory of a small file, bit by bit; what torch and zipfile make of them differs."""
    path = tmp_path / "w.pth"
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}
    torch.save(weights, path)
    good = path.read_bytes()
    refused = 0
    for place in [*range(64), *range(good.index(b"PK\x01\x02"), len(good))]:
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        assert isinstance(damage(path), str)
        try:
            content = read_checkpoint(path)
        except InputError:
            refused += 1
            continue
        assert content.keys() == weights.keys()
        assert all(torch.equal(content[name], value) for name, value in weights.items())
    assert refused > 100


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_other_files_are_named(name, tmp_path):
    (tmp_path / name).write_text("hello, I am no checkpoint at all")
    with pytest.raises(InputError, match="not a checkpoint"):
        read_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(tmp_path / ("missing" + name))


def test_what_holds_no_weights_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds a list"):
        read_checkpoint(tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no weights; its keys are epoch"):
        stitchkit.load_checkpoint(pico_snnet(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (pico_config(stitch_kernel_size=1), r"stitch_layers.*"),
        ({"anchors": pico_config()["anchors"][:2]}, r"anchors\.0.*is missing|anchors\.2.*is missing"),
    ],
)
def test_another_configuration_is_refused_with_the_keys_and_changes_nothing(config, message, source, tmp_path):
    other = stitchkit.create_snnet(config)
    torch.save({"model": other.state_dict()}, tmp_path / "w.pth")
    before = {key: value.clone() for key, value in source.state_dict().items()}
    with pytest.raises(InputError, match="belongs to another configuration"):
        stitchkit.load_checkpoint(source, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


def test_weights_of_another_kind_of_network_say_what_they_are_of(source, tmp_path):
    plain = timm.create_model("test_resnet", num_classes=4)
    torch.save({"state_dict": plain.state_dict(), "arch": "test_resnet"}, tmp_path / "timm.pth")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "snnet.pth")
    for model, name, says in (
        (
            source,
            "timm.pth",
            "it looks like a checkpoint of the single network 'test_resnet'; to use it as an anchor, set",
        ),
        (plain, "snnet.pth", "it is of an SN-Net; give its stitch configuration"),
        (timm.create_model("test_vit"), "timm.pth", "it is of 'test_resnet'; use that network, with the same arg"),
    ):
        with pytest.raises(InputError, match=f"keys differ: .*; {says}"):
            stitchkit.load_checkpoint(model, tmp_path / name)


def test_another_width_is_refused_with_both_shapes(source, tmp_path):
    config = pico_config()
    config["anchors"][0]["kwargs"] |= {"embed_dim": 12}
    torch.save(stitchkit.create_snnet(config).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"is float32 \[12\], not float32 \[8\]"):
        stitchkit.load_checkpoint(source, tmp_path / "w.pth")


def test_what_is_hashed_is_what_was_read(tmp_path, monkeypatch):
    """A run gives the name to another file while this one is read: the hash is of the one that was opened."""
    path, newer = tmp_path / "last.pth.tar", tmp_path / "newer"
    torch.save({"a": torch.ones(3)}, path)
    torch.save({"a": torch.zeros(3)}, newer)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    inner = torch.load

    def load(*arguments, **options):
        newer.replace(path)
        return inner(*arguments, **options)

    monkeypatch.setattr("stitchkit.networks.weights.torch.load", load)
    content, digest = read_hashed(path)
    assert torch.equal(content["a"], torch.ones(3))
    assert digest == expected


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "last.pth.tar"
    torch.save({"a": torch.ones(3)}, path)
    inner = torch.load

    def load(*arguments, **options):
        found = inner(*arguments, **options)
        path.write_bytes(path.read_bytes() + b"x")
        return found

    monkeypatch.setattr("stitchkit.networks.weights.torch.load", load)
    with pytest.raises(InputError, match="was written to while it was read"):
        read_hashed(path)


class Endless:
    """Pickles as so many tuples, each in the one before, as the key of a mapping."""

    def __init__(self, depth):
        self.bytes = b"\x80\x02}q\x00)" + b"\x85" * depth + b"K\x01s."


def written(tmp_path, content):
    path = tmp_path / "w.pth"
    if isinstance(content, Endless):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", content.bytes)
            archive.writestr("w/version", "3")
    else:
        torch.save(content, path)
    return path


def doubled(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def with_attribute(value, name):
    setattr(value, name, 5)
    return value


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(1).expand(8)},
        {"weight": torch.zeros(2, device="meta")},
        {"weight": torch.zeros(2, dtype=torch.float8_e4m3fn)},
        {"weight": torch.zeros(2, dtype=torch.uint16)},
        {"weight": with_attribute(torch.zeros(2), "numel")},
        {"weight": torch.ones(2), "more": with_attribute(collections.OrderedDict(a=1), "get")},
        {"more": doubled(60)},
        Endless(1_000_000),
        Endless(30),
    ],
    ids=["expanded", "meta", "one byte", "unsigned", "attribute", "mapping", "doubled", "tuples", "some tuples"],
)
def test_what_no_program_saves_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"refused|without end"):
        read_checkpoint(written(tmp_path, content))


def test_what_stands_in_many_places_is_read_once(tmp_path):
    assert read_checkpoint(written(tmp_path, {"weight": torch.ones(2), "more": doubled(40)}))


def test_weights_with_and_without_their_prefix_are_refused(tmp_path):
    content = {"a": torch.ones(2), "module.a": torch.zeros(2)}
    with pytest.raises(InputError, match=r"both with and without 'module\.'"):
        stitchkit.load_checkpoint(torch.nn.Linear(2, 2), written(tmp_path, content))


class OfLaterVersions(torch.nn.Linear):
    """A module whose loading raises what torch does not collect."""

    def _load_from_state_dict(self, *arguments):
        raise ValueError("version should be 3")


def test_what_the_loading_of_a_module_raises_names_the_file(tmp_path):
    model = OfLaterVersions(2, 2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"checkpoint '.*w\.pth' is refused by its network: ValueError: version .* 3;"):
        stitchkit.load_checkpoint(model, tmp_path / "w.pth")
