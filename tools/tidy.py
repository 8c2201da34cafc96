#!/usr/bin/env python3
"""The house rules that a program can check. Run as `tools/dev tidy`.

  tidy.py [--root DIR]             layers, third-party headers, banned calls, sizes, header form
  tidy.py [--root DIR] --headers   each header compiles alone (clang, in parallel)

Prints `file:line: message` for each finding and exits 1 when there are any. The tables at the top are
the rules; to change one is to change the architecture, so it needs a reason (docs/adr).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# ---------------------------------------------------------------------------------------------------
# Rules as data

FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
HEADER_COMMENT_LINES_MIN = 3

# Headers that a module offers to modules beside or above it; the rest of its folder is its own.
INTERFACES = {
    "journal": ["server/journal/journal.h", "server/journal/recovery.h"],
    "catalog": ["server/catalog/catalog.h"],
    "tier": ["server/tier/tier.h"],
    "lifecycle": ["server/lifecycle/coordinator_api.h", "server/lifecycle/shard_store.h"],
    "store_link": ["server/dataplane/store_link.h"],
}
CORE = ["core/base/", "core/async/", "core/io/", "core/format/", "core/wire/"]

# Who may include whom: folder -> prefixes. A folder may always include itself and include/reprise;
# the longest matching folder decides. Generated control API headers are called "proto/".
LAYERS = {
    "include/reprise": [],
    "core/base": [],
    "core/async": ["core/base/"],
    "core/format": ["core/base/"],
    "core/io": ["core/base/", "core/async/"],
    "core/wire": ["core/base/", "core/format/"],
    "client": CORE + ["client/"],
    "server/journal": ["core/base/", "core/async/", "core/io/", "core/format/"],
    "server/catalog": ["core/base/", "core/async/", "core/format/"],
    "server/tier": ["core/base/", "core/async/", "core/io/", "core/format/"],
    # core/io and the NVMe tier because Store::Open brings a directory to life (docs/adr/0015).
    "server/lifecycle": ["core/base/", "core/async/", "core/io/", "core/format/",
                         *INTERFACES["journal"], *INTERFACES["catalog"], *INTERFACES["tier"],
                         "server/tier/nvme_tier.h"],
    "server/node": CORE + INTERFACES["tier"] + INTERFACES["lifecycle"] + INTERFACES["store_link"],
    "server/dataplane": CORE + INTERFACES["tier"] + INTERFACES["lifecycle"],
    "server/rpc": ["core/base/", "core/async/", "proto/", *INTERFACES["lifecycle"]],
    "server/web": ["core/base/", "core/async/", "proto/", *INTERFACES["lifecycle"]],
    "server": CORE + ["server/", "proto/"],
    "tools": CORE + ["tools/", "proto/"],
    "tools/sidecar": CORE + ["proto/", "server/node/"],
    "tests": CORE + ["client/", "server/", "tools/", "tests/", "proto/"],
}

# Third-party headers: (pattern of the name in <>, library, path prefixes of the adapter). Tests and
# the build (cmake/) may include any. The table with the reasons is on top of cmake/Dependencies.cmake.
THIRD_PARTY = [
    (r"liburing", "liburing", ["core/io/uring_"]),
    (r"rocksdb/", "RocksDB", ["server/catalog/rocksdb_"]),
    (r"(grpc|grpcpp|google/protobuf)/", "gRPC", ["server/rpc/", "server/catalog/etcd_", "tools/cli/"]),
    (r"curl/", "libcurl", ["server/tier/s3_"]),
    (r"(cuda|cuda_runtime|nvml)[\w/]*\.h", "CUDA", ["client/device/cuda_"]),
    (r"yaml-cpp/", "yaml-cpp", ["server/config"]),
    (r"httplib\.h", "cpp-httplib", ["server/web/", "tools/sidecar/"]),
    (r"spdlog/", "spdlog", ["core/base/"]),
    (r"fmt/", "fmt", ["core/", "client/", "server/", "tools/"]),
    (r"prometheus/", "prometheus-cpp", ["core/base/metrics", "server/web/metrics_"]),
    (r"CLI/", "CLI11", ["tools/", "server/main.cc"]),
    (r"nlohmann/", "nlohmann-json", ["core/format/safetensors", "client/", "server/web/", "tools/"]),
    (r"xxhash", "xxHash", ["core/base/digest"]),
    (r"z(std|dict)", "zstd", ["core/format/"]),
    (r"openssl/", "OpenSSL", ["core/base/digest", "server/rpc/"]),
    (r"benchmark/", "Google Benchmark", ["tools/bench/"]),
    (r"(gtest|gmock)/", "GoogleTest", []),
    (r"absl/", "Abseil", []),
]
# Names with a slash that are not third-party: the kernel's, POSIX's and the C library's.
SYSTEM_HEADER = re.compile(r"(sys|linux|asm|netinet|arpa|net|bits|experimental|ext)/")

# Banned calls: (pattern, what to do instead, folders where the rule holds, paths it spares).
PRODUCT = ["include/", "core/", "client/", "server/", "tools/"]
CALL = r"(?<![\w.>:])(?:::)?"  # a free function: not a member, not another namespace's
BANNED = [
    (r"\bstd::j?thread\b(?!::)", "post to an event loop: threads belong to their adapters", PRODUCT,
     ["core/async/", "core/io/", "client/", "server/catalog/", "server/daemon", "server/loop_thread", "server/node/pid_watch",
      "server/rpc/", "server/web/http_server", "tools/bench/"]),
    (r"\b(?:std::)?(?:rand|srand|rand_r|drand48)\s*\(|\bstd::(?:mt19937\w*|random_device)\b",
     "take a Rng (core/base/random.h)", PRODUCT + ["tests/"], ["core/base/random"]),
    (r"\b(?:system|steady|high_resolution)_clock::now\b|" + CALL + r"(?:clock_gettime|gettimeofday)\s*\(",
     "take a Clock (core/base/clock.h)", PRODUCT,
     ["core/base/clock", "core/base/log", "tools/bench/"]),
    (r"\bsleep_(?:for|until)\b|" + CALL + r"(?:u|nano)?sleep\s*\(",
     "wait for an event, or for a deadline of the Clock", PRODUCT + ["tests/"], []),
    (CALL + r"(?:open|openat|openat2|creat|fopen|socket)\s*\(|\bstd::[io]?fstream\b",
     "go through the Io interface (core/io/io.h)", ["include/", "core/", "server/"],
     ["core/io/", "core/base/", "server/node/slab_mapping", "server/config", "server/main.cc"]),
    (r"\b(?:std::)?(?:printf|fprintf|vprintf|vfprintf|puts|fputs)\s*\(|\bstd::(?:cout|cerr|clog)\b",
     "log (core/base/log.h)", ["core/", "server/"],
     ["core/base/log", "core/base/check", "core/base/status", "core/io/sim_", "server/main.cc"]),
    (r"\bco_(?:await|return|yield)\b", "no coroutines here: this runs in the trainer's process",
     ["client/", "core/wire/"], []),
]

# Words that promise to do something later. Written in two parts, so that this file passes.
LATER_WORDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")

CPP_SUFFIXES = {".h", ".cc"}
TEXT_SUFFIXES = CPP_SUFFIXES | {".py", ".sh", ".cmake", ".txt", ".md", ".proto", ".yaml", ".yml",
                                ".json", ".map", ".tpl", ".html", ".js", ".css"}

# ---------------------------------------------------------------------------------------------------
# Reading C++ roughly

TOKEN = re.compile(
    r"""//[^\n]*
      | /\*.*?\*/
      | R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"
      | "(?:\\.|[^"\\\n])*"
      | (?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'
    """, re.VERBOSE | re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


def blank(match):
    """Spaces of the same shape, so that line numbers stay."""
    return re.sub(r"[^\n]", " ", match.group(0))


def code_only(text):
    """The text without comments and literals."""
    return TOKEN.sub(blank, text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


NOT_A_FUNCTION = re.compile(r"^\s*(?:export\s+)?(?:inline\s+)?(?:namespace|extern|enum|union|class|struct)\b")
OPENS_SCOPE = re.compile(r"\b(?:namespace|class|struct|union)\b|\bextern\s*$")
MEMBER_INITIALIZER = re.compile(r"\)[^;{}]*[^:]:[^:].*[\w>]\s*$", re.DOTALL)


def functions(text):
    """Yields (name, first line, last line) of each function body at namespace or class scope.

    A brace is judged by the words before it: `namespace`, `class` and the like open a scope to look
    into, a parameter list opens a function, anything else is skipped as a whole.
    """
    code = DIRECTIVE.sub(blank, code_only(text))
    scopes, header_start, position = [], 0, 0
    inside = None  # (depth, name, line) of the function being read
    for match in re.finditer(r"[{};]", code):
        position, char = match.start(), match.group(0)
        if char == "{":
            header = code[header_start:position]
            kind = "skip"
            if inside is None and all(scope == "scope" for scope in scopes):
                kind = brace_kind(header)
            scopes.append(kind)
            if kind == "function":
                inside = (len(scopes), function_name(header), line_of(code, position))
            if kind != "initializer":
                header_start = match.end()
        elif char == "}":
            kind = scopes.pop() if scopes else "scope"
            if inside is not None and len(scopes) < inside[0]:
                yield inside[1], inside[2], line_of(code, position)
                inside = None
            if kind != "initializer":
                header_start = match.end()
        elif not scopes or scopes[-1] == "scope":
            header_start = match.end()


def brace_kind(header):
    words = re.sub(r"\[\[.*?\]\]|\balignas\s*\([^)]*\)", " ", header, flags=re.DOTALL).strip()
    words = re.sub(r"^(?:public|private|protected)\s*:", "", words).strip()
    template = re.match(r"template\s*<", words)
    if OPENS_SCOPE.search(words) and not re.search(r"\)\s*(?:const|noexcept|override|->|$)", words):
        return "skip" if re.match(r"(?:enum)\b", words) else "scope"
    if template is None and NOT_A_FUNCTION.match(words) and "(" not in words:
        return "scope" if OPENS_SCOPE.search(words) else "skip"
    if "(" not in words:
        return "skip"
    if words.count("(") > words.count(")"):
        return "initializer"  # of a default argument
    if MEMBER_INITIALIZER.search(words):
        return "initializer"
    if re.search(r"=\s*$", words) or re.search(r"=\s*[\w:<>]+\s*$", words):
        return "skip"
    return "function"


def function_name(header):
    match = re.search(r"([~\w:]+|operator\s*\S+?)\s*\(", header)
    return match.group(1) if match else "(unnamed)"


# ---------------------------------------------------------------------------------------------------
# Checks: each takes (path, text) and yields (line, message)


def layer_of(path):
    folders = [folder for folder in LAYERS if path.startswith(folder + "/")]
    return max(folders, key=len) if folders else None


def include_target(name):
    """What an include in quotes names, as a path of the repository."""
    if re.match(r"reprise/v1/.*\.pb\.h$", name):
        return "proto/" + name
    if name.startswith("reprise/"):
        return "include/" + name
    return name


def check_own_include(path, name):
    layer = layer_of(path)
    target = include_target(name)
    if "/" not in target or target.startswith("."):
        return f'"{name}": write the path from the repository root'
    if layer is None:
        return None
    own = ["include/reprise/", layer + "/"]
    if not any(target.startswith(prefix) for prefix in own + LAYERS[layer]):
        return f'{layer} may not include "{name}" (who may include whom: LAYERS in tools/tidy.py)'
    return None


def check_system_include(path, name):
    for pattern, library, adapters in THIRD_PARTY:
        if not re.match(pattern, name):
            continue
        if path.startswith(("tests/", "cmake/", *adapters)):
            return None
        where = ", ".join(prefix + ("*" if not prefix.endswith((".cc", "/")) else "")
                          for prefix in adapters) or "tests/"
        return f"<{name}>: {library} is included only in {where}"
    if name.endswith(".pb.h"):
        return f"<{name}>: include the control API in quotes"
    if "/" in name and not SYSTEM_HEADER.match(name):
        return f"<{name}>: unknown library; THIRD_PARTY in tools/tidy.py says who may include which"
    if path.startswith("include/reprise/") and re.search(r"[/.]", name) and not re.fullmatch(
            r"std(int|def|bool)\.h", name):
        return f"<{name}>: the installed API includes the standard library alone"
    return None


def check_includes(path, text):
    for match in INCLUDE.finditer(text):
        check = check_system_include if match.group(1) == "<" else check_own_include
        message = check(path, match.group(2))
        if message:
            yield line_of(text, match.start()), message


def check_banned(path, text):
    code = None
    for pattern, instead, folders, spared in BANNED:
        if not path.startswith(tuple(folders)) or path.startswith(tuple(spared)):
            continue
        code = code if code is not None else code_only(text)
        for match in re.finditer(pattern, code):
            yield line_of(code, match.start()), f"'{match.group(0).strip()}' is banned here: {instead}"


def check_sizes(path, text):
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield 1, f"{lines} lines, of at most {FILE_LINES_MAX}: split the file by topic"
    for name, first, last in functions(text):
        if last - first + 1 > FUNCTION_LINES_MAX:
            yield first, (f"function {name} has {last - first + 1} lines ({first}-{last}), of at most "
                          f"{FUNCTION_LINES_MAX}: push ifs up and loops down")


def opening_comment_lines(text):
    block = re.match(r"/\*.*?\*/", text, re.DOTALL)
    if block:
        return block.group(0).count("\n") + 1
    return len(re.match(r"(?://[^\n]*\n)*", text).group(0).splitlines())


def check_header_form(path, text):
    if not path.endswith(".h"):
        return
    # C programs include c.h, and #pragma once is not C: it has a guard.
    if not re.search(r"^#pragma once$", text, re.MULTILINE) and path != "include/reprise/c.h":
        yield 1, "header without #pragma once"
    comment = opening_comment_lines(text)
    if comment < HEADER_COMMENT_LINES_MIN:
        yield 1, (f"header starts with {comment} comment lines, of at least "
                  f"{HEADER_COMMENT_LINES_MIN}: what is it, who owns it, which thread?")


def check_later_words(path, text):
    for match in LATER_WORDS.finditer(text):
        yield line_of(text, match.start()), f"'{match.group(0)}': do it, or say what is and why"


CPP_CHECKS = [check_includes, check_banned, check_sizes, check_header_form]


def our_files(root):
    """Paths below root that git tracks or would, else all outside build folders."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"], capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        names = set(listed.stdout.split("\0")) - {""}
    else:
        names = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    return sorted(name for name in names
                  if (root / name).is_file() and not name.startswith((".git/", "build/", ".venv/")))


def check_file(root, path):
    suffix = Path(path).suffix
    if suffix not in TEXT_SUFFIXES and suffix:
        return
    try:
        text = (root / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return
    checks = [check_later_words] + (CPP_CHECKS if suffix in CPP_SUFFIXES else [])
    for check in checks:
        for line, message in check(path, text):
            yield f"{path}:{line}: {message}"


def check_tree(root):
    return [finding for path in our_files(root) for finding in check_file(root, path)]


# ---------------------------------------------------------------------------------------------------
# --headers

HEADER_FLAGS = ["-c", "-O0", "-Wall", "-Wextra", "-Wthread-safety", "-Werror",
                "-Wno-missing-field-initializers", "-D_GLIBCXX_ASSERTIONS", '-DREPRISE_VERSION="0"',
                "-I.", "-Iinclude", "-isystem", "build/release/generated"]


def compile_alone(root, path, language):
    """Compiles a file that holds nothing but the include; through ccache, so that a header that has
    not changed costs nothing the next time."""
    suffix, compiler, standard = (".cc", "clang++-19", "-std=c++2b")
    if language == "c":
        suffix, compiler, standard = (".c", "clang-19", "-std=c11")
    source = Path("build/headers") / (path.replace("/", "_").replace(".", "_") + suffix)
    (root / source).parent.mkdir(parents=True, exist_ok=True)
    (root / source).write_text(f'#include "{path}"\n', encoding="utf-8")
    cached = ["ccache"] if shutil.which("ccache") else []
    result = subprocess.run([*cached, compiler, standard, *HEADER_FLAGS, str(source), "-o",
                             str(source.with_suffix(".o"))], cwd=root, capture_output=True, text=True,
                            check=False, env={**os.environ, "CCACHE_BASEDIR": str(root.resolve())})
    if result.returncode == 0:
        return []
    first = next((line for line in result.stderr.splitlines() if "error" in line), "does not compile")
    return [f"{path}:1: does not compile alone ({language}): {first.strip()}"]


def check_headers(root):
    """Each header once as C++; c.h, which C programs include, also as C."""
    work = [(path, "c++") for path in our_files(root)
            if path.endswith(".h") and layer_of(path) is not None]
    work += [(path, "c") for path, _ in work if path == "include/reprise/c.h"]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(lambda item: compile_alone(root, *item), work)
        return [finding for result in results for finding in result]


def main():
    parser = argparse.ArgumentParser(description="checks the house rules")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--headers", action="store_true", help="each header compiles alone")
    options = parser.parse_args()
    findings = (check_headers if options.headers else check_tree)(options.root)
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
