"""da3_splat: photos to 3D Gaussian scenes, with Depth Anything 3 as the geometry backbone.

Public names are imported on first use, so `import da3_splat` costs next to nothing.
"""

from importlib import import_module

_HOMES = {
    "Cameras": "types",
    "Gaussians": "types",
    "Geometry": "types",
    "Rendering": "types",
    "Scene": "types",
    "Views": "types",
    "create_model": "model",
    "load_model": "model",
    "load_ply": "io.ply",
    "load_views": "data.captures",
    "render": "rendering",
    "save_model": "model",
    "save_ply": "io.ply",
}
__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'da3_splat' has no attribute {name!r}")
    return getattr(import_module(f"da3_splat.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
