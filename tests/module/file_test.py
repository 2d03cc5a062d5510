"""The shared object as a file: what it needs, what it shows, and whether this Envoy has what it asks for."""
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "envoy"))
import support  # noqa: E402

MODULE = os.environ["FAIRWAY_MODULE"]
SOURCE = os.environ.get("FAIRWAY_SOURCE", ".")
OLDEST_LIBC = (2, 35)  # Ubuntu 22.04's; Debian 12 has 2.36


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@unittest.skipIf(os.environ.get("FAIRWAY_SANITIZE"), "a sanitizer's build needs its run-time")
class TheFile(unittest.TestCase):
    def test_it_needs_libc_alone(self):
        needed = [re.search(r"\[(.*)\]", line).group(1) for line in lines("readelf", "-d", MODULE) if "(NEEDED)" in line]
        self.assertLessEqual(set(needed), {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"})
        versions = {tuple(map(int, v.split("."))) for line in lines("nm", "-D", "--undefined-only", MODULE)
                    for v in re.findall(r"@GLIBC_([0-9.]+)", line)}
        self.assertLessEqual(max(versions), OLDEST_LIBC)

    def test_it_shows_hooks_alone(self):
        shown = [line.split()[-1] for line in lines("nm", "-D", "--defined-only", MODULE)]
        self.assertTrue(shown)
        for name in shown:
            self.assertTrue(name.startswith("envoy_dynamic_module_on_"), name)

    def test_its_name_has_the_version(self):
        version = lines(support.FAIRWAY, "version")[0]
        number = re.search(r"libfairway_envoy-([0-9.]+)\.so$", MODULE).group(1)
        self.assertIn(number, version)


class TheInterface(unittest.TestCase):
    def envoy(self):
        if support.ENVOY:
            return support.ENVOY
        self.skipTest("FAIRWAY_ENVOY names no Envoy")

    def test_this_envoy_has_every_function_we_declare(self):
        exported = set()
        for line in lines("nm", "-D", "--defined-only", self.envoy()):
            exported.add(line.split()[-1])
        with open(os.path.join(SOURCE, "src/frontends/envoy_module/abi.h")) as header:
            declared = {"envoy_dynamic_module_callback_" + name
                        for name in re.findall(r"FAIRWAY_ENVOY\((\w+)\)\(", header.read())}
        self.assertGreater(len(declared), 20)
        self.assertEqual(declared - exported, set())

    def test_the_file_asks_for_nothing_else(self):
        with open(os.path.join(SOURCE, "src/frontends/envoy_module/abi.h")) as header:
            declared = set(re.findall(r"FAIRWAY_ENVOY\((\w+)\)\(", header.read()))
        asked = {match.group(1) for line in lines("nm", "-D", "--undefined-only", MODULE)
                 if (match := re.search(r"envoy_dynamic_module_callback_(\w+)$", line))}
        self.assertTrue(asked)
        self.assertEqual(asked - declared, set())


if __name__ == "__main__":
    unittest.main()
