// SPDX-License-Identifier: Apache-2.0
#include "bench/recall_prompt.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "parallel/sharding.h"

namespace annulus::bench {
namespace {

// First positions of every part of every chunk.
std::set<int64_t> edges_of(const RecallLayout& layout) {
  std::set<int64_t> edges;
  for (int64_t first = 0; first < layout.tokens; first += layout.chunk) {
    const int64_t count = std::min<int64_t>(layout.chunk, layout.tokens - first);
    for (int32_t r = 0; r < layout.cp; ++r) {
      for (const parallel::Span& part : parallel::zigzag(first, count, r, layout.cp)) {
        if (part.count > 0) edges.insert(part.first);
      }
    }
  }
  return edges;
}

}  // namespace

int64_t RecallPrompt::fillers_up_to(int64_t position) const {
  const auto after =
      std::upper_bound(needles.begin(), needles.end(), position,
                       [](int64_t p, const PlacedNeedle& needle) { return p < needle.position; });
  return position + 1 - (after - needles.begin());
}

RecallAnswer RecallPrompt::answer(const RecallCheck& check, bool bf16_cache) const {
  const auto after =
      std::upper_bound(needles.begin(), needles.end(), check.position,
                       [](int64_t p, const PlacedNeedle& needle) { return p < needle.position; });
  return expected(model, check.code, check.position, {needles.begin(), after},
                  fillers_up_to(check.position), bf16_cache);
}

int32_t RecallPrompt::rank_of(int64_t position) const {
  const int64_t first = position / layout.chunk * layout.chunk;
  const int64_t count = std::min<int64_t>(layout.chunk, layout.tokens - first);
  for (int32_t r = 0; r < layout.cp; ++r) {
    for (const parallel::Span& part : parallel::zigzag(first, count, r, layout.cp)) {
      if (part.count > 0 && position >= part.first && position <= part.last()) return r;
    }
  }
  return -1;
}

absl::StatusOr<RecallPrompt> make_recall_prompt(const RecallLayout& layout, int32_t head_dim,
                                                int32_t tp, int32_t least_decoded) {
  RecallPrompt out;
  out.layout = layout;
  std::set<int64_t> places;
  for (const int64_t edge : edges_of(layout)) {
    for (const int64_t p : {edge - 1, edge, edge + 1}) {
      if (p >= 0 && p < layout.tokens) places.insert(p);
    }
  }
  if (places.size() > RecallModel::kMaxNeedles) {
    return absl::InvalidArgumentError(
        absl::StrCat(layout.tokens, " tokens in chunks of ", layout.chunk, " over ", layout.cp,
                     " ranks have ", places.size(), " places for needles, more than the ",
                     RecallModel::kMaxNeedles, " codes: take larger chunks"));
  }
  // Asks fill what is free at the end, as far back as it takes to ask for every needle before them.
  const auto needles = static_cast<int64_t>(places.size());
  int64_t begin = layout.tokens, free = 0, before = needles;
  while (begin > 0 && free < before) {
    --begin;
    places.contains(begin) ? --before : ++free;
  }
  if (free < before || before == 0) {
    return absl::InvalidArgumentError(absl::StrCat(layout.tokens,
                                                   " tokens leave no room to ask for ", needles,
                                                   " needles: take larger chunks"));
  }
  out.model = {.tokens = layout.tokens,
               .context = layout.tokens,
               .needles = static_cast<int32_t>(needles),
               .head_dim = head_dim,
               .tp = tp};
  out.ids.resize(static_cast<size_t>(layout.tokens));
  for (int64_t p = 0; p < layout.tokens; ++p) {
    out.ids[static_cast<size_t>(p)] = static_cast<int32_t>(p * 7 % RecallModel::kFillers);
  }
  for (const int64_t p : places) {
    const auto code = static_cast<int32_t>(out.needles.size());
    out.ids[static_cast<size_t>(p)] = out.model.needle_id(code);
    out.needles.push_back({code, p});
    out.prompt_checks.push_back({p, out.model.own_query(code), false});
  }
  int32_t asked = 0;
  for (int64_t p = begin; p < layout.tokens; ++p) {
    if (places.contains(p) || asked == before) continue;
    out.ids[static_cast<size_t>(p)] = out.model.ask_id(asked);
    out.prompt_checks.push_back({p, asked, true});
    ++asked;
  }
  std::sort(out.prompt_checks.begin(), out.prompt_checks.end(),
            [](const RecallCheck& a, const RecallCheck& b) { return a.position < b.position; });
  const auto ask = [&](int32_t code) {
    out.forced.push_back(out.model.ask_id(code));
    out.decode_checks.push_back(
        {layout.tokens - 1 + static_cast<int64_t>(out.forced.size()), code, true});
  };
  for (int32_t i = 0; i < least_decoded; ++i) {
    ask(static_cast<int32_t>(int64_t{i} * before / std::max(least_decoded, 1)));
  }
  for (auto code = static_cast<int32_t>(before); code < needles; ++code) ask(code);
  out.model.context += static_cast<int64_t>(out.forced.size()) + 1;
  return out;
}

}  // namespace annulus::bench
