// SPDX-License-Identifier: Apache-2.0
#include "server/app/trace_writer.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace annulus::server {
namespace {

constexpr size_t kMostWaiting = 256;  // steps; some 100 KB a rank each

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
  }
  changed_.notify_all();
  writer_.join();
  if (left_out_ > 0) spdlog::warn("--trace: {} steps are not in the file", left_out_);
}

void TraceWriter::add(TracedStep step) {
  {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= kMostWaiting) {
      if (left_out_++ == 0) spdlog::warn("--trace: the disk does not keep up; steps are left out");
      return;
    }
    waiting_.push_back(std::move(step));
  }
  changed_.notify_all();
}

void TraceWriter::write_loop() {
  std::unique_lock lock(mutex_);
  for (bool whole = true;;) {
    changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const TracedStep step = std::move(waiting_.front());
    waiting_.pop_front();
    if (!whole) {
      ++left_out_;
      continue;
    }
    lock.unlock();
    const absl::Status status = file_->add_step(step.name, step.ranks, step.clocks);
    if (!status.ok()) spdlog::error("{}", std::string(status.message()));
    lock.lock();
    whole = status.ok();
  }
}

}  // namespace annulus::server
