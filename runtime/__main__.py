"""python -m runtime VERB: measure artifacts, and look at what was measured."""

from __future__ import annotations

from runtime.commands import verbs
from trainers import cli

EXAMPLES = """\
examples:
  python -m runtime bench convnext
  python -m runtime report --csv
"""


def parser() -> cli.Parser:
    """The command line: one sub-command a verb."""
    made = cli.Parser(prog="python -m runtime", description="Measure artifacts, and look at what was measured.",
                      epilog=EXAMPLES)  # fmt: skip
    words = made.add_subparsers(metavar="VERB", required=True, parser_class=cli.Parser)
    for name, verb in verbs().items():
        word = words.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY, epilog=verb.EXAMPLES)
        verb.flags(word)
        word.set_defaults(run=verb.run)
    return made


def main() -> int:
    arguments = parser().parse_args()
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    cli.run(main)
