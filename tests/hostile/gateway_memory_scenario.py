"""Attacks of ordinary HTTP clients on memory, through a real Envoy: the picker inside it, or asked over ext_proc."""

import contextlib
import http.client
import json
import os
import unittest

from attack import MB, ThroughEnvoy, support


class Gateway(ThroughEnvoy):
    def test_names_that_clients_choose(self):
        """Long, many, broken ones, in bodies and headers: the page stays small and is UTF-8."""
        up = self.gateway()
        with self.beside(up, ("gateway", up.port, "llama"), ("page", up.admin, "/metrics"), pids=up.pids, peak=250, after=200):
            connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=20)
            for i in range(30):
                self.post(up, json.dumps({"model": f"{i}" + "n" * 4000, "prompt": "x"}), connection=connection)
                for name in ("x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite", "x-gateway-inference-fairness-id",
                             "x-llm-d-inference-fairness-id", "x-gateway-inference-objective"):
                    for value in (f"{i}" + "v" * 40_000, f"a\xff{i}", f"{i}" + "x" * (127 - len(str(i))) + "\u00e9" * 9):
                        self.post(up, '{"model":"llama","prompt":"x"}', {name: value.encode("utf-8" if i % 2 else "latin-1", "replace")},
                                  connection=connection)
            connection.close()
        text = support.ask(up.admin, "GET", "/metrics").body
        self.assertLess(len(text), 11 * MB)
        text.decode()

    def test_uploads_that_do_not_end(self):
        up = self.gateway()
        piece = b" " * MB
        # Over ext_proc Envoy holds the bodies, and near its bound it answers 503 until silent uploads are over.
        ext_proc = "--ext-proc" in os.environ.get("FAIRWAY_UP_ARGS", "")
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=1300 if ext_proc else 900,
                         after=None if ext_proc else 400, may_fail=1000 if ext_proc else 0), contextlib.ExitStack() as stack:
            for connection in self.uploads(up, 24, 60_000_000, stack):
                with contextlib.suppress(OSError):
                    for _ in range(50):
                        connection.sendall(piece)


if __name__ == "__main__":
    unittest.main(verbosity=2)
