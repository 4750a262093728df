"""What may go wrong while a run reads and writes: nothing that was saved is lost, and one line says what to do."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader

import stitchkit.engine.checkpoint_files as checkpoint
from stitchkit.cli import main
from stitchkit.data.folders import open_images
from stitchkit.data.loader_processes import explained
from stitchkit.data.unreadable import NO_CLASS, CheckedImages
from stitchkit.engine.lock import is_held, locked
from stitchkit.engine.loop import Trainer
from stitchkit.engine.recovery import newest_checkpoint
from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.measure.scores import AccuracyScore
from stitchkit.networks.weights import damage
from stitchkit.training.checkpoint import Checkpoints
from stitchnet.data import read_image
from tests.distributed.forks import end, hold_lock, start
from tests.distributed.ranks import in_two_processes
from tests.distributed.subjects import SUBJECTS
from tests.support import FLAGS, LOADER_DIES, mostly_full, write_config, write_images


@pytest.fixture
def run(images, tmp_path):
    """Train, with the exit status that comes of it."""
    config = write_config(tmp_path / "pico.json")

    def trained(experiment, *flags, data=images):
        common = [data, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--experiment", experiment]
        return main(["train", *map(str, [*common, *flags])])

    return trained


class Full:
    """A disk that takes so many bytes."""

    def __init__(self, file, left):
        self._file, self._left = file, left

    def write(self, data):
        self._left -= len(memoryview(data).cast("B"))
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.full
@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["SN-Net"]), indirect=True)
def test_a_full_disk_ends_a_run_and_keeps_what_was_saved(subject, trained, unbroken, tmp_path, monkeypatch, capsys):
    inner, count = torch.save, [0]

    def save(state, file):
        count[0] += 1
        inner(state, Full(file, 50_000) if count[0] == 3 else file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", save)
        assert trained("full", "--checkpoint-interval", "3") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "' cannot be written: No space left on device; stopped. The previous one is kept: make room" in line
    assert not list((tmp_path / "full").glob("*.tmp"))
    assert not damage(subject.files(tmp_path / "full").last)
    assert trained("full", "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject), tmp_path / "full")


def test_a_disk_that_does_not_take_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    """Where a sync fails, what was written may be nowhere; one that the file system does not know is none."""
    path = tmp_path / "last.pth.tar"
    checkpoint.save_state(path, {"x": 1})

    def failing(number):
        def sync(_):
            raise OSError(number, os.strerror(number))

        return sync

    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(
        InputError, match=r"Input/output error; stopped\. The previous one is kept: check the disk, then"
    ):
        checkpoint.save_state(path, {"x": 2})
    assert torch.load(path, weights_only=True) == {"x": 1}
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    checkpoint.save_state(path, {"x": 3})
    assert torch.load(path, weights_only=True) == {"x": 3}


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("stitchkit.engine.lock.fcntl.lockf", lockf)
    with locked(tmp_path / ".train.lock"):
        assert "does not support locks" in caplog.text


def test_a_lock_is_asked_about_without_being_taken(tmp_path, monkeypatch):
    """A run that begins in that moment finds it free."""
    path = tmp_path / ".train.lock"
    assert not is_held(path)
    process = hold_lock(path)
    monkeypatch.setattr("stitchkit.engine.lock.fcntl.lockf", lambda *_: pytest.fail("it was taken"))
    assert is_held(path)
    process.kill()
    process.communicate()
    assert path.exists()
    assert not is_held(path)


def test_a_training_that_begins_leaves_the_files_of_an_evaluation_alone(tmp_path):
    for name in ("stitches_res.txt.part0.tmp", "eval_args.yaml.tmp", "last.pth.tar.tmp", "args.yaml.tmp"):
        (tmp_path / name).touch()
    Checkpoints(tmp_path, keep=1).clear()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"stitches_res.txt.part0.tmp", "eval_args.yaml.tmp"}


WRITERS = {"train": "stitchkit.training.train.write_summary", "job": "stitchkit.assembly.train.run.write_rows"}


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_other_writes_to_a_full_disk_end_in_one_line(subject, trained, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WRITERS[subject.name], full)
    assert trained("full") == 2
    assert "stitchkit: error: No space left on device; make room" in capsys.readouterr().err


def cut(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def flip_a_weight(path):
    """Torch itself reads such a file without a word."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    # At most 64 bytes of padding, which nobody reads, lie between the name and the values.
    name_ends = path.read_bytes().index(largest.filename.encode()) + len(largest.filename)
    flip(path, name_ends + largest.file_size // 2)


def empty(path):
    path.write_bytes(b"")


HARMS = {"cut": cut, "flip": flip_a_weight, "empty": empty}
HARMED = [("SN-Net", "flip"), ("SN-Net", "empty"), ("job", "cut")]


@pytest.mark.parametrize(("subject", "harm"), mostly_full(HARMED, quick=[("SN-Net", "flip")]), indirect=["subject"])
def test_the_checkpoint_before_a_damaged_one_is_used(subject, trained, unbroken, tmp_path, caplog, harm):
    folder = tmp_path / "harmed"
    assert trained("harmed", "--checkpoint-interval", "3") == 0
    newest, previous, *_ = subject.files(folder).candidates()
    HARMS[harm](newest)
    assert newest_checkpoint(subject.files(folder)) == previous
    with caplog.at_level("INFO"):
        assert trained("harmed", "--resume", "auto") == 0
    assert re.search(
        rf"{newest.name}' (is damaged \(|cannot be read: it is truncated, or not a checkpoint)", caplog.text
    )
    assert "; using the previous one" in caplog.text
    assert previous.name in caplog.text
    subject.assert_same_end(unbroken(subject), folder)


def test_the_good_one_stays_where_the_newest_was_damaged(subject, tmp_path):
    """A run that resumes from the one before must not put the damaged file in its place."""
    before = subject.files(tmp_path)
    for epoch in (5, 6):
        before.write_newest({"epoch": epoch})
    newest, previous = before.candidates()
    cut(newest)
    good, state = previous.read_bytes(), subject.files(tmp_path)
    state.read(previous)
    state.write_newest({"epoch": 7})
    assert previous.read_bytes() == good
    state.write_newest({"epoch": 8})
    assert (subject.content(tmp_path)["epoch"], subject.content(tmp_path, 1)["epoch"]) == (8, 7)


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["SN-Net"]), indirect=True)
def test_a_damaged_checkpoint_that_was_named_ends_the_run(subject, trained, tmp_path, capsys):
    assert trained("harmed", "--epochs", "1") == 0
    last = subject.files(tmp_path / "harmed").last
    flip_a_weight(last)
    for place, flags in (("harmed", ["--resume", last]), ("judged", [subject.judge, "--resume", last])):
        assert trained(place, *flags) == 2
        line = capsys.readouterr().err
        assert f"checkpoint '{last}' is damaged (" in line
        assert "; --resume auto takes the newest good checkpoint" in line
    cut(last)
    assert trained("harmed", "--resume", last) == 2
    assert "(File is not a zip file); --resume auto takes the newest good checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_auto_without_a_good_checkpoint(subject, trained, tmp_path, capsys):
    assert trained("none", subject.judge, "--resume", "auto") == 2
    assert "contains no checkpoint to " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert trained("fresh", "--resume", "auto", "--epochs", "1") == 0
    found = subject.files(tmp_path / "fresh").candidates()
    for path in found:
        empty(path)
    assert trained("fresh", "--resume", "auto") == 2
    assert f"none of the {len(found)} checkpoints in" in capsys.readouterr().err


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_two_runs_do_not_write_to_one_folder(subject, trained, images, tmp_path, capsys):
    """The second is refused while the first lives; a killed one, whose loader processes live on, is in nobody's way."""
    folder = tmp_path / "shared"
    common = [*subject.start(images, tmp_path), *subject.place(tmp_path, "shared")]
    [first] = start([*common, "--epochs", "500", "-j", "1"])
    deadline = time.monotonic() + 60
    while not subject.files(folder).last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert trained("shared", "--resume", "auto") == 2
    line = capsys.readouterr().err
    assert f"another run writes to '{folder}' (process {first.pid} on {os.uname().nodename})" in line
    first.kill()
    assert end([first]) == [-signal.SIGKILL]
    assert trained("shared") == 2, "what another run saved is not written over"
    assert "already contains a " in capsys.readouterr().err
    assert trained("shared", "--resume", "auto", "--epochs", "1") == 0
    assert not list(folder.glob(".*lock"))


@LOADER_DIES
@pytest.mark.full  # on two ranks there is a quick one
@pytest.mark.parametrize("subject", ["job"], indirect=True)
def test_a_loader_process_that_dies_ends_the_run_in_one_line(subject, trained, unbroken, tmp_path, monkeypatch, capsys):
    inner = Trainer._step

    def step(trainer, *arguments):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        return inner(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        assert trained("died", "-j", "1") == 2
    line = capsys.readouterr().err
    assert "a loader process died (" in line
    assert "lower --workers and resume with --resume auto" in line
    assert trained("died", "-j", "1", "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject, "-j", "1"), tmp_path / "died")


class Deadly:
    """A file during whose first write a loader process is killed, as by a system short of memory."""

    def __init__(self, file):
        self._file, self._has_killed = file, False

    def write(self, data):
        if not self._has_killed:
            self._has_killed = True
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.2)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@LOADER_DIES
@pytest.mark.full
@pytest.mark.parametrize("subject", ["SN-Net"], indirect=True)
def test_a_loader_process_that_dies_while_a_checkpoint_is_written(
    subject, trained, unbroken, tmp_path, monkeypatch, capsys
):
    """The checkpoint before it stays the newest."""
    inner, count = torch.save, [0]

    def save(state, file):
        count[0] += 1
        inner(state, Deadly(file) if count[0] == 2 else file)

    flags = ("-j", "1", "--checkpoint-interval", "3")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", save)
        assert trained("died", *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "a loader process died (" in line
    assert "lower --workers and resume with --resume auto" in line
    assert not list((tmp_path / "died").glob("*.tmp"))
    assert trained("died", *flags, "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject, "-j", "1"), tmp_path / "died")


def error_of_one_rank(subject, images, folder, first):
    """The message of the rank on which `first` breaks something; the other rank says only that it has ended."""
    command = [*subject.start(images, folder), *subject.place(folder, "failed"), "-j", "1", "-b", "2"]
    assert end(start(command, ranks=2, said=folder / "said", first=first)) == [2, 2]
    said = (folder / "said").read_text()
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("stitchkit: error: ")]
    assert sum("another rank has ended and says why" in line for line in errors) == len(errors) - 1 == 1
    return next(line for line in errors if "another rank has ended and says why" not in line)


def kill_loaders(rank):
    """Kill the loader processes of one rank in its fourth step."""
    inner, count = Trainer._step, [0]

    def step(trainer, *arguments):
        count[0] += 1
        for process in multiprocessing.active_children() if (rank, count[0]) == (1, 4) else ():
            os.kill(process.pid, signal.SIGKILL)
        return inner(trainer, *arguments)

    Trainer._step = step


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_a_loader_process_that_dies_ends_all_ranks_without_a_traceback(subject, images, tmp_path):
    assert "a loader process died (" in error_of_one_rank(subject, images, tmp_path, kill_loaders)


class GoneReader:
    """A reader of timm on such a disk."""

    def __getitem__(self, index):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_unreadable_image_is_logged_once_with_its_cause(tmp_path, caplog):
    """timm's own line would come again in every epoch."""
    images = open_images(write_images(tmp_path / "few") / "train")
    for path, _ in images.reader.samples[:2]:
        Path(path).write_bytes(b"")
    for checked in 2 * [CheckedImages(images, num_classes=4, is_training=True, limit=0.5)]:
        for number in range(4):
            assert checked[number]
    [line] = caplog.messages
    assert re.match(r"'\w+/\w+\.png' of the train split is skipped \(UnidentifiedImageError: ", line)


def test_the_cause_is_named_that_timm_only_logs(images):
    found = open_images(images / "train")
    found.reader.__class__ = type("Gone", (GoneReader, type(found.reader)), {})
    with pytest.raises(
        InputError, match=r"6 of 64 images .* \(OSError: \[Errno 5\] Input/output error\); more than 1 %"
    ):
        CheckedImages(found, num_classes=4, is_training=True)[0]


class GoneImages:
    """Images on a disk that is gone, as a dead server of NFS or FUSE leaves it."""

    @property
    def samples(self):
        return self

    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def lose_disk(rank):
    """From its fourth step on, one rank can read no image; the error names no file."""
    inner, count = CheckedImages._read, [0]

    def read(images, index):
        count[0] += 1
        if rank == 1 and count[0] > 6:
            images.dataset = GoneImages()
        return inner(images, index)

    CheckedImages._read = read


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["SN-Net"]), indirect=True)
def test_a_disk_that_fails_ends_all_ranks_without_a_traceback(subject, images, tmp_path):
    assert "(OSError: [Errno 5] Input/output error)" in error_of_one_rank(subject, images, tmp_path, lose_disk)


@pytest.mark.parametrize("code", mostly_full([errno.EIO, errno.ESTALE, errno.ECONNRESET], quick=[errno.EIO]))
def test_a_read_that_fails_in_a_loader_process_names_its_cause(code, monkeypatch):
    """A stream, whose samples nobody counts; torch loses the number of the error."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(GoneImages, "__getitem__", fail)
    words = rf"cannot be read \(.*{os.strerror(code)}\); check the disk"
    with pytest.raises(InputError, match=words) as caught, explained():
        next(iter(DataLoader(GoneImages(), num_workers=1)))
    assert len(str(caught.value)) < 200


@pytest.mark.full
def test_missing_data_are_reported_before_a_busy_folder(run, tmp_path, capsys):
    process = hold_lock(tmp_path / "shared/.train.lock")
    assert run("shared", data=tmp_path / "typo") == 2
    assert "typo' does not exist; it must have train/" in capsys.readouterr().err
    process.kill()
    process.communicate()


def test_other_faults_are_not_changed():
    with pytest.raises(RuntimeError, match="something else"), explained():
        raise RuntimeError("something else")


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("subject", ["job"], indirect=True)
def test_a_signal_to_all_processes_leaves_the_loaders_to_their_run(
    number, subject, trained, unbroken, tmp_path, monkeypatch
):
    """As clusters send it."""
    inner, count = Trainer._step, [0]

    def step(trainer, *arguments):
        count[0] += 1
        if count[0] == 2:
            processes = [*(child.pid for child in multiprocessing.active_children()), os.getpid()]
            subprocess.run(["kill", f"-{number:d}", *map(str, processes)], check=True)
        return inner(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        assert trained("warned", "-j", "1") == 128 + number
    assert trained("warned", "-j", "1", "--resume", "auto") == 0
    subject.assert_same_end(unbroken(subject, "-j", "1"), tmp_path / "warned")


@pytest.mark.full
@pytest.mark.parametrize("subject", ["job"], indirect=True)
def test_an_impatient_person_ends_a_run_at_once(trained, monkeypatch):
    def step(*_):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError("the third signal ends it")

    monkeypatch.setattr(Trainer, "_step", step)
    assert trained("impatient") == 130


@pytest.fixture
def spoilt(tmp_path):
    """64 images to train and 20 to validate, of which three and two cannot be read."""
    folder = write_images(tmp_path / "spoilt")
    (folder / "train/class0/3.png").write_bytes(b"")
    (folder / "train/class1/0.png").write_text("<html>404</html>")
    broken = folder / "train/class3/15.png"
    broken.write_bytes(broken.read_bytes()[:60])
    os.truncate(folder / "validation/class2/1.png", 40)
    picture = folder / "validation/class3/4.png"
    flip(picture, picture.stat().st_size // 2)
    # A picture of another kind under a wrong name is a picture.
    Image.new("RGB", (16, 16)).save(folder / "train/class2/0.png", format="JPEG")
    return folder


@pytest.mark.parametrize("workers", mostly_full(["0", "1"], quick=["0"]))
def test_unreadable_images_are_skipped_and_counted(run, spoilt, tmp_path, caplog, workers):
    flags = ["--max-unreadable", "0.1", "-j", workers, "--epochs", "1"]
    assert run("spoilt", *flags, data=spoilt) == 0
    assert "3 of 64 images of the train split cannot be read or have no class: 'class0/3.png'" in caplog.text
    assert "2 of 20 images of the validation split cannot be read or have no class: 'class2/1.png'" in caplog.text
    assert run("spoilt", *flags, "--eval", "--resume", "auto", data=spoilt) == 0
    assert {row["images"] for row in read_rows(tmp_path / "spoilt/stitches_res.txt")} == {18}
    for path in [spoilt / "validation/class2/1.png", spoilt / "validation/class3/4.png"]:
        path.unlink()
    assert run("mended", *flags, "--eval", "--resume", tmp_path / "spoilt/last.pth.tar", data=spoilt) == 0
    rows = [read_rows(tmp_path / name / "stitches_res.txt") for name in ("spoilt", "mended")]
    for one, other in zip(*rows, strict=True):
        assert one["acc1"] == other["acc1"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("subject", "workers"), mostly_full([("SN-Net", "1"), ("job", "0")], quick=[("SN-Net", "1")]), indirect=["subject"]
)
def test_too_many_unreadable_images_end_the_run(subject, trained, spoilt, capsys, workers):
    for number in (3, 5, 8):
        (spoilt / f"train/class2/{number}.png").write_bytes(b"")
    assert trained("spoilt", "-j", workers, data=spoilt) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "of 64 images of the train split cannot be read or have no class, such as 'class" in line
    assert ("; more than 1 %" if subject.name == "job" else "more than --max-unreadable 0.01") in line


@pytest.mark.parametrize(("limit", "allowed"), [(0.01, 5), (0.1, 6), (0, 0)])
def test_a_few_unreadable_images_do_not_end_a_run(limit, allowed, tmp_path):
    """One per cent of a small split is less than one; a limit of 0 allows none."""
    images = open_images(write_images(tmp_path / "few") / "train")
    for path, _ in images.reader.samples[::10]:
        Path(path).write_bytes(b"")
    checked = CheckedImages(images, num_classes=4, is_training=True, limit=limit)
    for number in range(allowed):
        assert checked[10 * number]
    with pytest.raises(InputError, match=f"{allowed + 1} of 64 images of the train split cannot be read or have no c"):
        checked[10 * allowed]


def test_images_of_too_many_pixels_are_not_decoded(tmp_path, monkeypatch):
    """Pillow itself only warns, up to twice its limit."""
    images = open_images(write_images(tmp_path / "huge") / "train")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    warnings.simplefilter("default", Image.DecompressionBombWarning)  # as in a run; pytest makes errors of warnings
    with pytest.raises(InputError, match="6 of 64 images of the train split cannot be read"):
        CheckedImages(images, num_classes=4, is_training=True)[0]
    with pytest.raises(InputError, match=r"0\.png' cannot be read: Image size \(256 pixels\) exceeds limit of 200"):
        read_image(images.reader.samples[0][0], (16, 16))


def test_a_disk_that_is_gone_is_named(tmp_path, monkeypatch):
    """Where the share of such images is not over its limit first."""
    monkeypatch.setattr(CheckedImages, "_check", lambda *_: None)
    images = open_images(write_images(tmp_path / "gone") / "train")
    for path, _ in images.reader.samples:
        Path(path).write_bytes(b"")
    words = r"10 images of the train split in a row are unreadable \(UnidentifiedImageError: "
    with pytest.raises(InputError, match=words):
        CheckedImages(images, num_classes=4, is_training=True)[0]


def test_labels_without_a_class_are_skipped(images, caplog):
    """Of a file of labels that counts further than the network."""
    dataset = open_images(images / "train")
    dataset.reader.samples = [(path, 9 if label == 3 else label) for path, label in dataset.reader.samples]
    options = {"num_classes": 4, "limit": 0.5}
    training = CheckedImages(dataset, is_training=True, **options)
    assert training[47][1] == 2, "the last one with a class"
    with pytest.raises(InputError, match="10 images of the train split in a row"):
        training[48]
    evaluation = CheckedImages(dataset, is_training=False, **options)
    assert [evaluation[number][1] for number in (47, 60)] == [2, NO_CLASS]
    assert "label 9 is not a class" in caplog.text


def often(subject, steps):
    """The flags of a log line every so many steps."""
    return "--print-freq" if subject.name == "job" else "--log-interval", steps


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_an_infinite_loss_names_its_stitch(subject, trained, tmp_path, monkeypatch, capsys):
    """In one route only; the run stops before it saves, and what was saved before stays."""
    inner, seen = Trainer._step, []

    def step(trainer, batches, number):
        loss, images, routes = inner(trainer, batches, number)
        seen.append(routes)
        return (loss * torch.inf if len(seen) == 10 else loss), images, routes

    monkeypatch.setattr(Trainer, "_step", step)
    assert trained("infinite", *often(subject, 2)) == 2
    stitch = "" if subject.name == "job" else f" with route {seen[9][0]}"
    assert f"the loss is inf at step 9{stitch} on rank 0; stopped." in capsys.readouterr().err
    assert subject.content(tmp_path / "infinite")["epoch"] == (1 if subject.name == "job" else 0), "the first's end"


NOT_FINITE = [("SN-Net", "buffer"), ("job", "loss")]


@pytest.mark.full
@pytest.mark.parametrize(("subject", "what"), NOT_FINITE, indirect=["subject"])
def test_an_infinite_figure_is_not_saved_within_an_epoch(subject, trained, tmp_path, monkeypatch, capsys, what):
    """Of a step that left the weights finite; the checkpoint before it is the one to resume from."""
    inner, count = Trainer._step, [0]

    def step(trainer, *arguments):
        loss, images, routes = inner(trainer, *arguments)
        count[0] += 1
        if count[0] == 3 and what == "loss":
            loss = loss * torch.inf
        if count[0] == 3 and what == "buffer":
            for module in (trainer.task.get_trainable_module(), trainer.task.get_trainable_module(ema=True).module):
                module.register_buffer("running_var", torch.tensor([1.0, torch.inf]))
        return loss, images, routes

    flags = ("--checkpoint-interval", "2", *often(subject, 50))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        assert trained("poisoned", *flags) == 2
    expected = {
        "loss": "the loss is inf at step 2 ",
        "buffer": "weights or statistics of norms are",
    }
    assert expected[what] in capsys.readouterr().err
    assert subject.content(tmp_path / "poisoned")["within"]["ranks"][0]["position"]["done"] == 2
    assert trained("poisoned", *flags, "--resume", "auto") == 0


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["job"]), indirect=True)
def test_an_epoch_of_an_infinite_validation_loss_is_not_saved(subject, trained, tmp_path, monkeypatch, capsys):
    inner = AccuracyScore.row
    assert trained("infinite", "--epochs", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(AccuracyScore, "row", lambda *sums: inner(*sums) | {"loss": torch.inf})
        infinite = lambda _, measures, *__: ([torch.inf] * len(measures), [torch.inf])  # noqa: E731
        patch.setattr("stitchkit.assembly.train.testing._of_images", infinite)
        assert trained("infinite", "--resume", "auto", "--epochs", "2") == 2
    assert "validation loss are not finite after epoch 2; stopped." in capsys.readouterr().err
    assert subject.content(tmp_path / "infinite")["epoch"] == (1 if subject.name == "job" else 0), "the first's end"
    assert trained("infinite", "--resume", "auto") == 0


@pytest.mark.parametrize("subject", mostly_full(SUBJECTS, quick=["SN-Net"]), indirect=True)
def test_a_fault_on_one_rank_ends_all(subject, images, tmp_path):
    """No rank waits for one that has ended."""
    command = [*subject.start(images, tmp_path), *subject.place(tmp_path, "none"), subject.judge, "--resume", "auto"]
    began = time.monotonic()
    assert end(start(command, ranks=2, said=tmp_path / "said")) == [2, 2]
    assert time.monotonic() - began < 30
    assert (tmp_path / "said").read_text().count("contains no checkpoint to ") == 2


def read_different_files(rank, folder):
    """What a rank finds that reads after a run has given the name to its next checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    if rank == 1:
        inner = checkpoint.read_hashed
        checkpoint.read_hashed = lambda path: inner(f"{folder}/next.pth")
    with pytest.raises(InputError, match="was replaced while the ranks read it; give a file that stays"):
        checkpoint.read_alike(f"{folder}/last.pth")
    dist.destroy_process_group()


def test_ranks_that_read_different_files_say_so(tmp_path):
    for epoch, name in enumerate(("last", "next")):
        torch.save({"epoch": epoch}, tmp_path / f"{name}.pth")
    in_two_processes(read_different_files, str(tmp_path))


def test_what_a_checkpoint_needs_reaches_the_disk_in_order(tmp_path, monkeypatch):
    """The file, its name, the folder."""
    said = []
    for name in ("fsync", "replace"):
        inner = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, inner=inner, name=name: (said.append((name, str(a[0]))), inner(*a)))
    checkpoint.save_state(tmp_path / "a.pth", {"x": 1})
    assert [name for name, _ in said] == ["fsync", "replace", "fsync"]


def test_errors_other_than_of_writing_are_not_changed(tmp_path):
    with pytest.raises(AttributeError, match="local object"):
        checkpoint.save_state(tmp_path / "a.pth", {"x": lambda: 0})
    with pytest.raises(InputError, match="No such file"):
        checkpoint.save_state(tmp_path / "gone/a.pth", {})
