"""Other clients get torch's answers from both servers: NVIDIA's, and requests made from the description of the API.

They are in an environment of their own, .triton, which `make triton` makes.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import google.protobuf
import grpc
import numpy as np
import pytest

from kd_lab.deployment import serve
from kd_lab.deployment.grpc import grpc_stub, messages
from kd_lab.formats import save_packed
from kd_lab.networks.predictions import predict

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRITON = ROOT / ".triton"
CHECKS = "not_a_server_error,status_code_conformance,negative_data_rejection,unsupported_method,ignored_auth"
COMMAND = """
import runpy, google.protobuf
print(google.protobuf.__version__)
runpy.run_module("kd_lab.deployment.command", run_name="__main__")
"""


@pytest.fixture(scope="module", autouse=True)
def environment():
    if not (TRITON / "installed").exists():
        pytest.fail("Other clients are not installed here. Run: make triton")


@pytest.fixture(scope="module")
def servers(student):
    with serve({"digits": student}, http_port=0, grpc_port=0) as running:
        yield running


def output_of(program, *arguments, **settings):
    command = [TRITON / "bin" / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tritonclient_gets_the_answers_of_torch(servers, student, mnist, tmp_path):
    images = mnist.validation.images[:3]
    np.save(tmp_path / "images.npy", images.numpy())
    asked = servers.http.removeprefix("http://"), servers.grpc, servers.token, tmp_path / "images.npy"
    found = json.loads(output_of("python", HERE / "triton_client.py", *asked))
    for logits, _ in found.values():
        assert np.allclose(logits, np.stack([predict(student, images)] * 2), atol=1e-5)
    assert found["json"][1] == found["binary"][1] == ["404", "401"]
    assert found["grpc"][1] == ["StatusCode.NOT_FOUND", "StatusCode.UNAUTHENTICATED"]


def test_every_request_made_from_the_description_is_answered_as_described(servers, tmp_path):
    headers = f"Authorization: {servers.headers['Authorization']}"
    settings = "--phases=coverage", "--exclude-path-regex=versions", f"--checks={CHECKS}", "--generation-database=none"
    command = "--config-file", HERE / "schemathesis.toml", "run", f"{servers.http}/openapi.json", "-H", headers
    assert " passed" in output_of("schemathesis", *command, *settings, cwd=tmp_path)


def test_the_command_runs_with_the_oldest_protobuf_and_answers_the_newest(student, mnist, tmp_path):
    assert int(google.protobuf.__version__.split(".")[0]) >= 7  # here, and in all other tests of gRPC
    save_packed(tmp_path / "digits.kdz", student)
    images = mnist.validation.images[:1]
    given = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
    given["contents"] = {"fp32_contents": images.flatten().tolist()}
    command = [sys.executable, "-c", COMMAND, "serve", tmp_path / "digits.kdz", "--http-port=0", "--grpc-port=0"]
    variables = os.environ | {"PYTHONPATH": f"{TRITON / 'protobuf5'}{os.pathsep}{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--no-token"], env=variables, **pipes)
    try:
        version, _http, address = (process.stdout.readline().split()[-1] for _ in range(3))
        with grpc.insecure_channel(address) as channel:
            request = messages().ModelInferRequest(model_name="digits", inputs=[given])
            answer = grpc_stub(channel).ModelInfer(request, timeout=20)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0 and process.stderr.read() == ""
    finally:
        process.kill()
    assert version == "5.29.5"
    assert np.allclose(answer.outputs[0].contents.fp32_contents, predict(student, images).flatten(), atol=1e-5)
