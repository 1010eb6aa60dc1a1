"""Every reader with files that lie: it gives a right result, or one error that names the file. Never anything else,
never without end, never gigabytes. `scripts/soak.py` tries many more."""

import shutil
from pathlib import Path

import pytest
from hostile.case import Hang, bounded, outcome
from hostile.mutations import KINDS, changed
from hostile.readers import READERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EDITS = st.lists(st.tuples(st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(tmp_path, name):
    """Else the tests below would be content with a reader that refuses everything."""
    reader = READERS[name]
    (tmp_path / "input").mkdir()
    assert outcome(reader.read, reader.good(tmp_path / "input"), tmp_path / "input") == "read"


@pytest.mark.parametrize("name", READERS)
def test_bad_files_of_every_kind(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for number, case in enumerate(READERS[name].cases()):
        folder = tmp_path / f"input_{number}"
        folder.mkdir()
        given = case.write(folder)
        try:
            outcome(READERS[name].read, given, folder)
        except AssertionError as error:
            wrong.append(f"{case.name}: {error}")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path_factory, name):
    """A few bytes of a good file flipped, cut, doubled, replaced by numbers that counts do not expect."""
    reader = READERS[name]
    source = tmp_path_factory.mktemp("good")
    given_path = reader.good(source).relative_to(source)
    folder = tmp_path_factory.mktemp("damaged") / "input"

    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(list(reader.files)), EDITS)
    def damage(file: str, edits) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        (folder / file).write_bytes(changed((source / file).read_bytes(), edits))
        outcome(reader.read, folder / given_path, folder)

    damage()


def test_the_judge_finds_each_kind_of_failure(tmp_path):
    """`outcome` itself: another exception, an error that names nothing, a hang, memory without end."""

    def raising(error: BaseException):
        def read(path: Path) -> None:
            raise error

        return read

    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(AssertionError, match="KeyError"):
        outcome(raising(KeyError("x")), tmp_path / "a.txt", tmp_path)
    with pytest.raises(AssertionError, match="names no file"):
        outcome(raising(ValueError("something is wrong")), tmp_path / "a.txt", tmp_path)
    with pytest.raises(AssertionError, match="MemoryError"):
        outcome(lambda path: bytearray(4 << 30), tmp_path / "a.txt", tmp_path)
    with pytest.raises(Hang), bounded(seconds=0.05):
        while True:
            pass
    assert outcome(raising(ValueError("a.txt: bad")), tmp_path / "a.txt", tmp_path) == "refused"
    assert outcome(lambda path: path.read_text(), tmp_path / "a.txt", tmp_path) == "read"
