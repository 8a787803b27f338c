// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/examination_wire.h"

#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "parallel/examine.h"
#include "server/one_line.h"

namespace annulus::server {
namespace {

constexpr int kMostRounds = 1000, kMostFacts = 64;
constexpr size_t kLongestFact = 256;

}  // namespace

v1::Examination to_proto(const RankExamination& examination) {
  v1::Examination proto;
  for (const auto& [figure, rounds] : examination.figures) {
    (*proto.mutable_figures())[figure].mutable_values()->Assign(rounds.begin(), rounds.end());
  }
  proto.mutable_facts()->insert(examination.facts.begin(), examination.facts.end());
  return proto;
}

absl::StatusOr<RankExamination> from_proto(const v1::Examination& proto) {
  std::set<std::string> known;
  for (size_t i = 0; i < parallel::kFigures; ++i) {
    known.insert(parallel::name(static_cast<parallel::Figure>(i)));
  }
  RankExamination out;
  for (const auto& [figure, samples] : proto.figures()) {
    if (!known.contains(figure) || samples.values_size() > kMostRounds) {
      return absl::InvalidArgumentError(
          absl::StrCat("examination: ", samples.values_size(), " values of ", one_line(figure)));
    }
    for (const double value : samples.values()) {
      if (!std::isfinite(value) || value <= 0) {
        return absl::InvalidArgumentError(absl::StrCat("examination: ", figure, " is ", value));
      }
    }
    out.figures[figure].assign(samples.values().begin(), samples.values().end());
  }
  if (proto.facts_size() > kMostFacts) {
    return absl::InvalidArgumentError(absl::StrCat("examination: ", proto.facts_size(), " facts"));
  }
  for (const auto& [name, value] : proto.facts()) {
    out.facts[one_line(name.substr(0, kLongestFact))] = one_line(value.substr(0, kLongestFact));
  }
  return out;
}

}  // namespace annulus::server
