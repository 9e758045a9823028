"""What lies in deploy/: well-formed by each format's tools, and true to this version of Glimt."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from glimt.api.route import Access
from glimt.api.routes import ROUTES
from glimt.cli import app
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
)
from glimt.config_check import check
from glimt.copies import copies_of, problems
from glimt.errors import BadSettings
from glimt.placement.serve_arguments import arguments_of, resources, server_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = DEPLOY / "compose/compose.yaml"
# What the LeaderWorkerSet controller puts into every pod.
INJECTED = {
    "$(LWS_GROUP_SIZE)": "2",
    "$(LWS_WORKER_INDEX)": "0",
    "$(LWS_LEADER_ADDRESS)": "glimt-0.glimt",
}
GROUPS = {
    "models": ModelSettings,
    "cache": CacheSettings,
    "media": MediaSettings,
    "parallel": ParallelSettings,
    "server": ServerSettings,
}


def name(file: Path) -> str:
    return file.stem


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template inside, also of kinds that Kubernetes itself does not know."""

    def search(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(value, dict):
            if "containers" in value.get("spec", {}):
                yield path, value
                return
            for key, below in value.items():
                yield from search(f"{path}.{key}", below)
        elif isinstance(value, list):
            for index, below in enumerate(value):
                yield from search(f"{path}[{index}]", below)

    yield from search(document["kind"], document.get("spec", {}))


def ray_serve(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a RayService, which are text within it."""
    found = yaml.safe_load(document.get("spec", {}).get("serveConfigV2", "{}"))
    return list(found.get("applications", []))


def glimt_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of Glimt in deploy/, as (where, words after `glimt`)."""
    for file in MANIFESTS:
        for document in documents(file):
            for path, pod in pods(document):
                for container in pod["spec"]["containers"]:
                    if "args" in container:
                        yield f"{file.name} {path}", container["args"]
            if "entrypoint" in document.get("spec", {}):
                yield f"{file.name} entrypoint", shlex.split(document["spec"]["entrypoint"])[1:]
            for application in ray_serve(document):
                words = shlex.split(application["args"]["command"])
                yield f"{file.name} {application['name']}", ["serve", *words]
    service = yaml.safe_load(COMPOSE.read_text())["services"]["glimt"]
    yield COMPOSE.name, [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in service["command"]]


COMMANDS = dict(glimt_commands())


def parsed(words: list[str]) -> Settings:
    words = [INJECTED.get(word, word) for word in words]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    found = {group: bound.arguments.get(group, make()) for group, make in GROUPS.items()}
    return Settings(model=bound.arguments["model"], **found)


def test_yaml_is_as_yamllint_wants_it() -> None:
    words = [sys.executable, "-m", "yamllint", "--strict", "-c", str(DEPLOY / ".yamllint.yaml")]
    found = subprocess.run([*words, str(DEPLOY)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    words = [str(hadolint), "--failure-threshold", "style", str(DEPLOY / "Dockerfile")]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = [word for line in re.findall(r"^COPY ([^-].*)$", text, re.M) for word in line.split()]
    sources = [word for word in copied if word not in (".", "./", "glimt")] + ["glimt"]
    assert {"constraints.txt", "pyproject.toml", "glimt"} <= set(sources)
    for source in sources:
        assert (DEPLOY.parent / source).exists()
        assert f"!{source}" in allowed


@pytest.mark.parametrize("file", MANIFESTS, ids=name)
def test_manifests_fit_the_schemas_of_kubernetes(file: Path) -> None:
    """Of kinds that controllers add, every pod template inside."""
    version = kubernetes_validate.latest_version()
    num_checked = 0
    for document in documents(file):
        if document["apiVersion"].partition("/")[0] in ("v1", "apps", "networking.k8s.io"):
            kubernetes_validate.validate(document, version, strict=True)
            num_checked += 1
        for path, pod in pods(document):
            template = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "pod", **pod.get("metadata", {})},
                "spec": pod["spec"],
            }
            assert path
            kubernetes_validate.validate(template, version, strict=True)
            num_checked += 1
    assert num_checked >= 2


def test_a_mistyped_field_would_be_found() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"container": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=name)
def test_services_reach_the_pod_that_answers(file: Path) -> None:
    found = documents(file)
    templates = [pod for document in found for _, pod in pods(document)]
    (service,) = [document for document in found if document["kind"] == "Service"]
    wanted = service["spec"]["selector"].items()
    (chosen,) = [pod for pod in templates if wanted <= pod["metadata"]["labels"].items()]
    (port,) = service["spec"]["ports"]
    ports = [p for c in chosen["spec"]["containers"] for p in c.get("ports", [])]
    assert port["targetPort"] in [p["name"] for p in ports]
    for pod in templates:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("file", MANIFESTS, ids=name)
def test_no_service_has_the_name_of_one_that_a_controller_makes(file: Path) -> None:
    """A LeaderWorkerSet's pods find each other by a headless one of its name, made if there is
    none; KubeRay's are named after the cluster.
    """
    made = {"LeaderWorkerSet": ("",), "RayService": ("-head-svc", "-serve-svc")}
    taken = {
        document["metadata"]["name"] + ending
        for document in documents(file)
        for ending in made.get(document["kind"], ())
    }
    services = {d["metadata"]["name"] for d in documents(file) if d["kind"] == "Service"}
    assert not services & taken


@pytest.mark.parametrize("file", MANIFESTS, ids=name)
def test_no_services_address_comes_into_a_pod_as_a_flag(file: Path) -> None:
    """GLIMT_PORT=tcp://… of a service named glimt would be --port."""
    for document in documents(file):
        for _, pod in pods(document):
            assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("where", ["leader-worker-set", "replicas"])
def test_the_pods_of_a_set_reach_each_other_and_others_reach_http_only(where: str) -> None:
    found = documents(DEPLOY / f"kubernetes/{where}.yaml")
    (policy,) = [d["spec"] for d in found if d["kind"] == "NetworkPolicy"]
    (service,) = [d["spec"] for d in found if d["kind"] == "Service"]
    labels = policy["podSelector"]["matchLabels"].items()
    templates = [pod for document in found for _, pod in pods(document)]
    assert len(templates) == 2
    assert all(labels <= pod["metadata"]["labels"].items() for pod in templates)
    among, everybody = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    assert everybody == {"ports": [{"port": service["ports"][0]["targetPort"]}]}


@pytest.mark.parametrize("where", COMMANDS)
def test_commands_have_flags_that_exist_and_start_or_are_refused_for_several_gpus(
    where: str,
) -> None:
    several = any(word.startswith(("--tensor", "--data", "--nnodes")) for word in COMMANDS[where])
    for problem in refused(parsed(COMMANDS[where])):
        assert several, problem
        assert re.match(
            r"--(tensor|data)-parallel|--distributed-executor|--nnodes|--master|--headless", problem
        ), problem


def test_the_two_machines_of_a_leader_worker_set_may_work_together() -> None:
    pair = [parsed(words) for where, words in COMMANDS.items() if "leader-worker-set" in where]
    assert [settings.parallel.headless for settings in pair] == [False, True]
    for rank, settings in enumerate(pair):
        # From the environment of the container.
        parallel = replace(settings.parallel, node_rank=rank, master_token="sixteen letters!")
        assert refused(replace(settings, parallel=parallel)) == ()


def test_the_pods_of_a_set_of_replicas_bring_each_copy_once() -> None:
    """With the token from the environment of the container."""
    head, worker = (
        replace(settings.parallel, data_parallel_size=4, master_token="sixteen letters!")
        for settings in (
            parsed(words) for where, words in COMMANDS.items() if where.startswith("replicas.yaml")
        )
    )
    pods = [head, *(replace(worker, data_parallel_start_rank=index) for index in (1, 2, 3))]
    assert not [problem for pod in pods for problem in problems(pod)]
    copies = [copies_of(pod) for pod in pods]
    assert [each.role for each in copies] == ["head", "node", "node", "node"]
    assert [index for each in copies for index in each.local] == [0, 1, 2, 3]
    assert list(copies[0].far) == [1, 2, 3]
    assert len({pod.data_parallel_address for pod in pods}) == 1


def refused(settings: Settings) -> tuple[str, ...]:
    try:
        check(settings)
    except BadSettings as error:
        return error.problems
    return ()


def test_there_are_commands_for_one_gpu_and_for_several_machines() -> None:
    assert len(COMMANDS) == 8
    assert sum("--nnodes" in words for words in COMMANDS.values()) == 2
    assert sum("ray" in words for words in COMMANDS.values()) == 1


def test_what_ray_places_lacks_nothing() -> None:
    (words,) = [words for words in COMMANDS.values() if "ray" in words]
    assert refused(parsed(words)) == ()


def test_the_ray_serve_application_is_one_that_can_be_told_so() -> None:
    (document,) = [each for file in MANIFESTS for each in documents(file) if ray_serve(each)]
    (application,) = ray_serve(document)
    module, _, name = application["import_path"].partition(":")
    source = DEPLOY.parent / f"{module.replace('.', '/')}.py"
    assert f"\ndef {name}(" in source.read_text()
    arguments = arguments_of(application["args"])
    workers = document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    num_gpus = float(container["resources"]["limits"]["nvidia.com/gpu"])
    assert resources(server_settings(arguments.command))["num_gpus"] == num_gpus
    assert arguments.max_replicas == workers["maxReplicas"]


def test_probes_ask_routes_that_are_open() -> None:
    open_paths = {route.path for route in ROUTES if route.access is Access.OPEN}
    asked = {
        container[probe]["httpGet"]["path"]
        for file in MANIFESTS
        for document in documents(file)
        for _, pod in pods(document)
        for container in pod["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if probe in container
    }
    text = (DEPLOY / "Dockerfile").read_text()
    asked |= {f"/{path}" for path in re.findall(r"127\.0\.0\.1:8000/(\w+)", text)}
    assert asked == {"/readyz", "/livez"}
    assert asked <= open_paths


def test_pods_and_containers_outlive_the_servers_own_patience() -> None:
    patience_s = ServerSettings().shutdown_timeout
    for file in MANIFESTS:
        for document in documents(file):
            for path, pod in pods(document):
                assert pod["spec"]["terminationGracePeriodSeconds"] > patience_s, path
    service = yaml.safe_load(COMPOSE.read_text())["services"]["glimt"]
    assert int(service["stop_grace_period"].removesuffix("s")) > patience_s


def test_compose_mounts_files_that_exist_and_prometheus_has_the_key() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).resolve().exists(), source
            else:
                assert source in compose["volumes"]
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
    (job,) = yaml.safe_load((COMPOSE.parent / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["metrics_path"] in {route.path for route in ROUTES}
    assert job["authorization"]["credentials_file"].endswith(
        compose["services"]["prometheus"]["secrets"][0]
    )
    dashboard = json.loads((DEPLOY / "grafana/glimt.json").read_text())
    assert dashboard["title"] == "Glimt"
