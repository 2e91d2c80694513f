"""Both servers answer as torch does, speak the Open Inference Protocol, and survive whatever is sent to them."""

import json
import os
import re
import signal
import socket
import threading

import grpc
import numpy as np
import psutil
import pytest
import requests
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.deployment import export_onnx, export_openvino, litert, serve
from kd_lab.deployment.command import main
from kd_lab.deployment.grpc import grpc_stub, messages
from kd_lab.deployment.served import MAX_BYTES
from kd_lab.errors import ParameterError, StorageError
from kd_lab.formats import save_network, save_packed
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import small_student
from kd_lab.pruning import prune
from kd_lab.quantization import quantize_model, to_integer

MALFORMED = 100  # requests of each kind in a run of the tests


@pytest.fixture(scope="module")
def digits(mnist):
    return mnist.validation.images[:3]


@pytest.fixture(scope="module")
def served(student, mnist):
    integer = to_integer(quantize_model(student, mnist.train.images[:100]))
    return {"digits": small_student(8), "digits:2": student, "pruned": prune(student, 0.5), "integer": integer}


@pytest.fixture(scope="module")
def servers(served):
    with serve(served, http_port=0, grpc_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def stub(servers):
    with grpc.insecure_channel(servers.grpc) as channel:
        yield grpc_stub(channel)


def tensor(images, **changes):
    return {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.flatten().tolist(),
    } | changes


def connect(servers):
    host, port = servers.http.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def wait_until_closed(connection):
    while connection.recv(1000):
        pass


def post(servers, body, path="digits", **settings):
    content = body if isinstance(body, bytes) else json.dumps(body)
    settings = {"headers": servers.headers, "timeout": 20} | settings
    return requests.post(f"{servers.http}/v2/models/{path}/infer", data=content, **settings)


def logits(answer):
    (given,) = answer.json()["outputs"]
    return torch.tensor(given["data"]).view(given["shape"])


@pytest.mark.parametrize(
    ("path", "key"),
    [("digits", "digits:2"), ("digits/versions/1", "digits"), ("pruned", "pruned"), ("integer", "integer")],
)
def test_http_answers_as_torch_does_the_newest_version_first(path, key, servers, served, digits):
    answer = post(servers, {"id": "7", "inputs": [tensor(digits)]}, path)
    assert (answer.status_code, answer.json()["id"]) == (200, "7")
    assert torch.allclose(logits(answer), predict(served[key], digits), atol=1e-5)


def test_http_reads_and_writes_binary_tensors(servers, served, digits):
    content = digits.numpy().astype("<f4").tobytes()
    given = {key: value for key, value in tensor(digits).items() if key != "data"}
    head = json.dumps(
        {
            "inputs": [given | {"parameters": {"binary_data_size": len(content)}}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = servers.headers | {"Inference-Header-Content-Length": str(len(head))}
    answer = post(servers, head + content, headers=headers)
    size = int(answer.headers["Inference-Header-Content-Length"])
    found = np.frombuffer(answer.content[size:], "<f4").reshape(3, 10)
    assert np.allclose(found, predict(served["digits:2"], digits), atol=1e-5)
    assert json.loads(answer.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 120}


def infer_request(images, raw=True, **changes):
    kinds = messages()
    given = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
    if not raw:
        given["contents"] = {"fp32_contents": images.flatten().tolist()}
    content = {"raw_input_contents": [images.numpy().astype("<f4").tobytes()]} if raw else {}
    return kinds.ModelInferRequest(**{"model_name": "digits", "inputs": [given], **content, **changes})


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_answers_as_torch_does(raw, stub, servers, served, digits):
    answer = stub.ModelInfer(infer_request(digits, raw), metadata=servers.metadata)
    content = answer.raw_output_contents[0] if raw else answer.outputs[0].contents.fp32_contents
    found = np.frombuffer(content, "<f4") if raw else np.array(content, np.float32)
    assert list(answer.outputs[0].shape) == [3, 10]
    assert np.allclose(found.reshape(3, 10), predict(served["digits:2"], digits), atol=1e-5)


def test_both_tell_what_is_served(servers, stub):
    assert requests.get(f"{servers.http}/v2/health/live", timeout=20).json() == {"live": True}
    assert requests.get(f"{servers.http}/v2/health/ready", timeout=20).json() == {"ready": True}
    kinds = messages()
    assert stub.ServerLive(kinds.ServerLiveRequest()).live and stub.ServerReady(kinds.ServerReadyRequest()).ready
    get = lambda path: requests.get(f"{servers.http}{path}", headers=servers.headers, timeout=20).json()
    assert get("/v2")["name"] == "kd_lab"
    metadata = get("/v2/models/digits")
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    by_grpc = stub.ModelMetadata(kinds.ModelMetadataRequest(name="digits"), metadata=servers.metadata)
    assert (list(by_grpc.versions), list(by_grpc.outputs[0].shape)) == (["1", "2"], [-1, 10])
    assert {each["name"] for each in get("/kit/models")} == {"digits", "pruned", "integer"}
    assert stub.ModelReady(kinds.ModelReadyRequest(name="pruned"), metadata=servers.metadata).ready


ROWS = torch.zeros(1, 1, 28, 28)
BAD = {
    "no JSON": b"{",
    "no object": [1],
    "no inputs": {"inputs": []},
    "two inputs": {"inputs": [tensor(ROWS), tensor(ROWS)]},
    "another shape": {"inputs": [tensor(torch.zeros(1, 28, 28))]},
    "another count": {"inputs": [tensor(ROWS, shape=[2, 1, 28, 28])]},
    "a negative count": {"inputs": [tensor(ROWS, shape=[-1, 1, 28, 28])]},
    "an endless count": {"inputs": [tensor(ROWS, shape=[10**30, 1, 28, 28])]},
    "another datatype": {"inputs": [tensor(ROWS, datatype="BYTES")]},
    "another name": {"inputs": [tensor(ROWS, name="x")]},
    "words": {"inputs": [tensor(ROWS, data=["a"] * 784)]},
    "rows of several lengths": {"inputs": [tensor(ROWS, data=[[1], [1, 2]])]},
    "NaN": {"inputs": [tensor(ROWS, data=[float("nan")] * 784)]},
    "infinite": {"inputs": [tensor(ROWS, data=[1e300] * 784)]},
    "nothing": {"inputs": [tensor(ROWS, data=None)]},
    "another output": {"inputs": [tensor(ROWS)], "outputs": [{"name": "x"}]},
    "deep": b'{"inputs": ' + b"[" * 100_000,
    "parameters that are none": {"inputs": [tensor(ROWS, parameters=3)]},
}


@pytest.mark.parametrize("kind", list(BAD))
def test_http_refuses_bad_input_in_a_sentence_and_lives(kind, servers, digits):
    answer = post(servers, BAD[kind])
    assert answer.status_code == 400 and len(answer.json()["error"]) > 20
    assert post(servers, {"inputs": [tensor(digits)]}).status_code == 200


@pytest.mark.parametrize("path", ["other", "digits/versions/3", "digits/versions/x", "x" * 5000])
def test_an_unknown_model_or_version_is_not_found(path, servers, stub, digits):
    assert post(servers, {"inputs": [tensor(digits)]}, path).status_code == 404
    name, _, version = path.partition("/versions/")
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(infer_request(digits, model_name=name, model_version=version), metadata=servers.metadata)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"raw_input_contents": [b"123"]},
        {"raw_input_contents": [b"", b""]},
        {"raw_input_contents": [np.full(3 * 784, np.nan, "<f4").tobytes()]},
        {"inputs": [{"name": "images", "datatype": "INT8", "shape": [3, 1, 28, 28]}]},
        {"inputs": [{"name": "images", "datatype": "FP32", "shape": [3, 784]}]},
        {"outputs": [{"name": "x"}]},
    ],
    ids=["no input", "a part of a number", "two contents", "NaN", "datatype", "shape", "output"],
)
def test_grpc_refuses_bad_input_in_a_sentence_and_lives(changes, stub, servers, digits):
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(infer_request(digits, **changes), metadata=servers.metadata)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and len(error.value.details()) > 20
    assert stub.ModelInfer(infer_request(digits), metadata=servers.metadata).model_name == "digits"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "ä"}])
def test_another_user_of_the_machine_is_not_answered(headers, servers, stub, digits):
    sent = {name: value.encode() for name, value in headers.items()}
    assert post(servers, {"inputs": [tensor(digits)]}, headers=sent).status_code == 401
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(infer_request(digits), metadata=[("authorization", "Bearer x")][: len(headers)])
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_without_a_token_everyone_on_the_machine_is_answered(served, digits):
    with serve({"digits": served["digits:2"]}, http_port=0, grpc_port=0, token=False) as running:
        assert not running.token and post(running, {"inputs": [tensor(digits)]}).status_code == 200
    with pytest.raises(requests.ConnectionError):
        post(running, {})


def test_a_body_that_is_too_large_is_refused(servers, stub, digits):
    assert post(servers, b" " * (MAX_BYTES + 1)).status_code == 413
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(infer_request(digits, raw_input_contents=[bytes(MAX_BYTES)]), metadata=servers.metadata)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_leaves_in_the_middle_or_says_nothing_harms_nobody(servers, digits):
    silent = [connect(servers) for _ in range(20)]
    for each in silent[:10]:
        each.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{")
        each.close()
    assert post(servers, {"inputs": [tensor(digits)]}).status_code == 200
    for each in silent[10:]:
        each.close()


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
INFER = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nAuthorization: Bearer {}\r\n\r\n{{"


def test_a_client_that_hangs_is_sent_away(servers, monkeypatch):
    monkeypatch.setattr("kd_lab.deployment.http.SECONDS", 0.3)
    silent = [connect(servers) for _ in range(4)]
    for each in silent[:2]:  # which have got an answer already
        each.sendall(LIVE)
        assert each.recv(1000).startswith(b"HTTP/1.1 200 ")
    for each in silent[1:3]:
        each.sendall(INFER[:40].encode())  # half a head; the others say nothing
    for each in silent:
        wait_until_closed(each)
        each.close()


@pytest.mark.parametrize(("token", "status"), [(None, 408), ("x", 401)])
def test_a_client_that_hangs_in_a_body_is_told_and_sent_away(token, status, servers, monkeypatch):
    monkeypatch.setattr("kd_lab.deployment.http.SECONDS", 0.3)
    with connect(servers) as slow:
        slow.sendall(INFER.format(token or servers.token).encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 %d " % status)
        slow.sendall(b" ")
        wait_until_closed(slow)


def test_a_busy_port_is_said_and_the_next_one_taken(served, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with serve(served, http_port=port, grpc_port=0) as running:
            assert running.http != f"http://127.0.0.1:{port}"
            assert requests.get(f"{running.http}/v2/health/live", timeout=20).ok
    assert capsys.readouterr().out.startswith(f"Port {port} is busy, so HTTP takes ")


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x).bfloat16()


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({}, "'models' must be one network or more"),
        ({"a b": nn.Identity()}, "'models' must be by names such as 'cnn'"),
        ({"a": 3}, "must be"),
        ({"a": "other"}, "a model must be a network, its file or the name of one that ships"),
        ([nn.Identity()], "'models' must be a dict"),
        ({"a": nn.Sequential(nn.Flatten(), Rounded(784, 10))}, "'models' must be networks that take and give FP16"),
    ],
)
def test_what_can_not_be_served_is_refused(models, said):
    with pytest.raises(ParameterError, match=rf"^serve\(\): .*{said}"):
        serve(models, http_port=0, grpc_port=0)


@pytest.mark.slow
def test_files_are_served_and_damaged_ones_refused(served, student, digits, tmp_path):
    save_packed(tmp_path / "small.kdz", student)
    save_network(tmp_path / "whole.safetensors", student)
    export_onnx(served["integer"], tmp_path / "integer.onnx")
    export_openvino(student, tmp_path / "vino.xml")
    files = {path.stem: path for path in tmp_path.iterdir() if path.suffix != ".bin"}
    files["cnn"] = litert.SHIPPED / "cnn_fp32.tflite"
    models = {"cnn": load_trained("cnn")} | served
    with serve(files, http_port=0, grpc_port=0) as running:
        for name in files:
            expected = predict(models.get(name, student), digits)
            assert torch.allclose(logits(post(running, {"inputs": [tensor(digits)]}, name)), expected, atol=1e-4)
        listed = requests.get(f"{running.http}/kit/models", headers=running.headers).json()
    sizes = {name: path.stat().st_size for name, path in files.items()}
    sizes["vino"] += files["vino"].with_suffix(".bin").stat().st_size
    assert all(abs(each["bytes"] - sizes[each["name"]]) < 200 for each in listed)
    files["small"].write_bytes(files["small"].read_bytes()[:-1])
    with pytest.raises(StorageError, match="damaged"):
        serve(files, http_port=0, grpc_port=0)


@pytest.fixture
def command():
    """Give the command, and put back what listens to the signals afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield main
    for number, listens in before.items():
        signal.signal(number, listens)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(number, command, student, tmp_path, capsys):
    save_packed(tmp_path / "small.kdz", student)
    threading.Timer(0.2, os.kill, [os.getpid(), number]).start()
    assert command(["serve", f"other:2={tmp_path / 'small.kdz'}", "--http-port=0", "--grpc-port=0"]) == 0
    said = capsys.readouterr()
    assert re.sub(r": .*", "", said.out).split("\n")[:4] == ["HTTP", "gRPC", "Page", "Token"]
    assert not said.err


@pytest.mark.parametrize(
    ("models", "said"), [(["none.kdz"], "none.kdz"), (["a=cnn", "a=lenet5"], "two models are named 'a'")]
)
def test_the_command_says_what_it_can_not_serve(models, said, command, capsys):
    assert command(["serve", *models]) == 1
    found = capsys.readouterr().err
    assert found.startswith("kd-lab: ") and said in found and found.count("\n") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON | st.just("images"),
        "shape": JSON | st.just([1, 1, 28, 28]),
        "datatype": JSON | st.just("FP32"),
        "data": JSON,
        "parameters": JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": JSON | st.lists(TENSORS, max_size=2)}, optional={"outputs": JSON, "parameters": JSON, "id": JSON}
)
GRPC_TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("images") | st.text(max_size=8),
        "datatype": st.sampled_from(["FP32", "INT8", "x"]),
        "shape": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5) | st.just([1, 1, 28, 28]),
        "contents": st.fixed_dictionaries({"fp32_contents": st.lists(st.floats(width=32), max_size=9)}),
    },
)
GRPC_REQUESTS = st.fixed_dictionaries(
    {"model_name": st.sampled_from(["digits", "pruned"])},
    optional={
        "raw_input_contents": st.lists(st.binary(max_size=40), max_size=3),
        "inputs": st.lists(GRPC_TENSORS, max_size=2),
    },
)
ENDLESS = settings(
    max_examples=MALFORMED, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
def test_generated_requests_are_refused_and_the_memory_stays(servers, stub, digits):
    memory = []

    @ENDLESS
    @given(st.binary(max_size=200) | (JSON | REQUESTS).map(lambda body: json.dumps(body).encode()))
    def ask_http(body):
        assert 400 <= post(servers, body).status_code < 500

    @ENDLESS
    @given(GRPC_REQUESTS)
    def ask_grpc(fields):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(messages().ModelInferRequest(**fields), metadata=servers.metadata)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    for _ in range(2):
        ask_http()
        ask_grpc()
        memory.append(psutil.Process(os.getpid()).memory_info().rss)
    assert memory[1] - memory[0] < 20_000_000, "the second round takes no more memory"
    assert post(servers, {"inputs": [tensor(digits)]}).status_code == 200
