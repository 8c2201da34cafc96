"""Kills the real store again and again while it saves, commits and deletes, and checks every time
that it comes back by itself with everything it acknowledged.

Two ranks save a few MiB of seeded bytes through a node daemon. At a random moment of each round the
store is killed with SIGKILL (every tenth time with node daemon and ranks), then started again on
its directory, alternately on io_uring and on threads. The oracle (oracle.py) then compares what the
store lists, reads back and resumes from with what was acknowledged before.

    tools/dev crash [--kills N] [--seed S] [--json FILE]

The seed decides what each round does and how long it waits before the kill; what the processes had
done by then differs from run to run. Prints where the kills fell, and as its last line
`kills: N, acknowledged: N, lost: N, resurrected: N, manual_repairs: N`. Ends with 1 when a number
other than the first two is not 0, or when a save stayed undecided.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from oracle import Oracle, Violation, name  # noqa: E402
from world import (EXIT_NOT_FOUND, EXIT_USAGE, JOB, ManualRepairNeeded, RankError,  # noqa: E402
                   World, WORLD, all_do, expected_values, salt)

ENGINES = ("uring", "threads")
# What a round does; each line of the deck comes up once before any comes up again.
DECK = ("before_save", "save", "save", "save", "one_rank", "sealed", "sealed", "acknowledged",
        "delete", "delete", "save_and_delete", "recovery", "at_io", "at_io")
EVERYTHING_EVERY = 10   # kills: node daemon and ranks die as well
COMPARE_ALL_EVERY = 25  # kills: every checkpoint is compared byte by byte, not only new ones
BOTH_ROLES_PART = 5     # one kill in so many hits a daemon that holds both roles
KEPT = 3                # checkpoints that are left in the store
STALL_BUDGET_MS = 2000
DAEMON_OPERATIONS = 120  # of a daemon that recovers and takes a save: about so many change the disk
WAIT_S = 40
VIOLATIONS_MAX = 8


class Estimate:
    """A running mean of how long something takes, to choose moments within it."""

    def __init__(self, seconds):
        self.seconds = seconds

    def add(self, seconds):
        self.seconds += 0.2 * (min(seconds, 2.0) - self.seconds)


class Report:
    """Counts and violations of the whole run."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.kills = 0
        self.acknowledged = 0
        self.deleted = 0
        self.manual_repairs = 0
        self.moments = collections.Counter()
        self.engines = collections.Counter()
        self.everything = 0
        self.at_io = 0              # kills at an I/O index
        self.restart_ms = []
        self.away_ms = []           # time inside save() while no store ran
        self.refused_away = 0       # saves that were refused while no store ran
        self.violations = []
        self.began = time.monotonic()

    def add(self, found, where):
        for violation in found:
            self.violations.append({"kind": violation.kind, "text": violation.text, "at": where})
            print(f"VIOLATION {where}: {violation.kind}: {violation.text}", flush=True)

    def count(self, *kinds):
        return sum(v["kind"] in kinds for v in self.violations)

    @property
    def lost(self):
        return self.count("lost", "wrong", "behind")

    @property
    def bad(self):
        return bool(self.violations or self.manual_repairs)

    def document(self):
        restart = sorted(self.restart_ms) or [0]
        return {"schema": 1, "kills": self.kills, "acknowledged": self.acknowledged,
                "lost": self.lost, "resurrected": self.count("resurrected"),
                "manual_repairs": self.manual_repairs, "stuck": self.count("stuck"),
                "deletes": self.deleted, "seed": self.arguments.seed,
                "seconds": round(time.monotonic() - self.began, 1),
                "kills_at_an_io_index": self.at_io,
                "kills_with_node_and_ranks": self.everything, "engines": dict(self.engines),
                "moments": dict(sorted(self.moments.items())),
                "restart_ms": {"median": restart[len(restart) // 2], "max": restart[-1]},
                "save_blocked_while_store_away_ms": max(self.away_ms, default=0),
                "saves_while_store_away": len(self.away_ms),
                "saves_refused_while_store_away": self.refused_away,
                "violations": self.violations}

    def print(self):
        document = self.document()
        print("where the kills fell:")
        for moment, count in document["moments"].items():
            print(f"  {count:4}  {moment}")
        print(f"restart to serving: {document['restart_ms']['median']} ms median, "
              f"{document['restart_ms']['max']} ms max; {self.everything} kills took node daemon "
              f"and ranks too; engines: {dict(self.engines)}")
        print(f"saves while no store ran: {len(self.away_ms)}, longest time inside save(): "
              f"{document['save_blocked_while_store_away_ms']:.0f} ms, refused: "
              f"{self.refused_away}; deletes: {self.deleted}; undecided saves: "
              f"{document['stuck']}; {document['seconds']} s")
        print(f"kills: {self.kills}, acknowledged: {self.acknowledged}, lost: {self.lost}, "
              f"resurrected: {document['resurrected']}, manual_repairs: {self.manual_repairs}",
              flush=True)


class Save:
    """One save that a kill may interrupt."""

    def __init__(self, key):
        self.key = key
        self.ranks = []      # that were told to save and began
        self.began = None
        self.answers = {}    # rank -> ("ok" | error text)


class Campaign:
    """Rounds against one store directory."""

    def __init__(self, world, report, rng, sabotage=None):
        self.world = world
        self.report = report
        self.rng = rng
        self.sabotage = sabotage
        self.oracle = Oracle(WORLD)
        self.compared = set()
        self.epoch = self.step = 0
        self.deck = []
        self.commit_time = Estimate(0.1)
        self.seal_time = Estimate(0.03)
        self.delete_time = Estimate(0.1)
        self.start_time = Estimate(0.3)
        self.where = "start"

    # ---- the workload -----------------------------------------------------------------------

    def start(self):
        self.world.launch_store(ENGINES[0])
        self.world.await_store()
        self.world.start_node(ENGINES[0])
        self.begin_run()

    def begin_run(self):
        """Starts ranks; what they resume from must be all that was acknowledged, and the same."""
        answers = self.world.start_ranks()
        first = answers[0]
        self.epoch, found = first["epoch"], first["step"]
        problems = []
        if any(a["step"] != found or a["epoch"] != self.epoch for a in answers):
            problems.append(Violation("wrong", f"ranks resume from different steps: {answers}"))
        newest = self.oracle.newest()
        if newest is not None and (found is None or found < newest[1]):
            problems.append(Violation("behind", f"run {self.epoch} resumes from step {found}, "
                                                f"{name(newest)} was acknowledged"))
        elif found is not None:
            key = max((k for k in self.oracle.records if k[1] == found), default=None)
            expected = [digest_of(key, rank) if key else "" for rank in range(WORLD)]
            if [a["digest"] for a in answers] != expected:
                problems.append(Violation("wrong", f"run {self.epoch} resumed step {found} with "
                                                   "other bytes than were saved"))
        self.report.add(problems, self.where)
        self.step = found or 0

    def next_save(self):
        """Advances training by a step: both ranks hold the bytes of a new key."""
        self.step += 1
        save = Save((self.epoch, self.step))
        all_do(self.world.ranks, "fill", step=salt(save.key))
        return save

    def tell_to_save(self, save, ranks):
        save.began = save.began or time.monotonic()
        for rank in ranks:
            self.oracle.begins(save.key, rank)
            self.world.ranks[rank].start("save", step=save.key[1])

    def hear_of_save(self, save, ranks):
        """Takes the answers to tell_to_save; returns the longest time inside save()."""
        longest = 0
        for rank in ranks:
            answer = self.world.ranks[rank].finish()
            if answer["started"]:
                save.ranks.append(rank)
                longest = max(longest, answer["blocked_ms"])
        return longest

    def save_now(self, save):
        self.tell_to_save(save, range(WORLD))
        self.hear_of_save(save, range(WORLD))

    def await_committed(self, save):
        """Waits for every rank that saves; one OK is an acknowledgement for the whole job."""
        waiting = [rank for rank in save.ranks if rank not in save.answers]
        for rank in waiting:
            self.world.ranks[rank].start("wait", step=save.key[1], timeout=WAIT_S)
        for rank in waiting:
            self.hear_of_commit(save, rank)

    def hear_of_commit(self, save, rank):
        try:
            self.world.ranks[rank].finish(timeout=WAIT_S + 20)
            save.answers[rank] = "ok"
            self.oracle.acknowledge(save.key)
        except RankError as error:
            save.answers[rank] = str(error)
            if error.kind == "DeadlineExceeded":
                self.report.add([Violation("stuck", f"{name(save.key)}, rank {rank}: {error}")],
                                self.where)

    def undisturbed_save(self):
        """A save that nobody interrupts: the rounds need checkpoints to lose, and times."""
        save = self.next_save()
        self.save_now(save)
        self.await_committed(save)
        if list(save.answers.values()) == ["ok"] * WORLD:
            state = self.world.ranks[0].do("status", step=save.key[1])
            self.seal_time.add(state["local_ms"] / 1e3)
            self.commit_time.add(state["committed_ms"] / 1e3)
        else:
            print(f"  {self.where}: undisturbed save of {name(save.key)}: {save.answers}")

    def victim(self):
        """A checkpoint that may be deleted: acknowledged, not the newest."""
        keys = self.oracle.acknowledged()[:-1]
        return self.rng.choice(keys) if keys else None

    def tell_to_delete(self, key):
        self.oracle.begins_delete(key)
        return self.world.command("forget", f"{JOB}@{key[1]}~{key[0]}", "--yes")

    def hear_of_delete(self, key, process):
        """Returns "deleted", "refused" or "unanswered"."""
        _, error = process.communicate(timeout=60)
        if process.returncode == 0:
            self.oracle.acknowledge_delete(key)
            return "deleted"
        if process.returncode == EXIT_NOT_FOUND:
            self.oracle.refuse_delete(key)
            self.report.add([Violation("lost", f"{name(key)} was acknowledged; deleting it says "
                                               f"{error.strip()}")], self.where)
            return "refused"
        if process.returncode == EXIT_USAGE:
            raise RuntimeError(f"reprise forget: {error}")
        if any(words in error for words in ("being read", "last good", "pinned")):
            self.oracle.refuse_delete(key)
            return "refused"
        return "unanswered"

    # ---- rounds: each ends with the kill and returns (interrupted save or None, moment) ---------

    def kill(self):
        self.world.kill_store()
        self.report.kills += 1
        self.killed = time.monotonic()

    def sleep(self, seconds):
        time.sleep(max(0.0, seconds))

    def do_before_save(self):
        save = self.next_save()
        self.sleep(self.rng.uniform(0, 0.01))
        self.kill()
        self.save_while_away(save)
        return save, "idle, then saves without a store"

    def save_while_away(self, save):
        self.tell_to_save(save, range(WORLD))
        longest = self.hear_of_save(save, range(WORLD))
        self.report.refused_away += WORLD - len(save.ranks)
        self.report.away_ms.append(longest)
        if longest > STALL_BUDGET_MS:
            text = f"save() blocked {longest:.0f} ms without a store"
            self.report.add([Violation("stuck", text)], self.where)

    def do_save(self):
        save = self.next_save()
        self.tell_to_save(save, range(WORLD))
        # Early moments more often: copying is the shortest part.
        self.sleep(self.rng.random() ** 1.5 * self.commit_time.seconds)
        self.kill()
        self.hear_of_save(save, range(WORLD))
        return save, None

    def do_one_rank(self):
        """One shard may be sealed by the store, the other rank has not begun."""
        save = self.next_save()
        self.tell_to_save(save, [0])
        self.hear_of_save(save, [0])
        self.sleep(self.rng.uniform(0.2, 1.5) * self.commit_time.seconds)
        self.kill()
        return save, "one rank has saved"

    def do_sealed(self):
        """All ranks have sealed in RAM: the store is between receiving and committing."""
        save = self.next_save()
        self.save_now(save)
        for rank in save.ranks[:1]:
            try:
                self.world.ranks[rank].do("wait", step=save.key[1], durability="local",
                                          timeout=WAIT_S)
            except RankError as error:
                save.answers[rank] = str(error)
        rest = max(0.01, self.commit_time.seconds - self.seal_time.seconds)
        self.sleep(self.rng.uniform(0, 1.2) * rest)
        self.kill()
        return save, None

    def do_acknowledged(self):
        """The kill follows the first acknowledgement as fast as it can."""
        save = self.next_save()
        self.save_now(save)
        for rank in save.ranks:
            self.world.ranks[rank].start("wait", step=save.key[1], timeout=WAIT_S)
        for rank in save.ranks[:1]:
            self.hear_of_commit(save, rank)
        self.kill()
        for rank in save.ranks[1:]:
            self.hear_of_commit(save, rank)
        return save, "just acknowledged"

    def do_delete(self, save=None):
        key = self.victim()
        if key is None:
            return self.do_save()
        process = self.tell_to_delete(key)
        if save is not None:
            self.tell_to_save(save, range(WORLD))
        self.sleep(self.rng.uniform(0.1, 0.8) * self.delete_time.seconds)
        answered = process.poll() is not None
        self.kill()
        if save is not None:
            self.hear_of_save(save, range(WORLD))
        outcome = self.hear_of_delete(key, process)
        moment = "delete answered" if answered else "delete in flight"
        if not answered and outcome == "deleted":
            moment = "delete answered"
        return save, moment if save is None else f"{moment}, save in flight"

    def do_save_and_delete(self):
        return self.do_delete(self.next_save())

    def do_recovery(self):
        """The store dies while it recovers from the death before."""
        self.kill()
        self.world.launch_store(self.rng.choice(ENGINES))
        self.sleep(self.rng.uniform(0, 1.1) * self.start_time.seconds)
        ready = self.world.store.ready.exists()
        self.kill()
        self.report.moments["idle"] += 1
        return None, "serving again" if ready else "recovering"

    def do_at_io(self):
        """The store kills itself at an operation on its disk, in its recovery or in a save."""
        self.kill()
        self.report.moments["idle"] += 1
        at = f"{self.rng.randint(1, DAEMON_OPERATIONS)}:{self.rng.choice(['before', 'after'])}"
        self.world.launch_store(self.rng.choice(ENGINES), crash_at_io=at)
        while not self.world.store.ready.exists():
            if self.world.store_has_killed_itself(within_s=0.01):
                return None, self.has_died("recovery")
            if self.world.store.poll() is not None:
                self.world.await_store()  # raises, with its log
        self.world.await_store()
        save = self.next_save()
        self.tell_to_save(save, range(WORLD))
        died = self.world.store_has_killed_itself(within_s=1.0)
        if not died:
            self.kill()
        self.hear_of_save(save, range(WORLD))
        return save, self.has_died("a save") if died else None

    def has_died(self, where):
        self.report.kills += 1
        self.report.at_io += 1
        self.killed = time.monotonic()
        return f"at an I/O index, in {where}"

    def moment_of(self, save):
        """Where in the save the kill fell, by the rank's own clock of the save's phases."""
        states = []
        for rank in save.ranks:
            states.append(self.world.ranks[rank].do("status", step=save.key[1]))
        after_ms = (self.killed - save.began) * 1e3
        if not states or any(after_ms < s["copied_ms"] for s in states):
            return "save: copying"
        if any(s["local_ms"] < 0 or after_ms < s["local_ms"] for s in states):
            return "save: moving to the store, not sealed by all"
        if any(s["committed_ms"] < 0 or after_ms < s["committed_ms"] for s in states):
            return "save: sealed by all, not acknowledged"
        return "save: acknowledged"

    # ---- a round ----------------------------------------------------------------------------

    def run_round(self, number):
        self.where = f"kill {self.report.kills + 1} (round {number})"
        if not self.deck:
            self.deck = list(DECK)
            self.rng.shuffle(self.deck)
        kind = self.deck.pop()
        self.where += f" {kind}"
        self.undisturbed_save()
        save, moment = getattr(self, f"do_{kind}")()
        everything = number % EVERYTHING_EVERY == EVERYTHING_EVERY - 1
        if everything:
            self.world.kill_rest(lose_memory=self.rng.random() < 0.5)
            self.report.everything += 1
        self.apply_sabotage()
        self.restart(ENGINES[number % len(ENGINES)])
        self.check_survivors()
        if everything:
            self.world.start_node(ENGINES[number % len(ENGINES)])
            self.begin_run()
            moment = moment or "save: somewhere, ranks died too"
        elif save is not None:
            self.finish_interrupted(save)
            moment = moment or self.moment_of(save)
        self.report.moments[moment] += 1
        self.check_bytes(everything=self.report.kills % COMPARE_ALL_EVERY < 2)
        self.trim()

    def restart(self, engine):
        began = time.monotonic()
        self.world.launch_store(engine)
        self.world.await_store()
        took = time.monotonic() - began
        self.start_time.add(took)
        self.report.restart_ms.append(round(took * 1e3))
        self.report.engines[engine] += 1

    def finish_interrupted(self, save):
        missing = [rank for rank in range(WORLD)
                   if rank not in save.ranks and rank not in self.oracle.records[save.key].ranks]
        if missing:
            self.tell_to_save(save, missing)
            self.hear_of_save(save, missing)
        self.await_committed(save)

    # ---- checks -----------------------------------------------------------------------------

    def check_survivors(self):
        """At once after the restart: what was acknowledged is listed, `latest` is not older."""
        latest, problem = None, ""
        if self.oracle.newest() is not None:
            latest, problem = self.world.verify(["latest"])[0]
        listed = self.world.listing()  # after `latest`: a save may commit in between
        found = self.oracle.check(listed, latest)
        if problem:
            found.append(Violation("lost", problem))
        self.report.add(found, self.where)

    def check_bytes(self, everything=False):
        """All that is visible now reads back and is what was saved."""
        listed = self.world.listing()
        newest = max(listed, default=None)
        found = self.oracle.check(listed, newest)
        keys = sorted(listed)
        problems = []
        answers = self.world.verify([f"{step}~{epoch}" for epoch, step in keys])
        for key, (seen, problem) in zip(keys, answers):
            if not problem and seen != key:
                problem = f"{name(key)} resolves to {name(seen)}"
            problems.append(problem)
        unseen = [key for key in keys if everything or key not in self.compared]
        problems += self.world.compare(unseen)
        self.compared.update(unseen)
        found += [Violation("wrong", problem) for problem in problems if problem]
        self.report.add(found, self.where)

    def trim(self):
        """Deletes all but the newest few, so that the next round reads little."""
        began = time.monotonic()
        running = [(key, self.tell_to_delete(key)) for key in self.oracle.acknowledged()[:-KEPT]]
        for key, process in running:
            outcome = self.hear_of_delete(key, process)
            if outcome == "deleted":
                self.delete_time.add(time.monotonic() - began)
            elif outcome == "unanswered":
                self.report.add([Violation("stuck", f"deleting {name(key)} got no answer")],
                                self.where)

    def apply_sabotage(self):
        if self.sabotage is not None:
            self.sabotage(self)

    def finish(self):
        """An orderly stop and a last look at everything."""
        self.where = "after an orderly stop"
        if self.world.both:
            for rank in self.world.ranks:
                rank.kill()
            self.world.ranks = []
        code = self.world.stop_store()
        if code != 0:
            self.report.add([Violation("stuck", f"SIGTERM ended the store with {code}")],
                            self.where)
        self.restart(ENGINES[0])
        self.check_survivors()
        self.check_bytes(everything=True)


def digest_of(key, rank):
    """What rank_main.py's `digest` says of the state of `key`."""
    digest = hashlib.sha256()
    for item, value in sorted(expected_values(key, rank).items()):
        raw = value.tobytes() if isinstance(value, numpy.ndarray) else str(value).encode()
        digest.update(item.encode() + raw)
    return digest.hexdigest()


def sabotage_named(which):
    """Breaks the store directory while the store is dead, to show that the oracle notices.

    rollback: the directory as it was three rounds earlier. rot: one flipped bit in every page.
    """
    state = {"kills": 0}  # of rounds; one in recovery is not counted here

    def sabotage(campaign):
        state["kills"] += 1
        store = campaign.world.directory / "store"
        copy = campaign.world.directory / "copy"
        if which == "rollback" and state["kills"] == 1:
            shutil.copytree(store, copy)
        elif which == "rollback" and state["kills"] == 4:
            shutil.rmtree(store)
            copy.rename(store)
        elif which == "rot" and state["kills"] == 3:
            for segment in (store / "seg").iterdir():
                pages = numpy.memmap(segment, dtype=numpy.uint8, mode="r+")
                pages[1000::4096] ^= 1
                pages.flush()

    return sabotage if which else None


def run_campaign(report, directory, both, kills, arguments):
    directory.mkdir()
    world = World(directory, both, int(both))
    campaign = Campaign(world, report, random.Random(f"{arguments.seed}/{both}"),
                        sabotage_named(arguments.sabotage))
    number = 0
    try:
        campaign.start()
        last = report.kills + kills
        while report.kills < last and len(report.violations) < VIOLATIONS_MAX:
            campaign.run_round(number)
            number += 1
            if number % 20 == 0:
                print(f"{report.kills} kills, {campaign.oracle.acknowledged_commits} acknowledged "
                      f"in this store, {time.monotonic() - report.began:.0f} s", flush=True)
        campaign.finish()
    except ManualRepairNeeded as problem:
        report.manual_repairs += 1
        print(f"VIOLATION {campaign.where}: does not start by itself: {problem}", flush=True)
    finally:
        report.acknowledged += campaign.oracle.acknowledged_commits
        report.deleted += campaign.oracle.acknowledged_deletes
        report.add([Violation("stuck", text) for text in world.unexpected_ends], campaign.where)
        world.close()


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--directory", help="where to work; a real disk shows more than a tmpfs")
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    parser.add_argument("--sabotage", choices=["rollback", "rot"],
                        help="break the store on purpose: the run must fail")
    return parser.parse_args(argv)


def end(*_):
    """Ends daemons and ranks as well; a second SIGTERM does not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended by SIGTERM")


def main(argv=None):
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, end)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reprise-crash-", dir=arguments.directory))
    report = Report(arguments)
    print(f"seed {arguments.seed}, {arguments.kills} kills, in {directory}", flush=True)
    both = arguments.kills // BOTH_ROLES_PART
    try:
        for roles_both, kills in ((False, arguments.kills - both), (True, both)):
            if kills > 0 and not report.bad:
                run_campaign(report, directory / ("both" if roles_both else "apart"), roles_both,
                             kills, arguments)
    finally:
        if arguments.json:
            pathlib.Path(arguments.json).write_text(json.dumps(report.document(), indent=1) + "\n")
        if report.bad or arguments.keep:
            print(f"logs: {directory}; repeat: tools/dev crash --kills {arguments.kills} "
                  f"--seed {arguments.seed}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
        report.print()
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
