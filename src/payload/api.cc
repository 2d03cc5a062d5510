#include <array>

#include "payload/request.h"

namespace fairway::payload {
namespace {

struct KnownPath {
  std::string_view suffix;
  Api api;
};

// Longest first among those that end alike.
constexpr std::array<KnownPath, 10> kPaths = {{
    {"chat/completions/render", Api::kChatCompletions},
    {"chat/completions", Api::kChatCompletions},
    {"completions/render", Api::kCompletions},
    {"completions", Api::kCompletions},
    {"embeddings", Api::kEmbeddings},
    {"responses", Api::kResponses},
    {"messages/count_tokens", Api::kMessages},
    {"messages", Api::kMessages},
    {"images/generations", Api::kImages},
    {"inference/v1/generate", Api::kVllmGenerate},
}};

}  // namespace

[[gnu::hot]] Api ApiOfPath(std::string_view path) {
  path = path.substr(0, path.find('?'));
  while (path.ends_with('/')) path.remove_suffix(1);
  for (const KnownPath& known : kPaths) {
    if (!path.ends_with(known.suffix)) continue;
    const size_t before = path.size() - known.suffix.size();
    if (before == 0 || path[before - 1] == '/') return known.api;
  }
  // Not where it stands behind something: other servers have other APIs of that name.
  return path == "/generate" || path == "generate" ? Api::kSglangGenerate : Api::kUnknown;
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
    case Api::kUnknown:
      return "unknown";
  }
  return "unknown";
}

}  // namespace fairway::payload
