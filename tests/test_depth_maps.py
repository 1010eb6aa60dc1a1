"""Depth maps beside a capture: both forms that Nerfstudio names, and files that are neither."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from da3_splat.io.depth_maps import depth_files, read_depth


def test_both_forms(tmp_path):
    depth = np.array([[0.5, 2.0, 0.0], [1.25, np.nan, -1.0]], dtype=np.float32)
    want = torch.tensor([[0.5, 2.0, 0.0], [1.25, 0.0, 0.0]])
    np.save(tmp_path / "a.npy", depth)
    Image.fromarray((want.numpy() * 1000).astype(np.uint16)).save(tmp_path / "b.png")
    frames = [{"depth_file_path": "a.npy"}, {"depth_file_path": "b.png"}, {"file_path": "y.png"}]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    first, second, none = depth_files(tmp_path / "transforms.json")
    assert none is None
    for file in (first, second):
        torch.testing.assert_close(read_depth(*file), want, rtol=0, atol=1e-3)


def test_what_is_no_depth_map(tmp_path):
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY half of a header")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    Image.fromarray(np.zeros((2, 3), dtype=np.uint8)).save(tmp_path / "shallow.png")
    for name in ("broken.npy", "flat.npy", "shallow.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            read_depth(tmp_path / name)


def test_maps_outside_the_capture_are_refused(tmp_path):
    (tmp_path / "capture").mkdir()
    path = tmp_path / "capture" / "transforms.json"
    path.write_text(json.dumps({"frames": [{"depth_file_path": "../a.npy"}]}))
    with pytest.raises(ValueError, match="outside"):
        depth_files(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no list of frames"):
        depth_files(path)
