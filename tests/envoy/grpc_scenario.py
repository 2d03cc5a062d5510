"""vLLM's gRPC service through a real Envoy: gRPC C++ as the client and as the model servers (grpc_peer).

Environment: as support.py; FAIRWAY_GRPC_PEER: the program grpc_peer. Skipped where it was not built.
"""

import json
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from protobuf_bytes import put, varint  # noqa: E402
from support import Process, Scenario, ask, await_that, free_ports, pool, route  # noqa: E402

PEER = os.environ.get("FAIRWAY_GRPC_PEER", "build/release/tests/envoy/grpc_peer")
CONFIG = """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
  - pluginRef: max-score-picker
requestHandler:
  parsers:
  - pluginRef: vllmgrpc-parser
"""


def generate(text, stream=True):
    return put(3, text.encode()) + (b"\x28\x01" if stream else b"")


def tokenized(ids):
    return put(2, put(2, b"".join(varint(i) for i in ids)))


class Call:
    """One call: its status, text, messages and headers."""

    def __init__(self, port, message, *more, method="Generate"):
        printed = subprocess.run([PEER, "call", str(port), method, message.hex(), *(str(each) for each in more)], text=True, check=True,
                                 stdout=subprocess.PIPE, timeout=60).stdout.splitlines()
        self.messages = [bytes.fromhex(line.split(" ")[1]) for line in printed if line.startswith("message ")]
        self.headers = dict(line.split(" ", 2)[1:] for line in printed if line.startswith(("header ", "trailer ")))
        status, _, self.text = printed[-1].removeprefix("status ").partition(" ")
        self.status = int(status)


class Grpc(Scenario):
    def serve(self, count):
        ports = free_ports(count)
        self.start(Process([PEER, "serve", *(str(port) for port in ports)])).await_printed("^ready")
        return ports

    def up_for(self, ports, *flags):
        made = pool()
        made["spec"]["appProtocol"] = "kubernetes.io/h2c"
        page = self.echo()  # metrics pages: a gRPC server has none on its port
        files = {"endpoints": [{"name": f"s{port}", "address": "127.0.0.1", "port": str(port), "metricsPort": str(page.port),
                                "labels": {"app": "pool"}} for port in ports]}
        self.admin, = free_ports(1)
        return self.up("-f", self.write("manifests.yaml", made, files, route((None, {"pool": 1}))),
                       "--config-file", self.write("config.yml", CONFIG), "--metrics-port", str(self.admin), *flags)

    def metrics(self):
        return ask(self.admin, "GET", "/metrics").body.decode()

    def under_way(self):
        pools = json.loads(ask(self.admin, "GET", "/debug/fleet").body)["pools"]
        return sum(each["inflight"] for each in pools[0]["endpoints"])

    def test_bodies_pass_unchanged_and_prompts_stay_with_their_server(self):
        up = self.up_for(self.serve(4), "--response-mode", "full")
        prompts = [chr(ord("a") + i) * 3000 for i in range(6)]
        first = {}
        for again in range(3):
            for prompt in prompts:
                message = generate(prompt + f" chunks={again + 1}")
                call = Call(up.port, message)
                self.assertEqual((call.status, len(call.messages)), (0, again + 2), call.text)
                self.assertEqual(call.headers["got"], message[:2000].hex())
                self.assertEqual(first.setdefault(prompt, call.headers["served-by"]), call.headers["served-by"])
        ids = tokenized(range(1000, 2000))
        servers = {Call(up.port, ids).headers["served-by"] for _ in range(3)}
        self.assertEqual(len(servers), 1)
        page = self.metrics()
        self.assertRegex(page, r"llm_d_epp_request_output_tokens_sum\{[^}]*\} [1-9]")

    def test_what_is_not_read_goes_by_load(self):
        up = self.up_for(self.serve(2))
        message = generate("some text that compresses well " * 200)
        call = Call(up.port, message, 20000, "gzip")
        self.assertEqual(call.status, 0, call.text)
        self.assertEqual(call.headers["got"], message[:2000].hex())

    def test_refusals_come_as_grpc(self):
        up = self.up_for(self.serve(1))
        call = Call(up.port, b"\xff\xff")
        self.assertEqual(call.status, 3, call.text)  # INVALID_ARGUMENT
        self.assertIn("invalid or unsupported gRPC payload", call.text)
        call = Call(up.port, generate("hi"), method="HealthCheck")
        self.assertEqual(call.status, 3, call.text)
        self.assertIn("no parser registered", call.text)
        empty = self.up_for([])
        call = Call(empty.port, generate("hi"))
        self.assertEqual(call.status, 14, call.text)  # UNAVAILABLE

    def test_places_are_given_back_however_it_ends(self):
        up = self.up_for(self.serve(2), "--response-mode", "full")
        self.assertEqual(Call(up.port, generate("chunks=2 fail=13 ")).status, 13)
        self.assertEqual(Call(up.port, generate("refuse=8 ")).status, 8)
        self.assertEqual(Call(up.port, generate("wait "), 300).status, 4)  # DEADLINE_EXCEEDED: the client hangs up
        await_that(lambda: self.under_way() == 0, "places are given back")
        errors = dict(re.findall(r'llm_d_epp_request_error_total\{[^}]*error_code="([^"]+)"[^}]*\} (\d+)', self.metrics()))
        # Of the last one either side may be first to say that its time is over: the server knows the deadline, too.
        self.assertEqual(sum(int(count) for count in errors.values()), 3, errors)
        self.assertGreaterEqual(int(errors["ModelServerError"]), 2, errors)


if __name__ == "__main__":
    if not os.path.exists(PEER):
        print("skipped: grpc_peer was not built")
        sys.exit(77)
    unittest.main(verbosity=2)
