"""A job's life with real processes: save, resume, adoption, fencing, trouble."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy
import pytest

from rank import Rank, RankError, all_do


def begin(ranks, step=1):
    """Registers, fills and saves one step on every rank; returns the digests."""
    all_do(ranks, "restore")
    return save_step(ranks, step)


def save_step(ranks, step):
    digests = [a["digest"] for a in all_do(ranks, "fill", step=step)]
    all_do(ranks, "save", step=step)
    all_do(ranks, "wait", step=step)
    return digests


def test_saved_state_comes_back_bit_for_bit_in_new_processes(cluster, start_ranks, cli, engine):
    cluster.start_store()
    node = cluster.start_node("a")
    ranks = start_ranks([node], 2)
    digests = begin(ranks)
    for rank in ranks:
        rank.do("close")
    again = start_ranks([node], 2)
    answers = all_do(again, "restore")
    assert [a["step"] for a in answers] == [1, 1]
    assert [a["digest"] for a in answers] == digests
    assert cli("verify", "test/job@1").returncode == 0
    shown = json.loads(cli("-o", "json", "ls", "test/job").stdout)
    assert [(c["step"], c["state"]) for c in shown["checkpoints"]] == [(1, "committed")]


def test_state_survives_restart_of_every_daemon(cluster, start_ranks, engine):
    store = cluster.start_store()
    node = cluster.start_node("a")
    ranks = start_ranks([node], 2)
    begin(ranks)
    digests = save_step(ranks, 2)
    for rank in ranks:
        rank.kill()
    for daemon in (node, store):
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        (cluster.directory / f"{daemon.name}.ready").unlink()
    cluster.start_store()
    answers = all_do(start_ranks([cluster.start_node("b")], 2), "restore")
    assert [a["step"] for a in answers] == [2, 2]
    assert [a["digest"] for a in answers] == digests
    assert sum(a["stats"]["bytes_nvme"] for a in answers) > 0


class Gate:
    """A TCP proxy to the store's data plane that can hold everything back."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.target = None
        self.open = threading.Event()
        self.open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                inward, _ = self.listener.accept()
            except OSError:
                return
            host, port = self.target.rsplit(":", 1)
            outward = socket.create_connection((host, int(port)))
            for source, sink in ((inward, outward), (outward, inward)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                self.open.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def store_behind_gate(cluster):
    """A store that tells nodes the gate's address as its data plane."""
    gate = Gate()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gate.target = "127.0.0.1:%d" % probe.getsockname()[1]
    cluster.store = cluster.start_daemon(
        "store", "store", store__directory=cluster.directory / "store",
        store__control_listen="127.0.0.1:0", store__data_listen=gate.target,
        store__data_advertise=gate.address, store__capacity="1GiB", store__segment_size="64MiB",
        store__prewrite="false")
    return gate


def wait_for_phase(rank, step, phase, seconds=20):
    deadline = time.monotonic() + seconds
    while (status := rank.do("status", step=step))["phase"] != phase:
        assert time.monotonic() < deadline, status


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_step_sealed_by_all_before_the_kill_is_adopted_by_the_next_run(cluster, start_ranks, cli,
                                                                          order):
    gate = store_behind_gate(cluster)
    node = cluster.start_node("a")
    ranks = start_ranks([node], 2)
    begin(ranks)
    gate.open.clear()
    digests = [a["digest"] for a in all_do(ranks, "fill", step=2)]
    all_do(ranks, "save", step=2)
    all_do(ranks, "wait", step=2, durability="local")
    for rank in ranks:
        rank.kill()
    again = start_ranks([node], 2)
    again[order[0]].start("restore")
    with pytest.raises(queue.Empty):  # no answer before the last rank is there
        again[order[0]].answers.get(timeout=1)
    again[order[1]].start("restore")
    threading.Timer(1, gate.open.set).start()  # the uploads go on while the run settles
    answers = [rank.finish(60) for rank in again]
    assert [a["step"] for a in answers] == [2, 2], cli("ls", "test/job", "--all").stdout
    assert [a["digest"] for a in answers] == digests
    rows = json.loads(cli("-o", "json", "ls", "test/job").stdout)["checkpoints"]
    assert rows[0]["step"] == 2 and rows[0]["adopted"]


def test_a_step_that_one_rank_had_not_sealed_is_not_resumed(cluster, start_ranks):
    gate = store_behind_gate(cluster)
    node = cluster.start_node("a")
    ranks = start_ranks([node], 2)
    begin(ranks)
    gate.open.clear()
    ranks[0].do("fill", step=2)
    ranks[0].do("save", step=2)  # rank 1 dies before it takes part
    wait_for_phase(ranks[0], 2, "sealed")
    for rank in ranks:
        rank.kill()
    gate.open.set()
    answers = all_do(start_ranks([node], 2), "restore")
    assert [a["step"] for a in answers] == [1, 1]


def test_a_rank_of_an_older_run_is_fenced(cluster, start_ranks, cli):
    cluster.start_store()
    node = cluster.start_node("a")
    old = start_ranks([node], 1)
    begin(old)
    new = start_ranks([node], 1)
    assert new[0].do("restore")["epoch"] == 2
    old[0].do("fill", step=2)
    started = old[0].do("save", step=2)
    if started["started"]:
        with pytest.raises(RankError, match="newer run|FENCED|fenced|epoch"):
            old[0].do("wait", step=2)
    rows = json.loads(cli("-o", "json", "ls", "test/job").stdout)["checkpoints"]
    assert [row["step"] for row in rows] == [1]


def test_a_second_launch_of_a_live_job_is_refused_naming_the_first(cluster, start_ranks):
    cluster.start_store()
    node = cluster.start_node("a")
    begin(start_ranks([node], 1))
    with pytest.raises(RankError, match=r"pid|alive") as refused:
        start_ranks([node], 1, launcher="other")[0].do("restore")
    assert refused.value.kind == "AlreadyExists"
    assert start_ranks([node], 1, launcher="third", takeover=True)[0].do("restore")["epoch"] == 2


def test_a_missing_rank_is_named_when_the_run_cannot_start(cluster, start_ranks):
    cluster.start_store()
    node = cluster.start_node("a")
    rank = Rank("reprise://test/job", 0, 2, socket=node.ready["socket"], register_timeout=2)
    cluster.ranks.append(rank)
    with pytest.raises(RankError, match=r"rank.* 1") as refused:
        rank.do("restore")
    assert refused.value.kind == "DeadlineExceeded"


def test_a_plain_tensor_that_differs_between_ranks_is_refused_naming_both(cluster, start_ranks):
    cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 2)
    all_do(ranks, "restore")
    for number, rank in enumerate(ranks):
        rank.do("add", name="running_mean", seed=number)
    all_do(ranks, "save", step=1)
    for rank in ranks:
        with pytest.raises(RankError, match=r"running_mean.*rank"):
            rank.do("wait", step=1)


def test_a_tensor_that_belongs_to_its_rank_is_not_given_to_another_world(cluster, start_ranks):
    cluster.start_store()
    node = cluster.start_node("a")
    ranks = start_ranks([node], 2, rank_scope=["*running_mean"])
    all_do(ranks, "restore")
    saved = []
    for number, rank in enumerate(ranks):
        rank.do("add", name="running_mean", seed=number)
        saved.append(rank.do("digest"))
    all_do(ranks, "save", step=1)
    all_do(ranks, "wait", step=1)
    for rank in ranks:
        rank.kill()
    again = start_ranks([node], 2, rank_scope=["*running_mean"], launcher="second")
    for rank in again:
        rank.do("add", name="running_mean", seed=7)
    for rank, before in zip(all_do(again, "restore"), saved):
        assert rank["digest"] == before["digest"]
    for rank in again:
        rank.kill()
    alone = start_ranks([node], 1, rank_scope=["*running_mean"], launcher="third")[0]
    alone.do("add", name="running_mean", seed=7)
    before = alone.do("digest")
    with pytest.raises(RankError, match="running_mean.*belongs to its rank") as refused:
        alone.do("restore", strict=False)
    assert refused.value.kind == "InvalidArgument"
    assert alone.do("digest") == before


def test_ranks_that_disagree_on_the_step_are_told(cluster, start_ranks):
    cluster.store = cluster.start_daemon(
        "store", "store", store__directory=cluster.directory / "store",
        store__control_listen="127.0.0.1:0", store__data_listen="127.0.0.1:0",
        store__capacity="1GiB", store__segment_size="64MiB", store__begin_window="1s",
        store__prewrite="false")
    ranks = start_ranks([cluster.start_node("a")], 2)
    all_do(ranks, "restore")
    for step, rank in enumerate(ranks, start=5):
        rank.do("fill", step=step)
        rank.do("save", step=step)
    # The reason is there for those who never wait, too.
    deadline = time.monotonic() + 30
    while (status := ranks[0].do("status", step=5))["phase"] != "failed":
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert "rank" in status["error"], status
    for step, rank in enumerate(ranks, start=5):
        with pytest.raises(RankError, match=r"rank"):
            rank.do("wait", step=step)


def test_steps_that_cannot_be_are_refused_before_anything_happens(cluster, start_ranks):
    cluster.start_store()
    rank = start_ranks([cluster.start_node("a")], 1)[0]
    rank.do("restore")
    for step in (-5, 5.5, 1 << 63, "7"):
        with pytest.raises(RankError, match="whole number") as refused:
            rank.do("save", step=step)
        assert refused.value.kind == "InvalidArgument"
    save_step([rank], 1)


def test_saves_fail_and_training_goes_on_while_the_store_is_away(cluster, start_ranks):
    store = cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 1)
    begin(ranks)
    os.kill(store.process.pid, signal.SIGKILL)
    store.process.wait()
    for step in (2, 3, 4, 5):
        ranks[0].do("fill", step=step)
        answer = ranks[0].do("save", step=step)
        if answer["started"]:
            assert answer["blocked_ms"] < 2000
            try:
                ranks[0].do("wait_copied", step=step)
            except RankError:
                pass
    (cluster.directory / "store.ready").unlink()
    control = store.ready["control"]
    data = store.ready["data"]
    cluster.store = cluster.start_daemon(
        "store", "store", store__directory=cluster.directory / "store",
        store__control_listen=control, store__data_listen=data, store__capacity="4GiB",
        store__segment_size="64MiB", store__prewrite="false")
    deadline = time.monotonic() + 60
    step = 10
    while time.monotonic() < deadline:  # catches up by itself once the store is back
        step += 1
        ranks[0].do("fill", step=step)
        if ranks[0].do("save", step=step)["started"]:
            try:
                ranks[0].do("wait", step=step, timeout=10)
                return
            except RankError:
                continue
    pytest.fail("no save committed after the store had come back")


def test_a_slab_too_small_for_the_state_is_refused_with_the_arithmetic(cluster, start_ranks):
    cluster.start_store()
    node = cluster.start_daemon(
        "node-small", "node", node__store=cluster.store.ready["control"],
        node__socket=cluster.directory / "small.sock",
        node__slab_directory=cluster.directory / "slab", node__slab_bytes="4MiB")
    rank = start_ranks([node], 1, elements=1 << 20)[0]
    rank.do("restore")
    rank.do("fill", step=1)
    rank.do("save", step=1)
    with pytest.raises(RankError, match=r"slab.*MiB"):
        rank.do("wait", step=1)


def test_a_full_store_says_so_and_keeps_what_it_has(cluster, start_ranks, cli):
    cluster.store = cluster.start_daemon(
        "store", "store", store__directory=cluster.directory / "store",
        store__control_listen="127.0.0.1:0", store__data_listen="127.0.0.1:0",
        store__capacity="32MiB", store__segment_size="16MiB", store__prewrite="false")
    ranks = start_ranks([cluster.start_node("a")], 1)
    ranks[0].do("restore")
    committed, refused = [], None
    for step in range(1, 40):
        ranks[0].do("fill", step=step)
        ranks[0].do("save", step=step)
        try:
            ranks[0].do("wait", step=step)
            committed.append(step)
        except RankError as error:
            refused = error
            break
    assert committed and refused is not None
    assert "full" in refused.message or "free" in refused.message, refused.message
    assert cli("verify", f"test/job@{committed[-1]}").returncode == 0


def test_state_that_does_not_fit_the_checkpoint_is_listed_before_a_byte_moves(cluster, start_ranks):
    cluster.start_store()
    node = cluster.start_node("a")
    ranks = start_ranks([node], 1)
    begin(ranks)
    ranks[0].kill()
    other = start_ranks([node], 1, names=("w", "extra"))[0]
    with pytest.raises(RankError, match=r"extra0(.|\n)*m0") as refused:
        other.do("restore")
    assert refused.value.kind == "InvalidArgument"
    assert other.do("restore", strict=False)["step"] == 1


def test_a_flipped_byte_in_a_segment_is_found_and_named(cluster, start_ranks, cli):
    store = cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 1)
    ranks[0].do("restore")
    digest_before = save_step(ranks, 1)
    save_step(ranks, 2)
    marker = cluster.directory / "store" / "seg"
    segment = sorted(marker.iterdir())[0]
    raw = bytearray(segment.read_bytes())
    # Any byte of the newest payload: found by looking for the last non-zero page of float data.
    position = next(i for i in range(0, len(raw), 4096) if any(raw[i:i + 4096]))
    raw[position + 100] ^= 1
    with segment.open("r+b") as out:
        out.seek(position)
        out.write(raw[position:position + 4096])
        out.flush()
        os.fsync(out.fileno())
    codes = [cli("verify", f"test/job@{step}").returncode for step in (1, 2)]
    assert sorted(codes) == [0, 5], "one checkpoint is damaged, the other is not"
    assert store.process.poll() is None and digest_before


def test_rotten_payload_fails_one_restore_and_the_next_run_resumes_from_an_older_step(
        cluster, start_ranks, cli):
    cluster.start_store()
    first = start_ranks([cluster.start_node("a")], 1)
    first[0].do("restore")
    digest = save_step(first, 1)[0]
    save_step(first, 2)
    first[0].kill()
    start = numpy.random.default_rng([0, 2, *b"w0"]).random(1024, dtype=numpy.float32).tobytes()
    for segment in (cluster.directory / "store" / "seg").iterdir():
        position = segment.read_bytes().find(start)
        if position >= 0:
            break
    assert position >= 0, "step 2 is nowhere in the store"
    with segment.open("r+b") as out:
        out.seek(position + 100)
        out.write(bytes([start[100] ^ 1]))
        out.flush()
        os.fsync(out.fileno())
    # A node without a copy of its own: everything comes from the store.
    node = cluster.start_node("b")
    second = start_ranks([node], 1)[0]
    with pytest.raises(RankError) as refused:
        second.do("restore")
    assert refused.value.kind == "DataLoss" and "digest" in refused.value.message
    second.kill()
    third = start_ranks([node], 1)[0].do("restore")
    assert third["step"] == 1 and third["digest"] == digest
    assert "digest" in str(third["skipped"]) and "2" in str(third["skipped"]), third["skipped"]
    assert "damaged" in cli("ls", "--all", "test/job").stdout
    shown = cli("-o", "json", "show", "test/job@1")
    assert json.loads(shown.stdout)["metadata"] is None, shown.stdout  # nobody gave any


def test_daemon_not_running_and_wrong_address_say_what_to_do(tmp_path, cluster):
    with pytest.raises(RankError, match=r"reprised|daemon") as refused:
        Rank("reprise://test/job", 0, 1, socket=str(tmp_path / "none.sock"), connect_timeout=1)
    assert refused.value.kind == "Unavailable"
    for uri in ("reprise://", "http://x/y", "file://relative", "reprise://a/b/c", "reprise://a/.b"):
        with pytest.raises(RankError) as wrong:
            Rank(uri, 0, 1, socket=str(tmp_path / "none.sock"), connect_timeout=1)
        assert wrong.value.kind == "InvalidArgument", uri


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_lost_index_is_rebuilt_from_the_journal(cluster, start_ranks, cli, damage):
    store = cluster.start_store()
    node = cluster.start_node("a")
    ranks = start_ranks([node], 1)
    digests = begin(ranks)
    ranks[0].do("close")
    store.process.terminate()
    store.process.wait()
    (cluster.directory / "store.ready").unlink()
    index = cluster.directory / "store" / "index"
    for path in index.iterdir():
        if damage == "delete" or path.suffix in (".sst",) or path.name.startswith("MANIFEST"):
            if damage == "delete":
                path.unlink()
            else:
                os.truncate(path, path.stat().st_size // 2)
    cluster.start_store()
    second = cluster.start_node("b")
    answers = all_do(start_ranks([second], 1), "restore")
    assert [a["digest"] for a in answers] == digests


def test_one_rotten_journal_copy_is_repaired(cluster, start_ranks, cli):
    store = cluster.start_store()
    ranks = start_ranks([cluster.start_node("a")], 1)
    begin(ranks)
    ranks[0].do("close")
    store.process.terminate()
    store.process.wait()
    (cluster.directory / "store.ready").unlink()
    copy = cluster.directory / "store" / "JOURNAL.0"
    with copy.open("r+b") as out:
        out.write(os.urandom(64 * 1024))
    cluster.start_store()
    assert cli("verify", "test/job@1").returncode == 0
    assert "repair" in cli("doctor").stdout.lower() or "journal" in cli("doctor").stdout.lower()


def test_two_daemons_on_one_directory_are_refused(cluster):
    cluster.start_store()
    with pytest.raises(Exception, match=r"lock|another|in use"):
        cluster.start_daemon("second", "store", store__directory=cluster.directory / "store",
                             store__control_listen="127.0.0.1:0", store__data_listen="127.0.0.1:0")


def test_wrong_settings_name_the_key_and_what_is_allowed(tmp_path):
    from demo import BIN
    for setting, words in {"node.slab_byte=1GiB": "node.slab_bytes", "role=boss": "both",
                           "store.capacity=lots": "64GiB", "io.threads=0": "1 to 64"}.items():
        ended = subprocess.run([str(BIN / "reprised"), "--check-config", "--set", setting],
                               capture_output=True, text=True, timeout=20, check=False)
        assert ended.returncode == 2 and words in ended.stderr, ended.stderr
    shown = subprocess.run([str(BIN / "reprised"), "--print-config"], capture_output=True,
                           text=True, timeout=20, check=True).stdout
    config = tmp_path / "reprised.yaml"
    config.write_text(shown)
    subprocess.run([str(BIN / "reprised"), "--config", str(config), "--check-config"], check=True,
                   timeout=20)


def test_exit_codes_of_the_command_line(cluster, cli):
    cluster.start_store()
    assert cli("ls").returncode == 0
    assert cli("show", "test/none").returncode == 4
    assert cli("restore", "test/none").returncode == 2  # neither --to nor --plan
    assert cli("nonsense").returncode == 2
    from demo import BIN
    away = subprocess.run([str(BIN / "reprise"), "--store", "127.0.0.1:1", "--timeout", "2", "ls"],
                          capture_output=True, text=True, timeout=30, check=False)
    assert away.returncode in (10, 124) and "127.0.0.1:1" in away.stderr, away.stderr
    assert sys.version_info >= (3, 9)
