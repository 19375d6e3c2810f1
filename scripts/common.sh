# Sourced by the other scripts: what has to be installed, how many compilers fit into memory.
# Needs bash; works from any directory.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

model_name=SmolLM2-135M-Instruct.Q4_1.gguf
model_path="models/$model_name"

# step NAME: a heading; what runs now, for those who ask later.
current_step=start
step() {
  current_step="$*"
  printf '\n== %s\n' "$*"
}
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

has_command() { command -v "$1" >/dev/null 2>&1; }
has_module() { has_command pkg-config && pkg-config --exists "$1" 2>/dev/null; }
# clang's runtime for fuzz targets, whatever its version.
has_libfuzzer() { has_command clang++ && [ -f "$(clang++ -print-file-name=libclang_rt.fuzzer-x86_64.a)" ]; }
has_faketime() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null; }
has_venv() { has_command python3 && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }

# need PACKAGE CHECK...: adds PACKAGE to `missing` when CHECK fails.
missing=()
need() {
  local package="$1"
  shift
  "$@" || missing+=("$package")
}

need_for_build() {
  need cmake has_command cmake
  need ninja-build has_command ninja
  need g++ has_command g++
  need pkg-config has_command pkg-config
  need ccache has_command ccache
  need protobuf-compiler has_command protoc
  need protobuf-compiler-grpc has_command grpc_cpp_plugin
  need libgrpc++-dev has_module grpc++
  need libprotobuf-dev has_module protobuf
  need libabsl-dev has_module absl_status
  need prometheus-cpp-dev has_module prometheus-cpp-pull
  need libcli11-dev has_module CLI11
  need libspdlog-dev has_module spdlog
  need nlohmann-json3-dev has_module nlohmann_json
  need libpcre2-dev has_module libpcre2-8
  need libutf8proc-dev has_module libutf8proc
  need libssl-dev has_module libcrypto
  need python3-venv has_venv
}

need_for_tests() {
  need libgtest-dev has_module gtest
  need libgmock-dev has_module gmock
  need libbenchmark-dev has_module benchmark
  need clang has_command clang++
  need libclang-rt-14-dev has_libfuzzer
  need prometheus has_command promtool
  need libfaketime has_faketime
}

need_for_image() {
  need buildah has_command buildah
  need debootstrap has_command debootstrap
}

# Installs what `missing` names, or says how and exits 3.
install_missing() {
  if [ ${#missing[@]} -eq 0 ]; then
    echo "everything needed is installed"
    return
  fi
  local list="${missing[*]}" sudo=()
  if ! has_command apt-get; then
    echo "missing: $list; this script knows apt-get only: install them with your package manager" >&2
    exit 3
  fi
  if [ "$(id -u)" -ne 0 ]; then
    if ! { has_command sudo && sudo -n true 2>/dev/null; }; then
      echo "packages are missing and this is not root; run this, then start again:" >&2
      echo "sudo apt-get update && sudo apt-get install -y --no-install-recommends $list" >&2
      exit 3
    fi
    sudo=(sudo -n)
  fi
  echo "installing: $list"
  local environment=(env DEBIAN_FRONTEND=noninteractive)
  "${sudo[@]}" "${environment[@]}" apt-get update -qq || echo "apt-get update failed, going on" >&2
  "${sudo[@]}" "${environment[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    || die "apt-get could not install: $list"
}

# Compilers at once: one a core, each with 1.5 GiB of the memory that is free here.
build_jobs() {
  local cores free_kib limit_kib used limit jobs
  cores=$(nproc)
  free_kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  # A container's own limit may be smaller than the machine's memory.
  if [ -r /sys/fs/cgroup/memory.max ] && [ -r /sys/fs/cgroup/memory.current ]; then
    limit=$(cat /sys/fs/cgroup/memory.max)
    used=$(cat /sys/fs/cgroup/memory.current)
    if [ "$limit" != max ]; then
      limit_kib=$(((limit - used) / 1024))
      if [ "$limit_kib" -lt "$free_kib" ]; then free_kib=$limit_kib; fi
    fi
  fi
  jobs=$((free_kib / 1572864))
  if [ "$jobs" -gt "$cores" ]; then jobs=$cores; fi
  if [ "$jobs" -lt 1 ]; then jobs=1; fi
  echo "$jobs"
}

# build PRESET TARGET...: configures when the tree is new and builds.
build() {
  local preset="$1"
  shift
  if [ ! -f "build/$preset/build.ninja" ]; then
    cmake --preset "$preset"
  fi
  cmake --build --preset "$preset" -j "$(build_jobs)" --target "$@"
}

# build_with_tests MEMORY_TESTS TARGET...: the same for the tree of the program, with the tests in it: what they test is what users run.
# MEMORY_TESTS: ON, or OFF without those that the sanitizers' tree has.
build_with_tests() {
  local memory_tests="$1"
  shift
  if ! grep -qs '^SLUICE_TESTS:BOOL=ON' build/release/CMakeCache.txt \
    || ! grep -qs "^SLUICE_MEMORY_TESTS:BOOL=$memory_tests" build/release/CMakeCache.txt; then
    cmake --preset release -DSLUICE_TESTS=ON -DSLUICE_BENCH=ON "-DSLUICE_MEMORY_TESTS=$memory_tests"
  fi
  build release "$@"
}

# The Python environment of the scripts and tests; nothing is installed outside it.
venv=build/venv
make_venv() {
  if [ ! -x "$venv/bin/python3" ]; then
    python3 -m venv "$venv" || die "python3 -m venv failed: is python3-venv installed?"
  fi
}

# The same, with what the end-to-end tests and those of the chart need.
make_test_venv() {
  local stamp="$venv/requirements.sha256" wanted
  make_venv
  wanted="$(sha256sum tests/e2e/requirements.txt tests/chart/requirements.txt)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check \
      -r tests/e2e/requirements.txt -r tests/chart/requirements.txt
    echo "$wanted" >"$stamp"
  fi
}

# The CUDA compiler, in $nvcc: that of the PATH, else that of /usr/local/cuda, else NVIDIA's packages in the Python environment.
find_nvcc() {
  local version="13.0.*" folder
  nvcc="$(command -v nvcc || true)"
  if [ -z "$nvcc" ] && [ -x /usr/local/cuda/bin/nvcc ]; then nvcc=/usr/local/cuda/bin/nvcc; fi
  if [ -n "$nvcc" ]; then return; fi
  make_venv
  folder="$("$venv/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13"
  nvcc="$folder/bin/nvcc"
  if [ -x "$nvcc" ] && [ -e "$folder/lib64" ]; then return; fi
  "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check "nvidia-cuda-nvcc==$version" \
    "nvidia-cuda-crt==$version" "nvidia-cuda-runtime==$version" "nvidia-cuda-cccl==$version" "nvidia-nvvm==$version" \
    || die "pip could not install NVIDIA's compiler"
  # As the toolkit has them, where nvcc and CMake look.
  ln -sfn libcudart.so.13 "$folder/lib/libcudart.so"
  ln -sfn lib "$folder/lib64"
}
