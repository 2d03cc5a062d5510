"""The chart in a real API server: installed by a real helm, and its picker started as its Pod would be, with the ServiceAccount's own token and
the rendered flags. So a right that is missing, or one too many, shows. Needs kube-apiserver and etcd (tools/get-kube) and helm (tools/get-helm).
As root in a network namespace of its own, with an address beside loopback."""
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import uuid

from chart import CHART, GATEWAY, STANDALONE, helm, merged, render, values

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "kube"))
from cluster import Cluster, Pods, kube_folder  # noqa: E402
from support import FAIRWAY, Process, ask, await_that, free_ports  # noqa: E402

# An address of this machine beside loopback; see enter_namespace.
ELSEWHERE = os.environ.get("FAIRWAY_TEST_ADDRESS")


class Chart(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)
        cls.cluster.install_crds()
        cls.install_stub("monitoring.coreos.com", "ServiceMonitor")
        cls.api = cls.cluster.api
        cls.config = cls.cluster.kubeconfig({"token": cls.cluster.admin_token}, "helm.kubeconfig")

    @classmethod
    def install_stub(cls, group, kind):
        """A kind of somebody else's, as far as it has a name."""
        plural = kind.lower() + "s"
        where = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}"
        cls.cluster.api.apply(where, {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural}, "versions": [
                {"name": "v1", "served": True, "storage": True,
                 "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}})
        await_that(lambda: cls.cluster.api.call("GET", f"/apis/{group}/v1/{plural}")[0] == 200, kind)

    def setUp(self):
        self.space = self.cluster.namespace(re.sub("[^a-z0-9]+", "-", self._testMethodName.lower())[:50].strip("-"))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def helm(self, verb, *args, **given):
        file = self.folder / "values.json"
        file.write_text(json.dumps(given.get("values", {})))
        argv = [helm(), verb, "llama", *args, "--namespace", self.space, "--kubeconfig", self.config]
        if verb != "uninstall":
            argv += ["-f", str(file)]
        env = {**os.environ, "HELM_CACHE_HOME": str(self.folder), "HELM_CONFIG_HOME": str(self.folder), "HELM_DATA_HOME": str(self.folder)}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def deployment(self):
        return self.api.must("GET", f"/apis/apps/v1/namespaces/{self.space}/deployments/llama-epp")

    def token(self, account):
        path = f"/api/v1/namespaces/{self.space}/serviceaccounts/{account}/token"
        return self.api.must("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]

    def picker(self, **flags):
        """As the Deployment that is in the API server says, on ports that are free."""
        spec = self.deployment()["spec"]["template"]["spec"]
        token = self.token(spec["serviceAccountName"])
        container = next(c for c in spec["containers"] if c["name"] == "epp")
        ports = dict(zip(("--grpc-port", "--grpc-health-port", "--metrics-port"), free_ports(3)))
        ports.update(flags)
        args = [f"{name}={ports.get(name, value)}" for name, value in (a.split("=", 1) for a in container["args"])]
        fields = {"metadata.uid": str(uuid.uuid4()), "metadata.namespace": self.space,
                  "metadata.name": "llama-epp-6d4cf56db6-x7k2p"}
        env = {e["name"]: fields[e["valueFrom"]["fieldRef"]["fieldPath"]] for e in container["env"]}
        config = self.cluster.kubeconfig({"token": token}, f"{self.space}.kubeconfig")
        picker = Process([FAIRWAY, "epp", "--kubeconfig", config, *args], env={**os.environ, **env})
        self.addCleanup(picker.close)
        picker.metrics = ports["--metrics-port"]
        picker.await_logged("serving")
        return picker

    def addresses(self, picker):
        fleet = json.loads(ask(picker.metrics, "GET", "/debug/fleet").body)
        return sorted(e["address"] for p in fleet["pools"] for e in p["endpoints"])

    def serves(self, picker, *wanted):
        await_that(lambda: self.addresses(picker) == sorted(wanted), picker.text, 20)
        await_that(lambda: ask(picker.metrics, "GET", "/readyz").status == 200, picker.text)

    def pods(self):
        pods = Pods(self.api, self.space)
        pods.add("a", "127.0.0.2", {"app": "vllm"})
        pods.add("b", "127.0.0.3", {"app": "vllm"})
        pods.add("c", "127.0.0.4", {"app": "other"})

    def test_gateway_mode(self):
        self.pods()
        self.assertIn(f"InferencePool {self.space}/llama", self.helm("install", CHART, values=GATEWAY))
        pool = self.api.must("GET", f"/apis/inference.networking.k8s.io/v1/namespaces/{self.space}/inferencepools/llama")
        self.assertEqual(pool["spec"]["endpointPickerRef"]["name"], "llama-epp")
        self.api.must("GET", f"/api/v1/namespaces/{self.space}/services/llama-epp")
        picker = self.picker()
        self.serves(picker, "127.0.0.2:8000", "127.0.0.3:8000")
        self.assertFalse(picker.logged("missing_rule"), "a right is missing:\n" + picker.text())

        # Other ports: an upgrade of the release, and the running picker follows.
        self.helm("upgrade", CHART, values=merged(GATEWAY, values("inferencePool.targetPorts", [{"number": 8001}])))
        self.serves(picker, "127.0.0.2:8001", "127.0.0.3:8001")
        self.helm("uninstall")
        status, _ = self.api.call("GET", f"/apis/apps/v1/namespaces/{self.space}/deployments/llama-epp")
        self.assertEqual(status, 404)

    def test_standalone_mode(self):
        self.pods()
        self.helm("install", CHART, values=merged(STANDALONE, values("inferenceExtension.endpointsServer.targetPorts", "8000,8001")))
        picker = self.picker()
        self.serves(picker, "127.0.0.2:8000", "127.0.0.2:8001", "127.0.0.3:8000", "127.0.0.3:8001")
        self.assertFalse(picker.logged("missing_rule"), "a right is missing:\n" + picker.text())

    def test_the_older_pool(self):
        self.pods()
        self.helm("install", CHART, values=merged(GATEWAY, values("inferencePool.apiVersion", "inference.networking.x-k8s.io/v1alpha2")))
        picker = self.picker()
        self.serves(picker, "127.0.0.2:8000", "127.0.0.3:8000")
        self.assertFalse(picker.logged("missing_rule"), "a right is missing:\n" + picker.text())

    def test_many_pools(self):
        self.pods()
        elsewhere = self.cluster.namespace(self.space + "-too")
        Pods(self.api, elsewhere).add("d", "127.0.0.5", {"app": "vllm"})
        ports = free_ports(3)
        for space, name, app, port in ((self.space, "one", "vllm", ports[0]), (self.space, "two", "other", ports[1]),
                                       (elsewhere, "three", "vllm", ports[2])):
            self.api.must("POST", f"/apis/inference.networking.k8s.io/v1/namespaces/{space}/inferencepools", {
                "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": name},
                "spec": {"selector": {"matchLabels": {"app": app}}, "targetPorts": [{"number": 8000}],
                         "endpointPickerRef": {"name": "llama-epp", "port": {"number": port}}}})
        many = values("inferenceExtension.pools", {"all": True, "ports": ports})
        self.helm("install", CHART, values=many)
        picker = self.picker()
        self.serves(picker, "127.0.0.2:8000", "127.0.0.3:8000", "127.0.0.4:8000")
        self.helm("upgrade", CHART, values=merged(many, values("inferenceExtension.pools.allNamespaces", True)))
        picker.close()  # its ports are the pools'
        everywhere = self.picker()
        self.serves(everywhere, "127.0.0.2:8000", "127.0.0.3:8000", "127.0.0.4:8000", "127.0.0.5:8000")
        for each in (picker, everywhere):
            self.assertFalse(each.logged("missing_rule"), "a right is missing:\n" + each.text())

    def test_two_replicas_of_which_one_leads(self):
        self.pods()
        self.helm("install", CHART, values=merged(GATEWAY, values("inferenceExtension.replicas", 2)))

        def leads(picker):
            return b"\nfairway_kubernetes_leading 1\n" in ask(picker.metrics, "GET", "/metrics").body
        first = self.picker()
        await_that(lambda: leads(first), first.text)
        second = self.picker()
        self.serves(second, "127.0.0.2:8000", "127.0.0.3:8000")
        self.assertFalse(leads(second), second.text())
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{self.space}/leases/epp-{self.space}-llama.llm-d.ai"
        self.assertTrue(self.api.must("GET", lease)["spec"]["holderIdentity"])
        self.assertEqual(first.terminate(), 0)
        await_that(lambda: leads(second), second.text, 10)  # the first gave the Lease back
        for picker in (first, second):
            self.assertFalse(picker.logged("missing_rule|forbidden"), "a right is missing:\n" + picker.text())

    @unittest.skipUnless(ELSEWHERE, "needs an address beside loopback: root, unshare and ip")
    def test_the_metrics_page_is_for_those_who_may(self):
        self.helm("install", CHART, values=merged(GATEWAY, values("inferenceExtension.monitoring.prometheus.enabled", True)))
        picker = self.picker()

        def read(token=None, path="/metrics", address=ELSEWHERE):
            headers = {"authorization": "Bearer " + token} if token else {}
            connection = http.client.HTTPConnection(address, picker.metrics, timeout=20)
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        self.assertEqual(read(address="127.0.0.1")[0], 200, "kubectl port-forward comes over loopback")
        self.assertEqual(read()[0], 401)
        self.assertEqual(read("nobodys")[0], 401)
        self.assertNotEqual(read(path="/readyz")[0], 401, "probes have no token")
        self.api.must("POST", f"/api/v1/namespaces/{self.space}/serviceaccounts", {"metadata": {"name": "prometheus"}})
        token = self.token("prometheus")
        self.assertEqual(read(token)[0], 403)

        # The chart's role for readers, bound.
        self.api.must("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {
            "metadata": {"name": self.space + "-prometheus"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": self.space + "-llama-epp-metrics-reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": self.space}]})
        await_that(lambda: read(token)[0] == 200, picker.text, 30)
        self.assertIn("fairway_", read(token)[1])
        self.assertEqual(read(token, "/debug/fleet")[0], 403, "the role is for /metrics")
        self.assertNotIn(token, picker.text())

        # Without the right to ask: nobody, and the log names it.
        self.api.must("DELETE", f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{self.space}-llama-epp-metrics-auth")
        picker.close()
        picker = self.picker()
        await_that(lambda: read(token)[0] == 503, picker.text)
        picker.await_logged(r'"missing_rule".*tokenreviews.*in a ClusterRole')

    def test_everything_is_as_the_server_wants_it(self):
        """Strict: a field that the API does not know is an error."""
        epp = {"replicas": 2, "tls": {"secretName": "x"}, "pluginsCustomConfig": {"default-plugins.yaml": "x"},
               "monitoring": {"prometheus": {"enabled": True}}, "sidecar": {"enabled": True}}
        for given in ({"inferenceExtension": epp}, {"inferenceExtension": merged(epp, {"enableLeaderElection": False})},
                      {"inferenceObjectives": [{"name": "high", "priority": 5}]}):
            for (kind, name), thing in render(GATEWAY, given, namespace=self.space).items():
                group, _, version = thing["apiVersion"].rpartition("/")
                plural = kind.lower() + "s" if not kind.endswith("y") else kind.lower()[:-1] + "ies"
                base = (f"/apis/{group}" if group else "/api") + "/" + version
                space = f"/namespaces/{self.space}" if "namespace" in thing["metadata"] else ""
                path = f"{base}{space}/{plural}/{name}?fieldManager=test&force=true&fieldValidation=Strict"
                status, answer = self.api.call("PATCH", path, json.dumps(thing), "application/apply-patch+yaml")
                self.assertLess(status, 300, answer)

    def test_without_a_rule_the_log_names_it(self):
        """What docs/rbac.md promises, for each rule of the Role that stands for something that is read."""
        self.pods()
        self.helm("install", CHART, values=GATEWAY)
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.space}/roles/llama-epp"
        role = self.api.must("GET", path)
        del role["metadata"]["resourceVersion"]
        picker = self.picker()
        self.serves(picker, "127.0.0.2:8000", "127.0.0.3:8000")

        def resources():
            page = ask(picker.metrics, "GET", "/metrics").body.decode()
            return set(re.findall(r'(?m)^fairway_kubernetes_objects{resource="([^"]+)"}', page))
        await_that(lambda: {"pods", "inferencepools.inference.networking.k8s.io"} <= resources(), resources)
        read = resources()
        for number, rule in enumerate(role["rules"]):
            # Of a kind that is in two groups the legacy one is read only where the other is not installed.
            groups = [g for g in rule["apiGroups"] for r in rule["resources"] if (f"{r}.{g}" if g else r) in read]
            self.assertTrue(groups, f"a right that nobody uses: {rule}")
            with self.subTest(rule=rule["resources"]):
                self.api.must("PUT", path, {**role, "rules": role["rules"][:number] + role["rules"][number + 1:]})
                picker = self.picker()
                for resource in rule["resources"]:
                    named = "|".join(map(re.escape, groups))
                    line = picker.await_logged(rf'"missing_rule".*\\"({named})\\".*\\"{resource}\\"')[0]
                    self.assertIn(f"in namespace {self.space}", line)
                picker.close()


def enter_namespace():
    """Starts this program again where an address beside loopback is ours to use. What has to be built is built before."""
    helm(), kube_folder()
    if ELSEWHERE or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return
    address = "10.88.0.1"
    script = f'ip link set lo up && ip addr add {address}/32 dev lo && exec "$@"'
    os.execvpe("unshare", ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-B", *sys.argv],
               {**os.environ, "FAIRWAY_TEST_ADDRESS": address, "FAIRWAY_HELM": helm(), "FAIRWAY_KUBE": kube_folder()})


if __name__ == "__main__":
    enter_namespace()
    unittest.main()
