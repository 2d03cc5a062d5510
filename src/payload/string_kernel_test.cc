#include "payload/string_kernel.h"

#include <gtest/gtest.h>
#include <simdjson.h>

#include <memory>
#include <regex>
#include <string>

#include "base/random.h"

namespace fairway::payload {
namespace {

// The definition, with simdjson's validator as the judge of each sequence.
size_t Expected(const std::string& text, bool escapes_too) {
  static const std::regex kEscape(R"(\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))");
  size_t at = 0;
  while (at < text.size()) {
    const auto c = static_cast<unsigned char>(text[at]);
    if (c == '\\' && escapes_too) {
      std::smatch escape;
      if (!std::regex_search(text.begin() + static_cast<std::ptrdiff_t>(at), text.end(), escape, kEscape,
                             std::regex_constants::match_continuous)) {
        return at;
      }
      at += static_cast<size_t>(escape.length());
      continue;
    }
    if (c < 0x20 || c == '"' || c == '\\') return at;
    size_t length = c < 0x80 ? 1 : 0;
    for (size_t n = 2; n <= 4 && length == 0 && at + n <= text.size(); ++n) {
      if (simdjson::validate_utf8(text.data() + at, n)) length = n;
    }
    if (length == 0) return at;
    at += length;
  }
  return at;
}

void Check(const std::string& text) {
  // An exact copy on the heap, so that the address sanitizer sees a read beyond it.
  const std::unique_ptr<char[]> copy(new char[text.size()]);
  std::copy(text.begin(), text.end(), copy.get());
  for (const bool escapes_too : {false, true}) {
    const size_t expected = Expected(text, escapes_too);
    for (const StringKernel& kernel : AllStringKernels()) {
      const SkipFunction skip = escapes_too ? kernel.skip_text : kernel.skip_plain;
      const size_t got = static_cast<size_t>(skip(copy.get(), copy.get() + text.size()) - copy.get());
      ASSERT_EQ(got, expected) << kernel.name << escapes_too << " on " << testing::PrintToString(text);
    }
  }
}

TEST(StringKernel, StopsAtEverySpecialByteAtEveryPlace) {
  for (int size = 0; size < 400; size += size < 70 ? 1 : 17) {
    Check(std::string(static_cast<size_t>(size), 'x'));
    for (int at = 0; at < size; ++at) {
      for (const char special : {'"', '\\', '\n', '\0', '\x1f', '\x80', '\xff', '\x7f', ' '}) {
        std::string text(static_cast<size_t>(size), 'x');
        text[static_cast<size_t>(at)] = special;
        Check(text);
      }
    }
  }
}

TEST(StringKernel, JudgesEveryPairAndTripleOfBytes) {
  for (const size_t before : {size_t{0}, size_t{30}, size_t{31}, size_t{62}}) {
    for (unsigned first = 0x80; first < 0x100; ++first) {
      for (unsigned second = 0x70; second < 0x100; ++second) {
        std::string text(before, 'x');
        text += static_cast<char>(first);
        text += static_cast<char>(second);
        Check(text + std::string(40, 'y'));
        for (const char third : {'\x7f', '\x80', '\xbf', '\xc0', '"'}) {
          Check(text + third + std::string(40, 'y'));
          if (first >= 0xf0) Check(text + third + "\x80" + std::string(40, 'y'));
        }
      }
    }
  }
}

TEST(StringKernel, RandomTextOfAllScriptsValidAndBroken) {
  base::Random random(20'250'401);
  static const std::string kPieces[] = {"x",
                                        "plain text",
                                        "\xc3\xa4",
                                        "\xe2\x82\xac",
                                        "\xe4\xb8\xad",
                                        "\xf0\x9f\x98\x80",
                                        "\xed\x9f\xbf",
                                        "\xf4\x8f\xbf\xbf",
                                        "\\n",
                                        "\\\\",
                                        "\\\"",
                                        "\\u00e4"};
  for (int round = 0; round < 40'000; ++round) {
    std::string text;
    const uint64_t pieces = random.Below(60);
    const uint64_t script = random.Below(12);
    for (uint64_t i = 0; i < pieces; ++i) text += kPieces[random.Below(3) == 0 ? random.Below(12) : script];
    if (!text.empty() && random.Below(2) == 0)
      text[random.Below(text.size())] = static_cast<char>(random.Below(256));
    if (!text.empty() && random.Below(4) == 0) text.resize(random.Below(text.size()));
    Check(text);
  }
}

// Of both forms: what is compiled here for every CPU, and what this CPU has.
void CheckPrefix(const std::string& block) {
  unsigned expected = 0;
  while (expected < 16) {
    const auto c = static_cast<unsigned char>(block[expected]);
    if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\') break;
    ++expected;
  }
  ASSERT_EQ(PlainAsciiPrefix16Portable(block.data()), expected) << testing::PrintToString(block);
  ASSERT_EQ(PlainAsciiPrefix16(block.data()), expected) << testing::PrintToString(block);
}

TEST(PlainAsciiPrefix16, FindsEveryByteAtEveryPlace) {
  for (const char filler : {'x', ' ', '!', '\x7f'}) {
    CheckPrefix(std::string(16, filler));
    for (size_t at = 0; at < 16; ++at) {
      for (int byte = 0; byte < 256; ++byte) {
        std::string block(16, filler);
        block[at] = static_cast<char>(byte);
        CheckPrefix(block);
      }
    }
  }
}

TEST(PlainAsciiPrefix16, OfTwoTheFirstCounts) {
  constexpr std::string_view kBytes("\"\\\n\0\x1f\x80\xff !#[]", 12);
  for (size_t at = 0; at < 16; ++at) {
    for (size_t behind = at + 1; behind < 16; ++behind) {
      for (const char first : kBytes) {
        for (const char second : kBytes) {
          std::string block(16, 'x');
          block[at] = first;
          block[behind] = second;
          CheckPrefix(block);
        }
      }
    }
  }
}

TEST(Utf8Tail, KnowsTheLengthOfASequence) {
  Utf8Tail tail;
  EXPECT_FALSE(tail.Begin(0xc1));
  EXPECT_FALSE(tail.Begin(0xf5));
  ASSERT_TRUE(tail.Begin(0xf0));
  EXPECT_EQ(tail.remaining, 3);
  EXPECT_FALSE(tail.Next(0x8f));
  EXPECT_TRUE(tail.Next(0x90));
  EXPECT_TRUE(tail.Next(0x80));
  EXPECT_TRUE(tail.Next(0xbf));
  EXPECT_EQ(tail.remaining, 0);
}

}  // namespace
}  // namespace fairway::payload
