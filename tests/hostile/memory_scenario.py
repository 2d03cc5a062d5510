"""Attacks on the ext_proc port: memory that is kept, or that somebody else gets to read."""

import contextlib
import struct
import time
import unittest

import wire
from attack import MB, Attacked, page
from wire import AGAIN, INDEXED, Closed, Connection, flood, frame, grpc, streams


BUDGET = 512  # MB: max_buffered_bytes


class Memory(Attacked):
    def test_streams_too_many_before_the_settings_are_acknowledged(self):
        """Each is answered with a reset that nobody reads."""
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), peak=200, after=100):
            flood(epp.grpc, streams(b"\x83\x86\x84", first=1, count=2_000_000), seconds=4, ack=False)

    def test_idle_streams(self):
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), peak=BUDGET + 250, after=150), contextlib.ExitStack() as stack:
            for _ in range(24):
                with contextlib.suppress(Closed):
                    connection = stack.enter_context(Connection(epp.grpc, timeout=3))
                    connection.send(frame(wire.SETTINGS, 1, 0) + frame(wire.HEADERS, 4, 1, INDEXED))
                    for piece in streams(AGAIN, first=3, count=9_990):
                        connection.send(piece)
            time.sleep(0.5)

    def test_ids_of_4_mb(self):
        """Kept for as long as their calls are open, and a body follows that never comes."""
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), peak=250, after=120), Connection(epp.grpc) as connection:
            message = grpc(wire.request_headers(((b"x-request-id", b"i" * (4 * MB - 4000)),)))
            with contextlib.suppress(Closed):
                for _ in range(80):
                    connection.write(connection.open(), message)

    def test_unfinished_bodies(self):
        """One pot for all: who holds most has to pay, not who comes next."""
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), peak=BUDGET + 300, after=150), contextlib.ExitStack() as stack:
            piece = grpc(wire.request_body(b" " * (1 * MB), end=False))
            for _ in range(9):
                with contextlib.suppress(Closed, TimeoutError):
                    connection = stack.enter_context(Connection(epp.grpc, timeout=2))
                    stream = connection.open()
                    connection.write(stream, grpc(wire.request_headers()))
                    for _ in range(60):
                        if any(kind == wire.RST_STREAM for kind, *_ in connection.write(stream, piece)):
                            break
            time.sleep(0.5)

    def test_events_that_do_not_end(self):
        """A model server's line without an end, on many calls: a part of each is kept to find the usage in it."""
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), peak=BUDGET + 150, after=120), contextlib.ExitStack() as stack:
            line = grpc(wire.response_body(b"data: " + b"x" * 250_000))
            head = grpc(wire.request_headers(end=True)) + grpc(wire.response_headers((b"content-type", b"text/event-stream")))
            for _ in range(4):
                with contextlib.suppress(Closed, TimeoutError):
                    connection = stack.enter_context(Connection(epp.grpc, timeout=3))
                    for _ in range(300):
                        connection.write(connection.open(), head + line)

    def test_answers_that_nobody_reads(self):
        """A window of 0: what was asked for waits, for as long as somebody lets it."""
        epp = self.epp()
        body = grpc(wire.request_body(b'{"model":"m","prompt":"' + b"x" * (3 * MB) + b'"}'))
        with self.beside(epp, ("ext_proc", epp.grpc), peak=BUDGET + 300, after=150), contextlib.ExitStack() as stack:
            for _ in range(6):
                with contextlib.suppress(Closed, TimeoutError):
                    connection = stack.enter_context(Connection(epp.grpc, window=0, timeout=1))
                    for _ in range(20):
                        connection.write(connection.open(), grpc(wire.request_headers()) + body)
            time.sleep(0.5)

    def test_a_client_that_reads_slowly_gets_nothing_of_another(self):
        """The body's memory is given by reference; a message that ends its use comes while it waits to be sent."""
        epp = self.epp()
        secret = b"the other client's secret; "
        with self.beside(epp, ("ext_proc", epp.grpc), peak=200), Connection(epp.grpc) as other, \
                Connection(epp.grpc, window=0) as slow:
            size = 3_000_000
            mine = b'{"model":"m","prompt":"' + b"m" * size + b'"}'
            for odd in (b"\x50\x01", wire.request_headers(end=True), wire.request_body(b"more"), b"\x3a\x00"):
                stream = slow.open()
                with contextlib.suppress(Closed):
                    slow.write(stream, grpc(wire.request_headers()) + grpc(wire.request_body(mine)))
                    slow.write(stream, grpc(odd))
                time.sleep(0.1)
                theirs = other.open()
                other.write(theirs, grpc(wire.request_headers()))
                for _ in range(4):
                    other.write(theirs, grpc(wire.request_body(secret * (900_000 // len(secret)), end=False)))
                got = bytearray()
                with contextlib.suppress(Closed, TimeoutError):
                    slow.socket.settimeout(1)
                    slow.send(frame(wire.WINDOW_UPDATE, 0, stream, struct.pack(">I", (1 << 31) - 1)))
                    while len(got) < size:
                        kind, flags, of, payload = slow.read()
                        if of == stream and kind == wire.DATA:
                            got += payload
                        if of == stream and (kind == wire.RST_STREAM or flags & 1 and kind in (wire.DATA, wire.HEADERS)):
                            break
                self.assertNotIn(secret, bytes(got))
                self.assertLess(len(got.replace(b"m", b"")), 20_000)  # nothing but our own, and what frames it

    def test_thousands_of_connections(self):
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=150, after=60), \
                contextlib.ExitStack() as stack:
            for _ in range(1500):
                stack.enter_context(Connection(epp.grpc))
            time.sleep(0.3)

    def test_resets_at_once_whatever_their_code(self):
        """And the connection that makes no other use of it is ended."""
        epp = self.epp()
        for code in (wire.NO_ERROR, wire.CANCEL, 5):
            def resets(code=code):
                reset = struct.pack(">I", code)
                for at in range(3, 1 << 21, 4000):
                    yield b"".join(frame(wire.HEADERS, 4, stream, AGAIN) + frame(wire.RST_STREAM, 0, stream, reset)
                                   for stream in range(at, at + 4000, 2))
            with self.subTest(code=code), self.beside(epp, ("ext_proc", epp.grpc), peak=100, after=50):
                sent = flood(epp.grpc, resets(), seconds=4, first=frame(wire.HEADERS, 4, 1, INDEXED))
                self.assertLess(sent, 8 * MB, "the connection was closed")

    def test_a_client_that_never_reads_is_ended_and_its_memory_is_free(self):
        """No progress for 30 s ends a call, also where PINGs are answered."""
        epp = self.epp()
        body = grpc(wire.request_body(b'{"model":"m","prompt":"' + b"x" * (3 * MB) + b'"}'))
        with self.beside(epp, ("ext_proc", epp.grpc), peak=250, after=100), Connection(epp.grpc, window=0, timeout=2) as stuck:
            began = time.monotonic()
            with contextlib.suppress(Closed, TimeoutError):  # the picker may read no more for as long as we do not
                for _ in range(20):
                    stuck.write(stuck.open(), grpc(wire.request_headers()) + body)
            ended = False
            with contextlib.suppress(TimeoutError):
                stuck.socket.settimeout(50)
                try:
                    while not ended:
                        kind, *_ = stuck.read()
                        ended = kind in (wire.RST_STREAM, wire.GOAWAY)
                except Closed:
                    ended = True
            self.assertTrue(ended)
            self.assertLess(time.monotonic() - began, 50)

    def test_the_page_stays_small_whatever_names_clients_choose(self):
        epp = self.epp()
        with self.beside(epp, ("ext_proc", epp.grpc), ("page", epp.admin, "/metrics"), peak=200, after=120), \
                Connection(epp.grpc) as connection:
            for i in range(150):
                name = b"%d" % i + b"\xc3\xa9\"\\" * 1000
                for headers, model in (((), b"%d" % i + b"n" * 4000), (((b"x-llm-d-model-name-rewrite", name),), b"m"),
                                       (((b"x-llm-d-inference-fairness-id", name),), b"m"),
                                       (((b"x-llm-d-inference-fairness-id", b"a\xff%d" % i),), b"m")):
                    with contextlib.suppress(Closed):
                        stream = connection.open()
                        connection.write(stream, grpc(wire.request_headers(headers)) +
                                         grpc(wire.request_body(wire.completion(model))))
        text = page(epp)
        self.assertLess(len(text), 11 * MB)
        text.decode()  # Prometheus drops a page that is no UTF-8


if __name__ == "__main__":
    unittest.main(verbosity=2)
