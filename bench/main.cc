// SPDX-License-Identifier: Apache-2.0
// annulus-bench: one program, a subcommand each. Every table prints the limits measured in the same
// run.
#include <signal.h>

#include <cstdio>
#include <cstring>
#include <exception>

#include "bench/attention.h"
#include "bench/gemm.h"
#include "bench/golden.h"
#include "bench/latency.h"
#include "bench/learn.h"
#include "bench/link.h"
#include "bench/policy.h"
#include "bench/rank_of_cpu.h"
#include "bench/recall.h"
#include "bench/regret.h"
#include "bench/ring.h"
#include "bench/serve_load.h"
#include "bench/simulate.h"
#include "bench/soak.h"
#include "bench/step.h"
#include "bench/throughput.h"
#include "bench/weights.h"
#include "parallel/comm_ucx.h"

namespace {

struct Command {
  const char* name;
  const char* help;
  int (*run)(int argc, char** argv);
};

using namespace annulus::bench;  // NOLINT: the table below

constexpr Command kCommands[] = {
    {"golden", "answers a case file of tests/golden through an engine of processes", bench_golden},
    {"latency", "time to first token and between tokens over length, CP, TP, miss rate, variant",
     bench_latency},
    {"serve", "Poisson or closed-loop load; JSON with the names of vLLM's serving benchmark",
     bench_serve},
    {"ring", "bytes, balance, memory and overlap of ring steps against the formulas", bench_ring},
    {"step", "one step of a model: time, limit and fraction reached of every op", bench_step},
    {"policy", "miss-rate sweep: prediction, choice and measured time of each variant",
     bench_policy},
    {"regret", "links x miss rates: what each way of choosing a variant loses to the fastest",
     bench_regret},
    {"learn", "the machine profile from epoch to epoch, where ranks measure wrong", bench_learn},
    {"gemm", "linear layers against the peaks of this machine", bench_gemm},
    {"attention", "attention against the peaks of this machine", bench_attention},
    {"soak", "many streams at once: statuses, texts, and what stays behind", bench_soak},
    {"throughput", "prompt and generation tokens/s of the served engine against limits and floors",
     bench_throughput},
    {"link", "round trip and bandwidth between two ranks", bench_link},
    {"rank-of", "one rank's whole prefill without the others: phases measured, links modelled",
     bench_rank_of},
    {"weights", "every rank reads its weights, or one reads and sends them to its peers",
     bench_weights},
    {"recall", "a prompt of up to a million tokens, with needles on every edge of the split",
     bench_recall},
    {"simulate", "the engine in virtual time: published tables, layouts, links, thousands of ranks",
     bench_simulate},
};

}  // namespace

int main(int argc, char** argv) {
  annulus::parallel::tame_ucx();
  signal(SIGPIPE, SIG_IGN);
  for (const Command& command : kCommands) {
    if (argc < 2 || std::strcmp(argv[1], command.name) != 0) continue;
    try {
      return command.run(argc - 1, argv + 1);
    } catch (const std::exception& error) {  // of a device: memory, a rank that is gone
      std::fprintf(stderr, "annulus-bench %s: %s\n", command.name, error.what());
      return 1;
    }
  }
  std::printf("usage: annulus-bench COMMAND [options]      (COMMAND --help says more)\n\n");
  for (const Command& command : kCommands) std::printf("  %-10s %s\n", command.name, command.help);
  return argc > 1 && std::strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
