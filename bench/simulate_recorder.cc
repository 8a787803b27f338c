// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_recorder.h"

#include <algorithm>

#include "kernels/core/check.h"

namespace annulus::bench {

using kernels::VirtualQueue;
using parallel::Bytes;
using parallel::ConstBytes;
using parallel::OpId;
using parallel::Transfer;

namespace {

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

// What both groups have in common: no time, no peers.
class SilentComm : public parallel::Communicator<VirtualQueue> {
 public:
  SilentComm(Recorder& recorder, int32_t rank, int32_t size)
      : recorder_(recorder), rank_(rank), size_(size) {}
  int32_t rank() const override { return rank_; }
  int32_t size() const override { return size_; }
  void progress() override {}
  void set_deadline(std::chrono::steady_clock::time_point) override {}
  void abort(const std::string&) override {}
  int64_t bytes_sent() const override { return sent_; }
  double waited_us() const override { return 0; }

 protected:
  Recorder& recorder_;
  int32_t rank_, size_;
  int64_t sent_ = 0;
};

}  // namespace

// Peers do the same at the same time: an operation is time of this rank's queue.
class Recorder::TpComm final : public SilentComm {
 public:
  TpComm(Recorder& recorder, const Cost& cost, int32_t size)
      : SilentComm(recorder, 0, size), cost_(cost) {}

  void all_reduce(VirtualQueue&, std::span<float> data, const OpId&) override {
    if (size_ == 1 || data.empty()) return;
    recorder_.work(Share::kAllReduce, cost_.all_reduce_us(static_cast<double>(data.size())));
  }
  void all_gather(VirtualQueue&, ConstBytes own, Bytes, std::span<const int64_t>,
                  const OpId&) override {
    if (size_ == 1) return;
    recorder_.work(Share::kAllReduce, cost_.tp_gather_us(static_cast<double>(own.size())));
  }
  void all_to_all(VirtualQueue&, std::span<const ConstBytes>, std::span<const Bytes>,
                  const OpId& op) override {
    ANNULUS_CHECK(false, "all_to_all over TP: ", op.what);
  }
  Transfer exchange(VirtualQueue&, ConstBytes, int32_t, Bytes, int32_t, const OpId& op) override {
    ANNULUS_CHECK(false, "exchange over TP: ", op.what);
    return Transfer();
  }
  void await(VirtualQueue&, Transfer) override {}

 private:
  const Cost& cost_;
};

class Recorder::CpComm final : public SilentComm {
 public:
  CpComm(Recorder& recorder, const Cost& cost, int32_t rank, int32_t size)
      : SilentComm(recorder, rank, size), cost_(cost) {}

  void all_reduce(VirtualQueue&, std::span<float>, const OpId& op) override {
    ANNULUS_CHECK(false, "all_reduce over CP: ", op.what);
  }

  void all_gather(VirtualQueue&, ConstBytes own, Bytes, std::span<const int64_t> bytes,
                  const OpId&) override {
    if (size_ == 1) return;
    double in[2] = {0, 0}, out[2] = {0, 0};  // other nodes, this node
    for (int32_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const bool local = cost_.same_node(r, rank_);
      in[local] += static_cast<double>(bytes[index(r)]);
      out[local] += static_cast<double>(own.size());
    }
    sent(static_cast<int64_t>(own.size()) * (size_ - 1));
    collective(out, in);
  }

  void all_to_all(VirtualQueue&, std::span<const ConstBytes> send, std::span<const Bytes> receive,
                  const OpId&) override {
    if (size_ == 1) return;
    const double scale = cost_.machine().partial_bytes / 4;  // partials are fp32 here
    double in[2] = {0, 0}, out[2] = {0, 0};
    for (int32_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const bool local = cost_.same_node(r, rank_);
      in[local] += static_cast<double>(receive[index(r)].size()) * scale;
      out[local] += static_cast<double>(send[index(r)].size()) * scale;
      sent(static_cast<int64_t>(send[index(r)].size()));
    }
    collective(out, in);
  }

  Transfer exchange(VirtualQueue&, ConstBytes send, int32_t to, Bytes receive, int32_t from,
                    const OpId&) override {
    Record record{.kind = Record::Kind::kExchange};
    if (!send.empty()) {
      record.to = to;
      record.out_us = cost_.wire_us(static_cast<double>(send.size()), rank_, to);
    }
    if (!receive.empty()) {
      record.from = from;
      record.in_us = cost_.wire_us(static_cast<double>(receive.size()), from, rank_);
    }
    sent(static_cast<int64_t>(send.size()));
    const double wire = std::max(record.out_us, record.in_us), overlap = cost_.machine().overlap;
    if (wire > 0) {
      record.us = cost_.hop_us() + (1 - overlap) * wire;
      recorder_.now().transfer_us += cost_.machine().hop_us + wire;
    }
    record.out_us *= overlap;
    record.in_us *= overlap;
    recorder_.call(Share::kHop, record);
    return Transfer(++hops_);
  }
  void await(VirtualQueue&, Transfer transfer) override {
    ANNULUS_CHECK(transfer.release() == hops_, "not the hop in flight");
    recorder_.call(Share::kWait, {.kind = Record::Kind::kAwait});
  }

 private:
  void sent(int64_t bytes) {
    sent_ += bytes;
    recorder_.now().bytes_sent += bytes;
  }
  void collective(const double (&out)[2], const double (&in)[2]) {
    const double wire =
        std::max(cost_.collective_wire_us(out[1], out[0]), cost_.collective_wire_us(in[1], in[0]));
    recorder_.call(
        Share::kCollective,
        {.kind = Record::Kind::kCollective, .us = cost_.collective_us(), .out_us = wire});
  }
  const Cost& cost_;
  uint64_t hops_ = 0;
};

const char* name(Share share) {
  switch (share) {
    case Share::kMatmul: return "matmul";
    case Share::kAttend: return "attention";
    case Share::kRows: return "rows";
    case Share::kPack: return "pack";
    case Share::kMerge: return "merge";
    case Share::kAllReduce: return "tp sum";
    case Share::kHop: return "send";
    case Share::kCollective: return "collective";
    case Share::kWait: return "wait";
  }
  return "unknown";
}

Recorder::Recorder(Cost& cost, parallel::Topology topology, int32_t cp_rank)
    : cost_(cost),
      sections_(1),
      tp_(std::make_unique<TpComm>(*this, cost, topology.tp)),
      cp_(std::make_unique<CpComm>(*this, cost, cp_rank, topology.cp)) {}

Recorder::~Recorder() = default;

parallel::Groups<VirtualQueue> Recorder::groups() {
  // A step asks nothing of the world; measuring would, and is not simulated.
  return {tp_.get(), cp_.get(), tp_.get()};
}

void Recorder::work(Share share, double us) {
  of(now().us, share) += us;
  std::vector<Record>& records = now().records;
  const bool goes_on = !records.empty() && records.back().kind == Record::Kind::kWork &&
                       records.back().share == share;
  if (!goes_on) records.push_back({.share = share});
  records.back().us += us;
}

void Recorder::call(Share share, Record record) {
  record.share = share;
  of(now().us, share) += record.us;
  if (record.kind == Record::Kind::kCollective) of(now().us, share) += record.out_us;
  now().records.push_back(record);
}

void Recorder::matmul(int64_t rows, const kernels::VirtualMatrix& w) {
  if (w.begins_layer()) sections_.emplace_back();
  if (rows == 0) return;
  work(Share::kMatmul, cost_.matmul_us(static_cast<double>(rows), static_cast<double>(w.n()),
                                       static_cast<double>(w.k()), w.bytes_per_weight()));
}

void Recorder::attend(kernels::ConstTensor q, std::span<const kernels::Segment> segments,
                      const kernels::KvFormat& format, const kernels::Partial& acc) {
  double pairs = 0, bytes = 0;
  for (const kernels::Segment& s : segments) {
    const double some =
        visible_pairs({s.q_positions, index(s.q_count)}, {s.kv.positions, index(s.kv.count)});
    pairs += some;
    // Keys that no query sees are not read: the last query sees the most.
    const double seen =
        visible_pairs({s.q_positions + s.q_count - 1, 1}, {s.kv.positions, index(s.kv.count)});
    bytes += seen * static_cast<double>(format.row_bytes());
  }
  if (pairs == 0) return;
  bytes += static_cast<double>(q.rows * q.cols * kernels::size_bytes(q.dtype) + 4 * acc.elements());
  ++now().visits;
  work(Share::kAttend, cost_.attend_us(4 * pairs * acc.heads * acc.head_dim, bytes));
}

void Recorder::merge(int64_t partial_elements) {
  if (partial_elements == 0) return;
  const double width = cost_.machine().partial_bytes;
  work(Share::kMerge, cost_.rows_us(0, 3 * width * static_cast<double>(partial_elements)));
}

void Recorder::rows(int64_t activations, int64_t bytes) {
  if (activations == 0 && bytes == 0) return;
  work(activations == 0 ? Share::kPack : Share::kRows,
       cost_.rows_us(static_cast<double>(activations), static_cast<double>(bytes)));
}

}  // namespace annulus::bench
