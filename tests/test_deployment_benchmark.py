"""The deployment benchmark counts answers and errors of many clients, and compares with a server that does nothing."""

import requests
import torch
from torch import nn

from benchmarks import deployment as benchmark
from benchmarks._load import throughput
from kd_lab.data import Mnist, Split


def test_the_server_that_does_nothing_answers_and_what_is_no_answer_counts_as_an_error():
    body = b'{"inputs": []}'
    with benchmark.idle_server() as address:
        assert requests.post(f"{address}/v2/models/cnn/infer", data=body).text == "{}"
        answered, errors = throughput(address, benchmark.request({}, body), 3, 0.3)
        assert answered > 3 and errors == 0
        lost = benchmark.request({}, body).replace(b"/infer", b"/nowhere")
        answered, errors = throughput(address, lost, 3, 0.3)
        assert answered == 0 and errors > 3


def test_a_request_says_how_long_its_body_is_and_carries_the_headers():
    head, body = benchmark.request({"Authorization": "Bearer me"}, b"12345").split(b"\r\n\r\n")
    assert body == b"12345" and b"Content-Length: 5" in head and head.endswith(b"Authorization: Bearer me")


def test_answers_are_compared_with_those_given():
    images = torch.randn(16, 1, 28, 28)
    split = Split(images, torch.arange(16) % 10)
    data = Mnist(split, split, split)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    expected = model(images).detach()
    row = benchmark.read(model, expected, data)
    assert row["argmax_equal"] == 16 and row["max_abs_diff"] < 1e-5
    expected[0] = torch.eye(10)[expected[0].argmin()]  # another answer
    assert benchmark.read(model, expected, data)["argmax_equal"] == 15
