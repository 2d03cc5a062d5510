#!/usr/bin/env python3
"""What a picker costs while nobody asks it: CPU and memory of `fairway epp` by number of endpoints and by how often it reads their metrics.

  python3 bench/picker_at_rest.py [--fairway build/release/fairway] [--seconds 5] [--runs 3] [--endpoints 1,8,100,1000] [--intervals 50ms,200ms,1s]

The endpoints are `fairway sim`'s, on loopback. CPU is the picker's own, from /proc, after a second to settle, the least of some
runs: on a machine that others use, more is theirs. Memory is resident. `ready` is the time from its start until /readyz says so.
"""
import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

def cpu(pid):
    """Seconds on a CPU, of all threads, as the scheduler counts them: ticks of 10 ms would be too coarse."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as stat:
            total += int(stat.read().split()[0])
    return total / 1e9


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ready(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def measure(fairway, ports, interval, seconds):
    pool = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "pool"},
            "spec": {"selector": {"matchLabels": {"app": "llm"}}, "targetPorts": [{"number": 8000}],
                     "endpointPickerRef": {"name": "epp", "port": {"number": 9002}}}}
    endpoints = [{"name": f"e{i}", "address": "127.0.0.1", "port": str(p), "labels": {"app": "llm"}} for i, p in enumerate(ports)]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("pool", pool), ("endpoints", {"endpoints": endpoints})):
            with open(f"{folder}/{name}.json", "w") as file:
                json.dump(content, file)
        admin, started = free_port(), time.monotonic()
        picker = subprocess.Popen([fairway, "epp", "-f", folder, "--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", str(admin),
                                   "--refresh-metrics-interval", interval], stderr=subprocess.DEVNULL)
        try:
            while not ready(admin):
                if picker.poll() is not None or time.monotonic() > started + 30:
                    raise SystemExit("the picker did not start")
                time.sleep(0.005)
            start = time.monotonic() - started
            time.sleep(1)
            before, since = cpu(picker.pid), time.monotonic()
            time.sleep(seconds)
            used = (cpu(picker.pid) - before) / (time.monotonic() - since)
            return start, used * 1000, resident(picker.pid)
        finally:
            picker.send_signal(signal.SIGTERM)
            picker.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fairway", default="build/release/fairway")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--endpoints", default="1,8,100,1000")
    parser.add_argument("--intervals", default="50ms,200ms,1s")
    options = parser.parse_args()
    counts = [int(n) for n in options.endpoints.split(",")]
    simulated = subprocess.Popen([options.fairway, "sim", "--listen", "127.0.0.1:0", "--count", str(max(counts))],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        ports = []
        for line in simulated.stdout:
            ports += map(int, re.findall(r"http://127\.0\.0\.1:(\d+)", line))
            if line.startswith("ready"):
                break
        print("| endpoints | metrics read every | CPU per second | resident memory | ready after |\n|---|---|---|---|---|")
        for count in counts:
            for interval in options.intervals.split(","):
                runs = [measure(options.fairway, ports[:count], interval, options.seconds) for _ in range(options.runs)]
                start, used, memory = (min(values) for values in zip(*runs))
                print(f"| {count} | {interval} | {used:.1f} ms | {memory:.1f} MB | {start * 1000:.0f} ms |", flush=True)
    finally:
        simulated.terminate()
        simulated.wait(10)


if __name__ == "__main__":
    main()
