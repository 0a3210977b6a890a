"""The server behind TLS, with a certificate of its own making."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx2 as httpx
import pytest
from serve_process import serving
from served_nets import SIZE

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
ASK = {"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}]}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    written = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *written], check=True, capture_output=True)
    return certificate, key


def test_answers_come_over_https_with_the_token_and_to_those_who_trust_it(
    program: Path, files: tuple[Path, Path]
) -> None:
    certificate, key = files
    words = ("--size", SIZE, "--certificate", certificate, "--key", key)
    trust = ssl.create_default_context(cafile=certificate)
    with serving(program, *words, QKERNELS_TOKEN="secret") as server:
        assert server.url.startswith("https://")
        with httpx.Client(base_url=server.url, verify=trust, timeout=20) as client:
            assert client.get("/v2/health/ready").status_code == 200
            assert client.post("/v2/models/small/infer", json=ASK).status_code == 401
            client.headers["authorization"] = "Bearer secret"
            answer = client.post("/v2/models/small/infer", json=ASK).raise_for_status()
            assert len(answer.json()["outputs"][0]["data"]) == 5
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/v2/health/live", verify=ssl.create_default_context())
        with pytest.raises(httpx.HTTPError):  # in the clear
            httpx.get(server.url.replace("https", "http") + "/v2/health/live")


def test_a_key_that_is_missing_or_another_ones_is_one_sentence(
    program: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = files
    (tmp_path / "key.pem").write_text("no key")
    for words in (["--certificate", certificate, "--key", tmp_path / "key.pem"],
                  ["--certificate", tmp_path / "none.pem", "--key", key]):  # fmt: skip
        with pytest.raises(AssertionError) as ended, serving(program, "--size", SIZE, *words):
            pass
        lines = ended.value.args[0]
        assert [line["message"].startswith("qkernels: ") for line in lines][-1]
