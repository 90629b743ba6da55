"""infra/: the manifest against the operator's fields, the command in it, and the image file against both."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml

from tolbuild.build_config import BuildConfig

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "infra" / "Dockerfile"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Object:
    found: Object = yaml.safe_load((REPOSITORY / "tests/fixtures/rayjob_schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.fixture
def job() -> Object:
    """A fresh copy: what YAML's anchors share is shared no longer."""
    found: Object = json.loads(json.dumps(yaml.safe_load((REPOSITORY / "infra/kuberay/rayjob.yaml").read_text())))
    return found


def pods(job: Object) -> list[Object]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_every_field_is_one_that_the_operator_knows(job: Object, schema: Object) -> None:
    jsonschema.validate(job, schema)


def change(path: str, value: object) -> Callable[[Object], None]:
    def apply(job: Object) -> None:
        *parents, last = path.split(".")
        place: Any = job
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("spec.entryPoint", "python"),
        change("spec.submissionMode", "K8SJobMode"),
        change("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        change("spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
        change("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "24GB"),
        change("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.securitycontext", {}),
        change("spec.rayClusterSpec.headGroupSpec.template.spec.securityContext.runAsUser", 0),
    ],
)
def test_a_misspelt_field_is_found(job: Object, schema: Object, spoil: Callable[[Object], None]) -> None:
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema)


def test_its_command_is_a_build_that_there_is(job: Object) -> None:
    python, module, name, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, module, name) == ("python", "-m", "tolbuild.run")
    config = tyro.cli(BuildConfig, args=arguments)
    spool = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert str(config.spool_dir) in [mount["mountPath"] for mount in spool["containers"][0]["volumeMounts"]]
    limit = int(spool["volumes"][0]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    assert config.spool_gb * 1e9 < limit * 2**30
    assert not config.no_ray


def test_cells_run_on_the_workers_as_many_as_have_a_cpu(job: Object) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert "num-cpus" not in group["rayStartParams"]


def test_credentials_come_from_a_secret_and_stand_nowhere(job: Object) -> None:
    head, *workers = pods(job)
    assert head["containers"][0]["envFrom"] == [{"secretRef": {"name": "tol-store"}}]
    assert all("env" not in container for pod in (head, *workers) for container in pod["containers"])


def test_nothing_runs_as_root(job: Object) -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(user) == 1
    for pod in pods(job):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and (str(context["runAsUser"]), str(context["runAsGroup"])) == user[0]
        assert all(not item["securityContext"]["allowPrivilegeEscalation"] for item in pod["containers"])


def test_ray_has_the_version_of_the_image(job: Object) -> None:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()[1:])
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]


def test_the_image_installs_pinned_versions_from_what_is_there() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install[^&\n]*", text)
    assert len(installs) == 2 and all("--constraint constraints.txt" in install for install in installs)
    allowed = [
        line[1:] for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert sorted(copied) == sorted(allowed)
    assert all((REPOSITORY / name).exists() for name in copied)
    assert text.rindex("\nUSER ") > text.rindex("\nRUN ")
    for variant in ("cpu", "cuda"):
        assert f"AS base-{variant}\n" in text
