"""Customers that a model plays: their prompts, what is read of the answers, and the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_tau_episodes import read_domain

from agents import customers
from agents.backends.canned import CannedBackend
from agents.base import BackendError, ChatMessage, Completion, Sampling
from agents.customers import CANDIDATES, GREETING, Form, ModelCustomer, with_marker
from agents.gold import GoldAgent
from agents.scripted import ExpertAgent
from toolwoz_gym import Dialogue, load_world
from toolwoz_gym.records import usage_of
from toolwoz_gym.rollout import play
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task
from toolwoz_gym.types import (
    END_CONVERSATION,
    Message,
    Task,
    Usage,
    UsageError,
    UserFault,
    UserSimulator,
)
from toolwoz_gym.users import contract
from toolwoz_gym.users.contract import BREACHES, FORGIVEN, GOODBYES, REPEATS, TURNS, breach
from toolwoz_gym.users.scripted import ScriptedUser

DOCS = Path(__file__).resolve().parents[1] / "docs" / "customers.md"

STOP = "###STOP###"
TASK = make_task("x", "val", "You want {braces} and a cheap hotel.", (), ("A hotel!", "It\nis."))
LONG = make_task(
    "long",
    "val",
    "Your name is Ann Lee and your zip code is 12345. You want to return the blue kettle, the "
    "large lamp and both wooden chairs of order #W1234567 to your paypal account. Also exchange "
    "the red bicycle for a green one with bigger wheels. You are shy and in a hurry.",
    (),
)
TALK = (Message("user", "A hotel."), Message("assistant", "In which area?"))


class Recorder:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *texts: str) -> None:
        self._backend = CannedBackend(texts)
        self.calls: list[tuple[list[ChatMessage], Sampling]] = []
        self.cost = Usage()

    def complete(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> Completion:
        self.calls.append((list(prompt), sampling))
        completion = self._backend.complete(prompt, sampling)
        self.cost += completion.usage
        return completion

    def prompts(self) -> list[str]:
        """Return the last message of each prompt."""
        return [prompt[-1]["content"] for prompt, _ in self.calls]


def said(form: Form, *texts: str, task: Task = TASK, talk: Sequence[Message] = TALK) -> str:
    """Return what a customer says whose model writes these texts, and no others."""
    model = Recorder(*texts)
    message = ModelCustomer(model, form, STOP).reply(task, talk, seed=0)
    assert len(model.calls) == len(texts)
    assert message.role == "user" and message.usage == model.cost
    return message.content


# What the model is shown.


@pytest.mark.parametrize("form", ["goal", "plain", "react", "verify", "reflection"])
def test_the_dialogue_is_shown_from_the_customers_side(form: Form) -> None:
    system, *chat = ModelCustomer(Recorder(), form, STOP).prompt(TASK, TALK)
    template = {"goal": customers.GOAL, "react": customers.REACT}.get(form, customers.PLAIN)
    shown = template.replace("{instruction}", TASK.instruction).replace("{marker}", STOP)
    assert system == {"role": "system", "content": shown.strip()}
    assert chat == [
        {"role": "user", "content": GREETING},
        {"role": "assistant", "content": "A hotel."},
        {"role": "user", "content": "In which area?"},
    ]


def test_a_guided_customer_sees_what_a_person_said() -> None:
    system, *chat = ModelCustomer(Recorder(), "guided", STOP).prompt(TASK, ())
    assert system["content"].startswith(
        customers.GOAL.format(instruction=TASK.instruction, marker=STOP)
    )
    assert "\n1. A hotel!\n2. It is.\n" in system["content"]
    assert chat == [{"role": "user", "content": GREETING}]


def test_a_guided_customer_needs_somebody_to_follow() -> None:
    with pytest.raises(UsageError, match="nobody was recorded as the customer of task long"):
        said("guided", task=LONG)


def test_the_docs_show_every_prompt() -> None:
    page = DOCS.read_text("utf-8")
    added = {
        name: getattr(customers, name).removeprefix(getattr(customers, start))
        for name, start in (("GUIDED", "GOAL"), ("REACT", "PLAIN"))
    }
    for name in ("GOAL", "PLAIN", "CHECK", "REFLECT", "ADVICE"):
        added[name] = getattr(customers, name)
    for name, prompt in added.items():
        assert f"```text\n{prompt.strip()}\n```" in page, f"docs/customers.md: {name} differs"
    assert GREETING in page
    assert all(f"`{kind}`" in page for kind in BREACHES)


# What is heard of what it writes.


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("In the north.", "In the north."),
        ("  Customer: In the north. ", "In the north."),
        ("**User:** In the north.", "In the north."),
        ("Thanks, bye!\n### Stop ###", f"Thanks, bye! {STOP}"),
        (f"Thanks! {STOP} Agent: You are welcome.", f"Thanks! {STOP}"),
    ],
)
def test_only_the_customers_words_are_said(written: str, heard: str) -> None:
    model = CannedBackend([written])
    message = ModelCustomer(model, "plain", STOP).reply(TASK, TALK, seed=0)
    assert message.content == heard
    assert message.raw == (None if written == heard else written.strip())


@pytest.mark.parametrize(
    "words", [STOP, "##STOP##", "### stop ###", "###STOP", "STOP", "**Stop**", "[stop]", "<STOP>"]
)
def test_one_word_ends_between_signs_or_alone(words: str) -> None:
    assert with_marker(words, STOP) == STOP
    assert with_marker(f"Thank you.\n{words}\nmore", STOP) == f"Thank you. {STOP}"


@pytest.mark.parametrize("words", ["Please stop.", "Does it STOP in Ely?", "A nonstop train #1"])
def test_a_word_in_a_sentence_ends_nothing(words: str) -> None:
    assert with_marker(words, STOP) == words


@pytest.mark.parametrize(
    "words", [END_CONVERSATION, "end_conversation", "END CONVERSATION", "**End-Conversation**."]
)
def test_two_words_end_anywhere(words: str) -> None:
    assert with_marker(f"Bye! {words} Yes?", END_CONVERSATION) == f"Bye! {END_CONVERSATION}"
    assert with_marker("On the weekend conversations.", END_CONVERSATION).endswith("conversations.")


def test_thoughts_are_kept_but_not_said() -> None:
    written = f"Thought: No {STOP} yet. Agent: is not me.\nReply: In the **north**."
    model = Recorder(written, "Thought: done.\nReply: ###STOP###")
    customer = ModelCustomer(model, "react", STOP)
    first = customer.reply(TASK, TALK, seed=0)
    assert (first.content, first.raw) == ("In the **north**.", written)
    last = customer.reply(TASK, (*TALK, first, Message("assistant", "Booked.")), seed=0)
    assert last.content == STOP
    assert model.calls[1][0][-2] == {"role": "assistant", "content": written}


def test_who_only_thinks_has_said_nothing() -> None:
    assert said("react", "###Stop###") == STOP
    for written in ("Thought: what now?", "In the north.", f"Thought: no {STOP} yet"):
        with pytest.raises(UserFault, match="said nothing"):
            said("react", written)


@pytest.mark.parametrize(
    ("thought", "words", "heard"),
    [
        ("<think>I want it for 5, but first:</think>\n\n", "A hotel.", "A hotel."),
        (f"<think>It is too early for {STOP}.</think>\n\n", "In the north.", "In the north."),
        (f"So, no {STOP} yet.\n</think>\n\n", "Customer: In the north.", "In the north."),
        ("[THINK]They ask: done?[/THINK]", f"Thanks, bye!\n{STOP}", f"Thanks, bye! {STOP}"),
        (
            "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
            "No.",
            "No.",
        ),
    ],
)
@pytest.mark.parametrize("form", ["goal", "react"])
def test_thoughts_of_the_model_itself_are_not_said(
    form: Form, thought: str, words: str, heard: str
) -> None:
    written = thought + ("Thought: Hm.\nReply: " if form == "react" else "") + words
    message = ModelCustomer(CannedBackend([written]), form, STOP).reply(TASK, TALK, seed=0)
    assert (message.content, message.raw, message.error) == (heard, written, None)


def test_a_model_that_only_thinks_has_said_nothing() -> None:
    for form in ("plain", "react"):
        for written in (
            f"<think>I want it for 5, no {STOP}",
            "<think>So.</think>",
            "[THINK]Reply: x",
        ):
            with pytest.raises(UserFault, match="said nothing"):
                said(form, written)
    assert said("verify", "<think>So", "<think>Or", "<think>But</think>North.") == "North."


def test_checks_are_read_without_their_thoughts() -> None:
    assert said("verify", "North.", "<think>Is it false? No.</think>\n\ntrue") == "North."
    assert said("verify", "One.", "<think>Is it true?</think>false", "Two.", "true") == "Two."
    assert said("verify", "One.", "<think>It is true", "Two.", "true") == "Two."
    advice = "<think>Response: No.</think>Reflection: rude.\nResponse: North, please."
    model = Recorder("One.", "false", advice, "Two.", "true")
    ModelCustomer(model, "reflection", STOP).reply(TASK, TALK, seed=0)
    assert model.prompts()[3].endswith(
        "(A note that only you can see. You could say: North, please.)"
    )


# Checked answers.


def test_an_answer_that_passes_is_said() -> None:
    assert said("verify", "North.", "True.") == "North."


def test_verify_tries_again_and_no_more_than_it_may() -> None:
    assert said("verify", "One.", "false", "Two.", "It is true") == "Two."
    assert CANDIDATES == 3
    assert said("verify", "One.", "false", "Two.", "who knows", "Three.") == "Three."


def test_what_breaks_the_contract_needs_no_check() -> None:
    assert said("verify", '{"name": "x"}', "How can I help you?", "Three.") == "Three."
    with pytest.raises(UserFault, match="called a tool"):
        said("verify", "{", "{", "{}")


def test_the_check_sees_the_whole_conversation() -> None:
    model = Recorder("North.", "true")
    ModelCustomer(model, "verify", STOP, temperature=0.7).reply(TASK, TALK, seed=0)
    (_, reply), (prompt, check) = model.calls
    assert (reply.temperature, check.temperature) == (0.7, 0.0)
    text = customers.CHECK.replace("{instruction}", TASK.instruction).replace("{marker}", STOP)
    text = text.replace("{transcript}", "Customer: A hotel.\nAgent: In which area?")
    assert prompt == [{"role": "user", "content": text.replace("{candidate}", "North.").strip()}]


def test_the_check_of_an_opening_says_that_nothing_was_said() -> None:
    model = Recorder("A hotel.", "true")
    ModelCustomer(model, "verify", STOP).reply(TASK, (), seed=0)
    assert "conversation so far:\n(The customer speaks first.)\n" in model.prompts()[1]


def test_reflection_is_told_what_to_say_instead() -> None:
    model = Recorder("One.", "false", "Reflection: rude.\nResponse: North, please.", "Two.", "true")
    message = ModelCustomer(model, "reflection", STOP).reply(TASK, TALK, seed=0)
    assert (message.content, message.usage) == ("Two.", model.cost)
    assert "found wanting:\nOne.\n" in model.prompts()[2]
    again = model.calls[3][0]
    assert again[:-1] == model.calls[0][0][:-1]
    advice = customers.ADVICE.format(said="In which area?", response="North, please.")
    assert again[-1] == {"role": "user", "content": advice}


def test_reflection_keeps_its_first_answer_when_the_second_is_no_better() -> None:
    assert said("reflection", "One.", "true") == "One."
    assert said("reflection", "One.", "false", "Response: Hm.", "Two.", "false") == "One."
    assert said("reflection", "One.", "false", "I would not know.") == "One."


# Luck, and models that fail.


def seeds(talk: Sequence[Message], seed: int) -> list[int]:
    """Return the seeds of all calls of a customer that is never content."""
    model = Recorder("One.", "false", "Two.", "false", "Three.")
    ModelCustomer(model, "verify", STOP).reply(TASK, talk, seed=seed)
    return [sampling.seed for _, sampling in model.calls]


def test_luck_follows_from_the_seed_the_words_and_the_attempt() -> None:
    first = seeds(TALK, 0)
    assert len(set(first)) == 5
    assert first == seeds(TALK, 0)
    assert not set(first) & set(seeds(TALK, 1))
    assert not set(first) & set(seeds((TALK[0], Message("assistant", "Where?")), 0))


def test_a_model_that_does_not_answer_is_not_the_customers_fault() -> None:
    with pytest.raises(BackendError, match="all canned texts are written"):
        said("verify", "One.")


class Full:
    """A model whose context is always full."""

    def complete(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> Completion:
        return Completion("", Usage(1000, 0), "context")


def test_a_full_context_is_a_fault() -> None:
    with pytest.raises(UserFault, match="no longer fits the context"):
        ModelCustomer(Full(), "goal", STOP).reply(TASK, TALK, seed=0)


# The contract.


@pytest.mark.parametrize(
    "words",
    [
        '{"name": "search_hotel", "arguments": {}}',
        '[{"area": "north"}]',
        'I do it: "arguments": {"area": "north"}',
        "```python\nprint()\n```",
        "<tool_call>search</tool_call>",
        "search_hotel(area=north)",
    ],
)
def test_a_customer_calls_no_tool(words: str) -> None:
    assert contract.calls_a_tool(words)


@pytest.mark.parametrize(
    "words",
    [
        "[North], please.",
        "A hotel (cheap).",
        "My id is ann_lee_123 (the old one).",
        "It's {braces}",
    ],
)
def test_what_only_looks_like_a_tool_call(words: str) -> None:
    assert not contract.calls_a_tool(words)


@pytest.mark.parametrize(
    "words",
    [
        "Hello! How may I help you?",
        "Is there anything else I can help you with?",
        "Welcome to our hotel.",
        "I'd be happy to help.",
        "I'm an AI and want no hotel.",
        "As a language model, I cannot travel.",
        "A hotel.\nAgent: Which?",
        "**Assistant**: Sure.",
        "It is booked, your reference number is X1.",
    ],
)
def test_a_customer_is_not_the_agent(words: str) -> None:
    assert contract.speaks_as_the_agent(words)


@pytest.mark.parametrize(
    "words",
    [
        "Can you help me?",
        "What is the reference number?",
        "Is there anything else you need?",
        "I was told by another agent: no.",
    ],
)
def test_what_a_customer_may_say(words: str) -> None:
    assert not contract.speaks_as_the_agent(words)


def test_a_customer_does_not_say_the_agents_words_after_it() -> None:
    turn = "There are 3 cheap hotels in the north."
    assert contract.echoes(f'"{turn.upper()}"', ["Hello.", turn])
    assert not contract.echoes(turn, [turn, "Which one?"])
    assert not contract.echoes("The north?", ["The north?"])  # short words are asked back


def test_a_long_instruction_is_not_told_at_once() -> None:
    mine = LONG.instruction.replace("Your", "My").replace("your", "my").replace("You", "I")
    assert contract.tells_all(LONG.instruction, mine)
    first, second, _ = LONG.instruction.split(". ", 2)
    assert not contract.tells_all(LONG.instruction, f"{first}.")
    assert not contract.tells_all(LONG.instruction, second)
    assert not contract.tells_all("You want a cheap hotel.", "I want a cheap hotel.")


def test_a_customer_that_says_goodbye_goes() -> None:
    bye = ["Thanks, bye!"] * (GOODBYES - 1)
    assert contract.never_ends("Goodbye then.", ["A hotel.", *bye], ["Here."] * 3)
    assert not contract.never_ends("Wait: its phone?", ["A hotel.", *bye], ["Here."] * 3)
    assert not contract.never_ends("Bye.", bye[:1], ["Here."])


def test_a_customer_does_not_go_round_in_circles() -> None:
    answer, yes = "I want a cheap hotel in the north.", "Yes, please."
    asked = ["Which area?", "How many people?", "Which day?"]
    assert contract.never_ends(answer, ["Hi.", answer, answer], asked)
    assert not contract.never_ends(yes, ["Hi.", yes, yes], asked)
    assert not contract.never_ends(yes, ["Hi.", *[yes] * 8], [f"{n}?" for n in range(9)])


@pytest.mark.parametrize("answer", ["Yes, please.", "I want a cheap hotel in the north."])
def test_an_agent_that_asks_again_gets_the_same_answer_for_a_while(answer: str) -> None:
    for times in range(1, REPEATS + 1):
        mine = ["Hi.", *[answer] * (times - 1)]
        found = contract.never_ends(answer, mine, ["Which area?"] * times)
        assert found == (times == REPEATS)


def test_nobody_talks_for_ever() -> None:
    mine = [str(number) for number in range(TURNS - 1)]
    assert not contract.never_ends("x", mine, mine)
    assert contract.never_ends("x", [*mine, "y"], [*mine, "y"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("said nothing", " \n"),
        ("called a tool", "{"),
        ("spoke as the agent", "How can I help you?"),
        ("told all at once", LONG.instruction),
        ("left at once", STOP),
        ("never ends", "Bye bye."),
    ],
)
def test_every_breach_ends_the_dialogue(kind: str, words: str) -> None:
    talk: tuple[Message, ...] = ()
    if kind == "never ends":
        talk = (*TALK, *(Message("user", "Bye."), Message("assistant", "Bye.")) * 2)
    with pytest.raises(UserFault, match=f"the customer {kind}"):
        said("plain", words, task=LONG, talk=talk)


def test_the_kinds_above_are_all_there_are() -> None:
    assert len(BREACHES) == 6 + len(FORGIVEN)  # for which see test_leaving.py


def test_people_and_scripts_keep_to_the_contract(multiwoz: ToolWOZ) -> None:
    found: Counter[str] = Counter()
    for task in multiwoz.tasks("val"):
        talk: list[Message] = []
        for number, words in enumerate(task.turns, 1):
            kind = breach(task, talk, words, ends=1 < number == len(task.turns))
            found[kind or "none"] += 1
            talk += [Message("user", words), Message("assistant", f"Turn {number}.")]
    # In one turn the person who played the customer wrote the agent's line, and 13 of the dialogues
    # break off after a turn that asks for something or answers a question.
    assert found == {"none": 5732, "spoke as the agent": 1, "left too soon": 13}


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_scripted_customer_keeps_to_the_contract(noise: float) -> None:
    world = load_world("builtin")
    dialogue = Dialogue(world, Checked(ScriptedUser(noise=noise)), max_steps=45)
    for index in range(10):
        task = world.tasks("val")[index]
        assert play(dialogue, ExpertAgent(task), task, seed=index).outcome == "success"


class Checked:
    """A customer that is held to the contract."""

    def __init__(self, user: UserSimulator) -> None:
        self._user = user

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        message = self._user.reply(task, messages, seed=seed)
        words, marker, _ = message.content.partition(END_CONVERSATION)
        assert breach(task, messages, words, ends=bool(marker)) is None
        return message


# Whole dialogues.


def heard(prompt: Sequence[ChatMessage]) -> list[Message]:
    """Return the dialogue that a prompt shows, the right way round again."""
    roles = {"assistant": "user", "user": "assistant"}
    talk = [Message(roles[m["role"]], m["content"]) for m in prompt[2:]]  # type: ignore[arg-type]
    return talk


def as_script(task: Task) -> Callable[[Sequence[ChatMessage], Sampling], str]:
    """Return a model that plays the customer as the script does."""

    def write(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        assert task.instruction.strip() in prompt[0]["content"]
        content = ScriptedUser().reply(task, heard(prompt), seed=0).content
        return content.replace(END_CONVERSATION, "\n**END CONVERSATION**")

    return write


def test_a_whole_toolwoz_dialogue() -> None:
    world = load_world("builtin")
    task = world.tasks("val")[3]
    customer = ModelCustomer(CannedBackend(as_script(task)), "goal", world.end_marker)
    episode = play(Dialogue(world, customer, 45), ExpertAgent(task), task, seed=0)
    scripted = play(Dialogue(world, ScriptedUser(), 45), ExpertAgent(task), task, seed=0)
    assert episode.outcome == "success"
    assert [m.content for m in episode.messages] == [m.content for m in scripted.messages]


def test_a_whole_guided_dialogue(multiwoz: ToolWOZ) -> None:
    task = next(t for t in multiwoz.tasks("val") if len(t.turns) > 3)
    assert isinstance(task, ToolWOZTask)

    def write(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        number = len(heard(prompt)) // 2 + 1
        lines = prompt[0]["content"].partition(f"\n{number}. ")[2].splitlines()
        return lines[0] if number < len(task.turns) else f"{lines[0]} end_conversation"

    customer = ModelCustomer(CannedBackend(write), "guided", multiwoz.end_marker)
    episode = play(Dialogue(multiwoz, customer, 45), ExpertAgent(task), task, seed=0)
    words = [" ".join(turn.split()) for turn in task.turns]
    words[-1] += f" {END_CONVERSATION}"
    assert [m.content for m in episode.messages if m.role == "user"] == words
    assert not episode.truncated and episode.outcome in ("success", "failure")


@pytest.mark.parametrize("form", ["plain", "react", "verify", "reflection"])
def test_a_whole_tau_dialogue(shared: Path, form: Form) -> None:
    domain = read_domain(shared / "data" / "tau_bench", "airline")
    task = next(t for t in domain.tasks("test") if not domain.passes_idle(t))

    def write(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        if prompt[0]["role"] == "user":
            return "true"
        words = "Hello, I need your help." if len(prompt) == 2 else "### STOP ###"
        return f"Thought: let me see.\nReply: {words}" if form == "react" else words

    model = Recorder()
    model._backend = CannedBackend(write)
    customer = ModelCustomer(model, form, domain.end_marker)
    episode = play(Dialogue(domain, customer, 30), GoldAgent(task), task, seed=0)
    mine = [m for m in episode.messages if m.role == "user"]
    assert [m.content for m in mine] == ["Hello, I need your help.", STOP]
    assert episode.outcome == "success"
    assert len(model.calls) == (4 if form in ("verify", "reflection") else 2)
    assert usage_of(episode.messages, "user") == model.cost


def test_a_customer_out_of_its_role_is_the_outcome_user_fault() -> None:
    world = load_world("builtin")
    task = world.tasks("val")[3]
    model = CannedBackend(["A place to eat, please.", '{"name": "search_restaurant"}'])
    customer = ModelCustomer(model, "goal", world.end_marker)
    episode = play(Dialogue(world, customer, 45), ExpertAgent(task), task, seed=0)
    assert (episode.outcome, episode.reward) == ("user_fault", 0.0)
    assert episode.messages[-1].content.startswith("(the customer called a tool: '{")
