#include "payload/render_answer.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/strings.h"
#include "payload/json_scanner.h"

namespace fairway::payload {
namespace {

class RenderAnswer final : public JsonSink {
 public:
  PromptTokens tokens;
  bool ok() const { return ok_; }
  bool any() const { return answers_ != 0; }
  size_t bytes() const {
    return (tokens.tokens.capacity() + tokens.ends.capacity()) * sizeof(uint32_t) + media_ * kMediaCost;
  }

  bool OnObject(uint64_t) override {
    Place next = Place::kIgnored;
    const Place place = Current();
    if (stack_.empty() || place == Place::kList) {
      next = Place::kAnswer;
      ++answers_;
      has_tokens_ = false;
    } else if (place == Place::kAnswer && key_ == "features") {
      next = Place::kFeatures;
    } else if (place == Place::kFeatures && key_ == "mm_hashes") {
      next = Place::kHashes;
    } else if (place == Place::kFeatures && key_ == "mm_placeholders") {
      next = Place::kRanges;
    } else if (place == Place::kRangeList) {
      next = Place::kRange;
      range_ = {};
    }
    return Enter(next);
  }
  bool OnArray(uint64_t) override {
    Place next = Place::kIgnored;
    const Place place = Current();
    if (stack_.empty()) {
      next = Place::kList;
    } else if (place == Place::kAnswer && key_ == "token_ids") {
      next = Place::kTokens;
      ok_ = ok_ && !std::exchange(has_tokens_, true);
    } else if (place == Place::kHashes || place == Place::kRanges) {
      next = place == Place::kHashes ? Place::kHashList : Place::kRangeList;
      kind_ = key_;
    }
    return Enter(next);
  }
  void OnClose(uint64_t) override {
    const Place place = Current();
    stack_.pop_back();
    if (place == Place::kRange) {
      ok_ = ok_ && CountMedia();
      if (ok_) ranges_[kind_].push_back(range_);
    }
    if (place == Place::kAnswer) EndAnswer();
  }
  void OnKey(std::string_view key) override { key_ = key; }
  size_t OnString(uint64_t) override { return Current() == Place::kHashList ? kMaxHash : 0; }
  void OnStringEnd(Span, std::string_view text, bool truncated) override {
    if (Current() == Place::kHashList) {
      ok_ = ok_ && !truncated && CountMedia();
      if (ok_) hashes_[kind_].emplace_back(text);
    } else if (Current() == Place::kTokens) {
      ok_ = false;
    }
  }
  void OnNumber(Span, std::string_view text) override {
    if (Current() != Place::kTokens && Current() != Place::kRange) return;
    const auto number = base::ParseInteger<uint32_t>(text);
    ok_ = ok_ && number && tokens.tokens.size() < kMaxRenderedTokens;
    if (!ok_) return;
    if (Current() == Place::kTokens) {
      tokens.tokens.push_back(*number);
    } else if (key_ == "offset") {
      range_.first = *number;
    } else if (key_ == "length") {
      range_.second = *number;
    }
  }
  void OnLiteral(Span, char) override { ok_ = ok_ && Current() != Place::kTokens; }

 private:
  enum class Place : uint8_t {
    kList,
    kAnswer,
    kTokens,
    kFeatures,
    kHashes,
    kHashList,
    kRanges,
    kRangeList,
    kRange,
    kIgnored
  };
  static constexpr size_t kMaxHash = 256;
  // Of a hash or a range: with its kind, where each has another one.
  static constexpr size_t kMediaCost = kMaxHash + 256;

  Place Current() const { return stack_.empty() ? Place::kIgnored : stack_.back(); }
  bool Enter(Place place) {
    stack_.push_back(place);
    return place != Place::kIgnored;
  }
  // A hash or a range, each once.
  bool CountMedia() { return ++media_ <= 2 * kMaxRenderedMedia; }

  void EndAnswer() {
    const auto begin = static_cast<uint32_t>(tokens.ends.empty() ? 0 : tokens.ends.back());
    const auto end = static_cast<uint32_t>(tokens.tokens.size());
    ok_ = ok_ && has_tokens_;
    const auto prompt = static_cast<uint32_t>(tokens.ends.size());
    const auto first = static_cast<std::ptrdiff_t>(tokens.media.size());
    for (auto& [kind, hashes] : hashes_) {
      const auto ranges = ranges_.find(kind);
      const size_t count = ranges == ranges_.end() ? 0 : std::min(hashes.size(), ranges->second.size());
      for (size_t i = 0; i < count; ++i) {
        const auto [offset, length] = ranges->second[i];
        ok_ = ok_ && offset <= end - begin && length <= end - begin - offset;
        tokens.media.push_back({prompt, offset, offset + length, std::move(hashes[i])});
      }
    }
    std::sort(tokens.media.begin() + first, tokens.media.end(),
              [](const auto& a, const auto& b) { return a.begin < b.begin; });
    hashes_.clear();
    ranges_.clear();
    tokens.ends.push_back(end);
  }

  std::vector<Place> stack_;  // as deep as the scanner goes, since what is ignored is not reported
  std::string key_;
  std::string kind_;
  std::map<std::string, std::vector<std::string>> hashes_;
  std::map<std::string, std::vector<std::pair<uint32_t, uint32_t>>> ranges_;
  std::pair<uint32_t, uint32_t> range_;  // offset, length
  size_t media_ = 0;
  size_t answers_ = 0;
  bool has_tokens_ = false;
  bool ok_ = true;
};

}  // namespace

struct RenderAnswerReader::Impl {
  JsonScanner scanner;
  RenderAnswer answer;
};

RenderAnswerReader::RenderAnswerReader() : impl_(std::make_unique<Impl>()) {}
RenderAnswerReader::~RenderAnswerReader() = default;

bool RenderAnswerReader::Feed(std::string_view piece) {
  if (!impl_->answer.ok()) return false;
  impl_->scanner.Feed(piece, impl_->answer);
  return !impl_->scanner.failed() && impl_->answer.ok();
}

size_t RenderAnswerReader::bytes() const { return impl_->answer.bytes(); }

std::optional<PromptTokens> RenderAnswerReader::Finish() {
  if (!impl_->scanner.Finish(impl_->answer) || !impl_->answer.ok() || !impl_->answer.any())
    return std::nullopt;
  return std::move(impl_->answer.tokens);
}

}  // namespace fairway::payload
