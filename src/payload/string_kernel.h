// The inner loop of the body scanner: how far the plain part of a JSON string goes.
//
// Prompts are long strings, so this loop sees nearly every byte of a request. There is one function per
// instruction set; all of them give the same answer for the same bytes.
//
// Thread-safe: functions without state.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fairway::payload {

// What a kernel returns is the first byte in [begin, end) that it does not skip, `end` when there is none.
// REQUIRES: `begin` is at a character boundary, inside a string and outside an escape.
using SkipFunction = const char* (*)(const char* begin, const char* end);

struct StringKernel {
  const char* name;
  // Stops at '"', '\\', a control character below 0x20, and the first byte of a UTF-8 sequence that is
  // invalid or not complete before `end`.
  SkipFunction skip_plain;
  // The same, but goes on over escapes that are valid and complete before `end`.
  SkipFunction skip_text;
};

// The fastest one this CPU can run.
const StringKernel& BestStringKernel();

// Every one this CPU can run, slowest first, for tests and benchmarks that compare them.
std::span<const StringKernel> AllStringKernels();

// How many of the 16 bytes at `p` are plain ASCII before the first that is not, 16 when all are; for short
// strings, where a call costs more than the work. Exact, or 16: that says "ask the kernel", and is right for
// any bytes. Any smaller number is taken for the place of the first byte that is not plain.
//
// For any CPU: eight bytes at a time. Of the flags that a borrow may set for nothing, none is below the first
// that is right, so the lowest one is exact.
inline unsigned PlainAsciiPrefix16Portable(const char* p) {
  if constexpr (std::endian::native != std::endian::little) return 16;
  constexpr uint64_t kOnes = 0x0101010101010101;
  constexpr uint64_t kHighs = 0x8080808080808080;
  for (unsigned i = 0; i < 16; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, p + i, sizeof word);
    const auto zero = [](uint64_t x) { return (x - kOnes) & ~x; };
    const uint64_t control = (word - kOnes * 0x20) & ~word;
    const uint64_t stop =
        (word | control | zero(word ^ (kOnes * '"')) | zero(word ^ (kOnes * '\\'))) & kHighs;
    if (stop != 0) return i + static_cast<unsigned>(std::countr_zero(stop)) / 8;
  }
  return 16;
}

#if defined(__SSE2__)
inline unsigned PlainAsciiPrefix16(const char* p) {
  const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(block, _mm_set1_epi8(0x1f)), block);
  const __m128i special = _mm_or_si128(
      _mm_or_si128(_mm_cmpeq_epi8(block, _mm_set1_epi8('"')), _mm_cmpeq_epi8(block, _mm_set1_epi8('\\'))),
      control);
  const auto stop = static_cast<unsigned>(_mm_movemask_epi8(_mm_or_si128(special, block)));
  return static_cast<unsigned>(std::countr_zero(stop | 0x10000U));
}
#else
inline unsigned PlainAsciiPrefix16(const char* p) { return PlainAsciiPrefix16Portable(p); }
#endif

// UTF-8 decoding state for text that is cut inside a sequence. Table 3-7 of the Unicode standard.
struct Utf8Tail {
  unsigned char remaining = 0;  // bytes still to come
  unsigned char low = 0x80;     // bounds of the next one
  unsigned char high = 0xbf;

  // `byte` begins a sequence of two to four bytes; false when no such sequence exists.
  bool Begin(unsigned char byte);
  // `byte` goes on with it. REQUIRES: remaining > 0
  bool Next(unsigned char byte);
};

}  // namespace fairway::payload
