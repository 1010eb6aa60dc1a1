"""Recipes: YAML files that say what differs from the defaults of a dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import dacite
import yaml

Config = TypeVar("Config")


def load_config(kind: type[Config], path: str | Path) -> Config:
    """The dataclass `kind` (nested ones, too) as the YAML file says, defaults for what it leaves out.

    ValueError names the file and the key that is unknown or of the wrong type.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values")
    try:
        return dacite.from_dict(
            kind, content, dacite.Config(strict=True, cast=[tuple, Path], type_hooks={float: _number})
        )
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _number(value: float | str) -> float:
    # YAML reads 1e-3 as text and 1 as an integer.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)
