// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/phase.h"

namespace annulus::kernels {

const char* name(Phase phase) {
  switch (phase) {
    case Phase::kOther: return "other";
    case Phase::kEmbed: return "embed";
    case Phase::kNorm: return "norm";
    case Phase::kQkv: return "matmul qkv";
    case Phase::kRope: return "rope";
    case Phase::kKvAppend: return "kv append";
    case Phase::kAttention: return "attention";
    case Phase::kMerge: return "merge";
    case Phase::kOutput: return "matmul o";
    case Phase::kGateUp: return "matmul gate, up";
    case Phase::kSwiglu: return "swiglu";
    case Phase::kDown: return "matmul down";
    case Phase::kAdd: return "add";
    case Phase::kHead: return "head";
    case Phase::kSample: return "sampling";
    case Phase::kSend: return "send";
    case Phase::kWait: return "wait";
  }
  return "unknown";
}

}  // namespace annulus::kernels
