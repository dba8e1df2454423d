"""A server as a process of its own, for the benchmarks that talk to one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

STARTS_WITHIN_S = 600
ENDS_WITHIN_S = 30


def cpu_seconds(pid: int) -> float:
    """Processor time that the threads of a process have used, its children's not among it. Linux only."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextlib.contextmanager
def server_process(arguments: list[str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """URL and process of `python ARGUMENTS --port N`, once it is healthy. Raises SystemExit when it ends before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(STARTS_WITHIN_S * 5):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(arguments)} ended with {server.returncode}")
            time.sleep(0.2)
        yield url, server
    finally:
        server.terminate()
        try:
            server.wait(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
