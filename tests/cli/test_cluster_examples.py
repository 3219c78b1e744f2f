"""The rendered examples for clusters: sound, whole, and with commands that are still legal."""

import re
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.helpers.survives import record

DOCS = Path(__file__).resolve().parents[2] / "docs" / "clusters"
OBJECTS = list(yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text()))
SCRIPT = (DOCS / "slurm.sh").read_text()


def of_kind(kind: str) -> dict[str, dict]:
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


def pods() -> list[dict]:
    """The pods of the Deployments and of the Job."""
    return [one["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for one in of_kind(kind).values()]


def worker() -> dict:
    (container,) = of_kind("Job")["sweep-mine"]["spec"]["template"]["spec"]["containers"]
    return container


def env_of(container: dict) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


def test_every_object_fits_the_schema_of_kubernetes() -> None:
    for one in OBJECTS:
        kubernetes_validate.validate(one, "1.34", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**OBJECTS[-1], "spec": {"completion": 4}}, "1.34", strict=True)
    record("schedulers", "the example for Kubernetes against the schemas of its API", f"{len(OBJECTS)} objects")


def test_what_an_object_names_is_there() -> None:
    assert {one["metadata"]["namespace"] for one in OBJECTS} == {"foura"}
    claims = set(of_kind("PersistentVolumeClaim"))
    for pod in pods():
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert set(volumes.values()) <= claims
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    for name, service in of_kind("Service").items():
        template = of_kind("Deployment")[name]["spec"]["template"]
        assert template["metadata"]["labels"] == service["spec"]["selector"]
        ports = [port["containerPort"] for port in template["spec"]["containers"][0]["ports"]]
        assert ports == [port["port"] for port in service["spec"]["ports"]]
    for deployment in of_kind("Deployment").values():
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_password_is_in_the_secret_alone() -> None:
    for deployment in of_kind("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (password,) = [one for one in container["env"] if one["name"] == "POSTGRES_PASSWORD"]
        assert password["valueFrom"]["secretKeyRef"] == {"name": "mlflow-database", "key": "password"}
    assert "$(POSTGRES_PASSWORD)@postgres:5432/mlflow" in (DOCS / "kubernetes.yaml").read_text()


def test_the_server_has_a_login_and_the_workers_have_it_from_the_secret() -> None:
    (server,) = of_kind("Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]
    assert "--app-name=basic-auth" in server["args"]
    for container, name in ((server, "MLFLOW_AUTH_ADMIN_PASSWORD"), (worker(), "MLFLOW_TRACKING_PASSWORD")):
        (password,) = [one for one in container["env"] if one["name"] == name]
        assert password["valueFrom"]["secretKeyRef"] == {"name": "mlflow-login", "key": "password"}
    assert env_of(worker())["MLFLOW_TRACKING_USERNAME"] == "admin"  # MLflow's name for its first user
    text = (DOCS / "kubernetes.yaml").read_text()
    assert "create secret generic mlflow-login" in text and "--from-literal=cookies=" in text


def test_only_those_who_need_it_reach_the_server_and_the_database() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["nothing-in"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name, caller in (("postgres", "mlflow"), ("mlflow", "sweep-mine")):
        spec, service = policies[name]["spec"], of_kind("Service")[name]["spec"]
        assert spec["podSelector"]["matchLabels"] == service["selector"]
        (rule,) = spec["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"app": caller}}}]
        assert [port["port"] for port in rule["ports"]] == [port["port"] for port in service["ports"]]
    assert of_kind("Job")["sweep-mine"]["spec"]["template"]["metadata"]["labels"] == {"app": "sweep-mine"}


def test_the_workers_share_one_store_and_one_folder_and_restart() -> None:
    job = of_kind("Job")["sweep-mine"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] > 1
    assert job["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert of_kind("PersistentVolumeClaim")["outputs"]["spec"]["accessModes"] == ["ReadWriteMany"]
    env, (mount,) = env_of(worker()), worker()["volumeMounts"]
    assert f"outputs={mount['mountPath']}" in worker()["args"]
    (port,) = of_kind("Service")["mlflow"]["spec"]["ports"]
    assert env["MLFLOW_TRACKING_URI"] == f"http://mlflow:{port['port']}"
    (server,) = of_kind("Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]
    (hosts,) = [one for one in server["args"] if one.startswith("--allowed-hosts=")]
    assert env["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts.partition("=")[2].split(",")
    assert env["OMP_NUM_THREADS"] == worker()["resources"]["limits"]["cpu"] and env["HF_HUB_OFFLINE"] == "1"


def test_only_the_image_and_the_storage_classes_are_to_be_replaced() -> None:
    text = (DOCS / "kubernetes.yaml").read_text()
    top = text.partition("apiVersion")[0]
    images = {container["image"] for pod in pods() for container in pod["containers"]} - {"postgres:17"}
    classes = {claim["spec"]["storageClassName"] for claim in of_kind("PersistentVolumeClaim").values()}
    assert len(images) == 1 and all(name in top for name in images | classes)
    assert not re.search(r"\{\{|<[A-Z_]+>|TODO", text)
    assert images.pop() in (DOCS / "Dockerfile").read_text()


def test_the_commands_of_the_examples_are_legal_and_the_same(train) -> None:
    assert worker()["command"] == ["python", "train.py", "-m"]
    told = [one for one in worker()["args"] if not one.startswith("outputs=")]
    command = re.search(r"^python train\.py -m (.*) &$", SCRIPT, flags=re.MULTILINE)
    assert command is not None and shlex.split(command.group(1)) == told
    planned = train("-m", *told, "plan=true")
    assert planned.code == 0
    assert "20 runs, 0 done, 20 to run" in planned.out


def test_the_slurm_script_is_bash_and_says_what_slurm_has_to_know() -> None:
    subprocess.run(["bash", "-n", str(DOCS / "slurm.sh")], check=True)
    told = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT, flags=re.MULTILINE))
    assert {"array", "requeue", "signal", "time", "partition"} <= set(told)
    assert told["signal"].startswith("B:TERM@")
