"""The `import_path` of a Serve config file, `tolserve.app_builder:build` (see infra/serve.yaml)."""

from tolserve.on_ray.builder import build

__all__ = ["build"]
