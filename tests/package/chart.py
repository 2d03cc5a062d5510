"""What the tests of packages share: PyYAML, wherever it is, and the chart rendered by a real helm."""
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import yaml
except ModuleNotFoundError:  # Debian's package python3-yaml is for Debian's Python alone
    if os.path.realpath(sys.executable) == os.path.realpath("/usr/bin/python3"):
        sys.exit("PyYAML is needed: apt-get install python3-yaml")
    os.execv("/usr/bin/python3", ["/usr/bin/python3", "-B", *sys.argv])

SOURCE = pathlib.Path(__file__).resolve().parents[2]
CHART = SOURCE / "deploy/helm/fairway"
NAMESPACE = "models"
RELEASE = "llama"
# The least that the two modes need.
GATEWAY = {"inferencePool": {"modelServers": {"matchLabels": {"app": "vllm"}}}}
STANDALONE = {"inferenceExtension": {"sidecar": {"enabled": True},
                                     "endpointsServer": {"createInferencePool": False, "endpointSelector": "app=vllm"}}}


@functools.cache
def helm():
    """The path of helm, built when it is not there yet. Where it cannot be, the test is skipped: exit code 77."""
    given = os.environ.get("FAIRWAY_HELM")
    if given:
        return given
    done = subprocess.run([SOURCE / "tools/get-helm"], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print("skipped: no helm (tools/get-helm says why)", flush=True)
        os._exit(77)
    return done.stdout.strip()


def merged(*values):
    """Maps merged into one another, later ones win."""
    result = {}
    for value in values:
        for key, item in value.items():
            both = isinstance(item, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], item) if both else item
    return result


def values(path, value):
    """values("a.b", 1) -> {"a": {"b": 1}}"""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


class NotRendered(Exception):
    pass


def render(*given, release=RELEASE, namespace=NAMESPACE):
    """(kind, name) -> object, for these values; NotRendered with helm's words where it refuses."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(merged(*given), file)
        file.flush()
        done = subprocess.run([helm(), "template", release, CHART, "--namespace", namespace, "-f", file.name],
                              capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise NotRendered(done.stderr)
    objects = {}
    for thing in yaml.safe_load_all(done.stdout):
        if thing:
            key = (thing["kind"], thing["metadata"]["name"])
            assert key not in objects, f"{key} twice"
            objects[key] = thing
    return objects
