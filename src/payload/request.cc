#include "payload/request.h"

#include <algorithm>

#include "base/result.h"
#include "base/strings.h"

namespace fairway::payload {
namespace {

constexpr size_t kKeptPromptSpans = 64;

// Of the main member's names, which are messages, prompt and input.
bool IsMessagesKey(std::string_view key) { return key.size() == 8; }

}  // namespace

// The reference checks these types too; null counts as absent.
constexpr std::array<RequestScanner::TypedMember, 8> RequestScanner::kTypedMembers = {{
    {"cache_salt", Type::kString},
    {"tools", Type::kArray},
    {"documents", Type::kArray},
    {"chat_template", Type::kString},
    {"return_assistant_tokens_mask", Type::kBool},
    {"continue_final_message", Type::kBool},
    {"add_generation_prompt", Type::kBool},
    {"chat_template_kwargs", Type::kObject},
}};

[[gnu::hot]] void RequestScanner::Reset(Api api) {
  api_ = InnerOf(api);
  outer_ = api;
  json_.Reset();
  fields_.has_model = false;
  fields_.model.clear();
  fields_.model_span = {};
  fields_.stream = fields_.has_media = false;
  fields_.max_tokens.reset();
  if (fields_.prompt.capacity() > kKeptPromptSpans) std::vector<Span>().swap(fields_.prompt);
  fields_.prompt.clear();
  fields_.prompt_bytes = 0;
  fields_.cache_salt.clear();
  fields_.members = {};
  fields_.empty_object = true;
  fields_.wrap = {};
  error_.clear();
  depth_ = 0;
  current_ = Place::kRoot;
  // Only what may be dropped by a member that comes first: the other parts begin with their message or block.
  *PartOf(Place::kMain) = *PartOf(Place::kSide) = {};
  preferred_limit_.reset();
  limit_.reset();
  main_type_ = Type::kNull;
  embeds_messages_ = has_instead_ = false;
  seen_ = kSeenAtFirst;
  main_bad_ = false;
  main_items_ = 0;
  item_types_ = 0;
  typed_bad_ = 0;
  hashing_ = false;
  if (hasher_ != nullptr) hasher_->Reset();
  grpc_ = IsGrpc(api) ? std::make_unique<Grpc>() : nullptr;
}

[[gnu::hot]] void RequestScanner::Feed(std::string_view chunk) {
  if (chunk.empty() || json_.failed()) return;
  if (grpc_ != nullptr) [[unlikely]]
    return FeedGrpc(chunk);
  FeedJson(chunk);
}

[[gnu::hot]] void RequestScanner::FeedJson(std::string_view chunk) {
  if (hasher_ == nullptr) {
    json_.Feed(chunk, *this);
  } else {
    FeedAndHash(chunk);
  }
  if (json_.failed()) RefuseJson();
}

[[gnu::hot]] void RequestScanner::Finish() {
  if (api_ == Api::kUnknown || !ok()) return;
  if (grpc_ != nullptr) [[unlikely]]
    return FinishGrpc();
  FinishJson();
}

[[gnu::hot]] void RequestScanner::FinishJson() {
  if (hasher_ != nullptr) hasher_->Finish(false);
  if (!json_.Finish(*this)) return RefuseJson();
  if (!MainIsValid() || typed_bad_ != 0) RefuseFields();
}

[[gnu::noinline, gnu::cold]] void RequestScanner::RefuseJson() {
  // Of an unknown API any bytes will do: what was found before they stopped to be JSON stays.
  if (IsLenient()) {
    if (hasher_ != nullptr) hasher_->Reset();  // how far it was hashed depends on how it was cut
    return;
  }
  error_ = "error unmarshaling request bodyMap: " + json_.error();
}

[[gnu::noinline, gnu::cold]] void RequestScanner::RefuseFields() {
  switch (api_) {
    case Api::kChatCompletions:
      error_ = "invalid chat completions request: must have valid messages field";
      break;
    case Api::kCompletions:
      error_ = "invalid completions request: must have prompt field";
      break;
    case Api::kEmbeddings:
      error_ = embeds_messages_ ? "invalid embeddings request: must have valid messages field"
                                : "invalid embeddings request: must have input field";
      break;
    case Api::kResponses:
      error_ = "invalid responses request: must have input field";
      break;
    case Api::kImages:
      error_ = "invalid images generations request: must have prompt field";
      break;
    case Api::kVllmGenerate:
      error_ = "invalid generate request: must have non-empty token_ids field";
      break;
    default:
      error_ = "invalid messages request: must have valid messages field";
      break;
  }
}

[[gnu::noinline, gnu::cold]] void RequestScanner::NotAnObject(uint64_t at, std::string_view found) {
  json_.Fail("invalid JSON at byte " + std::to_string(at) + ": the body must be an object" +
             std::string(found));
}

[[gnu::noinline, gnu::cold]] void RequestScanner::TooLong(std::string_view what, uint64_t at, size_t max) {
  json_.Fail(std::string(what) + " at byte " + std::to_string(at) + " is longer than " + std::to_string(max) +
             " bytes");
}

void RequestScanner::FinishPartial() {
  if (grpc_ != nullptr) return FinishPartialGrpc();
  FinishPartialJson();
}

void RequestScanner::FinishPartialJson() {
  if (hasher_ != nullptr) hasher_->Finish(true);
  const std::optional<uint64_t> begin = json_.open_string();
  if (!begin) return;
  if (IsPrompt(current_)) AddPrompt({*begin + 1, json_.offset()});
}

[[gnu::hot]] bool RequestScanner::MainIsValid() const {
  if (has_instead_ || api_ == Api::kSglangGenerate) return true;
  if (!Seen(Place::kMain) || main_bad_) return false;
  const bool array = main_type_ == Type::kArray;
  const bool string = main_type_ == Type::kString;
  switch (api_) {
    case Api::kChatCompletions:
    case Api::kMessages:
      return array && main_items_ > 0;
    case Api::kCompletions: {
      if (!array) return string && main_items_ > 0;
      const auto only = [&](Type type) { return item_types_ == 1U << static_cast<unsigned>(type); };
      return only(Type::kString) || only(Type::kNumber) || only(Type::kArray);
    }
    case Api::kImages:
      return string && main_items_ > 0;
    case Api::kVllmGenerate:
      return array && item_types_ == 1U << static_cast<unsigned>(Type::kNumber);
    case Api::kEmbeddings:
      return (array || (string && !embeds_messages_)) && main_items_ > 0;
    default:
      return array || string;
  }
}

RequestScanner::Place RequestScanner::Element(Place container) const {
  switch (container) {
    case Place::kMain:
      return MainIsMessages() || api_ == Api::kResponses ? Place::kMessage : Place::kPromptItem;
    case Place::kSide:
    case Place::kContent:
      return Place::kBlock;
    case Place::kBlockContent:
      return Place::kInnerBlock;
    case Place::kPromptItem:
      return Place::kToken;
    default:
      return Place::kIgnored;
  }
}

RequestScanner::Place RequestScanner::Member(Place object, std::string_view key) const {
  switch (object) {
    case Place::kRoot:
      return TopMember(key);
    case Place::kMessage:
      if (key == "content") return Place::kContent;
      if (key == "role") return Place::kRole;
      break;
    case Place::kBlock:
      if (key == "text") return Place::kBlockText;
      if (key == "content") return Place::kBlockContent;
      if (IsMedia(key)) return Place::kOne;
      break;
    case Place::kInnerBlock:
      if (key == "text") return Place::kInnerText;
      if (IsMedia(key)) return Place::kOne;
      break;
    case Place::kSampling:
      if (api_ == Api::kVllmGenerate && (key == "prompt_logprobs" || key == "skip_reading_prefix_cache"))
        return Place::kUncached;
      return key == (api_ == Api::kSglangGenerate ? "max_new_tokens" : "max_tokens") ? Place::kLimit
                                                                                     : Place::kIgnored;
    default:
      return Place::kIgnored;
  }
  return hasher_ == nullptr ? Place::kIgnored : HashedMember(object, key);
}

// By length first: most keys are told by one comparison, or are none of these by none.
[[gnu::hot]] RequestScanner::Place RequestScanner::TopMember(std::string_view key) const {
  if (api_ == Api::kSglangGenerate) [[unlikely]]
    return SglangMember(key);
  const auto in = [this](Api api, Place place) { return api_ == api ? place : Place::kIgnored; };
  switch (key.size()) {
    case 4:
      return key == "echo" ? in(Api::kCompletions, Place::kUncached) : Place::kIgnored;
    case 5:
      if (key == "model") return Place::kModel;
      if (key == "input") return api_ == Api::kEmbeddings ? Place::kMain : in(Api::kResponses, Place::kMain);
      if (key == "tools" && hasher_ != nullptr && (api_ == Api::kMessages || api_ == Api::kResponses))
        return Place::kTools;
      break;
    case 6:
      if (key == "stream") return Place::kStream;
      if (key == "prompt")
        return api_ == Api::kCompletions || api_ == Api::kImages ? Place::kMain
                                                                 : in(Api::kResponses, Place::kInstead);
      if (key == "system") return in(Api::kMessages, Place::kSide);
      return Place::kIgnored;
    case 8:
      if (key == "messages")
        return api_ == Api::kChatCompletions || api_ == Api::kEmbeddings ? Place::kMain
                                                                         : in(Api::kMessages, Place::kMain);
      return key == "features" ? in(Api::kVllmGenerate, Place::kMedia) : Place::kIgnored;
    case 9:
      if (key == "token_ids") return in(Api::kVllmGenerate, Place::kMain);
      break;
    case 10:
      if (key == "max_tokens") {
        const bool limits =
            api_ == Api::kChatCompletions || api_ == Api::kCompletions || api_ == Api::kMessages;
        return limits ? Place::kLimit : Place::kIgnored;
      }
      if (key == "cache_salt") return api_ == Api::kUnknown ? Place::kIgnored : Place::kSalt;
      return Place::kIgnored;
    case 12:
      if (key == "instructions") return in(Api::kResponses, Place::kSide);
      return Place::kIgnored;
    case 13:
      if (key == "prompt_embeds") return in(Api::kCompletions, Place::kInstead);
      break;
    case 15:
      if (key == "sampling_params") return in(Api::kVllmGenerate, Place::kSampling);
      if (key == "prompt_logprobs") return Place::kUncached;
      break;
    case 17:
      if (key == "max_output_tokens") return in(Api::kResponses, Place::kLimit);
      return Place::kIgnored;
    default:
      break;
  }
  return api_ == Api::kChatCompletions ? ChatMember(key) : Place::kIgnored;
}

// What a part of a message has that is an image, a sound or a video, by its URL, its id or its data.
bool RequestScanner::IsMedia(std::string_view key) {
  switch (key.size()) {
    case 5:
      return key == "image" || key == "video";
    case 6:
      return key == "source";
    case 9:
      return key == "image_url" || key == "audio_url" || key == "video_url";
    case 11:
      return key == "input_audio";
    case 12:
      return key == "image_embeds";
    default:
      return false;
  }
}

[[gnu::noinline, gnu::cold]] RequestScanner::Place RequestScanner::SglangMember(std::string_view key) {
  if (key == "input_ids") return Place::kMain;
  if (key == "text") return Place::kSide;  // of the two one is given, and null may stand for the other
  if (key == "stream") return Place::kStream;
  if (key == "extra_key") return Place::kSalt;
  if (key == "sampling_params") return Place::kSampling;
  if (key == "logprob_start_len") return Place::kUncached;
  if (key == "image_data" || key == "audio_data" || key == "video_data") return Place::kMedia;
  return key == "model" ? Place::kModel : Place::kIgnored;
}

RequestScanner::Place RequestScanner::ChatMember(std::string_view key) {
  if (key == "max_completion_tokens") return Place::kPreferredLimit;
  const auto typed = [&](const TypedMember& member) { return member.key == key; };
  return std::ranges::any_of(kTypedMembers, typed) ? Place::kTyped : Place::kIgnored;
}

// Takes back the prompt strings of a member that a duplicate replaces. `sibling`: the other member beside it
// that may have some; the same where there is none.
void RequestScanner::Drop(Place gone, Place sibling) {
  Part& part = *PartOf(gone);
  if (hasher_ != nullptr && (part.count != 0 || part.bytes != 0)) hasher_->Spoil();
  if (part.count != 0) {
    const auto first = fields_.prompt.begin() + static_cast<std::ptrdiff_t>(part.first);
    fields_.prompt.erase(first, first + static_cast<std::ptrdiff_t>(part.count));
    Part& other = *PartOf(sibling);
    if (other.first > part.first) other.first -= part.count;
  }
  fields_.prompt_bytes -= part.bytes;
  part = {};
}

void RequestScanner::OnKey(std::string_view key) {
  const Place object = levels_[depth_ - 1].place;
  if (object != Place::kRoot) {
    current_ = Member(object, key);
    if (current_ != Place::kIgnored) BeginMember(current_, key);
    return;
  }
  fields_.empty_object = false;
  current_ = TopMember(key);
  if (current_ == Place::kIgnored) return;
  if (current_ == Place::kMain) embeds_messages_ = IsMessagesKey(key);
  if (Seen(current_)) BeginMember(current_, key);
  seen_ |= Bit(current_);
}

// The short way for what most members are. Says what OnKey and the value's calls would; where that is more
// than a few lines, or a member comes again, they do.
[[gnu::hot]] bool RequestScanner::OnPlainMember(const PlainMember& member) {
  const Place object = levels_[depth_ - 1].place;
  const bool root = object == Place::kRoot;
  const Place place = root ? TopMember(member.key) : Member(object, member.key);
  if (place == Place::kIgnored) {
    fields_.empty_object = false;
    return true;
  }
  if (place == Place::kRole) {
    role_bad_ = member.first != '"' && member.first != 'n';
    if (hasher_ != nullptr && member.first == '"') HashPlain(place, member.text);
    return true;
  }
  if (root && Seen(place)) return false;
  if (place >= Place::kWhole) {
    if (place == Place::kSampling) return false;
    const bool media = place == Place::kOne || place == Place::kMedia;
    if (media && member.first != 'n') fields_.has_media = true;
    if (hasher_ != nullptr && member.first == '"' && place != Place::kMedia) HashPlain(place, member.text);
    if (root) fields_.empty_object = false;
    return true;
  }
  if (Part* part = PartOf(place)) {
    if (member.first != '"' || place == Place::kSide || part->count != 0 || part->bytes != 0) return false;
    if (root) {
      embeds_messages_ = IsMessagesKey(member.key);
      main_type_ = Type::kString;
      main_items_ = member.text.size();
    }
    if (place == Place::kContent) content_bad_ = false;
    part->first = fields_.prompt.size();
    if (IsPrompt(place)) {
      part->bytes = member.text.size();
      AddPrompt({member.span.begin + 1, member.span.end - 1});
      part->count = fields_.prompt.size() - part->first;
    }
    if (hasher_ != nullptr && (root || IsPrompt(place))) HashPlain(place, member.text);
  } else if (place == Place::kModel) {
    if (member.first != '"' || member.text.size() > kMaxModelBytes) return false;
    if (member.text.find('\\') != std::string_view::npos) return false;
    fields_.has_model = true;
    fields_.model.append(member.text);  // it was empty: a shorter way than an assignment
    fields_.model_span = member.span;
  } else if (place == Place::kStream) {
    fields_.stream = member.first == 't';
  } else if (place == Place::kLimit) {
    if (member.first < '0' || member.first > '9' || member.number < 0) return false;
    limit_ = member.number;
    fields_.max_tokens = preferred_limit_ ? preferred_limit_ : limit_;
  } else {
    return false;
  }
  if (root) {
    seen_ |= Bit(place);
    fields_.empty_object = false;
  }
  return true;
}

// Forgets what an earlier duplicate said: the last one counts.
void RequestScanner::BeginMember(Place place, std::string_view key) {
  switch (place) {
    case Place::kModel:
      fields_.has_model = false;
      fields_.model.clear();
      fields_.model_span = {};
      break;
    case Place::kStream:
      fields_.stream = false;
      break;
    case Place::kLimit:
    case Place::kPreferredLimit:
      (place == Place::kLimit ? limit_ : preferred_limit_).reset();
      fields_.max_tokens = preferred_limit_ ? preferred_limit_ : limit_;
      break;
    case Place::kSalt:
    case Place::kTyped: {
      if (place == Place::kSalt) {
        fields_.cache_salt.clear();
        typed_ = 0;
        typed_bad_ &= ~1U;
        break;
      }
      const auto typed = [&](const TypedMember& member) { return member.key == key; };
      typed_ = static_cast<size_t>(std::ranges::find_if(kTypedMembers, typed) - kTypedMembers.begin());
      typed_bad_ &= ~(1U << typed_);
      break;
    }
    case Place::kMain:
      main_bad_ = false;
      main_items_ = 0;
      item_types_ = 0;
      Drop(Place::kMain, Place::kSide);
      break;
    case Place::kSide:
      Drop(Place::kSide, Place::kMain);
      break;
    case Place::kRole:
      role_bad_ = false;
      break;
    case Place::kContent:
      content_bad_ = false;
      Drop(Place::kContent, Place::kContent);
      break;
    case Place::kBlockText:
      Drop(Place::kBlockText, Place::kBlockContent);
      break;
    case Place::kBlockContent:
      Drop(Place::kBlockContent, Place::kBlockText);
      break;
    case Place::kInnerText:
      Drop(Place::kInnerText, Place::kInnerText);
      break;
    default:
      break;
  }
}

// Every value that is reported passes here first, when its type is known.
void RequestScanner::BeginValue(Place place, Type type) {
  if (levels_[depth_ - 1].array && levels_[depth_ - 1].place == Place::kMain) {
    ++main_items_;
    item_types_ |= 1U << static_cast<unsigned>(type);
  }
  if (IsPlain(place)) return;
  switch (place) {
    case Place::kTyped:
    case Place::kSalt:
      // Embeddings and Anthropic have no such member.
      if (type != kTypedMembers[typed_].type && type != Type::kNull && api_ != Api::kEmbeddings &&
          api_ != Api::kMessages && api_ != Api::kSglangGenerate) {
        typed_bad_ |= 1U << typed_;
      }
      break;
    case Place::kMain:
      main_type_ = type;
      break;
    case Place::kInstead:
      has_instead_ = type != Type::kNull;
      break;
    case Place::kUncached:
      // Numbers and literals are judged where they end; engines may turn any other value into one.
      if (hasher_ != nullptr && type != Type::kNull && type != Type::kBool && type != Type::kNumber)
        hasher_->Spoil();
      break;
    case Place::kMessage:
      role_bad_ = content_bad_ = false;
      *PartOf(Place::kContent) = {};
      if (type != Type::kObject && api_ != Api::kResponses) main_bad_ = true;
      break;
    case Place::kRole:
      role_bad_ = type != Type::kString && type != Type::kNull;
      break;
    case Place::kContent:
      content_bad_ = type != Type::kString && type != Type::kArray && type != Type::kNull;
      break;
    case Place::kBlock:
      *PartOf(Place::kBlockText) = *PartOf(Place::kBlockContent) = {};
      if (type != Type::kObject && type != Type::kString) content_bad_ = true;
      break;
    case Place::kInnerBlock:
      *PartOf(Place::kInnerText) = {};
      break;
    case Place::kOne:
    case Place::kMedia:
      if (type != Type::kNull) fields_.has_media = true;
      break;
    case Place::kToken:
      if (type != Type::kNumber && api_ == Api::kCompletions) main_bad_ = true;
      break;
    default:
      break;
  }
  if (Part* part = PartOf(place)) *part = {fields_.prompt.size(), 0, fields_.prompt_bytes};
}

void RequestScanner::EndValue(Place place) {
  if (IsPlain(place)) return;
  if (place == Place::kMessage && (role_bad_ || content_bad_) && api_ != Api::kResponses) main_bad_ = true;
  if (Part* part = PartOf(place)) {
    part->count = fields_.prompt.size() - part->first;
    part->bytes = fields_.prompt_bytes - part->bytes;
  }
}

[[gnu::hot]] bool RequestScanner::OnContainer(uint64_t begin, Type type) {
  const Place place = current_;
  const bool array = type == Type::kArray;
  if (depth_ == 0) {
    if (array) {
      NotAnObject(begin, ", found an array");
      return false;
    }
    fields_.members.begin = begin + 1;
  } else {
    BeginValue(place, type);
    if (hasher_ != nullptr) BeginHashed(place, begin, false);
  }
  if (place == Place::kModel) fields_.model_span.begin = begin;
  const Place element = array ? Element(place) : Place::kIgnored;
  levels_[depth_++] = {place, array, element};
  current_ = element;
  switch (place) {
    case Place::kRoot:
    case Place::kMessage:
    case Place::kBlock:
    case Place::kInnerBlock:
    case Place::kSampling:
      return !array;
    case Place::kMain:
    case Place::kSide:
    case Place::kContent:
    case Place::kBlockContent:
    case Place::kPromptItem:
      return array;
    default:
      return false;
  }
}

[[gnu::hot]] void RequestScanner::OnClose(uint64_t end) {
  const Place place = levels_[--depth_].place;
  if (place == Place::kRoot) {
    fields_.members.end = end - 1;
    return;
  }
  const Level& outer = levels_[depth_ - 1];
  current_ = outer.array ? outer.element : Place::kIgnored;
  if (place == Place::kModel) fields_.model_span.end = end;
  EndValue(place);
  if (hasher_ != nullptr) EndHashed(place, end);
}

size_t RequestScanner::OnString(uint64_t begin) {
  const Place place = current_;
  if (depth_ == 0) {
    NotAnObject(begin, ", found a string");
    return 0;
  }
  BeginValue(place, Type::kString);
  if (hasher_ != nullptr) BeginHashed(place, begin + 1, true);
  return place == Place::kModel ? kMaxModelBytes : place == Place::kSalt ? kMaxSaltBytes : 0;
}

void RequestScanner::OnStringEnd(Span span, std::string_view text, bool truncated) {
  const Place place = current_;
  const Span inside{span.begin + 1, span.end - 1};
  switch (place) {
    case Place::kModel:
      if (truncated) {
        TooLong("model name", span.begin, kMaxModelBytes);
        return;
      }
      fields_.has_model = true;
      fields_.model.append(text);  // it was empty: a shorter way than an assignment
      fields_.model_span = span;
      break;
    case Place::kSalt:
      if (truncated) {
        TooLong("cache_salt", span.begin, kMaxSaltBytes);
        return;
      }
      fields_.cache_salt = text;
      break;
    case Place::kMain:
      main_items_ = inside.end - inside.begin;
      break;
    default:
      break;
  }
  if (IsPrompt(place)) AddPrompt(inside);
  EndValue(place);
  if (hasher_ != nullptr) EndHashed(place, inside.end);
}

void RequestScanner::OnNumber(Span span, std::string_view text) {
  const Place place = current_;
  if (depth_ == 0) {
    NotAnObject(span.begin, ", found a number");
    return;
  }
  BeginValue(place, Type::kNumber);
  switch (place) {
    case Place::kModel:
      fields_.model_span = span;
      break;
    case Place::kLimit:
    case Place::kPreferredLimit:
      (place == Place::kLimit ? limit_ : preferred_limit_) = WholeNumber(text);
      fields_.max_tokens = preferred_limit_ ? preferred_limit_ : limit_;
      break;
    case Place::kPromptItem:
    case Place::kToken:
      fields_.prompt_bytes += kBytesPerToken;
      if (hasher_ != nullptr) HashToken(text);
      if ((api_ == Api::kCompletions || api_ == Api::kVllmGenerate) && !base::ParseInteger<uint32_t>(text))
        main_bad_ = true;
      break;
    case Place::kUncached:
      // SGLang's -1 is none, vLLM's is all that there are.
      if (hasher_ != nullptr && (api_ != Api::kSglangGenerate || !text.starts_with('-'))) hasher_->Spoil();
      break;
    default:
      break;
  }
  EndValue(place);
}

void RequestScanner::OnLiteral(Span span, char first) {
  const Place place = current_;
  if (depth_ == 0) {
    NotAnObject(span.begin, "");
    return;
  }
  BeginValue(place, first == 'n' ? Type::kNull : Type::kBool);
  if (place == Place::kModel) fields_.model_span = span;
  if (place == Place::kStream) fields_.stream = first == 't';
  if (place == Place::kUncached && first == 't' && hasher_ != nullptr) hasher_->Spoil();
  EndValue(place);
}

[[gnu::hot]] bool RequestScanner::IsPrompt(Place place) const {
  switch (place) {
    case Place::kMain:
      return !MainIsMessages();  // there it must be an array
    case Place::kSide:
    case Place::kContent:
    case Place::kBlock:
    case Place::kBlockText:
    case Place::kBlockContent:
    case Place::kInnerBlock:
    case Place::kInnerText:
    case Place::kPromptItem:
      return true;
    default:
      return false;
  }
}

[[gnu::hot]] void RequestScanner::AddPrompt(Span text) {
  if (fields_.prompt.size() < kMaxPromptSpans) fields_.prompt.push_back(text);
  fields_.prompt_bytes += text.end - text.begin;
}

}  // namespace fairway::payload
