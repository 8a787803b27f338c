// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_rank_of.h"

#include "bench/rank_of_run.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/matrix.h"

namespace annulus::bench {

absl::Status gpu_rank_of(const RankOfOptions& options, std::unique_ptr<kernels::CudaQueue> queue,
                         const std::string& device) {
  const bool bf16 = options.rank.precision == kernels::Precision::kDefault;
  const double limit = bf16 ? gemm_limit_tflop_s(*queue) : 0;
  const auto report = run_rank_of(options, std::move(queue));
  if (!report.ok()) return report.status();
  return print_rank_of(options, *report, device, limit, "bf16");
}

}  // namespace annulus::bench
