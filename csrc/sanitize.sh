#!/bin/sh
# Runs the operator tests on CPU kernels built with AddressSanitizer and UBSan.
#
#     csrc/sanitize.sh [FOLDER]
#
# The build goes to FOLDER (build/sanitize by default), apart from the tree's own extension.
# PYTHON names the interpreter. Leaks are not looked for: Python itself keeps memory at exit.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/build/sanitize}
python=${PYTHON:-python3}

mkdir -p "$work/lib"
cp -R "$root/autoselect" "$work/lib/"
rm -f "$work"/lib/autoselect/_C*.so

cd "$root"
AUTOSELECT_SANITIZE=1 FORCE_CPU=1 "$python" setup.py build_ext \
    --build-lib "$work/lib" --build-temp "$work/objects"

preload=""
for library in libasan.so libubsan.so libstdc++.so; do
    preload="$preload $(g++ -print-file-name=$library)"
done

cd "$work"
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    PYTHONPATH="$work/lib" AUTOSELECT_REQUIRE_NATIVE=1 \
    "$python" -m pytest --rootdir="$root" -p no:cacheprovider -m "not slow" \
    "$root/tests/ops/test_philox.py" "$root/tests/ops/test_soft_top_k.py" \
    "$root/tests/ops/test_noise_gate.py" "$root/tests/ops/test_noise_statistics.py" \
    "$root/tests/ops/test_hard_top_k.py" "$root/tests/ops/test_input_errors.py" \
    "$root/tests/ops/test_diverse_top_k.py" "$root/tests/ops/test_marginal_order.py" \
    "$root/tests/ops/test_properties.py"
