# tools/dev sim: the simulator over as many seeds as asked. The tests read REPRISE_SIM_SEEDS; what
# they record as GoogleTest properties (seeds, faults, trace hash ...) goes into the JSON report.

require test

run_sim() {
  local filter="$1" json="$2" results="$BUILD_ROOT/release/results" program name
  mkdir -p "$results"
  rm -f "$results"/*.xml
  for program in "$BUILD_ROOT"/release/tests/sim_*; do
    [[ -f "$program" && -x "$program" ]] || continue
    name="$(basename "$program")"
    [[ "$name" =~ $filter ]] || continue
    STAGE_REPEAT="REPRISE_SIM_SEEDS=$REPRISE_SIM_SEEDS build/release/tests/$name" \
      counted_stage "$name" "$program" "--gtest_output=xml:$results/$name.xml" || true
  done
  if [[ -n "$json" ]]; then
    report json --build "$BUILD_ROOT/release" --out "$json"
    say "report: $json"
  fi
}

cmd_sim() {
  local seeds=1000 json="" filter="."
  while (($#)); do
    (($# > 1)) || die "$1 needs a value: sim [--seeds N] [--json FILE] [--filter RE]"
    case "$1" in
      --seeds) seeds="$2" ;;
      --json) json="$2" ;;
      --filter) filter="$2" ;;
      *) die "sim does not know '$1': sim [--seeds N] [--json FILE] [--filter RE]" ;;
    esac
    shift 2
  done
  compgen -G "tests/sim/*_test.cc" >/dev/null || die "no simulator tests in this tree (tests/sim)"
  build release
  export REPRISE_SIM_SEEDS="$seeds"
  TALLY="$BUILD_ROOT/logs/sim.tally"
  : >"$TALLY"
  with_lock test run_sim "$filter" "$json"
  close_tally
}
