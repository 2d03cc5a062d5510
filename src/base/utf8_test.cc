#include "base/utf8.h"

#include <gtest/gtest.h>

namespace fairway::base {
namespace {

// The first and the last of each length (RFC 3629, section 3).
TEST(Utf8, FirstAndLastOfEachLength) {
  EXPECT_EQ(Utf8Of(0), std::string(1, '\0'));
  EXPECT_EQ(Utf8Of(0x7f), "\x7f");
  EXPECT_EQ(Utf8Of(0x80), "\xc2\x80");
  EXPECT_EQ(Utf8Of(0x7ff), "\xdf\xbf");
  EXPECT_EQ(Utf8Of(0x800), "\xe0\xa0\x80");
  EXPECT_EQ(Utf8Of(0xffff), "\xef\xbf\xbf");
  EXPECT_EQ(Utf8Of(0x10000), "\xf0\x90\x80\x80");
  EXPECT_EQ(Utf8Of(0x10ffff), "\xf4\x8f\xbf\xbf");
}

}  // namespace
}  // namespace fairway::base
