"""Test settings: modules beside the tests are importable, torch keeps to two threads."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def captures() -> Path:
    """The folder of real captures, where there is one: $DA3_SPLAT_CAPTURES, else ../shared/captures."""
    default = Path(__file__).parents[2] / "shared" / "captures"
    path = Path(os.environ.get("DA3_SPLAT_CAPTURES", default))
    if not path.is_dir():
        pytest.skip("no real captures here ($DA3_SPLAT_CAPTURES)")
    return path
