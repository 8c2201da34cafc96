# What the commands of tools/dev share: messages, stages with a log, locks, environment.
# Sourced, with ROOT set and the repository root as current folder.

readonly BUILD_ROOT="$ROOT/build"
readonly LOG_DIR="$BUILD_ROOT/logs"
readonly VENV="$ROOT/.venv"
mkdir -p "$LOG_DIR"

# Sources the named files of tools/dev.d, each once.
declare -A LOADED=()
require() {
  local name
  for name in "$@"; do
    if [[ -z "${LOADED[$name]:-}" ]]; then
      LOADED[$name]=yes
      # shellcheck source=/dev/null
      source "$ROOT/tools/dev.d/$name.sh"
    fi
  done
}

say() { printf '%s\n' "$*"; }

die() {
  printf 'tools/dev: %s\n' "$*" >&2
  exit 2
}

# The compiler's messages of a failed build, CMake's of a configuration, the end of any other log.
show_failure() {
  if grep -q '^FAILED: ' "$1"; then
    grep -v -E '^\[[0-9]+/[0-9]+\]|^/usr/bin/cmake -E env|^: && ' "$1" | head -n 60
  elif grep -q '^CMake Error' "$1"; then
    sed -n '/^CMake Error/,$p' "$1" | head -n 60
  else
    tail -n 60 "$1"
  fi
}

# stage NAME COMMAND...: runs the command with its output in build/logs/NAME.log and prints one line
# with the elapsed time. On failure prints what matters of the log and how to repeat the stage:
# $STAGE_REPEAT, nothing when that is '-', by default the command.
stage() {
  local name="$1" log="$LOG_DIR/${1// /-}.log" begin=$SECONDS status=0
  shift
  "$@" >"$log" 2>&1 || status=$?
  if ((status == 0)); then
    printf '%-28s ok      %4ds\n' "$name" $((SECONDS - begin))
    return 0
  fi
  printf '%-28s FAILED  %4ds  (exit %d)\n' "$name" $((SECONDS - begin)) "$status"
  show_failure "$log" | sed 's/^/  | /'
  say "  full log: ${log#"$ROOT"/}"
  [[ "${STAGE_REPEAT:-}" == - ]] || say "  repeat:   ${STAGE_REPEAT:-$*}"
  return "$status"
}

# The command prefix that keeps a stage within the deadline of `ci`, nothing outside of it.
within_deadline() {
  if [[ -n "${DEADLINE:-}" ]]; then
    local left=$((DEADLINE - SECONDS))
    echo "timeout --kill-after=20 $((left > 1 ? left : 1))"
  fi
}

# with_lock NAME COMMAND...: one holder at a time per checkout; says so when it has to wait.
with_lock() {
  local lock="$BUILD_ROOT/.lock.$1" status=0
  shift
  exec {lock_fd}>"$lock"
  if ! flock --nonblock "$lock_fd"; then
    say "waiting for another tools/dev in this checkout ..."
    flock "$lock_fd"
  fi
  "$@" {lock_fd}>&- || status=$?
  exec {lock_fd}>&-
  return "$status"
}

# Makes our programs, library and Python package visible to Python tests, demo and benchmarks.
export_product_environment() {
  local preset="$1"
  export REPRISE_BUILD_DIR="$BUILD_ROOT/$preset"
  export REPRISE_LIBRARY="$REPRISE_BUILD_DIR/lib/libreprise.so"
  export PATH="$REPRISE_BUILD_DIR/bin:$PATH"
  export PYTHONPATH="$ROOT/client/python${PYTHONPATH:+:$PYTHONPATH}"
  export HF_HUB_OFFLINE=1
}

check_preset() {
  case "$1" in
    release | dev | asan | tsan | coverage) ;;
    *) die "unknown preset '$1': release, dev, asan, tsan or coverage" ;;
  esac
}
