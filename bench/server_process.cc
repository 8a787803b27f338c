// SPDX-License-Identifier: Apache-2.0
#include "bench/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string tail(const std::string& text, size_t bytes) {
  return text.size() <= bytes ? text : text.substr(text.size() - bytes);
}

std::string find_binary() {
  if (const char* path = std::getenv("ANNULUS_BINARY")) return path;
  const fs::path self = fs::read_symlink("/proc/self/exe");
  for (fs::path folder = self.parent_path(); folder != folder.root_path();
       folder = folder.parent_path()) {
    if (fs::exists(folder / "server" / "annulus")) return folder / "server" / "annulus";
  }
  return "annulus";
}

}  // namespace

std::string annulus_binary() {
  static const std::string path = find_binary();
  return path;
}

absl::StatusOr<ServerProcess> ServerProcess::start(const std::vector<std::string>& flags,
                                                   double timeout_s) {
  ServerProcess server;
  std::string pattern = fs::temp_directory_path() / "annulus-serve-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) return absl::InternalError("mkdtemp failed");
  server.folder_ = pattern;
  const std::string ready = pattern + "/ready", log = pattern + "/log";
  std::vector<std::string> args = {annulus_binary(), "serve", "--port", "0", "--ready-file", ready};
  args.insert(args.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  argv.reserve(args.size() + 1);
  for (std::string& a : args) argv.push_back(a.data());
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  server.pid_ = fork();
  if (server.pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // whoever ends the benchmark ends its server
    if (getppid() != parent) _exit(1);
    const int fd = open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
    dup2(fd, 1);
    dup2(fd, 2);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout_s);
  while (Clock::now() < deadline) {
    const std::string port = read_file(ready);
    if (!port.empty() && port.back() == '\n') {
      server.address_ = absl::StrCat("127.0.0.1:", port.substr(0, port.size() - 1));
      return server;
    }
    int status = 0;
    if (waitpid(server.pid_, &status, WNOHANG) == server.pid_) {
      server.pid_ = -1;
      return absl::FailedPreconditionError(absl::StrCat(
          args[0], " serve ended with status ", WIFEXITED(status) ? WEXITSTATUS(status) : -1, ":\n",
          tail(read_file(log), 2000)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("not serving after ", timeout_s, " s:\n", tail(read_file(log), 2000)));
}

ServerProcess::ServerProcess(ServerProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      address_(std::move(other.address_)),
      folder_(std::exchange(other.folder_, "")) {}

std::string ServerProcess::log() const {
  return read_file(folder_ + "/log");
}

int ServerProcess::wait_exit(double timeout_s) {
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout_s);
  while (pid_ > 0 && Clock::now() < deadline) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return -1;
}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    if (wait_exit(20) == -1 && pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  std::error_code ignored;
  if (!folder_.empty()) fs::remove_all(folder_, ignored);
}

}  // namespace annulus::bench
