#!/usr/bin/env bash
# Gathers what an image needs of a build: the program, stripped, the libraries beside it that a bare Debian has not, and a
# list of the packages that they came from. The Dockerfile runs it.
#
#   scripts/image_files.sh PROGRAM OUT
#
# OUT/sluice finds OUT/lib by itself (DT_RPATH). OUT/packages.txt: one line a package, name and version.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -eq 2 ] || die "usage: scripts/image_files.sh PROGRAM OUT"
program="$1" out="$2"
[ -x "$program" ] || die "$program is not there: build it first"
[ ! -e "$out" ] || die "$out is there already"
missing="$(ldd "$program" | awk '/not found/ {print $1}')"
[ -z "$missing" ] || die "$program: not found:" $missing

mkdir -p "$out/lib"
cp "$program" "$out/sluice"
strip "$out/sluice"
packages=()
while read -r library; do
  # The C library, its parts and the loader are the image's own.
  case "$(basename "$library")" in
    libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so* | ld-linux*) continue ;;
    libcuda.so* | libnvidia*) continue ;;  # of the driver, which the host brings
  esac
  cp -L "$library" "$out/lib/"
  strip --strip-unneeded "$out/lib/$(basename "$library")"
  # /lib is a link to /usr/lib: packages list one or the other.
  real="$(realpath "$library")"
  package="$(dpkg-query -S "$real" 2>/dev/null || dpkg-query -S "${real#/usr}")"
  packages+=("${package%%:*}")
done < <(ldd "$program" | awk '$3 ~ /^\// {print $3}' | sort -u)
printf '%s\n' "${packages[@]}" | sort -u | xargs dpkg-query -W -f '${Package} ${Version}\n' >"$out/packages.txt"
du -sh "$out" | cut -f1 | sed "s|$| in $out|"
