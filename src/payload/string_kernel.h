// The inner loop of the body scanner: how far the plain part of a JSON string goes.
//
// Prompts are long strings, so this loop sees nearly every byte of a request. There is one function per
// instruction set; all of them give the same answer for the same bytes.
//
// Thread-safe: functions without state.
#pragma once

#include <bit>
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

// How many of the 16 bytes at `p` are plain ASCII before the first that is not; for short strings, where a
// call costs more than the work. May say 0 for want of a fast way.
inline unsigned PlainAsciiPrefix16([[maybe_unused]] const char* p) {
#if defined(__SSE2__)
  const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(block, _mm_set1_epi8(0x1f)), block);
  const __m128i special = _mm_or_si128(
      _mm_or_si128(_mm_cmpeq_epi8(block, _mm_set1_epi8('"')), _mm_cmpeq_epi8(block, _mm_set1_epi8('\\'))),
      control);
  const auto stop = static_cast<unsigned>(_mm_movemask_epi8(_mm_or_si128(special, block)));
  return static_cast<unsigned>(std::countr_zero(stop | 0x10000U));
#else
  return 0;
#endif
}

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
