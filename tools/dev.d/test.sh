# tools/dev test: build, ctest, pytest, and one closing line `N passed, N failed, N skipped` that
# counts cases, not executables.
#
# Every run that counts appends "passed failed skipped" lines to the file in $TALLY; the closing line
# is their sum, so that `ci` can add up several builds.

require build

readonly QUICK_LABELS='^(unit|conformance|golden)$'
readonly QUICK_PYTEST=(tests/tools tests/golden client/python/tests)
readonly ALL_PYTEST=("${QUICK_PYTEST[@]}" tests/crash tests/e2e)

report() { python3 "$ROOT/tools/dev.d/report.py" "$@"; }

# Prints the closing line; fails when something failed.
close_tally() { report total --tally "$TALLY"; }

count_failure() { echo "0 1 0" >>"$TALLY"; }

# A stage that counts as one case: formatting, house rules.
counted_stage() {
  if stage "$@"; then
    echo "1 0 0" >>"$TALLY"
  else
    count_failure
    return 1
  fi
}

# A build counts only when it fails: one that passes is no test.
counted_build() {
  build "$@" || {
    count_failure
    return 1
  }
}

export_sanitizer_options() {
  local symbolizer=/usr/bin/llvm-symbolizer-19
  export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1:external_symbolizer_path=$symbolizer"
  export UBSAN_OPTIONS="print_stacktrace=1:external_symbolizer_path=$symbolizer"
  export TSAN_OPTIONS="second_deadlock_stack=1:halt_on_error=1:external_symbolizer_path=$symbolizer"
}

# run_ctest PRESET NAME CTEST-ARGUMENTS...: runs, then counts the cases. Failing tests are counted,
# not returned: the closing line decides.
run_ctest() {
  local preset="$1" name="$2" dir="$BUILD_ROOT/$1"
  shift 2
  mkdir -p "$dir/results"
  rm -f "$dir"/results/*.xml "$dir/results/ctest.junit"
  export_sanitizer_options
  # shellcheck disable=SC2046
  STAGE_REPEAT=- stage "$name" $(within_deadline) ctest --test-dir "$dir" \
    --output-junit "$dir/results/ctest.junit" --output-on-failure --no-tests=ignore \
    -j "$(nproc)" "$@" || true
  report ctest --build "$dir" --tally "$TALLY" || count_failure
}

# run_pytest PRESET FILTER FOLDER...: those folders that exist; the filter is a regular expression
# on node ids.
run_pytest() {
  local preset="$1" filter="$2" folder folders=() junit="$BUILD_ROOT/$1/results/pytest.junit"
  shift 2
  for folder in "$@"; do
    if [[ -d "$folder" ]]; then
      folders+=("$folder")
    fi
  done
  if ((${#folders[@]} == 0)); then
    return 0
  fi
  rm -f "$junit"
  (
    export_product_environment "$preset"
    export REPRISE_TEST_FILTER="$filter"
    export PYTHONPATH="$ROOT/tools/dev.d:$PYTHONPATH"
    # shellcheck disable=SC2046
    STAGE_REPEAT=- stage "pytest" $(within_deadline) "$VENV/bin/python" -m pytest \
      -p pytest_filter -p no:cacheprovider -o junit_family=xunit1 --junitxml="$junit" \
      --import-mode=importlib -q -ra "${folders[@]}"
  ) || true
  report pytest --junit "$junit" --tally "$TALLY" || count_failure
}

# What --filter means: the tests whose name matches; when there are none, the single C++ cases and
# Python tests whose name does.
run_filtered() {
  local preset="$1" filter="$2" targets=()
  with_lock build configure "$preset"
  mapfile -t targets < <(report targets --build "$BUILD_ROOT/$preset" --filter "$filter")
  if ((${#targets[@]})); then
    counted_build "$preset" "${targets[@]}" && run_ctest "$preset" "ctest" -R "$filter"
    return 0
  fi
  counted_build "$preset" || return 0
  local selection
  selection="$(report cases --build "$BUILD_ROOT/$preset" --filter "$filter")"
  if [[ -n "$selection" ]]; then
    # First line: the tests that hold matching cases; second: GoogleTest's filter for them.
    GTEST_FILTER="$(sed -n 2p <<<"$selection")" \
      run_ctest "$preset" "ctest" -R "$(sed -n 1p <<<"$selection")"
  fi
  run_pytest "$preset" "$filter" "${ALL_PYTEST[@]}"
}

run_suite() {
  local preset="$1" filter="$2" quick="$3"
  if [[ -n "$filter" ]]; then
    run_filtered "$preset" "$filter"
    return
  fi
  counted_build "$preset" || return 0
  if [[ "$quick" == yes ]]; then
    run_ctest "$preset" "ctest quick" -L "$QUICK_LABELS"
    run_pytest "$preset" "" "${QUICK_PYTEST[@]}"
  else
    run_ctest "$preset" "ctest"
    run_pytest "$preset" "" "${ALL_PYTEST[@]}"
  fi
}

cmd_test() {
  local preset=release filter="" quick=no
  while (($#)); do
    case "$1" in
      --preset)
        preset="${2:?--preset needs a name}"
        shift
        ;;
      --filter)
        filter="${2:?--filter needs a regular expression}"
        shift
        ;;
      --quick) quick=yes ;;
      *) die "test does not know '$1': test [--filter RE] [--quick] [--preset P]" ;;
    esac
    shift
  done
  check_preset "$preset"
  cmd_setup
  TALLY="$BUILD_ROOT/logs/test.tally"
  : >"$TALLY"
  with_lock test run_suite "$preset" "$filter" "$quick"
  close_tally
}
