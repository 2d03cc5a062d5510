#!/usr/bin/env python3
"""Minutes of half the peak rate while everything around the picker changes: memory has to stay flat.

  tools/setup bench && tools/build bench fairway fairway_envoy stub_servers
  python3 bench/soak.py [--minutes 10] [--through epp|up] [--build build/bench] [--servers 12]

What is soaked: `epp` is `fairway epp` asked over ext_proc as a gateway with response bodies asks it, `up` is `fairway up`, the picker
inside a real Envoy. h2load is the client. The peak is measured first, for 10 s; then half of it is kept up in spells of 10 s, each
with connections and prompts of its own (2 KB and 40 KB), so that the prefix index never stops learning. All the while:

  each 2 s    a model server joins or leaves the manifests
  each 7 s    the metrics page is read
  each 15 s   one client sends nothing but calls that it gives up in the middle
  each 20 s   a file of the manifests changes its objectives; every third time it is broken, and mended 1 s later
  each 60 s   the servers' process dies; another listens on the same ports 1 s later

Printed for each spell: requests answered, refused or failed, resident memory of each process, descriptors and threads of the picker.
When the load is over, no request may be left open in the picker's books. At the end the mean memory of the last fifth is set beside that of the second fifth (the first one warms up). Exit code 1 when
it grew by more than 5 % and 2 MB, when a process ended, or when a spell in which no server died had failures.
"""
import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import envoy_path
import ext_proc_exchange
from envoy_path import Children, await_that, free_port, listens

SPELL = 10  # seconds
CONNECTIONS = 8

OBJECTIVE = """apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: batch-%d}
spec: {priority: %d, poolRef: {name: pool}}
---
"""


def body(size, spell):
    prompt = (f"In spell {spell} " + "the quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size - 100]
    return json.dumps({"model": "llama2", "max_tokens": 64, "prompt": prompt}).encode()


def exchange(size, spell):
    """The whole of a request and of its answer as a gateway sends them, in one upload."""
    field, framed = ext_proc_exchange.field, ext_proc_exchange.framed
    answer = json.dumps({"usage": {"prompt_tokens": size // 4, "completion_tokens": 64,
                                   "prompt_tokens_details": {"cached_tokens": size // 8}}}).encode()
    head = field(1, field(1, field(1, b":status") + field(3, b"200")) +
                 field(1, field(1, b"content-type") + field(3, b"application/json")))
    return (ext_proc_exchange.exchange(body(size, spell)) + framed(field(3, head)) +
            framed(field(5, field(1, answer) + b"\x10\x01")))


class Soak:
    def __init__(self, options, folder, children):
        self.options, self.folder, self.children = options, folder, children
        self.build = os.path.join(options.build, "bench", "stub_servers")
        self.fairway = os.path.join(options.build, "fairway")
        self.stubs, self.ports = self.serve([])
        self.there = set(range(options.servers))
        self.log = open(os.path.join(folder, "log"), "wb")  # pylint: disable=consider-using-with
        self.manifests = os.path.join(folder, "manifests")
        os.mkdir(self.manifests)
        self.write("endpoints.yaml", self.endpoints())
        self.write("pool.yaml", envoy_path.POOL)
        self.write("objectives.yaml", OBJECTIVE % (0, 1))
        self.port, self.admin = free_port(), free_port()
        if options.through == "epp":
            argv = [self.fairway, "epp", "-f", self.manifests, "--grpc-port", str(self.port), "--grpc-health-port", "0", "--metrics-port",
                    str(self.admin), "--secure-serving=false", "--metrics-endpoint-auth=false"]
        else:
            argv = [self.fairway, "up", "-f", self.manifests, "--listen", f"127.0.0.1:{self.port}", "--metrics-port", str(self.admin)]
        self.picker = children.start(argv, stdout=self.log, stderr=self.log)
        await_that(lambda: listens(self.port) and listens(self.admin), f"{options.through}; see {folder}/log")

    def serve(self, ports):
        stubs = self.children.start(
            [self.build] + ([word for port in ports for word in ("--port", str(port))] if ports else
                            ["--count", str(self.options.servers)]), stdout=subprocess.PIPE, text=True)
        return stubs, [int(word) for word in stubs.stdout.readline().split()[1:]]

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="ascii") as out:
            out.write(text)
        os.replace(path, os.path.join(self.manifests, name))

    def endpoints(self):
        return envoy_path.endpoints({i: self.ports[i] for i in sorted(self.there)})

    # What changes, each in its own time.

    def come_and_go(self, turn):
        which = (turn * 5) % self.options.servers
        self.there ^= {which} if len(self.there) > self.options.servers // 2 or which not in self.there else set()
        self.write("endpoints.yaml", self.endpoints())

    def change_objectives(self, turn):
        if turn % 3 == 2:
            self.write("objectives.yaml", "kind: [")
            time.sleep(1)
        self.write("objectives.yaml", "".join(OBJECTIVE % (i, turn % 7 - 3) for i in range(turn % 5 + 1)))

    def die(self, _):
        self.dead_until = float("inf")
        self.children.stop(self.stubs)
        time.sleep(1)
        self.stubs, _ = self.serve(self.ports)
        self.dead_until = time.monotonic() + 1  # connections that broke are told by then

    def page(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def read_page(self, _):
        with contextlib.suppress(OSError):  # the picker's end is told elsewhere
            self.page()

    def sums(self, *names):
        """Of each metric, over its series."""
        lines = [line.rsplit(" ", 1) for line in self.page().splitlines()]
        return {name: sum(float(value) for series, value in lines if re.fullmatch(name + r"(\{.*\})?", series)) for name in names}

    def give_up(self, _):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(self.load_argv(self.data(40_000, "given up"), ["-D", "30", "-c", "2"]), capture_output=True, timeout=1.5)

    def each(self, seconds, what, over):
        def run():
            turn = 0
            while not over.wait(seconds):
                what(turn)
                turn += 1
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    # The load.

    def data(self, size, spell):
        path = os.path.join(self.folder, f"data-{size}-{'given-up' if spell == 'given up' else 'load'}")
        with open(path + ".new", "wb") as out:
            out.write(exchange(size, spell) if self.options.through == "epp" else body(size, spell))
        os.replace(path + ".new", path)  # who still sends the last one has it open
        return path

    def load_argv(self, data, how):
        if self.options.through == "epp":
            target = ["-m", "16", "-H", "content-type: application/grpc", "-H", "te: trailers",
                      f"http://127.0.0.1:{self.port}/envoy.service.ext_proc.v3.ExternalProcessor/Process"]
        else:
            target = ["--h1", "-H", "content-type: application/json", f"http://127.0.0.1:{self.port}/v1/completions"]
        return ["h2load", "-t", "1", "-d", data, *how, *target]

    def load(self, spell, seconds, rate):
        """Both sizes at once: nine small requests for a large one. Returns (answered, refused, failed)."""
        runs = []
        for size, share, count in ((2_000, 0.9, CONNECTIONS - 1), (40_000, 0.1, 1)):
            pace = ["--rps", f"{max(1, rate * share / count):.1f}"] if rate else []
            runs.append(subprocess.Popen(self.load_argv(self.data(size, spell), ["-D", str(seconds), "-c", str(count), *pace]),
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        answered = refused = failed = 0
        for run in runs:
            try:
                out, _ = run.communicate(timeout=seconds + 60)
            except subprocess.TimeoutExpired:
                run.kill()
                out, _ = run.communicate()
            ok, bad4, bad5 = (int(re.search(rf"(\d+) {kind}xx", out).group(1)) for kind in (2, 4, 5))
            answered, refused, failed = answered + ok, refused + bad4, failed + bad5
            failed += int(re.search(r"(\d+) errored", out).group(1))
        return answered, refused, failed

    def processes(self):
        """The picker and, for `up`, the Envoy that it started: name -> process id."""
        found = {"fairway": self.picker.pid}
        children = subprocess.run(["pgrep", "-P", str(self.picker.pid)], capture_output=True, text=True, check=False).stdout.split()
        found.update({"envoy": int(pid) for pid in children})
        return found

    def run(self):
        self.load("warm", 3, None)
        peak = sum(self.load("peak", SPELL, None)) / SPELL
        rate = peak / 2
        print(f"peak {peak:,.0f} requests a second on this machine now; {self.options.minutes} minutes at {rate:,.0f}", flush=True)
        over = threading.Event()
        self.dead_until = 0.0
        threads = [self.each(*what, over) for what in (
            (2, self.come_and_go), (7, self.read_page), (15, self.give_up), (20, self.change_objectives), (60, self.die))]
        names = list(self.processes())
        print("   s   answered  refused  failed  " + "".join(f"{name + ' MB':>12}" for name in names) + "   files  threads", flush=True)
        memory = {name: [] for name in names}
        bad = []
        start = time.monotonic()
        spell = 0
        while time.monotonic() - start < self.options.minutes * 60 and not bad:
            began = time.monotonic()
            answered, refused, failed = self.load(spell, SPELL, rate)
            died = self.dead_until > began
            spell += 1
            now = self.processes() if self.picker.poll() is None else {}
            if list(now) != names:
                bad.append(f"a process ended: {names} -> {list(now)}")
                break
            for name, pid in now.items():
                memory[name].append(envoy_path.resident_kb(pid) / 1024)
            files, tasks = (len(os.listdir(f"/proc/{self.picker.pid}/{what}")) for what in ("fd", "task"))
            print(f"{time.monotonic() - start:4.0f} {answered:10,} {refused:8,} {failed:7,}  " +
                  "".join(f"{memory[name][-1]:12.1f}" for name in names) + f" {files:7} {tasks:8}" + ("   servers died" * died), flush=True)
            if failed + refused and not died:
                bad.append(f"{failed} failed and {refused} refused requests in spell {spell}, where no server died")
        over.set()
        for thread in threads:
            thread.join(30)
        if self.picker.poll() is None:
            await_that(lambda: not any(self.sums("inference_objective_running_requests", "fairway_grpc_calls").values()),
                       "all requests ended in the picker's books")
            print(", ".join(f"{name} {value:,.0f}" for name, value in self.sums(
                "inference_objective_request_total", "fairway_refusals_total", "inference_objective_request_error_total",
                "fairway_served_elsewhere_total", "fairway_prefix_index_blocks", "fairway_log_lines_lost_total").items()))
        for name, values in memory.items():
            fifth = max(1, len(values) // 5)
            early, late = statistics.mean(values[fifth:2 * fifth] or values), statistics.mean(values[-fifth:])
            print(f"{name}: {early:.1f} MB in the second fifth, {late:.1f} MB in the last ({late / early - 1:+.1%})")
            if late > early * 1.05 and late > early + 2:
                bad.append(f"the memory of {name} grew")
        return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--through", choices=("epp", "up"), default="epp")
    parser.add_argument("--servers", type=int, default=12)
    parser.add_argument("--build", default="build/bench")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    children = Children()
    with tempfile.TemporaryDirectory() as folder:
        try:
            soak = Soak(options, folder, children)
            bad = soak.run()
            soak.log.flush()
            with open(soak.log.name, errors="replace", encoding="utf-8") as log:
                lines = log.read().splitlines()
            print(f"{len(lines)} lines of log; the last: {lines[-1] if lines else '-'}")
        finally:
            children.stop_all()
    for line in bad:
        print(line, file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
