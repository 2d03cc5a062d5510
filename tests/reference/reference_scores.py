#!/usr/bin/env python3
"""Fairway's total scores beside those of the reference picker: the same config, the same metrics pages (served here), the same requests
over ext_proc to both, `--emit-endpoint-scores`, and in Fairway `--load-source page`. They are to be the same within 1e-5.

  FAIRWAY_REFERENCE_EPP=PATH python3 tests/reference/reference_scores.py [-v]

FAIRWAY_REFERENCE_EPP names the reference's binary (llm-d-router, `go build ./cmd/epp`); without it the test is skipped. FAIRWAY_BINARY:
build/release/fairway by itself. FAIRWAY_REFERENCE_SEED (printed) draws other pages and requests, FAIRWAY_REFERENCE_ROUNDS more of them.
"""
import http.server
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

for folder in ("envoy", "support"):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", folder))
from protobuf_bytes import fields, put  # noqa: E402
from support import FAIRWAY, Process, await_that, free_ports  # noqa: E402

REFERENCE = os.environ.get("FAIRWAY_REFERENCE_EPP", "")
SEED = int(os.environ.get("FAIRWAY_REFERENCE_SEED", "20261130"))
ROUNDS = int(os.environ.get("FAIRWAY_REFERENCE_ROUNDS", "6"))
TOLERANCE = 1e-5
SERVERS = 6
PATH = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

QUEUE_AS_ATTRIBUTE = {"engineConfigs": [{"name": "vllm", "customMetrics": [
    {"attributeKey": "queue", "metricSpec": "vllm:num_requests_waiting"}]}]}

# Of one profile each: plugins in their order with parameters and a weight. Those that draw at random or know what has ended have no
# total that could be compared.
CONFIGS = {
    "queue": [("queue-scorer", {}, 1)],
    "running": [("running-requests-size-scorer", {}, 1)],
    "kv cache": [("kv-cache-utilization-scorer", {}, 1)],
    "load aware": [("load-aware-scorer", {}, 1)],
    "load aware 20": [("load-aware-scorer", {"threshold": 20}, 2)],
    "lora": [("lora-affinity-scorer", {}, 1)],
    "active requests": [("active-request-scorer", {}, 1)],
    "token load": [("inflight-load-producer", {}, None), ("token-load-scorer", {"queueThresholdTokens": 2000}, 1)],
    "default": [("queue-scorer", {}, 2), ("kv-cache-utilization-scorer", {}, 2), ("prefix-cache-scorer", {}, 3)],
    # The other scorer leaves no ties, so that both learn the same prompts at the same servers.
    "prefix": [("prefix-cache-scorer", {}, 1), ("kv-cache-utilization-scorer", {}, 0.01)],
    "prefix by length": [("prefix-cache-scorer", {"matchLengthWeight": 0.5, "matchLengthScaleTokens": 500}, 1),
                         ("kv-cache-utilization-scorer", {}, 0.01)],
    "context length": [("context-length-aware", {}, 1)],
    # The page's number by another name: Fairway has an attribute of that name by itself.
    "attribute": [("core-metrics-extractor", QUEUE_AS_ATTRIBUTE, None),
                  ("endpoint-attribute-scorer", {"attributeKey": "queue", "algorithm": {"type": "linear_lower_is_better"}}, 1)],
    "header and label": [("header-label-affinity-scorer", {"headerName": "x-app", "labelKey": "app"}, 1)],
    "weights": [("queue-scorer", {}, 0.5), ("kv-cache-utilization-scorer", {}, 3.25), ("running-requests-size-scorer", {}, 1.75),
                ("lora-affinity-scorer", {}, 2), ("load-aware-scorer", {}, -1)],
    "filtered by load": [("utilization-filter", {"conditions": [{"metric": "waiting-queue", "maxValue": 30}], "fallbackOnEmpty": True}, None),
                         ("queue-scorer", {}, 1), ("kv-cache-utilization-scorer", {}, 1)],
    "filtered by label": [("label-selector-filter", {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["other"]}]}, None),
                          ("kv-cache-utilization-scorer", {}, 1)],
    "filtered by attribute": [("core-metrics-extractor", QUEUE_AS_ATTRIBUTE, None), ("endpoint-attribute-filter", {
        "attribute": "queue", "fallbackOnEmpty": True, "algorithm": {"type": "threshold", "threshold": {"operator": "LessThan", "value": 100}}}, None),
                              ("endpoint-attribute-scorer", {"attributeKey": "queue", "algorithm": {
                                  "type": "linear_higher_is_better", "normalization": {"fixedRange": {"min": 0, "max": 150}}}}, 1)],
    "filtered by prefix": [("inflight-load-producer", {}, None), ("prefix-cache-affinity-filter", {"affinityThreshold": 0.5}, None),
                           ("kv-cache-utilization-scorer", {}, 1)],
    "decode": [("decode-filter", {}, None), ("queue-scorer", {}, 1), ("kv-cache-utilization-scorer", {}, 1)],
}
# They go by the prompt's length. A chat's is estimated from its texts; the reference counts roles, too: a token a message.
BY_LENGTH = ("context length", "token load")


class Page(http.server.ThreadingHTTPServer):
    """A model server's metrics page; `text` may be changed, and `seen` counts by client how often it was read since."""

    def __init__(self, port):
        outer = self
        self.text, self.seen = b"", {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.send_response(200)
                self.send_header("content-type", "text/plain")
                self.send_header("content-length", str(len(outer.text)))
                self.end_headers()
                self.wfile.write(outer.text)
                who = "reference" if "Go-http" in self.headers.get("user-agent", "") else "fairway"
                outer.seen[who] = outer.seen.get(who, 0) + 1

        super().__init__(("127.0.0.1", port), Handler)
        self.daemon_threads = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a picker ended

    def set(self, waiting, running, kv, adapters, waiting_adapters):
        self.text = (f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{model_name=\"m\"}} {waiting}\n"
                     f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name=\"m\"}} {running}\n"
                     f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{model_name=\"m\"}} {kv}\n"
                     "# TYPE vllm:lora_requests_info gauge\n"
                     f"vllm:lora_requests_info{{max_lora=\"3\",running_lora_adapters=\"{','.join(adapters)}\","
                     f"waiting_lora_adapters=\"{','.join(waiting_adapters)}\"}} {time.time()}\n"
                     "# TYPE vllm:cache_config_info gauge\n"
                     "vllm:cache_config_info{block_size=\"64\",num_gpu_blocks=\"4096\"} 1\n").encode()
        self.seen = {}


# ---- ext_proc.

def struct_value(message):
    """A google.protobuf.Struct."""
    out = {}
    for _, entry in fields(message):
        pair = dict(fields(entry))
        out[pair[1].decode()] = value_of(pair.get(2, b""))
    return out


def value_of(message):
    for number, value in fields(message):
        if number == 2:
            return struct.unpack("<d", value)[0]
        if number == 3:
            return value.decode()
        if number == 5:
            return struct_value(value)
    return None


def ask(port, path, body, headers, timeout=30):
    """What a picker answers to a request: its messages. The gateway hangs up as soon as it has them, so that nothing stays under way."""
    named = {":method": "POST", ":path": path, ":authority": "llm", ":scheme": "http", "content-type": "application/json", **headers}
    header_map = b"".join(put(1, put(1, k.encode()) + put(3, v.encode())) for k, v in named.items())
    data = b""
    for message in (put(2, put(1, header_map)) + put(11, b"\x08\x04\x10\x04"), put(4, put(1, body) + b"\x10\x01")):
        data += b"\0" + len(message).to_bytes(4, "big") + message
    got = subprocess.run(["curl", "-s", "--http2-prior-knowledge", "--max-time", str(timeout), "-H", "content-type: application/grpc",
                          "-H", "te: trailers", "--data-binary", "@-", f"http://127.0.0.1:{port}{PATH}"],
                         input=data, stdout=subprocess.PIPE, check=False).stdout
    messages = []
    while len(got) >= 5:
        size = int.from_bytes(got[1:5], "big")
        messages.append(got[5:5 + size])
        got = got[5 + size:]
    return messages


def scores_of(messages):
    """By endpoint; or the status of a refusal."""
    for message in messages:
        for number, value in fields(message):
            if number == 7:
                return dict(fields(dict(fields(value))[1]))[1]
            if number == 8:
                metadata = struct_value(value).get("envoy.lb", {})
                return metadata.get("x-gateway-destination-endpoint-scores", {})
    return "no answer"


def config_of(plugins, discovery=None):
    instances = [{"type": type_, **({"parameters": parameters} if parameters else {})} for type_, parameters, _ in plugins]
    config = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig",
              "plugins": [*instances, *([{"name": "files", "type": "file-discovery", "parameters": {"path": discovery}}] if discovery else [])],
              "schedulingProfiles": [{"name": "default", "plugins": [
                  {"pluginRef": type_, **({"weight": weight} if weight is not None else {})} for type_, _, weight in plugins]}]}
    if discovery:
        config["dataLayer"] = {"discovery": {"pluginRef": "files"}}
    return config


class ReferenceScores(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", file=sys.stderr)
        cls.folder = tempfile.TemporaryDirectory(prefix="fairway-reference-")
        cls.pages = [Page(port) for port in free_ports(SERVERS)]
        # Ranges of context lengths for one scorer, roles for a filter.
        cls.labels = [{"app": "one" if i % 2 == 0 else "other", **({"llm-d.ai/context-length-range": f"{i * 40}-{i * 200}"} if i > 1 else {}),
                       **({"llm-d.ai/role": ["decode", "prefill", "both"][i % 3]} if i > 2 else {})} for i in range(SERVERS)]
        endpoints = [{"name": f"server-{i}", "address": "127.0.0.1", "port": str(page.server_port), "labels": cls.labels[i]}
                     for i, page in enumerate(cls.pages)]
        cls.endpoints = cls.write("endpoints.json", {"endpoints": endpoints})
        pool = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "pool"},
                "spec": {"selector": {"matchLabels": {"pool": "it"}}, "targetPorts": [{"number": 8000}],
                         "endpointPickerRef": {"name": "picker", "port": {"number": 9002}}}}
        ours = {"endpoints": [{**each, "labels": {**each["labels"], "pool": "it"}} for each in endpoints]}
        cls.manifests = cls.write("pool.yaml", "\n---\n".join(json.dumps(each) for each in (pool, ours)))

    @classmethod
    def tearDownClass(cls):
        for page in cls.pages:
            page.shutdown()
            page.server_close()
        cls.folder.cleanup()

    @classmethod
    def write(cls, name, content):
        path = os.path.join(cls.folder.name, name)
        with open(path, "w") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))
        return path

    def start(self, plugins):
        """Both pickers; their ports."""
        grpc, health, metrics, ours = free_ports(4)
        reference = Process([REFERENCE, "--pool-name", "pool", "--config-file", self.write("reference.json", config_of(plugins, self.endpoints)),
                             "--grpc-port", str(grpc), "--grpc-health-port", str(health), "--metrics-port", str(metrics),
                             "--secure-serving=false", "--tracing=false", "--metrics-endpoint-auth=false", "--emit-endpoint-scores",
                             "--allow-experimental-plugins"])
        self.addCleanup(reference.close)
        fairway = Process([FAIRWAY, "epp", "-f", self.manifests, "--config-file", self.write("fairway.json", config_of(plugins)),
                           "--grpc-port", str(ours), "--grpc-health-port", "0", "--metrics-port", "0", "--secure-serving=false",
                           "--emit-endpoint-scores", "--load-source", "page", "--allow-experimental-plugins"])
        self.addCleanup(fairway.close)
        for port, process in ((grpc, reference), (ours, fairway)):
            await_that(lambda port=port: isinstance(scores_of(ask(port, "/v1/completions", b"{}", {})), int), process.text)
        return {"reference": grpc, "fairway": ours}

    def set_pages(self, rng):
        names = [f"adapter-{i}" for i in range(6)]
        for page in self.pages:
            loaded = rng.sample(names, rng.randrange(0, 4))
            cut = rng.randrange(0, len(loaded) + 1)
            page.set(rng.choice([0, 0, rng.randrange(200)]), rng.randrange(40), round(rng.random(), 4), loaded[:cut], loaded[cut:])

        def all_read():
            return all(page.seen.get(who, 0) >= 3 for page in self.pages for who in ("reference", "fairway"))
        await_that(all_read, lambda: f"pages are read: {[page.seen for page in self.pages]}")

    def requests(self, rng, chats):
        texts = ["".join(rng.choice("abcdefgh ") for _ in range(256)) for _ in range(6)]
        out = []
        for _ in range(4):
            prompt = "".join(texts[:rng.randrange(0, 6)]) + "x" * rng.randrange(1, 300)
            model = rng.choice(["m", *[f"adapter-{i}" for i in range(6)]])
            headers = {"x-app": rng.choice(["one", "other"])} if rng.random() < 0.7 else {}
            out.append(("/v1/completions", {"model": model, "prompt": prompt}, headers))
        if not chats:
            return out
        model = rng.choice(["m", "adapter-1"])
        out.append(("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": rng.choice(texts)}]}, {}))
        return out

    def check(self, name):
        rng = random.Random(f"{SEED} {name}")
        ports = self.start(CONFIGS[name])
        differences, compared, totals = [], 0, set()
        for number in range(ROUNDS):
            self.set_pages(rng)
            for path, body, headers in self.requests(rng, name not in BY_LENGTH):
                data = json.dumps(body).encode()
                got = {who: scores_of(ask(port, path, data, headers)) for who, port in ports.items()}
                time.sleep(0.02)  # the reference learns behind its answer
                compared += 1
                a, b = got["reference"], got["fairway"]
                totals.update(a.values() if isinstance(a, dict) else ())
                same = a == b if not (isinstance(a, dict) and isinstance(b, dict)) else \
                    a.keys() == b.keys() and all(abs(a[key] - b[key]) <= TOLERANCE for key in a)
                if not same:
                    at = {f"127.0.0.1:{page.server_port}": page.text.decode() for page in self.pages}
                    differences.append(f"round {number}, model {body['model']}, {len(data)} bytes, {headers}:\n" + "\n".join(
                        f"  {key}: reference {a.get(key) if isinstance(a, dict) else a}, fairway {b.get(key) if isinstance(b, dict) else b}"
                        for key in sorted(at)) + "\n")
        # Of requests that have ended nothing is under way, so that these two say the same of all.
        self.assertGreater(len(totals), 0 if name in ("active requests", "token load") else 1, totals)
        self.assertEqual(differences, [], f"\n{len(differences)} of {compared} differ (seed {SEED}):\n" + "\n".join(differences[:4]))


for each in CONFIGS:
    setattr(ReferenceScores, "test_" + each.replace(" ", "_"), lambda self, name=each: self.check(name))


if __name__ == "__main__":
    if not REFERENCE:
        print("skipped: FAIRWAY_REFERENCE_EPP names no reference picker")
        sys.exit(77)
    unittest.main(verbosity=2)
