// SPDX-License-Identifier: Apache-2.0
#include "tests/dist/command.h"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "bench/server_process.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

using Clock = std::chrono::steady_clock;

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class Condition>
bool wait_until(double seconds, const Condition& condition) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

}  // namespace

Process::Process(std::vector<std::string> arguments, const std::string& input)
    : folder_(scratch_directory()) {
  write_file(folder_ + "/in", std::string_view(input));
  const std::string in = folder_ + "/in", out = folder_ + "/out", err = folder_ + "/err";
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(open(in.c_str(), O_RDONLY), 0);
    dup2(open(out.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600), 1);
    dup2(open(err.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600), 2);
    execvp(argv[0], argv.data());
    _exit(127);
  }
}

Process::~Process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Process::signal(int number) const {
  kill(pid_, number);
}
std::string Process::out() const {
  return read_file(folder_ + "/out");
}
std::string Process::err() const {
  return read_file(folder_ + "/err");
}

bool Process::wait_for_output(const std::string& text, double seconds) const {
  return wait_until(seconds, [&] { return out().find(text) != std::string::npos; });
}

Outcome Process::wait(double seconds) {
  Outcome outcome;
  int status = 0;
  const bool ended = wait_until(seconds, [&] { return waitpid(pid_, &status, WNOHANG) == pid_; });
  if (!ended) {
    kill(pid_, SIGKILL);
    waitpid(pid_, &status, 0);
  } else {
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  pid_ = -1;
  outcome.out = out();
  outcome.err = err();
  return outcome;
}

Outcome annulus(std::vector<std::string> arguments, const std::string& input) {
  arguments.insert(arguments.begin(), bench::annulus_binary());
  return Process(std::move(arguments), input).wait();
}

int lines(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

std::vector<pid_t> threads_of(pid_t pid) {
  std::vector<pid_t> out;
  std::error_code ignored;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", ignored)) {
    out.push_back(std::stoi(task.path().filename()));
  }
  return out;
}

std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> out;
  for (const pid_t thread : threads_of(pid)) {
    std::istringstream in(read_file("/proc/" + std::to_string(pid) + "/task/" +
                                    std::to_string(thread) + "/children"));
    for (pid_t child = 0; in >> child;) out.push_back(child);
  }
  return out;
}

bool gone(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos || stat.compare(name_end, 3, ") Z") == 0;
}

bool wait_gone(pid_t pid, double seconds) {
  return wait_until(seconds, [&] { return gone(pid); });
}

int shared_memory_files() {
  std::error_code ignored;
  const std::filesystem::directory_iterator folder("/dev/shm", ignored);
  return static_cast<int>(std::distance(begin(folder), end(folder)));
}

std::string tiny_model_file() {
  static const std::string path = [] {
    std::string made = scratch_directory() + "/tiny.gguf";
    write_gguf({}, made);
    return made;
  }();
  return path;
}

std::string real_model_file() {
  const auto path = test_model_path();
  EXPECT_TRUE(path.ok()) << path.status();
  return path.value_or("");
}

std::unique_ptr<v1::Inference::Stub> stub_for(const std::string& address) {
  return v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
}

v1::GetClusterResponse wait_serving(v1::Inference::Stub& stub, int64_t after_epoch,
                                    double seconds) {
  v1::GetClusterResponse cluster;
  EXPECT_TRUE(wait_until(seconds,
                         [&] {
                           grpc::ClientContext context;
                           return stub.GetCluster(&context, {}, &cluster).ok() &&
                                  cluster.serving() && cluster.epoch() > after_epoch;
                         }))
      << "not serving: " << cluster.why_not();
  return cluster;
}

v1::GenerateRequest ask(const std::string& text, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

}  // namespace annulus::testing
