"""Walks training state into named items: tensors (with their place in the global tensor) and
auxiliary values. Used by saving (what to copy) and restoring (what to fill).

Names: parameters and buffers are "<key>.<fully qualified name>", optimizer state is
"<key>.state.<parameter name>.<state key>", its groups are one auxiliary item "<key>.groups"; other
objects with state_dict() are one auxiliary item "<key>". torch is imported only when its objects are
met.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from ._errors import InvalidArgument

SCOPE_GLOBAL, SCOPE_REPLICATED, SCOPE_RANK = 1, 2, 3
POLICY_SAME_WORLD, POLICY_BROADCAST, POLICY_SPLIT, POLICY_DROP = 1, 2, 3, 4
POLICY_NAMES = {"same_world": 1, "broadcast": 2, "split": 3, "drop": 4}

_TORCH_DTYPES = {
    "bool": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "uint32": 6, "int32": 7,
    "uint64": 8, "int64": 9, "float16": 10, "bfloat16": 11, "float32": 12, "float64": 13,
    "float8_e4m3fn": 14, "float8_e5m2": 15, "float8_e8m0fnu": 16, "complex64": 17,
    "complex128": 18,
}
_DTYPE_TORCH = {number: name for name, number in _TORCH_DTYPES.items()}
_DTYPE_NAMES = {
    "BOOL": 1, "U8": 2, "I8": 3, "U16": 4, "I16": 5, "U32": 6, "I32": 7, "U64": 8, "I64": 9,
    "F16": 10, "BF16": 11, "F32": 12, "F64": 13, "F8_E4M3": 14, "F8_E5M2": 15, "F8_E8M0": 16,
    "C64": 17, "C128": 18,
}


def torch_dtype(name):
    """The torch dtype for a stored dtype name ("BF16")."""
    import torch
    return getattr(torch, _DTYPE_TORCH[_DTYPE_NAMES[name]])


@dataclasses.dataclass
class TensorItem:
    """One tensor of the state, as this process holds it."""

    name: str
    local: Any                 # plain torch tensor (this rank's part) or numpy array
    dtype: int
    global_shape: tuple
    boxes: list                # [(offsets, extents)]; one box, empty list for an empty part
    scope: int
    owner: Any = None          # the optimizer or module it belongs to
    lazy: bool = False         # may be copied behind the call: an observed optimizer guards it
    policy: int = POLICY_SAME_WORLD
    source: Any = None         # the tensor as the model or optimizer holds it
    copied_from: Any = None    # the original when `local` is a contiguous copy of it
    address: int = 0           # of the source's bytes when it was walked


@dataclasses.dataclass
class AuxItem:
    """One auxiliary value: `get` yields the plain value, `put` applies a restored one.

    `fingerprint`, when given, yields something comparable that is equal as long as `get` would yield
    the same (None: cannot tell), so that an unchanged value is not encoded again.
    """

    name: str
    get: Any
    put: Any
    policy: int = POLICY_BROADCAST
    owner: Any = None
    fingerprint: Any = None


def _is_torch(value, *path):
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kind = torch
    for part in path:
        kind = getattr(kind, part)
    return isinstance(value, kind)


def is_module(value):
    return _is_torch(value, "nn", "Module")


def is_optimizer(value):
    return _is_torch(value, "optim", "Optimizer")


def is_tensor(value):
    return _is_torch(value, "Tensor")


def is_dtensor(value):
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _is_numpy(value):
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _place_of(tensor, name):
    """(local tensor, global shape, boxes, scope) of a plain tensor or a DTensor."""
    if not is_dtensor(tensor):
        shape = tuple(tensor.shape)
        return tensor, shape, [((0,) * len(shape), shape)], SCOPE_REPLICATED
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    for placement in tensor.placements:
        if isinstance(placement, Partial):
            raise InvalidArgument(f"{name} has a Partial placement: reduce it before saving")
        if not isinstance(placement, (Shard, Replicate)):
            raise InvalidArgument(f"{name} has placement {placement}, which is not supported: "
                                  "use Shard or Replicate")
    shape = tuple(tensor.shape)
    extents, offsets = compute_local_shape_and_global_offset(shape, tensor.device_mesh,
                                                             tensor.placements)
    local = tensor.to_local()
    boxes = [(tuple(offsets), tuple(extents))] if local.numel() else []
    return local, shape, boxes, SCOPE_GLOBAL


def tensor_item(name, tensor, owner, scope=None):
    """A TensorItem for a torch tensor; InvalidArgument names what cannot be saved."""
    import torch
    if tensor.is_meta:
        raise InvalidArgument(f"{name} is a meta tensor: it has no bytes to save or fill")
    if tensor.is_sparse or tensor.layout != torch.strided:
        raise InvalidArgument(f"{name} has layout {tensor.layout}: only strided tensors can be saved")
    if not is_dtensor(tensor) and hasattr(tensor, "__tensor_flatten__"):
        raise InvalidArgument(f"{name} is a {type(tensor).__name__}: save its inner tensors "
                              "(see __tensor_flatten__) as a dict")
    dtype = _TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise InvalidArgument(f"{name} has dtype {tensor.dtype}, which cannot be saved")
    local, shape, boxes, found = _place_of(tensor, name)
    if is_dtensor(local):
        raise InvalidArgument(f"{name} is a DTensor inside a DTensor, which is not supported")
    return TensorItem(name, local.detach(), dtype, shape, boxes, scope or found, owner,
                      source=tensor, address=_address_of(tensor))


def _numpy_item(name, array, owner, scope):
    numbers = {"bool": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "uint32": 6, "int32": 7,
               "uint64": 8, "int64": 9, "float16": 10, "float32": 12, "float64": 13,
               "complex64": 17, "complex128": 18}
    dtype = numbers.get(array.dtype.name)
    if dtype is None or array.dtype.byteorder == ">":
        raise InvalidArgument(f"{name} has numpy dtype {array.dtype}, which cannot be saved")
    shape = tuple(array.shape)
    return TensorItem(name, array, dtype, shape, [((0,) * len(shape), shape)],
                      SCOPE_REPLICATED if scope is None else scope,
                      owner, source=array, address=_address_of(array))


def signature_of(state):
    """Equal for two calls when a Walk made at the first still describes the state at the second.

    Identities of everything that a Walk finds; it keeps those objects alive, so that none can be
    mistaken for a later one. Costs microseconds where a Walk costs milliseconds.
    """
    ids = []
    for key, value in state.items():
        ids.append(key)
        _sign(value, ids)
    return ids


def _sign(value, ids):
    ids.append(id(value))
    if is_module(value):
        for module in value.modules():
            ids.extend(map(id, module._parameters.values()))
            ids.extend(map(id, module._buffers.values()))
    elif is_optimizer(value):
        for group in value.param_groups:
            ids.append(len(group["params"]))
            for parameter in group["params"]:
                ids.append(id(parameter))
                for name, part in value.state.get(parameter, {}).items():
                    ids.append(id(part) if is_tensor(part) else name)
    elif isinstance(value, dict):
        for name, part in value.items():
            ids.append(name)
            if is_tensor(part) or _is_numpy(part) or hasattr(part, "state_dict"):
                _sign(part, ids)


def _address_of(source):
    """Where the bytes of a tensor as the model holds it are now; a swapped .data shows here."""
    if _is_numpy(source):
        return source.ctypes.data
    return (source._local_tensor if is_dtensor(source) else source).data_ptr()


class Walk:
    """The items of one state, in a fixed order. `refresh` makes an older walk usable again."""

    def __init__(self, state, rank_scope=()):
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise InvalidArgument("state must be a dict with str keys, such as "
                                  '{"model": model, "optim": optimizer}')
        self.tensors = []
        self.aux = []
        self.optimizers = []       # (key, optimizer)
        self._rank_scope = rank_scope
        self._param_names = {}     # id(parameter) -> fully qualified name, unique in the state
        self._shared = []          # keeps tensors alive whose identity signature_of relies on
        self._seen = {}            # (storage address, offset, shape) -> name: shared tensors
        named = [(key, name, parameter) for key, value in state.items() if is_module(value)
                 for name, parameter in value.named_parameters()]
        owners = {}
        for _, name, parameter in named:
            owners.setdefault(name, set()).add(id(parameter))
        for key, name, parameter in named:  # two modules may use one name: then both are qualified
            unique = name if len(owners[name]) == 1 else f"{key}.{name}"
            self._param_names.setdefault(id(parameter), unique)
        for key, value in state.items():
            self._visit(key, value)
        names = [item.name for item in (*self.tensors, *self.aux)]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidArgument(f"two items have the same name: {', '.join(twice[:5])}")

    def refresh(self):
        """True when every tensor still has its bytes where they were; copies are dropped."""
        for item in self.tensors:
            if item.copied_from is not None:
                item.local, item.copied_from = item.copied_from, None
        return all(_address_of(item.source) == item.address for item in self.tensors)

    def _visit(self, key, value):
        if is_module(value):
            self._module(key, value)
        elif is_optimizer(value):
            self.optimizers.append((key, value))
            self._optimizer(key, value)
        elif is_tensor(value):
            self._tensor(key, value, None)
        elif _is_numpy(value):
            self.tensors.append(_numpy_item(key, value, None, self._scope(key)))
        elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            policy = POLICY_NAMES[getattr(value, "reprise_world_policy", "broadcast")]
            self.aux.append(AuxItem(key, value.state_dict, value.load_state_dict, policy, value))
        elif isinstance(value, dict):
            self._dict(key, value)
        elif isinstance(value, (bytes, str, int, float, bool, list, tuple, type(None))):
            raise InvalidArgument(
                f'state["{key}"] is a plain {type(value).__name__}, which restore() cannot fill in '
                "place: put it into a dict, or pass it as metadata=")
        else:
            raise InvalidArgument(
                f'state["{key}"] is a {type(value).__qualname__} without state_dict() and '
                "load_state_dict(): Reprise cannot save or restore it")

    def _scope(self, name):
        from fnmatch import fnmatch
        return SCOPE_RANK if any(fnmatch(name, pattern) for pattern in self._rank_scope) else None

    def _tensor(self, name, tensor, owner):
        item = tensor_item(name, tensor, owner, self._scope(name))
        if item.local.numel():
            place = (item.local.data_ptr(), tuple(item.local.shape), item.local.stride())
            if place in self._seen:
                self._shared.append(tensor)
                return  # shared storage: stored once, under its first name
            self._seen[place] = name
        self.tensors.append(item)

    def _module(self, key, module):
        # What hooks and get_extra_state() make up is a value, not a tensor to be filled in place.
        held = {id(tensor) for part in module.modules()
                for tensor in (*part._parameters.values(), *part._buffers.values())}
        extra = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if is_tensor(value) and id(value) in held:
                self._tensor(f"{key}.{name}", value, module)
            else:
                extra[name] = value
        if extra:
            def put(saved, module=module):
                module.load_state_dict(saved, strict=False)

            def get(module=module, names=tuple(extra)):
                current = module.state_dict()
                return {name: current[name] for name in names}
            self.aux.append(AuxItem(f"{key}.extra_state", get, put, POLICY_BROADCAST, module))

    def param_name(self, key, parameter):
        name = self._param_names.get(id(parameter))
        if name is None:
            raise InvalidArgument(
                f'optimizer state["{key}"] holds a parameter that no module in the state has: put '
                "the module into the same state dict, so that its parameters have names")
        return name

    def _optimizer(self, key, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                base = f"{key}.state.{self.param_name(key, parameter)}"
                for state_key, value in optimizer.state.get(parameter, {}).items():
                    if is_tensor(value):
                        self._tensor(f"{base}.{state_key}", value, optimizer)
        self.aux.append(AuxItem(f"{key}.groups", lambda: self.groups_value(key, optimizer), None,
                                POLICY_BROADCAST, optimizer,
                                fingerprint=lambda: _options_of(optimizer)))

    def groups_value(self, key, optimizer):
        """Options of the groups by parameter name, and what state each parameter has."""
        groups = []
        values = {}
        devices = {}
        for group in optimizer.param_groups:
            names = [self.param_name(key, parameter) for parameter in group["params"]]
            options = {k: v for k, v in group.items() if k != "params"}
            groups.append({"params": names, "options": options})
            for name, parameter in zip(names, group["params"]):
                for state_key, value in optimizer.state.get(parameter, {}).items():
                    if is_tensor(value):
                        on_parameter = value.device == parameter.device
                        devices.setdefault(name, {})[state_key] = ("param" if on_parameter
                                                                   else "cpu")
                    else:
                        values.setdefault(name, {})[state_key] = value
        return {"groups": groups, "values": values, "devices": devices}

    def _dict(self, key, tree):
        rest = {}
        for name, value in tree.items():
            if is_tensor(value):
                self._tensor(f"{key}.{name}", value, tree)
            elif _is_numpy(value):
                path = f"{key}.{name}"
                self.tensors.append(_numpy_item(path, value, tree, self._scope(path)))
            elif is_module(value) or is_optimizer(value) or hasattr(value, "state_dict"):
                self._visit(f"{key}.{name}", value)
            else:
                rest[name] = value
        if rest or not tree:
            def put(saved, tree=tree):
                tree.update(saved)
            self.aux.append(AuxItem(key, lambda: {name: tree[name] for name in rest}, put,
                                    POLICY_BROADCAST, tree))


def _options_of(optimizer):
    """The groups' options, when comparing them can tell that nothing has changed; else None."""
    plain = (bool, int, float, str, type(None))
    options = []
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name != "params":
                parts = value if isinstance(value, tuple) else (value,)
                if not all(isinstance(part, plain) for part in parts):
                    return None
                options.append((name, value))
    for state in optimizer.state.values():
        if any(not is_tensor(value) for value in state.values()):
            return None
    return options


def address_and_bytes(item):
    """Makes `item.local` contiguous host memory and yields its address and size in bytes."""
    local = item.local
    if is_tensor(local) and local.device.type != "cpu":
        item.copied_from, item.local = local, local.cpu()
        local = item.local
    if _is_numpy(local):
        if not local.flags.c_contiguous:
            item.copied_from, item.local = local, local.copy(order="C")
        return item.local.ctypes.data, item.local.nbytes
    if not local.is_contiguous():
        item.copied_from, item.local = local if item.copied_from is None else item.copied_from, local.contiguous()
    return item.local.data_ptr(), item.local.numel() * item.local.element_size()
