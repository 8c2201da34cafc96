# tools/dev bench: builds, then hands over to tools/bench/run.py.

require build

cmd_bench() {
  [[ -f tools/bench/run.py ]] || die "no benchmarks in this tree (tools/bench/run.py)"
  cmd_setup
  build release
  export_product_environment release
  exec "$VENV/bin/python" tools/bench/run.py "$@"
}
