"""One picker in many places: the same requests and fleet states through the core alone, the ext_proc frontend (asked by a
gateway of ours, and by a real Envoy) and the module in a real Envoy give the same decisions, the same errors and the same bytes
at the model server.

Environment: FAIRWAY_BINARY, FAIRWAY_REPLAY (equality_replay); FAIRWAY_ENVOY as for all scenarios; FAIRWAY_SANITIZE: not empty
where the binaries are built with sanitizers. For other traffic FAIRWAY_EQUALITY_SEED, FAIRWAY_EQUALITY_REQUESTS and
FAIRWAY_EQUALITY_IN_ENVOY.
"""

import collections
import json
import os
import random
import re
import subprocess
import unittest

from configs import random_config, with_sessions
from traffic import PLAIN, TREE, make_requests, make_state, manifests
from world import FAIRWAY, Gateway, Process, Servers, ask, await_that, to_line
from support import Scenario, free_ports

REPLAY = os.environ.get("FAIRWAY_REPLAY", "build/release/tests/equality/equality_replay")
SANITIZED = bool(os.environ.get("FAIRWAY_SANITIZE"))
SEED = int(os.environ.get("FAIRWAY_EQUALITY_SEED", "20261122"))
COUNT = int(os.environ.get("FAIRWAY_EQUALITY_REQUESTS", "1000" if SANITIZED else "10000"))
SERVERS = 8
PER_STATE = max(50, COUNT // 20)
# So many also through ext_proc in a real Envoy, to show that the gateway of ours does what a real one does.
IN_ENVOY = int(os.environ.get("FAIRWAY_EQUALITY_IN_ENVOY", "2000"))
# Configs drawn at random, each asked so often; some of them also in Envoys.
CONFIGS = int(os.environ.get("FAIRWAY_EQUALITY_CONFIGS", "4" if SANITIZED else "12"))
CONFIGS_IN_ENVOY = 3
CONFIG_REQUESTS = 300
EXPLORATION = "0.05"  # more than the default, so that it comes to be drawn
# Signals are fresh for four times as long: a machine may be busy.
INTERVAL = "500ms"


class Stale(Exception):
    """A picker had to decide on old signals: nothing can be compared."""


def differences(requests, lines):
    """What is not the same, as texts; `lines`: who -> a line per request."""
    (first, wanted), *others = lines.items()
    told = []
    for who, got in others:
        if len(got) != len(requests) or len(wanted) != len(requests):
            told.append(f"{len(requests)} requests, {len(wanted)} lines of {first}, {len(got)} of {who}")
        for request, a, b in zip(requests, wanted, got):
            if a != b:
                fields = [collections.Counter(line.split("\t")) for line in (a, b)]
                told.append(f"{request}\n  {first} alone: {list((fields[0] - fields[1]).elements())}\n"
                            f"  {who} alone: {list((fields[1] - fields[0]).elements())}")
    return told


class Replay:
    """The core, and with a port the ext_proc frontend, as a program that is told what to do."""

    def __init__(self, folder, manifest_file, seed, port, *config):
        self.folder = folder
        self.process = subprocess.Popen([REPLAY, manifest_file, str(seed), EXPLORATION, str(port), *config], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def path(self, name):
        return os.path.join(self.folder, name)

    def tell(self, *words):
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    def await_ok(self):
        if self.process.stdout.readline() != "ok\n":
            raise AssertionError(f"the replay ended with {self.process.wait(10)}, see above")

    def set_state(self, servers):
        with open(self.path("state"), "w") as file:
            file.writelines(server.line() for server in servers)
        self.tell("state", self.path("state"))
        self.await_ok()

    def begin(self, requests):
        with open(self.path("requests"), "wb") as file:
            file.writelines(request.to_replay() for request in requests)
        self.tell("run", self.path("requests"), self.path("core"), self.path("ext_proc"))

    def lines(self, who):
        with open(self.path(who)) as file:
            return file.read().splitlines()

    def end(self):
        self.process.stdin.close()
        return self.process.wait(60)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def with_list_of(core, line):
    """`line`, which knows of the first choice only, with the list that `core` has behind the same one."""
    wanted, own = core.split("\t"), line.split("\t")
    if wanted[0] == own[0] == "sent" and own[1] == wanted[1].split(",")[0]:
        own[1] = wanted[1]
    return "\t".join(own)


class Equality(Scenario):
    def pools_of(self, admin):
        return {pool["name"]: pool["endpoints"] for pool in json.loads(ask(admin, "GET", "/debug/fleet").body)["pools"]}

    def knows(self, admin, servers):
        """Does the picker with this admin port know this state, in both pools?"""
        pools = self.pools_of(admin)
        self.assertEqual(set(pools), {TREE, PLAIN})
        wanted = {f"127.0.0.1:{s.port}": (s.waiting, s.running, s.kv, sorted(s.adapters)) for s in servers}
        return all({e["address"]: (e["waiting"], e["running"], f"{e['kvUsage']:.4f}", sorted(e["adapters"]))
                    for e in endpoints} == wanted for endpoints in pools.values())

    def check_signals(self, admin, who):
        """Nothing is still reserved, and no decision was made on stale signals."""
        def left():
            return [e for endpoints in self.pools_of(admin).values() for e in endpoints if e["inflight"]]
        await_that(lambda: not left(), lambda: f"reservations are left in {who}: {left()}")
        page = ask(admin, "GET", "/metrics").body.decode()
        found = re.findall(r'^fairway_decisions_total\{[^}]*rung="([^"]+)"\} (\d+)', page, re.MULTILINE)
        self.assertIn("fresh", [rung for rung, _ in found])
        if any(rung != "fresh" and int(count) for rung, count in found):
            raise Stale(f"{who}: {found}")

    def through_envoy(self, servers, gateway, requests):
        lines = []
        for request in requests:
            servers.got.clear()
            answer = gateway.ask(request)
            lines.append(to_line(answer, list(servers.got), lists_first=gateway.picker is not None))
        self.assertEqual(servers.faults, [])
        return lines

    def check_variety(self, lines):
        """What nobody asked for cannot differ: there was enough of everything."""
        outcomes = collections.Counter(line.split("\t")[1] if line.startswith("refused") else "sent" for line in lines)
        first = collections.Counter(line.split("\t")[1].split(",")[0] for line in lines if line.startswith("sent"))
        print(f"outcomes {dict(outcomes)}, first choices {sorted(first.values())}", flush=True)
        least = len(lines) // 100
        for outcome, count in {"sent": 40 * least, "400": 3 * least, "404": least, "429": least, "503": least}.items():
            self.assertGreaterEqual(outcomes[outcome], count, outcomes)
        self.assertEqual(len(first), SERVERS)
        self.assertGreaterEqual(min(first.values()), least, first)

    def epp(self, *flags):
        """`fairway epp`, its ext_proc port and its admin port."""
        epp = self.start(Process([FAIRWAY, "epp", *flags, "--workers", "1", "--secure-serving=false", "--grpc-port", "0",
                                  "--grpc-health-port", "0", "--metrics-port", "0", "--refresh-metrics-interval", INTERVAL]))
        said = epp.await_logged("serving ext_proc=")[0]
        return epp, *(int(port) for port in re.search(r"ext_proc=(\d+) .*metrics=\S+:(\d+)", said).groups())

    def gateways(self, pickers, *flags):
        """Envoys: with the module, with the module that is asked by its own policy, and with ext_proc to a picker of its own. Adds
        their admin ports to `pickers`.
        """
        made = {}
        for who in ("module", "module by policy", "ext_proc in Envoy"):
            folder = os.path.join(self.folder, who.replace(" ", "-"))
            os.makedirs(folder, exist_ok=True)
            listen, admin = free_ports(2)
            picker = None
            if who == "ext_proc in Envoy":
                _, grpc, admin = self.epp(*flags)
                picker = f"127.0.0.1:{grpc}"
            made[who] = self.start(Gateway(folder, listen, *flags, "--metrics-port", str(admin), "--scrape-interval", INTERVAL,
                                           picker=picker, by_policy=who == "module by policy"))
            pickers[who] = admin
        return made

    def replay_with_state(self, number, requests, servers, replay, gateways, pickers):
        """who -> lines"""
        state = make_state(number, servers.ports, random.Random(SEED + number))
        for server in state:
            servers.pages[server.port] = server.page()
        replay.set_state(state)
        for who, admin in pickers.items():
            await_that(lambda: self.knows(admin, state), lambda: f"{who} knows state {number}")
        replay.begin(requests)
        lines = {who: self.through_envoy(servers, gateway, requests) for who, gateway in gateways.items()}
        replay.await_ok()
        for who, admin in pickers.items():
            self.check_signals(admin, who)
        core = replay.lines("core")
        if "module by policy" in lines:
            lines["module by policy"] = [with_list_of(*pair) for pair in zip(core, lines["module by policy"])]
        return {"core": core, "ext_proc": replay.lines("ext_proc"), **lines}

    def compare(self, with_envoy, requests=None, config=()):
        """`requests`: of ports -> them."""
        servers = self.start(Servers(SERVERS))
        requests = requests(servers.ports) if requests else make_requests(COUNT, servers.ports, SEED)
        file = self.write("manifests.yaml", *manifests(servers.ports))
        flags = ["-f", file, "--seed", str(SEED), "--lora-exploration", EXPLORATION,
                 "--load-source", "page"]  # what the ledger remembers depends on the time
        if config:
            flags += ["--config-file", *config, "--allow-experimental-plugins"]
        epp, grpc, admin = self.epp(*flags)
        pickers = {"ext_proc": admin}
        gateways = self.gateways(pickers, *flags) if with_envoy else {}
        replay = self.start(Replay(self.folder, file, SEED, grpc, *config))
        all_lines = []
        for number, at in enumerate(range(0, len(requests), PER_STATE)):
            some = requests[at:at + PER_STATE]
            if at >= IN_ENVOY:
                for who in ("module by policy", "ext_proc in Envoy"):
                    if gateways.pop(who, None):
                        del pickers[who]
            lines = self.replay_with_state(number, some, servers, replay, gateways, pickers)
            told = differences(some, lines)
            self.assertEqual(len(told), 0, f"{len(told)} of requests {at}.. in state {number}; the first:\n" +
                             "\n".join(told[:4]))
            all_lines += lines["core"]
        if config:
            self.assertGreater(sum(line.startswith("sent") for line in all_lines), len(all_lines) // 4)
        else:
            self.check_variety(all_lines)
        # A sanitizer may have its word at the end.
        self.assertEqual(replay.end(), 0)
        self.assertEqual(epp.terminate(), 0, epp.text())

    def compare_again_when_stale(self, with_envoy, **more):
        try:
            self.compare(with_envoy, **more)
        except Stale as stale:
            print(f"once more, this machine was too slow: {stale}", flush=True)
            self.end_all()
            self.started.clear()
            self.compare(with_envoy, **more)

    def test_core_and_frontends_are_equal(self):
        self.compare_again_when_stale(with_envoy=not SANITIZED)

    def test_any_config_decides_the_same_everywhere(self):
        for number in range(CONFIGS):
            seed = SEED + number
            config = random_config(random.Random(seed))
            path = self.write(f"config-{number}.yaml", config)

            def requests(ports, seed=seed):
                return with_sessions(make_requests(CONFIG_REQUESTS, ports, seed), random.Random(seed))
            with self.subTest(f"FAIRWAY_EQUALITY_SEED={seed} FAIRWAY_EQUALITY_CONFIGS=1\n{json.dumps(config, indent=1)}"):
                self.compare_again_when_stale(number < CONFIGS_IN_ENVOY and not SANITIZED, requests=requests, config=(path,))
            self.end_all()
            self.started.clear()

    # ---- This test can fail.

    def core_lines(self, ports, requests, seed):
        file = self.write("manifests.yaml", *manifests(ports))
        replay = self.start(Replay(self.folder, file, seed, 0))
        replay.set_state(make_state(1, ports, random.Random(1)))  # all equal: chance decides
        replay.begin(requests)
        replay.await_ok()
        return replay.lines("core")

    def test_another_seed_is_a_difference(self):
        ports = list(range(9001, 9001 + SERVERS))
        requests = make_requests(100, ports, SEED)
        lines = self.core_lines(ports, requests, 1)
        self.assertEqual(differences(requests, {"a": lines, "b": self.core_lines(ports, requests, 1)}), [])
        told = differences(requests, {"a": lines, "b": self.core_lines(ports, requests, 2)})
        self.assertGreater(len(told), 20)
        self.assertIn("sent", lines[int(re.match(r"request (\d+):", told[0]).group(1))])

    def test_one_byte_is_a_difference(self):
        ports = list(range(9001, 9001 + SERVERS))
        requests = make_requests(100, ports, SEED)
        lines = self.core_lines(ports, requests, 1)
        number = next(i for i, line in enumerate(lines) if line.startswith("sent") and b"max_tokens" in requests[i].body)
        requests[number].body = requests[number].body.replace(b"max_tokens", b"max_tokenz", 1)
        told = differences(requests, {"a": lines, "b": self.core_lines(ports, requests, 1)})
        self.assertEqual(len(told), 1, told)
        self.assertRegex(told[0], f"^request {number}:")


if __name__ == "__main__":
    unittest.main(verbosity=2)
