// SPDX-License-Identifier: Apache-2.0
#include "server/app/trace_writer.h"

#include <spdlog/spdlog.h>

#include <optional>
#include <span>
#include <utility>

namespace annulus::server {
namespace {

constexpr size_t kMostWaiting_bytes = size_t{256} << 20;
constexpr std::chrono::seconds kLastWrites{10};  // at the end, of what waits

size_t bytes_of(const TracedStep& step) {
  size_t bytes = 0;
  for (const auto& rank : step.ranks) bytes += std::span(rank).size_bytes();
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::create(
    const std::string& path, const parallel::Topology& topology) {
  auto file = TraceFile::create(path, rank_names(topology));
  if (!file.ok()) return file.status();
  return std::unique_ptr<TraceWriter>(new TraceWriter(*std::move(file)));
}

TraceWriter::TraceWriter(std::unique_ptr<TraceFile> file)
    : file_(std::move(file)), writer_([this] { write_loop(); }) {}

TraceWriter::~TraceWriter() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    end_ = std::chrono::steady_clock::now() + kLastWrites;
  }
  changed_.notify_all();
  writer_.join();
  if (left_out_ > 0) spdlog::warn("--trace: {} steps are not in the file", left_out_);
}

void TraceWriter::add(TracedStep step) {
  {
    const std::lock_guard lock(mutex_);
    const size_t bytes = bytes_of(step);
    if (!waiting_.empty() && waiting_bytes_ + bytes > kMostWaiting_bytes) {
      if (left_out_++ == 0) spdlog::warn("--trace: the disk does not keep up; steps are left out");
      return;
    }
    waiting_bytes_ += bytes;
    waiting_.push_back(std::move(step));
  }
  changed_.notify_all();
}

void TraceWriter::write_loop() {
  std::unique_lock lock(mutex_);
  for (bool whole = true;;) {
    changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    std::optional<TracedStep> step(std::move(waiting_.front()));
    waiting_.pop_front();
    const size_t bytes = bytes_of(*step);
    const bool late = ending_ && std::chrono::steady_clock::now() > end_;
    lock.unlock();
    if (whole && !late) {
      const absl::Status status = file_->add_step(step->name, step->ranks, step->clocks);
      if (!status.ok()) spdlog::error("{}", std::string(status.message()));
      whole = status.ok();
    }
    step.reset();  // megabytes, which nobody should wait for
    lock.lock();
    waiting_bytes_ -= bytes;
    if (!whole || late) ++left_out_;
  }
}

}  // namespace annulus::server
