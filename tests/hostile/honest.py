"""A client that does nothing wrong, in a process of its own: honest.py KIND PORT [ARGUMENT]. It asks again and again until
its standard input ends, then prints as JSON how often it asked, what failed, and the longest that it waited.

ext_proc      exchanges over one connection, as a gateway has it
ext_proc_new  each over a connection of its own
health        Check with the name ARGUMENT, as a probe: a connection each
page          GET ARGUMENT, a connection each
gateway       completions of the model ARGUMENT, over a connection that is kept
"""

import http.client
import json
import select
import sys
import time

import wire

PAUSE = 0.02
PATIENCE = 20


class ExtProc:
    def __init__(self, port, _):
        self.port, self.connection = port, None

    def ask(self):
        if self.connection is None:
            self.connection = wire.Connection(self.port, timeout=PATIENCE)
        wire.exchange(self.connection, messages=(wire.request_headers(), wire.request_body(wire.completion())))

    def again(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class ExtProcNew(ExtProc):
    def ask(self):
        super().ask()
        self.again()


class Health(ExtProc):
    def __init__(self, port, name):
        super().__init__(port, name)
        self.message = wire.put(1, name.encode()) if name else b""

    def ask(self):
        with wire.Connection(self.port, timeout=PATIENCE) as connection:
            answer = wire.exchange(connection, wire.CHECK, (self.message,))
            if answer[5:] != b"\x08\x01":
                raise wire.Closed(f"not serving: {answer!r}")


class Page:
    def __init__(self, port, path):
        self.port, self.path, self.connection = port, path, None

    def ask(self):
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.connection.request("GET", self.path)
        answer = self.connection.getresponse()
        answer.read()
        self.again()
        if answer.status != 200:
            raise wire.Closed(answer.status)

    def again(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class Gateway(Page):
    def ask(self):
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = json.dumps({"model": self.path or "llama", "prompt": "hello", "max_tokens": 1})
        self.connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise wire.Closed(answer.status)


KINDS = {"ext_proc": ExtProc, "ext_proc_new": ExtProcNew, "health": Health, "page": Page, "gateway": Gateway}


def main():
    kind, port = sys.argv[1], int(sys.argv[2])
    client = KINDS[kind](port, sys.argv[3] if len(sys.argv) > 3 else "")
    count, failures, worst = 0, [], 0.0
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        began = time.monotonic()
        try:
            client.ask()
        except (wire.Closed, OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}"[:200])
            client.again()
        worst = max(worst, time.monotonic() - began)
        count += 1
        if count == 1:
            print("began", flush=True)
    print(json.dumps({"count": count, "failed": len(failures), "failures": failures[:5], "worst": worst}), flush=True)


main()
