"""Weights from released, timm's and our own checkpoints, without executing anything in them."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import pickletools
import re
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.families import anchor_of, has_view
from stitchkit.networks.mode import evaluating
from stitchkit.networks.trained_with import take_over
from stitchkit.paths import check_file

_MODEL_KEYS = ("state_dict", "model")
_EMA_KEYS = ("state_dict_ema", "model_ema")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file: plain data and tensors, on the CPU.

    Nothing in the file is executed. Its checksums are verified, which torch does not do. Beyond plain data, only
    `argparse.Namespace` is allowed, because the released checkpoints contain it. Files are those of `torch.save`, and
    `.safetensors`.
    """
    with _opened(path) as file:
        return _content(file, Path(path))


def read_hashed(path: str | Path) -> tuple[dict[str, Any], str]:
    """`read_checkpoint`, and the SHA-256 of the file.

    The file is opened only once, so both are of the same file, even if another one takes its name meanwhile.
    """
    with _opened(path) as file:
        before = os.fstat(file.fileno())
        content = _content(file, Path(path))
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise InputError(f"checkpoint '{path}' was written to while it was read; wait until that is done")
    return content, digest.hexdigest()


def _opened(path: str | Path) -> BinaryIO:
    check_file(path, "checkpoint")
    return Path(path).open("rb")


def _content(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load(file.read()))
        fault = damage(file) if _is_zip(file) else ""  # before version 1.6, torch wrote files without checksums
        fault = fault or next(filter(None, map(_excess, _pickled(file))), "")
        file.seek(0)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = {} if fault else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a garbled file can make the readers raise anything
        raise InputError(_refusal(path, error)) from error
    if fault:
        raise InputError(f"checkpoint '{path}' is damaged ({fault})")
    if not isinstance(content, dict):
        raise InputError(f"checkpoint '{path}' holds a {type(content).__name__}, not named weights")
    if oddity := _oddity(content):
        raise InputError(f"checkpoint '{path}' holds {oddity}; refused")
    return content


_DEEPEST = 50
"""Most levels of nesting; our checkpoints have a dozen."""
_DTYPES = frozenset([
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
])  # fmt: skip
"""Types that arithmetic and comparisons are implemented for."""


def _oddity(content: object) -> str:
    """An object that no program saves with a network, in words: an unusual tensor, or endless nesting."""
    left, seen = [(content, 0)], set()
    while left:
        value, depth = left.pop()
        if isinstance(value, torch.Tensor):
            if not _is_ordinary(value):
                return f"a tensor of an unusual kind ({value.dtype}, {value.device.type})"
            continue
        inner = _inner(value)
        if inner is None or id(value) in seen:  # an object in several places is checked once
            continue
        seen.add(id(value))
        if depth > _DEEPEST:
            return f"data nested more than {_DEEPEST} deep"
        if isinstance(value, dict) and set(getattr(value, "__dict__", ())) - {"_metadata"}:
            return "a mapping with attributes"
        left += [(item, depth + 1) for item in inner]
    return ""


def _inner(value: object) -> list[object] | None:
    """The members of a container; None for anything else."""
    if isinstance(value, argparse.Namespace):
        return [vars(value)]
    if isinstance(value, Mapping):
        return [item for pair in value.items() for item in pair]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else None


def _is_ordinary(value: torch.Tensor) -> bool:
    """Whether a tensor is dense and in memory, and of a type that arithmetic supports."""
    if vars(value):  # an attribute could stand in for a method
        return False
    if value.is_nested or value.is_quantized or value.layout != torch.strided or value.device.type != "cpu":
        return False
    if value.is_neg() or value.is_conj() or value.dtype not in _DTYPES:
        return False
    return value.numel() * value.itemsize <= value.untyped_storage().nbytes()


_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MEMORY = ("MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "DUP", "EMPTY_TUPLE")
_NESTED = 20
"""Longest chain of tuples that contain nothing but tuples."""


_LONGEST_NAME = 1000
"""Most letters in the name of a class; torch's time to refuse a name that it does not know grows with its square."""
_OLD_PICKLES = 5
"""Number of pickles at the start of files by torch before version 1.6; the content is the fourth."""


def _excess(file: BinaryIO) -> str:
    """What a pickle has without end, in words: tuples in each other, or letters in the name of a class.

    As a key, such a tuple would exceed Python's recursion limit.
    """
    run = 0
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL" and len(str(argument)) > _LONGEST_NAME:
                return f"it names a class with more than {_LONGEST_NAME:,} letters"
            if operation.name in _TUPLES:
                run += 1
            elif operation.name not in _MEMORY:
                run = 0
            if run > _NESTED:
                return "it nests tuples without end"
    except ValueError:  # not a pickle, which the reader will report
        return ""
    return ""


def _pickled(file: BinaryIO) -> Iterator[BinaryIO]:
    """The pickles of a file that `torch.save` wrote."""
    if not _is_zip(file):
        for _ in range(_OLD_PICKLES):  # each check ends where the next pickle begins
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as inner:
                    inner._expected_crc = None  # type: ignore[attr-defined] # checked before, and some have none
                    yield inner  # type: ignore[misc]


def _is_zip(file: BinaryIO) -> bool:
    return os.pread(file.fileno(), 4, 0) == b"PK\x03\x04"  # as torch decides; `zipfile.is_zipfile` looks at the end


_EXPANSION = 10
"""Largest allowed ratio of unpacked to stored size; `torch.save` does not compress, and weights hardly can be."""
_ALWAYS_READ = 2**28
"""Bytes that any file may unpack to."""


def damage(file: BinaryIO | Path) -> str:
    """The fault of a file that `torch.save` wrote, by its directory and its checksums; empty if there is none.

    torch verifies neither.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            assert archive.fp is not None, "it is open"
            size, unpacked = archive.fp.seek(0, os.SEEK_END), sum(member.file_size for member in archive.infolist())
            if unpacked > max(_ALWAYS_READ, _EXPANSION * size):
                return f"it would unpack to {unpacked:,} bytes, more than {_EXPANSION} times its {size:,}"
            if not any(member.CRC for member in archive.infolist()):
                return ""  # torch can be configured to write none
            broken = archive.testzip()
    except Exception as error:  # a garbled directory can make zipfile raise anything
        return f"{error}" or type(error).__name__
    finally:
        if not isinstance(file, Path):
            file.seek(0)
    return f"the checksum of {broken} is wrong" if broken else ""


def _refusal(path: Path, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    # torch's message begins with the advice to switch the protection off; the reason follows.
    reasons = [line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported"))]
    sentence = re.split(r"(?<=[.!?])\s", (reasons or lines or [type(error).__name__])[0])[0]
    reason = textwrap.shorten(sentence, 300, placeholder=" ...")
    if isinstance(error, pickle.UnpicklingError) and re.search("Unsupported (global|class)|GLOBAL", str(error)):
        return f"checkpoint '{path}' holds objects that could run code; refused. Save its weights alone ({reason})"
    why = f" ({reason})" if re.search("[A-Za-z]", reason) else ""  # zipfile's may be a bare number
    return f"checkpoint '{path}' cannot be read: it is truncated, or not a checkpoint{why}; download or copy it again"


def weights_of(content: Mapping[str, object], *, ema: bool = False) -> dict[str, torch.Tensor]:
    """The named weights in a checkpoint's content, or their moving average, without wrappers and `module.` prefixes."""
    keys = _EMA_KEYS if ema else _MODEL_KEYS
    nested = [value for key in keys if isinstance(value := content.get(key), Mapping)]
    if not nested and ema:
        raise InputError("the checkpoint holds no moving average of weights; omit --model-ema")
    bare = [
        (name.removeprefix("module."), value)
        for name, value in (nested or [content])[0].items()
        if isinstance(name, str)
    ]
    weights = {name: value for name, value in bare if isinstance(value, torch.Tensor)}
    if len(dict(bare)) < len(bare):
        raise InputError("the checkpoint has weights both with and without 'module.' before their names; keep one set")
    if not weights:
        raise InputError(f"the checkpoint holds no weights; its keys are {', '.join(map(str, content))}")
    return weights


def load_checkpoint(model: nn.Module, path: str | Path, *, ema: bool = False) -> dict[str, Any]:
    """Load weights into a model from a released, timm or own checkpoint, safely and completely.

    A checkpoint of ours also says how images were prepared in training, which becomes the model's `pretrained_cfg`.

    Args:
        model: Its names and shapes must be those of the file.
        ema: Load the moving average.

    Returns:
        The whole content of the file.

    Raises:
        InputError: If the file cannot be read or belongs to another model; the model is then unchanged.
    """
    content = read_checkpoint(path)
    load_content(model, content, path, ema=ema)
    trained = take_over(model, content, path)
    own = getattr(model, "pretrained_cfg", None) or {}  # torchvision's have none
    if size := getattr(model, "input_size", own.get("input_size")):
        trained.say_unlike({"input_size": size})
    return content


def load_content(model: nn.Module, content: Mapping[str, object], path: str | Path, *, ema: bool = False) -> None:
    """`load_checkpoint` for a file that has been read; a model that the weights do not fit is unchanged."""
    weights = own_names(model, weights_of(content, ema=ema))
    own = model.state_dict()
    problems = [
        *(f"{key} is missing" for key in own.keys() - weights.keys()),
        *(f"{key} is not in the model" for key in weights.keys() - own.keys()),
        *(fault for key in own.keys() & weights.keys() if (fault := misfit(key, weights[key], own[key]))),
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        keys = own.keys() | weights.keys()
        raise InputError(
            f"checkpoint '{path}' belongs to another configuration: {len(problems)} of {len(keys)} keys differ: "
            f"{shown}{more}; {_origin(model, content, weights)}"
        )
    put_weights(model, weights, path)


def put_weights(
    model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path, *, strict: bool = True
) -> None:
    """Put weights of a file, whose names and shapes are a model's own, into the model; only if `strict`, all of them.

    They are in the model's present form, so the version that some modules ask for is the model's, whatever the file
    says: torchvision's MNASNet refuses weights without one.
    """
    own = model.state_dict()
    versioned = OrderedDict(weights)
    versioned._metadata = own._metadata  # type: ignore[attr-defined] # where torch keeps versions
    try:
        with evaluating(model):  # also clears what timm's LeViT has cached from its previous weights
            model.load_state_dict(versioned, strict)
    except Exception as error:  # modules may load in ways of their own, which raise anything
        raise InputError(
            f"checkpoint '{path}' is refused by its network: {one_line(error)}; use the versions of timm, torchvision "
            "and torch that wrote it"
        ) from error


def _origin(model: nn.Module, content: Mapping[str, object], weights: Mapping[str, object]) -> str:
    """The network that a file of other weights is of, as far as it shows, and what to do."""
    arch = content.get("arch")  # timm's checkpoints and ours have it
    named = f" '{arch:.80}'" if isinstance(arch, str) else ""
    is_stitched, was_stitched = hasattr(model, "views"), any(name.startswith("anchors.") for name in weights)
    if is_stitched and not was_stitched:
        what = "it is not an SN-Net checkpoint; check the path, or, if it holds one anchor's weights,"
        if named:
            what = f"it looks like a checkpoint of the single network{named}; to use it as an anchor,"
        return f"{what} set that anchor's 'checkpoint' in the stitch configuration"
    if was_stitched and not is_stitched:
        return "it is of an SN-Net; give its stitch configuration"
    return f"it is of{named}; use that network, with the same arguments" if named else "check which network it is of"


def misfit(key: str, value: object, own: torch.Tensor) -> str:
    """The reason why a value of a file cannot replace a tensor of ours; empty if it can.

    Precision may differ. Integers of ours other than counters are constants.
    """
    if not isinstance(value, torch.Tensor) or not _is_ordinary(value):
        return f"{key} is {type(value).__name__}, not {_said(own)}"
    if value.shape != own.shape or _kind(value) != _kind(own):
        return f"{key} is {_said(value)}, not {_said(own)}"
    if value.is_floating_point():
        # A finite value may overflow in our precision; a mask may contain infinities.
        is_worse = not value.to(own.dtype).isfinite().all() and bool(own.isfinite().all())
        return f"{key} is not finite" if is_worse else ""
    if key.endswith("num_batches_tracked"):
        return f"{key} is negative" if bool((value < 0).any()) else ""
    is_index = not own.is_floating_point() and own.dtype != torch.bool and own.ndim > 0
    return f"{key} has other numbers than ours" if is_index and not torch.equal(value, own.cpu()) else ""


def _said(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _kind(value: torch.Tensor) -> tuple[bool, ...]:
    return value.is_floating_point(), value.is_complex(), value.dtype == torch.bool


# timm's split batch norm has further norms for training; evaluation uses only the first one.
_SPLIT_BN = re.compile(r"\.aux_bn\.\d+")


def own_names(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of a model, given those of a published checkpoint; its own names stay as they are.

    An SN-Net and the models of anchors have published names; for any other model nothing is renamed.
    """
    named = _unwrapped(weights, model.state_dict().keys())
    for prefix, anchor in _anchors(model).items():
        part = {name.removeprefix(prefix): named.pop(name) for name in list(named) if name.startswith(prefix)}
        named |= {prefix + name: value for name, value in anchor.own_names(part, anchor.depths).items()}
    return _fit_split_norms(named, model.state_dict().keys())


def _unwrapped(weights: Mapping[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Weights without their common prefix, if they are those of a network that wraps the model."""
    first = next(iter(weights), "")
    prefixes = ["", *(first[: end + 1] for end, letter in enumerate(first) if letter == ".")]
    shared = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in weights)]
    kept = [prefix for prefix in shared if any(name.removeprefix(prefix) in wanted for name in weights)]
    return {name.removeprefix(kept[0]) if kept else name: value for name, value in weights.items()}


def _fit_split_norms(weights: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Leave out further norms that the model lacks, and start those that the file lacks as copies of the first."""
    kept = {name: value for name, value in weights.items() if _SPLIT_BN.search(name) is None or name in wanted}
    for name in wanted:
        first = _SPLIT_BN.sub("", name)
        if name not in kept and first != name and first in kept:
            kept[name] = kept[first].clone()
    return kept


def _anchors(model: nn.Module) -> dict[str, Anchor]:
    if (views := getattr(model, "views", None)) is not None:  # an SN-Net
        return {f"anchors.{number}.": anchor for number, anchor in enumerate(views.values())}
    return {"": anchor_of(model, label="model")} if has_view(model) else {}
