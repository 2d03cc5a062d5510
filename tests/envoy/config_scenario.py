"""EndpointPickerConfigs through a real Envoy: each version of the API, sessions, prefill apart from decode, refusals, and configs
that change under load."""

import http.client
import json
import re
import threading
import unittest

from support import Scenario, ask, await_that, pool

HEAD = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"

# A session stays where a header of the answer, or its cookie, says.
BY_TOKEN = HEAD + """
plugins:
- type: session-affinity-filter
- type: random-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: session-affinity-filter}, {pluginRef: random-picker}]
"""
BY_COOKIE = HEAD + """
plugins:
- {type: session-id-producer, name: cookies, parameters: {cookieName: sid}}
- type: session-affinity-filter
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{attribute: SessionIDDataKey, producer: cookies}]}}
- type: prefix-cache-scorer
- {type: random-picker, parameters: {maxNumOfEndpoints: MAX}}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: session-affinity-filter}, {pluginRef: prefix-cache-scorer, weight: WEIGHT}, {pluginRef: random-picker}]
"""
DISAGGREGATED = HEAD + """
plugins:
- type: HANDLER
  parameters: {PARAMETERS}
- type: always-disagg-pd-decider
- type: decode-filter
- type: prefill-filter
- type: max-score-picker
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: max-score-picker}]
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: max-score-picker}]
"""


class Configs(Scenario):
    def serve(self, config, labels, *args):
        """`labels`: of each endpoint, port -> what beside the pool's."""
        self.labels = dict(labels)
        self.put_endpoints()
        self.config = self.write("epp.yaml", config)
        manifests = self.write("manifests.yaml", pool())
        return self.up("-f", manifests, "-f", self.endpoints, "--config-file", self.config,
                       "--allow-experimental-plugins", *args)

    def put_endpoints(self):
        self.endpoints = self.write("endpoints.yaml", {"endpoints": [
            {"name": f"pool-{port}", "address": "127.0.0.1", "port": str(port), "labels": {"app": "pool", **more}}
            for port, more in self.labels.items()]})

    @staticmethod
    def metrics(up):
        port = int(re.search(r"metrics http://127\.0\.0\.1:(\d+)/", "\n".join(up.out)).group(1))
        return ask(port, "GET", "/metrics").body.decode()

    def metric(self, up, series):
        found = re.search("^" + re.escape(series) + r" (\S+)$", self.metrics(up), re.M)
        return float(found.group(1)) if found else 0.0

    def reloads(self, up, outcome):
        return self.metric(up, f'fairway_scheduler_config_reloads_total{{config="common",outcome="{outcome}"}}')

    def test_each_version_of_the_api(self):
        sim = self.sim(2)
        only = "parameters: {matchLabels: {here: \"yes\"}}"
        for version, more in (
                ("llm-d.ai/v1", "flowControl: {saturationDetector: {pluginRef: utilization-detector}}\n"),
                ("llm-d.ai/v1alpha1", "saturationDetector: {pluginRef: utilization-detector}\n"),
                ("inference.networking.x-k8s.io/v1alpha1", "parser: {pluginRef: openai-parser}\n")):
            with self.subTest(version):
                config = (f"apiVersion: {version}\nkind: EndpointPickerConfig\n"
                          f"plugins: [{{type: label-selector-filter, {only}}}, {{type: utilization-detector}}]\n{more}")
                up = self.serve(config, {sim.ports[0]: {}, sim.ports[1]: {"here": "yes"}})
                self.assertEqual({up.served_by("llama") for _ in range(8)}, {sim.names()[1]})
                up.close()

    def test_parsers_are_those_of_the_config_and_change_with_it(self):
        echo = self.echo()
        listed = HEAD + "plugins: [{type: queue-scorer}]\nrequestHandler: {parsers: [PARSERS]}\n"
        up = self.serve(listed.replace("PARSERS", "{pluginRef: anthropic-parser}"), {echo.port: {}})
        message = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        self.assertEqual(up.ask("POST", "/v1/messages", message).status, 200)
        self.assertEqual(up.ask("GET", "/v1/models").status, 200)
        # Long, so that most of the body is still on its way.
        long = {"model": "m", "messages": [{"role": "user", "content": "x" * 300_000}]}
        refused = up.ask("POST", "/v1/chat/completions?key=secret", long)
        self.assertEqual((refused.status, refused.body.decode()),
                         (400, "inference error: BadRequest - no parser registered matching path suffix for: /v1/chat/completions"))
        self.write("epp.yaml", listed.replace("PARSERS", "{pluginRef: anthropic-parser}, {pluginRef: passthrough-parser}"))
        await_that(lambda: up.ask("POST", "/v1/chat/completions", {"no": "messages"}).status == 200, up.text)
        self.write("epp.yaml", listed.replace("PARSERS", "{pluginRef: openai-parser}"))
        await_that(lambda: up.ask("POST", "/v1/chat/completions", {"no": "messages"}).status == 400, up.text)

    def test_a_session_stays_with_its_endpoint_and_moves_when_that_is_gone(self):
        sim = self.sim(3)
        up = self.serve(BY_TOKEN, {port: {} for port in sim.ports})
        first = up.complete("llama")
        self.assertEqual(first.status, 200, up.text())
        token, served = first.headers["x-session-token"], first.headers["x-served-by"]
        for _ in range(15):
            answer = up.complete("llama", headers={"x-session-token": token})
            self.assertEqual((answer.headers["x-served-by"], answer.headers["x-session-token"]), (served, token))
        del self.labels[int(served.rsplit(":", 1)[1])]
        self.put_endpoints()
        await_that(lambda: up.complete("llama", headers={"x-session-token": token}).headers["x-served-by"] != served,
                   up.text)
        moved = up.complete("llama", headers={"x-session-token": token})
        again = {up.complete("llama", headers={"x-session-token": moved.headers["x-session-token"]}).headers["x-served-by"]
                 for _ in range(15)}
        self.assertEqual(again, {moved.headers["x-served-by"]})

    def test_a_cookie_is_a_session(self):
        sim = self.sim(3)
        up = self.serve(BY_COOKIE.replace("MAX", "2").replace("WEIGHT", "0"), {port: {} for port in sim.ports})
        served = {}
        for _ in range(8):
            for sid in ("a", "b", "c", "d", "e"):
                answer = up.complete("llama", headers={"cookie": f"theme=dark; sid={sid}"})
                self.assertNotIn("x-session-token", answer.headers)
                self.assertEqual(served.setdefault(sid, answer.headers["x-served-by"]), answer.headers["x-served-by"])
        # Cookies of several KB are usual: the id is found wherever it stands among them.
        long = {"cookie": f"pad={'x' * 4000}; sid=b"}
        self.assertEqual({up.complete("llama", headers=long).headers["x-served-by"] for _ in range(10)}, {served["b"]})
        gone = served["a"]
        del self.labels[int(gone.rsplit(":", 1)[1])]
        self.put_endpoints()
        await_that(lambda: up.complete("llama", headers={"cookie": "sid=a"}).headers["x-served-by"] != gone, up.text)
        self.assertEqual(len({up.complete("llama", headers={"cookie": "sid=a"}).headers["x-served-by"] for _ in range(10)}), 1)

    def test_a_prompt_is_computed_where_the_header_says(self):
        decode, prefill = self.echo(), self.echo()
        labels = {decode.port: {"llm-d.ai/role": "decode"}, prefill.port: {"llm-d.ai/role": "prefill"}}
        for handler, parameters in (("disagg-profile-handler", "deciders: {prefill: always-disagg-pd-decider}"),
                                    ("disagg-profile-handler", "stageOrder: prefill-first"),
                                    ("pd-profile-handler", "deciderPluginName: always-disagg-pd-decider")):
            with self.subTest(handler + " " + parameters):
                up = self.serve(DISAGGREGATED.replace("HANDLER", handler).replace("PARAMETERS", parameters), labels)
                for _ in range(5):
                    # What a client says of it does not count.
                    answer = up.complete("llama", headers={"x-prefiller-host-port": "10.9.9.9:1",
                                                           "x-encoder-hosts-ports": "10.9.9.9:2"})
                    self.assertEqual(answer.status, 200, up.text())
                    told = json.loads(answer.body)["headers"]
                    self.assertEqual(told["x-prefiller-host-port"], f"127.0.0.1:{prefill.port}")
                    self.assertNotIn("x-encoder-hosts-ports", told)
                self.assertEqual(prefill.requests, 0)
                up.close()
        # Nobody decodes: no answer.
        del labels[decode.port]
        up = self.serve(DISAGGREGATED.replace("HANDLER", "disagg-profile-handler").replace(
            "PARAMETERS", "deciders: {prefill: always-disagg-pd-decider}"), labels)
        answer = up.complete("llama")
        self.assertEqual(answer.status, 429)
        self.assertEqual(answer.headers["x-fairway-refused-by"], "filters; plugin=decode-filter")
        self.assertNotIn("retry-after", answer.headers)

    def test_refusals_say_why_and_when_to_come_again(self):
        sim = self.sim(2)
        config = HEAD + "plugins: [{type: utilization-filter, parameters: {conditions: [{metric: waiting-queue, maxValue: 5}]}}]\n"
        up = self.serve(config, {port: {} for port in sim.ports})
        self.assertEqual(up.complete("llama").status, 200)
        for number in range(2):
            sim.pin(number, waiting=50)
        await_that(lambda: up.complete("llama").status == 429, up.text)
        answer = up.complete("llama")
        self.assertIn(b"no endpoints available for the given request", answer.body)
        self.assertEqual(answer.headers["x-llm-d-request-dropped-reason"], "rejected-saturated")
        self.assertEqual(answer.headers["x-fairway-refused-by"], "filters; plugin=utilization-filter")
        self.assertIn(int(answer.headers["retry-after"]), range(1, 31))
        series = 'fairway_refusals_total{pool="default/pool",reason="filters",plugin="utilization-filter"}'
        self.assertGreaterEqual(self.metric(up, series), 2)

    def test_only_if_cached(self):
        sim = self.sim(2)
        up = self.serve(HEAD + "plugins: [{type: prefix-cache-scorer}]\n", {port: {} for port in sim.ports})
        prompt, wish = "so it began: " * 200, {"prefer": "if-available"}
        answer = up.complete("llama", prompt, headers=wish)
        self.assertEqual(answer.status, 412, answer)
        self.assertIn(b"no decode worker has the requested KV cache", answer.body)
        self.assertEqual(up.complete("llama", prompt, headers=wish).status, 412)
        self.assertEqual(up.complete("llama", prompt).status, 200)
        self.assertEqual(up.complete("llama", prompt, headers=wish).status, 200)

    def test_fifty_changes_under_load_lose_nothing(self):
        sim = self.sim(3)
        config = BY_COOKIE.replace("MAX", "3")
        up = self.serve(config.replace("WEIGHT", "1"), {port: {} for port in sim.ports})
        prompt = "what was said before: " * 200
        self.assertEqual(up.complete("llama", prompt, headers={"cookie": "sid=p"}).status, 200)
        seen, stop = [], threading.Event()

        def load(sid):
            connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
            while not stop.is_set():
                connection.request("POST", "/v1/completions", json.dumps({"model": "llama", "prompt": "x", "max_tokens": 1}),
                                   {"content-type": "application/json", "cookie": f"sid={sid}"})
                answer = connection.getresponse()
                answer.read()
                seen.append((sid, answer.status, answer.headers.get("x-served-by")))
            connection.close()

        threads = [threading.Thread(target=load, args=(sid,)) for sid in "abcd"]
        for thread in threads:
            thread.start()
        try:
            for i in range(50):
                if i == 25:  # one that is broken changes nothing
                    self.write("epp.yaml", config.replace("random-picker", "randm-picker"))
                    await_that(lambda: self.reloads(up, "refused") == 1, up.text)
                    self.assertEqual(self.metric(up, 'fairway_scheduler_config_stale{config="common"}'), 1)
                self.write("epp.yaml", config.replace("WEIGHT", str(2 + i)))
                await_that(lambda: self.reloads(up, "applied") == i + 1, lambda: self.metrics(up)[:2000] + up.text())
                self.assertEqual(self.metric(up, 'fairway_scheduler_config_stale{config="common"}'), 0)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        self.assertGreater(len(seen), 200)
        self.assertEqual({status for _, status, _ in seen}, {200})
        # Sessions stayed where they were, and what was cached is known still.
        self.assertEqual(len({(sid, served) for sid, _, served in seen}), 4, set(seen))
        wish = {"prefer": "if-available", "cookie": "sid=p"}
        self.assertEqual(up.complete("llama", prompt, headers=wish).status, 200)
        self.assertEqual(up.complete("llama", "unheard of, " * 200, headers=wish).status, 412)


if __name__ == "__main__":
    unittest.main(verbosity=2)
