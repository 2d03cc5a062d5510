"""Steady load through a gateway, and what became of each request."""

import collections
import http.client
import json
import threading
import time

Request = collections.namedtuple("Request", "started ended status server")


class Load:
    """`rate` requests a second from `threads` kept-alive clients until stop(). Nothing is repeated."""

    def __init__(self, port, rate=200, threads=8, model="llama"):
        self.port, self.model = port, model
        self.done = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(threads / rate, i * 1.0 / rate), daemon=True)
                        for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def client(self, period, offset):
        body = json.dumps({"model": self.model, "prompt": "hello", "max_tokens": 1})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        next_at = time.monotonic() + offset
        while not self.stopping.is_set():
            delay = next_at - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            next_at = max(next_at + period, time.monotonic() - 1)
            started = time.monotonic()
            try:
                connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                status, server = answer.status, answer.getheader("x-served-by")
            except (OSError, http.client.HTTPException) as error:
                status, server = repr(error), None
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            self.done.append(Request(started, time.monotonic(), status, server))
        connection.close()

    def stop(self):
        """All requests, in no order."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
        return list(self.done)

    def close(self):
        self.stopping.set()
