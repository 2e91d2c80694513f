"""Start the HTTP server and the gRPC server on this machine, in the background. Needs the extra `serve`."""

import asyncio
import errno
import secrets
import socket
import threading
from collections.abc import Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_lab.deployment.served import ServedModels
from kd_lab.environment import optional
from kd_lab.errors import SetupError, check_whole_number

HOST = "127.0.0.1"  # no other machine reaches it
PORTS = 100  # that are tried, one after another
GRACE = 2  # seconds that requests get to end
MOST_CONNECTIONS = 1_000


def serve(
    models: Mapping[str, nn.Module | Path | str],
    images: Tensor | None = None,
    http_port: int = 8000,
    grpc_port: int = 8001,
    token: bool = True,
) -> "Servers":
    """Serve networks over HTTP and gRPC on this machine until `stop()`, or to the end of a `with` block.

    `models` has networks, their files (.kdz, .safetensors, .onnx, .xml, .tflite) or names of those that ship, by names
    such as "cnn" or, with a version, "cnn:2". `images`, one or more, are needed for networks that read others than
    (N, 1, 28, 28). Ports that are busy are passed over, and 0 is any free one. Without `token=False`, clients must send
    a token, so that no other user of this machine is answered.
    """
    for package in ("fastapi", "grpc", "google.protobuf", "uvicorn"):
        optional(package, "fastapi", "grpcio", "protobuf", "uvicorn")
    ports = [check_whole_number("http_port", http_port, "[0, 65535]")]
    ports += [check_whole_number("grpc_port", grpc_port, "[0, 65535]")]
    served = ServedModels(models, images)
    return Servers(served, ports, secrets.token_urlsafe(16) if token else "")


class Servers:
    """Two servers that run: `http` and `grpc` are their addresses, `page` is that of the page to draw on.

    `headers` are what a client must send over HTTP, and `metadata` what it must send over gRPC.
    """

    def __init__(self, models: ServedModels, ports: list[int], token: str):
        self.token = token
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.metadata = [(name.lower(), value) for name, value in self.headers.items()]
        listening = [_listen(name, port) for name, port in zip(("HTTP", "gRPC"), ports, strict=True)]
        http_port, grpc_port = (each.getsockname()[1] for each in listening)
        self.http, self.grpc = f"http://{HOST}:{http_port}", f"{HOST}:{grpc_port}"
        self.page = f"{self.http}/" + f"?token={token}" * bool(token)
        _wait_for(self._start(models, *listening))

    async def _start(self, models: ServedModels, http_socket: socket.socket, grpc_socket: socket.socket) -> None:
        import uvicorn  # here, since not every learner has the packages

        from kd_lab.deployment.grpc import grpc_server
        from kd_lab.deployment.http import ImpatientProtocol, http_app

        quiet: Any = {"log_config": None, "access_log": False, "log_level": "error", "ws": "none", "lifespan": "off"}
        limits: Any = {"limit_concurrency": MOST_CONNECTIONS, "timeout_graceful_shutdown": GRACE}
        config = uvicorn.Config(http_app(models, self.token), http=ImpatientProtocol, **quiet, **limits)
        self._http, self._grpc = uvicorn.Server(config), grpc_server(models, self.token)
        self._running = asyncio.create_task(self._http.serve([http_socket]))
        grpc_socket.close()  # gRPC opens its own
        self._grpc.add_insecure_port(self.grpc)
        await self._grpc.start()

    def stop(self) -> None:
        """Stop both servers; requests that run get two seconds to end."""
        _wait_for(self._stop())

    async def _stop(self) -> None:
        self._http.should_exit = True
        await asyncio.gather(self._running, self._grpc.stop(GRACE))

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop in which all servers of this process run: gRPC can't have several at a time."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kd_lab servers", daemon=True).start()
    return loop


def _wait_for(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run_coroutine_threadsafe(work, _event_loop()).result()


def _listen(name: str, wanted: int) -> socket.socket:
    """Return a socket that listens on this port or, where it is busy, on the next one that is free, and say so."""
    for port in range(wanted, min(wanted + PORTS, 65536)):
        try:
            found = socket.create_server((HOST, port), backlog=MOST_CONNECTIONS)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SetupError(f"{name} can't have port {port}: {error.strerror}. Choose another one.") from error
            continue
        if port != wanted:
            print(f"Port {wanted} is busy, so {name} takes {port}.")
        return found
    raise SetupError(f"{name} can't have a port: {wanted} and the {PORTS} after it are busy. Choose another one.")
