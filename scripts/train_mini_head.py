"""Train the Gaussian head of `mini` on a frozen backbone, and write the weights that the package ships.

    uv run python scripts/train_mini_head.py --backbone outputs/mini/mini_geometry.safetensors --minutes 15

Resumes from its checkpoint. The last line is the gain over naive lifting on worlds never trained on.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from da3_splat.backbone import load_checkpoint
from da3_splat.data.synthetic import make_scenes
from da3_splat.heads.plain import PlainHead
from da3_splat.io.files import replacing
from da3_splat.metrics import psnr
from da3_splat.model import Da3Splat, create_model, save_model
from da3_splat.training.gaussian_head import head_step

CONTEXT, TARGETS = [0, 2, 3, 5], [1, 4]
SIZES = ((84, 112), (112, 84), (112, 154))


@dataclass
class Settings:
    backbone: Path = Path("outputs/mini/mini_geometry.safetensors")
    """geometry weights of scripts/train_mini.py"""
    output: Path = Path("outputs/mini")
    """where head_checkpoint.pt and mini.safetensors go"""
    minutes: float = 15.0
    rate: float = 1e-3
    threads: int = 2


settings = tyro.cli(Settings, description=__doc__)
torch.set_num_threads(settings.threads)
torch.manual_seed(0)
console = Console()
model = create_model("mini", sh_degree=1)
load_checkpoint(model.network, settings.backbone)
model.network.eval().requires_grad_(False)
optimizer = torch.optim.AdamW(model.gs_head.parameters(), lr=settings.rate, weight_decay=0.01)
step = 0
checkpoint = settings.output / "head_checkpoint.pt"
if checkpoint.exists():
    state = torch.load(checkpoint, weights_only=True)
    model.gs_head.load_state_dict(state["head"])
    optimizer.load_state_dict(state["optimizer"])
    step = state["step"]
    console.print(f"resumed at step {step}")


def episode(seed: int, height: int, width: int, supersample: int = 1):
    """Context views, target views and the contexts' true depth of one world."""
    views, truth = make_scenes(1, len(CONTEXT) + len(TARGETS), height, width, seed, supersample=supersample)
    return views.select(CONTEXT), views.select(TARGETS), truth.depth[:, CONTEXT]


@torch.no_grad()
def held_out_psnr(candidate: Da3Splat) -> float:
    scores = []
    for k in range(12):
        context, targets, depth = episode(9_000_000 + 2 * k, 112, 154, supersample=2)
        scores.append(psnr(head_step(candidate, context, targets, depth, merged=True)[1][0], targets.images[0]))
    return float(torch.cat(scores).mean())


began = saved = time.monotonic()
total = 0.0
while time.monotonic() - began < settings.minutes * 60:
    left = 1 - (time.monotonic() - began) / (settings.minutes * 60)
    for group in optimizer.param_groups:
        group["lr"] = settings.rate * min(1.0, (step + 1) / 100) * min(1.0, 4 * left)
    loss, _ = head_step(model, *episode(5_000_000 + 2 * step, *SIZES[step % len(SIZES)]), merged=True)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.gs_head.parameters(), 1.0)
    if torch.isfinite(norm):
        optimizer.step()
    step, total = step + 1, total + float(loss.detach())
    if step % 100 == 0:
        console.print(f"step {step}  loss {total / 100:.4f}  {(time.monotonic() - began) / 60:.1f} min")
        total = 0.0
    if time.monotonic() - saved > 120:
        with replacing(checkpoint) as path:
            torch.save({"head": model.gs_head.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
        saved = time.monotonic()
with replacing(checkpoint) as path:
    torch.save({"head": model.gs_head.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
save_model(model.eval(), settings.output / "mini.safetensors")
trained, plain = held_out_psnr(model), held_out_psnr(Da3Splat(model.network, PlainHead(), model.config))
console.print(
    f"step {step}: held-out worlds {trained:.2f} dB, naive lifting {plain:.2f} dB, gain {trained - plain:.2f} dB"
)
