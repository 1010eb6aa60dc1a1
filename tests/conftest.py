"""Test settings: modules beside the tests are importable; torch keeps to two threads, to one where tests run side by
side."""

import os
import sys
from pathlib import Path

import pytest

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the commands that tests start
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def captures() -> Path:
    """The folder of real captures, where there is one: $DA3_SPLAT_CAPTURES, else ../shared/captures."""
    default = Path(__file__).parents[2] / "shared" / "captures"
    path = Path(os.environ.get("DA3_SPLAT_CAPTURES", default))
    if not path.is_dir():
        pytest.skip("no real captures here ($DA3_SPLAT_CAPTURES)")
    return path


@pytest.fixture(scope="session")
def golden_cases() -> Path:
    """The folder of detailed goldens of the official code, where there is one: $DA3_SPLAT_GOLDENS, else ../shared."""
    default = Path(__file__).parents[2] / "shared" / "goldens" / "cases"
    path = Path(os.environ.get("DA3_SPLAT_GOLDENS", default))
    if not path.is_dir():
        pytest.skip("no detailed goldens here ($DA3_SPLAT_GOLDENS)")
    return path
