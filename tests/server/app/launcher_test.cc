// SPDX-License-Identifier: Apache-2.0
#include "server/app/launcher.h"

#include <gtest/gtest.h>

#include <map>

namespace annulus::server {
namespace {

using Variables = std::map<std::string, std::string>;

absl::StatusOr<Launcher> from(const Variables& variables) {
  return read_launcher([&](const char* name) {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

const Variables kSlurmStep = {{"SLURM_PROCID", "5"},
                              {"SLURM_STEP_NUM_TASKS", "8"},
                              {"SLURM_LOCALID", "1"},
                              {"SLURM_STEP_NODELIST", "gpu[03-04]"},
                              {"SLURM_JOB_NODELIST", "gpu[01-04]"}};

TEST(Launcher, NothingIsToldWithoutOne) {
  const auto launcher = from({});
  ASSERT_TRUE(launcher.ok());
  EXPECT_EQ(launcher->name, "");
  EXPECT_EQ(launcher->world_rank, -1);
  EXPECT_EQ(launcher->local_rank, -1);
  EXPECT_EQ(launcher->leader, "");
}

TEST(Launcher, SlurmStep) {
  const auto launcher = from(kSlurmStep);
  ASSERT_TRUE(launcher.ok()) << launcher.status();
  EXPECT_EQ(launcher->name, "Slurm");
  EXPECT_EQ(launcher->world_rank, 5);
  EXPECT_EQ(launcher->world_size, 8);
  EXPECT_EQ(launcher->local_rank, 1);
  EXPECT_EQ(launcher->leader, "gpu03");
  EXPECT_EQ(launcher->leader_port, 0);
}

TEST(Launcher, TheBatchScriptItselfIsNoRank) {
  const auto launcher = from({{"SLURM_PROCID", "0"},
                              {"SLURM_NTASKS", "8"},
                              {"SLURM_LOCALID", "0"},
                              {"SLURM_JOB_NODELIST", "gpu[01-04]"}});
  ASSERT_TRUE(launcher.ok());
  EXPECT_EQ(launcher->name, "");
}

TEST(Launcher, OpenMpiLeaderWorkerSetAndPlainNames) {
  auto launcher = from({{"OMPI_COMM_WORLD_RANK", "3"},
                        {"OMPI_COMM_WORLD_SIZE", "4"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}});
  ASSERT_TRUE(launcher.ok());
  EXPECT_EQ(launcher->world_rank, 3);
  EXPECT_EQ(launcher->local_rank, 1);
  EXPECT_EQ(launcher->leader, "");

  launcher = from({{"LWS_WORKER_INDEX", "0"},
                   {"LWS_GROUP_SIZE", "2"},
                   {"LWS_LEADER_ADDRESS", "llama-0.llama.default"}});
  ASSERT_TRUE(launcher.ok());
  EXPECT_EQ(launcher->name, "LeaderWorkerSet");
  EXPECT_EQ(launcher->world_rank, 0);
  EXPECT_EQ(launcher->world_size, 2);
  EXPECT_EQ(launcher->local_rank, -1);
  EXPECT_EQ(launcher->leader, "llama-0.llama.default");

  launcher = from({{"RANK", "1"},
                   {"WORLD_SIZE", "2"},
                   {"LOCAL_RANK", "0"},
                   {"MASTER_ADDR", "10.0.0.7"},
                   {"MASTER_PORT", "29500"}});
  ASSERT_TRUE(launcher.ok());
  EXPECT_EQ(launcher->world_rank, 1);
  EXPECT_EQ(launcher->leader, "10.0.0.7");
  EXPECT_EQ(launcher->leader_port, 29500);
}

TEST(Launcher, TheInnermostIsBelieved) {
  Variables nested = kSlurmStep;
  nested.insert({{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "3"}});
  EXPECT_EQ(from(nested)->world_rank, 2);
  nested.insert({{"RANK", "0"}, {"WORLD_SIZE", "16"}});
  EXPECT_EQ(from(nested)->world_size, 16);
}

TEST(Launcher, HalfOfOneIsNone) {
  EXPECT_EQ(from({{"RANK", "1"}})->name, "");
  EXPECT_EQ(from({{"RANK", ""}, {"WORLD_SIZE", "2"}})->name, "");
  Variables half = kSlurmStep;
  half["RANK"] = "7";
  EXPECT_EQ(from(half)->name, "Slurm");
}

TEST(Launcher, NonsenseNamesItsVariable) {
  const auto says = [](const Variables& variables, const std::string& what) {
    const auto launcher = from(variables);
    ASSERT_FALSE(launcher.ok());
    EXPECT_NE(launcher.status().message().find(what), std::string::npos) << launcher.status();
  };
  says({{"RANK", "one"}, {"WORLD_SIZE", "2"}}, "RANK=\"one\", which is no number from 0 to 1");
  says({{"RANK", "2"}, {"WORLD_SIZE", "2"}}, "RANK=\"2\"");
  says({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, "WORLD_SIZE=\"0\"");
  says({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_PORT", "70000"}}, "MASTER_PORT=\"70000\"");
  Variables typo = kSlurmStep;
  typo["SLURM_STEP_NODELIST"] = "gpu[03-04";
  says(typo, "SLURM_STEP_NODELIST: host list \"gpu[03-04\"");
}

}  // namespace
}  // namespace annulus::server
