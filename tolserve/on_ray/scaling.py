"""How many attention nodes there are: by the generations that run or wait on them.

Serve cannot count those itself, since they come over links and not through its handles: each replica tells it, and a
policy of ours decides. Serve starts and ends the replicas; memory nodes are not touched.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from tolserve.serve_config import ServeConfig

_LOOK_S = 1.0
_DRAIN_S = 600.0
"""How long a replica that ends may take to finish what it computes."""


class OpenGenerations:
    """A Serve autoscaling policy: replicas enough for `a_replica` open generations on each, no more than that."""

    def __init__(self, a_replica: int) -> None:
        self._a_replica = a_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Called by Serve; the replicas wanted, which it bounds and delays as configured."""
        told = (context.aggregated_metrics or {}).get("num_open", {})
        return replicas_for(sum(told.values()), self._a_replica), {}


def replicas_for(num_open: float, a_replica: int) -> int:
    """Replicas that compute so many generations at once, at least one."""
    return max(1, math.ceil(num_open / a_replica))


def options(config: ServeConfig) -> dict[str, Any]:
    """What a deployment of attention nodes is made with."""
    drain = {"graceful_shutdown_timeout_s": _DRAIN_S}
    if config.max_attention_replicas is None:
        return {"num_replicas": config.attention_replicas, **drain}
    policy = AutoscalingPolicy(policy_function=OpenGenerations, policy_kwargs={"a_replica": config.max_num_seqs})
    scaling = AutoscalingConfig(
        min_replicas=config.attention_replicas,
        initial_replicas=config.attention_replicas,
        max_replicas=config.max_attention_replicas,
        metrics_interval_s=_LOOK_S,
        look_back_period_s=2 * _LOOK_S,
        upscale_delay_s=2 * _LOOK_S,
        downscale_delay_s=config.scale_down_after_s,
        policy=policy,
    )
    return {"autoscaling_config": scaling, **drain}
