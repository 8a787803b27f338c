// SPDX-License-Identifier: Apache-2.0
#include "bench/progress_bar.h"

#include <gtest/gtest.h>

namespace annulus::bench {
namespace {

TEST(ProgressBar, ALineSaysHowFarAndHowLong) {
  EXPECT_EQ(progress_line("x", 0, 0, ""), "x [------------------------------]   0 %, 0 s");
  EXPECT_EQ(progress_line("x", 0.5, 10, "half"),
            "x [###############---------------]  50 %, 10 s, 10 s to go  half");
  EXPECT_EQ(progress_line("x", 1.2, 10, ""),
            "x [##############################] 100 %, 10 s, 0 s to go");
}

TEST(ProgressBar, NoGuessFromTooLittle) {
  EXPECT_EQ(progress_line("x", 0.01, 60, "").find("to go"), std::string::npos);
  EXPECT_EQ(progress_line("x", 0.5, 1, "").find("to go"), std::string::npos);
}

}  // namespace
}  // namespace annulus::bench
