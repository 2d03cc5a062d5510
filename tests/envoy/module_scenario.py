"""The module in an Envoy that is configured by hand: endpoints by EDS, configuration by ECDS, bodies in every shape, and what
happens when something is missing. (Local mode's scenarios run with the module, too.)"""

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest

from support import (ENVOY, Process, Scenario, Upgrades, ask, await_that, endpoints, free_ports, model, old_pool, running,
                     says_back, upgraded)

MODULE = os.environ.get("FAIRWAY_MODULE", "")
FILTER = "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter"
LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"


NAME = os.path.basename(MODULE)[len("lib"):-len(".so")]


def module_file(name=None):
    # By name, which Envoy finds in a folder that it is told of: older ones take no path.
    return {"name": name or NAME, "do_not_close": True, "metrics_namespace": "fairway"}


def filter_config(config, name=None):
    return {"@type": FILTER, "dynamic_module_config": module_file(name), "filter_name": "fairway",
            "filter_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": config}}


class Envoy(Process):
    """An Envoy with one listener and one EDS cluster, "default/pool"; `filters` go before the router."""

    def __init__(self, folder, filters, policy="override_host", manager=None, ready=True, mode=()):
        self.folder = folder
        self.port, = free_ports(1)
        if not os.path.lexists(os.path.join(folder, os.path.basename(MODULE))):
            os.symlink(os.path.abspath(MODULE), os.path.join(folder, os.path.basename(MODULE)))
        self.eds = os.path.join(folder, "eds.json")
        if not os.path.exists(self.eds):
            self.set_hosts([])
        module_policy = {"typed_extension_config": {
            "name": "envoy.load_balancing_policies.dynamic_modules",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.dynamic_modules.v3."
                                      "DynamicModulesLoadBalancerConfig",
                             "dynamic_module_config": module_file(), "lb_policy_name": "fairway"}}}
        override = {"typed_extension_config": {
            "name": "envoy.load_balancing_policies.override_host",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
                             "override_host_sources": [{"metadata": {"key": "envoy.lb", "path": [
                                 {"key": "x-gateway-destination-endpoint"}]}}],
                             "fallback_policy": {"policies": [module_policy]}}}}
        foreign = {"typed_extension_config": {
            "name": "envoy.load_balancing_policies.round_robin",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"}}}
        router = {"name": "envoy.filters.http.router",
                  "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
        hcm = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "in", "http_protocol_options": {"enable_trailers": True},
               "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{
                   "match": {"prefix": "/"},
                   "route": {"cluster": "default/pool", "timeout": "0s", "retry_policy": {
                       "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-status-codes",
                       "retry_host_predicate": [{
                           "name": "envoy.retry_host_predicates.previous_hosts",
                           "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
                       "host_selection_retry_max_attempts": "5",
                       "retriable_status_codes": [503], "num_retries": 2}}}]}]},
               "http_filters": [*filters, router], **(manager or {})}
        bootstrap = {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "static_resources": {
                "listeners": [{"name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
                               "filter_chains": [{"filters": [{"name": "hcm", "typed_config": hcm}]}]}],
                "clusters": [{"name": "default/pool", "type": "EDS", "connect_timeout": "1s",
                              "eds_cluster_config": {"service_name": "pool",
                                                     "eds_config": {"path_config_source": {"path": self.eds}}},
                              "load_balancing_policy": {"policies": [
                                  {"override_host": override, "module": module_policy, "round_robin": foreign}[policy]]}}]}}
        path = os.path.join(folder, "envoy.json")
        with open(path, "w") as file:
            json.dump(bootstrap, file)
        admin = os.path.join(folder, "admin.txt")
        if os.path.exists(admin):  # of one before us
            os.unlink(admin)
        super().__init__([ENVOY or "envoy", "-c", path, "--concurrency", "2", "--disable-hot-restart", "--log-level", os.environ.get("FAIRWAY_ENVOY_LOG", "warning"),
                          "--component-log-level", "dynamic_modules:info", "--admin-address-path", admin, *mode],
                         env={**os.environ, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": folder})
        if ready:
            def address():
                with open(admin) as file:
                    return re.search(r":(\d+)\s*$", file.read())
            await_that(lambda: self.process.poll() is not None or os.path.exists(admin) and address(), lambda: self.text())
            if self.process.poll() is not None:
                raise AssertionError(self.text())
            self.admin = int(address().group(1))
            await_that(lambda: self.ready() or self.process.poll() is not None, lambda: self.text())
            if self.process.poll() is not None:
                raise AssertionError(self.text())

    def ready(self):
        try:
            return ask(self.admin, "GET", "/ready").status == 200
        except OSError:
            return False

    def set_hosts(self, hosts):
        """Each is a port, or (port, what else the endpoint has)."""
        endpoints = []
        for host in hosts:
            port, more = host if isinstance(host, tuple) else (host, {})
            endpoints.append({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}, **more})
        text = json.dumps({"version_info": str(time.monotonic_ns()), "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "pool",
            "endpoints": [{"lb_endpoints": endpoints}]}]})
        with open(self.eds + ".new", "w") as file:
            file.write(text)
        os.rename(self.eds + ".new", self.eds)

    def stat(self, pattern):
        text = ask(self.admin, "GET", "/stats").body.decode()
        return {name: int(value) for name, value in re.findall(r"^(\S*(?:%s)\S*): (\d+)$" % pattern, text, re.M)}

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def ask(self, method="POST", path="/v1/completions", body=None, headers=None, timeout=60):
        if body is None and method == "POST":
            body = {"model": "llama", "prompt": "hello", "max_tokens": 1}
        return ask(self.port, method, path, body, headers, timeout)


class ModuleScenario(Scenario):
    def envoy(self, config=None, **options):
        config = {"pools": [{"name": "default/pool"}], **(config or {})}
        filters = options.pop("filters", None) or [{"name": "fairway", "typed_config": filter_config(config)}]
        return self.start(Envoy(self.folder, filters, **options))

    def with_admin(self, **config):
        port, = free_ports(1)
        return port, {"admin": {"port": port}, **config}

    def fleet(self, port):
        pools = json.loads(ask(port, "GET", "/debug/fleet").body)["pools"]
        return {e["address"]: e for p in pools for e in p["endpoints"]}


class Peers(ModuleScenario):
    """Envoys that tell one another what they have sent where."""

    def peer(self, name, port, others):
        folder = os.path.join(self.folder, name)
        os.mkdir(folder)
        admin, config = self.with_admin(peers={"addresses": [f"127.0.0.1:{other}" for other in others], "port": port})
        config = {"pools": [{"name": "default/pool"}], **config}
        envoy = self.start(Envoy(folder, [{"name": "fairway", "typed_config": filter_config(config)}]))
        envoy.set_hosts(self.servers.ports)
        await_that(lambda: len(self.fleet(admin)) == 2, lambda: f"{self.fleet(admin)}")
        return envoy, admin

    def heard(self, admin):
        return re.search(r'^fairway_peers\{state="heard"\} (\d+)', ask(admin, "GET", "/metrics").body.decode(), re.M)[1]

    def test_each_knows_what_the_others_sent_until_they_are_gone(self):
        self.servers = self.sim(2, time_scale="10")
        ports = free_ports(2)
        first, first_admin = self.peer("first", ports[0], ports)
        second, second_admin = self.peer("second", ports[1], ports)
        await_that(lambda: self.heard(first_admin) == self.heard(second_admin) == "1", lambda: first.text() + second.text())
        connection = http.client.HTTPConnection("127.0.0.1", first.port, timeout=60)
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/completions", json.dumps(
            {"model": "llama", "prompt": "hello " * 2000, "stream": True, "max_tokens": 500, "ignore_eos": True}))
        server = connection.getresponse().headers["x-served-by"]
        await_that(lambda: self.fleet(second_admin)[server]["others"] == 1, lambda: f"{self.fleet(second_admin)}")
        self.assertNotEqual(second.ask().headers["x-served-by"], server, "it is busy with what the other sent")
        # One more that wants the first's port: it serves, says so, and hears the others all the same.
        third, third_admin = self.peer("third", ports[0], ports)
        await_that(lambda: self.heard(third_admin) == "2", lambda: third.text())
        third.await_logged("peers cannot ask yet")
        self.assertEqual(third.ask().status, 200)
        first.process.kill()
        await_that(lambda: self.heard(third_admin) == "1", lambda: third.text())
        await_that(lambda: self.heard(second_admin) == "1", lambda: second.text())  # the third has the port by now
        await_that(lambda: self.fleet(second_admin)[server]["others"] == 0, lambda: f"{self.fleet(second_admin)}")


class Discovery(ModuleScenario):
    def test_endpoints_come_and_go_by_eds_with_their_health_and_labels(self):
        sim = self.sim(3)
        admin, config = self.with_admin(scrapeInterval="20ms")
        envoy = self.envoy(config)
        envoy.set_hosts([sim.ports[0], (sim.ports[1], {"health_status": "UNHEALTHY"})])
        one, two, three = sim.names()
        await_that(lambda: set(self.fleet(admin)) == {one}, lambda: f"{self.fleet(admin)}")
        self.assertEqual({envoy.ask().headers["x-served-by"] for _ in range(10)}, {one})
        # A label of the host's metadata says which engine's metrics it has: under another's names they are not found.
        label = {"metadata": {"filter_metadata": {"envoy.lb": {"llm-d.ai/engine-type": "sglang"}}}}
        envoy.set_hosts([sim.ports[0], sim.ports[1], (sim.ports[2], label)])
        await_that(lambda: set(self.fleet(admin)) == {one, two, three}, lambda: f"{self.fleet(admin)}")
        sim.pin(0, waiting=7)
        sim.pin(1, waiting=8)
        sim.pin(2, waiting=9)
        await_that(lambda: self.fleet(admin)[one]["waiting"] == 7 and self.fleet(admin)[two]["waiting"] == 8,
                   lambda: f"{self.fleet(admin)}")
        self.assertEqual(self.fleet(admin)[three]["waiting"], 0)
        envoy.set_hosts([sim.ports[1]])
        await_that(lambda: set(self.fleet(admin)) == {two}, lambda: f"{self.fleet(admin)}")
        self.assertEqual({envoy.ask().headers["x-served-by"] for _ in range(10)}, {two})

    def test_the_picker_chooses_and_retries_go_down_its_list(self):
        sim = self.sim(3)
        for policy, selection, header in (("override_host", "overrideHost", True), ("module", "overrideHost", True),
                                          ("module", "policy", True), ("module", "policy", False)):
            with self.subTest(policy=policy, selection=selection, header=header):
                admin, config = self.with_admin(scrapeInterval="20ms", hostSelection=selection, destinationHeader=header)
                envoy = self.envoy(config, policy=policy)
                envoy.set_hosts(sim.ports)
                for number, waiting in enumerate((5, 0, 9)):
                    sim.pin(number, waiting=waiting)
                await_that(lambda: [self.fleet(admin).get(n, {}).get("waiting") for n in sim.names()] == [5, 0, 9],
                           lambda: f"{self.fleet(admin)}")
                self.assertEqual({envoy.ask().headers["x-served-by"] for _ in range(10)}, {sim.names()[1]})
                sim.set(1, requests="refuse")
                served = [envoy.ask() for _ in range(5)]
                self.assertEqual({a.status for a in served}, {200})
                if (policy, selection) != ("module", "overrideHost"):  # which knows of no list
                    self.assertEqual(served[0].headers["x-served-by"], sim.names()[0])
                # Clients hand their ids on: requests at one time may have the same.
                with concurrent.futures.ThreadPoolExecutor(3) as pool:  # Envoy allows three retries at a time
                    same = list(pool.map(lambda _: envoy.ask(headers={"x-request-id": "same"}), range(40)))
                self.assertEqual({a.status for a in same}, {200})
                self.assertNotIn(sim.names()[1], {a.headers["x-served-by"] for a in same})
                self.assertEqual(envoy.logged("hostSelection"), [])
                # Charged is who served, and nothing stays behind.
                await_that(lambda: all(e["inflight"] == 0 for e in self.fleet(admin).values()),
                           lambda: f"{self.fleet(admin)}")
                sim.set(1, requests="ok")
                envoy.close()

    def test_a_cluster_without_the_modules_policy_is_told_of_and_served_all_the_same(self):
        sim = self.sim(2)
        admin, config = self.with_admin(scrapeInterval="20ms", hostSelection="policy")
        config["manifests"] = [self.write("pool.yaml", old_pool(), endpoints(sim.ports))]
        envoy = self.envoy(config, policy="round_robin")
        envoy.set_hosts(sim.ports)
        sim.pin(0, waiting=9)
        sim.pin(1, waiting=0)
        await_that(lambda: [self.fleet(admin).get(n, {}).get("waiting") for n in sim.names()] == [9, 0], lambda: f"{self.fleet(admin)}")
        self.assertEqual({envoy.ask().status for _ in range(5)}, {200})
        envoy.await_logged("hostSelection is policy, but a request's cluster has another load-balancing policy .*default/pool")
        self.assertEqual({envoy.ask().headers["x-served-by"] for _ in range(10)}, {sim.names()[1]})

    def test_requests_wait_for_the_first_endpoints_and_who_leaves_is_forgotten(self):
        sim = self.sim(1)
        admin, config = self.with_admin(startupWait="30s")
        envoy = self.envoy(config)
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(envoy.ask().status)) for _ in range(5)]
        for thread in threads:
            thread.start()
        gone = socket.create_connection(("127.0.0.1", envoy.port))
        gone.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        await_that(lambda: sum(envoy.stat("fairway_waited").values()) == 6, lambda: f"{envoy.stat('fairway')}\n{envoy.text()}")
        gone.close()
        self.assertEqual(answers, [])
        envoy.set_hosts(sim.ports)
        for thread in threads:
            thread.join(30)
        self.assertEqual(answers, [200] * 5)
        # From here on an empty pool is an empty pool.
        envoy.set_hosts([])
        await_that(lambda: not self.fleet(admin), "an empty fleet")
        self.assertEqual(envoy.ask().status, 503)
        self.assertTrue(running(envoy.pid))

    def test_a_start_without_endpoints_ends(self):
        envoy = self.envoy({"startupWait": "300ms"})
        begin = time.monotonic()
        answer = envoy.ask()
        self.assertEqual(answer.status, 503)
        self.assertIn(b"ServiceUnavailable", answer.body)
        self.assertLess(time.monotonic() - begin, 20)


class Bodies(ModuleScenario):
    def serve(self, **config):
        echo = self.echo()
        manifests = self.write("pool.yaml", old_pool(), model("llama", "Critical", {"a-rather-longer-name": 1}))
        envoy = self.envoy({"manifests": [manifests], "maxBodyBytes": 17 << 20, **config})
        envoy.set_hosts([echo.port])
        await_that(lambda: envoy.ask().status == 200, lambda: envoy.text())
        return envoy

    def test_long_bodies_by_every_protocol_and_the_limit(self):
        envoy = self.serve()
        prompt = "x" * (16 << 20)
        body = json.dumps({"model": "llama", "prompt": prompt}).encode()
        grown = len(body) + len("a-rather-longer-name") - len("llama")
        path = os.path.join(self.folder, "body.json")
        with open(path, "wb") as file:
            file.write(body)
        url = f"http://127.0.0.1:{envoy.port}/v1/completions"
        ways = {"length": [], "chunked": ["-H", "transfer-encoding: chunked"], "http2": ["--http2-prior-knowledge"]}
        for name, way in ways.items():
            with self.subTest(name):
                done = subprocess.run(["curl", "-sS", "--max-time", "60", "-H", "content-type: application/json", "-H",
                                       "expect:", "--data-binary", "@" + path, *way, url], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                told = json.loads(done.stdout)
                self.assertEqual(told["length"], grown)
                self.assertTrue(told["body"].startswith('{"model": "a-rather-longer-name"'))
                if name == "length":
                    self.assertEqual(told["headers"]["content-length"], str(grown))
        answer = envoy.ask(body={"model": "llama", "prompt": "x" * (18 << 20)})
        self.assertEqual(answer.status, 413)
        self.assertEqual(answer.body, b"inference error: RequestTooLarge - request body is larger than 17825792 bytes")

    def test_a_body_that_ends_in_trailers(self):
        envoy = self.serve()
        body = b'{"model":"llama","prompt":"hi"}'
        with socket.create_connection(("127.0.0.1", envoy.port)) as connection:
            connection.settimeout(30)
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nte: trailers\r\ntransfer-encoding: chunked\r\n"
                               b"trailer: x-sum\r\n\r\n" + b"%x\r\n%s\r\n" % (len(body), body) + b"0\r\nx-sum: 1\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            self.assertEqual(answer.status, 200)
            self.assertIn("a-rather-longer-name", json.loads(answer.read())["body"])

    def test_behind_a_filter_that_collects_the_body_first(self):
        echo = self.echo()
        manifests = self.write("pool.yaml", old_pool(), model("llama", "Critical", {"other": 1}))
        buffer = {"name": "buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes": 1 << 20}}
        config = {"manifests": [manifests], "pools": [{"name": "default/pool"}]}
        envoy = self.envoy(filters=[buffer, {"name": "fairway", "typed_config": filter_config(config)}])
        envoy.set_hosts([echo.port])
        for size in (10, 100_000):
            answer = envoy.ask(body={"model": "llama", "prompt": "x" * size})
            self.assertEqual(answer.status, 200)
            self.assertIn('"other"', json.loads(answer.body)["body"])

    def test_a_body_that_stops_holds_nobody_up(self):
        envoy = self.serve()
        with socket.create_connection(("127.0.0.1", envoy.port)) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            for _ in range(20):
                self.assertEqual(envoy.ask().status, 200)
        self.assertEqual(envoy.ask().status, 200)

    def test_a_body_that_stops_is_given_up(self):
        envoy = self.serve(bodyTimeout="1s")
        halves = [socket.create_connection(("127.0.0.1", envoy.port), timeout=60) for _ in range(5)]
        for number, half in enumerate(halves):
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" + b'{"a":' * number)
        gone = halves.pop()
        gone.close()  # one of them may be who watches for all
        for half in halves:
            answer = http.client.HTTPResponse(half)
            answer.begin()
            self.assertEqual(answer.status, 408)
            self.assertEqual(answer.read(), b"inference error: RequestTimeout - the request's body did not come in time")
            half.close()
        self.assertEqual(sum(envoy.stat("fairway_body_timeouts").values()), len(halves))
        self.assertEqual(envoy.ask().status, 200)

    def test_bodies_hold_no_more_memory_together_than_they_may(self):
        envoy = self.serve(maxBodyBytes=2 << 20, maxBufferedBytes=8 << 20)
        halves = []
        for _ in range(40):  # 60 MB of bodies that do not end, over two workers
            half = socket.create_connection(("127.0.0.1", envoy.port), timeout=60)
            halves.append(half)
            try:
                half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n" + b" " * 1_500_000)
            except OSError:
                pass  # answered and closed while we sent
        await_that(lambda: sum(envoy.stat("fairway_bodies_dropped").values()) >= 40 - 2 * 6,
                   lambda: f"{envoy.stat('fairway')}")
        self.assertEqual({envoy.ask().status for _ in range(20)}, {200})  # an honest one is no victim
        for half in halves:
            half.close()

    def test_an_upgrade_is_served_at_once_and_its_frames_pass(self):
        server = self.start(Upgrades())
        for config in ({}, {"hostSelection": "policy", "responseMode": "full"}):
            envoy = self.envoy(config, manager={"upgrade_configs": [{"upgrade_type": "websocket"}]},
                               policy="module" if config else "override_host")
            envoy.set_hosts([server.port])
            await_that(lambda: envoy.ask(method="GET", path="/").status == 204, lambda: envoy.text())
            # A path whose body is read else.
            connection, head = upgraded(envoy.port, "/v1/responses")
            with connection:
                self.assertTrue(head.startswith("HTTP/1.1 101 "), head + envoy.text())
                for message in (b"hello", b"{", b"x" * 300_000):
                    self.assertTrue(says_back(connection, message), envoy.text())
            envoy.close()


class Configuration(ModuleScenario):
    def discovered(self, config, name=None):
        """The filter by ECDS from a file, with a default that marks its requests."""
        folder = os.path.join(self.folder, "ecds")
        os.makedirs(folder, exist_ok=True)
        self.ecds = os.path.join(folder, "filter.json")
        self.publish(config, name)
        lua = {"@type": LUA, "default_source_code": {
            "inline_string": "function envoy_on_response(h) h:headers():add('x-picker', 'absent') end"}}
        return [{"name": "fairway", "config_discovery": {
            "config_source": {"path_config_source": {"path": self.ecds, "watched_directory": {"path": folder}}},
            "apply_default_config_without_warming": True, "default_config": lua,
            "type_urls": [FILTER, LUA]}}]

    def publish(self, config, name=None):
        text = json.dumps({"version_info": str(time.monotonic_ns()), "resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "name": "fairway",
            "typed_config": filter_config(config, name)}]})
        with open(self.ecds + ".new", "w") as file:
            file.write(text)
        os.rename(self.ecds + ".new", self.ecds)

    def reloads(self, envoy):
        return sum(envoy.stat(r"extension_config_discovery\S*config_reload").values())

    def test_a_hundred_reloads_under_load_lose_nothing_and_leave_nothing(self):
        sim = self.sim(2)
        config = {"pools": [{"name": "default/pool"}]}
        envoy = self.envoy(filters=self.discovered(config))
        envoy.set_hosts(sim.ports)
        await_that(lambda: "x-picker" not in envoy.ask().headers, lambda: envoy.text())
        statuses, stop = [], threading.Event()

        def load():
            connection = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
            while not stop.is_set():
                connection.request("POST", "/v1/completions", json.dumps({"model": "llama", "prompt": "x", "max_tokens": 1}),
                                   {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                statuses.append((answer.status, answer.headers.get("x-picker")))
            connection.close()

        def stream():
            while not stop.is_set():  # open across many reloads
                answer = envoy.ask(body={"model": "llama", "prompt": "x", "max_tokens": 100, "ignore_eos": True, "stream": True})
                statuses.append((answer.status, None if answer.body.endswith(b"data: [DONE]\n\n") else answer.body[-80:]))

        threads = [threading.Thread(target=load) for _ in range(3)] + [threading.Thread(target=stream)]
        for thread in threads:
            thread.start()
        counts = []
        for i in range(100):
            before = self.reloads(envoy)
            self.publish({**config, "maxEndpoints": 1 + i % 3, "seed": 1 + i})
            await_that(lambda: self.reloads(envoy) > before, lambda: f"{envoy.stat('extension_config')}\n{envoy.text()}")
            counts.append((envoy.threads(), envoy.descriptors()))
        stop.set()
        for thread in threads:
            thread.join(60)
        self.assertGreater(len(statuses), 100)
        self.assertEqual(set(statuses), {(200, None)})
        # Pickers of old configurations are gone with their last stream.
        await_that(lambda: envoy.threads() <= counts[0][0], lambda: f"{envoy.threads()} threads, {counts[0]} after the first")
        await_that(lambda: envoy.descriptors() <= counts[0][1] + 4, lambda: f"{envoy.descriptors()} descriptors, {counts[0]}")

    def test_yaml_text_is_a_configuration_too(self):
        sim = self.sim(1)
        config = filter_config({})
        config["filter_config"] = {"@type": "type.googleapis.com/google.protobuf.StringValue",
                                   "value": "# as in a file\npools:\n- name: default/pool\nfailureMode: FailClose\n"}
        envoy = self.envoy(filters=[{"name": "fairway", "typed_config": config}])
        envoy.set_hosts(sim.ports)
        self.assertEqual(envoy.ask().status, 200)

    def test_a_wrong_configuration_is_refused_and_the_last_good_one_serves(self):
        sim = self.sim(1)
        envoy = self.envoy(filters=self.discovered({"pools": [{"name": "default/pool"}]}))
        envoy.set_hosts(sim.ports)
        await_that(lambda: "x-picker" not in envoy.ask().headers, lambda: envoy.text())
        self.publish({"pools": [{"name": "default/pool"}], "maxEndpoint": 3})
        envoy.await_logged(r'fairway: filter_config:\d+: maxEndpoint: unknown field; did you mean \\?"maxEndpoints\\?"')
        answer = envoy.ask()
        self.assertEqual((answer.status, answer.headers.get("x-picker")), (200, None))

    def test_without_the_file_the_default_serves(self):
        sim = self.sim(1)
        envoy = self.envoy(filters=self.discovered({"pools": [{"name": "default/pool"}]}, "late"))
        envoy.set_hosts(sim.ports)
        await_that(lambda: envoy.ask().status == 200, lambda: envoy.text())
        self.assertEqual(envoy.ask().headers["x-picker"], "absent")
        # Once it is there, a configuration that differs loads it: Envoy remembers the one it refused.
        shutil.copy(MODULE, os.path.join(self.folder, "liblate.so"))
        self.publish({"pools": [{"name": "default/pool"}], "maxEndpoints": 2}, "late")
        await_that(lambda: "x-picker" not in envoy.ask().headers, lambda: envoy.text())

    def test_without_the_file_a_static_configuration_says_so_and_ends(self):
        config = filter_config({"pools": [{"name": "default/pool"}]}, "missing")
        envoy = self.envoy(filters=[{"name": "fairway", "typed_config": config}], ready=False)
        self.assertNotEqual(envoy.join(), 0)
        self.assertIn("missing.so", "\n".join(envoy.err))

    def test_validation_reads_everything_and_starts_nothing(self):
        port, = free_ports(1)
        good = self.envoy({"admin": {"port": port}}, ready=False, mode=("--mode", "validate"))
        self.assertEqual(good.join(), 0, good.text())
        bad = self.envoy({"manifests": [self.write("bad.yaml", {"apiVersion": "inference.networking.k8s.io/v1",
                                                                "kind": "InferencePool", "metadata": {"name": "p"}})]},
                         ready=False, mode=("--mode", "validate"))
        self.assertNotEqual(bad.join(), 0)
        self.assertRegex("\n".join(bad.err), r"fairway: .*bad\.yaml:1: InferencePool default/p: spec")

    def test_an_endpoint_picker_config_in_the_settings(self):
        sim = self.sim(3)
        session = {"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig",
                   "plugins": [{"type": "session-affinity-filter"}, {"type": "random-picker"}]}
        for config in ({"configText": session}, {"configText": json.dumps(session)},
                       {"configFile": self.write("epp.yaml", session)}):
            with self.subTest(str(config)):
                envoy = self.envoy({**config, "allowExperimentalPlugins": True})
                envoy.set_hosts(sim.ports)
                first = envoy.ask()
                self.assertEqual(first.status, 200, envoy.text())
                served = {envoy.ask(headers={"x-session-token": first.headers["x-session-token"]}).headers["x-served-by"]
                          for _ in range(10)}
                self.assertEqual(served, {first.headers["x-served-by"]})
                envoy.close()
        for config, said in (({"configText": session}, "is Alpha: it needs --allow-experimental-plugins"),
                             ({"configFile": os.path.join(self.folder, "nowhere.yaml")}, "nowhere.yaml")):
            bad = self.envoy(config, ready=False, mode=("--mode", "validate"))
            self.assertNotEqual(bad.join(), 0)
            self.assertIn(said, "\n".join(bad.err))

    def test_the_same_series_as_the_server(self):
        sim = self.sim(1)
        admin, config = self.with_admin(responseMode="full", debugDecisions=10)
        envoy = self.envoy(config)
        envoy.set_hosts(sim.ports)
        answer = envoy.ask(body={"model": "llama", "prompt": "x", "max_tokens": 3, "stream": True,
                                 "stream_options": {"include_usage": True}})
        self.assertEqual(answer.status, 200)

        def page():
            return ask(admin, "GET", "/metrics").body.decode()
        await_that(lambda: re.search(r'^llm_d_epp_request_total\{.*model_name="llama".*\} 1', page(), re.M) and
                   re.search(r'output_tokens_count\{.*model_name="llama".*\} 1', page()), lambda: page()[:3000])
        self.assertEqual(ask(admin, "GET", "/readyz").status, 200)
        decisions = json.loads(ask(admin, "GET", "/debug/decisions").body)
        self.assertIn(sim.names()[0], json.dumps(decisions))


class Recipes(Scenario):
    """The configurations of deploy/envoy, as they stand but for their ports."""

    def run_recipe(self, name, modules, sim=None):
        folder = os.path.join(self.folder, name)
        shutil.copytree(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "envoy"), folder)
        self.admin, self.port, metrics = free_ports(3)
        ports = {"9901": self.admin, "8080": self.port, "9090": metrics}
        if sim:
            ports.update({"8001": sim.ports[0], "8002": sim.ports[1]})
        for path, _, names in os.walk(folder):
            for file in names:
                if file.endswith(".yaml"):
                    with open(os.path.join(path, file)) as old:
                        text = re.sub(r"\b(%s)\b" % "|".join(ports), lambda m: str(ports[m.group(1)]), old.read())
                    with open(os.path.join(path, file), "w") as new:
                        new.write(text.replace("fairway_envoy-0.1.0", NAME))
        return self.start(Process(["env", "-C", folder, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH=" + modules, ENVOY or "envoy", "-c",
                                   name + ".yaml", "--disable-hot-restart", "--log-level", "warning"]))

    def live(self):
        try:
            return ask(self.admin, "GET", "/ready").status == 200
        except OSError:
            return False

    def complete(self):
        try:
            return ask(self.port, "POST", "/v1/completions", {"model": "llama", "prompt": "x", "max_tokens": 1})
        except OSError:
            return None

    def test_each_serves_with_the_module(self):
        sim = self.sim(2)
        for name in ("static", "ecds", "lds"):
            with self.subTest(name):
                envoy = self.run_recipe(name, os.path.dirname(os.path.abspath(MODULE)), sim)
                await_that(self.live, envoy.text)
                sim.pin(0, waiting=9)
                sim.pin(1, waiting=0)

                def picked():
                    answers = [self.complete() for _ in range(8)]
                    return all(a and a.status == 200 and a.headers["x-served-by"] == sim.names()[1] and
                               "x-picker" not in a.headers for a in answers)
                await_that(picked, envoy.text)
                envoy.close()

    def test_listeners_are_replaced_under_load(self):
        sim = self.sim(2)
        envoy = self.run_recipe("lds", os.path.dirname(os.path.abspath(MODULE)), sim)
        await_that(lambda: (a := self.complete()) and a.status == 200, envoy.text)
        path = os.path.join(self.folder, "lds", "lds", "listener.yaml")
        with open(path) as file:
            text = file.read()
        statuses, stop = [], threading.Event()

        def load():
            while not stop.is_set():
                try:
                    statuses.append(ask(self.port, "POST", "/v1/completions",
                                        {"model": "llama", "prompt": "x", "max_tokens": 1}).status)
                except OSError as error:
                    statuses.append(repr(error))

        def taken():
            found = re.search(r"lds.update_success: (\d+)", ask(self.admin, "GET", "/stats?filter=lds").body.decode())
            return int(found.group(1))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(20):
            before, seen = taken(), len(statuses)
            with open(path + ".new", "w") as file:
                file.write(re.sub(r"( *)failureMode: FailOpen", rf"\1failureMode: FailOpen\n\1maxEndpoints: {1 + i % 3}", text))
            os.rename(path + ".new", path)
            await_that(lambda: taken() > before and len(statuses) > seen + 3, envoy.text)
        stop.set()
        for thread in threads:
            thread.join(60)
        self.assertEqual(set(statuses), {200}, envoy.text())

    def test_without_the_module_they_do_what_they_say(self):
        sim = self.sim(2)
        envoy = self.run_recipe("ecds", self.folder, sim)
        await_that(lambda: (a := self.complete()) and a.status == 200 and a.headers["x-picker"] == "absent", envoy.text)
        envoy = self.run_recipe("lds", self.folder, sim)
        await_that(self.live, envoy.text)
        self.assertIsNone(self.complete())  # refused: there is no listener, and Envoy lives
        envoy = self.run_recipe("static", self.folder, sim)
        self.assertNotEqual(envoy.join(), 0)


if __name__ == "__main__":
    if not MODULE:
        raise SystemExit("FAIRWAY_MODULE names no module")
    if os.environ.get("FAIRWAY_ENVOY_WHICH") and not ENVOY:
        sys.exit(77)
    unittest.main()
