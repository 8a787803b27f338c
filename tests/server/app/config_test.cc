// SPDX-License-Identifier: Apache-2.0
#include "server/app/config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>

namespace annulus::server {
namespace {

TEST(Config, AttentionAndPrecisionNameTheirValues) {
  EXPECT_FALSE(parse_attention("auto")->has_value());
  EXPECT_EQ(**parse_attention("pass-q"), parallel::Variant::kPassQ);
  EXPECT_NE(parse_attention("x").status().message().find("gather-q"), std::string::npos);
  EXPECT_EQ(*parse_precision("fp32"), kernels::Precision::kF32);
  EXPECT_NE(parse_precision("fp8").status().message().find("fp32"), std::string::npos);
}

TEST(Config, MetricsAreOnTheLoopbackUnlessAHostIsNamed) {
  const auto is = [](const char* text, const char* host, int port) {
    const auto parsed = parse_metrics(text);
    return parsed.ok() && parsed->host == host && parsed->port == port;
  };
  EXPECT_TRUE(is("50053", "127.0.0.1", 50053));
  EXPECT_TRUE(is("0", "127.0.0.1", 0));
  EXPECT_TRUE(is("0.0.0.0:65535", "0.0.0.0", 65535));
  EXPECT_TRUE(is("head-1.example:1", "head-1.example", 1));
  // Lists, suffixes and IPv6 would mean something to CivetWeb.
  for (const char* bad : {"", ":1", "1:", "x", "1,2", "1s", "a:1r", "[::1]:1", "a:65536", "a:-1",
                          "a:+1", "a b:1", "a:1 ", "99999999999"}) {
    EXPECT_FALSE(parse_metrics(bad).ok()) << bad;
  }
}

TEST(Config, WorkersGetTheSameModel) {
  ServeConfig config;
  config.model = "/m";
  config.threads = 3;
  config.overrides.context = 99;
  config.overrides.rope_theta = 0.1;
  config.overrides.rope_scaling = "linear:2";
  config.device = "cuda";
  config.gpu_attention = "cudnn";
  const std::string line = shell_command(worker_flags(config));
  for (const char* flag :
       {"--model /m", "--threads 3", "--context 99", "--rope-theta 0.10000000000000001",
        "--rope-scaling linear:2", "--device cuda"}) {
    EXPECT_NE(line.find(flag), std::string::npos) << line;
  }
  EXPECT_EQ(line.find("cudnn"), std::string::npos) << line;  // the assignment says it
}

TEST(Config, FlagsForGpusNeedOne) {
  ServeConfig on_gpu, on_cpu;
  on_gpu.device = "cuda";
  on_cpu.precision = kernels::Precision::kF32;
  for (const auto& [flag, set] :
       {std::pair{"--gpu-attention cudnn", +[](ServeConfig& c) { c.gpu_attention = "cudnn"; }},
        std::pair{"--tune-gemm", +[](ServeConfig& c) { c.tune_gemm = true; }},
        std::pair{"--cuda-graphs off", +[](ServeConfig& c) { c.cuda_graphs = false; }}}) {
    EXPECT_TRUE(check_gpu_flags(on_cpu).ok());
    set(on_gpu);
    EXPECT_TRUE(check_gpu_flags(on_gpu).ok()) << flag;
    ServeConfig wrong = on_cpu;
    set(wrong);
    EXPECT_EQ(check_gpu_flags(wrong).message(),
              std::string(flag) + " is for GPUs: give --device cuda, or leave it out");
  }
}

TEST(Config, CudnnMultipliesBf16) {
  ServeConfig config;
  config.device = "cuda";
  config.gpu_attention = "cudnn";
  config.precision = kernels::Precision::kF32;
  EXPECT_NE(check_gpu_flags(config).message().find("--precision fp32"), std::string::npos);
}

TEST(Config, ShellCommandsAreQuoted) {
  EXPECT_EQ(shell_command({"a", "b c", "d'e", ""}), "a 'b c' 'd'\\''e' ''");
}

TEST(Config, SecretsDiffer) {
  EXPECT_EQ(draw_secret().size(), 32u);
  EXPECT_NE(draw_secret(), draw_secret());
}

TEST(Config, LogLevelsHaveNames) {
  EXPECT_TRUE(set_up_logging("test", "warn"));
  EXPECT_FALSE(set_up_logging("test", "loud"));
}

}  // namespace
}  // namespace annulus::server
