"""What ./demo shows, once everything is built: starts the simulated servers and Fairway with Envoy, sends real HTTP
requests, prints who was picked and why. Standard library only.

  python3 tools/demo_driver.py [--once] [--envoy PATH]
"""
import argparse
import collections
import concurrent.futures
import ctypes
import http.client
import json
import os
import pathlib
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAIRWAY = ROOT / "build" / "release" / "fairway"
MANIFESTS = "examples/criticality"
GATEWAY_PORT = 8080
SERVERS = {"llama3-1": 8201, "llama3-2": 8202, "llama3-3": 8203}  # as in the manifests
ADAPTERS = ["chat-lora", "summarize-lora-v1", "summarize-lora-v2", "batch-lora"]

# queue, KV use, adapters of each server; the model asked for; who has to be picked (None: shed).
EXAMPLES = [
    ("a critical request, its adapter on two servers, one of them too busy", "chat",
     [(10, 0.30, ["chat-lora"]), (5, 0.70, []), (60, 0.20, ["chat-lora"])], "llama3-1"),
    ("a request that can be shed goes where there is room", "batch",
     [(6, 0.85, []), (4, 0.75, []), (7, 0.60, [])], "llama3-2"),
    ("a critical request when every queue is long: the queue first, then the adapter", "chat",
     [(70, 0.40, ["chat-lora"]), (80, 0.60, ["chat-lora"]), (65, 0.70, [])], "llama3-1"),
    ("a request that can be shed, and no room anywhere", "batch",
     [(6, 0.85, []), (5, 0.75, []), (7, 0.60, [])], None),
]

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def bold(text): return paint("1", text)
def dim(text): return paint("2", text)
def green(text): return paint("32;1", text)
def red(text): return paint("31;1", text)


def say(text=""):
    print(text, flush=True)


def table(rows, indent="   "):
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    for number, row in enumerate(rows):
        line = indent + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip()
        say(dim(line) if number == 0 else line)


class Child:
    """A fairway process whose output is read line by line; ends with us, also when we are killed."""

    def __init__(self, name, *arguments):
        self.name, self.lines, self.seen = name, queue.Queue(), collections.deque(maxlen=40)
        self.process = subprocess.Popen(
            [FAIRWAY, *arguments], cwd=ROOT, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle, so that all ends in order
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM))  # PR_SET_PDEATHSIG
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.seen.append(line.rstrip("\n"))
            self.lines.put(line.rstrip("\n"))

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()


class Failure(Exception):
    pass


def wait_for(what, condition, child, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        if not child.alive() or time.monotonic() > end:
            reason = "ended" if not child.alive() else f"not ready after {seconds:.0f} s"
            time.sleep(0.2)
            raise Failure(f"{what}: fairway {child.name} {reason}; its last words:\n" + "\n".join(f"   | {l}" for l in tuple(child.seen)))
        time.sleep(0.05)


def free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def http_json(port, method, path, body=None, timeout=30):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"content-type": "application/json"} if body is not None else {})
        response = connection.getresponse()
        return response.status, dict((k.lower(), v) for k, v in response.getheaders()), response.read()
    finally:
        connection.close()


class Demo:
    def __init__(self, options):
        self.options, self.children, self.wrong = options, [], 0
        self.port, self.metrics = GATEWAY_PORT, ""

    # ---- the parts that run

    def start(self, name, *arguments):
        child = Child(name, name, *arguments)
        self.children.append(child)
        return child

    def start_servers(self):
        taken = [port for port in SERVERS.values() if not free(port)]
        if taken:
            raise Failure(f"port {', '.join(map(str, taken))} of 127.0.0.1 is in use; the demo's model servers need "
                          f"{', '.join(map(str, SERVERS.values()))} (examples/criticality/endpoints.yaml)")
        listen = [word for name, port in SERVERS.items() for word in ("--listen", f"{name}=127.0.0.1:{port}")]
        self.sim = self.start("sim", *listen, "--model", "llama3-8b", "--adapter", ",".join(ADAPTERS), "--max-loras", "2",
                              "--max-num-seqs", "4", "--time-scale", "0.2", "--answer-tokens", "40")
        wait_for("simulated servers", lambda: any(l.startswith("ready:") for l in tuple(self.sim.seen)), self.sim)

    def start_gateway(self):
        # Without exploration, since each example has one right answer.
        # And read often, so that a changed state is known at once.
        arguments = ["-f", MANIFESTS, "--explain", "--lora-exploration", "0", "--scrape-interval", "50ms"]
        if self.options.envoy:
            arguments += ["--envoy", self.options.envoy]
        if not free(GATEWAY_PORT):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            say(f"   port {GATEWAY_PORT} is in use; listening on {self.port}")
            arguments += ["--listen", f"127.0.0.1:{self.port}"]
        self.up = self.start("up", *arguments)
        wait_for("gateway", lambda: any(l.startswith("ready:") for l in tuple(self.up.seen)), self.up, seconds=60)
        ready = next(l for l in tuple(self.up.seen) if l.startswith("ready:"))
        self.metrics = re.search(r"http://\S+/metrics", ready).group(0)

    def stop(self):
        for child in reversed(self.children):
            child.stop()

    # ---- what is shown

    def explanations(self, count, seconds=5.0):
        """The next `count` decisions as lists of lines, fewer when they do not come."""
        found, end = [], time.monotonic() + seconds
        while True:
            try:
                line = self.up.lines.get(timeout=0.15)
            except queue.Empty:
                if len(found) >= count or time.monotonic() > end:
                    return found
                continue
            if line.startswith("request "):
                found.append([line])
            elif found and line.startswith("  "):
                found[-1].append(line)

    def forget_explanations(self):
        while not self.up.lines.empty():
            self.up.lines.get_nowait()

    def pin(self, states):
        for (name, port), state in zip(SERVERS.items(), states):
            pin = None
            if state:
                waiting, kv, adapters = state
                pin = {"waiting": waiting, "running": 4, "kv": kv, "running_lora": adapters, "waiting_lora": [], "max_lora": 2}
            status, _, body = http_json(port, "POST", "/sim/faults", {"pin": pin})
            if status != 200:
                raise Failure(f"{name} does not take {pin}: {status} {body.decode()}")
        time.sleep(0.3)  # six scrapes

    def check_manifests(self):
        say(bold("\n== Manifests: what the introduction published, and what it meant"))
        intro = [word for part in ("model", "pool", "route") for word in ("-f", f"examples/intro-{part}.yaml")]
        for arguments in (intro, ["-f", MANIFESTS]):
            say(dim("   $ fairway check " + " ".join(arguments)))
            done = subprocess.run([FAIRWAY, "check", *arguments], cwd=ROOT, text=True, capture_output=True, check=False)
            for line in (done.stdout + done.stderr).rstrip().splitlines():
                say("   " + line)

    def worked_examples(self):
        for number, (title, model, states, expected) in enumerate(EXAMPLES, 1):
            say(bold(f"\n== Worked example {number}: {title}"))
            self.pin(states)
            table([("server", "queue", "KV use", "adapters")] + [
                (name, queue_, f"{kv:.0%}", " ".join(adapters) or "-") for name, (queue_, kv, adapters) in zip(SERVERS, states)])
            body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
            self.forget_explanations()
            status, headers, answer = http_json(self.port, "POST", "/v1/chat/completions", body)
            why = self.explanations(1)
            say()
            say(f"   POST /v1/chat/completions {json.dumps(body)}")
            served = headers.get("x-served-by")
            said = f"{status}, answered by {served}" if served else f"{status} {answer.decode(errors='replace').strip()}"
            right = served == expected and status == (200 if expected else 429)
            say(f"   -> {(green if right else red)(said)}" + ("" if right else red(f"   expected: {expected or 'shed with 429'}")))
            self.wrong += not right
            for lines in why[-1:]:
                for line in lines:
                    say("   " + dim("| ") + line)
        self.pin([None] * len(SERVERS))

    def one_request(self, kind):
        model, stream = kind
        body = {"model": model, "stream": stream, "max_tokens": random.randint(10, 60),
                "messages": [{"role": "user", "content": "Tell me about endpoint " + "picking " * random.randint(5, 400)}]}
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            response.read(1)
            first = time.monotonic() - start
            response.read()
            return model, response.status, response.getheader("x-served-by"), first
        except (OSError, http.client.HTTPException) as error:
            return model, str(error), None, 0.0
        finally:
            connection.close()

    def mixed_load(self, requests=200, at_once=32):
        say(bold(f"\n== Mixed load: {requests} requests, {at_once} at a time; chat is critical, summarize standard, batch sheddable"))
        self.forget_explanations()
        random.seed(3)
        kinds = random.choices(["chat", "summarize", "batch"], [50, 25, 25], k=requests)
        kinds = [(model, model == "chat" and random.random() < 0.5) for model in kinds]
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            results = list(pool.map(self.one_request, kinds))
        took = time.monotonic() - start
        why = self.explanations(requests)

        rows = [("model", "requests", *SERVERS, "shed (429)", "first byte, median")]
        for model in ("chat", "summarize", "batch"):
            mine = [r for r in results if r[0] == model]
            served = collections.Counter(r[2] for r in mine if r[1] == 200)
            first = sorted(r[3] for r in mine if r[1] == 200)
            rows.append((model, len(mine), *(served[name] for name in SERVERS), sum(r[1] == 429 for r in mine),
                         f"{first[len(first) // 2] * 1000:.0f} ms" if first else "-"))
        table(rows)
        odd = collections.Counter(r[1] for r in results if r[1] not in (200, 429))
        shed_chat = sum(r[0] == "chat" and r[1] == 429 for r in results)
        if odd or shed_chat:
            self.wrong += 1
            say(red(f"   not expected: {dict(odd)}" + (f", {shed_chat} critical requests shed" if shed_chat else "")))
        # The last filter that dropped somebody made the choice; with none, the candidates were equal.
        deciders = collections.defaultdict(collections.Counter)
        for lines in why:
            model = re.match(r"request \S+ model (\S+)", lines[0])
            narrowed = [m.group(1) for l in lines[1:] if (m := re.match(r"  (\S+): (\d+) -> (\d+)", l)) and m.group(2) != m.group(3)]
            shed = "picked" not in lines[0]
            deciders[model.group(1) if model else "-"]["no room: shed" if shed else narrowed[-1] if narrowed else "all equal: at random"] += 1
        say("\n   what decided:")
        table([("model", "by", "picks")] + [(model, by, n) for model in sorted(deciders) for by, n in deciders[model].most_common()])
        say(dim(f"   {len(why)} decisions in {took:.1f} s"))

    def stay(self):
        if self.options.once:
            return
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        say(bold("\n== Try it"))
        for words in (
                f"""curl -i {url} -d '{{"model": "chat", "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
                f"""curl -N {url} -d '{{"model": "chat", "stream": true, "max_tokens": 20, "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
                f"""curl -i {url} -d '{{"model": "chatt", "messages": [{{"role": "user", "content": "Hello"}}]}}'     # an unknown model: 404 with the nearest name""",
                f"""curl http://127.0.0.1:{SERVERS['llama3-1']}/sim/faults -d '{{"pin": {{"waiting": 60, "kv": 0.9}}}}'     # make one busy""",
                f"""curl http://127.0.0.1:{SERVERS['llama3-1']}/sim/faults -d '{{"pin": null}}'     # and idle again""",
                f"curl -s {self.metrics} | grep fairway_decisions"):
            say("   " + words)
        say(bold("\n== Up until Ctrl-C; each decision is shown here"))
        self.forget_explanations()
        while all(child.alive() for child in self.children):
            try:
                say("   " + self.up.lines.get(timeout=0.5))
            except queue.Empty:
                pass
        raise Failure("something ended: " + ", ".join(f"fairway {c.name}" for c in self.children if not c.alive()))

    def run(self):
        self.check_manifests()
        say(bold("\n== Three simulated model servers, Fairway, Envoy"))
        self.start_servers()
        self.start_gateway()
        say(f"   gateway http://127.0.0.1:{self.port}, servers " + ", ".join(f"{n} :{p}" for n, p in SERVERS.items()))
        self.worked_examples()
        self.mixed_load()
        self.stay()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true", help="end after the show")
    parser.add_argument("--envoy", help="the Envoy to start")
    demo = Demo(parser.parse_args())

    def interrupt(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        demo.run()
    except KeyboardInterrupt:
        say("\n   stopping")
    except Failure as failure:
        say(red(f"\n{failure}"))
        demo.wrong += 1
    finally:
        demo.stop()
    if demo.wrong:
        say(red(f"{demo.wrong} thing(s) went otherwise than expected"))
    return 1 if demo.wrong else 0


sys.exit(main())
