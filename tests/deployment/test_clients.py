"""NVIDIA's clients get torch's answers from both servers, and so does gRPC with an older protobuf.

`make triton` makes their environment, .triton, which `make test-slow` needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_lab.deployment import serve
from kd_lab.networks.predictions import predict

ROOT = Path(__file__).resolve().parents[2]
OLD_PROTOBUF = """
import google.protobuf, grpc, torch
from kd_lab.deployment import serve
from kd_lab.deployment.grpc import grpc_stub, messages
from kd_lab.networks.zoo import small_student
kinds = messages()
with serve({"small": small_student(8)}, http_port=0, grpc_port=0) as running, grpc.insecure_channel(running.grpc) as to:
    given = {"name": "images", "datatype": "FP32", "shape": [1, 1, 28, 28], "contents": {"fp32_contents": [0.5] * 784}}
    request = kinds.ModelInferRequest(model_name="small", inputs=[given])
    answer = grpc_stub(to).ModelInfer(request, metadata=running.metadata)
    print(google.protobuf.__version__, len(answer.outputs[0].contents.fp32_contents))
"""


def output_of(*command, **variables):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_tritonclient_gets_the_answers_of_torch(student, mnist, tmp_path):
    images = mnist.validation.images[:3]
    np.save(tmp_path / "images.npy", images.numpy())
    script = ROOT / "tests" / "deployment" / "triton_client.py"
    with serve({"digits": student}, http_port=0, grpc_port=0) as running:
        asked = running.http.removeprefix("http://"), running.grpc, running.token, tmp_path / "images.npy"
        found = json.loads(output_of(ROOT / ".triton" / "bin" / "python", script, *asked))
    for logits, _ in found.values():
        assert np.allclose(logits, np.stack([predict(student, images)] * 2), atol=1e-5)
    assert found["json"][1] == found["binary"][1] == ["404", "401"]
    assert found["grpc"][1] == ["StatusCode.NOT_FOUND", "StatusCode.UNAUTHENTICATED"]


@pytest.mark.slow
def test_grpc_runs_with_the_oldest_protobuf_that_is_allowed():
    path = os.pathsep.join([str(ROOT / ".triton" / "protobuf5"), str(ROOT)])
    assert output_of(sys.executable, "-c", OLD_PROTOBUF, PYTHONPATH=path).split() == ["5.29.5", "10"]
