// SPDX-License-Identifier: Apache-2.0
// What the handlers of the public service share. Owned by PublicServer, which outlives every call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "server/engine.h"
#include "server/metrics.h"
#include "server/rpc/convert.h"
#include "server/rpc/task_pool.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

// A reader that lets more than this pile up loses its request.
struct OutboxLimits {
  int64_t max_bytes = int64_t{32} << 20;
  int64_t max_events = 65536;
};

struct ServiceCore {
  Engine& engine;
  std::shared_ptr<const Tokenizer> tokenizer;  // shared with the engine; may be null
  parallel::LlamaConfig config;
  ModelFacts facts;
  OutboxLimits outbox;
  TaskPool pool;
  std::atomic<bool> draining{false};  // new requests are refused
  RequestCounts requests{};           // of Generate, that have ended
};

}  // namespace annulus::server
