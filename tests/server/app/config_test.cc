// SPDX-License-Identifier: Apache-2.0
#include "server/app/config.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace annulus::server {
namespace {

TEST(Config, AttentionAndPrecisionNameTheirValues) {
  EXPECT_FALSE(parse_attention("auto")->has_value());
  EXPECT_EQ(**parse_attention("pass-q"), parallel::Variant::kPassQ);
  EXPECT_NE(parse_attention("x").status().message().find("gather-q"), std::string::npos);
  EXPECT_EQ(*parse_precision("fp32"), kernels::Precision::kF32);
  EXPECT_NE(parse_precision("fp8").status().message().find("fp32"), std::string::npos);
}

TEST(Config, WorkersGetTheSameModel) {
  ServeConfig config;
  config.model = "/m";
  config.threads = 3;
  config.overrides.context = 99;
  config.overrides.rope_theta = 0.1;
  config.overrides.rope_scaling = "linear:2";
  const std::string line = shell_command(worker_flags(config));
  for (const char* flag : {"--model /m", "--threads 3", "--context 99",
                           "--rope-theta 0.10000000000000001", "--rope-scaling linear:2"}) {
    EXPECT_NE(line.find(flag), std::string::npos) << line;
  }
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
