// SPDX-License-Identifier: Apache-2.0
// Workers that attach by themselves, as under Slurm.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <sstream>
#include <thread>

#include "bench/server_process.h"
#include "tests/dist/cluster.h"
#include "tests/dist/command.h"

namespace annulus::testing {
namespace {

// The worker commands that `annulus serve --workers external` prints, for this build's program.
std::vector<std::string> printed_commands(const std::string& out) {
  std::vector<std::string> commands;
  std::istringstream in(out);
  for (std::string line; std::getline(in, line);) {
    const size_t at = line.find(" annulus worker ");
    if (line.rfind("  ANNULUS_SECRET=", 0) != 0 || at == std::string::npos) continue;
    commands.push_back(line.substr(0, at) + " exec " + bench::annulus_binary() +
                       line.substr(at + 8));
  }
  return commands;
}

std::unique_ptr<Process> serve_external(const std::string& control_port, int cp = 2) {
  return std::make_unique<Process>(std::vector<std::string>{
      bench::annulus_binary(), "serve", "--model", tiny_model_file(), "--cp", std::to_string(cp),
      "--port", "0", "--workers", "external", "--threads", "1", "--secret", "the secret",
      "--control-port", control_port, "--orphan-timeout", "5"});
}

std::string ready_address(const Process& process) {
  EXPECT_TRUE(process.wait_for_output("annulus: ready on ")) << process.err();
  const std::string out = process.out();
  const size_t at = out.find("ready on ") + 9;
  return out.substr(at, out.find(' ', at) - at);
}

TEST(External, PrintedCommandsAttachAndOutliveTheirFrontEnd) {
  auto front = serve_external("0");
  ASSERT_TRUE(front->wait_for_output("--rank 1"));
  const std::vector<std::string> commands = printed_commands(front->out());
  ASSERT_EQ(commands.size(), 2u);
  std::vector<std::unique_ptr<Process>> workers;
  for (const std::string& command : commands) {
    workers.push_back(
        std::make_unique<Process>(std::vector<std::string>{"/bin/sh", "-c", command}));
  }
  v1::GetClusterResponse cluster = wait_serving(*stub_for(ready_address(*front)), 0);
  EXPECT_EQ(cluster.ranks(0).pid(), workers[0]->pid());

  // Killed, not drained: the workers keep their weights and find the next one at the same port.
  const std::string& command = commands[0];
  EXPECT_EQ(command.find("--secret"), std::string::npos) << "arguments are public";
  const size_t at = command.find("--connect ") + 10;
  const std::string address = command.substr(at, command.find(' ', at) - at);
  front->signal(SIGKILL);
  front->wait(5);
  front = serve_external(address.substr(address.find(':') + 1));
  cluster = wait_serving(*stub_for(ready_address(*front)), 0);
  EXPECT_EQ(cluster.ranks(0).pid(), workers[0]->pid());
  EXPECT_EQ(cluster.ranks(1).pid(), workers[1]->pid());
  EXPECT_EQ(lines(workers[0]->err()) > 0, true);

  front->signal(SIGTERM);
  EXPECT_EQ(front->wait(10).code, 0);
  for (const auto& worker : workers) EXPECT_EQ(worker->wait(5).code, 0);  // told to end
}

TEST(External, AStrangerIsRefusedInOneLine) {
  const auto front = serve_external("0");
  ASSERT_TRUE(front->wait_for_output("--rank 1"));
  const std::string command = printed_commands(front->out())[0];
  const size_t at = command.find("'the secret'");
  ASSERT_NE(at, std::string::npos) << command;
  const std::string wrong = std::string(command).replace(at, 12, "guess");
  const Outcome outcome = Process({"/bin/sh", "-c", wrong}).wait(10);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("secret"), std::string::npos) << outcome.err;

  const Outcome other_model = Process({"/bin/sh", "-c", command + " --rope-theta 12345"}).wait(10);
  EXPECT_EQ(other_model.code, 2);
  EXPECT_NE(other_model.err.find("another model"), std::string::npos) << other_model.err;
}

// The front end decides whose attention all ranks have: one that cannot says so, and no epoch
// starts.
TEST(External, ARankThatCannotHaveTheAttentionOfTheOthersSaysSo) {
  Process front({bench::annulus_binary(), "serve", "--model",
                 "synthetic:layers=1,dim=128,heads=2,kv_heads=1", "--port", "0", "--workers",
                 "external", "--device", "cuda", "--gpu-attention", "cudnn"});
  ASSERT_TRUE(front.wait_for_output("--rank 0")) << front.err();
  std::string command = printed_commands(front.out()).at(0);
  const std::string on_gpu = "--device cuda";
  ASSERT_NE(command.find(on_gpu), std::string::npos) << command;
  command.replace(command.find(on_gpu), on_gpu.size(), "--device cpu");
  Process worker({"/bin/sh", "-c", command});
  for (int i = 0; i < 300 && worker.err().find("failed here") == std::string::npos; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_NE(worker.err().find("epoch 1 failed here: the front end wants attention by cuDNN"),
            std::string::npos)
      << worker.err();
  EXPECT_EQ(front.out().find("ready on"), std::string::npos);
}

// What Slurm, Kubernetes and systemd do: everybody is told to end at once.
TEST(External, RanksOutlastTheirSigtermWhileTheFrontEndDrains) {
  const auto front = serve_external("0");
  ASSERT_TRUE(front->wait_for_output("--rank 1"));
  const std::string out = front->out();
  const size_t at = out.find("--connect ") + 10;
  const std::string port =
      out.substr(out.find(':', at) + 1, out.find(' ', at) - out.find(':', at) - 1);
  std::vector<std::unique_ptr<Process>> workers;
  for (const char* rank : {"RANK=0", "RANK=1"}) {  // and everything else is the launcher's too
    workers.push_back(std::make_unique<Process>(std::vector<std::string>{
        "/usr/bin/env", rank, "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=" + port,
        "ANNULUS_SECRET=the secret", bench::annulus_binary(), "worker", "--model",
        tiny_model_file(), "--threads", "1", "--drain-timeout", "30"}));
  }
  const auto stub = stub_for(ready_address(*front));
  const v1::GetClusterResponse cluster = wait_serving(*stub, 0);
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(cluster.ranks(rank).pid(), workers[static_cast<size_t>(rank)]->pid());
  }

  Stream running(*stub, ask("The ring is", 2000));
  running.wait_tokens(3);
  for (int again = 0; again < 2; ++again) {  // Slurm says it twice at a time limit
    for (const auto& worker : workers) worker->signal(SIGTERM);
  }
  front->signal(SIGTERM);
  EXPECT_TRUE(running.status().ok());
  EXPECT_EQ(running.ids().size(), 2000u);
  EXPECT_EQ(front->wait(10).code, 0);
  for (const auto& worker : workers) EXPECT_EQ(worker->wait(5).code, 0);
}

TEST(External, ARankThatIsToldToEndDoesNotWaitForAFrontEnd) {
  Process worker({bench::annulus_binary(), "worker", "--connect", "127.0.0.1:1", "--model",
                  tiny_model_file(), "--drain-timeout", "600"});
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  worker.signal(SIGTERM);
  EXPECT_EQ(worker.wait(5).code, 0);
}

TEST(External, AWorkerWithoutAnybodyToAskSaysSo) {
  const Outcome outcome = annulus({"worker", "--model", tiny_model_file()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("--connect is missing"), std::string::npos) << outcome.err;
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
}

TEST(External, AWorkerWithoutAFrontEndEnds) {
  const Outcome outcome = annulus({"worker", "--connect", "127.0.0.1:1", "--model",
                                   tiny_model_file(), "--orphan-timeout", "0.5"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find("no front end at 127.0.0.1:1"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace annulus::testing
