"""What reaches the model server and what comes back: bodies, headers, streams."""

import http.client
import json
import socket
import time
import unittest

from support import UP_ARGS, Scenario, Upgrades, await_that, model, old_pool, pool, says_back, upgraded


def chat(text, **more):
    return {"model": "llama", "messages": [{"role": "user", "content": text}], **more}


def ways(*modes):
    """Arguments of `fairway up`: with the picker inside Envoy one way, over ext_proc each of these body modes."""
    return [("--body-mode", mode) for mode in modes] if "--ext-proc" in UP_ARGS else [()]


class Bodies(Scenario):
    def behind(self, *args, objects=None):
        echo = self.echo()
        return echo, self.up(*args, objects=objects or [pool()], ports=[echo.port])

    def told(self, answer):
        self.assertEqual(answer.status, 200, answer)
        return json.loads(answer.body)

    def check_sizes(self, up):
        for size in (10, 100_000, 1_000_000, 10_000_000):
            body = json.dumps(chat("x" * size))
            told = self.told(up.ask("POST", "/v1/chat/completions", body, {"content-type": "application/json"}))
            self.assertEqual(told["length"], len(body))

    def test_large_bodies(self):
        _, up = self.behind()
        self.check_sizes(up)

    def test_large_bodies_full_duplex(self):
        _, up = self.behind("--body-mode", "full-duplex")
        self.check_sizes(up)

    def test_large_bodies_streamed(self):
        _, up = self.behind("--body-mode", "streamed")
        self.check_sizes(up)

    def test_too_large_a_body_is_413(self):
        echo, up = self.behind()
        connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
        status = None
        try:
            connection.request("POST", "/v1/completions", b"x" * (65 << 20))
            status = connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):
            status = 413  # refused and closed before we were done sending
        finally:
            connection.close()
        self.assertEqual(status, 413)
        self.assertEqual(echo.requests, 0)

    def test_chunked_request(self):
        for args in ((), ("--body-mode", "buffered"), ("--body-mode", "full-duplex")):
            with self.subTest(args):
                _, up = self.behind(*args)
                body = json.dumps(chat("y" * 50_000)).encode()
                connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
                connection.request("POST", "/v1/chat/completions", (body[i:i + 7000] for i in range(0, len(body), 7000)),
                                   {"content-type": "application/json"}, encode_chunked=True)
                response = connection.getresponse()
                told = json.loads(response.read())
                connection.close()
                self.assertEqual(response.status, 200)
                self.assertEqual(told["length"], len(body))

    def test_rewritten_model_has_the_right_length(self):
        objects = [old_pool(), model("short", "Critical", {"a-much-longer-model-name": 1})]
        for args in ((), *(("--body-mode", mode) for mode in ("buffered", "full-duplex", "streamed"))):
            with self.subTest(args):
                _, up = self.behind(*args, objects=objects)
                body = '{"prompt" : "a\\u00e9",  "model":"short" ,"x":[1.0,12345678901234567890]}'
                told = self.told(up.ask("POST", "/v1/completions", body, {"content-type": "application/json"}))
                want = body.replace("short", "a-much-longer-model-name")
                self.assertEqual(told["body"], want)  # all but the name as it was
                if "content-length" in told["headers"]:
                    self.assertEqual(int(told["headers"]["content-length"]), len(want))
                else:
                    self.assertEqual(told["headers"].get("transfer-encoding"), "chunked")

    def test_buffered_keeps_content_length(self):
        for args in ways("buffered"):
            _, up = self.behind(*args)
            told = self.told(up.ask("POST", "/v1/completions", {"model": "m", "prompt": "x"}))
            self.assertEqual(int(told["headers"]["content-length"]), told["length"])

    def test_clients_cannot_choose_the_endpoint(self):
        echo, other = self.echo(), self.echo()
        up = self.up(objects=[pool()], ports=[echo.port])
        headers = {"x-gateway-destination-endpoint": f"127.0.0.1:{other.port}",
                   "X-Gateway-Destination-Endpoint-Served": "a", "x-fairway-pool": "default/other", "x-other": "stays"}
        for method, body in (("POST", {"model": "m", "prompt": "x"}), ("GET", None)):
            told = self.told(up.ask(method, "/v1/completions", body, headers))
            self.assertEqual(told["headers"].get("x-gateway-destination-endpoint"), f"127.0.0.1:{echo.port}")
            self.assertNotIn("x-gateway-destination-endpoint-served", told["headers"])
            self.assertNotIn("x-fairway-pool", told["headers"])
            self.assertEqual(told["headers"]["x-other"], "stays")
        self.assertEqual(other.requests, 0)

    def test_paths_nobody_knows_pass_through(self):
        _, up = self.behind()
        told = self.told(up.ask("PUT", "/anything/else?q=%20", b"\x00\xff binary"))
        self.assertEqual((told["method"], told["path"], told["length"]), ("PUT", "/anything/else?q=%20", 9))

    def test_an_upgrade_is_served_at_once_and_its_frames_pass(self):
        for way in ways("buffered", "full-duplex", "streamed"):
            with self.subTest(way):
                server = self.start(Upgrades())
                up = self.up(*way, objects=[pool()], ports=[server.port])
                connection, head = upgraded(up.port)
                with connection:
                    self.assertTrue(head.startswith("HTTP/1.1 101 "), head + up.text())
                    self.assertIn(f"x-gateway-destination-endpoint: 127.0.0.1:{server.port}", server.heads[0].lower())
                    for message in (b"hello", b"{", b"x" * 300_000):
                        self.assertTrue(says_back(connection, message), up.text())
                await_that(lambda: server.hung_up == 1, up.text)

    def test_a_compressed_body_is_passed_on_unread(self):
        for way in ways("buffered", "full-duplex", "streamed"):
            with self.subTest(way):
                _, up = self.behind(*way, objects=[old_pool(), model("m", "Critical", {"other": 1})])
                for path in ("/v1/responses", "/v1/chat/completions"):
                    body = b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 10
                    told = self.told(up.ask("POST", path, body, {"content-encoding": "zstd", "content-type": "application/json"}))
                    self.assertEqual((told["length"], told["headers"]["content-encoding"]), (len(body), "zstd"))
                refused = up.ask("POST", "/v1/responses", body, {"content-encoding": "identity"})
                self.assertEqual(refused.status, 400)

    def test_what_clients_send_beside_plain_json(self):
        """Each passes, and what is in it is understood where it can be."""
        objects = [old_pool(), model("m", "Critical", {"a-longer-name": 1})]
        kinds = [
            ("/v1/embeddings", '{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}', {}),
            ("/v1/completions", '\ufeff{"model":"m","prompt":"x"}', {}),
            ("/v1/completions", '{"prompt":"x","model":"m"}', {"content-type": "application/json; charset=utf-8"}),
            ("/v1/completions", '{"model":"no","prompt":"y","model":"m","prompt":"x"}', {"content-encoding": "identity"}),
            ("/v1/completions", '{"prompt":"\\u0000 \u00e9","model":"m"}', {"content-type": "text/plain"}),
            ("/v1/completions", '{"x":' + "[" * 400 + "]" * 400 + ',"prompt":"x","model":"m"}', {}),
            ("/v1/messages", '{"system":"s","messages":[{"role":"user","content":"x"}],"max_tokens":1,"model":"m"}', {}),
            ("/v1/responses", '{"input":[{"role":"user","content":"x"}],"model":"m"}', {}),
        ]
        for way in ways("buffered", "full-duplex"):
            _, up = self.behind(*way, objects=objects)
            for path, body, headers in kinds:
                with self.subTest(way=way, body=body[:60]):
                    body = body.encode()
                    told = self.told(up.ask("POST", path, body, headers))
                    self.assertEqual(told["body"].encode(), body.replace(b'"model":"m"', b'"model":"a-longer-name"'))
            # What is no JSON on a path that nobody knows.
            form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
            told = self.told(up.ask("POST", "/v1/audio/transcriptions", form, {"content-type": "multipart/form-data; boundary=b"}))
            self.assertEqual(told["length"], len(form))
            told = self.told(up.ask("POST", "/v1/rerank", '{"model":"m","query":"x","documents":["y"]}'))
            self.assertIn("a-longer-name", told["body"])
            # A model that only a header names.
            told = self.told(up.ask("POST", "/v1/completions", '{"prompt":"x"}', {"x-llm-d-model-name-rewrite": "m2"}))
            self.assertEqual(told["body"], '{"model":"m2","prompt":"x"}')
            self.assertEqual(up.ask("POST", "/v1/completions", '{"prompt":"x"}').status, 400)

    def test_a_client_that_waits_to_be_asked_for_its_body(self):
        for way in ways("buffered", "full-duplex"):
            with self.subTest(way):
                _, up = self.behind(*way)
                body = b'{"model":"m","prompt":"x"}'
                with socket.create_connection(("127.0.0.1", up.port), timeout=60) as connection:
                    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
                                       b"content-length: %d\r\n\r\n" % len(body))
                    self.assertTrue(connection.recv(64).startswith(b"HTTP/1.1 100 "))
                    connection.sendall(body)
                    answer = http.client.HTTPResponse(connection)
                    answer.begin()
                    self.assertEqual(answer.status, 200)

    def check_stream(self, *args):
        # A step of the engine is 12 ms at full speed; slowed down so that the machine's own noise is small beside it.
        sim = self.sim(1, "--decode-ms", "100", time_scale="1")
        up = self.up(*args, objects=[pool()], ports=sim.ports)
        connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=60)
        body = json.dumps(chat("hi", stream=True, max_tokens=12))
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        self.assertEqual(response.status, 200)
        self.assertIn("text/event-stream", response.getheader("content-type"))
        times, last = [], b""
        while True:
            line = response.readline()
            if not line:
                break
            if line.startswith(b"data:"):
                times.append(time.monotonic())
                last = line
        connection.close()
        self.assertIn(b"[DONE]", last)
        self.assertGreaterEqual(len(times), 12)
        gaps = [b - a for a, b in zip(times, times[1:])]
        # In one lump nearly all gaps would be none.
        spaced = sum(gap > 0.05 for gap in gaps)
        self.assertGreaterEqual(spaced, 9, gaps)
        self.assertGreater(times[-1] - times[0], 0.8)

    def test_events_arrive_when_sent(self):
        self.check_stream()

    def test_events_arrive_when_sent_through_the_picker(self):
        self.check_stream("--response-mode", "full")

    def test_events_arrive_when_sent_full_duplex(self):
        self.check_stream("--response-mode", "full", "--body-mode", "full-duplex")


if __name__ == "__main__":
    unittest.main(verbosity=2)
