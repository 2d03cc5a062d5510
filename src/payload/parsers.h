// Which of the reference's parsers are on: who reads a request's body is told by its path (ApiOfPath). A path that
// none of them takes goes to passthrough-parser, and is refused where that is off.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fairway::payload {

enum class Parser : uint8_t {
#define PARSER(parser, type) parser,
#include "payload/parser_list.h"
#undef PARSER
};

std::string_view ToString(Parser parser);  // the type, as configs say it
std::optional<Parser> FindParser(std::string_view type);

class Parsers {
 public:
  constexpr Parsers() = default;
  // What is on where a config lists none: the reference's defaults, and SGLang's.
  static constexpr Parsers Default() {
    Parsers parsers;
    for (const Parser parser :
         {Parser::kOpenai, Parser::kAnthropic, Parser::kVllmHttp, Parser::kSglangHttp, Parser::kPassthrough})
      parsers.Add(parser);
    return parsers;
  }
  static constexpr Parsers FromBits(uint8_t bits) {
    Parsers parsers;
    parsers.bits_ = bits;
    return parsers;
  }
  constexpr uint8_t bits() const { return bits_; }
  constexpr void Add(Parser parser) { bits_ |= Bit(parser); }
  constexpr bool Has(Parser parser) const { return (bits_ & Bit(parser)) != 0; }
  bool operator==(const Parsers&) const = default;

 private:
  static constexpr uint8_t Bit(Parser parser) {
    return static_cast<uint8_t>(1U << static_cast<unsigned>(parser));
  }

  uint8_t bits_ = 0;
};

// The types, with commas between them.
std::string ToString(Parsers parsers);

}  // namespace fairway::payload
