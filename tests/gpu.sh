#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a machine with a GPU can say about Annulus: correctness first, then numbers. Prints a table and writes gpu.json, at
# the end and when it is ended before. Every stage has its own time limit, and all of them together --budget seconds.
#   tests/gpu.sh                     the stages that fit ten minutes, with the binaries of build/ (built here if missing)
#   tests/gpu.sh STAGE...            some of these:
#     versions    the GPU, its driver, the libraries that the engine finds (WARN: older than deploy/packages pins), the host
#     sanitizer   compute-sanitizer: memcheck over all kernels, racecheck and synccheck where shared memory is used
#     kernels     ops, attention and GEMM against double precision; the bits of norms and SwiGLU to FP8 and bf16
#     cudnn       cuDNN's attention against our plain kernel and, as --gpu-attention cudnn has it, double precision
#     engine      whole ranks against ranks on CPUs;  nccl: ranks as processes, on this card
#     serve       a server on the GPU answers over gRPC what one on the CPU does (synthetic:135M)
#     golden      SmolLM2's golden cases, fp32 and default precision (a model: ANNULUS_MODEL, or model.part-* in the pack)
#     numbers     memory, GEMM and attention beside cuDNN, each with its limit and gate
#     rank-of     one rank's whole prefill of a 405B at TP8 x CP16, 131,072 tokens
#   and, only when named, for they take most of ten minutes each:
#     rank-of-1m  the same of 1,000,000 tokens and, where time is left, of 2^20
#     million     1,048,000 tokens of a 1B over gRPC, beside the roofline
#   tests/gpu.sh --budget SECONDS    for all of it (570): a stage that nothing is left for is "not run"
#   tests/gpu.sh --pack DIR          copies binaries and every library they need but the driver's and CUDA's into DIR,
#                                    for a machine without a compiler or Debian's packages
#   tests/gpu.sh --from DIR STAGE... runs what was packed
# Stages serve, golden and million take the programs of tests/deploy/static, which need glibc 2.35 and no packages.
# GPU_JSON names the result file (gpu.json); beside it lie NAME-numbers.json and NAME-rank-of.jsonl.
# Exit 0: all stages passed, perhaps with WARN; 1: one failed; 3: there is no GPU; 4: some were skipped or not run.
# shellcheck disable=SC2046,SC2086,SC2317  # what command_of says is words; stages are called by name
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${ANNULUS_BUILD:-$root/build}
json=${GPU_JSON:-gpu.json}
kernels=tests/kernels/cuda/kernels_cuda_test engine=tests/parallel/cuda/parallel_cuda_gpu_test
nccl=tests/parallel/cuda/nccl_gpu_test bench=bench/annulus-gpu-bench
data=(tests/golden/generate.jsonl tests/golden/check.py deploy/packages/cuda-libraries.txt deploy/packages/cudnn.txt)
packed='' budget=570
usual="versions sanitizer kernels cudnn engine nccl serve golden numbers rank-of" named="rank-of-1m million"

pack() {
  local to=$1 binary
  mkdir -p "$to/lib"
  for binary in $kernels $engine $nccl $bench; do
    strip -o "$to/$(basename "$binary")" "$build/$binary" || exit 2
    ldd "$build/$binary" | awk '$3 ~ /^\// {print $3} $1 ~ /ld-linux/ {print $1}' | xargs -I{} cp -Lu {} "$to/lib/"
  done
  for binary in server/annulus bench/annulus-bench; do
    if [ -x "$build-static/$binary" ]; then
      strip -o "$to/$(basename "$binary")" "$build-static/$binary" && gzip -f "$to/$(basename "$binary")" || exit 2
    else
      echo "without $binary, which stages serve, golden and million need: tests/deploy/static $build-static builds it"
    fi
  done
  (cd "$root" && cp "${data[@]}" "$to/") || exit 2
  cp "$0" "$to/"
  du -sh "$to"
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) sed -n '3,/^# shellcheck/{/^# shellcheck/d;p}' "$0" | cut -c3-; exit 0 ;;
    --pack) to=$(realpath -m "${2:?--pack needs a folder}"); pack "$to"; exit 0 ;;
    --from) packed=${2:?--from needs a folder}; shift 2 ;;
    --budget)
      budget=${2:?--budget needs seconds}; shift 2
      [[ $budget =~ ^[1-9][0-9]*$ ]] || { echo "--budget $budget: give a number of seconds"; exit 2; } ;;
    -*) echo "no flag \"$1\": --help lists them"; exit 2 ;;
    *) break ;;
  esac
done
stages=("$@")
[ "${#stages[@]}" -gt 0 ] || read -ra stages <<<"$usual"
for stage in "${stages[@]}"; do
  case " $usual $named " in *" $stage "*) ;; *) echo "no stage \"$stage\": $usual $named"; exit 2 ;; esac
done

# command_of PATH: from the build, or with the packed loader and libraries.
command_of() {
  if [ "$packed" ]; then
    echo "$packed/lib/ld-linux-x86-64.so.2" --library-path "$packed/lib" "$packed/$(basename "$1")"
  else
    echo "$build/$1"
  fi
}
# A program that was linked whole, where there is one; a file of the sources: or what was packed of them.
program() {
  local unpacked
  unpacked=$work/$(basename "$1")
  if [ "$packed" ]; then
    [ -x "$unpacked" ] || { gzip -dc "$packed/$(basename "$1").gz" >"$unpacked" && chmod +x "$unpacked"; } 2>/dev/null
    echo "$unpacked"
  elif [ -x "$build-static/$1" ]; then echo "$build-static/$1"; else echo "$build/$1"; fi
}
data_file() { if [ "$packed" ]; then echo "$packed/$(basename "$1")"; else echo "$root/$1"; fi; }
# has PROGRAM: it starts here.
has() {
  [ -x "$1" ] || { echo "SKIPPED: no program $(basename "$1"): tests/deploy/static builds it, before gpu.sh packs"; return 1; }
  "$1" --help >/dev/null || { echo "SKIPPED: $1 does not start here: it needs glibc 2.35"; return 1; }
}
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | head -1)" = "$1" ]; }

versions() {
  local what have want shm glibc driver=
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || return 3
  uname -srm
  grep -m1 'model name' /proc/cpuinfo
  $(command_of $bench) versions >"$work/versions" 2>&1 || echo "WARN: $(command_of $bench) does not start: $(tail -1 "$work/versions")"
  cat "$work/versions"
  while read -r what have want; do
    [ "$have" != missing: ] || { echo "WARN: no $what: $want"; continue; }
    case "$what" in
      driver) driver=$have; continue ;;
      runtime) want=$have have=${driver:-$have} what="CUDA of the driver" ;;
      cublaslt) want=$(sed -n 's/^nvidia-cublas==//p' "$(data_file deploy/packages/cuda-libraries.txt)") ;;
      nccl) want=$(sed -n 's/^nvidia-nccl-cu13==//p' "$(data_file deploy/packages/cuda-libraries.txt)") ;;
      cudnn) want=$(sed -n 's/^nvidia-cudnn-cu13==//p' "$(data_file deploy/packages/cudnn.txt)") ;;
      *) continue ;;
    esac
    want=$(cut -d. -f1-3 <<<"$want")
    ! older "$have" "$want" || echo "WARN: $what $have is older than $want"
  done <"$work/versions"
  glibc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
  shm=$(df -m --output=size /dev/shm 2>/dev/null | tail -1 | tr -d ' ')
  echo "glibc $glibc, /dev/shm ${shm:-0} MB, lo flags $(cat /sys/class/net/lo/flags 2>/dev/null)"
  ! older "$glibc" 2.35 || echo "WARN: glibc $glibc is older than 2.35: stages serve, golden and million cannot run"
  [ "${shm:-0}" -ge 64 ] || echo "WARN: /dev/shm has ${shm:-0} MB: ranks of one host want 64"
  (($(cat /sys/class/net/lo/flags 2>/dev/null || echo 0) & 1)) || echo "WARN: lo is down: ip link set lo up"
}
sanitizer() {
  local tool check tests rc=0
  tool=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | head -1)
  [ "$tool" ] || { echo "SKIPPED: no compute-sanitizer here: CUDA's toolkit has it"; return 0; }
  # sanitized SECONDS CHECK FILTER: a failure or the end of its time leaves the others their turn. --foreground: it stays
  # in the group of this stage, and ends with it.
  sanitized() {
    local one=0
    timeout --foreground -k 2 "$1" "$tool" --tool "$2" --error-exitcode 9 $(command_of $kernels) --gtest_brief=1 --gtest_filter="$3" || one=$?
    case $one in
      0) echo "ok: $2 $3"; return ;;
      124 | 137) echo "FAILED: $2 $3: not at its end after $1 s" ;;
      *) echo "FAILED: $2 $3: exit $one" ;;
    esac
    rc=1
  }
  for check in racecheck synccheck; do  # shared memory, which the emulated GPU keeps in better order than asked
    for tests in CudaAttention.Shapes:CudaAttention.TensorCoresDecode CudaSampling.FindsWhatACpuFinds; do
      sanitized $((limit / 8 + 1)) $check "$tests"
    done
  done
  local left=$((limit - SECONDS - 3))
  sanitized $((left > 0 ? left : 1)) memcheck '-CudnnAtten*'  # the longest has what the others left
  return $rc
}
kernels() { $(command_of $kernels) --gtest_brief=1 --gtest_filter='-CudnnAtten*'; }
cudnn() { $(command_of $kernels) --gtest_brief=1 --gtest_filter='CudnnAtten*'; }
engine() { $(command_of $engine) --gtest_brief=1; }
nccl() { $(command_of $nccl) --gtest_brief=1; }
# start_server FLAG...: sets server and address.
start_server() {
  local ready
  ready=$(mktemp -u "$work/ready.XXXXXX")
  "$annulus" serve --port 0 --ready-file "$ready" "$@" >&2 &
  server=$!
  until [ -s "$ready" ]; do
    kill -0 "$server" 2>/dev/null || { wait "$server"; echo "annulus serve $* ended with $?" >&2; return 1; }
    sleep 0.2
  done
  address=127.0.0.1:$(cat "$ready")
}
# answer_of FLAG...: what a server with these flags goes on to say.
answer_of() {
  local text status
  start_server --model synthetic:135M --context 4096 --precision fp32 "$@" || return
  text=$("$annulus" generate --server "$address" --prompt "$(printf 'a ring of %.0s' {1..100})" --max-tokens 16 --quiet)
  status=$?
  kill "$server"
  wait "$server" || status=1
  [ "$text" ] || { echo "annulus serve $* answers nothing" >&2; status=1; }
  printf '%s' "$text" | od -An -tx1
  return "$status"
}
serve() {
  local cpu layouts=("--cp 1") layout gpu
  annulus=$(program server/annulus)
  has "$annulus" || return 0
  cpu=$(answer_of --device cpu) || return
  [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -lt 2 ] || layouts+=("--cp 2" "--tp 2")
  for layout in "${layouts[@]}"; do
    gpu=$(answer_of --device cuda $layout) || return
    [ "$gpu" = "$cpu" ] || { echo "--device cuda $layout answers"; echo "$gpu"; echo "and --device cpu"; echo "$cpu"; return 1; }
    echo "served over gRPC, --device cuda $layout: as a rank on CPUs"
  done
}
golden() {
  local annulus runner cases model class
  annulus=$(program server/annulus) runner=$(program bench/annulus-bench) cases=$(data_file tests/golden/generate.jsonl)
  has "$annulus" && has "$runner" || return 0
  command -v python3 >/dev/null || { echo "SKIPPED: no python3 for tests/golden/check.py"; return 0; }
  model=${ANNULUS_MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/annulus/models/SmolLM2-135M-Instruct.Q4_1.gguf}
  if [ -z "${ANNULUS_MODEL:-}" ] && compgen -G "${packed:-.}/model.part-*" >/dev/null; then
    model=$work/model.gguf
    cat "${packed:-.}"/model.part-* >"$model" || return
  fi
  [ -r "$model" ] || {
    echo "SKIPPED: no model: set ANNULUS_MODEL, or split -b 50M SmolLM2-135M-Instruct.Q4_1.gguf model.part- and bring all parts to ${packed:-.}"
    return 0
  }
  for class in fp32 bf16; do
    ANNULUS_BINARY=$annulus "$runner" golden --device cuda --model "$model" --cases "$cases" --out "$work/$class.jsonl" \
      --precision ${class/bf16/default} || return
    python3 "$(data_file tests/golden/check.py)" "$cases" "$work/$class.jsonl" --class $class || return
  done
}
numbers() { $(command_of $bench) --json "${json%.json}-numbers.json"; }
one_rank() { $(command_of $bench) rank-of --model 405b --tp 8 --cp 16 --tokens "$1" --json "${json%.json}-rank-of.jsonl"; }
rank_of() { one_rank 131072; }
rank_of_1m() {
  one_rank 1000000 || return
  [ $((limit - SECONDS)) -gt $((SECONDS * 5 / 4)) ] || { echo "WARN: 2^20 tokens not run: $((limit - SECONDS)) s are left of $limit"; return 0; }
  one_rank 1048576
}
million() {
  local said first
  annulus=$(program server/annulus)
  has "$annulus" || return 0
  seq 1 1048000 | awk '{print $1 * 7919 % 128000}' >"$work/ids"
  start_server --device cuda --model synthetic:1B --context 1048576 || return
  said=$("$annulus" generate --server "$address" --tokens-file "$work/ids" --max-tokens 16 --ignore-eos 2>&1 >/dev/null) || { echo "$said"; return 1; }
  kill "$server"
  wait "$server" || return
  echo "$said"
  first=$(sed -n 's/.*first token \([0-9.]*\) s.*/\1/p' <<<"$said")
  [ "$first" ] || { echo "annulus generate named no time to the first token"; return 1; }
  # 7.2e16 FLOP of attention, 450 TFLOP/s with heads of 64 (600 with 128), 1.7 s of GEMM.
  awk -v t="$first" 'BEGIN {printf "goal at 1,048,000 tokens: at most 1.1 times the roofline of 162 s: %s (%.1f s, %.2f times; %.2f times the 122 s of 600 TFLOP/s)\n",
    (t <= 1.1 * 162 ? "met" : "MISSED"), t, t / 162, t / 122}'
}
limit_of() {
  case "$1" in versions) echo 60 ;; sanitizer) echo 240 ;; rank-of-1m | million) echo 560 ;; *) echo 200 ;; esac
}

# add STAGE RESULT EXIT SECONDS NOTE [OUTPUT]: a row of the table and of the file.
table=() entries=() worst=0
json_text() { tr -d '\000-\010\013-\037' | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/\\t/g' | awk '{printf "%s%s", (NR > 1 ? "\\n" : ""), $0}'; }
add() {
  table+=("$(printf '%5d s  %-8s  %-10s  %s' "$4" "$2" "$1" "${5//$'\n'/; }")")
  entries+=("$(printf '{"stage": "%s", "result": "%s", "rc": "%s", "seconds": %d, "note": "%s", "output": "%s"}' \
    "$1" "$2" "$3" "$4" "$(json_text <<<"$5")" "$(tail -c 4000 <<<"${6:-}" | json_text)")")
  (IFS=,; printf '[%s]\n' "${entries[*]}") >"$json"
  case "$2" in FAILED | ended) worst=1 ;; SKIPPED | "not run") [ "$worst" = 1 ] || worst=4 ;; esac
}
# finish: whatever ends this script, what it found stays.
finish() {
  trap '' TERM INT
  if [ "$running" ]; then
    kill -TERM -- "-$child" 2>/dev/null
    for _ in {1..20}; do kill -0 -- "-$child" 2>/dev/null || break; sleep 0.1; done
    kill -KILL -- "-$child" 2>/dev/null
    add "$running" ended "" $((SECONDS - began)) "by a signal, after $((SECONDS - began)) s" "$(cat "$work/output")"
  fi
  for stage in "${stages[@]:$next}"; do add "$stage" "not run" "" 0 "$why"; done
  rm -rf "$work"
  [ "${#table[@]}" -gt 0 ] || return
  printf '\n==== seconds, result, stage (also in %s)\n' "$json"
  printf '%s\n' "${table[@]}"
}
work=$(mktemp -d /tmp/gpu-stages.XXXXXX)
running='' next=0 child='' why="this script was ended before"
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

for binary in $kernels $engine $nccl $bench; do
  [ "$packed" ] || [ -x "$build/$binary" ] || { "$root/deploy/build" -DANNULUS_TESTS=ON -DANNULUS_CUDA=ON || exit 2; }
done
export -f ${usual//-/_} ${named//-/_} command_of program data_file has older start_server answer_of one_rank
export root build packed json kernels engine nccl bench work limit
for stage in "${stages[@]}"; do
  next=$((next + 1))
  limit=$(limit_of "$stage") began=$SECONDS left=$((budget - SECONDS - 5))  # 5: until a stage is killed
  [ $left -gt 0 ] || { add "$stage" "not run" "" 0 "nothing is left of $budget s: tests/gpu.sh $stage"; continue; }
  [ $left -gt "$limit" ] || limit=$left
  printf '\n==== %s, at most %d s\n' "$stage" "$limit"
  # In the background, so that a signal is heard at once; timeout leads a group, which ends with it.
  rm -f "$work/pipe"
  mkfifo "$work/pipe"
  tee "$work/output" <"$work/pipe" &
  shown=$!
  running=$stage
  timeout -k 5 "$limit" bash -c "${stage//-/_}" >"$work/pipe" 2>&1 &
  child=$!
  wait "$child"
  rc=$?
  kill -KILL -- "-$child" 2>/dev/null
  wait "$shown"
  result=passed note=$(grep -E '^(FAILED:|SKIPPED:|WARN:|goal)' "$work/output")
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]* tests*\).*/\1/p' "$work/output")
  [ -z "$skipped" ] || note="SKIPPED: $skipped: $(grep -m1 -A1 ': Skipped$' "$work/output" | tail -1 | cut -c1-100)"
  case "$note" in SKIPPED*) result=SKIPPED ;; WARN*) result=WARN ;; esac
  case "$rc" in
    0) ;;
    124 | 137) result=FAILED note="not at its end after $limit s" ;;
    *) result=FAILED note=${note:-"exit $rc: $(grep -v '^ *$' "$work/output" | tail -1 | cut -c1-150)"} ;;
  esac
  running=
  add "$stage" "$result" "$rc" $((SECONDS - began)) "$note" "$(tr -d '\000' <"$work/output")"
  [ "$stage" = versions ] && [ "$rc" = 3 ] && { why="no GPU here: nvidia-smi does not answer"; exit 3; }
done
exit "$worst"
