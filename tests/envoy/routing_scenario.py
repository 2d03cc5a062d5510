"""Who gets a request: by LoRA, by queue, by weight, or nobody."""

import collections
import json
import math
import unittest

from support import Scenario, await_that, endpoints, model, old_pool, pool, route


class Routing(Scenario):
    def test_by_queue(self):
        sim = self.sim(3)
        for number, waiting in enumerate((9, 0, 7)):
            sim.pin(number, waiting=waiting, running=0, kv=0.1)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.await_same(up, sim.names()[1])
        sim.pin(1, waiting=20)
        sim.pin(2, waiting=0)
        self.await_same(up, sim.names()[2])

    def test_by_adapter_of_a_critical_model(self):
        # The first worked example: A is longer but has the adapter, B has not, C is too long.
        sim = self.sim(3, "--adapter", "lora-x,lora-y")
        sim.pin(0, waiting=10, kv=0.3, running_lora=["lora-x"], max_lora=4)
        sim.pin(1, waiting=5, kv=0.7, running_lora=[], max_lora=4)
        sim.pin(2, waiting=60, kv=0.2, running_lora=["lora-x"], max_lora=4)
        up = self.up("--lora-exploration", "0", ports=sim.ports,
                     objects=[old_pool(), model("chat", "Critical", {"lora-x": 1}), model("base", "Critical", {"llama": 1})])
        # Once the pages are read: a request for the adapter that chance led elsewhere before would have loaded it there.
        self.await_same(up, sim.names()[1], model="base")
        picks = collections.Counter(up.served_by("chat") for _ in range(30))
        self.assertGreaterEqual(picks[sim.names()[0]], 28, picks)

    def test_shedding_answers_429_to_what_is_not_critical(self):
        sim = self.sim(2)
        for number in range(2):
            sim.pin(number, waiting=10, kv=0.9)
        up = self.up(objects=[old_pool(), model("chat", "Critical", {"llama": 1}),
                              model("batch", "Sheddable", {"llama": 1})], ports=sim.ports)
        await_that(lambda: up.complete("batch").status == 429, "429 for the sheddable model")
        answer = up.complete("batch")
        self.assertEqual(answer.status, 429)
        self.assertIn(b"inference error: ResourceExhausted", answer.body)
        self.assertEqual(up.complete("chat").status, 200)
        for number in range(2):
            sim.pin(number, waiting=0, kv=0.1)
        await_that(lambda: up.complete("batch").status == 200, "200 once there is room")

    def test_unknown_model_is_404(self):
        sim = self.sim(1)
        up = self.up(objects=[old_pool(), model("chat", "Critical", {"llama": 1})], ports=sim.ports)
        self.assertEqual(up.complete("chat").status, 200)
        answer = up.complete("nobody")
        self.assertEqual(answer.status, 404)
        self.assertIn(b"nobody", answer.body)

    def test_wrong_bodies_are_400(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports)
        for body in (b"{", b'{"prompt": "x"}', b""):
            answer = up.ask("POST", "/v1/completions", body, {"content-type": "application/json"})
            self.assertEqual(answer.status, 400, (body, answer))

    def test_target_models_by_weight(self):
        sim = self.sim(2, "--adapter", "v1,v2")
        up = self.up(objects=[old_pool(), model("llama2", "Critical", {"v1": 75, "v2": 25})], ports=sim.ports)
        count = 800
        got = collections.Counter()
        for _ in range(count):
            answer = up.complete("llama2")
            self.assertEqual(answer.status, 200, answer)
            got[json.loads(answer.body)["model"]] += 1
        self.assertEqual(set(got), {"v1", "v2"})
        self.assertLess(abs(got["v1"] - 0.75 * count), 4 * math.sqrt(count * 0.75 * 0.25), got)

    def test_pools_by_weight_and_path(self):
        sim = self.sim(2)
        objects = [pool("a"), pool("b"),
                   route((None, {"a": 3, "b": 1}),
                         ({"path": {"type": "PathPrefix", "value": "/v1/chat"}}, {"b": 1})),
                   endpoints(sim.ports[:1], "a"), endpoints(sim.ports[1:], "b")]
        up = self.up(objects=objects)
        count = 400
        got = collections.Counter(up.served_by("llama") for _ in range(count))
        self.assertLess(abs(got[sim.names()[0]] - 0.75 * count), 4 * math.sqrt(count * 0.75 * 0.25), got)
        for _ in range(20):
            answer = up.ask("POST", "/v1/chat/completions",
                            {"model": "llama", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
            self.assertEqual(answer.headers.get("x-served-by"), sim.names()[1], answer)

    def test_hosts_and_paths_nobody_serves_are_404(self):
        sim = self.sim(1)
        up = self.up(objects=[pool(), route(({"path": {"type": "PathPrefix", "value": "/v1"}}, {"pool": 1}),
                                            hostnames=["llm.example.com"])], ports=sim.ports)
        host = {"host": "llm.example.com:8080"}
        self.assertEqual(up.complete("llama", headers=host).status, 200)
        self.assertEqual(up.complete("llama").status, 404)
        answer = up.ask("GET", "/v10/x", headers=host)
        self.assertEqual(answer.status, 404)
        self.assertIn(b"no HTTPRoute matches", answer.body)

    def test_models_of_a_pool_can_be_listed(self):
        sim = self.sim(2)
        up = self.up(objects=[pool()], ports=sim.ports)
        answer = up.ask("GET", "/v1/models")
        self.assertEqual(answer.status, 200)
        self.assertIn(b"llama", answer.body)

    def test_endpoints_without_manifests(self):
        sim = self.sim(2)
        args = [arg for port in sim.ports for arg in ("--endpoint", f"127.0.0.1:{port}")]
        sim.pin(0, waiting=9)
        sim.pin(1, waiting=0)
        up = self.up(*args)
        self.await_same(up, sim.names()[1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
