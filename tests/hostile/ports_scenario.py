"""Attacks on the metrics and health ports: answers that nobody reads, clients that drip, connections that stay."""

import contextlib
import socket
import struct
import time
import unittest

import wire
from attack import Attacked
from wire import Closed, Connection, frame, grpc


def raw(port, text=b"", buffer=None):
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(2)
    connection.connect(("127.0.0.1", port))
    if text:
        connection.sendall(text)
    return connection


class Metrics(Attacked):
    def test_answers_that_nobody_reads(self):
        epp = self.epp(count=1000)
        for path in ("/metrics", "/healthz", "/debug/fleet"):
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            with self.subTest(path), self.beside(epp, ("page", epp.admin, "/metrics"), ("ext_proc", epp.grpc), peak=80, after=50):
                with raw(epp.admin, buffer=4096) as connection, contextlib.suppress(OSError):
                    for _ in range(100):
                        connection.sendall(request * (50_000 // len(request)))

    def test_clients_that_drip(self):
        """Heads and bodies of a byte now and then, on more connections than there may be."""
        epp = self.epp()
        starts = (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ", b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
                  b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"", b"G")
        for start in starts:
            with self.subTest(start), self.beside(epp, ("page", epp.admin, "/healthz"), peak=40, after=20, may_fail=2), \
                    contextlib.ExitStack() as stack:
                many = []
                for _ in range(300):
                    with contextlib.suppress(OSError):
                        many.append(stack.enter_context(raw(epp.admin, start)))
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    for connection in many:
                        with contextlib.suppress(OSError):
                            connection.sendall(b"a")
                    time.sleep(0.3)

    def test_heads_without_an_end(self):
        epp = self.epp()
        with self.beside(epp, ("page", epp.admin, "/healthz"), peak=60, after=30):
            for piece in (b"X: " + b"a" * 997 + b"\r\n", b"a" * 1000, b"\r\n" * 500):
                with raw(epp.admin, b"GET /metrics HTTP/1.1\r\nHost: x\r\n" if piece != b"\r\n" * 500 else b"") as connection, \
                        contextlib.suppress(OSError):
                    for _ in range(20_000):
                        connection.sendall(piece)

    def test_a_reader_that_drips(self):
        epp = self.epp(count=1000)
        with self.beside(epp, ("page", epp.admin, "/metrics"), peak=80, after=50), contextlib.ExitStack() as stack:
            many = []
            for _ in range(40):
                with contextlib.suppress(OSError):
                    many.append(stack.enter_context(raw(epp.admin, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", buffer=4096)))
            for _ in range(10):
                for connection in many:
                    with contextlib.suppress(OSError):
                        connection.recv(1)
                time.sleep(0.1)


class Health(Attacked):
    def test_connections_that_stay(self):
        """More than there may be, with a PING now and then: a probe finds room."""
        epp = self.epp()
        with self.beside(epp, ("health", epp.health, "liveness"), ("ext_proc", epp.grpc), peak=80, after=40,
                         may_fail=2), contextlib.ExitStack() as stack:
            many = []
            for _ in range(1100):
                with contextlib.suppress(Closed):
                    many.append(stack.enter_context(Connection(epp.health, timeout=2)))
            end = time.monotonic() + 2
            while time.monotonic() < end:
                for connection in many:
                    with contextlib.suppress(Closed):
                        connection.send(frame(wire.PING, 0, 0, b"12345678"))
                time.sleep(0.5)

    def test_watchers(self):
        """Their number costs the calls beside them nothing."""
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), ("health", epp.health, "liveness"), peak=150, after=80), \
                contextlib.ExitStack() as stack:
            for _ in range(400):
                with contextlib.suppress(Closed):
                    connection = stack.enter_context(Connection(epp.health, timeout=2))
                    block = wire.head(wire.WATCH)
                    connection.send(b"".join(frame(wire.HEADERS, 4, stream, block) + frame(wire.DATA, 1, stream, grpc(b""))
                                             for stream in range(1, 200, 2)))
            time.sleep(1.5)

    def test_floods(self):
        epp = self.epp()
        with self.beside(epp, ("health", epp.health, "liveness"), peak=60, after=30):
            for one in (frame(wire.PING, 0, 0, b"12345678"), wire.settings(window=1 << 20), frame(wire.DATA, 0, 1),
                        frame(wire.HEADERS, 4, 1, wire.head(wire.CHECK)) + frame(wire.RST_STREAM, 0, 1, struct.pack(">I", 8))):
                end = time.monotonic() + 0.7
                with contextlib.suppress(Closed), Connection(epp.health, timeout=1, receive_buffer=4096) as connection:
                    while time.monotonic() < end:
                        connection.send(one * 2000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
