"""Attacks on the ext_proc port: work that a message makes, other clients' calls, descriptors."""

import contextlib
import socket
import struct
import time
import unittest

import wire
from attack import MB, Attacked, support
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

    def test_messages_by_the_million(self):
        """Of a byte, of nothing, of what says nothing: on one call, as long as it lasts."""
        epp = self.epp()
        block = frame(wire.HEADERS, 4, 1, INDEXED)
        for name, message in (("a byte", b"x"), ("nothing", b""), ("no observation", b"\x50\0"), ("unknown field", b"\xf8\7\1"),
                              ("headers again", wire.request_headers()), ("an empty body", wire.request_body(b"", end=False)),
                              ("an answer's body", wire.response_body(b"x")), ("a body", wire.request_body(b"x", end=False))):
            one = grpc(message)
            bulk = wire.data(1, one * (60_000 // len(one)))
            first = block + (wire.data(1, grpc(wire.request_headers())) if "body" in name else b"")
            with self.subTest(name), self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=120, after=60):
                flood(epp.grpc, (bulk for _ in range(1 << 20)), seconds=0.8, first=first)

    def test_messages_of_many_small_things(self):
        """4 MB each of what a message may have many of."""
        epp = self.epp(count=1000)
        size = 4 * MB - 10_000

        def many(one):
            return one * (size // len(one))

        def hints(value):
            entry = wire.put(1, b"x-gateway-destination-endpoint-subset") + wire.put(2, value)
            return wire.put(8, wire.put(1, wire.put(1, b"envoy.lb.subset_hint") + wire.put(2, wire.put(1, entry))))

        header = wire.put(1, wire.put(1, b"x-fairway-a") + wire.put(3, b"1"))
        struct_entry = wire.put(1, wire.put(1, b"k") + wire.put(2, wire.put(3, b"v")))
        attribute = wire.put(9, wire.put(1, b"envoy.filters.http.ext_proc") + wire.put(2, many(struct_entry)))
        end = wire.put(3, 1)
        start = wire.request_headers(end=True)
        shapes = {
            "headers": wire.put(2, wire.put(1, many(header)) + end),
            "names": wire.put(2, wire.put(1, b"".join(wire.put(1, wire.put(1, b"x-fairway-%d" % i)) for i in range(150_000))) + end),
            "long names": wire.put(2, wire.put(1, b"".join(wire.put(1, wire.put(1, b"x-fairway-%d" % i + b"n" * 800)) for i in range(4_500))) + end),
            "long values": wire.put(2, wire.put(1, many(wire.put(1, wire.put(1, b"x-request-id") + wire.put(3, b"v" * 16_000)))) + end),
            "connection": wire.put(2, wire.put(1, wire.put(1, wire.put(1, b"connection") + wire.put(3, many(b"a,")))) + end),
            "attributes": start + attribute,
            "metadata": start + wire.put(8, many(wire.put(1, wire.put(1, b"envoy.lb") + wire.put(2, b"")))),
            "one hint": start + hints(wire.put(3, many(b"10.0.0.1,"))),
            "long hints": start + hints(wire.put(3, many(b"127.0.0.1:" + b"0" * 16_000 + b","))),
            "hints": start + hints(wire.put(6, many(wire.put(1, wire.put(3, b"127.0.0.1"))))),
            "commas": start + hints(wire.put(3, many(b","))),
            "modes": start + many(wire.put(11, wire.put(1, 4))),
            "kinds": many(wire.put(4, b"")) + start,
        }
        for name, message in shapes.items():
            with self.subTest(name), self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=150, after=80), \
                    Connection(epp.grpc) as connection, contextlib.suppress(Closed, TimeoutError):
                for _ in range(4):
                    connection.write(connection.open(), grpc(message))

    def test_orders_of_messages_that_make_no_sense(self):
        epp = self.epp()
        head, body, answer = grpc(wire.request_headers()), grpc(wire.request_body(wire.completion())), grpc(wire.response_headers())
        part = grpc(wire.request_body(b"{", end=False))
        orders = ((answer,), (grpc(wire.response_body(b"x")), head), (head, head), (head, body, body), (head, body, head), (body, head),
                  (head, answer, body), (head, part, answer, part, body), (answer, answer), (head, body, answer, answer),
                  (head, body, answer, grpc(wire.response_body(b"", end=True)), grpc(wire.response_body(b"x"))),
                  (head, grpc(b"\x32\0"), body), (grpc(b"\x3a\0"), head), (head + body + answer,) * 3, (head[:7],), (head, part[:6]))
        with self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=60, after=30):
            for how in ("stay", "reset", "end", "trailers", "leave"):
                with Connection(epp.grpc) as connection:
                    for order in orders * 5:
                        with contextlib.suppress(Closed, TimeoutError):
                            stream = connection.open()
                            for message in order:
                                connection.write(stream, message)
                            if how == "reset":
                                connection.send(frame(wire.RST_STREAM, 0, stream, struct.pack(">I", 2)))
                            elif how == "end":
                                connection.send(frame(wire.DATA, 1, stream))
                            elif how == "trailers":
                                connection.send(frame(wire.HEADERS, 4, stream, wire.field(b"a", b"b")) + frame(wire.DATA, 0, stream, b"x"))

    def test_windows_and_tables_at_odds(self):
        """Updates of 0 and beyond the limit, windows that go and come, tables that change their size with each block."""
        epp = self.epp()
        block = frame(wire.HEADERS, 4, 1, INDEXED)
        asked = wire.data(1, grpc(wire.request_headers(end=True)))
        zero, most = struct.pack(">I", 0), struct.pack(">I", (1 << 31) - 1)
        attacks = {
            "no update": (frame(wire.WINDOW_UPDATE, 0, 1, zero),), "none for all": (frame(wire.WINDOW_UPDATE, 0, 0, zero),),
            "too much": (frame(wire.WINDOW_UPDATE, 0, 1, most) * 2,), "too much for all": (frame(wire.WINDOW_UPDATE, 0, 0, most) * 2,),
            "windows": (wire.settings(window=0), wire.settings(window=(1 << 31) - 1), wire.settings(window=1 << 31)),
            "tables": tuple(wire.settings(table=size) for size in (0, 4096, 1 << 31)),
            "table updates": (frame(wire.HEADERS, 4, 3, b"\x20\x3f\xe1\x1f" * 20 + INDEXED),),
            "an entry that is not": (frame(wire.HEADERS, 4, 3, b"\xff\xff\xff\x7f"),),
            "a bomb": (frame(wire.HEADERS, 4, 3, INDEXED + b"\x40\x01a\x7f\x81\x1f" + b"v" * 4096 + b"\xbe" * 12_000),),
            "padding": (frame(wire.DATA, 8, 1, b"\xff"),), "too long": (frame(wire.DATA, 0, 1, bytes(20_000)),),
            "stream 0": (frame(wire.DATA, 0, 0, b"x"),), "even stream": (frame(wire.HEADERS, 4, 2, INDEXED),),
            "backwards": (frame(wire.HEADERS, 4, 7, AGAIN), frame(wire.HEADERS, 4, 3, AGAIN)),
            "itself": (frame(wire.PRIORITY, 0, 1, struct.pack(">IB", 1, 1)),),
            "in a block": (frame(wire.HEADERS, 0, 3, INDEXED), frame(wire.DATA, 0, 1, b"x")),
            "continued": (frame(wire.CONTINUATION, 4, 1, b""),), "push": (frame(5, 4, 1, struct.pack(">I", 2) + INDEXED),),
            "goaway": (frame(wire.GOAWAY, 0, 0, struct.pack(">II", 0, 0)) * 50,),
        }
        with self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=60, after=30):
            for pieces in attacks.values():
                for _ in range(5):
                    flood(epp.grpc, pieces, seconds=0.2, first=block + asked)

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
