#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a machine with a GPU can say about Annulus: correctness first, then numbers. Prints a table and writes gpu.json;
# every stage has its own time limit and leaves its result when a later one fails. Stage kernels also proves on the real
# arithmetic that norm and SwiGLU write the F8 and bf16 bits of rounding afterwards (CudaInputs); cudnn holds its attention to our
# plain kernel and, as --gpu-attention cudnn has it, to double precision; numbers sets ours beside cuDNN's, and norm and SwiGLU to
# F8 beside memory; serve asks a server on GPUs, through gRPC, what one on CPUs answers, with the program that needs glibc 2.35
# and no packages (tests/deploy/static builds it).
#   tests/gpu.sh                     all stages, with the binaries of build/ (built here where they are missing)
#   tests/gpu.sh STAGE...            some of: versions sanitizer kernels cudnn engine nccl serve numbers
#   tests/gpu.sh --pack DIR          copies binaries and every library they need but the driver's and CUDA's into DIR,
#                                    for a machine without a compiler or Debian's packages
#   tests/gpu.sh --from DIR STAGE... runs what was packed
# GPU_JSON names the result file (default: gpu.json here; the numbers go beside it, NAME-numbers.json). Exit 0: every stage
# passed; 3: there is no GPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${ANNULUS_BUILD:-$root/build}
json=${GPU_JSON:-gpu.json}
kernels=tests/kernels/cuda/kernels_cuda_test engine=tests/parallel/cuda/parallel_cuda_gpu_test
nccl=tests/parallel/cuda/nccl_gpu_test bench=bench/annulus-gpu-bench
packed=

case "${1:-}" in
  --help | -h) sed -n 3,14p "$0" | cut -c3-; exit 0 ;;
  --pack)
    to=${2:?--pack needs a folder}
    mkdir -p "$to/lib"
    for binary in $kernels $engine $nccl $bench; do
      cp "$build/$binary" "$to/" || exit 2
      ldd "$build/$binary" | awk '$3 ~ /^\// {print $3} $1 ~ /ld-linux/ {print $1}' | xargs -I{} cp -Lu {} "$to/lib/"
    done
    if [ -x "$build-static/server/annulus" ]; then
      strip -o "$to/annulus" "$build-static/server/annulus"
    else
      echo "without annulus, which stage serve needs: tests/deploy/static $build-static builds it"
    fi
    cp "$0" "$to/"
    du -sh "$to"
    exit 0
    ;;
  --from) packed=${2:?--from needs a folder}; shift 2 ;;
esac
stages=("$@")
all="versions sanitizer kernels cudnn engine nccl serve numbers"
[ "${#stages[@]}" -gt 0 ] || read -ra stages <<<"$all"

# run_binary PATH ARGUMENT...: from the build, or with the packed loader and libraries.
command_of() {
  if [ "$packed" ]; then
    echo "$packed/lib/ld-linux-x86-64.so.2" --library-path "$packed/lib" "$packed/$(basename "$1")"
  else
    echo "$build/$1"
  fi
}
versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || return 3
  uname -srm
  grep -m1 'model name' /proc/cpuinfo
  for library in libcublasLt.so.13 libnccl.so.2 libcudnn.so.9; do
    { ldconfig -p; find /usr/local /usr/lib /opt -name "$library" 2>/dev/null; } | grep -m1 -F "$library" || echo "$library: not found"
  done
}
sanitizer() {
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
  [ "$tool" ] || { echo "no compute-sanitizer here"; return 0; }
  # shellcheck disable=SC2046
  "$tool" --tool memcheck --error-exitcode 9 $(command_of $kernels) --gtest_brief=1 --gtest_filter='-CudnnAtten*' || return
  for check in racecheck synccheck; do  # shared memory, which the emulated GPU keeps in better order than asked
    # shellcheck disable=SC2046
    for tests in CudaAttention.Shapes:CudaAttention.TensorCoresDecode CudaSampling.FindsWhatACpuFinds; do
      # shellcheck disable=SC2046
      timeout 100 "$tool" --tool $check --error-exitcode 9 $(command_of $kernels) --gtest_brief=1 --gtest_filter="$tests" || return
    done
  done
}
# shellcheck disable=SC2046
kernels() { $(command_of $kernels) --gtest_brief=1 --gtest_filter='-CudnnAtten*'; }
# shellcheck disable=SC2046
cudnn() { $(command_of $kernels) --gtest_brief=1 --gtest_filter='CudnnAtten*'; }
# shellcheck disable=SC2046
engine() { $(command_of $engine) --gtest_brief=1; }
# shellcheck disable=SC2046
nccl() { $(command_of $nccl) --gtest_brief=1; }
# answer_of FLAG...: what a server with these flags goes on to say.
answer_of() {
  local ready server text status
  ready=$(mktemp -u /tmp/gpu-ready.XXXXXX)
  "$annulus" serve --model synthetic:135M --context 4096 --precision fp32 --port 0 --ready-file "$ready" "$@" >&2 &
  server=$!
  until [ -s "$ready" ]; do
    kill -0 "$server" 2>/dev/null || { wait "$server"; return 1; }
    sleep 0.2
  done
  text=$("$annulus" generate --server "127.0.0.1:$(cat "$ready")" --prompt "$(printf 'a ring of %.0s' {1..100})" --max-tokens 16 --quiet)
  status=$?
  kill "$server"
  wait "$server" || status=1
  rm -f "$ready"
  [ "$text" ] || { echo "annulus serve $* answers nothing" >&2; status=1; }
  printf '%s' "$text" | od -An -tx1
  return "$status"
}
serve() {
  local cpu layouts=("--cp 1") layout gpu
  if [ "$packed" ]; then annulus=$packed/annulus; else annulus=$build-static/server/annulus; fi
  [ -x "$annulus" ] || { echo "SKIPPED: no $annulus: tests/deploy/static builds it"; return 0; }
  "$annulus" --version || return  # glibc is too old, where it does not start
  cpu=$(answer_of --device cpu) || return
  [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -lt 2 ] || layouts+=("--cp 2" "--tp 2")
  for layout in "${layouts[@]}"; do
    # shellcheck disable=SC2086
    gpu=$(answer_of --device cuda $layout) || return
    [ "$gpu" = "$cpu" ] || { echo "--device cuda $layout answers"; echo "$gpu"; echo "and --device cpu"; echo "$cpu"; return 1; }
    echo "served over gRPC, --device cuda $layout: as a rank on CPUs"
  done
}
# shellcheck disable=SC2046
numbers() { $(command_of $bench) --json "${json%.json}-numbers.json"; }
limit_of() { case "$1" in versions) echo 60 ;; sanitizer) echo 400 ;; *) echo 200 ;; esac; }

for binary in $kernels $engine $nccl $bench; do
  [ "$packed" ] || [ -x "$build/$binary" ] || { "$root/deploy/build" -DANNULUS_TESTS=ON -DANNULUS_CUDA=ON || exit 2; }
done
# shellcheck disable=SC2086
export -f $all command_of answer_of
export build packed json kernels engine nccl bench
table=() entries=() worst=0
for stage in "${stages[@]}"; do
  case " $all " in *" $stage "*) ;; *) echo "no stage \"$stage\": $all"; exit 2 ;; esac
  printf '\n==== %s\n' "$stage"
  began=$SECONDS
  timeout -k 5 "$(limit_of "$stage")" bash -c "$stage" 2>&1 | tee "/tmp/gpu-stage.$$"
  rc=${PIPESTATUS[0]}
  grep -q SKIPPED "/tmp/gpu-stage.$$" && [ "$rc" = 0 ] && rc=skipped
  text=$(tail -c 4000 "/tmp/gpu-stage.$$" | python3 -c 'import json,sys; print(json.dumps(sys.stdin.read()))' 2>/dev/null || echo '""')
  rm -f "/tmp/gpu-stage.$$"
  table+=("$(printf '%5d s  %-9s  %s' $((SECONDS - began)) "$rc" "$stage")")
  entries+=("$(printf '{"stage": "%s", "rc": "%s", "seconds": %d, "output": %s}' "$stage" "$rc" $((SECONDS - began)) "$text")")
  (IFS=,; printf '[%s]\n' "${entries[*]}") >"$json"
  [ "$stage" = versions ] && [ "$rc" != 0 ] && { echo "no GPU here: nvidia-smi does not answer"; exit 3; }
  [ "$rc" = 0 ] || worst=1
done
printf '\n==== seconds, result, stage (also in %s)\n' "$json"
printf '%s\n' "${table[@]}"
exit "$worst"
