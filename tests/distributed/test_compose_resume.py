"""An interrupted composition or study, run again, ends byte for byte as an unbroken one, wherever it was killed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stitchkit.files as files
from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.loop import Trainer
from stitchkit.errors import InputError
from stitchnet import compose, composition
from stitchnet.journal import Journal, resumable
from stitchnet.search import Search
from studies.stitchnet import experiments, tuning
from studies.stitchnet.__main__ import main as study
from tests.composing import FLAGS, write_colours, write_pico_nets
from tests.distributed.forks import end, start as start_program

COMPOSE = ["compose", "--top", 3]
STUDIES = {
    "samples": ["samples", "--top", 1],
    "front": ["front", "--top", 2],
    "ensembles": ["ensembles", "--top", 2],
    "finetune": ["finetune", "--top", 1, "--eval-every", 2],
}


def start(command: list[Any], **options: Any) -> list[Any]:
    """Start `stitchkit compose`, or an experiment."""
    return start_program(command, **options | ({"program": study} if command[0] in STUDIES else {}))


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> list[object]:
    """Flags of every command, but for its folder."""
    folder = tmp_path_factory.mktemp("compose")
    return [
        "--data",
        write_colours(folder / "images", train=7, validation=5),
        "--nets",
        write_pico_nets(folder),
        *FLAGS,
    ]


@pytest.fixture(scope="module")
def whole(common, tmp_path_factory) -> Callable[[list[object]], Path]:
    """Gives the folder of an unbroken command, run once."""
    done: dict[str, Path] = {}

    def run(command: list[object]) -> Path:
        name = str(command[0])
        if name not in done:
            done[name] = tmp_path_factory.mktemp("whole") / "out"
            assert end(start([*command, *common, "-o", done[name]], first=small)) == [0]
        return done[name]

    return run


def small(_rank: int) -> None:
    """Make the studies short, with three steps in each of two epochs."""
    experiments._COUNTS, experiments._SEEDS, tuning.EPOCHS, tuning._BATCH = (2, 8), 1, 2, 8


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_myself(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(journal: Journal, value: object, *key: str | int) -> None:
    """Let half a line reach the disk."""
    with journal.path.open("a") as file:
        file.write(f'[["{key[0]}", "a[0:1] > b[')
    kill_myself()


PLACES: dict[str, tuple[Any, str, Callable[..., None], int]] = {
    # where, its name, what happens there at last, how often it is passed in the run
    "ranking": (Search, "_rank", kill_myself, 12),
    "line": (Journal, "add", write_half, 30),
    "joint": (composition, "fit_joint", kill_myself, 10),
    "build": (Search, "build", kill_myself, 5),
    "judge": (compose.CompositionTask, "accuracy", kill_myself, 5),
    "ledger": (compose, "write_rows", kill_myself, 5),
    "draft": (files.os, "fsync", kill_myself, 30),
    "rename": (files.os, "replace", kill_myself, 15),
    "step": (Trainer, "_step", kill_myself, 6),
    "checkpoint": (CheckpointFiles, "write_newest", kill_myself, 6),
}


def kill_at(rank: int, place: str, number: int) -> None:
    """Let this process die at the n-th time that it comes to a place."""
    small(rank)
    owner, name, last, _ = PLACES[place]
    inner, count = getattr(owner, name), [0]

    def counted(*arguments: object, **options: object) -> object:
        count[0] += 1
        if count[0] == number:
            last(*arguments, **options)
        return inner(*arguments, **options)

    setattr(owner, name, counted)


def resumed(command: list[object], expected: Path) -> None:
    """Run a command to its end; its folder is then as that of an unbroken one."""
    assert end(start(command, first=small)) == [0]
    assert content(Path(str(command[-1]))) == content(expected)


def case(quick: bool, *values: object) -> object:
    """A case of a test; those that are not quick are left to `make test-all`."""
    return pytest.param(*values, marks=[] if quick else pytest.mark.full)


@pytest.mark.full
@pytest.mark.parametrize(
    "place", [case(name == "ledger", name) for name in ("ranking", "line", "joint", "ledger", "draft", "rename")]
)
def test_a_composition_killed_at_each_place_resumes(place, common, whole, tmp_path):
    expected = whole(COMPOSE)
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    assert end(start(command, first=partial(kill_at, place=place, number=3))) == [-signal.SIGKILL]
    resumed(command, expected)


@pytest.mark.full
@pytest.mark.parametrize("seed", [0])
def test_a_composition_killed_at_random_resumes(seed, common, whole, tmp_path):
    expected, chance = whole(COMPOSE), random.Random(seed)
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    for _ in range(3):
        place = chance.choice(list(PLACES))
        end(start(command, first=partial(kill_at, place=place, number=chance.randint(1, PLACES[place][3]))))
    [process] = start(command)
    time.sleep(chance.random())
    process.kill()
    end([process])
    resumed(command, expected)


@pytest.mark.parametrize(
    ("name", "place", "number"),
    [
        case(False, "samples", "judge", 4),
        case(False, "ensembles", "judge", 3),
        case(False, "finetune", "step", 2),
        case(False, "finetune", "checkpoint", 3),
    ],
)
def test_a_study_killed_at_a_place_resumes(name, place, number, common, whole, tmp_path):
    expected = whole(STUDIES[name])
    command = [*STUDIES[name], *common, "-o", tmp_path / "out"]
    assert end(start(command, first=partial(kill_at, place=place, number=number))) == [-signal.SIGKILL]
    resumed(command, expected)


def terminate_in_a_step(rank: int) -> None:
    """Send this process a signal in its second step, as a cluster does."""
    small(rank)
    inner, count = Trainer._step, [0]

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(*arguments)

    Trainer._step = counted  # type: ignore[method-assign]


@pytest.mark.full
def test_a_study_stopped_in_fine_tuning_resumes(common, whole, tmp_path):
    expected = whole(STUDIES["finetune"])
    command = [*STUDIES["finetune"], *common, "-o", tmp_path / "out"]
    assert end(start(command, first=terminate_in_a_step)) == [128 + signal.SIGTERM]
    assert (tmp_path / "out/finetune.pth").exists()
    resumed(command, expected)


@pytest.mark.full
def test_a_composition_that_ended_is_left_as_it_is(common, whole):
    folder = whole(COMPOSE)
    before = content(folder)
    assert end(start([*COMPOSE, *common, "-o", folder])) == [0]
    assert content(folder) == before


@pytest.mark.full
def test_files_of_a_composition_that_are_gone_are_written_again(common, whole, tmp_path):
    expected, out = whole(COMPOSE), tmp_path / "out"
    shutil.copytree(expected, out)
    for name in ("stitches_res.txt", "001/net.svg", "003/net.json"):
        (out / name).unlink()
    shutil.rmtree(out / "002")
    resumed([*COMPOSE, *common, "-o", out], expected)
    (out / "stitches_res.txt").write_text("")
    resumed([*COMPOSE, *common, "-o", out], expected)


@pytest.mark.full
def test_scores_and_judgements_are_not_repeated(common, whole, tmp_path):
    expected = whole(COMPOSE)
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    assert end(start(command, first=partial(kill_at, place="judge", number=4))) == [-signal.SIGKILL]
    assert end(start(command, first=partial(kill_at, place="ranking", number=1))) == [0]
    assert content(tmp_path / "out") == content(expected)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--threshold", 0.3],
            "was started with --threshold 0.2, but now it is 0.3; repeat the original command to resume it",
        ),
        case(False, ["-k", 2], "was started with -k 3, but now it is 2"),
    ],
)
def test_a_composition_of_other_settings_is_refused(flags, words, common, whole, tmp_path):
    folder = whole(COMPOSE)
    before = content(folder)
    assert end(start([*COMPOSE, *common, "-o", folder, *flags], said=tmp_path / "said")) == [2]
    assert words in (tmp_path / "said").read_text()
    assert content(folder) == before


def other_weights(_rank: int) -> None:
    """Let the networks' weights be others than before."""
    compose._digest = lambda *_: "other"  # type: ignore[assignment]


@pytest.mark.full
def test_a_composition_of_other_weights_is_refused(common, whole, tmp_path):
    folder = whole(COMPOSE)
    before = content(folder)
    assert end(start([*COMPOSE, *common, "-o", folder], first=other_weights, said=tmp_path / "said")) == [2]
    assert "was started with another version of the images and weights" in (tmp_path / "said").read_text()
    assert content(folder) == before


@pytest.mark.parametrize(("split", "label"), [case(False, "train", 0), ("validation", 1)])
def test_a_composition_of_other_images_is_refused(split, label, common, whole, tmp_path):
    data, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(common[1], data)
    shutil.copytree(whole(COMPOSE), out)
    journal = out / "compose.jsonl"
    journal.write_text(journal.read_text().replace(str(common[1]), str(data)))
    before = content(out)
    Image.new("RGB", (20, 24)).save(data / split / f"class{label}/0.png")
    assert end(start([*COMPOSE, "--data", data, *common[2:], "-o", out], said=tmp_path / "said")) == [2]
    assert "was started with another version of the images and weights" in (tmp_path / "said").read_text()
    assert content(out) == before


def full_disk(_rank: int) -> None:
    """Let the weights of the second network not fit on the disk."""
    inner, count = Path.write_bytes, [0]

    def write(path: Path, data: bytes) -> int:
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return inner(path, data)

    Path.write_bytes = write  # type: ignore[assignment, method-assign]


@pytest.mark.full
def test_a_composition_on_a_full_disk_ends_in_one_line_and_resumes(common, whole, tmp_path):
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    assert end(start(command, first=full_disk, said=tmp_path / "said")) == [2]
    words = f"stitchkit: error: '{tmp_path}/out' cannot be written: No space left on device; make room, then repeat"
    assert words in (tmp_path / "said").read_text()
    resumed(command, whole(COMPOSE))


@pytest.mark.full
@pytest.mark.parametrize(
    ("command", "is_killed"),
    [
        case(True, COMPOSE, True),
        case(False, STUDIES["front"], False),
        case(False, STUDIES["ensembles"], True),
    ],
)
def test_a_larger_top_continues_a_folder(command, is_killed, common, whole, tmp_path):
    expected = content(whole(command))
    place = [*common, "-o", tmp_path / "out"]
    end(start([*command[:-1], 1, *place], first=partial(kill_at, place="judge", number=2) if is_killed else small))
    assert end(start([*command, *place], first=small)) == [0]
    found = content(tmp_path / "out")
    [journal] = [name for name in expected if name.endswith(".jsonl")]
    lines = [set(files.pop(journal).splitlines()) for files in (found, expected)]
    assert lines[0] - lines[1] == {next(line for line in lines[0] if b'"--top": 1' in line)}
    assert found == expected


@pytest.mark.parametrize("key", ["row", "ranking"])
def test_a_refused_command_leaves_a_journal_where_something_was_judged(key, tmp_path):
    with suppress(InputError), resumable(tmp_path, "finetune", {}, ["finetune.csv"]) as journal:
        journal.add(1, key, "a")
        raise InputError("a full disk")
    assert (tmp_path / "finetune.jsonl").exists() == (key == "row")


def test_a_configuration_of_networks_is_known_by_any_of_its_paths(common, whole, tmp_path):
    folder, config = shutil.copytree(whole(COMPOSE), tmp_path / "out"), common[3]
    command = [*COMPOSE, *common[:3], os.path.relpath(config), *common[4:], "-o", folder]
    assert end(start(command)) == [0]


@pytest.mark.full
def test_two_compositions_do_not_write_to_one_folder(common, tmp_path):
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    [one] = start(command)
    while not (tmp_path / "out/.compose.lock").exists():
        time.sleep(0.001)
    assert end(start(command, said=tmp_path / "said")) == [2]
    assert "another run writes to" in (tmp_path / "said").read_text()
    one.kill()
    end([one])
    assert end(start(command)) == [0]


@pytest.mark.full
@pytest.mark.parametrize("link", [case(name == "000", name) for name in ("000", "000/net.json", "stitches_res.txt")])
def test_a_composition_is_not_resumed_through_a_link(link, common, whole, tmp_path):
    """A folder may come from somebody else."""
    command = [*COMPOSE, *common, "-o", tmp_path / "out"]
    assert end(start(command, first=partial(kill_at, place="judge", number=1))) == [-signal.SIGKILL]
    place, elsewhere = tmp_path / "out" / link, tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(elsewhere / "file")
    place.symlink_to(elsewhere if link == "000" else elsewhere / "file")
    before = content(elsewhere)
    status = end(start(command))
    assert content(elsewhere) == before
    assert status == [0 if link == "stitches_res.txt" else 2]


@pytest.mark.parametrize(
    "line", ["{}", "[1]", '[["ranking", "x"], 3', "\x00", '{"a": 1, "b": 2}', "[3, 1]", '[["x", [1]], 1]']
)
def test_a_file_that_is_not_a_journal_is_refused_and_left_alone(line, tmp_path):
    path = tmp_path / "compose.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=r"line 1 is not (an entry of a journal|JSON)"):
        Journal(path)
    assert path.read_text() == line + "\n"


def test_a_journal_of_results_without_their_settings_is_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    journal = Journal(path)
    journal.agree_on_settings({"--score": "cka"})
    for count in (2, 8):
        journal.scope(count, 0).agree_on_content({"images": str(count)})
        journal.scope(count, 0).add(True, "joint", "a > b")
    lines = path.read_text().splitlines(keepends=True)
    for missing, check in (
        (0, lambda journal: journal.agree_on_settings({})),
        (3, lambda journal: journal.scope(8, 0).agree_on_content({})),
    ):
        path.write_text("".join(lines[:missing] + lines[missing + 1 :]))
        name = "pool" if missing else "settings"
        with pytest.raises(InputError, match=f"is damaged: its entry .*{name}"):
            check(Journal(path))


def test_a_journal_without_a_setting_that_matters_is_refused(tmp_path):
    journal = Journal(tmp_path / "finetune.jsonl")
    journal.agree_on_settings({"--top": 3})
    with pytest.raises(InputError, match="was started with --trains None, but now it is all; repeat the original"):
        journal.agree_on_settings({"--top": 3, "--trains": "all"})
