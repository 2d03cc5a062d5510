"""Pools, models and Pods of a real API server, served end to end through Envoy."""

import collections
import http.client
import json
import os
import unittest

from cluster import ROOT, V1, X, Scenario, await_that, support


class Serving(Scenario):
    def test_the_introduction(self):
        """Its manifests as they are, three Pods, Envoy: the two versions of the model get their shares."""
        servers = self.servers(["127.0.0.2", "127.0.0.3", "127.0.0.4"],
                               "--adapter", "vllm-llama2-7b-2024-11-20,vllm-llama2-7b-2025-03-24")
        for kind, name, file in (("inferencepools", "vllm-llama2-7b-pool", "intro-pool.yaml"),
                                 ("inferencemodels", "inferencemodel-llama2", "intro-model.yaml")):
            text = (ROOT / "examples" / file).read_text().replace("8000", str(servers.port))
            self.api.apply(f"{X}/namespaces/{self.space}/{kind}/{name}", text)
        for i in (2, 3, 4):
            self.pods.add(f"llama-{i}", f"127.0.0.{i}", {"app": "vllm-llama2-7b"})
        epp = self.epp(pool="vllm-llama2-7b-pool")
        epp.await_synced()
        epp.await_addresses(*servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4"))
        envoy = self.envoy(epp)

        served = collections.Counter()
        for _ in range(100):
            answer = envoy.complete("llama2")
            self.assertEqual(answer.status, 200, answer)
            served[answer.headers["x-served-by"]] += 1
        self.assertLessEqual(set(served), set(servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4")))

        def share(target):
            return epp.metric("llm_d_epp_request_total", model_name="llama2", target_model_name=target,
                              fairness_id="default-flow", priority="1") or 0
        shares = [share("vllm-llama2-7b-2024-11-20"), share("vllm-llama2-7b-2025-03-24")]
        self.assertEqual(sum(shares), 100, epp.text())
        self.assertTrue(55 <= shares[0] <= 92, shares)  # 75 of 100, within four standard deviations
        self.assertEqual(envoy.complete("unknown").status, 404)

        # The oldest InferenceModel of a name is served, and when it goes the next one.
        models_path = f"{X}/namespaces/{self.space}/inferencemodels"
        self.api.apply(models_path + "/younger", {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel", "metadata": {"name": "younger"},
            "spec": {"modelName": "llama2", "poolRef": {"name": "vllm-llama2-7b-pool"}, "targetModels": [{"name": "llama"}]}})
        self.api.must("DELETE", models_path + "/inferencemodel-llama2")
        await_that(lambda: envoy.complete("llama2").status == 200 and epp.metric(
            "llm_d_epp_request_total", model_name="llama2", target_model_name="llama", fairness_id="default-flow",
            priority="-1"), epp.text)

    def test_pods_come_and_go(self):
        servers = self.servers(["127.0.0.2", "127.0.0.3", "127.0.0.4"])
        a, b, c = servers.at("127.0.0.2", "127.0.0.3", "127.0.0.4")
        self.pool(servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"}, node="node")
        self.pods.add("b", "127.0.0.3", {"app": "pool"}, ready=False)
        self.pods.add("other", "127.0.0.9", {"app": "other"})
        epp = self.epp()
        epp.await_addresses(a)
        envoy = self.envoy(epp)
        self.assertEqual(envoy.served_by(), a)

        self.pods.set("b", "127.0.0.3", ready=True)
        epp.await_addresses(a, b)
        self.pods.set("b", "127.0.0.3", ready=False)
        epp.await_addresses(a)
        self.pods.set("b", "127.0.0.3", ready=True)
        epp.await_addresses(a, b)

        # A terminating Pod leaves at once; the stream that runs on it goes on to its end.
        self.pods.set("b", "127.0.0.3", ready=False)
        epp.await_addresses(a)
        connection = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"model": "llama", "prompt": "hello", "max_tokens": 1500, "ignore_eos": True, "stream": True}),
            {"content-type": "application/json"})
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        first = answer.readline()
        self.assertTrue(first.startswith(b"data:"), first)
        self.pods.delete("a", grace=30)
        epp.await_addresses()
        self.assertEqual(envoy.complete().status, 503)
        self.assertEqual(epp.metric("llm_d_epp_request_running", model_name="llama", target_model_name="llama",
                                    fairness_id="default-flow", priority="0"), 1.0)
        rest = answer.read()
        self.assertTrue(rest.rstrip().endswith(b"[DONE]"), rest[-200:])
        connection.close()
        await_that(lambda: epp.metric("llm_d_epp_request_running", model_name="llama", target_model_name="llama",
                                      fairness_id="default-flow", priority="0") == 0, epp.text)

        # Another Pod of the same name and address is another server.
        self.pods.delete("a", grace=0)
        await_that(lambda: self.api.call("GET", self.pods.path + "/a")[0] == 404, "the Pod is gone")
        self.pods.add("a", "127.0.0.4", {"app": "pool"})
        epp.await_addresses(c)
        self.assertEqual(envoy.served_by(), c)

    def test_pools_change(self):
        first, second = self.servers(["127.0.0.2", "127.0.0.3"]), self.servers(["127.0.0.2", "127.0.0.3"])
        self.pool(first.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool", "tier": "x"})
        self.pods.add("b", "127.0.0.3", {"app": "pool", "tier": "y"})
        epp = self.epp()
        epp.await_addresses(*first.at("127.0.0.2", "127.0.0.3"))
        # Ports.
        self.pool([first.port, second.port])
        epp.await_addresses(*first.at("127.0.0.2", "127.0.0.3"), *second.at("127.0.0.2", "127.0.0.3"))
        self.pods.patch("a", {"metadata": {"annotations": {"llm-d.ai/active-ports": str(second.port)}}})
        epp.await_addresses(*first.at("127.0.0.3"), *second.at("127.0.0.2", "127.0.0.3"))
        self.pods.patch("a", {"metadata": {"annotations": {"llm-d.ai/active-ports": None}}})
        # The selector.
        self.pool(first.port, labels={"tier": "y"})
        epp.await_addresses(*first.at("127.0.0.3"))
        self.pods.patch("b", {"metadata": {"labels": {"tier": "x"}}})
        epp.await_addresses()
        self.pool(first.port, labels={"app": "pool"})
        epp.await_addresses(*first.at("127.0.0.2", "127.0.0.3"))
        # The pool goes and comes back.
        envoy = self.envoy(epp)
        self.api.must("DELETE", f"{V1}/namespaces/{self.space}/inferencepools/pool")
        epp.await_logged("there is no such InferencePool")
        self.assertEqual(envoy.complete().status, 503)
        self.pool(first.port)
        epp.await_logged("the InferencePool is there")
        self.assertEqual(envoy.complete().status, 200)

    def test_the_pool_of_the_newer_group_wins_unless_told_otherwise(self):
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        self.api.apply(f"{X}/namespaces/{self.space}/inferencepools/pool", {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool", "metadata": {"name": "pool"},
            "spec": {"selector": {"app": "pool"}, "targetPortNumber": 8001, "extensionRef": {"name": "picker"}}})
        both, old = self.epp(), self.epp("--pool-group", "inference.networking.x-k8s.io")
        both.await_addresses("127.0.0.2:8001")
        old.await_addresses("127.0.0.2:8001")
        self.pool(8002)
        both.await_addresses("127.0.0.2:8002")
        old.await_addresses("127.0.0.2:8001")

    def test_objectives_and_rewrites(self):
        servers = self.servers(["127.0.0.2"])
        self.pool(servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        llmd = "/apis/llm-d.ai/v1alpha2"

        def apply(group, kind, name, spec):
            self.api.apply(f"/apis/{group}/v1alpha2/namespaces/{self.space}/{kind.lower()}s/{name}",
                           {"apiVersion": group + "/v1alpha2", "kind": kind, "metadata": {"name": name},
                            "spec": {"poolRef": {"name": "pool"}, **spec}})

        rules = [{"matches": [{"model": {"value": "alias"}}], "targets": [{"modelRewrite": "llama"}]}]
        apply("llm-d.ai", "InferenceModelRewrite", "r", {"rules": rules})
        apply("llm-d.ai", "InferenceObjective", "batch", {"priority": -3})
        # Where llm-d's CRDs are installed the older group's are not looked at.
        apply("inference.networking.x-k8s.io", "InferenceObjective", "old", {"priority": 7})
        epp = self.epp()
        epp.await_addresses(*servers.at("127.0.0.2"))
        envoy = self.envoy(epp)
        self.assertEqual(envoy.complete("alias").status, 200)
        for objective in ("batch", "old"):
            answer = support.ask(envoy.port, "POST", "/v1/completions", {"model": "llama", "prompt": "x", "max_tokens": 1},
                                 {"x-gateway-inference-objective": objective})
            self.assertEqual(answer.status, 200, answer)
        count = "llm_d_epp_request_total"
        labels = {"target_model_name": "llama", "fairness_id": "default-flow"}
        await_that(lambda: epp.metric(count, model_name="alias", **labels, priority="0") == 1, epp.text)
        self.assertEqual(epp.metric(count, model_name="llama", **labels, priority="-3"), 1)
        self.assertEqual(epp.metric(count, model_name="llama", **labels, priority="0"), 1)
        # One that changes.
        self.api.must("DELETE", f"{llmd}/namespaces/{self.space}/inferencemodelrewrites/r")
        await_that(lambda: epp.metric("fairway_kubernetes_objects", resource="inferencemodelrewrites.llm-d.ai") == 0, epp.text)

    def test_without_any_pool(self):
        servers = self.servers(["127.0.0.2", "127.0.0.3"])
        self.pods.add("a", "127.0.0.2", {"app": "vllm", "tier": "x"})
        self.pods.add("b", "127.0.0.3", {"app": "vllm"})
        epp = self.epp("--endpoint-selector", "app in (vllm),!tier", "--endpoint-target-ports", str(servers.port), pool="",
                       env={**os.environ, "POD_NAME": "picker-6d4cf56db6-x7k2p"})
        self.assertIn(f"pool={self.space}/picker ", epp.await_synced())
        epp.await_addresses(*servers.at("127.0.0.3"))
        envoy = self.envoy(epp)
        self.assertEqual(envoy.served_by(), servers.at("127.0.0.3")[0])
        self.pods.patch("a", {"metadata": {"labels": {"tier": None}}})
        epp.await_addresses(*servers.at("127.0.0.2", "127.0.0.3"))


class CrdsLater(Scenario):
    crds = None

    def test_a_crd_installed_later_is_picked_up(self):
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        epp = self.epp()
        self.cluster.install_crds("inferencepools-v1.yaml")
        self.pool(8000)
        epp.await_addresses("127.0.0.2:8000")
        # And one that is not needed, while all works.
        self.cluster.install_crds("inferencemodels")
        self.api.apply(f"{X}/namespaces/{self.space}/inferencemodels/m", {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel", "metadata": {"name": "m"},
            "spec": {"modelName": "llama2", "poolRef": {"name": "pool"}}})
        await_that(lambda: epp.metric("fairway_kubernetes_objects",
                                      resource="inferencemodels.inference.networking.x-k8s.io") == 1, epp.text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
