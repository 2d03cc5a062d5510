// Looks at the text of a JSON value without making a tree of it: a Pod is 4 to 20 KB of which 200 bytes
// matter.
//
// What is skipped is not checked beyond its brackets and quotes; any bytes give a result, and nothing is read
// outside them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace fairway::sources {

// The members of an object: `while (members.Next()) use(members.key(), members.value());`. The views lie in
// the text that was given. A text that is no object has none.
class JsonMembers {
 public:
  explicit JsonMembers(std::string_view object);
  bool Next();
  std::string_view key() const { return key_; }      // as it stands between its quotes
  std::string_view value() const { return value_; }  // with its quotes or brackets

 private:
  std::string_view rest_;
  std::string_view key_;
  std::string_view value_;
};

// The items of a list, in the same way.
class JsonItems {
 public:
  explicit JsonItems(std::string_view list);
  bool Next();
  std::string_view value() const { return value_; }

 private:
  std::string_view rest_;
  std::string_view value_;
};

// A string's value, unescaped; nothing when `value` is no string. `bytes` are between the quotes.
std::optional<std::string> JsonString(std::string_view value);
std::string JsonUnescape(std::string_view bytes);

// Cuts the items out of a list's text ({"kind":"PodList","metadata":{...},"items":[...]}) that comes in
// pieces, cut anywhere. What is not an item is kept as the envelope: the same text with empty items.
class ListSplitter {
 public:
  using Item = std::function<void(std::string_view)>;

  explicit ListSplitter(Item item) : item_(std::move(item)) {}

  // False when a bound is passed: an item above kMaxItem, an envelope above kMaxEnvelope. Then nothing more
  // is read.
  bool Feed(std::string_view bytes);
  // The envelope once its last bracket came.
  bool done() const { return done_; }
  const std::string& envelope() const { return envelope_; }

  // etcd takes objects up to 1.5 MiB.
  static constexpr size_t kMaxItem = 8 << 20;
  static constexpr size_t kMaxEnvelope = 64 << 10;

 private:
  Item item_;
  std::string envelope_;
  std::string held_;  // the beginning of an item whose end has not come yet
  std::string last_;  // the last string at the envelope's level: the key, when a list opens
  int depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  bool in_items_ = false;
  bool done_ = false;
  bool failed_ = false;
};

}  // namespace fairway::sources
