// SPDX-License-Identifier: Apache-2.0
// The ops of a plan by name. Pure; used by the scheduler.
#pragma once

#include <cstdint>

#include "parallel/step.h"

namespace annulus::server {

inline parallel::Op op_of(parallel::Op::Kind kind, int32_t slot) {
  parallel::Op op;
  op.kind = kind;
  op.slot = slot;
  return op;
}

inline parallel::Op release_op(int32_t slot) {
  return op_of(parallel::Op::Kind::kRelease, slot);
}

inline parallel::Op truncate_op(int32_t slot, int64_t length) {
  parallel::Op op = op_of(parallel::Op::Kind::kTruncate, slot);
  op.length = length;
  return op;
}

inline parallel::Op sampling_op(int32_t slot, const parallel::SamplingParams& sampling) {
  parallel::Op op = op_of(parallel::Op::Kind::kSampling, slot);
  op.sampling = sampling;
  return op;
}

inline parallel::Op rebase_op(int32_t slot, int32_t decode_base) {
  parallel::Op op = op_of(parallel::Op::Kind::kRebase, slot);
  op.decode_base = decode_base;
  return op;
}

inline parallel::Op admit_op(int32_t slot, int32_t decode_base,
                             const parallel::SamplingParams& sampling) {
  parallel::Op op = op_of(parallel::Op::Kind::kAdmit, slot);
  op.decode_base = decode_base;
  op.sampling = sampling;
  return op;
}

}  // namespace annulus::server
