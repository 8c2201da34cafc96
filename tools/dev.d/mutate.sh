# tools/dev mutate: plants every bug of tests/sim/whole/mutations.cc, one at a time. Each must be found
# by the simulator within its seed budget or by the exhaustive enumeration named there (which runs
# here, too), or be documented as redundant.

require sim

run_mutate() {
  local json="$1" only="$2" raw="$BUILD_ROOT/release/results/mutations.json"
  mkdir -p "$(dirname "$raw")"
  rm -f "$raw"
  REPRISE_SIM_MUTATE="$raw" REPRISE_SIM_MUTATION="$only" STAGE_REPEAT="tools/dev mutate" \
    counted_stage mutate "$BUILD_ROOT/release/tests/$SIM_WHOLE" '--gtest_filter=Whole.Planted*' || true
  STAGE_REPEAT="build/release/tests/sim_crash_enumeration" \
    counted_stage sim_crash_enumeration "$BUILD_ROOT/release/tests/sim_crash_enumeration" \
    '--gtest_filter=*EveryRemoved*' || true
  STAGE_REPEAT="build/release/tests/sim_fencing" \
    counted_stage sim_fencing "$BUILD_ROOT/release/tests/sim_fencing" '--gtest_filter=*EveryRemoved*' ||
    true
  STAGE_REPEAT="tools/dev mutate" counted_stage mutate_report \
    python3 tools/dev.d/sim_report.py mutations --results "$raw" ${json:+--out "$json"} || true
  [[ -z "$json" ]] || say "report: $json"
}

cmd_mutate() {
  local json="" only=""
  while (($#)); do
    (($# > 1)) || die "$1 needs a value: mutate [--only NAME] [--json FILE]"
    case "$1" in
      --json) json="$2" ;;
      --only) only="$2" ;;
      *) die "mutate does not know '$1': mutate [--only NAME] [--json FILE]" ;;
    esac
    shift 2
  done
  build release sim_whole sim_crash_enumeration sim_fencing
  TALLY="$BUILD_ROOT/logs/mutate.tally"
  : >"$TALLY"
  with_lock test run_mutate "$json" "$only"
  close_tally
}
