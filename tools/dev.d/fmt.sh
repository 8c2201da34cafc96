# tools/dev fmt: clang-format over our C++ sources.

require setup

# Tracked or new files, as git sees them, so that build output is left alone.
our_sources() {
  git ls-files -z --cached --others --exclude-standard -- \
    '*.h' '*.cc' | while IFS= read -r -d '' file; do
    [[ -f "$file" ]] && printf '%s\0' "$file"
  done
}

# Names the files that clang-format would change; what it would do there is `tools/dev fmt`.
format_check() {
  # shellcheck disable=SC2016
  our_sources | xargs -0 -r -n 20 -P "$(nproc)" bash -c '
    status=0
    for file; do
      clang-format-19 --dry-run --Werror "$file" 2>/dev/null ||
        { echo "$file: not formatted: tools/dev fmt"; status=1; }
    done
    exit $status' format_check
}

cmd_fmt() {
  setup_system
  case "${1:-}" in
    --check) STAGE_REPEAT="tools/dev fmt --check" stage "format" format_check ;;
    "") our_sources | xargs -0 -r -n 20 -P "$(nproc)" clang-format-19 -i ;;
    *) die "fmt does not know '$1': fmt [--check]" ;;
  esac
}
