// The tokens of a request's prompts, as far as somebody knows them: the body has them, or a render server was
// asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fairway::payload {

struct PromptTokens {
  // What stands for an image or the like: tokens [begin, end) of a prompt.
  struct Media {
    uint32_t prompt = 0;
    uint32_t begin = 0;
    uint32_t end = 0;
    std::string hash;
    bool operator==(const Media&) const = default;
  };
  std::vector<uint32_t> tokens;  // of all prompts, one after the other
  std::vector<uint32_t> ends;    // of each prompt among them
  std::vector<Media> media;      // by prompt and begin

  size_t bytes() const {
    size_t sum = (tokens.capacity() + ends.capacity()) * sizeof(uint32_t) + media.capacity() * sizeof(Media);
    for (const Media& one : media) sum += one.hash.capacity();
    return sum;
  }
  bool operator==(const PromptTokens&) const = default;
};

}  // namespace fairway::payload
