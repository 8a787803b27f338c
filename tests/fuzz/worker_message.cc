// SPDX-License-Identifier: Apache-2.0
// What the control port decodes: a stream of events at the coordinator of two ranks. Each message
// begins with one byte that says what happens, and to which of four streams: a WorkerMessage
// arrives, the stream opens or breaks, time passes, or a plan leaves.
#include "server/rpc/coordinator.h"

#include <spdlog/spdlog.h>

#include "tests/fuzz/target.h"

namespace annulus::fuzz {
namespace {

server::EpochPlan epoch_plan() {
  server::EpochPlan plan;
  plan.topology = {.tp = 1, .cp = 2};
  plan.build.append("b");
  plan.secret.append("s");
  plan.model_fingerprint = 7;
  plan.policy.cp = 2;
  plan.precision.append("fp32");
  plan.context = 128;
  plan.trace = true;
  return plan;
}

}  // namespace
}  // namespace annulus::fuzz

ANNULUS_FUZZ_TARGET(worker_message) {
  static const bool quiet = [] {
    spdlog::set_level(spdlog::level::off);
    return true;
  }();
  static_cast<void>(quiet);
  server::EpochCoordinator coordinator(epoch_plan());
  server::EpochCoordinator::Time now{};
  coordinator.start(now);
  std::string_view rest = text_of(data, size);
  int64_t step = 0;
  for (int events = 0; !rest.empty() && events < 256; ++events) {
    std::string_view bytes = next_message(rest);
    if (bytes.empty()) continue;
    const auto what = static_cast<uint8_t>(bytes[0]);
    const int64_t worker = 1 + what % 4;
    bytes.remove_prefix(1);
    switch (what / 4 % 8) {
      case 0: coordinator.attached(worker, now); break;
      case 1: coordinator.closed(worker, now); break;
      case 2: now += std::chrono::milliseconds(100 * (what / 32)); break;
      case 3: {
        parallel::StepPlan plan;
        plan.epoch = coordinator.status().epoch;
        plan.step = step++;
        coordinator.send_plan(plan, {.cp = 2, .digest = 0, .slots = {}}, 10, now);
        break;
      }
      default: {
        v1::WorkerMessage message;
        if (message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
          coordinator.received(worker, message, now);
      }
    }
    coordinator.tick(now);
    const auto effects = coordinator.take();
    for (const auto& outgoing : effects.messages)
      ANNULUS_CHECK(outgoing.to >= 1 && outgoing.to <= 4, outgoing.to);
    ANNULUS_CHECK(coordinator.status().epoch >= 0);
  }
}
