// SPDX-License-Identifier: Apache-2.0
// annulus-gpu-bench: measure_gpu() as a program that runs where there are only CUDA's libraries.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "bench/gpu.h"
#include "bench/gpu_rank_of.h"
#include "bench/gpu_versions.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/gemm.h"

namespace annulus {
namespace {

int run(int argc, char** argv) {
  CLI::App app(
      "Measures memory, linear layers and attention of a GPU with the engine's ops, each beside "
      "the limit measured in the same run.\n\n  annulus-gpu-bench\n"
      "  annulus-gpu-bench --json gpu-bench.json --repeats 15");
  int gpu = 0;
  std::string json;
  bench::GpuBenchOptions options;
  app.add_option("--gpu", gpu, "number of the GPU")->capture_default_str();
  app.add_option("--repeats", options.repeats, "runs a figure is the median of")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--scale", options.scale, "divide the sizes by this, for a first look")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--longest", options.longest, "tokens of attention's sweep, at the most")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  bool tune_gemm = false;
  app.add_flag("--tune-gemm", tune_gemm,
               "products by the fastest of cuBLASLt's algorithms, as of annulus serve");
  app.add_option("--json", json, "write the rows to this file too");
  bench::RankOfFlags rank_of;
  rank_of.options.decode_steps = 64;
  CLI::App& alone = *app.add_subcommand(
      "rank-of",
      "One rank's whole prefill, run without the others: measured by phase, links modelled; then "
      "decode, with one step and with two under way.\n\n"
      "  annulus-gpu-bench rank-of --tokens 131072       a 405B at TP8 x CP16\n"
      "  annulus-gpu-bench rank-of --model 405b --tp 8 --cp 16 --tokens 1000000\n"
      "  annulus-gpu-bench rank-of --model synthetic:8B --tp 1 --cp 8");
  rank_of.add_to(alone);
  alone
      .add_option("--decode", rank_of.options.decode_steps,
                  "steps behind the prompt, one by one and two under way; 0: none")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  std::string gpu_attention = "own";
  alone.add_option("--gpu-attention", gpu_attention, "own or cudnn, as of annulus serve")
      ->check(CLI::IsMember({"own", "cudnn"}))
      ->capture_default_str();
  const CLI::App& versions =
      *app.add_subcommand("versions", "The driver and the libraries that the engine finds here");
  CLI11_PARSE(app, argc, argv);
  if (versions.parsed()) {
    bench::print_gpu_versions();
    return 0;
  }
  // What is wrong with the flags is said before a device is looked for.
  if (alone.parsed()) {
    if (const absl::Status status = rank_of.apply(); !status.ok()) {
      std::fprintf(stderr, "annulus-gpu-bench rank-of: %s\n",
                   std::string(status.message()).c_str());
      return 2;
    }
  }
  const auto device = kernels::find_cuda_device(gpu);
  if (!device.ok()) {
    std::fprintf(stderr, "annulus-gpu-bench: %s\n", std::string(device.status().message()).c_str());
    return 2;
  }
  auto owned = std::make_unique<kernels::CudaQueue>(gpu);
  kernels::CudaQueue& queue = *owned;
  const auto cublas = kernels::load_cublaslt();
  if (cublas.ok()) queue.use(**cublas);
  if (alone.parsed()) {
    absl::Status status = cublas.status();
    if (status.ok() && gpu_attention == "cudnn") {
      const auto library = kernels::load_cudnn();
      status = library.status();
      if (library.ok()) queue.use(**library);
    }
    if (status.ok()) status = gpu_rank_of(rank_of.options, std::move(owned), device->name);
    if (status.ok()) return 0;
    std::fprintf(stderr, "annulus-gpu-bench rank-of: %s\n", std::string(status.message()).c_str());
    return 2;
  }
  std::printf(
      "%s, %d multiprocessors; linear layers by %s\n", device->name.c_str(),
      queue.multiprocessors(),
      cublas.ok() ? "cuBLASLt" : "our own kernel, which is no limit (cuBLASLt is not here)");
  if (tune_gemm && queue.gemm() != nullptr) queue.gemm()->set_tuning(true);
  const auto cudnn = kernels::load_cudnn();
  if (cudnn.ok()) {
    options.cudnn = *cudnn;
    std::printf("attention beside cuDNN %zu\n", options.cudnn->version());
  } else {
    std::printf("attention without its yardstick: %s\n",
                std::string(cudnn.status().message()).c_str());
  }
  const auto rows = bench::measure_gpu(queue, options);
  std::fputs(bench::table_of(rows).c_str(), stdout);
  if (!json.empty() && !(std::ofstream(json) << bench::json_of(rows)).flush()) {
    std::fprintf(stderr, "annulus-gpu-bench: %s cannot be written\n", json.c_str());
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace annulus

int main(int argc, char** argv) {
  try {
    return annulus::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "annulus-gpu-bench: %s\n", error.what());
    return 1;
  }
}
