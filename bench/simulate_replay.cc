// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_replay.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"

namespace annulus::bench {
namespace {

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

class Replay {
 public:
  Replay(std::span<const RankTrace> ranks, RankIntervals* intervals)
      : ranks_(ranks),
        clock_(ranks.size(), 0),
        waited_(ranks.size(), 0),
        at_(ranks.size()),
        intervals_(intervals) {}

  // All ranks through one section of theirs. Nothing is in flight between sections.
  void run(size_t section, int32_t layer) {
    section_ = section;
    layer_ = layer;
    for (At& at : at_) {
      at.record = 0;
      at.posts.clear();
      at.awaited = 0;
      at.collectives = 0;
      at.arrived = false;
    }
    meetings_.clear();
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t rank = 0; rank < ranks_.size(); ++rank) {
        while (step(rank)) moved = true;
      }
    }
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      ANNULUS_CHECK(at_[rank].record == records(rank).size(), "cp rank ", rank,
                    " waits for ever at record ", at_[rank].record, " of section ", section);
    }
  }

  std::vector<double>& clock() { return clock_; }
  std::vector<double>& waited() { return waited_; }

 private:
  struct At {
    size_t record = 0;
    std::vector<double> posts;  // when this rank came to its exchanges
    size_t exchange = 0;        // record of the last one
    size_t awaited = 0;         // of them
    size_t collectives = 0;
    bool arrived = false;
  };
  struct Meeting {
    size_t ranks = 0;
    double last = 0;
  };

  const std::vector<Record>& records(size_t rank) const {
    return ranks_[rank].sections[section_].records;
  }

  bool step(size_t rank) {
    At& at = at_[rank];
    if (at.record == records(rank).size()) return false;
    const Record& record = records(rank)[at.record];
    switch (record.kind) {
      case Record::Kind::kWork: spend(rank, record.share, record.us); break;
      case Record::Kind::kExchange:
        spend(rank, record.share, record.us);
        at.posts.push_back(clock_[rank]);
        at.exchange = at.record;
        break;
      case Record::Kind::kAwait: {
        const Record& hop = records(rank)[at.exchange];
        const size_t n = at.posts.size();
        double end = at.posts[n - 1];
        for (const auto& [peer, us] :
             {std::pair(hop.from, hop.in_us), std::pair(hop.to, hop.out_us)}) {
          if (peer < 0) continue;
          const std::vector<double>& theirs = at_[index(peer)].posts;
          if (theirs.size() < n) return false;
          end = std::max(end, std::max(theirs[n - 1], at.posts[n - 1]) + us);
        }
        if (hop.to >= 0 || hop.from >= 0) flew(rank, hop, end);
        ++at.awaited;
        wait_until(rank, end);
        break;
      }
      case Record::Kind::kCollective: {
        if (meetings_.size() <= at.collectives) meetings_.resize(at.collectives + 1);
        Meeting& meeting = meetings_[at.collectives];
        if (!at.arrived) {
          at.arrived = true;
          ++meeting.ranks;
          meeting.last = std::max(meeting.last, clock_[rank]);
        }
        if (meeting.ranks < ranks_.size()) return false;
        wait_until(rank, meeting.last);
        if (intervals_ != nullptr) {
          add(rank, kernels::Interval::Lane::kTransfer, record.share, clock_[rank],
              clock_[rank] + record.us + record.out_us);
        }
        spend(rank, record.share, record.us + record.out_us);
        at.arrived = false;
        ++at.collectives;
        break;
      }
    }
    ++at.record;
    return true;
  }

  void spend(size_t rank, Share share, double us) {
    const double begin = clock_[rank];
    clock_[rank] += us;
    if (intervals_ == nullptr || us <= 0) return;
    kernels::Interval& interval =
        add(rank, kernels::Interval::Lane::kCompute, share, begin, clock_[rank]);
    const At& at = at_[rank];
    if (share != Share::kAttend || at.posts.empty()) return;
    // While hop h + 1 is in flight, payload h is looked at; behind the last hop, the last payload.
    const bool flying = at.posts.size() > at.awaited;
    interval.hop = static_cast<int32_t>(flying ? (at.posts.size() - 1) % hops() : hops());
  }
  void wait_until(size_t rank, double end) {
    if (end <= clock_[rank]) return;
    waited_[rank] += end - clock_[rank];
    spend(rank, Share::kWait, end - clock_[rank]);
    clock_[rank] = end;
  }
  void flew(size_t rank, const Record& hop, double end) {
    if (intervals_ == nullptr) return;
    const std::vector<double>& posts = at_[rank].posts;
    kernels::Interval& interval =
        add(rank, kernels::Interval::Lane::kTransfer, Share::kHop, posts.back(), end);
    interval.hop = static_cast<int32_t>((posts.size() - 1) % hops() + 1);
    interval.sequence = static_cast<int32_t>((posts.size() - 1) / hops());
    interval.to = hop.to;
    interval.from = hop.from;
  }
  size_t hops() const { return ranks_.size() - 1; }  // of a ring
  kernels::Interval& add(size_t rank, kernels::Interval::Lane lane, Share share, double begin_us,
                         double end_us) {
    kernels::Interval interval{.begin_ns = std::llround(begin_us * 1e3),
                               .end_ns = std::llround(end_us * 1e3)};
    interval.lane = lane;
    interval.layer = layer_;
    interval.set_name(
        lane == kernels::Interval::Lane::kTransfer && share == Share::kHop ? "ring" : name(share));
    return (*intervals_)[rank].emplace_back(interval);
  }

  std::span<const RankTrace> ranks_;
  std::vector<double> clock_, waited_;
  std::vector<At> at_;
  std::vector<Meeting> meetings_;
  RankIntervals* intervals_;
  size_t section_ = 0;
  int32_t layer_ = -1;
};

// Every rank moved by the same time, to a billionth of it.
bool uniform(const std::vector<double>& before, const std::vector<double>& after) {
  const double first = after[0] - before[0];
  for (size_t r = 1; r < after.size(); ++r) {
    if (std::abs(after[r] - before[r] - first) > 1e-9 * (std::abs(first) + 1)) return false;
  }
  return true;
}

}  // namespace

StepTimes replay(std::span<const RankTrace> ranks, RankIntervals* intervals) {
  const size_t sections = ranks[0].sections.size();
  const int32_t repeats = ranks[0].repeats;
  for (const RankTrace& rank : ranks) {
    ANNULUS_CHECK(rank.sections.size() == sections && rank.repeats == repeats, rank.sections.size(),
                  " sections, ", sections);
  }
  if (intervals != nullptr) intervals->resize(ranks.size());
  Replay run(ranks, intervals);
  StepTimes times;
  for (size_t section = 0; section < sections; ++section) {
    const int32_t count = section == 1 ? repeats : 1;
    for (int32_t i = 0; i < count; ++i) {
      const std::vector<double> before = run.clock(), waited = run.waited();
      run.run(section, section > 0 ? times.layers_run++ : -1);
      if (intervals == nullptr && i + 1 < count && uniform(before, run.clock())) {
        const double rest = count - i - 1;
        for (size_t r = 0; r < ranks.size(); ++r) {
          run.clock()[r] += rest * (run.clock()[r] - before[r]);
          run.waited()[r] += rest * (run.waited()[r] - waited[r]);
        }
        break;
      }
    }
  }
  times.rank_us = run.clock();
  times.us = *std::max_element(times.rank_us.begin(), times.rank_us.end());
  const double n = static_cast<double>(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    double sent = 0;
    for (size_t s = 0; s < sections; ++s) {
      const Section& section = ranks[r].sections[s];
      const double count = s == 1 ? repeats : 1;
      for (size_t i = 0; i < kShares; ++i) times.mean[i] += count * section.us[i] / n;
      times.transfer_us += count * section.transfer_us / n;
      times.visits += count * static_cast<double>(section.visits) / n;
      sent += count * static_cast<double>(section.bytes_sent);
    }
    of(times.mean, Share::kWait) += run.waited()[r] / n;
    times.bytes_sent = std::max(times.bytes_sent, sent);
  }
  return times;
}

}  // namespace annulus::bench
