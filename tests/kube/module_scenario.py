"""The picker inside Envoy, with its pool from the Kubernetes API: no process beside the proxy."""

import os
import unittest

import cluster
from cluster import Scenario, await_that, support

MODULE = os.environ.get("FAIRWAY_MODULE", "")


class EnvoyWithModule(cluster.Envoy):
    def __init__(self, folder, settings):
        self.settings = settings
        os.environ["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"] = os.path.dirname(os.path.abspath(MODULE))
        super().__init__(folder, 1)

    def config(self, picker_port):
        config = super().config(picker_port)
        name = os.path.basename(MODULE)[len("lib"):-len(".so")]
        module = {"name": "fairway", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"name": name, "do_not_close": True}, "filter_name": "fairway",
            "filter_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": self.settings}}}
        resources = config["static_resources"]
        manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["http_filters"][0] = module
        resources["clusters"] = [c for c in resources["clusters"] if c["name"] != "picker"]
        return config


class InsideEnvoy(Scenario):
    def start_envoy(self, pool="pool"):
        self.metrics, = support.free_ports(1)
        return self.start(EnvoyWithModule(self.folder, {
            "kubernetes": {"pool": f"{self.space}/{pool}", "kubeconfig": self.cluster.admin_config()},
            "admin": {"port": self.metrics}, "startupWait": "30s"}))

    def fleet(self):
        answer = support.ask(self.metrics, "GET", "/debug/fleet")
        return {address for address in self.known if address.encode() in answer.body}

    def await_fleet(self, *addresses):
        await_that(lambda: self.fleet() == set(addresses), lambda: f"{addresses}, and there is {self.fleet()}")

    def test_pods_come_and_go_and_the_api_server_too(self):
        servers = self.servers(["127.0.0.2", "127.0.0.3"])
        self.known = a, b = servers.at("127.0.0.2", "127.0.0.3")
        self.pool(servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        envoy = self.start_envoy()
        # Asked as soon as Envoy is there, which is before the pool is known: the request waits.
        self.assertEqual(envoy.served_by(), a)
        self.pods.add("b", "127.0.0.3", {"app": "pool"})
        self.await_fleet(a, b)
        self.pods.delete("a")
        self.await_fleet(b)
        self.assertEqual({envoy.served_by() for _ in range(5)}, {b})
        self.cluster.kill_server()
        self.assertEqual({envoy.served_by() for _ in range(5)}, {b})
        self.cluster.start_server()
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        self.await_fleet(a, b)

    def test_a_pool_that_comes_later(self):
        servers = self.servers(["127.0.0.2"])
        self.known = servers.at("127.0.0.2")
        envoy = self.start_envoy("later")
        self.pool(servers.port, name="later")
        self.pods.add("a", "127.0.0.2", {"app": "later"})
        self.assertEqual(envoy.served_by(), self.known[0])


if __name__ == "__main__":
    unittest.main()
