"""Kill points, failing I/O, power cuts and bit flips in short, and the proof that each can fail."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import power_cuts  # noqa: E402
from broken_store import Ended, Promises, complete_lines  # noqa: E402

WHY_NO_POWER_CUTS = power_cuts.why_not()
needs_disks = pytest.mark.skipif(bool(WHY_NO_POWER_CUTS), reason=WHY_NO_POWER_CUTS)


def run_part(tmp_path, program, *arguments, timeout=150):
    figures = tmp_path / "figures.json"
    ended = subprocess.run([sys.executable, HERE / program, "--json", figures, *arguments],
                           capture_output=True, text=True, timeout=timeout, check=False)
    output = ended.stdout + ended.stderr
    assert figures.exists(), output
    return ended.returncode, json.loads(figures.read_text()), output


# ---- kill points and failing operations -----------------------------------------------------------


def test_a_store_killed_at_an_io_index_or_failed_there_loses_nothing(tmp_path):
    code, figures, output = run_part(tmp_path, "kill_points.py", "--points", "80", "--errors", "56",
                                     "--seed", "11")
    assert code == 0, output
    assert figures["kill_points"] >= 70 and figures["errors_injected"] >= 40, output
    assert figures["lost"] == figures["resurrected"] == figures["manual_repairs"] == 0, output


def test_kill_points_find_answers_that_come_before_the_journal_is_written(tmp_path):
    # An early answer is heard only if it wins a race with the kill: about one point in forty sees it.
    code, figures, output = run_part(tmp_path, "kill_points.py", "--points", "480", "--errors", "0",
                                     "--mutate", "ack_before_durable")
    assert code == 1 and figures["lost"] + figures["resurrected"] > 0, output


# ---- power cuts -------------------------------------------------------------------------------------


@needs_disks
def test_power_cuts_on_ext4_and_xfs_lose_nothing(tmp_path):
    code, figures, output = run_part(tmp_path, "power_cuts.py", "--cuts", "16", "--seed", "11")
    assert code == 0, output
    assert figures["power_cuts"] == {"ext4": 8, "xfs": 8}, output
    assert figures["acknowledged"] > 0, output


@needs_disks
@pytest.mark.parametrize("mutation", ["skip_flush", "no_dsync"])
def test_power_cuts_find_what_was_not_flushed(tmp_path, mutation):
    code, figures, output = run_part(tmp_path, "power_cuts.py", "--cuts", "160",
                                     "--mutate", mutation)
    assert code == 1 and figures["lost"] + figures["resurrected"] > 0, output


@needs_disks
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_a_flush_on_the_loop_device_reaches_the_cache_of_the_disk(tmp_path, filesystem):
    disk = power_cuts.Disk(tmp_path, filesystem)
    try:
        disk.mount()
        for name in ("synced", "not_synced"):
            with (disk.mounted / name).open("wb") as file:
                before = disk.status()
                file.write(b"x" * 65536)
                file.flush()
                if name == "synced":
                    os.fsync(file.fileno())
                    directory = os.open(disk.mounted, os.O_RDONLY)
                    os.fsync(directory)
                    os.close(directory)
                    after = disk.status()
                    assert after.writes > before.writes and after.flushes > before.flushes
        disk.cut()
        disk.unmount()
        outcome = disk.power_on(0)
        disk.mount()
        assert (disk.mounted / "synced").read_bytes() == b"x" * 65536
        assert not (disk.mounted / "not_synced").exists(), outcome
    finally:
        disk.close()


# ---- bit flips --------------------------------------------------------------------------------------


def test_flipped_bits_are_corrected_or_reported(tmp_path):
    code, figures, output = run_part(tmp_path, "bit_flips.py", "--flips", "20000")
    assert code == 0, output
    assert figures["bit_flips"] >= 18000 and figures["silent"] == 0, output
    assert {"super", "journal", "manifest", "certificate", "payload", "shard", "layout",
            "index table"} <= figures["regions"].keys(), output


@pytest.mark.parametrize("mutation", ["skip_repair", "skip_manifest_verify"])
def test_flips_find_a_recovery_that_does_not_look(mutation):
    ended = subprocess.run([power_cuts.BUILD / "tests" / "crash_flips", "volume", "--stride", "997",
                            "--mutate", mutation], capture_output=True, text=True, timeout=60,
                           check=False)
    assert ended.returncode == 1 and "silent" in ended.stdout, ended.stdout + ended.stderr


# ---- the judgement itself ---------------------------------------------------------------------------


SAVED = ["begin 1 1 0", "begin 1 1 1", "committed 1 1"]


def promises(lines):
    heard = Promises()
    heard.hear(Ended(-9, lines, ""))
    return heard


def kinds(heard, *shown, code=0):
    return [violation.kind for violation in heard.judge(Ended(code, list(shown), ""))]


def test_the_judge_accepts_what_was_acknowledged():
    assert kinds(promises(SAVED), "visible 1 1 aa 0 ok", "latest 1 1") == []


def test_the_judge_misses_a_checkpoint_and_bytes_that_are_wrong():
    assert "lost" in kinds(promises(SAVED), "latest none")
    assert "wrong" in kinds(promises(SAVED), "visible 1 1 aa 0 DATA_LOSS: x", "latest 1 1")


def test_the_judge_misses_a_pin_that_was_answered_and_accepts_one_that_was_not():
    shown = ("visible 1 1 aa 0 ok", "latest 1 1")
    assert kinds(promises([*SAVED, "pin 1 1 1", "pinned 1 1 1"]), *shown) == ["lost"]
    assert kinds(promises([*SAVED, "pin 1 1 1"]), *shown) == []


def test_the_judge_calls_a_store_that_does_not_open_a_manual_repair():
    assert kinds(promises(SAVED), code=3) == ["manual_repair"]


def test_the_judge_misses_space_that_nobody_needs():
    shown = ("visible 1 1 aa 0 ok", "latest 1 1")
    assert kinds(promises(SAVED), *shown, "usage 4096 4096 4096") == []
    assert kinds(promises(SAVED), *shown, "usage 8192 4096 4096") == ["leak"]


def test_a_line_that_was_cut_off_promises_nothing():
    assert complete_lines("begin 1 1 0\ncommitted 1") == ["begin 1 1 0"]
