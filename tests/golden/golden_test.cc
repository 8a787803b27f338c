// SPDX-License-Identifier: Apache-2.0
// Engines of real processes answer the goldens, teacher-forced through the decode path. fp32
// layouts pass class fp32 and stay within 5e-4 of this engine's own single rank; the default
// precision passes its own class. One layout per suspicion; the whole covering array is
// tests/golden/matrix.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "bench/server_process.h"
#include "tests/support/tiny_model.h"

namespace annulus {
namespace {

namespace fs = std::filesystem;

const std::string kGolden = std::string(ANNULUS_SOURCE_DIR) + "/tests/golden/";
// Everything up to 701 tokens: chat, a session of four turns, a batch of unequal lengths, unicode,
// code.
const std::string kShort =
    "one-token,short-chat,odd-37,story-290,session-turn1,session-turn2,session-turn3,session-turn4,"
    "batch-1,batch-9,"
    "batch-64,batch-233,batch-701,unicode,code";

class GoldenTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string pattern = fs::temp_directory_path() / "annulus-golden-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }
  void SetUp() override {
    ASSERT_TRUE(testing::test_model_path().ok()) << testing::test_model_path().status();
  }

  static std::string answers(const std::string& name) { return folder_ + "/" + name + ".jsonl"; }

  // Runs the cases in an engine with these flags; false with the log on stderr when anything
  // differs.
  static bool run(const std::string& name, const std::string& flags,
                  const std::string& cases = "generate.jsonl") {
    const fs::path bench =
        fs::path(bench::annulus_binary()).parent_path().parent_path() / "bench" / "annulus-bench";
    const std::string command = bench.string() + " golden --model '" + *testing::test_model_path() +
                                "' --cases " + kGolden + cases + " --out " + answers(name) + " " +
                                flags;
    return std::system(
               (command + " > " + folder_ + "/log 2>&1 || { cat " + folder_ + "/log >&2; false; }")
                   .c_str()) == 0;
  }
  static bool passes(const std::string& name, const std::string& judged,
                     const std::string& cases = "generate.jsonl") {
    const std::string command = "python3 " + kGolden + "check.py " + kGolden + cases + " " +
                                answers(name) + " --class " + judged + " --partial";
    return std::system(
               (command + " > " + folder_ + "/log 2>&1 || { cat " + folder_ + "/log >&2; false; }")
                   .c_str()) == 0;
  }
  // fp32 on a layout: judged by the oracle and by one rank.
  static void expect_exact(const std::string& name, const std::string& flags) {
    if (!fs::exists(answers("one"))) {
      ASSERT_TRUE(run("one", "--precision fp32 --only " + kShort));
      ASSERT_TRUE(passes("one", "fp32"));
    }
    EXPECT_TRUE(run(
        name, "--precision fp32 --only " + kShort + " --against " + answers("one") + " " + flags));
    EXPECT_TRUE(passes(name, "fp32"));
  }

  static std::string folder_;
};
std::string GoldenTest::folder_;

TEST_F(GoldenTest, Fp32LayoutsAreExact) {
  expect_exact("cp2-pass-q", "--cp 2 --attention pass-q --chunk 61");
  expect_exact("cp3-auto", "--cp 3 --chunk 128");
  expect_exact("cp4-pass-kv", "--cp 4 --attention pass-kv");
  expect_exact("tp3-cp2-gather-q", "--tp 3 --cp 2 --attention gather-q --chunk 100");
}

TEST_F(GoldenTest, FreeRunningTextIsTheGoldens) {
  ASSERT_TRUE(run("free",
                  "--cp 2 --precision fp32 --free --only "
                  "short-chat,session-turn1,session-turn2,session-turn3,session-turn4,unicode"));
  EXPECT_TRUE(passes("free", "fp32"));
}

TEST_F(GoldenTest, DefaultPrecisionPassesItsClass) {
  ASSERT_TRUE(run("default", "--cp 2 --only " + kShort));
  EXPECT_TRUE(passes("default", "bf16"));
}

TEST_F(GoldenTest, LikelihoodOfALongTextHolds) {
  ASSERT_TRUE(run("nll", "--cp 2 --chunk 700", "nll.jsonl"));
  EXPECT_TRUE(passes("nll", "bf16", "nll.jsonl"));
}

}  // namespace
}  // namespace annulus
