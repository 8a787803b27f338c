// SPDX-License-Identifier: Apache-2.0
#include "server/app/local_workers.h"

#include <fcntl.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace annulus::server {

namespace {

constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::milliseconds kFirstDelay{50};
constexpr std::chrono::minutes kMemory{1};
constexpr size_t kMaxDoublings = 6;

std::string describe_exit(int status) {
  if (WIFSIGNALED(status)) {
    return absl::StrCat("was killed by signal ", WTERMSIG(status), " (",
                        strsignal(WTERMSIG(status)), ")");
  }
  return absl::StrCat("ended with status ", WEXITSTATUS(status));
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (std::string& s : strings) out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

}  // namespace

LocalWorkers::LocalWorkers(Options options)
    : options_(std::move(options)), slots_(options_.children.size()) {}

LocalWorkers::~LocalWorkers() {
  stop(std::chrono::milliseconds(0));
}

void LocalWorkers::start() {
  thread_ = std::thread([this] { supervise(); });
}

void LocalWorkers::replace(int64_t pid) {
  const std::lock_guard lock(mutex_);
  for (const Slot& slot : slots_) {
    if (slot.pid > 0 && slot.pid == pid) kill(slot.pid, SIGKILL);
  }
}

void LocalWorkers::forgive() {
  const std::lock_guard lock(mutex_);
  for (Slot& slot : slots_) slot.deaths.clear();
}

void LocalWorkers::stop(std::chrono::milliseconds grace) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    kill_at_ = Clock::now() + grace;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LocalWorkers::ask_to_end() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  kill_at_ = Clock::time_point::max();
  for (const Slot& slot : slots_) {
    if (slot.pid > 0) kill(slot.pid, SIGTERM);
  }
}

bool LocalWorkers::over() const {
  const std::lock_guard lock(mutex_);
  return std::all_of(slots_.begin(), slots_.end(), [this](const Slot& slot) {
    return slot.pid <= 0 && (stopping_ || slot.ended);
  });
}

int LocalWorkers::exit_code() const {
  const std::lock_guard lock(mutex_);
  return exit_code_;
}

std::string LocalWorkers::gave_up() const {
  const std::lock_guard lock(mutex_);
  return gave_up_;
}

bool LocalWorkers::any_alive() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.pid > 0; });
}

void LocalWorkers::supervise() {
  std::unique_lock lock(mutex_);
  while (!stopping_ || any_alive()) {
    for (size_t rank = 0; rank < slots_.size(); ++rank) {
      Slot& slot = slots_[rank];
      int status = 0;
      if (slot.pid > 0 && waitpid(slot.pid, &status, WNOHANG) == slot.pid) on_exit(rank, status);
      if (slot.pid > 0 && stopping_ && Clock::now() >= kill_at_) kill(slot.pid, SIGKILL);
      if (slot.pid <= 0 && !slot.ended && !stopping_ && gave_up_.empty() &&
          Clock::now() >= slot.start_at) {
        launch(rank);
      }
    }
    wake_.wait_for(lock, kPoll);
  }
}

void LocalWorkers::on_exit(size_t rank, int status) {
  Slot& slot = slots_[rank];
  const pid_t pid = std::exchange(slot.pid, -1);
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (stopping_ || (options_.may_end && code <= 1)) {
    slot.ended = true;
    const bool as_asked = stopping_ && code == 128 + SIGTERM;  // before it could hold the signal
    exit_code_ = std::max(exit_code_, as_asked ? 0 : code);
    return;
  }
  const Clock::time_point now = Clock::now();
  std::erase_if(slot.deaths, [&](Clock::time_point death) { return now - death > kMemory; });
  slot.deaths.push_back(now);
  const std::string line = absl::StrCat("worker ", options_.first_rank + static_cast<int>(rank),
                                        " (pid ", pid, ") ", describe_exit(status));
  // Status 2 is a refusal or a model that cannot be read: the next one would end likewise.
  const bool hopeless = code == 2;
  if (hopeless || static_cast<int>(slot.deaths.size()) >= options_.max_deaths) {
    gave_up_ =
        hopeless ? absl::StrCat(line, "; its own line says why")
                 : absl::StrCat(line, ", for the ", slot.deaths.size(), "th time within a minute");
    return;
  }
  const auto delay = kFirstDelay * (int64_t{1} << std::min(slot.deaths.size() - 1, kMaxDoublings));
  slot.start_at = now + delay;
  spdlog::warn("{}: starting it again in {} ms", line, delay.count());
}

void LocalWorkers::launch(size_t rank) {
  // Everything that allocates comes before the fork: other threads hold locks in the copy.
  std::vector<std::string> arguments = options_.children[rank].arguments;
  std::vector<std::string> variables;
  // Ours first: the first of two entries of a name is the one that is found.
  variables = options_.environment;
  for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(variables);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (const int core : options_.children[rank].cores) CPU_SET(static_cast<size_t>(core), &cores);
  sigset_t no_signals;
  sigemptyset(&no_signals);
  const pid_t parent = getpid();

  const pid_t pid = fork();
  if (pid < 0) {
    gave_up_ = absl::StrCat("cannot start worker ", rank, ": ", strerror(errno));
    return;
  }
  if (pid == 0) {
    setpgid(0, 0);  // Ctrl-C in a terminal is for the front end, which drains
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (CPU_COUNT(&cores) > 0) sched_setaffinity(0, sizeof(cores), &cores);
    sigprocmask(SIG_SETMASK, &no_signals, nullptr);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
    execve("/proc/self/exe", argv.data(), envp.data());
    _exit(127);
  }
  slots_[rank].pid = pid;
  spdlog::debug("worker {} is pid {}", rank, pid);
}

}  // namespace annulus::server
