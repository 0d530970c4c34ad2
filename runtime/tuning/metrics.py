"""What a search finds the best of."""

from __future__ import annotations

METRICS = {"latency": "device", "throughput": "throughput", "size": "device"}  # and the regime that it is timed in
