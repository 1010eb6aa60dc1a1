"""Video in and out: which frames are taken, and what bad files say."""

import numpy as np
import pytest
from PIL import Image

from da3_splat import load_views
from da3_splat.io.video import choose_frames, read_video, stream_video, write_video


def moving_pictures(offsets, blur=()):
    """A textured wall seen through a window that moves by `offsets` pixels; frames of `blur` are smeared."""
    rng = np.random.default_rng(0)
    wall = rng.random((20, 60, 3))
    wall = np.kron(wall, np.ones((6, 6, 1)))
    for index, offset in enumerate(offsets):
        picture = wall[:112, int(offset) : int(offset) + 168]
        if index in blur:
            picture = np.mean([np.roll(picture, shift, axis=1) for shift in range(-4, 5)], axis=0)
        yield picture


def test_frames_are_chosen_by_motion_and_sharpness():
    """By hand: rest, then motion. Stretches of equal path give one frame each, the sharpest of their middle."""
    motion = np.array([0.0] + [0.0] * 9 + [1.0] * 10)
    sharpness = np.ones(20)
    chosen = choose_frames(motion, sharpness, 4)
    assert len(chosen) == 4 and sum(index >= 10 for index in chosen) >= 3
    sharpness[14] = 2.0
    assert 14 in choose_frames(motion, sharpness, 4)
    assert choose_frames(motion, sharpness, 50) == list(range(20))
    assert choose_frames(np.zeros(9), np.ones(9), 3) == sorted(choose_frames(np.zeros(9), np.ones(9), 3))


def test_a_resting_camera_gives_few_frames_and_blurred_ones_are_avoided(tmp_path):
    offsets = [0] * 30 + list(np.linspace(0, 150, 30))
    path = tmp_path / "walk.mp4"
    assert write_video(path, moving_pictures(offsets, blur=(35, 41, 47, 53)), 15) == 60
    frames = read_video(path, fps=2.0)
    indices = [int(frame.name.split("_")[1].split(".")[0]) for frame in frames]
    assert len(frames) == 8 and indices == sorted(indices)
    assert sum(index >= 30 for index in indices) >= 6
    assert not set(indices) & {35, 41, 47, 53}
    assert len(read_video(path, fps=2.0, max_views=3)) == 3


def test_load_views_takes_videos(tmp_path):
    path = tmp_path / "walk.mp4"
    write_video(path, moving_pictures(np.linspace(0, 150, 20)), 10)
    views = load_views(path, resolution=84, fps=3)
    assert views.images.shape == (1, 6, 3, 56, 84) and views.cameras is None and views.windows[0].width == 168
    assert views.names[0].startswith("walk_0000") and len(set(views.names)) == 6
    first = next(moving_pictures([0]))
    assert abs(float(views.images[0, 0].mean()) - first.mean()) < 0.03


def test_real_videos(captures):
    for path in sorted((captures.parent / "videos").glob("*.mp4")):
        assert load_views(path, resolution=112, max_views=4).images.shape[1] >= 1


def test_bad_videos(tmp_path):
    good = tmp_path / "good.mp4"
    write_video(good, moving_pictures([0, 5, 10]), 10)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("no video")
    for name, message in (
        ("cut.mp4", "not a readable video"),
        ("text.mp4", "not a readable video"),
        ("no.mp4", "no such"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_views(tmp_path / name)
    with pytest.raises(ValueError, match="fps: expected a positive"):
        read_video(good, fps=0)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "empty.mp4", [])
    assert not (tmp_path / "empty.mp4").exists()


def test_frames_are_streamed_to_files_and_found_again(tmp_path):
    """The same frames as in memory, in order; a second run writes only what is missing."""
    path = tmp_path / "clip.mp4"
    write_video(path, moving_pictures(np.linspace(0, 150, 20)), 10)
    held = read_video(path, fps=3)
    files = stream_video(path, tmp_path / "frames", fps=3)
    assert len(files) == len(held)
    for file, frame in zip(files, held):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(frame.picture))
    files[1].unlink()
    stamps = [file.stat().st_mtime_ns for file in files if file.exists()]
    assert stream_video(path, tmp_path / "frames", fps=3) == files and files[1].is_file()
    assert [file.stat().st_mtime_ns for file in files if file != files[1]] == stamps
