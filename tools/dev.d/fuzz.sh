# tools/dev fuzz: libFuzzer targets of tests/fuzz.

cmd_fuzz() {
  if [[ ! -d tests/fuzz ]]; then
    die "no fuzz targets in this tree"
  fi
  die "tests/fuzz has no runner: add one to tools/dev.d/fuzz.sh with the first target"
}
