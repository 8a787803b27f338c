// SPDX-License-Identifier: Apache-2.0
// What a stranger may hand to the program: model files that are none, flags that mean nothing,
// requests and bytes of any kind on both ports. Each ends with one clear line or the matching code;
// the server then answers as before and holds no more than before.
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/dist/cluster.h"
#include "tests/dist/socket.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

using grpc::StatusCode;
using Bytes = std::vector<std::byte>;

void expect_one_line(const Outcome& outcome, const std::string& word) {
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(word), std::string::npos) << word << " is not in: " << outcome.err;
  EXPECT_LT(outcome.err.size(), 1400u);
}

std::string random_text(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text(size, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

// Writes the file and expects the front end and a worker to refuse it in one line that says `word`.
void expect_refused(const std::string& path, std::span<const std::byte> bytes,
                    const std::string& word) {
  SCOPED_TRACE(absl::StrCat(path, ", expecting: ", word));
  write_file(path, bytes);
  expect_one_line(annulus({"serve", "--port", "0", "--model", path}), word);
  expect_one_line(annulus({"worker", "--connect", "127.0.0.1:1", "--model", path}), word);
}
std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(HostileFiles, Gguf) {
  const std::string path = scratch_directory() + "/m.gguf";
  const Bytes good = tiny_gguf({});
  for (const size_t size : {size_t{3}, size_t{10}, size_t{100}, good.size() / 2, good.size() - 1}) {
    expect_refused(path, std::span(good).first(size), "m.gguf: ");
  }
  const auto patched = [&](size_t at, std::string_view with) {
    Bytes bytes = good;
    std::memcpy(bytes.data() + at, with.data(), with.size());
    return bytes;
  };
  expect_refused(path, patched(0, "FUGG"), "neither a GGUF nor a .safetensors file");
  expect_refused(path, patched(4, "\x63"), "GGUF version 99");
  expect_refused(path, patched(8, "\xff\xff\xff\xff\xff\xff\xff\x7f"), "more than fit");
  expect_refused(path, patched(16, "\xff\xff\xff\xff\xff\xff\xff\xff"), "more than fit");
  expect_refused(path,
                 bytes_of(absl::StrCat("GGUF\x03", std::string(3, '\0'), random_text(9000, 1))),
                 "m.gguf: ");
  expect_refused(path, bytes_of(random_text(9000, 2)), "neither");
  expect_refused(path, bytes_of(""), "empty");

  // The second tensor's directory entry ends with its offset: put it onto the first.
  const std::string_view text(reinterpret_cast<const char*>(good.data()), good.size());
  const size_t name = text.find("output_norm.weight");
  ASSERT_NE(name, std::string_view::npos);
  expect_refused(path, patched(name + 18 + 4 + 8 + 4, std::string(8, '\0')), "overlap");

  GgufWriter other;
  other.string("general.architecture", "mamba\n\x1b[31m");
  expect_refused(path, other.finish(), "architecture");
  TinyModel odd;
  odd.heads = 6;
  odd.kv_heads = 3;
  odd.ffn = 96;
  write_gguf(odd, path);
  expect_one_line(annulus({"serve", "--port", "0", "--tp", "2", "--model", path}), "can be 1, 3");
}

TEST(HostileFiles, Safetensors) {
  const std::string folder = scratch_directory(), path = folder + "/model.safetensors";
  write_folder({}, folder);
  const NamedTensor tensor{"a", "F32", {2}, Bytes(8)};
  const Bytes good = safetensors_bytes({&tensor, 1});
  const auto header = [](const std::string& json, size_t data) {
    std::string bytes(8, '\0');
    const uint64_t size = json.size();
    std::memcpy(bytes.data(), &size, 8);
    return bytes + json + std::string(data, '\0');
  };
  const auto refused = [&](std::string_view bytes, const std::string& word) {
    SCOPED_TRACE(word);
    write_file(path, bytes);
    expect_one_line(annulus({"serve", "--port", "0", "--model", folder}), word);
  };
  refused(header("{}", 0).substr(0, 5), "too short");
  refused(std::string(9, '\x7f'), "claims a header");
  refused(random_text(5000, 3), "claims a header");
  refused(header("[]", 8), "not a JSON object");
  refused(header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4), "past the end");
  refused(header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                 R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                 8),
          "overlap");
  refused(header(std::string(100000, '['), 0), "nested too deeply");
  write_file(path, good);
  expect_one_line(annulus({"serve", "--port", "0", "--model", folder}), "is missing");
  write_file(folder + "/config.json", std::string_view("{\"architectures\": [\"Qwen\n\"]}"));
  expect_one_line(annulus({"serve", "--port", "0", "--model", folder}), "config.json");
}

TEST(HostileFiles, Tokenizer) {
  const std::string folder = scratch_directory();
  write_folder({}, folder);
  const std::string config = tiny_config_json({});
  const auto refused = [&](const char* file, std::string_view bytes, const std::string& word) {
    SCOPED_TRACE(absl::StrCat(file, ": ", word));
    write_file(folder + "/" + file, bytes);
    expect_one_line(annulus({"serve", "--port", "0", "--model", folder}), word);
  };
  // As deep as the file may be long: nothing recurses over it.
  const std::string deep =
      absl::StrCat("{\"eos_token_id\":", std::string(400000, '['), std::string(400000, ']'), "}");
  refused("generation_config.json", deep, "eos_token_id");
  refused("tokenizer.json", "", "tokenizer.json");
  refused("tokenizer.json", random_text(3000, 4), "tokenizer.json");
  refused("tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}", "only BPE");
  refused("tokenizer.json", absl::StrCat("{\"model\":", std::string(2000000, '[')),
          "tokenizer.json");
}

TEST(HostileFlags, AreOneLine) {
  const std::string model = tiny_model_file();
  const std::vector<std::pair<std::vector<std::string>, std::string>> table = {
      {{"--drain-timeout", "nan"}, "--drain-timeout"},
      {{"--orphan-timeout", "-1"}, "--orphan-timeout"},
      {{"--orphan-timeout", "inf"}, "--orphan-timeout"},
      {{"--rope-theta", "inf"}, "--rope-theta"},
      {{"--rope-theta", "nan"}, "--rope-theta"},
      {{"--rope-theta", "0"}, "--rope-theta"},
      {{"--rope-scaling", "linear:nan"}, "factor"},
      {{"--kv-rows", "100000000000"}, "--kv-rows"},
      {{"--kv-rows", "-1"}, "--kv-rows"},
      {{"--context", "0"}, "--context"},
      {{"--port", "65536"}, "--port"},
      {{"--tp", "3"}, "can be 1, 2"},
      {{"--listen", "256.1.1.1"}, "cannot listen"},
      {{"--listen", "127.0.0.1:50051"}, "--port"},
      {{"--control-listen", "[::1]:0"}, "--control-port"},
      {{"--metrics", "256.1.1.1:0"}, "cannot listen"},
      {{"--metrics", "[::1]:0"}, "--metrics"},
      {{"--metrics", "1,2"}, "--metrics"},
      {{"--metrics", "127.0.0.1:65536"}, "--metrics"},
      {{"--metrics", "127.0.0.1:"}, "--metrics"},
      {{"--metrics", ":1"}, "--metrics"},
      {{"--ready-file", "/nowhere/ready"}, "--ready-file"},
      {{"--ready-file", "/tmp"}, "--ready-file"},
      {{"--log-level", "loud\nly"}, "loud"},
  };
  for (const auto& [flags, word] : table) {
    SCOPED_TRACE(flags[0] + " " + flags[1]);
    std::vector<std::string> arguments = {"serve", "--port", "0", "--model", model};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    expect_one_line(annulus(std::move(arguments)), word);
  }
  expect_one_line(annulus({"generate", "--prompt", "x", "--seed", "-1"}), "--seed");
  const std::string ids = scratch_directory() + "/ids";
  write_file(ids, std::string_view("1 -1 2"));
  expect_one_line(annulus({"generate", "--tokens-file", ids}), "\"-1\" is not a token id");
}

class UnderFire : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ClusterOptions options;
    options.model = tiny_model_file();
    options.serve_flags = {"--precision", "fp32", "--max-message-mib", "8"};
    cluster_ = new Cluster(options);
    expected_ = cluster_->answer("hello", 8);
    ASSERT_EQ(expected_.size(), 16u);  // greedy, then sampled
  }
  static void TearDownTestSuite() { delete std::exchange(cluster_, nullptr); }

  static int public_port() {
    int port = 0;
    EXPECT_TRUE(
        absl::SimpleAtoi(cluster_->address().substr(cluster_->address().find(':') + 1), &port));
    return port;
  }
  static void expect_unharmed() {
    EXPECT_EQ(cluster_->answer("hello", 8), expected_);
    EXPECT_TRUE(cluster_->healthy());
    EXPECT_EQ(cluster_->epoch_now(), cluster_->epoch());
  }

  static grpc::Status generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = cluster_->stub().Generate(&context, request);
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  static Cluster* cluster_;
  static std::vector<uint32_t> expected_;
};
Cluster* UnderFire::cluster_ = nullptr;
std::vector<uint32_t> UnderFire::expected_;

TEST_F(UnderFire, RequestsThatMeanNothingEndWithTheirCode) {
  const auto expect = [](StatusCode code, const std::function<void(v1::GenerateRequest&)>& change) {
    v1::GenerateRequest request = ask("hi", 4);
    change(request);
    const grpc::Status status = generate(request);
    EXPECT_EQ(status.error_code(), code) << status.error_message() << "\n" << request.DebugString();
    EXPECT_FALSE(status.error_message().empty());
    EXPECT_EQ(status.error_message().find('\n'), std::string::npos) << status.error_message();
  };
  const auto invalid = [&](const std::function<void(v1::GenerateRequest&)>& change) {
    expect(StatusCode::INVALID_ARGUMENT, change);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, -1.0f, std::numeric_limits<float>::infinity()}) {
    invalid([&](auto& r) { r.mutable_sampling()->set_temperature(bad); });
    invalid([&](auto& r) { r.mutable_sampling()->set_top_p(bad); });
    invalid([&](auto& r) { r.mutable_sampling()->set_min_p(bad); });
  }
  invalid([](auto& r) { r.mutable_sampling()->set_top_p(0); });
  invalid([](auto& r) { r.clear_text(); });
  invalid([](auto& r) { r.set_text(""); });
  invalid([](auto& r) { r.mutable_chat(); });
  invalid([](auto& r) { r.mutable_chat()->add_messages()->set_role("root\n"); });
  invalid([](auto& r) { r.set_packed_tokens("abc"); });
  invalid([](auto& r) { r.set_packed_tokens("\xff\xff\xff\xff"); });
  invalid([](auto& r) { r.mutable_tokens()->add_ids(288); });
  invalid([](auto& r) { r.mutable_tokens()->add_ids(4294967295u); });
  invalid([](auto& r) { r.add_stop_token_ids(288); });
  invalid([](auto& r) { r.add_forced_tokens(288); });
  invalid([](auto& r) { r.add_stop(""); });
  invalid([](auto& r) { r.add_stop(std::string(5000, 'x')); });
  invalid([](auto& r) { r.set_max_tokens(4294967295u); });
  invalid([](auto& r) { r.set_top_logprobs(129); });
  invalid([](auto& r) { r.add_prompt_logprob_positions(99); });
  invalid([](auto& r) { r.set_session(std::string(300, 's')); });
  invalid([](auto& r) { r.set_request_id(std::string(300, '\n')); });
  invalid([](auto& r) { r.set_attention(static_cast<v1::Attention>(77)); });
  invalid([](auto& r) { r.set_chunk_tokens(5); });
  invalid([](auto& r) { r.set_append(true); });
  expect(StatusCode::NOT_FOUND, [](auto& r) {
    r.set_append(true);
    r.set_session("nobody\n");
  });
  expect(StatusCode::OUT_OF_RANGE, [](auto& r) { r.set_text(std::string(5000, 'x')); });
  expect(StatusCode::RESOURCE_EXHAUSTED, [](auto& r) { r.set_text(std::string(9 << 20, 'x')); });
  expect_unharmed();
}

// Bytes as the message of a call; a stream of the client's is closed after it.
grpc::Status call(const std::string& address, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  const auto stream = stub.PrepareCall(&context, method, &queue);
  void* tag = nullptr;
  bool ok = true;
  stream->StartCall(nullptr);
  queue.Next(&tag, &ok);
  if (ok) {
    stream->WriteLast(request, {}, nullptr);
    queue.Next(&tag, &ok);
  }
  grpc::ByteBuffer answer;
  for (ok = true; ok;) {
    stream->Read(&answer, nullptr);
    queue.Next(&tag, &ok);
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return status;
}

TEST_F(UnderFire, MessagesThatDoNotParseAreInvalidArguments) {
  const std::string control = absl::StrCat("127.0.0.1:", cluster_->control_port());
  const std::vector<std::string> garbage = {
      "\x0a\x7fx", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
      std::string("\x0a\x02\xff\xfe", 4), random_text(1000, 5) + "\xff"};
  const auto check = [&](const std::string& address, const std::string& method) {
    for (const std::string& bytes : garbage) {
      const grpc::Status status = call(address, method, bytes);
      EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT)
          << method << ": " << status.error_message();
    }
  };
  for (const char* method :
       {"Generate", "Tokenize", "Detokenize", "RewindSession", "GetModel", "GetCluster"}) {
    // A field of its own is no use to a message without fields: what parses is no error.
    if (std::string(method).starts_with("Get") || std::string(method) == "Detokenize") {
      const grpc::Status status =
          call(cluster_->address(), absl::StrCat("/annulus.v1.Inference/", method), garbage[1]);
      EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << method;
    } else {
      check(cluster_->address(), absl::StrCat("/annulus.v1.Inference/", method));
    }
  }
  check(cluster_->address(), "/grpc.health.v1.Health/Check");
  check(cluster_->address(), "/grpc.health.v1.Health/Watch");
  check(control, "/annulus.v1.Control/Attach");
  for (const std::string& address : {cluster_->address(), control}) {
    for (const char* method : {"/annulus.v1.Inference/Nothing", "/a/b", "/"}) {
      EXPECT_EQ(call(address, method, "x").error_code(), StatusCode::UNIMPLEMENTED) << method;
    }
  }
  // The public service is not on the control port, and the other way round.
  EXPECT_EQ(call(control, "/annulus.v1.Inference/Generate", "").error_code(),
            StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(call(cluster_->address(), "/annulus.v1.Control/Attach", "").error_code(),
            StatusCode::UNIMPLEMENTED);
  expect_unharmed();
}

const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
std::string frame(uint32_t length, char type, char flags, uint32_t stream, std::string_view body) {
  std::string out;
  for (const int shift : {16, 8, 0}) out.push_back(static_cast<char>(length >> shift));
  out.push_back(type);
  out.push_back(flags);
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<char>(stream >> shift));
  return out.append(body);
}

std::vector<std::string> raw_garbage() {
  const std::string settings = kPreface + frame(0, 4, 0, 0, "");
  std::vector<std::string> all = {
      "",
      std::string(1, '\0'),
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
      "POST /annulus.v1.Inference/Generate HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
      "SSH-2.0-OpenSSH_9.2\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + random_text(500, 6),
      kPreface.substr(0, 12),
      kPreface,
      settings + frame(0xffffff, 0, 0, 1, std::string(100000, 'x')),  // a huge frame
      settings + frame(5, 1, 4, 1, "\xff\xff\xff\xff\xff"),           // headers that are none
      settings + frame(8, 0, 0, 0, "12345678"),                       // data without a stream
      settings + frame(6, 4, 0, 0, std::string("\x00\x04\xff\xff\xff\xff", 6)),  // window too large
      settings + frame(4, 8, 0, 0, std::string(4, '\0')),  // window update of 0
      settings + frame(0, 9, 4, 3, ""),                    // a stray continuation
      settings + random_text(100000, 7),
  };
  for (uint64_t seed = 10; seed < 20; ++seed) all.push_back(random_text(1 << (seed - 4), seed));
  std::string rapid = settings;  // streams opened and reset at once
  for (uint32_t stream = 1; stream < 4000; stream += 2) {
    rapid += frame(3, 1, 4, stream, "\x83\x86\x84") +
             frame(4, 3, 0, stream, std::string("\0\0\0\x08", 4));
  }
  all.push_back(rapid);
  return all;
}

TEST_F(UnderFire, GarbageOnBothPortsLeavesNothingBehind) {
  const auto barrage = [] {
    for (const int port : {public_port(), cluster_->control_port()}) {
      for (const std::string& bytes : raw_garbage()) {
        const Socket socket(port);
        ASSERT_TRUE(socket.connected());
        socket.write(bytes);
        socket.read(20);
      }
      {  // Slow or silent ones, held open while others are served.
        std::vector<std::unique_ptr<Socket>> idle;
        for (int i = 0; i < 200; ++i) {
          idle.push_back(std::make_unique<Socket>(port));
          if (idle.back()->connected())
            idle.back()->write(kPreface.substr(0, static_cast<size_t>(i) % 24));
        }
        expect_unharmed();
      }
      for (int i = 0; i < 500; ++i) Socket flood(port);
    }
    expect_unharmed();
  };
  barrage();  // buffers and threads that stay are made here
  const pid_t front = cluster_->front().pid();
  const auto settled = [&](int descriptors) {
    return eventually(30, [&] { return held_by(front).descriptors <= descriptors; });
  };
  EXPECT_TRUE(settled(150)) << held_by(front).descriptors << " descriptors";
  const Held before = held_by(front);
  for (int round = 0; round < 3; ++round) barrage();
  EXPECT_TRUE(settled(before.descriptors + 2))
      << before.descriptors << " descriptors before, " << held_by(front).descriptors << " after";
  const Held after = held_by(front);
  EXPECT_LE(after.threads, before.threads + 4);
  EXPECT_LT(after.resident_kib - before.resident_kib, 24 << 10);
  std::printf("descriptors %d -> %d, threads %d -> %d, resident %lld -> %lld KiB\n",
              before.descriptors, after.descriptors, before.threads, after.threads,
              static_cast<long long>(before.resident_kib),
              static_cast<long long>(after.resident_kib));
}

// Many of the largest requests at once: what they hold is bounded by the server's message buffers
// (256 MiB here), not by their number.
TEST_F(UnderFire, TheLargestRequestsAtOnceHoldBoundedMemory) {
  constexpr int kClients = 120;
  const v1::GenerateRequest request = ask(std::string(size_t{8 << 20} - 64, 'm'), 1);
  const pid_t front = cluster_->front().pid();
  const int64_t before = held_by(front).resident_kib;
  std::atomic<int> running = kClients;
  std::vector<grpc::Status> ends(kClients);
  std::vector<std::thread> clients;
  for (grpc::Status& end : ends) {
    clients.emplace_back([&] {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
          cluster_->address(), grpc::InsecureChannelCredentials(), arguments));
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(200));
      const auto reader = stub->Generate(&context, request);
      v1::GenerateResponse event;
      while (reader->Read(&event)) {
      }
      end = reader->Finish();
      --running;
    });
  }
  int64_t peak = 0;
  while (running > 0) {
    peak = std::max(peak, held_by(front).resident_kib);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (std::thread& client : clients) client.join();
  int refused = 0;
  for (const grpc::Status& end : ends) {
    refused += end.error_code() == StatusCode::OUT_OF_RANGE;
    EXPECT_TRUE(end.error_code() == StatusCode::OUT_OF_RANGE ||
                end.error_code() == StatusCode::RESOURCE_EXHAUSTED ||
                end.error_code() == StatusCode::UNAVAILABLE)
        << end.error_code() << " " << end.error_message();
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(peak - before, 512 << 10) << "KiB";  // with what is being parsed; all: 960
  std::printf("%d refused, %d cut off, resident +%lld MiB\n", refused, kClients - refused,
              static_cast<long long>(peak - before) >> 10);
  expect_unharmed();
}

// A client that asks and never reads: its answer piles up to the outbox's limit at most, and goes
// with it.
TEST_F(UnderFire, AClientThatNeverReadsHoldsNobodyUp) {
  v1::GenerateRequest request = ask("hello", 2000);
  request.set_top_logprobs(128);
  {
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
    for (int i = 0; i < 4; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      readers.push_back(cluster_->stub().Generate(contexts.back().get(), request));
    }
    expect_unharmed();
    for (auto& context : contexts) context->TryCancel();
    v1::GenerateResponse event;
    for (auto& reader : readers) {
      while (reader->Read(&event)) {
      }
      EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
    }
  }
  EXPECT_TRUE(eventually(30, [&] {
    grpc::ClientContext context;
    v1::GetClusterResponse cluster;
    return cluster_->stub().GetCluster(&context, {}, &cluster).ok() &&
           cluster.requests_running() + cluster.requests_waiting() == 0;
  }));
  expect_unharmed();
}

}  // namespace
}  // namespace annulus::testing
