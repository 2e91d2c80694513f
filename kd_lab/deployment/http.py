"""Serve networks over HTTP, in the Open Inference Protocol v2 with its binary tensor extension."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from h11 import SEND_RESPONSE
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from kd_lab.data import MEAN, STD
from kd_lab.deployment import served
from kd_lab.deployment.served import InputTensor, RequestError, ServedModel, ServedModels

ASSETS = Path(__file__).parent / "assets"  # openapi.json, which describes the addresses, is among them
SECONDS = 30  # that a client may take to send the head of a request, and then its body
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON in a body that goes on with binary tensors
ANSWERS: dict[str, Any] = {  # to a GET, as JSON
    "/v2/models/{name}/infer": None,  # which is a POST, and the first that is looked for
    "/v2/health/live": lambda _models: {"live": True},
    "/v2/health/ready": lambda _models: {"ready": True},
    "/v2": ServedModels.server_metadata,
    "/kit/models": ServedModels.listing,
    "/v2/models/{name}": ServedModels.metadata,
    "/v2/models/{name}/ready": lambda models, **path: {"name": models.find(**path).name, "ready": True},
}


class ImpatientProtocol(H11Protocol):
    """Send small answers at once, and close a connection on which no request begins within some seconds."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms go by
        self.timeout_keep_alive = SECONDS  # after each answer; before the first request:
        self.timeout_keep_alive_task = self.loop.call_later(SECONDS, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        """Stop the clock only for a whole head; at its first byte, where uvicorn stops it, a client can hang."""
        if self.conn.our_state is SEND_RESPONSE or self.transport.is_closing():
            super()._unset_keepalive_if_required()


def http_app(models: ServedModels, token: str = "") -> FastAPI:
    """Return the FastAPI app; with a token, all but health, the page and its scripts need `Authorization: Bearer`.

    Its routes are those of Starlette: what FastAPI finds out of a function's arguments takes longer than an answer.
    """

    def route(path: str, answer: Any) -> Route:
        async def endpoint(request: Request) -> Response:
            if "health" not in path and not served.is_allowed(token, request.headers.get("authorization", "")):
                raise HTTPException(401, "Send the token: Authorization: Bearer TOKEN.")
            if answer is None:
                return await _infer(models.find(**request.path_params), request)
            return JSONResponse(answer(models, **request.path_params))

        return Route(path, endpoint, methods=["GET" if answer else "POST"])

    versions = {path.replace("{name}", "{name}/versions/{version}"): answer for path, answer in ANSWERS.items()}
    draw = (ASSETS / "draw.html").read_text("utf-8").replace("{{pixels}}", json.dumps({"mean": MEAN, "std": STD}))
    routes: list[BaseRoute] = [route(*each) for each in (ANSWERS | versions).items()]
    files: dict[str, Any] = {"/": HTMLResponse(draw), "/{file}": StaticFiles(directory=ASSETS)}
    routes += [Route(path, file, methods=["GET"]) for path, file in files.items()]
    return FastAPI(openapi_url=None, routes=routes, exception_handlers={RequestError: _refuse, HTTPException: _say})


async def _refuse(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, served.UnknownModelError) else 400)


async def _say(_request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _body(request: Request) -> bytes:
    """Return the body; one that is too long is read to its end, but not kept, so that its client hears why."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= served.MAX_BYTES:
                    parts.append(part)
    except (TimeoutError, ClientDisconnect) as error:
        raise HTTPException(408, f"The body must come within {SECONDS} seconds.") from error
    if size > served.MAX_BYTES:
        raise HTTPException(413, f"A request must have {served.MAX_BYTES:,} bytes at most. Got {size:,}.")
    return b"".join(parts)


async def _infer(model: ServedModel, request: Request) -> Response:
    asked, binary = _parsed(await _body(request), request.headers.get(JSON_LENGTH))
    outputs = _dicts(asked, "outputs")
    in_binary = _parameter(asked, "binary_data_output")
    for each in outputs:
        in_binary = _parameter(each, "binary_data", in_binary)
    inputs = [_input(each, binary) for each in _dicts(asked, "inputs")]
    logits = await model.answer(inputs, [each.get("name") for each in outputs])
    answer = {"model_name": model.name, "model_version": model.version}
    answer |= {"id": asked["id"]} if isinstance(asked.get("id"), str) else {}
    return _response(answer, model.given | {"shape": list(logits.shape)}, logits, in_binary is True)


def _parsed(body: bytes, length: str | None) -> tuple[dict, bytes]:
    """Return the JSON of a body and the binary tensors behind it."""
    if length is not None and not (length.isdecimal() and len(length) < 10 and int(length) <= len(body)):
        raise RequestError(f"{JSON_LENGTH} must be a number of bytes of the body. Got {length!r:.80}.")
    end = len(body) if length is None else int(length)
    try:
        asked = from_json(body[:end], cache_strings="none")  # several times faster than json
    except ValueError as error:
        raise RequestError(f"The body must be JSON. {error!s:.80}") from error
    if not isinstance(asked, dict):
        raise RequestError("The body must be a JSON object.")
    return asked, body[end:]


def _dicts(asked: dict, key: str) -> list[dict]:
    parts = asked.get(key, [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(f"{key!r} must be a list of JSON objects.")
    return parts


def _parameter(part: dict, name: str, otherwise: Any = None) -> Any:
    parameters = part.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("'parameters' must be a JSON object.")
    return parameters.get(name, otherwise)


def _input(given: dict, binary: bytes) -> InputTensor:
    size = _parameter(given, "binary_data_size")
    if (size or 0) != len(binary) or (size is not None and "data" in given):
        raise RequestError(f"'binary_data_size' must be the bytes behind the JSON, {len(binary)}, without 'data'.")
    data = given.get("data") if size is None else binary
    return InputTensor(given.get("name"), given.get("datatype"), given.get("shape"), data)


def _response(answer: dict, tensor: dict, logits: np.ndarray, in_binary: bool) -> Response:
    if not in_binary:
        given = to_json(answer | {"outputs": [tensor | {"data": logits.ravel().tolist()}]})
        return Response(given, media_type="application/json")
    content = served.little_endian(logits)
    head = json.dumps(answer | {"outputs": [tensor | {"parameters": {"binary_data_size": len(content)}}]}).encode()
    return Response(head + content, headers={JSON_LENGTH: str(len(head))}, media_type="application/octet-stream")
