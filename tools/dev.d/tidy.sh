# tools/dev tidy: the house rules, checked by tools/tidy.py.

cmd_tidy() { exec python3 tools/tidy.py "$@"; }
