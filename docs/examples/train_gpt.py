"""One rank of a small character-level GPT, sharded with FSDP2, that saves and resumes with Reprise.

Started once per rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set (torchrun does that, and so
does demo.py). Everything that decides the outcome is in the checkpoint: parameters, Adam's moments,
the random number generators (dropout) and the position in the data. A run that was killed and resumed
therefore ends with exactly the same bits as one that was not.

    RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
        python train_gpt.py --uri file:///tmp/gpt --steps 20 --every 5
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
import sysconfig
import time

STARTED = time.monotonic()

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

import reprise

IMPORTED = time.monotonic()
CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY = 64, 512, 8, 7, 256


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).split(WIDTH, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(2 * CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Text:
    """Random windows of the Python standard library's sources; each rank draws its own."""

    def __init__(self, rank, batch):
        library = pathlib.Path(sysconfig.get_paths()["stdlib"])
        sources = b"".join(path.read_bytes() for path in sorted(library.glob("*.py"))[:120])
        self.data = torch.frombuffer(bytearray(sources), dtype=torch.uint8).long()
        self.generator = torch.Generator().manual_seed(1000 + rank)
        self.batch = batch
        self.position = 0

    def next(self):
        starts = torch.randint(len(self.data) - CONTEXT - 1, (self.batch,),
                               generator=self.generator)
        self.position += self.batch
        windows = torch.stack([self.data[s:s + CONTEXT + 1] for s in starts])
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self):
        return {"generator": self.generator.get_state(), "position": self.position}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.position = state["position"]


def build(rank):
    torch.manual_seed(7)  # the same initial parameters on every rank
    model = Gpt()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # gloo has no premultiplied sum
            module.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    torch.manual_seed(100 + rank)  # dropout differs between ranks
    return model, optimizer


def digest_of(model, optimizer, text):
    """One SHA-256 over everything this rank holds at the end."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.to_local().detach().contiguous().numpy().tobytes())
        for key, value in sorted(optimizer.state[parameter].items()):
            local = value.to_local() if hasattr(value, "to_local") else value
            digest.update(key.encode() + local.contiguous().numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(text.generator.get_state().numpy().tobytes() + str(text.position).encode())
    return digest.hexdigest()


class Report:
    """JSON lines for the launcher: what happened when, on this rank."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, event, **values):
        line = {"t": time.time(), "rank": self.rank, "event": event, **values}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def report_saves(report, saves):
    """Tells of saves that have ended since the last call."""
    for save in list(saves):
        if save.committed or save.failed:
            report("save", **save.status())
            saves.remove(save)


def train(arguments, rank, report):
    model, optimizer = build(rank)
    text = Text(rank, arguments.batch)
    state = {"model": model, "optim": optimizer, "text": text, "rng": reprise.rng()}
    checkpointer, start, saves = None, 0, []
    if arguments.uri:
        text.reprise_world_policy = "same_world"
        checkpointer = reprise.Checkpointer(arguments.uri, socket=arguments.socket)
        began = time.monotonic()
        start = checkpointer.restore(state) or 0
        report("restored", step=start, seconds=time.monotonic() - began, epoch=checkpointer.epoch,
               stats=checkpointer.restore_stats)
    for step in range(start + 1, arguments.steps + 1):
        began = time.monotonic()
        tokens, targets = text.next()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report("step", step=step, loss=loss.item(), ms=(time.monotonic() - began) * 1e3)
        if checkpointer is not None:
            save = checkpointer.save(step, state, every=arguments.every,
                                     force=step == arguments.steps, metadata={"loss": loss.item()})
            if save is not None:
                saves.append(save)
                report("save_started", step=step, ms=save.blocked_ms)
            report_saves(report, saves)
    if checkpointer is not None:
        for save in saves:
            save.wait(timeout=120)
        report_saves(report, saves)
        checkpointer.close()
    elements = sum(parameter.numel() for parameter in model.parameters())
    report("done", digest=digest_of(model, optimizer, text), state_bytes=elements * 3 * 4,
           loss=loss.item() if start < arguments.steps else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", help="reprise://TENANT/JOB or file:///DIR; none: do not save")
    parser.add_argument("--socket", help="Unix socket of this host's node daemon")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    report = Report(rank)
    began = time.monotonic()
    dist.init_process_group("gloo")
    report("ready", import_s=IMPORTED - STARTED, rendezvous_s=time.monotonic() - began)
    torch.use_deterministic_algorithms(True)
    train(arguments, rank, report)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
