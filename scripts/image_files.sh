#!/usr/bin/env bash
# Gathers what an image needs of a build: the program, stripped, the libraries beside it that a bare Debian has not, and
# lists of the packages that all of it came from. The Dockerfile runs it.
#
#   scripts/image_files.sh PROGRAM OUT     PROGRAM: in its build tree
#
# OUT/sluice finds OUT/lib by itself (DT_RPATH).
# OUT/packages.txt: packages whose libraries are in OUT/lib; one line a package, name and version.
# OUT/compiled-in.txt: packages whose headers were compiled in, in the same form: some are nothing but headers.
# OUT/copyright: what the packages of both say of their licences.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export LC_ALL=C  # sorts alike everywhere

[ $# -eq 2 ] || die "usage: scripts/image_files.sh PROGRAM OUT"
program="$1" out="$2"
[ -x "$program" ] || die "$program is not there: build it first"
[ ! -e "$out" ] || die "$out is there already"
missing="$(ldd "$program" | awk '/not found/ {print $1}')"
[ -z "$missing" ] || die "$program: not found:" $missing

# owners: the packages of the files that standard input names; a file may have none.
owners() {
  # /lib is a link to /usr/lib: packages list one or the other.
  grep -lxFf <(xargs realpath | sed 'p; s|^/usr||') /var/lib/dpkg/info/*.list | sed 's|.*/||; s|\.list$||; s|:.*||' | sort -u
}
# with_versions: the packages on standard input, each with its version.
with_versions() { xargs dpkg-query -W -f '${Package} ${Version}\n' | sort; }

mkdir -p "$out/lib" "$out/copyright"
cp "$program" "$out/sluice"
strip "$out/sluice"
libraries=()
while read -r library; do
  # The C library, its parts and the loader are the image's own.
  case "$(basename "$library")" in
    libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so* | ld-linux*) continue ;;
    libcuda.so* | libnvidia*) continue ;;  # of the driver, which the host brings
  esac
  cp -L "$library" "$out/lib/"
  strip --strip-unneeded "$out/lib/$(basename "$library")"
  # Each has a package, or this ends here.
  [ -n "$(owners <<<"$library")" ] || die "$library: of no package"
  libraries+=("$library")
done < <(ldd "$program" | awk '$3 ~ /^\// {print $3}' | sort -u)
printf '%s\n' "${libraries[@]}" | owners | with_versions >"$out/packages.txt"
ninja -C "$(dirname "$program")" -t deps | awk '$1 ~ /^\/usr\// {print $1}' | sort -u | owners | with_versions >"$out/compiled-in.txt"
cut -d' ' -f1 "$out/packages.txt" "$out/compiled-in.txt" | sort -u | while read -r package; do
  cp -L "/usr/share/doc/$package/copyright" "$out/copyright/$package"
done
chmod -R u=rwX,go=rX "$out"
du -sh "$out" | cut -f1 | sed "s|$| in $out|"
