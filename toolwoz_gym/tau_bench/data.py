"""τ-bench's data: read where it is published, converted once, loaded when played.

Prepared data is one folder for each domain: tables, tasks, tool schemas and rules as JSON, and the
policy as published. Nothing in it says where it comes from, because every file is known by its git
blob id. Only retail's test tasks are known by the file that they are read from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, get_args

from toolwoz_gym.data import (
    Source,
    data_folder,
    download,
    git_blob_id,
    open_source,
    reading,
    replacing,
    shown,
)
from toolwoz_gym.tau_bench.domain import Scoring, TauBench, task_from_json
from toolwoz_gym.tau_bench.literals import read_list, read_schema, read_tasks
from toolwoz_gym.tau_bench.tables import Base
from toolwoz_gym.types import ToolSpec, UsageError

COMMIT = "59a200c6d575d595120f1cb70fea53cef0632f6b"
"""The commit of github.com/sierra-research/tau-bench that everything is pinned to."""

URL = f"https://raw.githubusercontent.com/sierra-research/tau-bench/{COMMIT}/tau_bench/envs"

BLOBS = {
    "retail/data/orders.json": "77e34535e4cde09c21be706452947d267e74448f",
    "retail/data/products.json": "dcde9b1beeea329cee6ce28d6b1e414a5284db3a",
    "retail/data/users.json": "47ce9b4231a2881951a451d9bafc67c0c45f4403",
    "retail/rules.py": "a61d31054bbba407c7d13e673bac3fa909d0991e",
    "retail/tasks_dev.py": "aa5acf7f771b6e903bf795e436e03ee6ebe2c03d",
    "retail/tasks_test.py": "d0e4936ef9d523c04debf4ecd9f6d92eb39923a0",
    "retail/tasks_train.py": "4fe71adafdbae7b6683f9d5beb65275172699bb6",
    "retail/tools/calculate.py": "7efe98dae6e81d1ca9c7b1b35173735df2f8e199",
    "retail/tools/cancel_pending_order.py": "efec9ed731dba1defe965979b79014a862458dc0",
    "retail/tools/exchange_delivered_order_items.py": "0924719643635166f61c8c130ce78bf41390abf5",
    "retail/tools/find_user_id_by_email.py": "1715831cb0c24ba406732411dcc8ff1a8e5e612b",
    "retail/tools/find_user_id_by_name_zip.py": "01bfeae05af078758dc2974f31a79ccdd3d6e172",
    "retail/tools/get_order_details.py": "f1597decc302f88d3dfb59cd6817efa4d56d45eb",
    "retail/tools/get_product_details.py": "6d5e3b1a8035d95e3495086100caab1de5329ff7",
    "retail/tools/get_user_details.py": "f9a31d2a2642a4842af7e1d2c3dc7cbbc088c0f7",
    "retail/tools/list_all_product_types.py": "18c002711d050e3f3f4b2724a3de94c44b34bc62",
    "retail/tools/modify_pending_order_address.py": "80870fb0cfcc279243d8ef2ffbd52e3c16ad2e69",
    "retail/tools/modify_pending_order_items.py": "725dff3e78724ad6f6076b7a69e10301f6b51704",
    "retail/tools/modify_pending_order_payment.py": "e497dbed7ad3b059abd64b3ea5ffe5b6ddaa84a3",
    "retail/tools/modify_user_address.py": "5605e20d365f53cfec2ea8aba267b46e6e34f2ed",
    "retail/tools/return_delivered_order_items.py": "d13d199f6ebeea6a4c151813b0bc91eb76b02298",
    "retail/tools/think.py": "585cababfa623b62faff3efcf76f49e496824463",
    "retail/tools/transfer_to_human_agents.py": "84d8d1052ffa3acdbb56717513238b1b2e78262d",
    "retail/wiki.md": "2a23f004bbde6a5e3392585d0fedbb4ac2ee0a11",
    "airline/data/flights.json": "ecfc0351cb211cf2601317f14c6dd105ee163a30",
    "airline/data/reservations.json": "d3e77598bf90486a2805a19332996ec9713295b5",
    "airline/data/users.json": "3c611cebf115a65ffecaf8c7f362e007b4739228",
    "airline/rules.py": "8914c9200d67385fce1d006eaaa7d2f2e588fb8c",
    "airline/tasks_test.py": "47f394333743aaa48292bd447977eae86e16ffe9",
    "airline/tools/book_reservation.py": "74f9c069680fd3ad423ebf4e5bf9ecfe1037b551",
    "airline/tools/calculate.py": "7fc917eb31a7c218545fff19f574bba32d456569",
    "airline/tools/cancel_reservation.py": "3925304bd42a49a4136e6610bdf137a4797142d5",
    "airline/tools/get_reservation_details.py": "b3ba46aef20f86bd13bc586c42ed9c1b0fa286c2",
    "airline/tools/get_user_details.py": "db6e72f27200514f104b017c0a5dda8800b6c41b",
    "airline/tools/list_all_airports.py": "4f0b5a2394cbf65952799f5d43db8f0222d33022",
    "airline/tools/search_direct_flight.py": "3dfa8e0f7cc11b4d474dd79fd1bc7bc1bb28d800",
    "airline/tools/search_onestop_flight.py": "098fa780a7bd3ee7912323e477525727d19c70fb",
    "airline/tools/send_certificate.py": "2b79e718297ffd2c29e72cfe4901ea1432157672",
    "airline/tools/think.py": "29c1319d2e1cb1ae741ff10e9a9990d60937cc60",
    "airline/tools/transfer_to_human_agents.py": "26db4e9b71a6814c4c1d667de2eb7a5502985bc9",
    "airline/tools/update_reservation_baggages.py": "e0a79c4aa37d5e0f3ebd1a0d9e01196098cc1f25",
    "airline/tools/update_reservation_flights.py": "388f0ceedf14def68f7485bc149a509b10bddec3",
    "airline/tools/update_reservation_passengers.py": "0255fcf3ae4e042e6bf1e6fc4ee83d67578e0835",
    "airline/wiki.md": "1601b26472674661fc07b48940e86674854ff2e3",
}
"""Git blob ids of the published files that are used."""

PREPARED = {
    "retail/orders.json": BLOBS["retail/data/orders.json"],
    "retail/products.json": BLOBS["retail/data/products.json"],
    "retail/users.json": BLOBS["retail/data/users.json"],
    "retail/tasks_train.json": "339f5518772dbde2ba6a0ea9ced5f89f0c647d35",
    "retail/tasks_dev.json": "9226d64cb35de14e8072bd920c75b1d008bbc6c7",
    "retail/tools.json": "c87d7171d9764f2fe09c4a30f992de3382dfd9c3",
    "retail/rules.json": "a3f0e71734ac0af52492f9ec31d7405420464ac6",
    "retail/wiki.md": BLOBS["retail/wiki.md"],
    "airline/flights.json": BLOBS["airline/data/flights.json"],
    "airline/reservations.json": BLOBS["airline/data/reservations.json"],
    "airline/users.json": BLOBS["airline/data/users.json"],
    "airline/tasks_test.json": "447ed873f8d164257f5252f1d50a684785442a8a",
    "airline/tools.json": "e0a7cd764bfb3b42d79e2b99b147c0b9b084a5f5",
    "airline/rules.json": "0637a088a01e8ddab3bf3fa98dbe804cbde1a0dc",
    "airline/wiki.md": BLOBS["airline/wiki.md"],
}
"""Git blob ids of the prepared files, but for retail's test tasks."""

RETAIL_TEST = "retail/tasks_test.json"
"""The one prepared file that may be missing."""

RETAIL_TESTS = 115
"""How many tasks it has."""

TABLES = {
    "retail": ("orders", "products", "users"),
    "airline": ("flights", "reservations", "users"),
}

SPLITS = {
    "retail": {"train": "TASKS_TRAIN", "dev": "TASKS_DEV", "test": "TASKS_TEST"},
    "airline": {"test": "TASKS"},
}
"""What the published files call the tasks of each split."""

PREPARE = "python -m toolwoz_gym data prepare tau_bench"

_MAX_FILE = 4 << 20

_Stamps: TypeAlias = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of each file."""


def tau_bench_folder() -> Path:
    """Return the folder where prepared τ-bench lives, whether or not it is there."""
    return data_folder() / "tau_bench"


def prepare_tau_bench(folder: Path, source: Path | None = None) -> dict[str, int]:
    """Convert τ-bench's data to a folder of prepared data, in place of what was there.

    Args:
        folder: Where to put it.
        source: A checkout of the pinned commit, a zip archive of one, or a folder of prepared data,
            which may lack retail's test tasks; None downloads what is needed.

    Returns:
        The number of tasks by domain and split: ``{"retail train": 500, ...}``.

    Raises:
        UsageError: The source is missing, damaged, incomplete or not the pinned one, or the folder
            cannot be written. What was prepared before is then left as it was.
    """
    files = _download() if source is None else open_source(source)
    is_prepared_data = any(_copies(files, f"{domain}/tools.json") for domain in TABLES)
    contents = _copied(files) if is_prepared_data else _converted(files)
    with replacing(folder) as new:
        for path, data in contents.items():
            (new / path).parent.mkdir(exist_ok=True)
            (new / path).write_bytes(data)
    return {
        f"{domain} {split}": len(json.loads(contents[path]))
        for domain, splits in SPLITS.items()
        for split in splits
        if (path := f"{domain}/tasks_{split}.json") in contents
    }


def is_prepared() -> bool:
    """Return whether there is prepared τ-bench data for :func:`load_tau_bench`."""
    return all((tau_bench_folder() / path).is_file() for path in PREPARED)


def load_tau_bench(domain: str, scoring: Scoring = "upstream") -> TauBench:
    """Return a domain of the prepared τ-bench. As :func:`read_tau_bench`."""
    return read_tau_bench(tau_bench_folder(), domain, scoring)


def read_tau_bench(folder: Path, domain: str, scoring: Scoring = "upstream") -> TauBench:
    """Return a domain of the τ-bench that :func:`prepare_tau_bench` put into a folder.

    Environments of one process share what was read, as long as the files stay as they are.

    Args:
        folder: The prepared data.
        domain: ``retail`` or ``airline``.
        scoring: See :data:`~toolwoz_gym.tau_bench.domain.Scoring`.

    Raises:
        UsageError: There is no such domain or scoring rule, the folder holds no prepared data, or
            its files are damaged.
    """
    if domain not in TABLES:
        raise UsageError(f"tau-bench has no domain {domain!r}: choose {' or '.join(TABLES)}")
    if scoring not in get_args(Scoring):
        choices = " or ".join(get_args(Scoring))
        raise UsageError(f"tau-bench has no scoring rule {scoring!r}: choose {choices}")
    with reading("tau-bench", folder, PREPARE):
        return _read(folder, domain, scoring, _stamps(folder, domain))


def _stamps(folder: Path, domain: str) -> _Stamps:
    paths = [path for path in PREPARED if path.startswith(f"{domain}/")]
    if domain == "retail" and (folder / RETAIL_TEST).exists():
        paths.append(RETAIL_TEST)
    stats = {path: (folder / path).stat() for path in paths}
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats.items())


@lru_cache(maxsize=4)
def _read(folder: Path, domain: str, scoring: Scoring, stamps: _Stamps) -> TauBench:
    contents = {path: (folder / path).read_bytes() for path, _, _ in stamps}
    blobs = {path: git_blob_id(data) for path, data in contents.items()}
    if any(blob != PREPARED.get(path, blob) for path, blob in blobs.items()):
        raise ValueError("the files are not those that were written")
    data = {path: json.loads(text) for path, text in contents.items() if path.endswith(".json")}
    tasks = {
        split: tuple(
            task_from_json(task, domain=domain, split=split, index=index)
            for index, task in enumerate(data[path])
        )
        for split in SPLITS[domain]
        if (path := f"{domain}/tasks_{split}.json") in data
    }
    return TauBench(
        domain,
        Base({table: data[f"{domain}/{table}.json"] for table in TABLES[domain]}),
        tasks,
        policy=contents[f"{domain}/wiki.md"].decode("utf-8"),
        tools=tuple(_tool_spec(schema["function"]) for schema in data[f"{domain}/tools.json"]),
        fingerprint=_fingerprint(blobs, scoring),
        scoring=scoring,
    )


def _tool_spec(function: Mapping[str, Any]) -> ToolSpec:
    parameters = function["parameters"]
    return ToolSpec(
        function["name"],
        function["description"],
        parameters["properties"],
        tuple(parameters["required"]),
    )


def _fingerprint(blobs: Mapping[str, str], scoring: Scoring) -> str:
    lines = [f"{path} {blob}\n" for path, blob in sorted(blobs.items())]
    if scoring != "upstream":
        lines.append(f"scoring {scoring}\n")
    return sha256("".join(lines).encode()).hexdigest()


def _download() -> Source:
    """Return the pinned files, laid out as in a checkout."""
    return Source(
        URL, {path: partial(_whole, download(f"{URL}/{path}", id)) for path, id in BLOBS.items()}
    )


def _whole(data: bytes, limit: int) -> bytes:
    return data


def _converted(source: Source) -> dict[str, bytes]:
    """Return the prepared files that the published ones make."""
    published = {path: _pinned(source, path, blob) for path, blob in BLOBS.items()}
    contents = {}
    for domain, splits in SPLITS.items():
        for table in TABLES[domain]:
            contents[f"{domain}/{table}.json"] = published[f"{domain}/data/{table}.json"]
        for split, variable in splits.items():
            path = f"{domain}/tasks_{split}"
            tasks = read_tasks(published[f"{path}.py"], f"{path}.py", variable)
            contents[f"{path}.json"] = _dump(tasks, indent=0)
        tools = sorted(path for path in published if path.startswith(f"{domain}/tools/"))
        schemas = [read_schema(published[path], path) for path in tools]
        contents[f"{domain}/tools.json"] = _dump(schemas, indent=1)
        rules = read_list(published[f"{domain}/rules.py"], f"{domain}/rules.py", "RULES")
        contents[f"{domain}/rules.json"] = _dump(rules, indent=1)
        contents[f"{domain}/wiki.md"] = published[f"{domain}/wiki.md"]
    return contents


def _dump(value: Any, *, indent: int) -> bytes:
    return json.dumps(value, indent=indent).encode("ascii")


def _copied(source: Source) -> dict[str, bytes]:
    """Return the files of prepared data."""
    contents = {path: _pinned(source, path, blob) for path, blob in PREPARED.items()}
    tests = {source.read(path, _MAX_FILE) for path in _copies(source, RETAIL_TEST)}
    if not tests:
        return contents
    tools = {tool["function"]["name"] for tool in json.loads(contents["retail/tools.json"])}
    users = json.loads(contents["retail/users.json"])
    if len(tests) > 1 or not _are_retail_tests(min(tests), tools, users):
        raise UsageError(
            f"{RETAIL_TEST} in {source.name} does not hold retail's {RETAIL_TESTS} test tasks"
        )
    return {**contents, RETAIL_TEST: tests.pop()}


def _are_retail_tests(data: bytes, tools: set[str], users: Mapping[str, Any]) -> bool:
    try:
        tasks = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(tasks, list) or len(tasks) != RETAIL_TESTS:
        return False
    return all(_is_task(task, tools, users) for task in tasks)


def _is_task(task: Any, tools: set[str], users: Mapping[str, Any]) -> bool:
    match task:
        case {
            "annotator": str(),
            "user_id": str(user),
            "instruction": str(),
            "actions": list(actions),
            "outputs": list(outputs),
        } if user in users:
            said = all(isinstance(output, str) for output in outputs)
            return said and all(_is_action(action, tools) for action in actions)
    return False


def _is_action(action: Any, tools: set[str]) -> bool:
    match action:
        case {"name": str(name), "kwargs": dict()}:
            return name in tools
    return False


def _copies(source: Source, path: str) -> list[str]:
    """Return where a source has a file: it may lie in any depth."""
    found = source.named(path.rpartition("/")[2])
    return [copy for copy in found if f"/{copy}".endswith(f"/{path}")]


def _pinned(source: Source, path: str, wanted: str) -> bytes:
    """Return the file that git knows under the id ``wanted``; copies of it may be others."""
    copies = _copies(source, path)
    if not copies:
        raise UsageError(f"{source.name} has no {path}: it is not tau-bench at {COMMIT[:7]}")
    blobs = []
    for copy in copies:
        data = source.read(copy, _MAX_FILE)
        blobs.append(git_blob_id(data))
        if blobs[-1] == wanted:
            return data
    raise UsageError(
        f"{shown(copies[0])} in {source.name} is not the pinned file (commit {COMMIT[:7]}): "
        f"git blob {blobs[0]}, not {wanted}"
    )
