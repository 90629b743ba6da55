"""infra/kuberay/rayservice.yaml: the operator's fields, the Serve config in it, groups that hold what it asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tolserve.serve_config import ServeConfig

REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures"
Object = dict[str, Any]


def load(path: Path) -> Object:
    """With what YAML's anchors share no longer shared."""
    found: Object = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    return found


@pytest.fixture(scope="module")
def schema() -> Object:
    shared, own = load(FIXTURES / "rayjob_schema.yaml"), load(FIXTURES / "rayservice_schema.yaml")
    found = {**own, "$defs": shared["$defs"] | own["$defs"]}
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.fixture
def service() -> Object:
    return load(REPOSITORY / "infra" / "kuberay" / "rayservice.yaml")


@pytest.fixture
def config(service: Object) -> ServeConfig:
    return ServeConfig.from_dict(application(service)["args"])


def application(service: Object) -> Object:
    (found,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return dict(found)


def groups(service: Object) -> dict[str, Object]:
    return {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def container(group: Object) -> Object:
    (found,) = group["template"]["spec"]["containers"]
    return dict(found)


def templates(service: Object) -> list[Object]:
    cluster = service["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_every_field_is_one_that_the_operator_knows(service: Object, schema: Object) -> None:
    jsonschema.validate(service, schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.serveConfigv2", "x"),
        ("spec.rayClusterSpec", {}),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.readynessProbe", {}),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.readinessProbe.httpGet.uri", "/"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.ports.0.port", 1),
        ("spec.rayClusterConfig.workerGroupSpecs.2.template.spec.affinity.antiAffinity", {}),
        ("spec.serveService.spec.ports.0.targetport", 1),
    ],
)
def test_a_misspelt_field_is_found(service: Object, schema: Object, path: str, value: object) -> None:
    *parents, last = path.split(".")
    place: Any = service
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(service, schema)


def test_its_serve_config_is_the_one_of_the_config_file_but_for_the_options(service: Object) -> None:
    deployed = yaml.safe_load((REPOSITORY / "infra" / "serve.yaml").read_text())
    inside = yaml.safe_load(service["spec"]["serveConfigV2"])
    for one in (deployed, inside):
        ServeConfig.from_dict(one["applications"][0].pop("args"))
    assert inside == deployed


def test_each_group_holds_as_many_nodes_as_are_asked_for(service: Object, config: ServeConfig) -> None:
    asked = {
        config.gateway_resource: 1,
        config.attention_resource: config.attention_replicas,
        config.memory_resource: config.num_partitions * config.replication,
    }
    offered = {
        name: group["replicas"] * float(amount)
        for group in groups(service).values()
        for name, amount in group["resources"].items()
        if name != "CPU"
    }
    assert offered == asked
    for group in groups(service).values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert not {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"])


def test_only_attention_nodes_have_cpus_and_gpus_to_give(service: Object, config: ServeConfig) -> None:
    limits = container(groups(service)["attention"])["resources"]["limits"]
    assert float(limits["nvidia.com/gpu"]) >= config.num_gpus > 0
    assert float(limits["cpu"]) >= config.num_cpus > 0
    assert container(groups(service)["attention"])["image"].endswith("-cuda")
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], groups(service)["gateway"], groups(service)["memory"]):
        assert group["resources"]["CPU"] == "0"
        assert "nvidia.com/gpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_requests_come_to_the_gateway_alone_and_once_it_answers(service: Object, config: ServeConfig) -> None:
    (port,) = service["spec"]["serveService"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (config.port, "serve")
    assert service["spec"]["excludeHeadPodFromServeSvc"] and config.host == "0.0.0.0"
    ports = {name: container(group).get("ports") for name, group in groups(service).items()}
    assert ports == {"gateway": [{"name": "serve", "containerPort": config.port}], "attention": None, "memory": None}
    ready = container(groups(service)["gateway"])["readinessProbe"]["httpGet"]
    assert ready == {"path": "/health", "port": "serve"}


def test_every_worker_has_probes_that_do_not_ask_serves_proxy(service: Object) -> None:
    assert yaml.safe_load(service["spec"]["serveConfigV2"])["proxy_location"] == "Disabled"
    for name, group in groups(service).items():
        probes = container(group)
        assert probes["livenessProbe"]["httpGet"]["path"] == "/api/healthz"
        if name != "gateway":
            assert probes["readinessProbe"]["httpGet"]["path"] == "/api/healthz"


def test_memory_nodes_are_on_different_hosts(service: Object, config: ServeConfig) -> None:
    affinity = groups(service)["memory"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {"ray.io/group": "memory"}
    assert config.replication > 1


def test_secrets_stand_nowhere_and_are_where_they_are_needed(service: Object, config: ServeConfig) -> None:
    assert config.api_key is None and config.api_key_file is not None
    for template in templates(service):
        (one,) = template["containers"]
        assert one["envFrom"] == [{"secretRef": {"name": "tol-store"}}] and "env" not in one
        (mount,) = one["volumeMounts"]
        assert mount["mountPath"] == str(Path(config.api_key_file).parent) and mount["readOnly"]
        assert {"name": mount["name"], "secret": {"secretName": "tol-api-key"}} in template["volumes"]
        assert template["securityContext"]["runAsNonRoot"] and template["securityContext"]["runAsUser"] == 1000
        assert not one["securityContext"]["allowPrivilegeEscalation"]


def test_ray_has_the_version_of_the_image(service: Object) -> None:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()[1:])
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]


def test_prometheus_scrapes_the_gateway(service: Object) -> None:
    monitor = load(REPOSITORY / "infra" / "kuberay" / "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("serve", "/metrics")
    assert monitor["spec"]["selector"]["matchLabels"]["ray.io/group"] in groups(service)
