"""Run one network outside PyTorch: in three runtimes, in C, in a browser, and behind two servers.

It is `cnn` on the 10,000 test digits, on one thread, with times in turn with eager torch; the page has the `lenet300`
of lesson 11. The servers run in this process, their clients in others.
"""

import base64
import json
import multiprocessing
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import fastapi
import grpc
import requests
import torch
import uvicorn
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks._lab import browser
from benchmarks._load import throughput
from kd_lab.checkpoints import load_trained
from kd_lab.cost import file_bytes, latency
from kd_lab.data import Mnist, load_mnist
from kd_lab.deployment import (
    OnnxModel,
    OpenvinoModel,
    Servers,
    c_bytes,
    compile_c,
    export_c,
    export_onnx,
    export_openvino,
    export_page,
    load_litert,
    serve,
)
from kd_lab.deployment.c_source import pixels_of
from kd_lab.deployment.grpc import grpc_stub, messages
from kd_lab.evaluation import accuracy, predict_classes
from kd_lab.formats import load_packed
from kd_lab.networks.predictions import predict
from kd_lab.quantization import quantize_model, to_integer
from kd_lab.results import RESULTS, load_results

CALIBRATION_IMAGES = 300  # of the training part
ROUNDS = 5  # of times, in turn with torch's
REQUESTS = 500  # of one digit each, one after another
MICROCONTROLLER = "arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb"  # for which C is measured
CLIENTS, SECONDS, LOAD_ROUNDS = 32, 10, 3  # at the same time, thirty seconds in all
SELF_TEST = "text => selfTest(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)))"


def run() -> dict[str, float]:
    """Print the tables and return the figures."""
    data, model = load_mnist(), load_trained("cnn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = servers(model, data.test.images[:1])  # first: the other runtimes would share the servers' process
        table = runtimes(model, data, folder)
        others = c_program(model, data, folder) | page(data, folder) | served
    print(tabulate(others.items(), floatfmt=".4g"))
    return {f"deployment.{name}": value for name, value in (table | others).items()}


def runtimes(model: nn.Module, data: Mnist, folder: Path) -> dict[str, float]:
    """Return what each runtime answers, and its times in turn with torch's."""
    deployed = {"torch": model, **export(model, data.train.images[:CALIBRATION_IMAGES], folder)}
    expected = predict(model, data.test.images)
    rows = {name: read(each, expected, data) for name, each in deployed.items()}
    times = [{name: milliseconds(each) for name, each in deployed.items()} for _ in range(ROUNDS)]
    for name, row in rows.items():
        for key in ("ms_b1", "ms_b256"):
            row[key] = median(each[name][key] for each in times)
            row[key.replace("ms", "times_faster")] = median(each["torch"][key] / each[name][key] for each in times)
    print(tabulate([[name, *row.values()] for name, row in rows.items()], ["runtime", *rows["torch"]], floatfmt=".4g"))
    return {f"{name}.{key}": value for name, row in rows.items() for key, value in row.items()}


def export(model: nn.Module, calibration: Tensor, folder: Path) -> dict[str, nn.Module]:
    """Return the network in every runtime, in fp32 and in int8; LiteRT's files ship, as their converter does not."""
    for name, images in (("fp32", None), ("int8", calibration)):
        export_onnx(model, folder / f"{name}.onnx", calibration=images)
        export_openvino(model, folder / f"{name}.xml", calibration=images)
    return {
        "onnxruntime": OnnxModel(folder / "fp32.onnx"),
        "onnxruntime_int8": OnnxModel(folder / "int8.onnx"),
        "openvino": OpenvinoModel(folder / "fp32.xml"),
        "openvino_int8": OpenvinoModel(folder / "int8.xml"),
        "litert": load_litert("cnn_fp32"),
        "litert_dynamic_int8": load_litert("cnn_dynamic_int8"),
        "litert_static_int8": load_litert("cnn_static_int8"),
    }


def read(deployed: nn.Module, expected: Tensor, data: Mnist) -> dict[str, float]:
    """Return how a runtime's answers to the test digits compare with torch's, and its bytes."""
    found = predict(deployed, data.test.images)
    return {
        "argmax_equal": int((found.argmax(1) == expected.argmax(1)).sum()),
        "max_abs_diff": float((found - expected).abs().max()),
        "accuracy": accuracy(deployed, data.test).value,
        "bytes": file_bytes(deployed),
    }


def milliseconds(model: nn.Module) -> dict[str, float]:
    """Return what a batch of 1 and one of 256 take."""
    return {"ms_b1": 1000 * latency(model, 1), "ms_b256": 1000 * latency(model, 256)}


def c_program(model: nn.Module, data: Mnist, folder: Path) -> dict[str, float]:
    """Return how many answers of a C program differ from the same integers in torch, and its bytes."""
    integer = to_integer(quantize_model(model, data.train.images[:CALIBRATION_IMAGES]))
    export_c(integer, folder / "cnn.h")
    compile_c(folder / "cnn.h", folder / "cnn")
    (folder / "digits").write_bytes(pixels_of(data.test.images).numpy().tobytes())
    answers = subprocess.run([folder / "cnn", folder / "digits"], capture_output=True, check=True, text=True).stdout
    differing = (torch.tensor([*map(int, answers.split())]) != predict_classes(integer, data.test.images)).sum()
    flash, ram = c_bytes(folder / "cnn.h", *MICROCONTROLLER)
    return {"c.differing": int(differing), "c.flash_bytes": flash, "c.ram_bytes": ram}


def page(data: Mnist, folder: Path) -> dict[str, float]:
    """Return the bytes of a page to take home, and how many of its answers in a browser are not torch's."""
    files = load_results("deep_compression").part("lenet300_taught_1_64", "files")
    model = load_packed(RESULTS / "deep_compression" / f"{files}_0.kdz")
    export_page(model, folder / "page.html")
    with browser() as opened:
        opened.goto((folder / "page.html").as_uri())
        found = opened.evaluate(SELF_TEST, base64.b64encode(pixels_of(data.test.images).numpy().tobytes()).decode())
    differing = int((torch.tensor(found) != predict_classes(model, data.test.images)).sum())
    return {"page.bytes": (folder / "page.html").stat().st_size, "page.differing": differing}


def servers(model: nn.Module, digit: Tensor) -> dict[str, float]:
    """Return the round trip of one digit over HTTP and gRPC, and 32 clients beside a server that does nothing."""
    body = json.dumps({"inputs": [{**tensor(digit), "data": digit.flatten().tolist()}]}).encode()
    with serve({"cnn": model}, http_port=0, grpc_port=0) as running, client() as process:
        trips = {
            "http_ms": process.submit(over_http, running.http, running.headers, body),
            "grpc_ms": process.submit(over_grpc, running.grpc, running.metadata, digit),
        }
        return {name: trip.result() for name, trip in trips.items()} | load(running, body)


def client() -> ProcessPoolExecutor:
    """Return another process, as clients are: in one, server and client would wait for one interpreter."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def load(running: Servers, body: bytes) -> dict[str, float]:
    """Return what many clients get at the same time, in turn with those of a server that does nothing."""
    with idle_server() as idle:
        asked = {running.http: request(running.headers, body), idle: request({}, body)}
        rounds = [
            [throughput(address, each, CLIENTS, SECONDS) for address, each in asked.items()] for _ in range(LOAD_ROUNDS)
        ]
    return {
        "load_errors": sum(errors for (_answered, errors), _idle in rounds),
        "load_per_second": median(answered for (answered, _errors), _idle in rounds),
        "load_throughput_ratio": median(answered / most for (answered, _errors), (most, _) in rounds),
    }


def tensor(digit: Tensor) -> dict:
    """Return what the protocol says of an input."""
    return {"name": "images", "shape": list(digit.shape), "datatype": "FP32"}


def over_http(address: str, headers: dict[str, str], body: bytes) -> float:
    """Return the milliseconds in which a digit is sent over HTTP, on one connection, and the logits are read."""
    session, address = requests.Session(), f"{address}/v2/models/cnn/infer"
    return median_ms(lambda: session.post(address, data=body, headers=headers).json()["outputs"][0]["data"])


def over_grpc(address: str, metadata: list[tuple[str, str]], digit: Tensor) -> float:
    """Return the milliseconds in which a digit is sent over gRPC and the logits are read."""
    asked = messages().ModelInferRequest(
        model_name="cnn", inputs=[tensor(digit)], raw_input_contents=[digit.numpy().tobytes()]
    )
    stub = grpc_stub(grpc.insecure_channel(address))
    return median_ms(lambda: stub.ModelInfer(asked, metadata=metadata).raw_output_contents[0])


def median_ms(ask: Callable[[], object]) -> float:
    """Return the median of the milliseconds that a request takes."""
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def request(headers: dict[str, str], body: bytes) -> bytes:
    """Return an HTTP request as it goes over the wire."""
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": len(body), **headers}
    head = "\r\n".join(["POST /v2/models/cnn/infer HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())])
    return f"{head}\r\n\r\n".encode() + body


@contextmanager
def idle_server() -> Iterator[str]:
    """Run a server of the same framework that reads a request, does nothing with it, and answers the same."""
    app = fastapi.FastAPI()

    @app.post("/v2/models/{name}/infer")
    async def infer(request: fastapi.Request) -> fastapi.Response:
        await request.body()
        return fastapi.Response("{}", media_type="application/json")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
