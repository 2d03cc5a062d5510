// Texts for this room's tests: made and broken from a fixed seed, and fed in every way.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"

namespace fairway::payload {

// Any JSON value: all escapes, all lengths of UTF-8, odd numbers, white space, duplicate keys.
class JsonMaker {
 public:
  explicit JsonMaker(uint64_t seed) : random_(seed) {}

  base::Random& random() { return random_; }

  std::string Space() {
    static constexpr std::string_view kSpaces[] = {"", "", "", "", " ", "\n", "\r\n\t", "    "};
    return std::string(kSpaces[random_.Below(8)]);
  }

  std::string String() {
    std::string out = "\"";
    const uint64_t pieces = random_.Below(8);
    for (uint64_t i = 0; i < pieces; ++i) out += Piece();
    return out + '"';
  }

  std::string Number() {
    static constexpr std::string_view kNumbers[] = {
        "0",     "-0",   "1",      "17",         "-5",         "0.5",
        "1e3",   "2E-2", "1.5e+7", "4294967295", "4294967296", "12345678901234567890",
        "1e400", "-1.0"};
    return std::string(kNumbers[random_.Below(std::size(kNumbers))]);
  }

  std::string Value(int depth = 4) {
    switch (random_.Below(depth > 0 ? 7 : 4)) {
      case 0:
        return Number();
      case 1:
        return random_.Below(2) != 0 ? "true" : "false";
      case 2:
        return "null";
      case 3:
        return String();
      case 4:
      case 5: {
        std::string out = "{" + Space();
        const uint64_t members = random_.Below(5);
        for (uint64_t i = 0; i < members; ++i) {
          if (i != 0) out += "," + Space();
          out += Key() + Space() + ":" + Space() + Value(depth - 1) + Space();
        }
        return out + "}";
      }
      default: {
        std::string out = "[" + Space();
        const uint64_t elements = random_.Below(5);
        for (uint64_t i = 0; i < elements; ++i) {
          if (i != 0) out += "," + Space();
          out += Value(depth - 1) + Space();
        }
        return out + "]";
      }
    }
  }

  // The keys that matter, often; some written with escapes.
  std::string Key() {
    static constexpr std::string_view kKeys[] = {"model",
                                                 "messages",
                                                 "prompt",
                                                 "input",
                                                 "instructions",
                                                 "system",
                                                 "stream",
                                                 "max_tokens",
                                                 "max_completion_tokens",
                                                 "max_output_tokens",
                                                 "cache_salt",
                                                 "role",
                                                 "content",
                                                 "text",
                                                 "type",
                                                 "tools",
                                                 "usage",
                                                 "prompt_tokens",
                                                 "completion_tokens",
                                                 "response",
                                                 "message",
                                                 "input_tokens",
                                                 "prompt_tokens_details",
                                                 "cached_tokens",
                                                 "mod\\u0065l",
                                                 "m\\u0065ssages",
                                                 "cont\\u0065nt"};
    if (random_.Below(5) == 0) return String();
    return '"' + std::string(kKeys[random_.Below(std::size(kKeys))]) + '"';
  }

  // `text` with a few bytes changed, removed, doubled or added, or cut off.
  std::string Broken(std::string text) {
    const uint64_t changes = 1 + random_.Below(3);
    for (uint64_t i = 0; i < changes && !text.empty(); ++i) {
      const size_t at = random_.Below(text.size());
      switch (random_.Below(6)) {
        case 0:
          text[at] = static_cast<char>(random_.Below(256));
          break;
        case 1:
          text.erase(at, 1 + random_.Below(3));
          break;
        case 2:
          text.insert(at, text.substr(random_.Below(text.size()), 1 + random_.Below(6)));
          break;
        case 3:
          text.insert(at, 1, "{}[]\",:\\0123456789-+eE.tfnu \n"[random_.Below(29)]);
          break;
        case 4:
          text.resize(at);
          break;
        default:
          text[at] = static_cast<char>(text[at] ^ (1 << random_.Below(8)));
          break;
      }
    }
    return text;
  }

  // `text` in pieces, from random cuts.
  std::vector<std::string_view> Cut(std::string_view text) {
    std::vector<std::string_view> pieces;
    while (!text.empty()) {
      const size_t most = random_.Below(4) == 0 ? 64 : 6;
      const size_t size = std::min<size_t>(text.size(), random_.Below(most + 1));  // also empty pieces
      pieces.push_back(text.substr(0, size));
      text.remove_prefix(size);
    }
    return pieces;
  }

 private:
  std::string Piece() {
    static constexpr std::string_view kPieces[] = {
        "a",
        "plain text ",
        "\\n",
        "\\\"",
        "\\\\",
        "\\u0041",
        "\\u00e4",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\ude00x",
        "\xc3\xa4",
        "\xe2\x82\xac",
        "\xe4\xb8\xad\xe6\x96\x87",
        "\xf0\x9f\x98\x80",
        "\\/",
        "\\b\\f\\r\\t",
        "usage",
        "\\\"usage\\\"",
        "a longer piece of plain text that fills a whole block of the vector kernels, and then some",
        "{[:,]}"};
    return std::string(kPieces[random_.Below(std::size(kPieces))]);
  }

  base::Random random_;
};

}  // namespace fairway::payload
