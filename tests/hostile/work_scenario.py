"""Attacks on the ext_proc port: work that a message makes, other clients' calls, descriptors."""

import contextlib
import socket
import struct
import time
import unittest

import wire
from attack import Attacked, support
from wire import AGAIN, INDEXED, Closed, Connection, flood, frame, grpc, streams


class Work(Attacked):
    def test_a_message_of_many_headers_to_remove(self):
        epp = self.epp()
        many = tuple((b"x-fairway-%d" % i, b"1") for i in range(60_000))
        message = grpc(wire.request_headers(many, end=True))
        with self.beside(epp, ("ext_proc", epp.grpc), peak=200, after=100), Connection(epp.grpc) as connection:
            for _ in range(4):
                stream = connection.open()
                with contextlib.suppress(Closed):
                    connection.write(stream, message)

    def test_a_hundred_thousand_hints_of_one_host(self):
        epp = self.epp(count=1000)
        message = grpc(wire.request_headers(end=True, hints=(b"127.0.0.1",) * 100_000))
        with self.beside(epp, ("ext_proc", epp.grpc), peak=250, after=120), Connection(epp.grpc) as connection:
            for _ in range(3):
                stream = connection.open()
                with contextlib.suppress(Closed):
                    connection.write(stream, message)

    def test_unknown_models_beside_a_thousand_declared_ones(self):
        objects = [support.old_pool(), support.model("llama")] + [support.model(f"name-{i}-" + "n" * 60) for i in range(1000)]
        epp = self.epp(objects=objects)
        with self.beside(epp, ("ext_proc", epp.grpc), peak=100, after=50), Connection(epp.grpc) as connection:
            for i in range(20):
                stream = connection.open()
                name = b"name-%d-" % i + b"m" * 4000
                connection.write(stream, grpc(wire.request_headers()) + grpc(wire.request_body(wire.completion(name))))
            time.sleep(0.5)

    def test_settings_that_walk_all_streams(self):
        epp = self.epp()
        changes = b"".join(wire.settings(window=1 << 20 | i) for i in range(1000))
        with self.beside(epp, ("ext_proc", epp.grpc), peak=150, after=80):
            opened = frame(wire.HEADERS, 4, 1, INDEXED) + b"".join(streams(AGAIN, first=3, count=9_000))
            flood(epp.grpc, (changes for _ in range(10_000)), seconds=3, first=opened)

    def test_frames_of_every_kind(self):
        epp = self.epp()
        block = frame(wire.HEADERS, 4, 1, INDEXED)
        floods = {"ping": frame(wire.PING, 0, 0, b"12345678"), "settings": wire.settings(window=1 << 20),
                  "empty data": frame(wire.DATA, 0, 1), "data of a byte": frame(wire.DATA, 0, 1, b"\0"),
                  "padding": frame(wire.DATA, 8, 1, b"\xff" + bytes(255)),
                  "priority": frame(wire.PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
                  "window update": frame(wire.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)),
                  "continuation": frame(wire.CONTINUATION, 0, 3, b""), "empty messages": frame(wire.DATA, 0, 1, bytes(5) * 1000),
                  "unknown": frame(0xbe, 0, 1, bytes(100))}
        for name, one in floods.items():
            first = block + (frame(wire.HEADERS, 0, 3, INDEXED) if name == "continuation" else b"")
            bulk = one * max(1, 65536 // len(one))
            with self.subTest(name), self.beside(epp, ("ext_proc", epp.grpc), peak=80, after=40):
                flood(epp.grpc, (bulk for _ in range(1 << 20)), seconds=0.8, first=first)

    def test_bytes_that_are_no_protocol(self):
        epp = self.epp()
        sizes = (b"\0\xff\xff\xff\xff", b"\1" + struct.pack(">I", 4) + b"abcd", b"\0" + struct.pack(">I", 5) + b"\xff" * 5)
        with self.beside(epp, ("ext_proc", epp.grpc), peak=60, after=30):
            for start in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", wire.PREFACE[:10], wire.PREFACE + b"\0" * 9):
                with socket.create_connection(("127.0.0.1", epp.grpc), timeout=5) as raw:
                    raw.sendall(start)
            with Connection(epp.grpc) as connection, contextlib.suppress(Closed):
                for one in sizes:
                    connection.write(connection.open(), one)


class Calls(Attacked):
    def test_a_large_body_ends_nobody_elses_call(self):
        """On one connection, as a gateway has it: a call that runs at its model server, and one of 45 MB."""
        epp = self.epp()
        for mode in (wire.FULL_DUPLEX, wire.BUFFERED):
            with self.subTest(mode=mode), self.beside(epp, ("ext_proc", epp.grpc), peak=512, after=150), \
                    Connection(epp.grpc, window=1 << 20) as connection:
                running = connection.open()
                connection.write(running, grpc(wire.request_headers(end=True)))
                while connection.read()[:3] != (wire.DATA, 0, running):
                    pass
                large = connection.open()
                connection.write(large, grpc(wire.request_headers(mode=mode)))
                pieces = [b" " * 1_000_000] * 45 if mode == wire.FULL_DUPLEX else [wire.completion(prompt=b"x" * 3_900_000)]
                for i, piece in enumerate(pieces):
                    seen = connection.write(large, grpc(wire.request_body(piece, end=i == len(pieces) - 1)))
                    if any(kind == wire.RST_STREAM and of == large for kind, _, of, _ in seen):
                        break
                time.sleep(0.5)  # it does not read meanwhile
                connection.write(running, grpc(wire.response_headers()))
                while True:
                    kind, _, of, _ = connection.read()
                    self.assertNotEqual(kind, wire.GOAWAY)
                    if of == running:
                        self.assertEqual(kind, wire.DATA)
                        break


class Descriptors(Attacked):
    def test_admin_and_probes_when_descriptors_run_out(self):
        epp = self.epp(prefix=["prlimit", "--nofile=256:256"])
        with self.beside(epp, ("ext_proc", epp.grpc), ("page", epp.admin, "/healthz"), ("health", epp.health, "liveness"),
                         peak=100, after=50), contextlib.ExitStack() as stack:
            for _ in range(400):
                with contextlib.suppress(Closed):
                    stack.enter_context(Connection(epp.grpc, timeout=2))
            time.sleep(1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
