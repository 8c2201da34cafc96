"""ctypes binding of libreprise's C interface (include/reprise/c.h).

One Python object per C handle; every call that can block releases the GIL (ctypes does that for any
foreign call). The structures mirror c.h field for field; `struct_size` guards against a mismatch.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading
from ctypes import (POINTER, Structure, byref, c_char_p, c_double, c_int32, c_int64, c_size_t,
                    c_uint8, c_uint32, c_uint64, c_void_p)

from ._errors import CODE_OK, error_for

PIECE_AUX = 1
PIECE_VOLATILE = 2
PIECE_FLAT = 4


class Options(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("uri", c_char_p), ("rank", c_uint32), ("world", c_uint32),
        ("launcher", c_char_p), ("socket", c_char_p), ("daemon", c_char_p), ("takeover", c_int32),
        ("copy_threads", c_uint32), ("connect_timeout_s", c_double), ("stall_budget_s", c_double),
    ]


class Run(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("has_checkpoint", c_int32), ("epoch", c_uint64),
        ("resume_epoch", c_uint64), ("resume_step", c_uint64), ("skipped", c_char_p),
    ]


class Piece(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("dtype", c_uint8), ("scope", c_uint8),
        ("world_policy", c_uint8), ("flags", c_uint8), ("name", c_char_p), ("ndim", c_uint32),
        ("box_count", c_uint32), ("global_shape", POINTER(c_uint64)), ("boxes", POINTER(c_uint64)),
        ("flat_begin", c_uint64), ("flat_end", c_uint64), ("data", c_void_p),
        ("data_bytes", c_uint64), ("source_rank", c_int32),
    ]


class SaveOptions(Structure):
    _fields_ = [("struct_size", c_uint32), ("metadata", c_char_p), ("durability", c_uint8),
                ("keep_last", c_uint32), ("keep_every", c_uint64)]


class SaveState(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("phase", c_uint8), ("code", c_int32), ("step", c_uint64),
        ("bytes", c_uint64), ("start_ms", c_double), ("copied_ms", c_double),
        ("local_ms", c_double), ("committed_ms", c_double),
    ]


class ReadStats(Structure):
    _fields_ = [
        ("struct_size", c_uint32), ("bytes_slab", c_uint64), ("bytes_peer", c_uint64),
        ("bytes_ram", c_uint64), ("bytes_nvme", c_uint64), ("bytes_object", c_uint64),
        ("chunks_corrupt", c_uint64), ("plan_ms", c_double), ("read_ms", c_double),
    ]


_PROTOTYPES = {
    "reprise_version": (c_char_p, []),
    "reprise_code_name": (c_char_p, [c_int32]),
    "reprise_open": (c_int32, [POINTER(Options), POINTER(c_void_p)]),
    "reprise_error": (c_char_p, [c_void_p]),
    "reprise_close": (c_int32, [c_void_p, c_double, c_char_p, c_size_t]),
    "reprise_register": (c_int32, [c_void_p, c_double, POINTER(Run)]),
    "reprise_save_start": (c_int32, [c_void_p, c_uint64, POINTER(Piece), c_size_t,
                                     POINTER(SaveOptions), POINTER(c_void_p)]),
    "reprise_save_wait_copied": (c_int32, [c_void_p, c_double]),
    "reprise_save_wait": (c_int32, [c_void_p, c_uint8, c_double]),
    "reprise_save_abort": (None, [c_void_p, c_char_p]),
    "reprise_save_error": (c_char_p, [c_void_p]),
    "reprise_save_get_state": (None, [c_void_p, POINTER(SaveState)]),
    "reprise_save_release": (None, [c_void_p]),
    "reprise_skip": (c_int32, [c_void_p, c_uint64, c_char_p]),
    "reprise_reader_open": (c_int32, [c_void_p, c_int64, c_int64, c_double, POINTER(c_void_p)]),
    "reprise_reader_items": (c_char_p, [c_void_p]),
    "reprise_reader_read": (c_int32, [c_void_p, POINTER(Piece), c_size_t, c_double]),
    "reprise_reader_get_stats": (None, [c_void_p, POINTER(ReadStats)]),
    "reprise_reader_error": (c_char_p, [c_void_p]),
    "reprise_reader_close": (None, [c_void_p]),
}

_lock = threading.Lock()
_library = None


def _candidates():
    if os.environ.get("REPRISE_LIBRARY"):
        yield os.environ["REPRISE_LIBRARY"]
        return
    here = pathlib.Path(__file__).resolve().parent
    yield str(here / "libreprise.so")  # inside a wheel
    for parent in here.parents:  # inside a source tree
        built = parent / "build" / "release" / "lib" / "libreprise.so"
        if built.exists():
            yield str(built)
            break
    yield "libreprise.so"


def library():
    """The loaded libreprise; raises ImportError that lists where it was looked for."""
    global _library
    with _lock:
        if _library is None:
            tried = []
            for path in _candidates():
                try:
                    loaded = ctypes.CDLL(path)
                except OSError as error:
                    tried.append(f"{path}: {error}")
                    continue
                for name, (result, arguments) in _PROTOTYPES.items():
                    function = getattr(loaded, name)
                    function.restype = result
                    function.argtypes = arguments
                _library = loaded
                break
            else:
                raise ImportError("libreprise.so was not found (set REPRISE_LIBRARY):\n  "
                                  + "\n  ".join(tried))
        return _library


def _text(raw):
    return (raw or b"").decode("utf-8", "replace")


def _bytes(text):
    return None if text is None else str(text).encode()


class PieceArray:
    """A C array of pieces. Keeps every buffer that the array points to alive."""

    def __init__(self, count):
        self.array = (Piece * count)()
        self.count = count
        self._keep = []
        self._bytes = {}

    def set(self, index, *, name, dtype, scope, policy, flags, shape, boxes, data, data_bytes,
            flat=None, source_rank=-1):
        """`boxes` is a list of (offsets, extents); `data` an address; `flat` a half-open range."""
        piece = self.array[index]
        ndim = len(shape)
        raw_name = name.encode()
        raw_shape = (c_uint64 * max(ndim, 1))(*shape)
        numbers = [n for offsets, extents in boxes for n in (*offsets, *extents)]
        raw_boxes = (c_uint64 * max(len(numbers), 1))(*numbers)
        self._keep.append((raw_name, raw_shape, raw_boxes))
        piece.struct_size = ctypes.sizeof(Piece)
        piece.dtype = dtype
        piece.scope = scope
        piece.world_policy = policy
        piece.flags = flags
        piece.name = raw_name
        piece.ndim = ndim
        piece.box_count = len(boxes)
        piece.global_shape = raw_shape
        piece.boxes = raw_boxes
        piece.flat_begin, piece.flat_end = flat or (0, 0)
        piece.data = data
        piece.data_bytes = data_bytes
        piece.source_rank = source_rank

    def set_bytes(self, index, raw):
        """Points piece `index` at the bytes object `raw`, kept alive here."""
        self._bytes[index] = raw
        self.array[index].data = ctypes.cast(c_char_p(raw), c_void_p).value


class Client:
    """A connection to a node daemon (or to an embedded one)."""

    def __init__(self, uri, *, rank, world, launcher=None, socket=None, daemon=None,
                 takeover=False, copy_threads=0, connect_timeout=30.0, stall_budget=1.0):
        self._lib = library()
        self._handle = c_void_p()
        options = Options(ctypes.sizeof(Options), _bytes(uri), rank, world, _bytes(launcher),
                          _bytes(socket), _bytes(daemon), int(takeover), copy_threads,
                          connect_timeout, stall_budget)
        code = self._lib.reprise_open(byref(options), byref(self._handle))
        if code != CODE_OK:
            message = _text(self._lib.reprise_error(self._handle))
            self.close(0)
            raise error_for(code, message)

    def _check(self, code):
        if code != CODE_OK:
            raise error_for(code, _text(self._lib.reprise_error(self._handle)))

    def register(self, timeout):
        run = Run(struct_size=ctypes.sizeof(Run))
        self._check(self._lib.reprise_register(self._handle, timeout, byref(run)))
        resume = (run.resume_epoch, run.resume_step) if run.has_checkpoint else None
        return run.epoch, resume, _text(run.skipped)

    def save(self, step, pieces, metadata, durability, keep_last=0, keep_every=0):
        options = SaveOptions(ctypes.sizeof(SaveOptions), _bytes(metadata), durability, keep_last,
                              keep_every)
        handle = c_void_p()
        self._check(self._lib.reprise_save_start(self._handle, step, pieces.array, pieces.count,
                                                 byref(options), byref(handle)))
        return SaveHandle(self._lib, handle)

    def skip(self, step, reason):
        self._check(self._lib.reprise_skip(self._handle, step, _bytes(reason)))

    def open_reader(self, step=-1, epoch=-1, timeout=60.0):
        handle = c_void_p()
        self._check(self._lib.reprise_reader_open(self._handle, step, epoch, timeout,
                                                  byref(handle)))
        return Reader(self._lib, handle)

    def close(self, timeout):
        """Frees the handle; raises when a save did not reach its durability in time."""
        if not self._handle:
            return
        text = ctypes.create_string_buffer(2048)
        code = self._lib.reprise_close(self._handle, timeout, text, len(text))
        self._handle = c_void_p()
        if code != CODE_OK and timeout != 0:
            raise error_for(code, _text(text.value))


class SaveHandle:
    def __init__(self, lib, handle):
        self._lib = lib
        self._handle = handle

    def _check(self, code):
        if code != CODE_OK:
            raise error_for(code, _text(self._lib.reprise_save_error(self._handle)))

    def wait_copied(self, timeout):
        self._check(self._lib.reprise_save_wait_copied(self._handle, timeout))

    def wait(self, durability, timeout):
        self._check(self._lib.reprise_save_wait(self._handle, durability, timeout))

    def abort(self, reason):
        self._lib.reprise_save_abort(self._handle, _bytes(reason))

    def state(self):
        state = SaveState(struct_size=ctypes.sizeof(SaveState))
        self._lib.reprise_save_get_state(self._handle, byref(state))
        return state

    def error(self):
        return _text(self._lib.reprise_save_error(self._handle))

    def __del__(self):
        if self._handle:
            self._lib.reprise_save_release(self._handle)


class Reader:
    def __init__(self, lib, handle):
        self._lib = lib
        self._handle = handle

    def items_json(self):
        return _text(self._lib.reprise_reader_items(self._handle))

    def read(self, pieces, timeout):
        code = self._lib.reprise_reader_read(self._handle, pieces.array, pieces.count, timeout)
        if code != CODE_OK:
            raise error_for(code, _text(self._lib.reprise_reader_error(self._handle)))

    def stats(self):
        stats = ReadStats(struct_size=ctypes.sizeof(ReadStats))
        self._lib.reprise_reader_get_stats(self._handle, byref(stats))
        return {name: getattr(stats, name) for name, _ in ReadStats._fields_[1:]}

    def close(self):
        if self._handle:
            self._lib.reprise_reader_close(self._handle)
            self._handle = c_void_p()
