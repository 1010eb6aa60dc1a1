"""View indices as the field publishes them: which frames of each scene are contexts and which are targets.

    {scene: {"context": [0, 13, ...], "target": [3, 14, ...]} | null}

Numbers are positions in the list of the scene's frames sorted by name; null says that the scene is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from da3_splat.io.files import replacing
from da3_splat.io.json_files import load_json


@dataclass(frozen=True)
class ViewIndex:
    """Positions of the contexts and targets of one scene."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def shared(self) -> tuple[int, ...]:
        """Targets that are contexts too: a score over them is flattered, so report it with and without."""
        return tuple(view for view in self.target if view in set(self.context))

    def without_shared(self) -> ViewIndex:
        """The same contexts, and the targets that are none of them (maybe none at all)."""
        return replace(self, target=tuple(view for view in self.target if view not in set(self.context)))


def read_view_index(path: str | Path) -> dict[str, ViewIndex | None]:
    """Scenes in the order of the file; None for a scene that the file leaves out. ValueError names file and scene."""
    path = Path(path)
    content = load_json(path, pairs=_once)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: not a view index, expected an object with a scene a key")
    return {scene: None if entry is None else _entry(entry, f"{path}: {scene}") for scene, entry in content.items()}


def write_view_index(path: str | Path, index: Mapping[str, ViewIndex | None]) -> None:
    """Write the index in the same form; the file is the old one or the new one, never half of it."""
    lines = []
    for scene, views in index.items():
        entry = None if views is None else {"context": list(views.context), "target": list(views.target)}
        if entry is not None:
            _entry(entry, f"{path}: {scene}")
        lines.append(f"{json.dumps(scene)}: {json.dumps(entry)}")
    with replacing(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def check_length(views: ViewIndex, frames: int, where: str) -> None:
    """Raise unless all positions lie within `frames` frames; `where` names file and scene."""
    last = max(*views.context, *views.target)
    if last >= frames:
        raise ValueError(f"{where}: asks for frame {last}, but the scene has {frames} (0 to {frames - 1})")


def targets_that_are_contexts(index: Mapping[str, ViewIndex | None]) -> dict[str, tuple[int, ...]]:
    """For each scene with such targets, which they are."""
    return {scene: views.shared for scene, views in index.items() if views is not None and views.shared}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} appears twice")
    return content


def _entry(entry: object, where: str) -> ViewIndex:
    if not isinstance(entry, dict) or set(entry) != {"context", "target"}:
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{where}: expected null or the keys context and target, got {got}")
    for name, views in entry.items():
        whole = isinstance(views, list) and all(type(view) is int and view >= 0 for view in views)
        if not whole or not views or len(set(views)) < len(views):
            raise ValueError(f"{where}: {name}: expected a list of different numbers 0, 1, ..., got {views!r:.80}")
    return ViewIndex(context=tuple(entry["context"]), target=tuple(entry["target"]))
