"""Attacks from where the picker looks: model servers' pages, files, and an API server that lies, floods or hangs."""

import contextlib
import json
import os
import re
import struct
import time
import unittest
import zlib

from attack import MB, Attacked, RawServer, endpoints, pool, read_head, support

GOOD = "vllm:num_requests_waiting{model_name=\"m\"} 1\nvllm:num_requests_running{model_name=\"m\"} 1\n" \
       "vllm:kv_cache_usage_perc{model_name=\"m\"} 0.5\n"


def answered(connection, head, body=b"", pieces=()):
    while read_head(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
        for piece in pieces:
            connection.sendall(piece)
        if b"ontent-" not in head and b"chunked" not in head:
            return


def forever(piece, pause=0.0):
    while True:
        yield piece
        if pause:
            time.sleep(pause)


def sized(text):
    return b"Content-Type: text/plain\r\nContent-Length: %d" % len(text)


PAGES = {
    "endless": lambda c: answered(c, b"Content-Type: text/plain", pieces=forever(b"a_metric 1\n" * 6000)),
    "endless chunks": lambda c: answered(c, b"Transfer-Encoding: chunked", pieces=forever(b"1\r\n#\r\n" * 10_000)),
    "a chunk of 2^60": lambda c: answered(c, b"Transfer-Encoding: chunked", b"1000000000000000\r\n", forever(b"#" * 65536)),
    "one line": lambda c: answered(c, b"Content-Type: text/plain", pieces=forever(b"a" * 65536)),
    "drip": lambda c: answered(c, b"Content-Length: 100000", pieces=forever(b"#", 0.05)),
    "silence": lambda c: read_head(c) and c.recv(1),
    "head without end": lambda c: read_head(c) and [c.sendall(b) for b in (b"HTTP/1.1 200 OK\r\n", *(b"X: y\r\n" * 1000,) * 2000)],
    "large": lambda c: answered(c, sized(b"a 1\n" * (2 << 20)), b"a 1\n" * (2 << 20)),
    "a hundred thousand adapters": lambda c: answered(c, sized(ADAPTERS), ADAPTERS),
    "series": lambda c: answered(c, sized(SERIES), SERIES),
    "no numbers": lambda c: answered(c, sized(ODD), ODD),
    "gzip bomb": lambda c: answered(c, b"Content-Encoding: gzip\r\nContent-Length: %d" % len(BOMB), BOMB),
    "redirect": lambda c: read_head(c) and c.sendall(b"HTTP/1.1 307 x\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n") or
    [c.sendall(b"HTTP/1.1 307 x\r\nLocation: /metrics/\r\nContent-Length: 0\r\n\r\n") for _ in iter(lambda: read_head(c), "")],
    "noise": lambda c: [c.sendall(os.urandom(4096)) for _ in iter(lambda: read_head(c), "")],
}
ADAPTERS = (GOOD + 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="' +
            ",".join(f"adapter-{i}" for i in range(100_000)) + '",waiting_lora_adapters=""} 1\n').encode()
SERIES = "".join(f'vllm:num_requests_waiting{{model_name="m",engine="{i}"}} 1\n' for i in range(100_000)).encode()
ODD = "".join(f"vllm:num_requests_waiting {v}\nvllm:kv_cache_usage_perc {v}\n" for v in
              ("NaN", "+Inf", "-Inf", "-1", "1e400", "x", "", "1e-400", "9" * 5000)).encode()
BOMB = zlib.compress(bytes(64 * MB), 9)


class Pages(Attacked):
    def test_bad_pages_beside_a_good_one(self):
        """The good neighbour's page stays young."""
        servers = [self.start(RawServer(talk)) for talk in PAGES.values()]
        good = self.start(RawServer(lambda c: answered(c, sized(GOOD.encode()), GOOD.encode())))
        epp = self.epp("--refresh-metrics-interval", "50ms", ports=[s.port for s in [good, *servers]])

        def ages():
            fleet = json.loads(support.ask(epp.admin, "GET", "/debug/fleet").body)
            return {e["address"]: e["scrapeAgeMs"] for p in fleet["pools"] for e in p["endpoints"]}
        mine = f"127.0.0.1:{good.port}"
        support.await_that(lambda: ages()[mine] is not None, epp.text)
        seen = []
        with self.beside(epp, ("ext_proc", epp.grpc), ("page", epp.admin, "/metrics"), peak=150, after=120):
            end = time.monotonic() + 5
            while time.monotonic() < end:
                seen.append(ages()[mine])
                time.sleep(0.05)
        self.assertLess(max(seen), 2000)
        self.assertLess(len(epp.err), 2000)


TOKENS = """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- {type: token-producer, parameters: {modelName: llama, vllm: {url: 'http://127.0.0.1:%d', timeout: 400ms}}}
- {type: precise-prefix-cache-producer, parameters: {kvEventsConfig: {discoverPods: true}}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
- type: max-score-picker
schedulingProfiles: [{name: default, plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]}]
"""
LARGE = 14_000_000


def rendered(begin, piece):
    text = begin + piece * ((LARGE - len(begin)) // len(piece))
    return lambda c: answered(c, sized(text), text)


RENDERED = {
    "silence": lambda c: read_head(c) and c.recv(1) and c.recv(1),
    "drip": lambda c: answered(c, b"Content-Length: 100000", pieces=forever(b" ", 0.05)),
    "tokens": rendered(b'{"token_ids":[1', b",1"),
    "media without a length": rendered(b'{"token_ids":[1],"features":{"mm_placeholders":{"image":[{}', b",{}"),
    "arrays": rendered(b'{"token_ids":[1],"x":[', b"[[],1.5e9,\"\\u00e9\"],"),
    "chunks": lambda c: answered(c, b"Transfer-Encoding: chunked", pieces=forever(b"1\r\n \r\n" * 10_000)),
    "noise": lambda c: [c.sendall(os.urandom(4096)) for _ in iter(lambda: read_head(c), "")],
}


class RenderServers(Attacked):
    def test_bad_answers(self):
        """Who asks for tokens waits for them a few times at most, and is decided without."""
        for name, talk in RENDERED.items():
            server = self.start(RawServer(talk))
            epp = self.epp("--config-file", self.write("config.yaml", TOKENS % server.port))
            with self.subTest(name), self.beside(epp, ("ext_proc", epp.grpc), ("ext_proc_new", epp.grpc), peak=60, after=40):
                time.sleep(2.5)
                page = support.ask(epp.admin, "GET", "/metrics").body.decode()
                asked = sum(int(n) for n in re.findall(r'^fairway_token_questions_total\{outcome="\w+"\} (\d+)', page, re.M))
                self.assertGreater(asked, 25, "of 400 ms each both would ask 12 or so")
            epp.close()


class Files(Attacked):
    def test_what_a_manifest_may_be_replaced_by(self):
        """What was served before is served on, the loop stands for nobody, and a good file is taken again."""
        self.write("manifests.yaml", pool())
        path = self.write("endpoints.yaml", endpoints([20000]))
        epp = self.epp(files=["-f", self.folder])

        def addresses():
            fleet = json.loads(support.ask(epp.admin, "GET", "/debug/fleet").body)
            return [e["address"] for p in fleet["pools"] for e in p["endpoints"]]

        def place(make):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ".next")
            make(path + ".next")
            if os.path.isdir(path + ".next") and not os.path.islink(path + ".next"):
                os.unlink(path)
            os.rename(path + ".next", path)

        def text(content):
            def put(where):
                with open(where, "wb") as file:
                    file.write(content)
            return put

        def sparse(where):
            with open(where, "wb") as file:
                file.truncate(100 << 30)
        bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(12))
        things = {"pipe": os.mkfifo, "sparse": sparse, "zeros": lambda p: os.symlink("/dev/zero", p),
                  "itself": lambda p: os.symlink(path, p), "folder": os.mkdir, "bomb": text(bomb),
                  "brackets": text(b"[" * 200_000), "braces": text(b"{a: " * 100_000), "noise": text(os.urandom(1 << 20)),
                  "nothing": text(b""), "long": text(b"x" * (12 * MB)), "nul": text(bytes(1 << 20)),
                  "many": text(json.dumps(endpoints(list(range(1, 60000)))).encode())}
        for number, (name, make) in enumerate(things.items()):
            with self.subTest(name), self.beside(epp, ("ext_proc", epp.grpc), ("page", epp.admin, "/healthz"), peak=250, after=200):
                place(make)
                writer = None
                if name == "pipe":  # somebody who writes into it now and then
                    with contextlib.suppress(OSError):
                        writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
                end = time.monotonic() + 0.6
                while time.monotonic() < end:
                    if writer is not None:
                        with contextlib.suppress(OSError):
                            os.write(writer, b"#")
                    time.sleep(0.05)
                if writer is not None:
                    os.close(writer)
                if name == "folder":
                    os.rmdir(path)
                self.write("endpoints.yaml", endpoints([20001 + number]))
                support.await_that(lambda n=number: addresses() == [f"127.0.0.1:{20001 + n}"], epp.text)
        self.assertEqual(epp.terminate(), 0)


LISTS = b'{"kind":"List","metadata":{"resourceVersion":"1"},"items":['
POOL = json.dumps({**pool(), "metadata": {"name": "pool", "namespace": "default", "resourceVersion": "1"}}).encode()
KINDS = b'{"resources":[{"name":"inferencepools"},{"name":"inferencemodels"}]}'


def pod(name, more=""):
    return json.dumps({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "pool"}, "resourceVersion": "1",
                                    "annotations": {"more": more}},
                       "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}}).encode()


class ApiServer(RawServer):
    """Answers as one with a pool and a Pod, until `evil` is set: a function that a watch, and each new call, gets instead."""

    def __init__(self):
        self.evil = None
        super().__init__(self.serve)

    def serve(self, connection):
        while head := read_head(connection):
            target = head.split(" ")[1]
            if self.evil is not None:
                return self.evil(connection)
            if "watch=true" in target:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
                while self.evil is None:
                    if self.stopped.wait(0.02):
                        return None
                return self.evil(connection, watch=True)
            body = (LISTS + pod("a") + b"]}" if "/pods" in target else LISTS + POOL + b"]}" if "/inferencepools" in target
                    else LISTS + b"]}" if "limit=" in target else KINDS)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return None


def chunk(data):
    return b"%x\r\n" % len(data) + data + b"\r\n"


def streamed(connection, pieces, watch, head=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
    if not watch:
        connection.sendall(head)
    for piece in pieces:
        connection.sendall(chunk(piece))


def storm():
    for i in range(200_000):
        yield b'{"type":"MODIFIED","object":' + pod("a", str(i)) + b"}\n"


EVILS = {
    "one object of 200 MB": lambda c, watch=False: streamed(
        c, [b'{"type":"ADDED","object":{"metadata":{"name":"', *([b"x" * MB] * 200)], watch),
    "an event without end": lambda c, watch=False: streamed(c, forever(b"[" * 65536), watch),
    "a storm": lambda c, watch=False: streamed(c, storm(), watch),
    "410": lambda c, watch=False: c.sendall(b"HTTP/1.1 410 Gone\r\nContent-Length: 2\r\n\r\n{}"),
    "500": lambda c, watch=False: c.sendall(b"HTTP/1.1 500 x\r\nContent-Length: 2\r\n\r\n{}"),
    "redirect": lambda c, watch=False: c.sendall(b"HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    "noise": lambda c, watch=False: c.sendall(os.urandom(1 << 20)),
    "silence": lambda c, watch=False: c.recv(1),
    "drip": lambda c, watch=False: streamed(c, forever(b" ", 0.05), watch),
    "head without end": lambda c, watch=False: [c.sendall(b) for b in (b"HTTP/1.1 200 OK\r\n", *(b"X: y\r\n" * 1000,) * 2000)],
    "pages without end": lambda c, watch=False: streamed(
        c, [b'{"metadata":{"resourceVersion":"1","continue":"more"},"items":[]}', b""], watch),
    "Pods without end": lambda c, watch=False: streamed(
        c, (b'{"type":"ADDED","object":' + pod(f"p-{struct.pack('>I', i).hex()}", "x" * 3000) + b"}\n" for i in range(30_000)), watch),
}


class Kubernetes(Attacked):
    def test_an_api_server_that_means_harm(self):
        """What was known stays, health answers, and SIGTERM ends it."""
        for name, evil in EVILS.items():
            with self.subTest(name):
                api = self.start(ApiServer())
                config = self.write("config", {"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                                               "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}]})
                epp = self.epp("--kubeconfig", config, "--pool-name", "pool", "--ha-enable-leader-election=false", files=[])
                epp.await_logged("synced with the API server")
                with self.beside(epp, ("ext_proc", epp.grpc), ("health", epp.health, "readiness"),
                                 ("page", epp.admin, "/healthz"), peak=150, after=120):
                    api.evil = evil
                    time.sleep(0.8)
                began = time.monotonic()
                self.assertEqual(epp.terminate(), 0)
                self.assertLess(time.monotonic() - began, 10)
                api.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
