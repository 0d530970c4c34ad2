"""The worker of runtime, with a known share of extra work in every step; run by benchmarks/measuring.py."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from runtime.measure import device, samples
from runtime.worker import Worker, explain
from trainers.serving import serve

SHARE = "SLOWED_BY"  # in the environment: 0.05 makes every step 5% longer


class Slowed(Worker):
    """Its steps do nothing useful for a while."""

    def warm(self, **arguments: Any) -> dict[str, Any]:
        """Warm up, see how long a step is, and warm up to longer ones: now no other worker is being loaded."""
        super().warm(**arguments)
        session = self._session
        assert session is not None
        typical = statistics.median(samples(device(session, self._x), seconds=0.5, at_least=20)) / 1e9
        extra, step = float(os.environ[SHARE]) * typical, session.step

        def slow() -> None:
            step()
            until = time.perf_counter() + extra
            while time.perf_counter() < until:
                pass

        session.step = slow  # type: ignore[method-assign]
        return super().warm(**arguments)


if __name__ == "__main__":
    serve(Slowed(), explain)
