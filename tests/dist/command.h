// SPDX-License-Identifier: Apache-2.0
// Processes of the program under test, and questions about them. A Process is killed with its
// object; every wait has an end.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "annulus/v1/inference.grpc.pb.h"

namespace annulus::testing {

struct Outcome {
  int code = -1;  // 128 + signal where one ended it; -1: it did not end in time and was killed
  std::string out, err;
};

class Process {
 public:
  explicit Process(std::vector<std::string> arguments, const std::string& input = "");
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  // The text so far.
  std::string out() const;
  std::string err() const;
  bool wait_for_output(const std::string& text, double seconds = 30) const;  // on stdout
  Outcome wait(double seconds = 30);

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

// `annulus` with these arguments, to its end.
Outcome annulus(std::vector<std::string> arguments, const std::string& input = "");

int lines(const std::string& text);

std::vector<pid_t> threads_of(pid_t pid);
std::vector<pid_t> children_of(pid_t pid);
bool gone(pid_t pid);  // or a zombie
bool wait_gone(pid_t pid, double seconds);
int shared_memory_files();

// A GGUF file of the tiny model, written once.
std::string tiny_model_file();
// The real one; fails the test with the way to get it.
std::string real_model_file();

std::unique_ptr<v1::Inference::Stub> stub_for(const std::string& address);
// Until it serves in an epoch after `epoch`.
v1::GetClusterResponse wait_serving(v1::Inference::Stub& stub, int64_t after_epoch,
                                    double seconds = 20);
v1::GenerateRequest ask(const std::string& text, uint32_t max_tokens);

}  // namespace annulus::testing
