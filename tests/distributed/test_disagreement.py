"""Messages about processes that differ."""

import copy

import pytest

from mae_jax.distributed.consistency import disagreement

HOSTS = ("node0", "node1", "node2", "node2")


def records(count=4, **changes):
    """Records of processes; `changes`: process -> {(kind, name): value}, as in p1={...}."""
    one = {
        "workdir": "/runs/x",
        "revision": "abc",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "code": {"source files": "1f2e"},
        "devices": {"devices": "8 x H100"},
        "config": {"--config.seed": 0, "--config.mask.ratio": 0.75},
        "facts": {"data.count": 1281167, "data.hash": "d1"},
    }
    found = [copy.deepcopy(one) | {"host": HOSTS[i % 4]} for i in range(count)]
    for name, values in changes.items():
        for (kind, key), value in values.items():
            found[int(name[1:])][kind][key] = value
    return found


def test_equal_processes_have_nothing_to_say():
    found = records()
    found[2]["revision"] = "unknown"  # no git, but the same files
    assert disagreement(found) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"p3": {("versions", "jax"): "0.10.1"}},
            "process 3 (node2): jax 0.10.1, but 0.10.2 on 3 others: install the same "
            "requirements everywhere",
        ),
        (
            {"p0": {("config", "--config.seed"): 7}},  # process 0 may be the one that differs
            "process 0 (node0): --config.seed 7, but 0 on 3 others: start every process with the "
            "same command",
        ),
        (
            {
                "p2": {("devices", "devices"): "4 x H100"},
                "p3": {("devices", "devices"): "4 x H100"},
            },
            "processes 2, 3 (node2): devices 4 x H100, but 8 x H100 on 2 others: use hosts with "
            "the same devices",
        ),
        (
            {"p1": {("code", "source files"): "99aa"}},
            "process 1 (node1): source files 99aa (git abc), but 1f2e (git abc) on 3 others: give "
            "every host the same files of mae_jax",
        ),
        (
            {"p1": {("facts", "data.hash"): "d2", ("facts", "data.count"): 5}},
            "process 1 (node1): data.count 5, but 1281167 on 3 others; process 1 (node1): "
            "data.hash d2, but d1 on 3 others: give every host the same data and the same command",
        ),
        (
            {"p1": {("config", "--config.new"): ""}},
            'process 1 (node1): --config.new "", but null on 3 others: start every process with '
            "the same command",
        ),
    ],
)
def test_the_odd_one_is_named_with_both_values_and_the_way_out(changes, message):
    assert disagreement(records(**changes)) == message


def test_two_that_differ_name_each_other():
    line = disagreement(records(2, p1={("versions", "jax"): "0.11.0"}))
    assert line is not None
    assert line.startswith("process 1 (node1): jax 0.11.0, but 0.10.2 on process 0 (node0): ")


def test_several_kinds_are_one_line_and_long_lists_are_cut():
    odd = {(kind, name): "other" for kind in ("versions", "config") for name in "abcdef"}
    found = records(64, **{f"p{i}": odd for i in range(10, 30)})
    line = disagreement(found)
    assert line is not None and "\n" not in line and len(line) < 1500
    assert "processes 10, 11, 12, 13 and 16 more (node2, node0, node1): a other" in line
    assert "on 44 others and 2 more: install" in line and "and 2 more: start every" in line


def test_who_does_not_see_the_workdir():
    found = records()
    found[2]["sees"] = found[3]["sees"] = False
    assert disagreement(found) == (
        "workdir /runs/x is not shared: processes 2, 3 (node2) do not see the file that process 0 "
        "(node0) wrote; use a folder that all hosts mount"
    )
    found[2]["sees"] = True
    found[3]["workdir"] = "/home/runs/x"
    line = disagreement(found)
    assert line is not None
    assert "process 3 (node2) does not see" in line
    assert "(their --workdir is /home/runs/x); use a folder" in line
