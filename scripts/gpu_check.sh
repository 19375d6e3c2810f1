#!/usr/bin/env bash
# Shows on a GPU host what is to be shown there: correctness, then speed beside the device's limits and llama.cpp. Runs
# in a folder that scripts/bundle.sh made, on a host with the NVIDIA driver (compute-sanitizer from the toolkit, python3
# for the table). Prints one table, and JSON lines to be kept in bench/results/.
#
#   ./gpu_check.sh [SECTION...]      all sections when none is named, within about ten minutes on an H200
#
#   tests      the tests with label cuda          engine   engine_bench: the five models, several batches
#   sanitizer  compute-sanitizer over the ops     server   sluice serve under sluice bench; start to ready
#   verify     sluice verify --device             peer     llama.cpp's benches, from $PEER_DIR
#   kernels    benches of single kernels          table    only the table, of results that are there
#                                                 clean    removes the models that were made: 21 GB of memory or disk
#
# Sections may be run in several calls: figures gather in $RESULTS (default: results), one file a section.
# Other settings from the environment: DEVICE (cuda:0), MODELS (folder of real models: models), SCRATCH (folder for
# 15 GB of generated ones), CASES (which models, of: smollm2 0.5b-q4km 0.5b-bf16 7b-q4km 7b-bf16), QUICK=1 (fewer
# repetitions).
set -uo pipefail
cd "$(dirname "$0")"

device="${DEVICE:-cuda:0}"
models="${MODELS:-models}"
results="${RESULTS:-results}"
cases="${CASES:-smollm2 0.5b-q4km 0.5b-bf16 7b-q4km 7b-bf16}"
repetitions=5
if [ "${QUICK:-0}" = 1 ]; then repetitions=2; fi
sections=("$@")
if [ ${#sections[@]} -eq 0 ]; then sections=(tests sanitizer verify kernels engine server peer table); fi
mkdir -p "$results"
begin=$SECONDS

say() { printf '[%3d s] %s\n' $((SECONDS - begin)) "$*"; }
# limited SECONDS PROGRAM...: killed when it takes longer; the exit code is 124 then.
limited() { timeout --kill-after=5 "$@"; }
programs() { grep -E "$1" BUNDLE || true; }
# record SECTION NAME EXIT-CODE [MEMBERS]: one line of JSON for the table.
record() { printf '{"check": "%s", "name": "%s", "exit": %d%s}\n' "$1" "$2" "$3" "${4:+, $4}" >>"$results/$1.jsonl"; }

# The model of a case, made when it is not there yet; the path is in $model.
scratch=""
choose_scratch() {
  if [ -n "$scratch" ]; then return; fi
  scratch="${SCRATCH:+$SCRATCH/sluice-check}"
  if [ -z "$scratch" ]; then
    scratch=/tmp/sluice-check
    if [ -d /dev/shm/sluice-check ]; then scratch=/dev/shm/sluice-check; fi
    # Memory, when it holds the largest.
    if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 24000000 ] 2>/dev/null; then scratch=/dev/shm/sluice-check; fi
  fi
  mkdir -p "$scratch"
}
get_model() {
  local shape types
  case "$1" in
    smollm2)
      model="$models/SmolLM2-135M-Instruct.Q4_1.gguf"
      if [ -f "$model" ]; then return 0; fi
      shape=smollm2-135m types=q4_1 ;;
    0.5b-q4km) shape=qwen2.5-0.5b types=q4_k_m ;;
    0.5b-bf16) shape=qwen2.5-0.5b types=bf16 ;;
    7b-q4km) shape=qwen2.5-7b types=q4_k_m ;;
    7b-bf16) shape=qwen2.5-7b types=bf16 ;;
    *) say "no such case: $1"; return 1 ;;
  esac
  choose_scratch
  model="$scratch/$shape.$types.gguf"
  if [ -f "$model" ]; then return 0; fi
  limited 120 ./make_model "$shape" "$types" "$model" || { say "make_model failed: $1"; return 1; }
}

# Programs run side by side: most of their time is the references' on the host. The products' tests in four parts.
run_tests() {
  local program part
  for program in $(programs '_test$'); do
    case "$program" in
      cuda_linear_test) for part in 0 1 2 3; do run_test "$program" "$part" 4 & done ;;
      *) run_test "$program" 0 1 & ;;
    esac
    while [ "$(jobs -rp | wc -l)" -ge "${TEST_JOBS:-8}" ]; do wait -n; done
  done
  wait
}
# run_test PROGRAM PART PARTS
run_test() {
  local program="$1" name="$1" log code passed failed skipped
  if [ "$3" -gt 1 ]; then name="$1 $(($2 + 1))/$3"; fi
  log="$results/${name//[ \/]/-}.log"
  GTEST_SHARD_INDEX="$2" GTEST_TOTAL_SHARDS="$3" limited 240 "./$program" --gtest_brief=1 >"$log" 2>&1
  code=$?
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -1)
  failed=$(grep -c '^\[  FAILED  \] .*ms)' "$log")
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$log" | tail -1)
  record tests "$name" "$code" "\"passed\": ${passed:-0}, \"failed\": $failed, \"skipped\": ${skipped:-0}"
  say "$name: ${passed:-0} passed, $failed failed, ${skipped:-0} skipped, exit $code"
  if [ "$code" -ne 0 ]; then tail -n 15 "$log"; fi
}

# The tests of operations, and of the whole model one small one: cases of sanitized_cases.
run_sanitizer() {
  local tool program cases sanitizer
  sanitizer="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  if [ ! -x "$sanitizer" ]; then
    say "compute-sanitizer is not here: the toolkit has it"
    record sanitizer all 127
    return
  fi
  local tools="${SANITIZER_TOOLS:-racecheck initcheck memcheck synccheck}" wanted="${SANITIZER_TESTS:-decode}"
  # Alone: blocks of the one-kernel step wait for each other, and give up when too much runs beside them.
  if [[ " $tools " == *" racecheck "* && "$wanted" == *decode* && -x cuda_decode_test ]]; then
    sanitize "$sanitizer" racecheck cuda_decode_test '*/wide_q4_k_m'
  fi
  # Several at once: most of their time is the tools' own, on the host. Each takes memory of the device for what it keeps of
  # every byte.
  set -f  # cases are GoogleTest's patterns
  for tool in $tools; do
    for program in $(programs "^cuda_(${SANITIZER_TESTS:-attention|attention_tile|rope_store|sampling|linear|layer_ops|golden|decode})_test\$"); do
      for cases in $(sanitized_cases "$tool" "$program"); do
        while [ "$(jobs -rp | wc -l)" -ge "${SANITIZER_JOBS:-$(nproc)}" ]; do wait -n; done
        sanitize "$sanitizer" "$tool" "$program" "$cases" &
      done
    done
  done
  set +f
  wait
}
# The cases of a program that end within two minutes under a tool, of each kernel at least one; a line a run. Tests of 10^5 cases
# take hours; what racecheck keeps of every access to shared memory makes large products take as long.
sanitized_cases() {
  case "$1 $2" in
    "racecheck cuda_linear_test")
      echo '*Three*/Q5_0' '*Three*/BF16' '*ItemToItem/BF16' '*ItemToItem/Q6_K' 'CudaRows*' ;;
    *cuda_linear_test)
      echo '*Bits*/BF16:*ItemToItem/BF16' '*Three*/Q4_K' '*LastRounds*/BF16' 'CudaRows*' ;;
    "racecheck cuda_layer_ops_test") echo '*VariantsOfArchitectures' ;;
    *cuda_layer_ops_test) echo '*OddShapes' ;;
    "racecheck cuda_attention_test" | "initcheck cuda_attention_test")
      echo '*/D64_Ratio3_F16:*/D80_Ratio1_F16:*/D256_Ratio1_F16:*/D20_Ratio3_F16:*/D64_Ratio7_F32:*/D64_Ratio7_BF16:*Alone/H9_G3_D64_F16' ;;
    # One size of each that heads are padded to.
    "racecheck cuda_attention_tile_test" | "initcheck cuda_attention_tile_test") echo '*/2:*/6:*/7:*/9:*/11' ;;
    *cuda_sampling_test) echo '*CutsLargeGroups*:*SaysWhenNothingIsLeft:*AGraphServes*:*RefusesWhat*' ;;
    *_golden_test) echo '*tiny_odd_f16*' '*tiny_odd_q4_k_m*' ;;
    "racecheck cuda_decode_test") echo '*tiny_odd_f16*' '*tiny_odd_q4_k_m*' ;;  # and long rows, alone
    *_decode_test) echo '*tiny_odd_f16*' '*tiny_odd_q4_k_m*' '*/wide_q4_k_m' ;;
    *) echo '*' ;;
  esac
}
# sanitize SANITIZER TOOL PROGRAM CASES
sanitize() {
  local name="$3 $2 $4" code began=$SECONDS
  if [ "$4" = '*' ] || [ ${#4} -gt 30 ]; then name="$3 $2"; fi
  local log="$results/${name//[^a-z0-9_A-Z]/-}.log"
  # Of the one-kernel step's positions a tile and some more. Racecheck, which is slow, sees so many of one model; of long rows one
  # step more than the two before a program is there.
  local tokens=70
  case "$2 $4" in
    'racecheck *tiny_odd_q4_k_m*') tokens=8 ;;
    'racecheck */wide_'*) tokens=3 ;;
  esac
  SLUICE_DECODE_TOKENS=$tokens limited "${SANITIZER_SECONDS:-270}" "$1" --tool "$2" --error-exitcode 99 --print-limit 5 \
    "./$3" --gtest_brief=1 --gtest_filter="$4" >"$log" 2>&1
  code=$?
  if grep -q '^\[=*\] 0 tests' "$log"; then code=98; fi
  record sanitizer "$name" "$code"
  say "$name: exit $code in $((SECONDS - began)) s, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -1 | sed 's/=* //')"
}

run_verify() {
  local file code
  local files=(tests/golden/tiny/tiny-*.gguf)
  if [ "${QUICK:-0}" = 1 ]; then files=("${files[@]:0:3}"); fi
  for file in "$models"/SmolLM2*.gguf "${files[@]}"; do
    if [ ! -f "$file" ]; then continue; fi
    limited 60 ./sluice verify --model "$file" --device "$device" >"$results/verify.log" 2>&1
    code=$?
    record verify "$(basename "$file")" "$code"
    say "verify $(basename "$file"): exit $code, $(tail -n 1 "$results/verify.log")"
  done
}

run_kernels() {
  local program
  for program in $(programs '^cuda.*_bench$'); do
    say "$program"
    limited 60 "./$program" 2>&1 | tee "$results/$program.log" | tail -n 60
    record kernels "$program" "${PIPESTATUS[0]}"
  done
}

# bench_engine CASE ARGUMENT...: the JSON line goes to the results; others may use the machine meanwhile on small hosts.
bench_engine() {
  local name="$1" log code
  shift
  log="$results/engine-$name.log"
  limited 90 ./engine_bench "$model" --device "$device" --repetitions "$repetitions" "$@" >"$log" 2>&1
  code=$?
  grep -v '^{' "$log" | sed "s/^/  $name: /"
  grep '^{' "$log" | sed "s/^{/{\"check\": \"engine\", \"name\": \"$name\", \"exit\": $code, /" >>"$results/engine.jsonl"
  if ! grep -q '^{' "$log"; then record engine "$name" "$code"; fi
}
run_engine() {
  local case
  for case in $cases; do
    get_model "$case" || continue
    say "engine_bench $case"
    case "$case" in
      7b-*)
        bench_engine "$case" --prefill 2048 --context 128 --batches 1,64 --verify 1
        bench_engine "$case-fast" --numerics fast --prefill 2048 --context 128 --batches none ;;
      *)
        bench_engine "$case" --prefill 512,2048 --context 512 --batches 1,8
        bench_engine "$case" --prefill none --context 128 --batches 1,64,256 --verify 1
        bench_engine "$case-fast" --numerics fast --prefill 2048 --context 128 --batches 256 ;;
    esac
  done
}

metrics_port="${METRICS_PORT:-19464}"
# Starts a server on $model; its address is in $address and the seconds until it was ready in $ready.
start_server() {
  local since log="$results/serve.log" line
  since=$(date +%s%N)
  : >"$log"
  # Not through `limited`: signals for the shell that runs a function do not reach the server.
  timeout --kill-after=5 240 ./sluice serve --model "$model" --device "$device" --listen 127.0.0.1:0 --max-batch 256 \
    --max-step-tokens 2048 --metrics-listen "127.0.0.1:$metrics_port" >"$log" 2>"$results/serve.err" &
  server=$!
  for _ in $(seq 3000); do
    line="$(head -n 1 "$log")"
    if [ -n "$line" ]; then break; fi
    if ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 0.02
  done
  ready=$(awk -v a="$since" -v b="$(date +%s%N)" 'BEGIN {printf "%.2f", (b - a) / 1e9}')
  address="$(sed -n 's/^ready on \([^ ]*:[0-9]*\):.*/\1/p' "$log")"
  if [ -n "$address" ]; then return 0; fi
  say "the server did not get ready: $(tail -n 2 "$results/serve.err")"
  stop_server
  return 1
}
stop_server() {
  kill -TERM "$server" 2>/dev/null
  wait "$server" 2>/dev/null
}
# Seconds of all steps so far, and of the device's waits for the host between them.
step_seconds() {
  python3 - "http://127.0.0.1:$metrics_port/metrics" <<'EOF'
import re, sys, urllib.request
text = urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()
print(*(sum(float(x) for x in re.findall(rf"^sluice_step_{name}_seconds_sum\S* (\S+)", text, re.M))
        for name in ("duration", "host_gap")))
EOF
}
# bench_server CASE LOAD ARGUMENT...: one load.
bench_server() {
  local name="$1" load="$2" line
  shift 2
  line="$(limited 60 ./sluice bench --server "$address" --json "$@" 2>"$results/bench.err")"
  if [ -z "$line" ]; then
    say "sluice bench failed: $(tail -n 1 "$results/bench.err")"
    record server "$name $load" 1
    return
  fi
  printf '%s\n' "$line" | sed "s/^{/{\"check\": \"server\", \"name\": \"$name $load\", \"exit\": 0, /" >>"$results/server.jsonl"
  say "$name, $load: $(printf '%s' "$line" | sed 's/.*"calls_ok"/"calls_ok"/; s/, "server_first.*//')"
}
run_server() {
  local case before gap
  for case in $cases; do
    get_model "$case" || continue
    say "sluice serve $case"
    if ! start_server; then
      record server "$case start" 1
      continue
    fi
    record server "$case start" 0 "\"seconds\": $ready"
    say "$case: start to ready $ready s"
    bench_server "$case" first-token --streams 1 --requests 60 --warmup 10 --prompt 128 --output 8
    before="$(step_seconds)"
    bench_server "$case" 64-streams --streams 64 --requests 512 --prompt 128 --output 128
    gap="$(echo "$before" "$(step_seconds)" | awk 'NF == 4 && $3 > $1 {printf "%.4f", ($4 - $2) / ($3 - $1)}')"
    if [ -n "$gap" ]; then
      record server "$case host-gap" 0 "\"share\": $gap"
      say "$case, 64 streams: the device waited for the host $gap of its steps' time"
    fi
    if [ "${QUICK:-0}" != 1 ]; then
      bench_server "$case" 256-streams --streams 256 --requests 1024 --prompt 128 --output 128
    fi
    stop_server
  done
}

run_peer() {
  local case peer="${PEER_DIR:-peer}"
  if [ ! -x "$peer/llama-bench" ]; then
    say "llama.cpp is not in $peer (PEER_DIR): left out"
    return
  fi
  export LD_LIBRARY_PATH="$peer:$peer/lib:${LD_LIBRARY_PATH:-}"
  for case in $cases; do
    get_model "$case" || continue
    say "llama.cpp $case"
    limited 120 "$peer/llama-bench" -m "$model" -ngl 99 -fa 1 -p 512,2048 -n 128 -d 0,512 -r 3 -o jsonl 2>"$results/peer.err" \
      | sed "s/^{/{\"check\": \"peer\", \"name\": \"$case\", /" >>"$results/peer.jsonl"
    if [ -x "$peer/llama-batched-bench" ]; then
      limited 120 "$peer/llama-batched-bench" -m "$model" -ngl 99 -fa on -c 70000 -b 2048 -ub 2048 -npp 128 -ntg 128 \
        -npl 1,64,256 --output-format jsonl 2>>"$results/peer.err" | grep '^{' \
        | sed "s/^{/{\"check\": \"batched\", \"name\": \"$case\", /" >>"$results/peer.jsonl"
    fi
  done
}

for section in "${sections[@]}"; do
  case "$section" in
    tests | sanitizer | verify | kernels | engine | server | peer)
      rm -f "$results/$section.jsonl"
      "run_$section" ;;
    table) ;;
    clean)
      choose_scratch
      rm -rf "$scratch" ;;
    *) echo "unknown section $section: tests, sanitizer, verify, kernels, engine, server, peer, table or clean" >&2; exit 2 ;;
  esac
done
say "done: $(head -n 1 BUNDLE), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)"
python3 ./gpu_table.py "$results"
