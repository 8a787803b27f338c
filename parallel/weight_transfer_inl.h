// SPDX-License-Identifier: Apache-2.0
// weight_transfer.h, instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "parallel/model/weights_inl.h"
#include "parallel/weight_transfer.h"

namespace annulus::parallel {
namespace weight_transfer {

using Clock = std::chrono::steady_clock;

// Long enough that a piece's latency is small beside it, short enough that a chain fills quickly.
constexpr size_t kPieceBytes = size_t{4} << 20;
// Without a piece: the front end has long ended the epoch.
constexpr auto kPatience = std::chrono::minutes(10);
constexpr auto kLongestLoad = std::chrono::hours(24);
constexpr int32_t kLayer = 1022;  // of message tags; above the layers of any model

// One rank's place in the chain. Parts are passed in the same order by all its ranks.
template <class Queue>
class Relay {
 public:
  Relay(Queue& queue, Communicator<Queue>& cp, const WeightRoute& route)
      : queue_(queue), cp_(cp), route_(route) {
    queue_.set_poll([&cp] { cp.progress(); });
  }
  ~Relay() { queue_.set_poll(nullptr); }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  void send(ConstBytes bytes) { pass(bytes, {}); }
  // Each piece is sent on, where somebody follows, while the next one arrives.
  void receive(Bytes bytes, const std::function<void(size_t piece_bytes)>& arrived) {
    pass(bytes, bytes, arrived);
  }

 private:
  void pass(ConstBytes out, Bytes in, const std::function<void(size_t)>& arrived = {}) {
    const auto piece = [](auto bytes, size_t first) {
      return first < bytes.size()
                 ? bytes.subspan(first, std::min(kPieceBytes, bytes.size() - first))
                 : bytes.first(0);
    };
    const bool receives = route_.from >= 0, sends = route_.to >= 0;
    const size_t lag = receives ? kPieceBytes : 0, end = out.size() + (sends ? lag : 0);
    const int32_t to = sends ? route_.to : route_.from, from = receives ? route_.from : route_.to;
    // One name for all pieces of a part: what a rank receives and what it sends on in one exchange
    // are different ones. Each is awaited before the next, and messages of one name keep their
    // order.
    const OpId op{.step = part_++, .layer = kLayer, .what = "weights"};
    for (size_t at = 0; at < end; at += kPieceBytes) {
      const Bytes next = piece(in, at);
      const ConstBytes last = sends && at >= lag ? piece(out, at - lag) : ConstBytes{};
      cp_.set_deadline(Clock::now() + kPatience);
      cp_.await(queue_, cp_.exchange(queue_, last, to, next, from, op));
      if (arrived && !next.empty()) arrived(next.size());
    }
    queue_.finish(Clock::now() + kPatience);
  }

  Queue& queue_;
  Communicator<Queue>& cp_;
  const WeightRoute route_;
  int64_t part_ = 0;
};

// A copy in the device's memory that lives as long as the queue.
template <class Queue, class T>
std::span<T> on_device(Queue& queue, std::span<const T> values) {
  const std::span<T> out(queue.template scratch<T>(static_cast<int64_t>(values.size())),
                         values.size());
  if constexpr (Queue::kHostMemory) {
    std::copy(values.begin(), values.end(), out.begin());
  } else {
    queue.write(reinterpret_cast<std::byte*>(out.data()), values.data(),
                static_cast<int64_t>(values.size_bytes()));
  }
  return out;
}

// Row scales stand behind the rows.
inline int64_t scale_bytes(const kernels::WeightSource& table) {
  const bool scaled = table.format == kernels::WeightFormat::kF8E4M3;
  return scaled ? table.rows * static_cast<int64_t>(sizeof(float)) : 0;
}

template <class Queue>
void send_table(Relay<Queue>& relay, const kernels::WeightSource& table) {
  const auto bytes = static_cast<size_t>(source_bytes(table));
  ANNULUS_CHECK(table.row_stride_bytes * table.rows == source_bytes(table),
                "rows of a generated model do not follow each other");
  relay.send({table.data, bytes});
  if (scale_bytes(table) > 0) {
    relay.send({table.row_scales, static_cast<size_t>(scale_bytes(table))});
  }
}

// Matrices that have been read and wait to be sent.
class Outbox {
 public:
  void push(ConstBytes matrix) {
    const std::lock_guard lock(mutex_);
    matrices_.push_back(matrix);
    changed_.notify_one();
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_one();
  }
  std::optional<ConstBytes> pop() {  // nullopt: there are no more
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !matrices_.empty(); });
    if (matrices_.empty()) return std::nullopt;
    const ConstBytes first = matrices_.front();
    matrices_.pop_front();
    return first;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ConstBytes> matrices_;
  bool closed_ = false;
};

}  // namespace weight_transfer

template <class Queue>
void send_weights(Queue& queue, Communicator<Queue>& cp, const WeightWish& wish,
                  const LlamaWeights<Queue>& weights) {
  weight_transfer::Relay<Queue> relay(queue, cp, wish.route);
  const std::vector<float> norms = norms_of(weights);
  relay.send(std::as_bytes(weight_transfer::on_device(queue, std::span<const float>(norms))));
  if constexpr (Queue::kHostMemory) {
    if (wish.route.table) send_table(relay, weights.embedding);
  }
  int64_t done = 0, total = 0;
  const std::vector<ConstBytes> matrices = matrices_of(weights);
  for (const ConstBytes matrix : matrices) total += static_cast<int64_t>(matrix.size());
  for (const ConstBytes matrix : matrices) {
    relay.send(matrix);
    done += static_cast<int64_t>(matrix.size());
    if (wish.progress) wish.progress(done, total);
  }
}

template <class Queue>
absl::Status receive_weights(Queue& queue, Communicator<Queue>& cp, const WeightWish& wish,
                             LlamaWeights<Queue>& weights) {
  using Matrix = typename Queue::Matrix;
  const Checkpoint& checkpoint = wish.checkpoint;
  if (absl::Status tp = check_tp(checkpoint.config(), wish.tp); !tp.ok()) return tp;
  const RankSlice slice = slice_rank(checkpoint, wish.tp_rank, wish.tp);
  const kernels::WeightSource& table = checkpoint.tensors().embedding;
  const bool takes_table = wish.route.table && Queue::kHostMemory;
  weights.layers.resize(slice.layers.size());

  int64_t done = 0, total = takes_table ? source_bytes(table) : 0;
  each_matrix(checkpoint, slice, weights, [&](auto sources, const auto&) {
    total += Matrix::bytes_of(sources, wish.precision);
  });
  const auto arrived = [&](size_t bytes) {
    done += static_cast<int64_t>(bytes);
    if (wish.progress) wish.progress(done, total);
  };
  weight_transfer::Relay<Queue> relay(queue, cp, wish.route);

  const auto count = static_cast<size_t>(checkpoint.config().dim) * (1 + 2 * slice.layers.size());
  const std::span<float> there(queue.template scratch<float>(static_cast<int64_t>(count)), count);
  relay.receive(std::as_writable_bytes(there), {});
  std::vector<float> norms(count);
  queue.download(std::span(norms), there.data());
  queue.finish(weight_transfer::Clock::now() + weight_transfer::kPatience);
  set_norms(queue, norms, weights);

  if (takes_table) {
    const int64_t rows = source_bytes(table), scales = weight_transfer::scale_bytes(table);
    weights.file_table = typename Queue::Memory(rows + scales, " of the embedding table");
    weights.bytes += rows + scales;
    relay.receive({weights.file_table.data(), static_cast<size_t>(rows)}, arrived);
    if (scales > 0) {
      relay.receive({weights.file_table.data() + rows, static_cast<size_t>(scales)}, {});
    }
  }
  // Each one is in its place before its bytes come: it must outlive a transfer that fails.
  each_matrix(checkpoint, slice, weights, [&](auto sources, Matrix& matrix) {
    matrix = Matrix::room(sources, wish.precision);
    weights.bytes += matrix.bytes();
    relay.receive(matrix.contents(), arrived);
  });
  set_embedding(checkpoint, weights);
  weights.whole = true;
  return absl::OkStatus();
}

template <class Queue>
absl::Status read_weights(Queue& queue, const std::function<std::unique_ptr<Queue>()>& loader,
                          Communicator<Queue>& cp, const WeightWish& wish,
                          LlamaWeights<Queue>& weights) {
  const auto read = [&](const OnMatrix& on_matrix) {
    return load_weights_into(*loader(), wish.checkpoint, wish.tp_rank, wish.tp, wish.precision,
                             wish.progress, on_matrix, weights);
  };
  if (wish.route.to < 0) return read({});
  weight_transfer::Outbox outbox;
  auto reading = std::async(std::launch::async, [&] {
    const absl::Cleanup close = [&] { outbox.close(); };
    return read([&](ConstBytes matrix) { outbox.push(matrix); });
  });
  std::exception_ptr lost;  // a receiver
  try {
    weight_transfer::Relay<Queue> relay(queue, cp, wish.route);
    const ModelTensors& tensors = wish.checkpoint.tensors();
    const std::vector<float> norms = join_norms(tensors.output_norm, tensors.layers);
    relay.send(std::as_bytes(weight_transfer::on_device(queue, std::span<const float>(norms))));
    if (wish.route.table && Queue::kHostMemory) send_table(relay, tensors.embedding);
    while (const std::optional<ConstBytes> matrix = outbox.pop()) relay.send(*matrix);
  } catch (const kernels::DeviceError&) {
    lost = std::current_exception();
  }
  if (absl::Status loaded = reading.get(); !loaded.ok()) return loaded;
  if (lost) std::rethrow_exception(lost);
  return absl::OkStatus();
}

template <class Queue>
absl::Status compare_weights(Queue& queue, Communicator<Queue>& world, const Topology& topology,
                             uint64_t digest) {
  const auto deadline = weight_transfer::Clock::now() + weight_transfer::kLongestLoad;
  const auto ranks = static_cast<size_t>(topology.world());
  const auto own = weight_transfer::on_device(queue, std::span<const uint64_t>(&digest, 1));
  const std::span<uint64_t> all(queue.template scratch<uint64_t>(topology.world()), ranks);
  const std::vector<int64_t> bytes(ranks, sizeof digest);
  queue.set_poll([&world] { world.progress(); });
  const absl::Cleanup no_poll = [&] { queue.set_poll(nullptr); };
  world.set_deadline(deadline);
  world.all_gather(queue, std::as_bytes(own), std::as_writable_bytes(all), bytes,
                   {.layer = weight_transfer::kLayer, .what = "digests of weights"});
  std::vector<uint64_t> digests(ranks);
  queue.download(std::span(digests), all.data());
  queue.finish(deadline);
  for (int32_t rank = topology.tp; rank < topology.world(); ++rank) {
    const int32_t first = topology.tp_rank(rank);
    if (digests[static_cast<size_t>(rank)] == digests[static_cast<size_t>(first)]) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("ranks ", first, " and ", rank,
                     " hold different weights of the same slice: give both the same model file"));
  }
  return absl::OkStatus();
}

}  // namespace annulus::parallel
