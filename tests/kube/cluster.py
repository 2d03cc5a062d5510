"""A Kubernetes API server for the scenarios: real kube-apiserver and etcd, on loopback, ended with their test.

Environment: FAIRWAY_KUBE, the folder with both (tools/get-kube builds them and prints it); FAIRWAY_BINARY, FAIRWAY_ENVOY.
Only the API server runs: no kubelet, no controllers. So Pods are created and made ready by hand, with addresses of
127.0.0.0/8, which need no set-up.
"""

import base64
import glob
import http.client
import json
import os
import pathlib
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "envoy"))
import support  # noqa: E402
from support import FAIRWAY, Process, await_that, free_ports  # noqa: E402

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
SKIPPED = 77

V1 = "/apis/inference.networking.k8s.io/v1"
X = "/apis/inference.networking.x-k8s.io/v1alpha2"


def kube_folder():
    folder = os.environ.get("FAIRWAY_KUBE", "")
    if not folder:
        found = subprocess.run([ROOT / "tools/get-kube", "--print"], capture_output=True, text=True, check=False)
        folder = found.stdout.strip()
    if not folder:
        print("skipped: kube-apiserver and etcd are not built; tools/get-kube builds them (it needs Go)")
        sys.exit(SKIPPED)
    return folder


def envoy_binary():
    found = support.ENVOY or subprocess.run([ROOT / "tools/get-envoy"], capture_output=True, text=True,
                                            check=False).stdout.strip()
    assert found, "no Envoy: run tools/get-envoy"
    return found


class Api:
    """Calls over one kept-alive connection. Used from one thread."""

    def __init__(self, port, ca, token=""):
        self.port, self.token = port, token
        self.context = ssl.create_default_context(cafile=ca)
        self.connection = None

    def call(self, method, path, body=None, kind=JSON, timeout=30):
        headers = {"accept": JSON, "content-type": kind}
        if self.token:
            headers["authorization"] = "Bearer " + self.token
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context, timeout=timeout)
            try:
                self.connection.request(method, path, body, headers)
                answer = self.connection.getresponse()
                data = answer.read()
                break
            except (http.client.HTTPException, OSError):
                self.connection.close()
                self.connection = None
                if attempt == 2:
                    raise
        return answer.status, json.loads(data) if data[:1] == b"{" else data.decode(errors="replace")

    def must(self, method, path, body=None, kind=JSON):
        status, answer = self.call(method, path, body, kind)
        assert status < 300, (method, path, status, answer)
        return answer

    def apply(self, path, text):
        """Server-side apply, as `kubectl apply --server-side` does it. `path` with the object's name."""
        return self.must("PATCH", path + "?fieldManager=test&force=true", text if isinstance(text, str) else json.dumps(text),
                         APPLY)

    def moved(self, port):
        self.close()
        self.port = port

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


class Cluster:
    """etcd and kube-apiserver. `stop_server` and `start_server` keep address, data and keys."""

    def __init__(self, *server_args):
        self.bin = kube_folder()
        self.folder = tempfile.mkdtemp(prefix="fairway-kube-test-")
        self.server_args = server_args
        self.etcd = self.server = None
        self.make_keys()
        for attempt in (1, 2, 3):  # another process may take a port between its choice and its use
            self.etcd_port, self.port = free_ports(2)
            try:
                self.start_etcd()
                self.start_server()
                break
            except AssertionError:
                self.end_processes()
                if attempt == 3:
                    raise
                shutil.rmtree(self.path("etcd"), ignore_errors=True)
        self.api = Api(self.port, self.path("ca.crt"), self.admin_token)

    def path(self, name):
        return os.path.join(self.folder, name)

    def make_keys(self):
        def openssl(*args, text=None):
            subprocess.run(["openssl", *args], check=True, capture_output=True, input=text, text=True)

        def key(name):
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.path(name))

        key("ca.key")
        openssl("req", "-x509", "-new", "-key", self.path("ca.key"), "-subj", "/CN=test-ca", "-days", "2", "-out",
                self.path("ca.crt"), "-addext", "basicConstraints=critical,CA:TRUE", "-addext",
                "keyUsage=critical,keyCertSign")

        def sign(name, subject, extensions):
            key(name + ".key")
            openssl("req", "-new", "-key", self.path(name + ".key"), "-subj", subject, "-out", self.path(name + ".csr"))
            with open(self.path(name + ".ext"), "w") as file:
                file.write(extensions)
            openssl("x509", "-req", "-in", self.path(name + ".csr"), "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"),
                    "-set_serial", "0x" + secrets.token_hex(8), "-days", "2", "-extfile", self.path(name + ".ext"), "-out",
                    self.path(name + ".crt"))

        sign("server", "/CN=kube-apiserver",
             "extendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1,IP:10.0.0.1,DNS:localhost\n")
        sign("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth\n")
        key("sa.key")
        openssl("ec", "-in", self.path("sa.key"), "-pubout", "-out", self.path("sa.pub"))
        self.admin_token = secrets.token_hex(16)
        with open(self.path("tokens.csv"), "w") as file:
            file.write(f'{self.admin_token},admin,1,"system:masters"\n')

    def start_etcd(self):
        url = f"http://127.0.0.1:{self.etcd_port}"
        self.etcd = Process([os.path.join(self.bin, "etcd"), "--name", "t", "--data-dir", self.path("etcd"),
                             "--listen-client-urls", url, "--advertise-client-urls", url,
                             "--listen-peer-urls", "http://127.0.0.1:0", "--initial-advertise-peer-urls", "http://127.0.0.1:0",
                             "--initial-cluster", "t=http://127.0.0.1:0", "--log-level", "warn", "--unsafe-no-fsync"])

        def healthy():
            assert self.etcd.process.poll() is None, "etcd ended:\n" + self.etcd.text()
            try:
                return b"true" in support.ask(self.etcd_port, "GET", "/health", timeout=2).body
            except OSError:
                return False
        # kube-apiserver would wait for etcd too, but its first retry comes a whole second later.
        await_that(healthy, lambda: "etcd is healthy\n" + self.etcd.text())

    def start_server(self):
        self.server = Process([
            os.path.join(self.bin, "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}", "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none", f"--cert-dir={self.path('certs')}",
            f"--tls-cert-file={self.path('server.crt')}", f"--tls-private-key-file={self.path('server.key')}",
            f"--client-ca-file={self.path('ca.crt')}", f"--token-auth-file={self.path('tokens.csv')}",
            "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self.path('sa.pub')}", f"--service-account-signing-key-file={self.path('sa.key')}",
            "--disable-admission-plugins=ServiceAccount", "--enable-priority-and-fairness=false", "--profiling=false", "--v=1",
            *self.server_args])
        probe = Api(self.port, self.path("ca.crt"))

        def ready():
            assert self.server.process.poll() is None, "kube-apiserver ended:\n" + self.server.text()
            try:
                return probe.call("GET", "/readyz", timeout=2)[0] == 200
            except (OSError, http.client.HTTPException):
                return False
        # On a machine that is busy with other things it took more than a minute.
        await_that(ready, lambda: "kube-apiserver is ready\n" + self.server.text(), timeout=180)
        probe.close()

    def kill_server(self):
        """As when its node is lost: no goodbye."""
        self.server.process.kill()
        self.server.process.wait()
        self.server.close()

    def start_server_on_another_port(self):
        """So that the test can talk to it and who knew it cannot."""
        self.usual_port, self.port = self.port, free_ports(1)[0]
        self.start_server()
        self.api.moved(self.port)

    def start_server_where_it_was(self):
        self.kill_server()
        self.port = self.usual_port
        self.start_server()
        self.api.moved(self.port)

    def end_processes(self):
        for process in (self.server, self.etcd):
            if process is not None and process.process.poll() is None:
                process.process.kill()  # its data go with the folder; a TERM would wait for open watches
                process.process.wait()
            if process is not None:
                process.close()
        self.server = self.etcd = None

    def close(self):
        if hasattr(self, "api"):
            self.api.close()
        self.end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- What is in it.

    def install_crds(self, *names):
        """Of crds/, all or those whose file name begins so. Returns when they can be used."""
        for path in sorted(glob.glob(str(HERE / "crds/*.yaml"))):
            if names and not os.path.basename(path).startswith(names):
                continue
            text = pathlib.Path(path).read_text()
            name = re.search(r"^  name: (\S+)", text, re.MULTILINE).group(1)
            where = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + name
            self.api.apply(where, text)

            def established(where=where):
                conditions = self.api.must("GET", where).get("status", {}).get("conditions") or []
                return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
            await_that(established, where)
            plural, group = name.split(".", 1)
            version = re.search(r"^    - name: (\S+)", text, re.MULTILINE).group(1)
            await_that(lambda: self.api.call("GET", f"/apis/{group}/{version}/{plural}")[0] == 200, name)

    def namespace(self, name):
        self.api.must("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def kubeconfig(self, user, name="kubeconfig"):
        """`user`: the body of the user, {"token": ...}. Returns the file's path."""
        with open(self.path("ca.crt"), "rb") as file:
            ca = base64.b64encode(file.read()).decode()
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "c",
                  "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{self.port}",
                                                         "certificate-authority-data": ca}}],
                  "users": [{"name": "u", "user": user}],
                  "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}
        path = self.path(name)
        with open(path, "w") as file:
            json.dump(config, file)
        return path

    def admin_config(self):
        return self.kubeconfig({"client-certificate": "admin.crt", "client-key": "admin.key"}, "admin.kubeconfig")


def pod(name, labels, annotations=None, node=""):
    """With a node it stays for its grace period when it is deleted."""
    spec = {"containers": [{"name": "server", "image": "none"}]}
    if node:
        spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "annotations": annotations or {}}, "spec": spec}


def pod_status(address, ready=True):
    return {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                       "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}


class Pods:
    """Pods of one namespace, and what a kubelet would do to them."""

    def __init__(self, api, space):
        self.api, self.path = api, f"/api/v1/namespaces/{space}/pods"

    def add(self, name, address, labels, annotations=None, node="", ready=True):
        self.api.must("POST", self.path, pod(name, labels, annotations, node))
        self.set(name, address, ready)

    def set(self, name, address, ready=True):
        self.api.must("PATCH", f"{self.path}/{name}/status", pod_status(address, ready), MERGE)

    def patch(self, name, change):
        self.api.must("PATCH", f"{self.path}/{name}", change, MERGE)

    def delete(self, name, grace=None):
        query = "" if grace is None else f"?gracePeriodSeconds={grace}"
        self.api.must("DELETE", f"{self.path}/{name}{query}")


class Epp(Process):
    """`fairway epp` on free ports; serves when the constructor returns, synced or not."""

    def __init__(self, kubeconfig, *args, interval="50ms", env=None, wait=True, grpc_port=0):
        super().__init__([FAIRWAY, "epp", "--kubeconfig", kubeconfig, "--grpc-port", str(grpc_port), "--grpc-health-port", "0",
                          "--metrics-port", "0", "--secure-serving=false", "--refresh-metrics-interval", interval,
                          "--drain-timeout", "1s", *args], env=env)
        if wait:
            self.read_ports()

    def read_ports(self):
        line = self.await_logged("serving ext_proc=")[0]
        self.grpc = int(re.search(r"ext_proc=(\d+)", line).group(1))
        self.metrics_port = int(re.search(r"metrics=\S+:(\d+)", line).group(1))

    def await_synced(self):
        return self.await_logged("synced with the API server")[0]

    def addresses(self):
        """Of the endpoints that it knows, in all pools."""
        fleet = json.loads(support.ask(self.metrics_port, "GET", "/debug/fleet").body)
        return sorted(e["address"] for p in fleet["pools"] for e in p["endpoints"])

    def await_addresses(self, *wanted):
        wanted = sorted(wanted)
        await_that(lambda: self.addresses() == wanted, lambda: f"{wanted}, have {self.addresses()}\n{self.text()}", 20)

    def metric(self, name, **labels):
        page = support.ask(self.metrics_port, "GET", "/metrics").body.decode()
        want = ",".join(f'{k}="{v}"' for k, v in labels.items())
        found = re.search(r"^" + re.escape(name + ("{" + want + "}" if want else "")) + r" (\S+)$", page, re.MULTILINE)
        return float(found.group(1)) if found else None


class Envoy(Process):
    """A gateway as the protocol describes one: ext_proc in full duplex, the upstream by the picker's header."""

    def __init__(self, folder, picker_port):
        self.port, self.admin = free_ports(2)
        path = os.path.join(folder, f"envoy-{self.port}.json")
        with open(path, "w") as file:
            json.dump(self.config(picker_port), file)
        super().__init__([envoy_binary(), "-c", path, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn"])

        def live():
            assert self.process.poll() is None, self.text()
            try:
                return support.ask(self.admin, "GET", "/ready", timeout=2).status == 200
            except OSError:
                return False
        await_that(live, lambda: "Envoy is ready\n" + self.text())

    def config(self, picker_port):
        def typed(name, **fields):
            return {"@type": "type.googleapis.com/" + name, **fields}
        core = "envoy.extensions.filters."
        ext_proc = typed(core + "http.ext_proc.v3.ExternalProcessor", failure_mode_allow=False, message_timeout="600s",
                         grpc_service={"envoy_grpc": {"cluster_name": "picker"}, "timeout": "10s"},
                         processing_mode={"request_header_mode": "SEND", "response_header_mode": "SEND",
                                          "request_body_mode": "FULL_DUPLEX_STREAMED",
                                          "response_body_mode": "FULL_DUPLEX_STREAMED",
                                          "request_trailer_mode": "SEND", "response_trailer_mode": "SEND"})
        manager = typed(core + "network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="in",
                        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                            {"match": {"prefix": "/"}, "route": {"cluster": "chosen", "timeout": "60s"}}]}]},
                        http_filters=[{"name": "ext_proc", "typed_config": ext_proc},
                                      {"name": "router", "typed_config": typed(core + "http.router.v3.Router")}])

        def at(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        http2 = typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                      explicit_http_config={"http2_protocol_options": {}})
        return {"admin": {"address": at(self.admin)}, "static_resources": {
            "listeners": [{"name": "in", "address": at(self.port), "filter_chains": [
                {"filters": [{"name": "http", "typed_config": manager}]}]}],
            "clusters": [
                {"name": "picker", "type": "STATIC", "connect_timeout": "2s",
                 "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
                 "load_assignment": {"cluster_name": "picker", "endpoints": [{"lb_endpoints": [
                     {"endpoint": {"address": at(picker_port)}}]}]}},
                {"name": "chosen", "type": "ORIGINAL_DST", "connect_timeout": "2s", "lb_policy": "CLUSTER_PROVIDED",
                 "circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000,
                                                      "max_requests": 100000}]},
                 "original_dst_lb_config": {"use_http_header": True,
                                            "http_header_name": "x-gateway-destination-endpoint"}}]}}

    def complete(self, model="llama", **more):
        return support.ask(self.port, "POST", "/v1/completions", {"model": model, "prompt": "hello", "max_tokens": 1, **more})

    def served_by(self, model="llama"):
        answer = self.complete(model)
        assert answer.status == 200, (answer, self.text())
        return answer.headers["x-served-by"]


class Servers(Process):
    """Simulated model servers at `addresses`, all on one free port. An answer's x-served-by is "ADDRESS:PORT"."""

    def __init__(self, addresses, *args, port=0, time_scale="0.05"):
        self.port = port or free_ports(1)[0]
        listen = [word for address in addresses for word in ("--listen", f"{address}:{self.port}")]
        super().__init__([FAIRWAY, "sim", "--model", "llama", "--time-scale", time_scale, *args, *listen])
        self.await_printed("^ready")

    def at(self, *addresses):
        return [f"{address}:{self.port}" for address in addresses]


class Scenario(support.Scenario):
    """One cluster for all tests of a class, each in a namespace of its own."""

    server_args = ()
    crds = ()  # prefixes of file names; None: no CRDs
    spaces = 0

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(*cls.server_args)
        cls.addClassCleanup(cls.cluster.close)
        cls.api = cls.cluster.api
        if cls.crds is not None:
            cls.cluster.install_crds(*cls.crds)

    def setUp(self):
        super().setUp()
        Scenario.spaces += 1
        self.space = self.cluster.namespace(f"test-{Scenario.spaces}")
        self.pods = Pods(self.api, self.space)

    def pool(self, port, name="pool", labels=None, **spec):
        """An InferencePool v1, made or changed."""
        ports = port if isinstance(port, list) else [port]
        self.api.apply(f"{V1}/namespaces/{self.space}/inferencepools/{name}", {
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels or {"app": name}}, "targetPorts": [{"number": p} for p in ports],
                     "endpointPickerRef": {"name": "picker", "port": {"number": 9002}}, **spec}})

    def epp(self, *args, config=None, pool="pool", **options):
        flags = ["--pool-name", pool] if pool else []
        return self.start(Epp(config or self.cluster.admin_config(), *flags, "--pool-namespace", self.space, *args, **options))

    def envoy(self, epp):
        return self.start(Envoy(self.folder, epp.grpc))

    def servers(self, addresses, *args, **options):
        return self.start(Servers(addresses, *args, **options))
