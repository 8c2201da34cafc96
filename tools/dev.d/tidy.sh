# tools/dev tidy: the house rules, checked by tools/tidy.py.

source tools/dev.d/build.sh

cmd_tidy() {
  if [[ "${1:-}" == --headers ]]; then
    build release reprise_proto # headers of the control API are generated
  fi
  exec python3 tools/tidy.py "$@"
}
