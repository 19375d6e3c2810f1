#!/usr/bin/env bash
# From a fresh clone to streamed text: installs what is missing, builds, fetches a model, serves it on loopback,
# generates once through gRPC, stops the server.
#
#   scripts/quickstart.sh [PROMPT]
#
# Exit codes: 0 all well; 3 packages are missing and cannot be installed from here (the command is printed); else 1.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
prompt="${1:-The capital of France is}"

step "Packages"
need_for_build
install_missing

step "Build"
build release sluice

step "Model"
scripts/fetch_model.sh

step "Serve"
log="$(mktemp build/quickstart.XXXXXX)"
server=
stop_server() {
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -TERM "$server"
    wait "$server" || true
  fi
  rm -f "$log"
}
trap stop_server EXIT
# Port 0 takes a free one, so nothing that runs already is in the way; the ready line names it.
build/release/sluice serve --model "$model_path" --listen 127.0.0.1:0 --log-level warn >"$log" &
server=$!
for _ in $(seq 600); do
  grep -q '^ready on ' "$log" && break
  kill -0 "$server" 2>/dev/null || die "the server ended before it was ready"
  sleep 0.05
done
grep '^ready on ' "$log" || die "the server was not ready within 30 s"
address="$(sed -n 's/^ready on \([^ ]*\): .*/\1/p' "$log")"

step "Generate, streamed over gRPC"
printf '%s' "$prompt"
build/release/sluice generate --server "$address" --prompt "$prompt" --max-tokens 64 --temperature 0

step "Stop"
kill -TERM "$server"
wait "$server" || die "the server did not end with 0"
server=
echo "the server has drained and ended; run your own with:"
echo "  build/release/sluice serve --model $model_path --listen 127.0.0.1:50051"
