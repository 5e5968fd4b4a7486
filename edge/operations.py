"""The tables of `docs/operations.md`, printed from the code: metrics, exit statuses, errors."""

import errno
from collections.abc import Mapping
from typing import Final

from edge.closing import Sign
from edge.exit_codes import MEANING, ExitCode
from edge.failures import OF_ERRNO, OF_NAME, OF_TYPE, Verdict
from edge.metrics import metrics_markdown
from edge.study import Outcome

_WORDS: Final[Mapping[Outcome, str]] = {
    Outcome.RETRY: "tried again by itself",
    Outcome.DECLINE: "declined",
    Outcome.HOLD: "held",
}


def operations_markdown() -> str:
    """What stands between the marks of `docs/operations.md`."""
    parts = [
        ("Metrics", metrics_markdown()),
        ("Exit statuses", _exit_statuses()),
        ("Held, declined, tried again: reasons and what to do", _reasons()),
        ("What closed a study", _signs()),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)


def _exit_statuses() -> str:
    rows = [f"| {code.value} | {MEANING[code]} |" for code in ExitCode]
    return "\n".join(["| status | meaning |", "|---|---|", *rows])


def _reasons() -> str:
    named: list[tuple[str, Verdict]] = [(errno.errorcode[each], OF_ERRNO[each]) for each in OF_ERRNO]
    named += [(kind.__name__, each) for kind, each in OF_TYPE.items()]
    named += [(name.rpartition(".")[2], each) for name, each in OF_NAME.items()]
    rows = [
        f"| {name} | {_WORDS[verdict.outcome]} | 0x{verdict.dimse_status:04X} | {verdict.next_step} |"
        for name, verdict in named
    ]
    head = ["| error | the work is | C-STORE status | what to do |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _signs() -> str:
    rows = [f"| {sign.name.lower().replace('_', ' ')} | {sign.value} |" for sign in Sign]
    return "\n".join(["| sign | shown as |", "|---|---|", *rows])
