"""tools/tidy.py reports what it claims to report: each rule sees a planted violation."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("tidy", ROOT / "tools/tidy.py")
tidy = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tidy)

COMMENT = "// What it is.\n//\n// Thread rule: none.\n"
HEADER = COMMENT + "#pragma once\n\n"
LONG_BODY = "  Step();\n" * 71


def findings(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return tidy.check_tree(root)


CLEAN = {
    "core/base/value.h": HEADER + '#include <string>\n\n#include "reprise/status.h"\n',
    "core/io/uring_io.cc": "#include <liburing.h>\n#include <sys/uio.h>\n",
    "server/lifecycle/commit.cc": '#include "server/journal/journal.h"\n',
    "server/rpc/server.cc": '#include <grpcpp/grpcpp.h>\n#include "reprise/v1/control.grpc.pb.h"\n',
    "core/base/clock.cc": "auto Now() { return std::chrono::steady_clock::now(); }\n",
    "core/io/engine.cc": "void Run() { std::thread worker; int fd = ::open(path, 0); }\n",
    "core/format/words.cc": "// printf(x) and rand() in words\nauto s = \"std::thread rand()\";\n",
    "server/node/open.cc": "auto f = slab.open(1) + file->open(2) + Reopen(3) + my::open(4);\n",
    "server/node/cores.cc": "auto n = std::thread::hardware_concurrency();\n",
    "include/reprise/c.h": "/* The C interface.\n *\n * Thread rule: any. */\n#ifndef C_H\n#endif\n",
    "client/call.cc": '#include "core/wire/frame.h"\n#include "client/session/session.h"\n',
    "core/base/short.cc": "int F() {\n" + "  Step();\n" * 68 + "}\n",
}

PLANTED = {
    "upward include": ("core/base/value.cc", '#include "core/io/io.h"\n',
                       "core/base/value.cc:1: core/base may not include"),
    "client includes server": ("client/restore/plan.cc", '\n\n#include "server/tier/tier.h"\n',
                               "client/restore/plan.cc:3: client may not include"),
    "not the interface": ("server/lifecycle/gc.cc", '#include "server/catalog/rocksdb_catalog.h"\n',
                          "server/lifecycle may not include"),
    "tools include server": ("tools/cli/ls.cc", '#include "server/lifecycle/coordinator_api.h"\n',
                             "tools may not include"),
    "proto in lifecycle": ("server/lifecycle/a.cc", '#include "reprise/v1/control.pb.h"\n',
                           "server/lifecycle may not include"),
    "relative include": ("core/io/a.cc", '#include "io.h"\n', "path from the repository root"),
    "liburing outside its adapter": ("server/tier/nvme.cc", "#include <liburing.h>\n",
                                     "liburing is included only in core/io/uring_*"),
    "gRPC in the client": ("client/session.cc", "#include <grpcpp/grpcpp.h>\n", "gRPC is included only"),
    "RocksDB beside its adapter": ("server/catalog/memory.cc", "#include <rocksdb/db.h>\n",
                                   "RocksDB is included only in server/catalog/rocksdb_*"),
    "unknown library": ("core/base/a.cc", "#include <boost/asio.hpp>\n", "unknown library"),
    "POSIX in the installed API": ("include/reprise/a.h", HEADER + "#include <unistd.h>\n",
                                   "the standard library alone"),
    "thread": ("server/lifecycle/a.cc", "std::jthread worker;\n", "'std::jthread' is banned here"),
    "rand": ("core/wire/a.cc", "int x = rand();\n", "take a Rng"),
    "random device": ("server/node/a.cc", "std::mt19937_64 engine;\n", "take a Rng"),
    "clock": ("server/tier/a.cc", "auto t = std::chrono::steady_clock::now();\n", "take a Clock"),
    "sleep in a test": ("tests/unit/io/a_test.cc", "std::this_thread::sleep_for(1s);\n",
                        "wait for an event"),
    "usleep": ("client/a.cc", "void F() { usleep(10); }\n", "wait for an event"),
    "open": ("server/tier/b.cc", "int fd = ::open(path, O_RDONLY);\n", "the Io interface"),
    "socket": ("server/dataplane/b.cc", "int fd = socket(AF_INET, SOCK_STREAM, 0);\n",
               "the Io interface"),
    "stream": ("server/tier/c.cc", "std::ifstream file(path);\n", "the Io interface"),
    "printf": ("core/wire/b.cc", 'void F() { std::printf("x"); }\n', "log (core/base/log.h)"),
    "coroutine in the client": ("client/b.cc", "Task<> F() { co_await G(); }\n", "no coroutines here"),
    "no pragma": ("core/base/b.h", COMMENT, "without #pragma once"),
    "no contract": ("core/base/c.h", "// Short.\n#pragma once\n", "starts with 1 comment lines"),
    "later": ("docs/a.md", "fine\nTO" + "DO: write\n", "docs/a.md:2: 'TO" + "DO'"),
    "long file": ("core/base/d.cc", "int x;\n" * 801, "801 lines, of at most 800"),
    "long function": ("core/base/e.cc", "namespace a {\nint Long(int x) {\n" + LONG_BODY + "}\n}\n",
                      "core/base/e.cc:2: function Long has 73 lines (2-74)"),
    "long method": ("core/base/f.cc", "struct S {\n  int Long() const override {\n" + LONG_BODY + "}\n};\n",
                    "function Long has 73 lines"),
    "long coroutine": ("server/tier/d.cc",
                       "Task<Result<int>> Tier::Read(Extent e, Span<char> s)\n    requires(true) {\n"
                       + "  co_await Step();\n" * 71 + "}\n", "function Tier::Read has 73 lines"),
    "long constructor": ("core/base/g.cc",
                         "Loop::Loop(int x) : a_{x}, b_(x), c_(std::vector<int>{1}) {\n" + LONG_BODY
                         + "}\n", "function Loop::Loop has 73 lines"),
    "long test": ("tests/unit/base/a_test.cc", "TEST(Suite, Case) {\n" + LONG_BODY + "}\n",
                  "function TEST has 73 lines"),
}


def test_clean_files_have_no_findings(tmp_path):
    for path, text in CLEAN.items():
        assert findings(tmp_path, path, text) == [], path


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violation_is_reported(tmp_path, name):
    path, text, expected = PLANTED[name]
    found = findings(tmp_path, path, text)
    assert any(expected in finding for finding in found), found
    assert len(found) == 1, found


def test_main_prints_findings_and_fails(tmp_path, capsys, monkeypatch):
    findings(tmp_path, "core/wire/a.cc", "int x = rand();\n")
    monkeypatch.setattr("sys.argv", ["tidy.py", "--root", str(tmp_path)])
    assert tidy.main() == 1
    assert capsys.readouterr().out.startswith("core/wire/a.cc:1: 'rand(' is banned here")


@pytest.mark.skipif(not shutil.which("clang++-19"), reason="needs clang++-19")
def test_header_that_does_not_compile_alone_is_reported(tmp_path):
    findings(tmp_path, "core/base/good.h", HEADER + "#include <string>\nstd::string Name();\n")
    findings(tmp_path, "core/base/bad.h", HEADER + "std::string Name();\n")
    found = tidy.check_headers(tmp_path)
    assert len(found) == 1 and found[0].startswith("core/base/bad.h:1: does not compile alone"), found
