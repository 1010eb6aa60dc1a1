"""Reading weights: the released files by their published keys, ours by the same keys. Strict, and never a pickle."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from da3_splat.io.json_files import load_json
from da3_splat.limits import inside, regular_file

if TYPE_CHECKING:
    from da3_splat.backbone.network import DepthAnything3

HEAD_PREFIX = "gs_head."  # the Gaussian head's keys in a released file; a bare backbone leaves them alone
NON_COMMERCIAL = ("da3-giant", "da3-large", "da3nested-giant-large")
INDEX_NAME = "model.safetensors.index.json"


def load_checkpoint(network: nn.Module, source: str | Path | Mapping[str, Tensor], revision: str | None = None) -> None:
    """Fill a DA3 network (or a whole `Da3Splat`) from a safetensors file, a folder of shards, a hub id or a state dict.

    Keys must match exactly, up to what the released files are known to vary in: the `model.` prefix, the ray branch's
    unused levels, the LayerNorm that its levels share (stored once or four times), and the Gaussian head's keys on a
    network that has none. Half-precision tensors are cast to the network's dtype. ValueError lists the missing and
    unexpected keys.
    """
    state = dict(source) if isinstance(source, Mapping) else read_safetensors(resolve(source, revision))
    label = "state dict" if isinstance(source, Mapping) else str(source)
    expected = network.state_dict()
    found = released_to_ours(state, keep_gaussian_head=any(key.startswith(HEAD_PREFIX) for key in expected))
    if any(key.startswith("network.") for key in expected):  # a backbone inside a Da3Splat
        found = {key if key.startswith(HEAD_PREFIX) else f"network.{key}": value for key, value in found.items()}
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"{label}: not a checkpoint of this network; missing keys: {_listed(missing)}; "
            f"unexpected keys: {_listed(unexpected)}"
        )
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{label}: {key}: expected shape {tuple(expected[key].shape)}, got {tuple(value.shape)}")
    network.load_state_dict(found)


def released_to_ours(state: Mapping[str, Tensor], keep_gaussian_head: bool = True) -> dict[str, Tensor]:
    """Our keys for a released state dict (ours pass through unchanged); see `load_checkpoint` for what is dropped."""
    ours = {}
    for key, value in state.items():
        renamed = our_key(key)
        if renamed is None or (not keep_gaussian_head and renamed.startswith(HEAD_PREFIX)):
            continue
        if renamed in ours and re.search(r"output_conv2_aux\.0\.2\.", key):
            continue  # level 3 came first and is the one in use
        ours[renamed] = value
    return ours


def our_key(key: str) -> str | None:
    """Our name of a released key, None for weights that no output depends on."""
    key = key.removeprefix("model.").replace("backbone.pretrained.", "backbone.")
    key = key.removeprefix("da3.") if key.startswith("da3." + HEAD_PREFIX) else key  # the nested model's
    shared_norm = re.sub(r"output_conv2_aux\.[0-3]\.2\.(weight|bias)$", r"output_conv2_aux.2.\1", key)
    if shared_norm != key:
        return shared_norm
    level = re.search(r"output_conv[12]_aux\.([0-3])\.(\d)\.(weight|bias)$", key)
    if level and level[1] != "3":
        return None
    return re.sub(r"(output_conv[12]_aux)\.3\.(\d)\.(weight|bias)$", r"\1.\2.\3", key)


def load_dinov2(network: DepthAnything3, state: Mapping[str, Tensor]) -> None:
    """Start a training from plain DINOv2 weights, as timm's vit_*_patch14_dinov2 hold them.

    Everything the transformer shares with DINOv2 is filled; the camera token, q/k norms and all heads stay as they are.
    """
    ours = network.backbone.state_dict()
    own = {name for name in ours if "q_norm" in name or "k_norm" in name or name == "camera_token"}
    found = {name: value for name, value in state.items() if name in ours}
    wrong = [name for name, value in found.items() if value.shape != ours[name].shape]
    missing = sorted(ours.keys() - found.keys() - own)
    if missing or wrong:
        raise ValueError(f"not DINOv2 weights of this size; missing: {_listed(missing)}; other shape: {_listed(wrong)}")
    network.backbone.load_state_dict(found, strict=False)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of all shards that a `model.safetensors.index.json` names."""
    if path.name == INDEX_NAME:
        shards = read_shard_names(path)
        return {key: value for shard in shards for key, value in read_safetensors(path.parent / shard).items()}
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); pickles are never opened") from error


def read_shard_names(index: Path) -> list[str]:
    """The files that a `model.safetensors.index.json` names, all of them in its folder."""
    content = load_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ValueError(f"{index}: not a safetensors index; expected a weight_map of file names")
    shards = sorted(set(named.values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{index}: a shard lies outside the folder of the index")
    if any(not shard.endswith(".safetensors") for shard in shards):
        raise ValueError(f"{index}: expected shards that end in .safetensors")
    for shard in shards:
        inside(index.parent, shard, str(index))
    return shards


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The local file behind a path, a folder or a hub id such as depth-anything/DA3-LARGE-1.1 (downloaded once)."""
    path = Path(source)
    if path.is_dir():
        candidates = [path / INDEX_NAME, path / "model.safetensors"]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise ValueError(f"{path}: expected {' or '.join(c.name for c in candidates)} in this folder")
    if path.is_file():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise ValueError(f"{source}: no such checkpoint file, and not a hub id (owner/name)")
    return _download(str(source), revision)


@cache
def announce_license(hub_id: str) -> None:
    """Print the licence of released weights, once a process."""
    preset = preset_of(hub_id)
    if preset is not None:
        terms = "CC BY-NC 4.0 (no commercial use)" if preset in NON_COMMERCIAL else "Apache-2.0"
        print(f"{hub_id}: these weights are licensed {terms}", file=sys.stderr)


def _download(hub_id: str, revision: str | None) -> Path:
    announce_license(hub_id)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "model.safetensors", revision=revision))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{hub_id}: the model hub cannot be reached and the file is not in its cache") from error
    except EntryNotFoundError:
        return _download_shards(hub_id, revision)
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{hub_id}: cannot be downloaded from the model hub ({error})") from error


def _download_shards(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        index = Path(hf_hub_download(hub_id, INDEX_NAME, revision=revision))
        for shard in read_shard_names(index):
            hf_hub_download(hub_id, shard, revision=revision)
    except (EntryNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{hub_id}: holds neither model.safetensors nor a readable {INDEX_NAME} ({error})") from error
    return index


def preset_of(hub_id: str) -> str | None:
    """The preset of a released name (depth-anything/DA3-LARGE-1.1, a file DA3-LARGE.safetensors), or None."""
    name = Path(hub_id).name.lower().removesuffix(".safetensors")
    name = re.sub(r"-\d+(\.\d+)*$", "", name)
    from da3_splat.backbone.presets import preset_names

    return name if name in preset_names() else None


def _listed(keys: list[str], shown: int = 8) -> str:
    if not keys:
        return "none"
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")
