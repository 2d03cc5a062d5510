"""Every Envoy configuration that is shipped, held to what docs/gateways.md says that they have in common; and each is one that a
real Envoy takes. Found by their contents: a new one is held to it, too."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests/package"))
from chart import yaml  # noqa: E402
from support import ENVOY, FAIRWAY, Scenario  # noqa: E402

MODULE = os.environ.get("FAIRWAY_MODULE", "")
MANAGER = "HttpConnectionManager"
FAR_ABOVE = 100_000  # Envoy's own is 1,024
RULES = (  # what docs/gateways.md must say, by the first words of its list's items
    "The client's own `x-gateway-destination-endpoint*` headers are removed", "ext_proc: `request_body_mode`", "Circuit breakers",
    "An upstream `idle_timeout`", "Time limits for uploads", "Small buffers", "An overload manager")


def walk(value):
    """Every map in a document."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def of_type(document, suffix):
    return [m for m in walk(document) if str(m.get("@type", "")).endswith("." + suffix)]


def seconds(text):
    return float(str(text)[:-1])


def inner(text):
    """Configurations in a ConfigMap of a manifest."""
    for document in yaml.safe_load_all(text):
        if isinstance(document, dict) and document.get("kind") == "ConfigMap":
            yield from (data for data in document["data"].values() if "static_resources" in data)


@functools.cache
def shipped():
    """name -> documents that belong together, the bootstrap first."""
    found = {}
    for path in sorted((SOURCE / "deploy").rglob("*.yaml")):
        text = path.read_text()
        name = str(path.relative_to(SOURCE))
        if "templates" in path.parts or not re.search(r"static_resources|" + MANAGER, text):
            continue  # what templates make is in deploy/manifests
        if "kind: ConfigMap" in text:
            for number, config in enumerate(inner(text)):
                found[f"{name}#{number}"] = [yaml.safe_load(config)]
        elif path.parent.name in ("lds", "ecds"):
            continue  # taken with the one that names it
        else:
            bootstrap = yaml.safe_load(text)
            rest = [yaml.safe_load((path.parent / f).read_text()) for f in re.findall(r"\{path: ([\w/]+\.yaml)", text)]
            found[name] = [bootstrap, *rest]
    for name, args in (("up --ext-proc", ["--ext-proc"]), ("up --ext-proc buffered", ["--body-mode", "buffered"]), ("up", [])):
        done = subprocess.run([FAIRWAY, "up", "--endpoint", "127.0.0.1:9", "--print-envoy-config", *args], capture_output=True,
                              text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        documents = [json.loads(text) for text in re.split(r"(?m)^# \S+$", done.stdout) if text.strip()]
        found[name] = sorted(documents, key=lambda d: "overload_manager" not in d)
    return found


class Shipped(unittest.TestCase):
    def each(self, check):
        self.assertGreaterEqual(len(shipped()), 8, list(shipped()))
        for name, documents in shipped().items():
            with self.subTest(name):
                check(documents)

    def clusters(self, documents):
        """(cluster, what it is for). Envoy's own admin page is nobody's business."""
        pickers = {m["cluster_name"] for m in walk(documents) if set(m) == {"cluster_name"}}
        for cluster in walk(documents):
            if "connect_timeout" in cluster or "load_assignment" in cluster:
                if cluster["name"] != "admin":
                    yield cluster, "picker" if cluster["name"] in pickers else "models"

    def managers(self, documents):
        """Of listeners that lead to model servers."""
        return [m for m in of_type(documents, MANAGER) if m["stat_prefix"] != "ready"]

    def test_the_document_lists_what_is_held_here(self):
        text = (SOURCE / "docs/gateways.md").read_text()
        section = text[text.index("## An Envoy of your own"):]
        items = re.findall(r"(?m)^- (.*)$", section)
        for rule in RULES:
            self.assertTrue(any(item.startswith(rule) for item in items), rule)
        self.assertEqual(len(items), len(RULES), "an item of the list is not held by a test")

    def test_circuit_breakers_do_not_bite(self):
        def check(documents):
            clusters = list(self.clusters(documents))
            self.assertTrue(clusters)
            for cluster, _ in clusters:
                (limits,) = cluster["circuit_breakers"]["thresholds"]
                for what in ("max_connections", "max_pending_requests", "max_requests", "max_retries"):
                    self.assertGreaterEqual(limits[what], FAR_ABOVE, cluster["name"])
        self.each(check)

    def test_connections_to_model_servers_are_closed_before_they_close_them(self):
        def check(documents):
            models = [c for c, what in self.clusters(documents) if what == "models"]
            self.assertTrue(models)
            for cluster in models:
                (options,) = cluster["typed_extension_protocol_options"].values()
                self.assertLess(seconds(options["common_http_protocol_options"]["idle_timeout"]), 5, cluster["name"])
        self.each(check)

    def test_clients_cannot_choose_and_the_picker_sees_the_body(self):
        def check(documents):
            for manager in self.managers(documents):
                chains = [manager["http_filters"], *(u["filters"] for u in manager.get("upgrade_configs", []) if "filters" in u)]
                for chain in chains:
                    removed = False
                    for step in chain:
                        for mutation in of_type(step, "HeaderMutation"):
                            removed |= any(m.get("remove_on_match", {}).get("key_matcher") ==
                                           {"prefix": "x-gateway-destination-endpoint"}
                                           for m in mutation["mutations"].get("request_mutations", []))
                        for asked in of_type(step, "ExternalProcessor"):
                            self.assertTrue(removed, "the client's headers are still there")
                            mode = asked["processing_mode"]
                            whole = {"FULL_DUPLEX_STREAMED", "BUFFERED"} if chain is chains[0] else {"NONE"}
                            self.assertIn(mode["request_body_mode"], whole)
                            self.assertEqual(mode["response_header_mode"], "SEND")
        self.each(check)

    def test_uploads_end_in_time_and_answers_may_take_theirs(self):
        def check(documents):
            managers = self.managers(documents)
            self.assertTrue(managers)
            for manager in managers:
                self.assertTrue(0 < seconds(manager["request_timeout"]) <= 300)
                self.assertTrue(0 < seconds(manager["request_headers_timeout"]) <= 60)
                idle = seconds(manager["stream_idle_timeout"])
                # Not 0: it is what is made shorter when memory runs out.
                self.assertGreaterEqual(idle, 600, "a long prompt is silent until its first token")
        self.each(check)

    def test_uploads_hold_little_and_have_turns(self):
        seen = 0

        def check(documents):
            nonlocal seen
            listeners = [m for m in walk(documents) if "filter_chains" in m and any(n in self.managers(documents) for n in of_type(m, MANAGER))]
            self.assertTrue(listeners)
            for listener in listeners:
                self.assertLessEqual(int(listener["per_connection_buffer_limit_bytes"]), 64 << 10)
            for manager in self.managers(documents):
                window = manager["http2_protocol_options"]
                self.assertLessEqual(int(window["initial_stream_window_size"]), 256 << 10)
                self.assertLessEqual(int(window["initial_connection_window_size"]), 1 << 20)
            modes = {m["processing_mode"]["request_body_mode"] for m in of_type(documents, "ExternalProcessor")}
            if not modes or modes & {"BUFFERED", "BUFFERED_PARTIAL"}:
                return
            seen += 1
            for cluster, what in self.clusters(documents):
                if what == "picker":
                    (options,) = cluster["typed_extension_protocol_options"].values()
                    windows = options["explicit_http_config"]["http2_protocol_options"]
                    self.assertLessEqual(int(windows["initial_stream_window_size"]), 256 << 10)
                    self.assertGreaterEqual(int(windows["initial_connection_window_size"]), 1 << 30)
                    # Clients that leave by the thousand are as many resets to the picker.
                    self.assertGreaterEqual(int(windows["max_outbound_control_frames"]), 1_000_000)
                    self.assertGreaterEqual(int(windows["max_outbound_frames"]), 1_000_000)
            for route in walk(documents):
                self.assertLessEqual(int(route.get("request_body_buffer_limit", 0)), 1 << 20)
        self.each(check)
        self.assertGreaterEqual(seen, 2)

    def test_all_requests_together_have_a_bound(self):
        def check(documents):
            overload = documents[0]["overload_manager"]
            monitors = {m["name"]: m["typed_config"] for m in overload["resource_monitors"]}
            heap = "envoy.resource_monitors.fixed_heap"
            self.assertLessEqual(int(monitors[heap]["max_heap_size_bytes"]), 4 << 30)
            self.assertGreaterEqual(overload["buffer_factory_config"]["minimum_account_to_track_power_of_two"], 16)
            actions = {a["name"].rsplit(".", 1)[1]: [t["name"] for t in a["triggers"]] for a in overload["actions"]}
            for action in ("shrink_heap", "reset_high_memory_stream", "reduce_timeouts", "stop_accepting_requests"):
                self.assertEqual(actions[action], [heap])
        self.each(check)

    def test_nobody_has_a_turn_for_many_requests(self):
        def check(documents):
            (layer,) = documents[0]["layered_runtime"]["layers"]
            self.assertLessEqual(layer["static_layer"]["http.max_requests_per_io_cycle"], 10)
        self.each(check)


class Taken(Scenario):
    def test_a_real_envoy_takes_each(self):
        for name, documents in shipped().items():
            if name.startswith("up"):
                continue  # the other scenarios run them
            with self.subTest(name):
                folder = SOURCE / name if name.endswith(".yaml") else None
                path = os.path.join(self.folder, "envoy.json")
                with open(path, "w") as file:
                    text = json.dumps(documents[0])
                    file.write(text.replace("fairway_envoy-0.1.0", os.path.basename(MODULE)[len("lib"):-len(".so")]))
                done = subprocess.run([ENVOY or "envoy", "--mode", "validate", "-c", path, "--log-level", "error"],
                                      cwd=folder.parent if folder else self.folder, capture_output=True, text=True, timeout=120,
                                      env={**os.environ, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": os.path.dirname(os.path.abspath(MODULE))},
                                      check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
