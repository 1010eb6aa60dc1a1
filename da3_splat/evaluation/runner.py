"""One loop for every evaluation: scene by scene, resumed where it stopped, shared between processes.

Process RANK of WORLD_SIZE (what torchrun sets) takes every WORLD_SIZE-th scene. They need not talk: each writes its
scenes' records, and whichever finds all records there writes results.json, the same file whoever it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from da3_splat.data.episodes import UNREADABLE
from da3_splat.evaluation.measuring import hardware, versions
from da3_splat.evaluation.results import ResultsFolder, identity_of
from da3_splat.evaluation.scenes import EvaluationScene
from da3_splat.io.files import NotWritten


@dataclass(frozen=True)
class SceneScore:
    """scores: numbers, lists and strings, the same on every run; timing: seconds and memory; pictures (H,W,3)."""

    scores: dict
    timing: dict
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class Task(Protocol):
    """One kind of evaluation. `protocol` and `method` are plain JSON and say all that a score depends on."""

    name: str

    @property
    def protocol(self) -> dict: ...

    @property
    def method(self) -> dict: ...

    def score(self, scene: EvaluationScene) -> SceneScore:
        """ValueError or OSError where the scene cannot be scored."""
        ...

    def summary(self, scenes: Sequence[dict]) -> dict:
        """Means over the scored scenes, for the top of results.json."""
        ...


def run(
    task: Task,
    scenes: Sequence[EvaluationScene],
    output: Path,
    data: dict,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    base: Path | None = None,
) -> dict | None:
    """Score what is not scored yet and write results.json; its content, or None while other processes are at work.

    `data` says where the scenes come from. Its `groups`, names of scenes by group, get each group summed up alone;
    the means at the top are then those of the first group. A scene that cannot be read is reported and counted, and
    tried again by the next run; the others are scored all the same. Errors name files from the folder `base` on.
    """
    names = [scene.name for scene in scenes]
    if len(set(names)) < len(names):
        raise ValueError(f"scenes: two of them are called {next(n for n in names if names.count(n) > 1)}")
    head = {"task": task.name, "method": task.method, "protocol": task.protocol, "data": data, "seed": seed}
    folder = ResultsFolder(output, identity_of(head))
    rank, world_size = rank_and_size()
    for scene in progress(scenes[rank::world_size]):
        known = folder.record(scene.name)
        if known is not None and "error" not in known:
            continue
        try:
            outcome = task.score(scene)
        except NotWritten:
            raise
        except UNREADABLE as error:
            words = " ".join(str(error).split())
            folder.save(scene.name, {"error": words if base is None else words.replace(f"{base}{os.sep}", "")})
            continue
        folder.save(scene.name, {"scores": outcome.scores, "timing": outcome.timing}, outcome.pictures)
    found = [folder.record(name) for name in names]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        return None
    results = _assembled(task, head, records, device)
    folder.write(results)
    return results


def rank_and_size() -> tuple[int, int]:
    """Which process this is, of how many, by torchrun's environment variables."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < size:
        raise ValueError(f"RANK: expected 0 to {size - 1}, got {rank}")
    return rank, size


def _assembled(task: Task, head: dict, records: list[dict], device: str) -> dict:
    scored = [{"name": record["name"], **record["scores"]} for record in records if "scores" in record]
    failed = [{"name": record["name"], "error": record["error"]} for record in records if "error" in record]
    timing = {record["name"]: record["timing"] for record in records if "timing" in record}
    seconds = sum(scene.get("seconds", 0.0) for scene in timing.values())
    groups = {
        group: [scene for scene in scored if scene["name"] in set(names)]
        for group, names in head["data"].get("groups", {}).items()
    }
    summaries = {group: task.summary(found) if found else None for group, found in groups.items()}
    first = next(filter(None, groups.values()), scored)
    return {
        "task": head["task"],
        **(task.summary(first) if first else {}),
        **({"groups": summaries} if groups else {}),
        "scenes_scored": len(scored),
        "scenes_failed": len(failed),
        **{name: head[name] for name in ("method", "protocol", "data", "seed")},
        "versions": versions(),
        "hardware": hardware(device),
        "scenes": scored,
        "failed": failed,
        "timing": {"seconds": seconds, "scenes": timing},
    }
