"""The HTTP server hands out the description of its addresses, and the page with its files."""

import json

import pytest
import requests

from kd_lab.deployment import http, serve
from kd_lab.deployment.served import ServedModels
from kd_lab.networks.zoo import small_student

DESCRIPTION = json.loads((http.ASSETS / "openapi.json").read_text())


@pytest.fixture(scope="module")
def servers():
    with serve({"small": small_student(8)}, http_port=0, grpc_port=0) as running:
        yield running


def test_the_description_names_every_address():
    app = http.http_app(ServedModels({"small": small_student(8)}))
    served = {(route.path, method.lower()) for route in app.routes for method in route.methods - {"HEAD"}}
    described = {(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert described == served - {("/", "get"), ("/{file}", "get")}


def test_it_is_served_with_the_page_and_needs_no_token(servers):
    assert requests.get(f"{servers.http}/openapi.json", timeout=20).json() == DESCRIPTION
    assert "pad.js" in requests.get(servers.page, timeout=20).text
    assert requests.get(f"{servers.http}/../http.py", timeout=20).status_code == 404
