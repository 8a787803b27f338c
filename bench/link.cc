// SPDX-License-Identifier: Apache-2.0
#include "bench/link.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/check.h"
#include "parallel/comm_ucx.h"
#include "parallel/measure_link.h"

namespace annulus::bench {
namespace {

using kernels::CpuQueue;
using parallel::Bytes;
using parallel::ConstBytes;
using Ring = parallel::Communicator<CpuQueue>;
using Clock = std::chrono::steady_clock;

struct Flags {
  int64_t min_bytes = 8, max_bytes = 16 << 20;
  int repeats = 9;
  bool json = false, pin = true;
};

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

struct Times {
  double min = 0, median = 0, p95 = 0;
};
Times times_of(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  return {us.front(), us[us.size() / 2], us[us.size() * 95 / 100]};
}

std::byte pattern(int rank, int64_t i, int round) {
  return static_cast<std::byte>((i * 31 + rank * 101 + round * 7) & 0xff);
}

class Pair {
 public:
  Pair(Ring& ring, const Flags& flags) : ring_(ring), flags_(flags), queue_(1) {}

  void table(const char* transport) {
    if (ring_.rank() == 0 && !flags_.json) {
      std::printf("#\n# %s\n#%11s %9s %9s %9s %11s %9s %9s %9s %7s\n", transport, "bytes", "RTT us",
                  "min", "p95", "exchange us", "min", "p95", "GB/s/dir", "#wrong");
    }
    for (int64_t bytes = flags_.min_bytes; bytes <= flags_.max_bytes; bytes *= 4)
      row(transport, bytes);
    const parallel::LinkMeasure link = parallel::measure_link(ring_, queue_, 1);
    if (ring_.rank() != 0) return;
    if (flags_.json) {
      std::printf(
          "{\"transport\":\"%s\",\"latency_us\":%.3f,\"overhead_us\":%.3f,\"bytes_per_us\":%.1f,"
          "\"overlap\":%.3f}\n",
          transport, link.small_hop_us(), link.overhead_us, link.bytes_per_us, link.overlap);
    } else {
      std::printf(
          "# as the policy sees it: latency %.2f us (%.2f of it the rank's own), %.0f "
          "bytes/us, overlap %.2f\n",
          link.small_hop_us(), link.overhead_us, link.bytes_per_us, link.overlap);
    }
    std::fflush(stdout);
  }
  int64_t wrong() const { return wrong_; }

 private:
  void row(const char* transport, int64_t bytes) {
    const int other = 1 - ring_.rank();
    std::vector<std::byte> out(static_cast<size_t>(bytes)), in(out.size());
    const int per_repeat = bytes <= 65536 ? 200 : bytes <= (1 << 20) ? 20 : 3;
    std::vector<double> round_trips, exchanges;
    int64_t wrong = 0;
    for (int repeat = -1; repeat < flags_.repeats; ++repeat) {  // the first warms up
      for (int64_t i = 0; i < bytes; ++i)
        out[static_cast<size_t>(i)] = pattern(ring_.rank(), i, repeat);
      std::fill(in.begin(), in.end(), std::byte{0});
      barrier();
      Clock::time_point start = Clock::now();
      for (int i = 0; i < per_repeat; ++i) hop(out, in, other);
      if (repeat >= 0) exchanges.push_back(us_since(start) / per_repeat);
      for (int64_t i = 0; i < bytes; ++i)
        wrong += in[static_cast<size_t>(i)] != pattern(other, i, repeat);
      barrier();
      start = Clock::now();
      for (int i = 0; i < per_repeat; ++i) {
        if (ring_.rank() == 0) hop(out, {}, other);
        hop({}, in, other);
        if (ring_.rank() == 1) hop(out, {}, other);
      }
      if (repeat >= 0) round_trips.push_back(us_since(start) / per_repeat);
    }
    wrong_ += wrong;
    float sum = static_cast<float>(wrong);
    ring_.all_reduce(queue_, std::span(&sum, 1), next());
    if (ring_.rank() != 0) return;
    const Times rtt = times_of(round_trips), exchange = times_of(exchanges);
    const double gb_per_s = static_cast<double>(bytes) / exchange.median / 1e3;
    if (flags_.json) {
      std::printf(
          "{\"transport\":\"%s\",\"bytes\":%lld,\"rtt_us\":%.3f,\"exchange_us\":%.3f,"
          "\"gb_per_s\":%.4f,\"wrong\":%.0f}\n",
          transport, static_cast<long long>(bytes), rtt.median, exchange.median, gb_per_s,
          static_cast<double>(sum));
    } else {
      std::printf("%12lld %9.2f %9.2f %9.2f %11.2f %9.2f %9.2f %9.2f %7.0f\n",
                  static_cast<long long>(bytes), rtt.median, rtt.min, rtt.p95, exchange.median,
                  exchange.min, exchange.p95, gb_per_s, static_cast<double>(sum));
    }
    std::fflush(stdout);
  }

  parallel::OpId next() {
    sequence_ = (sequence_ + 1) % 4096;
    return {.step = 0, .sequence = sequence_, .what = "link benchmark"};
  }
  void hop(ConstBytes out, Bytes in, int other) {
    ring_.await(queue_, ring_.exchange(queue_, out, other, in, other, next()));
  }
  void barrier() {
    float x = 0;
    ring_.all_reduce(queue_, std::span(&x, 1), next());
  }

  Ring& ring_;
  const Flags& flags_;
  CpuQueue queue_;
  int32_t sequence_ = 0;
  int64_t wrong_ = 0;
};

// Pipes of one byte stream each way between the two ranks.
struct Pipes {
  int fd[2][2];  // fd[r]: what rank r writes
};

bool send_address(int fd, const std::string& text) {
  const uint32_t length = static_cast<uint32_t>(text.size());
  return write(fd, &length, sizeof length) == ssize_t{sizeof length} &&
         write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

std::string receive_address(int fd) {
  const auto fill = [fd](char* to, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
      const ssize_t n = read(fd, to + got, bytes - got);
      if (n <= 0) throw kernels::DeviceError("the other rank is gone");
      got += static_cast<size_t>(n);
    }
  };
  uint32_t length = 0;
  fill(reinterpret_cast<char*>(&length), sizeof length);
  std::string text(length, '\0');
  fill(text.data(), text.size());
  return text;
}

int rank_main(int rank, const Pipes& pipes, const char* name, const char* transports,
              const Flags& flags) {
  if (flags.pin) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(static_cast<unsigned>(rank), &cores);
    sched_setaffinity(0, sizeof cores, &cores);
  }
  parallel::UcxOptions options;
  options.transports = transports;
  auto world = parallel::UcxWorld::create({.tp = 1, .cp = 2}, rank, 1, options);
  if (!world.ok()) throw kernels::DeviceError(world.status().ToString());
  std::string addresses[2];
  addresses[rank] = (*world)->address();
  if (!send_address(pipes.fd[rank][1], addresses[rank]))
    throw kernels::DeviceError("the other rank is gone");
  addresses[1 - rank] = receive_address(pipes.fd[1 - rank][0]);
  if (const absl::Status status = (*world)->connect(addresses); !status.ok())
    throw kernels::DeviceError(status.ToString());
  (*world)->groups().cp->set_deadline(Clock::now() + std::chrono::minutes(5));
  Pair pair(*(*world)->groups().cp, flags);
  pair.table(name);
  return pair.wrong() == 0 ? 0 : 1;
}

int run(const char* name, const char* transports, const Flags& flags) {
  Pipes pipes;
  for (auto& p : pipes.fd)
    if (pipe(p) != 0) return 1;
  std::fflush(nullptr);
  pid_t children[2];
  for (int rank = 0; rank < 2; ++rank) {
    children[rank] = fork();
    if (children[rank] != 0) continue;
    int status = 1;
    for (int r = 0; r < 2; ++r) close(pipes.fd[r][r == rank ? 0 : 1]);
    try {
      status = rank_main(rank, pipes, name, transports, flags);
    } catch (const kernels::DeviceError& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    std::fflush(nullptr);
    _exit(status);
  }
  for (auto& p : pipes.fd)
    for (const int fd : p) close(fd);
  int worst = 0;
  for (const pid_t child : children) {
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status)) {
      worst = 1;
    } else {
      worst = std::max(worst, WEXITSTATUS(status));
    }
  }
  return worst;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

}  // namespace

int bench_link(int argc, char** argv) {
  Flags flags;
  std::string transport = "both";
  CLI::App app("Round trip and exchange bandwidth between two pinned processes, by message size.");
  app.footer("Example: annulus-bench link --transport shm --max-bytes 1048576");
  app.add_option("--transport", transport, "shm, tcp or both")
      ->check(CLI::IsMember({"shm", "tcp", "both"}));
  app.add_option("--min-bytes", flags.min_bytes, "smallest message")->check(CLI::Range(1, 1 << 28));
  app.add_option("--max-bytes", flags.max_bytes, "largest message")->check(CLI::Range(1, 1 << 28));
  app.add_option("--repeats", flags.repeats, "measurements per row")->check(CLI::Range(1, 1000));
  app.add_flag("--json", flags.json, "one JSON object per line");
  bool roam = false;
  app.add_flag("--no-pin", roam, "let the ranks change cores");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  flags.pin = !roam && std::thread::hardware_concurrency() > 1;
  if (!flags.json) {
    std::printf("# annulus-bench link: 2 processes, %s, %u cores, %s; %d repeats after 1 warm-up\n",
                processor().c_str(), std::thread::hardware_concurrency(),
                flags.pin ? "pinned to cores 0 and 1" : "not pinned", flags.repeats);
  }
  int worst = 0;
  if (transport != "tcp")
    worst = std::max(worst, run("shared memory", parallel::kLocalTransports, flags));
  if (transport != "shm") worst = std::max(worst, run("tcp", parallel::kTcpTransports, flags));
  return worst;
}

}  // namespace annulus::bench
