"""What must be true of a job's checkpoints, kept outside the daemon that is being killed.

The oracle is told what the workload asked for and what it was answered, then shown what the store
lists after a restart. It knows nothing of times or processes, so that tests can feed it listings
that are wrong on purpose. A checkpoint is named by its key (epoch, step): keys order as tuples.

States of a key:
  saving        asked for, no answer: may be there or not
  acknowledged  a wait for `server` durability returned OK, or a listing showed it committed
  deleting      a delete without an answer: may be there or not
  deleted       a delete was acknowledged, or a listing after an unanswered one did not show it
"""

import dataclasses

SAVING, ACKNOWLEDGED, DELETING, DELETED = "saving", "acknowledged", "deleting", "deleted"


def name(key):
    epoch, step = key
    return f"{step}~{epoch}"


@dataclasses.dataclass
class Record:
    """One checkpoint as the workload knows it."""

    state: str = SAVING
    ranks: set = dataclasses.field(default_factory=set)  # that began to save it
    root: str = ""     # digest over everything in it, from the first listing that showed it


@dataclasses.dataclass
class Violation:
    """Something that must not happen. Kinds: lost, wrong, resurrected, behind, stuck."""

    kind: str
    text: str


class Oracle:
    """The expected state of one job saved by `world` ranks."""

    def __init__(self, world):
        self.world = world
        self.records = {}
        self.acknowledged_commits = 0
        self.acknowledged_deletes = 0

    # ---- told by the workload ---------------------------------------------------------------

    def begins(self, key, rank):
        """Before a rank is told to save: from here on the checkpoint may exist."""
        self.records.setdefault(key, Record()).ranks.add(rank)

    def acknowledge(self, key):
        record = self.records[key]
        if record.state == SAVING:
            record.state = ACKNOWLEDGED
            self.acknowledged_commits += 1

    def begins_delete(self, key):
        self.records[key].state = DELETING

    def acknowledge_delete(self, key):
        self.records[key].state = DELETED
        self.acknowledged_deletes += 1

    def refuse_delete(self, key):
        self.records[key].state = ACKNOWLEDGED

    # ---- asked by the workload --------------------------------------------------------------

    def acknowledged(self):
        """Keys that must be there, oldest first."""
        return sorted(k for k, r in self.records.items() if r.state == ACKNOWLEDGED)

    def newest(self):
        return max(self.acknowledged(), default=None)

    # ---- the check --------------------------------------------------------------------------

    def check(self, listed, latest):
        """Compares with a listing {key: root} of what is visible, and what `latest` resolves to.

        What a listing showed or did not show settles unanswered deletes and unanswered saves that
        are visible: the next listing must agree with it.
        """
        violations = []
        behind = self.newest()
        for key, record in sorted(self.records.items()):
            if record.state == ACKNOWLEDGED and key not in listed:
                violations.append(Violation("lost", f"{name(key)} was acknowledged, not listed"))
            elif record.state == DELETED and key in listed:
                violations.append(Violation("resurrected", f"{name(key)} was deleted, is listed"))
            elif record.state == DELETING:
                record.state = ACKNOWLEDGED if key in listed else DELETED
        for key, root in sorted(listed.items()):
            violations += self._check_visible(key, root)
        if behind is not None and (latest is None or latest < behind):
            seen = "nothing" if latest is None else name(latest)
            text = f"latest is {seen}, {name(behind)} was acknowledged"
            violations.append(Violation("behind", text))
        if latest is not None and latest not in listed:
            violations.append(Violation("wrong", f"latest is {name(latest)}, which is not listed"))
        return violations

    def _check_visible(self, key, root):
        record = self.records.get(key)
        if record is None or len(record.ranks) < self.world:
            ranks = sorted(record.ranks) if record else []
            return [Violation("resurrected",
                              f"{name(key)} is listed; only ranks {ranks} began to save it")]
        if record.root and record.root != root:
            return [Violation("wrong", f"{name(key)} has root {root}, had {record.root}")]
        record.root = root
        if record.state == SAVING:
            record.state = ACKNOWLEDGED
            self.acknowledged_commits += 1
        return []
