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
  explicit Replay(std::span<const RankTrace> ranks)
      : ranks_(ranks), clock_(ranks.size(), 0), waited_(ranks.size(), 0), at_(ranks.size()) {}

  // All ranks through one section of theirs. Nothing is in flight between sections.
  void run(size_t section) {
    section_ = section;
    for (At& at : at_) {
      at.record = 0;
      at.posts.clear();
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
      case Record::Kind::kWork: clock_[rank] += record.us; break;
      case Record::Kind::kExchange:
        clock_[rank] += record.us;
        at.posts.push_back(clock_[rank]);
        at.exchange = at.record;
        break;
      case Record::Kind::kAwait: {
        const Record& hop = records(rank)[at.exchange];
        const size_t n = at.posts.size();
        double end = clock_[rank];
        for (const auto& [peer, us] :
             {std::pair(hop.from, hop.in_us), std::pair(hop.to, hop.out_us)}) {
          if (peer < 0) continue;
          const std::vector<double>& theirs = at_[index(peer)].posts;
          if (theirs.size() < n) return false;
          end = std::max(end, std::max(theirs[n - 1], at.posts[n - 1]) + us);
        }
        waited_[rank] += end - clock_[rank];
        clock_[rank] = end;
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
        waited_[rank] += meeting.last - clock_[rank];
        clock_[rank] = meeting.last + record.us + record.out_us;
        at.arrived = false;
        ++at.collectives;
        break;
      }
    }
    ++at.record;
    return true;
  }

  std::span<const RankTrace> ranks_;
  std::vector<double> clock_, waited_;
  std::vector<At> at_;
  std::vector<Meeting> meetings_;
  size_t section_ = 0;
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

StepTimes replay(std::span<const RankTrace> ranks) {
  const size_t sections = ranks[0].sections.size();
  const int32_t repeats = ranks[0].repeats;
  for (const RankTrace& rank : ranks) {
    ANNULUS_CHECK(rank.sections.size() == sections && rank.repeats == repeats, rank.sections.size(),
                  " sections, ", sections);
  }
  Replay run(ranks);
  StepTimes times;
  for (size_t section = 0; section < sections; ++section) {
    const int32_t count = section == 1 ? repeats : 1;
    for (int32_t i = 0; i < count; ++i) {
      const std::vector<double> before = run.clock(), waited = run.waited();
      run.run(section);
      times.layers_run += section > 0 ? 1 : 0;
      if (i + 1 < count && uniform(before, run.clock())) {
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
