// gRPC C++ as a model server and as a client, with raw bytes as messages, for grpc_scenario.py: no code of ours.
//
//   grpc_peer serve PORT...            a server on each; says "ready"
//   grpc_peer call PORT METHOD HEX [deadline_ms] [gzip]
//       one call of vllm.grpc.engine.VllmEngine/METHOD with this message; prints
//       "status CODE TEXT", "header NAME VALUE" and "message HEX" lines
//
// The server answers Generate with as many messages as the text of field 3 says after "chunks=", each a chunk of two
// token ids, and with one that completes; "fail=N" ends it with that status after the chunks, "refuse=N" at once, "wait"
// never. Each answer has the header served-by, and the header got with the request's bytes as hex.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/support/grpc_bytes.h"

namespace {

using fairway::testing::Bytes;
using fairway::testing::Text;

std::string Hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out += kDigits[static_cast<unsigned char>(c) >> 4];
    out += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return out;
}
std::string Unhex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return out;
}

// What stands behind "NAME=" in a message, or -1.
int NumberIn(const std::string& message, const std::string& name) {
  const size_t at = message.find(name + "=");
  return at == std::string::npos ? -1 : std::atoi(message.c_str() + at + name.size() + 1);
}

class Answer final : public grpc::ServerGenericBidiReactor {
 public:
  Answer(grpc::GenericCallbackServerContext* context, std::string name) : context_(context) {
    context_->AddInitialMetadata("served-by", name);
    StartRead(&in_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) return End(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no message"));
    request_ = Text(in_);
    context_->AddInitialMetadata("got", Hex(request_.substr(0, 2000)));
    if (const int code = NumberIn(request_, "refuse"); code >= 0)
      return End(grpc::Status(static_cast<grpc::StatusCode>(code), "refused"));
    if (request_.find("wait") != std::string::npos) return StartSendInitialMetadata();
    chunks_ = std::max(NumberIn(request_, "chunks"), 0);
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) Next();
  }
  void OnCancel() override {
    if (!finished_) End(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (chunks_ > 0) {
      --chunks_;
      // GenerateResponse{chunk: {token_ids: [5, 6], prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4}}
      out_ = Bytes(std::string("\x0a\x0a\x0a\x02\x05\x06\x10\x09\x18\x02\x20\x04", 12));
      return StartWrite(&out_);
    }
    if (const int code = NumberIn(request_, "fail"); code >= 0)
      return End(grpc::Status(static_cast<grpc::StatusCode>(code), "failed"));
    if (completed_) return End(grpc::Status::OK);
    completed_ = true;
    // {complete: {output_ids: [5, 6], prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4}}
    out_ = Bytes(std::string("\x12\x0a\x0a\x02\x05\x06\x18\x09\x20\x02\x28\x04", 12));
    StartWrite(&out_);
  }
  void End(const grpc::Status& status) {
    finished_ = true;
    Finish(status);
  }

  grpc::GenericCallbackServerContext* context_;
  grpc::ByteBuffer in_, out_;
  std::string request_;
  int chunks_ = 0;
  bool completed_ = false;
  bool finished_ = false;
};

class Service final : public grpc::CallbackGenericService {
 public:
  explicit Service(std::string name) : name_(std::move(name)) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return new Answer(context, name_);
  }

 private:
  std::string name_;
};

int Serve(const std::vector<std::string>& ports) {
  std::vector<std::unique_ptr<Service>> services;
  std::vector<std::unique_ptr<grpc::Server>> servers;
  for (const std::string& port : ports) {
    services.push_back(std::make_unique<Service>("127.0.0.1:" + port));
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + port, grpc::InsecureServerCredentials());
    builder.RegisterCallbackGenericService(services.back().get());
    servers.push_back(builder.BuildAndStart());
    if (servers.back() == nullptr) {
      std::cerr << "cannot listen on " << port << std::endl;
      return 1;
    }
  }
  std::cout << "ready" << std::endl;
  servers.front()->Wait();
  return 0;
}

int Call(const std::string& port, const std::string& method, const std::string& message, int deadline_ms,
         bool gzip) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt("grpc.enable_retries", 0);
  grpc::GenericStub stub(
      grpc::CreateCustomChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
  if (gzip) context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto stream = stub.PrepareCall(&context, "/vllm.grpc.engine.VllmEngine/" + method, &queue);
  stream->StartCall(nullptr);
  if (wait()) {
    stream->WriteLast(Bytes(message), grpc::WriteOptions(), nullptr);
    wait();
    grpc::ByteBuffer answer;
    while (stream->Read(&answer, nullptr), wait()) std::cout << "message " << Hex(Text(answer)) << "\n";
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  wait();
  for (const auto& [name, value] : context.GetServerInitialMetadata())
    std::cout << "header " << name << " " << value << "\n";
  for (const auto& [name, value] : context.GetServerTrailingMetadata())
    std::cout << "trailer " << name << " " << value << "\n";
  std::cout << "status " << status.error_code() << " " << status.error_message() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() >= 2 && words[0] == "serve") return Serve({words.begin() + 1, words.end()});
  if (words.size() >= 4 && words[0] == "call")
    return Call(words[1], words[2], Unhex(words[3]), words.size() > 4 ? std::atoi(words[4].c_str()) : 20000,
                words.size() > 5 && words[5] == "gzip");
  std::cerr << "usage: grpc_peer serve PORT... | call PORT METHOD HEX [deadline_ms] [gzip]" << std::endl;
  return 2;
}
