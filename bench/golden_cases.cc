// SPDX-License-Identifier: Apache-2.0
#include "bench/golden_cases.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace annulus::bench {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<json>> read_lines(const std::string& path) {
  std::ifstream in(path);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<json> lines;
  for (std::string line; std::getline(in, line);) {
    if (line.empty()) continue;
    json parsed = json::parse(line, nullptr, false);
    if (!parsed.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", lines.size() + 1, ": not a JSON object"));
    }
    lines.push_back(std::move(parsed));
  }
  return lines;
}

std::vector<std::vector<int32_t>> top_ids(const json& positions) {
  std::vector<std::vector<int32_t>> out;
  for (const json& p : positions) out.push_back(p.at("top_ids").get<std::vector<int32_t>>());
  return out;
}

json to_json(const std::vector<GoldenPosition>& positions) {
  json out = json::array();
  for (const GoldenPosition& p : positions)
    out.push_back({{"argmax", p.argmax}, {"logprobs", p.logprobs}});
  return out;
}

std::vector<GoldenPosition> positions_of(const json& list) {
  std::vector<GoldenPosition> out;
  for (const json& p : list)
    out.push_back({p.at("argmax"), p.at("logprobs").get<std::vector<double>>()});
  return out;
}

}  // namespace

absl::StatusOr<std::vector<GoldenCase>> read_cases(const std::string& path) {
  absl::StatusOr<std::vector<json>> lines = read_lines(path);
  if (!lines.ok()) return lines.status();
  std::vector<GoldenCase> cases;
  try {
    for (const json& line : *lines) {
      GoldenCase c;
      c.name = line.at("name");
      c.prompt_ids = line.at("prompt_ids").get<std::vector<int32_t>>();
      c.nll = line.contains("losses");
      if (!c.nll) {
        c.ids = line.at("ids").get<std::vector<int32_t>>();
        c.step_top_ids = top_ids(line.at("steps"));
        c.probe_positions = line.at("probe_positions").get<std::vector<int64_t>>();
        c.probe_top_ids = top_ids(line.at("probes"));
        c.session = line.value("session", "");
        c.reused = line.value("reused", int64_t{0});
        c.batch = line.value("batch", "");
      }
      cases.push_back(std::move(c));
    }
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", cases.size() + 1, ": ", error.what()));
  }
  return cases;
}

absl::Status write_answers(const std::string& path, const std::vector<GoldenAnswer>& answers) {
  std::ofstream out(path);
  for (const GoldenAnswer& a : answers) {
    json line = {{"name", a.name}};
    if (a.mean) {
      line["mean"] = *a.mean;
      line["block_means"] = a.block_means;
    } else if (!a.ids.empty()) {
      line["ids"] = a.ids;
    } else {
      line["steps"] = to_json(a.steps);
      if (!a.probes.empty()) line["probes"] = to_json(a.probes);
    }
    out << line.dump() << "\n";
  }
  out.flush();
  return out ? absl::OkStatus() : absl::UnknownError(absl::StrCat(path, ": cannot be written"));
}

absl::StatusOr<std::vector<GoldenAnswer>> read_answers(const std::string& path) {
  absl::StatusOr<std::vector<json>> lines = read_lines(path);
  if (!lines.ok()) return lines.status();
  std::vector<GoldenAnswer> answers;
  try {
    for (const json& line : *lines) {
      GoldenAnswer a;
      a.name = line.at("name");
      if (line.contains("steps")) a.steps = positions_of(line["steps"]);
      if (line.contains("probes")) a.probes = positions_of(line["probes"]);
      if (line.contains("ids")) a.ids = line["ids"].get<std::vector<int32_t>>();
      if (line.contains("mean")) a.mean = line["mean"].get<double>();
      if (line.contains("block_means"))
        a.block_means = line["block_means"].get<std::vector<double>>();
      answers.push_back(std::move(a));
    }
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", answers.size() + 1, ": ", error.what()));
  }
  return answers;
}

absl::StatusOr<double> worst_difference(const std::vector<GoldenAnswer>& a,
                                        const std::vector<GoldenAnswer>& b) {
  std::map<std::string, const GoldenAnswer*> other;
  for (const GoldenAnswer& answer : b) other[answer.name] = &answer;
  double worst = 0;
  int64_t compared = 0;
  for (const GoldenAnswer& mine : a) {
    if (!other.contains(mine.name)) continue;
    const GoldenAnswer& theirs = *other[mine.name];
    const std::pair<const std::vector<GoldenPosition>*, const std::vector<GoldenPosition>*>
        lists[] = {{&mine.steps, &theirs.steps}, {&mine.probes, &theirs.probes}};
    for (const auto& [x, y] : lists) {
      if (x->empty() || y->empty()) continue;
      if (x->size() != y->size())
        return absl::InvalidArgumentError(absl::StrCat(mine.name, ": other positions"));
      for (size_t p = 0; p < x->size(); ++p) {
        for (size_t i = 0; i < (*x)[p].logprobs.size(); ++i) {
          worst = std::max(worst, std::abs((*x)[p].logprobs[i] - (*y)[p].logprobs.at(i)));
          ++compared;
        }
      }
    }
    for (size_t i = 0; mine.mean && theirs.mean && i < mine.block_means.size(); ++i) {
      worst = std::max(worst, std::abs(mine.block_means[i] - theirs.block_means.at(i)));
      ++compared;
    }
  }
  if (compared == 0) return absl::InvalidArgumentError("the two answer files share no case");
  return worst;
}

void summarise_losses(const std::vector<double>& losses, GoldenAnswer& answer) {
  constexpr size_t kBlock = 512;
  double sum = 0, block = 0;
  size_t in_block = 0;
  answer.block_means.clear();
  for (size_t i = 0; i < losses.size(); ++i) {
    sum += losses[i];
    block += losses[i];
    ++in_block;
    if ((i + 2) % kBlock == 0 || i + 1 == losses.size()) {
      answer.block_means.push_back(block / static_cast<double>(in_block));
      block = 0;
      in_block = 0;
    }
  }
  answer.mean = losses.empty() ? 0 : sum / static_cast<double>(losses.size());
}

}  // namespace annulus::bench
