"""What the picker goes by when the model servers' metrics go away: every request is still answered, and the metrics say on which
rung of the ladder it was decided."""

import re
import unittest
import urllib.request

from support import PATIENCE, Scenario, await_that, pool


class Ladder(Scenario):
    def decisions(self, up):
        """Rung -> picks so far."""
        url = re.search(r"metrics (http://\S+?)\)", "\n".join(up.out)).group(1)
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            page = answer.read().decode()
        return {rung: int(n) for rung, n in re.findall(r'fairway_decisions_total\{pool="default/pool",rung="([^"]+)"\} (\d+)', page)}

    def rung(self, up):
        """That of one request, which is answered."""
        before = self.decisions(up)
        self.assertEqual(up.complete("llama").status, 200)
        after = self.decisions(up)
        return next(rung for rung, n in after.items() if n != before.get(rung, 0))

    def test_metrics_that_go_away_cost_no_request(self):
        sim = self.sim(3)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.await_same_rung(up, "fresh")
        for fault in ("hang", "garbage", "404", "500", "empty", "redirect", "huge"):
            with self.subTest(fault):
                for number in range(3):
                    sim.set(number, metrics=fault)
                self.await_same_rung(up, "ledger")
                # Without scrapes our own requests are all that is known: they spread.
                served = {up.served_by("llama", max_tokens=4) for _ in range(30)}
                self.assertEqual(served, set(sim.names()))
                for number in range(3):
                    sim.set(number, metrics="ok")
                self.await_same_rung(up, "fresh")

    def test_one_endpoint_without_metrics_stays_in_use(self):
        sim = self.sim(2)
        up = self.up(objects=[pool()], ports=sim.ports)
        self.await_same_rung(up, "fresh")
        sim.set(1, metrics="500")
        up.await_logged("metrics page failed.*" + sim.names()[1])
        self.assertTrue(all(up.complete("llama").status == 200 for _ in range(20)))
        sim.pin(0, waiting=9)
        sim.set(1, metrics="ok")
        self.await_same(up, sim.names()[1])

    def await_same_rung(self, up, want):
        await_that(lambda: all(self.rung(up) == want for _ in range(5)), lambda: f"{want} in {self.decisions(up)}")


if __name__ == "__main__":
    unittest.main()
