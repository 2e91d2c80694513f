"""Send one HTTP request again and again from many clients, as fast as they are answered.

As a script it runs in a process of its own, so that clients and server do not wait for one interpreter.
"""

import asyncio
import base64
import json
import subprocess
import sys
import time

LENGTH = b"content-length: "


def throughput(address: str, request: bytes, clients: int, seconds: float) -> tuple[float, int]:
    """Return the answers a second of the server at `address` (http://HOST:PORT), and how many were no answer."""
    given = json.dumps([address, base64.b64encode(request).decode(), clients, seconds])
    done = subprocess.run([sys.executable, __file__], input=given, capture_output=True, text=True)
    return tuple(json.loads(done.stdout))


async def load(address: str, request: bytes, clients: int, seconds: float) -> tuple[float, int]:
    """Run the clients at the same time, each on a connection that it keeps."""
    host, _, port = address.removeprefix("http://").partition(":")
    end = time.monotonic() + seconds
    counts = await asyncio.gather(*(client(host, int(port), request, end) for _ in range(clients)))
    return sum(right for right, _ in counts) / seconds, sum(wrong for _, wrong in counts)


async def client(host: str, port: int, request: bytes, end: float) -> tuple[int, int]:
    """Return how many requests were answered with 200, and how many were not."""
    right = wrong = 0
    reader, writer = await asyncio.open_connection(host, port)
    while time.monotonic() < end:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        size = head.lower().partition(LENGTH)[2].partition(b"\r\n")[0]
        await reader.readexactly(int(size))
        good = head.startswith(b"HTTP/1.1 200")
        right, wrong = right + good, wrong + (not good)
    writer.close()
    return right, wrong


if __name__ == "__main__":
    address, request, clients, seconds = json.load(sys.stdin)
    print(json.dumps(asyncio.run(load(address, base64.b64decode(request), clients, seconds))))
