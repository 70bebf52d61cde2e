"""Customers: scripted ones, and recorded ones that are replayed."""

from __future__ import annotations

from collections.abc import Sequence

from toolwoz_gym.types import UsageError, UserSimulator
from toolwoz_gym.users.replay import ReplayUser
from toolwoz_gym.users.scripted import ScriptedUser

NAMES = "scripted, scripted:noise=0.3 or replay"
"""The customers that have a name."""


def make_user(user: str | UserSimulator | Sequence[str]) -> UserSimulator:
    """Return a customer.

    Args:
        user: ``"scripted"``, or with a noise from 0 to 1 ``"scripted:noise=0.3"``; ``"replay"``,
            which says what was recorded with the task; a list of utterances that are said in
            order; or any customer, which is returned as it is.

    Raises:
        UsageError: There is no such customer.
    """
    if isinstance(user, str):
        return _named(user)
    if isinstance(user, Sequence):
        if not all(isinstance(line, str) for line in user):
            raise UsageError("a customer that says given lines needs them all to be text")
        return ReplayUser(tuple(user))
    if not callable(getattr(user, "reply", None)):
        raise UsageError(f"a {type(user).__name__} is no customer: choose {NAMES}")
    return user


def _named(name: str) -> UserSimulator:
    kind, colon, options = name.partition(":")
    if name == "replay":
        return ReplayUser()
    if kind != "scripted":
        raise UsageError(f"no customer {name!r:.60}: choose {NAMES}, or hand over a UserSimulator")
    if not colon:
        return ScriptedUser()
    option, _, value = options.partition("=")
    if option != "noise":
        raise UsageError(f"no customer {name!r:.60}: its one option is noise, as in {NAMES}")
    try:
        return ScriptedUser(noise=float(value))
    except ValueError:
        raise UsageError(f"noise={value!r:.60}: choose a number from 0 to 1") from None
