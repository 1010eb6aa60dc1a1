"""Episodes of many scenes: laziness, order, ranks, resuming, budgets, unreadable scenes, pictures of one size."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from da3_splat.data import dl3dv, megadepth
from da3_splat.data.episodes import (
    EpisodeDataset,
    EpisodeSampler,
    FarthestSelection,
    Shape,
    WindowSelection,
    shapes_for_budget,
)
from da3_splat.data.layouts import WORLD_SWAP, scene_hash, write_dl3dv_scene, write_dl3dv_zip, write_megadepth_scene
from da3_splat.data.loading import cover, load_covering
from da3_splat.data.synthetic import make_scenes
from da3_splat.geometry.projection import project
from da3_splat.io.frames import Frame
from da3_splat.types import Cameras, Views

SHAPES = (Shape(28, 42, 3, 2), Shape(42, 28, 2, 2))


@dataclass
class FakeScene:
    """A scene that counts how often it is opened, and by whom."""

    name: str
    opened: list = field(default_factory=list)
    broken: bool = False
    count: int = 40

    def frames(self) -> list[Frame]:
        self.opened.append(self.name)
        if self.broken:
            raise ValueError(f"{self.name}: no transforms.json in this scene")
        pose = torch.eye(4).double()
        return [
            Frame(path=Path(f"{i:03d}.png"), height=9, width=9, world_to_camera=pose * 1.0) for i in range(self.count)
        ]


def fakes(count: int, broken=(), opened: list | None = None) -> list[FakeScene]:
    opened = [] if opened is None else opened
    return [FakeScene(f"scene {index}", opened, index in broken) for index in range(count)]


def take(sampler, count: int) -> list:
    stream = iter(sampler)
    return [next(stream) for _ in range(count)]


def test_budget_by_hand():
    """1,200 patches: 84x112 has 48, so 25 and at most 18 of them; 168x224 has 192, so 6; 252x448 has 576, so 2."""
    shapes = shapes_for_budget([(84, 112), (168, 224), (252, 448)], tokens=1200, targets=4)
    assert [shape.contexts for shape in shapes] == [18, 6, 2] and shapes[1] == Shape(168, 224, 6, 4)
    with pytest.raises(ValueError, match="1200 pay for 1 contexts of 392x588"):
        shapes_for_budget([(392, 588)], tokens=1200, targets=4)
    with pytest.raises(ValueError, match="multiples of 14, got 270x480"):
        shapes_for_budget([(270, 480)], tokens=9999, targets=4)


def test_ten_thousand_scenes_open_when_asked():
    """Making the sampler and its iterator opens nothing; each episode opens one scene."""
    opened: list = []
    sampler = EpisodeSampler(fakes(10_000, opened=opened), SHAPES)
    stream = iter(sampler)
    assert len(sampler) == 10_000 and opened == []
    for count in range(1, 8):
        next(stream)
        assert len(opened) == count


def test_open_scenes_are_bounded(monkeypatch):
    from da3_splat.data import episodes

    made = []

    class Watched(episodes._OpenScenes):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(episodes, "_OpenScenes", Watched)
    opened: list = []
    sampler = EpisodeSampler(fakes(50, opened=opened), SHAPES, open_scenes=3, episodes_per_scene=2)
    for _ in take(sampler, 100):
        assert len(made[0].held) <= 3
    (kept,) = made
    last = list(kept.held)[-1]
    before = len(opened)
    kept.frames(last)
    assert len(opened) == before and len(kept.held) == 3


def test_an_epoch_visits_every_scene_once():
    sampler = EpisodeSampler(fakes(20), SHAPES, epochs=2)
    episodes = list(sampler)
    assert len(episodes) == 40 and [episode.epoch for episode in episodes] == [0] * 20 + [1] * 20
    first, second = ([e.scene for e in episodes[part]] for part in (slice(20), slice(20, 40)))
    assert sorted(first) == sorted(second) == sorted(f"scene {i}" for i in range(20)) and first != second
    for episode in episodes:
        assert not set(episode.contexts) & set(episode.targets)
        assert (episode.height, episode.width) in {(28, 42), (42, 28)} and len(episode.targets) == 2
    assert len({episode.seed for episode in episodes}) == 40
    assert list(EpisodeSampler(fakes(20), SHAPES, epochs=2)) == episodes
    assert list(EpisodeSampler(fakes(20), SHAPES, epochs=2, seed=1)) != episodes


def test_ranks_are_disjoint_and_in_step():
    """Of 21 scenes, two ranks see 10 each, none twice, and pictures of the same size at the same step."""
    ranks = [list(EpisodeSampler(fakes(21), SHAPES, rank=rank, world_size=2, epochs=1)) for rank in (0, 1)]
    scenes = [{episode.scene for episode in rank} for rank in ranks]
    assert len(scenes[0]) == len(scenes[1]) == 10 and not scenes[0] & scenes[1]
    for one, other in zip(*ranks):
        assert (one.height, one.width, len(one.contexts)) == (other.height, other.width, len(other.contexts))
        assert one.seed != other.seed
    with pytest.raises(ValueError, match="fewer episodes than 2 ranks"):
        EpisodeSampler(fakes(1), SHAPES, world_size=2)
    assert len(EpisodeSampler(fakes(1), SHAPES, world_size=2, episodes_per_scene=4)) == 2
    with pytest.raises(ValueError, match="rank: expected 0 to 1"):
        EpisodeSampler(fakes(4), SHAPES, rank=2, world_size=2)


def test_a_resumed_sampler_goes_on_with_the_next_episode():
    """Across the end of an epoch too; the state is plain numbers."""
    whole = take(EpisodeSampler(fakes(7), SHAPES, seed=3), 20)
    for stop in (1, 6, 7, 13):
        sampler = EpisodeSampler(fakes(7), SHAPES, seed=3)
        take(sampler, stop)
        state = sampler.state_dict()
        assert all(type(value) is int for value in state.values())
        resumed = EpisodeSampler(fakes(7), SHAPES, seed=3)
        resumed.load_state_dict(state)
        assert take(resumed, 20 - stop) == whole[stop:]


@pytest.mark.parametrize(
    "name, other",
    [
        ("seed", dict(seed=4)),
        ("world_size", dict(world_size=2)),
        ("scenes", dict(scenes=fakes(6))),
        ("shapes", dict(shapes=SHAPES[:1])),
        ("episodes_per_scene", dict(episodes_per_scene=2)),
    ],
)
def test_a_state_of_another_sequence_is_refused(name, other):
    settings = dict(scenes=fakes(7), shapes=SHAPES, seed=3)
    state = EpisodeSampler(**settings).state_dict()
    with pytest.raises(ValueError, match=f"sampler state: {name} differ"):
        EpisodeSampler(**{**settings, **other}).load_state_dict(state)


def test_unreadable_scenes_are_logged_counted_and_replaced(caplog):
    """Every position still has an episode, of a scene of the same rank; a sampler with nothing to read stops."""
    with caplog.at_level(logging.WARNING):
        sampler = EpisodeSampler(fakes(10, broken={2, 5, 6}), SHAPES, epochs=1)
        episodes = list(sampler)
    assert len(episodes) == 10 and not {e.scene for e in episodes} & {"scene 2", "scene 5", "scene 6"}
    assert [e.position for e in episodes] == list(range(10))
    assert sampler.skipped == sum(len(e.skipped) for e in episodes) == len(caplog.records) >= 3
    assert "scene skipped: scene 2: scene 2: no transforms.json" in caplog.text
    ranks = [list(EpisodeSampler(fakes(10, broken={2}), SHAPES, rank=r, world_size=2, epochs=1)) for r in (0, 1)]
    assert not {e.scene for e in ranks[0]} & {e.scene for e in ranks[1]}
    with pytest.raises(ValueError, match="5 scenes one after another cannot be used; the last: scene "):
        take(EpisodeSampler(fakes(5, broken=range(5)), SHAPES), 1)


def test_short_scenes_are_skipped():
    scenes = [*fakes(2), FakeScene("short", count=4)]
    episodes = list(EpisodeSampler(scenes, (Shape(28, 28, 3, 2),), epochs=1))
    assert len(episodes) == 3 and "short" not in {episode.scene for episode in episodes}
    assert any("4 frames hold no 3 contexts" in line for episode in episodes for line in episode.skipped)


def test_farthest_selection():
    """Targets are random, contexts far apart among the rest, none in both; the seed decides."""
    frames = [
        Frame(path=Path(f"{i}.png"), world_to_camera=torch.eye(4).double() + 0.1 * i * torch.eye(4).roll(3, 1).double())
        for i in range(30)
    ]
    for frame, x in zip(frames, range(30)):
        frame.world_to_camera[:] = torch.eye(4)
        frame.world_to_camera[0, 3] = x
    select = FarthestSelection(pool=20)
    contexts, targets = select(frames, Shape(28, 28, 4, 5), torch.Generator().manual_seed(0))
    assert len(contexts) == 4 and len(targets) == 5 and not set(contexts) & set(targets)
    assert max(contexts) - min(contexts) > 15
    assert (contexts, targets) == select(frames, Shape(28, 28, 4, 5), torch.Generator().manual_seed(0))
    assert (contexts, targets) != select(frames, Shape(28, 28, 4, 5), torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="30 frames are too few"):
        select(frames, Shape(28, 28, 26, 5), torch.Generator())
    with pytest.raises(ValueError, match="0.png: has no camera"):
        select([Frame(path=Path("0.png"))] * 9, Shape(28, 28, 2, 2), torch.Generator())


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Four DL3DV scenes (one a zip) of eight 28x42 pictures, and the truth of each by hash."""
    root, truth = tmp_path_factory.mktemp("dl3dv"), {}
    for seed in range(4):
        views, _ = make_scenes(1, 8, 28, 42, seed, supersample=1)
        (write_dl3dv_zip if seed == 0 else write_dl3dv_scene)(root / "1K", views, scene_hash(seed))
        truth[scene_hash(seed)] = views
    return root, truth


def sampler_of(root, **changes) -> EpisodeSampler:
    settings = dict(shapes=(Shape(28, 42, 3, 2), Shape(28, 28, 2, 2)), select=WindowSelection(1, 3), epochs=2)
    return EpisodeSampler(dl3dv.find_scenes(root)[0], **{**settings, **changes})


def test_loaded_episodes_hold_the_right_pictures(collection):
    """Contexts and targets are the frames they say, at the size of the episode, with the cameras of those pixels."""
    root, truth = collection
    for loaded in EpisodeDataset(sampler_of(root)):
        episode, given = loaded.episode, truth[loaded.episode.scene]
        for views, positions in ((loaded.context, episode.contexts), (loaded.target, episode.targets)):
            assert views.names == tuple(f"frame_{index + 1:05d}.png" for index in positions)
            expected = cover(given.select(list(positions)), episode.height, episode.width)
            assert views.images.shape == expected.images.shape == (1, len(positions), 3, episode.height, episode.width)
            assert (views.images - expected.images).abs().mean() < 0.03  # other filter on the way down
            assert torch.allclose(views.cameras.intrinsics, expected.cameras.intrinsics, rtol=0.02, atol=0.5)
            swap = torch.tensor(WORLD_SWAP)
            assert torch.allclose(views.cameras.world_to_camera, expected.cameras.world_to_camera @ swap, atol=1e-5)


def test_workers_keep_the_order_and_resume(collection):
    """No, one and two workers hand out the same; what was used is where another run goes on."""
    root, _ = collection
    alone = [loaded.episode for loaded in EpisodeDataset(sampler_of(root))]
    assert len(alone) == 8
    for workers in (1, 2):
        sampler = sampler_of(root)
        loader = DataLoader(EpisodeDataset(sampler), batch_size=None, num_workers=workers)
        loaded = list(loader)
        assert [item.episode for item in loaded] == alone and isinstance(loaded[0].context, Views)
        sampler.advance(loaded[4].episode)
        resumed = sampler_of(root)
        resumed.load_state_dict(sampler.state_dict())
        loader = DataLoader(EpisodeDataset(resumed), batch_size=None, num_workers=workers)
        assert [item.episode for item in loader] == alone[5:]


def test_a_damaged_picture_costs_one_episode(collection, tmp_path, caplog):
    views = collection[1][scene_hash(1)]
    for seed in (1, 2):
        write_dl3dv_scene(tmp_path / "1K", views, scene_hash(seed))
    for path in (tmp_path / "1K" / scene_hash(1) / "images_4").iterdir():
        if path.name != "frame_00001.png":  # whose header says the size
            path.write_bytes(b"no picture")
    episodes = [loaded.episode for loaded in EpisodeDataset(sampler_of(tmp_path))]
    assert {episode.scene for episode in episodes} == {scene_hash(2)} and len(episodes) == 4
    assert "not a readable image" in caplog.text


def test_mixed_sizes_and_portraits(tmp_path):
    """MegaDepth: every picture, upright or not, fills the size of the episode, and sparse points still fit."""
    write_megadepth_scene(tmp_path, "0000", 0, 6, 42, 56, seed=1, supersample=1)
    (scene,), _ = megadepth.find_scenes(tmp_path)
    frames = scene.frames()
    views = load_covering(frames, 28, 56)
    assert views.images.shape == (1, 6, 3, 28, 56) and views.cameras.width == 56
    points, colors = (torch.from_numpy(values) for values in scene.points())
    for index in range(6):
        own = slice(40 * index, 40 * index + 40)
        pixels, _ = project(points[own], views.cameras.select([index]))
        inside = ((pixels >= 0) & (pixels < torch.tensor([56, 28]))).all(dim=-1)[0, 0]
        columns, rows = pixels[0, 0, inside].long().unbind(-1)
        error = (views.images[0, index].permute(1, 2, 0)[rows, columns] - colors[own][inside]).abs().mean()
        assert len(rows) > 5 and error < 0.2
    with pytest.raises(ValueError, match="x.png: has no camera"):
        load_covering([Frame(path=Path("x.png"))], 28, 28)


def test_cover_by_hand():
    """20x40 to cover 28x28: scaled by 1.4 to 28x56, then 14 columns go from each side; K follows."""
    cameras = Cameras(
        world_to_camera=torch.eye(4)[None, None],
        intrinsics=torch.tensor([[10.0, 0, 20], [0, 10, 10], [0, 0, 1]])[None, None],
        height=20,
        width=40,
    )
    masks = torch.zeros(1, 1, 20, 40, dtype=torch.bool)
    masks[..., 20:] = True
    images = masks[:, :, None].float().expand(1, 1, 3, 20, 40)
    views = cover(Views(images=images, cameras=cameras, masks=masks, names=("a",)), 28, 28)
    assert torch.allclose(views.cameras.intrinsics[0, 0], torch.tensor([[14.0, 0, 28 - 14], [0, 14.0, 14], [0, 0, 1]]))
    assert views.images.shape == (1, 1, 3, 28, 28) and views.names == ("a",)
    assert not views.masks[..., :14].any() and views.masks[..., 14:].all()
    assert (views.images[..., :13] < 0.01).all() and (views.images[..., 15:] > 0.99).all()
