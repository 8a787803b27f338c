// SPDX-License-Identifier: Apache-2.0
// Flags of `annulus serve` and `annulus worker`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "parallel/model/synthetic.h"
#include "parallel/sharding.h"
#include "server/app/cli_commands.h"
#include "server/app/config.h"
#include "server/app/cores.h"
#include "server/app/host_ranks.h"
#include "server/app/launcher.h"
#include "server/app/serve.h"
#include "server/app/worker.h"
#include "server/app/worker_commands.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

constexpr const char* kServeExamples = R"(Examples:
  annulus serve                                    one rank, the model of deploy/fetch-model, port 50051
  annulus serve --cp 2                             the prompt split over two ranks, ring attention between them
  annulus serve --model M.gguf --tp 3 --cp 2       six ranks: weights over 3, tokens over 2
  annulus serve --cp 2 --attention pass-q          one variant always, instead of the fastest at each step
  annulus serve --precision fp32                   everything in fp32: slow, exact to 5e-4 in the logits
  annulus serve --context 32768 --rope-scaling linear:4
  annulus serve --cp 2 --metrics 50053             http://127.0.0.1:50053/metrics for Prometheus
  annulus serve --cp 4 --workers external --control-listen 0.0.0.0 --control-port 50052
                                                   prints the four commands that attach workers, here or elsewhere
It is ready when it prints "annulus: ready on ...". SIGTERM lets running answers finish, then ends.)";

constexpr const char* kWorkerExamples = R"(Examples:
  ANNULUS_SECRET=S annulus worker --connect head:50052 --model M.gguf
  srun --ntasks 4 annulus worker --connect $HEAD:50052 --model M.gguf      (ANNULUS_SECRET is exported)
  mpirun -np 4 annulus worker --connect head:50052 --model M.gguf          (the rank is Open MPI's)
  annulus worker --ranks 8 --model M.gguf --device cuda                    (in each pod of a LeaderWorkerSet: eight ranks)
  annulus worker --connect head:50052 --rank 3 --no-model                  (a peer sends its weights)
Rank and leader come from the launcher where the flags are absent: SLURM_*, OMPI_*, LWS_*, or RANK and WORLD_SIZE.
`annulus serve --workers external` prints these commands with everything filled in.
It outlives its front end by --orphan-timeout. Ends with 0 when told to, with 1 when no front end comes back, with 2 when it
is refused: another secret, build or model, or a rank that another worker has taken.)";

int refuse(const char* command, absl::string_view line) {
  std::fprintf(stderr, "annulus %s: %s\n", command, one_line({line.data(), line.size()}).c_str());
  return 2;
}

std::string no_log_level(const std::string& level) {
  return absl::StrCat("no log level \"", level,
                      "\"; there are trace, debug, info, warn, error and off");
}

constexpr int kControlPort = 50052;        // where a leader is named without one
constexpr double kLongestTimeout_s = 1e7;  // four months

// CLI::Range lets "nan" pass, and "inf" where its end is the largest number.
CLI::Validator between(double low, double high) {
  const auto check = [low, high](const std::string& text) -> std::string {
    double value = 0;
    if (absl::SimpleAtod(text, &value) && value >= low && value <= high) return "";
    return absl::StrCat("\"", text, "\" is not a number from ", low, " to ", high);
  };
  return {check, absl::StrCat("FLOAT from ", low, " to ", high)};
}

struct ModelFlags {
  std::string model;
  const CLI::Option* given = nullptr;  // --model
  int64_t context = 0;
  double rope_theta = 0;
  std::string rope_scaling, device = "cpu", cpu_isa = "auto", log_level = "info";

  void add_to(CLI::App& app) {
    given = app.add_option(
                   "--model", model,
                   "GGUF file, folder with config.json and safetensors, or synthetic:SHAPE (135M, "
                   "1B, 8B, "
                   "70B, 405B, a config.json, layers=2,dim=512,heads=16,...: generated weights)")
                ->default_str("SmolLM2-135M-Instruct from deploy/fetch-model");
    app.add_option("--context", context, "tokens served; more than trained gives a warning")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
        ->default_str("the model's");
    app.add_option("--rope-theta", rope_theta, "RoPE base instead of the file's")
        ->check(between(1, 1e30));
    app.add_option("--rope-scaling", rope_scaling,
                   "none, linear:FACTOR or llama3:FACTOR:LOW:HIGH:ORIGINAL_CONTEXT");
    app.add_option("--device", device, "what a rank computes on: cpu, or cuda (one GPU a rank)")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str();
    app.add_option("--cpu-isa", cpu_isa,
                   "cap on instructions: auto, portable, avx2, avx512, avx512-bf16, amx")
        ->capture_default_str();
    app.add_option("--log-level", log_level, "trace, debug, info, warn, error, off")
        ->capture_default_str();
  }

  parallel::ConfigOverrides overrides() const {
    parallel::ConfigOverrides out;
    if (context > 0) out.context = context;
    if (rope_theta > 0) out.rope_theta = rope_theta;
    out.rope_scaling = rope_scaling;
    return out;
  }

  // The model's path, absolute, because workers may have another directory.
  absl::StatusOr<std::string> path() const {
    if (given->count() > 0 && model.empty())
      return absl::InvalidArgumentError("--model is empty: name a file, or leave it out");
    const std::string wanted = model.empty() ? default_model_path() : model;
    std::error_code error;
    if (wanted.starts_with(parallel::kSyntheticPrefix)) {
      const std::string shape = wanted.substr(parallel::kSyntheticPrefix.size());
      if (!std::filesystem::exists(shape, error)) return wanted;
      return absl::StrCat(wanted.substr(0, parallel::kSyntheticPrefix.size()),
                          std::filesystem::absolute(shape).lexically_normal().string());
    }
    if (!std::filesystem::exists(wanted, error)) {
      return absl::NotFoundError(
          model.empty() ? absl::StrCat("no model at ", wanted,
                                       ": run deploy/fetch-model, or name one with --model")
                        : absl::StrCat("--model ", wanted, " does not exist"));
    }
    return std::filesystem::absolute(wanted).lexically_normal().string();
  }
};

struct ServeFlags {
  ModelFlags model;
  ServeConfig config;
  std::string attention = "auto", precision = "default", workers = "local", weights = "auto";
  std::string cuda_graphs = "on", metrics;
};

int serve(ServeFlags& flags) {
  ServeConfig& config = flags.config;
  config.log_level = flags.model.log_level;
  if (!set_up_logging("serve", config.log_level)) {
    return refuse("serve", no_log_level(config.log_level));
  }
  const auto path = flags.model.path();
  if (!path.ok()) return refuse("serve", path.status().message());
  config.model = *path;
  config.overrides = flags.model.overrides();
  const auto attention = parse_attention(flags.attention);
  if (!attention.ok()) return refuse("serve", attention.status().message());
  config.attention = *attention;
  const auto precision = parse_precision(flags.precision);
  if (!precision.ok()) return refuse("serve", precision.status().message());
  config.precision = *precision;
  if (!flags.metrics.empty()) {
    const auto metrics = parse_metrics(flags.metrics);
    if (!metrics.ok()) return refuse("serve", metrics.status().message());
    config.metrics = *metrics;
  }
  const auto isa = kernels::parse_cpu_isa(flags.model.cpu_isa);
  if (!isa.ok()) return refuse("serve", isa.status().message());
  config.isa = std::min(*isa, kernels::detect_cpu_isa());
  config.device = flags.model.device;
  config.cuda_graphs = flags.cuda_graphs == "on";
  if (const auto fits = check_gpu_flags(config); !fits.ok()) return refuse("serve", fits.message());
  config.local_workers = flags.workers == "local";
  config.weights = *parse_weight_policy(flags.weights);
  if (const auto able = prepare_ranks(config); !able.ok()) return refuse("serve", able.message());
  return run_serve(config);
}

struct WorkerFlags {
  ModelFlags model;
  bool doctor = false;
  WorkerOptions options;
  double orphan_timeout_s = 60, drain_timeout_s = 0;
  int max_message_mib = 256;
  int ranks = 1;
};

// Fills in what no flag says, of rank and front end.
absl::Status ask_launcher(WorkerOptions& options, int ranks) {
  const auto launcher = read_launcher([](const char* name) { return std::getenv(name); });
  if (!launcher.ok()) return launcher.status();
  options.local_rank = launcher->local_rank;
  if (options.wanted_rank < 0 && launcher->world_rank >= 0) {
    // With several ranks on each host the launcher counts hosts.
    options.wanted_rank = launcher->world_rank * ranks;
  }
  if (!options.connect.empty()) return absl::OkStatus();
  if (launcher->leader.empty()) {
    return absl::InvalidArgumentError(
        "--connect is missing, and no launcher (Slurm, torchrun, LeaderWorkerSet) names a leader");
  }
  const int port = launcher->leader_port > 0 ? launcher->leader_port : kControlPort;
  options.connect = absl::StrCat(launcher->leader, ":", port);
  return absl::OkStatus();
}

std::vector<std::string> own_command() {
  std::vector<std::string> out;
  std::ifstream file("/proc/self/cmdline");
  for (std::string argument; std::getline(file, argument, '\0');) out.push_back(argument);
  return out;
}

// --ranks N: each is this command with flags of its own behind it, where the last one counts.
int work_as_host(const WorkerFlags& flags) {
  const WorkerOptions& options = flags.options;
  if (options.wanted_rank < 0) {
    return refuse("worker", "--ranks needs --rank, this host's first one, or a launcher");
  }
  if (options.gpu >= 0) {
    return refuse("worker", "--gpu names one GPU: with --ranks each takes the next one");
  }
  HostRanks host;
  host.arguments = own_command();
  const int threads =
      options.threads > 0 ? options.threads : default_threads(flags.ranks, usable_cores());
  for (const std::string& last :
       {std::string("--ranks"), std::string("1"), std::string("--connect"), options.connect,
        std::string("--threads"), absl::StrCat(threads)}) {
    host.arguments.push_back(last);
  }
  host.first_rank = options.wanted_rank;
  host.ranks = flags.ranks;
  return run_host_ranks(host);
}

int work(WorkerFlags& flags) {
  WorkerOptions& options = flags.options;
  if (options.wanted_rank < 0 || options.connect.empty()) {
    if (const absl::Status asked = ask_launcher(options, flags.ranks); !asked.ok()) {
      return refuse("worker", asked.message());
    }
  }
  const std::string who = options.wanted_rank < 0 ? "worker"
                          : flags.ranks > 1
                              ? absl::StrCat("host of ranks from ", options.wanted_rank)
                              : absl::StrCat("rank ", options.wanted_rank);
  if (!set_up_logging(who, flags.model.log_level)) {
    return refuse("worker", no_log_level(flags.model.log_level));
  }
  if (!flags.doctor && !options.no_model) {
    const auto path = flags.model.path();
    if (!path.ok()) return refuse("worker", path.status().message());
    options.model = *path;
    options.overrides = flags.model.overrides();
  }
  if (flags.ranks > 1) return work_as_host(flags);
  const auto isa = kernels::parse_cpu_isa(flags.model.cpu_isa);
  if (!isa.ok()) return refuse("worker", isa.status().message());
  options.isa = std::min(*isa, kernels::detect_cpu_isa());
  options.cuda = flags.model.device == "cuda";
  if (options.threads == 0) options.threads = usable_cores();
  options.orphan_timeout = absl::Seconds(flags.orphan_timeout_s);
  options.drain_timeout = absl::Seconds(flags.drain_timeout_s);
  options.max_message_bytes = int64_t{flags.max_message_mib} << 20;
  return run_worker(options);
}

}  // namespace

void add_serve(CLI::App& app, Command& run) {
  auto flags = std::make_shared<ServeFlags>();
  ServeConfig& config = flags->config;
  CLI::App* serve_app = app.add_subcommand("serve", "Serves a model over gRPC");
  serve_app->footer(kServeExamples);
  flags->model.add_to(*serve_app);
  const auto option = [serve_app](const char* name, auto& value, const char* help) {
    return serve_app->add_option(name, value, help)->capture_default_str();
  };
  option("--tp", config.topology.tp, "tensor-parallel size: weights are split over this many ranks")
      ->check(CLI::Range(1, 1024));
  option("--cp", config.topology.cp, "context-parallel size: tokens are split over this many ranks")
      ->check(CLI::Range(1, 1024));
  option("--listen", config.host, "address of the public server");
  option("--port", config.port, "its port; 0: any free one, printed")->check(CLI::Range(0, 65535));
  serve_app
      ->add_option(
          "--metrics", flags->metrics,
          "HOST:PORT, or PORT on 127.0.0.1: GET /metrics answers Prometheus there; port 0: "
          "any free one, printed")
      ->default_str("none");
  option("--attention", flags->attention,
         "auto (the fastest at each step), pass-kv, pass-q, gather-q");
  option("--precision", flags->precision, "default (weights as in the file, bf16 KV) or fp32");
  option("--threads", config.threads,
         "threads of each rank; 0: the cores that this host or container gives / ranks")
      ->check(CLI::Range(0, 4096));
  option("--workers", flags->workers,
         "local: started here; external: they attach, their commands are printed")
      ->check(CLI::IsMember({"local", "external"}));
  option("--weights", flags->weights,
         "who reads the model's file. read: every rank. send: one rank of a tensor-parallel slice, "
         "and sends the weights to its context-parallel peers. auto: a rank is sent what it would "
         "read from a network file system and a rank on another host has")
      ->check(CLI::IsMember({"auto", "read", "send"}));
  option("--gpu-attention", config.gpu_attention,
         "with --device cuda, whose attention many rows (prompts) get: own, or cudnn, the library, "
         "which every rank must have; few rows (decode) always get our own")
      ->check(CLI::IsMember({"own", "cudnn"}));
  option("--cuda-graphs", flags->cuda_graphs,
         "with --device cuda: decode steps that come again are launched as CUDA graphs")
      ->check(CLI::IsMember({"on", "off"}));
  serve_app->add_flag("--tune-gemm", config.tune_gemm,
                      "with --device cuda: time the algorithms of cuBLASLt for this model when an "
                      "epoch begins and keep the fastest; answers' last bits may then differ from "
                      "one start to the next");
  option("--control-listen", config.control_host, "address that workers attach to");
  option("--control-port", config.control_port, "its port; 0: any free one")
      ->check(CLI::Range(0, 65535));
  serve_app
      ->add_option("--secret", config.secret, "what workers must know to attach; default: drawn")
      ->envname("ANNULUS_SECRET");
  serve_app->add_flag("--debug-requests", config.debug_requests,
                      "requests may set attention and chunk_tokens");
  serve_app->add_flag("--profile", config.profile,
                      "ranks tell where their time goes, by phase (status --json, benchmarks)");
  serve_app
      ->add_option("--trace", config.trace,
                   "file that gets what every rank does when, on one clock, for ui.perfetto.dev; "
                   "slower, and about 100 KB a rank and step: for minutes")
      ->type_name("FILE");
  option("--chunk-tokens", config.chunk_tokens,
         "prompt tokens computed in a step; 0: the most that stay under --max-step-ms")
      ->check(CLI::NonNegativeNumber);
  option("--max-step-ms", config.max_step_ms, "longest predicted step")
      ->check(CLI::Range(1, 3600000));
  option("--max-running", config.max_running, "requests in one step")->check(CLI::Range(1, 4096));
  option("--max-queue", config.max_queue, "requests that wait; one more is refused")
      ->check(CLI::NonNegativeNumber);
  option("--max-message-mib", config.max_message_mib, "largest request")
      ->check(CLI::Range(1, 2047));
  option("--kv-rows", config.kv_rows, "tokens whose KV a rank can hold; 0: what --context needs")
      ->check(CLI::Range(int64_t{0}, parallel::kMaxPositions));
  option("--page-tokens", config.page_tokens, "tokens in a KV page")->check(CLI::Range(1, 4096));
  option("--workspace-mib", config.workspace_mib, "attention buffers of a rank")
      ->check(CLI::Range(1, 1 << 20));
  option("--drain-timeout", config.drain_timeout_s, "seconds that answers may run on after SIGTERM")
      ->check(between(0, kLongestTimeout_s));
  option("--orphan-timeout", config.orphan_timeout_s,
         "seconds that external workers outlive a lost front end; local ones end with it")
      ->check(between(0, kLongestTimeout_s));
  serve_app->add_option("--ready-file", config.ready_file,
                        "gets the port once the ranks are ready");
  serve_app->callback([flags, &run] { run = [flags] { return serve(*flags); }; });
}

void add_worker(CLI::App& app, Command& run) {
  auto flags = std::make_shared<WorkerFlags>();
  WorkerOptions& options = flags->options;
  options.threads = 0;
  CLI::App* worker_app = app.add_subcommand("worker", "Runs one rank for a front end");
  worker_app->footer(kWorkerExamples);
  flags->model.add_to(*worker_app);
  CLI::Option* const no_model = worker_app->add_flag(
      "--no-model", options.no_model,
      "this host has no model file: a context-parallel peer sends its weights, the front end its "
      "shape and context");
  for (const char* flag : {"--model", "--context", "--rope-theta", "--rope-scaling"}) {
    no_model->excludes(worker_app->get_option(flag));
  }
  worker_app
      ->add_option("--connect", options.connect, "HOST:PORT of the front end's control server")
      ->take_last()
      ->default_str("the launcher's leader, its port or 50052");
  worker_app
      ->add_option("--rank", options.wanted_rank, "world rank; with --ranks the first of this host")
      ->check(CLI::NonNegativeNumber)
      ->take_last()
      ->default_str("the launcher's; without one any that is free");
  worker_app
      ->add_option("--ranks", flags->ranks,
                   "ranks of this host, each a process that is started again when it dies; the "
                   "launcher's rank then counts hosts")
      ->check(CLI::Range(1, 1024))
      ->take_last()
      ->capture_default_str();
  worker_app
      ->add_option("--secret", options.secret,
                   "the front end's; arguments can be read by others on this machine: rather set "
                   "ANNULUS_SECRET")
      ->envname("ANNULUS_SECRET");
  worker_app
      ->add_option("--threads", options.threads,
                   "threads of each rank; 0: the cores that this host or container gives / ranks")
      ->check(CLI::Range(0, 4096))
      ->take_last()
      ->capture_default_str();
  worker_app->add_option("--gpu", options.gpu, "with --device cuda: which GPU; default: by rank")
      ->check(CLI::NonNegativeNumber)
      ->default_str("rank modulo the GPUs of this host");
  worker_app
      ->add_flag("--doctor", flags->doctor, "for `annulus doctor`: to be measured, without a model")
      ->excludes("--model")
      ->excludes("--no-model");
  worker_app->add_option("--transports", options.transports,
                         "UCX transports, for example tcp,self; default: shared memory within a "
                         "host, the best network between");
  worker_app
      ->add_option("--orphan-timeout", flags->orphan_timeout_s,
                   "seconds without a front end before it ends")
      ->check(between(0, kLongestTimeout_s))
      ->capture_default_str();
  worker_app
      ->add_option("--drain-timeout", flags->drain_timeout_s,
                   "seconds that it works on after SIGTERM, for a front end that drains; it ends "
                   "earlier when told")
      ->check(between(0, kLongestTimeout_s))
      ->capture_default_str();
  worker_app->add_option("--max-message-mib", flags->max_message_mib, "as the front end's")
      ->check(CLI::Range(1, 2047))
      ->capture_default_str();
  worker_app->callback([flags, &run] { run = [flags] { return work(*flags); }; });
}

}  // namespace annulus::server
