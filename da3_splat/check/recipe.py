"""Test weights and pictures that are pure integer functions of a name and an index, equal on every platform.

value(key, i): seed = first 8 bytes of sha256(key), little endian; h = splitmix64 finaliser of
seed + (i + 1) * 0x9E3779B97F4A7C15; z = (sum of the four 16-bit lanes - 131070) / 37837.2268, nearly N(0,1);
value = float32(base + std * z), (base, std) by the kind of the weight. Keys are those of the released checkpoints.
"""

import hashlib
import math
import re

import numpy as np
import torch

_LANES_STD = math.sqrt(4 * (65536**2 - 1) / 12)
_LARGE = 1 << 18


def noise(key: str, count: int) -> np.ndarray:
    """float64 (count,), approximately standard normal."""
    key = re.sub(r"output_conv2_aux\.[123]\.2\.", "output_conv2_aux.0.2.", key)  # one LayerNorm under four names
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], dtype="<u8")[0]
    out = np.empty(count)
    with np.errstate(over="ignore"):
        for start in range(0, count, _LARGE):
            index = np.arange(start + 1, min(start + _LARGE, count) + 1, dtype=np.uint64)
            h = index * np.uint64(0x9E3779B97F4A7C15) + seed
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h ^= h >> np.uint64(31)
            lanes = h.view(np.uint16).reshape(-1, 4).astype(np.int64).sum(axis=1)
            out[start : start + len(index)] = (lanes - 131070) / _LANES_STD
    return out


def base_and_std(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    leaf = key.rsplit(".", 1)[-1]
    named = {"cls_token": (0.0, 0.5), "camera_token": (0.0, 1.0), "pos_embed": (0.0, 0.2), "gamma": (0.5, 0.15)}
    if leaf in named:
        return named[leaf]
    if key.endswith("cam_dec.fc_fov.0.bias"):
        return 1.0, 0.05
    if key.endswith("cam_dec.fc_fov.0.weight"):
        return 0.0, 0.1 / math.sqrt(shape[1])
    if key.endswith("cam_dec.fc_qvec.bias"):
        return 0.3, 0.1
    if len(shape) == 1:
        if leaf == "weight":
            return (1.5, 0.15) if "q_norm" in key or "k_norm" in key else (1.0, 0.1)
        return 0.0, 0.1 if "norm" in key else 0.05
    transposed = "resize_layers.0." in key or "resize_layers.1." in key
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    gains = {".attn.qkv.": 1.3, ".mlp.fc2.": 1.5, ".mlp.w3.": 1.5, "resConfUnit": 1.2, "output_conv2.2.": 0.35}
    gain = next((value for part, value in gains.items() if part in key), 1.0)
    return 0.0, gain / math.sqrt(fan_in)


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    base, std = base_and_std(key, tuple(shape))
    values = noise(key, math.prod(shape)) * std + base
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def released_key(key: str, prefix: str = "model.") -> str:
    """The name under which the official network holds our weight `key`."""
    key = key.removeprefix("network.")
    key = (
        key.replace("backbone.", "backbone.pretrained.", 1)
        if re.match(r"(da3\.|da3_metric\.)?backbone\.", key)
        else key
    )
    key = re.sub(r"(output_conv[12]_aux)\.(\d)\.(weight|bias)$", r"\1.3.\2.\3", key)
    return prefix + key


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """Overwrite every weight of one of our networks with the recipe's."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(weight(released_key(name), value.shape))
    return network.eval()


def image(view: int, height: int, width: int) -> torch.Tensor:
    """uint8 (H,W,3) test picture number `view`: 7x7 blocks plus grain."""
    rows, columns = -(-height // 7), -(-width // 7)
    block = noise(f"image/{view}/block", rows * columns * 3).reshape(rows, columns, 3)
    block = block.repeat(7, axis=0).repeat(7, axis=1)[:height, :width]
    grain = noise(f"image/{view}/grain", height * width * 3).reshape(height, width, 3)
    return torch.from_numpy(np.floor(127.5 + 50 * block + 12 * grain).clip(0, 255).astype(np.uint8))
