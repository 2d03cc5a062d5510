"""What requests go through: model servers that tell what they got, Envoy, and a client."""

import collections
import hashlib
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "envoy"))
from support import ENVOY, FAIRWAY, Process, ask, await_that  # noqa: E402

CHOICES = "x-test-choices"
Message = collections.namedtuple("Message", "first headers body")


class Wire:
    """HTTP/1.1 messages out of the bytes of one connection; names of headers in lower case."""

    def __init__(self):
        self.bytes = bytearray()
        self.head = None  # first line and headers, once they are there

    def next(self):
        if self.head is None:
            end = self.bytes.find(b"\r\n\r\n")
            if end < 0:
                return None
            lines = bytes(self.bytes[:end]).split(b"\r\n")
            headers = [(name.lower(), value.strip()) for name, value in (line.split(b":", 1) for line in lines[1:])]
            self.head = lines[0], headers
            del self.bytes[:end + 4]
        named = dict(self.head[1])
        if named.get(b"transfer-encoding", b"").lower() == b"chunked":
            body = self._chunks()
        else:
            size = int(named.get(b"content-length", b"0"))
            body = bytes(self.bytes[:size]) if len(self.bytes) >= size else None
            if body is not None:
                del self.bytes[:size]
        if body is None:
            return None
        head, self.head = self.head, None
        return Message(head[0], head[1], body)

    def _chunks(self):
        pieces, at = [], 0
        while True:
            end = self.bytes.find(b"\r\n", at)
            if end < 0:
                return None
            size = int(bytes(self.bytes[at:end]), 16)
            if len(self.bytes) < end + 2 + size + 2:
                return None
            pieces.append(bytes(self.bytes[end + 2:end + 2 + size]))
            at = end + 2 + size + 2
            if size == 0:
                del self.bytes[:at]
                return b"".join(pieces)


class Servers:
    """Model servers on one thread. They serve the metrics page that is set, and keep whatever else they get."""

    def __init__(self, count):
        self.selector = selectors.DefaultSelector()
        self.listeners = []
        for _ in range(count):
            listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, None)
            self.listeners.append(listener)
        self.ports = [listener.getsockname()[1] for listener in self.listeners]
        self.pages = {port: b"" for port in self.ports}
        self.got = collections.deque()  # of (port, Message)
        self.faults = []
        self.stopping = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.stopping:
            for key, _ in self.selector.select(0.1):
                if key.data is None:
                    connection, _ = key.fileobj.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(connection, selectors.EVENT_READ, (connection.getsockname()[1], Wire()))
                else:
                    try:
                        self._read(key.fileobj, *key.data)
                    except Exception as fault:  # pylint: disable=broad-except
                        self.faults.append(repr(fault))
                        self._drop(key.fileobj)

    def _drop(self, connection):
        self.selector.unregister(connection)
        connection.close()

    def _read(self, connection, port, wire):
        try:
            data = connection.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            return self._drop(connection)
        wire.bytes += data
        message = wire.next()
        while message is not None:
            if message.first.startswith(b"GET /metrics "):
                body = self.pages[port]
            else:
                self.got.append((port, message))
                body = b""  # so that the response ends with its headers, which is all that ext_proc gets to see
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            message = wire.next()

    def close(self):
        self.stopping = True
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


def envoy_binary():
    if ENVOY:
        return ENVOY
    tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "get-envoy")
    return subprocess.run([tool], stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout.strip()


class Gateway(Process):
    """The Envoy of `fairway up`, one worker; inside it the module, or the filter that asks `picker` (HOST:PORT) over ext_proc.
    Some things are changed in its configuration, so that more can be seen: control headers of clients reach that filter (the one
    that takes some away is replaced by one that makes a subset hint out of x-test-subset), the module looks for hints and, unless
    `by_policy`, tells Envoy its list of endpoints, and responses carry it. And Envoy makes no request ids of its own, as nobody
    could foresee them.
    """

    def __init__(self, folder, port, *up_flags, picker=None, by_policy=False):
        self.picker, self.by_policy = picker, by_policy
        if picker:
            up_flags += ("--picker", picker)
        printed = subprocess.run([FAIRWAY, "up", "--print-envoy-config", "--listen", f"127.0.0.1:{port}", *up_flags],
                                 stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
        parts = re.split(r"^# (\S+)$", printed, flags=re.MULTILINE)
        files = {name: json.loads(text.replace("/etc/fairway/", folder + "/"))
                 for name, text in zip(parts[1::2], parts[2::2])}
        self._see_more(files, port)
        for name, content in files.items():
            with open(os.path.join(folder, name), "w") as file:
                json.dump(content, file)
        admin = os.path.join(folder, "admin.txt")
        super().__init__([envoy_binary(), "-c", os.path.join(folder, "bootstrap.json"), "--concurrency", "1",
                          "--disable-hot-restart", "--log-level", "warning", "--admin-address-path", admin])
        self.port = port
        await_that(lambda: self._ready(admin), lambda: f"Envoy is ready\n{self.text()}")
        self.connect()

    def connect(self):
        self.connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _see_more(self, files, port):
        files["bootstrap.json"]["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
        manager = files["lds.json"]["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["generate_request_id"] = False
        filters = manager["http_filters"]
        router = "envoy.filters.http.router"
        assert [f["name"] for f in filters] == (
            ["envoy.filters.http.header_mutation", "envoy.filters.http.ext_proc", router] if self.picker
            else ["fairway", router]), filters
        if self.picker:  # answers are shown, as they are to the module
            filters[1]["typed_config"]["processing_mode"]["response_body_mode"] = "STREAMED"
        if not self.picker:
            settings = filters[0]["typed_config"]["filter_config"]["value"]
            assert settings["hostSelection"] == "policy"
            settings["subsetHint"] = True
            if not self.by_policy:
                settings["hostSelection"] = "overrideHost"
                del settings["lastFilter"]  # which says something of the policy only
        # In front, where local mode removes clients' control headers for ext_proc: here the picker has to.
        manager["http_filters"] = [{"name": "envoy.filters.http.header_to_metadata", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [{"header": "x-test-subset", "remove": True, "on_header_present": {
                "metadata_namespace": "envoy.lb.subset_hint", "key": "x-gateway-destination-endpoint-subset"}}]}},
            *filters[-2:]]
        for host in files[f"rds-{port}.json"]["resources"][0]["virtual_hosts"]:
            for route in host["routes"]:
                if "route" in route:
                    route["response_headers_to_add"] = [{"header": {
                        "key": CHOICES, "value": "%DYNAMIC_METADATA(envoy.lb:x-gateway-destination-endpoint)%"}}]

    def _ready(self, admin):
        if self.process.poll() is not None:
            raise AssertionError(f"Envoy ended with {self.process.returncode}:\n{self.text()}")
        try:
            with open(admin) as file:
                address = file.read()
            return ask(int(address.rsplit(":", 1)[1]), "GET", "/ready").status == 200
        except (OSError, IndexError, ValueError):
            return False

    def ask(self, request):
        """The answer to one request. All go over one connection, one after the other, but that Envoy closes it after each 400
        (of any filter).
        """
        wire = Wire()
        message = None
        try:
            self.connection.sendall(request.to_client())
            while message is None:
                data = self.connection.recv(1 << 16)
                if not data:
                    raise ConnectionError("closed")
                wire.bytes += data
                message = wire.next()
        except OSError as fault:
            raise AssertionError(f"{fault!r} instead of an answer to {request}\n{self.text()}") from fault
        if (b"connection", b"close") in message.headers:
            self.connection.close()
            self.connect()
        return message

    def close(self):
        self.connection.close()
        super().close()


def escape(text):
    return "".join(chr(c) if 0x20 <= c < 0x7f and c != 0x25 else f"%{c:02x}" for c in text)


def to_line(answer, got, lists_first):
    """What came of a request, in the words of exchange.cc. `got`: what model servers received since the last one.
    `lists_first`: the list in the metadata begins with the first choice, for which the module has another way.
    """
    status = answer.first.split(b" ")[1]
    named = dict(answer.headers)
    if not got:
        reason = named.get(b"x-llm-d-request-dropped-reason", b"-")
        refused_by = named.get(b"x-fairway-refused-by", b"-")
        again = b"come again" if b"retry-after" in named else b"-"
        return "\t".join(escape(field) for field in (b"refused", status, reason, refused_by, again, answer.body))
    if len(got) != 1 or status != b"200":
        return f"{len(got)} servers got the request, the client {status}"
    port, message = got[0]
    method, target, _ = message.first.split(b" ")
    server = b"127.0.0.1:%d" % port
    choices = named.get(CHOICES.encode(), b"-").split(b",")
    if not lists_first:
        choices = [server] if choices == [b"-"] else [server, *choices]
    if choices[0] != server:
        return f"{server} got the request instead of {choices}"
    headers = sorted(message.headers, key=lambda header: header[0])
    digest = b"%d bytes %s" % (len(message.body), hashlib.sha256(message.body).hexdigest().encode())
    fields = [b"sent", b",".join(choices), method + b" " + target, *(name + b": " + value for name, value in headers), digest]
    return "\t".join(escape(field) for field in fields)
