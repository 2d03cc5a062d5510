"""1,000 Pods, 50 changes a second, 200 requests a second: no request to a Pod that was gone before it arrived, none lost."""

import collections
import os
import random
import threading
import time
import unittest

import cluster
from cluster import Api, Pods, Scenario, await_that, support
from load import Load

PODS = 1000
CHANGES = 50  # a second
SECONDS = 12
GRACE = 1.0  # from "terminating" to the end of the server


def address(i):
    return f"127.1.{i // 250}.{i % 250 + 1}"


class Churn(Scenario):
    crds = ("inferencepools-v1",)

    def new_api(self):
        api = Api(self.cluster.port, self.cluster.path("ca.crt"), self.cluster.admin_token)
        self.addCleanup(api.close)
        return api

    def create_pods(self):
        def some(start):
            pods = Pods(self.new_api(), self.space)
            for i in range(start, PODS, 4):
                pods.add(f"pod-{i}", address(i), {"app": "pool"}, node="node")
        threads = [threading.Thread(target=some, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def fault(self, i, what):
        """Of the server at address i: "refuse" is a server that is not there."""
        answer = support.ask(self.sim_port, "POST", "/sim/faults", {"endpoint": address(i), "requests": what})
        assert answer.status == 200, answer

    def churn(self, rng):
        """Pods end, as the API server and a kubelet have it, and come anew at their address. Returns when each was told to
        go, and when it was gone."""
        pods = Pods(self.new_api(), self.space)
        names = {i: f"pod-{i}" for i in range(PODS)}
        going, waiting, told, gone = {}, collections.deque(), [], []
        changes = 0
        began = time.monotonic()
        while changes < CHANGES * SECONDS:
            delay = began + changes / CHANGES - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            changes += 1
            ended = [i for i, (at, _) in going.items() if time.monotonic() - at > GRACE]
            if ended:
                i = ended[0]
                at, name = going.pop(i)
                self.fault(i, "refuse")
                gone.append((i, time.monotonic()))
                pods.delete(name, grace=0)
                waiting.append(i)
            elif len(waiting) > 20:
                i = waiting.popleft()
                names[i] = f"pod-{i}-{changes}"
                self.fault(i, "ok")
                told.append((i, None, time.monotonic()))
                pods.add(names[i], address(i), {"app": "pool"}, node="node")
                changes += 1  # two writes
            else:
                i = rng.choice([i for i in names if i not in going and i not in waiting])
                told.append((i, time.monotonic(), None))
                pods.delete(names[i], grace=30)
                going[i] = (time.monotonic(), names[i])
        return told, changes, time.monotonic() - began, {names[i] for i in names if i not in going and i not in waiting}

    @staticmethod
    def cpu(process):
        with open(f"/proc/{process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_churn(self):
        servers = [f"{address(i)}={address(i)}:{{port}}" for i in range(PODS)]
        port = cluster.free_ports(1)[0]
        sim = self.start(cluster.Process([cluster.FAIRWAY, "sim", "--model", "llama", "--time-scale", "0.05",
                                          "--listen", "control=127.0.0.1:0",
                                          *[w for s in servers for w in ("--listen", s.format(port=port))]]))
        sim.await_printed("^ready")
        self.sim_port = int(sim.printed("http://127.0.0.1:")[0].rsplit(":", 1)[1].split()[0].strip("/"))
        self.pool(port)
        self.create_pods()

        began = time.monotonic()
        epp = self.epp(interval="2s")
        await_that(lambda: len(epp.addresses()) == PODS, epp.text)
        start = time.monotonic() - began
        print(f"\n{PODS} Pods known {start * 1000:.0f} ms after the start; {epp.await_synced().split('server=')[1]}")
        self.assertLess(start, 3)

        # A replica that takes this one's place, behind a gateway that is there already: to its first answer.
        envoy = self.envoy(epp)
        self.assertEqual(envoy.complete().status, 200)
        port_of_picker = epp.grpc
        epp.close()
        began = time.monotonic()
        epp = self.epp(grpc_port=port_of_picker, interval="2s", wait=False)
        while (status := envoy.complete().status) != 200:
            self.assertLess(time.monotonic() - began, 10, (status, epp.text()))
            time.sleep(0.005)
        print(f"{(time.monotonic() - began) * 1000:.0f} ms from a replica's start to its first request served")
        epp.read_ports()
        load = self.start(Load(envoy.port))
        cpu = self.cpu(epp)
        publications = epp.metric("fairway_kubernetes_publications_total")
        told, changes, took, alive = self.churn(random.Random(1))
        requests = load.stop()

        outcomes = collections.Counter(r.status for r in requests)
        self.assertEqual(set(outcomes), {200}, (outcomes, envoy.text(), epp.text()))
        self.assertGreater(len(requests), 100 * SECONDS)
        # How late a Pod's going was heeded: 0 if no request went there after it was told.
        late = [0.0]
        for r in requests:
            i_told = [t for t in told if f"{address(t[0])}:{port}" == r.server]
            last = max((t for t in i_told if (t[1] or t[2]) <= r.started), key=lambda t: t[1] or t[2], default=None)
            if last is not None and last[1] is not None:
                late.append(r.started - last[1])
        self.assertLess(max(late), GRACE)
        print(f"{changes} changes in {took:.1f} s, {len(requests)} requests, {len({r.server for r in requests})} servers, "
              f"{self.cpu(epp) - cpu:.2f} s of CPU for it, a Pod's going heeded within {max(late) * 1000:.0f} ms, "
              f"{epp.metric('fairway_kubernetes_publications_total') - publications:.0f} publications")
        # And what is known in the end is what is there.
        epp.await_addresses(*(f"{address(int(name.split('-')[1]))}:{port}" for name in alive))
        self.assertGreater(took, SECONDS - 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
