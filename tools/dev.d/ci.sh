# tools/dev ci: everything that decides whether a change may land. Each part runs even when an
# earlier one failed; the last line adds up all of them.

require test fmt fuzz sim

# Of the 90 minutes that continuous integration allows, on 2 cores.
readonly CI_SECONDS_MAX=4800
# For each fuzz target, two at a time.
readonly CI_FUZZ_SECONDS=10
# Enough that every rare path must be reached; `tools/dev sim --seeds 20000` for more.
readonly CI_SIM_SEEDS=6000
# Under a sanitizer a seed takes about thirty times as long.
readonly CI_SANITIZER_SIM_SEEDS=100

ci_static() {
  STAGE_REPEAT="tools/dev fmt --check" counted_stage "format" format_check || true
  STAGE_REPEAT="tools/dev tidy" counted_stage "tidy" python3 tools/tidy.py || true
  STAGE_REPEAT="python3 tools/faults.py" counted_stage "faults" python3 tools/faults.py || true
  tail -n 1 "$BUILD_ROOT/logs/faults.log" || true
}

ci_release() {
  counted_build release || return 0
  run_ctest release "ctest release"
  run_pytest release "" "${ALL_PYTEST[@]}"
}

# The real store broken in every way, for some minutes; `tools/dev crash` does it in full.
ci_crash() {
  local parts=(--kills 0 --kill-points 600 --errors 300 --power-cuts 200 --bit-flips 500000)
  (
    export_product_environment release
    # shellcheck disable=SC2046
    STAGE_REPEAT="tools/dev crash ${parts[*]}" counted_stage "crash" $(within_deadline) \
      "$VENV/bin/python" tests/crash/crash_all.py "${parts[@]}"
  ) || true
}

# The whole system in more seeds than a test run has.
ci_simulation() {
  (
    export REPRISE_SIM_SEEDS="$CI_SIM_SEEDS"
    run_sim "^$SIM_WHOLE\$" ""
  )
}

# ci_sanitizer PRESET LABELS
ci_sanitizer() {
  counted_build "$1" || return 0
  REPRISE_SIM_SEEDS="$CI_SANITIZER_SIM_SEEDS" run_ctest "$1" "ctest $1" -L "$2"
}

# The fuzzers of the sanitizer build, briefly: their replay is one of its tests.
ci_fuzz() {
  run_fuzzers "$CI_FUZZ_SECONDS" ""
}

run_ci() {
  ci_static
  ci_release
  ci_simulation
  ci_crash
  # After the build, which generates the headers of the control API.
  STAGE_REPEAT="tools/dev tidy --headers" counted_stage "headers" python3 tools/tidy.py --headers || true
  ci_sanitizer asan '^(unit|conformance|golden|sim|fuzz)$'
  ci_fuzz
  # The simulator has one thread.
  ci_sanitizer tsan '^(unit|conformance)$'
}

cmd_ci() {
  (($# == 0)) || die "ci takes no arguments"
  DEADLINE=$((SECONDS + CI_SECONDS_MAX))
  TALLY="$BUILD_ROOT/logs/ci.tally"
  : >"$TALLY"
  cmd_setup
  with_lock test run_ci
  close_tally
}
