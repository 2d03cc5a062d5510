"""Attacks of ordinary HTTP clients, through a real Envoy: the picker inside it, or asked over ext_proc (FAIRWAY_UP_ARGS)."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
import unittest

import sources_scenario
import wire
from attack import REQUEST_HEAD, RawServer, ThroughEnvoy, support
from wire import field, frame


class Gateway(ThroughEnvoy):
    def test_unknown_models_beside_a_thousand_declared_ones(self):
        up = self.gateway(objects=[support.old_pool(), support.model("llama"),
                                   *(support.model(f"name-{i}-" + "n" * 60) for i in range(1000))])
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=150, after=120):
            threads = [threading.Thread(target=self.post, args=(up, json.dumps({"model": f"name-{i}-" + "m" * 4000, "prompt": "x"})))
                       for i in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def test_uploads_that_drip(self):
        up = self.gateway()
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=150, after=120), contextlib.ExitStack() as stack:
            many = self.uploads(up, 300, 1000, stack)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                for connection in many:
                    with contextlib.suppress(OSError):
                        connection.sendall(b" ")
                time.sleep(0.2)

    def test_large_bodies_beside_a_running_request(self):
        """Whether they pass or are refused, they end nobody else's."""
        up = self.gateway()
        statuses = []
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=700, after=400):
            running = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
            running.request("POST", "/v1/completions", json.dumps({"model": "llama", "prompt": "x", "max_tokens": 1000, "stream": True}),
                            {"content-type": "application/json"})
            answer = running.getresponse()
            self.assertEqual(answer.status, 200)
            for size in (45_000_000, 20_000_000, 5_000_000):
                statuses.append(self.post(up, b'{"model":"llama","prompt":"' + b"x" * size + b'"}'))
            self.assertIn(b"[DONE]", answer.read())
            running.close()
        self.assertLessEqual(set(statuses), {0, 200, 400, 413}, statuses)

    def test_readers_that_do_not_read(self):
        up = self.gateway()
        body = json.dumps({"model": "llama", "prompt": "x", "max_tokens": 2000, "stream": True})
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=250, after=200), contextlib.ExitStack() as stack:
            for _ in range(60):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.connect(("127.0.0.1", up.port))
                connection.sendall((REQUEST_HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
            time.sleep(1.5)

    def test_json_of_the_worst_shapes(self):
        up = self.gateway()
        shapes = (b"[" * 3_000_000, b'{"a":' * 600_000, b'{"model":"' + b"\\u0000" * 600_000 + b'"}', b"1" * 4_000_000,
                  b'{' + b'"k":1,' * 500_000 + b'"model":"m"}', b'{"messages":[' + b'{"content":[{"type":"text","text":"x"}]},' * 90_000)
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=300, after=200):
            for shape in shapes:
                self.post(up, shape)

    def test_a_render_server_that_is_silent(self):
        """It is left alone after three requests that waited for it, and one waits now and then to see whether it is back."""
        server = self.start(RawServer(sources_scenario.RENDERED["silence"]))
        up = self.gateway("--config-file", self.write("config.yaml", sources_scenario.TOKENS % server.port))
        with self.beside(up, ("gateway", up.port), pids=up.pids, peak=60, after=40):
            time.sleep(2.5)
        page = support.ask(up.admin, "GET", "/metrics").body.decode()
        self.assertIn("\nfairway_token_circuits_open 1\n", page)
        self.assertEqual(len(up.logged("the render server keeps requests waiting")), 1)

    def test_clients_that_leave(self):
        up = self.gateway()
        body = json.dumps({"model": "llama", "prompt": "x" * 1000, "max_tokens": 50, "stream": True})
        text = (REQUEST_HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}").encode()
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=200, after=150):
            for i in range(600):
                with socket.create_connection(("127.0.0.1", up.port), timeout=5) as connection:
                    connection.sendall(text[:len(text) * (i % 7) // 6])
        self.await_idle(up)

    def test_resets_by_the_ten_thousand_end_nobody_elses_call(self):
        """Envoy passes each on to the picker, on the connection that has everybody's calls."""
        up = self.gateway()
        request = b"".join(field(*one) for one in ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
                                                   (b":path", b"/v1/completions"), (b"content-type", b"application/json")))
        burst = b"".join(frame(wire.HEADERS, 4, stream, request) + frame(wire.DATA, 0, stream, b'{"model":') +
                         frame(wire.RST_STREAM, 0, stream, struct.pack(">I", 8)) for stream in range(1, 80, 2))
        # What is late is Envoy, which reads all this.
        with self.beside(up, ("gateway", up.port, "llama"), pids=up.pids, peak=2500, after=2500, late=20):
            for _ in range(600):
                with contextlib.suppress(OSError), contextlib.closing(wire.Connection(up.port, timeout=5)) as connection:
                    connection.send(burst)
        self.await_idle(up)

    def await_idle(self, up):
        """Nothing stays taken."""
        def idle():
            fleet = json.loads(support.ask(up.admin, "GET", "/debug/fleet").body)
            return sum(e["inflight"] for p in fleet["pools"] for e in p["endpoints"]) == 0
        support.await_that(idle, lambda: support.ask(up.admin, "GET", "/debug/fleet").body)


if __name__ == "__main__":
    unittest.main(verbosity=2)
