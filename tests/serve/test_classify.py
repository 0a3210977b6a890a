"""From the main job's student to an answer over HTTP."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from encoded_pictures import encoded, frames, png, quadrants
from PIL import Image
from serve_process import Served, serving

from qkernels import cli, load
from qkernels import data as datasets
from qkernels.program import Program
from qkernels.quantization import read_metadata

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(student: Path) -> Iterator[Served]:
    with serving(student / "student.qkp", "--max-body", 0.1) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def digits(count: int) -> tuple[list[bytes], torch.Tensor, list[int]]:
    """Test images as PNG, as a model's batch, and their labels."""
    data = datasets.load("digits")
    (batch, labels), *_ = data.batches("test", count)
    raw = data.test.images[torch.arange(count)]
    return [encoded(Image.fromarray(image[0].numpy())) for image in raw], batch, labels.tolist()


@pytest.mark.parametrize("file", ["student.qkp", "int8/percentile.safetensors"])
def test_the_student_of_the_pipeline_classifies_pictures(student: Path, file: str) -> None:
    bodies, batch, labels = digits(40)
    with torch.inference_mode():
        shares = load(student / "int8/percentile.safetensors")(batch).double().softmax(1)
    with serving(student / file) as server, server.client() as client:
        answers = [client.post("/classify", content=body).json() for body in bodies]
        (version,) = client.get(f"/v2/models/{Path(file).stem}").json()["versions"]
    for answer, share in zip(answers, shares, strict=True):
        assert answer["label"] == str(int(share.argmax())) == answer["top"][0]["label"]
        best = share.sort(descending=True).values[:5].tolist()
        assert [row["probability"] for row in answer["top"]] == pytest.approx(best)
        assert answer["probability"] == pytest.approx(best[0])
        assert answer["milliseconds"].keys() == {"decode", "queue", "compute"}
        assert all(value >= 0 for value in answer["milliseconds"].values())
        assert answer["model_version"] == version
    right = sum(
        answer["label"] == str(label) for answer, label in zip(answers, labels, strict=True)
    )
    assert right > len(labels) / 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_sends_the_picture_of_the_readme_and_gets_its_label(
    server: Served, student: Path
) -> None:
    bodies, batch, labels = digits(10)
    with Image.open(ROOT / "docs/digit.png") as sent, Image.open(io.BytesIO(bodies[9])) as seven:
        assert sent.tobytes() == seven.tobytes() and labels[9] == 7
    command = ["curl", "-s", "--data-binary", "@docs/digit.png", f"{server.url}/classify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=20)
    want = Program.load(student / "student.qkp")(batch.numpy())[9].argmax()
    assert json.loads(done.stdout)["label"] == str(want)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_pictures_need_no_torch_in_the_process(server: Served, client: httpx.Client) -> None:
    assert client.post("/classify", content=digits(1)[0][0]).status_code == 200
    maps = Path(f"/proc/{server.child}/maps").read_text()
    assert "qkernels/_core" in maps and "libtorch" not in maps


def test_a_client_can_ask_what_is_taken(client: httpx.Client) -> None:
    assert client.get("/classify").json() | {"model_version": ""} == {
        "model_name": "student",
        "model_version": "",
        "classes": list("0123456789"),
        "size": [8, 8],
        "max_pixels": 25_000_000,
        "max_bytes": 100_000,
    }


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 415, "no PNG, JPEG or WebP"),
        (encoded(quadrants(), "GIF"), 415, "no PNG, JPEG or WebP"),
        (encoded(quadrants())[:60], 400, "damaged"),
        (frames("PNG"), 400, "animated"),
        (png(100_000, 100_000, 1, 0, b""), 413, "25,000,000 pixels"),
        (bytes(100_001), 413, "larger than 100000 bytes"),
    ],
)
def test_a_refusal_is_an_error_in_json_and_is_counted(
    client: httpx.Client, body: bytes, status: int, sentence: str
) -> None:
    counter = f'qkernels_requests_total{{model="student",status="{status}"}} '

    def count() -> float:
        text = client.get("/metrics").text
        return float(text.partition(counter)[2].partition("\n")[0] or 0)

    before = count()
    answer = client.post("/classify", content=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and sentence in answer.json()["error"]
    assert count() == before + 1


def test_a_model_that_does_not_say_how_answers_so(served: Served) -> None:
    with served.client() as client:
        for answer in (client.get("/classify"), client.post("/classify", content=b"")):
            assert answer.status_code == 404
            assert "the model's file has no image_input" in answer.json()["error"]
        assert client.get("/").status_code == 200
        assert client.delete("/classify").status_code == 405


def test_a_picture_that_waits_too_long_is_told_so_and_leaves_the_queue(classifier: Path) -> None:
    words = ("--max-delay", 5000, "--timeout", 0.3)
    with serving(classifier, *words) as server, server.client() as client:
        answer = client.post("/classify", content=encoded(quadrants()))
        assert answer.status_code == 504 and "no answer within 0.3 s" in answer.json()["error"]
        assert 'qkernels_queue_rows{model="classifier"} 0.0' in client.get("/metrics").text


def test_the_page_is_open_and_the_route_asks_for_the_token(student: Path) -> None:
    (body,), *_ = digits(1)
    program = student / "student.qkp"
    with serving(program, QKERNELS_TOKEN="secret") as server, server.client() as client:
        page = client.get("/")
        assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]  # fmt: skip
        assert client.get("/classify").status_code == 401
        assert client.post("/classify", content=body).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert client.post("/classify", content=body).status_code == 200


def test_compiling_a_checkpoint_keeps_what_it_says_of_pictures(
    student: Path, tmp_path: Path
) -> None:
    checkpoint, out = student / "int8/percentile.safetensors", tmp_path / "again.qkp"
    with pytest.raises(SystemExit) as ended:
        cli.main(["compile", str(checkpoint), str(out), "--size", "1,1,8,8"])
    assert not ended.value.code
    assert Program.load(out).extra == read_metadata(checkpoint)["extra"]
    assert out.read_bytes() == (student / "student.qkp").read_bytes()
