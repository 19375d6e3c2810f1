#!/usr/bin/env bash
# Compares with the references and prints, for each weight type, architecture, tokenizer and file format: cases, equal,
# not equal, near-ties. Builds what it needs. Exit code 0 only when everything was compared and is equal.
#
#   scripts/compatibility.sh                  the table
#   scripts/compatibility.sh --json           the same as JSON, with every kind of case
#   scripts/compatibility.sh --allow-skips    also 0 when tests were skipped, as those of AVX-512 on machines without it
#
# What the tests say goes to build/compatibility/log; the steps are announced on standard error.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

flags=()
for argument in "$@"; do
  case "$argument" in
    --json | --allow-skips) flags+=("$argument") ;;
    *) echo "unknown argument $argument: --json or --allow-skips" >&2; exit 2 ;;
  esac
done
programs=(canonical_product_test dequantize_test linear_bits_test golden_test tokenizer_test gguf_test safetensors_test
  safetensors_golden_test hostile_file_test)
results=build/compatibility
rm -rf "$results"
mkdir -p "$results"

prepare() {
  step "Packages"
  need_for_build
  need_for_tests
  install_missing
  step "Python environment"
  make_test_venv
  step "Model"
  scripts/fetch_model.sh
  step "Build"
  build_with_tests ON "${programs[@]}" sluice
}
prepare >&2

# A test that fails is counted in the table; one that leaves no account is missed there.
step "Compare" >&2
account() {
  local names
  names="$(IFS='|'; echo "${programs[*]}")"
  GTEST_OUTPUT="xml:$PWD/$results/" ctest --test-dir build/release --output-on-failure -R "^($names)\$" || true
  "$venv/bin/python3" -m pytest tests/e2e/test_tokenizers.py -q --tb=short -p no:cacheprovider -o junit_family=xunit1 \
    -k "reference or complete" --junitxml="$results/e2e.xml" || true
}
account >"$results/log" 2>&1
python3 scripts/compatibility.py "${flags[@]}" "$results"
