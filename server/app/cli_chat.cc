// SPDX-License-Identifier: Apache-2.0
// `annulus chat`: a conversation in a terminal, or piped. The whole list of messages is sent every
// turn under one session, so that the server computes only what is new.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/app/cli_answer.h"
#include "server/app/cli_commands.h"
#include "server/rpc/client.h"

namespace annulus::server {

namespace {

constexpr const char* kExamples = R"(Examples:
  annulus chat
  annulus chat --system "Answer in one sentence." --temperature 0.7
  printf 'Hello\nWhat did I say?\n' | annulus chat
While chatting:
  /rewind N   forgets the last N turns; what remains is not computed again
  /reset      begins a new conversation
  /quit       ends (so does the end of input); Ctrl-C stops an answer
After each answer: how much of the prompt was cached, time to the first token, speed, and what the
ring chose.)";

constexpr const char* kHelp =
    "/rewind N forgets the last N turns, /reset begins anew, /quit ends\n";

struct ChatFlags {
  std::string server = "127.0.0.1:50051";
  std::string system;
  uint32_t max_tokens = 512, top_k = 0;
  float temperature = 0, top_p = 1, min_p = 0;
};

class Conversation {
 public:
  explicit Conversation(const ChatFlags& flags)
      : flags_(flags), client_(flags.server), terminal_(isatty(STDIN_FILENO) != 0) {
    session_ = absl::StrCat("chat-", absl::Hex(std::random_device{}(), absl::kZeroPad8),
                            absl::Hex(std::random_device{}(), absl::kZeroPad8));
    clear();
  }

  int run();
  // From the thread that waits for Ctrl-C.
  void interrupt();

 private:
  void clear();
  bool command(const std::string& line);  // false: the line is to be said
  absl::Status say(const std::string& line);

  const ChatFlags& flags_;
  InferenceClient client_;
  const bool terminal_;
  std::string session_;
  v1::Chat chat_;
  std::atomic<bool> answering_{false}, interrupted_{false};
};

void Conversation::clear() {
  chat_.clear_messages();
  if (flags_.system.empty()) return;
  v1::Message* message = chat_.add_messages();
  message->set_role("system");
  message->set_content(flags_.system);
}

int Conversation::run() {
  const auto model = client_.model();
  if (!model.ok()) return report("chat", model.status());
  if (model->chat_template().empty()) {
    return report("chat", absl::FailedPreconditionError(
                              absl::StrCat(model->name(),
                                           " has no chat template that this server knows: use "
                                           "`annulus generate --prompt`")));
  }
  if (terminal_) std::printf("%s at %s. %s", model->name().c_str(), flags_.server.c_str(), kHelp);
  int code = 0;
  std::string line;
  int line_number = 0;
  for (;;) {
    if (terminal_) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line)) break;
    line = std::string(absl::StripAsciiWhitespace(line));
    ++line_number;
    if (line.empty()) continue;
    if (line == "/quit" || line == "/exit") break;
    if (command(line)) continue;
    if (!terminal_) std::printf("> %s\n", line.c_str());
    if (const absl::Status status = say(line); !status.ok()) {
      code = report("chat", status);
      if (!terminal_) {  // a script should not go on
        std::fprintf(stderr,
                     "annulus chat: line %d was not answered, what follows it was not read\n",
                     line_number);
        break;
      }
      code = 0;
    }
  }
  // The server need not keep what nobody will continue; a session it never had is no matter.
  (void)client_.rewind(session_, 0);
  return code;
}

bool Conversation::command(const std::string& line) {
  if (line.front() != '/') return false;
  int32_t turns = 0;
  if (line == "/reset") {
    clear();
    (void)client_.rewind(session_, 0);
    std::puts("a new conversation");
  } else if (absl::StartsWith(line, "/rewind") &&
             (line == "/rewind" || (absl::SimpleAtoi(line.substr(7), &turns) && turns > 0))) {
    turns = std::max(turns, 1);
    // A turn is a question and its answer.
    const int kept_always = flags_.system.empty() ? 0 : 1;
    const int left = std::max(kept_always, chat_.messages_size() - 2 * std::min(turns, 1 << 20));
    chat_.mutable_messages()->DeleteSubrange(left, chat_.messages_size() - left);
    std::printf("%d turns remain\n", (chat_.messages_size() - kept_always) / 2);
  } else {
    std::fputs(kHelp, stdout);
  }
  return true;
}

absl::Status Conversation::say(const std::string& line) {
  v1::Message* message = chat_.add_messages();
  message->set_role("user");
  message->set_content(line);
  v1::GenerateRequest request;
  *request.mutable_chat() = chat_;
  request.set_session(session_);
  request.set_max_tokens(flags_.max_tokens);
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(flags_.temperature);
  sampling->set_top_k(flags_.top_k);
  sampling->set_top_p(flags_.top_p);
  sampling->set_min_p(flags_.min_p);

  AnswerView view({.text = true, .progress = isatty(STDERR_FILENO) != 0});
  interrupted_ = false;
  answering_ = true;
  absl::Status status =
      client_.generate(request, [&](const v1::GenerateResponse& event) { view.on_event(event); });
  answering_ = false;
  view.end();
  if (interrupted_ && absl::IsCancelled(status)) {
    std::puts("[stopped]");
    status = absl::OkStatus();
  } else if (status.ok()) {
    std::printf("%s\n", view.figures().c_str());
  }
  std::fflush(stdout);
  if (!status.ok()) {
    chat_.mutable_messages()->RemoveLast();  // the question may be asked again
    return status;
  }
  v1::Message* answer = chat_.add_messages();
  answer->set_role("assistant");
  answer->set_content(view.text());
  return status;
}

void Conversation::interrupt() {
  if (answering_) {
    interrupted_ = true;
    client_.cancel();
    return;
  }
  (void)client_.rewind(session_, 0);
  std::puts("");
  std::fflush(stdout);
  _exit(0);
}

int chat(const ChatFlags& flags) {
  // Blocked before any thread exists, so that only the one below takes it.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  Conversation conversation(flags);
  std::thread([set, &conversation] {
    for (;;) {
      int signal = 0;
      if (sigwait(&set, &signal) == 0) conversation.interrupt();
    }
  }).detach();
  const int code = conversation.run();
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (!written) std::fprintf(stderr, "annulus chat: stdout cannot be written\n");
  _exit(code == 0 && !written ? 1 : code);  // the thread above has no end
}

}  // namespace

void add_chat(CLI::App& app, Command& run) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* sub = app.add_subcommand("chat", "A conversation of several turns");
  sub->footer(kExamples);
  sub->add_option("--server", flags->server, "HOST:PORT")
      ->envname("ANNULUS_SERVER")
      ->capture_default_str();
  sub->add_option("--system", flags->system, "system message");
  sub->add_option("--max-tokens", flags->max_tokens, "of an answer")->capture_default_str();
  sub->add_option("--temperature", flags->temperature, "0: the most likely token")
      ->capture_default_str();
  sub->add_option("--top-k", flags->top_k, "0: off")->capture_default_str();
  sub->add_option("--top-p", flags->top_p, "1: off")->capture_default_str();
  sub->add_option("--min-p", flags->min_p, "0: off")->capture_default_str();
  sub->callback([flags, &run] { run = [flags] { return chat(*flags); }; });
}

}  // namespace annulus::server
