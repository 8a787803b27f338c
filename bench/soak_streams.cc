// SPDX-License-Identifier: Apache-2.0
#include "bench/soak_streams.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/server_process.h"

namespace annulus::bench {
namespace {

using Random = std::mt19937_64;

int draw(Random& random, int from, int to) {
  return std::uniform_int_distribution<int>(from, to)(random);
}

// As many short ones as long ones, by order of magnitude.
int draw_length(Random& random, int longest) {
  const double log = std::uniform_real_distribution<>(0, std::log(longest))(random);
  return std::clamp(static_cast<int>(std::exp(log)), 1, longest);
}

std::vector<int32_t> slice(const std::vector<int32_t>& ids, int count, Random& random) {
  const int first = draw(random, 0, static_cast<int>(ids.size()) - count);
  return {ids.begin() + first, ids.begin() + first + count};
}

v1::GenerateRequest request_of(const Turn& turn, const std::string& session, bool append) {
  v1::GenerateRequest request;
  request.set_packed_tokens(pack_tokens(turn.prompt));
  request.set_session(session);
  request.set_append(append);
  request.set_max_tokens(static_cast<uint32_t>(turn.max_tokens));
  request.set_ignore_eos(true);
  return request;
}

// A cancelled request may still be on its way out when its session is closed.
absl::Status close_when_idle(const Client& client, const std::string& session) {
  absl::Status status;
  for (int i = 0; i < 600; ++i) {
    status = client.close_session(session);
    if (status.ok() || status.code() == absl::StatusCode::kNotFound) return absl::OkStatus();
    if (status.code() != absl::StatusCode::kFailedPrecondition) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return status;
}

double least_lead(const Answer& answer) {
  double least = INFINITY;
  for (const v1::Token& token : answer.tokens) {
    if (token.top_size() < 2) return 0;
    least = std::min<double>(least, token.top(0).logprob() - token.top(1).logprob());
  }
  return least;
}

// How a call is cut short by its client. Zero: it is not.
struct Cut {
  int after_events = 0;
  double deadline_s = 0;
};

struct Said {
  std::vector<uint32_t> ids;
  std::string text, reason;
};

// "" where the answer is the known one, or (whole = false) a beginning of it.
std::string difference(const Turn& turn, const Said& said, bool whole) {
  if (said.ids.size() > turn.ids.size() || (whole && said.ids.size() != turn.ids.size()))
    return absl::StrCat(said.ids.size(), " tokens, alone ", turn.ids.size());
  for (size_t i = 0; i < said.ids.size(); ++i) {
    if (said.ids[i] != turn.ids[i])
      return absl::StrCat("token ", i, " is ", said.ids[i], ", alone ", turn.ids[i]);
  }
  if (whole ? said.text != turn.text : turn.text.compare(0, said.text.size(), said.text) != 0)
    return absl::StrCat("text \"", said.text, "\", alone \"", turn.text, "\"");
  if (whole && said.reason != "length") return absl::StrCat("finished by ", said.reason);
  return "";
}

// "" where the turn ended as it may.
std::string run_turn(const Client& client, const Turn& turn, const std::string& session,
                     bool append, const Cut& cut, StreamEnd& end) {
  Said said;
  int events = 0;
  const absl::Status status = client.stream(
      request_of(turn, session, append),
      [&](v1::GenerateResponse& event) {
        if (event.has_token()) {
          said.ids.push_back(event.token().id());
          said.text += event.token().text();
        }
        if (event.has_finished()) said.reason = event.finished().reason();
        return ++events != cut.after_events;
      },
      cut.deadline_s);
  end.code = status.code();
  end.tokens += static_cast<int64_t>(said.ids.size());
  const bool as_cut = (cut.after_events > 0 && status.code() == absl::StatusCode::kCancelled) ||
                      (cut.deadline_s > 0 && status.code() == absl::StatusCode::kDeadlineExceeded);
  if (!status.ok() && !as_cut) return std::string(status.message());
  return difference(turn, said, status.ok());
}

// A client process that dies in the middle, as clients do.
void kill_a_client(const std::string& address, const std::string& prompt_file, int max_tokens,
                   int after_ms) {
  const std::string program = annulus_binary(), tokens = std::to_string(max_tokens);
  const pid_t pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
    execl(program.c_str(), "annulus", "generate", "--server", address.c_str(), "--tokens-file",
          prompt_file.c_str(), "--max-tokens", tokens.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(after_ms));
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
}

}  // namespace

const char* name(Fate fate) {
  constexpr std::array<const char*, kFates> kNames = {"whole", "cancelled", "deadline",
                                                      "client killed"};
  return kNames[static_cast<size_t>(fate)];
}

absl::StatusOr<std::vector<Conversation>> answered_alone(const Client& client,
                                                         const std::vector<int32_t>& ids, int count,
                                                         int longest, Random& random) {
  std::vector<Conversation> talks;
  for (int tries = 0; static_cast<int>(talks.size()) < count; ++tries) {
    if (tries > 10 * count) {
      return absl::FailedPreconditionError(
          "this model answers most slices with near ties: give another --cases");
    }
    const int turns = draw(random, 0, 3) == 0 ? 2 : 1;
    const std::string session = turns > 1 ? absl::StrCat("alone-", tries) : "";
    Conversation talk;
    double lead = INFINITY;
    for (int t = 0; t < turns; ++t) {
      Turn turn{slice(ids, draw_length(random, longest), random), draw_length(random, 48), {}, ""};
      v1::GenerateRequest request = request_of(turn, session, t > 0);
      request.set_top_logprobs(2);
      const absl::StatusOr<Answer> answer = client.generate(request);
      if (!answer.ok()) return answer.status();
      lead = std::min(lead, least_lead(*answer));
      for (const v1::Token& token : answer->tokens) {
        turn.ids.push_back(token.id());
        turn.text += token.text();
      }
      talk.push_back(std::move(turn));
    }
    if (absl::Status s = session.empty() ? absl::OkStatus() : close_when_idle(client, session);
        !s.ok())
      return s;
    if (lead > kLeastLead) talks.push_back(std::move(talk));
  }
  return talks;
}

StreamEnd run_stream(const std::string& address, const Client& client, const Conversation& talk,
                     const std::string& prompt_file, int64_t number, Random& random) {
  StreamEnd end;
  const int lot = draw(random, 0, 99);
  end.fate = lot < 55   ? Fate::kWhole
             : lot < 72 ? Fate::kCancel
             : lot < 88 ? Fate::kDeadline
                        : Fate::kKilledClient;
  if (end.fate == Fate::kKilledClient) {
    kill_a_client(address, prompt_file, talk[0].max_tokens, draw(random, 20, 1500));
    return end;
  }
  Cut cut;
  if (end.fate == Fate::kCancel) cut.after_events = draw(random, 1, talk[0].max_tokens + 2);
  if (end.fate == Fate::kDeadline) cut.deadline_s = draw(random, 1, 4000) * 1e-3;
  const std::string session = talk.size() > 1 ? absl::StrCat("soak-", number) : "";
  for (size_t t = 0; t < talk.size() && end.wrong.empty(); ++t) {
    const Cut now = t + 1 == talk.size() ? cut : Cut{};  // the last turn is the one that is cut
    end.wrong = run_turn(client, talk[t], session, t > 0, now, end);
  }
  if (!session.empty()) {
    if (const absl::Status status = close_when_idle(client, session); !status.ok())
      end.wrong += std::string(status.message());
  }
  return end;
}

}  // namespace annulus::bench
