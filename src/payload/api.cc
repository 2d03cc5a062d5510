#include <array>

#include "base/strings.h"
#include "payload/request.h"

namespace fairway::payload {
namespace {

struct KnownPath {
  std::string_view suffix;
  Api api;
  Parser parser;
};

// Longest first among those that end alike. What is not read here goes by load, as what passthrough-parser takes.
constexpr std::array kPaths = {
    KnownPath{"chat/completions/render", Api::kChatCompletions, Parser::kOpenai},
    KnownPath{"chat/completions", Api::kChatCompletions, Parser::kOpenai},
    KnownPath{"completions/render", Api::kCompletions, Parser::kOpenai},
    KnownPath{"completions", Api::kCompletions, Parser::kOpenai},
    KnownPath{"embeddings", Api::kEmbeddings, Parser::kOpenai},
    KnownPath{"responses", Api::kResponses, Parser::kOpenai},
    KnownPath{"messages/count_tokens", Api::kMessages, Parser::kAnthropic},
    KnownPath{"messages", Api::kMessages, Parser::kAnthropic},
    KnownPath{"images/generations", Api::kImages, Parser::kOpenai},
    KnownPath{"inference/v1/generate", Api::kVllmGenerate, Parser::kVllmHttp},
    KnownPath{"conversations", Api::kUnknown, Parser::kOpenai},
    KnownPath{"vllm.grpc.engine.VllmEngine/Generate", Api::kVllmGrpcGenerate, Parser::kVllmGrpc},
    KnownPath{"vllm.grpc.engine.VllmEngine/Embed", Api::kVllmGrpcEmbed, Parser::kVllmGrpc},
    KnownPath{"PredictionService/ChatCompletions", Api::kVertexChat, Parser::kVertexAi},
    KnownPath{"PredictionService/StreamRawPredict", Api::kVertexRaw, Parser::kVertexAi},
    KnownPath{"PredictionService/RawPredict", Api::kVertexRaw, Parser::kVertexAi},
};

constexpr std::array kParserTypes = {
#define PARSER(parser, type) std::string_view(type),
#include "payload/parser_list.h"
#undef PARSER
};

bool HasSuffix(std::string_view path, std::string_view suffix) {
  if (!path.ends_with(suffix)) return false;
  if (path.size() == suffix.size()) return true;
  const char before = path[path.size() - suffix.size() - 1];
  // A gRPC service's package stands before its name.
  return before == '/' || (before == '.' && suffix.starts_with("PredictionService"));
}

}  // namespace

std::string_view ToString(Parser parser) { return kParserTypes[static_cast<size_t>(parser)]; }

std::optional<Parser> FindParser(std::string_view type) {
  for (size_t i = 0; i < kParserTypes.size(); ++i) {
    if (kParserTypes[i] == type) return static_cast<Parser>(i);
  }
  return std::nullopt;
}

std::string ToString(Parsers parsers) {
  std::string out;
  for (size_t i = 0; i < kParserTypes.size(); ++i) {
    if (!parsers.Has(static_cast<Parser>(i))) continue;
    if (!out.empty()) out += ", ";
    out += kParserTypes[i];
  }
  return out;
}

namespace {

std::optional<Api> ApiOfPlainPath(std::string_view path, Parsers parsers) {
  while (path.ends_with('/')) path.remove_suffix(1);
  for (const KnownPath& known : kPaths) {
    if (HasSuffix(path, known.suffix) && parsers.Has(known.parser)) return known.api;
  }
  // Not where it stands behind something: other servers have other APIs of that name.
  if (parsers.Has(Parser::kSglangHttp) && (path == "/generate" || path == "generate"))
    return Api::kSglangGenerate;
  if (!parsers.Has(Parser::kPassthrough)) return std::nullopt;
  return Api::kUnknown;
}

}  // namespace

[[gnu::hot]] std::optional<Api> ApiOfPath(std::string_view path, Parsers parsers) {
  path = path.substr(0, path.find('?'));
  // As servers read a path before they look for who answers it: "/v1%2Fcompletions" is "/v1/completions".
  if (path.find('%') != std::string_view::npos) [[unlikely]]
    return ApiOfPlainPath(base::PercentDecoded(path), parsers);
  return ApiOfPlainPath(path, parsers);
}

std::string_view ToString(Api api) {
  switch (api) {
    case Api::kChatCompletions:
      return "chat/completions";
    case Api::kCompletions:
      return "completions";
    case Api::kEmbeddings:
      return "embeddings";
    case Api::kResponses:
      return "responses";
    case Api::kMessages:
      return "messages";
    case Api::kImages:
      return "images/generations";
    case Api::kVllmGenerate:
      return "inference/v1/generate";
    case Api::kSglangGenerate:
      return "generate";
    case Api::kVllmGrpcGenerate:
      return "VllmEngine/Generate";
    case Api::kVllmGrpcEmbed:
      return "VllmEngine/Embed";
    case Api::kVertexChat:
      return "PredictionService/ChatCompletions";
    case Api::kVertexRaw:
      return "PredictionService/RawPredict";
    case Api::kUnknown:
      return "unknown";
  }
  return "unknown";
}

}  // namespace fairway::payload
