"""Checkpoints of torch: tensors and plain values, never what a pickle could call."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from da3_splat.io.arrays import UNREADABLE
from da3_splat.io.files import replacing
from da3_splat.limits import EXPANSION_FREE, check_archive, regular_file


def read_checkpoint(path: str | Path) -> dict:
    """The dictionary that `torch.save` wrote, on the CPU. ValueError names a file that is none: cut, of another
    program, a bare pickle (which only old versions of torch wrote), or one that would call something."""
    path = regular_file(path)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive of torch; pickles are never opened")
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"holds {type(content).__name__}; expected a dictionary")
        _check_tensors(content)
    except (*UNREADABLE, pickle.UnpicklingError, AttributeError) as error:
        # torch's own words go on for a page, and say how to open it all the same.
        raise ValueError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]:.200})") from error
    return content


def write_checkpoint(path: str | Path, content: dict) -> None:
    """What `read_checkpoint` reads, in place of what was there. The same content gives the same bytes: given a name,
    torch would write it, and the process's number in it, into the file."""
    with replacing(path) as beside, beside.open("wb") as file:
        torch.save(content, file)


def _check_tensors(value: object) -> None:
    """ValueError where a tensor says that it is much larger than the numbers behind it: any use would unfold it."""
    if isinstance(value, torch.Tensor):
        if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), EXPANSION_FREE):
            raise ValueError(f"a tensor of shape {tuple(value.shape)} holds fewer numbers than it says")
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_tensors(item)
