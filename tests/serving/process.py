"""`vla-jax serve` as a process of its own, and a bare client that can send anything; nothing waits for ever."""

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading

TIMEOUT = 20
START_TIMEOUT = 180  # importing, loading and compiling on a busy machine
TEXT, BINARY, CLOSE = 1, 2, 8
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclasses.dataclass
class ServeProcess:
    process: subprocess.Popen
    address: str
    lines: "queue.Queue[str]"  # what it prints

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def terminate(self):
        """SIGTERM; the exit code and what it still printed."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        printed = []
        while (line := self.lines.get(timeout=TIMEOUT)) is not None:
            printed.append(line)
        return code, "".join(printed)


@contextlib.contextmanager
def serve(checkpoint, *options):
    command = [sys.executable, "-c", "from vla_jax.cli import main; main()", "serve", str(checkpoint), *options]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "VLA_JAX_API_KEY")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment | {"JAX_PLATFORMS": "cpu"}
    )
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        printed = []
        while True:
            line = lines.get(timeout=START_TIMEOUT)
            printed.append(line)
            assert line is not None, "".join(printed[:-1])
            if line.startswith("ready "):
                yield ServeProcess(process, line.split()[1], lines)
                return
    finally:
        process.kill()
        process.wait(TIMEOUT)


def frame(payload, opcode=BINARY):
    """A masked frame with the mask 0."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([0x80 | opcode, 0x80 | 126]) + struct.pack(">H", size)
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + struct.pack(">Q", size)
    return head + b"\0\0\0\0" + payload


class Stream:
    """Frames from a socket that said something to a server."""

    def __init__(self, sock, sent):
        sock.sendall(sent)
        self._file = sock.makefile("rb")
        self.status = self._file.readline()
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def close(self):
        """The socket closes only when this does, too."""
        self._file.close()

    def read(self):
        """The next frame: opcode and payload."""
        first, size = self._file.read(2)
        if size > 125:
            size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
        return first & 0x0F, self._file.read(size)


def exchange(port, payload, opcode=BINARY):
    """What a new client gets for its first message: (opcode, payload), and the close code where the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
        stream = Stream(sock, UPGRADE + frame(payload, opcode))
        assert b"101" in stream.status and stream.read()[0] == BINARY  # the greeting
        kind, answer = stream.read()
        if kind == BINARY:
            return kind, answer, None
        code = answer if kind == CLOSE else stream.read()[1]
        return kind, answer, int.from_bytes(code[:2], "big")
