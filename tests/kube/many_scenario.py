"""Many pools in one process, each with a port of its own."""

import os
import random
import threading
import unittest

import cluster
from cluster import V1, Api, Pods, Scenario, await_that, free_ports

IDLE = 1000
KILOBYTES_EACH = 64


class Many(Scenario):
    crds = ("inferencepools-v1",)

    def some_pool(self, space, name, server_port, picker_port, service="picker"):
        self.api.apply(f"{V1}/namespaces/{space}/inferencepools/{name}", {
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": server_port}],
                     "endpointPickerRef": {"name": service, "port": {"number": picker_port}}}})

    def test_each_pool_has_its_port(self):
        servers = self.servers(["127.0.0.2", "127.0.0.3", "127.0.0.4"])
        a, b, c = servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4")
        other = self.cluster.namespace(self.space + "-other")
        first, second, third = free_ports(3)
        self.some_pool(self.space, "a", servers.port, first)
        self.some_pool(other, "b", servers.port, second)
        self.some_pool(self.space, "foreign", servers.port, third, service="somebody-else")
        self.pods.add("a", "127.0.0.2", {"app": "a"})
        Pods(self.api, other).add("b", "127.0.0.3", {"app": "b"})
        epp = self.epp("--all-pools", "--all-namespaces", "--picker-service", "picker", pool="")
        self.assertIn("pools=2 ", epp.await_synced())
        epp.await_addresses(a, b)

        def gateway(port):
            return self.start(cluster.Envoy(self.folder, port))
        envoy_a, envoy_b = gateway(first), gateway(second)
        for _ in range(5):
            self.assertEqual(envoy_a.served_by(), a)
            self.assertEqual(envoy_b.served_by(), b)

        # One that comes while the others serve; one that wants a port that is taken.
        self.some_pool(other, "c", servers.port, third)
        Pods(self.api, other).add("c", "127.0.0.4", {"app": "c"})
        epp.await_addresses(a, b, c)
        self.assertEqual(gateway(third).served_by(), c)
        self.some_pool(self.space, "d", servers.port, first)
        epp.await_logged(f"two pools ask for one port: the older has it.*pool={self.space}/a refused={self.space}/d")
        self.assertEqual(envoy_a.served_by(), a)

        # One that goes takes its port along; what is still connected gets no other pool's servers.
        self.api.must("DELETE", f"{V1}/namespaces/{other}/inferencepools/b")
        epp.await_addresses(a, c)
        self.assertEqual(envoy_b.complete().status, 503)
        self.assertEqual(envoy_a.served_by(), a)
        # And one that moves to another port.
        fourth = free_ports(1)[0]
        self.some_pool(other, "c", servers.port, fourth)
        moved = gateway(fourth)
        await_that(lambda: moved.complete().status == 200, epp.text)
        self.assertEqual(moved.served_by(), c)

    def test_idle_pools_cost_little(self):
        def resident(epp):
            with open(f"/proc/{epp.pid}/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        base = random.randrange(12000, 30000 - IDLE)  # below what the system gives to clients
        self.some_pool(self.space, "first", 8000, base)
        epp = self.epp("--pool-selector", "!odd", pool="")
        epp.await_synced()
        before, files = resident(epp), len(os.listdir(f"/proc/{epp.pid}/fd"))

        def create(start):
            api = Api(self.cluster.port, self.cluster.path("ca.crt"), self.cluster.admin_token)
            for i in range(start, IDLE, 4):
                api.must("POST", f"{V1}/namespaces/{self.space}/inferencepools", {
                    "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": f"idle-{i}"},
                    "spec": {"selector": {"matchLabels": {"app": f"idle-{i}"}}, "targetPorts": [{"number": 8000}],
                             "endpointPickerRef": {"name": "picker", "port": {"number": base + 1 + i}}}})
            api.close()
        threads = [threading.Thread(target=create, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kind = {"resource": "inferencepools.inference.networking.k8s.io"}
        await_that(lambda: epp.metric("fairway_kubernetes_objects", **kind) == IDLE + 1, epp.text)
        await_that(lambda: len(os.listdir(f"/proc/{epp.pid}/fd")) >= files + IDLE * 0.99, epp.text)
        # One more, with a Pod: what all of them cost at each change.
        self.pods.add("a", "127.0.0.2", {"app": "idle-7"})
        epp.await_addresses("127.0.0.2:8000")
        each = (resident(epp) - before) / IDLE
        print(f"\n{each:.1f} KB a pool")
        self.assertLess(each, KILOBYTES_EACH)


if __name__ == "__main__":
    unittest.main(verbosity=2)
