// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/task_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace annulus::server {
namespace {

TEST(TaskPool, RunsEverythingThatItTook) {
  std::atomic<int> ran{0};
  {
    TaskPool pool(3, 1000);
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(pool.post([&] { ++ran; }));
  }
  EXPECT_EQ(ran, 100);
}

TEST(TaskPool, RefusesWhatItsQueueCannotHold) {
  std::promise<void> started, go;
  TaskPool pool(1, 2);
  ASSERT_TRUE(pool.post([&] {
    started.set_value();
    go.get_future().wait();
  }));
  started.get_future().wait();  // the one thread is busy
  EXPECT_TRUE(pool.post([] {}));
  EXPECT_TRUE(pool.post([] {}));
  EXPECT_FALSE(pool.post([] {}));
  go.set_value();
}

}  // namespace
}  // namespace annulus::server
