"""τ-bench's airline tools answer as the original was recorded to, and leave the same tables."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym.tau_bench.airline import AIRPORTS
from toolwoz_gym.tau_bench.domain import Desk, TauBench, TauTask, task_from_json
from toolwoz_gym.tau_bench.tables import Base, canonical, copied
from toolwoz_gym.types import Episode, Message, ToolCall

WORDED_BY_PYTHON = re.compile(
    r"object|indices|unhashable|operand|literal|integers|argument must|arg 1|zero|power|invalid "
    r"syntax|unmatched|never closed"
)
"""Exceptions that are shown as Python words them: the recorded ones are Python 3.11's."""


def alike(answer: str, recorded: str) -> bool:
    if sys.version_info[:2] == (3, 11) or not WORDED_BY_PYTHON.search(recorded):
        return answer == recorded
    return answer.startswith("Error: ") == recorded.startswith("Error: ")


# The recorded calls.


@pytest.fixture(scope="module")
def airline(shared: Path) -> TauBench:
    folder = shared / "data" / "tau_bench" / "airline"
    tables = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("flights", "reservations", "users")
    }
    tasks = [
        task_from_json(task, domain="airline", split="test", index=index)
        for index, task in enumerate(json.loads((folder / "tasks_test.json").read_text()))
    ]
    return TauBench(
        "airline", Base(tables), {"test": tasks}, policy="", tools=(), fingerprint="shared"
    )


def test_recorded_calls(shared: Path, airline: TauBench) -> None:
    with gzip.open(shared / "oracle" / "tau_bench" / "calls_airline.json.gz") as file:
        recorded = json.load(file)
    task = airline.tasks("test")[0]
    assert len(recorded["sequences"]) == 250
    assert airline.digest(airline.start(task)) == recorded["initial_data_hash"]
    wrong, raised = [], 0
    for number, sequence in enumerate(recorded["sequences"]):
        world = airline.start(task)
        for call in sequence["calls"]:
            before = world
            world, answer = airline.call(task, world, ToolCall(call["name"], call["kwargs"]))
            if "raises" in call:
                # The fourth certificate, whose exception ended the original's episode.
                raised += 1
                assert call["name"] == "send_certificate" and answer.startswith("Error: ")
                assert world == before
            elif not alike(answer, call["observation"]):
                wrong.append((number, call, answer))
        if airline.digest(world) != sequence["data_hash"]:
            wrong.append((number, "hash"))
    assert not wrong
    assert raised == 10


def test_recorded_gold_runs(shared: Path, airline: TauBench) -> None:
    path = shared / "oracle" / "tau_bench" / "gold_airline_first25.json"
    recorded = json.loads(path.read_text())
    untouched = airline.digest(airline.start(airline.tasks("test")[0]))
    assert len(recorded["tasks"]) == 25
    for gold in recorded["tasks"]:
        task = airline.tasks("test")[gold["task_index"]]
        assert (task.user_id, len(task.goals)) == (gold["user_id"], gold["n_actions"])
        world, answers = airline.start(task), []
        for action in task.goals:
            world, answer = airline.call(task, world, action)
            answers.append(answer)
        assert answers == gold["observations"]
        digest = airline.digest(world)
        assert digest == gold["gold_data_hash"]
        assert (digest == untouched) == gold["db_unchanged_by_gold"]
        assert world.met == frozenset(range(len(task.goals)))


# A desk with four flights, worked by hand.


def flight(number: str, origin: str, destination: str, departs: str, arrives: str) -> Any:
    """Return a flight whose prices are 100 (200 in business) plus its day, with five seats."""
    days: dict[str, Any] = {
        f"2024-05-{day:02}": {
            "status": "available",
            "available_seats": {"basic_economy": 0, "economy": 5, "business": 5},
            "prices": {"basic_economy": 50 + day, "economy": 100 + day, "business": 200 + day},
        }
        for day in (8, 9, 20, 21)
    }
    return {
        "flight_number": number,
        "origin": origin,
        "destination": destination,
        "scheduled_departure_time_est": departs,
        "scheduled_arrival_time_est": arrives,
        "dates": {**days, "2024-05-22": {"status": "cancelled"}},
    }


TABLES: dict[str, Any] = {
    "flights": {
        "HAT001": flight("HAT001", "SFO", "JFK", "06:00:00", "09:00:00"),
        "HAT002": flight("HAT002", "JFK", "BOS", "09:00:00", "10:00:00"),
        "HAT003": flight("HAT003", "SFO", "JFK", "21:00:00", "00:30:00+1"),
        "HAT004": flight("HAT004", "SFO", "JFK", "12:00:00", "15:00:00"),
    },
    "users": {
        "ada": {
            "name": {"first_name": "Ada", "last_name": "Byron"},
            "payment_methods": {
                "credit_card_1": {"source": "credit_card", "id": "credit_card_1"},
                "gift_card_1": {"source": "gift_card", "amount": 150, "id": "gift_card_1"},
                "certificate_1": {"source": "certificate", "amount": 500, "id": "certificate_1"},
            },
            "reservations": ["ZFA04Y"],
        }
    },
    "reservations": {
        "ZFA04Y": {
            "reservation_id": "ZFA04Y",
            "user_id": "ada",
            "origin": "SFO",
            "destination": "JFK",
            "flight_type": "one_way",
            "cabin": "economy",
            "flights": [
                {
                    "origin": "SFO",
                    "destination": "JFK",
                    "flight_number": "HAT001",
                    "date": "2024-05-20",
                    "price": 70,
                }
            ],
            "passengers": [{"first_name": "Ada", "last_name": "Byron", "dob": "1815-12-10"}],
            "payment_history": [{"payment_id": "credit_card_1", "amount": 70}],
            "created_at": "2024-05-01T00:00:00",
            "total_baggages": 1,
            "nonfree_baggages": 1,
            "insurance": "no",
        }
    },
}

BOOKING: dict[str, Any] = {
    "user_id": "ada",
    "origin": "SFO",
    "destination": "JFK",
    "flight_type": "one_way",
    "cabin": "economy",
    "flights": [{"flight_number": "HAT001", "date": "2024-05-20"}],
    "passengers": [{"first_name": "Ada", "last_name": "Byron", "dob": "1815-12-10"}],
    "payment_methods": [{"payment_id": "credit_card_1", "amount": 120}],
    "total_baggages": 0,
    "nonfree_baggages": 0,
    "insurance": "no",
}

TASK = TauTask("airline-tiny-0", "tiny", "Book a flight.", ())


def tiny_domain() -> TauBench:
    tables = Base(deepcopy(TABLES))
    return TauBench("airline", tables, {"tiny": [TASK]}, policy="", tools=(), fingerprint="tiny")


class Clerk:
    """Makes call after call on the tiny tables."""

    def __init__(self) -> None:
        self.domain = tiny_domain()
        self.world: Desk = self.domain.start(TASK)

    def call(self, name: str, **arguments: Any) -> Any:
        """Return the answer: what its JSON says, or the text of an error."""
        self.world, answer = self.domain.call(TASK, self.world, ToolCall(name, arguments))
        return answer if answer.startswith("Error: ") else json.loads(answer)

    def pay(self, *amounts: tuple[str, float]) -> Any:
        """Book, and pay so."""
        payments = [{"payment_id": id, "amount": amount} for id, amount in amounts]
        return self.call("book_reservation", **{**BOOKING, "payment_methods": payments})

    def record(self, table: str, key: str) -> Any:
        changed = self.world.changes.get((table, key))
        return self.domain.base.tables[table][key] if changed is None else changed

    def methods(self) -> dict[str, Any]:
        methods: dict[str, Any] = self.record("users", "ada")["payment_methods"]
        return methods


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


def test_booking(clerk: Clerk) -> None:
    flights = [{"price": 1, "date": "2024-05-20", "flight_number": "HAT001", "note": "window"}]
    booked = clerk.call("book_reservation", **{**BOOKING, "flights": flights})
    assert list(booked) == list(TABLES["reservations"]["ZFA04Y"])
    assert list(booked["flights"][0].items()) == [
        ("price", 120),
        ("date", "2024-05-20"),
        ("flight_number", "HAT001"),
        ("note", "window"),
        ("origin", "SFO"),
        ("destination", "JFK"),
    ]
    assert booked["created_at"] == "2024-05-15T15:00:00"
    assert clerk.record("users", "ada")["reservations"] == ["ZFA04Y", "HATHAT"]
    assert set(clerk.world.changes) == {("users", "ada"), ("reservations", "HATHAT")}


def test_price_of_a_booking(clerk: Clerk) -> None:
    two = BOOKING["passengers"] * 2
    wanted = {**BOOKING, "passengers": two, "nonfree_baggages": 3, "insurance": "yes"}
    # Two seats of 120, two insurances of 30, three bags of 50.
    assert clerk.call("book_reservation", **wanted) == (
        "Error: payment amount does not add up, total price is 450, but paid 120"
    )
    assert clerk.call("book_reservation", **{**wanted, "insurance": "Yes"}) == (
        "Error: payment amount does not add up, total price is 390, but paid 120"
    )


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ({"flights": [{"flight_number": "HAT9", "date": "x"}]}, "flight HAT9 not found"),
        ({"flights": [{"flight_number": "HAT9"}]}, "flight HAT9 not found"),
        ({"flights": [{"flight_number": "HAT001"}]}, "'date'"),
        (
            {"flights": [{"flight_number": "HAT001", "date": "2024-06-01"}]},
            "flight HAT001 not found on date 2024-06-01",
        ),
        (
            {"flights": [{"flight_number": "HAT001", "date": "2024-05-22"}]},
            "flight HAT001 not available on date 2024-05-22",
        ),
        ({"cabin": "basic_economy"}, "not enough seats on flight HAT001"),
        ({"cabin": "first"}, "'first'"),
        ({"user_id": "bob", "cabin": "first"}, "user not found"),
    ],
)
def test_refused_booking(clerk: Clerk, wanted: dict[str, Any], answer: str) -> None:
    assert clerk.call("book_reservation", **{**BOOKING, **wanted}) == f"Error: {answer}"
    assert not clerk.world.changes


def test_fourth_booking_overwrites_the_third(clerk: Clerk) -> None:
    booked = [clerk.pay(("credit_card_1", 120))["reservation_id"] for _ in range(3)]
    assert booked == ["HATHAT", "HATHAU", "HATHAV"]
    assert clerk.pay(("certificate_1", 120))["reservation_id"] == "HATHAV"
    assert clerk.record("users", "ada")["reservations"] == ["ZFA04Y", *booked, "HATHAV"]
    paid = [clerk.record("reservations", id)["payment_history"][0]["payment_id"] for id in booked]
    assert paid == ["credit_card_1", "credit_card_1", "certificate_1"]


def test_seats_are_never_taken(clerk: Clerk) -> None:
    crowd = BOOKING["passengers"] * 5
    payment = [{"payment_id": "credit_card_1", "amount": 600}]
    for _ in range(2):
        wanted = {**BOOKING, "passengers": crowd, "payment_methods": payment}
        assert len(clerk.call("book_reservation", **wanted)["passengers"]) == 5


def test_certificate_paid_with_twice_is_gone_and_nothing_is_booked(clerk: Clerk) -> None:
    answer = clerk.pay(("gift_card_1", 20), ("certificate_1", 50), ("certificate_1", 50))
    assert answer == "Error: 'certificate_1'"
    assert "certificate_1" not in clerk.methods()
    assert clerk.methods()["gift_card_1"]["amount"] == 130
    assert set(clerk.world.changes) == {("users", "ada")}
    assert clerk.record("users", "ada")["reservations"] == ["ZFA04Y"]


def test_gift_card_paid_with_twice_goes_below_zero(clerk: Clerk) -> None:
    assert clerk.pay(("gift_card_1", 151), ("credit_card_1", -31)) == (
        "Error: not enough balance in payment method gift_card_1"
    )
    clerk.pay(("gift_card_1", 150), ("gift_card_1", 100), ("credit_card_1", -130))
    assert clerk.methods()["gift_card_1"]["amount"] == -100


def test_amounts_are_compared_exactly_and_kept_as_they_are_given() -> None:
    whole, broken = Clerk(), Clerk()
    whole.pay(("credit_card_1", 120))
    assert broken.pay(("credit_card_1", 119.99)).endswith("is 120, but paid 119.99")
    broken.pay(("credit_card_1", 120.0))
    assert whole.domain.digest(whole.world) != broken.domain.digest(broken.world)


def test_cancelling_twice_doubles_the_negated_payments(clerk: Clerk) -> None:
    once = clerk.call("cancel_reservation", reservation_id="ZFA04Y")
    assert [p["amount"] for p in once["payment_history"]] == [70, -70]
    assert list(once)[-1] == "status" and once["status"] == "cancelled"
    twice = clerk.call("cancel_reservation", reservation_id="ZFA04Y")
    assert [p["amount"] for p in twice["payment_history"]] == [70, -70, -70, 70]


def test_cancelling_without_end_is_refused_before_it_fills_the_memory(clerk: Clerk) -> None:
    answers = [clerk.call("cancel_reservation", reservation_id="ZFA04Y") for _ in range(8)]
    assert len(answers[6]["payment_history"]) == 128
    assert answers[7].startswith("Error: ")


def test_cabin_is_not_updated_with_the_flights(clerk: Clerk) -> None:
    wanted = [{"flight_number": "HAT001", "date": "2024-05-20"}]
    change = {"reservation_id": "ZFA04Y", "flights": wanted, "payment_id": "gift_card_1"}
    # In the reservation's own cabin the flight keeps its price, and nothing is paid.
    same = clerk.call("update_reservation_flights", cabin="economy", **change)
    assert same["flights"][0]["price"] == 70 and len(same["payment_history"]) == 1
    # 220 today in business, 70 paid before.
    other = clerk.call("update_reservation_flights", cabin="business", **change)
    assert other["cabin"] == "economy" and other["flights"][0]["price"] == 220
    assert other["payment_history"][-1] == {"payment_id": "gift_card_1", "amount": 150}
    assert clerk.methods()["gift_card_1"]["amount"] == 0
    # All flights given up: the price comes back as a negative payment.
    none = clerk.call("update_reservation_flights", cabin="x", **{**change, "flights": []})
    assert none["flights"] == [] and none["payment_history"][-1]["amount"] == -220
    assert clerk.methods()["gift_card_1"]["amount"] == 220


def test_a_kept_flight_need_not_be_available(clerk: Clerk) -> None:
    clerk.domain.base.tables["flights"]["HAT001"]["dates"]["2024-05-20"]["status"] = "delayed"
    change = {
        "reservation_id": "ZFA04Y",
        "flights": [{"flight_number": "HAT001", "date": "2024-05-20"}],
        "payment_id": "credit_card_1",
    }
    kept = clerk.call("update_reservation_flights", cabin="economy", **change)
    assert kept["flights"][0]["price"] == 70
    assert clerk.call("update_reservation_flights", cabin="business", **change) == (
        "Error: flight HAT001 not available on date 2024-05-20"
    )


@pytest.mark.parametrize(
    ("payment_id", "nonfree", "answer"),
    [
        ("certificate_1", 1, "Error: certificate cannot be used to update reservation"),
        ("gift_card_1", 5, "Error: gift card balance is not enough"),
        ("gift_card_2", 1, "Error: payment method not found"),
    ],
)
def test_refused_bags(clerk: Clerk, payment_id: str, nonfree: int, answer: str) -> None:
    bags = {"total_baggages": 1, "nonfree_baggages": nonfree, "payment_id": payment_id}
    assert clerk.call("update_reservation_baggages", reservation_id="ZFA04Y", **bags) == answer
    assert not clerk.world.changes


def test_fewer_bags_give_nothing_back(clerk: Clerk) -> None:
    def bags(total: int, nonfree: int) -> Any:
        return clerk.call(
            "update_reservation_baggages",
            reservation_id="ZFA04Y",
            total_baggages=total,
            nonfree_baggages=nonfree,
            payment_id="gift_card_1",
        )

    assert len(bags(0, 0)["payment_history"]) == 1
    assert bags(0, 2)["payment_history"][-1] == {"payment_id": "gift_card_1", "amount": 100}
    assert clerk.methods()["gift_card_1"]["amount"] == 50


def test_passengers_are_counted_and_not_looked_at(clerk: Clerk) -> None:
    def passengers(value: Any) -> Any:
        name = "update_reservation_passengers"
        return clerk.call(name, reservation_id="ZFA04Y", passengers=value)

    assert passengers([]) == "Error: number of passengers does not match"
    assert passengers("x")["passengers"] == "x"


def test_unknown_records(clerk: Clerk) -> None:
    # Not a slip of this test: the original says "user" where it means the reservation.
    assert clerk.call("get_reservation_details", reservation_id="x") == "Error: user not found"
    assert clerk.call("get_user_details", user_id="x") == "Error: user not found"
    assert clerk.call("cancel_reservation", reservation_id="x") == "Error: reservation not found"
    assert clerk.call("list_all_airports") == AIRPORTS


def test_a_fourth_certificate_is_an_error_and_a_spent_one_makes_room(clerk: Clerk) -> None:
    def send(amount: Any) -> str:
        call = ToolCall("send_certificate", {"user_id": "ada", "amount": amount})
        clerk.world, answer = clerk.domain.call(TASK, clerk.world, call)
        return answer

    sent = "Certificate certificate_322132{} added to user ada with amount {}."
    assert [send(a) for a in (120, 1.5, None)] == [
        sent.format(2, 120), sent.format(3, 1.5), sent.format(4, None)
    ]  # fmt: skip
    before = clerk.world
    assert send(9).startswith("Error: ") and clerk.world is before
    clerk.pay(("certificate_3221322", 120))
    assert send(9) == sent.format(2, 9)
    assert list(clerk.methods())[-1] == "certificate_3221322"


def test_direct_flights(clerk: Clerk) -> None:
    def search(**change: Any) -> Any:
        wanted = {"origin": "SFO", "destination": "JFK", "date": "2024-05-20", **change}
        return clerk.call("search_direct_flight", **wanted)

    assert [f["flight_number"] for f in search()] == ["HAT001", "HAT003", "HAT004"]
    assert list(search()[0])[3:] == [
        "scheduled_departure_time_est", "scheduled_arrival_time_est", "status", "available_seats",
        "prices",
    ]  # fmt: skip
    for nothing in ({"date": "2024-05-22"}, {"date": "x"}, {"origin": ["SFO"]}, {"origin": "sfo"}):
        assert search(**nothing) == []


def test_flights_with_a_stop(clerk: Clerk) -> None:
    def search(date: Any) -> Any:
        wanted = {"origin": "SFO", "destination": "BOS", "date": date}
        return clerk.call("search_onestop_flight", **wanted)

    # HAT004 arrives too late. HAT001 arrives when HAT002 leaves, which is time enough.
    same_day, next_day = search("2024-05-20")
    assert [f["flight_number"] for f in same_day] == ["HAT001", "HAT002"]
    assert [f["flight_number"] for f in next_day] == ["HAT003", "HAT002"]
    assert [f["date"] for f in next_day] == ["2024-05-20", "2024-05-21"]
    assert list(next_day[1])[-1] == "date"
    # Seats and prices are those of the day that was asked for, not of the day it flies.
    assert next_day[1]["prices"]["economy"] == 120
    # The ninth is written 2024-05-9 and not found, and no second flight leaves on the 22nd.
    assert [len(search(date)) for date in ("2024-05-08", "2024-05-21")] == [1, 1]
    assert search("tomorrow") == "Error: invalid literal for int() with base 10: 'ow'"


# What a call may touch.

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("book_reservation", BOOKING),
    (
        "book_reservation",
        {
            **BOOKING,
            "payment_methods": [
                {"payment_id": "gift_card_1", "amount": 20},
                {"payment_id": "certificate_1", "amount": 100},
            ],
        },
    ),
    ("cancel_reservation", {"reservation_id": "ZFA04Y"}),
    ("cancel_reservation", {"reservation_id": "HATHAT"}),
    ("get_reservation_details", {"reservation_id": "HATHAT"}),
    ("get_user_details", {"user_id": "ada"}),
    ("search_onestop_flight", {"origin": "SFO", "destination": "BOS", "date": "2024-05-20"}),
    ("send_certificate", {"user_id": "ada", "amount": 50}),
    (
        "update_reservation_baggages",
        {
            "reservation_id": "HATHAT",
            "total_baggages": 2,
            "nonfree_baggages": 2,
            "payment_id": "gift_card_1",
        },
    ),
    (
        "update_reservation_flights",
        {
            "reservation_id": "HATHAT",
            "cabin": "business",
            "flights": [{"flight_number": "HAT004", "date": "2024-05-21"}],
            "payment_id": "credit_card_1",
        },
    ),
    (
        "update_reservation_passengers",
        {"reservation_id": "HATHAT", "passengers": [{"first_name": "Bob"}]},
    ),
]

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@st.composite
def some_calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a call that makes sense, as often as not with a value that makes none."""
    name, arguments = draw(st.sampled_from(CALLS))
    arguments = copied(arguments)
    if draw(st.booleans()):
        arguments[draw(st.sampled_from(sorted(arguments)))] = draw(JUNK)
    return name, arguments


def containers(value: Any) -> Iterator[int]:
    """Yield the identity of everything in a value that can be written to."""
    if isinstance(value, dict | list):
        yield id(value)
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


@given(st.lists(some_calls(), min_size=1, max_size=6))
def test_a_call_leaves_alone_what_it_was_given(calls: list[tuple[str, dict[str, Any]]]) -> None:
    domain = tiny_domain()
    world: Desk = domain.start(TASK)
    seen = [(world, domain.digest(world))]
    for name, arguments in calls:
        given_arguments = canonical(arguments)
        before = world
        world, answer = domain.call(TASK, before, ToolCall(name, arguments))
        assert (world, answer) == domain.call(TASK, before, ToolCall(name, arguments))
        assert canonical(arguments) == given_arguments
        theirs = {*containers(arguments), *containers(TABLES), *containers(domain.base.tables)}
        for place, record in world.changes.items():
            if record is not before.changes.get(place):
                ours = set(containers(record))
                assert not ours & theirs
                assert not ours & set(containers(before.changes.get(place)))
        seen.append((world, domain.digest(world)))
    assert [domain.digest(world) for world, _ in seen] == [digest for _, digest in seen]
    assert domain.base.tables == TABLES


def test_a_sum_too_long_to_print_can_be_scored(airline: TauBench) -> None:
    """Python refuses to write integers of more than 4,300 digits."""
    task = airline.tasks("test")[0]
    user = next(u for u in airline.base.tables["users"].values() if u["reservations"])
    card = next(m for m, v in user["payment_methods"].items() if v["source"] == "credit_card")
    made = ToolCall(
        "update_reservation_baggages",
        {
            "reservation_id": user["reservations"][0],
            "total_baggages": 1,
            "nonfree_baggages": 10**4299,
            "payment_id": card,
        },
    )
    world, answer = airline.call(task, airline.start(task), made)
    assert answer.startswith("Error: ")
    assert airline.score(Episode(task, 0, (Message("user"),), world)) == 0.0
    assert airline.digest(world) != airline.digest(airline.start(task))
