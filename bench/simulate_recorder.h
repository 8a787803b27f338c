// SPDX-License-Identifier: Apache-2.0
// Recorder: the meter and the communicators of one simulated rank. It prices what the engine asks
// for and writes it down, step by step and layer by layer (simulate_trace.h); nothing waits here.
// No decision of a rank depends on when its peers come, so ranks are recorded one after the other
// and meet in the replay. TP ranks of a CP rank do the same at the same time: one stands for all.
// One owner, one thread.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "bench/simulate_cost.h"
#include "bench/simulate_trace.h"
#include "bench/virtual_queue.h"
#include "parallel/communicator.h"

namespace annulus::bench {

class Recorder final : public kernels::VirtualMeter {
 public:
  Recorder(Cost& cost, parallel::Topology topology, int32_t cp_rank);
  ~Recorder() override;
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  parallel::Groups<kernels::VirtualQueue> groups();
  void begin_step() { sections_.assign(1, {}); }
  // Everything since begin_step().
  std::vector<Section> take() { return std::move(sections_); }

  void matmul(int64_t rows, const kernels::VirtualMatrix& w) override;
  void attend(kernels::ConstTensor q, std::span<const kernels::Segment> segments,
              const kernels::KvFormat& format, const kernels::Partial& acc) override;
  void merge(int64_t partial_elements) override;
  void rows(int64_t activations, int64_t bytes) override;

  void work(Share share, double us);
  void call(Share share, Record record);
  Section& now() { return sections_.back(); }

 private:
  class TpComm;
  class CpComm;

  Cost& cost_;
  std::vector<Section> sections_;
  std::unique_ptr<TpComm> tp_;
  std::unique_ptr<CpComm> cp_;
};

}  // namespace annulus::bench
