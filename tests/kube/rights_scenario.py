"""What a picker may do at the API server, and as whom."""

import base64
import os
import pathlib
import re
import subprocess
import unittest

from cluster import FAIRWAY, Api, Process, Scenario, await_that

RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
         {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": ["get", "list", "watch"]}]


class Rights(Scenario):
    crds = ("inferencepools", "inferencemodels")

    def service_account(self, name):
        """Its token."""
        self.api.must("POST", f"/api/v1/namespaces/{self.space}/serviceaccounts", {"metadata": {"name": name}})
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return self.api.must("POST", f"/api/v1/namespaces/{self.space}/serviceaccounts/{name}/token", request)["status"]["token"]

    def allow(self, name, rules):
        where = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.space}"
        self.api.apply(f"{where}/roles/{name}", {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                                                 "metadata": {"name": name}, "rules": rules})
        self.api.apply(f"{where}/rolebindings/{name}", {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.space}]})

    def test_what_is_missing_is_named_and_works_once_it_is_there(self):
        self.pool(8000)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        token = self.service_account("picker")
        epp = self.epp(config=self.cluster.kubeconfig({"token": token}))
        missing = r'missing_rule=.*apiGroups: \[.*{}.*\], resources: \[.*{}.*\], verbs: \[.*{}.*\], in namespace ' + self.space
        epp.await_logged(missing.format("", "pods", "list"))
        epp.await_logged(missing.format("inference.networking.k8s.io", "inferencepools", "list"))
        self.assertEqual(len(epp.logged("resources: .*pods")), 1, epp.text())
        # The right to list alone is not enough, and that is said too.
        self.allow("picker", [{**rule, "verbs": ["list"]} for rule in RULES])
        epp.await_logged(missing.format("", "pods", "watch"))
        # What the reference's charts allow is enough: the older group's kinds are done without.
        self.allow("picker", RULES)
        epp.await_addresses("127.0.0.2:8000")
        epp.await_logged("RBAC does not allow to read an optional resource.*inferencemodels")
        self.pods.add("b", "127.0.0.3", {"app": "pool"})
        epp.await_addresses("127.0.0.2:8000", "127.0.0.3:8000")
        # Nor is it waited for, when the rest is there at once.
        again = self.epp(config=self.cluster.kubeconfig({"token": token}, "again"))
        line = again.await_logged(r"synced with the API server.* ms=\d+")[0]
        self.assertLess(int(re.search(r" ms=(\d+)", line)[1]), 1900, again.text())

    def test_a_token_that_is_rotated(self):
        self.pool(8000)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        for name in ("old", "new"):
            self.allow(name, RULES)
        path = self.cluster.path("token")

        def put(token):
            with open(path + ".next", "w") as file:
                file.write(token + "\n")
            os.rename(path + ".next", path)

        old = self.service_account("old")
        put(old)
        new = self.service_account("new")
        epp = self.epp(config=self.cluster.kubeconfig({"tokenFile": path}))
        epp.await_addresses("127.0.0.2:8000")
        put(new)
        # The account of the old token goes; a server that starts anew has no memory of it.
        self.api.must("DELETE", f"/api/v1/namespaces/{self.space}/serviceaccounts/old")
        self.cluster.kill_server()
        self.cluster.start_server()
        with_old = Api(self.cluster.port, self.cluster.path("ca.crt"), old)
        self.addCleanup(with_old.close)
        await_that(lambda: with_old.call("GET", self.pods.path)[0] == 401, "the old token is refused")
        self.pods.add("b", "127.0.0.3", {"app": "pool"})
        epp.await_addresses("127.0.0.2:8000", "127.0.0.3:8000")
        self.assertEqual(epp.metric("fairway_kubernetes_sync_age_seconds", resource="pods"), 0)

    def test_as_a_pod_finds_it(self):
        """In-cluster: the service account's folder and two variables, as every Pod has them."""
        if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("no mount namespace can be made here")
        self.pool(8000)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        self.allow("picker", RULES)
        folder = os.path.join(self.folder, "account")
        os.mkdir(folder)
        for name, text in (("token", self.service_account("picker")), ("namespace", self.space),
                           ("ca.crt", pathlib.Path(self.cluster.path("ca.crt")).read_text())):
            pathlib.Path(folder, name).write_text(text)
        script = ('mount -t tmpfs none "$(readlink -f /var/run)" && mkdir -p /var/run/secrets/kubernetes.io && '
                  'cp -r "$0" /var/run/secrets/kubernetes.io/serviceaccount && exec "$@"')
        environment = {k: v for k, v in os.environ.items() if k != "KUBECONFIG"}
        environment.update(KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT=str(self.cluster.port),
                           NAMESPACE=self.space)
        epp = self.start(Process(["unshare", "-m", "sh", "-c", script, folder, FAIRWAY, "epp", "--pool-name", "pool",
                                  "--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0"], env=environment))
        line = epp.await_logged("synced with the API server")[0]
        self.assertIn("as=in-cluster", line)
        self.assertIn("endpoints=1 ", line)

    def test_who_cannot_be_verified_gets_nothing(self):
        """Another authority, or the right one for another name: no token is sent."""
        config = self.cluster.kubeconfig({"token": "secret"}, "other-ca")
        with open(config) as file:
            text = file.read()
        other = self.cluster.path("other.crt")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", self.cluster.path("other.key"), "-subj", "/CN=other", "-days", "2", "-out", other],
                       check=True, capture_output=True)
        with open(other, "rb") as file, open(self.cluster.path("ca.crt"), "rb") as right:
            changed = text.replace(base64.b64encode(right.read()).decode(), base64.b64encode(file.read()).decode())
        self.assertNotEqual(changed, text)
        with open(config, "w") as file:
            file.write(changed)
        self.epp(config=config).await_logged("TLS: the certificate is not accepted")

        config = self.cluster.kubeconfig({"token": "secret"}, "other-name")
        with open(config) as file:
            text = file.read()
        with open(config, "w") as file:
            file.write(text.replace('"server":', '"tls-server-name": "elsewhere.example", "server":'))
        self.epp(config=config).await_logged("TLS: the certificate is not accepted: hostname mismatch")


if __name__ == "__main__":
    unittest.main(verbosity=2)
