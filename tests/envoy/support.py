"""What the scenarios share: the binary's processes, manifests, clients and an echo server.

Environment: FAIRWAY_BINARY (required), FAIRWAY_ENVOY (else fairway looks for one itself), FAIRWAY_UP_ARGS.
Ports are free ones, everything is on loopback, and every process ends with its test.
"""

import collections
import contextlib
import http.client
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

FAIRWAY = os.environ.get("FAIRWAY_BINARY", "build/release/fairway")
ENVOY = os.environ.get("FAIRWAY_ENVOY" + os.environ.get("FAIRWAY_ENVOY_WHICH", ""), "")
UP_ARGS = os.environ.get("FAIRWAY_UP_ARGS", "").split()  # of every `fairway up`: --ext-proc, as a rule
PATIENCE = 60  # seconds that something may take which takes none as a rule


def await_that(condition, what, timeout=PATIENCE):
    """Waits for `condition` to be true and returns its value."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.02)


class Process:
    """A child in a process group of its own; what it prints is kept."""

    def __init__(self, argv, env=None):
        self.argv = argv
        self.out, self.err = [], []
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True, env=env)
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                         for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.append(line.rstrip("\n"))

    @property
    def pid(self):
        return self.process.pid

    def text(self):
        return "\n".join(["$ " + " ".join(self.argv), *self.out, *self.err[-60:]])

    def logged(self, pattern):
        return [line for line in list(self.err) if re.search(pattern, line)]

    def printed(self, pattern):
        return [line for line in list(self.out) if re.search(pattern, line)]

    def await_printed(self, pattern):
        def look():
            return self.printed(pattern) or (self.process.poll() is not None and "ended")
        found = await_that(look, lambda: f"{pattern!r} on standard output of\n{self.text()}")
        if found == "ended":
            self.join()
            if not self.printed(pattern):
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.text()}")
        return self.printed(pattern)[0]

    def await_logged(self, pattern, count=1):
        await_that(lambda: len(self.logged(pattern)) >= count,
                   lambda: f"{pattern!r} in the log of\n{self.text()}")
        return self.logged(pattern)

    def join(self, timeout=PATIENCE):
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(5)
        return code

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.join()

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(5)
        self.process.stdout.close()
        self.process.stderr.close()


def free_ports(count):
    """Ports that nobody listens on now; all different. Below those that the kernel gives to whoever connects: on a busy machine it
    gave one away before the server that it was meant for had started."""
    ports = set()
    while len(ports) < count:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


Answer = collections.namedtuple("Answer", "status headers body")


def ask(port, method, path, body=None, headers=None, timeout=PATIENCE):
    """One request over a connection of its own. Header names of the answer are lower-case."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers = {"content-type": "application/json", **(headers or {})}
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        data = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
    finally:
        connection.close()


class Sim(Process):
    """Simulated model servers. `self.ports` in their order; an answer's x-served-by is "127.0.0.1:PORT"."""

    def __init__(self, count, *args, time_scale="0.1"):
        super().__init__([FAIRWAY, "sim", "--listen", "127.0.0.1:0", "--count", str(count), "--model", "llama",
                          "--time-scale", time_scale, *args])
        self.await_printed("^ready")
        self.ports = [int(re.search(r"http://127\.0\.0\.1:(\d+)", line).group(1))
                      for line in self.printed("http://")]
        assert len(self.ports) == count, self.text()

    def names(self):
        return [f"127.0.0.1:{port}" for port in self.ports]

    def set(self, number, **what):
        # Asked of the first: one that refuses does not answer.
        answer = ask(self.ports[0], "POST", "/sim/faults", {"endpoint": str(self.ports[number]), **what})
        assert answer.status == 200, answer

    def pin(self, number, **values):
        self.set(number, pin=values)


class Echo:
    """A model server that answers with what it got. `slow`: seconds before it answers."""

    def __init__(self):
        outer = self
        self.slow = 0.0
        self.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def setup(self):
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def body(self):
                if self.headers.get("transfer-encoding", "").lower() == "chunked":
                    data = b""
                    while True:
                        size = int(self.rfile.readline().split(b";")[0], 16)
                        data += self.rfile.read(size)
                        self.rfile.readline()
                        if size == 0:
                            return data
                return self.rfile.read(int(self.headers.get("content-length", 0)))

            def answer(self):
                body = self.body()
                if self.path == "/metrics":
                    return self.reply("text/plain", b"vllm:num_requests_waiting 0\nvllm:num_requests_running 0\n"
                                                    b"vllm:kv_cache_usage_perc 0\n")
                outer.requests += 1
                time.sleep(outer.slow)
                told = {"method": self.command, "path": self.path, "length": len(body),
                        "headers": {k.lower(): v for k, v in self.headers.items()},
                        "body": body[:2000].decode("utf-8", "replace")}
                return self.reply("application/json", json.dumps(told).encode())

            def reply(self, kind, data):
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = answer

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, address):
                pass  # connections that Envoy closes, as a rule

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class RawServer:
    """Calls `talk(socket)` in a thread for each connection; what goes wrong there is the other side's affair."""

    def __init__(self, talk):
        self.talk, self.open = talk, []
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.socket.getsockname()[1]
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, ValueError), connection:
            self.talk(connection)

    def close(self):
        self.stopped.set()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.thread.join()


class Upgrades(RawServer):
    """A model server that takes every upgrade and then says back what it is told, and answers every other request with 204."""

    def __init__(self):
        self.heads = []  # of the upgrades
        self.hung_up = 0
        super().__init__(self._talk)

    def _talk(self, connection):
        head = b""
        while True:
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, rest = head.partition(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                break
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            head = rest
        self.heads.append(head.decode())
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        while True:
            try:
                piece = rest or connection.recv(65536)
            except OSError:
                piece = b""
            rest = b""
            if not piece:
                self.hung_up += 1
                return
            connection.sendall(piece)


def upgraded(port, path="/v1/realtime?model=m"):
    """A connection that has become something else."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                       "sec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(1)
        if not piece:
            break
        head += piece
    return connection, head.decode()


def says_back(connection, message):
    connection.sendall(message)
    got = b""
    while len(got) < len(message):
        piece = connection.recv(65536)
        if not piece:
            break
        got += piece
    return got == message


def endpoints(ports, pool="pool"):
    """The endpoints file."""
    items = [{"name": f"{pool}-{port}", "address": "127.0.0.1", "port": str(port), "labels": {"app": pool}}
             for port in ports]
    return {"endpoints": items}


def pool(name="pool", failure_mode="FailClose"):
    return {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": 8000}],
                     "endpointPickerRef": {"name": "picker", "port": {"number": 9002}, "failureMode": failure_mode}}}


def old_pool(name="pool"):
    """The API that InferenceModels belong to."""
    return {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool", "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "targetPortNumber": 8000, "extensionRef": {"name": "picker"}}}


def model(name, criticality=None, targets=None, pool="pool"):
    spec = {"modelName": name, "poolRef": {"name": pool}}
    if criticality:
        spec["criticality"] = criticality
    if targets:
        spec["targetModels"] = [{"name": t, "weight": w} for t, w in targets.items()]
    return {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel",
            "metadata": {"name": "model-" + name}, "spec": spec}


def route(*rules, hostnames=None):
    """Rules are (match or None, {pool: weight})."""
    made = []
    for match, backends in rules:
        rule = {"backendRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name,
                                 "weight": weight} for name, weight in backends.items()]}
        if match:
            rule["matches"] = [match]
        made.append(rule)
    spec = {"parentRefs": [{"name": "gateway"}], "rules": made}
    if hostnames:
        spec["hostnames"] = hostnames
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "route"},
            "spec": spec}


def envoy_of(fairway):
    """The pid of the Envoy that is this process's child now; 0 when there is none."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as stat:
                state, parent = stat.read().rsplit(")", 1)[1].split()[:2]
            if int(parent) == fairway and state != "Z":
                with open(f"/proc/{name}/cmdline") as cmdline:
                    if "--admin-address-path" in cmdline.read():
                        return int(name)
        except (OSError, IndexError):
            pass
    return 0


class Up(Process):
    """`fairway up` in front of manifests; ready when the constructor returns."""

    def __init__(self, *args, listen="127.0.0.1:0", ready=True):
        argv = [FAIRWAY, "up", *args, *UP_ARGS]
        if listen:
            argv += ["--listen", listen]
        if ENVOY and "--envoy" not in args:
            argv += ["--envoy", ENVOY]
        super().__init__(argv)
        self.port = 0
        if ready:
            # Between the choice of a free port and Envoy's use of it another process may connect from it.
            for _ in range(3):
                await_that(lambda: self.printed("^ready") or self.process.poll() is not None or
                           self.logged("Address already in use"), lambda: f"ready:\n{self.text()}")
                if self.printed("^ready") or not self.logged("Address already in use"):
                    break
                self.close()
                super().__init__(argv)
            self.await_printed("^ready")
            self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", "\n".join(self.out)).group(1))

    def envoy_pid(self):
        return envoy_of(self.pid)

    def ask(self, method, path, body=None, headers=None, timeout=PATIENCE):
        return ask(self.port, method, path, body, headers, timeout)

    def complete(self, model, prompt="hello", max_tokens=1, headers=None, **more):
        return self.ask("POST", "/v1/completions",
                        {"model": model, "prompt": prompt, "max_tokens": max_tokens, **more}, headers)

    def served_by(self, model, **more):
        answer = self.complete(model, **more)
        assert answer.status == 200, (answer, self.text())
        return answer.headers["x-served-by"]


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Scenario(unittest.TestCase):
    """Ends what a test started and shows what it printed when the test failed."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="fairway-envoy-test-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.started = []
        self.addCleanup(self.end_all)

    def end_all(self):
        outcome = getattr(self, "_outcome", None)
        problems = getattr(getattr(outcome, "result", None), "failures", []) + \
            getattr(getattr(outcome, "result", None), "errors", [])
        failed = (outcome is not None and not outcome.success) or any(test is self for test, _ in problems)
        for thing in reversed(self.started):
            thing.close()
            if failed and isinstance(thing, Process):
                print(f"---- {self.id()}\n{thing.text()}", flush=True)

    def start(self, thing):
        self.started.append(thing)
        return thing

    def write(self, name, *objects):
        """A manifest file, put in place in one step. Returns its path."""
        path = os.path.join(self.folder, name)
        with open(path + ".new", "w") as file:
            file.write("\n---\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects))
        os.rename(path + ".new", path)
        return path

    def up(self, *args, objects=None, ports=None, **options):
        """Up over the given objects and the endpoints of `ports` (of pool "pool")."""
        files = []
        if objects is not None:
            files += ["-f", self.write("manifests.yaml", *objects)]
        if ports is not None:
            files += ["-f", self.write("endpoints.yaml", endpoints(ports))]
        return self.start(Up(*files, *args, **options))

    def sim(self, count, *args, **options):
        return self.start(Sim(count, *args, **options))

    def echo(self):
        return self.start(Echo())

    def await_same(self, up, want, times=5, model="llama"):
        """Until `times` requests in a row are served by `want` alone: scraped values are there by then."""
        def look():
            return all(up.served_by(model) == want for _ in range(times))
        await_that(look, lambda: f"{want} serves all of {times} requests\n{up.text()}")
