"""Auxiliary values as bytes: a typed tree, never pickle (docs/format.md, "Auxiliary values").

Kinds: None, bool, int of any size, float, str, bytes, list, tuple, dict with int or str keys in
insertion order, numpy arrays, torch tensors (CPU), each told apart so that a value comes back as
exactly what it was. Anything else is refused by name.

Numbers have fixed width and the whole is padded, so that a value that only counts keeps its size and
the layout of a shard stays the same from save to save.

Grammar, little-endian:
  item   = magic:8 length:8 value zeros to a multiple of 512
  value  = tag:1 body
  N | T | F                         None, True, False
  q int:8 | i str                   int; decimal text when it does not fit 64 bits
  f double:8                        float
  s str | b str                     text (UTF-8), bytes
  l count:4 value*  | t count:4 value*
  d count:4 (value value)*          keys are ints or s
  a dtype:str ndim:1 dim:8* data    numpy array, C order; dtype as numpy's .str
  x dtype:str ndim:1 dim:8* data    torch tensor; dtype as the name after "torch."
  str    = length:8 bytes
"""

from __future__ import annotations

import struct

MAGIC = b"RPRAUX1\n"
_PADDING = 512
_DEPTH_MAX = 100


def encode(value, where="value"):
    """Bytes of `value`; TypeError names the first part that is no plain value."""
    out = []
    _encode(value, out, where, 0)
    body = b"".join(out)
    size = len(MAGIC) + 8 + len(body)
    return MAGIC + struct.pack("<Q", len(body)) + body + bytes(-size % _PADDING)


def _string(tag, raw):
    return tag + struct.pack("<Q", len(raw)) + raw


def _encode(value, out, where, depth):
    if depth > _DEPTH_MAX:
        raise TypeError(f"{where} is nested deeper than {_DEPTH_MAX} levels")
    kind = type(value)
    if value is None:
        out.append(b"N")
    elif kind is bool:
        out.append(b"T" if value else b"F")
    elif kind is int:
        fits = -(1 << 63) <= value < 1 << 63
        out.append(b"q" + struct.pack("<q", value) if fits else _string(b"i", str(value).encode()))
    elif kind is float:
        out.append(b"f" + struct.pack("<d", value))
    elif kind is str:
        out.append(_string(b"s", value.encode("utf-8", "surrogatepass")))
    elif kind in (bytes, bytearray, memoryview):
        out.append(_string(b"b", bytes(value)))
    elif kind in (list, tuple):
        out.append((b"l" if kind is list else b"t") + struct.pack("<I", len(value)))
        for index, item in enumerate(value):
            _encode(item, out, f"{where}[{index}]", depth + 1)
    elif isinstance(value, dict):
        out.append(b"d" + struct.pack("<I", len(value)))
        for key, item in value.items():
            if type(key) not in (int, str):
                raise TypeError(f"{where} has a key of type {type(key).__name__}: "
                                "keys must be int or str")
            _encode(key, out, where, depth + 1)
            _encode(item, out, f"{where}[{key!r}]", depth + 1)
    else:
        _encode_array(value, out, where, depth)


def _encode_array(value, out, where, depth):
    module = type(value).__module__.split(".")[0]
    if module == "numpy":
        import numpy
        if isinstance(value, numpy.generic):  # a numpy scalar is the Python value it stands for
            _encode(value.item(), out, where, depth)
            return
        if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            data = numpy.ascontiguousarray(value).tobytes()
            out.append(_array(b"a", value.dtype.str, value.shape, data))
            return
    if module == "torch":
        import torch
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous()
            data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
            out.append(_array(b"x", str(plain.dtype).removeprefix("torch."), plain.shape, data))
            return
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}: auxiliary state may "
        "hold None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays and tensors. "
        "Give the object a state_dict() made of these")


def _array(tag, dtype, shape, data):
    head = _string(tag, dtype.encode()) + struct.pack("<B", len(shape))
    return head + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<Q", len(data)) + data


class _Cursor:
    def __init__(self, raw):
        self.raw = memoryview(raw)
        self.at = 0

    def take(self, count):
        if count > len(self.raw) - self.at:
            raise ValueError("auxiliary value is cut short")
        part = self.raw[self.at:self.at + count]
        self.at += count
        return part

    def number(self, code):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self):
        return bytes(self.take(self.number("Q")))


def decode(raw):
    """The value of `raw`; ValueError when it is malformed."""
    cursor = _Cursor(raw)
    if bytes(cursor.take(len(MAGIC))) != MAGIC:
        raise ValueError("not an auxiliary value of a known version")
    body = _Cursor(cursor.take(cursor.number("Q")))
    value = _decode(body, 0)
    if body.at != len(body.raw):
        raise ValueError("auxiliary value has bytes left over")
    if len(cursor.raw) != cursor.at + -cursor.at % _PADDING:
        raise ValueError("auxiliary value is cut short")
    return value


def _decode(cursor, depth):
    if depth > _DEPTH_MAX:
        raise ValueError("auxiliary value is nested too deep")
    tag = bytes(cursor.take(1))
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag]
    if tag == b"q":
        return cursor.number("q")
    if tag == b"i":
        return int(cursor.string())
    if tag == b"f":
        return cursor.number("d")
    if tag == b"s":
        return cursor.string().decode("utf-8", "surrogatepass")
    if tag == b"b":
        return cursor.string()
    if tag in (b"l", b"t"):
        items = [_decode(cursor, depth + 1) for _ in range(cursor.number("I"))]
        return items if tag == b"l" else tuple(items)
    if tag == b"d":
        return {_decode(cursor, depth + 1): _decode(cursor, depth + 1)
                for _ in range(cursor.number("I"))}
    if tag in (b"a", b"x"):
        return _decode_array(cursor, tag)
    raise ValueError(f"auxiliary value has an unknown tag {tag!r}")


def _decode_array(cursor, tag):
    dtype = cursor.string().decode()
    shape = tuple(cursor.number("Q") for _ in range(cursor.number("B")))
    data = cursor.string()
    if tag == b"a":
        import numpy
        return numpy.frombuffer(data, dtype=numpy.dtype(dtype)).reshape(shape).copy()
    import torch
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"auxiliary tensor has unknown dtype {dtype!r}")
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(kind).reshape(shape)
