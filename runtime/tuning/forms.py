"""Forms: makes what the search asks for, by export's own functions, each once."""

from __future__ import annotations

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

    def make(self, form: Variant) -> Target | None:
        """The artifact, found or made now; None where that failed, or where it is not right (see `failures`)."""
        try:
            found = find_made(self.job, form)
            if found is None:
                keep_freed_memory()
                found = pipeline.export(self.job, form)
        except (UserError, CheckFailed) as error:
            self.failures[self.name(form)] = str(error)
            return None
        if not found.parity.passed:
            self.failures[self.name(form)] = found.parity.reason
            return None
        return self.target(found)

    def target(self, record: Artifact) -> Target:
        return target_of(Found(path=self.job.folder / record.file.path, record=record))
