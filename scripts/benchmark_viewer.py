"""How soon Gaussians appear in a browser: from `da3-splat view`'s server to the first picture that shows them.

    uv run python scripts/benchmark_viewer.py              100k Gaussians; 10 s are demanded on 2 cores without a GPU
    uv run python scripts/benchmark_viewer.py --full       10k, 100k and 500k

A headless chromium with software rendering loads the page; the clock runs from the call of the page until it presents a
picture of the scene (imports and the start of the browser are apart, because they are there before).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import base64
import io
import json
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from playwright.sync_api import sync_playwright

from da3_splat.spherical_harmonics import rgb_to_dc
from da3_splat.types import Gaussians
from da3_splat.viewer.content import Content
from da3_splat.viewer.server import SceneViewer

DEMANDED_SECONDS, DEMANDED_COUNT = 10.0, 100_000
LONGEST_SECONDS = 120.0  # after which nothing is expected any more
WIDTH, HEIGHT, PANEL = 800, 500, 340
BROWSER = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--headless"]


@dataclass
class Settings:
    full: bool = False
    """also other numbers of Gaussians"""
    json: Path | None = None
    """write the same numbers there"""


def ball(count: int) -> Gaussians:
    """Small opaque Gaussians on a sphere of radius 1, coloured by place."""
    places = torch.nn.functional.normalize(torch.randn(1, count, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    return Gaussians(
        means=places,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4),
        scales=torch.full((1, count, 3), 1.5 * count**-0.5),
        opacities=torch.full((1, count), 0.95),
        sh=rgb_to_dc(0.1 + 0.4 * (places[..., None, :] + 1)),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def colorful(png: bytes) -> bool:
    """Whether the middle of the canvas, left of the panel, shows more than a white page."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32)
    return bool((np.ptp(pixels[:, : WIDTH - PANEL], axis=-1) > 30).mean() > 0.05)


def seconds_until_seen(browser, count: int) -> float:
    """The browser hands over every picture that it presents: asking it for some would make it draw more often."""
    viewer = SceneViewer(port=free_port())
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    presented: list[tuple[float, bytes]] = []
    session = page.context.new_cdp_session(page)

    def keep(frame: dict) -> None:
        presented.append((time.perf_counter(), base64.b64decode(frame["data"])))
        if not page.is_closed():
            session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "png"})
    began = time.perf_counter()
    viewer.show(Content(ball(count)))
    page.goto(viewer.address)
    seconds = float("inf")
    while seconds == float("inf") and time.perf_counter() - began < LONGEST_SECONDS:
        page.wait_for_timeout(100)
        while presented and seconds == float("inf"):
            arrived, png = presented.pop(0)
            seconds = arrived - began if colorful(png) else seconds
    session.send("Page.stopScreencast")
    page.close()
    viewer.server.stop()
    return seconds


settings = tyro.cli(Settings, description=__doc__)
chromium = shutil.which("chromium")
if chromium is None:
    print("no chromium on this machine: nothing measured")
    sys.exit(0)
rows = []
with sync_playwright() as client:
    started = client.chromium.launch(executable_path=chromium, args=BROWSER)
    for number in (10_000, DEMANDED_COUNT, 500_000) if settings.full else (DEMANDED_COUNT,):
        rows.append({"gaussians": number, "seconds_until_seen": seconds_until_seen(started, number)})
        print(f"{number:9,} Gaussians {rows[-1]['seconds_until_seen']:7.1f} s", flush=True)
    started.close()
if settings.json:
    settings.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
headline = next(row["seconds_until_seen"] for row in rows if row["gaussians"] == DEMANDED_COUNT)
print(f"100k Gaussians appear within {headline:.1f} s ({DEMANDED_SECONDS:.0f} s demanded)")
sys.exit(headline > DEMANDED_SECONDS)
