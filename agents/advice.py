"""What to do about a run in which much of what the models wrote was lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agents.customers import FORMS
from agents.options import PlayOptions

MANY = 0.2
"""From this part of the messages, or of the dialogues, on a run ends with a word about it."""

_FORM = ("call among words", "no action", "not JSON", "wrong keys", "wrong types")
"""The mistakes of a model that has other habits than its agent."""


def advice(
    options: PlayOptions,
    *,
    outputs: int,
    malformed: Mapping[str, int],
    dialogues: int,
    user_faults: Mapping[str, int],
) -> Iterator[str]:
    """Yield what to do about a run's messages that came to nothing, a line for each cause.

    Args:
        options: Who played.
        outputs: Messages of the agent's.
        malformed: Those of them that were no action, by kind of mistake.
        dialogues: How many dialogues there were.
        user_faults: Those of them that a fault of the customer's ended, by its kind.
    """
    if not options.needs_model:
        malformed = {}
    thoughts = malformed.get("only thoughts", 0)
    if thoughts and thoughts >= MANY * outputs:
        yield (
            f"hint: {thoughts} of {outputs} messages were malformed because thoughts took all of "
            f"--max-tokens ({options.max_tokens}): raise it, or have the model think less"
        )
    misshapen = {kind: malformed.get(kind, 0) for kind in _FORM}
    wrong, worst = sum(misshapen.values()), max(misshapen, key=misshapen.__getitem__)
    if wrong and wrong >= MANY * outputs:
        yield (
            f"hint: {wrong} of {outputs} messages were malformed, most of them as {worst!r}: "
            f"{_remedy(options)}"
        )
    silent = user_faults.get("said nothing", 0) if options.user in FORMS else 0
    if silent and silent >= MANY * dialogues:
        yield (
            f"hint: the customer's model said nothing in {silent} of {dialogues} dialogues: if it "
            f"thinks first, raise --user-max-tokens ({options.user_max_tokens})"
        )


def _remedy(options: PlayOptions) -> str:
    if options.constrain:
        return f"raise --max-tokens ({options.max_tokens})"
    if options.resolved_format() == "native":
        return "try --tool-format text or --constrain"
    hidden = options.agent == "tool_calling" and (
        options.is_served or options.tool_format == "text"
    )
    return f"try {'--tool-format native or ' if hidden else ''}--constrain"
