// SPDX-License-Identifier: Apache-2.0
// The real model over threads: golden's session and its unequal batch, free-running, must give
// golden's ids (class fp32: its float32 run keeps the argmax at all positions).
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/server/engine/rig.h"

namespace annulus::server {
namespace {

using annulus::testing::Heard;
using annulus::testing::real_checkpoint;
using annulus::testing::Rig;
using annulus::testing::RigOptions;
using nlohmann::json;

std::map<std::string, json> golden_cases() {
  std::map<std::string, json> cases;
  std::ifstream file(ANNULUS_GOLDEN_DIR "/generate.jsonl");
  for (std::string line; std::getline(file, line);) {
    json c = json::parse(line);
    const std::string name = c["name"];
    cases[name] = std::move(c);
  }
  return cases;
}

std::unique_ptr<Rig> make_rig() {
  const std::shared_ptr<const parallel::Checkpoint> checkpoint = real_checkpoint();
  if (!checkpoint) return nullptr;
  RigOptions options;
  options.topology = {.tp = 1, .cp = 2};
  options.engine.chunk_tokens = 96;
  return std::make_unique<Rig>(options, checkpoint);
}

GenerateRequest request_of(const json& golden) {
  GenerateRequest request;
  request.prompt = golden["prompt_ids"].get<std::vector<int32_t>>();
  request.max_tokens = static_cast<int32_t>(golden["ids"].size());
  request.top_logprobs = 1;
  return request;
}

// Worst allowed: golden's fp32 class, 0.001 in a logit.
void expect_golden(const Heard& heard, const json& golden) {
  EXPECT_EQ(heard.ids, golden["ids"].get<std::vector<int32_t>>());
  for (size_t i = 0; i < heard.tokens.size(); ++i) {
    const json& step = golden["steps"][i];
    const double expected = step["top_logits"][0].get<double>() - step["lse"].get<double>();
    EXPECT_NEAR(heard.tokens[i].logprob, expected, 1e-3) << "token " << i;
  }
}

TEST(EngineModel, GoldenSessionAndBatch) {
  const std::unique_ptr<Rig> rig = make_rig();
  ASSERT_NE(rig, nullptr);
  const std::map<std::string, json> cases = golden_cases();
  int64_t turns = 0;
  for (const char* name : {"session-turn1", "session-turn2", "session-turn3", "session-turn4"}) {
    SCOPED_TRACE(name);
    const json& golden = cases.at(name);
    GenerateRequest request = request_of(golden);
    request.session = "golden";
    const std::shared_ptr<Heard> heard = rig->run(request);
    expect_golden(*heard, golden);
    const int64_t reused = golden["reused"];
    EXPECT_EQ(heard->acceptance.cached_tokens, reused > 0 ? reused - 1 : 0);
    ++turns;
  }
  EXPECT_EQ(turns, 4);

  std::vector<std::pair<const json*, std::shared_ptr<Heard>>> batch;
  for (const auto& [name, golden] : cases) {
    if (!golden.contains("batch")) continue;
    GenerateRequest request = request_of(golden);
    request.ignore_eos = true;
    request.max_tokens = 16;
    batch.emplace_back(&golden, rig->start(request));
  }
  EXPECT_EQ(batch.size(), 5u);
  for (auto& [golden, heard] : batch) {
    heard->wait();
    SCOPED_TRACE((*golden)["name"]);
    json head = *golden;
    head["ids"].erase(head["ids"].begin() + 16, head["ids"].end());
    expect_golden(*heard, head);
  }
  const ClusterStatus status = rig->engine->status();
  // Steps here take milliseconds: plans must be ahead in nearly all of them.
  EXPECT_GE(status.plans_ahead, status.decode_steps * 6 / 10);
  RecordProperty("decode_steps", static_cast<int>(status.decode_steps));
  RecordProperty("plans_ahead", static_cast<int>(status.plans_ahead));
}

}  // namespace
}  // namespace annulus::server
