"""What an agent's words assert: the part of a message that a customer may rely on.

An answer that is denied, doubted, asked or taken back is none. What is left of a message once all
of that is gone is what :mod:`.told` looks for values in. It goes by patterns, and none of them has
an open-ended gap, so that it takes linear time, whatever an agent says.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from toolwoz_gym.toolwoz.lexicon import ATTENTION


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one sentence says, in lower case."""

    stated: str
    """Its words without the clauses that state nothing."""
    denied: str = ""
    """Its clauses that deny something, as "it has no parking" does."""
    mentions: str = ""
    """What it speaks of: all that is not denied, questions included."""
    subjects: tuple[str, ...] = ()
    """The domains that its clauses begin with."""
    is_of_another: bool = False
    """Whether it is about something else, which it need not name."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What one message says to the customer."""

    sentences: tuple[Sentence, ...]
    disowned: str = ""
    """The sentences that take back what the agent has said: they may name what."""
    is_of_earlier: bool = False
    """Whether they speak of what the agent has told before."""
    corrects: bool = False
    """Whether it puts right what it takes back, and nothing else."""
    takes_all_back: bool = False
    """Whether nothing that the agent has said so far is to be believed."""
    never_means_it: bool = False
    """Whether nothing that the agent says from now on is to be believed."""


def heard(text: str) -> Speech:
    """Return what a customer makes of a message: of as much of it as is listened to."""
    return hear(text[:ATTENTION])


@lru_cache(maxsize=512)  # a dialogue is judged after each of its messages
def hear(text: str) -> Speech:
    """Return what a customer makes of what is listened to."""
    kept: list[Sentence] = []
    disowned: list[str] = []
    is_void = head = False
    sentences = _sentences(text)
    if len(sentences) > _SENTENCES:
        return Speech(())
    for sentence in sentences:
        if kept and _asks_back(sentence):  # "The phone number is 1. Isn't it?"
            kept.pop()
        elif _takes_back(sentence, spoken=bool(kept)):
            disowned.append(sentence)
            kept.clear()
            correction = _PAST.search(sentence)
            if correction is None:  # "that is wrong", "the following is false"
                is_void = True
            else:  # "sorry, that was wrong, the phone number is ..."
                after = _CLAUSE.split(sentence)
                last = max(n for n, c in enumerate(after) if _UNTRUE.search(c) or _PAST.search(c))
                kept.append(_sentence(", ".join(after[last + 1 :])))
        elif not head:  # "These are not the details:" is about all that follows
            kept.append(_sentence(sentence))
            head = sentence.endswith(":") and kept[-1].stated.strip(" ,:.") == ""
    said = " ".join(disowned)
    return Speech(
        () if is_void else tuple(kept),
        disowned=said,
        is_of_earlier=_EARLIER.search(said) is not None,
        corrects=bool(disowned) and any(s.stated.strip(" ,.") for s in kept) and not is_void,
        takes_all_back=_LIE.search(said) is not None or _ALL.search(said) is not None,
        never_means_it=_ALWAYS.search(said) is not None,
    )


def folded(text: str) -> str:
    """Return a text in lower case, of plain characters where there are such, without accents."""
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if _is_seen(c))
    return text.lower()


def _is_seen(character: str) -> bool:
    return character.isascii() or unicodedata.category(character) not in ("Mn", "Cf", "So")


_SIGNS = str.maketrans(
    {
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{NUMERO SIGN}": "number",
        **dict.fromkeys("\N{CROSS MARK}\N{BALLOT X}\N{MULTIPLICATION X}\N{NO ENTRY SIGN}", " no "),
    }
)
"""Signs that stand for words."""


def _sentences(text: str) -> list[str]:
    text = folded(text)[:ATTENTION]
    for start, end in _HIDDEN:
        while (a := text.find(start)) >= 0 and (b := text.find(end, a + len(start))) >= 0:
            text = f"{text[:a]} {text[b + len(end) :]}"
    text = re.sub(r"\b([0-5])\*(?=[ -]\w)", r"\1-star", _untabled(text))
    text = (
        re.sub(r"[*`_#]+", "", text)
        .replace("|", " , ")
        .replace(" n't", "n't")
        .replace("&", " and ")
    )
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    text = re.sub(r"\bst\.(?=\s)", "st", text)
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"\.{2,}", "..", text))
    text = re.sub(r"\bn[ .-]?[o0][ .-]?t\b", "not", text)
    return [s for part in _END.split(text) if (s := part.strip(" \t,-–—•"))]


def _untabled(text: str) -> str:
    """Return a text in which the cells of tables are called what heads their columns."""
    lines: list[str] = []
    above: list[str] = []
    heads: list[str] = []
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.strip(" |").split("|")] if "|" in line else []
        if cells and set(line) <= set("|-: "):
            heads = above
            continue
        if len(cells) == len(heads) > 2:
            line = ", ".join(f"{head}: {cell}" for head, cell in zip(heads, cells, strict=True))
        elif not cells:
            heads = []
        above = cells
        lines.append(line)
    return "\n".join(lines)


def _any(alternatives: str) -> str:
    """Return a pattern of alternatives that are written over several lines."""
    return re.sub(r"\s*\|\s*", "|", re.sub(r"\s+", " ", alternatives.strip()))


_HIDDEN = (
    ("<!--", "-->"),
    ("~~", "~~"),
    *((f"<{t}>", f"</{t}>") for t in ("think", "thinking", "reasoning", "del", "s", "strike")),
)
"""How what a customer is not shown, or is shown struck out, begins and ends."""

_SENTENCES = 400
"""A message of more sentences than that is babble: nobody can tell what it states."""

_END = re.compile(r"(?<=[.!?;])(?=\s)|\n+")

_CLAUSE = re.compile(
    r" ?(?:,| [-–—]{1,3} |\(|\)|:(?!\d)|\.\.) ?| (?:but|although|however|though|whereas|yet) "
)

_OWN = _any(
    r"""the | its? | they | you | your | their | there | an? | this | that's | i | we | our | phone
    | telephone | (?:internet|wi-?fi|parking)(?: access)? (?:is|are) | post ?code | postal
    | address | entrance | admission | price | travel"""
)
"""How a clause begins that has a subject of its own: "it has no bar, the phone number is 1"."""

_BREAK = re.compile(
    rf" ?(?:,|;|\.\.|\(|\)| [-–—]{{1,3}} ) ?(?:(?:and|so) )?(?=(?:{_OWN})\b)|(?<=free) ?: ?"
    r"| ?, ?(?=(?:and )?not (?:an? (?!chance|word|bit)|the|in|at|£|\d|[a-z]{2}\d))"
    r"| (?=(?:rather than|instead of|as opposed to)\b)"
    r"| ?,? ?\b(?<!thing )(?<!where )(?<!all )(?:but|although|however|though|whereas|yet)\b ?"
    rf"| and (?=(?:{_OWN}|is|has|have|takes?|costs?|leaves?|departs?|arrives?|located|no|not|with"
    r"|without|offers?|free)\b)"
)
"""Where a denial ends. "It has free wifi and no parking" is two clauses, "it has no wifi and
parking" is one."""

_POLITE = re.compile(
    _any(
        r"""\b(?:no|not a) (?:problem|worries|trouble|doubt|need|charge for)\b
        | \bif not\b | \bnot only\b | \bnothing else\b | \bwhy (?:not|don't)\b | \bnot right now\b
        | \b(?:don't|do not) (?:hesitate|worry|forget|mind)\b | \bnot (?:too |very )?far\b
        | \bno (?:extra|additional|further)\b | \bno (?=(?:later|earlier|more|less) than\b)
        | \bnot sure (?:if|whether) you\b | \bno\.? ?(?=\d{3})
        | \b(?:went|go|gone|goes|going) wrong\b
        | \b(?:anything|something|nothing) (?:\w{2,5} )?wrong\b
        | \b(?:mistake|error) with (?:the|your) (?:\w{1,12} )?(?:booking|reservation)s?\b
        | \bif (?:\w{1,11} ){1,5}(?:wrong|mistaken|incorrect|inaccurate)\b
        | \bif (?:\w{1,11} ){1,3}(?:isn't|aren't|is not|are not) (?:correct|right)\b"""
    )
)
"""Negations that deny nothing."""

_NOT = re.compile(
    r"\b(?:"
    + _any(
        r"""no | nope | not | never | neither | nor | none | nothing | nobody | without | cannot
            | lacks? | lacking | except | excluding | other than | rather than | instead of | unlike
            | unable | unavailable | anything but | everything but | all but | far from | hardly
            | scarcely
            | barely | no longer | formerly | used to | apart from | anywhere but | stopped
            | ceased | broken | out of service"""
    )
    + r")\b|n't\b"
)

_LIES = _any(
    r"""lie | lies | lied | lying | liars? | jok(?:e|es|ed|ing) | kidding | pranks?
    | fool(?:ed|ing|s)? | teas(?:e|ed|ing) | trick(?:ed|ing|s)? | psych | jk"""
)
_FALSE = _any(
    r"""false(?:ly|hoods?)? | untrue | untruths? | wrong(?:ly)? | incorrect(?:ly)?
    | inaccura\w{1,6} | mistak\w{1,4} | misspoke | nonsense | rubbish | garbage | gibberish | bogus
    | phony | hoax\w{0,2} | myths? | fak(?:e|ed|es|ing) | ficti\w{1,8} | fabricat\w{1,5}
    | invent(?:ed|s|ing)? | ma(?:d|k)(?:e|ing) (?:\w{2,10} ){0,2}up | imaginary
    | hypothe\w{1,8} | placeholders? | sarcas\w{1,5} | ironic\w{0,4} | misl(?:ead\w{0,4}|ed)
    | misinform\w{0,6} | decei\w{1,5} | decepti\w{1,4} | pretend\w{0,3}
    | (?:my|a|the) (?:\w{1,8} )?guess | guess(?:ed|ing)
    | disregard | ignore | never ?mind(?! the)
    | (?:scratch|strike|scrap|delete) (?:that|this|it|all) | retract\w{0,3} | withdraw
    | mixed (?:\w{2,5} )?up | confused (?:it|them|that|this|those|these) | misconception
    | outdated | out of (?:date|order) | obsolete | disconnected
    | (?<!not )(?<!n't )forget (?:that|what|it|everything|all|the|about)
    | t(?:ake|ook|aking) (?:that|it|this|them|all|everything) back | take back
    | (?:on the )?contrary | opposite (?:is|of|holds|applies) | opposite day | the reverse
    | anything but | (?:is|are|says?) otherwise | disagree\w{0,2} | correction | a test | testing
    | yeah,? right
    | (?:not|n't|never|nothing|none|hardly|far from) (?:\w{1,10} ){0,5}(?:true|correct|accurate
        |real|valid|the case)
    | (?:not|n't) (?:at all )?(?:so|it|right|what it is)\s*[.!] | once upon
    | (?<!i )(?<!we )(?:believe|trust) (?:me|that|this|a word)
    | in (?:a|another|some) (?:parallel|other|dream)
    | (?:says?|said|tells?|told|shows?|(?<!there )(?:is|are)) (?:something|nothing|quite) (?:else
        |different|other|like (?:that|this|it))
    | (?<!i )(?<!we )(?:don't|do not|never) (?:believe (?:it|that|this|me|them|any\w{0,5}|what
        |a word)|trust
        |rely|quote|use (?:that|this|it|those|these))
    | nicht | nein | stimmt | falsch\w{0,2} | faux | fausse | vrai | falso | vero | verdad
    | un(?:verified|confirmed|reliable|proven|official)"""
)
_UNTRUE = re.compile(rf"\b(?:{_FALSE}|{_LIES})(?!\w)")
_LIE = re.compile(rf"\b(?:{_LIES})\b")
_EARLIER = re.compile(
    r"\b(?:told|said|gave|answers?|messages?|details|information|ignore|forget|scrap|i was"
    r"|i mixed|i confused)\b"
)
_ALL = re.compile(r"\b(?:everything|anything|all|nothing|none|never mind)\b")
_ALWAYS = re.compile(
    r"\b(?:everything|anything|whatever|all|nothing|always|only|from now on|next|following|will)\b"
    r"[^.]{0,40}\b(?:say|tell|lie|false|wrong|untrue|true)\b|\b(?:believe|trust) (?:me|a word)\b"
)

_DISOWNS = re.compile(
    r"(?:^|[,;(]\s*|\b(?:but|and|though|because|since)\s+)(?:all (?:of )?|any of |none of |not )?"
    r"(?:that|this|these|those|which|them|the above|what (?:i|you) (?:\w{1,9} )?\w{1,9})"
    r"(?: (?:phone|numbers?|post ?code|address|price|fee|details?|information|answers?)){0,2}"
    r"(?:'s (?:not|no|never|nothing)|n't"
    r"|\s+(?:is|are|was|were|ai|does|do|did|can|could|has|have|in|from|by)"
    r"(?:n't|\s+(?:n't|not|no|never|nothing|no way))|\s+(?:cannot|not|never|is false|applies))\b"
    r"(?! (?:a |an )?(?:problem|trouble|far|all|included|bookable|available|possible|issue"
    r"|something (?:i|we)|within|matter|take|need|require|include|come|cost|have|offer"
    r"|provide|usually|normally|often|odd|bad|the (?:same|only)))"
    r"|\bnone of (?:that|this|these|those|them|it|the (?:above|following)|what)\b"
    r"(?=\W*$|\s+(?:is|are|was|were) (?:so|right|what)\b|\s+(?:i|you)\b)"
)
"""What an agent says of its own words: "that is not what the database says"."""

_OF_IT = re.compile(r"\W*(?:that|this|it|these|those|they)\b")
_SUBJECT = re.compile(
    r"(?:^|, |\b(?:call|ring|reach|contact) )(?:and |the |your |this |that |for the |as for the )*"
    r"(?:(?P<restaurant>restaurant)|(?P<hotel>hotel|guest ?house)|(?P<attraction>attraction)"
    r"|(?P<train>train(?! station)))\b"
)

_OTHER = re.compile(
    r"\b(?:an?other|a different|the (?:other|next|wrong)|some other|neighbou?r\w{0,3}|rival"
    r"|competit\w{1,4}) (?:\w{1,12} )?(?:place|one|restaurant|hotel|guest ?house|attraction|museum"
    r"|train|venue|establishment|option)\b|\bnext door\b|\brivals?\b"
)
"""Words about something else that they do not name."""

_PAST = re.compile(
    r"\b(?:sorry|apolog\w{1,6}|was|were|had|earlier|previous\w{0,2}|before|correction|misspoke"
    r"|mistaken|mistake|mistyped|oops|lied|gave|said|told)\b"
)
"""How an agent puts right what it said before: what follows holds."""

_WORD = re.compile(r"/s\b|[^\W_]+(?:'[a-z]+)?")
_FILLERS = frozenset(
    _WORD.findall(
        """a about absolutely actually again agree am an and any anyway are as at be been being but
    by can case certain certainly check checked come confirm correct correctly course definitely
    did do does either even exactly for from grain guarantee guarantees had has have hmm i i'd
    i'll i'm i've in is it it's just know least less like look looked many matter me mind more
    my of off oh ok on or pinch promise promises quite quote rather really right said salt
    second so something sorry still sure take than that that's the them then these they this
    those though thought thoughts to too true up us verify very wait was way we well were who
    will with would yes yet you your any
    clue double honest misread please verified word"""
    )
)
_DOUBTS = frozenset(
    _WORD.findall(
        """ain't allegedly apparently aren't assume barely believe believes can't cancel cannot
    conceivably could couldn't didn't doesn't don't doubt dreams error except far gotcha grain
    guess ha haha hahaha hardly hasn't haven't hear heard hope idea if isn't knows lol may maybe
    mean means might mistaken n't nah never no nope not nothing only perhaps possibly presumably
    probably psych recall remember /s say says scarcely sike suppose supposedly suspect think
    thinks uncertain unsure wasn't weren't wish won't wouldn't wrong
    guessing purportedly reportedly unverified"""
    )
)


def _is_comment(words: str) -> bool:
    """Whether words doubt or deny what was said, and speak of nothing else: "Or maybe not."."""
    said = set(_WORD.findall(words))
    return bool(said & _DOUBTS) and said <= _FILLERS | _DOUBTS


_DOUBT = re.compile(
    r"\b(?:"
    + _any(
        r"""maybe | should be(?! able) | perhaps | possibl[ye] | probabl[ye] | presumabl[ye]
            | suppos\w{1,5}
            | alleged\w{0,2} | apparently | likely | unlikely | (?<!you )might(?! i\b) | could be
            | i (?:think|believe|assume|reckon|suspect|wonder|doubt|hope|guess|imagine)(?! (?:you
                |this|that h))
            | we (?:think|believe|assume) | unsure | uncertain | doubt\w{0,4} | (?<!you )may be
            | (?:not|n't) (?:\w{1,10} )?(?:sure|certain|know|say|claim|confirm|guarantee|promise
                |believe|think|mean|tell|recall|remember)
            | as far as (?:i|we) | (?:please|you) confirm | backwards | digits? | minus
            | plus (?:one|\d)
            | (?<!you )would (?:think|say|believe|claim) | 50% | differs? | similar to | close to
            | almost | roughly | more or less | (?:in|until|before|since) (?:19|20)\d\d
            | (?:next|from next) (?:year|month)
            | before (?:they|it) (?:have |has )?(?:moved|changed) | (?:story|novel) i | horoscope
            | lorem ipsum | universe | the (?:movie|film|novel|story|tale) | sake of argument
            | from memory
            | to the best of | ideal world | conceivably | reportedly | purportedly | potentially
            | originally | top of my head
            | as though | messing with | pulling your leg | you (?:told|gave) me | word on the
            | (?:believed|said|thought|reported|rumou?red|expected|meant|ought|fails?) to be
            | assuming | provided that | (?:i'd|would) guess | imagine (?:that|the)
            | disput\w{1,3} | formerly | future | someday | let's assume
            | (?:yet|still) to verify | nobody ever
            | (?:example|sample|template|dummy|mock)(?: \w{1,10})?: | (?:an|this is) example of
            | (?:old|former|previous|fax|fake) (?:tele)?(?:phone|number|post|address|price|fee)
            | if (?:i|we) (?:remember|recall) | seem\w{0,5} | appears? to
            | rumou?r\w{0,3} | claim\w{0,3} | whether | what if | unless | let's say | in theory
            | (?:they|people|some|others|he|she|somebody|someone|nobody|no one|liars?|who)
                (?:says?|said|thinks?|thought|claims?|believes?)
            | last (?:year|month|week|century) | previously | in the past | once
            | (?:years?|months?|weeks?|long) ago | theoretically | or so | something like
            | refus\w{1,4} | den(?:y|ies|ied) | wish | dream\w{0,3} | if only | as if | one of
            | would (?:have been|be (?:\w{3,10} if|false|wrong|untrue|incorrect|a lie|a mistake))"""
    )
    + r")(?!\w)"
)
_SAYS = re.compile(
    r"\b(?!(?:database|system|it|i|we|you|records?|listing|information|site|website|data|page|file"
    r"|here|which|that|this|guide|entry|ticket|timetable|search)\b)\w{1,15}"
    r" (?:says?|said|insists?|claims?|has it|told me|thinks?|thought|believes?|swears?)\b"
    r"|\b(?!(?:confirm|see|found|find|note|shows?|say|says|know|you|is|indicates?|noticed|mention"
    r"|verify|verified|checked|states?|aware|so|now|given|sure|at|for|on|in|of|like|advised?"
    r"|report|and|do|all)\b)\w{1,15}"
    r" that (?=(?:the|its?|their|they|it's)\b)"
)
"""Who says something that is none of the agent's records, and "that" after words of doubt."""

_ASIDE = re.compile(
    r"(?:^|[,;.(]\s*|\b(?:and|but|as|since|because|so) )"
    r"(?:you(?:'d| had| have|'ve)? (?:also )?(?:asked|wanted|requested|said|mentioned)\b"
    r"|(?:i'll|i will|let me|please|you (?:can|could|may)) (?:check|look|see|ask)\b|ask (?:them"
    r"|about)\b"
    r"|(?:(?:unfortunately|sorry),? )?(?:i'm|i am|we're|we are) not (?:sure|certain) (?:about|of"
    r"|what|when|how)\b"
    r"|(?:(?:unfortunately|sorry),? )?(?:i|we) (?:don't|do not) (?:know|have) (?:the|their|its"
    r"|what|when|how|any)\b)"
    r"(?:[^,.;:]|[.:](?=\d)){0,80}"
)
"""What is said of the dialogue itself, or is not known."""

_IF = re.compile(
    r"^(?:had|were) (?:you|i|we|they|it)\b"
    r"|(?:^|, )(?:is|are|was|were|does|do|did) (?:it|the|that|this|they|their|its)\b"
    r"|\bif\b(?! (?:you|needed|necessary|required|so|that|this|there|anything|possible|not|i can"
    r"|we can|it (?:works|suits|helps|is ok))\b)|\bif\b.{0,60}\bwere\b"
    r"|(?:it is|it's) (?:not|no|in no way)\b.{0,80}\b(?:that|who)\b"
)

_FOLLOW_UP = re.compile(
    r"(?:^|[,;.\-–—]\s*|\s)(?:(?:and|so|or|but|then|now)\s+)?(?="
    + _any(
        r"""(?:would|do|did|will|can|could|shall|should|may|might|are|have|were) (?:you|i|we)\b
            | (?:is|are|was) there\b | anything else\b | any other\b | need anything
            | want (?:me|to|a)\b
            | (?:is|will|does|would|did) (?:that|this|it) (?:\w{1,6} )?(?:ok|okay|all|alright|good
                |work|sound|suit|fit|help|do|be|fine|answer|everything|meet)
            | (?:what|which|how|when|where|who) (?:\w{1,12} ){0,2}(?:would|do|can|could|shall|should
                |will|else|about|many|are|is|day|time|type|kind)\b"""
    )
    + ")"
)
"""How a question begins that follows a statement: "It is in the north, shall I book it?"."""

_PROPOSAL = re.compile(
    r"\b(?:how|what) about (?!\d|that|this|it\b|(?:the |its )?(?:phone|number|post|address|price"
    r"|fee|entrance|area|stars?|train number))|\b(?:may|might|can|could) i (?:suggest|recommend)\b"
)
"""How a question begins that states something: "How about the museum in the west?"."""

_TAG = re.compile(
    r"\b(?:agree|think|believe|true|correct|right|really|say|imagine|guess|certain|sure)\b"
)
_ASKS = re.compile(
    r"(?:and |so |or |but |now |well |then )?(?:is|are|was|were|does|do|did|has|have|had|could|can"
    r"|would|will|may|might|should|isn't|aren't|doesn't|don't|what|which|who|whose|when|where|how"
    r"|why)\b"
)


def _takes_back(sentence: str, *, spoken: bool) -> bool:
    """Whether a sentence says that something that was said or is about to be is not so."""
    if spoken and _is_comment(sentence):
        return True
    plain = re.sub(r" {2,}", " ", _POLITE.sub("", sentence))
    if _UNTRUE.search(plain) or _DISOWNS.search(plain):
        return True
    is_of_it = _OF_IT.match(plain) is not None and _OTHER.search(plain) is not None
    return is_of_it and (spoken or _PAST.search(plain) is not None)


def _asks_back(sentence: str) -> bool:
    """Whether a question makes one of what was said before it."""
    return sentence.endswith("?") and set(_WORD.findall(sentence)) <= _FILLERS | _DOUBTS


def _sentence(sentence: str) -> Sentence:
    """Sort the clauses of a sentence that takes nothing back."""
    stated = sentence
    if sentence.endswith("?") and not _PROPOSAL.search(sentence):
        asks = _FOLLOW_UP.search(sentence)
        stated = sentence[: asks.start()] if asks else ""
        if asks and _TAG.search(sentence, asks.end()) or _ASKS.match(stated):
            stated = ""
    plain = re.sub(r"^\W*no,? (?=(?:it|they|there|that|the)\b)", "", _POLITE.sub("", stated))
    plain = re.sub(r" {2,}", " ", _ASIDE.sub("", plain))
    if not stated.isascii() and any(c.isalpha() and not c.isascii() for c in stated):
        return Sentence("", "", sentence)  # other letters, or some that look like ours
    if _DOUBT.search(plain) or _SAYS.search(plain) or _IF.search(plain):
        return Sentence("", "", sentence)
    ends = [0, *(m.end() for m in _BREAK.finditer(plain)), len(plain)]
    clauses = [plain[a:b] for a, b in pairwise(ends) if b > a]
    denied = [clause for clause in clauses if _NOT.search(clause)]
    if any(_is_comment(clause) for clause in denied) and not _is_comment(clauses[0]):
        return Sentence("", "", sentence)  # "The phone number is 1 - not!"
    kept = "".join(" , " if _NOT.search(clause) else clause for clause in clauses)
    return Sentence(
        kept,
        ", ".join(denied),
        kept + sentence[len(stated) :],
        tuple(match.lastgroup or "" for match in _SUBJECT.finditer(kept)),
        _OTHER.search(kept) is not None,
    )
