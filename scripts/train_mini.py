"""Train the `mini` backbone's geometry on synthetic worlds: from nothing, from weights, or from its last checkpoint.

    uv run python scripts/train_mini.py --output outputs/mini --minutes 45
    uv run python scripts/train_mini.py --start da3_splat/weights/mini.safetensors --peak-rate 5e-4 --decay-steps 2000

The seed of every batch is its step number, so a resumed run sees the batches that an unbroken one would have seen.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from da3_splat.backbone import create_backbone, load_checkpoint
from da3_splat.data.synthetic import make_scenes
from da3_splat.io.files import replacing
from da3_splat.training.geometry import geometry_step

SIZES = ((84, 112), (84, 112), (112, 84), (112, 154), (98, 98))  # pixels; the batch shrinks as pictures grow
VIEWS = (2, 3, 4, 6)


@dataclass
class Settings:
    output: Path = Path("outputs/mini")
    """where checkpoint.pt and mini_geometry.safetensors go"""
    start: Path | None = None
    """weights to begin with where there is no checkpoint yet"""
    minutes: float = 15.0
    """stop after so long; the checkpoint resumes"""
    images: int = 48
    """pictures of 84x112 in a batch; fewer where they are larger"""
    peak_rate: float = 1e-3
    """learning rate after the warm-up"""
    decay_steps: int = 4500
    """steps to the end of the cosine, from the first step of all runs together"""
    threads: int = 1
    pictures_larger: int = 1
    """1, or 2 for a last stretch at twice the size"""


class Batches(Dataset):
    """Batch number `step` of all: synthetic worlds at a size and view count drawn from the step."""

    def __init__(self, images: int, larger: int):
        self.images, self.larger = images, larger

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int):
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(step)
        height, width = SIZES[int(torch.randint(len(SIZES), (1,), generator=generator))]
        views = VIEWS[int(torch.randint(len(VIEWS), (1,), generator=generator))]
        count = max(1, round(self.images * 84 * 112 / (height * width) / views))
        given, truth = make_scenes(
            count, views, self.larger * height, self.larger * width, seed=1_000_000 + 2 * step, supersample=1
        )
        order = torch.randperm(views, generator=generator).tolist()  # any view may define the world
        truth = replace(
            truth, depth=truth.depth[:, order], sky=truth.sky[:, order], cameras=truth.cameras.select(order)
        )
        gain = 0.7 + 0.6 * torch.rand(count, views, 3, 1, 1, generator=generator)  # exposure and white balance
        return (given.images[:, order] * gain).clamp(0, 1), truth


class Resumed:
    """Sampler of the step numbers from `start` on."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self):
        return iter(range(self.start, 1 << 30))


def learning_rate(step: int, settings: Settings) -> float:
    warm = min(1.0, (step + 1) / 200)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(min(1.0, step / settings.decay_steps) * torch.pi)).item())
    return settings.peak_rate * warm * (0.02 + 0.98 * cosine)


settings = tyro.cli(Settings, description=__doc__)
torch.set_num_threads(settings.threads)
torch.manual_seed(0)
console = Console()
network = create_backbone("mini")
network.head.to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(network.parameters(), lr=settings.peak_rate, weight_decay=0.02, betas=(0.9, 0.98))
if settings.start is not None:
    load_checkpoint(network, settings.start)
average = {name: value.detach().clone() for name, value in network.state_dict().items()}
step = skipped = 0
checkpoint = settings.output / "checkpoint.pt"
if checkpoint.exists():
    state = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average, step, skipped = state["average"], state["step"], state["skipped"]
    console.print(f"resumed at step {step}")


def save() -> None:
    state = dict(
        network=network.state_dict(), optimizer=optimizer.state_dict(), average=average, step=step, skipped=skipped
    )
    with replacing(checkpoint) as path:
        torch.save(state, path)
    with replacing(settings.output / "mini_geometry.safetensors") as path:
        save_file(
            {name: value.half().contiguous(memory_format=torch.contiguous_format) for name, value in average.items()},
            path,
        )


loader = DataLoader(
    Batches(settings.images, settings.pictures_larger),
    batch_size=None,
    sampler=Resumed(step),
    num_workers=1,
    prefetch_factor=3,
)
began = saved = time.monotonic()
sums: dict[str, float] = {}
for images, truth in loader:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    give_cameras = step % 5 == 4  # a fifth of the steps, as in the paper
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts, _ = geometry_step(network, images, truth, give_cameras)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    if torch.isfinite(norm):
        optimizer.step()
    else:
        skipped += 1
    decay = min(0.998, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay)
    step += 1
    for name, value in parts.items():
        sums[name] = sums.get(name, 0.0) + value
    if step % 50 == 0:
        means = "  ".join(f"{name} {value / 50:.3f}" for name, value in sums.items())
        minutes = (time.monotonic() - began) / 60
        console.print(f"step {step}  {means}  {minutes:.1f} min  skipped {skipped}")
        sums = {}
    if time.monotonic() - saved > 120:
        save()
        saved = time.monotonic()
    if time.monotonic() - began > settings.minutes * 60:
        break
save()
console.print(f"stopped at step {step}: {settings.output / 'mini_geometry.safetensors'}")
