"""Results in words and cells: the same line and table in the terminal and in the report."""

from __future__ import annotations

# task -> (key of a scene's score, title, digits, whether more is better); the first is what scenes are ranked by
COLUMNS = {
    "novel-views": (
        ("psnr", "PSNR dB", 2, True),
        ("ssim", "SSIM", 3, True),
        ("lpips_vgg", "LPIPS-VGG", 3, False),
        ("lpips_alex", "LPIPS-Alex", 3, False),
        ("gaussians", "Gaussians", 0, False),
    ),
    "poses": (
        ("auc_30", "AUC30 %", 1, True),
        ("auc_15", "AUC15 %", 1, True),
        ("auc_5", "AUC5 %", 1, True),
        ("auc_3", "AUC3 %", 1, True),
        ("rotation_median_deg", "rotation deg", 2, False),
        ("direction_median_deg", "direction deg", 2, False),
    ),
    "depth": (
        ("absolute_relative", "AbsRel", 4, False),
        ("squared_relative", "SqRel", 4, False),
        ("root_mean_square", "RMSE", 4, False),
        ("delta1", "delta1", 3, True),
        ("delta2", "delta2", 3, True),
        ("delta3", "delta3", 3, True),
    ),
    "reconstruction": (
        ("f1", "F1", 3, True),
        ("chamfer", "chamfer", 4, False),
        ("accuracy", "accuracy", 4, False),
        ("completeness", "completeness", 4, False),
        ("precision", "precision", 3, True),
        ("recall", "recall", 3, True),
    ),
}
TIMES = (("seconds", "seconds", 1), ("peak_memory_mb", "peak MB", 0))


def headline(results: dict) -> str:
    """One line: the means, the protocol in short, and how many scenes they are of."""
    scored, failed = results["scenes_scored"], results["scenes_failed"]
    count = f"{scored} of {scored + failed} scenes"
    if "groups" in results:
        first = next(group for group, summary in results["groups"].items() if summary is not None)
        count = f"{first} worlds; {count}"
    if not scored:
        return f"{results['task']}, {results['method']['name']}: none of {failed} scenes could be scored"
    cells = [f"{title} {cell(mean(results, key), digits)}" for key, title, digits, _ in COLUMNS[results["task"]]]
    return f"{results['task']}, {results['method']['name']}, {short_protocol(results)}: {', '.join(cells)} ({count})"


def short_protocol(results: dict) -> str:
    """The settings that a number must never be quoted without."""
    protocol = results["protocol"]
    if results["task"] == "novel-views":
        views = protocol.get("index") or f"{protocol['contexts']} contexts, targets every {protocol['targets_every']}"
        steps = f" ({protocol['alignment_steps']} steps)" if protocol["alignment_steps"] else ""
        return f"{views}, {protocol['scored_at']}, {protocol['poses']}{steps}"
    if results["task"] == "poses":
        return f"at most {protocol['views']} views, longest side {protocol['resolution']}"
    if results["task"] == "reconstruction":
        at = f"threshold {protocol['threshold']:g}, {protocol['fusion']}, {protocol['views']} views"
        return f"{at}, poses {protocol['poses']}, longest side {protocol['resolution']}"
    return f"alignment {protocol['alignment']}, longest side {protocol['resolution']}"


def mean(results: dict, key: str) -> float | None:
    """The mean of a scene's score, as results.json has it."""
    return results["lpips"][key.removeprefix("lpips_")] if key.startswith("lpips_") else results[key]


def cell(value: float | None, digits: int) -> str:
    """A number for a table."""
    return "not available" if value is None else f"{value:.{digits}f}"


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row of cells for each scene, those that failed included."""
    columns = COLUMNS[results["task"]]
    titles = ["scene", *(title for _, title, _, _ in columns), *(title for _, title, _ in TIMES)]
    rows = []
    for scene in results["scenes"]:
        times = results["timing"]["scenes"][scene["name"]]
        rows.append([scene["name"], *(cell(scene[key], digits) for key, _, digits, _ in columns)])
        rows[-1] += [cell(times[key], digits) for key, _, digits in TIMES]
    rows += [[scene["name"], f"failed: {scene['error']}"] for scene in results["failed"]]
    return titles, rows


def ranked(results: dict) -> list[dict]:
    """The scored scenes, the best first; ties by name."""
    key, _, _, more_is_better = COLUMNS[results["task"]][0]
    return sorted(results["scenes"], key=lambda scene: ((-1 if more_is_better else 1) * scene[key], scene["name"]))
