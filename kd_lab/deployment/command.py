"""Serve networks from a terminal: kd-lab serve MODEL…"""

import argparse
import signal
import sys
import threading
from pathlib import Path

from kd_lab.deployment.servers import serve
from kd_lab.environment import use_one_thread
from kd_lab.errors import KdLabError, reason

EPILOG = """MODEL is a file (.kdz, .safetensors, .onnx, .xml, .tflite) or the name of a network that ships, such as cnn.
NAME=MODEL serves it under a name, and NAME:2=MODEL as version 2 of that name."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command until Ctrl-C or SIGTERM; return 0, or 1 where a model can't be served."""
    options = vars(_parser().parse_args(arguments))
    use_one_thread()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_given: stopped.set())
    try:
        with serve(_named(options.pop("models")), **options) as servers:
            print(f"HTTP: {servers.http}\ngRPC: {servers.grpc}\nPage: {servers.page}")
            print(f"Token: {servers.token or 'none'}\nStop with Ctrl-C.", flush=True)
            while not stopped.wait(1):  # without a limit, Windows would not hear Ctrl-C
                pass
    except KdLabError as error:
        print(f"kd-lab: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kd-lab")
    about = "serve networks over HTTP and gRPC on this machine"
    command = parser.add_subparsers(required=True).add_parser("serve", help=about, description=about, epilog=EPILOG)
    command.add_argument("models", nargs="+", metavar="MODEL", help="what to serve")
    command.add_argument("--http-port", type=int, default=8000, help="8000, or the next one that is free")
    command.add_argument("--grpc-port", type=int, default=8001, help="8001, or the next one that is free")
    command.add_argument("--no-token", dest="token", action="store_false", help="answer every user of this machine")
    return parser


def _named(models: list[str]) -> dict[str, str]:
    """Return the models by name; without one, a file is named after its stem."""
    named: dict[str, str] = {}
    for model in models:
        name, _, path = model.rpartition("=")
        name = name or Path(path).stem
        if name in named:
            raise KdLabError(f"two models are named {name!r}. Give one another name or version: NAME:2=MODEL.")
        named[name] = path
    return named


if __name__ == "__main__":
    sys.exit(main())
