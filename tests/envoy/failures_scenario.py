"""What breaks and what goes on: endpoints, Envoy, the picker, manifests."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import threading
import time
import unittest

from support import ENVOY, FAIRWAY, UP_ARGS, Process, Scenario, Up, ask, await_that, endpoints, envoy_of, free_ports, pool, running


class Client(threading.Thread):
    """Sends requests one after the other until it is stopped; `self.results` are statuses and errors."""

    def __init__(self, up, body=None):
        super().__init__(daemon=True)
        self.up, self.results, self.stopped = up, [], threading.Event()
        self.body = body or {"model": "llama", "prompt": "x" * 2000, "max_tokens": 1}

    def run(self):
        while not self.stopped.is_set():
            try:
                self.results.append(self.up.ask("POST", "/v1/completions", self.body).status)
            except OSError as error:
                self.results.append(repr(error))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *args):
        self.stopped.set()
        self.join(30)


class Endpoints(Scenario):
    def test_retry_goes_down_the_list_when_the_first_refuses(self):
        sim = self.sim(3)
        # The one that refuses looks best for as long as its metrics are the last that came.
        sim.pin(0, waiting=5)
        sim.pin(1, waiting=0)
        sim.pin(2, waiting=9)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.await_same(up, sim.names()[1])
        sim.set(1, requests="refuse")
        for _ in range(20):
            answer = up.complete("llama")
            self.assertEqual(answer.status, 200, answer)
            self.assertIn(answer.headers["x-served-by"], (sim.names()[0], sim.names()[2]))
        sim.set(1, requests="ok")
        self.await_same(up, sim.names()[1])

    def test_all_endpoints_gone_is_503(self):
        port = free_ports(1)[0]
        up = self.up(objects=[pool()], ports=[port])
        self.assertEqual(up.complete("llama").status, 503)

    def test_pool_without_endpoints_is_503(self):
        up = self.up(objects=[pool()], ports=[])
        self.assertEqual(up.complete("llama").status, 503)
        self.assertEqual(up.ask("GET", "/v1/models").status, 503)

    def test_endpoint_added_and_removed_while_serving(self):
        sim = self.sim(2)
        sim.pin(0, waiting=9)
        sim.pin(1, waiting=0)
        up = self.up(objects=[pool()], ports=sim.ports[:1])
        self.await_same(up, sim.names()[0])
        envoy = up.envoy_pid()
        with Client(up) as client:
            self.write("endpoints.yaml", endpoints(sim.ports))
            self.await_same(up, sim.names()[1])
            self.write("endpoints.yaml", endpoints(sim.ports[:1]))
            self.await_same(up, sim.names()[0])
        self.assertEqual(set(client.results), {200})
        self.assertEqual(up.envoy_pid(), envoy)

    def test_broken_change_is_reported_and_the_last_good_state_stays(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.write("endpoints.yaml", "endpoints:\n  - name: a\n    address: 127.0.0.1\n    prot: 1\n")
        up.await_logged("endpoints.yaml")
        self.assertTrue(up.logged("prot|port"), up.text())
        for _ in range(5):
            self.assertEqual(up.complete("llama").status, 200)
        self.write("endpoints.yaml", "{")
        for _ in range(5):
            self.assertEqual(up.complete("llama").status, 200)
        # Good again: taken over.
        other = self.sim(1)
        self.write("endpoints.yaml", endpoints(other.ports))
        self.await_same(up, other.names()[0])


class EnvoyItself(Scenario):
    def folder_of(self, envoy):
        with open(f"/proc/{envoy}/cmdline") as cmdline:
            return os.path.dirname(re.search(r"-c\0([^\0]+)", cmdline.read()).group(1))

    def test_killed_envoy_is_started_again(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.assertEqual(up.complete("llama").status, 200)
        first = up.envoy_pid()
        self.assertTrue(first)
        os.kill(first, signal.SIGKILL)
        up.await_logged("Envoy ended, it is started again")
        up.await_logged("Envoy serves again")
        self.assertNotEqual(up.envoy_pid(), first)
        self.assertEqual(up.complete("llama").status, 200)

    def test_sigterm_ends_all(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports)
        envoy = up.envoy_pid()
        self.assertTrue(running(envoy))
        folder = self.folder_of(envoy)
        self.assertTrue(os.path.isdir(folder))
        begin = time.monotonic()
        self.assertEqual(up.terminate(), 0)
        self.assertLess(time.monotonic() - begin, 20)
        self.assertFalse(running(envoy))
        self.assertFalse(os.path.exists(folder))
        with self.assertRaises(OSError):
            up.ask("GET", "/v1/models")

    def test_killed_fairway_takes_envoy_along(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports)
        envoy = up.envoy_pid()
        self.addCleanup(shutil.rmtree, self.folder_of(envoy))  # nobody is left who could
        os.kill(up.pid, signal.SIGKILL)
        await_that(lambda: not running(envoy), "Envoy ends with fairway")

    def test_a_closed_terminal_ends_all(self):
        """Its SIGHUP goes to all of the process group, and what is written from then on goes nowhere."""
        pid, terminal = pty.fork()
        if pid == 0:  # the leader of the terminal's session, as what a shell runs in a window of its own
            os.execv(FAIRWAY, [FAIRWAY, "up", "--endpoint", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--envoy", ENVOY, *UP_ARGS])
        said = b""
        try:
            while b"ready" not in said:
                said += os.read(terminal, 65536)
            envoy = envoy_of(pid)
            self.assertTrue(envoy, said)
            folder = self.folder_of(envoy)
            os.close(terminal)
            terminal = None
            await_that(lambda: not running(envoy), "Envoy runs on without a terminal")
            await_that(lambda: not running(pid), "fairway runs on without a terminal")
        finally:
            if terminal is not None:
                os.close(terminal)
            if running(pid):
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0, said.decode(errors="replace"))
        self.assertFalse(os.path.exists(folder))

    def test_a_reader_that_goes_ends_nothing(self):
        """`fairway up | head -1`"""
        out, into = os.pipe()
        with subprocess.Popen([FAIRWAY, "up", "--explain", "--endpoint", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--envoy", ENVOY, *UP_ARGS],
                              stdin=subprocess.DEVNULL, stdout=into, stderr=subprocess.DEVNULL) as process:
            os.close(into)
            try:
                said = b""
                while b"ready" not in said:
                    said += os.read(out, 65536)
                port = int(re.search(rb"http://127\.0\.0\.1:(\d+)", said).group(1))
                os.close(out)
                for _ in range(20):  # each is explained to nobody
                    self.assertEqual(ask(port, "POST", "/v1/completions", {"model": "llama", "prompt": "x"}).status, 503)
                envoy = envoy_of(process.pid)
                self.assertTrue(envoy)
                process.terminate()
                self.assertEqual(process.wait(60), 0)
                await_that(lambda: not running(envoy), "Envoy runs on")
            finally:
                process.kill()

    def test_without_envoy_says_how_to_get_one(self):
        up = self.up("--envoy", os.path.join(self.folder, "no-envoy"), objects=[pool()], ports=[1], ready=False)
        self.assertEqual(up.join(), 3)
        self.assertIn("tools/get-envoy", up.text())

    def test_taken_port_says_so(self):
        sim = self.sim(1)
        up = self.up(objects=[pool()], ports=sim.ports, listen=f"127.0.0.1:{sim.ports[0]}", ready=False)
        self.assertEqual(up.join(), 3)
        self.assertIn("something else listens there", up.text())

    def test_every_configuration_is_valid_for_envoy(self):
        objects = [pool("a", "FailOpen"), pool("b"), endpoints([1, 2], "a"), endpoints([3], "b"),
                   {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gateway"},
                    "spec": {"gatewayClassName": "x", "listeners": [
                        {"name": "one", "port": 8081, "protocol": "HTTP"},
                        {"name": "two", "port": 8082, "protocol": "HTTP", "hostname": "*.example.com"}]}},
                   {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "route"},
                    "spec": {"parentRefs": [{"name": "gateway"}], "hostnames": ["a.example.com", "*.example.com"], "rules": [
                        {"matches": [{"path": {"type": "Exact", "value": "/x"}, "method": "GET"},
                                     {"path": {"type": "RegularExpression", "value": "/y/[0-9]+"}},
                                     {"headers": [{"name": "X-A", "value": "1"},
                                                  {"name": "x-b", "type": "RegularExpression", "value": "b.*"}],
                                      "queryParams": [{"name": "q", "value": "1"}]}],
                         "timeouts": {"request": "2s"},
                         "backendRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "a",
                                          "weight": 3},
                                         {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "b"}]},
                        {"backendRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "a",
                                          "weight": 0}]}]}}]
        manifests = self.write("manifests.yaml", *objects)
        # ThreadSanitizer's run-time cannot be loaded into a running Envoy.
        inside = [] if os.environ.get("FAIRWAY_SANITIZE") == "thread" else ["module"]
        for mode in (*inside, "buffered", "full-duplex", "streamed", "partial", "none"):
            for response in ("headers", "full"):
                with self.subTest(mode=mode, response=response):
                    how = [] if mode == "module" else ["--ext-proc", "--body-mode", mode]
                    printed = self.start(Process([FAIRWAY, "up", "-f", manifests, "--print-envoy-config",
                                                  "--response-mode", response, *how]))
                    self.assertEqual(printed.join(), 0, printed.text())
                    files = {name: json.loads(text) for name, text in
                             re.findall(r"^# (\S+)\n(.*?)(?=^# |\Z)", "\n".join(printed.out), re.M | re.S)}
                    self.assertIn("bootstrap.json", files)
                    self.validate(files, f"{mode}-{response}")

    def validate(self, files, name):
        folder = os.path.join(self.folder, name)
        os.mkdir(folder)
        # Envoy's --mode validate looks at the bootstrap alone: the rest goes in as static resources.
        resources = {n: f.get("resources", []) for n, f in files.items()}
        bootstrap = files["bootstrap.json"]
        del bootstrap["dynamic_resources"]

        def plain(thing):
            return {k: v for k, v in thing.items() if k != "@type"}

        loads = {a["cluster_name"]: plain(a) for n in files if n.startswith("eds-") for a in resources[n]}
        routes = {r["name"]: plain(r) for n in files if n.startswith("rds-") for r in resources[n]}
        for cluster in resources["cds.json"]:
            cluster = plain(cluster)
            del cluster["eds_cluster_config"]
            cluster["type"] = "STATIC"
            cluster["load_assignment"] = loads[cluster["name"]]
            bootstrap.setdefault("static_resources", {"clusters": []})["clusters"].append(cluster)
        bootstrap["static_resources"]["listeners"] = []
        for listener in resources["lds.json"]:
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            manager["route_config"] = {**routes[manager.pop("rds")["route_config_name"]], "validate_clusters": False}
            bootstrap["static_resources"]["listeners"].append(plain(listener))
        path = os.path.join(folder, "bootstrap.json")
        with open(path, "w") as file:
            json.dump(bootstrap, file)
        envoy = ENVOY or "envoy"
        check = self.start(Process([envoy, "--mode", "validate", "-c", path, "--log-level", "warning"]))
        self.assertEqual(check.join(), 0, check.text())


class PickerElsewhere(Scenario):
    def behind_a_picker(self, failure_mode, *args):
        sim = self.sim(2)
        grpc, health, metrics = free_ports(3)
        files = ["-f", self.write("manifests.yaml", pool(failure_mode=failure_mode)),
                 "-f", self.write("endpoints.yaml", endpoints(sim.ports))]

        def picker():
            process = self.start(Process([FAIRWAY, "epp", *files, "--grpc-port", str(grpc), "--grpc-health-port",
                                          str(health), "--metrics-port", str(metrics), "--secure-serving=false"]))

            def listening():
                if process.process.poll() is not None:
                    raise AssertionError(process.text())
                try:
                    ask(metrics, "GET", "/metrics")
                    return True
                except OSError:
                    return False
            await_that(listening, "the picker's metrics page")
            return process

        first = picker()
        up = self.start(Up(*files, "--picker", f"127.0.0.1:{grpc}", *args))
        self.assertEqual(up.complete("llama").status, 200)
        return sim, up, first, picker

    def test_fail_open_serves_bodies_without_a_picker(self):
        sim, up, first, again = self.behind_a_picker("FailOpen")
        with Client(up) as a, Client(up) as b, Client(up) as c:
            await_that(lambda: len(a.results) > 20, "some requests")
            os.kill(first.pid, signal.SIGKILL)
            first.join()
            seen = len(a.results)
            await_that(lambda: len(a.results) > seen + 50, "more requests")
        self.assertEqual(set(a.results + b.results + c.results), {200})
        big = up.complete("llama", prompt="x" * 1_000)
        self.assertEqual(big.status, 200)
        self.assertEqual(up.ask("GET", "/v1/models").status, 200)
        # Said, not once per request.
        self.assertLess(len(up.err), 40, up.text())
        again()
        await_that(lambda: up.complete("llama").status == 200, "served again")

    def test_a_picker_that_knows_no_pool_yet_is_none(self):
        """Its API server is away: what the gateway does is the failure mode's, in every body mode that lets it."""
        sim = self.sim(2)
        away, grpc, health, metrics = free_ports(4)
        config = self.write("config", {
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{away}"}}]})
        epp = self.start(Process([FAIRWAY, "epp", "--kubeconfig", config, "--pool-name", "pool", "--grpc-port", str(grpc),
                                  "--grpc-health-port", str(health), "--metrics-port", str(metrics), "--secure-serving=false"]))
        epp.await_logged("serving ext_proc=")
        for failure_mode, mode, get, post in (("FailOpen", "buffered", {200}, {200}), ("FailClose", "buffered", {500}, {500}),
                                              ("FailOpen", "full-duplex", {200}, {200, 500})):
            with self.subTest(failure_mode=failure_mode, mode=mode):
                up = self.start(Up("-f", self.write("manifests.yaml", pool(failure_mode=failure_mode)),
                                   "-f", self.write("endpoints.yaml", endpoints(sim.ports)), "--body-mode", mode,
                                   "--picker", f"127.0.0.1:{grpc}"))
                gets = [up.ask("GET", "/v1/models").status for _ in range(12)]
                posts = [up.complete("llama").status for _ in range(12)]
                self.assertEqual(set(gets), get)
                self.assertLessEqual(set(posts), post, posts)
                print(f"\n{failure_mode}, {mode}: {posts.count(200)} of {len(posts)} POST served")
                up.terminate()
        page = ask(metrics, "GET", "/metrics").body.decode()
        self.assertIn('fairway_extproc_events_total{event="no_pool_yet"} 72', page)

    def test_fail_close_answers_500_without_a_picker(self):
        sim, up, first, again = self.behind_a_picker("FailClose")
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        for _ in range(5):
            self.assertGreaterEqual(up.complete("llama").status, 500)
        again()
        await_that(lambda: up.complete("llama").status == 200, "200 once the picker is back")

    def test_hanging_picker_fails_open_in_bounded_time(self):
        sim, up, first, again = self.behind_a_picker("FailOpen")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            self.assertEqual(up.complete("llama").status, 200)
            self.assertLess(time.monotonic() - begin, 25)
        finally:
            os.kill(first.pid, signal.SIGCONT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
