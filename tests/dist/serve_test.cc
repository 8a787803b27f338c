// SPDX-License-Identifier: Apache-2.0
// The whole program with the real model: front end, two rank processes, ring attention between
// them.
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "bench/client.h"
#include "bench/server_process.h"
#include "tests/dist/command.h"

namespace annulus::testing {
namespace {

nlohmann::json golden_case(const std::string& name) {
  std::ifstream in(ANNULUS_GOLDEN_DIR "/generate.jsonl");
  for (std::string line; std::getline(in, line);) {
    nlohmann::json parsed = nlohmann::json::parse(line);
    if (parsed["name"] == name) return parsed;
  }
  ADD_FAILURE() << "no golden case " << name;
  return {};
}

// In fp32 the logits are within 5e-4 of the golden ones, and the smallest gap between the two best
// of this case is 0.036: the ids must be equal.
TEST(Serve, TwoRanksStreamTheGoldenAnswer) {
  const auto server = bench::ServerProcess::start(
      {"--model", real_model_file(), "--cp", "2", "--threads", "1", "--precision", "fp32"});
  ASSERT_TRUE(server.ok()) << server.status();
  const nlohmann::json golden = golden_case("odd-37");
  v1::GenerateRequest request;
  request.set_packed_tokens(bench::pack_tokens(golden["prompt_ids"].get<std::vector<int32_t>>()));
  const auto wanted = golden["ids"].get<std::vector<uint32_t>>();
  request.set_max_tokens(static_cast<uint32_t>(wanted.size()));
  request.set_ignore_eos(true);
  const auto answer = bench::Client(server->address()).generate(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  std::vector<uint32_t> ids;
  for (const v1::Token& token : answer->tokens) ids.push_back(token.id());
  EXPECT_EQ(ids, wanted);
  EXPECT_EQ(answer->accepted.prompt_tokens(), 37);

  const auto cluster = bench::Client(server->address()).cluster();
  ASSERT_TRUE(cluster.ok());
  EXPECT_EQ(cluster->ranks_size(), 2);
  // Two plans in flight: a rank does not wait for the front end between decode steps.
  EXPECT_GT(cluster->plans_ahead(), cluster->decode_steps() / 2);
}

TEST(Serve, TheChatTemplateOfTheModelIsUsed) {
  const auto server = bench::ServerProcess::start(
      {"--model", real_model_file(), "--threads", "1", "--precision", "fp32"});
  ASSERT_TRUE(server.ok()) << server.status();
  const nlohmann::json golden = golden_case("session-turn1");
  const auto prompt = golden["prompt_ids"].get<std::vector<int32_t>>();
  const auto model = bench::Client(server->address()).model();
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(model->chat_template(), "chatml");
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(golden["user"].get<std::string>());
  request.set_max_tokens(32);
  const auto answer = bench::Client(server->address()).generate(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->accepted.prompt_tokens(), static_cast<int64_t>(prompt.size()));
  EXPECT_EQ(answer->finished.reason(), "stop");
  std::vector<uint32_t> ids;
  for (const v1::Token& token : answer->tokens) ids.push_back(token.id());
  EXPECT_EQ(ids, golden["ids"].get<std::vector<uint32_t>>());
}

TEST(Serve, SigtermLetsAnswersFinishAndLeavesNothingBehind) {
  const int shared_before = shared_memory_files();
  auto server =
      bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "2", "--threads", "1"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<pid_t> workers = children_of(server->pid());
  EXPECT_EQ(workers.size(), 2u);
  const auto stub = stub_for(server->address());
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, ask("hello", 2000));
  v1::GenerateResponse event;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&event));
  kill(server->pid(), SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  grpc::ClientContext late_context;
  const auto late = stub->Generate(&late_context, ask("hello", 1));
  v1::GenerateResponse late_event;
  EXPECT_FALSE(late->Read(&late_event));
  EXPECT_EQ(late->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  int64_t tokens = 0;
  while (reader->Read(&event)) {
    if (event.has_finished()) tokens = event.finished().usage().completion_tokens();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 2000);
  EXPECT_EQ(server->wait_exit(20), 0) << server->log();
  for (const pid_t worker : workers) EXPECT_TRUE(gone(worker));
  EXPECT_EQ(shared_memory_files(), shared_before);
}

TEST(Serve, ASecondSignalEndsItAtOnce) {
  auto server =
      bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "2", "--threads", "1"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<pid_t> workers = children_of(server->pid());
  const auto stub = stub_for(server->address());
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, ask("hello", 4000));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  kill(server->pid(), SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  kill(server->pid(), SIGTERM);
  EXPECT_EQ(server->wait_exit(3), 1);
  for (const pid_t worker : workers) EXPECT_TRUE(wait_gone(worker, 3));
}

}  // namespace
}  // namespace annulus::testing
