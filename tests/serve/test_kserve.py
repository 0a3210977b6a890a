"""The KServe manifest: its fields by KServe's own models, its command and probes by running them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from serve_process import serving
from stub_packages import part
from tritonclient import http as triton

from qkernels.program import Program

MANIFEST = Path(__file__).parents[2] / "examples/kserve.yaml"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return {part["kind"]: part for part in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def kserve_models() -> ModuleType:
    return part("kserve.models")


def check(value: Any, kind: str, models: ModuleType, where: str = "") -> None:
    """``value`` is a ``kind`` of KServe: no field that it has not, none missing that it needs, each of its type.

    Kubernetes's own kinds (V1Container) are not looked into.
    """
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), where
        for i, one in enumerate(value):
            check(one, listed[1], models, f"{where}[{i}]")
    elif (model := getattr(models, kind, None)) is not None:
        fields = {name: field for field, name in model.attribute_map.items()}
        model(
            **{fields[name]: one for name, one in value.items()}
        )  # raises for one that is missing
        for name, one in value.items():
            check(one, model.openapi_types[fields[name]], models, f"{where}.{name}")
    elif kind == "dict(str, str)":
        assert all(isinstance(one, str) for one in [*value, *value.values()]), where
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, where
    else:
        assert kind.startswith("V1") and isinstance(value, dict), f"{where}: {kind}"


def test_the_fields_are_those_of_kserve(
    manifest: dict[str, Any], kserve_models: ModuleType
) -> None:
    check(manifest["ServingRuntime"], "V1alpha1ServingRuntime", kserve_models)
    check(manifest["InferenceService"], "V1beta1InferenceService", kserve_models)
    runtime = manifest["ServingRuntime"]["spec"]
    model = manifest["InferenceService"]["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in [f["name"] for f in runtime["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["protocolVersions"]


def test_the_check_finds_a_field_that_kserve_has_not(kserve_models: ModuleType) -> None:
    with pytest.raises(KeyError, match="storageURI"):
        check({"storageURI": "s3://models"}, "V1beta1ModelSpec", kserve_models)
    with pytest.raises(AssertionError, match="modelFormat"):
        check({"modelFormat": {"name": 1}}, "V1beta1ModelSpec", kserve_models)
    with pytest.raises(ValueError, match="predictor"):
        check({}, "V1beta1InferenceServiceSpec", kserve_models)


def test_the_pod_has_whole_cores_which_the_server_takes_as_threads(
    manifest: dict[str, Any],
) -> None:
    (container,) = manifest["ServingRuntime"]["spec"]["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests == limits and limits["cpu"].isdigit()
    assert not [word for word in container["args"] if "--workers" in word or "--threads" in word]


def test_its_command_serves_the_model_where_kserve_asks(
    manifest: dict[str, Any], program: Path
) -> None:
    (container,) = manifest["ServingRuntime"]["spec"]["containers"]
    service = manifest["InferenceService"]
    name = service["metadata"]["name"]
    assert container["command"] == ["python", "-m", "qkernels.serve"]
    given = [*container["args"], *service["spec"]["predictor"]["model"]["args"]]
    assert given[0] == "/mnt/models/model.qkp" and given[-1] == "--size=1,3,32,32"
    words = [str(program), *given[1:-1], "--size=1,3,8,8"]
    ports = {port["containerPort"] for port in container["ports"]}
    assert f"--port={ports.pop()}" in words and not ports
    with serving(*(word.replace("{{.Name}}", name) for word in words)) as server:
        with server.client() as client:
            for probe in ("readinessProbe", "livenessProbe"):
                asked = container[probe]["httpGet"]
                assert f"--port={asked['port']}" in words
                assert client.get(asked["path"]).status_code == 200
            annotations = manifest["ServingRuntime"]["spec"]["annotations"]
            assert "queue" in client.get(annotations["prometheus.kserve.io/path"]).text
        x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
        image = triton.InferInput("input", list(x.shape), "FP32")
        image.set_data_from_numpy(x)
        answer = triton.InferenceServerClient(server.address).infer(name, [image])
        assert np.array_equal(answer.as_numpy("output"), Program.load(program)(x))
