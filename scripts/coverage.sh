#!/usr/bin/env bash
# Which lines of what reads files and requests are reached by unit tests and by the fuzz targets' corpora: a table on
# stdout, and what is not reached in build/coverage/missed.txt.
#
#   scripts/coverage.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tests=(gguf_test model_test inspect_test safetensors_test tokenizer_test hostile_file_test hostile_event_test read_fault_test)
fuzzers=(reader safetensors vocabulary bpe_text spm_text detokenizer request)
loader=(engine/gguf/byte_cursor.cc engine/gguf/checked_u64.h engine/gguf/gguf_parser.cc engine/gguf/gguf_text.cc engine/model_file engine/safetensors engine/model/architecture.cc engine/model/fact_reader.cc engine/model/model_config.cc
  engine/model/rope_reader.cc engine/model/tensor_places.cc engine/model/tensor_roles.cc engine/model/trait_reader.cc)
tokenizer=(engine/tokenizer)
validator=(server/field_limits.cc server/generate_validator.cc server/prompt_encoder.cc)

has_command llvm-cov || die "llvm-cov is not installed: it comes with clang's llvm package"
folder=build/coverage
build coverage "${tests[@]}" "${fuzzers[@]/%/_fuzzer}" >&2

rm -rf "$folder/raw"
mkdir -p "$folder/raw"
export LLVM_PROFILE_FILE="$PWD/$folder/raw/%p.profraw"
programs=()
# Without cases that measure time: they reach nothing that others do not.
timed='-*LongTexts*:*InTime:*LinearTime'
for name in "${tests[@]}"; do
  "$folder/$name" --gtest_brief=1 "--gtest_filter=$timed" >&2 || echo "$name failed" >&2
  programs+=(--object "$folder/$name")
done
for name in "${fuzzers[@]}"; do
  "$folder/${name}_fuzzer" -runs=0 "tests/fuzz/corpus/$name" 2>"$folder/$name.log" || { cat "$folder/$name.log" >&2; exit 1; }
  programs+=(--object "$folder/${name}_fuzzer")
done
llvm-profdata merge --sparse "$folder"/raw/*.profraw --output "$folder/all.profdata"
programs=("${programs[@]:1}")  # the first is named without the option

# report NAME PATH...: its lines.
report() {
  local name="$1"
  shift
  llvm-cov export "${programs[@]}" --instr-profile "$folder/all.profdata" --summary-only "${@/#/$root/}" \
    | python3 -c 'import json, sys
lines = json.load(sys.stdin)["data"][0]["totals"]["lines"]
print("{:10}{:6} lines, {:6} reached, {:.1f} %".format(sys.argv[1], lines["count"], lines["covered"], lines["percent"]))' "$name"
  llvm-cov show "${programs[@]}" --instr-profile "$folder/all.profdata" "${@/#/$root/}" | grep -E '^( +[0-9]+\| +0\||/)' >>"$folder/missed.txt" || true
}
: >"$folder/missed.txt"
report loader "${loader[@]}"
report tokenizer "${tokenizer[@]}"
report validator "${validator[@]}"
