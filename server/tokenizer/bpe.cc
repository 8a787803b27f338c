// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/bpe.h"

#include <algorithm>
#include <tuple>

namespace annulus::server {
namespace {

using Symbol = Bpe::Scratch::Symbol;
using Candidate = Bpe::Scratch::Candidate;

bool joins_later(const Candidate& a, const Candidate& b) {
  return std::tie(a.rank, a.at) > std::tie(b.rank, b.at);
}

}  // namespace

bool Bpe::push_candidate(int32_t at, Scratch& scratch) const {
  const Symbol& left = scratch.symbols[static_cast<size_t>(at)];
  if (left.next < 0) return false;
  const int32_t right = scratch.symbols[static_cast<size_t>(left.next)].id;
  const auto rule = rules_.find(key(left.id, right));
  if (rule == rules_.end()) return false;
  scratch.heap.push_back({rule->second.rank, at, left.id, right, rule->second.result});
  return true;
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id < 0) continue;
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  for (size_t i = 0; i < symbols.size(); ++i) push_candidate(static_cast<int32_t>(i), scratch);
  std::make_heap(heap.begin(), heap.end(), joins_later);
  const auto offer = [&](int32_t at) {
    if (at >= 0 && push_candidate(at, scratch))
      std::push_heap(heap.begin(), heap.end(), joins_later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), joins_later);
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    if (left.id != best.left || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].prev = best.at;
    offer(left.prev);
    offer(best.at);
  }
  for (int32_t at = 0; at >= 0; at = symbols[static_cast<size_t>(at)].next)
    ids.push_back(symbols[static_cast<size_t>(at)].id);
}

}  // namespace annulus::server
