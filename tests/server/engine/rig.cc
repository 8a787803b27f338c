// SPDX-License-Identifier: Apache-2.0
#include "tests/server/engine/rig.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "server/tokenizer/load.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {

using server::GenerateRequest;

namespace {

constexpr std::chrono::seconds kPatience(60);

std::shared_ptr<const parallel::Checkpoint> open(const std::string& path) {
  absl::StatusOr<parallel::Checkpoint> checkpoint = parallel::Checkpoint::open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return nullptr;
  return std::make_shared<const parallel::Checkpoint>(std::move(*checkpoint));
}

}  // namespace

void Heard::hear(server::Event event) {
  const std::lock_guard lock(mutex_);
  if (finished || failed) ++after_end;
  if (const auto* a = std::get_if<server::Accepted>(&event)) {
    accepted = true;
    acceptance = *a;
  } else if (const auto* token = std::get_if<server::Token>(&event)) {
    ids.push_back(token->id);
    text += token->text;
    tokens.push_back(*token);
  } else if (const auto* s = std::get_if<server::PromptLogprob>(&event)) {
    scored.push_back(*s);
  } else if (const auto* p = std::get_if<server::PrefillProgress>(&event)) {
    progress.push_back(*p);
  } else if (const auto* f = std::get_if<server::Finished>(&event)) {
    finished = *f;
  } else if (const auto* failure = std::get_if<server::Failed>(&event)) {
    failed = failure->status;
  }
  changed_.notify_all();
}

void Heard::wait_for_tokens(size_t n) {
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(
      changed_.wait_for(lock, kPatience, [&] { return ids.size() >= n || finished || failed; }));
}

void Heard::wait() {
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, 5 * kPatience, [&] { return finished || failed; }));
}

std::shared_ptr<const parallel::Checkpoint> tiny_checkpoint() {
  static const std::shared_ptr<const parallel::Checkpoint> checkpoint = [] {
    const std::string path = scratch_directory() + "/tiny.gguf";
    write_gguf({}, path);
    return open(path);
  }();
  return checkpoint;
}

std::shared_ptr<const parallel::Checkpoint> real_checkpoint() {
  const absl::StatusOr<std::string> path = test_model_path();
  EXPECT_TRUE(path.ok()) << path.status();
  return path.ok() ? open(*path) : nullptr;
}

Rig::Rig(const RigOptions& options, std::shared_ptr<const parallel::Checkpoint> checkpoint) {
  absl::StatusOr<std::unique_ptr<const server::Tokenizer>> text =
      server::tokenizer_from_gguf(*checkpoint->gguf());
  EXPECT_TRUE(text.ok()) << text.status();
  if (text.ok()) tokenizer = std::move(*text);
  server::ThreadRanksOptions rank_options;
  rank_options.topology = options.topology;
  rank_options.rank.precision = kernels::Precision::kF32;
  rank_options.rank.kv_capacity_rows = options.kv_capacity_rows;
  rank_options.profile = parallel::MachineProfile{};  // the same choices in every run
  auto made = server::ThreadRanks::create(checkpoint, rank_options);
  EXPECT_TRUE(made.ok()) << made.status();
  ranks = made->get();
  engine = std::make_unique<server::Engine>(checkpoint->config(), tokenizer, std::move(*made),
                                            options.engine);
  engine->on_serving([this](bool serving) {
    const std::lock_guard lock(mutex_);
    serving_ = serving;
    changed_.notify_all();
  });
  wait_serving(true);
}

void Rig::wait_serving(bool serving) {
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return serving_ == serving; }));
}

std::shared_ptr<Heard> Rig::start(GenerateRequest request) {
  auto heard = std::make_shared<Heard>();
  const absl::StatusOr<int64_t> id =
      engine->submit(std::move(request), [heard](server::Event e) { heard->hear(std::move(e)); });
  EXPECT_TRUE(id.ok()) << id.status();
  if (id.ok()) {
    heard->id = *id;
  } else {
    heard->failed = id.status();
  }
  return heard;
}

std::shared_ptr<Heard> Rig::run(GenerateRequest request) {
  std::shared_ptr<Heard> heard = start(std::move(request));
  heard->wait();
  EXPECT_TRUE(heard->accepted && heard->finished);
  return heard;
}

GenerateRequest ask(std::vector<int32_t> prompt, int32_t max_tokens, std::string session) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.session = std::move(session);
  request.top_logprobs = 2;
  request.ignore_eos = true;
  return request;
}

std::vector<int32_t> prompt_of(int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

void expect_same(const Heard& a, const Heard& b, double tolerance) {
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.after_end + b.after_end, 0);
  for (size_t i = 0; i < std::min(a.tokens.size(), b.tokens.size()); ++i) {
    EXPECT_NEAR(a.tokens[i].logprob, b.tokens[i].logprob, tolerance) << "token " << i;
  }
}

}  // namespace annulus::testing
