#!/usr/bin/env python3
"""What a request costs inside Envoy, counted instead of timed: instructions and cache lines, by function.

  tools/setup bench && tools/build bench fairway fairway_envoy stub_servers
  python3 bench/envoy_instructions.py [--endpoints 8] [--size 2000] [--top 40] [--build build/bench]

The Envoy of `fairway up` runs under valgrind's callgrind, which counts what its worker thread does for some hundred requests and
simulates caches. Counts of instructions and of first-level misses repeat to some parts in a thousand on any machine, however busy it
is, so a change of a few instructions shows: what no timing on a shared machine can tell. The same Envoy without the picker is counted
beside it, configured as envoy_path.py has it.

"lines" are first-level misses of instructions and data: inside Envoy a request's code has always been evicted since the last one,
so that code that runs once costs by its cache lines rather than by its instructions. Misses of the second level (as large as
--second-level) depend on where memory happens to lie; they are told and not added up. Timings are envoy_path.py's.
"""
import argparse
import collections
import glob
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile

import envoy_path

EVENTS = ("Ir", "I1mr", "D1mr", "D1mw", "ILmr", "DLmr", "DLmw")
COUNTED = ("instructions", "code lines", "data lines", "2nd level")


class Cost:
    """Counts of one function, or of many."""

    def __init__(self):
        self.counts = [0, 0, 0, 0]

    def add(self, values):
        for i, value in enumerate(values):
            self.counts[i] += value

    def row(self, requests):
        return "".join(f"{count / requests:13.1f}" for count in self.counts)

    @property
    def weight(self):
        return self.counts[0] / 4 + 13 * self.counts[1] + 10 * self.counts[2]  # cycles, roughly: to sort by


class Profile:
    """A callgrind file of one thread: own costs by (object, function), and costs of calls with all that they led to."""

    def __init__(self, path):
        self.own = collections.defaultdict(Cost)
        self.calls = collections.defaultdict(lambda: [0, Cost()])  # callee -> how often, cost
        columns, at, called, objects = [], {}, None, {"ob": "", "cob": None}
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("events: "):
                    columns = [line.split()[1:].index(event) for event in EVENTS]
                elif line.startswith(("ob=", "cob=", "fn=", "cfn=")):
                    key, value = line.rstrip("\n").split("=", 1)
                    (objects if key in objects else at)[key] = value
                elif line.startswith("calls="):
                    called = self.calls[at["cfn"]]
                    called[0] += int(line[6:].split()[0])
                elif line.startswith("0x") and columns:
                    values = self._values(line, columns)
                    if called is not None:
                        called[1].add(values)
                        called = None
                    else:
                        self.own[(os.path.basename(objects["ob"]), at["fn"])].add(values)

    @staticmethod
    def _values(line, columns):
        counts = [int(count) for count in line.split()[2:]]
        counts += [0] * (max(columns) + 1 - len(counts))  # zeros at the end are left out
        ir, i1, d1r, d1w, il, dlr, dlw = (counts[column] for column in columns)
        return ir, i1, d1r + d1w, il + dlr + dlw

    def by_object(self):
        objects = collections.defaultdict(Cost)
        for (name, _), cost in self.own.items():
            objects[name if name.endswith(".so") or ".so." in name or name == "envoy" else "others"].add(cost.counts)
            objects["all"].add(cost.counts)
        return objects


def profile(bench, variant, options):
    """A started gateway, its worker's profile of options.requests requests."""
    gateway = envoy_path.Gateway(bench, variant, options.endpoints)
    gateway.rest = gateway.picker_rest = 0
    prompt = ("-d", bench.prompt(options.size))
    gateway.load(options.requests // 2, 32, *prompt)

    def control(*arguments):
        subprocess.run(["callgrind_control", *arguments, str(gateway.envoy.pid)], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=True)
    control("-i", "on")
    gateway.load(options.requests, 32, *prompt)
    control("-i", "off")
    control("-d")
    pattern = os.path.join(bench.folder, f"callgrind.{gateway.envoy.pid}.1-*")
    envoy_path.await_that(lambda: glob.glob(pattern), "callgrind's file")
    gateway.stop()  # and so the file is complete
    # Of all threads the worker did most by far.
    return Profile(max(glob.glob(pattern), key=os.path.getsize))


def wrap(envoy, folder, options):
    """A program that is Envoy under callgrind."""
    path = os.path.join(folder, "envoy-counted")
    with open(path, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nexec valgrind --tool=callgrind --instr-atstart=no --separate-threads=yes --dump-instr=yes "
                   "--compress-pos=no --compress-strings=no --cache-sim=yes --I1=32768,8,64 --D1=32768,8,64 "
                   f"--LL={options.second_level},64 --callgrind-out-file={folder}/callgrind.%p {envoy} \"$@\"\n")
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    return path


def show(profiles, options):
    heads = "".join(f"{name:>13}" for name in COUNTED)
    print(f"\nA request of {options.size} bytes, {options.endpoints} endpoints\n{'':45}{heads}")
    totals = {}
    for variant, each in profiles.items():
        for name, cost in sorted(each.by_object().items(), key=lambda item: -item[1].counts[0]):
            if cost.counts[0] >= options.requests:
                print(f"{variant + ': ' + name:45}{cost.row(options.requests)}")
        totals[variant] = each.by_object()["all"]
    base, *others = totals
    for variant in others:
        difference = Cost()
        difference.add(own - beside for own, beside in zip(totals[variant].counts, totals[base].counts))
        print(f"{variant + ' - ' + base:45}{difference.row(options.requests)}")
        module = [(name, cost) for (where, name), cost in profiles[variant].own.items() if "libfairway" in where]
        print(f"\n{variant}: our functions, each alone")
        for name, cost in sorted(module, key=lambda item: -item[1].weight)[:options.top]:
            print(f"{shortened(name):45}{cost.row(options.requests)}")
        for what, word in (("Envoy's functions that we call", "callback_"), ("our functions that Envoy calls", "module_on_")):
            print(f"\n{variant}: {what}, with all that they call")
            called = [(name, entry) for name, entry in profiles[variant].calls.items() if word in name]
            for name, (count, cost) in sorted(called, key=lambda item: -item[1][1].weight):
                if count >= options.requests:
                    print(f"{count / options.requests:3.1f} {name.split(word)[1]:41}{cost.row(options.requests)}")


def shortened(name):
    name = re.sub(r"\(anonymous namespace\)::|fairway::|\(.*", "", name)
    return name if len(name) < 45 else "..." + name[-41:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/bench")
    parser.add_argument("--envoy", default=os.environ.get("FAIRWAY_ENVOY"), help="the binary; default: that of tools/get-envoy")
    parser.add_argument("--endpoints", type=int, default=8)
    parser.add_argument("--size", type=int, default=2_000, help="bytes of a request's body")
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--second-level", default="1048576,16", help="bytes and ways of the second level")
    parser.add_argument("--top", type=int, default=40, help="so many of our functions")
    parser.add_argument("--full", action="store_true", help="with --response-mode full")
    options = parser.parse_args()
    options.rounds = options.starts = 1
    envoy_path.PATIENCE = 300  # all is some thirty times slower
    children = envoy_path.Children()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = envoy_path.Bench(options, folder, children)
            bench.envoy = wrap(bench.envoy, folder, options)
            variants = (envoy_path.BASE, envoy_path.FULL if options.full else envoy_path.MODULE)
            show({variant: profile(bench, variant, options) for variant in variants}, options)
    finally:
        children.stop_all()


if __name__ == "__main__":
    main()
