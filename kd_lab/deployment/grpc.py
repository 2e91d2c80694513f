"""Serve networks over gRPC, in the Open Inference Protocol v2; its messages are built when they are needed.

Code that protoc generates refuses a protobuf of another age, and learners have many.
"""

import re
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from kd_lab.deployment.served import (
    MAX_BYTES,
    OUTPUT,
    InputTensor,
    RequestError,
    ServedModels,
    UnknownModelError,
    is_allowed,
)

SERVICE = "inference.GRPCInferenceService"
PROTOCOL = Path(__file__).parent / "assets" / "inference.proto"
MESSAGE, RPC = re.compile(r"message (\w+) \{(.*?)\}", re.DOTALL), re.compile(r"rpc (\w+)\((\w+)\) returns \((\w+)\)")
FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+);")
CONTENTS = {  # the fields of typed contents, by datatype; those of FP16 only come raw
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
}
OPEN = "ServerLive", "ServerReady"  # which need no token
OPTIONS = {
    "grpc.max_receive_message_length": MAX_BYTES,
    "grpc.so_reuseport": 0,  # else another server could share the port
    "grpc.keepalive_time_ms": 20_000,  # a client that is gone is seen
    "grpc.max_connection_age_ms": 600_000,  # one that hangs is sent away
    "grpc.max_connection_age_grace_ms": 30_000,
}
MOST_CALLS = 1_000  # at a time
NO_TOKEN = "Send the token as metadata: authorization: Bearer TOKEN."


@cache
def messages() -> SimpleNamespace:
    """Return the classes of the protocol's messages, by name, from inference.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="kd_lab/inference.proto", package="inference", syntax="proto3")
    for name, body in MESSAGE.findall(PROTOCOL.read_text("utf-8")):
        described = file.message_type.add(name=name)
        for repeated, kind, field, number in FIELD.findall(body):
            added = described.field.add(name=field, number=int(number), label=3 if repeated else 1)
            if kind[0].isupper():
                added.type_name = f".inference.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of our own: a client's stubs may be in the usual one
    pool.AddSerializedFile(file.SerializeToString())
    find = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))
    return SimpleNamespace(**{each.name: find(each.name) for each in file.message_type})


def _calls() -> list[tuple[str, Any, Any]]:
    """Return the name of each call, with the classes of its request and of its answer."""
    found = RPC.findall(PROTOCOL.read_text("utf-8"))
    return [(name, getattr(messages(), taken), getattr(messages(), given)) for name, taken, given in found]


def grpc_stub(channel: grpc.Channel) -> SimpleNamespace:
    """Return the calls of the service on a channel, by name: `grpc_stub(channel).ServerLive(request)`."""
    return SimpleNamespace(
        **{
            name: channel.unary_unary(f"/{SERVICE}/{name}", taken.SerializeToString, given.FromString)
            for name, taken, given in _calls()
        }
    )


def grpc_server(models: ServedModels, token: str = "") -> grpc.aio.Server:
    """Return a server without a port; with a token, all calls but health need `authorization: Bearer …` as metadata.

    Must be called in the event loop in which it is to run.
    """
    server = grpc.aio.server(options=list(OPTIONS.items()), maximum_concurrent_rpcs=MOST_CALLS)
    service = _Service(models)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _handler(getattr(service, name), taken, given, "" if name in OPEN else token)
        )
        for name, taken, given in _calls()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server


def _handler(answer: Callable[[Any], Awaitable[dict]], taken: Any, given: Any, token: str) -> Callable:
    """Return what takes the bytes of a request and gives those of its answer, or ends the call with a status."""

    async def handle(content: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not is_allowed(token, sent if isinstance(sent, str) else ""):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)
        try:
            return given(**await answer(taken.FromString(content))).SerializeToString()
        except UnknownModelError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (RequestError, DecodeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError  # abort() has raised

    return handle


class _Service:
    """Answer each call of the protocol with the fields of its response."""

    def __init__(self, models: ServedModels):
        self.models = models

    async def ServerLive(self, _request: Any) -> dict:
        return {"live": True}

    async def ServerReady(self, _request: Any) -> dict:
        return {"ready": True}

    async def ServerMetadata(self, _request: Any) -> dict:
        return self.models.server_metadata()

    async def ModelReady(self, request: Any) -> dict:
        self.models.find(request.name, request.version)
        return {"ready": True}

    async def ModelMetadata(self, request: Any) -> dict:
        return self.models.metadata(request.name, request.version)

    async def ModelInfer(self, request: Any) -> dict:
        model = self.models.find(request.model_name, request.model_version)
        logits = await model.answer(_inputs(request), [output.name for output in request.outputs])
        tensor: dict[str, Any] = {"name": OUTPUT, "datatype": model.answer_datatype, "shape": logits.shape}
        answer = {"model_name": model.name, "model_version": model.version, "id": request.id, "outputs": [tensor]}
        if request.raw_input_contents or model.answer_datatype not in CONTENTS:
            return answer | {"raw_output_contents": [logits.astype(logits.dtype.newbyteorder("<")).tobytes()]}
        tensor["contents"] = {CONTENTS[model.answer_datatype]: logits.ravel().tolist()}
        return answer


def _inputs(request: Any) -> list[InputTensor]:
    """Return what a request has as inputs, with their numbers from where they are: typed contents or raw ones."""
    raw = list(request.raw_input_contents)
    if raw and (len(raw) != len(request.inputs) or any(each.HasField("contents") for each in request.inputs)):
        raise RequestError("All inputs must come in raw_input_contents, or none of them.")
    inputs = zip(request.inputs, raw or [None] * len(request.inputs), strict=True)
    return [
        InputTensor(each.name, each.datatype, list(each.shape), _contents(each) if data is None else data)
        for each, data in inputs
    ]


def _contents(tensor: Any) -> np.ndarray:
    field = CONTENTS.get(tensor.datatype, "raw_input_contents")
    sent = [descriptor.name for descriptor, _value in tensor.contents.ListFields()]
    if sent != [field]:
        raise RequestError(f"The contents of {tensor.datatype[:80]!r} must come as {field}. Got {sent}.")
    return np.array(getattr(tensor.contents, field))
