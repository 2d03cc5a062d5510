"""The API server goes away, comes back, forgets, and lies silent, while requests flow."""

import collections
import signal
import unittest

from cluster import Scenario, await_that, support
from load import Load

PODS = {"resource": "pods"}


class Outage(Scenario):
    crds = ("inferencepools-v1",)

    def serve(self):
        """Two Pods, a picker that knows them, a gateway, load."""
        self.model_servers = self.servers(["127.0.0.2", "127.0.0.3", "127.0.0.4"])
        self.pool(self.model_servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        self.pods.add("b", "127.0.0.3", {"app": "pool"})
        epp = self.epp()
        epp.await_addresses(*self.model_servers.at("127.0.0.2", "127.0.0.3"))
        return epp, self.start(Load(self.envoy(epp).port))

    def none_lost(self, load, at_least):
        requests = load.stop()
        outcomes = collections.Counter(r.status for r in requests)
        self.assertEqual(set(outcomes), {200}, outcomes)
        self.assertGreaterEqual(len(requests), at_least)
        return requests

    def test_a_server_killed_and_started_again_costs_no_request(self):
        epp, load = self.serve()
        watches = epp.metric("fairway_kubernetes_watches_total", **PODS)
        self.cluster.kill_server()
        # It is away: what is known serves on, and the metric says how old that is.
        await_that(lambda: epp.metric("fairway_kubernetes_sync_age_seconds", **PODS) > 2, epp.text)
        self.assertEqual(epp.addresses(), self.model_servers.at("127.0.0.2", "127.0.0.3"))
        self.assertTrue(epp.logged("the API server does not answer; what is known of it is served on"), epp.text())
        self.assertEqual(len(epp.logged("does not answer.* resource=pods")), 1, epp.text())
        self.cluster.start_server()
        # A new server knows nothing of the versions of before: listed anew, without a gap.
        self.pods.add("c", "127.0.0.4", {"app": "pool"})
        epp.await_addresses(*self.model_servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4"))
        self.assertEqual(epp.metric("fairway_kubernetes_sync_age_seconds", **PODS), 0)
        self.assertGreater(epp.metric("fairway_kubernetes_watches_total", **PODS), watches)
        count = len(load.done)
        await_that(lambda: len(load.done) > count + 200, "requests after it")
        served = {r.server for r in self.none_lost(load, 500)}
        self.assertEqual(sorted(served), self.model_servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4"))

    def test_what_happened_meanwhile_is_known_afterwards(self):
        epp, load = self.serve()
        a, b, _ = self.model_servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4")
        # Stopped, it takes bytes and says nothing. Then it goes on, and has other things to say than before.
        self.cluster.server.process.send_signal(signal.SIGSTOP)
        count = len(load.done)
        await_that(lambda: len(load.done) > count + 200, "requests meanwhile")
        self.cluster.server.process.send_signal(signal.SIGCONT)
        self.pods.delete("b")
        epp.await_addresses(a)
        self.none_lost(load, 200)


class Compaction(Scenario):
    """Without the watch cache etcd's own history counts, and a compaction takes it away."""
    server_args = ("--watch-cache=false",)
    crds = ("inferencepools-v1",)

    def test_a_watch_that_fell_behind_is_listed_anew(self):
        self.pool(8000)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        self.pods.add("b", "127.0.0.3", {"app": "pool"})
        epp = self.epp()
        epp.await_addresses("127.0.0.2:8000", "127.0.0.3:8000")
        lists = epp.metric("fairway_kubernetes_lists_total", **PODS)
        self.cluster.kill_server()
        epp.await_logged("does not answer.* resource=pods")
        # History goes on without the picker, and what it knows is compacted away.
        self.cluster.start_server_on_another_port()
        self.pods.delete("b", grace=0)
        self.pods.add("c", "127.0.0.4", {"app": "pool"})
        version = int(self.api.must("GET", self.pods.path)["metadata"]["resourceVersion"])
        answer = support.ask(self.cluster.etcd_port, "POST", "/v3/kv/compaction", {"revision": str(version), "physical": True})
        self.assertEqual(answer.status, 200, answer)
        self.cluster.start_server_where_it_was()
        epp.await_addresses("127.0.0.2:8000", "127.0.0.4:8000")
        self.assertTrue(epp.logged("watch fell behind, listing anew.* resource=pods"), epp.text())
        self.assertGreater(epp.metric("fairway_kubernetes_lists_total", **PODS), lists)


if __name__ == "__main__":
    unittest.main(verbosity=2)
