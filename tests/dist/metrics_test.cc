// SPDX-License-Identifier: Apache-2.0
// What Prometheus reads of a running server is what was asked of it, stays true over lost ranks and
// new epochs, and comes whatever ranks and strangers do.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "bench/server_process.h"
#include "tests/dist/cluster.h"
#include "tests/dist/exposition.h"
#include "tests/dist/socket.h"

namespace annulus::testing {
namespace {

using grpc::StatusCode;

ClusterOptions with_metrics(std::string model) {
  ClusterOptions options;
  options.model = std::move(model);
  options.serve_flags = {"--metrics", "0"};
  return options;
}

struct Answer {
  v1::Accepted accepted;
  v1::Usage usage;
  grpc::Status status;
};

Answer answer_to(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                 double deadline_s = 120) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(1000 * deadline_s)));
  const auto reader = stub.Generate(&context, request);
  Answer out;
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    if (event.has_accepted()) out.accepted = event.accepted();
    if (event.has_finished()) out.usage = event.finished().usage();
  }
  out.status = reader->Finish();
  return out;
}

std::string ended_with(const char* code) {
  return absl::StrCat("annulus_requests_total{code=\"", code, "\"}");
}
std::string of_rank(const char* name, int rank) {
  return absl::StrCat(name, "{rank=\"", rank, "\"}");
}

TEST(Exposition, WhatIsNotStrictIsRefused) {
  const std::string help = "# HELP a_total b\n# TYPE a_total counter\n";
  const std::string histogram = "# HELP h b\n# TYPE h histogram\n";
  EXPECT_TRUE(parse_exposition(help + "a_total{x=\"1\",y=\"\\\"\\n\"} 1\n").ok());
  EXPECT_TRUE(
      parse_exposition(histogram +
                       "h_count 2\nh_sum 1.5\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n")
          .ok());
  for (const std::string& bad : {
           std::string("a_total 1\n"),
           help + "a_total 1",
           help + "a_total -1\n",
           help + "a_total x\n",
           help + "a_total 1\na_total 2\n",
           help + "b_total 1\n",
           help + "a_total{x=1} 1\n",
           help + "a_total{x=\"1\",x=\"2\"} 1\n",
           help + "\n",
           help + help,
           std::string("# HELP a b\n# TYPE a counter\na 1\n"),
           std::string("# TYPE a gauge\na 1\n"),
           histogram + "h_count 2\nh_sum 1\nh_bucket{le=\"1\"} 2\n",
           histogram + "h_count 2\nh_sum 1\nh_bucket{le=\"+Inf\"} 1\n",
           histogram + "h_count 2\nh_bucket{le=\"+Inf\"} 2\n",
           histogram + "h_count 1\nh_sum 1\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\n",
           histogram + "h_count 1\nh_sum 1\nh_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\n",
       }) {
    EXPECT_FALSE(parse_exposition(bad).ok()) << bad;
  }
}

TEST(Metrics, CountWhatWasAsked) {
  Cluster cluster(with_metrics(real_model_file()));
  v1::Inference::Stub& stub = cluster.stub();
  const int port = metrics_port(cluster.front());
  const Exposition idle = scrape(port);
  EXPECT_EQ(idle.at("annulus_serving"), 1);
  EXPECT_EQ(idle.at("annulus_ranks_ready"), 2);
  EXPECT_EQ(idle.at(ended_with("OK")), 0);
  EXPECT_EQ(idle.at("annulus_time_to_first_token_seconds_count"), 0);

  // Whole answers, two of them turns of a session.
  int64_t prompt = 0, cached = 0, completion = 0;
  for (const char* session : {"", "", "s", "s"}) {
    v1::GenerateRequest request = ask("Once upon a time there was a ring of ranks that", 9);
    request.set_session(session);
    request.set_ignore_eos(true);
    const Answer answer = answer_to(stub, request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    prompt += answer.usage.prompt_tokens();
    cached += answer.usage.cached_tokens();
    completion += answer.usage.completion_tokens();
  }
  EXPECT_GT(cached, 0);
  EXPECT_EQ(completion, 4 * 9);
  const Exposition whole = scrape(port);
  expect_nothing_fell(idle, whole);
  EXPECT_EQ(whole.at(ended_with("OK")), 4);
  EXPECT_EQ(whole.at("annulus_prompt_tokens_total"), static_cast<double>(prompt));
  EXPECT_EQ(whole.at("annulus_cached_tokens_total"), static_cast<double>(cached));
  EXPECT_EQ(whole.at("annulus_generation_tokens_total"), static_cast<double>(completion));
  for (const char* once : {"request_queue_time", "time_to_first_token", "e2e_request_latency"}) {
    EXPECT_EQ(whole.at(absl::StrCat("annulus_", once, "_seconds_count")), 4) << once;
  }
  EXPECT_EQ(whole.at("annulus_time_per_output_token_seconds_count"), 4 * 8);
  EXPECT_LT(whole.at("annulus_time_to_first_token_seconds_sum"),
            whole.at("annulus_e2e_request_latency_seconds_sum"));
  // Prompts take a step each, further tokens one each, or two where an answer was overshot.
  EXPECT_EQ(whole.at("annulus_step_time_seconds_count{phase=\"prefill\"}"), 4);
  EXPECT_GE(whole.at("annulus_step_time_seconds_count{phase=\"decode\"}"), 4 * 8);
  for (const char* phase : {"prefill", "decode"}) {
    double steps = 0;
    for (const char* variant : {"pass-kv", "pass-q", "gather-q"}) {
      steps += whole.at(
          absl::StrCat("annulus_steps_total{attention=\"", variant, "\",phase=\"", phase, "\"}"));
    }
    EXPECT_EQ(steps,
              whole.at(absl::StrCat("annulus_step_time_seconds_count{phase=\"", phase, "\"}")));
  }

  // The others: refused by form, by length, by session; cancelled; late.
  EXPECT_EQ(answer_to(stub, ask("", 1)).status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer_to(stub, ask(std::string(100000, 'x'), 1)).status.error_code(),
            StatusCode::OUT_OF_RANGE);
  v1::GenerateRequest lost = ask("x", 1);
  lost.set_append(true);
  lost.set_session("nobody");
  EXPECT_EQ(answer_to(stub, lost).status.error_code(), StatusCode::NOT_FOUND);
  v1::GenerateRequest endless = ask("Count:", 4000);
  endless.set_ignore_eos(true);
  {
    Stream stream(stub, endless);
    stream.wait_tokens(5);
    const Exposition running = scrape(port);
    EXPECT_EQ(running.at("annulus_requests_running"), 1);
    EXPECT_GT(running.at(of_rank("annulus_kv_rows_used", 0)), 0);
  }  // cancelled
  EXPECT_EQ(answer_to(stub, endless, 1.5).status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(eventually(20, [&] {
    const Exposition now = scrape(port);
    return now.at(ended_with("CANCELLED")) + now.at(ended_with("DEADLINE_EXCEEDED")) == 2 &&
           now.at("annulus_requests_running") == 0;
  }));
  const Exposition all = scrape(port);
  expect_nothing_fell(whole, all);
  for (const auto& [code, n] : {std::pair("OK", 4),
                                {"INVALID_ARGUMENT", 1},
                                {"OUT_OF_RANGE", 1},
                                {"NOT_FOUND", 1},
                                {"CANCELLED", 1},
                                {"DEADLINE_EXCEEDED", 1},
                                {"UNAVAILABLE", 0},
                                {"INTERNAL", 0}}) {
    EXPECT_EQ(all.at(ended_with(code)), n) << code;
  }
  EXPECT_EQ(all.at("annulus_e2e_request_latency_seconds_count"), 4);
  EXPECT_EQ(all.at("annulus_request_queue_time_seconds_count"), 6);
  EXPECT_EQ(all.at("annulus_time_to_first_token_seconds_count") +
                all.at("annulus_time_per_output_token_seconds_count"),
            all.at("annulus_generation_tokens_total"));

  // What the session holds, over both ranks; as `annulus status` says.
  grpc::ClientContext context;
  v1::GetClusterResponse status;
  ASSERT_TRUE(stub.GetCluster(&context, {}, &status).ok());
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_TRUE(eventually(10, [&] {
      const double rows = scrape(port).at(of_rank("annulus_kv_rows_used", rank));
      return rows > 0 && rows <= 64;
    }));
    EXPECT_EQ(all.at(of_rank("annulus_kv_rows_capacity", rank)),
              static_cast<double>(status.kv_capacity_rows()));
    EXPECT_GT(all.at(of_rank("annulus_rank_compute_seconds_total", rank)), 0);
    EXPECT_GT(all.at(of_rank("annulus_rank_attention_sent_bytes_total", rank)), 0);
    double waits = 0;
    for (const char* where : {"ring", "other"}) {
      waits += all.at(absl::StrCat("annulus_rank_exposed_communication_seconds_total{rank=\"", rank,
                                   "\",where=\"", where, "\"}"));
    }
    EXPECT_GT(waits, 0);
    EXPECT_EQ(all.at(of_rank("annulus_rank_straggler", rank)), 0);
  }
  EXPECT_EQ(all.at("annulus_sessions"), 1);
  EXPECT_TRUE(std::any_of(all.samples.begin(), all.samples.end(), [](const auto& sample) {
    return sample.first.starts_with("annulus_build_info{version=\"") &&
           sample.first.find("SmolLM2") != std::string::npos && sample.second == 1;
  }));
}

TEST(Metrics, StayTrueOverLostRanksAndNewEpochs) {
  Cluster cluster(with_metrics(tiny_model_file()));
  const int port = metrics_port(cluster.front());
  cluster.answer("hello", 8);
  const Exposition before = scrape(port);
  EXPECT_EQ(before.at("annulus_epochs_lost_total"), 0);
  EXPECT_EQ(before.at("annulus_epoch"), static_cast<double>(cluster.epoch()));

  Stream stream(cluster.stub(), ask("hello", 4000));
  stream.wait_tokens(5);
  cluster.worker(1)->signal(SIGSTOP);
  const Clock::time_point stopped = Clock::now();
  scrape(port);  // while the ranks hang
  EXPECT_LT(seconds_since(stopped), 2);
  EXPECT_EQ(stream.status().error_code(), StatusCode::UNAVAILABLE);
  ASSERT_TRUE(eventually(20, [&] { return scrape(port).at("annulus_serving") == 0; }));
  const Exposition lost = scrape(port);
  expect_nothing_fell(before, lost);
  EXPECT_EQ(lost.at("annulus_epochs_lost_total"), 1);
  EXPECT_EQ(lost.at("annulus_ranks"), 2);
  EXPECT_EQ(lost.at("annulus_ranks_ready"), 1);
  EXPECT_EQ(lost.at(ended_with("UNAVAILABLE")), 1);
  EXPECT_FALSE(lost.has(of_rank("annulus_kv_rows_used", 0)));  // nobody knows

  cluster.worker(1).reset();
  cluster.start_worker(1);
  cluster.wait_serving();
  const Exposition again = scrape(port);
  expect_nothing_fell(lost, again);
  EXPECT_EQ(again.at("annulus_serving"), 1);
  EXPECT_EQ(again.at("annulus_ranks_ready"), 2);
  EXPECT_EQ(again.at("annulus_epoch"), static_cast<double>(cluster.epoch()));
  EXPECT_GT(again.at("annulus_epoch"), before.at("annulus_epoch"));
  EXPECT_EQ(again.at(of_rank("annulus_kv_rows_used", 1)), 0);
  cluster.answer("hello", 8);
  const Exposition after = scrape(port);
  expect_nothing_fell(again, after);
  EXPECT_EQ(after.at("annulus_generation_tokens_total"),
            again.at("annulus_generation_tokens_total") + 16);
  EXPECT_GT(after.at(of_rank("annulus_rank_compute_seconds_total", 1)),
            before.at(of_rank("annulus_rank_compute_seconds_total", 1)));
}

TEST(Metrics, StrangersHarmNobody) {
  Cluster cluster(with_metrics(tiny_model_file()));
  const int port = metrics_port(cluster.front());
  const std::vector<uint32_t> expected = cluster.answer("hello", 8);
  for (const char* path : {"/", "/metric", "/etc/passwd", "/../../../etc/passwd",
                           "/..%2f..%2fetc/passwd", "/%00", "/x.cgi", "/x.shtml"}) {
    const std::string answer = http_get(port, path);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 4")) << path << ": " << answer;
    EXPECT_EQ(answer.find("root:"), std::string::npos) << path;
  }
  const std::vector<std::string> garbage = {
      "",
      std::string(1, '\0'),
      "GET\r\n\r\n",
      "GET /metrics HTTP/9.9\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
      "POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nx",
      "PUT /etc/x HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz",
      "DELETE / HTTP/1.1\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip, gzip, \xff\xfe\r\n\r\n",
      absl::StrCat("GET /", std::string(1 << 20, 'a'), " HTTP/1.1\r\n\r\n"),
      absl::StrCat("GET /metrics HTTP/1.1\r\n", std::string(100000, 'h')),
      absl::StrCat("GET /metrics HTTP/1.1\r\nAuthorization: Basic ", std::string(9000, '='),
                   "\r\n\r\n"),
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "GET /metrics HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
  };
  const auto barrage = [&] {
    for (const std::string& bytes : garbage) {
      const Socket socket(port);
      ASSERT_TRUE(socket.connected());
      socket.write(bytes);
      socket.read(20);
    }
    {  // Silent ones hold a scraper up for some rounds of their time-out of 2 s, not for good.
      std::vector<std::unique_ptr<Socket>> silent;
      for (int i = 0; i < 40; ++i) silent.push_back(std::make_unique<Socket>(port));
      const Clock::time_point start = Clock::now();
      EXPECT_TRUE(http_get(port, "/metrics", 20).starts_with("HTTP/1.1 200 OK"));
      EXPECT_LT(seconds_since(start), 10);  // Prometheus' own time-out
      EXPECT_EQ(cluster.answer("hello", 8), expected);
    }
    for (int i = 0; i < 200; ++i) Socket flood(port);
    scrape(port);
  };
  barrage();
  const pid_t front = cluster.front().pid();
  const auto settled = [&](int descriptors) {
    return eventually(30, [&] { return held_by(front).descriptors <= descriptors; });
  };
  EXPECT_TRUE(settled(100)) << held_by(front).descriptors << " descriptors";
  const Held before = held_by(front);
  barrage();
  barrage();
  EXPECT_TRUE(settled(before.descriptors + 2))
      << before.descriptors << " descriptors before, " << held_by(front).descriptors << " after";
  const Held after = held_by(front);
  EXPECT_LE(after.threads, before.threads + 4);
  EXPECT_LT(after.resident_kib - before.resident_kib, 8 << 10);
  EXPECT_TRUE(cluster.healthy());
  EXPECT_EQ(cluster.epoch_now(), cluster.epoch());

  const Socket silent(port);  // does not delay the end
  cluster.front().signal(SIGTERM);
  EXPECT_EQ(cluster.front().wait(10).code, 0);
}

TEST(Metrics, AreThereBeforeTheRanks) {
  setenv("ANNULUS_SECRET", "of this test", 1);
  Process serve({bench::annulus_binary(), "serve", "--model", tiny_model_file(), "--cp", "3",
                 "--port", "0", "--workers", "external", "--metrics", "127.0.0.1:0"});
  const int port = metrics_port(serve);
  const Exposition none = scrape(port);
  EXPECT_EQ(none.at("annulus_serving"), 0);
  EXPECT_EQ(none.at("annulus_ranks"), 3);
  EXPECT_EQ(none.at("annulus_ranks_ready"), 0);
  // A second one on that port.
  const Outcome second = annulus(
      {"serve", "--model", tiny_model_file(), "--port", "0", "--metrics", absl::StrCat(port)});
  EXPECT_EQ(second.code, 2);
  EXPECT_EQ(lines(second.err), 1) << second.err;
  EXPECT_TRUE(second.err.starts_with(
      absl::StrCat("annulus serve: cannot listen on 127.0.0.1:", port, " for metrics")))
      << second.err;
}

}  // namespace
}  // namespace annulus::testing
