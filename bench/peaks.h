// SPDX-License-Identifier: Apache-2.0
// What this machine can do at this moment: multiply-adds from registers and reads from memory, with
// the instructions of the queue's ISA and on all its threads. Benchmarks print their figures
// against these, measured in the same run, since machines and their neighbours differ. Takes about
// a second; each figure is the best of several short runs.
#pragma once

#include <vector>

#include "kernels/core/memory.h"
#include "kernels/cpu/queue.h"

namespace annulus::bench {

struct Peaks {
  double fp32_gflops = 0;
  double bf16_gflops = 0;  // by vdpbf16ps; 0 where the ISA has none
  double read_gbytes = 0;  // per second, sequential, far larger than the caches
};

Peaks measure_peaks(kernels::CpuQueue& queue);
Peaks measure_peaks(int threads);  // with the best ISA

// Reads from memory on all threads of a queue of its own, over and over: what memory gives changes
// within seconds where others share it, so a rate is set beside readings just before and after it.
class ReadLimit {
 public:
  explicit ReadLimit(int threads);
  // GB/s of a reading of some 10 ms.
  double gbytes();

 private:
  kernels::CpuQueue queue_;
  std::vector<kernels::AlignedBytes> memory_;  // one per thread
};

// How much more than one process `copies` independent ones multiply together, each pinned to a core
// of its own and running for half a second. Forks: call before the process has other threads.
double copies_scale(int copies);

}  // namespace annulus::bench
