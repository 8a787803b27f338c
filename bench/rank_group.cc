// SPDX-License-Identifier: Apache-2.0
#include "bench/rank_group.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "bench/peaks.h"
#include "kernels/core/timeline.h"
#include "parallel/comm_ucx.h"
#include "parallel/weight_transfer.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

bool write_all(int fd, const void* data, size_t bytes) {
  for (const char* p = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t n = write(fd, p, bytes);
    if (n <= 0) return false;
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool read_all(int fd, void* data, size_t bytes) {
  for (char* p = static_cast<char*>(data); bytes > 0;) {
    const ssize_t n = read(fd, p, bytes);
    if (n <= 0) return false;
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool send_message(int fd, const std::string& text) {
  const uint64_t size = text.size();
  return write_all(fd, &size, sizeof size) && write_all(fd, text.data(), text.size());
}

absl::StatusOr<std::string> receive_message(int fd) {
  uint64_t size = 0;
  if (!read_all(fd, &size, sizeof size)) return absl::UnavailableError("a rank has ended");
  std::string text(size, '\0');
  if (!read_all(fd, text.data(), size)) return absl::UnavailableError("a rank has ended");
  return text;
}

int64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  int64_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void pin_to(int first, int count) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (int i = 0; i < count; ++i)
    CPU_SET(index((first + i) % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN))), &cores);
  sched_setaffinity(0, sizeof cores, &cores);
}

// What a rank says of itself before the first plan. Travels as it lies.
struct Facts {
  MachineProfile profile;
  Peaks peaks;
  LinearBytes linear;
  LoadReport load;
};

LinearBytes linear_bytes(const LlamaWeights<kernels::CpuQueue>& weights) {
  LinearBytes bytes{.head = weights.head.bytes()};
  for (const LayerWeights<kernels::CpuQueue>& layer : weights.layers) {
    bytes.qkv += layer.qkv.bytes();
    bytes.o += layer.o.bytes();
    bytes.gate_up += layer.gate_up.bytes();
    bytes.down += layer.down.bytes();
  }
  return bytes;
}

template <class T>
std::string as_bytes(const T* data, size_t count) {
  return {reinterpret_cast<const char*>(data), count * sizeof(T)};
}

constexpr size_t kTimelineIntervals = size_t{1} << 18;  // of a step: 20 MB a rank

// Share of a file's pages in the system's cache; 0 where it is no file. With `drop`, after as many
// of them as nobody uses were taken out.
double cached_share(const std::string& path, bool drop) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  double share = 0;
  if (fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
    if (drop) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    const auto size = static_cast<size_t>(info.st_size);
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> pages((size + page - 1) / page);
    void* const map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED && mincore(map, size, pages.data()) == 0) {
      share = static_cast<double>(
                  std::count_if(pages.begin(), pages.end(), [](auto p) { return (p & 1) != 0; })) /
              static_cast<double>(pages.size());
    }
    if (map != MAP_FAILED) munmap(map, size);
  }
  if (fd >= 0) close(fd);
  return share;
}

LlamaWeights<kernels::CpuQueue> weights_of(const Checkpoint& checkpoint, UcxWorld& world,
                                           kernels::CpuQueue& queue, int32_t world_rank,
                                           const RankGroupOptions& options) {
  const Topology& topology = options.topology;
  const int32_t cp_rank = topology.cp_rank(world_rank);
  WeightWish wish{checkpoint, topology.tp_rank(world_rank), topology.tp, options.rank.precision, {},
                  {}};
  if (options.send_weights) {
    wish.route = {.from = cp_rank - 1, .to = cp_rank + 1 < topology.cp ? cp_rank + 1 : -1};
  }
  const std::function loader = [&] {
    return std::make_unique<kernels::CpuQueue>(options.rank.threads, options.rank.isa);
  };
  auto& cp = *world.groups().cp;
  LlamaWeights<kernels::CpuQueue> weights;
  const absl::Status status =
      wish.route.from < 0 ? read_weights<kernels::CpuQueue>(queue, loader, cp, wish, weights)
                          : receive_weights(queue, cp, wish, weights);
  if (!status.ok()) throw kernels::DeviceError(std::string(status.message()));
  return weights;
}

// The life of one rank: exchange addresses, load, measure, then plan in, result out.
void rank_main(int fd, int32_t world_rank, const RankGroupOptions& options) {
  if (options.pin) pin_to(world_rank * options.rank.threads, options.rank.threads);
  UcxOptions ucx;
  if (!options.transports.empty()) ucx.transports = options.transports;
  ucx.net_devices = options.net_devices;
  auto world = UcxWorld::create(options.topology, world_rank, 1, ucx);
  if (!world.ok()) throw kernels::DeviceError(std::string(world.status().message()));
  send_message(fd, (*world)->address());
  std::vector<std::string> addresses;
  addresses.reserve(static_cast<size_t>(options.topology.world()));
  for (int32_t r = 0; r < options.topology.world(); ++r)
    addresses.push_back(receive_message(fd).value());
  if (const absl::Status s = (*world)->connect(addresses); !s.ok())
    throw kernels::DeviceError(std::string(s.message()));
  const std::string& model =
      options.models.empty() ? options.model : options.models[index(world_rank)];
  const Checkpoint checkpoint = Checkpoint::open(model).value();
  auto owned_queue = std::make_unique<kernels::CpuQueue>(options.rank.threads, options.rank.isa);
  kernels::CpuQueue& queue = *owned_queue;
  auto& everybody = *(*world)->groups().world;
  Facts facts;
  if (options.cold) {
    checkpoint.drop_resident();  // what is mapped stays in the cache
    cached_share(model, /*drop=*/true);
  }
  facts.load.cached = cached_share(model, /*drop=*/false);
  // All at once, and with the way to the others open.
  if (const absl::Status s = compare_weights(queue, everybody, options.topology, 0); !s.ok())
    throw kernels::DeviceError(std::string(s.message()));
  const auto began = std::chrono::steady_clock::now();
  auto weights = std::make_shared<const LlamaWeights<kernels::CpuQueue>>(
      weights_of(checkpoint, **world, queue, world_rank, options));
  facts.load.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  facts.load.weight_bytes = weights->bytes;
  if (const absl::Status s =
          compare_weights(queue, everybody, options.topology, digest_of(queue, *weights));
      !s.ok())
    throw kernels::DeviceError(std::string(s.message()));
  auto rank = Rank::create(checkpoint.config(), weights, std::move(owned_queue), (*world)->groups(),
                           options.topology, world_rank, 1, options.rank)
                  .value();
  facts.profile = rank->measure();
  facts.peaks = measure_peaks(queue);  // all ranks leave measure() together
  facts.linear = linear_bytes(*weights);
  send_message(fd, as_bytes(&facts, 1));
  kernels::Timeline timeline(options.trace.empty() ? 0 : kTimelineIntervals);
  if (!options.trace.empty()) queue.phases().record(&timeline);
  for (;;) {
    const absl::StatusOr<std::string> bytes = receive_message(fd);
    if (!bytes.ok() || bytes->empty()) return;
    StepResult result = rank->apply(decode_plan(*bytes).value(),
                                    std::chrono::steady_clock::now() + std::chrono::minutes(10))
                            .value();
    result.resident_bytes = resident_bytes();
    send_message(fd, encode(result));
    if (options.trace.empty()) continue;
    if (timeline.dropped() > 0) {
      throw kernels::DeviceError(kernels::concat("--trace: the step has ", timeline.dropped(),
                                                 " intervals too many; trace a shorter one"));
    }
    send_message(fd, as_bytes(timeline.intervals().data(), timeline.intervals().size()));
    timeline.clear();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::start(const RankGroupOptions& options) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  std::unique_ptr<RankGroup> group(new RankGroup());
  group->config_ = checkpoint->config();
  if (absl::Status s = check_tp(group->config_, options.topology.tp); !s.ok()) return s;
  if (!options.trace.empty()) {
    auto file = server::TraceFile::create(options.trace, server::rank_names(options.topology));
    if (!file.ok()) return file.status();
    group->trace_ = *std::move(file);
  }
  if (options.link_mbit > 0) {
    auto lab = NetworkLab::create(options.topology.world());
    if (!lab.ok()) return lab.status();
    group->lab_ = *std::move(lab);
    for (int host = 0; host < options.topology.world(); ++host) {
      if (absl::Status s = group->lab_->shape(host, options.link_mbit); !s.ok()) return s;
    }
  }
  for (int32_t r = 0; r < options.topology.world(); ++r) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
      return absl::InternalError("socketpair failed");
    const pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      int status = 0;
      try {
        RankGroupOptions mine = options;
        if (options.link_mbit > 0) {
          const std::string host = group->lab_->host(r);
          if (const absl::Status s = enter_namespace(host); !s.ok())
            throw kernels::DeviceError(std::string(s.message()));
          mine.transports = kTcpTransports;
          mine.net_devices = host;
        }
        rank_main(pair[1], r, mine);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", r, error.what());
        status = 1;
      }
      _exit(status);
    }
    close(pair[1]);
    group->pids_.push_back(pid);
    group->sockets_.push_back(pair[0]);
  }
  if (absl::Status s = group->meet(options); !s.ok()) return s;
  return group;
}

absl::Status RankGroup::meet(const RankGroupOptions& options) {
  std::vector<std::string> addresses;
  for (const int fd : sockets_) {
    absl::StatusOr<std::string> address = receive_message(fd);
    if (!address.ok()) return address.status();
    addresses.push_back(*address);
  }
  for (const int fd : sockets_) {
    for (const std::string& a : addresses) send_message(fd, a);
  }
  state_.cp = options.topology.cp;
  policy_ = {attention_shape(config_, options.topology, options.rank.precision),
             options.topology.cp,
             {},
             options.rank.workspace_limit_bytes};
  const bool bf16 = options.rank.precision == kernels::Precision::kDefault;
  double flops_per_us = 0, read_bytes_per_us = 0;
  for (const int fd : sockets_) {
    const absl::StatusOr<std::string> bytes = receive_message(fd);
    if (!bytes.ok()) return bytes.status();
    Facts facts;
    ANNULUS_CHECK(bytes->size() == sizeof facts, bytes->size());
    std::memcpy(&facts, bytes->data(), sizeof facts);
    policy_.profile = facts.profile;
    loads_.push_back(facts.load);
    if (fd == sockets_.front()) linear_bytes_ = facts.linear;
    flops_per_us += 1e3 * (bf16 && facts.peaks.bf16_gflops > 0 ? facts.peaks.bf16_gflops
                                                               : facts.peaks.fp32_gflops);
    read_bytes_per_us += 1e3 * facts.peaks.read_gbytes;
  }
  const auto ranks = static_cast<double>(sockets_.size());
  limits_ = {.flops_per_us = flops_per_us / ranks,
             .read_bytes_per_us = read_bytes_per_us / ranks,
             .link_bytes_per_us = policy_.profile.link_bytes_per_us,
             .link_latency_us = policy_.profile.small_hop_us()};
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StepResult>> RankGroup::run(StepPlan plan) {
  plan.epoch = 1;
  plan.step = ++step_;
  plan.digest = state_.digest;
  if (absl::Status s = validate(state_, plan); !s.ok()) return s;
  ShardState before = state_;
  apply_ops(before, plan);
  const int32_t tp = static_cast<int32_t>(sockets_.size()) / state_.cp;
  for (size_t r = 0; r < sockets_.size(); ++r) {
    const int32_t cp_rank = Topology{tp, state_.cp}.cp_rank(static_cast<int32_t>(r));
    if (!send_message(sockets_[r], encode(plan_for_rank(before, plan, cp_rank))))
      return absl::UnavailableError("a rank has ended");
  }
  std::vector<StepResult> results;
  for (const int fd : sockets_) {
    absl::StatusOr<std::string> bytes = receive_message(fd);
    if (!bytes.ok()) return bytes.status();
    absl::StatusOr<StepResult> result = decode_result(*bytes);
    if (!result.ok()) return result.status();
    results.push_back(*std::move(result));
  }
  if (trace_ != nullptr) {
    if (absl::Status s = trace(plan); !s.ok()) return s;
  }
  state_ = advance(std::move(state_), plan);
  return results;
}

absl::Status RankGroup::trace(const StepPlan& plan) {
  std::vector<std::vector<kernels::Interval>> ranks;
  for (const int fd : sockets_) {
    const absl::StatusOr<std::string> bytes = receive_message(fd);
    if (!bytes.ok()) return bytes.status();
    ranks.emplace_back(bytes->size() / sizeof(kernels::Interval));
    std::memcpy(ranks.back().data(), bytes->data(), bytes->size());
  }
  return plan.items.empty() ? absl::OkStatus() : trace_->add_step(server::step_name(plan), ranks);
}

RankGroup::~RankGroup() {
  for (const int fd : sockets_) {
    send_message(fd, "");
    close(fd);
  }
  for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
}

StepPlan append_plan(int32_t slot, int64_t first, int32_t count, Variant variant,
                     Placement placement, int32_t vocab) {
  StepPlan plan;
  Item item;
  item.slot = slot;
  item.placement = placement;
  item.spans = {{first, count, 1}};
  for (int32_t i = 0; i < count; ++i)
    item.tokens.push_back(static_cast<int32_t>((first + i) * 7919 % vocab));
  plan.items = {item};
  plan.groups = {{variant, {0}}};
  return plan;
}

}  // namespace annulus::bench
