#!/usr/bin/env bash
# Makes a folder of the programs with every library they need beside them, to run on a host that has no more than the
# NVIDIA driver: sluice, the benchmarks of a GPU, make_model, gpu_check.sh.
#
#   scripts/bundle.sh [--tests | --tests-without-golden] [BUILD_DIR] OUT     BUILD_DIR: build/hopper, of the preset of that name,
#                                                                            or another
# --tests: the tests with label cuda too, 180 MB more, and the golden files. --tests-without-golden: for a host that has the
# sources' tests/golden; link it into the bundle's tests/.
# Left out: the C library and the driver, which are the host's, and CUDA's libraries. Bundled libraries are found because
# programs look into lib/ beside them. OUT must not exist, or be a bundle already.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tests=0
golden=0
case "${1:-}" in
  --tests) tests=1 golden=1; shift ;;
  --tests-without-golden) tests=1; shift ;;
esac
case $# in
  1) tree=build/hopper out="$1" ;;
  2) tree="$1" out="$2" ;;
  *) die "usage: scripts/bundle.sh [--tests | --tests-without-golden] [BUILD_DIR] OUT" ;;
esac
[ -f "$tree/build.ninja" ] || die "$tree is no build tree: cmake --preset hopper, then cmake --build --preset hopper"
grep -q '^SLUICE_TEST_ROOT:[A-Z]*=\.$' "$tree/CMakeCache.txt" \
  || die "$tree: tests would look for tests/golden where they were built; configure with -DSLUICE_TEST_ROOT=."
if [ -e "$out" ]; then
  [ -f "$out/BUNDLE" ] || die "$out is there and is no bundle"
  rm -rf "$out"
fi

programs=(sluice make_model engine_bench)
for source in bench/*_bench.cu; do programs+=("$(basename "${source%.*}")"); done
if [ "$tests" -eq 1 ]; then
  while read -r name; do programs+=("$name"); done < <(ctest --test-dir "$tree" -N -L cuda | sed -n 's/^ *Test *#[0-9]*: //p')
fi

mkdir -p "$out/lib"
present=()
for program in "${programs[@]}"; do
  if [ ! -x "$tree/$program" ]; then
    echo "not built, left out: $program" >&2
    continue
  fi
  present+=("$program")
  cp "$tree/$program" "$out/$program"
  strip "$out/$program"
  missing_libraries="$(ldd "$tree/$program" | awk '/not found/ {print $1}')"
  [ -z "$missing_libraries" ] || die "$program: not found:" $missing_libraries
  ldd "$tree/$program" | awk '$3 ~ /^\// {print $3}' | while read -r library; do
    name="$(basename "$library")"
    case "$name" in
      libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so* | ld-linux*) continue ;;
      libcuda.so* | libnvidia* | libcublas* | libcudart.so*) continue ;;
    esac
    [ -e "$out/lib/$name" ] || { cp -L "$library" "$out/lib/$name"; strip --strip-unneeded "$out/lib/$name"; }
  done
done
[ -x "$out/sluice" ] || die "$tree/sluice is not built"

# What tests read, where they look for it when they are started in the bundle.
mkdir -p "$out/tests"
if [ "$golden" -eq 1 ]; then cp -r tests/golden "$out/tests/golden"; fi
cp scripts/gpu_check.sh scripts/gpu_table.py "$out/"
{
  "$out/sluice" --version
  printf '%s\n' "${present[@]}"
} >"$out/BUNDLE"

du -sh "$out" | cut -f1 | sed 's/$/ in all/'
du -sh "$out/lib" | cut -f1 | sed 's/$/ of libraries/'
echo "$(cat "$out/BUNDLE" | head -1), ${#present[@]} programs in $out"
