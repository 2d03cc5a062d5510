"""What is replayed: manifests, fleet states and requests, all from a seed."""

import dataclasses
import json
import random
import struct

TREE, PLAIN = "default/tree", "default/plain"  # with InferenceModels; with objectives and a rewrite
HOSTS = {TREE: "tree.test", PLAIN: "plain.test"}

# Of the first pool: name, criticality, targets by weight.
MODELS = [
    ("chat", "Critical", {"chat-v1": 75, "chat-v2": 25}),
    ("sql", "Standard", {"sql-lora": 1}),
    ("batch", "Sheddable", {"batch-a": 1, "batch-b": 1, "batch-c": 2}),
    ("lora-x", "Critical", {}),
    ("base", "Standard", {}),
    ('ünï "q" \\ /name', "Critical", {'a "longer" näme \\ than it was': 1}),
    ("long-name-that-becomes-a-short-one", "Sheddable", {"s": 1}),
]
ADAPTERS = ["chat-v1", "chat-v2", "sql-lora", "batch-a", "batch-b", "batch-c", "lora-x", "canary-v1", "canary-v2"]


def manifests(ports):
    """The objects of both pools; each has all the endpoints."""
    labels = {"app": "server"}
    yield {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool", "metadata": {"name": "tree"},
           "spec": {"selector": labels, "targetPortNumber": 8000, "extensionRef": {"name": "picker"}}}
    yield {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "plain"},
           "spec": {"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}],
                    "endpointPickerRef": {"name": "picker", "port": {"number": 9002}, "failureMode": "FailClose"}}}
    for number, (name, criticality, targets) in enumerate(MODELS):
        spec = {"modelName": name, "criticality": criticality, "poolRef": {"name": "tree"}}
        if targets:
            spec["targetModels"] = [{"name": target, "weight": weight} for target, weight in targets.items()]
        yield {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel",
               "metadata": {"name": f"model-{number}"}, "spec": spec}
    for name, priority in (("premium", 10), ("cheap", -10)):
        yield {"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": name},
               "spec": {"priority": priority, "poolRef": {"name": "plain"}}}
    yield {"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite", "metadata": {"name": "canary"},
           "spec": {"poolRef": {"name": "plain"},
                    "rules": [{"matches": [{"model": {"type": "Exact", "value": "canary"}}],
                               "targets": [{"modelRewrite": "canary-v1", "weight": 90},
                                           {"modelRewrite": "canary-v2", "weight": 10}]}]}}
    for pool, host in HOSTS.items():
        name = pool.split("/")[1]
        group = "inference.networking.x-k8s.io" if pool == TREE else "inference.networking.k8s.io"
        yield {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
               "spec": {"parentRefs": [{"name": "gateway"}], "hostnames": [host],
                        "rules": [{"backendRefs": [{"group": group, "kind": "InferencePool", "name": name}]}]}}
    yield {"endpoints": [{"name": f"server-{port}", "address": "127.0.0.1", "port": str(port), "labels": labels}
                         for port in ports]}


# ---- Fleet states.

@dataclasses.dataclass
class Server:
    port: int
    waiting: int
    running: int
    kv: str
    max_adapters: int
    adapters: list
    waiting_adapters: list

    def line(self):
        def names(listed):
            return ",".join(listed) or "-"
        return (f"127.0.0.1:{self.port} {self.waiting} {self.running} {self.kv} {self.max_adapters} "
                f"{names(self.adapters)} {names(self.waiting_adapters)}\n")

    def page(self):
        return (f"vllm:num_requests_waiting {self.waiting}\nvllm:num_requests_running {self.running}\n"
                f"vllm:kv_cache_usage_perc {self.kv}\n"
                f'vllm:lora_requests_info{{max_lora="{self.max_adapters}",running_lora_adapters="{",".join(self.adapters)}",'
                f'waiting_lora_adapters="{",".join(self.waiting_adapters)}"}} 1.0\n').encode()


def make_state(number, ports, rng):
    """State `number`. Its KV uses tell it from every other, so that one can see when it is known."""
    kind = ("mixed", "equal", "full", "mixed", "nearly full", "overload")[number % 6]
    servers = []
    for port in ports:
        def drawn(waiting, kv):
            return rng.choice(waiting), rng.randrange(0, 30), rng.randrange(*kv)
        if kind == "mixed":
            waiting, running, kv = drawn(range(0, 12), (0, 95))
        elif kind == "equal":
            waiting, running, kv = 2, 5, 40
        elif kind == "full":
            waiting, running, kv = drawn(range(5, 49), (80, 99))
        elif kind == "nearly full":
            waiting, running, kv = drawn((3, 4, 5, 6, 30, 49, 50, 51), (70, 90))
        else:
            waiting, running, kv = drawn(range(50, 90), (50, 99))
        names = rng.sample(ADAPTERS, rng.randrange(0, 5)) if kind != "equal" or number % 12 == 1 else []
        resident = names[:len(names) // 2 + 1]
        servers.append(Server(port, waiting, running, f"{kv / 100 + (number + 1) * 0.0001:.4f}",
                              rng.choice((0, len(resident), 4, 8)), resident, names[len(resident):]))
    return servers


# ---- Requests.

@dataclasses.dataclass
class Request:
    number: int
    pool: str
    method: str
    path: str
    headers: list  # names and values as the client writes them
    body: bytes = b""
    framing: str = "length"  # "none", "length", or "chunked" with the sizes of the chunks
    chunks: list = None
    hint: str = None

    @property
    def ends_with_headers(self):
        """What Envoy makes of it: with a length of 0 there is no body, in no chunks there is an empty one."""
        return self.framing == "none" or (self.framing == "length" and not self.body)

    def to_client(self):
        """The bytes that a client sends to Envoy."""
        head = [f"{self.method} {self.path} HTTP/1.1", f"host: {HOSTS[self.pool]}"]
        head += [f"{name}: {value}" for name, value in self.headers]
        if self.hint is not None:
            head.append(f"x-test-subset: {self.hint}")
        body = self.body
        if self.framing == "length":
            head.append(f"content-length: {len(body)}")
        elif self.framing == "chunked":
            head.append("transfer-encoding: chunked")
            pieces, at = [], 0
            for size in [*self.chunks, len(body)]:
                piece = body[at:at + size]
                at += len(piece)
                if piece:
                    pieces.append(b"%x\r\n%s\r\n" % (len(piece), piece))
            body = b"".join([*pieces, b"0\r\n\r\n"])
        return ("\r\n".join(head) + "\r\n\r\n").encode() + body

    def to_replay(self):
        """The request as Envoy shows it to its filters."""
        headers = [(name.lower(), value) for name, value in self.headers]
        if self.framing == "length":
            headers.append(("content-length", str(len(self.body))))
        headers.append(("x-forwarded-proto", "http"))
        texts = [self.pool, self.method, self.path, HOSTS[self.pool], "ends" if self.ends_with_headers else "goes on",
                 "hint" if self.hint is not None else "no hint", self.hint or "", str(len(headers))]
        for name, value in headers:
            texts += [name, value]
        parts = [text.encode() for text in texts] + [self.body]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)

    def __str__(self):
        return f"request {self.number}: {self.method} {self.path} of {self.pool}, {self.framing}, hint {self.hint!r}, " \
               f"{self.headers}, {len(self.body)} bytes: {self.body[:300]!r}"


WORDS = ["the", "model", "tokens", "prompt", '"quoted"', "back\\slash", "naïve", "日本", "tab\t", "line\n", "{\"model\":\"x\"}",
         "emoji 🙂", "plain", "text", "of", "a", "user"]


class Maker:
    def __init__(self, ports, seed):
        self.ports = ports
        self.rng = random.Random(seed)
        self.text = " ".join(self.rng.choice(WORDS) for _ in range(80_000)) * 5

    def chance(self, share):
        return self.rng.random() < share

    def prompt(self):
        kind = self.rng.random()
        if kind < 0.6:
            size = self.rng.randrange(0, 200)
        elif kind < 0.92:
            size = self.rng.randrange(200, 4000)
        elif kind < 0.985:
            size = self.rng.randrange(4000, 30_000)
        elif kind < 0.999:
            size = self.rng.randrange(60_000, 250_000)
        else:
            size = self.rng.randrange(900_000, 1_500_000)  # beyond what Envoy holds of a body as a rule
        at = self.rng.randrange(0, len(self.text) - size)
        return self.text[at:at + size]

    def model(self, pool):
        if self.chance(0.06):  # of nobody, or nearly of somebody
            return self.rng.choice(["cha", "Chat", "chat ", "gpt-4", "ünknown", "x" * 300, "y" * 5000])
        if pool == TREE:
            return self.rng.choice(MODELS)[0]
        return self.rng.choice(["canary", "canary", "base", "lora-x", "chat-v1", 'any "name" \\ at all'])

    def api(self):
        """Path and the members of a body for it."""
        prompt = self.prompt()
        api = self.rng.choice(["chat", "chat", "completions", "embeddings", "responses", "messages", "unknown"])
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        if api == "chat":
            path = self.rng.choice(["/v1/chat/completions", "/openai/v1/chat/completions", "/v1/chat/completions/",
                                    "/v1/chat/completions?api-version=1"])
            return path, {"messages": messages, "max_tokens": 7, "stream": self.chance(0.5)}
        if api == "completions":
            return "/v1/completions", {"prompt": self.rng.choice([prompt, [prompt, "b"], [1, 2, 3]]), "max_tokens": 3}
        if api == "embeddings":
            return "/v1/embeddings", {"input": self.rng.choice([prompt, [prompt]])}
        if api == "responses":
            return "/v1/responses", {"input": prompt, "instructions": "none"}
        if api == "messages":
            return "/v1/messages", {"messages": messages[1:], "max_tokens": 9}
        return self.rng.choice(["/v1/rerank", "/tokenize", "/", "/v1/chat/completions/x"]), {"text": prompt}

    def json(self, members):
        rng = self.rng
        items = list(members.items())
        rng.shuffle(items)
        text = json.dumps(dict(items), ensure_ascii=self.chance(0.3), indent=rng.choice([None, None, None, 1]),
                          separators=rng.choice([None, (",", ":"), (" , ", " : ")]))
        name = members.get("model")
        if isinstance(name, str):
            if self.chance(0.05):  # each letter as an escape
                escaped = "".join(f"\\u{ord(c):04x}" for c in name)
                text = text.replace(json.dumps(name), f'"{escaped}"', 1)
            if self.chance(0.02):
                text = text.replace('"model"', '"mod\\u0065l"', 1)
        if self.chance(0.04):  # the last of two counts
            text = text[:-1].rstrip() + ',"model":"' + rng.choice(["sql", "canary", "nobody"]) + '"}'
        if self.chance(0.04):
            text = '{"nested":{"model":"batch"},' + text.lstrip()[1:]
        return rng.choice(["", "", "", " ", "\n\t"]) + text + rng.choice(["", "", "\n"])

    def damage(self, members, body):
        rng = self.rng
        what = rng.randrange(0, 13)
        if what == 0:
            return body[:rng.randrange(0, len(body) + 1)]
        if what == 1:
            at = rng.randrange(0, len(body))
            return body[:at] + bytes([rng.randrange(0, 256)]) + body[at + 1:]
        if what == 2:
            return body + rng.choice([b"}", b" x", b"{}", b"\0"])
        if what == 3:
            return rng.choice([b"", b" ", b"null", b"[]", b'"model"', b"17", b"{}", b"\xef\xbb\xbf{}"])
        if what == 4:
            return b"[" * rng.choice([100, 2000]) + body
        if what == 5:
            return body.replace(b"e", b"\xff", 1)
        if what == 6:
            return json.dumps({**members, "model": rng.choice([None, 7, "", ["chat"], {"a": 1}, True])}).encode()
        if what == 7:
            for name in ("messages", "prompt", "input"):
                if name in members:
                    return json.dumps({**members, name: rng.choice([None, 7, [], [7], {}, ""])}).encode()
        members = dict(members)
        members.pop(rng.choice(["model", "messages", "prompt", "input"]), None)
        return json.dumps(members).encode()

    def headers(self, number):
        rng = self.rng
        made = [("Content-Type", "application/json")] if self.chance(0.9) else []
        if self.chance(0.85):
            made.append(("X-Request-Id", f"request-{number}"))
        if self.chance(0.3):
            made.append(("Authorization", "Bearer of-a-key"))
        if self.chance(0.2):
            made += [("x-Several", "1"), ("x-several", "2, 3")]
        if self.chance(0.1):
            made.append(("x-note", "grüße, 日本"))
        rewrites = ["canary-v2", "chat-v1", 'rewritten "name" \\', "", "ü" * 40]
        for share, name, values in (
                (0.08, "x-llm-d-inference-fairness-id", ["tenant-a", "tenant-b", "z" * 300]),
                (0.08, "x-gateway-inference-fairness-id", ["tenant-c", ""]),
                (0.10, "x-llm-d-inference-objective", ["premium", "cheap", "cheap", "unknown", ""]),
                (0.10, "x-gateway-inference-objective", ["premium", "cheap"]),
                (0.06, "x-llm-d-model-name-rewrite", rewrites), (0.06, "x-gateway-model-name-rewrite", rewrites),
                (0.08, "x-gateway-destination-endpoint", ["9.9.9.9:80", f"127.0.0.1:{self.ports[0]}", ""]),
                (0.03, "x-gateway-destination-endpoint-subset", ["127.0.0.1"]),
                (0.03, "x-gateway-destination-endpoint-served", ["127.0.0.1:1"]),
                (0.03, "x-original-path", ["/v1/embeddings"]), (0.03, "x-forwarded-path", ["/v1/embeddings"]),
                (0.03, "x-prefiller-host-port", ["10.0.0.1:80"]), (0.03, "x-encoder-hosts-ports", ["10.0.0.1:80"]),
                (0.03, "x-data-parallel-host-port", ["10.0.0.1:80"]), (0.03, "x-kv-cache-source-host-port", ["a:1"])):
            if self.chance(share):
                made.append((name, rng.choice(values)))
                if self.chance(0.15):
                    made.append((name.upper(), rng.choice(values)))
        rng.shuffle(made)
        return made

    def hint(self):
        rng = self.rng
        servers = [f"127.0.0.1:{port}" for port in rng.sample(self.ports, rng.randrange(1, 6))]
        return rng.choice([",".join(servers), " , ".join(servers) + ", 9.9.9.9:1", "127.0.0.1", "9.9.9.9:1", ","])

    def request(self, number):
        rng = self.rng
        pool = rng.choice([TREE, PLAIN])
        made = Request(number, pool, "POST", "/", self.headers(number), hint=self.hint() if self.chance(0.06) else None)
        if self.chance(0.04):
            made.method, made.framing = "GET", "none"
            made.path = rng.choice(["/v1/models", "/health", "/v1/chat/completions", "/"])
            return made
        made.path, members = self.api()
        members["model"] = self.model(pool)
        made.body = self.json(members).encode()
        if self.chance(0.12):
            made.body = self.damage(members, made.body)
        if self.chance(0.03):
            made.method = rng.choice(["PUT", "PATCH", "DELETE"])
        if self.chance(0.15):
            made.framing = "chunked"
            made.chunks = [rng.randrange(1, len(made.body) + 2) for _ in range(rng.randrange(0, 6))]
        return made


def make_requests(count, ports, seed):
    maker = Maker(ports, seed)
    return [maker.request(number) for number in range(count)]
