"""What a disk, a terminal or the system does to a run: the output is the old or the new one, errors are one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hostile import endurance, faults
from hostile.processes import command, kill_a_child, run
from safetensors import SafetensorError
from torch.utils.data import IterableDataset

from da3_splat.backbone.storage import FeatureFiles
from da3_splat.commands.endings import one_line
from da3_splat.io.files import NotWritten, check_writable, replacing
from da3_splat.training.optimization import OptimizationConfig, TrainingState, launch

ROOT = Path(__file__).parents[1]


class Steps:
    """A training that only counts its steps."""

    step, config, saved = 0, OptimizationConfig(steps=9), 0
    fabric = launch("32-true")

    def advance(self, batches):
        self.step += 1
        return {"loss": 1.0}

    def save(self, path, sampler):
        self.saved = self.step


class Pairs(IterableDataset):
    """Positions with nothing to read, slowly enough that they do not all wait already."""

    def __iter__(self):
        for position in range(99):
            time.sleep(0.05)
            yield position, torch.zeros(1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_one_kind_of_error_and_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(NotWritten, match="a.bin: cannot be written"), replacing(path) as beside:
        beside.write_text("ha")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_our_own_faults_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), replacing(tmp_path / "a") as beside:
        raise RuntimeError(f"shapes differ {beside.name}")


def test_a_mapped_file_asks_for_its_room_first(tmp_path, monkeypatch):
    """Without, a full disk ended the process with a bus error when the pages were written."""

    def full(file: int, offset: int, size: int) -> None:
        assert size == 2 * 3 * 4
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        FeatureFiles(tmp_path)((2, 3), torch.zeros(1))


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("a: b"), 2), (NotWritten("a: b"), 2), (KeyboardInterrupt(), 130)]
)
def test_expected_ends_are_one_line(capsys, error, code):
    with pytest.raises(SystemExit) as ended, one_line("train_head"):
        raise error
    assert ended.value.code == code and len(capsys.readouterr().err.splitlines()) == 1


def test_the_same_checkpoint_has_the_same_bytes(tmp_path):
    """torch writes the name of the file into it, and ours had the number of the process."""
    module = torch.nn.Linear(2, 1)
    state = TrainingState(launch("32-true"), module, {1e-3: list(module.parameters())}, OptimizationConfig())
    state.save(tmp_path / "a.pt", {"position": 1})
    state.save(tmp_path / "b.pt", {"position": 1})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_labelling_stops_where_it_cannot_write(tmp_path):
    """It called every scene broken, which none was."""
    from da3_splat.io import files

    assert issubclass(files.NotWritten, OSError)
    code = (
        "import runpy, sys, da3_splat.training.labelling as l; from da3_splat.io.files import NotWritten\n"
        "def full(*a, **k): raise NotWritten('x.npy: cannot be written (full)')\n"
        "l.label_scene = full\n"
        f"sys.argv = ['label_depth', '--synthetic-scenes', '1', '--output', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'label_depth.py')!r}, run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.strip().splitlines()[-1].startswith("label_depth: x.npy")
    assert not list(tmp_path.rglob("broken.txt"))


def test_half_a_file_is_found(tmp_path):
    """The judge of outputs itself."""
    (tmp_path / "a.json").write_text('{"a": ')
    (tmp_path / "b.npz").write_bytes(b"PK")
    (tmp_path / "c.json").write_text("{}")
    assert [line.split(":")[0] for line in faults.half_files(tmp_path)] == ["a.json", "b.npz"]


def test_a_process_that_is_hurt_is_told_apart(tmp_path):
    log = tmp_path / "log.txt"
    assert run(command(["info", "--no-such-option"]), log).code == 2
    assert run(lambda: signal.pause(), log, lambda process: os.kill(process, signal.SIGKILL)).code == -9
    hanging = run(lambda: signal.pause(), log, limit=0.3)
    assert hanging.code is None
    broken = run(lambda: {}["x"], log)
    assert broken.code == 1 and broken.traceback and "KeyError" in broken.last_line


def test_a_reader_process_that_dies_leaves_a_checkpoint(tmp_path):
    """The run ended in a traceback, and what was learnt since the last checkpoint was lost."""
    from da3_splat.data.synthetic_batches import StepSampler, WorldsConfig
    from da3_splat.training.loop import LoopConfig
    from da3_splat.training.loop import run as train

    def batches(words):
        yield 0, None
        yield 1, None
        raise RuntimeError(words)

    state = Steps()
    with pytest.raises(OSError, match="checkpoint.pt: a process that reads data died at step 2"):
        dying = batches("DataLoader worker (pid 7) is killed by signal: Killed.")
        train(state, dying, StepSampler(WorldsConfig()), tmp_path, LoopConfig(), lambda *found: None)
    assert state.saved == 2
    with pytest.raises(RuntimeError, match="shapes"):
        train(Steps(), batches("shapes"), StepSampler(WorldsConfig()), tmp_path, LoopConfig(), lambda *found: None)


def test_a_reader_process_that_dies_does_not_break_into_a_step(tmp_path):
    """torch raised where the first process happened to be: in a traceback, with half of an optimizer's step done."""
    from da3_splat.data.synthetic_batches import StepSampler, WorldsConfig
    from da3_splat.training.loop import LoopConfig, make_loader
    from da3_splat.training.loop import run as train

    class Killing(Steps):
        def advance(self, batches):
            if self.step == 1:
                assert kill_a_child(os.getpid())
                time.sleep(0.5)  # in which the news of it arrives
            return super().advance(batches)

    state = Killing()
    with pytest.raises(OSError, match="a process that reads data died"):
        train(state, make_loader(Pairs(), 1), StepSampler(WorldsConfig()), tmp_path, LoopConfig(), lambda *found: None)
    assert state.saved == state.step >= 2


@pytest.mark.slow
def test_soak(tmp_path):
    """The short form of scripts/soak.py holds, and says so in figures."""
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--json", str(tmp_path / "soak.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    rows = json.loads((tmp_path / "soak.json").read_text())
    assert sum(row["tried"] for row in rows) > 1000 and not any(row["tracebacks"] or row["lost"] for row in rows)


def test_a_few_reconstructions_open_nothing_for_good(tmp_path):
    before, after = endurance.many_reconstructions(11, tmp_path)
    assert after.handles <= before.handles


def test_a_thread_that_cannot_write_is_one_line(capsys):
    """tensorboard writes from a thread of its own, whose traceback was printed."""

    def writing() -> None:
        raise OSError(30, "Read-only file system")

    with one_line("train_head"):
        thread = threading.Thread(target=writing)
        thread.start()
        thread.join()
    assert capsys.readouterr().err.splitlines() == ["train_head: in the background: [Errno 30] Read-only file system"]


def test_ctrl_c_ends_a_training_after_its_step(tmp_path):
    """As an exception it came in the middle of a step, and at times nowhere at all: the training went on."""
    from da3_splat.data.synthetic_batches import StepSampler, WorldsConfig
    from da3_splat.training.loop import LoopConfig
    from da3_splat.training.loop import run as train

    class Interrupted(Steps):
        def advance(self, batches):
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                with contextlib.suppress(KeyboardInterrupt):  # what swallowed it
                    signal.sigtimedwait([], 0)
            return super().advance(batches)

    state, before = Interrupted(), signal.getsignal(signal.SIGINT)
    pairs = ((index, None) for index in range(99))
    train(state, pairs, StepSampler(WorldsConfig()), tmp_path, LoopConfig(), lambda *found: None)
    assert (state.step, state.saved) == (3, 3) and signal.getsignal(signal.SIGINT) is before


def _catches(process: int, number: int) -> bool:
    mask = Path(f"/proc/{process}/status").read_text().split("SigCgt:")[1].split()[0]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_ctrl_c_while_a_script_imports_says_nothing():
    script = str(ROOT / "scripts" / "train_geometry.py")
    started = f"print('on', flush=True); import runpy; runpy.run_path({script!r}, run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", started],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    ) as process:
        assert process.stdout.readline() == "on\n"
        while _catches(process.pid, signal.SIGINT):  # until the script's first lines have run
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and err == ""


def test_readers_leave_ctrl_c_to_the_first_process():
    """They died of it first, and the run ended in "no such file" without a checkpoint."""
    from da3_splat.training.loop import _end_quietly

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        _end_quietly(0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match="file: cannot be written to"):
        check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
