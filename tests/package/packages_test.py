"""The .deb in a clean Debian, the .tar.gz in a root that has glibc alone, and the Dockerfile as far as it can be read. Needs root (chroot)."""
import http.client
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import unittest

from chart import GATEWAY, SOURCE, render

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "envoy"))
from support import Process, await_that, free_ports  # noqa: E402

VERSION = re.search(r"project\(fairway VERSION ([0-9.]+)", (SOURCE / "CMakeLists.txt").read_text()).group(1)
NOBODY = "65534:65534"


def run(*argv, **more):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False, **more)
    if done.returncode:
        raise AssertionError(f"{argv} failed with {done.returncode}:\n{done.stdout[-5000:]}")
    return done.stdout


def made(kind):
    """The path of the package, made anew."""
    (path,) = subprocess.run([SOURCE / "tools/package", kind], stdout=subprocess.PIPE, text=True, timeout=900, check=True).stdout.split()
    return SOURCE / path


class Root:
    """A folder that programs can be started in, as whom they should be."""

    def __init__(self, folder):
        self.path = pathlib.Path(folder)

    def inside(self, *argv, user=None):
        return ["chroot", *([f"--userspec={user}", "--groups="] if user else []), str(self.path), *argv]

    def run(self, *argv, user=None):
        return run(*self.inside(*argv, user=user), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"})

    def serves(self, *argv, user):
        """Starts a picker, asks whether it is ready, ends it as a service manager does."""
        ports = free_ports(3)
        names = ("--grpc-port", "--grpc-health-port", "--metrics-port")
        picker = Process(self.inside(*argv, *(f"{n}={p}" for n, p in zip(names, ports)), user=user))
        try:
            picker.await_logged("serving")

            def ready():
                connection = http.client.HTTPConnection("127.0.0.1", ports[2], timeout=10)
                try:
                    connection.request("GET", "/readyz")
                    return connection.getresponse().status == 200
                finally:
                    connection.close()
            await_that(ready, picker.text)
            user_now = pathlib.Path(f"/proc/{picker.pid}/status").read_text()
            assert re.search(rf"^Uid:\s+{user.split(':')[0]}\s", user_now, re.MULTILINE), user_now
            assert picker.terminate() == 0, picker.text()
        finally:
            picker.close()


class Deb(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.deb = made("deb")
        depends = run("dpkg-deb", "-f", str(cls.deb), "Depends")
        # Without these two every Debian would be none.
        cls.depends = sorted({d.split()[0] for d in depends.split(",")} - {"libc6", "libgcc-s1"})
        archive = subprocess.run(
            [SOURCE / "tools/get-debian-root", *cls.depends], stdout=subprocess.PIPE, text=True, timeout=600, check=True).stdout.strip()
        folder = tempfile.TemporaryDirectory(prefix="fairway-root-")
        cls.addClassCleanup(folder.cleanup)
        cls.root = Root(folder.name)
        run("tar", "-C", folder.name, "-xf", archive)
        # What dpkg and the dynamic linker write for themselves.
        cls.own = re.compile(r"^(var/lib/dpkg|var/log|var/cache|dev|run|tmp)(/|$)|^fairway\.deb$")
        cls.before = cls.files()
        shutil.copy(cls.deb, cls.root.path / "fairway.deb")

    @classmethod
    def files(cls):
        paths = (str(f.relative_to(cls.root.path)) for f in cls.root.path.rglob("*"))
        return {p for p in paths if not cls.own.match(p)}

    def test_from_install_to_purge(self):
        root = self.root
        root.run("dpkg", "-i", "/fairway.deb")
        self.assertEqual(root.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "fairway"), f"installed {VERSION}")
        self.assertEqual(root.run("dpkg", "--verify", "fairway"), "")

        with self.subTest("it runs"):
            self.assertIn(VERSION, root.run("fairway", "version", user=NOBODY))
            self.assertIn("InferencePool default/default", root.run("fairway", "check", "-f", "/etc/fairway/manifests", user=NOBODY))
            root.serves("fairway", "epp", "-f", "/etc/fairway/manifests", user=NOBODY)

        with self.subTest("the manual page"):
            page = root.run("zcat", "/usr/share/man/man1/fairway.1.gz")
            for subcommand in re.findall(r"^  ([a-z]+) ", root.run("fairway", "--help").split("Subcommands:")[1], re.MULTILINE):
                self.assertRegex(page, rf"(?m)^\.B {subcommand}$")

        with self.subTest("the module is where `fairway up` looks for it"):
            module = root.path / f"usr/lib/fairway/libfairway_envoy-{VERSION}.so"
            self.assertIn("envoy_dynamic_module_on_program_init", run("nm", "-D", str(module)))

        with self.subTest("the service"):
            unit = (root.path / "usr/lib/systemd/system/fairway-epp.service").read_text()
            start = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE).group(1)
            env = (root.path / "etc/fairway/epp.env").read_text()
            example = re.search(r"^# FAIRWAY_EPP_FLAGS=(.*)$", env, re.MULTILINE).group(1)
            self.assertRegex(env, r"(?m)^FAIRWAY_EPP_FLAGS=$")
            for given in ("", example):
                root.serves(*shlex.split(start.replace("$FAIRWAY_EPP_FLAGS", given)), user=NOBODY)
            if shutil.which("systemd-analyze"):
                path = "/usr/lib/systemd/system/fairway-epp.service"
                verified = run("systemd-analyze", "verify", f"--root={root.path}", "--man=no", "--recursive-errors=no", path)
                self.assertNotIn("fairway-epp", verified)
                run("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(root.path) + path)

        with self.subTest("an upgrade keeps what the owner changed"):
            with open(root.path / "etc/fairway/epp.env", "a") as file:
                file.write("# mine\n")
            root.run("dpkg", "-i", "/fairway.deb")
            self.assertIn("# mine", (root.path / "etc/fairway/epp.env").read_text())

        with self.subTest("the end"):
            root.run("dpkg", "-r", "fairway")
            self.assertFalse((root.path / "usr/bin/fairway").exists())
            self.assertTrue((root.path / "etc/fairway/epp.env").exists())
            root.run("dpkg", "-P", "fairway")
            self.assertEqual(self.files() ^ self.before, set())

    def test_it_depends_on_libraries_alone(self):
        self.assertTrue(all(re.match(r"lib[a-z]", d) for d in self.depends), self.depends)
        self.assertNotIn("libprotobuf", " ".join(self.depends))


class Portable(unittest.TestCase):
    """The binary of the .tar.gz, which is the image's."""

    @classmethod
    def setUpClass(cls):
        cls.archive = made("portable")
        folder = tempfile.TemporaryDirectory(prefix="fairway-root-")
        cls.addClassCleanup(folder.cleanup)
        with tarfile.open(cls.archive) as tar:
            cls.names = tar.getnames()
            tar.extractall(folder.name)
        (cls.folder,) = pathlib.Path(folder.name).iterdir()
        cls.binary = cls.folder / "bin/fairway"

    def test_what_is_in_it(self):
        top = self.archive.name.removesuffix(".tar.gz")
        self.assertEqual({n.split("/")[0] for n in self.names}, {top})
        for name in ("bin/fairway", "LICENSE", "etc/fairway/epp.env", "etc/fairway/manifests/default.yaml", f"lib/fairway/libfairway_envoy-{VERSION}.so",
                     "lib/systemd/system/fairway-epp.service", "share/man/man1/fairway.1.gz"):
            self.assertIn(f"{top}/{name}", self.names)

    def test_it_needs_glibc_alone(self):
        needed = set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", str(self.binary))))
        self.assertLessEqual(needed, {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"})
        newest = max((tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([0-9.]+)", run("objdump", "-T", str(self.binary)))))
        self.assertLessEqual(newest, (2, 36), "the .tar.gz is said to run with Debian 12's glibc")

    def test_it_runs_with_nothing_else_there(self):
        libraries = re.findall(r"(/\S+) \(0x", run("ldd", str(self.binary)))
        with tempfile.TemporaryDirectory(prefix="fairway-root-") as folder:
            root = Root(folder)
            for library in libraries:
                target = root.path / library.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
            (root.path / "usr/bin").mkdir(parents=True)
            shutil.copy(self.binary, root.path / "usr/bin/fairway")
            shutil.copytree(self.folder / "etc", root.path / "etc")
            os.chmod(folder, 0o755)
            self.assertIn(VERSION, root.run("/usr/bin/fairway", "version", user="65532:65532"))
            # TLS and all: the certificate is made by the OpenSSL inside.
            root.serves("/usr/bin/fairway", "epp", "-f", "/etc/fairway/manifests", user="65532:65532")


class Dockerfile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        text = (SOURCE / "deploy/docker/Dockerfile").read_text()
        text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
        cls.stages = []
        arguments = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            word, rest = line.split(None, 1)
            if word == "ARG":  # a default, as far as is known here
                name, value = rest.split("=", 1)
                arguments[name] = value
                continue
            rest = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), rest)
            assert word in ("FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT"), f"unknown instruction {word}"
            if word == "FROM":
                cls.stages.append([])
            cls.stages[-1].append((word, rest))

    def test_stages_and_paths(self):
        names = [re.search(r" AS (\w+)$", stage[0][1]) for stage in self.stages]
        known = [m.group(1) for m in names if m]
        self.assertEqual(known, ["build"])
        for stage in self.stages:
            self.assertRegex(stage[0][1], r"@sha256:[0-9a-f]{64}( AS \w+)?$", "a tag can be another image each day")
            for word, rest in stage:
                if word == "COPY" and rest.startswith("--from="):
                    self.assertIn(rest.split()[0].removeprefix("--from="), known)
                elif word == "COPY":
                    for path in rest.split()[:-1]:
                        self.assertTrue((SOURCE / path).exists(), path)
                elif word == "RUN":
                    for program in re.findall(r"(?:^|&& )(\S+)", rest):
                        self.assertTrue("/" not in program or os.access(SOURCE / program, os.X_OK), program)

    def test_the_result(self):
        last = dict(self.stages[-1])
        self.assertEqual([word for word, _ in self.stages[-1]], ["FROM", "COPY", "USER", "EXPOSE", "ENTRYPOINT"])
        entry = json.loads(last["ENTRYPOINT"])
        self.assertEqual(entry[0], last["COPY"].split()[-1])
        self.assertEqual(entry[1:], ["epp"])
        pod = render(GATEWAY)["Deployment", "llama-epp"]["spec"]["template"]["spec"]
        context = pod["securityContext"]
        self.assertEqual(last["USER"], f"{context['runAsUser']}:{context['runAsGroup']}")
        self.assertEqual(sorted(map(int, last["EXPOSE"].split())), [p["containerPort"] for p in pod["containers"][0]["ports"]])
        self.assertNotIn("command", pod["containers"][0])
        self.assertIn("build/portable/fairway", last["COPY"])


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: installing into a root of its own needs root")
        sys.exit(77)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unittest.main()
