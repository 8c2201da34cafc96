# tools/dev demo: builds, then runs docs/examples/demo.py.

require build

cmd_demo() {
  [[ -f docs/examples/demo.py ]] || die "no demo in this tree (docs/examples/demo.py)"
  cmd_setup
  build release
  export_product_environment release
  exec "$VENV/bin/python" docs/examples/demo.py "$@"
}
