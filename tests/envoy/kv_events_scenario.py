"""KV events of engines through a real ZeroMQ publisher and its replay socket: counted, missed, replayed, begun anew, garbage and
floods, and what is told of those that do not fit. Needs pyzmq and msgpack (python3-zmq, python3-msgpack)."""

import contextlib
import http.server
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
import unittest
import zlib

if any(importlib.util.find_spec(name) is None for name in ("zmq", "msgpack")):
    # Debian's packages are for Debian's own Python.
    if os.path.exists("/usr/bin/python3") and not os.environ.get("FAIRWAY_TEST_PYTHON"):
        os.environ["FAIRWAY_TEST_PYTHON"] = "/usr/bin/python3"
        os.execv("/usr/bin/python3", ["/usr/bin/python3", "-B", *sys.argv])
    print("skipped: there is no pyzmq or no msgpack")
    sys.exit(77)

import msgpack
import zmq

from support import RawServer, Scenario, ask, await_that, free_ports, pool

# Put in: how events come.
PRECISE = """
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters:
    kvEventsConfig: %s
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
"""
# The picker dials, and engines dial.
CONFIG = PRECISE % '{topicFilter: "%s", podDiscoveryConfig: {socketPort: %d, replaySocketPort: %d}}'
CENTRAL = PRECISE % '{zmqEndpoint: "tcp://127.0.0.1:%d", discoverPods: false, podDiscoveryConfig: {replaySocketPort: %d}}'
BLOCK = 16

EXACT = """
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: token-producer
  parameters: {modelName: llama, vllm: {url: "http://127.0.0.1:%d", timeout: 2s}}
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {hashAlgorithm: %s}
    kvEventsConfig: {podDiscoveryConfig: {socketPort: %d, replaySocketPort: %d}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
"""


def tokens_of(text):
    """A tokenizer: a word is a token."""
    return [zlib.crc32(word.encode()) % 128000 for word in text.split()]


class RenderServer:
    """What `vllm launch render` does: tokens of what it is asked. Set `delay` to make it slow."""

    def __init__(self):
        self.asked, self.delay = [], 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, body))
                time.sleep(outer.delay)
                if self.path == "/v1/completions/render":
                    answer = [{"token_ids": tokens_of(body["prompt"])}]
                else:
                    answer = {"token_ids": tokens_of(" ".join(m["role"] + " " + m["content"] for m in body["messages"]))}
                answer = json.dumps(answer).encode()
                with contextlib.suppress(OSError):  # nobody waits any more
                    self.send_response(200)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def stored(blocks, first=0, **more):
    """As vLLM says it: a map."""
    return {"type": "BlockStored", "block_hashes": [(first + i).to_bytes(32, "big") for i in range(blocks)],
            "parent_block_hash": None, "token_ids": [7] * (blocks * BLOCK), "block_size": BLOCK, "lora_id": None,
            "medium": "GPU", **more}


def stored_array(blocks, first=0):
    """As SGLang does."""
    return ["BlockStored", [first - i for i in range(blocks)], None, [7] * (blocks * BLOCK), BLOCK, None]


def removed(blocks, first=0):
    return {"type": "BlockRemoved", "block_hashes": [(first + i).to_bytes(32, "big") for i in range(blocks)], "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


class Engine:
    """What an engine publishes: PUB, and ROUTER that replays. Used by one thread but for the replays."""

    def __init__(self, port=0, replay_port=0, topic="kv@pod@llama", topic_in_replays=False, dials=0):
        self.topic, self.topic_in_replays = topic.encode(), topic_in_replays
        self.sent, self.first, self.replays = [], 0, []
        self.context = zmq.Context()
        self.pub = self.context.socket(zmq.PUB)
        self.pub.setsockopt(zmq.LINGER, 0)
        self.pub.setsockopt(zmq.SNDHWM, 100000)
        if dials:
            self.pub.connect(f"tcp://127.0.0.1:{dials}")
        else:
            self.pub.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = dials or int(self.pub.getsockopt(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(f"tcp://127.0.0.1:{replay_port or '*'}")
        self.replay_port = int(self.router.getsockopt(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._replay, daemon=True)
        self.thread.start()

    def _replay(self):
        while not self.stopped.is_set():
            if not self.router.poll(20):
                continue
            peer, empty, start = self.router.recv_multipart()
            assert empty == b""
            start = int.from_bytes(start, "big")
            self.replays.append(start)
            between = [self.topic] if self.topic_in_replays else []
            for number, payload in enumerate(list(self.sent)):
                if number >= max(start, self.first):
                    self.router.send_multipart([peer, b"", *between, number.to_bytes(8, "big"), payload])
            self.router.send_multipart([peer, b"", *between, (-1).to_bytes(8, "big", signed=True), b""])

    def lose(self, *events):
        """A batch that does not get through."""
        self.sent.append(msgpack.packb([time.time(), list(events), 0]))

    def send(self, *events):
        self.lose(*events)
        self.pub.send_multipart([self.topic, (len(self.sent) - 1).to_bytes(8, "big"), self.sent[-1]])

    def send_raw(self, *parts):
        self.pub.send_multipart(parts)

    def close(self):
        if self.stopped.is_set():
            return
        self.stopped.set()
        self.thread.join()
        self.pub.close()
        self.router.close()
        self.context.term()


class KvEvents(Scenario):
    def engine(self, *args, **more):
        engine = Engine(*args, **more)
        self.addCleanup(engine.close)
        return engine

    def follow(self, port, replay_port=0, topic="kv@", servers=1, config=None):
        """`fairway up` that follows the events at these ports, with simulated servers."""
        self.sim_ports = self.sim(servers).ports
        endpoints = self.write("endpoints.yaml", {"endpoints": [
            {"name": f"pod-{number}", "address": "127.0.0.1", "port": str(port), "labels": {"app": "pool"}}
            for number, port in enumerate(self.sim_ports)]})
        self.fairway = self.up("-f", self.write("manifests.yaml", pool()), "-f", endpoints, "--config-file",
                               self.write("epp.yaml", config or CONFIG % (topic, port, replay_port)))
        return self.fairway

    def follow_exactly(self, ports, render, replay_port=0, algorithm="cbor-fnv"):
        self.follow(ports, replay_port, servers=2, config=EXACT % (render, algorithm, ports, replay_port))

    def two_engines(self):
        """At ports one after the other, as ranks of a Pod are."""
        while True:
            first = self.engine()
            with contextlib.suppress(zmq.ZMQError):
                return first, self.engine(first.port + 1)

    def admin(self, path):
        port = int(re.search(r"metrics http://127\.0\.0\.1:(\d+)/", "\n".join(self.fairway.out)).group(1))
        return ask(port, "GET", path)

    def page(self):
        return self.admin("/metrics").body.decode()

    def metric(self, series):
        """None: it is not on the page. `series`: the beginning of the line."""
        found = re.search("^" + re.escape(series) + r"\S* (\S+)$", self.page(), re.M)
        return float(found.group(1)) if found else None

    def held(self, pod=0):
        found = re.search(r'^fairway_kv_events_held_tokens\{[^}]*endpoint="pod-%d"[^}]*\} (\S+)$' % pod, self.page(), re.M)
        return float(found.group(1)) if found else None

    def believed(self, what="tokens"):
        return self.metric("fairway_prefix_endpoint_" + what + "{")

    def stream(self, what):
        return self.metric('fairway_kv_events_stream_total{what="%s"}' % what) or 0

    def await_held(self, tokens, pod=0):
        await_that(lambda: self.held(pod) == tokens, lambda: f"{tokens} tokens, not {self.held(pod)}:\n" + self.events())

    def events(self):
        return "\n".join(line for line in self.page().splitlines() if "kv_" in line and not line.startswith("#"))

    def await_standing(self, standing):
        await_that(lambda: re.search('fairway_kv_events_endpoint.*standing="%s"' % standing, self.page()),
                   lambda: f"{standing}:\n" + self.events() + "\n" + self.fairway.text())

    def connected(self, engine):
        """When the subscription is there: until then what is published is lost."""
        def told():
            engine.send()
            return (self.metric("kv_cache_events_messages_received_total") or 0) > 0
        await_that(told, "a message arrives")

    def test_what_an_engine_held_when_it_took_blocks_away_is_what_it_is_believed_to_keep(self):
        engine = self.engine()
        engine.send(stored(600))
        engine.send(stored_array(400, -1))
        self.follow(engine.port, engine.replay_port)
        self.await_held(16000)
        self.assertEqual(engine.replays, [0], "from 0 at the first connection")
        before = self.believed("capacity_tokens")
        self.assertGreater(before, 16000)
        engine.send(removed(10))
        self.await_held(16000 - 10 * BLOCK)
        await_that(lambda: self.believed("capacity_tokens") == 16000,
                   lambda: f"{self.believed('capacity_tokens')}")
        self.await_standing("followed")
        self.fairway.await_logged("KV events are followed")
        # A sliding window's blocks are not prefixes, and other memories count apart.
        engine.send(stored(50, group_idx=1, kv_cache_spec_kind="sliding_window"),
                    {**removed(5), "group_idx": 1}, stored(20, medium="cpu"))
        engine.send(stored(1))
        self.await_held(16000 - 9 * BLOCK)

    def test_a_cache_that_was_emptied_is_believed_empty_at_once(self):
        engine = self.engine()
        self.follow(engine.port, engine.replay_port)
        self.connected(engine)
        self.assertEqual(self.fairway.complete("llama", "a long beginning " * 400).status, 200)
        await_that(lambda: self.believed() > 1000, lambda: f"{self.believed()}")
        engine.send(stored(30))
        self.await_held(30 * BLOCK)
        self.assertGreater(self.believed(), 1000, "what is stored takes nothing away")
        engine.send(CLEARED)
        await_that(lambda: self.believed() == 0, lambda: f"{self.believed()}")
        self.await_held(0)

    def test_what_was_missed_is_replayed(self):
        for topic_in_replays in (False, True):
            engine = self.engine(topic_in_replays=topic_in_replays)
            self.follow(engine.port, engine.replay_port)
            self.connected(engine)
            engine.lose(stored(5))
            engine.lose(stored(6))
            engine.send(stored(7))
            self.await_held(18 * BLOCK)
            self.assertEqual(self.stream("gap"), 0)
            self.assertGreaterEqual(len(engine.replays), 2)
            # What came twice counts once.
            engine.send_raw(engine.topic, (len(engine.sent) - 1).to_bytes(8, "big"), engine.sent[-1])
            engine.send(stored(1))
            self.await_held(19 * BLOCK)
            self.fairway.close()
            engine.close()

    def test_without_a_replay_what_is_held_is_not_known_until_it_is_nothing(self):
        engine = self.engine()
        self.follow(engine.port)
        await_that(lambda: "standing=" in self.page(), "it is on the page")
        self.connected(engine)
        engine.send(stored(3))
        engine.lose(stored(5))
        engine.send(removed(1))
        await_that(lambda: self.stream("gap") == 1, self.events)
        await_that(lambda: self.held() is None, self.events)
        capacity = self.believed("capacity_tokens")
        engine.send(stored(9), removed(2))
        engine.send(CLEARED, stored(4))
        self.await_held(4 * BLOCK)
        self.assertEqual(self.believed("capacity_tokens"), capacity, "nothing is concluded from half of it")

    def test_an_engine_that_starts_anew_holds_nothing(self):
        engine = self.engine()
        self.follow(engine.port, engine.replay_port)
        self.connected(engine)
        engine.send(stored(40))
        self.await_held(40 * BLOCK)
        self.fairway.complete("llama", "a long beginning " * 400)
        await_that(lambda: self.believed() > 1000, lambda: f"{self.believed()}")
        engine.close()
        # It is gone, before any other is there.
        await_that(lambda: self.believed() == 0, self.events)
        again = self.engine(engine.port, engine.replay_port)
        again.send(stored(2))
        self.await_held(2 * BLOCK)
        self.assertGreaterEqual(self.metric("kv_cache_events_subscriber_reconnections_total"), 1)
        self.assertEqual(self.stream("restart"), 1)
        self.assertEqual(self.stream("gap"), 0)

    def test_garbage_is_counted_and_what_comes_after_it_is_read(self):
        engine = self.engine()
        self.follow(engine.port, engine.replay_port)
        self.connected(engine)
        engine.send(["BlockMoved", [1], {"to": "disk"}], stored(4), {"type": "Later", "x": [1, [2]]})
        self.await_held(4 * BLOCK)
        self.assertEqual(self.metric('fairway_kv_events_total{outcome="unknown"}'), 2)
        for parts in ([b"kv@"], [b"kv@", b"1"], [b"kv@", b"123456789", b""], [b"kv@", b"\xff" * 8, b""], [b""] * 8):
            engine.send_raw(*parts)
        engine.sent.append(os.urandom(1000))
        engine.send_raw(engine.topic, (len(engine.sent) - 1).to_bytes(8, "big"), b"\xc1" + engine.sent[-1])
        engine.send(CLEARED, stored(6))
        self.await_held(6 * BLOCK)
        self.assertEqual(self.stream("unreadable"), 6)
        # More parts, and more bytes, than a batch can have: the connection is made anew.
        engine.send_raw(*[b"x"] * 9)
        await_that(lambda: self.metric("kv_cache_events_subscriber_reconnections_total") == 1, self.events)
        self.connected(engine)
        engine.send_raw(engine.topic, len(engine.sent).to_bytes(8, "big"), b"x" * (17 << 20))
        await_that(lambda: self.metric("kv_cache_events_subscriber_reconnections_total") == 2, self.events)
        await_that(lambda: engine.send(stored(1)) or (self.held() or 0) >= 7 * BLOCK, self.events)
        self.assertEqual(self.fairway.complete("llama").status, 200)

    def test_a_number_far_ahead_does_not_end_it(self):
        engine = self.engine()
        self.follow(engine.port)
        self.connected(engine)
        engine.send_raw(engine.topic, (1 << 50).to_bytes(8, "big"), msgpack.packb([1.0, []]))
        await_that(lambda: self.stream("gap") == 1, self.events)
        for _ in range(20):
            engine.send(CLEARED)
        engine.send(stored(2))
        self.await_held(2 * BLOCK)

    def test_a_flood_does_not_keep_requests_waiting(self):
        engine = self.engine()
        self.follow(engine.port)
        self.connected(engine)
        flood = threading.Event()

        def pour():
            while not flood.is_set():
                engine.send_raw(engine.topic, (1 << 40).to_bytes(8, "big"), msgpack.packb([1.0, [stored(500)] * 4]))
        thread = threading.Thread(target=pour)
        thread.start()
        try:
            for _ in range(20):
                self.assertEqual(self.fairway.complete("llama").status, 200)
            await_that(lambda: self.metric("kv_cache_events_messages_received_total") > 500, self.events)
        finally:
            flood.set()
            thread.join()
        # It ends while they still come.
        self.assertEqual(self.fairway.terminate(), 0)

    def test_a_replay_that_never_answers_holds_nothing_up(self):
        engine = self.engine()

        def listen(connection):
            while connection.recv(65536):
                pass
        mute = RawServer(listen)
        self.addCleanup(mute.close)
        self.follow(engine.port, mute.port)
        await_that(lambda: self.stream("replay") == 1, self.events)
        # More than may wait.
        for _ in range(6000):
            engine.send(stored(1))
        await_that(lambda: (self.metric('fairway_kv_events_total{outcome="taken"}') or 0) > 1000, self.events)
        await_that(lambda: self.metric("kv_cache_events_pool_queue_depth") == 0, self.events)
        engine.send(CLEARED, stored(3))
        self.await_held(3 * BLOCK)

    def test_each_rank_has_its_port(self):
        first = second = None
        while second is None:
            first = self.engine()
            with contextlib.suppress(zmq.ZMQError):
                second = self.engine(first.port + 1)
        self.follow(first.port, servers=2)
        for number, port in enumerate(self.sim_ports):
            engine, blocks = (first, 1) if port == min(self.sim_ports) else (second, 2)
            await_that(lambda: engine.send(CLEARED, stored(blocks)) or self.held(number) == blocks * BLOCK, self.events)

    def cached(self):
        """Prompt tokens that were believed to be cached where they went."""
        found = re.findall(r'^fairway_prefix_predicted_tokens_total\{[^}]*state="cached"[^}]*\} (\S+)$', self.page(), re.M)
        return float(found[0]) if found else 0

    def test_a_prompt_goes_to_the_engine_that_has_its_tokens(self):
        for algorithm in ("cbor-fnv", "xxh64"):
            render = RenderServer()
            self.addCleanup(render.close)
            engines = self.two_engines()
            self.follow_exactly(engines[0].port, render.port, algorithm=algorithm)
            prompt = " ".join(f"word{i}" for i in range(5 * BLOCK + 3))
            for number, port in enumerate(self.sim_ports):
                engine = engines[0] if port == min(self.sim_ports) else engines[1]
                blocks = {**stored(5, first=1000), "token_ids": tokens_of(f"mine{number} " + prompt)[:5 * BLOCK]}
                await_that(lambda: engine.send(CLEARED, blocks) or self.held(number) == 5 * BLOCK, self.events)
            self.assertGreaterEqual(self.metric("llm_d_epp_kv_cache_index_admissions_total"), 10)
            # What was never sent anywhere goes where its blocks are.
            served = []
            for number in range(2):
                before = self.cached()
                mine = f"mine{number} " + prompt
                answer = self.fairway.complete("llama", mine)
                self.assertEqual(answer.status, 200)
                self.assertEqual(self.cached() - before, 5 * BLOCK)
                served.append(answer.headers["x-served-by"])
                self.assertEqual(self.fairway.served_by("llama", prompt=mine), served[-1])
            self.assertNotEqual(*served)
            self.assertEqual({path for path, _ in render.asked}, {"/v1/completions/render"})
            self.assertEqual({body["model"] for _, body in render.asked}, {"llama"})
            # One that is not in time does not hold the request.
            render.delay = 4
            begun = time.monotonic()
            self.assertEqual(self.fairway.complete("llama", "other " + prompt).status, 200)
            self.assertLess(time.monotonic() - begun, 3.9)
            self.assertGreaterEqual(self.metric('fairway_token_questions_total{outcome="failed"}'), 1)
            self.assertGreaterEqual(self.metric('fairway_token_questions_total{outcome="kept"}'), 2)
            self.fairway.close()
            for engine in engines:
                engine.close()

    def test_events_of_other_tokens_are_told_of(self):
        render = RenderServer()
        self.addCleanup(render.close)
        engines = self.two_engines()
        self.follow_exactly(engines[0].port, render.port)

        def told():
            for number in range(20):
                self.fairway.complete("llama", f"question {time.monotonic()} " + "word " * 2 * BLOCK)
                for engine in engines:
                    engine.send({**stored(1, first=int(time.monotonic() * 1e6)), "token_ids": [len(engine.sent)] * BLOCK})
            return self.fairway.logged("KV events arrive, and nothing matches")
        await_that(told, self.events)
        self.assertIn("tokenizer", self.fairway.text())
        self.await_standing("unmatched")

    # ---- Engines that dial.

    def follow_those_who_dial(self, servers=1, replay_port=0):
        self.central = free_ports(1)[0]
        self.follow(None, servers=servers, config=CENTRAL % (self.central, replay_port))
        # In the order of ranks.
        self.topics = [f"kv@127.0.0.1:{port}@llama" for port in sorted(self.sim_ports)]

    def pod(self, rank):
        return self.sim_ports.index(sorted(self.sim_ports)[rank])

    def await_fed(self, engine, blocks, pod):
        """It has said from an empty cache on how many blocks it has. What is sent before it is heard is lost."""
        await_that(lambda: engine.send(CLEARED, stored(blocks)) or self.held(pod) == blocks * BLOCK, self.events)

    def test_engines_may_dial(self):
        self.follow_those_who_dial(servers=2)
        engines = [self.engine(topic=topic, dials=self.central) for topic in self.topics]
        for number, engine in enumerate(engines):
            self.await_fed(engine, 3 + number, self.pod(number))
        self.assertEqual(self.metric("fairway_kv_events_listening{"), 1)
        # Each has its own numbers: what one of them loses is no gap of the other.
        engines[0].lose(stored(1))
        engines[0].send(stored(1, first=100))
        await_that(lambda: self.held(self.pod(0)) is None, self.events)
        self.assertEqual(self.stream("gap"), 1)
        engines[1].send(stored(2, first=100))
        self.await_held(6 * BLOCK, self.pod(1))
        # Somebody who is in no pool, and a topic that says nothing of two that are at this address.
        for topic in ("kv@10.1.2.3:8000@llama", "kv@127.0.0.1@llama", "", "kv"):
            other = self.engine(topic=topic, dials=self.central)
            before = self.stream("unknown_pod")
            await_that(lambda: other.send(stored(1)) or self.stream("unknown_pod") > before, self.events)
            other.close()
        self.fairway.await_logged("KV events of a Pod that is in no pool")
        self.await_held(6 * BLOCK, self.pod(1))
        # One that starts anew dials again, and counts from 0.
        engines[1].close()
        again = self.engine(topic=self.topics[1], dials=self.central)
        before = self.stream("restart")
        self.await_fed(again, 2, self.pod(1))
        self.assertEqual(self.stream("restart") - before, 1)
        # How they stand, on a page.
        await_that(lambda: json.loads(self.admin("/debug/prefix").body)["engines"][self.pod(1)]["lastSequence"] == len(again.sent) - 1,
                   "all that was sent has come")
        page = json.loads(self.admin("/debug/prefix").body)
        self.assertEqual([engine["address"] for engine in page["engines"]],
                         [f"127.0.0.1:{port}" for port in self.sim_ports])
        told = page["engines"][self.pod(1)]
        self.assertEqual((told["standing"], told["dialled"], told["connected"]), ("followed", "engine", True))
        self.assertEqual((told["heldTokens"], told["engineBlockTokens"], told["restarts"]), (2 * BLOCK, BLOCK, 1))
        self.assertEqual(told["tiers"]["gpu"]["stored"], 2)
        self.assertEqual((told["index"]["blocks"], told["index"]["known"]), (2, "all"))
        self.assertGreaterEqual(page["engines"][self.pod(0)]["gaps"], 1)
        self.assertEqual(page["leftOut"], 0)

    def test_what_engines_that_dial_missed_is_replayed(self):
        replay_port = free_ports(1)[0]
        self.follow_those_who_dial(replay_port=replay_port)
        engine = self.engine(topic=self.topics[0], dials=self.central, replay_port=replay_port)
        engine.lose(stored(4))
        self.connected(engine)
        self.await_held(4 * BLOCK)
        engine.lose(stored(5, first=50))
        engine.send(stored(1, first=60))
        self.await_held(10 * BLOCK)
        self.assertEqual(engine.replays[0], 0)
        self.assertEqual(self.stream("gap"), 0)

    def test_a_port_that_is_taken_is_tried_again(self):
        self.central = free_ports(1)[0]
        taken = socket.create_server(("127.0.0.1", self.central))
        self.follow(None, config=CENTRAL % (self.central, 0))
        first = self.fairway
        first.await_logged("the port of zmqEndpoint is taken")
        self.assertEqual(first.complete("llama").status, 200)
        self.assertEqual(self.metric("fairway_kv_events_listening{"), 0)
        self.await_standing("unreachable")
        self.assertIn("cannot listen at", self.admin("/debug/prefix").body.decode())
        taken.close()
        first.await_logged("engines can dial now")
        first_ports = self.sim_ports
        engine = self.engine(topic=f"kv@127.0.0.1:{first_ports[0]}@llama", dials=self.central)
        self.await_fed(engine, 3, 0)
        # A second picker on this machine, as in a hot restart: it serves, and has the port when the first one ends.
        self.follow(None, config=CENTRAL % (self.central, 0))
        second = self.fairway
        second.await_logged("the port of zmqEndpoint is taken")
        self.assertEqual(second.complete("llama").status, 200)
        first.close()
        second.await_logged("engines can dial now")
        heir = self.engine(topic=f"kv@127.0.0.1:{self.sim_ports[0]}@llama", dials=self.central)
        await_that(lambda: heir.send(CLEARED, stored(2)) or second.logged("KV events are followed"), second.text)

    def test_whoever_dials_does_not_keep_engines_out(self):
        self.follow_those_who_dial()
        engine = self.engine(topic=self.topics[0], dials=self.central)
        self.await_fed(engine, 3, 0)
        def closed(connection):
            connection.settimeout(30)
            with contextlib.suppress(OSError):
                while connection.recv(65536):
                    pass
            connection.close()
        # Another protocol, and nothing at all: that ends in time.
        for opening in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE" + bytes(47), b""):
            dialler = socket.create_connection(("127.0.0.1", self.central))
            dialler.sendall(opening)
            closed(dialler)
        # More than a host may have: of those the ones go that are silent for longest.
        hello = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48) + b"\4\x19\5READY\x0bSocket-Type\0\0\0\3PUB"
        crowd = []
        for _ in range(300):
            crowd.append(socket.create_connection(("127.0.0.1", self.central)))
            crowd[-1].sendall(hello)
        await_that(lambda: self.metric("fairway_kv_events_connections{") <= 128 and self.stream("refused") >= 172, self.events)
        self.await_fed(engine, 4, 0)
        # Messages that never end: 64 MiB of them at once, and the largest go first.
        for dialler in crowd[-10:]:
            with contextlib.suppress(OSError):
                dialler.settimeout(5)
                dialler.sendall(b"\2" + (15 << 20).to_bytes(8, "big") + bytes(14 << 20))
        self.await_fed(engine, 5, 0)
        # A flood of one who is unknown.
        for dialler in crowd:
            dialler.close()
        stranger = self.engine(topic="kv@stranger@llama", dials=self.central)
        flood = threading.Event()

        def pour():
            while not flood.is_set():
                stranger.send_raw(stranger.topic, (1).to_bytes(8, "big"), msgpack.packb([1.0, [stored(500)] * 4]))
        thread = threading.Thread(target=pour)
        thread.start()
        try:
            await_that(lambda: self.stream("unknown_pod") > 200, self.events)
            self.await_fed(engine, 6, 0)
            for _ in range(20):
                self.assertEqual(self.fairway.complete("llama").status, 200)
        finally:
            flood.set()
            thread.join()
        self.assertEqual(len(self.fairway.logged("that is in no pool")), 1)
        self.assertEqual(self.fairway.terminate(), 0)

    # ---- Pages of SGLang, which are smaller than our blocks.

    def test_pages_of_one_token_make_blocks(self):
        engine = self.engine()
        self.follow(engine.port, engine.replay_port)
        prompt = [zlib.crc32(b"%d" % i) % 128000 for i in range(5 * BLOCK + 3)]

        def pages(begin, end):
            """Each page is an event of its own."""
            return [["BlockStored", [-1 - i], -i if i > 0 else None, [prompt[i]], 1, None] for i in range(begin, end)]
        self.connected(engine)
        engine.send(*pages(0, 2 * BLOCK + 5))
        engine.send(*pages(2 * BLOCK + 5, len(prompt)))
        self.await_held(len(prompt))

        def cached_of(tokens):
            before = self.cached()
            self.assertEqual(self.fairway.complete("llama", tokens).status, 200)
            return self.cached() - before
        self.assertEqual(cached_of(prompt), 5 * BLOCK)
        # A conversation that leaves it in the middle of a block.
        split = 3 * BLOCK + 7
        other = prompt[:split] + [7] * (BLOCK - 7)
        engine.send(*[["BlockStored", [-1000 - i], -split if i == split else -1000 - i + 1, [other[i]], 1, None]
                      for i in range(split, len(other))])
        self.await_held(len(prompt) + BLOCK - 7)
        self.assertEqual(cached_of(other), 4 * BLOCK)
        # Its leaves go first.
        engine.send(*[["BlockRemoved", [-1 - i]] for i in range(4 * BLOCK - 2, len(prompt))])
        self.await_held(4 * BLOCK - 2 + BLOCK - 7)
        page = json.loads(self.admin("/debug/prefix").body)["engines"][0]
        self.assertEqual((page["engineBlockTokens"], page["standing"]), (1, "followed"))
        self.assertEqual(page["index"]["blocks"], 4 * BLOCK - 2 + BLOCK - 7)
        # Known is less than what was sent there would make one believe.
        self.assertEqual(cached_of(prompt), 3 * BLOCK)
        self.assertIsNotNone(self.metric('llm_d_epp_kv_cache_index_lookup_latency_seconds_count'))

    def test_why_nothing_matches_is_said_once(self):
        engine = self.engine(topic="other@pod@llama")
        self.follow(engine.port)
        await_that(lambda: engine.send(stored(1)) or self.fairway.logged("KV events arrive, and nothing matches"),
                   self.fairway.text)
        self.assertIn("their topic is other@pod@llama, and topicFilter is kv@", self.fairway.text())
        self.await_standing("other_topic")
        for _ in range(5):
            engine.send(stored(1))
        self.assertEqual(len(self.fairway.logged("nothing matches")), 1)
        self.assertGreater(self.stream("other_topic"), 0)

    def test_messages_that_hold_no_events_are_told_of(self):
        engine = self.engine()
        self.follow(engine.port)
        await_that(lambda: engine.send({"type": "Unheard"}) or self.fairway.logged("nothing matches"), self.fairway.text)
        self.await_standing("unreadable")

    def test_an_engine_that_publishes_nothing_is_told_of(self):
        engine = self.engine()
        self.follow(engine.port)
        await_that(lambda: "standing=" in self.page(), "it is on the page")

        def told():
            self.fairway.complete("llama")
            return self.fairway.logged("requests went there, and no event came")
        await_that(told, self.fairway.text)
        self.await_standing("silent")

    def test_an_engine_that_is_not_there_is_told_of(self):
        # One port that refuses; at the next somebody who is no publisher.
        self.follow(free_ports(1)[0])
        self.fairway.await_logged("KV events: no connection; trying on")
        self.await_standing("unreachable")
        self.assertGreater(self.metric("kv_cache_events_zmq_errors_total"), 2)
        self.assertEqual(self.fairway.complete("llama").status, 200)
        self.fairway.close()
        web = RawServer(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n") or connection.recv(100))
        self.addCleanup(web.close)
        self.follow(web.port)
        self.fairway.await_logged("it does not speak ZMTP 3")


if __name__ == "__main__":
    unittest.main(verbosity=2)
