"""What the scenarios share: a picker, an honest client beside each attack, and memory as the kernel counts it."""

import contextlib
import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "envoy"))
import support  # noqa: E402
from support import FAIRWAY, Process, RawServer, Scenario, endpoints, free_ports, pool  # noqa: E402

LATE = 2.0  # seconds that an honest client may wait: a hang, and not a busy machine
MB = 1 << 20


class Memory:
    """Of some processes together, in MB."""

    def __init__(self, *pids):
        self.pids = pids
        self.before = self.now()
        for pid in pids:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")  # the high-water mark starts anew

    def _of(self, name):
        return sum(int(re.search(name + r":\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1])
                   for pid in self.pids) / 1024

    def now(self):
        return self._of("VmRSS")

    def peak(self):
        return self._of("VmHWM")


class Honest:
    """honest.py, from its first answer on."""

    def __init__(self, kind, port, argument="", pids=()):
        self.what = f"{kind} {argument}".strip()
        self.process = subprocess.Popen([sys.executable, "-B", HERE / "honest.py", kind, str(port), argument, *map(str, pids)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "began\n", self.what

    def finish(self):
        try:
            out = self.process.communicate("", timeout=support.PATIENCE)[0]
            return json.loads(out)
        finally:
            self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Attacked(Scenario):
    """One attack a test: `with self.beside(...)` has the honest clients and the memory, and asserts both."""

    def epp(self, *args, objects=None, count=3, ports=None, files=None, prefix=("prlimit", f"--as={6 << 30}")):
        """`fairway epp` over files, with endpoints that nobody listens on: what is decided needs none. Nothing that goes wrong
        takes the machine along."""
        if files is None:
            objects = objects if objects is not None else [pool()]
            files = ["-f", self.write("manifests.yaml", *objects),
                     "-f", self.write("endpoints.yaml", endpoints(ports or [20000 + i for i in range(count)]))]
        epp = self.start(Process([*prefix, FAIRWAY, "epp", *files, "--grpc-port", "0", "--grpc-health-port", "0",
                                  "--metrics-port", "0", "--secure-serving=false", "--workers", "1", "--drain-timeout", "0s",
                                  "--refresh-metrics-interval", "300s", *args]))
        line = epp.await_logged("serving ext_proc=")[0]
        epp.grpc, epp.health, epp.admin = (int(re.search(name + r"=(?:\S*:)?(\d+)", line)[1])
                                           for name in ("ext_proc", "health", "metrics"))
        return epp

    @contextlib.contextmanager
    def beside(self, process, *honest, pids=(), peak, after=None, late=LATE, may_fail=0):
        """`peak`, `after`: so many MB more than before are allowed while it goes on, and when it is over; `after` is waited
        for. `honest`: (kind, port[, argument]) each."""
        clients = []
        try:
            clients = [Honest(*one, pids=pids or [process.pid]) for one in honest]
            memory = Memory(*(pids or [process.pid]))
            began = time.monotonic()
            yield memory
            took = time.monotonic() - began
            time.sleep(max(0.1, 0.5 - took))  # some more rounds for the honest
            results = [(client.what, client.finish()) for client in clients]
        finally:
            for client in clients:
                client.close()
        self.assertIsNone(process.process.poll(), process.text())
        highest = memory.peak()
        bound = memory.before + (peak if after is None else after)
        end = time.monotonic() + 30
        while memory.now() > bound and time.monotonic() < end:
            time.sleep(0.1)
        rest = memory.now()
        said = ", ".join(f"{what}: {r['count']} times, {r['failed']} failed, longest {r['worst'] * 1000:.0f} ms, "
                         f"{r['worst_served'] * 1000:.0f} with a processor"
                         for what, r in results)
        print(f"\n{self.id().split('.')[-1]}: {took:.1f} s; memory {memory.before:.0f} MB before, {highest:.0f} at the peak, "
              f"{rest:.0f} after; {said}", flush=True)
        for what, r in results:
            self.assertLessEqual(r["failed"], may_fail, (what, r))
            self.assertLess(r["worst_served"], late, (what, r))
            self.assertGreater(r["count"], 1, (what, r))
        self.assertLess(highest, memory.before + peak, "MB at the peak")
        self.assertLessEqual(rest, bound, "MB afterwards")


REQUEST_HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class ThroughEnvoy(Attacked):
    """With `fairway up` in front of simulated model servers."""

    def gateway(self, *args, objects=None):
        sim = self.sim(2)
        port = free_ports(1)[0]
        up = self.up("--metrics-port", str(port), "--envoy-concurrency", "1", *args, objects=objects or [pool()], ports=sim.ports)
        support.await_that(lambda: up.complete("llama").status == 200, up.text)
        up.admin = port
        up.pids = [up.pid, up.envoy_pid()]
        return up

    def post(self, up, body, headers=None, connection=None):
        kept = connection or http.client.HTTPConnection("127.0.0.1", up.port, timeout=20)
        try:
            kept.request("POST", "/v1/completions", body, {"content-type": "application/json", **(headers or {})})
            answer = kept.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            kept.close()
            return 0
        finally:
            if connection is None:
                kept.close()

    def uploads(self, up, count, size, stack):
        many = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", up.port), timeout=1))
                connection.sendall((REQUEST_HEAD + f"Content-Length: {size}\r\n\r\n").encode())
                many.append(connection)
        return many


def read_head(connection):
    """The head of a request, as text; "" at the end."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(65536)
        if not more:
            return ""
        head += more
    return head.decode(errors="replace")


def page(epp):
    return support.ask(epp.admin, "GET", "/metrics").body


__all__ = ["MB", "REQUEST_HEAD", "Attacked", "RawServer", "ThroughEnvoy", "endpoints", "page", "pool", "read_head", "support"]
