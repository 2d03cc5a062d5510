// The model's name in request and response bodies, where only those bytes may change.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "payload/request.h"

namespace fairway::request {

// Replaces the model's name in `body`, which `fields` were read from. Every other byte stays, as
// payload::SpliceModel has it, but in place: a long body is not copied. False when there is no name.
bool PutModel(std::string& body, const payload::RequestFields& fields, std::string_view model);

// Renames the model in a response on its way to the client: `"model":"<from>"`, with any white space around
// the colon, becomes
// `"model":"<to>"`. In a string of a JSON text the quotes would be escaped, so generated text is never
// changed. Owned by one thread. Keeps at most the length of that text between calls.
class ModelRenamer {
 public:
  // `join`: a text cut between two chunks is found too; its first part is then held back until the next
  // chunk.
  ModelRenamer(std::string_view from, std::string_view to, bool join);

  // The chunk with its names replaced. The view is valid until the next call; it is `chunk` itself where
  // nothing changes.
  std::string_view Feed(std::string_view chunk);
  // What is still held back. The view is valid until the next call.
  std::string_view Finish();

 private:
  // How much of `text` is the searched text: its length, 0 when it is not, npos when `text` ends before that
  // is clear.
  size_t Match(std::string_view text) const;

  static constexpr size_t kMaxSpace = 16;  // white space around the colon; more is no match

  std::string from_;  // JSON with quotes
  std::string to_;
  bool join_;
  std::string held_;
  std::string input_;
  std::string output_;
};

}  // namespace fairway::request
