# tools/dev build: configure when needed, then ninja; one build at a time per checkout.

require setup

# Configures a new build folder, and an old one again when the list of source files has changed.
configure() {
  local preset="$1"
  if [[ ! -f "$BUILD_ROOT/$preset/build.ninja" ]] ||
    ! ninja -C "$BUILD_ROOT/$preset" build.ninja >/dev/null 2>&1; then
    STAGE_REPEAT="cmake --preset $preset" stage "configure $preset" cmake --preset "$preset"
  fi
}

# compile PRESET [NINJA ARGUMENTS...]
compile() {
  local preset="$1"
  shift
  configure "$preset" || return
  # shellcheck disable=SC2046
  STAGE_REPEAT="tools/dev build --preset $preset${*:+ $*}" \
    stage "build $preset" $(within_deadline) ninja -C "$BUILD_ROOT/$preset" -j "$(nproc)" "$@" || return
  # For editors and clangd, which look at the top of the checkout.
  ln -sfn "build/$preset/compile_commands.json" "$ROOT/compile_commands.json"
}

# build PRESET [TARGET...]
build() {
  setup_system
  with_lock build compile "$@"
}

cmd_build() {
  local preset=release targets=()
  while (($#)); do
    case "$1" in
      --preset)
        preset="${2:?--preset needs a name}"
        shift
        ;;
      -*) die "build does not know '$1': build [--preset P] [TARGET...]" ;;
      *) targets+=("$1") ;;
    esac
    shift
  done
  check_preset "$preset"
  build "$preset" "${targets[@]}"
}
