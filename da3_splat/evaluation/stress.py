"""The stress suite: each way of being hard scored for itself, beside the plain worlds of the same seeds."""

from __future__ import annotations

from dataclasses import replace

from da3_splat.data.stress import VARIATIONS
from da3_splat.evaluation.headline import COLUMNS, cell, mean
from da3_splat.evaluation.scenes import SyntheticScene


def stressed(scenes: list[SyntheticScene], steady: int) -> tuple[list[SyntheticScene], dict[str, list[str]]]:
    """Every world in every variation, and the names of each variation's worlds in the order of `scenes`.

    Every `steady`-th picture of a world is one that is held out, so none of those is disturbed by itself.
    """
    groups = {
        variation: [replace(scene, variation=variation, steady=steady) for scene in scenes] for variation in VARIATIONS
    }
    listed = [scene for worlds in zip(*groups.values()) for scene in worlds]  # whole worlds first, should it be stopped
    return listed, {variation: [scene.name for scene in found] for variation, found in groups.items()}


def stress_table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row of means for each variation; the last cell is how much the first score differs from that of the
    plain worlds, over the worlds that were scored in both."""
    columns = COLUMNS[results["task"]]
    titles = ["worlds", "scored", *(title for _, title, _, _ in columns), f"{columns[0][1]} beside plain"]
    rows = []
    for variation, names in results["data"]["groups"].items():
        summary = results["groups"][variation]
        row = [variation, f"{sum(1 for scene in results['scenes'] if scene['name'] in names)} of {len(names)}"]
        row += ["" if summary is None else cell(mean(summary, key), digits) for key, _, digits, _ in columns]
        rows.append([*row, _signed(difference(results, variation), columns[0][2])])
    return titles, rows


def difference(results: dict, variation: str) -> float | None:
    """The mean of the first score in a variation less that in the plain worlds, over the worlds scored in both."""
    key = COLUMNS[results["task"]][0][0]
    scores = {scene["name"]: scene[key] for scene in results["scenes"]}
    groups = results["data"]["groups"]
    pairs = [pair for pair in zip(groups[variation], groups["plain"]) if all(name in scores for name in pair)]
    return sum(scores[hard] - scores[plain] for hard, plain in pairs) / len(pairs) if pairs else None


def stress_headline(results: dict) -> str:
    """The first score of every variation in one line."""
    key, title, digits, _ = COLUMNS[results["task"]][0]
    parts = []
    for variation in results["data"]["groups"]:
        summary = results["groups"][variation]
        parts.append(f"{variation} {'not scored' if summary is None else cell(mean(summary, key), digits)}")
    return f"stress suite, {title}: {', '.join(parts)}"


def _signed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"
