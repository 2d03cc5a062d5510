"""The chart, rendered by a real helm and looked at as a cluster would. FAIRWAY_BINARY: what the rendered flags are for."""
import json
import os
import re
import subprocess
import tempfile
import unittest

from chart import CHART, GATEWAY, NAMESPACE, STANDALONE, SOURCE, NotRendered, merged, render, values, yaml

EPP = "llama-epp"


def rules(role):
    """Every single right of a role: (group, resource, name or *, verb)."""
    return {(group, resource, name, verb) for rule in role["rules"] for group in rule.get("apiGroups", [""])
            for resource in rule.get("resources", rule.get("nonResourceURLs", []))
            for name in rule.get("resourceNames", ["*"]) for verb in rule["verbs"]}


def reads(group, *resources):
    return {(group, resource, "*", verb) for resource in resources for verb in ("list", "watch")}


def container(objects, name="epp"):
    pod = objects["Deployment", EPP]["spec"]["template"]["spec"]
    return next(c for c in pod["containers"] if c["name"] == name)


# Of `fairway epp`, as docs/reference.md has them, which a test of the program's holds to it.
KNOWN = set(re.findall(r"^\| `(?:-\w,)?--([\w-]+)`",
                       (SOURCE / "docs/reference.md").read_text().split("\n## fairway epp\n")[1].split("\n## ")[0], re.MULTILINE))


def flags(objects):
    given = dict(arg.removeprefix("--").split("=", 1) for arg in container(objects)["args"])
    assert len(KNOWN) > 50 and set(given) <= KNOWN, f"fairway epp has no flags {set(given) - KNOWN}"
    return given


class Defaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = render(GATEWAY)
        cls.deployment = cls.objects["Deployment", EPP]
        cls.pod = cls.deployment["spec"]["template"]

    def test_nothing_more_than_needed(self):
        self.assertEqual({kind for kind, _ in self.objects},
                         {"Deployment", "Service", "ServiceAccount", "Role", "RoleBinding", "InferencePool"})
        for thing in self.objects.values():
            self.assertEqual(thing["metadata"]["namespace"], NAMESPACE)

    def test_the_pool_the_service_and_the_pods_belong_together(self):
        pool = self.objects["InferencePool", "llama"]
        service = self.objects["Service", EPP]
        self.assertEqual(pool["apiVersion"], "inference.networking.k8s.io/v1")
        self.assertEqual(pool["spec"], {
            "selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": EPP, "port": {"number": 9002}, "failureMode": "FailOpen"}})
        ports = {p["name"]: p for p in service["spec"]["ports"]}
        self.assertEqual({name: p["port"] for name, p in ports.items()}, {"grpc-ext-proc": 9002, "grpc-health": 9003})
        self.assertEqual(ports["grpc-ext-proc"]["appProtocol"], "http2")
        named = {p["name"]: p["containerPort"] for p in container(self.objects)["ports"]}
        for port in ports.values():
            self.assertEqual(named[port["targetPort"]], port["port"])
        labels = self.pod["metadata"]["labels"]
        for selector in (service["spec"]["selector"], self.deployment["spec"]["selector"]["matchLabels"]):
            self.assertLessEqual(selector.items(), labels.items())
            self.assertNotIn("app.kubernetes.io/version", selector, "it changes, and a selector may not")

    def test_flags(self):
        self.assertEqual(flags(self.objects), {
            "pool-name": "llama", "pool-group": "inference.networking.k8s.io", "grpc-port": "9002", "grpc-health-port": "9003", "metrics-port": "9090",
            "drain-timeout": "30s", "log-format": "json", "metrics-host": "127.0.0.1"})
        self.assertEqual([e["name"] for e in container(self.objects)["env"]], ["NAMESPACE", "POD_NAME", "POD_UID"])

    def test_the_pod_can_do_nothing_else(self):
        spec = self.pod["spec"]
        self.assertEqual(spec["securityContext"], {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532,
                                                   "seccompProfile": {"type": "RuntimeDefault"}})
        self.assertEqual(container(self.objects)["securityContext"], {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}})
        self.assertNotIn("volumes", spec)
        self.assertFalse(self.objects["ServiceAccount", EPP]["automountServiceAccountToken"])
        self.assertTrue(spec["automountServiceAccountToken"])

    def test_probes_ask_the_health_port(self):
        for probe, service in (("livenessProbe", "liveness"), ("readinessProbe", "readiness")):
            self.assertEqual(container(self.objects)[probe]["grpc"], {"port": 9003, "service": service})

    def test_the_end_is_waited_for(self):
        self.assertGreater(self.pod["spec"]["terminationGracePeriodSeconds"], 30)
        self.assertEqual(self.deployment["spec"]["strategy"]["rollingUpdate"], {"maxSurge": 1, "maxUnavailable": 0})

    def test_least_rights(self):
        legacy = "inference.networking.x-k8s.io"
        objectives = ("inferenceobjectives", "inferencemodelrewrites")
        self.assertEqual(rules(self.objects["Role", EPP]), reads("", "pods")
                         | reads("inference.networking.k8s.io", "inferencepools") | reads("llm-d.ai", *objectives)
                         | reads(legacy, "inferencemodels", *objectives))
        binding = self.objects["RoleBinding", EPP]
        self.assertEqual(binding["roleRef"]["name"], EPP)
        self.assertEqual(binding["subjects"], [{"kind": "ServiceAccount", "name": EPP, "namespace": NAMESPACE}])
        self.assertEqual(self.pod["spec"]["serviceAccountName"], EPP)


class Replicas(unittest.TestCase):
    def test_more_than_one_elects_a_leader(self):
        objects = render(GATEWAY, values("inferenceExtension.replicas", 2))
        self.assertEqual(flags(objects)["ha-enable-leader-election"], "true")
        leases = {r for r in rules(objects["Role", EPP]) if r[1] == "leases"}
        lease = f"epp-{NAMESPACE}-llama.llm-d.ai"
        group = "coordination.k8s.io"
        self.assertEqual(leases, {(group, "leases", "*", "create"), (group, "leases", lease, "get"),
                                  (group, "leases", lease, "update")})
        deployment = objects["Deployment", EPP]["spec"]
        # Those that stand by are not ready: neither a rollout nor a drain may wait for them.
        self.assertEqual(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], "100%")
        self.assertNotIn(("PodDisruptionBudget", EPP), objects)
        sleep = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater(deployment["template"]["spec"]["terminationGracePeriodSeconds"], 30 + sleep)

    def test_or_all_serve(self):
        objects = render(GATEWAY, values("inferenceExtension", {"replicas": 2, "enableLeaderElection": False}))
        self.assertNotIn("ha-enable-leader-election", flags(objects))
        self.assertFalse({r for r in rules(objects["Role", EPP]) if r[1] == "leases"})
        budget = objects["PodDisruptionBudget", EPP]["spec"]
        self.assertEqual(budget["maxUnavailable"], 1)
        self.assertLessEqual(budget["selector"]["matchLabels"].items(),
                             objects["Deployment", EPP]["spec"]["template"]["metadata"]["labels"].items())
        self.assertEqual(objects["Deployment", EPP]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0)

    def test_those_that_serve_tell_one_another(self):
        several = values("inferenceExtension.replicas", 3)
        all_serve = values("inferenceExtension.enableLeaderElection", False)
        for alone in (render(GATEWAY), render(GATEWAY, several), render(GATEWAY, several, all_serve,
                                                                        values("inferenceExtension.peers.enabled", False))):
            self.assertNotIn("peers", flags(alone))
            self.assertNotIn(("Service", EPP + "-peers"), alone)
        policy = values("inferenceExtension.networkPolicy.enabled", True)
        for together in (render(GATEWAY, several, all_serve, policy),
                         render(GATEWAY, policy, values("inferenceExtension.peers.enabled", True))):
            self.assertEqual((flags(together)["peers"], flags(together)["peer-port"]), (EPP + "-peers", "9004"))
            service = together["Service", EPP + "-peers"]["spec"]
            self.assertEqual((service["clusterIP"], service["publishNotReadyAddresses"]), ("None", True))
            labels = together["Deployment", EPP]["spec"]["template"]["metadata"]["labels"]
            self.assertLessEqual(service["selector"].items(), labels.items())
            self.assertEqual([port["port"] for port in service["ports"]], [9004])
            self.assertIn(9004, [port["containerPort"] for port in container(together)["ports"]])
            rules = [rule for rule in together["NetworkPolicy", EPP]["spec"]["ingress"]
                     if {"port": 9004, "protocol": "TCP"} in rule["ports"]]
            self.assertEqual([rule["from"] for rule in rules], [[{"podSelector": {"matchLabels": service["selector"]}}]])

    def test_a_budget_for_one_is_the_users_word(self):
        self.assertIn(("PodDisruptionBudget", EPP), render(GATEWAY, values("inferenceExtension.podDisruptionBudget.enabled", True)))

    def test_one_may_elect_too(self):
        objects = render(GATEWAY, values("inferenceExtension.enableLeaderElection", True))
        self.assertEqual(flags(objects)["ha-enable-leader-election"], "true")


class Values(unittest.TestCase):
    def test_flags_of_the_user_win(self):
        given = {"v": 4, "refresh-metrics-interval": "100ms", "metrics-port": 9191, "secure-serving": False,
                 "grpc-max-recv-msg-size": 10000000, "tls-cipher-suites": ["A", "B"], "sheddable-kv-limit": 0.9,
                 "log-format": "text"}
        objects = render(GATEWAY, values("inferenceExtension.flags", given))
        got = flags(objects)
        self.assertLessEqual({"v": "4", "refresh-metrics-interval": "100ms", "metrics-port": "9191",
                              "secure-serving": "false", "grpc-max-recv-msg-size": "10000000",
                              "tls-cipher-suites": "A,B", "sheddable-kv-limit": "0.9", "log-format": "text"}.items(),
                             got.items())
        self.assertEqual(len(got), len(container(objects)["args"]), "a flag twice")
        self.assertIn({"name": "metrics", "containerPort": 9191}, container(objects)["ports"])

    def test_image(self):
        for given, expected in (
                ({}, "fairway:0.1.0"),
                ({"registry": "registry.example.com/llm/", "tag": "1"}, "registry.example.com/llm/fairway:1"),
                ({"hub": "registry.example.com", "name": "epp", "tag": "main"}, "registry.example.com/epp:main")):
            objects = render(GATEWAY, values("inferenceExtension.image", given))
            self.assertEqual(container(objects)["image"], expected)

    def test_certificate_of_a_secret(self):
        objects = render(GATEWAY, values("inferenceExtension.tls.secretName", "epp-tls"))
        self.assertEqual(flags(objects)["cert-path"], container(objects)["volumeMounts"][0]["mountPath"])
        self.assertEqual(flags(objects)["enable-cert-reload"], "true")
        volume = objects["Deployment", EPP]["spec"]["template"]["spec"]["volumes"][0]
        self.assertEqual(volume["secret"]["secretName"], "epp-tls")
        self.assertEqual(volume["secret"]["defaultMode"], 0o444, "another user than root reads it")

    def test_plugins(self):
        text = (SOURCE / "examples/endpoint-picker-config/pd-epp-config.yaml").read_text()
        given = {"pluginsCustomConfig": {"my.yaml": text}, "pluginsConfigFile": "my.yaml"}
        objects = render(GATEWAY, {"inferenceExtension": given})
        self.assertEqual(objects["ConfigMap", EPP]["data"], {"my.yaml": text})
        mount = container(objects)["volumeMounts"][0]["mountPath"]
        self.assertEqual(flags(objects)["config-file"], mount + "/my.yaml")
        changed = render(GATEWAY, {"inferenceExtension": merged(given, {"pluginsCustomConfig": {"my.yaml": text + "# x\n"}})})
        self.assertEqual(changed["Deployment", EPP], objects["Deployment", EPP], "a changed text is taken over by running Pods")
        # What the Pod finds there decides, as its flags say.
        with tempfile.TemporaryDirectory() as folder:
            for name, data in objects["ConfigMap", EPP]["data"].items():
                with open(os.path.join(folder, name), "w") as file:
                    file.write(data)
            flag = flags(objects)["config-file"].replace(mount, folder)
            done = subprocess.run([os.environ["FAIRWAY_BINARY"], "check", "--config-file", flag], check=False,
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("- name: decode\n", done.stdout)

    def test_plugins_of_many_pools(self):
        epp = {"pools": {"all": True, "ports": [9002]}, "pluginsCustomConfig": {"team.llama.yaml": "x: 1\n"}}
        objects = render({"inferenceExtension": epp})
        self.assertEqual(flags(objects)["config-dir"], container(objects)["volumeMounts"][0]["mountPath"])
        self.assertNotIn("config-file", flags(objects))
        both = render({"inferenceExtension": merged(epp, {"pluginsCustomConfig": {"default-plugins.yaml": "x: 1\n"}})})
        self.assertEqual(flags(both)["config-file"], flags(both)["config-dir"] + "/default-plugins.yaml")

    def test_monitoring(self):
        on = values("inferenceExtension.monitoring.prometheus.enabled", True)
        objects = render(GATEWAY, on)
        self.assertEqual(flags(objects)["metrics-endpoint-auth"], "true")
        self.assertNotIn("metrics-host", flags(objects), "its own default is every address")
        self.assertIn("http-metrics", [p["name"] for p in objects["Service", EPP]["spec"]["ports"]])
        monitor = objects["ServiceMonitor", EPP]["spec"]
        self.assertEqual(monitor["endpoints"][0]["port"], "http-metrics")
        self.assertEqual(monitor["endpoints"][0]["authorization"]["credentials"]["key"], "token")
        self.assertEqual(rules(objects["ClusterRole", f"{NAMESPACE}-{EPP}-metrics-auth"]), {
            ("authentication.k8s.io", "tokenreviews", "*", "create"),
            ("authorization.k8s.io", "subjectaccessreviews", "*", "create")})
        self.assertEqual(rules(objects["ClusterRole", f"{NAMESPACE}-{EPP}-metrics-reader"]), {("", "/metrics", "*", "get")})

        open_page = render(GATEWAY, on, values("inferenceExtension.monitoring.prometheus.auth.enabled", False))
        self.assertEqual(flags(open_page)["metrics-endpoint-auth"], "false")
        self.assertNotIn("authorization", open_page["ServiceMonitor", EPP]["spec"]["endpoints"][0])
        self.assertFalse([kind for kind, _ in open_page if kind.startswith("ClusterRole")])

    def test_certificates_of_the_metrics_page(self):
        tls = values("inferenceExtension.monitoring.tls", {"secretName": "page"})
        objects = render(GATEWAY, tls, values("inferenceExtension.monitoring.allowedHosts", ["picker.example.com", "*"]))
        mount = next(m for m in container(objects)["volumeMounts"] if m["name"] == "metrics-tls")
        self.assertTrue(mount["readOnly"])
        self.assertEqual(flags(objects)["metrics-cert-dir"], mount["mountPath"])
        self.assertEqual(flags(objects)["metrics-allowed-hosts"], "picker.example.com,*")
        self.assertNotIn("metrics-client-ca-file", flags(objects))
        volumes = {v["name"]: v for v in objects["Deployment", EPP]["spec"]["template"]["spec"]["volumes"]}
        self.assertEqual(volumes["metrics-tls"]["secret"]["secretName"], "page")
        both = render(GATEWAY, tls, values("inferenceExtension.tls.secretName", "port"))
        self.assertEqual(len({m["mountPath"] for m in container(both)["volumeMounts"]}), 2)

        on = {"inferenceExtension": {"monitoring": {"tls": {"verifyClients": True}, "prometheus": {
            "enabled": True, "clientCertSecret": "prometheus"}}}}
        objects = render(GATEWAY, tls, on)
        self.assertEqual(flags(objects)["metrics-client-ca-file"], mount["mountPath"] + "/ca.crt")
        endpoint = objects["ServiceMonitor", EPP]["spec"]["endpoints"][0]
        self.assertEqual(endpoint["scheme"], "https")
        self.assertEqual(endpoint["tlsConfig"], {
            "serverName": f"{EPP}.{NAMESPACE}.svc", "ca": {"secret": {"name": "page", "key": "ca.crt"}},
            "cert": {"secret": {"name": "prometheus", "key": "tls.crt"}}, "keySecret": {"name": "prometheus", "key": "tls.key"}})
        self.assertIn("authorization", endpoint)
        known = {s["metadata"]["name"]: s for (kind, _), s in objects.items() if kind == "Service"}
        self.assertIn(EPP, known, "what serverName names")
        plain = render(GATEWAY, values("inferenceExtension.monitoring.prometheus.enabled", True))
        self.assertFalse({"scheme", "tlsConfig"} & plain["ServiceMonitor", EPP]["spec"]["endpoints"][0].keys())

    def test_network_policy(self):
        self.assertNotIn(("NetworkPolicy", EPP), render(GATEWAY))
        on = values("inferenceExtension.networkPolicy.enabled", True)
        objects = render(GATEWAY, on)
        spec = objects["NetworkPolicy", EPP]["spec"]
        self.assertEqual(spec["podSelector"]["matchLabels"], objects["Service", EPP]["spec"]["selector"])
        self.assertEqual(spec["policyTypes"], ["Ingress"])
        ports = lambda rule: [p["port"] for p in rule["ports"]]
        own_namespace = [{"podSelector": {}}]
        self.assertEqual([(ports(r), r["from"]) for r in spec["ingress"]], [([9002, 9003], own_namespace)])
        self.assertEqual({p["protocol"] for r in spec["ingress"] for p in r["ports"]}, {"TCP"})

        gateways = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoy-gateway-system"}}}]
        prometheus = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        rules = render(GATEWAY, on, values("inferenceExtension.monitoring.prometheus.enabled", True),
                       values("inferenceExtension.networkPolicy", {
                           "gateways": gateways, "monitoring": prometheus,
                           "extraIngress": [{"ports": [{"port": 7}]}]}))["NetworkPolicy", EPP]["spec"]["ingress"]
        self.assertEqual([(ports(r), r.get("from")) for r in rules],
                         [([9002, 9003], gateways), ([9090], prometheus), ([7], None)])
        many = render(ManyPools.MANY, on)["NetworkPolicy", EPP]["spec"]["ingress"]
        self.assertEqual(ports(many[0]), [9002, 9010, 9003])
        standalone = render(STANDALONE, on)["NetworkPolicy", EPP]["spec"]["ingress"]
        self.assertEqual((ports(standalone[-1]), standalone[-1].get("from")), ([8081], None))

    def test_the_port_that_engines_dial_is_opened_as_the_page_says(self):
        page = (SOURCE / "docs/kubernetes.md").read_text()
        container_ports, service_ports, ingress = (
            yaml.safe_load(re.search(rf"\.{name}: (\[[^`]*\])`", page)[1]) for name in ("extraContainerPorts", "extraServicePorts", "extraIngress"))
        objects = render(GATEWAY, {"inferenceExtension": {"extraContainerPorts": container_ports, "extraServicePorts": service_ports,
                                                          "networkPolicy": {"enabled": True, "extraIngress": ingress}}})
        self.assertIn({"name": "kv-events", "containerPort": 5557}, container(objects)["ports"])
        self.assertIn({"name": "kv-events", "port": 5557}, objects["Service", EPP]["spec"]["ports"])
        rule = objects["NetworkPolicy", EPP]["spec"]["ingress"][-1]
        self.assertEqual((rule["ports"], list(rule["from"][0])), ([{"port": 5557}], ["podSelector"]))

    def test_istio(self):
        on = values("provider.name", "istio")
        rule = render(GATEWAY, on)["DestinationRule", EPP]["spec"]
        self.assertEqual(rule["host"], f"{EPP}.{NAMESPACE}.svc.cluster.local")
        self.assertEqual(rule["trafficPolicy"]["tls"], {"mode": "SIMPLE", "insecureSkipVerify": True})
        plain = render(GATEWAY, on, values("inferenceExtension.flags.secure-serving", False))["DestinationRule", EPP]
        self.assertEqual(plain["spec"]["trafficPolicy"]["tls"], {"mode": "DISABLE"})
        own = render(GATEWAY, on, values("istio.destinationRule", {"host": "x", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}))
        self.assertEqual(own["DestinationRule", EPP]["spec"], {"host": "x", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}})

    def test_the_older_pool(self):
        objects = render(GATEWAY, values("inferencePool", {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "targetPortNumber": 8001}))
        self.assertEqual(objects["InferencePool", "llama"]["spec"], {
            "selector": {"app": "vllm"}, "targetPortNumber": 8001,
            "extensionRef": {"name": EPP, "portNumber": 9002, "failureMode": "FailOpen"}})
        self.assertEqual(flags(objects)["pool-group"], "inference.networking.x-k8s.io")
        self.assertLessEqual(reads("inference.networking.x-k8s.io", "inferencepools"), rules(objects["Role", EPP]))

    def test_objects_of_others(self):
        objects = render(values("inferencePool.create", False), values("serviceAccount", {"create": False, "name": "mine"}),
                         values("rbac.create", False))
        self.assertEqual({kind for kind, _ in objects}, {"Deployment", "Service"})
        self.assertEqual(objects["Deployment", EPP]["spec"]["template"]["spec"]["serviceAccountName"], "mine")

    def test_route_and_objectives(self):
        objects = render(GATEWAY, values("experimentalHttpRoute", {"enabled": True, "inferenceGatewayName": "gw"}),
                         {"inferenceObjectives": [{"name": "high", "priority": 5}, {"name": "batch", "priority": -1}]})
        route = objects["HTTPRoute", "llama"]["spec"]
        self.assertEqual(route["parentRefs"], [{"name": "gw"}])
        self.assertEqual(route["rules"][0]["backendRefs"], [
            {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "llama"}])
        self.assertEqual(objects["InferenceObjective", "batch"]["spec"], {
            "priority": -1, "poolRef": {"group": "inference.networking.k8s.io", "name": "llama"}})

    def test_where_the_pods_go(self):
        given = {"affinity": {"nodeAffinity": {}}, "tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"},
                 "topologySpreadConstraints": [{"maxSkew": 1}], "priorityClassName": "high", "podLabels": {"team": "x"},
                 "podAnnotations": {"note": "y"}, "env": [{"name": "A", "value": "1"}], "volumes": [{"name": "v", "emptyDir": {}}],
                 "volumeMounts": [{"name": "v", "mountPath": "/v"}], "extraContainerPorts": [{"name": "zmq", "containerPort": 5557}],
                 "extraServicePorts": [{"name": "zmq", "port": 5557}], "deploymentStrategy": {"type": "Recreate"}}
        objects = render(GATEWAY, {"inferenceExtension": given}, {"imagePullSecrets": [{"name": "s"}]})
        template = objects["Deployment", EPP]["spec"]["template"]
        for key in ("affinity", "tolerations", "nodeSelector", "topologySpreadConstraints", "priorityClassName", "volumes"):
            self.assertEqual(template["spec"][key], given[key])
        self.assertEqual(template["spec"]["imagePullSecrets"], [{"name": "s"}])
        self.assertEqual(template["metadata"]["labels"]["team"], "x")
        self.assertEqual(template["metadata"]["annotations"]["note"], "y")
        self.assertIn(given["env"][0], container(objects)["env"])
        self.assertIn(given["extraContainerPorts"][0], container(objects)["ports"])
        self.assertEqual(container(objects)["volumeMounts"], given["volumeMounts"])
        self.assertIn({"name": "zmq", "port": 5557}, objects["Service", EPP]["spec"]["ports"])
        self.assertEqual(objects["Deployment", EPP]["spec"]["strategy"], {"type": "Recreate"})


class ManyPools(unittest.TestCase):
    MANY = values("inferenceExtension.pools", {"all": True, "ports": [9002, 9010]})

    def test_of_the_namespace(self):
        objects = render(self.MANY)
        self.assertFalse([k for k in objects if k[0] == "InferencePool"])
        got = flags(objects)
        self.assertEqual((got["all-pools"], got["picker-service"]), ("true", EPP))
        self.assertFalse({"pool-name", "all-namespaces", "endpoint-selector"} & set(got))
        ports = [p["port"] for p in objects["Service", EPP]["spec"]["ports"]]
        self.assertEqual(ports, [9002, 9010, 9003])
        self.assertEqual(rules(objects["Role", EPP]), rules(render(GATEWAY)["Role", EPP]))
        self.assertFalse([k for k in objects if k[0].startswith("Cluster")])

    def test_of_all_namespaces(self):
        objects = render(self.MANY, values("inferenceExtension.pools", {"selector": "team=chat", "allNamespaces": True}))
        self.assertEqual(flags(objects)["pool-selector"], "team=chat")
        self.assertEqual(flags(objects)["all-namespaces"], "true")
        self.assertNotIn(("Role", EPP), objects)
        self.assertEqual(rules(objects["ClusterRole", f"{NAMESPACE}-{EPP}"]), rules(render(GATEWAY)["Role", EPP]))
        self.assertEqual(objects["ClusterRoleBinding", f"{NAMESPACE}-{EPP}"]["subjects"][0]["namespace"], NAMESPACE)
        led = render(self.MANY, values("inferenceExtension", {"replicas": 2, "pools": {"allNamespaces": True}}))
        self.assertEqual({r[1] for r in rules(led["Role", EPP])}, {"leases"})
        self.assertIn(f"epp-{NAMESPACE}-all-pools.llm-d.ai", {r[2] for r in rules(led["Role", EPP])})


class Standalone(unittest.TestCase):
    def test_pods_by_label_and_an_envoy(self):
        objects = render(STANDALONE)
        self.assertFalse([k for k in objects if k[0] == "InferencePool"])
        self.assertEqual(rules(objects["Role", EPP]), reads("", "pods"))
        got = flags(objects)
        self.assertEqual((got["endpoint-selector"], got["endpoint-target-ports"]), ("app=vllm", "8000"))
        self.assertNotIn("pool-name", got)
        self.assertEqual(got["health-checking"], "true", "Envoy asks on the ext_proc port")
        envoy = container(objects, "envoy-proxy")
        self.assertEqual(envoy["securityContext"], container(objects)["securityContext"])
        ports = {p["name"]: p["port"] for p in objects["Service", EPP]["spec"]["ports"]}
        self.assertEqual(ports["http"], 8081)
        config = yaml.safe_load(objects["ConfigMap", EPP + "-envoy"]["data"]["envoy.yaml"])
        self.assertEqual([c["name"] for c in config["static_resources"]["clusters"]], ["admin", "picked", "picker"])

    def test_the_shipped_values_are_these(self):
        shipped = yaml.safe_load((CHART / "values-standalone.yaml").read_text())
        self.assertEqual(merged(shipped, values("inferenceExtension.endpointsServer.endpointSelector", "app=vllm")), STANDALONE)

    def test_an_envoy_before_a_pool(self):
        objects = render(GATEWAY, values("inferenceExtension.sidecar.enabled", True))
        self.assertIn(("InferencePool", "llama"), objects)
        self.assertIn("pool-name", flags(objects))

    def test_the_lease_has_the_deployments_name(self):
        objects = render(STANDALONE, values("inferenceExtension.replicas", 2))
        self.assertIn(("coordination.k8s.io", "leases", f"epp-{NAMESPACE}-{EPP}.llm-d.ai", "update"), rules(objects["Role", EPP]))

    def test_an_own_configuration(self):
        objects = render(STANDALONE, values("inferenceExtension.sidecar.configMap.data", {"envoy.yaml": "admin: {}\n"}))
        self.assertEqual(objects["ConfigMap", EPP + "-envoy"]["data"]["envoy.yaml"].strip(), "admin: {}")

    def test_a_port_that_the_user_lists_is_there_once(self):
        extra = [{"name": "http", "port": 8081, "targetPort": 8081}]
        ports = render(STANDALONE, {"inferenceExtension": {"extraServicePorts": extra}})["Service", EPP]["spec"]["ports"]
        self.assertEqual([p for p in ports if p["port"] == 8081], extra)


class Mistakes(unittest.TestCase):
    # What is set beside GATEWAY, and what the message has to say, as a pattern.
    CASES = [
        ("inferenceExtention.replicas", 2, "'inferenceExtention' not allowed"),
        ("inferenceExtension.replica", 2, "'replica' not allowed"),
        ("inferenceExtension.replicas", "two", "/inferenceExtension/replicas.*want integer"),
        ("inferenceExtension.extProcPort", 70000, "/inferenceExtension/extProcPort"),
        ("inferenceExtension.image.tag", 1.1, "/inferenceExtension/image/tag.*want string"),
        ("inferenceExtension.image.pullPolicy", "always", "'Always', 'IfNotPresent', 'Never'"),
        ("inferenceExtension.flags", {"--v": 1}, "--v"),
        ("inferenceExtension.flags", {"grpc-port": 1}, "set inferenceExtension.extProcPort"),
        ("inferenceExtension.flags", {"ha-enable-leader-election": True}, "set inferenceExtension.enableLeaderElection"),
        ("inferenceExtension.pluginsCustomConfig", {"a.yaml": {"plugins": []}}, "a.yaml.*want string"),
        ("inferenceExtension.pluginsCustomConfig", {"a.yaml": "x"}, "has only a.yaml"),
        ("inferenceExtension.monitoring.interval", "10", "/inferenceExtension/monitoring/interval"),
        ("inferenceExtension.monitoring.allowedHosts", ["a b"], "/inferenceExtension/monitoring/allowedHosts"),
        ("inferenceExtension.monitoring.tls.verifyClients", True, "needs monitoring.tls.secretName"),
        ("inferenceExtension.monitoring", {"tls": {"secretName": "s", "verifyClients": True}, "prometheus": {"enabled": True}},
         "prometheus.clientCertSecret is required"),
        ("inferenceExtension.monitoring", {"tls": {"secretName": "s"}, "prometheus": {"enabled": True, "auth": {"enabled": False}}},
         "lets everybody read"),
        ("inferenceExtension", {"replicas": 2, "podDisruptionBudget": {"enabled": True}}, "would block every drain"),
        ("inferenceExtension.tracing.enabled", True, "writes no traces"),
        ("inferenceExtension.latencyPredictor.enabled", True, "no latency predictor"),
        ("inferenceExtension.sidecar.proxyType", "agentgateway", "'envoy'"),
        ("inferencePool.modelServers.matchLabels", {"app": 1}, "/inferencePool/modelServers/matchLabels/app.*want string"),
        ("inferencePool.targetPorts", [], "/inferencePool/targetPorts"),
        ("inferencePool.targetPorts", [{"number": 1}] * 2, "/inferencePool/targetPorts"),
        ("inferencePool.failureMode", "failOpen", "'FailOpen', 'FailClose'"),
        ("inferencePool.apiVersion", "v1", "inference.networking.k8s.io/v1"),
        ("provider.name", "gke", "'none', 'istio'"),
        ("inferenceExtension.endpointsServer.createInferencePool", False, "endpointSelector is required"),
        ("inferenceObjectives", [{"name": "x"}], "priority"),
        ("inferenceExtension.pools", {"all": True, "ports": [9010]}, "the chart makes none"),
    ]

    def test_each_gets_a_message(self):
        for path, value, message in self.CASES:
            with self.subTest(path=path, value=value):
                with self.assertRaises(NotRendered) as caught:
                    render(GATEWAY, values(path, value))
                self.assertRegex(str(caught.exception), message)

    def test_many_pools_without_their_ports(self):
        with self.assertRaisesRegex(NotRendered, "inferenceExtension.pools.ports is required"):
            render(values("inferenceExtension.pools.selector", "team=chat"))

    def test_without_labels(self):
        with self.assertRaisesRegex(NotRendered, "inferencePool.modelServers.matchLabels is required"):
            render({})


class Schema(unittest.TestCase):
    def test_it_says_what_the_values_say(self):
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        schema = json.loads((CHART / "values.schema.json").read_text())

        def compare(where, node, value):
            names = set(node.get("properties", {})) - ({"global"} if not where else set())
            if not names:
                return
            optional = {"configMap.data": {"envoy.yaml"}, "resources": {"requests", "limits", "claims"},
                        "deploymentStrategy": {"type", "rollingUpdate"}}
            free = next((v for k, v in optional.items() if where.endswith(k)), set())
            self.assertEqual(names - free, set(value) - free, f"values and schema differ at {where or 'the top'}")
            self.assertIs(node.get("additionalProperties", True), where.endswith(("tracing", "latencyPredictor")), where)
            for name in names & set(value):
                compare(f"{where}.{name}", node["properties"][name], value[name])

        compare("", schema, defaults)

    def test_values_of_the_references_charts(self):
        """As its README has them, and its standalone chart's."""
        render(GATEWAY, yaml.safe_load("""
            inferenceExtension:
              replicas: 1
              image: {name: epp, hub: registry.example.com/epp, tag: v1.4.0, pullPolicy: Always}
              extProcPort: 9002
              env: [{name: FEATURE_FLAG_ENABLED, value: "true"}]
              pluginsConfigFile: default-plugins.yaml
              flags: {v: 1}
              affinity: {}
              tolerations: []
              monitoring: {interval: 10s, prometheus: {enabled: true, auth: {enabled: true, secretName: s}, extraLabels: {}}}
              tracing: {enabled: false, otelExporterEndpoint: "http://localhost:4317", sampling: {sampler: x, samplerArg: "0.1"}}
              latencyPredictor: {enabled: false, trainingServer: {}}
            inferencePool: {targetPorts: [{number: 8000}], modelServerType: vllm, apiVersion: inference.networking.k8s.io/v1, targetPortNumber: 8000}
            provider: {name: none}
        """))


class Flags(unittest.TestCase):
    """Every flag that the chart sets is one of the binary's."""

    def test_they_are_taken(self):
        every = merged(GATEWAY, values("inferenceExtension", {
            "replicas": 2, "tls": {"secretName": "x"}, "pluginsCustomConfig": {"default-plugins.yaml": "x"},
            "monitoring": {"prometheus": {"enabled": True}}, "sidecar": {"enabled": True}}),
            values("inferencePool.apiVersion", "inference.networking.x-k8s.io/v1alpha2"))
        with tempfile.TemporaryDirectory() as folder:
            many = values("inferenceExtension.pools", {"all": True, "allNamespaces": True, "ports": [9010]})
            chosen = merged(many, values("inferenceExtension.pools", {"selector": "a=b"}))
            for case in (every, STANDALONE, many, chosen):
                args = container(render(case))["args"]
                done = subprocess.run([os.environ["FAIRWAY_BINARY"], "epp", *args, "-f", folder + "/none.yaml"], capture_output=True,
                                      text=True, timeout=60, check=False, env={**os.environ, "POD_NAME": "llama-epp-0123456789-abcde"})
                # Not there is what is wrong with it, and not one of the flags.
                self.assertRegex(done.stderr, r"none\.yaml", f"{args}\n{done.stderr}")
                self.assertNotRegex(done.stderr, "(?i)not expected|required|exclude", f"{args}\n{done.stderr}")


class Plain(unittest.TestCase):
    def test_the_manifests_are_current(self):
        done = subprocess.run([SOURCE / "tools/render-manifests", "--check"], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_version_is_the_projects(self):
        version = re.search(r"project\(fairway VERSION ([0-9.]+)", (SOURCE / "CMakeLists.txt").read_text()).group(1)
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["version"], chart["appVersion"]), (version, version))


if __name__ == "__main__":
    unittest.main()
