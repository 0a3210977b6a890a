"""Nothing that a request holds is used as a path, unpickled or executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from encoded_pictures import encoded, quadrants

# What the interpreter's audit events say of files, imports and unpickling while requests are answered.
SCRIPT = """
import json, pickle, random, sys, time
from pathlib import Path
from starlette.testclient import TestClient
from qkernels.serve import Settings, application

program, picture = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
class Mark:
    def __reduce__(self):
        return print, ("unpickled",)
good = {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}
bodies = [picture, json.dumps({"inputs": [good]}).encode(), pickle.dumps(Mark()), str(program).encode()]
for path in ("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", str(program), "os.system"):
    bodies += [json.dumps({"inputs": [good | {key: path}]}).encode() for key in good]
    bodies += [json.dumps({"inputs": [good], "id": path, "outputs": [{"name": path}]}).encode(), path.encode()]
noise = random.Random(0)
for _ in range(60):
    changed = bytearray(picture)
    changed[noise.randrange(len(picture))] = noise.randrange(256)
    bodies.append(bytes(changed))
names = ["m", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "m%00", str(program).replace("/", "%2f"), "~"]

def ask(client):
    for body in bodies:
        client.post("/classify", content=body)
        client.post("/v2/models/m/infer", content=body)
    for name in names:
        for address in (f"/{name}", f"/v2/models/{name}", f"/v2/models/m/versions/{name}/ready", f"/classify/{name}"):
            client.get(address)
            client.post(address, content=picture)
    for address in ("/", "/classify"):
        client.get(address)

with TestClient(application(Settings(program, "m", watch_every=1000))) as client:
    while client.get("/v2/health/ready").status_code != 200:
        time.sleep(0.01)
    assert client.post("/classify", content=picture).status_code == 200
    ask(client)  # whatever is imported at first use is by now
    seen, watching = [], True
    def hook(event, arguments):
        if watching and event.partition(".")[0] in WATCHED:
            seen.append([event, str(arguments[0])])
    sys.addaudithook(hook)
    ask(client)
    open(sys.argv[2]).close()  # that is seen
    watching = False
    print(json.dumps(seen))
"""
WATCHED = {"open", "os", "pickle", "import", "exec", "compile", "subprocess", "glob", "tempfile", "ctypes"}  # fmt: skip


def test_no_request_opens_a_file_or_unpickles(tmp_path: Path, classifier: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded(quadrants()))
    script = f"WATCHED = {WATCHED}\n{SCRIPT}"
    command = [sys.executable, "-c", script, str(classifier), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["open", str(picture)]]
