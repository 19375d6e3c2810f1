#!/usr/bin/env bash
# Builds and runs every test. The last line says "N passed, N failed, N skipped", also when a step before the tests
# fails: that step is a failure then. The exit code is 0 only when nothing failed.
#
#   scripts/test.sh            unit tests, sanitizers, fuzzing, end to end
#   scripts/test.sh --quick    without sanitizers and fuzzing
#   scripts/test.sh --full     with the long runs (label `long`) and the container image, built twice
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

quick=0
full=0
for argument in "$@"; do
  case "$argument" in
    --quick) quick=1 ;;
    --full) full=1 ;;
    *) echo "unknown argument $argument: --quick or --full" >&2; exit 2 ;;
  esac
done
# Test programs in which threads meet; GoogleTest itself is not instrumented, the code under test is.
threaded=(worker_pool_test mailbox_test stats_test engine_test engine_loop_test non_finite_test load_model_test)
# Of others only the cases in which threads meet, on one model: all would take minutes under the thread sanitizer.
threaded_in_part=(model_test bit_exact_test)
threaded_cases='WeightsTest.*:*ThreadsDoNotMatter/tiny_odd*:*TwoEngines*/tiny_odd*:*DepthOne*/tiny_odd*-*SmolLm2*'
left_out='^long$'  # labels of ctest
pytest_marks=(-m "not long")
if [ "$full" -eq 1 ]; then
  left_out='^$'
  pytest_marks=()
fi
results=build/test-results
rm -rf "$results"
mkdir -p "$results"

# Ends with the totals however the script ends.
totals_printed=0
print_totals() {
  local code=$?
  trap - EXIT
  if [ "$totals_printed" -eq 0 ]; then
    if [ "$code" -eq 0 ]; then code=1; fi
    printf '\n== Result: "%s" failed with exit code %s\n' "$current_step" "$code"
    python3 scripts/sum_tests.py "$results" "$current_step" || [ $? -eq 1 ] || echo "0 passed, 1 failed, 0 skipped"
  fi
  exit "$code"
}
trap print_totals EXIT

# run_ctest ACCOUNT PRESET CTEST-ARGUMENT...: every GoogleTest program writes its cases beside ctest's own account.
run_ctest() {
  local account="$1" preset="$2"
  shift 2
  mkdir -p "$results/$account"
  GTEST_OUTPUT="xml:$PWD/$results/$account/" ctest --test-dir "build/$preset" --output-on-failure \
    --output-junit "$PWD/$results/$account/ctest.xml" "$@" || true
}
# one_of NAME...: a regular expression for ctest.
one_of() {
  local IFS='|'
  echo "^($*)\$"
}

step "Packages"
need_for_build
need_for_tests
if [ "$full" -eq 1 ]; then need_for_image; fi
install_missing

step "Python environment"
make_test_venv

step "Model and helm"
scripts/fetch_model.sh
scripts/fetch_helm.sh

step "Build: program and unit tests"
# Under the sanitizers is where they are worth most.
memory_tests=OFF
if [ "$quick" -eq 1 ]; then memory_tests=ON; fi
build_with_tests "$memory_tests" all

step "Build: CUDA code for compute capability 9.0"
find_nvcc
# That it compiles is what can be shown without a GPU; scripts/bundle.sh compiles it optimised.
if [ ! -f build/hopper-quick/build.ninja ]; then cmake --preset hopper-quick -DSLUICE_NVCC="$nvcc"; fi
build hopper-quick sluice_kernels_cuda sluice_bench_device

step "Unit tests"
without_memory='|^memory$'
if [ "$quick" -eq 1 ]; then without_memory=''; fi
run_ctest unit release --parallel "$(nproc)" -LE "$left_out$without_memory"
# What was simulated, so that it can be run again.
grep -ohE '^(seeds from|seed [0-9]+ fails|  sim --seed|[0-9]+ seeds,) .*' "$results/unit/ctest.xml" || true

if [ "$quick" -eq 0 ]; then
  step "Address and undefined-behaviour sanitizers: kernels and engine"
  build asan-ubsan all
  run_ctest asan-ubsan asan-ubsan --parallel "$(nproc)" -LE "$left_out|^fuzz\$|^values\$"

  step "Fuzzing: each target for 20 s"
  run_ctest fuzz asan-ubsan --parallel "$(nproc)" -L '^fuzz$'

  step "Thread sanitizer: worker pool, mailboxes, engine, scheduler, loading"
  build tsan "${threaded[@]}" "${threaded_in_part[@]}"
  run_ctest tsan tsan -R "$(one_of "${threaded[@]}")" -LE "$left_out"
  GTEST_FILTER="$threaded_cases" run_ctest tsan-part tsan -R "$(one_of "${threaded_in_part[@]}")" -LE "$left_out"
fi

step "End to end, rules and dashboard, the chart, the image"
# Two files at a time, the longest first, so that none is left over at the end.
longest=(tests/e2e/test_chaos.py tests/chart/test_chart_matrix.py tests/e2e/test_generate.py tests/e2e/test_cli.py tests/e2e/test_tokenizers.py
  tests/e2e/test_identity.py)
mapfile -t others < <(printf '%s\n' tests/{e2e,deploy,chart,image}/test_*.py | grep -vxFf <(printf '%s\n' "${longest[@]}"))
"$venv/bin/python3" -m pytest "${longest[@]}" "${others[@]}" -n 2 --dist loadfile --no-loadscope-reorder -q --tb=short -p no:cacheprovider \
  -o junit_family=xunit1 "${pytest_marks[@]}" \
  --junitxml="$results/e2e.xml" || true

step "Compared with the references"
# What failed or was skipped is in the totals below; the table names it and fails nothing.
compared=("$results/unit")
if [ "$quick" -eq 0 ]; then
  for account in "$results"/asan-ubsan/*.xml; do
    if [ ! -f "$results/unit/${account##*/}" ]; then compared+=("$account"); fi
  done
fi
python3 scripts/compatibility.py --allow-skips "${compared[@]}" "$results/e2e.xml" || true

step "Result ($SECONDS s)"
code=0
python3 scripts/sum_tests.py "$results" || code=$?
# Another code is that of a summary that broke off: the trap counts it.
if [ "$code" -le 1 ]; then totals_printed=1; fi
exit "$code"
