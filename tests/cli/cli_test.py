"""The binary as a user calls it: flags, messages, exit codes, logs, reload, drain. Standard library only."""
import contextlib
import http.server
import json
import os
import queue
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
import xml.dom.minidom

FAIRWAY = os.environ["FAIRWAY_BINARY"]
SOURCE = os.environ["FAIRWAY_SOURCE"]
EXAMPLES = os.path.join(SOURCE, "examples")
SANITIZED = os.environ.get("FAIRWAY_SANITIZE", "")
PATIENCE = 300 if SANITIZED else 60

POOL = """apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama-pool}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
"""
ENDPOINTS = "endpoints:\n- {name: a, address: 127.0.0.1, port: \"%d\", labels: {app: vllm}}\n"


def run(*args, stdin="", env=None):
    return subprocess.run([FAIRWAY, *args], input=stdin, capture_output=True, text=True, timeout=PATIENCE,
                          env={**os.environ, **(env or {})})


class Server:
    """`fairway epp` in the background."""

    def __init__(self, *args, env=None):
        self.process = subprocess.Popen([FAIRWAY, "epp", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **(env or {})})
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def await_line(self, pattern):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in list(self.lines):
                if re.search(pattern, line):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line {pattern!r} in {self.lines}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


class LeaseServer(http.server.ThreadingHTTPServer):
    """A Kubernetes API server that has nothing; it keeps what is written into Leases."""
    daemon_threads = True

    def __init__(self):
        self.holders = queue.Queue()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, code):
                self.send_response(code)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def do_GET(self):
                self.answer(404)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.server.holders.put(json.loads(body)["spec"]["holderIdentity"])
                self.answer(500)

            def log_message(self, *_):
                pass

            def handle(self):
                with contextlib.suppress(ConnectionError):  # who called was killed
                    super().handle()

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path + ".new", "w") as out:
            out.write(text)
        os.rename(path + ".new", path)
        return path

    def serve(self, *args, files=None):
        if files is None:
            files = [self.write("pool.yaml", POOL + "---\n" + ENDPOINTS % 9)]
        server = Server(*[arg for f in files for arg in ("-f", f)], "--grpc-port", "0", "--grpc-health-port", "0",
                        "--metrics-port", "0", *args)
        self.addCleanup(lambda: server.process.poll() is None and server.stop())
        return server

    # ---- Help, version, usage.

    def test_every_subcommand_has_help_with_examples(self):
        for command in ([], ["epp"], ["up"], ["sim"], ["replay"], ["check"], ["version"]):
            done = run(*command, "--help")
            self.assertEqual(done.returncode, 0, command)
            self.assertRegex(done.stdout, "Examples?:", command)

    def test_version(self):
        self.assertRegex(run("version").stdout, r"^fairway \d+\.\d+\.\d+$")
        self.assertRegex(run("--version").stdout, r"^fairway \d+\.\d+\.\d+$")

    def test_wrong_usage_is_2(self):
        for args in ([], ["fly"], ["check"], ["epp", "--no-such-flag"], ["epp", "--grpc-port", "70000"], ["up"],
                     ["epp", "-f", "x", "--metrics-staleness-threshold", "soon"], ["epp"],
                     ["up", "--endpoint", "localhost"], ["up", "-f", "x", "--body-mode", "sideways"],
                     ["epp", "-f", "x", "--lora-info-metric", "m"], ["epp", "-f", "x", "--grpc-max-recv-msg-size", "big"]):
            done = run(*args)
            self.assertEqual(done.returncode, 2, (args, done))
            self.assertTrue(done.stderr.strip() or done.stdout.strip(), args)

    def flags(self, command):
        """(name, kind, default) of each flag, as the reference lists them."""
        section = run("reference").stdout.split(f"\n## fairway {command}\n")[1].split("\n## ")[0]
        for line in section.splitlines():
            if line.startswith("| `"):
                name, kind, default = [cell.strip("|` ") for cell in line.split(" | ")[:3]]
                yield name.split(",")[-1], kind.partition(", ")[0], default

    def test_a_flag_may_be_given_twice_as_with_gos_flags(self):
        kinds = {"integer": "1", "number": "0.5", "text": "x", "path": "x", "list": "x", "duration": "1s", "size": "4Mi"}
        samples = {"--pool-group": "inference.networking.k8s.io", "--grpc-max-recv-msg-size": "4Mi",
                   "--grpc-max-send-msg-size": "4Mi", "--model-server-metrics-path": "/m", "--model-server-metrics-scheme": "https",
                   "--model-server-metrics-port": "1", "--model-server-metrics-server-name": "x", "--feature-gates": "flowControl"}
        for command, least in (("epp", 50), ("up", 20), ("sim", 15), ("check", 4)):
            args = []
            for name, kind, default in self.flags(command):
                if kind == "switch":
                    args += [name] * 2
                else:
                    args += [name, samples.get(name) or default or kinds[kind]] * 2
            self.assertGreater(len(args), 2 * least, args)
            done = run(command, *args, "--no-such-flag")
            self.assertEqual(done.returncode, 2, (args, done))
            self.assertRegex(done.stdout + done.stderr, "not expected: --no-such-flag", args)

    def test_a_mistyped_name_is_answered_with_the_nearest(self):
        for args, near in ((["epp", "--grpc-prot", "1"], "--grpc-port"), (["chek"], "check"), (["chekc"], "check"), (["config", "prin"], "print"),
                           (["up", "--max-endpoint=3"], "--max-endpoints")):
            done = run(*args)
            self.assertEqual(done.returncode, 2, done)
            self.assertIn(f"did you mean {near}?", done.stderr, args)

    def test_what_is_not_expected_is_told_in_its_order_and_with_its_flag(self):
        for args, said in ((["epp", "a", "b", "c"], "not expected: a b c\n"), (["epp", "pool.yaml"], "-f pool.yaml"),
                           (["replay", "w.yaml"], "--workload w.yaml runs it, --from-decisions w.yaml asks recorded decisions again"),
                           (["explain", "r.jsonl"], "--fleet r.jsonl"),
                           (["config", "print", "c.yaml"], "config print --config-file c.yaml"), (["config", "c.yaml"], "config print --config-file c.yaml")):
            done = run(*args)
            self.assertEqual(done.returncode, 2, done)
            self.assertIn(said, done.stderr, args)

    def test_a_value_that_cannot_be_names_its_flag_and_what_would_be_right(self):
        for args, wanted in ((["--max-endpoints", "9"], "--max-endpoints: want a number from 1 to 8, got \"9\""),
                             (["--load-source", "pages"], "--load-source: want ledger or page"),
                             (["--refresh-metrics-interval", "fast"], "want a duration like 50ms"),
                             (["--tls-min-version", "TLS1.3"], "--tls-min-version, --tls-cipher-suites: unknown TLS version \"TLS1.3\""),
                             (["--tls-cipher-suites", "nosuch"], "--tls-min-version, --tls-cipher-suites: "),
                             (["--record-max-bytes", "1"], "want a size from 1048576 to 1099511627776 bytes, such as 64Mi"),
                             (["--model-server-metrics-path", "x"], "want a path such as /metrics"),
                             (["--grpc-port", "65536"], "--grpc-port: want a whole number from 0 to 65535, got \"65536\""),
                             (["--metrics-port", "-1"], "--metrics-port: want a whole number from 0 to 65535, got \"-1\""),
                             (["--endpoint-target-ports", "8000,x"], "want a whole number from 0 to 65535, got \"x\""),
                             (["--feature-gates", "nosuchgate=true"],
                              "--feature-gates: want flowControl or haPopulateNonLeaderDatastore, each alone or with =true or =false, got "),
                             (["--peers", "h", "--peer-port", "0"], "--peers: \"h\": want HOST:PORT, as --peer-port 0 is another")):
            done = run("epp", "-f", "x", *args)
            self.assertEqual(done.returncode, 2, done)
            self.assertIn(wanted, done.stderr, args)

    # ---- Descriptions of what can be set.

    def test_the_documents_say_what_the_program_takes(self):
        printed = run("reference").stdout
        with open(os.path.join(SOURCE, "docs", "reference.md"), encoding="utf-8") as file:
            self.assertEqual(file.read(), printed, "build/release/fairway reference > docs/reference.md")
        with open(os.path.join(SOURCE, "docs", "man", "fairway.1"), encoding="utf-8") as file:
            manual = file.read()
        self.assertIn(run("reference", "--man").stdout, manual, "put `fairway reference --man` below .SH FLAGS")
        # The tables with more to say name every setting and give the same defaults.
        rows = dict(re.findall(r"^\| `([^`|]+)` \|[^|]*\| (?:`([^`|]*)`)?", printed.split("## The module inside Envoy")[1].split("\n## ")[0],
                               re.MULTILINE))
        with open(os.path.join(SOURCE, "docs", "envoy-module.md"), encoding="utf-8") as file:
            told = file.read()
        for name in rows:
            self.assertIn(f"`{name}`", told)

    # ---- Two of the same.

    def test_an_empty_value_is_one_and_takes_nothing_else(self):
        done = run("epp", "--pool-name=", "--endpoint-selector=", "--pool-group=", "--tls-cipher-suites=")
        self.assertEqual(done.returncode, 2, done)
        self.assertIn("nothing to serve", done.stderr)
        self.assertEqual(run("epp", "--grpc-port=", "--pool-name", "x").returncode, 2)

    def test_the_last_of_two_holds_and_lists_go_on(self):
        server = self.serve("--log-format=json", "--log-format=text")
        server.await_line("serving")
        self.assertEqual(server.stop(), 0)
        self.assertFalse([line for line in server.lines if line.startswith("{")])
        config = self.write("config", "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\n"
                                      "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n")
        for ports, code, text in ((["80", "--endpoint-target-ports=81,82"], 0, "serving"),
                                  (["1,2,3,4", "--endpoint-target-ports=5,6,7,8,9"], 1, "at most 8 target ports"),
                                  (["80", "81"], 2, "not expected: 81")):
            server = Server("--kubeconfig", "nowhere", "--kubeconfig", config, "--endpoint-selector", "a=b",
                            "--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--endpoint-target-ports", *ports)
            self.addCleanup(lambda at=server: at.process.poll() is None and at.stop())
            if code == 0:
                server.await_line(text)
                self.assertEqual(server.stop(), 0)
            else:
                self.assertEqual(server.process.wait(PATIENCE), code)
                server.await_line(text)

    def test_replay_compares_policies_and_repeats_itself(self):
        args = ["replay", "--workload", os.path.join(EXAMPLES, "workloads", "unique.yaml"), "--duration", "20s",
                "--policy", "fairway,tolerance=0,round-robin", "--policy", "oracle", "--json", "-"]
        done = run(*args)
        self.assertEqual(done.returncode, 0, done)
        rows = json.loads(done.stdout)["rows"]
        self.assertEqual([row["policy"] for row in rows], ["fairway,tolerance=0", "round-robin", "oracle"])
        self.assertEqual(done.stdout, run(*args).stdout)
        for policy, fleet, code in (("fairwy", "8", 2), ("fairway", "8,x=1", 1), ("fairway", "no.yaml", 1)):
            self.assertEqual(run(*args, "--policy", policy, "--fleet", fleet).returncode, code)

    def test_replay_writes_a_picture_and_says_early_where_it_cannot(self):
        args = ["replay", "--workload", os.path.join(EXAMPLES, "workloads", "priorities.yaml"), "--duration", "5s"]
        picture = os.path.join(self.folder, "out.svg")
        done = run(*args, "--policy", "fairway,tolerance=0,round-robin", "--plot", picture)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        drawn = xml.dom.minidom.parse(picture)
        texts = [node.firstChild.data for node in drawn.getElementsByTagName("text")]
        for text in ("fairway,tolerance=0", "round-robin", "critical", "sheddable", "time to the first token"):
            self.assertIn(text, texts)
        self.assertEqual(len(drawn.getElementsByTagName("rect")), 1 + 2 * 3 * 3 * 3)  # of policies, rows, panels, bars
        for flag in ("--plot", "--json"):
            done = run(*args, "--duration", "30m", flag, os.path.join(self.folder, "nowhere", "out"))
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(f"fairway replay: {flag}: {self.folder}/nowhere/out cannot be written", done.stderr)

    @unittest.skipIf(SANITIZED == "thread", "a replay has one thread, and takes minutes so")
    def test_what_the_page_on_replays_shows_works_as_it_is_written(self):
        with open(os.path.join(SOURCE, "docs", "replay.md"), encoding="utf-8") as file:
            page = file.read()
        files = re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, re.S)
        self.assertEqual([name for name, _ in files], ["mine.yaml", "trace.jsonl", "fleet.yaml"])
        for name, text in files:
            self.write(name, text)
        os.symlink(EXAMPLES, os.path.join(self.folder, "examples"))
        commands = re.findall(r"^    (fairway replay .*)$", page, re.M)
        self.assertGreater(len(commands), 8)
        path = os.path.dirname(FAIRWAY) + ":" + os.environ["PATH"]
        for command in commands:
            done = subprocess.run(command, shell=True, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE,
                                  env={**os.environ, "PATH": path}, check=False)
            self.assertEqual(done.returncode, 0, (command, done))
            self.assertRegex(done.stdout, r"round-robin|least-requests|oracle|p90", command)
            self.assertNotIn("requests will fail", done.stderr, command)
        shown = re.search(r"```\n(unique: .*?)```", page, re.S).group(1)
        self.assertEqual(run("replay", "--workload", os.path.join(EXAMPLES, "workloads", "unique.yaml")).stdout.split("|")[0],
                         shown.split("|")[0])

    def test_each_example_workload_can_be_replayed(self):
        folder = os.path.join(EXAMPLES, "workloads")
        for name in sorted(os.listdir(folder)):
            if name.endswith(".yaml"):
                done = run("replay", "--workload", os.path.join(folder, name), "--policy", "fairway", "--duration", "5s")
                self.assertEqual((done.returncode, done.stderr), (0, ""), name)

    def test_ways_to_say_what_epp_serves(self):
        nowhere = dict(os.environ, HOME=self.folder)
        for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
            nowhere.pop(name, None)
        for args, code, text in (
                ([], 2, "nothing to serve"),
                (["--pool-name", "a", "--endpoint-selector", "b=c"], 2, "give one of --pool-name"),
                (["--pool-name", "a", "--all-pools"], 2, "give one of --pool-name"),
                (["--pool-name", "a", "--pool-group", "apps"], 2, "inference.networking.k8s.io"),
                (["--pool-name", "a"], 3, "no way to the Kubernetes API"),
                (["--pool-name", "a", "--kubeconfig", os.path.join(self.folder, "gone")], 3, "gone: No such file")):
            done = subprocess.run([FAIRWAY, "epp", *args], capture_output=True, text=True, timeout=PATIENCE, env=nowhere,
                                  check=False)
            self.assertEqual(done.returncode, code, (args, done))
            self.assertIn(text, done.stderr + done.stdout, args)

    # ---- check.

    def test_check_names_file_line_field_and_the_fix(self):
        files = [os.path.join(EXAMPLES, f"intro-{name}.yaml") for name in ("model", "pool", "route")]
        done = run("check", *files)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r'intro-route\.yaml:\d+: HTTPRoute default/llm-route: '
                                      r'spec\.rules\[0\]\.backendRefs\[0\]\.name: .*"vllm-llama2-7b".*'
                                      r'did you mean "vllm-llama2-7b-pool"\?')

    def test_check_prints_what_would_be_served(self):
        for example in ("intro-fixed", "criticality", "two-pools", "objectives"):
            done = run("check", "-f", os.path.join(EXAMPLES, example))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("InferencePool", done.stdout)
        self.assertIn("weight 75, 75 %", run("check", "-f", os.path.join(EXAMPLES, "intro-fixed")).stdout)

    def test_check_reads_an_endpoint_picker_config(self):
        folder = os.path.join(EXAMPLES, "endpoint-picker-config")
        for name in sorted(os.listdir(folder)):
            done = run("check", "--allow-experimental-plugins", "--config-file", os.path.join(folder, name))
            self.assertEqual(done.returncode, 0, (name, done.stderr))
            self.assertIn("schedulingProfiles:\n", done.stdout)
            self.assertNotRegex(done.stdout, r"1e\+?09|: *\"\"$")
            # What is printed is a config that says the same.
            again = run("config", "print", "--allow-experimental-plugins", "--config-file", self.write("again.yaml", done.stdout))
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual(re.sub(" *#.*", "", again.stdout), re.sub(" *#.*", "", done.stdout), name)
            self.assertNotIn("deprecated; use \"llm-d.ai/v1\"", done.stderr)
        bad = self.write("config.yaml", "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorer}]\n"
                                        "schedulingProfiles: [{name: p, plugins: [{pluginRef: queue-score}]}]\n")
        done = run("check", "-f", os.path.join(EXAMPLES, "intro-fixed"), "--config-file", bad)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r'config\.yaml:4: EndpointPickerConfig: schedulingProfiles\[0\]\.plugins\[0\]\.pluginRef: '
                                      r'no "queue-score" among plugins; did you mean "queue-scorer"\?')
        self.assertEqual(done.stdout, "")

    def test_configs_are_printed_from_text_and_from_a_folder(self):
        head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"
        for command in (["check"], ["config", "print"]):
            done = run(*command, "--config-text", head + "plugins: [{type: load-aware-scorer}]\n")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("    threshold: 128  # default\n", done.stdout)
            self.assertIn("- type: max-score-picker  # filled in\n", done.stdout)
        folder = os.path.join(self.folder, "pools")
        os.mkdir(folder)
        for name, plugin in (("a.one.yaml", "queue-scorer"), ("a.two.yaml", "random-picker")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(head + f"plugins: [{{type: {plugin}}}]\n")
        done = run("check", "--config-dir", folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"(?s)^# of pool a/one\n.*queue-scorer.*\n---\n# of pool a/two\n.*random-picker")
        with open(os.path.join(folder, "a.three.yaml"), "w", encoding="utf-8") as file:
            file.write(head + "plugins: [{type: queue-scor}]\n")
        done = run("config", "print", "--config-dir", folder)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn('did you mean "queue-scorer"?', done.stderr)

    def test_nothing_of_a_file_or_its_name_reaches_the_terminal_as_a_command(self):
        head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n"
        escape, csi = "\x1b[31mX", "\u009b2J"
        folder = os.path.join(self.folder, "escapes")
        os.mkdir(folder)
        named = os.path.join(folder, f"a.{escape}\n# of pool forged.yaml")
        with open(named, "w", encoding="utf-8") as file:
            file.write(head + 'plugins: [{type: queue-scorer, name: "n\\e[32m\\u009b1J"}]\n')
        with open(os.path.join(folder, f"not-a-pool{csi}.yaml"), "w", encoding="utf-8") as file:
            file.write(head + 'plugins: [{type: "queue-scor\\e[32m", name: "\\u009b1J"}]\n')
        manifest = self.write("pool.yaml", 'kind: "Inference\\e[31mPool"\napiVersion: "\\u009b2J"\nmetadata: {name: "\\x07"}\n')
        for command in (["check", "--config-dir", folder], ["config", "print", "--config-dir", folder],
                        ["check", "--config-file", named], ["config", "print", "--config-file", named],
                        ["explain", "--config", named, "--fleet", manifest], ["check", "-f", manifest],
                        ["replay", "--workload", named], ["check", "-f", named]):
            done = run(*command)
            for text in (done.stdout, done.stderr):
                self.assertIsNone(re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), (command, text))
                self.assertNotRegex(text, r"(?m)^# of pool forged", command)

    def test_check_says_which_parsers_are_on(self):
        head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorer}]\n"
        done = run("check", "--config-file", self.write("default.yaml", head))
        self.assertIn("parsers: openai-parser, anthropic-parser, vllmhttp-parser, sglanghttp-parser, passthrough-parser\n", done.stdout)
        listed = self.write("listed.yaml", head + "requestHandler: {parsers: [{pluginRef: vllmgrpc-parser}, {pluginRef: passthrough-parser}]}\n")
        done = run("check", "-f", os.path.join(EXAMPLES, "intro-fixed"), "--config-file", listed)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("parsers: vllmgrpc-parser, passthrough-parser\n", done.stdout)
        self.assertIn("spec.appProtocol: is http, and the config's vllmgrpc-parser reads gRPC: want kubernetes.io/h2c", done.stderr)
        wrong = self.write("wrong.yaml", head + "requestHandler: {parsers: [{pluginRef: queue-scorer}]}\n")
        done = run("check", "--config-file", wrong)
        self.assertEqual(done.returncode, 1)
        self.assertIn("wrong.yaml:4: config: requestHandler.parsers[0].pluginRef: plugin queue-scorer is no parser, but a queue-scorer", done.stderr)

    def test_check_reports_all_errors_at_once(self):
        path = self.write("bad.yaml", "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: p}\n"
                                      "spec:\n  selector: {matchLabels: {a: b}}\n  targetPorts: [{number: 0}, {nummer: 1}]\n"
                                      "  endpointPickerRef: {name: e, port: {number: 1}, failureMode: FailOpn}\n")
        done = run("check", path)
        self.assertEqual(done.returncode, 1)
        self.assertGreaterEqual(len(re.findall(r"bad\.yaml:\d+", done.stderr)), 3, done.stderr)
        self.assertIn('FailOpen', done.stderr)

    def test_check_reports_all_errors_of_a_config_at_once(self):
        done = run("check", "--config-file", self.write("typed.yaml", """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: quue-scorer
- type: max-score-picker
  parameters: {maxNumOfEndpoints: two}
- type: kv-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    wieght: 2
"""))
        self.assertEqual(done.returncode, 1)
        lines = [line.split("typed.yaml:")[-1] for line in done.stderr.splitlines()]
        self.assertEqual(lines, [
            '4: plugin quue-scorer: type: there is no plugin type "quue-scorer"; did you mean "queue-scorer"?',
            '6: plugin max-score-picker: parameters.maxNumOfEndpoints: want a whole number, got the string "two"',
            '7: plugin kv-cache-scorer: type: there is no plugin type "kv-cache-scorer"; did you mean "kv-cache-utilization-scorer"?',
            '11: EndpointPickerConfig: schedulingProfiles[0].plugins[0].pluginRef: no "queue-scorer" among plugins; there is "quue-scorer", '
            'whose type is wrong',
            '12: EndpointPickerConfig: schedulingProfiles[0].plugins[0].wieght: unknown field; did you mean "weight"?',
            '5 errors, 0 warnings: nothing would be served.'])

    def test_check_reads_standard_input_and_says_when_a_file_is_missing(self):
        pool = {"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "p"},
             "spec": {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 8000}],
                      "endpointPickerRef": {"name": "e", "port": {"number": 9002}}}}]}
        done = run("check", "-f", "-", stdin=json.dumps(pool))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("default/p", done.stdout)
        done = run("check", "-f", os.path.join(self.folder, "nothing.yaml"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing.yaml", done.stderr)

    # ---- epp.

    def test_epp_serves_and_ends_with_0(self):
        server = self.serve()
        line = server.await_line("serving")
        port = int(re.search(r"metrics=127\.0\.0\.1:(\d+)", line).group(1))
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).read().decode()
        self.assertIn('inference_pool_ready_pods{name="llama-pool",namespace="default"} 0', page)
        self.assertIn("llm_d_epp_info", page)
        fleet = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/fleet", timeout=PATIENCE))
        self.assertEqual(fleet["pools"][0]["endpoints"][0]["address"], "127.0.0.1:9")
        self.assertEqual(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE).status, 200)
        self.assertEqual(server.stop(), 0)

    def test_decisions_are_kept_on_request(self):
        for flags, status in ((["--debug-decisions", "16"], 200), ([], 404)):
            server = self.serve(*flags)
            port = re.search(r"metrics=127\.0\.0\.1:(\d+)", server.await_line("serving")).group(1)
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/decisions", timeout=PATIENCE)
                self.assertEqual((page.status, json.load(page)), (status, {"decisions": []}))
            except urllib.error.HTTPError as error:
                self.assertEqual(error.code, status)
            self.assertEqual(server.stop(), 0)

    def test_flags_of_the_reference_are_taken_with_a_warning(self):
        server = self.serve("--tracing=false", "-v", "3", "--zap-encoder", "json", "--enable-pprof=true",
                            "--pool-group", "inference.networking.k8s.io", "--ha-enable-leader-election",
                            "--pool-name", "llama-pool", "--refresh-metrics-interval", "100ms", "--secure-serving=true",
                            "--tls-min-version", "VersionTLS13", "--health-checking", "--grpc-max-recv-msg-size", "10MiB")
        for flag in ("--tracing", "-v", "--zap-encoder", "--ha-enable-leader-election"):
            server.await_line(f"warning: {flag}.* has no effect: ")
        server.await_line("serving")
        self.assertEqual(server.stop(), 0)

    def test_a_replica_keeps_its_name_over_a_restart_in_its_pod(self):
        with LeaseServer() as api:
            self.addCleanup(api.shutdown)
            config = self.write("config", "current-context: c\ncontexts: [{name: c, context: {cluster: c}}]\n"
                                          "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:%d'}}]\n"
                                          % api.server_address[1])
            names = []
            for uid in ("8d1f", "8d1f", "77aa", "", ""):
                server = Server("--kubeconfig", config, "--pool-name", "p", "--ha-enable-leader-election", "--grpc-port=0",
                                "--grpc-health-port=0", "--metrics-port=0", env={"POD_UID": uid})
                try:
                    names.append(api.holders.get(timeout=PATIENCE))
                finally:
                    server.process.kill()
                    server.stop()
                while not api.holders.empty():
                    api.holders.get()
        self.assertEqual(names[0], names[1])
        self.assertTrue(names[0].endswith("_8d1f"), names)
        self.assertEqual(len(set(names[1:])), 4, names)

    def test_a_pool_name_that_is_not_there_is_1(self):
        path = self.write("pool.yaml", POOL)
        done = run("epp", "-f", path, "--pool-name", "lama-pool")
        self.assertEqual(done.returncode, 1)
        self.assertIn("did you mean default/llama-pool?", done.stderr)

    def test_what_keeps_it_from_starting_is_3(self):
        path = self.write("pool.yaml", POOL)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            for flags in (["--metrics-port", port, "--grpc-port", "0", "--grpc-health-port", "0"],
                          ["--grpc-port", port, "--grpc-health-port", "0", "--metrics-port", "0"]):
                done = run("epp", "-f", path, *flags)
                self.assertEqual(done.returncode, 3, (flags, done))
                self.assertIn(port, done.stderr)
        done = run("epp", "-f", path, "--cert-path", self.folder, "--grpc-port", "0", "--grpc-health-port", "0",
                   "--metrics-port", "0")
        self.assertEqual(done.returncode, 3)
        self.assertIn("tls.crt", done.stderr)

    def test_broken_manifests_at_the_start_are_1(self):
        path = self.write("pool.yaml", POOL.replace("targetPorts", "targetPort"))
        done = run("epp", "-f", path)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"pool\.yaml:6.*targetPort.*targetPorts")

    def test_a_change_is_taken_over_and_a_broken_one_is_not(self):
        pool = self.write("pool.yaml", POOL)
        endpoints = self.write("endpoints.yaml", ENDPOINTS % 9)
        server = self.serve(files=[pool, endpoints])
        port = re.search(r"metrics=127\.0\.0\.1:(\d+)", server.await_line("serving")).group(1)

        def addresses():
            fleet = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/fleet", timeout=PATIENCE))
            return [e["address"] for e in fleet["pools"][0]["endpoints"]]

        self.write("endpoints.yaml", ENDPOINTS % 10)
        server.await_line("manifests changed")
        self.assertEqual(addresses(), ["127.0.0.1:10"])
        self.write("endpoints.yaml", "endpoints:\n- {name: a, adress: 127.0.0.1}\n")
        server.await_line(r"endpoints\.yaml:2.*adress.*address")
        server.await_line("what was served before is served on")
        self.assertEqual(addresses(), ["127.0.0.1:10"])
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).read().decode()
        self.assertIn('fairway_config_reloads_total{outcome="applied"} 1', page)
        self.assertIn('fairway_config_reloads_total{outcome="refused"} 1', page)
        self.assertEqual(server.stop(), 0)

    def test_json_log_lines_are_json(self):
        server = self.serve("--log-format", "json")
        server.await_line("serving")
        self.assertEqual(server.stop(), 0)
        for line in server.lines:
            entry = json.loads(line)
            self.assertTrue({"time", "level", "msg"} <= entry.keys(), line)

    # ---- up.

    def test_the_printed_envoy_configuration_asks_the_named_picker(self):
        done = run("up", "--endpoint", "127.0.0.1:9", "--picker", "127.0.0.2:4567", "--print-envoy-config")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('"port_value": 4567', done.stdout)
        self.assertIn('"127.0.0.2"', done.stdout)

    def test_without_envoy_it_says_how_to_get_one(self):
        done = run("up", "--endpoint", "127.0.0.1:9", env={"PATH": "/nowhere", "HOME": self.folder, "XDG_CACHE_HOME": self.folder})
        self.assertEqual(done.returncode, 3)
        self.assertRegex(done.stderr, "(?i)envoy")
        self.assertIn("get-envoy", done.stderr)


STATE = """
endpoints: [{name: a, address: "10.0.0.1:8000"}, {name: b, address: "10.0.0.2:8000", labels: {zone: x}}]
columns: {requests: [5, 1], work: [480, 80], prefill: [10, 10], queue: [5, 1], kv-usage: [0.3, 0.7]}
request: {promptTokens: 25}
"""
CONFIG = """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins: [{type: kv-cache-utilization-scorer}, {type: max-score-picker}]
schedulingProfiles:
- name: default
  plugins: [{pluginRef: kv-cache-utilization-scorer, weight: 2}, {pluginRef: max-score-picker}]
"""


class Explaining(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.state = self.write("state.yaml", STATE)

    def write(self, name, text):
        path = os.path.join(self.folder.name, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def explain(self, *args):
        done = run("explain", "--fleet", self.state, *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_a_picture_by_hand_is_decided_and_explained(self):
        text = self.explain()
        self.assertIn("picked b 10.0.0.2:8000, then a", text)
        self.assertRegex(text, r"why: b won; a was next: .*time-to-first-token-scorer decided.*work 80 against 480")
        decision = json.loads(self.explain("--format", "json"))
        self.assertEqual(decision["endpoints"], ["10.0.0.2:8000", "10.0.0.1:8000"])
        self.assertEqual(decision["profiles"][0]["runnerUp"]["address"], "10.0.0.1:8000")
        page = self.explain("--format", "html")
        self.assertTrue(page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n"))

    def test_what_it_prints_can_be_asked_again(self):
        printed = self.explain("--format", "json")
        text = self.explain()
        self.state = self.write("again.json", printed)
        self.assertEqual(self.explain(), text)
        self.state = self.write("page.json", '{"decisions": [%s]}' % printed)
        self.assertEqual(self.explain(), text)

    def test_another_config_parameter_or_body(self):
        text = self.explain("--config", self.write("config.yaml", CONFIG))
        self.assertIn("picked a", text)
        self.assertIn("kv-cache-utilization-scorer: weight 2: a 0.7 b 0.3", text)
        self.assertIn("own prompt", self.explain("--policy", "fairway-lmetric"))
        body = self.write("body.json", json.dumps({"model": "m", "prompt": "x" * 1000, "stream": True}))
        self.assertIn("prefill", json.loads(self.explain("--request", body, "--format", "json"))["picture"]["columns"])
        self.assertIn("100 ms", self.explain("--request", body))  # ten times the prompt

    def test_one_that_a_config_decided_says_so(self):
        record = json.dumps({"config": "its own", "declared": True, "model": "m", "targetModel": "m",
                             "picture": json.loads(self.explain("--format", "json"))["picture"]})
        path = self.write("own.json", record)
        done = run("explain", "--fleet", path)
        self.assertIn("an EndpointPickerConfig decided this one", done.stderr)
        self.assertIn("give --config FILE", done.stderr)
        self.assertRegex(done.stdout, r"^a request model m \(critical\): picked b ")
        done = run("explain", "--fleet", path, "--config", self.write("config.yaml", CONFIG))
        self.assertEqual((done.returncode, done.stderr), (0, "fairway explain: the state has no column page-queue: it is taken to be 0\n"
                                                          * ("page-queue" in done.stderr)))

    def test_what_is_wrong_is_said(self):
        for args, code, message in (
                (["--fleet", self.write("x.yaml", "a: 1")], 1, "there is no picture"),
                (["--fleet", "/nowhere.json"], 1, "no such file"),
                (["--fleet", self.state, "--request-id", "r-1"], 1, 'there is no decision of request "r-1"'),
                (["--fleet", self.state, "--policy", "nobody"], 2, "nobody"),
                (["--fleet", self.write("y.yaml", STATE.replace("[5, 1]", "[5]"))], 1, "want 2 numbers, one for each endpoint"),
                (["--fleet", self.state, "--config", self.write("c.yaml", CONFIG.replace("weight: 2", "weight: x"))], 1, "weight"),
                (["--fleet", self.state, "--request", self.write("b.json", "{")], 1, "b.json: ")):
            done = run("explain", *args)
            self.assertEqual(done.returncode, code, (args, done.stderr))
            self.assertIn(message, done.stderr)
        done = run("replay", "--from-decisions", self.state)
        self.assertEqual(done.returncode, 1)
        self.assertIn("want one JSON object a line", done.stderr + "want one JSON object a line" * ("not valid JSON" in done.stderr))
        self.assertEqual(run("replay").returncode, 2)
        done = run("replay", "--from-decisions", "/nowhere.jsonl")
        self.assertEqual((done.returncode, done.stdout), (1, ""), "nothing was compared")
        self.assertIn("/nowhere.jsonl: ", done.stderr)

    def test_a_replay_says_what_a_config_reads_that_it_has_not(self):
        text = """apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: core-metrics-extractor
  parameters: {engineConfigs: [{name: vllm, customMetrics: [{attributeKey: Heat, metricSpec: heat}]}]}
- type: endpoint-attribute-scorer
  name: cool
  parameters: {attributeKey: Heat, algorithm: {type: linear_lower_is_better}}
- type: precise-prefix-cache-producer
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- {type: token-producer, parameters: {vllm: {}}}
schedulingProfiles: [{name: default, plugins: [{pluginRef: cool}, {pluginRef: prefix-cache-scorer}]}]
"""
        workload = ["--workload", os.path.join(EXAMPLES, "workloads", "unique.yaml"), "--requests", "100", "--policy", "fairway"]
        done = run("replay", *workload, "--config", self.write("heat.yaml", text))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"(?m)heat\.yaml: warning: a replay has no custom metrics \(read by cool\), no KV events and no "
                                      r"tokens \(read by precise-prefix-cache-producer: prompts are compared by their text\)$")
        done = run("replay", *workload, "--config", self.write("queue.yaml", CONFIG))
        self.assertNotIn("a replay has no", done.stderr)

    def test_a_workload_is_replayed_by_configs(self):
        workload = ["--workload", os.path.join(EXAMPLES, "workloads", "unique.yaml"), "--requests", "300", "--policy", "fairway"]
        queue = self.write("queue.yaml", CONFIG)
        drawn = self.write("drawn.yaml", "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins: [{type: random-picker}]\n")
        done = run("replay", *workload, "--config", queue, "--config", drawn, "--json", "-")
        self.assertEqual(done.returncode, 0, done.stderr)
        ttft = {row["policy"]: row["firstToken"]["mean"] if "firstToken" in row else row for row in json.loads(done.stdout)["rows"]}
        self.assertEqual(list(ttft), ["fairway", "queue.yaml", "drawn.yaml"])
        self.assertEqual(len(set(map(str, ttft.values()))), 3)
        broken = run("replay", *workload, "--config", self.write("broken.yaml", CONFIG.replace("weight: 2", "weight: x")))
        self.assertEqual(broken.returncode, 1)
        self.assertIn("weight", broken.stderr)


if __name__ == "__main__":
    unittest.main()
