"""Attacks on what replicas tell one another, where the victim is the module in an Envoy: who asks it and does not read, who asks
without being one of its peers, and peers that mean harm. Beside them a replica that is one, and one that only listens."""

import contextlib
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import unittest

from attack import Attacked, RawServer, read_head, support
from module_scenario import Envoy, filter_config

TOLD = b"GET /fairway.peers.v1/told HTTP/1.1\r\nHost: x\r\n\r\n"
SNAPSHOT = b"GET /fairway.peers.v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-fairway-peers\r\nTransfer-Encoding: chunked\r\n\r\n"
PEER = "127.0.0.2"  # from where it may be asked
STRANGER = "127.0.0.3"
SECONDS = 2.5


def client(folder=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if folder:
        context.load_cert_chain(folder + "/tls.crt", folder + "/tls.key")
    return context


def dial(port, at, tls=None, buffer=None):
    connection = socket.socket()
    try:
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(2)
        connection.bind((at, 0))
        connection.connect(("127.0.0.1", port))
        return tls.wrap_socket(connection) if tls else connection
    except OSError:
        connection.close()
        raise


def client_hello():
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client().wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    return hello.read()


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def message(*endpoints, replica=7):
    """proto/peers.proto; each endpoint as bytes."""
    text = b"\x09" + struct.pack("<Q", replica) + b"".join(b"\x12" + bytes((len(e),)) + e for e in endpoints)
    return struct.pack("<I", len(text)) + text


MANY = message(*[b"\x0a\x0cdefault/pool\x12\x0f127.0.0.1:%05d\x1a\x04\x08\x01\x10\x01" % (10000 + i) for i in range(20_000)])


def told(connection, pieces, pause=0.0):
    """Answers as a peer does, with these pieces, again and again."""
    if not read_head(connection):
        return
    connection.sendall(HEAD)
    while True:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)


LIARS = {
    "many endpoints": lambda c: told(c, [chunk(MANY)]),
    "small messages": lambda c: told(c, [chunk(message()) * 1000]),
    "a message of 4 GB": lambda c: told(c, [chunk(b"\xff\xff\xff\xff" + b"a" * 60_000)]),
    "noise": lambda c: told(c, [chunk(os.urandom(60_000))]),
    "chunks of one byte": lambda c: told(c, [b"1\r\na\r\n" * 10_000]),
    "a byte now and then": lambda c: told(c, [b"1\r\n\0\r\n"], 0.05),
    "silence": lambda c: c.recv(65536) and c.recv(65536) and c.recv(1),
    "no HTTP": lambda c: read_head(c) and [c.sendall(os.urandom(4096)) for _ in range(10_000)],
    "a head without end": lambda c: read_head(c) and [c.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000) for _ in range(1000)],
    "another page": lambda c: read_head(c) and c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    "the end": lambda c: read_head(c) and c.sendall(HEAD + chunk(message())),
}


class Peers(Attacked):
    @classmethod
    def setUpClass(cls):
        cls.hello = client_hello()

    def certificates(self, *names):
        """Of one authority, and one of nobody ("self"): folders with tls.crt and tls.key."""
        def run(*args):
            subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        run(*new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
        for name in (*names, "self"):
            os.mkdir(os.path.join(self.folder, name))
            signed = () if name == "self" else ("-CA", "ca.crt", "-CAkey", "ca.key")
            run(*new, *signed, "-subj", "/CN=" + name, "-addext", "subjectAltName=IP:127.0.0.1",
                "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", name + "/tls.key", "-out", name + "/tls.crt")
        return [os.path.join(self.folder, name) for name in (*names, "self")]

    def victim(self, liars=(), settings=None, args=()):
        """The module in an Envoy, and a replica that is its peer."""
        servers = self.sim(2)
        port, other, admin = support.free_ports(3)
        peers = {"addresses": [f"127.0.0.1:{other}", f"{PEER}:1", *(f"127.0.0.1:{liar}" for liar in liars)], "port": port,
                 **(settings or {})}
        config = {"pools": [{"name": "default/pool"}], "admin": {"port": admin}, "peers": peers}
        envoy = self.start(Envoy(self.folder, [{"name": "fairway", "typed_config": filter_config(config)}]))
        envoy.set_hosts(servers.ports)
        support.await_that(lambda: envoy.ask().status == 200, envoy.text)
        envoy.peer, envoy.page = port, admin
        self.replica = self.epp("--peers", f"127.0.0.1:{port}", "--peer-port", str(other), "--secure-serving=true", *args, ports=servers.ports)
        self.await_heard(envoy)
        return envoy

    def value(self, port, series):
        found = re.search("^" + re.escape(series) + r" (\d+)", support.ask(port, "GET", "/metrics").body.decode(), re.M)
        return int(found[1]) if found else 0

    def heard(self, port):
        return self.value(port, 'fairway_peers{state="heard"}')

    def await_heard(self, envoy):
        support.await_that(lambda: self.heard(envoy.page) >= 1 and self.heard(self.replica.admin) == 1,
                           lambda: envoy.text() + self.replica.text())

    @contextlib.contextmanager
    def attacked(self, envoy, folder="", peak=60, after=40):
        """What peers are told is never as late as a peer takes for its end (1 s), and clients are served."""
        with self.beside(envoy, ("told", envoy.peer, folder), ("gateway", envoy.port), peak=peak, after=after, late=1.0) as memory:
            with contextlib.ExitStack() as stack:
                yield stack
            self.await_heard(envoy)
        return memory

    def many(self, stack, count, *args, text=b"", **options):
        connections = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(dial(*args, **options))
                connections.append(connection)
                connection.sendall(text)
        return connections

    def test_listeners_that_do_not_read(self):
        """Peers by their address, more than there may be of it: some never read, some a byte now and then, some ask on and on."""
        envoy = self.victim()
        with self.attacked(envoy) as stack:
            tls = client()
            slow = []
            for text in (TOLD, TOLD * 200, SNAPSHOT * 200, SNAPSHOT + TOLD):
                slow += self.many(stack, 10, envoy.peer, PEER, tls, 4096, text=text)
                self.assertEqual(slow[-1].recv(12), b"HTTP/1.1 200")
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                for connection in slow[::2]:
                    with contextlib.suppress(OSError):
                        connection.recv(1)
                time.sleep(0.1)

    def test_strangers(self):
        """Who is none of its peers, on more connections than there may be: silent, in the middle of a handshake, with noise, and asking."""
        envoy = self.victim()
        with self.attacked(envoy) as stack:
            for last in range(40):
                at = f"127.0.1.{last + 1}"
                for text in (b"", self.hello[:50], self.hello, os.urandom(3000), b"GET / HTTP/1.1\r\n\r\n"):
                    self.many(stack, 1, envoy.peer, at, text=text)
            asking = self.many(stack, 10, envoy.peer, STRANGER, client(), text=TOLD * 300)
            for connection in asking:
                with contextlib.suppress(OSError):
                    self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 403 "))
            time.sleep(1)

    def test_connections_without_end(self):
        """Each begins a handshake, which costs most, and goes."""
        envoy = self.victim()
        counts = []

        def flood(at):
            count, end = 0, time.monotonic() + SECONDS
            while time.monotonic() < end:
                with contextlib.suppress(OSError), dial(envoy.peer, at) as connection:
                    connection.sendall(self.hello)
                    count += 1
            counts.append(count)
        with self.attacked(envoy):
            threads = [threading.Thread(target=flood, args=(f"127.0.2.{i}",)) for i in range(1, 5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertGreater(sum(counts), 100)

    def test_impostors(self):
        """Where certificates are asked for nobody is told, or heard, without one of the authority."""
        replica, victim, nobody = self.certificates("replica", "victim")
        ca = os.path.join(self.folder, "ca.crt")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(nobody + "/tls.crt", nobody + "/tls.key")
        asked = []

        def talk(connection):
            with server.wrap_socket(connection, server_side=True) as secure:
                asked.append(read_head(secure))
        liar = self.start(RawServer(talk))
        envoy = self.victim([liar.port], {"certDir": victim, "caFile": ca}, ("--cert-path", replica, "--peer-ca-file", ca))
        got = []
        with self.attacked(envoy, replica) as stack:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                for tls in (client(), client(nobody)):
                    for at in (PEER, "127.0.0.1"):
                        for connection in self.many(stack, 3, envoy.peer, at, tls, text=TOLD):
                            with contextlib.suppress(OSError):
                                got.append(connection.recv(65536))
                self.many(stack, 10, envoy.peer, PEER, text=self.hello)
        self.assertEqual(set(filter(None, got)), set())
        self.assertEqual(asked, [])
        self.assertEqual(self.heard(envoy.page), 1)

    def test_peers_that_lie(self):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair, = self.certificates()
        server.load_cert_chain(pair + "/tls.crt", pair + "/tls.key")

        def secure(talk):
            def talks(connection):
                with server.wrap_socket(connection, server_side=True) as stream:
                    talk(stream)
            return talks
        liars = [self.start(RawServer(secure(talk))) for talk in LIARS.values()]
        envoy = self.victim([liar.port for liar in liars])
        with self.attacked(envoy, peak=100, after=60):
            time.sleep(SECONDS)
        for reason in ("too-much", "malformed", "another-version", "closed"):
            self.assertGreater(self.value(envoy.page, f'fairway_peer_streams_ended_total{{reason="{reason}"}}'), 0, reason)


if __name__ == "__main__":
    unittest.main(verbosity=2)
