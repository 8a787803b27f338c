// SPDX-License-Identifier: Apache-2.0
// A worker that knows the secret and says what no worker should, against a real front end: the
// epoch ends and names it, the front end lives and serves with the next worker.
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>

#include "absl/strings/str_cat.h"
#include "bench/server_process.h"
#include "parallel/model/checkpoint.h"
#include "parallel/step.h"
#include "server/app/build.h"
#include "server/rpc/control_client.h"
#include "server/rpc/profile.h"
#include "tests/dist/cluster.h"

namespace annulus::testing {
namespace {

using server::ControlClient;

constexpr int64_t kMessageBytes = int64_t{64} << 20;
const char* const kQuestion = "Who is there";

// Plays one rank by hand.
class Actor {
 public:
  Actor(const std::string& address, uint64_t fingerprint) {
    auto client = ControlClient::connect(address, kMessageBytes, absl::Seconds(20));
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    v1::WorkerMessage message;
    v1::Register* registration = message.mutable_register_();
    registration->set_build(server::kBuild);
    registration->set_secret("of this test");
    registration->set_model_fingerprint(fingerprint);
    registration->set_wanted_rank(0);
    registration->set_pid(4242);
    registration->set_host("nowhere");
    client_->write(message);
  }

  // Until its stream ends. `answer` makes the answer to a plan, and the messages of the start may
  // be changed on their way.
  void play(const std::function<void(v1::WorkerMessage&)>& change,
            const std::function<std::string(const parallel::StepPlan&)>& answer) {
    v1::FrontMessage in;
    while (client_->read(&in)) {
      v1::WorkerMessage out;
      if (in.has_assignment()) {
        out.mutable_data_address()->set_epoch(in.assignment().epoch());
        out.mutable_data_address()->set_address("an address");
      } else if (in.has_peers()) {
        out.mutable_ready()->set_epoch(in.peers().epoch());
        out.mutable_ready()->set_kv_capacity_rows(8192);
        parallel::MachineProfile usual;
        for (const auto& [field, value] : server::profile_values(usual)) {
          (*out.mutable_ready()->mutable_profile()->mutable_values())[field] = value;
        }
      } else if (in.has_plan()) {
        const auto plan = parallel::decode_plan(in.plan().plan());
        ASSERT_TRUE(plan.ok());
        out.mutable_answer()->set_epoch(in.plan().epoch());
        out.mutable_answer()->set_result(answer(*plan));
      } else {
        continue;
      }
      change(out);
      client_->write(out);
    }
  }
  void write(const v1::WorkerMessage& message) { client_->write(message); }
  void leave() { client_->say_goodbye(); }  // after what was written

 private:
  std::unique_ptr<ControlClient> client_;
};

// What a real rank answers, with token 7 everywhere.
std::string right_answer(const parallel::StepPlan& plan) {
  parallel::StepResult result;
  result.epoch = plan.epoch;
  result.step = plan.step;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    for (const parallel::Wanted& wanted : plan.items[i].wanted) {
      result.wanted.emplace_back();
      result.wanted.back().item = static_cast<int32_t>(i);
      result.wanted.back().position = wanted.position;
      if (wanted.sample) result.wanted.back().token = 7;
    }
  }
  return parallel::encode(result);
}

class BadWorker : public ::testing::Test {
 protected:
  void SetUp() override {
    ClusterOptions options;
    options.model = tiny_model_file();
    options.cp = 1;
    cluster_ = std::make_unique<Cluster>(options);
    expected_ = cluster_->answer(kQuestion, 10);
    fingerprint_ = parallel::Checkpoint::open(tiny_model_file())->fingerprint();
    send_the_worker_away();
  }
  void send_the_worker_away() {
    cluster_->worker(0)->signal(SIGKILL);
    EXPECT_TRUE(eventually(20, [&] { return !cluster_->healthy(); }));
  }
  Actor actor() {
    return Actor(absl::StrCat("127.0.0.1:", cluster_->control_port()), fingerprint_);
  }
  void expect_that_the_next_worker_serves() {
    ASSERT_FALSE(gone(cluster_->front().pid())) << cluster_->front().err();
    cluster_->start_worker(0);
    cluster_->wait_serving();
    EXPECT_EQ(cluster_->answer(kQuestion, 10), expected_);
  }

  std::unique_ptr<Cluster> cluster_;
  std::vector<uint32_t> expected_;
  uint64_t fingerprint_ = 0;
};

TEST_F(BadWorker, AnAnswerThatDoesNotFitEndsTheEpochAndNamesTheRank) {
  Actor bad = actor();
  std::thread playing([&] {
    bad.play([](v1::WorkerMessage&) {},
             [](const parallel::StepPlan& plan) {
               parallel::StepResult result;
               result.epoch = plan.epoch;
               result.step = plan.step;
               return parallel::encode(result);
             });
  });
  cluster_->wait_serving();
  Stream stream(cluster_->stub(), ask(kQuestion, 10));
  const grpc::Status status = stream.status();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("rank 0 (pid 4242 on nowhere) was lost: its answer to step "
                                        "0 has 0 positions, it was asked for 1"),
            std::string::npos)
      << status.error_message();
  playing.join();
  expect_that_the_next_worker_serves();
}

// Profiles decide chunks, variants and deadlines.
TEST_F(BadWorker, AnyProfileThatIsTakenServes) {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> exponent(-320, 308);
  int served = 0, refused = 0;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    Actor bad = actor();
    std::thread playing([&] {
      bad.play(
          [&](v1::WorkerMessage& message) {
            if (!message.has_ready()) return;
            for (auto& [field, value] :
                 *message.mutable_ready()->mutable_profile()->mutable_values())
              if (random() % 3 == 0) value = std::pow(10, exponent(random) / (1 + i % 4 * 8));
          },
          right_answer);
    });
    if (eventually(2, [&] { return cluster_->healthy(); })) {
      Stream stream(cluster_->stub(), ask(std::string(1500, 'a'), 5));
      const grpc::Status status = stream.status(30);
      EXPECT_TRUE(status.ok()) << status.error_message();
      ++served;
    } else {
      ++refused;
    }
    bad.leave();
    playing.join();
    EXPECT_TRUE(eventually(20, [&] { return !cluster_->healthy(); }));
    ASSERT_FALSE(gone(cluster_->front().pid())) << cluster_->front().err();
  }
  std::cout << served << " profiles served, " << refused << " refused" << std::endl;
  EXPECT_GT(served, 0);
  expect_that_the_next_worker_serves();
}

std::string random_bytes(std::mt19937_64& random) {
  std::string bytes(random() % 3 == 0 ? random() % 4000 : random() % 40, '\0');
  for (char& c : bytes) c = static_cast<char>('\x01' + random() % 120);
  return bytes;
}

int64_t random_number(std::mt19937_64& random) {
  const int64_t usual[] = {0, 1, 2, -1, INT64_MAX, INT64_MIN, INT32_MAX, int64_t{1} << 40};
  return usual[random() % std::size(usual)];
}

v1::WorkerMessage random_message(std::mt19937_64& random, int64_t epoch) {
  v1::WorkerMessage message;
  const auto number = [&] { return random_number(random); };
  const auto small = [&] { return static_cast<int32_t>(random_number(random)); };
  const int64_t named = random() % 2 == 0 ? epoch : number();
  switch (random() % 7) {
    case 0: message.mutable_register_()->set_host(random_bytes(random)); break;
    case 1:
      message.mutable_load_progress()->set_done_bytes(number());
      message.mutable_load_progress()->set_total_bytes(number());
      break;
    case 2:
      message.mutable_data_address()->set_epoch(named);
      message.mutable_data_address()->set_address(random_bytes(random));
      message.mutable_data_address()->set_holds_weights(random() % 2 == 0);
      break;
    case 3:
      message.mutable_ready()->set_epoch(named);
      message.mutable_ready()->set_kv_capacity_rows(number());
      message.mutable_ready()->set_weight_bytes(number());
      message.mutable_ready()->set_load_s(static_cast<double>(number()));
      for (const auto& [field, value] : server::profile_values({})) {
        const double values[] = {value, 0, -1, NAN, INFINITY, 1e-300, 1e300};
        (*message.mutable_ready()->mutable_profile()->mutable_values())[field] =
            values[random() % 20 < 14 ? 0 : random() % std::size(values)];
      }
      break;
    case 4:
      message.mutable_heartbeat()->set_step(number());
      message.mutable_heartbeat()->set_progress(number());
      message.mutable_heartbeat()->set_layer(small());
      message.mutable_heartbeat()->set_hop(small());
      break;
    case 5:
      message.mutable_failure()->set_epoch(named);
      message.mutable_failure()->set_what(random_bytes(random));
      break;
    case 6: {
      message.mutable_answer()->set_epoch(named);
      parallel::StepResult result;
      result.epoch = named;
      result.step = number();
      result.world_rank = small();
      for (uint64_t i = random() % 3; i > 0; --i) {
        result.wanted.emplace_back();
        result.wanted.back().item = small();
        result.wanted.back().position = number();
        result.wanted.back().token = small();
      }
      std::string bytes = random() % 4 == 0 ? random_bytes(random) : parallel::encode(result);
      if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
      message.mutable_answer()->set_result(std::move(bytes));
      break;
    }
  }
  return message;
}

TEST_F(BadWorker, NothingThatItSaysEndsTheFrontEnd) {
  const char* text = std::getenv("ANNULUS_FAULT_SEED");
  const uint64_t seed = text == nullptr ? std::random_device()() : std::strtoull(text, nullptr, 10);
  std::cout << "ANNULUS_FAULT_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  int asked = 0;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    Actor bad = actor();
    // Half of them behave until they serve, and are asked something.
    std::thread playing([&] { bad.play([](v1::WorkerMessage&) {}, right_answer); });
    std::unique_ptr<Stream> stream;
    if (i % 2 == 0 && eventually(2, [&] { return cluster_->healthy(); })) {
      stream = std::make_unique<Stream>(cluster_->stub(), ask(kQuestion, 4000));
    }
    const int64_t epoch = cluster_->epoch_now();
    for (uint64_t n = 1 + random() % 6; n > 0; --n) bad.write(random_message(random, epoch));
    bad.leave();
    playing.join();
    if (stream) {
      ++asked;
      const grpc::Status status = stream->status(20);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
      EXPECT_NE(status.error_message().find("rank 0 (pid 4242 on nowhere)"), std::string::npos)
          << status.error_message();
    }
    ASSERT_FALSE(gone(cluster_->front().pid())) << cluster_->front().err();
  }
  EXPECT_GT(asked, 0) << "the epochs did not come to serve";
  expect_that_the_next_worker_serves();
}

}  // namespace
}  // namespace annulus::testing
