#!/usr/bin/env python3
"""What clients wait for: simulated model servers in real time behind Fairway and behind others, on the same requests.

  tools/setup bench && tools/build release fairway fairway_envoy open_loop
  python3 bench/quality.py --list                              workloads and contenders
  python3 bench/quality.py --workload unique,bursts --only round-robin,fairway
  python3 bench/quality.py --peers CACHE_FOLDER --seeds 2      everything that is there; installs the peers first
  python3 bench/quality.py --render                            the pages again, from the results that are there

For each workload of examples/workloads that can be played in real time, each seed and each contender: `fairway sim` is started
anew (so every cache is cold), the contender in front of it, and bench/open_loop.cc plays the workload. Requests, their texts and
when they are due follow from the seed: they are the same for all. Times count from when a request was due. What is due in the
first part of a run (--warmup) does not count. Contenders take turns: whatever else the machine does hits all alike.

Contenders (all with defaults, but for what is said):
  round-robin            Envoy alone, ROUND_ROBIN over the same addresses
  least-request          Envoy alone, LEAST_REQUEST (two at random, the one with fewer open requests)
  fairway                `fairway up`: the picker inside Envoy
  fairway-ext-proc       `fairway up --ext-proc`: the picker beside Envoy
  fairway-ext-proc-full  the same with --response-mode full: the picker sees answers, as the one inside Envoy does
  vllm-router            vllm-router 0.1.17, policy cache_aware (its default)
  sglang-router          sglang-router 0.3.2, policy cache_aware (its default)
  reference              the reference picker by ext_proc, where --reference-epp names its binary: its default scorers
  reference-guide        the same with the profile of its guides: prefix-cache-affinity-filter, then token-load-scorer
Each Envoy has one worker thread, so that round robin is one round robin.

A run in which the load generator was late by more than 20 ms at the 99th percentile, or its timers were, says nothing: it is
repeated (--attempts), and is marked invalid if it stays so. Results go into docs/quality.json, one entry for each workload (a
workload that is run again replaces its own; contenders that were not run again stay), and from there into the section of
docs/benchmarks.md that is marked for it and into docs/quality.svg.
"""
import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml

from envoy_path import listens

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORKLOADS = os.path.join(ROOT, "examples", "workloads")
PATIENCE = 60  # seconds that anything may take to start
MAX_LATE = 0.020
MODEL = "sim-model"
PEERS = {"vllm-router": "vllm-router==0.1.17", "sglang-router": "sglang-router==0.3.2"}


def await_that(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {PATIENCE} s: {what}")
        time.sleep(0.02)


def free_port():
    """Below the range out of which the kernel takes ports for those who connect."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def answers(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


class Run:
    """The processes and files of one run; all end with it."""

    def __init__(self, options):
        self.options = options
        self.children = []

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="fairway-quality-")
        return self

    def __exit__(self, kind, *_):
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            print(f"logs: {self.folder}", file=sys.stderr)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(content if isinstance(content, str) else json.dumps(content, indent=1))
        return self.path(name)

    def start(self, name, argv, env=None):
        # In our session, as all is: where the kernel shares out time by session, all get it alike.
        with open(self.path(name + ".log"), "wb") as log:
            child = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     env={**os.environ, **(env or {})})
        self.children.append(child)
        return child

    def log(self, name):
        with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as log:
            return log.read()

    def await_ready(self, name, child, condition):
        def look():
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with {child.returncode}:\n{self.log(name)[-2000:]}")
            return condition()
        await_that(look, f"{name} is ready:\n{self.log(name)[-2000:]}")


# ---- Workloads and the servers that they are made for ----

def workload_names():
    return sorted(name[:-5] for name in os.listdir(WORKLOADS) if name.endswith(".yaml"))


class Workload:
    """A file that `fairway replay` reads. What its requests are is open_loop's; here are its servers and its classes."""

    def __init__(self, name):
        self.path = name if name.endswith(".yaml") else os.path.join(WORKLOADS, name + ".yaml")
        self.name = os.path.basename(self.path)[:-5]
        with open(self.path, encoding="utf-8") as file:
            self.spec = yaml.safe_load(file)
        self.classes = self.spec["classes"]
        self.fleet = self.spec.get("fleet", {"engines": [{"count": 8}]})

    def why_not(self):
        """What of it cannot be done in real time; "" when all can."""
        if "events" in self.fleet:
            return "its servers change while it runs"
        if any("ranks" in group for group in self.fleet["engines"]):
            return "`fairway sim` has no data-parallel ranks"
        if any("retries" in each or "timeout" in each for each in self.classes):
            return "its clients try again or give up"
        return ""

    def adapters(self):
        return [f"{each['adapters'].get('name', 'lora')}-{i + 1}"
                for each in self.classes if "adapters" in each for i in range(each["adapters"]["count"])]

    def start_servers(self, run):
        """Returns [(name, port)] when all listen."""
        servers, started = [], []
        for number, group in enumerate(self.fleet["engines"]):
            count, name = group.get("count", 1), group.get("name", "engine")
            argv = [run.options.fairway, "sim", "--model", MODEL]
            flags = {"max-model-len": 32768, "num-blocks": 8192, "seed": 1000 * (number + 1)}  # as in a replay
            flags.update({k: v for k, v in group.items() if k not in ("count", "name")})
            for flag, value in flags.items():
                argv += [f"--{flag}"] if value is True else [f"--{flag}", value]
            for adapter in self.adapters():
                argv += ["--adapter", adapter]
            for i in range(count):
                argv += ["--listen", f"{name}-{i + 1}=127.0.0.1:0"]
            started.append((f"sim-{number}", run.start(f"sim-{number}", argv)))
        for name, child in started:
            run.await_ready(name, child, lambda name=name: "ready: " in run.log(name))
            servers += [(server, int(port)) for server, port in re.findall(r"^(\S+)  http://127.0.0.1:(\d+) ", run.log(name), re.M)]
        return servers


# ---- Contenders: each is started in front of servers and returns the port to ask ----

def plain_envoy(policy):
    def start(run, workload, servers):
        port = free_port()
        hosts = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}} for _, p in servers]
        limits = {"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536}
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in", "stream_idle_timeout": "0s",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": "servers", "timeout": "0s"}}]}]},
            "http_filters": [{"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}
        config = run.write("envoy.json", {"static_resources": {
            "listeners": [{"name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                           "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
            "clusters": [{"name": "servers", "type": "STATIC", "lb_policy": policy, "connect_timeout": "5s",
                          "circuit_breakers": {"thresholds": [limits]},
                          "load_assignment": {"cluster_name": "servers", "endpoints": [{"lb_endpoints": hosts}]}}]}})
        envoy = run.start("envoy", [run.options.envoy, "-c", config, "--concurrency", 1, "--use-dynamic-base-id",
                                    "--log-level", "warning"])
        run.await_ready("envoy", envoy, lambda: listens(port))
        return port
    return start


def manifests(workload, servers):
    """The pool of the servers, and the priorities of the workload's classes."""
    objects = [{"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "pool"},
                "spec": {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}],
                         "endpointPickerRef": {"name": "picker", "port": {"number": 9002}}}},
               {"endpoints": [{"name": name, "address": "127.0.0.1", "port": str(port), "labels": {"app": "vllm"}}
                              for name, port in servers]}]
    objects += [{"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": each["name"]},
                 "spec": {"priority": each["priority"], "poolRef": {"name": "pool"}}}
                for each in workload.classes if "priority" in each]
    return "\n---\n".join(json.dumps(each) for each in objects)


def fairway_up(*flags):
    def start(run, workload, servers):
        port = free_port()
        up = run.start("fairway", [run.options.fairway, "up", "-f", run.write("pool.yaml", manifests(workload, servers)),
                                   "--listen", f"127.0.0.1:{port}", "--envoy", run.options.envoy, "--envoy-concurrency", 1,
                                   "--metrics-port", 0, *flags, *run.options.fairway_flags])
        run.await_ready("fairway", up, lambda: re.search("^ready", run.log("fairway"), re.M) and listens(port))
        return port
    return start


def python_router(package, *subcommand):
    def start(run, workload, servers):
        port = free_port()
        router = run.start(package, [
            os.path.join(run.options.peers, package, "bin", package), *subcommand, "--host", "127.0.0.1", "--port", port,
            "--prometheus-host", "127.0.0.1", "--prometheus-port", free_port(), "--policy", "cache_aware",
            "--worker-startup-check-interval", 1, "--worker-urls", *(f"http://127.0.0.1:{p}" for _, p in servers)])
        run.await_ready(package, router, lambda: answers(port, "/v1/models"))
        return port
    return start


def envoy_for_reference(run, workload, servers, picker):
    """What `fairway up --ext-proc` would start, with the bodies of requests and of answers as the reference wants them."""
    port = free_port()
    printed = subprocess.run([run.options.fairway, "up", "-f", run.write("pool.yaml", manifests(workload, servers)), "--listen",
                              f"127.0.0.1:{port}", "--ext-proc", "--picker", f"127.0.0.1:{picker}", "--body-mode", "full-duplex",
                              "--response-mode", "full", "--print-envoy-config"], stdout=subprocess.PIPE, text=True, check=True)
    for part in re.split(r"^# (?=\S+\.json$)", printed.stdout, flags=re.M)[1:]:
        name, text = part.split("\n", 1)
        text = text.replace('"response_body_mode": "STREAMED"', '"response_body_mode": "FULL_DUPLEX_STREAMED"')
        run.write(name, text.replace("/etc/fairway/", run.folder + "/"))
    envoy = run.start("envoy", [run.options.envoy, "-c", run.path("bootstrap.json"), "--concurrency", 1, "--use-dynamic-base-id",
                                "--log-level", "warning"])
    run.await_ready("envoy", envoy, lambda: listens(port))
    return port


def reference(*plugins):
    """`plugins`: what its one profile has, in order, each with a weight or None."""
    def start(run, workload, servers):
        path = run.write("endpoints.yaml", {"endpoints": [{"name": name, "address": "127.0.0.1", "port": str(port), "labels": {}}
                                                          for name, port in servers]})
        config = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig",
                  "plugins": [{"name": "files", "type": "file-discovery", "parameters": {"path": path}},
                              *({"type": plugin} for plugin, _ in plugins)],
                  "schedulingProfiles": [{"name": "default", "plugins": [
                      {"pluginRef": plugin, **({"weight": weight} if weight else {})} for plugin, weight in plugins]}],
                  "dataLayer": {"discovery": {"pluginRef": "files"}}}
        grpc = free_port()
        picker = run.start("reference", [
            run.options.reference_epp, "--pool-name", "pool", "--config-file", run.write("epp.yaml", config), "--grpc-port", grpc,
            "--grpc-health-port", free_port(), "--metrics-port", free_port(), "--secure-serving=false", "--tracing=false",
            "--metrics-endpoint-auth=false"])
        run.await_ready("reference", picker, lambda: listens(grpc))
        return envoy_for_reference(run, workload, servers, grpc)
    return start


# What the reference's binary does without a configuration. It cannot be left out here: where the servers are is in it, too.
BINARY_DEFAULT = reference(("queue-scorer", 2), ("kv-cache-utilization-scorer", 2), ("prefix-cache-scorer", 3))
# What its guides give (docs of llm-d, "optimized baseline").
GUIDES_PROFILE = reference(("inflight-load-producer", None), ("prefix-cache-affinity-filter", None), ("token-load-scorer", 1))

CONTENDERS = {
    "round-robin": plain_envoy("ROUND_ROBIN"),
    "least-request": plain_envoy("LEAST_REQUEST"),
    "fairway": fairway_up(),
    "fairway-ext-proc": fairway_up("--ext-proc"),
    "fairway-ext-proc-full": fairway_up("--ext-proc", "--response-mode", "full"),
    "vllm-router": python_router("vllm-router"),
    "sglang-router": python_router("sglang-router", "launch"),
    "reference": BINARY_DEFAULT,
    "reference-guide": GUIDES_PROFILE,
}
LABELS = {"fairway": "Fairway in Envoy", "fairway-ext-proc": "Fairway by ext_proc",
          "fairway-ext-proc-full": "Fairway by ext_proc, sees answers", "round-robin": "Envoy, round robin",
          "least-request": "Envoy, least request", "vllm-router": "vllm-router 0.1.17", "sglang-router": "sglang-router 0.3.2",
          "reference": "reference picker", "reference-guide": "reference picker, guides' profile"}


def install_peers(folder):
    for name, package in PEERS.items():
        place = os.path.join(folder, name)
        if os.path.exists(os.path.join(place, "bin", name)):
            continue
        print(f"installing {package} into {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([os.path.join(place, "bin", "pip"), "install", "--quiet", package], check=True)


# ---- One run ----

def quantile(values, part):
    """By nearest rank, as in a replay."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def summary(values):
    return {"mean": statistics.fmean(values) if values else 0.0,
            **{f"p{percent}": quantile(values, percent / 100) for percent in (50, 90, 99)}}


def figures(records, seconds, warmup):
    """Of requests that were due after the warm-up. Tokens a second are those of answers that ended while requests came, whenever
    they were due: in overload less than what is asked for. The spread is of all requests."""
    given = [each for each in records if each["end"] == "answered" and warmup <= each["due"] + each["total"] <= seconds]
    counted = [each for each in records if warmup <= each["due"] < seconds]
    answered = [each for each in counted if each["end"] == "answered"]
    ends = {end: sum(each["end"] == end for each in counted) for end in ("answered", "shed", "failed", "unfinished")}
    prompt = sum(each["prompt"] for each in answered)
    return {"requests": len(counted), **ends,
            "first_token": summary([each["first"] for each in answered]),
            "per_token": summary([(each["last"] - each["first"]) / (each["tokens"] - 1) for each in answered if each["tokens"] > 1]),
            "total": summary([each["total"] for each in answered]),
            "output_tokens_per_second": sum(each["tokens"] for each in given) / (seconds - warmup),
            "cached": sum(each["cached"] for each in answered) / prompt if prompt else 0.0}


def spread(records, servers):
    """Prompt tokens that had to be computed: those of the server with most over the mean."""
    work = {name: 0 for name, _ in servers}
    for each in records:
        if each["server"] in work:
            work[each["server"]] += each["prompt"] - each["cached"]
    mean = sum(work.values()) / len(work)
    return max(work.values()) / mean if mean else 0.0


def play(options, workload, contender, seed):
    """All figures of one run: of all classes under "", of each under its name."""
    with Run(options) as run:
        servers = workload.start_servers(run)
        port = CONTENDERS[contender](run, workload, servers)
        time.sleep(options.settle)  # health checks and first pages
        argv = [options.open_loop, "--workload", workload.path, "--target", f"127.0.0.1:{port}", "--model", MODEL,
                "--seed", seed, "--seconds", options.seconds, "--grace", options.grace]
        played = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
        if played.returncode != 0:
            raise RuntimeError(f"open_loop: {played.stderr}")
        *records, lag = [json.loads(line) for line in played.stdout.splitlines()]
        if not any(each["end"] == "answered" for each in records):  # no result, but a mistake of this bench or of its settings
            raise RuntimeError(f"{contender} answered none of {len(records)}: status {sorted({r['status'] for r in records})}")
    warmup = options.warmup * options.seconds
    result = {"": figures(records, options.seconds, warmup)}
    if len(workload.classes) > 1:
        result.update({each["name"]: figures([r for r in records if r["class"] == each["name"]], options.seconds, warmup)
                       for each in workload.classes})
    late = quantile([each["late"] for each in records], 0.99)
    result[""].update(spread=spread(records, servers), late_p99=late, lag_p99=lag["lag_p99"],
                      valid=max(late, lag["lag_p99"]) <= MAX_LATE)
    return result


def measure(options, workload, contender, seed):
    for attempt in range(options.attempts):
        result = play(options, workload, contender, seed)
        if result[""]["valid"]:
            break
        print(f"  {workload.name}, {contender}, seed {seed}: the load was late (attempt {attempt + 1})", flush=True)
    first, all_of = result[""]["first_token"], result[""]
    print(f"{workload.name:16}{contender:22}seed {seed}  first token {first['mean'] * 1e3:7.0f} ms mean {first['p90'] * 1e3:7.0f} p90"
          f"  {all_of['answered']}/{all_of['requests']} answered  cached {all_of['cached']:.0%}  late {all_of['late_p99'] * 1e3:.1f}"
          f" lag {all_of['lag_p99'] * 1e3:.1f}" + ("" if all_of["valid"] else "  INVALID"), flush=True)
    return result


# ---- Results ----

def mean_of(runs):
    """The mean of each figure over runs; valid when all are."""
    if isinstance(runs[0], dict):
        return {key: mean_of([run[key] for run in runs]) for key in runs[0]}
    return all(runs) if isinstance(runs[0], bool) else statistics.fmean(runs)


def rounded(node):
    if isinstance(node, dict):
        return {key: rounded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [rounded(value) for value in node]
    return round(node, 6) if isinstance(node, float) else node


def in_virtual_time(options, workload):
    """The time to the first token of the same requests in a replay, by policy."""
    done = subprocess.run([options.fairway, "replay", "--workload", workload.path, "--policy", "fairway,round-robin,oracle",
                           "--duration", f"{options.seconds}s", "--warmup", f"{options.warmup * options.seconds}s", "--seed",
                           str(options.seed), "--seeds", str(options.seeds), "--json", "-"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return {row["policy"]: row["first_token_seconds"] for row in json.loads(done.stdout)["rows"] if row["class"] is None}


def keep(options, workload, runs):
    """Adds the runs of a workload to the file of results."""
    results = load(options.json)
    entry = results.setdefault(workload.name, {"contenders": {}})
    entry["description"] = workload.spec.get("description", workload.name)
    entry["virtual"] = in_virtual_time(options, workload)
    for contender, by_seed in runs.items():
        entry["contenders"][contender] = {"seconds": options.seconds, "seeds": len(by_seed), "mean": mean_of(by_seed),
                                          "first_token_by_seed": [each[""]["first_token"]["mean"] for each in by_seed]}
    entry["contenders"] = {name: entry["contenders"][name] for name in CONTENDERS if name in entry["contenders"]}
    with open(options.json, "w", encoding="utf-8") as out:
        json.dump(rounded(results), out, indent=1, sort_keys=False)
        out.write("\n")


def load(path):
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def milliseconds(value, digits=0):
    return f"{value * 1e3:,.{digits}f}"


def table(name, entry):
    lines = [f"**{name}**: {entry['description']}", "",
             "| | first token, mean | p50 | p90 | p99 | per token, mean | p99 | end to end, mean | p99 | tokens/s | cached | spread | "
             "not answered |", "|---" * 13 + "|"]
    means = {c: each["mean"][""]["first_token"]["mean"] for c, each in entry["contenders"].items()}
    for contender, each in entry["contenders"].items():
        for traffic, row in each["mean"].items():
            label = LABELS[contender] + ("" if each["mean"][""]["valid"] else " (invalid)") if not traffic else f"- {traffic}"
            mean = milliseconds(row["first_token"]["mean"])
            if not traffic and means[contender] == min(means.values()):
                mean = f"**{mean}**"
            gone = ", ".join(f"{row[end] / row['requests']:.1%} {end}" for end in ("shed", "failed", "unfinished")
                             if row["requests"] and row[end] > 0)
            first, token, total = row["first_token"], row["per_token"], row["total"]
            lines.append(
                f"| {label} | {mean} | " + " | ".join(milliseconds(first[p]) for p in ("p50", "p90", "p99")) +
                f" | {milliseconds(token['mean'], 1)} | {milliseconds(token['p99'], 1)} | {milliseconds(total['mean'])} | "
                f"{milliseconds(total['p99'])} | {row['output_tokens_per_second']:,.0f} | {row['cached']:.0%} | "
                + (f"{row['spread']:.2f}" if "spread" in row else "") + f" | {gone} |")
    replayed = ", ".join(f"{policy} {milliseconds(first['mean'])} / {milliseconds(first['p90'])}"
                         for policy, first in entry.get("virtual", {}).items())
    return "\n".join(lines) + f"\n\nIn virtual time (`fairway replay`), first token, mean / p90: {replayed}.\n"


MARKS = "<!-- bench/quality.py writes from here -->\n", "<!-- to here -->\n"


def render(options):
    results = load(options.json)
    with open(options.markdown, encoding="utf-8") as file:
        page = file.read()
    if page.count(MARKS[0]) != 1 or page.count(MARKS[1]) != 1:
        sys.exit(f"{options.markdown}: want the lines {MARKS[0].strip()} and {MARKS[1].strip()}, once each")
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    lateness = [max(row["mean"][""]["late_p99"], row["mean"][""]["lag_p99"])
                for entry in results.values() for row in entry["contenders"].values()]
    runs = sorted({(row["seeds"], row["seconds"]) for entry in results.values() for row in entry["contenders"].values()})
    text = ("Runs of " + "; ".join(f"{seconds:g} s with {seeds} seed{'s' * (seeds != 1)}" for seeds, seconds in runs) +
            f"; the load generator was late by {milliseconds(max(lateness, default=0), 1)} ms at the 99th percentile of the worst. "
            "Times in milliseconds.\n\n")
    with open(options.markdown, "w", encoding="utf-8") as out:
        out.write(before + MARKS[0] + text + "\n".join(table(*item) for item in sorted(results.items())) + MARKS[1] + after)
    with open(options.plot, "w", encoding="utf-8") as out:
        out.write(plot(results))
    print(f"written: {options.markdown}, {options.plot}")


# In the manner of `fairway replay --plot`: bars to the 50th, 90th and 99th percentile, a mark at the mean, a logarithmic axis.
WIDTH, LEFT, BAR, LINE, TOP = 920, 250, 620, 17, 40


def plot(results):
    rows, y = [], TOP
    for name, entry in sorted(results.items()):
        figures_of = {c: each["mean"][""]["first_token"] for c, each in entry["contenders"].items()}
        low = min((f["p50"] for f in figures_of.values() if f["p50"] > 0), default=0.5) / 1.5
        high = max((f["p99"] for f in figures_of.values()), default=1) * 1.1 or 1
        def at(value, low=low, high=high):
            return BAR * min(1, max(0, math.log(max(value, low) / low) / math.log(high / low)))
        rows.append(f'<text x="10" y="{y + 12}" font-weight="bold">{name}</text>')
        bottom = y + LINE * (1 + len(figures_of))
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            for tick in (step * 10 ** power for step in (1, 2, 5)):
                if low <= tick <= high:
                    said = f"{tick * 1e3:g} ms" if tick < 1 else f"{tick:g} s"
                    rows.append(f'<path d="M{LEFT + at(tick):.1f} {y + LINE}V{bottom}" stroke="#ccc"/>'
                                f'<text x="{LEFT + at(tick):.1f}" y="{y + 12}" text-anchor="middle" fill="#777">{said}</text>')
        for contender, first in figures_of.items():
            y += LINE
            rows.append(f'<text x="22" y="{y + 12}">{LABELS[contender]}</text>')
            for percent, colour in (("p99", "#c6dbef"), ("p90", "#6baed6"), ("p50", "#2171b5")):
                rows.append(f'<rect x="{LEFT}" y="{y + 2}" width="{at(first[percent]):.1f}" height="{LINE - 5}" fill="{colour}"/>')
            rows.append(f'<path d="M{LEFT + at(first["mean"]):.1f} {y + 1}v{LINE - 3}" stroke="#d94801" stroke-width="2"/>')
        y = bottom + 14
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="12">\n'
            '<rect width="100%" height="100%" fill="white"/>\n'
            '<text x="10" y="22">Time to the first token, from when a request was due. '
            'Bars: 50th, 90th, 99th percentile; mark: mean</text>\n' + "\n".join(rows) + "\n</svg>\n")


# ---- Command line ----

def names(known):
    def parse(text):
        wanted = [word.strip() for word in text.split(",") if word.strip()]
        unknown = [word for word in wanted if word not in known and not (known is not CONTENDERS and os.path.exists(word))]
        if unknown or not wanted:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown) or 'name'}; there are {', '.join(known)}")
        return wanted
    return parse


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="workloads and contenders, then end")
    parser.add_argument("--render", action="store_true", help="only write the pages from the results that are there")
    parser.add_argument("--workload", type=names(workload_names()), help="NAME[,NAME...] or files; default: all that can be played")
    parser.add_argument("--only", type=names(CONTENDERS), help="contenders, NAME[,NAME...]; default: all that are there")
    parser.add_argument("--seconds", type=float, default=30, help="in which requests are due (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.2, help="the part of them that does not count (%(default)s)")
    parser.add_argument("--grace", type=float, default=20, help="seconds in which late answers count (%(default)s)")
    parser.add_argument("--settle", type=float, default=1.5, help="seconds between start and load (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each contender (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first (%(default)s)")
    parser.add_argument("--attempts", type=int, default=3, help="of a run whose load was late (%(default)s)")
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="where the programs are")
    parser.add_argument("--envoy", help="default: what tools/get-envoy gives")
    parser.add_argument("--peers", help="a folder for vllm-router and sglang-router, installed where they are missing")
    parser.add_argument("--reference-epp", help="the reference picker's binary")
    parser.add_argument("--fairway-flags", default="", help="more flags for `fairway up`, in one word")
    parser.add_argument("--json", default=os.path.join(ROOT, "docs", "quality.json"), help="results")
    parser.add_argument("--markdown", default=os.path.join(ROOT, "docs", "benchmarks.md"), help="the page with the tables")
    parser.add_argument("--plot", default=os.path.join(ROOT, "docs", "quality.svg"), help="the picture")
    parser.add_argument("--no-pages", action="store_true", help="results only")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.attempts < 1 or options.seconds <= 0 or not 0 <= options.warmup < 1:
        parser.error("want 1 or more --seeds and --attempts, some --seconds, and a --warmup of 0 to less than 1")
    options.fairway_flags = options.fairway_flags.split()
    options.fairway = os.path.join(options.build, "fairway")
    options.open_loop = os.path.join(options.build, "bench", "open_loop")
    return options


def why_not(options, contender):
    if contender in PEERS and not options.peers:
        return "give --peers FOLDER"
    if contender.startswith("reference") and not options.reference_epp:
        return "give --reference-epp PATH"
    return ""


def show_list(options):
    for name in workload_names():
        workload = Workload(name)
        print(f"workload   {name:22}{workload.spec.get('description', ''):70}{workload.why_not() and 'left out: ' + workload.why_not()}")
    for name in CONTENDERS:
        print(f"contender  {name:22}{LABELS[name]:70}{why_not(options, name)}")


def run_all(options):
    wanted = [Workload(name) for name in options.workload or workload_names()]
    for workload in wanted:
        if options.workload and workload.why_not():
            sys.exit(f"{workload.name} cannot be played in real time: {workload.why_not()}")
    contenders = [name for name in options.only or CONTENDERS if not why_not(options, name)]
    for name in options.only or ():
        if why_not(options, name):
            sys.exit(f"{name}: {why_not(options, name)}")
    if options.peers and any(name in PEERS for name in contenders):
        install_peers(options.peers)
    options.envoy = options.envoy or subprocess.run([os.path.join(ROOT, "tools", "get-envoy")], stdout=subprocess.PIPE, text=True,
                                                    check=True).stdout.strip()
    for workload in wanted:
        if workload.why_not():
            continue
        runs = {name: [] for name in contenders}
        for turn in range(options.seeds):
            for name in contenders[turn % len(contenders):] + contenders[:turn % len(contenders)]:
                runs[name].append(measure(options, workload, name, options.seed + turn))
        keep(options, workload, runs)


def main(argv=None):
    options = parse_flags(argv)
    if options.list:
        return show_list(options)
    if not options.render:
        run_all(options)
    if not options.no_pages:
        render(options)
    return None


if __name__ == "__main__":
    main()
