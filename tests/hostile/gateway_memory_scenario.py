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
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=900, after=400), contextlib.ExitStack() as stack:
            for connection in self.uploads(up, 24, 60_000_000, stack):
                with contextlib.suppress(OSError):
                    for _ in range(50):
                        connection.sendall(piece)

    def test_many_uploads_that_do_not_end(self):
        """None of them is large for itself, and all come as fast as they can. Over ext_proc each byte goes three ways: what is
        late there is Envoy, which has them all to carry."""
        up = self.gateway()
        piece = b" " * 500_000
        ext_proc = "--ext-proc" in os.environ.get("FAIRWAY_UP_ARGS", "")
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=900, after=400, **({"late": 9} if ext_proc else {})), \
                contextlib.ExitStack() as stack:
            many = self.uploads(up, 100, 9_000_000, stack)
            for _ in range(17):
                for connection in many:
                    with contextlib.suppress(OSError):
                        connection.sendall(piece)


if __name__ == "__main__":
    unittest.main(verbosity=2)
