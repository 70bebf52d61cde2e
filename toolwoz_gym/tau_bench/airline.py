"""The tools of τ-bench's airline desk.

They answer as the original does where it is odd, too: the oddities are part of the benchmark. What
a tool is given is its own (:func:`~toolwoz_gym.tau_bench.calling.invoke` copies it), to keep and to
write to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from toolwoz_gym.tau_bench.calling import Tool, dump
from toolwoz_gym.tau_bench.common import calculate, think, transfer_to_human_agents
from toolwoz_gym.tau_bench.tables import Base, Record, Tables

AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}

NEW_RESERVATIONS = ("HATHAT", "HATHAU", "HATHAV")
NEW_CERTIFICATES = ("certificate_3221322", "certificate_3221323", "certificate_3221324")

MAX_PAYMENTS = 64
"""Each cancellation doubles a reservation's payments; one that has more is not cancelled again.
The original goes on until its memory is full."""


def book_reservation(
    tables: Tables,
    user_id: Any,
    origin: Any,
    destination: Any,
    flight_type: Any,
    cabin: Any,
    flights: Any,
    passengers: Any,
    payment_methods: Any,
    total_baggages: Any,
    nonfree_baggages: Any,
    insurance: Any,
) -> str:
    """Book flights. No seat is taken, and a fourth booking overwrites the third."""
    if ("users", user_id) not in tables:
        return "Error: user not found"
    free = (key for key in NEW_RESERVATIONS if ("reservations", key) not in tables)
    reservation_id = next(free, NEW_RESERVATIONS[-1])

    total = 0
    for flight in flights:
        if fault := _flight_fault(tables, flight, cabin, passengers):
            return fault
        _complete_from_schedule(tables, flight, cabin)
        total += flight["price"] * len(passengers)
    if insurance == "yes":
        total += 30 * len(passengers)
    total += 50 * nonfree_baggages

    methods = tables.read("users", user_id)["payment_methods"]
    for payment in payment_methods:
        payment_id, amount = payment["payment_id"], payment["amount"]
        if payment_id not in methods:
            return f"Error: payment method {payment_id} not found"
        method = methods[payment_id]
        if method["source"] != "credit_card" and method["amount"] < amount:
            return f"Error: not enough balance in payment method {payment_id}"
    paid = sum(payment["amount"] for payment in payment_methods)
    if paid != total:
        return f"Error: payment amount does not add up, total price is {total}, but paid {paid}"

    user = tables.edit("users", user_id)
    for payment in payment_methods:
        method = user["payment_methods"][payment["payment_id"]]
        if method["source"] == "gift_card":
            method["amount"] -= payment["amount"]
        elif method["source"] == "certificate":
            del user["payment_methods"][payment["payment_id"]]
    reservation = {
        "reservation_id": reservation_id,
        "user_id": user_id,
        "origin": origin,
        "destination": destination,
        "flight_type": flight_type,
        "cabin": cabin,
        "flights": flights,
        "passengers": passengers,
        "payment_history": payment_methods,
        "created_at": "2024-05-15T15:00:00",
        "total_baggages": total_baggages,
        "nonfree_baggages": nonfree_baggages,
        "insurance": insurance,
    }
    tables.add("reservations", reservation_id, reservation)
    user["reservations"].append(reservation_id)
    return dump(reservation)


def cancel_reservation(tables: Tables, reservation_id: Any) -> str:
    """Cancel a reservation, once more if it is cancelled already."""
    if ("reservations", reservation_id) not in tables:
        return "Error: reservation not found"
    if len(tables.read("reservations", reservation_id)["payment_history"]) > MAX_PAYMENTS:
        return "Error: the reservation was cancelled too often"
    reservation = tables.edit("reservations", reservation_id)
    history = reservation["payment_history"]
    history.extend([{"payment_id": p["payment_id"], "amount": -p["amount"]} for p in history])
    reservation["status"] = "cancelled"
    return dump(reservation)


def get_reservation_details(tables: Tables, reservation_id: Any) -> str:
    """Show a reservation."""
    if ("reservations", reservation_id) not in tables:
        return "Error: user not found"
    return dump(tables.read("reservations", reservation_id))


def get_user_details(tables: Tables, user_id: Any) -> str:
    """Show a user's profile."""
    if ("users", user_id) not in tables:
        return "Error: user not found"
    return dump(tables.read("users", user_id))


def list_all_airports(tables: Tables) -> str:
    """Show the airports' codes and cities."""
    return dump(AIRPORTS)


def search_direct_flight(tables: Tables, origin: Any, destination: Any, date: Any) -> str:
    """Show the flights from one airport to another that can be booked for a day."""
    return dump(
        [
            _shown(flight, date)
            for flight in _flights_between(tables, origin, destination)
            if _is_available(flight, date)
        ]
    )


def search_onestop_flight(tables: Tables, origin: Any, destination: Any, date: Any) -> str:
    """Show the pairs of flights that lead from one airport to another, beginning on a day.

    A second flight of the next day is shown with seats and prices of the first day.
    """
    pairs = []
    for first in _flights_from(tables, origin):
        for second in _flights_between(tables, first["destination"], destination):
            arrival, next_date = first["scheduled_arrival_time_est"], date
            if "+1" in arrival:
                # Not padded with a zero, so that before the tenth there is no next day.
                next_date = f"2024-05-{int(date[-2:]) + 1}"
            if arrival > second["scheduled_departure_time_est"]:
                continue
            if _is_available(first, date) and _is_available(second, next_date):
                pairs.append(
                    [
                        {**_shown(first, date), "date": date},
                        {**_shown(second, date), "date": next_date},
                    ]
                )
    return dump(pairs)


def send_certificate(tables: Tables, user_id: Any, amount: Any) -> str:
    """Give a user a certificate: three at most."""
    if ("users", user_id) not in tables:
        return "Error: user not found"
    methods = tables.read("users", user_id)["payment_methods"]
    key = next((key for key in NEW_CERTIFICATES if key not in methods), None)
    if key is None:
        # The original fails here with an exception that ends the dialogue.
        return "Error: the user holds as many sent certificates as there can be"
    certificate = {"source": "certificate", "amount": amount, "id": key}
    tables.edit("users", user_id)["payment_methods"][key] = certificate
    return f"Certificate {key} added to user {user_id} with amount {amount}."


def update_reservation_baggages(
    tables: Tables,
    reservation_id: Any,
    total_baggages: Any,
    nonfree_baggages: Any,
    payment_id: Any,
) -> str:
    """Change the numbers of bags. Fewer of them give nothing back."""
    if ("reservations", reservation_id) not in tables:
        return "Error: reservation not found"
    before = tables.read("reservations", reservation_id)
    cost = 50 * max(0, nonfree_baggages - before["nonfree_baggages"])
    if fault := _payment_fault(tables, before["user_id"], payment_id, cost):
        return fault
    reservation = tables.edit("reservations", reservation_id)
    reservation["total_baggages"] = total_baggages
    reservation["nonfree_baggages"] = nonfree_baggages
    _pay(tables, reservation, payment_id, cost)
    return dump(reservation)


def update_reservation_flights(
    tables: Tables, reservation_id: Any, cabin: Any, flights: Any, payment_id: Any
) -> str:
    """Replace the flights. The cabin counts for the price alone and is not kept."""
    if ("reservations", reservation_id) not in tables:
        return "Error: reservation not found"
    before = tables.read("reservations", reservation_id)
    passengers = before["passengers"]
    total = 0
    for flight in flights:
        present = [
            kept
            for kept in before["flights"]
            if kept["flight_number"] == flight["flight_number"]
            and kept["date"] == flight["date"]
            and cabin == before["cabin"]
        ]
        if present:
            _complete(flight, present[0]["price"], present[0])
        elif fault := _flight_fault(tables, flight, cabin, passengers):
            return fault
        else:
            _complete_from_schedule(tables, flight, cabin)
        total += flight["price"] * len(passengers)
    total -= sum(flight["price"] for flight in before["flights"]) * len(passengers)
    if fault := _payment_fault(tables, before["user_id"], payment_id, total):
        return fault
    reservation = tables.edit("reservations", reservation_id)
    reservation["flights"] = flights
    _pay(tables, reservation, payment_id, total)
    return dump(reservation)


def update_reservation_passengers(tables: Tables, reservation_id: Any, passengers: Any) -> str:
    """Replace the passengers by as many others."""
    if ("reservations", reservation_id) not in tables:
        return "Error: reservation not found"
    if len(passengers) != len(tables.read("reservations", reservation_id)["passengers"]):
        return "Error: number of passengers does not match"
    reservation = tables.edit("reservations", reservation_id)
    reservation["passengers"] = passengers
    return dump(reservation)


TOOLS: Mapping[str, Tool] = {
    "book_reservation": book_reservation,
    "calculate": calculate,
    "cancel_reservation": cancel_reservation,
    "get_reservation_details": get_reservation_details,
    "get_user_details": get_user_details,
    "list_all_airports": list_all_airports,
    "search_direct_flight": search_direct_flight,
    "search_onestop_flight": search_onestop_flight,
    "send_certificate": send_certificate,
    "think": think,
    "transfer_to_human_agents": transfer_to_human_agents,
    "update_reservation_baggages": update_reservation_baggages,
    "update_reservation_flights": update_reservation_flights,
    "update_reservation_passengers": update_reservation_passengers,
}
"""By name, in the order in which agents are offered them."""


@lru_cache(maxsize=1)
def _departures(base: Base) -> dict[str, list[Record]]:
    """Return the flights from each airport, in file order. No tool ever changes a flight."""
    departures = defaultdict(list)
    for flight in base.tables["flights"].values():
        departures[flight["origin"]].append(flight)
    return dict(departures)


def _flights_from(tables: Tables, origin: Any) -> list[Record]:
    # A list or an object is no airport, and no mistake either.
    return _departures(tables.base).get(origin, []) if isinstance(origin, str) else []


def _flights_between(tables: Tables, origin: Any, destination: Any) -> Iterator[Record]:
    return (f for f in _flights_from(tables, origin) if f["destination"] == destination)


def _is_available(flight: Record, date: Any) -> bool:
    return date in flight["dates"] and flight["dates"][date]["status"] == "available"


def _shown(flight: Record, date: str) -> Record:
    """Return a flight as searches show it, with its record of one day."""
    return {**{k: v for k, v in flight.items() if k != "dates"}, **flight["dates"][date]}


def _flight_fault(tables: Tables, flight: Any, cabin: Any, passengers: Any) -> str | None:
    """Return what keeps the passengers from a flight that was asked for."""
    number = flight["flight_number"]
    if ("flights", number) not in tables:
        return f"Error: flight {number} not found"
    date, days = flight["date"], tables.read("flights", number)["dates"]
    if date not in days:
        return f"Error: flight {number} not found on date {date}"
    if days[date]["status"] != "available":
        return f"Error: flight {number} not available on date {date}"
    if days[date]["available_seats"][cabin] < len(passengers):
        return f"Error: not enough seats on flight {number}"
    return None


def _complete_from_schedule(tables: Tables, flight: Record, cabin: str) -> None:
    scheduled = tables.read("flights", flight["flight_number"])
    _complete(flight, scheduled["dates"][flight["date"]]["prices"][cabin], scheduled)


def _complete(flight: Record, price: int, source: Record) -> None:
    """Write price and route to a flight that was asked for."""
    flight["price"] = price
    flight["origin"] = source["origin"]
    flight["destination"] = source["destination"]


def _payment_fault(tables: Tables, user_id: str, payment_id: Any, cost: float) -> str | None:
    """Return what keeps a change of a reservation from being paid in a certain way."""
    methods = tables.read("users", user_id)["payment_methods"]
    if payment_id not in methods:
        return "Error: payment method not found"
    method = methods[payment_id]
    if method["source"] == "certificate":
        return "Error: certificate cannot be used to update reservation"
    if method["source"] == "gift_card" and method["amount"] < cost:
        return "Error: gift card balance is not enough"
    return None


def _pay(tables: Tables, reservation: Record, payment_id: str, cost: float) -> None:
    """Take the cost of a change from a gift card, or give it back, and write it down."""
    method = tables.edit("users", reservation["user_id"])["payment_methods"][payment_id]
    if method["source"] == "gift_card":
        method["amount"] -= cost
    if cost != 0:
        reservation["payment_history"].append({"payment_id": payment_id, "amount": cost})
