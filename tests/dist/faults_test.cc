// SPDX-License-Identifier: Apache-2.0
// Processes that die or stop: the stream that ran ends UNAVAILABLE and says which rank, and the
// next epoch serves again.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <thread>

#include "bench/server_process.h"
#include "tests/dist/command.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

class Faults : public ::testing::Test {
 protected:
  void SetUp() override {
    auto started =
        bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "3", "--threads", "1"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = std::make_unique<bench::ServerProcess>(*std::move(started));
    stub_ = stub_for(server_->address());
    cluster_ = wait_serving(*stub_, 0);
    ASSERT_EQ(cluster_.ranks_size(), 3);
  }

  // How a long answer ends when `harm` is done after its first tokens.
  template <class Harm>
  grpc::Status interrupted(const Harm& harm) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, ask("hello", 4000));
    v1::GenerateResponse event;
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(reader->Read(&event));
    harm();
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  void expect_serving_again() {
    const v1::GetClusterResponse next = wait_serving(*stub_, cluster_.epoch());
    EXPECT_NE(next.ranks(1).pid(), cluster_.ranks(1).pid());
    EXPECT_EQ(next.ranks(0).pid(), cluster_.ranks(0).pid());  // survivors stay
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, ask("hello", 5));
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  std::unique_ptr<bench::ServerProcess> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  v1::GetClusterResponse cluster_;
};

TEST_F(Faults, AKilledWorkerIsReplaced) {
  const auto pid = static_cast<pid_t>(cluster_.ranks(1).pid());
  const grpc::Status status = interrupted([&] { kill(pid, SIGKILL); });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_NE(status.error_message().find("rank 1 (pid " + std::to_string(pid)), std::string::npos)
      << status.error_message();
  expect_serving_again();
}

TEST_F(Faults, AStoppedWorkerIsReplaced) {
  const auto pid = static_cast<pid_t>(cluster_.ranks(1).pid());
  const auto began = std::chrono::steady_clock::now();
  const grpc::Status status = interrupted([&] { kill(pid, SIGSTOP); });
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_NE(status.error_message().find("no heartbeat"), std::string::npos)
      << status.error_message();
  EXPECT_GT(took, 2);
  EXPECT_LT(took, 8);
  EXPECT_TRUE(wait_gone(pid, 5));
  expect_serving_again();
}

TEST_F(Faults, ACancelledCallFreesItsPlace) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, ask("hello", 4000));
  v1::GenerateResponse event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  for (int i = 0; i < 500; ++i) {
    cluster_ = wait_serving(*stub_, 0);
    if (cluster_.requests_running() == 0) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(cluster_.requests_running(), 0);
}

TEST_F(Faults, WorkersDoNotOutliveAFrontEndThatIsKilled) {
  kill(server_->pid(), SIGKILL);
  for (const v1::Rank& rank : cluster_.ranks()) {
    EXPECT_TRUE(wait_gone(static_cast<pid_t>(rank.pid()), 5));
  }
}

// The embedding is looked up in the mapped file: cut short, the kernel ends who reads it.
TEST(Supervision, AModelFileCutShortInUseIsNamed) {
  const std::string model = scratch_directory() + "/cut.gguf";
  std::filesystem::copy_file(tiny_model_file(), model,
                             std::filesystem::copy_options::overwrite_existing);
  Process server({bench::annulus_binary(), "serve", "--model", model, "--cp", "2", "--port", "0",
                  "--threads", "1"});
  ASSERT_TRUE(server.wait_for_output("annulus: ready on ")) << server.err();
  const std::string out = server.out();
  const size_t at = out.find("ready on ") + 9;
  const auto stub = stub_for(out.substr(at, out.find(' ', at) - at));
  std::filesystem::resize_file(model, 0);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, ask("hello", 5));
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  const Outcome outcome = server.wait();
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find(model + " was cut short"), std::string::npos) << outcome.err;
}

TEST(Supervision, RanksThatCannotStartEndTheServerWithTheReason) {
  // 46 TB of KV in fp32, for processes that may have 16 GiB.
  const Outcome outcome =
      Process({"/bin/sh", "-c", "ulimit -v 16777216; exec \"$0\" \"$@\"", bench::annulus_binary(),
               "serve", "--model", real_model_file(), "--port", "0", "--threads", "1",
               "--precision", "fp32", "--kv-rows", "1000000000", "--log-level", "off"})
          .wait();
  EXPECT_EQ(outcome.code, 1) << outcome.err;
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find("annulus serve: the ranks failed to start 3 times: rank 0"),
            std::string::npos)
      << outcome.err;
  EXPECT_NE(outcome.err.find("KV cache"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace annulus::testing
