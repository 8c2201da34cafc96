"""Drives rank_main.py processes from a test: commands out, answers in, every wait bounded."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]


class RankError(Exception):
    """A command failed in the rank; `kind` is the exception's class name there."""

    def __init__(self, answer):
        super().__init__(f"{answer['error']}: {answer['message']}")
        self.kind = answer["error"]
        self.message = answer["message"]


class Rank:
    """One training process. Commands may overlap between ranks: start() now, finish() later."""

    def __init__(self, uri, rank, world, *, elements=1 << 18, log=None, launcher="test", **options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "client" / "python"),
                       "REPRISE_LAUNCHER": launcher, "REPRISE_LOG": "info"}
        self.log = open(log, "ab") if log else subprocess.DEVNULL
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("rank_main.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment,
            start_new_session=True)
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.do("open", uri=uri, rank=rank, world=world, elements=elements, launcher=launcher,
                **options)

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put(None)

    def start(self, command, **arguments):
        self.process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, timeout=60):
        answer = self.answers.get(timeout=timeout)
        if answer is None:
            raise RankError({"error": "Ended", "message": f"exit {self.process.wait()}"})
        if "error" in answer and "message" in answer:
            raise RankError(answer)
        return answer

    def do(self, command, timeout=60, **arguments):
        self.start(command, **arguments)
        return self.finish(timeout)

    def kill(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.log is not subprocess.DEVNULL:
            self.log.close()


def all_do(ranks, command, timeout=60, **arguments):
    """The same command on every rank at once; answers in rank order."""
    for rank in ranks:
        rank.start(command, **arguments)
    return [rank.finish(timeout) for rank in ranks]
