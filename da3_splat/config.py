"""Recipes: YAML files that say what differs from the defaults of a dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import dacite
import yaml

from da3_splat.limits import SETTINGS_BYTES, inside, regular_file

Config = TypeVar("Config")
# What the parser raises for what is none, and its constructors for tags with nonsense behind them.
UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)


def load_config(kind: type[Config], path: str | Path) -> Config:
    """The dataclass `kind` (nested ones, too) as the YAML file says, defaults for what it leaves out.

    `extends: NAME.yaml` takes what this file does not say from another one of the same folder.
    ValueError names the file and the key that is unknown or of the wrong type.
    """
    content = _content(path)
    if "extends" in content:
        base = content.pop("extends")
        if not isinstance(base, str) or Path(base).name != base or len(base) > 200:
            raise ValueError(f"{path}: extends: expected the name of a file beside this one, got {base!r:.100}")
        under = _content(inside(Path(path).parent, base, str(path)))
        if "extends" in under:
            raise ValueError(f"{path}: {base} extends another one itself; one step is all")
        content, path = _over(under, content), f"{path} (extends {base})"
    try:
        return dacite.from_dict(
            kind, content, dacite.Config(strict=True, cast=[tuple, Path], type_hooks={float: _number})
        )
    except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {str(error):.500}") from error


def _content(path: str | Path) -> dict:
    path = regular_file(path, most=SETTINGS_BYTES)
    try:
        content = yaml.load(path.read_text(), Loader=_Plain)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values")
    return content


def _over(under: dict, over: dict) -> dict:
    """Keys of `over` where it has them, group by group; lists are taken whole."""
    joined = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(key), dict)
        joined[key] = _over(under[key], value) if both else value
    return joined


class _Plain(yaml.SafeLoader):
    """YAML without references (ten of them say a thousand million words) and without keys that come twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "references are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        content = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        return content


def _number(value: float | str) -> float:
    # YAML reads 1e-3 as text and 1 as an integer.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)
