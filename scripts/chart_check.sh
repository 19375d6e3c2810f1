#!/usr/bin/env bash
# All that can be known of the Helm chart without a cluster: renders, refusals, schemas, policies, and pods that run on this
# machine as they are rendered. The last lines count what was checked.
#
#   scripts/chart_check.sh            every value set x version of Kubernetes x operators x helm 3 and 4 (minutes)
#   scripts/chart_check.sh --quick    such that every two of these meet
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

marks=()
for argument in "$@"; do
  case "$argument" in
    --quick) marks=(-m "not long") ;;
    *) echo "unknown argument $argument: --quick" >&2; exit 2 ;;
  esac
done

step "Packages, Python environment, helm, model"
need_for_build
need_for_tests
install_missing
make_test_venv
scripts/fetch_helm.sh
scripts/fetch_model.sh

step "Build"
build release sluice

step "Chart"
# Cases of the matrix one by one, wherever there is time; pods run side by side in one process.
"$venv/bin/python3" -m pytest tests/chart -n "$(nproc)" --dist loadgroup -q --tb=short -p no:cacheprovider "${marks[@]}"
