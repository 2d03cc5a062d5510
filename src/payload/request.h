// What a client asks for, found in one pass over the bytes of its body, as they come, without a document
// tree.
//
//   RequestScanner scanner(ApiOfPath(":path of the request"));
//   scanner.Feed(chunk1); scanner.Feed(chunk2);      // cut anywhere; only the fields below are kept
//   scanner.Finish(); if (!scanner.ok()) -> 400 with scanner.error()
//
// The whole body is checked as JSON (RFC 8259) on the way: strings, numbers, literals, nesting, UTF-8.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "payload/grpc_scanner.h"
#include "payload/json_scanner.h"
#include "payload/parsers.h"
#include "payload/prompt_hash.h"

namespace fairway::payload {

enum class Api {
  kChatCompletions,   // .../chat/completions
  kCompletions,       // .../completions
  kEmbeddings,        // .../embeddings
  kResponses,         // .../responses
  kMessages,          // Anthropic .../messages
  kImages,            // .../images/generations
  kVllmGenerate,      // vLLM .../inference/v1/generate: token ids
  kSglangGenerate,    // SGLang /generate: text or token ids, no model; what is no JSON passes
  kVllmGrpcGenerate,  // vLLM's gRPC service (request_grpc.cc): text or token ids, no model
  kVllmGrpcEmbed,     // the same: token ids
  kVertexChat,        // Vertex AI's gRPC service (request_wrapped.cc): chat/completions as JSON inside
  kVertexRaw,         // the same: responses
  kUnknown,           // anything else: passes through, model read where the body is a JSON object with one
};

// What reads the body of a request with this path: the longest suffix wins that one of these parsers takes; query
// and trailing "/" are ignored; a segment boundary is required (docs/compatibility.md). Nothing: none takes it.
std::optional<Api> ApiOfPath(std::string_view path, Parsers parsers);
// With the default ones, which take any.
inline Api ApiOfPath(std::string_view path) {
  return ApiOfPath(path, Parsers::Default()).value_or(Api::kUnknown);
}
std::string_view ToString(Api api);
// Requests of this API have to name a model.
constexpr bool NamesModel(Api api) {
  return api < Api::kSglangGenerate || api == Api::kVertexChat || api == Api::kVertexRaw;
}
// Its bodies are gRPC messages. What comes compressed passes unread.
constexpr bool IsGrpc(Api api) { return api >= Api::kVllmGrpcGenerate && api <= Api::kVertexRaw; }
// Inside the messages is JSON, of another API.
constexpr bool IsWrapped(Api api) { return api == Api::kVertexChat || api == Api::kVertexRaw; }
// Of that one; of any other itself.
constexpr Api InnerOf(Api api) {
  return api == Api::kVertexChat ? Api::kChatCompletions : api == Api::kVertexRaw ? Api::kResponses : api;
}

struct RequestFields {
  bool has_model = false;  // a string; it may be empty
  std::string model;    // decoded; of duplicate keys the last counts, as every engine's JSON library has it
  Span model_span;      // the JSON value with its quotes, for PutModel; also of a model of a wrong type
  bool stream = false;  // only when literally true
  bool has_media = false;  // an image, sound or video is among the prompt's parts
  std::optional<int64_t>
      max_tokens;  // max_completion_tokens, max_tokens or max_output_tokens, as the API has it
  // Raw bytes of the strings that make the prompt (without quotes, escapes as sent), in the order of the
  // body: message contents and the texts in their blocks, system and instructions, prompt or input.
  std::vector<Span> prompt;
  uint64_t prompt_bytes = 0;  // sum over `prompt`, spans beyond kMaxPromptSpans included, and 4 per token id
  std::string cache_salt;
  Span members;              // inside of the body's braces: [behind '{', begin of '}' or 0 when not seen)
  bool empty_object = true;  // no member was seen
  // JSON inside of a gRPC message: what stands around it. 0: it is none.
  struct Wrap {
    Span http_body;
    Span data;
    bool operator==(const Wrap&) const = default;
  };
  Wrap wrap;
  bool operator==(const RequestFields&) const = default;
};

// Owned by one thread; may be moved between chunks. Memory: the fields, and one nesting bit per level up to
// the limit. No exceptions, any bytes, linear time.
class RequestScanner final : private MemberSink, private GrpcSink {
 public:
  static constexpr int kMaxDepth = JsonScanner::kMaxDepth;  // deeper nesting is an error
  static constexpr size_t kMaxModelBytes = 4096;            // a longer model name is an error
  static constexpr size_t kMaxSaltBytes = 4096;             // so is a longer cache_salt
  static constexpr size_t kMaxPromptSpans = 4096;           // further ones count in prompt_bytes only

  explicit RequestScanner(Api api) : api_(InnerOf(api)), outer_(api) {
    if (IsGrpc(api)) grpc_ = std::make_unique<Grpc>();
  }
  // From the next body on the prompt's blocks are hashed as they pass, and where it is given as tokens they
  // are kept, if wanted. REQUIRES: no byte of this body was fed.
  void HashPrompt(bool on, bool keep_tokens = false) {
    hasher_ = on ? std::make_unique<PromptHasher>() : nullptr;
    if (on) hasher_->KeepTokens(keep_tokens);
  }
  // As new, for the next body; keeps memory of what most bodies need.
  void Reset(Api api);
  void Feed(std::string_view chunk);
  // The body is complete. Unknown APIs accept any bytes; the others need a JSON object with the field that
  // makes a prompt. Whether a model is needed is not decided here: see has_model.
  void Finish();
  // The rest of the body will not come (BUFFERED_PARTIAL): keeps what was found, also the begin of a prompt
  // string that is cut, and checks nothing more.
  void FinishPartial();

  bool ok() const { return error_.empty(); }
  // "" when ok; else as the reference words it: "error unmarshaling request bodyMap: invalid JSON at byte 17:
  // ...", "invalid completions request: must have prompt field".
  const std::string& error() const { return error_; }
  const RequestFields& fields() const { return fields_; }
  Api api() const { return outer_; }
  // Bytes that it holds beside itself, a few hundred of the JSON at hand left out.
  size_t memory() const {
    return fields_.model.capacity() + fields_.cache_salt.capacity() + error_.capacity() +
           fields_.prompt.capacity() * sizeof(Span) + (hasher_ != nullptr ? hasher_->memory() : 0) +
           (grpc_ != nullptr ? sizeof(Grpc) : 0);
  }
  // The blocks' hashes, complete after Finish or FinishPartial; null where they were not asked for. Of what
  // is not ok() they mean nothing. What is hashed: texts as in fields().prompt; of a chat also roles, tools,
  // calls of tools and what they gave; an image and the like as one block; token ids.
  const PromptHasher* prompt_hashes() const { return hasher_.get(); }

 private:
  // What a value is, from where it stands.
  enum class Place : uint8_t {
    kMain,  // messages, prompt or input; from here on members with a Part
    kSide,  // system or instructions
    kContent,
    kBlockText,
    kBlockContent,  // Anthropic: what a tool returned
    kInnerText,
    kRoot,  // from here on others
    kIgnored,
    kModel,
    kStream,
    kLimit,           // max tokens
    kPreferredLimit,  // chat: max_completion_tokens, which wins over max_tokens
    kSalt,
    kTyped,    // checked for its type only, see typed_
    kInstead,  // stands for the main member: completions' prompt_embeds, responses' prompt
    kMessage,  // also: item of responses' input
    kRole,
    kBlock,
    kInnerBlock,
    kPromptItem,  // element of prompt, or of embeddings' input
    kToken,
    kUncached,  // what makes an engine leave its prefix cache unread
    kTools,     // up to kFile only where the prompt is hashed: tools of the body,
    kWhole,     // all bytes of the value,
    kOne,       // the value as one block; also without hashing: an image and the like
    kFile,      // the value as one block
    kMedia,     // the same beside the prompt, which is never hashed
    kSampling,  // vLLM's and SGLang's: an object with a limit
  };
  enum class Type : uint8_t { kString, kNumber, kBool, kNull, kObject, kArray };
  struct Level {
    Place place = Place::kRoot;
    bool array = false;
    Place element = Place::kIgnored;  // what the elements of an array are
  };
  // The prompt strings of one member, so that a later duplicate of it can take them back.
  struct Part {
    uint64_t first = 0;
    uint64_t count = 0;
    uint64_t bytes = 0;
  };
  // A member of `chat/completions` and the like whose type is checked.
  struct TypedMember {
    std::string_view key;
    Type type;
  };
  static const std::array<TypedMember, 8> kTypedMembers;

  [[gnu::hot]] bool OnObject(uint64_t begin) override { return OnContainer(begin, Type::kObject); }
  bool OnArray(uint64_t begin) override { return OnContainer(begin, Type::kArray); }
  void OnClose(uint64_t end) override;
  void OnKey(std::string_view key) override;
  size_t OnString(uint64_t begin) override;
  void OnStringEnd(Span span, std::string_view text, bool truncated) override;
  void OnNumber(Span span, std::string_view text) override;
  void OnLiteral(Span span, char first) override;
  bool OnPlainMember(const PlainMember& member) override;

  void FeedJson(std::string_view chunk);
  void FinishJson();
  void FinishPartialJson();

  // Of gRPC messages (request_grpc.cc). REQUIRES: grpc_ != nullptr, for all of these.
  struct Grpc {
    enum class Input : uint8_t { kNone, kTokens, kText, kJson };
    GrpcScanner scanner;
    uint32_t inside = 0;  // the field whose message is being read; 0: the request itself
    Input input = Input::kNone;
    Span text;
    bool complete = false;  // of what comes behind the first message nothing is taken
  };
  Take OnField(uint32_t field, uint64_t begin, uint64_t length) override;
  void OnNumber(uint32_t field, uint64_t value) override;
  void OnBytes(std::string_view piece) override;
  void OnEnd(uint32_t field) override;
  void OnLeave(uint32_t field) override;
  void OnMessageEnd() override;
  void BeginGrpcInput(Grpc::Input input);
  void FeedGrpc(std::string_view chunk);
  void FinishGrpc();
  void FinishPartialGrpc();
  void RefuseGrpc();
  // Of those with JSON inside (request_wrapped.cc).
  Take OnWrappedField(uint32_t field, uint64_t begin, uint64_t length);
  void FinishWrapped();
  void FinishPartialWrapped();
  void MoveSpans();

  static constexpr uint64_t kBytesPerToken = 4;
  bool OnContainer(uint64_t begin, Type type);
  Place Element(Place container) const;
  Place Member(Place object, std::string_view key) const;
  Place TopMember(std::string_view key) const;
  static Place ChatMember(std::string_view key);
  void BeginMember(Place place, std::string_view key);
  void BeginValue(Place place, Type type);
  void EndValue(Place place);
  Part* PartOf(Place place) { return place < Place::kRoot ? &parts_[static_cast<size_t>(place)] : nullptr; }
  void Drop(Place gone, Place sibling);
  void AddPrompt(Span text);
  // Of prompts that are hashed (request_hash.cc). REQUIRES: hasher_ != nullptr, for these.
  void FeedAndHash(std::string_view chunk);
  Place HashedMember(Place object, std::string_view key) const;
  static bool IsMedia(std::string_view key);
  static Place SglangMember(std::string_view key);
  std::optional<PromptHasher::Part> HashedPart(Place place) const;
  void BeginHashed(Place place, uint64_t begin, bool string);
  void EndHashed(Place place, uint64_t end);
  void HashPlain(Place place, std::string_view text);
  void HashToken(std::string_view text);
  void HashUpTo(uint64_t end);
  bool IsPrompt(Place place) const;  // of a string
  bool MainIsValid() const;
  bool MainIsMessages() const {
    return api_ == Api::kChatCompletions || api_ == Api::kMessages ||
           (api_ == Api::kEmbeddings && embeds_messages_);
  }
  void NotAnObject(uint64_t at, std::string_view found);
  void TooLong(std::string_view what, uint64_t at, size_t max);
  void RefuseJson();
  void RefuseFields();
  // Members of the body whose value needs no preparation and no end.
  static bool IsOneBlock(Place place) { return place == Place::kOne || place == Place::kFile; }
  // Of these any bytes will do.
  bool IsLenient() const { return api_ == Api::kUnknown || api_ == Api::kSglangGenerate; }
  static bool IsPlain(Place place) { return place >= Place::kRoot && place <= Place::kPreferredLimit; }
  static unsigned Bit(Place place) { return 1U << static_cast<unsigned>(place); }
  bool Seen(Place place) const { return (seen_ & Bit(place)) != 0; }

  Api api_;    // whose JSON it is
  Api outer_;  // whose body
  JsonScanner json_;
  RequestFields fields_;
  std::string error_;
  // Where we are in the document; only the levels above a kIgnored one are followed, never more than these.
  std::array<Level, 9> levels_;
  size_t depth_ = 0;
  // Members of the body that came before: a further one forgets what they said. These two do at any rate.
  static constexpr unsigned kSeenAtFirst =
      1U << static_cast<unsigned>(Place::kSalt) | 1U << static_cast<unsigned>(Place::kTyped);
  unsigned seen_ = kSeenAtFirst;
  Place current_ = Place::kRoot;  // of the value that is next or being read

  std::array<Part, static_cast<size_t>(Place::kRoot)> parts_;
  std::optional<int64_t> preferred_limit_, limit_;
  Type main_type_ = Type::kNull;
  bool embeds_messages_ = false;                 // embeddings: the main member is messages, not input
  bool has_instead_ = false;                     // a kInstead that is not null
  bool main_bad_ = false;                        // a message or item is wrong
  uint64_t main_items_ = 0;                      // elements, or bytes of a string
  unsigned item_types_ = 0;                      // bit per Type of prompt's elements
  bool role_bad_ = false, content_bad_ = false;  // of this message
  size_t typed_ = 0;                             // which of kTypedMembers
  unsigned typed_bad_ = 0;                       // bit per kTypedMembers

  std::unique_ptr<PromptHasher> hasher_;
  std::unique_ptr<Grpc> grpc_;   // null: the body is JSON
  const char* chunk_ = nullptr;  // that is being fed, and where it begins in the body
  uint64_t chunk_begin_ = 0;
  uint64_t hash_from_ = 0;  // the first byte that is not hashed yet of a value that is
  bool hashing_ = false;    // inside of one
};

// The JSON bytes (with quotes) that take the place of fields.model_span to name `model`. Invalid UTF-8 in it
// becomes U+FFFD.
std::string ModelReplacement(std::string_view model);

// Makes `body`, which `fields` were read from, name `model`: in place of the name that it has, also one of a
// wrong type, or as a member more. Every other byte stays but the lengths around it, and a long body is not
// copied. False where the body is no whole JSON object.
bool PutModel(std::string& body, const RequestFields& fields, std::string_view model);

}  // namespace fairway::payload
