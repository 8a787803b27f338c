// SPDX-License-Identifier: Apache-2.0
// Rig: a real engine over real ranks, as threads of this process, and what its requests were told.
// Precision fp32, so that layouts, chunks and batches can be compared closely.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "parallel/model/checkpoint.h"
#include "server/engine.h"
#include "server/thread_ranks.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::testing {

// Everything that a request was told, in order; waits for its end.
class Heard {
 public:
  void hear(server::Event event);
  void wait_for_tokens(size_t n);
  void wait();

  int64_t id = 0;
  bool accepted = false;
  server::Accepted acceptance;
  std::vector<int32_t> ids;
  std::vector<server::Token> tokens;
  std::vector<server::PromptLogprob> scored;
  std::vector<server::PrefillProgress> progress;
  std::string text;
  std::optional<server::Finished> finished;
  std::optional<absl::Status> failed;
  int after_end = 0;  // events that came too late

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

struct RigOptions {
  parallel::Topology topology{.tp = 1, .cp = 2};
  server::EngineOptions engine;
  int64_t kv_capacity_rows = 0;
};

std::shared_ptr<const parallel::Checkpoint> tiny_checkpoint();
std::shared_ptr<const parallel::Checkpoint> real_checkpoint();  // null: see test_model_path

class Rig {
 public:
  explicit Rig(const RigOptions& options = {},
               std::shared_ptr<const parallel::Checkpoint> checkpoint = tiny_checkpoint());

  ~Rig() { engine.reset(); }  // first: it calls back

  std::shared_ptr<Heard> start(server::GenerateRequest request);  // must be accepted
  std::shared_ptr<Heard> run(server::GenerateRequest request);    // to its end
  void wait_serving(bool serving);

  std::shared_ptr<const server::Tokenizer> tokenizer;
  server::ThreadRanks* ranks = nullptr;  // the engine's
  std::unique_ptr<server::Engine> engine;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
};

server::GenerateRequest ask(std::vector<int32_t> prompt, int32_t max_tokens,
                            std::string session = "");
// Bytes as ids of the tiny model, whose first 256 tokens they are.
std::vector<int32_t> prompt_of(int64_t tokens, uint64_t seed = 1);

// Same ids, and log-probabilities within `tolerance`.
void expect_same(const Heard& a, const Heard& b, double tolerance);

}  // namespace annulus::testing
