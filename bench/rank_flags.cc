// SPDX-License-Identifier: Apache-2.0
#include "bench/rank_flags.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace annulus::bench {

using parallel::Op;

void RankFlags::add_to(CLI::App& app) {
  app.add_option("--model", options.model,
                 "model file, folder, or synthetic:SHAPE (135M, 8B, layers=2,dim=512,heads=16,...)")
      ->required();
  app.add_option("--tp", options.topology.tp, "tensor-parallel ranks");
  app.add_option("--cp", options.topology.cp, "context-parallel ranks");
  app.add_option("--threads", options.rank.threads, "threads a rank")->check(CLI::PositiveNumber);
  app.add_option("--precision", precision, "default or fp32")
      ->check(CLI::IsMember({"default", "fp32"}));
  app.add_option("--cpu-isa", cpu_isa, "cap of the CPU's instruction set");
  app.add_option("--transports", options.transports, "UCX transports (default: its own choice)");
  app.add_option("--link-mbit", options.link_mbit,
                 "every rank in a network namespace with a link shaped to this rate (root)");
}

void RankFlags::add_trace_to(CLI::App& app) {
  app.add_option("--trace", options.trace,
                 "file for what every rank did when; ui.perfetto.dev opens it");
}

absl::Status RankFlags::apply() {
  const auto isa = kernels::parse_cpu_isa(cpu_isa);
  if (!isa.ok()) return isa.status();
  options.rank.isa = *isa;
  if (precision == "fp32") options.rank.precision = kernels::Precision::kF32;
  return absl::OkStatus();
}

Op admit_op(int32_t slot) {
  return slot_op(Op::Kind::kAdmit, slot);
}

Op slot_op(Op::Kind kind, int32_t slot, int64_t length) {
  Op op;
  op.kind = kind;
  op.slot = slot;
  op.length = length;
  return op;
}

double attention_us(const std::vector<parallel::StepResult>& results) {
  double most = 0;
  for (const parallel::StepResult& r : results) {
    const parallel::GroupReport& g = r.groups.at(0);
    most = std::max<double>(most, g.attend_us + g.exposed_us);
  }
  return most;
}

}  // namespace annulus::bench
