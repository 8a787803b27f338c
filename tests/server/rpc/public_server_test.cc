// SPDX-License-Identifier: Apache-2.0
// The public service as clients see it: real gRPC on loopback, a real engine, ranks as threads over
// the tiny model.
#include "server/rpc/public_server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "annulus/v1/inference.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/engine/rig.h"

namespace annulus::server {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;

class PublicServerTest : public ::testing::Test {
 protected:
  void SetUp() override { start({}); }

  void start(const OutboxLimits& outbox, double hung_s = 10) {
    server_.reset();
    PublicServerOptions options;
    options.hung_s = hung_s;
    options.outbox = outbox;
    options.max_message_bytes = int64_t{8} << 20;
    auto server =
        PublicServer::start(*rig_.engine, rig_.tokenizer, testing::tiny_checkpoint()->config(),
                            {.path = "tiny", .precision = "fp32", .served_context = 4096}, options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->set_serving(true);
    channel_ = connect();
    stub_ = v1::Inference::NewStub(channel_);
  }

  std::shared_ptr<grpc::Channel> connect(grpc::ChannelArguments arguments = {}) const {
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                     grpc::InsecureChannelCredentials(), arguments);
  }

  static v1::GenerateRequest ask(int64_t prompt, uint32_t max_tokens) {
    v1::GenerateRequest request;
    for (const int32_t id : testing::prompt_of(prompt)) {
      request.mutable_tokens()->add_ids(static_cast<uint32_t>(id));
    }
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }

  grpc::Status generate(const v1::GenerateRequest& request,
                        std::vector<v1::GenerateResponse>* events) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse event;
    while (reader->Read(&event)) events->push_back(event);
    return reader->Finish();
  }

  // Bytes to a method and back, whatever they are.
  grpc::Status raw(const std::string& method, const std::string& bytes, std::string* answer) {
    grpc::GenericStub stub(channel_);
    grpc::CompletionQueue queue;
    grpc::ClientContext context;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::Status status;
    const auto call = stub.PrepareCall(&context, method, &queue);
    void* tag = nullptr;
    bool ok = false;
    call->StartCall(nullptr);
    queue.Next(&tag, &ok);
    call->WriteLast(request, {}, nullptr);
    queue.Next(&tag, &ok);
    call->Read(&response, nullptr);
    queue.Next(&tag, &ok);
    if (ok && answer != nullptr) {
      std::vector<grpc::Slice> slices;
      response.Dump(&slices);
      for (const grpc::Slice& s : slices) {
        answer->append(reinterpret_cast<const char*>(s.begin()), s.size());
      }
    }
    call->Finish(&status, nullptr);
    queue.Next(&tag, &ok);
    return status;
  }

  void wait_idle() {
    for (int i = 0; i < 2000; ++i) {
      const ClusterStatus status = rig_.engine->status();
      if (status.requests_running + status.requests_waiting == 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL() << "requests still run";
  }

  testing::Rig rig_;
  std::unique_ptr<PublicServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(PublicServerTest, AnAnswerStreamsInOrder) {
  std::vector<v1::GenerateResponse> events;
  const grpc::Status status = generate(ask(50, 20), &events);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_GE(events.size(), 23u);
  EXPECT_EQ(events.front().accepted().prompt_tokens(), 50);
  EXPECT_TRUE(events[1].has_progress());
  std::vector<int32_t> ids;
  for (const v1::GenerateResponse& event : events) {
    if (event.has_token()) ids.push_back(static_cast<int32_t>(event.token().id()));
  }
  EXPECT_EQ(ids, rig_.run(testing::ask(testing::prompt_of(50), 20))->ids);
  const v1::Finished& finished = events.back().finished();
  EXPECT_EQ(finished.reason(), "length");
  EXPECT_EQ(finished.usage().completion_tokens(), 20);
  EXPECT_GT(finished.usage().ttft_ms(), 0);
}

TEST_F(PublicServerTest, ASeedThatWasDrawnReproducesTheAnswer) {
  v1::GenerateRequest request = ask(20, 30);
  request.mutable_sampling()->set_temperature(2);
  const auto ids_of = [&](uint64_t* seed) {
    std::vector<v1::GenerateResponse> events;
    EXPECT_TRUE(generate(request, &events).ok());
    std::vector<uint32_t> ids;
    for (const auto& event : events) {
      if (event.has_token()) ids.push_back(event.token().id());
    }
    *seed = events.back().finished().seed();
    return ids;
  };
  uint64_t first_seed = 0, second_seed = 0;
  const auto first = ids_of(&first_seed);
  request.mutable_sampling()->set_seed(first_seed);
  EXPECT_EQ(ids_of(&second_seed), first);
  EXPECT_EQ(second_seed, first_seed);
  request.mutable_sampling()->set_seed(first_seed + 1);
  EXPECT_NE(ids_of(&second_seed), first);
}

TEST_F(PublicServerTest, TextThatIsNotUtf8IsInvalidArgumentEverywhere) {
  const std::string text = std::string("\x0a\x02\xff\xfe", 4);  // field 1, two bytes
  for (const char* method : {"Generate", "Tokenize", "RewindSession"}) {
    const grpc::Status status = raw(absl::StrCat("/annulus.v1.Inference/", method), text, nullptr);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_NE(status.error_message().find("UTF-8"), std::string::npos) << method;
  }
  const grpc::Status broken = raw("/annulus.v1.Inference/Generate", "\x0a\x7fx", nullptr);
  EXPECT_EQ(broken.error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(PublicServerTest, BadRequestsEndWithTheirCode) {
  std::vector<v1::GenerateResponse> events;
  EXPECT_EQ(generate({}, &events).error_code(), StatusCode::INVALID_ARGUMENT);
  v1::GenerateRequest chat;
  chat.mutable_chat()->add_messages()->set_role("intruder");
  EXPECT_EQ(generate(chat, &events).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(generate(ask(5000, 1), &events).error_code(), StatusCode::OUT_OF_RANGE);
  for (const int64_t position : {-1, 5}) {
    v1::GenerateRequest scored = ask(5, 1);
    scored.add_prompt_logprob_positions(position);
    EXPECT_EQ(generate(scored, &events).error_code(), StatusCode::INVALID_ARGUMENT);
  }
  v1::GenerateRequest huge;
  huge.set_text(std::string(size_t{9} << 20, 'x'));
  EXPECT_EQ(generate(huge, &events).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(events.empty());

  grpc::ClientContext context;
  v1::RewindSessionRequest rewind;
  rewind.set_session("nobody");
  v1::RewindSessionResponse nothing;
  EXPECT_EQ(stub_->RewindSession(&context, rewind, &nothing).error_code(), StatusCode::NOT_FOUND);
}

TEST_F(PublicServerTest, ACancelledCallFreesItsPlace) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, ask(20, 4000));
  v1::GenerateResponse event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  wait_idle();
}

TEST_F(PublicServerTest, ADeadlineFreesItsPlace) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const auto reader = stub_->Generate(&context, ask(20, 4000));
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
  wait_idle();
}

TEST_F(PublicServerTest, ASlowReaderLosesItsRequestAndNobodyElseDoes) {
  start({.max_bytes = int64_t{1} << 40, .max_events = 200});
  grpc::ChannelArguments arguments;
  // The least that HTTP/2 has to buffer: the outbox must fill, not the socket.
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto slow_stub = v1::Inference::NewStub(connect(arguments));
  grpc::ClientContext context;
  v1::GenerateRequest request = ask(20, 4000);
  request.set_top_logprobs(128);  // a kilobyte a token
  const auto slow = slow_stub->Generate(&context, request);
  v1::GenerateResponse event;
  ASSERT_TRUE(slow->Read(&event));  // and no more

  std::vector<v1::GenerateResponse> events;
  EXPECT_TRUE(generate(ask(20, 50), &events).ok());
  wait_idle();
  int64_t read = 1;
  while (slow->Read(&event)) ++read;
  EXPECT_LT(read, 4000);
  const grpc::Status status = slow->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_NE(status.error_message().find("too slowly"), std::string::npos);
}

TEST_F(PublicServerTest, ALostEpochEndsStreamsUnavailable) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, ask(20, 4000));
  v1::GenerateResponse event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(reader->Read(&event));
  rig_.ranks->lose("rank 1 went away");
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_message().find("rank 1 went away"), std::string::npos);
  rig_.ranks->restart();
  rig_.wait_serving(true);
  std::vector<v1::GenerateResponse> events;
  EXPECT_TRUE(generate(ask(20, 5), &events).ok());
}

TEST_F(PublicServerTest, DrainingRefusesNewRequestsAndLetsOldOnesFinish) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, ask(20, 300));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  server_->drain();
  std::vector<v1::GenerateResponse> events;
  EXPECT_EQ(generate(ask(5, 5), &events).error_code(), StatusCode::UNAVAILABLE);
  int tokens = 0;
  while (reader->Read(&event)) tokens += event.has_token();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 300);
  server_->shutdown(absl::Seconds(5));
}

TEST_F(PublicServerTest, HealthTellsAndPushes) {
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  const auto check = [&](const std::string& service, HealthCheckResponse* response) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    return health->Check(&context, request, response);
  };
  HealthCheckResponse response;
  for (const char* service : {"", "annulus.v1.Inference"}) {
    ASSERT_TRUE(check(service, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  EXPECT_EQ(check("else", &response).error_code(), StatusCode::NOT_FOUND);

  grpc::ClientContext context, unknown_context;
  const auto watch = health->Watch(&context, {});
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->set_serving(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  ASSERT_TRUE(check("live", &response).ok());  // whatever becomes of the ranks
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->set_serving(true);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);

  grpc::health::v1::HealthCheckRequest request;
  request.set_service("else");
  const auto unknown = health->Watch(&unknown_context, request);
  ASSERT_TRUE(unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  grpc::ClientContext live_context;
  request.set_service("live");
  const auto live = health->Watch(&live_context, request);
  EXPECT_FALSE(live->Read(&response));
  EXPECT_EQ(live->Finish().error_code(), StatusCode::UNIMPLEMENTED);

  server_->shutdown(absl::Seconds(5));  // watches must not hold it up
  EXPECT_FALSE(unknown->Read(&response));
}

// A sink that does not return holds up the engine thread, as a bug of ours might.
TEST_F(PublicServerTest, AHungEngineIsNotLive) {
  start({}, /*hung_s=*/2);
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  const auto live = [&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    HealthCheckResponse response;
    request.set_service("live");
    EXPECT_TRUE(health->Check(&context, request, &response).ok());
    return response.status() == HealthCheckResponse::SERVING;
  };
  const auto becomes = [&](bool wanted) {
    for (int i = 0; i < 400 && live() != wanted; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(25));
    }
    return live() == wanted;
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));  // idle is not hung
  EXPECT_TRUE(live());
  std::atomic<bool> release = false;
  ASSERT_TRUE(rig_.engine
                  ->submit(testing::ask(testing::prompt_of(5), 1),
                           [&](const Event&) {
                             while (!release) {
                               std::this_thread::sleep_for(std::chrono::milliseconds(5));
                             }
                           })
                  .ok());
  EXPECT_TRUE(becomes(false));
  release = true;
  EXPECT_TRUE(becomes(true));
  wait_idle();
}

TEST_F(PublicServerTest, ReflectionKnowsInferenceAndHealth) {
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  std::string services, file;
  EXPECT_TRUE(raw(method, std::string("\x3a\x00", 2), &services).ok());  // list_services
  for (const char* name : {"annulus.v1.Inference", "grpc.health.v1.Health"}) {
    EXPECT_NE(services.find(name), std::string::npos) << name;
  }
  const std::string symbol = "grpc.health.v1.Health";  // file_containing_symbol
  EXPECT_TRUE(raw(method,
                  absl::StrCat("\x22", std::string(1, static_cast<char>(symbol.size())), symbol),
                  &file)
                  .ok());
  EXPECT_NE(file.find("HealthCheckRequest"), std::string::npos);
}

// gRPC's default cuts off a client that pings twice in five minutes without data: a long prefill.
TEST_F(PublicServerTest, AClientThatPingsWhileNothingComesIsKept) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 500);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  const auto health = grpc::health::v1::Health::NewStub(connect(arguments));
  grpc::ClientContext context;
  const auto watch = health->Watch(&context, {});
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  std::this_thread::sleep_for(std::chrono::seconds(4));
  server_->set_serving(false);
  EXPECT_TRUE(watch->Read(&response));
}

TEST_F(PublicServerTest, ModelClusterAndTokens) {
  grpc::ClientContext a, b, c, d;
  v1::GetModelResponse model;
  ASSERT_TRUE(stub_->GetModel(&a, {}, &model).ok());
  EXPECT_EQ(model.vocab(), 288);
  EXPECT_EQ(model.chat_template(), "chatml");
  EXPECT_EQ(model.precision(), "fp32");
  v1::GetClusterResponse cluster;
  ASSERT_TRUE(stub_->GetCluster(&b, {}, &cluster).ok());
  EXPECT_TRUE(cluster.serving());
  EXPECT_EQ(cluster.cp(), 2);
  EXPECT_EQ(cluster.ranks_size(), 2);
  v1::TokenizeRequest text;
  text.set_text("abc");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&c, text, &ids).ok());
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  v1::DetokenizeResponse again;
  ASSERT_TRUE(stub_->Detokenize(&d, back, &again).ok());
  EXPECT_EQ(again.text(), "abc");
}

}  // namespace
}  // namespace annulus::server
