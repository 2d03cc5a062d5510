#!/usr/bin/env python3
"""How many blocks of each prompt Fairway finds at each server, beside what the reference picker found on the same sequence: requests and, for
the precise index, KV events of engines that dial (pyzmq). What the reference found is recorded in prefix_sequence.json.

  python3 tests/reference/prefix_sequence.py [-v]
  FAIRWAY_REFERENCE_EPP=PATH python3 tests/reference/prefix_sequence.py      asks the reference, too: it must still say what is recorded
  FAIRWAY_REFERENCE_EPP=PATH FAIRWAY_REFERENCE_RECORD=1 ...                  writes the file anew

Not in the sequence is where the reference is known to be wrong: more blocks than an engine keeps (its index then believes in four times as
many, or never forgets them), and a block at more than ten servers, of which it remembers ten. Nor are prompts that are shorter than a block
of text, which Fairway does not count.
"""
import importlib.util
import json
import os
import sys
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

import reference_scores as scores
from reference_scores import Page, ask, config_of, scores_of
from support import FAIRWAY, Process, await_that, free_ports

RECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prefix_sequence.json")
RECORD = bool(os.environ.get("FAIRWAY_REFERENCE_RECORD"))
SERVERS = 4
BLOCK = 16
TEXT_BLOCK = 256  # bytes of text: 64 of the reference's estimated tokens


def tokens_of(text):
    """A tokenizer: a word is a token. Requests bring their tokens."""
    return [zlib.crc32(word.encode()) % 128000 for word in text.split()]


def words(name, blocks, more=0):
    return " ".join(f"{name}{i}" for i in range(blocks * BLOCK + more))


def names_of(text, begin, end):
    """What an engine calls a prompt's blocks."""
    all_words = text.split()
    hashes = (zlib.crc32(" ".join(all_words[:(i + 1) * BLOCK]).encode()) for i in range(begin, end))
    return [each << 32 | each for each in hashes]  # of 64 bits, as engines make them


def stored(text, begin, end, medium="GPU"):
    """As arrays: the reference of August 2026 leaves out events that are maps."""
    parent = names_of(text, begin - 1, begin)[0] if begin > 0 else None
    return ["BlockStored", names_of(text, begin, end), parent, tokens_of(text)[begin * BLOCK:end * BLOCK], BLOCK, None, medium, None]


def again(text, begin, end, medium):
    """In another memory, too: without tokens."""
    return ["BlockStored", names_of(text, begin, end), None, [], BLOCK, None, medium, None]


def removed(text, begin, end, medium="GPU"):
    return ["BlockRemoved", names_of(text, begin, end), medium]


CLEARED = ["AllBlocksCleared"]


def precise_sequence():
    a, b, c = words("a", 12, 5), words("b", 9), words("c", 40, 3)
    ab = " ".join(a.split()[:5 * BLOCK] + words("d", 6).split())  # leaves `a` behind its fifth block
    in_block = " ".join(a.split()[:3 * BLOCK + 7] + words("e", 6).split())  # and in the middle of one
    everyone = [(server, [CLEARED]) for server in range(SERVERS)]
    return [
        *everyone,
        ("ask", a), ("ask", b),
        (0, [stored(a, 0, 12)]), ("ask", a), ("ask", ab), ("ask", in_block), ("ask", b),
        (1, [stored(a, 0, 2), stored(a, 2, 5)]), ("ask", a), ("ask", ab),
        (1, [stored(ab, 5, 11)]), ("ask", ab), ("ask", a),
        (2, [stored(b, 0, 9), stored(c, 0, 40)]), ("ask", b), ("ask", c), ("ask", " ".join(c.split()[:20 * BLOCK - 1])),
        # A hole ends a run, and filled again it does not.
        (0, [removed(a, 4, 5)]), ("ask", a), (0, [stored(a, 4, 5)]), ("ask", a),
        # Twice is there until it is removed twice; other memories count less.
        (0, [stored(a, 0, 3), removed(a, 0, 3)]), ("ask", a),
        (2, [again(b, 0, 9, "cpu"), removed(b, 0, 9)]), ("ask", b),
        (2, [removed(b, 4, 9, "cpu")]), ("ask", b),
        # Hashes as bytes.
        (3, [["BlockStored", [name.to_bytes(32, "big") for name in names_of(a, 0, 7)], None, tokens_of(a)[:7 * BLOCK], BLOCK, None, "GPU"]]),
        ("ask", a), (3, [["BlockRemoved", [names_of(a, 6, 7)[0].to_bytes(32, "big")], "GPU"]]), ("ask", a),
        # Blocks whose parent nobody told of, and shorter prompts than a block.
        (3, [stored(c, 20, 30)]), ("ask", c), ("ask", "a0 a1 a2"),
        (0, [CLEARED]), ("ask", a), ("ask", ab),
        (0, [stored(c, 0, 13)]), ("ask", c),
    ]


def text_sequence():
    text = {name: "".join(chr(97 + (i * step) % 26) for i in range(TEXT_BLOCK)) for name, step in (("a", 1), ("b", 3), ("c", 5), ("d", 7))}
    def prompt(blocks, more=0):
        return "".join(text[block] for block in blocks) + "z" * more
    return [("ask", prompt(*each)) for each in (
        ("a",), ("a",), ("ab", 10), ("ab", 10), ("abc",), ("abcd", 100), ("b",), ("ba", 3), ("ba", 4), ("", 257), ("", 257),
        ("abab", 1), ("abab",), ("abc", 40), ("dcba",), ("dcb",), ("dcbaabcd", 77), ("dcbaabcd",), ("cccc",), ("ccccc",), ("cc", 255))]


class PrefixSequence(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        scores.ReferenceScores.setUpClass()
        cls.pages = scores.ReferenceScores.pages[:SERVERS]
        for page in scores.ReferenceScores.pages[SERVERS:]:
            page.server_close()

    @classmethod
    def tearDownClass(cls):
        scores.ReferenceScores.tearDownClass()

    def start(self, plugins_for):
        """The pickers that there are: their ports."""
        write = scores.ReferenceScores.write
        endpoints = [{"name": f"server-{i}", "address": "127.0.0.1", "port": str(page.server_port), "labels": {}} for i, page in enumerate(self.pages)]
        files = write("four.json", {"endpoints": endpoints})
        pool = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "pool"},
                "spec": {"selector": {"matchLabels": {"pool": "it"}}, "targetPorts": [{"number": 8000}],
                         "endpointPickerRef": {"name": "picker", "port": {"number": 9002}}}}
        ours = {"endpoints": [{**each, "labels": {"pool": "it"}} for each in endpoints]}
        manifests = write("four.yaml", "\n---\n".join(json.dumps(each) for each in (pool, ours)))
        ports, centrals = {}, {}
        for who in ("fairway", "reference") if scores.REFERENCE else ("fairway",):
            grpc, health, metrics, centrals[who] = free_ports(4)
            if who == "reference":
                config = config_of(plugins_for(centrals[who]), files)
                command = [scores.REFERENCE, "--pool-name", "pool", "--grpc-health-port", str(health), "--metrics-port", str(metrics),
                           "--tracing=false", "--metrics-endpoint-auth=false"]
            else:
                config = config_of(plugins_for(centrals[who]))
                command = [FAIRWAY, "epp", "-f", manifests, "--grpc-health-port", "0", "--metrics-port", "0", "--load-source", "page"]
            process = Process([*command, "--config-file", write(who + ".json", config), "--grpc-port", str(grpc), "--secure-serving=false",
                               "--emit-endpoint-scores", "--allow-experimental-plugins"])
            self.addCleanup(process.close)
            await_that(lambda grpc=grpc: isinstance(scores_of(ask(grpc, "/v1/completions", b"{}", {})), int), process.text)
            ports[who] = grpc
        for i, page in enumerate(self.pages):
            page.set(0, 0, i / 10, [], [])
        await_that(lambda: all(page.seen.get(who, 0) >= 3 for page in self.pages for who in ports), "pages are read")
        return ports, centrals

    def hits(self, who, port, prompt, total, load):
        """Blocks, by server."""
        got = scores_of(ask(port, "/v1/completions", json.dumps({"model": "m", "prompt": prompt}).encode(), {}))
        self.assertIsInstance(got, dict, f"{who}: {got}")
        found = []
        for i, page in enumerate(self.pages):
            score = got[f"127.0.0.1:{page.server_port}"] - load * (1 - i / 10)
            blocks = score * max(total, 1)
            self.assertAlmostEqual(blocks, round(blocks), 2, f"{got} of {total}")
            found.append(round(blocks))
        return found

    def check(self, name, ports, sequence, publish, made_of, total_of, load):
        recorded = {}
        if os.path.exists(RECORDED):
            with open(RECORDED) as file:
                recorded = json.load(file)
        found = {who: [] for who in ports}
        for what, value in sequence:
            if what != "ask":
                publish(what, value)
                continue
            value = made_of(value)
            for who, port in ports.items():
                found[who].append(self.hits(who, port, value, total_of(value), load))
            time.sleep(0.05)  # the reference learns behind its answer
        if RECORD:
            recorded[name] = found["reference"]
            with open(RECORDED, "w") as file:
                file.write("{\n" + ",\n".join(f' "{key}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in recorded[key]) + "\n ]"
                                              for key in sorted(recorded)) + "\n}\n")
        for who, rows in found.items():
            self.assertEqual(rows, recorded.get(name), who)
        self.assertGreater(sum(map(sum, found["fairway"])), 20)

    def test_by_text(self):
        ports, _ = self.start(lambda _: [("prefix-cache-scorer", {}, 1), ("kv-cache-utilization-scorer", {}, 0.01)])
        # The last block counts, however short.
        self.check("by text", ports, text_sequence(), None, str, lambda text: -(-len(text) // TEXT_BLOCK), 0.01)

    def test_by_tokens(self):
        ports, centrals = self.start(lambda central: [
            ("token-producer", {"modelName": "m"}, None),
            ("precise-prefix-cache-producer", {"tokenProcessorConfig": {"blockSizeTokens": BLOCK},
                                               "kvEventsConfig": {"zmqEndpoint": f"tcp://127.0.0.1:{central}", "discoverPods": False}}, None),
            ("prefix-cache-scorer", {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"}, 1)])
        context = zmq.Context()
        engines, sent = [], [0] * SERVERS
        for page in self.pages:
            engine = context.socket(zmq.PUB)
            engine.setsockopt(zmq.LINGER, 0)
            for central in centrals.values():
                engine.connect(f"tcp://127.0.0.1:{central}")
            engines.append((f"kv@127.0.0.1:{page.server_port}@m".encode(), engine))
        self.addCleanup(context.term)
        for _, engine in engines:
            self.addCleanup(engine.close)
        time.sleep(1.5)  # until the subscriptions are there, what is published is lost

        def publish(server, events):
            topic, engine = engines[server]
            engine.send_multipart([topic, sent[server].to_bytes(8, "big"), msgpack.packb([time.time(), events, None])])
            sent[server] += 1
            time.sleep(0.2)
        self.check("by tokens", ports, precise_sequence(), publish, tokens_of, lambda tokens: len(tokens) // BLOCK, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
