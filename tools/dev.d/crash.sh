# tools/dev crash: builds, then kills the real store again and again (tests/crash/crash_driver.py).

require build

cmd_crash() {
  [[ -f tests/crash/crash_driver.py ]] || die "no crash driver in this tree (tests/crash)"
  cmd_setup
  build release
  export_product_environment release
  exec "$VENV/bin/python" tests/crash/crash_driver.py "$@"
}
