// SPDX-License-Identifier: Apache-2.0
// A front end and workers that attach to it, each a process that a test may kill, stop and start
// again (Cluster), an answer that is read meanwhile (Stream), and what processes hold (Held). Used
// by one thread; a Stream reads in one of its own. Every wait has an end and fails the test there.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "annulus/v1/inference.grpc.pb.h"
#include "tests/dist/command.h"

namespace annulus::testing {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start);
bool eventually(double seconds, const std::function<bool()>& condition);

// One answer as it comes.
class Stream {
 public:
  Stream(v1::Inference::Stub& stub, v1::GenerateRequest request);
  ~Stream();  // cancels

  void wait_accepted();
  void wait_prefill(double share);  // of the prompt
  void wait_tokens(size_t n);
  // Waits for its end.
  grpc::Status status(double seconds = 60);
  std::vector<uint32_t> ids();
  Clock::time_point ended();  // after status()

 private:
  void wait(double seconds, const std::function<bool()>& condition);

  grpc::ClientContext context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool accepted_ = false, over_ = false;
  double prefilled_ = 0;
  std::vector<uint32_t> ids_;
  grpc::Status status_;
  Clock::time_point ended_;
  std::thread reader_;
};

// Greedy, then sampled with a seed, each to its end: equal ids mean equal logits, nearly.
std::vector<uint32_t> answer_of(v1::Inference::Stub& stub, const std::string& text,
                                uint32_t tokens);

struct ClusterOptions {
  std::string model;
  int cp = 2;
  std::vector<std::string> serve_flags;
  std::string control_host = "127.0.0.1";
  // What a rank's command begins with, for example a network namespace; empty: nothing.
  std::function<std::vector<std::string>(int rank)> prefix;
  std::vector<std::string> worker_flags;
  // Where a rank has its model; empty: --model of the front end.
  std::function<std::vector<std::string>(int rank)> model_flags;
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options);  // starts everything and waits until it serves

  void start_front_end();  // the first time on any control port, later on the same
  void start_worker(int rank);
  v1::GetClusterResponse wait_serving(double seconds = 60);  // in an epoch after the last one seen
  bool healthy();                                            // grpc.health.v1
  std::vector<uint32_t> answer(const std::string& text, uint32_t tokens);

  Process& front() { return *front_; }
  std::unique_ptr<Process>& worker(int rank) { return workers_[static_cast<size_t>(rank)]; }
  v1::Inference::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }
  int64_t epoch() const { return epoch_; }  // the last one seen
  int64_t epoch_now();
  int control_port() const { return control_port_; }

 private:
  ClusterOptions options_;
  int control_port_ = 0;
  std::unique_ptr<Process> front_;
  std::vector<std::unique_ptr<Process>> workers_;
  std::string address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  int64_t epoch_ = 0;
};

// grpc.health.v1.Health/Check of the whole server: SERVING?
bool health_of(const std::string& address);

struct Held {  // by a process
  int descriptors = 0, threads = 0;
  int64_t resident_kib = 0;
};
Held held_by(pid_t pid);

// From now on this process and those it starts have a /dev/shm and System V segments of their own,
// so that others do not disturb their count. False: not permitted. Before other threads start.
bool own_shared_memory();
// Files in /dev/shm and System V segments.
int shared_memory_objects();

}  // namespace annulus::testing
