// SPDX-License-Identifier: Apache-2.0
// The control plane over real gRPC streams, with workers played by hand. What it decides is tested
// in coordinator_test; here, that messages arrive, in order, and that nothing hangs.
#include "server/rpc/control_service.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/rpc/control_client.h"
#include "server/rpc/profile.h"

namespace annulus::server {
namespace {

constexpr int64_t kMessageBytes = int64_t{16} << 20;

class Events {
 public:
  void hear(LinkEvent event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  template <class T>
  T wait() {  // for the next T
    std::unique_lock lock(mutex_);
    for (;;) {
      if (!changed_.wait_for(lock, std::chrono::seconds(20),
                             [&] { return next_ < events_.size(); })) {
        throw std::runtime_error("no such event");
      }
      if (const T* event = std::get_if<T>(&events_[next_++])) return *event;
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<LinkEvent> events_;
  size_t next_ = 0;
};

class ControlServiceTest : public ::testing::Test {
 protected:
  ControlServiceTest() {
    ControlOptions options;
    options.max_message_bytes = kMessageBytes;
    options.epoch.topology = {.tp = 1, .cp = 2};
    options.epoch.build = "a build";
    options.epoch.secret = "a secret";
    service_ = *ControlService::create(std::move(options));
    service_->start([this](LinkEvent event) { events_.hear(std::move(event)); });
  }

  std::unique_ptr<ControlClient> attach(int32_t rank, const std::string& secret = "a secret") {
    auto client = ControlClient::connect(absl::StrCat("127.0.0.1:", service_->port()),
                                         kMessageBytes, absl::Seconds(10));
    EXPECT_TRUE(client.ok()) << client.status();
    v1::WorkerMessage message;
    message.mutable_register_()->set_build("a build");
    message.mutable_register_()->set_secret(secret);
    message.mutable_register_()->set_wanted_rank(rank);
    message.mutable_register_()->set_pid(100 + rank);
    message.mutable_register_()->set_host("h");
    EXPECT_TRUE((*client)->write(message));
    return *std::move(client);
  }
  static v1::FrontMessage next(ControlClient& client) {
    v1::FrontMessage message;
    EXPECT_TRUE(client.read(&message));
    return message;
  }
  // From Assignment to Start.
  static void start_epoch(std::vector<ControlClient*> clients, int64_t epoch) {
    for (ControlClient* client : clients) {
      EXPECT_EQ(next(*client).assignment().epoch(), epoch);
      v1::WorkerMessage message;
      message.mutable_data_address()->set_epoch(epoch);
      message.mutable_data_address()->set_address("a");
      client->write(message);
    }
    for (ControlClient* client : clients) {
      EXPECT_EQ(next(*client).peers().addresses_size(), 2);
      v1::WorkerMessage message;
      message.mutable_ready()->set_epoch(epoch);
      message.mutable_ready()->set_kv_capacity_rows(10);
      for (const auto& [field, value] : profile_values({})) {
        (*message.mutable_ready()->mutable_profile()->mutable_values())[field] = value;
      }
      client->write(message);
    }
    for (ControlClient* client : clients) EXPECT_EQ(next(*client).start().epoch(), epoch);
  }
  void send(int64_t epoch, int64_t step) {
    parallel::StepPlan plan;
    plan.epoch = epoch;
    plan.step = step;
    parallel::ShardState state;
    state.cp = 2;
    service_->send(plan, state, 1000);
  }

  Events events_;  // outlives the service
  std::unique_ptr<ControlService> service_;
};

TEST_F(ControlServiceTest, StepsGoOutAndAnswersComeBackInOrder) {
  const auto a = attach(0), b = attach(1);
  start_epoch({a.get(), b.get()}, 1);
  EXPECT_EQ(events_.wait<EpochReady>().ranks[1].pid, 101);
  constexpr int64_t kSteps = 200;
  for (int64_t step = 0; step < kSteps; ++step) send(1, step);
  for (int32_t rank = 0; rank < 2; ++rank) {
    ControlClient& client = rank == 0 ? *a : *b;
    for (int64_t step = 0; step < kSteps; ++step) {
      const auto plan = parallel::decode_plan(next(client).plan().plan());
      ASSERT_TRUE(plan.ok());
      ASSERT_EQ(plan->step, step);
      v1::WorkerMessage message;
      message.mutable_answer()->set_epoch(1);
      parallel::StepResult result;
      result.epoch = 1;
      result.step = step;
      result.world_rank = rank;
      message.mutable_answer()->set_result(parallel::encode(result));
      ASSERT_TRUE(client.write(message));
    }
  }
  std::vector<int64_t> last(2, -1);
  for (int64_t i = 0; i < 2 * kSteps; ++i) {
    const RankAnswer answer = events_.wait<RankAnswer>();
    const auto rank = static_cast<size_t>(answer.result.world_rank);
    EXPECT_EQ(answer.result.step, last[rank] + 1);
    last[rank] = answer.result.step;
  }
}

TEST_F(ControlServiceTest, AWorkerThatVanishesEndsTheEpochForAll) {
  const auto a = attach(0);
  auto b = attach(1);
  start_epoch({a.get(), b.get()}, 1);
  events_.wait<EpochReady>();
  b.reset();  // cancels its stream
  std::string why;
  while (why.find("rank 1 (pid 101 on h)") == std::string::npos) {
    why = events_.wait<EpochLost>().why;  // before the start: who is waited for
  }
  EXPECT_EQ(next(*a).abort_epoch().epoch(), 1);
  send(1, 0);  // of an epoch that is over: dropped
  const auto c = attach(1);
  start_epoch({a.get(), c.get()}, 2);
  EXPECT_EQ(events_.wait<EpochReady>().epoch, 2);
}

TEST_F(ControlServiceTest, ARefusalIsReadBeforeTheStreamEnds) {
  const auto client = attach(0, "wrong");
  EXPECT_NE(next(*client).refused().why().find("secret"), std::string::npos);
  v1::FrontMessage message;
  EXPECT_FALSE(client->read(&message));
}

TEST_F(ControlServiceTest, WhoNeverRegistersIsCutOff) {
  const auto client = ControlClient::connect(absl::StrCat("127.0.0.1:", service_->port()),
                                             kMessageBytes, absl::Seconds(10));
  ASSERT_TRUE(client.ok());
  v1::FrontMessage message;
  ASSERT_TRUE((*client)->read(&message));  // after 3 s
  EXPECT_TRUE(message.has_dropped()) << message.DebugString();
  EXPECT_FALSE((*client)->read(&message));
}

TEST_F(ControlServiceTest, ItsEndTellsTheWorkers) {
  const auto client = attach(0);
  std::thread worker([&] {
    EXPECT_TRUE(next(*client).has_shutdown());
    client->say_goodbye();
    v1::FrontMessage message;
    EXPECT_FALSE(client->read(&message));
  });
  // The registration must have arrived, or there is nobody to tell.
  while (service_->status().waiting_for != "rank 1 to attach") {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  service_.reset();
  worker.join();
}

TEST_F(ControlServiceTest, APortInUseIsAnErrorThatSaysSo) {
  ControlOptions options;
  options.port = service_->port();
  options.epoch.topology = {.tp = 1, .cp = 1};
  const auto second = ControlService::create(std::move(options));
  ASSERT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_NE(std::string(second.status().message()).find("port is taken"), std::string::npos);
}

}  // namespace
}  // namespace annulus::server
