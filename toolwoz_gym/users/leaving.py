"""Whether a customer leaves before the agent can do what it has just said.

Someone who says "Yes, please book it. Goodbye!" in one breath is gone before anything is booked.
That is no failure of the agent's. One who says "Yes, that is all, goodbye" to an agent that only
claims to have booked has left in good faith.

A goodbye comes too soon if the same message

* says yes, and the agent has just offered to do something;
* asks for something, or for the first time to have something done; or
* tells a value of the task's goals that nobody has said before.

The rules go by plain patterns, sentence by sentence, and rather find too little. Who is fed up with
the agent may leave at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from toolwoz_gym.toolwoz.lexicon import normal, sentences
from toolwoz_gym.types import Message, Task
from toolwoz_gym.users.instructed import goal_values


def leaves_too_soon(task: Task, messages: Sequence[Message], words: str) -> bool:
    """Return whether a customer's last words want something of the agent's.

    Args:
        task: What the customer wants.
        messages: What customer and agent said so far.
        words: What the customer says at last, without the end marker.
    """
    said = sentences(words)
    if any(map(_FED_UP.search, said)):
        return False
    last = messages[-1] if messages and messages[-1].role == "assistant" else None
    if last is not None and _offers(last.content) and any(map(_accepts, said)):
        return True
    mine = [s for m in messages if m.role == "user" for s in sentences(m.content)]
    return bool(_asked(said) - _asked(mine)) or _tells_something_new(task, messages, words)


_FED_UP = re.compile(
    r"\b(?:useless|ridiculous|unacceptable|frustrat\w{1,4}|forget (?:it|about it)|never ?mind"
    r"|giv(?:e|ing) up|waste|elsewhere|(?:some|any)(?:one|body) else|another (?:agent|company)"
    r"|get back to you)\b"
)
_SATISFIED = re.compile(
    r"\b(?:that|this|it)(?:'s| is| was|'ll be| will be) (?:all|it|everything)\b"
    r"|\ball (?:set|good|(?:that )?i)\b|\beverything\b|\bnothing (?:else|more)\b|\bhelpful\b"
)

_OFFER = re.compile(
    r"\b(?:shall|should|may|can|could) (?:i|we)\b|\b(?:would|do) you (?:like|want|wish|prefer)\b"
    r"|\bwant (?:me|us) to\b|\b(?:proceed|go ahead|continue|confirm|book|reserve|cancel)\b|\byes\b"
)
_WAITS = re.compile(
    r"\byes(?:/| or )no\b|[(\"]yes\b|\bplease (?:confirm|reply|say)\b"
    r"|\blet me know (?:if|whether) (?:you|i)\b"
)
"""How an agent asks without a question mark."""
_CLOSING = re.compile(
    r"\b(?:any|some)thing\b|\b(?:any|some) (?:other|further|more)\b|\b(?:what|how) else\b"
    r"|\bhow (?:can|may) i\b|\b(?:that|be|this) all\b|\bfeedback\b|\bsurvey\b"
    r"|\b(?:end|close|finish) (?:the|this|our|your) (?:chat|conversation|dialogue|session|call)\b"
    r"|\b(?:help|assist)(?: you)?(?: with)?(?: that| further| more| today| now)*\?"
)
_PROMISE = re.compile(r"\bi(?:'ll| will| can| could| would|'d)\b")
_IS_THAT_RIGHT = re.compile(
    r"\bis (?:that|this|it|everything) (?:ok|okay|all ?right|fine|correct|right|acceptable)\b"
)


def _offers(turn: str) -> bool:
    """Return whether an agent asks whether to do something."""
    parts = sentences(turn)
    promises = any(map(_PROMISE.search, parts))
    return any(
        _OFFER.search(s) or (promises and _IS_THAT_RIGHT.search(s))
        for s in parts
        if (s.endswith("?") or _WAITS.search(s)) and not _CLOSING.search(s)
    )


_FILLERS = (
    r"^\W*(?:(?:and|also|but|oh|ok|okay|well|now|then|so|actually|great|perfect|wonderful|excellent"
    r"|good|hello|hi|thanks|thank you|yes|yeah|sure|no|please)\b\W+){0,4}"
)
_YES = re.compile(
    rf"{_FILLERS}(?:(?:yes|yeah|yep|yup|sure|certainly|absolutely|definitely|of course|please do"
    r"|go ahead|do (?:it|that|so)|let's do (?:it|that)|sounds (?:good|great|perfect|fine)"
    r"|that (?:works|sounds|would be|will be fine)|works for me|(?:that(?:'s| is) )?correct"
    r"|confirmed|i (?:do |hereby )?(?:confirm|agree|accept))\b|please\W*$)"
)
_NO = re.compile(r"\b(?:no|not|never|later|myself)\b|n't\b")


def _accepts(sentence: str) -> bool:
    """Return whether a sentence says yes to an offer."""
    if _NO.search(sentence) or (_SATISFIED.search(sentence) and "please" not in sentence):
        return False
    return _YES.search(sentence) is not None


_DEED = (
    r"(?:book|reserve|find|search|look (?:for|up|into)|check|tell me|give me|get me|cancel|change"
    r"|modify|update|upgrade|exchange|return|refund|proceed|go ahead|add|remove|use my|arrange"
    r"|order|transfer|process|provide|switch|recommend|suggest|charge|try another"
    r"|(?:make|put|do) (?:it|the|that|this)(?! a (?:great|good|nice)))"
)
_IMPERATIVE = re.compile(rf"(?:{_FILLERS}|\bplease\W+)(?:(?:kindly|just|also) )*({_DEED})\b")
_REQUEST = re.compile(
    r"(?<!more )\b(?:can|could|would|will) you (?:please |kindly |also |just )*"
    r"(?!be\b|have\b|believe\b|imagine\b)(\w+)"
)
_WANT = re.compile(
    rf"{_FILLERS}i(?:(?:'d| would)(?: also| really| just)* like"
    r"|(?:'d| would| also| still| do| really| just)* (?:need|want|prefer))\b"
    r"(?! to (?:thank|say|end|stop|express)\b| to (?:leave|go)(?: now)?\W*$| nothing\b| no\b|\W*$)"
    rf"|{_FILLERS}i(?:'ll| will) (?:take|have|go (?:with|for)) "
    rf"|{_FILLERS}i(?:'m| am) (?:also )?looking for\b"
)
_QUESTION = re.compile(
    rf"{_FILLERS}(?:what|which|when|where|who|how|is|are|does|do|did|can|could|would|will|has|have"
    r"|any|may|should)\b.*\?$"
    rf"|{_FILLERS}(?:what|which|when|where|how)(?:'s| is| are| much| many| long| do| does| can)\b"
    r"|\b(?:(?:what|which|when|where|how)(?:'s| is| are| much| many| long| time| about)"
    r"|(?:can|could|may) i (?:have|get|book))\b.*\?$"
)
_PLEASANTRY = re.compile(
    r"\bhow (?:are you|nice|great|kind|lovely)\b|\bthank (?:you enough|you more)\b|\bthat all\b"
    r"|\b(?:any|some)thing else\b|\bmore could\b|\bthank you\?"
)


def _asked(said: Iterable[str]) -> set[str]:
    """Return what sentences ask for: deeds by their verb, all else by the sentence."""
    asked = set[str]()
    for sentence in said:
        if _SATISFIED.search(sentence):
            asked |= {found[1] for found in _IMPERATIVE.finditer(sentence)}
            continue
        asked |= {found[1] for p in (_IMPERATIVE, _REQUEST) for found in p.finditer(sentence)}
        if _WANT.search(sentence):
            asked.add(sentence)
        if _QUESTION.search(sentence) and not _PLEASANTRY.search(sentence):
            asked.add(sentence)
    return asked


def _tells_something_new(task: Task, messages: Sequence[Message], words: str) -> bool:
    """Return whether words have a value of the goals that has not been said before."""
    now, before = normal(words), normal("\n".join(message.content for message in messages))
    values = set(map(normal, goal_values(task)))
    return any(_says(now, value) and not _says(before, value) for value in values - _TELL_NOTHING)


_TELL_NOTHING = {"", "yes", "no", "none", "true", "false", "dontcare", "not mentioned"}


def _says(text: str, value: str) -> bool:
    return value in text and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None
