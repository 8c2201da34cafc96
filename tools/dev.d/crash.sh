# tools/dev crash: builds, then breaks the real store in every way there is (tests/crash/crash_all.py).

require build

cmd_crash() {
  [[ -f tests/crash/crash_all.py ]] || die "no crash driver in this tree (tests/crash)"
  cmd_setup
  build release
  export_product_environment release
  exec "$VENV/bin/python" tests/crash/crash_all.py "$@"
}
