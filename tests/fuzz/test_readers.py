"""Whatever a file holds, its reader accepts it or refuses it in one line, soon and in little memory."""

import gc
import json
import os
import pickle
import signal
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from stitchkit.errors import InputError
from tests.fuzz import limits
from tests.fuzz.inputs import files
from tests.fuzz.limits import limited
from tests.fuzz.readers import READERS

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
_QUICK = 6  # of each reader


FOUND = {
    "stitch configuration": [
        *(b"!!int ''", b"!!float ''", b"!!timestamp ''", b"[" * 10_000, b"\xef\xbb\xbf\0", b"a: 2026-13-45\n"),
        *(b"a: &a [*a]\n", b"a: 1\na: 2\n", b"a: .inf\n", b"a: !include\n", b"a: !include fuzzed.yml\n"),
        b"a: !include /dev/zero\n",
        *(b"anchors: [" + b"1," * 24_000 + b"]", b"".join(b"k%d: 1\n" % number for number in range(12_000))),
    ],
    "recipe": [
        b"!!bool x",
        b"epochs: " + b"9" * 400,
        b"lr: .nan\n",
        b"epochs: 2026-01-01\n",
        b"mean: [" + b"a," * 24_000 + b"]",
    ],
    "job": [b"assembly: [" + b"1," * 20_000 + b"]\ntrain_config: {dataset: x}\n"],
    "collection": [b'{"datasets": {"\\ud986": 1}}'],
    "network of a stitch configuration": [
        b"anchors: [{name: vit_tiny_patch16_224, kwargs: {depth: 1000000}}, resnet18]\n",
        b"anchors: [{name: resnet18, kwargs: {layers: [1, 1000000, 1, 1]}}, resnet50]\n",
        b"anchors: [resnet18, resnet50]\nrecipe: {mean: [0.1, 0.2]}\n",
    ],
    "network of a job": [
        b"assembly: [{SimpleAdapter: {num_conv: 1000000, in_channels: 3, out_channels: 3}}]\n"
        b"train_config: {dataset: x}\n"
    ],
    "ledger": [
        *(b'{"cfg_id": true}\n', b'{"cfg_id": 0, "acc1": 1, "acc1": 2}\n', b'{"cfg_id": ' + b"9" * 5000 + b"}\n"),
        b'{"cfg_id": 0, "flops": 1, "params": 1, "loss": 1' + b"0" * 400 + b"}\n",
        *(b'{"cfg_id": 0, "acc1": 150, "images": 3}\n', b'{"cfg_id": 0, "acc1_low": 1, "tied_with": [[]]}\n'),
        b"{" + b"".join(b'"k%d": 1, ' % number for number in range(20_000)) + b'"k19999": 1}\n',
    ],
    "losses.csv": [b"epoch,cfg_id,stitch,loss,loss\n0,0,a,1,2\n"],
    "output map": [b"cat: !include /dev/zero\n"],
    "journal": [b'[["settings"], {"--top": 1, "--top": 2}]\n'],
    "class map": [b"\x80a\nb\n", b"a\nb\na\n", b"9" * 5000],
    "sweep of heads by encoders": [b"ft_configs: [" + b"x" * 300 + b"]\n"],
    "search": [
        b"job: base.yml\nmethod: random\nmetric: {name: Loss}\nrun_cap: 1000000\nparameters: {lr: {value: 1}}\n",
        b"job: base.yml\nmethod: random\nmetric: {name: Loss}\nparameters: {lr: {min: -1.0e+308, max: 1.0e+308}}\n",
    ],
    "legacy checkpoint": [
        b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {}))
        + b"c"
        + b"a" * 50_000
        + b"\nb\n."
    ],
    "metadata of a job": [
        b"{arch: a, adapter: linear, last_deleted_block: 1, num_downsamples: 0}",
        b"{arch: a, x: " + b"9" * 400 + b"}",
    ],
    "results of a job": [b"Epoch\nx0\n", b"Epoch\n0.5\n", b"Epoch,Overall/digits/Test Accuracy\n0,x\n"],
    "choice of stitches": [b"9" * 5000, b"a[0:" + b"9" * 5000 + b"]"],
}
"""Files that ended a reader in a traceback, a hang or silence once, or that look as if they could."""


def _try(reader, path, content):
    path.write_bytes(reader.wrap(content))
    try:
        with limited():
            reader.read(path)
    except InputError as error:
        words = str(error)
        assert words.isprintable(), words
        assert 0 < len(words) <= 3000
        return words
    return ""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused(name, tmp_path):
    path, _ = READERS[name].placed(tmp_path)
    for content in FOUND[name]:
        assert _try(READERS[name], path, content), content


def test_half_a_measurement_of_latency_is_no_fault(tmp_path):
    row = b'{"cfg_id": 0, "flops": 1, "acc1": 1, "latency_ms": 1, "latency_device": "cpu"}\n'
    assert _try(READERS["report"], tmp_path / "fuzzed.txt", row) == ""


def test_a_gap_of_endless_halvings(tmp_path):
    path, [seed] = READERS["sweep"].placed(tmp_path)
    content = seed.content | {"gaps": [{"blocks_to_drop": [1, 1], "num_downsamples": 10**30}]}
    words = "num_downsamples is 1000000000000000000000000000000; it must be at most 32"
    assert words in _try(READERS["sweep"], path, json.dumps(content).encode())


def test_code_that_computes_or_waits_for_long_is_stopped_and_later_signals_are_harmless(monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", {signal.ITIMER_PROF: 0.05, signal.ITIMER_REAL: 0.2})

    def swallow_the_first():
        with suppress(BaseException):
            while True:
                pass
        while True:
            pass

    for run in (swallow_the_first, lambda: time.sleep(9)):
        with pytest.raises(AssertionError, match="took too long"), limited():
            run()
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.raise_signal(number)


@pytest.fixture(scope="module")
def older_objects_frozen():
    """What earlier tests left in memory is not a reader's work: one collection of it can take longer than the limit."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _fuzz(reader, folder, examples, *, good=None):
    path, seeds = reader.placed(folder)
    for seed in seeds[:good]:
        path.write_bytes(reader.wrap(seed.dumps[0](seed.content).encode() if seed.dumps else seed.content))
        reader.read(path)

    @settings(
        max_examples=examples,
        derandomize=EXAMPLES is None,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(content=files(seeds))
    def check(content):
        _try(reader, path, content)

    check()


@pytest.mark.usefixtures("older_objects_frozen")
@pytest.mark.parametrize("name", READERS)
def test_a_few_odd_files(name, tmp_path):
    _fuzz(READERS[name], tmp_path, _QUICK, good=1)


@pytest.mark.full
@pytest.mark.usefixtures("older_objects_frozen")
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_odd_files(name, tmp_path):
    _fuzz(READERS[name], tmp_path, int(EXAMPLES or 150))
