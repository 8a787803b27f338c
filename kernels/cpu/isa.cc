// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/queue.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace annulus::kernels {
namespace {

#if defined(__x86_64__)
// The register state that the operating system saves: XCR0, read only where OSXSAVE is set.
uint64_t saved_state() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & (1u << 27)) == 0) return 0;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// AMX with bf16. Its registers are 8 KiB: Linux gives them to a process that has asked (Linux
// Documentation/arch/x86/xstate.rst), for all its threads, those of now and those to come.
bool amx_for_all_threads(uint64_t state) {
  constexpr uint64_t kTiles = 0x60000;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if ((state & kTiles) != kTiles || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
#if defined(__linux__)
  constexpr long kAskForPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuIsa detect() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
  __builtin_cpu_init();
  uint64_t state = saved_state();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  unsigned a = 0, b = 0, c = 0, d = 0;
  bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
  if (!avx2 || !f16c || (state & kYmm) != kYmm) return CpuIsa::kPortable;
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512 || (state & kZmm) != kZmm) return CpuIsa::kAvx2;
  bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (!bf16) return CpuIsa::kAvx512;
  return amx_for_all_threads(state) ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
}
#else
CpuIsa detect() {
  return CpuIsa::kPortable;
}
#endif

}  // namespace

const char* name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable: return "portable";
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
    case CpuIsa::kAvx512Bf16: return "avx512-bf16";
    case CpuIsa::kAmx: return "amx";
  }
  return "unknown";
}

absl::StatusOr<CpuIsa> parse_cpu_isa(std::string_view text) {
  if (text == "auto") return detect_cpu_isa();
  for (const CpuIsa isa : kCpuIsas)
    if (text == name(isa)) {
      if (isa <= detect_cpu_isa()) return isa;
      return absl::FailedPreconditionError(absl::StrCat(
          "this machine runs at most CPU ISA ", name(detect_cpu_isa()), ", not ", name(isa)));
    }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown CPU ISA '", absl::string_view(text.data(), text.size()),
                   "': use auto, portable, avx2, avx512, avx512-bf16 or amx"));
}

CpuIsa detect_cpu_isa() {
  static const CpuIsa best = detect();
  return best;
}

}  // namespace annulus::kernels
