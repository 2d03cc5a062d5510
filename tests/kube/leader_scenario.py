"""Replicas of one picker: one is ready, all are warm."""

import os
import signal
import socket
import struct
import time
import unittest

from cluster import Scenario, await_that

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)


def health(port, service):
    """grpc.health.v1.Health/Check over a bare HTTP/2 connection; the status, or None for an error."""
    def frame(kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload

    def literal(name, value):
        return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
    head = b"".join(literal(n, v) for n, v in ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
                                               (b":path", b"/grpc.health.v1.Health/Check"), (b"te", b"trailers"),
                                               (b"content-type", b"application/grpc")))
    message = b"\x0a" + bytes((len(service),)) + service.encode() if service else b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, head) +
                           frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message))
        stream = connection.makefile("rb")
        while len(header := stream.read(9)) == 9:
            size = struct.unpack(">I", b"\0" + header[:3])[0]
            kind, flags = header[3], header[4]
            payload = stream.read(size)
            if kind == 0 and size >= 5:
                return payload[6] if len(payload) > 6 else UNKNOWN
            if kind == 1 and flags & 1:
                return None  # trailers without a message
    return None


class Leader(Scenario):
    crds = ("inferencepools-v1",)

    def replica(self, uid=""):
        """As the container of a Pod with this uid."""
        epp = self.epp("--ha-enable-leader-election", env={**os.environ, "POD_UID": uid})
        epp.health_port = int(epp.await_logged(r"serving .*health=\d+")[0].split("health=")[1].split()[0])
        return epp

    def test_one_leads_and_when_it_goes_the_other_does(self):
        servers = self.servers(["127.0.0.2"])
        self.pool(servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        first = self.replica()
        await_that(lambda: health(first.health_port, "readiness") == SERVING, first.text)
        second = self.replica()
        second.await_addresses(*servers.at("127.0.0.2"))
        for epp, ready in ((first, SERVING), (second, NOT_SERVING)):
            self.assertEqual(health(epp.health_port, "liveness"), SERVING)
            for name in ("readiness", "", "envoy.service.ext_proc.v3.ExternalProcessor"):
                self.assertEqual(health(epp.health_port, name), ready, name)
            self.assertEqual(health(epp.health_port, "other"), SERVICE_UNKNOWN)
        # Who follows serves all the same.
        self.assertEqual(self.envoy(second).served_by(), servers.at("127.0.0.2")[0])

        name = f"epp-{self.space}-pool.llm-d.ai"
        lease = self.api.must("GET", f"/apis/coordination.k8s.io/v1/namespaces/{self.space}/leases/{name}")["spec"]
        self.assertEqual(lease["leaseDurationSeconds"], 15)
        holder = lease["holderIdentity"]
        self.assertTrue(holder)

        # A leader that ends gives the Lease back.
        began = time.monotonic()
        self.assertEqual(first.terminate(), 0)
        await_that(lambda: health(second.health_port, "readiness") == SERVING, second.text)
        handed_over = time.monotonic() - began
        self.assertLess(handed_over, 10)  # and not 15: nobody had to wait for the lease's end

        # One that is killed cannot; the other waits for the lease to run out.
        third = self.replica()
        third.await_addresses(*servers.at("127.0.0.2"))
        self.assertEqual(health(third.health_port, "readiness"), NOT_SERVING)
        began = time.monotonic()
        second.process.send_signal(signal.SIGKILL)
        await_that(lambda: health(third.health_port, "readiness") == SERVING, third.text, 40)
        taken_over = time.monotonic() - began
        self.assertGreater(taken_over, 10)
        print(f"\nhanded over in {handed_over:.2f} s, taken over from a dead one in {taken_over:.1f} s")
        lease = self.api.must("GET", f"/apis/coordination.k8s.io/v1/namespaces/{self.space}/leases/{name}")["spec"]
        self.assertEqual(lease["leaseTransitions"], 2)
        self.assertNotEqual(lease["holderIdentity"], holder)


    def test_a_leader_that_was_killed_takes_its_own_lease_over_at_once(self):
        servers = self.servers(["127.0.0.2"])
        self.pool(servers.port)
        self.pods.add("a", "127.0.0.2", {"app": "pool"})
        first = self.replica("one")
        await_that(lambda: health(first.health_port, "readiness") == SERVING, first.text)
        other = self.replica("two")
        other.await_addresses(*servers.at("127.0.0.2"))
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        began = time.monotonic()
        again = self.replica("one")
        await_that(lambda: health(again.health_port, "readiness") == SERVING, again.text)
        took = time.monotonic() - began
        self.assertLess(took, 8)  # of the 15 that another would have to wait
        self.assertEqual(health(other.health_port, "readiness"), NOT_SERVING)
        print(f"\nits own again after {took:.2f} s")


if __name__ == "__main__":
    unittest.main(verbosity=2)
