"""Checkpointer: save and resume the state of one rank of a training job."""

from __future__ import annotations

import atexit
import dataclasses
import json
import logging
import operator
import os
import sys
import time
import weakref

from . import _aux, _fence, _native, _restore
from ._errors import (DeadlineExceeded, Fenced, InvalidArgument, RepriseError, SaveAborted)
from ._state import SCOPE_RANK, Walk, address_and_bytes, is_dtensor, is_optimizer, signature_of

logger = logging.getLogger("reprise")

DURABILITIES = {"local": 1, "peer": 2, "server": 3, "object": 4}
_PHASES = ["starting", "transferring", "sealed", "local", "committed", "failed"]


def rank_and_world():
    """From torch.distributed when initialised, else RANK and WORLD_SIZE, else 0 of 1."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def parse_duration(text):
    """Seconds of "30m", "90s", "2h" or a number."""
    if text is None or isinstance(text, (int, float)):
        return text
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if len(text) > 1 and text[-1] in units and text[:-1].replace(".", "", 1).isdigit():
        return float(text[:-1]) * units[text[-1]]
    raise InvalidArgument(f"{text!r} is not a duration such as '30m', '90s' or '2h'")


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a newer one commits: the newest `last`, and multiples of `every`.

    The store deletes the others of this job, never a pinned one, one that is being read, the one the
    run resumed from (until it has one of its own), or the last good one.
    """

    last: int
    every: int | None = None

    def __post_init__(self):
        if not isinstance(self.last, int) or not 1 <= self.last < 1 << 32:
            raise InvalidArgument("Keep(last=...) must be at least 1: the newest checkpoint always "
                                  "stays; to keep all of them, pass keep=None")
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise InvalidArgument("Keep(every=...) must be a number of steps, or None")


class Save:
    """One save in progress or finished. Cheap to keep; never blocks unless asked to wait."""

    def __init__(self, handle, step, items, blocked_ms):
        self.step = step
        self.blocked_ms = blocked_ms  # time inside save(); the fence adds to it
        self._handle = handle
        self._items = items           # keeps every storage alive until it is copied
        self._versions = [(item, _version_of(item)) for item in items if item.lazy]
        self._fenced = not self._versions
        self._reported = False

    @property
    def copied(self):
        """True once none of the caller's memory will be read any more."""
        return self._handle.state().copied_ms >= 0 or self.failed

    @property
    def committed(self):
        return self._handle.state().phase == 4

    @property
    def failed(self):
        return self._handle.state().phase == 5

    def status(self):
        """A dict for people and logs: phase, error, bytes and times in milliseconds."""
        state = self._handle.state()
        return {"step": self.step, "phase": _PHASES[state.phase], "bytes": state.bytes,
                "error": self._handle.error() if state.phase == 5 else "",
                "blocked_ms": self.blocked_ms, "start_ms": state.start_ms,
                "copied_ms": state.copied_ms, "local_ms": state.local_ms,
                "committed_ms": state.committed_ms}

    def wait(self, durability="server", timeout=None):
        """Blocks until the whole job's save reached `durability`; raises why it did not."""
        self._handle.wait(DURABILITIES[durability], -1 if timeout is None else timeout)

    def wait_copied(self, timeout=None):
        """Blocks until the state may change; called by the fence."""
        started = time.perf_counter()
        if not self._fenced:
            changed = self._changed()
            if changed:
                self._handle.abort(f"{changed} changed while its snapshot was being copied: call "
                                   "wait_copied() before changing it")
            self._fenced = True
            if changed and self.committed:
                raise RepriseError(
                    f"step {self.step} was committed before it was seen that {changed} had changed "
                    "while it may have been copied: delete this checkpoint, and call wait_copied() "
                    "before changing state other than by an optimizer")
        try:
            self._handle.wait_copied(-1 if timeout is None else timeout)
        finally:
            self._items = None
            self._versions = []
            self.blocked_ms += (time.perf_counter() - started) * 1e3

    def _changed(self):
        for item, version in self._versions:
            if _version_of(item) != version:
                return item.name
        return None


def _version_of(item):
    """Rises with every change in place. Changes of a DTensor show on itself, not on its local part."""
    local = item.source._local_tensor if is_dtensor(item.source) else item.source
    return item.source._version, local._version


class Checkpointer:
    """Saves and resumes one rank's state of one job.

    ``uri`` is ``reprise://TENANT/JOB`` (a node daemon runs on this host) or ``file:///DIR`` (all on
    this host; a private daemon is started, and outlives the training process).

    No process group is created and no collective is called. Saving never raises into training
    unless ``on_error="raise"``; what is refused as wrong use (an object that cannot be saved) always
    raises. After a failed ``restore`` the state is undefined, and saving it is refused.

    Thread rule: one thread. ``save`` blocks for as long as it copies what no fence guards;
    ``restore``, ``close`` and waits block up to their timeouts.
    """

    def __init__(self, uri, *, durability="server", on_error="warn", rank=None, world=None,
                 launcher=None, socket=None, daemon=None, takeover=False, rank_scope=(),
                 unprotected_for=None, register_timeout=600.0, connect_timeout=30.0,
                 stall_budget=2.0, copy_threads=0, keep=None):
        if durability not in DURABILITIES:
            raise InvalidArgument(f"durability must be one of {', '.join(DURABILITIES)}")
        if on_error not in ("warn", "raise"):
            raise InvalidArgument("on_error must be 'warn' or 'raise'")
        if keep is not None and not isinstance(keep, Keep):
            raise InvalidArgument("keep must be a reprise.Keep, or None to keep every checkpoint")
        found_rank, found_world = rank_and_world()
        self.uri = uri
        self.rank = found_rank if rank is None else rank
        self.world = found_world if world is None else world
        self.epoch = None
        self.skipped = ""          # newer checkpoints that could not be used, and why
        self.restore_stats = {}
        self._durability = durability
        self._on_error = on_error
        self._keep = keep
        self._rank_scope = tuple(rank_scope)
        self._register_timeout = register_timeout
        self._stall_budget = stall_budget
        self._unprotected_for = parse_duration(unprotected_for)
        self._resume = None
        self._undefined = ""
        self._pending = []         # saves not yet finished
        self._last = None          # the newest save that was started
        self._walk = None          # (signature, Walk) of the last save
        self._encodings = {}       # auxiliary name -> (fingerprint, bytes)
        self._cache = None         # (signature, PieceArray) of the last save
        self._last_good = time.monotonic()
        self._client = _native.Client(
            uri, rank=self.rank, world=self.world, launcher=launcher, socket=socket, daemon=daemon,
            takeover=takeover, copy_threads=copy_threads, connect_timeout=connect_timeout,
            stall_budget=stall_budget)
        if "torch" in sys.modules:
            _fence.install(self)
        self._at_exit = _close_at_exit(self)

    # ---- restoring --------------------------------------------------------------------------

    def restore(self, state, step="latest", strict=True, timeout=600.0):
        """Fills `state` in place and returns the step, or None when the job has no checkpoint.

        With step="latest" every rank of the run gets the one resume point that the coordinator
        pinned. Strict: missing, unexpected and mismatched items are listed before any byte moves.
        """
        self._register()
        if step == "latest":
            if self._resume is None:
                return None
            epoch, wanted = self._resume
        else:
            epoch, wanted = -1, int(step)
        reader = self._client.open_reader(wanted, epoch, timeout)
        try:
            self._undefined = "a restore began and did not finish"
            found = _restore.fill(reader, state, rank=self.rank, world=self.world, strict=strict,
                                  timeout=timeout, rank_scope=self._rank_scope)
            self._undefined = ""
        except _restore.Refused as refused:
            self._undefined = ""  # nothing was touched
            raise InvalidArgument(str(refused)) from None
        finally:
            self.restore_stats = reader.stats()
            reader.close()
        self._last_good = time.monotonic()
        return found

    def _register(self):
        if self.epoch is None:
            self.epoch, self._resume, self.skipped = self._client.register(self._register_timeout)
            if self.skipped:
                logger.warning("reprise: skipped newer checkpoints: %s", self.skipped)

    # ---- saving -----------------------------------------------------------------------------

    def save(self, step, state, every=None, force=False, metadata=None):
        """Takes a snapshot as `step`; returns a Save, or None when this step is not due or failed.

        `every` saves only multiples of it, unless `force`. `metadata` is a JSON-able dict.
        """
        if not hasattr(step, "__index__") or not 0 <= step < 1 << 63:
            raise InvalidArgument(f"step {step!r}: a step is a whole number from 0 on")
        step = operator.index(step)
        if every is not None and every < 1:
            raise InvalidArgument(f"every={every!r}: save every so many steps, 1 or more")
        if every is not None and not force and step % every != 0:
            return None
        last = self._last
        if last is not None and last.step == step and not last.failed:
            return last  # the loop's last save and the one after the loop are the same
        started = time.perf_counter()
        self._collect()
        if self._undefined:
            raise RepriseError(f"this state must not be saved: {self._undefined}", 9)
        text = json.dumps(metadata) if metadata is not None else None
        items, pieces = self._describe(state)
        try:
            self._register()
            keep_last, keep_every = (self._keep.last, self._keep.every or 0) if self._keep else (0, 0)
            handle = self._client.save(step, pieces, text, DURABILITIES[self._durability],
                                       keep_last, keep_every)
        except (InvalidArgument, TypeError):
            raise
        except RepriseError as error:
            self._report(f"step {step} was not saved: {error}", error)
            return None
        save = Save(handle, step, items, (time.perf_counter() - started) * 1e3)
        self._pending.append(save)
        self._last = save
        return save

    def _describe(self, state):
        """Describes `state` as (items, PieceArray); both are reused while nothing moved."""
        walk = self._walk_of(state)
        guarded = _fence.guarded_parameters([o for _, o in walk.optimizers])
        for item in walk.tensors:
            observed = is_optimizer(item.owner) and _fence.is_observed(item.owner)
            item.lazy = observed or id(item.source) in guarded
        values = [(aux, self._encoded(aux)) for aux in walk.aux]
        places = [address_and_bytes(item) for item in walk.tensors]
        for item in walk.tensors:
            item.lazy = item.lazy and item.copied_from is None
        signature = (tuple((item.name, place, item.lazy, item.scope, tuple(item.global_shape),
                            item.dtype, tuple(item.boxes))
                           for item, place in zip(walk.tensors, places)),
                     tuple((aux.name, len(raw), aux.policy) for aux, raw in values))
        if self._cache is None or self._cache[0] != signature:
            self._cache = (signature, _pieces_of(walk.tensors, places, values))
        pieces = self._cache[1]
        for index, (_, raw) in enumerate(values):
            pieces.set_bytes(len(walk.tensors) + index, raw)
        return walk.tensors, pieces

    def _walk_of(self, state):
        signature = signature_of(state) if isinstance(state, dict) else None
        if self._walk is not None and self._walk[0] == signature and self._walk[1].refresh():
            return self._walk[1]
        self._walk = (signature, Walk(state, self._rank_scope))
        self._encodings = {}
        return self._walk[1]

    def _encoded(self, aux):
        """The bytes of an auxiliary value; those of the last save when it tells it has not changed."""
        fingerprint = aux.fingerprint() if aux.fingerprint is not None else None
        known = self._encodings.get(aux.name)
        if known is not None and fingerprint is not None and known[0] == fingerprint:
            return known[1]
        raw = _aux.encode(aux.get(), aux.name)
        self._encodings[aux.name] = (fingerprint, raw)
        return raw

    def wait_before_mutation(self):
        """The fence: returns when no snapshot reads the state any more; a copy that makes no
        progress for stall_budget is given up."""
        for save in self._pending:
            try:
                if save._items is not None:
                    save.wait_copied()  # ends after stall_budget without progress
            except RepriseError as error:
                self._report(f"step {save.step}: {error}", error, raising=False)

    def _collect(self):
        """Drops finished saves and tells of failed ones; warns when nothing committed for long."""
        still = []
        for save in self._pending:
            if save.committed:
                self._last_good = time.monotonic()
            elif save.failed:
                status = save.status()
                self._report(f"step {save.step} was not saved: {status['error']}",
                             SaveAborted(status["error"]))
            else:
                still.append(save)
        self._pending = still
        if self._unprotected_for is not None:
            quiet = time.monotonic() - self._last_good
            if quiet > self._unprotected_for:
                self._report(f"nothing has been committed for {quiet:.0f} s",
                             DeadlineExceeded(f"nothing has been committed for {quiet:.0f} s"))

    def _report(self, text, error, raising=True):
        if raising and self._on_error == "raise":
            raise error
        if isinstance(error, Fenced):
            text += " (a newer run of this job exists: this process should end)"
        logger.warning("reprise: rank %d: %s", self.rank, text)

    # ---- ending -----------------------------------------------------------------------------

    def close(self, timeout=120.0):
        """Waits for saves in flight to reach their durability, then disconnects.

        Raises when one did not: an uncaught error makes the process end with a non-zero status.
        The daemon goes on with what is sealed in any case.
        """
        if self._client is None:
            return
        client, self._client = self._client, None
        self._at_exit.detach()
        self._pending = []
        client.close(timeout)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            self.close()
        elif self._client is not None:
            client, self._client = self._client, None
            self._at_exit.detach()
            client.close(0)


def _pieces_of(tensors, places, values):
    pieces = _native.PieceArray(len(tensors) + len(values))
    for index, (item, (address, size)) in enumerate(zip(tensors, places)):
        pieces.set(index, name=item.name, dtype=item.dtype, scope=item.scope, policy=item.policy,
                   flags=0 if item.lazy else _native.PIECE_VOLATILE, shape=item.global_shape,
                   boxes=item.boxes, data=address, data_bytes=size)
    for index, (aux, raw) in enumerate(values):
        pieces.set(len(tensors) + index, name=aux.name, dtype=2, scope=SCOPE_RANK,
                   policy=aux.policy, flags=_native.PIECE_AUX | _native.PIECE_VOLATILE,
                   shape=(len(raw),), boxes=[((0,), (len(raw),))], data=None, data_bytes=len(raw))
    return pieces


class _ExitHandler:
    def __init__(self, reference):
        self._reference = reference
        atexit.register(self)

    def __call__(self):
        checkpointer = self._reference()
        if checkpointer is not None and checkpointer._client is not None:
            try:
                checkpointer.close()
            except RepriseError as error:
                logger.error("reprise: the last save did not reach its durability: %s", error)

    def detach(self):
        atexit.unregister(self)


def _close_at_exit(checkpointer):
    return _ExitHandler(weakref.ref(checkpointer))
