"""bench/quality.py on a tiny workload: that it keeps working. How well anybody places is not looked at.

Environment: FAIRWAY_BUILD, and FAIRWAY_ENVOY (else tools/get-envoy)."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import quality  # noqa: E402

TINY = """
description: everything that requests can be, in a few seconds
classes:
- name: chat
  arrivals: {process: poisson, rate: 8}
  system-prompt: {count: 2, tokens: 320}
  turns: {uniform: [1, 3]}
  think: 0.1
  prompt: {uniform: [50, 100]}
  answer: {uniform: [2, 8]}
- name: tuned
  arrivals: {process: constant, rate: 3}
  adapters: {count: 3}
  priority: -1
  prompt: 60
  answer: 3
fleet:
  engines: [{count: 2, decode-ms: 4, max-loras: 2, lora-load-ms: 10}, {name: old, count: 1, prefill-rate: 4000, max-loras: 2}]
"""
PAGE = "before\n" + "".join(quality.MARKS) + "after\n"


class Quality(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.workload = self.write("tiny.yaml", TINY)
        self.page = self.write("page.md", PAGE)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)
        return path

    def read(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read()

    def run_it(self, *argv):
        envoy = ["--envoy", os.environ["FAIRWAY_ENVOY"]] if os.environ.get("FAIRWAY_ENVOY") else []
        return subprocess.run(
            [sys.executable, "-B", os.path.join(HERE, "quality.py"), "--build", os.environ["FAIRWAY_BUILD"], *envoy,
             "--json", os.path.join(self.folder, "out.json"), "--markdown", self.page, "--plot",
             os.path.join(self.folder, "out.svg"), *argv], capture_output=True, text=True, timeout=200, check=False)

    def test_round_robin_and_fairway_get_the_same_and_answer_all(self):
        done = self.run_it("--workload", self.workload, "--only", "round-robin,fairway", "--seconds", "2", "--settle", "0.5",
                           "--attempts", "1", "--warmup", "0.1")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        entry = json.loads(self.read("out.json"))["tiny"]["contenders"]
        self.assertEqual(list(entry), ["round-robin", "fairway"])
        for contender in entry.values():
            row = contender["mean"][""]
            self.assertGreater(row["requests"], 8)
            self.assertEqual(row["answered"], row["requests"], row)
            self.assertEqual(set(contender["mean"]), {"", "chat", "tuned"})
            self.assertGreater(row["cached"], 0.05)  # the system prompts, and what earlier turns said
            self.assertGreaterEqual(row["spread"], 1)
            self.assertLess(0, row["first_token"]["p50"])
            self.assertLessEqual(row["first_token"]["p99"], row["total"]["p99"])
        # Later turns come when earlier ones have ended, so only a class without them has the same number for sure.
        self.assertEqual(*(each["mean"]["tuned"]["requests"] for each in entry.values()))
        page = self.read("page.md")
        self.assertIn("**tiny**: everything that requests can be", page)
        self.assertTrue(page.startswith("before\n") and page.endswith("after\n"))
        xml.dom.minidom.parseString(self.read("out.svg"))
        # A contender that is run again takes the place of its own figures only.
        again = self.run_it("--workload", self.workload, "--only", "round-robin", "--seconds", "1", "--settle", "0.2",
                            "--attempts", "1", "--no-pages")
        self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
        later = json.loads(self.read("out.json"))["tiny"]["contenders"]
        self.assertEqual(later["fairway"], entry["fairway"])
        self.assertNotEqual(later["round-robin"], entry["round-robin"])

    def test_what_is_wrong_is_said(self):
        for argv, said in ((["--workload", "nothing"], "no nothing; there are"),
                           (["--only", "envoy"], "no envoy; there are"),
                           (["--workload", "dies"], "its servers change"),
                           (["--only", "reference"], "give --reference-epp"),
                           (["--seeds", "0"], "want 1 or more --seeds")):
            done = self.run_it(*argv)
            self.assertNotEqual(done.returncode, 0, argv)
            self.assertIn(said, done.stderr)
        self.assertEqual(self.run_it("--list").returncode, 0)

    def test_quantiles_are_by_nearest_rank(self):
        self.assertEqual(quality.quantile([3, 1, 2, 4], 0.5), 2)
        self.assertEqual(quality.quantile([3, 1, 2, 4], 0.99), 4)
        self.assertEqual(quality.quantile([], 0.5), 0)


if __name__ == "__main__":
    unittest.main()
