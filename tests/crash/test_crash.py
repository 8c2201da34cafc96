"""The crash run in short, and the proof that it can fail."""

import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from oracle import Oracle  # noqa: E402

KEY, NEWER = (1, 7), (1, 8)


def run_driver(tmp_path, *arguments, timeout=280):
    figures = tmp_path / "figures.json"
    ended = subprocess.run([sys.executable, str(HERE / "crash_driver.py"), "--json", str(figures),
                            "--directory", str(tmp_path), *arguments],
                           capture_output=True, text=True, timeout=timeout, check=False)
    output = ended.stdout + ended.stderr
    assert figures.exists(), output
    return ended.returncode, json.loads(figures.read_text()), output


def test_thirty_kills_lose_nothing_and_need_no_repair(tmp_path):
    code, figures, output = run_driver(tmp_path, "--kills", "30", "--seed", "7")
    assert code == 0 and figures["violations"] == [], output
    assert figures["kills"] >= 30 and figures["acknowledged"] >= figures["kills"], output
    assert figures["kills_with_node_and_ranks"] >= 2, output
    assert output.splitlines()[-1].startswith(f"kills: {figures['kills']}, acknowledged: "), output


@pytest.mark.parametrize("sabotage, kinds", [("rollback", {"lost", "behind", "resurrected"}),
                                             ("rot", {"lost", "wrong"})])
def test_a_store_that_was_tampered_with_while_dead_is_noticed(tmp_path, sabotage, kinds):
    code, figures, output = run_driver(tmp_path, "--kills", "8", "--sabotage", sabotage)
    assert code == 1 and {v["kind"] for v in figures["violations"]} & kinds, output


def saved(key=KEY, ranks=(0, 1), acknowledged=True, oracle=None):
    oracle = oracle or Oracle(2)
    for rank in ranks:
        oracle.begins(key, rank)
    if acknowledged:
        oracle.acknowledge(key)
    return oracle


def kinds(oracle, listed, latest):
    return [violation.kind for violation in oracle.check(listed, latest)]


def test_the_oracle_accepts_what_was_acknowledged():
    assert kinds(saved(), {KEY: "a"}, KEY) == []


def test_the_oracle_misses_an_acknowledged_checkpoint():
    assert "lost" in kinds(saved(), {}, None)


def test_the_oracle_leaves_a_save_without_an_answer_open_until_it_was_seen():
    oracle = saved(acknowledged=False)
    assert kinds(oracle, {}, None) == []
    assert kinds(oracle, {KEY: "a"}, KEY) == []
    assert "lost" in kinds(oracle, {}, None)


def test_the_oracle_refuses_a_checkpoint_that_not_all_ranks_began():
    assert kinds(saved(ranks=[0], acknowledged=False), {KEY: "a"}, KEY) == ["resurrected"]


def test_the_oracle_refuses_a_checkpoint_nobody_asked_for():
    assert "resurrected" in kinds(saved(), {KEY: "a", (2, 1): "b"}, (2, 1))


def test_the_oracle_settles_a_delete_without_an_answer_by_what_it_sees():
    oracle = saved(NEWER, oracle=saved())
    oracle.begins_delete(KEY)
    assert kinds(oracle, {NEWER: "b"}, NEWER) == []
    assert kinds(oracle, {NEWER: "b", KEY: "a"}, NEWER) == ["resurrected"]


def test_the_oracle_refuses_a_deleted_checkpoint_that_is_back():
    oracle = saved(NEWER, oracle=saved())
    oracle.begins_delete(KEY)
    oracle.acknowledge_delete(KEY)
    assert kinds(oracle, {NEWER: "b", KEY: "a"}, NEWER) == ["resurrected"]


def test_the_oracle_refuses_a_latest_behind_an_acknowledged_commit():
    oracle = saved(NEWER, oracle=saved())
    assert kinds(oracle, {KEY: "a", NEWER: "b"}, KEY) == ["behind"]


def test_the_oracle_refuses_other_content_under_the_same_key():
    oracle = saved()
    assert kinds(oracle, {KEY: "a"}, KEY) == []
    assert kinds(oracle, {KEY: "b"}, KEY) == ["wrong"]
