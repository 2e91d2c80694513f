"""The HTTP server does what its description says, whatever it is sent, and leaves a client that hangs."""

import json
import socket

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_lab.deployment import http, serve
from kd_lab.deployment.served import ServedModels
from kd_lab.networks.zoo import small_student

DESCRIPTION = json.loads((http.ASSETS / "openapi.json").read_text())
GENERATED = 100  # requests of each kind in a run of the tests


@pytest.fixture
def servers():
    with serve({"small": small_student(8)}, http_port=0, grpc_port=0) as running:
        yield running


def connect(servers):
    host, port = servers.http.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(20)
    return connection


def test_the_description_names_every_address():
    app = http.http_app(ServedModels({"small": small_student(8)}))
    served = {(route.path, method) for route in app.router.routes for method in getattr(route, "methods", None) or ()}
    described = {(path, method.upper()) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert described == {(path, method) for path, method in served if method != "HEAD" and path != "/"}


def test_it_is_served_with_the_page_and_needs_no_token(servers):
    assert requests.get(f"{servers.http}/openapi.json", timeout=20).json() == DESCRIPTION
    assert "pad.js" in requests.get(servers.page, timeout=20).text
    assert requests.get(f"{servers.http}/../http.py", timeout=20).status_code == 404


def test_a_client_that_says_nothing_is_left(servers, monkeypatch):
    monkeypatch.setattr(http, "SECONDS", 0.2)
    with connect(servers) as connection:
        assert connection.recv(1) == b""


def test_a_client_that_stops_in_the_middle_is_told(servers, monkeypatch):
    monkeypatch.setattr(http, "SECONDS", 0.2)
    head = f"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {servers.token}\r\n"
    with connect(servers) as connection:
        connection.sendall(f"{head}Content-Length: 9000\r\n\r\n{{".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["negative", "positive"])
def test_every_generated_request_is_answered_as_described(mode, servers):
    import schemathesis  # which takes a second

    schema = schemathesis.openapi.from_dict(DESCRIPTION)
    operations = [each.ok() for each in schema.get_all_operations() if each.ok().path.endswith("infer")]
    kind = schemathesis.GenerationMode(mode)

    @settings(max_examples=GENERATED, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(st.one_of([each.as_strategy(generation_mode=kind) for each in operations]))
    def ask(case):
        case.path_parameters = {name: {"name": "small", "version": "1"}[name] for name in case.path_parameters}
        answer = case.call(base_url=servers.http, headers=servers.headers)
        assert str(answer.status_code) in case.operation.definition.raw["responses"]

    ask()
