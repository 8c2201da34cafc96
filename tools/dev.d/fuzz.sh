# tools/dev fuzz: builds the fuzz targets of tests/fuzz (sanitizer build), runs each for a while and
# reports. The corpus that a run finds stays in build/fuzz/corpus and is where the next one begins.

require test

readonly FUZZ_ROOT="$BUILD_ROOT/fuzz"
readonly FUZZ_USAGE="fuzz [--seconds N] [--target RE] [--json FILE] [--coverage]"

# Names of the targets that match the regular expression.
fuzz_targets() {
  local file name
  for file in tests/fuzz/*_target.cc; do
    name="$(basename "$file" _target.cc)"
    if [[ "$name" =~ ^($1)$ ]]; then
      echo "$name"
    fi
  done
}

# Line coverage of the parsers by everything that the targets know, found corpus included.
fuzz_coverage() {
  local json="$1" build="$BUILD_ROOT/coverage"
  build coverage fuzz_replay
  STAGE_REPEAT="tools/dev fuzz --coverage" stage "replay for coverage" \
    env LLVM_PROFILE_FILE="$FUZZ_ROOT/coverage.profraw" REPRISE_FUZZ_CORPUS="$FUZZ_ROOT/corpus" \
    "$build/tests/fuzz_replay" --gtest_brief=1
  llvm-profdata-19 merge -sparse "$FUZZ_ROOT/coverage.profraw" -o "$FUZZ_ROOT/coverage.profdata"
  python3 tools/dev.d/fuzz.py coverage --program "$build/tests/fuzz_replay" \
    --profile "$FUZZ_ROOT/coverage.profdata" ${json:+--json "$json"}
}

# run_fuzzers SECONDS JSON [TARGET...]: without targets, all; counts each as one case.
run_fuzzers() {
  local seconds="$1" json="$2" status=0 targets
  shift 2
  targets=("$@")
  if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(fuzz_targets ".*")
  fi
  counted_build asan "${targets[@]/#/fuzz_}" || return 0
  # shellcheck disable=SC2046
  $(within_deadline) python3 tools/dev.d/fuzz.py run --build "$BUILD_ROOT/asan" --work "$FUZZ_ROOT" \
    --seconds "$seconds" --tally "$TALLY" ${json:+--json "$json"} "${targets[@]}" || status=$?
  # 1: a target failed, and was counted.
  ((status <= 1)) || count_failure
}

cmd_fuzz() {
  local seconds=60 pattern=".*" json="" coverage=no
  while (($#)); do
    case "$1" in
      --coverage) coverage=yes ;;
      --seconds | --target | --json)
        (($# > 1)) || die "$1 needs a value: $FUZZ_USAGE"
        case "$1" in
          --seconds) seconds="$2" ;;
          --target) pattern="$2" ;;
          --json) json="$2" ;;
        esac
        shift
        ;;
      *) die "fuzz does not know '$1': $FUZZ_USAGE" ;;
    esac
    shift
  done
  mkdir -p "$FUZZ_ROOT"
  if [[ "$coverage" == yes ]]; then
    fuzz_coverage "$json"
    return
  fi
  local targets=()
  mapfile -t targets < <(fuzz_targets "$pattern")
  ((${#targets[@]})) || die "no fuzz target matches '$pattern' (tests/fuzz/*_target.cc)"
  TALLY="$LOG_DIR/fuzz.tally"
  : >"$TALLY"
  with_lock test run_fuzzers "$seconds" "$json" "${targets[@]}"
  close_tally
}
