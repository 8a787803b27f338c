// SPDX-License-Identifier: Apache-2.0
// Ranks as real processes for tests and benchmarks: fork_child(), a blackboard in shared memory
// where they publish their addresses, and counts of what a process may leak. Fork before the
// caller has other threads.
#pragma once

#include <dirent.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace annulus::testing {

#ifdef ANNULUS_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// fn's value is the exit status; 125 if it threw. The child skips exit handlers.
inline pid_t fork_child(const std::function<int()>& fn) {
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child > 0) return child;
  int status = 125;
  try {
    status = fn();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
  }
  std::fflush(nullptr);
  _exit(status);
}

// The exit status; 128 + signal for a killed child.
inline int wait_child(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Made before the fork; one short text per rank.
class Blackboard {
 public:
  explicit Blackboard(int ranks) : ranks_(ranks) {
    void* memory =
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
    notes_ = new (memory) Note[static_cast<size_t>(ranks)];
  }
  ~Blackboard() { munmap(notes_, bytes()); }
  Blackboard(const Blackboard&) = delete;
  Blackboard& operator=(const Blackboard&) = delete;

  void write(int rank, const std::string& text) {
    Note& note = notes_[rank];
    if (text.size() > sizeof note.text) throw std::runtime_error("note too long");
    std::memcpy(note.text, text.data(), text.size());
    note.length.store(static_cast<int64_t>(text.size()), std::memory_order_release);
  }
  // Waits for all ranks, at most 20 s.
  std::vector<std::string> read_all() const {
    std::vector<std::string> texts;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (int r = 0; r < ranks_; ++r) {
      int64_t length;
      while ((length = notes_[r].length.load(std::memory_order_acquire)) < 0) {
        if (std::chrono::steady_clock::now() > end) throw std::runtime_error("a rank is missing");
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      texts.emplace_back(notes_[r].text, static_cast<size_t>(length));
    }
    return texts;
  }

 private:
  struct Note {
    std::atomic<int64_t> length = -1;
    char text[8184];
  };
  size_t bytes() const { return sizeof(Note) * static_cast<size_t>(ranks_); }
  int ranks_;
  Note* notes_;
};

inline int count_entries(const char* folder) {
  int n = 0;
  if (DIR* dir = opendir(folder)) {
    while (readdir(dir) != nullptr) ++n;
    closedir(dir);
  }
  return n;
}

inline int count_lines(const char* file) {
  std::ifstream in(file);
  int n = 0;
  for (std::string line; std::getline(in, line);) ++n;
  return n;
}

// System V segments made by one of these processes; the list is the whole machine's.
inline int count_segments_of(const std::vector<pid_t>& makers) {
  std::ifstream in("/proc/sysvipc/shm");
  int n = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);  // key shmid perms size cpid ...
    std::string key, id, permissions, size;
    pid_t maker = 0;
    if (fields >> key >> id >> permissions >> size >> maker)
      n += static_cast<int>(std::count(makers.begin(), makers.end(), maker));
  }
  return n;
}

struct Holdings {  // of this process
  int descriptors = count_entries("/proc/self/fd");
  int threads = count_entries("/proc/self/task");
  int mappings = count_lines("/proc/self/maps");
};

inline int64_t resident_kib() {
  int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

}  // namespace annulus::testing
