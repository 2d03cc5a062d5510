// Decisions that are recorded while a gateway asks over ext_proc are made again from the file: the same ones
// by the same options, others by others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "api/load.h"
#include "ext_proc.pb.h"
#include "frontends/ext_proc/server.h"
#include "picker/recorder.h"
#include "replay/decisions.h"
#include "tests/support/grpc_client.h"
#include "tests/support/pools.h"

namespace fairway {
namespace {

namespace pb = envoy::service::ext_proc::v3;
using fairway::testing::GrpcClient;
using fairway::testing::GrpcReply;

constexpr const char* kProcess = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
constexpr int kRequests = 60;

void AddHeader(pb::HttpHeaders& headers, const std::string& name, const std::string& value) {
  auto* header = headers.mutable_headers()->add_headers();
  header->set_key(name);
  header->set_raw_value(value);
}

// One request up to its endpoint. True when there was an answer to its body.
bool Ask(GrpcClient& client, int number) {
  const auto call = client.Open(kProcess);
  pb::ProcessingRequest first;
  first.mutable_protocol_config()->set_request_body_mode(pb::BUFFERED);
  pb::HttpHeaders& headers = *first.mutable_request_headers();
  AddHeader(headers, ":path", "/v1/completions");
  AddHeader(headers, ":method", "POST");
  AddHeader(headers, "x-request-id", "r-" + std::to_string(number));
  if (number % 7 == 0) AddHeader(headers, "x-llm-d-inference-objective", "batch");
  call->Send(first.SerializeAsString());
  if (call->Recv().kind != GrpcReply::Kind::kMessage) return false;
  pb::ProcessingRequest body;
  body.mutable_request_body()->set_body(R"({"model":"lora-)" + std::to_string(number % 3) +
                                        R"(","prompt":")" +
                                        std::string(static_cast<size_t>(number) * 100 + 1, 'x') + "\"}");
  body.mutable_request_body()->set_end_of_stream(true);
  call->Send(body.SerializeAsString());
  const bool answered = call->Recv().kind == GrpcReply::Kind::kMessage;
  call->Reset();
  return answered;
}

class Record : public ::testing::Test {
 protected:
  Record() {
    std::string name = ::testing::TempDir() + "record-XXXXXX";
    folder_ = ::mkdtemp(name.data());
    file_ = folder_ + "/decisions.jsonl";
  }
  ~Record() override { std::filesystem::remove_all(folder_); }

  // A picker over six unequal servers, asked by a gateway.
  void RecordSome(const scheduling::SchedulerOptions& scheduling) {
    base::SystemClock clock;
    std::vector<tests::ServerState> servers;
    for (uint32_t i = 0; i < 6; ++i)
      servers.push_back({.name = "s" + std::to_string(i),
                         .waiting = i,
                         .kv_usage = 0.1f * static_cast<float>(i),
                         .adapters = {"lora-" + std::to_string(i % 3)},
                         .max_adapters = 2});
    tests::TestPool pool(servers, {}, clock.Now());
    pool.manifests().objectives = {tests::Objective("batch", -1)};
    pool.fleet().Apply(pool.manifests());
    base::Registry registry;
    auto recorder = picker::DecisionRecorder::Open({.file = file_}, scheduling);
    ASSERT_TRUE(recorder) << recorder.error().message;
    routing::RouterOptions options;
    options.scheduling = scheduling;
    options.record = recorder->get();
    const routing::Router router(pool.fleet().published(), clock, registry, options);
    net::LoopThread thread("test-worker");
    ext_proc::ServerOptions server_options;
    server_options.host = "127.0.0.1";
    server_options.grpc_port = server_options.health_port = 0;
    server_options.secure_serving = false;
    auto server = ext_proc::ExtProcServer::Start(server_options, router, clock, registry,
                                                 base::Log(base::LogLevel::kOff, base::LogFormat::kText),
                                                 {&thread.loop()});
    ASSERT_TRUE(server) << server.error().message;
    std::string error;
    const auto client = GrpcClient::Connect("127.0.0.1", (*server)->grpc_port(), {}, &error);
    ASSERT_TRUE(client) << error;
    for (int i = 0; i < kRequests; ++i) EXPECT_TRUE(Ask(*client, i));
    thread.Join();
    EXPECT_EQ((*recorder)->lost(), 0u);
  }

  replay::DecisionReplay Replay(std::function<void(scheduling::SchedulerOptions&)> change,
                                std::vector<std::string>* lines = nullptr) {
    std::vector<api::Problem> problems;
    const auto done = replay::ReplayDecisions(file_,
                                              {.change = std::move(change),
                                               .tell =
                                                   [lines](std::string_view line) {
                                                     if (lines != nullptr) lines->emplace_back(line);
                                                   }},
                                              problems);
    for (const api::Problem& problem : problems) ADD_FAILURE() << ToString(problem);
    return done;
  }

  std::string folder_;
  std::string file_;
};

TEST_F(Record, IsReplayedEqual) {
  scheduling::SchedulerOptions options;
  options.lora_exploration = 0.2;
  options.max_choices = 4;
  RecordSome(options);
  const auto done = Replay({});
  EXPECT_EQ(done.same, static_cast<uint64_t>(kRequests));
  EXPECT_EQ(done.differing, 0u);
  EXPECT_EQ(done.left_out, 0u);
}

TEST_F(Record, DiffersWithAnotherOption) {
  RecordSome({});
  std::vector<std::string> lines;
  const auto done = Replay(
      [](scheduling::SchedulerOptions& options) { options.profile = scheduling::Profile::kQueueKvLora; },
      &lines);
  EXPECT_EQ(done.same + done.differing, static_cast<uint64_t>(kRequests));
  EXPECT_GT(done.differing, 0u);
  ASSERT_EQ(lines.size(), done.differing);
  EXPECT_THAT(lines[0], ::testing::MatchesRegex(".*:[0-9]+: request r-[0-9]+: was s.*, now s.* \\(.*\\)"));
}

TEST_F(Record, WhatIsNoRecordIsSaid) {
  std::ofstream(file_) << "{\"requestId\":\"r\"}\nnonsense\n";
  std::vector<api::Problem> problems;
  const auto done = replay::ReplayDecisions(file_, {}, problems);
  EXPECT_EQ(done.broken, 2u);
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_EQ(ToString(problems[0]), file_ + ":1: the first line does not say by which options was decided");
}

}  // namespace
}  // namespace fairway
