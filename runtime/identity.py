"""What makes two results comparable: that one machine gave both."""

from __future__ import annotations

from trainers.manifest import Environment


def identity(environment: Environment) -> dict[str, str]:
    """What tells one machine from another: host, CPU, cores, and GPUs without their driver."""
    gpus = [gpu.rpartition(", ")[0] for gpu in environment.gpu.split("; ")] if environment.gpu else ["none"]
    return {"host": environment.host, "cpu": environment.cpu, "cores": str(environment.cores), "gpu": "; ".join(gpus)}
