// SPDX-License-Identifier: Apache-2.0
#include "tests/dist/cluster.h"

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "bench/server_process.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/support/processes.h"

namespace annulus::testing {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool eventually(double seconds, const std::function<bool()>& condition) {
  const Clock::time_point start = Clock::now();
  while (!condition()) {
    if (seconds_since(start) > seconds) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

Stream::Stream(v1::Inference::Stub& stub, v1::GenerateRequest request) {
  reader_ = std::thread([this, call = stub.Generate(&context_, request)] {
    v1::GenerateResponse event;
    while (call->Read(&event)) {
      const std::lock_guard lock(mutex_);
      if (event.has_accepted()) accepted_ = true;
      if (event.has_progress()) {
        prefilled_ = static_cast<double>(event.progress().done()) /
                     static_cast<double>(event.progress().total());
      }
      if (event.has_token()) ids_.push_back(event.token().id());
      changed_.notify_all();
    }
    const grpc::Status status = call->Finish();
    const std::lock_guard lock(mutex_);
    ended_ = Clock::now();
    status_ = status;
    over_ = true;
    changed_.notify_all();
  });
}

Stream::~Stream() {
  context_.TryCancel();
  reader_.join();
}

void Stream::wait(double seconds, const std::function<bool()>& condition) {
  std::unique_lock lock(mutex_);
  const bool came = changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                                      [&] { return over_ || condition(); });
  EXPECT_TRUE(came && condition())
      << "after " << ids_.size()
      << " tokens: " << (over_ ? status_.error_message() : "still running");
}

void Stream::wait_accepted() {
  wait(60, [this] { return accepted_; });
}

void Stream::wait_prefill(double share) {
  wait(60, [this, share] { return prefilled_ >= share; });
}

void Stream::wait_tokens(size_t n) {
  wait(60, [this, n] { return ids_.size() >= n; });
}

grpc::Status Stream::status(double seconds) {
  wait(seconds, [this] { return over_; });
  const std::lock_guard lock(mutex_);
  return over_ ? status_ : grpc::Status(grpc::StatusCode::UNKNOWN, "the stream hangs");
}

std::vector<uint32_t> Stream::ids() {
  const std::lock_guard lock(mutex_);
  return ids_;
}

Clock::time_point Stream::ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)) {
  workers_.resize(static_cast<size_t>(options_.cp));
  start_front_end();
  for (int rank = 0; rank < options_.cp; ++rank) start_worker(rank);
  wait_serving();
}

void Cluster::start_front_end() {
  front_.reset();
  std::vector<std::string> command = {bench::annulus_binary(),
                                      "serve",
                                      "--model",
                                      options_.model,
                                      "--cp",
                                      absl::StrCat(options_.cp),
                                      "--port",
                                      "0",
                                      "--workers",
                                      "external",
                                      "--threads",
                                      "1",
                                      "--control-listen",
                                      options_.control_host,
                                      "--control-port",
                                      absl::StrCat(control_port_)};
  command.insert(command.end(), options_.serve_flags.begin(), options_.serve_flags.end());
  setenv("ANNULUS_SECRET", "of this test", 1);
  front_ = std::make_unique<Process>(std::move(command));
  ASSERT_TRUE(front_->wait_for_output(absl::StrCat("--rank ", options_.cp - 1))) << front_->err();
  const std::string out = front_->out();
  const size_t at = out.find(':', out.find("--connect ")) + 1;
  control_port_ = std::stoi(out.substr(at));
  epoch_ = 0;
  stub_.reset();
}

void Cluster::start_worker(int rank) {
  std::vector<std::string> command;
  if (options_.prefix) command = options_.prefix(rank);
  for (const std::string& part :
       {bench::annulus_binary(), std::string("worker"), std::string("--connect"),
        absl::StrCat(options_.control_host, ":", control_port_), std::string("--threads"),
        std::string("1"), std::string("--rank"), absl::StrCat(rank)}) {
    command.push_back(part);
  }
  const std::vector<std::string> model = options_.model_flags
                                             ? options_.model_flags(rank)
                                             : std::vector<std::string>{"--model", options_.model};
  command.insert(command.end(), model.begin(), model.end());
  command.insert(command.end(), options_.worker_flags.begin(), options_.worker_flags.end());
  worker(rank) = std::make_unique<Process>(std::move(command));
}

v1::GetClusterResponse Cluster::wait_serving(double seconds) {
  if (!stub_) {
    EXPECT_TRUE(front_->wait_for_output("annulus: ready on ", seconds)) << front_->err();
    const std::string out = front_->out();
    const size_t at = out.find("ready on ") + 9;
    address_ = out.substr(at, out.find(' ', at) - at);
    stub_ = stub_for(address_);
  }
  const v1::GetClusterResponse cluster = testing::wait_serving(*stub_, epoch_, seconds);
  epoch_ = cluster.epoch();
  return cluster;
}

int64_t Cluster::epoch_now() {
  grpc::ClientContext context;
  v1::GetClusterResponse cluster;
  EXPECT_TRUE(stub_->GetCluster(&context, {}, &cluster).ok());
  return cluster.epoch();
}

bool Cluster::healthy() {
  return health_of(address_);
}

std::vector<uint32_t> Cluster::answer(const std::string& text, uint32_t tokens) {
  return answer_of(*stub_, text, tokens);
}

std::vector<uint32_t> answer_of(v1::Inference::Stub& stub, const std::string& text,
                                uint32_t tokens) {
  std::vector<uint32_t> ids;
  for (const float temperature : {0.0f, 1.0f}) {
    v1::GenerateRequest request = ask(text, tokens);
    request.mutable_sampling()->set_temperature(temperature);
    request.mutable_sampling()->set_seed(11);
    Stream stream(stub, request);
    const grpc::Status status = stream.status(120);
    EXPECT_TRUE(status.ok()) << status.error_message();
    for (const uint32_t id : stream.ids()) ids.push_back(id);
  }
  return ids;
}

bool health_of(const std::string& address) {
  namespace health = grpc::health::v1;
  const auto stub =
      health::Health::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  health::HealthCheckResponse response;
  return stub->Check(&context, {}, &response).ok() &&
         response.status() == health::HealthCheckResponse::SERVING;
}

Held held_by(pid_t pid) {
  const std::string proc = absl::StrCat("/proc/", pid);
  int64_t size = 0, resident = 0;
  std::ifstream(proc + "/statm") >> size >> resident;
  return {.descriptors = count_entries((proc + "/fd").c_str()),
          .threads = count_entries((proc + "/task").c_str()),
          .resident_kib = resident * (sysconf(_SC_PAGESIZE) / 1024)};
}

bool own_shared_memory() {
  bench::annulus_binary();  // found by this process's path, which a new mount namespace may change
  return unshare(CLONE_NEWNS | CLONE_NEWIPC) == 0 &&
         mount("", "/", "none", MS_PRIVATE | MS_REC, nullptr) == 0 &&
         mount("tmpfs", "/dev/shm", "tmpfs", 0, nullptr) == 0;
}

int shared_memory_objects() {
  return shared_memory_files() + count_lines("/proc/sysvipc/shm");
}

}  // namespace annulus::testing
