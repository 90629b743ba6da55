"""`import_path: tolserve.app_builder:build` of a Serve config file (`infra/serve.yaml`); its `args` are ServeConfig's."""

from tolserve.on_ray.builder import build

__all__ = ["build"]
