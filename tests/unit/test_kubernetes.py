"""The manifests for Kubernetes: what the schemas take, and what in them names something else.

No cluster is needed, and none is asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server import config
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.probe import PLUGIN
from tests.conftest import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
DOCUMENTS = list(yaml.safe_load_all((FOLDER / "orchestrator.yaml").read_text("utf-8")))
ENGINES = yaml.safe_load((FOLDER / "engines.yaml").read_text("utf-8"))


def found(kind: str) -> dict[str, Any]:
    (document,) = [each for each in DOCUMENTS if each["kind"] == kind]
    return document


POD = found("Deployment")["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each["kind"])
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_schemas_take_it(document: dict[str, Any], version: str):
    kubernetes_validate.validate(document, version, strict=True)


def test_all_of_it_is_about_the_same_pods():
    labels = found("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert found("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert found("Service")["spec"]["selector"] == labels
    assert found("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    (spread,) = POD["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    target = found("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == found("Deployment")["metadata"]["name"]
    assert "replicas" not in found("Deployment")["spec"], "they would fight about it"


def test_a_pod_may_be_lost_or_replaced_without_a_gap():
    scaled = found("HorizontalPodAutoscaler")["spec"]
    assert scaled["minReplicas"] > found("PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert found("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pause = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"]
    drained = pause + config.ServerSettings().drain_s
    assert POD["terminationGracePeriodSeconds"] > drained + 10


def test_the_server_runs_as_its_image_says_and_can_write_to_its_cache_and_tmp_alone():
    dockerfile = (ROOT / "docker" / "Dockerfile.orchestrator").read_text()
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.M).groups()  # type: ignore[union-attr]
    assert POD["securityContext"]["runAsUser"] == int(user)
    assert POD["securityContext"]["fsGroup"] == int(group)
    assert SERVER["securityContext"]["readOnlyRootFilesystem"] is True
    assert SERVER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = [each["mountPath"] for each in SERVER["volumeMounts"] if not each.get("readOnly")]
    assert writable == ["/cache", "/tmp"]
    assert {each["name"] for each in SERVER["volumeMounts"]} == {
        each["name"] for each in POD["volumes"]
    }


def test_probes_ask_what_they_should():
    """A server whose engines are away isn't started anew for it: it waits for them."""
    assert {name: SERVER[name]["httpGet"]["path"] for name in SERVER if "Probe" in name} == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    (port,) = SERVER["ports"]
    assert port["containerPort"] == 8000
    (service,) = found("Service")["spec"]["ports"]
    assert service["targetPort"] == port["name"]


def test_no_secret_is_in_a_file_and_each_is_taken_from_one():
    secrets = next(each["secret"] for each in POD["volumes"] if "secret" in each)
    (mount,) = [each for each in SERVER["volumeMounts"] if each["name"] == "secrets"]
    there = {f"{mount['mountPath']}/{each['path']}" for each in secrets["items"]}
    text = found("ConfigMap")["data"]["config.yaml"]
    assert set(re.findall(r"/run/secrets/\S+", text)) == there
    assert re.search(r"key: ", text) is None
    assert all(each["kind"] != "Secret" for each in DOCUMENTS)
    spec = ENGINES["servingEngineSpec"]
    assert spec["vllmApiKey"]["secretName"] == secrets["secretName"]
    assert spec["vllmApiKey"]["secretKey"] in [each["key"] for each in secrets["items"]]


def test_the_configuration_loads_and_names_the_engines_that_the_chart_starts(tmp_path: Path):
    (tmp_path / "engine-key").write_text("secret\n")
    (tmp_path / "api-keys").write_text("sk-1\n")
    text = found("ConfigMap")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text.replace("/run/secrets/nudge", str(tmp_path)))
    settings = config.load(tmp_path / "config.yaml")
    specs = {each["modelURL"]: each for each in ENGINES["servingEngineSpec"]["modelSpec"]}
    assert {engine.model for engine in settings.engines.values()} == specs.keys()
    for engine in settings.engines.values():
        assert isinstance(engine, RemoteSettings)
        assert engine.all_headers() == {"Authorization": "Bearer secret"}
        spec = specs[engine.model]
        assert spec["vllmConfig"]["maxModelLen"] == engine.max_model_len
        assert spec["vllmConfig"]["enablePrefixCaching"] is True
        assert engine.tokenizer == engine.model
        assert ENGINES["routerSpec"]["sessionKey"].lower() == engine.session_header.lower()


def test_the_stop_processor_is_where_the_engines_look_for_it():
    for spec in ENGINES["servingEngineSpec"]["modelSpec"]:
        assert " ".join(spec["vllmConfig"]["extraArgs"]) == PLUGIN
        env = {each["name"]: each["value"] for each in spec["env"]}
        (mount,) = spec["extraVolumeMounts"]
        assert mount["mountPath"] == env["PYTHONPATH"]
        (volume,) = spec["extraVolumes"]
        (given,) = spec["initContainer"]["extraVolumeMounts"]
        assert given["name"] == mount["name"] == volume["name"]
        assert f"'{given['mountPath']}/server'" in spec["initContainer"]["args"][0]
        assert spec["initContainer"]["image"] == SERVER["image"]
