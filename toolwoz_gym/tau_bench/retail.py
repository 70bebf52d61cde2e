"""The tools of τ-bench's retail desk.

They do what the original's do, also where that is odd. A check that fails raises
:class:`ValueError`, whose text the agent is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from toolwoz_gym.tau_bench.calling import Tool, dump
from toolwoz_gym.tau_bench.common import calculate, think, transfer_to_human_agents
from toolwoz_gym.tau_bench.tables import Base, Record, Tables


def cancel_pending_order(tables: Tables, order_id: Any, reason: Any) -> str:
    """Cancel an order. Every entry of its history is refunded, earlier refunds included."""
    _order(tables, order_id, "pending", "non-pending order cannot be cancelled")
    if reason not in ("no longer needed", "ordered by mistake"):
        raise ValueError("invalid reason")
    order = tables.edit("orders", order_id)
    refunds = [
        _payment("refund", entry["amount"], entry["payment_method_id"])
        for entry in order["payment_history"]
    ]
    for refund in refunds:
        _pay_in(tables, order, refund["payment_method_id"], refund["amount"])
    order["status"] = "cancelled"
    order["cancel_reason"] = reason
    order["payment_history"] += refunds
    return dump(order)


def exchange_delivered_order_items(
    tables: Tables, order_id: Any, item_ids: Any, new_item_ids: Any, payment_method_id: Any
) -> str:
    """Ask for items of a delivered order to be exchanged. No money moves yet."""
    order = _order(tables, order_id, "delivered", "non-delivered order cannot be exchanged")
    difference = round(_price_difference(tables, order, item_ids, new_item_ids), 2)
    purpose = "pay for the price difference"
    _check_funds(_method(tables, order, payment_method_id), difference, purpose)
    order = tables.edit("orders", order_id)
    order["status"] = "exchange requested"
    order["exchange_items"] = sorted(item_ids)
    order["exchange_new_items"] = sorted(new_item_ids)
    order["exchange_payment_method_id"] = payment_method_id
    order["exchange_price_difference"] = difference
    return dump(order)


def find_user_id_by_email(tables: Tables, email: Any) -> str:
    """Return the id of the user with an e-mail address, in whatever case."""
    user_id = _ids_by_email(tables.base).get(email.lower())
    if user_id is None:
        raise ValueError("user not found")
    return user_id


def find_user_id_by_name_zip(tables: Tables, first_name: Any, last_name: Any, zip: Any) -> str:
    """Return the id of the user with a name, in whatever case, who now lives at a zip code."""
    for user_id in _ids_by_first_name(tables.base).get(first_name.lower(), ()):
        user = tables.read("users", user_id)
        if user["name"]["last_name"].lower() == last_name.lower() and user["address"]["zip"] == zip:
            return user_id
    raise ValueError("user not found")


def get_order_details(tables: Tables, order_id: Any) -> str:
    """Show an order."""
    return dump(_record(tables, "orders", order_id))


def get_product_details(tables: Tables, product_id: Any) -> str:
    """Show a product and its variants."""
    return dump(_record(tables, "products", product_id))


def get_user_details(tables: Tables, user_id: Any) -> str:
    """Show a user."""
    return dump(_record(tables, "users", user_id))


def list_all_product_types(tables: Tables) -> str:
    """Show the ids of all products by name, in the order of the names."""
    products = tables.base.tables["products"].values()
    return dump(dict(sorted((product["name"], product["product_id"]) for product in products)))


def modify_pending_order_address(
    tables: Tables,
    order_id: Any,
    address1: Any,
    address2: Any,
    city: Any,
    state: Any,
    country: Any,
    zip: Any,
) -> str:
    """Send an order elsewhere."""
    _order(tables, order_id, "pending", "non-pending order cannot be modified")
    order = tables.edit("orders", order_id)
    order["address"] = _address(address1, address2, city, state, country, zip)
    return dump(order)


def modify_pending_order_items(
    tables: Tables, order_id: Any, item_ids: Any, new_item_ids: Any, payment_method_id: Any
) -> str:
    """Swap items of an order, once, and settle the difference, which is not rounded."""
    order = _order(tables, order_id, "pending", "non-pending order cannot be modified")
    difference = _price_difference(tables, order, item_ids, new_item_ids)
    _check_funds(_method(tables, order, payment_method_id), difference, "pay for the new item")
    order = tables.edit("orders", order_id)
    kind = "payment" if difference > 0 else "refund"
    order["payment_history"].append(_payment(kind, abs(difference), payment_method_id))
    _pay_in(tables, order, payment_method_id, -difference)
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
        # Finds what an earlier pair has put there, too.
        item = _first_item(order, item_id)
        variant = _variants(tables, item)[new_item_id]
        item["item_id"] = new_item_id
        item["price"] = variant["price"]
        item["options"] = variant["options"]
    order["status"] = "pending (item modified)"
    return dump(order)


def modify_pending_order_payment(tables: Tables, order_id: Any, payment_method_id: Any) -> str:
    """Pay an order in another way, and refund the first payment."""
    order = _order(tables, order_id, "pending", "non-pending order cannot be modified")
    method = _method(tables, order, payment_method_id)
    first, *others = order["payment_history"]
    if others or first["transaction_type"] != "payment":
        raise ValueError("there should be exactly one payment for a pending order")
    if first["payment_method_id"] == payment_method_id:
        raise ValueError("the new payment method should be different from the current one")
    amount = first["amount"]
    _check_funds(method, amount, "pay for the order")
    order = tables.edit("orders", order_id)
    order["payment_history"] += [
        _payment("payment", amount, payment_method_id),
        _payment("refund", amount, first["payment_method_id"]),
    ]
    _pay_in(tables, order, payment_method_id, -amount)
    _pay_in(tables, order, first["payment_method_id"], amount)
    return dump(order)


def modify_user_address(
    tables: Tables,
    user_id: Any,
    address1: Any,
    address2: Any,
    city: Any,
    state: Any,
    country: Any,
    zip: Any,
) -> str:
    """Change where a user lives. Orders still go where they went."""
    _record(tables, "users", user_id)
    user = tables.edit("users", user_id)
    user["address"] = _address(address1, address2, city, state, country, zip)
    return dump(user)


def return_delivered_order_items(
    tables: Tables, order_id: Any, item_ids: Any, payment_method_id: Any
) -> str:
    """Ask for items of a delivered order to be taken back. No money moves yet."""
    order = _order(tables, order_id, "delivered", "non-delivered order cannot be returned")
    _method(tables, order, payment_method_id)
    paid_with = order["payment_history"][0]["payment_method_id"]
    if "gift_card" not in payment_method_id and payment_method_id != paid_with:
        raise ValueError(
            "payment method should be either the original payment method or a gift card"
        )
    _check_items(order, item_ids, "some item not found")
    order = tables.edit("orders", order_id)
    order["status"] = "return requested"
    order["return_items"] = sorted(item_ids)
    order["return_payment_method_id"] = payment_method_id
    return dump(order)


TOOLS: Mapping[str, Tool] = {
    "calculate": calculate,
    "cancel_pending_order": cancel_pending_order,
    "exchange_delivered_order_items": exchange_delivered_order_items,
    "find_user_id_by_email": find_user_id_by_email,
    "find_user_id_by_name_zip": find_user_id_by_name_zip,
    "get_order_details": get_order_details,
    "get_product_details": get_product_details,
    "get_user_details": get_user_details,
    "list_all_product_types": list_all_product_types,
    "modify_pending_order_address": modify_pending_order_address,
    "modify_pending_order_items": modify_pending_order_items,
    "modify_pending_order_payment": modify_pending_order_payment,
    "modify_user_address": modify_user_address,
    "return_delivered_order_items": return_delivered_order_items,
    "think": think,
    "transfer_to_human_agents": transfer_to_human_agents,
}
"""By name, in the order in which agents are offered them."""


def _record(tables: Tables, table: str, key: Any) -> Record:
    if (table, key) not in tables:
        raise ValueError(f"{table.removesuffix('s')} not found")
    return tables.read(table, key)


def _order(tables: Tables, order_id: Any, status: str, refusal: str) -> Record:
    """Return an order, for reading only, that must have a status."""
    order = _record(tables, "orders", order_id)
    if order["status"] != status:
        raise ValueError(refusal)
    return order


def _method(tables: Tables, order: Record, method_id: Any) -> Record:
    """Return a payment method of the user who made an order."""
    methods: dict[str, Record] = tables.read("users", order["user_id"])["payment_methods"]
    if method_id not in methods:
        raise ValueError("payment method not found")
    return methods[method_id]


def _check_funds(method: Record, amount: float, purpose: str) -> None:
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ValueError(f"insufficient gift card balance to {purpose}")


def _pay_in(tables: Tables, order: Record, method_id: str, amount: float) -> None:
    """Put money on a gift card of the user who made an order; other methods keep no balance."""
    if "gift_card" in method_id:
        method = tables.edit("users", order["user_id"])["payment_methods"][method_id]
        method["balance"] = round(method["balance"] + amount, 2)


def _payment(kind: str, amount: float, method_id: str) -> Record:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}


def _price_difference(tables: Tables, order: Record, item_ids: Any, new_item_ids: Any) -> float:
    """Return what new items cost more than those of an order that they are to replace."""
    _check_items(order, item_ids, "{} not found")
    if len(item_ids) != len(new_item_ids):
        raise ValueError("the number of items to be exchanged should match")
    difference: float = 0
    for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
        item = _first_item(order, item_id)
        variants = _variants(tables, item)
        if new_item_id not in variants or not variants[new_item_id]["available"]:
            raise ValueError(f"new item {new_item_id} not found or available")
        difference += variants[new_item_id]["price"] - item["price"]
    return difference


def _check_items(order: Record, item_ids: Any, refusal: str) -> None:
    """Refuse, naming it, an item that is asked for more often than an order has it."""
    have = [item["item_id"] for item in order["items"]]
    for item_id in item_ids:
        if item_ids.count(item_id) > have.count(item_id):
            raise ValueError(refusal.format(item_id))


def _first_item(order: Record, item_id: str) -> Record:
    items: list[Record] = order["items"]
    return next(item for item in items if item["item_id"] == item_id)


def _variants(tables: Tables, item: Record) -> dict[str, Record]:
    variants: dict[str, Record] = tables.read("products", item["product_id"])["variants"]
    return variants


def _address(address1: Any, address2: Any, city: Any, state: Any, country: Any, zip: Any) -> Record:
    return {
        "address1": address1,
        "address2": address2,
        "city": city,
        "state": state,
        "country": country,
        "zip": zip,
    }


@lru_cache(maxsize=4)
def _ids_by_email(base: Base) -> dict[str, str]:
    """Return the ids of users by e-mail in lower case. No tool changes an e-mail."""
    return {user["email"].lower(): user_id for user_id, user in base.tables["users"].items()}


@lru_cache(maxsize=4)
def _ids_by_first_name(base: Base) -> dict[str, list[str]]:
    """Return the ids of users by first name in lower case. No tool changes a name."""
    ids: dict[str, list[str]] = {}
    for user_id, user in base.tables["users"].items():
        ids.setdefault(user["name"]["first_name"].lower(), []).append(user_id)
    return ids
