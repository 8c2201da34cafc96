# tools/dev sim: the simulator over as many seeds as asked; tools/dev mutate: every planted bug.
#
# The whole system (tests/sim/whole) runs in two processes side by side, each with half of the seeds;
# their reports are merged by sim_report.py. The other programs of tests/sim are exhaustive and run
# once. What a failing seed prints ends with the line that repeats it.

require test

readonly SIM_WHOLE=sim_whole

# sim_half FIRST COUNT PART
sim_half() {
  REPRISE_SIM_FIRST="$1" REPRISE_SIM_SEEDS="$2" REPRISE_SIM_REPORT="$SIM_RESULTS/whole.$3.json" \
    STAGE_REPEAT="tools/dev sim --seeds $REPRISE_SIM_SEEDS --filter $SIM_WHOLE" \
    counted_stage "$SIM_WHOLE.$3" "$BUILD_ROOT/release/tests/$SIM_WHOLE" \
    "--gtest_output=xml:$SIM_RESULTS/$SIM_WHOLE.$3.xml" '--gtest_filter=Whole.NoSeed*' || true
}

run_whole() {
  local half=$((REPRISE_SIM_SEEDS / 2))
  ((half > 0)) || half=1
  sim_half 1 "$half" 0 &
  sim_half $((half + 1)) $((REPRISE_SIM_SEEDS - half)) 1
  wait
}

run_sim() {
  local filter="$1" json="$2" program name
  SIM_RESULTS="$BUILD_ROOT/release/results"
  mkdir -p "$SIM_RESULTS"
  rm -f "$SIM_RESULTS"/*.xml "$SIM_RESULTS"/whole.*.json
  for program in "$BUILD_ROOT"/release/tests/sim_*; do
    [[ -f "$program" && -x "$program" ]] || continue
    name="$(basename "$program")"
    [[ "$name" =~ $filter ]] || continue
    if [[ "$name" == "$SIM_WHOLE" ]]; then
      run_whole
      continue
    fi
    STAGE_REPEAT="REPRISE_SIM_SEEDS=$REPRISE_SIM_SEEDS build/release/tests/$name" \
      counted_stage "$name" "$program" "--gtest_output=xml:$SIM_RESULTS/$name.xml" || true
  done
  [[ "$SIM_WHOLE" =~ $filter ]] || return 0
  # Fails when a label was not reached by a budget that must reach it.
  STAGE_REPEAT="tools/dev sim --seeds $REPRISE_SIM_SEEDS" counted_stage sim_report \
    python3 tools/dev.d/sim_report.py merge --results "$SIM_RESULTS" ${json:+--out "$json"} || true
  [[ -z "$json" ]] || say "report: $json"
}

cmd_sim() {
  local seeds=1000 json="" filter="." seed=""
  while (($#)); do
    (($# > 1)) || die "$1 needs a value: sim [--seeds N] [--seed N] [--json FILE] [--filter RE]"
    case "$1" in
      --seeds) seeds="$2" ;;
      --seed) seed="$2" ;;
      --json) json="$2" ;;
      --filter) filter="$2" ;;
      *) die "sim does not know '$1': sim [--seeds N] [--seed N] [--json FILE] [--filter RE]" ;;
    esac
    shift 2
  done
  compgen -G "tests/sim/*_test.cc" >/dev/null || die "no simulator tests in this tree (tests/sim)"
  build release
  if [[ -n "$seed" ]]; then
    REPRISE_SIM_SEED="$seed" exec "$BUILD_ROOT/release/tests/$SIM_WHOLE" '--gtest_filter=Whole.NoSeed*'
  fi
  export REPRISE_SIM_SEEDS="$seeds"
  TALLY="$BUILD_ROOT/logs/sim.tally"
  : >"$TALLY"
  with_lock test run_sim "$filter" "$json"
  close_tally
}
