// SPDX-License-Identifier: Apache-2.0
// What the program says: to wrong flags, to wrong files, and to people.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bench/server_process.h"
#include "tests/dist/command.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

void expect_one_line(const Outcome& outcome, int code, const std::string& word) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(word), std::string::npos) << outcome.err;
}

TEST(Cli, WrongFlagsAreOneLine) {
  expect_one_line(annulus({}), 2, "subcommand");
  expect_one_line(annulus({"serve", "--nonsense"}), 2, "--nonsense");
  expect_one_line(annulus({"serve", "--tp", "many"}), 2, "--tp");
  expect_one_line(annulus({"serve", "--cp", "0"}), 2, "--cp");
  expect_one_line(annulus({"worker"}), 2, "--connect");
  const std::string model = tiny_model_file();
  expect_one_line(annulus({"serve", "--model", model, "--attention", "magic"}), 2, "gather-q");
  expect_one_line(annulus({"serve", "--model", model, "--precision", "fp4"}), 2, "fp32");
  expect_one_line(annulus({"serve", "--model", model, "--cpu-isa", "neon"}), 2, "neon");
  expect_one_line(annulus({"serve", "--model", model, "--device", "tpu"}), 2, "cuda");
  if (!std::filesystem::exists("/dev/nvidia0")) {
    expect_one_line(annulus({"serve", "--model", model, "--device", "cuda"}), 2,
                    "--device cpu needs neither");
    expect_one_line(annulus({"worker", "--connect", "127.0.0.1:1", "--device", "cuda"}), 2,
                    "--device cpu needs neither");
  }
  const auto by_cudnn = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"serve", "--model", model, "--gpu-attention", "cudnn"});
    return annulus(more);
  };
  expect_one_line(by_cudnn({}), 2, "--device cuda");
  expect_one_line(annulus({"serve", "--model", model, "--tune-gemm"}), 2,
                  "--tune-gemm is for GPUs");
  expect_one_line(annulus({"serve", "--model", model, "--cuda-graphs", "off"}), 2,
                  "--cuda-graphs off is for GPUs");
  expect_one_line(by_cudnn({"--device", "cuda", "--precision", "fp32"}), 2, "--precision fp32");
  expect_one_line(by_cudnn({"--device", "cuda", "--workers", "external"}), 2, "heads of 64 or 128");
  expect_one_line(annulus({"serve", "--model", model, "--gpu-attention", "magic"}), 2, "cudnn");
  expect_one_line(annulus({"worker", "--connect", "127.0.0.1:1", "--gpu-attention", "cudnn"}), 2,
                  "--gpu-attention");  // the front end's alone
  // The library is looked for before the GPU. A build without GPU code says that instead.
  setenv("ANNULUS_CUDNN", "/nowhere/libcudnn.so.9", 1);
  const Outcome missing = by_cudnn({"--device", "cuda"});
  unsetenv("ANNULUS_CUDNN");
  const bool no_gpu_code = missing.err.find("deploy/install --cuda,") != std::string::npos;
  expect_one_line(missing, 2, no_gpu_code ? "--device cpu" : "/nowhere/libcudnn.so.9");
  expect_one_line(annulus({"serve", "--model", model, "--rope-scaling", "wild"}), 2, "wild");
  expect_one_line(annulus({"serve", "--model", model, "--log-level", "loud"}), 2, "loud");
}

TEST(Cli, WrongModelsAreOneLine) {
  expect_one_line(annulus({"serve", "--model", "/nowhere/m.gguf"}), 2, "does not exist");
  const std::string junk = scratch_directory() + "/junk.gguf";
  write_file(junk, std::string_view("not a model"));
  expect_one_line(annulus({"serve", "--model", junk}), 2, "junk.gguf");
}

TEST(Cli, ATpThatDoesNotDivideNamesThoseThatDo) {
  const Outcome outcome = annulus({"serve", "--model", real_model_file(), "--tp", "2"});
  expect_one_line(outcome, 2, "2");
  EXPECT_NE(outcome.err.find("1, 3"), std::string::npos) << outcome.err;
}

TEST(Cli, HelpTeachesByExample) {
  EXPECT_EQ(annulus({"--version"}).out.substr(0, 8), "annulus ");
  for (const char* command :
       {"serve", "worker", "generate", "chat", "status", "doctor", "plan", "hosts"}) {
    const Outcome outcome = annulus({command, "--help"});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_NE(outcome.out.find(std::string("annulus ") + command), std::string::npos);
    EXPECT_NE(outcome.out.find("Examples:"), std::string::npos) << command;
  }
}

TEST(Cli, HostsAreOneALine) {
  const Outcome outcome = annulus({"hosts", "node[1-2,09-10],gpu-a"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "node1\nnode2\nnode09\nnode10\ngpu-a\n");
  EXPECT_EQ(annulus({"hosts", "--first", "node[4-6]"}).out, "node4\n");
  expect_one_line(annulus({"hosts", "node[1-2"}), 2, "at character 5: this [ has no ]");
  expect_one_line(annulus({"hosts"}), 2, "list");
}

TEST(Cli, NobodyThereIsOneLineThatSaysWhatToDo) {
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"generate", "--prompt", "x"}, {"status"}, {"chat"}}) {
    std::vector<std::string> arguments = command;
    arguments.insert(arguments.end(), {"--server", "127.0.0.1:1"});
    expect_one_line(annulus(arguments), 1, "annulus serve");
  }
}

TEST(Cli, AddressesThatAreNoneAreOneLine) {
  expect_one_line(annulus({"status", "--server", ""}), 2, "HOST:PORT");
  expect_one_line(annulus({"generate", "--prompt", "x", "--server", "ipv4:1"}), 2, "HOST:PORT");
  expect_one_line(annulus({"serve", "--model", ""}), 2, "--model is empty");
}

TEST(Cli, AnAnswerThatCannotBeWrittenFails) {
  const std::string command = bench::annulus_binary() + " --help >/dev/full 2>/dev/null";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
}

// IPv6 addresses are printed, and passed on, as they can be used; local workers attach at once, so
// no time without a front end is too short; what runs at once does not wait.
TEST(Cli, OddSettingsServe) {
  Process server({bench::annulus_binary(), "serve", "--model", tiny_model_file(), "--threads", "1",
                  "--port", "0", "--listen", "::1", "--control-listen", "::1", "--orphan-timeout",
                  "0", "--max-queue", "0"});
  ASSERT_TRUE(server.wait_for_output("ready on [::1]:")) << server.err();
  const std::string out = server.out();
  const size_t at = out.find("[::1]:");
  const std::string address = out.substr(at, out.find(' ', at) - at);
  const Outcome answer =
      annulus({"generate", "--prompt", "x", "--max-tokens", "2", "--server", address});
  EXPECT_EQ(answer.code, 0) << answer.err;
}

class CliWithServer : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = bench::ServerProcess::start(
        {"--model", tiny_model_file(), "--cp", "2", "--threads", "1", "--precision", "fp32"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = new bench::ServerProcess(*std::move(started));
  }
  static void TearDownTestSuite() { delete std::exchange(server_, nullptr); }
  void SetUp() override { ASSERT_NE(server_, nullptr); }

  static Outcome client(std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.end(), {"--server", server_->address()});
    return annulus(std::move(arguments), input);
  }

  static bench::ServerProcess* server_;
};
bench::ServerProcess* CliWithServer::server_ = nullptr;

TEST_F(CliWithServer, GenerateStreamsTextAndFigures) {
  const Outcome outcome =
      client({"generate", "--prompt", "hello", "--max-tokens", "8", "--ignore-eos", "--progress"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_FALSE(outcome.out.empty());
  for (const char* word : {"prefill [####", "5 prompt tokens", "8 tokens", "predicted"}) {
    EXPECT_NE(outcome.err.find(word), std::string::npos) << outcome.err;
  }
}

TEST_F(CliWithServer, TokenFilesAreTextOrPacked) {
  const std::string folder = scratch_directory();
  write_file(folder + "/text", std::string_view("[104, 101, 108]\n"));
  write_file(folder + "/packed", std::string_view("h\0\0\0e\0\0\0l\0\0\0", 12));
  std::vector<nlohmann::json> answers;
  for (const char* file : {"/text", "/packed"}) {
    const Outcome outcome = client({"generate", "--tokens-file", folder + file, "--json",
                                    "--max-tokens", "6", "--logprobs", "2"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    answers.push_back(nlohmann::json::parse(outcome.out));
    EXPECT_EQ(answers.back()["usage"]["prompt_tokens"], 3);
    EXPECT_EQ(answers.back()["tokens"][0]["top"].size(), 2u);
  }
  EXPECT_EQ(answers[0]["ids"], answers[1]["ids"]);
}

TEST_F(CliWithServer, ErrorsAreOneLineWithTheirCode) {
  expect_one_line(client({"generate", "--prompt", std::string(5000, 'x')}), 2, "OUT_OF_RANGE");
  expect_one_line(client({"generate", "--prompt", "x", "--attention", "pass-q"}), 2,
                  "--debug-requests");
  expect_one_line(client({"generate", "--prompt", "x", "--chat", "y"}), 2, "one of");
  expect_one_line(client({"generate", "--prompt-file", "/nowhere"}), 2, "/nowhere");
  expect_one_line(client({"generate"}, "\xff\xfe"), 2, "UTF-8");
  const std::string broken = scratch_directory() + "/broken";
  write_file(broken, std::string_view("12345"));  // one id, and not in the vocabulary
  expect_one_line(client({"generate", "--tokens-file", broken}), 2, "packed_tokens[0]");
}

TEST_F(CliWithServer, APublicPortIsNoControlPort) {
  const Outcome worker = annulus({"worker", "--connect", server_->address(), "--secret", "s",
                                  "--model", tiny_model_file(), "--orphan-timeout", "1"});
  EXPECT_EQ(worker.code, 1);
  EXPECT_NE(worker.err.find("control address"), std::string::npos) << worker.err;
}

TEST_F(CliWithServer, APortInUseIsOneLine) {
  const std::string port = server_->address().substr(server_->address().find(':') + 1);
  expect_one_line(annulus({"serve", "--model", tiny_model_file(), "--port", port}), 2,
                  "port is taken");
}

TEST_F(CliWithServer, ChatKeepsItsSession) {
  const Outcome outcome =
      client({"chat", "--max-tokens", "6"},
             "first question\nsecond\n/rewind 1\nthird\n/reset\nfourth\n/quit\n");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  std::vector<std::string> figures;
  for (size_t at = 0; (at = outcome.out.find(" cached (", at)) != std::string::npos; ++at) {
    figures.push_back(outcome.out.substr(at + 9, outcome.out.find(' ', at + 9) - at - 9));
  }
  ASSERT_EQ(figures.size(), 4u) << outcome.out;
  EXPECT_EQ(figures[0], "0");
  EXPECT_GT(std::stoi(figures[1]), 50);
  EXPECT_GT(std::stoi(figures[2]), 50);
  EXPECT_EQ(figures[3], "0");
  EXPECT_NE(outcome.out.find("1 turns remain"), std::string::npos);
}

TEST_F(CliWithServer, StatusShowsRanksAndVariants) {
  ASSERT_EQ(client({"generate", "--prompt", "hello", "--max-tokens", "8", "--ignore-eos"}).code, 0);
  const Outcome text = client({"status"});
  EXPECT_EQ(text.code, 0);
  EXPECT_NE(text.out.find("tp 1 x cp 2"), std::string::npos) << text.out;
  const Outcome json = client({"status", "--json"});
  const auto status = nlohmann::json::parse(json.out);
  EXPECT_TRUE(status["serving"]);
  ASSERT_EQ(status["ranks"].size(), 2u);
  EXPECT_GT(status["ranks"][1]["resident_bytes"], 0);
  EXPECT_GT(status["ranks"][1]["step_us"], 0);
  EXPECT_GE(status["decode_steps"], 7);
  EXPECT_EQ(status["requests_running"], 0);
}

}  // namespace
}  // namespace annulus::testing
