"""deploy/side-by-side: two pickers are asked, the first one's answer counts, and Fairway's metrics say how often it would have differed.
The reference is played by a second Fairway that knows one of the two model servers alone."""
import json
import pathlib
import re
import sys
import tempfile
import unittest

from chart import SOURCE, yaml
from standalone_test import envoy_binary

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "envoy"))
from support import FAIRWAY, Process, Sim, ask, await_that, endpoints, free_ports, pool  # noqa: E402


class SideBySide(unittest.TestCase):
    def picker(self, name, ports, *args):
        folder = pathlib.Path(self.folder) / name
        folder.mkdir()
        (folder / "pool.json").write_text(json.dumps(pool("pool")))
        (folder / "endpoints.json").write_text(json.dumps(endpoints(ports)))
        grpc, health, metrics = free_ports(3)
        process = Process([FAIRWAY, "epp", "-f", str(folder), f"--grpc-port={grpc}", f"--grpc-health-port={health}",
                           f"--metrics-port={metrics}", "--drain-timeout=1s", *args])
        self.addCleanup(process.close)
        process.await_logged("serving")
        return process, grpc, metrics

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.sim = Sim(2)
        self.addCleanup(self.sim.close)
        # Fairway prefers the second, the reference knows the first alone.
        self.sim.pin(0, waiting=100)
        _, reference, _ = self.picker("reference", self.sim.ports[:1])
        self.fairway, shadow, self.metrics = self.picker("fairway", self.sim.ports, "--secure-serving=false")

        config = yaml.safe_load((SOURCE / "deploy/side-by-side/envoy.yaml").read_text())
        (self.port,) = free_ports(1)
        # A busy machine is no reason to fail.
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        next(f for f in manager["http_filters"] if f["name"] == "fairway")["typed_config"]["message_timeout"] = "10s"
        listener = config["static_resources"]["listeners"][0]
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": self.port}
        for cluster, ports in zip(config["static_resources"]["clusters"], (self.sim.ports, [reference], [shadow])):
            cluster["type"] = "STATIC"
            cluster.pop("dns_refresh_rate", None)
            cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports]}]
        path = pathlib.Path(self.folder) / "envoy.json"
        path.write_text(json.dumps(config))
        self.envoy = Process([envoy_binary(), "--config-path", str(path), "--log-level", "warn", "--use-dynamic-base-id"])
        self.addCleanup(self.envoy.close)
        await_that(lambda: self.complete() == self.sim.names()[0], lambda: self.envoy.text(), timeout=20)

    def complete(self):
        try:
            answer = ask(self.port, "POST", "/v1/completions", {"model": "llama", "prompt": "hello", "max_tokens": 2})
        except OSError:
            return None
        return answer.headers.get("x-served-by") if answer.status == 200 else None

    def count(self, series):
        page = ask(self.metrics, "GET", "/metrics").body.decode()
        return sum(float(v) for v in re.findall(rf"(?m)^{series}(?:{{[^}}]*}})? (\S+)$", page))

    def test_the_reference_decides_and_fairway_counts(self):
        decided, elsewhere = self.count("fairway_decisions_total"), self.count("fairway_served_elsewhere_total")
        for _ in range(20):
            self.assertEqual(self.complete(), self.sim.names()[0], self.envoy.text())
        decided = await_that(lambda: (n := self.count("fairway_decisions_total") - decided) == 20 and n, self.fairway.text)
        await_that(lambda: self.count("fairway_served_elsewhere_total") - elsewhere == 20,
                   lambda: f"{self.count('fairway_served_elsewhere_total') - elsewhere} of 20 served elsewhere")

        # Now that it would choose as the reference does, nothing is added.
        self.sim.pin(0, waiting=0)
        self.sim.pin(1, waiting=100)
        (elsewhere,) = [self.count("fairway_served_elsewhere_total")]

        def agree():
            before = self.count("fairway_served_elsewhere_total")
            served = [self.complete() for _ in range(10)]
            return set(served) == {self.sim.names()[0]} and self.count("fairway_served_elsewhere_total") == before
        await_that(agree, lambda: f"{self.count('fairway_served_elsewhere_total')} served elsewhere")

    def test_what_fairway_does_wrong_does_not_matter(self):
        # It knows nobody: it would answer 503.
        (pathlib.Path(self.folder) / "fairway/endpoints.json").write_text(json.dumps(endpoints([])))
        await_that(lambda: self.fairway.logged("manifests changed"), self.fairway.text)
        for _ in range(10):
            self.assertEqual(self.complete(), self.sim.names()[0], self.envoy.text())
        self.fairway.process.kill()
        self.fairway.join()
        for _ in range(10):
            self.assertEqual(self.complete(), self.sim.names()[0], self.envoy.text())


if __name__ == "__main__":
    unittest.main()
