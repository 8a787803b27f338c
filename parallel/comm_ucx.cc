// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_ucx.h"

#include <poll.h>
#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <sstream>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/comm_address.h"
#include "parallel/comm_messages.h"

namespace annulus::parallel {
namespace {

#if !defined(ANNULUS_STATIC)  // there UCX, an archive, is initialised after this file
[[maybe_unused]] const bool tamed_before_main = (tame_ucx(), true);
#endif

constexpr auto kFlushAtEnd = std::chrono::milliseconds(200);
constexpr auto kCloseAtEnd = std::chrono::milliseconds(200);
constexpr auto kCancel = std::chrono::milliseconds(200);
constexpr auto kCareSoon = std::chrono::milliseconds(1);
constexpr auto kCareSeldom = std::chrono::milliseconds(50);
constexpr int64_t kSurelyEager = 1024;  // UCX's rendezvous begins at some KiB

// May this UCX_TLS list bring shared memory?
bool shares_memory(const std::string& transports) {
  const bool all_but = transports.starts_with('^');
  std::istringstream list(transports.substr(all_but ? 1 : 0));
  for (std::string name; std::getline(list, name, ',');) {
    for (const char* shared : {"all", "shm", "sm", "mm", "posix", "sysv", "xpmem"})
      if (name == shared) return !all_but;
  }
  return all_but;
}

absl::Status unavailable(const char* what, ucs_status_t status) {
  return absl::UnavailableError(absl::StrCat("UCX: ", what, ": ", ucs_status_string(status)));
}

class UcxWire {
  using Clock = std::chrono::steady_clock;

 public:
  struct Request {
    int32_t peer = 0;
    int64_t expected = -1;   // bytes of a receive; -1: a send
    void* handle = nullptr;  // null: over
    bool leaving = false;    // over, save for what it left in the peer's outbox
    ucs_status_t status = UCS_OK;
    int64_t received = -1;  // where it differs from that
  };
  struct Peer {
    ucp_ep_h endpoint = nullptr;
    ucs_status_t lost = UCS_OK;
    bool breakable = false;  // UCX watches this peer, and lets go of it when told to
  };

  class Use {
   public:
    explicit Use(UcxWire& wire) : lock_(wire.busy_) { ++wire.uses_; }

   private:
    std::lock_guard<std::mutex> lock_;
  };

  UcxWire(int64_t epoch, int32_t ranks) : peers_(static_cast<size_t>(ranks)), epoch_(epoch) {}
  ~UcxWire() {
    caretaker_ = {};
    if (worker_ != nullptr) {
      if (!aborted_.raised()) flush();
      close_breakable();
      ucp_worker_destroy(worker_);
    }
    if (context_ != nullptr) ucp_cleanup(context_);
  }
  UcxWire(const UcxWire&) = delete;
  UcxWire& operator=(const UcxWire&) = delete;

  absl::Status open(const UcxOptions& options);
  absl::StatusOr<std::string> worker_address() const;
  absl::Status connect(int32_t world_rank, const WorkerAddress& address);
  void start_caretaker();  // after the last connect

  Request send(int32_t to, ConstBytes bytes, uint64_t tag) {
    const ucp_request_param_t param{};
    return started(ucp_tag_send_nbx(peers_[static_cast<size_t>(to)].endpoint, bytes.data(),
                                    bytes.size(), tag, &param),
                   {.peer = to});
  }
  Request recv(int32_t from, Bytes bytes, uint64_t tag) {
    ucp_request_param_t param{};
    // A receive that completes at once reports no length in UCX 1.13: always ask for a request.
    param.op_attr_mask = UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    return started(ucp_tag_recv_nbx(worker_, bytes.data(), bytes.size(), tag, ~uint64_t{0}, &param),
                   {.peer = from, .expected = static_cast<int64_t>(bytes.size())});
  }
  bool done(Request& request);
  void cancel(Request& request);
  bool progress() {
    // Each round moves one fragment; the bound keeps a poll short beside computing.
    int round = 0;
    while (round < 16 && ucp_worker_progress(worker_) != 0) ++round;
    return round > 0;
  }
  bool block(std::chrono::milliseconds limit) {
    const ucs_status_t status = ucp_worker_arm(worker_);
    if (status == UCS_ERR_BUSY) return true;
    pollfd event{.fd = status == UCS_OK ? event_fd_ : -1, .events = POLLIN, .revents = 0};
    return ::poll(&event, 1, static_cast<int>(limit.count())) > 0;
  }
  std::string lost(int32_t world_rank) const {
    const ucs_status_t status = peers_[static_cast<size_t>(world_rank)].lost;
    return status == UCS_OK ? std::string()
                            : absl::StrCat("peer lost: ", ucs_status_string(status));
  }
  std::string transports(int32_t world_rank);
  int64_t epoch() const { return epoch_; }
  AbortFlag& abort_flag() { return aborted_; }

 private:
  bool leaves_something(const Request& request) const;
  static Request started(void* result, Request request) {
    if (UCS_PTR_IS_ERR(result)) {
      request.status = UCS_PTR_STATUS(result);
    } else {
      request.handle = result;
    }
    return request;
  }
  static void on_lost(void* arg, ucp_ep_h, ucs_status_t status) {
    static_cast<Peer*>(arg)->lost = status == UCS_OK ? UCS_ERR_CONNECTION_RESET : status;
  }
  void flush();
  void take_care(const std::stop_token& stop);
  void close_breakable();
  void progress_until(void* request, Clock::time_point end);

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;  // the worker's own
  std::vector<Peer> peers_;
  int64_t epoch_;
  bool shares_memory_ = false;
  AbortFlag aborted_;
  Clock::time_point cancel_end_;  // when requests given up are let go of unfinished
  std::mutex busy_;               // the worker's
  uint64_t uses_ = 0;             // guarded by busy_
  std::jthread caretaker_;
};

absl::Status UcxWire::open(const UcxOptions& options) {
  ucp_config_t* config = nullptr;
  if (const ucs_status_t status = ucp_config_read(nullptr, nullptr, &config); status != UCS_OK)
    return unavailable("reading the configuration", status);
  const absl::Cleanup release = [&] { ucp_config_release(config); };
  const auto set = [&](const char* name, const std::string& value) -> absl::Status {
    if (value.empty() || std::getenv(absl::StrCat("UCX_", name).c_str()) != nullptr)
      return absl::OkStatus();
    if (ucp_config_modify(config, name, value.c_str()) == UCS_OK) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("UCX refuses ", name, "=", value));
  };
  if (absl::Status status = set("TLS", options.transports); !status.ok()) return status;
  const char* from_environment = std::getenv("UCX_TLS");
  shares_memory_ = shares_memory(from_environment ? from_environment : options.transports);
  if (absl::Status status = set("NET_DEVICES", options.net_devices); !status.ok()) return status;
  // UCX 1.13 aborts the process when a peer closes under a zero-copy TCP send.
  if (options.transports != kLocalTransports) (void)set("ZCOPY_THRESH", "inf");
  // Twice the TCP bandwidth of 8 KiB segments (bench/link); not every build of UCX has them.
  (void)set("TCP_TX_SEG_SIZE", "256K");
  (void)set("TCP_RX_SEG_SIZE", "256K");

  ucp_params_t params{};
  params.field_mask =
      UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  params.estimated_num_eps = peers_.size();
  params.name = "annulus";
  if (const ucs_status_t status = ucp_init(&params, config, &context_); status != UCS_OK)
    return unavailable("no usable transport", status);

  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  worker.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;  // of an epoch that ended in an error
  if (const ucs_status_t status = ucp_worker_create(context_, &worker, &worker_); status != UCS_OK)
    return unavailable("creating a worker (/dev/shm may be too small: mount it with 64 MiB a rank)",
                       status);
  if (const ucs_status_t status = ucp_worker_get_efd(worker_, &event_fd_); status != UCS_OK)
    return unavailable("no transport that can wake a sleeping rank", status);
  return absl::OkStatus();
}

absl::StatusOr<std::string> UcxWire::worker_address() const {
  ucp_address_t* address = nullptr;
  size_t length = 0;
  if (const ucs_status_t status = ucp_worker_get_address(worker_, &address, &length);
      status != UCS_OK)
    return unavailable("asking for the own address", status);
  std::string bytes(reinterpret_cast<const char*>(address), length);
  ucp_worker_release_address(worker_, address);
  return bytes;
}

absl::Status UcxWire::connect(int32_t world_rank, const WorkerAddress& address) {
  Peer& peer = peers_[static_cast<size_t>(world_rank)];
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.bytes.data());
  // CMA and shared memory know no peer errors, and a worker that is destroyed just drops them.
  // Network endpoints must be closed by force before: UCX 1.13 aborts the process when a worker is
  // destroyed while one of them is still connecting.
  peer.breakable = !(shares_memory_ && address.host == this_host());
  params.err_mode = peer.breakable ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
  params.err_handler = {.cb = on_lost, .arg = &peer};
  if (const ucs_status_t status = ucp_ep_create(worker_, &params, &peer.endpoint); status != UCS_OK)
    return unavailable(absl::StrCat("connecting to world rank ", world_rank).c_str(), status);
  return absl::OkStatus();
}

std::string UcxWire::transports(int32_t world_rank) {
  const ucp_ep_h endpoint = peers_[static_cast<size_t>(world_rank)].endpoint;
  if (endpoint == nullptr) return "";
  char* text = nullptr;
  size_t length = 0;
  FILE* const stream = open_memstream(&text, &length);
  if (stream == nullptr) return "";
  {
    const Use use(*this);
    ucp_ep_print_info(endpoint, stream);
  }
  std::fclose(stream);
  const std::string found = transports_in({text, length});
  std::free(text);
  return found;
}

bool UcxWire::done(Request& request) {
  if (request.handle != nullptr) {
    ucs_status_t status;
    if (request.expected >= 0 && !request.leaving) {
      ucp_tag_recv_info_t info{};
      status = ucp_tag_recv_request_test(request.handle, &info);
      if (status == UCS_OK && static_cast<int64_t>(info.length) != request.expected)
        request.received = static_cast<int64_t>(info.length);
    } else {
      status = ucp_request_check_status(request.handle);
    }
    if (status == UCS_INPROGRESS) return false;
    ucp_request_free(std::exchange(request.handle, nullptr));
    request.status = status;
  }
  if (request.status != UCS_OK) throw WireError(ucs_status_string(request.status));
  if (request.received >= 0) throw WireError(absl::StrCat("received ", request.received, " bytes"));
  if (request.leaving || !leaves_something(request)) return true;
  // This rank may have nothing more to do after this operation, and then moves nothing along.
  const ucp_request_param_t param{};
  request = started(ucp_ep_flush_nbx(peers_[static_cast<size_t>(request.peer)].endpoint, &param),
                    {.peer = request.peer, .leaving = true});
  return request.handle == nullptr && done(request);
}

// A rendezvous received through shared memory is answered, and the answer waits here while the
// sender's inbox is full. (Over TCP a flush needs the peer's help: that is the caretaker's part.)
bool UcxWire::leaves_something(const Request& request) const {
  return request.expected > kSurelyEager && !peers_[static_cast<size_t>(request.peer)].breakable;
}

// A network peer may still need this rank when it has nothing to do: to finish a connection, to
// write what TCP has buffered. Memory needs no such help, so a world on one host has no caretaker.
void UcxWire::start_caretaker() {
  for (const Peer& peer : peers_) {
    if (!peer.breakable) continue;
    caretaker_ = std::jthread([this](const std::stop_token& stop) { take_care(stop); });
    return;
  }
}

void UcxWire::take_care(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  auto pause = kCareSoon;
  for (uint64_t seen = 0; !stop.stop_requested();) {
    {
      std::unique_lock lock(mutex);
      stopped.wait_for(lock, stop, pause, [] { return false; });
    }
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock.owns_lock()) continue;  // the owner moves everything along itself
    if (aborted_.raised()) return;    // buffers of operations that failed may be gone
    pause = std::exchange(seen, uses_) == uses_ ? std::min(2 * pause, kCareSeldom) : kCareSoon;
    if (progress()) pause = kCareSoon;
  }
}

void UcxWire::cancel(Request& request) {
  if (request.handle == nullptr) return;
  if (!request.leaving) {
    ucp_request_cancel(worker_, request.handle);
    // A copy that has begun cannot be called back, and UCX 1.13 aborts the process when a worker is
    // destroyed under it.
    if (cancel_end_ == Clock::time_point{})
      cancel_end_ = Clock::now() + kCancel;  // for all of them
    while (ucp_request_check_status(request.handle) == UCS_INPROGRESS &&
           Clock::now() < cancel_end_) {
      ucp_worker_progress(worker_);
    }
  }
  ucp_request_free(std::exchange(request.handle, nullptr));
}

void UcxWire::progress_until(void* request, Clock::time_point end) {
  if (request == nullptr || UCS_PTR_IS_ERR(request)) return;
  while (ucp_request_check_status(request) == UCS_INPROGRESS && Clock::now() < end)
    ucp_worker_progress(worker_);
  ucp_request_free(request);
}

void UcxWire::flush() {
  const ucp_request_param_t param{};
  progress_until(ucp_worker_flush_nbx(worker_, &param), Clock::now() + kFlushAtEnd);
}

void UcxWire::close_breakable() {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  std::vector<void*> closing;
  for (Peer& peer : peers_) {
    if (!peer.breakable || peer.endpoint == nullptr) continue;
    closing.push_back(ucp_ep_close_nbx(std::exchange(peer.endpoint, nullptr), &param));
  }
  const Clock::time_point end = Clock::now() + kCloseAtEnd;  // for all of them
  for (void* request : closing) progress_until(request, end);
}

}  // namespace

struct UcxWorld::Impl {
  Impl(const AddressStamp& stamp_of_me)
      : stamp(stamp_of_me), wire(stamp.epoch, stamp.topology.world()) {}

  std::unique_ptr<MessageCommunicator<UcxWire>> make(GroupId group) {
    return std::make_unique<MessageCommunicator<UcxWire>>(
        wire, group, group_members(stamp.topology, group, stamp.world_rank),
        group_rank(stamp.topology, group, stamp.world_rank));
  }

  AddressStamp stamp;
  std::unique_ptr<MessageCommunicator<UcxWire>> tp, cp, world;  // their scratch outlives the wire
  UcxWire wire;
  std::string address;
};

UcxWorld::UcxWorld(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
UcxWorld::~UcxWorld() = default;

absl::StatusOr<std::unique_ptr<UcxWorld>> UcxWorld::create(Topology topology, int32_t world_rank,
                                                           int64_t epoch,
                                                           const UcxOptions& options) {
  ANNULUS_CHECK(world_rank >= 0 && world_rank < topology.world(), "world rank ", world_rank, " of ",
                topology.world());
  auto impl = std::make_unique<Impl>(
      AddressStamp{.topology = topology, .world_rank = world_rank, .epoch = epoch});
  if (absl::Status status = impl->wire.open(options); !status.ok()) return status;
  absl::StatusOr<std::string> address = impl->wire.worker_address();
  if (!address.ok()) return address.status();
  impl->address = seal_address(impl->stamp, {.bytes = *address, .host = this_host()});
  return std::unique_ptr<UcxWorld>(new UcxWorld(std::move(impl)));
}

std::string UcxWorld::address() const {
  return impl_->address;
}

absl::Status UcxWorld::connect(std::span<const std::string> addresses) {
  const Topology& topology = impl_->stamp.topology;
  if (static_cast<int64_t>(addresses.size()) != topology.world()) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " addresses for a world of ", topology.world(), " ranks"));
  }
  ANNULUS_CHECK(impl_->world == nullptr, "connected twice");
  std::vector<WorkerAddress> opened;  // all are looked at before the first is used
  for (int32_t r = 0; r < topology.world(); ++r) {
    AddressStamp stamp = impl_->stamp;
    stamp.world_rank = r;
    absl::StatusOr<WorkerAddress> address = open_address(stamp, addresses[static_cast<size_t>(r)]);
    if (!address.ok()) return address.status();
    opened.push_back(*std::move(address));
  }
  for (int32_t r = 0; r < topology.world(); ++r) {
    if (r == impl_->stamp.world_rank) continue;
    if (absl::Status status = impl_->wire.connect(r, opened[static_cast<size_t>(r)]); !status.ok())
      return status;
  }
  impl_->wire.start_caretaker();
  impl_->tp = impl_->make(GroupId::kTp);
  impl_->cp = impl_->make(GroupId::kCp);
  impl_->world = impl_->make(GroupId::kWorld);
  return absl::OkStatus();
}

Groups<kernels::CpuQueue> UcxWorld::groups() {
  ANNULUS_CHECK(impl_->world != nullptr, "groups before connect");
  return {.tp = impl_->tp.get(), .cp = impl_->cp.get(), .world = impl_->world.get()};
}

std::string UcxWorld::transports(int32_t world_rank) {
  return impl_->wire.transports(world_rank);
}

void UcxWorld::abort(const std::string& why) {
  impl_->wire.abort_flag().raise(why);
}

std::string transports_in(std::string_view endpoint_info) {
  std::vector<std::string> found;
  std::istringstream info{std::string(endpoint_info)};
  for (std::string text; std::getline(info, text);) {
    std::string_view line = text;
    const size_t lane = line.find("lane[");
    if (lane == std::string_view::npos) continue;
    line.remove_prefix(lane);
    const size_t label_end = line.find("]:");
    if (label_end == std::string_view::npos) continue;
    const size_t colon = line.find(':', label_end + 2);
    if (colon == std::string_view::npos) continue;
    std::string_view name = line.substr(colon + 1);
    name = name.substr(0, name.find(' '));
    name = name.substr(0, name.rfind('.'));  // the path of a device with several
    if (name.empty() || std::find(found.begin(), found.end(), name) != found.end()) continue;
    found.emplace_back(name);
  }
  return absl::StrJoin(found, ", ");
}

std::string ucx_version() {
  return ucp_get_version_string();
}

void tame_ucx() {
  if (std::getenv("UCX_HANDLE_ERRORS") == nullptr) {
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGHUP})
      ucs_debug_disable_signal(signal);
  }
  if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
  if (std::getenv("UCX_WARN_UNUSED_ENV_VARS") == nullptr)
    ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", "n");
#if defined(ANNULUS_STATIC)
  // A host's modules would bring a second UCX along, as shared libraries.
  ucs_global_opts_set_value("MODULES", "none");
#endif
}

}  // namespace annulus::parallel
