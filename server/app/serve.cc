// SPDX-License-Identifier: Apache-2.0
#include "server/app/serve.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "parallel/rank.h"
#include "server/app/build.h"
#include "server/app/bus_error.h"
#include "server/app/local_workers.h"
#include "server/app/metrics_server.h"
#include "server/app/served_model.h"
#include "server/app/service_manager.h"
#include "server/app/signals.h"
#include "server/app/trace_writer.h"
#include "server/app/worker_commands.h"
#include "server/engine.h"
#include "server/host_port.h"
#include "server/one_line.h"
#include "server/rpc/control_service.h"
#include "server/rpc/public_server.h"

namespace annulus::server {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLook{50};
constexpr int64_t kMaxFailedStarts = 3;  // of local workers, before the first epoch
constexpr std::chrono::seconds kWorkersEnd{3};
constexpr double kHung_s = 5;  // an engine thread that does not come round for so long

int usage_error(absl::string_view line) {
  std::fprintf(stderr, "annulus serve: %s\n", one_line({line.data(), line.size()}).c_str());
  return 2;
}

// Renamed into place, so that nobody reads half of it.
absl::Status write_ready_file(const std::string& path, int port) {
  const std::string temporary = path + ".new";
  std::ofstream(temporary) << port << "\n";
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--ready-file ", path, " cannot be written: ", error.message()));
}

// Before anything is loaded: can the file be written when its time has come?
absl::Status check_ready_file(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = path + ".new";
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ready-file ", path, " is a folder: name a file"));
  }
  errno = 0;
  const bool written = static_cast<bool>(std::ofstream(temporary));
  const int error = errno;
  std::filesystem::remove(temporary, ignored);
  if (written) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--ready-file ", path, " cannot be written: ", std::strerror(error)));
}

// The parts of a running front end, in the order in which they are made; they end in reverse.
class FrontEnd {
 public:
  FrontEnd(ServeConfig config, ServiceManager manager)
      : config_(std::move(config)), manager_(std::move(manager)) {}

  absl::Status start();
  // Until a signal or a failure; the exit code.
  int run();

 private:
  absl::Status start_engine();
  absl::Status start_metrics();
  MetricsView view();  // any thread
  absl::Status start_workers();
  void announce();
  ClusterStatus look();
  std::string trouble() const;  // why this cannot go on, "" while it can
  void drain();
  void end();

  ServeConfig config_;
  ServiceManager manager_;
  ServedModel model_;
  std::unique_ptr<TraceWriter> trace_;  // outlives the control plane, which adds to it
  ControlService* control_ = nullptr;   // the engine owns it
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<PublicServer> public_server_;
  std::mutex seen_mutex_;
  MetricsView seen_;  // by the last scrape
  std::unique_ptr<MetricsServer> metrics_;
  std::optional<LocalWorkers> workers_;
  bool ready_ = false, draining_ = false;
  int64_t served_epoch_ = 0;
};

absl::Status FrontEnd::start() {
  if (auto status = check_ready_file(config_.ready_file); !status.ok()) return status;
  auto model = open_model(config_.model, config_.overrides);
  if (!model.ok()) return model.status();
  model_ = *std::move(model);
  const parallel::LlamaConfig& llama = model_.checkpoint->config();
  if (auto status = parallel::check_tp(llama, config_.topology.tp); !status.ok()) return status;
  if (config_.gpu_attention == "cudnn" && llama.head_dim != 64 && llama.head_dim != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu-attention cudnn is for heads of 64 or 128, this model's are of ",
                     llama.head_dim, ": leave it out"));
  }
  if (auto status = check_local_room(config_, *model_.checkpoint); !status.ok()) return status;
  const std::string warning = parallel::override_warning(llama, config_.overrides);
  if (!warning.empty()) spdlog::warn("{}", warning);
  if (auto status = start_engine(); !status.ok()) return status;
  if (auto status = start_metrics(); !status.ok()) return status;
  return start_workers();
}

absl::Status FrontEnd::start_engine() {
  const parallel::LlamaConfig& llama = model_.checkpoint->config();
  const int64_t workspace_bytes = int64_t{config_.workspace_mib} << 20;
  const int64_t max_message_bytes = int64_t{config_.max_message_mib} << 20;
  if (config_.secret.empty()) config_.secret = draw_secret();

  if (!config_.trace.empty()) {
    if (config_.max_message_mib < 16) {
      return absl::InvalidArgumentError(
          absl::StrCat("--trace needs --max-message-mib 16 or more, not ", config_.max_message_mib,
                       ": what a rank did in a step may take 11 MB"));
    }
    auto trace = TraceWriter::create(config_.trace, config_.topology);
    if (!trace.ok()) return trace.status();
    trace_ = *std::move(trace);
  }

  ControlOptions control;
  control.host = config_.control_host;
  control.port = config_.control_port;
  control.max_message_bytes = max_message_bytes;
  control.epoch = {
      .topology = config_.topology,
      .build = kBuild,
      .secret = config_.secret,
      .model_fingerprint = model_.checkpoint->fingerprint(),
      .policy = {.shape = parallel::attention_shape(llama, config_.topology, config_.precision),
                 .cp = config_.topology.cp,
                 .profile = {},
                 .workspace_limit_bytes = workspace_bytes},
      .precision = name(config_.precision),
      .context = llama.context,
      .vocab = llama.vocab,
      .kv_capacity_rows = config_.kv_rows,
      .page_tokens = config_.page_tokens,
      .workspace_limit_bytes = workspace_bytes,
      .chunk_tokens = config_.chunk_tokens,
      .profile = config_.profile,
      .trace = trace_ != nullptr,
      .graphs = config_.cuda_graphs,
      .tune_gemm = config_.tune_gemm,
      .cudnn_attention = config_.gpu_attention == "cudnn",
      .weights = config_.weights,
      .outline = model_.checkpoint->is_generated() ? "" : model_.checkpoint->outline()};
  control.on_stuck = [this](int64_t pid) {
    if (workers_) workers_->replace(pid);
  };
  if (trace_ != nullptr)
    control.on_traced = [this](TracedStep step) { trace_->add(std::move(step)); };
  auto service = ControlService::create(std::move(control));
  if (!service.ok()) return service.status();
  control_ = service->get();

  EngineOptions engine;
  engine.context = llama.context;
  engine.max_running = config_.max_running;
  engine.max_queue = config_.max_queue;
  engine.max_step_ms = config_.max_step_ms;
  engine.chunk_tokens = config_.chunk_tokens;
  engine.debug_requests = config_.debug_requests;
  engine.variant = config_.attention;
  engine_ = std::make_unique<Engine>(llama, model_.tokenizer, *std::move(service), engine);

  PublicServerOptions options;
  options.host = config_.host;
  options.port = config_.port;
  options.max_message_bytes = max_message_bytes;
  const ModelFacts facts{
      .path = config_.model, .precision = name(config_.precision), .served_context = llama.context};
  auto server = PublicServer::start(*engine_, model_.tokenizer, llama, facts, options);
  if (!server.ok()) return server.status();
  public_server_ = *std::move(server);
  engine_->on_serving([this](bool serving) { public_server_->set_serving(serving); });
  return absl::OkStatus();
}

absl::Status FrontEnd::start_metrics() {
  if (!config_.metrics) return absl::OkStatus();
  const auto& [host, port] = *config_.metrics;
  const parallel::LlamaConfig& llama = model_.checkpoint->config();
  auto server = MetricsServer::start(host, port,
                                     {.version = kBuild,
                                      .model = llama.name,
                                      .precision = name(config_.precision),
                                      .context = llama.context,
                                      .topology = config_.topology},
                                     [this] { return view(); });
  if (!server.ok()) return server.status();
  metrics_ = *std::move(server);
  std::printf("annulus: metrics on http://%s/metrics\n",
              join_host_port(host, metrics_->port()).c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

MetricsView FrontEnd::view() {
  // An engine that hangs may hold its mutex: what it said last is told again.
  constexpr double kHangs_s = 5;
  const double stalled_s = engine_->stalled_s();
  const std::lock_guard lock(seen_mutex_);
  if (stalled_s < kHangs_s) {
    seen_.cluster = engine_->status();
    seen_.engine = engine_->metrics();
  }
  seen_.requests = public_server_->requests();
  seen_.ranks_ready = control_->status().ranks_ready;
  seen_.engine_stalled_s = stalled_s;
  return seen_;
}

absl::Status FrontEnd::start_workers() {
  if (!config_.local_workers) {
    print_external_commands(config_, control_->port());
    return absl::OkStatus();
  }
  workers_.emplace(local_workers(config_, control_->port()));
  workers_->start();
  return absl::OkStatus();
}

void FrontEnd::announce() {
  const parallel::LlamaConfig& llama = model_.checkpoint->config();
  const bool any = config_.host == "0.0.0.0" || config_.host == "::";
  const std::string host = any ? "127.0.0.1" : config_.host;
  const std::string ranks =
      config_.device == "cuda"
          ? absl::StrCat("a GPU a rank",
                         config_.gpu_attention == "cudnn" ? ", attention by cuDNN" : "")
          : absl::StrCat(kernels::name(config_.isa), ", ", config_.threads, " threads a rank");
  std::printf("annulus: ready on %s (tp %d x cp %d, %s, context %lld, %s)\n",
              join_host_port(host, public_server_->port()).c_str(), config_.topology.tp,
              config_.topology.cp, llama.name.c_str(), static_cast<long long>(llama.context),
              ranks.c_str());
  std::fflush(stdout);
}

// At what the engine does, and tells the service manager. A hung engine is not vouched for: either
// status() does not return, or its thread does not come round.
ClusterStatus FrontEnd::look() {
  ClusterStatus status = engine_->status();
  if (engine_->stalled_s() < kHung_s) manager_.alive();
  const std::string load =
      absl::StrCat(status.requests_running, " running, ", status.requests_waiting, " waiting");
  manager_.status(status.serving ? absl::StrCat(draining_ ? "draining" : "serving", ", epoch ",
                                                status.epoch, ", ", load)
                                 : absl::StrCat("not serving: ", status.why_not));
  return status;
}

std::string FrontEnd::trouble() const {
  if (workers_) {
    if (std::string why = workers_->gave_up(); !why.empty()) return why;
    const EpochCoordinator::Status status = control_->status();
    if (!ready_ && status.failed_starts >= kMaxFailedStarts) {
      return absl::StrCat("the ranks failed to start ", status.failed_starts,
                          " times: ", status.last_end);
    }
  }
  return "";
}

int FrontEnd::run() {
  int code = 0;
  std::error_code ignored;  // one of an earlier run would be believed
  if (!config_.ready_file.empty()) std::filesystem::remove(config_.ready_file, ignored);
  for (;;) {
    if (signalled(kLook)) {
      drain();
      break;
    }
    const ClusterStatus status = look();
    if (status.serving && status.epoch != served_epoch_) {
      served_epoch_ = status.epoch;
      if (workers_) workers_->forgive();
    }
    if (!ready_ && status.serving) {
      ready_ = true;
      announce();
      if (!config_.ready_file.empty()) {
        const absl::Status written = write_ready_file(config_.ready_file, public_server_->port());
        if (!written.ok()) {
          code = usage_error(written.message());
          break;
        }
      }
      manager_.ready();
    }
    if (const std::string why = trouble(); !why.empty()) {
      std::fprintf(stderr, "annulus serve: %s\n", one_line(why).c_str());
      code = 1;
      break;
    }
  }
  if (!config_.ready_file.empty()) std::filesystem::remove(config_.ready_file, ignored);
  end();
  return code;
}

void FrontEnd::drain() {
  draining_ = true;
  manager_.stopping();
  public_server_->drain();
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(config_.drain_timeout_s));
  const auto busy = [this] {
    const ClusterStatus status = look();
    return status.requests_running + status.requests_waiting;
  };
  spdlog::info("draining: {} requests run on for at most {} s; a second signal ends at once",
               busy(), config_.drain_timeout_s);
  while (busy() > 0 && Clock::now() < until) {
    if (!signalled(kLook)) continue;
    spdlog::warn("second signal: ending at once");
    if (workers_) workers_->stop(std::chrono::milliseconds(0));
    _exit(1);
  }
  if (const int64_t left = busy(); left > 0) {
    spdlog::warn("drain time is over: {} requests are cut off", left);
    engine_->fail_all(absl::UnavailableError(
        absl::StrCat("this server is shutting down and its drain time of ", config_.drain_timeout_s,
                     " s is over: send the request to another")));
  }
}

void FrontEnd::end() {
  // A second signal from here on ends the process; the kernel then ends the children.
  const sigset_t set = ending_signals();
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  // Finished streams are flushed; what still runs is cut off.
  public_server_->shutdown(absl::Milliseconds(500));
  // The link says goodbye to the workers; the supervisor must not start them again.
  engine_->on_serving(nullptr);
  metrics_.reset();
  if (!workers_) {
    engine_.reset();
    return;
  }
  std::thread goodbye([this] { engine_.reset(); });
  workers_->stop(kWorkersEnd);
  goodbye.join();
}

}  // namespace

int run_serve(ServeConfig config) {
  hold_ending_signals();
  std::signal(SIGPIPE, SIG_IGN);
  explain_bus_errors(config.model);
  FrontEnd front_end(std::move(config), ServiceManager::from_environment());
  if (const absl::Status status = front_end.start(); !status.ok()) {
    return usage_error(status.message());
  }
  return front_end.run();
}

}  // namespace annulus::server
