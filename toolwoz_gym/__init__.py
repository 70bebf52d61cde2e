"""Gymnasium environments for dialogue agents that use tools."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym

from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.tau_bench.data import load_tau_bench
from toolwoz_gym.tau_bench.domain import Scoring, TauBench
from toolwoz_gym.toolwoz import VERSIONS, ToolWOZ
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import UsageError, UserSimulator
from toolwoz_gym.users import make_user
from toolwoz_gym.users.instructed import InstructedUser

__version__ = "0.1.0"

__all__ = [
    "Dialogue",
    "DialogueEnv",
    "UsageError",
    "load_world",
    "make_env",
    "make_tau_bench",
    "make_toolwoz",
]

MAX_STEPS = 45
"""ToolWOZ's limit on assistant messages: 15 agent turns of at most 3 model outputs."""

TAU_MAX_STEPS = 30
"""τ-bench's limit on assistant messages."""


def make_toolwoz(
    *,
    version: int = 0,
    world: str | ToolWOZ = "auto",
    split: str = "train",
    user: str | UserSimulator | Sequence[str] = "scripted",
    max_steps: int = MAX_STEPS,
    render_mode: str | None = None,
) -> DialogueEnv:
    """Make a ToolWOZ environment: what ``gym.make("ToolWOZ-v0", ...)`` calls.

    Args:
        version: 0 scores as the published ToolWOZ does, 1 is the repaired benchmark: see
            docs/toolwoz.md. ``gym.make`` takes it from the id.
        world: See :func:`load_world`.
        split: ``train``, ``val`` or ``test``; for MultiWOZ also ``test450``.
        user: The customer: ``"scripted"``, with noise if wanted (``"scripted:noise=0.3"``, from 0
            to 1); ``"replay"``, which says what a person said when the task's dialogue was recorded
            (MultiWOZ only); any :class:`~toolwoz_gym.types.UserSimulator`; or a list of utterances
            that are said in order, the first of them as the opening.
        max_steps: The dialogue is cut off after so many assistant messages.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        UsageError: There is no such world, split or customer, or its data is missing.
    """
    if max_steps < 1:
        raise UsageError(f"max_steps is {max_steps}: it must be at least 1")
    domain = load_world(world, version, split) if isinstance(world, str) else world
    if domain.version != version:
        raise UsageError(f"the world answers as ToolWOZ-v{domain.version}, not as v{version}")
    dialogue = Dialogue(domain, make_user(user), max_steps)
    return DialogueEnv(dialogue, split=split, render_mode=render_mode)


def make_tau_bench(
    *,
    domain: str | TauBench = "retail",
    world: str | TauBench | None = None,
    split: str | None = "test",
    user: str | UserSimulator | Sequence[str] = "scripted",
    scoring: Scoring = "upstream",
    max_steps: int = TAU_MAX_STEPS,
    render_mode: str | None = None,
) -> DialogueEnv:
    """Make a τ-bench environment: what ``gym.make("TauBench-v0", ...)`` calls.

    Args:
        domain: ``"retail"`` or ``"airline"``, which must have been prepared.
        world: The same by the name that other environments, and command lines, have for it; None
            goes by ``domain``.
        split: ``train``, ``dev`` or ``test`` for retail, ``test`` for airline; None: ``train``, or
            else the only one.
        user: The customer: see :func:`make_toolwoz`; ``"scripted"`` is the one that tells the
            task's instruction (:class:`~toolwoz_gym.users.instructed.InstructedUser`).
        scoring: See :data:`~toolwoz_gym.tau_bench.domain.Scoring`.
        max_steps: The dialogue is cut off, and scores 0, after so many assistant messages.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        UsageError: There is no such domain, split, rule or customer, or its data is missing.
    """
    if max_steps < 1:
        raise UsageError(f"max_steps is {max_steps}: it must be at least 1")
    chosen = domain if world is None else world
    desk = load_tau_bench(chosen, scoring) if isinstance(chosen, str) else chosen
    if desk.scoring != scoring:
        raise UsageError(f"the domain scores by the rule {desk.scoring!r}, not {scoring!r}")
    if split is None:
        split = "train" if "train" in desk.splits else desk.splits[0]
    customer = InstructedUser(desk.end_marker) if user == "scripted" else make_user(user)
    return DialogueEnv(Dialogue(desk, customer, max_steps), split=split, render_mode=render_mode)


def make_env(env_id: str, **arguments: Any) -> DialogueEnv:
    """Make an environment of this package by its id, without Gymnasium's wrappers.

    Raises:
        UsageError: There is no such environment, or its arguments are wrong.
    """
    ours = [name for name, spec in gym.registry.items() if spec.entry_point in _ENTRY_POINTS]
    if env_id not in ours:
        raise UsageError(f"no environment {env_id!r}: choose {' or '.join(ours)}")
    env = gym.make(env_id, disable_env_checker=True, **arguments).unwrapped
    assert isinstance(env, DialogueEnv)
    return env


def load_world(name: str, version: int = 0, split: str | None = None) -> ToolWOZ:
    """Return a world of ToolWOZ by its name.

    Args:
        name: ``"builtin"``, the generated city, with options if wanted
            (``"builtin:domains=1,seed=7"``, see :class:`~toolwoz_gym.toolwoz.builtin.CityOptions`);
            ``"multiwoz"``, the prepared MultiWOZ data; ``"auto"``, MultiWOZ where it is prepared
            and has the split, else the built-in city.
        version: How it answers and scores: 0 or 1.
        split: What ``"auto"`` is to have; None: whatever there is.

    Raises:
        UsageError: There is no such world, or its data is not prepared.
    """
    from toolwoz_gym.toolwoz.multiwoz import is_prepared, load_multiwoz, multiwoz_folder

    if version not in range(len(VERSIONS)):
        raise UsageError(f"ToolWOZ has no version {version}: choose 0 or 1")
    kind, _, options = name.partition(":")
    if kind == "builtin":
        return load_builtin(CityOptions.parse(options), version)
    if name == "multiwoz":
        return load_multiwoz(version)
    if name != "auto":
        raise UsageError(f"no world {name!r}: choose auto, builtin, builtin:<options> or multiwoz")
    if is_prepared():
        multiwoz = load_multiwoz(version)
        if split is None or split in multiwoz.splits:
            _announce(multiwoz.name, f"it is prepared in {multiwoz_folder()}")
            return multiwoz
        why = f"MultiWOZ as prepared has no split {split!r:.60}, only {', '.join(multiwoz.splits)}"
    else:
        why = f"MultiWOZ is not prepared in {multiwoz_folder()}"
    city = load_builtin(CityOptions(), version)
    if split is not None and split not in city.splits:
        raise UsageError(
            f"{why}; the world 'builtin' has no split {split!r:.60}, only {', '.join(city.splits)}"
        )
    _announce(city.name, why)
    return city


@cache  # once is enough
def _announce(name: str, why: str) -> None:
    logging.getLogger(__name__).warning("world='auto' stands for %r here: %s", name, why)


_ENTRY_POINTS = ("toolwoz_gym:make_toolwoz", "toolwoz_gym:make_tau_bench")

for _version in (0, 1):
    _id = f"ToolWOZ-v{_version}"
    gym.register(id=_id, entry_point=_ENTRY_POINTS[0], kwargs={"version": _version})
    # Of one name, the lower version counts as out of date. Both stay: each has its own.
    gym.registry[_id].name, gym.registry[_id].version = _id, None
gym.register(id="TauBench-v0", entry_point=_ENTRY_POINTS[1])
