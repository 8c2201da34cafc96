"""Fills training state from a reader: optimizer state is materialised, everything is checked before
a byte moves, tensors are read in place, auxiliary values are applied last."""

from __future__ import annotations

import ctypes
import json
import logging

from . import _aux, _native
from ._state import (POLICY_BROADCAST, POLICY_DROP, POLICY_NAMES, SCOPE_RANK, Walk, address_and_bytes,
                     is_tensor, torch_dtype, _DTYPE_NAMES)

logger = logging.getLogger("reprise")


class Refused(Exception):
    """The state and the checkpoint do not fit; nothing was touched."""


def fill(reader, state, *, rank, world, strict, timeout, rename=None, rank_scope=()):
    """Fills `state` and returns the checkpoint's step."""
    content = json.loads(reader.items_json())
    saved = {item["name"]: item for item in content["items"]}
    same_world = content["world"] == world
    walk = Walk(state, rank_scope)
    rename = rename or (lambda name: name)
    groups = _read_groups(reader, walk, saved, rename, rank, same_world, timeout, strict)
    for key, optimizer in walk.optimizers:
        if key in groups:
            _materialise(walk, key, optimizer, groups[key], saved, rename)
    walk = Walk(state, rank_scope)
    tensors, aux = _match(walk, saved, rename, rank, same_world, strict)
    _read_tensors(reader, tensors, timeout)
    values = _read_aux(reader, aux, timeout)
    for (item, _), value in zip(aux, values):
        if item.put is not None:
            item.put(value)
    for key, optimizer in walk.optimizers:
        if key in groups:
            _apply_groups(walk, key, optimizer, groups[key])
    return content["step"]


def _source_of(item, saved, rank, same_world):
    """Which rank's auxiliary value to take; None to leave it out."""
    ranks = saved["ranks"]
    if same_world and rank in ranks:
        return rank
    policy = POLICY_NAMES.get(saved.get("policy"), POLICY_BROADCAST)
    if policy == POLICY_DROP:
        logger.warning("reprise: %s was saved by a different world and is left as it is", item.name)
        return None
    if policy == POLICY_BROADCAST:
        return ranks[0]
    raise Refused(f"{item.name} belongs to its rank (policy {saved.get('policy')}) and the world "
                  "has changed: restore with the saved world, or leave it out of the state")


def _read_groups(reader, walk, saved, rename, rank, same_world, timeout, strict):
    wanted = []
    for key, _ in walk.optimizers:
        item = next(aux for aux in walk.aux if aux.name == f"{key}.groups")
        found = saved.get(rename(item.name))
        if found is None:
            if strict:
                raise Refused(f"the checkpoint has no state of optimizer {key!r} "
                              "(strict=False leaves it as it is)")
            continue
        # After a change of world any rank may own any parameter: what all of them know is needed.
        ranks = [rank] if same_world and rank in found["ranks"] else found["ranks"]
        wanted += [(key, item, found, source) for source in ranks]
    values = _read_aux(reader, [(item, (found, source)) for _, item, found, source in wanted],
                       timeout)
    groups = {}
    for (key, *_), value in zip(wanted, values):
        merged = groups.setdefault(key, {"groups": [], "values": {}, "devices": {}})
        merged["groups"] += value["groups"]
        merged["values"].update(value["values"])
        merged["devices"].update(value["devices"])
    return groups


def _materialise(walk, key, optimizer, value, saved, rename):
    """Makes the state tensors that the checkpoint has and the optimizer does not, zero-filled, with
    the saved dtype, the parameter's sharding and the saved device class."""
    import torch
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = walk.param_name(key, parameter)
            prefix = rename(f"{key}.state.{name}") + "."
            for state_key, device in value["devices"].get(name, {}).items():
                item = saved.get(prefix + state_key)
                if item is None or is_tensor(optimizer.state[parameter].get(state_key)):
                    continue
                dtype = torch_dtype(item["dtype"])
                if tuple(item["shape"]) == tuple(parameter.shape) and device == "param":
                    made = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
                else:
                    place = parameter.device if device == "param" else "cpu"
                    made = torch.zeros(item["shape"], dtype=dtype, device=place)
                optimizer.state[parameter][state_key] = made


def _match(walk, saved, rename, rank, same_world, strict):
    """Pairs items with what was saved; Refused lists everything that does not fit."""
    missing, mismatched, tensors, aux = [], [], [], []
    used = set()
    for item in walk.tensors:
        found = saved.get(rename(item.name))
        if found is None or found["aux"]:
            missing.append(item.name)
            continue
        used.add(found["name"])
        found = _own_part(found, rank)
        if tuple(found["shape"]) != tuple(item.global_shape):
            mismatched.append(f"{item.name}: saved {tuple(found['shape'])}, "
                              f"state has {tuple(item.global_shape)}")
        elif _DTYPE_NAMES[found["dtype"]] != item.dtype:
            mismatched.append(f"{item.name}: saved as {found['dtype']}, state has another dtype")
        else:
            tensors.append((item, found))
    for item in walk.aux:
        found = saved.get(rename(item.name))
        if found is None or not found["aux"]:
            missing.append(item.name)
            continue
        used.add(found["name"])
        source = _source_of(item, found, rank, same_world)
        if source is not None:
            aux.append((item, (found, source)))
    # Other ranks may save other names (pipeline stages): only what this rank saved is its to take.
    mine = {name for name, item in saved.items() if not same_world or rank in item["ranks"]}
    unexpected = sorted(mine - used) if same_world else []
    lines = []
    if strict and missing:
        lines.append("not in the checkpoint: " + _some(missing))
    if strict and unexpected:
        lines.append("in the checkpoint but not in the state: " + _some(unexpected))
    if mismatched:
        lines.append("different: " + _some(mismatched))
    if lines:
        raise Refused("the state does not fit the checkpoint (nothing was read)\n  "
                      + "\n  ".join(lines))
    return tensors, aux


def _own_part(found, rank):
    """Rank-scoped items may differ in shape and type from rank to rank."""
    if "shapes" not in found or rank not in found["ranks"]:
        return found
    index = found["ranks"].index(rank)
    return {**found, "shape": found["shapes"][index], "dtype": found["dtypes"][index]}


def _some(names):
    shown = ", ".join(names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_tensors(reader, tensors, timeout):
    if not tensors:
        return
    pieces = _native.PieceArray(len(tensors))
    for index, (item, found) in enumerate(tensors):
        _host_target(item)
        address, size = address_and_bytes(item)
        scope = {"global": 1, "replicated": 2, "rank": 3}[found["scope"]]
        pieces.set(index, name=found["name"], dtype=item.dtype, scope=scope, policy=item.policy,
                   flags=0, shape=item.global_shape, boxes=item.boxes, data=address,
                   data_bytes=size)
    reader.read(pieces, timeout)
    for item, _ in tensors:
        if item.copied_from is not None:
            item.copied_from.copy_(item.local) if is_tensor(item.local) else \
                item.copied_from.__setitem__(..., item.local)


def _host_target(item):
    """Tensors on a device are read into host memory first and copied from there."""
    if is_tensor(item.local) and item.local.device.type != "cpu":
        item.copied_from = item.local
        item.local = item.local.cpu().contiguous()


def _read_aux(reader, wanted, timeout):
    if not wanted:
        return []
    pieces = _native.PieceArray(len(wanted))
    buffers = []
    for index, (_, (found, source)) in enumerate(wanted):
        size = found["sizes"][found["ranks"].index(source)] if "sizes" in found else found["bytes"]
        buffer = ctypes.create_string_buffer(max(size, 1))
        buffers.append((buffer, size))
        pieces.set(index, name=found["name"], dtype=2, scope=SCOPE_RANK,
                   policy=POLICY_BROADCAST, flags=_native.PIECE_AUX, shape=(size,),
                   boxes=[((0,), (size,))], data=ctypes.addressof(buffer), data_bytes=size,
                   source_rank=source)
    reader.read(pieces, timeout)
    return [_aux.decode(buffer.raw[:size]) for buffer, size in buffers]


def _apply_groups(walk, key, optimizer, value):
    by_name = {name: group for group in value["groups"] for name in group["params"]}
    for group in optimizer.param_groups:
        names = [walk.param_name(key, parameter) for parameter in group["params"]]
        for name in names:
            if name in by_name:
                for option, setting in by_name[name]["options"].items():
                    group[option] = setting
                break
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            extra = value["values"].get(walk.param_name(key, parameter))
            if extra:
                optimizer.state[parameter].update(extra)
