"""A client that does nothing wrong, in a process of its own: honest.py KIND PORT ARGUMENT [PID...]. It asks again and again until
its standard input ends, at least LEAST times, then prints as JSON how often it asked, what failed, and the longest that it
waited: in all, and without the time in which it, or a thread of these processes, was ready to run and had no processor.

ext_proc      exchanges over one connection, as a gateway has it
ext_proc_new  each over a connection of its own
health        Check with the name ARGUMENT, as a probe: a connection each
page          GET ARGUMENT, a connection each
gateway       completions of the model ARGUMENT, over a connection that is kept
told          the next that a peer is told, over one connection; ARGUMENT: a folder with its certificate
"""

import contextlib
import http.client
import json
import pathlib
import select
import socket
import ssl
import sys
import time

import wire

PAUSE = 0.02
PATIENCE = 20
LEAST = 3


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


class Told(Page):
    def __init__(self, port, folder):
        super().__init__(port, folder)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE
        if folder:
            self.tls.load_cert_chain(folder + "/tls.crt", folder + "/tls.key")

    def ask(self):
        if self.connection is None:
            self.connection = self.tls.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE))
            self.connection.sendall(b"GET /fairway.peers.v1/told HTTP/1.1\r\nHost: x\r\n\r\n")
            if not self.connection.recv(1 << 20).startswith(b"HTTP/1.1 200 "):
                raise wire.Closed("not told")
        if not self.connection.recv(1 << 20):
            raise wire.Closed("the end")


KINDS = {"told": Told, "ext_proc": ExtProc, "ext_proc_new": ExtProcNew, "health": Health, "page": Page, "gateway": Gateway}


def run_delays(pids):
    """Of each thread of these processes: the seconds that it has waited for a processor, as the kernel counts them."""
    delays = {}
    for pid in pids:
        for file in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                delays[pid, file.parent.name] = int(file.read_text().split()[1]) / 1e9
    return delays


def longest_delays(before, after):
    """Of each process the thread that had to wait for longest, all together: they work for one another."""
    longest = {}
    for (pid, thread), delay in after.items():
        longest[pid] = max(longest.get(pid, 0.0), delay - before.get((pid, thread), 0.0))
    return sum(longest.values())


def main():
    kind, port = sys.argv[1], int(sys.argv[2])
    client = KINDS[kind](port, sys.argv[3])
    pids = ["self", *sys.argv[4:]]
    count, failures, worst, worst_served = 0, [], 0.0, 0.0
    while count < LEAST or not select.select([sys.stdin], [], [], PAUSE)[0]:
        delays = run_delays(pids)
        began = time.monotonic()
        try:
            client.ask()
        except (wire.Closed, OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}"[:200])
            client.again()
        took = time.monotonic() - began
        worst = max(worst, took)
        if took > worst_served:
            worst_served = max(worst_served, took - longest_delays(delays, run_delays(pids)))
        count += 1
        if count == 1:
            print("began", flush=True)
    print(json.dumps({"count": count, "failed": len(failures), "failures": failures[:5], "worst": worst,
                      "worst_served": worst_served}), flush=True)


main()
