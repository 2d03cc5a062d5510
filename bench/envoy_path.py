#!/usr/bin/env python3
"""CPU and memory of one Envoy with the picker inside it, beside the same Envoy without, run by run in turn.

  tools/setup bench && tools/build bench fairway fairway_envoy stub_servers
  python3 bench/envoy_path.py [--quick] [--starts 6] [--rounds 8] [--parts requests,chunks,memory] [--build build/bench]

Every variant is the Envoy that `fairway up` would start, one worker thread, with the configuration that it prints:

  round robin     without the picker's filter (and without header_mutation, which only guards it); policy round_robin
  buffer          the same with Envoy's buffer filter: what it costs to hold a request until it is complete
  module          the picker inside Envoy, as `fairway up` has it
  module, full    the same with --response-mode full: usage read, time per token measured
  module, lean    the same with destinationHeader: false: model servers are not told their own address
  ext_proc        as `fairway up --ext-proc` has it; the picker is `fairway epp`, its CPU is told separately

The number behind a variant is how many endpoints there are; all are stubs in one process. h2load is the client: HTTP/1.1, 32
connections, a fixed number of requests. CPU is user and system time of the Envoy process for these requests, less what it spends
in the same time at rest (scraping is that, and is told apart). Every run of a variant has a run of its base next to it;
differences and ratios are of such pairs, and of those the median: what else runs on the machine changes more from minute to
minute than from one run to the next. All is started anew several times: one process of the same program differs from
another by some microseconds a request for as long as it lives, by where its memory happens to lie.
"""
import argparse
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

BASE, BUFFER, MODULE, FULL, LEAN, EXT_PROC = "round robin", "buffer", "module", "module, full", "module, lean", "ext_proc"
PATIENCE = 60  # seconds that anything may take


def process_cpu(pid):
    return time.clock_gettime((~pid << 3) | 2)  # the process's own clock, see clock_getcpuclockid(3)


def resident_kb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))


def await_that(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"not within {PATIENCE} s: {what}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Children:
    """Processes that end with us, in the order in which they came."""

    def __init__(self):
        self.all = []

    def start(self, argv, **how):
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True,
                                 **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **how})
        self.all.append(child)
        return child

    def stop(self, child):
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.all.remove(child)

    def stop_all(self):
        for child in reversed(list(self.all)):
            self.stop(child)


POOL = """apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
---
"""


def endpoints(ports):
    """Of the pool, by number: {number: port}."""
    return "endpoints:\n" + "".join(
        f"- {{name: e{i}, address: 127.0.0.1, port: \"{port}\", labels: {{app: vllm}}}}\n" for i, port in ports.items())


def manifest(folder, ports):
    path = os.path.join(folder, f"pool-{len(ports)}.yaml")
    with open(path, "w", encoding="ascii") as out:
        out.write(POOL + endpoints(dict(enumerate(ports))))
    return path


class Gateway:
    """One variant: an Envoy, and for ext_proc the picker beside it."""

    def __init__(self, bench, variant, endpoints):
        self.bench, self.variant, self.endpoints = bench, variant, endpoints
        self.name = f"{variant}, {endpoints}"
        self.port, self.admin = free_port(), free_port()
        self.picker = self.picker_port = self.rest = self.picker_rest = None
        self.folder = tempfile.mkdtemp(dir=bench.folder)
        path = manifest(self.folder, bench.stub_ports[:endpoints])
        if variant == EXT_PROC:
            self.picker_port = free_port()
            self.picker = bench.children.start(
                [bench.fairway, "epp", "-f", path, "--grpc-port", str(self.picker_port), "--grpc-health-port", "0",
                 "--metrics-port", "0", "--secure-serving=false"])
            await_that(lambda: listens(self.picker_port), "the picker")
            self.write_config(path, ["--ext-proc"])
        elif variant == FULL:
            self.write_config(path, ["--response-mode", "full"])
        else:
            self.write_config(path, [])
        with open(os.path.join(self.folder, "log"), "wb") as log:
            self.envoy = bench.children.start(
                [bench.envoy, "-c", os.path.join(self.folder, "bootstrap.json"), "--concurrency", "1", "--use-dynamic-base-id",
                 "--log-level", "warning"], stdout=log, stderr=log)
        await_that(lambda: listens(self.port), f"{self.name}: see {self.folder}/log")

    def write_config(self, path, flags):
        printed = subprocess.run([self.bench.fairway, "up", "-f", path, "--listen", f"127.0.0.1:{self.port}", "--metrics-port",
                                  str(self.admin), "--print-envoy-config", *flags], capture_output=True, text=True, check=True).stdout
        for part in re.split(r"^# (?=\S+\.json$)", printed, flags=re.M)[1:]:
            name, text = part.split("\n", 1)
            text = text.replace("/etc/fairway/", self.folder + "/")
            text = text.replace('"port_value": 9002', f'"port_value": {self.picker_port}')
            if self.variant == LEAN:
                text = text.replace('"hostSelection": "policy"', '"hostSelection": "policy", "destinationHeader": false')
            if self.variant in (BASE, BUFFER):
                text = json.dumps(self.without_picker(json.loads(text)))
            with open(os.path.join(self.folder, name), "w", encoding="ascii") as out:
                out.write(text)

    def without_picker(self, node):
        if isinstance(node, list):
            return [self.without_picker(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: self.without_picker(value) for key, value in node.items() if key != "typed_per_filter_config"}
        if "http_filters" in node:
            node["http_filters"] = node["http_filters"][-1:]  # the router
            if self.variant == BUFFER:
                node["http_filters"].insert(0, {"name": "envoy.filters.http.buffer", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
                    "max_request_bytes": 64 << 20}})
        if "load_balancing_policy" in node:
            node["load_balancing_policy"] = {"policies": [{"typed_extension_config": {
                "name": "envoy.load_balancing_policies.round_robin", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"}}}]}
        return node

    def measure_rest(self, seconds):
        before = process_cpu(self.envoy.pid), self.picker and process_cpu(self.picker.pid)
        start = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - start
        self.rest = (process_cpu(self.envoy.pid) - before[0]) / took
        self.picker_rest = self.picker and (process_cpu(self.picker.pid) - before[1]) / took

    def load(self, requests, connections, *arguments):
        """CPU seconds of Envoy and of the picker beside it for these requests, less what they spend at rest."""
        before = process_cpu(self.envoy.pid), self.picker and process_cpu(self.picker.pid)
        start = time.monotonic()
        run = subprocess.run(["h2load", "--h1", "-n", str(requests), "-c", str(connections), "-t", "1", "-H",
                              "content-type: application/json", *arguments, f"http://127.0.0.1:{self.port}/v1/completions"],
                             capture_output=True, text=True, timeout=10 * PATIENCE, check=True)
        took = time.monotonic() - start
        after = process_cpu(self.envoy.pid), self.picker and process_cpu(self.picker.pid)
        answers = re.search(r"status codes: (\d+) 2xx", run.stdout)
        if answers is None or int(answers.group(1)) != requests:
            sys.exit(f"{self.name}: not every request was answered with 200\n{run.stdout}")
        return (after[0] - before[0] - self.rest * took, self.picker and after[1] - before[1] - self.picker_rest * took)

    def series(self, name):
        """The sum of a series of the picker's, over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=PATIENCE) as page:
            return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page.read().decode(), re.M))

    def stop(self):
        for child in (self.envoy, self.picker):
            if child is not None:
                self.bench.children.stop(child)


class Bench:
    def __init__(self, options, folder, children):
        self.options, self.folder, self.children = options, folder, children
        self.fairway = os.path.join(options.build, "fairway")
        self.envoy = options.envoy or subprocess.run(
            [os.path.join(os.path.dirname(__file__), "..", "tools", "get-envoy")], stdout=subprocess.PIPE, text=True,
            check=True).stdout.strip()
        stubs = children.start([os.path.join(options.build, "bench", "stub_servers"), "--count", "100"],
                               stdout=subprocess.PIPE, text=True)
        self.stub_ports = [int(port) for port in stubs.stdout.readline().split()[1:]]
        self.prompts = {}

    def prompt(self, size):
        if size not in self.prompts:
            text = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size - 80]
            self.prompts[size] = os.path.join(self.folder, f"prompt-{size}")
            with open(self.prompts[size], "w", encoding="ascii") as out:
                json.dump({"model": "llama2", "stream": True, "max_tokens": 64, "prompt": text}, out)
        return self.prompts[size]

    def beside(self, figures, base, gateways, requests, connections, per, *arguments):
        """Runs each gateway and, next to each of its runs, its base. Adds to figures[name] what each of `per` things took, in
        microseconds: (Envoy, picker, Envoy of the base)."""
        for gateway in {id(each): each for each in [*base.values(), *gateways]}.values():
            gateway.load(max(requests // 2, connections), connections, *arguments)
        for turn in range(self.options.rounds):
            for gateway in gateways:
                pair = [gateway, base[gateway.endpoints]]
                spent = {each: each.load(requests, connections, *arguments) for each in (pair if turn % 2 else pair[::-1])}
                own, beside = (spent[each] for each in pair)
                figures.setdefault(gateway.name, []).append(
                    (own[0] * 1e6 / per, own[1] and own[1] * 1e6 / per, beside[0] * 1e6 / per))

    def show(self, what, base, figures):
        print(f"\n{what}; difference and ratio to {base} beside it\n"
              f"{'':20}{'Envoy':>9}{base:>13}{'difference':>13}{'middle half':>18}{'ratio':>8}{'picker':>9}")
        for name, runs in figures.items():
            differences = [own - beside for own, _, beside in runs]
            low, _, high = statistics.quantiles(differences, n=4)
            ratio = statistics.median(own / beside for own, _, beside in runs)
            pickers = [picker for _, picker, _ in runs if picker is not None]
            print(f"{name:20}{statistics.median(own for own, _, _ in runs):9.2f}"
                  f"{statistics.median(beside for _, _, beside in runs):13.2f}{statistics.median(differences):+13.2f}"
                  f"{f'{low:+.2f} .. {high:+.2f}':>18}{ratio:8.3f}"
                  + (f"{statistics.median(pickers):9.2f}" if pickers else ""), flush=True)

    def start(self, *variants):
        gateways = {f"{variant}, {endpoints}": Gateway(self, variant, endpoints) for variant, endpoints in variants}
        time.sleep(1)
        for gateway in gateways.values():
            gateway.measure_rest(1)
        return gateways

    def requests(self):
        rest, figures = {}, {2_000: {}, 40_000: {}, 440_000: {}}
        for _ in range(self.options.starts):
            by_name = self.start(*((variant, 8) for variant in (BASE, BUFFER, MODULE, FULL, EXT_PROC)),
                                 *((variant, 100) for variant in (BASE, MODULE, FULL)), (LEAN, 8), (LEAN, 100))
            gateways = list(by_name.values())
            for gateway in gateways:
                rest.setdefault(gateway.name, []).append((gateway.rest * 1e3, (gateway.picker_rest or 0) * 1e3))
            robin = {endpoints: by_name[f"{BASE}, {endpoints}"] for endpoints in (8, 100)}
            buffer = {8: by_name[f"{BUFFER}, 8"]}
            self.beside(figures[2_000], robin, [g for g in gateways if g.variant != BASE], 2_000, 32, 2_000, "-d", self.prompt(2_000))
            self.beside(figures[40_000], robin, gateways[1:5], 800, 32, 800, "-d", self.prompt(40_000))
            # Here holding the request is most of it, and whoever reads bodies has to.
            self.beside(figures[440_000], buffer, gateways[2:5], 150, 32, 150, "-d", self.prompt(440_000))
            for gateway in gateways:
                gateway.stop()
        print(f"\nAt rest, ms of CPU per second\n{'':20}{'Envoy':>9}{'picker':>9}")
        for name, values in rest.items():
            print(f"{name:20}" + "".join(f"{statistics.median(column):9.1f}" for column in zip(*values)), flush=True)
        for size, of_size in figures.items():
            self.show(f"Requests of {size // 1000} KB, microseconds of CPU each", BUFFER if size == 440_000 else BASE, of_size)

    def chunks(self):
        streams, pieces = 80, 100 if self.options.quick else 250
        figures, seen = {}, 0
        for _ in range(self.options.starts):
            by_name = self.start((BASE, 8), (MODULE, 8), (FULL, 8))
            base, *gateways = by_name.values()
            self.beside(figures, {8: base}, gateways, streams, 40, streams * pieces, "-d", self.prompt(2_000), "-H",
                        f"x-stub-chunks: {pieces}")
            seen += gateways[-1].series("llm_d_epp_request_streaming_itl_seconds_count")
            for gateway in by_name.values():
                gateway.stop()
        self.show(f"Streamed answers of {pieces} pieces, microseconds of CPU a piece", BASE, figures)
        sent = (self.options.rounds + 0.5) * streams * pieces * self.options.starts
        print(f"pieces as the picker counted them, of those that were sent: {seen / sent:.3f}")

    def memory(self):
        streams = 1_000 if self.options.quick else 5_000
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        streams = min(streams, files // 2 - 500)
        for hold, what in (("silent", "wait for their answer"), ("open", "have begun their answer")):
            figures = {}
            for turn in range(2 if self.options.quick else 3):
                for variant in (BASE, BUFFER, MODULE, FULL, LEAN):
                    gateway = Gateway(self, variant, 8)
                    figures.setdefault(variant, []).append(self.bytes_per_stream(gateway, hold, streams))
                    gateway.stop()
            print(f"\n{streams} streams of 2 KB that {what}: bytes of resident memory each")
            base = statistics.median(figures[BASE])
            for variant, values in figures.items():
                own = statistics.median(values)
                print(f"{variant:22}{own:9.0f}{min(values):9.0f}{max(values):9.0f}   {own - base:+.0f}", flush=True)

    def bytes_per_stream(self, gateway, hold, streams):
        """The slope from the first fifth to all, so that what Envoy needs once is not in it."""
        with open(self.prompt(2_000), "rb") as prompt:
            body = prompt.read()
        request = (f"POST /v1/completions HTTP/1.1\r\nhost: llm.example\r\ncontent-type: application/json\r\nx-stub-hold: {hold}\r\n"
                   f"content-length: {len(body)}\r\n\r\n").encode() + body
        sockets, sizes = [], []
        try:
            for upto in (streams // 5, streams):
                while len(sockets) < upto:
                    sockets.append(socket.create_connection(("127.0.0.1", gateway.port), PATIENCE))
                    sockets[-1].sendall(request)
                    if hold == "open" and not sockets[-1].recv(1):
                        sys.exit(f"{gateway.name}: no answer")
                await_that(lambda: active(gateway) >= upto, f"{upto} open streams")  # pylint: disable=cell-var-from-loop
                time.sleep(0.5)
                sizes.append(resident_kb(gateway.envoy.pid) * 1024)
        finally:
            for each in sockets:
                each.close()
        return (sizes[1] - sizes[0]) / (streams - streams // 5)


def active(gateway):
    """Connections that are established with Envoy's upstreams: requests that went through."""
    with open(f"/proc/{gateway.envoy.pid}/net/tcp", encoding="ascii") as table:
        ports = {f"{port:04X}" for port in gateway.bench.stub_ports[:gateway.endpoints]}
        return sum(1 for line in table if line.split()[2][9:] in ports and line.split()[3] == "01")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/bench")
    parser.add_argument("--envoy", default=os.environ.get("FAIRWAY_ENVOY"), help="the binary; default: that of tools/get-envoy")
    parser.add_argument("--starts", type=int, default=None, help="how often all are started anew; default 6, with --quick 1")
    parser.add_argument("--rounds", type=int, default=None, help="runs of each variant after a start; default 8, with --quick 3")
    parser.add_argument("--parts", default="requests,chunks,memory")
    parser.add_argument("--quick", action="store_true", help="does it work? Figures are too rough to go by")
    options = parser.parse_args()
    options.starts = options.starts or (1 if options.quick else 6)
    options.rounds = options.rounds or (3 if options.quick else 8)
    children = Children()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, folder, children)
            for part in options.parts.split(","):
                getattr(bench, part)()
    finally:
        children.stop_all()


if __name__ == "__main__":
    main()
