"""Standalone mode as its Pod runs it: the chart's Envoy configuration and flags, a real Envoy, simulated model servers.
FAIRWAY_BINARY: the picker; FAIRWAY_ENVOY: else what tools/get-envoy installed. The picker reads the Pods from a file here."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from chart import SOURCE, STANDALONE, render, values

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "envoy"))
from support import (FAIRWAY, Process, Sim, Upgrades, ask, await_that, endpoints, free_ports, pool, says_back,  # noqa: E402
                     upgraded)


def envoy_binary():
    given = os.environ.get("FAIRWAY_ENVOY")
    return given or subprocess.run([SOURCE / "tools/get-envoy"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Standalone(unittest.TestCase):
    def start(self, *given):
        """The Pod's two containers, on free ports of loopback."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name)
        self.sim = Sim(2)
        self.addCleanup(self.sim.close)
        manifests = path / "manifests"
        manifests.mkdir()
        (manifests / "pool.json").write_text(json.dumps(pool("pool")))
        (manifests / "endpoints.json").write_text(json.dumps(endpoints(self.sim.ports)))
        self.manifests = manifests

        objects = render(STANDALONE, *given)
        grpc, health, metrics, http, ready, admin = free_ports(6)
        text = objects["ConfigMap", "llama-epp-envoy"]["data"]["envoy.yaml"]
        for there, here in ((9002, grpc), (8081, http), (19001, ready), (19000, admin)):
            text = text.replace(f"port_value: {there}", f"port_value: {here}")
        (path / "envoy.yaml").write_text(text.replace("0.0.0.0", "127.0.0.1"))

        containers = {c["name"]: c for c in objects["Deployment", "llama-epp"]["spec"]["template"]["spec"]["containers"]}
        ports = {"--grpc-port": grpc, "--grpc-health-port": health, "--metrics-port": metrics}
        args = [f"{name}={ports.get(name, value)}" for name, value in (a.split("=", 1) for a in containers["epp"]["args"])
                if not name.startswith("--endpoint-")]
        self.picker = Process([FAIRWAY, "epp", *args, "-f", str(manifests)])
        self.addCleanup(self.picker.close)
        args = [a if a != "/etc/envoy/envoy.yaml" else str(path / "envoy.yaml") for a in containers["envoy-proxy"]["args"]]
        self.envoy = Process([envoy_binary(), *args])
        self.addCleanup(self.envoy.close)
        self.http, self.ready = http, ready
        await_that(lambda: self.complete().status == 200, lambda: self.envoy.text() + self.picker.text(), timeout=20)

    def complete(self, headers=None, **more):
        try:
            return ask(self.http, "POST", "/v1/completions", {"model": "llama", "prompt": "hello", "max_tokens": 2, **more}, headers)
        except OSError:
            return ask.__globals__["Answer"](0, {}, b"")

    def test_requests_go_where_the_picker_says(self):
        self.start()
        served = {self.complete().headers["x-served-by"] for _ in range(20)}
        self.assertEqual(served, set(self.sim.names()))
        self.assertEqual(ask(self.ready, "GET", "/ready").status, 200)
        self.assertIn(b"envoy_cluster_upstream_rq", ask(self.ready, "GET", "/stats/prometheus").body)
        self.assertEqual(ask(self.http, "GET", "/v1/models").status, 200)
        streamed = self.complete(stream=True)
        self.assertIn(b"[DONE]", streamed.body)

        # A client cannot choose: neither a model server nor another address.
        (other,) = free_ports(1)
        for _ in range(5):
            answer = self.complete({"x-gateway-destination-endpoint": f"127.0.0.1:{other}"})
            self.assertEqual(answer.status, 200)
            self.assertIn(answer.headers["x-served-by"], self.sim.names())

        # And without a picker nobody is served, rather than by a client's word.
        self.picker.process.kill()
        self.picker.join()
        answer = self.complete({"x-gateway-destination-endpoint": self.sim.names()[0]})
        self.assertGreaterEqual(answer.status, 500)

    def test_the_frames_of_an_upgrade_pass_by_the_picker(self):
        """Full duplex both ways: what the ends say goes through it."""
        self.start(values("inferenceExtension", {"sidecar": {"responseMode": "full"}}))
        server = Upgrades()
        self.addCleanup(server.close)
        pathlib.Path(self.manifests, "endpoints.json").write_text(json.dumps(endpoints([server.port])))
        await_that(lambda: ask(self.http, "GET", "/").status == 204, self.picker.text)
        connection, head = upgraded(self.http)
        with connection:
            self.assertTrue(head.startswith("HTTP/1.1 101 "), head + self.envoy.text() + self.picker.text())
            for message in (b"hello", b"{", b"x" * 300_000):
                self.assertTrue(says_back(connection, message), self.envoy.text() + self.picker.text())
        await_that(lambda: server.hung_up == 1, self.picker.text)

    def test_plain_text_and_whole_responses(self):
        self.start(values("inferenceExtension", {"flags": {"secure-serving": False}, "sidecar": {"responseMode": "full"}}))
        self.assertIn(b"[DONE]", self.complete(stream=True).body)


if __name__ == "__main__":
    unittest.main()
