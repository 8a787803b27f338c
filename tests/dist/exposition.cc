// SPDX-License-Identifier: Apache-2.0
#include "tests/dist/exposition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <regex>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/dist/socket.h"

namespace annulus::testing {
namespace {

struct Sample {
  std::string name, labels, le;  // labels as written, without le
  double value = 0;
};

absl::StatusOr<double> number(const std::string& text) {
  if (text == "+Inf") return std::numeric_limits<double>::infinity();
  if (text == "Nan")
    return std::numeric_limits<double>::quiet_NaN();  // the library's summary of scrapes, before
                                                      // the first
  double value = 0;
  if (absl::SimpleAtod(text, &value) && std::isfinite(value)) return value;
  return absl::InvalidArgumentError(absl::StrCat("no number: ", text));
}

absl::StatusOr<Sample> parse_sample(const std::string& line) {
  static const std::regex shape(R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+))");
  static const std::regex label(R"re(([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"(,|$))re");
  std::smatch parts;
  if (!std::regex_match(line, parts, shape)) {
    return absl::InvalidArgumentError(absl::StrCat("no sample: ", line));
  }
  Sample out{.name = parts[1], .labels = {}, .le = {}, .value = 0};
  std::set<std::string> names;
  std::string rest = parts[2];
  for (std::smatch one; !rest.empty(); rest = one.suffix()) {
    if (!std::regex_search(rest, one, label, std::regex_constants::match_continuous) ||
        !names.insert(one[1]).second) {
      return absl::InvalidArgumentError(absl::StrCat("no labels: ", line));
    }
    if (one[1] == "le") {
      out.le = one[2];
    } else {
      absl::StrAppend(&out.labels, out.labels.empty() ? "" : ",", one[1].str(), "=\"", one[2].str(),
                      "\"");
    }
  }
  const auto value = number(parts[3]);
  if (!value.ok()) return value.status();
  out.value = *value;
  return out;
}

// A histogram's samples so far, by labels.
struct Buckets {
  double last_bound = -std::numeric_limits<double>::infinity(), last = 0, count = -1;
  bool sum = false;

  bool take(const Sample& sample, std::string_view part) {
    if (part == "_sum") return !std::exchange(sum, true) && std::isfinite(sample.value);
    if (part == "_count") return std::exchange(count, sample.value) < 0;
    const auto bound = number(sample.le);
    if (part != "_bucket" || !bound.ok() || *bound <= last_bound || sample.value < last) {
      return false;
    }
    last_bound = *bound;
    last = sample.value;
    return true;
  }
  bool whole() const { return sum && std::isinf(last_bound) && last == count; }
};

}  // namespace

double Exposition::at(const std::string& series) const {
  const auto it = samples.find(series);
  if (it != samples.end()) return it->second;
  ADD_FAILURE() << "no series " << series;
  return std::numeric_limits<double>::quiet_NaN();
}

absl::StatusOr<Exposition> parse_exposition(std::string_view text) {
  const auto wrong = [](const std::string& line, const char* why) {
    return absl::InvalidArgumentError(absl::StrCat(why, ": ", line));
  };
  static const std::regex help_line("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)");
  static const std::regex type_line(
      "# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary)");
  if (!text.ends_with("\n")) return absl::InvalidArgumentError("no end of line");
  Exposition out;
  std::string helped, family;
  std::map<std::string, Buckets> histograms;  // of the family
  const auto whole = [&] {
    return std::all_of(histograms.begin(), histograms.end(),
                       [](const auto& entry) { return entry.second.whole(); });
  };
  std::istringstream in{std::string(text)};
  for (std::string line; std::getline(in, line);) {
    std::smatch parts;
    if (std::regex_match(line, parts, help_line)) {
      if (!whole()) return wrong(family, "a histogram without +Inf, _sum or _count");
      histograms.clear();
      helped = parts[1];
      family.clear();
    } else if (std::regex_match(line, parts, type_line)) {
      family = parts[1];
      if (family != helped) return wrong(line, "TYPE without HELP");
      if (!out.types.try_emplace(family, parts[2]).second) return wrong(line, "twice");
      if ((parts[2] == "counter") != family.ends_with("_total")) {
        return wrong(line, "counters and no others end in _total");
      }
    } else {
      if (family.empty()) return wrong(line, "neither HELP and TYPE nor a sample of theirs");
      const auto sample = parse_sample(line);
      if (!sample.ok()) return sample.status();
      std::string_view part = sample->name;
      if (!part.starts_with(family)) return wrong(line, "of another family");
      part.remove_prefix(family.size());
      const std::string& type = out.types[family];
      if (type == "histogram") {
        if (!histograms[sample->labels].take(*sample, part)) return wrong(line, "no histogram");
      } else if (!part.empty() && (type != "summary" || (part != "_sum" && part != "_count"))) {
        return wrong(line, "of another family");
      }
      if (type == "counter" && !(sample->value >= 0)) return wrong(line, "a negative counter");
      if (type != "summary" && !std::isfinite(sample->value)) return wrong(line, "no number");
      const std::string series = line.substr(0, line.rfind(' '));
      if (!out.samples.try_emplace(series, sample->value).second) return wrong(line, "twice");
    }
  }
  if (!whole()) return wrong(family, "a histogram without +Inf, _sum or _count");
  return out;
}

int metrics_port(const Process& serve) {
  const std::string words = "annulus: metrics on http://127.0.0.1:";
  EXPECT_TRUE(serve.wait_for_output(words)) << serve.err();
  const std::string out = serve.out();
  return std::stoi(out.substr(out.find(words) + words.size()));
}

std::string http_get(int port, const std::string& path, double seconds) {
  const Socket socket(port);
  if (!socket.connected()) return "";
  socket.write(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
  return socket.read(static_cast<int>(1000 * seconds));
}

Exposition scrape(int port) {
  const std::string answer = http_get(port, "/metrics");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
  // What Prometheus takes for this format where no version is named.
  EXPECT_NE(answer.find("\r\nContent-Type: text/plain;"), std::string::npos) << answer;
  const size_t body = answer.find("\r\n\r\n");
  if (body == std::string::npos) return {};
  const auto parsed = parse_exposition(std::string_view(answer).substr(body + 4));
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.value_or(Exposition{});
}

void expect_nothing_fell(const Exposition& before, const Exposition& after) {
  for (const auto& [series, value] : before.samples) {
    const std::string_view name = std::string_view(series).substr(0, series.find('{'));
    const bool counts = name.ends_with("_total") || name.ends_with("_bucket") ||
                        name.ends_with("_sum") || name.ends_with("_count");
    if (counts) {
      EXPECT_GE(after.at(series), value) << series;
    }
  }
}

}  // namespace annulus::testing
