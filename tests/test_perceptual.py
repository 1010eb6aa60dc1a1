"""LPIPS is real or absent: never downloaded, never on random weights."""

import hashlib
import shutil

import lpips
import pytest
import torch
from torchvision.models import alexnet

from da3_splat.perceptual import BACKBONES, perceptual_distance, why_unavailable


def test_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for net, name in BACKBONES.items():
        assert name in why_unavailable(net)
        with pytest.raises(ValueError, match="not available"):
            perceptual_distance(net)


def test_present(tmp_path, monkeypatch):
    """With a file of AlexNet's layout in torch's cache: what the lpips package says, one value a picture, with
    gradients; equal pictures are at distance 0."""
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / BACKBONES["alex"]
    torch.save(alexnet(weights=None).state_dict(), file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "is not the published file" in why_unavailable("alex")
    named = f"alexnet-owt-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    shutil.copy(file, file.with_name(named))
    monkeypatch.setitem(BACKBONES, "alex", named)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", _from_cache(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _from_cache(tmp_path))
    assert why_unavailable("alex") is None and why_unavailable("vgg") is not None
    distance = perceptual_distance("alex")
    first, second = torch.rand(2, 3, 64, 80), torch.rand(2, 3, 64, 80, requires_grad=True)
    found = distance(first, second)
    assert found.shape == (2,) and bool((found > 0).all())
    assert torch.allclose(distance(first, first), torch.zeros(2), atol=1e-6)
    found.sum().backward()
    assert second.grad.abs().sum() > 0
    package = lpips.LPIPS(net="alex", verbose=False).eval()
    torch.testing.assert_close(found.detach(), package(2 * first - 1, 2 * second.detach() - 1).flatten().detach())


def _from_cache(folder):
    def load(url: str, **options):
        return torch.load(folder / "checkpoints" / url.rsplit("/", 1)[-1], weights_only=True)

    return load
