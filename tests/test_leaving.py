"""Goodbyes in the same breath as a wish: whose failure is what follows?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_tau_episodes import read_domain

from agents.backends.canned import CannedBackend
from agents.customers import Form, ModelCustomer
from toolwoz_gym import Dialogue, make_env
from toolwoz_gym.tau_bench.domain import TRANSFER, TauBench
from toolwoz_gym.types import END_CONVERSATION, Episode, Message, Task, ToolCall
from toolwoz_gym.users.contract import breach
from toolwoz_gym.users.leaving import leaves_too_soon

HOTEL = {"name": "quiet house", "area": "north"}
BOOKING = {"name": "quiet house", "people": "5", "day": "tuesday", "stay": "5"}
TASK = Task("x", "val", "", (ToolCall("search_hotel", HOTEL), ToolCall("book_hotel", BOOKING)))
CANCELLING = {"order_id": "#W123", "reason": "no longer needed"}
MOVING = {"item_ids": ["111"], "address": {"city": "Denver"}}
TAU = Task("t", "test", "", (ToolCall("cancel_order", CANCELLING), ToolCall("move", MOVING)))

OPENING = "I want to stay at quiet house."
ALL_TOLD = "Book quiet house in the north, please: 5 people, 5 nights from tuesday."
FOUND = "I have found it, a guesthouse in the north."
OFFER = "I have found it. Shall I book it?"
DONE = (
    "I have booked Quiet House for you. The reference number is ABC12345. Is there anything else "
    "I can help you with?"
)
CANCEL = "I want to cancel order #W123, which is no longer needed."

TOO_SOON = [
    *(
        (TASK, OPENING, OFFER, words)
        for words in (
            "Yes, please book it for 5 people on tuesday, 5 nights.",
            "Yes please! Thanks, goodbye.",
            "Yes. Thank you, goodbye!",
            "Yes please, that is all. Goodbye.",
            "Sure, go ahead. Bye!",
            "Please do. Bye.",
            "Absolutely. Thanks for your help.",
            "That works for me. Thank you, goodbye.",
            "Great, I'll take it. Thanks, bye.",
            "Thanks! Yes, please go ahead with the booking. Have a nice day!",
            "OK, please book it. That's all. Bye.",
            "It is for 5 people from tuesday. Thanks. Bye.",
            "Yeah, book that one. Cheers",
        )
    ),
    *(
        (TASK, OPENING, FOUND, words)
        for words in (
            "Please book it for me. Thank you, goodbye!",
            "Great. Can you book it for 5 people? Bye.",
            "What is the phone number? Goodbye.",
            "Great, and what's the address? Thanks, bye!",
            "Could you tell me its postcode? Thank you, bye.",
            "Does it have parking? Thanks and goodbye",
            "Thanks. I also need a train to ely. Goodbye.",
            "I'd like to book it. Bye.",
            "Thanks, I'd also like a taxi. Bye",
            "I am also looking for a museum. Thanks, bye.",
        )
    ),
    (TASK, OPENING, "For how many people?", "5 people. Goodbye."),
    (TASK, OPENING, "Which day?", "From Tuesday, thanks, bye!"),
    (TASK, OPENING, "Would you like me to book it?", "Yes, I would like that. Goodbye."),
    (TASK, ALL_TOLD, DONE, "Yes, I also need a taxi. Goodbye."),
    (TAU, "I want to cancel an order.", "Could you give me its number?", "It's #W123."),
    (TAU, CANCEL, "I will cancel #W123. Do you confirm (yes/no)?", "Yes."),
    (TAU, CANCEL, "Do you want to proceed? (yes/no)", "Yes, please proceed."),
    (TAU, CANCEL, "I can refund your card. Is that okay?", "Yes, that's fine, thanks."),
    (TAU, CANCEL, "Please confirm that I should cancel it.", "Yes, I confirm."),
    (TAU, CANCEL, "I cannot help with that.", "Then please transfer me to a human agent."),
    (TAU, CANCEL, "To which city?", "To Denver."),
]

IN_TIME = [
    *(
        (TASK, ALL_TOLD, DONE, words)  # whether or not it is true
        for words in (
            "Thanks, yes that's all, goodbye.",
            "No, that is all. Thank you, goodbye!",
            "Yes, that's everything. Bye.",
            "Yes! Goodbye.",
            "Yes, thanks. Bye.",
            "Yes, perfect, thank you. Goodbye.",
            "Yes, that is correct. Thank you. Goodbye.",
            "Yes, I have all I need. Thanks.",
            "That's all I need. Thanks, bye.",
            "No, I need nothing else. Bye.",
            "I don't need anything else. Bye.",
            "Great, thank you! Goodbye.",
            "Great, I'm all set. Thanks",
            "Thank you so much for booking it. Bye!",
            "Great, thanks for your help with the booking. Goodbye.",
            "Perfect! 5 nights from Tuesday at Quiet House. Thank you, bye.",
            "Wonderful, please have a nice day.",
            "Please accept my thanks. Bye.",
            "I'd like to thank you for your help. Goodbye.",
            "Could not have been better. How nice of you! Bye.",
            "I look forward to my stay. Bye.",
            "Thank you, you can close the chat. Goodbye.",
        )
    ),
    *(
        (TASK, ALL_TOLD, OFFER, words)
        for words in (
            "No, thank you. Goodbye.",
            "No, never mind. Bye.",
            "I'll think about it. Goodbye.",
            "Not now, thanks. Bye.",
            "Don't book it. Bye.",
            "No, I will book it myself. Goodbye.",
            "This is useless. Can you not just book it? Goodbye.",
        )
    ),
    (TASK, ALL_TOLD, FOUND, "Please book it, as I said. Goodbye."),  # it had been asked for
    (TASK, OPENING, "It is booked. Is that all?", "Yes, that is all. Goodbye."),
    (TASK, ALL_TOLD, "It's booked, is that right?", "Yes, thank you, bye."),
    (TASK, ALL_TOLD, "It's booked. Can I do anything for you?", "Yes, thanks, bye."),
    (TASK, ALL_TOLD, "It's booked. Shall I close this chat?", "Yes, please. Goodbye."),
    (TASK, ALL_TOLD, "I can confirm that it is booked.", "Sure, thanks, bye."),
    (TAU, CANCEL, "Your order #W123 has been cancelled. Anything else?", "No, that's all."),
    (TAU, CANCEL, "Your order #W123 has been cancelled.", ""),
    (TAU, CANCEL, "Can I help you with anything else?", "Yes, that is all, thank you."),
    (TAU, CANCEL, "I cannot cancel it.", "Okay, thanks anyway."),
    (TAU, CANCEL, "I am transferring you to a human.", "Thank you for transferring me."),
]


def too_soon(task: Task, opening: str, agent: str, words: str) -> bool:
    talk = Message("user", opening), Message("assistant", agent)
    return leaves_too_soon(task, talk, words)


@pytest.mark.parametrize(("task", "opening", "agent", "words"), TOO_SOON)
def test_who_still_wants_something_leaves_too_soon(
    task: Task, opening: str, agent: str, words: str
) -> None:
    assert too_soon(task, opening, agent, words)


@pytest.mark.parametrize(("task", "opening", "agent", "words"), IN_TIME)
def test_who_wants_nothing_more_may_leave(task: Task, opening: str, agent: str, words: str) -> None:
    assert not too_soon(task, opening, agent, words)


def test_a_goodbye_in_the_opening() -> None:
    assert breach(TASK, (), "A hotel, please. Goodbye!", ends=True) == "left at once"
    assert breach(TASK, (), "A hotel, please. Goodbye!", ends=False) is None


# What becomes of the dialogue. The task: quiet house, for 5 people, on tuesday, 5 nights.

SEARCH = '{"name": "search_hotel", "arguments": {"name": "quiet house"}}'
BOOK = (
    '{"name": "book_hotel", "arguments": {"name": "quiet house", "people": "5", "day": "tuesday", '
    '"stay": "5"}}'
)
YES = f"Yes, please book it for 5 people on tuesday, 5 nights. {END_CONVERSATION}"


def played(version: int, words: str, *actions: str) -> Episode:
    """Play actions of an agent's; the customer opens, and says some words at last."""
    customer = ModelCustomer(CannedBackend([OPENING, words]), "goal", END_CONVERSATION)
    world, name = "builtin:seed=1,domains=1", f"ToolWOZ-v{version}"
    env = make_env(name, world=world, split="val", user=customer)
    env.reset(options={"task_id": "builtin-val-000013"})
    for action in actions:
        env.step(action)
    return env.snapshot()


@pytest.mark.parametrize("version", [0, 1])
def test_a_goodbye_before_the_deed_is_the_customers_fault(version: int) -> None:
    episode = played(version, YES, SEARCH, OFFER)
    assert (episode.outcome, episode.reward) == ("user_fault", 0.0)
    assert episode.messages[-1].content == YES and episode.messages[-1].error == "left too soon"
    assert not episode.truncated


@pytest.mark.parametrize("version", [0, 1])
def test_a_goodbye_after_a_lie_is_the_agents_failure(version: int) -> None:
    words = f"Thanks, yes that's all, goodbye. {END_CONVERSATION}"
    episode = played(version, words, SEARCH, "I have booked it. Is that all?")
    assert (episode.outcome, episode.messages[-1].error) == ("failure", None)


@pytest.mark.parametrize("version", [0, 1])
def test_who_has_got_all_may_leave_with_a_wish(version: int) -> None:
    words = f"Yes, please. What is your name? {END_CONVERSATION}"
    told = "It is booked. The address is 21 castle hill. Shall I book a taxi, too?"
    episode = played(version, words, SEARCH, BOOK, told)
    assert (episode.outcome, episode.messages[-1].error) == ("success", None)


def test_what_an_agent_has_spoilt_is_its_own_failure() -> None:
    wrong = BOOK.replace("tuesday", "friday")
    episode = played(1, YES, SEARCH, wrong, OFFER)
    assert (episode.outcome, episode.messages[-1].error) == ("failure", None)


@pytest.fixture(scope="module")
def retail(shared: Path) -> TauBench:
    return read_domain(shared / "data" / "tau_bench", "retail")


def tau(domain: TauBench, words: str, messages: Sequence[Message]) -> Episode:
    """Play an agent's messages; the customer opens, and says some words at last."""
    customer = ModelCustomer(CannedBackend(["Hello, it is me.", words]), "plain", "###STOP###")
    dialogue = Dialogue(domain, customer, max_steps=30)
    episode = dialogue.start(domain.tasks("dev")[0], seed=0)
    for message in messages:
        episode = dialogue.act(episode, message)
    return dialogue.listen(episode) if episode.awaits_user else episode


def test_customers_of_tau_bench_leave_too_soon(retail: TauBench) -> None:
    offer = Message("assistant", "I will exchange both. Do you want to proceed (yes/no)?")
    gold = [Message("assistant", call=goal) for goal in retail.tasks("dev")[0].goals]
    yes, bye = "Yes, please proceed. ###STOP###", "No, thank you. ###STOP###"
    assert tau(retail, yes, [offer]).outcome == "user_fault"
    assert tau(retail, bye, [offer]).outcome == "failure"
    assert tau(retail, "###STOP###", [offer]).outcome == "failure"
    assert tau(retail, yes, [*gold, offer]).outcome == "success"
    # An agent that hands the customer over ends the dialogue by itself.
    transfer = Message("assistant", call=ToolCall(TRANSFER, {"summary": "?"}))
    assert tau(retail, yes, [transfer]).outcome == "failure"


@pytest.mark.parametrize("form", ["verify", "reflection"])
def test_a_checked_customer_is_asked_again_before_it_leaves_too_soon(form: Form) -> None:
    texts = {
        "verify": [YES, "Yes, please.", "true"],
        "reflection": [YES, "Response: Say yes.", "Yes, please.", "true"],
    }
    customer = ModelCustomer(CannedBackend(texts[form]), form, END_CONVERSATION)
    talk = Message("user", OPENING), Message("assistant", OFFER)
    assert customer.reply(TASK, talk, seed=0).content == "Yes, please."
