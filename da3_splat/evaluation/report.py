"""report.html: one file that shows what results.json says, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from da3_splat.evaluation.headline import cell, headline, ranked, table
from da3_splat.evaluation.published import TABLES, PublishedTable
from da3_splat.evaluation.results import ResultsFolder
from da3_splat.evaluation.stress import stress_table
from da3_splat.io.files import replacing

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --warn: #b45309; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; font-size: 1.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
.headline { font-size: 1.05rem; padding: .8rem 1rem; background: var(--soft); border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } td.wide { text-align: left; color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { opacity: .7; } dd { margin: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .6rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: pixelated; border-radius: 3px; }
.pictures.stress { grid-template-columns: repeat(3, minmax(0, 240px)); margin-top: 1rem; }
figcaption { font-size: .85rem; opacity: .8; }
.published { border-left: 4px solid var(--warn); padding: .2rem 0 .2rem 1rem; margin-top: 1rem; }
.published p { margin: .2rem 0; font-size: .9rem; } .note { font-size: .9rem; opacity: .85; }
"""
CAPTIONS = {
    "novel-views": {
        "input": "input: the nearest context",
        "rendering": "rendered target",
        "truth": "true target",
        "error": "error: black is none, white 0.5",
        "depth": "rendered depth: near is bright",
    },
    "poses": {
        "input": "input: the first view",
        "depth": "its depth: near is bright",
        "errors": "error of each pair of views: black is none, white 30 degrees",
    },
    "reconstruction": {
        "input": "input: the first view",
        "depth": "its depth: near is bright",
        "truth": "true depth",
    },
    "depth": {
        "input": "input",
        "depth": "depth, aligned: near is bright",
        "truth": "true depth",
        "error": "relative error: black is none, white 0.5",
    },
}


def write_report(results: dict, folder: ResultsFolder) -> Path:
    """Write report.html beside results.json."""
    parts = [_top(results), _stress(results, folder), _scenes(results), _pictures(results, folder)]
    parts.append(_published(results["task"]))
    title = escape(f"{results['task']}: {results['method']['name']}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
    path = folder.path / "report.html"
    with replacing(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def _top(results: dict) -> str:
    protocol = dict(results["protocol"])
    missing = protocol.pop("not_available", {})
    data = {name: value for name, value in results["data"].items() if name not in ("groups", "stress")}
    facts = {**protocol, "data": data, "seed": results["seed"], "method": results["method"]}
    facts |= {"versions": results["versions"], "hardware": results["hardware"]}
    notes = [f"{reason}" for reason in missing.values()]
    if results.get("targets_that_are_contexts"):
        apart = results["without_contexts"]
        notes.append(
            f"{results['targets_that_are_contexts']} of {results['targets']} targets are contexts too, which flatters; "
            f"without them PSNR {cell(apart['psnr'], 2)} dB, SSIM {cell(apart['ssim'], 3)}"
        )
    return (
        f'<p class="headline">{escape(headline(results))}</p>'
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
        + f"<h2>Protocol</h2>{_list(facts)}"
    )


def _list(facts: dict) -> str:
    def words(value: object) -> str:
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    items = (f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(words(v))}</dd>" for name, v in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _stress(results: dict, folder: ResultsFolder) -> str:
    """The stress suite: what is hard, its scores, the first world of each kind."""
    if "groups" not in results:
        return ""
    titles, rows = stress_table(results)
    scored = {scene["name"] for scene in results["scenes"]}
    figures = []
    for variation, names in results["data"]["groups"].items():
        shown = next((name for name in names if name in scored), None)
        files = {} if shown is None else {key: folder.picture(shown, key) for key in ("input", "rendering", "truth")}
        figures += [_figure(file, f"{variation}: {key}") for key, file in files.items() if file.is_file()]
    return (
        f'<h2>Stress suite</h2><p class="note">Each world plain, and hard in one way at a time. '
        "Some of what is hard to place is easy to paint, a flat wall above all: read PSNR beside the depth and pose "
        "scores of the same suite.</p>"
        f'{_list(results["data"]["stress"])}<div class="scroll">{_table(titles, rows)}</div>'
        f'<div class="pictures stress">{"".join(figures)}</div>'
    )


def _scenes(results: dict) -> str:
    titles, rows = table(results)
    return f'<h2>Scenes</h2><div class="scroll">{_table(titles, rows)}</div>{_histogram(results)}'


def _table(titles: list[str], rows: list[list[str]]) -> str:
    def cells(row: list[str]) -> str:
        if len(row) == 2 < len(titles):  # a scene that failed: its reason takes the whole row
            return f'<td>{escape(row[0])}</td><td class="wide" colspan="{len(titles) - 1}">{escape(row[1])}</td>'
        return "".join(f"<td>{escape(value)}</td>" for value in row)

    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells(row)}</tr>' for row in rows)}</table>"


def _histogram(results: dict) -> str:
    """Bars of the pair errors, a degree each, drawn in SVG."""
    counts = results.get("histogram")
    if not counts:
        return ""
    most = max(1, *counts)
    bars = "".join(
        f'<rect x="{10 * i + 1}" y="{100 - 100 * n / most:.1f}" width="8" height="{100 * n / most:.1f}" '
        f'fill="currentColor"><title>{i} to {i + 1} degrees: {n} pairs</title></rect>'
        for i, n in enumerate(counts)
    )
    beyond = results["pairs"] - sum(counts)
    words = f"pairs by error, 0 to {len(counts)} degrees, a degree a bar; {beyond} of {results['pairs']} lie beyond"
    bars += "".join(
        f'<text x="{10 * i}" y="113" font-size="9" fill="currentColor">{i}</text>' for i in range(0, len(counts), 5)
    )
    size = f'viewBox="0 0 {10 * len(counts)} 116" style="max-width:600px;display:block"'
    return f'<h3>Histogram</h3><svg {size}>{bars}</svg><p class="note">{words}</p>'


def _pictures(results: dict, folder: ResultsFolder) -> str:
    order = ranked(results)
    if not order:
        return ""
    chosen: dict[str, list[str]] = {}
    for label, index in (("best", 0), ("median", len(order) // 2), ("worst", len(order) - 1)):
        chosen.setdefault(order[index]["name"], []).append(label)
    blocks = []
    for name, labels in chosen.items():
        captions = CAPTIONS[results["task"]]
        shown = [(key, folder.picture(name, key)) for key in captions if folder.picture(name, key).is_file()]
        figures = "".join(_figure(path, captions[key]) for key, path in shown)
        blocks.append(f'<h3>{escape(" and ".join(labels))}: {escape(name)}</h3><div class="pictures">{figures}</div>')
    return f"<h2>Best, median and worst scenes</h2>{''.join(blocks)}"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _published(task: str) -> str:
    tables = TABLES.get(task, ())
    if not tables:
        return ""
    note = (
        "Copied from the sources named, not measured here, and not comparable with the numbers above unless data and "
        "protocol are the same."
    )
    return f'<h2>Published by others</h2><p class="note">{note}</p>' + "".join(map(_published_table, tables))


def _published_table(content: PublishedTable) -> str:
    rows = [list(row) for row in content.rows]
    return (
        f'<div class="published"><h3>{escape(content.title)}</h3><p>Source: {escape(content.source)}</p>'
        f'<p>Protocol: {escape(content.protocol)}</p><div class="scroll">'
        f"{_table(['published method', *content.columns], rows)}</div></div>"
    )
