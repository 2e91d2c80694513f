"""Serve networks over gRPC, in the Open Inference Protocol v2; its messages are built when they are needed.

Code that protoc generates refuses a protobuf of another age, and learners have many.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from kd_lab.deployment import served
from kd_lab.deployment.served import InputTensor, RequestError, ServedModels

SERVICE = "inference.GRPCInferenceService"
PROTOCOL = Path(__file__).parent / "assets" / "inference.proto"
MESSAGE, RPC = re.compile(r"message (\w+) \{(.*?)\}", re.DOTALL), re.compile(r"rpc (\w+)\((\w+)\) returns \((\w+)\)")
FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+);")
# the fields of typed contents, by datatype; those of FP16 only come raw
CONTENTS = {"FP32": "fp32", "FP64": "fp64", "INT8": "int", "INT32": "int", "INT64": "int64", "UINT8": "uint"}
OPEN = "ServerLive", "ServerReady"  # which need no token
OPTIONS = {
    "grpc.max_receive_message_length": served.MAX_BYTES,
    "grpc.so_reuseport": 0,  # else another server could share the port
    "grpc.keepalive_time_ms": 20_000,  # a client that is gone is seen
    "grpc.max_connection_age_ms": 600_000,  # one that hangs is sent away
    "grpc.max_connection_age_grace_ms": 30_000,
}
ANSWERS: dict[str, Callable[[ServedModels, Any], dict]] = {  # to all calls but ModelInfer
    "ServerLive": lambda _models, _asked: {"live": True},
    "ServerReady": lambda _models, _asked: {"ready": True},
    "ServerMetadata": lambda models, _asked: models.server_metadata(),
    "ModelReady": lambda models, asked: {"ready": bool(models.find(asked.name, asked.version))},
    "ModelMetadata": lambda models, asked: models.metadata(asked.name, asked.version),
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
    calls = {
        name: channel.unary_unary(f"/{SERVICE}/{name}", taken.SerializeToString, given.FromString)
        for name, taken, given in _calls()
    }
    return SimpleNamespace(**calls)


def grpc_server(models: ServedModels, token: str = "") -> grpc.aio.Server:
    """Return a server without a port; with a token, all calls but health need `authorization: Bearer …` as metadata.

    Must be called in the event loop in which it is to run.
    """
    server = grpc.aio.server(options=list(OPTIONS.items()), maximum_concurrent_rpcs=MOST_CALLS)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_handler(name, taken, given, models, token))
        for name, taken, given in _calls()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server


def _handler(name: str, taken: Any, given: Any, models: ServedModels, token: str) -> Callable:
    """Return what takes the bytes of a request and gives those of its answer, or ends the call with a status."""

    async def handle(content: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if name not in OPEN and not served.is_allowed(token, sent):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)
        try:
            request = taken.FromString(content)
            answer = ANSWERS[name](models, request) if name in ANSWERS else await _infer(models, request)
            return given(**answer).SerializeToString()
        except served.UnknownModelError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (RequestError, DecodeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError  # abort() has raised

    return handle


async def _infer(models: ServedModels, request: Any) -> dict:
    model = models.find(request.model_name, request.model_version)
    logits = await model.answer(_inputs(request), [output.name for output in request.outputs])
    tensor, datatype = model.given | {"shape": logits.shape}, model.given["datatype"]
    answer = {"model_name": model.name, "model_version": model.version, "id": request.id, "outputs": [tensor]}
    if request.raw_input_contents or datatype not in CONTENTS:
        return answer | {"raw_output_contents": [served.little_endian(logits)]}
    tensor["contents"] = {f"{CONTENTS[datatype]}_contents": logits.ravel().tolist()}
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
    field = f"{CONTENTS.get(tensor.datatype, 'raw_input')}_contents"
    sent = [descriptor.name for descriptor, _value in tensor.contents.ListFields()]
    if sent != [field]:
        raise RequestError(f"The contents of {tensor.datatype[:80]!r} must come as {field}. Got {sent}.")
    return np.array(getattr(tensor.contents, field))
