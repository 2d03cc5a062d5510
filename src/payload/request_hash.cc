// How RequestScanner hands the prompt's bytes to its PromptHasher: each value that belongs to the prompt from
// where it begins, or its chunk begins, to where it ends, or its chunk ends.
#include <algorithm>
#include <array>

#include "base/strings.h"
#include "payload/request.h"

namespace fairway::payload {
namespace {

// A chunk is read and hashed in steps of that size, so that the bytes are in the first cache still when they
// are hashed.
constexpr size_t kStep = 16384;

// What a block of content has beside text and media (IsMedia): a file, by its URL, its id or its data.
constexpr auto kFileKeys = std::to_array<std::string_view>({"file", "file_id", "file_url", "file_data"});

}  // namespace

void RequestScanner::FeedAndHash(std::string_view chunk) {
  while (!chunk.empty() && !json_.failed()) {
    const std::string_view step = chunk.substr(0, chunk.size() < 2 * kStep ? chunk.size() : kStep);
    chunk_ = step.data();
    chunk_begin_ = json_.offset();
    json_.Feed(step, *this);
    if (hashing_ && !json_.failed()) HashUpTo(json_.offset());
    chunk.remove_prefix(step.size());
  }
}

void RequestScanner::HashUpTo(uint64_t end) {
  // What ended in an earlier chunk was hashed with it; its end is known with the byte after it.
  const uint64_t from = std::max(hash_from_, chunk_begin_);
  if (end > from) hasher_->Add({chunk_ + (from - chunk_begin_), static_cast<size_t>(end - from)});
  hash_from_ = end;
}

RequestScanner::Place RequestScanner::HashedMember(Place object, std::string_view key) const {
  if (object == Place::kMessage) {
    if (key == "tool_calls") return Place::kWhole;
    const bool call = api_ == Api::kResponses && (key == "name" || key == "arguments" || key == "output");
    return call ? Place::kWhole : Place::kIgnored;
  }
  if (object == Place::kBlock && (key == "input" || key == "name")) return Place::kWhole;  // a call of a tool
  return std::ranges::find(kFileKeys, key) != kFileKeys.end() ? Place::kFile : Place::kIgnored;
}

// Of members of the body.
std::optional<PromptHasher::Part> RequestScanner::HashedPart(Place place) const {
  switch (place) {
    case Place::kMain:
      return PromptHasher::kMain;
    case Place::kSide:
      return PromptHasher::kSystem;
    case Place::kTools:
      return PromptHasher::kTools;
    case Place::kTyped:
      break;
    default:
      return std::nullopt;
  }
  const std::string_view key = kTypedMembers[typed_].key;  // a chat's alone
  if (key == "tools") return PromptHasher::kTools;
  if (key == "documents") return PromptHasher::kDocuments;
  if (key == "chat_template") return PromptHasher::kTemplate;
  return std::nullopt;
}

// `begin`: of the bytes that count, which are those inside of a string's quotes.
void RequestScanner::BeginHashed(Place place, uint64_t begin, bool string) {
  const auto part = HashedPart(place);
  if (part) hasher_->BeginPart(*part);
  const bool one = IsOneBlock(place);
  if (one) hasher_->BeginOne();
  const bool text = string && (place == Place::kRole || IsPrompt(place));
  hashing_ =
      text || one || place == Place::kWhole || (part && place != Place::kMain && place != Place::kSide);
  hash_from_ = begin;
}

void RequestScanner::EndHashed(Place place, uint64_t end) {
  if (hashing_) HashUpTo(end);
  hashing_ = false;
  if (IsOneBlock(place)) {
    hasher_->EndOne();
  } else if (place == Place::kPromptItem) {
    hasher_->NextPrompt();
  } else if (HashedPart(place)) {
    hasher_->EndPart();
  }
}

// A string that is one member's value, all of it in this chunk.
void RequestScanner::HashPlain(Place place, std::string_view text) {
  if (place == Place::kMain) hasher_->BeginPart(PromptHasher::kMain);
  if (IsOneBlock(place)) hasher_->BeginOne();
  if (place != Place::kMain || IsPrompt(place)) hasher_->Add(text);
  if (IsOneBlock(place)) hasher_->EndOne();
  if (place == Place::kMain) hasher_->EndPart();
}

// An element of a list of token ids.
void RequestScanner::HashToken(std::string_view text) {
  const auto token = base::ParseInteger<uint32_t>(text);
  if (!token) return hasher_->Spoil();
  hasher_->AddToken(*token);
}

}  // namespace fairway::payload
