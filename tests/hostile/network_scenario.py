"""Clients that have a whole IPv6 network, and so as many addresses as they like: it is one that is counted. Runs in a network of its
own where the kernel gives one to everybody, and is skipped elsewhere."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import unittest

from attack import Attacked, pool, support
from wire import Closed, Connection, data, grpc, request_headers

NETWORK = "fd00:bad::"
HOST = "fd00:1::1"  # of the picker, in another network
MANY = 600
INSIDE = "FAIRWAY_NETWORK_OF_ITS_OWN"
PUBLISHES = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL".ljust(64, b"\0") + b"\4\x19\5READY\x0bSocket-Type\0\0\0\3PUB"
FEW = ("prlimit", f"--as={6 << 30}", "--nofile=1024")
CENTRAL = """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters: {kvEventsConfig: {discoverPods: false, zmqEndpoint: 'tcp://[::]:%d'}}
- type: random-picker
schedulingProfiles: [{name: default, plugins: [{pluginRef: random-picker}]}]
"""


def make_network():
    lines = [f"addr add {HOST}/128 dev lo nodad", *(f"addr add {NETWORK}{i:x}/128 dev lo nodad" for i in range(1, MANY + 1))]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "-6", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def dial(port, number, timeout=2.0):
    """From that address of the network."""
    connection = socket.socket(socket.AF_INET6)
    connection.settimeout(timeout)
    try:
        connection.bind((f"{NETWORK}{number:x}", 0))
        connection.connect((HOST, port))
    except OSError:
        connection.close()
        raise
    return connection


def is_open(connection):
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)


@unittest.skipUnless(INSIDE in os.environ, "no network of its own can be had here")
class Networks(Attacked):
    def test_calls_that_are_not_answered(self):
        """On more connections than there may be, each from another address: a gateway comes in all the same."""
        epp = self.epp(prefix=FEW)
        with self.beside(epp, ("ext_proc_new", epp.grpc), ("ext_proc", epp.grpc), peak=60, after=40), contextlib.ExitStack() as stack:
            held = []
            for number in range(1, MANY + 1):
                with contextlib.suppress(OSError, Closed):
                    connection = stack.enter_context(Connection(epp.grpc, at=dial(epp.grpc, number)))
                    connection.send(data(connection.open(), grpc(request_headers())))
                    held.append(connection.socket)
            time.sleep(1)
            self.assertLess(sum(map(is_open, held)), 130, "a quarter of 480")

    def test_pages_that_nobody_asks_for(self):
        epp = self.epp("--metrics-host", "::", "--metrics-endpoint-auth=false", prefix=FEW)
        mine = socket.create_connection(("127.0.0.1", epp.admin))
        self.addCleanup(mine.close)
        mine.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(mine.recv(65536).startswith(b"HTTP/1.1 200 "))
        with self.beside(epp, ("page", epp.admin, "/healthz"), peak=40, after=20), contextlib.ExitStack() as stack:
            for number in range(1, 301):
                with contextlib.suppress(OSError):
                    stack.enter_context(dial(epp.admin, number))
            time.sleep(0.5)
            self.assertTrue(is_open(mine), "one that was idle before them all")

    def test_engines_that_are_none(self):
        """Beside one from elsewhere, and one of the same network that is an endpoint."""
        port, = support.free_ports(1)
        known = {"name": "known", "address": f"{NETWORK}{MANY:x}", "port": "8000", "labels": {"app": "pool"}}
        epp = self.epp("--config-file", self.write("config.yaml", CENTRAL % port), prefix=FEW, files=[
            "-f", self.write("manifests.yaml", pool()), "-f", self.write("endpoints.yaml", {"endpoints": [known]})])

        def connect():
            with contextlib.suppress(OSError):
                return dial(port, MANY)
        engines = [support.await_that(connect, epp.text), socket.create_connection(("127.0.0.1", port))]
        for engine in engines:
            self.addCleanup(engine.close)
            engine.sendall(PUBLISHES)
        with self.beside(epp, ("ext_proc", epp.grpc), peak=40, after=20), contextlib.ExitStack() as stack:
            for number in range(1, 301):
                with contextlib.suppress(OSError):
                    stack.enter_context(dial(port, number)).sendall(PUBLISHES)
            time.sleep(0.5)
            self.assertEqual([is_open(engine) for engine in engines], [True, True], "silent before them all")


def main():
    if INSIDE in os.environ:
        make_network()
    elif subprocess.run(["unshare", "-Urn", "ip", "-6", "route"], capture_output=True, check=False).returncode == 0:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-Urn", sys.executable, "-B", *sys.argv])
    unittest.main(verbosity=2)


if __name__ == "__main__":
    main()
