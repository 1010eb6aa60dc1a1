"""`da3-splat view`. Heavy imports are inside, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tyro.conf import Positional

if TYPE_CHECKING:
    from da3_splat.viewer.server import SceneViewer


def view(input: Positional[Path], host: str = "127.0.0.1", port: int = 8080) -> None:
    """Look at a scene in the browser: Gaussians, points, cameras with their photos and depth, a flight, a ruler.

    Only this machine can open the page, unless --host says otherwise. Ctrl-C ends it.

    Try:
      da3-splat view scene/
      da3-splat view scene.ply
      da3-splat view capture/                                   (cameras and photos of a posed capture)
      da3-splat view outputs/fox/da3-splat/2026-11-24_200000    (a training run)
      da3-splat view scene/ --host 0.0.0.0 --port 8090          (for other machines, too)

    Args:
        input: folder that `da3-splat reconstruct` wrote, a Gaussian PLY, a posed capture, or the folder of a run
        host: address to listen on; 0.0.0.0 lets every machine of the network in
        port: where the page is; the next free one where it is taken
    """
    from da3_splat.viewer.content import load_content
    from da3_splat.viewer.server import SceneViewer

    content = load_content(input)
    viewer = SceneViewer(host, port)
    viewer.show(content)
    announce(viewer, sys.stdout)
    viewer.wait()


def announce(viewer: SceneViewer, stream: TextIO) -> None:
    """Say on `stream` where the page is, and who can open it."""
    from da3_splat.viewer.server import LOOPBACK

    others = f"open to every machine that reaches {viewer.host}"
    if viewer.host in (LOOPBACK, "localhost"):
        others = "only from this machine; --host 0.0.0.0 opens it to others"
    print(f"{viewer.address}  ({others}; Ctrl-C ends)", file=stream, flush=True)
