"""keep=, forget, pin and unpin: what may be taken away, and what may not."""

import json
import subprocess
import time

import pytest

from rank import all_do


@pytest.fixture
def three_steps(cluster, start_ranks):
    cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 1)
    all_do(ranks, "restore")
    for step in (1, 2, 3):
        all_do(ranks, "fill", step=step)
        all_do(ranks, "save", step=step)
        all_do(ranks, "wait", step=step)
    return ranks


def steps(cli):
    shown = json.loads(cli("-o", "json", "ls", "test/job", "--all").stdout)
    return [row["step"] for row in shown["checkpoints"]]


def test_keep_leaves_the_newest_the_periodic_and_the_pinned(cluster, start_ranks, cli):
    cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 2, keep=(2, 4))
    all_do(ranks, "restore")
    for step in range(1, 10):
        all_do(ranks, "fill", step=step)
        all_do(ranks, "save", step=step)
        all_do(ranks, "wait", step=step)
        if step == 1:
            assert cli("pin", "test/job@1").returncode == 0
    all_do(ranks, "close")
    deadline = time.monotonic() + 20
    while steps(cli) != [9, 8, 4, 1] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert steps(cli) == [9, 8, 4, 1]
    assert cli("verify", "test/job@4").returncode == 0


@pytest.mark.parametrize("wrong", [{"last": 0}, {"last": 1, "every": 0}, {"last": "3"}])
def test_a_keep_that_would_delete_everything_is_refused(wrong):
    import reprise
    with pytest.raises(reprise.InvalidArgument, match="Keep"):
        reprise.Keep(**wrong)


def test_forget_deletes_exactly_the_one_that_was_named(three_steps, cli):
    done = cli("forget", "test/job@2~1", "--yes")
    assert done.returncode == 0 and "test/job@2~1" in done.stdout, done.stderr
    assert steps(cli) == [3, 1]
    assert cli("forget", "test/job@2~1", "--yes").returncode == 4
    assert cli("verify", "test/job@1").returncode == 0


def test_forget_without_a_terminal_wants_to_be_told_twice(three_steps, cluster):
    from demo import BIN
    refused = subprocess.run([str(BIN / "reprise"), "--store", cluster.store.ready["control"],
                              "forget", "test/job@1"], stdin=subprocess.DEVNULL,
                             capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "--yes" in refused.stderr


def test_forget_names_no_checkpoint_by_latest(three_steps, cli):
    assert cli("forget", "test/job@latest", "--yes").returncode == 2
    assert cli("forget", "test/job", "--yes").returncode == 2
    assert steps(cli) == [3, 2, 1]


def test_a_pinned_checkpoint_stays_until_it_is_unpinned(three_steps, cli):
    assert cli("pin", "test/job@1", "--reason", "the paper").returncode == 0
    refused = cli("forget", "test/job@1", "--yes")
    assert refused.returncode == 1 and "the paper" in refused.stderr
    assert cli("unpin", "test/job@1").returncode == 0
    assert cli("forget", "test/job@1", "--yes").returncode == 0
    assert steps(cli) == [3, 2]


def test_the_last_good_checkpoint_is_not_deleted(three_steps, cli):
    assert cli("forget", "test/job@1", "--yes").returncode == 0
    assert cli("forget", "test/job@3", "--yes").returncode == 0
    refused = cli("forget", "test/job@2", "--yes")
    assert refused.returncode == 1 and "last good" in refused.stderr
    assert steps(cli) == [2]
