"""Finding the endpoint that runs on a cluster."""

from __future__ import annotations

import logging
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException

from tolserve.membership import View
from tolserve.on_ray.launch import DeployError
from tolserve.serve_config import ServeConfig

APPLICATION = "tolserve"
_TIMEOUT_S = 30.0


class RunningEndpoint:
    """The endpoint of this name on the cluster that `launch.connect` found.

    Raises:
        DeployError: there is none.
    """

    def __init__(self, name: str = APPLICATION) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            self.directory = serve.get_deployment_handle("DirectoryDeployment", name)
            self.config: ServeConfig = self.ask("config")
        except (RayServeException, TimeoutError) as error:
            raise DeployError(
                f"no endpoint runs on this cluster ({error}); start one with `python -m tolserve.run`"
            ) from error

    def ask(self, method: str, *args: Any) -> Any:
        """One call of its directory."""
        return getattr(self.directory, method).remote(*args).result(timeout_s=_TIMEOUT_S)

    def url(self) -> str:
        """Where its gateway listens.

        Raises:
            DeployError: it does not at the moment.
        """
        view: View = self.ask("view")
        gateways = [member.address for member in view.members if member.kind == "gateway"]
        if not gateways:
            raise DeployError("the endpoint's gateway is not up; try again in some seconds")
        host, port = gateways[-1]
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound
