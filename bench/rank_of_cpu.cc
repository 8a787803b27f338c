// SPDX-License-Identifier: Apache-2.0
#include "bench/rank_of_cpu.h"

#include "bench/command_line.h"
#include "bench/peaks.h"
#include "bench/rank_of_run.h"

namespace annulus::bench {

int bench_rank_of(int argc, char** argv) {
  CLI::App app(
      "One rank's whole prefill, run without the others: measured by phase, links modelled.\n\n"
      "  annulus-bench rank-of --model synthetic:135M --tp 1 --cp 8 --tokens 32768\n"
      "  annulus-gpu-bench rank-of --tokens 1000000     a 405B at TP8 x CP16, on a GPU",
      "annulus-bench rank-of");
  RankOfFlags flags;
  flags.options.model = "synthetic:135M";
  flags.options.topology = {1, 4};
  flags.options.tokens = 8192;
  flags.options.chunk_tokens = 2048;
  flags.add_to(app);
  app.add_option("--threads", flags.options.rank.threads, "of the rank")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  if (const absl::Status status = flags.apply(); !status.ok()) return report("rank-of", status);
  const kernels::CpuIsa isa = kernels::detect_cpu_isa();
  const Peaks peaks = measure_peaks(flags.options.rank.threads);
  const auto result =
      run_rank_of(flags.options, std::make_unique<kernels::CpuQueue>(flags.options.rank.threads));
  if (!result.ok()) return report("rank-of", result.status());
  const bool bf16 =
      flags.options.rank.precision == kernels::Precision::kDefault && peaks.bf16_gflops > 0;
  const absl::Status printed = print_rank_of(
      flags.options, *result, absl::StrCat(flags.options.rank.threads, " threads, ", name(isa)),
      (bf16 ? peaks.bf16_gflops : peaks.fp32_gflops) / 1e3, bf16 ? "bf16" : "fp32");
  return printed.ok() ? 0 : report("rank-of", printed);
}

}  // namespace annulus::bench
