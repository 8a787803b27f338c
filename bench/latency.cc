// SPDX-License-Identifier: Apache-2.0
#include "bench/latency.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/client.h"
#include "bench/command_line.h"
#include "bench/latency_measure.h"
#include "bench/latency_report.h"
#include "bench/progress_bar.h"
#include "bench/server_process.h"

namespace annulus::bench {
namespace {

constexpr const char* kExamples =
    R"(  annulus-bench latency --address HOST:PORT --lengths 8192,131072       a server that runs, anywhere
  annulus-bench latency --model M --cp 1,2 --plot figures                starts servers here, one after another
  annulus-bench latency --model M --cp 2 --variants auto,pass-kv,pass-q --miss 0.01,0.05,0.2,1 -- --precision fp32
  annulus-bench latency --from cp1.json cp2.json cp4.json --plot figures of several runs or jobs
What follows -- goes to `annulus serve`. A server elsewhere lets variants be forced where it runs with --debug-requests,
and tells GEMM from the rest where it runs with --profile; both are given to servers started here.)";

struct Options {
  LatencyPlan plan;
  std::string address, model, json, csv, figures, python;
  std::vector<std::string> from, serve_flags;
  std::vector<int> cp = {1}, tp = {1};
};

absl::Status measure(const std::string& address, const Options& options, double done_before,
                     double total, ProgressBar& bar, LatencyRun& run) {
  const Client client(address);
  const auto served = client.reach();
  if (!served.ok()) return served.status();
  if (absl::Status s = check_fits(options.plan, *served); !s.ok()) return s;
  if (run.rows.empty()) {
    run.model = served->model.name();
    run.precision = served->model.precision();
    print_head(run);
  } else if (run.model != served->model.name() || run.precision != served->model.precision()) {
    return absl::FailedPreconditionError("the servers have different models or precisions");
  }
  run.servers.push_back(describe(address, *served));
  bar.clear();
  print_server(run.servers.back());
  if (total <= 0) total = options.plan.tokens(served->cluster.cp());
  const std::string layout =
      absl::StrCat("tp ", served->cluster.tp(), " x cp ", served->cluster.cp(), ", ");
  print_columns();
  return measure_latency(
      client, *served, options.plan,
      [&](double done, const std::string& note) {
        bar.show((done_before + done) / total, layout + note);
      },
      [&](std::vector<LatencyRow> rows) {
        const size_t first = run.rows.size();
        std::move(rows.begin(), rows.end(), std::back_inserter(run.rows));
        check_rows(run);
        bar.clear();
        for (size_t i = first; i < run.rows.size(); ++i)
          print_row(run.rows[i], logprob_bound(run.precision));
      });
}

absl::Status measure_local(const Options& options, LatencyRun& run) {
  ProgressBar bar("latency");
  double total = 0, done = 0;
  for (const int cp : options.cp)
    total += options.plan.tokens(cp) * static_cast<double>(options.tp.size());
  for (const int tp : options.tp) {
    for (const int cp : options.cp) {
      std::vector<std::string> flags = {
          "--model",          options.model,      "--tp",      std::to_string(tp), "--cp",
          std::to_string(cp), "--debug-requests", "--profile", "--log-level",      "warn"};
      flags.insert(flags.end(), options.serve_flags.begin(), options.serve_flags.end());
      bar.show(done / total, absl::StrCat("starting tp ", tp, " x cp ", cp));
      const auto server = ServerProcess::start(flags);
      if (!server.ok()) return server.status();
      if (absl::Status s = measure(server->address(), options, done, total, bar, run); !s.ok())
        return s;
      done += options.plan.tokens(cp);
    }
  }
  return absl::OkStatus();
}

absl::Status check_options(const Options& options) {
  const int sources =
      !options.address.empty() + !options.model.empty() + static_cast<int>(!options.from.empty());
  if (sources != 1) {
    return absl::InvalidArgumentError(
        "give one of --address HOST:PORT, --model M and --from FILE...");
  }
  if (!options.serve_flags.empty() && options.model.empty())
    return absl::InvalidArgumentError("flags behind -- are those of servers started with --model");
  if (absl::Status s = check_writable(options.json); !s.ok()) return s;
  return check_writable(options.csv);
}

absl::Status run(Options& options) {
  if (absl::Status s = check_options(options); !s.ok()) return s;
  std::string python;
  if (!options.figures.empty()) {
    auto found = plotting_python(options.python);
    if (!found.ok()) return found.status();
    python = *std::move(found);
  }
  std::sort(options.plan.lengths.begin(), options.plan.lengths.end());
  std::sort(options.plan.misses.begin(), options.plan.misses.end(), std::greater<>());

  LatencyRun run;
  run.parameters = options.plan.to_json();
  absl::Status measured;
  if (!options.from.empty()) {
    auto merged = read_runs(options.from);
    if (!merged.ok()) return merged.status();
    run = *std::move(merged);
    print_head(run);
    for (const nlohmann::json& server : run.servers) print_server(server);
    print_columns();
    for (const LatencyRow& row : run.rows) print_row(row, logprob_bound(run.precision));
  } else if (!options.address.empty()) {
    ProgressBar bar("latency");
    measured = measure(options.address, options, 0, 0, bar, run);
  } else {
    measured = measure_local(options, run);
  }
  // What was measured before something failed is kept.
  if (!measured.ok() && run.rows.empty()) return measured;
  print_verdict(run);
  if (!options.json.empty()) measured.Update(write_file(options.json, to_json(run).dump(2) + "\n"));
  if (!options.csv.empty()) measured.Update(write_file(options.csv, to_csv(run)));
  if (!options.figures.empty()) measured.Update(plot(python, run, options.figures));
  if (wrong_rows(run) > 0)
    measured.Update(absl::DataLossError(absl::StrCat(wrong_rows(run), " rows are wrong")));
  return measured;
}

}  // namespace

int bench_latency(int argc, char** argv) {
  Options o;
  o.serve_flags = after_dashes(argc, argv);
  CLI::App app("Time to the first token and between tokens: a table, JSON, CSV, figures.",
               "annulus-bench latency");
  app.add_option("--address", o.address, "HOST:PORT of a running server");
  app.add_option("--model", o.model, "model file or folder: servers are started here");
  app.add_option("--cp", o.cp, "with --model: context-parallel sizes")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--tp", o.tp, "with --model: tensor-parallel sizes")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--from", o.from,
                 "results of --json instead of a measurement, merged; the first has the reference");
  app.add_option("--lengths", o.plan.lengths, "tokens of the whole prompt")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--miss", o.plan.misses, "shares of the prompt that are not cached, in (0, 1]")
      ->delimiter(',')
      ->check(number_up_to(0, 1))
      ->capture_default_str();
  app.add_option("--variants", o.plan.variants, "auto, pass-kv, pass-q, gather-q")
      ->delimiter(',')
      ->check(CLI::IsMember({"auto", "pass-kv", "pass-q", "gather-q"}))
      ->capture_default_str();
  app.add_option("--warmup", o.plan.warmup, "turns before those that count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--repetitions", o.plan.repetitions, "turns that count")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--output", o.plan.output, "gaps between tokens that are measured; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--timeout", o.plan.timeout_s, "seconds that a request may take")
      ->check(number_up_to(0, 1e6))
      ->capture_default_str();
  app.add_option("--json", o.json, "writes everything, with every sample");
  app.add_option("--csv", o.csv, "writes the table");
  app.add_option("--plot", o.figures, "writes the paper's figures into this folder, SVG and PNG");
  app.add_option("--python", o.python, "that draws them: one with matplotlib");
  app.footer(kExamples);
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  const absl::Status status = run(o);
  return status.ok() ? 0 : report("latency", status);
}

}  // namespace annulus::bench
