"""python -m export.check PATH…: are the files on disk those that their records describe?"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from trainers import cli
from trainers.manifest import UserError

if TYPE_CHECKING:
    from export.inspect.verify import Finding, Scope

EXAMPLES = """\
examples:
  python -m export.check                                   everything under artifacts/
  python -m export.check convnext --strict                 one model; stale files fail too
  python -m export.check artifacts/convnext/convnext-dynamo-exact-int8.onnx
  python -m export.check --json | jq '.files[] | select(.status != "ok")'

  ok          size and sha256 are those of the record, and so is the checkpoint that its metadata name
  changed     at least one byte is another; to see what it means: python -m export.diff FILE OTHER
  missing     its record is there, the file is not
  unreadable  the record is damaged
  stale       intact, but made from a checkpoint or fp32 file that is gone or was made again
  no record   nobody vouches for it

Exit status 1: something is changed, missing or unreadable; with --strict also stale or without a record.
"""


def parser() -> cli.Parser:
    made = cli.Parser(
        prog="python -m export.check",
        description="Verify files against their records: sizes, hashes, parents, metadata.",
        epilog=EXAMPLES,
    )
    made.add_argument("paths", metavar="PATH", nargs="*",
                      help="folders, models, records or their files (default: all artifacts)")  # fmt: skip
    made.add_argument("--strict", action="store_true", help="stale files and files without a record fail too")
    cli.add_common(made)
    return made


def main() -> int:
    arguments = parser().parse_args()
    from export.inspect.verify import DAMAGED, scope

    if not arguments.paths and not arguments.artifacts.is_dir():
        raise UserError(f"{arguments.artifacts}: no such folder; name it with --artifacts, or give a path")
    checked = scope([_path(name, arguments.artifacts) for name in arguments.paths] or [arguments.artifacts])
    findings = _findings(checked)
    failing = {*DAMAGED, *(("stale", "no record") if arguments.strict else ())}
    bad = [finding for finding in findings if finding.status in failing]
    _report(findings, checked, len(bad), arguments)
    return cli.FAILED if bad else cli.OK


def _path(name: str, artifacts: Path) -> Path:
    """A path, or a model's folder under the artifacts."""
    own = artifacts / name
    return own if own.is_dir() and not Path(name).exists() else Path(name)


def _findings(checked: Scope) -> list[Finding]:
    """One for each file; where several records describe one, the worst."""
    from export.inspect.verify import DAMAGED, Verifier

    verifier = Verifier()
    found: dict[Path, Finding] = {}
    for voucher in cli.track(checked.vouchers, "check"):
        for finding in verifier.findings(voucher):
            known = found.get(finding.path)
            if known is None or finding.status in DAMAGED or known.status == "ok":
                found[finding.path] = finding
    missing = checked.unrecorded(found)
    return sorted([*found.values(), *missing], key=lambda finding: finding.path)


def _report(findings: list[Finding], checked: Scope, bad: int, arguments: argparse.Namespace) -> None:
    leftovers = checked.leftovers()
    if arguments.json:
        files = [{"path": str(f.path), "status": f.status, "detail": f.detail} for f in findings]
        cli.emit({"schema": 1, "files": files, "leftovers": [str(path) for path in leftovers], "failed": bad})
    elif findings:
        cli.table(f"{len(findings)} files", ("status", "file"), [(f.status, str(f.path)) for f in findings])
        for finding in findings:
            if finding.detail:
                print(f"{finding.status}: {finding.path}: {finding.detail}")
    lines = [f"left by an export that was killed, can be deleted: {path}" for path in leftovers]
    counts = Counter(finding.status for finding in findings)
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no record names a file"
    lines.append(f"FAILED: {bad} of {len(findings)} files ({summary})" if bad else f"OK: {summary}")
    for line in lines:
        print(line, file=sys.stderr if arguments.json else sys.stdout)


if __name__ == "__main__":
    cli.run(main)
