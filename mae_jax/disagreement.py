"""Says in one line how the processes of a run differ; `agreement` asks them."""

import collections
import json
from typing import Any

MOST = 4  # things of one kind that a message lists

# What a process says of itself, by kind, and what helps where it differs.
REMEDIES = {
    "versions": "install the same requirements everywhere",
    "code": "give every host the same files of mae_jax",
    "devices": "use hosts with the same devices",
    "config": "start every process with the same command",
    "facts": "give every host the same data and the same command",
}
Record = dict[str, Any]  # from `agreement.describe`


def disagreement(records: list[Record]) -> str | None:
    """One line on all that is wrong between processes, or None.

    Args:
      records: of process 0, 1, ...
    """
    failed = {i: r["error"] for i, r in enumerate(records) if "error" in r}
    if failed:
        first = min(failed)
        return f"{_who([first], records)} stopped at its start: {failed[first]}"
    lines = []
    for kind, remedy in REMEDIES.items():
        found = _differences(kind, records)
        if found:
            more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
            lines.append(f"{'; '.join(found[:MOST])}{more}: {remedy}")
    return "; ".join([*lines, *_not_shared(records)]) or None


def _differences(kind: str, records: list[Record]) -> list[str]:
    """One text for each value of each name that is not the commonest one, or process 0's."""
    names = dict.fromkeys(name for record in records for name in record[kind])
    lines = []
    for name in names:
        groups = collections.defaultdict(list)  # value -> processes
        for i, record in enumerate(records):
            groups[json.dumps(record[kind].get(name), default=list)].append(i)
        if len(groups) == 1:
            continue
        most = max(groups.values(), key=len)
        usual = _shown(records[most[0]], kind, name)
        others = f"{len(most)} others" if len(most) > 1 else _who(most, records)
        lines += [
            f"{_who(group, records)}: {name} {_shown(records[group[0]], kind, name)}, but {usual} "
            f"on {others}"
            for group in groups.values()
            if group is not most
        ]
    return lines


def _shown(record: Record, kind: str, name: str) -> str:
    value = record[kind].get(name)
    text = value if isinstance(value, str) and value else json.dumps(value, default=list)
    # The revision only explains: it is unknown on a host without git.
    return f"{text} (git {record['revision']})" if kind == "code" else text


def _not_shared(records: list[Record]) -> list[str]:
    blind = [i for i, record in enumerate(records) if not record.get("sees", True)]
    if not blind:
        return []
    where = records[0]["workdir"]
    elsewhere = sorted({records[i]["workdir"] for i in blind} - {where})
    note = f" (their --workdir is {', '.join(elsewhere[:MOST])})" if elsewhere else ""
    see = "does" if len(blind) == 1 else "do"
    return [
        f"workdir {where} is not shared: {_who(blind, records)} {see} not see what "
        f"{_who([0], records)} wrote{note}; use a folder that all hosts mount"
    ]


def _who(group: list[int], records: list[Record]) -> str:
    """As "process 3 (node7)" or "processes 2, 3 (node2)"; long lists are cut."""
    some = group[:MOST]
    hosts = ", ".join(dict.fromkeys(records[i]["host"] for i in some))
    more = f" and {len(group) - MOST} more" if len(group) > MOST else ""
    word = "process" if len(group) == 1 else "processes"
    return f"{word} {', '.join(map(str, some))}{more} ({hosts})"
