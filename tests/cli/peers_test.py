"""Replicas of `fairway epp` that tell one another what they know: real processes, real model servers, gateways' calls over
ext_proc. Standard library only."""
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "hostile"))
import wire
from processes_test import FAIRWAY, PATIENCE, Epp, await_that, free_port, get, metric

POOL = "default/llama"
PROMPT = b"A long system prompt that many requests begin with. " * 200  # 10 KB, 40 blocks


def manifest(ports):
    return f"""apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: llama}}
spec:
  selector: {{matchLabels: {{app: vllm}}}}
  targetPorts: [{{number: 8000}}]
  endpointPickerRef: {{name: epp, port: {{number: 9002}}}}
---
endpoints:
""" + "".join(f'- {{name: s{port}, address: 127.0.0.1, port: "{port}", labels: {{app: vllm}}}}\n' for port in ports)


class Replica(Epp):
    """Its ext_proc port is `grpc`, the one that peers ask `peer`."""

    def __init__(self, servers, peer, others, *args):
        self.peer = peer
        super().__init__("--peer-port", str(peer), "--peers", ",".join(f"127.0.0.1:{port}" for port in others), *args,
                         manifest=manifest(servers))
        self.await_healthy()
        await_that(lambda: re.search(r"ext_proc=(\d+)", self.log()), lambda: self.log())
        self.grpc = int(re.search(r"ext_proc=(\d+)", self.log())[1])

    def value(self, series):
        return metric(self.port, series) or 0

    def heard(self):
        return self.value('fairway_peers{state="heard"}')

    def requests(self, server):
        """Open ones at that model server, and of these its own, as this replica has it."""
        for pool in json.loads(get(self.port, "/debug/fleet"))["pools"]:
            for endpoint in pool["endpoints"]:
                if endpoint["address"].endswith(f":{server}"):
                    return endpoint
        raise AssertionError(server)


class Servers(contextlib.AbstractContextManager):
    """Simulated model servers."""

    def __init__(self, count):
        self.process = subprocess.Popen([FAIRWAY, "sim", "--listen", "127.0.0.1:0", "--count", str(count), "--model", "llama"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.ports = []
        while len(self.ports) < count:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError("the simulator has ended")
            if found := re.search(rb"http://127\.0\.0\.1:(\d+)", line):
                self.ports.append(int(found[1]))

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Call(contextlib.AbstractContextManager):
    """A request that was sent on to `server`, and has no answer until this ends."""

    def __init__(self, replica, prompt=b"hello"):
        self.connection = wire.Connection(replica.grpc, timeout=PATIENCE)
        body = b'{"model":"llama","stream":true,"prompt":"' + prompt + b'"}'
        stream = self.connection.open()
        self.connection.write(stream, wire.grpc(wire.request_headers(mode=wire.BUFFERED)))
        self.connection.write(stream, wire.grpc(wire.request_body(body)))
        answer = b""
        while not (found := re.search(rb"x-gateway-destination-endpoint.{0,8}?127\.0\.0\.1:(\d+)", answer, re.DOTALL)):
            answer += self.connection.read()[3]
        self.server = int(found[1])

    def __exit__(self, *_):
        self.connection.close()


class Peers(unittest.TestCase):
    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.servers = self.stack.enter_context(Servers(4)).ports

    def replica(self, peer, others, *args):
        return self.stack.enter_context(Replica(self.servers, peer, others, *args))

    def test_a_latecomer_predicts_what_only_its_peers_learned(self):
        ports = [free_port() for _ in range(3)]
        first = self.replica(ports[0], ports)
        with Call(first, PROMPT) as call:
            home = call.server
        second = self.replica(ports[1], ports)
        await_that(lambda: second.value('fairway_peer_snapshots_total{direction="fetched",result="complete"}') == 1,
                   lambda: second.log())
        predicted = f'fairway_prefix_predicted_tokens_total{{pool="{POOL}",state="cached"}}'
        self.assertEqual(second.value(predicted), 0)
        with Call(second, PROMPT) as call:
            self.assertEqual(call.server, home)
        self.assertGreater(second.value(predicted), 2000, "of 2,600 tokens")
        # And what is sent while both are there.
        await_that(lambda: first.heard() == 1 and second.heard() == 1, lambda: first.log() + second.log())
        other = b"Another beginning, of another system. " * 200
        with Call(second, other) as call:
            home = call.server
        def first_knows():
            before = first.value(predicted)
            with Call(first, other) as call:
                return call.server == home and first.value(predicted) - before > 1000
        await_that(first_knows, "what a peer placed is not known")

    def test_a_peers_open_requests_count_until_they_end_or_it_dies(self):
        ports = [free_port() for _ in range(3)]
        first, second, third = [self.replica(port, ports) for port in ports]
        for replica in (first, second, third):
            await_that(lambda: replica.heard() == 2, lambda: replica.log())
        with Call(first, b"one after the other " * 500) as one:
            await_that(lambda: second.requests(one.server)["others"] == 1, lambda: get(second.port, "/debug/fleet"))
            with Call(second, b"two at once are too many " * 500) as two:
                self.assertNotEqual(one.server, two.server)

                def third_knows(*busy):
                    return all(third.requests(server)["others"] == busy.count(server) for server in self.servers)

                def page():
                    return get(third.port, "/debug/fleet")

                await_that(lambda: third_knows(one.server, two.server), page)
                self.assertEqual(third.requests(one.server)["inflight"], 0)
                self.assertGreater(third.requests(one.server)["workMs"], 100)
                second.process.send_signal(signal.SIGKILL)
                await_that(lambda: third_knows(one.server), page)
                self.assertEqual(third.heard(), 1)
                # One that is stopped is silent, and its requests are forgotten as well.
                first.process.send_signal(signal.SIGSTOP)
                await_that(third_knows, page)
                first.process.send_signal(signal.SIGCONT)
                await_that(lambda: third_knows(one.server), page)
        await_that(third_knows, page)

    def test_with_authorities_only_whom_they_signed(self):
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())

        def openssl(*args):
            subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

        def authority(name):
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
                    f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")

        def certificate(name, by, san="IP:127.0.0.1"):
            os.mkdir(f"{folder}/{name}")
            openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                    "-keyout", f"{name}/tls.key", "-out", f"{name}.csr")
            with open(f"{folder}/{name}.ext", "w") as file:
                file.write(f"subjectAltName={san}\n")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial",
                    "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}/tls.crt")

        authority("ours")
        authority("theirs")
        certificate("good", "ours")
        certificate("stranger", "theirs")
        certificate("misnamed", "ours", "DNS:elsewhere")
        ports = [free_port() for _ in range(4)]

        def replica(number, name):
            return self.replica(ports[number], ports, "--secure-serving=true", "--cert-path", f"{folder}/{name}",
                                "--peer-ca-file", f"{folder}/ours.crt")

        first, second = replica(0, "good"), replica(1, "good")
        stranger, misnamed = replica(2, "stranger"), replica(3, "misnamed")
        for one in (first, second):
            await_that(lambda: one.heard() >= 1, lambda: one.log())
        await_that(lambda: misnamed.heard() == 2, lambda: misnamed.log())
        self.assertEqual((first.heard(), second.heard()), (1, 1), "each other, and neither of the other two")
        self.assertEqual(stranger.heard(), 0)

    def test_nobody_is_answered_from_where_no_peer_is(self):
        port = free_port()
        replica = self.replica(port, [port])
        for source, status in (("127.0.0.1", 200), ("127.0.0.2", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE, source_address=(source, 0))
            connection.request("GET", "/fairway.peers.v1/snapshot")
            self.assertEqual(connection.getresponse().status, status, source)
            connection.close()
        self.assertIsNone(replica.process.poll())

    def test_a_wrong_peer_is_a_wrong_flag_and_a_taken_port_names_its_flag(self):
        taken = socket.create_server(("", free_port()), family=socket.AF_INET6, dualstack_ipv6=True)
        self.addCleanup(taken.close)
        for args, code, what in ((("--peers", "nosuch:99999"), 2, "--peers: "),
                                 (("--peers", "a", "--peer-port", str(taken.getsockname()[1])), 3, "--peer-port: cannot listen on ")):
            with Epp(*args, "--secure-serving=true") as epp:
                self.assertEqual(epp.process.wait(PATIENCE), code, epp.log())
                self.assertIn(what, epp.log())

    def test_what_makes_no_sense_is_refused(self):
        for args, what in ((("--peers", "a:b"), "a:b"), (("--peers", "http://x:1"), "want HOST or HOST:PORT, without a scheme or a path"),
                           (("--peers", "a", "--peer-interval", "1s"), "10ms to 200ms"),
                           (("--peers", "a", "--peer-ca-file", "x"), "--cert-path")):
            with Epp(*args, "--secure-serving=true") as epp:
                self.assertNotEqual(epp.process.wait(PATIENCE), 0)
                self.assertIn(what, epp.log())


if __name__ == "__main__":
    unittest.main()
