// Puts values together for the two parsers under the same bounds: depth, number of values, every key once.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/value.h"

namespace fairway::api {

// Owned by one parser, for one text. A bound that is passed throws Stop, which the parser catches.
class ValueBuilder {
 public:
  struct Stop {
    int line = 0;
    std::string message;
    bool file = false;  // nothing more of this file is to be read
  };

  explicit ValueBuilder(ParsedText& out) : out_(out) {}

  std::shared_ptr<Value> Open(Value::Kind kind, int line);  // a list or map; what follows goes into it
  void Close();
  std::shared_ptr<Value> Scalar(Value::Kind kind, int line, std::string text);
  void Alias(const ValuePtr& target, int line);
  // The next value belongs to this key. `merge`: it is YAML's "<<".
  void Key(std::string key, int line, bool merge = false);
  // The innermost open value is a map that waits for a key.
  bool WantsKey() const { return !frames_.empty() && frames_.back().wants_key; }
  bool Done() const { return frames_.empty(); }

  void StartDocument();
  ValuePtr TakeDocument() { return std::move(root_); }
  void Report(int line, std::string message);

 private:
  struct Frame {
    std::shared_ptr<Value> value;
    bool wants_key = false;
    bool merge = false;
    bool drop = false;  // the value of a key that was there before
    std::string key;
    int key_line = 0;
    std::unordered_map<std::string, int> seen;
    std::vector<ValuePtr> merged;
  };
  void Count(int line, size_t values);
  void Add(ValuePtr value, int line);
  void ApplyMerges(Frame& frame);

  ParsedText& out_;
  std::vector<Frame> frames_;
  ValuePtr root_;
  size_t values_ = 0;
  size_t aliased_ = 0;
};

}  // namespace fairway::api
