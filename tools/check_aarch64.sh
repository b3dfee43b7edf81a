#!/usr/bin/env bash
# Compiles the CPU sources for aarch64, warnings as errors. Wants aarch64-linux-gnu-g++ and a Python
# with torch; links nothing and runs nothing.
#   tools/check_aarch64.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
sources=(csrc/cpu/*.cpp csrc/cpu/frank_wolfe/*.cpp csrc/cpu/simd/dispatch.cpp csrc/cpu/simd/kernels_portable.cpp)
# As one unit: most of the time goes into torch's headers.
printf '#include "%s"\n' "${sources[@]}" |
  aarch64-linux-gnu-g++ -std=c++20 -O0 -Wall -Wextra -Werror -fvisibility=hidden \
    -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem "$torch/include" -I . \
    -x c++ -c - -o /dev/null
echo "${#sources[@]} sources compile for aarch64"
