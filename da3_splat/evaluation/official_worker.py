"""Runs Depth Anything 3's own code, as a program of its own: it shares nothing with this package but two .npz files.

    python official_worker.py WEIGHTS DEVICE        with the checkout's `src` on PYTHONPATH

Reads one line a scene from standard input, `REQUEST.npz ANSWER.npz` separated by a tab, and prints `done` when the
answer is written. A request holds images (S,H,W,3) uint8 and, where the cameras are given, extrinsics (S,4,4)
world-to-camera and intrinsics (S,3,3); an answer depth, confidence (S,H,W), cameras likewise, the seconds taken, and
the Gaussians of models that have them.
"""

import sys
import time

import numpy as np


def answer(model, request):
    """What the official `inference` says of one request, as arrays."""
    images = request["images"]
    posed = "extrinsics" in request
    given = {name: request[name] for name in ("extrinsics", "intrinsics")} if posed else {}
    began = time.perf_counter()
    # Its Gaussians stay in the network's frame where cameras are given, and that frame is thrown away: not asked for.
    found = model.inference(list(images), **given, infer_gs=not posed, process_res=max(images.shape[1:3]))
    arrays = {
        "depth": np.asarray(found.depth, np.float32),
        "extrinsics": np.asarray(found.extrinsics, np.float32),
        "intrinsics": np.asarray(found.intrinsics, np.float32),
        "seconds": time.perf_counter() - began,
    }
    if found.conf is not None:
        arrays["confidence"] = np.asarray(found.conf, np.float32)
    if found.gaussians is not None:
        for name in ("means", "scales", "rotations", "harmonics", "opacities"):
            arrays[name] = getattr(found.gaussians, name).detach().float().cpu().numpy()
    return arrays


def main():
    lines, sys.stdout = sys.stdout, sys.stderr  # the official code prints; the other side reads lines
    from depth_anything_3.api import DepthAnything3

    weights, device = sys.argv[1:]
    model = DepthAnything3.from_pretrained(weights).to(device).eval()
    for line in sys.stdin:
        request, target = line.rstrip("\n").split("\t")
        with np.load(request) as arrays:
            found = answer(model, dict(arrays))
        np.savez(target, **found)
        print("done", file=lines, flush=True)


if __name__ == "__main__":
    main()
