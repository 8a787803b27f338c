// SPDX-License-Identifier: Apache-2.0
// An EpochCoordinator of two ranks, without a network.
#pragma once

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/profile.h"

namespace annulus::server {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Two ranks in a ring, their messages written by hand and time moved by hand.
class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() { coordinator_.start(now_); }

  static EpochPlan plan() {
    EpochPlan plan;
    plan.topology = {.tp = 1, .cp = 2};
    plan.build = "1";
    plan.secret = "s";
    plan.model_fingerprint = 7;
    plan.precision = "fp32";
    plan.context = 100;
    plan.vocab = 10;
    plan.cudnn_attention = true;
    plan.chunk_tokens = 40;
    return plan;
  }

  v1::WorkerMessage registration(int32_t wanted, int64_t pid) {
    v1::WorkerMessage message;
    auto* registration = message.mutable_register_();
    registration->set_build("1");
    registration->set_secret("s");
    registration->set_model_fingerprint(7);
    registration->set_wanted_rank(wanted);
    registration->set_host("h");
    registration->set_pid(pid);
    return message;
  }
  void attach(int64_t id, int32_t wanted = -1) {
    coordinator_.attached(id, now_);
    coordinator_.received(id, registration(wanted, 1000 + id), now_);
  }
  void address(int64_t id, int64_t epoch) {
    v1::WorkerMessage message;
    message.mutable_data_address()->set_epoch(epoch);
    message.mutable_data_address()->set_address(absl::StrCat("address ", id));
    coordinator_.received(id, message, now_);
  }
  void ready(int64_t id, int64_t epoch, int64_t rows = 50) {
    v1::WorkerMessage message;
    message.mutable_ready()->set_epoch(epoch);
    message.mutable_ready()->set_kv_capacity_rows(rows);
    for (const auto& [field, value] : profile_values({})) {
      (*message.mutable_ready()->mutable_profile()->mutable_values())[field] = value;
    }
    coordinator_.received(id, message, now_);
  }
  void heartbeat(int64_t id, int64_t progress = 0) {
    v1::WorkerMessage message;
    message.mutable_heartbeat()->set_layer(3);
    message.mutable_heartbeat()->set_hop(1);
    message.mutable_heartbeat()->set_progress(progress);
    coordinator_.received(id, message, now_);
  }
  void heartbeats() {
    for (const int64_t id : {1, 2}) heartbeat(id);
  }
  // Ticks and heartbeats of these workers, every 500 ms.
  void pass(milliseconds time, const std::vector<int64_t>& alive) {
    for (milliseconds t{0}; t < time; t += milliseconds(500)) {
      now_ += milliseconds(500);
      for (const int64_t id : alive) heartbeat(id);
      coordinator_.tick(now_);
    }
  }
  void answer(int64_t id, int32_t rank, int64_t step, int64_t epoch = 1) {
    v1::WorkerMessage message;
    message.mutable_answer()->set_epoch(epoch);
    parallel::StepResult result;
    result.epoch = epoch;
    result.step = step;
    result.world_rank = rank;
    message.mutable_answer()->set_result(parallel::encode(result));
    coordinator_.received(id, message, now_);
  }
  void run_epoch_one() {
    attach(1);
    attach(2);
    for (const int64_t id : {1, 2}) address(id, 1);
    for (const int64_t id : {1, 2}) ready(id, 1);
    ASSERT_TRUE(coordinator_.status().running);
    coordinator_.take();
  }
  void send_step(int64_t step, double expected_us = 0) {
    parallel::StepPlan plan;
    plan.epoch = 1;
    plan.step = step;
    parallel::ShardState state;
    state.cp = 2;
    coordinator_.send_plan(plan, state, expected_us, now_);
  }
  // Rank 0 is to sample a token after position 0, rank 1 to score position 1.
  void send_asking_step() {
    parallel::StepPlan plan;
    plan.epoch = 1;
    parallel::Item item;
    item.spans = {{.first = 0, .count = 4, .stride = 1}};
    item.tokens = {1, 2, 3, 4};
    item.wanted = {{.position = 0, .sample = true}, {.position = 1, .target = 3, .top = 2}};
    plan.items = {item};
    parallel::ShardState state;
    state.cp = 2;
    state.slots[0].ranks.resize(2);
    coordinator_.send_plan(plan, state, 0, now_);
  }
  void answer_wanted(int64_t id, int32_t rank, std::vector<parallel::WantedResult> wanted) {
    v1::WorkerMessage message;
    message.mutable_answer()->set_epoch(1);
    parallel::StepResult result;
    result.epoch = 1;
    result.world_rank = rank;
    result.wanted = std::move(wanted);
    message.mutable_answer()->set_result(parallel::encode(result));
    coordinator_.received(id, message, now_);
  }

  // What was sent to `id`, of the kind asked for.
  std::vector<v1::FrontMessage> sent(const EpochCoordinator::Effects& effects, int64_t id,
                                     v1::FrontMessage::MessageCase kind) {
    std::vector<v1::FrontMessage> out;
    for (const auto& outgoing : effects.messages) {
      if (outgoing.to == id && outgoing.message.message_case() == kind) {
        out.push_back(outgoing.message);
      }
    }
    return out;
  }
  std::string refusal(const EpochCoordinator::Effects& effects, int64_t id) {
    const auto refused = sent(effects, id, v1::FrontMessage::kRefused);
    return refused.empty() ? "" : refused.front().refused().why();
  }
  std::string loss(const EpochCoordinator::Effects& effects) {
    for (const LinkEvent& event : effects.events) {
      if (const auto* lost = std::get_if<EpochLost>(&event)) return lost->why;
    }
    return "";
  }

  EpochCoordinator::Time now_{seconds(1000)};
  EpochCoordinator coordinator_{plan()};
};

}  // namespace annulus::server
