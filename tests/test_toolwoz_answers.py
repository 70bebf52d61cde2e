"""What answers a customer's question in ToolWOZ-v1: truths in many words, and lies in more."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym import Dialogue
from toolwoz_gym.actions import parse_action
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.answers import account_of
from toolwoz_gym.toolwoz.domain import dump
from toolwoz_gym.toolwoz.lexicon import ATTENTION
from toolwoz_gym.toolwoz.speech import heard
from toolwoz_gym.toolwoz.tables import Tables, numbers
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish, make_task
from toolwoz_gym.toolwoz.told import is_known, tells
from toolwoz_gym.toolwoz.v1 import ToolWOZv1, fitting
from toolwoz_gym.types import Message, ToolCall
from toolwoz_gym.users.replay import ReplayUser


def is_told(text: str, attribute: str, value: str, *, asked: str = "") -> bool:
    """Whether a message tells a value, of whatever it is about."""
    said = heard(text).sentences
    stated, denied = [s.stated for s in said], [s.denied for s in said if s.denied]
    return tells(attribute, value, stated, denied, asked=asked) is True


TELLS = [
    ("It costs 10.10 pounds", "price", "10.10 pounds", True),
    ("It is 10 pounds and 10 pence", "price", "10.10 pounds", True),
    ("It is £10.10 each, so £20.20 in total", "price", "10.10 pounds", True),
    ("It is £10.10 or £20.20", "price", "10.10 pounds", False),
    ("It is £10.100.10", "price", "10.10 pounds", False),
    ("It is more than £10.10", "price", "10.10 pounds", False),
    ("The deposit is £10.10", "price", "10.10 pounds", False),
    ("It costs two pounds", "entrance fee", "2 pounds", True),
    ("The fee is 2 euros", "entrance fee", "2 pounds", False),
    ("It doesn't cost anything", "entrance fee", "free", True),
    ("It isn't free: the fee is £2", "entrance fee", "2 pounds", True),
    ("Admission is free for children", "entrance fee", "free", False),
    ("It takes 1h19m", "duration", "79 minutes", True),
    ("It takes less than 79 minutes", "duration", "79 minutes", False),
    ("It leaves at 17:15 and costs £10.10", "leaveAt", "17:15", True),
    ("It runs 17:15 - 18:34", "arriveBy", "18:34", True),
    ("It leaves at 17:15, no later than 18:00", "leaveAt", "17:15", True),
    ("You asked for one arriving by 19:00. It arrives at 18:34", "arriveBy", "18:34", True),
    (
        "| Leaves | Arrives | Price |\n|---|---|---|\n| 17:15 | 18:34 | £9 |",
        "arriveBy",
        "18:34",
        True,
    ),
    ("Parking: \N{CROSS MARK}", "parking", "no", True),
    ("Parking is unavailable", "parking", "no", True),
    ("Internet is included, parking is not.", "internet", "yes", True),
    ("You asked about wifi.", "internet", "yes", False),
    ("It is rated 3 out of 5 stars", "stars", "3", True),
    ("It has 3 stars, cheap", "pricerange", "cheap", True),
    ("It is a guesthouse, not a hotel", "type", "guesthouse", True),
    ("It is at the end of 98 king street", "address", "98 king street", True),
    ("It is opposite 98 king street", "address", "98 king street", False),
    ("The fax number is 01223446100", "phone", "01223446100", False),
    ("The phone number differs from 01223446100", "phone", "01223446100", False),
    ("It is £10.10 each", "price", "10.10 pounds", True),
    ("That is 50.50 pounds in all", "price", "10.10 pounds", False),
    ("A ticket costs 10.1", "price", "10.10 pounds", True),
    ("The train takes 79 minutes", "duration", "79 minutes", True),
    ("It takes 1 hour and 19 minutes", "duration", "79 minutes", True),
    ("An hour", "duration", "60 minutes", True),
    ("It takes 19 minutes", "duration", "79 minutes", False),
    ("It leaves at 17:15", "leaveAt", "17:15", True),
    ("It leaves at 5:15 pm", "leaveAt", "17:15", True),
    ("It leaves at 5:15", "leaveAt", "17:15", False),
    ("It arrives at 00:04", "arriveBy", "24:04", True),
    ("It arrives at 24:04", "arriveBy", "24:04", True),
    ("It arrives at 25:07", "arriveBy", "01:07", True),
    ("It arrives at 1:07 am", "arriveBy", "01:07", True),
    ("It arrives at 1:07 pm", "arriveBy", "01:07", False),
    ("It has free wifi and no parking.", "internet", "yes", True),
    ("It has free wifi and no parking.", "parking", "no", True),
    ("It has no parking, but there is wifi.", "parking", "yes", False),
    ("It has no wifi or parking", "parking", "no", True),
    ("It doesn't have wifi and parking", "internet", "no", True),
    ("Do you need parking?", "parking", "yes", False),
    ("The parking is not no.", "parking", "no", False),
    ("There is parking. There is no parking.", "parking", "yes", False),
    ("It is a 4-star hotel", "stars", "4", True),
    ("It is rated four stars", "stars", "4", True),
    ("The number of stars is 3", "stars", "3", True),
    ("It has no stars", "stars", "0", True),
    ("There are 4 hotels with 3 stars", "stars", "4", False),
    ("The postcode is CB2 1AB", "postcode", "cb21ab", True),
    ("The postcode is CB2 1ABC", "postcode", "cb21ab", False),
    ("Call 01223 446-100", "phone", "01223446100", True),
    ("Call 901223446100", "phone", "01223446100", False),
    ("It is a swimming pool", "type", "swimmingpool", True),
    ("It is a guest house", "type", "guesthouse", True),
    ("Admission is free", "entrance fee", "free", True),
    ("There is no entrance fee", "entrance fee", "free", True),
    ("It has free wifi", "entrance fee", "free", False),
    ("The entrance is £5", "entrance fee", "5 pounds", True),
    ("It is 5 minutes away", "entrance fee", "5 pounds", False),
    ("It is in the city center", "area", "centre", True),
    ("It is in northampton", "area", "north", False),
    ("They are inexpensive", "pricerange", "expensive", False),
    ("It's at 98 King Street, City Centre", "address", "98 king street city centre", True),
    ("Take the TR 1234", "trainID", "TR1234", True),
]


@pytest.mark.parametrize(("text", "attribute", "value", "told"), TELLS)
def test_what_tells_a_value(text: str, attribute: str, value: str, told: bool) -> None:
    assert is_told(text, attribute, value) is told
    assert is_told(text.upper(), attribute, value.upper()) is told


def test_yes_answers_the_question_that_was_asked() -> None:
    assert is_told("Yes, it does.", "parking", "yes", asked="Does it have parking?")
    assert not is_told("No, it does not.", "parking", "yes", asked="Does it have parking?")
    assert not is_told("Yes, it does.", "internet", "yes", asked="Does it have parking?")
    assert is_told("No, I'm afraid not.", "parking", "no", asked="Does it have parking?")
    assert is_told("Unfortunately not.", "parking", "no", asked="Does it have parking?")
    assert is_told("It sure does!", "parking", "yes", asked="Does it have parking?")
    assert not is_told("No problem!", "parking", "no", asked="Does it have parking?")


def test_what_is_known() -> None:
    assert [is_known(v) for v in ("?", None, "None", " ", [1], "no", "free", 3)] == [
        *[False] * 5,
        *[True] * 3,
    ]


# --- one answer --------------------------------------------------------------------------------


def museum(name: str, address: str, phone: str, postcode: str, **others: str) -> dict[str, Any]:
    kept = {"address": address, "phone": phone, "postcode": postcode, "type": "museum"}
    return {"name": name, **kept, "area": "west", "entrance fee": "2 pounds", **others}


TABLES = Tables(
    {
        "attraction": [
            museum("amber hall", "3 castle hill", "01970111222", "lk12ab"),
            museum("quiet tower", "9 mill lane", "01970333444", "lk34cd"),
            museum(
                "the old mill", "north street", "01970555666", "lk56ef", **{"entrance fee": "?"}
            ),
        ],
        "hotel": [
            {"name": "hazel inn", "area": "north", "stars": "3", "phone": "01970777888"},
        ],
    }
)
QUESTIONS = ("phone", "postcode", "address", "entrance fee")
WISH = Wish("attraction", search={"type": "museum", "name": "", "area": ""}, requests=QUESTIONS)
TASK = make_task("one", "val", "", (WISH,))
ASK = "What is the phone number, the postcode, the address and the entrance fee?"
FACTS = (
    "The phone number is 01970111222, the postcode is lk12ab, the address is 3 castle hill, "
    "the entrance fee is 2 pounds."
)
LOWER = FACTS[0].lower() + FACTS[1:]
BARE = LOWER.rstrip(".")
WRONG = FACTS.replace("1222", "1223").replace("lk12ab", "lk12ac").replace("3 c", "4 c")


def find(name: str) -> str:
    return json.dumps({"name": "search_attraction", "arguments": {"name": name}})


def reward(*actions: str, customer: str = ASK, task: ToolWOZTask = TASK) -> float:
    """Play actions; the customer asks its question after every reply."""
    domain = ToolWOZv1("small", TABLES, {"val": (task,)}, "0")
    dialogue = Dialogue(domain, ReplayUser((customer,) * 50), max_steps=50)
    episode = dialogue.start(task, seed=0)
    for action in actions:
        episode = dialogue.act(episode, parse_action(action))
        if episode.awaits_user:
            episode = dialogue.listen(episode)
    return dialogue.cut_off(episode).reward


def answered(words: str) -> float:
    return reward(find("amber hall"), "I have found amber hall, a museum.", words)


TRUTHS = [
    FACTS,
    f"Sure! {FACTS} Is there anything else I can help you with?",
    f"No problem, {LOWER} Please don't hesitate to ask if you have other questions.",
    f"{BARE}, would you like anything else?",
    f"{BARE} - shall I book a room for you as well?",
    f"{FACTS} Does that answer your question?",
    f"According to our database, {LOWER} I hope this helps!",
    f"{FACTS} If anything is wrong, let me know.",
    f"Sorry, that was wrong, {LOWER}",
    f"I made a mistake earlier, my apologies. {FACTS}",
    f"Unfortunately I cannot book museums, but {LOWER}",
    f"You do not need a ticket in advance. {FACTS}",
    f"Not a problem at all. {FACTS} {FACTS}",
    FACTS.replace(", the", ". The"),
    FACTS.replace(", the", " and the"),
    FACTS.replace(" is ", ": "),
    FACTS.replace(" is ", " - "),
    FACTS.upper(),
    "Here you are:\n- " + BARE.replace(", the ", "\n- the ") + "\n\nWhat else can I do for you?",
    "Details:\n- **Phone**: 01970 111 222\n- **Postcode**: LK1 2AB\n- **Address**: 3 Castle Hill\n"
    "- **Entrance fee**: £2",
    "| Phone | 01970111222 |\n| Postcode | lk12ab |\n| Address | 3 castle hill |\n| Fee | £2 |",
    "It is at 3 Castle Hill, LK1 2AB. You can call them on 01970-111222, and entry is 2 pounds.",
    "You can reach Amber Hall on 01970111222. They are located at 3 castle hill, lk12ab, and it "
    "costs £2 to get in.",
    "The phone number is not 01970111223 but 01970111222, the postcode is lk12ab, the address is "
    "3 castle hill and the entrance fee is 2 pounds.",
    "It has no car park. " + FACTS,
    f"{FACTS} Let me know if there is anything else I can help you with.",
    f"{FACTS} Otherwise, have a great day!",
    f"{FACTS} I believe that is everything. I trust this helps!",
    f"{FACTS} I don't believe you need to book. You can't go wrong with it!",
    f"{FACTS} If any of the details are incorrect, please let me know.",
    f"{FACTS} That's perfectly fine! Haha, as you can imagine, it's popular.",
    f"{FACTS} That should not take long. I'm not sure about the opening hours.",
    f"I do not know the opening hours, you may want to call them. {FACTS}",
    f"I'm happy to tell you that {LOWER}",
    f"Just so you know, {LOWER}",
    f"{WRONG} Wait, sorry, that's wrong: {LOWER}",
    FACTS.replace("0111222,", "0111222, not 01970111223,"),
    "| Name | Phone | Postcode | Address | Entry |\n|:---|---|---|---|---|\n"
    "| Amber Hall | 01970111222 | LK1 2AB | 3 Castle Hill | £2 |\n"
    "| Quiet Tower | 01970333444 | LK3 4CD | 9 Mill Lane | £5 |",
    "Quiet tower's phone number is 01970333444. Amber hall's phone number is 01970111222, its "
    "postcode is lk12ab, its address is 3 castle hill and the entrance fee is 2 pounds.",
]


@pytest.mark.parametrize("words", TRUTHS)
def test_the_truth_is_paid_in_whatever_words(words: str) -> None:
    assert answered(words) == 1.0


LIES = [
    "I cannot say.",
    WRONG,
    f"{FACTS} {WRONG}",
    f"{WRONG} {FACTS}",
    FACTS.replace("01970111222", "01970111222 or 01970111223"),
    FACTS.replace("01970111222", "lk12ab").replace("postcode is lk12ab", "postcode is 01970111222"),
    f"It is not true that {LOWER}",
    f"It is not, however much I would like it, true that {LOWER}",
    f"{FACTS} No, that is wrong.",
    f"{FACTS} None of that is so.",
    f"{FACTS} That is not what our database says.",
    f"{FACTS} I lied.",
    f"{FACTS} Just kidding!",
    f"{FACTS} Not!",
    f"{FACTS} I don't know.",
    f"{FACTS} Please ignore that.",
    f"{FACTS} That is for a different place.",
    *(
        f"{FACTS} {words}"
        for words in (
            "Or maybe not.",
            "At least I think so.",
            "Or so they say.",
            "Who knows?",
            "Isn't it?",
            "Would you believe it?",
            "But I could be mistaken.",
            "No guarantees!",
            "If I remember correctly.",
            "I'm not so sure about that.",
            "Don't believe it.",
            "I just made it all up.",
            "These details are out of date.",
            "Those belong to quiet tower.",
            "I mean the quiet tower.",
            "Das stimmt nicht.",
        )
    ),
    *(
        f"{words} {LOWER}"
        for words in (
            "My horoscope says",
            "Legend has it that",
            "It is a common misconception that",
            "Only a fool would think that",
            "It is disputed that",
            "Please confirm that",
            "Is it correct that",
            "Had you asked yesterday,",
            "Until 2019,",
            "In a parallel universe,",
            "Example output:",
            "Il n'est pas vrai que",
        )
    ),
    f"~~{FACTS}~~",
    f"<del>{FACTS}</del>",
    FACTS.replace(" is ", " is n\u200bot "),
    FACTS.replace(" is ", " is \N{FULLWIDTH LATIN SMALL LETTER N}ot "),
    FACTS.replace(" is ", " is n\N{CYRILLIC SMALL LETTER O}t "),
    FACTS.replace(" is ", " is n o t "),
    f"What follows is false. {FACTS}",
    f"These are not the details:\n- {LOWER}",
    f"I will now tell a lie. {FACTS}",
    f"{'Let me see. ' * 342}{FACTS}",
    f"Look:{' ' * ATTENTION}{FACTS}",
    f"<!-- {FACTS} -->",
    f"Is it true that {BARE}?",
    f"{BARE}?",
    f"{BARE}, right?",
    f"Would you believe that {BARE}?",
    f"Perhaps {LOWER}",
    f"I think {LOWER}",
    f"I am not sure, but {LOWER}",
    f"I doubt that {LOWER}",
    f"If I were honest, {LOWER}",
    f"{BARE}, unless it is not.",
    f"Some people say that {LOWER}",
    f"Let us pretend that {LOWER}",
    f"Last year, {LOWER}",
    f"At another place, {LOWER}",
    f"The hotel is nice. The hotel's {LOWER.removeprefix('the ')}",
    f"Quiet tower is a museum too. {FACTS}",
    *(
        FACTS.replace(" is ", f" {verb} ")
        for verb in (
            "is not",
            "isn't",
            "is no longer",
            "used to be",
            "could be",
            "may be",
            "is anything but",
            "is hardly",
            "seems to be",
            "was allegedly",
        )
    ),
]


@pytest.mark.parametrize("words", LIES)
def test_a_lie_is_not(words: str) -> None:
    assert answered(words) == 0.0


@given(st.text() | st.text(alphabet="is not 01970111222 lk12ab.,?!\n-", max_size=200))
def test_any_words_can_be_heard(words: str) -> None:
    said = heard(words)
    assert all(len(s.stated) <= 3 * ATTENTION for s in said.sentences)


@pytest.mark.parametrize(
    "pattern", ["no ", "if it ", "1 ", "the ", "a, ", "that is ", "£1 ", "- ", "...", "a wrong "]
)
def test_hearing_takes_no_longer_than_there_is_to_hear(pattern: str) -> None:
    answered(pattern * ATTENTION)


# --- what an answer is about -------------------------------------------------------------------


def test_facts_of_another_place_answer_nothing() -> None:
    offer = "I have found amber hall, a museum."
    other = FACTS.replace("01970111222", "01970333444").replace("lk12ab", "lk34cd")
    other = other.replace("3 castle hill", "9 mill lane")
    assert reward(find("amber hall"), offer, find("quiet tower"), other) == 0.0
    assert reward(find("amber hall"), offer, find("quiet tower"), FACTS) == 1.0
    moved = reward(
        find("amber hall"),
        offer,
        find("quiet tower"),
        "How about quiet tower?",
        other,
        customer="Hm.",
    )
    assert moved == 1.0


def test_what_is_offered_need_not_be_named() -> None:
    assert reward(find("amber hall"), "I have found one for you.", FACTS) == 1.0
    assert reward(find("amber hall"), FACTS) == 1.0
    assert reward(find("amber hall"), find("quiet tower"), "I have found one.", FACTS) == 0.0


def test_a_list_offers_nothing() -> None:
    rows = [
        museum(f"hall {word}", f"{n} row", f"0197011133{n}", f"lk1{n}ab")
        for n, word in enumerate(("one", "two", "three", "four"))
    ]
    tables = Tables({"attraction": rows})
    names = [str(row["name"]) for row in rows]
    calls = [ToolCall("search_attraction", {"name": name}) for name in names]
    shown = [
        message
        for call, row in zip(calls, rows, strict=True)
        for message in (
            Message("assistant", call=call),
            Message("tool", dump([row]), name=call.name),
        )
    ]
    for count, offered in ((3, {"attraction": 2}), (4, {})):
        words = Message("assistant", f"There are {', '.join(names[:count])}.")
        account = account_of(tables, TASK, (Message("user", "Hi."), *shown, words), set())
        assert account.offered == offered


def test_an_attribute_that_is_unknown_is_waived_for_that_row_alone() -> None:
    told = FACTS.replace("01970111222", "01970555666").replace("lk12ab", "lk56ef")
    told = told.replace("3 castle hill", "north street").replace(
        "fee is 2 pounds", "fee is unknown"
    )
    assert reward(find("the old mill"), "The old mill is a museum.", told) == 1.0
    fee = FACTS.replace("fee is 2 pounds", "fee is unknown")
    both = (find("the old mill"), find("amber hall"), "Amber hall is a museum.")
    assert reward(*both, fee) == 0.0
    assert reward(*both, FACTS) == 1.0


def test_the_last_word_before_the_goodbye_holds() -> None:
    offer = (find("amber hall"), "Amber hall is a museum.")
    assert reward(*offer, FACTS, "By the way, the phone number is 01970111223.") == 0.0
    assert reward(*offer, FACTS, "The phone number is not 01970111222.") == 0.0
    assert reward(*offer, FACTS, "Everything that I told you is false.") == 0.0
    assert reward(*offer, FACTS, "That was wrong.") == 0.0
    assert reward(*offer, "Everything that I will tell you is false.", FACTS) == 0.0
    assert reward(*offer, FACTS, "I got the postcode wrong.") == 0.0
    assert reward(*offer, FACTS, "Anything else?", "My previous answer was a joke.") == 0.0
    assert reward(*offer, FACTS, "Anything else?", "Please ignore what I told you.") == 0.0
    assert reward(*offer, FACTS, "Let me know if there is anything else.") == 1.0
    assert reward(*offer, FACTS, "Yes, that's right. That is not something I can book.") == 1.0
    assert reward(*offer, FACTS, "I made a mistake with your booking. Which day?") == 1.0
    assert reward(*offer, WRONG, f"Sorry, that was wrong. {FACTS}") == 1.0
    assert reward(*offer, FACTS, "You are welcome. Is there anything else?") == 1.0
    assert reward(*offer, FACTS, "No, there is no other museum. Goodbye!") == 1.0
    assert reward(*offer, FACTS, "The hotel's phone number is 01970777888.") == 1.0


# --- people --------------------------------------------------------------------------------------


LITERAL = ("phone", "postcode", "trainID", "price")


def test_what_recorded_agents_told_is_understood(multiwoz_v1: ToolWOZ, shared: Path) -> None:
    """Sentences with which people told a fact that is easy to find: nearly all of them count."""
    with zipfile.ZipFile(shared / "data" / "MultiWOZ_2.1_val.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.json"))
        recorded = json.loads(archive.read(name))
    found, understood = 0, 0
    for task in multiwoz_v1.tasks("val"):
        log = [turn["text"] for turn in recorded[task.id]["log"]]
        for wish in task.wishes:
            table = multiwoz_v1.tables[wish.domain]
            for number in numbers(fitting(table, wish)) if wish.requests else ():
                row = table.rows[number]
                for asked, words in zip(log[::2], log[1::2], strict=False):
                    is_named = str(row[table.key]).lower() in words.lower()
                    for attribute in set(wish.requests) & set(LITERAL) if is_named else ():
                        value = str(row[attribute]).removesuffix(" pounds")
                        if re.search(rf"(?<![\w.]){re.escape(value)}(?!\w)", words, re.IGNORECASE):
                            found += 1
                            understood += _is_understood(
                                multiwoz_v1, wish, number, attribute, asked, words
                            )
    assert (understood, found) == (307, 315)


def _is_understood(
    domain: ToolWOZ, wish: Wish, number: int, attribute: str, asked: str, words: str
) -> bool:
    call = ToolCall(f"search_{wish.domain}", {})
    row = domain.tables[wish.domain].rows[number]
    messages = (
        Message("user", asked),
        Message("assistant", call=call),
        Message("tool", dump([row]), name=call.name),
        Message("assistant", words),
    )
    task = make_task("one", "val", "", (Wish(wish.domain, requests=(attribute,)),))
    account = account_of(domain.tables, task, messages, {(wish.domain, number)})
    return (wish.domain, number, attribute) in account.told
