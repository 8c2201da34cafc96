# tools/dev setup: system packages and the Python environment. Quiet and quick when nothing is
# missing; tools/dev build calls only the first half.

readonly PACKAGES_FILE="$ROOT/tools/packages.txt"
readonly REQUIREMENTS="$ROOT/tools/requirements.txt"

missing_packages() {
  local wanted installed
  wanted="$(sed 's/#.*//' "$PACKAGES_FILE" | tr -s '[:space:]' '\n' | sed '/^$/d' | sort -u)"
  # shellcheck disable=SC2086
  installed="$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
    sed -n 's/^installed //p' | sort -u || true)"
  comm -23 <(printf '%s\n' "$wanted") <(printf '%s\n' "$installed")
}

install_packages() {
  local as_root=()
  if ((EUID != 0)); then
    as_root=(sudo --non-interactive)
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@"
}

setup_system() {
  command -v dpkg-query >/dev/null ||
    die "this is not a Debian system: install what tools/packages.txt names, then use cmake --preset release"
  local missing
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]} == 0)); then
    return 0
  fi
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    die "missing packages, and neither root nor sudo: apt-get install ${missing[*]}"
  fi
  say "installing ${#missing[@]} system packages: ${missing[*]}"
  with_lock apt stage "system packages" install_packages "${missing[@]}"
}

install_requirements() {
  [[ -x "$VENV/bin/python" ]] || python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -r "$REQUIREMENTS"
  sha256sum <"$REQUIREMENTS" >"$VENV/.requirements.sha256"
}

python_is_current() {
  [[ -x "$VENV/bin/python" && -f "$VENV/.requirements.sha256" ]] &&
    [[ "$(sha256sum <"$REQUIREMENTS")" == "$(<"$VENV/.requirements.sha256")" ]]
}

# Checked again under the lock: another process may have done it meanwhile.
setup_python_locked() {
  python_is_current || stage "python environment" install_requirements
}

setup_python() {
  python_is_current || with_lock python setup_python_locked
}

cmd_setup() {
  setup_system
  setup_python
}
