# tools/dev tidy: the house rules, checked by tools/tidy.py.

require build

cmd_tidy() {
  if [[ "${1:-}" == --headers ]]; then
    build release reprise_proto # headers of the control API are generated
  fi
  exec python3 tools/tidy.py "$@"
}
