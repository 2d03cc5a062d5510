#!/usr/bin/env python3
"""CPU of one ext_proc exchange: `fairway epp` beside an empty server on the same transport, run by run in turn.

  python3 bench/ext_proc_exchange.py [--build build/bench] [--runs 5] [--peer NAME=HOST:PORT:PID ...]

One exchange is what a gateway in FULL_DUPLEX_STREAMED sends for one request: RequestHeaders, then the body in messages of 16 KB,
then an empty last one; and the answers to them. h2load plays the gateway (4 connections, 16 exchanges on each). CPU is the
server process's own user and system time, from /proc, less what it spends idle in the same time.
A peer is any other ext_proc server that listens in plain text; it is measured in the same turns.
--hashing adds a picker whose config hashes prompts (prefix-cache-scorer) and one whose config does not, else alike.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from envoy_path import await_that, free_port, listens, manifest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
from protobuf_bytes import put  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
REQUESTS = {2_000: 20_000, 40_000: 5_000, 440_000: 1_000}


def framed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


def body_of(size):
    prompt = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size - 80]
    return json.dumps({"model": "llama2", "stream": True, "max_tokens": 64, "prompt": prompt}).encode()


def exchange(body):
    """The gateway's side of one request, as h2load can send it."""
    headers = {":method": "POST", ":path": "/v1/completions", ":authority": "llm.example", ":scheme": "http",
               "content-type": "application/json", "content-length": str(len(body)), "user-agent": "bench",
               "x-request-id": "0a1b2c3d-0000-4000-8000-000000000000", "accept": "*/*"}
    header_map = b"".join(put(1, put(1, k.encode()) + put(3, v.encode())) for k, v in headers.items())
    full_duplex = b"\x08\x04\x10\x04"  # protocol_config: both body modes FULL_DUPLEX_STREAMED
    out = framed(put(2, put(1, header_map)) + put(11, full_duplex))
    for at in range(0, len(body), 16_384):
        out += framed(put(4, put(1, body[at:at + 16_384])))
    return out + framed(put(4, b"\x10\x01"))


def config(folder, hashes):
    """Decides by queues; with `hashes` by what is cached, too."""
    plugins = ["queue-scorer", "max-score-picker"] + (["prefix-cache-scorer"] if hashes else [])
    path = os.path.join(folder, f"config-{hashes}.yaml")
    with open(path, "w") as out:
        json.dump({"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig", "plugins": [{"type": plugin} for plugin in plugins],
                   "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": plugin} for plugin in plugins]}]}, out)
    return path


def cpu(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


class Server:
    def __init__(self, name, port, pid):
        self.name, self.port, self.pid = name, port, pid

    def idle(self, seconds=2):
        before, start = cpu(self.pid), time.monotonic()
        time.sleep(seconds)
        return (cpu(self.pid) - before) / (time.monotonic() - start)

    def load(self, data, requests):
        """CPU seconds per exchange."""
        before, start = cpu(self.pid), time.monotonic()
        run = subprocess.run(
            ["h2load", "-n", str(requests), "-c", "4", "-m", "16", "-t", "1", "-d", data, "-H",
             "content-type: application/grpc", "-H", "te: trailers",
             f"http://127.0.0.1:{self.port}/envoy.service.ext_proc.v3.ExternalProcessor/Process"],
            capture_output=True, text=True, check=True)
        took = time.monotonic() - start
        done = int(re.search(r"(\d+) succeeded", run.stdout).group(1))
        if done != requests:
            sys.exit(f"{self.name}: {done} of {requests} exchanges succeeded\n{run.stdout}")
        return (cpu(self.pid) - before - self.idle_share * took) / requests

    idle_share = 0.0


def start(argv, port):
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_that(lambda: listens(port), f"{argv[0]} on {port}")
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/bench")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--endpoints", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--hashing", action="store_true")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PORT:PID")
    options = parser.parse_args()
    fairway = os.path.join(options.build, "fairway")
    children = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            servers = []
            port = free_port()
            empty = start([os.path.join(options.build, "bench", "empty_ext_proc"), "--port", str(port)], port)
            children.append(empty)
            servers.append(Server("empty server", port, empty.pid))
            most = max(options.endpoints)
            sim_ports = [free_port() for _ in range(most)]
            sim = subprocess.Popen([fairway, "sim", "--model", "llama2"] +
                                   [arg for p in sim_ports for arg in ("--listen", f"127.0.0.1:{p}")],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            children.append(sim)
            while not sim.stdout.readline().startswith("ready"):
                if sim.poll() is not None:
                    sys.exit("fairway sim ended")
            pickers = [(f"fairway, {count} endpoints", count, []) for count in options.endpoints]
            if options.hashing:
                pickers += [(name, options.endpoints[0], ["--config-file", config(folder, hashes)])
                            for name, hashes in (("without hashing", False), ("with hashing", True))]
            for name, count, more in pickers:
                port = free_port()
                process = start([fairway, "epp", "-f", manifest(folder, sim_ports[:count]), "--grpc-port", str(port),
                                 "--grpc-health-port", "0", "--metrics-port", "0", "--secure-serving=false", *more], port)
                children.append(process)
                servers.append(Server(name, port, process.pid))
            for peer in options.peer:
                name, where = peer.split("=")
                peer_port, pid = where.split(":")
                servers.append(Server(name, int(peer_port), int(pid)))
            for server in servers:
                server.idle_share = server.idle()
                print(f"{server.name:24} idle {server.idle_share * 1000:6.1f} ms CPU per s, {resident_mb(server.pid):6.1f} MB")
            print(f"\n{'body':>8}  {'server':24} {'least':>9} {'median':>9} {'most':>9}  us CPU per exchange; ratio of medians to empty")
            for size, requests in REQUESTS.items():
                data = os.path.join(folder, f"exchange-{size}")
                with open(data, "wb") as out:
                    out.write(exchange(body_of(size)))
                figures = {server.name: [] for server in servers}
                for server in servers:
                    server.load(data, requests // 4)
                for _ in range(options.runs):
                    for server in servers:
                        figures[server.name].append(server.load(data, requests) * 1e6)
                floor = statistics.median(figures["empty server"])
                for name, values in figures.items():
                    median = statistics.median(values)
                    print(f"{size:8}  {name:24} {min(values):9.1f} {median:9.1f} {max(values):9.1f}  {median / floor:.2f}")
            print()
            for server in servers:
                print(f"{server.name:24} {resident_mb(server.pid):6.1f} MB after the load")
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()


if __name__ == "__main__":
    main()
