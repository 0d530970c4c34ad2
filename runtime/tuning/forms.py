"""Forms: makes what the search asks for, by export's own functions, each once."""

from __future__ import annotations

from collections.abc import Callable

from export import pipeline
from export.artifact import Artifact, Found
from export.job import Job, find_made, knows_gelu
from export.variant import Variant
from runtime.targets import Target, target_of
from trainers.allocator import keep_freed_memory
from trainers.manifest import CheckFailed, UserError


class Forms:
    """A model's artifacts, those there are and those still to be made."""

    def __init__(self, job: Job, asked: list[Variant]) -> None:
        """`asked` is what a plain export makes: PyTorch's weights, where there are any, and the fp32 file."""
        self.job, self.asked = job, asked
        self.failures: dict[str, str] = {}  # by artifact: why it could not be made

    @property
    def plain(self) -> Variant:
        """The fp32 file as it was exported."""
        return self.asked[-1]

    @property
    def from_module(self) -> bool:
        """Whether the files are exported here, from a module."""
        return self.job.file is None

    @property
    def has_gelu(self) -> bool:
        return self.from_module and knows_gelu(self.job)

    def name(self, form: Variant) -> str:
        return form.name(self.job.checkpoint.model)

    def make(self, form: Variant, say: Callable[[str], None]) -> Target | None:
        """The artifact, found or made now; None where that failed, or where it is not right (see `failures`).

        Rewrites that match nothing are no failure: there is no such form.
        """
        try:
            found = find_made(self.job, form)
            if found is None:
                say(f"making {self.name(form)}")
                keep_freed_memory()
                found = pipeline.export(self.job, form)
        except pipeline.NothingMatched:
            return None
        except (UserError, CheckFailed) as error:
            reason = str(error)
        else:
            if found.parity.passed:
                return self.target(found)
            reason = found.parity.reason
        self.failures[self.name(form)] = reason
        say(f"  failed: {reason}")
        return None

    def target(self, record: Artifact) -> Target:
        return target_of(Found(path=self.job.folder / record.file.path, record=record))
