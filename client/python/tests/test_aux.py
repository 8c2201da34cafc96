"""Auxiliary values come back as exactly what they were, and nothing else is accepted."""

import math
import random

import numpy
import pytest
import torch

from reprise import _aux


@pytest.mark.parametrize("value", [
    None, True, False, 0, -1, (1 << 63) - 1, -(1 << 63), 1 << 200, 0.1, math.inf, "", "grüße", b"",
    b"\0\xff", [], (), {}, [1, (2, [3])], {"a": {1: None, -2: "x"}}, random.getstate(),
    {"1": "str", 1: "int"},
])
def test_plain_values_keep_value_and_type(value):
    back = _aux.decode(_aux.encode(value))
    assert back == value and repr(back) == repr(value)


def test_arrays_and_tensors_keep_dtype_shape_and_bits():
    value = {"n": numpy.arange(6, dtype=numpy.int16).reshape(2, 3), "z": numpy.zeros((0, 4)),
             "t": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), "s": torch.tensor(3),
             "b": torch.tensor([True, False])}
    back = _aux.decode(_aux.encode(value))
    for key in ("n", "z"):
        assert back[key].dtype == value[key].dtype and back[key].shape == value[key].shape
        assert (back[key] == value[key]).all()
    for key in ("t", "s", "b"):
        assert back[key].dtype == value[key].dtype and torch.equal(back[key], value[key])


def test_size_does_not_depend_on_the_value_of_numbers():
    assert len(_aux.encode({"step": 1})) == len(_aux.encode({"step": 1 << 60}))


@pytest.mark.parametrize("value", [{1, 2}, {"a": object()}, {(1, 2): 3}, [lambda: 0]])
def test_other_objects_are_refused_by_name(value):
    with pytest.raises(TypeError, match="state"):
        _aux.encode(value, "state")


def test_damaged_bytes_are_refused_and_never_executed():
    raw = _aux.encode({"a": [1, "two", b"three"], "n": numpy.arange(3)})
    for cut in range(len(raw)):
        with pytest.raises(ValueError):
            _aux.decode(raw[:cut])
