"""How many attention nodes there are to be."""

from __future__ import annotations

import pytest
from ray.serve.config import AutoscalingConfig

from tolserve.on_ray.scaling import OpenGenerations, options, replicas_for
from tolserve.serve_config import ServeConfig


@pytest.mark.parametrize(("num_open", "replicas"), [(0, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_there_are_as_many_as_compute_all_at_once(num_open: float, replicas: int) -> None:
    assert replicas_for(num_open, 4) == replicas


def test_a_fixed_number_is_not_scaled() -> None:
    given = options(ServeConfig(checkpoint="c", attention_replicas=3))
    assert given["num_replicas"] == 3 and "autoscaling_config" not in given


def test_the_bounds_and_the_policy_are_those_of_the_configuration() -> None:
    config = ServeConfig(
        checkpoint="c", attention_replicas=2, max_attention_replicas=5, max_num_seqs=7, scale_down_after_s=9
    )
    scaling: AutoscalingConfig = options(config)["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (2, 5, 9)
    assert scaling.policy.policy_kwargs == {"a_replica": 7}
    assert scaling.policy.get_policy().__name__ == OpenGenerations.__name__
    assert config.max_open == 5 * 7 + config.max_queue
