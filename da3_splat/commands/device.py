"""Where a command computes."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]  # acceleration.py, which --help does without


def chosen_device(device: Device) -> str:
    """cuda or cpu; auto is CUDA where there is some. ValueError where CUDA is asked for and there is none."""
    import torch  # --help does without

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; leave it out or say --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
